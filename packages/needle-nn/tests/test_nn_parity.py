"""Modules and optimizers against PyTorch, in float32: `hatch run parity:test`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nn_oracles as oracle
import numpy as np
import pytest

import needle as ndl
from needle import Tensor, nn, optim

torch = pytest.importorskip("torch", reason="PyTorch is not installed: run `hatch run parity:test`")
pytestmark = pytest.mark.parity

ATOL = 1e-5


def close(name: str, got: Any, want: Any, scale: float = 1.0) -> None:
    oracle.check(name, got, want.detach().numpy(), "float32", ATOL, ATOL * scale)


def recurrent_state(module: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    """needle's names and layouts to PyTorch's: W (in, out) to weight (out, in)."""
    state = {}
    for name, value in module.state_dict().items():
        *layer, part = name.split(".")
        torch_name = part.replace("W_", "weight_") + (f"_l{layer[1]}" if layer else "")
        state[torch_name] = value.numpy().T if part.startswith("W_") else value.numpy()
    return state


def layer_state(module: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    """weight (in, out) to (out, in), (K, K, in, out) to (out, in, K, K); others as they are."""
    state = {}
    for name, value in module.state_dict().items():
        array = value.numpy()
        if isinstance(module, nn.Linear):
            array = array.T if name == "weight" else array[0]
        if isinstance(module, nn.Conv) and name == "weight":
            array = array.transpose(3, 2, 0, 1)
        state[name] = array
    return state


@dataclass(frozen=True)
class Pair:
    """A module of needle's, PyTorch's module, how the state translates, and the inputs."""

    name: str
    ours: Callable[[], nn.Module]
    theirs: Callable[[], Any]
    shapes: list[tuple[int, ...]]
    state: Callable[[nn.Module], dict[str, np.ndarray[Any, Any]]] = layer_state


PAIRS = [
    Pair("Linear", lambda: nn.Linear(20, 30), lambda: torch.nn.Linear(20, 30), [(8, 20)]),
    Pair("Linear-3d", lambda: nn.Linear(20, 30), lambda: torch.nn.Linear(20, 30), [(3, 8, 20)]),
    *[
        Pair(
            f"Conv-{k}-{s}",
            lambda k=k, s=s: nn.Conv(5, 6, k, s),
            lambda k=k, s=s: torch.nn.Conv2d(5, 6, k, s, padding=k // 2),
            [(3, 5, 11, 12)],
        )
        for k, s in [(1, 1), (3, 1), (3, 2), (5, 3), (7, 4), (2, 1)]
    ],
    *[
        Pair(
            f"{name}-{size}",
            lambda name=name, size=size: getattr(nn, name)(*size),
            lambda name=name, size=size: getattr(torch.nn, name)(
                *size[:3], **({"ceil_mode": size[3]} if len(size) > 3 else {})
            ),
            [(3, 5, 11, 12)],
        )
        for name in ("MaxPool2d", "AvgPool2d")
        for size in [(2,), (3, 2, 1), ((3, 2), (2, 3), (1, 0)), (2, 2, 0, True), (3, 4, 1, True)]
    ],
    Pair(
        "AvgPool2d-without-pad",
        lambda: nn.AvgPool2d(3, 2, 1, True, False),
        lambda: torch.nn.AvgPool2d(3, 2, 1, True, False),
        [(3, 5, 11, 12)],
    ),
    Pair("BatchNorm1d", lambda: nn.BatchNorm1d(6), lambda: torch.nn.BatchNorm1d(6), [(9, 6)]),
    Pair("BatchNorm2d", lambda: nn.BatchNorm2d(6), lambda: torch.nn.BatchNorm2d(6), [(4, 6, 5, 3)]),
    Pair("LayerNorm1d", lambda: nn.LayerNorm1d(20), lambda: torch.nn.LayerNorm(20), [(7, 20)]),
    Pair(
        "LayerNorm1d-3d", lambda: nn.LayerNorm1d(20), lambda: torch.nn.LayerNorm(20), [(3, 7, 20)]
    ),
    Pair("ReLU", nn.ReLU, torch.nn.ReLU, [(7, 20)]),
    Pair("Tanh", nn.Tanh, torch.nn.Tanh, [(7, 20)]),
    Pair("Sigmoid", nn.Sigmoid, torch.nn.Sigmoid, [(7, 20)]),
    Pair("Flatten", nn.Flatten, torch.nn.Flatten, [(7, 4, 5)]),
    Pair(
        "RNNCell",
        lambda: nn.RNNCell(10, 12),
        lambda: torch.nn.RNNCell(10, 12),
        [(5, 10), (5, 12)],
        recurrent_state,
    ),
    *[
        Pair(
            f"RNN-{kind}-{layers}-{bias}",
            lambda kind=kind, layers=layers, bias=bias: nn.RNN(10, 12, layers, bias, kind),
            lambda kind=kind, layers=layers, bias=bias: torch.nn.RNN(
                10, 12, layers, nonlinearity=kind, bias=bias
            ),
            [(6, 5, 10), (layers, 5, 12)],
            recurrent_state,
        )
        for kind, layers, bias in [("tanh", 1, True), ("relu", 2, True), ("tanh", 2, False)]
    ],
    Pair(
        "LSTMCell",
        lambda: nn.LSTMCell(10, 12),
        lambda: torch.nn.LSTMCell(10, 12),
        [(5, 10), (5, 12), (5, 12)],
        recurrent_state,
    ),
    *[
        Pair(
            f"LSTM-{layers}-{bias}",
            lambda layers=layers, bias=bias: nn.LSTM(10, 12, layers, bias),
            lambda layers=layers, bias=bias: torch.nn.LSTM(10, 12, layers, bias),
            [(6, 5, 10), (layers, 5, 12), (layers, 5, 12)],
            recurrent_state,
        )
        for layers, bias in [(1, True), (2, True), (2, False)]
    ],
]


def both(pair: Pair) -> tuple[nn.Module, Any]:
    ours, theirs = pair.ours(), pair.theirs()
    load(theirs, pair.state(ours))
    return ours, theirs


def load(theirs: Any, state: dict[str, np.ndarray[Any, Any]]) -> None:
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    theirs.load_state_dict(tensors, strict=not hasattr(theirs, "num_batches_tracked"))


def gradient_state(module: nn.Module, pair: Pair) -> dict[str, np.ndarray[Any, Any]]:
    """The gradients under PyTorch's names: a twin holds them as its values."""
    twin = pair.ours()
    for (_, p), (_, q) in zip(module.named_parameters(), twin.named_parameters(), strict=True):
        assert p.grad is not None
        q.data = p.grad.detach()
    return pair.state(twin)


def call(module: Any, inputs: list[Any]) -> list[Any]:
    return oracle.flat(
        module(inputs[0], tuple(inputs[1:])) if len(inputs) == 3 else module(*inputs)
    )


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_values_and_gradients(pair: Pair) -> None:
    ours, theirs = both(pair)
    arrays = [np.random.randn(*shape).astype("float32") for shape in pair.shapes]
    our_inputs = [Tensor(x, dtype="float32") for x in arrays]
    their_inputs = [torch.from_numpy(x).requires_grad_() for x in arrays]
    our_outputs, their_outputs = call(ours, our_inputs), call(theirs, their_inputs)
    our_loss, their_loss = 0.0, 0.0
    for i, (got, want) in enumerate(zip(our_outputs, their_outputs, strict=True)):
        close(f"output {i}", got, want)
        seed = np.random.randn(*got.shape).astype("float32")
        our_loss = (got * Tensor(seed, dtype="float32")).sum() + our_loss
        their_loss = (want * torch.from_numpy(seed)).sum() + their_loss
    our_loss.backward()
    their_loss.backward()
    for i, (x, t) in enumerate(zip(our_inputs, their_inputs, strict=True)):
        close(f"grad of input {i}", x.grad, t.grad)
    gradients = gradient_state(ours, pair)
    for name, parameter in theirs.named_parameters():
        # A weight's gradient sums up to 400 products of size 1, and is itself of that size.
        want = parameter.grad.numpy()
        np.testing.assert_allclose(gradients[name], want, rtol=ATOL, atol=5 * ATOL, err_msg=name)


def test_batch_norm_running_statistics() -> None:
    ours, theirs = nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    shape = (4, 3, 5, 5)
    for _ in range(3):
        x = np.random.randn(*shape).astype("float32") * 2 + 1
        before = theirs.running_var.clone()
        close("y", ours(Tensor(x, dtype="float32")), theirs(torch.from_numpy(x)))
        close("running_mean", ours.running_mean, theirs.running_mean)
        # PyTorch's running variance is the unbiased one: n / (n - 1) times ours.
        n = 4 * 5 * 5
        step = (theirs.running_var - 0.9 * before) * (n - 1) / n
        theirs.running_var.copy_(0.9 * before + step)
        close("running_var", ours.running_var, theirs.running_var)
    x = np.random.randn(*shape).astype("float32")
    ours.eval()
    theirs.eval()
    close("y in evaluation", ours(Tensor(x, dtype="float32")), theirs(torch.from_numpy(x)))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_softmax_loss_and_embedding(smoothing: float) -> None:
    ours, theirs = nn.Embedding(11, 7), torch.nn.Embedding(11, 7)
    load(theirs, layer_state(ours))
    ids = np.random.randint(0, 11, (6, 5))
    labels = np.random.randint(0, 7, 30)
    logits = ours(Tensor(ids, dtype="float32")).reshape((30, 7)) * 4.0
    loss = nn.SoftmaxLoss(smoothing)(logits, Tensor(labels, dtype="float32"))
    their_logits = theirs(torch.from_numpy(ids)).reshape(30, 7) * 4.0
    their_loss = torch.nn.functional.cross_entropy(
        their_logits, torch.from_numpy(labels), label_smoothing=smoothing
    )
    close("loss", loss, their_loss)
    loss.backward()
    their_loss.backward()
    close("grad", ours.weight.grad, theirs.weight.grad)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_optimizers(decay: float) -> None:
    """PyTorch's SGD with momentum is ours at lr / (1 - momentum), from the second step's u on."""
    start = np.random.randn(5, 4).astype("float32")
    kinds = [
        (
            lambda p: optim.Adam(p, 0.05, 0.8, 0.95, 1e-6, decay),
            lambda p: torch.optim.Adam(p, 0.05, (0.8, 0.95), 1e-6, decay),
        ),
        (
            lambda p: optim.SGD(p, 0.1, weight_decay=decay),
            lambda p: torch.optim.SGD(p, 0.1, weight_decay=decay),
        ),
        (
            lambda p: optim.SGD(p, 0.1, 0.9, decay),
            lambda p: torch.optim.SGD(p, 0.01, 0.9, weight_decay=decay),
        ),
        (
            lambda p: optim.SGD(p, 0.1, 0.9, decay, nesterov=True),
            lambda p: torch.optim.SGD(p, 0.01, 0.9, weight_decay=decay, nesterov=True),
        ),
    ]
    for make_ours, make_theirs in kinds:
        ours = nn.Parameter(start, dtype="float32")
        theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
        our_opt, their_opt = make_ours([ours]), make_theirs([theirs])
        for _ in range(10):
            grad = np.random.randn(5, 4).astype("float32")
            ours.grad = Tensor(grad, dtype="float32")
            theirs.grad = torch.from_numpy(grad.copy())
            norm = our_opt.clip_grad_norm(2.0)
            want = torch.nn.utils.clip_grad_norm_([theirs], 2.0)
            assert norm == pytest.approx(float(want), rel=1e-5)
            close("clipped", ours.grad, theirs.grad)
            our_opt.step()
            their_opt.step()
            close("w", ours, theirs)


def test_ten_steps_of_a_convolutional_network() -> None:
    ours = nn.Sequential(
        nn.Conv(3, 8, 3, 2),
        nn.BatchNorm2d(8, relu=True),
        nn.Residual(nn.Sequential(nn.Conv(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())),
        nn.Flatten(),
        nn.Linear(8 * 16, 10),
    )

    class Residual(torch.nn.Module):
        def __init__(self, fn: Any) -> None:
            super().__init__()
            self.fn = fn

        def forward(self, x: Any) -> Any:
            return self.fn(x) + x

    block = [torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU()]
    layers = [torch.nn.Conv2d(3, 8, 3, 2, padding=1), torch.nn.BatchNorm2d(8)]
    head = torch.nn.Linear(8 * 16, 10)
    residual = ours.modules[2].fn
    twins = [(ours.modules[0], layers[0]), (ours.modules[1], layers[1]), (ours.modules[4], head)]
    twins += [(residual.modules[0], block[0]), (residual.modules[1], block[1])]
    for module, theirs in twins:
        load(theirs, layer_state(module))
    network = torch.nn.Sequential(
        *layers, torch.nn.ReLU(), Residual(torch.nn.Sequential(*block)), torch.nn.Flatten(), head
    )
    our_opt = optim.Adam(ours.parameters(), lr=1e-3, weight_decay=1e-3)
    their_opt = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=1e-3)
    x = np.random.rand(16, 3, 8, 8).astype("float32")
    y = np.random.randint(0, 10, 16)
    for _ in range(10):
        our_opt.reset_grad()
        loss = nn.SoftmaxLoss()(ours(Tensor(x, dtype="float32")), Tensor(y, dtype="float32"))
        loss.backward(retain_graph=False)
        our_opt.step()
        their_opt.zero_grad()
        want = torch.nn.functional.cross_entropy(network(torch.from_numpy(x)), torch.from_numpy(y))
        want.backward()
        their_opt.step()
        # Adam's first steps are lr * sign(grad): tiny gradients may differ in sign, hence 1e-4.
        assert loss.item() == pytest.approx(want.item(), abs=1e-4)


def test_ten_steps_of_a_language_model() -> None:
    embedding, lstm, head = nn.Embedding(20, 8), nn.LSTM(8, 9, 2), nn.Linear(9, 20)
    theirs = [torch.nn.Embedding(20, 8), torch.nn.LSTM(8, 9, 2), torch.nn.Linear(9, 20)]
    load(theirs[0], layer_state(embedding))
    load(theirs[1], recurrent_state(lstm))
    load(theirs[2], layer_state(head))
    ours = embedding.parameters() + lstm.parameters() + head.parameters()
    our_opt = optim.SGD(ours, lr=1.0)
    parameters = [p for module in theirs for p in module.parameters()]
    their_opt = torch.optim.SGD(parameters, lr=1.0)
    state, their_state = None, None
    for _ in range(10):
        ids, y = np.random.randint(0, 20, (7, 4)), np.random.randint(0, 20, 28)
        our_opt.reset_grad()
        output, state = lstm(embedding(Tensor(ids, dtype="float32")), state)
        state = tuple(part.detach() for part in state)
        loss = nn.SoftmaxLoss()(head(output.reshape((28, 9))), Tensor(y, dtype="float32"))
        loss.backward(retain_graph=False)
        our_opt.clip_grad_norm(0.25)
        our_opt.step()
        their_opt.zero_grad()
        output, their_state = theirs[1](theirs[0](torch.from_numpy(ids)), their_state)
        their_state = tuple(part.detach() for part in their_state)
        logits = theirs[2](output.reshape(28, 9))
        want = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y))
        want.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.25)
        their_opt.step()
        assert loss.item() == pytest.approx(want.item(), abs=ATOL)


@pytest.mark.skipif(ndl.cpu() == ndl.cpu_numpy(), reason="NEEDLE_BACKEND=np: one device only")
def test_the_reference_device_agrees_too() -> None:
    """One network on cpu_numpy(): the loops of the other tests cover its modules one by one."""
    at = {"device": ndl.cpu_numpy()}
    ours, theirs = nn.LSTM(10, 12, 2, **at), torch.nn.LSTM(10, 12, 2)
    load(theirs, recurrent_state(ours))
    x = np.random.randn(6, 5, 10).astype("float32")
    got = oracle.flat(ours(Tensor(x, dtype="float32", **at)))
    for i, want in enumerate(oracle.flat(theirs(torch.from_numpy(x)))):
        close(f"output {i}", got[i], want)
