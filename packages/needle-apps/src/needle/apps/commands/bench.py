"""`needle bench`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import numpy as np
import typer

import needle
from needle.apps.bench import BENCHES, Timing
from needle.apps.commands.base import app, mistakes, prepare_machine
from needle.apps.commands.options import DeviceName, Json, Threads, checked
from needle.apps.config import at_least
from needle.apps.report import print_json
from needle.backend_ndarray import isa


class Bench(StrEnum):
    """The values of the argument."""

    all = "all"
    resnet9 = "resnet9"
    lm = "lm"


@app.command("bench")
def bench(
    what: Annotated[Bench, typer.Argument(help="What to time.")] = Bench.all,
    steps: Annotated[
        int, typer.Option(callback=checked(at_least(1)), help="Time so many training steps.")
    ] = 10,
    kernels: Annotated[
        int, typer.Option(callback=checked(at_least(1)), help="Show so many kernels of each.")
    ] = 6,
    device: DeviceName = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Time this machine's training steps, and the kernels they spend their time in.

    Random inputs, no data set. Close other programs first: they share the processor.

    Example: needle bench resnet9 --threads 2
    """
    with mistakes():
        where = prepare_machine(device, threads)
    if not as_json:
        typer.echo(f"{where}, {isa()}, {needle.num_threads()} threads")
    for name in BENCHES if what is Bench.all else (what.value,):
        np.random.seed(0)
        timing = BENCHES[name](where, steps)
        if as_json:
            print_json(_record(timing, kernels))
        else:
            _show(timing, kernels)


def _show(timing: Timing, kernels: int) -> None:
    low, high = 1e3 * min(timing.seconds), 1e3 * max(timing.seconds)
    typer.echo(
        f"\n{timing.name} ({timing.what}): {1e3 * timing.median:.2f} ms a step "
        f"({low:.2f} to {high:.2f}), {timing.rate:,.0f} {timing.unit}/s"
    )
    typer.echo(timing.profile.table(limit=kernels))


def _record(timing: Timing, kernels: int) -> dict[str, object]:
    rows = timing.profile.rows[:kernels]
    return {
        "event": "bench",
        "name": timing.name,
        "what": timing.what,
        "isa": isa(),
        "threads": needle.num_threads(),
        "median_ms": 1e3 * timing.median,
        "min_ms": 1e3 * min(timing.seconds),
        "rate": timing.rate,
        "unit": timing.unit,
        "kernels": [
            {"name": row.name, "calls": row.calls, "share": row.share, "gflops": row.gflops}
            for row in rows
        ],
    }
