"""The folder of a run: `runs/2026-11-23-lm-1/`.

```
config.toml       the resolved settings; `--preset runs/.../config.toml` trains alike again
checkpoints/      step-00001328.safetensors ..., best.safetensors
metrics.jsonl, metrics.csv, *.png      what `needle.apps.runs` writes
lock              held while the run is training
```
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from needle.apps.config import Config, read_config

NAME = re.compile(r"(\d{4}-\d\d-\d\d)-(.+)-(\d+)")


class RunFolderError(ValueError):
    """There is no such run, or it cannot be used for what is asked."""


@dataclass(frozen=True)
class RunFolder:
    """One run's folder.

    Attributes:
        path: where it is.
    """

    path: Path

    @property
    def name(self) -> str:
        """The folder's name: date, task and number."""
        return self.path.name

    @property
    def config_path(self) -> Path:
        """The resolved settings."""
        return self.path / "config.toml"

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics_jsonl(self) -> Path:
        """The metrics, a JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def metrics_csv(self) -> Path:
        """The metrics of its epochs as a table."""
        return self.path / "metrics.csv"

    def config(self) -> Config:
        """The resolved settings.

        Raises:
            ConfigError: they are damaged.
            OSError: they cannot be read.
        """
        return read_config(self.config_path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training the same run; the lock dies with the process.

        Raises:
            RunFolderError: another process holds it.
        """
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunFolderError(f"resume: {self.path}: another process trains it") from None
            yield


def create(root: Path, config: Config) -> RunFolder:
    """Make the folder of a new run, with its settings in it.

    Raises:
        OSError: it cannot be made.
    """
    root.mkdir(parents=True, exist_ok=True)
    stem = f"{date.today().isoformat()}-{config.task}"
    taken = [run.path.name for run in runs_in(root)]
    number = 1 + max((_number(name) for name in taken if name.startswith(f"{stem}-")), default=0)
    while True:
        path = root / f"{stem}-{number}"
        try:
            path.mkdir()
            break
        except FileExistsError:  # another process was faster
            number += 1
    folder = RunFolder(path)
    folder.checkpoints.mkdir()
    write_atomically(folder.config_path, config.to_toml().encode())
    return folder


def runs_in(root: Path) -> list[RunFolder]:
    """The runs in a folder, oldest first: by date and number."""
    if not root.is_dir():
        return []
    found = [(NAME.fullmatch(path.name), path) for path in root.iterdir() if path.is_dir()]
    keyed = [((m[1], int(m[3]), m[2]), path) for m, path in found if m]
    return [RunFolder(path) for _, path in sorted(keyed)]


def find(root: Path, name: str, task: str | None = None) -> RunFolder:
    """A run by name, by path, or the `latest` of a task.

    Raises:
        RunFolderError: there is no such run, or it is another task's.
    """
    if name == "latest":
        runs = [run for run in runs_in(root) if run.config_path.is_file()]
        mine = [run for run in runs if task is None or run.config().task == task]
        if not mine:
            raise RunFolderError(f"run: none of {task or 'any task'} in {root}: train one first")
        return max(mine, key=lambda run: (run.path / "config.toml").stat().st_mtime_ns)
    for path in (Path(name), root / name):
        if (path / "config.toml").is_file():
            folder = RunFolder(path)
            found = folder.config().task
            if task is not None and found != task:
                raise RunFolderError(f"run: {path} is one of train {found}: need train {task}")
            return folder
    raise RunFolderError(f"run: no such run: {name}: need the folder of a run, or one in {root}")


def model_file(given: Path, root: Path) -> Path:
    """The checkpoint that a command is given: a file, or of a run the best one, else the latest.

    Args:
        given: a file, the folder of a run, or a run's name.
        root: the folder of all runs.

    Raises:
        RunFolderError: the run has no checkpoint.
        OSError: there is no such file.
    """
    folders = (RunFolder(path) for path in (given, root / given) if path.is_dir())
    run = next((folder for folder in folders if folder.config_path.is_file()), None)
    if run is None:
        return given
    best = run.checkpoints / "best.safetensors"
    files = [best] if best.is_file() else sorted(run.checkpoints.glob("step-*.safetensors"))
    if not files:
        raise RunFolderError(f"run: {run.path} has no checkpoint yet: train it first")
    return files[-1]


def _number(name: str) -> int:
    match = NAME.fullmatch(name)
    return int(match[3]) if match else 0


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file in one piece: whatever happens, `path` holds the old content or the new.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.part")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make a rename in a folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
