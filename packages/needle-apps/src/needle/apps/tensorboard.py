"""TensorBoard event files of a run, for `--tensorboard` (extra `tensorboard`)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from needle.apps.extras import require
from needle.apps.trainer import Callback, EpochMetrics, Outcome, StepMetrics, Trainer
from needle.apps.training import Score

PURPOSE = "--tensorboard"


class TensorBoard(Callback):
    """Writes a run's figures as scalars: `step/loss`, `train/loss`, `valid/perplexity`, `lr` ...

    A resumed run adds a file; TensorBoard then drops what the older ones say of later steps.

    Args:
        folder: where the event files go; made when the first one is written.
        log_every: steps between two scalars of single steps.

    Raises:
        MissingExtraError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path, log_every: int) -> None:
        self.folder, self.log_every = folder, log_every
        self._make = require("tensorboardX", "tensorboard", PURPOSE).SummaryWriter
        self._writer: Any = None
        self._step = 0

    def on_start(self, trainer: Trainer) -> None:
        self._step = trainer.at.step
        resumed = self._step + 1 if self._step else None
        # Its own names differ by seconds: a second run within one would overwrite the first's file.
        suffix = f".{time.time_ns()}"
        self._writer = self._make(str(self.folder), purge_step=resumed, filename_suffix=suffix)

    def on_step(self, metrics: StepMetrics) -> None:
        self._step = metrics.step
        if metrics.step % self.log_every == 0:
            self._add("step/loss", metrics.loss)
            self._add("lr", metrics.lr)
            if metrics.grad_norm is not None:
                self._add("step/grad_norm", metrics.grad_norm)

    def on_epoch(self, metrics: EpochMetrics) -> None:
        self._add_scores({"train": metrics.train, **metrics.measured}, metrics.unit)
        self._writer.flush()

    def on_end(self, outcome: Outcome) -> None:
        self._add_scores(
            {f"final_{k}": score for k, score in outcome.measured.items()}, outcome.unit
        )

    def on_close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _add_scores(self, scores: Mapping[str, Score], unit: str) -> None:
        for split, score in scores.items():
            self._add(f"{split}/loss", score.loss)
            if unit == "tokens":
                self._add(f"{split}/perplexity", score.perplexity)
            else:
                self._add(f"{split}/accuracy", score.accuracy)

    def _add(self, name: str, value: float) -> None:
        self._writer.add_scalar(name, value, self._step)
