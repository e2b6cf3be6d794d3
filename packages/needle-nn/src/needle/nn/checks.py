"""The checks that modules share, each naming the module, what it got and the rule; promotion."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np

from needle import ops
from needle.autograd import Tensor
from needle.backend_ndarray import DTypeError, ShapeError
from needle.backend_ndarray.pool import Size
from needle.checks import NOT_NEGATIVE, UNIT, check_number

__all__ = [
    "check_axes",
    "check_float",
    "check_room",
    "check_size",
    "check_tensor",
    "float_dtype",
    "not_negative",
    "positive",
    "promoted",
    "unit",
]


def positive(op: str, name: str, value: object) -> int:
    """Returns `value` as an int >= 1.

    Raises:
        TypeError: it is not an integer.
        ShapeError: it is below 1.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{op}: {name} is {value!r}: need an integer >= 1")
    if value < 1:
        raise ShapeError(f"{op}: {name} is {value}: need an integer >= 1")
    return int(value)


def not_negative(op: str, name: str, value: object) -> float:
    """Returns `value` as a finite float >= 0; raises as `check_number` does."""
    return check_number(op, name, value, *NOT_NEGATIVE)


def unit(op: str, name: str, value: object) -> float:
    """Returns `value` as a float in [0, 1]; raises as `check_number` does."""
    return check_number(op, name, value, *UNIT)


def float_dtype(op: str, dtype: Any) -> str:
    """Returns the name of a dtype that can have gradients; None means float32.

    Raises:
        DTypeError: it is not float32 or float64.
    """
    try:
        name: str = np.dtype("float32" if dtype is None else dtype).name
    except TypeError:
        name = repr(dtype)
    if name not in ("float32", "float64"):
        raise DTypeError(f"{op}: dtype is {name}: need float32 or float64")
    return name


def check_tensor(op: str, name: str, value: object) -> Tensor:
    """Returns `value`, or raises TypeError unless it is a Tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} is a {type(value).__name__}: need a Tensor")
    return value


def check_axes(op: str, name: str, value: object, layout: str) -> None:
    """Checks for a Tensor with the axes of `layout`, such as "(N, C, H, W)".

    Raises:
        TypeError: it is not a Tensor.
        ShapeError: it has another number of axes.
    """
    shape = check_tensor(op, name, value).shape
    if len(shape) != layout.count(",") + 1:
        raise ShapeError(f"{op}: {name} is {shape}: need the axes {layout}")


def check_size(op: str, name: str, value: Tensor, axis: int, setting: str, size: int) -> None:
    """Checks the size of one axis against a setting of the module.

    Raises:
        ShapeError: they differ.
    """
    if value.shape[axis] != size:
        raise ShapeError(
            f"{op}: sizes differ: {name} is {value.shape}, {setting} is {size}: "
            f"need {name}.shape[{axis}] == {setting}"
        )


def check_float(op: str, name: str, value: Tensor) -> None:
    """Raises DTypeError unless `value` is of floats."""
    if value.dtype.kind != "f":
        raise DTypeError(f"{op}: {name} is {value.dtype}: need float32 or float64")


def check_room(op: str, x: Tensor, what: str, kernel_size: Size, padding: Size) -> None:
    """Checks that images x (N, C, H, W), padded, are as large as a kernel or window.

    Raises:
        ShapeError: they are smaller.
    """
    sizes = zip(_pair(kernel_size), _pair(padding), strict=True)
    height, width = (max(1, k - 2 * p) for k, p in sizes)
    if x.shape[2] < height or x.shape[3] < width:
        raise ShapeError(
            f"{op}: the image is smaller than the {what}: got x {x.shape}, "
            f"kernel_size {kernel_size}, padding {padding}: need H >= {height} and W >= {width}"
        )


def _pair(size: Size) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def promoted(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Casts float Tensors of both dtypes to float64, as NumPy's arithmetic does; None stays.

    The fused ops want one dtype. Other mixtures are left to them to refuse.
    """
    dtypes = {tensor.dtype for tensor in tensors if tensor is not None}
    if len(dtypes) == 1 or any(dtype.kind != "f" for dtype in dtypes):
        return tensors
    return tuple([t if t is None else ops.astype(t, "float64") for t in tensors])
