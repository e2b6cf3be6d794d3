"""Batch and layer normalisation, forwards and backwards, one kernel each."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from needle.backend_ndarray.checks import check_floats, check_shape
from needle.backend_ndarray.devices import Device
from needle.backend_ndarray.dtypes import DType
from needle.backend_ndarray.errors import ShapeError
from needle.backend_ndarray.extension import KERNEL
from needle.backend_ndarray.layout import Shape
from needle.backend_ndarray.ndarray import NDArray, as_flat, as_rows, empty_as, new

__all__ = ["batch_norm", "batch_norm_eval", "batch_norm_grad", "layer_norm", "layer_norm_grad"]

_BATCH_NORM: Final = KERNEL["batch_norm"]
_BATCH_NORM_EVAL: Final = KERNEL["batch_norm_eval"]
_BATCH_NORM_GRAD: Final = KERNEL["batch_norm_grad"]
_LAYER_NORM: Final = KERNEL["layer_norm"]
_LAYER_NORM_GRAD: Final = KERNEL["layer_norm_grad"]


def batch_norm(
    x: NDArray, weight: NDArray, bias: NDArray, eps: float, relu: bool = False
) -> tuple[NDArray, NDArray, NDArray]:
    """y = weight * (x - mean) / sqrt(var + eps) + bias over batch and pixels, and mean and var.

    Args:
        x: (N, C) or (N, C, H, W); y keeps its shape and memory order.
        weight: (C,).
        bias: (C,).
        eps: added to the variance.
        relu: y = max(y, 0).

    Returns:
        y, mean (C,), var (C,); the variance is biased.

    Raises:
        ShapeError: shapes do not fit, or a channel has no element to average.
        DTypeError: the dtypes differ or are not floats.
    """
    device, dtype = _check_batch("batch_norm", x, weight, bias)
    channels = weight._shape
    y, mean, var = empty_as(x), new(device, channels, dtype), new(device, channels, dtype)
    operands = y, mean, var, x, weight, bias
    device.launch(_BATCH_NORM, operands, (eps, float(relu)))
    return y, mean, var


def batch_norm_eval(
    x: NDArray,
    mean: NDArray,
    var: NDArray,
    weight: NDArray,
    bias: NDArray,
    eps: float,
    relu: bool = False,
) -> NDArray:
    """batch_norm with a given mean and variance, (C,) each.

    Raises:
        ShapeError: shapes do not fit.
        DTypeError: the dtypes differ or are not floats.
    """
    op = "batch_norm_eval"
    device, _ = _check_batch(op, x, mean, var, weight, bias)
    y = empty_as(x)
    operands = y, x, mean, var, weight, bias
    device.launch(_BATCH_NORM_EVAL, operands, (eps, float(relu)))
    return y


def batch_norm_grad(
    dy: NDArray,
    x: NDArray,
    y: NDArray | None,
    mean: NDArray,
    var: NDArray,
    weight: NDArray,
    eps: float,
    relu: bool = False,
) -> tuple[NDArray, NDArray, NDArray]:
    """The gradients (dx, dweight, dbias) of batch_norm, mean and var being functions of x.

    With `relu`, dy counts where y > 0; without, y may be None.

    Raises:
        ShapeError: shapes do not fit, or relu is asked for without y.
        DTypeError: the dtypes differ or are not floats.
    """
    op = "batch_norm_grad"
    device, dtype = _check_batch(op, x, mean, var, weight)
    check_floats(op, "x, dy, y", x, dy, x if y is None else y)
    check_shape(op, "dy", dy, x._shape)
    check_shape(op, "y", y, x._shape)
    if relu and y is None:
        raise ShapeError(f"{op}: y is missing: got relu without y: pass the forward result")
    channels = weight._shape
    dx, dweight, dbias = empty_as(x), new(device, channels, dtype), new(device, channels, dtype)
    operands = dx, dweight, dbias, dy, x, y, mean, var, weight
    device.launch(_BATCH_NORM_GRAD, operands, (eps, float(relu)))
    return dx, dweight, dbias


def _check_batch(op: str, x: NDArray, *per_channel: NDArray) -> tuple[Device, DType]:
    kind = check_floats(op, _NAMES[op], x, *per_channel)
    _check_channels(op, x._shape, tuple([array._shape for array in per_channel]))
    return kind


_NAMES: Final = {
    "batch_norm": "x, weight, bias",
    "batch_norm_eval": "x, mean, var, weight, bias",
    "batch_norm_grad": "x, mean, var, weight",
}


@lru_cache(4096)
def _check_channels(op: str, x: Shape, per_channel: tuple[Shape, ...]) -> None:
    if len(x) not in (2, 4):
        raise ShapeError(
            f"{op}: x has the wrong number of axes: got {x}: need (N, C) or (N, C, H, W)"
        )
    for name, shape in zip(_NAMES[op].split(", ")[1:], per_channel, strict=True):
        if shape != x[1:2]:
            raise ShapeError(f"{op}: {name} does not fit: got {shape}: need {x[1:2]}")
    if op != "batch_norm_eval" and 0 in x[:1] + x[2:]:
        raise ShapeError(f"{op}: nothing to average: got {x}: need at least one element")


def layer_norm(
    x: NDArray, weight: NDArray, bias: NDArray, eps: float
) -> tuple[NDArray, NDArray, NDArray]:
    """y = weight * (x - mean) / sqrt(var + eps) + bias over the last axis, and mean and var.

    Args:
        x: (..., D).
        weight: (D,).
        bias: (D,).
        eps: added to the variance.

    Returns:
        y (..., D), mean (...), var (...); the variance is biased.

    Raises:
        ShapeError: shapes do not fit.
        DTypeError: the dtypes differ or are not floats.
    """
    device, dtype = check_floats("layer_norm", "x, weight, bias", x, weight, bias)
    _check_features("layer_norm", x, weight)
    check_shape("layer_norm", "bias", bias, weight._shape)
    lead = x._shape[:-1]
    y, mean, var = new(device, x._shape, dtype), new(device, lead, dtype), new(device, lead, dtype)
    operands = as_rows(y), as_flat(mean), as_flat(var), as_rows(x), weight, bias
    device.launch(_LAYER_NORM, operands, (eps,))
    return y, mean, var


def layer_norm_grad(
    dy: NDArray, x: NDArray, mean: NDArray, var: NDArray, weight: NDArray, eps: float
) -> tuple[NDArray, NDArray, NDArray]:
    """The gradients (dx, dweight, dbias) of layer_norm, mean and var being functions of x.

    Raises:
        ShapeError: shapes do not fit.
        DTypeError: the dtypes differ or are not floats.
    """
    op = "layer_norm_grad"
    names = "dy, x, mean, var, weight"
    device, dtype = check_floats(op, names, dy, x, mean, var, weight)
    _check_features(op, x, weight)
    check_shape(op, "dy", dy, x._shape)
    check_shape(op, "mean", mean, x._shape[:-1])
    check_shape(op, "var", var, x._shape[:-1])
    features = x._shape[-1:]
    dx = new(device, x._shape, dtype)
    dweight, dbias = new(device, features, dtype), new(device, features, dtype)
    operands = (
        as_rows(dx),
        dweight,
        dbias,
        as_rows(dy),
        as_rows(x),
        as_flat(mean),
        as_flat(var),
        weight,
    )
    device.launch(_LAYER_NORM_GRAD, operands, (eps,))
    return dx, dweight, dbias


def _check_features(op: str, x: NDArray, weight: NDArray) -> None:
    features = x._shape[-1:]
    if not features or not features[0]:
        raise ShapeError(f"{op}: nothing to average: got {x._shape}: need (..., D) with D >= 1")
    check_shape(op, "weight", weight, features)
