"""Image files as what a classifier takes: any size, any mode, from anyone.

Pillow reads the files (extra `images`). A file from a stranger may be built to hurt: only formats
that are pure data are opened (no PostScript), the size is checked before a pixel is unpacked, and
whatever Pillow finds wrong is one typed error.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray as Array

from needle.apps.extras import require

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TGA", "TIFF", "WEBP")
MAX_PIXELS = 100_000_000  # a decompression bomb has more; a camera's picture has less


class ImageFileError(ValueError):
    """A file is not an image, or a damaged, forbidden or oversized one."""


def load_images(paths: Sequence[Path], size: int) -> Array[np.float32]:
    """Read image files as float32 (n, 3, size, size) in [0, 1]: see `load_image`."""
    return np.stack([load_image(path, size) for path in paths])


def load_image(path: Path, size: int) -> Array[np.float32]:
    """Read an image file as float32 (3, size, size) in [0, 1].

    The shorter side is scaled to `size`, smoothly and without aliasing, and the middle of the
    longer one is kept: an image of exactly that size passes unchanged. Transparent pixels become
    white; 16-bit grey and floats in [0, 1] become bytes; the camera's rotation is heeded; of an
    animation it is the first picture.

    Raises:
        MissingExtraError: Pillow is not installed.
        OSError: there is no such file.
        ImageFileError: it is not an image, is damaged, or has more than MAX_PIXELS.
    """
    pillow = require("PIL.Image", "images", "predict")
    if path.is_dir():
        raise ImageFileError(f"image: a folder: {path}: need an image file")
    with path.open("rb") as file, warnings.catch_warnings():
        # Its own limit of the same kind is a warning; ours, below, is an error.
        warnings.simplefilter("ignore")
        try:
            with pillow.open(file, formats=FORMATS) as image:
                _check_size(path, *image.size)
                picture = _square(_rgb(pillow, image), size)
        except ImageFileError:
            raise
        except pillow.UnidentifiedImageError as error:
            raise ImageFileError(
                f"image: not an image: {path}: need one of {', '.join(FORMATS)}"
            ) from error
        except pillow.DecompressionBombError as error:
            raise ImageFileError(
                f"image: too large: {path}: {error}: need at most {MAX_PIXELS:,} pixels"
            ) from error
        except Exception as error:
            # Pillow's decoders raise whatever a damaged file makes them stumble over.
            reason = str(error) or type(error).__name__
            raise ImageFileError(f"image: damaged: {path}: {reason}") from error
    pixels = np.asarray(picture, dtype=np.float32).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels / np.float32(255))


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageFileError(
            f"image: too large: {path} is {width} x {height}: need at most {MAX_PIXELS:,} pixels"
        )


def _rgb(pillow: Any, image: Any) -> Any:
    """An image of any mode as RGB, upright."""
    image = require("PIL.ImageOps", "images", "predict").exif_transpose(image)
    if image.mode[:1] in ("I", "F"):
        image = pillow.fromarray(_to_bytes(np.asarray(image)))
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = pillow.new("RGBA", image.size, "white")
        image = pillow.alpha_composite(white, image)
    return image.convert("RGB")


def _to_bytes(values: Array[Any]) -> Array[np.uint8]:
    """Grey integers of 16 bits, or floats in [0, 1], as bytes; what lies outside is clipped."""
    top = 1.0 if values.dtype.kind == "f" else 65535.0
    scaled = np.nan_to_num(values.astype(np.float64) / top * 255)
    return np.clip(scaled, 0, 255).round().astype(np.uint8)


def _square(image: Any, size: int) -> Any:
    """The middle square of an RGB image, scaled to size x size."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    resampling = require("PIL.Image", "images", "predict").Resampling.BICUBIC
    # Pillow's resize widens the filter when it shrinks: no aliasing.
    return image.resize((size, size), resampling, box=box)
