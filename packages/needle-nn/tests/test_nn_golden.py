"""Ten steps of two small networks, against a second implementation that is NumPy loops alone.

The oracle's gradients are central differences of its own loss, so nothing is shared with needle
but the draws of the seed. The losses are also written down: a change of any number shows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import nn_oracles as oracle
import numpy as np
from nn_oracles import Array, Params
from numpy.testing import assert_allclose

from needle import Tensor, cpu_numpy, nn, optim

STEPS = 10


def gradients(
    loss: Callable[..., Array], params: Params, names: list[str], *inputs: Array
) -> Params:
    def value() -> float:
        return float(loss(params, *inputs))

    return {name: oracle.numeric_gradient(value, params[name]) for name in names}


class ImageNet3(nn.Module):
    """Conv, BatchNorm2d with ReLU, residual Conv, Flatten, Linear."""

    def __init__(self, device: Any) -> None:
        at = {"device": device, "dtype": "float64"}
        self.conv = nn.Conv(1, 2, 3, 2, **at)
        self.norm = nn.BatchNorm2d(2, relu=True, **at)
        self.block = nn.Residual(nn.Conv(2, 2, 3, **at))
        self.flatten = nn.Flatten()
        self.head = nn.Linear(8, 3, **at)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flatten(self.block(self.norm(self.conv(x)))))


def image_loss(p: Params, x: Array, y: Array) -> Array:
    h = oracle.conv(x, p["conv.weight"], p["conv.bias"], 2, 1)
    h = oracle.batch_norm(h, p["norm.weight"], p["norm.bias"])
    h = np.where(h > 0, h, 0.0)
    h = h + oracle.conv(h, p["block.fn.weight"], p["block.fn.bias"], 1, 1)
    h = h.reshape(len(x), -1)
    return oracle.softmax_loss(oracle.linear(h, p["head.weight"], p["head.bias"]), y)


IMAGE_LOSSES = [
    1.372472730684,
    0.995983272417,
    0.803099585597,
    0.686203789734,
    0.598546069900,
    0.506813912905,
    0.412018782955,
    0.327304954022,
    0.258984932770,
    0.203768740068,
]


def begin_images(device: Any) -> tuple[nn.Module, Array, Array]:
    """The network, images and labels."""
    np.random.seed(11)
    model = ImageNet3(device)
    return model, np.random.randn(4, 1, 4, 4), np.random.randint(0, 3, 4).astype("float64")


@cache
def oracle_image_losses() -> list[float]:
    model, x, y = begin_images(cpu_numpy())
    params = {name: value.numpy() for name, value in model.state_dict().items()}
    trained = [name for name, _ in model.named_parameters()]
    m = {name: np.zeros(params[name].shape) for name in trained}
    v = {name: np.zeros(params[name].shape) for name in trained}
    losses = []
    for t in range(1, STEPS + 1):
        losses.append(float(image_loss(params, x, y)))
        grads = gradients(image_loss, params, trained, x, y)
        for n in trained:
            params[n], m[n], v[n] = oracle.adam(
                params[n], m[n], v[n], grads[n], t, 0.05, 0.9, 0.999, 1e-8, 0.01
            )
    return losses


def test_image_network_with_adam(device: Any) -> None:
    model, x, y = begin_images(device)
    opt = optim.Adam(model.parameters(), lr=0.05, weight_decay=0.01)
    losses = []
    for _ in range(STEPS):
        opt.reset_grad()
        loss = nn.SoftmaxLoss()(
            model(Tensor(x, device=device, dtype="float64")),
            Tensor(y, device=device, dtype="float64"),
        )
        loss.backward(retain_graph=False)
        opt.step()
        losses.append(loss.item())
    # Adam divides small gradients by themselves, which lifts the differences' error of 1e-9.
    assert_allclose(losses, oracle_image_losses(), rtol=1e-5)
    assert_allclose(losses, IMAGE_LOSSES, rtol=1e-7)
    assert losses[-1] < losses[0] / 2


class WordModel(nn.Module):
    """Embedding, LSTM of two layers, Linear."""

    def __init__(self, device: Any) -> None:
        at = {"device": device, "dtype": "float64"}
        self.embedding = nn.Embedding(4, 2, **at)
        self.lstm = nn.LSTM(2, 3, 2, **at)
        self.head = nn.Linear(3, 4, **at)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        output, state = self.lstm(self.embedding(x), state)
        return self.head(output.reshape((-1, 3))), state


def word_step(p: Params, ids: Array, y: Array, h: Array, c: Array) -> tuple[Array, Array, Array]:
    x = oracle.embedding(ids, p["embedding.weight"])
    cells = {n.removeprefix("lstm."): value for n, value in p.items()}
    output, h, c = oracle.lstm(x, h, c, cells)
    logits = oracle.linear(output.reshape(-1, 3), p["head.weight"], p["head.bias"])
    return oracle.softmax_loss(logits, y), h, c


def word_loss(p: Params, ids: Array, y: Array, h: Array, c: Array) -> Array:
    return word_step(p, ids, y, h, c)[0]


WORD_LOSSES = [
    1.633540109179,
    1.349485434072,
    1.172152422312,
    1.228538627984,
    1.614756706652,
    2.046670888216,
    1.611618414376,
    1.394562412614,
    1.350835030251,
    1.502369085352,
]


def begin_words(device: Any) -> tuple[nn.Module, list[tuple[Array, Array]]]:
    """The network, and each step's words and those that follow them."""
    np.random.seed(12)
    model = WordModel(device)
    text = np.random.randint(0, 4, (2 * STEPS + 1, 2)).astype("float64")
    starts = range(0, 2 * STEPS, 2)
    return model, [(text[t : t + 2], text[t + 1 : t + 3].reshape(-1)) for t in starts]


@cache
def oracle_word_losses() -> tuple[list[float], list[float]]:
    """Losses, and the norms of the gradients."""
    model, steps = begin_words(cpu_numpy())
    params = {name: value.numpy() for name, value in model.state_dict().items()}
    u = {name: np.zeros(value.shape) for name, value in params.items()}
    h, c = np.zeros((2, 2, 3)), np.zeros((2, 2, 3))
    losses, norms = [], []
    for ids, y in steps:
        value, h_next, c_next = word_step(params, ids, y, h, c)
        grads = gradients(word_loss, params, list(params), ids, y, h, c)
        norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
        losses.append(float(value))
        norms.append(float(norm))
        scale = min(1.0, 0.25 / (norm + 1e-6))
        for n in params:
            params[n], u[n] = oracle.sgd(params[n], u[n], grads[n] * scale, 2.0, 0.3, 0.001)
        h, c = h_next, c_next
    return losses, norms


def test_word_network_with_clipped_sgd_and_carried_state(device: Any) -> None:
    model, steps = begin_words(device)
    opt = optim.SGD(model.parameters(), lr=2.0, momentum=0.3, weight_decay=0.001)
    state, losses, norms = None, [], []
    for ids, y in steps:
        opt.reset_grad()
        logits, state = model(Tensor(ids, device=device, dtype="float64"), state)
        state = tuple(part.detach() for part in state)
        loss = nn.SoftmaxLoss()(logits, Tensor(y, device=device, dtype="float64"))
        loss.backward(retain_graph=False)
        norms.append(opt.clip_grad_norm(0.25))
        opt.step()
        losses.append(loss.item())
    wanted, wanted_norms = oracle_word_losses()
    assert_allclose(norms, wanted_norms, rtol=1e-6)
    assert_allclose(losses, wanted, rtol=1e-6)
    assert_allclose(losses, WORD_LOSSES, rtol=1e-9)
