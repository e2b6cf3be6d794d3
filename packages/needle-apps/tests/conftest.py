"""The fixtures of all tests: devices, the real data sets, and a seed."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from needle.backend_ndarray import Device
from needle.backend_ndarray.testing import Target, array_devices

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(params=array_devices())
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """Every device and instruction set of this machine."""
    target: Target = request.param
    with target.active() as active:
        yield active


@pytest.fixture(autouse=True)
def _seeded():
    np.random.seed(0)


@pytest.fixture(scope="session")
def shared_data():
    """The folder of the real data sets; a visible skip where there is none."""
    folder = Path(os.environ.get("NEEDLE_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent (set NEEDLE_TEST_DATA)")
    return folder
