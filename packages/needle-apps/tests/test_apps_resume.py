"""A run that is killed, stopped or out of disk goes on as if nothing had been: real processes."""

import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from needle.apps import checkpoint, runs

# Small data, and, where asked for, a process that kills itself in the n-th fsync or writes slowly.
CHILD = """
import os, resource, signal, sys, time
from needle.apps import sources
from needle.apps.cli import main
from needle.data import SyntheticCorpus, SyntheticImages

sources.SyntheticImages = lambda train: SyntheticImages(train, 256 if train else 64)
sources.SyntheticCorpus = lambda: SyntheticCorpus(120)
fsync, calls = os.fsync, 0

def patched(handle):
    global calls
    calls += 1
    if calls == int(os.environ.get("TEST_DIE_AT", "0")):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(float(os.environ.get("TEST_SLOW_DISK", "0")))
    fsync(handle)

os.fsync = patched
limit = int(os.environ.get("TEST_LARGEST_FILE", "0"))
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
main()
"""

TEXT = (
    *("lm", "--data", "synthetic", "--hidden-size", 12, "--embedding-size", 12, "--seq-len", 6),
    *("--batch-size", 4, "--epochs", 2, "--dropout", 0.2, "--save-every", 5, "--threads", 1),
    *("--schedule", "cosine", "--max-batches", 40),
)
IMAGES = (
    *("resnet9", "--data", "synthetic", "--batch-size", 32, "--epochs", 3, "--save-every", 3),
    *("--schedule", "one-cycle", "--threads", 1, "--holdout", 32, "--flip", "--crop", 2),
)
tasks = pytest.mark.parametrize("command", [TEXT, IMAGES], ids=["lm", "resnet9"])


def start(folder, *arguments, stdout=subprocess.PIPE, **environment):
    given = (*arguments, "--no-plots", "--runs-dir", folder)
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, "train", *map(str, given)],
        env={**os.environ, **environment},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Exit code, stdout and stderr of a process."""
    stdout, stderr = process.communicate(timeout=120)
    assert "Traceback" not in stderr, stderr
    return process.returncode, stdout, stderr


def run(folder, *arguments, **environment):
    return finish(start(folder, *arguments, **environment))


def checkpoints(folder):
    return sorted(folder.glob("*/checkpoints/step-*.safetensors"))


def final_state(folder):
    """All arrays of the last checkpoint, and where it stands."""
    content = checkpoint.read(checkpoints(folder)[-1])
    progress = content.training.state.progress
    arrays = {**content.arrays, "generator": content.training.state.generator["state"]["key"]}
    for name, value in content.training.state.optimizer.items():
        arrays[f"optimizer/{name}"] = np.asarray(value)
    return arrays, (progress.epoch, progress.batch, progress.step, progress.best_loss)


def measured(folder):
    """All rows of the run's metrics, times aside."""
    (run,) = runs.all_runs(folder)
    assert run.state == "finished"
    times = ("seconds", "rate")
    return [{k: v for k, v in row.items() if k not in times} for row in run.metrics()]


def check_same(folder, reference):
    assert measured(folder) == measured(reference)
    arrays, progress = final_state(folder)
    wanted, wanted_progress = final_state(reference)
    assert progress == wanted_progress
    assert arrays.keys() == wanted.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Runs that were never stopped."""
    folders = {}

    def get(command):
        if command not in folders:
            folders[command] = tmp_path_factory.mktemp("unbroken")
            code, _, stderr = run(folders[command], *command)
            assert code == 0, stderr
        return folders[command]

    return get


@tasks
def test_killed_at_random_moments(command, tmp_path, unbroken):
    """Writes are slow here, so that many a kill falls into one."""
    rng = random.Random(1)
    process = start(tmp_path, *command, TEST_SLOW_DISK="0.02")
    for _ in range(4):
        deadline = time.monotonic() + 60
        while not checkpoints(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.8))
        process.kill()
        process.communicate()
        process = start(tmp_path, command[0], "--resume", TEST_SLOW_DISK="0.02")
        time.sleep(0.6)  # until it has begun again
    code, stdout, stderr = finish(process)
    assert (code, stderr) == (0, "")
    # A fast machine may have had time for all epochs between two kills.
    assert re.search("going on in|is finished after", stdout)
    check_same(tmp_path, unbroken(command))
    assert not list(tmp_path.glob("*/checkpoints/.*"))


@pytest.mark.parametrize("call", [1, 3, 4, 7, 8])
def test_killed_while_writing(call, tmp_path, unbroken):
    """Odd or even, before or after the rename: the n-th fsync of the process is its last."""
    code, _, _ = run(tmp_path, *TEXT, TEST_DIE_AT=str(call))
    assert code == -signal.SIGKILL
    code, _, stderr = run(tmp_path, "lm", "--resume")
    assert (code, stderr) == (0, "")
    check_same(tmp_path, unbroken(TEXT))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(number, tmp_path, unbroken):
    process = start(tmp_path, *TEXT, TEST_SLOW_DISK="0.02")
    while not checkpoints(tmp_path):
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(number)
    code, _, stderr = finish(process)
    assert code == 128 + number
    assert re.fullmatch(
        r"stopped in epoch \d of 2; go on with: needle train lm --resume \S+-lm-lstm\n", stderr
    )
    code, stdout, _ = run(tmp_path, "lm", "--resume")
    assert code == 0
    assert re.search(r"going on in \S+ from epoch \d, batch \d", stdout)
    check_same(tmp_path, unbroken(TEXT))


def test_a_second_signal_stops_at_once(tmp_path):
    process = start(tmp_path, *TEXT, TEST_SLOW_DISK="2")
    while not list(tmp_path.glob("*/checkpoints/.*.part")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    code, _, stderr = finish(process)
    assert (code, stderr) == (-signal.SIGINT, "")


def test_no_room_for_the_first_checkpoint(tmp_path):
    code, stdout, stderr = run(tmp_path, *TEXT, TEST_LARGEST_FILE="20000")
    assert code == 1
    assert stderr.startswith("error: cannot write: File too large: make room, then go on with: ")
    assert "(last checkpoint: None)" in stderr
    assert "epoch" not in stdout
    assert list(tmp_path.glob("*/checkpoints/*")) == []


def test_two_processes_cannot_train_one_run(tmp_path):
    process = start(tmp_path, *TEXT, TEST_SLOW_DISK="0.05")
    while not checkpoints(tmp_path):
        time.sleep(0.01)
    code, _, stderr = run(tmp_path, "lm", "--resume")
    assert code == 2
    assert "another process is training it" in stderr
    process.kill()
    process.communicate()


# ---- stdout that takes no more -------------------------------------------------------------------


def closed_pipe():
    """A pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def full_disk():
    return open("/dev/full", "w")


@pytest.mark.parametrize("json", [(), ("--json", "--log-every", 1)], ids=["text", "json"])
@pytest.mark.parametrize(
    ("stdout", "reason"), [(closed_pipe, "Broken pipe"), (full_disk, "No space left on device")]
)
def test_training_stops_when_nobody_hears_it(stdout, reason, json, tmp_path, unbroken):
    with stdout() as file:
        code, _, stderr = finish(start(tmp_path, *TEXT, *json, stdout=file))
    assert code == 1
    assert re.fullmatch(
        f"error: cannot write to stdout: {reason}: stopped in epoch 1 of 2; "
        r"go on with: needle train lm --resume \S+-lm-lstm\n",
        stderr,
    )
    (stopped,) = runs.all_runs(tmp_path)
    assert stopped.state == "stopped"
    code, stdout, _ = run(tmp_path, "lm", "--resume", *json)
    assert code == 0
    if not json:
        check_same(tmp_path, unbroken(TEXT))


def test_training_stops_when_its_reader_goes(tmp_path, unbroken):
    process = start(tmp_path, *TEXT, TEST_SLOW_DISK="0.02")
    process.stdout.readline()
    process.stdout.close()
    with process.stderr as file:
        stderr = file.read()
    assert process.wait(120) == 1
    assert re.match(
        "error: cannot write to stdout: Broken pipe: stopped in epoch [12] of 2", stderr
    )
    assert stderr.count("\n") == 1
    assert run(tmp_path, "lm", "--resume")[0] == 0
    check_same(tmp_path, unbroken(TEXT))


def test_a_run_that_has_ended_when_its_reader_goes(tmp_path):
    options = ("--epochs", 1, "--max-batches", 1)
    assert run(tmp_path, *TEXT, *options)[0] == 0
    with closed_pipe() as file:
        code, _, stderr = finish(start(tmp_path, "lm", "--resume", "--json", stdout=file))
    assert (code, stderr.count("\n")) == (1, 1)
    assert stderr.startswith("error: cannot write to stdout: Broken pipe: ")


@pytest.mark.parametrize("command", [("info",), ("runs", "--json"), ("runs",), ("--help",)])
def test_a_full_disk_is_told_in_one_line(command, tmp_path):
    assert run(tmp_path, *TEXT, "--epochs", 1, "--max-batches", 1)[0] == 0
    with full_disk() as file:
        process = subprocess.run(
            [sys.executable, "-c", CHILD, *command],
            env={**os.environ, "NEEDLE_RUNS_DIR": str(tmp_path)},
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    text = "error: cannot write: No space left on device\n"
    assert (process.returncode, process.stderr) == (1, text)
