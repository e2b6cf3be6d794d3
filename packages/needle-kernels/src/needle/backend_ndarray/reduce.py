"""Sums and extremes over axes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

from needle.backend_ndarray.dtypes import INT64
from needle.backend_ndarray.errors import ShapeError
from needle.backend_ndarray.extension import KERNEL, NO_SCALARS
from needle.backend_ndarray.extension import cpu as _cpu
from needle.backend_ndarray.layout import Axes, Shape, as_ints, dense_strides, normalize_axes
from needle.backend_ndarray.ndarray import NDArray, as_array, new

__all__ = ["max", "min", "reduction", "sum"]

# The common path in C++: arrays on cpu(). None for others.
_common: Final[Callable[..., NDArray | None]] = _cpu.reduce


def sum(a: NDArray, axis: Axes = None, keepdims: bool = False) -> NDArray:
    """The sum over `axis`: None for all, an int, or a tuple. Integers and bools sum to int64.

    (NumPy sums uint8 to uint64, which is not a dtype here.)

    Raises:
        AxisError: there is no such axis.
    """
    a = as_array("sum", a)
    if a._dtype.kind != "f" and a._dtype is not INT64:
        a = a.astype(INT64)
    return reduction("sum", a, axis, keepdims)


def max(a: NDArray, axis: Axes = None, keepdims: bool = False) -> NDArray:
    """The largest element over `axis`; NaN where one is.

    Raises:
        AxisError: there is no such axis.
        ShapeError: an axis to reduce is empty.
    """
    a = as_array("max", a)
    _check_not_empty("max", a, axis)
    return reduction("max", a, axis, keepdims)


def min(a: NDArray, axis: Axes = None, keepdims: bool = False) -> NDArray:
    """The smallest element over `axis`; NaN where one is.

    Raises:
        AxisError: there is no such axis.
        ShapeError: an axis to reduce is empty.
    """
    a = as_array("min", a)
    _check_not_empty("min", a, axis)
    return reduction("min", a, axis, keepdims)


def _check_not_empty(op: str, a: NDArray, axis: Axes) -> None:
    if 0 not in a._shape:
        return
    axes = normalize_axes(op, axis, a.ndim)
    kept = math.prod(size for k, size in enumerate(a._shape) if k not in axes)
    if kept and any(a._shape[k] == 0 for k in axes):
        raise ShapeError(
            f"{op}: nothing to choose from: got shape {a._shape}, axis {axis}: "
            "need at least one element"
        )


Layout: TypeAlias = tuple[Shape, Shape]
"""Shape and strides."""


class Plan(NamedTuple):
    """The layouts of one reduction."""

    to: Layout  # of the result without the reduced axes
    kept: Layout  # of the result with them, as size 1
    source: Layout  # of the input with the reduced axes last


@lru_cache(4096)
def plan(op: str, shape: Shape, strides: Shape, axes: Shape | None) -> Plan:
    """How to reduce `axes` (None: all) of an array with this layout."""
    reduced = sorted(normalize_axes(op, axes, len(shape)))
    kept = [k for k in range(len(shape)) if k not in reduced]
    out_shape = tuple(shape[k] for k in kept)
    out_strides = dense_strides(out_shape, tuple(strides[k] for k in kept))
    steps = dict(zip(kept, out_strides, strict=True))
    return Plan(
        (out_shape, out_strides),
        (
            tuple(shape[k] if k in steps else 1 for k in range(len(shape))),
            tuple(steps.get(k, 1) for k in range(len(shape))),
        ),
        (
            out_shape + tuple(shape[k] for k in reduced),
            tuple(strides[k] for k in kept) + tuple(strides[k] for k in reduced),
        ),
    )


def reduction(op: str, a: NDArray, axis: Axes, keepdims: bool) -> NDArray:
    """Runs a kernel that takes (kept..., reduced...) to (kept...)."""
    axes = tuple(axis) if isinstance(axis, list) else (axis,) if isinstance(axis, int) else axis
    try:
        layout = plan(op, a._shape, a._strides, axes)
    except TypeError:  # not hashable, as NumPy's arrays, or not integers
        layout = plan(op, a._shape, a._strides, as_ints(op, axis))  # type: ignore[arg-type]
    out = _common(KERNEL[op], a, layout.to, layout.source)
    if out is None:
        shape, strides = layout.to
        out = new(a._device, shape, a._dtype)._view(shape, strides)
        a._device.launch(KERNEL[op], (out, a._view(*layout.source)), NO_SCALARS)
    return out._view(*layout.kept) if keepdims else out
