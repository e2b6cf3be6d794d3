"""What a run prints: a progress bar on a terminal, plain lines elsewhere, JSON for machines."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from needle.apps.sources import Source
from needle.apps.trainer import Callback, EpochMetrics, Outcome, StepMetrics, Trainer
from needle.apps.training import Score


def figures(score: Score, unit: str) -> str:
    """Loss and accuracy, or for tokens loss and perplexity: `loss 1.302, accuracy 53.1 %`."""
    if unit == "tokens":
        return f"loss {score.loss:.3f}, perplexity {score.perplexity:.1f}"
    return f"loss {score.loss:.3f}, accuracy {100 * score.accuracy:.1f} %"


def duration(seconds: float) -> str:
    """Seconds as people say them: `42.1 s`, `4 min 05 s`, `1 h 02 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def closing(source: Source, measured: Mapping[str, Score], unit: str, cut: int | None) -> str:
    """`synthetic images: test accuracy 59.31 % (cut short at 2 batches)`."""
    found = ", ".join(result(split, score, unit) for split, score in measured.items())
    short = f" (cut short at {count(cut, 'batch', 'batches')})" if cut is not None else ""
    return f"{source.name}: {found}{short}"


def result(split: str, score: Score, unit: str) -> str:
    """What a split is judged by: `test accuracy 59.31 %` or `valid perplexity 98.7`."""
    if unit == "tokens":
        return f"{split} perplexity {score.perplexity:.1f}"
    return f"{split} accuracy {100 * score.accuracy:.2f} %"


def count(n: int, one: str, many: str) -> str:
    """`1 epoch`, `2 epochs`."""
    return f"{n} {one if n == 1 else many}"


class Report(Callback):
    """Prints a run for people: results to stdout, a progress bar and warnings to stderr.

    The bar is for terminals; anywhere else there is a line for each epoch.

    Args:
        quiet: print no results, for one who prints them otherwise.

    Attributes:
        unit: what is counted, "images" or "tokens".
        trainer: asked to stop where stdout cannot be written; while it is None, that is an OSError.
        failure: why stdout cannot be written; nothing is printed from then on.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.trainer: Trainer | None = None
        self.failure: OSError | None = None
        self._stderr = Console(highlight=False, soft_wrap=True, stderr=True)
        self._bar: tuple[str, Progress, TaskID] | None = None
        self._epochs = 0
        self.unit = "images"

    def line(self, text: str) -> None:
        """Print one line of results."""
        if not self.quiet:
            self._print(text)

    def json(self, record: Mapping[str, Any]) -> None:
        """Print one line of results for machines, quiet or not."""
        self._print(json_line(record))

    def _print(self, text: str) -> None:
        if self.failure is not None:
            return
        try:
            print(text, flush=True)
        except OSError as error:
            if self.trainer is None:
                raise
            # An exception here would lose the steps since the last checkpoint.
            self.failure, self.trainer.stop = error, True
            discard_stdout()

    def warn(self, text: str) -> None:
        """Print a warning that cannot be overlooked."""
        self._stderr.print(f"WARNING: {text}", style="bold yellow", markup=False)

    # ---- a run ---------------------------------------------------------------------------------

    def on_start(self, trainer: Trainer) -> None:
        self._epochs = trainer.epochs
        self.unit = trainer.task.unit

    def on_step(self, metrics: StepMetrics) -> None:
        title = f"epoch {metrics.epoch}/{self._epochs}"
        self.show(title, metrics.batches, metrics.batch, metrics.score, metrics.unit)

    def on_measure(self, split: str, batches: int, score: Score) -> None:
        self.show(split, batches, score.steps, score, self.unit)

    def on_epoch(self, metrics: EpochMetrics) -> None:
        self.hide()
        train, unit = metrics.train, metrics.unit
        rate, seconds = f"{train.rate:,.0f} {unit}/s", duration(train.seconds)
        others = "".join(f"; {result(*item, unit)}" for item in metrics.measured.items())
        title = f"epoch {metrics.epoch}/{metrics.epochs}"
        self.line(f"{title}: {figures(train, unit)}, {rate}, {seconds}{others}")

    def on_close(self) -> None:
        self.hide()

    # ---- the bar -------------------------------------------------------------------------------

    def show(self, title: str, total: int, done: int, score: Score, unit: str) -> None:
        """Move the bar, or begin a new one for a new title."""
        if not self._stderr.is_terminal:
            return
        if self._bar is None or self._bar[0] != title:
            self.hide()
            self._bar = (title, *self._begin(title, total))
        text = f"{figures(score, unit)}, {score.rate:,.0f} {unit}/s"
        self._bar[1].update(self._bar[2], completed=done, figures=text)

    def hide(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar[1].stop()
            self._bar = None

    def _begin(self, title: str, total: int) -> tuple[Progress, TaskID]:
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._stderr,
            transient=True,
        )
        task = progress.add_task(title, total=total, figures="")
        progress.start()
        return progress, task


class JsonReport(Callback):
    """Prints a run for machines: one JSON object a line on stdout.

    Args:
        log_every: steps between two step lines.
        report: prints them.
    """

    def __init__(self, log_every: int, report: Report) -> None:
        self.log_every, self.report = log_every, report

    def on_step(self, metrics: StepMetrics) -> None:
        if metrics.step % self.log_every == 0:
            self.report.json(metrics.record())

    def on_epoch(self, metrics: EpochMetrics) -> None:
        self.report.json(metrics.record())

    def on_end(self, outcome: Outcome) -> None:
        self.report.json(outcome.record())


def print_json(record: Mapping[str, Any]) -> None:
    """Print a JSON object as one line, as `json_line` writes it."""
    print(json_line(record), flush=True)


def json_line(record: Mapping[str, Any]) -> str:
    """A JSON object without a line break; NaN and infinities, which JSON lacks, become null."""
    plain = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()
    }
    return json.dumps(plain, allow_nan=False)


def discard_stdout() -> None:
    """Drop what stdout could not write, and all that follows.

    Python tries again when it ends, and would end with an error of its own.
    """
    with suppress(OSError, ValueError, AttributeError):  # replaced, closed, or None
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
