"""The LSTM step and whole sequences against formulas in float64, gradients by differences."""

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


# ---- sequences ----------------------------------------------------------------------------------

# steps, batch, hidden
SEQUENCES = [(1, 1, 1), (2, 3, 5), (3, 2, 16), (2, 13, 33), (4, 20, 200), (0, 2, 3), (2, 0, 3)]
ACTIVATIONS = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0)}


def lstm_inputs(steps, batch, hidden):
    """pre, h0, c0, w_hh."""
    w = draw((hidden, 4 * hidden), 3, hidden**-0.5)
    return draw((steps, batch, 4 * hidden)), draw((batch, hidden), 1), draw((batch, hidden), 2), w


def rnn_inputs(steps, batch, hidden):
    """pre, h0, w_hh; the preactivations stay away from relu's kink."""
    pre = draw((steps, batch, hidden))
    w = draw((hidden, hidden), 3, 0.01 / hidden)
    return pre + 0.1 * np.sign(pre), draw((batch, hidden), 1), w


def lstm_steps(pre, h0, c0, w):
    """States and cells with the initial ones, and the gates."""
    hs, cs, gates = [h0], [c0], np.zeros_like(pre)
    for t, x in enumerate(pre):
        h, c, gates[t] = cell(x + hs[-1] @ w, cs[-1])
        hs.append(h)
        cs.append(c)
    return np.stack(hs), np.stack(cs), gates


def rnn_steps(pre, h0, w, activation):
    hs = [h0]
    for x in pre:
        hs.append(activation(x + hs[-1] @ w))
    return np.stack(hs)


def send(device, dtype, *arrays):
    return [nd.array(a, dtype=dtype, device=device) for a in arrays]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SEQUENCES, ids=str)
def test_lstm_sequence(device, shape, dtype):
    inputs = send(device, dtype, *lstm_inputs(*shape))
    want = lstm_steps(*wide(*inputs))
    # A step hands on the error of the last one, times |W_hh|; sums have `hidden` terms.
    bound = rounding(dtype, 40 + 4 * shape[2])
    for g, w in zip(nd.lstm_sequence(*inputs), want, strict=True):
        compare(g, w, dtype=dtype, atol=bound)
    pre, version = inputs[0], inputs[0]._handle.version
    got = nd.lstm_sequence(*inputs, overwrite_pre=True)
    assert got[2] is pre
    assert pre._handle.version == version + 1
    for g, w in zip(got, want, strict=True):
        compare(g, w, dtype=dtype, atol=bound)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SEQUENCES, ids=str)
def test_rnn_sequence(device, shape, dtype, nonlinearity):
    inputs = send(device, dtype, *rnn_inputs(*shape))
    want = rnn_steps(*wide(*inputs), ACTIVATIONS[nonlinearity])
    got = nd.rnn_sequence(*inputs, nonlinearity)
    compare(got, want, dtype=dtype, atol=rounding(dtype, 40 + 4 * shape[2]))


def slopes(loss, arrays):
    """The central differences of loss() for every entry of the arrays."""
    found = [np.zeros(a.shape) for a in arrays]
    for a, slope in zip(arrays, found, strict=True):
        for i in np.ndindex(a.shape):
            old = a[i]
            a[i] = old + 1e-6
            above = loss()
            a[i] = old - 1e-6
            slope[i] = (above - loss()) / 2e-6
            a[i] = old
    return found


@pytest.mark.parametrize("given", ["dy dh dc", "dy", "dh", "dc", ""])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 2)], ids=str)
def test_gradient_of_an_lstm_sequence(device, shape, given):
    steps, batch, hidden = shape
    inputs = lstm_inputs(*shape)
    weights = {"dy": draw((steps, batch, hidden), 5)}
    weights |= {name: draw((batch, hidden), seed) for name, seed in (("dh", 6), ("dc", 7))}
    grads = [weights[name] if name in given else None for name in ("dy", "dh", "dc")]

    def loss():
        states, cells, _ = lstm_steps(*inputs)
        terms = (states[1:], states[-1], cells[-1])
        return sum((a * d).sum() for a, d in zip(terms, grads, strict=True) if d is not None)

    want = slopes(loss, inputs[:3])
    _, cells, gates = nd.lstm_sequence(*send(device, "float64", *inputs))
    w = nd.array(inputs[3], dtype="float64", device=device)
    dy, dh, dc = (g if g is None else nd.array(g, dtype="float64", device=device) for g in grads)
    for got, expected in zip(nd.lstm_sequence_grad(dy, dh, dc, gates, cells, w), want, strict=True):
        compare(got, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("given", ["dy dh", "dy", "dh", ""])
def test_gradient_of_an_rnn_sequence(device, given, nonlinearity):
    inputs = rnn_inputs(3, 2, 2)
    weights = {"dy": draw((3, 2, 2), 5), "dh": draw((2, 2), 6)}
    grads = [weights[name] if name in given else None for name in ("dy", "dh")]

    def loss():
        states = rnn_steps(*inputs, ACTIVATIONS[nonlinearity])
        terms = (states[1:], states[-1])
        return sum((a * d).sum() for a, d in zip(terms, grads, strict=True) if d is not None)

    want = slopes(loss, inputs[:2])
    states = nd.rnn_sequence(*send(device, "float64", *inputs), nonlinearity)
    w = nd.array(inputs[2], dtype="float64", device=device)
    dy, dh = (g if g is None else nd.array(g, dtype="float64", device=device) for g in grads)
    for got, expected in zip(
        nd.rnn_sequence_grad(dy, dh, states, w, nonlinearity), want, strict=True
    ):
        compare(got, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("view", VIEWS)
def test_views_of_a_sequence(device, view):
    inputs = [make_view(view, a, device) for a in lstm_inputs(3, 2, 5)]
    states, cells, gates = nd.lstm_sequence(*inputs, overwrite_pre=False)
    for got, want in zip((states, cells, gates), lstm_steps(*wide(*inputs)), strict=True):
        compare(got, want, dtype="float32", atol=1e-6)
    _, h0, c0, w = inputs
    dy = make_view(view, draw((3, 2, 5), 5), device)
    got = nd.lstm_sequence_grad(dy, h0, c0, gates, cells, w)
    plain = [a.compact() for a in (dy, h0, c0)]
    want = nd.lstm_sequence_grad(*plain, gates, cells, w.compact())
    for g, e in zip(got, want, strict=True):
        compare(g, e.numpy(), atol=1e-6)


def test_a_view_is_not_overwritten_by_the_gates(device):
    """The kernel needs whole rows: gates get an array of their own."""
    pre, h0, c0, w = send(device, "float32", *lstm_inputs(3, 2, 5))
    turned = pre.flip(0)[::-1]
    _, _, gates = nd.lstm_sequence(turned, h0, c0, w, overwrite_pre=True)
    assert gates is not turned
    compare(turned, pre.numpy())


def test_sequence_errors(device):
    pre, h, w = (nd.zeros(s, device=device) for s in ((3, 2, 20), (2, 5), (5, 20)))
    c = nd.zeros((4, 2, 5), device=device)
    with pytest.raises(
        nd.ShapeError, match=r"lstm_sequence: pre .*axes: got \(2, 20\): need \(T, B, 4H\)"
    ):
        nd.lstm_sequence(pre[0], h, h, w)
    with pytest.raises(
        nd.ShapeError, match=r"w_hh has the wrong number of axes: got \(20,\): need"
    ):
        nd.lstm_sequence(pre, h, h, w[0])
    with pytest.raises(nd.ShapeError, match=r"w_hh does not fit: got \(5, 19\): need \(5, 20\)"):
        nd.lstm_sequence(pre, h, h, w[:, 1:])
    with pytest.raises(
        nd.ShapeError, match=r"pre does not fit: got \(3, 2, 19\): need \(3, 2, 20\)"
    ):
        nd.lstm_sequence(pre[:, :, 1:], h, h, w)
    with pytest.raises(nd.ShapeError, match=r"h0 does not fit: got \(1, 5\): need \(2, 5\)"):
        nd.lstm_sequence(pre, h[1:], h, w)
    with pytest.raises(nd.ShapeError, match=r"c0 does not fit: got \(2, 4\): need \(2, 5\)"):
        nd.lstm_sequence(pre, h, h[:, 1:], w)
    with pytest.raises(
        nd.DTypeError, match="lstm_sequence: dtypes do not fit: got float32, float64"
    ):
        nd.lstm_sequence(pre, h.astype("float64"), h, w)
    grad = nd.lstm_sequence_grad
    with pytest.raises(
        nd.ShapeError, match=r"cells does not fit: got \(3, 2, 5\): need \(4, 2, 5\)"
    ):
        grad(None, None, None, pre, c[1:], w)
    with pytest.raises(nd.ShapeError, match=r"dy does not fit: got \(4, 2, 5\): need \(3, 2, 5\)"):
        grad(c, None, None, pre, c, w)
    with pytest.raises(nd.ShapeError, match=r"dh does not fit: got \(1, 5\): need \(2, 5\)"):
        grad(None, h[1:], None, pre, c, w)
    with pytest.raises(nd.ShapeError, match=r"dc does not fit: got \(1, 5\): need \(2, 5\)"):
        grad(None, None, h[1:], pre, c, w)
    square = nd.zeros((5, 5), device=device)
    with pytest.raises(ValueError, match="rnn_sequence: unknown nonlinearity: got 'sigmoid': need"):
        nd.rnn_sequence(c, h, square, "sigmoid")
    with pytest.raises(nd.ShapeError, match=r"rnn_sequence: h0 does not fit: got \(1, 5\): need"):
        nd.rnn_sequence(c, h[1:], square)
    with pytest.raises(nd.ShapeError, match=r"dy does not fit: got \(4, 2, 5\): need \(3, 2, 5\)"):
        nd.rnn_sequence_grad(c, None, c, square)
    with pytest.raises(
        nd.ShapeError, match=r"states does not fit: got \(4, 2, 4\): need \(4, 2, 5\)"
    ):
        nd.rnn_sequence_grad(None, None, c[:, :, 1:], square)
    with pytest.raises(
        nd.ShapeError, match=r"rnn_sequence_grad: dh does not fit: got \(1, 5\): need"
    ):
        nd.rnn_sequence_grad(None, h[1:], c, square)


def test_gates_that_would_overwrite_what_is_read(device):
    pre, w_hh = draw((4, 5, 24)), draw((6, 24), 1)
    want = nd.lstm_sequence(*send(device, "float32", pre, pre[2, :, :6], pre[3, :, 6:12], w_hh))
    own, weights = send(device, "float32", pre, w_hh)
    got = nd.lstm_sequence(own, own[2][:, :6], own[3][:, 6:12], weights, True)
    for g, w in zip(got, want, strict=True):
        assert (g.numpy() == w.numpy()).all()
    want = nd.lstm_cell(*send(device, "float32", pre[0], pre[0, :, 6:12]))
    (own,) = send(device, "float32", pre[0])
    for g, w in zip(nd.lstm_cell(own, own[:, 6:12], True), want, strict=True):
        assert (g.numpy() == w.numpy()).all()


def test_relu_of_a_recurrence_keeps_nan(device):
    pre, h0, w = send(device, "float32", draw((3, 2, 5)), draw((2, 5), 1), draw((5, 5), 2))
    pre[0, 0, 0] = float("nan")
    states = nd.rnn_sequence(pre, h0, w, "relu").numpy()
    assert np.isnan(states[1, 0, 0])
    assert np.isnan(states[2:, 0]).all()
