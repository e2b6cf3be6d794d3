"""Turns saved benchmarks into the tables of docs/performance.md and a roofline plot.

    hatch run bench:kernels; hatch run bench:modules; hatch run bench:steps
    hatch run bench:report

Reads .benchmarks/{kernels,modules,steps}.json, or the files given. A table lies between the lines
`<!-- table: NAME -->` and `<!-- end of table -->`; what else the page says is left alone, and so is
a table whose benchmarks were not run. The plot needs matplotlib, which the bench environment has.
"""

import argparse
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SAVED = [ROOT / ".benchmarks" / f"{name}.json" for name in ("kernels", "modules", "steps")]


@dataclass(frozen=True)
class Result:
    """One case, as bench_sides.py saved it."""

    group: str
    case: str
    threads: int
    isa: str
    flops: int
    bytes: int
    peak_gflops: float
    peak_gbytes: float
    seconds: dict[str, float]
    """Per call, by side: needle, numpy, torch."""
    versions: dict[str, str]
    samples: int = 1
    product_gflops: float | None = None
    """The best rate of a matrix product around it: PyTorch's, or without it needle's."""

    @property
    def needle(self) -> float:
        """needle's seconds per call."""
        return self.seconds["needle"]

    @property
    def peak(self) -> float:
        """The roofline's least time over needle's."""
        double = 2 if "float64" in self.case else 1
        least = max(double * self.flops / self.peak_gflops, self.bytes / self.peak_gbytes)
        return least * 1e-9 / self.needle

    @property
    def floor(self) -> float | None:
        """Seconds that the FLOPs alone take at the best rate of a product."""
        return self.product_gflops and self.flops / self.product_gflops * 1e-9

    def ratio(self, side: str) -> float | None:
        """How many times longer the other side takes; None where it was not timed."""
        return self.seconds[side] / self.needle if side in self.seconds else None


@dataclass(frozen=True)
class Run:
    """What one JSON file has; every result with the highest peak that its thread count saw."""

    results: list[Result]
    machine: str
    commit: str
    date: str


def read(path: Path) -> Run:
    """A file that pytest-benchmark saved.

    Raises:
        ValueError: it is not such a file, a benchmark in it was not made by bench_sides.py, or
            nothing was timed.
    """
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        results = [_result(path, benchmark) for benchmark in saved["benchmarks"]]
        cpu = saved["machine_info"].get("cpu", {})
        commit, date = str(saved["commit_info"].get("id"))[:10], saved["datetime"][:10]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"report: {path}: {type(error).__name__}: {error}: need a file that bench:kernels, "
            "bench:modules or bench:steps saved"
        ) from error
    if not results:
        raise ValueError(f"report: {path}: no benchmarks in it: need at least one")
    results = [with_best_peak(result, results) for result in results]
    machine = f"{cpu.get('brand_raw', 'unknown processor')}, {cpu.get('count', '?')} cores"
    return Run(results, machine, commit, date)


def _result(path: Path, benchmark: dict[str, Any]) -> Result:
    extra, name = benchmark["extra_info"], benchmark["name"]
    if "seconds" not in extra:
        raise ValueError(f"report: {path.name}: got {name}: need a compared case")
    if not (extra["seconds"].get("needle") or 0) > 0:
        raise ValueError(f"report: {path.name}: got {name}: need a case that was timed")
    return Result(**extra)


def with_best_peak(result: Result, results: list[Result]) -> Result:
    """The result with the highest peak: a lower one means that something else was running."""
    alike = [other for other in results if other.threads == result.threads]
    return replace(
        result,
        peak_gflops=max(other.peak_gflops for other in alike),
        peak_gbytes=max(other.peak_gbytes for other in alike),
    )


# ---- tables -------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all but its first column are aligned to the right."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def duration(seconds: float | None) -> str:
    """Three digits and a unit; - for None."""
    if seconds is None:
        return "-"
    unit, scale = ("s", 1) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("us", 1e6)
    value = seconds * scale
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} {unit}"


def times(ratio: float | None) -> str:
    """A ratio; - for None."""
    return "-" if ratio is None else f"{ratio:.2f}"


def rate(result: Result, side: str = "needle") -> str:
    """GFLOP/s of one side."""
    seconds = result.seconds.get(side)
    return "-" if seconds is None else f"{result.flops / seconds * 1e-9:.0f}"


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Of those that are there; None where none is."""
    logs = [math.log(value) for value in values if value is not None]
    return math.exp(sum(logs) / len(logs)) if logs else None


def comparison(results: list[Result]) -> str:
    """A row per case: seconds of each side, their ratios, percent of the peak."""
    header = (
        "case",
        "needle",
        "NumPy",
        "PyTorch",
        "NumPy / needle",
        "PyTorch / needle",
        "% peak",
    )
    return table(
        header,
        [
            (
                r.case,
                *(duration(r.seconds.get(side)) for side in ("needle", "numpy", "torch")),
                *(times(r.ratio(side)) for side in ("numpy", "torch")),
                f"{100 * r.peak:.0f}",
            )
            for r in results
        ],
    )


def folded(results: list[Result]) -> str:
    """The same, folded away under a line of its own."""
    summary = f"<details><summary>All {len(results)} cases</summary>"
    return f"{summary}\n\n{comparison(results)}\n\n</details>"


def steps(results: list[Result]) -> str:
    """A row per training step."""
    return table(
        (
            *("step", "needle, ms", "PyTorch, ms", "PyTorch / needle", "floor, ms"),
            *("needle / floor", "GFLOP/s", "% of peak"),
        ),
        [
            (
                r.case,
                f"{r.needle * 1e3:.2f}",
                f"{r.seconds['torch'] * 1e3:.2f}" if "torch" in r.seconds else "-",
                times(r.ratio("torch")),
                "-" if r.floor is None else f"{r.floor * 1e3:.2f}",
                times(r.floor and r.needle / r.floor),
                rate(r),
                f"{100 * r.flops / r.peak_gflops * 1e-9 / r.needle:.0f}",
            )
            for r in results
        ],
    )


def products(results: list[Result]) -> str:
    """GFLOP/s of every matrix product."""
    return table(
        ("M x K x N", "needle", "NumPy", "PyTorch", "PyTorch / needle, time", "% of peak"),
        [
            (
                r.case.removeprefix("matmul-"),
                *(rate(r, side) for side in ("needle", "numpy", "torch")),
                times(r.ratio("torch")),
                f"{100 * r.peak:.0f}",
            )
            for r in results
            if r.case.startswith("matmul-")
        ],
    )


FAMILIES = {
    "matmul": ("matmul", "linear_weight_grad"),
    "conv": ("conv",),
    "pool": ("max_pool", "avg_pool"),
    "normalize": ("batch_norm", "layer_norm"),
    "softmax": ("softmax", "logsoftmax", "logsumexp"),
    "recurrent": ("lstm", "rnn"),
    "index": ("gather", "scatter_add", "one_hot"),
    "images": ("image_batch",),
    "optimize": ("sgd", "adam", "sum_squares", "scale", "moving_average"),
    "reduce": ("sum-", "max-", "min-"),
    "shape": ("copy", "transpose", "fill", "cast"),
}


def family(case: str) -> str:
    """Which family of kernels a case belongs to."""
    for name, prefixes in FAMILIES.items():
        if case.startswith(prefixes):
            return name
    return "elementwise"


def families(results: list[Result]) -> str:
    """A row per family, the tiny cases apart: geometric means, and the case that compares worst."""
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for r in results:
        size = "tiny" if r.case.endswith(("tiny", "8x8x8")) else "larger"
        groups[family(r.case), size].append(r)
    rows = []
    for (name, size), members in sorted(groups.items()):
        compared = [r for r in members if r.ratio("torch") is not None]
        worst = min(compared, key=lambda r: r.ratio("torch") or 0, default=None)
        rows.append(
            (
                f"{name}, {size}",
                str(len(members)),
                *(times(geometric_mean(r.ratio(s) for r in members)) for s in ("numpy", "torch")),
                f"{worst.case} {times(worst.ratio('torch'))}" if worst else "-",
            )
        )
    header = ("kernels", "cases", "NumPy / needle", "PyTorch / needle", "worst beside PyTorch")
    return table(header, rows)


def threads(results: list[Result]) -> str:
    """Seconds on 1 to n threads and the speed-up of the last; PyTorch's beside it."""
    cases: dict[str, dict[int, Result]] = defaultdict(dict)
    for r in results:
        cases[r.case][r.threads] = r
    counts = sorted({r.threads for r in results})
    rows = []
    for case, by in cases.items():
        one, most = by[min(by)], by[max(by)]
        torch = None
        if "torch" in one.seconds and "torch" in most.seconds:
            torch = one.seconds["torch"] / most.seconds["torch"]
        shown = [duration(by[n].needle) if n in by else "-" for n in counts]
        rows.append((case, *shown, times(one.needle / most.needle), times(torch)))
    columns = [f"{n} thread{'s' * (n > 1)}" for n in counts]
    return table(("case", *columns, "speed-up", "PyTorch's"), rows)


def batches(results: list[Result]) -> str:
    """Microseconds per sample at each batch size."""
    rows = []
    for r in results:
        torch = r.seconds.get("torch")
        each = [s and s / r.samples * 1e6 for s in (r.needle, torch)]
        shown = ["-" if s is None else f"{s:.1f}" for s in each]
        name = re.sub(r"-?batch-?\d+", "", r.case)
        rows.append((name, str(r.samples), *shown, times(r.ratio("torch"))))
    header = ("model", "batch", "needle, us a sample", "PyTorch, us a sample", "PyTorch / needle")
    return table(header, rows)


TABLES: dict[str, tuple[tuple[str, ...], Callable[[list[Result]], str]]] = {
    # name: (the groups of benchmarks it shows, how)
    "steps": (("steps",), steps),
    "products": (("kernels",), products),
    "families": (("kernels",), families),
    "kernels": (("kernels",), folded),
    "modules": (("modules",), comparison),
    "threads": (("kernel-threads", "module-threads", "step-threads"), threads),
    "batches": (("batches",), batches),
}


def machine(runs: list[Run]) -> str:
    """Where and with what the figures were measured.

    Raises:
        ValueError: on more than one machine.
    """
    if len(machines := sorted({run.machine for run in runs})) > 1:
        raise ValueError(f"report: got figures of {' and of '.join(machines)}: need one machine's")
    results = [result for run in runs for result in run.results]
    versions: dict[str, str] = {}
    for result in results:
        versions |= result.versions
    best = max(results, key=lambda r: r.peak_gflops)
    others = ", ".join(
        f"{name} {versions[side]}"
        for side, name in (("numpy", "NumPy"), ("torch", "PyTorch"))
        if side in versions
    )
    measured = [f"{run.date}, commit {run.commit}" for run in runs]
    lines = [
        f"{runs[-1].machine}; {best.isa}, {best.threads} threads; float32 unless said otherwise.",
        f"Measured peak: {best.peak_gflops:.0f} GFLOP/s, "
        f"{max(r.peak_gbytes for r in results):.1f} GB/s.",
        f"{others or 'needle alone'}; {'; '.join(dict.fromkeys(measured))}.",
    ]
    return "\n".join(lines)


def fill_page(page: str, runs: list[Run]) -> str:
    """The page with every table that there are results for.

    Raises:
        ValueError: the page asks for a table that does not exist, or one has no end.
    """
    results = [result for run in runs for result in run.results]

    def new_table(match: re.Match[str]) -> str:
        begin, name = match.group(1, 2)
        if name == "machine":
            return f"{begin}\n\n{machine(runs)}\n\n{END}"
        if name not in TABLES:
            known = ", ".join(["machine", *TABLES])
            raise ValueError(f"report: unknown table: got {name!r}: need one of {known}")
        groups, make = TABLES[name]
        found = [result for result in results if result.group in groups]
        return f"{begin}\n\n{make(found)}\n\n{END}" if found else match.group()

    if page.count("<!-- table: ") != page.count(END):
        raise ValueError(f"report: markers: got {page.count(END)} ends: need one for each table")
    return MARKED.sub(new_table, page)


END = "<!-- end of table -->"
MARKED = re.compile(rf"(<!-- table: ([\w-]+) -->).*?{END}", re.S)


# ---- plot ---------------------------------------------------------------------------------------


def plot_roofline(results: list[Result], path: Path) -> None:
    """Every kernel case with arithmetic, larger than tiny: flops per byte against GFLOP/s.

    No plot where there is none.
    """
    shown = [r for r in results if r.flops and r.bytes and not r.case.endswith(("tiny", "8x8x8"))]
    if not shown:
        return
    matplotlib: Any = import_module("matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "needle"
    pyplot: Any = import_module("matplotlib.pyplot")
    gflops, gbytes = max(r.peak_gflops for r in shown), max(r.peak_gbytes for r in shown)
    figure, axes = pyplot.subplots(figsize=(8, 5))
    span = [2.0**k for k in range(-6, 11)]
    roof = [min(gflops, intensity * gbytes) for intensity in span]
    axes.loglog(span, roof, color="black", label=f"{gflops:.0f} GFLOP/s, {gbytes:.0f} GB/s")
    for name in sorted({family(r.case) for r in shown}):
        points = [r for r in shown if family(r.case) == name]
        axes.scatter(
            [r.flops / r.bytes for r in points],
            [r.flops / r.needle * 1e-9 for r in points],
            s=18,
            label=name,
        )
    axes.set(xlabel="flops per byte", ylabel="GFLOP/s", title="needle's kernels under the roofline")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fills the page and draws the plot."""
    parser = argparse.ArgumentParser(description="Fills docs/performance.md from saved benchmarks.")
    parser.add_argument("files", nargs="*", type=Path, help="default: what is in .benchmarks/")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "performance.md")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "roofline.svg")
    options = parser.parse_args(arguments)
    files = options.files or [path for path in SAVED if path.exists()]
    if not files:
        parser.error("nothing saved: run bench:kernels, bench:modules or bench:steps first")
    try:
        runs = [read(path) for path in files]
        page = fill_page(options.page.read_text(encoding="utf-8"), runs)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    plot_roofline([r for run in runs for r in run.results if r.group == "kernels"], options.plot)
    draft = options.page.with_suffix(".new")
    draft.write_text(page, encoding="utf-8")
    draft.replace(options.page)
    for path, run in zip(files, runs, strict=True):
        print(f"{path}: {len(run.results)} cases, {run.date}, commit {run.commit}")


if __name__ == "__main__":
    main()
