"""The command group: what all commands share, exit codes and one line for every mistake.

Results go to stdout, progress and warnings to stderr. Exit codes:

| code | meaning |
|---|---|
| 0 | done |
| 1 | a run was set up rightly, and failed later; the output cannot be written |
| 2 | a mistake of the user's: one line on stderr |
| 130, 143 | stopped by Ctrl-C (SIGINT), by SIGTERM |
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

import needle
from needle.apps.config import DeviceChoice
from needle.apps.extras import MissingExtraError
from needle.apps.report import discard_stdout
from needle.backend_ndarray import Device, DeviceError


class CommandError(Exception):
    """Ends a command with a message of one line."""

    exit_code = 2

    def format_message(self) -> str:
        """The message, under the name that the command line's own errors have for it."""
        return "error: " + " ".join(str(self).split())


class RunFailedError(CommandError):
    """A run was set up rightly, and failed later."""

    exit_code = 1


class InterruptedRunError(CommandError):
    """A signal ended a run, after it had saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number

    def format_message(self) -> str:
        return str(self)


class Commands(TyperGroup):
    """The command group, with every mistake told in one line."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command and exit with its code; an error with a message prints just that."""
        args = _with_value("--resume", "latest", sys.argv[1:] if args is None else args)
        try:
            code = super().main(args, "needle", complete_var, False, windows_expand_args, **extra)
        except CommandError as error:
            typer.echo(error.format_message(), err=True)
            code = error.exit_code
        except (typer.Abort, KeyboardInterrupt):
            code = 130
        except OSError as error:
            # What is read has its errors told by `mistakes`: without a file this is stdout.
            discard_stdout()
            what = error.filename or "cannot write"
            typer.echo(f"error: {what}: {error.strerror or error}", err=True)
            code = 1
        except Exception as error:
            # Typer's usage errors have no public common class: what they share is this method.
            if not hasattr(error, "format_message"):
                raise
            typer.echo(f"error: {error.format_message()}", err=True)
            code = getattr(error, "exit_code", 2)
        if standalone_mode:
            sys.exit(code)
        return code


def _with_value(option: str, value: str, args: Sequence[str]) -> list[str]:
    """The arguments with `option value` for a bare `option`: Typer knows no optional values."""
    given = list(args)
    for i in range(len(given) - 1, -1, -1):
        if given[i] == option and given[i + 1 : i + 2] in (
            [],
            *([a] for a in given if a[:1] == "-"),
        ):
            given.insert(i + 1, value)
    return given


@contextmanager
def mistakes() -> Iterator[None]:
    """Turn what the user or the disk got wrong into one line, while a run is being set up."""
    try:
        yield
    except OSError as error:
        text = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        raise CommandError(text) from error
    except (ValueError, DeviceError, MissingExtraError) as error:
        raise CommandError(str(error)) from error
    except MemoryError as error:
        raise CommandError(f"not enough memory: {error}") from error


def prepare_machine(choice: DeviceChoice | None, threads: int | None) -> Device:
    """Choose the device and the threads; a device that is not there says why.

    Raises:
        DeviceError: the device cannot be used.
    """
    if threads is not None:
        needle.set_num_threads(threads)
    if choice is None:
        return needle.default_device()
    makers = {"cpu": needle.cpu, "cuda": needle.cuda, "cpu_numpy": needle.cpu_numpy}
    device: Device = makers[choice]()
    device.zeros((1,))
    return device


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train and measure the networks of the needle deep-learning framework.",
)


@app.callback(invoke_without_command=True)
def show_help(context: typer.Context) -> None:
    """Print the help of a group that is called without a command."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
