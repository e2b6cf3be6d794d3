"""From a config to a run: data, model, task, optimizer and schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from needle import Tensor, nn
from needle.apps import schedules, sources
from needle.apps.checkpoint import ModelSpec
from needle.apps.config import Config, Course, ImageConfig, Init, Rule, TextConfig
from needle.apps.sources import Source, Warn
from needle.apps.tasks import Task, image_task, text_task
from needle.apps.trainer import Callback, Checkpointer, Trainer, check_early_stop
from needle.apps.training import model_device, scale_weights
from needle.backend_ndarray import Device
from needle.data import (
    BatchCrop,
    BatchCutout,
    BatchFlip,
    BatchTransform,
    DataLoader,
    Dataset,
    NDArrayDataset,
    Normalize,
    as_bytes,
)
from needle.data.dataset import ImageDataset
from needle.optim import SGD, Adam, Optimizer

# How far the first weights of `init` reach, against the layers' own +-sqrt(6 / fan_in).
INIT_GAINS = {Init.kaiming: 1.0, Init.torch: 6**-0.5}


@dataclass(frozen=True)
class Recipe:
    """A run, ready to start.

    Attributes:
        config: its settings, with `data` as it was found.
        spec: what it takes to build the model again.
        source: the data.
        task: the model, bound to the data.
        opt: the optimizer of the model's parameters.
    """

    config: Config
    spec: ModelSpec
    source: Source
    task: Task
    opt: Optimizer

    def trainer(self, callbacks: Sequence[Callback], checkpoints: Checkpointer) -> Trainer:
        """The loop that trains it."""
        config = self.config
        return Trainer(
            self.task,
            self.opt,
            config.epochs,
            schedule_of(config),
            lr=config.rate,
            clip=config.clip or None,
            early_stop=config.early_stop,
            callbacks=callbacks,
            checkpoints=checkpoints,
        )


def build(config: Config, device: Device, warn: Warn) -> Recipe:
    """Find the data, seed NumPy's global generator, and draw the model.

    Args:
        config: the settings.
        device: where the model lives.
        warn: told about a fallback to synthetic data.

    Raises:
        ValueError: settings and data do not fit each other.
        OSError: the data is not there.
    """
    if isinstance(config, ImageConfig):
        recipe = _image_recipe(config, device, warn)
    else:
        assert isinstance(config, TextConfig)
        recipe = _text_recipe(config, device, warn)
    check_early_stop(config.early_stop, recipe.task.splits)
    return recipe


def schedule_of(config: Config) -> schedules.Schedule:
    """The schedule that a config names."""
    match config.schedule:
        case Course.constant:
            return schedules.constant()
        case Course.step:
            return schedules.step(config.decay_every, config.decay)
        case Course.cosine:
            return schedules.cosine(config.epochs, config.warmup)
        case Course.one_cycle:
            return schedules.one_cycle(config.epochs, config.warmup or 0.3 * config.epochs)
        case Course.zaremba:
            return schedules.zaremba(config.decay_after, config.decay)


def _optimizer(config: Config, model: nn.Module) -> Optimizer:
    if config.optimizer is Rule.adam:
        return Adam(model.parameters(), lr=config.rate, weight_decay=config.weight_decay)
    return SGD(
        model.parameters(),
        lr=config.rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
    )


# ---- images --------------------------------------------------------------------------------------


def _image_recipe(config: ImageConfig, device: Device, warn: Warn) -> Recipe:
    source = sources.images(config.data, config.data_dir, warn)
    np.random.seed(config.seed)
    spec = ModelSpec(str(config.model), source.kind)
    model = spec.build(device)
    scale_weights(model, INIT_GAINS[config.init])
    loaders = image_loaders(config, source, model)
    loss_fn = nn.SoftmaxLoss(config.label_smoothing)
    task = image_task(model, loaders, config.max_batches, loss_fn)
    return Recipe(config.changed(data=source.kind), spec, source, task, _optimizer(config, model))


def image_loaders(config: ImageConfig, source: Source, model: nn.Module) -> dict[str, DataLoader]:
    """A DataLoader for each split, the held-out images as "valid".

    Raises:
        ValueError: a batch or the held-out images are more than there are, or the images are
            too small for their changes.
    """
    check_sizes(config, source)
    check_augmentation(config, source)
    splits = hold_out(source.splits, config.holdout)
    device = model_device(model)
    loaders = {
        name: DataLoader(split, config.batch_size, device=device) for name, split in splits.items()
    }
    train: Dataset = splits["train"]
    changes = augmentation(config)
    if changes:
        # Bytes are a quarter of the work; Normalize makes them [0, 1] again.
        train = NDArrayDataset(as_bytes(splits["train"].X), splits["train"].y)
    loaders["train"] = DataLoader(
        train, config.batch_size, shuffle=True, device=device, batch_transforms=changes
    )
    return loaders


def check_sizes(config: ImageConfig, source: Source) -> None:
    """Compare a batch and the held-out images with the number of training images.

    Raises:
        ValueError: there is no whole batch to train on.
    """
    n = len(source.splits["train"])
    if config.batch_size > n:
        raise ValueError(
            f"batch size too large: {config.batch_size}: {source.name} has {n} train images"
        )
    if config.holdout > n - config.batch_size:
        raise ValueError(
            f"holdout too large: {config.holdout}: {source.name} has {n} train images: need at "
            f"most {n - config.batch_size}, to leave a batch of {config.batch_size}"
        )


def augmentation(config: ImageConfig) -> list[BatchTransform]:
    """The random changes of training images that a config asks for; none is an empty list."""
    changes: list[BatchTransform] = []
    if config.crop:
        changes.append(BatchCrop(config.crop))
    if config.flip:
        changes.append(BatchFlip())
    if config.cutout:
        changes.append(BatchCutout(config.cutout))
    return [*changes, Normalize()] if changes else []


def check_augmentation(config: ImageConfig, source: Source) -> None:
    """Compare crop and cutout with the size of the training images.

    Raises:
        ValueError: a cropped image may show nothing but padding, or the blank square is larger.
    """
    height, width = source.splits["train"].X.shape[2:]
    for name, most in (("crop", min(height, width) - 1), ("cutout", min(height, width))):
        value = getattr(config, name)
        if value > most:
            raise ValueError(
                f"{name} too large: {value}: {source.name} has images of {height} x {width} "
                f"pixels: need at most {most}"
            )


def hold_out(splits: Any, n: int) -> dict[str, ImageDataset]:
    """The splits, with the last n training images, of more than n, as "valid" instead."""
    if n == 0:
        return dict(splits)
    train = splits["train"]
    rest = {name: split for name, split in splits.items() if name != "train"}
    return {
        "train": ImageDataset(train.X[:-n], train.y[:-n], train.transforms),
        "valid": ImageDataset(train.X[-n:], train.y[-n:]),
        **rest,
    }


# ---- text ----------------------------------------------------------------------------------------


def _text_recipe(config: TextConfig, device: Device, warn: Warn) -> Recipe:
    source = sources.text(config.data, config.data_dir, warn)
    np.random.seed(config.seed)
    sizes = {
        "embedding_size": config.embedding_size,
        "output_size": source.vocabulary_size,
        "hidden_size": config.hidden_size,
        "num_layers": config.layers,
        "seq_model": str(config.model),
        "dropout": config.dropout,
        "tied": config.tie_weights,
    }
    spec = ModelSpec("lm", source.kind, sizes, source.vocabulary, source.words)
    model = spec.build(device)
    if config.init_range is not None:
        draw_uniform(model, config.init_range)
    task = text_task(
        model,
        source.splits,
        config.batch_size,
        config.seq_len,
        config.max_batches,
        config.sum_steps,
    )
    return Recipe(config.changed(data=source.kind), spec, source, task, _optimizer(config, model))


def draw_uniform(model: nn.Module, bound: float) -> None:
    """Draw every parameter anew, uniform in +-bound, in the order of construction."""
    for parameter in model.parameters():
        values = np.random.uniform(-bound, bound, parameter.shape).astype(parameter.dtype)
        parameter.data = Tensor(values, device=parameter.device, dtype=parameter.dtype)
