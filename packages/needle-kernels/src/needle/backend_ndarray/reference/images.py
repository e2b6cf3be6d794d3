"""NumPy twin of the kernel that makes batches of images."""

from __future__ import annotations

import numpy as np

from needle.backend_ndarray.reference.types import Array


def image_batch(
    out: Array,
    data: Array,
    ids: Array,
    shifts: Array | None,
    mirrored: Array | None,
    corners: Array | None,
    divisor: Array | None,
    offset: Array | None,
    reflect: float,
    cut: float,
) -> None:
    """out (N, C, H, W): image by image the steps of `needle.backend_ndarray.image_batch`."""
    size = int(cut)
    for n, i in enumerate(ids):
        image = data[i].astype(out.dtype)
        if shifts is not None:
            dy, dx = shifts[n].tolist()
            image = shifted(image, dy, dx, bool(reflect))
        if mirrored is not None and mirrored[n]:
            image = image[..., ::-1]
        out[n] = image
        if corners is not None:
            top, left = corners[n].tolist()
            out[n, :, top : top + size, left : left + size] = 0
    if divisor is not None:
        out /= divisor[:, None, None]
    if offset is not None:
        out += offset[:, None, None]


def shifted(image: Array, dy: int, dx: int, reflect: bool) -> Array:
    """(C, H, W): pixel (i, j) is the image's (i + dy, j + dx); beside it 0, or its reflection."""
    height, width = image.shape[1:]
    rows, columns = np.arange(height) + dy, np.arange(width) + dx
    if reflect:
        rows, columns = mirrored_inside(rows, height), mirrored_inside(columns, width)
        return image[:, rows[:, None], columns]
    inside = ((rows >= 0) & (rows < height))[:, None] & (columns >= 0) & (columns < width)
    rows, columns = rows.clip(0, height - 1), columns.clip(0, width - 1)
    moved: Array = np.where(inside, image[:, rows[:, None], columns], 0)
    return moved


def mirrored_inside(places: Array, n: int) -> Array:
    """Places along an axis of n pixels; those outside mirrored at the first and the last one."""
    inside: Array = (n - 1) - np.abs((n - 1) - np.abs(places))
    return inside
