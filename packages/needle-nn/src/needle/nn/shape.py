"""Modules that change the shape."""

from __future__ import annotations

import math

from needle import ops
from needle.autograd import Tensor
from needle.backend_ndarray import ShapeError

from .checks import check_tensor
from .module import Module

__all__ = ["Flatten"]


class Flatten(Module):
    """Joins all axes but the first: (N, ...) becomes (N, prod(...)).

    Raises:
        TypeError: x is not a Tensor.
        ShapeError: x has no axis.
        DeviceError: device is no device.
    """

    def forward(self, x: Tensor) -> Tensor:
        check_tensor("Flatten", "x", x)
        if len(x.shape) == 0:
            raise ShapeError("Flatten: x is (): need at least one axis, the batch")
        return ops.reshape(x, (x.shape[0], math.prod(x.shape[1:])))
