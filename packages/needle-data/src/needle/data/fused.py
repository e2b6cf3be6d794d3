"""A batch of images gathered, changed and converted by one kernel call.

The draws are the transforms' own, so the batch is, bit for bit, what the transforms make of
`images[ids]`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray as Array

from needle.backend_ndarray import NDArray, from_dlpack, image_batch

from .augment import BatchCrop, BatchCutout, BatchFlip, BatchTransform, Normalize

# The kernel's steps in its order.
STEPS = (BatchCrop, BatchFlip, BatchCutout, Normalize)


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


def fused_batch(
    images: Array[Any],
    ids: Array[np.int64],
    transforms: Sequence[BatchTransform],
    rng: np.random.Generator | None,
) -> NDArray:
    """`images[ids]` (N, C, H, W) after the transforms, as float32 on `cpu()`.

    Args:
        images: (M, C, H, W) that `fits_kernel` has accepted.
        ids: (N,), each in [0, M).
        transforms: likewise.
        rng: where the transforms draw; None where there are none.

    Raises:
        IndexError: an id is out of range.
        ShapeError: the images are too small for a transform.
    """
    shape = (len(ids), *images.shape[1:])
    given: dict[str, Any] = {}
    for transform in transforms:
        given |= _arguments(transform, shape, images.dtype, rng)
    arrays = {
        name: from_dlpack(value) if isinstance(value, np.ndarray) else value
        for name, value in given.items()
    }
    return image_batch(from_dlpack(images), from_dlpack(ids), **arrays)


def _arguments(transform: BatchTransform, shape: tuple[int, ...], dtype: Any, rng: Any) -> Any:
    match transform:
        case BatchCrop():
            return {"shifts": transform.draw(shape, rng), "reflect": transform.reflect}
        case BatchFlip():
            return {"mirrored": transform.draw(shape, rng)}
        case BatchCutout():
            return {"corners": transform.draw(shape, rng), "cut": transform.size}
        case Normalize():
            divisor, offset = transform.factors(dtype)
            return {"divisor": _each(divisor, shape[1]), "offset": _each(offset, shape[1])}


def _each(values: Array[np.float32], channels: int) -> Array[np.float32]:
    """One value for each channel."""
    return np.full(channels, values.ravel())
