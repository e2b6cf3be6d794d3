"""NDArray: construction, views, indexing and writing, with NumPy as the oracle."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from needle import backend_ndarray as nd
from needle._kernels import cpu as extension
from needle.backend_ndarray.devices import REFERENCE_MODE
from needle.backend_ndarray.testing import VIEWS, compare, make_view

DEFAULT = np.dtype("float64" if REFERENCE_MODE else "float32")


def count(*shape):
    return np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)


def same_strides(array, oracle):
    assert array.strides == tuple(s // oracle.itemsize for s in oracle.strides)


class TestConstruction:
    def test_from_data(self, device):
        for data in ([[1.0, 2], [3, 4]], 5.0, [], [[]], np.ones((2, 0, 3))):
            a = nd.NDArray(data, device=device)
            compare(a, np.asarray(data), dtype=DEFAULT)
            assert a.device == device
        compare(nd.array(3.0), np.array(3.0), dtype=DEFAULT)

    def test_foreign_integers_become_float32_unless_the_reference_keeps_them(self, device):
        a = nd.NDArray(np.arange(3), device=device)
        assert a.dtype == ("int64" if REFERENCE_MODE else "float32")
        assert nd.NDArray(np.float16([1.5]), device=device).dtype == "float32"

    @pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "uint8", "bool"])
    def test_dtype_by_name_type_or_dtype(self, device, dtype):
        for spelling in (dtype, np.dtype(dtype), np.dtype(dtype).type):
            a = nd.NDArray([0, 1, 2], device=device, dtype=spelling)
            compare(a, np.array([0, 1, 2]).astype(dtype))
            assert a.dtype is np.dtype(dtype)
            assert a.dtype == dtype

    def test_copies(self, device):
        x = count(3)
        a = nd.NDArray(x, device=device)
        x[0] = 7
        b = nd.NDArray(a)
        a[1] = 8
        compare(a, np.float32([0, 8, 2]))
        compare(b, np.float32([0, 1, 2]))
        assert b.device == a.device
        compare(nd.NDArray(a, dtype="int64"), np.array([0, 8, 2]))

    def test_ndarray_keeps_dtype_and_device(self):
        a = nd.NDArray([1], device=nd.cpu_numpy(), dtype="uint8")
        assert nd.NDArray(a).dtype == "uint8"
        assert nd.NDArray(a).device == nd.cpu_numpy()
        b = nd.NDArray(a, device=nd.cpu())
        assert b.device == nd.cpu()
        compare(b, np.uint8([1]))

    def test_keeps_memory_order_and_reads_any_layout(self, device):
        x = np.asfortranarray(count(3, 4))
        a = nd.NDArray(x, device=device)
        compare(a, x)
        same_strides(a, x)
        swapped = count(3, 4).astype(">f4")
        compare(nd.NDArray(swapped, device=device, dtype="float32"), count(3, 4))

    def test_errors(self, device):
        with pytest.raises(
            nd.DTypeError, match=r"dtype is not supported: got float16: need one of"
        ):
            nd.NDArray([1], device=device, dtype="float16")
        with pytest.raises(nd.DTypeError, match="got complex128: need real numbers"):
            nd.NDArray([1j], device=device)
        with pytest.raises(nd.DTypeError, match="got str32: need real numbers"):
            nd.NDArray(["a"], device=device, dtype="float32")
        with pytest.raises(nd.DTypeError, match="got nonsense"):
            nd.array([1], dtype="nonsense")
        with pytest.raises(nd.DeviceError, match="array: not a device: got 'cpu': need cpu"):
            nd.array([1], device="cpu")
        with pytest.raises(nd.ShapeError, match="array: too many axes: got 17: at most 16"):
            nd.NDArray(np.zeros((1,) * 17), device=device)

    def test_functions(self, device):
        compare(nd.zeros((2, 3), device=device), np.zeros((2, 3), np.float32))
        compare(nd.ones(3, dtype="int64", device=device), np.ones(3, np.int64))
        compare(nd.full((2,), 2.5, device=device), np.full(2, 2.5, np.float32))
        compare(nd.full((2,), True, dtype=bool, device=device), np.full(2, True))
        assert nd.empty((0, 2), dtype="uint8", device=device).shape == (0, 2)
        with pytest.raises(nd.ShapeError, match=r"empty: negative size: got \(2, -1\)"):
            nd.empty((2, -1), device=device)
        with pytest.raises(TypeError, match=r"empty: not integers: got \(2, 1.5\)"):
            nd.empty((2, 1.5), device=device)


class TestMake:
    def test_view_of_a_handle(self, device):
        a = nd.array(count(4, 6), device=device)
        b = nd.NDArray.make((2, 3), (12, -1), device, a._handle, offset=5)
        compare(b, a.numpy()[::2, 5:2:-1])
        assert b._handle is a._handle
        assert b._offset == 5

    def test_new_memory(self, device):
        a = nd.NDArray.make((2, 3), device=device)
        assert (a.shape, a.strides, a._offset, a.dtype) == ((2, 3), (3, 1), 0, "float32")
        assert a._handle.size == 6
        b = nd.NDArray.make((2, 3), strides=(1, 2), device=device, dtype="int64")
        b[...] = nd.array(count(2, 3), device=device)
        compare(b, count(2, 3).astype(int))
        assert nd.NDArray.make((2,), offset=3).fill(1) is None

    def test_errors(self, device):
        handle = nd.zeros((6,), device=device)._handle
        with pytest.raises(nd.ShapeError, match=r"make: the view leaves its storage: .* has 6"):
            nd.NDArray.make((7,), device=device, handle=handle)
        with pytest.raises(nd.ShapeError, match=r"strides \(-1,\), offset 0, elements -1 to 0"):
            nd.NDArray.make((2,), (-1,), device, handle)
        with pytest.raises(nd.ShapeError, match="offset -1"):
            nd.NDArray.make((0,), device=device, handle=handle, offset=-1)
        with pytest.raises(nd.ShapeError, match=r"one stride per axis"):
            nd.NDArray.make((2, 2), (1,), device, handle)
        with pytest.raises(
            nd.DTypeError, match="make: dtypes differ: got float64 for a storage of"
        ):
            nd.NDArray.make((2,), device=device, handle=handle, dtype="float64")


class TestTooManyElements:
    """An array, or a view, has fewer than 2^60 elements, not counting axes of size 0."""

    def test_views(self, device):
        one = nd.ones((1, 4), device=device)
        for op, view in (
            ("broadcast_to", lambda: one.broadcast_to((2**62, 4))),
            ("broadcast_to", lambda: nd.broadcast_to(one, (2**58, 4))),
            ("as_strided", lambda: one.as_strided((2**62, 4), (0, 0))),
            ("make", lambda: nd.NDArray.make((2**60,), (0,), device, one._handle)),
            ("reshape", lambda: nd.zeros((0,), device=device).reshape((2**70, 0))),
            ("reshape", lambda: nd.zeros((0,), device=device).reshape(2**40, 0, 2**40)),
        ):
            with pytest.raises(nd.ShapeError, match=rf"{op}: too many .*: need fewer than 2\^60"):
                view()
        most = one.broadcast_to((2**58 - 1, 4))
        assert most.size == 2**60 - 4
        assert most[2**57, 3].item() == 1
        assert nd.zeros((0, 2**59), device=device).sum(1).shape == (0,)

    def test_strides(self, device):
        one = nd.ones((1,), device=device)
        for view in (
            lambda: one.as_strided((1,), (2**70,)),
            lambda: nd.NDArray.make((1,), (-(2**60),), device),
            lambda: nd.NDArray.make((1,), (2**60,), device, one._handle),
        ):
            with pytest.raises(nd.ShapeError, match=r"a stride is too large: .* less than 2\^60"):
                view()
        with pytest.raises(nd.ShapeError, match=r"strides \(1, 2\): need one stride per axis"):
            nd.NDArray.make((2,), (1, 2), device)

    def test_new_arrays_of_a_given_shape(self, device):
        ids = nd.zeros((2,), dtype="int64", device=device)
        src, w = nd.ones((2, 3), device=device), nd.ones((1, 1, 1, 1), device=device)
        for make in (
            lambda: nd.NDArray.make((2**62 + 10,), device=device),
            lambda: nd.zeros((2**60,), device=device),
            lambda: nd.zeros((2**70,), device=device),
            lambda: nd.zeros((2**62, 0, 2**62), device=device),
            lambda: device.rand(2**70),
            lambda: nd.one_hot(ids, 2**63),
            lambda: device.one_hot(2**63, [0]),
            lambda: nd.scatter_add(src, ids, 2**70),
            lambda: nd.conv_input_grad(w, w, (1, 2**62, 2**62, 1), 2**62, 0),
        ):
            for kind in (nd.ShapeError, MemoryError):
                with pytest.raises(kind, match=r"too many elements: got .*: need fewer than 2\^60"):
                    make()

    def test_results(self, device):
        row = nd.ones((1,), device=device).broadcast_to((2**59,))
        wide = nd.ones((1,), dtype="float64", device=device).broadcast_to((2**59,))
        column, w = row[: 2**31].reshape((2**31, 1)), nd.ones((1, 1, 1, 1), device=device)
        for call in (
            lambda: nd.concatenate([row] * 2),
            lambda: nd.concatenate([row] * 16),
            lambda: nd.concatenate([row] * 32),  # 2^64 elements: 0, counted in int64
            lambda: nd.concatenate([row, *[wide] * 31]),
            lambda: nd.stack([row] * 32),
            lambda: column + column.T,
            lambda: column @ column.T,
            lambda: nd.pad(row, (2**62, 2**62)),
            lambda: nd.pad(row, (2**70, 0)),
            lambda: nd.conv(w, w, padding=2**70),
            lambda: nd.NDArray.make((2,), device=device, offset=2**63),
            lambda: nd.NDArray.make((2, 2), (2**59, 2**59), device),
        ):
            with pytest.raises(
                MemoryError, match=r"out of memory: asked for 2\^60 elements or mor"
            ):
                call()

    def test_storage(self):
        for size in (2**60, 2**62 + 10, 2**63, 2**70):
            with pytest.raises(MemoryError, match=r"asked for 2\^60 elements or more"):
                extension.Storage(size, "float32")
        for size in (2**59 + 1, 2**60 - 1):  # of eight bytes
            with pytest.raises(MemoryError, match=f"asked for {8 * size} bytes"):
                extension.Storage(size, "float64")
        for size in (-1, -(2**70)):
            with pytest.raises(ValueError, match="Storage: size: negative: need 0 or more"):
                extension.Storage(size, "float32")


class TestViews:
    def test_attributes(self, device):
        a = nd.array(count(2, 3, 4), device=device)
        assert (a.shape, a.strides, a.ndim, a.size, len(a)) == ((2, 3, 4), (12, 4, 1), 3, 24, 2)
        assert nd.array(1.0, device=device).shape == ()

    @pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (-1, 1, 0)])
    def test_permute(self, device, axes):
        x = count(2, 3, 4)
        a = nd.array(x, device=device)
        compare(a.permute(axes), x.transpose(axes))
        compare(a.permute(*axes), x.transpose(axes))
        same_strides(a.permute(axes), x.transpose(axes))
        assert a.permute(axes)._handle.ptr() == a._handle.ptr()
        compare(a.T, x.T)

    def test_broadcast_to(self, device):
        a = nd.array(count(3, 1), device=device)
        compare(a.broadcast_to((2, 3, 4)), np.broadcast_to(count(3, 1), (2, 3, 4)))
        assert a.broadcast_to(2, 3, 4).strides == (0, 1, 0)
        compare(nd.broadcast_to(a, (3, 5)), np.broadcast_to(count(3, 1), (3, 5)))
        with pytest.raises(nd.ShapeError, match=r"broadcast_to: .* got \(3, 1\) to \(2, 4\)"):
            a.broadcast_to((2, 4))
        with pytest.raises(nd.ShapeError, match=r"got \(3, 1\) to \(3,\)"):
            a.broadcast_to((3,))

    def test_permute_errors(self, device):
        a = nd.zeros((2, 3), device=device)
        with pytest.raises(nd.ShapeError, match=r"permute: axes are missing: got \(1,\) for shape"):
            a.permute((1,))
        with pytest.raises(nd.ShapeError, match=r"permute: axis named twice: got \(0, 0\)"):
            a.permute((0, 0))
        with pytest.raises(nd.AxisError, match="permute: axis is out of range: got 2 for 2 axes"):
            a.permute((0, 2))

    def test_as_strided(self, device):
        a = nd.array(count(10), device=device)
        windows = a.as_strided((4, 3), (2, 1))
        compare(windows, np.lib.stride_tricks.sliding_window_view(count(10), 3)[::2])
        compare(a[2:].as_strided((2,), (1,)), np.float32([2, 3]))
        compare(a[2:].as_strided((2,), (1,), offset=0), np.float32([0, 1]))
        with pytest.raises(nd.ShapeError, match=r"as_strided: the view leaves .* elements 0 to 10"):
            a.as_strided((2,), (10,))
        with pytest.raises(nd.ShapeError, match=r"elements 8 to 10: the storage has 10"):
            a[8:].as_strided((3,), (1,))

    @settings(max_examples=200, deadline=None)
    @given(st.data())
    def test_reshape_copies_only_where_numpy_does(self, data):
        shape = data.draw(hnp.array_shapes(max_dims=4, max_side=6))
        x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        axes = data.draw(st.permutations(range(x.ndim)))
        steps = [data.draw(st.sampled_from([1, 2, -1])) for _ in shape]
        a = nd.array(x)
        index = tuple(slice(None, None, s) for s in steps)
        a, x = a[index].permute(axes), x[index].transpose(axes)
        target = data.draw(st.permutations([d for d in x.shape for d in factors(d)] + [1]))
        compare(a.reshape(target), x.reshape(target))
        shared = np.shares_memory(x, x.reshape(target))
        assert (a.reshape(target)._handle.ptr() == a._handle.ptr()) == shared
        assert a.reshape(-1).shape == (x.size,)

    def test_reshape(self, device):
        a = nd.array(count(2, 3, 4), device=device)
        compare(a.reshape(4, -1), count(4, 6))
        compare(nd.reshape(a, (24,)), count(24))
        compare(nd.array(5.0, device=device).reshape(1, 1), np.full((1, 1), 5.0), dtype=DEFAULT)
        assert nd.zeros((0, 3), device=device).reshape((5, 0)).shape == (5, 0)
        for wrong in [(5, 5), (-1, 5), (-1, -1), (24, 0)]:
            with pytest.raises(nd.ShapeError, match=r"reshape: sizes differ: got 24 elements for"):
                a.reshape(wrong)
        with pytest.raises(nd.ShapeError, match=r"reshape: negative size: got \(-2, -12\)"):
            a.reshape(-2, -12)
        with pytest.raises(nd.ShapeError, match="sizes differ"):
            nd.zeros((0, 3), device=device).reshape((0, -1))

    def test_compact(self, device):
        a = nd.array(count(3, 4), device=device)
        assert a.is_compact()
        assert a.compact() is a
        for view in (a.T, a[1:], a[:, 1], a[::-1], nd.zeros((1,), device=device).broadcast_to(3)):
            assert not view.is_compact()
            made = view.compact()
            assert made.is_compact()
            compare(made, view.numpy())
            assert made._handle.ptr() != view._handle.ptr()


def factors(n):
    """A few factors of n whose product is n."""
    for p in (2, 3, 5):
        if n > p and n % p == 0:
            return [p, n // p]
    return [n]


INDICES = [
    1, -1, slice(None), slice(1, 3), slice(None, None, -1), slice(4, 0, -2), slice(10, 20),
    slice(-2, None), slice(3, 1), Ellipsis, None, (0, 1), (slice(None), 2), (Ellipsis, 0),
    (0, Ellipsis), (None, 1, None), (slice(None, None, 2), slice(None, None, -3)),
    (1, 2, 3), (Ellipsis, slice(1, 2), None), (slice(0, 0), 1), (), (-1, Ellipsis, -1),
    (np.int64(1), np.array(2)),
]  # fmt: skip


class TestIndexing:
    @pytest.mark.parametrize("view", VIEWS)
    def test_get(self, device, view):
        a = make_view(view, count(5, 6, 7), device)
        x = a.numpy()
        for index in INDICES:
            compare(a[index], x[index])
            assert a[index]._handle is a._handle

    @pytest.mark.parametrize("view", [v for v in VIEWS if v != "broadcast"])
    def test_set(self, device, view):
        a = make_view(view, count(5, 6, 7), device)
        x = a.numpy()
        for index in INDICES:
            a[index] = -5
            x[index] = -5
            compare(a, x)
            values = -count(*x[index].shape)
            a[index] = nd.array(values, device=device)
            x[index] = values
            compare(a, x)

    @settings(max_examples=200, deadline=None)
    @given(st.data())
    def test_matches_numpy(self, data):
        shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
        x = count(*shape)
        index = data.draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
        a = nd.array(x, dtype="float32")
        want = x[index]
        compare(a[index], np.asarray(want))
        if isinstance(want, np.ndarray) and want.size > 1:
            same_effective_strides(a[index], want)

    def test_integer_drops_its_axis(self, device):
        a = nd.array(count(2, 3), device=device)
        assert a[1].shape == (3,)
        assert a[1, 2].shape == ()
        assert float(a[1, 2]) == 5.0

    def test_iteration(self, device):
        a = nd.array(count(3, 2), device=device)
        for row, want in zip(a, count(3, 2), strict=True):
            compare(row, want)
        with pytest.raises(TypeError, match=r"len: the array has no axes: got shape \(\)"):
            len(a[0, 0])
        with pytest.raises(TypeError, match="no axes"):
            list(a[0, 0])

    def test_errors(self, device):
        a = nd.zeros((2, 3), device=device)
        with pytest.raises(IndexError, match="index: out of range: got 2 for axis 0 of size 2"):
            a[2]
        with pytest.raises(IndexError, match="got -4 for axis 1 of size 3: need -3 <= index < 3"):
            a[0, -4]
        with pytest.raises(IndexError, match=r"too many entries: got 3 and 0 Ellipsis for shape"):
            a[0, 0, 0]
        with pytest.raises(IndexError, match="got 0 and 2 Ellipsis"):
            a[..., ...]
        for wrong in (1.0, "x", [0], True, np.array([0]), np.array([True, False])):
            with pytest.raises(IndexError, match=r"index: unsupported entry: got .* for axis 0"):
                a[wrong]
        with pytest.raises(ValueError, match="zero"):
            a[::0]
        with pytest.raises(IndexError, match=f"got {-(10**30)} for axis 0 of size 2"):
            a[-(10**30)]
        with pytest.raises(IndexError, match="too many axes: got more than 16: at most 16"):
            a[(None,) * 15]
        with pytest.raises(TypeError, match="slice indices"):
            a["x":]

    def test_unusual_entries(self, device):
        x = count(2, 3)
        a = nd.array(x, device=device)
        for index in (np.int8(1), (np.uint64(1), np.array(2)), (None,) * 14):
            compare(a[index], x[index])
        compare(a[nd.array(1, dtype="int64")], x[1])
        for step in (2**62, 2**63 - 1, -(2**63), 10**30):  # times a stride, too large
            compare(a[::step], x[::step])

    def test_of_a_subclass_and_of_an_array_without_parts(self):
        class Child(nd.NDArray):
            __slots__ = ()

        compare(Child([1, 2, 3])[1:], np.array([2, 3], Child([1]).dtype))
        with pytest.raises(AttributeError, match="_handle"):
            nd.NDArray.__new__(nd.NDArray)[0]

    def test_process_slice(self, device):
        a = nd.array(count(5, 7), device=device)
        assert a.process_slice(slice(None), 0) == slice(0, 5, 1)
        assert a.process_slice(slice(-3, None, 2), 1) == slice(4, 7, 2)
        assert a.process_slice(slice(1, 100), 0) == slice(1, 5, 1)
        for sl in (slice(None, None, -1), slice(3, None, -2), slice(0, 3, -1), slice(None, -3)):
            compare(a[a.process_slice(sl, 0)], a.numpy()[sl])


def same_effective_strides(array, oracle):
    """Strides agree on every axis along which one can step."""
    for size, got, want in zip(array.shape, array.strides, oracle.strides, strict=True):
        assert size <= 1 or got * oracle.itemsize == want


class TestWriting:
    def test_broadcasts_and_casts(self, device):
        a = nd.zeros((3, 4), device=device)
        x = np.zeros((3, 4), np.float32)
        for index, value in [
            (slice(1, 3), count(4)),
            ((slice(None), 1), np.array([1, 2, 3])),
            (0, [9, 8, 7, 6]),
            ((2, 3), np.float64(0.5)),
            ((slice(None), slice(0, 1)), count(1, 3, 1)),
        ]:
            a[index] = value
            x[index] = value
            compare(a, x)
        a[1] = nd.array([1, 2, 3, 4], dtype="int32", device=device)
        x[1] = [1, 2, 3, 4]
        compare(a, x)

    def test_float_into_integers_is_cut(self, device):
        a = nd.zeros((2,), dtype="int32", device=device)
        a[0] = 3.9
        a[1] = nd.array(-3.9, device=device)
        compare(a, np.array([3, -3], np.int32))

    @pytest.mark.parametrize("shift", [1, 2, -1])
    def test_overlap(self, device, shift):
        x = count(9, 40)
        a = nd.array(x, device=device)
        to, source = (
            (slice(shift, None), slice(None, -shift))
            if shift > 0
            else (slice(None, shift), slice(-shift, None))
        )
        a[to] = a[source]
        x[to] = x[source].copy()
        compare(a, x)
        a[:, to] = a[:, source]
        x[:, to] = x[:, source].copy()
        compare(a, x)

    def test_overlap_with_a_reversed_or_permuted_self(self, device):
        x = count(30, 30)
        a = nd.array(x, device=device)
        a[...] = a[::-1]
        compare(a, x[::-1])
        a[...] = a.T
        compare(a, x[::-1].T)
        a[...] = a
        compare(a, x[::-1].T)

    def test_drops_leading_axes_of_size_1(self, device):
        a = nd.zeros((2, 3), device=device)
        a[0] = nd.array(count(1, 1, 3), device=device)
        a[1] = nd.array(count(1, 1, 1) + 5, device=device)
        compare(a, np.array([[0, 1, 2], [5, 5, 5]], a.dtype))
        with pytest.raises(nd.ShapeError, match=r"copy_into: .* got \(2, 1, 3\) to \(3,\)"):
            a[0] = nd.zeros((2, 1, 3), device=device)

    @pytest.mark.skipif(REFERENCE_MODE, reason="cpu() is the NumPy device: it has no path in C++")
    def test_what_the_paths_in_cpp_decline(self):
        a = nd.array(count(4, 4))
        ints = a.astype("uint8")
        for target, value in [
            (a, a[::-1]),  # memory still to be read
            (a[1:], a[:-1]),
            (a[0].broadcast_to((2, 4)), a[:2]),  # one place, several elements
            (a, nd.zeros((3, 4))),
            (a[0], nd.zeros((2, 1, 4))),
            (a, nd.zeros((4, 4), device=nd.cpu_numpy())),
            (a, 1.0),
        ]:
            assert not extension.copy_into(target, value)
        for target, number in [
            (ints, 256),
            (ints, 1.0),
            (ints.astype("bool"), 1),
            (a[0].broadcast_to((2, 4)), 1.0),
            (a, np.float32(1)),
            (nd.zeros((4, 4), device=nd.cpu_numpy()), 1.0),
        ]:
            assert not extension.fill(target, number)
        assert extension.copy(nd.zeros((2,), device=nd.cpu_numpy()), a.dtype, False) is None
        compare(a, count(4, 4))
        assert extension.copy_into(a[:2], a[2:])  # apart in one storage
        compare(a, np.concatenate([count(4, 4)[2:]] * 2))

    def test_overlap_through_two_storages(self):
        x = count(100)
        a, b = nd.from_dlpack(x), nd.from_dlpack(x)
        assert a._handle is not b._handle
        a[1:] = b[:-1]
        compare(a, np.concatenate([[0], count(99)]).astype(np.float32))

    def test_raises_the_version(self, device):
        a = nd.zeros((3,), device=device)
        view, version = a[1:], a._handle.version
        view[0] = 1
        assert a._handle.version == version + 1
        a[...] = a + 1
        assert view._handle.version == version + 2

    def test_errors(self, device):
        a = nd.zeros((2, 3), device=device)
        with pytest.raises(nd.ShapeError, match=r"copy_into: .* got \(2,\) to \(3,\)"):
            a[0] = nd.zeros((2,), device=device)
        with pytest.raises(nd.ShapeError, match="cannot write to a broadcast view"):
            a[0].broadcast_to((2, 3))[...] = a
        with pytest.raises(OverflowError, match="got -1: uint8 holds 0 to 255"):
            a.astype("uint8")[0] = -1
        with pytest.raises(nd.DTypeError):
            a[0] = "x"

    def test_one_element_of_a_broadcast_view_is_one_place_in_memory(self, device):
        a = nd.array([1.0], device=device)
        b = a.broadcast_to((3,))
        for index, value in ((0, 5), (slice(2, 3), 4), (-1, nd.array(3.0, device=device))):
            b[index] = value
            assert b.tolist() == [float(value)] * 3
            assert a.tolist() == [float(value)]
        version = a._handle.version
        for index in (slice(None), slice(0, 2), ...):
            with pytest.raises(nd.ShapeError, match="cannot write to a broadcast view"):
                b[index] = 6
        assert a.tolist() == [3.0]
        assert a._handle.version == version


class TestFlat:
    @pytest.mark.parametrize("view", [v for v in VIEWS if v != "broadcast"])
    def test_writes_through(self, device, view):
        a = make_view(view, count(3, 4, 5), device)
        x = a.numpy()
        a.flat[3] += 1
        x.flat[3] += 1
        a.flat[-1] = 100
        x.flat[-1] = 100
        a.flat[10:20:3] = -1
        x.flat[10:20:3] = -1
        a.flat[40:42] = nd.array([5, 6], device=device)
        x.flat[40:42] = [5, 6]
        compare(a, x)
        a.flat[...] = 0
        compare(a, x * 0)

    @pytest.mark.parametrize("view", VIEWS)
    def test_reads(self, device, view):
        a = make_view(view, count(3, 4, 5), device)
        x = a.numpy()
        flat = a.flat
        assert len(flat) == flat.size == 60
        assert flat.shape == (60,)
        assert flat.dtype == "float32"
        assert flat[7].item() == x.flat[7]
        compare(flat[5:50:7], x.flat[5:50:7])
        compare(flat, x.ravel())
        assert [v.item() for v in flat] == x.ravel().tolist()
        np.testing.assert_array_equal(np.asarray(flat), x.ravel())

    def test_view_where_strides_allow(self, device):
        a = nd.array(count(3, 4), device=device)
        assert a.flat._handle is a._handle
        assert a[:, 1].flat.strides == (4,)
        with pytest.raises(IndexError, match="got 12 for axis 0 of size 12"):
            a.T.flat[12]
        assert "Flat([" in repr(a.T.flat)


class TestConversion:
    def test_numpy_copies(self, device):
        a = nd.array(count(2, 2), device=device)
        a.numpy()[0, 0] = 9
        compare(a, count(2, 2))
        assert a.T.numpy().flags.c_contiguous

    def test_item_tolist_and_scalars(self, device):
        a = nd.array([[1.5]], device=device)
        assert a.item() == 1.5
        assert float(a) == 1.5
        assert int(a) == 1
        assert bool(a)
        assert a.tolist() == [[1.5]]
        assert [10, 20, 30][nd.array(1, dtype="int64", device=device)] == 20
        b = nd.zeros((2,), device=device)
        for f, name in ((float, "item"), (int, "item"), (bool, "bool")):
            with pytest.raises(ValueError, match=rf"{name}: not one element: got shape \(2,\)"):
                f(b)
        with pytest.raises(
            TypeError, match=r"index: not an integer: got float32 of shape \(1, 1\)"
        ):
            [1, 2][nd.array([[1.5]], dtype="float32", device=device)]

    def test_astype(self, device):
        a = nd.array([0.5, -1.5], device=device)
        assert a.astype(a.dtype) is not a
        assert a.astype(a.dtype, copy=False) is a
        compare(a.astype("int64"), np.array([0, -1]))

    def test_to(self, device):
        a = nd.array(count(2, 3), device=device)
        assert a.to(device) is a
        moved = a.T.to(nd.cpu_numpy())
        compare(moved, a.T.numpy())
        assert moved.device == nd.cpu_numpy()

    def test_repr(self, device):
        a = nd.array([1.0, 2.0], device=device)
        assert repr(a) == f"NDArray([1. 2.], device={device})"
        assert str(a) == "[1. 2.]"

    @pytest.mark.parametrize("view", VIEWS)
    def test_copies(self, device, view):
        a = make_view(view, count(3, 4), device)
        for b in (copy.copy(a), copy.deepcopy(a), a.copy(), pickle.loads(pickle.dumps(a))):
            compare(b, a.numpy())
            assert b.device == a.device
            assert b._handle.ptr() != a._handle.ptr()

    @pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "uint8", "bool"])
    def test_pickle_keeps_dtype(self, device, dtype):
        a = nd.ones((2, 0, 3), dtype=dtype, device=device)
        b = pickle.loads(pickle.dumps(a))
        assert (b.dtype, b.shape, b.device) == (a.dtype, a.shape, a.device)

    def test_not_hashable_like_numpy(self, device):
        with pytest.raises(TypeError, match="unhashable"):
            hash(nd.zeros((1,), device=device))


class TestDevicesMustAgree:
    def test_every_family(self):
        if REFERENCE_MODE:
            pytest.skip("one device only")
        a, b = nd.ones((2, 2), device=nd.cpu()), nd.ones((2, 2), device=nd.cpu_numpy())
        message = r"devices differ: got cpu\(\) and cpu_numpy\(\): move one with .to\(device\)"
        for call in (
            lambda: a + b,
            lambda: a < b,
            lambda: a @ b,
            lambda: nd.relu_grad(a, b),
            lambda: nd.concatenate([a, b]),
            lambda: nd.gather(a, b.astype("int64")),
            lambda: nd.copy_into(a, b),
            lambda: a.__setitem__(0, b[0]),
            lambda: nd.layer_norm(a, b[0], b[1], 1e-5),
            lambda: nd.sgd([a], [b], [a], 0.1, 0.0, 0.0),
        ):
            with pytest.raises(nd.DeviceError, match=message):
                call()
        with pytest.raises(nd.DeviceError):
            a += b


def test_float16_scalars_and_numpy_arrays_promote_as_numpy(device):
    a = nd.ones((2,), device=device)
    for other in (
        np.float16(2),
        np.float64(2),
        np.int64(2),
        np.uint8(2),
        np.ones(2),
        np.ones((3, 1)),
    ):
        for left, right, oracle in (
            (a, other, a.numpy() + other),
            (other, a, other + a.numpy()),
        ):
            compare(left + right, oracle)


def test_many_axes(device):
    x = count(*(2,) * 10)
    shape = (1,) * 6 + x.shape
    a = nd.array(x, device=device).reshape(shape)
    assert a.ndim == 16
    compare(
        (a + a.permute(tuple(reversed(range(16)))))[0, 0],
        (x.reshape(shape) + x.reshape(shape).T)[0, 0],
    )


def test_module_functions_take_numpy_arrays_and_lists():
    x = np.arange(6.0).reshape(2, 3)
    for got, want in [
        (nd.sum(x, 0), x.sum(0)),
        (nd.max(x), x.max()),
        (nd.flip(x, 1), x[:, ::-1]),
        (nd.reshape(x, (6,)), x.reshape(6)),
        (nd.broadcast_to(x, (2, 2, 3)), np.broadcast_to(x, (2, 2, 3))),
        (nd.maximum(x, 2), np.maximum(x, 2)),
        (nd.exp([0.0, 1.0]), np.exp([0.0, 1.0])),
        (nd.negate(x), -x),
        (nd.stack(nd.array(x)), x),
    ]:
        compare(got, want, dtype=DEFAULT, rtol=1e-6)


def test_functions_of_several_arrays_want_ndarrays():
    a = nd.ones((2, 2))
    with pytest.raises(TypeError, match="gather: ids is not an array: got list: need an NDArray"):
        nd.gather(a, [0, 1])
    with pytest.raises(TypeError, match="stack: one of arrays is not an array: got float"):
        nd.stack([1.0, 2.0])


def test_python_ints_that_do_not_fit_raise(device):
    with pytest.raises(OverflowError, match=r"array: .* got 300: uint8 holds 0 to 255"):
        nd.array([300, 1], dtype="uint8", device=device)
    with pytest.raises(OverflowError, match="got -1: uint8"):
        nd.array(-1, dtype="uint8", device=device)
    compare(nd.array(np.array([300]), dtype="uint8", device=device), np.uint8([44]))


def test_process_slice_wants_an_axis_of_the_array(device):
    with pytest.raises(nd.AxisError, match="process_slice: axis is out of range: got 2 for 2 axes"):
        nd.zeros((2, 3), device=device).process_slice(slice(None), 2)
