"""The cells in data/results: today's code still finds every one of them by its key, so that none is computed again."""

import json
from pathlib import Path

from tinyprune.experiments.compare import CheckpointCell

RESULTS = Path(__file__).parents[2] / "data" / "results"


def test_cells_of_a_checkpoint_have_their_keys():
    for line in map(json.loads, (RESULTS / "smollm2" / "cells.jsonl").read_text().splitlines()):
        assert CheckpointCell(**line["cell"]).key == line["key"]
