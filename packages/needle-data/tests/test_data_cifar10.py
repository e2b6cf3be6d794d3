import numpy as np
import pytest
from data_files import array_opcodes, dict_opcodes, labels_opcodes, short, write_cifar

from needle.data import (
    CIFAR10Dataset,
    DataFileError,
    DataLoader,
    RandomFlipHorizontal,
    UnsafePickleError,
    cifar10,
)

PIXELS = array_opcodes((2, 3072), bytes(6144))
LABELS = labels_opcodes([1, 2])


@pytest.fixture
def folder(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-py")
    return tmp_path / "cifar-10-batches-py"


@pytest.mark.parametrize("parent", [False, True])
@pytest.mark.parametrize("as_text", [False, True])
def test_train_and_test(tmp_path, parent, as_text):
    content = write_cifar(tmp_path / "cifar-10-batches-py", per_file=3)
    base = tmp_path if parent else tmp_path / "cifar-10-batches-py"
    base = str(base) if as_text else base
    train = [content[f"data_batch_{i}"] for i in range(1, 6)]
    for data, parts in [
        (CIFAR10Dataset(base, train=True), train),
        (CIFAR10Dataset(base, False), [content["test_batch"]]),
    ]:
        images = np.concatenate([images for images, _ in parts])
        np.testing.assert_array_equal(data.X, (images / 255).astype(np.float32))
        np.testing.assert_array_equal(data.y, np.concatenate([labels for _, labels in parts]))
        assert data.X.shape == (len(data), 3, 32, 32)
        assert data.X.dtype == np.float32
        assert data.y.dtype == np.int64
        assert len(data) == 3 * len(parts)


def test_items(folder):
    data = CIFAR10Dataset(folder, train=True)
    item = data[7]
    assert type(item) is tuple
    image, label = item
    assert isinstance(image, np.ndarray)
    assert image.shape == (3, 32, 32)
    assert 0 <= image.min() < image.max() <= 1
    assert label == data.y[7]
    image[:] = 0
    assert data.X[7].max() > 0, "an item is a copy"


def test_transforms_see_32_32_3(folder):
    seen = []
    transforms = [lambda img: seen.append(img.shape) or img, RandomFlipHorizontal(1.0)]
    data = CIFAR10Dataset(folder, train=False, p=0.3, transforms=transforms)
    np.testing.assert_array_equal(data[2][0], data.X[2][:, :, ::-1])
    assert seen == [(32, 32, 3)]
    assert data.p == 0.3


def test_loading(folder):
    data = CIFAR10Dataset(folder, train=True)
    for x, y in DataLoader(data, 20):
        np.testing.assert_array_equal(x.numpy(), data.X)
        np.testing.assert_array_equal(y.numpy(), data.y)
        assert x.dtype == "float32"


def test_class_names_are_in_the_order_of_the_ids():
    assert cifar10.CLASSES[0] == "airplane"
    assert cifar10.CLASSES[6] == "frog"
    assert len(cifar10.CLASSES) == 10


def test_wrong_folders(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"got .*nowhere \(no such folder\): need the fol"):
        CIFAR10Dataset(tmp_path / "nowhere", train=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"got .*empty \(no test_batch there\): need the"):
        CIFAR10Dataset(tmp_path / "empty", train=False)
    (folder / "data_batch_4").unlink()
    (folder / "data_batch_2").unlink()
    with pytest.raises(FileNotFoundError, match="lacks data_batch_2, data_batch_4: need data_"):
        CIFAR10Dataset(folder, train=True)
    assert len(CIFAR10Dataset(folder, train=False)) == 4


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (dict_opcodes(labels=LABELS), "not a CIFAR-10 batch: it has no data"),
        (dict_opcodes(num_vis=b"K\x03"), "it has no data and no labels"),
        (dict_opcodes(data=short(b"x"), labels=LABELS), r"got a str: need uint8 \(n, 3072\)"),
        (
            dict_opcodes(data=array_opcodes((2, 3071), bytes(6142)), labels=LABELS),
            r"got uint8 \(2, 3071\)",
        ),
        (dict_opcodes(data=array_opcodes((6144,), bytes(6144)), labels=LABELS), r"uint8 \(6144,\)"),
        (dict_opcodes(data=array_opcodes((), bytes(1)), labels=LABELS), r"got uint8 \(\)"),
        (
            dict_opcodes(data=array_opcodes((0, 3072), b""), labels=b"]"),
            r"got uint8 \(0, 3072\): need uint8 \(n, 3072\), n >= 1",
        ),
        (
            dict_opcodes(data=array_opcodes((1, 3072), bytes(6144), code=b"i2"), labels=LABELS),
            r"got int16 \(1, 3072\)",
        ),
        (dict_opcodes(data=PIXELS, labels=labels_opcodes([1])), "got 1 for 2 images: need 2"),
        (
            dict_opcodes(data=PIXELS, labels=labels_opcodes([1, 10])),
            "label out of range: got 10: need 0 <= label < 10",
        ),
        (dict_opcodes(data=PIXELS, labels=b"](J\xff\xff\xff\xffK\x01e"), "got -1"),
        (dict_opcodes(data=PIXELS, labels=b"](K\x01Ne"), "wrong labels: need a list of int"),
        (dict_opcodes(data=PIXELS, labels=short(b"12")), "wrong labels: need a list of int"),
    ],
)
def test_damaged_content(folder, content, text):
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(DataFileError, match=f"test_batch: .*{text}"):
        CIFAR10Dataset(folder, train=False)


@pytest.mark.parametrize("length", [0, 1, 100, 6000, -1])
def test_truncated(folder, length):
    content = (folder / "test_batch").read_bytes()
    (folder / "test_batch").write_bytes(content[:length])
    with pytest.raises(UnsafePickleError, match="test_batch: pickle: malformed"):
        CIFAR10Dataset(folder, train=False)


def test_hostile(folder, tmp_path):
    target = tmp_path / "written"
    attack = b"cos\nmkdir\n" + short(str(target).encode()) + b"\x85R"
    (folder / "data_batch_3").write_bytes(dict_opcodes(data=attack, labels=LABELS))
    with pytest.raises(UnsafePickleError, match=r"data_batch_3: pickle: .* names 'os\.mkdir'"):
        CIFAR10Dataset(folder, train=True)
    assert not target.exists()


def test_too_large_to_be_read(folder, monkeypatch):
    monkeypatch.setattr(cifar10, "MAX_FILE_BYTES", 1000)
    with pytest.raises(DataFileError, match=r"too large: 1\d{4} bytes: need at most 1000"):
        CIFAR10Dataset(folder, train=False)
