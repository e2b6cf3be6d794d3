"""Runs: their folders, their metrics, and what they came to."""

import csv
import json
import multiprocessing
import os
import signal

import pytest

from needle.apps import metrics, runs
from needle.apps.metrics import COLUMNS, MetricsError, MetricsLog, Row
from needle.apps.runs import Run, RunError


def step_row(step, epoch=1):
    return Row("step", "train", epoch, step, seconds=step / 10, lr=0.5, loss=1 / step)


def epoch_row(step, epoch, split="valid", **values):
    return Row("epoch", split, epoch, step, seconds=step / 10, loss=1.0, **values)


def csv_rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def make(tmp_path, name="first", task="lm", **options):
    run = Run.create(task, name, f'task = "{task}"\n', root=tmp_path / "runs", **options)
    run.release()
    return run


# ---- metrics -------------------------------------------------------------------------------------


def test_every_row_is_in_both_files_at_once(tmp_path):
    log = MetricsLog(tmp_path)
    rows = [step_row(1), epoch_row(2, 1, accuracy=0.5, perplexity=2.718, rate=10.0)]
    for n, row in enumerate(rows, start=1):
        log.write(row)
        assert metrics.read(tmp_path) == rows[:n]  # while the log is open
        assert len(csv_rows(tmp_path)) == n
    log.close()
    found = csv_rows(tmp_path)[1]
    assert tuple(found) == COLUMNS
    assert found["perplexity"] == "2.718"
    assert found["lr"] == ""


def test_what_is_not_finite_is_left_out_of_the_json(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(Row("epoch", "train", 1, 1, 0.1, loss=800.0, perplexity=float("inf")))
    log.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["loss"] == 800
    assert "perplexity" not in line


def test_a_resumed_run_doubles_no_row(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (1, 2):
        log.write(step_row(step))
    log.write(epoch_row(2, 1))
    for step in (3, 4):
        log.write(step_row(step, epoch=2))
    log.write(epoch_row(4, 2))
    log.write(Row("end", "test", 2, 4, 0.4))
    log.close()

    # Saved after the last step of epoch 2, before that epoch was measured.
    MetricsLog(tmp_path, step=4, epoch=1).close()
    assert [(row.kind, row.step) for row in metrics.read(tmp_path)] == [
        ("step", 1), ("step", 2), ("epoch", 2), ("step", 3), ("step", 4)
    ]  # fmt: skip

    log = MetricsLog(tmp_path, step=3, epoch=1)
    log.write(step_row(4, epoch=2))
    log.close()
    steps = [row.step for row in metrics.read(tmp_path)]
    assert steps == [1, 2, 2, 3, 4]
    assert [int(row["step"]) for row in csv_rows(tmp_path)] == steps


def test_a_new_log_drops_everything(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(step_row(1))
    log.close()
    MetricsLog(tmp_path).close()
    assert metrics.read(tmp_path) == []
    assert csv_rows(tmp_path) == []
    assert sorted(os.listdir(tmp_path)) == ["metrics.csv", "metrics.jsonl"]


def test_a_row_that_was_cut_off_is_no_row(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(step_row(1))
    log.write(step_row(2))
    log.close()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    assert metrics.read(tmp_path) == [step_row(1)]
    MetricsLog(tmp_path, step=2).close()
    assert metrics.read(tmp_path) == [step_row(1)]
    assert len(csv_rows(tmp_path)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "hello",
        "[1]",
        "{}",
        '{"kind": 1, "split": "train", "epoch": 1, "step": 1, "seconds": 0}',
        '{"kind": "step", "split": "train", "epoch": "1", "step": 1, "seconds": 0}',
        '{"kind": "step", "split": "train", "epoch": 1, "step": 1, "seconds": 0, "loss": "low"}',
        '{"kind": "step", "split": "train", "epoch": 1, "step": 1, "seconds": 0, "x": 1}',
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
    log = MetricsLog(run.folder)
    for epoch, (valid, test) in enumerate([(90, 99), (70, 80), (75, 60)], start=1):
        log.write(epoch_row(epoch * 10, epoch, "train", perplexity=50.0))
        log.write(epoch_row(epoch * 10, epoch, "test", perplexity=float(test)))
        log.write(epoch_row(epoch * 10, epoch, "valid", perplexity=float(valid)))
    log.write(Row("end", "test", 3, 30, 3.5, perplexity=61.0))
    log.close()
    run.update(state="finished")
    found = runs.summarize(run)
    assert (found.metric, found.split, found.best, found.final) == ("perplexity", "valid", 70, 61)
    assert (found.epochs_done, found.epochs, found.seconds) == (3, 3, 3.5)
    assert found.state == "finished"


def test_a_summary_without_validation(tmp_path):
    run = make(tmp_path, task="resnet9")
    log = MetricsLog(run.folder)
    log.write(epoch_row(10, 1, "train", accuracy=0.3))
    log.write(epoch_row(20, 2, "train", accuracy=0.2))
    log.close()
    found = runs.summarize(run)
    assert (found.metric, found.split, found.best) == ("accuracy", "train", 0.3)


def test_differences_of_configs():
    configs = [{"lr": 1.0, "seed": 0, "clip": 5.0}, {"lr": 2.0, "seed": 0}]
    assert list(runs.differences(configs)) == [("lr", [1.0, 2.0]), ("clip", [5.0, None])]
    assert list(runs.differences(configs[:1])) == []
