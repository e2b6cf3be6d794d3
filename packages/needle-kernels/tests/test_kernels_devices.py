"""Devices: names, equality, random numbers, what happens without CUDA or without the extension."""

import copy
import pickle
import subprocess
import sys
import types

import numpy as np
import pytest

from needle import backend_ndarray as nd
from needle.backend_ndarray import devices
from needle.backend_ndarray.testing import compare


def run(code, **env):
    """Runs Python code in a fresh process; returns (exit status, what it wrote)."""
    import os

    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.strip() + done.stderr


def test_names():
    assert repr(nd.cuda()) == "cuda()"
    assert repr(nd.cpu_numpy()) == "cpu_numpy()"
    assert nd.default_device() == nd.cpu()
    assert nd.cpu() != nd.cuda()
    assert nd.cpu() != "cpu"
    assert len({nd.cuda(), nd.cuda(), nd.cpu_numpy()}) == 2
    assert set(nd.all_devices()) == {nd.cpu(), nd.cuda(), nd.cpu_numpy()}
    for device in nd.all_devices():
        assert pickle.loads(pickle.dumps(device)) is device
        assert copy.deepcopy(device) is device
    assert devices.CpuDevice("cpu_numpy", 1) == nd.cpu_numpy()


def test_backend_variable():
    code = (
        "from needle import backend_ndarray as nd, backend_ndarray\n"
        "print(nd.cpu(), nd.default_device(), nd.array([1, 2]).dtype, nd.array([0.5]).dtype,"
        "nd.zeros((1,)).dtype, nd.all_devices())"
    )
    assert run(code, NEEDLE_BACKEND="nd")[1] == (
        "cpu() cpu() float32 float32 float32 [cpu(), cuda(), cpu_numpy()]"
    )
    assert run(code, NEEDLE_BACKEND="np")[1] == (
        "cpu_numpy() cpu_numpy() int64 float64 float32 [cpu_numpy(), cuda()]"
    )
    status, text = run(code, NEEDLE_BACKEND="tf")
    assert status
    assert "NEEDLE_BACKEND: unknown backend: got 'tf': need 'nd' or 'np'" in text


def test_missing_extension():
    code = "import sys; sys.modules['needle._kernels.cpu'] = None\nimport needle.backend_ndarray"
    status, text = run(code)
    assert status
    assert "ImportError: needle.backend_ndarray: the compiled extension needle._kernels.cpu" in text
    assert "install needle-kernels" in text


@pytest.mark.skipif(nd.cuda().enabled(), reason="this machine has CUDA")
def test_cuda_says_what_is_missing():
    for use in (
        lambda: nd.cuda().zeros(2),
        lambda: nd.cuda().rand(2),
        lambda: nd.array([1.0], device=nd.cuda()),
        lambda: nd.ones((2,)).to(nd.cuda()),
        lambda: nd.NDArray.make((2,), device=nd.cuda()),
    ):
        with pytest.raises(nd.DeviceError, match=r"cuda: .* missing: .*(extension|driver|device)"):
            use()


class Driver:
    """What the library asks of libcuda.so.1."""

    def __init__(self, found, version=13010):
        self.found = found
        self.version = version

    def cuInit(self, flags):
        return 0

    def cuDeviceGetCount(self, count):
        count._obj.value = self.found
        return 0

    def cuDriverGetVersion(self, version):
        version._obj.value = self.version
        return 0


def test_what_is_missing_for_cuda(monkeypatch):
    built = types.SimpleNamespace(EMULATED=False, RUNTIME=13000)
    monkeypatch.setattr(devices, "_load_cuda", lambda: built)
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: Driver(1))
    assert devices.missing_for_cuda() == []
    assert nd.cuda().enabled()
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: Driver(1, 12080))
    assert devices.missing_for_cuda() == ["a driver for CUDA 13 (this one is for 12)"]
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: Driver(0))
    assert devices.missing_for_cuda() == ["a CUDA device"]

    def no_driver(name):
        raise OSError(name)

    monkeypatch.setattr(devices.ctypes, "CDLL", no_driver)
    assert devices.missing_for_cuda() == ["the NVIDIA driver (libcuda.so.1)"]
    monkeypatch.setattr(devices, "_load_cuda", lambda: None)
    assert devices.missing_for_cuda()[0] == "the extension needle._kernels.cuda"


def test_an_emulated_gpu_must_be_asked_for(monkeypatch):
    built = types.SimpleNamespace(EMULATED=True, RUNTIME=0)
    monkeypatch.setattr(devices, "_load_cuda", lambda: built)
    monkeypatch.delenv("NEEDLE_CUDA_EMULATE", raising=False)
    assert "emulates one on the CPU" in devices.missing_for_cuda()[0]
    monkeypatch.setenv("NEEDLE_CUDA_EMULATE", "1")
    assert devices.missing_for_cuda() == []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_random_numbers_are_numpys(device, dtype):
    np.random.seed(3)
    got = (
        device.rand(2, 3, dtype=dtype),
        device.randn(4, dtype=dtype),
        device.rand(2, low=-1, high=3),
    )
    np.random.seed(3)
    want = np.random.rand(2, 3), np.random.randn(4), np.random.rand(2) * 4 - 1
    compare(got[0], want[0].astype(dtype))
    compare(got[1], want[1].astype(dtype))
    compare(got[2], want[2].astype("float32"))
    np.random.seed(3)
    compare(device.rand((2, 3)), want[0].astype("float32"))
    assert device.rand().shape == ()


def test_creation(device):
    compare(device.zeros(2, 3), np.zeros((2, 3), np.float32))
    compare(device.zeros((2, 3), dtype="int64"), np.zeros((2, 3), np.int64))
    compare(device.ones(2, dtype="float64"), np.ones(2))
    compare(device.full((2,), 3, "uint8"), np.full(2, 3, np.uint8))
    compare(device.full((2,), 0.5), np.full(2, 0.5, np.float32))
    assert device.empty((3, 0)).shape == (3, 0)
    assert device.empty((), "bool").dtype == "bool"
    assert device.enabled()
    with pytest.raises(nd.DTypeError, match="empty: dtype is not supported: got int8"):
        device.empty((2,), "int8")
    with pytest.raises(nd.ShapeError, match=r"rand: negative size: got \(-1,\)"):
        device.rand(-1)
