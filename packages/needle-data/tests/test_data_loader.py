import itertools

import numpy as np
import pytest

from needle import cpu
from needle.autograd import Tensor
from needle.backend_ndarray import DTypeError, ShapeError
from needle.data import (
    DataLoader,
    Dataset,
    ImageDataset,
    NDArrayDataset,
    RandomCrop,
    RandomFlipHorizontal,
)


def numbers(n=10):
    return NDArrayDataset(np.arange(2 * n, dtype=np.float32).reshape(n, 2), np.arange(n))


def labels_of(batches):
    return [batch[1].numpy().tolist() for batch in batches]


# ---- the loader ---------------------------------------------------------------------------------


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 9, 10])
def test_batches_in_order(batch_size, drop_last):
    loader = DataLoader(numbers(), batch_size, drop_last=drop_last)
    want = [list(range(10))[i : i + batch_size] for i in range(0, 10, batch_size)]
    if drop_last:
        want = [ids for ids in want if len(ids) == batch_size]
    assert labels_of(loader) == want
    assert labels_of(loader) == want, "a second pass"
    assert len(loader) == len(want)


def test_batches_are_tuples_of_tensors_without_gradients():
    for batch in DataLoader(numbers(), 4, device=cpu()):
        assert type(batch) is tuple
        for tensor in batch:
            assert isinstance(tensor, Tensor)
            assert tensor.requires_grad is False
            assert tensor.device == cpu()
            assert tensor.dtype == "float32"
    x, y = batch
    assert x.shape == (2, 2)
    assert y.shape == (2,)
    np.testing.assert_array_equal(x.numpy(), [[16, 17], [18, 19]])


@pytest.mark.parametrize("dtype", ["float64", np.float64, "int64"])
def test_dtype_is_that_of_every_tensor(dtype):
    for tensor in next(iter(DataLoader(numbers(), 4, dtype=dtype))):
        assert tensor.dtype == np.dtype(dtype)


def test_batches_do_not_share_the_data():
    data = numbers()
    x, _ = next(iter(DataLoader(data, 10)))
    data.arrays[0][:] = -1
    assert x.numpy().min() == 0


def test_shuffling_draws_one_permutation_when_the_pass_begins():
    loader = DataLoader(numbers(100), 7, shuffle=True)
    np.random.seed(1)
    batches = iter(loader)
    after_iter = np.random.rand()
    got = list(itertools.chain(*labels_of(batches)))
    after_pass = np.random.rand()
    np.random.seed(1)
    assert got == np.random.permutation(100).tolist()
    assert after_iter == np.random.rand()
    assert after_pass == np.random.rand()


def test_no_draw_without_shuffling():
    np.random.seed(1)
    list(DataLoader(numbers(), 3))
    after = np.random.rand()
    np.random.seed(1)
    assert after == np.random.rand()


def test_each_pass_shuffles_anew():
    loader = DataLoader(numbers(100), 100, shuffle=True)
    first, second = labels_of(loader), labels_of(loader)
    assert first != second
    assert sorted(first[0]) == sorted(second[0]) == list(range(100))


def test_passes_are_independent():
    loader = DataLoader(numbers(4), 2)
    pairs = [(a[1].numpy()[0], b[1].numpy()[0]) for a in loader for b in loader]
    assert pairs == [(0, 0), (0, 2), (2, 0), (2, 2)]
    one, other = iter(loader), iter(loader)
    next(one)
    assert next(one)[1].numpy().tolist() == [2, 3]
    assert next(other)[1].numpy().tolist() == [0, 1]
    with pytest.raises(StopIteration):
        next(one)


def test_more_than_the_data_is_one_smaller_batch():
    loader = DataLoader(numbers(10), 64)
    assert len(loader) == 1
    assert labels_of(loader) == [list(range(10))]


def test_no_data_is_no_batches():
    assert list(DataLoader(NDArrayDataset(np.zeros((0, 3))), 4)) == []


def test_no_full_batch_with_drop_last():
    text = (
        "no full batch: batch_size is 64, the data set has 10 items: "
        "need at least 64 with drop_last"
    )
    with pytest.raises(ValueError, match=text):
        DataLoader(numbers(10), 64, drop_last=True)


@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_size_below_one(size):
    text = f"DataLoader: batch_size is too small: got {size}: need an integer >= 1"
    with pytest.raises(ValueError, match=text):
        DataLoader(numbers(), batch_size=size)


@pytest.mark.parametrize("size", [2.0, "2", None, True, np.array([2])])
def test_a_batch_size_that_is_no_integer(size):
    with pytest.raises(TypeError, match="DataLoader: batch_size is not an integer: got"):
        DataLoader(numbers(), batch_size=size)


@pytest.mark.parametrize("name", ["shuffle", "drop_last"])
@pytest.mark.parametrize("value", ["no", None, 2, 0.5])
def test_a_switch_that_is_none(name, value):
    text = f"DataLoader: {name}: got {value!r}: need True or False"
    with pytest.raises(TypeError, match=text):
        DataLoader(numbers(), 2, **{name: value})
    assert len(DataLoader(numbers(), 2, **{name: np.bool_(True)})) == 5


@pytest.mark.parametrize(
    ("first", "error"), [(-1, ValueError), ("1", TypeError), (None, TypeError)]
)
def test_a_pass_that_begins_nowhere(first, error):
    with pytest.raises(error, match=r"DataLoader\.start: first is "):
        DataLoader(numbers(), 2).start(first)


def test_batch_transforms_that_are_no_list():
    with pytest.raises(
        TypeError, match="batch_transforms is not a list: got NoneType: need a list"
    ):
        DataLoader(numbers(), 2, batch_transforms=None)


def test_a_numpy_integer_is_a_batch_size():
    assert len(DataLoader(numbers(10), np.int32(4))) == 3


def test_not_a_data_set():
    with pytest.raises(TypeError, match="not a data set: got int: need __len__ and __getitem__"):
        DataLoader(3)


def test_a_wrong_dtype_or_device_shows_at_once():
    with pytest.raises(TypeError, match="float31"):
        DataLoader(numbers(), dtype="float31")
    with pytest.raises((TypeError, RuntimeError), match="gpu"):
        DataLoader(numbers(), device="gpu")


# ---- data sets ----------------------------------------------------------------------------------


class Squares(Dataset):
    """Items alone, as a user writes them."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return np.full((2,), index**2), index


def test_a_data_set_of_items_only():
    x, y = next(iter(DataLoader(Squares(), 3)))
    np.testing.assert_array_equal(x.numpy(), [[0, 0], [1, 1], [4, 4]])
    np.testing.assert_array_equal(y.numpy(), [0, 1, 2])


def test_anything_with_items_can_be_loaded():
    assert [b[0].numpy().tolist() for b in DataLoader([3, 1, 4, 1, 5], 2)] == [[3, 1], [4, 1], [5]]


def test_items_may_be_tensors():
    class Tensors(Squares):
        def __getitem__(self, index):
            return Tensor(np.full(2, index)), Tensor(np.full(2, -index)).cached_data

    x, y = next(iter(DataLoader(Tensors(), 2)))
    np.testing.assert_array_equal(x.numpy(), [[0, 0], [1, 1]])
    np.testing.assert_array_equal(y.numpy(), [[0, 0], [-1, -1]])


def test_items_that_do_not_fit_together():
    class Growing(Squares):
        def __getitem__(self, index):
            return np.zeros(index + 1), index

    class Uneven(Squares):
        def __getitem__(self, index):
            return (index,) * (index + 1)

    with pytest.raises(ShapeError, match=r"items differ in shape: field 0 is \(1,\) and \(2,\)"):
        next(iter(DataLoader(Growing(), 2)))
    with pytest.raises(ShapeError, match="items differ in length: got 1 and 2 fields"):
        next(iter(DataLoader(Uneven(), 2)))


def test_the_base_class():
    data = Dataset(transforms=[lambda x: x + 1, lambda x: x * 2])
    assert data.apply_transforms(3) == 8
    assert Dataset().apply_transforms(3) == 3
    with pytest.raises(NotImplementedError, match="Dataset: __getitem__ is not defined"):
        data[0]
    with pytest.raises(NotImplementedError, match="Dataset: __len__ is not defined"):
        len(data)


@pytest.mark.parametrize("transforms", [RandomCrop(), [3]])
def test_transforms_that_are_no_list_of_callables(transforms):
    with pytest.raises(TypeError, match=r"Dataset: transforms: got .*: need a list of callables"):
        Dataset(transforms)


def test_what_a_subclass_redefines_is_what_is_loaded():
    class Shifted(NDArrayDataset):
        def __getitem__(self, index):
            (x,) = super().__getitem__(index)
            return (x + 100,)

    class Doubled(ImageDataset):
        def apply_transforms(self, x):
            return 2 * x

    class Faster(Shifted):
        def batch(self, indices):
            return (self.arrays[0][indices] + 1000,)

    (x,) = next(iter(DataLoader(Shifted(np.arange(4)), 4)))
    np.testing.assert_array_equal(x.numpy(), [100, 101, 102, 103])
    (x,) = next(iter(DataLoader(Faster(np.arange(4)), 4)))
    np.testing.assert_array_equal(x.numpy(), [1000, 1001, 1002, 1003])
    images = Doubled(np.ones((2, 3, 4, 4), np.float32), np.arange(2))
    assert next(iter(DataLoader(images, 2)))[0].numpy().max() == 2


def test_ndarray_dataset_items_and_slices():
    a, b = np.arange(12).reshape(6, 2), np.arange(6) * 10
    data = NDArrayDataset(a, b)
    assert len(data) == 6
    assert type(data[0]) is tuple
    for index in [0, -1, np.int64(3), slice(1, 4), slice(None, None, -2), np.array([5, 0, 5])]:
        for got, want in zip(data[index], (a[index], b[index]), strict=True):
            np.testing.assert_array_equal(got, want)
    assert len(NDArrayDataset(a)[1]) == 1
    assert len(NDArrayDataset([[1, 2], [3, 4]])) == 2
    assert [y for _, y in data] == b.tolist()


@pytest.mark.parametrize("index", [6, -7])
def test_an_item_that_is_not_there(index):
    text = f"NDArrayDataset: index out of range: got {index}: need -6 <= index < 6"
    with pytest.raises(IndexError, match=text):
        NDArrayDataset(np.arange(6))[index]


def test_arrays_that_do_not_belong_together():
    with pytest.raises(ShapeError, match=r"shapes are \[\(3, 2\), \(4,\)\]: need one shared"):
        NDArrayDataset(np.zeros((3, 2)), np.zeros(4))
    with pytest.raises(ShapeError, match=r"shapes are \[\(\)\]"):
        NDArrayDataset(np.float32(3))
    with pytest.raises(ValueError, match="no arrays: got 0: need at least 1"):
        NDArrayDataset()
    with pytest.raises(DTypeError, match="not numbers: got dtype <U1"):
        NDArrayDataset(np.array(["a"]))
    with pytest.raises(ShapeError, match="NDArrayDataset: not an array"):
        NDArrayDataset([[1], [2, 3]])


# ---- images -------------------------------------------------------------------------------------


def images(transforms=None, n=9):
    rng = np.random.default_rng(0)
    return ImageDataset(rng.random((n, 3, 6, 6)).astype(np.float32), np.arange(n), transforms)


@pytest.mark.parametrize(
    "transforms",
    [
        None,
        [],
        [RandomFlipHorizontal()],
        [RandomCrop(2), RandomFlipHorizontal()],
        [RandomCrop(2), lambda img: 1 - img],
    ],
)
def test_a_batch_of_images_equals_its_items(transforms):
    data = images(transforms)
    np.random.seed(2)
    batches = [(x.numpy(), y.numpy()) for x, y in DataLoader(data, 4, shuffle=True)]
    after = np.random.rand()
    np.random.seed(2)
    order = np.random.permutation(9)
    items = [data[i] for i in order]
    assert after == np.random.rand()
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), [x for x, _ in items])
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), order)


def test_transforms_see_height_width_channels():
    seen = []
    data = images([lambda img: seen.append(img.shape) or img])
    assert data[0][0].shape == (3, 6, 6)
    assert seen == [(6, 6, 3)]


def test_a_transform_may_write_in_place():
    def darken(img):
        img *= 0
        return img

    data = images([darken])
    before = data.X.copy()
    assert data[3][0].max() == 0
    assert next(iter(DataLoader(data, 9)))[0].numpy().max() == 0
    np.testing.assert_array_equal(data.X, before)


def test_image_indices():
    data = images()
    x, y = data[2:5]
    np.testing.assert_array_equal(x, data.X[2:5])
    np.testing.assert_array_equal(y, [2, 3, 4])
    x, y = data[np.arange(9) % 2 == 0]
    np.testing.assert_array_equal(y, [0, 2, 4, 6, 8])
    np.testing.assert_array_equal(data[-1][0], data.X[8])
    with pytest.raises(IndexError, match="index out of range: got 9: need -9 <= index < 9"):
        data[9]
    with pytest.raises(IndexError):
        data["first"]


def test_images_and_labels_that_do_not_belong_together():
    text = r"got \(2, 3, 4, 4\) and \(3,\): need \(N, C, H, W\) and \(N,\)"
    with pytest.raises(ShapeError, match=text):
        ImageDataset(np.zeros((2, 3, 4, 4), np.float32), np.zeros(3, np.int64))
    with pytest.raises(ShapeError, match=r"got \(2, 16\) and \(2,\)"):
        ImageDataset(np.zeros((2, 16), np.float32), np.zeros(2, np.int64))
