"""The C++ LSTM kernels against the gate formulas in long double, on every instruction set."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cpp_call import FLOATS, LAYOUTS, blank, check, eps, isa, launch, lay, threads, written

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
