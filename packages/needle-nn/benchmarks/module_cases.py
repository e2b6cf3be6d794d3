"""What bench_nn.py times: modules forward, and forward and backward, on every side.

Sizes are those of ResNet9 with batch 128 and of the language model with 200 hidden units. Every
side has the same weights and inputs; NumPy's is the module on the device `cpu_numpy()`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))
from bench_worker import Work, draw, fill_parameters


@dataclass(frozen=True)
class Case:
    """One module: made by each library's `nn`, called on one input."""

    shape: tuple[int, ...]
    needle: Callable[[Any], Any]
    torch: Callable[[Any], Any]


def make_batches() -> dict[str, Case]:
    """An LSTM of the language model's size at batch 1 to 1024: what a sample costs."""
    return {
        f"LSTM-batch-{batch}": Case(
            (35, batch, 200), lambda nn: nn.LSTM(200, 200, 2), lambda nn: nn.LSTM(200, 200, 2)
        )
        for batch in BATCHES
    }


BATCHES = (1, 4, 16, 64, 256, 1024)
MODULES: dict[str, Case] = {
    "Linear": Case(
        (700, 200), lambda nn: nn.Linear(200, 10_000), lambda nn: nn.Linear(200, 10_000)
    ),
    "Linear-tiny": Case((8, 8), lambda nn: nn.Linear(8, 8), lambda nn: nn.Linear(8, 8)),
    "Conv-7x7-stride-4": Case(
        (128, 3, 32, 32),
        lambda nn: nn.Conv(3, 16, 7, 4),
        lambda nn: nn.Conv2d(3, 16, 7, 4, 3),
    ),
    "Conv-3x3": Case(
        (128, 32, 4, 4), lambda nn: nn.Conv(32, 32, 3), lambda nn: nn.Conv2d(32, 32, 3, 1, 1)
    ),
    "BatchNorm2d": Case(
        (128, 16, 8, 8), lambda nn: nn.BatchNorm2d(16), lambda nn: nn.BatchNorm2d(16)
    ),
    "LayerNorm1d": Case((700, 200), lambda nn: nn.LayerNorm1d(200), lambda nn: nn.LayerNorm(200)),
    "ReLU": Case((700, 200), lambda nn: nn.ReLU(), lambda nn: nn.ReLU()),
    "RNN": Case((35, 20, 200), lambda nn: nn.RNN(200, 200, 2), lambda nn: nn.RNN(200, 200, 2)),
    "LSTM": Case((35, 20, 200), lambda nn: nn.LSTM(200, 200, 2), lambda nn: nn.LSTM(200, 200, 2)),
}
CASES = {
    f"{name}-{way}": case
    for name, case in (MODULES | make_batches()).items()
    for way in ("forward", "both")
}


def first(result: Any) -> Any:
    """The output alone, where a module returns states too."""
    return result[0] if isinstance(result, tuple) else result


def make(side: str, name: str) -> Work | None:
    """The case on one side; `both` also computes the gradients of the input and the weights."""
    case, backward = CASES[name], name.endswith("-both")
    values = np.random.default_rng(1).standard_normal(case.shape).astype(np.float32)
    if side == "torch":
        return torch_work(case, values, backward)
    return needle_work(case, values, backward, numpy=side == "numpy")


def needle_work(case: Case, values: Any, backward: bool, numpy: bool) -> Work:
    """The module of needle, in its fast mode."""
    import needle as ndl

    device = ndl.cpu_numpy() if numpy else ndl.cpu()
    module = case.needle(ndl.nn).to(device)
    rng = np.random.default_rng(0)
    for p in module.parameters():
        start = draw(rng, p.shape if p.shape[0] > 1 else p.shape[1:])
        p.data = ndl.Tensor(start.reshape(p.shape), device=device, requires_grad=False)
    x = ndl.Tensor(values, device=device, requires_grad=backward)
    ones = ndl.ones(*first(module(x)).shape, device=device, requires_grad=False)

    def forward() -> Any:
        with ndl.no_grad():
            return first(module(x))

    def both() -> Any:
        first(module(x)).backward(ones, retain_graph=False)
        return x.grad

    return Work(both if backward else forward, np.__version__)


def torch_work(case: Case, values: Any, backward: bool) -> Work:
    """The module of PyTorch; images are channels last, which it likes best."""
    import torch

    module = fill_parameters(case.torch(torch.nn))
    x = torch.from_numpy(values)
    if x.dim() == 4:
        module = module.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_(backward)
    ones = torch.ones_like(first(module(x)))

    def forward() -> Any:
        with torch.no_grad():
            return first(module(x))

    def both() -> Any:
        x.grad = None
        module.zero_grad(set_to_none=True)
        first(module(x)).backward(ones)
        return x.grad

    return Work(both if backward else forward, torch.__version__, torch.set_num_threads)
