"""NumPy twins of pooling: a loop over the places (u, v) of the window.

x is (N, H, W, C), y is (N, OH, OW, C); window (i, j) covers the pixels (i s - p + u, j t - q + v)
for u < K, v < L. The scalars K, L, s, t, p, q come in this order; a place has the number u L + v.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from needle.backend_ndarray.reference.types import Array


def grown(x: Array, out: Array, scalars: Sequence[float], fill: float) -> Array:
    """x with `fill` all around: the padding, and as much as the last windows stick out."""
    rows, columns, s, t, p, q = map(int, scalars)
    below = (out.shape[1] - 1) * s + rows - p - x.shape[1]
    right = (out.shape[2] - 1) * t + columns - q - x.shape[2]
    around = ((0, 0), (p, max(below, 0)), (q, max(right, 0)), (0, 0))
    return np.pad(x, around, constant_values=fill)


def places(a: Array, out: Array, scalars: Sequence[float]) -> Iterator[tuple[int, Array]]:
    """Each place's number, and what all windows have there in a grown a: a view like `out`."""
    rows, columns, s, t, _, _ = map(int, scalars)
    _, height, width, _ = out.shape
    for u, v in np.ndindex(rows, columns):
        view = a[:, u : u + s * height : s, v : v + t * width : t]
        yield u * columns + v, view[:, :height, :width]


def inner(a: Array, x: Array, scalars: Sequence[float]) -> Array:
    """What lies on the pixels of x in a grown a."""
    p, q = int(scalars[4]), int(scalars[5])
    return a[:, p : p + x.shape[1], q : q + x.shape[2]]


def max_pool(y: Array, index: Array, x: Array, *scalars: float) -> None:
    """y = the largest pixel under each window, index = its place: the first of equal ones.

    NaN comes before every number. Padding never wins.
    """
    y[...] = -np.inf
    index[...] = -1
    inside = grown(np.ones(x.shape, bool), y, scalars, False)
    values = places(grown(x, y, scalars, -np.inf), y, scalars)
    for (place, value), (_, there) in zip(values, places(inside, y, scalars), strict=True):
        better = there & ((value > y) | (value != value) | (index < 0))
        y[better] = value[better]
        index[better] = place


def max_pool_grad(dx: Array, dy: Array, index: Array, *scalars: float) -> None:
    """dx = the sum of dy over the windows whose largest pixel this is."""
    total = grown(np.zeros(dx.shape, dx.dtype), dy, scalars, 0)
    for place, pixels in places(total, dy, scalars):
        pixels += np.where(index == place, dy, 0)
    dx[...] = inner(total, dx, scalars)


def max_pool_pick(out: Array, a: Array, index: Array, *scalars: float) -> None:
    """out = the pixel of a at the place that `index` names in each window; 0 if it is outside."""
    out[...] = 0
    for place, pixels in places(grown(a, out, scalars, 0), out, scalars):
        np.copyto(out, pixels, where=index == place)


def divisors(x: Array, y: Array, scalars: Sequence[float], padded: float) -> Array:
    """How many pixels each window averages, (1, OH, OW, 1); with `padded`, padding counts too."""
    pixels = np.ones((1, *x.shape[1:3], 1), x.dtype)
    p, q = int(scalars[4]), int(scalars[5])
    if padded:
        pixels = np.pad(pixels, ((0, 0), (p, p), (q, q), (0, 0)), constant_values=1)
        scalars = (*scalars[:4], 0, 0)
    window = y[:1, :, :, :1]
    found = np.zeros(window.shape, x.dtype)
    for _, view in places(grown(pixels, window, scalars, 0), window, scalars):
        found += view
    return found


def avg_pool(y: Array, x: Array, *scalars: float) -> None:
    """y = the mean of the pixels under each window."""
    *window, padded = scalars
    total = np.zeros(y.shape, y.dtype)
    for _, pixels in places(grown(x, y, window, 0), y, window):
        total += pixels
    y[...] = total / divisors(x, y, window, padded)


def avg_pool_grad(dx: Array, dy: Array, *scalars: float) -> None:
    """dx = the sum over the windows over each pixel of dy, divided as the window was."""
    *window, padded = scalars
    total = grown(np.zeros(dx.shape, dx.dtype), dy, window, 0)
    share = dy / divisors(dx, dy, window, padded)
    for _, pixels in places(total, dy, window):
        pixels += share
    dx[...] = inner(total, dx, window)
