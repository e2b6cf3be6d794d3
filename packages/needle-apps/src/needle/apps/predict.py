"""Classifying images with a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray as Array

from needle import Tensor, cpu, nn, no_grad
from needle.apps.training import model_device
from needle.data.cifar10 import CLASSES as CIFAR10_CLASSES
from needle.data.synthetic_images import SHAPES

CLASSES = {"cifar10": CIFAR10_CLASSES, "synthetic": tuple(SHAPES)}
"""The names of the classes of each data set of images."""

IMAGE_SIZE = 32
BATCH = 64


@dataclass(frozen=True)
class Guess:
    """A class, and how likely the model holds it to be."""

    label: str
    probability: float


def classify(
    model: nn.Module, images: Array[np.float32], classes: Sequence[str], top: int = 5
) -> list[list[Guess]]:
    """The most likely classes of each image, the likeliest first.

    Args:
        model: images (n, 3, H, W) to logits (n, len(classes)); put into evaluation mode.
        images: (n, 3, H, W), scaled as the model's training data were.
        classes: their names.
        top: how many to return for each image.
    """
    model.eval()
    device = model_device(model)
    parts = []
    with no_grad():
        for i in range(0, len(images), BATCH):
            logits = model(Tensor(images[i : i + BATCH], device=device, requires_grad=False))
            parts.append(np.asarray(logits.detach().to(cpu())).astype(np.float64))
    return [_best(row, classes, top) for row in softmax(np.concatenate(parts))]


def softmax(logits: Array[np.float64]) -> Array[np.float64]:
    """exp(x) / sum(exp(x)) along the last axis."""
    powers: Array[np.float64] = np.exp(logits - logits.max(axis=-1, keepdims=True))
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers


def _best(probabilities: Array[np.float64], classes: Sequence[str], top: int) -> list[Guess]:
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [Guess(classes[i], float(probabilities[i])) for i in order]
