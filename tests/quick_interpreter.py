"""Triton's interpreter in a third of the time: two things that it does again and again, done once or in one piece.

It looks through the whole language for what it has to replace at every call of a device function, instead of once a
launch; and it interprets its own check of every integer operation for an overflow, operation by operation.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

run_launch, patch_language = interpreter.GridExecutor.__call__, interpreter._patch_lang
one_at_a_time = threading.RLock()
patched: set[Any] = set()


def launch(executor: Any, *arguments: Any, **keywords: Any) -> None:
    """A launch, which leaves the language as it was: so no other can go on meanwhile."""
    with one_at_a_time:
        patched.clear()
        run_launch(executor, *arguments, **keywords)


def patch(function: Callable[..., Any]) -> Any:
    """What the interpreter does before it calls a function, unless this launch has done it."""
    function = inspect.unwrap(function)
    if languages(function) <= patched:
        return None
    patched.update(languages(function))
    return patch_language(function)


@functools.cache
def languages(function: Callable[..., Any]) -> frozenset[Any]:
    """The modules by which a kernel's function speaks Triton."""
    return frozenset(value for value in function.__globals__.values() if value is tl or value is tl.core)


def check_overflow(lhs: Any, rhs: Any, operation: Callable[..., Any]) -> None:
    """An AssertionError where the sum, difference or product of integers is none of their type."""
    kind = lhs.type.scalar
    if kind.int_bitwidth >= 64 or not interpreter.interpreter_builder.options.sanitize_overflow:
        return
    operate = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[operation.__name__]
    result = operate(*(operand.handle.data.astype(np.int64) for operand in (lhs, rhs)))
    if result.min() < kind.get_int_min_value() or result.max() > kind.get_int_max_value():
        raise AssertionError(f"int{kind.int_bitwidth} overflow detected for operation {operation.__name__}")


def install() -> None:
    """For all launches of this process."""
    interpreter.GridExecutor.__call__ = launch
    interpreter._patch_lang = patch
    interpreter.interpreter_semantic.binary_op_sanitize_overflow_impl = check_overflow
