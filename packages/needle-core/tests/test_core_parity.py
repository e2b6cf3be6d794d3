"""Operations against PyTorch, kinks and singular points too: `hatch run parity:test`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from needle import Tensor, ops

torch = pytest.importorskip("torch", reason="PyTorch is not installed: run `hatch run parity:test`")
pytestmark = pytest.mark.parity

KINKS = [-2.0, -1.0, 0.0, 0.0, 1.0, 1.0, 2.0, 3.0]
EXPONENTS = [2.0, 3.0, 0.0, 1.0, 0.0, 2.0, -1.0, 0.5]
GRID = np.array(KINKS).reshape(2, 4)

# name, needle, PyTorch, inputs
PAIRS: list[tuple[str, Callable[..., Any], Callable[..., Any], list[Any]]] = [
    ("relu", ops.relu, torch.relu, [KINKS]),
    ("maximum", ops.maximum, torch.maximum, [KINKS, [0.0] * 4 + [1.0] * 4]),
    ("max", lambda x: ops.max(x, 1), lambda x: x.amax(1), [GRID]),
    ("max-all", ops.max, torch.amax, [[3.0, 1.0, 3.0]]),
    ("power", ops.power, torch.pow, [KINKS, EXPONENTS]),
    ("power-0", lambda x: x**0, lambda x: x**0, [KINKS]),
    ("power-1", lambda x: x**1, lambda x: x**1, [KINKS]),
    ("power-2", lambda x: x**2, lambda x: x**2, [KINKS]),
    ("0-power", lambda x: 0**x, lambda x: 0**x, [[1.0, 2.0, 0.5]]),
    ("2-power", lambda x: 2**x, lambda x: 2**x, [KINKS]),
    ("sqrt", ops.sqrt, torch.sqrt, [[0.0, 1.0, 4.0]]),
    ("log", ops.log, torch.log, [[0.0, 1.0, 4.0]]),
    ("sigmoid", ops.sigmoid, torch.sigmoid, [[-800.0, -1.0, 0.0, 800.0]]),
    ("tanh", ops.tanh, torch.tanh, [[-800.0, -1.0, 0.0, 800.0]]),
    ("softmax", ops.softmax, lambda x: torch.softmax(x, -1), [GRID * 300]),
    ("logsoftmax", ops.logsoftmax, lambda x: torch.log_softmax(x, -1), [GRID * 300]),
    ("logsumexp", lambda x: ops.logsumexp(x, 0), lambda x: torch.logsumexp(x, 0), [GRID * 300]),
    (
        "cross-entropy",
        lambda x: ops.softmax_cross_entropy(x, Tensor([3.0, 0.0])),
        lambda x: torch.nn.functional.cross_entropy(x, torch.tensor([3, 0])),
        [GRID],
    ),
    (
        "cross-entropy-smoothed",
        lambda x: ops.softmax_cross_entropy(x, Tensor([3.0, 0.0]), 0.2),
        lambda x: torch.nn.functional.cross_entropy(x, torch.tensor([3, 0]), label_smoothing=0.2),
        [GRID],
    ),
    (
        "conv",
        lambda x, w: ops.conv(x, w, 2, 1),
        lambda x, w: torch.conv2d(
            x.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1), stride=2, padding=1
        ).permute(0, 2, 3, 1),
        [np.sin(np.arange(98.0)).reshape(1, 7, 7, 2), np.cos(np.arange(54.0)).reshape(3, 3, 2, 3)],
    ),
    (
        "max-pool-ties",
        lambda x: ops.max_pool(x, 2, 1, 1),
        lambda x: torch.max_pool2d(x.permute(0, 3, 1, 2), 2, 1, 1).permute(0, 2, 3, 1),
        [GRID.reshape(1, 2, 4, 1)],
    ),
    (
        "layer-norm",
        ops.layer_norm,
        lambda x, w, b: torch.nn.functional.layer_norm(x, (4,), w, b),
        [GRID, KINKS[:4], KINKS[4:]],
    ),
    (
        "batch-norm",
        lambda x, w, b: ops.batch_norm(x, w, b)[0],
        lambda x, w, b: torch.nn.functional.batch_norm(x, None, None, w, b, training=True),
        [np.sin(np.arange(12.0)).reshape(3, 4), KINKS[:4], KINKS[4:]],
    ),
]


@pytest.mark.parametrize(("f", "g", "inputs"), [p[1:] for p in PAIRS], ids=[p[0] for p in PAIRS])
def test_values_and_gradients(f: Any, g: Any, inputs: list[Any]) -> None:
    ours = [Tensor(np.array(x), dtype="float64") for x in inputs]
    theirs = [torch.tensor(np.array(x), dtype=torch.float64, requires_grad=True) for x in inputs]
    got, want = f(*ours), g(*theirs)
    weight = np.cos(np.arange(got.size)).reshape(got.shape)
    np.testing.assert_allclose(got.numpy(), want.detach().numpy(), rtol=1e-10, atol=1e-12)
    got.backward(Tensor(weight, dtype="float64"))
    want.backward(torch.tensor(weight))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-9, atol=1e-12)


def test_lstm_values_and_gradients() -> None:
    np.random.seed(0)
    twin = torch.nn.LSTM(3, 4).double()
    x, h, c = np.random.randn(5, 2, 3), np.random.randn(1, 2, 4), np.random.randn(1, 2, 4)
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, h, c)]
    output, (h_n, c_n) = twin(theirs[0], (theirs[1], theirs[2]))
    (output.sin().sum() + (h_n * 2).sum() + (c_n * 3).sum()).backward()
    arrays = [p.detach().numpy() for p in twin.parameters()]
    ours = [
        Tensor(a, dtype="float64") for a in (x, h[0], c[0], arrays[0].T, arrays[1].T, *arrays[2:])
    ]
    got, got_h, got_c = ops.lstm(*ours)
    np.testing.assert_allclose(got.numpy(), output.detach().numpy(), rtol=1e-10)
    np.testing.assert_allclose(got_c.numpy(), c_n[0].detach().numpy(), rtol=1e-10)
    weight = Tensor(np.cos(got.numpy()), dtype="float64", requires_grad=False)
    ((got * weight).sum() + (got_h * 2).sum() + (got_c * 3).sum()).backward()
    grads = [t.grad.numpy() for t in theirs] + [p.grad.numpy() for p in twin.parameters()]
    for i, (a, b) in enumerate(zip(ours, grads, strict=True)):
        want = b[0] if i in (1, 2) else b.T if i in (3, 4) else b
        np.testing.assert_allclose(a.grad.numpy(), want, rtol=1e-8, atol=1e-10)
