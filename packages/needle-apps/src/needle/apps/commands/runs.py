"""`needle runs`: list, compare, plot."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from needle.apps import config, runs
from needle.apps.commands.base import CommandError, app, mistakes
from needle.apps.commands.options import Json, RunsDir
from needle.apps.extras import MissingExtraError
from needle.apps.metrics import MetricsError
from needle.apps.plots import draw_comparison, draw_curves
from needle.apps.report import duration, print_json
from needle.apps.runs import Run, Summary

commands = typer.Typer(
    help="List the runs of a folder; compare some, or draw one again.\n\n"
    "Example: needle runs compare small medium",
    invoke_without_command=True,
)
app.add_typer(commands, name="runs")

NameOfRun = Annotated[
    str, typer.Argument(metavar="RUN", help="A folder, a name, a part of one, or `latest`.")
]
WIDEST = 1000  # columns of a table that no terminal limits
STYLES = {"finished": "green", "running": "cyan", "failed": "red", "killed": "red"}


@commands.callback()
def list_runs(context: typer.Context, runs_dir: RunsDir = runs.ROOT, as_json: Json = False) -> None:
    """List the runs of a folder, the oldest first.

    Example: needle runs
    """
    if context.invoked_subcommand is not None:
        return
    with mistakes():
        found = list(_summaries(runs.all_runs(runs_dir, _note)))
    if as_json:
        for summary in found:
            print_json(asdict(summary))
    elif not found:
        typer.echo(f"no runs in {runs_dir}: needle train resnet9 begins one", err=True)
    else:
        _print(_list(found))


def _summaries(found: Sequence[Run]) -> Iterator[Summary]:
    """What each run came to; one with damaged metrics is told on stderr and left out."""
    for run in found:
        try:
            yield runs.summarize(run)
        except MetricsError as error:
            _note(str(error))


def _note(damage: str) -> None:
    typer.echo(f"note: left out: {damage}", err=True)


@commands.command("compare")
def compare(
    names: Annotated[
        list[str], typer.Argument(metavar="RUN RUN...", help="Folders, names, or parts of names.")
    ],
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Draw accuracy or perplexity of all into this PNG.",
            show_default="compare.png in --runs-dir",
        ),
    ] = None,
    runs_dir: RunsDir = runs.ROOT,
    as_json: Json = False,
) -> None:
    """Compare runs: where their settings differ, what they came to, and both in one picture.

    Example: needle runs compare kaiming torch
    """
    with mistakes():
        if len(names) < 2:
            raise ValueError(f"compare: too few runs: got {len(names)}: need at least 2")
        chosen = [runs.find(name, runs_dir) for name in names]
        _check_different(names, chosen)
        summaries = [runs.summarize(run) for run in chosen]
        tasks = {summary.task for summary in summaries}
        if len(tasks) > 1:
            raise ValueError(f"compare: different tasks: got {', '.join(sorted(tasks))}: need one")
        settings = [config.read_config(run.folder / runs.CONFIG).plain() for run in chosen]
        changed = runs.differences(settings)
        drawn, hint = _draw(chosen, summaries[0].metric, plot or runs_dir / "compare.png")
    if as_json:
        print_json(
            {
                "runs": [asdict(summary) for summary in summaries],
                "differences": changed,
                "plot": drawn and str(drawn),
            }
        )
    else:
        _print(_side_by_side(summaries, changed))
        if drawn:
            typer.echo(f"drawn: {drawn}")
    if hint:
        typer.echo(f"note: {hint}", err=True)


def _check_different(names: Sequence[str], chosen: Sequence[Run]) -> None:
    """Raises ValueError if two of the names are of one run."""
    called: dict[Path, str] = {}
    for name, run in zip(names, chosen, strict=True):
        folder = run.folder.resolve()
        if folder in called:
            raise ValueError(
                f"compare: a run twice: got {called[folder]} and {name}, both are {folder.name}: "
                "need different ones"
            )
        called[folder] = name


@commands.command("plot")
def plot_run(name: NameOfRun, runs_dir: RunsDir = runs.ROOT) -> None:
    """Draw a run's curves again: of one that still runs, or was killed.

    Example: needle runs plot latest
    """
    with mistakes():
        run = runs.find(name, runs_dir)
        run.plots.mkdir(exist_ok=True)
        drawn = draw_curves(run.metrics(), run.plots, run.folder.name)
    if not drawn:
        raise CommandError(f"plot: nothing to draw: {run.folder} has no metrics yet")
    for path in drawn:
        typer.echo(str(path))


def _draw(chosen: Sequence[Run], metric: str, path: Path) -> tuple[Path | None, str]:
    """The picture, or why there is none."""
    try:
        rows = {run.folder.name: run.metrics() for run in chosen}
        return draw_comparison(rows, metric, path), ""
    except MissingExtraError as error:
        return None, str(error)


# ---- tables --------------------------------------------------------------------------------------


def _list(found: Sequence[Summary]) -> Table:
    table = Table("name", "task", "epochs", "best", "test", "time", "state")
    for each in found:
        table.add_row(
            each.name,
            each.task,
            f"{each.epochs_done}/{each.epochs}",
            _best(each),
            _value(each.final, each.metric),
            duration(each.seconds),
            f"[{STYLES.get(each.state, 'yellow')}]{each.state}[/]",
        )
    return table


def _side_by_side(found: Sequence[Summary], changed: dict[str, list[Any]]) -> Table:
    table = Table("", *(each.name for each in found))
    for name, values in changed.items():
        table.add_row(name, *("-" if value is None else str(value) for value in values))
    table.add_section()
    table.add_row("best", *map(_best, found))
    table.add_row("test, at the end", *(_value(each.final, each.metric) for each in found))
    table.add_row("epochs", *(f"{each.epochs_done}/{each.epochs}" for each in found))
    table.add_row("time", *(duration(each.seconds) for each in found))
    table.add_row("started", *(_date(each.started) for each in found))
    table.add_row("state", *(each.state for each in found))
    return table


def _best(summary: Summary) -> str:
    if summary.best is None:
        return "-"
    value = _value(summary.best, summary.metric)
    return f"{summary.split} {summary.metric} {value} (epoch {summary.best_epoch})"


def _value(value: float | None, metric: str) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if metric == "accuracy" else f"{value:.1f}"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _print(table: Table) -> None:
    """Print a table; on a pipe as wide as it needs to be, for grep."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDEST)
    console.print(table)
