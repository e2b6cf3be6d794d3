"""`needle train`."""

from __future__ import annotations

import math
import shlex
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

import needle
from needle.apps import checkpoint, config, recipes, runs
from needle.apps.checkpoints import CheckpointFolder
from needle.apps.commands.base import (
    InterruptedRunError,
    RunFailedError,
    app,
    mistakes,
    prepare_machine,
    show_help,
)
from needle.apps.commands.options import Json, RunsDir, config_options
from needle.apps.config import Config, ConfigError, ImageConfig, TextConfig, about
from needle.apps.files import write_atomically
from needle.apps.metrics import MetricsLog
from needle.apps.plots import ImageSplit, Pictures
from needle.apps.predict import CLASSES
from needle.apps.recipes import Recipe
from needle.apps.report import JsonReport, Report, closing, count, duration
from needle.apps.runs import Run, RunError
from needle.apps.tensorboard import TensorBoard
from needle.apps.trainer import (
    Callback,
    DivergedError,
    EpochMetrics,
    Outcome,
    StoppedError,
    Trainer,
)

train = typer.Typer(help="Train a network, then measure it on its test set.")
train.callback(invoke_without_command=True)(show_help)
app.add_typer(train, name="train")

Preset = Annotated[
    str | None,
    typer.Option(
        help="Settings by name (`--preset list` shows them), or a .toml file such as a run's "
        "config.toml. Options typed besides go before."
    ),
]
Resume = Annotated[
    str | None,
    typer.Option(
        metavar="[RUN]",
        help="Go on with a run that was stopped or killed, as if it never had been: its name or "
        "folder; without one, the latest such, or the latest of all.",
        rich_help_panel="Checkpoints",
    ),
]
Save = Annotated[
    Path | None,
    typer.Option(
        help="Also write the model, without what training needs, to this file after every epoch.",
        rich_help_panel="Checkpoints",
    ),
]


Name = Annotated[
    str | None,
    typer.Option(
        help="The end of the run's folder, by which to find it again.",
        show_default="the preset or the model",
        rich_help_panel="Output",
    ),
]
Plots = Annotated[
    bool,
    typer.Option(
        "--plots/--no-plots",
        help="Draw loss, accuracy or perplexity, and more, into the run's folder when it ends "
        "(needs needle-apps\\[plots]).",  # of rich, [plots] would be a style
        rich_help_panel="Output",
    ),
]
EventFiles = Annotated[
    bool,
    typer.Option(
        "--tensorboard",
        help="Write TensorBoard event files (needs needle-apps\\[tensorboard]).",
        rich_help_panel="Output",
    ),
]


@dataclass(frozen=True)
class Request:
    """What was typed besides the settings."""

    preset: str | None
    resume: str | None
    save: Path | None
    name: str | None
    plots: bool
    tensorboard: bool
    runs_dir: Path
    as_json: bool


@train.command("resnet9")
@config_options(ImageConfig)
def train_resnet9(
    settings: dict[str, Any],
    preset: Preset = None,
    resume: Resume = None,
    save: Save = None,
    name: Name = None,
    plots: Plots = True,
    tensorboard: EventFiles = False,
    runs_dir: RunsDir = runs.ROOT,
    as_json: Json = False,
) -> None:
    """Train ResNet9 to tell ten kinds of small colour images apart (CIFAR-10)."""
    request = Request(preset, resume, save, name, plots, tensorboard, runs_dir, as_json)
    launch("resnet9", settings, request)


@train.command("lm")
@config_options(TextConfig)
def train_lm(
    settings: dict[str, Any],
    preset: Preset = None,
    resume: Resume = None,
    save: Save = None,
    name: Name = None,
    plots: Plots = True,
    tensorboard: EventFiles = False,
    runs_dir: RunsDir = runs.ROOT,
    as_json: Json = False,
) -> None:
    """Train a language model to predict each next word of a text (Penn Treebank)."""
    request = Request(preset, resume, save, name, plots, tensorboard, runs_dir, as_json)
    launch("lm", settings, request)


# ---- setting up ----------------------------------------------------------------------------------


def launch(task: str, settings: dict[str, Any], request: Request) -> None:
    """Set a run up, and train."""
    report = Report(quiet=request.as_json)
    if request.preset == "list":
        for name in config.preset_names(task):
            typer.echo(name)
        return
    with ExitStack() as stack:
        with mistakes():
            old = _find(task, request)
            if old is not None:
                stack.callback(old.release)
            wanted = _settle(task, settings, request, old)
            if request.save is not None:
                checkpoint.check_writable(request.save)
            device = prepare_machine(wanted.device, wanted.threads)
            recipe = recipes.build(wanted, device, report.warn)
            run = old or _create(recipe.config, request)
            stack.callback(run.release)
        _train(recipe, run, old is not None, report, request)


def _find(task: str, request: Request) -> Run | None:
    """The run to go on with, locked.

    Raises:
        RunError: there is none, it is another task's, or another process has it.
    """
    if request.resume is None:
        return None
    if request.resume == "latest":
        mine = [run for run in runs.all_runs(request.runs_dir) if run.record.task == task]
        if not mine:
            raise RunError(f"resume: no run of train {task} in {request.runs_dir}: begin one first")
        ended = [run for run in mine if run.state in (runs.STOPPED, runs.KILLED, runs.FAILED)]
        run = (ended or mine)[-1]
    else:
        run = runs.find(request.resume, request.runs_dir)
    if run.record.task != task:
        raise RunError(
            f"resume: wrong task: {run.folder} is a run of train {run.record.task}: need {task}"
        )
    run.lock()
    return run


def _create(settings: Config, request: Request) -> Run:
    preset = request.preset or str(getattr(settings, "model", settings.task))
    name = request.name or ("custom" if preset.endswith(".toml") else preset)
    return Run.create(
        settings.task, name, settings.to_toml(), root=request.runs_dir, epochs=settings.epochs
    )


def _settle(task: str, settings: dict[str, Any], request: Request, old: Run | None) -> Config:
    """The settings of the run."""
    if old is None:
        found = config.resolve(task, request.preset, **settings)
        # Whoever goes on with the run may be in another folder.
        return found.changed(data_dir=found.data_dir and found.data_dir.absolute())
    return _continued(config.read_config(old.folder / runs.CONFIG), settings, request)


def _continued(old: Config, settings: dict[str, Any], request: Request) -> Config:
    """A run's settings, with those changed that may be.

    Raises:
        ConfigError: one may not.
    """
    for option, value in (("--preset", request.preset), ("--name", request.name)):
        if value is not None:
            raise ConfigError(
                f"resume: a run keeps its settings: got {option}: need --resume without"
            )
    fixed = [each.name for each in fields(old) if not about(each).on_resume]
    for name, value in settings.items():
        if name in fixed and value != getattr(old, name):
            raise ConfigError(
                f"resume: a run keeps its settings: got {name} {value}: "
                f"it has {'none' if getattr(old, name) is None else getattr(old, name)}"
            )
    return old.changed(**settings)


# ---- running -------------------------------------------------------------------------------------


def _train(recipe: Recipe, run: Run, resumed: bool, report: Report, request: Request) -> None:
    keeper = CheckpointFolder(run.checkpoints, recipe.spec, recipe.config, report.warn)
    with mistakes():
        trainer = recipe.trainer(_callbacks(recipe, run, report, request), keeper)
        if resumed:
            run.metrics()  # damaged ones show now
        source = keeper.restore(trainer) if resumed else None
        if recipe.config.epochs < trainer.at.epoch:
            raise ConfigError(
                f"resume: too few epochs: got {recipe.config.epochs}: "
                f"the run has done {trainer.at.epoch}: need as many or more"
            )
        write_atomically(run.folder / runs.CONFIG, recipe.config.to_toml().encode())
        run.update(state=runs.RUNNING, epochs=recipe.config.epochs)
    report.trainer = trainer
    _announce(recipe, run, trainer, source, report, request)
    outcome = _run(trainer, run, keeper, report)
    took = duration(outcome.seconds)
    text = closing(recipe.source, outcome.measured, outcome.unit, recipe.config.max_batches)
    early = f", stopped early: best was epoch {outcome.best_epoch}" if outcome.stopped_early else ""
    report.line(f"{text}, after {count(outcome.epochs, 'epoch', 'epochs')} in {took}{early}")
    if report.failure is not None:
        raise RunFailedError(f"{_unheard(report.failure)}: the run is whole, in {run.folder}")


def _unheard(failure: OSError) -> str:
    return f"cannot write to stdout: {failure.strerror or failure}"


def _callbacks(recipe: Recipe, run: Run, report: Report, request: Request) -> list[Callback]:
    """Who is told how the run goes.

    Raises:
        MissingExtraError: --tensorboard without its library.
    """
    log_every = recipe.config.log_every
    callbacks: list[Callback] = [report, MetricsLog(run.folder, log_every)]
    if request.as_json:
        callbacks.append(JsonReport(log_every, report))
    if request.save is not None:
        callbacks.append(ModelFile(request.save, recipe))
    events = run.folder / runs.TENSORBOARD
    if request.tensorboard or events.is_dir():  # a resumed run goes on with what it has begun
        callbacks.append(TensorBoard(events, log_every))
    if request.plots:
        callbacks.append(Pictures(run, report.warn, _test_images(recipe)))
    return callbacks


def _test_images(recipe: Recipe) -> ImageSplit | None:
    classes, test = CLASSES.get(recipe.spec.data), recipe.source.splits.get("test")
    if recipe.task.unit != "images" or classes is None or test is None:
        return None
    return ImageSplit(test.X, classes)


def _run(trainer: Trainer, run: Run, keeper: CheckpointFolder, report: Report) -> Outcome:
    again = f"needle train {run.record.task} --resume {shlex.quote(str(run.folder))}"
    state = runs.FAILED
    with stopping(trainer) as received:
        try:
            outcome = trainer.run()
            state = runs.FINISHED
            return outcome
        except StoppedError as error:
            state = runs.STOPPED
            text = f"{error}; go on with: {again}"
            if report.failure is not None:
                raise RunFailedError(f"{_unheard(report.failure)}: {text}") from None
            raise InterruptedRunError(text, received[0] if received else signal.SIGINT) from None
        except DivergedError as error:
            raise RunFailedError(f"{error} (last checkpoint: {keeper.saved})") from error
        except OSError as error:
            raise RunFailedError(
                f"cannot write: {error.strerror or error}: make room, then go on with: {again} "
                f"(last checkpoint: {keeper.saved})"
            ) from error
        finally:
            with suppress(OSError):  # the state is a convenience, the error above is not
                run.update(state=state, seconds=trainer.at.seconds)


@contextmanager
def stopping(trainer: Trainer) -> Iterator[list[int]]:
    """Let SIGINT and SIGTERM stop a trainer after its step; a second one ends the process at once.

    Yields:
        The signals received.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        trainer.stop = True
        # A checkpoint is whole or absent at any moment, so the second signal may kill.
        for each in handled:
            signal.signal(each, signal.SIG_DFL)

    handled = (signal.SIGINT, signal.SIGTERM)
    before = {each: signal.signal(each, stop) for each in handled}
    try:
        yield received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class ModelFile(Callback):
    """Writes the model after every epoch, for `--save`."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path, self.recipe = path, recipe

    def on_epoch(self, metrics: EpochMetrics) -> None:
        checkpoint.save(self.path, self.recipe.task.model, self.recipe.spec)


def _announce(
    recipe: Recipe,
    run: Run,
    trainer: Trainer,
    source: Path | None,
    report: Report,
    request: Request,
) -> None:
    """Say what runs, where, on which data."""
    model = recipe.task.model
    size = sum(math.prod(p.shape) for p in model.parameters())
    if request.as_json:
        report.json(
            {
                "event": "start",
                "run": str(run.folder),
                "resumed_from": None if source is None else str(source),
                "step": trainer.at.step,
                "parameters": size,
                "data": recipe.source.summary,
                "config": recipe.config.plain(),
            }
        )
    report.line(opening(model, recipe.spec, recipe.source))
    report.line(_beginning(run, trainer, source is not None))


def _beginning(run: Run, trainer: Trainer, resumed: bool) -> str:
    """Where a run begins or goes on; of a finished one, which option lets it go on."""
    at = trainer.at
    if not resumed:
        return f"run in {run.folder}"
    if not trainer.finished:
        return f"going on in {run.folder} from epoch {at.epoch + 1}, batch {at.batch + 1}"
    more = [f"--epochs {at.epoch + 1}"] if at.epoch >= trainer.epochs else []
    if trainer.stalled:
        more.append(f"--early-stop {at.epoch - at.best_epoch + 1}")
    return (
        f"{run.folder} is finished after {count(at.epoch, 'epoch', 'epochs')}, only to be "
        f"measured: {' and '.join(more)} or more goes on"
    )


def opening(model: Any, spec: checkpoint.ModelSpec, source: Any) -> str:
    """`ResNet9, 431,946 parameters, on cpu() with 2 threads; CIFAR-10 in data: ...`.

    Of a GPU it says which: `on cuda(), NVIDIA H200, compute 9.0, 139.8 GiB`.
    """
    kind = spec.config.get("seq_model", "").upper()
    full = " (full resolution)" if spec.model == "resnet9-full" else ""
    name = f"{kind} language model" if kind else f"ResNet9{full}"
    size = sum(math.prod(p.shape) for p in model.parameters())
    device = next(p.device for p in model.parameters())
    threads = count(needle.num_threads(), "thread", "threads")
    where = f", {device.about()}" if device.about() else f" with {threads}"
    return f"{name}, {size:,} parameters, on {device}{where}; {source.summary}"
