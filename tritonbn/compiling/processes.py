"""Processes beside this one, which can compile: with its environment, ended with it, forked from one that is ready."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from multiprocessing.forkserver import ensure_running
from threading import Lock, Thread

_starting = Lock()
"""Held while the environment is that of the process from which others are forked."""


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_imports(*modules: str) -> None:
    """Have these modules imported once for all processes to come: for a program's main function to say."""
    get_context("forkserver").set_forkserver_preload(list(modules))


def forked(count: int) -> ProcessPoolExecutor:
    """So many processes, where Triton compiles even if it interprets here."""
    with _starting:
        before = os.environ.get("TRITON_INTERPRET")
        os.environ["TRITON_INTERPRET"] = "0"
        try:
            ensure_running()
            return ProcessPoolExecutor(count, get_context("forkserver"), begin, (dict(os.environ),))
        finally:
            del os.environ["TRITON_INTERPRET"]
            if before is not None:
                os.environ["TRITON_INTERPRET"] = before


def begin(environment: dict[str, str]) -> None:
    """What a process does first."""
    os.environ.clear()
    os.environ.update(environment)
    depend_on_parent()


def depend_on_parent() -> None:
    """Leave Ctrl-C to the parent, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=end, daemon=True).start()
