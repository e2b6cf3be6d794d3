"""The checkpoints of a run: when they are written, which are kept, which one to go on from."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from needle.apps import checkpoint, runs
from needle.apps.checkpoint import Checkpoint, CheckpointError, ModelSpec
from needle.apps.config import Config, about, parse_interval, read_config
from needle.apps.files import partial_path, remove_partial, sync_folder
from needle.apps.trainer import Checkpointer, Trainer

BEST = "best.safetensors"


class CheckpointFolder(Checkpointer):
    """Keeps the last few states of a run as `step-00001328.safetensors`, and the best one.

    A new one is whole on the disk before an old one goes: a full disk costs the new one alone.

    Args:
        folder: where; it exists.
        spec: the run's model.
        config: its settings; `save_every` and `keep` are heeded here.
        warn: told about checkpoints that cannot be used.
    """

    def __init__(
        self, folder: Path, spec: ModelSpec, config: Config, warn: Callable[[str], None]
    ) -> None:
        self.folder, self.spec, self.config, self.warn = folder, spec, config, warn
        self._unit, self._every = parse_interval(config.save_every)
        self._last = (0, time.monotonic())
        self.saved: Path | None = None

    def files(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*.safetensors"))

    def due(self, step: int) -> bool:
        """Whether `save_every` has passed since the last one."""
        last_step, last_time = self._last
        passed = step - last_step if self._unit == "steps" else time.monotonic() - last_time
        return passed >= self._every

    def save(self, trainer: Trainer, best: bool = False) -> None:
        """Write the trainer's state, then drop what is beyond `keep`.

        Raises:
            OSError: it cannot be written; what was there is there still.
        """
        path = self.folder / f"step-{trainer.at.step:08}.safetensors"
        checkpoint.save(path, trainer.task.model, self.spec, self.config, trainer.state())
        if best:
            self._link(path)
        self.saved = path
        self._last = (trainer.at.step, time.monotonic())
        for old in self.files()[: -self.config.keep]:
            old.unlink(missing_ok=True)

    def _link(self, path: Path) -> None:
        """Keep a checkpoint as the best one too: another name of the same file."""
        partial = partial_path(self.folder / BEST)
        try:
            os.link(path, partial)
        except OSError:  # a file system without links
            partial.write_bytes(path.read_bytes())
        partial.replace(self.folder / BEST)
        sync_folder(self.folder)

    def restore(self, trainer: Trainer) -> Path | None:
        """Put a trainer where the latest usable checkpoint left it.

        One that cannot be used is set aside as `.unusable`, with a warning, for the one before it.

        Returns:
            The checkpoint; None if there is none at all: the run begins at its beginning.

        Raises:
            CheckpointError: there are some, but none can be used.
        """
        remove_partial(self.folder)
        unusable = []
        for path in reversed(self.files()):
            try:
                self._restore(trainer, path)
            except CheckpointError as error:
                unusable.append((path, error))
                continue
            for bad, reason in unusable:
                self.warn(f"{reason}. Going on from {path.name}; the other is set aside.")
                bad.rename(bad.with_suffix(".unusable"))
            self._last = (trainer.at.step, time.monotonic())
            return path
        if unusable:
            raise CheckpointError(
                f"resume: none of {len(unusable)} checkpoints in {self.folder} can be used: "
                f"{unusable[0][1]}"
            )
        return None

    def _restore(self, trainer: Trainer, path: Path) -> None:
        content = checkpoint.read(path)
        check_same_model(content, self.spec)
        if content.training is None:
            raise CheckpointError(f"resume: {path} is a mere model: need a run's checkpoint")
        self._check_same_config(path, content.training.config)
        content.fill(trainer.task.model)
        try:
            trainer.restore(content.training.state)
        except (KeyError, ValueError, TypeError) as error:
            reason = error.args[0] if error.args else error
            raise CheckpointError(f"resume: {path} does not fit its run: {reason}") from error
        self._compare_environment(content.training.environment)

    def _check_same_config(self, path: Path, found: Config) -> None:
        for each in fields(self.config):
            old, new = getattr(found, each.name, None), getattr(self.config, each.name)
            if old != new and not about(each).on_resume:
                raise CheckpointError(
                    f"resume: {path} was trained with {each.name} {old}: the run has {new}"
                )

    def _compare_environment(self, old: object) -> None:
        new = checkpoint.environment()
        if isinstance(old, dict) and old != new:
            changes = [f"{k} {old.get(k)} -> {v}" for k, v in new.items() if old.get(k) != v]
            self.warn(
                f"the run began elsewhere ({', '.join(changes)}): its last bits may differ from "
                "an unbroken run's"
            )

    def restore_best(self, trainer: Trainer) -> None:
        """Give the model the weights of the best epoch.

        Raises:
            CheckpointError: they cannot be used.
            OSError: they are gone.
        """
        content = checkpoint.read(self.folder / BEST)
        check_same_model(content, self.spec)
        content.fill(trainer.task.model)


def check_same_model(content: Checkpoint, spec: ModelSpec) -> None:
    """Compare a checkpoint with the model and the words at hand.

    Raises:
        CheckpointError: they differ.
    """
    found = content.spec
    if (found.model, dict(found.config)) != (spec.model, dict(spec.config)):
        raise CheckpointError(
            f"load: models differ: {content.path} is {_named(found)}: need {_named(spec)}"
        )
    if (found.data, found.vocabulary) != (spec.data, spec.vocabulary):
        raise CheckpointError(
            f"load: data differ: {content.path} was trained on {_data(found)}: "
            f"this is {_data(spec)}"
        )


def _named(spec: ModelSpec) -> str:
    sizes = ", ".join(f"{name} {value}" for name, value in spec.config.items())
    return f"{spec.model} ({sizes})" if sizes else spec.model


def _data(spec: ModelSpec) -> str:
    words = f" with vocabulary {spec.vocabulary[:12]}" if spec.vocabulary else ""
    return f"{spec.data}{words}"


def data_folder(file: Path, data: str) -> Path | None:
    """The folder that a checkpoint's run read its data from, as its config.toml has it.

    Args:
        file: the checkpoint.
        data: the data set that is wanted; another one than the run's is not in its folder.

    Returns:
        None if the file is not in a run's folder, or the run had no folder of its own.

    Raises:
        ConfigError: config.toml is damaged.
        OSError: it cannot be read.
    """
    path = file.absolute().parent.parent / runs.CONFIG
    if file.absolute().parent.name != runs.CHECKPOINTS or not path.is_file():
        return None
    config = read_config(path)
    return config.data_dir if config.data == data else None


def model_file(given: Path, root: Path) -> Path:
    """The checkpoint that a command is given: a file, or of a run the best one, else the latest.

    Args:
        given: a file, or what `runs.find` takes: a run's folder, name, a part of it, or "latest".
        root: the folder of all runs.

    Raises:
        RunError: there is no such run, or more than one.
        CheckpointError: the run has no checkpoint.
        OSError: a file cannot be read.
    """
    if given.is_file() or given.suffix == ".safetensors":
        return given
    folder = runs.find(str(given), root).checkpoints
    best = folder / BEST
    files = [best] if best.is_file() else sorted(folder.glob("step-*.safetensors"))
    if not files:
        raise CheckpointError(f"load: no checkpoint in {folder}: train the run first")
    return files[-1]
