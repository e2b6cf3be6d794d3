"""Optimizer steps against formulas in float64."""

import numpy as np
import pytest

from needle import backend_ndarray as nd
from needle._kernels import cpu as extension
from needle.backend_ndarray.devices import REFERENCE_MODE
from needle.backend_ndarray.testing import VIEWS, compare, make_view, rounding

SHAPES = [(0,), (1,), (7,), (8, 2), (17,), (3, 3, 3, 5), (5003,), ()]


def draw(shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape)


def parameters(count, dtype, device, view="compact"):
    """`count` lists of arrays, one array per shape, with values of its own each."""
    return [
        [make_view(view, draw(s, seed), device, dtype) for s in SHAPES] for seed in range(count)
    ]


def wide(lists):
    return [[a.numpy().astype(np.float64) for a in arrays] for arrays in lists]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.01)])
def test_sgd(device, dtype, momentum, weight_decay, nesterov):
    w, u, g = parameters(3, dtype, device)
    want_w, want_u, grads = wide((w, u, g))
    for _ in range(3):
        nd.sgd(w, u, g, 0.1, momentum, weight_decay, nesterov)
        for k, grad in enumerate(grads):
            fresh = (1 - momentum) * (grad + weight_decay * want_w[k])
            want_u[k] = momentum * want_u[k] + fresh
            want_w[k] -= 0.1 * (momentum * want_u[k] + fresh if nesterov else want_u[k])
    for got, want in zip(w + u, want_w + want_u, strict=True):
        compare(got, want, dtype=dtype, atol=rounding(dtype, 30))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_adam(device, dtype, weight_decay):
    w, _, _, g = parameters(4, dtype, device)
    m, v = ([nd.zeros(s, dtype=dtype, device=device) for s in SHAPES] for _ in range(2))
    want_w, want_m, want_v, grads = wide((w, m, v, g))
    for t in (1, 2, 3):
        nd.adam(w, m, v, g, 0.01, 0.9, 0.999, 1e-8, weight_decay, t)
        for k, grad in enumerate(grads):
            d = grad + weight_decay * want_w[k]
            want_m[k] = 0.9 * want_m[k] + 0.1 * d
            want_v[k] = 0.999 * want_v[k] + 0.001 * d * d
            mean, square = want_m[k] / (1 - 0.9**t), want_v[k] / (1 - 0.999**t)
            want_w[k] = want_w[k] - 0.01 * mean / (np.sqrt(square) + 1e-8)
    # 1 - 0.999 keeps only 14 bits in float32, and w moves by 0.01 of it a step
    for got, want in zip(w + m + v, want_w + want_m + want_v, strict=True):
        compare(got, want, dtype=dtype, atol=1e-5 if dtype == "float32" else 1e-13)


@pytest.mark.parametrize("view", [v for v in VIEWS if v != "broadcast"])
def test_views_are_written_through(device, view):
    w, u, g = parameters(3, "float32", device, view)
    other = parameters(3, "float32", device)
    nd.sgd(w, u, g, 0.1, 0.9, 0.01)
    nd.sgd(*other, 0.1, 0.9, 0.01)
    for got, want in zip(w + u, other[0] + other[1], strict=True):
        compare(got, want.numpy(), rtol=1e-6)
    for got, want in zip(g, other[2], strict=True):
        compare(got, want.numpy())


def test_sgd_with_momentum_needs_momenta(device):
    w, _, g = parameters(3, "float32", device)
    before = [x.numpy().copy() for x in w]
    with pytest.raises(ValueError, match=r"sgd: momenta: got None with momentum 0\.9: need"):
        nd.sgd(w, None, g, 0.1, 0.9, 0.0)
    for got, want in zip(w, before, strict=True):
        compare(got, want)


def test_moving_average(device):
    averages = [nd.array(x, dtype="float32", device=device) for x in ([1.0, 2.0], 4.0)]
    nd.moving_average(averages, [nd.ones((2,), device=device), nd.zeros((), device=device)], 0.25)
    compare(averages[0], np.array([1.0, 1.75], "float32"))
    compare(averages[1], np.array(3.0, "float32"))
    assert [a._handle.version for a in averages] == [1, 1]
    with pytest.raises(nd.ShapeError, match=r"moving_average: an array .* \(3,\): need \(2,\)"):
        nd.moving_average(averages[:1], [nd.ones((3,), device=device)], 0.25)


def test_layouts_may_differ(device):
    w = nd.array(draw((4, 5)), dtype="float32", device=device)
    u, g = (
        make_view("permuted", draw((4, 5), 1), device),
        make_view("stepped", draw((4, 5), 2), device),
    )
    want = w.numpy() - 0.1 * (0.5 * u.numpy() + 0.5 * g.numpy())
    nd.sgd([w], [u], [g], 0.1, 0.5, 0.0)
    compare(w, want, atol=1e-6)
    permuted = make_view("permuted", draw((4, 5)), device)
    u, g = (make_view("permuted", draw((4, 5), s), device) for s in (1, 2))
    nd.sgd([permuted], [u], [g], 0.1, 0.5, 0.0)
    compare(permuted, want, atol=1e-6)


def test_versions_rise(device):
    w, u, g = parameters(3, "float32", device)
    before = [[a._handle.version for a in arrays] for arrays in (w, u, g)]
    nd.sgd(w, u, g, 0.1, 0.9, 0.0)
    after = [[a._handle.version for a in arrays] for arrays in (w, u, g)]
    assert all(x < y for x, y in zip(before[0] + before[1], after[0] + after[1], strict=True))
    assert before[2] == after[2]


def test_mixed_dtypes_in_one_call(device):
    w = [nd.ones((3,), device=device), nd.ones((3,), dtype="float64", device=device)]
    u = [nd.zeros((3,), device=device), nd.zeros((3,), dtype="float64", device=device)]
    nd.sgd(w, u, [a.copy() for a in w], 0.5, 0.0, 0.0)
    compare(w[0], np.full(3, 0.5, np.float32))
    compare(w[1], np.full(3, 0.5))
    assert nd.sum_squares(w) == pytest.approx(6 * 0.25)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sum_squares(device, dtype, view):
    (arrays,) = parameters(1, dtype, device, view)
    want = sum(np.square(a).sum() for a in wide([arrays])[0])
    assert nd.sum_squares(arrays) == pytest.approx(want, rel=1e-12)
    assert nd.sum_squares([]) == 0.0


@pytest.mark.skipif(REFERENCE_MODE, reason="cpu() is the NumPy device: it has no path in C++")
def test_sum_squares_in_cpp_declines():
    a = nd.ones((2, 3))
    assert extension.sum_squares((a, a)) == 12.0
    assert extension.sum_squares([nd.ones((0,)), nd.full((100, 100), 2.0)]) == 40000.0
    double, integers = a.astype("float64"), a.astype("int32")
    elsewhere = nd.ones((2,), device=nd.cpu_numpy())
    for arrays in (
        [a, double],
        [integers],
        [elsewhere],
        [a[:, ::2]],
        [a.T],
        [np.ones(2)],
        iter([a]),
    ):
        assert extension.sum_squares(arrays) is None
    with pytest.raises(TypeError, match="sum_squares: need a list of arrays"):
        extension.sum_squares()


def test_sum_squares_does_not_overflow_float32(device):
    assert nd.sum_squares([nd.full((40,), 1e30, device=device)]) == pytest.approx(40e60, rel=1e-6)


@pytest.mark.parametrize("view", [v for v in VIEWS if v != "broadcast"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scale(device, dtype, view):
    (arrays,) = parameters(1, dtype, device, view)
    want = wide([arrays])[0]
    versions = [a._handle.version for a in arrays]
    nd.scale(arrays, 0.3)
    for got, w, version in zip(arrays, want, versions, strict=True):
        compare(got, w * 0.3, dtype=dtype, rtol=rounding(dtype, 2))
        assert got._handle.version == version + 1


def test_no_parameters():
    nd.sgd([], [], [], 0.1, 0.0, 0.0)
    nd.scale([], 2.0)


def test_errors(device):
    a, b = nd.ones((2, 3), device=device), nd.ones((3,), device=device)
    with pytest.raises(
        nd.ShapeError, match=r"sgd: an array does not fit: got \(3,\): need \(2, 3\)"
    ):
        nd.sgd([a], [a.copy()], [b], 0.1, 0.0, 0.0)
    with pytest.raises(nd.ShapeError, match=r"sgd: lengths differ: got \[1, 2, 1\] arrays"):
        nd.sgd([a], [a, b], [a], 0.1, 0.0, 0.0)
    with pytest.raises(
        nd.DTypeError, match="sgd: dtypes do not fit: got float32, float64, float32"
    ):
        nd.sgd([a], [a.astype("float64")], [a.copy()], 0.1, 0.0, 0.0)
    with pytest.raises(ValueError, match="adam: step: got 0: need >= 1"):
        nd.adam([a], [a], [a], [a], 0.1, 0.9, 0.9, 1e-8, 0.0, 0)
    with pytest.raises(nd.ShapeError, match="scale: cannot write to a broadcast view"):
        nd.scale([b.broadcast_to((2, 3))], 2.0)
    with pytest.raises(nd.DTypeError, match="sum_squares: dtypes do not fit: got int32"):
        nd.sum_squares([a.astype("int32")])
