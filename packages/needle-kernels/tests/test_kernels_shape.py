"""Copies, casts, flips, padding and joining against NumPy."""

import gc
import itertools

import numpy as np
import pytest

from needle import backend_ndarray as nd
from needle._kernels import cpu as extension
from needle.backend_ndarray.devices import REFERENCE_MODE
from needle.backend_ndarray.testing import VIEWS, compare, make_view

DTYPES = ["float32", "float64", "int32", "int64", "uint8", "bool"]


def count(shape, dtype="float32"):
    return np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)


@pytest.mark.parametrize("to", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
def test_casts(device, source, to):
    values = np.array([0, 1, 2, 100, 3.75] * 9).astype(source)
    x = nd.array(values, dtype=source, device=device)
    compare(x.astype(to), values.astype(to))
    compare(x[::-2].astype(to), values[::-2].astype(to))


def test_cast_of_negative_numbers_cuts_towards_zero(device):
    values = np.array([-1.9, -0.5, 0.5, 1.9])
    compare(
        nd.array(values, dtype="float32", device=device).astype("int32"),
        np.array([-1, 0, 0, 1], np.int32),
    )
    compare(nd.array(values, dtype="float32", device=device).astype("bool"), np.array([True] * 4))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("view", VIEWS)
def test_copies_of_views(device, view, dtype):
    for shape in [(0,), (1,), (17,), (3, 0), (3, 5, 7), (2, 3, 4, 5)]:
        x = make_view(view, count(shape, dtype), device, dtype)
        compare(x.compact(), x.numpy())
        compare(x.copy(), x.numpy())
        assert x.compact().is_compact()


@pytest.mark.parametrize("view", VIEWS)
def test_flip(device, view):
    x = make_view(view, count((3, 4, 5)), device)
    for r in range(4):
        for axes in itertools.combinations(range(3), r):
            got = x.flip(axes)
            compare(got, np.flip(x.numpy(), axes))
            assert got.is_compact()
    compare(nd.flip(x), np.flip(x.numpy()))
    compare(x.flip(-1), np.flip(x.numpy(), -1))
    with pytest.raises(nd.AxisError, match="flip: axis is out of range: got 3 for 3 axes"):
        x.flip(3)


@pytest.mark.parametrize("view", VIEWS)
def test_pad(device, view):
    x = make_view(view, count((3, 4, 2)), device)
    widths = ((1, 2), (0, 3), (4, 0))
    want = np.pad(x.numpy(), widths)
    compare(x.pad(widths), want)
    compare(x.pad(*widths), want)
    compare(nd.pad(x, [list(w) for w in widths]), want)


def test_pad_one_axis_and_none(device):
    x = nd.array([1, 2], dtype="float32", device=device)
    compare(x.pad((1, 2)), np.array([0, 1, 2, 0, 0], np.float32))
    compare(x.pad(((1, 2),)), np.array([0, 1, 2, 0, 0], np.float32))
    compare(nd.array(3.0, dtype="float32", device=device).pad(()), np.array(3, np.float32))


def test_pad_errors(device):
    x = nd.zeros((2, 3), device=device)
    with pytest.raises(nd.ShapeError, match=r"pad: widths .* got \(\(1, 1\),\) for shape \(2, 3\)"):
        x.pad(((1, 1),))
    with pytest.raises(nd.ShapeError, match=r"got \(\(1, -1\), \(0, 0\)\)"):
        x.pad(((1, -1), (0, 0)))
    with pytest.raises(nd.ShapeError, match=r"got \(\(2,\),\)"):
        x.pad(2)


@pytest.mark.parametrize("view", VIEWS)
def test_concatenate_and_stack(device, view):
    a = make_view(view, count((3, 4, 2)), device)
    b = nd.array(-count((3, 4, 2)), dtype="float32", device=device)
    for axis in range(-3, 3):
        compare(
            nd.concatenate([a, b, a], axis), np.concatenate([a.numpy(), b.numpy(), a.numpy()], axis)
        )
    for axis in range(-4, 4):
        compare(nd.stack([a, b], axis), np.stack([a.numpy(), b.numpy()], axis))


def test_concatenate_promotes_and_takes_different_lengths(device):
    a = nd.array([[1, 2]], dtype="int32", device=device)
    b = nd.array(count((3, 2)), dtype="float32", device=device)
    want = np.concatenate([a.numpy(), b.numpy()])
    compare(nd.concatenate([a, b]), want)
    assert want.dtype == "float64"


@pytest.mark.skipif(REFERENCE_MODE, reason="cpu() is the NumPy device: it has no path in C++")
class TestCommonPath:
    """The path in C++ joins arrays of one dtype on cpu() and leaves everything else to Python."""

    join = staticmethod(extension.join)

    def test_takes(self):
        a, b = nd.array(count((2, 3)), dtype="int32"), nd.array(count((1, 3)), dtype="int32")
        compare(self.join([a, b], -2, False), np.concatenate([a.numpy(), b.numpy()]))
        compare(self.join([a, a[::-1]], 2, True), np.stack([a.numpy(), a.numpy()[::-1]], 2))
        compare(self.join([nd.ones(()), nd.zeros(())], 0, True), np.array([1, 0], "float32"))
        assert self.join([nd.ones((0, 2)), nd.ones((0, 2))], 1, False).shape == (0, 4)
        big = nd.array(count((100, 200)), dtype="float32")
        compare(self.join([big, big], 1, False), np.hstack([big.numpy(), big.numpy()]))

    @pytest.mark.parametrize("allocations", range(8))
    def test_a_collection_in_between_may_join_too(self, allocations):
        join, one = self.join, nd.ones((3,))

        class Joins:
            def __del__(self):
                join([one] * 40, 0, False)

        a, b = nd.array(count(6)), nd.array(count(4))
        arrays = [a, b]
        before = gc.get_threshold()
        gc.collect()
        garbage = Joins()
        garbage.itself = garbage
        del garbage
        try:  # the collector comes at one of the allocations of the next call
            gc.set_threshold(gc.get_count()[0] + allocations)
            out = join(arrays, 0, False)
        finally:
            gc.set_threshold(*before)
        compare(out, np.concatenate([a.numpy(), b.numpy()]))

    @pytest.mark.parametrize(
        ("arrays", "axis", "is_new"),
        [
            ([], 0, False),
            ((nd.ones((2,)), nd.ones((2,))), 0, False),
            ([nd.ones((2,)), nd.ones((2,), dtype="float64")], 0, False),
            ([nd.ones((2,)), nd.ones((2,), device=nd.cpu_numpy())], 0, False),
            ([nd.ones((2,)), np.ones(2)], 0, False),
            ([nd.ones((2, 3)), nd.ones((2, 4))], 0, False),
            ([nd.ones((2, 3)), nd.ones((3,))], 0, False),
            ([nd.ones((2, 3)), nd.ones((1, 3))], 0, True),
            ([nd.ones((2,))], 1, False),
            ([nd.ones((2,))], -3, True),
            ([nd.ones((2,))], 2**70, False),
            ([nd.ones((2,))], 0.0, False),
            ([nd.ones(())], 0, False),
            ([nd.ones((1,) * 16)], 0, True),
        ],
    )
    def test_declines(self, arrays, axis, is_new):
        assert self.join(arrays, axis, is_new) is None

    def test_needs_three_arguments(self):
        with pytest.raises(TypeError, match="join: need arrays, an axis, and whether it is new"):
            self.join([], 0)


def test_join_errors(device):
    a, b = nd.zeros((2, 3), device=device), nd.zeros((2, 4), device=device)
    with pytest.raises(nd.ShapeError, match=r"concatenate: shapes differ: got \(2, 3\) and \(2, 4"):
        nd.concatenate([a, b], 0)
    with pytest.raises(nd.ShapeError, match=r"stack: shapes differ: got \(2, 3\) and \(2, 4\)"):
        nd.stack([a, b])
    with pytest.raises(nd.ShapeError, match="stack: no arrays: got 0: need at least one"):
        nd.stack([])
    with pytest.raises(nd.AxisError, match="stack: axis is out of range: got 3 for 3 axes"):
        nd.stack([a, a], 3)
    with pytest.raises(nd.ShapeError, match=r"concatenate: shapes differ"):
        nd.concatenate([a, a[0]], 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fill(device, dtype):
    a = nd.empty((5, 7), dtype=dtype, device=device)
    a.fill(3)
    compare(a, np.full((5, 7), 3, dtype))
    a[1::2, ::-3].fill(0)
    want = np.full((5, 7), 3, dtype)
    want[1::2, ::-3] = 0
    compare(a, want)


def test_fill_follows_numpy_for_integers(device):
    a = nd.zeros((2,), dtype="uint8", device=device)
    a.fill(3.9)
    compare(a, np.array([3, 3], np.uint8))
    with pytest.raises(OverflowError, match=r"fill: .* got 256: uint8 holds 0 to 255"):
        a.fill(256)
    with pytest.raises(ValueError, match="fill: not a finite number: got nan: uint8 holds"):
        a.fill(float("nan"))
    with pytest.raises(nd.ShapeError, match=r"fill: cannot write to a broadcast view: got shape"):
        a.broadcast_to((2, 2)).fill(0)


def test_copy_into(device):
    a = nd.zeros((3, 4), device=device)
    version = a._handle.version
    nd.copy_into(a, nd.array([[1], [2], [3]], dtype="int32", device=device))
    compare(a, np.broadcast_to(np.float32([[1], [2], [3]]), (3, 4)))
    assert a._handle.version == version + 1
    with pytest.raises(nd.ShapeError, match=r"copy_into: .* got \(2,\) to \(3, 4\)"):
        nd.copy_into(a, nd.zeros((2,), device=device))
