"""Constants and random numbers.

Random numbers come from NumPy's global generator, in float64, one draw per Tensor, on every
device: `np.random.seed(s)` fixes a run everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from ..autograd import Tensor
from ..backend_ndarray import Device, NDArray
from ..backend_ndarray.dtypes import as_dtype
from ..backend_ndarray.layout import Shape, as_int, as_shape
from ..checks import NOT_NEGATIVE, UNIT, as_numpy, check_device, check_number
from ..ops.common import check_tensor

Size: TypeAlias = "int | Sequence[int]"


def _shape(op: str, sizes: tuple[Any, ...]) -> Shape:
    """The shape meant by `f(2, 3)` and by `f((2, 3))`.

    Raises:
        ShapeError: a size is negative.
        TypeError: a size is not an integer.
    """
    if len(sizes) == 1 and isinstance(sizes[0], Sequence):
        sizes = tuple(sizes[0])
    return as_shape(op, sizes)


def place(op: str, device: object, dtype: DTypeLike | None) -> tuple[Device, Any]:
    """Device and dtype of a new Tensor, checked; for a dtype of None the device chooses one.

    Raises:
        DeviceError: `device` is no device.
        DTypeError: the dtype is not supported.
    """
    return check_device(op, device), None if dtype is None else as_dtype(dtype, op)


def _tensor(array: NDArray, requires_grad: bool) -> Tensor:
    return Tensor(array, requires_grad=requires_grad)


def rand(
    *shape: Size,
    low: float = 0.0,
    high: float = 1.0,
    device: Device | None = None,
    dtype: DTypeLike = "float32",
    requires_grad: bool = False,
) -> Tensor:
    """Uniform numbers in [low, high): rand * (high - low) + low.

    Raises:
        ShapeError, TypeError: a size is negative, or not an integer.
        TypeError: `low` or `high` is not a number.
        ValueError: one is not finite, or `low` above `high`.
        DeviceError, DTypeError: no device, or no dtype that is supported.
    """
    where, kind = place("rand", device, dtype)
    low, high = check_number("rand", "low", low), check_number("rand", "high", high)
    if low > high:
        raise ValueError(f"rand: got low {low:g}, high {high:g}: need low <= high")
    array = where.rand(*_shape("rand", shape), dtype=kind, low=low, high=high)
    return _tensor(array, requires_grad)


def randn(
    *shape: Size,
    mean: float = 0.0,
    std: float = 1.0,
    device: Device | None = None,
    dtype: DTypeLike = "float32",
    requires_grad: bool = False,
) -> Tensor:
    """Normal numbers: randn * std + mean.

    Raises:
        ShapeError, TypeError: a size is negative, or not an integer.
        TypeError: `mean` or `std` is not a number.
        ValueError: one is not finite, or `std` below 0.
        DeviceError, DTypeError: no device, or no dtype that is supported.
    """
    where, kind = place("randn", device, dtype)
    mean = check_number("randn", "mean", mean)
    std = check_number("randn", "std", std, *NOT_NEGATIVE)
    array = where.randn(*_shape("randn", shape), dtype=kind, mean=mean, std=std)
    return _tensor(array, requires_grad)


def _full(
    op: str,
    shape: tuple[Any, ...],
    value: Any,
    device: Device | None,
    dtype: DTypeLike | None,
    requires_grad: bool,
) -> Tensor:
    """Every element equal to `value`; `op` opens the error messages."""
    where, kind = place(op, device, dtype)
    return _tensor(where.full(_shape(op, shape), value, kind), requires_grad)


def constant(
    *shape: Size,
    c: float = 1.0,
    device: Device | None = None,
    dtype: DTypeLike = "float32",
    requires_grad: bool = False,
) -> Tensor:
    """Every element equal to `c`.

    Raises:
        ShapeError, TypeError: a size is negative, or not an integer.
        TypeError: `c` is not a number.
        DeviceError, DTypeError: no device, or no dtype that is supported.
    """
    value: object = c
    if not isinstance(value, (Real, np.bool_, np.ndarray, NDArray, Tensor)):
        raise TypeError(f"constant: c: got {value!r}: need a number")
    return _full("constant", shape, c, device, dtype, requires_grad)


def ones(
    *shape: Size,
    device: Device | None = None,
    dtype: DTypeLike = "float32",
    requires_grad: bool = False,
) -> Tensor:
    """Every element 1.

    Raises:
        ShapeError, TypeError: a size is negative, or not an integer.
        DeviceError, DTypeError: no device, or no dtype that is supported.
    """
    return _full("ones", shape, 1, device, dtype, requires_grad)


def zeros(
    *shape: Size,
    device: Device | None = None,
    dtype: DTypeLike = "float32",
    requires_grad: bool = False,
) -> Tensor:
    """Every element 0.

    Raises:
        ShapeError, TypeError: a size is negative, or not an integer.
        DeviceError, DTypeError: no device, or no dtype that is supported.
    """
    return _full("zeros", shape, 0, device, dtype, requires_grad)


def randb(
    *shape: Size,
    p: float = 0.5,
    device: Device | None = None,
    dtype: DTypeLike = "bool",
    requires_grad: bool = False,
) -> Tensor:
    """True (or 1) with probability p: where a uniform draw is at most p.

    Raises:
        ShapeError, TypeError: a size is negative, or not an integer.
        TypeError: `p` is not a number.
        ValueError: `p` is not in [0, 1].
        DeviceError, DTypeError: no device, or no dtype that is supported.
    """
    where, kind = place("randb", device, dtype)
    if type(p) is not float or not 0 <= p <= 1:  # each step of a Dropout comes here
        p = check_number("randb", "p", p, *UNIT)
    drawn = np.asarray(np.random.rand(*_shape("randb", shape)) <= p)
    return _tensor(NDArray(drawn, device=where, dtype=kind), requires_grad)


def one_hot(
    n: int,
    i: Any,
    device: Device | None = None,
    dtype: DTypeLike = "float32",
    requires_grad: bool = False,
) -> Tensor:
    """Rows of the n x n identity: shape i.shape + (n,), a one at each id of `i`.

    The ids are a Tensor, an NDArray, NumPy data or lists; the result is on their device unless
    another is named.

    Raises:
        IndexError: an id lies outside 0 .. n - 1.
        TypeError: `n` is not an integer.
        ShapeError: `n` is negative, or the lists are ragged.
        DTypeError: an id is not a whole number, or the dtype is not supported.
        DeviceError: `device` is no device.
    """
    if isinstance(i, (Tensor, NDArray)):
        device = i.device if device is None else device
        i = i.numpy()
    where, kind = place("one_hot", device, dtype)
    ids = as_numpy("one_hot", "i", i)
    return _tensor(where.one_hot(as_int("one_hot", "n", n), ids, kind), requires_grad)


def zeros_like(
    array: Tensor | NDArray,
    *,
    device: Device | None = None,
    dtype: DTypeLike | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """Zeros with the shape of `array`, and its device and dtype unless others are named.

    Raises:
        TypeError: `array` is neither a Tensor nor an NDArray.
        DeviceError, DTypeError: no device, or no dtype that is supported.
    """
    return _like("zeros_like", array, 0, device, dtype, requires_grad)


def ones_like(
    array: Tensor | NDArray,
    *,
    device: Device | None = None,
    dtype: DTypeLike | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """Ones with the shape of `array`, and its device and dtype unless others are named.

    Raises:
        TypeError: `array` is neither a Tensor nor an NDArray.
        DeviceError, DTypeError: no device, or no dtype that is supported.
    """
    return _like("ones_like", array, 1, device, dtype, requires_grad)


def _like(
    op: str,
    array: Tensor | NDArray,
    value: float,
    device: Device | None,
    dtype: DTypeLike | None,
    requires_grad: bool,
) -> Tensor:
    if not isinstance(array, NDArray):
        check_tensor(op, 0, array)
    where = array.device if device is None else device
    kind = array.dtype if dtype is None else dtype
    return _full(op, array.shape, value, where, kind, requires_grad)
