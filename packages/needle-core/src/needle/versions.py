"""What gradients read, and whether it is still what it was.

Every in-place write to an array raises its storage's version. A node remembers the arrays that
its gradient will read, each with its version.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from .backend_ndarray.extension import cpu as _cpu

if TYPE_CHECKING:
    from .autograd import Node


version_of: Final[Callable[[Any], Any]] = _cpu.version
"""What changes when data, an array or a tuple of them, is written to in place."""


def remember(
    saves: tuple[int, ...] | None, arrays: Sequence[Any], data: Any
) -> tuple[tuple[Any, Any], ...]:
    """The data that a gradient will read, each with its version now."""
    kept = []
    for i in (*range(len(arrays)), -1) if saves is None else saves:
        array = data if i < 0 else arrays[i]
        kept.append((array, version_of(array)))
    return tuple(kept)


def check_saved(node: Node) -> None:
    """Raises RuntimeError where data that the node's gradient reads was replaced or written to."""
    op, edges = node.op, node._inputs
    if op is None or edges is None:
        return
    positions = (*range(len(edges)), -1) if op.saves is None else op.saves
    for i, (data, version) in zip(positions, node._saved, strict=False):
        current = node._data if i < 0 else edges[i]._data
        if current is data and version_of(data) == version:
            continue
        which = "its output" if i < 0 else f"its input {i}"
        how = f"version {version} became {version_of(data)}" if current is data else "was replaced"
        raise RuntimeError(
            f"backward: data that the gradient of {op.name} reads has changed: "
            f"{which}, shape {_shape_of(data)}: {how}: "
            "call backward before writing to it, or write to a copy"
        )


def _shape_of(data: Any) -> Any:
    return tuple([a._shape for a in data]) if isinstance(data, tuple) else data._shape
