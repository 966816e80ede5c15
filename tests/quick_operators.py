"""Operators of the interpreter's tensors, straight to numpy where nothing has to be converted: types are the same.

Whatever else comes, unsigned or 16-bit numbers, or anything wrong, goes on to the operator that was there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.language import core
from triton.runtime import interpreter

INTEGERS = {"int32": np.int32, "int64": np.int64}
NUMBERS = INTEGERS | {"fp32": np.float32, "fp64": np.float64}
LARGEST = 2.0**127
"""Of the Python numbers that become floating-point ones here."""

ARITHMETIC = {
    "add": (np.add, int.__add__),
    "sub": (np.subtract, int.__sub__),
    "mul": (np.multiply, int.__mul__),
}
DIVISIONS = {
    "floordiv": lambda a, b: (a - np.fmod(a, b)) // b,
    "mod": np.fmod,
}
"""Of integers, towards zero."""

COMPARISONS = {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
}

Operator = Callable[..., Any]


def quicken(set_operator: Callable[[str, Operator], None]) -> None:
    """Put quick operators before those that tensors have."""
    tensor = core.tensor
    for name, (operate, exactly) in ARITHMETIC.items():
        for method, swapped in ((f"__{name}__", False), (f"__r{name}__", True)):
            set_operator(method, arithmetic(name, operate, exactly, swapped, getattr(tensor, method)))
    for name, divide in DIVISIONS.items():
        set_operator(f"__{name}__", division(divide, getattr(tensor, f"__{name}__")))
    for name, compare in COMPARISONS.items():
        set_operator(f"__{name}__", comparison(compare, getattr(tensor, f"__{name}__")))
    set_operator("__add__", pointed(tensor.__add__))
    set_operator("__getitem__", indexed(tensor.__getitem__))
    set_operator("__index__", lambda self: self.handle.data.item())  # Triton's, before 3.7, fails with numpy 2.4


def arithmetic(name: str, operate: Any, exactly: Any, swapped: bool, otherwise: Operator) -> Operator:
    """A sum, difference or product; an AssertionError where integers of 32 bits overflow."""

    def operator(self: Any, other: Any, **semantic: Any) -> Any:
        if (found := alike(self, other)) is None:
            return otherwise(self, other, **semantic)
        a, b, kind = found
        if swapped:
            a, b = b, a
        if self.dtype.name != "int32":
            return made(operate(a, b), self.dtype, kind)
        if a.size == b.size == 1:
            least = most = exactly(a.item(), b.item())
            result = np.full(max(a.shape, b.shape, key=len), least & 0xFFFFFFFF, np.uint32).view(np.int32)
        else:
            wide = operate(a, b, dtype=np.int64)
            least, most = wide.min(), wide.max()
            result = wide.astype(np.int32)
        if least < -(2**31) or most >= 2**31:
            raise AssertionError(f"int32 overflow detected for operation {name}")
        return made(result, self.dtype, kind)

    return operator


def division(divide: Any, otherwise: Operator) -> Operator:
    """A quotient or remainder of integers."""

    def operator(self: Any, other: Any, **semantic: Any) -> Any:
        if self.dtype.name not in INTEGERS or (found := alike(self, other)) is None:
            return otherwise(self, other, **semantic)
        a, b, kind = found
        return made(divide(a, b), self.dtype, kind)

    return operator


def comparison(compare: Any, otherwise: Operator) -> Operator:
    """A truth for each element."""

    def operator(self: Any, other: Any, **semantic: Any) -> Any:
        if (found := alike(self, other)) is None:
            return otherwise(self, other, **semantic)
        a, b, kind = found
        return made(compare(a, b), self.dtype, kind.with_element_ty(tl.int1))

    return operator


def alike(tensor: Any, other: Any) -> tuple[Any, Any, Any] | None:
    """The data of two operands of one type, one of which may be a number, and the type of the result; or None."""
    number = NUMBERS.get(tensor.dtype.name)
    if number is None:
        return None
    if type(other) is core.tensor:
        if other.dtype.name != tensor.dtype.name or (kind := common(tensor, other)) is None:
            return None
        return tensor.handle.data, other.handle.data, kind
    if type(other) is core.constexpr:
        other = other.value
    if number in INTEGERS.values():
        fits = type(other) is int and -(2**31) <= other < 2**31
    else:
        fits = type(other) in (int, float) and abs(other) < LARGEST
    return (tensor.handle.data, number(other), tensor.type) if fits else None


def common(tensor: Any, other: Any) -> Any:
    """The type of what has the elements of one and the shape of both; None if they have not the same rank."""
    if tensor.shape is other.shape or not other.shape:
        return tensor.type
    if not tensor.shape:
        return other.type.with_element_ty(tensor.dtype)
    shapes = tensor.handle.data.shape, other.handle.data.shape
    if len(shapes[0]) != len(shapes[1]):
        return None
    if any(a != b and 1 not in (a, b) for a, b in zip(*shapes, strict=True)):
        return None
    return core.block_type(tensor.dtype, list(map(max, *shapes)))


def pointed(otherwise: Operator) -> Operator:
    """A pointer and an offset, or another sum."""

    def operator(self: Any, other: Any, **semantic: Any) -> Any:
        if not (self.dtype.is_ptr() and type(other) is core.tensor and other.dtype.name in INTEGERS):
            return otherwise(self, other, **semantic)
        if (kind := common(self, other)) is None:
            return otherwise(self, other, **semantic)
        return core.tensor(interpreter.interpreter_builder.create_addptr(self.handle, other.handle), kind)

    return operator


def indexed(otherwise: Operator) -> Operator:
    """A block with new axes of length 1."""

    def operator(self: Any, places: Any, **semantic: Any) -> Any:
        rank = len(self.shape)
        if not rank or type(places) is not tuple or places.count(slice(None)) != rank:
            return otherwise(self, places, **semantic)
        is_new = [place is None for place in places]
        if sum(is_new) != len(places) - rank:
            return otherwise(self, places, **semantic)
        lengths = iter(self.handle.data.shape)
        shape = [1 if new else next(lengths) for new in is_new]
        return made(self.handle.data.reshape(shape), self.dtype, core.block_type(self.dtype, shape))

    return operator


def made(data: Any, dtype: Any, kind: Any) -> Any:
    """A tensor of data that fits its type."""
    handle = object.__new__(interpreter.TensorHandle)
    handle.data, handle.dtype, handle.attr = data, dtype, {}
    return core.tensor(handle, kind)
