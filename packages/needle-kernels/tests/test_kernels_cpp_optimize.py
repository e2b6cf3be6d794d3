"""The C++ optimizer kernels against float64 formulas, on every instruction set."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cpp_call import FLOATS, blank, check, cpu, eps, isa, launch, threads

__all__ = ["isa", "threads"]

Array = npt.NDArray[Any]

# Around the lanes of every target, none, and enough for several threads.
SIZES = (0, 1, 3, 4, 5, 15, 16, 17, 31, 33, 70_001)


def draw(rng: np.random.Generator, dtype: str) -> list[Array]:
    return [rng.standard_normal(n).astype(dtype) for n in SIZES]


def adam_formula(state: tuple[Array, ...], hyper: tuple[float, ...], t: int) -> tuple[Array, ...]:
    w, m, v, g = (a.astype("float64") for a in state)
    lr, beta1, beta2, small, decay = hyper
    g = g + decay * w
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    return w - lr * m_hat / (np.sqrt(v_hat) + small), m, v


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, 0), (0.9, 0), (0.9, 1)])
def test_sgd_is_the_averaging_form(
    isa: str, threads: int, dtype: str, momentum: float, nesterov: int
) -> None:
    rng = np.random.default_rng(0)
    w, u, g = (draw(rng, dtype) for _ in range(3))
    lr, decay = 0.3, 0.01
    fresh = [(1 - momentum) * (c + decay * a.astype("float64")) for a, c in zip(w, g, strict=True)]
    want_u = [momentum * b.astype("float64") + d for b, d in zip(u, fresh, strict=True)]
    moves = [momentum * b + d if nesterov else b for b, d in zip(want_u, fresh, strict=True)]
    want_w = [a - lr * b for a, b in zip(w, moves, strict=True)]
    grads = [a.copy() for a in g]
    launch("sgd", *sum(zip(w, u, g, strict=True), ()), scalars=(lr, momentum, decay, nesterov))
    for got, want in zip(w + u + g, want_w + want_u + grads, strict=True):
        check(got, want, rtol=4 * eps(dtype), atol=4 * eps(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_moving_average(isa: str, threads: int, dtype: str) -> None:
    rng = np.random.default_rng(4)
    running, values = draw(rng, dtype), draw(rng, dtype)
    want = [0.9 * a.astype("float64") + 0.1 * b for a, b in zip(running, values, strict=True)]
    before = [b.copy() for b in values]
    launch("moving_average", *sum(zip(running, values, strict=True), ()), scalars=(0.1,))
    for got, expected in zip(running + values, want + before, strict=True):
        check(got, expected, rtol=4 * eps(dtype), atol=4 * eps(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_sgd_without_momenta(isa: str, dtype: str) -> None:
    rng = np.random.default_rng(1)
    w, g = draw(rng, dtype), draw(rng, dtype)
    want = [a - 0.3 * (b + 0.01 * a.astype("float64")) for a, b in zip(w, g, strict=True)]
    operands: list[Array | None] = []
    for a, b in zip(w, g, strict=True):
        operands += [a, None, b]
    launch("sgd", *operands, scalars=(0.3, 0.0, 0.01, 0.0))
    for got, expected in zip(w, want, strict=True):
        check(got, expected, rtol=4 * eps(dtype), atol=4 * eps(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("used", [[], [0], [63], [64], [199], [5, 130, 131, 640]])
def test_sgd_of_a_gradient_that_is_mostly_zero(
    isa: str, threads: int, used: list[int], decay: float, dtype: str
) -> None:
    """Runs of zeros may be passed over, but not what lies among them, nor the decay."""
    w = np.random.default_rng(3).standard_normal(997).astype(dtype)
    g = np.zeros_like(w)
    g[used] = np.arange(1, len(used) + 1)
    want = w - 0.5 * (g + decay * w.astype("float64"))
    if not decay:
        np.testing.assert_array_equal(np.flatnonzero(want != w), used)
    launch("sgd", w, None, g, scalars=(0.5, 0.0, decay, 0.0))
    check(w, want, rtol=4 * eps(dtype), atol=4 * eps(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_adam_three_steps(isa: str, threads: int, dtype: str) -> None:
    rng = np.random.default_rng(2)
    hyper = (0.01, 0.9, 0.999, 1e-8, 0.02)
    w = draw(rng, dtype)
    m, v = [np.zeros_like(a) for a in w], [np.zeros_like(a) for a in w]
    for t in (1, 2, 3):
        g = draw(rng, dtype)
        want = [adam_formula(state, hyper, t) for state in zip(w, m, v, g, strict=True)]
        corrections = (1 - hyper[1] ** t, 1 - hyper[2] ** t)
        launch("adam", *sum(zip(w, m, v, g, strict=True), ()), scalars=hyper + corrections)
        for state, expected in zip(zip(w, m, v, strict=True), want, strict=True):
            for got, value in zip(state, expected, strict=True):
                check(got, value, rtol=8 * eps(dtype), atol=8 * eps(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_adam_of_zero_and_of_huge_gradients(isa: str, dtype: str) -> None:
    """A zero gradient moves nothing; at t = 1 the step is lr * sign(g) however large g is."""
    w, m, v = (np.zeros(21, dtype) for _ in range(3))
    g = np.resize(np.array([0.0, 1e15, -1e15, 1e-6], dtype), 21)
    scalars = (0.5, 0.9, 0.999, 1e-30, 0.0, 1 - 0.9, 1 - 0.999)
    launch("adam", w, m, v, g, scalars=scalars)
    check(w, -0.5 * np.sign(g), rtol=16 * eps(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_scale(isa: str, threads: int, dtype: str) -> None:
    arrays = draw(np.random.default_rng(3), dtype)
    want = [a * np.dtype(dtype).type(0.3) for a in arrays]
    launch("scale", *arrays, scalars=(0.3,))
    for got, expected in zip(arrays, want, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_sum_squares(isa: str, threads: int, dtype: str) -> None:
    arrays = draw(np.random.default_rng(4), dtype)
    out = blank((), "compact", "float64")
    launch("sum_squares", out, *arrays)
    want = math.fsum(float(x) ** 2 for a in arrays for x in a)
    check(out, want, rtol=1e-13)


def test_sum_squares_does_not_lose_small_terms(isa: str) -> None:
    """In float32 the sum would stop at 2^24: in float64 every square counts, none overflows."""
    ones = np.ones(2**24 + 4096 + 1, "float32")
    out = blank((), "compact", "float64")
    launch("sum_squares", out, ones)
    assert out == ones.size
    launch("sum_squares", out, np.full(3, 1e30, "float32"))
    check(out, 3 * float(np.float32(1e30)) ** 2, rtol=1e-15)


def test_sum_squares_of_nothing(isa: str) -> None:
    out = blank((), "compact", "float64")
    launch("sum_squares", out)
    assert out == 0
    launch("sum_squares", out, np.empty(0, "float32"))
    assert out == 0


def test_float32_and_float64_mix(isa: str) -> None:
    a, b = np.full(40, 2.0, "float32"), np.full((3, 7), 3.0, "float64")
    out = blank((), "compact", "float64")
    launch("sum_squares", out, a, b)
    assert out == 40 * 4 + 21 * 9
    launch("scale", a, b, scalars=(0.5,))
    assert (a == 1).all()
    assert (b == 1.5).all()


def test_same_result_for_any_number_of_threads(isa: str) -> None:
    arrays = draw(np.random.default_rng(5), "float64")
    before = cpu.num_threads()
    sums = []
    for n in (1, 2, 3, 7):
        cpu.set_num_threads(n)
        out = blank((), "compact", "float64")
        launch("sum_squares", out, *arrays)
        sums.append(float(out))
    cpu.set_num_threads(before)
    assert len(set(sums)) == 1


def test_what_only_decays_ends_at_zero(isa: str, threads: int) -> None:
    """Numbers below the smallest normal one are flushed: they would slow every later step."""
    smallest = float(np.finfo("float32").tiny)
    w, m, v, g = (np.zeros(70_000, "float32") for _ in range(4))
    w[:], m[:] = smallest * 1.5, smallest / 4
    launch("adam", w, m, v, g, scalars=(1e-3, 0.9, 0.999, 1e-8, 1e-3, 0.1, 0.001))
    assert (m == 0).all()
    assert (w == np.float32(smallest * 1.5)).all()
    a = np.full(70_000, smallest, "float32")
    launch("scale", a, scalars=(0.5,))
    assert (a == 0).all()
    assert np.float32(smallest) * np.float32(0.5) > 0  # the caller's own arithmetic is as before
