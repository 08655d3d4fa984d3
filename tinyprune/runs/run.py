"""A run: the four stages of the method with checkpoints around them.

    train     train a baseline with every head open
    gate      choose what stays: train it on with a gate on every head, under the L0 loss, or score the heads
    prune     remove the closed heads for good, and repair what stays if that is asked for
    finetune  heal: train the smaller model a little more

What the stages do is in `method.prune`; a run adds that each begins with the checkpoint of the one before, can be
stopped at any moment and continues from its own checkpoint with `resume`.
"""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import STAGE_TABLES, ModelConfig, RunConfig, TrainConfig, to_toml
from tinyprune.data import Text, load_text
from tinyprune.errors import CheckpointError, UsageError
from tinyprune.io.progress import expected, say
from tinyprune.kernels.gpu import gpu_memory
from tinyprune.kernels.machine import memory_bytes
from tinyprune.method.gates import budget, hit_target, settle, with_blocks, with_gates
from tinyprune.method.prune import choose, heal, repair
from tinyprune.method.recipe import Recipe, Stage, Watch
from tinyprune.method.remove import remove_closed_heads
from tinyprune.method.texts import Texts
from tinyprune.model.counting import count_parameters, training_bytes
from tinyprune.model.generation import generate
from tinyprune.model.parameters import init_parameters
from tinyprune.model.parts import Parts
from tinyprune.model.transformer import Transformer, engine_in
from tinyprune.ops.engine import Engine
from tinyprune.runs.changes import check_changes, check_settings, is_finished
from tinyprune.runs.directory import STAGES, RunDirectory, SavedModel, load_model, model_metadata
from tinyprune.training.checkpoints import load_checkpoint, save_checkpoint
from tinyprune.training.distillation import Distillation
from tinyprune.training.evaluation import evaluate
from tinyprune.training.loop import Trainer
from tinyprune.training.metrics import EventLog, MetricsLog
from tinyprune.training.step import LanguageModelling
from tinyprune.training.warmup import announced, rehearse


@dataclass
class Run:
    """A run: its directory, configuration and backend. Each stage is a method."""

    directory: RunDirectory
    config: RunConfig
    ops: Engine
    resume_command: str  # the command that resumes after a stop, for messages
    anew: Sequence[str] = ()  # stages whose checkpoints no longer count, see `prepare`
    # another run's checkpoint, which `prepare` makes the baseline, see `adopt`
    source: Path | None = None
    events: bool = False  # whether TensorBoard's event files are written

    @cached_property
    def text(self) -> Text:
        """Return the tokenised text; an existing model's own tokenizer is used.

        Raises UsageError if the text is not the one that the run was trained on, or a split is too short.
        """
        before = self.earlier_model()
        trained = {} if before is None else {"tokenizer": before.tokenizer, "digest": before.digest}
        text = load_text(self.config.data, **trained, near=self.directory.path)
        for split in ("valid", "test"):
            count = len(getattr(text, split))
            if count < 2:
                raise UsageError(
                    f"the {split} split of {text.name} has {count} tokens, at least 2 are needed; "
                    f"raise data.{split}_fraction or give a longer text"
                )
        return text

    @cached_property
    def texts(self) -> Texts:
        """Return what the stages after the baseline read."""
        return Texts.of(self.config, self.text)

    @property
    def recipe(self) -> Recipe:
        """Return the settings of the stages after the baseline."""
        return Recipe.of(self.config)

    def earlier_model(self) -> SavedModel | None:
        """Return the adopted model, or the model of the earliest checkpoint that stays, or None."""
        paths = [self.directory.checkpoint(stage) for stage in STAGES if stage not in self.anew]
        found = [self.source] if self.source else [path for path in paths if path.exists()]
        return load_model(found[0], self.ops) if found else None

    def prepare(self, stages: Sequence[str], resume: bool = False, overwrite: bool = False) -> None:
        """Prepare the run for `stages`: write config.toml, save an adopted baseline, delete outdated checkpoints.

        Everything that can be checked beforehand is checked before any file is touched. With `resume` the settings of
        config.toml stay, but for the changes that `runs.changes` allows.

        Raises:
            UsageError: if settings contradict finished stages, if the text is not the run's or too short for a stage,
                if the previous stage is not finished, or if more heads should stay open than there are.
            CheckpointError: if the checkpoint of the previous stage is broken.
            SaveError: if config.toml cannot be written.
        """
        anew = STAGES[STAGES.index(stages[0]) :]
        self.anew = anew if overwrite else ()
        written = self.directory.read_config() if self.directory.started else None
        news = self.check_settings(written, stages, resume)
        self.check_mask()
        if written is not None and self.config.data.corpus != written.data.corpus:
            _ = self.text  # refused if it is another; no assert, which python -O would leave out
        before = self.before(stages[0]) if self.source is None else self.earlier_model()
        model = self.model_config if before is None else before.model.config
        left = list(stages)
        if resume:  # the texts of a finished stage may be gone by now
            left = [stage for stage in stages if not self.finished(stage)]
        self.check_stages(left, model)
        if "gate" in stages:
            budget(with_blocks(model, self.config.choose), self.config.choose)

        if overwrite:
            self.directory.remove(anew)
        if self.source is not None:
            own = {"metrics_length": 0, "source": str(self.source)}
            self.save_finished("train", before.model, before, **own)
            self.source = None
        if self.config != written:
            self.directory.write("config.toml", to_toml(self.config.to_dict()))
        for line in news:
            say(line)

    def check_settings(self, written: RunConfig | None, stages: Sequence[str], resume: bool) -> list[str]:
        """Raise UsageError if settings contradict those `written` for stages that stay, or their order.

        An adopted baseline has its own. Returns what the user is to be told of changes.
        """
        kept = written if self.source is None else None
        news: list[str] = []
        if resume:
            if kept is not None:
                news = check_changes(self.directory, kept, self.config, stages)
            self.check_order(stages)
        if kept is not None:
            earlier = STAGES[: STAGES.index(stages[0])]
            check_settings(self.directory, kept, self.config, earlier)
        return news

    def check_mask(self) -> None:
        """Raise UsageError if tokens would see nothing but themselves."""
        if self.config.model.M == 0 and self.config.model.mask == "same-length":
            seen = "model.M = 0 with the same-length mask shows every token only itself"
            raise UsageError(f'{seen}; add --set model.mask="causal"')

    def check_order(self, stages: Sequence[str]) -> None:
        """Raise UsageError if a stage that is resumed has a later one already, or another beginning than it had."""
        for stage, later in itertools.pairwise(STAGES):
            has_later = self.directory.checkpoint(later).exists()
            if stage in stages and has_later and not self.finished(stage):
                raise UsageError(
                    f"{self.directory.path} has stage {later}, but its stage {stage} is missing or "
                    f"unfinished; put {stage}.safetensors back, or do stage {stage} anew with --overwrite"
                )
        self.directory.check_origins(stages[-1])

    def check_stages(self, stages: Sequence[str], model: ModelConfig) -> None:
        """Raise UsageError if a text is too short for a stage, or memory, or its precision is not the backend's."""
        for stage in stages:
            how = self.config.repair if stage == "prune" else self.training(stage)
            engine_in(self.ops, how.precision)
            if stage != "prune":
                self.texts_for(stage).segments(stage, self.training(stage), model.T)
                self.check_size(stage, model)
        if self.config.repair.tokens and set(stages) - {"train"}:
            self.texts.to_repair(self.config.repair.tokens, self.config.model.T)

    def check_size(self, stage: str, model: ModelConfig) -> None:
        """Raise UsageError if a stage needs more memory than there is."""
        check_memory(f"stage {stage}", self.bytes_of(stage, model, model), model, self.training(stage).B, self.ops)

    def bytes_of(self, stage: str, model: ModelConfig, whole: ModelConfig) -> int:
        """Return about how much memory the training of a stage takes."""
        training = self.training(stage)
        frozen = stage == "gate" and self.config.gate.frozen
        return training_bytes(model, training.B, whole if training.distill else None, frozen)

    @property
    def model_config(self) -> ModelConfig:
        """Return the configured model with the vocabulary size of the text."""
        V = self.text.tokenizer.V
        if self.config.model.V not in (0, V):
            raise UsageError(
                f"model.V is {self.config.model.V}, but the tokenizer of {self.text.name} has {V} entries; "
                "add --set model.V=0 (and, if the model has them, fitting model.cutoffs)"
            )
        return dataclasses.replace(self.config.model, V=V)

    def before(self, stage: str) -> SavedModel | None:
        """Return the model that a stage starts from, or None for the first stage, which makes its own."""
        return None if stage == "train" else self.load(STAGES[STAGES.index(stage) - 1])

    def load(self, stage: str) -> SavedModel:
        """Load the finished model of a stage. Raises UsageError if it is not finished, CheckpointError if broken."""
        path = self.directory.checkpoint(stage)
        command = shlex.join(["tinyprune", stage, str(self.directory.path)])
        if not path.exists():
            raise UsageError(f"{self.directory.path} has no stage {stage} yet; do it with: {command}")
        saved = load_model(path, self.ops, mapped=True)
        if saved.metadata.get("stage") != stage:
            found = saved.metadata.get("stage")
            raise CheckpointError(f"{path} is of stage {found}; put back the one of {stage}")
        if not is_finished(saved.metadata, stage, self.config):
            of = f"stage {stage} of {self.directory.path}"
            raise UsageError(f"{of} is not finished; go on with: {command} --resume")
        return saved

    def finished(self, stage: str) -> bool:
        """Return whether a stage has a finished checkpoint."""
        path = self.directory.checkpoint(stage)
        return path.exists() and is_finished(load_checkpoint(path)[1], stage, self.config)

    def is_done(self, stage: str, resume: bool) -> bool:
        """Return whether a stage that is resumed is finished, and say so."""
        if not (resume and self.finished(stage)):
            return False
        say(f"{stage}: already finished")
        return True

    def adopt(self, source: Path) -> None:
        """Take another run's model and text as the baseline, as if trained here; nothing is written yet.

        Raises UsageError if it has gates, or this run has trained a baseline.
        """
        saved = load_model(source, self.ops)
        if saved.model.gate is not None:
            raise UsageError(f"{source} has gates already; start from a checkpoint without")
        path = self.directory.checkpoint("train")
        if path.exists() and "source" not in load_checkpoint(path)[1]:
            raise UsageError(f"{self.directory.path} has trained a baseline; use --from in another directory")
        self.source = source
        self.config = dataclasses.replace(self.config, model=saved.model.config, data=saved.data)

    def save_finished(self, stage: str, model: Transformer, origin: SavedModel, **own: Any) -> None:
        """Write the checkpoint of a stage that involves no training; the text and how far it is read are `origin`'s."""
        metadata = model_metadata(model, origin.tokenizer, origin.data, origin.digest)
        tensors = {f"params.{name}": value for name, value in model.host_params().items()}
        own |= {"stage": stage, "step": 0, "finished": True, "read": origin.metadata.get("read")}
        kept = ("positions", "file")
        own |= {name: origin.metadata[name] for name in kept if name in origin.metadata}
        save_checkpoint(self.directory.checkpoint(stage), tensors, metadata | own)

    def save_untrained(self, stage: str, model: Transformer, before: SavedModel, **own: Any) -> None:
        """Write the checkpoint of a stage after the first whose weights are not of its training."""
        own = {"metrics_length": before.metadata["metrics_length"], "seed": self.config.seed} | own
        self.save_finished(stage, model, before, **own, **self.directory.origin(stage))

    def train(self, resume: bool = False) -> None:
        """Run stage 1: train the baseline."""
        if self.is_done("train", resume):
            return
        model, config = self.new_model(), self.config.train
        segments = self.texts_for("train").segments("train", config, model.config.T)
        stage = Stage("train", model, segments, config, LanguageModelling(), self.generator("train"))
        Checkpoints(self, None, resume).fit(stage)

    def gate(self, resume: bool = False) -> None:
        """Run stage 2: choose which parts of the baseline stay."""
        if self.is_done("gate", resume):
            return
        before = self.before("gate")
        texts, how = self.texts_for("gate", before), self.config.choose
        if before.tokenizer.kind == "bpe" and texts.alone:
            say(
                f"gate: of what people wrote only {Path(before.data.corpus).name} is read; what other kinds of text "
                "need may go. Name others with --texts run,self,FILE"
            )
        watch = Checkpoints(self, before, resume)
        with ExitStack() as stack:
            if how.by != "gates":  # a stage that trains says itself what is compiled
                stack.enter_context(announced(self.ops, "gate"))
            gated = choose(before.model, self.recipe, texts, self.generator, watch)
        if how.by != "gates":
            self.save_untrained("gate", gated, before)
        elif how.rewind:
            trained = load_checkpoint(self.directory.checkpoint("gate"))[1]  # whose log stays
            self.save_untrained("gate", gated, before, metrics_length=trained["metrics_length"])

    def prune(self, resume: bool = False) -> None:
        """Run stage 3: remove the closed parts, and fit what stays to their outputs if that is asked for."""
        if self.is_done("prune", resume):
            return
        how, whole, texts = self.config.repair, None, self.texts
        if how.tokens:  # first, since what the model keeps of the texts that it writes is large
            whole = self.load("train").model
            tokens = texts.to_repair(how.tokens, whole.config.T, whole)
            say(f"prune: what stays is fitted to {len(tokens):,} tokens of {texts}")
        gated = self.before("prune")
        model = remove_closed_heads(gated.model)
        if whole is not None:
            model = repair(whole, model, how, texts)
        self.tell_what_stays(model.config, gated.model.config)
        self.save_untrained("prune", model, gated)

    def tell_what_stays(self, small: ModelConfig, whole: ModelConfig) -> None:
        """Say how many parts stay, in all and by layer."""
        of = f"{sum(small.heads)} of {sum(whole.heads)} heads"
        say(f"prune: {of} stay, by layer {list(small.heads)}")
        if small.U:
            of = f"{sum(small.blocks)} of {sum(whole.blocks)} blocks of {small.U} units"
            say(f"prune: {of} stay, by layer {list(small.blocks)}")
        how = self.config.choose
        if how.target_share and how.price == "parameters":
            stay, of_all = (Parts(config).prices("parameters")[1] for config in (small, whole))
            asked = f"asked for: {how.target_share:.1%}"
            say(f"prune: {stay / of_all:.1%} of all that is no embedding stay; {asked}")

    def finetune(self, resume: bool = False) -> None:
        """Run stage 4: heal the smaller model."""
        if self.is_done("finetune", resume):
            return
        config, before = self.config.heal, self.before("finetune")
        whole = None
        if config.distill or "self" in self.texts.names:
            whole = self.load("train").model
        texts, watch = self.texts_for("finetune", before), Checkpoints(self, before, resume)
        heal(before.model, whole, "finetune", config, texts, self.generator, watch)

    def rehearse(self) -> float:
        """Compile all kernels of a run; return about how many seconds its stages take.

        The smaller model is taken to have half of the heads, or the target's.
        """
        config, text, model, seconds = self.config, self.text, self.new_model(), 0.0
        gated, objective = with_gates(model, self.recipe, 0)
        closed = dataclasses.replace(gated, params=dict(gated.params))
        if config.choose.has_target:
            hit_target(closed, config.choose)
        else:
            settle(closed, Parts(gated.config).total // 2)
        stages = {"train": model, "gate": gated, "finetune": remove_closed_heads(closed)}
        for stage, trained in stages.items():
            minimised = objective if stage == "gate" else LanguageModelling()
            settings = self.training(stage)
            segments = self.texts_for(stage).segments(stage, settings, trained.config.T)
            seconds += rehearse(trained, minimised, segments, text, settings)
        if self.ops.on_device:  # the report has a sample, which NumPy writes elsewhere
            list(generate(stages["finetune"], text.test[:2], 2, np.random.default_rng(0)))
        return seconds

    def announce(self) -> None:
        """Compile all kernels of a run and say what it will do."""
        config = self.config
        gates = config.gate_train.steps if config.choose.by == "gates" else f"by {config.choose.by}"
        with announced(self.ops, "run", run=True):
            seconds = self.rehearse()
        say(
            f"run: train {config.train.steps}, gate {gates}, prune, finetune {config.heal.steps} "
            f"steps, then a report; all in {self.directory.path}, {expected(seconds)}"
        )

    def new_model(self) -> Transformer:
        """Return the configured model with new weights."""
        config = self.model_config
        return Transformer(config, init_parameters(config, self.generator("init")), ops=self.ops)

    def training(self, stage: str) -> TrainConfig:
        """Return the settings by which a stage trains the weights."""
        return getattr(self.config, STAGE_TABLES[stage])

    def texts_for(self, stage: str, before: SavedModel | None = None) -> Texts:
        """Return what a stage reads, from where the stage `before` it has stopped."""
        texts = self.texts if stage != "train" else Texts(self.text)
        read = before.metadata.get("read") if before else None
        texts.read = None if read is None else tuple(read)
        return texts

    def generator(self, purpose: str) -> np.random.Generator:
        """Return the random generator of the initialisation or of a stage, derived from the run's seed."""
        purpose = "gate" if purpose == "scores" else purpose
        return np.random.default_rng([self.config.seed, ("init", *STAGES).index(purpose)])


def check_memory(what: str, needed: int, model: ModelConfig, B: int, ops: Engine) -> None:
    """Raise UsageError if the training of a model needs more bytes than the engine's memory has."""
    there = gpu_memory() if ops.on_device else memory_bytes()
    if needed > there:
        size = f"{count_parameters(model):,} parameters and B = {B}"
        raise UsageError(
            f"{what} takes about {needed / 1e9:,.0f} GB of memory for {size}, and there are "
            f"{there / 1e9:,.0f}; make the model or its batch smaller"
        )


@dataclass
class Checkpoints(Watch):
    """Trains the stages of a run with checkpoints, a log and a progress bar.

    Attributes:
        run: the run.
        before: the model that the stage starts from, if any.
        resume: whether an unfinished stage goes on from its checkpoint.
    """

    run: Run
    before: SavedModel | None
    resume: bool

    def read(self, what: str, tokens: NDArray) -> None:
        """Say what a criterion reads."""
        say(f"gate: {what} scores all parts on {len(tokens):,} tokens of {self.run.texts}")

    def fit(self, stage: Stage) -> None:
        """Train a stage from its beginning, or from its checkpoint, to its end."""
        run, config, text, name = self.run, stage.config, self.run.text, stage.name
        limit = config.evaluate_tokens
        if config.evaluate_every and 0 < limit < len(text.valid):
            say(f"{name}: validations read the first {limit:,} of {len(text.valid):,} tokens; see evaluate_tokens")
        if config.precision == "bf16":
            say(f"{name}: products are of bfloat16 numbers, {run.ops.in_precision('bf16').computed_by}")
        log_of = EventLog if run.events else MetricsLog
        with log_of(run.directory.metrics) as log:
            metadata = model_metadata(stage.model, text.tokenizer, run.config.data, text.digest)
            metadata |= {"seed": run.config.seed, "read": (config.B, stage.segments.read + config.steps)}
            trainer = Trainer.start(
                stage.model,
                stage.segments,
                config,
                stage.objective,
                stage.rng,
                stage=name,
                path=run.directory.checkpoint(name),
                metadata=metadata | run.directory.origin(name),
                log=log,
                validate=lambda model: evaluate(model, text.valid, text.characters["valid"], limit),
                go_on=run.resume_command,
                at_end=lambda model: self.finish(stage, model),
            )
            if self.resume and trainer.path.exists():
                trainer.restore()
                say(f"{name}: going on after step {trainer.step}")
            else:
                log.truncate(self.before.metadata["metrics_length"] if self.before else 0)
            self.warn(stage)
            with announced(run.ops, name, run=name == "train") as compiled:
                trained = stage.model, stage.objective, stage.segments
                seconds = rehearse(*trained, text, config, trainer.step)
                if compiled and name == "train" and not run.ops.on_device:
                    # later stages and commands then find all kernels; a GPU compiles all at once
                    run.rehearse()
            self.announce(stage, config.steps - trainer.step, seconds)
            trainer.run()

    def warn(self, stage: Stage) -> None:
        """Say what the stage has too few steps for."""
        name, steps, gate = stage.name, stage.config.steps, stage.model.gate
        rising = getattr(stage.objective, "warmup", 0)
        if gate is not None and rising > steps:
            more = "more than gate_train.steps"
            say(f"gate: lam rises over {rising} steps, {more}: it will not reach {gate.lam}")
        if stage.config.warmup > steps:
            rises = f"rises over {stage.config.warmup} steps"
            say(f"{name}: the learning rate {rises}, more than there are")

    def announce(self, stage: Stage, steps: int, seconds: float) -> None:
        """Say what is trained, on what, and about how long."""
        run, model, whole = self.run, stage.model.config, stage.model.config
        if isinstance(stage.objective, Distillation):
            whole = stage.objective.teacher.config
        texts = run.text.name
        if stage.name != "train" and list(run.texts.names) != ["run"]:
            texts = str(run.texts)
        memory = f"about {run.bytes_of(stage.name, model, whole) / 1e6:,.0f} MB"
        size = f"{count_parameters(model):,} parameters, {memory}"
        say(
            f"{stage.name}: {steps} steps of {stage.config.B} × {model.T} tokens on {texts}, "
            f"{expected(seconds)}; {size}"
        )

    def finish(self, stage: Stage, model: Transformer) -> None:
        """End a stage; tell how many gates had to move."""
        moved = stage.finish(model)
        if moved:
            done = "closed" if moved > 0 else "opened"
            say(f"gate: to hit the target, gates {done} at the end: {abs(moved)}")
