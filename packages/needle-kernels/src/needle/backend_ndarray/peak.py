"""What this machine reaches at best, measured: the ceiling that profiles compare kernels with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from needle.backend_ndarray.extension import cpu as _cpu

__all__ = ["Peak", "peak"]


@dataclass(frozen=True)
class Peak:
    """The best rates of one instruction set on so many threads."""

    isa: str
    threads: int
    gflops32: float
    """10^9 float32 operations per second: independent multiply-adds in registers."""
    gflops64: float
    gbytes: float
    """10^9 bytes per second: a = b + s * c on arrays of 64 MiB, three arrays counted."""

    def least_seconds(self, flops: float, nbytes: float, double: bool = False) -> float:
        """The roofline: no time shorter than this does so much arithmetic and moves so much.

        Source: Williams, Waterman and Patterson, "Roofline" (2009).
        """
        rate = self.gflops64 if double else self.gflops32
        return max(flops / rate, nbytes / self.gbytes) * 1e-9


def peak(remeasure: bool = False) -> Peak:
    """The peak of the instruction set and the number of threads that are set now.

    The first call for each pair measures for about a quarter of a second, on 192 MiB; later ones
    return the same Peak. Other work on the machine makes it too low.

    Args:
        remeasure: measure again.

    Raises:
        MemoryError: there is not enough memory to measure with.
    """
    if remeasure:
        _measured.cache_clear()
    return _measured(_cpu.isa(), _cpu.num_threads())


@lru_cache
def _measured(isa: str, threads: int) -> Peak:
    flops32, flops64, nbytes = _cpu.peak()
    return Peak(isa, threads, flops32 * 1e-9, flops64 * 1e-9, nbytes * 1e-9)
