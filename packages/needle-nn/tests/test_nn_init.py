"""Construction draws each parameter once, in order, from NumPy's global generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from needle import nn

Draws = dict[str, "np.ndarray[Any, Any]"]


def uniform(bound: float, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.rand(*shape) * (bound + bound) - bound


def kaiming(fan_in: int, *shape: int) -> np.ndarray[Any, Any]:
    return uniform(np.sqrt(2) * np.sqrt(3 / fan_in), *shape)


def cells(list_name: str, gates: int, sizes: list[int], hidden: int, bias: bool) -> Draws:
    bound, width = 1 / np.sqrt(hidden), gates * hidden
    draws: Draws = {}
    for k, size in enumerate(sizes):
        prefix = f"{list_name}.{k}." if list_name else ""
        draws[prefix + "W_ih"] = uniform(bound, size, width)
        draws[prefix + "W_hh"] = uniform(bound, hidden, width)
        if bias:
            draws[prefix + "bias_ih"] = uniform(bound, width)
            draws[prefix + "bias_hh"] = uniform(bound, width)
    return draws


def linear(prefix: str, size_in: int, size_out: int) -> Draws:
    return {
        prefix + "weight": kaiming(size_in, size_in, size_out),
        prefix + "bias": kaiming(size_out, size_out, 1).T,
    }


def norm_state(prefix: str, dim: int) -> Draws:
    return {
        prefix + "weight": np.ones(dim),
        prefix + "bias": np.zeros(dim),
        prefix + "running_mean": np.zeros(dim),
        prefix + "running_var": np.ones(dim),
    }


CASES: list[tuple[str, Callable[..., nn.Module], Callable[[], Draws]]] = [
    ("Linear", lambda **at: nn.Linear(5, 7, **at), lambda: linear("", 5, 7)),
    (
        "Linear-nobias",
        lambda **at: nn.Linear(5, 7, bias=False, **at),
        lambda: {"weight": kaiming(5, 5, 7)},
    ),
    (
        "Conv",
        lambda **at: nn.Conv(3, 4, 5, **at),
        lambda: {
            "weight": kaiming(3 * 25, 5, 5, 3, 4),
            "bias": uniform(1 / np.sqrt(3 * 25), 4),
        },
    ),
    (
        "Conv-nobias",
        lambda **at: nn.Conv(3, 4, 3, bias=False, **at),
        lambda: {"weight": kaiming(3 * 9, 3, 3, 3, 4)},
    ),
    (
        "Embedding",
        lambda **at: nn.Embedding(6, 3, **at),
        lambda: {"weight": np.random.randn(6, 3)},
    ),
    ("RNNCell", lambda **at: nn.RNNCell(3, 4, **at), lambda: cells("", 1, [3], 4, True)),
    (
        "RNNCell-nobias",
        lambda **at: nn.RNNCell(3, 4, bias=False, **at),
        lambda: cells("", 1, [3], 4, False),
    ),
    ("LSTMCell", lambda **at: nn.LSTMCell(3, 4, **at), lambda: cells("", 4, [3], 4, True)),
    ("RNN", lambda **at: nn.RNN(3, 4, 3, **at), lambda: cells("rnn_cells", 1, [3, 4, 4], 4, True)),
    ("LSTM", lambda **at: nn.LSTM(3, 4, 2, **at), lambda: cells("lstm_cells", 4, [3, 4], 4, True)),
    ("BatchNorm1d", lambda **at: nn.BatchNorm1d(3, **at), lambda: norm_state("", 3)),
    ("BatchNorm2d", lambda **at: nn.BatchNorm2d(3, **at), lambda: norm_state("", 3)),
    (
        "LayerNorm1d",
        lambda **at: nn.LayerNorm1d(3, **at),
        lambda: {"weight": np.ones(3), "bias": np.zeros(3)},
    ),
    (
        "Sequential",
        lambda **at: nn.Sequential(
            nn.Linear(3, 4, **at), nn.BatchNorm1d(4, **at), nn.ReLU(), nn.Linear(4, 2, **at)
        ),
        lambda: (
            linear("modules.0.", 3, 4) | norm_state("modules.1.", 4) | linear("modules.3.", 4, 2)
        ),
    ),
    ("Dropout", lambda **at: nn.Dropout(0.5, **at), dict),
    ("SoftmaxLoss", nn.SoftmaxLoss, dict),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("make", "draw"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_parameters_are_the_draws_of_the_seed(
    make: Callable[..., nn.Module], draw: Callable[[], Draws], dtype: str, device: Any
) -> None:
    np.random.seed(3)
    state = make(device=device, dtype=dtype).state_dict()
    after = np.random.rand()
    np.random.seed(3)
    wanted = draw()
    assert np.random.rand() == after  # nothing else was drawn
    assert list(state) == list(wanted)
    for name, want in wanted.items():
        got = state[name]
        assert tuple(got.shape) == want.shape
        assert got.dtype == dtype
        assert got.device == device
        # One rounding to the dtype, and one more for the order in which the bounds are applied.
        np.testing.assert_allclose(got.numpy(), want, rtol=4 * np.finfo(dtype).eps)


def test_seed_gives_the_same_float32_values_on_every_device(device: Any) -> None:
    np.random.seed(5)
    here = nn.LSTM(3, 4, device=device).state_dict()
    np.random.seed(5)
    default = nn.LSTM(3, 4).state_dict()
    for name, value in default.items():
        assert_array_equal(here[name].numpy(), value.numpy())


def test_parameter_requires_grad_and_is_a_leaf(device: Any) -> None:
    for parameter in nn.Sequential(nn.Linear(3, 4, device=device), nn.Conv(1, 2, 3)).parameters():
        assert isinstance(parameter, nn.Parameter)
        assert parameter.requires_grad
        assert parameter.is_leaf()
        assert parameter.grad is None


def test_absent_bias_is_none() -> None:
    assert nn.Linear(2, 3, bias=False).bias is None
    assert nn.Conv(2, 3, 1, bias=False).bias is None
    for cell in (nn.RNNCell(2, 3, bias=False), nn.LSTM(2, 3, bias=False).lstm_cells[0]):
        assert cell.bias_ih is None
        assert cell.bias_hh is None


def test_defaults_are_float32_on_the_default_device() -> None:
    layers = [nn.Linear(2, 3), nn.Conv(1, 2, 3), nn.Embedding(3, 2), nn.RNN(2, 3), nn.LSTM(2, 3)]
    layers.append(nn.Linear(2, 3, dtype=None))
    for layer in [*layers, nn.BatchNorm1d(3), nn.BatchNorm2d(3), nn.LayerNorm1d(3)]:
        for parameter in layer.parameters():
            assert parameter.dtype == "float32"


def test_sizes_may_be_numpy_integers_and_kernels_tuples() -> None:
    assert nn.Linear(np.int64(3), np.int32(4)).weight.shape == (3, 4)
    conv = nn.Conv(1, 2, (3, 3), (2, 2))
    assert (conv.kernel_size, conv.stride, conv.padding) == (3, 2, 1)


def test_sizes_that_are_small_integers_of_numpy() -> None:
    small = np.uint8
    for make in (
        lambda n: nn.Conv(n(64), n(128), n(3)),
        lambda n: nn.LSTM(n(3), n(64)),
        lambda n: nn.RNN(n(3), n(200)),
        lambda n: nn.Linear(n(200), n(100)),
    ):
        np.random.seed(0)
        want = [p.numpy() for p in make(int).parameters()]
        np.random.seed(0)
        got = [p.numpy() for p in make(small).parameters()]
        for mine, theirs in zip(got, want, strict=True):
            assert_array_equal(mine, theirs)
