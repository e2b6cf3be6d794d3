"""What a run prints: a progress bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from needle.apps.training import Observer, Score


def figures(score: Score, unit: str) -> str:
    """Loss and accuracy, or for tokens loss and perplexity: `loss 1.302, accuracy 53.1 %`."""
    if unit == "tokens":
        return f"loss {score.loss:.3f}, perplexity {score.perplexity:.1f}"
    return f"loss {score.loss:.3f}, accuracy {100 * score.accuracy:.1f} %"


def duration(seconds: float) -> str:
    """Seconds as people say them: `42.1 s`, `4 min 05 s`, `1 h 02 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class Report:
    """Prints the passes of a run: results to stdout, progress and warnings to stderr.

    Args:
        unit: what is counted, "images" or "tokens".
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self._stdout = Console(highlight=False, soft_wrap=True)
        self._stderr = Console(highlight=False, soft_wrap=True, stderr=True)

    def line(self, text: str) -> None:
        """Print one line of results."""
        self._stdout.print(text, markup=False)

    def finished(self, title: str, score: Score) -> None:
        """Print what a whole pass measured, and how fast it was."""
        rate, time = f"{score.rate:,.0f} {self.unit}/s", duration(score.seconds)
        self.line(f"{title}: {figures(score, self.unit)}, {rate}, {time}")

    def warn(self, text: str) -> None:
        """Print a warning that cannot be overlooked."""
        self._stderr.print(f"WARNING: {text}", style="bold yellow", markup=False)

    def result(self, split: str, score: Score) -> str:
        """What a split is judged by: `test accuracy 59.31 %` or `valid perplexity 98.7`."""
        if self.unit == "tokens":
            return f"{split} perplexity {score.perplexity:.1f}"
        return f"{split} accuracy {100 * score.accuracy:.2f} %"

    @contextmanager
    def watch(self, title: str, batches: int) -> Iterator[Observer]:
        """Show a pass while it runs; the bar is gone when it ends, however it ends."""
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._stderr,
            transient=True,
            disable=not self._stderr.is_terminal,
        )
        bar = progress.add_task(title, total=batches, figures="")

        def observe(score: Score) -> None:
            if not progress.disable:
                text = f"{figures(score, self.unit)}, {score.rate:,.0f} {self.unit}/s"
                progress.update(bar, completed=score.steps, figures=text)

        with progress:
            yield observe
