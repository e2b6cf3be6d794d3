"""Activations and dropout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from needle import init, ops
from needle.autograd import Tensor
from needle.backend_ndarray import Device

from .checks import check_tensor, unit
from .module import Check, Module

__all__ = ["Dropout", "ReLU", "Sigmoid", "Tanh"]


class ReLU(Module):
    """Computes max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.relu(x)


class Tanh(Module):
    """Computes tanh(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.tanh(x)


class Sigmoid(Module):
    """Computes 1 / (1 + exp(-x))."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.sigmoid(x)


class Dropout(Module):
    """In training, zeroes each entry with probability p and divides the others by 1 - p.

    An entry is kept where a draw from [0, 1) is at most 1 - p. In evaluation x passes unchanged.

    Source: Srivastava et al., Dropout, JMLR 15 (2014), with the scaling moved to training.

    Raises:
        TypeError: p is not a number, or x not a Tensor.
        ValueError: p is not in [0, 1].
        DeviceError: device is no device.
    """

    _settings: ClassVar[Mapping[str, Check]] = {"p": unit}

    def __init__(self, p: float = 0.5, device: Device | None = None, dtype: Any = "float32"):
        super().__init__(device, dtype)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        check_tensor("Dropout", "x", x)
        if not self.training:
            return x
        keep = init.randb(*x.shape, p=1 - self.p, device=x.device, dtype="bool")
        # With p = 1 nothing is kept, and 1 / (1 - p) would turn 0 into NaN.
        scale = 1 / (1 - self.p) if self.p < 1 else 0.0
        return x * (ops.astype(keep, x.dtype) * scale)

    def extra_repr(self) -> str:
        return f"p={self.p}"
