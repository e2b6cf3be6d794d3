"""What `needle info` prints."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import numpy as np

import needle
from needle import backend_ndarray as nd

PACKAGES = ("needle-kernels", "needle-core", "needle-nn", "needle-data", "needle-apps")


def describe() -> Iterator[str]:
    """The machine and the installation, a line each: `name  value`."""
    for name in PACKAGES:
        yield _row(name, _version(name))
    yield _row("Python", f"{platform.python_version()} on {platform.platform()}")
    yield _row("NumPy", np.__version__)
    yield _row("CPU target", f"{nd.isa()} (available: {', '.join(nd.available_isas())})")
    yield _row("threads", str(nd.num_threads()))
    yield _row("default device", str(needle.default_device()))
    for device in needle.all_devices():
        yield _row(f"device {device}", _state(device))


def _row(name: str, value: str) -> str:
    return f"{name:20} {value}"


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed (run from its source tree?)"


def _state(device: nd.Device) -> str:
    """Ready, or the reason why not, in the words of the error that using it raises."""
    try:
        device.empty((1,))
        about = device.about()
    except nd.DeviceError as error:
        return f"off: {error}"
    return f"ready: {about}" if about else "ready"
