"""The studies, one file each: its `STUDY` has everything that belongs to it alone."""

from importlib import import_module

from tinyprune.experiments.plan import Study


def get_study(name: str) -> Study:
    """Return the study called `name`, one of `experiments.STUDIES`; it is imported now, and matplotlib with it."""
    return import_module(f"{__name__}.{name}").STUDY
