"""Matrix products and the linear layer."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NoReturn

from .. import backend_ndarray as nd
from ..autograd import Spec, Tensor, TensorOp
from ..backend_ndarray import NDArray, ShapeError
from ..backend_ndarray.dtypes import DType, promote
from ..backend_ndarray.layout import Shape, broadcast_shapes
from ..backend_ndarray.ndarray import as_rows
from .common import check_floats, present, unbroadcast
from .elementwise import add
from .fused import FusedBackward
from .shape import reshape, transpose


class MatMul(TensorOp):
    """a @ b: (..., M, K) times (..., K, N); the leading axes broadcast."""

    name = "matmul"
    saves = (0, 1)

    def infer(self, a: Tensor, b: Tensor) -> Spec:
        return _product_spec(a.shape, b.shape, a.dtype, b.dtype)

    def compute(self, a: NDArray, b: NDArray) -> NDArray:
        return nd.matmul(a, b)

    def gradient(self, out_grad: Tensor, node: Tensor) -> tuple[Tensor | None, ...]:
        a, b = node.inputs
        return (
            unbroadcast(self(out_grad, transpose(b)), a) if a.requires_grad else None,
            unbroadcast(self(transpose(a), out_grad), b) if b.requires_grad else None,
        )


@lru_cache(4096)
def _product_spec(left: Shape, right: Shape, dtype: DType, other: DType) -> Spec:
    if len(left) < 2 or len(right) < 2:
        raise ShapeError(
            f"matmul: an operand is no matrix: got a {left}, b {right}: need two axes or more"
        )
    if left[-1] != right[-2]:
        raise ShapeError(
            f"matmul: inner sizes differ: a is {left}, b is {right}: "
            "need a.shape[-1] == b.shape[-2]"
        )
    lead = broadcast_shapes("matmul", left[:-2], right[:-2])
    return Spec((*lead, left[-2], right[-1]), promote(dtype, other))


class Linear(TensorOp):
    """x @ weight + bias in one kernel: x (..., K), weight (K, N), bias (N,) or (1, N) or none."""

    name = "linear"
    saves = (0, 1)

    def infer(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Spec:
        dtype = check_floats("linear", x, weight, bias)
        return _linear_spec(x.shape, weight.shape, None if bias is None else bias.shape, dtype)

    def compute(self, x: NDArray, weight: NDArray, bias: NDArray | None = None) -> NDArray:
        if bias is not None and bias.ndim == 2:
            bias = bias[0]
        y = nd.matmul(as_rows(x), weight, bias)
        return y if x.ndim == 2 else y.reshape(*x.shape[:-1], weight.shape[1])

    @staticmethod
    def plain(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor]:
        """The definition in plain operations."""
        y = matmul(x, weight)
        return (y if bias is None else add(y, bias),)

    def gradient(self, out_grad: Tensor, node: Tensor) -> tuple[Tensor | None, ...]:
        return LinearBackward.apply(self, node.inputs, (out_grad,), ())


@lru_cache(4096)
def _linear_spec(x: Shape, weight: Shape, bias: Shape | None, dtype: DType) -> Spec:
    if len(weight) != 2 or not x or x[-1] != weight[0]:
        raise ShapeError(
            f"linear: inner sizes differ: x is {x}, weight is {weight}: "
            "need x (..., K) and weight (K, N)"
        )
    columns = weight[1]
    if bias not in (None, (columns,), (1, columns)):
        raise ShapeError(
            f"linear: bias does not fit: got {bias} for weight {weight}: "
            f"need ({columns},) or (1, {columns})"
        )
    return Spec((*x[:-1], columns), dtype)


class LinearBackward(FusedBackward):
    """The gradients of linear for those of its inputs that need one."""

    def positions(self) -> tuple[int, ...]:
        return tuple([i for i in range(self.count) if self.needs[i]])

    def compute(self, *args: NDArray) -> tuple[NDArray, ...]:
        x, weight, *biases, dy = args
        rows = as_rows(dy)
        grads = []
        if self.needs[0]:
            dx = nd.matmul(rows, weight.T)
            grads.append(dx if x.ndim == 2 else dx.reshape(x.shape))
        with_bias = any(self.needs[2:])
        if self.needs[1] and with_bias:
            dw, db = nd.linear_weight_grad(as_rows(x), rows)
            grads.extend((dw, db.reshape(biases[0].shape)))
        elif self.needs[1]:
            grads.append(nd.matmul(as_rows(x).T, rows))
        elif with_bias:
            grads.append(rows.sum(0, keepdims=biases[0].ndim == 2))
        return tuple(grads)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b; the leading axes broadcast.

    An operand with one axis is a row on the left, a column on the right, and that axis is dropped
    from the result, as in NumPy.

    Raises:
        ShapeError: the shapes do not fit.
    """
    try:
        left, right = len(a.shape), len(b.shape)
    except AttributeError:
        return MatMul()(a, b)  # says which is no Tensor
    if left > 1 and right > 1:
        return MatMul()(a, b)
    if not left or not right:
        raise ShapeError(
            f"matmul: an operand has no axes: got a {a.shape}, b {b.shape}: "
            "need at least one axis (use * for scalars)"
        )
    _check_vectors(a, b)
    rows = reshape(a, (1, *a.shape)) if left == 1 else a
    columns = reshape(b, (*b.shape, 1)) if right == 1 else b
    product = MatMul()(rows, columns)
    shape = product.shape[: -2 if left == 1 else -1] + (() if right == 1 else product.shape[-1:])
    return reshape(product, shape)


def _check_vectors(a: Tensor, b: Tensor) -> None:
    """The inner sizes, in the shapes that the user gave."""
    inner = -1 if len(b.shape) == 1 else -2
    if a.shape[-1] != b.shape[inner]:
        raise ShapeError(
            f"matmul: inner sizes differ: a is {a.shape}, b is {b.shape}: "
            f"need a.shape[-1] == b.shape[{inner}]"
        )


def no_scalar_matmul(a: Tensor, scalar: Any) -> NoReturn:
    """Refuses a @ scalar.

    Raises:
        ShapeError: always.
    """
    raise ShapeError(
        f"matmul: an operand has no axes: got {a.shape} and the number {scalar}: "
        "need at least one axis (use * for scalars)"
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight + bias: x (..., K), weight (K, N), bias (N,) or (1, N).

    Raises:
        ShapeError: the shapes do not fit.
        DTypeError: the dtypes differ or are not floats.
    """
    return Linear()(x, weight, *present(bias))
