"""Checkpoints: what is written is read back, and nothing else is."""

import json
import os
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

import needle as ndl
from needle.apps import checkpoint
from needle.apps.checkpoint import FORMAT, CheckpointError, ModelSpec

LM = {
    "embedding_size": 4,
    "output_size": 11,
    "hidden_size": 5,
    "num_layers": 2,
    "seq_model": "lstm",
}
SPECS = [ModelSpec("resnet9", "cifar10"), ModelSpec("lm", "ptb", LM, "abc")]
specs = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.model)


def write(path, spec_text, arrays, **metadata):
    """A file whose checksum is right, whatever the rest is."""
    texts = {"format": FORMAT, "spec": spec_text, **metadata}
    save_file(arrays, path, {**texts, "checksum": checkpoint.checksum(arrays, texts)})


def lm_arrays():
    model = SPECS[1].build(ndl.cpu())
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def spec_text(**changes):
    return json.dumps({"model": "lm", "data": "ptb", "config": LM, "vocabulary": "", **changes})


@specs
def test_a_checkpoint_brings_back_every_array(tmp_path, spec):
    path, model = tmp_path / "model.safetensors", spec.build(ndl.cpu())
    checkpoint.save(path, model, spec)
    loaded, found = checkpoint.load(path, ndl.cpu_numpy())
    assert found == spec
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    for name, tensor in loaded.state_dict().items():
        assert tensor.device == ndl.cpu_numpy()
        np.testing.assert_array_equal(tensor.numpy(), state[name].numpy(), err_msg=name)


def test_saving_replaces_the_old_file_and_leaves_no_other(tmp_path):
    path, spec = tmp_path / "model.safetensors", SPECS[1]
    checkpoint.save(path, spec.build(ndl.cpu()), spec)
    first = path.read_bytes()
    checkpoint.save(path, spec.build(ndl.cpu()), spec)
    assert path.read_bytes() != first
    assert os.listdir(tmp_path) == [path.name]


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path, spec = tmp_path / "model.safetensors", SPECS[1]
    checkpoint.save(path, spec.build(ndl.cpu()), spec)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, spec.build(ndl.cpu()), spec)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_a_place_that_cannot_be_written_shows_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*missing: create it first"):
        checkpoint.check_writable(tmp_path / "missing" / "model.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder: need a file name"):
        checkpoint.check_writable(tmp_path)
    with pytest.raises(OSError, match=r"save: cannot write into .*: File name too long"):
        checkpoint.check_writable(tmp_path / ("x" * 250))
    checkpoint.check_writable(tmp_path / "model.safetensors")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into every folder")
def test_a_folder_without_permission_shows_at_once(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="save: cannot write into"):
        checkpoint.check_writable(tmp_path / "model.safetensors")


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*nothing"):
        checkpoint.load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError, match="is a folder: need a checkpoint file"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04\x95", b"\xff" * 64])
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a checkpoint, or damaged"):
        checkpoint.load(path)


@pytest.mark.parametrize("keep", [0.01, 0.5, 0.999])
def test_a_truncated_checkpoint(tmp_path, keep):
    path, spec = tmp_path / "model.safetensors", SPECS[1]
    checkpoint.save(path, spec.build(ndl.cpu()), spec)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(CheckpointError, match="is not a checkpoint, or damaged"):
        checkpoint.load(path)


def test_a_safetensors_file_of_another_program(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"w": np.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=f"format is none: need {FORMAT}"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "{}",
        spec_text(model="gpt"),
        spec_text(model=["lm"]),
        spec_text(config={}),
        spec_text(config={**LM, "hidden_size": "5"}),
        spec_text(config={**LM, "hidden_size": True}),
        spec_text(config={**LM, "seq_model": "gru"}),
        spec_text(config={**LM, "extra": 1}),
        spec_text(config={**LM, "tied": True}),
        spec_text(config={**LM, "tied": 1}),
        spec_text(config={**LM, "dropout": 10**400}),
        spec_text(config={**LM, "hidden_size": {"a": [[5]]}}),
        spec_text(config=None),
        spec_text(data=3),
        spec_text(vocabulary=None),
        spec_text(surprise=1),
    ],
)
def test_a_description_of_no_known_model(tmp_path, text):
    path = tmp_path / "model.safetensors"
    write(path, text, lm_arrays())
    with pytest.raises(CheckpointError, match="describes no known model"):
        checkpoint.load(path)


def test_a_description_nested_too_deep(tmp_path):
    path = tmp_path / "model.safetensors"
    for depth in (900, 100_000):  # the one can be parsed
        write(path, spec_text().replace('"ptb"', "[" * depth + "]" * depth), lm_arrays())
        with pytest.raises(CheckpointError, match="describes no known model"):
            checkpoint.load(path)


@pytest.mark.parametrize("name", ["embedding_size", "output_size", "hidden_size", "num_layers"])
@pytest.mark.parametrize("size", [0, -1, -(10**30)])
def test_sizes_below_one(tmp_path, name, size):
    """With arrays that agree, as far as there can be such."""
    path, config = tmp_path / "model.safetensors", {**LM, name: size}
    a, b, h = (max(config[n], 0) for n in ("output_size", "embedding_size", "hidden_size"))
    shapes = {"embedding.weight": (a, b), "linear.weight": (h, a)}
    write(path, spec_text(config=config), {n: np.zeros(s, "float32") for n, s in shapes.items()})
    with pytest.raises(CheckpointError, match=rf"known model: {name} is {size}: need at least 1"):
        checkpoint.load(path)


@pytest.mark.parametrize("seq_model", ["rnn", "lstm"])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("tied", [False, True])
def test_every_array_is_there_before_one_is_made(tmp_path, seq_model, num_layers, tied):
    """`read` alone makes no model: a file of 240 KB could ask for more than 100 GB."""
    path = tmp_path / "model.safetensors"
    sizes = {"embedding_size": 5 if tied else 4, "hidden_size": 5, "num_layers": num_layers}
    spec = ModelSpec("lm", "ptb", {**LM, **sizes, "seq_model": seq_model, "tied": tied})
    arrays = {n: t.numpy() for n, t in spec.build(ndl.cpu()).state_dict().items()}
    write(path, spec_text(config=spec.config), arrays)
    checkpoint.load(path)
    for name, array in arrays.items():
        less = {n: a for n, a in arrays.items() if n != name}
        shape = re.escape(str(array.shape))
        write(path, spec_text(config=spec.config), less)
        with pytest.raises(CheckpointError, match=f"{name} is missing: its config needs {shape}"):
            checkpoint.read(path)
        write(path, spec_text(config=spec.config), {**arrays, name: array[..., :-1].copy()})
        with pytest.raises(CheckpointError, match=rf"{name} is \(.*\): its config needs {shape}"):
            checkpoint.read(path)


def test_a_large_model_in_a_small_file(tmp_path):
    path = tmp_path / "model.safetensors"
    config = {**LM, "hidden_size": 60_000, "embedding_size": 1, "output_size": 1}
    shapes = {"embedding.weight": (1, 1), "linear.weight": (60_000, 1), "linear.bias": (1, 1)}
    write(path, spec_text(config=config), {n: np.zeros(s, "float32") for n, s in shapes.items()})
    assert path.stat().st_size < 250_000
    with pytest.raises(
        CheckpointError, match=r"lstm_cells.0.W_ih is missing: its config needs \(1, 240000\)"
    ):
        checkpoint.read(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_size": 10**12}, r"embedding.weight is \(11, 4\): its config needs \(1000000"),
        ({"hidden_size": 6}, r"linear.weight is \(5, 11\): its config needs \(6, 11\)"),
        ({"num_layers": 10**9}, "seq_model.lstm_cells.2.W_ih is missing"),
        ({"num_layers": 1}, "does not fit its model lm"),
        ({"seq_model": "rnn"}, "seq_model.rnn_cells.0.W_ih is missing"),
    ],
)
def test_a_config_that_does_not_fit_the_arrays(tmp_path, changes, message):
    path = tmp_path / "model.safetensors"
    write(path, spec_text(config={**LM, **changes}), lm_arrays())
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(path)


def test_arrays_of_another_model(tmp_path):
    path = tmp_path / "model.safetensors"
    write(path, json.dumps({"model": "resnet9", "data": "cifar10"}), lm_arrays())
    with pytest.raises(CheckpointError, match="does not fit its model resnet9"):
        checkpoint.load(path)


def test_arrays_that_are_missing(tmp_path):
    path = tmp_path / "model.safetensors"
    write(path, spec_text(), {"other": np.zeros(3)})
    with pytest.raises(CheckpointError, match=r"embedding\.weight is missing"):
        checkpoint.load(path)
