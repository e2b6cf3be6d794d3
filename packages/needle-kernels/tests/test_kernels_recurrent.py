"""The LSTM step against formulas in float64, its gradient by finite differences."""

import numpy as np
import pytest
from scipy.special import expit

from needle import backend_ndarray as nd
from needle.backend_ndarray.testing import VIEWS, compare, make_view, rounding

SHAPES = [(1, 1), (2, 7), (3, 8), (4, 9), (2, 15), (3, 16), (2, 17), (5, 33), (20, 200), (0, 4)]


def draw(shape, seed=0, spread=2.0):
    return np.random.default_rng(seed).uniform(-spread, spread, shape)


def cell(pre, c_prev):
    i, f, g, o = np.split(pre, 4, axis=1)
    i, f, g, o = expit(i), expit(f), np.tanh(g), expit(o)
    c = f * c_prev + i * g
    return o * np.tanh(c), c, np.concatenate((i, f, g, o), axis=1)


def wide(*arrays):
    return [a.numpy().astype(np.float64) for a in arrays]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(device, shape, dtype):
    batch, hidden = shape
    pre = nd.array(draw((batch, 4 * hidden)), dtype=dtype, device=device)
    c_prev = nd.array(draw(shape, 1), dtype=dtype, device=device)
    want = cell(*wide(pre, c_prev))
    for got, w in zip(nd.lstm_cell(pre, c_prev), want, strict=True):
        compare(got, w, dtype=dtype, atol=rounding(dtype, 40))
    version = pre._handle.version
    h, c, gates = nd.lstm_cell(pre, c_prev, overwrite_pre=True)
    assert gates is pre
    assert pre._handle.version == version + 1
    for got, w in zip((h, c, gates), want, strict=True):
        compare(got, w, dtype=dtype, atol=rounding(dtype, 40))


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (2, 17)], ids=str)
def test_gradient(device, shape):
    batch, hidden = shape
    pre, c_prev = draw((batch, 4 * hidden)), draw(shape, 1)
    dh, dc = draw(shape, 2), draw(shape, 3)
    a, b, c, d = (nd.array(v, dtype="float64", device=device) for v in (pre, c_prev, dh, dc))
    _, cell_state, gates = nd.lstm_cell(a, b)
    got = nd.lstm_cell_grad(c, d, gates, cell_state, b)

    def loss():
        h, c, _ = cell(pre, c_prev)
        return (h * dh + c * dc).sum()

    for g, v in zip(got, (pre, c_prev), strict=True):
        want = np.zeros(v.shape)
        for i in np.ndindex(v.shape):
            old = v[i]
            v[i] = old + 1e-6
            above = loss()
            v[i] = old - 1e-6
            want[i] = (above - loss()) / 2e-6
            v[i] = old
        compare(g, want, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_in_float32_matches_float64(device, shape):
    results = []
    for dtype in ("float32", "float64"):
        pre = nd.array(draw((shape[0], 4 * shape[1])), dtype="float32", device=device).astype(dtype)
        c_prev, dh, dc = (
            nd.array(draw(shape, s), dtype="float32", device=device).astype(dtype)
            for s in (1, 2, 3)
        )
        _, c, gates = nd.lstm_cell(pre, c_prev)
        results.append(nd.lstm_cell_grad(dh, dc, gates, c, c_prev))
    for g, w in zip(*results, strict=True):
        compare(g, w.numpy(), dtype="float32", atol=1e-5)


@pytest.mark.parametrize("view", VIEWS)
def test_views(device, view):
    pre = make_view(view, draw((3, 20)), device)
    c_prev, dh, dc = (make_view(view, draw((3, 5), s), device) for s in (1, 2, 3))
    h, c, gates = nd.lstm_cell(pre, c_prev)
    for got, want in zip((h, c, gates), cell(*wide(pre, c_prev)), strict=True):
        compare(got, want, dtype="float32", atol=1e-6)
    got = nd.lstm_cell_grad(dh, dc, gates, c, c_prev)
    want = nd.lstm_cell_grad(dh.compact(), dc.compact(), gates, c, c_prev.compact())
    for g, w in zip(got, want, strict=True):
        compare(g, w.numpy(), atol=1e-6)


def test_errors(device):
    c = nd.zeros((2, 3), device=device)
    with pytest.raises(nd.ShapeError, match=r"pre does not fit: got \(2, 9\) .* need \(2, 12\)"):
        nd.lstm_cell(nd.zeros((2, 9), device=device), c)
    with pytest.raises(nd.ShapeError, match=r"c_prev has the wrong number of axes: got \(3,\)"):
        nd.lstm_cell(nd.zeros((2, 12), device=device), c[0])
    gates = nd.zeros((2, 12), device=device)
    with pytest.raises(nd.ShapeError, match=r"lstm_cell_grad: dc does not fit: got \(2,\)"):
        nd.lstm_cell_grad(c, c[:, 0], gates, c, c)
    with pytest.raises(nd.DTypeError, match="lstm_cell: dtypes do not fit: got float32, float64"):
        nd.lstm_cell(gates, c.astype("float64"))
