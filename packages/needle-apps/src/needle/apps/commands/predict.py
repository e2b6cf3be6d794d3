"""`needle predict`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from needle.apps import checkpoint, runs
from needle.apps.checkpoints import model_file
from needle.apps.commands.base import app, mistakes, prepare_machine
from needle.apps.commands.options import DeviceName, Json, Model, RunsDir, Threads, checked
from needle.apps.config import at_least
from needle.apps.generate import printable
from needle.apps.images import load_images
from needle.apps.predict import CLASSES, IMAGE_SIZE, Guess, classify
from needle.apps.report import print_json


@app.command("predict")
def predict_images(
    model: Model,
    files: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image files, of any size and mode.")
    ],
    top: Annotated[
        int, typer.Option(callback=checked(at_least(1)), help="Show so many classes.")
    ] = 5,
    device: DeviceName = None,
    threads: Threads = None,
    runs_dir: RunsDir = runs.ROOT,
    as_json: Json = False,
) -> None:
    r"""Classify image files with a trained model.

    The shorter side is scaled to 32 pixels and the middle of the longer one is kept.
    Reading images needs Pillow: pip install 'needle-apps\[images]'.

    Example: needle predict latest cat.jpg
    """
    with mistakes():
        where = prepare_machine(device, threads)
        content = checkpoint.read(model_file(model, runs_dir))
        classes = CLASSES.get(content.spec.data)
        if content.spec.model == "lm" or classes is None:
            raise ValueError(
                f"predict: not an image model: {content.path} is {content.spec.model}: need one of "
                "train resnet9 (text: needle generate)"
            )
        network = content.spec.build(where)
        content.fill(network)
        images = load_images(files, IMAGE_SIZE)
    for file, guesses in zip(files, classify(network, images, classes, top), strict=True):
        if as_json:
            print_json({"image": str(file), "top": [asdict(guess) for guess in guesses]})
        else:
            _show(file, guesses)


def _show(file: Path, guesses: list[Guess]) -> None:
    typer.echo(printable(str(file)))
    for guess in guesses:
        typer.echo(f"  {100 * guess.probability:5.1f} %  {guess.label}")
