"""The sweep that did not come to its end: its arguments and what it was timing, kept beside the timings until it does.

Who was killed cannot say why: a config that was under way then is timed once more, and is a failure if that does not
come back either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..measured import store
from ..measured.timings import Entry, Run, key_of, timing
from ..problems import Task
from . import gpu
from .directory import written
from .exits import FAILED, USAGE, ExitError

NAME = "unfinished-sweep"

DID_NOT_FINISH = "did not finish"
"""Why a config has failed that no process came back from."""


@dataclass
class Unfinished:
    """What `tritonbn tune --resume` goes on with."""

    arguments: list[str]
    """Of the command."""
    done: int = 0
    """How many configs were timed, where those that were timed before are timed again."""
    under_way: Entry | None = None
    """The config that is being timed, as the failure that it is if that never ends."""
    suspect: Entry | None = None
    """What was under way when the process before this one was killed."""

    def begin(self, task: Task, configs: Iterable[Any]) -> Iterator[Any]:
        """The configs, each noted as under way before it is handed out."""
        key = key_of(task.work, task.device)
        for config in configs:
            self.under_way = Entry(key, [Run(task.work.geometry, [timing(config, None, DID_NOT_FINISH)])])
            self.save()
            yield config

    def end(self) -> None:
        """Nothing is under way, whatever came of it."""
        self.under_way = None
        self.save()

    def give_up(self) -> Entry | None:
        """The config that two processes in turn were killed with, now recorded as a failure; None if there is none."""
        given_up = self.under_way if self.under_way == self.suspect else None
        self.under_way, self.suspect = None, self.under_way
        if given_up:
            for run in given_up.runs:
                store.current().record(given_up.key, run.geometry, run.timings)
        return given_up

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
    """Where it is kept, for each GPU: several may be tuned at once, and start from the same directory."""
    return written() / "-".join([NAME, *gpu.identity()])
