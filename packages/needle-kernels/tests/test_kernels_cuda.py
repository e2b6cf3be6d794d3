"""What only cuda() has: memory of its own, copies, kernels that may be missing or fail."""

import os
import subprocess
import sys

import numpy as np
import pytest

from needle import backend_ndarray as nd
from needle.backend_ndarray.testing import VIEWS, array_devices, compare, make_view


@pytest.fixture(params=array_devices()[-1:])
def cuda(request):
    return request.param.device


def draw(*shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_moves_there_and_back(cuda, view):
    here = make_view(view, draw(3, 4, 5), nd.cpu())
    there = make_view(view, draw(3, 4, 5), cuda)
    compare(there, here.numpy())
    compare(there.to(nd.cpu()), here.numpy())
    moved = here.to(cuda)
    assert moved.device == cuda
    compare(moved, here.numpy())
    assert moved.strides == here.to(nd.cpu_numpy()).strides
    compare(moved.to(cuda), here.numpy())


def test_empty_and_scalar_arrays(cuda):
    compare(nd.zeros((0, 3), device=cuda), np.zeros((0, 3), np.float32))
    compare(nd.array(2.5, device=cuda), np.float32(2.5))
    assert nd.array([7], device=cuda, dtype="int64").item() == 7
    assert nd.array([[1, 2]], device=cuda).tolist() == [[1.0, 2.0]]


def test_devices_do_not_mix(cuda):
    with pytest.raises(nd.DeviceError, match=r"add: devices differ: got c.*\(\) and c.*\(\)"):
        nd.ones((2,)) + nd.ones((2,), device=cuda)


def test_what_numpy_and_dlpack_get(cuda):
    x = nd.array(draw(2, 3), device=cuda)
    assert np.array_equal(np.asarray(x), x.numpy())
    with pytest.raises(ValueError, match=r"__array__: a copy is needed: got an array on cuda\(\)"):
        np.asarray(x, copy=False)
    for export in (x.__dlpack__, x.__dlpack_device__):
        with pytest.raises(nd.DeviceError, match=r"not exported: got cuda\(\): move .* \.to\(cpu"):
            export()
    source = draw(4)
    got = nd.from_dlpack(source, device=cuda)
    assert got.device == cuda
    compare(got, source)


def test_kernels_split_what_their_indices_cannot_count(cuda):
    """An emulated device splits beyond 8192 elements, a GPU beyond 2**30."""
    values = draw(9, 40, 70)
    x = nd.array(values, device=cuda).permute((2, 0, 1))
    y = nd.array(values.T.copy(), device=cuda).permute((0, 2, 1))
    compare(x + y, values.transpose(2, 0, 1) + values.T.transpose(0, 2, 1))
    compare(x.compact(), values.transpose(2, 0, 1))
    out = nd.zeros((70, 9, 80), device=cuda)
    out[:, :, ::2] = x
    compare(out[:, :, ::2], values.transpose(2, 0, 1))
    compare(out[:, :, 1::2], np.zeros((70, 9, 40), np.float32))


def test_memory_is_counted_kept_and_limited(cuda):
    nd.empty_cache(cuda)
    nd.reset_peak(cuda)
    before = nd.memory_stats(cuda)
    x = nd.zeros((1000, 1000), device=cuda)
    now = nd.memory_stats(cuda)
    assert now["in_use"] - before["in_use"] >= 4_000_000
    assert now["peak"] == now["in_use"]
    assert now["free"] > 0
    del x
    kept = nd.memory_stats(cuda)
    assert kept["in_use"] == before["in_use"]
    assert kept["held"] == now["held"]
    nd.zeros((1000, 1000), device=cuda)
    assert nd.memory_stats(cuda)["system_allocations"] == now["system_allocations"]
    nd.empty_cache(cuda)
    assert nd.memory_stats(cuda)["held"] < kept["held"]


def test_out_of_memory_says_how_much_and_leaves_the_device_usable(cuda):
    nd.set_memory_limit(nd.memory_stats(cuda)["held"] + 100_000, cuda)
    try:
        text = r"cuda: out of memory: asked for 4000000 bytes: \d+ held, \d+ of them in use, "
        with pytest.raises(MemoryError, match=text + r"\d+ free on the device, limit \d+"):
            nd.zeros((1000, 1000), device=cuda)
        compare(nd.ones((3,), device=cuda) + 1, np.full(3, 2, np.float32))
    finally:
        nd.set_memory_limit(0, cuda)
    compare(nd.zeros((1000, 1000), device=cuda), np.zeros((1000, 1000), np.float32))


def test_synchronize(cuda):
    nd.synchronize(cuda)
    nd.synchronize()


def test_about(cuda):
    assert cuda.about() == "emulated on the CPU: not a GPU" or "compute" in cuda.about()
    assert cuda.about() in nd.config_dict()["devices"]


# Around the edges of tiles (64, 128) and slices (16); all multiples of 4, so that every row begins
# at a multiple of 16 bytes.
PRODUCTS = [(4, 4, 4), (64, 64, 16), (132, 64, 36), (128, 256, 64), (20, 68, 100), (260, 68, 20)]


@pytest.fixture(params=["highest", "high"])
def precision(request, cuda):
    nd.set_float32_matmul_precision(request.param)
    yield request.param
    nd.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("order", ["a b", "a' b", "a b'", "a' b'"])
@pytest.mark.parametrize("sizes", PRODUCTS, ids=str)
def test_products_of_whole_numbers_are_exact(cuda, precision, sizes, order):
    """TF32 holds them: whatever differs is an element in the wrong place."""
    m, n, k = sizes
    rng = np.random.default_rng(0)
    a = rng.integers(-8, 9, (2, m, k)).astype(np.float32)
    b = rng.integers(-8, 9, (2, k, n)).astype(np.float32)
    x, y = nd.array(a, device=cuda), nd.array(b, device=cuda)
    if "a'" in order:
        x = nd.array(a.swapaxes(1, 2).copy(), device=cuda).permute((0, 2, 1))
    if "b'" in order:
        y = nd.array(b.swapaxes(1, 2).copy(), device=cuda).permute((0, 2, 1))
    bias = np.arange(n, dtype=np.float32)
    out = nd.ones((2, m, n), device=cuda)
    nd.matmul(x, y, nd.array(bias, device=cuda), "relu", out=out, accumulate=True)
    compare(out, np.maximum(a @ b + bias + 1, 0))


def test_high_precision_is_tf32(cuda):
    """Operands are off by 2^-11, products by 2^-10 + 2^-22; a float32 sum by 2^-23 a term."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(256, 256)).astype(np.float32) for _ in range(2))
    x, y = nd.array(a, device=cuda), nd.array(b, device=cuda)
    want, sizes = a.astype(np.float64) @ b, np.abs(a).astype(np.float64) @ np.abs(b)
    compare(x @ y, want, dtype="float32", atol=256 * 2.0**-23 * sizes)
    assert nd.get_float32_matmul_precision() == "highest"
    nd.set_float32_matmul_precision("high")
    try:
        got = x @ y
        assert nd.get_float32_matmul_precision() == "high"
        compare(got, want, dtype="float32", atol=(2.0**-10 + 2.0**-22 + 256 * 2.0**-23) * sizes)
        if "compute 7" not in cuda.about():
            assert np.abs(got.numpy() - want).max() > 1e-4  # it is TF32
        special = nd.array([[np.nan, np.inf, -np.inf, 3.4e38]] * 4, device=cuda)
        ones = nd.ones((4, 4), device=cuda)
        assert np.isnan((special @ ones).numpy()).all()
    finally:
        nd.set_float32_matmul_precision("highest")
    compare(x @ y, want, dtype="float32", atol=256 * 2.0**-23 * sizes)


def test_precision_is_refused():
    text = "set_float32_matmul_precision: got 'medium': need 'highest' or 'high'"
    with pytest.raises(ValueError, match=text):
        nd.set_float32_matmul_precision("medium")


WRONG_ID = r"gather: id is out of range: got 7: need 0 <= id < 3"


def test_a_wrong_id_is_raised_when_the_device_is_waited_for(cuda):
    """The call itself does not wait; what uses the id leaves it alone."""
    table, ids = nd.ones((3, 2), device=cuda), nd.array([0, 7, 9], dtype="int64", device=cuda)
    rows = nd.gather(table, ids)
    with pytest.raises(IndexError, match=WRONG_ID):
        rows.numpy()
    compare(rows[:1], np.ones((1, 2), np.float32))  # said once
    summed = nd.scatter_add(nd.ones((3, 2), device=cuda), ids, 3)
    with pytest.raises(IndexError, match="scatter_add: id is out of range: got 7: need 0 <= id"):
        nd.synchronize(cuda)
    compare(summed, [[1, 1], [0, 0], [0, 0]], dtype="float32")


def test_no_id_is_right_where_there_are_no_rows(cuda):
    ids = nd.array([0, 1], dtype="int64", device=cuda)
    with pytest.raises(IndexError, match="scatter_add: id is out of range: got 2 ids: need 0 <="):
        nd.scatter_add(nd.ones((2, 2), device=cuda), ids, 0)


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_sync_raises_in_the_call_itself(cuda):
    code = """
from needle import backend_ndarray as nd
table, ids = nd.ones((3, 2), device=nd.cuda()), nd.array([7], dtype="int64", device=nd.cuda())
try:
    nd.gather(table, ids)
except IndexError as error:
    print(error)
"""
    assert WRONG_ID.replace("\\", "") in run_python(code, NEEDLE_CUDA_SYNC="1").stdout
    assert run_python(code, NEEDLE_CUDA_SYNC="0").stdout == ""


def test_a_missing_kernel_is_named():
    """A table without kernels: that of a CUDA module which is not loaded."""
    code = """
from needle import backend_ndarray as nd
from needle.backend_ndarray.extension import KERNEL, cpu
x = nd.ones((2,))
cpu.launch(cpu.DEVICES.index("cuda"), KERNEL["exp"], (x, x), ())
"""
    text = (
        "exp: no such kernel: got device cuda: move the arrays to another device with .to(device)"
    )
    assert text in run_python(code).stderr


def test_a_training_step_is_the_same_in_every_run(cuda):
    """Sums without atomics: not one bit differs."""

    def step():
        x, w = nd.array(draw(4, 9, 9, 3), device=cuda), nd.array(draw(3, 3, 3, 8), device=cuda)
        y = nd.conv(x, w, padding=1)
        dw = nd.conv_weight_grad(x, y, 3, 1, 1)
        rows = nd.scatter_add(
            y.reshape(-1, 8), nd.array(np.arange(324) % 7, device=cuda, dtype="int64"), 7
        )
        return dw.numpy(), rows.numpy(), y.sum().numpy()

    for first, second in zip(step(), step(), strict=True):
        assert np.array_equal(first, second)
