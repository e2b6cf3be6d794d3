"""Everything that only a GPU can show, in one command, with a report.

    python tools/gpu_check.py            # with an NVIDIA GPU, nvcc and compute-sanitizer
    python tools/gpu_check.py --emulate  # the emulated GPU, tiny sizes: a test of this script

Builds the kernels for this GPU, runs the tests with NEEDLE_REQUIRE=cuda, runs compute-sanitizer
(memcheck, racecheck) over the kernel tests, times needle beside PyTorch (tools/gpu_times.py),
writes build/gpu/report.json, and puts the figures into docs/cuda.md. --only names some of the
parts. It installs nothing: the Python that runs it needs cmake, ninja, pybind11, numpy, pytest,
scipy and hypothesis, and for the comparison a PyTorch with CUDA.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ROOT / "packages"
DOCS = ROOT / "docs" / "cuda.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
PARTS = ("build", "tests", "memcheck", "racecheck", "times")
KERNEL_TESTS = [str(PACKAGES / "needle-kernels" / "tests"), "-k", "cuda", "-q"]
# Racecheck sees every shared-memory access: the families whose kernels use shared memory, and not
# the tests that repeat them over all views.
RACE_TESTS = [
    *(str(PACKAGES / "needle-kernels" / "tests" / f"test_kernels_{family}.py") for family in (
        "cuda", "graph", "matmul", "reduce", "softmax", "normalize", "conv", "index", "recurrent"
    )),
    *("-k", "cuda and not view", "-q"),
]  # fmt: skip


class Check:
    """The parts, and what came of them."""

    def __init__(self, emulate: bool) -> None:
        self.emulate = emulate
        self.build = ROOT / "build" / ("gpu-emulated" if emulate else "gpu")
        self.report: dict[str, Any] = {"commit": self._output("git", "rev-parse", "HEAD")}
        sources = [str(PACKAGES / f"needle-{p}" / "src") for p in ("core", "kernels", "nn", "data")]
        path = [str(self.build / "site"), *sources, str(PACKAGES / "needle-apps" / "src")]
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")]),
            "NEEDLE_REQUIRE": "cuda",
            "NEEDLE_CUDA_EMULATE": str(int(emulate)),
        }

    def run(self, part: str) -> bool:
        """One part; whether it succeeded, and how long it took, is in the report."""
        print(f"==== {part}", flush=True)
        begin = time.monotonic()
        try:
            getattr(self, f"_{part}")()
            said = "ok"
        except (subprocess.CalledProcessError, OSError) as error:
            said = f"failed: {error}"
        self.report[part] = {"result": said, "seconds": round(time.monotonic() - begin, 1)}
        print(f"==== {part}: {said}", flush=True)
        return said == "ok"

    def _build(self) -> None:
        folder = self._output(sys.executable, "-m", "pybind11", "--cmakedir")
        settings = {
            "CMAKE_BUILD_TYPE": "Release",
            "NEEDLE_CUDA": "emulate" if self.emulate else "on",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": folder,
        }
        if not self.emulate:
            query = ("nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv")
            card = self._output(*query, "-i", "0").splitlines()[-1].split(", ")
            self.report |= dict(zip(("card", "compute", "driver"), card, strict=True))
            self.report["nvcc"] = self._output("nvcc", "--version").splitlines()[-1]
            settings["NEEDLE_CUDA_ARCHITECTURES"] = card[1].replace(".", "") + "-real"
        options = [f"-D{name}={value}" for name, value in settings.items()]
        source = PACKAGES / "needle-kernels"
        self._call("cmake", "-G", "Ninja", "-S", source, "-B", self.build, *options)
        self._call("cmake", "--build", self.build)
        site = self.build / "site" / "needle" / "_kernels"
        site.mkdir(parents=True, exist_ok=True)
        for module in self.build.glob("*.so"):
            (site / module.name).unlink(missing_ok=True)
            (site / module.name).hardlink_to(module)

    def _tests(self) -> None:
        if self.emulate:  # one file: the whole suite takes minutes there
            self._call(*self._pytest(KERNEL_TESTS[0] + "/test_kernels_cuda.py", "-q"))
            return
        self._call(*self._pytest(str(PACKAGES), "-k", "cuda", "-q", "--durations=10"))

    def _memcheck(self) -> None:
        self._sanitize("memcheck", "--leak-check=no", tests=KERNEL_TESTS)

    def _racecheck(self) -> None:
        self._sanitize("racecheck", tests=RACE_TESTS)

    def _sanitize(self, tool: str, *options: str, tests: list[str]) -> None:
        """Fails on the first mistake that compute-sanitizer finds in the tests.

        Without pooling every array is an allocation of its own: what is read or written beside it
        shows.
        """
        sanitizer = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *options]
        if self.emulate:
            sanitizer, tests = [], [KERNEL_TESTS[0] + "/test_kernels_graph.py", "-q"]
        self._call(*sanitizer, *self._pytest(*tests), environment={"NEEDLE_NO_POOL": "1"})

    def _times(self) -> None:
        command = [sys.executable, str(ROOT / "tools" / "gpu_times.py")]
        said = self._output(*command, *(["--tiny"] if self.emulate else []))
        self.report["figures"] = json.loads(said.splitlines()[-1])

    def _pytest(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]

    def _call(self, *command: Any, environment: dict[str, str] | None = None) -> None:
        variables = self.environment | (environment or {})
        subprocess.run([str(part) for part in command], check=True, cwd=ROOT, env=variables)

    def _output(self, *command: str) -> str:
        variables = getattr(self, "environment", None)
        done = subprocess.run(
            command, check=True, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True
        )
        return done.stdout.strip()


def table(report: dict[str, Any]) -> str:
    """The figures as Markdown."""
    figures, head = report["figures"], "| | needle | PyTorch | |\n|---|---|---|---|"
    about = f"{figures['device']}, driver {report.get('driver')}, commit {report['commit'][:10]}"
    lines = [f"{about}, PyTorch {figures['torch']}.", "", head]
    for row in figures["products"]:
        mine, theirs = row["seconds"]["needle"], row["seconds"].get("torch")
        speeds = [f"{row['flops'] / s / 1e12:.1f} TFLOP/s" if s else "-" for s in (mine, theirs)]
        share = f"{100 * theirs / mine:.0f} % of cuBLAS" if theirs else "-"
        lines.append(f"| {row['name']} | {speeds[0]} | {speeds[1]} | {share} |")
    rates = [row["bytes"] / row["seconds"]["needle"] for row in figures["memory"]]
    for row, rate in zip(figures["memory"], rates, strict=True):
        share = f"{100 * rate / rates[0]:.0f} % of copy"
        lines.append(f"| {row['name']} | {rate / 1e9:.0f} GB/s | | {share} |")
    for row in figures["steps"]:
        mine, graph = row["seconds"]["needle"], row["seconds"]["needle, graph"]
        theirs = row["seconds"].get("torch")
        both = f"{mine * 1e3:.2f} ms, graph {graph * 1e3:.2f} ms"
        share = f"{theirs / mine:.2f} x, graph {theirs / graph:.2f} x" if theirs else "-"
        torch = f"{theirs * 1e3:.2f} ms" if theirs else "-"
        lines.append(f"| step of {row['name']} | {both} | {torch} | {share} |")
    return "\n".join(lines)


def write_table(report: dict[str, Any]) -> None:
    """Puts the figures between the marks in docs/cuda.md."""
    text = DOCS.read_text()
    before, rest = text.split(BEGIN)
    DOCS.write_text(f"{before}{BEGIN}\n{table(report)}\n{END}{rest.split(END)[1]}")


def main() -> None:
    """Runs the parts, writes the report; fails if one of them did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--emulate", action="store_true")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    given = parser.parse_args()
    check = Check(given.emulate)
    passed = [check.run(part) for part in given.only]
    check.build.mkdir(parents=True, exist_ok=True)
    (check.build / "report.json").write_text(json.dumps(check.report, indent=1) + "\n")
    if "figures" in check.report:
        print(table(check.report))
        if not given.emulate:
            write_table(check.report)
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()
