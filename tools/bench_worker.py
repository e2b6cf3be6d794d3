"""One side of a benchmark, NumPy or PyTorch, in a process of its own.

    python tools/bench_worker.py CASES SIDE

Two libraries' thread pools in one process disturb each other, so each side has a process, and they
take turns. CASES is a Python file with `make(side, name)`, which returns a Work or None. Requests
and answers are lines of JSON on standard input and output:

    {"name": "exp-tiny", "threads": 2, "save": PATH}    {"version": "2.13.0", "seconds": 1e-6}
    {"calls": 1000}                                     {"seconds": 1.1e-6}

The first prepares a case, saves what it computes as PATH (.npz) and estimates how long it takes;
"version" is null where this side has no such case. An answer with "error" says what went wrong. The
second request times a round, in seconds per call.
"""

import importlib.util
import json
import math
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
WARM_UP = 0.01  # seconds: after a pause a core takes some 5 ms to reach its full clock speed
SETTLED = 12  # calls, after which a large third-level cache keeps what it can of their operands
MOST_WARM_UP = 0.05  # seconds that these may take


@dataclass(frozen=True)
class Work:
    """What one side does in one call."""

    run: Callable[[], Any]
    version: str
    set_threads: Callable[[int], None] = lambda threads: None


@cache
def load_cases(path: str | Path) -> ModuleType:
    """The module in a file, which may lie anywhere."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"bench_worker: not a Python file: got {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def as_arrays(result: Any) -> list[Array]:
    """The results of a call as NumPy arrays, whichever library they belong to."""
    if result is None:
        return []
    if isinstance(result, (tuple, list)):
        return [array for item in result for array in as_arrays(item)]
    if hasattr(result, "detach"):
        result = result.detach()
    return [np.array(result.numpy() if hasattr(result, "numpy") else result)]


def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Start values of one parameter: the same numbers on every side."""
    if len(shape) == 1:
        return rng.uniform(0.5, 1, shape).astype(np.float32)
    scale = 1 / math.sqrt(math.prod(shape[:-1]))
    return rng.uniform(-scale, scale, shape).astype(np.float32)


def fill_parameters(module: Any) -> Any:
    """A PyTorch module with the values of `draw`, turned from needle's layout into its own."""
    torch: Any = import_module("torch")
    rng = np.random.default_rng(0)
    for owner in module.modules():
        for parameter in owner.parameters(recurse=False):
            rank = parameter.dim() if not isinstance(owner, torch.nn.Embedding) else 0
            order = {2: (1, 0), 4: (2, 3, 1, 0)}.get(rank, tuple(range(parameter.dim())))
            values = draw(rng, tuple(parameter.shape[axis] for axis in order))
            back = np.argsort(order)
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(values.transpose(back))))
    return module


def warm_up(run: Callable[[], Any]) -> None:
    """Runs it until cores that have slept are at full speed and the caches hold its operands."""
    start = time.perf_counter()
    for call in count(1):
        run()
        passed = time.perf_counter() - start
        if passed >= MOST_WARM_UP or (passed >= WARM_UP and call >= SETTLED):
            return


def seconds_per_call(run: Callable[[], Any], calls: int) -> float:
    """The mean of so many calls."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def estimate(run: Callable[[], Any]) -> float:
    """Roughly how long a call takes."""
    warm_up(run)
    calls = 1
    while (seconds := seconds_per_call(run, calls)) * calls < 2e-3:
        calls *= 4
    return seconds


def prepare(cases: ModuleType, side: str, request: dict[str, Any]) -> Work | None:
    """Makes a case and saves what it computes."""
    work: Work | None = cases.make(side, request["name"])
    if work is not None:
        work.set_threads(request["threads"])
        np.savez(request["save"], *as_arrays(work.run()))
    return work


def main() -> None:
    """Answers requests until standard input ends."""
    path, side = sys.argv[1:]
    cases = load_cases(path)
    work: Work | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if "name" in request:
            work = None  # frees the arrays of the case before
            try:
                work = prepare(cases, side, request)
            except Exception:
                print(json.dumps({"error": traceback.format_exc()}), flush=True)
                continue
            version = work and work.version
            answer = {"version": version, "seconds": estimate(work.run) if work else None}
        elif work is not None:
            warm_up(work.run)
            answer = {"seconds": seconds_per_call(work.run, request["calls"])}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
