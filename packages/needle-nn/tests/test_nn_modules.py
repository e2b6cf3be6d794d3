"""Every module against its NumPy loops: values in both dtypes, gradients of every entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import nn_oracles as oracle
import numpy as np
import pytest
from nn_oracles import Params

from needle import Tensor, autograd, nn, optim


@dataclass(frozen=True)
class Case:
    """A module, the shapes of its inputs, and its oracle(params, *inputs).

    `ids` inputs are class or row ids below the given number, and have no gradient; `state` names
    the shapes of a state argument: one Tensor, or a pair.
    """

    name: str
    make: Callable[..., nn.Module]
    oracle: Callable[..., Any]
    shapes: list[tuple[int, ...]]
    ids: dict[int, int] = field(default_factory=dict)
    pair: bool = False
    training: bool = True

    def call(self, module: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
        if self.pair:
            x, h, c = inputs
            return oracle.flat(module(x, (h, c)))
        return oracle.flat(module(*inputs))


def conv_case(name: str, size: int, k: int, stride: int, bias: bool = True) -> Case:
    return Case(
        name,
        lambda **at: nn.Conv(2, 3, k, stride, bias=bias, **at),
        lambda p, x: oracle.conv(x, p["weight"], p.get("bias"), stride, k // 2),
        [(2, 2, size, size + 1)],
    )


def relu(x: oracle.Array) -> oracle.Array:
    return np.where(x > 0, x, 0.0)


def dropped(p: Params, x: oracle.Array) -> oracle.Array:
    return np.where(np.random.rand(*x.shape) <= 1 - 0.3, x / (1 - 0.3), 0.0)


def normed_by_running(p: Params, x: oracle.Array) -> oracle.Array:
    running = p["running_mean"], p["running_var"]
    return oracle.normalized(x, *running, p["weight"], p["bias"], 1e-5)


def rnn_case(name: str, layers: int, bias: bool, nonlinearity: str) -> Case:
    return Case(
        name,
        lambda **at: nn.RNN(3, 4, layers, bias, nonlinearity, **at),
        lambda p, x, h0: oracle.rnn(x, h0, p, nonlinearity == "relu"),
        [(3, 2, 3), (layers, 2, 4)],
    )


def lstm_case(name: str, layers: int, bias: bool) -> Case:
    return Case(
        name,
        lambda **at: nn.LSTM(3, 2, layers, bias, **at),
        lambda p, x, h0, c0: oracle.lstm(x, h0, c0, p),
        [(3, 2, 3), (layers, 2, 2), (layers, 2, 2)],
        pair=True,
    )


def norm(p: Params, x: oracle.Array) -> oracle.Array:
    return oracle.batch_norm(x, p["weight"], p["bias"])


CASES = [
    Case("Identity", nn.Identity, lambda p, x: x, [(2, 3)]),
    Case("Flatten", nn.Flatten, lambda p, x: x.reshape(2, 12), [(2, 3, 2, 2)]),
    Case("Flatten-1d", nn.Flatten, lambda p, x: x.reshape(3, 1), [(3,)]),
    Case("ReLU", nn.ReLU, lambda p, x: relu(x), [(3, 4)]),
    Case("Tanh", nn.Tanh, lambda p, x: np.tanh(x), [(3, 4)]),
    Case("Sigmoid", nn.Sigmoid, lambda p, x: oracle.sigmoid(x), [(3, 4)]),
    Case(
        "Sequential",
        lambda **at: nn.Sequential(nn.Linear(3, 4, **at), nn.Tanh(), nn.Linear(4, 2, **at)),
        lambda p, x: oracle.linear(
            np.tanh(oracle.linear(x, p["modules.0.weight"], p["modules.0.bias"])),
            p["modules.2.weight"],
            p["modules.2.bias"],
        ),
        [(5, 3)],
    ),
    Case("Sequential-empty", nn.Sequential, lambda p, x: x, [(5, 3)]),
    Case(
        "Residual",
        lambda **at: nn.Residual(nn.Linear(3, 3, **at)),
        lambda p, x: oracle.linear(x, p["fn.weight"], p["fn.bias"]) + x,
        [(5, 3)],
    ),
    Case(
        "MaxPool2d",
        lambda **at: nn.MaxPool2d(2, **at),
        lambda p, x: oracle.pool(np.max, x, (2, 2), (2, 2), (0, 0)),
        [(2, 3, 4, 5)],
    ),
    Case(
        "MaxPool2d-overlap-pad-ceil",
        lambda **at: nn.MaxPool2d((3, 2), (2, 1), (1, 0), True, **at),
        lambda p, x: oracle.pool(np.max, x, (3, 2), (2, 1), (1, 0), fill=-np.inf, ceil_mode=True),
        [(2, 2, 4, 3)],
    ),
    Case(
        "AvgPool2d",
        lambda **at: nn.AvgPool2d(2, 1, 1, **at),
        lambda p, x: oracle.pool(np.mean, x, (2, 2), (1, 1), (1, 1)),
        [(2, 3, 3, 4)],
    ),
    Case(
        "AvgPool2d-without-pad-ceil",
        lambda **at: nn.AvgPool2d(2, 3, 1, True, count_include_pad=False, **at),
        lambda p, x: oracle.pool(np.nanmean, x, (2, 2), (3, 3), (1, 1), np.nan, ceil_mode=True),
        [(2, 3, 4, 4)],
    ),
    Case(
        "SoftmaxLoss",
        nn.SoftmaxLoss,
        lambda p, logits, y: oracle.softmax_loss(logits, y),
        [(4, 5), (4,)],
        ids={1: 5},
    ),
    Case(
        "SoftmaxLoss-smoothed",
        lambda **at: nn.SoftmaxLoss(0.2, **at),
        lambda p, logits, y: oracle.softmax_loss(logits, y, 0.2),
        [(4, 5), (4,)],
        ids={1: 5},
    ),
    Case(
        "Linear",
        lambda **at: nn.Linear(3, 4, **at),
        lambda p, x: oracle.linear(x, p["weight"], p["bias"]),
        [(5, 3)],
    ),
    Case(
        "Linear-nobias",
        lambda **at: nn.Linear(3, 1, bias=False, **at),
        lambda p, x: oracle.linear(x, p["weight"]),
        [(5, 3)],
    ),
    Case(
        "Linear-3d",
        lambda **at: nn.Linear(3, 4, **at),
        lambda p, x: oracle.linear(x, p["weight"], p["bias"]),
        [(2, 5, 3)],
    ),
    Case(
        "Linear-1d",
        lambda **at: nn.Linear(3, 4, **at),
        lambda p, x: oracle.linear(x, p["weight"], p["bias"]),
        [(3,)],
    ),
    conv_case("Conv", 4, 3, 1),
    conv_case("Conv-stride", 5, 3, 2),
    conv_case("Conv-1x1", 3, 1, 1),
    conv_case("Conv-even", 4, 2, 1),
    conv_case("Conv-7-stride4-nobias", 6, 7, 4, bias=False),
    Case("BatchNorm1d", lambda **at: nn.BatchNorm1d(3, **at), norm, [(5, 3)]),
    Case(
        "BatchNorm1d-eval",
        lambda **at: nn.BatchNorm1d(3, **at),
        normed_by_running,
        [(5, 3)],
        training=False,
    ),
    Case("BatchNorm2d", lambda **at: nn.BatchNorm2d(3, **at), norm, [(2, 3, 2, 3)]),
    Case(
        "BatchNorm2d-relu",
        lambda **at: nn.BatchNorm2d(3, relu=True, **at),
        lambda p, x: relu(norm(p, x)),
        [(2, 3, 2, 3)],
    ),
    Case(
        "BatchNorm2d-eval",
        lambda **at: nn.BatchNorm2d(3, **at),
        normed_by_running,
        [(2, 3, 2, 3)],
        training=False,
    ),
    Case(
        "BatchNorm2d-eval-relu",
        lambda **at: nn.BatchNorm2d(3, relu=True, **at),
        lambda p, x: relu(normed_by_running(p, x)),
        [(2, 3, 2, 3)],
        training=False,
    ),
    Case(
        "LayerNorm1d",
        lambda **at: nn.LayerNorm1d(5, **at),
        lambda p, x: oracle.layer_norm(x, p["weight"], p["bias"]),
        [(3, 5)],
    ),
    Case(
        "LayerNorm1d-3d",
        lambda **at: nn.LayerNorm1d(5, 1e-3, **at),
        lambda p, x: oracle.layer_norm(x, p["weight"], p["bias"], 1e-3),
        [(2, 2, 5)],
    ),
    Case("Dropout", lambda **at: nn.Dropout(0.3, **at), dropped, [(4, 5)]),
    Case(
        "Dropout-eval", lambda **at: nn.Dropout(0.3, **at), lambda p, x: x, [(4, 5)], training=False
    ),
    Case(
        "Embedding",
        lambda **at: nn.Embedding(4, 3, **at),
        lambda p, x: oracle.embedding(x, p["weight"]),
        [(5, 2)],
        ids={0: 4},
    ),
    Case(
        "RNNCell",
        lambda **at: nn.RNNCell(3, 4, **at),
        lambda p, x, h: oracle.rnn_cell(x, h, p),
        [(2, 3), (2, 4)],
    ),
    Case(
        "RNNCell-relu-nobias",
        lambda **at: nn.RNNCell(3, 4, bias=False, nonlinearity="relu", **at),
        lambda p, x, h: oracle.rnn_cell(x, h, p, relu=True),
        [(2, 3), (2, 4)],
    ),
    Case(
        "LSTMCell",
        lambda **at: nn.LSTMCell(3, 2, **at),
        lambda p, x, h, c: oracle.lstm_cell(x, h, c, p),
        [(2, 3), (2, 2), (2, 2)],
        pair=True,
    ),
    Case(
        "LSTMCell-nobias",
        lambda **at: nn.LSTMCell(3, 2, bias=False, **at),
        lambda p, x, h, c: oracle.lstm_cell(x, h, c, p),
        [(2, 3), (2, 2), (2, 2)],
        pair=True,
    ),
    rnn_case("RNN", 1, True, "tanh"),
    rnn_case("RNN-2-layers", 2, True, "tanh"),
    rnn_case("RNN-relu-nobias", 2, False, "relu"),
    lstm_case("LSTM", 1, True),
    lstm_case("LSTM-2-layers", 2, True),
    lstm_case("LSTM-nobias", 1, False),
]


def test_every_module_has_a_case() -> None:
    modules = {
        name for name in nn.__all__ if issubclass(getattr(nn, name), nn.Module) and name != "Module"
    }
    assert modules == {case.name.split("-")[0] for case in CASES}


def prepared(case: Case, device: Any, dtype: str) -> tuple[nn.Module, Params, list[oracle.Array]]:
    """The module in random state, a float64 copy of its state, and its inputs."""
    module = case.make(device=device, dtype=dtype).train(case.training)
    rng = np.random.default_rng(7)
    state = {
        # Off the defaults of ones and zeros; variances must be positive.
        name: np.abs(rng.normal(size=value.shape)) + 0.5
        if name.endswith("running_var")
        else rng.normal(size=value.shape)
        for name, value in module.state_dict().items()
    }
    state = {name: value.astype(dtype) for name, value in state.items()}
    module.load_state_dict(state)
    inputs = []
    for i, shape in enumerate(case.shapes):
        if i in case.ids:
            inputs.append(rng.integers(0, case.ids[i], shape).astype(dtype))
        else:
            x = rng.normal(size=shape)
            inputs.append((x + np.where(x > 0, 0.1, -0.1)).astype(dtype))  # away from ReLU's kink
    exact = {name: value.astype("float64") for name, value in state.items()}
    return module, exact, inputs


def tensors(case: Case, inputs: list[oracle.Array], device: Any, dtype: str) -> list[Tensor]:
    return [
        Tensor(x, device=device, dtype=dtype, requires_grad=i not in case.ids)
        for i, x in enumerate(inputs)
    ]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_values_match_loops(case: Case, dtype: str, device: Any) -> None:
    module, params, inputs = prepared(case, device, dtype)
    np.random.seed(1)
    outputs = case.call(module, tensors(case, inputs, device, dtype))
    np.random.seed(1)
    wanted = oracle.flat(case.oracle(params, *[x.astype("float64") for x in inputs]))
    assert len(outputs) == len(wanted)
    # Sums here have at most 100 terms of size 1: 100 * 2**-24 = 6e-6, 100 * 2**-53 = 1e-14.
    tolerance = {"float32": 1e-5, "float64": 1e-12}[dtype]
    for i, (got, want) in enumerate(zip(outputs, wanted, strict=True)):
        oracle.check(f"output {i}", got, want, dtype, tolerance, tolerance)
        assert got.device == device


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gradients_match_differences_of_the_loops(case: Case, device: Any) -> None:
    module, params, inputs = prepared(case, device, "float64")
    arguments = tensors(case, inputs, device, "float64")
    np.random.seed(1)
    outputs = case.call(module, arguments)
    seeds = [np.random.default_rng(i).normal(size=out.shape) for i, out in enumerate(outputs)]
    loss = sum(
        (out * Tensor(seed, device=device, dtype="float64", requires_grad=False)).sum()
        for out, seed in zip(outputs, seeds, strict=True)
    )
    loss.backward()

    def oracle_loss() -> float:
        np.random.seed(1)
        wanted = oracle.flat(case.oracle(params, *inputs))
        return float(sum(np.sum(w * s) for w, s in zip(wanted, seeds, strict=True)))

    named = [(n, t, params[n]) for n, t in module.named_parameters()]
    named += [
        (f"input {i}", argument, inputs[i])
        for i, argument in enumerate(arguments)
        if i not in case.ids
    ]
    for name, tensor, values in named:
        want = oracle.numeric_gradient(oracle_loss, values)
        assert tensor.grad is not None, f"{name} got no gradient"
        # The difference of two losses of size 10 has an error of 10 * 2**-53 / 1e-6 = 1e-9.
        oracle.check(f"grad of {name}", tensor.grad, want, "float64", 1e-5, 1e-8)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda **at: nn.Linear(3, 4, **at), (2, 3)),
        (lambda **at: nn.Conv(3, 4, 3, **at), (1, 3, 4, 4)),
        (lambda **at: nn.BatchNorm1d(3, **at), (4, 3)),
        (lambda **at: nn.BatchNorm2d(3, **at).eval(), (4, 3, 1, 2)),
        (lambda **at: nn.LayerNorm1d(3, **at), (4, 3)),
        (lambda **at: nn.RNN(3, 2, **at), (2, 1, 3)),
        (lambda **at: nn.LSTMCell(3, 2, **at), (2, 3)),
        (lambda **at: nn.Dropout(0.0, **at), (2, 3)),
    ],
)
def test_both_float_types_promote_as_in_numpy(make: Any, shape: Any, device: Any) -> None:
    module = make(device=device)
    exact = make(device=device, dtype="float64")
    exact.load_state_dict({n: v.numpy().astype("float64") for n, v in module.state_dict().items()})
    values = np.random.randn(*shape)
    x, y = (Tensor(values, device=device, dtype="float64") for _ in range(2))
    got, want = oracle.flat(module(x))[0], oracle.flat(exact(y))[0]
    assert got.dtype == "float64"
    np.testing.assert_array_equal(got.numpy(), want.numpy())
    got.sum().backward()
    want.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.grad.numpy())
    for (name, p), (_, q) in zip(module.named_parameters(), exact.named_parameters(), strict=True):
        oracle.check(name, p.grad, q.grad.numpy(), "float32", 1e-6, 1e-6)
    for _, tensor in module.named_parameters() + module.named_buffers():
        assert tensor.dtype == "float32"


def test_lazy_mode_gives_the_same(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def train() -> tuple[list[float], dict[str, Any]]:
        np.random.seed(4)
        at = {"device": device}
        model = nn.Sequential(
            nn.Conv(1, 2, 3, **at),
            nn.BatchNorm2d(2, relu=True, **at),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(18, 3, **at),
        )
        opt = optim.Adam(model.parameters(), lr=0.1)
        x = Tensor(np.random.randn(4, 1, 3, 3), dtype="float32", requires_grad=False, **at)
        y = Tensor([0.0, 1.0, 2.0, 0.0], dtype="float32", requires_grad=False, **at)
        losses = []
        for _ in range(3):
            opt.reset_grad()
            loss = nn.SoftmaxLoss()(model(x), y)
            loss.backward()
            opt.clip_grad_norm(0.5)
            opt.step()
            losses.append(loss.item())
        return losses, {name: value.numpy() for name, value in model.state_dict().items()}

    losses, state = train()
    monkeypatch.setattr(autograd, "LAZY_MODE", True)
    lazy_losses, lazy_state = train()
    assert lazy_losses == losses
    for name, value in state.items():
        np.testing.assert_array_equal(lazy_state[name], value)
