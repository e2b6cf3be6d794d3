"""The `needle` command: it trains, saves, measures, and answers every mistake with one line."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import needle as ndl
from needle.apps import checkpoint, sources
from needle.apps.cli import app
from needle.data import DownloadError, SyntheticCorpus, SyntheticImages


@pytest.fixture(autouse=True)
def small_and_offline(monkeypatch, tmp_path):
    """Small synthetic sets, no network, and an empty folder to work in."""
    sizes = {True: 192, False: 96}
    monkeypatch.setattr(
        sources, "SyntheticImages", lambda train: SyntheticImages(train, sizes[train])
    )
    monkeypatch.setattr(sources, "SyntheticCorpus", lambda: SyntheticCorpus(300))

    def unreachable(*_, **__):
        raise DownloadError("download: failed: no network in tests")

    monkeypatch.setattr(sources.download, "fetch", unreachable)
    monkeypatch.setenv("NEEDLE_DATA_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    """The result of a command; its output goes to .stdout and .stderr."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


def succeed(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def help_of(*command):
    """The help of a command, on a screen so wide that no sentence is broken."""
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, [*command, "--help"]).stdout


def fail(*arguments, code=2):
    """The one line that a mistake is answered with."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    line = result.stderr.rstrip("\n")
    assert "\n" not in line
    assert "Traceback" not in result.output
    return line


# Pictures have tests of their own, and take longer than these epochs.
SYNTHETIC = ("--data", "synthetic", "--no-plots")
IMAGES = ("train", "resnet9", *SYNTHETIC, "--batch-size", 32)
TEXT = ("train", "lm", *SYNTHETIC, "--embedding-size", 24, "--hidden-size", 24)


# ---- what works ----------------------------------------------------------------------------------


def numbers(pattern, text):
    return [float(n) for n in re.findall(pattern, text)]


def test_resnet9_learns_the_synthetic_images():
    result = succeed(*IMAGES, "--epochs", 5, "--seed", 1)
    lines = result.stdout.splitlines()
    assert lines[0].startswith("ResNet9, 431,946 parameters, on ")
    assert lines[0].endswith("synthetic images: 192 train, 96 test images")
    losses = numbers(r"epoch \d/5: loss (\d+\.\d+)", result.stdout)
    assert len(losses) == 5
    assert losses[-1] < 0.7 * losses[0]
    assert re.fullmatch(
        r"synthetic images: test accuracy \d+\.\d\d %, after 5 epochs in .* s", lines[-1]
    )


def test_init_chooses_the_scale_of_the_first_weights():
    outputs = [
        succeed(*IMAGES, "--epochs", 1, *options).stdout.splitlines()[2]
        for options in ([], ["--init", "torch"], ["--init", "kaiming"])
    ]
    losses = [numbers(r"loss (\d+\.\d+)", line)[0] for line in outputs]
    assert losses[0] == losses[1] < losses[2]
    assert "'zeros' is not one of 'torch', 'kaiming'" in fail(*IMAGES, "--init", "zeros")


@pytest.mark.parametrize("model", ["rnn", "lstm"])
def test_lm_learns_the_synthetic_text(model):
    result = succeed(*TEXT, "--model", model, "--epochs", 3, "--batch-size", 4)
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{model.upper()} language model, ")
    perplexities = numbers(r"epoch \d/3: loss \S+, perplexity (\d+\.\d)", result.stdout)
    assert len(perplexities) == 3
    assert perplexities[-1] < 0.6 * perplexities[0]
    closing = re.fullmatch(
        r"synthetic text: valid perplexity (\S+), test perplexity (\S+), after 3 epochs in .* s",
        lines[-1],
    )
    # Guessing by the frequency of words alone gives about 67; no model can fall below 7.25.
    assert all(7 < float(perplexity) < 60 for perplexity in closing.groups())


def test_a_seed_fixes_a_run_and_is_not_the_courses():
    def figures(seed):
        output = succeed(*IMAGES, "--epochs", 1, "--max-batches", 2, "--seed", seed).stdout
        return re.findall(r"loss \S+|accuracy \S+", output)

    assert figures(7) == figures(7)
    assert figures(7) != figures(8)


def test_a_checkpoint_is_measured_again_to_the_same_figure(tmp_path):
    path = tmp_path / "images.safetensors"
    trained = succeed(*IMAGES, "--epochs", 1, "--save", path).stdout.splitlines()[-1]
    measured = succeed("eval", path, "--batch-size", 32).stdout.splitlines()[-1]
    (accuracy,) = re.findall(r"test accuracy \S+ %", trained)
    assert measured == f"synthetic images: {accuracy}, images.safetensors"


def test_a_language_model_is_measured_again_to_the_same_figure(tmp_path):
    path = tmp_path / "text.safetensors"
    trained = succeed(*TEXT, "--epochs", 1, "--save", path).stdout.splitlines()[-1]
    measured = succeed("eval", path).stdout.splitlines()[-1]
    perplexities = r"valid perplexity \S+, test perplexity [\d.]+"
    assert re.findall(perplexities, measured) == re.findall(perplexities, trained) != []


def test_a_run_that_is_cut_short_says_so():
    output = succeed(*IMAGES, "--epochs", 1, "--max-batches", 2).stdout
    assert "test accuracy" in output
    assert "(cut short at 2 batches)" in output


def test_auto_takes_a_local_folder(tmp_path):
    write_cifar10(tmp_path / "data" / "cifar-10-batches-py", n=8)
    output = succeed("train", "resnet9", "--epochs", 1, "--batch-size", 4).stdout
    assert "CIFAR-10 in data/cifar-10-batches-py: 40 train, 8 test images" in output
    closing = output.splitlines()[-1]
    assert closing.startswith("CIFAR-10 in data/cifar-10-batches-py: test accuracy ")


def test_auto_downloads_what_is_not_there(tmp_path, monkeypatch):
    arrived = write_cifar10(tmp_path / "arrived", n=8)
    real = sources.Real("CIFAR-10", (".",), "test_batch", lambda: arrived)
    monkeypatch.setattr(sources, "CIFAR10", real)
    output = succeed("train", "resnet9", "--epochs", 1, "--batch-size", 4).stdout
    assert f"CIFAR-10 in {arrived}" in output


@pytest.mark.parametrize("command", [IMAGES[:2], TEXT[:2]], ids=["resnet9", "lm"])
def test_auto_falls_back_loudly(command):
    result = succeed(*command, "--epochs", 1, "--batch-size", 16, "--max-batches", 1)
    assert "WARNING" in result.stderr
    assert "FALLING BACK TO THE SYNTHETIC SET" in result.stderr
    assert "no network in tests" in result.stderr
    assert result.stdout.splitlines()[-1].startswith("synthetic ")


def test_data_dir_may_be_the_folder_or_its_parent(tmp_path):
    folder = write_cifar10(tmp_path / "here" / "cifar-10-batches-py", n=8)
    for given in (folder, folder.parent):
        options = ("--epochs", 1, "--batch-size", 4, "--max-batches", 1)
        output = succeed("train", "resnet9", "--data-dir", given, *options).stdout
        assert f"CIFAR-10 in {folder}" in output


def test_text_of_ones_own(tmp_path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text("a b c d\n" * 50)
    options = ("--epochs", 1, "--batch-size", 4, "--hidden-size", 8)
    output = succeed("train", "lm", "--data-dir", tmp_path, *options).stdout
    closing = output.splitlines()[-1]
    assert closing.startswith(f"text in the form of PTB in {tmp_path}: test perplexity")
    assert "valid" not in closing


@pytest.mark.shared_data
def test_the_real_ptb_is_named(shared_data):
    folder = shared_data / "ptb"
    options = ("--epochs", 1, "--max-batches", 1, "--hidden-size", 8, "--embedding-size", 8)
    output = succeed("train", "lm", "--data-dir", folder, *options).stdout
    assert f"Penn Treebank (PTB) in {folder}: 929,589 train, 73,760 valid, 82,430 test" in output


@pytest.mark.slow
@pytest.mark.shared_data
def test_lm_learns_the_real_ptb(shared_data):
    """60 of 1,328 batches: about as good as guessing by frequency, which gives about 700."""
    output = succeed("train", "lm", "--data-dir", shared_data, "--epochs", 1, "--max-batches", 60)
    (perplexity,) = numbers(r"test perplexity (\S+)", output.stdout)
    assert perplexity < 1000  # of 10,000 words


@pytest.mark.slow
@pytest.mark.shared_data
def test_resnet9_learns_the_real_cifar10(shared_data, tmp_path):
    pytest.importorskip("PIL", reason="unpacking the images needs Pillow")
    unpack = shared_data / "unpack_cifar10.py"
    subprocess.run([sys.executable, str(unpack), str(tmp_path)], check=True, capture_output=True)
    output = succeed("train", "resnet9", "--data-dir", tmp_path, "--epochs", 1)
    assert "50,000 train, 10,000 test images" in output.stdout
    assert numbers(r"test accuracy (\S+) %", output.stdout)[-1] > 35


def test_info_names_versions_target_threads_and_devices():
    lines = succeed("info").stdout.splitlines()
    names = [line[:20].strip() for line in lines]
    packages = [f"needle-{name}" for name in ("kernels", "core", "nn", "data", "apps")]
    assert names[:7] == [*packages, "Python", "NumPy"]
    assert "CPU target" in names
    assert "threads" in names
    assert "device cpu_numpy()" in names
    cuda = next(line for line in lines if line.startswith("device cuda()"))
    assert re.search(r"(ready|off): .+", cuda)


@pytest.mark.parametrize("command", [(), ("train",)])
def test_without_a_command_there_is_help(command):
    assert "Usage: needle" in succeed(*command).stdout


@pytest.mark.parametrize("command", ["resnet9", "lm"])
def test_help_names_every_option(command):
    output = succeed("train", command, "--help").stdout
    for option in ("epochs", "batch-size", "lr", "seed", "device", "threads", "data", "data-dir"):
        assert f"--{option}" in output


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--epoch", 3), "error: No such option: --epoch"),
        (("--batch-size", 0), "'--batch-size': got 0: need at least 1"),
        (("--batch-size", "many"), "'--batch-size': "),
        (("--epochs", -1), "'--epochs': got -1: need at least 1"),
        (("--lr", 0), "'--lr': got 0.0: need a positive number"),
        (("--lr", "nan"), "'--lr': got nan: need a positive number"),
        (("--seed", -1), "'--seed': got -1: need 0 <= seed < 2**32"),
        (("--threads", 0), "'--threads': got 0: need at least 1"),
        (("--lr", "inf"), "'--lr': got inf: need a positive number"),
        (("--max-batches", 0), "'--max-batches': got 0: need at least 1"),
        (("--device", "gpu"), "'gpu' is not one of"),
        (("--data", "mnist"), "'mnist' is not one of"),
        (("--data-dir", "x", "--data", "synthetic"), "the synthetic set is not read from a folder"),
        (("--save", "no/such/file"), "error: save: no such folder: no/such: create it first"),
        (("--save", "."), "error: save: . is a folder: need a file name"),
        (("--data-dir", "nowhere"), "nowhere"),
        (("surplus",), "unexpected extra argument"),
    ],
)
@pytest.mark.parametrize("command", ["resnet9", "lm"])
def test_a_wrong_option_is_answered_with_one_line(command, options, message):
    line = fail("train", command, *options)
    assert line.startswith("error: ")
    assert message in line


def test_commands_that_do_not_exist():
    assert "No such command 'trian'" in fail("trian", "resnet9")
    assert "No such command 'gpt'" in fail("train", "gpt")


@pytest.mark.parametrize("option", ["--seq-len", "--hidden-size", "--embedding-size", "--layers"])
def test_sizes_of_a_language_model_are_positive(option):
    assert f"'{option}': got 0: need at least 1" in fail("train", "lm", option, 0)


def test_data_of_the_other_kind():
    assert "wrong data set: ptb: need auto, cifar10 or synthetic" in fail(
        "train", "resnet9", "--data", "ptb"
    )
    assert "wrong data set: cifar10: need auto, ptb or synthetic" in fail(
        "train", "lm", "--data", "cifar10"
    )


@pytest.mark.parametrize(("command", "data"), [("resnet9", "cifar10"), ("lm", "ptb")])
def test_a_named_data_set_does_not_fall_back(command, data, tmp_path):
    assert "no network in tests" in fail("train", command, "--data", data)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_batch_larger_than_the_data():
    assert fail(*IMAGES[:-1], 193) == (
        "error: batch size too large: 193: synthetic images has 192 train images"
    )
    assert re.search(
        r"batch size too large: 100000: the train text has \d+ words, so at most \d+",
        fail(*TEXT, "--batch-size", 100_000),
    )


def test_a_model_larger_than_the_memory():
    line = fail("train", "lm", "--data", "synthetic", "--hidden-size", 10**9, "--layers", 1)
    assert "not enough memory" in line


def test_a_wrong_data_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "not a CIFAR-10 folder" in fail("train", "resnet9", "--data-dir", tmp_path / "empty")
    assert "files are missing" in fail("train", "lm", "--data-dir", tmp_path / "empty")


def test_a_truncated_data_file(tmp_path):
    folder = write_cifar10(tmp_path / "cifar-10-batches-py", n=8)
    batch = folder / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:-500])
    assert "data_batch_3" in fail("train", "resnet9", "--data-dir", folder)


def test_an_empty_text(tmp_path):
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text("a b c\n" if name == "test" else "")
    assert "train.txt" in fail("train", "lm", "--data-dir", tmp_path)


@pytest.mark.skipif(ndl.cuda().enabled(), reason="cuda is available")
def test_a_device_that_is_not_there_says_why():
    line = fail("train", "resnet9", "--device", "cuda")
    assert "cuda" in line
    assert line.startswith("error: ")


@pytest.mark.skipif(not ndl.cuda().enabled(), reason="no CUDA: `needle info` says why")
@pytest.mark.parametrize("command", [IMAGES, TEXT], ids=["resnet9", "lm"])
def test_training_on_a_gpu_says_which_and_gives_the_same_losses(command):
    """The emulated GPU says that it is none."""
    short = (*command, "--epochs", 1, "--max-batches", 2, "--seed", 1)
    there, here = succeed(*short, "--device", "cuda").output, succeed(*short).output
    about = ndl.cuda().about()
    assert f"on cuda(), {about}; " in there
    losses = [re.findall(r"loss\s+(\d+\.\d+)", text) for text in (there, here)]
    assert losses[0]
    np.testing.assert_allclose(*(np.array(x, float) for x in losses), rtol=2e-3)


def test_files_that_are_no_checkpoint(tmp_path):
    (tmp_path / "text").write_text("hello")
    assert "no such run: nothing" in fail("eval", "nothing")
    assert "no such file: nothing.safetensors" in fail("eval", "nothing.safetensors")
    assert "is not a checkpoint, or damaged" in fail("eval", tmp_path / "text")
    assert "no such run" in fail("eval", tmp_path)
    assert "Missing argument 'RUN|CHECKPOINT'" in fail("eval")


def test_a_checkpoint_and_data_that_do_not_belong_together(tmp_path):
    images, text = tmp_path / "images.safetensors", tmp_path / "text.safetensors"
    succeed(*IMAGES, "--epochs", 1, "--max-batches", 1, "--save", images)
    succeed(*TEXT, "--epochs", 1, "--max-batches", 1, "--save", text)
    assert "wrong data set: ptb" in fail("eval", images, "--data", "ptb")
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text("a b c d\n" * 50)
    for file, more in ((images, ", or --data cifar10 with it"), (text, "")):
        assert fail("eval", file, "--data-dir", tmp_path) == (
            f"error: eval: data_dir is not read: got {tmp_path}: {file} was trained on the "
            f"synthetic set, which is in no folder: need none{more}"
        )
    assert fail("eval", images, "--seq-len", 20) == (
        f"error: eval: seq_len does not fit: got 20: {images} is resnet9, which reads no text: "
        "need none"
    )
    line = fail("eval", text, "--data", "ptb", "--data-dir", tmp_path)
    assert re.search(r"vocabularies differ: .* knows \d+ words of synthetic, text .* has 5", line)


def test_a_rate_that_is_too_high_ends_the_run(tmp_path):
    path = tmp_path / "model.safetensors"
    with np.errstate(all="ignore"):
        line = fail(*IMAGES, "--lr", 1e30, "--save", path, code=1)
    assert "loss is not finite" in line
    assert "lower the learning rate" in line
    assert not path.exists()


# ---- presets, going on, machines -----------------------------------------------------------------


SHORT = (*TEXT, "--epochs", 1, "--max-batches", 2)


def only_run(root="runs"):
    (folder,) = Path(root).iterdir()
    return folder


def test_presets_are_listed_taken_and_overridden():
    assert succeed("train", "lm", "--preset", "list").stdout.split() == [
        "lm", "zaremba-medium", "zaremba-small",
    ]  # fmt: skip
    succeed(*SHORT, "--preset", "zaremba-small", "--seq-len", 7)
    found = tomllib.loads((only_run() / "config.toml").read_text())
    assert (found["clip"], found["schedule"], found["seq_len"]) == (5.0, "zaremba", 7)
    assert (found["hidden_size"], found["epochs"], found["data"]) == (24, 1, "synthetic")


def test_a_runs_config_trains_alike_again():
    first = succeed(*SHORT, "--json").stdout.splitlines()
    again = ("train", "lm", "--preset", only_run() / "config.toml", "--json")
    second = succeed(*again).stdout.splitlines()

    def measured(lines):
        record = json.loads(lines[-1])
        return {k: v for k, v in record.items() if k not in ("seconds", "run")}

    assert measured(first) == measured(second)


def test_machines_get_one_object_a_line():
    result = succeed(*SHORT, "--json", "--log-every", 1)
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [r["event"] for r in records] == ["start", "step", "step", "epoch", "end"]
    assert records[0]["run"] == str(only_run())
    assert records[0]["config"]["hidden_size"] == 24
    assert records[2]["step"] == 2
    assert records[3]["valid_loss"] == records[4]["valid_loss"]
    record = json.loads(succeed("eval", "latest", "--max-batches", 2, "--json").stdout)
    assert record["test_perplexity"] == pytest.approx(records[4]["test_perplexity"], rel=0.2)


def test_a_run_goes_on_for_more_epochs():
    succeed(*SHORT)
    output = succeed("train", "lm", "--resume", "--epochs", 3).stdout
    assert f"going on in {only_run()} from epoch 2, batch 1" in output
    assert "epoch 1/3" not in output
    assert "epoch 3/3" in output
    assert "after 3 epochs" in output.splitlines()[-1]
    assert tomllib.loads((only_run() / "config.toml").read_text())["epochs"] == 3


def test_resuming_a_finished_run_says_how_to_go_on():
    succeed(*SHORT)
    lines = succeed("train", "lm", "--resume").stdout.splitlines()
    assert lines[1] == (
        f"{only_run()} is finished after 1 epoch, only to be measured: --epochs 2 or more goes on"
    )
    assert "test perplexity" in lines[2]
    succeed("train", "lm", "--resume", "--epochs", 2)
    assert "after 2 epochs, only to be" in succeed("train", "lm", "--resume").stdout


def test_resuming_a_run_that_stopped_early_says_how_to_go_on():
    """At a rate of 1000 epoch 2 or 3 is not better than the one before."""
    early = ("--epochs", 30, "--early-stop", 1, "--lr", 1000, "--clip", 1)
    succeed(*SHORT, *early)
    line = succeed("train", "lm", "--resume").stdout.splitlines()[1]
    assert re.fullmatch(
        r"runs/\S+ is finished after \d+ epochs, only to be measured: --early-stop 2 or more goes "
        "on",
        line,
    )


def test_resuming_takes_the_latest_that_did_not_finish():
    succeed(*SHORT, "--name", "one")
    older = only_run()
    (older / "run.json").write_text((older / "run.json").read_text().replace("finished", "stopped"))
    succeed(*SHORT, "--name", "two")
    assert f"going on in {older} from" in succeed("train", "lm", "--resume", "--epochs", 2).stdout
    assert "-two from" in succeed("train", "lm", "--resume", "--epochs", 2).stdout


def test_a_resumed_run_keeps_what_it_has_done():
    succeed(*SHORT, "--epochs", 2)
    before = (only_run() / "config.toml").read_text()
    text = "resume: too few epochs: got 1: the run has done 2: need as many or more"
    assert text in fail("train", "lm", "--resume", "--epochs", 1)
    assert "a run keeps its settings: got --name" in fail("train", "lm", "--resume", "--name", "x")
    text = "got device cpu_numpy: it has none"
    assert text in fail("train", "lm", "--resume", "--device", "cpu_numpy")
    assert (only_run() / "config.toml").read_text() == before


def test_a_run_can_go_on_from_another_folder(tmp_path, monkeypatch):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("a few words of a text \n" * 40)
    monkeypatch.chdir(tmp_path)
    succeed(*SHORT[:2], "--data-dir", ".", "--epochs", 1, "--hidden-size", 8, "--no-plots")
    run = only_run().absolute()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "after 2 epochs" in succeed("train", "lm", "--resume", run, "--epochs", 2).stdout


def test_help_names_the_extras():
    assert "needle-apps[images]" in succeed("predict", "--help").stdout
    output = succeed("train", "lm", "--help").stdout
    assert "needle-apps[plots]" in output
    assert "needle-apps[tensorboard]" in output


def test_resuming_what_cannot_be():
    assert "no run of train lm in runs: begin one first" in fail("train", "lm", "--resume")
    succeed(*SHORT)
    name = only_run().name
    assert "no such run: nothing" in fail("train", "lm", "--resume", "nothing")
    assert "no run of train resnet9 in runs" in fail("train", "resnet9", "--resume")
    assert "is a run of train lm: need resnet9" in fail("train", "resnet9", "--resume", name)
    line = fail("train", "lm", "--resume", name, "--lr", 3)
    assert "a run keeps its settings: got lr 3.0: it has 20.0" in line
    line = fail("train", "lm", "--resume", name, "--preset", "lm")
    assert "a run keeps its settings: got --preset" in line
    (only_run() / "config.toml").write_text("epochs = many")
    assert "config.toml: not TOML" in fail("train", "lm", "--resume", name)


def test_a_damaged_checkpoint_is_passed_over_with_a_warning():
    succeed(*SHORT, "--epochs", 2)
    *_, last = sorted((only_run() / "checkpoints").glob("step-*"))
    last.write_bytes(last.read_bytes()[:-1])
    result = succeed("train", "lm", "--resume")
    assert "WARNING: load: " in result.stderr
    assert "Going on from step-00000002.safetensors" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--preset", "lstm"), "preset: no such preset: lstm: need lm, "),
        (("--preset", "resnet9"), "wrong task: resnet9 is for train resnet9: need one for lm"),
        (("--preset", "no.toml"), "No such file or directory: no.toml"),
        (("--save-every", "soon"), "got 'soon': need steps (200) or a time (90s, 5m)"),
        (("--dropout", 1), "'--dropout': got 1.0: need 0 <= x < 1"),
        (("--schedule", "linear"), "'linear' is not one of"),
        (("--optimizer", "adam", "--momentum", 0.9), "momentum: got some with optimizer adam"),
        (("--keep", 0), "'--keep': got 0: need at least 1"),
    ],
)
def test_wrong_options_of_a_run(options, message):
    assert message in fail(*TEXT, *options)


def test_holdout_and_early_stop():
    output = succeed(*IMAGES, "--epochs", 2, "--holdout", 64).stdout
    assert "; valid accuracy" in output
    assert "valid accuracy" in output.splitlines()[-1]
    assert "no validation split" in fail(*IMAGES, "--early-stop", 1)


@pytest.mark.parametrize("holdout", [161, 192, 1000])
def test_holding_out_leaves_a_batch(holdout):
    assert fail(*IMAGES, "--epochs", 1, "--holdout", holdout) == (
        f"error: holdout too large: {holdout}: synthetic images has 192 train images: need at most "
        "160, to leave a batch of 32"
    )
    assert not Path("runs").exists()


def test_the_largest_holdout_is_trained():
    succeed(*IMAGES, "--epochs", 1, "--holdout", 160)


def test_a_run_without_clipping_goes_on_without():
    """0.25, the default, would show as a norm in every row."""
    succeed(*SHORT, "--clip", 0, "--log-every", 1)
    assert tomllib.loads((only_run() / "config.toml").read_text())["clip"] == 0
    *_, file = sorted((only_run() / "checkpoints").glob("step-*"))
    assert checkpoint.read(file).training.config.clip == 0
    succeed("train", "lm", "--resume", "--epochs", 2)
    rows = [json.loads(line) for line in (only_run() / "metrics.jsonl").read_text().splitlines()]
    norms = [row["grad_norm"] for row in rows if row["event"] == "step"]
    assert norms == [None] * 4
    text = "a run keeps its settings: got clip 0.25: it has 0.0"
    assert text in fail("train", "lm", "--resume", "--epochs", 3, "--clip", 0.25)
    assert "Largest gradient norm of an update; 0 for no limit." in help_of("train", "lm")


def test_settings_of_another_schedule_are_refused():
    line = fail(*SHORT, "--decay-every", 3)
    assert line == "error: options: decay_every: got 3 with schedule constant: need step"
    succeed(*SHORT, "--preset", "zaremba-small", "--schedule", "cosine")
    succeed("train", "lm", "--resume", "--epochs", 2)


def test_eval_says_what_its_data_are():
    text = help_of("eval")
    assert "auto: the data set that the checkpoint was trained on" in text
    assert "synthetic set" not in text
    assert "[default: (35)]" in text


@pytest.mark.parametrize("command", [(), ("train",), ("train", "lm"), ("eval",), ("info",)])
def test_help_teaches(command):
    text = succeed(*command, "--help").stdout
    assert "Usage: " in text
    assert "Traceback" not in text


# ---- Ctrl-C, and the installed command -----------------------------------------------------------


def start(*arguments, **environment):
    """The command in a process of its own."""
    code = "from needle.apps.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ctrl_c_stops_cleanly(tmp_path):
    path = tmp_path / "model.safetensors"
    options = ("--epochs", 1000, "--max-batches", 1, "--save", path, "--runs-dir", tmp_path / "r")
    process = start("train", "lm", "--data", "synthetic", "--hidden-size", 8, *options)
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.fullmatch(
        r"stopped in epoch \d+ of 1000; go on with: needle train lm --resume .*-lm-lstm\n", stderr
    )
    assert sorted(os.listdir(tmp_path)) == [path.name, "r"]


def test_the_command_in_a_process_of_its_own():
    process = start("train", "resnet9", "--batch-size", "0")
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert stdout == ""
    assert stderr == "error: Invalid value for '--batch-size': got 0: need at least 1\n"


# ---- the report ----------------------------------------------------------------------------------


def test_a_terminal_sees_a_bar_and_a_pipe_does_not(capsys):
    from needle.apps.report import Report
    from needle.apps.training import Score

    for terminal in (True, False):
        report = Report()
        report._stderr = Console(stderr=True, force_terminal=terminal, width=150)
        score = Score(correct=3, total_loss=8.0, examples=4, steps=5, seconds=2.0)
        report.show("epoch 1/3", 10, 5, score, "images")
        report.hide()
        shown = capsys.readouterr().err
        assert ("epoch 1/3" in shown) == terminal
        assert ("5/10" in shown) == terminal
        assert ("loss 2.000, accuracy 75.0 %, 2 images/s" in shown) == terminal


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (60, "1 min 00 s"),
        (245.4, "4 min 05 s"),
        (3720, "1 h 02 min"),
    ],
)
def test_durations(seconds, text):
    from needle.apps.report import duration

    assert duration(seconds) == text


def write_cifar10(folder, n):
    """A folder like the official one, with n random images in each file."""
    folder.mkdir(parents=True)
    rng = np.random.RandomState(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels, labels = rng.randint(0, 256, (n, 3072)).astype(np.uint8), rng.randint(0, 10, n)
        (folder / name).write_bytes(pickled(pixels, labels.tolist()))
    return folder


def pickled(pixels, labels):
    """The opcodes of an official file: protocol 2, Python 2 strings, an old-style array."""

    def string(text):
        return b"U" + bytes([len(text)]) + text

    n, raw = len(pixels), pixels.tobytes()
    return b"".join(
        [
            b"\x80\x02}(",
            string(b"labels"), b"](", *(b"K" + bytes([label]) for label in labels), b"e",
            string(b"data"), b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n",
            b"K\x00\x85", string(b"b"), b"\x87R(K\x01", b"K", bytes([n]), b"M\x00\x0c\x86",
            b"cnumpy\ndtype\n", string(b"u1"), b"K\x00K\x01\x87R(K\x03", string(b"|"),
            b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
            b"T", struct.pack("<i", len(raw)), raw, b"tbu.",
        ]
    )  # fmt: skip


# ---- the data of a run ---------------------------------------------------------------------------


def write_text(folder, text):
    folder.mkdir(parents=True)
    for name in ("train", "test"):
        (folder / f"{name}.txt").write_text(text)
    return folder


def train_on(folder):
    options = ("--batch-size", 4, "--hidden-size", 8, "--embedding-size", 8)
    output = succeed("train", "lm", "--data-dir", folder, "--epochs", 1, "--no-plots", *options)
    return output.stdout.splitlines()[-1].split(", after")[0]


@pytest.mark.parametrize("checkpoint", [False, True], ids=["run", "file"])
def test_eval_measures_on_the_data_folder_of_the_run(checkpoint, tmp_path):
    trained = train_on(write_text(tmp_path / "mine", "a b c d\n" * 50))
    write_text(tmp_path / "data" / "ptb", "a b c d\n" * 20 + "d c b a\n" * 30)
    file = sorted(Path("runs").glob("*/checkpoints/step-*.safetensors"))[-1]
    given = ("eval", file if checkpoint else "latest", "--batch-size", 4)
    assert succeed(*given).stdout.splitlines()[-1] == f"{trained}, {file.name}"
    for option in (("--data-dir", "data"), ("--data-dir", "data", "--data", "ptb")):
        output = succeed(*given, *option).stdout
        assert output.splitlines()[-1].startswith("text in the form of PTB in data/ptb: ")
    # The recorded folder is of the recorded data set.
    assert "synthetic text has" in fail(*given, "--data", "synthetic")


def test_generate_takes_the_words_of_the_runs_data_folder(tmp_path, monkeypatch):
    """Of a checkpoint without a vocabulary, as early ones are."""
    train_on(write_text(tmp_path / "mine", "a b c d\n" * 50))
    write_text(tmp_path / "data" / "ptb", "d c b a\n" * 50)
    read = checkpoint.read

    def without_words(path):
        content = read(path)
        return replace(content, spec=replace(content.spec, words=()))

    monkeypatch.setattr(checkpoint, "read", without_words)
    given = ("generate", "latest", "--prompt", "a b", "--length", 3, "--seed", 1)
    assert succeed(*given).stdout.startswith("a b ")
    assert "vocabularies differ" in fail(*given, "--data-dir", "data")


# ---- changes of images ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("cutout", 100, "need at most 32"),
        ("cutout", 33, "need at most 32"),
        ("crop", 100, "need at most 31"),
        ("crop", 32, "need at most 31"),
    ],
)
def test_what_does_not_fit_the_images_makes_no_run(option, value, rule):
    line = fail(*IMAGES, "--epochs", 1, f"--{option}", value)
    assert line == (
        f"error: {option} too large: {value}: synthetic images has images of 32 x 32 pixels: {rule}"
    )
    assert not Path("runs").exists()


def test_what_just_fits_the_images_is_trained():
    succeed(*IMAGES, "--epochs", 1, "--max-batches", 1, "--crop", 31, "--cutout", 32)


def test_a_closing_line_that_cannot_be_written(monkeypatch):
    from needle.apps.commands import train

    def full(*_):
        monkeypatch.setattr(sys, "stdout", file)
        return "text"

    monkeypatch.setattr(train, "closing", full)
    with open("/dev/full", "w") as file:
        line = fail(*TEXT, "--epochs", 1, "--max-batches", 1, code=1)
    assert re.fullmatch(
        "error: cannot write to stdout: No space left on device: the run is whole, in runs/.*", line
    )
    assert "finished" in succeed("runs").stdout
