"""Arithmetic on shapes and strides: everything about a view that is not its memory.

Strides count elements, not bytes. The functions are pure; those on the path of every small
operation remember their recent results.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, SupportsIndex, TypeAlias

from needle.backend_ndarray.errors import AxisError, ShapeError, SizeError
from needle.backend_ndarray.extension import cpu as _cpu

Shape: TypeAlias = tuple[int, ...]
Axes: TypeAlias = "int | Sequence[int] | None"

MAX_RANK: Final = 16
TOO_MANY: Final = 2**60  # elements: below it, offsets and bytes fit into int64
_CACHE: Final = 4096


def as_shape(op: str, sizes: SupportsIndex | Iterable[SupportsIndex]) -> Shape:
    """Checks a shape; an int means one axis.

    Raises:
        ShapeError: a size is negative, there are more than 16 axes, or 2^60 elements or more, not
            counting axes of size 0.
        TypeError: a size is not an integer.
    """
    return _checked_shape(op, as_ints(op, sizes))


@lru_cache(_CACHE)
def _checked_shape(op: str, shape: Shape) -> Shape:
    if len(shape) > MAX_RANK:
        raise ShapeError(f"{op}: too many axes: got {len(shape)}: at most {MAX_RANK}")
    if shape and min(shape) < 0:
        raise ShapeError(f"{op}: negative size: got {shape}: need every size >= 0")
    if math.prod([size or 1 for size in shape]) >= TOO_MANY:
        raise SizeError(f"{op}: too many elements: got {shape}: need fewer than 2^60")
    return shape


def as_ints(op: str, values: SupportsIndex | Iterable[SupportsIndex]) -> Shape:
    """A tuple of ints from an int or several; TypeError where one is not an integer."""
    if type(values) is int:
        return (values,)
    try:
        if type(values) is tuple or isinstance(values, Iterable):
            # By way of a list, whose length is known: a tuple that has to grow or shrink is made of
            # another size than it is freed with, and CPython keeps 2,000 of each size.
            return (*map(operator.index, values),)
        return (operator.index(values),)
    except TypeError:
        raise TypeError(f"{op}: not integers: got {values!r}: need an int or a tuple") from None


def as_int(op: str, name: str, value: SupportsIndex) -> int:
    """An int; TypeError where `value`, the argument `name`, is anything else."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} is not an integer: got {value!r}: need an int") from None


def unpack(arguments: tuple[Any, ...]) -> Any:
    """The tuple meant by `f((2, 3))` and by `f(2, 3)`."""
    if len(arguments) != 1:
        return arguments
    (only,) = arguments
    if type(only) is tuple or type(only) is int:  # asking for an Iterable takes longer
        return only
    return only if isinstance(only, Iterable) else arguments


@lru_cache(_CACHE)
def compact_strides(shape: Shape) -> Shape:
    """Row-major strides: the last axis is contiguous."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


@lru_cache(_CACHE)
def dense_strides(shape: Shape, strides: Shape) -> Shape:
    """Strides of a new array without gaps whose axes lie in memory in the order of `strides`.

    This is NumPy's order "K": an array stored channels-last stays channels-last. An axis that
    was broadcast (stride 0) has no place in memory, so with one the result is row-major.
    """
    if any(step == 0 and size > 1 for size, step in zip(shape, strides, strict=True)):
        return compact_strides(shape)
    # Axes of size 1 have arbitrary strides. They sort as if they were as long as the axis to
    # their right, which leaves an array that is row-major apart from them row-major.
    weights = list(map(abs, strides))
    for axis in reversed(range(len(shape))):
        if shape[axis] <= 1:
            weights[axis] = weights[axis + 1] if axis + 1 < len(shape) else 1
    result = [0] * len(shape)
    step = 1
    for axis in sorted(range(len(shape)), key=lambda k: (weights[k], -k)):
        result[axis] = step
        step *= max(shape[axis], 1)
    return tuple(result)


@lru_cache(_CACHE)
def is_dense(shape: Shape, strides: Shape) -> bool:
    """Whether the elements fill one stretch of memory, each place once and upwards."""
    return all(
        size <= 1 or step == dense
        for size, step, dense in zip(shape, strides, dense_strides(shape, strides), strict=True)
    )


@lru_cache(_CACHE)
def same_places(shape: Shape, strides: Shape, others: Shape) -> bool:
    """Whether two strides put each element at the same place; those of size-1 axes do not count."""
    return all(
        size <= 1 or step == other for size, step, other in zip(shape, strides, others, strict=True)
    )


@lru_cache(_CACHE)
def extent(shape: Shape, strides: Shape) -> tuple[int, int]:
    """The lowest and highest element that a view touches, relative to its offset.

    (0, -1) for an empty view, which touches none.
    """
    if 0 in shape:
        return 0, -1
    reach = [(size - 1) * step for size, step in zip(shape, strides, strict=True)]
    return sum(r for r in reach if r < 0), sum(r for r in reach if r > 0)


def check_strides(op: str, shape: Shape, strides: Shape) -> None:
    """Raises ShapeError unless there is a stride for each axis, which fits into int64."""
    if len(strides) != len(shape):
        raise ShapeError(
            f"{op}: strides do not match the shape: got shape {shape} and strides {strides}: "
            "need one stride per axis"
        )
    if any(abs(step) >= TOO_MANY for step in strides):
        raise ShapeError(f"{op}: a stride is too large: got {strides}: need less than 2^60")


def check_extent(op: str, shape: Shape, strides: Shape, offset: int, size: int) -> None:
    """Raises ShapeError where a view would leave its storage of `size` elements."""
    check_strides(op, shape, strides)
    low, high = extent(shape, strides)
    if (
        offset < 0
        or offset > size
        or (high >= low and not 0 <= offset + low <= offset + high < size)
    ):
        raise ShapeError(
            f"{op}: the view leaves its storage: got shape {shape}, strides {strides}, offset "
            f"{offset}, elements {offset + low} to {offset + high}: the storage has {size}"
        )


@lru_cache(_CACHE)
def broadcast_shapes(op: str, a: Shape, b: Shape) -> Shape:
    """The shape of two arrays combined, by NumPy's rule.

    Raises:
        ShapeError: the sizes of an axis differ and neither is 1.
    """
    rank = max(len(a), len(b))
    result = []
    for x, y in zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True):
        if x != y and x != 1 and y != 1:
            raise ShapeError(
                f"{op}: shapes do not broadcast: got {a} and {b}: "
                "need equal sizes, or 1, from the right"
            )
        result.append(y if x == 1 else x)
    return tuple(result)


@lru_cache(_CACHE)
def broadcast_strides(op: str, shape: Shape, strides: Shape, target: Shape) -> Shape:
    """Strides that show an array in the shape `target`: 0 along every repeated axis.

    Raises:
        ShapeError: the array does not broadcast to `target`.
    """
    extra = len(target) - len(shape)
    if extra < 0 or any(
        size not in (1, wanted) for size, wanted in zip(shape, target[extra:], strict=True)
    ):
        raise ShapeError(
            f"{op}: the shape does not broadcast: got {shape} to {target}: "
            "need equal sizes, or 1, from the right"
        )
    kept = (
        step if size == wanted else 0
        for size, step, wanted in zip(shape, strides, target[extra:], strict=True)
    )
    return (0,) * extra + tuple(kept)


def normalize_axis(op: str, axis: SupportsIndex, rank: int) -> int:
    """The axis counted from the left.

    Raises:
        AxisError: there is no such axis.
        TypeError: the axis is not an integer.
    """
    return _count_from_left(op, (as_int(op, "axis", axis),), rank)[0]


def normalize_axes(op: str, axes: Axes, rank: int) -> Shape:
    """The axes counted from the left, in the order given; None means all.

    Raises:
        AxisError: an axis does not exist.
        ShapeError: an axis is named twice.
    """
    return tuple(range(rank)) if axes is None else _count_from_left(op, as_ints(op, axes), rank)


@lru_cache(_CACHE)
def _count_from_left(op: str, axes: Shape, rank: int) -> Shape:
    for axis in axes:
        if not -rank <= axis < rank:
            raise AxisError(
                f"{op}: axis is out of range: got {axis} for {rank} axes: "
                f"need {-rank} <= axis < {rank}"
            )
    result = tuple([axis % rank for axis in axes])
    if len(set(result)) != len(result):
        raise ShapeError(f"{op}: axis named twice: got {axes}: need different axes")
    return result


def resolve_shape(op: str, sizes: Any, old: Shape) -> Shape:
    """The shape meant by `sizes`, of which one may be -1: whatever is left.

    Raises:
        ShapeError: it has not as many elements as the shape `old`.
    """
    return _resolved_shape(op, as_ints(op, sizes), old)


@lru_cache(_CACHE)
def _resolved_shape(op: str, shape: Shape, old: Shape) -> Shape:
    size = math.prod(old)
    if shape.count(-1) == 1:
        known = -math.prod(shape)
        if known > 0 and size % known == 0:
            shape = tuple(size // known if n == -1 else n for n in shape)
    shape = shape if -1 in shape else _checked_shape(op, shape)
    if -1 in shape or math.prod(shape) != size:
        raise ShapeError(
            f"{op}: sizes differ: got {size} elements for {shape}: need the same number of elements"
        )
    return shape


@lru_cache(_CACHE)
def rows_shape(shape: Shape) -> Shape:
    """(R, D) of a shape (..., D)."""
    return math.prod(shape[:-1]), shape[-1]


@lru_cache(_CACHE)
def flat_shape(shape: Shape) -> Shape:
    """All elements along one axis."""
    return (math.prod(shape),)


@lru_cache(_CACHE)
def reshape_strides(shape: Shape, strides: Shape, target: Shape) -> Shape | None:
    """Strides that show the same elements in another shape, or None where only a copy can.

    Both shapes are cut into the shortest runs of axes with equal products. A run can be shown
    differently where its old axes lie in memory like one long axis.
    """
    if math.prod(target) == 0:
        return compact_strides(target)
    old = [(size, step) for size, step in zip(shape, strides, strict=True) if size != 1]
    result: list[int] = []
    i = j = 0
    while i < len(old) and j < len(target):
        i_end, j_end = i + 1, j + 1
        old_count, new_count = old[i][0], target[j]
        while old_count != new_count:
            if old_count < new_count:
                old_count *= old[i_end][0]
                i_end += 1
            else:
                new_count *= target[j_end]
                j_end += 1
        for (_, step), (size, next_step) in zip(
            old[i : i_end - 1], old[i + 1 : i_end], strict=True
        ):
            if step != size * next_step:
                return None
        innermost = old[i_end - 1][1]
        result.extend(step * innermost for step in compact_strides(target[j:j_end]))
        i, j = i_end, j_end
    # Only axes of size 1 can be left, and their strides are never used.
    return tuple(result) + (1,) * (len(target) - len(result))


def index_view(shape: Shape, strides: Shape, offset: int, index: Any) -> tuple[Shape, Shape, int]:
    """Shape, strides and offset of `array[index]`: ints, slices, Ellipsis and None.

    An int drops its axis, a slice keeps it, None adds one of size 1.

    Raises:
        IndexError: out of range, too many entries, more than 16 axes, or an entry of another type.
    """
    return _cpu.index_view(shape, strides, offset, index)


def axes_order(op: str, axes: Shape, shape: Shape) -> Shape:
    """The axes without negative numbers; ShapeError where they are no order of all."""
    order = normalize_axes(op, axes, len(shape))
    if len(order) != len(shape):
        raise ShapeError(
            f"{op}: axes are missing: got {order} for shape {shape}: "
            f"need an order of all {len(shape)} axes"
        )
    return order


@lru_cache(_CACHE)
def permuted_view(shape: Shape, strides: Shape, axes: Shape) -> tuple[Shape, Shape]:
    """Shape and strides with axis `axes[i]` as axis i; ShapeError where it is no order of all."""
    order = axes_order("permute", axes, shape)
    return tuple([shape[axis] for axis in order]), tuple([strides[axis] for axis in order])


@lru_cache(_CACHE)
def flip_view(shape: Shape, strides: Shape, axes: Shape) -> tuple[Shape, int]:
    """Strides that walk `axes` backwards, and how far the offset moves."""
    shift = sum((shape[k] - 1) * strides[k] for k in axes if shape[k])
    return tuple([-step if k in axes else step for k, step in enumerate(strides)]), shift
