"""needle's CUDA kernels and the memory of the device."""

from collections.abc import Sequence
from typing import Any

import numpy as np

EMULATED: bool
"""Whether this build runs the kernels on the CPU, for tests."""

RUNTIME: int
"""The CUDA version it was compiled with, as 1000 * major + 10 * minor; 0 if emulated."""

class Graph:
    """Kernels that are recorded between begin and end, and the memory they use."""

    live: bool
    """Whether kernels of optimizers, when recorded, read their scalars from slots on the device."""

    def begin(self) -> None:
        """From here on kernels are recorded and not run."""

    def end(self) -> None:
        """Makes what was recorded a graph."""

    def cancel(self) -> None:
        """Ends the recording and forgets it."""

    def replay(self) -> None:
        """Runs the graph."""

    def owns(self, address: int) -> bool:
        """Whether memory was handed out while this graph was recorded."""

    @property
    def slots(self) -> int:
        """How many calls read their scalars from the device."""

    def set_scalars(self, slot: int, values: Sequence[float]) -> None:
        """Writes a slot, in the stream's order; at most 8 values."""

def initialize() -> None:
    """Takes the first GPU and makes the stream that everything runs on."""

def table() -> object:
    """A capsule of the kernels, for register_device."""

def backend() -> object:
    """A capsule of the memory and the stream, for register_device."""

def properties() -> dict[str, Any]:
    """The GPU's name, compute_capability, multiprocessors, memory (bytes) and driver version."""

def upload(address: int, array: np.ndarray[Any, Any]) -> None:
    """Copies an array without gaps to the address on the device; does not wait for its arrival."""

def download(array: np.ndarray[Any, Any], address: int) -> None:
    """Fills an array without gaps from the address on the device."""

def set_tf32(on: bool) -> None:
    """Whether float32 matrix products may round their operands to TF32, for tensor cores."""

def synchronize() -> None:
    """Waits until all kernels have run.

    Raises:
        IndexError: a kernel met an id that is out of range. Copies to the host raise it, too.
    """

def memory_stats() -> dict[str, int]:
    """Bytes in_use, held, peak, limit, free; blocks allocations, system_allocations."""

def reset_peak() -> None:
    """Starts the peak from what is in use now."""

def set_memory_limit(limit: int) -> None:
    """Bytes that the allocator may hold; 0: no limit."""

def empty_cache() -> None:
    """Returns unused blocks to the driver."""

def set_pooling(on: bool) -> None:
    """Whether freed blocks are kept for reuse."""
