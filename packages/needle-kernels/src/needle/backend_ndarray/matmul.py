"""Matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from needle.backend_ndarray.checks import check_floats, check_rank, check_shape
from needle.backend_ndarray.dtypes import BOOL, INT64, DType, promote
from needle.backend_ndarray.errors import DTypeError, ShapeError
from needle.backend_ndarray.extension import KERNEL, NO_SCALARS
from needle.backend_ndarray.extension import cpu as _cpu
from needle.backend_ndarray.layout import Shape, broadcast_shapes, broadcast_strides
from needle.backend_ndarray.ndarray import (
    NDArray,
    as_array,
    check_same_device,
    check_writable,
    copy_into,
    from_numpy,
    may_overlap,
    new,
    real_numbers,
)

__all__ = ["ACTIVATIONS", "activation_code", "linear_weight_grad", "matmul"]

ACTIVATIONS: Final[dict[str | None, float]] = {None: 0.0, "relu": 1.0, "tanh": 2.0, "sigmoid": 3.0}
_MATMUL: Final = KERNEL["matmul"]
_LINEAR_WEIGHT_GRAD: Final = KERNEL["linear_weight_grad"]
_matmul: Final[Callable[[Any, Any, Any], NDArray | None]] = _cpu.matmul


def matmul(
    a: NDArray | np.ndarray[Any, Any],
    b: NDArray | np.ndarray[Any, Any],
    bias: NDArray | None = None,
    activation: str | None = None,
    out: NDArray | None = None,
    accumulate: bool = False,
) -> NDArray:
    """activation(a @ b + bias), or with accumulate, activation(out + a @ b + bias).

    Args:
        a: (..., M, K), or (K,) for a row that the result drops.
        b: (..., K, N), or (K,) for a column that the result drops. Leading axes broadcast.
        bias: (N,), added to every row.
        activation: None, "relu", "tanh" or "sigmoid".
        out: (..., M, N), where to write the result; a new array if None.
        accumulate: add to what `out` holds.

    Raises:
        ShapeError: inner sizes differ, leading axes do not broadcast, bias or out do not fit.
        DTypeError: bias, activation or out with dtypes that do not fit.
        DeviceError: the arrays are on different devices.
    """
    if not isinstance(a, NDArray) or not isinstance(b, NDArray):
        a, b = _as_arrays(a, b)
    extras = activation is not None or out is not None or accumulate
    if not extras and (product := _matmul(a, b, bias)) is not None:
        return product
    if not extras and bias is None and _is_plain(a, b):
        result = new(a._device, (a._shape[0], b._shape[1]), a._dtype)
        a._device.launch(_MATMUL, (result, a, b, None), (0.0, 0.0))
        return result
    given = a, b, a if bias is None else bias, a if out is None else out
    device = check_same_device("matmul", "a, b, bias, out", *given)
    if not a._shape or not b._shape:
        raise ShapeError(
            f"matmul: an operand has no axes: got a {a._shape}, b {b._shape}: "
            "need at least one axis (use * for scalars)"
        )
    left = a if len(a._shape) > 1 else a[None, :]
    right = b if len(b._shape) > 1 else b[:, None]
    if left._shape[-1] != right._shape[-2]:
        raise ShapeError(
            f"matmul: inner sizes differ: a is {a._shape}, b is {b._shape}: "
            f"need a.shape[-1] == b.shape[{-2 if b.ndim > 1 else -1}]"
        )
    dtype = _common_dtype(a, b, bias, activation)
    if dtype is BOOL:
        return matmul(a.astype(INT64), b.astype(INT64)).astype(BOOL)
    left, right = _batch(left.astype(dtype, copy=False), right.astype(dtype, copy=False))
    shape = left._shape[:-1] + right._shape[-1:]
    if bias is not None and bias._shape != shape[-1:]:
        raise ShapeError(
            f"matmul: bias does not fit: got {bias._shape} for a result {shape}: need {shape[-1:]}"
        )
    target = _target(out, shape, dtype, accumulate, (left, right, bias))
    result = new(device, shape, dtype) if target is None else target
    device.launch(
        _MATMUL,
        (result, left, right, bias),
        (activation_code("matmul", activation), float(accumulate)),
    )
    if out is not None:
        if result is not out:
            copy_into(out, result)
        else:
            out._handle.version += 1
        return out
    return _drop_axes(result, a.ndim, b.ndim)


def linear_weight_grad(x: NDArray, dy: NDArray) -> tuple[NDArray, NDArray]:
    """The gradients of y = x @ weight + bias for weight, (K, N), and bias, (N,), in one pass.

    They are x.T @ dy and the sum of dy's rows.

    Args:
        x: (R, K).
        dy: (R, N), the gradient of y.

    Raises:
        ShapeError: the shapes do not fit.
        DTypeError: the dtypes differ or are not floats.
        DeviceError: the arrays are on different devices.
    """
    op = "linear_weight_grad"
    device, dtype = check_floats(op, "x, dy", x, dy)
    check_rank(op, "x", x, 2, "(R, K)")
    check_rank(op, "dy", dy, 2, "(R, N)")
    check_shape(op, "dy", dy, (x._shape[0], dy._shape[1]))
    dw, db = new(device, (x._shape[1], dy._shape[1]), dtype), new(device, dy._shape[1:], dtype)
    device.launch(_LINEAR_WEIGHT_GRAD, (dw, db, x, dy), NO_SCALARS)
    return dw, db


def _is_plain(a: NDArray, b: NDArray) -> bool:
    """Whether these are two float matrices that need neither promotion nor broadcasting."""
    return (
        len(a._shape) == len(b._shape) == 2
        and a._shape[1] == b._shape[0]
        and a._dtype is b._dtype
        and a._dtype.kind == "f"
        and a._device is b._device
    )


def activation_code(op: str, activation: str | None) -> float:
    """The number that kernels know an activation by.

    Raises:
        ValueError: there is no such activation.
    """
    try:
        return ACTIVATIONS[activation]
    except (KeyError, TypeError):
        raise ValueError(
            f"{op}: unknown activation: got {activation!r}: need None, 'relu', 'tanh' or 'sigmoid'"
        ) from None


def _as_arrays(a: Any, b: Any) -> tuple[NDArray, NDArray]:
    """The NumPy operand of `array @ ndarray` on the other's device."""
    if isinstance(a, NDArray):
        return a, from_numpy(real_numbers("matmul", b), a._device, own=True)
    if isinstance(b, NDArray):
        return from_numpy(real_numbers("matmul", a), b._device, own=True), b
    return as_array("matmul", a), as_array("matmul", b)


def _common_dtype(a: NDArray, b: NDArray, bias: NDArray | None, activation: str | None) -> DType:
    dtype = promote(a._dtype, b._dtype)
    if dtype.kind != "f" and (bias is not None or activation is not None):
        raise DTypeError(
            f"matmul: bias and activation need floats: got {dtype.name}: need float32 or float64"
        )
    if bias is not None and bias._dtype is not dtype:
        raise DTypeError(
            f"matmul: dtypes differ: got bias {bias._dtype.name} for {dtype.name}: need the same"
        )
    return dtype


def _batch(a: NDArray, b: NDArray) -> tuple[NDArray, NDArray]:
    """The operands with their leading axes broadcast against each other."""
    if len(a._shape) == len(b._shape) == 2 or a._shape[:-2] == b._shape[:-2]:
        return a, b
    lead = broadcast_shapes("matmul", a._shape[:-2], b._shape[:-2])
    return _lead(a, lead), _lead(b, lead)


def _lead(a: NDArray, lead: Shape) -> NDArray:
    shape = lead + a._shape[-2:]
    return a._view(shape, broadcast_strides("matmul", a._shape, a._strides, shape))


def _target(
    out: NDArray | None,
    shape: Shape,
    dtype: DType,
    accumulate: bool,
    inputs: tuple[NDArray | None, ...],
) -> NDArray | None:
    """Where the kernel writes: `out`, a copy of it where it overlaps an input, or None for new."""
    if out is None:
        if accumulate:
            raise ShapeError("matmul: nothing to add to: got accumulate without out: pass out")
        return None
    if out._shape != shape:
        raise ShapeError(f"matmul: out does not fit: got {out._shape}: need {shape}")
    if out._dtype is not dtype:
        raise DTypeError(f"matmul: dtypes differ: got out {out._dtype.name}: need {dtype.name}")
    check_writable("matmul", out)
    if any(array is not None and may_overlap(array, out) for array in inputs):
        return out.copy()
    return out


def _drop_axes(result: NDArray, rank_a: int, rank_b: int) -> NDArray:
    if rank_a == 1:
        result = result[..., 0, :]
    if rank_b == 1:
        result = result[..., 0]
    return result
