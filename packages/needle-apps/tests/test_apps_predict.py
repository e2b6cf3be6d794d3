"""Image files from anyone, as pixels; and what a model makes of them."""

import contextlib
import struct
import sys
import zlib

import numpy as np
import pytest

from needle.apps import predict
from needle.apps.extras import MissingExtraError
from needle.apps.images import ImageFileError, load_image
from needle.apps.models import ResNet9

Image = pytest.importorskip("PIL.Image", reason="reading images needs Pillow")


def picture(size=(32, 32), mode="RGB", seed=0):
    width, height = size
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def save(path, image, **options):
    image.save(path, **options)
    return path


def plain_png(width, height):
    """A PNG of the given size, black and white, whatever its data really hold."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


# ---- reading -------------------------------------------------------------------------------------


def test_an_image_of_the_models_size_passes_unchanged(tmp_path):
    image = picture()
    found = load_image(save(tmp_path / "a.png", image), 32)
    assert (found.shape, found.dtype) == ((3, 32, 32), np.float32)
    np.testing.assert_array_equal(
        found, (np.asarray(image) / np.float32(255)).transpose(2, 0, 1).astype(np.float32)
    )


def test_a_larger_image_is_averaged_and_its_middle_kept(tmp_path):
    pixels = np.zeros((64, 128, 3), dtype=np.uint8)
    pixels[:, 32:64] = (255, 0, 0)  # the left half of the middle square
    pixels[:, 64:96] = (0, 0, 255)
    found = load_image(save(tmp_path / "a.png", Image.fromarray(pixels)), 32)
    np.testing.assert_allclose(found[0, :, 2:14], 1, atol=0.02)
    np.testing.assert_allclose(found[2, :, 18:30], 1, atol=0.02)
    # A fine checkerboard becomes its mean: a resize that skips pixels would show black or white.
    board = np.indices((512, 512)).sum(axis=0) % 2 * 255
    checkered = Image.fromarray(board.astype(np.uint8))
    found = load_image(save(tmp_path / "b.png", checkered), 32)
    np.testing.assert_allclose(found, 0.5, atol=0.01)


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (500, 3), (31, 33), (640, 480)])
def test_any_size(tmp_path, size):
    found = load_image(save(tmp_path / "a.png", picture(size)), 32)
    assert found.shape == (3, 32, 32)
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *((mode, "png") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *((mode, "tiff") for mode in ("CMYK", "F", "LAB", "YCbCr", "I", "I;16")),
        *((mode, "jpg") for mode in ("L", "RGB", "CMYK")),
        ("RGB", "webp"), ("RGB", "bmp"), ("P", "gif"), ("RGB", "ppm"), ("RGBA", "tga"),
    ],
)  # fmt: skip
def test_any_mode(tmp_path, mode, suffix):
    if mode in ("I", "I;16"):
        image = Image.fromarray(np.full((40, 40), 32768, np.uint16)).convert(mode)
    elif mode == "F":
        image = Image.fromarray(np.full((40, 40), 0.5, np.float32))
    else:
        image = Image.new("RGB", (40, 40), (128, 128, 128)).convert(mode)
    found = load_image(save(tmp_path / f"a.{suffix}", image), 32)
    assert found.shape == (3, 32, 32)
    # Dithered to a few colours it is grey on average alone.
    np.testing.assert_allclose(found.mean() if mode in "1P" else found, 0.5, atol=0.03)


def test_floats_out_of_range_are_clipped(tmp_path):
    values = np.array([[-1, 2], [np.nan, np.inf]], dtype=np.float32).repeat(16, 0).repeat(16, 1)
    found = load_image(save(tmp_path / "a.tiff", Image.fromarray(values)), 32)
    np.testing.assert_array_equal(found[0, ::31, ::31], [[0, 1], [0, 1]])


def test_transparency_becomes_white(tmp_path):
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    np.testing.assert_array_equal(load_image(save(tmp_path / "a.png", clear), 32), 1)
    palette = Image.new("P", (32, 32), 0)
    palette.putpalette([0, 0, 0] * 256)
    found = load_image(save(tmp_path / "b.png", palette, transparency=0), 32)
    np.testing.assert_array_equal(found, 1)


def test_the_cameras_rotation_is_heeded(tmp_path):
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[:16] = 255
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    found = load_image(save(tmp_path / "a.png", image, exif=exif), 32)
    np.testing.assert_array_equal(found[0, :, 31], 1)
    np.testing.assert_array_equal(found[0, :, 0], 0)


def test_an_animation_is_its_first_picture(tmp_path):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("white", "black")]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(load_image(path, 32), 1)


# ---- hostile files -------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff" * 500])
def test_a_file_that_is_no_image(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ImageFileError, match=r"image: (not an image|damaged): .*a\.png"):
        load_image(path, 32)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tiff", "bmp", "ppm", "tga"])
@pytest.mark.parametrize("keep", [0.2, 0.6, 0.95])
def test_a_truncated_image(tmp_path, suffix, keep):
    path = save(tmp_path / f"a.{suffix}", picture((64, 64)))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ImageFileError, match=r"image: (not an image|damaged): "):
        load_image(path, 32)


def test_damaged_images_are_pixels_or_one_typed_error(tmp_path):
    rng = np.random.RandomState(0)
    for suffix in ("png", "jpg", "gif", "tiff", "webp"):
        path = save(tmp_path / f"a.{suffix}", picture((64, 64)))
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        for _ in range(40):
            damaged = content.copy()
            damaged[rng.randint(0, len(content), 8)] = rng.randint(0, 256, 8)
            path.write_bytes(damaged.tobytes())
            with contextlib.suppress(ImageFileError):
                assert load_image(path, 32).shape == (3, 32, 32)


@pytest.mark.parametrize("size", [(20_000, 20_000), (60_000, 60_000)])
def test_a_decompression_bomb(tmp_path, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(plain_png(*size))
    with pytest.raises(ImageFileError, match=r"image: too large: .*bomb\.png.*at most 100,000,000"):
        load_image(path, 32)


def test_postscript_is_not_run(tmp_path):
    path = save(tmp_path / "a.eps", picture())
    with pytest.raises(
        ImageFileError, match=r"image: not an image: .*a\.eps: need one of BMP, GIF"
    ):
        load_image(path, 32)


def test_what_is_not_a_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "nothing.png", 32)
    with pytest.raises(ImageFileError, match="image: a folder"):
        load_image(tmp_path, 32)


def test_without_pillow_there_is_a_hint(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", picture())
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(
        MissingExtraError, match=r"predict: PIL .*pip install 'needle-apps\[images\]"
    ):
        load_image(path, 32)


# ---- classifying ---------------------------------------------------------------------------------


def test_the_top_five_are_those_of_the_logits():
    model = ResNet9()
    pixels = np.random.rand(70, 3, 32, 32).astype(np.float32)  # more than one batch
    classes = [f"class {i}" for i in range(10)]
    found = predict.classify(model, pixels, classes)
    model.eval()
    logits = model(predict.Tensor(pixels)).numpy().astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert [len(guesses) for guesses in found] == [5] * 70
    for guesses, row in zip(found, expected, strict=True):
        best = np.sort(row)[::-1][:5]
        np.testing.assert_allclose([guess.probability for guess in guesses], best, rtol=1e-4)
        assert guesses[0].label == f"class {row.argmax()}"
    everything = predict.classify(model, pixels[:1], classes, top=99)[0]
    assert sum(guess.probability for guess in everything) == pytest.approx(1)
    assert len(everything) == 10


def test_every_image_data_set_has_ten_class_names():
    assert {kind: len(names) for kind, names in predict.CLASSES.items()} == {
        "cifar10": 10,
        "synthetic": 10,
    }
