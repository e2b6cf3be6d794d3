"""Convolution over images, channels last or first."""

from __future__ import annotations

from functools import lru_cache

from .. import backend_ndarray as nd
from ..autograd import Spec, Tensor, TensorOp, spec_of
from ..backend_ndarray import NDArray, ShapeError
from ..backend_ndarray.conv import conv_output_shape
from ..backend_ndarray.layout import Shape, as_int
from .common import check_floats, check_shape
from .fused import FusedBackward
from .matmul import matmul
from .reduce import summation
from .shape import PutItem, concatenate, getitem, permute, reshape

LAST = (0, 2, 3, 1)
"""The axes of (N, C, H, W) in the order (N, H, W, C)."""
FIRST = (0, 3, 1, 2)


class Conv(TensorOp):
    """y[n, i, j, o] = bias[o] + sum over u, v, c of x[n, s i + u, s j + v, c] * w[u, v, c, o].

    x (N, H, W, C_in) has `padding` zeros on every side, w (K, K, C_in, C_out), s is the stride;
    the result is (N, OH, OW, C_out) with OH = (H + 2 padding - K) // stride + 1.

    With `channels_first`, x is (N, C_in, H, W) and the result (N, C_out, OH, OW), by their shapes:
    in memory the result has its channels last, as the kernel wrote it.
    """

    name = "conv"
    saves = (0, 1)

    def __init__(self, stride: int = 1, padding: int = 0, channels_first: bool = False) -> None:
        self.stride = as_int("conv", "stride", stride)
        self.padding = as_int("conv", "padding", padding)
        self.channels_first = channels_first

    def infer(self, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Spec:
        shape = _result_shape(a.shape, b.shape, self.stride, self.padding, self.channels_first)
        if bias is not None:
            check_shape("conv", "bias", bias, b.shape[3:])
        return spec_of(shape, check_floats("conv", a, b, bias))

    def compute(self, a: NDArray, b: NDArray, bias: NDArray | None = None) -> NDArray:
        if self.channels_first:
            y = nd.conv(nd.channels_last(a), b, bias, self.stride, self.padding)
            return nd.channels_first(y)
        return nd.conv(a, b, bias, self.stride, self.padding)

    def last(self, images: NDArray) -> NDArray:
        """The images with their channels last."""
        return nd.channels_last(images) if self.channels_first else images

    def plain(self, a: Tensor, b: Tensor, bias: Tensor | None = None) -> tuple[Tensor]:
        """The definition in plain operations: pad, gather every kernel place, one matmul."""
        if self.channels_first:
            a = permute(a, LAST)
        n, height, width, channels = a.shape
        _, rows, columns, filters = conv_output_shape(
            "conv", a.shape, b.shape, self.stride, self.padding
        )
        p, s, k = self.padding, self.stride, b.shape[0]
        inner = (slice(None), slice(p, p + height), slice(p, p + width))
        padded = PutItem(inner, (n, height + 2 * p, width + 2 * p, channels))(a)
        places = [
            getitem(padded, (slice(None), slice(u, u + s * rows, s), slice(v, v + s * columns, s)))
            for u in range(k)
            for v in range(k)
        ]
        patches = reshape(concatenate(places, 3), (n * rows * columns, k * k * channels))
        y = reshape(
            matmul(patches, reshape(b, (k * k * channels, filters))), (n, rows, columns, filters)
        )
        if bias is not None:
            y = y + bias
        return (permute(y, FIRST) if self.channels_first else y,)

    def gradient(self, out_grad: Tensor, node: Tensor) -> tuple[Tensor | None, ...]:
        return ConvBackward.apply(self, node.inputs, (out_grad,), ())


@lru_cache(4096)
def _result_shape(a: Shape, b: Shape, stride: int, padding: int, channels_first: bool) -> Shape:
    """conv_output_shape, also of images with their channels first."""
    _check_images(a, b, padding, channels_first)
    images = (a[0], a[2], a[3], a[1]) if channels_first else a
    n, height, width, channels = conv_output_shape("conv", images, b, stride, padding)
    return (n, channels, height, width) if channels_first else (n, height, width, channels)


def _check_images(a: Shape, b: Shape, padding: int, channels_first: bool) -> None:
    """Raises ShapeError, in the layout of `a`, unless it fits to the weight `b`."""
    layout, axis = ("(N, C_in, H, W)", 1) if channels_first else ("(N, H, W, C_in)", 3)
    if len(a) != 4 or len(b) != 4:
        raise ShapeError(
            f"conv: wrong number of axes: got a {a}, b {b}: need {layout} and (K, K, C_in, C_out)"
        )
    if a[axis] != b[2]:
        raise ShapeError(
            f"conv: channels differ: got a {a}, b {b}: need a.shape[{axis}] == b.shape[2]"
        )
    if padding >= 0 and min(a[2:] if channels_first else a[1:3]) + 2 * padding < b[0]:
        raise ShapeError(
            f"conv: the image is smaller than the kernel: got a {a}, b {b}, padding {padding}: "
            f"need H + 2 * padding >= {b[0]}, and W likewise"
        )


class ConvBackward(FusedBackward):
    """The gradients of conv for those of its inputs that need one."""

    def positions(self) -> tuple[int, ...]:
        return tuple([i for i in range(self.count) if self.needs[i]])

    def compute(self, *args: NDArray) -> tuple[NDArray, ...]:
        conv: Conv = self.op
        x, w, *_, dy = args
        x, dy = conv.last(x), conv.last(dy)
        settings = conv.stride, conv.padding
        grads = []
        if self.needs[0]:
            dx = nd.conv_input_grad(dy, w, x.shape, *settings)
            grads.append(nd.channels_first(dx) if conv.channels_first else dx)
        for_weight, for_bias = self.needs[1], any(self.needs[2:])
        if for_weight and for_bias:
            grads.extend(nd.conv_weight_bias_grad(x, dy, w.shape[0], *settings))
        elif for_weight:
            grads.append(nd.conv_weight_grad(x, dy, w.shape[0], *settings))
        elif for_bias:
            grads.append(dy.sum((0, 1, 2)))
        return tuple(grads)

    def plain(self, *args: Tensor) -> list[Tensor | None]:
        """The same in operations that are linear in each input, and quick to differentiate."""
        conv: Conv = self.op
        x, w, *_, dy = args
        if conv.channels_first:
            x, dy = permute(x, LAST), permute(dy, LAST)
        settings = conv.stride, conv.padding
        grads: list[Tensor | None] = []
        if self.needs[0]:
            dx = ConvInputGrad(x.shape, *settings)(dy, w)
            grads.append(permute(dx, FIRST) if conv.channels_first else dx)
        if self.needs[1]:
            grads.append(ConvWeightGrad(w.shape[0], *settings)(x, dy))
        grads.extend([summation(dy, (0, 1, 2)) for needed in self.needs[2:] if needed])
        return grads


class ConvInputGrad(TensorOp):
    """The gradient of conv for its input; linear in dy and in w, so its gradients are convs."""

    saves = (0, 1)

    def __init__(self, input_shape: Shape, stride: int, padding: int) -> None:
        self.input_shape = input_shape
        self.settings = stride, padding

    def infer(self, dy: Tensor, w: Tensor) -> Spec:
        return spec_of(self.input_shape, dy.dtype)

    def compute(self, dy: NDArray, w: NDArray) -> NDArray:
        return nd.conv_input_grad(dy, w, self.input_shape, *self.settings)

    def gradient(self, out_grad: Tensor, node: Tensor) -> tuple[Tensor, Tensor]:
        dy, w = node.inputs
        return (
            Conv(*self.settings)(out_grad, w),
            ConvWeightGrad(w.shape[0], *self.settings)(out_grad, dy),
        )


class ConvWeightGrad(TensorOp):
    """The gradient of conv for its weight; linear in x and in dy, so its gradients are convs."""

    saves = (0, 1)

    def __init__(self, kernel_size: int, stride: int, padding: int) -> None:
        self.kernel_size = kernel_size
        self.settings = stride, padding

    def infer(self, x: Tensor, dy: Tensor) -> Spec:
        return spec_of((self.kernel_size, self.kernel_size, x.shape[3], dy.shape[3]), x.dtype)

    def compute(self, x: NDArray, dy: NDArray) -> NDArray:
        return nd.conv_weight_grad(x, dy, self.kernel_size, *self.settings)

    def gradient(self, out_grad: Tensor, node: Tensor) -> tuple[Tensor, Tensor]:
        x, dy = node.inputs
        return (
            ConvInputGrad(x.shape, *self.settings)(dy, out_grad),
            Conv(*self.settings)(x, out_grad),
        )


def conv(
    a: Tensor,
    b: Tensor,
    stride: int = 1,
    padding: int = 0,
    bias: Tensor | None = None,
    channels_first: bool = False,
) -> Tensor:
    """Slides weight b over the images a and adds the bias; zeros lie around the images.

    Args:
        a: (N, H, W, C_in).
        b: (K, K, C_in, C_out).
        stride: pixels of `a` from one output pixel to the next.
        padding: zeros on every side of `a`.
        bias: (C_out,) or None.
        channels_first: a is (N, C_in, H, W) and the result (N, C_out, OH, OW), by their shapes; the
            result's memory has its channels last, which costs no copy between layers.

    Returns:
        (N, OH, OW, C_out), OH = (H + 2 * padding - K) // stride + 1.

    Raises:
        ShapeError: shapes, stride or padding do not fit.
        DTypeError: the dtypes differ or are not floats.
    """
    op = Conv(stride, padding, channels_first)
    return op(a, b) if bias is None else op(a, b, bias)
