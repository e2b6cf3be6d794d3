"""NumPy twins of batch and layer normalisation: x is (N, C) or (N, C, H, W), and (R, D).

Both shift and scale with the biased variance:

    xhat = (x - mean) / sqrt(var + eps)        y = weight * xhat + bias

Source: Ioffe and Szegedy 2015 (batch), section 3; Ba, Kiros and Hinton 2016 (layer), section 3.
"""

from __future__ import annotations

import numpy as np

from needle.backend_ndarray.reference.types import Array


def batch_axes(x: Array) -> tuple[int, ...]:
    """The axes that batch normalisation averages over: all but the channels."""
    return 0, *range(2, x.ndim)


def per_channel(v: Array, x: Array) -> Array:
    """(C,) shown as (C, 1, 1) where x has height and width: it broadcasts against x."""
    return v.reshape(-1, *(1,) * (x.ndim - 2))


def batch_norm(
    y: Array,
    mean: Array,
    var: Array,
    x: Array,
    weight: Array,
    bias: Array,
    eps: float,
    relu: float,
) -> None:
    """mean, var = over batch, height and width; y as in batch_norm_eval."""
    # Averages are taken in float64: a sum over a batch would lose float32's last digits.
    axes = batch_axes(x)
    mean[...] = x.mean(axis=axes, dtype=np.float64)
    var[...] = x.var(axis=axes, dtype=np.float64)
    batch_norm_eval(y, x, mean, var, weight, bias, eps, relu)


def batch_norm_eval(
    y: Array,
    x: Array,
    mean: Array,
    var: Array,
    weight: Array,
    bias: Array,
    eps: float,
    relu: float,
) -> None:
    """y = weight * xhat + bias with given mean and variance, then max(y, 0) with `relu`."""
    scale = weight / np.sqrt(var + eps)
    result = (x - per_channel(mean, x)) * per_channel(scale, x) + per_channel(bias, x)
    y[...] = np.maximum(result, 0) if relu else result


def batch_norm_grad(
    dx: Array,
    dweight: Array,
    dbias: Array,
    dy: Array,
    x: Array,
    y: Array | None,
    mean: Array,
    var: Array,
    weight: Array,
    eps: float,
    relu: float,
) -> None:
    """The gradients of batch_norm; mean and var depend on x. With `relu`, dy counts where y > 0.

    dx = weight / sqrt(var + eps) * (dy - mean(dy) - xhat * mean(dy * xhat))
    """
    axes = batch_axes(x)
    if relu and y is not None:
        dy = np.where(y > 0, dy, 0)
    inverse = 1 / np.sqrt(var + eps)
    xhat = (x - per_channel(mean, x)) * per_channel(inverse, x)
    dweight[...] = (dy * xhat).sum(axis=axes, dtype=np.float64)
    dbias[...] = dy.sum(axis=axes, dtype=np.float64)
    count = x.size // max(x.shape[1], 1)
    if count:
        centred = dy - per_channel(dbias / count, x) - xhat * per_channel(dweight / count, x)
        dx[...] = per_channel(weight * inverse, x) * centred


def layer_norm(
    y: Array, mean: Array, var: Array, x: Array, weight: Array, bias: Array, eps: float
) -> None:
    """mean (R,), var (R,) = over each row; y = weight * xhat + bias."""
    mean[...] = x.mean(axis=1, dtype=np.float64)
    var[...] = x.var(axis=1, dtype=np.float64)
    y[...] = (x - mean[:, None]) / np.sqrt(var + eps)[:, None] * weight + bias


def layer_norm_grad(
    dx: Array,
    dweight: Array,
    dbias: Array,
    dy: Array,
    x: Array,
    mean: Array,
    var: Array,
    weight: Array,
    eps: float,
) -> None:
    """The gradients of layer_norm; mean and var depend on x.

    dx = (g - mean(g) - xhat * mean(g * xhat)) / sqrt(var + eps) with g = dy * weight, row by row
    """
    inverse = (1 / np.sqrt(var + eps))[:, None]
    xhat = (x - mean[:, None]) * inverse
    dweight[...] = (dy * xhat).sum(axis=0, dtype=np.float64)
    dbias[...] = dy.sum(axis=0, dtype=np.float64)
    if x.shape[1]:
        g = dy * weight
        along = (g * xhat).mean(axis=1, keepdims=True)
        dx[...] = (g - g.mean(axis=1, keepdims=True) - xhat * along) * inverse
