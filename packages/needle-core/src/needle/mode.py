"""Whether operations make graphs: per thread, switched by contexts."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Mode(threading.local):
    """Whether operations of this thread make graphs."""

    recording = True
    walking = False
    """Whether the engine is going back without recording: shapes then follow from checked ones."""


current: Final = Mode()


class recording:
    """Context in which operations do or do not make graphs, in this thread."""

    __slots__ = ("_before", "_on", "_walking")

    def __init__(self, on: bool, walking: bool = False) -> None:
        """`on` says which; `walking` is the engine's."""
        self._on = on
        self._walking = walking
        self._before: list[tuple[bool, bool]] = []

    def __enter__(self) -> None:
        self._before.append((current.recording, current.walking))
        current.recording, current.walking = self._on, self._walking

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        current.recording, current.walking = self._before.pop()


class no_grad(recording):
    """Within it, results require no gradient and keep no graph; per thread.

    Used as `with no_grad():`, or as a decorator, `@no_grad()`. Of a generator function the body
    runs in it, and what is done between its steps does not.
    """

    __slots__ = ()

    def __init__(self) -> None:
        """Takes effect on entry."""
        super().__init__(on=False)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """`function`, run without recording."""
        if inspect.isgeneratorfunction(function):
            generating: Callable[P, R] = _step_by_step(function)
            return generating

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with no_grad():
                return function(*args, **kwargs)

        return run


def _step_by_step(function: Callable[..., Any]) -> Any:
    """A generator function whose steps run without recording."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        with no_grad():
            generator: Any = function(*args, **kwargs)
        step, sent = generator.send, None
        while True:
            try:
                with no_grad():
                    item = step(sent)
            except StopIteration as end:
                return end.value
            finally:
                sent = None  # an exception holds this frame: a cycle
            try:
                step, sent = generator.send, (yield item)
            except GeneratorExit:
                with no_grad():
                    generator.close()
                raise
            except BaseException as error:
                step, sent = generator.throw, error

    return run
