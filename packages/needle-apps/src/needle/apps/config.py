"""What a training run is made of: typed settings, presets, and the file that a run keeps.

Every setting exists once, as a field of `ImageConfig` or `TextConfig`: the command line makes an
option of it (`batch_size` is `--batch-size`), a preset or a run's `config.toml` a key, and a
checkpoint a value in its JSON. All four ways in pass the same checks.

A preset is a flat TOML file in `presets/`; a value comes from the command line, else from the
preset, else from the field's default.
"""

# ruff: noqa: RUF009 (`setting` is `dataclasses.field` with more to say)
from __future__ import annotations

import difflib
import json
import math
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Self

Check = Callable[[Any], None]
"""Raises ValueError, `got X: need Y`, for a value out of range."""


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type or out of range."""


@dataclass(frozen=True)
class Setting:
    """What a field of a config says about itself.

    Attributes:
        help: one or two sentences for `--help`.
        check: raises ValueError for a value out of range; never sees None.
        panel: the heading it stands under in `--help`.
        shown: the default as `--help` shows it, where that is not the value itself.
        on_resume: may be changed when a run goes on: it does not touch what is computed, or (like
            `epochs`) only how long.
        flag: how the option is called, where that is not the field's name.
    """

    help: str
    check: Check | None = None
    panel: str = "Training"
    shown: str | None = None
    on_resume: bool = False
    flag: str | None = None


def setting(
    default: Any,
    help: str,
    check: Check | None = None,
    *,
    panel: str = "Training",
    shown: str | None = None,
    on_resume: bool = False,
    flag: str | None = None,
) -> Any:
    """A field of a config with its `Setting`."""
    about = Setting(help, check, panel, shown, on_resume, flag)
    return field(default=default, metadata={"setting": about})


def about(config_field: Field[Any]) -> Setting:
    """The Setting of a config's field."""
    found: Setting = config_field.metadata["setting"]
    return found


# ---- checks and choices --------------------------------------------------------------------------


def at_least(lowest: float) -> Check:
    """The check of a finite number that is not below `lowest`."""

    def check(value: float) -> None:
        if not lowest <= value < math.inf:
            raise ValueError(f"got {value}: need at least {lowest}")

    return check


def above_zero(value: float) -> None:
    """The check of a finite positive number."""
    if not 0 < value < math.inf:
        raise ValueError(f"got {value}: need a positive number")


def fraction(value: float) -> None:
    """The check of a number in [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"got {value}: need 0 <= x < 1")


def _seed(value: int) -> None:
    if not 0 <= value < 2**32:
        raise ValueError(f"got {value}: need 0 <= seed < 2**32")


def parse_interval(text: str) -> tuple[str, float]:
    """`"200"` as ("steps", 200), `"90s"` or `"5m"` as ("seconds", 90.0 or 300.0).

    Raises:
        ValueError: it is neither, or not above 0.
    """
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    try:
        number = float(text[:-1]) if unit else int(text)
    except ValueError:
        number = 0
    if not 0 < number < math.inf:
        raise ValueError(f"got {text!r}: need steps (200) or a time (90s, 5m)")
    return ("seconds", number * unit) if unit else ("steps", number)


def _interval(text: str) -> None:
    parse_interval(text)


class DataChoice(StrEnum):
    """The values of `data`."""

    auto = "auto"
    cifar10 = "cifar10"
    ptb = "ptb"
    synthetic = "synthetic"


class DeviceChoice(StrEnum):
    """The values of `device`."""

    cpu = "cpu"
    cuda = "cuda"
    cpu_numpy = "cpu_numpy"


class Rule(StrEnum):
    """The values of `optimizer`."""

    sgd = "sgd"
    adam = "adam"


class Course(StrEnum):
    """The values of `schedule`; see `needle.apps.schedules`."""

    constant = "constant"
    step = "step"
    cosine = "cosine"
    one_cycle = "one-cycle"
    zaremba = "zaremba"


# Settings that only these schedules have; under the others they stand at their defaults.
COURSES = {
    "decay": (Course.step, Course.zaremba),
    "decay_every": (Course.step,),
    "decay_after": (Course.zaremba,),
    "warmup": (Course.cosine, Course.one_cycle),
}


class ImageModel(StrEnum):
    """The values of an image run's `model`."""

    resnet9 = "resnet9"
    resnet9_full = "resnet9-full"


class Recurrent(StrEnum):
    """The values of a text run's `model`."""

    rnn = "rnn"
    lstm = "lstm"


class Init(StrEnum):
    """The values of an image run's `init`."""

    torch = "torch"
    kaiming = "kaiming"


# ---- the settings --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings that images and text share.

    Raises:
        ConfigError: a value is of the wrong type or out of range.
    """

    task: ClassVar[str] = ""

    epochs: int = setting(10, "Passes over the training data.", at_least(1), on_resume=True)
    batch_size: int = setting(128, "Examples per step.", at_least(1))
    seed: int = setting(0, "Fixes weights, data order and dropout.", _seed)
    early_stop: int | None = setting(
        None,
        "Stop after so many epochs without a better validation loss; the best weights are then "
        "the result.",
        at_least(1),
        shown="never",
        on_resume=True,
    )
    max_batches: int | None = setting(
        None, "Cut every pass short after so many batches.", at_least(1), shown="whole passes"
    )

    optimizer: Rule = setting(Rule.sgd, "The update rule.", panel="Optimizer")
    lr: float | None = setting(None, "Learning rate.", above_zero, panel="Optimizer")
    momentum: float = setting(
        0.0,
        "Of SGD, in averaging form: the gradient counts (1 - momentum).",
        fraction,
        panel="Optimizer",
    )
    nesterov: bool = setting(
        False, "SGD looks one step ahead; needs --momentum.", panel="Optimizer"
    )
    weight_decay: float = setting(0.0, "L2 penalty.", at_least(0), panel="Optimizer")
    clip: float = setting(
        0.0,
        "Largest gradient norm of an update; 0 for no limit.",
        at_least(0),
        panel="Optimizer",
        shown="no limit",
    )
    schedule: Course = setting(
        Course.constant,
        "How the learning rate moves. step: times --decay every --decay-every epochs. cosine: down "
        "half a wave. one-cycle: up and down again. zaremba: times --decay after each epoch from "
        "--decay-after on.",
        panel="Optimizer",
    )
    decay: float = setting(
        0.5, "Factor of step and zaremba.", above_zero, panel="Optimizer", shown="0.5"
    )
    decay_every: int = setting(10, "Epochs between step's decays.", at_least(1), panel="Optimizer")
    decay_after: int = setting(
        4, "Epochs at the full rate under zaremba.", at_least(0), panel="Optimizer"
    )
    warmup: float = setting(
        0.0,
        "Epochs in which cosine and one-cycle rise to --lr; 0 means 0.3 of all for one-cycle.",
        at_least(0),
        panel="Optimizer",
    )

    data: DataChoice = setting(
        DataChoice.auto,
        "auto: a local folder, else a download, else the synthetic set. The others are strict: "
        "what is not there and cannot be downloaded is an error.",
        panel="Data",
    )
    data_dir: Path | None = setting(
        None,
        "Read the data set from this folder, and from nowhere else.",
        panel="Data",
        shown="searched for",
        on_resume=True,
    )

    save_every: str = setting(
        "60s",
        "Save a checkpoint after so many steps (200) or so much time (90s, 5m), besides the one "
        "after every epoch.",
        _interval,
        panel="Checkpoints",
        on_resume=True,
    )
    keep: int = setting(
        2, "Keep so many of the latest checkpoints.", at_least(1), panel="Checkpoints",
        on_resume=True,
    )  # fmt: skip

    log_every: int = setting(
        50, "Steps between two lines of metrics.", at_least(1), panel="Output", on_resume=True
    )

    device: DeviceChoice | None = setting(
        None, "Where to run.", panel="Machine", shown="cpu, or what NEEDLE_BACKEND says"
    )
    threads: int | None = setting(
        None, "CPU threads.", at_least(1), panel="Machine", shown="all cores", on_resume=True
    )

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for each in fields(self):
            value = _converted(each.name, hints[each.name], getattr(self, each.name))
            check = about(each).check
            if check is not None and value is not None:
                try:
                    check(value)
                except ValueError as error:
                    raise ConfigError(f"{each.name}: {error}") from None
            object.__setattr__(self, each.name, value)
        if self.optimizer is Rule.adam and (self.momentum or self.nesterov):
            raise ConfigError("momentum: got some with optimizer adam: need sgd for it")
        self._check_schedule()

    def _check_schedule(self) -> None:
        for each in fields(self):
            value, courses = getattr(self, each.name), COURSES.get(each.name)
            if courses and self.schedule not in courses and value != default_of(each):
                raise ConfigError(
                    f"{each.name}: got {value} with schedule {self.schedule}: "
                    f"need {' or '.join(courses)}"
                )

    @property
    def rate(self) -> float:
        """The learning rate; `lr`, where none was given, is resolved by now."""
        assert self.lr is not None
        return self.lr

    def changed(self, **values: Any) -> Self:
        """A copy with other values, checked."""
        return replace(self, **values)

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str) -> Self:
        """A config from plain values: TOML's, JSON's or the command line's.

        Args:
            values: settings by name; the others keep their defaults.
            where: the source, for the error.

        Raises:
            ConfigError: a name is unknown, or a value does not fit.
        """
        known = [each.name for each in fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"need one of {', '.join(known)}"
                raise ConfigError(f"{where}: unknown setting: {name}: {hint}")
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    def plain(self) -> dict[str, Any]:
        """The settings as plain values, those that are None left out: what `parse` takes."""
        return {
            name: str(value) if isinstance(value, StrEnum | Path) else value
            for name, value in asdict(self).items()
            if value is not None
        }

    def to_toml(self) -> str:
        """The settings as a TOML file, which `--preset FILE` takes back."""
        # JSON's strings, numbers and booleans are TOML's too.
        lines = [
            f"{name} = {json.dumps(value, ensure_ascii=False)}"
            for name, value in self.plain().items()
        ]
        return "\n".join([f'task = "{self.task}"', *lines, ""])


@dataclass(frozen=True, kw_only=True)
class ImageConfig(Config):
    """The settings of `needle train resnet9`."""

    task: ClassVar[str] = "resnet9"

    model: ImageModel = setting(
        ImageModel.resnet9,
        "The network. resnet9: 431,946 parameters, strides. resnet9-full: 6,573,120 parameters, "
        "full resolution, some 400 times the work.",
        panel="Model",
    )
    init: Init = setting(
        Init.torch,
        "How far from zero weights begin, for a fan-in of n. kaiming: up to sqrt(6/n), as the "
        "layers draw them. torch: up to 1/sqrt(n), PyTorch's default: behind batch norm smaller "
        "weights learn faster.",
        panel="Model",
    )
    optimizer: Rule = setting(Rule.adam, "The update rule.", panel="Optimizer")
    lr: float | None = setting(1e-3, "Learning rate.", above_zero, panel="Optimizer")
    weight_decay: float = setting(1e-3, "L2 penalty.", at_least(0), panel="Optimizer")
    label_smoothing: float = setting(
        0.0, "Share of each label that goes to all classes alike.", fraction, panel="Optimizer"
    )
    flip: bool = setting(False, "Mirror training images, each with probability 1/2.", panel="Data")
    crop: int = setting(
        0, "Shift training images by up to so many pixels.", at_least(0), panel="Data", shown="no"
    )
    cutout: int = setting(
        0,
        "Blank a square of so many pixels' length in training images.",
        at_least(0),
        panel="Data",
        shown="no",
    )
    holdout: int = setting(
        0,
        "Keep so many training images for validation: to choose settings, or the best epoch, "
        "without the test set.",
        at_least(0),
        panel="Data",
    )


# Learning rates that work with plain SGD and gradients clipped to a norm of 0.25.
LM_RATES = {Recurrent.lstm: 20.0, Recurrent.rnn: 4.0}


@dataclass(frozen=True, kw_only=True)
class TextConfig(Config):
    """The settings of `needle train lm`."""

    task: ClassVar[str] = "lm"

    model: Recurrent = setting(Recurrent.lstm, "The recurrent layers.", panel="Model")
    embedding_size: int = setting(200, "Length of a word vector.", at_least(1), panel="Model")
    hidden_size: int = setting(200, "Length of a hidden state.", at_least(1), panel="Model")
    layers: int = setting(2, "Recurrent layers.", at_least(1), panel="Model")
    dropout: float = setting(
        0.0,
        "Probability of dropping a value on its way into, between and out of the recurrent layers.",
        fraction,
        panel="Model",
    )
    tie_weights: bool = setting(
        False, "Use the word vectors as the output layer's weights too.", panel="Model"
    )
    init_range: float | None = setting(
        None,
        "Begin with all weights uniform in +- this.",
        above_zero,
        panel="Model",
        shown="each layer's own",
    )
    epochs: int = setting(3, "Passes over the training data.", at_least(1), on_resume=True)
    batch_size: int = setting(20, "Texts side by side in a step.", at_least(1))
    seq_len: int = setting(35, "Words per step, in each of the batch's texts.", at_least(1))
    sum_steps: bool = setting(
        False,
        "Sum the loss over a step's words and average it over the batch, instead of averaging over "
        "both: gradients are --seq-len times larger.",
        panel="Optimizer",
    )
    lr: float | None = setting(
        None, "Learning rate.", above_zero, panel="Optimizer", shown="lstm 20, rnn 4"
    )
    clip: float = setting(
        0.25, "Largest gradient norm of an update; 0 for no limit.", at_least(0), panel="Optimizer"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr is None:
            object.__setattr__(self, "lr", LM_RATES[self.model])


CONFIGS: dict[str, type[Config]] = {kind.task: kind for kind in (ImageConfig, TextConfig)}


def _hints(kind: type[Config]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _converted(name: str, hint: Any, value: Any) -> Any:
    """A plain value as the field's type: a string as its StrEnum or Path, an int as a float."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and types.NoneType in kinds:
        return None
    kind = kinds[0]
    if issubclass(kind, StrEnum) and isinstance(value, str):
        if value not in list(kind):
            raise ConfigError(f"{name}: got {value!r}: need {' or '.join(kind)}")
        return kind(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) is int:
        if abs(value) > sys.float_info.max:
            raise ConfigError(f"{name}: got {value!r:.50}: need a number that a float can hold")
        return float(value)
    # bool is an int, but True is not a number of epochs.
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise ConfigError(f"{name}: got {value!r}: need {_WORDS.get(kind, kind.__name__)}")
    return value


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}


# ---- presets and files ---------------------------------------------------------------------------


def preset_names(task: str | None = None) -> list[str]:
    """The presets that come with needle; of one task, if given."""
    names = sorted(
        entry.name.removesuffix(".toml")
        for entry in resources.files("needle.apps").joinpath("presets").iterdir()
        if entry.name.endswith(".toml")
    )
    return [name for name in names if task is None or _read_preset(name)["task"] == task]


def load_preset(name: str, task: str) -> dict[str, Any]:
    """The settings that a preset gives: one of needle's by name, or a TOML file by path.

    Raises:
        ConfigError: there is no such preset, it is not TOML, or belongs to another task.
        OSError: the file cannot be read.
    """
    values = _read_preset(name)
    found = values.pop("task", task)
    if found != task:
        raise ConfigError(f"preset: wrong task: {name} is for train {found}: need one for {task}")
    return values


def _read_preset(name: str) -> dict[str, Any]:
    if name.endswith(".toml"):
        return _read_toml(Path(name))
    file = resources.files("needle.apps").joinpath("presets", f"{name}.toml")
    if "/" in name or not file.is_file():
        names = ", ".join(preset_names())
        raise ConfigError(f"preset: no such preset: {name}: need {names}, or a .toml file")
    return _parse_toml(file.read_text(encoding="utf-8"), name)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return _parse_toml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def _parse_toml(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not TOML: {error}") from error


def resolve(task: str, preset: str | None = None, **options: Any) -> Config:
    """The config of a run: options that are not None, over the preset, over the defaults.

    With another schedule than the preset's, what only the preset's has is at its default.

    Raises:
        ConfigError: the preset or a value does not fit.
        OSError: the preset is a file that cannot be read.
    """
    values = {} if preset is None else load_preset(preset, task)
    if preset is not None:
        CONFIGS[task].parse(values, f"preset {preset}")
    given = {name: value for name, value in options.items() if value is not None}
    if "schedule" in given:
        others = [name for name, courses in COURSES.items() if given["schedule"] not in courses]
        values = {name: value for name, value in values.items() if name not in others}
    return CONFIGS[task].parse({**values, **given}, "options")


def read_config(path: Path) -> Config:
    """The config of a run, from the `config.toml` in its folder.

    Raises:
        ConfigError: it is damaged, or of no known task.
        OSError: it cannot be read.
    """
    values = _read_toml(path)
    return parse_config(values.pop("task", None), values, str(path))


def parse_config(task: Any, values: Mapping[str, Any], where: str) -> Config:
    """The config of a task from plain values.

    Raises:
        ConfigError: the task is unknown, or a value does not fit.
    """
    if not isinstance(task, str) or task not in CONFIGS:
        raise ConfigError(f"{where}: unknown task: {task!r}: need {' or '.join(CONFIGS)}")
    return CONFIGS[task].parse(values, where)


def default_of(config_field: Field[Any]) -> Any:
    """The default of a config's field."""
    return None if config_field.default is MISSING else config_field.default
