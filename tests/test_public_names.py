"""The public names: Python finds what editors and type checkers are told, and imports no more than it needs."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import tinyprune


def declared() -> dict[str, str]:
    """Read names and their modules from the block for type checkers."""
    tree = ast.parse(Path(tinyprune.__file__).read_text("utf-8"))
    block, hidden = [node for node in tree.body if isinstance(node, ast.If)]
    # `__getattr__` is hidden from type checkers, which would otherwise believe that every name is there
    assert (ast.unparse(block.test), ast.unparse(hidden.test)) == ("TYPE_CHECKING", "not TYPE_CHECKING")
    imports = {alias.name: (node.module, alias.asname) for node in block.body for alias in node.names}
    everything, _ = imports.pop("*")
    # "import x as x" is what marks a name as public.
    assert all(asname == name for name, (_, asname) in imports.items())
    own = dict.fromkeys(importlib.import_module(everything).__all__, everything)
    return own | {name: module for name, (module, _) in imports.items()}


def test_the_names_are_those_declared():
    assert tinyprune.__all__ == sorted(declared()) and set(tinyprune.__all__) <= set(dir(tinyprune))


@pytest.mark.parametrize(("name", "module"), declared().items())
def test_a_name_is_what_is_declared(name, module):
    own = importlib.import_module(f"tinyprune.{name}" if module == "tinyprune" else module)
    assert getattr(tinyprune, name) is (own if module == "tinyprune" else getattr(own, name))


HEAVY = {"numba", "numpy", "matplotlib", "safetensors", "tqdm"}


@pytest.mark.parametrize(
    ("use", "absent"),
    [
        ("import tinyprune", HEAVY),
        ("from tinyprune.cli import main; main(['gate', '--help'])", HEAVY),
        ("import tinyprune.data", {"tqdm", "pydoc_data", "urllib.request"}),
        ("import tinyprune.pretrained", {"torch", "transformers", "tokenizers", "gguf", "numba"}),
        ("import tinyprune.plots", {"matplotlib.pyplot"}),  # with its global state
        ("from tinyprune.training import metrics, optimizers, schedules", {"safetensors"}),
        ("from tinyprune.training import checkpoints", {"torch", "matplotlib", "pickle5"}),
    ],
)
def test_what_is_not_needed_is_not_imported(use, absent):
    program = f"import sys\ntry: {use}\nexcept SystemExit: pass\nfound = {absent} & set(sys.modules)\n"
    program += "sys.exit(f'imported: {found}' if found else 0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
