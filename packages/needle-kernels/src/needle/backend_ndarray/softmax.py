"""Softmax, its logarithm, log-sum-exp, and cross entropy on logits."""

from __future__ import annotations

from typing import Final

from needle.backend_ndarray.checks import as_ids, check_floats, check_rank, check_shape
from needle.backend_ndarray.dtypes import FLOAT64
from needle.backend_ndarray.errors import ShapeError
from needle.backend_ndarray.extension import KERNEL, NO_SCALARS
from needle.backend_ndarray.layout import Axes
from needle.backend_ndarray.ndarray import NDArray, as_array, as_rows, check_same_device, new
from needle.backend_ndarray.reduce import reduction

__all__ = [
    "logsoftmax",
    "logsumexp",
    "softmax",
    "softmax_cross_entropy",
    "softmax_cross_entropy_grad",
]

_CROSS_ENTROPY: Final = KERNEL["softmax_cross_entropy"]
_CROSS_ENTROPY_GRAD: Final = KERNEL["softmax_cross_entropy_grad"]


def softmax(a: NDArray) -> NDArray:
    """exp(a) / sum(exp(a)) along the last axis; of integers, float64.

    Raises:
        ShapeError: the array has no axes.
    """
    return _along_rows("softmax", a)


def logsoftmax(a: NDArray) -> NDArray:
    """a - logsumexp(a) along the last axis; of integers, float64.

    Raises:
        ShapeError: the array has no axes.
    """
    return _along_rows("logsoftmax", a)


def _along_rows(op: str, a: NDArray) -> NDArray:
    a = as_array(op, a)
    if not a._shape:
        raise ShapeError(f"{op}: the array has no axes: got shape (): need at least one axis")
    a = a if a._dtype.kind == "f" else a.astype(FLOAT64)
    out = new(a._device, a._shape, a._dtype)
    a._device.launch(KERNEL[op], (as_rows(out), as_rows(a)), NO_SCALARS)
    return out


def logsumexp(a: NDArray, axis: Axes = None, keepdims: bool = False) -> NDArray:
    """log(sum(exp(a))) over `axis`: None for all, an int, or a tuple; of integers, float64.

    Raises:
        AxisError: there is no such axis.
    """
    a = as_array("logsumexp", a)
    a = a if a._dtype.kind == "f" else a.astype(FLOAT64)
    return reduction("logsumexp", a, axis, keepdims)


def softmax_cross_entropy(
    logits: NDArray, labels: NDArray, smoothing: float = 0.0
) -> tuple[NDArray, NDArray]:
    """The mean over rows of logsumexp(logits) - sum(target * logits).

    target = (1 - smoothing) * one_hot(label) + smoothing / C: without smoothing, logits[label].

    Args:
        logits: (R, C).
        labels: (R,), integers in 0 .. C - 1.
        smoothing: the share of the target that is spread over all classes, in [0, 1].

    Returns:
        loss () and lse (R,), each row's logsumexp, which the gradient needs.

    Raises:
        ShapeError: shapes do not fit, or there is no row.
        DTypeError: logits are not floats, or labels not integers.
        IndexError: a label is out of range.
        ValueError: smoothing is outside [0, 1].
    """
    op = "softmax_cross_entropy"
    device, dtype = check_floats(op, "logits", logits)
    ids = _check_labels(op, logits, labels)
    check_smoothing(op, smoothing)
    loss, lse = new(device, (), dtype), new(device, logits._shape[:1], dtype)
    device.launch(_CROSS_ENTROPY, (loss, lse, logits, ids), (smoothing,))
    return loss, lse


def softmax_cross_entropy_grad(
    dloss: NDArray, logits: NDArray, lse: NDArray, labels: NDArray, smoothing: float = 0.0
) -> NDArray:
    """The gradient for the logits: (softmax(logits) - target) * dloss / R.

    Raises:
        ShapeError: shapes do not fit, or there is no row.
        DTypeError: dtypes do not fit.
        IndexError: a label is out of range.
        ValueError: smoothing is outside [0, 1].
    """
    op = "softmax_cross_entropy_grad"
    device, dtype = check_floats(op, "dloss, logits, lse", dloss, logits, lse)
    ids = _check_labels(op, logits, labels)
    check_smoothing(op, smoothing)
    check_shape(op, "dloss", dloss, ())
    check_shape(op, "lse", lse, logits._shape[:1])
    dlogits = new(device, logits._shape, dtype)
    device.launch(_CROSS_ENTROPY_GRAD, (dlogits, dloss, logits, lse, ids), (smoothing,))
    return dlogits


def check_smoothing(op: str, smoothing: float) -> None:
    """Raises ValueError unless `smoothing` is in [0, 1], TypeError where it is no number."""
    try:
        within = 0 <= smoothing <= 1
    except TypeError:
        kind = type(smoothing).__name__
        raise TypeError(f"{op}: label smoothing: got {kind}: need a number in [0, 1]") from None
    if not within:
        raise ValueError(f"{op}: label smoothing: got {smoothing}: need a number in [0, 1]")


def _check_labels(op: str, logits: NDArray, labels: NDArray) -> NDArray:
    check_same_device(op, "logits, labels", logits, labels)
    check_rank(op, "logits", logits, 2, "(R, C)")
    check_shape(op, "labels", labels, logits._shape[:1])
    if not logits._shape[0]:
        raise ShapeError(f"{op}: nothing to average: got logits {logits._shape}: need R >= 1")
    return as_ids(op, labels, logits._shape[1])
