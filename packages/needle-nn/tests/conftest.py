"""Fixtures of the nn and optim tests."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from needle.backend_ndarray import Device
from needle.backend_ndarray.testing import array_devices


@pytest.fixture(params=array_devices())
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """Every device and instruction set of this machine; no CUDA is a visible skip."""
    with request.param.active() as where:
        yield where


@pytest.fixture(autouse=True)
def _seed() -> None:
    np.random.seed(0)
