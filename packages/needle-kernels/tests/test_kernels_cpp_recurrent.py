"""The C++ recurrent kernels against formulas in long double, on every instruction set."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cpp_call import FLOATS, LAYOUTS, blank, check, cpu, eps, isa, launch, lay, threads, written

__all__ = ["isa", "threads"]

Array = npt.NDArray[Any]

WIDE = np.longdouble
SHAPES = [
    (1, 1),
    (2, 3),
    (3, 4),
    (2, 5),
    (1, 7),
    (4, 8),
    (2, 9),
    (3, 15),
    (2, 16),
    (5, 17),
    (20, 200),
]


def sigmoid(x: Array) -> Array:
    result: Array = 1 / (1 + np.exp(-x))
    return result


def cell_formula(pre: Array, c_prev: Array) -> tuple[Array, Array, Array]:
    i, f, g, o = np.split(pre.astype(WIDE), 4, axis=1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c = f * c_prev + i * g
    return o * np.tanh(c), c, np.concatenate((i, f, g, o), axis=1)


def draw(shape: tuple[int, int], dtype: str, scale: float = 2.0) -> tuple[Array, Array]:
    rng = np.random.default_rng(sum(shape))
    pre = (rng.standard_normal((shape[0], 4 * shape[1])) * scale).astype(dtype)
    return pre, rng.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_cell(isa: str, shape: tuple[int, int], layout: str, dtype: str) -> None:
    pre, c_prev = draw(shape, dtype)
    h, c, gates = (
        blank(shape, layout, dtype),
        blank(shape, layout, dtype),
        blank(pre.shape, layout, dtype),
    )
    launch("lstm_cell", h, c, gates, lay(pre, layout), lay(c_prev, layout))
    for got, want in zip((h, c, gates), cell_formula(pre, c_prev), strict=True):
        check(written(got), want, rtol=4 * eps(dtype), atol=4 * eps(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gates_may_be_pre(isa: str, threads: int, layout: str, dtype: str) -> None:
    pre, c_prev = draw((40, 37), dtype)
    same = lay(pre, layout)
    h, c = np.empty_like(c_prev), np.empty_like(c_prev)
    launch("lstm_cell", h, c, same, same, c_prev)
    for got, want in zip((h, c, same), cell_formula(pre, c_prev), strict=True):
        check(got, want, rtol=4 * eps(dtype), atol=4 * eps(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_saturated_gates(isa: str, dtype: str) -> None:
    """Gates of huge size are 0, 1 and -1 exactly, without overflow."""
    pre, c_prev = draw((3, 21), dtype)
    pre = np.sign(pre) * np.dtype(dtype).type(1e30)
    h, c, gates = np.empty_like(c_prev), np.empty_like(c_prev), np.empty_like(pre)
    launch("lstm_cell", h, c, gates, pre, c_prev)
    positive = (pre > 0).astype(dtype)
    want = positive.copy()
    want[:, 42:63] = np.sign(pre[:, 42:63])
    np.testing.assert_array_equal(gates, want)
    i, f, g, o = np.split(want, 4, axis=1)
    np.testing.assert_array_equal(c, f * c_prev + i * g)
    check(h, o * np.tanh(c.astype(WIDE)), rtol=4 * eps(dtype))


def cell_grad_formula(dh: Array, dc: Array, pre: Array, c_prev: Array) -> tuple[Array, Array]:
    """By the chain rule, gate by gate."""
    i, f, g, o = np.split(pre.astype(WIDE), 4, axis=1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    t = np.tanh(f * c_prev + i * g)
    total = dc + dh * o * (1 - t**2)
    dpre = (total * g * i * (1 - i), total * c_prev * f * (1 - f), total * i * (1 - g**2))
    return np.concatenate((*dpre, dh * t * o * (1 - o)), axis=1), total * f


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_cell_grad(isa: str, shape: tuple[int, int], layout: str, dtype: str) -> None:
    pre, c_prev = draw(shape, dtype)
    dh, dc = (np.random.default_rng(k).standard_normal(shape).astype(dtype) for k in (1, 2))
    _, c, gates = cell_formula(pre, c_prev)
    dpre, dc_prev = blank(pre.shape, layout, dtype), blank(shape, layout, dtype)
    operands = [lay(a, layout, dtype) for a in (dh, dc, gates, c, c_prev)]
    launch("lstm_cell_grad", dpre, dc_prev, *operands)
    want = cell_grad_formula(dh, dc, pre, c_prev)
    # 1 - gate, of a gate that came rounded, has an absolute error of eps
    check(written(dpre), want[0], rtol=8 * eps(dtype), atol=16 * eps(dtype))
    check(written(dc_prev), want[1], rtol=8 * eps(dtype), atol=16 * eps(dtype))


def test_cell_grad_is_the_derivative(isa: str, threads: int) -> None:
    """Central differences of sum(h * dh + c * dc), every entry of pre and c_prev."""
    pre, c_prev = draw((30, 40), "float64", 1.0)
    dh, dc = (np.random.default_rng(k).standard_normal(c_prev.shape) for k in (3, 4))
    h, c, gates = np.empty_like(c_prev), np.empty_like(c_prev), np.empty_like(pre)
    launch("lstm_cell", h, c, gates, pre, c_prev)
    dpre, dc_prev = np.empty_like(pre), np.empty_like(c_prev)
    launch("lstm_cell_grad", dpre, dc_prev, dh, dc, gates, c, c_prev)

    def slope(step_pre: Array | float, step_c: Array | float) -> Array:
        above = cell_formula(pre + step_pre, c_prev + step_c)
        below = cell_formula(pre - step_pre, c_prev - step_c)
        change: Array = (above[0] - below[0]) * dh + (above[1] - below[1]) * dc
        return change / (2 * step)

    step = 1e-6
    for k in range(4):
        bump = np.zeros_like(pre)
        bump[:, 40 * k : 40 * (k + 1)] = step
        check(dpre[:, 40 * k : 40 * (k + 1)], slope(bump, 0.0), rtol=1e-6, atol=1e-9)
    check(dc_prev, slope(0.0, step), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_nothing(isa: str, shape: tuple[int, int]) -> None:
    pre, c_prev = draw(shape, "float32")
    h, c = np.empty_like(c_prev), np.empty_like(c_prev)
    launch("lstm_cell", h, c, pre, pre, c_prev)
    launch("lstm_cell_grad", np.empty_like(pre), h, h, c, pre, c, c_prev)


# ---- sequences ----------------------------------------------------------------------------------

# Steps, batch, hidden: one panel of the weights, parts of one, several; one tile of rows, several,
# more than are summed together.
SEQUENCES = [
    (1, 1, 1),
    (3, 2, 5),
    (2, 5, 16),
    (2, 3, 31),
    (3, 13, 65),
    (4, 20, 200),
    (2, 49, 21),
]


def sequence_inputs(shape: tuple[int, int, int], gates: int, dtype: str) -> tuple[Array, ...]:
    """pre, W_hh, dy, and two states."""
    steps, batch, hidden = shape
    rng = np.random.default_rng(sum(shape))
    pre, w, dy, h, c = (
        rng.standard_normal(size).astype(dtype)
        for size in (
            (steps, batch, gates * hidden),
            (hidden, gates * hidden),
            (steps, batch, hidden),
            (batch, hidden),
            (batch, hidden),
        )
    )
    return pre, w / np.dtype(dtype).type(hidden**0.5), dy, h, c


def room(*shape: int, dtype: str) -> Array:
    return np.full(shape, np.nan, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SEQUENCES, ids=str)
def test_lstm_sequence(isa: str, shape: tuple[int, int, int], layout: str, dtype: str) -> None:
    steps, batch, hidden = shape
    pre, w, _, h0, c0 = sequence_inputs(shape, 4, dtype)
    states, cells = (room(steps + 1, batch, hidden, dtype=dtype) for _ in range(2))
    gates = room(*pre.shape, dtype=dtype)
    launch("lstm_sequence", states, cells, gates, *(lay(a, layout) for a in (pre, h0, c0, w)))
    h, c = h0.astype(WIDE), c0.astype(WIDE)
    # An error of one step reaches the next through W_hh, whose rows have norm 2.
    bound = (64 + hidden) * steps * eps(dtype)
    np.testing.assert_array_equal(states[0], h0)
    np.testing.assert_array_equal(cells[0], c0)
    for t in range(steps):
        h, c, want = cell_formula(pre[t] + h @ w.astype(WIDE), c)
        for got, expected in ((states[t + 1], h), (cells[t + 1], c), (gates[t], want)):
            check(got, expected, atol=bound)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SEQUENCES, ids=str)
def test_lstm_sequence_grad(isa: str, shape: tuple[int, int, int], layout: str, dtype: str) -> None:
    steps, batch, hidden = shape
    pre, w, dy, h0, c0 = sequence_inputs(shape, 4, dtype)
    states, cells = (room(steps + 1, batch, hidden, dtype=dtype) for _ in range(2))
    gates = pre.copy()
    launch("lstm_sequence", states, cells, gates, gates, h0, c0, w)
    dpre, dh0, dc0 = (room(*a.shape, dtype=dtype) for a in (pre, h0, c0))
    operands = [lay(a, layout) for a in (dy, h0, c0, gates, cells, w)]
    launch("lstm_sequence_grad", dpre, dh0, dc0, *operands)
    dh, dc = h0.astype(WIDE), c0.astype(WIDE)
    h = [h0.astype(WIDE)]
    c = [c0.astype(WIDE)]
    for t in range(steps):
        step = cell_formula(pre[t] + h[t] @ w.astype(WIDE), c[t])
        h.append(step[0])
        c.append(step[1])
    bound = (64 + 4 * hidden) * steps * eps(dtype)
    for t in reversed(range(steps)):
        want, dc = cell_grad_formula(dh + dy[t], dc, pre[t] + h[t] @ w.astype(WIDE), c[t])
        check(dpre[t], want, atol=bound)
        dh = want @ w.T.astype(WIDE)
    check(dh0, dh, atol=bound)
    check(dc0, dc, atol=bound)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SEQUENCES, ids=str)
@pytest.mark.parametrize("activation", [1.0, 2.0])
def test_rnn_sequence_and_grad(
    isa: str,
    shape: tuple[int, int, int],
    layout: str,
    dtype: str,
    activation: float,
) -> None:
    steps, batch, hidden = shape
    pre, w, dy, h0, dh_n = sequence_inputs(shape, 1, dtype)
    states = room(steps + 1, batch, hidden, dtype=dtype)
    operands = [lay(a, layout) for a in (pre, h0, w)]
    launch("rnn_sequence", states, *operands, scalars=(activation,))
    bound = (64 + 2 * hidden) * steps * eps(dtype)
    h = h0.astype(WIDE)
    np.testing.assert_array_equal(states[0], h0)
    for t in range(steps):
        total = pre[t] + h @ w.astype(WIDE)
        h = np.tanh(total) if activation == 2 else np.maximum(total, 0)
        check(states[t + 1], h, rtol=bound, atol=bound)
        h = states[t + 1].astype(WIDE)

    dpre, dh0 = room(*pre.shape, dtype=dtype), room(*h0.shape, dtype=dtype)
    operands = [lay(a, layout) for a in (dy, dh_n, states, w)]
    launch("rnn_sequence_grad", dpre, dh0, *operands, scalars=(activation,))
    dh = dh_n.astype(WIDE)
    for t in reversed(range(steps)):
        y = states[t + 1].astype(WIDE)
        want = (dh + dy[t]) * (1 - y * y if activation == 2 else y > 0)
        check(dpre[t], want, rtol=bound, atol=bound)
        dh = dpre[t] @ w.T.astype(WIDE)
    check(dh0, dh, rtol=bound, atol=bound)


# Threads of which each has rows of its own, or hidden units; also with weights that no second-level
# cache of 2 MB holds.
@pytest.mark.parametrize("shape", [(5, 9, 150), (3, 14, 40), (2, 49, 400)], ids=str)
def test_a_sequence_does_not_depend_on_the_number_of_threads(
    isa: str, threads: int, shape: tuple[int, int, int]
) -> None:
    steps, batch, hidden = shape
    pre, w, dy, h0, c0 = sequence_inputs(shape, 4, "float32")
    results = []
    for count in (1, threads, 70):
        cpu.set_num_threads(count)
        states, cells = (room(steps + 1, batch, hidden, dtype="float32") for _ in range(2))
        gates, dpre = pre.copy(), np.empty_like(pre)
        dh0, dc0 = np.empty_like(h0), np.empty_like(c0)
        launch("lstm_sequence", states, cells, gates, gates, h0, c0, w)
        launch("lstm_sequence_grad", dpre, dh0, dc0, dy, None, None, gates, cells, w)
        results.append((states, dpre, dh0, dc0))
    for result in results[1:]:
        for got, want in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(got, want)
