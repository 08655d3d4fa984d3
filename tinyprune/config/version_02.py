"""What version 0.2 of tinyprune called otherwise, and what it had besides.

Its files are read, and keys of stored cells are computed from its names.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tinyprune.errors import UsageError

if TYPE_CHECKING:
    from tinyprune.config.run import RunConfig

# What this version has not, by table: options with their defaults, which the keys of stored cells
# still hold, and choices of options that stay. Files that ask for no more than the defaults are read.
RETIRED: dict[str, dict[str, Any]] = {
    "gate": {"objective": "task", "layerwise_weight": 1.0, "tau": 0.5},
}
RETIRED_CHOICES = (("gate", "distribution", "top-k"),)
# What it called otherwise. Its table [finetune] is [heal].
RENAMED = {
    "gate.criterion": "choose.by",
    "gate.criterion_tokens": "choose.tokens",
    "gate.target_heads": "choose.target_heads",
    "gate.target_share": "choose.target_share",
    "gate.price": "choose.price",
    "gate.units": "choose.units",
    "gate.heads": "choose.heads",
    "gate.repair_tokens": "repair.tokens",
    "gate.repair_type": "repair.type",
    "gate.repair_corpus": "texts",
}


def without_retired(table: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a table without `RETIRED` options.

    Raises UsageError where leaving them out would change what is done.
    """
    retired = RETIRED.get(table, {})
    for key, value in values.items():
        # numbers that are retired had no effect but beside the strings that are refused
        other = key in retired and isinstance(value, str) and value != retired[key]
        if other or (table, key, value) in RETIRED_CHOICES:
            asked = f"{table}.{key} = {json.dumps(value)}"
            raise UsageError(f"{asked} is gone; the last version that has it is 0.2")
    return {key: value for key, value in values.items() if key not in retired}


def from_version_02(tables: dict[str, Any]) -> dict[str, Any]:
    """Return a run's tables with the options of version 0.2 under their names of today."""
    found = dict(tables)
    if "finetune" in found:
        found["heal"] = found.pop("finetune")
    if not isinstance(found.get("gate"), dict):
        return found
    gate = found["gate"] = dict(found["gate"])
    if gate.get("criterion") == "":
        gate["criterion"] = "gates"
    for old, name in RENAMED.items():
        key = old.removeprefix("gate.")
        if key in gate:
            table, _, new = name.partition(".")
            if new:
                found[table] = found.get(table, {}) | {new: gate.pop(key)}
            else:
                found[table] = gate.pop(key)
    return found


def as_version_02(config: RunConfig) -> dict[str, Any]:
    """Return a run's tables as version 0.2 had them, for the keys of stored cells."""
    found = config.to_dict()
    found["finetune"] = found.pop("heal")
    for table in ("choose", "repair"):
        usual = type(getattr(config, table))().to_dict()
        for key, value in found.pop(table).items():
            if value != usual.get(key):
                found[f"{table}.{key}"] = value
    for old, name in RENAMED.items():
        if name in found:
            found["gate"][old.removeprefix("gate.")] = found.pop(name)
    found["gate"] |= RETIRED["gate"]
    return found
