"""Pictures and event files of real, small runs."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from needle.apps import plots
from needle.apps.extras import MissingExtraError
from needle.apps.judge import Judgement, judge
from needle.apps.models import ResNet9
from needle.apps.tasks import image_task
from needle.apps.tensorboard import TensorBoard
from needle.apps.trainer import Callback, Trainer
from needle.data import DataLoader, SyntheticImages
from needle.data.synthetic_images import SHAPES
from needle.optim import Adam

Image = pytest.importorskip("PIL.Image", reason="looking at pictures needs Pillow")


def check_picture(path):
    """A PNG of a sensible size, with something on it."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) >= 300
        pixels = np.asarray(image.convert("RGB"))
    white = (pixels == 255).all(axis=2).mean()
    assert 1 - white > 0.02
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    return pixels


def row(event, epoch, step, **figures):
    return {"event": event, "epoch": epoch, "step": step, **figures}


def rows_of(figure):
    rows = []
    for epoch in range(1, 4):
        for step in range(epoch * 10 - 9, epoch * 10 + 1):
            rows.append(row("step", epoch, step, loss=4 / step, lr=0.1 / step))
        measured = {f"{split}_{figure}": 100.0 / epoch for split in ("train", "valid")}
        losses = {"train_loss": 1 / epoch}
        rows.append(row("epoch", epoch, epoch * 10, lr=0.1, **{**losses, **measured}))
    return rows


@pytest.fixture
def picture_modules():
    pytest.importorskip("matplotlib", reason="drawing needs matplotlib")


@pytest.mark.parametrize("figure", ["accuracy", "perplexity"])
@pytest.mark.usefixtures("picture_modules")
def test_curves(tmp_path, figure):
    drawn = plots.draw_curves(rows_of(figure), tmp_path, "a run")
    assert [path.name for path in drawn] == ["loss.png", f"{figure}.png", "learning_rate.png"]
    pictures = [check_picture(path) for path in drawn]
    assert not np.array_equal(pictures[0], pictures[1])
    assert sorted(tmp_path.iterdir()) == sorted(drawn)


@pytest.mark.usefixtures("picture_modules")
def test_nothing_measured_is_nothing_drawn(tmp_path):
    assert plots.draw_curves([], tmp_path, "a run") == []
    one = [row("epoch", 1, 3, lr=0.1, train_loss=2.0)]
    names = [path.name for path in plots.draw_curves(one, tmp_path, "a run")]
    assert names == ["loss.png", "learning_rate.png"]


@pytest.mark.usefixtures("picture_modules")
def test_a_comparison_shows_every_run(tmp_path):
    one = check_picture(plots.draw_comparison({"a": rows_of("loss")}, "loss", tmp_path / "1.png"))
    runs = {"a": rows_of("loss"), "b": rows_of("loss")[11:]}
    two = check_picture(plots.draw_comparison(runs, "loss", tmp_path / "2.png"))
    orange = (255, 127, 14)
    assert not (one == orange).all(axis=2).any()
    assert (two == orange).all(axis=2).any()


def test_without_matplotlib_there_is_a_hint(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        MissingExtraError, match=r"plots: matplotlib .*pip install 'needle-apps\[plots\]'"
    ):
        plots.draw_curves(rows_of("accuracy"), tmp_path, "a run")
    assert list(tmp_path.iterdir()) == []


# ---- judging -------------------------------------------------------------------------------------


def test_a_judgement_counts_and_sorts():
    found = Judgement(
        np.array([0, 1, 1, 2]), np.array([0, 2, 1, 0]), np.array([0.1, 2.0, 0.2, 3.0])
    )
    np.testing.assert_array_equal(found.confusion(3), [[1, 0, 0], [0, 1, 1], [1, 0, 0]])
    np.testing.assert_array_equal(found.mistakes(), [3, 1])


def small_task(n=48):
    model = ResNet9()
    loader = DataLoader(SyntheticImages(train=False, size=n), 32)
    return image_task(model, {"train": loader, "test": loader})


def test_what_is_judged_is_what_is_measured():
    task = small_task()
    found, score = judge(task, "test"), task.measure("test")
    assert len(found.labels) == 48
    assert (found.labels == found.predicted).sum() == score.correct
    assert found.losses.mean() == pytest.approx(score.loss, rel=1e-5)
    assert not task.model.training


@pytest.mark.usefixtures("picture_modules")
def test_confusion_and_mistakes_are_drawn(tmp_path):
    images = SyntheticImages(train=False, size=48)
    found = judge(small_task(), "test")
    check_picture(plots.draw_confusion(found, tuple(SHAPES), tmp_path / "confusion.png", "a run"))
    check_picture(
        plots.draw_mistakes(found, images.X, tuple(SHAPES), tmp_path / "mistakes.png", "a run")
    )
    right = Judgement(found.labels, found.labels, found.losses)
    path = tmp_path / "none.png"
    assert plots.draw_mistakes(right, images.X, tuple(SHAPES), path, "a run").is_file()


# ---- TensorBoard ---------------------------------------------------------------------------------


def records(path):
    """The payloads of an event file: length, its CRC, payload, its CRC (TFRecord)."""
    content = path.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield content[12 : 12 + length]
        content = content[16 + length :]


def scalars(folder):
    """(name, step) -> value of all event files, what a later START says is void left out."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = {}
    for path in sorted(Path(folder).iterdir(), key=lambda file: file.stat().st_mtime_ns):
        for payload in records(path):
            event = event_pb2.Event.FromString(payload)
            if event.HasField("session_log"):
                found = {key: value for key, value in found.items() if key[1] < event.step}
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
    return found


class Heard(Callback):
    """Keeps the losses of all steps."""

    def __init__(self):
        self.losses = {}

    def on_step(self, metrics):
        self.losses[metrics.step] = metrics.loss


def test_event_files_hold_the_figures_of_a_run(tmp_path):
    pytest.importorskip("tensorboardX", reason="event files need tensorboardX")
    task, heard = small_task(), Heard()
    callbacks = [TensorBoard(tmp_path / "events", log_every=1), heard]
    outcome = Trainer(task, Adam(task.model.parameters()), 2, callbacks=callbacks).run()
    found = scalars(tmp_path / "events")
    for step, loss in heard.losses.items():
        assert found["step/loss", step] == pytest.approx(loss, rel=1e-6)
    assert found["test/loss", 4] == pytest.approx(outcome.measured["test"].loss, rel=1e-6)
    assert {name for name, _ in found} == {
        "step/loss", "lr", "train/loss", "train/accuracy", "test/loss", "test/accuracy",
        "final_test/loss", "final_test/accuracy",
    }  # fmt: skip


def test_a_resumed_run_voids_what_comes_again(tmp_path):
    pytest.importorskip("tensorboardX", reason="event files need tensorboardX")
    task = small_task()
    trainer = Trainer(task, Adam(task.model.parameters()), 2)
    for at, steps in ((0, range(1, 5)), (2, (3,))):
        trainer.at.step = at
        board = TensorBoard(tmp_path / "events", log_every=1)
        board.on_start(trainer)
        for step in steps:
            board._step = step
            board._add("step/loss", 10 * at + step)
        board.on_close()
    found = scalars(tmp_path / "events")
    assert found == {("step/loss", 1): 1, ("step/loss", 2): 2, ("step/loss", 3): 23}


def test_without_tensorboardx_there_is_a_hint(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(
        MissingExtraError, match=r"--tensorboard: tensorboardX .*'needle-apps\[tensorboard\]'"
    ):
        TensorBoard(tmp_path, 1)
