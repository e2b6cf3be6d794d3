"""What gradients read, and whether it is still what it was.

A storage's version counts the in-place writes to it. A node remembers the arrays that its gradient
will read, and their versions.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from .backend_ndarray.extension import cpu as _cpu

if TYPE_CHECKING:
    from .autograd import Node


version_of: Final[Callable[[Any], Any]] = _cpu.version
"""What changes when data, an array or a tuple of data, is written to in place."""


def remember(
    saves: tuple[int, ...] | None, arrays: Sequence[Any], data: Any
) -> tuple[tuple[Any, ...], Any]:
    """The data that a gradient will read, and the versions of it now."""
    read: tuple[Any, ...]
    if saves is None:
        read = (*arrays, data)
    elif len(saves) == 1:
        (i,) = saves
        read = (data if i < 0 else arrays[i],)
    else:
        read = tuple([data if i < 0 else arrays[i] for i in saves])
    return read, version_of(read)


def check_saved(node: Node) -> None:
    """Raises RuntimeError where data that the node's gradient reads was replaced or written to."""
    op, edges = node.op, node._inputs
    if op is None or edges is None:
        return
    read, versions = node._saved
    positions = (*range(len(edges)), -1) if op.saves is None else op.saves
    found = [node._data if i < 0 else edges[i]._data for i in positions]
    if all(map(operator.is_, found, read)) and version_of(read) == versions:
        return
    for i, now, before, version in zip(positions, found, read, versions, strict=True):
        if now is before and version_of(before) == version:
            continue
        which = "its output" if i < 0 else f"its input {i}"
        how = f"version {version} became {version_of(before)}" if now is before else "was replaced"
        raise RuntimeError(
            f"backward: data that the gradient of {op.name} reads has changed: "
            f"{which}, shape {_shape_of(before)}: {how}: "
            "call backward before writing to it, or write to a copy"
        )


def _shape_of(data: Any) -> Any:
    return tuple([a._shape for a in data]) if isinstance(data, tuple) else data._shape
