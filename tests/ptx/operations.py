"""PTX instructions as functions of lanes, each of which has read its operands when it writes its results."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .arithmetic import (
    BINARY,
    COMPARISONS,
    NUMBERS,
    QUATERNARY,
    TERNARY,
    UNARY,
    converted,
    halves,
    high_half,
    packed,
    read,
    wide_product,
    width,
    written,
)
from .memory import Fault

if TYPE_CHECKING:
    from .machine import Lanes
    from .text import Instruction, Kernel

Operation = Callable[["Lanes"], None]
Get = Callable[["Lanes"], Any]

WARP = 32

UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
"""Comparisons of unsigned integers that have another name."""

ATOMIC: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "min": min,
    "max": max,
    "exch": lambda old, new: new,
    "cas": lambda old, expected, new: new if old == expected else old,
}
"""What becomes of a value in memory."""

ORDERS = "relaxed", "acquire", "release", "acq_rel"


class Unknown(BaseException):
    """An instruction that this machine does not know; no Exception, for which the library would blame a config."""


def is_type(part: str) -> bool:
    """Whether a part of an operation's name is a type."""
    try:
        return part == "pred" or width(part) > 0
    except ValueError:
        return False


def operation(instruction: Instruction, kernel: Kernel) -> Operation:
    """What an instruction does, but where to go next; Unknown if that is not known."""
    name, *rest = instruction.parts
    kinds = [part for part in rest if is_type(part)]
    modes = [part for part in rest if not is_type(part)]
    if name not in MODES or not MODES[name].issuperset(mode for mode in modes if not mode.startswith(CACHED)):
        raise Unknown(str(instruction))
    try:
        return MAKERS.get(name, compute)(Operands(instruction, kernel), name, modes, kinds)
    except Exception as error:
        raise Unknown(f"{instruction}: {error!r}") from error


class Operands:
    """Operands of one instruction."""

    def __init__(self, instruction: Instruction, kernel: Kernel) -> None:
        self.instruction, self.kernel = instruction, kernel
        self.texts = instruction.operands

    def get(self, number: int, kind: str) -> Get:
        """Numbers of an operand."""
        return self.get_text(self.texts[number], kind)

    def get_text(self, text: str, kind: str) -> Get:
        """Numbers of a register, of the launch, or written down."""
        if text.startswith("%") and "." in text:
            return lambda lanes: read(lanes.special(text), kind)
        if text.startswith("%") or text in self.kernel.types:
            return lambda lanes: read(lanes.get(text), kind)
        value = constant(text, kind)
        return lambda lanes: value

    def put(self, text: str, kind: str) -> Callable[[Lanes, Any], None]:
        """Write numbers to a register, where the predicate is as wanted."""
        if text == "_":
            return lambda lanes, numbers: None
        register, old = self.kernel.type_of(text), self.get_text(text, self.kernel.type_of(text))
        mask = self.mask()

        def write(lanes: Lanes, numbers: Any) -> None:
            bits = written(numbers, kind, register)
            lanes.put(text, bits if mask is None else np.where(mask(lanes), bits, old(lanes)))

        return write

    def mask(self) -> Get | None:
        """For which lanes the predicate is as wanted, None without one."""
        predicate, wanted = self.instruction.predicate, self.instruction.wanted
        if not predicate:
            return None
        return lambda lanes: lanes.get(predicate) == wanted

    def chosen(self) -> Get:
        """The lanes whose predicate is as wanted, by number."""
        mask = self.mask()
        if mask is None:
            return lambda lanes: np.arange(lanes.count)
        return lambda lanes: np.flatnonzero(np.broadcast_to(mask(lanes), lanes.count))

    def vector(self, number: int) -> list[str]:
        """The registers of an operand."""
        return [each.strip() for each in self.texts[number].strip("{}").split(",")]

    def address(self, number: int) -> Callable[[Lanes, Any], Any]:
        """Bytes where an operand points, of some lanes."""
        base, _, offset = self.texts[number].strip("[] ").partition("+")
        base, offset = base.strip(), int(offset or "0", 0)
        register = base.startswith("%") or base in self.kernel.types
        get = self.get_text(base, self.kernel.type_of(base) if register else "b32")
        return lambda lanes, of: lanes.spread(get(lanes))[of].astype(np.int64) + offset


def constant(text: str, kind: str) -> Any:
    """A number of a type that is written down; the beginning of shared memory is zero."""
    if kind == "pred":
        return np.bool_(int(text, 0))
    if text.startswith(("0f", "0F", "0d", "0D")):
        bits = np.array(int(text[2:], 16), "u4" if text[1] in "fF" else "u8")
        return read(bits, kind)
    value = 0 if text == "global_smem" else int(text.rstrip("U"), 0)
    return read(np.array(value % 2 ** width(kind), f"u{width(kind) // 8}"), kind)


def compute(operands: Operands, name: str, modes: list[str], kinds: list[str]) -> Operation:
    """An operation on numbers of one type, or of a narrow and a wide one."""
    kind, to, inputs = kinds[-1], kinds[0], len(operands.texts) - 1
    if name == "mov" and "{" in operands.texts[0] + operands.texts[1]:
        return unpack_or_pack(operands, kind)
    function = {1: UNARY, 2: BINARY, 3: TERNARY, 4: QUATERNARY}[inputs][name]
    types = [kind] * inputs
    if len(kinds) == 2:  # the first operands of the narrow type, the last of the wide one
        types[-1] = to
    if name in ("shl", "shr"):
        types[1] = "b32"
    elif name in ("bfe", "bfi"):
        types[-2:] = ["b32", "b32"]
    elif "wide" in modes or "hi" in modes:
        product = wide_product if "wide" in modes else high_half
        to = kind[0] + str(2 * width(kind)) if "wide" in modes else kind
        types[2:] = [to] * (inputs - 2)
        function = product if inputs == 2 else lambda a, b, c: product(a, b) + c
    if kind.endswith("x2"):
        if "relu" in modes:
            raise Unknown(str(operands.instruction))
        function = functools.partial(of_pairs, function, kind)
        types, to = [f"b{width(kind)}"] * inputs, f"b{width(kind)}"
    elif "relu" in modes:
        plain = function
        function = lambda *values: np.maximum(plain(*values), 0)  # noqa: E731
    gets = [operands.get(number + 1, each) for number, each in enumerate(types)]
    put = operands.put(operands.texts[0], to)
    return lambda lanes: put(lanes, function(*[get(lanes) for get in gets]))


def of_pairs(function: Callable[..., Any], kind: str, *values: Any) -> Any:
    """The same of the low and of the high halves."""
    low, high = zip(*[halves(value, kind) for value in values], strict=True)
    return packed(function(*low), function(*high), kind)


def unpack_or_pack(operands: Operands, kind: str) -> Operation:
    """A register from several, or several from one."""
    if operands.texts[0].startswith("{"):
        names, get = operands.vector(0), operands.get(1, kind)
        each = f"b{width(kind) // len(names)}"
        puts = [operands.put(name, each) for name in names]

        def unpack(lanes: Lanes) -> None:
            bits = get(lanes)
            for number, put in enumerate(puts):
                put(lanes, (bits >> number * width(each)).astype(NUMBERS[each]))

        return unpack
    names = operands.vector(1)
    each = f"b{width(kind) // len(names)}"
    gets, put = [operands.get_text(name, each) for name in names], operands.put(operands.texts[0], kind)

    def pack(lanes: Lanes) -> None:
        values = [get(lanes).astype(NUMBERS[kind]) << number * width(each) for number, get in enumerate(gets)]
        put(lanes, sum(values[1:], start=values[0]))

    return pack


def convert(operands: Operands, name: str, modes: list[str], kinds: list[str]) -> Operation:
    """Of one type to another, or of two numbers to a pair."""
    to, kind = kinds[0], kinds[-1]
    gets = [operands.get(number, kind) for number in range(1, len(operands.texts))]
    if to.endswith("x2"):
        put = operands.put(operands.texts[0], "b32")
        return lambda lanes: put(lanes, packed(*[converted(get(lanes), kind, to[:-2], "rn") for get in gets[::-1]], to))
    put, rounding = operands.put(operands.texts[0], to), next((mode for mode in modes if mode != "ftz"), "")
    return lambda lanes: put(lanes, converted(gets[0](lanes), kind, to, rounding))


def compare(operands: Operands, name: str, modes: list[str], kinds: list[str]) -> Operation:
    """A predicate from two numbers."""
    function = COMPARISONS[UNSIGNED.get(modes[0], modes[0])]
    if len(operands.texts) != 3 or "|" in operands.texts[0]:
        raise Unknown(str(operands.instruction))
    a, b, put = operands.get(1, kinds[-1]), operands.get(2, kinds[-1]), operands.put(operands.texts[0], "pred")
    return lambda lanes: put(lanes, function(a(lanes), b(lanes)))


def select(operands: Operands, name: str, modes: list[str], kinds: list[str]) -> Operation:
    """The one or the other, by a predicate."""
    a, b, which = operands.get(1, kinds[-1]), operands.get(2, kinds[-1]), operands.get(3, "pred")
    put = operands.put(operands.texts[0], kinds[-1])
    return lambda lanes: put(lanes, np.where(which(lanes), a(lanes), b(lanes)))


def shuffle(operands: Operands, name: str, modes: list[str], kinds: list[str]) -> Operation:
    """A register of another lane of the warp."""
    if operands.texts[3:] != ("31", "-1") and operands.texts[3:] != ("0x1f", "0xffffffff"):
        raise Unknown(str(operands.instruction))
    get, by, put = operands.get(1, "b32"), operands.get(2, "b32"), operands.put(operands.texts[0], "b32")
    source = {
        "bfly": lambda lane, by: lane ^ by,
        "idx": lambda lane, by: by & 31,
        "down": lambda lane, by: np.where(lane + by < WARP, lane + by, lane),
    }[modes[1]]

    def run(lanes: Lanes) -> None:
        warps = lanes.warps(get(lanes))
        others = source(np.arange(WARP), lanes.warps(by(lanes)).astype(np.int64))
        put(lanes, np.take_along_axis(warps, others, axis=1).reshape(-1))

    return run


def reduce(operands: Operands, name: str, modes: list[str], kinds: list[str]) -> Operation:
    """A sum, or the like, of a register of all lanes of the warp."""
    get, put = operands.get(1, kinds[0]), operands.put(operands.texts[0], kinds[0])
    function = BINARY[modes[1]]

    def run(lanes: Lanes) -> None:
        warps = lanes.warps(get(lanes))
        put(lanes, np.repeat(functools.reduce(function, warps.T), WARP))

    return run


def access(operands: Operands, name: str, modes: list[str], kinds: list[str]) -> Operation:
    """A load or store of one or several elements."""
    kind = kinds[-1]
    space = modes[0].partition("::")[0]
    if name == "ld" and space == "param":
        number = list(operands.kernel.parameters).index(operands.texts[1].strip("[]"))
        put = operands.put(operands.texts[0], kind)
        return lambda lanes: put(lanes, read(lanes.parameter(number), kind))
    if space not in ("global", "shared"):
        raise Unknown(str(operands.instruction))
    address, chosen, size = operands.address(name == "ld"), operands.chosen(), width(kind) // 8
    if name == "ld":
        puts = [operands.put(register, kind) for register in operands.vector(0)]

        def load(lanes: Lanes) -> None:
            of = chosen(lanes)
            for put, values in zip(puts, lanes.load(space, of, address(lanes, of), size, len(puts)), strict=True):
                numbers = np.zeros(lanes.count, values.dtype)
                numbers[of] = values
                put(lanes, read(numbers, kind))

        return load
    gets = [operands.get_text(register, f"b{width(kind)}") for register in operands.vector(1)]

    def store(lanes: Lanes) -> None:
        of = chosen(lanes)
        lanes.store(space, of, address(lanes, of), [lanes.spread(get(lanes))[of] for get in gets])

    return store


def atomic(operands: Operands, name: str, modes: list[str], kinds: list[str]) -> Operation:
    """One element of memory, replaced by what follows from it and from operands."""
    kind, returns = kinds[-1], name == "atom"
    function = ATOMIC[next(mode for mode in modes if mode in ATOMIC)]
    order = next((mode for mode in modes if mode in ORDERS), "relaxed")
    if modes[0] != "global" or not {"gpu", "sys"}.intersection(modes):
        raise Unknown(str(operands.instruction))
    address, chosen = operands.address(returns), operands.chosen()
    gets = [operands.get(number, kind) for number in range(returns + 1, len(operands.texts))]
    put = operands.put(operands.texts[0], kind) if returns else lambda lanes, numbers: None

    def run(lanes: Lanes) -> None:
        of = chosen(lanes)
        old = np.zeros(lanes.count, NUMBERS[kind])
        values = [lanes.spread(get(lanes))[of] for get in gets]
        old[of] = lanes.atomic(of, address(lanes, of), function, values, NUMBERS[kind], order, returns)
        put(lanes, old)

    return run


def matrices(operands: Operands, name: str, modes: list[str], kinds: list[str]) -> Operation:
    """Matrices of 8 x 8 elements of 16 bits in shared memory, whose rows lanes point to and whose pairs lanes hold."""
    loads = name == "ldmatrix"
    transposed = "trans" in modes
    registers = operands.vector(not loads)
    address, chosen = operands.address(loads), operands.chosen()
    lane = np.arange(WARP)
    row, column = lane // 4, lane % 4 * 2
    places = [(column + odd, row) if transposed else (row, column + odd) for odd in (0, 1)]
    puts = [operands.put(register, "b32") for register in registers] if loads else []
    gets = [] if loads else [operands.get_text(register, "b32") for register in registers]

    def run(lanes: Lanes) -> None:
        of = chosen(lanes)
        rows = lanes.warps(address(lanes, of))
        for number in range(len(registers)):
            begins = rows[:, 8 * number : 8 * number + 8]
            if (begins % 16).any():
                raise Fault(f"a row of a matrix at {begins[begins % 16 != 0][0]}, no multiple of 16 shared bytes")
            at = [(begins[:, r] + 2 * c).reshape(-1) for r, c in places]
            if loads:
                low, high = (lanes.load("shared", of, each, 2, 1)[0].astype(np.uint32) for each in at)
                puts[number](lanes, low | high << 16)
            else:
                bits = lanes.spread(gets[number](lanes))[of]
                lanes.store("shared", of, at[0], [bits.astype(np.uint16)])
                lanes.store("shared", of, at[1], [(bits >> 16).astype(np.uint16)])

    return run


def asynchronous(operands: Operands, name: str, modes: list[str], kinds: list[str]) -> Operation:
    """Copies from global to shared memory, which are there when they have been waited for."""
    if "commit_group" in modes:
        return lambda lanes: lanes.machine.copies.commit(lanes.at)
    if "wait_group" in modes:
        left = int(operands.texts[0])
        return lambda lanes: lanes.machine.copies.wait(lanes.at, left)
    to, source, size, chosen = operands.address(0), operands.address(1), int(operands.texts[2], 0), operands.chosen()
    given = operands.get(3, "b32") if len(operands.texts) > 3 else lambda lanes: np.uint32(size)

    def run(lanes: Lanes) -> None:
        of = chosen(lanes)
        values = to(lanes, of), source(lanes, of), size, lanes.spread(given(lanes))[of]
        lanes.machine.copies.begin(lanes.at[of], *values)

    return run


def barrier(operands: Operands, name: str, modes: list[str], kinds: list[str]) -> Operation:
    """The only one of a program, for all of its lanes; lanes of a warp are in order without any."""
    if modes != ["warp", "sync"] and (modes, operands.texts, operands.instruction.predicate) != (["sync"], ("0",), ""):
        raise Unknown(str(operands.instruction))
    return nothing(operands, name, modes, kinds)


def nothing(operands: Operands, name: str, modes: list[str], kinds: list[str]) -> Operation:
    """What decides only where to go next."""
    return lambda lanes: None


MAKERS: dict[str, Callable[..., Operation]] = {
    **dict.fromkeys(("ld", "st"), access),
    **dict.fromkeys(("atom", "red"), atomic),
    **dict.fromkeys(("ldmatrix", "stmatrix"), matrices),
    **dict.fromkeys(("bra", "ret", "exit"), nothing),
    "bar": barrier,
    "cvt": convert,
    "setp": compare,
    "selp": select,
    "shfl": shuffle,
    "redux": reduce,
    "cp": asynchronous,
}
"""Operations that are more than a function of numbers of one type."""

MODES = {
    name: {*modes.split()}
    for names, modes in {
        "mov not and or xor shl shr rem bfe bfi prmt selp": "",
        "bra ret exit": "uni",
        "shf": "l wrap",
        "bar": "sync warp",
        "cvta": "to global shared",
        "add sub fma": "rn ftz",
        "mul mad": "rn ftz lo hi wide",
        "div sqrt rcp": "rn ftz approx full",
        "rsqrt ex2 lg2 tanh": "approx ftz",
        "abs neg": "ftz",
        "min max": "ftz relu",
        "cvt": "rn rzi rmi rpi rni ftz",
        "setp": " ".join(["ftz", *COMPARISONS, *UNSIGNED]),
        "shfl": "sync bfly idx down",
        "redux": "sync add min max and or xor",
        "ld st": "param global shared shared::cta v2 v4 v8 nc ca cg cs wb wt",
        "atom red": " ".join(["global gpu sys", *ORDERS, *ATOMIC]),
        "ldmatrix stmatrix": "sync aligned m8n8 x1 x2 x4 trans shared shared::cta",
        "cp": "async ca cg shared shared::cta global commit_group wait_group",
    }.items()
    for name in names.split()
}
"""What may be part of an operation's name beside its types: all else changes what it does, and is not known."""

CACHED = ("L1::", "L2::")
"""How parts of names begin that say what stays in a cache."""
