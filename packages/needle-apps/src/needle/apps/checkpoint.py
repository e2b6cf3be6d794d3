"""Checkpoints: a model, and where its training stood, in one safetensors file.

Such a file holds arrays and text, nothing that runs: reading one from a stranger is safe. The
arrays are the model's by their names, and under `optimizer/`, `hidden/` and `generator/` those of
its training. The text, in the file's metadata, is

```
format     this format's name
spec       JSON: a `ModelSpec`, which model to build and which data it was trained on
words      a language model's vocabulary, a word a line, in the order of their ids
training   JSON: settings, progress, optimizer, generator, versions; absent in a mere model
checksum   SHA-256 of all arrays and the texts above
```

One file, so that the parts cannot be of different moments, and written in one piece, so that there
is always a whole one.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

import needle
from needle import nn
from needle.apps.config import Config, ConfigError, Recurrent, TextConfig, parse_config
from needle.apps.files import partial_path, write_atomically
from needle.apps.models import LanguageModel, ResNet9, ResNet9Full
from needle.apps.trainer import Progress, TrainingState
from needle.apps.training import Score

FORMAT = "needle-checkpoint-2"
MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet9": ResNet9,
    "resnet9-full": ResNet9Full,
    "lm": LanguageModel,
}
LM_CONFIG = {
    "embedding_size": int,
    "output_size": int,
    "hidden_size": int,
    "num_layers": int,
    "seq_model": str,
}
LM_OPTIONS = {"dropout": float, "tied": bool}  # may be absent: the constructor has defaults
MAX_TEXT = 2**20  # characters of a JSON text: ours have some 2,000
Arrays = dict[str, np.ndarray[Any, Any]]


class CheckpointError(ValueError):
    """A file is not a checkpoint, or not one that fits what is asked of it."""


@dataclass(frozen=True)
class ModelSpec:
    """What it takes to build a model again and to measure it.

    Attributes:
        model: "resnet9", "resnet9-full" or "lm".
        data: the data set it was trained on: "cifar10", "ptb" or "synthetic".
        config: constructor arguments, device and dtype aside.
        vocabulary: a checksum of a language model's words; "" for images.
        words: those words, by id; () where they are not known. `vocabulary` stands for them.
    """

    model: str
    data: str
    config: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: str = ""
    words: Sequence[str] = field(default=(), compare=False, repr=False)

    def build(self, device: Any) -> nn.Module:
        """A new model, drawn from NumPy's global generator."""
        return MODELS[self.model](**self.config, device=device)


@dataclass(frozen=True)
class Training:
    """How a checkpoint's model came about, and all that is needed to go on.

    Attributes:
        config: the run's settings.
        state: where it stood.
        environment: versions and machine, for a warning where they differ.
    """

    config: Config
    state: TrainingState
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's content, checked.

    Attributes:
        path: the file.
        spec: the model.
        arrays: its parameters and buffers.
        training: how it came about; None in a mere model.
    """

    path: Path
    spec: ModelSpec
    arrays: Arrays
    training: Training | None

    def fill(self, model: nn.Module) -> None:
        """Give a model this one's parameters and buffers.

        Raises:
            CheckpointError: they do not fit it; it is then as it was.
        """
        try:
            model.load_state_dict(self.arrays)
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"load: {self.path} does not fit its model {self.spec.model}: {_reason(error)}"
            ) from error


# ---- writing -------------------------------------------------------------------------------------


def save(
    path: Path,
    model: nn.Module,
    spec: ModelSpec,
    config: Config | None = None,
    state: TrainingState | None = None,
) -> None:
    """Write a checkpoint in one piece: whatever happens, `path` holds the old one or the new one.

    Raises:
        OSError: the file cannot be written.
    """
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    described = asdict(replace(spec, words=()))
    del described["words"]
    texts = {"format": FORMAT, "spec": json.dumps(described)}
    if spec.words:
        texts["words"] = "\n".join(spec.words)
    if config is not None and state is not None:
        more, plain = _split(state)
        arrays |= more
        plain |= {"task": config.task, "config": config.plain(), "environment": environment()}
        texts["training"] = json.dumps(plain, allow_nan=False)
    write_atomically(path, to_bytes(arrays, {**texts, "checksum": checksum(arrays, texts)}))


def checksum(arrays: Arrays, texts: Mapping[str, str]) -> str:
    """SHA-256 of all arrays, with names, types and shapes, and of all texts, as hex."""
    digest = hashlib.sha256()
    for name, text in sorted(texts.items()):
        digest.update(json.dumps([name, text]).encode())
    for name, array in sorted(arrays.items()):
        digest.update(json.dumps([name, str(array.dtype), array.shape]).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def environment() -> dict[str, str]:
    """What a run's last bits depend on besides its settings."""
    return {
        **{name: _version(name) for name in ("needle-kernels", "needle-core", "needle-nn")},
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cpu": needle.backend_ndarray.isa(),
        "threads": str(needle.num_threads()),
    }


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "source tree"


def check_writable(path: Path) -> None:
    """Fail now rather than after hours of training.

    Raises:
        OSError: the folder is missing or takes no new file, or `path` is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"save: {path} is a folder: need a file name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save: no such folder: {path.parent}: create it first")
    partial = partial_path(path)
    try:
        partial.touch(exist_ok=False)
    except OSError as error:
        raise type(error)(f"save: cannot write into {path.parent}: {error.strerror}") from error
    partial.unlink()


def _split(state: TrainingState) -> tuple[Arrays, dict[str, Any]]:
    """A TrainingState as arrays and as plain values for JSON."""
    arrays, hyper = {}, {}
    for name, value in state.optimizer.items():
        if isinstance(value, float):
            hyper[name] = value
        else:
            arrays[f"optimizer/{name}"] = value.numpy()
    arrays |= {f"hidden/{i}": h for i, h in enumerate(state.hidden)}
    progress = asdict(state.progress)
    if math.isinf(state.progress.best_loss):  # JSON knows no infinity
        progress["best_loss"] = None
    plain = {"progress": progress, "optimizer": hyper}
    for name, generator in (("now", state.generator), ("order", state.order)):
        arrays[f"generator/{name}"] = generator["state"]["key"]
        plain[name] = {
            "pos": int(generator["state"]["pos"]),
            "has_gauss": int(generator["has_gauss"]),
            "gauss": float(generator["gauss"]),
        }
    return arrays, plain


# ---- reading -------------------------------------------------------------------------------------


def load(path: Path, device: Any = None) -> tuple[nn.Module, ModelSpec]:
    """Read a checkpoint's model back: the model on `device`, and what it is.

    Raises:
        OSError: there is no such file.
        CheckpointError: it is damaged, foreign, or its arrays do not fit its model.
    """
    content = read(path)
    model = content.spec.build(device)
    content.fill(model)
    return model, content.spec


def read(path: Path) -> Checkpoint:
    """Read and check a whole checkpoint; nothing of it is used before all of it is checked.

    Raises:
        OSError: there is no such file.
        CheckpointError: it is damaged or foreign.
    """
    arrays, texts = _read(path)
    spec = _parse_spec(path, texts.get("spec", ""))
    if spec.model == "lm":
        _check_arrays(path, arrays, spec.config)
    given = texts.pop("checksum", "none")
    found = checksum(arrays, texts)
    if given != found:
        raise CheckpointError(
            f"load: {path} was changed after it was written: checksum is {found[:12]}...: need "
            f"{given[:12]}..."
        )
    if "words" in texts:
        spec = replace(spec, words=_parse_words(path, spec, texts["words"]))
    own = {name: array for name, array in arrays.items() if "/" not in name}
    training = _parse_training(path, texts["training"], arrays) if "training" in texts else None
    return Checkpoint(path, spec, own, training)


def _read(path: Path) -> tuple[Arrays, dict[str, str]]:
    if path.is_dir():
        raise IsADirectoryError(f"load: {path} is a folder: need a checkpoint file")
    if not path.is_file():  # a pipe or a device would never end
        raise FileNotFoundError(f"load: no such file: {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            texts = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"load: {path} is not a checkpoint, or damaged: {error}") from error
    if texts.get("format") != FORMAT:
        found = texts.get("format", "none")
        raise CheckpointError(f"load: {path} is not needle's: format is {found:.50}: need {FORMAT}")
    return arrays, texts


def _parse_json(text: str) -> Any:
    """JSON of limited size, without NaN and infinities.

    Raises:
        ValueError, RecursionError: it is not.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"text too long: {len(text)} characters: need at most {MAX_TEXT}")

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not a number")

    return json.loads(text, parse_constant=refuse)


def _parse_spec(path: Path, text: str) -> ModelSpec:
    """The metadata as a ModelSpec, every field checked: the file may come from anywhere."""
    try:
        spec = ModelSpec(**{"words": (), **_parse_json(text)})
        if spec.words != ():
            raise ValueError("words are not a part of it")
        if spec.model not in MODELS:
            raise ValueError(f"model is {spec.model!r:.50}")
        needed, optional = (LM_CONFIG, LM_OPTIONS) if spec.model == "lm" else ({}, {})
        found = {name: type(value) for name, value in spec.config.items()}
        wanted = needed | {name: kind for name, kind in optional.items() if name in found}
        if found != wanted or not 0 <= spec.config.get("dropout", 0.0) < 1:
            raise ValueError(f"config is {dict(spec.config)!r:.200}")
        if spec.model == "lm":
            _check_lm_config(spec.config)
        if spec.data not in ("cifar10", "ptb", "synthetic") or not isinstance(spec.vocabulary, str):
            raise ValueError(f"data is {spec.data!r:.50}, vocabulary is {spec.vocabulary!r:.50}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"load: {path} describes no known model: {error}") from error
    return spec


def _check_lm_config(config: Mapping[str, Any]) -> None:
    """What a LanguageModel would refuse of values of the right types.

    Raises:
        ValueError: it would.
    """
    for name, kind in LM_CONFIG.items():
        if kind is int and config[name] < 1:
            raise ValueError(f"{name} is {config[name]!r:.50}: need at least 1")
    if config["seq_model"] not in ("rnn", "lstm"):
        raise ValueError(f"seq_model is {config['seq_model']!r:.50}")
    if config.get("tied", False) and config["embedding_size"] != config["hidden_size"]:
        raise ValueError("tied is True: embedding_size and hidden_size differ")


def _parse_words(path: Path, spec: ModelSpec, text: str) -> tuple[str, ...]:
    """The vocabulary, if it is the model's."""
    words, found = tuple(text.split("\n")), hashlib.sha256(text.encode()).hexdigest()
    if found != spec.vocabulary or len(words) != spec.config.get("output_size"):
        raise CheckpointError(
            f"load: {path}: its {len(words)} words are not the model's: checksum is "
            f"{found[:12]}...: need {spec.vocabulary[:12]}..., "
            f"{spec.config.get('output_size')} words"
        )
    return words


def _check_arrays(path: Path, arrays: Arrays, config: Mapping[str, Any]) -> None:
    """Compare all shapes before building, so that a forged config cannot ask for all memory."""
    for name, shape in _lm_shapes(config):
        found = arrays[name].shape if name in arrays else "missing"
        if found != shape:
            raise CheckpointError(f"load: {path}: {name} is {found}: its config needs {shape}")


def _lm_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every array of a LanguageModel; one by one: there may be 10**9 layers."""
    words, size, hidden = (config[f"{n}_size"] for n in ("output", "embedding", "hidden"))
    yield "embedding.weight", (words, size)
    yield "linear.weight", (words, hidden) if config.get("tied", False) else (hidden, words)
    yield "linear.bias", (1, words)
    width = {"rnn": 1, "lstm": 4}[config["seq_model"]] * hidden
    for i in range(config["num_layers"]):
        cell = f"seq_model.{config['seq_model']}_cells.{i}"
        yield f"{cell}.W_ih", (hidden if i else size, width)
        yield f"{cell}.W_hh", (hidden, width)
        yield f"{cell}.bias_ih", (width,)
        yield f"{cell}.bias_hh", (width,)


def _parse_training(path: Path, text: str, arrays: Arrays) -> Training:
    """The training part, every value checked for type and range."""
    try:
        plain = _dict(_parse_json(text), "training")
        config = parse_config(plain.get("task"), _dict(plain.get("config"), "config"), "config")
        optimizer: dict[str, Any] = {
            name: _number(value, name) for name, value in _dict(plain["optimizer"], "opt").items()
        }
        optimizer |= _under("optimizer/", arrays)
        state = TrainingState(
            _parse_progress(_dict(plain["progress"], "progress")),
            optimizer,
            _parse_hidden(config, _under("hidden/", arrays)),
            *(_parse_generator(plain[name], arrays, name) for name in ("now", "order")),
        )
        recorded = {
            name: _text(value, name)
            for name, value in _dict(plain["environment"], "environment").items()
        }
    except (ConfigError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(
            f"load: {path} does not say how to go on training: {_reason(error)}"
        ) from error
    return Training(config, state, recorded)


def _parse_hidden(config: Config, arrays: Arrays) -> tuple[np.ndarray[Any, Any], ...]:
    """The recurrent state: nothing, h of an RNN, or h and c of an LSTM."""
    if not arrays:
        return ()
    if not isinstance(config, TextConfig):
        raise ValueError(f"there is a recurrent state: {config.task} has none")
    shape = (config.layers, config.batch_size, config.hidden_size)
    names = ("0",) if config.model is Recurrent.rnn else ("0", "1")
    if tuple(sorted(arrays)) != names:
        raise ValueError(f"hidden has {len(arrays)} arrays: {config.model} needs {len(names)}")
    for name in names:
        if arrays[name].shape != shape or arrays[name].dtype != np.float32:
            found = f"{arrays[name].dtype} {arrays[name].shape}"
            raise ValueError(f"hidden/{name} is {found}: its config needs float32 {shape}")
    return tuple(arrays[name] for name in names)


def _parse_progress(plain: dict[str, Any]) -> Progress:
    best, batch = plain["best_loss"], _count(plain["batch"], "batch")
    score = _parse_score(_dict(plain["score"], "score"))
    if score.steps != batch or score.examples < batch:  # a mean over no examples is none
        raise ValueError(
            f"batch is {batch}: its score has {score.steps} steps, {score.examples} examples"
        )
    return Progress(
        epoch=_count(plain["epoch"], "epoch"),
        batch=batch,
        step=_count(plain["step"], "step"),
        score=score,
        best_loss=math.inf if best is None else _number(best, "best_loss"),
        best_epoch=_count(plain["best_epoch"], "best_epoch"),
        seconds=_number(plain["seconds"], "seconds"),
    )


def _parse_score(plain: dict[str, Any]) -> Score:
    return Score(
        correct=_count(plain["correct"], "correct"),
        total_loss=_number(plain["total_loss"], "total_loss"),
        examples=_count(plain["examples"], "examples"),
        steps=_count(plain["steps"], "steps"),
        seconds=_number(plain["seconds"], "seconds"),
    )


def _parse_generator(plain: Any, arrays: Arrays, name: str) -> dict[str, Any]:
    """The state of a Mersenne Twister, in the form that `np.random.set_state` takes."""
    plain, key = _dict(plain, name), arrays[f"generator/{name}"]
    if key.dtype != np.uint32 or key.shape != (624,):
        raise ValueError(f"generator/{name} is {key.dtype} {key.shape}: need uint32 (624,)")
    pos = _count(plain["pos"], "pos")
    if pos > 624 or plain["has_gauss"] not in (0, 1):
        raise ValueError(f"{name}: pos is {pos}, has_gauss {plain['has_gauss']}")
    return {
        "bit_generator": "MT19937",
        "state": {"key": key, "pos": pos},
        "has_gauss": _count(plain["has_gauss"], "has_gauss"),
        "gauss": _number(plain["gauss"], "gauss"),
    }


def _under(prefix: str, arrays: Arrays) -> Arrays:
    return {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}


def _dict(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{name} is {value!r:.50}: need an object")
    return value


def _count(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError(f"{name} is {value!r:.50}: need a whole number from 0 on")
    return value


def _number(value: Any, name: str) -> float:
    # JSON's whole numbers may be larger than any float; NaN is not <= anything.
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{name} is {value!r:.50}: need a number")
    return float(value)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r:.50}: need a text")
    return value


def _reason(error: Exception) -> Any:
    return error.args[0] if error.args else error
