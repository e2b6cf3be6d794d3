"""The compiled extension and the numbers it knows its kernels by."""

from __future__ import annotations

import os
from typing import Final

try:
    from needle._kernels import cpu
except ImportError as error:
    raise ImportError(
        "needle.backend_ndarray: the compiled extension needle._kernels.cpu is missing or does not "
        f"load ({error}): install needle-kernels, which compiles it, for this Python"
    ) from error

__all__ = ["KERNEL", "NO_SCALARS", "cpu"]

_isa = os.environ.get("NEEDLE_ISA")
if _isa and _isa not in cpu.TARGETS:
    raise ValueError(f"NEEDLE_ISA: unknown: got {_isa!r}: need one of {', '.join(cpu.TARGETS)}")

KERNEL: Final[dict[str, int]] = {name: number for number, name in enumerate(cpu.KERNELS)}
NO_SCALARS: Final[tuple[float, ...]] = ()
