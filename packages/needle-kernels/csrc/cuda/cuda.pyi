"""needle's CUDA kernels and the memory of the device."""

from typing import Any

import numpy as np

EMULATED: bool
"""Whether this build runs the kernels on the CPU, for tests."""

RUNTIME: int
"""The CUDA version it was compiled with, as 1000 * major + 10 * minor; 0 if emulated."""

def initialize() -> None:
    """Takes the first GPU and makes the stream that everything runs on."""

def table() -> object:
    """A capsule of the kernels, for register_device."""

def backend() -> object:
    """A capsule of the memory and the stream, for register_device."""

def properties() -> dict[str, Any]:
    """The GPU's name, compute_capability, multiprocessors, memory (bytes) and driver version."""

def upload(address: int, array: np.ndarray[Any, Any]) -> None:
    """Copies an array without gaps to the address on the device."""

def download(array: np.ndarray[Any, Any], address: int) -> None:
    """Fills an array without gaps from the address on the device."""

def synchronize() -> None:
    """Waits until all kernels have run."""

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
