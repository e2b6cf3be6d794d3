"""What the library runs on: threads, instruction set, counters, memory."""

from __future__ import annotations

import os
import platform
from typing import Any, SupportsIndex

import numpy as np

from needle.backend_ndarray.devices import (
    Device,
    all_devices,
    check_device,
    cuda,
    cuda_module,
    default_device,
    device_errors,
)
from needle.backend_ndarray.devices import precision as _precision
from needle.backend_ndarray.extension import cpu as _cpu
from needle.backend_ndarray.layout import as_int

__all__ = [
    "available_isas",
    "config_dict",
    "counters",
    "empty_cache",
    "get_float32_matmul_precision",
    "isa",
    "memory_stats",
    "num_threads",
    "reset_counters",
    "reset_peak",
    "set_float32_matmul_precision",
    "set_isa",
    "set_memory_limit",
    "set_num_threads",
    "set_pooling",
    "set_tracing",
    "show_config",
    "synchronize",
    "trace",
]

_DISTRIBUTIONS = ("needle-kernels", "needle-core", "needle-nn", "needle-data", "needle-apps")


def set_num_threads(n: SupportsIndex) -> None:
    """Lets one kernel use at most n threads.

    Raises:
        ValueError: n is less than 1, or more than 1024.
        TypeError: n is not an integer.
    """
    count = as_int("set_num_threads", "n", n)
    if count < 1:
        raise ValueError(f"set_num_threads: got {count}: need at least 1")
    if count > _cpu.MOST_THREADS:
        raise ValueError(f"set_num_threads: got {count}: need at most {_cpu.MOST_THREADS}")
    _cpu.set_num_threads(count)


def num_threads() -> int:
    """How many threads one kernel may use."""
    return _cpu.num_threads()


def available_isas() -> tuple[str, ...]:
    """The instruction sets of this machine that kernels are compiled for, slowest first."""
    return _cpu.isas()


def isa() -> str:
    """The instruction set that `cpu()` uses."""
    return _cpu.isa()


def set_isa(name: str) -> None:
    """Makes `cpu()` use another instruction set.

    Raises:
        ValueError: this machine does not have it.
    """
    if name not in _cpu.isas():
        raise ValueError(f"set_isa: unknown: got {name!r}: need one of {', '.join(_cpu.isas())}")
    _cpu.set_isa(name)


def set_float32_matmul_precision(precision: str) -> None:
    """How exact products of float32 matrices are, on cuda(); named as in PyTorch.

    "highest", the default: float32 arithmetic. "high": tensor cores may be used, in TF32: each
    operand is rounded to 10 bits of mantissa, an error of at most 2^-11 of it; products and sums
    are float32, so an element of a @ b is off by at most (2^-10 + 2^-22) (|a| @ |b|) plus what
    float32 sums are off. It concerns `matmul` and what is made of it (`linear`, recurrent layers)
    where rows or columns begin at multiples of 16 bytes; convolutions stay float32. GPUs before
    Ampere (compute capability 8.0) and the CPU devices always compute as for "highest".

    Raises:
        ValueError: it is neither of the two.
    """
    if precision not in ("highest", "high"):
        raise ValueError(
            f"set_float32_matmul_precision: got {precision!r}: need 'highest' or 'high'"
        )
    _precision["float32_matmul"] = precision
    if cuda().enabled():
        cuda_module().set_tf32(precision == "high")


def get_float32_matmul_precision() -> str:
    """What set_float32_matmul_precision has set."""
    return _precision["float32_matmul"]


def counters() -> dict[tuple[str, str], int]:
    """How often each kernel ran, by (device, kernel); the NumPy device is "reference"."""
    return _cpu.counters()


def reset_counters() -> None:
    """Starts counting from zero."""
    _cpu.reset_counters()


def set_tracing(on: bool) -> None:
    """Whether every kernel call is recorded."""
    _cpu.set_tracing(on)


def trace() -> list[tuple[str, str, int, int, str]]:
    """The recorded calls, which are then forgotten.

    Each is (device, kernel, start in ns, duration in ns, operands as "float32(2,3) ...").
    """
    return _cpu.trace()


def _memory(op: str, device: Device | None) -> Any:
    """The extension that holds the device's allocator: the CPU devices share one."""
    return cuda_module() if check_device(op, device).name == "cuda" else _cpu


def memory_stats(device: Device | None = None) -> dict[str, int]:
    """What the allocator of the device's memory did; None: the CPU's.

    Bytes `in_use`, `held` (in use and cached), `peak`, `limit`; numbers of blocks `allocations`
    and `system_allocations` (those that the system had to give). On cuda() also `free`: bytes that
    the GPU could still give.
    """
    stats: dict[str, int] = _memory("memory_stats", device).memory_stats()
    return stats


def reset_peak(device: Device | None = None) -> None:
    """Starts the peak of memory_stats from what is in use now."""
    _memory("reset_peak", device).reset_peak()


def set_memory_limit(limit: int, device: Device | None = None) -> None:
    """Lets the allocator hold at most `limit` bytes, beyond which it raises MemoryError; 0: any.

    Raises:
        ValueError: the limit is negative, or more than 2^63 - 1.
        TypeError: it is not an integer.
    """
    limit = as_int("set_memory_limit", "limit", limit)
    if not 0 <= limit < 2**63:
        raise ValueError(f"set_memory_limit: got {limit} bytes: need 0 (none) or more, below 2^63")
    _memory("set_memory_limit", device).set_memory_limit(limit)


def empty_cache(device: Device | None = None) -> None:
    """Returns the allocator's unused blocks to the system."""
    with device_errors():
        _memory("empty_cache", device).empty_cache()


def set_pooling(on: bool, device: Device | None = None) -> None:
    """Whether freed blocks are kept for reuse; without, sanitizers see every misuse.

    Raises:
        TypeError: `on` is not True or False.
    """
    if not isinstance(on, (bool, np.bool_)):
        raise TypeError(f"set_pooling: on: got {type(on).__name__}: need True or False")
    _memory("set_pooling", device).set_pooling(bool(on))


def synchronize(device: Device | None = None) -> None:
    """Waits until the device has done all that was asked of it.

    Raises:
        DeviceError: a kernel failed since the last time, or it is not a device.
        IndexError: a kernel met an id that is out of range.
    """
    where = check_device("synchronize", device)
    _cpu.finish()
    if where.name == "cuda":
        with device_errors():
            cuda_module().synchronize()


def config_dict() -> dict[str, str]:
    """What show_config prints, by name."""
    from importlib import metadata  # its import takes a fifth of needle's

    settings = {"python": platform.python_version(), "numpy": np.__version__}
    for name in _DISTRIBUTIONS:
        try:
            settings[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return settings | {
        "cpu": platform.machine(),
        "instruction set": f"{isa()} (available: {', '.join(available_isas())})",
        "threads": f"{num_threads()} of {os.cpu_count()} cores",
        "default device": repr(default_device()),
        "devices": ", ".join(f"{device!r}{_note(device)}" for device in all_devices()),
    }


def _note(device: Device) -> str:
    if not device.enabled():
        return " (not available)"
    return f" ({device.about()})" if device.about() else ""


def show_config() -> None:
    """Prints versions, CPU target, threads and devices."""
    for name, value in config_dict().items():
        print(f"{name:16} {value}")
