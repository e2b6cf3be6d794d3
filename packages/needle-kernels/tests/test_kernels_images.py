"""image_batch against loops over images in NumPy, bit for bit."""

import numpy as np
import pytest

from needle import backend_ndarray as nd
from needle.backend_ndarray.testing import VIEWS, make_view

RNG = np.random.default_rng(0)


def pictures(shape, dtype):
    return RNG.integers(0, 256, shape).astype(dtype)


def loop(data, ids, shifts=None, mirrored=None, corners=None, divisor=None, offset=None, **options):
    """The definition: pad every image, cut its window, mirror it, cut the square, scale."""
    reflect, cut = options.get("reflect", False), options.get("cut", 0)
    height, width = data.shape[2:]
    images = []
    for n, i in enumerate(ids):
        image = data[i].astype(np.float32)
        if shifts is not None:
            dy, dx = np.clip(shifts[n], (-height, -width), (height, width))
            down, right = abs(dy), abs(dx)
            around = ((0, 0), (down, down), (right, right))
            padded = np.pad(image, around, mode="reflect" if reflect else "constant")
            image = padded[:, down + dy : down + dy + height, right + dx : right + dx + width]
        if mirrored is not None and mirrored[n]:
            image = image[:, :, ::-1]
        image = image.copy()
        if corners is not None:
            top, left = corners[n]
            image[:, top : top + cut, left : left + cut] = 0
        images.append(image)
    batch = np.array(images, np.float32).reshape(len(ids), *data.shape[1:])
    if divisor is not None:
        batch = batch / divisor[:, None, None]
    if offset is not None:
        batch = batch + offset[:, None, None]
    return batch


def draws(n, shape, most, cut):
    """Shifts up to `most`, mirrors, corners, divisors and offsets for n images."""
    channels, height, width = shape
    return {
        "shifts": RNG.integers(-most, most + 1, (n, 2)),
        "mirrored": RNG.random(n) < 0.5,
        "corners": RNG.integers(0, (height - cut + 1, width - cut + 1), (n, 2)),
        "divisor": RNG.uniform(1, 300, channels).astype(np.float32),
        "offset": RNG.uniform(-1, 1, channels).astype(np.float32),
    }


def on(device, arrays):
    return {name: nd.array(a, dtype=a.dtype, device=device) for name, a in arrays.items()}


def check(device, data, ids, given, **options):
    arrays = on(device, {"data": data, "ids": ids, **given})
    got = nd.image_batch(**arrays, **options)
    assert (got.dtype, got.device) == (np.float32, device)
    np.testing.assert_array_equal(got.numpy(), loop(data, ids, **given, **options), strict=True)


# channels, height, width: rows shorter than, of and beyond a vector of 4, 8 and 16 floats
SHAPES = [
    (3, 32, 32),
    (1, 1, 1),
    (2, 5, 3),
    (1, 4, 17),
    (3, 7, 16),
    (2, 3, 15),
    (1, 2, 8),
    (1, 28, 33),
]


@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_steps(device, shape, dtype, reflect):
    data, ids = pictures((9, *shape), dtype), RNG.integers(0, 9, 21)
    cut = min(shape[1:]) // 2
    most = min(4, *(size - 1 for size in shape[1:])) if reflect else 4
    check(device, data, ids, draws(21, shape, most, cut), cut=cut, reflect=reflect)


STEPS = [
    (),
    ("shifts",),
    ("mirrored",),
    ("corners",),
    ("divisor",),
    ("offset",),
    ("shifts", "mirrored"),
    ("mirrored", "corners", "offset"),
    ("divisor", "offset"),
]


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("steps", STEPS, ids=",".join)
def test_any_steps(device, steps, dtype):
    data, ids = pictures((6, 2, 9, 20), dtype), RNG.integers(0, 6, 11)
    cut = 5 if "corners" in steps else 0
    given = draws(11, data.shape[1:], 3, cut)
    check(device, data, ids, {name: given[name] for name in steps}, cut=cut)


def test_shifts_beyond_the_image(device):
    data, ids = pictures((3, 2, 4, 20), "uint8"), np.zeros(9, np.int64)
    far = 2**62
    shifts = np.array(
        [[4, 0], [-4, 0], [0, 20], [0, -20], [3, -19], [far, 1], [-far, 1], [1, far], [1, -far]]
    )
    for mirrored in (np.zeros(9, bool), np.ones(9, bool)):
        check(device, data, ids, {"shifts": shifts, "mirrored": mirrored})


def test_every_reflection(device):
    shifts = np.array([(y, x) for y in range(-3, 4) for x in range(-18, 19)])
    data, n = pictures((2, 1, 4, 19), "float32"), len(shifts)
    ids, mirrored = RNG.integers(0, 2, n), RNG.random(n) < 0.5
    check(device, data, ids, {"shifts": shifts, "mirrored": mirrored}, reflect=True)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (5, 0, 4, 4), (5, 3, 0, 4), (5, 3, 4, 0)])
def test_nothing_to_do(device, shape):
    ids = np.zeros(0 if shape[0] == 0 else 2, np.int64)
    check(device, np.zeros(shape, np.uint8), ids, {})
    check(device, pictures((5, 3, 4, 4), "uint8"), np.zeros(0, np.int64), draws(0, (3, 4, 4), 1, 0))


def test_special_values_stay_themselves(device):
    values = np.array([-0.0, 0.0, np.inf, -np.inf, np.nan, 1e-42], np.float32)
    data = nd.array(np.resize(values, (1, 1, 3, 24)), device=device)
    got = nd.image_batch(data, nd.array([0], dtype="int64", device=device)).numpy()
    np.testing.assert_array_equal(got.view(np.int32), data.numpy().view(np.int32))


@pytest.mark.parametrize("view", VIEWS)
def test_views(device, view):
    data, ids = pictures((4, 3, 6, 18), "uint8"), RNG.integers(0, 4, 8)
    given = draws(8, (3, 6, 18), 2, 3)
    args = {"data": data, "ids": ids, **given}
    views = {name: make_view(view, a, device, a.dtype) for name, a in args.items()}
    got = nd.image_batch(**views, cut=3).numpy()
    seen = {name: a.numpy() for name, a in views.items()}
    np.testing.assert_array_equal(got, loop(**seen, cut=3))


def test_channels_last_in_memory(device):
    data, ids = pictures((4, 6, 18, 3), "uint8"), RNG.integers(0, 4, 8)
    given = draws(8, (3, 6, 18), 2, 3)
    stored = nd.array(data, dtype="uint8", device=device).permute(0, 3, 1, 2)
    got = nd.image_batch(stored, **on(device, {"ids": ids, **given}), cut=3).numpy()
    np.testing.assert_array_equal(got, loop(data.transpose(0, 3, 1, 2), ids, **given, cut=3))


def test_threads_do_not_change_results():
    data, ids = pictures((50, 3, 32, 32), "uint8"), RNG.integers(0, 50, 65)
    before = nd.num_threads()
    try:
        for threads in (1, 2, 3):
            nd.set_num_threads(threads)
            check(nd.cpu(), data, ids, draws(65, (3, 32, 32), 4, 8), cut=8)
    finally:
        nd.set_num_threads(before)


def test_one_call_is_one_launch():
    arrays = on(nd.cpu(), {"ids": np.zeros(2, np.int64), "mirrored": np.ones(2, bool)})
    recorder = nd.Recorder()
    recorder.start()
    nd.image_batch(nd.ones((1, 3, 4, 4)), **arrays)
    recorder.stop()
    assert [call.kernel for call in recorder.take()].count("image_batch") == 1


def ints(rows):
    return nd.array(np.array(rows), dtype="int64")


DATA = nd.zeros((5, 3, 4, 6))
TWO = ints([0, 1])
BAD = [
    (
        {"data": DATA[0]},
        nd.ShapeError,
        r"image_batch: data has the wrong number of axes: got \(3, 4, 6\): need \(M, C, H, W\)",
    ),
    ({"ids": ints([[0, 1]])}, nd.ShapeError, r"ids has the wrong number of axes: got \(1, 2\)"),
    ({"ids": nd.zeros(2)}, nd.DTypeError, "image_batch: ids are not integers: got float32"),
    ({"ids": ints([0, 5])}, IndexError, "id is out of range: got 5: need 0 <= id < 5"),
    ({"ids": ints([-1, 4])}, IndexError, "id is out of range: got -1: need 0 <= id < 5"),
    (
        {"data": DATA.astype("float64")},
        nd.DTypeError,
        "image_batch: data: got float64: need uint8 or float32",
    ),
    (
        {"shifts": ints([[0, 0]])},
        nd.ShapeError,
        r"image_batch: shifts does not fit: got \(1, 2\): need \(2, 2\)",
    ),
    ({"shifts": nd.zeros((2, 2))}, nd.DTypeError, "image_batch: shifts: got float32: need int64"),
    ({"mirrored": TWO}, nd.DTypeError, "image_batch: mirrored: got int64: need bool"),
    (
        {"divisor": nd.ones(2)},
        nd.ShapeError,
        r"image_batch: divisor does not fit: got \(2,\): need \(3,\)",
    ),
    (
        {"offset": nd.ones(3, dtype="float64")},
        nd.DTypeError,
        "image_batch: offset: got float64: need float32",
    ),
    (
        {"shifts": ints([[-3, 5], [4, 0]]), "reflect": True},
        nd.ShapeError,
        r"shifts leave the image: got \[-3, 0\] to \[4, 5\]: need \[-3, -5\] to \[3, 5\]",
    ),
    (
        {"corners": ints([[0, 4], [2, -1]]), "cut": 3},
        nd.ShapeError,
        r"corners leave the image: got \[0, -1\] to \[2, 4\]: need \[0, 0\] to \[1, 3\]",
    ),
    ({"cut": 3}, nd.ShapeError, r"image_batch: no corners: cut is 3: need corners \(2, 2\)"),
    ({"cut": -1}, nd.ShapeError, r"image_batch: .*-1"),
    ({"data": np.zeros((1, 1, 1, 1))}, TypeError, "image_batch: data is not an array: got ndarray"),
]


@pytest.mark.parametrize(("given", "kind", "text"), BAD, ids=[case[2][:40] for case in BAD])
def test_errors(given, kind, text):
    with pytest.raises(kind, match=text):
        nd.image_batch(**{"data": DATA, "ids": TWO, **given})


@pytest.mark.skipif(nd.cpu() == nd.cpu_numpy(), reason="one device only")
def test_all_arrays_on_one_device():
    with pytest.raises(nd.DeviceError, match=r"image_batch: devices differ: got .* and cpu_numpy"):
        nd.image_batch(DATA, ints([0]).to(nd.cpu_numpy()))
