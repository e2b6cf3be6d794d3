"""The C++ softmax kernels against wide formulas, on every instruction set.

The oracles compute in long double (80 bits on x86), so float64 kernels have a sharper oracle too.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cpp_call import (
    FLOATS,
    LAYOUTS,
    beside_cache_line,
    blank,
    check,
    cpu,
    eps,
    isa,
    launch,
    lay,
    threads,
    written,
)

__all__ = ["isa", "threads"]

Array = npt.NDArray[Any]

WIDE = np.longdouble
SHAPES = [
    (1, 1),
    (3, 2),
    (5, 4),
    (2, 7),
    (4, 8),
    (3, 9),
    (6, 15),
    (2, 16),
    (7, 17),
    (3, 63),
    (9, 1000),
]


def draw(shape: tuple[int, ...], dtype: str, scale: float = 3.0) -> Array:
    rng = np.random.default_rng(sum(shape))
    return (rng.standard_normal(shape) * scale).astype(dtype)


def logsumexp_formula(a: Array, axes: tuple[int, ...]) -> Array:
    a = a.astype(WIDE)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        highest = a.max(axes, keepdims=True, initial=-np.inf)
        highest[~np.isfinite(highest)] = 0
        total: Array = np.log(np.exp(a - highest).sum(axes, keepdims=True)) + highest
    return total.squeeze(axes)


def softmax_formula(a: Array) -> Array:
    e = np.exp(a.astype(WIDE) - a.max(1, keepdims=True))
    result: Array = e / e.sum(1, keepdims=True)
    return result


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_softmax_and_logsoftmax(isa: str, shape: tuple[int, int], layout: str, dtype: str) -> None:
    a = draw(shape, dtype)
    out = blank(shape, layout, dtype)
    launch("softmax", out, lay(a, layout))
    # |a - max| <= 25, and exp turns its rounding into a relative error.
    check(written(out), softmax_formula(a), rtol=32 * eps(dtype))
    out = blank(shape, layout, dtype)
    launch("logsoftmax", out, lay(a, layout))
    want = a.astype(WIDE) - logsumexp_formula(a, (1,))[:, None]
    check(written(out), want, rtol=4 * eps(dtype), atol=4 * eps(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_softmax_in_place_and_threaded(isa: str, threads: int, dtype: str) -> None:
    a = draw((50, 999), dtype)
    for kernel, want in (
        ("softmax", softmax_formula(a)),
        ("logsoftmax", a.astype(WIDE) - logsumexp_formula(a, (1,))[:, None]),
    ):
        same = a.copy()
        launch(kernel, same, same)
        check(same, want, rtol=32 * eps(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("offset", [1e4, -1e4, 1e30])
def test_large_logits(isa: str, offset: float, dtype: str) -> None:
    a = draw((4, 21), dtype) + np.dtype(dtype).type(offset)
    out = np.empty_like(a)
    launch("softmax", out, a)
    check(out, softmax_formula(a), rtol=32 * eps(dtype))
    launch("logsoftmax", out, a)
    highest = a.max(1, keepdims=True).astype(WIDE)
    want = (a - highest) - logsumexp_formula(a - highest, (1,))[:, None]
    check(out, want, rtol=4 * eps(dtype), atol=4 * eps(dtype))
    lse = np.empty(4, dtype)
    launch("logsumexp", lse, a)
    check(lse, logsumexp_formula(a, (1,)), rtol=2 * eps(dtype))


SPECIAL = [
    [-np.inf] * 5,
    [np.inf, 0.0, 1.0, -np.inf, 2.0],
    [np.inf] * 5,
    [-np.inf, -np.inf, 3.0, -np.inf, -np.inf],
    [np.nan, 1.0, 2.0, 3.0, 4.0],
    [1.0, 2.0, 3.0, np.inf, np.nan],
    [np.nan] * 5,
    [88.0, 89.0, 90.0, 1000.0, 1e30],
    [-1000.0, -1001.0, -1e30, -np.inf, -1002.0],
    [0.0, -0.0, 1e-40, -1e-40, 0.0],
]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_logsumexp_of_infinities_and_nan(isa: str, layout: str, dtype: str) -> None:
    a = np.array(SPECIAL, dtype)
    want = logsumexp_formula(a, (1,))
    assert want[:2].tolist() == [-np.inf, np.inf]
    out = blank((len(SPECIAL),), layout, dtype)
    launch("logsumexp", out, lay(a, layout))
    check(written(out), want, rtol=2 * eps(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_softmax_of_infinities_and_nan(isa: str, dtype: str) -> None:
    a = np.array(SPECIAL, dtype)
    soft, log = np.empty_like(a), np.empty_like(a)
    launch("softmax", soft, a)
    launch("logsoftmax", log, a)
    with np.errstate(invalid="ignore"):
        check(soft, softmax_formula(a), rtol=4 * eps(dtype), atol=1e-30)
        check(log, a - logsumexp_formula(a, (1,))[:, None], rtol=2 * eps(dtype))


# out's axes are the first ones of a, already permuted to the front.
REDUCTIONS = [((7, 5), 1), ((4, 3, 5), 1), ((4, 3, 5), 2), ((33, 6, 2, 3), 1), ((3, 17, 4, 2), 2)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "kept"), REDUCTIONS)
def test_logsumexp(isa: str, shape: tuple[int, ...], kept: int, layout: str, dtype: str) -> None:
    a = draw(shape, dtype)
    want = logsumexp_formula(a, tuple(range(kept, a.ndim)))
    out = blank(shape[:kept], layout, dtype)
    launch("logsumexp", out, lay(a, layout))
    check(written(out), want, rtol=2 * eps(dtype), atol=2 * eps(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_logsumexp_over_any_axes(isa: str, threads: int, axes: tuple[int, ...], dtype: str) -> None:
    a = draw((13, 21, 37), dtype)
    kept = tuple(k for k in range(3) if k not in axes)
    out = blank(tuple(a.shape[k] for k in kept), "compact", dtype)
    launch("logsumexp", out, a.transpose(kept + axes))
    check(out, logsumexp_formula(a, axes), rtol=2 * eps(dtype), atol=2 * eps(dtype))


@pytest.mark.parametrize("axis", [0, 1])
def test_long_sums_keep_their_digits(isa: str, axis: int) -> None:
    """A plain float32 sum of 2^18 ones a lane would be off by more than the bound."""
    a = np.full((2**18, 2) if axis == 0 else (2, 2**18), 0.1, "float32")
    out = np.empty(2, "float32")
    launch("logsumexp", out, a.T if axis == 0 else a)
    check(out, np.log(2.0**18) + np.float32(0.1), rtol=2 * eps("float32"))


def test_logsumexp_of_broadcast_and_scalars(isa: str) -> None:
    out = np.empty(4, "float64")
    launch("logsumexp", out, np.broadcast_to(np.float64(2.0), (4, 6)))
    check(out, np.full(4, 2 + np.log(6.0)), rtol=1e-15)
    scalar = np.empty((), "float64")
    launch("logsumexp", scalar, np.array(-3.5))
    assert scalar == -3.5


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_nothing(isa: str, shape: tuple[int, int]) -> None:
    a, out = np.empty(shape), np.zeros(shape[0])
    launch("softmax", np.empty(shape), a)
    launch("logsoftmax", np.empty(shape), a)
    launch("logsumexp", out, a)
    assert (out == -np.inf).all()  # log(0), as NumPy says of an empty sum
    launch("logsumexp", np.empty((0,)), np.empty((0, 2, 0)).transpose(0, 2, 1))


# ---- cross entropy


def cross_entropy(
    logits: Array, labels: Array, layout: str, dloss: float = 1.0, smoothing: float = 0.0
) -> tuple[Array, Array, Array]:
    dtype, (rows, _) = logits.dtype.name, logits.shape
    loss, lse = blank((), "compact", dtype), blank((rows,), layout, dtype)
    logits, labels = lay(logits, layout), lay(labels, layout)
    launch("softmax_cross_entropy", loss, lse, logits, labels, scalars=(smoothing,))
    grad = blank(logits.shape, layout, dtype)
    scale = np.array(dloss, dtype)
    launch("softmax_cross_entropy_grad", grad, scale, logits, lse, labels, scalars=(smoothing,))
    return loss, written(lse), written(grad)


def cross_entropy_formula(
    logits: Array, labels: Array, dloss: float, smoothing: float = 0.0
) -> tuple[Any, Array, Array]:
    target = np.full(logits.shape, smoothing / logits.shape[1], WIDE)
    target[np.arange(len(labels)), labels] += 1 - smoothing
    lse = logsumexp_formula(logits, (1,))
    loss = (lse - (target * logits).sum(1)).mean()
    return loss, lse, (softmax_formula(logits) - target) * dloss / len(labels)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy(isa: str, shape: tuple[int, int], layout: str, dtype: str) -> None:
    logits = draw(shape, dtype)
    labels = np.random.default_rng(0).integers(0, shape[1], shape[0])
    loss, lse, grad = cross_entropy(logits, labels, layout, 1.5)
    want = cross_entropy_formula(logits, labels, 1.5)
    check(loss, want[0], rtol=4 * eps(dtype), atol=4 * eps(dtype))
    check(lse, want[1], rtol=2 * eps(dtype), atol=2 * eps(dtype))
    check(grad, want[2], rtol=32 * eps(dtype), atol=4 * eps(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_smoothed_cross_entropy(isa: str, shape: tuple[int, int], layout: str, dtype: str) -> None:
    logits = draw(shape, dtype)
    labels = np.random.default_rng(0).integers(0, shape[1], shape[0])
    loss, _, grad = cross_entropy(logits, labels, layout, 1.5, 0.2)
    want = cross_entropy_formula(logits, labels, 1.5, 0.2)
    check(loss, want[0], rtol=4 * eps(dtype), atol=4 * eps(dtype))
    check(grad, want[2], rtol=32 * eps(dtype), atol=4 * eps(dtype))


def test_cross_entropy_of_a_language_model(isa: str, threads: int) -> None:
    logits = draw((70, 10_000), "float32", 1.0)
    labels = np.random.default_rng(1).integers(0, 10_000, 70)
    loss, lse, grad = cross_entropy(logits, labels, "compact")
    want = cross_entropy_formula(logits, labels, 1.0)
    check(loss, want[0], rtol=2 * eps("float32"))
    check(lse, want[1], rtol=2 * eps("float32"))
    check(grad, want[2], rtol=32 * eps("float32"), atol=1e-9)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("offset", [60.0, 70.0, 1e4, -1e4])
def test_gradient_of_large_logits(isa: str, offset: float, dtype: str) -> None:
    """A lse of 1e4 in float32 has no digits below 1e-3: exp(x - lse) would be off by as much."""
    logits = draw((6, 30), dtype, 1.0) + np.dtype(dtype).type(offset)
    labels = np.arange(6)
    loss, _, grad = cross_entropy(logits, labels, "compact")
    want = cross_entropy_formula(logits.astype(WIDE) - offset, labels, 1.0)
    check(loss, want[0], rtol=8 * eps(dtype))
    check(grad, want[2], rtol=40 * eps(dtype), atol=eps(dtype))  # |lse| < 64 costs 32 eps


def test_gradient_beyond_the_caches(isa: str) -> None:
    """26 MB: rows of whole vectors are written past the caches, others are not."""
    logits, lse = draw((651, 10_000), "float32"), np.full(651, 13.7, "float32")
    labels, one = np.random.default_rng(1).integers(0, 10_000, 651), np.ones((), "float32")
    vectors = beside_cache_line(logits.shape, "float32", 0)
    odd = np.empty((651, 10_001), "float32")[:, :10_000]
    for grad in (vectors, odd):
        launch("softmax_cross_entropy_grad", grad, one, logits, lse, labels, scalars=(0.1,))
    np.testing.assert_array_equal(vectors, odd)


@pytest.mark.parametrize("dtype", FLOATS)
def test_gradient_in_place(isa: str, dtype: str) -> None:
    logits = draw((5, 19), dtype) + 100
    labels = np.array([0, 18, 3, 3, 7])
    want = cross_entropy_formula(logits, labels, 1.0)
    lse = want[1].astype(dtype)
    one = np.ones((), dtype)
    launch("softmax_cross_entropy_grad", logits, one, logits, lse, labels, scalars=(0.0,))
    check(logits, want[2], rtol=64 * eps(dtype), atol=eps(dtype))


def test_mean_of_many_losses_is_taken_in_float64(isa: str) -> None:
    rows = 300_000
    loss, lse = np.empty((), "float32"), np.empty(rows, "float32")
    logits, labels = np.zeros((rows, 3), "float32"), np.zeros(rows, "int64")
    launch("softmax_cross_entropy", loss, lse, logits, labels, scalars=(0.0,))
    check(loss, np.log(3.0), rtol=eps("float32"))


def test_certain_and_impossible_labels(isa: str) -> None:
    logits = np.array([[1e5, 0, -np.inf], [0, -np.inf, 0]], "float32")
    loss, lse, _ = cross_entropy(logits[:1], np.array([0]), "compact")
    assert loss == 0
    assert lse == 1e5
    loss, _, grad = cross_entropy(logits, np.array([0, 1]), "compact")
    assert loss == np.inf
    check(grad, [[0, 0, 0], [0.25, -0.5, 0.25]], atol=eps("float32"))


def test_cross_entropy_of_no_rows(isa: str) -> None:
    loss, _, grad = cross_entropy(np.empty((0, 4)), np.empty(0, "int64"), "compact")
    assert np.isnan(loss)  # the mean of nothing
    assert grad.shape == (0, 4)


def test_same_result_for_any_number_of_threads(isa: str) -> None:
    logits = draw((333, 100), "float32")
    labels = np.random.default_rng(2).integers(0, 100, 333)
    before = cpu.num_threads()
    results = []
    for n in (1, 2, 5):
        cpu.set_num_threads(n)
        results.append(cross_entropy(logits, labels, "compact"))
    cpu.set_num_threads(before)
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(a, b)
