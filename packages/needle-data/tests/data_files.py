"""Writes small files in the official formats, opcode by opcode, byte by byte."""

import gzip
import struct

import numpy as np


def short(text: bytes) -> bytes:
    """A Python-2 string: SHORT_BINSTRING or BINSTRING."""
    if len(text) < 256:
        return b"U" + bytes([len(text)]) + text
    return b"T" + struct.pack("<i", len(text)) + text


def array_opcodes(shape, content: bytes, code: bytes = b"u1", order: bytes = b"|") -> bytes:
    """A NumPy array as Python 2's cPickle writes it in protocol 2, with its memo entries."""
    sizes = b"".join(b"J" + struct.pack("<i", n) for n in shape)
    return b"".join(
        [
            b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08",
            b"K\x00\x85" + short(b"b") + b"\x87Rq\x09",
            b"(K\x01(" + sizes + b"t",
            b"cnumpy\ndtype\nq\x0a" + short(code) + b"K\x00K\x01\x87Rq\x0b",
            b"(K\x03" + short(order) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            b"\x89" + short(content) + b"tb",
        ]
    )


def dict_opcodes(**values: bytes) -> bytes:
    """A whole pickle: a dict of string keys, each value given as its opcodes."""
    items = b"".join(short(key.encode()) + value for key, value in values.items())
    return b"\x80\x02}q\x01(" + items + b"u."


def labels_opcodes(labels) -> bytes:
    return b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"


def batch_pickle(images: np.ndarray, labels) -> bytes:
    """A CIFAR-10 batch: images uint8 (n, 3, 32, 32)."""
    return dict_opcodes(
        batch_label=short(b"training batch 1 of 5"),
        labels=labels_opcodes(labels),
        data=array_opcodes((len(images), 3072), images.tobytes()),
        filenames=b"](" + short(b"frog_s_000001.png") * len(images) + b"e",
    )


def write_cifar(folder, per_file: int = 4, seed: int = 0):
    """A folder of five training files and a test file; the images and labels in it."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    content = {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        images = rng.integers(0, 256, (per_file, 3, 32, 32), dtype=np.uint8)
        labels = rng.integers(0, 10, per_file)
        (folder / name).write_bytes(batch_pickle(images, labels.tolist()))
        content[name] = images, labels
    return content


def idx(array: np.ndarray) -> bytes:
    """A uint8 array as an IDX file."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder, n: int = 7, zipped: bool = True, shape=(28, 28)):
    """A pair of IDX files; their paths, and the pixels and labels in them."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    labels = rng.integers(0, 10, n).astype(np.uint8)
    suffix = ".gz" if zipped else ""
    paths = folder / f"images-idx3-ubyte{suffix}", folder / f"labels-idx1-ubyte{suffix}"
    for path, array in zip(paths, (pixels, labels), strict=True):
        path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    return paths, pixels, labels
