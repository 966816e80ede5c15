"""The sweep that did not come to its end: its arguments, kept beside the timings until it does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from .. import store
from .directory import written
from .exits import FAILED, USAGE, ExitError

NAME = "unfinished-sweep"


@dataclass
class Unfinished:
    """What `tritonbn tune --resume` goes on with."""

    arguments: list[str]
    """Of the command."""
    done: int = 0
    """How many configs were timed, where those that were timed before are timed again."""

    def save(self) -> None:
        """Keep it; ends the command where nothing can be kept, since neither could timings."""
        try:
            path().parent.mkdir(parents=True, exist_ok=True)
            store.replace_file(path(), msgspec.json.encode(self))
        except OSError as error:
            where = f"set {store.VARIABLE} to a directory that can be written"
            raise ExitError(FAILED, f"timings cannot be kept: {error}; {where}") from error

    @staticmethod
    def load() -> Unfinished:
        """The last one; ends the command if there is none."""
        try:
            return msgspec.json.decode(path().read_bytes(), type=Unfinished)
        except OSError as error:
            raise ExitError(USAGE, f"--resume: no sweep was interrupted ({path()} is not there)") from error
        except ValueError as error:
            raise ExitError(FAILED, f"--resume: {path()} is damaged: {error}") from error

    @staticmethod
    def forget() -> None:
        """It came to its end."""
        path().unlink(missing_ok=True)


def path() -> Path:
    """Where it is kept."""
    return written() / NAME
