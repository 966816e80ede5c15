"""The interpreter's quick operators find what its own find, or leave the operands to them."""

from itertools import product

import numpy as np
import pytest
import quick_interpreter
import quick_operators
import triton.language as tl
from triton.language import core
from triton.runtime.interpreter import TensorHandle

from tritonbn.launching.launch import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="about the interpreter")

QUICK = (tl.int32, tl.int64, tl.float32, tl.float64)
DTYPES = (*QUICK, tl.int1, tl.uint8, tl.uint32, tl.float16)
SHAPES = ((), (1,), (4,), (1, 4), (2, 1), (2, 4), (1, 1), (4, 4))
NUMBERS = (3, -2, 2**31 - 1, 2**31, 2**40, 1.5, -1e30, 1e300, float("nan"), True, tl.constexpr(7), tl.constexpr(0.1))
BINARY = ("add", "radd", "sub", "rsub", "mul", "rmul", "floordiv", "mod", *quick_operators.COMPARISONS)
NAMES = [f"__{name}__" for name in BINARY]


def speaking():
    """A function of a module that knows Triton's language."""


@pytest.fixture
def operators():
    """The interpreter's own operators by name, the quick ones, and the operands that these have left to the others."""
    scope, left = quick_interpreter.patch_language(speaking), []
    own = {name: getattr(core.tensor, name) for name in (*NAMES, "__getitem__")}
    for name, method in own.items():
        scope.set_attr(core.tensor, name, lambda *given, method=method: (left.append(given), method(*given))[1])
    quick_operators.quicken(lambda name, operator: scope.set_attr(core.tensor, name, operator))
    yield own, {name: getattr(core.tensor, name) for name in own}, left
    scope.restore()


def tensor(dtype, shape=(), seed=0, factor=1):
    values = np.random.default_rng(seed).integers(1, 9, shape or 1) * factor
    data = values.astype(quick_interpreter.dtype_in_numpy(dtype))
    return core.tensor(TensorHandle(data, dtype), core.block_type(dtype, list(shape)) if shape else dtype)


def outcome(operator, *operands):
    """What comes of it, as data."""
    with np.errstate(all="ignore"):
        try:
            found = operator(*operands)
        except Exception as error:
            return type(error), str(error)
    data = found.handle.data
    return str(found.type), str(found.dtype), str(found.handle.dtype), data.dtype, data.shape, data.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_alike(operators, name):
    own, quick, left = operators
    for dtype, *shapes in product(QUICK, SHAPES, SHAPES):
        operands = [tensor(dtype, shape, seed, 1 - 3 * seed) for seed, shape in enumerate(shapes)]
        assert outcome(quick[name], *operands) == outcome(own[name], *operands), operands
    assert all(len(a.shape) != len(b.shape) or a.dtype.is_floating() or a.type != b.type for a, b in left)
    assert len(left) < len(QUICK) * len(SHAPES) ** 2 * (0.8 if "floordiv" in name or "mod" in name else 0.5)


@pytest.mark.parametrize("name", NAMES)
def test_other_types_and_numbers(operators, name):
    own, quick, _ = operators
    for a, b in product(DTYPES, DTYPES):
        operands = tensor(a, (4,)), tensor(b, (4,), 1)
        assert outcome(quick[name], *operands) == outcome(own[name], *operands), (a, b)
    for dtype, shape, number in product(DTYPES, ((), (2, 4)), NUMBERS):
        operands = tensor(dtype, shape), number
        assert outcome(quick[name], *operands) == outcome(own[name], *operands), (dtype, shape, number)


@pytest.mark.parametrize("name", ["__add__", "__radd__", "__sub__", "__rsub__", "__mul__"])
@pytest.mark.parametrize("shape", [(), (4,)])
def test_what_is_too_large(operators, name, shape):
    """Held to Python's numbers, as the interpreter's own check does nothing unless it is told to debug."""
    _, quick, _ = operators
    message = f"int32 overflow detected for operation {name.strip('_')[-3:]}"
    for number in (1, -1, 2**30, -(2**31), 2**31 - 1):
        for factor in (1, -1, 2**28, -(2**28), 2**27):
            operand = tensor(tl.int32, shape, 0, factor)
            exact = [getattr(value, name)(number) for value in operand.handle.data.tolist()]
            fits = all(-(2**31) <= value < 2**31 for value in exact)
            if fits:
                assert quick[name](operand, number).handle.data.tolist() == exact
            else:
                with pytest.raises(AssertionError, match=message):
                    quick[name](operand, number)


@pytest.mark.parametrize("kind", [tl.float32, tl.int8, tl.int1], ids=str)
def test_pointers(operators, kind):
    own, quick, left = operators
    kind = core.pointer_type(kind)
    for *shapes, dtype in product(SHAPES, SHAPES, (tl.int32, tl.int64, tl.uint32)):
        operands = tensor(kind, shapes[0], 0, 4096), tensor(dtype, shapes[1], 1, -3 if dtype is tl.int32 else 5)
        assert outcome(quick["__add__"], *operands) == outcome(own["__add__"], *operands), operands
    assert all(b.dtype is tl.uint32 or a.type != b.type.with_element_ty(kind) for a, b in left)
    assert len(left) < len(SHAPES) ** 2 * 2


def test_new_axes(operators):
    own, quick, left = operators
    new, every = None, slice(None)
    places = [each for rank in (1, 2, 3) for each in product((new, every), repeat=rank)]
    for shape, place in product(SHAPES, (*places, new, every, 0, (slice(1), new), (0, every))):
        x = tensor(tl.float32, shape)
        assert outcome(quick["__getitem__"], x, place) == outcome(own["__getitem__"], x, place), (shape, place)
    assert not any(len(x.shape) > 0 and place in places and place.count(every) == len(x.shape) for x, place in left)
