"""Matrix products against NumPy in float64, with the bound of a sum of K products."""

import numpy as np
import pytest
from scipy import special

from needle import backend_ndarray as nd
from needle._kernels import cpu as extension
from needle.backend_ndarray.devices import REFERENCE_MODE
from needle.backend_ndarray.testing import VIEWS, compare, make_view, rounding


def draw(shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape)


def check(got, a, b, dtype, extra=0.0, activation=lambda v: v):
    """got = activation(a @ b + extra): each sum of k products is off by at most k roundings.

    tanh and sigmoid stretch an error by at most 1 and add a few roundings of their own.
    """
    x, y = a.numpy().astype(np.float64), b.numpy().astype(np.float64)
    magnitude = np.abs(x) @ np.abs(y) + np.abs(extra)
    bound = rounding(dtype, x.shape[-1] + 10) * (magnitude + 1)
    compare(got, activation(x @ y + extra), dtype=dtype, atol=bound)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sizes(device, dtype):
    sizes = [0, 1, 2, 7, 8, 9, 15, 16, 17, 33]
    rng = np.random.default_rng(0)
    shapes = [tuple(rng.choice(sizes, 3)) for _ in range(40)] + [(n, n, n) for n in sizes]
    for m, k, n in [*shapes, (1, 300, 1), (129, 65, 257), (300, 1, 300), (5, 1000, 3)]:
        a = nd.array(draw((m, k)), dtype=dtype, device=device)
        b = nd.array(draw((k, n), 1), dtype=dtype, device=device)
        check(a @ b, a, b, dtype)


def test_large(device):
    a, b = (
        nd.array(draw((260, 390) if s == 0 else (390, 530), s), dtype="float32", device=device)
        for s in (0, 1)
    )
    check(a @ b, a, b, "float32")


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("m", "k", "n"),
    [
        # Which way a product goes depends on the instruction set; the comments are AVX-512's.
        (70, 600, 400),  # strips of b in place
        (90, 530, 320),  # also there; columns behind the last of them on two threads
        (170, 140, 190),  # rows of b between cache lines: packed strips
        (18, 1030, 1024),  # rows of b 4 KB apart: short strips
        (520, 1030, 1024),  # packed strips, in two blocks of depth
        (101, 5120, 72),  # strips in several blocks of depth
        (1024, 250, 300),  # a transposed a whose rows are 4 KB apart: packed for strips
        (70, 600, 900),  # panels of b that their first tiles pack, in blocks of depth
        (500, 140, 300),  # at once; the last panel is not whole
        (20, 1024, 1024),  # rows of a and b 4 KB apart: a is packed, too
        (24, 300, 2050),  # b comes from memory on one thread
        (48, 140, 10000),  # also on two
        (100, 64, 1100),  # so many columns that a is packed
        (2501, 61, 601),  # some rows after the other run through all of b
        (29, 200, 800),  # rows that tiles divide among them: 12, 9 and 8
        (70, 300, 4200),  # a wide b, in several blocks of depth
        (560, 400, 4200),  # its panels are packed before all rows of a larger a use them
        (101, 4500, 300),  # too deep: rows of a pass by blocks of b
        (701, 700, 17),  # one panel, and an a that on one thread is fetched ahead
        (200, 90, 40),  # parts of rows that end in a small tile; half a vector of columns
        (20, 200, 800),  # few rows: parts of columns that end in half a panel
        (20, 130, 333),  # b in place but for its last panel
        (13, 2100, 200),  # in blocks of depth
        (6, 64, 161),
        (5, 1100, 70),  # several threads divide the rows, and one has a single row
        (2, 1300, 400),
        (1, 300, 1000),
        (1, 37, 5001),  # b along its rows, for which c comes in two parts
        (2, 515, 4500),  # b comes from memory
        (3, 701, 3001),
        (4, 701, 3001),
        (1, 3000, 1),
        (1030, 305, 1),  # a column, also of a transposed a
        (333, 1100, 3),  # few columns
        (90, 701, 8),
        (35, 1024, 300),  # rows of a 4 KB apart, which some first-level caches cannot hold together
    ],
)
def test_blocks_and_threads(device, threads, m, k, n):
    before = nd.num_threads()
    nd.set_num_threads(threads)
    try:
        a, at = (nd.array(draw(s), dtype="float32", device=device) for s in ((m, k), (k, m)))
        b, bt = (nd.array(draw(s, 1), dtype="float32", device=device) for s in ((k, n), (n, k)))
        bias = draw((n,), 2).astype(np.float32)
        for x, y in [(a, b), (at.permute(1, 0), b), (a, bt.permute(1, 0))]:
            got = nd.matmul(x, y, bias=nd.array(bias, device=device), activation="relu")
            check(got, x, y, "float32", bias, lambda v: np.maximum(v, 0))
            before_sum = got.numpy().copy()
            check(nd.matmul(x, y, out=got, accumulate=True), x, y, "float32", before_sum)
    finally:
        nd.set_num_threads(before)


@pytest.mark.parametrize("turned", [False, True], ids=["a", "a transposed"])
@pytest.mark.parametrize("columns", [40, 530])
def test_tiles_of_every_height(host_device, columns, turned):
    """1 to 26 rows, with few columns and with enough for panels that tiles pack."""
    b = nd.array(draw((35, columns), 1), dtype="float32", device=host_device)
    for rows in range(1, 27):
        if turned:
            a = nd.array(draw((35, rows)), dtype="float32", device=host_device).permute(1, 0)
        else:
            a = nd.array(draw((rows, 35)), dtype="float32", device=host_device)
        check(a @ b, a, b, "float32")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 12, 32])
def test_few_rows_of_gapped_operands(device, dtype, rows):
    """b as it lies, and transposed; every row of a and b is part of a longer one."""
    whole_a = nd.array(draw((rows, 301)), dtype=dtype, device=device)
    whole_b = nd.array(draw((299, 90), 1), dtype=dtype, device=device)
    whole_t = nd.array(draw((83, 310), 2), dtype=dtype, device=device)
    bias = draw((83,), 3).astype(dtype)
    a = whole_a[:, 1:300]
    for b in (whole_b[:, 3:86], whole_t[:, 5:304].permute(1, 0)):
        got = nd.matmul(a, b, bias=nd.array(bias, dtype=dtype, device=device), activation="tanh")
        check(got, a, b, dtype, bias, np.tanh)
        check(nd.matmul(a, b, out=got.copy(), accumulate=True), a, b, dtype, got.numpy())


@pytest.mark.parametrize("turned", [False, True], ids=["b", "b transposed"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 3), (2, 5), (6, 32), (3, 1)])
def test_a_great_depth_is_summed_in_parts(host_device, rows, columns, turned):
    """Of positive numbers: added one by one to a large sum they would be 10^-4 off."""
    rng = np.random.default_rng(0)
    x, y = rng.random((rows, 1 << 20), "float32"), rng.random((columns, 1 << 20), "float32").T
    want = x.astype("float64") @ y.astype("float64")
    a, a_turned, b, b_turned = (nd.array(v, device=host_device) for v in (x, x.T, y, y.T))
    right = b_turned.permute(1, 0) if turned else b
    for left in (a, a_turned.permute(1, 0)):
        compare(nd.matmul(left, right), want, dtype="float32", rtol=5e-5)


@pytest.mark.parametrize(("rows", "columns"), [(651, 10000), (651, 9999), (7000, 912)])
def test_a_result_beyond_the_caches(host_device, rows, columns):
    """26 MB, written past them where each row is whole vectors, and added to."""
    device = host_device
    a, b = (
        nd.array(draw(shape, s), dtype="float32", device=device)
        for s, shape in enumerate([(rows, 64), (64, columns)])
    )
    bias = draw((columns,), 2).astype(np.float32)
    got = nd.matmul(a, b, bias=nd.array(bias, device=device))
    check(got, a, b, "float32", bias)
    check(nd.matmul(a, b, out=got.copy(), accumulate=True), a, b, "float32", got.numpy())


def test_a_batch_beyond_the_caches_whose_items_begin_between_vectors(host_device):
    """33 MB; the first item's rows are whole vectors, those of the second begin one place later."""
    rows, columns = 2052, 2048
    a, b = draw((2, rows, 3)), draw((2, 3, columns), 1)
    item = rows * columns + 1
    whole = nd.array(np.zeros(2 * item), dtype="float32", device=host_device)
    out = whole.as_strided((2, rows, columns), (item, columns, 1))
    left, right = (nd.array(x, dtype="float32", device=host_device) for x in (a, b))
    check(nd.matmul(left, right, out=out), left, right, "float32")
    assert whole.numpy()[[item - 1, -1]].tolist() == [0, 0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("view", VIEWS)
def test_linear_weight_grad(device, view, dtype):
    empty = [(0, 3, 2), (0, 60, 300), (3, 0, 2), (3, 2, 0)]
    for rows, inputs, outputs in [*empty, (1, 1, 1), (190, 37, 91)]:
        x = make_view(view, draw((rows, inputs)), device, dtype)
        dy = make_view(view, draw((rows, outputs), 1), device, dtype)
        dw, db = nd.linear_weight_grad(x, dy)
        check(dw, x.permute(1, 0), dy, dtype)
        bound = rounding(dtype, rows) * rows
        compare(db, dy.numpy().sum(0, dtype=np.float64), dtype=dtype, atol=bound)


def test_linear_weight_grad_of_wrong_operands(device):
    x, dy = nd.ones((3, 4), device=device), nd.ones((2, 5), device=device)
    with pytest.raises(nd.ShapeError, match=r"linear_weight_grad: dy does not fit: got \(2, 5\)"):
        nd.linear_weight_grad(x, dy)
    with pytest.raises(nd.ShapeError, match=r"linear_weight_grad: x has the wrong number of axes"):
        nd.linear_weight_grad(x[0], dy)
    with pytest.raises(nd.DTypeError, match=r"linear_weight_grad: dtypes do not fit"):
        nd.linear_weight_grad(x, nd.ones((3, 5), dtype="float64", device=device))


@pytest.mark.parametrize("rows", [20, 101])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_that_lie_a_multiple_of_4_kb_apart(device, dtype, rows):
    whole = nd.array(draw((rows, 2048)), dtype=dtype, device=device)
    b = nd.array(draw((1000, 290), 1), dtype=dtype, device=device)
    for first in (0, 1048):
        a = whole[:, first : first + 1000]
        check(a @ b, a, b, dtype)


@pytest.mark.parametrize("view_b", VIEWS)
@pytest.mark.parametrize("view_a", VIEWS)
def test_views(device, view_a, view_b):
    a = make_view(view_a, draw((19, 35)), device)
    b = make_view(view_b, draw((35, 23), 1), device)
    check(a @ b, a, b, "float32")
    check(b.permute(1, 0) @ a.permute(1, 0), b.permute(1, 0), a.permute(1, 0), "float32")


@pytest.mark.parametrize(
    ("shape_a", "shape_b"),
    [
        ((5, 3, 4), (5, 4, 2)),
        ((5, 3, 4), (4, 2)),
        ((3, 4), (5, 4, 2)),
        ((2, 1, 3, 4), (1, 6, 4, 2)),
        ((2, 1, 3, 4), (6, 4, 2)),
        ((0, 3, 4), (4, 2)),
        ((2, 0, 3), (2, 3, 5)),
        ((2, 3, 0), (2, 0, 5)),
    ],
)
def test_batches(device, shape_a, shape_b):
    a = nd.array(draw(shape_a), dtype="float32", device=device)
    b = nd.array(draw(shape_b, 1), dtype="float32", device=device)
    check(a @ b, a, b, "float32")
    assert (a @ b).shape == (a.numpy() @ b.numpy()).shape


def test_batches_of_permuted_views(device):
    a = nd.array(draw((3, 7, 5)), dtype="float32", device=device).permute(1, 0, 2)
    b = nd.array(draw((4, 7, 5), 1), dtype="float32", device=device).permute(1, 2, 0)
    check(a @ b, a, b, "float32")


def test_vectors(device):
    m, v, w = (
        nd.array(draw(s, i), dtype="float32", device=device)
        for i, s in enumerate([(3, 4), (4,), (3,)])
    )
    check(m @ v, m, v, "float32")
    check(w @ m, w, m, "float32")
    check(v @ v, v, v, "float32")
    assert (v @ v).shape == ()
    stack = nd.array(draw((2, 3, 4)), dtype="float32", device=device)
    check(stack @ v, stack, v, "float32")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", [None, "relu", "tanh", "sigmoid"])
def test_epilogue(device, activation, dtype):
    oracle = {
        None: lambda v: v,
        "relu": lambda v: np.maximum(v, 0),
        "tanh": np.tanh,
        "sigmoid": special.expit,
    }[activation]
    for shape in [(1, 1), (5, 17), (33, 16)]:
        m, n = shape
        a = nd.array(draw((m, 20)), dtype=dtype, device=device)
        b = nd.array(draw((20, n), 1), dtype=dtype, device=device)
        bias = nd.array(draw(n, 2), dtype=dtype, device=device)
        out = nd.array(draw((m, n), 3), dtype=dtype, device=device)
        extra = bias.numpy().astype(np.float64)
        got = nd.matmul(a, b, bias, activation)
        check(got, a, b, dtype, extra, oracle)
        before = out.numpy().astype(np.float64)
        same = nd.matmul(a, b, bias, activation, out=out, accumulate=True)
        assert same is out
        check(out, a, b, dtype, extra + before, oracle)


def test_bias_of_an_empty_product(device):
    a, b = nd.zeros((2, 0), device=device), nd.zeros((0, 3), device=device)
    bias = nd.array([1, -2, 3], dtype="float32", device=device)
    compare(nd.matmul(a, b, bias, "relu"), np.float32([[1, 0, 3]] * 2))


def test_strided_bias_and_out(device):
    a, b = (
        nd.array(draw((4, 6)), dtype="float32", device=device),
        nd.array(draw((6, 5), 1), dtype="float32", device=device),
    )
    bias = make_view("stepped", draw(5, 2), device)
    out = make_view("permuted", draw((4, 5), 3), device)
    version = out._handle.version
    nd.matmul(a, b, bias, out=out)
    check(out, a, b, "float32", bias.numpy().astype(np.float64))
    assert out._handle.version > version


def test_out_may_be_an_input(device):
    x = draw((5, 5)).astype(np.float32)
    a = nd.array(x, dtype="float32", device=device)
    nd.matmul(a, a, out=a)
    compare(a, x.astype(np.float64) @ x, dtype="float32", atol=1e-5)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "bool"])
def test_integers(device, dtype):
    rng = np.random.default_rng(0)
    high = 2 if dtype == "bool" else 10
    x, y = (
        rng.integers(0, high, (9, 17)).astype(dtype),
        rng.integers(0, high, (17, 5)).astype(dtype),
    )
    a, b = nd.array(x, dtype=dtype, device=device), nd.array(y, dtype=dtype, device=device)
    compare(a @ b, x @ y)


def test_promotion(device):
    a = nd.ones((2, 2), dtype="int32", device=device)
    b = nd.ones((2, 2), device=device)
    compare(a @ b, np.full((2, 2), 2.0))
    compare(np.ones((2, 2)) @ b, np.full((2, 2), 2.0))
    compare(b @ np.ones((2, 2), np.float32), np.full((2, 2), 2.0, np.float32))


def test_errors(device):
    a, b = nd.zeros((32, 128), device=device), nd.zeros((64, 10), device=device)
    with pytest.raises(
        nd.ShapeError,
        match=r"matmul: inner sizes differ: a is \(32, 128\), b is \(64, 10\): "
        r"need a.shape\[-1\] == b.shape\[-2\]",
    ):
        a @ b
    square = nd.zeros((2, 2), device=device)
    with pytest.raises(nd.ShapeError, match=r"no axes: got a \(2, 2\), b \(\)"):
        square @ nd.zeros((), device=device)
    with pytest.raises(nd.ShapeError, match=r"broadcast: got \(2,\) and \(3,\)"):
        nd.zeros((2, 2, 2), device=device) @ nd.zeros((3, 2, 2), device=device)
    with pytest.raises(nd.ShapeError, match=r"bias does not fit: got \(3,\) for a result \(2, 2\)"):
        nd.matmul(square, square, nd.zeros((3,), device=device))
    with pytest.raises(nd.DTypeError, match="dtypes differ: got bias float64 for float32"):
        nd.matmul(square, square, nd.zeros((2,), dtype="float64", device=device))
    with pytest.raises(ValueError, match="matmul: unknown activation: got 'gelu'"):
        nd.matmul(square, square, activation="gelu")
    whole = square.astype("int32")
    with pytest.raises(nd.DTypeError, match="bias and activation need floats: got int32"):
        nd.matmul(whole, whole, activation="relu")
    with pytest.raises(nd.ShapeError, match="got accumulate without out"):
        nd.matmul(square, square, accumulate=True)
    with pytest.raises(nd.ShapeError, match=r"out does not fit: got \(3,\): need \(2, 2\)"):
        nd.matmul(square, square, out=nd.zeros((3,), device=device))
    with pytest.raises(nd.DTypeError, match="got out float64: need float32"):
        nd.matmul(square, square, out=square.astype("float64"))
    with pytest.raises(TypeError, match="unsupported operand"):
        square @ 2.0


@pytest.mark.skipif(REFERENCE_MODE, reason="cpu() is the NumPy device: it has no path in C++")
class TestCommonPath:
    """The path in C++ multiplies float matrices on cpu() and leaves everything else to Python."""

    multiply = staticmethod(extension.matmul)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize(("m", "k", "n"), [(3, 5, 2), (0, 4, 2), (3, 0, 2), (90, 80, 70)])
    def test_takes(self, dtype, m, k, n):
        a, b = nd.array(draw((k, m)), dtype=dtype).T, nd.array(draw((k, n), 1), dtype=dtype)
        bias = nd.array(draw((2 * n,), 2), dtype=dtype)[::2]
        for row in (None, bias):
            out = self.multiply(a, b, row)
            assert (out.shape, out.strides, out.dtype) == ((m, n), (max(n, 1), 1), np.dtype(dtype))
            check(out, a, b, dtype, 0.0 if row is None else bias.numpy())

    @pytest.mark.parametrize(
        ("a", "b", "bias"),
        [
            (nd.ones((2, 3)), nd.ones((2, 3)), None),
            (nd.ones((2, 3)), nd.ones((3,)), None),
            (nd.ones((1, 2, 3)), nd.ones((3, 2)), None),
            (nd.ones((2, 3)), nd.ones((3, 2), dtype="float64"), None),
            (nd.ones((2, 3), dtype="int32"), nd.ones((3, 2), dtype="int32"), None),
            (nd.ones((2, 3)), nd.ones((3, 2), device=nd.cpu_numpy()), None),
            (nd.ones((2, 3)), np.ones((3, 2), "float32"), None),
            (2.0, 3.0, None),
            (nd.ones((2, 3)), nd.ones((3, 2)), nd.ones((3,))),
            (nd.ones((2, 3)), nd.ones((3, 2)), nd.ones((1, 2))),
            (nd.ones((2, 3)), nd.ones((3, 2)), nd.ones((2,), dtype="float64")),
            (nd.ones((2, 3)), nd.ones((3, 2)), nd.ones((2,), device=nd.cpu_numpy())),
            (nd.ones((2, 3)), nd.ones((3, 2)), 1.0),
        ],
    )
    def test_declines(self, a, b, bias):
        assert self.multiply(a, b, bias) is None

    def test_needs_three_arguments(self):
        with pytest.raises(TypeError, match="matmul: need two matrices and a bias or None"):
            self.multiply(nd.ones((2, 2)), nd.ones((2, 2)))


class TestTiled:
    @pytest.mark.parametrize(
        ("m", "n", "p"), [(1, 1, 1), (2, 3, 4), (5, 1, 2), (0, 2, 1), (2, 0, 1)]
    )
    def test_matches_matmul(self, host_device, m, n, p):
        t = host_device.__tile_size__
        assert t == 8
        x, y = draw((m * t, n * t)).astype(np.float32), draw((n * t, p * t), 1).astype(np.float32)
        a = nd.array(
            x.reshape(m, t, n, t).transpose(0, 2, 1, 3), dtype="float32", device=host_device
        ).compact()
        b = nd.array(
            y.reshape(n, t, p, t).transpose(0, 2, 1, 3), dtype="float32", device=host_device
        ).compact()
        out = nd.full((m, p, t, t), 7.0, device=host_device)
        host_device.matmul_tiled(a._handle, b._handle, out._handle, m * t, n * t, p * t)
        got = out.permute(0, 2, 1, 3).reshape(m * t, p * t)
        compare(got, x.astype(np.float64) @ y, dtype="float32", atol=1e-5)

    def test_errors(self, host_device):
        handle = nd.zeros((64,), device=host_device)._handle
        with pytest.raises(nd.ShapeError, match=r"matmul_tiled: .* got m=8, n=9, p=8: need mult"):
            host_device.matmul_tiled(handle, handle, handle, 8, 9, 8)
        with pytest.raises(nd.ShapeError, match="wrong size: got 64: need 128 elements"):
            host_device.matmul_tiled(handle, handle, handle, 8, 16, 8)
