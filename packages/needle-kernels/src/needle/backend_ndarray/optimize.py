"""Optimizer steps over all parameters at once, in place.

An array that is written may share no memory with another of the call: threads share the elements of
all arrays, in no order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from needle.backend_ndarray.checks import check_floats, check_shape
from needle.backend_ndarray.devices import Device
from needle.backend_ndarray.dtypes import FLOAT64, DType
from needle.backend_ndarray.errors import ShapeError
from needle.backend_ndarray.extension import KERNEL
from needle.backend_ndarray.extension import cpu as _cpu
from needle.backend_ndarray.layout import as_int, is_dense, same_places
from needle.backend_ndarray.ndarray import NDArray, check_writable, copy_into, new

__all__ = [
    "adam",
    "adam_scalars",
    "moving_average",
    "partial_sum_squares",
    "scale",
    "sgd",
    "sum_squares",
]

# The common path in C++: lists of compact arrays on cpu(), of one dtype. False for others.
_common: Final[Callable[..., bool]] = _cpu.update

# What the arguments with the columns of an update are called; momenta may be absent.
_COLUMNS: Final = {
    "sgd": ("params", "momenta", "grads"),
    "adam": ("params", "ms", "vs", "grads"),
    "moving_average": ("averages", "values"),
}

Row: TypeAlias = tuple[NDArray, ...]
Kind: TypeAlias = tuple[Device, DType]


def sgd(
    params: Sequence[NDArray],
    momenta: Sequence[NDArray] | None,
    grads: Sequence[NDArray],
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool = False,
) -> None:
    """u = momentum u + (1 - momentum) (g + weight_decay w); w = w - lr u, for every parameter.

    Writes w (params) and u (momenta). Without momentum, momenta may be None: u is not kept.
    With nesterov, w moves by momentum u + (1 - momentum) (g + weight_decay w), of the new u.

    Raises:
        ShapeError: a parameter, its momentum and its gradient differ in shape.
        DTypeError: they differ in dtype or are not floats.
        DeviceError: they are on different devices.
        ValueError: momentum is not 0, but momenta is None.
    """
    if momenta is None and momentum != 0:
        raise ValueError(f"sgd: momenta: got None with momentum {momentum}: need an array each")
    scalars = (lr, momentum, weight_decay, float(nesterov))
    _update("sgd", (params, momenta, grads), scalars)


def adam(
    params: Sequence[NDArray],
    ms: Sequence[NDArray],
    vs: Sequence[NDArray],
    grads: Sequence[NDArray],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    """Step number `step` (from 1) of Adam for every parameter; see reference.optimize.adam.

    Writes w (params), m (ms) and v (vs).

    Raises:
        ShapeError: a parameter, its moments and its gradient differ in shape.
        DTypeError: they differ in dtype or are not floats.
        DeviceError: they are on different devices.
        ValueError: step is less than 1.
    """
    try:
        if step < 1:
            raise ValueError(f"adam: step: got {step}: need >= 1")
    except TypeError:
        as_int("adam", "step", step)
        raise
    scalars = adam_scalars(lr, beta1, beta2, eps, weight_decay, step)
    _update("adam", (params, ms, vs, grads), scalars)


def adam_scalars(
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int
) -> tuple[float, ...]:
    """What the kernel gets: the last two correct the averages of the first steps."""
    try:
        return lr, beta1, beta2, eps, weight_decay, 1 - beta1**step, 1 - beta2**step
    except TypeError:
        given = f"beta1 {beta1!r}, beta2 {beta2!r}, step {step!r}"
        raise TypeError(f"adam: a setting is not a number: got {given}: need floats") from None


def moving_average(averages: Sequence[NDArray], values: Sequence[NDArray], momentum: float) -> None:
    """average = (1 - momentum) * average + momentum * value, for every pair; writes averages.

    Raises:
        ShapeError: an average and its value differ in shape.
        DTypeError: they differ in dtype or are not floats.
        DeviceError: they are on different devices.
    """
    _update("moving_average", (averages, values), (momentum,))


def sum_squares(arrays: Sequence[NDArray]) -> float:
    """The sum of the squares of all elements of all arrays, in float64."""
    if (total := _cpu.sum_squares(arrays)) is not None:
        return total
    return sum([part.item() for part in partial_sum_squares(arrays)], 0.0)


def partial_sum_squares(arrays: Sequence[NDArray]) -> list[NDArray]:
    """Parts of sum_squares, each float64 of shape () and on its device; nothing waits for them."""
    parts = []
    for (device, _), group in _by_kind("sum_squares", arrays).items():
        out = new(device, (), FLOAT64)
        dense = [a if is_dense(a._shape, a._strides) else a.copy() for a in group]
        device.launch(KERNEL["sum_squares"], (out, *dense), ())
        parts.append(out)
    return parts


def scale(arrays: Sequence[NDArray], factor: float) -> None:
    """Multiplies every array by `factor`, in place."""
    groups = _by_kind("scale", arrays)
    for array in arrays:
        check_writable("scale", array)
    for (device, _), group in groups.items():
        dense = [a if is_dense(a._shape, a._strides) else a.copy() for a in group]
        device.launch(KERNEL["scale"], tuple(dense), (factor,))
        _store(group, dense)


def _by_kind(op: str, arrays: Sequence[NDArray]) -> dict[Kind, list[NDArray]]:
    """The arrays by device and dtype: a kernel call has one of each."""
    _check_list(op, "arrays", arrays)
    groups: dict[Kind, list[NDArray]] = {}
    for array in arrays:
        groups.setdefault(check_floats(op, "one of arrays", array), []).append(array)
    return groups


def _update(
    op: str, columns: Sequence[Sequence[NDArray] | None], scalars: tuple[float, ...]
) -> None:
    """Runs an optimizer kernel on the rows of `columns`; the last column is only read.

    Momenta that are None are absent from every row.
    """
    if _common(KERNEL[op], tuple(columns), scalars):
        return
    names, there = _present(op, columns)
    if len({len(column) for column in there}) != 1:
        raise ShapeError(
            f"{op}: lengths differ: got {[len(c) for c in there]} arrays: need equally many"
        )
    groups: dict[Kind, list[Row]] = {}
    for row in zip(*there, strict=True):
        groups.setdefault(_check_row(op, names, row), []).append(row)
    for (device, _), rows in groups.items():
        dense = [_same_layout(row) for row in rows]
        operands: list[NDArray | None] = [array for row in dense for array in row]
        if len(there) < len(columns):
            operands = _with_gaps(operands, columns)
        device.launch(KERNEL[op], tuple(operands), scalars)
        for row, result in zip(rows, dense, strict=True):
            _store(row[:-1], result[:-1])


def _present(
    op: str, columns: Sequence[Sequence[NDArray] | None]
) -> tuple[str, list[Sequence[NDArray]]]:
    """The columns that are there, and for messages what their elements are called."""
    named = zip(_COLUMNS[op], columns, strict=True)
    given = [(name, column) for name, column in named if column is not None or name != "momenta"]
    there = [_check_list(op, name, column) for name, column in given]
    return ", ".join([f"one of {name}" for name, _ in given]), there


def _with_gaps(
    operands: Sequence[NDArray | None], columns: Sequence[Sequence[NDArray] | None]
) -> list[NDArray | None]:
    """The operands of all rows with None where a column is absent."""
    given = iter(operands)
    width = sum(column is not None for column in columns)
    return [
        None if column is None else next(given)
        for _ in range(len(operands) // width)
        for column in columns
    ]


def _check_list(op: str, name: str, arrays: Sequence[NDArray] | None) -> Sequence[NDArray]:
    """The arrays; TypeError where the argument `name` is no sequence of them."""
    if arrays is None or not hasattr(arrays, "__len__"):
        kind = type(arrays).__name__
        raise TypeError(f"{op}: {name} is not a list: got {kind}: need NDArrays")
    return arrays


def _check_row(op: str, names: str, row: Row) -> Kind:
    """The device and dtype of a parameter, its state and its gradient, which must fit."""
    kind = check_floats(op, names, *row)
    shape = row[0]._shape
    for array in row[1:]:
        check_shape(op, "an array", array, shape)
    for array in row[:-1]:
        check_writable(op, array)
    return kind


def _same_layout(row: Row) -> Row:
    """The arrays without gaps and in one memory order, copied if need be.

    The kernels then run over them as flat memory.
    """
    shape, strides = row[0]._shape, row[0]._strides
    if is_dense(shape, strides):
        for array in row:
            if array._strides != strides and not same_places(shape, array._strides, strides):
                break
        else:
            return row
    return tuple([array.compact() for array in row])


def _store(arrays: Sequence[NDArray], results: Sequence[NDArray]) -> None:
    """Copies results back where the kernel ran on a copy, and marks every array as written."""
    for array, result in zip(arrays, results, strict=True):
        if result is array:
            array._handle.version += 1
        else:
            copy_into(array, result)
