"""Convolution and its gradients against plain loops in float64."""

import numpy as np
import pytest
from scipy import special

from needle import backend_ndarray as nd
from needle.backend_ndarray.testing import VIEWS, compare, make_view, rounding


def draw(shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape)


def conv_loop(x, w, stride, padding):
    """The definition, one output pixel after the other."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    k = w.shape[0]
    height, width = ((s - k) // stride + 1 for s in x.shape[1:3])
    y = np.zeros((x.shape[0], height, width, w.shape[3]))
    for h, v in np.ndindex(height, width):
        patch = x[:, h * stride : h * stride + k, v * stride : v * stride + k]
        y[:, h, v] = np.einsum("nijc,ijco->no", patch, w)
    return y


def grads_loop(dy, x, w, stride, padding):
    """Each output pixel gives its gradient to the pixels and weights that it was made of."""
    n, height, width, channels = x.shape
    dx = np.zeros((n, height + 2 * padding, width + 2 * padding, channels))
    padded = np.zeros_like(dx)
    inner = (slice(None), slice(padding, padding + height), slice(padding, padding + width))
    padded[inner] = x
    dw = np.zeros(w.shape)
    k = w.shape[0]
    for h, v in np.ndindex(dy.shape[1:3]):
        place = (
            slice(None),
            slice(h * stride, h * stride + k),
            slice(v * stride, v * stride + k),
        )
        dx[place] += np.einsum("no,ijco->nijc", dy[:, h, v], w)
        dw += np.einsum("nijc,no->ijco", padded[place], dy[:, h, v])
    return dx[inner], dw


# N, H, W, Ci, Co, K, stride, padding
CASES = [
    (1, 1, 1, 1, 1, 1, 1, 0),
    (2, 5, 5, 3, 4, 3, 1, 1),
    (2, 6, 5, 3, 4, 3, 2, 1),
    (1, 7, 9, 2, 17, 3, 2, 0),
    (3, 8, 8, 16, 16, 3, 1, 1),
    (2, 9, 9, 15, 33, 3, 1, 1),
    (2, 9, 7, 3, 16, 7, 4, 3),
    (1, 4, 4, 5, 7, 4, 1, 0),
    (1, 4, 4, 5, 7, 4, 3, 2),
    (2, 6, 6, 8, 9, 1, 1, 0),
    (2, 7, 7, 8, 9, 1, 2, 0),
    (1, 3, 3, 2, 3, 2, 3, 1),
    (2, 3, 11, 1, 1, 2, 2, 3),
    (0, 5, 5, 3, 4, 3, 1, 1),
    (5, 10, 10, 33, 31, 5, 2, 2),
    (17, 6, 6, 4, 20, 3, 1, 1),  # more images than a tile has rows
    (40, 9, 9, 3, 16, 7, 4, 3),  # ResNet9's first layer
    (3, 20, 33, 5, 40, 3, 1, 1),  # rows longer than a tile; several blocks of the weight gradient
    (30, 1, 1, 20, 33, 3, 1, 1),  # one tap of nine
    (2, 1, 150, 2, 8, 2, 3, 1),  # a row longer than a block
    (4, 6, 6, 40, 48, 1, 1, 0),  # all positions are one run
    (150, 4, 4, 16, 20, 3, 1, 1),  # dw is small: each thread sums blocks of its own
    (5, 2, 2, 3, 4, 2, 9, 3),  # nothing but padding
    (3, 9, 14, 8, 17, 5, 3, 4),
    (3, 9, 14, 3, 16, 7, 4, 3),  # blocks of pixels in the input's gradient, here cut off
    (90, 31, 33, 8, 1, 3, 3, 1),  # several rounds of images
]


def arrays(case, dtype, device):
    n, h, w, ci, co, k, _, _ = case
    x = nd.array(draw((n, h, w, ci)), dtype=dtype, device=device)
    weight = nd.array(draw((k, k, ci, co), 1), dtype=dtype, device=device)
    return x, weight


def bound(dtype, terms):
    """Sums of products below 1: rounding errors of either sign grow like the root of terms."""
    return rounding(dtype, terms**0.5 * 8 + 8) * max(terms, 1) ** 0.5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(device, case, dtype):
    x, w = arrays(case, dtype, device)
    stride, padding = case[6:]
    want = conv_loop(x.numpy().astype(np.float64), w.numpy().astype(np.float64), stride, padding)
    got = nd.conv(x, w, stride=stride, padding=padding)
    compare(got, want, dtype=dtype, atol=bound(dtype, case[3] * case[5] ** 2))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients(device, case, dtype):
    x, w = arrays(case, dtype, device)
    n, _, _, _, co, k, stride, padding = case
    dy = nd.array(
        draw(nd.conv_output_shape("conv", x.shape, w.shape, stride, padding), 2),
        dtype=dtype,
        device=device,
    )
    dx, dw = grads_loop(*(a.numpy().astype(np.float64) for a in (dy, x, w)), stride, padding)
    got = nd.conv_input_grad(dy, w, x.shape, stride, padding)
    compare(got, dx, dtype=dtype, atol=bound(dtype, co * k * k))
    got = nd.conv_weight_grad(x, dy, k, stride, padding)
    atol = bound(dtype, n * dy.shape[1] * dy.shape[2])
    compare(got, dw, dtype=dtype, atol=atol)
    got, db = nd.conv_weight_bias_grad(x, dy, k, stride, padding)
    compare(got, dw, dtype=dtype, atol=atol)
    compare(db, dy.numpy().sum((0, 1, 2), dtype=np.float64), dtype=dtype, atol=atol)


@pytest.mark.parametrize("filters", [64, 60])
def test_images_beyond_the_caches(host_device, filters):
    """26 MB of results, written past them where each pixel is whole vectors."""
    x, w = (
        nd.array(draw(shape, s), dtype="float32", device=host_device)
        for s, shape in enumerate([(41, 40, 64, 9), (3, 3, 9, filters)])
    )
    bias = nd.array(draw((filters,), 2), dtype="float32", device=host_device)
    y = nd.conv(x, w, bias, 1, 1).numpy()
    weights = nd.array(w.numpy().transpose(0, 1, 3, 2), device=host_device)
    dx = nd.conv_input_grad(x, weights, y.shape, 1, 1).numpy()
    for n in range(41):
        alone = nd.conv(x[n : n + 1], w, bias, 1, 1).numpy()
        np.testing.assert_allclose(y[n : n + 1], alone, rtol=1e-5, atol=1e-5)
        alone = nd.conv_input_grad(x[n : n + 1], weights, alone.shape, 1, 1).numpy()
        np.testing.assert_allclose(dx[n : n + 1], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 0), (1, 3)])
@pytest.mark.parametrize("filters", [70, 20])
def test_weight_gradient_of_large_images(host_device, filters, stride, padding):
    """A block is some rows of an image: what the next one reads is fetched, past the last too."""
    x = draw((5, 61, 63, 40)).astype("float32")
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = ((size - 3) // stride + 1 for size in padded.shape[1:3])
    dy = draw((5, height, width, filters), 1).astype("float32")
    columns = dy.reshape(-1, filters).astype("float64")
    dw = np.empty((3, 3, 40, filters))
    for i, j in np.ndindex(3, 3):
        met = padded[:, i : i + stride * height : stride, j : j + stride * width : stride]
        dw[i, j] = met.reshape(-1, 40).T.astype("float64") @ columns
    images, gradient = (nd.array(a, device=host_device) for a in (x, dy))
    got = nd.conv_weight_grad(images, gradient, 3, stride, padding)
    compare(got, dw, dtype="float32", atol=bound("float32", len(columns)))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 17])
def test_channels_first_in_memory(device, channels):
    n, size = 13, 37
    x = nd.array(draw((n, channels, size, size)), dtype="float32", device=device)
    x = x.permute((0, 2, 3, 1))
    w = nd.array(draw((3, 3, channels, 16), 1), dtype="float32", device=device)
    dy = nd.array(draw((n, 19, 19, 16), 2), dtype="float32", device=device)
    args = [a.numpy().astype(np.float64) for a in (dy, x, w)]
    y = conv_loop(*args[1:], 2, 1)
    compare(nd.conv(x, w, None, 2, 1), y, dtype="float32", atol=bound("float32", channels * 9))
    dw = grads_loop(*args, 2, 1)[1]
    atol = bound("float32", n * 19 * 19)
    compare(nd.conv_weight_grad(x, dy, 3, 2, 1), dw, dtype="float32", atol=atol)


@pytest.mark.parametrize("activation", [None, "relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("stride", [1, 2])
def test_epilogue(device, activation, stride):
    x, w = arrays((2, 7, 6, 3, 19, 3, 0, 0), "float32", device)
    bias = nd.array(draw(19, 2), dtype="float32", device=device)
    f = {
        None: lambda v: v,
        "relu": lambda v: np.maximum(v, 0),
        "tanh": np.tanh,
        "sigmoid": special.expit,
    }[activation]
    y = conv_loop(x.numpy().astype(np.float64), w.numpy().astype(np.float64), stride, 1)
    got = nd.conv(x, w, bias, stride, 1, activation)
    compare(got, f(y + bias.numpy()), dtype="float32", atol=1e-5)


@pytest.mark.parametrize("view", VIEWS)
def test_views(device, view):
    x = make_view(view, draw((2, 6, 7, 5)), device)
    w = make_view(view, draw((3, 3, 5, 9), 1), device)
    dy = make_view(view, draw((2, 3, 4, 9), 2), device)
    args = [a.numpy().astype(np.float64) for a in (dy, x, w)]
    compare(nd.conv(x, w, None, 2, 1), conv_loop(*args[1:], 2, 1), dtype="float32", atol=1e-5)
    dx, dw = grads_loop(*args, 2, 1)
    compare(nd.conv_input_grad(dy, w, x.shape, 2, 1), dx, dtype="float32", atol=1e-5)
    compare(nd.conv_weight_grad(x, dy, 3, 2, 1), dw, dtype="float32", atol=1e-5)


def test_errors(device):
    x, w = arrays((1, 5, 5, 3, 4, 3, 1, 1), "float32", device)
    with pytest.raises(nd.ShapeError, match=r"conv: channels differ: got x \(1, 5, 5, 3\), weight"):
        nd.conv(x, w.permute(0, 1, 3, 2))
    with pytest.raises(nd.ShapeError, match=r"wrong number of axes: got x \(5, 5, 3\), weight"):
        nd.conv(x[0], w)
    with pytest.raises(nd.ShapeError, match=r"not square: got weight \(2, 3, 3, 4\)"):
        nd.conv(x, w[1:])
    with pytest.raises(nd.ShapeError, match=r"got stride 0, padding 0: need stride >= 1"):
        nd.conv(x, w, stride=0)
    with pytest.raises(nd.ShapeError, match=r"got stride 1, padding -1"):
        nd.conv(x, w, padding=-1)
    with pytest.raises(nd.ShapeError, match=r"smaller than the kernel: got x \(1, 2, 5, 3\) with"):
        nd.conv(x[:, :2], w)
    with pytest.raises(nd.ShapeError, match=r"conv: bias does not fit: got \(3,\): need \(4,\)"):
        nd.conv(x, w, nd.zeros((3,), device=device))
    with pytest.raises(nd.DTypeError, match="conv: dtypes do not fit: got float32, float64: need"):
        nd.conv(x, w.astype("float64"))
    with pytest.raises(nd.DTypeError, match="got int32, int32"):
        nd.conv(x.astype("int32"), w.astype("int32"))
    with pytest.raises(ValueError, match="conv: unknown activation: got 'elu'"):
        nd.conv(x, w, activation="elu")
    dy = nd.zeros((1, 4, 4, 4), device=device)
    with pytest.raises(
        nd.ShapeError, match=r"conv_input_grad: dy does not fit: got \(1, 4, 4, 4\)"
    ):
        nd.conv_input_grad(dy, w, x.shape, 1, 1)
    with pytest.raises(
        nd.ShapeError, match=r"conv_weight_grad: dy does not fit: .* need \(1, 5, 5"
    ):
        nd.conv_weight_grad(x, dy, 3, 1, 1)
    with pytest.raises(
        nd.ShapeError,
        match=r"conv_weight_bias_grad: dy does not fit: got \(1, 4, 4, 4\): need \(1,",
    ):
        nd.conv_weight_bias_grad(x, dy, 3, 1, 1)
    with pytest.raises(nd.ShapeError, match=r"conv_weight_grad: x has the wrong number of axes"):
        nd.conv_weight_grad(x[0], dy, 3, 1, 1)


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
def test_relu_keeps_nan(device, isa):
    if isa not in nd.available_isas():
        pytest.skip(f"no {isa} here")
    before = nd.isa()
    nd.set_isa(isa)
    try:
        x = nd.array(np.full((1, 4, 4, 3), np.nan), dtype="float32", device=device)
        w = nd.ones((3, 3, 3, 5), device=device)
        assert np.isnan(nd.conv(x, w, None, 1, 1, "relu").numpy()).all()
        a = nd.array([[np.nan, 1.0], [-1.0, 2.0]], dtype="float32", device=device)
        got = nd.matmul(a, nd.array([[1.0, 0.0], [0.0, 1.0]], device=device), activation="relu")
        assert np.isnan(got.numpy()[0]).all()
        assert got.tolist()[1] == [0.0, 2.0]
    finally:
        nd.set_isa(before)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (5, 2, 2), (7, 3, 3)])
def test_input_grad_keeps_nan_to_its_taps(device, kernel, stride, padding, value):
    """One position of dy that is no number: only pixels that its taps meet may notice."""
    shape = (2, 16, 17, 3)
    w = nd.ones((kernel, kernel, 3, 4), device=device)
    out = np.zeros(nd.conv(nd.ones(shape, device=device), w, None, stride, padding).shape)
    out[1, 2, 3, 1] = value
    dx = nd.conv_input_grad(
        nd.array(out, dtype="float32", device=device), w, shape, stride, padding
    ).numpy()
    expected = np.zeros(shape)
    rows, columns = (
        slice(max(0, at * stride - padding), at * stride - padding + kernel) for at in (2, 3)
    )
    expected[1, rows, columns] = value
    np.testing.assert_array_equal(dx, expected)


@pytest.mark.parametrize("stride", [9, 2**29, 2**31 - 1])
def test_a_stride_beyond_the_image(device, stride):
    x, w = draw((2, 8, 8, 3)), draw((3, 3, 3, 4), 1)
    dy = draw((2, 1, 1, 4), 2)
    want_dx, want_dw = grads_loop(dy, x, w, 9, 1)
    got = [nd.array(a, dtype="float32", device=device) for a in (x, w, dy)]
    compare(
        nd.conv(got[0], got[1], None, stride, 1), conv_loop(x, w, 9, 1), dtype="float32", atol=1e-5
    )
    compare(
        nd.conv_input_grad(got[2], got[1], x.shape, stride, 1), want_dx, dtype="float32", atol=1e-5
    )
    compare(nd.conv_weight_grad(got[0], got[2], 3, stride, 1), want_dw, dtype="float32", atol=1e-5)


@pytest.mark.parametrize("stride", [2**31, 2**63])
def test_a_stride_that_no_image_has(device, stride):
    x, w = nd.ones((1, 8, 8, 3), device=device), nd.ones((3, 3, 3, 4), device=device)
    with pytest.raises(nd.ShapeError, match=f"conv: got stride {stride}, kernel_size 3: need at"):
        nd.conv(x, w, None, stride)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("x", "w", "stride"),
    [
        ((16, 8, 8, 64), (1, 1, 64, 16), 1),
        ((5, 17, 16, 32), (3, 3, 32, 8), 2),
        ((40, 4, 4, 33), (1, 1, 33, 5), 1),
    ],
    ids=str,
)
def test_images_in_the_opposite_order(device, x, w, stride, dtype):
    images = draw(x)
    dy = draw(conv_loop(images, np.zeros(w), stride, 0).shape, 1)
    _, want = grads_loop(dy, images[::-1], np.zeros(w), stride, 0)
    backwards = nd.array(images, dtype=dtype, device=device)[::-1]
    given = nd.array(dy, dtype=dtype, device=device)
    threads = nd.num_threads()
    try:
        for count in (1, 2, 3):
            nd.set_num_threads(count)
            got, bias = nd.conv_weight_bias_grad(backwards, given, w[0], stride, 0)
            compare(got, want, dtype=dtype, atol=rounding(dtype, 20 * x[0] * x[1] * x[2]))
            compare(bias, dy.sum((0, 1, 2)), dtype=dtype, atol=rounding(dtype, 2000))
    finally:
        nd.set_num_threads(threads)


def test_a_bias_without_input_channels(device):
    x, dy = nd.ones((2, 4, 4, 0), device=device), nd.ones((2, 4, 4, 3), device=device)
    dw, db = nd.conv_weight_bias_grad(x, dy, 3, 1, 1)
    assert dw.shape == (3, 3, 0, 3)
    assert db.tolist() == [32.0] * 3
