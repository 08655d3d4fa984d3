"""The public names: Python finds what editors and type checkers are told, and imports no more than it needs."""

import subprocess
import sys

import pytest

import tinyprune


@pytest.mark.parametrize("name", tinyprune.__all__)
def test_a_name_is_what_is_declared(name):
    found = getattr(tinyprune, name)
    assert found.__name__ in (name, f"tinyprune.{name}") and name in dir(tinyprune)


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
