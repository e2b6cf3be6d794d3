"""Type-checks the five packages as installed wheels, strictly, and the tools.

    hatch run types:check

mypy does not follow the `extend_path` of needle/__init__.py, so a source tree in five parts is
five unrelated packages to it. Installed, they are one folder.
"""

import subprocess
import sys

from environment import Environment
from wheels import ROOT, build_all


def main() -> None:
    """Builds and installs the wheels, then runs mypy."""
    environment = Environment(ROOT / ".hatch" / "wheels")
    environment.install(*build_all().values())
    mypy = [sys.executable, "-m", "mypy", "--strict"]
    installed = ["--python-executable", environment.program("python"), "-p", "needle"]
    checks = ([*mypy, *installed], [*mypy, "tools"])
    failures = [check for check in checks if subprocess.run(check, cwd=ROOT).returncode]
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
