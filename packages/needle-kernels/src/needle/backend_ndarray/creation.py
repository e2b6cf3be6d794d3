"""Functions that make arrays, as NumPy has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike

from needle.backend_ndarray.devices import Device, check_device
from needle.backend_ndarray.dtypes import Scalar, as_dtype, foreign_dtype
from needle.backend_ndarray.extension import cpu as _cpu
from needle.backend_ndarray.layout import as_shape, extent
from needle.backend_ndarray.ndarray import NDArray, check_same_device, from_numpy, wrap

__all__ = ["array", "empty", "from_dlpack", "full", "ones", "zeros"]


def array(a: Any, dtype: DTypeLike | None = None, device: Device | None = None) -> NDArray:
    """A copy of `a` (an NDArray, a NumPy array, nested lists or a number); see NDArray."""
    return NDArray(a, device=device, dtype=dtype)


def empty(
    shape: SupportsIndex | Sequence[int],
    dtype: DTypeLike | None = None,
    device: Device | None = None,
) -> NDArray:
    """An array with arbitrary contents; float32 unless said otherwise."""
    return check_device("empty", device).empty(shape, dtype)


def full(
    shape: SupportsIndex | Sequence[int],
    fill_value: Scalar,
    dtype: DTypeLike | None = None,
    device: Device | None = None,
) -> NDArray:
    """An array with every element equal to `fill_value`; float32 unless said otherwise."""
    return check_device("full", device).full(shape, fill_value, dtype)


def zeros(
    shape: SupportsIndex | Sequence[int],
    dtype: DTypeLike | None = None,
    device: Device | None = None,
) -> NDArray:
    """An array of zeros; float32 unless said otherwise."""
    return check_device("zeros", device).zeros(shape, dtype=dtype)


def ones(
    shape: SupportsIndex | Sequence[int],
    dtype: DTypeLike | None = None,
    device: Device | None = None,
) -> NDArray:
    """An array of ones; float32 unless said otherwise."""
    return check_device("ones", device).ones(shape, dtype=dtype)


def from_dlpack(x: Any, device: Device | None = None) -> NDArray:
    """An array on the memory of `x`, any object with `__dlpack__`, on `device` (default: cpu()).

    The memory is shared; it is copied where it is read-only, cannot be an array of ours, or is not
    the device's.

    Raises:
        TypeError: `x` is not such an object.
        DTypeError: the dtype is not supported.
        DeviceError: `x` is an NDArray of another device.
    """
    where = check_device("from_dlpack", device)
    if isinstance(x, NDArray):
        check_same_device(
            "from_dlpack", "x", x, wrap(x._handle, (), (), 0, x._dtype, device or x._device)
        )
        return x._view(x._shape, x._strides)
    if not hasattr(x, "__dlpack__"):
        raise TypeError(
            f"from_dlpack: x: got {type(x).__name__}: need an object with __dlpack__, as arrays are"
        )
    return borrow(np.from_dlpack(x), where)


def borrow(source: np.ndarray[Any, Any], device: Device) -> NDArray:
    """An array on the memory of a NumPy array, or a copy where the device cannot use that memory.

    Raises:
        DTypeError: the dtype is not supported.
    """
    dtype = as_dtype(source.dtype, "from_dlpack")
    whole = all(step % source.itemsize == 0 for step in source.strides)
    if not device.in_host_memory:
        return from_numpy(source, device, foreign_dtype(dtype, keep=True))
    if not (source.flags.writeable and source.flags.aligned and whole and source.size):
        return from_numpy(source, device, foreign_dtype(dtype, keep=True))
    shape = as_shape("from_dlpack", source.shape)
    strides = tuple([step // source.itemsize for step in source.strides])
    low, high = extent(shape, strides)
    storage = _cpu.Storage.borrow(
        source.ctypes.data + low * source.itemsize, high - low + 1, dtype.name, source
    )
    return wrap(storage, shape, strides, -low, dtype, device)
