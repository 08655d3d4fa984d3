"""The commands that use a model: evaluate it, let it write, show its heads, count its parameters; check gradients."""

from __future__ import annotations

import argparse
import io
import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tinyprune.cli.options import parse_options
from tinyprune.errors import TinypruneError, UsageError
from tinyprune.io.files import PICTURES, checked_path
from tinyprune.io.progress import say
from tinyprune.io.tables import print_records


def evaluate_model(arguments: argparse.Namespace) -> None:
    """Run `tinyprune eval`."""
    import numpy as np

    from tinyprune.pretrained.words import ask, countries
    from tinyprune.runs.directory import text_of
    from tinyprune.runs.report import milliseconds_per_1k_tokens, stage_record
    from tinyprune.training.evaluation import evaluate, evaluate_windows
    from tinyprune.training.warmup import announced

    if arguments.task:
        evaluate_task(arguments)
        return
    saved = load_saved(arguments)
    model = saved.model.in_precision(arguments.precision)
    text = text_of(saved, Path(arguments.model), arguments.corpus)
    facts = countries(saved.tokenizer) if arguments.words else ()  # what is missing is said first
    windows = {}
    # an overflow ends as NaN, which is reported
    with announced(saved.model.ops, "eval"), np.errstate(over="ignore", invalid="ignore"):
        ms = milliseconds_per_1k_tokens([model], text.valid)[0] if arguments.time else None
        tokens = getattr(text, arguments.split)
        if arguments.window is None and arguments.stride is None:
            result = evaluate(model, tokens, text.characters[arguments.split])
        else:
            window = model.config.T if arguments.window is None else arguments.window
            stride = window if arguments.stride is None else arguments.stride
            result = evaluate_windows(model, tokens, text.characters[arguments.split], window, stride)
            windows = {"window": window, "stride": stride}
        record = stage_record(saved.metadata["stage"], model, result, ms)
        if arguments.words:
            record |= ask(model, saved.tokenizer, facts)["words"]
    record |= {"split": arguments.split, "tokens": len(tokens)} | windows
    if arguments.json:  # of two models they give the interval of a difference
        record["nats_of_segments"] = [round(x, 6) for x in result.segments]
    print_records([record], arguments.json)


def evaluate_task(arguments: argparse.Namespace) -> None:
    """Run `tinyprune eval --task`."""
    from tinyprune.pretrained.blimp import accuracies, blimp, read_pairs
    from tinyprune.training.warmup import announced

    name, path = arguments.task
    if name != "blimp":
        raise UsageError(f"--task must be blimp, got {name!r}")
    pairs = read_pairs(path)
    saved = load_saved(arguments)
    with announced(saved.model.ops, "eval"):
        right = blimp(saved.model.in_precision(arguments.precision), saved.tokenizer, pairs)
    print_records(accuracies(pairs, right), arguments.json)


def show_heads(arguments: argparse.Namespace) -> None:
    """Run `tinyprune heads`."""
    from tinyprune.method.roles import head_roles
    from tinyprune.runs.directory import text_of
    from tinyprune.training.warmup import announced

    if arguments.tokens < 3:
        raise UsageError(f"--tokens must be at least 3, got {arguments.tokens}")
    if arguments.plot:  # before anything is computed
        checked_path("--plot", arguments.plot, PICTURES)
    saved = load_saved(arguments)
    text = text_of(saved, Path(arguments.model), arguments.corpus)
    tokens = getattr(text, arguments.split)[: arguments.tokens]
    with announced(saved.model.ops, "heads"):
        roles = head_roles(saved.model, tokens)
    records = roles.records()
    if not records:
        stage = saved.metadata["stage"]
        raise UsageError(f"the model of stage {stage} has no open heads to look at")
    say(f"heads: read {len(tokens):,} tokens of {text.name}; each sees {roles.keys:.4g} keys on average")
    print_records(records, arguments.json)
    if arguments.plot:
        from tinyprune.plots import plot_roles, save_figure

        name, stage = Path(arguments.model).absolute().name, saved.metadata["stage"]
        save_figure(plot_roles(roles, f"{name}, stage {stage}, on {text.name}"), arguments.plot)


def generate_text(arguments: argparse.Namespace) -> None:
    """Run `tinyprune generate`: print the prompt, then each token as soon as it is drawn."""
    import numpy as np

    from tinyprune.model.generation import generate
    from tinyprune.training.warmup import announced

    for name, low in (("tokens", 1), ("temperature", 0), ("top_k", 1), ("seed", 0)):
        value = getattr(arguments, name)
        if value is not None and not low <= value < float("inf"):
            raise UsageError(f"--{name.replace('_', '-')} must be at least {low}, got {value}")
    saved = load_saved(arguments)
    prompt = saved.tokenizer.encode(arguments.prompt)
    if saved.tokenizer.kind == "word" and saved.tokenizer.unknown in prompt:
        say("the prompt has words that the model does not know: they are read as <unk>")
    if not prompt.size:
        raise UsageError("--prompt must hold at least one token, got an empty text")
    rng = np.random.default_rng(arguments.seed)
    options = {"temperature": arguments.temperature, "top_k": arguments.top_k}
    tokens = generate(saved.model, prompt, arguments.tokens, rng, **options, matrices=file_matrices(saved))
    # Overflows are ignored as in `evaluate_model`.
    with announced(saved.model.ops, "generate"), np.errstate(over="ignore", invalid="ignore"):
        tokens = itertools.chain([next(tokens)], tokens)
    # The tokenizer itself puts spaces between words.
    beginning = arguments.prompt.rstrip(" ") if saved.tokenizer.kind == "word" else arguments.prompt
    shown = sys.stdout if not arguments.json else io.StringIO()
    print(beginning, end="", flush=True, file=shown)
    start = time.perf_counter()
    with np.errstate(over="ignore", invalid="ignore"):
        for piece in pieces(saved.tokenizer, int(prompt[-1]), tokens):
            print(piece, end="", flush=True, file=shown)
    seconds = time.perf_counter() - start
    # the first token, which waits for the prompt, was there before
    rate = (arguments.tokens - 1) / seconds if arguments.tokens > 1 else None
    if arguments.json:
        record = {"prompt": arguments.prompt, "text": shown.getvalue(), "tokens": arguments.tokens}
        print_records([record | {"tokens_per_second": rate}], as_json=True)
    else:
        print()
        if rate:
            say(f"generate: {rate:,.1f} tokens a second")


def file_matrices(saved: Any) -> dict[str, Any]:
    """Return the matrices that a model's GGUF file stores in blocks, if it has one and Numba multiplies by them."""
    from tinyprune.pretrained import gguf_source

    source = gguf_source(saved.metadata)
    if source is None or saved.model.gate is not None or saved.model.ops.name != "numba":
        return {}
    from tinyprune.pretrained.gguf_writer import stored_matrices

    found = stored_matrices(saved.model, source)
    matrices = [name for name, x in saved.model.params.items() if x.ndim == 2]
    if len(found) < len(matrices):
        some = f"{len(matrices) - len(found)} of {len(matrices)} matrices"
        say(f"generate: {some} are not as in {source.name}, or not in blocks of 32: they are float32")
    return found


def pieces(tokenizer: Any, before: int, tokens: Iterable[int]) -> Iterator[str]:
    """Yield the text of each token as it comes; `before` is the token before the first.

    Words are separated by a space except after the end of a line. The bytes of one character, which may be several
    tokens, are printed together: decoded, a text that ends within a character ends in one U+FFFD.
    """
    if tokenizer.kind not in ("byte", "bpe"):
        for token in tokens:
            yield tokenizer.decode([before, token])[len(tokenizer.decode([before])) :]
            before = token
        return
    held: list[int] = []  # since the last end of a character
    shown = 0  # characters of these
    for token in tokens:
        held.append(token)
        text = tokenizer.decode(held)
        whole = len(text) - text.endswith("\ufffd")
        if whole > shown:
            yield text[shown:whole]
        held, shown = (held, whole) if whole < len(text) else ([], 0)
    if held:
        yield tokenizer.decode(held)[shown:]


def play_page(arguments: argparse.Namespace) -> None:
    """Run `tinyprune play`: print where the page is."""
    from tinyprune.play.page import write_page

    path = Path(arguments.model)
    if path.is_dir():
        arguments.stage = arguments.stage or "train"
    folder = path if path.is_dir() else path.parent
    page = Path(arguments.path or folder / "play.html")
    write_page(load_saved(arguments), folder, page, arguments.corpus)
    print(page)


def describe(arguments: argparse.Namespace) -> None:
    """Run `tinyprune describe`."""
    import dataclasses

    from tinyprune.config import load_preset
    from tinyprune.model.counting import count_parts, head_part

    if arguments.model and (arguments.preset or arguments.options):
        raise UsageError("give a model, or --preset and --set, not both")
    if arguments.model:
        config = load_saved(arguments).model.config
    else:
        run = load_preset(arguments.preset or "tiny").with_options(parse_options(arguments.options))
        config = run.model
        if not config.V:
            from tinyprune.data import load_text

            config = dataclasses.replace(config, V=load_text(run.data).tokenizer.V)
    parts = [dataclasses.asdict(part) for part in count_parts(config)]  # the embedding comes first
    numbers = ("parameters", "multiply_adds_per_token")
    total = {"part": "whole model"} | {key: sum(part[key] for part in parts) for key in numbers}
    apart = {"part": "whole model, embedding apart"} | {key: total[key] - parts[0][key] for key in numbers}
    print_records([*parts, total, apart, dataclasses.asdict(head_part(config))], arguments.json)


def gradcheck(arguments: argparse.Namespace) -> None:
    """Run `tinyprune gradcheck`: print each operation's worst argument; the exit status is 1 if a gradient is wrong."""
    from tinyprune.gradcheck import check_all
    from tinyprune.kernels.backend import get_backend
    from tinyprune.training.warmup import announced

    ops = get_backend(arguments.backend)
    with announced(ops, "gradcheck"):
        worst = check_all(arguments.op, arguments.mode, ops)
    if not worst:
        raise UsageError(f"no operation begins with {arguments.op!r}; `tinyprune gradcheck` lists all")
    print_records(worst, arguments.json)
    if wrong := [record["operation"] for record in worst if not record["passed"]]:
        raise TinypruneError(f"wrong gradients: {', '.join(wrong)}")


def load_saved(arguments: argparse.Namespace):
    """Load the model that the arguments name."""
    from tinyprune.kernels.backend import default_backend, get_backend
    from tinyprune.runs.directory import RunDirectory, load_model

    path = Path(arguments.model)
    # `describe` has no --backend, because it computes nothing.
    ops = get_backend(getattr(arguments, "backend", "numpy") or default_backend())
    if path.suffix == ".safetensors":
        if arguments.stage:
            raise UsageError("--stage goes with the directory of a run, not with a checkpoint")
        return load_model(path, ops)
    if not path.is_dir():
        raise UsageError(f"{path} is neither the directory of a run nor a .safetensors checkpoint")
    directory = RunDirectory(path)
    stage = arguments.stage or directory.latest_stage()
    saved = load_model(directory.checkpoint(stage), ops)
    if not saved.metadata.get("finished"):
        say(f"stage {stage} of {path} is not finished: this is its model after step {saved.metadata.get('step')}")
    return saved
