"""Type-checks the five packages as installed wheels, the extension's stub, and the tools.

    hatch run types:check

mypy does not follow the `extend_path` of needle/__init__.py, so a source tree in five parts is
five unrelated packages to it. Installed, they are one folder.
"""

import subprocess
import sys

from environment import Environment, requirements
from wheels import ROOT, build_all

CHECKS = (
    ("mypy", "--strict", "--package", "needle"),
    ("stubtest", "needle._kernels.cpu", "--allowlist", "tools/stubtest.txt"),
    ("mypy", "--strict", "tools"),
)


def main() -> None:
    """Builds and installs the wheels, then runs every check, even where one fails."""
    environment = Environment(ROOT / ".hatch" / "wheels")
    environment.install(*build_all().values(), *requirements("types"))
    failed = False
    for program, *arguments in CHECKS:
        print("==>", program, *arguments, flush=True)
        command = [environment.program(program), *arguments]
        failed |= subprocess.run(command, cwd=ROOT).returncode != 0
    sys.exit(failed)


if __name__ == "__main__":
    main()
