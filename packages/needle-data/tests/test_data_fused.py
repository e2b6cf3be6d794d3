"""Batches by one kernel call against the transforms in NumPy, bit for bit; when which is used."""

import numpy as np
import pytest

from needle import cpu, cpu_numpy
from needle.backend_ndarray import Recorder, ShapeError
from needle.data import (
    BatchCrop,
    BatchCutout,
    BatchFlip,
    DataLoader,
    Dataset,
    ImageDataset,
    NDArrayDataset,
    Normalize,
    RandomFlipHorizontal,
    as_bytes,
)

pytestmark = pytest.mark.skipif(cpu() == cpu_numpy(), reason="the NumPy device has no fused path")

MEAN, STD = (0.4914, 0.4822, 0.0), (0.247, 0.2435, 0.2616)


def pixels(shape=(50, 3, 9, 17), dtype="uint8"):
    values = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    return values if dtype == "uint8" else (values / np.float32(255)).astype(dtype)


def passes(data, transforms=(), size=8, **options):
    """A shuffled pass on each device, and the kernels that it took on `cpu()`.

    `cpu_numpy()` has the transforms' own NumPy.
    """
    found, recorder = [], Recorder()
    for device in (cpu(), cpu_numpy()):
        np.random.seed(7)
        recorder.start()
        loader = DataLoader(
            data, size, shuffle=True, device=device, batch_transforms=transforms, **options
        )
        found.append([[field.numpy() for field in batch] for batch in loader])
        recorder.stop()
    return *found, [call.kernel for call in recorder.take()].count("image_batch")


EVERYTHING = [BatchCrop(3), BatchFlip(), BatchCutout(4), Normalize(MEAN, STD)]
CHAINS = [
    [],
    EVERYTHING,
    [BatchCrop(3, reflect=True), BatchFlip(), Normalize()],
    [BatchCrop(40), Normalize(0.5, 0.25)],
    [BatchFlip(1.0)],
    [BatchCutout(9)],
    [BatchCrop(2), BatchCutout(1)],
    [Normalize(MEAN, 0.3)],
]


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize(
    "transforms", CHAINS, ids=lambda ts: "-".join(type(t).__name__ for t in ts)
)
def test_the_kernel_equals_the_transforms(transforms, dtype):
    data = NDArrayDataset(pixels(dtype=dtype), np.arange(50), np.arange(100).reshape(50, 2))
    fused, plain, launches = passes(data, transforms)
    assert launches == 7
    np.testing.assert_equal(fused, plain)


def test_draws_made_ahead_are_those_of_each_batch():
    """50 batches are drawn in two bursts; a pass that goes on cuts them elsewhere."""
    data = NDArrayDataset(pixels(), np.arange(50))
    for size in (1, 3):
        (fused, plain, _), first = passes(data, EVERYTHING, size=size), 5
        np.testing.assert_equal(fused, plain)
        np.random.seed(7)
        loader = DataLoader(data, size, shuffle=True, batch_transforms=EVERYTHING)
        rest = [[field.numpy() for field in batch] for batch in loader.start(first)]
        np.testing.assert_equal(rest, plain[first:])


def test_images_of_a_data_set():
    data = ImageDataset(pixels(dtype="float32"), np.arange(50))
    fused, plain, launches = passes(data)
    assert launches == 7
    np.testing.assert_equal(fused, plain)
    np.testing.assert_array_equal(np.sort([y for _, ys in fused for y in ys]), np.arange(50))
    bytes_only = NDArrayDataset(as_bytes(data.X), data.y)
    np.testing.assert_equal(passes(bytes_only, [Normalize()])[0], plain)


def test_a_batch_does_not_share_the_data():
    for data in (NDArrayDataset(pixels(dtype="float32")), NDArrayDataset(np.ones((50, 4), "f4"))):
        before = data.arrays[0].copy()
        for (batch,) in DataLoader(data, 8):
            batch.cached_data.fill(7)
        np.testing.assert_array_equal(data.arrays[0], before)


def test_any_layout_in_memory():
    images = pixels((50, 9, 17, 3)).transpose(0, 3, 1, 2)[::-1, :, ::2]
    fused, plain, launches = passes(NDArrayDataset(images), EVERYTHING)
    assert launches == 7
    np.testing.assert_equal(fused, plain)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_takes_the_kernel(channels):
    class Last(ImageDataset):
        channels_first = False

    data = Last(pixels((50, 9, 17, channels), "float32"), np.arange(50))
    chain = [BatchCrop(3), BatchFlip(), BatchCutout(4), Normalize([0.5] * channels)]
    fused, plain, launches = passes(data, chain)
    assert launches == 7
    assert fused[0][0].shape == (8, 9, 17, channels)
    np.testing.assert_equal(fused, plain)


class Brighter(BatchFlip):
    def __call__(self, images, rng):
        return images + 1


class Negative(ImageDataset):
    def batch(self, indices):
        return 1 - self.X[indices], self.y[indices]


def read_only(array):
    array.flags.writeable = False
    return array


SMALL = pixels((50, 1, 6, 6), "float32")
NUMPY_ONLY = [
    (NDArrayDataset(pixels()), [BatchFlip(), BatchCrop(2)]),
    (NDArrayDataset(pixels()), [Normalize(), BatchCutout(2)]),
    (NDArrayDataset(pixels()), [BatchFlip(), BatchFlip()]),
    (NDArrayDataset(pixels()), [Brighter()]),
    (NDArrayDataset(pixels(dtype="float64")), EVERYTHING),
    (NDArrayDataset(read_only(pixels())), EVERYTHING),
    (NDArrayDataset(SMALL), [Normalize(0.1, [0.1, 0.2, 0.3])]),
    (NDArrayDataset(np.arange(100.0).reshape(50, 2)), []),
    (ImageDataset(SMALL, np.arange(50), [RandomFlipHorizontal()]), [BatchFlip()]),
    (Negative(SMALL, np.arange(50)), [BatchFlip()]),
]


@pytest.mark.parametrize(("data", "transforms"), NUMPY_ONLY)
def test_what_the_kernel_cannot_do_numpy_does(data, transforms):
    first, again, launches = passes(data, transforms)
    assert launches == 0
    np.testing.assert_equal(first, again)


def test_another_dtype_is_numpys():
    *_, launches = passes(NDArrayDataset(pixels()), [BatchFlip()], dtype="float64")
    assert launches == 0


def test_what_a_subclass_redefines_is_what_is_loaded():
    class Shifted(NDArrayDataset):
        def __getitem__(self, index):
            return (super().__getitem__(index)[0] + 100,)

    class Doubled(ImageDataset):
        def apply_transforms(self, x):
            return 2 * x

    for data, want in ((Shifted(SMALL), 100), (Doubled(SMALL + 1, np.arange(50)), 2)):
        assert next(iter(DataLoader(data, 50)))[0].numpy().min() >= want
    assert next(iter(DataLoader(Negative(SMALL, np.arange(50)), 50)))[0].numpy().mean() > 0


def test_a_data_set_that_says_it_is_longer_than_it_is():
    class Longer(NDArrayDataset):
        def __len__(self):
            return 60

    text = "image_batch: id is out of range: got 5[0-5]: need 0 <= id < 50"
    with pytest.raises(IndexError, match=text):
        list(DataLoader(Longer(pixels()), 8))


@pytest.mark.parametrize("device", [cpu(), cpu_numpy()])
def test_images_too_small_for_a_transform(device):
    for transform, text in (
        (BatchCutout(10), r"images are too small: got \(8, 3, 9, 17\): need at least 10 x 10"),
        (BatchCrop(9, reflect=True), r"nothing to reflect: images are \(8, 3, 9, 17\), padding"),
    ):
        loader = DataLoader(
            NDArrayDataset(pixels()), 8, False, device, batch_transforms=[transform]
        )
        with pytest.raises(ShapeError, match=text):
            next(iter(loader))


def test_own_batches_that_share_the_data_are_copied():
    class Whole(Dataset):
        x = np.ones((4, 2), np.float32)

        def __len__(self):
            return 4

        def batch(self, indices):
            return (self.x,)

        def __getitem__(self, index):
            return (self.x[index],)

    ((batch,),) = DataLoader(Whole(), 4)
    batch.cached_data.fill(7)
    assert (Whole.x == 1).all()
