"""What is said about packages that are not installed."""

import subprocess
import sys

import pytest

from tinyprune.errors import install_command


def without(package: str, program: str) -> subprocess.CompletedProcess:
    program = f"import runpy, sys; sys.modules[{package!r}] = None\n{program}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, encoding="utf-8")


def test_a_peer_that_is_not_installed_is_missed():
    done = without("torch", "from tinyprune.cli import main; sys.exit(main(['bench', 'step', '--peers=torch']))")
    said = f"--peers torch needs PyTorch, which is not here: {install_command('peers')}"
    assert (done.returncode, done.stderr) == (2, f"tinyprune: error: {said}\n")


@pytest.mark.parametrize(
    ("package", "module", "extra"),
    [("IPython", "tinyprune.notebook", "notebooks"), ("nbformat", "tinyprune.course.marking", "course")],
)
def test_a_module_without_its_extra_says_which(package, module, extra):
    said = f"{module} needs packages that are not installed: {install_command(extra)}"
    if module != "tinyprune.notebook":  # which is no program
        done = without(package, f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)")
        assert (done.returncode, done.stderr) == (1, f"tinyprune: error: {said}\n")
    done = without(package, f"import {module}")
    assert done.stderr.splitlines()[-1].endswith(f": {said}")
    assert "ModuleNotFoundError" not in done.stderr
