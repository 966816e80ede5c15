"""Where timings are written."""

from __future__ import annotations

from pathlib import Path

from ..measured import store
from .exits import FAILED, ExitError


def written() -> Path:
    """The directory; ends the command if there is none."""
    directories = store.current().directories
    if not directories:
        raise ExitError(FAILED, f"timings cannot be kept: set {store.VARIABLE} to a directory")
    return directories[0]
