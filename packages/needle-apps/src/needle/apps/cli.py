"""The `needle` command: train, eval, info.

Results go to stdout, progress and warnings to stderr. A mistake of the user's is one line on
stderr and exit code 2, a run that failed on its own is exit code 1, Ctrl-C is exit code 130.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from typer.core import TyperGroup

import needle
from needle import nn
from needle.apps import checkpoint, sources
from needle.apps.checkpoint import CheckpointError, ModelSpec
from needle.apps.info import describe
from needle.apps.report import Report, duration
from needle.apps.sources import Source
from needle.apps.training import (
    DivergedError,
    Task,
    evaluate,
    image_task,
    model_device,
    scale_weights,
    text_task,
    train_epoch,
)
from needle.backend_ndarray import Device, DeviceError
from needle.data import DataLoader
from needle.optim import SGD, Adam, Optimizer


class CommandError(Exception):
    """Ends a command with a message of one line."""

    exit_code = 2

    def format_message(self) -> str:
        """The message, under the name that the command line's own errors have for it."""
        return "error: " + " ".join(str(self).split())


class RunFailedError(CommandError):
    """A run was set up rightly, and failed later."""

    exit_code = 1


class StoppedError(CommandError):
    """The user pressed Ctrl-C."""

    exit_code = 130

    def format_message(self) -> str:
        return str(self)


class Commands(TyperGroup):
    """The command group, with every mistake told in one line."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command and exit with its code; an error with a message prints just that."""
        try:
            code = super().main(args, "needle", complete_var, False, windows_expand_args, **extra)
        except CommandError as error:
            typer.echo(error.format_message(), err=True)
            code = error.exit_code
        except (typer.Abort, KeyboardInterrupt):
            code = StoppedError.exit_code
        except Exception as error:
            # Typer's usage errors have no public common class: what they share is this method.
            if not hasattr(error, "format_message"):
                raise
            typer.echo(f"error: {error.format_message()}", err=True)
            code = getattr(error, "exit_code", 2)
        if standalone_mode:
            sys.exit(code)
        return code


@contextmanager
def mistakes() -> Iterator[None]:
    """Turn what the user or the disk got wrong into one line, while a run is being set up."""
    try:
        yield
    except OSError as error:
        text = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        raise CommandError(text) from error
    except (ValueError, DeviceError) as error:
        raise CommandError(str(error)) from error
    except MemoryError as error:
        raise CommandError(f"not enough memory: {error}") from error


# ---- options -------------------------------------------------------------------------------------


class DataChoice(StrEnum):
    """The values of --data."""

    auto = "auto"
    cifar10 = "cifar10"
    ptb = "ptb"
    synthetic = "synthetic"


class DeviceChoice(StrEnum):
    """The values of --device."""

    cpu = "cpu"
    cuda = "cuda"
    cpu_numpy = "cpu_numpy"


class Recurrent(StrEnum):
    """The values of --model."""

    rnn = "rnn"
    lstm = "lstm"


class Init(StrEnum):
    """The values of --init."""

    torch = "torch"
    kaiming = "kaiming"


# Ranges are checked here, not by Typer: its message does not say what it got.
def _at_least(lowest: int) -> Callable[[float | None], float | None]:
    def check(value: float | None) -> float | None:
        if value is not None and not lowest <= value < math.inf:
            raise typer.BadParameter(f"got {value}: need at least {lowest}")
        return value

    return check


def _above_zero(value: float | None) -> float | None:
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(f"got {value}: need a positive number")
    return value


def _seed(value: int) -> int:
    if not 0 <= value < 2**32:
        raise typer.BadParameter(f"got {value}: need 0 <= seed < 2**32")
    return value


Data = Annotated[
    DataChoice,
    typer.Option(
        help="auto: a local folder, else a download, else the synthetic set. The others are "
        "strict: what is not there and cannot be downloaded is an error."
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Read the data set from this folder, and from nowhere else."),
]
Epochs = Annotated[int, typer.Option(callback=_at_least(1), help="Passes over the training data.")]
BatchSize = Annotated[int, typer.Option(callback=_at_least(1), help="Examples per step.")]
Rate = Annotated[float, typer.Option(callback=_above_zero, help="Learning rate.")]
Seed = Annotated[int, typer.Option(callback=_seed, help="Fixes weights and data order.")]
DeviceName = Annotated[
    DeviceChoice | None,
    typer.Option(help="Where to run.", show_default="cpu, or what NEEDLE_BACKEND says"),
]
Threads = Annotated[
    int | None, typer.Option(callback=_at_least(1), help="CPU threads.", show_default="all cores")
]
MaxBatches = Annotated[
    int | None,
    typer.Option(callback=_at_least(1), help="Cut every pass short after so many batches."),
]
Save = Annotated[
    Path | None, typer.Option(help="Write a checkpoint to this file after every epoch.")
]
SeqLen = Annotated[
    int, typer.Option(callback=_at_least(1), help="Words per step, in each of the batch's texts.")
]

# How far the first weights of --init reach, against the layers' own +-sqrt(6 / fan_in).
INIT_GAINS = {Init.kaiming: 1.0, Init.torch: 6**-0.5}

# Learning rates that work with plain SGD and gradients clipped to a norm of 0.25.
LM_RATES = {Recurrent.lstm: 20.0, Recurrent.rnn: 4.0}


# ---- commands ------------------------------------------------------------------------------------

app = typer.Typer(
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train and measure the networks of the needle deep-learning framework.",
)
train = typer.Typer(help="Train a network, then measure it on its test set.")
app.add_typer(train, name="train")


@app.callback(invoke_without_command=True)
@train.callback(invoke_without_command=True)
def _show_help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@train.command("resnet9")
def train_resnet9(
    epochs: Epochs = 10,
    batch_size: BatchSize = 128,
    lr: Rate = 1e-3,
    weight_decay: Annotated[float, typer.Option(callback=_at_least(0), help="L2 penalty.")] = 1e-3,
    init: Annotated[
        Init,
        typer.Option(
            help="How far from zero weights begin, for a fan-in of n. kaiming: up to sqrt(6/n), as "
            "the layers draw them. torch: up to 1/sqrt(n), PyTorch's default: behind batch norm "
            "smaller weights learn faster."
        ),
    ] = Init.torch,
    data: Data = DataChoice.auto,
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: DeviceName = None,
    threads: Threads = None,
    max_batches: MaxBatches = None,
    save: Save = None,
) -> None:
    """Train ResNet9 with Adam to tell ten kinds of small colour images apart (CIFAR-10)."""
    report = Report("images")
    with mistakes():
        where = _prepare(device, threads, save)
        source = sources.images(data, data_dir, report.warn)
        np.random.seed(seed)
        spec = ModelSpec("resnet9", source.kind)
        model = spec.build(where)
        scale_weights(model, INIT_GAINS[init])
        task = _image_task(model, source, batch_size, max_batches)
        opt = Adam(model.parameters(), lr=lr, weight_decay=weight_decay)
    report.line(_opening(model, spec, where, source))
    _train(task, opt, epochs, source, report, lambda: _save(save, model, spec))


@train.command("lm")
def train_lm(
    model: Annotated[Recurrent, typer.Option(help="The recurrent layers.")] = Recurrent.lstm,
    epochs: Epochs = 3,
    batch_size: BatchSize = 20,
    seq_len: SeqLen = 35,
    embedding_size: Annotated[
        int, typer.Option(callback=_at_least(1), help="Length of a word vector.")
    ] = 200,
    hidden_size: Annotated[
        int, typer.Option(callback=_at_least(1), help="Length of a hidden state.")
    ] = 200,
    layers: Annotated[int, typer.Option(callback=_at_least(1), help="Recurrent layers.")] = 2,
    lr: Annotated[
        float | None,
        typer.Option(callback=_above_zero, help="Learning rate.", show_default="lstm 20, rnn 4"),
    ] = None,
    clip: Annotated[
        float, typer.Option(callback=_above_zero, help="Largest gradient norm of an update.")
    ] = 0.25,
    data: Data = DataChoice.auto,
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: DeviceName = None,
    threads: Threads = None,
    max_batches: MaxBatches = None,
    save: Save = None,
) -> None:
    """Train a language model with SGD to predict each next word of a text (Penn Treebank)."""
    report = Report("tokens")
    with mistakes():
        where = _prepare(device, threads, save)
        source = sources.text(data, data_dir, report.warn)
        np.random.seed(seed)
        config = {
            "embedding_size": embedding_size,
            "output_size": source.vocabulary_size,
            "hidden_size": hidden_size,
            "num_layers": layers,
            "seq_model": model.value,
        }
        spec = ModelSpec("lm", source.kind, config, source.vocabulary)
        network = spec.build(where)
        task = text_task(network, source.splits, batch_size, seq_len, clip, max_batches)
        opt = SGD(network.parameters(), lr=lr or LM_RATES[model])
    report.line(_opening(network, spec, where, source))
    _train(task, opt, epochs, source, report, lambda: _save(save, network, spec))


@app.command("eval")
def evaluate_checkpoint(
    file: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Written by train --save.")],
    batch_size: Annotated[
        int | None,
        typer.Option(
            callback=_at_least(1), help="Examples per step.", show_default="images 128, text 20"
        ),
    ] = None,
    seq_len: SeqLen = 35,
    data: Data = DataChoice.auto,
    data_dir: DataDir = None,
    device: DeviceName = None,
    threads: Threads = None,
    max_batches: MaxBatches = None,
) -> None:
    """Measure a checkpoint on the test set of the data it was trained on."""
    with mistakes():
        where = _prepare(device, threads)
        model, spec = checkpoint.load(file, where)
        # What the model was trained on replaces auto, and with it the fallback.
        chosen = DataChoice(spec.data) if data is DataChoice.auto else data
        report = Report("images" if spec.model == "resnet9" else "tokens")
        if spec.model == "resnet9":
            source = sources.images(chosen, data_dir, report.warn, splits=("test",))
            task = _image_task(model, source, batch_size or 128, max_batches)
        else:
            source = sources.text(chosen, data_dir, report.warn)
            _check_vocabulary(file, spec, source)
            task = text_task(model, source.splits, batch_size or 20, seq_len, None, max_batches)
    report.line(_opening(model, spec, where, source))
    _conclude(task, source, report, file.name)


@app.command()
def info() -> None:
    """Show versions, the CPU target, threads and devices: what a bug report should hold."""
    for line in describe():
        typer.echo(line)


def main() -> None:
    """The console script."""
    app()


# ---- how a run goes ------------------------------------------------------------------------------


def _prepare(choice: DeviceChoice | None, threads: int | None, save: Path | None = None) -> Device:
    """Choose the device and the threads, and find out now what would fail at the end."""
    if save is not None:
        checkpoint.check_writable(save)
    if threads is not None:
        needle.set_num_threads(threads)
    if choice is None:
        return needle.default_device()
    device: Device = {"cpu": needle.cpu, "cuda": needle.cuda, "cpu_numpy": needle.cpu_numpy}[
        choice
    ]()
    device.zeros((1,))  # a device that is not there says why
    return device


def _image_task(model: nn.Module, source: Source, batch_size: int, limit: int | None) -> Task:
    name, first = next(iter(source.splits.items()))
    if batch_size > len(first):
        raise ValueError(
            f"batch size too large: {batch_size}: {source.name} has {len(first)} {name} images"
        )
    loaders = {
        name: DataLoader(split, batch_size, shuffle=name == "train", device=model_device(model))
        for name, split in source.splits.items()
    }
    return image_task(model, loaders, limit)


def _train(
    task: Task,
    opt: Optimizer,
    epochs: int,
    source: Source,
    report: Report,
    save: Callable[[], str],
) -> None:
    """Train, report and save epoch by epoch, then measure on the test set."""
    start, saved, epoch = time.perf_counter(), "nothing saved", 1
    try:
        for epoch in range(1, epochs + 1):
            title = f"epoch {epoch}/{epochs}"
            with report.watch(title, task.batches("train")) as observe:
                score = train_epoch(task, opt, observe)
            report.finished(title, score)
            with mistakes():
                saved = save() or saved
            took = duration(time.perf_counter() - start)
        _conclude(task, source, report, f"after {_count(epochs, 'epoch', 'epochs')} in {took}")
    except KeyboardInterrupt:
        raise StoppedError(f"stopped in epoch {epoch} of {epochs}; {saved}") from None
    except DivergedError as error:
        raise RunFailedError(f"{error} (epoch {epoch}; {saved})") from error


def _conclude(task: Task, source: Source, report: Report, after: str) -> None:
    """Measure every split but the training one, and print the closing line."""
    found = []
    for name in [name for name in task.splits if name != "train"]:
        with report.watch(name, task.batches(name)) as observe:
            score = evaluate(task, name, observe)
        found.append(report.result(name, score))
    cut = ""
    if task.max_batches is not None:
        cut = f" (cut short at {_count(task.max_batches, 'batch', 'batches')})"
    report.line(f"{source.name}: {', '.join(found)}{cut}, {after}")


def _count(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"


def _opening(model: nn.Module, spec: ModelSpec, device: Device, source: Source) -> str:
    """What runs, where, on which data."""
    kind = spec.config.get("seq_model", "").upper()
    name = f"{kind} language model" if kind else "ResNet9"
    size = sum(math.prod(p.shape) for p in model.parameters())
    threads = _count(needle.num_threads(), "thread", "threads")
    return f"{name}, {size:,} parameters, on {device} with {threads}; {source.summary}"


def _save(path: Path | None, model: nn.Module, spec: ModelSpec) -> str:
    if path is None:
        return ""
    checkpoint.save(path, model, spec)
    return f"{path} holds the last whole epoch"


def _check_vocabulary(file: Path, spec: ModelSpec, source: Source) -> None:
    if spec.vocabulary != source.vocabulary:
        raise CheckpointError(
            f"eval: vocabularies differ: {file} knows {spec.config['output_size']} words of "
            f"{spec.data}, {source.name} has {source.vocabulary_size} other ones: "
            "need the text it was trained on"
        )
