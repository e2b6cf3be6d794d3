"""The training loop: epochs of steps, a schedule, measuring, checkpoints, and who is told of it.

```
for each epoch:
    for each batch of the training split:      one step: loss, backward, clip, update
        tell on_step; save, if it is time; stop, if asked to
    measure; tell on_epoch; save
```

All that a run has besides its weights is in `Progress`, the optimizer and NumPy's global
generator. `Trainer.state` gathers it, `Trainer.restore` puts it back, and the run goes on bit for
bit from there, in the middle of an epoch too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from needle import Tensor
from needle.apps.checks import check_clip, check_count, check_function, check_kind
from needle.apps.schedules import Schedule, constant
from needle.apps.tasks import Task
from needle.apps.training import Score, Step, model_device, update
from needle.checks import NOT_NEGATIVE, check_number
from needle.optim import Optimizer


class DivergedError(ArithmeticError):
    """The loss is no longer a number."""


class StoppedError(Exception):
    """The run was asked to stop, and did, after saving."""


# ---- what a run tells ----------------------------------------------------------------------------


@dataclass(frozen=True)
class StepMetrics:
    """What is known after a step.

    Attributes:
        epoch: its number, from 1.
        step: updates of the whole run so far, this one included.
        batch: batches of the epoch so far, this one included.
        batches: how many the epoch has.
        lr: the learning rate of the step.
        loss: the step's mean loss of an example, nats: what training descends.
        grad_norm: the gradient's norm before clipping; None where nothing is clipped.
        score: the epoch so far.
        seconds: time of the run so far, earlier parts of a resumed one included.
        unit: what an example is: "images" or "tokens".
    """

    epoch: int
    step: int
    batch: int
    batches: int
    lr: float
    loss: float
    grad_norm: float | None
    score: Score
    seconds: float
    unit: str

    def record(self) -> dict[str, Any]:
        """The metrics as one flat JSON object, as `--json` and metrics.jsonl hold them."""
        return {
            "event": "step",
            "epoch": self.epoch,
            "step": self.step,
            "batch": self.batch,
            "lr": self.lr,
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "rate": self.score.rate,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class EpochMetrics:
    """What is known after an epoch.

    Attributes:
        epoch: its number, from 1.
        epochs: how many the run has.
        step: updates of the whole run so far.
        lr: the learning rate of its last step.
        train: the training split, measured while the weights were changing.
        measured: the other splits that were measured after it, by name.
        best: the validation loss is lower than ever before; False without a validation split.
        seconds: time of the run so far, earlier parts of a resumed one included.
        unit: what an example is: "images" or "tokens".
    """

    epoch: int
    epochs: int
    step: int
    lr: float
    train: Score
    measured: Mapping[str, Score]
    best: bool
    seconds: float
    unit: str

    def record(self) -> dict[str, Any]:
        """The metrics as one flat JSON object, as `--json` and metrics.jsonl hold them."""
        return {
            "event": "epoch",
            "epoch": self.epoch,
            "step": self.step,
            "lr": self.lr,
            **split_record("train", self.train, self.unit),
            **measured_record(self.measured, self.unit),
            "rate": self.train.rate,
            "best": self.best,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        measured: every split but the training one, by name, measured with the final weights.
        epochs: epochs trained.
        best_epoch: the one with the lowest validation loss; None without a validation split.
        stopped_early: validation had not improved for `early_stop` epochs; the weights are then
            those of the best epoch.
        seconds: time of the run, earlier parts of a resumed one included.
        unit: what an example is: "images" or "tokens".
    """

    measured: Mapping[str, Score]
    epochs: int
    best_epoch: int | None
    stopped_early: bool
    seconds: float
    unit: str

    def record(self) -> dict[str, Any]:
        """The outcome as one flat JSON object."""
        return {
            "event": "end",
            "epochs": self.epochs,
            "best_epoch": self.best_epoch,
            "stopped_early": self.stopped_early,
            **measured_record(self.measured, self.unit),
            "seconds": self.seconds,
        }


def split_record(split: str, score: Score, unit: str) -> dict[str, float]:
    """`train_loss`, and `train_accuracy` or, for tokens, `train_perplexity`."""
    if unit == "tokens":
        return {f"{split}_loss": score.loss, f"{split}_perplexity": score.perplexity}
    return {f"{split}_loss": score.loss, f"{split}_accuracy": score.accuracy}


def measured_record(measured: Mapping[str, Score], unit: str) -> dict[str, float]:
    """The records of several splits as one."""
    record: dict[str, float] = {}
    for split, score in measured.items():
        record |= split_record(split, score, unit)
    return record


class Callback:
    """Is told how a run goes; override what you need.

    An exception of a callback ends the run; `on_close` comes however it ends. A checkpoint may
    follow each call: what is written should be flushed by then.
    """

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step.

        `trainer.at.step` is above 0 in a resumed run: what was recorded of later steps is void,
        they come again.
        """

    def on_step(self, metrics: StepMetrics) -> None:
        """After every step of training."""

    def on_measure(self, split: str, batches: int, score: Score) -> None:
        """After every batch of measuring a split of so many batches; score is what it is so far."""

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """After every epoch, measured."""

    def on_end(self, outcome: Outcome) -> None:
        """After the whole run."""

    def on_close(self) -> None:
        """The run is over, was stopped or has failed: close files."""


class Checkpointer:
    """Where a Trainer keeps its state: this one nowhere, `checkpoints.CheckpointFolder` on disk."""

    def due(self, step: int) -> bool:
        """Whether it is time to save in the middle of an epoch."""
        return False

    def save(self, trainer: Trainer, best: bool = False) -> None:
        """Keep the trainer's state; `best`: as the best epoch's too."""

    def restore_best(self, trainer: Trainer) -> None:
        """Give the model the weights of the best epoch."""


# ---- what a run is -------------------------------------------------------------------------------


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        epoch: epochs that are whole, measured and told.
        batch: batches done of the epoch after those.
        step: updates in all.
        score: the training score of those batches.
        best_loss: the lowest validation loss of an epoch.
        best_epoch: its number, from 1; 0 before there is one.
        seconds: time of the run.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    score: Score = field(default_factory=Score)
    best_loss: float = math.inf
    best_epoch: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class TrainingState:
    """All that a run needs to go on, besides the model's parameters and buffers.

    Attributes:
        progress: where it stands.
        optimizer: the optimizer's `state_dict`.
        hidden: the recurrent state after the last step: nothing, h, or h and c.
        generator: the state of NumPy's global generator.
        order: its state when the data order of the epoch was drawn.
    """

    progress: Progress
    optimizer: Mapping[str, Any]
    hidden: tuple[np.ndarray[Any, Any], ...]
    generator: dict[str, Any]
    order: dict[str, Any]


class Trainer:
    """Trains a task's model, tells callbacks about it, and can be interrupted at any step.

    Draws from NumPy's global generator (data order, dropout) and never seeds it.

    Args:
        task: the model and its data.
        opt: updates the model's parameters; its `lr` is set before every step.
        epochs: how many.
        schedule: the factor of `lr` at a time in epochs; 1 when None.
        lr: the base rate; `opt.lr` as it is when None.
        clip: the largest gradient norm of an update; None for no limit.
        early_stop: stop after so many epochs without a better validation loss; None for never.
        callbacks: told in this order.
        checkpoints: keeps the state; None keeps nothing.

    Attributes:
        at: where the run stands.
        hidden: the recurrent state after the last step; None at the start of an epoch.
        order: NumPy's generator as it was when the epoch's data order was drawn.
        stop: set it, from a signal handler or a callback, and the run saves and raises
            StoppedError after the step at hand.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a number is out of range, or early_stop without a validation split.
    """

    def __init__(
        self,
        task: Task,
        opt: Optimizer,
        epochs: int,
        schedule: Schedule | None = None,
        *,
        lr: float | None = None,
        clip: float | None = None,
        early_stop: int | None = None,
        callbacks: Sequence[Callback] = (),
        checkpoints: Checkpointer | None = None,
    ) -> None:
        _check_parts(task, opt, schedule, callbacks, checkpoints)
        _check_numbers(epochs, lr, clip, early_stop)
        check_early_stop(early_stop, task.splits)
        self.task, self.opt, self.epochs = task, opt, epochs
        self.schedule = schedule or constant()
        self.lr = float(opt.lr if lr is None else lr)  # type: ignore[attr-defined]
        self.clip, self.early_stop = clip, early_stop
        self.callbacks, self.checkpoints = tuple(callbacks), checkpoints or Checkpointer()
        self.at = Progress()
        self.hidden: Any = None
        self.order = np.random.get_state(legacy=False)
        self.stop = False
        self._clock = 0.0  # perf_counter() when the run would have begun, had it never paused

    def run(self) -> Outcome:
        """Train from where the run stands to its end.

        Raises:
            StoppedError: `stop` was set.
            DivergedError: a loss became infinite or NaN.
            OSError: the state could not be saved.
        """
        self._clock = time.perf_counter() - self.at.seconds
        try:
            self._tell("on_start", self)
            self._save()  # now, not after an hour, it shows whether there is room
            measured: Mapping[str, Score] = {}
            while not self.finished:
                measured = self._epoch()
            outcome = self._conclude(measured)
            self._tell("on_end", outcome)
            return outcome
        finally:
            self._tell("on_close")

    # ---- an epoch ----------------------------------------------------------------------------

    def _epoch(self) -> Mapping[str, Score]:
        """Train once on the training data, or on what is left of it; measure, tell and save."""
        self._train()
        # Without a validation split the test split shows how things go; nothing is chosen by it.
        split = "valid" if "valid" in self.task.splits else "test"
        try:
            measured = {split: self._measure(split)}
        except StoppedError:
            self._save()
            raise
        metrics = self._finish(measured)
        self._tell("on_epoch", metrics)
        self._save(metrics.best)
        return measured

    def _train(self) -> None:
        batches = self.task.batches("train")
        steps = self._steps()
        began = time.perf_counter() - self.at.score.seconds
        self.task.model.train()
        for step in steps:
            metrics = self._step(step, batches, began)
            self._tell("on_step", metrics)
            if self.stop:
                self._save()
                raise self._stopped()
            if self.checkpoints.due(self.at.step):
                self._save()

    def _steps(self) -> Iterator[Step]:
        """The epoch's steps, from `at.batch` on, in the order drawn when the epoch began."""
        if self.at.batch == 0:
            self.order = np.random.get_state(legacy=False)
            return self.task.steps("train")
        now = np.random.get_state(legacy=False)
        np.random.set_state(self.order)
        steps = self.task.steps("train", self.at.batch, self.hidden)
        np.random.set_state(now)
        return steps

    def _step(self, step: Step, batches: int, began: float) -> StepMetrics:
        """Update the model by one batch's gradient."""
        at = self.at
        lr = self.lr * self.schedule(at.epoch + at.batch / batches)
        self.opt.lr = lr  # type: ignore[attr-defined]
        loss = self.task.loss_fn(step.logits, step.targets)
        value = loss.item()
        if not math.isfinite(value):
            raise DivergedError(
                f"train: loss is not finite: epoch {at.epoch + 1}, batch {at.batch + 1}: "
                "lower the learning rate"
            )
        norm = update(loss if step.weight == 1 else loss * step.weight, self.opt, self.clip)
        now = time.perf_counter()
        at.score = at.score.plus(step, value, now - began)
        at.batch, at.step, at.seconds = at.batch + 1, at.step + 1, now - self._clock
        self.hidden = step.state
        return StepMetrics(
            at.epoch + 1,
            at.step,
            at.batch,
            batches,
            lr,
            value,
            norm,
            at.score,
            at.seconds,
            self.task.unit,
        )

    def _measure(self, split: str) -> Score:
        batches = self.task.batches(split)

        def observe(score: Score) -> None:
            self._tell("on_measure", split, batches, score)
            if self.stop:
                raise self._stopped()

        return self.task.measure(split, observe)

    def _finish(self, measured: Mapping[str, Score]) -> EpochMetrics:
        """Count the epoch, and make ready for the next."""
        at, train = self.at, self.at.score
        at.epoch, at.batch, at.score, self.hidden = at.epoch + 1, 0, Score(), None
        at.seconds = time.perf_counter() - self._clock
        best = "valid" in measured and measured["valid"].loss < at.best_loss
        if best:
            at.best_loss, at.best_epoch = measured["valid"].loss, at.epoch
        lr = float(self.opt.lr)  # type: ignore[attr-defined]
        return EpochMetrics(
            at.epoch, self.epochs, at.step, lr, train, measured, best, at.seconds, self.task.unit
        )

    # ---- the end -----------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether no epoch is left to train."""
        return self.at.epoch >= self.epochs or self.stalled

    @property
    def stalled(self) -> bool:
        """Whether validation has not improved for `early_stop` epochs."""
        return self.early_stop is not None and self.at.epoch - self.at.best_epoch >= self.early_stop

    def _conclude(self, measured: Mapping[str, Score]) -> Outcome:
        """Measure what the last epoch did not."""
        early = self.stalled
        if early:
            self.checkpoints.restore_best(self)
            measured = {}
        found = {
            name: measured[name] if name in measured else self._measure(name)
            for name in self.task.splits
            if name != "train"
        }
        best = self.at.best_epoch or None
        return Outcome(found, self.at.epoch, best, early, self.at.seconds, self.task.unit)

    def _tell(self, event: str, *details: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(*details)

    def _stopped(self) -> StoppedError:
        epoch = min(self.at.epoch + 1, self.epochs)
        return StoppedError(f"stopped in epoch {epoch} of {self.epochs}")

    # ---- state -------------------------------------------------------------------------------

    def _save(self, best: bool = False) -> None:
        self.checkpoints.save(self, best)

    def state(self) -> TrainingState:
        """What is needed, besides the model's own state, to go on from here."""
        hidden = self.hidden if isinstance(self.hidden, tuple) else (self.hidden,)
        return TrainingState(
            replace(self.at),
            self.opt.state_dict(),
            tuple(h.numpy() for h in hidden if h is not None),
            np.random.get_state(legacy=False),
            self.order,
        )

    def restore(self, state: TrainingState) -> None:
        """Go on from a state, NumPy's global generator included; the model has its own by now.

        Raises:
            KeyError, TypeError, ValueError: the optimizer's state does not fit.
        """
        self.opt.load_state_dict(state.optimizer)
        self.at = replace(state.progress)
        device = model_device(self.task.model)
        hidden = [
            Tensor(h, device=device, dtype=h.dtype.name, requires_grad=False) for h in state.hidden
        ]
        self.hidden = None if not hidden else hidden[0] if len(hidden) == 1 else tuple(hidden)
        self.order = state.order
        np.random.set_state(state.generator)


def _check_parts(
    task: object, opt: object, schedule: object, callbacks: Any, checkpoints: object
) -> None:
    """Raises TypeError if an argument of a Trainer is of another kind."""
    check_kind("Trainer", "task", task, Task, "a Task")
    check_kind("Trainer", "opt", opt, Optimizer, "an Optimizer")
    if schedule is not None:
        check_function("Trainer", "schedule", schedule, "a function of the epoch")
    check_kind("Trainer", "callbacks", callbacks, Sequence, "a sequence of Callback objects")
    for i, each in enumerate(callbacks):
        check_kind("Trainer", f"callbacks[{i}]", each, Callback, "a Callback")
    if checkpoints is not None:
        check_kind("Trainer", "checkpoints", checkpoints, Checkpointer, "a Checkpointer")


def _check_numbers(epochs: object, lr: object, clip: object, early_stop: object) -> None:
    """Raises TypeError or ValueError for what is no number, or out of range."""
    check_count("Trainer", "epochs", epochs)
    if lr is not None:
        check_number("Trainer", "lr", lr, *NOT_NEGATIVE)
    check_clip("Trainer", clip)
    if early_stop is not None:
        check_count("Trainer", "early_stop", early_stop)


def check_early_stop(early_stop: int | None, splits: Collection[str]) -> None:
    """Stopping early needs something to be measured by.

    Raises:
        ValueError: there is no validation split.
    """
    if early_stop is not None and "valid" not in splits:
        raise ValueError(
            f"early_stop: no validation split: there are {', '.join(splits)}: need valid: "
            "--holdout sets images aside for it"
        )
