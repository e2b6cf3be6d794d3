"""Batches of images gathered, changed and converted by one kernel call each.

The draws are the transforms' own, so a batch is, bit for bit, what the transforms make of it.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray as Array

from needle.backend_ndarray import NDArray, from_dlpack, image_batch

from .augment import BatchCrop, BatchCutout, BatchFlip, BatchTransform, Normalize, generator

Random: TypeAlias = BatchCrop | BatchFlip | BatchCutout

# What draws, with the kernel's name for what it draws; Normalize comes last and draws nothing.
NAMES = {BatchCrop: "shifts", BatchFlip: "mirrored", BatchCutout: "corners"}
STEPS = (*NAMES, Normalize)
AHEAD = 32  # batches whose draws are made together


def fits_kernel(images: Array[Any], transforms: Sequence[BatchTransform]) -> bool:
    """Whether one call can stand for the transforms: known ones, in the kernel's order."""
    kinds = [type(transform) for transform in transforms]
    if images.ndim != 4 or images.dtype not in (np.uint8, np.float32):
        return False
    # What is read-only would be copied, all of it.
    if not (images.flags.writeable and images.flags.aligned and images.size):
        return False
    # A subclass may do anything.
    if kinds != [step for step in STEPS if step in kinds]:
        return False
    # One mean for each of three channels makes three of a grey image.
    means = [t.factors(images.dtype)[1].size for t in transforms if isinstance(t, Normalize)]
    return all(size in (1, images.shape[1]) for size in means)


class FusedPass:
    """A pass over images in memory: batch k is what the transforms make of `images[ids]`.

    Between two training steps the caches hold other things, and Python takes three times as long
    as in a loop. So what can be prepared is: ids and labels for the pass, draws for AHEAD batches.

    Args:
        rows: images (M, C, H, W) that `fits_kernel` has accepted, and arrays of as many rows.
        order: the ids of the pass.
        batch_size: of every batch but perhaps the last.
        transforms: that `fits_kernel` has accepted.
        seed: of the pass.
    """

    def __init__(
        self,
        rows: tuple[Array[Any], ...],
        order: Array[np.int64],
        batch_size: int,
        transforms: Sequence[BatchTransform],
        seed: int,
    ) -> None:
        images, *rest = rows
        self.images = from_dlpack(images)
        self.order = order
        self.ids = from_dlpack(order)
        self.rest = [NDArray(a[order], dtype="float32") if a.ndim == 1 else a for a in rest]
        self.batch_size = batch_size
        self.seed = seed
        self.shape = images.shape[1:]
        self.random = [t for t in transforms if isinstance(t, Random)]
        self.fixed = {name: value for t in transforms for name, value in self._settings(t)}
        self.drawn: dict[str, Any] = {}
        self.drawn_for = range(0)

    def batch(self, k: int) -> tuple[NDArray, ...]:
        """Batch k: float32 on `cpu()`.

        Raises:
            IndexError: an id is out of range.
            ShapeError: the images are too small for a transform.
        """
        if self.random and k not in self.drawn_for:
            self._draw(range(k, min(k + AHEAD, -(-len(self.order) // self.batch_size))))
        here = slice(k * self.batch_size, (k + 1) * self.batch_size)
        ahead = self.drawn_for.start * self.batch_size
        there = slice(here.start - ahead, here.stop - ahead)
        drawn = {name: values[there] for name, values in self.drawn.items()}
        images = image_batch(self.images, self.ids[here], **drawn, **self.fixed)
        return images, *(self._rows(array, here) for array in self.rest)

    def _draw(self, batches: range) -> None:
        """Draws for `batches` as each alone would."""
        columns: list[list[Any]] = []
        for k in batches:
            n = len(self.order[k * self.batch_size : (k + 1) * self.batch_size])
            rng = generator(self.seed, k)
            columns.append([t.draw((n, *self.shape), rng) for t in self.random])
        self.drawn = {
            NAMES[type(t)]: from_dlpack(np.concatenate(parts))
            for t, parts in zip(self.random, zip(*columns, strict=True), strict=True)
        }
        self.drawn_for = batches

    def _settings(self, transform: BatchTransform) -> Iterator[tuple[str, Any]]:
        match transform:
            case BatchCrop():
                yield "reflect", transform.reflect
            case BatchCutout():
                yield "cut", transform.size
            case Normalize():
                factors = transform.factors(self.images.dtype)
                for name, values in zip(("divisor", "offset"), factors, strict=True):
                    yield name, from_dlpack(np.full(self.shape[0], values.ravel()))

    def _rows(self, array: Any, here: slice) -> NDArray:
        if isinstance(array, NDArray):
            return array[here]
        return NDArray(array[self.order[here]], dtype="float32")
