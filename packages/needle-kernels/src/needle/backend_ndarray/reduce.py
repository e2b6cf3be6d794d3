"""Sums and extremes over axes."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from needle.backend_ndarray.dtypes import INT64, NAME, DType
from needle.backend_ndarray.errors import ShapeError
from needle.backend_ndarray.extension import KERNEL, NO_SCALARS
from needle.backend_ndarray.layout import Axes, Shape, dense_strides, normalize_axes
from needle.backend_ndarray.ndarray import NDArray, as_array, wrap

__all__ = ["max", "min", "reduction", "sum"]


def sum(a: NDArray, axis: Axes = None, keepdims: bool = False) -> NDArray:
    """The sum over `axis`: None for all, an int, or a tuple. Integers and bools sum to int64.

    (NumPy sums uint8 to uint64, which is not a dtype here.)

    Raises:
        AxisError: there is no such axis.
    """
    a = as_array(a)
    if a._dtype.kind != "f" and a._dtype is not INT64:
        a = a.astype(INT64)
    return reduction("sum", a, axis, keepdims)


def max(a: NDArray, axis: Axes = None, keepdims: bool = False) -> NDArray:
    """The largest element over `axis`; NaN where one is.

    Raises:
        AxisError: there is no such axis.
        ShapeError: an axis to reduce is empty.
    """
    a = as_array(a)
    _check_not_empty("max", a, axis)
    return reduction("max", a, axis, keepdims)


def min(a: NDArray, axis: Axes = None, keepdims: bool = False) -> NDArray:
    """The smallest element over `axis`; NaN where one is.

    Raises:
        AxisError: there is no such axis.
        ShapeError: an axis to reduce is empty.
    """
    a = as_array(a)
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


class Plan(NamedTuple):
    """Shapes and strides of one reduction."""

    shape: Shape  # of the result without the reduced axes
    strides: Shape
    kept_shape: Shape  # of the result with them, as size 1
    kept_strides: Shape
    source_shape: Shape  # of the input with the reduced axes last
    source_strides: Shape


@lru_cache(4096)
def plan(op: str, shape: Shape, strides: Shape, axes: Shape | None) -> Plan:
    """How to reduce `axes` (None: all) of an array with this layout."""
    reduced = sorted(normalize_axes(op, axes, len(shape)))
    kept = [k for k in range(len(shape)) if k not in reduced]
    out_shape = tuple(shape[k] for k in kept)
    out_strides = dense_strides(out_shape, tuple(strides[k] for k in kept))
    steps = dict(zip(kept, out_strides, strict=True))
    return Plan(
        out_shape,
        out_strides,
        tuple(shape[k] if k in steps else 1 for k in range(len(shape))),
        tuple(steps.get(k, 1) for k in range(len(shape))),
        out_shape + tuple(shape[k] for k in reduced),
        tuple(strides[k] for k in kept) + tuple(strides[k] for k in reduced),
    )


def reduction(
    op: str, a: NDArray, axis: Axes, keepdims: bool, dtype: DType | None = None
) -> NDArray:
    """Runs a kernel that takes (kept..., reduced...) to (kept...)."""
    axes = tuple(axis) if isinstance(axis, list) else (axis,) if isinstance(axis, int) else axis
    layout = plan(op, a._shape, a._strides, axes)
    kind = dtype or a._dtype
    out = wrap(
        a._device.storage(math.prod(layout.shape), NAME[kind]),
        layout.shape,
        layout.strides,
        0,
        kind,
        a._device,
    )
    source = a._view(layout.source_shape, layout.source_strides)
    a._device.launch(KERNEL[op], (out, source), NO_SCALARS)
    return out._view(layout.kept_shape, layout.kept_strides) if keepdims else out
