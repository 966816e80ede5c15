"""What is chosen for a `with` block or a decorated function: nested, and local to a thread or task."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ContextDecorator
from contextvars import ContextVar
from typing import Any, ClassVar, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
Self = TypeVar("Self", bound="Block")


class Block(ContextDecorator):
    """Puts `value` on top of what `chosen` holds, and takes it away again."""

    chosen: ClassVar[ContextVar[tuple[Any, ...]]]
    """Of the blocks that this thread or task is in, innermost last."""
    value: Any

    def __enter__(self: Self) -> Self:
        self.chosen.set((*self.chosen.get(), self.value))
        return self

    def __exit__(self, *exception: Any) -> None:
        self.chosen.set(self.chosen.get()[:-1])

    def __call__(self, function: Function) -> Function:
        """The function, with this in force while it runs."""
        if any(runs_later(function) for runs_later in RUNS_LATER):
            name = type(self).__name__
            raise TypeError(f"{name}: expected a plain function to decorate, got {function}; use `with` inside of it")
        return super().__call__(function)


RUNS_LATER = inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction
"""What tells that a call of a function only begins what runs when the block is left."""


def known(name: str, names: tuple[str, ...], what: str) -> str:
    """The name itself, if it is one of these."""
    if name not in names:
        raise ValueError(f"{what}: expected one of {', '.join(map(repr, names))}, got {name!r}")
    return name
