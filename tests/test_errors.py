"""What is said about unknown names and about packages that are not installed."""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tinyprune.errors import MissingExtraError, install_command, nearest

ROOT = Path(__file__).parents[1]


def test_the_nearest_name_is_asked_for():
    assert nearest("trian", ["gate", "train"]) == "; did you mean train?"
    assert nearest("--stpes", ["--set"], {"--steps": "--set train.steps=…"}) == "; did you mean --set train.steps=…?"
    assert nearest("xyzzy", ["gate", "train"]) == ""


@pytest.fixture
def installed(monkeypatch):
    """Pretend that tinyprune was installed so (PEP 610); None: it is not installed."""

    def distribution(about):
        record = json.dumps(about) if about else None
        return SimpleNamespace(read_text=lambda name: record if name == "direct_url.json" else None)

    def pretend(about):
        left_by_a_build = distribution({})
        found = [] if about is None else [left_by_a_build, distribution(about)]
        monkeypatch.setattr(importlib.metadata, "distributions", lambda name: found)

    return pretend


@pytest.mark.parametrize(
    "about",
    [
        None,
        {},  # from an index
        {"url": "file:///here/tinyprune-0.1.0-py3-none-any.whl", "archive_info": {}},
        {"url": "https://github.com/tinyprune/tinyprune/archive/main.zip", "archive_info": {}},
        {"url": "file:///a/checkout", "dir_info": {}},
    ],
)
def test_what_is_not_a_checkout_is_completed_by_name(about, installed):
    installed(about)
    assert install_command("dask") == 'python -m pip install "tinyprune[dask]"'


def test_a_checkout_is_completed_where_it_is(tmp_path, installed, monkeypatch):
    folder = tmp_path / "my checkout"
    folder.mkdir()
    installed({"url": folder.as_uri(), "dir_info": {"editable": True}})
    assert install_command("dask") == f'python -m pip install -e "{folder}[dask]"'
    monkeypatch.chdir(folder)
    assert install_command("dask") == 'python -m pip install -e ".[dask]"'


def without(package: str, program: str) -> subprocess.CompletedProcess:
    program = f"import runpy, sys; sys.modules[{package!r}] = None\n{program}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, encoding="utf-8")


@pytest.mark.parametrize(
    ("package", "module", "extra"),
    [("IPython", "tinyprune.notebook", "notebooks"), ("nbformat", "tinyprune.course.marking", "course")],
)
def test_a_module_without_its_extra_says_which(package, module, extra):
    said = f"{module} needs packages that are not installed: {install_command(extra)}"
    if module != "tinyprune.notebook":  # which is no program
        done = without(package, f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)")
        assert (done.returncode, done.stderr) == (1, f"tinyprune: error: {said}\n")
    # An import can be caught, and says no more than that.
    done = without(package, f"import {module}")
    assert done.stderr.splitlines()[-1].endswith(f": {said}") and "ModuleNotFoundError" not in done.stderr
    done = without(package, f"try: import {module}\nexcept ImportError as error: print(error)")
    assert done.stdout == f"{said}\n"


def test_no_message_knows_how_tinyprune_was_installed():
    """`-e ".[dask]"` works in a checkout only: `install_command` says what works."""
    for path in [*ROOT.glob("tinyprune/**/*.py"), *ROOT.glob("tests/**/*.py")]:
        text = path.read_text(encoding="utf-8")
        own = path.name in ("errors.py", "test_errors.py")
        assert own or not re.search(r'-e "\.\[|install "tinyprune\[', text), path


def test_a_missing_extra_is_bad_use_and_an_import_error():
    assert issubclass(MissingExtraError, ImportError) and MissingExtraError.exit_status == 2
