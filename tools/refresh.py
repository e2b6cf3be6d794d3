"""Brings the environments of the workspace up to date with the working tree.

hatch installs a member once: it notices neither a changed C++ source nor a changed pyproject.toml.
This compiles what changed in the kernels, then reinstalls every member of every environment in
.hatch/, or of those named. Changed Python needs none of it.

    hatch run build:refresh            # all
    hatch run build:refresh dev nn     # two of them
"""

import subprocess
import sys
from pathlib import Path

from wheels import ROOT, build_wheel

ENVIRONMENTS = ROOT / ".hatch"


def installed_members(environment: Path) -> list[str]:
    """Lists the needle distributions of one environment, such as `needle-core`."""
    infos = environment.glob("lib/python*/site-packages/needle_*.dist-info")
    return sorted(info.name.split("-")[0].replace("_", "-") for info in infos)


def refresh(environment: Path, members: list[str], kernels: Path) -> None:
    """Reinstalls the members of one environment, and installs what they now depend on."""
    arguments = ["--reinstall-package=needle-kernels", str(kernels)]
    for member in members:
        if member != "needle-kernels":
            arguments += ["--editable", str(ROOT / "packages" / member)]
    python = environment / "bin" / "python"
    subprocess.run(["uv", "pip", "install", "--quiet", "--python", python, *arguments], check=True)


def main() -> None:
    """Refreshes the environments named in sys.argv, or all."""
    names = sys.argv[1:] or sorted(path.name for path in ENVIRONMENTS.glob("*"))
    targets = {name: installed_members(ENVIRONMENTS / name) for name in names}
    unknown = [name for name in sys.argv[1:] if not targets[name]]
    if unknown:
        sys.exit(f"refresh: environment: got {', '.join(unknown)}: need one in .hatch/ with needle")
    kernels = build_wheel("needle-kernels", ROOT / "build" / "editable", "wheel:editable")
    for name, members in targets.items():
        if members:
            refresh(ENVIRONMENTS / name, members, kernels)
            print(f"{name}: {', '.join(members)}")


if __name__ == "__main__":
    main()
