"""Softmax, its logarithm, log-sum-exp, and the cross entropy of logits."""

from __future__ import annotations

from functools import lru_cache

from .. import backend_ndarray as nd
from ..autograd import Spec, Tensor, TensorOp, spec_of
from ..backend_ndarray import NDArray, ShapeError
from ..backend_ndarray.dtypes import DType
from ..backend_ndarray.layout import Shape
from ..backend_ndarray.softmax import check_smoothing
from .common import Axes, as_float, check_floats, unbroadcast
from .elementwise import exp
from .fused import FusedBackward
from .index import as_whole, one_hot_like
from .reduce import Reduction, mean, summation


class LogSumExp(Reduction):
    """log(sum(exp(a))) over axes, without overflow."""

    name = "logsumexp"
    saves = (0, -1)

    def result_dtype(self, dtype: DType) -> DType:
        return as_float(dtype)

    def compute(self, a: NDArray) -> NDArray:
        return nd.logsumexp(a, self.axes, self.keepdims)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        (a,) = node.inputs
        weights = exp(a - self.spread(node, a))
        return unbroadcast(self.spread(out_grad, a) * weights, a)


class RowFunction(TensorOp):
    """A function of each row along the last axis; of integers, float64."""

    saves = (-1,)

    def infer(self, a: Tensor) -> Spec:
        if not a.shape:
            raise ShapeError(
                f"{self.name}: the Tensor has no axes: got shape (): need at least one axis"
            )
        return spec_of(a.shape, as_float(a.dtype))


class Softmax(RowFunction):
    """exp(a) / sum(exp(a)) along the last axis."""

    name = "softmax"

    def compute(self, a: NDArray) -> NDArray:
        return nd.softmax(a)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        weighted = out_grad * node
        return unbroadcast(weighted - node * summation(weighted, -1, True), node.inputs[0])


class LogSoftmax(RowFunction):
    """a - logsumexp(a) along the last axis."""

    name = "logsoftmax"

    def compute(self, a: NDArray) -> NDArray:
        return nd.logsoftmax(a)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        total = summation(out_grad, -1, True)
        return unbroadcast(out_grad - exp(node) * total, node.inputs[0])


class SoftmaxCrossEntropy(TensorOp):
    """The mean over rows of logsumexp(logits) - sum(target * logits); it keeps each logsumexp.

    target = (1 - label_smoothing) * one_hot(label) + label_smoothing / classes
    """

    name = "softmax_cross_entropy"
    keeps = 1
    saves = (0, 1)

    def __init__(self, label_smoothing: float = 0.0) -> None:
        check_smoothing(self.name, label_smoothing)
        self.label_smoothing = label_smoothing

    def infer(self, logits: Tensor, labels: Tensor) -> Spec:
        dtype = check_floats(self.name, logits)
        return _loss_spec(logits.shape, labels.shape, dtype)

    def compute(self, logits: NDArray, labels: NDArray) -> tuple[NDArray, NDArray]:
        return nd.softmax_cross_entropy(logits, labels, self.label_smoothing)

    def plain(self, logits: Tensor, labels: Tensor) -> tuple[Tensor]:
        """The definition in plain operations."""
        chosen = summation(logits * one_hot_like(labels, logits), 1)
        if self.label_smoothing:
            e = self.label_smoothing
            chosen = (1 - e) * chosen + e * mean(logits, 1)
        return (mean(LogSumExp(1)(logits) - chosen),)

    def gradient(self, out_grad: Tensor, node: Tensor) -> tuple[Tensor | None, ...]:
        return SoftmaxCrossEntropyBackward.apply(self, node.inputs, (out_grad,), node.kept())


@lru_cache(4096)
def _loss_spec(logits: Shape, labels: Shape, dtype: DType) -> Spec:
    op = SoftmaxCrossEntropy.name
    if len(logits) != 2:
        raise ShapeError(
            f"{op}: logits has the wrong number of axes: got {logits}: need (N, classes)"
        )
    if labels != logits[:1]:
        raise ShapeError(
            f"{op}: y does not fit: logits are {logits}, y is {labels}: "
            "need logits (N, classes) and y (N,)"
        )
    if logits[0] == 0:
        raise ShapeError(f"{op}: nothing to average: got logits {logits}: need N >= 1")
    return spec_of((), dtype)


class SoftmaxCrossEntropyBackward(FusedBackward):
    """(softmax(logits) - target) * dloss / N."""

    wrt = (0,)

    def compute(
        self, logits: NDArray, labels: NDArray, dloss: NDArray, lse: NDArray
    ) -> tuple[NDArray]:
        e = self.op.label_smoothing
        return (nd.softmax_cross_entropy_grad(dloss, logits, lse, labels, e),)


def logsumexp(a: Tensor, axes: Axes = None, keepdims: bool = False) -> Tensor:
    """log(sum(exp(a))) over `axes`: None for all, an int, or a tuple.

    Raises:
        AxisError: there is no such axis.
    """
    return LogSumExp(axes, keepdims)(a)


def softmax(a: Tensor) -> Tensor:
    """exp(a) / sum(exp(a)) along the last axis.

    Raises:
        ShapeError: `a` has no axes.
    """
    return Softmax()(a)


def logsoftmax(a: Tensor) -> Tensor:
    """log(softmax(a)) along the last axis.

    Raises:
        ShapeError: `a` has no axes.
    """
    return LogSoftmax()(a)


def softmax_cross_entropy(logits: Tensor, y: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The mean cross entropy in nats: logits (N, classes), y (N,) class ids; result ().

    Args:
        logits: (N, classes).
        y: (N,) class ids.
        label_smoothing: the share of each target that is spread evenly over all classes.

    Raises:
        ShapeError: the shapes do not fit, or N is 0.
        DTypeError: logits are not floats, or y not whole numbers.
        IndexError: an id is outside 0 .. classes - 1.
        ValueError: label_smoothing is outside [0, 1].

    Source: Szegedy et al., Rethinking the Inception Architecture, 2015, section 7.
    """
    return SoftmaxCrossEntropy(label_smoothing)(logits, as_whole("softmax_cross_entropy", 1, y))
