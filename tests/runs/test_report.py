"""The report: its table has the keys that other programs rely on, and its sentences agree with the table."""

import math
import re
import shlex
from dataclasses import replace

import pytest
from command import KEYS, succeed

from tinyprune.config import RunConfig, to_toml
from tinyprune.kernels.backend import get_backend
from tinyprune.model.counting import count_parameters, head_part
from tinyprune.model.transformer import Transformer
from tinyprune.runs import report
from tinyprune.runs.directory import STAGES, RunDirectory
from tinyprune.runs.run import Run
from tinyprune.training.evaluation import evaluate

CONFIG = {"seed": 5, "model": {"L": 2, "D": 16, "H": 4, "N": 6, "T": 8, "M": 8}}
CONFIG |= {"gate": {"target_heads": 5}}
CONFIG |= {"train": {"steps": 6, "B": 2, "lr": 0.01}, "gate_train": {"steps": 4, "B": 2}}
CONFIG |= {"heal": {"steps": 3, "B": 2}}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    directory = tmp_path_factory.mktemp("report")
    corpus = directory / "lines.txt"
    lines = [f"{i} heads, {i * i % 97} vectors; `code`.\n" for i in range(300)]
    corpus.write_text("".join(lines), "utf-8")
    config = RunConfig.from_dict(CONFIG | {"data": {"corpus": str(corpus)}})
    place, ops = RunDirectory(directory / "small"), get_backend("numpy")
    run = Run(place, config, ops, "tinyprune run here --resume")
    run.directory.write("config.toml", to_toml(config.to_dict()))
    for stage in STAGES:
        getattr(run, stage)()
    return run


@pytest.fixture(scope="module")
def records(run) -> list[dict]:
    return report.summarise(run)


@pytest.fixture(scope="module")
def models(run) -> list[Transformer]:
    return [run.load(stage).model for stage in STAGES]


def test_the_keys_and_numbers_of_a_record(run, models, records):
    assert [record["stage"] for record in records] == list(STAGES)
    for record, model in zip(records, models, strict=True):
        assert list(record) == KEYS
        assert [type(value) for value in record.values()] == [str, int, int, int, int, float, float, float]
        result = evaluate(model, run.text.test, run.text.characters["test"])
        assert record["bits_per_character"] == result.bits_per_character
        assert record["perplexity"] == pytest.approx(math.exp(result.nats_per_token))
        assert record["parameters"] == count_parameters(model.config)
        assert record["heads_total"] == 8
        assert 0 < record["ms_per_1k_tokens"] < 1e5


def test_what_the_stages_do_to_the_numbers(models, records):
    """Gates close 3 heads, which saves computation; removal takes their parameters; fine-tuning changes no size."""
    train, gate, prune, finetune = records
    head = head_part(models[0].config)
    assert [record["heads_open"] for record in records] == [8, 5, 5, 5]
    assert train["parameters"] == gate["parameters"] == prune["parameters"] + 3 * head.parameters
    before, *after = (record["multiply_adds_per_token"] for record in records)
    assert after == [before - 3 * head.multiply_adds_per_token] * 3
    assert prune["parameters"] == finetune["parameters"]
    assert prune["bits_per_character"] == pytest.approx(gate["bits_per_character"], rel=1e-5)
    assert len({record["bits_per_character"] for record in (train, gate, finetune)}) == 3


@pytest.mark.parametrize("at_least", [0.0, 20.0])
def test_milliseconds_leave_out_the_reading_in_which_memory_is_renewed(at_least, run, models, monkeypatch):
    clock, turn = [0.0], [None]

    def loss(model, ids, targets, memory):
        clock[0], turn[0] = clock[0] + (1.0 if turn[0] is model else 3.0), model
        return 0.0, memory

    monkeypatch.setattr(report.Transformer, "loss", loss)
    monkeypatch.setattr(report.time, "perf_counter", lambda: clock[0])
    # A reading has 16 streams of 8 tokens.
    found = report.milliseconds_per_1k_tokens(models, run.text.valid, at_least)
    assert found == [1e6 / (16 * 8)] * 4 and clock[0] >= 16 * max(at_least, 5)


def one_line(run: Run, records: list[dict]) -> str:
    sample = "a prompt", "what follows"
    text = report.report_text(run, records, run.load("finetune").model, sample)
    return " ".join(text.split())


def test_the_first_sentences_are_what_the_table_says(run, records):
    first, last, path = records[0], records[-1], run.directory.path
    by_layer = ", ".join(map(str, run.load("finetune").model.config.heads))
    text = one_line(run, records)
    assert text.startswith(
        f"# small ![Layer by head map of the heads that were kept](plots/heads.png) **What went:** 3 of 8 heads; by "
        f"layer {by_layer} heads stay, with {last['parameters']:,} of {first['parameters']:,} parameters. "
        "**What it costs:** "
    )
    longer = f"`tinyprune train {path}-longer --preset {path}/config.toml --set train.steps=13`"
    assert f" But it was trained for 13 steps, and the whole one for 6: {longer} trains one as long" in text
    baseline, before = first["bits_per_character"], records[:3]
    words = [record | {"bits_per_character": None, "perplexity": 25.0} for record in records]

    def changed(bits: float) -> list[dict]:
        return [*before, last | {"bits_per_character": bits}]

    nothing = {name: first[name] for name in ("heads_open", "parameters")}
    fewer = f"tinyprune gate {path}-2 --from {path} --target-heads 2"
    for others, said in (
        (changed(1.25 * baseline), "the smaller model needs 25.0 % more bits per character than the whole one. But"),
        (changed(1.25 * baseline), "that is much; let more stay"),
        (changed(0.9 * baseline), "the smaller model needs 10.0 % fewer bits per character than the whole one. But"),
        (changed(0.9 * baseline), f"it costs little; let half as many stay, from the same baseline: `{fewer}`"),
        (words, "the smaller model's perplexity is 25, the whole one's 25. But"),
        ([*before, last | nothing], "nothing went; close more with a higher `--lam`"),
    ):
        assert said in one_line(run, others)


@pytest.mark.slow
def test_the_commands_of_the_report_work(run, records):
    """Both that it proposes, in a shell."""
    commands = re.findall(
        r"`(tinyprune (?:train|gate) [^`]+)`", one_line(run, [*records[:3], records[-1] | {"bits_per_character": 1}])
    )
    assert len(commands) == 2
    for command in commands:
        succeed(*shlex.split(command)[1:], "--backend", "numpy", "--quiet")


def test_names_are_no_html(run, records):
    other = replace(run, directory=RunDirectory("<script>&"))
    other.text = replace(run.text, name="<b>.txt")
    text = report.report_text(other, records, run.load("finetune").model, ("a prompt", "what follows"))
    assert text.startswith("# &lt;script&gt;&amp;\n") and "\nText: &lt;b&gt;.txt, " in text
    assert "<" not in re.sub("`[^`]*`", "", text)


def test_the_paragraphs_give_text_heads_steps_and_objective(run, records):
    text = one_line(run, records)
    train, valid, test = (f"{len(split):,}" for split in (run.text.train, run.text.valid, run.text.test))
    head = head_part(run.config.model)
    for part in (
        f"{train} tokens to train on, {valid} to validate, {test} held out",
        f"One head owns {head.parameters:,} parameters and {head.multiply_adds_per_token:,} multiply-adds",
        f"removed make {3 * head.parameters:,} parameters",
        "Steps: 6 + 4 + 3.",
        "Gates: target 5 heads, L0 summed over all heads",
    ):
        assert part in text


def test_the_written_report_its_sample_and_its_plots(run, records):
    report.write_report(run, records)
    text = (run.directory.path / "report.md").read_text("utf-8")
    shown = re.findall(r"!\[.+\]\((.+)\)", text)
    assert shown == [f"plots/{name}.png" for name in ("heads", "losses", "gates")]
    for name in shown:
        assert (run.directory.path / name).read_bytes().startswith(b"\x89PNG")
    # The sample is drawn from the run's seed, so it is the same again.
    prompt, continuation = report.sample_text(run, run.load("finetune").model)
    assert prompt == run.text.tokenizer.decode(run.text.test[:8])
    assert len(continuation) == 400 and set(continuation) <= set(run.text.tokenizer.characters)
    assert report.fenced(prompt) in text and report.fenced(continuation) in text
    assert text.count("```") == 4
    # Text of the model cannot break out of its block.
    assert report.fenced("\n```\n# title\n````\n") == "'''\n# title\n'''`"
    assert "```" not in report.fenced("`" * 7)
