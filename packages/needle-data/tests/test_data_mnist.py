import gzip
import struct

import numpy as np
import pytest
from data_files import idx, write_mnist

from needle.data import (
    BatchCrop,
    BatchCutout,
    BatchFlip,
    DataFileError,
    DataLoader,
    MNISTDataset,
    Normalize,
    RandomCrop,
)


@pytest.mark.parametrize("zipped", [True, False])
def test_reading(tmp_path, zipped):
    paths, pixels, labels = write_mnist(tmp_path, zipped=zipped)
    data = MNISTDataset(*paths)
    assert len(data) == 7
    np.testing.assert_array_equal(data.X[..., 0], (pixels / 255).astype(np.float32))
    np.testing.assert_array_equal(data.y, labels)
    image, label = data[3]
    assert image.shape == (28, 28, 1)
    assert image.dtype == np.float32
    assert label == labels[3]


def test_transforms_see_28_28_1(tmp_path):
    paths, _, _ = write_mnist(tmp_path)
    seen = []
    data = MNISTDataset(*paths, transforms=[lambda img: seen.append(img.shape) or img])
    data[0]
    assert seen == [(28, 28, 1)]


def test_batches_equal_items(tmp_path):
    paths, _, _ = write_mnist(tmp_path)
    data = MNISTDataset(*map(str, paths), transforms=[RandomCrop(5)])
    np.random.seed(1)
    batches = [x.numpy() for x, _ in DataLoader(data, 3)]
    np.random.seed(1)
    np.testing.assert_array_equal(np.concatenate(batches), [data[i][0] for i in range(7)])
    data = MNISTDataset(*paths)
    np.testing.assert_array_equal(data[2:5][0], data.X[2:5])


def test_batch_transforms(tmp_path):
    """They change pictures, not columns of numbers."""
    paths, _, _ = write_mnist(tmp_path)
    data = MNISTDataset(*paths)
    for transform, want in (
        (BatchFlip(1), data.X[:, :, ::-1]),
        (BatchCutout(28), np.zeros_like(data.X)),
        (Normalize(0.5, 0.25), (data.X - np.float32(0.5)) / np.float32(0.25)),
    ):
        ((x, y),) = DataLoader(data, 7, batch_transforms=[transform])
        np.testing.assert_allclose(x.numpy(), want, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(y.numpy(), data.y)
    ((x, _),) = DataLoader(data, 7, batch_transforms=[BatchCrop(4)])
    assert x.shape == (7, 28, 28, 1)
    # A shift by 4 leaves 24 x 24 pixels, of which in 255 about one is black.
    assert (np.count_nonzero(x.numpy(), axis=(1, 2, 3)) > 24 * 24 - 20).all()


def test_missing(tmp_path):
    (_, labels), _, _ = write_mnist(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no such file: got .*none\.gz"):
        MNISTDataset(tmp_path / "none.gz", labels)


IMAGES = idx(np.zeros((2, 28, 28), np.uint8))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "not an IDX file of 3-d bytes: it begins with 0x: need 0x00000803 and 3 sizes"),
        (IMAGES[:7], "begins with 0x00000803: need 0x00000803 and 3 sizes"),
        (idx(np.zeros(2, np.uint8)) + b"1234567890", "begins with 0x00000801"),
        (IMAGES[:-1], r"wrong length: \(2, 28, 28\) needs 1568 bytes, the file has 1567"),
        (IMAGES + b"x", r"\(2, 28, 28\) needs 1568 bytes, the file has more"),
        (gzip.compress(IMAGES)[:-9], "damaged gzip file"),
        (gzip.compress(IMAGES)[:20], "damaged gzip file"),
        (gzip.compress(IMAGES)[:-8] + b"\0" * 8, "damaged gzip file: CRC check failed"),
        (b"\x1f\x8b" + b"\xff" * 40, "damaged gzip file"),
        (gzip.compress(IMAGES)[:10] + b"\xff" * 40, "damaged gzip file"),
        (
            struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1),
            r"too large: \(4294967295, 4294967295, 4294967295\) is \d+ bytes: need <= 1073741824",
        ),
        (struct.pack(">4I", 0x803, 2**20, 28, 28), "needs 822083584 bytes, the file has 0"),
    ],
)
def test_damaged(tmp_path, content, text):
    (path, labels), _, _ = write_mnist(tmp_path, n=2)
    versions = [content] if content[:2] == b"\x1f\x8b" else [content, gzip.compress(content)]
    for version in versions:
        path.write_bytes(version)
        with pytest.raises(DataFileError, match=text):
            MNISTDataset(path, labels)


def test_files_that_do_not_match(tmp_path):
    (images, labels), _, _ = write_mnist(tmp_path)
    labels.write_bytes(gzip.compress(idx(np.zeros(6, np.uint8))))
    with pytest.raises(DataFileError, match=r"has 7 images, .* has 6 labels: need equal numbers"):
        MNISTDataset(images, labels)
    labels.write_bytes(gzip.compress(idx(np.full(7, 12, np.uint8))))
    with pytest.raises(DataFileError, match="label out of range: got 12: need 0 <= label < 10"):
        MNISTDataset(images, labels)
    images.write_bytes(gzip.compress(idx(np.zeros((0, 28, 28), np.uint8))))
    labels.write_bytes(gzip.compress(idx(np.zeros(0, np.uint8))))
    with pytest.raises(DataFileError, match=r"has 0 images, .* has 0 labels: .* at least 1"):
        MNISTDataset(images, labels)


def test_files_in_the_wrong_order(tmp_path):
    (images, labels), _, _ = write_mnist(tmp_path)
    with pytest.raises(DataFileError, match=r"labels-.*begins with 0x00000801: need 0x00000803"):
        MNISTDataset(labels, images)
