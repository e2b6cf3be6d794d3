"""Compiles the CUDA module with nvcc, and imports it: it must load where there is no driver.

    hatch run build:cuda [ARCHITECTURES]

ARCHITECTURES as CMake writes them, `90-real` by default: all of them take five times as long.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "cuda"


def main() -> None:
    """Configures, builds and looks for the module."""
    architectures = sys.argv[1] if len(sys.argv) > 1 else "90-real"
    ask = [sys.executable, "-m", "pybind11", "--cmakedir"]
    cmake_files = subprocess.run(ask, check=True, capture_output=True, text=True).stdout
    settings = {
        "CMAKE_BUILD_TYPE": "Release",
        "NEEDLE_CUDA": "on",
        "NEEDLE_CUDA_ARCHITECTURES": architectures,
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": cmake_files.strip(),
    }
    options = [f"-D{name}={value}" for name, value in settings.items()]
    source = ROOT / "packages" / "needle-kernels"
    subprocess.run(["cmake", "-G", "Ninja", "-S", source, "-B", BUILD, *options], check=True)
    subprocess.run(["cmake", "--build", BUILD, "--target", "cuda"], check=True)
    (module,) = BUILD.glob("cuda*.so")
    load = importlib.util.spec_from_file_location("needle._kernels.cuda", module)
    assert load is not None, f"no extension module: {module}"
    importlib.util.module_from_spec(load)  # runs the dynamic linker
    print(f"{module.name}: {module.stat().st_size / 1e6:.1f} MB, loads")


if __name__ == "__main__":
    main()
