"""`needle eval`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from needle.apps import checkpoint, runs, sources
from needle.apps.checkpoint import Checkpoint, CheckpointError, ModelSpec
from needle.apps.checkpoints import data_folder, model_file
from needle.apps.commands.base import app, mistakes, prepare_machine
from needle.apps.commands.options import (
    DataDir,
    DeviceName,
    Json,
    MaxBatches,
    Model,
    RunsDir,
    Threads,
    checked,
)
from needle.apps.commands.train import opening
from needle.apps.config import DataChoice, at_least
from needle.apps.report import Report, closing, print_json
from needle.apps.sources import Source
from needle.apps.tasks import Task, image_task, text_task
from needle.apps.trainer import measured_record
from needle.data import DataLoader
from needle.nn import Module


@app.command("eval")
def evaluate_checkpoint(
    file: Model,
    batch_size: Annotated[
        int | None,
        typer.Option(
            callback=checked(at_least(1)),
            help="Examples per step.",
            show_default="images 128, text 20",
        ),
    ] = None,
    seq_len: Annotated[
        int | None,
        typer.Option(
            callback=checked(at_least(1)),
            help="Words per step, in each of the batch's texts.",
            show_default="35",
        ),
    ] = None,
    data: Annotated[
        DataChoice,
        typer.Option(
            help="auto: the data set that the checkpoint was trained on. What is not there and "
            "cannot be downloaded is an error."
        ),
    ] = DataChoice.auto,
    data_dir: DataDir = None,
    device: DeviceName = None,
    threads: Threads = None,
    max_batches: MaxBatches = None,
    runs_dir: RunsDir = runs.ROOT,
    as_json: Json = False,
) -> None:
    """Measure a checkpoint, or the best one of a run, on the test set of its data."""
    report = Report(quiet=as_json)
    with mistakes():
        where = prepare_machine(device, threads)
        content = checkpoint.read(model_file(file, runs_dir))
        spec = content.spec
        _check_options(content, data, data_dir, seq_len)
        model = spec.build(where)
        content.fill(model)
        # Never auto, which falls back.
        chosen = DataChoice(spec.data) if data is DataChoice.auto else data
        folder = data_dir or data_folder(content.path, chosen)
        if spec.model == "lm":
            source = sources.text(chosen, folder, report.warn)
            _check_vocabulary(content, source)
            task = text_task(model, source.splits, batch_size or 20, seq_len or 35, max_batches)
        else:
            source = sources.images(chosen, folder, report.warn, splits=("test",))
            task = _image_task(model, source, batch_size or 128, max_batches)
    report.unit = task.unit
    report.line(opening(model, spec, source))
    _measure(task, source, content, report, as_json)


def _check_options(
    content: Checkpoint, data: DataChoice, folder: Path | None, seq_len: int | None
) -> None:
    """Refuse what would have no effect on this model.

    Raises:
        ValueError: a folder for the synthetic set, or words for images.
    """
    spec = content.spec
    if folder is not None and data is DataChoice.auto and spec.data == "synthetic":
        other = "" if spec.model == "lm" else ", or --data cifar10 with it"
        raise ValueError(
            f"eval: data_dir is not read: got {folder}: {content.path} was trained on the "
            f"synthetic set, which is in no folder: need none{other}"
        )
    if seq_len is not None and spec.model != "lm":
        raise ValueError(
            f"eval: seq_len does not fit: got {seq_len}: {content.path} is {spec.model}, which "
            "reads no text: need none"
        )


def _image_task(model: Module, source: Source, batch_size: int, limit: int | None) -> Task:
    test = source.splits["test"]
    if batch_size > len(test):
        raise ValueError(
            f"batch size too large: {batch_size}: {source.name} has {len(test)} test images"
        )
    device = next(p.device for p in model.parameters())
    return image_task(model, {"test": DataLoader(test, batch_size, device=device)}, limit)


def _measure(
    task: Task, source: Source, content: Checkpoint, report: Report, as_json: bool
) -> None:
    measured = {}
    for split in [name for name in task.splits if name != "train"]:
        measured[split] = task.measure(
            split, partial(report.on_measure, split, task.batches(split))
        )
        report.hide()
    report.line(f"{closing(source, measured, task.unit, task.max_batches)}, {content.path.name}")
    if as_json:
        record = measured_record(measured, task.unit)
        print_json({"event": "eval", "checkpoint": str(content.path), **record})


def _check_vocabulary(content: Checkpoint, source: Source) -> None:
    spec: ModelSpec = content.spec
    if spec.vocabulary != source.vocabulary:
        raise CheckpointError(
            f"eval: vocabularies differ: {content.path} knows {spec.config['output_size']} words "
            f"of {spec.data}, {source.name} has {source.vocabulary_size} other ones: "
            "need the text it was trained on"
        )
