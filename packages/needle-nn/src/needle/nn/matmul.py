"""The fully connected layer."""

from __future__ import annotations

from typing import Any

from needle import init, ops
from needle.autograd import Tensor
from needle.backend_ndarray import Device, ShapeError
from needle.checks import check_switch

from .checks import check_size, check_tensor, float_dtype, positive, promoted
from .module import Module, Parameter

__all__ = ["Linear"]


class Linear(Module):
    """Computes x weight + bias.

    Shapes: x (..., in_features), result (..., out_features).

    Attributes:
        weight: (in_features, out_features), kaiming_uniform.
        bias: (1, out_features), kaiming_uniform with fan_in = out_features; or None.

    Raises:
        TypeError: a size is not an integer, bias not True or False, or x not a Tensor.
        ShapeError: a size is below 1, or x's last axis is not in_features.
        DTypeError: dtype is not float32 or float64, or x is not of floats.
        DeviceError: device is no device, or x is on another one.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Device | None = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__(device, dtype)
        dtype, bias = float_dtype("Linear", dtype), check_switch("Linear", "bias", bias)
        self.in_features = positive("Linear", "in_features", in_features)
        self.out_features = positive("Linear", "out_features", out_features)
        self.weight = Parameter(
            init.kaiming_uniform(in_features, out_features, device=device, dtype=dtype)
        )
        self.bias = None
        if bias:
            column = init.kaiming_uniform(out_features, 1, device=device, dtype=dtype)
            self.bias = Parameter(column.reshape((1, out_features)))

    def forward(self, x: Tensor) -> Tensor:
        check_tensor("Linear", "x", x)
        if len(x.shape) == 0:
            raise ShapeError(f"Linear: x is (): need (..., {self.in_features})")
        check_size("Linear", "x", x, -1, "in_features", self.in_features)
        return ops.linear(*promoted(x, self.weight, self.bias))

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}"
