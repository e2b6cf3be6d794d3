"""Random changes of whole batches of images: a few NumPy calls each, no loop over images.

They are the definition, and what happens wherever a loader cannot do it all in one kernel call
(`fused.py`). A transform takes images (N, C, H, W) and a generator, and returns the changed images;
it may write into those it was given. `DataLoader(batch_transforms=[...])` applies them in order,
each batch with a generator of its own, made of the pass's seed and the batch's number: a pass that
goes on at batch k draws what it would have drawn. A data set with `channels_first = False`, as
MNIST's, has its batches turned for the transforms and turned back.

Bytes are a quarter of the work: keep images as uint8 (`as_bytes`) and end with `Normalize`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray as Array

from needle.backend_ndarray import DTypeError, ShapeError
from needle.checks import UNIT, check_number, check_switch

from ._checks import check_array, check_integer


def check_images(op: str, shape: object) -> None:
    """Four axes; which of them is the channels' cannot be seen.

    Raises:
        TypeError: this is no shape.
        ShapeError: there are more or fewer.
    """
    if not isinstance(shape, tuple):
        kind = type(shape).__name__
        raise TypeError(f"{op}: shape is not a tuple: got {kind}: need (N, C, H, W)")
    if len(shape) != 4:
        raise ShapeError(f"{op}: not images: got {shape}: need (N, C, H, W)")


def check_draw(op: str, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    """What a draw for images of `shape` needs.

    Raises:
        TypeError: `shape` is no tuple, or `rng` no generator.
        ShapeError: these are no images.
    """
    check_images(op, shape)
    if not isinstance(rng, np.random.Generator):
        raise TypeError(
            f"{op}: rng is not a generator: got {type(rng).__name__}: "
            "need numpy.random.default_rng()"
        )


def shape_of(op: str, images: Array[Any]) -> tuple[int, ...]:
    """The shape of an array of images.

    Raises:
        TypeError: it is no NumPy array.
    """
    return check_array(op, "images", images, "(N, C, H, W)").shape


class BatchTransform(ABC):
    """A random change of a batch of images."""

    @abstractmethod
    def __call__(self, images: Array[Any], rng: np.random.Generator) -> Array[Any]:
        """Images (N, C, H, W), changed by draws from `rng`; may overwrite `images`.

        Raises:
            TypeError: `images` is not a NumPy array, or `rng` no generator.
            ShapeError: these are no images, or too small for the change.
        """


class BatchFlip(BatchTransform):
    """Mirrors each image left to right with probability `p`.

    Raises:
        TypeError: `p` is not a number.
        ValueError: `p` is not a probability.
    """

    def __init__(self, p: float = 0.5) -> None:
        self.p = check_number("BatchFlip", "p", p, *UNIT)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array[np.bool_]:
        """Which images of (N, C, H, W) are mirrored: (N,).

        Raises:
            TypeError: `shape` is not a tuple, or `rng` no generator.
            ShapeError: these are no images.
        """
        check_draw("BatchFlip", shape, rng)
        return rng.random(shape[0]) < self.p

    def __call__(self, images: Array[Any], rng: np.random.Generator) -> Array[Any]:
        chosen = np.flatnonzero(self.draw(shape_of("BatchFlip", images), rng))
        images[chosen] = images[chosen, :, :, ::-1]
        return images


class BatchCrop(BatchTransform):
    """Cuts out of each image, enlarged by `padding` pixels all around, a window of its old size.

    Args:
        padding: the largest shift in each direction, in pixels; every shift is equally likely.
        reflect: fill the padding with the mirrored image instead of zeros.

    Raises:
        TypeError: `padding` is not an integer, `reflect` no bool.
        ValueError: `padding` is negative.
    """

    def __init__(self, padding: int = 4, reflect: bool = False) -> None:
        self.padding = check_integer("BatchCrop", "padding", padding, at_least=0)
        self.reflect = check_switch("BatchCrop", "reflect", reflect)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array[np.int64]:
        """By how much each image of (N, C, H, W) is shifted, down and right: (N, 2).

        Raises:
            TypeError: `shape` is not a tuple, or `rng` no generator.
            ShapeError: these are no images, or too small to be reflected.
        """
        check_draw("BatchCrop", shape, rng)
        if self.reflect and self.padding >= min(shape[2:]):
            raise ShapeError(
                f"BatchCrop: nothing to reflect: images are {shape}, padding is "
                f"{self.padding}: need padding < height and width"
            )
        shifts: Array[np.int64] = rng.integers(0, 2 * self.padding + 1, (2, shape[0])).T
        return shifts - self.padding

    def __call__(self, images: Array[Any], rng: np.random.Generator) -> Array[Any]:
        top, left = self.draw(shape_of("BatchCrop", images), rng).T + self.padding
        windows = sliding_window_view(self._padded(images), images.shape[2:], axis=(2, 3))
        cut: Array[Any] = windows[np.arange(len(images)), :, top, left]
        return cut

    def _padded(self, images: Array[Any]) -> Array[Any]:
        # np.pad with "reflect" takes three times as long.
        p = self.padding
        n, channels, height, width = images.shape
        around = np.empty if self.reflect else np.zeros
        padded = around((n, channels, height + 2 * p, width + 2 * p), images.dtype)
        padded[:, :, p : p + height, p : p + width] = images
        if self.reflect and p:
            rows = padded[:, :, p : p + height]
            rows[..., :p] = rows[..., 2 * p : p : -1]
            rows[..., p + width :] = rows[..., p + width - 2 : width - 2 : -1]
            padded[:, :, :p] = padded[:, :, 2 * p : p : -1]
            padded[:, :, p + height :] = padded[:, :, p + height - 2 : height - 2 : -1]
        return padded


class BatchCutout(BatchTransform):
    """Sets a square of each image to 0, its place equally likely anywhere inside.

    Source: DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with
    Cutout, 2017; there the square may stick out of the image.

    Args:
        size: of the square, in pixels.

    Raises:
        TypeError: `size` is not an integer.
        ValueError: `size` is below 1.
    """

    def __init__(self, size: int = 8) -> None:
        self.size = check_integer("BatchCutout", "size", size, at_least=1)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array[np.int64]:
        """Row and column of each square's upper left pixel in images (N, C, H, W): (N, 2).

        Raises:
            TypeError: `shape` is not a tuple, or `rng` no generator.
            ShapeError: these are no images, or smaller than the square.
        """
        check_draw("BatchCutout", shape, rng)
        n, _, height, width = shape
        if self.size > min(height, width):
            raise ShapeError(
                f"BatchCutout: images are too small: got {shape}: need at least "
                f"{self.size} x {self.size} pixels"
            )
        top = rng.integers(0, height - self.size + 1, n)
        left = rng.integers(0, width - self.size + 1, n)
        return np.stack((top, left), axis=1)

    def __call__(self, images: Array[Any], rng: np.random.Generator) -> Array[Any]:
        top, left = self.draw(shape_of("BatchCutout", images), rng).T
        squares = sliding_window_view(images, (self.size,) * 2, axis=(2, 3), writeable=True)
        squares[np.arange(len(images)), :, top, left] = 0
        return images


class Normalize(BatchTransform):
    """Computes (image - mean) / std, channel by channel, in float32; bytes count as value / 255.

    Args:
        mean: of each channel, or one number for all.
        std: likewise.

    Raises:
        TypeError: one is not a number.
        ValueError: one is not finite, a std not positive, or there is another number of means
            than of stds, and more than one of each.
    """

    def __init__(self, mean: float | Sequence[float] = 0.0, std: float | Sequence[float] = 1.0):
        self.mean = _of_channels("mean", mean)
        self.std = _of_channels("std", std)
        if not (self.std > 0).all():
            raise ValueError(f"Normalize: std: got {std}: need positive numbers")
        counts = {len(self.mean), len(self.std)} - {1}
        if len(counts) > 1:
            raise ValueError(
                f"Normalize: got {len(self.mean)} means and {len(self.std)} stds: "
                "need one of each for every channel, or one for all"
            )

    def factors(self, dtype: Any) -> tuple[Array[np.float32], Array[np.float32]]:
        """What images of `dtype` are divided by, and what is then added: each (C, 1, 1), or 1s."""
        whole = np.float32(255 if dtype == np.uint8 else 1)
        return self.std * whole, -(self.mean / self.std)

    def __call__(self, images: Array[Any], rng: np.random.Generator | None = None) -> Array[Any]:
        check_images("Normalize", shape_of("Normalize", images))
        divisor, offset = self.factors(images.dtype)
        out: Array[np.float32] = np.divide(images, divisor, dtype=np.float32)
        if offset.any():
            out += offset
        return out


def _of_channels(name: str, values: Any) -> Array[np.float32]:
    items = np.asarray(values, object).reshape(-1)
    numbers = [check_number("Normalize", name, item) for item in items]
    return np.array(numbers, np.float32).reshape(-1, 1, 1)


def as_bytes(images: Array[Any]) -> Array[Any]:
    """Images in [0, 1] as uint8 where they are whole multiples of 1/255, else as they are.

    What was read from 8-bit files comes back exactly: `as_bytes(x) / float32(255)` is x, bit for
    bit, in a quarter of the memory.

    Raises:
        TypeError: they are not a NumPy array.
        DTypeError: they are not floats.
        ShapeError: they have no axis.
    """
    if check_array("as_bytes", "images", images, "floats in [0, 1]").dtype.kind != "f":
        raise DTypeError(f"as_bytes: not floats: got {images.dtype}: need images in [0, 1]")
    if not images.shape:
        raise ShapeError("as_bytes: not images: got (): need at least one axis")
    pixels = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), 1024):  # a temporary copy of a few MB, not of them all
        part = images[start : start + 1024]
        rounded = np.rint(part * part.dtype.type(255))
        if not ((rounded >= 0) & (rounded <= 255)).all():
            return images
        pixels[start : start + 1024] = rounded
        if not np.array_equal(pixels[start : start + 1024] / part.dtype.type(255), part):
            return images
    return pixels


def generator(seed: int, batch: int) -> np.random.Generator:
    """The generator of one batch: a stream of Philox that no other (seed, batch) shares."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, batch]))
