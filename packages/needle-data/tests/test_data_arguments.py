"""Every wrong argument gets a typed error that names it, what came and what was expected."""

import os

import numpy as np
import pytest

from needle.autograd import Tensor
from needle.backend_ndarray import DeviceError, DTypeError, ShapeError
from needle.data import (
    BatchCrop,
    BatchCutout,
    BatchFlip,
    CIFAR10Dataset,
    Corpus,
    DataLoader,
    Dataset,
    Dictionary,
    ImageDataset,
    MNISTDataset,
    NDArrayDataset,
    Normalize,
    RandomCrop,
    RandomFlipHorizontal,
    SyntheticImages,
    as_bytes,
    batchify,
    download,
    get_batch,
    load_corpus,
)
from needle.data.verify import verify_cifar10, verify_ptb

X = np.zeros((4, 3, 5, 5), np.float32)
Y = np.zeros(4, np.int64)
ROWS = np.arange(10).reshape(5, 2)
RNG = np.random.default_rng(0)


def forgets_to_return(image):
    image += 1


BAD = {
    # data sets
    "images-list": (
        lambda: ImageDataset([[1.0]], Y),
        TypeError,
        r"ImageDataset: X is not a NumPy array: got list: need \(N, C, H, W\)",
    ),
    "images-tensor": (
        lambda: ImageDataset(Tensor(X), Y),
        TypeError,
        "ImageDataset: X is not a NumPy array: got Tensor",
    ),
    "images-text": (
        lambda: ImageDataset(X.astype(str), Y),
        DTypeError,
        "ImageDataset: X is not numbers: got dtype <U32: need bool, int or float",
    ),
    "images-no-channels": (
        lambda: ImageDataset(X[0], Y),
        ShapeError,
        r"ImageDataset: images and labels: got \(3, 5, 5\) and \(4,\): need \(N, C, H, W\) and",
    ),
    "labels-list": (
        lambda: ImageDataset(X, [0, 1, 2, 3]),
        TypeError,
        r"ImageDataset: y is not a NumPy array: got list: need \(N,\)",
    ),
    "labels-float": (
        lambda: ImageDataset(X, Y + 0.5),
        DTypeError,
        "ImageDataset: y is not class ids: got dtype float64: need integers",
    ),
    "labels-few": (lambda: ImageDataset(X, Y[:3]), ShapeError, r"got \(4, 3, 5, 5\) and \(3,\)"),
    "index-float": (
        lambda: ImageDataset(X, Y)[1.5],
        IndexError,
        r"ImageDataset: not an index: got 1\.5: need an integer, a slice, a mask or an array of",
    ),
    "index-none": (lambda: ImageDataset(X, Y)[None], IndexError, "ImageDataset: not an index: got"),
    "index-ragged": (
        lambda: NDArrayDataset(Y)[[[1], [2, 3]]],
        IndexError,
        r"NDArrayDataset: not an index: got \[\[1\], \[2, 3\]\]: need an integer, a slice",
    ),
    "index-outside": (
        lambda: ImageDataset(X, Y)[np.array([0, 4])],
        IndexError,
        r"ImageDataset: not an index: got array\(\[0, 4\]\): need .* in -4 <= index < 4",
    ),
    "index-class": (lambda: NDArrayDataset(Y)[int], IndexError, "NDArrayDataset: not an index"),
    "transform-returns-none": (
        lambda: ImageDataset(X, Y, [forgets_to_return])[0],
        ShapeError,
        r"ImageDataset: transforms made no image: got NoneType: need \(H, W, C\)",
    ),
    "transform-returns-a-plane": (
        lambda: DataLoader(ImageDataset(X, Y, [lambda x: x[..., 0]]), 2).__iter__().__next__(),
        ShapeError,
        r"ImageDataset: transforms made no image: got \(5, 5\): need \(H, W, C\)",
    ),
    "batch-of-a-list": (
        lambda: Dataset().batch([0, 1]),
        TypeError,
        r"batch: indices is not a NumPy array: got list: need integers \(B,\)",
    ),
    "batch-beyond": (
        lambda: ImageDataset(X, Y).batch(np.array([0, 4])),
        IndexError,
        r"ImageDataset: not an index: got array\(\[0, 4\]\): need .*, in -4 <= index < 4",
    ),
    "batch-of-a-text": (
        lambda: NDArrayDataset(ROWS).batch("x"),
        IndexError,
        "NDArrayDataset: not an index: got 'x': need",
    ),
    # before anything is read
    "cifar10-transforms": (
        lambda: CIFAR10Dataset("nowhere", True, transforms=5),
        TypeError,
        "CIFAR10Dataset: transforms: got 5: need a list of callables",
    ),
    "mnist-transforms": (
        lambda: MNISTDataset("nowhere", "nowhere", 5),
        TypeError,
        "MNISTDataset: transforms: got 5: need a list of callables",
    ),
    "synthetic-transforms": (
        lambda: SyntheticImages(True, 0, 5),
        TypeError,
        "SyntheticImages: transforms: got 5: need a list of callables",
    ),
    "ragged-array": (lambda: NDArrayDataset([[1], [2, 3]]), ShapeError, "NDArrayDataset: not an a"),
    "synthetic": (lambda: SyntheticImages(True, int), TypeError, "size is not an integer: got <cl"),
    # transforms
    "flip-text": (
        lambda: RandomFlipHorizontal("x"),
        TypeError,
        r"RandomFlipHorizontal: p: got 'x': need a number in \[0, 1\]",
    ),
    "flip-none": (lambda: RandomFlipHorizontal(None), TypeError, "p: got None"),
    "flip-array": (lambda: RandomFlipHorizontal(Y), TypeError, "p: got array"),
    "batch-flip": (lambda: BatchFlip("x"), TypeError, "BatchFlip: p: got 'x'"),
    "crop-ragged": (
        lambda: RandomCrop()([[1], [2, 3]]),
        ShapeError,
        "RandomCrop: img is not an array: .*inhomogeneous",
    ),
    "batch-flip-list": (
        lambda: BatchFlip()([1, 2], RNG),
        TypeError,
        r"BatchFlip: images is not a NumPy array: got list: need \(N, C, H, W\)",
    ),
    "batch-crop-tensor": (
        lambda: BatchCrop(1)(Tensor(X), RNG),
        TypeError,
        "BatchCrop: images is not a NumPy array: got Tensor",
    ),
    "batch-cutout-none": (
        lambda: BatchCutout(2)(None, RNG),
        TypeError,
        "BatchCutout: images is not a NumPy array: got NoneType",
    ),
    "normalize-list": (
        lambda: Normalize()([1.0]),
        TypeError,
        "Normalize: images is not a NumPy array: got list",
    ),
    "batch-crop-rng": (
        lambda: BatchCrop(1)(X.copy(), None),
        TypeError,
        r"BatchCrop: rng is not a generator: got NoneType: need numpy\.random\.default_rng\(\)",
    ),
    "batch-flip-rng": (
        lambda: BatchFlip()(X.copy(), np.random),
        TypeError,
        "BatchFlip: rng is not a generator: got module",
    ),
    "batch-cutout-rng": (
        lambda: BatchCutout(2)(X.copy(), 5),
        TypeError,
        "BatchCutout: rng is not a generator: got int",
    ),
    "draw-shape": (
        lambda: BatchFlip().draw(5, RNG),
        TypeError,
        r"BatchFlip: shape is not a tuple: got int: need \(N, C, H, W\)",
    ),
    "as-bytes-list": (
        lambda: as_bytes([0.0, 1.0]),
        TypeError,
        "as_bytes: images is not a NumPy array: got list: need floats in",
    ),
    "as-bytes-tensor": (
        lambda: as_bytes(Tensor(X)),
        TypeError,
        "as_bytes: images is not a NumPy array: got Tensor",
    ),
    "as-bytes-number": (
        lambda: as_bytes(np.array(0.5)),
        ShapeError,
        r"as_bytes: not images: got \(\): need at least one axis",
    ),
    # texts
    "corpus-none": (
        lambda: Corpus(None),
        TypeError,
        "Corpus: base_dir is not a path: got None: need a str or Path",
    ),
    "corpus-bytes": (lambda: Corpus(b"x"), TypeError, "Corpus: base_dir is not a path: got b'x'"),
    "load-corpus": (lambda: load_corpus(5), TypeError, "load_corpus: base_dir is not a path: got"),
    "load-corpus-cache": (
        lambda: load_corpus("nowhere", 5),
        TypeError,
        "load_corpus: cache is not a path: got 5",
    ),
    "word-number": (
        lambda: Dictionary().add_word(5),
        TypeError,
        r"Dictionary\.add_word: word is not a str: got 5: need a word",
    ),
    "word-list": (lambda: Dictionary().add_word(["a"]), TypeError, "add_word: word is not a str"),
    "batchify-ragged": (
        lambda: batchify([[1], [2, 3]], 1),
        ShapeError,
        "batchify: data is not an array: .*inhomogeneous",
    ),
    "batchify-dtype": (
        lambda: batchify([1, 2], 1, dtype="float31"),
        DTypeError,
        "batchify: dtype: got 'float31': need one of NumPy's",
    ),
    "batchify-columns": (lambda: batchify([1], int), TypeError, "batch_size is not an integer"),
    "get-batch-ragged": (
        lambda: get_batch([[1], [2, 3]], 0, 1),
        ShapeError,
        "get_batch: batches is not an array: .*inhomogeneous",
    ),
    "get-batch-text": (
        lambda: get_batch(ROWS.astype(str), 0, 1),
        DTypeError,
        "get_batch: batches is not numbers: got dtype <U",
    ),
    "get-batch-i": (lambda: get_batch(ROWS, "0", 1), TypeError, "get_batch: i is not an integer"),
    "get-batch-bptt": (lambda: get_batch(ROWS, 0, 1.0), TypeError, "bptt is not an integer"),
    "get-batch-device": (
        lambda: get_batch(ROWS, 0, 1, device="cpu"),
        DeviceError,
        r"get_batch: device: got 'cpu': need a device such as needle\.cpu\(\)",
    ),
    # files
    "mnist-images": (
        lambda: MNISTDataset(None, "y"),
        TypeError,
        "MNISTDataset: image_filename is not a path: got None",
    ),
    "mnist-labels": (
        lambda: MNISTDataset("x", 5),
        TypeError,
        "MNISTDataset: label_filename is not a path: got 5",
    ),
    "cifar10": (
        lambda: CIFAR10Dataset(None, True),
        TypeError,
        "CIFAR10Dataset: base_folder is not a path: got None",
    ),
    "verify-cifar10": (
        lambda: verify_cifar10(5),
        TypeError,
        "verify_cifar10: folder is not a path",
    ),
    "verify-ptb": (lambda: verify_ptb(None), TypeError, "verify_ptb: folder is not a path"),
    "download-cifar10": (
        lambda: download.cifar10(5),
        TypeError,
        r"download\.cifar10: folder is not a path: got 5",
    ),
    "download-ptb": (lambda: download.ptb(5), TypeError, r"download\.ptb: folder is not a path"),
    "download-source": (
        lambda: download.cifar10("nowhere", source="https://example.invalid/a"),
        TypeError,
        r"download\.cifar10: source is not a Source: got 'https:",
    ),
    # loaders
    "loader-class": (
        lambda: DataLoader(NDArrayDataset),
        TypeError,
        "DataLoader: not a data set: got the class NDArrayDataset: need __len__ and __getitem__",
    ),
    "loader-text": (lambda: DataLoader("abc"), TypeError, "DataLoader: not a data set: got str"),
    "loader-dict": (lambda: DataLoader({}), TypeError, "DataLoader: not a data set: got dict"),
    "loader-device": (
        lambda: DataLoader(NDArrayDataset(Y), device="cpu"),
        DeviceError,
        r"DataLoader: device: got 'cpu': need a device such as needle\.cpu\(\)",
    ),
    "loader-dtype": (
        lambda: DataLoader(NDArrayDataset(Y), dtype=5),
        DTypeError,
        "DataLoader: dtype is not supported: got 5: need one of float32",
    ),
}


@pytest.mark.parametrize(("call", "error", "text"), BAD.values(), ids=BAD)
def test_a_wrong_argument(call, error, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=text):
        call()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "transforms", [5, 2.5, True, "x", {}, {abs}, np.zeros(3), object(), abs, [3], iter([abs])]
)
@pytest.mark.parametrize("make", [Dataset, lambda t: ImageDataset(X, Y, t)])
def test_transforms_that_are_no_list_of_callables(make, transforms):
    with pytest.raises(TypeError, match=r"ataset: transforms: got .*: need a list of callables"):
        make(transforms)


def test_words_are_found_and_added():
    words = Dictionary()
    assert [words.add_word(word) for word in ("a", "b", "a", "c", "b")] == [0, 1, 0, 2, 1]
    assert words.idx2word == ["a", "b", "c"]


def test_images_of_bytes_and_labels_of_any_integers_are_taken():
    for dtype in ("uint8", "float32", "float64"):
        for ids in ("uint8", "int32", "int64"):
            data = ImageDataset(X.astype(dtype), Y.astype(ids))
            assert data[[0, 2]][0].dtype == dtype
            assert data[np.array([True, False, True, True])][1].dtype == ids
