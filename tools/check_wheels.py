"""Builds the five wheels and tries them as their users will.

    hatch run build:check              # or: ... build:check needle-nn, for one package alone

Alone: each package goes into a clean environment with its dependencies and nothing else of needle,
and its own tests run there, but for those that call C++ kernels straight: no environment changes
what these compute. Mixed: wheels and editable installs together, in every combination
that has ever broken, must import and train one step.
"""

import sys
import zipfile
from email.parser import Parser
from pathlib import Path

from environment import Environment, requirements
from packaging.requirements import Requirement
from wheels import PACKAGES, ROOT, build_all, build_wheel

SCRATCH = ROOT / ".hatch" / "wheels"
# Prints where each part came from, so that a failure shows which install was wrong.
TRY_ALL = """
import numpy, needle as ndl
import needle._kernels.cpu, needle.apps.cli
model = ndl.nn.Sequential(ndl.nn.Linear(4, 8), ndl.nn.ReLU(), ndl.nn.Linear(8, 2))
optimizer = ndl.optim.SGD(model.parameters(), lr=0.1)
x, y = ndl.Tensor(numpy.eye(4, dtype="float32")), ndl.Tensor(numpy.array([0, 1, 0, 1]))
losses = []
for _ in range(5):
    optimizer.reset_grad()
    loss = ndl.nn.SoftmaxLoss()(model(x), y)
    loss.backward(retain_graph=False)
    optimizer.step()
    losses.append(float(loss.numpy()))
assert losses[-1] < losses[0], losses
for module in (ndl._kernels.cpu, ndl.backend_ndarray, ndl, ndl.nn, ndl.data, ndl.apps):
    print("  ", module.__name__, module.__file__)
"""
# Which packages are editable; the rest are wheels.
MIXES = {
    "all wheels": set[str](),
    "all editable": set(PACKAGES),
    "kernels as a wheel": set(PACKAGES[1:]),
    "only kernels editable": {"needle-kernels"},
    "only core editable": {"needle-core"},
    "only apps editable": {"needle-apps"},
}


def needle_dependencies(wheel: Path) -> list[str]:
    """Reads from a wheel's metadata which needle packages it asks for.

    Raises:
        ValueError: One of them is not pinned to a minor version.
    """
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    found = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    needle = [requirement for requirement in found if requirement.name.startswith("needle-")]
    for requirement in needle:
        if "<" not in {specifier.operator for specifier in requirement.specifier}:
            raise ValueError(f"{wheel.name}: dependency: got {requirement}: need an upper bound")
    return [requirement.name for requirement in needle]


def closure(package: str, wheels: dict[str, Path]) -> list[str]:
    """Lists a package and all it depends on within needle, sorted."""
    found, pending = set[str](), [package]
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += needle_dependencies(wheels[name])
    return sorted(found)


def check_alone(package: str, wheels: dict[str, Path]) -> None:
    """Installs one package with only its dependencies and runs its tests."""
    members = closure(package, wheels)
    print(f"==> {package} alone, with {', '.join(members)}", flush=True)
    environment = Environment(SCRATCH)
    environment.install(*[wheels[name] for name in members])
    # The user's first import works before anything else is installed.
    module = {"needle-kernels": "backend_ndarray", "needle-core": "autograd"}.get(package)
    environment.capture(
        "python", "-c", f"import needle.{module or package.removeprefix('needle-')}"
    )
    environment.install(*requirements("test"))
    installed = environment.capture(
        "python",
        "-c",
        "import importlib.metadata as m; print(*{d.name for d in m.distributions()})",
    )
    present = sorted(name for name in installed.split() if name.startswith("needle-"))
    if present != members:
        raise ValueError(f"{package}: installed: got {present}: need {members}")
    environment.stream("pytest", "-q", f"packages/{package}", "--ignore-glob=*/test_kernels_cpp_*")


def check_mix(name: str, editable: set[str], wheels: dict[str, Path], kernels: Path) -> None:
    """Installs all five packages, some of them editable, and trains a step.

    Args:
        name: Shown.
        editable: The packages that point at their sources.
        wheels: The wheel of each package.
        kernels: The editable wheel of needle-kernels.
    """
    print(f"==> {name}", flush=True)
    environment = Environment(SCRATCH)
    arguments: list[str | Path] = []
    for package in PACKAGES:
        if package not in editable:
            arguments.append(wheels[package])
        elif package == "needle-kernels":
            arguments.append(kernels)
        else:
            arguments += ["--editable", ROOT / "packages" / package]
    environment.install(*arguments)
    environment.stream("python", "-c", TRY_ALL)
    environment.capture("needle", "--help")


def main() -> None:
    """Runs every check, or those of the packages named in sys.argv."""
    chosen = sys.argv[1:] or PACKAGES
    wheels = build_all()
    for package in chosen:
        check_alone(package, wheels)
    if sys.argv[1:]:
        return
    kernels = build_wheel("needle-kernels", ROOT / "build" / "editable", "wheel:editable")
    for name, editable in MIXES.items():
        check_mix(name, editable, wheels, kernels)
    print("==> every wheel works alone and together")


if __name__ == "__main__":
    main()
