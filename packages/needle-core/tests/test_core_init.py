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
        (lambda: init.zeros(1.5), TypeError, "constant: not integers"),
        (lambda: init.ones(2, dtype="float16"), DTypeError, "got float16"),
        (lambda: init.randn(2, device="cpu"), DeviceError, "randn: not a device: got 'cpu'"),
        (lambda: init.kaiming_uniform(0, 3), ShapeError, "got fan_in 0, fan_out 3: need both >= 1"),
        (
            lambda: init.xavier_normal(1, 1, shape=(3,)),
            ShapeError,
            r"too few axes: got shape \(3,\)",
        ),
        (
            lambda: init.kaiming_normal(1, 1, nonlinearity="tanh"),
            ValueError,
            "kaiming_normal: unknown nonlinearity: got 'tanh'",
        ),
    ):
        with pytest.raises(error, match=text):
            call()


def test_fans_that_are_small_integers_of_numpy() -> None:
    for initialiser in (init.xavier_uniform, init.kaiming_uniform, init.xavier_normal):
        np.random.seed(0)
        want = initialiser(200, 100).numpy()
        np.random.seed(0)
        got = initialiser(np.uint8(200), np.uint8(100)).numpy()
        assert (got == want).all()
