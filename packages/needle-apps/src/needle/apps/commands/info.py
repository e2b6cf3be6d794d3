"""`needle info`."""

from __future__ import annotations

import typer

from needle.apps.commands.base import app
from needle.apps.info import describe


@app.command()
def info() -> None:
    """Show versions, the CPU target, threads and devices: what a bug report should hold."""
    for line in describe():
        typer.echo(line)
