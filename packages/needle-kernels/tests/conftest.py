"""The fixture that runs a test on every device and instruction set of this machine."""

from collections.abc import Iterator

import pytest

from needle.backend_ndarray import Device
from needle.backend_ndarray.testing import Target, array_devices


@pytest.fixture(params=array_devices())
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    target: Target = request.param
    with target.active() as active:
        yield active
