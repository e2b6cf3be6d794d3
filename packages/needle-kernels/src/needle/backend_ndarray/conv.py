"""Convolutions over images, channels last: x (N, H, W, Ci), w (K, K, Ci, Co)."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from needle.backend_ndarray.checks import MOST_PIXELS, check_floats, check_rank, check_shape
from needle.backend_ndarray.errors import ShapeError
from needle.backend_ndarray.extension import KERNEL
from needle.backend_ndarray.layout import Shape, as_int, as_shape
from needle.backend_ndarray.matmul import activation_code
from needle.backend_ndarray.ndarray import NDArray, check_arrays, new

__all__ = [
    "channels_first",
    "channels_last",
    "conv",
    "conv_input_grad",
    "conv_output_shape",
    "conv_weight_bias_grad",
    "conv_weight_grad",
]

_CONV: Final = KERNEL["conv"]
_INPUT_GRAD: Final = KERNEL["conv_input_grad"]
_WEIGHT_GRAD: Final = KERNEL["conv_weight_grad"]


def conv(
    x: NDArray,
    w: NDArray,
    bias: NDArray | None = None,
    stride: int = 1,
    padding: int = 0,
    activation: str | None = None,
) -> NDArray:
    """activation(conv(x, w) + bias): (N, OH, OW, Co), with OH = (H + 2 padding - K) // stride + 1.

    y[n, h, w', co] = sum over i, j, ci of x[n, stride h + i, stride w' + j, ci] * w[i, j, ci, co],
    x with `padding` zeros on every side. The result is stored row-major, channels last.

    Args:
        x: (N, H, W, Ci), any strides.
        w: (K, K, Ci, Co).
        bias: (Co,) or None.
        stride: pixels of x from one output pixel to the next.
        padding: zeros on every side of x.
        activation: None, "relu", "tanh" or "sigmoid".

    Raises:
        ShapeError: shapes, stride or padding do not fit.
        DTypeError: the dtypes differ or are not floats.
        DeviceError: the arrays are on different devices.
    """
    device, dtype = check_floats("conv", "x, w, bias", x, w, x if bias is None else bias)
    shape = conv_output_shape("conv", x._shape, w._shape, stride, padding)
    if bias is not None:
        check_shape("conv", "bias", bias, w._shape[-1:])
    code = 0 if activation is None else activation_code("conv", activation)
    out = new(device, shape, dtype)
    device.launch(_CONV, (out, x, w, bias), (stride, padding, code))
    return out


def conv_input_grad(
    dy: NDArray, w: NDArray, input_shape: Shape, stride: int, padding: int
) -> NDArray:
    """The gradient of conv for its input, of shape `input_shape`, given dy (N, OH, OW, Co).

    Raises:
        ShapeError: dy is not what conv gives for these shapes.
        DTypeError: the dtypes differ or are not floats.
    """
    op = "conv_input_grad"
    device, dtype = check_floats(op, "dy, w", dy, w)
    shape = as_shape(op, input_shape)
    check_shape(op, "dy", dy, conv_output_shape(op, shape, w._shape, stride, padding))
    dx = new(device, shape, dtype)
    device.launch(_INPUT_GRAD, (dx, dy, w), (stride, padding))
    return dx


def conv_weight_grad(
    x: NDArray, dy: NDArray, kernel_size: int, stride: int, padding: int
) -> NDArray:
    """The gradient of conv for its weight, (K, K, Ci, Co), given dy (N, OH, OW, Co).

    Raises:
        ShapeError: dy is not what conv gives for these shapes.
        DTypeError: the dtypes differ or are not floats.
    """
    dw = _new_weight("conv_weight_grad", x, dy, kernel_size, stride, padding)
    dw._device.launch(_WEIGHT_GRAD, (dw, None, x, dy), (stride, padding))
    return dw


def conv_weight_bias_grad(
    x: NDArray, dy: NDArray, kernel_size: int, stride: int, padding: int
) -> tuple[NDArray, NDArray]:
    """The gradients of conv for its weight, (K, K, Ci, Co), and its bias, (Co,), in one pass.

    The second is the sum of dy (N, OH, OW, Co) over its first three axes.

    Raises:
        ShapeError: dy is not what conv gives for these shapes.
        DTypeError: the dtypes differ or are not floats.
    """
    dw = _new_weight("conv_weight_bias_grad", x, dy, kernel_size, stride, padding)
    if 0 in dw._shape:  # no weights, but perhaps biases
        return dw, dy.sum((0, 1, 2))
    db = new(dw._device, dw._shape[3:], dw._dtype)
    dw._device.launch(_WEIGHT_GRAD, (dw, db, x, dy), (stride, padding))
    return dw, db


def _new_weight(
    op: str, x: NDArray, dy: NDArray, kernel_size: int, stride: int, padding: int
) -> NDArray:
    """Checks a weight gradient's operands and allocates it."""
    device, dtype = check_floats(op, "x, dy", x, dy)
    if type(kernel_size) is not int:
        kernel_size = as_int(op, "kernel_size", kernel_size)
    check_rank(op, "x", x, 4, "(N, H, W, C_in)")
    check_rank(op, "dy", dy, 4, "(N, OH, OW, C_out)")
    shape = (kernel_size, kernel_size, x._shape[3], dy._shape[3])
    check_shape(op, "dy", dy, conv_output_shape(op, x._shape, shape, stride, padding))
    return new(device, shape, dtype)


def channels_last(images: NDArray) -> NDArray:
    """A view of images (N, C, H, W) as (N, H, W, C).

    Raises:
        ShapeError: they have not four axes.
    """
    try:
        n, c, h, w = images._shape
    except (AttributeError, ValueError):
        check_arrays("channels_last", "images", images)
        check_rank("channels_last", "images", images, 4, "(N, C, H, W)")
        raise
    by_n, by_c, by_h, by_w = images._strides
    return images._view((n, h, w, c), (by_n, by_h, by_w, by_c))


def channels_first(images: NDArray) -> NDArray:
    """A view of images (N, H, W, C) as (N, C, H, W).

    Raises:
        ShapeError: they have not four axes.
    """
    try:
        n, h, w, c = images._shape
    except (AttributeError, ValueError):
        check_arrays("channels_first", "images", images)
        check_rank("channels_first", "images", images, 4, "(N, H, W, C)")
        raise
    by_n, by_h, by_w, by_c = images._strides
    return images._view((n, c, h, w), (by_n, by_c, by_h, by_w))


def conv_output_shape(op: str, x: Shape, w: Shape, stride: int, padding: int) -> Shape:
    """(N, OH, OW, Co) for x (N, H, W, Ci) and w (K, K, Ci, Co).

    Raises:
        ShapeError: shapes, stride or padding do not fit.
        TypeError: stride or padding is not an integer.
    """
    if type(stride) is not int or type(padding) is not int:
        stride, padding = as_int(op, "stride", stride), as_int(op, "padding", padding)
    return _output_shape(op, x, w, stride, padding)


@lru_cache(4096)
def _output_shape(op: str, x: Shape, w: Shape, stride: int, padding: int) -> Shape:
    if len(x) != 4 or len(w) != 4:
        raise ShapeError(
            f"{op}: wrong number of axes: got x {x}, weight {w}: "
            "need (N, H, W, C_in) and (K, K, C_in, C_out)"
        )
    if w[0] != w[1] or w[0] < 1:
        raise ShapeError(
            f"{op}: the kernel is not square: got weight {w}: need (K, K, C_in, C_out)"
        )
    if x[3] != w[2]:
        raise ShapeError(
            f"{op}: channels differ: got x {x}, weight {w}: need x.shape[3] == weight.shape[2]"
        )
    if stride < 1 or padding < 0:
        raise ShapeError(
            f"{op}: got stride {stride}, padding {padding}: need stride >= 1 and padding >= 0"
        )
    if max(stride, w[0]) > MOST_PIXELS:
        raise ShapeError(
            f"{op}: got stride {stride}, kernel_size {w[0]}: need at most {MOST_PIXELS}"
        )
    if min(x[1], x[2]) + 2 * padding < w[0]:
        raise ShapeError(
            f"{op}: the image is smaller than the kernel: got x {x} with padding {padding}, "
            f"weight {w}: need H + 2 * padding >= {w[0]}, and W likewise"
        )
    height, width = ((size + 2 * padding - w[0]) // stride + 1 for size in x[1:3])
    return x[0], height, width, w[3]
