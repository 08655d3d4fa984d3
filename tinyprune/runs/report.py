"""The report of a run: the table of its stages, plots, and report.md with both."""

from __future__ import annotations

import dataclasses
import html
import math
import statistics
import time
from shlex import quote

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import ModelConfig, RunConfig
from tinyprune.io.progress import say
from tinyprune.io.tables import Record, markdown_table
from tinyprune.method.gates import open_config
from tinyprune.model.counting import count_multiply_adds, count_parameters, head_part
from tinyprune.model.generation import generate
from tinyprune.model.parts import Parts
from tinyprune.model.transformer import Memory, Transformer
from tinyprune.ops.engine import Engine
from tinyprune.runs.directory import STAGES, load_model
from tinyprune.runs.run import Run
from tinyprune.training.checkpoints import sha256_of
from tinyprune.training.evaluation import Evaluation, evaluate
from tinyprune.training.metrics import read_metrics

TIMING_B = 16
TIMING_ROUNDS = 5
PARAGRAPH = 2000  # tokens in which the beginning of a paragraph is looked for
SAMPLE_TOKENS = 400
DEAR = 0.05  # a share of bits per character or perplexity
GATES_PICTURE = "![Probability of being open of every head, by layer](plots/gates.png)"
WHAT_IT_IS = {
    "train": "the baseline, all heads open",
    "gate": "closed by their gates, still in the model",
    "prune": "closed heads removed for good",
    "finetune": "the smaller model, trained a little more",
}


def size_record(stage: str, model: Transformer) -> Record:
    """Return the size of a stage's model, and its computation."""
    opened = open_config(model)
    record: Record = {"stage": stage, "heads_open": sum(opened.heads)}
    record["heads_total"] = model.config.heads_total
    if opened.U:
        record["blocks_open"] = sum(opened.blocks)
    record["parameters"] = count_parameters(model.config)
    record["multiply_adds_per_token"] = count_multiply_adds(opened)
    return record


def finished_record(run: Run, stage: str) -> Record:
    """Return what a stage has left: its model's size, the last validation while it trained, and the checkpoint."""
    checkpoint = run.directory.checkpoint(stage)
    record = size_record(stage, load_model(checkpoint, Engine(), mapped=True).model)
    validated = [r for r in read_metrics(run.directory.metrics) if (r["stage"], r["split"]) == (stage, "valid")]
    last = validated[-1] if validated else {}
    quality = {f"valid_{name}": last.get(name) for name in ("loss", "bits_per_character")}
    return record | quality | {"checkpoint": str(checkpoint)}


def stage_record(stage: str, model: Transformer, result: Evaluation, ms_per_1k_tokens: float | None) -> Record:
    """Return a stage's row: size, computation, quality, speed."""
    record = size_record(stage, model)
    record["bits_per_character"] = result.bits_per_character
    record["perplexity"] = result.perplexity
    if ms_per_1k_tokens is not None:
        record["ms_per_1k_tokens"] = ms_per_1k_tokens
    return record


def milliseconds_per_1k_tokens(
    models: list[Transformer], tokens: NDArray, at_least: float = 0.5, streams: int = TIMING_B
) -> list[float]:
    """Return each model's median time to read 1,000 tokens (forward pass, parallel streams, memory full).

    The models take turns, so that a machine that becomes slower or faster does so for all of them: at least five
    rounds, and at least `at_least` seconds for each model. A model's first reading after another's gets its memory
    anew, for arrays of other sizes, and would take up to twice as long; it is not measured.
    """
    T = models[0].config.T
    # A short text is repeated; ids are also the targets.
    ids = np.resize(tokens, (streams, T)).astype(np.int64)
    memories: list[Memory | None] = [None] * len(models)
    for _ in range(max(1, math.ceil(models[0].config.M / T))):
        pairs = zip(models, memories, strict=True)
        memories = [model.loss(ids, ids, memory)[1] for model, memory in pairs]
    seconds: list[list[float]] = [[] for _ in models]
    while len(seconds[-1]) < TIMING_ROUNDS or min(map(sum, seconds)) < at_least:
        for model, memory, measured in zip(models, memories, seconds, strict=True):
            for _ in range(2):
                start = time.perf_counter()
                float(model.loss(ids, ids, memory)[0])  # the conversion waits for a GPU
                took = time.perf_counter() - start
            measured.append(took)
    return [1e6 * statistics.median(measured) / ids.size for measured in seconds]


def summarise(run: Run) -> list[Record]:
    """Return the table of the run's four stages, on the test split."""
    limit = run.config.heal.evaluate_tokens
    tokens = f"{len(run.text.test):,} tokens"
    if 0 < limit < len(run.text.test):
        tokens = f"the first {limit:,} of {tokens}"
    say(f"report: reading the test split ({tokens}) with each of the four models")
    models = [run.load(stage).model for stage in STAGES]
    U = models[-1].config.U
    if U:  # the baseline's units came in blocks only when they got gates
        in_blocks = dataclasses.replace(models[0].config, U=U)
        models[0] = dataclasses.replace(models[0], config=in_blocks)
    times = milliseconds_per_1k_tokens(models, run.text.valid)
    return [
        stage_record(stage, model, evaluate(model, run.text.test, run.text.characters["test"], limit), ms)
        for stage, model, ms in zip(STAGES, models, times, strict=True)
    ]


def write_report(run: Run, records: list[Record]) -> None:
    """Write the plots and report.md to the run's directory."""
    # Imported here because matplotlib takes a second to import.
    from tinyprune import plots

    directory = run.directory
    metrics = read_metrics(directory.metrics)
    final = run.load("finetune")
    figures = {"losses": plots.plot_losses(metrics), "heads": plots.plot_heads(final.model.config)}
    how = run.config.choose
    if how.by == "gates":
        gated = run.load("gate").model
        ids = Parts(gated.config).ids
        figures["gates"] = plots.plot_gates(metrics, run.config.gate, ids, how.target_heads)
    for name, figure in figures.items():
        plots.titled(figure, f"{directory.path.name}, on {run.text.name}")
        plots.save_figure(figure, directory.path / "plots" / f"{name}.png")
    sample = sample_text(run, final.model)
    directory.write("report.md", report_text(run, records, final.model, sample))
    say(f"report: {directory.path / 'report.md'} and plots/ are written")


def stages_line(run: Run) -> str:
    """Return the sentence that says which checkpoints the report is of, and whether each began with the one before."""
    each = "older ones, which do not say where they began"
    if run.directory.check_origins(STAGES[-1]):
        each = "each began with the one before"
    sums = {stage: sha256_of(run.directory.checkpoint(stage)) for stage in STAGES}
    names = ", ".join(f"{stage} {sha256[:12]}" for stage, sha256 in sums.items())
    return f"Seed {run.config.seed}. The checkpoints by sha256 ({each}): {names}."


def sample_text(run: Run, model: Transformer) -> tuple[str, str]:
    """Return a prompt from the test split, where a document or a paragraph begins, and the model's continuation."""
    test, decode, T = run.text.test, run.text.tokenizer.decode, model.config.T
    places = range(1, min(PARAGRAPH, len(test) - T))
    begins = (i for i in places if decode(np.asarray(test[max(i - 2, 0) : i])).endswith("\n\n"))
    start = 0 if run.config.data.split == "documents" else next(begins, 0)
    prompt = np.asarray(test[start : start + T])
    rng = np.random.default_rng(run.config.seed)
    if not model.ops.on_device:  # to compile the decoder takes longer than NumPy needs for a sample
        model = dataclasses.replace(model, ops=Engine())
    continuation = list(generate(model, prompt, SAMPLE_TOKENS, rng, temperature=0.8))
    return decode(prompt), decode(np.array(continuation))


def report_text(run: Run, records: list[Record], model: Transformer, sample: tuple[str, str]) -> str:
    """Return the text of report.md; `sample` is a prompt and its continuation."""
    text, head, how = run.text, head_part(model.config), run.config.choose
    first, last = records[0], records[-1]
    stages = [run.config.train, run.config.gate_train, run.config.heal]
    pictures = ["## Gates over time", GATES_PICTURE]
    if how.by != "gates":  # none are trained
        del stages[1]
        pictures.clear()
    steps = [stage.steps for stage in stages]
    removed = first["heads_open"] - last["heads_open"]
    names = [f"{record['stage']}: {WHAT_IT_IS[record['stage']]}" for record in records]
    rows = [record | {"stage": name} for record, name in zip(records, names, strict=True)]
    prompt, continuation = sample
    paragraphs = [
        f"# {html.escape(run.directory.path.name, quote=False)}",
        "![Layer by head map of the heads that were kept](plots/heads.png)",
        f"**What went:** {removed} of {first['heads_total']} heads; by layer {what_stayed(model.config)} stay, with "
        f"{last['parameters']:,} of {first['parameters']:,} parameters.",
        f"**What it costs:** on held-out text {what_it_costs(first, last)}. {compare_with(run, steps)}",
        f"**What to try next:** {what_next(run, first, last)}",
        "## The stages",
        stages_line(run),
        f"Text: {html.escape(text.name, quote=False)}, {len(text.train):,} tokens to train on, "
        f"{len(text.valid):,} to validate, {len(text.test):,} held out. The table is measured on the held-out test "
        "split, which nothing was chosen by.",
        markdown_table(rows),
        f"One head owns {head.parameters:,} parameters and {head.multiply_adds_per_token:,} multiply-adds "
        f"a token, so {removed} heads removed make {removed * head.parameters:,} parameters. "
        f"{how_chosen(run.config)}. Steps: {' + '.join(map(str, steps))}.",
        "## Losses",
        "![Training and validation loss over all stages](plots/losses.png)",
        *pictures,
        "## What the last model writes",
        f"The first {model.config.T} tokens of the test split as a prompt, and the continuation (temperature 0.8):",
        f"```text\n{fenced(prompt)}\n```",
        f"```text\n{fenced(continuation)}\n```",
        "## Take heads away yourself",
        f"`tinyprune play {quote(str(run.directory.path))}` writes a web page with the whole model "
        "inside, if it is a small one that reads characters: click on its heads.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def what_it_costs(first: Record, last: Record) -> str:
    """Return how well the last model predicts, beside the baseline."""
    if first["bits_per_character"] is None:
        return f"the smaller model's perplexity is {last['perplexity']:.4g}, the whole one's {first['perplexity']:.4g}"
    percent = 100 * cost(first, last)
    change = f"{abs(percent):.1f} % {'more' if percent > 0 else 'fewer'}"
    return f"the smaller model needs {change} bits per character than the whole one"


def cost(first: Record, last: Record) -> float:
    """Return what the last model needs more than the baseline, as a share of its bits per character or perplexity."""
    key = "perplexity" if first["bits_per_character"] is None else "bits_per_character"
    return last[key] / max(first[key], 1e-9) - 1


def compare_with(run: Run, steps: list[int]) -> str:
    """Say by which command a whole model is trained for as many steps, which is the fair comparison."""
    path, total = run.directory.path, sum(steps)
    said = f"But it was trained for {total:,} steps, and the whole one for {steps[0]:,}"
    if steps[0] in (0, total):
        return said + "."
    longer = quote(str(path.with_name(f"{path.name}-longer")))
    settings = quote(str(path / "config.toml"))
    command = f"tinyprune train {longer} --preset {settings} --set train.steps={total}"
    return f"{said}: `{command}` trains one as long, and `tinyprune eval {longer}` measures it."


def what_next(run: Run, first: Record, last: Record) -> str:
    """Propose another target, by what went and what it cost."""
    stay = last["heads_open"]
    if stay == first["heads_open"] and last["parameters"] == first["parameters"]:
        return "nothing went; close more with a higher `--lam`, or with a number of heads, `--target-heads`."
    if cost(first, last) > DEAR:
        return "that is much; let more stay, repair what stays (`prune --repair-tokens 20000`), or heal for longer."
    if stay < 2 or run.config.choose.target_share is not None:
        return "it costs little; take more away."
    path, half = run.directory.path, stay // 2
    fewer, here = (quote(str(place)) for place in (path.with_name(f"{path.name}-{half}"), path))
    command = f"tinyprune gate {fewer} --from {here} --target-heads {half}"
    return f"it costs little; let half as many stay, from the same baseline: `{command}`, then `prune` and `finetune`."


def what_stayed(config: ModelConfig) -> str:
    """Return the numbers of heads, and of blocks of units, of each layer."""
    heads = f"{', '.join(map(str, config.heads))} heads"
    if not config.U:
        return heads
    blocks = ", ".join(map(str, config.blocks))
    return f"{heads} and {blocks} of {config.F // config.U} blocks of {config.U} units"


def how_chosen(config: RunConfig) -> str:
    """Return by what it was chosen what stays, and how much."""
    how, pressure = config.choose, f"lam = {config.gate.lam}"
    if how.target_heads is not None:
        pressure = f"target {how.target_heads} heads"
    if how.target_share is not None:
        pressure = f"target {how.target_share} of the {how.price}"
    if how.by != "gates":
        return f"Chosen by {how.by}, without training, {pressure}"
    return f"Gates: {pressure}, L0 summed over all heads"


def fenced(text: str) -> str:
    """Return text that cannot end the code block around it."""
    return text.replace("```", "'''").strip("\n")
