"""What PTX instructions compute, of numpy's arrays: an element for every lane.

Registers hold bits: `b16`, `b32` and `b64` are unsigned integers, predicates are bools. As on a GPU, except that fused
multiply-adds round twice in one case of 2^29 (float32), approximations (division, powers of 2) are exact, and the least
numbers are not taken for zeros (ftz).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

NUMBERS = {
    "pred": np.bool_,
    **{f"{kind}{bits}": getattr(np, f"uint{bits}") for kind in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": getattr(np, f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"f{bits}": getattr(np, f"float{bits}") for bits in (16, 32, 64)},
}
"""Types that numpy has."""

Array = Any


def width(kind: str) -> int:
    """Bits of a type."""
    return {"bf16": 16, "bf16x2": 32, "f16x2": 32, "f32x2": 64, "s16x2": 32}.get(kind) or int(kind.lstrip("bufs"))


def read(bits: Array, kind: str) -> Array:
    """Numbers of a type, from bits of no fewer."""
    if kind == "pred":
        return bits
    if bits.dtype.itemsize * 8 != width(kind):
        bits = bits.astype(f"u{width(kind) // 8}")
    if kind == "bf16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(NUMBERS[kind])


def written(numbers: Array, kind: str, register: str) -> Array:
    """Bits of a register of a type, from numbers of another: signed integers keep their sign."""
    if register == "pred":
        return numbers
    if kind == "bf16":
        numbers = to_bfloat16(numbers)
    numbers = np.asarray(numbers, NUMBERS.get(kind))
    if width(kind) == width(register):
        return numbers.view(NUMBERS[register])
    return numbers.astype(NUMBERS["s" + register[1:]]).view(NUMBERS[register])


def to_bfloat16(numbers: Array) -> Array:
    """The bits of the nearest bfloat16 of float32, of two the even one."""
    bits = np.asarray(numbers, np.float32).view(np.uint32)
    nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(numbers), 0x7FFF, nearest).astype(np.uint16)


def halves(bits: Array, kind: str) -> tuple[Array, Array]:
    """Low and high numbers of packed pairs."""
    bits = np.asarray(bits)
    half = width(kind) // 2
    low, high = bits & (2**half - 1), bits >> half
    return read(low, kind[:-2]), read(high, kind[:-2])


def packed(low: Array, high: Array, kind: str) -> Array:
    """Bits of pairs."""
    half, whole = width(kind) // 2, NUMBERS[f"b{width(kind)}"]
    low, high = (written(each, kind[:-2], f"b{half}").astype(whole) for each in (low, high))
    return low | high << half


def quotient(a: Array, b: Array) -> Array:
    """Integers divided, towards zero; all bits set where the divisor is zero."""
    safe = np.where(b == 0, 1, b)
    rest = np.fmod(a, safe)
    return np.where(b == 0, np.array(-1).astype(rest.dtype), (a - rest) // safe).astype(rest.dtype)


def remainder(a: Array, b: Array) -> Array:
    """What integers divided towards zero leave."""
    return np.where(b == 0, a, np.fmod(a, np.where(b == 0, 1, b))).astype(np.result_type(a, b))


def fused(a: Array, b: Array, c: Array) -> Array:
    """a b + c, of floats of wider ones."""
    wide = np.float64 if a.dtype.itemsize < 8 else np.longdouble
    return (np.asarray(a, wide) * np.asarray(b, wide) + np.asarray(c, wide)).astype(np.result_type(a, b, c))


def maximum(a: Array, b: Array) -> Array:
    """The larger numbers, of zeros the positive ones; of NaN and another number the other."""
    return np.where(a == b, np.where(np.signbit(a), b, a), np.fmax(a, b)) if a.dtype.kind == "f" else np.maximum(a, b)


def minimum(a: Array, b: Array) -> Array:
    """The smaller numbers, of zeros the negative ones; of NaN and another number the other."""
    return np.where(a == b, np.where(np.signbit(a), a, b), np.fmin(a, b)) if a.dtype.kind == "f" else np.minimum(a, b)


def shifted_left(a: Array, by: Array) -> Array:
    """Zeros are shifted in, by any number."""
    bits = a.dtype.itemsize * 8
    return np.where(by < bits, a << np.minimum(by, bits - 1).astype(a.dtype), 0).astype(a.dtype)


def shifted_right(a: Array, by: Array) -> Array:
    """Signs of signed integers are shifted in, else zeros, by any number."""
    bits = a.dtype.itemsize * 8
    within = a >> np.minimum(by, bits - 1).astype(a.dtype)
    return within if a.dtype.kind == "i" else np.where(by < bits, within, 0).astype(a.dtype)


def high_half(a: Array, b: Array) -> Array:
    """The upper bits of products of integers."""
    bits = a.dtype.itemsize * 8
    if bits < 64:
        return (wide_product(a, b) >> bits).astype(a.dtype)
    pairs = np.broadcast(a, b)
    return np.array([(int(x) * int(y) >> 64) % 2**64 for x, y in pairs], np.uint64).reshape(pairs.shape).view(a.dtype)


def wide_product(a: Array, b: Array) -> Array:
    """All bits of products of integers."""
    wide = f"{a.dtype.kind}{a.dtype.itemsize * 2}"
    return a.astype(wide) * b.astype(wide)


def bit_field(a: Array, position: Array, length: Array) -> Array:
    """So many bits from a position on, zeros or copies of the sign above them; both counts are of 8 bits."""
    rest = np.maximum(a.dtype.itemsize * 8 - (length & 255).astype(int), 0)
    return shifted_right(shifted_left(shifted_right(a, position & 255), rest), rest)


def inserted(a: Array, b: Array, position: Array, length: Array) -> Array:
    """b with so many of a's lowest bits from a position on; both counts are of 8 bits."""
    mask = shifted_left(~shifted_left(~np.zeros_like(a), length & 255), position & 255)
    return (b & ~mask) | (shifted_left(a, position & 255) & mask)


def funnelled(low: Array, high: Array, by: Array) -> Array:
    """The upper half of two registers in a row, shifted left by as many bits as the last five of a number say."""
    both = np.asarray(high).astype(np.uint64) << 32 | low
    return (both << (np.asarray(by) & 31).astype(np.uint64) >> 32).astype(np.uint32)


def permuted(a: Array, b: Array, selector: Array) -> Array:
    """Four of the eight bytes of b and a, or their signs."""
    both = np.asarray(b).astype(np.uint64) << 32 | a
    result = np.uint64(0)
    for place in range(4):
        chosen = np.asarray(selector).astype(np.uint64) >> 4 * place & 15
        byte = both >> 8 * (chosen & 7) & 255
        byte = np.where(chosen & 8, 255 * (byte >> 7), byte)
        result = result | byte << 8 * place
    return result.astype(np.uint32)


def converted(numbers: Array, kind: str, to: str, rounding: str) -> Array:
    """Numbers of another type: integers cut off, floats rounded to even, or to integers as told."""
    if rounding in WHOLE:
        numbers = WHOLE[rounding](numbers)
    elif kind[0] == "f" and to[0] in "us":
        raise ValueError("floats rounded to integers somehow")
    if to[0] == "f" or to == "bf16":
        return np.asarray(numbers, np.float32 if to == "bf16" else NUMBERS[to])
    return numbers.astype(NUMBERS[to]) if kind[0] in "us" else saturated(numbers, kind, to)


def saturated(whole: Array, kind: str, to: str) -> Array:
    """Integers from floats, the nearest there is; for NaN zero, or of 64 bits the one whose first bit alone is set."""
    limits = np.iinfo(NUMBERS[to])
    bounded = np.select(
        [whole >= float(limits.max), whole <= float(limits.min)],
        [np.array(limits.max, NUMBERS[to]), np.array(limits.min, NUMBERS[to])],
        np.nan_to_num(whole).astype(NUMBERS[to]),
    )
    unknown = 2 ** (width(to) - 1) if "64" in kind + to else 0
    return np.where(
        np.isnan(whole), np.array(unknown % 2 ** width(to), f"u{width(to) // 8}").view(NUMBERS[to]), bounded
    )


WHOLE: dict[str, Callable[[Array], Array]] = {"rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil, "rni": np.rint}
"""Ways to round to integers."""

UNARY: dict[str, Callable[[Array], Array]] = {
    "mov": lambda a: a,
    "cvta": lambda a: a,
    "abs": np.abs,
    "neg": np.negative,
    "not": np.invert,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: (1 / np.sqrt(a, dtype=np.float64)).astype(a.dtype),
    "rcp": lambda a: (1 / a).astype(a.dtype),
    "ex2": np.exp2,
    "lg2": np.log2,
    "tanh": np.tanh,
}
"""Operations on one operand."""

BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": lambda a, b: np.divide(a, b) if a.dtype.kind == "f" else quotient(a, b),
    "rem": remainder,
    "min": minimum,
    "max": maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "shl": shifted_left,
    "shr": shifted_right,
}
"""Operations on two operands."""

TERNARY: dict[str, Callable[[Array, Array, Array], Array]] = {
    "fma": fused,
    "mad": lambda a, b, c: a * b + c,
    "bfe": bit_field,
    "prmt": permuted,
    "shf": funnelled,
}
"""Operations on three operands."""

QUATERNARY: dict[str, Callable[[Array, Array, Array, Array], Array]] = {"bfi": inserted}
"""Operations on four operands."""

COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal,
    "ne": lambda a, b: (a != b) & (a == a) & (b == b),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "equ": lambda a, b: (a == b) | (a != a) | (b != b),
    "neu": np.not_equal,
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: (a == a) & (b == b),
    "nan": lambda a, b: (a != a) | (b != b),
}
"""False of NaN, but those that end in u."""
