"""Max and average pooling over images, channels last.

All of it is linear once it is known which pixel of a window is the largest: the gradient of
picking is scattering, and the gradient of scattering is picking.
"""

from __future__ import annotations

from typing import ClassVar

from .. import backend_ndarray as nd
from ..autograd import Spec, Tensor, TensorOp, spec_of
from ..backend_ndarray import NDArray
from ..backend_ndarray.layout import Shape
from ..backend_ndarray.pool import (
    Size,
    Windows,
    avg_pool_over,
    max_pool_over,
    pool_output_shape,
    windows,
)
from .common import check_floats


class MaxPool(TensorOp):
    """The largest pixel under each window; x (N, H, W, C), result (N, OH, OW, C).

    It keeps the place of that pixel in the window, the first of equals.
    """

    name = "max_pool"
    keeps = 1
    saves = ()

    def __init__(self, where: Windows) -> None:
        self.where = where

    def infer(self, x: Tensor) -> Spec:
        dtype = check_floats(self.name, x)
        return spec_of(pool_output_shape(self.name, x.shape, self.where), dtype)

    def compute(self, x: NDArray) -> tuple[NDArray, NDArray]:
        return max_pool_over(x, self.where)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        return MaxPoolGrad(node.inputs[0].shape, self.where)(out_grad, *node.kept())


class MaxPoolGrad(TensorOp):
    """dy at the place of each window's largest pixel, 0 elsewhere; windows that share it add up."""

    saves = (1,)

    def __init__(self, input_shape: Shape, where: Windows) -> None:
        self.input_shape = input_shape
        self.where = where

    def infer(self, dy: Tensor, index: Tensor) -> Spec:
        return spec_of(self.input_shape, dy.dtype)

    def compute(self, dy: NDArray, index: NDArray) -> NDArray:
        return nd.max_pool_grad(dy, index, self.input_shape, *self.where)

    def gradient(self, out_grad: Tensor, node: Tensor) -> tuple[Tensor, None]:
        return MaxPoolPick(self.where)(out_grad, node.inputs[1]), None


class MaxPoolPick(TensorOp):
    """The pixel of a at the given place of each window."""

    saves = (1,)

    def __init__(self, where: Windows) -> None:
        self.where = where

    def infer(self, a: Tensor, index: Tensor) -> Spec:
        return spec_of(index.shape, a.dtype)

    def compute(self, a: NDArray, index: NDArray) -> NDArray:
        return nd.max_pool_pick(a, index, *self.where)

    def gradient(self, out_grad: Tensor, node: Tensor) -> tuple[Tensor, None]:
        a, index = node.inputs
        return MaxPoolGrad(a.shape, self.where)(out_grad, index), None


class AvgPool(TensorOp):
    """The mean of the pixels under each window: x (N, H, W, C), result (N, OH, OW, C)."""

    name = "avg_pool"
    saves: ClassVar[tuple[int, ...]] = ()

    def __init__(self, where: Windows, count_include_pad: bool = True) -> None:
        self.where = where
        self.count_include_pad = count_include_pad

    def infer(self, x: Tensor) -> Spec:
        dtype = check_floats(self.name, x)
        return spec_of(pool_output_shape(self.name, x.shape, self.where), dtype)

    def compute(self, x: NDArray) -> NDArray:
        return avg_pool_over(x, self.where, self.count_include_pad)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        shape = node.inputs[0].shape
        return AvgPoolGrad(shape, self.where, self.count_include_pad)(out_grad)


class AvgPoolGrad(TensorOp):
    """dy divided as its window was, added up over the windows over each pixel."""

    saves: ClassVar[tuple[int, ...]] = ()

    def __init__(self, input_shape: Shape, where: Windows, count_include_pad: bool) -> None:
        self.input_shape = input_shape
        self.where = where
        self.count_include_pad = count_include_pad

    def infer(self, dy: Tensor) -> Spec:
        return spec_of(self.input_shape, dy.dtype)

    def compute(self, dy: NDArray) -> NDArray:
        return nd.avg_pool_grad(dy, self.input_shape, *self.where, self.count_include_pad)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        return AvgPool(self.where, self.count_include_pad)(out_grad)


def max_pool(
    a: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest pixel under each window, channel by channel.

    Of equal pixels the first in the window, row by row, gets the gradient; NaN is the largest.

    Args:
        a: (N, H, W, C).
        kernel_size: of the window: an int or (height, width).
        stride: pixels of `a` from one window to the next; None means kernel_size.
        padding: pixels by which the first and last windows lie outside `a`; they never are the
            largest. At most half a window.
        ceil_mode: whether a last window may stick out on the far side.

    Returns:
        (N, OH, OW, C), OH = (H + 2 * padding - kernel_size) / stride + 1, rounded down, or up in
        ceil mode (but no window starts beyond the image and its near padding).

    Raises:
        ShapeError: shape or sizes do not fit.
        DTypeError: `a` is not floats.
    """
    return MaxPool(windows("max_pool", kernel_size, stride, padding, ceil_mode))(a)


def avg_pool(
    a: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of the pixels under each window, channel by channel; windows as in `max_pool`.

    With `count_include_pad` the padding counts as zeros.

    Raises:
        ShapeError: shape or sizes do not fit.
        DTypeError: `a` is not floats.
    """
    where = windows("avg_pool", kernel_size, stride, padding, ceil_mode)
    return AvgPool(where, count_include_pad)(a)
