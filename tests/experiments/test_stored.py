"""The cells in data/results: today's code still finds every one of them by its key, so that none is computed again."""

import json
from pathlib import Path

import pytest

from tinyprune.config import RunConfig
from tinyprune.experiments.compare import CheckpointCell
from tinyprune.experiments.experiment import Plan, get_study

RESULTS = Path(__file__).parents[2] / "data" / "results"


def stored(folder: str) -> list[dict]:
    return [json.loads(line) for line in (RESULTS / folder / "cells.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("folder", ["tradeoff-pydoc", "ablation-pydoc"])
def test_studies_have_the_keys_of_their_cells(folder):
    about = json.loads((RESULTS / folder / "study.json").read_text())
    config, seeds = RunConfig.from_dict(about["config"]), len(about["seeds"])
    plan = Plan(config, seeds, about["shares"], digest=about["text_sha256"])
    cells = [entry.cell for entry in get_study(about["study"]).entries(plan)]
    baselines = [cell.baseline for cell in cells if cell.baseline is not None]
    # a method that is newer than the cells has keys that are not there
    assert {cell.key for cell in (*cells, *baselines)} >= {line["key"] for line in stored(folder)}


def test_cells_of_a_checkpoint_have_their_keys():
    for line in stored("smollm2"):
        assert CheckpointCell(**line["cell"]).key == line["key"]
