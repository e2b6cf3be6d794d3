"""Random changes of images (H, W, C), one at a time or a batch at once with the same draws."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray as Array

from needle.backend_ndarray import ShapeError
from needle.checks import UNIT, as_numpy, check_number

from ._checks import check_integer

Transform: TypeAlias = Callable[[Any], Any]


class RandomTransform(ABC):
    """A random change of an image, in two halves: draw the parameters, then apply them.

    The halves make a batch fast: the draws of many images come from NumPy's generator in the
    order that one image after the other would make them, the images then change together. So a
    batch is equal, bit for bit, to its items.
    """

    @abstractmethod
    def draw(self, n: int) -> Array[Any]:
        """The parameters of `n` images, (n, ...): the draws that n calls would make, in order."""

    @abstractmethod
    def apply(self, images: Array[Any], parameters: Array[Any]) -> Array[Any]:
        """Images (N, H, W, C), each changed by its row of `parameters`; may overwrite `images`."""

    def __call__(self, img: Array[Any]) -> Array[Any]:
        """One image (H, W, C), changed; `img` itself stays as it is.

        Raises:
            ShapeError: `img` is not three-dimensional.
        """
        img = as_numpy(type(self).__name__, "img", img)
        if img.ndim != 3:
            raise ShapeError(
                f"{type(self).__name__}: not an image: got shape {img.shape}: need (H, W, C)"
            )
        changed: Array[Any] = self.apply(img[np.newaxis].copy(), self.draw(1))[0]
        return changed


class RandomFlipHorizontal(RandomTransform):
    """Mirrors an image left to right where `np.random.rand() < p`.

    Args:
        p: the probability, in [0, 1].

    Raises:
        TypeError: `p` is not a number.
        ValueError: `p` is not a probability.
    """

    def __init__(self, p: float = 0.5) -> None:
        self.p = check_number("RandomFlipHorizontal", "p", p, *UNIT)

    def draw(self, n: int) -> Array[np.bool_]:
        return np.random.rand(n) < self.p

    def apply(self, images: Array[Any], parameters: Array[Any]) -> Array[Any]:
        chosen = np.flatnonzero(parameters)
        images[chosen] = images[chosen, :, ::-1]
        return images


class RandomCrop(RandomTransform):
    """Shifts an image by a few pixels; what comes in from outside is zero.

    As if the image were padded with zeros on every side and a window of the old size were cut at
    offset `padding + shift`: `out[i, j] = img[i + shift[0], j + shift[1]]`, with
    `shift = np.random.randint(-padding, padding + 1, size=2)` (rows, columns).

    Args:
        padding: the largest shift, in pixels.

    Raises:
        TypeError: `padding` is not an integer.
        ValueError: `padding` is negative.
    """

    def __init__(self, padding: int = 3) -> None:
        self.padding = check_integer("RandomCrop", "padding", padding, at_least=0)

    def draw(self, n: int) -> Array[Any]:
        return np.random.randint(-self.padding, self.padding + 1, size=(n, 2))

    def apply(self, images: Array[Any], parameters: Array[Any]) -> Array[Any]:
        height, width, channels = images.shape[1:]
        # A shift of the whole image leaves nothing of it; a longer one is no different.
        pad = min(self.padding, max(height, width))
        shifts = np.clip(parameters, -pad, pad).tolist()
        # One padded image, used again and again: it stays in the cache, which a batch does not.
        shape = (1, height + 2 * pad, width + 2 * pad, channels)
        padded = np.zeros_like(images, shape=shape)[0]
        middle = padded[pad : pad + height, pad : pad + width]
        for image, (down, right) in zip(images, shifts, strict=True):
            middle[...] = image
            top, left = pad + down, pad + right
            image[...] = padded[top : top + height, left : left + width]
        return images


def all_have_halves(transforms: Sequence[Transform]) -> TypeGuard[Sequence[RandomTransform]]:
    """Whether `apply_to_batch` can stand for calling the transforms image by image."""
    # A subclass with a __call__ of its own means that one: its halves say nothing.
    return all(
        isinstance(t, RandomTransform) and type(t).__call__ is RandomTransform.__call__
        for t in transforms
    )


def apply_to_batch(transforms: Sequence[RandomTransform], images: Array[Any]) -> Array[Any]:
    """Images (N, H, W, C), each after all transforms, as if called one by one.

    May overwrite `images`.
    """
    parameters = _draw_image_by_image(transforms, len(images))
    for transform, rows in zip(transforms, parameters, strict=True):
        images = transform.apply(images, rows)
    return images


def _draw_image_by_image(transforms: Sequence[RandomTransform], n: int) -> list[Array[Any]]:
    """Each transform's parameters for n images; the first image draws for all, then the next."""
    if len(transforms) == 1 or n == 0:
        return [transform.draw(n) for transform in transforms]
    rows = [[transform.draw(1) for transform in transforms] for _ in range(n)]
    return [np.concatenate(column) for column in zip(*rows, strict=True)]
