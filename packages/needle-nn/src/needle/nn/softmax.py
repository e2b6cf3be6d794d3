"""The classification loss."""

from __future__ import annotations

from needle import ops
from needle.autograd import Tensor

from .checks import check_tensor
from .module import Module

__all__ = ["SoftmaxLoss"]


class SoftmaxLoss(Module):
    """Computes the mean cross entropy in nats.

        loss = mean over i of logsumexp(logits[i]) - logits[i, y[i]]

    Shapes: logits (N, classes), y (N,) of class ids, of an integer or float dtype; result ().

    Raises:
        ShapeError: the shapes do not fit.
        IndexError: a class id is outside [0, classes).
    """

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        check_tensor("SoftmaxLoss", "logits", logits)
        check_tensor("SoftmaxLoss", "y", y)
        return ops.softmax_cross_entropy(logits, y)
