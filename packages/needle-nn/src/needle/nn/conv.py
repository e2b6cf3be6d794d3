"""The convolution layer."""

from __future__ import annotations

from typing import Any

from needle import init, ops
from needle.autograd import Tensor
from needle.backend_ndarray import Device, DTypeError, ShapeError
from needle.checks import check_switch

from .checks import (
    check_axes,
    check_float,
    check_room,
    check_size,
    float_dtype,
    positive,
    promoted,
)
from .module import Module, Parameter

__all__ = ["Conv"]


class Conv(Module):
    """Slides a square kernel over an image; with stride 1 and an odd kernel the size stays.

        y[n, o, i, j] = bias[o] + sum over c, u, v of
                        weight[u, v, c, o] * x[n, c, stride*i + u - k//2, stride*j + v - k//2]

    where x is zero outside. Channels come first, as in PyTorch; inside, they come last, where a
    kernel reads them side by side. The swaps are views: the result is (N, C, H, W) by its shape
    and (N, H, W, C) in memory, an order that BatchNorm2d and the activations keep.

    Shapes: x (N, in_channels, H, W), result (N, out_channels, OH, OW) with
    OH = (H + 2 * (k // 2) - k) // stride + 1.

    Attributes:
        weight: (k, k, in_channels, out_channels), kaiming_uniform; fan_in is in_channels * k * k.
        bias: (out_channels,), uniform in +-1/sqrt(fan_in); or None.

    Raises:
        TypeError: a size is not an integer, bias not True or False, or x not a Tensor.
        ShapeError: a size is below 1, the kernel is not square, or x does not fit.
        DTypeError: dtype is not float32 or float64, or x is not of floats.
        DeviceError: device is no device, or x is on another one.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        bias: bool = True,
        device: Device | None = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__(device, dtype)
        dtype, bias = float_dtype("Conv", dtype), check_switch("Conv", "bias", bias)
        self.in_channels = positive("Conv", "in_channels", in_channels)
        self.out_channels = positive("Conv", "out_channels", out_channels)
        self.kernel_size = k = _square("kernel_size", kernel_size)
        self.stride = _square("stride", stride)
        self.padding = k // 2
        fan_in, fan_out = self.in_channels * k * k, self.out_channels * k * k
        shape = (k, k, self.in_channels, self.out_channels)
        self.weight = Parameter(
            init.kaiming_uniform(fan_in, fan_out, shape, device=device, dtype=dtype)
        )
        self.bias = None
        if bias:
            bound = fan_in**-0.5
            self.bias = Parameter(
                init.rand(self.out_channels, low=-bound, high=bound, device=device, dtype=dtype)
            )

    def forward(self, x: Tensor) -> Tensor:
        check_axes("Conv", "x", x, "(N, C, H, W)")
        check_size("Conv", "x", x, 1, "in_channels", self.in_channels)
        a, weight, bias = promoted(x, self.weight, self.bias)
        try:
            return ops.conv(a, weight, self.stride, self.padding, bias=bias, channels_first=True)
        except (DTypeError, ShapeError):
            check_float("Conv", "x", x)
            check_room("Conv", x, "kernel", self.kernel_size, self.padding)
            raise

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, bias={self.bias is not None}"
        )


def _square(name: str, value: int | tuple[int, ...]) -> int:
    """Returns the one size of an int or of a tuple of equal ints."""
    if not isinstance(value, tuple):
        return positive("Conv", name, value)
    sizes = {positive("Conv", name, size) for size in value}
    if len(sizes) != 1:
        raise ShapeError(f"Conv: {name} is {value}: need one size for both axes")
    return sizes.pop()
