"""What bench_apps_steps.py times: training steps of needle and of the same models in PyTorch.

A step is a plain user's loop: gradients to zero, forward, loss, backward, update, the loss read.
Both sides start from the same weights, and their first steps must have the same losses. PyTorch is
in its best mode: channels last and the fused optimizers.

NEEDLE_BENCH_DEVICE=cuda puts both on a GPU, and NEEDLE_BENCH_GRAPH=1 records needle's step as a
CUDA graph; tools/gpu_times.py does so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))
from bench_worker import Work, draw, fill_parameters

STEPS, TEXTS, WORDS = 35, 20, 10_000
BATCHES = (1, 4, 16, 64, 128, 256, 1024)
FIRST = 3  # steps whose losses are compared
DEVICE = os.environ.get("NEEDLE_BENCH_DEVICE", "cpu")

RESNETS = {f"resnet9-batch-{batch}": batch for batch in BATCHES}
LANGUAGE = {"rnn-200": ("rnn", 200), "lstm-200": ("lstm", 200), "lstm-650": ("lstm", 650)}
MAIN = ("resnet9-batch-128", *LANGUAGE)


def make(side: str, name: str) -> Work | None:
    """One training step of a case; the first call does FIRST steps and returns their losses."""
    if side == "numpy":
        return None  # the twins take seconds a step
    if side == "torch" and name == "resnet9-batch-1":
        return None  # PyTorch refuses to normalise one value per channel
    if name in RESNETS:
        inputs = images(RESNETS[name])
        step, version, threads = (torch_resnet9 if side == "torch" else needle_resnet9)(*inputs)
    else:
        build = torch_language if side == "torch" else needle_language
        step, version, threads = build(*LANGUAGE[name], *texts())
    return Work(warmed(step), version, threads)


def warmed(step: Callable[[], float]) -> Callable[[], Any]:
    """`step`, but the first call takes FIRST of them."""
    losses: list[float] = []

    def run() -> Any:
        if losses:
            return step()
        losses.extend(step() for _ in range(FIRST))
        return np.array(losses)

    return run


def images(batch: int) -> tuple[Any, Any]:
    """Images (N, 3, 32, 32) and their classes."""
    rng = np.random.default_rng(2)
    return rng.random((batch, 3, 32, 32), np.float32), rng.integers(0, 10, batch)


def texts() -> tuple[Any, Any]:
    """Words (35, 20) and those that follow, in a row."""
    rng = np.random.default_rng(3)
    return rng.integers(0, WORDS, (STEPS, TEXTS)), rng.integers(0, WORDS, STEPS * TEXTS)


# ---- needle -------------------------------------------------------------------------------------

Sided = tuple[Callable[[], float], str, Callable[[int], None]]


def needle_resnet9(x: Any, y: Any) -> Sided:
    """ResNet9 with Adam."""
    import needle as ndl
    from needle.apps.models import ResNet9

    model = ResNet9(device=device_of(ndl))
    fill(model)
    opt = ndl.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-3)
    return needle_step(ndl, model, opt, to_tensor(ndl, x, "float32"), y)


def needle_language(kind: str, size: int, x: Any, y: Any) -> Sided:
    """A language model with plain SGD."""
    import needle as ndl
    from needle.apps.models import LanguageModel

    model = LanguageModel(size, WORDS, size, 2, kind, device=device_of(ndl))
    fill(model)
    opt = ndl.optim.SGD(model.parameters(), lr=1.0)
    ids = to_tensor(ndl, x, "int64")
    return needle_step(ndl, lambda inputs: model(inputs)[0], opt, ids, y)


def fill(model: Any) -> None:
    """The start values of `draw`, in the order that both libraries share."""
    import needle as ndl

    rng = np.random.default_rng(0)
    for p in model.parameters():
        values = draw(rng, p.shape if p.shape[0] > 1 else p.shape[1:])
        p.data = to_tensor(ndl, values.reshape(p.shape), "float32")


def device_of(ndl: Any) -> Any:
    """needle's device of that name."""
    return getattr(ndl, DEVICE)()


def to_tensor(ndl: Any, values: Any, dtype: str) -> Any:
    """A Tensor on the device."""
    return ndl.Tensor(values, device=device_of(ndl), dtype=dtype, requires_grad=False)


def needle_step(ndl: Any, model: Any, opt: Any, x: Any, y: Any) -> Sided:
    """The loop's body."""
    loss_fn = ndl.nn.SoftmaxLoss()
    labels = to_tensor(ndl, y, "int64")

    def body() -> Any:
        opt.reset_grad()
        loss = loss_fn(model(x), labels)
        loss.backward(retain_graph=False)
        opt.step()
        return loss

    work = ndl.cuda_graph(body) if os.environ.get("NEEDLE_BENCH_GRAPH") == "1" else body

    def step() -> float:
        return float(work().item())

    return step, np.__version__, lambda threads: None


# ---- PyTorch ------------------------------------------------------------------------------------


def torch_resnet9(x: Any, y: Any) -> Sided:
    """The same 431,946 parameters."""
    import torch
    from torch import nn

    class Residual(nn.Module):
        def __init__(self, *layers: Any) -> None:
            super().__init__()
            self.layers = nn.Sequential(*layers)

        def forward(self, x: Any) -> Any:
            return x + self.layers(x)

    def block(inputs: int, outputs: int, kernel: int, stride: int) -> Any:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())

    model = nn.Sequential(
        *(block(3, 16, 7, 4), block(16, 32, 3, 2)),
        Residual(block(32, 32, 3, 1), block(32, 32, 3, 1)),
        *(block(32, 64, 3, 2), block(64, 128, 3, 2)),
        Residual(block(128, 128, 3, 1), block(128, 128, 3, 1)),
        *(nn.Flatten(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)),
    )
    model = fill_parameters(model).to(DEVICE, memory_format=torch.channels_last)
    pixels = torch.from_numpy(x).to(DEVICE).contiguous(memory_format=torch.channels_last)
    opt = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-3, fused=True)
    return torch_step(torch, model, opt, pixels, y)


def torch_language(kind: str, size: int, x: Any, y: Any) -> Sided:
    """Embedding, RNN or LSTM, Linear."""
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(WORDS, size)
            self.layers = (nn.LSTM if kind == "lstm" else nn.RNN)(size, size, 2)
            self.linear = nn.Linear(size, WORDS)

        def forward(self, ids: Any) -> Any:
            return self.linear(self.layers(self.embedding(ids))[0].flatten(0, 1))

    model = fill_parameters(Model()).to(DEVICE)
    opt = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
    return torch_step(torch, model, opt, torch.from_numpy(x).to(DEVICE), y)


def torch_step(torch: Any, model: Any, opt: Any, x: Any, y: Any) -> Sided:
    """The loop's body."""
    labels = torch.from_numpy(y).to(DEVICE)
    loss_fn = torch.nn.CrossEntropyLoss()

    def step() -> float:
        opt.zero_grad(set_to_none=True)
        loss = loss_fn(model(x), labels)
        loss.backward()
        opt.step()
        return float(loss.item())

    return step, torch.__version__, torch.set_num_threads
