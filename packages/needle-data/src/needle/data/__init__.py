"""Data sets, transforms and loaders.

Downloads are in `needle.data.download`, to be imported by name: the HTTP library behind it takes
longer to import than all of this.
"""

from .augment import BatchCrop, BatchCutout, BatchFlip, BatchTransform, Normalize, as_bytes
from .cifar10 import CIFAR10Dataset
from .dataset import Dataset, ImageDataset, NDArrayDataset
from .errors import ChecksumError, DataFileError, DownloadError, UnsafePickleError
from .loader import DataLoader
from .mnist import MNISTDataset
from .synthetic_images import SyntheticImages
from .synthetic_text import SyntheticCorpus
from .text import Corpus, Dictionary, batchify, get_batch
from .tokens import TokenizedCorpus, load_corpus
from .transforms import RandomCrop, RandomFlipHorizontal, RandomTransform

__all__ = [
    "BatchCrop",
    "BatchCutout",
    "BatchFlip",
    "BatchTransform",
    "CIFAR10Dataset",
    "ChecksumError",
    "Corpus",
    "DataFileError",
    "DataLoader",
    "Dataset",
    "Dictionary",
    "DownloadError",
    "ImageDataset",
    "MNISTDataset",
    "NDArrayDataset",
    "Normalize",
    "RandomCrop",
    "RandomFlipHorizontal",
    "RandomTransform",
    "SyntheticCorpus",
    "SyntheticImages",
    "TokenizedCorpus",
    "UnsafePickleError",
    "as_bytes",
    "batchify",
    "get_batch",
    "load_corpus",
]
