"""Formats the C++ and CUDA sources with clang-format, or checks them.

`hatch run lint:fix` and `hatch run lint:check` call this after ruff.
"""

import subprocess
import sys

from wheels import ROOT

SUFFIXES = {".cpp", ".cu", ".cuh", ".h"}


def main() -> int:
    """Runs clang-format over every source; with --check only compares.

    Returns:
        Its exit status.
    """
    folder = ROOT / "packages" / "needle-kernels" / "csrc"
    sources = sorted(str(path) for path in folder.rglob("*") if path.suffix in SUFFIXES)
    mode = ["--dry-run", "--Werror"] if "--check" in sys.argv[1:] else ["-i"]
    return subprocess.run(["clang-format", *mode, *sources]).returncode


if __name__ == "__main__":
    sys.exit(main())
