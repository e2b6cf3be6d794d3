"""Pooling layers."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any, ClassVar

from needle import ops
from needle.autograd import Tensor
from needle.backend_ndarray import Device, DTypeError, ShapeError
from needle.backend_ndarray.pool import Size, windows
from needle.checks import check_switch

from .checks import check_axes, check_float, check_room
from .module import Check, Module

__all__ = ["AvgPool2d", "MaxPool2d"]


class Pool2d(Module):
    """What both layers share: the windows, checked when the layer is made."""

    _settings: ClassVar[Mapping[str, Check]] = {
        "ceil_mode": check_switch,
        "count_include_pad": check_switch,
    }

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        device: Device | None = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__(device, dtype)
        op = type(self).__name__
        self.ceil_mode = ceil_mode
        _check_integers(op, "kernel_size", kernel_size)
        _check_integers(op, "stride", kernel_size if stride is None else stride)
        _check_integers(op, "padding", padding)
        where = windows(op, kernel_size, stride, padding, self.ceil_mode)
        self.kernel_size, self.stride, self.padding, _ = where

    def forward(self, x: Tensor) -> Tensor:
        op = type(self).__name__
        check_axes(op, "x", x, "(N, C, H, W)")
        try:
            return ops.permute(self.pool(ops.permute(x, (0, 2, 3, 1))), (0, 3, 1, 2))
        except (DTypeError, ShapeError):
            check_float(op, "x", x)
            check_room(op, x, "window", self.kernel_size, self.padding)
            raise

    def pool(self, x: Tensor) -> Tensor:
        """Pools x (N, H, W, C)."""
        raise NotImplementedError(f"{type(self).__name__}: pool is not defined: define it")

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"ceil_mode={self.ceil_mode}"
        )


class MaxPool2d(Pool2d):
    """Keeps the largest pixel under each window, channel by channel.

        y[n, c, i, j] = max over u < k, v < k of x[n, c, stride*i - padding + u, ...*j + v]

    Pixels outside x do not take part; of equal ones the first gets the gradient. As in Conv, the
    result is (N, C, OH, OW) by its shape and (N, OH, OW, C) in memory.

    Shapes: x (N, C, H, W), result (N, C, OH, OW) with OH = (H + 2 * padding - k) // stride + 1;
    rounded up with `ceil_mode`, where the last window may stick out.

    Args:
        kernel_size: k, an int or (height, width).
        stride: pixels from one window to the next; None means kernel_size.
        padding: pixels by which the outer windows lie outside x, at most half a window.
        ceil_mode: whether what does not fill a last window gets one.
        device: unused: there are no parameters.
        dtype: unused.

    Raises:
        TypeError: a size is not an integer, a switch not True or False, or x not a Tensor.
        ShapeError: a size or x does not fit.
        DTypeError: x is not of floats.
        DeviceError: device is no device.
    """

    def pool(self, x: Tensor) -> Tensor:
        return ops.max_pool(x, self.kernel_size, self.stride, self.padding, self.ceil_mode)


class AvgPool2d(Pool2d):
    """Takes the mean of the pixels under each window, channel by channel.

    Windows and shapes are those of MaxPool2d.

    Args:
        kernel_size: of the window, an int or (height, width).
        stride: pixels from one window to the next; None means kernel_size.
        padding: zeros around x, at most half a window.
        ceil_mode: whether what does not fill a last window gets one.
        count_include_pad: whether the zeros of the padding count in the mean.
        device: unused: there are no parameters.
        dtype: unused.

    Raises:
        TypeError: a size is not an integer, a switch not True or False, or x not a Tensor.
        ShapeError: a size or x does not fit.
        DTypeError: x is not of floats.
        DeviceError: device is no device.
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        device: Device | None = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode, device, dtype)
        self.count_include_pad = count_include_pad

    def pool(self, x: Tensor) -> Tensor:
        settings = self.kernel_size, self.stride, self.padding, self.ceil_mode
        return ops.avg_pool(x, *settings, self.count_include_pad)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, count_include_pad={self.count_include_pad}"


def _check_integers(op: str, name: str, value: object) -> None:
    """Raises TypeError unless `value` is an integer or several."""
    for size in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(size, bool) or not isinstance(size, Integral):
            raise TypeError(f"{op}: {name} is {value!r}: need an int or (height, width)")
