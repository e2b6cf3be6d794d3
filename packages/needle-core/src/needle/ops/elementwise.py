"""Element by element: arithmetic and the functions of one array.

Two Tensors broadcast and promote as NumPy 2 does; a Python number takes the Tensor's dtype.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike

from .. import backend_ndarray as nd
from ..autograd import Spec, Tensor, TensorOp, TensorTuple, TensorTupleOp, spec_of
from ..backend_ndarray import Device, DTypeError, NDArray
from ..backend_ndarray.dtypes import BOOL, INT64, DType, as_dtype, promote, promote_scalar
from ..checks import check_device
from .common import Scalar, as_float, as_scalar, check_tensor, infer_broadcast, unbroadcast

# ---- two Tensors --------------------------------------------------------------------------------


class EWiseAdd(TensorOp):
    """a + b."""

    name = "add"
    saves = ()

    def infer(self, a: Tensor, b: Tensor) -> Spec:
        return infer_broadcast("add", a, b)

    def compute(self, a: NDArray, b: NDArray) -> NDArray:
        return nd.add(a, b)

    def gradient(self, out_grad: Tensor, node: Tensor) -> tuple[Tensor | None, ...]:
        a, b = node.inputs
        return (
            unbroadcast(out_grad, a) if a.requires_grad else None,
            unbroadcast(out_grad, b) if b.requires_grad else None,
        )


class EWiseSub(TensorOp):
    """a - b."""

    name = "subtract"
    saves = ()

    def infer(self, a: Tensor, b: Tensor) -> Spec:
        spec = infer_broadcast("subtract", a, b)
        _refuse_bool("subtract", spec.dtype)
        return spec

    def compute(self, a: NDArray, b: NDArray) -> NDArray:
        return nd.subtract(a, b)

    def gradient(self, out_grad: Tensor, node: Tensor) -> tuple[Tensor | None, ...]:
        a, b = node.inputs
        return (
            unbroadcast(out_grad, a) if a.requires_grad else None,
            unbroadcast(negate(out_grad), b) if b.requires_grad else None,
        )


class EWiseMul(TensorOp):
    """a * b."""

    name = "multiply"
    saves = (0, 1)

    def infer(self, a: Tensor, b: Tensor) -> Spec:
        return infer_broadcast("multiply", a, b)

    def compute(self, a: NDArray, b: NDArray) -> NDArray:
        return nd.multiply(a, b)

    def gradient(self, out_grad: Tensor, node: Tensor) -> tuple[Tensor | None, ...]:
        a, b = node.inputs
        return (
            unbroadcast(out_grad * b, a) if a.requires_grad else None,
            unbroadcast(out_grad * a, b) if b.requires_grad else None,
        )


class EWiseDiv(TensorOp):
    """a / b; of integers, float64."""

    name = "divide"
    saves = (0, 1)

    def infer(self, a: Tensor, b: Tensor) -> Spec:
        shape, dtype = infer_broadcast("divide", a, b)
        return spec_of(shape, as_float(dtype))

    def compute(self, a: NDArray, b: NDArray) -> NDArray:
        return nd.divide(a, b)

    def gradient(self, out_grad: Tensor, node: Tensor) -> tuple[Tensor | None, ...]:
        a, b = node.inputs
        return (
            unbroadcast(out_grad / b, a) if a.requires_grad else None,
            unbroadcast(negate(out_grad * (a / b) / b), b) if b.requires_grad else None,
        )


class EWisePow(TensorOp):
    """a to the power b.

    At a = 0 the gradient for b >= 0 is 0, and at a = b = 0 the one for a too, as in PyTorch.
    """

    name = "power"
    saves = (0, 1)

    def infer(self, a: Tensor, b: Tensor) -> Spec:
        shape, dtype = infer_broadcast("power", a, b)
        return spec_of(shape, INT64 if dtype is BOOL else dtype)

    def compute(self, a: NDArray, b: NDArray) -> NDArray:
        return nd.power(a, b)

    def gradient(self, out_grad: Tensor, node: Tensor) -> tuple[Tensor | None, ...]:
        a, b = node.inputs
        by_a = by_b = None
        if a.requires_grad:
            exponent = astype(b, node.dtype)  # of small or unsigned integers b - 1 may not exist
            slope = exponent * power(a, exponent - NotBothZero()(a, exponent))
            by_a = unbroadcast(out_grad * slope, a)
        if b.requires_grad:
            by_b = unbroadcast(out_grad * power(a, b) * SafeLog()(a), b)
        return by_a, by_b


class NotBothZero(TensorOp):
    """1 where a or b is not 0, else 0; in b's dtype, without gradient."""

    differentiable = False

    def infer(self, a: Tensor, b: Tensor) -> Spec:
        return spec_of(infer_broadcast("power", a, b).shape, b.dtype)

    def compute(self, a: NDArray, b: NDArray) -> NDArray:
        return nd.logical_or(nd.not_equal(a, 0), nd.not_equal(b, 0)).astype(b.dtype)


class SafeLog(TensorOp):
    """log(a), and 0 where a is 0, where its derivative is taken as 0 too."""

    saves = (0,)

    def infer(self, a: Tensor) -> Spec:
        return spec_of(a.shape, as_float(a.dtype))

    def compute(self, a: NDArray) -> NDArray:
        return nd.log(nd.add(a, nd.equal(a, 0).astype(a.dtype)))

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        (a,) = node.inputs
        some = NotBothZero()(a, a)
        return unbroadcast(out_grad * some / (a + (1 - some)), a)


class Maximum(TensorOp):
    """The larger of a and b, element by element; NaN where either is.

    Where they are equal each gets half of the gradient, as in PyTorch.
    """

    name = "maximum"
    saves = (0, 1)

    def infer(self, a: Tensor, b: Tensor) -> Spec:
        return infer_broadcast("maximum", a, b)

    def compute(self, a: NDArray, b: NDArray) -> NDArray:
        return nd.maximum(a, b)

    def gradient(self, out_grad: Tensor, node: Tensor) -> tuple[Tensor | None, ...]:
        a, b = node.inputs
        return (
            unbroadcast(out_grad * Wins()(a, b), a) if a.requires_grad else None,
            unbroadcast(out_grad * Wins()(b, a), b) if b.requires_grad else None,
        )


class Wins(TensorOp):
    """1 where a > b, 1/2 where they are equal, else 0; without gradient."""

    differentiable = False

    def infer(self, a: Tensor, b: Tensor) -> Spec:
        shape, dtype = infer_broadcast("maximum", a, b)
        return spec_of(shape, as_float(dtype))

    def compute(self, a: NDArray, b: NDArray) -> NDArray:
        dtype = as_float(promote(a.dtype, b.dtype))
        both = nd.add(nd.greater(a, b).astype(dtype), nd.greater_equal(a, b).astype(dtype))
        return nd.multiply(both, 0.5)


# ---- a Tensor and a number ----------------------------------------------------------------------


class ScalarOp(TensorOp):
    """An operation with a number, `scalar`: Python's, NumPy's or an array of one element."""

    saves: ClassVar[tuple[int, ...] | None] = ()

    def __init__(self, scalar: Scalar) -> None:
        self.scalar: Any = as_scalar(self.name, scalar)

    def infer(self, a: Tensor) -> Spec:
        return spec_of(a.shape, promote_scalar(self.name, a.dtype, self.scalar))


class AddScalar(ScalarOp):
    """a + scalar."""

    name = "add_scalar"

    def compute(self, a: NDArray) -> NDArray:
        return nd.add(a, self.scalar)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        return unbroadcast(out_grad, node.inputs[0])


class SubScalar(ScalarOp):
    """a - scalar."""

    name = "subtract_scalar"

    def infer(self, a: Tensor) -> Spec:
        spec = super().infer(a)
        _refuse_bool(self.name, spec.dtype)
        return spec

    def compute(self, a: NDArray) -> NDArray:
        return nd.subtract(a, self.scalar)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        return unbroadcast(out_grad, node.inputs[0])


class ScalarSub(SubScalar):
    """scalar - a."""

    name = "scalar_subtract"

    def compute(self, a: NDArray) -> NDArray:
        return nd.subtract(self.scalar, a)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        return unbroadcast(negate(out_grad), node.inputs[0])


class MulScalar(ScalarOp):
    """a * scalar."""

    name = "mul_scalar"

    def compute(self, a: NDArray) -> NDArray:
        return nd.multiply(a, self.scalar)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        return unbroadcast(out_grad * self.scalar, node.inputs[0])


class DivScalar(ScalarOp):
    """a / scalar; of integers, float64."""

    name = "divide_scalar"

    def infer(self, a: Tensor) -> Spec:
        dtype = promote_scalar(self.name, a.dtype, self.scalar, as_floats=True)
        return spec_of(a.shape, as_float(dtype))

    def compute(self, a: NDArray) -> NDArray:
        return nd.divide(a, self.scalar)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        return unbroadcast(out_grad / self.scalar, node.inputs[0])


class ScalarDiv(DivScalar):
    """scalar / a; of integers, float64."""

    name = "scalar_divide"
    saves = (0,)

    def compute(self, a: NDArray) -> NDArray:
        return nd.divide(self.scalar, a)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        (a,) = node.inputs
        return unbroadcast(negate(out_grad * (self.scalar / a) / a), a)


class PowerScalar(ScalarOp):
    """a to the power scalar. The gradient of a**0 is 0, at a = 0 too."""

    name = "power_scalar"
    saves = (0,)

    def infer(self, a: Tensor) -> Spec:
        shape, dtype = super().infer(a)
        return spec_of(shape, INT64 if dtype is BOOL else dtype)

    def compute(self, a: NDArray) -> NDArray:
        return nd.power(a, self.scalar)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        (a,) = node.inputs
        if self.scalar == 0:
            return unbroadcast(out_grad * 0, a)
        # Of NumPy's integers scalar - 1 may not exist.
        whole = isinstance(self.scalar, (np.integer, np.bool_))
        exponent = int(self.scalar) if whole else self.scalar
        base = astype(a, node.dtype)
        return unbroadcast(out_grad * (power_scalar(base, exponent - 1) * exponent), a)


class ScalarPower(ScalarOp):
    """scalar to the power a; the gradient of 0**a is 0."""

    name = "scalar_power"
    saves = (-1,)

    def compute(self, a: NDArray) -> NDArray:
        return nd.power(self.scalar, a)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        with np.errstate(invalid="ignore"):  # the logarithm of a negative number is NaN
            slope = float(np.log(float(self.scalar))) if self.scalar != 0 else 0.0
        return unbroadcast(out_grad * node * slope, node.inputs[0])


# ---- one Tensor ---------------------------------------------------------------------------------


class Negate(TensorOp):
    """-a."""

    name = "negate"
    saves = ()

    def infer(self, a: Tensor) -> Spec:
        dtype = a.dtype
        _refuse_bool("negate", dtype)
        return spec_of(a.shape, dtype)

    def compute(self, a: NDArray) -> NDArray:
        return nd.negate(a)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        return negate(out_grad)


class FloatFunction(TensorOp):
    """A function of one array whose result is float: of integers, float64."""

    def infer(self, a: Tensor) -> Spec:
        return spec_of(a.shape, as_float(a.dtype))


class Log(FloatFunction):
    """The natural logarithm."""

    name = "log"
    saves = (0,)

    def compute(self, a: NDArray) -> NDArray:
        return nd.log(a)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        (a,) = node.inputs
        return unbroadcast(out_grad / a, a)


class Exp(FloatFunction):
    """e to the power a."""

    name = "exp"
    saves = (-1,)

    def compute(self, a: NDArray) -> NDArray:
        return nd.exp(a)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        return unbroadcast(out_grad * node, node.inputs[0])


class Sqrt(FloatFunction):
    """The square root; its gradient at 0 is infinite."""

    name = "sqrt"
    saves = (-1,)

    def compute(self, a: NDArray) -> NDArray:
        return nd.sqrt(a)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        return unbroadcast(out_grad / (node * 2), node.inputs[0])


class ReLU(TensorOp):
    """max(a, 0); its gradient at 0 is 0."""

    name = "relu"
    saves = (-1,)

    def infer(self, a: Tensor) -> Spec:
        return spec_of(a.shape, a.dtype)

    def compute(self, a: NDArray) -> NDArray:
        return nd.relu(a)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        return ReLUGrad()(out_grad, node)


class ReLUGrad(TensorOp):
    """dy where y > 0, else 0."""

    saves = (1,)

    def infer(self, dy: Tensor, y: Tensor) -> Spec:
        return spec_of(y.shape, y.dtype)

    def compute(self, dy: NDArray, y: NDArray) -> NDArray:
        if y.dtype.kind != "f":
            return nd.multiply(dy, nd.greater(y, 0).astype(y.dtype))
        return nd.relu_grad(dy, y)

    def gradient(self, out_grad: Tensor, node: Tensor) -> tuple[Tensor, None]:
        return ReLUGrad()(out_grad, node.inputs[1]), None


class Tanh(FloatFunction):
    """The hyperbolic tangent."""

    name = "tanh"
    saves = (-1,)

    def compute(self, a: NDArray) -> NDArray:
        return nd.tanh(a)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        return unbroadcast(TanhGrad()(out_grad, node), node.inputs[0])


class TanhGrad(TensorOp):
    """dy * (1 - y * y)."""

    saves = (0, 1)

    def infer(self, dy: Tensor, y: Tensor) -> Spec:
        return spec_of(y.shape, y.dtype)

    def compute(self, dy: NDArray, y: NDArray) -> NDArray:
        return nd.tanh_grad(dy, y)

    def gradient(self, out_grad: Tensor, node: Tensor) -> tuple[Tensor, Tensor]:
        dy, y = node.inputs
        return TanhGrad()(out_grad, y), out_grad * dy * y * -2


class Sigmoid(FloatFunction):
    """1 / (1 + exp(-a))."""

    name = "sigmoid"
    saves = (-1,)

    def compute(self, a: NDArray) -> NDArray:
        return nd.sigmoid(a)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        return unbroadcast(SigmoidGrad()(out_grad, node), node.inputs[0])


class SigmoidGrad(TensorOp):
    """dy * y * (1 - y)."""

    saves = (0, 1)

    def infer(self, dy: Tensor, y: Tensor) -> Spec:
        return spec_of(y.shape, y.dtype)

    def compute(self, dy: NDArray, y: NDArray) -> NDArray:
        return nd.sigmoid_grad(dy, y)

    def gradient(self, out_grad: Tensor, node: Tensor) -> tuple[Tensor, Tensor]:
        dy, y = node.inputs
        return SigmoidGrad()(out_grad, y), out_grad * dy * (1 - y * 2)


class AsType(TensorOp):
    """The same values in another dtype; integers and bools carry no gradient."""

    name = "astype"
    saves = ()

    def __init__(self, dtype: DTypeLike) -> None:
        self.dtype = as_dtype(dtype, "astype")

    def infer(self, a: Tensor) -> Spec:
        return spec_of(a.shape, self.dtype)

    def compute(self, a: NDArray) -> NDArray:
        return a.astype(self.dtype)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        return unbroadcast(out_grad, node.inputs[0])


class ToDevice(TensorOp):
    """The same values on another device."""

    name = "to"
    saves = ()

    def __init__(self, device: Device) -> None:
        self.device = check_device("to", device)

    def infer(self, a: Tensor) -> Spec:
        return spec_of(a.shape, a.dtype)

    def compute(self, a: NDArray) -> NDArray:
        return a.to(self.device)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        return to_device(out_grad, node.inputs[0].device)


class Alias(TensorOp):
    """The input itself, as a node of its own."""

    saves = ()

    def infer(self, a: Tensor) -> Spec:
        return spec_of(a.shape, a.dtype)

    def compute(self, a: NDArray) -> NDArray:
        return a

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        return out_grad


class Copy(TensorOp):
    """The same values in memory of their own."""

    saves = ()

    def infer(self, a: Tensor) -> Spec:
        return spec_of(a.shape, a.dtype)

    def compute(self, a: NDArray) -> NDArray:
        return a.copy()

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        return out_grad


class FusedAddScalars(TensorTupleOp):
    """(a + c0, a + c1): the smallest operation with two results."""

    name = "fused_add_scalars"
    saves = ()

    def __init__(self, c0: Scalar, c1: Scalar) -> None:
        self.c0: Any = as_scalar("fused_add_scalars", c0)
        self.c1: Any = as_scalar("fused_add_scalars", c1)

    def infer(self, a: Tensor) -> tuple[Spec, Spec]:
        first, second = (
            spec_of(a.shape, promote_scalar("fused_add_scalars", a.dtype, c))
            for c in (self.c0, self.c1)
        )
        return first, second

    def compute(self, a: NDArray) -> tuple[NDArray, NDArray]:
        return nd.add(a, self.c0), nd.add(a, self.c1)

    def gradient(self, out_grad: Any, node: TensorTuple) -> Tensor:
        (a,) = node.inputs
        parts = [unbroadcast(part, a) for part in out_grad if part is not None]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _refuse_bool(op: str, dtype: DType) -> None:
    if dtype is BOOL:
        raise DTypeError(f"{op}: bools have no {op}: got bool: astype a number type first")


# ---- the user's functions -----------------------------------------------------------------------

# Operations without settings have no state, so one of each is enough.
_add, _subtract, _multiply, _divide = EWiseAdd(), EWiseSub(), EWiseMul(), EWiseDiv()


def add(a: Tensor, b: Tensor) -> Tensor:
    """a + b, broadcast and promoted.

    Raises:
        ShapeError: the shapes do not broadcast.
        DeviceError: a and b are on different devices.
    """
    return _add(a, b)


def add_scalar(a: Tensor, scalar: Scalar) -> Tensor:
    """a + scalar."""
    return AddScalar(scalar)(a)


def subtract(a: Tensor, b: Tensor) -> Tensor:
    """a - b, broadcast and promoted.

    Raises:
        ShapeError: the shapes do not broadcast.
        DeviceError: a and b are on different devices.
        DTypeError: both are bool.
    """
    return _subtract(a, b)


def subtract_scalar(a: Tensor, scalar: Scalar) -> Tensor:
    """a - scalar."""
    return SubScalar(scalar)(a)


def scalar_subtract(a: Tensor, scalar: Scalar) -> Tensor:
    """scalar - a."""
    return ScalarSub(scalar)(a)


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """a * b, broadcast and promoted.

    Raises:
        ShapeError: the shapes do not broadcast.
        DeviceError: a and b are on different devices.
    """
    return _multiply(a, b)


def mul_scalar(a: Tensor, scalar: Scalar) -> Tensor:
    """a * scalar."""
    return MulScalar(scalar)(a)


def divide(a: Tensor, b: Tensor) -> Tensor:
    """a / b, broadcast and promoted; of integers, float64.

    Raises:
        ShapeError: the shapes do not broadcast.
        DeviceError: a and b are on different devices.
    """
    return _divide(a, b)


def divide_scalar(a: Tensor, scalar: Scalar) -> Tensor:
    """a / scalar; of integers, float64."""
    return DivScalar(scalar)(a)


def scalar_divide(a: Tensor, scalar: Scalar) -> Tensor:
    """scalar / a; of integers, float64."""
    return ScalarDiv(scalar)(a)


def power(a: Tensor, b: Tensor) -> Tensor:
    """a to the power b, broadcast and promoted.

    Raises:
        ShapeError: the shapes do not broadcast.
        DeviceError: a and b are on different devices.
    """
    return EWisePow()(a, b)


def power_scalar(a: Tensor, scalar: Scalar) -> Tensor:
    """a to the power scalar."""
    return PowerScalar(scalar)(a)


def scalar_power(a: Tensor, scalar: Scalar) -> Tensor:
    """scalar to the power a."""
    return ScalarPower(scalar)(a)


def maximum(a: Tensor, b: Tensor | Scalar) -> Tensor:
    """The larger of each pair of elements; where they are equal each gets half the gradient."""
    if not isinstance(b, Tensor):
        check_tensor("maximum", 0, a)
        dtype = promote_scalar("maximum", a.dtype, as_scalar("maximum", b))
        b = Tensor(np.asarray(b), device=a.device, dtype=dtype, requires_grad=False)
    return Maximum()(a, b)


def negate(a: Tensor) -> Tensor:
    """-a."""
    return Negate()(a)


def log(a: Tensor) -> Tensor:
    """The natural logarithm."""
    return Log()(a)


def exp(a: Tensor) -> Tensor:
    """e to the power a."""
    return Exp()(a)


def sqrt(a: Tensor) -> Tensor:
    """The square root."""
    return Sqrt()(a)


def relu(a: Tensor) -> Tensor:
    """max(a, 0)."""
    return ReLU()(a)


def tanh(a: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return Tanh()(a)


def sigmoid(a: Tensor) -> Tensor:
    """1 / (1 + exp(-a))."""
    return Sigmoid()(a)


def astype(a: Tensor, dtype: DTypeLike) -> Tensor:
    """The values of `a` in another dtype; the Tensor itself if it has it.

    Raises:
        DTypeError: the dtype is not supported.
    """
    check_tensor("astype", 0, a)
    kind = as_dtype(dtype, "astype")
    if kind is a.dtype:
        return a
    result = AsType(kind)(a)
    return result if kind.kind == "f" or not result.requires_grad else result.detach()


def to_device(a: Tensor, device: Device) -> Tensor:
    """The values of `a` on `device`; the Tensor itself if it is there.

    Raises:
        DeviceError: `device` is no device, or not available.
    """
    return a if a.device == check_device("to", device) else ToDevice(device)(a)


def fused_add_scalars(a: Tensor, c0: Scalar, c1: Scalar) -> TensorTuple:
    """The TensorTuple (a + c0, a + c1)."""
    return FusedAddScalars(c0, c1)(a)
