"""Whether operations make graphs: per thread, switched by contexts."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Mode(threading.local):
    """Whether operations of this thread make graphs."""

    recording = True


current: Final = Mode()


class recording:
    """Context in which operations do or do not make graphs, in this thread."""

    __slots__ = ("_before", "_on")

    def __init__(self, on: bool) -> None:
        """`on` says which."""
        self._on = on
        self._before: list[bool] = []

    def __enter__(self) -> None:
        self._before.append(current.recording)
        current.recording = self._on

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        current.recording = self._before.pop()


class no_grad(recording):
    """Within it, results require no gradient and keep no graph; per thread.

    Used as `with no_grad():`, or as a decorator, `@no_grad()`.
    """

    __slots__ = ()

    def __init__(self) -> None:
        """Takes effect on entry."""
        super().__init__(on=False)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """`function`, run without recording."""

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with no_grad():
                return function(*args, **kwargs)

        return run
