"""Sharing memory with NumPy and with DLPack libraries, both ways."""

import gc
import weakref

import numpy as np
import pytest

from needle import backend_ndarray as nd
from needle.backend_ndarray.testing import VIEWS, compare, make_view

DTYPES = ["float32", "float64", "int32", "int64", "uint8", "bool"]


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("view", VIEWS)
def test_asarray_shares_memory(host_device, view, dtype):
    a = make_view(view, np.arange(12).reshape(3, 4).astype(dtype), host_device, dtype)
    x = np.asarray(a)
    np.testing.assert_array_equal(x, a.numpy())
    assert x.dtype == dtype
    assert address(x) == a._handle.ptr() + a._offset * x.itemsize
    if view == "broadcast":
        assert not x.flags.writeable
    else:
        x[1, 2] = 0
        assert a[1, 2].item() == 0


def test_array_protocol(host_device):
    a = nd.array([1.5, 2.5], dtype="float32", device=host_device)
    assert address(np.asarray(a, dtype="float32")) == a._handle.ptr()
    assert address(np.array(a)) != a._handle.ptr()
    assert np.asarray(a, dtype="int64").tolist() == [1, 2]
    with pytest.raises(
        ValueError, match="__array__: a copy is needed: got dtype int64 for float32"
    ):
        np.asarray(a, dtype="int64", copy=False)
    assert np.sum(np.asarray(a)) == 4


def test_view_keeps_the_memory_alive(device):
    x = np.asarray(nd.full((1000,), 7, device=device))
    gc.collect()
    nd.full((1000,), 8, device=device)
    assert (x == 7).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("view", [v for v in VIEWS if v != "broadcast"])
def test_dlpack_out(host_device, view, dtype):
    a = make_view(view, np.arange(12).reshape(3, 4).astype(dtype), host_device, dtype)
    x = np.from_dlpack(a)
    np.testing.assert_array_equal(x, a.numpy())
    assert x.dtype == dtype
    assert address(x) == a._handle.ptr() + a._offset * x.itemsize
    assert a.__dlpack_device__() == (1, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dlpack_in_shares_memory(dtype):
    for x in (
        np.arange(12).reshape(3, 4).astype(dtype),
        np.arange(24).reshape(4, 6).astype(dtype)[::2, ::-3],
        np.arange(24).reshape(4, 6).astype(dtype).T,
        np.array(3).astype(dtype),
    ):
        a = nd.from_dlpack(x)
        compare(a, x)
        assert a._handle.ptr() + a._offset * x.itemsize == address(x)
        a[...] = 1
        assert (x == 1).all()


def test_dlpack_round_trip(host_device):
    a = nd.array(np.arange(6.0).reshape(2, 3), device=host_device)
    b = nd.from_dlpack(a, device=host_device)
    assert b._handle is a._handle
    c = nd.from_dlpack(np.from_dlpack(a), device=host_device)
    assert c._handle.ptr() == a._handle.ptr()
    c += 1
    compare(a, np.arange(1.0, 7.0).reshape(2, 3).astype(a.dtype))


def test_borrowed_memory_keeps_its_owner():
    class Owner(np.ndarray):
        pass

    x = np.arange(5.0).view(Owner)
    gone = weakref.ref(x)
    a = nd.from_dlpack(x)
    del x
    gc.collect()
    compare(a, np.arange(5.0))
    assert gone() is not None
    del a
    gc.collect()
    assert gone() is None


def test_what_cannot_be_shared_is_copied(device):
    fixed = np.arange(4.0)
    fixed.flags.writeable = False
    a = nd.from_dlpack(fixed, device=device)
    a += 1
    assert fixed[0] == 0
    compare(a, np.arange(1.0, 5.0))
    compare(nd.from_dlpack(np.zeros((2, 0)), device=device), np.zeros((2, 0)))


def test_errors(device):
    with pytest.raises(nd.DTypeError, match="from_dlpack: dtype is not supported: got float16"):
        nd.from_dlpack(np.zeros(2, np.float16))
    with pytest.raises((AttributeError, TypeError)):
        nd.from_dlpack([1, 2])
    if nd.cpu() != nd.cpu_numpy():
        other = nd.cpu() if device == nd.cpu_numpy() else nd.cpu_numpy()
        with pytest.raises(nd.DeviceError, match="from_dlpack: devices differ"):
            nd.from_dlpack(nd.zeros((2,), device=device), device=other)
