"""Fixtures of the nn and optim tests."""

from __future__ import annotations

import os

import numpy as np
import pytest

import needle as ndl

DEVICES = list({repr(device): device for device in (ndl.cpu(), ndl.cpu_numpy())}.values())


@pytest.fixture(params=[*DEVICES, "cuda"], ids=repr)
def device(request: pytest.FixtureRequest) -> ndl.backend_ndarray.Device:
    """Every device of this machine; no CUDA is a skip, or a failure with NEEDLE_REQUIRE=cuda."""
    if request.param != "cuda":
        return request.param
    if not ndl.cuda().enabled():
        required = "cuda" in os.environ.get("NEEDLE_REQUIRE", "")
        (pytest.fail if required else pytest.skip)("cuda() is not enabled on this machine")
    return ndl.cuda()


@pytest.fixture(autouse=True)
def _seed() -> None:
    np.random.seed(0)
