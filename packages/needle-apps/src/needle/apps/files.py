"""Writing files that are whole or absent at any moment."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file in one piece: whatever happens, `path` holds the old content or the new.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    partial = partial_path(path)
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def partial_path(path: Path) -> Path:
    """A new name beside `path` for what is not whole yet: `.name.1a2b3c4d.part`."""
    return path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")


def remove_partial(folder: Path) -> None:
    """Remove what processes that were killed have left half written."""
    for partial in folder.glob(".*.part"):
        partial.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Make a rename in a folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
