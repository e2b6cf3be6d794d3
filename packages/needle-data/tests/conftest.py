"""Where the real data sets are, and a generator that no test may leave disturbed by accident."""

import os
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


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
