"""The training loop: the steps of `tinyprune.training.step`, with a log, a progress bar and checkpoints.

A step depends only on the parameters, the state of the optimizer and of the objective, the random generator, the
memory, and the step's number, which selects the text. All of these are in the checkpoint, together with the length of
metrics.jsonl; so a run that was killed and resumed ends with the same bits as an uninterrupted one.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyprune.config import STAGE_TABLES, TrainConfig
from tinyprune.errors import CheckpointError, Interrupted, NotFiniteError
from tinyprune.io.progress import duration, in_notebook, progress_bar, say
from tinyprune.model.parameters import Parameters
from tinyprune.model.transformer import Transformer
from tinyprune.training.checkpoints import load_checkpoint, save_checkpoint
from tinyprune.training.evaluation import Evaluation
from tinyprune.training.metrics import MetricsLog
from tinyprune.training.step import Training, train_step


@dataclass(kw_only=True)
class Trainer(Training):
    """The training of one stage, which starts at its first or its last saved step.

    Attributes:
        stage: its name, for the log and messages.
        path: the stage's checkpoint.
        metadata: saved in each checkpoint in addition to the trainer's own.
        log: metrics.jsonl.
        validate: called every `config.evaluate_every` steps, and after the last; never if that is 0.
        go_on: the command that resumes, for the message after Ctrl-C.
        at_end: called after the last step, before the last validation; again if that was interrupted.
        looked: whether the step that it starts from was validated, where that is due.
    """

    rng: np.random.Generator
    stage: str
    path: Path
    metadata: dict[str, Any]
    log: MetricsLog
    validate: Callable[[Transformer], Evaluation]
    go_on: str
    at_end: Callable[[Transformer], None] = lambda model: None
    looked: bool = True

    def run(self) -> None:
        """Train until the last step; the stage's checkpoint then says that it is finished.

        Raises:
            NotFiniteError: if the loss or the gradient is NaN or infinite; the checkpoint is the last good one.
            SaveError: if a checkpoint cannot be written; the one before is untouched.
            Interrupted: after Ctrl-C, SIGTERM or SIGHUP, once a checkpoint is saved.
        """
        every = self.config.evaluate_every
        bar = progress_bar(total=self.config.steps, initial=self.step, desc=self.stage, unit="step")
        losses: dict[str, float] = {}
        since = self.step, time.perf_counter()
        with interruptible() as signals, bar:
            if not self.looked and self.step < self.config.steps:
                since = self.log_validation(losses, since, signals)
            while self.step < self.config.steps:
                losses = self.train_step()
                bar.update()
                shown = [f"{name} {value:.3f}" for name, value in losses.items()]
                bar.set_postfix_str(" ".join(shown), refresh=False)
                if self.step == self.config.steps:
                    break
                look = bool(every) and self.step % every == 0
                # before a validation, which may take long, and which can then be stopped at once
                if self.step % self.config.checkpoint_every == 0 or look or signals.asked:
                    self.save()
                if signals.asked:
                    raise self.interrupted()
                if look:
                    since = self.log_validation(losses, since, signals)
            self.at_end(self.model)
            if every:
                self.save()
                if signals.asked:
                    raise self.interrupted()
                self.log_validation(losses, since, signals)
            else:
                self.tell(self.progress_line(losses, self.objective.describe(self.model)))
            self.save(finished=True)
            if signals.asked:
                raise self.interrupted(self.stage)

    def interrupted(self, after: str = "") -> Interrupted:
        """Build the error for a stop that the user has asked for, once all is saved: by default after this step."""
        after = after or f"step {self.step} of {self.config.steps} of {self.stage}"
        return Interrupted(f"stopped after {after}; all is saved in {self.path}; go on with: {self.go_on}")

    def log_validation(
        self, losses: dict[str, float], since: tuple[int, float], signals: "Signals"
    ) -> tuple[int, float]:
        """Evaluate on the validation split, log the result and tell the user.

        Args:
            losses: of the last step; empty if there was none.
            since: the step and the time (`time.perf_counter`) from which the speed is measured.
            signals: one that comes now ends the validation, which is made again after a resume.

        Returns:
            this step and the time, for the next line.
        """
        start = time.perf_counter()
        try:
            with signals.at_once():
                result = self.validate(self.model)
        except Stopped:
            raise self.interrupted() from None
        except NotFiniteError as error:
            raise self.not_finite(f"{error} after step {self.step}") from error
        record = {"stage": self.stage, "step": self.step, "split": "valid"}
        record |= {"loss": result.nats_per_token, "bits_per_character": result.bits_per_character}
        described = self.objective.describe(self.model)
        self.log.write(record | described)
        end = time.perf_counter()
        done, left = self.step - since[0], self.config.steps - self.step
        parts = self.progress_line(losses, described, result)
        if done:
            step = (start - since[1]) / done
            parts.append(f"{self.config.B * self.model.config.T / step:,.0f} tokens a second")
            seconds = left * step + validations(self.step, self.config) * (end - start)
            parts += [f"{duration(seconds)} left"] if left else []
        self.tell(parts)
        return self.step, end

    def tell(self, parts: list[str]) -> None:
        """Write a line; in a notebook its bars stay in the cell, and lines would bury them."""
        if not in_notebook():
            say(f"{self.stage}: {', '.join(parts)}")

    def progress_line(
        self, losses: dict[str, float], described: dict[str, Any], valid: Evaluation | None = None
    ) -> list[str]:
        """Return what the user is told of a step, and of its validation, in parts."""
        parts = [f"step {self.step} of {self.config.steps}"]
        if losses:
            parts.append(f"training loss {losses['loss']:.3f}")
        if valid is not None:
            bits = valid.bits_per_character
            parts.append(f"validation loss {valid.nats_per_token:.3f}")
            words = f"perplexity {valid.perplexity:.4g} per word"
            parts.append(words if bits is None else f"{bits:.3f} bits per character")
        if "heads_open" in described:
            parts.append(f"{described['heads_open']} heads open")
        if "blocks_open" in described:
            parts.append(f"{described['blocks_open']} blocks")
        return parts

    def train_step(self) -> dict[str, float]:
        """Make one update and log it; return the objective's losses."""
        try:
            losses, norm, lr = train_step(self)
        except NotFiniteError as error:
            raise self.not_finite(str(error)) from error
        if self.step % self.config.log_every == 0 or self.step == self.config.steps:
            record = {"stage": self.stage, "step": self.step, "split": "train"}
            record |= losses | {"lr": lr, "grad_norm": norm}
            self.log.write(record | self.objective.describe(self.model))
        return losses

    def not_finite(self, what: str) -> NotFiniteError:
        """Build the error for a NaN or an infinity: where it appeared, what is saved, and what to do."""
        table, last = STAGE_TABLES[self.stage], f"{self.path} holds the last checkpoint"
        kept = last if self.path.exists() else "no checkpoint has been saved yet"
        return NotFiniteError(
            f"{self.stage}: {what}; {kept}; lower lr (or clip at a smaller norm, or warm up "
            f"longer) in table [{table}] of the run's config.toml, then go on with: {self.go_on}"
        )

    def save(self, finished: bool = False) -> None:
        """Write the stage's checkpoint.

        Raises:
            NotFiniteError: if a parameter is NaN or infinite; the checkpoint before is kept.
            SaveError: if it cannot be written; the checkpoint before is untouched.
        """
        params, to_host = self.model.host_params(), self.model.ops.to_host
        for name, value in params.items():
            if not np.isfinite(value).all():
                raise self.not_finite(f"{name} is not finite after step {self.step}")
        tensors = {f"params.{name}": value for name, value in params.items()}
        state = self.optimizer.state()
        tensors |= {f"optimizer.{name}": to_host(value) for name, value in state.items()}
        tensors |= {f"objective.{name}": value for name, value in self.objective.state().items()}
        tensors |= {f"memory.{i}": to_host(value) for i, value in enumerate(self.memory or [])}
        own = {"stage": self.stage, "step": self.step, "finished": finished}
        own |= {"training": self.config.to_dict(), "generator": self.rng.bit_generator.state}
        own["metrics_length"] = self.log.sync()
        save_checkpoint(self.path, tensors, self.metadata | own)

    def restore(self) -> None:
        """Continue from the stage's checkpoint.

        Raises:
            CheckpointError: if it cannot be read or belongs to another model, optimizer or stage.
        """
        tensors, metadata = load_checkpoint(self.path, mapped=True)
        if metadata.get("stage") != self.stage:
            raise CheckpointError(f"{self.path} is of stage {metadata.get('stage')!r}, not {self.stage!r}")
        to_device = self.model.ops.to_device
        groups: dict[str, Parameters] = {"params": {}, "optimizer": {}, "objective": {}, "memory": {}}
        for name, value in tensors.items():
            group, _, rest = name.partition(".")
            groups.get(group, {})[rest] = value
        for name, value in self.model.params.items():
            found = getattr(groups["params"].get(name), "shape", None)
            if found != value.shape:
                raise CheckpointError(
                    f"{self.path} does not fit the configured model at {name}: needed {value.shape}, "
                    f"found {found}; resume with the run's own config.toml"
                )
            self.model.params[name] = to_device(groups["params"][name].astype(value.dtype))
        self.optimizer.load_state(groups["optimizer"])
        self.objective.load_state(groups["objective"])
        memory = groups["memory"]
        self.memory = [to_device(memory[str(i)]) for i in range(len(memory))] or None
        self.step = metadata["step"]
        every = self.config.evaluate_every
        self.looked = metadata["finished"] or not every or self.step % every > 0
        self.rng = np.random.default_rng()
        self.rng.bit_generator.state = metadata["generator"]
        self.log.truncate(metadata["metrics_length"])


def validations(step: int, config: TrainConfig) -> int:
    """Return how often the validation split will be evaluated after `step`."""
    every = config.evaluate_every
    return 1 + max((config.steps - 1) // every - step // every, 0) if every else 0


class Stopped(KeyboardInterrupt):
    """A signal that came while the work could be stopped at once."""


class Signals:
    """Whether the user has asked for a stop, by Ctrl-C, SIGTERM or SIGHUP."""

    def __init__(self) -> None:
        self.asked = 0  # the number of the signal
        self.now = False

    def handler(self, number: int, _frame: Any) -> None:
        """Remember the signal; raise where it may stop the work at once, or if it is the second one."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = number
        if self.now:
            raise Stopped
        # os.write, not print: a handler may run in the middle of another write, and the terminal may be closed.
        with suppress(OSError):
            os.write(2, b"\ntinyprune: stopping after this step; once more stops at once\n")

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """In this context a signal raises Stopped; so does one that came after the loop has last asked."""
        self.now = True
        try:
            if self.asked:
                raise Stopped
            yield
        finally:
            self.now = False


@contextmanager
def interruptible() -> Iterator[Signals]:
    """Defer signals until the loop asks for them between steps; a second one stops at once.

    One that comes after the loop has last asked does what it would have done before.
    """
    signals = Signals()
    # Signals reach the main thread only; Windows has no SIGHUP.
    before = {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name) and threading.current_thread() is threading.main_thread():
            before[getattr(signal, name)] = signal.getsignal(getattr(signal, name))
    for number, previous in before.items():
        if previous is not signal.SIG_IGN or number == signal.SIGINT:  # as nohup has asked for
            signal.signal(number, signals.handler)
    try:
        yield signals
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
    if signals.asked:
        signal.raise_signal(signals.asked)
