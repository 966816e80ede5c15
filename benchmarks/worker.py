"""A process that measures one case after another: one that hangs or dies takes neither the report nor others along."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from tritonbn.compiling.processes import depend_on_parent

Step = Callable[..., Any]
"""Called in the process as step(*arguments, names, told); `told` is to be called with each name before its turn."""


START = 300
"""Seconds that a process may take until it listens."""


ENDING = 10
"""Seconds that it may take to end, before it is killed."""


class LostError(Exception):
    """A process will give no result, or none that can be believed, and had better be replaced."""

    def __init__(self, name: str | None, what: str) -> None:
        super().__init__(name, what)
        self.name, self.what = name, what


class Last(Exception):  # noqa: N818 - nothing went wrong with the result
    """Raised by a step whose process should do nothing more: its result."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result


class Worker:
    """Runs steps for some names, one after the other, in a process that is replaced when need be.

    A name is blamed if nothing is heard for `limit` seconds after its turn has come, if the process ends then, or if
    the step raises LostError.
    """

    def __init__(self, limit: float, environment: Mapping[str, str]) -> None:
        self.limit, self.environment = limit, environment
        self.process: multiprocessing.Process | None = None
        self.connection: Connection | None = None

    def run(self, step: Step, arguments: tuple[Any, ...], names: Sequence[str]) -> tuple[Any, dict[str, str]]:
        """What a step returns for those names that are not to blame, and what became of the others.

        None if all are to blame. RuntimeError with what was raised there, or if nobody can be blamed.
        """
        left, blamed = list(names), {}
        while left:
            if self.process is None or not self.process.is_alive():
                self.stop()
                self.start()
            try:
                return self.answer(step, arguments, left), blamed
            except LostError as lost:
                self.stop()
                if lost.name not in left:
                    told = "".join(f"; before that {name} {what}" for name, what in blamed.items())
                    raise RuntimeError(f"expected a result from a process, which {lost.what}{told}") from None
                blamed[lost.name] = lost.what
                left.remove(lost.name)
        return None, blamed

    def answer(self, step: Step, arguments: tuple[Any, ...], names: Sequence[str]) -> Any:
        """The result; LostError if there will be none."""
        name = None
        try:
            self.connection.send((step, arguments, names))
            while self.connection.poll(self.limit if name else START):
                what, value = self.connection.recv()
                if what == "next":
                    name = value
                elif what == "lost":
                    raise LostError(*value)
                elif what == "raised":
                    self.stop()
                    raise RuntimeError(value)
                else:
                    if what == "last":
                        self.stop()
                    return value
        except (EOFError, OSError):
            self.process.join(ENDING)
            raise LostError(name, f"ended its process, exit code {self.process.exitcode}") from None
        raise LostError(name, f"had not finished after {self.limit if name else START:g} s")

    def start(self) -> None:
        """A new process, with this environment."""
        context = multiprocessing.get_context("spawn")
        self.connection, there = context.Pipe()
        self.process = context.Process(target=serve, args=(there,))
        before = dict(os.environ)
        os.environ.update(self.environment)
        try:
            self.process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
            there.close()

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()
            self.process = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def serve(connection: Connection) -> None:
    """What the process does until it is ended."""
    depend_on_parent()
    kind = "result"
    while kind == "result":  # what was raised may have spoilt the device for this process
        step, arguments, names = connection.recv()
        try:
            kind, answer = "result", step(*arguments, names, lambda name: connection.send(("next", name)))
        except Last as last:
            kind, answer = "last", last.result
        except LostError as lost:
            kind, answer = "lost", (lost.name, lost.what)
        except Exception as error:
            kind, answer = "raised", f"{type(error).__name__}: {error}"
        connection.send((kind, answer))
