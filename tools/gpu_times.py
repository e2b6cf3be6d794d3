"""Times needle on cuda() beside PyTorch on the same GPU, and prints JSON.

    python tools/gpu_times.py [--tiny]

Matrix products against cuBLAS, memory-bound kernels against a copy, training steps against eager
PyTorch. Without a PyTorch that sees the GPU its column is null. --tiny: small sizes, for a test of
this script. tools/gpu_check.py runs it and keeps what it prints.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from operator import matmul
from pathlib import Path
from typing import Any

import numpy as np

from needle import backend_ndarray as nd

ROOT = Path(__file__).resolve().parents[1]
STEP_CASES = ROOT / "packages" / "needle-apps" / "benchmarks" / "step_cases.py"
ROUNDS = 7
ROUND_SECONDS = 0.2

Row = dict[str, Any]
Sides = dict[str, tuple[Callable[[], Any], Callable[[], Any]]]
"""A call, and a wait for it, of each side."""


def torch_on_gpu() -> Any:
    """PyTorch, or None where it is missing or sees no GPU."""
    try:
        torch: Any = import_module("torch")
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def seconds_per_call(sides: Sides) -> Row:
    """The median time of each side's call; rounds in turn, each ended by the side's own wait."""
    counts: dict[str, int] = {}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for name, (call, wait) in sides.items():
        for _ in range(3):  # warm: memory is held, kernels are loaded
            call()
        wait()
        begin = time.perf_counter()
        call()
        wait()
        counts[name] = max(1, int(ROUND_SECONDS / (time.perf_counter() - begin + 1e-7)))
    for _ in range(ROUNDS):
        for name, (call, wait) in sides.items():
            begin = time.perf_counter()
            for _ in range(counts[name]):
                call()
            wait()
            times[name].append((time.perf_counter() - begin) / counts[name])
    return {name: statistics.median(values) for name, values in times.items()}


def wait() -> None:
    """Until needle's stream is done."""
    nd.synchronize(nd.cuda())


def products(sizes: list[int], torch: Any) -> list[Row]:
    """Square float32 products, without and with TF32: percent of cuBLAS."""
    rows = []
    for precision in ("highest", "high"):
        nd.set_float32_matmul_precision(precision)
        if torch:
            torch.set_float32_matmul_precision(precision)
        for n in sizes:
            a, b = (np.random.default_rng(i).normal(size=(n, n)) for i in range(2))
            x, y = (nd.array(values, device=nd.cuda()) for values in (a, b))
            sides: Sides = {"needle": (partial(matmul, x, y), wait)}
            if torch:
                p, q = (torch.tensor(v, dtype=torch.float32, device="cuda") for v in (a, b))
                sides["torch"] = (partial(matmul, p, q), torch.cuda.synchronize)
            found = seconds_per_call(sides)
            name = f"matmul {n}, {'TF32' if precision == 'high' else 'float32'}"
            rows.append({"name": name, "flops": 2 * n**3, "seconds": found})
    nd.set_float32_matmul_precision("highest")
    return rows


def memory_bound(elements: int) -> list[Row]:
    """Kernels that read and write much and compute little; the first row is a copy."""
    side = 1024 if elements >= 1 << 20 else 16
    x, y = (nd.array(np.random.rand(elements // side, side), device=nd.cuda()) for _ in range(2))
    images = x.reshape((-1, 16, side // 4, 4))
    weight = nd.ones((16,), device=nd.cuda())
    out, size = nd.empty(x.shape, device=nd.cuda()), x.size * 4
    calls: dict[str, tuple[int, Callable[[], Any]]] = {
        "copy": (2, lambda: nd.copy_into(out, x)),
        "add": (3, lambda: x + y),
        "relu": (2, lambda: nd.relu(x)),
        "sum": (1, lambda: x.sum()),
        "sum, first axis": (1, lambda: x.sum(0)),
        "softmax": (2, lambda: nd.softmax(x)),
        "batch_norm": (3, lambda: nd.batch_norm(images, weight, weight, 1e-5)),
    }
    return [
        {
            "name": name,
            "bytes": passes * size,
            "seconds": seconds_per_call({"needle": (call, wait)}),
        }
        for name, (passes, call) in calls.items()
    ]


def steps(names: list[str], torch: Any) -> list[Row]:
    """Training steps, as they are and recorded; each side in a process of its own."""
    rows = []
    for name in names:
        seconds = {
            "needle": step_seconds("needle", name, graph=False),
            "needle, graph": step_seconds("needle", name, graph=True),
        }
        if torch:
            seconds["torch"] = step_seconds("torch", name, graph=False)
        rows.append({"name": name, "seconds": seconds})
    return rows


def step_seconds(side: str, name: str, graph: bool) -> float:
    """The median step, the loss read every time."""
    settings = {"NEEDLE_BENCH_DEVICE": "cuda", "NEEDLE_BENCH_GRAPH": str(int(graph))}
    command = [sys.executable, __file__, "--step", side, name]
    done = subprocess.run(
        command, env=os.environ | settings, check=True, capture_output=True, text=True
    )
    return float(done.stdout.splitlines()[-1])


def time_step(side: str, name: str) -> None:
    """Prints the seconds of one step; the body of step_seconds' process."""
    from bench_worker import load_cases

    work = load_cases(STEP_CASES).make(side, name)
    for _ in range(3):
        work.run()
    times = []
    for _ in range(int(os.environ.get("NEEDLE_BENCH_STEPS", "100"))):
        begin = time.perf_counter()
        work.run()
        times.append(time.perf_counter() - begin)
    print(statistics.median(times))


def main() -> None:
    """Times everything, or with --step one step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--step", nargs=2, metavar=("SIDE", "NAME"))
    given = parser.parse_args()
    if given.step:
        time_step(*given.step)
        return
    torch = torch_on_gpu()
    if given.tiny:
        global ROUNDS, ROUND_SECONDS
        ROUNDS, ROUND_SECONDS = 1, 0.001
        os.environ["NEEDLE_BENCH_STEPS"] = "2"
    sizes = [64] if given.tiny else [2048, 4096, 8192]
    names = ["resnet9-batch-1"] if given.tiny else ["resnet9-batch-128", "lstm-200", "lstm-650"]
    answer = {
        "device": nd.cuda().about(),
        "torch": torch.__version__ if torch else None,
        "products": products(sizes, torch),
        "memory": memory_bound(1 << 10 if given.tiny else 1 << 28),
        "steps": steps(names, torch),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
