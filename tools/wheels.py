"""Builds the five wheels into dist/.

    hatch run build:wheels

The builds run inside the environment that calls this, without isolation: an isolated one has new
paths every time, and CMake would compile everything again. With NEEDLE_KERNELS_WHEEL (a file://
URL) that wheel of needle-kernels is taken and nothing is compiled.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
# In the order of the arrows: a package depends on earlier ones only.
PACKAGES = ("needle-kernels", "needle-core", "needle-nn", "needle-data", "needle-apps")


def build_wheel(package: str, directory: Path, target: str = "wheel") -> Path:
    """Builds one wheel, replacing those of the package that lie in the directory.

    Args:
        package: Its name, such as `needle-core`.
        directory: Where the wheel goes.
        target: `wheel`, or `wheel:editable` for one that points at the sources.

    Returns:
        The path of the wheel.
    """
    pattern = f"{package.replace('-', '_')}-*.whl"
    for old in directory.glob(pattern):
        old.unlink()
    command = ["hatchling", "build", "--target", target, "--directory", str(directory)]
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT / "packages" / package, check=True)
    return next(directory.glob(pattern))


def kernels_wheel() -> Path:
    """Returns the wheel of needle-kernels in dist/: the given one, else one built now."""
    url = os.environ.get("NEEDLE_KERNELS_WHEEL")
    if url is None:
        return build_wheel("needle-kernels", DIST)
    given = Path(unquote(urlsplit(url).path))
    if given.parent != DIST:
        shutil.copy(given, DIST)
    return DIST / given.name


def build_all() -> dict[str, Path]:
    """Builds every wheel.

    Returns:
        The wheel of each package, in the order of `PACKAGES`.
    """
    DIST.mkdir(exist_ok=True)
    wheels = {"needle-kernels": kernels_wheel()}
    for package in PACKAGES[1:]:
        wheels[package] = build_wheel(package, DIST)
    return wheels


if __name__ == "__main__":
    build_all()
