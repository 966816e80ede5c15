"""Triton's interpreter in a fifth of the time: what it does again and again, done once or in one piece.

It looks through the whole language for what it has to replace at every call of a device function, instead of once a
launch; it interprets its own check of every integer operation for an overflow, operation by operation; and it works out
the same few types, shapes and constants anew for every value.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import triton.language as tl
from quick_operators import quicken
from triton.language import core
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError

run_launch, patch_language = interpreter.GridExecutor.__call__, interpreter._patch_lang
semantic = interpreter.interpreter_semantic
broadcast = semantic.broadcast_impl_value
own_block_type, own_tensor = core.block_type.__init__, core.tensor.__init__
own_dtype, own_computation_type = interpreter._get_np_dtype, semantic.computation_type_impl
numpy_dtype, computation_type = functools.cache(own_dtype), functools.cache(own_computation_type)
one_at_a_time = threading.RLock()
patched: set[Any] = set()
ready: set[Any] = set()
"""What this launch has patched, and functions for which all is."""
changes: dict[Any, list[tuple[Any, str, Any]]] = {}
"""What patching some modules sets where others are patched, the same in every launch."""


def launch(executor: Any, *arguments: Any, **keywords: Any) -> None:
    """A launch, which leaves the language as it was: so no other can go on meanwhile."""
    with one_at_a_time:
        patched.clear(), ready.clear()
        run_launch(executor, *arguments, **keywords)


def call(function: Any, *arguments: Any, **keywords: Any) -> Any:
    """Call a device function."""
    if function.fn not in ready:
        interpreter._patch_lang(function.fn)
        ready.add(function.fn)
    try:
        return function.rewrite()(*arguments, **keywords)
    except Exception as error:
        raise InterpreterError(repr(error)) from error


def patch(function: Callable[..., Any]) -> Any:
    """What the interpreter does before it calls a function, unless this launch has done it."""
    if languages(function) <= patched:
        return None
    key = languages(function), frozenset(patched)
    patched.update(languages(function))
    if key in changes:
        scope = interpreter._LangPatchScope()
        for change in changes[key]:
            scope.set_attr(*change)
        return scope
    scope = patch_language(inspect.unwrap(function))
    quicken(lambda name, operator: scope.set_attr(core.tensor, name, operator))
    changes[key] = [(of, name, vars(of)[name]) for of, name, _ in scope._changes]
    return scope


@functools.cache
def languages(function: Callable[..., Any]) -> frozenset[Any]:
    """The modules by which a kernel's function speaks Triton."""
    known = inspect.unwrap(function).__globals__.values()
    return frozenset(value for value in known if value is tl or value is tl.core)


def patch_builtin(of: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
    """Put one function of the language that knows it is interpreted in the place of its own."""
    function = getattr(member, "__wrapped__", member)

    def interpreted(*arguments: Any, **keywords: Any) -> Any:
        keywords["_semantic"] = semantic
        return function(*arguments, **keywords)

    scope.set_attr(of, name, interpreted)


def check_overflow(lhs: Any, rhs: Any, operation: Callable[..., Any]) -> None:
    """An AssertionError where the sum, difference or product of integers is none of their type."""
    kind = lhs.type.scalar
    if kind.int_bitwidth >= 64 or not semantic.builder.options.sanitize_overflow:
        return
    operate = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[operation.__name__]
    result = operate(*(operand.handle.data.astype(np.int64) for operand in (lhs, rhs)))
    least, most = (result.item(),) * 2 if result.size == 1 else (result.min(), result.max())
    if least < kind.get_int_min_value() or most > kind.get_int_max_value():
        raise AssertionError(f"int{kind.int_bitwidth} overflow detected for operation {operation.__name__}")


def begin_block_type(made: Any, element_ty: Any, shape: Any) -> None:
    """The __init__ of a block's type, of a shape that others may share."""
    lengths = tuple([length.value if type(length) is core.constexpr else length for length in shape])
    if not lengths:
        raise TypeError("0d block_type is forbidden")
    made.element_ty, (made.shape, made.numel, name) = element_ty, checked(*lengths)
    made.name = f"<{name}, {element_ty}>"


def begin_tensor(made: Any, handle: Any, type: Any) -> None:
    """The __init__ of a tensor, of a shape that others may share."""
    made.handle, made.type, made.dtype = handle, type, type.scalar
    made.shape, made.numel = constants(tuple(type.shape.values) if type.is_block() else ())


@functools.lru_cache(maxsize=None, typed=True)  # 4.0 is no length, though it equals one
def checked(*lengths: int) -> tuple[Any, int, str]:
    """A shape that a block may have, its number of elements, and its name."""
    return core.tuple(lengths), core.validate_block_shape(lengths), str(core.tuple(lengths))


@functools.cache
def constants(lengths: tuple[int, ...]) -> tuple[Any, Any]:
    """The same, as a kernel sees them."""
    return core.tuple([core.constexpr(length) for length in lengths]), core.constexpr(prod(lengths))


def dtype_in_numpy(type: Any) -> np.dtype[Any]:
    """What holds values of a type, or the elements of a block of them."""
    element = type.scalar
    return np.dtype(np.uint64) if element.is_ptr() else numpy_dtype(element)


def broadcast_unless_alike(lhs: Any, rhs: Any) -> tuple[Any, Any]:
    """Two values of one shape, which they may have already."""
    return (lhs, rhs) if lhs.shape is rhs.shape else broadcast(lhs, rhs)


def install() -> None:
    """For all launches of this process; before Triton 3.6, whose interpreter is another, they stay as they are."""
    if not hasattr(interpreter, "_LangPatchScope"):
        return
    interpreter.GridExecutor.__call__ = launch
    interpreter.InterpretedFunction.__call__ = call
    interpreter._patch_lang = patch
    interpreter._patch_attr = patch_builtin
    interpreter._get_np_dtype = dtype_in_numpy
    core.block_type.__init__, core.tensor.__init__ = begin_block_type, begin_tensor
    semantic.binary_op_sanitize_overflow_impl = check_overflow
    semantic.broadcast_impl_value = broadcast_unless_alike
    semantic.computation_type_impl = computation_type
