"""The four stages of the method, each of which starts from the checkpoint of the previous one.

    train     train a baseline with every head open
    gate      train it on with a gate on every head, under the L0 loss
    prune     remove the closed heads for good
    finetune  train the smaller model a little more

Each can be stopped at any moment and continues from its own checkpoint with `resume`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import ModelConfig, RunConfig, TrainConfig, to_toml
from tinyprune.data import Segments, Text, load_text
from tinyprune.data.corpora import absolute_corpus
from tinyprune.errors import CheckpointError, UsageError
from tinyprune.kernels.gpu import gpu_memory
from tinyprune.machine import memory_bytes
from tinyprune.model.counting import count_parameters, part_prices, training_bytes
from tinyprune.model.generation import generate, write_texts
from tinyprune.model.parameters import init_parameters
from tinyprune.model.transformer import Transformer
from tinyprune.ops.engine import Engine
from tinyprune.pretrained.gguf import rounded
from tinyprune.progress import duration, say
from tinyprune.pruning.gates import GateObjective, budget, gate_warmup, hit_target, settle, with_blocks, with_new_gates
from tinyprune.pruning.importance import ALL_CRITERIA, with_scored_gates
from tinyprune.pruning.sequential import FIFTH, refitted
from tinyprune.pruning.surgery import remove_closed_heads
from tinyprune.runs.changes import SETTINGS, check_changes, is_finished, without_place
from tinyprune.runs.directory import STAGES, RunDirectory, SavedModel, load_model, model_metadata
from tinyprune.training.checkpoints import load_checkpoint, save_checkpoint
from tinyprune.training.distillation import Distillation
from tinyprune.training.evaluation import evaluate
from tinyprune.training.loop import Trainer
from tinyprune.training.metrics import EventLog, MetricsLog
from tinyprune.training.step import LanguageModelling, Objective
from tinyprune.warmup import announced, rehearse

TEXTS = 40  # that a model writes side by side, at most
LONGEST = 2**20  # tokens of each text that gates and healing read, if there are several


@dataclass
class Run:
    """A run: its directory, configuration and backend. Each stage is a method."""

    directory: RunDirectory
    config: RunConfig
    ops: Engine
    resume_command: str  # the command that resumes after a stop, for messages
    anew: Sequence[str] = ()  # stages whose checkpoints no longer count, see `prepare`
    source: Path | None = None  # another run's checkpoint, which `prepare` makes the baseline of this one, see `adopt`
    events: bool = False  # whether TensorBoard's event files are written
    written: NDArray | None = None  # what the whole model has written

    @cached_property
    def text(self) -> Text:
        """Return the tokenised text; an existing model's own tokenizer is used.

        Raises UsageError if the text is not the one that the run was trained on, or a split is too short.
        """
        before = self.earlier_model()
        trained = {} if before is None else {"tokenizer": before.tokenizer, "digest": before.digest}
        text = load_text(self.config.data, **trained, near=self.directory.path)
        for split in ("valid", "test"):
            if len(getattr(text, split)) < 2:
                raise UsageError(
                    f"the {split} split of {text.name} has {len(getattr(text, split))} tokens, at least 2 are needed; "
                    f"raise data.{split}_fraction or give a longer text"
                )
        return text

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
        written = self.directory.read_config() if self.directory.started else None
        news = []
        if resume and written is not None and self.source is None:
            news = check_changes(self.directory, written, self.config, stages)
        if resume:
            for stage, later in itertools.pairwise(STAGES):
                if stage in stages and self.directory.checkpoint(later).exists() and not self.finished(stage):
                    raise UsageError(
                        f"{self.directory.path} has stage {later}, but its stage {stage} is missing or unfinished; put "
                        f"{stage}.safetensors back, or do stage {stage} anew with --overwrite"
                    )
            self.directory.check_origins(stages[-1])
        self.anew = anew if overwrite else ()
        if written is not None and self.source is None:
            self.check_settings(written, [stage for stage in STAGES if stage not in anew])
        if self.config.model.M == 0 and self.config.model.mask == "same-length":
            raise UsageError(
                'model.M = 0 with the same-length mask shows every token only itself; add --set model.mask="causal"'
            )
        if written is not None and self.config.data.corpus != written.data.corpus:
            _ = self.text  # refused if it is another; no assert, which python -O would leave out
        before = self.before(stages[0]) if self.source is None else self.earlier_model()
        model = self.model_config if before is None else before.model.config
        left = [stage for stage in stages if not (resume and self.finished(stage))]  # whose texts may be gone by now
        for stage in left:
            if stage != "prune":
                self.segments(stage, model)
                self.check_size(stage, model)
        if "gate" in stages:
            gate, parted = self.config.gate, with_blocks(model, self.config.gate)
            GateObjective(gate, 0, sum(parted.parts), *budget(parted, gate))
        if self.config.gate.repair_tokens and set(left) - {"train"}:
            self.repair_text()
        if overwrite:
            self.directory.remove(anew)
        if self.source is not None:
            self.save_finished("train", before.model, before, metrics_length=0, source=str(self.source))
            self.source = None
        if self.config != written:
            self.directory.write("config.toml", to_toml(self.config.to_dict()))
        for line in news:
            say(line)

    def check_size(self, stage: str, model: ModelConfig) -> None:
        """Raise UsageError if a stage needs more memory than there is."""
        B, there = self.training(stage).B, gpu_memory() if self.ops.on_device else memory_bytes()
        taught, frozen = model if self.training(stage).distill else None, stage == "gate" and self.config.gate.frozen
        if (needed := training_bytes(model, B, taught, frozen)) > there:
            of = f"{needed / 1e9:,.0f} GB of memory for {count_parameters(model):,} parameters and B = {B}"
            raise UsageError(
                f"stage {stage} takes about {of}, and there are {there / 1e9:,.0f}; make the model or its batch smaller"
            )

    def check_settings(self, written: RunConfig, before: Sequence[str]) -> None:
        """Raise UsageError if the configuration contradicts the one that was `written` for existing checkpoints."""
        path = self.directory.path / "config.toml"
        for stage in before:
            for table in SETTINGS[stage]:
                same = without_place(self.config, table) == without_place(written, table)
                if self.directory.checkpoint(stage).exists() and not same:
                    raise UsageError(
                        f"stage {stage} was done with other settings [{table}], see {path}; leave those out, or do "
                        f"stage {stage} anew, in another directory or with --overwrite"
                    )

    @property
    def model_config(self) -> ModelConfig:
        """Return the configured model with the vocabulary size of the text."""
        V = self.text.tokenizer.V
        if self.config.model.V not in (0, V):
            raise UsageError(
                f"model.V is {self.config.model.V}, but the tokenizer of {self.text.name} has {V} entries; add "
                "--set model.V=0 (and, if the model has them, fitting model.cutoffs)"
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
            raise CheckpointError(f"{path} is of stage {saved.metadata.get('stage')}; put back the one of {stage}")
        if not is_finished(saved.metadata, stage, self.config):
            raise UsageError(f"stage {stage} of {self.directory.path} is not finished; go on with: {command} --resume")
        return saved

    def finished(self, stage: str) -> bool:
        """Return whether a stage has a finished checkpoint."""
        path = self.directory.checkpoint(stage)
        return path.exists() and is_finished(load_checkpoint(path)[1], stage, self.config)

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
        own |= {name: origin.metadata[name] for name in ("positions", "file") if name in origin.metadata}
        save_checkpoint(self.directory.checkpoint(stage), tensors, metadata | own)

    def train(self, resume: bool = False) -> None:
        """Run stage 1: train the baseline."""
        self.fit("train", self.new_model(), self.config.train, LanguageModelling(), resume)

    def gate(self, resume: bool = False) -> None:
        """Run stage 2: train gates on every head of the baseline together with the weights."""
        if resume and self.finished("gate"):
            say("gate: already finished")
            return
        before = self.before("gate")
        gate, config = self.config.gate, before.model.config
        if gate.criterion:
            self.gate_by_scores(before)
            return
        per_epoch = self.segments("gate", config).per_epoch
        warmup = gate_warmup(gate, self.config.gate_train, per_epoch)
        model, objective = with_new_gates(before.model, gate, warmup)
        if warmup > self.config.gate_train.steps:
            say(f"gate: lam rises over {warmup} steps, more than gate_train.steps: it will not reach {gate.lam}")

        def at_end(model: Transformer) -> None:
            if moved := hit_target(model):
                say(f"gate: to hit the target, gates {'closed' if moved > 0 else 'opened'} at the end: {abs(moved)}")

        self.fit("gate", model, self.config.gate_train, objective, resume, at_end, before, before.model)

    def gate_by_scores(self, before: SavedModel) -> None:
        """Open the gates that a criterion scores highest, without training."""
        gate, rng = self.config.gate, self.generator("gate")
        tokens = self.criterion_text(before.model)
        say(f"gate: {gate.criterion} scores all parts on {len(tokens):,} tokens of {','.join(self.corpora)}")
        criterion = ALL_CRITERIA[gate.criterion]
        with announced(self.ops, "gate"):
            model = with_scored_gates(before.model, gate, lambda model: criterion(model, tokens, rng))
        own = {"metrics_length": before.metadata["metrics_length"], "seed": self.config.seed}
        self.save_finished("gate", model, before, **own, **self.directory.origin("gate"))

    def criterion_text(self, whole: Transformer) -> NDArray:
        """Return what a criterion reads: as much of each text in gate.repair_corpus, of the run's its valid split."""
        parts = self.mixed(-(-self.config.gate.criterion_tokens // len(self.corpora)) or None, whole, "valid")
        return np.concatenate([part[: min(map(len, parts))] for part in parts])

    def prune(self, resume: bool = False) -> None:
        """Run stage 3: remove the closed heads, and fit what stays to their outputs if that is asked for."""
        if resume and self.finished("prune"):
            say("prune: already finished")
            return
        gate, whole, text = self.config.gate, None, np.zeros(0)
        if gate.repair_tokens:  # first, since what the model keeps of the texts that it writes is large
            text = self.repair_text(whole := self.load("train").model)
            say(f"prune: what stays is fitted to {len(text):,} tokens of {','.join(self.corpora)}")
        gated = self.before("prune")
        model = remove_closed_heads(gated.model)
        if whole is not None:
            model = refitted(whole, model, text, partial(rounded, kind=gate.repair_type))
        heads, total = sum(model.config.heads), sum(gated.model.config.heads)
        say(f"prune: {heads} of {total} heads stay, by layer {list(model.config.heads)}")
        if model.config.U:
            of = f"{sum(model.config.blocks)} of {sum(gated.model.config.blocks)} blocks of {model.config.U} units"
            say(f"prune: {of} stay, by layer {list(model.config.blocks)}")
        if gate.target_share and gate.price == "parameters":
            stay, of_all = (part_prices(m.config, "parameters")[1] for m in (model, gated.model))
            say(f"prune: {stay / of_all:.1%} of all that is no embedding stay; asked for: {gate.target_share:.1%}")
        own = {"metrics_length": gated.metadata["metrics_length"], "seed": self.config.seed}
        self.save_finished("prune", model, gated, **own, **self.directory.origin("prune"))

    @property
    def corpora(self) -> list[str]:
        """The names of the texts that pruning reads."""
        usual = "run,self" if self.text.tokenizer.kind == "bpe" and self.config.gate.repair_tokens else "run"
        return (self.config.gate.repair_corpus or usual).split(",")

    def mixed(self, share: int | None, whole: Transformer | None = None, split: str = "train") -> list[NDArray]:
        """Return at most `share` tokens, (n,), of each of `corpora`: without `whole` zeros for what it would write."""
        parts, own = [], self.config.gate.repair_tokens // len(self.corpora)
        for name in self.corpora:
            if name == "self":
                if self.written is None and whole is not None:
                    self.written = self.write(whole, own)
                parts.append(np.zeros(own, int) if self.written is None else self.written)
            elif name == "run":
                parts.append(getattr(self.text, split))
            else:
                data = dataclasses.replace(self.config.data, corpus=absolute_corpus(name))
                parts.append(load_text(data, self.text.tokenizer).train)
        return [part[:share] for part in parts]

    def write(self, whole: Transformer, n: int) -> NDArray:
        """Return n tokens of texts that the whole model writes, each after the token between documents."""
        tokenizer, rng, written = self.text.tokenizer, self.generator("prune"), []
        special = json.loads(tokenizer.description).get("added_tokens") if tokenizer.kind == "bpe" else []
        first = np.full(min(TEXTS, -(-n // whole.config.T)), special[0]["id"] if special else int(self.text.train[0]))
        while sum(map(len, written)) < n:
            written.append(write_texts(whole, first, whole.config.T, rng).ravel())
        return np.concatenate(written)[:n]

    def repair_text(self, whole: Transformer | None = None) -> NDArray:
        """Return what a repair reads. Raises UsageError if a text is not there, or all together are too short."""
        tokens, T = self.config.gate.repair_tokens, self.config.model.T
        parts = self.mixed(tokens // len(self.corpora), whole)
        if (n := sum(map(len, parts))) < FIFTH * T:
            said = f"gate.repair_tokens must be at least {FIFTH * T}, {FIFTH} segments of {T}, and so long the texts"
            raise UsageError(f"{said}; got {tokens}, of which {','.join(self.corpora)} have {n}")
        return np.concatenate(parts)

    def finetune(self, resume: bool = False) -> None:
        """Run stage 4: train the smaller model a little more."""
        config, before = self.config.finetune, self.before("finetune")
        whole = self.load("train").model if config.distill or "self" in self.corpora else None
        objective = Distillation(whole, config.distill) if config.distill else LanguageModelling()
        self.fit("finetune", before.model, config, objective, resume, before=before, whole=whole)

    def fit(
        self,
        stage: str,
        model: Transformer,
        config: TrainConfig,
        objective: Objective,
        resume: bool,
        at_end: Callable[[Transformer], None] = lambda model: None,
        before: SavedModel | None = None,
        whole: Transformer | None = None,
    ) -> None:
        """Train `model` as one stage of the run, which reads on where the stage `before` it has stopped."""
        if resume and self.finished(stage):
            say(f"{stage}: already finished")
            return
        text, limit = self.text, config.evaluate_tokens
        if config.evaluate_every and 0 < limit < len(text.valid):
            say(f"{stage}: validations read the first {limit:,} of {len(text.valid):,} tokens; see evaluate_tokens")
        B, steps = (before and before.metadata.get("read")) or (config.B, 0)
        read = steps * B // config.B  # another B cuts the text elsewhere, so that the place is not quite the same
        with (EventLog if self.events else MetricsLog)(self.directory.metrics) as log:
            trainer = Trainer.start(
                model,
                self.segments(stage, model.config, read, whole),
                config,
                objective,
                self.generator(stage),
                stage=stage,
                path=self.directory.checkpoint(stage),
                metadata=model_metadata(model, text.tokenizer, self.config.data, text.digest)
                | {"seed": self.config.seed, "read": (config.B, read + config.steps)}
                | self.directory.origin(stage),
                log=log,
                validate=lambda model: evaluate(model, text.valid, text.characters["valid"], limit),
                go_on=self.resume_command,
                at_end=at_end,
            )
            if resume and trainer.path.exists():
                trainer.restore()
                say(f"{stage}: going on after step {trainer.step}")
            else:
                log.truncate(before.metadata["metrics_length"] if before else 0)
            left = config.steps - trainer.step
            if config.warmup > config.steps:
                say(f"{stage}: the learning rate rises over {config.warmup} steps, more than there are")
            with announced(self.ops, stage, run=stage == "train") as compiled:
                seconds = rehearse(model, objective, trainer.segments, text, config, trainer.step)
                if compiled and stage == "train" and not self.ops.on_device:
                    self.rehearse()  # later stages and commands then find all kernels; a GPU compiles all at once
            texts = text.name if stage == "train" or self.corpora == ["run"] else ",".join(self.corpora)
            tokens = f"{config.B} × {model.config.T} tokens on {texts}"
            size = f"{count_parameters(model.config):,} parameters"
            taught = objective.teacher.config if isinstance(objective, Distillation) else None
            is_frozen = stage == "gate" and self.config.gate.frozen
            memory = f"about {training_bytes(model.config, config.B, taught, is_frozen) / 1e6:,.0f} MB"
            say(f"{stage}: {left} steps of {tokens}, about {duration(seconds)}; {size}, {memory}")
            trainer.run()

    def rehearse(self) -> float:
        """Compile all kernels of a run; return about how many seconds its stages take.

        The smaller model is taken to have half of the heads, or the target's.
        """
        config, text, model, seconds = self.config, self.text, self.new_model(), 0.0
        gated, objective = with_new_gates(model, config.gate, 0)
        closed = dataclasses.replace(gated, params=dict(gated.params))
        if config.gate.has_target:
            hit_target(closed)
        else:
            settle(closed, sum(gated.config.parts) // 2)
        stages = {"train": model, "gate": gated, "finetune": remove_closed_heads(closed)}
        for stage, trained in stages.items():
            minimised = objective if stage == "gate" else LanguageModelling()
            settings = self.training(stage)
            seconds += rehearse(trained, minimised, self.segments(stage, trained.config), text, settings)
        list(generate(stages["finetune"], text.test[:2], 2, np.random.default_rng(0)))  # the report has a sample
        return seconds

    def announce(self) -> None:
        """Compile all kernels of a run and say what it will do."""
        config = self.config
        gates = f"by {config.gate.criterion}" if config.gate.criterion else config.gate_train.steps
        with announced(self.ops, "run", run=True):
            seconds = self.rehearse()
        say(
            f"run: train {config.train.steps}, gate {gates}, prune, finetune {config.finetune.steps} "
            f"steps, then a report; all in {self.directory.path}, about {duration(seconds)} on this machine"
        )

    def new_model(self) -> Transformer:
        """Return the configured model with new weights."""
        config = self.model_config
        return Transformer(config, init_parameters(config, self.generator("init")), ops=self.ops)

    def training(self, stage: str) -> TrainConfig:
        """Return the settings by which a stage trains the weights."""
        return getattr(self.config, "gate_train" if stage == "gate" else stage)

    def segments(self, stage: str, model: ModelConfig, read: int = 0, whole: Transformer | None = None) -> Segments:
        """Return what a stage reads after `read` steps of those before: the training split.

        Of several texts in gate.repair_corpus gates and healing read equally much, short ones again and again; the rows
        of a batch are divided among them. Raises UsageError if there are fewer rows than texts, or a text is too short.
        """
        B, texts, text = self.training(stage).B, self.corpora, self.text.train
        if stage != "train" and texts != ["run"]:
            if len(texts) > B:
                raise UsageError(
                    f"B of stage {stage} must be at least {len(texts)}, to read {','.join(texts)}; got {B}"
                )
            parts = self.mixed(LONGEST, whole)
            text = np.concatenate([np.resize(part, max(map(len, parts))) for part in parts])
        return Segments(text, B, model.T, read)

    def generator(self, purpose: str) -> np.random.Generator:
        """Return the random generator of the initialisation or of a stage, derived from the run's seed."""
        return np.random.default_rng([self.config.seed, ("init", *STAGES).index(purpose)])
