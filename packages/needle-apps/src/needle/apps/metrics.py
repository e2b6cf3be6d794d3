"""What a run measures, row by row, in two files of the same content: metrics.jsonl and metrics.csv.

A row is written whole and flushed at once, so a killed run has every row up to its end. A run that
goes on from an earlier step first drops the rows after that step: they come again.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from needle.apps.training import Score

JSONL = "metrics.jsonl"
CSV = "metrics.csv"

STEP, EPOCH, END = "step", "epoch", "end"


class MetricsError(ValueError):
    """A metrics file is not one."""


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        kind: "step" (the loss of one step of training), "epoch" (a whole pass over a split, after
            which the run went on) or "end" (over a split, with the final weights).
        split: "train", "valid" or "test".
        epoch: its number, from 1.
        step: updates of the whole run so far.
        seconds: time spent training so far.
        lr: the learning rate.
        loss: nats per example (image or token).
        accuracy: the fraction of examples whose highest logit is their target's.
        perplexity: exp(loss); of tokens only.
        rate: examples per second.
        grad_norm: the gradient's norm before clipping.
    """

    kind: str
    split: str
    epoch: int
    step: int
    seconds: float
    lr: float | None = None
    loss: float | None = None
    accuracy: float | None = None
    perplexity: float | None = None
    rate: float | None = None
    grad_norm: float | None = None

    def measured(self, score: Score, unit: str) -> Self:
        """The row with what a pass over a split measured; only "tokens" have a perplexity."""
        return replace(
            self,
            loss=score.loss,
            accuracy=score.accuracy,
            perplexity=score.perplexity if unit == "tokens" else None,
            rate=score.rate,
        )


COLUMNS = tuple(each.name for each in fields(Row))


class MetricsLog:
    """Appends rows to the two files of a folder.

    Args:
        folder: where metrics.jsonl and metrics.csv are, or will be.
        step: the run goes on from here: rows of later steps are dropped. 0 begins anew.
        epoch: epochs that are whole: rows of later epochs' ends are dropped.

    Raises:
        OSError: the files cannot be written.
        MetricsError: metrics.jsonl is not one.
    """

    def __init__(self, folder: Path, step: int = 0, epoch: int = 0) -> None:
        old = read(folder) if step > 0 else []
        kept = [row for row in old if _remains(row, step, epoch)]
        _replace(folder / JSONL, "".join(map(_json_line, kept)))
        _replace(folder / CSV, ",".join(COLUMNS) + "\n" + "".join(map(_csv_line, kept)))
        self._jsonl = (folder / JSONL).open("a", encoding="utf-8")
        self._csv = (folder / CSV).open("a", encoding="utf-8")

    def write(self, row: Row) -> None:
        """Append a row to both files.

        Raises:
            OSError: the disk is full.
        """
        for file, line in ((self._jsonl, _json_line(row)), (self._csv, _csv_line(row))):
            file.write(line)
            file.flush()

    def close(self) -> None:
        """Close the files; a second time does nothing."""
        self._jsonl.close()
        self._csv.close()


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


def select(rows: Iterable[Row], kind: str, split: str) -> list[Row]:
    """The rows of one kind and split."""
    return [row for row in rows if row.kind == kind and row.split == split]


def splits(rows: Sequence[Row]) -> list[str]:
    """The splits that rows speak of, in the order train, valid, test."""
    order = {"train": 0, "valid": 1, "test": 2}
    return sorted({row.split for row in rows}, key=lambda name: (order.get(name, 3), name))


def _remains(row: Row, step: int, epoch: int) -> bool:
    """Whether a row still holds when a run goes on."""
    if row.kind == STEP:
        return row.step <= step
    # A save may lie between an epoch's last step and its measurement: steps do not tell.
    return row.kind == EPOCH and row.epoch <= epoch


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _json_line(row: Row) -> str:
    """A row as JSON without what is None; JSON has no infinity, so that is left out too."""
    known = {name: value for name, value in asdict(row).items() if _is_finite(value)}
    return json.dumps(known, allow_nan=False) + "\n"


def _is_finite(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _csv_line(row: Row) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(getattr(row, name) for name in COLUMNS)
    return text.getvalue()


def _parse(path: Path, number: int, line: bytes) -> Row:
    try:
        row = Row(**json.loads(line))
        texts, numbers = (row.kind, row.split), (row.epoch, row.step, row.seconds)
        optional = [getattr(row, name) for name in COLUMNS[5:] if getattr(row, name) is not None]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("kind and split must be strings")
        if not all(type(value) in (int, float) for value in (*numbers, *optional)):
            raise TypeError("the other values must be numbers")
    except (ValueError, TypeError, RecursionError) as error:
        raise MetricsError(f"{path}: line {number} is not a row of metrics: {error}") from error
    return row
