"""Checkpoints: a model's parameters and buffers in one safetensors file.

Such a file holds arrays and text, nothing that runs: reading one from a stranger is safe. Its
metadata is a `ModelSpec`: which model to build, and which data it was trained on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from needle import nn
from needle.apps.models import LanguageModel, ResNet9

FORMAT = "needle-checkpoint-1"
MODELS: dict[str, Callable[..., nn.Module]] = {"resnet9": ResNet9, "lm": LanguageModel}
LM_CONFIG = {
    "embedding_size": int,
    "output_size": int,
    "hidden_size": int,
    "num_layers": int,
    "seq_model": str,
}
Arrays = dict[str, np.ndarray[Any, Any]]


class CheckpointError(ValueError):
    """A file is not a checkpoint, or not one that fits what is asked of it."""


@dataclass(frozen=True)
class ModelSpec:
    """What it takes to build a model again and to measure it.

    Attributes:
        model: "resnet9" or "lm".
        data: the data set it was trained on: "cifar10", "ptb" or "synthetic".
        config: constructor arguments, device and dtype aside.
        vocabulary: a checksum of a language model's words; "" for images.
    """

    model: str
    data: str
    config: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: str = ""

    def build(self, device: Any) -> nn.Module:
        """A new model, drawn from NumPy's global generator."""
        return MODELS[self.model](**self.config, device=device)


def save(path: Path, model: nn.Module, spec: ModelSpec) -> None:
    """Write a checkpoint in one piece: whatever happens, `path` holds the old one or the new one.

    Raises:
        OSError: the file cannot be written.
    """
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    content = to_bytes(arrays, {"format": FORMAT, "spec": json.dumps(asdict(spec))})
    partial = _partial(path)
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Fail now rather than after hours of training.

    Raises:
        OSError: the folder is missing or takes no new file, or `path` is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"save: {path} is a folder: need a file name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save: no such folder: {path.parent}: create it first")
    partial = _partial(path)
    try:
        partial.touch(exist_ok=False)
    except OSError as error:
        raise type(error)(f"save: cannot write into {path.parent}: {error.strerror}") from error
    partial.unlink()


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def load(path: Path, device: Any = None) -> tuple[nn.Module, ModelSpec]:
    """Read a checkpoint back: the model on `device`, and what it is.

    Raises:
        OSError: there is no such file.
        CheckpointError: it is damaged, foreign, or its arrays do not fit its model.
    """
    arrays, spec = _read(path)
    if spec.model == "lm":
        _check_sizes(path, arrays, spec.config)
    model = spec.build(device)
    try:
        model.load_state_dict(arrays)
    except (KeyError, ValueError, TypeError) as error:
        reason = error.args[0] if error.args else error
        raise CheckpointError(
            f"load: {path} does not fit its model {spec.model}: {reason}"
        ) from error
    return model, spec


def _read(path: Path) -> tuple[Arrays, ModelSpec]:
    if path.is_dir():
        raise IsADirectoryError(f"load: {path} is a folder: need a checkpoint file")
    if not path.exists():
        raise FileNotFoundError(f"load: no such file: {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError) as error:
        raise CheckpointError(f"load: {path} is not a checkpoint, or damaged: {error}") from error
    if metadata.get("format") != FORMAT:
        found = metadata.get("format", "none")
        raise CheckpointError(f"load: {path} is not needle's: format is {found}: need {FORMAT}")
    return arrays, _parse(path, metadata.get("spec", ""))


def _parse(path: Path, text: str) -> ModelSpec:
    """The metadata as a ModelSpec, every field checked: the file may come from anywhere."""
    try:
        spec = ModelSpec(**json.loads(text))
        wanted = {"resnet9": {}, "lm": LM_CONFIG}[spec.model]
        found = {name: type(value) for name, value in spec.config.items()}
        if found != wanted:
            raise ValueError(f"config is {dict(spec.config)}")
        if spec.config.get("seq_model", "rnn") not in ("rnn", "lstm"):
            raise ValueError(f"seq_model is {spec.config['seq_model']!r}")
        if spec.data not in ("cifar10", "ptb", "synthetic") or not isinstance(spec.vocabulary, str):
            raise ValueError(f"data is {spec.data!r}, vocabulary is {spec.vocabulary!r}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"load: {path} describes no known model: {error}") from error
    return spec


def _check_sizes(path: Path, arrays: Arrays, config: Mapping[str, Any]) -> None:
    """Compare sizes before building, so that a forged config cannot ask for all memory."""
    sizes = {
        "embedding.weight": (config["output_size"], config["embedding_size"]),
        "linear.weight": (config["hidden_size"], config["output_size"]),
    }
    for name, shape in sizes.items():
        found = arrays[name].shape if name in arrays else "missing"
        if found != shape:
            raise CheckpointError(f"load: {path}: {name} is {found}: its config needs {shape}")
    if not 1 <= config["num_layers"] <= len(arrays):
        raise CheckpointError(
            f"load: {path}: num_layers is {config['num_layers']}: it holds {len(arrays)} arrays"
        )
