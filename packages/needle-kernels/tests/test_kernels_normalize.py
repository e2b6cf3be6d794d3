"""Batch and layer normalisation against formulas in float64; gradients by finite differences."""

import numpy as np
import pytest

from needle import backend_ndarray as nd
from needle.backend_ndarray.testing import VIEWS, compare, make_view

EPS = 1e-5
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}
BATCH_SHAPES = [
    (1, 1), (2, 1), (3, 17), (64, 5), (2, 3, 1, 1), (2, 3, 4, 5), (4, 16, 3, 3), (1, 2, 7, 9),
    (3, 33, 8, 8), (130, 4),
]  # fmt: skip
LAYER_SHAPES = [(1, 1), (1, 7), (3, 8), (4, 9), (2, 16), (5, 17), (3, 33), (2, 1000), (0, 4)]


def draw(shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape) * 2 + 0.5


def batch_norm_oracle(x, weight, bias, relu=False, mean=None, var=None):
    axes = (0, 2, 3)[: x.ndim - 1] if x.ndim == 4 else (0,)
    show = (1, -1) + (1,) * (x.ndim - 2)
    mean = x.mean(axes) if mean is None else mean
    var = x.var(axes) if var is None else var
    y = (x - mean.reshape(show)) / np.sqrt(var.reshape(show) + EPS)
    y = y * weight.reshape(show) + bias.reshape(show)
    return (np.maximum(y, 0) if relu else y), mean, var


def layer_norm_oracle(x, weight, bias):
    mean, var = x.mean(-1), x.var(-1)
    return (x - mean[..., None]) / np.sqrt(var + EPS)[..., None] * weight + bias, mean, var


def numeric_gradient(f, v, step=1e-6):
    """The gradient of a scalar function by central differences, entry by entry."""
    grad = np.zeros(v.shape)
    for i in np.ndindex(v.shape):
        old = v[i]
        v[i] = old + step
        above = f()
        v[i] = old - step
        below = f()
        v[i] = old
        grad[i] = (above - below) / (2 * step)
    return grad


def parameters(channels, dtype, device):
    weight = nd.array(draw(channels, 1), dtype=dtype, device=device)
    bias = nd.array(draw(channels, 2), dtype=dtype, device=device)
    return weight, bias


def wide(*arrays):
    return [a.numpy().astype(np.float64) for a in arrays]


def repeated(a, times, order, dtype, device):
    """(N, ...) so many times over; maps (N, C, H, W) in one of two memory orders."""
    if order == "nchw":
        return nd.array(np.concatenate([a] * times), dtype=dtype, device=device)
    last = np.concatenate([a.transpose(0, 2, 3, 1)] * times)
    return nd.array(last, dtype=dtype, device=device).permute((0, 3, 1, 2))


@pytest.mark.parametrize("order", ["nchw", "nhwc"])
@pytest.mark.parametrize("shape", [(8, 64, 14, 14), (8, 66, 13, 15)], ids=str)
def test_batch_norm_beyond_caches(device, shape, order):
    """Over 24 MB: results are written past the caches. A repeated batch has the same statistics."""
    times = 24_000_000 // (4 * np.prod(shape)) + 9
    small, small_dy = draw(shape), draw(shape, 3)
    x, dy = (repeated(a, times, order, "float32", device) for a in (small, small_dy))
    weight, bias = parameters(shape[1], "float32", device)
    y, mean, var = nd.batch_norm(x, weight, bias, EPS)
    for got in (y, nd.batch_norm_eval(x, mean, var, weight, bias, EPS)):
        want = batch_norm_oracle(small, *wide(weight, bias))[0]
        compare(got, np.concatenate([want] * times), dtype="float32", atol=2e-4)

    exact = [nd.array(a, dtype="float64", device=device) for a in (small_dy, small)]
    rest = [nd.array(a.numpy(), dtype="float64", device=device) for a in (mean, var, weight)]
    want_dx, want_dw, want_db = wide(*nd.batch_norm_grad(*exact, None, *rest, EPS))
    dx, dw, db = nd.batch_norm_grad(dy, x, None, mean, var, weight, EPS)
    compare(dx, np.concatenate([want_dx] * times), dtype="float32", atol=2e-4)
    compare(dw, want_dw * times, dtype="float32", atol=2.0, rtol=1e-4)
    compare(db, want_db * times, dtype="float32", atol=2.0, rtol=1e-4)


@pytest.mark.parametrize("shape", [(500, 1024), (500, 1029)], ids=str)
def test_layer_norm_beyond_caches(device, shape):
    times = 24_000_000 // (4 * np.prod(shape)) + 2
    small, small_dy = draw(shape), draw(shape, 3)
    x, dy = (repeated(a, times, "nchw", "float32", device) for a in (small, small_dy))
    weight, bias = parameters(shape[1], "float32", device)
    y, mean, var = nd.layer_norm(x, weight, bias, EPS)
    want, want_mean, want_var = layer_norm_oracle(small, *wide(weight, bias))
    compare(y, np.concatenate([want] * times), dtype="float32", atol=2e-4)

    exact = (small_dy, small, want_mean, want_var)
    exact = [nd.array(a, dtype="float64", device=device) for a in (*exact, weight.numpy())]
    want_dx = wide(nd.layer_norm_grad(*exact, EPS)[0])[0]
    dx = nd.layer_norm_grad(dy, x, mean, var, weight, EPS)[0]
    compare(dx, np.concatenate([want_dx] * times), dtype="float32", atol=2e-4)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", BATCH_SHAPES, ids=str)
def test_batch_norm(device, shape, dtype, relu):
    x = nd.array(draw(shape), dtype=dtype, device=device)
    weight, bias = parameters(shape[1], dtype, device)
    got = nd.batch_norm(x, weight, bias, EPS, relu)
    for g, w in zip(got, batch_norm_oracle(*wide(x, weight, bias), relu), strict=True):
        compare(g, w, dtype=dtype, atol=TOLERANCE[dtype] * 10)
    mean, var = got[1] + 0.25, got[2] + 0.5
    want = batch_norm_oracle(*wide(x, weight, bias), relu, *wide(mean, var))[0]
    compare(
        nd.batch_norm_eval(x, mean, var, weight, bias, EPS, relu),
        want,
        dtype=dtype,
        atol=TOLERANCE[dtype] * 10,
    )


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 5, 6)], ids=str)
def test_batch_norm_views(device, view, shape):
    x = make_view(view, draw(shape), device)
    weight = make_view(view, draw(shape[1], 1), device)
    bias = make_view(view, draw(shape[1], 2), device)
    got = nd.batch_norm(x, weight, bias, EPS)
    for g, w in zip(got, batch_norm_oracle(*wide(x, weight, bias)), strict=True):
        compare(g, w, dtype="float32", atol=1e-4)
    dy = make_view(view, draw(shape, 3), device)
    y, mean, var = got
    compact = [a.compact() for a in (dy, x, y, mean, var, weight)]
    for g, w in zip(
        nd.batch_norm_grad(dy, x, y, mean, var, weight, EPS, True),
        nd.batch_norm_grad(*compact, EPS, True),
        strict=True,
    ):
        compare(g, w.numpy(), atol=1e-4, rtol=1e-4)


def test_batch_norm_keeps_channels_last(device):
    x = nd.array(draw((2, 5, 6, 16)), dtype="float32", device=device).permute(0, 3, 1, 2)
    weight, bias = parameters(16, "float32", device)
    y, mean, var = nd.batch_norm(x, weight, bias, EPS)
    assert y.strides == x.strides
    compare(y, batch_norm_oracle(*wide(x, weight, bias))[0], dtype="float32", atol=1e-4)
    dx, _, _ = nd.batch_norm_grad(y, x, None, mean, var, weight, EPS)
    assert dx.strides == x.strides


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 2, 3), (3, 17, 1, 2)], ids=str)
def test_batch_norm_gradient(device, shape, relu):
    x = nd.array(draw(shape), dtype="float64", device=device)
    weight, bias = parameters(shape[1], "float64", device)
    dy = nd.array(draw(shape, 3), dtype="float64", device=device)
    y, mean, var = nd.batch_norm(x, weight, bias, EPS, relu)
    got = nd.batch_norm_grad(dy, x, y if relu else None, mean, var, weight, EPS, relu)
    values = wide(x, weight, bias)
    scale = dy.numpy()
    for g, v in zip(got, values, strict=True):
        want = numeric_gradient(lambda: (batch_norm_oracle(*values, relu)[0] * scale).sum(), v)
        compare(g, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", BATCH_SHAPES, ids=str)
def test_batch_norm_gradient_in_float32_matches_float64(device, shape, relu):
    weight, bias = parameters(shape[1], "float32", device)
    results = []
    for dtype in ("float32", "float64"):
        x, dy, w, b = (
            a.astype(dtype)
            for a in (
                nd.array(draw(shape), dtype="float32", device=device),
                nd.array(draw(shape, 3), dtype="float32", device=device),
                weight,
                bias,
            )
        )
        y, mean, var = nd.batch_norm(x, w, b, EPS, relu)
        results.append(nd.batch_norm_grad(dy, x, y, mean, var, w, EPS, relu))
    spread = max(1.0, float(np.prod(shape)) / shape[1]) ** 0.5
    # with one element per channel var is 0 and 1 / sqrt(eps) = 316 magnifies every rounding
    alone = 300 if np.prod(shape) == shape[1] else 1
    for g, w in zip(*results, strict=True):
        compare(g, w.numpy(), dtype="float32", rtol=1e-3, atol=2e-5 * spread * alone)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", LAYER_SHAPES, ids=str)
def test_layer_norm(device, shape, dtype):
    x = nd.array(draw(shape), dtype=dtype, device=device)
    weight, bias = parameters(shape[1], dtype, device)
    got = nd.layer_norm(x, weight, bias, EPS)
    for g, w in zip(got, layer_norm_oracle(*wide(x, weight, bias)), strict=True):
        compare(g, w, dtype=dtype, atol=TOLERANCE[dtype] * 10)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 17)], ids=str)
def test_layer_norm_views_and_axes(device, view, shape):
    x = make_view(view, draw(shape), device)
    weight, bias = (make_view(view, draw(shape[-1], s), device) for s in (1, 2))
    got = nd.layer_norm(x, weight, bias, EPS)
    for g, w in zip(got, layer_norm_oracle(*wide(x, weight, bias)), strict=True):
        compare(g, w, dtype="float32", atol=1e-4)
    dy = make_view(view, draw(shape, 3), device)
    compact = [a.compact() for a in (dy, x, *got[1:], weight)]
    for g, w in zip(
        nd.layer_norm_grad(dy, x, *got[1:], weight, EPS),
        nd.layer_norm_grad(*compact, EPS),
        strict=True,
    ):
        compare(g, w.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 2), (3, 5), (2, 17)], ids=str)
def test_layer_norm_gradient(device, shape):
    x = nd.array(draw(shape), dtype="float64", device=device)
    weight, bias = parameters(shape[1], "float64", device)
    dy = nd.array(draw(shape, 3), dtype="float64", device=device)
    _, mean, var = nd.layer_norm(x, weight, bias, EPS)
    got = nd.layer_norm_grad(dy, x, mean, var, weight, EPS)
    values = wide(x, weight, bias)
    scale = dy.numpy()
    for g, v in zip(got, values, strict=True):
        want = numeric_gradient(lambda: (layer_norm_oracle(*values)[0] * scale).sum(), v)
        compare(g, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [s for s in LAYER_SHAPES if s != (1, 1)], ids=str)
def test_layer_norm_gradient_in_float32_matches_float64(device, shape):
    weight, bias = parameters(shape[1], "float32", device)
    results = []
    for dtype in ("float32", "float64"):
        x = nd.array(draw(shape), dtype="float32", device=device).astype(dtype)
        dy = nd.array(draw(shape, 3), dtype="float32", device=device).astype(dtype)
        _, mean, var = nd.layer_norm(x, weight.astype(dtype), bias.astype(dtype), EPS)
        results.append(nd.layer_norm_grad(dy, x, mean, var, weight.astype(dtype), EPS))
    for g, w in zip(*results, strict=True):
        compare(g, w.numpy(), dtype="float32", rtol=1e-3, atol=1e-4)


def test_a_shifted_batch_keeps_its_variance(device):
    """mean(x^2) - mean^2 would lose every digit of the variance here."""
    values = np.float32(1000) + draw((64, 3)).astype(np.float32)
    x = nd.array(values, dtype="float32", device=device)
    one, zero = nd.ones((3,), device=device), nd.zeros((3,), device=device)
    _, _, var = nd.batch_norm(x, one, zero, EPS)
    compare(var, values.astype(np.float64).var(0), dtype="float32", rtol=1e-3)
    _, _, var = nd.layer_norm(x.permute(1, 0), nd.ones((64,), device=device), x[:, 0], EPS)
    compare(var, values.astype(np.float64).var(0), dtype="float32", rtol=1e-3)


def test_errors(device):
    x = nd.ones((2, 3), device=device)
    one, two = nd.ones((3,), device=device), nd.ones((2,), device=device)
    with pytest.raises(
        nd.ShapeError, match=r"batch_norm: weight does not fit: got \(2,\): need \(3"
    ):
        nd.batch_norm(x, two, one, EPS)
    with pytest.raises(
        nd.ShapeError, match=r"batch_norm: x has the wrong number of axes: got \(3,"
    ):
        nd.batch_norm(x[0], one, one, EPS)
    with pytest.raises(nd.ShapeError, match=r"batch_norm: nothing to average: got \(0, 3\)"):
        nd.batch_norm(x[:0], one, one, EPS)
    with pytest.raises(nd.DTypeError, match="batch_norm: dtypes do not fit: got float32, float64"):
        nd.batch_norm(x, one.astype("float64"), one, EPS)
    with pytest.raises(nd.ShapeError, match=r"batch_norm_eval: var does not fit: got \(2,\)"):
        nd.batch_norm_eval(x, one, two, one, one, EPS)
    with pytest.raises(nd.ShapeError, match=r"batch_norm_grad: dy does not fit: got \(3,\)"):
        nd.batch_norm_grad(one, x, None, one, one, one, EPS)
    with pytest.raises(nd.ShapeError, match="batch_norm_grad: y is missing: got relu without y"):
        nd.batch_norm_grad(x, x, None, one, one, one, EPS, relu=True)
    with pytest.raises(nd.ShapeError, match=r"layer_norm: nothing to average: got \(2, 0\)"):
        nd.layer_norm(x[:, :0], one, one, EPS)
    with pytest.raises(nd.ShapeError, match=r"layer_norm: bias does not fit: got \(2,\)"):
        nd.layer_norm(x, one, two, EPS)
    with pytest.raises(nd.ShapeError, match=r"layer_norm_grad: mean does not fit: got \(3,\)"):
        nd.layer_norm_grad(x, x, one, two, one, EPS)
