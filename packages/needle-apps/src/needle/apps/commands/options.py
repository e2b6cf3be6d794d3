"""Options, each written once: those of a config, made from its fields, and those shared by hand."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from needle.apps.config import (
    Check,
    Config,
    DeviceChoice,
    about,
    at_least,
    default_of,
    parse_interval,
)


def checked(check: Check) -> Callable[[Any], Any]:
    """A config's check as an option's callback: Typer's own ranges do not say what they got."""

    def callback(value: Any) -> Any:
        if value is not None:
            try:
                check(value)
            except ValueError as error:
                raise typer.BadParameter(str(error)) from None
        return value

    return callback


def config_options(kind: type[Config]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for every setting of a config.

    The command takes them as `settings`, a dict of those that were typed; its other parameters are
    options as usual.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters.values()
        kept = [p for p in own if p.name != "settings"]
        hints = typing.get_type_hints(kind)
        made = [_parameter(each, hints[each.name]) for each in fields(kind)]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            given = {p.name: values.pop(p.name) for p in made}
            command(settings={k: v for k, v in given.items() if v is not None}, **values)

        # Typer reads the options off the signature.
        run.__signature__ = inspect.Signature([*kept, *made])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in [*kept, *made]}
        return run

    return decorate


def _parameter(each: Field[Any], hint: Any) -> inspect.Parameter:
    """A config's field as an option that is None unless it is typed."""
    told, default = about(each), default_of(each)
    kind = typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint
    flag = "--" + each.name.replace("_", "-")
    if kind is bool:
        flag = f"{flag}/--no-{flag[2:]}"
    option = typer.Option(
        flag,
        help=told.help,
        callback=checked(told.check) if told.check else None,
        rich_help_panel=told.panel,
        show_default=told.shown or _shown(default),
    )
    return inspect.Parameter(
        each.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _shown(default: Any) -> str:
    return {True: "on", False: "off"}[default] if isinstance(default, bool) else str(default)


# ---- options of several commands -----------------------------------------------------------------

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object a line, for machines, to stdout.")
]
RunsDir = Annotated[
    Path,
    typer.Option(
        envvar="NEEDLE_RUNS_DIR", help="The folder of all runs.", rich_help_panel="Output"
    ),
]
Model = Annotated[
    Path,
    typer.Argument(
        metavar="RUN|CHECKPOINT", help="A run, by folder or name or `latest`, or a checkpoint file."
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Read the data set from this folder, and from nowhere else."),
]
DeviceName = Annotated[
    DeviceChoice | None,
    typer.Option(help="Where to run.", show_default="cpu, or what NEEDLE_BACKEND says"),
]
Threads = Annotated[
    int | None,
    typer.Option(callback=checked(at_least(1)), help="CPU threads.", show_default="all cores"),
]
MaxBatches = Annotated[
    int | None,
    typer.Option(callback=checked(at_least(1)), help="Cut every pass short after so many batches."),
]

__all__ = [
    "DataDir",
    "DeviceName",
    "Json",
    "MaxBatches",
    "Model",
    "RunsDir",
    "Threads",
    "checked",
    "config_options",
    "parse_interval",
]
