"""The file of a profile's trace: complete, or not there at all."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Draft"]


class Draft:
    """An empty file beside the one at `path`, which takes its place once it is complete."""

    def __init__(self, path: str) -> None:
        """Makes it.

        Raises:
            OSError: there can be no file at `path`, or it is a device or pipe.
        """
        # The block may change the working folder; and a link stays a link.
        self._path = Path(os.path.realpath(path))
        with self._errors():
            if self._path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if self._path.exists() and not self._path.is_file():
                raise OSError(errno.EINVAL, "not a file but a device or pipe")
            handle, draft = tempfile.mkstemp(prefix=Path(path).name + ".", dir=self._path.parent)
        os.close(handle)
        self._draft = Path(draft)

    def write(self, events: dict[str, Any]) -> None:
        """Makes it complete."""
        try:
            with self._errors():
                self._draft.write_text(json.dumps(events), encoding="utf-8")
                self._draft.chmod(0o666 & ~_umask())
                self._draft.replace(self._path)
        except BaseException:
            self._draft.unlink(missing_ok=True)
            raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise type(error)(
                error.errno,
                f"profile: trace: cannot write: {error.strerror}: need a file in a writable folder",
                str(self._path),
            ) from None


def _umask() -> int:
    """The permissions that new files lack; reading them means setting them for a moment."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
