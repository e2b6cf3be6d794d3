"""Moving elements: reshape, broadcast, flip, pad, concatenate, stack."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, SupportsIndex

from needle.backend_ndarray.dtypes import promote
from needle.backend_ndarray.errors import ShapeError
from needle.backend_ndarray.extension import cpu as _cpu
from needle.backend_ndarray.layout import (
    Axes,
    Shape,
    as_ints,
    compact_strides,
    dense_strides,
    flip_view,
    normalize_axes,
    normalize_axis,
)
from needle.backend_ndarray.ndarray import (
    NDArray,
    as_array,
    check_same_device,
    copy_into,
    new,
)

__all__ = [
    "broadcast_to",
    "concatenate",
    "copy_into",
    "flip",
    "pad",
    "permute",
    "reshape",
    "stack",
]

# The common path in C++: arrays of one dtype on cpu() whose shapes fit. None for others.
_join: Final[Callable[..., NDArray | None]] = _cpu.join


def broadcast_to(array: NDArray, shape: SupportsIndex | Sequence[int]) -> NDArray:
    """A view in which axes of size 1, and new ones on the left, repeat without a copy."""
    return as_array("broadcast_to", array).broadcast_to(shape)


def reshape(array: NDArray, shape: SupportsIndex | Sequence[int]) -> NDArray:
    """The same elements in another shape; a view where strides allow."""
    return as_array("reshape", array).reshape(shape)


def permute(array: NDArray, axes: Sequence[int]) -> NDArray:
    """A view with axis `axes[i]` as axis i."""
    return as_array("permute", array).permute(axes)


def flip(a: NDArray, axes: Axes = None) -> NDArray:
    """A compact copy with the order of the elements along `axes` reversed; None for all axes.

    Raises:
        AxisError: there is no such axis.
    """
    a = as_array("flip", a)
    reversed_axes = normalize_axes("flip", axes, a.ndim)
    strides, shift = flip_view(a._shape, a._strides, reversed_axes)
    out = new(a._device, a._shape, a._dtype)
    copy_into(out, a._view(a._shape, strides, a._offset + shift))
    return out


def pad(a: NDArray, *pairs: Any) -> NDArray:
    """Zeros around an array: `pairs` is ((left, right), ...), one pair per axis.

    Raises:
        ShapeError: not one pair per axis, or a negative width.
    """
    a = as_array("pad", a)
    widths = pairs[0] if len(pairs) == 1 and _nested(pairs[0]) else pairs
    plan = _pad_plan(a._shape, a._strides, _as_pairs(widths))
    out = new(a._device, plan.shape, a._dtype)
    if out._strides != plan.strides:
        out = out._view(plan.shape, plan.strides)
    out.fill(0)
    copy_into(out._view(a._shape, plan.strides, plan.start), a)
    return out


def _nested(pairs: Any) -> bool:
    """Whether this is a tuple of pairs, not the one pair of an array with one axis."""
    if type(pairs) is tuple and pairs and type(pairs[0]) is tuple:
        return True
    return isinstance(pairs, Iterable) and isinstance(next(iter(pairs), ()), Iterable)


def _as_pairs(widths: Any) -> tuple[Shape, ...]:
    try:
        return tuple([(operator.index(left), operator.index(right)) for left, right in widths])
    except (TypeError, ValueError):  # no pairs, or not of integers: _pad_plan or as_ints says so
        return tuple([as_ints("pad", pair) for pair in widths])


class PadPlan(NamedTuple):
    """The layout of a padded array, in the memory order of the inner one, and where that begins."""

    shape: Shape
    strides: Shape
    start: int


@lru_cache(4096)
def _pad_plan(inner: Shape, strides: Shape, widths: tuple[Shape, ...]) -> PadPlan:
    if len(widths) != len(inner) or any(len(w) != 2 or min(w) < 0 for w in widths):
        raise ShapeError(
            f"pad: widths do not fit: got {widths} for shape {inner}: "
            "need one pair (left, right) >= 0 per axis"
        )
    shape = tuple([size + sum(w) for size, w in zip(inner, widths, strict=True)])
    steps = dense_strides(shape, strides)
    return PadPlan(shape, steps, sum([w[0] * step for w, step in zip(widths, steps, strict=True)]))


def dilate(a: NDArray, steps: Shape) -> NDArray:
    """Zeros between elements: along each axis the next element is so many places further on."""
    shape, strides = _dilate_plan(a._shape, steps)
    out = new(a._device, shape, a._dtype)
    out.fill(0)
    copy_into(out._view(a._shape, strides), a)
    return out


@lru_cache(4096)
def _dilate_plan(shape: Shape, steps: Shape) -> tuple[Shape, Shape]:
    """The shape with the zeros, and the strides of the elements in it."""
    dilated = tuple(map(operator.mul, shape, steps))
    return dilated, tuple(map(operator.mul, compact_strides(dilated), steps))


def concatenate(arrays: Iterable[NDArray], axis: int = 0) -> NDArray:
    """The arrays one after the other along an axis they have.

    Raises:
        ShapeError: no arrays, or their other axes differ.
    """
    if type(arrays) is not list:
        arrays = _as_list("concatenate", arrays)
    if (joined := _join(arrays, axis, False)) is not None:
        return joined
    first = _first("concatenate", arrays)
    k = normalize_axis("concatenate", axis, first.ndim)
    before, after = first._shape[:k], first._shape[k + 1 :]
    for a in arrays:
        if a._shape[:k] != before or a._shape[k + 1 :] != after:
            raise ShapeError(
                f"concatenate: shapes differ: got {first._shape} and {a._shape}: "
                f"need equal sizes on every axis but {k}"
            )
    out = _empty_for(arrays, (*before, sum([a._shape[k] for a in arrays]), *after))
    offset = 0
    for a in arrays:
        place = out._view(a._shape, out._strides, offset)
        copy_into(place, a)
        offset += a._shape[k] * out._strides[k]
    return out


def stack(arrays: Iterable[NDArray], axis: int = 0) -> NDArray:
    """The arrays side by side along a new axis.

    Raises:
        ShapeError: no arrays, or their shapes differ.
    """
    if type(arrays) is not list:
        arrays = _as_list("stack", arrays)
    if (joined := _join(arrays, axis, True)) is not None:
        return joined
    first = _first("stack", arrays)
    k = normalize_axis("stack", axis, first.ndim + 1)
    for a in arrays:
        if a._shape != first._shape:
            raise ShapeError(
                f"stack: shapes differ: got {first._shape} and {a._shape}: need equal shapes"
            )
    out = _empty_for(arrays, (*first._shape[:k], len(arrays), *first._shape[k:]))
    for i, a in enumerate(arrays):
        copy_into(out[(slice(None),) * k + (i,)], a)
    return out


def _as_list(op: str, arrays: Any) -> list[NDArray]:
    """A list of what is given; TypeError where it is nothing to iterate over."""
    try:
        return list(arrays)
    except TypeError:
        if isinstance(arrays, Iterable):
            raise
        kind = type(arrays).__name__
        raise TypeError(f"{op}: arrays is not a list: got {kind}: need NDArrays") from None


def _first(op: str, arrays: Sequence[NDArray]) -> NDArray:
    if not arrays:
        raise ShapeError(f"{op}: no arrays: got 0: need at least one")
    check_same_device(op, "one of arrays", *arrays)
    return arrays[0]


def _empty_for(arrays: Sequence[NDArray], shape: Shape) -> NDArray:
    dtype = arrays[0]._dtype
    for a in arrays:
        dtype = promote(dtype, a._dtype)
    return new(arrays[0]._device, shape, dtype)
