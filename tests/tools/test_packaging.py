"""The five distributions: what they ship, what they ask for, and which way the arrows point."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
# Each package, what it may use of needle, and the public modules it ships.
USES = {
    "needle-kernels": [],
    "needle-core": ["needle-kernels"],
    "needle-nn": ["needle-core", "needle-kernels"],
    "needle-data": ["needle-core", "needle-kernels"],
    "needle-apps": ["needle-nn", "needle-data", "needle-core", "needle-kernels"],
}
PACKAGES = list(USES)


def project(package: str) -> dict:
    return tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())["project"]


def sources(package: str) -> Path:
    return ROOT / "packages" / package / "src" / "needle"


def top_level(package: str) -> set[str]:
    """The names a package adds to `needle`, such as `nn` and `optim`."""
    return {
        path.stem
        for path in sources(package).iterdir()
        if path.stem != "__init__" and (path.suffix == ".py" or (path / "__init__.py").is_file())
    }


def modules(package: str) -> list[str]:
    """Every module of a package, dotted, but for those that run something."""
    names = []
    for path in sorted(sources(package).rglob("*.py")):
        if path.stem == "__main__":
            continue
        parts = path.relative_to(sources(package).parent).with_suffix("").parts
        names.append(".".join(parts).removesuffix(".__init__"))
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_members_pin_each_other_to_one_minor_version(package):
    requirements = [Requirement(text) for text in project(package)["dependencies"]]
    members = {item.name: item.specifier for item in requirements if item.name in PACKAGES}
    assert set(members) <= set(USES[package])
    for name, specifier in members.items():
        version = Version(project(name)["version"])
        minor = f"{version.major}.{version.minor}"
        following = f"{version.major}.{version.minor + 1}"
        assert specifier == Requirement(f"{name}>={minor},<{following}").specifier


@pytest.mark.parametrize("package", PACKAGES[1:])
def test_what_a_package_uses_is_what_its_requirements_bring(package):
    found, pending = set(), [package]
    while pending:
        for text in project(pending.pop())["dependencies"]:
            name = Requirement(text).name
            if name in PACKAGES and name not in found:
                found.add(name)
                pending.append(name)
    assert found == set(USES[package])


def test_only_core_ships_the_package_itself():
    owners = [package for package in PACKAGES if (sources(package) / "__init__.py").exists()]
    assert owners == ["needle-core"]


def test_no_name_is_shipped_twice():
    names = [name for package in PACKAGES for name in top_level(package)]
    assert sorted(names) == sorted(set(names))


def test_python_files_stay_out_of_the_extensions_folder():
    assert list(sources("needle-kernels").glob("_kernels/*.py")) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_complete(package):
    folder = ROOT / "packages" / package
    for name in ("README.md", "CHANGELOG.md", "LICENSE", "tests", "benchmarks"):
        assert (folder / name).exists(), name
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert project(package)["version"] in (folder / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_marked_as_typed(package):
    marked = [path.parent for path in sources(package).rglob("py.typed")]
    for path in sources(package).rglob("*.py"):
        assert any(folder in path.parents for folder in marked), path


# Imports argv[2:] where every name of needle in argv[1] is hidden. Where `autograd` is, core is not
# installed: then `needle` is a namespace package, of which this makes one by hand.
IMPORT_WITHOUT = """
import importlib, importlib.machinery, os, sys

hidden = set(sys.argv[1].split(","))

class Hide:
    def find_spec(self, name, path=None, target=None):
        parts = name.split(".")
        if parts[0] == "needle" and len(parts) > 1 and parts[1] in hidden:
            raise ModuleNotFoundError(f"hidden: {name}", name=name)

if "autograd" in hidden:
    spec = importlib.machinery.ModuleSpec("needle", None, is_package=True)
    import needle
    path = needle.__path__
    for name in [name for name in sys.modules if name.partition(".")[0] == "needle"]:
        del sys.modules[name]
    sys.modules["needle"] = importlib.util.module_from_spec(spec)
    sys.modules["needle"].__path__ = path

sys.meta_path.insert(0, Hide())
for name in sys.argv[2:]:
    importlib.import_module(name)
"""


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_imports_a_later_one(package):
    later = [name for name in PACKAGES if name != package and name not in USES[package]]
    hidden = set().union(*(top_level(name) for name in later)) or {"nothing"}
    command = [sys.executable, "-W", "error", "-c", IMPORT_WITHOUT, ",".join(sorted(hidden))]
    done = subprocess.run([*command, *modules(package)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["nn", "optim", "data"])
def test_an_absent_package_is_named(name):
    distribution = "needle-data" if name == "data" else "needle-nn"
    command = [sys.executable, "-c", IMPORT_WITHOUT + f"\nsys.modules['needle'].{name}"]
    done = subprocess.run([*command, name, "needle"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "ImportError" in done.stderr
    assert distribution in done.stderr
