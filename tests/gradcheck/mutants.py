"""Bugs to plant: systematic changes to the syntax tree of a function, such as people make who write gradients by hand.

`mutants(function)` gives every change of every place, as code that can stand in for the function's own: a sign turned
round, a factor or a summand left out, an axis's sum taken for its mean or its first entry, a transpose taken for a
reshape, a term of a sum overwritten, a mask upside down, two results exchanged, an argument changed in place. They know
nothing of what the function says, so that it may be reworded.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType

import numpy as np


def expression(text: str, **parts: ast.expr) -> ast.expr:
    """The syntax tree of an expression, with trees in place of the names of `parts`."""

    class Fill(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.AST:
            return parts.get(node.id, node)

    return Fill().visit(ast.parse(text, mode="eval").body)


def changed_expressions(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """What people write in place of an expression, with a word for the mistake."""
    match node:
        case ast.BinOp(left=a, op=ast.Add() | ast.Sub() as op, right=b):
            yield "sign", ast.BinOp(a, ast.Sub() if isinstance(op, ast.Add) else ast.Add(), b)
            yield "left summand only", a
            yield "right summand only", b
        case ast.BinOp(left=a, op=ast.Mult(), right=b):
            yield "left factor only", a
            yield "right factor only", b
            if isinstance(b, ast.Name) and b.id.islower():  # not a size
                yield "right factor upside down", expression("a * (1 - b)", a=a, b=b)
        case ast.BinOp(left=a, op=ast.Div(), right=b):
            yield "not divided", a
            if not isinstance(a, ast.Constant):
                yield "dividend forgotten", expression("1 / b", b=b)
            yield "divided twice", expression("a / b / b", a=a, b=b)
        case ast.BinOp(left=a, op=ast.MatMult(), right=b):
            yield "matrix product the other way round", ast.BinOp(b, ast.MatMult(), a)
            yield "sign", expression("-(a)", a=node)
        case ast.Call(func=ast.Attribute(value=x, attr="sum"), args=arguments, keywords=keywords):
            yield "mean for sum", ast.Call(ast.Attribute(x, "mean"), arguments, keywords)
            if keywords:
                yield "sum forgotten", x
                part = expression("x[..., :-1]", x=x)
                yield "last left out", ast.Call(ast.Attribute(part, "sum"), arguments, keywords)
            elif arguments and isinstance(arguments[0], ast.Constant):
                yield "first for sum", expression("x.take(0, axis)", x=x, axis=arguments[0])
            elif arguments and isinstance(arguments[0], ast.Tuple):
                rest = ast.Tuple([ast.Constant(axis.value - 1) for axis in arguments[0].elts[1:]])
                yield "first for sum", expression("x[0].sum(rest)", x=x, rest=rest)
                yield "one axis short", expression("x[..., :1].sum(axes)", x=x, axes=arguments[0])
                yield "last for sum", expression("x[:, :, -1:].sum(axes)", x=x, axes=arguments[0])
        case ast.Attribute(value=x, attr="T"):
            yield "reshape for transpose", expression("x.reshape(x.T.shape)", x=x)
        case ast.Attribute(value=x, attr="size"):
            yield "length for size", expression("len(x)", x=x)
        case (
            ast.Call(func=ast.Attribute(value=x, attr="swapaxes"))
            | ast.Call(func=ast.Name(id="transposed" | "heads_first"), args=[x])
        ):
            yield "reshape for transpose", expression("x.reshape(y.shape)", x=x, y=node)
        case ast.Call(func=ast.Name(id="reversed"), args=[x]):
            yield "forwards", x
        case ast.Call(func=ast.Attribute(value=ast.Name(id="np"), attr="exp"), args=[ast.Name() as x], keywords=[]):
            yield "in place", expression("np.exp(x, out=x)", x=x)
        case ast.IfExp(body=a, orelse=b):
            yield "always the first", a
            yield "always the second", b
        case ast.Subscript(value=x, slice=where) if not isinstance(where, ast.Constant):
            yield "all of it", x
            for slices in changed_slices(where):
                yield "other part", ast.Subscript(x, slices)
        case ast.Tuple(elts=parts) if parts and all(isinstance(p, ast.Tuple) and len(p.elts) == 2 for p in parts):
            for i in range(len(parts) - 1):
                (a, b), (c, d) = parts[i].elts, parts[i + 1].elts
                yield "exchanged", ast.Tuple([*parts[:i], ast.Tuple([a, d]), ast.Tuple([c, b]), *parts[i + 2 :]])
    if isinstance(node, ast.Call) and not node.keywords and not quiet(node):
        sums = isinstance(node.func, ast.Attribute) and node.func.attr == "add"  # either way round
        for i, x in enumerate(node.args):

            def with_argument(new: ast.expr, i: int = i) -> ast.expr:
                return ast.Call(node.func, [*node.args[:i], new, *node.args[i + 1 :]], [])

            if not isinstance(x, ast.Starred):
                yield "argument for result", x
            if isinstance(x, ast.Constant) and isinstance(x.value, int):
                yield "place", with_argument(ast.Constant(x.value + 1))
            if isinstance(x, ast.Name | ast.Call) and not quiet(x):
                for text in ("0 * x", "2 * x", "-x"):
                    yield text.replace("x", "argument"), with_argument(expression(text, x=x))
            if i and type(x) is type(node.args[i - 1]) and not isinstance(x, ast.Constant | ast.UnaryOp) and not sums:
                swapped = [*node.args[: i - 1], x, node.args[i - 1], *node.args[i + 1 :]]
                yield "exchanged", ast.Call(node.func, swapped, [])


def quiet(node: ast.expr) -> bool:
    """Whether this is a call that checks, counts, draws, or makes an array: other arguments change no number."""
    function = node.func if isinstance(node, ast.Call) else None
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    makes = ("zeros", "empty", "ascontiguousarray", "flatnonzero", "reshape", "len", "range", "enumerate", "max")
    makes += ("type", "float", "keep_mask", "draw_", "check_")
    return name.startswith(makes) or name.endswith("Error")


def changed_slices(where: ast.expr) -> Iterator[ast.expr]:
    """Other parts of the same size: the end for the beginning, or the other way round; forwards for backwards."""
    axes = where.elts if isinstance(where, ast.Tuple) else [where]
    for i, axis in enumerate(axes):
        new: ast.expr | None = None
        match axis:
            case ast.Slice(lower=ast.expr() as start, upper=None, step=None):
                new = ast.Slice(None, ast.UnaryOp(ast.USub(), start))
            case ast.Slice(lower=None, upper=ast.expr() as end, step=None):
                new = ast.Slice(ast.UnaryOp(ast.USub(), end), None)
            case ast.Slice(step=ast.expr()):
                new = ast.Slice(None, None)
            case ast.Call(func=ast.Attribute(attr="arange")):
                new = ast.Slice(None, None)
        if new is not None:
            yield ast.Tuple([*axes[:i], new, *axes[i + 1 :]]) if isinstance(where, ast.Tuple) else new


def changed_statements(node: ast.stmt, first: str) -> Iterator[tuple[str, list[ast.stmt]]]:
    """What people write in place of a statement of a function whose first argument is `first`."""
    match node:
        case ast.AugAssign(target=target, op=op, value=value):
            yield "forgotten", [ast.Pass()]
            if isinstance(op, ast.Add | ast.Sub):
                yield "sign", [ast.AugAssign(target, ast.Sub() if isinstance(op, ast.Add) else ast.Add(), value)]
                yield "overwritten", [ast.Assign([target], value)]
            if isinstance(op, ast.Div):
                yield "not its inverse", [ast.AugAssign(target, ast.Mult(), value)]
            for where in changed_slices(target.slice) if isinstance(target, ast.Subscript) else ():
                yield "other part", [ast.AugAssign(ast.Subscript(target.value, where, ast.Store()), op, value)]
        case ast.Assign(targets=[ast.Subscript() as target], value=value):
            yield "backwards", [ast.Assign([target], expression("(value)[::-1]", value=value))]
            for where in changed_slices(target.slice):
                yield "other part", [ast.Assign([ast.Subscript(target.value, where, ast.Store())], value)]
        case ast.Assign(targets=[ast.Name() as target], value=ast.BinOp(left=ast.Name() as x, op=op, right=y)) if (
            x.id == first
        ):
            yield "in place", [ast.AugAssign(ast.Name(x.id, ast.Store()), op, y), ast.Assign([target], x)]
        case ast.Assign(
            targets=[ast.Tuple(elts=[ast.Name() as target, *_])], value=ast.Call(args=[ast.Name() as x, *_])
        ) if x.id != target.id:
            yield "step skipped", [node, ast.Assign([target], x)]
        case ast.Assign(targets=[ast.Name() as target], value=value) if not quiet(value) and not isinstance(
            value, ast.List | ast.Dict | ast.Constant
        ):
            yield "twice", [ast.Assign([target], expression("2 * (value)", value=value))]
        case ast.Return(value=ast.expr() as value):
            for what, new in changed_results(value):
                yield what, [ast.Return(new)]
            result = ast.Assign([ast.Name("_result", ast.Store())], value)
            modified = ast.parse(f"{first}[...] *= 2" if first else "pass").body
            yield "argument changed in place", [result, *modified, ast.Return(ast.Name("_result", ast.Load()))]
        case ast.If(body=body, orelse=orelse):
            yield "always", body
            yield "never", orelse or [ast.Pass()]


def changed_results(value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """A wrong sign, a wrong size, nothing, or two results exchanged."""
    parts = value.elts if isinstance(value, ast.Tuple) else [value]
    for i, part in enumerate(parts):
        for text in ("-(x)", "2 * (x)", "0 * (x)"):
            new = [*parts[:i], expression(text, x=part), *parts[i + 1 :]]
            yield text.replace("x", "result"), ast.Tuple(new) if isinstance(value, ast.Tuple) else new[0]
        if i:
            yield "results exchanged", ast.Tuple([*parts[: i - 1], part, parts[i - 1], *parts[i + 1 :]])


def mutants(function: FunctionType) -> Iterator[tuple[str, CodeType]]:
    """Every change of the function: what it is, with the line, and the changed function's code."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(tree, ast.FunctionDef)
    first = next((a.arg for a in tree.args.args if a.arg not in ("self", "ops")), "")
    tree.body = [WithoutAnnotations().visit(node) for node in tree.body[ast.get_docstring(tree) is not None :]]
    for node in [tree, *(inner for statement in tree.body for inner in ast.walk(statement))]:
        for name, value in ast.iter_fields(node):
            if node is tree and name != "body":
                continue
            for i, child in list(enumerate(value)) if isinstance(value, list) else [(None, value)]:
                for what, new in changes(child, first):
                    if i is None:
                        setattr(node, name, new)
                    else:
                        setattr(node, name, [*value[:i], *(new if isinstance(new, list) else [new]), *value[i + 1 :]])
                    module = compile(ast.unparse(ast.fix_missing_locations(tree)), "<mutant>", "exec")
                    setattr(node, name, value)
                    (code,) = (x for x in module.co_consts if isinstance(x, CodeType))
                    yield f"{what}: {ast.unparse(child).splitlines()[0]}", code


def changes(node: object, first: str) -> Iterator[tuple[str, ast.AST | list]]:
    """What people write in place of a statement or an expression."""
    if isinstance(node, ast.stmt):
        yield from changed_statements(node, first)
    elif isinstance(node, ast.expr) and not isinstance(getattr(node, "ctx", None), ast.Store):
        yield from changed_expressions(node)


class WithoutAnnotations(ast.NodeTransformer):
    """Takes annotations away, which are no part of what is computed."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        return ast.Assign([node.target], node.value) if node.value else node


@contextmanager
def planted(function: FunctionType, code: CodeType) -> Iterator[None]:
    """Meanwhile the function, wherever it has been imported to, does what `code` says."""
    own = function.__code__
    function.__code__ = code
    try:
        yield
    finally:
        function.__code__ = own


def remembered(forward: Callable) -> Callable:
    """A forward that is not planted with bugs gives a checker the same numbers each time: all but the first, which
    comes with the cache, are computed once."""
    outs: list = []
    calls = 0

    def remembering(*inputs: object) -> tuple:
        nonlocal calls
        arrays = [x for value in inputs for x in (value if isinstance(value, list) else [value])]
        if any(np.iscomplexobj(x) for x in arrays):
            if calls == len(outs):
                outs.append(forward(*inputs)[0])
            calls += 1
            return outs[calls - 1], None
        calls = 0
        return forward(*inputs)

    return remembering
