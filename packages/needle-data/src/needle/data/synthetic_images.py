"""Ten shapes as images, made on the spot: no download, always the same, and worth learning."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray as Array

from needle.checks import check_switch

from ._checks import check_integer, check_transforms
from .dataset import ImageDataset
from .transforms import Transform

Floats = Array[np.float32]
SIZE = 32

# Each class is a region of the plane around (0, 0), about one unit in radius.
SHAPES: dict[str, Callable[[Floats, Floats], Array[np.bool_]]] = {
    "disc": lambda x, y: np.hypot(x, y) < 0.9,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.75) < 0.22,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.8,
    "frame": lambda x, y: np.abs(np.maximum(abs(x), abs(y)) - 0.7) < 0.2,
    "diamond": lambda x, y: abs(x) + abs(y) < 1.1,
    "triangle": lambda x, y: (y < 0.75) & (y > 2 * abs(x) - 0.95),
    "plus": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.27) & (np.maximum(abs(x), abs(y)) < 0.95),
    "cross": lambda x, y: (np.abs(abs(x) - abs(y)) < 0.35) & (np.maximum(abs(x), abs(y)) < 0.85),
    "rows": lambda x, y: (np.maximum(abs(x), abs(y)) < 0.9) & (np.floor(3.34 * y + 0.5) % 2 == 0),
    "columns": lambda x, y: (
        (np.maximum(abs(x), abs(y)) < 0.9) & (np.floor(3.34 * x + 0.5) % 2 == 0)
    ),
}


class SyntheticImages(ImageDataset):
    """Ten shapes (the keys of `SHAPES`) on noisy 32x32 colour images; items as in CIFAR-10.

    The class is the shape alone. Place, size, the two colours and the noise are random, and the
    shape is as often brighter than its ground as darker, so a single pixel says nothing: a linear
    classifier stays near chance (10 %), while a small convolutional network learns the shapes.

    Args:
        train: the training set, or else the test set; they share no random draw.
        size: the number of images; None means 10,000 for training and 2,000 for the test.
        transforms: applied to an image (32, 32, 3) each time it is loaded.
        seed: another seed is another set.

    Attributes:
        X: float32 (size, 3, 32, 32) in [0, 1].
        y: int64 (size,): every class equally often (within one), in random order.

    Raises:
        TypeError: `size` or `seed` is not an integer, `train` no bool, or `transforms` not a
            sequence of callables.
        ValueError: `size` is below 1 or `seed` below 0.
    """

    def __init__(
        self,
        train: bool = True,
        size: int | None = None,
        transforms: Sequence[Transform] | None = None,
        seed: int = 0,
    ) -> None:
        check_transforms("SyntheticImages", transforms)
        train = check_switch("SyntheticImages", "train", train)
        if size is None:
            size = 10_000 if train else 2_000
        n = check_integer("SyntheticImages", "size", size, at_least=1)
        seed = check_integer("SyntheticImages", "seed", seed, at_least=0)
        # A generator of its own: making the set leaves NumPy's global one where it was.
        rng = np.random.Generator(np.random.PCG64([seed, int(train)]))
        labels = np.argsort(rng.random(n), kind="stable") % len(SHAPES)
        super().__init__(_draw_images(rng, labels), labels.astype(np.int64), transforms)


def _draw_images(rng: np.random.Generator, labels: Array[np.int64]) -> Floats:
    """One image (3, 32, 32) for each label."""
    n = len(labels)
    inside = _draw_shapes(rng, labels)[:, np.newaxis]
    ground = rng.random((n, 3, 1, 1), dtype=np.float32)
    # Each channel of the shape's colour is 0.25 to 0.75 away from the ground's, around the circle.
    colour = (ground + 0.25 + 0.5 * rng.random((n, 3, 1, 1), dtype=np.float32)) % 1
    images = rng.random((n, 3, SIZE, SIZE), dtype=np.float32)
    images -= 0.5
    images *= 0.3
    images += np.where(inside, colour, ground)
    return np.clip(images, 0, 1, out=images)


def _draw_shapes(rng: np.random.Generator, labels: Array[np.int64]) -> Array[np.bool_]:
    """Masks (n, 32, 32) of the labels' shapes: radius 6 to 11 pixels, anywhere inside the image."""
    radius = (6 + 5 * rng.random((len(labels), 1, 1))).astype(np.float32)
    centre = radius + (SIZE - 1 - 2 * radius) * rng.random((len(labels), 1, 2)).astype(np.float32)
    pixels = np.arange(SIZE, dtype=np.float32)
    y = ((pixels - centre[:, :, :1]) / radius).transpose(0, 2, 1)
    x = (pixels - centre[:, :, 1:]) / radius
    masks = np.empty((len(labels), SIZE, SIZE), dtype=np.bool_)
    for label, shape in enumerate(SHAPES.values()):
        mine = labels == label
        masks[mine] = shape(x[mine], y[mine])
    return masks
