"""Softmax, log-sum-exp and cross entropy against SciPy in float64."""

import itertools

import numpy as np
import pytest
from scipy import special

from needle import backend_ndarray as nd
from needle.backend_ndarray.testing import VIEWS, compare, make_view, rounding

SHAPES = [(1, 1), (1, 7), (3, 8), (5, 9), (4, 15), (2, 16), (3, 17), (2, 33), (3, 1000), (0, 5)]
SHAPES += [(40, 10), (2, 47), (2, 64), (3, 100), (2, 128), (2, 129)]


def draw(shape, seed=0, spread=5.0):
    return np.random.default_rng(seed).uniform(-spread, spread, shape)


def wide(a):
    return a.numpy().astype(np.float64)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows(device, shape, dtype):
    x = nd.array(draw(shape), dtype=dtype, device=device)
    bound = rounding(dtype, 40)
    compare(nd.softmax(x), special.softmax(wide(x), 1), dtype=dtype, rtol=bound)
    compare(nd.logsoftmax(x), special.log_softmax(wide(x), 1), dtype=dtype, atol=bound * 4)
    compare(nd.logsumexp(x, 1), special.logsumexp(wide(x), 1), dtype=dtype, atol=bound * 4)


@pytest.mark.parametrize("view", VIEWS)
def test_views_and_axes(device, view):
    x = make_view(view, draw((3, 4, 5)), device)
    compare(nd.softmax(x), special.softmax(wide(x), -1), dtype="float32", atol=1e-6)
    compare(nd.logsoftmax(x), special.log_softmax(wide(x), -1), dtype="float32", atol=1e-5)
    for count in (1, 2, 3):
        for axes in itertools.combinations(range(3), count):
            for keep in (False, True):
                want = special.logsumexp(wide(x), axes, keepdims=keep)
                compare(nd.logsumexp(x, axes, keep), want, dtype="float32", atol=1e-5)
    compare(nd.logsumexp(x), special.logsumexp(wide(x)), dtype="float32", atol=1e-5)


def test_one_axis_and_integers(device):
    x = nd.array([1, 2, 3], dtype="int32", device=device)
    compare(nd.softmax(x), special.softmax([1.0, 2, 3]), rtol=1e-14)
    compare(nd.logsumexp(x), special.logsumexp([1.0, 2, 3]), rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_logits_do_not_overflow(device, dtype):
    values = np.array([[1e4, 1e4 - 1, -1e4, 0], [-1e4, -1e4, -1e4, -1e4]])
    x = nd.array(values, dtype=dtype, device=device)
    bound = rounding(dtype, 40)
    compare(nd.softmax(x), special.softmax(values, 1), dtype=dtype, rtol=bound)
    compare(nd.logsoftmax(x), special.log_softmax(values, 1), dtype=dtype, rtol=bound, atol=bound)
    compare(nd.logsumexp(x, 1), special.logsumexp(values, 1), dtype=dtype, rtol=bound)


def test_infinite_logits(device):
    values = np.array([[-np.inf, 0.0, 1.0], [-np.inf, -np.inf, 2.0]])
    x = nd.array(values, dtype="float32", device=device)
    compare(nd.softmax(x), special.softmax(values, 1), dtype="float32", atol=1e-6)
    compare(nd.logsumexp(x, 1), special.logsumexp(values, 1), dtype="float32", atol=1e-6)
    for size in (6, 21, 75, 150):
        low = nd.full((2, size), -np.inf, device=device)
        compare(nd.logsumexp(low, 1), np.full(2, -np.inf, np.float32), finite=False)
        high = nd.full((2, size), np.inf, device=device)
        compare(nd.logsumexp(high, 1), np.full(2, np.inf, np.float32), finite=False)
        poisoned = nd.array([[0.0, np.nan, 1.0] * (size // 3)], dtype="float32", device=device)
        assert np.isnan(nd.softmax(poisoned).numpy()).all()
        assert np.isnan(nd.logsumexp(poisoned).item())
        one = nd.array([[-np.inf] * (size - 1) + [3.0]], dtype="float32", device=device)
        assert nd.softmax(one).numpy().tolist() == [[0.0] * (size - 1) + [1.0]]
        assert nd.logsumexp(one).item() == 3.0


def test_logsumexp_of_nothing(device):
    compare(
        nd.logsumexp(nd.zeros((2, 0), device=device), 1),
        np.full(2, -np.inf, np.float32),
        finite=False,
    )


@pytest.mark.parametrize("label_dtype", ["int64", "int32", "uint8"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[0]], ids=str)
def test_cross_entropy(device, shape, dtype, label_dtype):
    rows, classes = shape
    labels = np.random.default_rng(1).integers(0, min(classes, 255), rows)
    x = nd.array(draw(shape), dtype=dtype, device=device)
    ids = nd.array(labels, dtype=label_dtype, device=device)
    loss, lse = nd.softmax_cross_entropy(x, ids)
    want = special.logsumexp(wide(x), 1)
    picked = wide(x)[np.arange(rows), labels]
    bound = rounding(dtype, 100)
    compare(lse, want, dtype=dtype, atol=bound)
    compare(loss, (want - picked).mean(), dtype=dtype, atol=bound)
    p = special.softmax(wide(x), 1)
    p[np.arange(rows), labels] -= 1
    scale = nd.array(2.5, dtype=dtype, device=device)
    got = nd.softmax_cross_entropy_grad(scale, x, lse, ids)
    compare(got, p * 2.5 / rows, dtype=dtype, atol=bound)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("smoothing", [0.2, 1.0])
def test_smoothed_cross_entropy(device, smoothing, dtype):
    labels = np.random.default_rng(1).integers(0, 9, 6)
    x = nd.array(draw((6, 9)), dtype=dtype, device=device)
    ids = nd.array(labels, dtype="int64", device=device)
    loss, lse = nd.softmax_cross_entropy(x, ids, smoothing)
    target = (1 - smoothing) * np.eye(9)[labels] + smoothing / 9
    want = (special.logsumexp(wide(x), 1) - (target * wide(x)).sum(1)).mean()
    bound = rounding(dtype, 100)
    compare(loss, want, dtype=dtype, atol=bound)
    scale = nd.array(2.5, dtype=dtype, device=device)
    got = nd.softmax_cross_entropy_grad(scale, x, lse, ids, smoothing)
    compare(got, (special.softmax(wide(x), 1) - target) * 2.5 / 6, dtype=dtype, atol=bound)


@pytest.mark.parametrize("view", VIEWS)
def test_cross_entropy_views(device, view):
    x = make_view(view, draw((6, 9)), device)
    ids = make_view(view, np.array([0, 8, 3, 3, 1, 2]), device, "int64")
    loss, lse = nd.softmax_cross_entropy(x, ids)
    plain, plain_lse = nd.softmax_cross_entropy(x.compact(), ids.compact())
    compare(loss, plain.numpy(), rtol=1e-6)
    compare(lse, plain_lse.numpy(), rtol=1e-6)
    one = nd.ones((), device=device)
    got = nd.softmax_cross_entropy_grad(one, x, lse, ids)
    want = nd.softmax_cross_entropy_grad(one, x.compact(), lse, ids.compact())
    compare(got, want.numpy(), atol=1e-7)


def wait_for(array):
    """A GPU's kernels check ids themselves: the host learns of a wrong one when it waits."""
    nd.synchronize(array.device)


def test_errors(device):
    x = nd.zeros((2, 3), device=device)
    ids = nd.zeros((2,), dtype="int64", device=device)
    with pytest.raises(nd.ShapeError, match=r"softmax: the array has no axes: got shape \(\)"):
        nd.softmax(nd.zeros((), device=device))
    with pytest.raises(nd.AxisError, match="logsumexp: axis is out of range: got 2 for 2 axes"):
        nd.logsumexp(x, 2)
    with pytest.raises(
        IndexError, match="softmax_cross_entropy: id is out of range: got 3: need 0"
    ):
        wait_for(nd.softmax_cross_entropy(x, ids + 3)[0])
    with pytest.raises(IndexError, match="got -1: need 0 <= id < 3"):
        wait_for(nd.softmax_cross_entropy(x, ids - 1)[0])
    with pytest.raises(nd.ShapeError, match=r"labels does not fit: got \(3,\): need \(2,\)"):
        nd.softmax_cross_entropy(x, nd.zeros((3,), dtype="int64", device=device))
    with pytest.raises(nd.DTypeError, match="ids are not integers: got float32"):
        nd.softmax_cross_entropy(x, nd.zeros((2,), device=device))
    with pytest.raises(nd.ShapeError, match=r"logits has the wrong number of axes: got \(3,\)"):
        nd.softmax_cross_entropy(x[0], ids)
    with pytest.raises(nd.ShapeError, match=r"nothing to average: got logits \(0, 3\)"):
        nd.softmax_cross_entropy(x[:0], ids[:0])
    rule = r"label smoothing: got 1.5: need a number in \[0, 1\]"
    with pytest.raises(ValueError, match=f"softmax_cross_entropy: {rule}"):
        nd.softmax_cross_entropy(x, ids, 1.5)
    with pytest.raises(ValueError, match=f"softmax_cross_entropy_grad: {rule}"):
        nd.softmax_cross_entropy_grad(nd.ones((), device=device), x, x[:, 0], ids, 1.5)
    with pytest.raises(nd.ShapeError, match=r"dloss does not fit: got \(1,\): need \(\)"):
        nd.softmax_cross_entropy_grad(nd.ones((1,), device=device), x, x[:, 0], ids)
    with pytest.raises(nd.ShapeError, match=r"lse does not fit: got \(3,\): need \(2,\)"):
        nd.softmax_cross_entropy_grad(nd.ones((), device=device), x, x[0], ids)
