"""Throughput of the loader on images of CIFAR-10's size, in batches of 128.

    hatch run bench:run packages/needle-data

The data are random: what is timed does not depend on them. The bare gather, one fancy index and no
Tensor, is the floor.
"""

import numpy as np
import pytest

from needle import cpu
from needle.data import (
    BatchCrop,
    BatchCutout,
    BatchFlip,
    DataLoader,
    ImageDataset,
    NDArrayDataset,
    Normalize,
    RandomCrop,
    RandomFlipHorizontal,
)

N, BATCH = 20_000, 128

TRANSFORMS = {
    "plain": [],
    "flip": [RandomFlipHorizontal()],
    "crop": [RandomCrop()],
    "crop and flip": [RandomCrop(), RandomFlipHorizontal()],
    "any callable": [lambda img: img],
}

BATCH_TRANSFORMS = {
    "scaled": [Normalize()],
    "cropped": [BatchCrop(), BatchFlip(), Normalize()],
    "everything": [BatchCrop(), BatchFlip(), BatchCutout(), Normalize([0.5] * 3, [0.25] * 3)],
}


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.random((N, 3, 32, 32), dtype=np.float32), rng.integers(0, 10, N)


def record(benchmark):
    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds = benchmark.stats.stats.median
    benchmark.extra_info["images/s"] = round(BATCH / seconds)
    benchmark.extra_info["ms/batch"] = round(1e3 * seconds, 3)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_batch(benchmark, images, name, shuffle):
    x, y = images
    load(benchmark, ImageDataset(x, y, TRANSFORMS[name]), shuffle)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("name", BATCH_TRANSFORMS)
def test_batch_transforms(benchmark, images, name, dtype):
    x, y = images
    if dtype == "uint8":
        x = (x * 255).astype(dtype)
    load(benchmark, NDArrayDataset(x, y), True, BATCH_TRANSFORMS[name])


def load(benchmark, data, shuffle, transforms=()):
    """Times the next batch of a pass, one pass after the other."""
    loader = DataLoader(
        data, BATCH, shuffle=shuffle, device=cpu(), drop_last=True, batch_transforms=transforms
    )
    batches = iter(())

    def next_batch():
        nonlocal batches
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        return batch

    np.random.seed(0)
    got, labels = benchmark(next_batch)
    assert got.shape == (BATCH, 3, 32, 32)
    assert labels.shape == (BATCH,)
    record(benchmark)


def test_bare_gather(benchmark, images):
    x, _ = images
    indices = np.random.default_rng(1).integers(0, N, (50, BATCH))
    rows = iter(range(10**9))
    got = benchmark(lambda: x[indices[next(rows) % 50]])
    assert got.shape == (BATCH, 3, 32, 32)
    record(benchmark)
