"""Initialisers: the exact draws, shapes, scales and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import Tensor, init
from needle.backend_ndarray import DeviceError, DTypeError, ShapeError

DEVICES = list(dict.fromkeys([ndl.cpu(), ndl.cpu_numpy()]))


def uniform(shape: tuple[int, ...], bound: float) -> np.ndarray:
    return np.random.rand(*shape) * (bound + bound) - bound


DRAWS: list[tuple[str, Any, Any]] = [
    ("rand", lambda **k: init.rand(3, 4, **k), lambda: np.random.rand(3, 4)),
    (
        "rand-low-high",
        lambda **k: init.rand(5, low=-2, high=3, **k),
        lambda: np.random.rand(5) * 5 - 2,
    ),
    ("randn", lambda **k: init.randn(3, 4, **k), lambda: np.random.randn(3, 4)),
    (
        "randn-std",
        lambda **k: init.randn(2, mean=1, std=3, **k),
        lambda: np.random.randn(2) * 3 + 1,
    ),
    ("randb", lambda **k: init.randb(50, p=0.3, **k), lambda: np.random.rand(50) <= 0.3),
    (
        "xavier-uniform",
        lambda **k: init.xavier_uniform(3, 5, gain=1.5, **k),
        lambda: uniform((3, 5), 1.5 * np.sqrt(6 / 8)),
    ),
    (
        "xavier-normal",
        lambda **k: init.xavier_normal(3, 5, gain=0.33, **k),
        lambda: np.random.randn(3, 5) * 0.33 * np.sqrt(2 / 8),
    ),
    (
        "kaiming-uniform",
        lambda **k: init.kaiming_uniform(3, 5, **k),
        lambda: uniform((3, 5), np.sqrt(2) * np.sqrt(3 / 3)),
    ),
    (
        "kaiming-normal",
        lambda **k: init.kaiming_normal(3, 5, **k),
        lambda: np.random.randn(3, 5) * np.sqrt(2) / np.sqrt(3),
    ),
    (
        "kaiming-uniform-shape",
        lambda **k: init.kaiming_uniform(1, 1, shape=(3, 3, 4, 8), **k),
        lambda: uniform((3, 3, 4, 8), np.sqrt(2) * np.sqrt(3 / 36)),
    ),
    (
        "xavier-uniform-shape",
        lambda **k: init.xavier_uniform(1, 1, shape=(3, 3, 4, 8), **k),
        lambda: uniform((3, 3, 4, 8), np.sqrt(6 / (36 + 72))),
    ),
]


@pytest.mark.parametrize("device", DEVICES, ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("make", "oracle"), [d[1:] for d in DRAWS], ids=[d[0] for d in DRAWS])
def test_draws_come_from_numpys_generator_one_each(
    make: Any, oracle: Any, dtype: str, device: ndl.Device
) -> None:
    np.random.seed(7)
    got = make(device=device, dtype=dtype)
    following = np.random.rand()
    np.random.seed(7)
    want = oracle()
    assert np.random.rand() == following
    np.testing.assert_allclose(got.numpy(), want.astype(dtype), rtol=1e-6, atol=1e-7)
    assert got.dtype == dtype
    assert got.device == device
    assert not got.requires_grad
    assert make(requires_grad=True, dtype=dtype).requires_grad


def test_constants() -> None:
    for got, want in (
        (init.zeros(2, 3), np.zeros((2, 3))),
        (init.ones((2, 3)), np.ones((2, 3))),
        (init.constant(2, c=3.5), [3.5, 3.5]),
        (init.ones(), 1.0),
        (init.zeros_like(Tensor([1.0, 2.0])), [0, 0]),
        (init.ones_like(Tensor([[1.0], [2.0]])), [[1], [1]]),
    ):
        assert got.numpy().tolist() == np.asarray(want).tolist()
        assert not got.requires_grad
    assert init.ones(2).dtype == "float32"
    assert init.ones_like(Tensor([1], dtype="int64")).dtype == "int64"
    assert init.zeros_like(Tensor([1.0], dtype="float64"), dtype="float32").dtype == "float32"
    assert init.zeros(1, requires_grad=True).requires_grad
    assert init.randb(3).dtype == "bool"
    assert init.constant(2, c=7, dtype="int32").numpy().tolist() == [7, 7]


@pytest.mark.parametrize("device", DEVICES, ids=repr)
def test_one_hot(device: ndl.Device) -> None:
    want = np.eye(4)[[3, 0]]
    for ids in ([3, 0], np.array([3, 0]), Tensor([3.0, 0.0]), Tensor([3, 0], dtype="int32")):
        got = init.one_hot(4, ids, device=device)
        np.testing.assert_array_equal(got.numpy(), want)
        assert got.dtype == "float32"
        assert got.device == device
    assert init.one_hot(4, Tensor([1.0], device=device)).device == device
    assert init.one_hot(4, [[0, 1]], dtype="int64").shape == (1, 2, 4)
    with pytest.raises(IndexError, match="got 4: need 0 <= id < 4"):
        init.one_hot(4, [4])
    with pytest.raises(DTypeError, match="ids are not integers"):
        init.one_hot(4, [0.5])


def test_refusals() -> None:
    for call, error, text in (
        (lambda: init.rand(-1), ShapeError, r"rand: negative size: got \(-1,\)"),
        (lambda: init.zeros(1.5), TypeError, "zeros: not integers"),
        (lambda: init.ones(2, dtype="float16"), DTypeError, "ones: dtype .* got float16"),
        (lambda: init.kaiming_uniform(0, 3), ShapeError, "got fan_in 0, fan_out 3: need both >= 1"),
        (
            lambda: init.xavier_normal(1, 1, shape=(3,)),
            ShapeError,
            r"too few axes: got shape \(3,\)",
        ),
        (
            lambda: init.xavier_uniform(2, 2, low=1, std=2),
            TypeError,
            "xavier_uniform: unknown arguments: got low, std: need device, dtype, requires_grad",
        ),
        (
            lambda: init.kaiming_normal(2, 2, gain=2),
            TypeError,
            "kaiming_normal: unknown arg.*: got gain",
        ),
        (
            lambda: init.kaiming_normal(1, 1, nonlinearity="tanh"),
            ValueError,
            "kaiming_normal: unknown nonlinearity: got 'tanh'",
        ),
    ):
        with pytest.raises(error, match=text):
            call()


NEW: dict[str, Any] = {
    "rand": lambda **k: init.rand(2, **k),
    "randn": lambda **k: init.randn(2, **k),
    "randb": lambda **k: init.randb(2, **k),
    "constant": lambda **k: init.constant(2, **k),
    "ones": lambda **k: init.ones(2, **k),
    "zeros": lambda **k: init.zeros(2, **k),
    "one_hot": lambda **k: init.one_hot(3, [1], **k),
    "zeros_like": lambda **k: init.zeros_like(init.ones(2), **k),
    "ones_like": lambda **k: init.ones_like(init.ones(2), **k),
    "xavier_uniform": lambda **k: init.xavier_uniform(2, 2, **k),
    "xavier_normal": lambda **k: init.xavier_normal(2, 2, **k),
    "kaiming_uniform": lambda **k: init.kaiming_uniform(2, 2, **k),
    "kaiming_normal": lambda **k: init.kaiming_normal(2, 2, **k),
}


@pytest.mark.parametrize("name", NEW)
def test_devices_dtypes_and_switches_that_are_none(name: str) -> None:
    need = r"need a device such as needle\.cpu\(\)"
    with pytest.raises(DeviceError, match=f"^{name}: device: got 'cpu': {need}$"):
        NEW[name](device="cpu")
    with pytest.raises(DTypeError, match=f"^{name}: dtype is not supported: got float31: need"):
        NEW[name](dtype="float31")
    with pytest.raises(DTypeError, match=f"^{name}: dtype is not supported: got {{}}: need"):
        NEW[name](dtype={})
    for wrong in ("x", 2, None, np.zeros(3)):
        with pytest.raises(TypeError, match=r"requires_grad: got .*: need True or False$"):
            NEW[name](requires_grad=wrong)
    assert NEW[name](requires_grad=np.bool_(True), dtype=np.float64).requires_grad


NUMBERS: list[tuple[Any, type[Exception], str]] = [
    (lambda: init.rand(2, low="x"), TypeError, "rand: low: got 'x': need a finite number"),
    (lambda: init.rand(2, high=None), TypeError, "rand: high: got None: need a finite number"),
    (lambda: init.rand(2, high=float("inf")), ValueError, "rand: high: got inf: need a finite num"),
    (lambda: init.rand(2, low=10**400), ValueError, r"rand: low: got 1000*: need a finite number"),
    (lambda: init.rand(2, low=True), TypeError, "rand: low: got True: need a finite number"),
    (lambda: init.rand(2, low=3, high=2), ValueError, "rand: got low 3, high 2: need low <= high"),
    (lambda: init.randn(2, mean=[1, 2]), TypeError, r"randn: mean: got \[1, 2\]: need a finite"),
    (lambda: init.randn(2, mean=float("nan")), ValueError, "randn: mean: got nan: need a finite"),
    (lambda: init.randn(2, std=-1), ValueError, "randn: std: got -1: need a finite number >= 0"),
    (lambda: init.randn(2, std="x"), TypeError, "randn: std: got 'x': need a finite number >= 0"),
    (lambda: init.randb(2, p=2), ValueError, r"randb: p: got 2: need a number in \[0, 1\]"),
    (lambda: init.randb(2, p=-0.1), ValueError, r"randb: p: got -0\.1: need a number in"),
    (lambda: init.randb(2, p=float("nan")), ValueError, "randb: p: got nan: need a number in"),
    (lambda: init.randb(2, p=None), TypeError, "randb: p: got None: need a number in"),
    (lambda: init.constant(2, c="x"), TypeError, "constant: c: got 'x': need a number"),
    (lambda: init.constant(2, c=None), TypeError, "constant: c: got None: need a number"),
    (lambda: init.xavier_uniform(2, 2, gain="x"), TypeError, "xavier_uniform: gain: got 'x': need"),
    (lambda: init.xavier_normal(2, 2, gain=-1), ValueError, "xavier_normal: gain: got -1: need a"),
    (lambda: init.xavier_normal(None, 2), TypeError, "xavier_normal: fan_in is not an integer: g"),
    (lambda: init.kaiming_normal(2, 2.5), TypeError, "kaiming_normal: fan_out is not an integer"),
    (lambda: init.kaiming_normal(2, -1), ShapeError, "got fan_in 2, fan_out -1: need both >= 1"),
    (
        lambda: init.kaiming_uniform(2, 2, nonlinearity=["relu"]),
        ValueError,
        r"kaiming_uniform: unknown nonlinearity: got \['relu'\]: need 'relu'",
    ),
    (
        lambda: init.one_hot(3, [[1], [2, 3]]),
        ShapeError,
        "one_hot: i is not an array: .*inhomogeneous",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), NUMBERS, ids=[case[2] for case in NUMBERS])
def test_numbers_that_are_none_or_out_of_range(
    call: Any, error: type[Exception], text: str
) -> None:
    state = np.random.get_state()[1].copy()
    with pytest.raises(error, match=text):
        call()
    assert (np.random.get_state()[1] == state).all()  # raised before anything was drawn


def test_numbers_of_numpy_and_limits_are_taken() -> None:
    assert init.rand(2, low=np.float32(1), high=np.int64(1)).numpy().tolist() == [1, 1]
    assert init.randn(2, mean=np.float32(1), std=0).numpy().tolist() == [1, 1]
    assert init.randb(3, p=1).numpy().all()
    assert init.randb(3, p=np.float32(1)).numpy().all()
    assert init.constant(2, c=Tensor([3.0])).numpy().tolist() == [3, 3]
    assert np.isnan(init.constant(2, c=float("nan")).numpy()).all()


def test_fans_that_are_small_integers_of_numpy() -> None:
    for initialiser in (init.xavier_uniform, init.kaiming_uniform, init.xavier_normal):
        np.random.seed(0)
        want = initialiser(200, 100).numpy()
        np.random.seed(0)
        got = initialiser(np.uint8(200), np.uint8(100)).numpy()
        assert (got == want).all()
