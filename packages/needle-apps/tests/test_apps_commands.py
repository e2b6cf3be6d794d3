"""predict, generate, runs and bench as typed: what they print, write, and answer mistakes with."""

import json
import os
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from needle.apps import checkpoint, generate, metrics, sources
from needle.apps.checkpoint import CheckpointError, ModelSpec
from needle.apps.cli import app
from needle.data import SyntheticCorpus, SyntheticImages

Image = pytest.importorskip("PIL.Image", reason="the images need Pillow")


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def succeed(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def fail(*arguments):
    """The one line that a mistake is answered with."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    line = result.stderr.rstrip("\n")
    assert "\n" not in line
    return line


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with three small runs: two of images, one of text."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "SyntheticImages", lambda train: SyntheticImages(train, 64))
        patch.setattr(sources, "SyntheticCorpus", lambda: SyntheticCorpus(60))
        patch.chdir(folder)
        images = ("train", "resnet9", "--data", "synthetic", "--batch-size", 32, "--log-every", 1)
        text = ("train", "lm", "--data", "synthetic", "--hidden-size", 8, "--embedding-size", 8)
        succeed(*images, "--epochs", 2, "--name", "slow")
        succeed(*images, "--epochs", 1, "--lr", 0.01, "--name", "fast", "--no-plots")
        succeed(*text, "--epochs", 1, "--batch-size", 4, "--name", "words", "--tensorboard")
    return folder


@pytest.fixture(autouse=True)
def _here(work, monkeypatch):
    monkeypatch.chdir(work)


def folder_of(name):
    (found,) = [path for path in os.listdir("runs") if path.endswith(name)]
    return f"runs/{found}"


# ---- what a run leaves ---------------------------------------------------------------------------


def test_a_run_leaves_its_folder():
    names = {"config.toml", "run.json", "metrics.jsonl", "metrics.csv", "checkpoints", "plots"}
    assert set(os.listdir(folder_of("slow"))) >= names
    pictures = ["accuracy.png", "confusion.png", "learning_rate.png", "loss.png", "mistakes.png"]
    assert sorted(os.listdir(f"{folder_of('slow')}/plots")) == pictures
    assert os.listdir(f"{folder_of('fast')}/plots") == []
    drawn = sorted(os.listdir(f"{folder_of('words')}/plots"))
    assert drawn == ["learning_rate.png", "loss.png", "perplexity.png"]
    assert len(os.listdir(f"{folder_of('words')}/tensorboard")) == 1


def test_metrics_hold_every_step_and_epoch():
    from pathlib import Path

    rows = metrics.read(Path(folder_of("slow")))
    assert [(row["event"], row.get("step")) for row in rows] == [
        ("step", 1), ("step", 2), ("epoch", 2), ("step", 3), ("step", 4), ("epoch", 4),
        ("end", None),
    ]  # fmt: skip


def test_without_matplotlib_a_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SyntheticImages", lambda train: SyntheticImages(train, 64))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    options = ("--epochs", 1, "--batch-size", 32, "--runs-dir", tmp_path)
    result = succeed("train", "resnet9", "--data", "synthetic", *options)
    assert "no plots without matplotlib: pip install 'needle-apps[plots]'" in result.stderr
    assert "test accuracy" in result.stdout


# ---- runs ----------------------------------------------------------------------------------------


def test_runs_are_listed():
    output = succeed("runs").stdout
    for name in ("slow", "fast", "words"):
        assert f"│ {folder_of(name).removeprefix('runs/')} " in output  # whole, for grep
    assert output.count("finished") == 3
    lines = [json.loads(line) for line in succeed("runs", "--json").stdout.splitlines()]
    assert [line["task"] for line in lines] == ["resnet9", "resnet9", "lm"]
    assert [line["metric"] for line in lines] == ["accuracy", "accuracy", "perplexity"]
    assert [(line["epochs_done"], line["epochs"]) for line in lines] == [(2, 2), (1, 1), (1, 1)]
    assert all(line["best"] > 0 for line in lines[2:])


def test_runs_are_compared():
    output = succeed("runs", "compare", "slow", "fast", "--plot", "two.png").stdout
    assert re.search(r"lr\s+│ 0\.001\s+│ 0\.01", output)
    assert re.search(r"epochs\s+│ 2\s+│ 1", output)
    assert "batch_size" not in output
    assert "drawn: two.png" in output
    with Image.open("two.png") as image:
        assert image.size == (800, 480)
    found = json.loads(succeed("runs", "compare", "slow", "fast", "--json").stdout)
    assert found["differences"]["lr"] == [0.001, 0.01]
    assert [each["state"] for each in found["runs"]] == ["finished", "finished"]
    assert found["plot"] == "runs/compare.png"


def test_a_run_is_drawn_again():
    os.remove(f"{folder_of('slow')}/plots/loss.png")
    lines = succeed("runs", "plot", "slow").stdout.splitlines()
    assert [os.path.basename(line) for line in lines] == [
        "loss.png", "accuracy.png", "learning_rate.png"
    ]  # fmt: skip
    assert os.path.exists(lines[0])


def test_runs_that_are_not_there(tmp_path):
    assert "no runs in" in succeed("runs", "--runs-dir", tmp_path).stderr
    assert "no such run: third: runs has 3" in fail("runs", "compare", "slow", "third")
    assert "more than one fits: resnet9" in fail("runs", "compare", "resnet9", "fast")
    assert "compare: too few runs: got 1: need at least 2" in fail("runs", "compare", "slow")
    assert "different tasks: got lm, resnet9" in fail("runs", "compare", "slow", "words")
    line = fail("runs", "compare", "slow", "fast", folder_of("slow"))
    name = folder_of("slow").removeprefix("runs/")
    assert line == (
        f"error: compare: a run twice: got slow and {folder_of('slow')}, both are {name}: need "
        "different ones"
    )
    assert "No such command 'comapre'" in fail("runs", "comapre")


# ---- predict -------------------------------------------------------------------------------------


def test_images_are_classified(work):
    pixels = np.random.RandomState(0).randint(0, 256, (50, 80, 3)).astype(np.uint8)
    for name in ("a.png", "b.jpg"):
        Image.fromarray(pixels).save(name)
    lines = succeed("predict", "slow", "a.png", "b.jpg").stdout.splitlines()
    assert [lines[0], lines[6]] == ["a.png", "b.jpg"]
    shares = [float(line.split()[0]) for line in lines[1:6]]
    assert shares == sorted(shares, reverse=True)
    found = json.loads(succeed("predict", "slow", "a.png", "--json", "--top", 10).stdout)
    assert sum(guess["probability"] for guess in found["top"]) == pytest.approx(1)
    assert f"{100 * found['top'][0]['probability']:.1f}" in lines[1]


def test_predict_answers_mistakes():
    (open("text.png", "w")).close()
    assert "not an image: text.png" in fail("predict", "slow", "text.png")
    assert "No such file or directory: nothing.png" in fail("predict", "slow", "nothing.png")
    assert "Missing argument 'IMAGE...'" in fail("predict", "slow")
    assert "predict: not an image model" in fail("predict", "words", "text.png")
    assert "no such run: third" in fail("predict", "third", "text.png")
    assert "'--top': got 0: need at least 1" in fail("predict", "slow", "text.png", "--top", 0)


# ---- generate ------------------------------------------------------------------------------------


def test_text_is_generated():
    arguments = ("generate", "words", "--prompt", "every OLD farmer", "--length", 20, "--seed", 4)
    text = succeed(*arguments).stdout
    assert text.startswith("every old farmer")
    assert succeed(*arguments).stdout == text
    found = json.loads(succeed(*arguments, "--json").stdout)
    assert (found["text"] + "\n", found["seed"], found["unknown"]) == (text, 4, [])
    greedy = [succeed(*arguments[:6], "--temperature", 0).stdout for _ in range(2)]
    assert greedy[0] == greedy[1]


def test_a_data_folder_that_is_not_read_is_noted():
    arguments = ("generate", "words", "--length", 3, "--seed", 4)
    result = succeed(*arguments, "--data-dir", "nowhere")
    assert result.stdout == succeed(*arguments).stdout
    (line,) = result.stderr.splitlines()
    assert re.fullmatch(
        r"note: --data-dir nowhere is not read: \S+\.safetensors holds its own words", line
    )


def test_a_seed_of_ones_own_is_told():
    first = succeed("generate", "words", "--length", 10)
    (seed,) = re.findall(r"note: --seed (\d+) writes this text again", first.stderr)
    assert succeed("generate", "words", "--length", 10, "--seed", seed).stdout == first.stdout


def test_generate_answers_mistakes():
    assert "unknown word: 'queen': the vocabulary has" in fail(
        "generate", "words", "--prompt", "queen"
    )
    assert "generate: not a language model" in fail("generate", "slow")
    for option, value in (("temperature", -1), ("length", -1), ("top-k", 0)):
        assert f"'--{option}': got {value}" in fail("generate", "words", f"--{option}={value}")
    assert "'--seed': got -1: need 0 <= seed" in fail("generate", "words", "--seed=-1")


WORDS = ("<unk>", "<eos>", "a", "b")


def lm_file(path, words, vocabulary=None):
    config = {"embedding_size": 3, "output_size": 4, "hidden_size": 3, "num_layers": 1}
    sizes = {**config, "seq_model": "rnn"}
    right = checkpoint.hashlib.sha256("\n".join(WORDS).encode()).hexdigest()
    spec = ModelSpec("lm", "ptb", sizes, vocabulary or right, words)
    checkpoint.save(path, spec.build(None), spec)
    return path


def test_unknown_words_are_noted(tmp_path):
    path = lm_file(tmp_path / "a.safetensors", WORDS)
    result = succeed("generate", path, "--prompt", "a c\x1b[2J", "--seed", 1, "--no-unk")
    assert "note: not in the vocabulary, taken for <unk>: c\\x1b[2J" in result.stderr
    assert "<unk>" not in result.stdout.removeprefix("a <unk>")


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_model_that_has_diverged(tmp_path, options):
    path = lm_file(tmp_path / "a.safetensors", WORDS)
    model, spec = checkpoint.load(path)
    state = {name: np.full(t.shape, np.nan, t.dtype) for name, t in model.state_dict().items()}
    model.load_state_dict(state)
    checkpoint.save(path, model, spec)
    line = fail("generate", path, "--seed", 1, *options)
    assert line == (
        "error: generate: no word to choose: the largest logit is nan: need a number: has the "
        "model's training diverged?"
    )


def test_a_vocabulary_comes_back_or_is_refused(tmp_path):
    path = lm_file(tmp_path / "a.safetensors", WORDS)
    assert checkpoint.read(path).spec.words == WORDS
    with pytest.raises(CheckpointError, match=r"its 4 words are not the model's: checksum is"):
        checkpoint.read(lm_file(path, ("<unk>", "<eos>", "a", "c")))
    with pytest.raises(CheckpointError, match="its 3 words are not the model's"):
        checkpoint.read(lm_file(path, WORDS[:3]))


def test_without_its_words_the_data_must_have_them(tmp_path):
    path = lm_file(tmp_path / "a.safetensors", ())
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text("a b c\n" * 9)
    line = fail("generate", path, "--data-dir", tmp_path)
    assert re.search(r"vocabularies differ: .* knows 4 words of ptb, .* has 4 other ones", line)
    assert generate.UNKNOWN == "<unk>"


# ---- bench ---------------------------------------------------------------------------------------


def test_bench_times_steps_and_kernels():
    lines = succeed("bench", "resnet9", "--steps", 1, "--kernels", 3, "--json").stdout.splitlines()
    (found,) = map(json.loads, lines)
    assert found["name"] == "resnet9"
    assert found["median_ms"] > 0
    assert found["rate"] == pytest.approx(128 / found["median_ms"] * 1e3)
    assert len(found["kernels"]) == 3
    output = succeed("bench", "lm", "--steps", 1).stdout
    assert re.search(r"lm \(LSTM 2 x 200, .*\): \d+\.\d\d ms a step .* tokens/s", output)
    assert "matmul" in output
    assert "'gpt' is not one of" in fail("bench", "gpt")


@pytest.mark.parametrize("command", ["predict", "generate", "bench", "runs", "runs compare"])
def test_help_teaches_with_an_example(command):
    output = succeed(*command.split(), "--help").stdout
    assert "Example: needle " in output
