"""Where the time goes: every kernel call of a block, as a table and as a trace for Perfetto."""

from __future__ import annotations

import functools
import inspect
import operator
import os
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TextIO, get_args

from ._kernels.cpu import clock, thread_number
from .autograd import Op
from .backend_ndarray import KernelCall, Peak, Recorder, cost_of, peak, synchronize

if TYPE_CHECKING:
    from .trace_file import Draft

__all__ = ["OpSpan", "ProfileRow", "profile"]

By = Literal["kernel", "shape"]
Sort = Literal["time", "calls", "peak", "name"]


@dataclass(frozen=True)
class ProfileRow:
    """One line of a profile: the calls of one kernel, or those with equal operands."""

    name: str
    """The kernel; by="shape" its operands too."""
    device: str
    """ "cpu", "cuda", or "reference" for the NumPy device."""
    calls: int
    seconds: float
    share: float
    """Of the block's time: 0 to 1, more where Python threads ran at once."""
    flops: int
    """By definition (see `needle.backend_ndarray.costs`); 0 for a kernel that moves bytes only."""
    bytes: int
    """Distinct elements of all operands."""
    peak: float
    """The least time the machine would need (the roofline) over the time it took.

    1 is the machine's best. More is possible where a cache held the operands.
    """

    @property
    def gflops(self) -> float:
        """10^9 flops per second."""
        return self.flops * 1e-9 / self.seconds

    @property
    def gbytes(self) -> float:
        """10^9 bytes per second."""
        return self.bytes * 1e-9 / self.seconds


class OpSpan(NamedTuple):
    """When one operation ran its `compute` or its `gradient`."""

    name: str
    thread: int
    start: int
    """In ns, on the clock of KernelCall.start."""
    duration: int


class profile:
    """Within it every kernel call is recorded; at its end a table says where the time went.

    with needle.profile() as p:
        loss = loss_fn(model(x), y)
        loss.backward(retain_graph=False)

    prints kernel, calls, time, share of the block's time, GFLOP/s, GB/s, percent of the peak that
    this machine was measured to have (`needle.peak()`), and the time between kernels. Flops and
    bytes come from the operands' shapes and count the definition: a convolution's taps inside the
    image, not the padding.

    What the block ran is recorded, on all threads and both CPU devices, before an exception too:
    the calls that begin and end in it. Profiles may nest. Each kernel runs to its end before Python
    goes on, so that its time is its own; without a profile, short kernels run while Python prepares
    the next. On cuda() the time is that of the launch.

    A call costs about half a microsecond, and at the end some 15 and 1.2 KB; with `trace`, three
    microseconds an operation and at the end some 40. An exception of the block is not replaced by
    what goes wrong with table or trace, which becomes a note of it.

    Args:
        print_table: print the table at the end.
        file: where to; standard output if None.
        trace: also write a trace for https://ui.perfetto.dev or chrome://tracing to this file:
            kernels, and above them the operations that called them. The file appears complete or
            not at all; of a link, the file that it names.
        by: one row per "kernel", or per kernel and operands' "shape".
        sort: rows by "time", "calls", "peak" (most first) or "name".
        limit: rows of the table; None: all.

    Raises:
        ValueError: an argument is none of the above.
        TypeError: `file` cannot be written to, `trace` is no path or `limit` no integer.
        OSError: `trace` cannot be written, or is no file but a device or pipe; raised before the
            block runs.
    """

    def __init__(
        self,
        *,
        print_table: bool = True,
        file: TextIO | None = None,
        trace: str | os.PathLike[str] | None = None,
        by: By = "kernel",
        sort: Sort = "time",
        limit: int | None = 20,
    ) -> None:
        """Records nothing until it is entered."""
        self._settings = _check_settings(by, sort, limit)
        if file is not None and not hasattr(file, "write"):
            raise TypeError(f"profile: file: got {type(file).__name__}: need one with write()")
        self._print = print_table
        self._file = file
        self._trace = None if trace is None else _as_path(trace)
        self._draft: Draft | None = None
        self._recorder = Recorder()
        self._start: int | None = None
        self._end: int | None = None
        self._peak: Peak | None = None
        self.calls: list[KernelCall] = []
        """Every call, in the order in which they ended."""
        self.ops: list[OpSpan] = []
        """Every operation's `compute` and `gradient`; recorded for a trace only."""

    def __enter__(self) -> profile:
        if self._start is not None and self._end is None:
            raise RuntimeError("profile: is already running: make another one to nest")
        self.calls, self._end, self._peak = [], None, None
        self.ops.clear()
        if self._print:
            self._ceilings()  # with the threads of now, and in nobody's time
        synchronize()  # what was asked for before is not the block's
        if self._trace is not None:
            self._draft = _draft(self._trace)
            _spans.begin(self.ops)
        self._recorder.start()
        self._start = clock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._recorder.stop()
        self._end = clock()
        begin = self._start or 0
        self.calls = [call for call in self._recorder.take() if call.start >= begin]
        if self._draft is not None:
            _spans.end(self.ops)
            self.ops[:] = [span for span in self.ops if span.start >= begin]
        try:
            self._report()
        except Exception as problem:
            if error is None:
                raise
            error.add_note(f"profile: {type(problem).__name__}: {problem}")

    def _report(self) -> None:
        draft, self._draft = self._draft, None
        try:
            if self._print:
                print(self.table(), file=sys.stdout if self._file is None else self._file)
        finally:
            if draft is not None:
                draft.write(self._events())

    # ---- results --------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """How long the block took."""
        start, end = self._interval()
        return (end - start) * 1e-9

    @property
    def between(self) -> float:
        """How many seconds of the block no kernel ran: Python, and waiting."""
        return self.seconds - _covered(self.calls) * 1e-9

    @property
    def rows(self) -> list[ProfileRow]:
        """The rows of the table, all of them."""
        return self._rows(self._settings[0], self._settings[1])

    def table(
        self,
        by: By | None = None,
        sort: Sort | None = None,
        limit: int | None = None,
    ) -> str:
        """The table as text; arguments replace those of the profile.

        Raises:
            ValueError: an argument is not one that `profile` takes.
            RuntimeError: the block has not ended.
        """
        grouping, order, most = self._settings
        grouping, order, most = _check_settings(
            grouping if by is None else by,
            order if sort is None else sort,
            most if limit is None else limit,
        )
        rows = self._rows(grouping, order)
        mixed = len({row.device for row in rows}) > 1
        lines = [_line(row, mixed) for row in rows[:most]]
        if left := rows[len(lines) :]:
            seconds, calls = sum(row.seconds for row in left), sum(row.calls for row in left)
            lines.append((f"({len(left)} more)", str(calls), *self._time(seconds), "", "", ""))
        lines.append(("between kernels", "", *self._time(self.between), "", "", ""))
        lines.append(("all", str(len(self.calls)), *self._time(self.seconds), "", "", ""))
        return "\n".join([*_layout([HEADER, *lines]), self._ceiling()])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the trace, whole or not at all.

        Raises:
            OSError: the path cannot be written.
            RuntimeError: the block has not ended.
        """
        events = self._events()
        _draft(_as_path(path)).write(events)

    # ---- how ------------------------------------------------------------------------------------

    def _interval(self) -> tuple[int, int]:
        if self._start is None or self._end is None:
            state = "has not begun" if self._start is None else "is still running"
            raise RuntimeError(f"profile: nothing to show: the block {state}: leave it first")
        return self._start, self._end

    def _ceilings(self) -> Peak:
        if self._peak is None:
            self._peak = peak()
        return self._peak

    def _rows(self, by: By, sort: Sort) -> list[ProfileRow]:
        seconds = self.seconds
        groups: dict[tuple[str, str], list[KernelCall]] = defaultdict(list)
        for call in self.calls:
            name = f"{call.kernel} {call.describe()}" if by == "shape" else call.kernel
            groups[call.device, name].append(call)
        ceiling = self._ceilings()
        rows = [_row(*key, calls, seconds, ceiling) for key, calls in groups.items()]
        keys: dict[Sort, Callable[[ProfileRow], Any]] = {
            "time": lambda row: -row.seconds,
            "calls": lambda row: -row.calls,
            "peak": lambda row: -row.peak,
            "name": lambda row: row.name,
        }
        return sorted(rows, key=keys[sort])

    def _time(self, seconds: float) -> tuple[str, str]:
        return f"{seconds * 1e3:.3f}", f"{100 * seconds / self.seconds:.1f}"

    def _ceiling(self) -> str:
        best = self._ceilings()
        devices = ", ".join(sorted({call.device for call in self.calls}))
        return (
            f"peak: {best.gflops32:.0f} GFLOP/s (float64 {best.gflops64:.0f}), {best.gbytes:.1f} "
            f"GB/s on {best.threads} threads, {best.isa}; kernels ran on: {devices or 'none'}"
        )

    def _events(self) -> dict[str, Any]:
        """The trace in Chrome's trace event format; times in microseconds from the block's begin.

        Source: "Trace Event Format", Google, section "Complete Events".
        """
        start, end = self._interval()

        def complete(kind: str, name: str, thread: int, begin: int, ns: int) -> dict[str, Any]:
            track = 2 * thread + (kind == "kernel")
            ts, dur = (begin - start) / 1e3, ns / 1e3
            return {"ph": "X", "cat": kind, "name": name, "pid": 1, "tid": track, "ts": ts} | {
                "dur": dur
            }

        events = [complete("block", "profile", 0, start, end - start)]
        events += [complete("op", *span) for span in self.ops]
        for call in self.calls:
            flops, nbytes = cost_of(call)
            arguments = {"operands": call.describe(), "flops": flops, "bytes": nbytes}
            event = complete("kernel", call.kernel, call.thread, call.start, call.duration)
            events.append(event | {"args": arguments | {"device": call.device}})
        summary = {"block_ms": self.seconds * 1e3, "between_kernels_ms": self.between * 1e3}
        return {
            "traceEvents": [*_track_names({event["tid"] for event in events}), *events],
            "displayTimeUnit": "ns",
            "otherData": summary,
        }


HEADER: Final = ("kernel", "calls", "ms", "% of time", "GFLOP/s", "GB/s", "% of peak")
NAME_WIDTH: Final = 76


def _check_settings(by: By, sort: Sort, limit: int | None) -> tuple[By, Sort, int | None]:
    if by not in get_args(By):
        raise ValueError(f"profile: by: got {by!r}: need one of {', '.join(get_args(By))}")
    if sort not in get_args(Sort):
        raise ValueError(f"profile: sort: got {sort!r}: need one of {', '.join(get_args(Sort))}")
    if limit is None:
        return by, sort, limit
    try:
        most = operator.index(limit)
    except TypeError:
        kind = type(limit).__name__
        raise TypeError(f"profile: limit: got {kind}: need None or an integer") from None
    if most < 1:
        raise ValueError(f"profile: limit: got {limit}: need None or at least 1")
    return by, sort, most


def _is_double(call: KernelCall) -> bool:
    """Whether every float operand is float64."""
    kinds = {a.dtype for a in call.operands if a is not None and a.dtype.startswith("float")}
    return kinds == {"float64"}


def _row(
    device: str, name: str, calls: list[KernelCall], whole: float, ceiling: Peak
) -> ProfileRow:
    seconds = max(1, sum(call.duration for call in calls)) * 1e-9
    costs = [cost_of(call) for call in calls]
    least = [
        ceiling.least_seconds(*cost, _is_double(call))
        for call, cost in zip(calls, costs, strict=True)
    ]
    flops, nbytes = (sum(column) for column in zip(*costs, strict=True))
    peak_share = sum(least) / seconds
    return ProfileRow(name, device, len(calls), seconds, seconds / whole, flops, nbytes, peak_share)


def _line(row: ProfileRow, with_device: bool) -> tuple[str, ...]:
    name = row.name.replace("float32(", "(")
    if len(name) > NAME_WIDTH:  # an optimizer has hundreds of operands
        name = name[: NAME_WIDTH - 4] + " ..."
    return (
        f"{row.device} {name}" if with_device else name,
        str(row.calls),
        f"{row.seconds * 1e3:.3f}",
        f"{100 * row.share:.1f}",
        f"{row.gflops:.1f}" if row.flops else "",
        f"{row.gbytes:.1f}",
        f"{100 * row.peak:.0f}",
    )


def _layout(lines: list[tuple[str, ...]]) -> Iterator[str]:
    """Columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *others in lines:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells])


def _covered(calls: Iterable[KernelCall]) -> int:
    """How many ns at least one of the calls was running."""
    total, until = 0, 0
    for begin, end in sorted((call.start, call.start + call.duration) for call in calls):
        total += max(0, end - max(begin, until))
        until = max(until, end)
    return total


# ---- the trace file -----------------------------------------------------------------------------


def _as_path(trace: str | os.PathLike[str]) -> str:
    path: str | bytes = b""
    with suppress(TypeError):
        path = os.fspath(trace)
    if not isinstance(path, str):
        raise TypeError(f"profile: trace: got {type(trace).__name__}: need a path")
    if "\0" in path:
        raise ValueError(f"profile: trace: got {path!r}: need a path without null characters")
    return path


def _draft(path: str) -> Draft:
    from .trace_file import Draft  # only now: json, tempfile and pathlib take as long as needle

    return Draft(path)


def _track_names(tracks: set[int]) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "needle"}}
    for track in sorted(tracks):
        kind = "kernels" if track % 2 else "operations"
        name = f"thread {track // 2}: {kind}" if track else "block"
        yield {"ph": "M", "name": "thread_name", "pid": 1, "tid": track, "args": {"name": name}}


# ---- operations ---------------------------------------------------------------------------------


class _Spans:
    """Times every operation's `compute` and `gradient` while a trace is being recorded.

    It replaces these two methods of every Op class by timed ones, and puts them back at the end,
    so that operations cost nothing more when nobody traces.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: list[list[OpSpan]] = []
        self._replaced: list[tuple[type[Op], str, Any]] = []

    def begin(self, spans: list[OpSpan]) -> None:
        """From now on spans go to this list too."""
        with self._lock:
            if not self._listeners:
                for kind in set(_subclasses(Op)):
                    for method in ("compute", "gradient"):
                        if inspect.isfunction(vars(kind).get(method)):
                            self._replace(kind, method)
            self._listeners.append(spans)

    def end(self, spans: list[OpSpan]) -> None:
        """No longer to this one."""
        with self._lock:
            self._listeners = [other for other in self._listeners if other is not spans]
            if not self._listeners:
                for kind, method, original in self._replaced:
                    setattr(kind, method, original)
                self._replaced = []

    def _replace(self, kind: type[Op], method: str) -> None:
        original = vars(kind)[method]
        label = "" if method == "compute" else " gradient"

        @functools.wraps(original)
        def timed(op: Op, *args: Any, **kwargs: Any) -> Any:
            start = clock()
            try:
                return original(op, *args, **kwargs)
            finally:
                span = OpSpan(f"{op.name}{label}", thread_number(), start, clock() - start)
                for spans in self._listeners:
                    spans.append(span)

        self._replaced.append((kind, method, original))
        setattr(kind, method, timed)


def _subclasses(kind: type[Op]) -> Iterator[type[Op]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


_spans: Final = _Spans()
