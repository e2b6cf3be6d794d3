"""A clean virtual environment, for the checks that install wheels."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from wheels import ROOT


class Environment:
    """A new virtual environment of this Python, deleted first where one exists.

    Args:
        path: Where it goes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        shutil.rmtree(path, ignore_errors=True)
        subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, path], check=True)

    def program(self, name: str) -> str:
        """Returns the path of one of the environment's programs, such as `pytest`."""
        return str(self.path / "bin" / name)

    def install(self, *arguments: str | Path) -> None:
        """Installs requirements, wheels or options as `uv pip install` takes them."""
        command = ["uv", "pip", "install", "--quiet", "--python", self.program("python")]
        subprocess.run([*command, *map(str, arguments)], check=True)

    def stream(self, program: str, *arguments: str) -> None:
        """Runs a program of the environment in the root of the repository, its output shown.

        Raises:
            subprocess.CalledProcessError: The program failed.
        """
        subprocess.run([self.program(program), *arguments], cwd=ROOT, check=True)

    def capture(self, program: str, *arguments: str) -> str:
        """Runs a program of the environment in the root of the repository.

        Returns:
            What it wrote to standard output.

        Raises:
            subprocess.CalledProcessError: The program failed.
        """
        command = [self.program(program), *arguments]
        return subprocess.run(
            command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
        ).stdout


def requirements(group: str) -> list[str]:
    """Reads one dependency group of the workspace, such as `test`."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return list(settings["dependency-groups"][group])
