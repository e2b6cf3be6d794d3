"""Batch and layer normalisation."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from .. import backend_ndarray as nd
from .. import engine
from ..autograd import Spec, Tensor, TensorOp, TensorTuple, TensorTupleOp, constant, spec_of
from ..backend_ndarray import NDArray, ShapeError
from ..backend_ndarray.dtypes import DType
from ..backend_ndarray.layout import Shape
from . import elementwise
from .common import check_floats
from .elementwise import sqrt
from .fused import FusedBackward
from .reduce import mean
from .shape import reshape


@lru_cache(4096)
def _batch_specs(
    op: str, x: Shape, names: tuple[str, ...], per_channel: tuple[Shape, ...], dtype: DType
) -> tuple[Spec, Spec]:
    """The specs of x and of what there is one of for each channel; checks the shapes."""
    if len(x) not in (2, 4):
        raise ShapeError(
            f"{op}: x has the wrong number of axes: got {x}: need (N, C) or (N, C, H, W)"
        )
    for name, shape in zip(names, per_channel, strict=True):
        if shape != x[1:2]:
            raise ShapeError(f"{op}: {name} does not fit: got {shape}: need {x[1:2]}")
    return spec_of(x, dtype), spec_of(x[1:2], dtype)


def _per_channel(value: Tensor, rank: int) -> Tensor:
    """(C,) as (1, C) or (1, C, 1, 1)."""
    return reshape(value, (1, -1, *(1,) * (rank - 2)))


def _scale(x: Tensor, centre: Tensor, var: Tensor, eps: float) -> Tensor:
    return (x - centre) / sqrt(var + eps)


class BatchNorm(TensorTupleOp):
    """y = weight * (x - mean) / sqrt(var + eps) + bias, and mean and (biased) var of the batch.

    x (N, C) or (N, C, H, W); the mean is over everything but C. With `relu`, y = max(y, 0).

    Source: Ioffe and Szegedy, Batch Normalization, ICML 2015.
    """

    name = "batch_norm"

    def __init__(self, eps: float = 1e-5, relu: bool = False) -> None:
        self.eps = eps
        self.relu = relu

    def infer(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Spec, Spec, Spec]:
        dtype, shape = check_floats("batch_norm", x, weight, bias), x.shape
        per_channel = weight.shape, bias.shape
        specs = _batch_specs("batch_norm", shape, ("weight", "bias"), per_channel, dtype)
        if 0 in shape[:1] + shape[2:]:
            raise ShapeError(
                f"batch_norm: nothing to average: got {shape}: need one value per channel"
            )
        return *specs, specs[1]

    def compute(
        self, x: NDArray, weight: NDArray, bias: NDArray
    ) -> tuple[NDArray, NDArray, NDArray]:
        return nd.batch_norm(x, weight, bias, self.eps, self.relu)

    @staticmethod
    def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of each channel, in plain operations."""
        axes = (0, *range(2, len(x.shape)))
        centre = mean(x, axes)
        apart = x - _per_channel(centre, len(x.shape))
        return centre, mean(apart * apart, axes)

    def plain(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The definition in plain operations."""
        rank = len(x.shape)
        centre, var = self.statistics(x)
        y = _scale(x, _per_channel(centre, rank), _per_channel(var, rank), self.eps)
        y = y * _per_channel(weight, rank) + _per_channel(bias, rank)
        return (elementwise.relu(y) if self.relu else y), centre, var

    def gradient(self, out_grad: Any, node: TensorTuple) -> tuple[Tensor | None, ...]:
        inputs = node.inputs
        dy, *of_statistics = out_grad
        grads: list[Tensor | None] = [None, None, None]
        if dy is not None:
            results = [constant(array) for array in node.realize_cached_data()]
            grads = list(BatchNormBackward.apply(self, inputs, (dy, None, None), results))
        if any(part is not None for part in of_statistics):
            (more,) = engine.plain_vjp(self.statistics, inputs[:1], of_statistics)
            grads[0] = more if grads[0] is None else grads[0] + more
        return tuple(grads)


class BatchNormBackward(FusedBackward):
    """The gradients of batch_norm for x, weight and bias, given that of y."""

    def compute(self, *args: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        x, weight, _, dy, y, centre, var = args
        return nd.batch_norm_grad(dy, x, y, centre, var, weight, self.op.eps, self.op.relu)


class BatchNormEval(TensorOp):
    """batch_norm with a given mean and variance."""

    name = "batch_norm_eval"

    def __init__(self, eps: float = 1e-5, relu: bool = False) -> None:
        self.eps = eps
        self.relu = relu

    def infer(self, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> Spec:
        dtype = check_floats("batch_norm_eval", x, mean, var, weight, bias)
        per_channel = mean.shape, var.shape, weight.shape, bias.shape
        names = ("mean", "var", "weight", "bias")
        return _batch_specs("batch_norm_eval", x.shape, names, per_channel, dtype)[0]

    def compute(
        self, x: NDArray, mean: NDArray, var: NDArray, weight: NDArray, bias: NDArray
    ) -> NDArray:
        return nd.batch_norm_eval(x, mean, var, weight, bias, self.eps, self.relu)

    def plain(self, x: Tensor, *per_channel: Tensor) -> tuple[Tensor]:
        """The definition in plain operations."""
        centre, var, weight, bias = (_per_channel(value, len(x.shape)) for value in per_channel)
        y = _scale(x, centre, var, self.eps) * weight + bias
        return (elementwise.relu(y) if self.relu else y,)

    def gradient(self, out_grad: Tensor, node: Tensor) -> tuple[Tensor | None, ...]:
        inputs = node.inputs
        return engine.plain_vjp(self.plain, inputs, (out_grad,))


class LayerNorm(TensorOp):
    """y = weight * (x - mean) / sqrt(var + eps) + bias along the last axis; it keeps mean and var.

    Source: Ba, Kiros and Hinton, Layer Normalization, arXiv:1607.06450.
    """

    name = "layer_norm"
    keeps = 2
    saves = (0, 1)

    def __init__(self, eps: float = 1e-5) -> None:
        self.eps = eps

    def infer(self, x: Tensor, weight: Tensor, bias: Tensor) -> Spec:
        dtype = check_floats("layer_norm", x, weight, bias)
        return _rows_spec(x.shape, weight.shape, bias.shape, dtype)

    def compute(
        self, x: NDArray, weight: NDArray, bias: NDArray
    ) -> tuple[NDArray, NDArray, NDArray]:
        return nd.layer_norm(x, weight, bias, self.eps)

    def plain(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor]:
        """The definition in plain operations."""
        centre = mean(x, -1, keepdims=True)
        var = mean((x - centre) * (x - centre), -1, keepdims=True)
        return (_scale(x, centre, var, self.eps) * weight + bias,)

    def gradient(self, out_grad: Tensor, node: Tensor) -> tuple[Tensor | None, ...]:
        return LayerNormBackward.apply(self, node.inputs, (out_grad,), node.kept())


@lru_cache(4096)
def _rows_spec(x: Shape, weight: Shape, bias: Shape, dtype: DType) -> Spec:
    if not x or x[-1] == 0:
        raise ShapeError(f"layer_norm: nothing to average: got {x}: need (..., D) with D >= 1")
    for name, shape in (("weight", weight), ("bias", bias)):
        if shape != x[-1:]:
            raise ShapeError(f"layer_norm: {name} does not fit: got {shape}: need {x[-1:]}")
    return spec_of(x, dtype)


class LayerNormBackward(FusedBackward):
    """The gradients of layer_norm for x, weight and bias."""

    def compute(self, *args: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        x, weight, _, dy, centre, var = args
        return nd.layer_norm_grad(dy, x, centre, var, weight, self.op.eps)


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, relu: bool = False
) -> TensorTuple:
    """Normalises each channel over the batch: the TensorTuple (y, mean, var).

    Args:
        x: (N, C) or (N, C, H, W); y has its shape.
        weight: (C,).
        bias: (C,).
        eps: added to the variance.
        relu: y = max(y, 0).

    Raises:
        ShapeError: shapes do not fit, or a channel has no value.
        DTypeError: the dtypes differ or are not floats.
    """
    return BatchNorm(eps, relu)(x, weight, bias)


def batch_norm_eval(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    relu: bool = False,
) -> Tensor:
    """Normalises each channel with a given mean and variance, (C,) each.

    Raises:
        ShapeError: shapes do not fit.
        DTypeError: the dtypes differ or are not floats.
    """
    return BatchNormEval(eps, relu)(x, mean, var, weight, bias)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Normalises each row: x (..., D), weight and bias (D,).

    Raises:
        ShapeError: shapes do not fit.
        DTypeError: the dtypes differ or are not floats.
    """
    return LayerNorm(eps)(x, weight, bias)
