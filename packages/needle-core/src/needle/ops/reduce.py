"""Sums, means and extremes over axes."""

from __future__ import annotations

import math
from functools import lru_cache

from .. import backend_ndarray as nd
from ..autograd import Spec, Tensor, TensorOp, spec_of
from ..backend_ndarray import NDArray, ShapeError
from ..backend_ndarray.dtypes import INT64, DType
from ..backend_ndarray.layout import Shape, as_ints, normalize_axes
from . import elementwise, shape
from .common import Axes, as_float, unbroadcast


class Reduction(TensorOp):
    """An operation that reduces `axes` (None: all); with `keepdims` they stay, with size 1."""

    def __init__(self, axes: Axes = None, keepdims: bool = False) -> None:
        self.axes = None if axes is None else as_ints(self.name, axes)
        self.keepdims = keepdims

    def infer(self, a: Tensor) -> Spec:
        left = _reduced_shape(self.name, a.shape, self.axes, self.keepdims)
        return spec_of(left, self.result_dtype(a.dtype))

    def result_dtype(self, dtype: DType) -> DType:
        """The dtype that reducing `dtype` gives."""
        return dtype

    def spread(self, reduced: Tensor, a: Tensor) -> Tensor:
        """A result (or its gradient) repeated to the shape of the input."""
        kept = _reduced_shape(self.name, a.shape, self.axes, True)
        if reduced.shape != kept:
            reduced = shape.reshape(reduced, kept)
        return reduced if kept == a.shape else shape.broadcast_to(reduced, a.shape)


@lru_cache(4096)
def _reduced_shape(op: str, sizes: Shape, axes: Shape | None, keepdims: bool) -> Shape:
    """The shape without the reduced axes, or with them at size 1."""
    reduced = normalize_axes(op, axes, len(sizes))
    if keepdims:
        return tuple([1 if k in reduced else size for k, size in enumerate(sizes)])
    return tuple([size for k, size in enumerate(sizes) if k not in reduced])


class Summation(Reduction):
    """The sum over axes; integers and bools sum to int64."""

    name = "summation"
    saves = ()

    def result_dtype(self, dtype: DType) -> DType:
        return dtype if dtype.kind == "f" else INT64

    def compute(self, a: NDArray) -> NDArray:
        return nd.sum(a, self.axes, self.keepdims)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        (a,) = node.inputs
        return unbroadcast(self.spread(out_grad, a), a)


class Mean(Reduction):
    """The mean over axes; of integers, float64."""

    name = "mean"
    saves = ()

    def infer(self, a: Tensor) -> Spec:
        spec = super().infer(a)
        if 0 in a.shape and self.count(a.shape) == 0:
            raise ShapeError(
                f"mean: nothing to average: got shape {a.shape}, axes {self.axes}: "
                "need at least one element"
            )
        return spec

    def result_dtype(self, dtype: DType) -> DType:
        return as_float(dtype)

    def count(self, sizes: Shape) -> int:
        """How many elements one mean is of."""
        if self.axes is None:
            return math.prod(sizes)
        axes = normalize_axes("mean", self.axes, len(sizes))
        return math.prod([sizes[k] for k in axes])

    def compute(self, a: NDArray) -> NDArray:
        total = nd.sum(a, self.axes, self.keepdims)
        return nd.divide(total, float(self.count(a.shape)))

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        (a,) = node.inputs
        return unbroadcast(self.spread(out_grad / float(self.count(a.shape)), a), a)


class Max(Reduction):
    """The largest element over axes; NaN where one is.

    The elements that share the maximum share its gradient equally, as in PyTorch's amax.
    """

    name = "max"
    saves = (0, -1)

    def infer(self, a: Tensor) -> Spec:
        spec = super().infer(a)
        if 0 in a.shape and 0 not in spec.shape:
            raise ShapeError(
                f"max: nothing to choose from: got shape {a.shape}, axes {self.axes}: "
                "need at least one element"
            )
        return spec

    def compute(self, a: NDArray) -> NDArray:
        return nd.max(a, self.axes, self.keepdims)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        (a,) = node.inputs
        share = MaxShare(self.axes)(a)
        return unbroadcast(elementwise.multiply(self.spread(out_grad, a), share), a)


class MaxShare(Reduction):
    """Each element's share of the maximum's gradient: 1/n for the n largest, else 0."""

    differentiable = False

    def infer(self, a: Tensor) -> Spec:
        return spec_of(a.shape, as_float(a.dtype))

    def compute(self, a: NDArray) -> NDArray:
        largest = nd.max(a, self.axes, keepdims=True)
        chosen = nd.equal(a, largest).astype(as_float(a.dtype))
        return nd.divide(chosen, nd.sum(chosen, self.axes, keepdims=True))


def summation(a: Tensor, axes: Axes = None, keepdims: bool = False) -> Tensor:
    """The sum over `axes`: None for all, an int, or a tuple.

    Raises:
        AxisError: there is no such axis.
    """
    return Summation(axes, keepdims)(a)


def mean(a: Tensor, axes: Axes = None, keepdims: bool = False) -> Tensor:
    """The mean over `axes`: None for all, an int, or a tuple.

    Raises:
        AxisError: there is no such axis.
        ShapeError: there is nothing to average.
    """
    return Mean(axes, keepdims)(a)


def max(a: Tensor, axes: Axes = None, keepdims: bool = False) -> Tensor:
    """The largest element over `axes`: None for all, an int, or a tuple.

    Raises:
        AxisError: there is no such axis.
        ShapeError: there is nothing to choose from.
    """
    return Max(axes, keepdims)(a)
