import numpy as np
import pytest

from needle.backend_ndarray import ShapeError
from needle.data import RandomCrop, RandomFlipHorizontal, RandomTransform
from needle.data.transforms import all_have_halves, apply_to_batch


def image(height=5, width=4, channels=3, seed=1):
    return np.random.default_rng(seed).random((height, width, channels)).astype(np.float32)


def cropped(img, down, right):
    """out[i, j] = img[i + down, j + right], zero outside: pixel by pixel."""
    out = np.zeros_like(img)
    height, width, _ = img.shape
    for i in range(height):
        for j in range(width):
            if 0 <= i + down < height and 0 <= j + right < width:
                out[i, j] = img[i + down, j + right]
    return out


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
def test_flip_draws_one_number_and_mirrors_columns(p):
    img, flip = image(), RandomFlipHorizontal(p)
    for seed in range(20):
        np.random.seed(seed)
        got = flip(img)
        after = np.random.rand()
        np.random.seed(seed)
        want = img[:, ::-1] if np.random.rand() < p else img
        np.testing.assert_array_equal(got, want)
        assert after == np.random.rand()


def test_flip_defaults_to_one_half():
    assert RandomFlipHorizontal().p == 0.5
    assert RandomCrop().padding == 3


@pytest.mark.parametrize("padding", [0, 1, 3, 9])
def test_crop_draws_two_shifts(padding):
    img, crop = image(), RandomCrop(padding)
    for seed in range(20):
        np.random.seed(seed)
        got = crop(img)
        after = np.random.rand()
        np.random.seed(seed)
        down, right = np.random.randint(-padding, padding + 1, size=2)
        np.testing.assert_array_equal(got, cropped(img, down, right))
        assert after == np.random.rand()


def test_crop_equals_a_window_of_the_padded_image():
    img, padding = image(8, 8, 1), 3
    np.random.seed(5)
    got = RandomCrop(padding)(img)
    np.random.seed(5)
    down, right = np.random.randint(-padding, padding + 1, size=2)
    padded = np.pad(img, ((3, 3), (3, 3), (0, 0)))
    np.testing.assert_array_equal(got, padded[3 + down : 11 + down, 3 + right : 11 + right])


@pytest.mark.parametrize("transform", [RandomFlipHorizontal(1.0), RandomCrop(2)])
def test_the_image_itself_is_left_alone(transform):
    img = image()
    before = img.copy()
    out = transform(img)
    assert not np.shares_memory(out, img)
    np.testing.assert_array_equal(img, before)
    assert out.dtype == img.dtype
    assert out.shape == img.shape


@pytest.mark.parametrize(
    "transforms",
    [
        [],
        [RandomFlipHorizontal(0.5)],
        [RandomCrop(2)],
        [RandomCrop(2), RandomFlipHorizontal(0.5)],
        [RandomFlipHorizontal(0.4), RandomCrop(1), RandomCrop(4)],
    ],
    ids=str,
)
@pytest.mark.parametrize("n", [0, 1, 2, 33])
def test_a_batch_draws_and_changes_as_its_images_do(transforms, n):
    images = np.random.default_rng(0).random((n, 6, 5, 3)).astype(np.float32)
    np.random.seed(3)
    batch = apply_to_batch(transforms, images.copy())
    after = np.random.rand()
    np.random.seed(3)
    for got, img in zip(batch, images, strict=True):
        for transform in transforms:
            img = transform(img)
        np.testing.assert_array_equal(got, img)
    assert after == np.random.rand()


def test_only_transforms_in_two_halves_are_applied_to_batches():
    class Inverted(RandomFlipHorizontal):
        def __call__(self, img):
            return 1 - img

    class Noise(RandomTransform):
        def draw(self, n):
            return np.random.rand(n, 1, 1, 1)

        def apply(self, images, parameters):
            return images + parameters

    assert all_have_halves([RandomCrop(), RandomFlipHorizontal(), Noise()])
    assert not all_have_halves([RandomCrop(), lambda img: img])
    assert not all_have_halves([Inverted()])
    np.random.seed(0)
    got = Noise()(np.zeros((2, 2, 1)))
    np.random.seed(0)
    np.testing.assert_array_equal(got, np.full((2, 2, 1), np.random.rand()))


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_a_wrong_probability(p):
    with pytest.raises(ValueError, match=rf"p: got {p}: need a number in \[0, 1\]"):
        RandomFlipHorizontal(p)


def test_a_wrong_padding():
    with pytest.raises(ValueError, match="padding is too small: got -1: need an integer >= 0"):
        RandomCrop(-1)
    with pytest.raises(TypeError, match=r"padding is not an integer: got 1\.5"):
        RandomCrop(1.5)


@pytest.mark.parametrize("transform", [RandomFlipHorizontal(), RandomCrop()])
def test_not_an_image(transform):
    with pytest.raises(ShapeError, match=r"not an image: got shape \(4, 4\): need \(H, W, C\)"):
        transform(np.zeros((4, 4)))
