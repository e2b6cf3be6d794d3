"""resnet9-full and tied language models, from preset to checkpoint."""

import numpy as np
import pytest

import needle as ndl
from needle.apps import checkpoint, config, recipes, sources
from needle.apps.checkpoint import CheckpointError, ModelSpec
from needle.data import BatchCrop, BatchCutout, BatchFlip, Normalize, SyntheticImages
from needle.data.augment import generator


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(sources, "SyntheticImages", lambda train: SyntheticImages(train, 24))


def recipe(**changes):
    settings = config.resolve("resnet9", "resnet9-full", data="synthetic", batch_size=8, **changes)
    return recipes.build(settings, ndl.default_device(), print)


def test_the_preset_is_the_published_recipe():
    found = config.resolve("resnet9", "resnet9-full")
    assert (found.model, found.batch_size, found.epochs) == ("resnet9-full", 512, 24)
    assert (found.momentum, found.nesterov, found.weight_decay) == (0.9, True, 5e-4)
    assert (found.schedule, found.label_smoothing) == ("one-cycle", 0.2)
    assert (found.crop, found.flip, found.cutout) == (4, True, 8)


def test_a_recipe_of_it():
    made = recipe()
    assert made.spec.model == "resnet9-full"
    assert made.opt.nesterov
    assert made.task.loss_fn.label_smoothing == 0.2
    step = next(made.task.steps("train"))
    assert step.logits.shape == (8, 10)


def test_training_images_are_changed_and_test_images_are_not():
    settings = config.ImageConfig(crop=2, flip=True, cutout=4, batch_size=24)
    kinds = [type(each) for each in recipes.augmentation(settings)]
    assert kinds == [BatchCrop, BatchFlip, BatchCutout, Normalize]
    source = sources.images("synthetic", None, print)
    loaders = recipes.image_loaders(settings, source, ndl.nn.Linear(1, 1))
    np.random.seed(5)
    ((x, y),) = loaders["train"]
    np.random.seed(5)
    order, seed = np.random.permutation(24), int(np.random.randint(2**32, dtype=np.uint32))
    np.testing.assert_array_equal(y.numpy(), source.splits["train"].y[order])
    want, rng = source.splits["train"].X[order], generator(seed, 0)
    for change in recipes.augmentation(settings):
        want = change(want, rng)
    np.testing.assert_array_equal(x.numpy(), want)
    ((x, _),) = loaders["test"]
    np.testing.assert_array_equal(x.numpy(), source.splits["test"].X)
    assert recipes.augmentation(config.ImageConfig()) == []


def test_a_checkpoint_of_it(tmp_path):
    made = recipe()
    checkpoint.save(tmp_path / "m.safetensors", made.task.model, made.spec)
    model, spec = checkpoint.load(tmp_path / "m.safetensors")
    assert spec.model == "resnet9-full"
    for name, value in made.task.model.state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), value.numpy())


def tied(**changes):
    sizes = {"embedding_size": 6, "output_size": 11, "hidden_size": 6, "num_layers": 1}
    return ModelSpec("lm", "ptb", {**sizes, "seq_model": "lstm", "tied": True} | changes, "sum")


def test_a_checkpoint_of_tied_weights(tmp_path):
    model = tied().build(None)
    checkpoint.save(tmp_path / "m.safetensors", model, tied())
    again, spec = checkpoint.load(tmp_path / "m.safetensors")
    assert spec.config["tied"] is True
    assert again.linear.weight is again.embedding.weight
    np.testing.assert_array_equal(again.linear.weight.numpy(), model.embedding.weight.numpy())


@pytest.mark.parametrize("changes", [{"tied": 1}, {"tied": False}, {"hidden_size": 7}], ids=str)
def test_a_forged_checkpoint_of_tied_weights(tmp_path, changes):
    checkpoint.save(tmp_path / "m.safetensors", tied().build(None), tied(**changes))
    with pytest.raises(CheckpointError, match=r"load: .*m\.safetensors"):
        checkpoint.load(tmp_path / "m.safetensors")


def test_a_tied_recipe(monkeypatch):
    settings = config.resolve("lm", None, data="synthetic", tie_weights=True, dropout=0.5)
    made = recipes.build(settings, ndl.default_device(), print)
    assert made.task.model.linear.weight is made.task.model.embedding.weight
    assert made.spec.config["tied"] is True
    with pytest.raises(
        ValueError, match="tied sizes differ: embedding_size is 200, hidden_size 100"
    ):
        recipes.build(settings.changed(hidden_size=100), ndl.default_device(), print)


@pytest.mark.slow
def test_it_learns():
    """Ten steps on 24 images: the smoothed loss of a guess is log(10) = 2.3."""
    made = recipe(crop=0, flip=False, cutout=0, lr=0.5)
    made.opt.lr = 0.5
    losses = []
    for _ in range(4):
        for step in made.task.steps("train"):
            made.opt.reset_grad()
            loss = made.task.loss_fn(step.logits, step.targets)
            loss.backward(retain_graph=False)
            made.opt.step()
            losses.append(loss.item())
    assert min(losses[-3:]) < 1.5
