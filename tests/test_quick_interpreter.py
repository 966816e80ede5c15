"""The quicker interpreter finds what Triton's own finds."""

from dataclasses import replace
from itertools import product

import pytest
import quick_interpreter
import torch
import triton
import triton.language as tl
from triton.language import core
from triton.runtime import interpreter

from tritonbn.launching.launch import INTERPRETED

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


DTYPES = (tl.int1, tl.int8, tl.uint8, tl.int32, tl.uint32, tl.int64, tl.float16, tl.bfloat16, tl.float32, tl.float64)


@pytest.mark.parametrize("dtype", [*DTYPES, tl.pointer_type(tl.bfloat16)], ids=str)
@pytest.mark.parametrize("shape", [[4], [2, tl.constexpr(8)], core.tuple([1, 2, 4])], ids=str)
def test_types_of_blocks(dtype, shape):
    made, wanted = (object.__new__(core.block_type) for _ in range(2))
    quick_interpreter.begin_block_type(made, dtype, shape)
    quick_interpreter.own_block_type(wanted, dtype, shape)
    assert vars(made).keys() == vars(wanted).keys()
    assert made == wanted
    assert (made.name, made.numel, made.shape.values) == (wanted.name, wanted.numel, wanted.shape.values)
    check_tensor(wanted)


@pytest.mark.parametrize("dtype", [*DTYPES, tl.pointer_type(tl.bfloat16)], ids=str)
def test_scalars(dtype):
    check_tensor(dtype)


def check_tensor(kind):
    made, wanted = (object.__new__(core.tensor) for _ in range(2))
    quick_interpreter.begin_tensor(made, "handle", kind)
    quick_interpreter.own_tensor(wanted, "handle", kind)
    assert vars(made).keys() == vars(wanted).keys()
    assert all(getattr(made, name) is getattr(wanted, name) for name in ("handle", "type", "dtype"))
    assert (made.numel.value, str(made)) == (wanted.numel.value, str(wanted))
    assert [length.value for length in made.shape] == [length.value for length in wanted.shape]
    assert quick_interpreter.dtype_in_numpy(kind) == quick_interpreter.own_dtype(kind)


@pytest.mark.parametrize(("shape", "error"), [([], TypeError), ([3], ValueError), ([2, 4.0], TypeError)], ids=str)
def test_what_is_no_shape(shape, error):
    for begin in (quick_interpreter.begin_block_type, quick_interpreter.own_block_type):
        with pytest.raises(error):
            begin(object.__new__(core.block_type), tl.float32, shape)


def test_computation_types():
    outcomes = set()
    for a, b, *scalars in product(DTYPES, DTYPES, (False, True), (False, True), (False, True)):
        found = []
        for of_two in (quick_interpreter.computation_type, quick_interpreter.own_computation_type):
            try:
                found.append(of_two(a, scalars[0], b, scalars[1], scalars[2]))
            except TypeError as error:
                found.append(str(error))
        assert found[0] == found[1]
        outcomes.add(str(found[0]))
    assert len(outcomes) > len(DTYPES)


@triton.jit
def mixed_kernel(x, y, rows: tl.constexpr, columns: tl.constexpr):
    row, column = tl.arange(0, rows)[:, None], tl.arange(0, columns)[None, :]
    values = tl.load(x + row * columns + column)
    centred = values - tl.sum(values.to(tl.float32), axis=1)[:, None] / columns
    tl.store(y + row * columns + column, tl.where(row + 1 > column, centred, row * 2.5) + values * (column % 3))


def test_a_kernel_of_mixed_shapes_and_types():
    x, y = torch.randn(4, 8).bfloat16(), torch.full((4, 8), torch.nan)
    mixed_kernel[(1,)](x, y, 4, 8)
    row, column = torch.arange(4)[:, None], torch.arange(8)[None]
    centred = x - x.float().sum(1, keepdim=True) / 8
    torch.testing.assert_close(y, torch.where(row + 1 > column, centred, row * 2.5) + x * (column % 3).bfloat16())
