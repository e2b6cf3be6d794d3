"""Gather, scatter-add and one-hot against NumPy's fancy indexing."""

import numpy as np
import pytest

from needle import backend_ndarray as nd
from needle.backend_ndarray.testing import VIEWS, compare, make_view

DTYPES = ["float32", "float64", "int32", "int64", "uint8", "bool"]


def draw(shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gather(device, dtype):
    for rows, width, count in [
        (1, 1, 1),
        (5, 7, 0),
        (5, 16, 9),
        (100, 17, 50),
        (4, 0, 3),
        (9, 33, 2),
    ]:
        values = (draw((rows, width)) * 100 + 100).astype(dtype)
        table = nd.array(values, dtype=dtype, device=device)
        ids = np.random.default_rng(1).integers(0, rows, count)
        compare(nd.gather(table, nd.array(ids, dtype="int64", device=device)), values[ids])


@pytest.mark.parametrize("id_dtype", ["int64", "int32", "uint8"])
def test_ids_of_any_shape_and_type(device, id_dtype):
    values = draw((6, 5)).astype(np.float32)
    table = nd.array(values, dtype="float32", device=device)
    for shape in [(), (2,), (2, 3), (2, 0), (2, 1, 2)]:
        ids = np.random.default_rng(2).integers(0, 6, shape)
        index = nd.array(ids, dtype=id_dtype, device=device)
        compare(nd.gather(table, index), values[ids])
        compare(nd.one_hot(index, 6), np.eye(6, dtype=np.float32)[ids])
        src = draw((*shape, 5), 3).astype(np.float32)
        want = np.zeros((6, 5))
        np.add.at(want, ids, src)
        got = nd.scatter_add(nd.array(src, dtype="float32", device=device), index, 6)
        compare(got, want, dtype="float32", atol=1e-6)


@pytest.mark.parametrize("view", VIEWS)
def test_views(device, view):
    table = make_view(view, draw((8, 9)), device)
    ids = make_view(view, np.array([3, 0, 7, 3, 3, 1]), device, "int64")
    compare(nd.gather(table, ids), table.numpy()[ids.numpy()])
    src = make_view(view, draw((6, 9), 1), device)
    want = np.zeros((8, 9))
    np.add.at(want, ids.numpy(), src.numpy())
    compare(nd.scatter_add(src, ids, 8), want, dtype="float32", atol=1e-6)
    compare(nd.one_hot(ids, 8, "uint8"), np.eye(8, dtype=np.uint8)[ids.numpy()])


def wait_for(array):
    """A GPU's kernels check ids themselves: the host learns of a wrong one when it waits."""
    nd.synchronize(array.device)


def test_every_id_is_checked(device):
    table = nd.ones((5, 2), device=device)
    for shape in [(1,), (7,), (3, 4), (2, 3, 4)]:
        for place in np.ndindex(shape):
            for wrong in (-1, 5, -(2**63), 2**63 - 1):
                ids = np.zeros(shape, "int64")
                ids[place] = wrong
                index = nd.array(ids, dtype="int64", device=device)
                with pytest.raises(IndexError, match=f"id is out of range: got {wrong}: need 0"):
                    wait_for(nd.gather(table, index.permute(tuple(range(len(shape)))[::-1])))
    none = nd.empty((0,), dtype="int64", device=device)
    assert nd.gather(nd.empty((0, 2), device=device), none).shape == (0, 2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scatter_add_many_rows_in_order(device, dtype):
    """Repeated ids, and enough of them for several threads; the order of the sums is fixed."""
    rng = np.random.default_rng(0)
    for width in (1, 8, 17, 200):
        src, ids = draw((3000, width)).astype(dtype), rng.integers(0, 11, 3000)
        want = np.zeros((11, width), dtype)
        np.add.at(want, ids, src)
        got = nd.scatter_add(
            nd.array(src, dtype=dtype, device=device),
            nd.array(ids, dtype="int64", device=device),
            11,
        )
        compare(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_hot(device, dtype):
    for count in (0, 1, 17, 40):
        ids = np.random.default_rng(0).integers(0, 10, count)
        got = nd.one_hot(nd.array(ids, dtype="int64", device=device), 10, dtype)
        compare(got, np.eye(10, dtype=dtype)[ids])


def test_device_one_hot(device):
    want = np.eye(4, dtype=np.float32)
    compare(device.one_hot(4, 2), want[2])
    compare(device.one_hot(4, [0, 3]), want[[0, 3]])
    compare(device.one_hot(4, np.array([1.0, 2.0])), want[[1, 2]])
    compare(
        device.one_hot(4, nd.array([[1]], dtype="int32", device=device), dtype="float64"),
        np.eye(4)[[[1]]],
    )
    with pytest.raises(nd.DTypeError, match="one_hot: ids are not integers: got float64"):
        device.one_hot(4, [0.5])


def test_errors(device):
    table = nd.zeros((3, 2), device=device)
    ids = nd.array([0, 3], dtype="int64", device=device)
    with pytest.raises(IndexError, match="gather: id is out of range: got 3: need 0 <= id < 3"):
        wait_for(nd.gather(table, ids))
    with pytest.raises(IndexError, match="gather: id is out of range: got -1"):
        wait_for(nd.gather(table, ids - 1))
    with pytest.raises(nd.ShapeError, match=r"gather: table has .* got \(2,\): need \(V, D\)"):
        nd.gather(table[0], ids)
    with pytest.raises(nd.DTypeError, match="gather: ids are not integers: got float32"):
        nd.gather(table, ids.astype("float32"))
    with pytest.raises(
        nd.ShapeError, match=r"scatter_add: src does not fit: got \(3, 2\): need \(2"
    ):
        nd.scatter_add(table, ids, 4)
    with pytest.raises(IndexError, match="scatter_add: id is out of range: got 3"):
        wait_for(nd.scatter_add(table[:2], ids, 3))
    with pytest.raises(nd.DTypeError, match="scatter_add: dtypes do not fit: got int32"):
        nd.scatter_add(table[:2].astype("int32"), ids, 4)
    with pytest.raises(IndexError, match="one_hot: id is out of range: got 3: need 0 <= id < 2"):
        wait_for(nd.one_hot(ids, 2))
    with pytest.raises(nd.ShapeError, match=r"one_hot: negative size: got \(-1,\)"):
        nd.one_hot(ids, -1)
