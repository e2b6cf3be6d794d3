"""The classification loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from needle import ops
from needle.autograd import Tensor
from needle.backend_ndarray import Device

from .checks import check_tensor, unit
from .module import Check, Module

__all__ = ["SoftmaxLoss"]


class SoftmaxLoss(Module):
    """Computes the mean cross entropy in nats.

        loss = mean over i of logsumexp(logits[i]) - sum over c of target[i, c] * logits[i, c]
        target[i, c] = (1 - label_smoothing) * (c == y[i]) + label_smoothing / classes

    so without smoothing the second term is logits[i, y[i]].

    Shapes: logits (N, classes), y (N,) of class ids, of an integer or float dtype; result ().

    Raises:
        TypeError: label_smoothing is not a number, or logits or y not a Tensor.
        ValueError: label_smoothing is outside [0, 1].
        ShapeError: the shapes do not fit.
        IndexError: a class id is outside [0, classes).
        DTypeError: logits are not of floats, or y not of whole numbers.
        DeviceError: device is no device, or logits and y are on different ones.
    """

    _settings: ClassVar[Mapping[str, Check]] = {"label_smoothing": unit}

    def __init__(
        self, label_smoothing: float = 0.0, device: Device | None = None, dtype: Any = "float32"
    ) -> None:
        super().__init__(device, dtype)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        check_tensor("SoftmaxLoss", "logits", logits)
        check_tensor("SoftmaxLoss", "y", y)
        return ops.softmax_cross_entropy(logits, y, self.label_smoothing)

    def extra_repr(self) -> str:
        return f"label_smoothing={self.label_smoothing}" if self.label_smoothing else ""
