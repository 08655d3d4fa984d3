"""The report: its table has the keys that other programs rely on, and its sentences agree with the table."""

import dataclasses
import math
import re
import time
from pathlib import Path

import numpy as np
import pytest
from small import small_config, small_model

from tinyprune.config import KINDS, GateConfig, RunConfig
from tinyprune.kernels.backend import get_backend
from tinyprune.model.counting import count_multiply_adds, count_parameters, head_part
from tinyprune.pruning.surgery import remove_closed_heads
from tinyprune.report import (
    fenced,
    milliseconds_per_1k_tokens,
    open_config,
    report_text,
    sample_text,
    stage_record,
    summarise,
    write_report,
)
from tinyprune.runs.directory import STAGES, RunDirectory
from tinyprune.runs.run import Run
from tinyprune.tables import show
from tinyprune.training.evaluation import evaluate

# Other programs rely on these names and their order.
KEYS = ["stage", "heads_open", "heads_total", "parameters", "multiply_adds_per_token"]
KEYS += ["bits_per_character", "perplexity", "ms_per_1k_tokens"]
CONFIG = {
    "seed": 5,
    "model": {"L": 2, "D": 16, "H": 4, "N": 6, "T": 8, "M": 8},
    "train": {"steps": 6, "B": 2, "lr": 0.01},
    "gate": {"target_heads": 5},
    "gate_train": {"steps": 4, "B": 2},
    "finetune": {"steps": 3, "B": 2},
}
OPENED = np.array([[True, False, True], [False, False, False]])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A run whose four stages are done, on a small text."""
    directory = tmp_path_factory.mktemp("report")
    corpus = directory / "lines.txt"
    corpus.write_text("".join(f"{i} heads, {i * i % 97} vectors; `code`.\n" for i in range(300)), encoding="utf-8")
    config = RunConfig.from_dict(CONFIG | {"data": {"corpus": str(corpus)}})
    run = Run(RunDirectory(directory / "small"), config, get_backend("numpy"), "tinyprune run here --resume")
    run.directory.write_config(config)
    for stage in STAGES:
        getattr(run, stage)()
    return run


@pytest.fixture(scope="module")
def records(run) -> list[dict]:
    return summarise(run)


def models(run: Run) -> list:
    return [run.load(stage).model for stage in STAGES]


# The table.


def test_the_keys_and_numbers_of_a_record(run, records):
    assert [record["stage"] for record in records] == list(STAGES)
    for record, model in zip(records, models(run), strict=True):
        assert list(record) == KEYS
        assert [type(value) for value in record.values()] == [str, int, int, int, int, float, float, float]
        result = evaluate(model, run.text.test, run.text.characters["test"])
        assert record["bits_per_character"] == result.bits_per_character
        assert record["perplexity"] == pytest.approx(math.exp(result.nats_per_token))
        assert record["parameters"] == count_parameters(model.config)
        assert record["heads_total"] == 8
        assert 0 < record["ms_per_1k_tokens"] < 1e5


def test_what_the_stages_do_to_the_numbers(run, records):
    """Gates close 3 heads, which saves computation; removal takes their parameters; fine-tuning changes no size."""
    train, gate, prune, finetune = records
    head = head_part(run.load("train").model.config)
    assert [record["heads_open"] for record in records] == [8, 5, 5, 5]
    assert train["parameters"] == gate["parameters"] == prune["parameters"] + 3 * head.parameters
    assert train["multiply_adds_per_token"] == gate["multiply_adds_per_token"] + 3 * head.multiply_adds_per_token
    assert gate["multiply_adds_per_token"] == prune["multiply_adds_per_token"] == finetune["multiply_adds_per_token"]
    assert prune["parameters"] == finetune["parameters"]
    assert prune["bits_per_character"] == pytest.approx(gate["bits_per_character"], rel=1e-5)
    assert train["bits_per_character"] != gate["bits_per_character"] != finetune["bits_per_character"]


def test_a_record_of_another_split(run):
    model = run.load("train").model
    record = stage_record("train", model, run.text, 1.5, "valid")
    result = evaluate(model, run.text.valid, run.text.characters["valid"])
    assert (record["bits_per_character"], record["ms_per_1k_tokens"]) == (result.bits_per_character, 1.5)


@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_open_configuration_is_that_of_the_model_after_removal(kind, hard):
    model = small_model(small_config(kind), GateConfig(hard=hard), OPENED)
    opened = open_config(model)
    assert opened == remove_closed_heads(model).config
    assert opened.heads == (2, 0) and opened.head_ids == ((0, 2), ())
    assert count_multiply_adds(opened) < count_multiply_adds(model.config)


def test_the_open_configuration_keeps_the_heads_original_numbers():
    config = small_config(heads=(2, 2), head_ids=((0, 2), (1, 2)))
    assert open_config(small_model(config)) == config
    gated = small_model(config, GateConfig(), np.array([[False, True], [True, False]]))
    assert open_config(gated).head_ids == ((2,), (1,))


# Time.


@pytest.mark.parametrize("at_least", [0.0, 0.1])
def test_milliseconds_are_measured_for_every_model(at_least, run):
    """Half of the rounds take as long as the median or longer; most of the time goes into what is measured."""
    start = time.perf_counter()
    measured = milliseconds_per_1k_tokens(models(run), run.text.valid, at_least)
    passed = time.perf_counter() - start
    assert len(measured) == 4 and all(type(ms) is float and ms > 0 for ms in measured)
    seconds = sum(measured) / 1000 * (16 * 8 / 1000)
    assert passed / 1000 < 3 * seconds <= passed
    assert passed >= 4 * at_least


@pytest.mark.parametrize("kind", KINDS)
def test_milliseconds_for_every_kind(kind):
    config = small_config(kind)
    tokens = np.arange(60) % 11
    assert milliseconds_per_1k_tokens([small_model(config)], tokens, 0)[0] > 0


# report.md.


def report(run: Run, records: list[dict]) -> str:
    """On one line."""
    return " ".join(report_text(run, records, run.load("finetune").model, ("a prompt", "what follows")).split())


def test_the_first_sentence_is_what_the_table_says(run, records):
    first, last = records[0], records[-1]
    by_layer = ", ".join(map(str, run.load("finetune").model.config.heads))
    assert report(run, records).startswith(
        f"# small 3 of 8 heads were removed and the rest fine-tuned. By layer {by_layer} heads stayed; the model has "
        f"{last['parameters']:,} of {first['parameters']:,} parameters, and it needs "
    )
    worse = [*records[:3], last | {"bits_per_character": 1.25 * first["bits_per_character"]}]
    assert "it needs 25.0 % more bits per character." in report(run, worse)
    better = [*records[:3], last | {"bits_per_character": 0.9 * first["bits_per_character"]}]
    assert "it needs 10.0 % fewer bits per character." in report(run, better)
    words = [record | {"bits_per_character": None, "perplexity": 25.0} for record in records]
    assert "its perplexity is 25, the baseline's 25." in report(run, words)
    assert "raise --lam" not in report(run, records)
    assert "raise --lam" in report(run, [*records[:3], last | {"heads_open": first["heads_open"]}])


def test_the_table_has_a_row_for_each_stage(run, records):
    text = report_text(run, records, run.load("finetune").model, ("", ""))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[0] == "| " + " | ".join(key.replace("_", " ") for key in KEYS) + " |"
    assert len(rows) == 2 + 4
    for row, record in zip(rows[2:], records, strict=True):
        cells = row.strip("| ").split(" | ")
        assert cells[0].startswith(f"{record['stage']}: ")
        assert cells[1:] == [show(record[key]) for key in KEYS[1:]]


def test_the_paragraphs_give_text_heads_steps_and_objective(run, records):
    text = report(run, records)
    train, valid, test = (f"{len(split):,}" for split in (run.text.train, run.text.valid, run.text.test))
    head = head_part(run.config.model)
    gone = records[0]["parameters"] - records[-1]["parameters"]
    assert gone == 3 * head.parameters
    for part in (
        f"{train} tokens to train on, {valid} to validate, {test} held out",
        f"One head owns {head.parameters:,} parameters and {head.multiply_adds_per_token:,} multiply-adds",
        f"removed make {gone:,} parameters",
        "Steps: 6 + 4 + 3;",
        "Gates: task objective, target 5 heads, L0 summed over all heads",
    ):
        assert part in text
    gate = dataclasses.replace(run.config.gate, target_heads=None, lam=0.25, objective="layerwise")
    other = dataclasses.replace(run, config=dataclasses.replace(run.config, gate=gate))
    assert "Gates: layerwise objective, lam = 0.25, L0 summed over all heads" in report(other, records)


def test_text_of_the_model_cannot_break_out_of_its_block():
    assert fenced("\n```\n# title\n````\n") == "'''\n# title\n'''`"
    assert "```" not in fenced("`" * 7)


def test_the_written_report_its_sample_and_its_plots(run, records):
    write_report(run, records)
    directory = run.directory.path
    text = (directory / "report.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[.+\]\((.+)\)", text)
    assert shown == [f"plots/{name}.png" for name in ("losses", "gates", "heads")]
    for name in shown:
        assert Path(directory / name).read_bytes().startswith(b"\x89PNG")
    # The sample is drawn from the run's seed, so it is the same again.
    prompt, continuation = sample_text(run, run.load("finetune").model)
    assert prompt == run.text.tokenizer.decode(run.text.test[:8])
    assert len(continuation) == 400 and set(continuation) <= set(run.text.tokenizer.characters)
    assert fenced(prompt) in text and fenced(continuation) in text
    assert text.count("```") == 4
