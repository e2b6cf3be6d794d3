"""The compiled extension and the numbers it knows its kernels by."""

from __future__ import annotations

import os
from typing import Final

# GCC's OpenMP lets idle threads spin for milliseconds. Where another process wants the core too,
# every small parallel kernel then waits for a whole time slice: an LSTM layer took 800 ms instead
# of 6 ms. A thousand turns (some microseconds) bridge the gap between two kernels. OpenMP reads
# this when it is loaded, that is with the extension.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

try:
    from needle._kernels import cpu
except ImportError as error:
    raise ImportError(
        "needle.backend_ndarray: the compiled extension needle._kernels.cpu is missing or does not "
        f"load ({error}): install needle-kernels, which compiles it, for this Python"
    ) from error

__all__ = ["KERNEL", "NO_SCALARS", "cpu"]

KERNEL: Final[dict[str, int]] = {name: number for number, name in enumerate(cpu.KERNELS)}
NO_SCALARS: Final[tuple[float, ...]] = ()
