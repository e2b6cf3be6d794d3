"""Element by element: arithmetic, comparisons, and the functions of one array.

Two arrays broadcast and promote as in NumPy 2. A Python scalar is weak: it takes the array's
dtype unless its kind is higher. A result keeps the memory order of its first full-sized input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np

from needle.backend_ndarray.devices import Device, default_device
from needle.backend_ndarray.dtypes import (
    BOOL,
    FLOAT64,
    INT64,
    DType,
    Number,
    Scalar,
    fits,
    promote,
    promote_scalar,
)
from needle.backend_ndarray.errors import DTypeError, ShapeError
from needle.backend_ndarray.extension import KERNEL, NO_SCALARS
from needle.backend_ndarray.extension import cpu as _cpu
from needle.backend_ndarray.layout import (
    Shape,
    broadcast_shapes,
    broadcast_strides,
)
from needle.backend_ndarray.ndarray import (
    NDArray,
    apart,
    as_array,
    check_same_device,
    check_writable,
    copy_into,
    empty_as,
    from_numpy,
    new,
)

__all__ = [
    "abs",
    "add",
    "divide",
    "equal",
    "exp",
    "greater",
    "greater_equal",
    "less",
    "less_equal",
    "log",
    "logical_and",
    "logical_not",
    "logical_or",
    "maximum",
    "minimum",
    "multiply",
    "negate",
    "not_equal",
    "power",
    "relu",
    "relu_grad",
    "sigmoid",
    "sigmoid_grad",
    "sqrt",
    "subtract",
    "tanh",
    "tanh_grad",
]

Operand: TypeAlias = "NDArray | Scalar | np.ndarray[Any, Any]"

# The common path in C++: arrays on cpu(), or one and a Python number, promoted as NumPy 2 does; of
# bools alone only a logical kernel. None for others.
_common: Final[Callable[..., NDArray | None]] = _cpu.elementwise
_common_in_place: Final[Callable[..., bool]] = _cpu.elementwise_in_place


# Two inputs


def add(a: Operand, b: Operand) -> NDArray:
    """a + b; of bools, a or b."""
    return _arithmetic("add", a, b)


def subtract(a: Operand, b: Operand) -> NDArray:
    """a - b; DTypeError for bools."""
    return _arithmetic("subtract", a, b)


def multiply(a: Operand, b: Operand) -> NDArray:
    """a * b; of bools, a and b."""
    return _arithmetic("multiply", a, b)


def divide(a: Operand, b: Operand) -> NDArray:
    """a / b; of integers, float64."""
    return _arithmetic("divide", a, b)


def power(a: Operand, b: Operand) -> NDArray:
    """a to the power b.

    Raises:
        ValueError: integers to a negative integer power.
    """
    return _arithmetic("power", a, b)


def maximum(a: Operand, b: Operand) -> NDArray:
    """The larger of each pair; NaN where either is."""
    return _arithmetic("maximum", a, b)


def minimum(a: Operand, b: Operand) -> NDArray:
    """The smaller of each pair; NaN where either is."""
    return _arithmetic("minimum", a, b)


def equal(a: Operand, b: Operand) -> NDArray:
    """a == b, as bools."""
    return _comparison("equal", a, b)


def not_equal(a: Operand, b: Operand) -> NDArray:
    """a != b, as bools."""
    return _comparison("not_equal", a, b)


def less(a: Operand, b: Operand) -> NDArray:
    """a < b, as bools."""
    return _comparison("less", a, b)


def less_equal(a: Operand, b: Operand) -> NDArray:
    """a <= b, as bools."""
    return _comparison("less_equal", a, b)


def greater(a: Operand, b: Operand) -> NDArray:
    """a > b, as bools."""
    return _comparison("greater", a, b)


def greater_equal(a: Operand, b: Operand) -> NDArray:
    """a >= b, as bools."""
    return _comparison("greater_equal", a, b)


def logical_and(a: NDArray, b: NDArray) -> NDArray:
    """Whether both are true (not zero), as bools."""
    if (result := _common(KERNEL["logical_and"], a, b)) is not None:
        return result
    return _arithmetic("multiply", _as_bool("logical_and", a), _as_bool("logical_and", b))


def logical_or(a: NDArray, b: NDArray) -> NDArray:
    """Whether either is true (not zero), as bools."""
    if (result := _common(KERNEL["logical_or"], a, b)) is not None:
        return result
    return _arithmetic("add", _as_bool("logical_or", a), _as_bool("logical_or", b))


_ON_BOOLS: Final = {
    "add": KERNEL["logical_or"],
    "multiply": KERNEL["logical_and"],
    "maximum": KERNEL["logical_or"],
    "minimum": KERNEL["logical_and"],
}


def _arithmetic(op: str, a: Operand, b: Operand) -> NDArray:
    """One binary kernel on promoted, broadcast operands."""
    if (result := _common(KERNEL[op], a, b)) is not None:
        return result
    a, b, dtype, shape, device = _prepare(op, a, b)
    kernel, dtype = _select(op, dtype, b)
    out = _empty_result(shape, device, dtype, a, b)
    device.launch(kernel, (out, _fit(op, a, shape, dtype), _fit(op, b, shape, dtype)), NO_SCALARS)
    return out


def _select(op: str, dtype: DType, exponent: NDArray | Number) -> tuple[int, DType]:
    """The kernel for inputs of `dtype`, and the dtype it computes in."""
    if dtype is BOOL and op in _ON_BOOLS:
        return _ON_BOOLS[op], dtype
    if dtype is BOOL and op == "subtract":
        raise DTypeError("subtract: bools cannot be subtracted: got bool: use not_equal")
    if op == "divide" and dtype.kind != "f":
        dtype = FLOAT64
    if op == "power" and dtype.kind != "f":
        dtype = INT64 if dtype is BOOL else dtype
        _check_exponent(exponent)
    return KERNEL[op], dtype


def _check_exponent(exponent: NDArray | Number) -> None:
    if isinstance(exponent, NDArray):
        lowest = int(exponent.min()) if exponent.size else 0
    else:
        lowest = int(exponent)
    if lowest < 0:
        raise ValueError(
            f"power: integers to a negative power: got exponent {lowest}: need >= 0, or floats"
        )


def _comparison(op: str, a: Operand, b: Operand) -> NDArray:
    """One comparison kernel on promoted, broadcast operands."""
    if (result := _common(KERNEL[op], a, b)) is not None:
        return result
    if (constant := _compare_out_of_range(op, a, b)) is not None:
        return constant
    a, b, dtype, shape, device = _prepare(op, a, b)
    out = _empty_result(shape, device, BOOL, a, b)
    operands = out, _fit(op, a, shape, dtype), _fit(op, b, shape, dtype)
    device.launch(KERNEL[op], operands, NO_SCALARS)
    return out


def _compare_out_of_range(op: str, a: Operand, b: Operand) -> NDArray | None:
    """The result where a Python int lies outside the array's dtype: the same for every element."""
    if type(b) is int and isinstance(a, NDArray) and not fits(a._dtype, b):
        array, left, right = a, 0, 1 if b > 0 else -1
    elif type(a) is int and isinstance(b, NDArray) and not fits(b._dtype, a):
        array, left, right = b, 1 if a > 0 else -1, 0
    else:
        return None
    out = empty_as(array, BOOL)
    out.fill(bool(getattr(np, op)(left, right)))
    return out


Prepared: TypeAlias = tuple["NDArray | Number", "NDArray | Number", DType, Shape, Device]


def _prepare(op: str, a: Operand, b: Operand) -> Prepared:
    """Operands as NDArrays or Python numbers, with their common dtype, shape and device."""
    if not isinstance(a, NDArray) and not isinstance(b, NDArray):
        a = as_array(op, a)
    a = _adopt(op, a, b)
    b = _adopt(op, b, a)
    if isinstance(a, NDArray) and isinstance(b, NDArray):
        device = check_same_device(op, "a, b", a, b)
        return a, b, promote(a._dtype, b._dtype), broadcast_shapes(op, a._shape, b._shape), device
    if isinstance(a, NDArray):
        assert not isinstance(b, NDArray)
        dtype = promote_scalar(op, a._dtype, b, as_floats=op == "divide")
        return a, _number(b), dtype, a._shape, a._device
    assert isinstance(b, NDArray)
    dtype = promote_scalar(op, b._dtype, a, as_floats=op == "divide")
    return _number(a), b, dtype, b._shape, b._device


def _adopt(op: str, operand: Operand, other: Operand) -> Any:
    """A NumPy array as an NDArray on the other's device; NDArrays and scalars as they are."""
    if isinstance(operand, (NDArray, float, int, np.generic)):
        return operand
    if isinstance(operand, np.ndarray):
        if operand.ndim == 0:
            return operand[()]
        device = other._device if isinstance(other, NDArray) else default_device()
        return from_numpy(operand, device, own=True)
    raise TypeError(
        f"{op}: unsupported operand: got {type(operand).__name__}: need an NDArray or a number"
    )


def _number(value: Any) -> Number:
    """A Python number of the value: kernels take no others."""
    number: Number = value.item() if isinstance(value, np.generic) else value
    return number


def _empty_result(
    shape: Shape, device: Device, dtype: DType, a: NDArray | Number, b: NDArray | Number
) -> NDArray:
    for model in (a, b):
        if isinstance(model, NDArray) and model._shape == shape:
            return empty_as(model, dtype)
    return new(device, shape, dtype)


def _fit(op: str, operand: NDArray | Number, shape: Shape, dtype: DType) -> NDArray | Number:
    """The operand cast to `dtype` and shown in `shape`."""
    if not isinstance(operand, NDArray):
        return operand if dtype.kind != "f" else float(operand)
    if operand._dtype is not dtype:
        operand = operand.astype(dtype)
    if operand._shape == shape:
        return operand
    return operand._view(shape, broadcast_strides(op, operand._shape, operand._strides, shape))


def write_result(op: str, target: NDArray, other: Operand) -> NDArray:
    """target[...] = op(target, other), written to target's memory; returns target.

    Raises:
        ShapeError: the result has another shape than the target.
        DTypeError: the result's dtype cannot be stored in the target's (floats in ints).
    """
    if _common_in_place(KERNEL[op], target, other):
        return target
    check_writable(op, target)
    _, b, dtype, shape, device = _prepare(op, target, other)
    if shape != target._shape:
        raise ShapeError(
            f"{op}: an in-place result would grow: got {shape} for {target._shape}: "
            "need an operand that broadcasts to the target"
        )
    kernel, dtype = _select(op, dtype, b)
    if dtype is not target._dtype:
        if not np.can_cast(dtype, target._dtype, "same_kind"):
            raise DTypeError(
                f"{op}: cannot store the in-place result: got {dtype.name} for "
                f"{target._dtype.name}: need the same kind"
            )
        copy_into(target, _arithmetic(op, target, other))
        return target
    if isinstance(b, NDArray):
        b = apart(b, target)
    operands = target, target, _fit(op, b, shape, dtype)
    device.launch(kernel, operands, NO_SCALARS)
    target._handle.version += 1
    return target


# One input


def negate(a: NDArray) -> NDArray:
    """-a; DTypeError for bools."""
    a = as_array("negate", a)
    if a._dtype is BOOL:
        raise DTypeError("negate: bools have no negative: got bool: use logical_not")
    return _unary("negate", a)


def abs(a: NDArray) -> NDArray:
    """The absolute value."""
    a = as_array("abs", a)
    return a.copy() if a._dtype is BOOL else _unary("abs", a)


def relu(a: NDArray) -> NDArray:
    """max(a, 0)."""
    a = as_array("relu", a)
    return a.copy() if a._dtype is BOOL else _unary("relu", a)


def exp(a: NDArray) -> NDArray:
    """e to the power a; of integers, float64."""
    return _unary("exp", _as_float("exp", a))


def log(a: NDArray) -> NDArray:
    """The natural logarithm: -inf at 0, NaN below; of integers, float64."""
    return _unary("log", _as_float("log", a))


def tanh(a: NDArray) -> NDArray:
    """The hyperbolic tangent; of integers, float64."""
    return _unary("tanh", _as_float("tanh", a))


def sigmoid(a: NDArray) -> NDArray:
    """1 / (1 + exp(-a)), without overflow; of integers, float64."""
    return _unary("sigmoid", _as_float("sigmoid", a))


def sqrt(a: NDArray) -> NDArray:
    """The square root, NaN below 0; of integers, float64."""
    return _unary("sqrt", _as_float("sqrt", a))


def logical_not(a: NDArray) -> NDArray:
    """Whether each element is false (zero), as bools."""
    return _unary("logical_not", _as_bool("logical_not", a))


def _as_bool(op: str, a: NDArray) -> NDArray:
    return as_array(op, a).astype(BOOL, copy=False)


def _as_float(op: str, a: NDArray) -> NDArray:
    a = as_array(op, a)
    return a if a._dtype.kind == "f" else a.astype(FLOAT64)


def _unary(op: str, a: NDArray) -> NDArray:
    if (result := _common(KERNEL[op], a)) is not None:
        return result
    out = empty_as(a)
    a._device.launch(KERNEL[op], (out, a), NO_SCALARS)
    return out


# Gradients


def relu_grad(dy: NDArray, y: NDArray) -> NDArray:
    """dy where y > 0, else 0: y is relu's result.

    Raises:
        ShapeError: dy and y differ in shape.
        DTypeError: they differ in dtype, or are not floats.
        DeviceError: they are on different devices.
    """
    return _activation_grad("relu_grad", dy, y)


def tanh_grad(dy: NDArray, y: NDArray) -> NDArray:
    """dy * (1 - y * y): y is tanh's result.

    Raises:
        ShapeError: dy and y differ in shape.
        DTypeError: they differ in dtype, or are not floats.
        DeviceError: they are on different devices.
    """
    return _activation_grad("tanh_grad", dy, y)


def sigmoid_grad(dy: NDArray, y: NDArray) -> NDArray:
    """dy * y * (1 - y): y is sigmoid's result.

    Raises:
        ShapeError: dy and y differ in shape.
        DTypeError: they differ in dtype, or are not floats.
        DeviceError: they are on different devices.
    """
    return _activation_grad("sigmoid_grad", dy, y)


def _activation_grad(op: str, dy: NDArray, y: NDArray) -> NDArray:
    device = check_same_device(op, "dy, y", dy, y)
    if dy._shape != y._shape:
        raise ShapeError(f"{op}: shapes differ: got dy {dy._shape} and y {y._shape}: need equal")
    if dy._dtype is not y._dtype or dy._dtype.kind != "f":
        raise DTypeError(
            f"{op}: dtypes do not fit: got dy {dy._dtype.name} and y {y._dtype.name}: "
            "need the same, float32 or float64"
        )
    out = empty_as(y)
    device.launch(KERNEL[op], (out, dy, y), NO_SCALARS)
    return out
