"""Libraries that needle-apps can do without: imported where they are used, or else a hint."""

from __future__ import annotations

import importlib
from typing import Any


class MissingExtraError(ImportError):
    """A library is absent that belongs to an extra of needle-apps."""


def require(module: str, extra: str, what: str) -> Any:
    """Import a module of an extra.

    Args:
        module: its name.
        extra: `pip install 'needle-apps[extra]'` brings it.
        what: what it is needed for, as the start of the error.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise MissingExtraError(
            f"{what}: {package} cannot be imported ({error}): pip install 'needle-apps[{extra}]'"
        ) from error
