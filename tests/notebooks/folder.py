"""The folder of notebooks."""

import importlib.util
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[2] / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9][0-9]*_*.py"))
NAMES = [source.stem for source in SOURCES]


def executor() -> ModuleType:
    """Return notebooks/execute.py, a program outside of any package, as a module."""
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
