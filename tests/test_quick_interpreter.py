"""The quicker interpreter finds what Triton's own finds."""

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from tritonbn.launch import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="about the interpreter")


@triton.jit
def combined(a, b, OPERATION: tl.constexpr):
    """The sum, difference or product of two numbers."""
    if OPERATION == "add":
        return a + b
    if OPERATION == "sub":
        return a - b
    return a * b


@triton.jit
def combining_kernel(left, right, result, OPERATION: tl.constexpr, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    a, b = tl.load(left + lanes), tl.load(right + lanes)
    tl.store(result + lanes, combined(a, b, OPERATION))


@pytest.fixture(params=["quick", "own"])
def check(request, monkeypatch):
    """The check of every operation, and Triton's own, which does nothing unless it is told to debug."""
    if request.param == "own":
        builder = interpreter.interpreter_builder
        monkeypatch.setattr(builder, "options", replace(builder.options, debug=True))
        own = type(interpreter.interpreter_semantic).binary_op_sanitize_overflow_impl
        semantic = interpreter.interpreter_semantic
        monkeypatch.setattr(semantic, "binary_op_sanitize_overflow_impl", own.__get__(semantic))


@pytest.mark.parametrize(
    ("operation", "dtype", "a", "b", "fits"),
    [
        ("add", torch.int32, 2**31 - 2, 1, True),
        ("add", torch.int32, 2**31 - 1, 1, False),
        ("sub", torch.int32, -(2**31) + 1, 1, True),
        ("sub", torch.int32, -(2**31), 1, False),
        ("mul", torch.int32, 2**16, 2**15 - 1, True),
        ("mul", torch.int32, 2**16, 2**15, False),
        ("mul", torch.int32, -(2**16), 2**15, True),
        ("mul", torch.int16, 2**8, 2**7, False),
        ("sub", torch.uint8, 1, 1, True),
        ("sub", torch.uint8, 1, 2, False),
        ("mul", torch.int64, 2**32, 2**32, True),
    ],
)
def test_overflow(check, operation, dtype, a, b, fits):
    values = torch.tensor([[0, a, 1, 0], [0, b, 1, 0]], dtype=dtype)
    result = torch.full((4,), 77, dtype=dtype)
    if fits:
        combining_kernel[(1,)](*values, result, operation, 4)
        expected = {"add": torch.add, "sub": torch.sub, "mul": torch.mul}[operation](*values)
        assert torch.equal(result, expected)
    else:
        with pytest.raises(interpreter.InterpreterError, match="overflow detected"):
            combining_kernel[(1,)](*values, result, operation, 4)


def test_the_language_is_as_before_after_a_launch():
    before = dict(vars(tl))
    values = torch.ones(2, 4, dtype=torch.int32)
    combining_kernel[(1,)](*values, torch.empty(4, dtype=torch.int32), "add", 4)
    assert dict(vars(tl)) == before
