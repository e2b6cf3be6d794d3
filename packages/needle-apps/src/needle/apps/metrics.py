"""What a run measures, row by row, in two files of the same content: metrics.jsonl and metrics.csv.

A row is what `--json` prints: an "event", `step`, `epoch` or `end`, and its figures (see
`trainer.StepMetrics`, `EpochMetrics`, `Outcome`). It is written whole and flushed at once, so a
killed run has every row up to its end. A run that goes on from an earlier step first drops the rows
after that step: they come again.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from needle.apps.trainer import Callback, EpochMetrics, Outcome, StepMetrics, Trainer

JSONL = "metrics.jsonl"
CSV = "metrics.csv"

STEP, EPOCH, END = "step", "epoch", "end"
SPLITS = ("train", "valid", "test")
FIGURES = ("loss", "accuracy", "perplexity")
COLUMNS = (
    *("event", "epoch", "step", "batch", "lr", "loss", "grad_norm"),
    *(f"{split}_{figure}" for split in SPLITS for figure in FIGURES),
    *("rate", "best", "seconds"),
)
Row = dict[str, Any]


class MetricsError(ValueError):
    """A metrics file is not one."""


class MetricsLog(Callback):
    """Writes the two files of a run's folder.

    Args:
        folder: where they go.
        log_every: steps between two rows of single steps.
    """

    def __init__(self, folder: Path, log_every: int) -> None:
        self.folder, self.log_every = folder, log_every
        self._files: tuple[io.TextIOWrapper, ...] = ()

    def on_start(self, trainer: Trainer) -> None:
        """Begin the files, or drop what comes again.

        Raises:
            OSError: they cannot be written.
            MetricsError: metrics.jsonl is damaged.
        """
        at = trainer.at
        kept = [row for row in read(self.folder) if _remains(row, at.step, at.epoch)]
        _replace(self.folder / JSONL, "".join(map(json_line, kept)))
        _replace(self.folder / CSV, ",".join(COLUMNS) + "\n" + "".join(map(_csv_line, kept)))
        self._files = tuple(
            (self.folder / name).open("a", encoding="utf-8") for name in (JSONL, CSV)
        )

    def on_step(self, metrics: StepMetrics) -> None:
        if metrics.step % self.log_every == 0:
            self._write(metrics.record())

    def on_epoch(self, metrics: EpochMetrics) -> None:
        self._write(metrics.record())

    def on_end(self, outcome: Outcome) -> None:
        self._write(outcome.record())

    def on_close(self) -> None:
        for file in self._files:
            file.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        for file, line in zip(self._files, (json_line(row), _csv_line(row)), strict=True):
            file.write(line)
            file.flush()


def read(folder: Path) -> list[Row]:
    """The rows of a folder's metrics.jsonl; none where there is no such file.

    A last line without its end is what a kill in the middle of a write leaves: it is no row.

    Raises:
        OSError: the file cannot be read.
        MetricsError: a line is not a row.
    """
    path = folder / JSONL
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    return [_parse(path, number, line) for number, line in enumerate(lines, start=1)]


def points(rows: Iterable[Row], event: str, x: str, y: str) -> list[tuple[float, float]]:
    """The pairs (row[x], row[y]) of one event's rows, where both are known."""
    chosen = [row for row in rows if row["event"] == event]
    return [(row[x], row[y]) for row in chosen if None not in (row.get(x), row.get(y))]


def json_line(row: Mapping[str, Any]) -> str:
    """A row as a line of JSON; NaN and infinities, which JSON lacks, become null."""
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    return json.dumps(plain, allow_nan=False) + "\n"


def _csv_line(row: Mapping[str, Any]) -> str:
    text = io.StringIO()
    # The end's "epochs" are those of the last epoch.
    values = {"epoch": row.get("epochs"), **row}
    csv.writer(text, lineterminator="\n").writerow(values.get(name) for name in COLUMNS)
    return text.getvalue()


def _remains(row: Row, step: int, epoch: int) -> bool:
    """Whether a row still holds for a run that stands at a step, after so many whole epochs."""
    if row["event"] == STEP:
        return bool(row["step"] <= step)
    # A save may lie between an epoch's last step and its measurement: steps do not tell.
    return bool(row["event"] == EPOCH and row["epoch"] <= epoch)


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _parse(path: Path, number: int, line: bytes) -> Row:
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise TypeError("it is not an object")
        needed = {STEP: ("epoch", "step"), EPOCH: ("epoch", "step"), END: ()}[row["event"]]
        figures = [row[name] for name in needed]
        figures += [v for name in COLUMNS[1:] if (v := row.get(name)) is not None]
        wrong = [value for value in figures if not isinstance(value, int | float)]
        if wrong:
            raise TypeError(f"{wrong[0]!r:.50} is not a number")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise MetricsError(f"{path}: line {number} is not a row of metrics: {error}") from error
    return row
