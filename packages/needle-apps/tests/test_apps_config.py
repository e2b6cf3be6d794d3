"""Settings: typed, checked, from presets, files and options, each mistake told in a line."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from needle.apps import config
from needle.apps.config import (
    Config,
    ConfigError,
    Course,
    DataChoice,
    ImageConfig,
    Recurrent,
    TextConfig,
    about,
    load_preset,
    parse_interval,
    preset_names,
    read_config,
    resolve,
)

PRESETS = ["lm", "resnet9", "resnet9-best", "zaremba-medium", "zaremba-small"]


def test_the_defaults_are_those_of_the_plain_commands():
    images, text = ImageConfig(), TextConfig()
    assert (images.epochs, images.batch_size, images.lr, images.weight_decay) == (
        10,
        128,
        1e-3,
        1e-3,
    )
    assert (text.epochs, text.batch_size, text.seq_len, text.clip) == (3, 20, 35, 0.25)
    assert (text.lr, TextConfig(model="rnn").lr, TextConfig(lr=3).lr) == (20, 4, 3)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_one(name):
    task = "resnet9" if name.startswith("resnet9") else "lm"
    assert name in preset_names(task)
    assert load_preset(name, task).items() <= resolve(task, name).plain().items()


def test_the_presets_of_the_plain_commands_change_nothing():
    assert resolve("resnet9", "resnet9") == ImageConfig()
    assert resolve("lm", "lm") == TextConfig()


def test_zaremba_small_is_the_papers():
    found = resolve("lm", "zaremba-small")
    assert isinstance(found, TextConfig)
    assert (found.layers, found.hidden_size, found.embedding_size) == (2, 200, 200)
    assert (found.init_range, found.dropout, found.tie_weights) == (0.1, 0, False)
    assert (found.seq_len, found.batch_size, found.epochs) == (20, 20, 13)
    assert (found.lr, found.momentum, found.weight_decay, found.clip) == (1, 0, 0, 5)
    assert (found.schedule, found.decay, found.decay_after) == (Course.zaremba, 0.5, 4)
    assert found.sum_steps


def test_options_go_before_the_preset_and_the_preset_before_defaults():
    found = resolve("lm", "zaremba-small", epochs=2, model="rnn")
    assert (found.epochs, found.model, found.clip) == (2, Recurrent.rnn, 5.0)


@pytest.mark.parametrize(
    "wanted",
    [
        ImageConfig(data="synthetic", data_dir=None, flip=True, lr=3e-7),
        TextConfig(
            data_dir=Path('a "quoted" \\ path/ä'), early_stop=3, threads=2, tie_weights=True
        ),
    ],
    ids=["images", "text"],
)
def test_toml_brings_back_every_setting(wanted, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(wanted.to_toml(), encoding="utf-8")
    assert read_config(path) == wanted
    assert resolve(wanted.task, str(path)) == wanted


@pytest.mark.parametrize("kind", [ImageConfig, TextConfig])
def test_every_setting_says_what_it_is(kind):
    for each in fields(kind):
        assert about(each).help.endswith("."), each.name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs: got 0: need at least 1"),
        ({"epochs": True}, "epochs: got True: need a whole number"),
        ({"epochs": 1.5}, "epochs: got 1.5: need a whole number"),
        ({"lr": float("nan")}, "lr: got nan: need a positive number"),
        ({"lr": 10**400}, f"lr: got 1{'0' * 49}: need a number that a float can hold"),
        ({"momentum": -(10**400)}, f"momentum: got -1{'0' * 48}: need a number that"),
        ({"lr": "fast"}, "lr: got 'fast': need a number"),
        ({"dropout": 1}, "dropout: got 1.0: need 0 <= x < 1"),
        ({"tie_weights": 1}, "tie_weights: got 1: need true or false"),
        ({"data": "mnist"}, "data: got 'mnist': need auto or cifar10 or ptb or synthetic"),
        ({"seed": 2**32}, "seed: got 4294967296: need 0 <= seed < 2**32"),
        ({"save_every": "soon"}, "save_every: got 'soon': need steps (200) or a time (90s, 5m)"),
        ({"save_every": "0s"}, "save_every: got '0s'"),
        ({"epohs": 3}, "unknown setting: epohs: did you mean epochs?"),
        ({"xyzzy": 3}, "unknown setting: xyzzy: need one of epochs, batch_size,"),
        ({"epochs": [3]}, "epochs: got [3]: need a whole number"),
        (
            {"optimizer": "adam", "momentum": 0.9},
            "momentum: got some with optimizer adam: need sgd for it",
        ),
        ({"warmup": 2}, "warmup: got 2.0 with schedule constant: need cosine or one-cycle"),
        ({"decay": 0.9}, "decay: got 0.9 with schedule constant: need step or zaremba"),
        (
            {"decay": 0.9, "schedule": "cosine"},
            "decay: got 0.9 with schedule cosine: need step or zaremba",
        ),
        (
            {"decay_every": 3, "schedule": "zaremba"},
            "decay_every: got 3 with schedule zaremba: need step",
        ),
        (
            {"decay_after": 0, "schedule": "one-cycle"},
            "decay_after: got 0 with schedule one-cycle: need zaremba",
        ),
        ({"clip": -1}, "clip: got -1.0: need at least 0"),
        ({"clip": float("inf")}, "clip: got inf: need at least 0"),
    ],
)
def test_a_wrong_setting_is_named(values, message):
    with pytest.raises(ConfigError, match=re.escape(f"here: {message}")):
        TextConfig.parse(values, "here")


@pytest.mark.parametrize("course", list(Course))
def test_a_schedule_keeps_settings_of_others_only_at_their_defaults(course):
    """So the file of a run, which holds every setting, can be read again."""
    wanted = TextConfig(schedule=course)
    assert TextConfig.parse(wanted.plain(), "file") == wanted


def test_a_schedule_typed_besides_a_preset_drops_what_the_presets_own_needed(tmp_path):
    assert resolve("lm", "zaremba-medium", schedule="constant") == resolve(
        "lm", "zaremba-medium", schedule="constant", decay=0.5, decay_after=4
    )
    assert resolve("lm", "zaremba-medium", schedule="step").decay == pytest.approx(1 / 1.2)
    with pytest.raises(ConfigError, match=r"options: decay: got 0\.7 with schedule constant"):
        resolve("lm", "zaremba-medium", schedule="constant", decay=0.7)
    path = tmp_path / "slow.toml"
    path.write_text('schedule = "cosine"\nwarmup = 2\n')
    assert resolve("lm", str(path), schedule="zaremba", decay_after=1).warmup == 0


@pytest.mark.parametrize(("kind", "clip"), [(TextConfig, 0), (ImageConfig, 0), (ImageConfig, 2)])
def test_no_limit_of_the_gradient_is_kept_in_the_file(kind, clip, tmp_path):
    path, wanted = tmp_path / "config.toml", kind(clip=clip)
    path.write_text(wanted.to_toml(), encoding="utf-8")
    assert read_config(path).clip == clip
    assert ImageConfig().clip == 0


def test_presets_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match="no such preset: lstm: need lm, resnet9"):
        resolve("lm", "lstm")
    with pytest.raises(ConfigError, match=r"no such preset: \.\./presets/lm"):
        resolve("lm", "../presets/lm")
    with pytest.raises(
        ConfigError, match="wrong task: resnet9 is for train resnet9: need one for lm"
    ):
        resolve("lm", "resnet9")
    with pytest.raises(FileNotFoundError):
        resolve("lm", str(tmp_path / "no.toml"))
    (tmp_path / "bad.toml").write_text("epochs = = 3")
    with pytest.raises(ConfigError, match=r"bad.toml: not TOML"):
        resolve("lm", str(tmp_path / "bad.toml"))
    (tmp_path / "odd.toml").write_text('task = "gpt"')
    with pytest.raises(ConfigError, match="unknown task: 'gpt': need resnet9 or lm"):
        read_config(tmp_path / "odd.toml")


def test_intervals():
    assert parse_interval("200") == ("steps", 200)
    assert parse_interval("90s") == ("seconds", 90)
    assert parse_interval("1.5m") == ("seconds", 90)
    assert parse_interval("2h") == ("seconds", 7200)


def test_data_is_a_choice_in_every_config():
    assert Config(data="ptb").data is DataChoice.ptb
    assert {"resnet9": ImageConfig, "lm": TextConfig} == config.CONFIGS
