"""Rows by id: gather, scatter-add, one-hot."""

from __future__ import annotations

from typing import Final, SupportsIndex

from numpy.typing import DTypeLike

from needle.backend_ndarray.checks import check_floats, check_rank, check_shape, flat_ids
from needle.backend_ndarray.dtypes import as_dtype
from needle.backend_ndarray.extension import KERNEL, NO_SCALARS
from needle.backend_ndarray.layout import as_int, as_shape
from needle.backend_ndarray.ndarray import NDArray, as_rows, check_same_device, new

__all__ = ["gather", "one_hot", "scatter_add"]

_GATHER: Final = KERNEL["gather"]
_SCATTER_ADD: Final = KERNEL["scatter_add"]
_ONE_HOT: Final = KERNEL["one_hot"]


def gather(table: NDArray, ids: NDArray) -> NDArray:
    """Row `ids[...]` of the table (V, D) for each id: shape ids.shape + (D,).

    Raises:
        ShapeError: the table has not two axes.
        DTypeError: ids are not integers.
        IndexError: an id is out of range.
    """
    return gather_for("gather", table, ids)


def gather_for(op: str, table: NDArray, ids: NDArray) -> NDArray:
    """gather, whose errors name the caller's operation."""
    device = check_same_device(op, "table, ids", table, ids)
    check_rank(op, "table", table, 2, "(V, D)")
    rows = flat_ids(op, ids, table._shape[0])
    out = new(device, ids._shape + table._shape[1:], table._dtype)
    device.launch(_GATHER, (as_rows(out), table, rows), NO_SCALARS)
    return out


def scatter_add(src: NDArray, ids: NDArray, num_rows: int) -> NDArray:
    """The sum of the rows of `src` that have the same id: (num_rows, D), the gradient of gather.

    Args:
        src: ids.shape + (D,).
        ids: integers in 0 .. num_rows - 1, of any shape.
        num_rows: rows of the result.

    Raises:
        ShapeError: src and ids do not fit.
        DTypeError: src is not floats, or ids not integers.
        IndexError: an id is out of range.
    """
    check_same_device("scatter_add", "src, ids", src, ids)
    device, dtype = check_floats("scatter_add", "src", src)
    width = src._shape[-1:] or (1,)
    check_shape("scatter_add", "src", src, ids._shape + width)
    shape = as_shape("scatter_add", (num_rows, *width))
    rows = flat_ids("scatter_add", ids, shape[0])
    out = new(device, shape, dtype)
    out.fill(0)
    device.launch(_SCATTER_ADD, (out, as_rows(src), rows), NO_SCALARS)
    return out


def one_hot(ids: NDArray, num_classes: SupportsIndex, dtype: DTypeLike = "float32") -> NDArray:
    """1 at each id and 0 elsewhere: shape ids.shape + (num_classes,).

    Raises:
        ShapeError: num_classes is negative.
        DTypeError: ids are not integers.
        IndexError: an id is out of range.
    """
    kind = as_dtype("float32" if dtype is None else dtype, "one_hot")
    if type(num_classes) is not int:
        num_classes = as_int("one_hot", "num_classes", num_classes)
    (count,) = as_shape("one_hot", num_classes)
    rows = flat_ids("one_hot", ids, count)
    out = new(ids._device, (*ids._shape, count), kind)
    ids._device.launch(_ONE_HOT, (as_rows(out), rows), NO_SCALARS)
    return out
