"""Pictures of a run, as PNG: curves, a confusion matrix, the worst mistakes.

matplotlib is imported when the first picture is drawn (extra `plots`), without a display: figures
are made by themselves, not through pyplot, so nothing global is touched.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray as Array

from needle.apps.extras import require
from needle.apps.judge import Judgement, judge
from needle.apps.metrics import EPOCH, SPLITS, STEP, MetricsError, Row, points
from needle.apps.runs import Run, judged
from needle.apps.tasks import Task
from needle.apps.trainer import Callback, Outcome, Trainer

TITLES = {
    "loss": "loss (nats)",
    "accuracy": "accuracy",
    "perplexity": "perplexity",
    "lr": "learning rate",
}
FILES = {
    "loss": "loss.png",
    "accuracy": "accuracy.png",
    "perplexity": "perplexity.png",
    "lr": "learning_rate.png",
}
COLOURS = {"train": "tab:blue", "valid": "tab:orange", "test": "tab:green"}
SIZE = (8.0, 4.8)  # inches
DPI = 100
MAX_NUMBERED_CLASSES = 20  # beyond, the cells of a confusion matrix are too small for numbers


# ---- curves --------------------------------------------------------------------------------------


def draw_curves(rows: Sequence[Row], folder: Path, title: str) -> list[Path]:
    """Draw loss.png, accuracy.png or perplexity.png, and learning_rate.png.

    Args:
        rows: of one run.
        folder: where they go; it exists.
        title: above each.

    Returns:
        What was drawn: a picture without a single point is not.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: a picture cannot be written.
    """
    drawn = []
    for figure, name in FILES.items():
        picture, axes = _figure(title, "step", TITLES[figure])
        if _draw_run(axes, rows, figure):
            drawn.append(_save(picture, folder / name))
    return drawn


def draw_comparison(runs: Mapping[str, Sequence[Row]], figure: str, path: Path) -> Path:
    """Draw one figure of several runs over their epochs, in one picture.

    Each run has a colour: dashes are the training split, the line is the split it is judged by.

    Args:
        runs: the rows of each, by name.
        figure: "loss", "accuracy" or "perplexity".
        path: where the PNG goes.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: the picture cannot be written.
    """
    picture, axes = _figure("", "epoch", TITLES[figure])
    seen: list[float] = []
    for number, (name, rows) in enumerate(runs.items()):
        split, values = judged(rows, figure)
        training = points(rows, EPOCH, "epoch", f"train_{figure}")
        lines = [("train", training, "--"), (split, values, "-")]
        for label, line, style in lines[split == "train" :]:
            x, y = [x for x, _ in line], [y for _, y in line]
            axes.plot(x, y, style, color=f"C{number}", marker=".", label=f"{name} ({label})")
            seen += y
    _finish_axes(axes, figure, seen)
    return _save(picture, path)


def _draw_run(axes: Any, rows: Sequence[Row], figure: str) -> bool:
    """Draw a figure over steps: each split's epochs, and single steps behind them."""
    seen: list[float] = []
    single = points(rows, STEP, "step", figure)
    if single:
        faint = {} if figure == "lr" else {"alpha": 0.4, "linewidth": 0.8, "label": "single steps"}
        axes.plot(*zip(*single, strict=True), color=COLOURS["train"], **faint)
        seen += [y for _, y in single]
    for split in SPLITS if figure != "lr" else ():
        line = points(rows, EPOCH, "step", f"{split}_{figure}")
        if line:
            axes.plot(*zip(*line, strict=True), marker=".", color=COLOURS[split], label=split)
            seen += [y for _, y in line]
    if figure == "lr" and not single:  # fewer steps than one row of them
        line = points(rows, EPOCH, "step", figure)
        axes.plot([x for x, _ in line], [y for _, y in line], marker=".", color=COLOURS["train"])
        seen += [y for _, y in line]
    _finish_axes(axes, figure, seen)
    return bool(seen)


def _finish_axes(axes: Any, figure: str, values: Sequence[float]) -> None:
    # A perplexity begins near the size of the vocabulary: on a plain axis the end is a flat line.
    if figure == "perplexity" and values and max(values) > 10 * min(values) > 0:
        axes.set_yscale("log")
    if figure == "lr":
        axes.set_ylim(bottom=0)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def _figure(title: str, x: str, y: str, size: tuple[float, float] = SIZE) -> tuple[Any, Any]:
    figure = require("matplotlib.figure", "plots", "plots").Figure(
        figsize=size, layout="constrained"
    )
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    """Write a PNG in one piece."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        figure.savefig(partial, format="png", dpi=DPI)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


# ---- what an image classifier confuses -----------------------------------------------------------


def draw_confusion(judgement: Judgement, classes: Sequence[str], path: Path, title: str) -> Path:
    """Draw how often each class is taken for each: a row is a true class, a column a predicted one.

    Colours are fractions of the row, numbers are images.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: the picture cannot be written.
    """
    counts = judgement.confusion(len(classes))
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.5 + 0.55 * len(classes)
    figure, axes = _figure(title, "predicted", "true", (side + 1, side))
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    axes.grid(visible=False)
    axes.set_xticks(range(len(classes)), labels=classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), labels=classes)
    if len(classes) <= MAX_NUMBERED_CLASSES:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if fractions[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)
    figure.colorbar(image, ax=axes, label="fraction of the true class")
    return _save(figure, path)


def draw_mistakes(
    judgement: Judgement,
    images: Array[np.floating[Any]],
    classes: Sequence[str],
    path: Path,
    title: str,
    most: int = 24,
) -> Path:
    """Draw the wrongly classified images of the highest loss, the worst first.

    Args:
        judgement: of all images.
        images: (n, 3, H, W) in [0, 1].
        classes: their names.
        path: where the PNG goes.
        title: above it.
        most: how many images at most.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: the picture cannot be written.
    """
    worst, columns = judgement.mistakes()[:most], 6
    rows = max(1, -(-len(worst) // columns))
    figure = require("matplotlib.figure", "plots", "plots").Figure(
        figsize=(1.9 * columns, 0.6 + 2.3 * rows), layout="constrained"
    )
    figure.suptitle(
        f"{title}: {len(judgement.mistakes())} mistakes in {len(judgement.labels)} images"
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, i in zip(grid.flat, worst, strict=False):
        axes.imshow(np.clip(images[i].transpose(1, 2, 0), 0, 1), interpolation="nearest")
        true, predicted = classes[judgement.labels[i]], classes[judgement.predicted[i]]
        axes.set_title(f"#{i}: {true}\nnot {predicted}\nloss {judgement.losses[i]:.2f}", fontsize=8)
    return _save(figure, path)


# ---- during a run --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageSplit:
    """What the pictures of an image classifier need.

    Attributes:
        pixels: of the test split, (n, 3, H, W) in [0, 1].
        classes: their names.
    """

    pixels: Array[np.floating[Any]]
    classes: Sequence[str]


class Pictures(Callback):
    """Draws a run's pictures when it ends: the curves however it ends, the rest when it is whole.

    Without matplotlib, or with a full disk, it warns, and the run goes on.

    Args:
        run: the folder.
        warn: told what is missing.
        test: of an image classifier, its test images.
    """

    def __init__(self, run: Run, warn: Callable[[str], None], test: ImageSplit | None) -> None:
        self.run, self.warn, self.test = run, warn, test
        self._task: Task | None = None

    def on_start(self, trainer: Trainer) -> None:
        self._task = trainer.task
        if importlib.util.find_spec("matplotlib") is None:
            self.warn("no plots without matplotlib: pip install 'needle-apps[plots]'")
            self._task = None

    def on_end(self, outcome: Outcome) -> None:
        if self._task is None or self.test is None or "test" not in self._task.splits:
            return
        judgement, title = judge(self._task, "test"), self.run.folder.name
        folder, classes = self.run.plots, self.test.classes
        with self._warning():
            draw_confusion(judgement, classes, folder / "confusion.png", title)
            pixels = self.test.pixels
            draw_mistakes(judgement, pixels, classes, folder / "mistakes.png", title)

    def on_close(self) -> None:
        if self._task is not None:
            with self._warning():
                draw_curves(self.run.metrics(), self.run.plots, self.run.folder.name)

    @contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ImportError, MetricsError) as error:
            self.warn(f"no plots: {error}")
