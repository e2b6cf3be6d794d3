"""Constants and random numbers.

Random numbers come from NumPy's global generator, in float64, one draw per Tensor, on every
device: `np.random.seed(s)` fixes a run everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from ..autograd import Tensor
from ..backend_ndarray import Device, NDArray, default_device
from ..backend_ndarray.devices import check_device
from ..backend_ndarray.layout import as_shape
from ..ops.common import check_tensor

Size: TypeAlias = "int | Sequence[int]"


def _shape(op: str, sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """The shape meant by `f(2, 3)` and by `f((2, 3))`.

    Raises:
        ShapeError: a size is negative.
        TypeError: a size is not an integer.
    """
    if len(sizes) == 1 and isinstance(sizes[0], Sequence):
        sizes = tuple(sizes[0])
    return as_shape(op, sizes)


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
    """Uniform numbers in [low, high): rand * (high - low) + low."""
    where = check_device("rand", device)
    array = where.rand(*_shape("rand", shape), dtype=dtype, low=low, high=high)
    return _tensor(array, requires_grad)


def randn(
    *shape: Size,
    mean: float = 0.0,
    std: float = 1.0,
    device: Device | None = None,
    dtype: DTypeLike = "float32",
    requires_grad: bool = False,
) -> Tensor:
    """Normal numbers: randn * std + mean."""
    where = check_device("randn", device)
    array = where.randn(*_shape("randn", shape), dtype=dtype, mean=mean, std=std)
    return _tensor(array, requires_grad)


def constant(
    *shape: Size,
    c: float = 1.0,
    device: Device | None = None,
    dtype: DTypeLike = "float32",
    requires_grad: bool = False,
) -> Tensor:
    """Every element equal to `c`."""
    where = check_device("constant", device)
    return _tensor(where.full(_shape("constant", shape), c, dtype), requires_grad)


def ones(
    *shape: Size,
    device: Device | None = None,
    dtype: DTypeLike = "float32",
    requires_grad: bool = False,
) -> Tensor:
    """Every element 1."""
    return constant(*shape, c=1, device=device, dtype=dtype, requires_grad=requires_grad)


def zeros(
    *shape: Size,
    device: Device | None = None,
    dtype: DTypeLike = "float32",
    requires_grad: bool = False,
) -> Tensor:
    """Every element 0."""
    return constant(*shape, c=0, device=device, dtype=dtype, requires_grad=requires_grad)


def randb(
    *shape: Size,
    p: float = 0.5,
    device: Device | None = None,
    dtype: DTypeLike = "bool",
    requires_grad: bool = False,
) -> Tensor:
    """True (or 1) with probability p: where a uniform draw is at most p."""
    where = check_device("randb", device)
    drawn = np.asarray(np.random.rand(*_shape("randb", shape)) <= p)
    return _tensor(NDArray(drawn, device=where, dtype=dtype), requires_grad)


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
        DTypeError: an id is not a whole number.
    """
    if isinstance(i, (Tensor, NDArray)):
        device = i.device if device is None else device
        i = i.numpy()
    where = default_device() if device is None else check_device("one_hot", device)
    return _tensor(where.one_hot(n, i, dtype), requires_grad)


def zeros_like(
    array: Tensor | NDArray,
    *,
    device: Device | None = None,
    dtype: DTypeLike | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """Zeros with the shape of `array`, and its device and dtype unless others are named."""
    if not isinstance(array, NDArray):
        check_tensor("zeros_like", 0, array)
    where = array.device if device is None else device
    kind = array.dtype if dtype is None else dtype
    return zeros(*array.shape, device=where, dtype=kind, requires_grad=requires_grad)


def ones_like(
    array: Tensor | NDArray,
    *,
    device: Device | None = None,
    dtype: DTypeLike | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """Ones with the shape of `array`, and its device and dtype unless others are named."""
    if not isinstance(array, NDArray):
        check_tensor("ones_like", 0, array)
    where = array.device if device is None else device
    kind = array.dtype if dtype is None else dtype
    return ones(*array.shape, device=where, dtype=kind, requires_grad=requires_grad)
