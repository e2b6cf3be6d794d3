"""`needle data`: which data sets there are, where they lie, and whether they are whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from needle.apps import sources
from needle.apps.commands.base import CommandError, RunFailedError, app, mistakes, show_help
from needle.apps.commands.options import Json
from needle.apps.report import print_json
from needle.data import download
from needle.data.verify import State, verify_cifar10, verify_ptb

data = typer.Typer(help="List, download and verify the data sets.")
data.callback(invoke_without_command=True)(show_help)
app.add_typer(data, name="data")


@dataclass(frozen=True)
class DataSet:
    """A data set that can be downloaded.

    Attributes:
        real: how to find and fetch it.
        about: what it is.
        bytes: of the download.
        verify: its state in a folder; raises ValueError or OSError where it is damaged.
    """

    real: sources.Real
    about: str
    bytes: int
    verify: Callable[[Path], State]


DATA_SETS = {
    "cifar10": DataSet(
        sources.CIFAR10,
        "60,000 colour images of 32 x 32 pixels in ten classes",
        download.CIFAR10.size,
        verify_cifar10,
    ),
    "ptb": DataSet(
        sources.PTB,
        "Penn Treebank: a million words of newspaper text",
        sum(source.size for source in download.PTB.values()),
        verify_ptb,
    ),
}

STATES = {
    "official": "verified: the official files",
    "other": "whole, but not the official files",
}

Name = Annotated[str, typer.Argument(metavar="NAME", help="cifar10 or ptb.")]
Names = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME]...", help="cifar10, ptb; all without one.")
]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", help="The folder to look in.", show_default="searched for as in training"
    ),
]
Target = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", help="The folder to download into.", show_default="the cache folder"
    ),
]


@dataclass(frozen=True)
class Finding:
    """What is known of one data set: `state` is missing, damaged or a `State`."""

    name: str
    about: str
    bytes: int
    state: str
    folder: str | None
    problem: str | None = None

    @property
    def line(self) -> str:
        """For a person."""
        size = f"{self.bytes / 1e6:.1f} MB"
        state = STATES.get(self.state, self.state)
        where = f" in {self.folder}" if self.folder else ""
        problem = f": {self.problem}" if self.problem else ""
        return f"{self.name:8} {size:>9}  {state}{where}{problem}"


@data.command("list")
def list_all(data_dir: Folder = None, as_json: Json = False) -> None:
    """Show every data set: the size of its download, where it lies, whether it is whole."""
    with mistakes():
        findings = [examine(name, data_dir) for name in DATA_SETS]
    for finding in findings:
        show(finding, as_json)
    if not as_json:
        typer.echo("\nneedle data download NAME fetches one; --data synthetic needs none.")


@data.command()
def verify(names: Names = None, data_dir: Folder = None, as_json: Json = False) -> None:
    """Check the files of data sets; exit with 1 if one is damaged or missing."""
    with mistakes():
        findings = [examine(name, data_dir) for name in known(*(names or DATA_SETS))]
    for finding in findings:
        show(finding, as_json)
    bad = [f"{each.name} is {each.state}" for each in findings if each.state not in STATES]
    if bad:
        raise RunFailedError(f"data verify: {', '.join(bad)}")


@data.command()
def path(name: Name, data_dir: Folder = None, as_json: Json = False) -> None:
    """Print the folder of a data set, for scripts."""
    (name,) = known(name)
    folder = find(name, data_dir)
    if folder is None:
        raise CommandError(
            f"data path: {name} is missing: searched {searched(data_dir)}: get it with: "
            f"needle data download {name}"
        )
    if as_json:
        print_json({"name": name, "folder": str(folder)})
    else:
        typer.echo(folder)


@data.command("download")
def fetch(name: Name, data_dir: Target = None, as_json: Json = False) -> None:
    """Download a data set, unless it is there; a broken transfer goes on where it broke."""
    (name,) = known(name)
    with mistakes():
        folder = DATA_SETS[name].real.fetch(data_dir)
        finding = examine(name, folder)
    show(finding, as_json)
    if finding.state not in STATES:
        raise RunFailedError(f"data download: {name} is {finding.state}: remove {finding.folder}")


# ---- looking -------------------------------------------------------------------------------------


def known(*names: str) -> list[str]:
    """The names, each checked.

    Raises:
        CommandError: there is no such data set.
    """
    for name in names:
        if name not in DATA_SETS:
            raise CommandError(f"data: no such data set: {name}: need {' or '.join(DATA_SETS)}")
    return list(names)


def find(name: str, folder: Path | None) -> Path | None:
    """Where a data set lies: in `folder`, or in the first of the usual places."""
    return sources.find(DATA_SETS[name].real, folder)


def searched(folder: Path | None) -> str:
    """The folders that `find` looks in."""
    return ", ".join(map(str, [folder] if folder else sources.data_folders()))


def examine(name: str, folder: Path | None) -> Finding:
    """What is known of a data set, its files read."""
    about, size = DATA_SETS[name].about, DATA_SETS[name].bytes
    where = find(name, folder)
    if where is None:
        return Finding(name, about, size, "missing", None)
    try:
        state = DATA_SETS[name].verify(where)
    except (ValueError, OSError) as error:
        return Finding(name, about, size, "damaged", str(where), str(error))
    return Finding(name, about, size, str(state), str(where))


def show(finding: Finding, as_json: bool) -> None:
    """Print a finding."""
    if as_json:
        record: dict[str, Any] = asdict(finding)
        print_json(record)
    else:
        typer.echo(finding.line)
