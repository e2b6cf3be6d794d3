"""Runs: a folder for each, with all that there is to know about it afterwards.

```
runs/20260131-142501-lm-zaremba-small/
    config.toml      the settings, resolved; `needle train lm --preset .../config.toml` repeats it
    run.json         name, task, state, times, versions
    metrics.jsonl    what was measured, and the same as metrics.csv (see `metrics`)
    checkpoints/     the model, and all that it takes to go on
    plots/           loss, accuracy or perplexity, learning rate ... as PNG
    tensorboard/     event files, with --tensorboard
```

A running process holds a lock on the folder's file `.lock`. The system frees it however the process
ends, so a run that says "running" and is not locked was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import numpy as np

from needle.apps import metrics
from needle.apps.metrics import Row

ROOT = Path("runs")
RECORD = "run.json"
LOCK = ".lock"
CONFIG = "config.toml"
CHECKPOINTS = "checkpoints"
PLOTS = "plots"
TENSORBOARD = "tensorboard"

RUNNING, FINISHED, STOPPED, FAILED, KILLED = "running", "finished", "stopped", "failed", "killed"
PACKAGES = ("needle-kernels", "needle-core", "needle-nn", "needle-data", "needle-apps")


class RunError(ValueError):
    """A run does not exist, is damaged, or is busy."""


@dataclass(frozen=True)
class Record:
    """What run.json holds.

    Attributes:
        name: the folder's name.
        task: "resnet9" or "lm".
        state: "running", "finished", "stopped" (by a signal) or "failed". Of a run that says
            "running" and is not, `Run.state` knows: "killed".
        started: seconds since 1970.
        seconds: time spent training, as far as it was recorded.
        epochs: how many the run was to have.
        versions: of needle's packages, Python and NumPy.
    """

    name: str
    task: str
    state: str
    started: float
    seconds: float = 0.0
    epochs: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)


# ---- one run -------------------------------------------------------------------------------------


class Run:
    """A run's folder.

    Args:
        folder: an existing one; `create` makes a new one.

    Raises:
        RunError: it is not a run's folder, or its run.json is damaged.
        OSError: it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = _read_record(folder)
        self._lock: IO[bytes] | None = None

    @classmethod
    def create(
        cls, task: str, name: str, config: str, *, root: Path = ROOT, epochs: int = 0
    ) -> Run:
        """Make a run's folder below `root`, which is made too, and lock it.

        Args:
            task: "resnet9" or "lm".
            name: what tells it from other runs: letters, digits, `.`, `_` and `-`.
            config: the resolved settings as TOML.
            root: the folder of all runs.
            epochs: how many the run is to have.

        Raises:
            ValueError: the name has other characters.
            OSError: the folder cannot be made or written.
        """
        folder = _new_folder(root, f"{time.strftime('%Y%m%d-%H%M%S')}-{task}-{check_name(name)}")
        for each in (CHECKPOINTS, PLOTS):
            (folder / each).mkdir()
        (folder / CONFIG).write_text(config, encoding="utf-8")
        record = Record(folder.name, task, RUNNING, time.time(), 0.0, epochs, versions())
        _write_record(folder, record)
        run = cls(folder)
        run.lock()
        return run

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.folder / CHECKPOINTS

    @property
    def plots(self) -> Path:
        """The folder of its pictures."""
        return self.folder / PLOTS

    @property
    def state(self) -> str:
        """How it stands: "running", "finished", "stopped", "failed" or "killed"."""
        if self.record.state == RUNNING and self._lock is None and not _is_locked(self.folder):
            return KILLED
        return self.record.state

    def lock(self) -> None:
        """Claim the run for this process, until `release` or the process's end.

        Raises:
            RunError: another process has it.
            OSError: the folder cannot be written.
        """
        file = (self.folder / LOCK).open("ab")
        # More than once: somebody who only asks whether it is locked holds it for a moment.
        if not _try_lock(file, fcntl.LOCK_EX, tries=5):
            file.close()
            raise RunError(
                f"run: in use: {self.folder}: another process is training it: "
                "wait for it, or stop it"
            )
        self._lock = file

    def update(self, **values: Any) -> None:
        """Change the record: `update(state="finished", seconds=12.5)`.

        Raises:
            OSError: it cannot be written.
        """
        self.record = replace(self.record, **values)
        _write_record(self.folder, self.record)

    def release(self) -> None:
        """Give up the lock; a second time does nothing."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def metrics(self) -> list[Row]:
        """What it has measured so far.

        Raises:
            MetricsError: metrics.jsonl is damaged.
            OSError: it cannot be read.
        """
        return metrics.read(self.folder)


def versions() -> dict[str, str]:
    """Of needle's packages, Python and NumPy."""
    found = {name: _version(name) for name in PACKAGES}
    return {**found, "python": platform.python_version(), "numpy": np.__version__}


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "source tree"


def check_name(name: str) -> str:
    """The name of a run, if it can be a part of a folder's name.

    Raises:
        ValueError: it cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            f"run: name does not fit: {name!r}: need at most 100 letters, digits, dots, dashes and "
            "underscores, the first a letter or digit"
        )
    return name


def _new_folder(root: Path, name: str) -> Path:
    """A folder nobody else has; two runs of one second get `-2`, `-3` ... behind their names."""
    root.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = root / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def _try_lock(file: IO[bytes], how: int, tries: int = 1) -> bool:
    for left in range(tries, 0, -1):
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
            return True
        except OSError:
            if left > 1:
                time.sleep(0.05)
    return False


def _is_locked(folder: Path) -> bool:
    try:
        with (folder / LOCK).open("rb") as file:
            return not _try_lock(file, fcntl.LOCK_SH)
    except OSError:
        return False


def _write_record(folder: Path, record: Record) -> None:
    partial = folder / f".{RECORD}.{os.getpid()}.part"
    try:
        partial.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
        partial.replace(folder / RECORD)
    finally:
        partial.unlink(missing_ok=True)


def _read_record(folder: Path) -> Record:
    path = folder / RECORD
    if not path.is_file():
        raise RunError(f"run: not the folder of a run: {folder}: it has no {RECORD}")
    try:
        record = Record(**json.loads(path.read_text(encoding="utf-8")))
        texts = (record.name, record.task, record.state)
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("name, task and state must be strings")
        numbers = (record.started, record.seconds, record.epochs)
        if not all(type(number) in (int, float) for number in numbers):
            raise TypeError("started, seconds and epochs must be numbers")
    except (ValueError, TypeError, RecursionError) as error:
        raise RunError(f"run: damaged: {path}: {error}") from error
    return record


# ---- all runs ------------------------------------------------------------------------------------


def all_runs(root: Path = ROOT, note: Callable[[str], None] | None = None) -> list[Run]:
    """The runs below a folder, the oldest first; a damaged one is left out.

    Args:
        root: the folder.
        note: is told of each that is damaged.

    Raises:
        OSError: the folder is not one, or cannot be read.
    """
    if not root.exists():
        return []
    found = []
    for folder in root.iterdir():
        try:
            found.append(Run(folder))
        except (RunError, OSError) as error:
            if note is not None and (folder / RECORD).exists():
                note(str(error))
    return sorted(found, key=lambda run: (run.record.started, run.folder.name))


def find(name: str, root: Path = ROOT) -> Run:
    """The run that is meant: "latest", a folder, a name below `root`, or any part of just one name.

    Raises:
        RunError: there is none, or more than one.
        OSError: the folder cannot be read.
    """
    for folder in (Path(name), root / name):
        if (folder / RECORD).exists():
            return Run(folder)
    damaged: list[str] = []
    runs = all_runs(root, damaged.append)
    if name == "latest":
        found = runs[-1:]
    else:
        found = [run for run in runs if name in run.folder.name]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(run.folder.name for run in found)
        raise RunError(f"run: more than one fits: {name}: {names}: need the whole name")
    more = f" and {len(damaged)} damaged" if damaged else ""
    raise RunError(f"run: no such run: {name}: {root} has {len(runs)}{more}: see needle runs")


# ---- what a run came to --------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """A run in a line.

    Attributes:
        name: the folder's name.
        task: "resnet9" or "lm".
        state: see `Run.state`.
        epochs_done: whole epochs.
        epochs: how many the run was to have.
        metric: "accuracy" or "perplexity".
        split: where `best` was measured: valid, else test, else train.
        best: the best value after an epoch; None before the first one.
        best_epoch: which; None before the first one.
        final: the final weights' value on the test set; None if the run has not ended.
        seconds: time of the run, all its parts together.
        started: seconds since 1970.
    """

    name: str
    task: str
    state: str
    epochs_done: int
    epochs: int
    metric: str
    split: str
    best: float | None
    best_epoch: int | None
    final: float | None
    seconds: float
    started: float


def summarize(run: Run) -> Summary:
    """What a run came to, from its record and its metrics.

    Raises:
        MetricsError: metrics.jsonl is damaged.
        OSError: it cannot be read.
    """
    rows, record = run.metrics(), run.record
    metric = main_metric(record.task)
    split, values = judged(rows, metric)
    choose = max if metric == "accuracy" else min
    epoch, best = choose(values, key=lambda point: point[1]) if values else (None, None)
    ends = [row for row in rows if row["event"] == metrics.END]
    return Summary(
        name=run.folder.name,
        task=record.task,
        state=run.state,
        epochs_done=max((row["epoch"] for row in rows if row["event"] == metrics.EPOCH), default=0),
        epochs=record.epochs,
        metric=metric,
        split=split,
        best=best,
        best_epoch=None if epoch is None else int(epoch),
        final=ends[-1].get(f"test_{metric}") if ends else None,
        seconds=max([record.seconds, *(row.get("seconds") or 0 for row in rows)]),
        started=record.started,
    )


def main_metric(task: str) -> str:
    """What a run is judged by: "perplexity" for text, "accuracy" for images."""
    return "perplexity" if task == "lm" else "accuracy"


def judged(rows: Sequence[Row], metric: str) -> tuple[str, list[tuple[float, float]]]:
    """The split a run is judged by, valid, else test, else train, and its (epoch, value) pairs."""
    for split in ("valid", "test", "train"):
        values = metrics.points(rows, metrics.EPOCH, "epoch", f"{split}_{metric}")
        if values:
            return split, values
    return "train", []


def differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The settings that are not the same in all configs: each config's value, or None."""
    names = dict.fromkeys(name for config in configs for name in config)
    found = {name: [config.get(name) for config in configs] for name in names}
    return {name: values for name, values in found.items() if values != values[:1] * len(values)}
