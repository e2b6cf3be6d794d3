"""Batch transforms against loops over images, and passes that go on where another stopped."""

import numpy as np
import pytest

from needle.backend_ndarray import DTypeError, ShapeError
from needle.data import (
    BatchCrop,
    BatchCutout,
    BatchFlip,
    CIFAR10Dataset,
    DataLoader,
    ImageDataset,
    NDArrayDataset,
    Normalize,
    RandomCrop,
    RandomFlipHorizontal,
    SyntheticImages,
    as_bytes,
)
from needle.data.augment import generator

SHAPE = (7, 3, 6, 9)


def images(dtype="float32", shape=SHAPE):
    return np.random.default_rng(0).integers(1, 200, shape).astype(dtype)


def draws():
    """The same generator for the transform and for the loop beside it."""
    return generator(5, 2), generator(5, 2)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_flip(dtype):
    x = images(dtype)
    ours, again = draws()
    got = BatchFlip(0.5)(x.copy(), ours)
    flipped = again.random(len(x)) < 0.5
    assert 0 < flipped.sum() < len(x)
    for image, result, flip in zip(x, got, flipped, strict=True):
        np.testing.assert_array_equal(result, image[:, :, ::-1] if flip else image)
    np.testing.assert_array_equal(BatchFlip(0)(x.copy(), ours), x)
    np.testing.assert_array_equal(BatchFlip(1)(x.copy(), ours), x[..., ::-1])


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize("padding", [0, 1, 3, 5])
def test_crop(padding, reflect, dtype):
    x = images(dtype)
    ours, again = draws()
    got = BatchCrop(padding, reflect)(x.copy(), ours)
    assert got.dtype == dtype
    tops, lefts = again.integers(0, 2 * padding + 1, (2, len(x)))
    around = ((0, 0), (padding, padding), (padding, padding))
    for image, result, top, left in zip(x, got, tops, lefts, strict=True):
        padded = np.pad(image, around, mode="reflect" if reflect else "constant")
        np.testing.assert_array_equal(result, padded[:, top : top + 6, left : left + 9])


def test_every_shift_comes():
    x = np.zeros((4000, 1, 3, 3), "uint8")
    x[:, 0, 1, 1] = 1
    got = BatchCrop(1)(x, generator(0, 0))[:, 0]
    assert (got.sum((1, 2)) == 1).all()
    share = got.mean(0)
    np.testing.assert_allclose(share, np.full((3, 3), 1 / 9), atol=0.02)  # 4 standard deviations


@pytest.mark.parametrize("size", [1, 4, 6])
def test_cutout(size):
    x = images()
    ours, again = draws()
    got = BatchCutout(size)(x.copy(), ours)
    tops = again.integers(0, 6 - size + 1, len(x))
    lefts = again.integers(0, 9 - size + 1, len(x))
    for image, result, top, left in zip(x, got, tops, lefts, strict=True):
        image[:, top : top + size, left : left + size] = 0
        np.testing.assert_array_equal(result, image)


def test_normalize():
    x = images("uint8")
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 1.0, 2.0])
    want = (x / 255 - mean[:, None, None]) / std[:, None, None]
    got = Normalize(mean.tolist(), std.tolist())(x)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    floats = (x / 255).astype(np.float32)
    np.testing.assert_allclose(Normalize(0.5, 0.25)(floats), (floats - 0.5) / 0.25, rtol=1e-6)
    np.testing.assert_array_equal(Normalize()(x), x / np.float32(255))


def test_bytes_come_back_bit_for_bit():
    pixels = np.arange(256, dtype=np.uint8).reshape(4, 1, 8, 8)
    floats = np.divide(pixels, np.float32(255), dtype=np.float32)
    np.testing.assert_array_equal(as_bytes(floats), pixels)
    assert as_bytes(floats).dtype == np.uint8
    np.testing.assert_array_equal(Normalize()(as_bytes(floats)), floats)
    for other in (floats + np.float32(1e-4), floats * 2, floats - 1, floats * np.float32("nan")):
        assert as_bytes(other) is other
    with pytest.raises(DTypeError, match="as_bytes: not floats: got uint8"):
        as_bytes(pixels)


# ---- in a loader ---------------------------------------------------------------------------------


def loader(shuffle=True, **options):
    x, y = images("uint8", (50, 3, 8, 8)), np.arange(50)
    transforms = [BatchCrop(2), BatchFlip(), BatchCutout(3), Normalize()]
    return DataLoader(NDArrayDataset(x, y), 8, shuffle, batch_transforms=transforms, **options)


def values(batches):
    return [[field.numpy() for field in batch] for batch in batches]


def test_a_seed_fixes_a_pass_and_passes_differ():
    passes = []
    for seed in (0, 0, 1):
        np.random.seed(seed)
        passes.append(values(loader()))
    np.testing.assert_equal(passes[0], passes[1])
    assert not np.array_equal(passes[0][0][0], passes[2][0][0])
    unshuffled = loader(shuffle=False)
    first, second = values(unshuffled), values(unshuffled)
    np.testing.assert_array_equal(first[0][1], second[0][1])
    assert not np.array_equal(first[0][0], second[0][0])


@pytest.mark.parametrize("first", [1, 4, 7])
def test_a_pass_goes_on_bit_for_bit(first):
    np.random.seed(3)
    before = np.random.get_state()
    whole = values(loader())
    np.random.set_state(before)
    np.testing.assert_equal(values(loader().start(first)), whole[first:])


def test_nothing_is_drawn_between_batches():
    """Dropout draws from NumPy's generator too: the loader must not depend on how much."""
    np.random.seed(3)
    quiet = values(loader())
    np.random.seed(3)
    noisy = []
    for batch in loader():
        np.random.rand(17)
        noisy.append([field.numpy() for field in batch])
    np.testing.assert_equal(noisy, quiet)


def test_the_data_set_stays_as_it_is():
    class Slices(NDArrayDataset):
        def batch(self, indices):
            return tuple(array[indices[0] : indices[-1] + 1] for array in self.arrays)

    x = images("float32", (50, 3, 8, 8))
    for data in (NDArrayDataset(x), Slices(x)):
        before = x.copy()
        for (batch,) in DataLoader(data, 8, batch_transforms=[BatchFlip(1)]):
            batch.cached_data.fill(7)
        np.testing.assert_array_equal(x, before)


def test_labels_and_types():
    x, y = next(iter(loader(shuffle=False)))
    assert (x.shape, x.dtype, y.dtype) == ((8, 3, 8, 8), "float32", "float32")
    np.testing.assert_array_equal(y.numpy(), np.arange(8))
    x, _ = next(iter(loader(dtype="float64")))
    assert x.dtype == "float64"
    data = ImageDataset(np.ones((4, 3, 5, 5), np.float32), np.zeros(4, np.int64))
    (image, _), *_ = DataLoader(data, 4, batch_transforms=[Normalize(1.0)])
    assert not image.numpy().any()


class ChannelsLast(ImageDataset):
    channels_first = False


class Listed:
    """Not a Dataset: items alone, and where their channels are."""

    channels_first = False

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "transforms",
    [
        [BatchFlip(1)],
        [BatchCrop(2), BatchFlip(), BatchCutout(3), Normalize(0.5, 0.25)],
        [Normalize(), BatchCrop(2, reflect=True)],  # no kernel has this order
    ],
    ids=["flip", "all", "numpy"],
)
def test_channels_last(transforms, dtype, channels):
    """Each image as if its channels came first, in the layout that the data set has."""
    x = images(dtype, (50, channels, 8, 9)) / 255
    last, y = np.ascontiguousarray(np.moveaxis(x, 1, -1)), np.arange(50)
    want = values(pass_over(ImageDataset(x, y), transforms, dtype))
    for data in (
        ChannelsLast(last, y),
        ChannelsLast(last, y, [lambda image: image]),
        ChannelsLast(last, y, [RandomFlipHorizontal(0)]),
    ):
        got = values(pass_over(data, transforms, dtype))
        for (ours, labels), (theirs, ids) in zip(got, want, strict=True):
            np.testing.assert_array_equal(ours, np.moveaxis(theirs, 1, -1))
            np.testing.assert_array_equal(labels, ids)
    listed = values(pass_over(Listed(last), transforms, dtype))
    np.testing.assert_array_equal(listed[6][0], np.moveaxis(want[6][0], 1, -1))
    np.testing.assert_array_equal(last, np.moveaxis(x, 1, -1), err_msg="the data set has changed")


def pass_over(data, transforms, dtype):
    np.random.seed(3)
    return DataLoader(data, 8, dtype=dtype, batch_transforms=transforms).start()


BAD = [
    (lambda: BatchFlip(2), ValueError, r"BatchFlip: p: got 2: need a number in \[0, 1\]"),
    (lambda: BatchCrop(-1), ValueError, "BatchCrop: padding is too small: got -1: need an int"),
    (lambda: BatchCutout(0), ValueError, "BatchCutout: size is too small: got 0: need an integer"),
    (lambda: Normalize(0, [1, 0]), ValueError, r"Normalize: std: got \[1, 0\]: need positive"),
    (
        lambda: BatchCutout(7)(images(), generator(0, 0)),
        ShapeError,
        r"BatchCutout: images are too small: got \(7, 3, 6, 9\): need at least 7 x 7 pixels",
    ),
    (
        lambda: BatchCrop(6, reflect=True)(images(), generator(0, 0)),
        ShapeError,
        r"nothing to reflect: images are \(7, 3, 6, 9\), padding is 6: need padding < height",
    ),
    *(
        (
            lambda transform=transform: list(
                DataLoader(NDArrayDataset(np.ones((4, 784))), batch_transforms=[transform])
            ),
            ShapeError,
            rf"{type(transform).__name__}: not images: got \(1, 784\): need \(N, C, H, W\)",
        )
        for transform in (BatchFlip(), BatchCrop(), BatchCutout(), Normalize())
    ),
    (lambda: BatchFlip(None), TypeError, "BatchFlip: p: got None: need a number"),
    (lambda: BatchCrop(4, reflect="no"), TypeError, "BatchCrop: reflect: got 'no'"),
    (lambda: Normalize(mean=None), TypeError, "Normalize: mean: got None"),
    (lambda: Normalize(np.nan), ValueError, "Normalize: mean: got nan"),
    (lambda: Normalize(std=(0.5, "a")), TypeError, "Normalize: std: got 'a'"),
    (lambda: Normalize((0.5,) * 3, (1, 2)), ValueError, "Normalize: got 3 means and 2 stds: need"),
    (
        lambda: SyntheticImages("test", 5),
        TypeError,
        "SyntheticImages: train: got 'test': need True or False",
    ),
    (
        lambda: CIFAR10Dataset("nowhere", "test"),
        TypeError,
        "CIFAR10Dataset: train: got 'test': need True or False",
    ),
    (
        lambda: DataLoader(NDArrayDataset(images()), batch_transforms=[RandomCrop()]),
        TypeError,
        "DataLoader: not a batch transform: got RandomCrop: need a BatchTransform; those of one",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), BAD, ids=[case[2][:30] for case in BAD])
def test_errors(call, kind, text):
    with pytest.raises(kind, match=text):
        call()
