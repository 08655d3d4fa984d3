"""The command that lists what there is. The first entry of each record is a name."""

from __future__ import annotations

import argparse
import re
from typing import Any

from tinyprune.io.tables import print_records

Records = list[dict[str, Any]]


def first_sentence(text: str) -> str:
    """Return the first sentence, without its full stop; "et al. 2021" ends none."""
    return re.split(r"\. (?=[A-Z])", text)[0].removesuffix(".")


def presets() -> Records:
    """Models and their training, for --preset"""
    from tinyprune.config import preset_names, preset_text

    def about(name: str) -> str:
        """Return the comment at the beginning."""
        lines = preset_text(name).partition("\n\n")[0].splitlines()
        return first_sentence(" ".join(line.removeprefix("#").strip() for line in lines))

    return [{"preset": name, "about": about(name)} for name in preset_names()]


def corpora() -> Records:
    """Texts, for --corpus, which also takes the path of a file"""
    from tinyprune.data.corpora import catalogue

    return [
        {"corpus": entry.name, "about": entry.note, "licence": entry.licence, "download": bool(entry.url)}
        for entry in catalogue().values()
    ]


def methods() -> Records:
    """Ways of choosing heads, for `tinyprune experiment tradeoff --methods`"""
    from tinyprune.experiments.methods import CONTROLS, KNOWN, METHODS
    from tinyprune.method.criteria import CRITERIA

    def about(name: str) -> str:
        return (CONTROLS | METHODS)[name].about or (CRITERIA[name].__doc__ or "").splitlines()[0]

    return [{"method": name, "about": first_sentence(about(name))} for name in KNOWN]


def settings() -> Records:
    """All settings, for --set, with their defaults; presets have other values"""
    import dataclasses
    import typing

    from tinyprune.config import RunConfig

    hints = typing.get_type_hints(RunConfig)

    def record(name: str, setting: dataclasses.Field) -> dict[str, Any]:
        choices, about = setting.metadata["choices"], setting.metadata["doc"]
        if choices:
            about += f": {', '.join(choices)}"
        default = list(setting.default) if isinstance(setting.default, tuple) else setting.default
        return {"setting": name, "default": default, "about": about}

    lines = [record(f.name, f) for f in dataclasses.fields(RunConfig) if "doc" in f.metadata]
    tables = {name: dataclasses.fields(hint) for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    keys = [record(f"{name}.{f.name}", f) for name, table in tables.items() for f in table]
    return [*lines, *keys]


def backends() -> Records:
    """Who computes, for --backend, and what is missing here"""
    from tinyprune.kernels.backend import BACKENDS

    def record(name: str) -> dict[str, Any]:
        problem = BACKENDS[name].problem()
        return {"backend": name, "about": BACKENDS[name].about, "usable here": not problem, "problem": problem}

    return [record(name) for name in BACKENDS]


KINDS = {things.__name__: things for things in (presets, corpora, methods, settings, backends)}


def list_things(arguments: argparse.Namespace) -> None:
    """Run `tinyprune list`."""
    records = [{"kind": name, "about": things.__doc__} for name, things in KINDS.items()]
    if arguments.kind:
        records = KINDS[arguments.kind]()
    print_records(records, arguments.json)
