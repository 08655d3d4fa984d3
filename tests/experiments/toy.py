"""Studies small enough to be computed by the dozen, rows of their tables, and an executor that computes at once."""

from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from command import MODEL, write_text

from tinyprune.config import RunConfig
from tinyprune.experiments.cells import TIMES, Cell, compute
from tinyprune.experiments.grid import ThisProcess, Workers
from tinyprune.experiments.store import Store
from tinyprune.experiments.tradeoff import Tradeoff, run_tradeoff

STAGE = {"B": 2, "lr": 2e-3}
STEPS = {"train": 12, "gate_train": 8, "heal": 4}


def toy_config(directory: Path, seed: int = 0, **options: Any) -> RunConfig:
    """A configuration on a text of 7,000 characters in `directory`; `options` are "table.key" with __ for the dot."""
    path = directory / "book.txt"
    if not path.exists():
        write_text(directory)
    tables = {"model": MODEL | {"persistent": "stream"}, "data": {"corpus": str(path)}, "seed": seed}
    tables["gate"] = {"lr_multiplier": 100.0}
    tables |= {stage: STAGE | {"steps": steps} for stage, steps in STEPS.items()}
    return RunConfig.from_dict(tables).with_options({k.replace("__", "."): v for k, v in options.items()})


def toy_study(directory: Path, **options: Any) -> Tradeoff:
    """Two seeds, half of the heads, two methods, on NumPy, so that nothing is compiled."""
    given = {"seeds": 2, "shares": (0.5,), "methods": ("random", "gates"), "backend": "numpy"} | options
    return Tradeoff(toy_config(directory), **given)


def toy_cell(directory: Path, method: str = "baseline", heads: int | None = None, **options: Any) -> Cell:
    return Cell(toy_config(directory, **options), method, heads, backend="numpy")


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in TIMES}


def assert_as_in_one_thread(cells: list[Cell], store: Store) -> None:
    """Check that the store has what cells of one baseline come to here."""
    baseline = compute(cells[0].baseline)
    for cell in cells:
        expected = compute(cell, baseline.checkpoint).record
        assert without_times(store.records[cell.key]) == without_times(expected)


class Here(ThisProcess):
    """Computes at once, two cells at a time; `before(cell)` may raise."""

    def __init__(self, before=lambda cell: None) -> None:
        self.computed: list[Cell] = []
        self.before = before

    def submit(self, function, cell, *arguments):
        def work():
            self.before(cell)
            outcome = function(cell, *arguments)
            self.computed.append(cell)
            return outcome

        return super().submit(work)

    @contextmanager
    def opened(self) -> Iterator[Workers]:
        yield Workers(self, 2, (BrokenExecutor, Lost))


class Lost(Exception):
    """A worker's death that leaves its executor usable, as on a cluster."""


def whole_study(study: Tradeoff, directory: Path) -> tuple[dict[str, str], set[str]]:
    """Run a study; returns its text files by name, and its pictures' names."""
    run_tradeoff(study, directory / "study", Here().opened)
    pictures = {path.stem for path in (directory / "study" / "plots").glob("*.png")}
    made = (path for path in (directory / "study").iterdir() if path.suffix in (".csv", ".md"))
    files = {path.name: path.read_text() for path in made}
    assert all(f"](plots/{picture}.png)" in files["README.md"] for picture in pictures)
    return files, pictures


def row(method: str, heads: int, seed: int, bits: float, split: str = "test") -> dict[str, Any]:
    """A row of results.csv, of a model with 2 layers of 2 heads."""
    about = {"kind": "all-attention", "corpus": "pydoc", "method": method, "start": "baseline", "seed": seed}
    about |= {"split": split}
    about |= {"heads_open": heads, "heads_total": 4, "heads_by_layer": {3: "2 1", 2: "1 1"}.get(heads, "2 2")}
    about |= {"parameters": 100 + 10 * heads, "multiply_adds_per_token": 7}
    return about | {"bits_per_character": bits}


def rows() -> list[dict[str, Any]]:
    """Rows of three methods with 2 and 3 heads and of the unpruned model, with two seeds each."""
    bits = {"random": 2.5, "magnitude": 2.6, "gates": 2.2}
    places = [(heads, seed) for heads in (2, 3) for seed in (0, 1)]
    made = [row(m, heads, seed, b + 0.1 * seed + 1 / heads) for m, b in bits.items() for heads, seed in places]
    return made + [row("unpruned", 4, seed, 2.0) for seed in (0, 1)]
