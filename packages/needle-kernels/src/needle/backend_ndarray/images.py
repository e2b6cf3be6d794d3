"""Batches of images out of a data set in memory, changed on the way."""

from __future__ import annotations

from typing import Final

from needle.backend_ndarray.checks import as_ids, check_rank, check_shape
from needle.backend_ndarray.dtypes import BOOL, FLOAT32, INT64, UINT8, DType
from needle.backend_ndarray.errors import DTypeError, ShapeError
from needle.backend_ndarray.extension import KERNEL
from needle.backend_ndarray.layout import Shape, as_int, as_shape
from needle.backend_ndarray.ndarray import NDArray, check_same_device, new

__all__ = ["image_batch"]

_IMAGE_BATCH: Final = KERNEL["image_batch"]


def image_batch(
    data: NDArray,
    ids: NDArray,
    shifts: NDArray | None = None,
    mirrored: NDArray | None = None,
    corners: NDArray | None = None,
    divisor: NDArray | None = None,
    offset: NDArray | None = None,
    *,
    reflect: bool = False,
    cut: int = 0,
) -> NDArray:
    """The images that `ids` name, each changed, as float32 (N, C, H, W); None leaves a step out.

    1. Shift: pixel (i, j) is the image's (i + dy, j + dx); 0 outside of it, or its reflection.
    2. Mirror left to right.
    3. Cut: a square of `cut` x `cut` pixels becomes 0.
    4. Scale: x / divisor[c] + offset[c].

    Args:
        data: (M, C, H, W), uint8 or float32.
        ids: (N,), integers.
        shifts: int64 (N, 2), dy and dx.
        mirrored: bool (N,).
        corners: int64 (N, 2), row and column of the square's upper left pixel.
        divisor: float32 (C,).
        offset: float32 (C,).
        reflect: what lies outside is the image mirrored at its outermost pixels, else 0.
        cut: the square's size; 0 with no corners.

    Raises:
        DTypeError: a dtype is another one.
        ShapeError: a shape does not fit, a square or a reflection leaves its image.
        IndexError: an id is out of range.
    """
    names = "data, ids, shifts, mirrored, corners, divisor, offset"
    optional = shifts, mirrored, corners, divisor, offset
    given = [ids if array is None else array for array in optional]
    device = check_same_device("image_batch", names, data, ids, *given)
    check_rank("image_batch", "data", data, 4, "(M, C, H, W)")
    check_rank("image_batch", "ids", ids, 1, "(N,)")
    if data._dtype is not UINT8 and data._dtype is not FLOAT32:
        raise DTypeError(f"image_batch: data: got {data._dtype.name}: need uint8 or float32")
    count, channels, height, width = shape = ids._shape + data._shape[1:]
    _check("shifts", shifts, INT64, (count, 2))
    _check("mirrored", mirrored, BOOL, (count,))
    _check("corners", corners, INT64, (count, 2))
    _check("divisor", divisor, FLOAT32, (channels,))
    _check("offset", offset, FLOAT32, (channels,))
    if shifts is not None and reflect:
        _check_range("shifts", shifts, (1 - height, 1 - width), (height - 1, width - 1))
    (size,) = as_shape("image_batch", as_int("image_batch", "cut", cut))
    if corners is not None:
        _check_range("corners", corners, (0, 0), (height - size, width - size))
    elif size:
        raise ShapeError(f"image_batch: no corners: cut is {size}: need corners {(count, 2)}")
    rows = as_ids("image_batch", ids, data._shape[0])
    out = new(device, shape, FLOAT32)
    operands = out, data, rows, shifts, mirrored, corners, divisor, offset
    device.launch(_IMAGE_BATCH, operands, (bool(reflect), size))
    return out


def _check(name: str, array: NDArray | None, dtype: DType, shape: Shape) -> None:
    if array is not None and array._dtype is not dtype:
        raise DTypeError(f"image_batch: {name}: got {array._dtype.name}: need {dtype.name}")
    check_shape("image_batch", name, array, shape)


def _check_range(
    name: str, pairs: NDArray, lowest: tuple[int, int], highest: tuple[int, int]
) -> None:
    """Raises ShapeError where a row of `pairs` would lead out of its image."""
    if not pairs.size:
        return
    if int(pairs.min()) >= max(lowest) and int(pairs.max()) <= min(highest):
        return
    low, high = pairs.min(0).numpy(), pairs.max(0).numpy()
    if (low < lowest).any() or (high > highest).any():
        raise ShapeError(
            f"image_batch: {name} leave the image: got {low.tolist()} to {high.tolist()}: "
            f"need {list(lowest)} to {list(highest)}"
        )
