"""A run's checkpoints: kept, dropped, refused, set aside; nothing foreign gets in."""

import errno
import hashlib
import json
import os
import re
import struct
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import needle as ndl
from needle.apps import checkpoint, checkpoints, recipes, runs, sources
from needle.apps.checkpoint import CheckpointError
from needle.apps.checkpoints import CheckpointFolder, model_file
from needle.apps.config import TextConfig
from needle.apps.trainer import Callback
from needle.data import SyntheticCorpus

CONFIG = TextConfig(
    data="synthetic", embedding_size=6, hidden_size=6, batch_size=4, seq_len=6, max_batches=12,
    epochs=2, save_every="5", keep=2, lr=1.0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(sources, "SyntheticCorpus", lambda: SyntheticCorpus(60))


class Setup:
    """A run in a folder, ready to train."""

    def __init__(self, folder, config=CONFIG, callbacks=()):
        self.warnings = []
        self.recipe = recipes.build(config, ndl.cpu(), self.warnings.append)
        self.keeper = CheckpointFolder(
            folder, self.recipe.spec, self.recipe.config, self.warnings.append
        )
        self.trainer = self.recipe.trainer(list(callbacks), self.keeper)

    def weights(self):
        return {name: t.numpy() for name, t in self.trainer.task.model.state_dict().items()}


@pytest.fixture
def trained(tmp_path):
    setup = Setup(tmp_path)
    setup.trainer.run()
    return setup


def names(folder):
    return sorted(os.listdir(folder))


def rewrite(path, change, *, right_checksum=True):
    """The file with its texts and arrays changed; the checksum right again, or left as it was."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    texts = json.loads(content[8 : 8 + length])["__metadata__"]
    arrays = load_file(path)
    given = texts.pop("checksum")
    change(arrays, texts)
    new = checkpoint.checksum(arrays, texts) if right_checksum else given
    save_file(arrays, path, {**texts, "checksum": new})


# ---- keeping -------------------------------------------------------------------------------------


def test_the_last_few_and_the_best_are_kept(trained, tmp_path):
    assert names(tmp_path) == [
        "best.safetensors",
        "step-00000022.safetensors",
        "step-00000024.safetensors",
    ]
    best = checkpoint.read(tmp_path / "best.safetensors")
    assert best.training.state.progress.best_epoch == best.training.state.progress.epoch


def test_saving_is_due_after_steps_or_seconds(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    by_steps = Setup(tmp_path).keeper
    assert [by_steps.due(n) for n in (4, 5, 6)] == [False, True, True]
    by_time = Setup(tmp_path, CONFIG.changed(save_every="10s")).keeper
    assert not by_time.due(10**6)
    now[0] = 110.0
    assert by_time.due(0)


def test_a_whole_state_comes_back(trained, tmp_path):
    again = Setup(tmp_path)
    assert again.keeper.restore(again.trainer) == tmp_path / "step-00000024.safetensors"
    assert again.warnings == []
    assert (again.trainer.at.epoch, again.trainer.at.batch, again.trainer.at.step) == (2, 0, 24)
    for name, array in again.weights().items():
        np.testing.assert_array_equal(array, trained.weights()[name], err_msg=name)


def test_a_run_without_any_checkpoint_begins_anew(tmp_path):
    setup = Setup(tmp_path)
    assert setup.keeper.restore(setup.trainer) is None
    assert setup.trainer.at.step == 0


def test_what_a_killed_process_left_half_written_is_removed(trained, tmp_path):
    (tmp_path / ".step-00000025.safetensors.0a1b2c3d.part").write_bytes(b"half")
    again = Setup(tmp_path)
    again.keeper.restore(again.trainer)
    assert not list(tmp_path.glob(".*"))


# ---- what cannot be used -------------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(bytes(content))


def foreign(path):
    save_file({"w": np.zeros(3)}, path)


def nothing(path):
    path.write_bytes(b"")


def other_model(path):
    spec = checkpoint.ModelSpec("resnet9", "synthetic")
    checkpoint.save(path, spec.build(ndl.cpu()), spec)


def changed_text(path):
    rewrite(path, lambda a, t: t.update(training=t["training"].replace("24", "23")),
            right_checksum=False)  # fmt: skip


def other_words(path):
    def change(_, texts):
        texts["words"] = texts["words"].upper()
        checksum = hashlib.sha256(texts["words"].encode()).hexdigest()
        texts["spec"] = re.sub("[0-9a-f]{64}", checksum, texts["spec"])

    rewrite(path, change)


def mere_model(path):
    rewrite(path, lambda a, t: t.pop("training"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "is not a checkpoint, or damaged"),
        (nothing, "is not a checkpoint, or damaged"),
        (flip_a_bit, r"was changed after it was written: checksum is \w+...: need"),
        (changed_text, r"was changed after it was written: checksum is \w+...: need"),
        (foreign, "is not needle's: format is none"),
        (other_model, "models differ: .* is resnet9: need lm"),
        (other_words, r"data differ: .* with vocabulary \w{12}: this is synthetic with"),
        (mere_model, "is a mere model: need a run's checkpoint"),
    ],
)
def test_the_one_before_serves_where_the_latest_does_not(trained, tmp_path, damage, message):
    damage(tmp_path / "step-00000024.safetensors")
    again = Setup(tmp_path)
    assert again.keeper.restore(again.trainer) == tmp_path / "step-00000022.safetensors"
    (warning,) = again.warnings
    assert re.search(message, warning)
    assert "Going on from step-00000022.safetensors" in warning
    assert "step-00000024.unusable" in names(tmp_path)
    again.trainer.run()
    for name, array in again.weights().items():
        np.testing.assert_array_equal(array, trained.weights()[name], err_msg=name)


def test_if_none_can_be_used_that_is_an_error_and_all_stay(trained, tmp_path):
    for path in tmp_path.glob("step-*"):
        truncate(path)
    before = names(tmp_path)
    again = Setup(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"none of 2 checkpoints in .* can be used: load: .*24"
    ):
        again.keeper.restore(again.trainer)
    assert names(tmp_path) == before


def test_settings_that_were_changed_behind_its_back(trained, tmp_path):
    again = Setup(tmp_path, CONFIG.changed(clip=1.0))
    with pytest.raises(CheckpointError, match=r"was trained with clip 0.25: the run has 1.0"):
        again.keeper.restore(again.trainer)


def test_another_machine_is_worth_a_warning(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(np, "__version__", "9.9")
    again = Setup(tmp_path)
    again.keeper.restore(again.trainer)
    (warning,) = again.warnings
    assert re.search(r"the run began elsewhere \(numpy \S+ -> 9.9\): its last bits may", warning)


HUGE = 10**400  # JSON has whole numbers of any size; a float ends at 10**308


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"progress": 3}, "progress is 3: need an object"),
        ({"progress": {"epoch": -1}}, "epoch is -1: need a whole number from 0 on"),
        ({"progress": {"epoch": True}}, "epoch is True: need a whole number"),
        ({"progress": {"step": 10**30}}, "step is 1000"),
        ({"progress": {"seconds": "x"}}, "seconds is 'x': need a number"),
        ({"progress": {"best_loss": "low"}}, "best_loss is 'low': need a number"),
        ({"progress": {"score": []}}, r"score is \[\]: need an object"),
        ({"progress": {"seconds": HUGE}}, "seconds is 1000"),
        ({"progress": {"best_loss": -HUGE}}, "best_loss is -1000"),
        ({"progress": {"batch": 3, "step": 3}}, "batch is 3: its score has 0 steps, 0 examples"),
        ({"optimizer": {"lr": "x"}}, "lr is 'x': need a number"),
        ({"optimizer": {"lr": HUGE}}, "lr is 1000"),
        ({"optimizer": {"lr": True}}, "lr is True: need a number"),
        ({"now": {"gauss": HUGE}}, "gauss is 1000"),
        ({"now": {"pos": 625}}, "now: pos is 625"),
        ({"now": None}, "now is None: need an object"),
        ({"order": {"has_gauss": 7}}, "has_gauss 7"),
        ({"task": "gpt"}, "unknown task: 'gpt'"),
        ({"config": {"lr": HUGE}}, "lr: got 1000"),
        ({"config": {"momentum": -HUGE}}, "momentum: got -1000"),
        ({"config": {"epochs": "many"}}, "epochs: got 'many': need a whole number"),
        ({"config": {"exec": "rm"}}, "unknown setting: exec"),
        ({"environment": []}, r"environment is \[\]: need an object"),
        ({"environment": {"numpy": [2]}}, r"numpy is \[2\]: need a text"),
    ],
)
def test_every_value_is_checked_whoever_wrote_it(trained, tmp_path, change, message):
    path = tmp_path / "step-00000024.safetensors"

    def apply(_, texts):
        plain = json.loads(texts["training"])
        for name, value in change.items():
            inner = isinstance(value, dict) and isinstance(plain[name], dict)
            plain[name] = {**plain[name], **value} if inner else value
        texts["training"] = json.dumps(plain)

    rewrite(path, apply)
    with pytest.raises(CheckpointError, match=f"does not say how to go on training: .*{message}"):
        checkpoint.read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "does not say how to go on"),
        ("[" * 100_000, "does not say how to go on"),
        ('{"progress": NaN}', "NaN is not a number"),
        ('{"progress": 1%s}' % ("0" * 5000), "does not say how to go on"),
        (" " * 2**20 + "{}", "text too long: 1048578 characters: need at most 1048576"),
        ("{}", "config is None: need an object"),
    ],
)
def test_texts_that_are_no_json(trained, tmp_path, text, message):
    path = tmp_path / "step-00000024.safetensors"
    rewrite(path, lambda _, texts: texts.update(training=text))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read(path)


def test_arrays_of_the_wrong_kind(trained, tmp_path):
    path = tmp_path / "step-00000024.safetensors"
    rewrite(path, lambda arrays, _: arrays.update({"generator/now": np.zeros(3, np.uint32)}))
    with pytest.raises(
        CheckpointError, match=r"generator/now is uint32 \(3,\): need uint32 \(624,\)"
    ):
        checkpoint.read(path)
    path = tmp_path / "step-00000022.safetensors"
    rewrite(path, lambda arrays, _: arrays.pop("optimizer/u.0"))
    again = Setup(tmp_path)
    with pytest.raises(CheckpointError, match="none of 2 checkpoints"):
        again.keeper.restore(again.trainer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden/1": None}, r"hidden has 1 arrays: lstm needs 2"),
        ({"hidden/2": np.zeros((2, 4, 6), "f4")}, r"hidden has 3 arrays: lstm needs 2"),
        (
            {"hidden/1": np.zeros((2, 5, 6), "f4")},
            r"hidden/1 is float32 \(2, 5, 6\): its config needs float32 \(2, 4, 6\)",
        ),
        ({"hidden/0": np.zeros((2, 4, 6), "i4")}, r"hidden/0 is int32 \(2, 4, 6\): its config"),
    ],
)
def test_a_recurrent_state_of_another_model(trained, tmp_path, change, message):
    path = tmp_path / "step-00000022.safetensors"

    def apply(arrays, _):
        for name, array in change.items():
            if array is None:
                del arrays[name]
            else:
                arrays[name] = array

    rewrite(path, apply)
    with pytest.raises(CheckpointError, match=f"does not say how to go on training: {message}"):
        checkpoint.read(path)


# ---- a disk that fails ---------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["fsync", "replace", "write"])
def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, broken):
    class FullAt(Callback):
        def on_step(self, metrics):
            if metrics.step == 13:
                self.break_it()

        def break_it(self):
            def full(*_, **__):
                raise OSError(errno.ENOSPC, "No space left on device")

            if broken == "fsync":
                monkeypatch.setattr(os, "fsync", full)
            elif broken == "replace":
                monkeypatch.setattr("pathlib.Path.replace", full)
            else:
                monkeypatch.setattr("pathlib.Path.open", full)

    setup = Setup(tmp_path, callbacks=[FullAt()])
    with pytest.raises(OSError, match="No space left"):
        setup.trainer.run()
    monkeypatch.undo()
    monkeypatch.setattr(sources, "SyntheticCorpus", lambda: SyntheticCorpus(60))
    assert "step-00000012.safetensors" in names(tmp_path)
    assert not [name for name in names(tmp_path) if name.endswith(".part")]
    again = Setup(tmp_path)
    again.keeper.restore(again.trainer)
    assert again.trainer.at.step == 12
    again.trainer.run()
    (tmp_path / "whole").mkdir()
    whole = Setup(tmp_path / "whole")
    whole.trainer.run()
    for name, array in again.weights().items():
        np.testing.assert_array_equal(array, whole.weights()[name], err_msg=name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into every folder")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        Setup(tmp_path).trainer.run()


def test_a_file_system_without_links_keeps_a_copy(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    Setup(tmp_path).trainer.run()
    checkpoint.read(tmp_path / "best.safetensors")


# ---- which file is meant -------------------------------------------------------------------------


def test_the_model_of_a_run(tmp_path):
    run = runs.Run.create("lm", "mine", CONFIG.to_toml(), root=tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*: train the run first"):
        model_file(run.folder, tmp_path)
    for name in ("step-00000001", "step-00000002"):
        (run.checkpoints / f"{name}.safetensors").touch()
    assert model_file(run.folder, tmp_path).name == "step-00000002.safetensors"
    (run.checkpoints / "best.safetensors").touch()
    for given in (run.folder, run.folder.name, "mine", "latest"):
        assert model_file(checkpoints.Path(given), tmp_path).name == "best.safetensors"
    file = run.checkpoints / "step-00000001.safetensors"
    assert model_file(file, tmp_path) == file
    run.release()


def test_nothing_in_reading_can_run_code():
    """No pickle, no eval: what a checkpoint's reader imports of ours and of others."""
    source = checkpoint.__file__
    with open(source, encoding="utf-8") as file:
        text = file.read()
    assert not re.search(r"pickle|eval\(|exec\(|np\.load|yaml|importlib\.import", text)
    assert "needle.apps.checkpoint" in sys.modules
