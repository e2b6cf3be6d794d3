"""What the families share: unbroadcast, and the checks and conversions of arguments."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from ..autograd import Spec, Tensor, TensorTuple
from ..backend_ndarray import DTypeError, NDArray, ShapeError
from ..backend_ndarray.dtypes import FLOAT64, DType, promote
from ..backend_ndarray.layout import Shape, broadcast_shapes
from ..backend_ndarray.ndarray import from_numpy

Scalar: TypeAlias = "bool | int | float | np.generic | np.ndarray[Any, Any]"
Axes: TypeAlias = "int | tuple[int, ...] | list[int] | None"


def unbroadcast(grad: Tensor, like: Tensor) -> Tensor:
    """The gradient of an input that was broadcast or promoted: summed and cast back to it.

    Axes that broadcasting added or repeated are summed.
    """
    shape, target = grad.shape, like.shape
    if shape != target:
        extra = len(shape) - len(target)
        repeated = [
            k for k, size in enumerate(shape) if k < extra or (target[k - extra] == 1 and size != 1)
        ]
        if repeated:
            grad = ops.summation(grad, repeated)
        if grad.shape != target:
            grad = ops.reshape(grad, target)
    return grad if grad.dtype is like.dtype else ops.astype(grad, like.dtype)


def infer_broadcast(op: str, a: Tensor, b: Tensor) -> Spec:
    """Two inputs under NumPy's broadcasting and promotion."""
    return _broadcast_spec(op, a.shape, b.shape, a.dtype, b.dtype)


@lru_cache(4096)
def _broadcast_spec(op: str, a: Shape, b: Shape, dtype: DType, other: DType) -> Spec:
    return Spec(broadcast_shapes(op, a, b), promote(dtype, other))


def as_float(dtype: DType) -> DType:
    """The dtype of a function that has no integer results: float64 for integers, as NumPy."""
    return dtype if dtype.kind == "f" else FLOAT64


def as_scalar(op: str, value: Any) -> Any:
    """A Python number or NumPy scalar from a scalar or an array of one element.

    Raises:
        TypeError: it is neither.
        ShapeError: it is an array with more or fewer elements.
    """
    if isinstance(value, (float, int, np.generic)):
        return value
    if isinstance(value, (Tensor, NDArray)):
        value = value.numpy()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{op}: scalar is a {type(value).__name__}: need a number")
    if value.size != 1:
        raise ShapeError(f"{op}: scalar is an array: got shape {value.shape}: need one element")
    return value.reshape(-1)[0]


def as_operand(value: Any, like: Tensor) -> Tensor | None:
    """A constant for an array operand beside `like`; its dtype stays. None for other things."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        value = from_numpy(value, like.device, own=True)
    return Tensor(value, requires_grad=False) if isinstance(value, NDArray) else None


Binary: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
WithScalar: TypeAlias = "Callable[[Tensor, Any], Tensor]"


def operate(binary: Binary, with_scalar: WithScalar, a: Tensor, b: Any) -> Tensor:
    """The operator `a . b` for a Tensor a: `binary` for arrays, `with_scalar` for numbers."""
    if isinstance(b, Tensor):
        return binary(a, b)
    if isinstance(b, (float, int, np.generic)):
        return with_scalar(a, b)
    if isinstance(b, np.ndarray) and b.ndim == 0:
        return with_scalar(a, b[()])
    other = as_operand(b, a)
    return NotImplemented if other is None else binary(a, other)


def operate_right(binary: Binary, with_scalar: WithScalar, b: Tensor, a: Any) -> Tensor:
    """The operator `a . b` where a is not a Tensor; `with_scalar` takes the Tensor first."""
    if isinstance(a, np.ndarray) and a.ndim == 0:
        a = a[()]
    if isinstance(a, (float, int, np.generic)):
        return with_scalar(b, a)
    other = as_operand(a, b)
    return NotImplemented if other is None else binary(other, b)


def check_tensor(op: str, position: int, value: object) -> None:
    """Raises TypeError unless an argument is a Tensor."""
    if not isinstance(value, Tensor):
        need = "one of its items" if isinstance(value, TensorTuple) else "Tensor(x)"
        raise TypeError(
            f"{op}: argument {position} is not a Tensor: got {type(value).__name__}: need {need}"
        )


def check_floats(op: str, *inputs: Tensor | None) -> DType:
    """The float dtype that all inputs share; None stands for an absent input.

    Raises:
        DTypeError: they differ, or are not float32 or float64.
    """
    common: DType | None = None
    for x in inputs:
        if x is not None:
            dtype = x.dtype
            if dtype is not common and (common is not None or dtype.kind != "f"):
                break
            common = dtype
    else:
        if common is None:
            check_tensor(op, 0, None)
        return common  # type: ignore[return-value]
    raise DTypeError(
        f"{op}: dtypes do not fit: got {', '.join(x.dtype.name for x in inputs if x is not None)}: "
        "need the same, float32 or float64"
    )


def check_shape(op: str, name: str, x: Tensor | None, shape: Shape) -> None:
    """Raises ShapeError unless `x`, where present, has `shape`."""
    if x is not None and x.shape != shape:
        raise ShapeError(f"{op}: {name} does not fit: got {x.shape}: need {shape}")


def check_rank(op: str, name: str, x: Tensor, rank: int, axes: str) -> None:
    """Raises ShapeError unless `x` has `rank` axes; `axes` names them in the message."""
    if len(x.shape) != rank:
        raise ShapeError(f"{op}: {name} has the wrong number of axes: got {x.shape}: need {axes}")


def present(*inputs: Tensor | None) -> tuple[Tensor, ...]:
    """The inputs that are there, in order: optional ones, which an operation has last."""
    return tuple([x for x in inputs if x is not None])


from .. import ops  # noqa: E402  gradients are written in operations
