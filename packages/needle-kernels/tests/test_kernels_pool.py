"""Pooling and its gradients against plain loops in float64."""

import numpy as np
import pytest

from needle import backend_ndarray as nd
from needle.backend_ndarray.testing import VIEWS, compare, make_view, rounding


def draw(shape, seed=0):
    """Numbers of which none is equal to another."""
    size = int(np.prod(shape))
    return np.random.default_rng(seed).permutation(size).reshape(shape) / max(size, 1) - 0.5


def spans(size, k, s, p, ceil_mode):
    """(first, last + 1) of every window along an axis, the padding included."""
    n = (size + 2 * p - k + (s - 1 if ceil_mode else 0)) // s + 1
    if ceil_mode and (n - 1) * s >= size + p:
        n -= 1
    return [(i * s - p, i * s - p + k) for i in range(n)]


def windows_of(shape, kernel, stride, padding, ceil_mode):
    """For each (i, j): the slices of rows and columns, and how many places the padding adds."""
    rows, columns = (
        spans(size, k, s, p, ceil_mode)
        for size, k, s, p in zip(shape[1:3], kernel, stride, padding, strict=True)
    )
    height, width = shape[1:3]
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            inside = (
                slice(None),
                slice(max(top, 0), min(bottom, height)),
                slice(max(left, 0), min(right, width)),
            )
            padded = (min(bottom, height + padding[0]) - top) * (
                min(right, width + padding[1]) - left
            )
            yield i, j, (top, left), inside, padded


def output_shape(shape, case):
    height, width = (
        len(spans(shape[1 + axis], *(pair[axis] for pair in case[1:4]), case[4])) for axis in (0, 1)
    )
    return shape[0], height, width, shape[3]


def max_loop(x, case):
    """y and the place of each maximum in its window."""
    shape, kernel, *rest = case
    y, index = np.zeros(output_shape(shape, case)), np.zeros(output_shape(shape, case), int)
    for i, j, (top, left), inside, _ in windows_of(shape, kernel, *rest):
        pixels = x[inside]
        for n, c in np.ndindex(shape[0], shape[3]):
            plane = pixels[n, :, :, c]
            u, v = np.unravel_index(plane.argmax(), plane.shape)
            y[n, i, j, c] = plane[u, v]
            row, column = inside[1].start + u - top, inside[2].start + v - left
            index[n, i, j, c] = row * kernel[1] + column
    return y, index


def max_grad_loop(dy, index, case):
    shape, kernel, *rest = case
    dx = np.zeros(shape)
    for i, j, (top, left), _, _ in windows_of(shape, kernel, *rest):
        for n, c in np.ndindex(shape[0], shape[3]):
            u, v = divmod(index[n, i, j, c], kernel[1])
            dx[n, top + u, left + v, c] += dy[n, i, j, c]
    return dx


def avg_loop(x, case, include_pad):
    y = np.zeros(output_shape(case[0], case))
    for i, j, _, inside, padded in windows_of(*case):
        pixels = x[inside]
        count = padded if include_pad else pixels.shape[1] * pixels.shape[2]
        y[:, i, j] = pixels.sum((1, 2)) / count
    return y


def avg_grad_loop(dy, case, include_pad):
    dx = np.zeros(case[0])
    for i, j, _, inside, padded in windows_of(*case):
        count = padded if include_pad else dx[inside].shape[1] * dx[inside].shape[2]
        dx[inside] += dy[:, i : i + 1, j : j + 1] / count
    return dx


# x, kernel, stride, padding, ceil_mode
CASES = [
    ((2, 4, 4, 3), (2, 2), (2, 2), (0, 0), False),
    ((1, 1, 1, 1), (1, 1), (1, 1), (0, 0), False),
    ((3, 5, 7, 17), (3, 3), (2, 2), (1, 1), False),
    ((2, 6, 5, 16), (3, 2), (1, 2), (1, 0), False),
    ((2, 6, 5, 15), (3, 2), (2, 2), (1, 1), True),
    ((1, 7, 7, 2), (2, 2), (3, 3), (1, 1), True),
    ((1, 7, 5, 2), (2, 2), (3, 4), (0, 0), True),
    ((2, 4, 4, 33), (4, 4), (4, 4), (0, 0), False),
    ((1, 3, 4, 5), (3, 4), (5, 5), (1, 2), True),
    ((1, 9, 9, 4), (5, 5), (1, 1), (2, 2), False),
    ((0, 4, 4, 3), (2, 2), (2, 2), (0, 0), False),
    ((2, 4, 4, 0), (2, 2), (2, 2), (0, 0), False),
    ((16, 32, 32, 20), (2, 2), (2, 2), (0, 0), False),
    ((2, 5, 4, 150), (5, 4), (5, 4), (0, 0), False),  # several vectors at once
    ((1, 5, 6, 150), (3, 2), (1, 1), (1, 1), False),
    ((1, 6, 7, 85), (2, 2), (3, 2), (0, 1), True),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_case
def test_max_pool(device, case, dtype):
    x = nd.array(draw(case[0]), dtype=dtype, device=device)
    y, index = nd.max_pool(x, *case[1:])
    want, places = max_loop(x.numpy().astype(np.float64), case)
    compare(y, want, dtype=dtype)
    assert index.dtype == {"float32": "int32", "float64": "int64"}[dtype]
    np.testing.assert_array_equal(index.numpy(), places)
    dy = nd.array(draw(y.shape, 1), dtype=dtype, device=device)
    got = nd.max_pool_grad(dy, index, x.shape, *case[1:])
    want = max_grad_loop(dy.numpy().astype(np.float64), places, case)
    compare(got, want, dtype=dtype, atol=rounding(dtype, case[1][0] * case[1][1]))
    picked = nd.max_pool_pick(x, index, *case[1:])
    np.testing.assert_array_equal(picked.numpy(), y.numpy())


@pytest.mark.parametrize("include_pad", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_case
def test_avg_pool(device, case, dtype, include_pad):
    x = nd.array(draw(case[0]), dtype=dtype, device=device)
    y = nd.avg_pool(x, *case[1:], include_pad)
    bound = rounding(dtype, case[1][0] * case[1][1])
    compare(y, avg_loop(x.numpy().astype(np.float64), case, include_pad), dtype=dtype, atol=bound)
    dy = nd.array(draw(y.shape, 1), dtype=dtype, device=device)
    got = nd.avg_pool_grad(dy, x.shape, *case[1:], include_pad)
    want = avg_grad_loop(dy.numpy().astype(np.float64), case, include_pad)
    compare(got, want, dtype=dtype, atol=bound)


@pytest.mark.parametrize("view", VIEWS)
def test_views(device, view):
    x = make_view(view, draw((3, 7, 6, 9)), device)
    y, index = nd.max_pool(x, 3, 2, 1)
    plain, places = nd.max_pool(x.compact(), 3, 2, 1)
    np.testing.assert_array_equal(y.numpy(), plain.numpy())
    np.testing.assert_array_equal(index.numpy(), places.numpy())
    got = nd.avg_pool(x, 3, 2, 1).numpy()
    np.testing.assert_array_equal(got, nd.avg_pool(x.compact(), 3, 2, 1).numpy())
    dy = make_view(view, draw((3, 4, 3, 9), 1), device)
    places = make_view(view, index.numpy(), device, "int32")
    got = nd.max_pool_grad(dy, places, x.shape, 3, 2, 1).numpy()
    want = nd.max_pool_grad(dy.compact(), places.compact(), x.shape, 3, 2, 1)
    np.testing.assert_array_equal(got, want.numpy())
    got = nd.avg_pool_grad(dy, x.shape, 3, 2, 1).numpy()
    np.testing.assert_array_equal(got, nd.avg_pool_grad(dy.compact(), x.shape, 3, 2, 1).numpy())


def test_channels_first_memory(device):
    """Images as they come from a loader: NCHW in memory, shown as NHWC."""
    images = nd.array(draw((2, 3, 4, 6)), device=device)
    y, _ = nd.max_pool(images.permute((0, 2, 3, 1)), 2)
    want = images.numpy().reshape(2, 3, 2, 2, 3, 2).max((3, 5))
    np.testing.assert_array_equal(y.numpy(), want.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ties_nan_and_infinities(device, dtype):
    """The first of equal pixels, but a NaN before any number; -inf is a pixel like others."""
    planes = [
        [[2, 2], [2, 2]],
        [[1, 3], [3, 0]],
        [[0, np.nan], [5, 1]],
        [[-np.inf, -np.inf], [-np.inf, -np.inf]],
        [[-np.inf, np.inf], [np.inf, 0]],
        [[-0.0, 0.0], [0.0, 0.0]],
    ]
    x = nd.array(
        np.array(planes).reshape(1, 6, 2, 2).transpose(0, 2, 3, 1), dtype=dtype, device=device
    )
    y, index = nd.max_pool(x, 2)
    np.testing.assert_array_equal(index.numpy().ravel(), [0, 1, 1, 0, 1, 0])
    np.testing.assert_array_equal(y.numpy().ravel(), [2, 3, np.nan, -np.inf, np.inf, 0])
    y, index = nd.max_pool(nd.full((1, 1, 1, 1), -np.inf, dtype=dtype, device=device), 2, 1, 1)
    np.testing.assert_array_equal(y.numpy(), np.full((1, 2, 2, 1), -np.inf))
    np.testing.assert_array_equal(index.numpy().ravel(), [3, 2, 1, 0])  # never the padding


@pytest.mark.parametrize("channels", [208, 205])
def test_images_beyond_the_caches(host_device, channels):
    """27 MB of results, written past them where each pixel is whole vectors; no sum is rounded."""
    rng = np.random.default_rng(0)
    values = (rng.integers(-1000, 1000, (2, 130, 128, channels)) / 8).astype(np.float32)
    corners = [(slice(u, 129 + u), slice(v, 127 + v)) for u in (0, 1) for v in (0, 1)]
    pixels = [values[:, rows, columns] for rows, columns in corners]
    x = nd.array(values, device=host_device)
    y = nd.avg_pool(x, 2, 1)
    np.testing.assert_array_equal(y.numpy(), sum(pixels) / 4)
    want = np.zeros_like(values)
    for rows, columns in corners:
        want[:, rows, columns] += y.numpy() / 4
    np.testing.assert_array_equal(nd.avg_pool_grad(y, x.shape, 2, 1).numpy(), want)

    y, index = nd.max_pool(x, 2, 1)
    np.testing.assert_array_equal(y.numpy(), np.max(pixels, axis=0))
    np.testing.assert_array_equal(index.numpy(), np.argmax(pixels, axis=0))
    np.testing.assert_array_equal(nd.max_pool_pick(x, index, 2, 1).numpy(), y.numpy())
    want = np.zeros_like(values)
    for place, (rows, columns) in enumerate(corners):
        want[:, rows, columns] += np.where(index.numpy() == place, y.numpy(), 0)
    np.testing.assert_array_equal(nd.max_pool_grad(y, index, x.shape, 2, 1).numpy(), want)


def test_a_place_outside_picks_zero(device):
    x, index = (
        nd.ones((1, 2, 2, 1), device=device),
        nd.array([[[[9]]]], dtype="int32", device=device),
    )
    assert nd.max_pool_pick(x, index, 2).numpy() == 0
    assert (
        nd.max_pool_grad(nd.ones((1, 1, 1, 1), device=device), index, x.shape, 2).numpy() == 0
    ).all()


def test_threads_do_not_change_results():
    x = nd.array(draw((8, 33, 31, 40)))
    before = nd.num_threads()
    results = []
    for threads in (1, 2, 3):
        nd.set_num_threads(threads)
        y, index = nd.max_pool(x, 3, 2, 1)
        dy = y * 0.5
        results.append([
            a.numpy()
            for a in (
                y,
                index,
                nd.max_pool_grad(dy, index, x.shape, 3, 2, 1),
                nd.avg_pool(x, 3, 2, 1),
                nd.avg_pool_grad(dy, x.shape, 3, 2, 1),
            )
        ])  # fmt: skip
    nd.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_errors(device):
    x = nd.zeros((1, 4, 5, 2), device=device)
    with pytest.raises(nd.ShapeError, match=r"max_pool: x has the wrong number of axes: got \(4,"):
        nd.max_pool(nd.zeros((4, 5, 2), device=device), 2)
    with pytest.raises(
        nd.ShapeError,
        match=r"avg_pool: the image is smaller than the window: got x \(1, 4, 5, 2\) with padding "
        r"\(0, 0\), kernel_size \(5, 5\): need H \+ 2 \* padding >= 5",
    ):
        nd.avg_pool(x, 5)
    with pytest.raises(nd.ShapeError, match=r"got kernel_size \(0, 0\), stride \(0, 0\): need si"):
        nd.max_pool(x, 0)
    with pytest.raises(nd.ShapeError, match=r"got kernel_size \(2, 2\), stride \(1, 0\): need si"):
        nd.max_pool(x, 2, (1, 0))
    with pytest.raises(
        nd.ShapeError,
        match=r"padding does not fit: got padding \(2, 2\), kernel_size \(3, 3\): need 0 <= padd",
    ):
        nd.max_pool(x, 3, 1, 2)
    for setting in (
        {"kernel_size": "a"},
        {"kernel_size": 2.5},
        {"stride": (1, 0.5)},
        {"padding": 1.5},
    ):
        (name,) = setting
        with pytest.raises(TypeError, match=f"max_pool: {name}: not integers: got .*: need an int"):
            nd.max_pool(x, **({"kernel_size": 2} | setting))
    with pytest.raises(nd.ShapeError, match=r"kernel_size: got \(1, 2, 3\): need an int or \(hei"):
        nd.avg_pool(x, (1, 2, 3))
    with pytest.raises(nd.DTypeError, match="max_pool: dtypes do not fit: got int32"):
        nd.max_pool(x.astype("int32"), 2)
    y, index = nd.max_pool(x, 2)
    with pytest.raises(nd.ShapeError, match=r"dy does not fit: got \(1, 2, 2, 2\): need \(1, 4, 2"):
        nd.max_pool_grad(y, index, (1, 8, 5, 2), 2)
    with pytest.raises(nd.ShapeError, match=r"index does not fit: got \(1, 1, 2, 2\): need \(1, 2"):
        nd.max_pool_grad(y, index[:, :1], x.shape, 2)
    with pytest.raises(nd.DTypeError, match="index is not integers: got float32: need int32"):
        nd.max_pool_pick(x, y, 2)
    with pytest.raises(nd.ShapeError, match=r"avg_pool_grad: dy does not fit: got \(1, 4, 5, 2\)"):
        nd.avg_pool_grad(x, x.shape, 2)


@pytest.mark.parametrize(
    ("kernel", "stride"), [(2**30, 1), (2**41, 1), (2, 2**31), ((2**16, 2**16), 1)]
)
def test_sizes_that_no_image_has(device, kernel, stride):
    x = nd.ones((1, 8, 8, 1), device=device)
    padding = 2**29 if kernel == 2**30 else 0
    with pytest.raises(
        nd.ShapeError, match=r"max_pool: got kernel_size .*: need at most 2147483647"
    ):
        nd.max_pool(x, kernel, stride, padding)
