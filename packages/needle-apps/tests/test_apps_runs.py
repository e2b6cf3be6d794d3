"""Runs: their folders, their metrics, and what they came to."""

import csv
import json
import multiprocessing
import os
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest

from needle.apps import metrics, runs
from needle.apps.metrics import COLUMNS, MetricsError, MetricsLog
from needle.apps.runs import Run, RunError
from needle.apps.trainer import EpochMetrics, Outcome, Progress, StepMetrics
from needle.apps.training import Score


def score(loss=1.0, correct=5):
    return Score(correct=correct, total_loss=10 * loss, examples=10, steps=1, seconds=2.0)


def step_metrics(step, epoch=1):
    return StepMetrics(epoch, step, 1, 2, 0.5, 1 / step, None, score(), step / 10, "tokens")


def epoch_metrics(step, epoch, unit="tokens", train=1.0, **measured):
    return EpochMetrics(
        epoch, 3, step, 0.5, score(train), {k: score(v) for k, v in measured.items()}, False,
        step / 10, unit,
    )  # fmt: skip


def end(unit="tokens", **measured):
    scores = {split: score(loss) for split, loss in measured.items()}
    return Outcome(scores, 3, None, False, 3.5, unit)


def log_of(folder, step=0, epoch=0):
    """A log that begins, or goes on at a step after so many whole epochs."""
    log = MetricsLog(folder, log_every=1)
    log.on_start(SimpleNamespace(at=Progress(epoch=epoch, step=step)))
    return log


def csv_rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def make(tmp_path, name="first", task="lm", **options):
    run = Run.create(task, name, f'task = "{task}"\n', root=tmp_path / "runs", **options)
    run.release()
    return run


# ---- metrics -------------------------------------------------------------------------------------


def test_every_row_is_in_both_files_at_once(tmp_path):
    log = log_of(tmp_path)
    tell = [
        lambda: log.on_step(step_metrics(1)),
        lambda: log.on_epoch(epoch_metrics(2, 1, valid=0.5)),
        lambda: log.on_end(end(valid=0.5, test=0.25)),
    ]
    for n, event in enumerate(tell, start=1):
        event()
        assert len(metrics.read(tmp_path)) == len(csv_rows(tmp_path)) == n  # while it is open
    log.on_close()
    step, epoch, last = metrics.read(tmp_path)
    assert step == step_metrics(1).record()  # what --json prints
    assert epoch["valid_perplexity"] == pytest.approx(np.exp(0.5))
    assert last == end(valid=0.5, test=0.25).record()
    step, epoch, last = csv_rows(tmp_path)
    assert tuple(step) == COLUMNS
    assert (step["event"], step["loss"], step["grad_norm"]) == ("step", "1.0", "")
    assert float(epoch["valid_perplexity"]) == pytest.approx(np.exp(0.5))
    assert (last["epoch"], last["test_loss"]) == ("3", "0.25")


def test_every_figure_has_a_column():
    for unit in ("images", "tokens"):
        rows = (
            step_metrics(1).record(),
            epoch_metrics(1, 1, unit, valid=1.0, test=1.0).record(),
            end(unit, valid=1.0, test=1.0).record(),
        )
        for row in rows:
            assert set(row) <= {*COLUMNS, "epochs", "best_epoch", "stopped_early"}


def test_only_every_so_many_steps_have_a_row(tmp_path):
    log = MetricsLog(tmp_path, log_every=3)
    log.on_start(SimpleNamespace(at=Progress()))
    for step in range(1, 8):
        log.on_step(step_metrics(step))
    log.on_close()
    assert [row["step"] for row in metrics.read(tmp_path)] == [3, 6]


def test_what_is_not_finite_is_null(tmp_path):
    log = log_of(tmp_path)
    log.on_epoch(epoch_metrics(1, 1, train=800.0))
    log.on_close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (line["train_loss"], line["train_perplexity"]) == (800, None)
    assert metrics.points([line], "epoch", "epoch", "train_perplexity") == []
    assert metrics.points([line], "epoch", "epoch", "train_loss") == [(1, 800)]


def test_a_resumed_run_doubles_no_row(tmp_path):
    log = log_of(tmp_path)
    for step in (1, 2):
        log.on_step(step_metrics(step))
    log.on_epoch(epoch_metrics(2, 1))
    for step in (3, 4):
        log.on_step(step_metrics(step, epoch=2))
    log.on_epoch(epoch_metrics(4, 2))
    log.on_end(end())
    log.on_close()

    def found():
        return [(row["event"], row["step"]) for row in metrics.read(tmp_path)]

    before = [("step", 1), ("step", 2), ("epoch", 2), ("step", 3), ("step", 4)]
    # Saved after the last step of epoch 2, before that epoch was measured.
    log_of(tmp_path, step=4, epoch=1).on_close()
    assert found() == before

    log = log_of(tmp_path, step=3, epoch=1)
    assert found() == before[:-1]
    log.on_step(step_metrics(4, epoch=2))
    log.on_close()
    assert found() == before
    assert [(row["event"], int(row["step"])) for row in csv_rows(tmp_path)] == before


def test_a_run_from_its_beginning_drops_everything(tmp_path):
    log = log_of(tmp_path)
    log.on_step(step_metrics(1))
    log.on_close()
    log_of(tmp_path).on_close()
    assert metrics.read(tmp_path) == csv_rows(tmp_path) == []
    assert sorted(os.listdir(tmp_path)) == ["metrics.csv", "metrics.jsonl"]


def test_a_row_that_was_cut_off_is_no_row(tmp_path):
    log = log_of(tmp_path)
    log.on_step(step_metrics(1))
    log.on_step(step_metrics(2))
    log.on_close()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    assert [row["step"] for row in metrics.read(tmp_path)] == [1]
    log_of(tmp_path, step=2).on_close()
    assert [row["step"] for row in metrics.read(tmp_path)] == [1]
    assert len(csv_rows(tmp_path)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "hello",
        "[1]",
        "{}",
        '{"event": "step"}',
        '{"event": "pause", "epoch": 1, "step": 1}',
        '{"event": "step", "epoch": "1", "step": 1}',
        '{"event": "step", "epoch": 1, "step": 1, "loss": "low"}',
        "[" * 100_000,
    ],
)
def test_a_line_that_is_no_row(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    with pytest.raises(MetricsError, match=r"metrics\.jsonl: line 1 is not a row of metrics"):
        metrics.read(tmp_path)


# ---- folders -------------------------------------------------------------------------------------


def test_a_run_has_a_folder(tmp_path):
    run = make(tmp_path, epochs=13)
    assert run.folder.name.endswith("-lm-first")
    assert run.folder.name[:15].replace("-", "").isdigit()
    assert (run.folder / "config.toml").read_text() == 'task = "lm"\n'
    assert run.checkpoints.is_dir()
    assert run.plots.is_dir()
    assert run.record.epochs == 13
    assert set(run.record.versions) == {*runs.PACKAGES, "python", "numpy"}
    assert Run(run.folder).record == run.record


def test_two_runs_of_one_second_have_two_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(runs.time, "strftime", lambda _: "20260131-142501")
    names = [make(tmp_path).folder.name for _ in range(3)]
    assert names == [f"20260131-142501-lm-first{tail}" for tail in ("", "-2", "-3")]


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a b", "x" * 101, "\x1b[31m"])
def test_a_name_that_cannot_be_a_folder(tmp_path, name):
    with pytest.raises(ValueError, match=r"run: name does not fit: .*: need at most 100 letters"):
        make(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def hold(folder, ready):
    run = Run(folder)
    run.lock()
    ready.set()
    signal.pause()


def test_a_killed_run_says_so(tmp_path):
    run = make(tmp_path)
    assert run.state == "killed"  # it is released, and nobody said how it ended
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(run.folder, ready))
    process.start()
    try:
        assert ready.wait(60)
        assert Run(run.folder).state == "running"
        with pytest.raises(RunError, match=r"run: in use: .*-first: another process is training"):
            run.lock()
    finally:
        process.kill()
        process.join()
    assert Run(run.folder).state == "killed"
    run.lock()
    assert run.state == "running"
    run.update(state="finished", seconds=2.5)
    run.release()
    assert (Run(run.folder).state, Run(run.folder).record.seconds) == ("finished", 2.5)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"name": 1, "task": "lm", "state": "x", "started": 0}',
                '{"name": "a", "task": "lm", "state": "x", "started": "now"}']
)  # fmt: skip
def test_a_damaged_record(tmp_path, content):
    run = make(tmp_path)
    (run.folder / "run.json").write_text(content)
    with pytest.raises(RunError, match=r"run: damaged: .*run\.json"):
        Run(run.folder)
    assert runs.all_runs(tmp_path / "runs") == []


def test_finding_a_run(tmp_path):
    root = tmp_path / "runs"
    with pytest.raises(RunError, match=r"no such run: latest: .*runs has 0: see needle runs"):
        runs.find("latest", root)
    (root / "broken").mkdir(parents=True)
    (root / "broken" / "run.json").write_text('{"na')
    (root / "no run").mkdir()
    noted = []
    assert runs.all_runs(root, noted.append) == []
    assert len(noted) == 1
    assert "run: damaged" in noted[0]
    with pytest.raises(RunError, match=r"no such run: roke: .*runs has 0 and 1 damaged: see"):
        runs.find("roke", root)
    shutil.rmtree(root / "broken")
    first, second = make(tmp_path, "first"), make(tmp_path, "second")
    (root / "notes.txt").write_text("not a run")
    assert [run.folder for run in runs.all_runs(root)] == [first.folder, second.folder]
    for name in (str(second.folder), second.folder.name, "second", "latest"):
        assert runs.find(name, root).folder == second.folder
    with pytest.raises(RunError, match=r"more than one fits: -lm-: .*first, .*second: need the"):
        runs.find("-lm-", root)
    with pytest.raises(RunError, match=r"no such run: third: .* has 2"):
        runs.find("third", root)
    with pytest.raises(RunError, match=r"not the folder of a run: .*: it has no run\.json"):
        Run(tmp_path)


# ---- summaries -----------------------------------------------------------------------------------


def test_a_summary_takes_the_best_epoch_of_the_validation_split(tmp_path):
    run = make(tmp_path, epochs=3)
    empty = runs.summarize(run)
    assert (empty.epochs_done, empty.best, empty.final, empty.state) == (0, None, None, "killed")
    log = log_of(run.folder)
    for epoch, (valid, test) in enumerate([(2, 3), (1, 2), (1.5, 0.5)], start=1):
        log.on_epoch(epoch_metrics(epoch * 10, epoch, train=0.1, test=test, valid=valid))
    log.on_end(end(valid=1.5, test=0.5))
    log.on_close()
    run.update(state="finished")
    found = runs.summarize(run)
    assert (found.metric, found.split, found.best_epoch) == ("perplexity", "valid", 2)
    assert (found.best, found.final) == (pytest.approx(np.e), pytest.approx(np.exp(0.5)))
    assert (found.epochs_done, found.epochs, found.seconds) == (3, 3, 3.5)
    assert found.state == "finished"


def test_a_summary_without_validation(tmp_path):
    run = make(tmp_path, task="resnet9")
    log = log_of(run.folder)
    log.on_epoch(epoch_metrics(10, 1, "images"))
    log.on_close()
    found = runs.summarize(run)
    assert (found.metric, found.split, found.best, found.best_epoch) == (
        "accuracy",
        "train",
        0.5,
        1,
    )


def test_differences_of_configs():
    configs = [{"lr": 1.0, "seed": 0, "clip": 5.0}, {"lr": 2.0, "seed": 0}]
    assert runs.differences(configs) == {"lr": [1.0, 2.0], "clip": [5.0, None]}
    assert runs.differences(configs[:1]) == {}
