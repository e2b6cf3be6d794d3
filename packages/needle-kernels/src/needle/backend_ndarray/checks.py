"""Checks that several families share; each raises before anything is computed."""

from __future__ import annotations

from typing import Final

from needle.backend_ndarray.devices import Device
from needle.backend_ndarray.dtypes import FLOAT32, FLOAT64, INT64, DType
from needle.backend_ndarray.errors import DTypeError, ShapeError
from needle.backend_ndarray.extension import cpu as _cpu
from needle.backend_ndarray.layout import Shape
from needle.backend_ndarray.ndarray import NDArray, as_flat, check_arrays, check_same_device

MOST_PIXELS: Final = 2**31 - 1
"""The largest stride or window: with these, the kernels' places fit into int64."""


def check_floats(op: str, names: str, *arrays: NDArray) -> tuple[Device, DType]:
    """The device and the float dtype that all arrays share.

    For one that is absent the caller gives another. `names` are the arrays' names as in
    check_arrays.

    Raises:
        TypeError: one is no NDArray.
        DeviceError: they live on different devices.
        DTypeError: they differ in dtype, or are not float32 or float64.
    """
    try:
        device, dtype = arrays[0]._device, arrays[0]._dtype
        for array in arrays:
            if array._dtype is not dtype or array._device is not device:
                break
        else:
            if dtype is FLOAT32 or dtype is FLOAT64:
                return device, dtype
    except AttributeError:
        pass
    check_same_device(op, names, *arrays)
    different = {id(array): array._dtype.name for array in arrays}
    raise DTypeError(
        f"{op}: dtypes do not fit: got {', '.join(different.values())}: "
        "need the same, float32 or float64"
    )


def check_shape(op: str, name: str, array: NDArray | None, shape: Shape) -> None:
    """Raises ShapeError unless `array`, where present, has `shape`."""
    if array is not None and array._shape != shape:
        raise ShapeError(f"{op}: {name} does not fit: got {array._shape}: need {shape}")


def check_rank(op: str, name: str, array: NDArray, rank: int, axes: str) -> None:
    """Raises ShapeError unless `array` has `rank` axes; `axes` names them in the message."""
    if len(array._shape) != rank:
        raise ShapeError(
            f"{op}: {name} has the wrong number of axes: got {array._shape}: need {axes}"
        )


def as_ids(op: str, ids: NDArray, count: int) -> NDArray:
    """The ids as int64, each checked to lie in 0 .. count - 1.

    On cuda() the kernel that uses them checks them, so that nothing waits for the device: the error
    comes with the next copy to the host, or synchronize().

    Raises:
        TypeError: they are no NDArray.
        DTypeError: they are not integers.
        IndexError: one is out of range.
    """
    try:
        kind = ids._dtype.kind
    except AttributeError:
        check_arrays(op, "ids", ids)
        raise
    if kind not in "iu":
        raise DTypeError(
            f"{op}: ids are not integers: got {ids._dtype.name}: need int64, int32 or uint8"
        )
    ids = ids.astype(INT64, copy=False)
    if ids._device.in_host_memory:
        wrong = _cpu.outside(ids, count)
        if wrong is not None:
            raise IndexError(f"{op}: id is out of range: got {wrong}: need 0 <= id < {count}")
    elif not count and ids.size:
        raise IndexError(f"{op}: id is out of range: got {ids.size} ids: need 0 <= id < 0")
    return ids


def flat_ids(op: str, ids: NDArray, count: int) -> NDArray:
    """as_ids with one axis."""
    return as_flat(as_ids(op, ids, count))
