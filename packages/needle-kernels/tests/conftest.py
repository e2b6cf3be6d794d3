"""The fixtures that run a test on every device and instruction set of this machine."""

from collections.abc import Iterator

import pytest

from needle.backend_ndarray import Device
from needle.backend_ndarray.devices import REFERENCE_MODE
from needle.backend_ndarray.testing import Target, array_devices

# These call the C++ kernels themselves, which are the same on either backend.
collect_ignore_glob = ["test_kernels_cpp_*.py"] if REFERENCE_MODE else []


@pytest.fixture(params=array_devices())
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    target: Target = request.param
    with target.active() as active:
        yield active


@pytest.fixture(params=[p for p in array_devices() if p.values[0].device.in_host_memory])
def host_device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """The devices whose memory NumPy can share."""
    target: Target = request.param
    with target.active() as active:
        yield active
