"""The machine that runs compiled kernels: instructions against Python's own numbers, and what it has to find."""

import re
from fractions import Fraction
from math import copysign, inf, isfinite, nan, prod
from random import Random

import numpy as np
import pytest
import torch
from interleaving import Deadlock
from ptx import machine
from ptx.machine import Machine
from ptx.memory import Fault
from ptx.operations import Unknown
from races import DataRace

LANES = 32

KERNEL = """
.visible .entry test(.param .u64 test_param_0, .param .u64 test_param_1)
{
    mov.u32 %r900, %tid.x;
    ld.param.b64 %rd900, [test_param_0];
    ld.param.b64 %rd901, [test_param_1];
    mad.wide.u32 %rd902, %r900, 32, %rd900;
    mad.wide.u32 %rd903, %r900, 8, %rd901;
    ld.global.v2.b64 {%rd1, %rd2}, [%rd902];
    ld.global.b64 %rd3, [%rd902+16];
    cvt.u32.u64 %r1, %rd1;
    cvt.u32.u64 %r2, %rd2;
    cvt.u32.u64 %r3, %rd3;
    cvt.u16.u32 %rs1, %r1;
    cvt.u16.u32 %rs2, %r2;
    cvt.u16.u32 %rs3, %r3;
    setp.ne.b32 %p1, %r3, 0;
    mov.b64 %rd9, 0;
    mov.b32 %r9, 0;
    mov.b16 %rs9, 0;
    INSTRUCTIONS
    st.global.b64 [%rd903], %rd9;
    ret;
}
"""
"""Three numbers of each lane in registers of every width; what is in %rd9 in the end."""


NOTHING = [(0, 0, 0)] * LANES

SHARED_BYTES = 1000
"""No multiple of 16."""


def run(instructions, numbers=NOTHING, threads=LANES, grid=(1, 1, 1), slots=1, random=None):
    """%rd9 of every lane, or, if not that, %r9 or %rs9, after some instructions."""
    widened = "".join(
        f"cvt.u64.u{bits} %rd9, {register}9;"
        for register, bits in (("%r", 32), ("%rs", 16))
        if re.search(rf"{register}9\b", instructions)
    )
    four_bytes_more = torch.zeros(threads * 8 + 1, dtype=torch.int32)
    given, result = four_bytes_more[:-1].view(torch.int64).view(threads, 4), torch.full((threads * prod(grid),), -1)
    for lane, values in enumerate(numbers):
        for place, value in enumerate(values):
            given[lane, place] = value - 2**64 if value >= 2**63 else value
    ptx = KERNEL.replace("INSTRUCTIONS", instructions + widened)
    tensors = {"given": given, "result": result}
    arguments = [tensor.data_ptr() for tensor in tensors.values()]
    Machine(ptx, grid, threads, SHARED_BYTES, arguments, list(tensors.items()), slots, random, True).run()
    return [each % 2**64 for each in result.tolist()]


def signed(value, bits):
    """A number's two's complement."""
    value %= 2**bits
    return value - 2**bits if value >= 2 ** (bits - 1) else value


def floats(bits):
    return np.array(bits, np.uint32).view(np.float32)


def divided(a, b):
    """Towards zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def bytes_of(a, b, selector):
    both = [*a.to_bytes(4, "little"), *b.to_bytes(4, "little")]
    chosen = [(selector >> 4 * place) & 15 for place in range(4)]
    return sum((255 * (both[c & 7] >> 7) if c & 8 else both[c & 7]) << 8 * place for place, c in enumerate(chosen))


def s32(value):
    return signed(value, 32)


def field(a, position, length, sign):
    """As the manual tells it, bit by bit; all of them are of 8 bits but the first."""
    position, length = position % 256, length % 256
    filled = a >> min(position + length - 1, 31) & 1 if sign and length else 0
    return sum(
        (a >> position + bit & 1 if bit < length and position + bit <= 31 else filled) << bit for bit in range(32)
    )


def placed(a, b, position, length, bit):
    """A bit of what bfi makes: of a, if it is one of so many from a position on, else of b."""
    return a >> bit - position & 1 if position <= bit < position + length else b >> bit & 1


EXACT = {
    "add.s32 %r9, %r1, %r2;": lambda a, b, c: (a + b) % 2**32,
    "sub.s32 %r9, %r1, 7;": lambda a, b, c: (a - 7) % 2**32,
    "mul.lo.s32 %r9, %r1, %r2;": lambda a, b, c: a * b % 2**32,
    "mul.hi.s32 %r9, %r1, %r2;": lambda a, b, c: (s32(a) * s32(b) >> 32) % 2**32,
    "mul.wide.s32 %rd9, %r1, %r2;": lambda a, b, c: s32(a) * s32(b) % 2**64,
    "mul.wide.u32 %rd9, %r1, %r2;": lambda a, b, c: a * b,
    "mad.lo.s32 %r9, %r1, -6, %r2;": lambda a, b, c: (-6 * a + b) % 2**32,
    "mad.wide.s32 %rd9, %r1, 4, %rd2;": lambda a, b, c: (4 * s32(a) + b) % 2**64,
    "div.s32 %r9, %r1, %r2;": lambda a, b, c: divided(s32(a), s32(b)) % 2**32,
    "div.u32 %r9, %r1, %r2;": lambda a, b, c: a // b,
    "rem.s32 %r9, %r1, %r2;": lambda a, b, c: (s32(a) - s32(b) * divided(s32(a), s32(b))) % 2**32,
    "rem.u32 %r9, %r1, %r2;": lambda a, b, c: a % b,
    "min.s32 %r9, %r1, %r2;": lambda a, b, c: min(s32(a), s32(b)) % 2**32,
    "max.u32 %r9, %r1, %r2;": lambda a, b, c: max(a, b),
    "min.relu.s32 %r9, %r1, %r2;": lambda a, b, c: max(0, min(s32(a), s32(b))),
    "neg.s32 %r9, %r1;": lambda a, b, c: -a % 2**32,
    "not.b32 %r9, %r1;": lambda a, b, c: ~a % 2**32,
    "xor.b32 %r9, %r1, %r2;": lambda a, b, c: a ^ b,
    "shl.b32 %r9, %r1, %r3;": lambda a, b, c: (a << c) % 2**32,
    "shr.u32 %r9, %r1, %r3;": lambda a, b, c: a >> c,
    "shr.s32 %r9, %r1, %r3;": lambda a, b, c: (s32(a) >> c) % 2**32,
    "shr.u64 %rd9, %rd1, %r3;": lambda a, b, c: a >> c,
    "bfe.u32 %r9, %r1, 5, 7;": lambda a, b, c: a >> 5 & 127,
    "bfe.s32 %r9, %r1, 5, 7;": lambda a, b, c: signed(a >> 5, 7) % 2**32,
    "bfe.u32 %r9, %r1, %r3, %r2;": lambda a, b, c: field(a, c, b, False),
    "bfe.s32 %r9, %r1, %r3, %r2;": lambda a, b, c: field(a, c, b, True),
    "bfe.s32 %r9, %r1, 28, %r3;": lambda a, b, c: field(a, 28, c, True),
    "bfi.b32 %r9, %r1, %r2, 24, 8;": lambda a, b, c: (a & 255) << 24 | b & 0xFFFFFF,
    "bfi.b32 %r9, %r1, %r2, %r3, 7;": lambda a, b, c: sum(placed(a, b, c, 7, bit) << bit for bit in range(32)),
    "bfi.b32 %r9, %r1, %r2, 3, %r3;": lambda a, b, c: sum(placed(a, b, 3, c, bit) << bit for bit in range(32)),
    "prmt.b32 %r9, %r1, %r2, 0x3340U;": lambda a, b, c: bytes_of(a, b, 0x3340),
    "shf.l.wrap.b32 %r9, %r1, %r2, %r3;": lambda a, b, c: ((b << 32 | a) << c % 32 >> 32) % 2**32,
    "prmt.b32 %r9, %r1, %r2, %r2;": lambda a, b, c: bytes_of(a, b, b & 0xFFFF),
    "cvt.s64.s32 %rd9, %r1;": lambda a, b, c: s32(a) % 2**64,
    "cvt.u64.u32 %rd9, %r1;": lambda a, b, c: a,
    "cvt.s16.s8 %rs9, %rs1;": lambda a, b, c: signed(a, 8) % 2**16,
    "cvt.rn.f32.s32 %r9, %r1;": lambda a, b, c: int(np.float32(s32(a)).view(np.uint32)),
    "setp.lt.s32 %p2, %r1, %r2; selp.b32 %r9, 5, %r1, %p2;": lambda a, b, c: 5 if s32(a) < s32(b) else a,
    "@%p1 mov.b32 %r9, 3; @!%p1 mov.b32 %r9, 4;": lambda a, b, c: 3 if c else 4,
    "mov.b32 {%rs4, %rs5}, %r1; mov.b32 %r9, {%rs5, %rs4};": lambda a, b, c: (a >> 16 | a << 16) % 2**32,
    "mov.b64 {%r4, _}, %rd1; mov.b32 %r9, %r4;": lambda a, b, c: a % 2**32,
    "add.s16x2 %r9, %r1, %r2;": lambda a, b, c: (a + b) % 2**16 | ((a >> 16) + (b >> 16)) % 2**16 << 16,
    "@%p1 st.global.b32 [%rd902], %r2; ld.global.b32 %r9, [%rd902];": lambda a, b, c: b if c else a,
    "mov.b32 %r9, %r2; @!%p1 ld.global.b32 %r9, [%rd902];": lambda a, b, c: b if c else a,
    "red.global.gpu.relaxed.add.u32 [%rd902], %r2; ld.global.b32 %r9, [%rd902];": lambda a, b, c: (a + b) % 2**32,
    "atom.global.gpu.relaxed.cas.b32 %r4, [%rd902], %r1, %r2; ld.global.b32 %r9, [%rd902];": lambda a, b, c: b,
    "atom.global.gpu.relaxed.cas.b32 %r4, [%rd902], 77, %r2; ld.global.b32 %r9, [%rd902];": lambda a, b, c: a,
    "atom.global.gpu.relaxed.exch.b32 %r9, [%rd902], %r2;": lambda a, b, c: a,
    "{ .reg .b64 at; add.s64 at, %rd902, 8; ld.global.b32 %r9, [at+-8]; }": lambda a, b, c: a,
    "shl.b32 %r4, %r900, 2; sub.s32 %r5, %r4, 256; st.shared.b32 [%r5+256], %r1; ld.shared.b32 %r9, [%r4];": (
        lambda a, b, c: a
    ),
    "mov.b32 %r4, 1; { .reg .b32 %r4; mov.b32 %r4, 2; { .reg .b32 %r4; mov.b32 %r4, 4; } add.s32 %r5, %r4, 8; }"
    "add.s32 %r9, %r4, %r5;": lambda a, b, c: 11,
    "{ .reg .b32 %r1x; mov.b32 %r1x, 9; add.s32 %r9, %r1x, %r1; }": lambda a, b, c: (a + 9) % 2**32,
}
"""Instructions, and %rd9 after them by the low 32 bits of %rd1 and %rd2, and a shift."""


def drawn(seed):
    """Numbers of all sizes, and such as are near to where a sign or a width ends."""
    random = Random(seed)
    edges = [0, 1, 2, 2**15, 2**31 - 1, 2**31, 2**32 - 1]
    return [
        (
            random.choice([*edges, random.getrandbits(random.randint(1, 32))]),
            random.getrandbits(32) or 1,
            random.randint(0, 40),
        )
        for _ in range(LANES)
    ]


@pytest.mark.parametrize("instructions", EXACT)
def test_integers(instructions):
    for seed in range(4):
        numbers = drawn(seed)
        assert run(instructions, numbers) == [EXACT[instructions](*each) for each in numbers]


SPECIAL = [
    0x0,
    0x80000000,
    0x3F800000,
    0xBF800001,
    0x7F800000,
    0xFF800000,
    0x7FC00000,
    0x7F7FFFFF,
    0x00000001,
    0x33800000,
]
"""Zeros, ones, infinities, NaN, the largest and the least float32, and 2^-24."""


def float_bits(seed):
    random = Random(seed)
    return [
        [random.choice([*SPECIAL, *[random.getrandbits(32) for _ in SPECIAL]]) for _ in range(3)] for _ in range(LANES)
    ]


def nearest(number):
    """The float32 nearest to a fraction, of two the even one."""
    exponent = max(abs(number.numerator).bit_length() - number.denominator.bit_length() - 24, -149)
    exponent += abs(number) >= Fraction(2) ** (exponent + 24)
    rounded = round(number / Fraction(2) ** exponent) * Fraction(2) ** exponent
    return float(rounded) if abs(rounded) < 2**128 else inf


def fused(a, b, c):
    """What is not finite, and signs, as of float64."""
    wide = (a.double() * b.double() + c.double()).tolist()
    numbers = zip(wide, *(each.tolist() for each in (a, b, c)), strict=True)
    return torch.tensor(
        [copysign(nearest(Fraction(x) * Fraction(y) + Fraction(z)), w) if isfinite(w) else w for w, x, y, z in numbers]
    )


def larger(a, b):
    """Of zeros the positive one."""
    return torch.where((a == 0) & (b == 0), a + b, torch.fmax(a, b))


FLOATS = {
    "add.f32 %r9, %r1, %r2;": lambda a, b, c: a + b,
    "fma.rn.f32 %r9, %r1, %r2, %r3;": fused,
    "mul.f32 %r9, %r1, 0f40400000;": lambda a, b, c: a * 3,
    "div.rn.f32 %r9, %r1, %r2;": lambda a, b, c: a / b,
    "sqrt.rn.f32 %r9, %r1;": lambda a, b, c: a.double().sqrt().float(),
    "max.f32 %r9, %r1, %r2;": lambda a, b, c: larger(a, b),
    "min.f32 %r9, %r1, %r2;": lambda a, b, c: -larger(-a, -b),
    "neg.f32 %r9, %r1;": lambda a, b, c: -a,
    "cvt.rmi.f32.f32 %r9, %r1;": lambda a, b, c: a.floor(),
    "abs.f32 %r9, %r1;": lambda a, b, c: a.abs(),
    "setp.ne.f32 %p2, %r1, %r2; selp.f32 %r9, %r1, 0f00000000, %p2;": lambda a, b, c: torch.where(
        (a < b) | (a > b), a, 0
    ),
    "setp.gtu.f32 %p2, %r1, %r2; selp.f32 %r9, %r3, 0f00000000, %p2;": lambda a, b, c: torch.where(~(a <= b), c, 0),
    "setp.nan.f32 %p2, %r1, %r1; selp.f32 %r9, 0f3F800000, %r3, %p2;": lambda a, b, c: torch.where(a.isnan(), 1, c),
    "cvt.rn.bf16.f32 %rs4, %r1; cvt.f32.bf16 %r9, %rs4;": lambda a, b, c: a.bfloat16().float(),
    "cvt.rn.f16.f32 %rs4, %r1; cvt.f32.f16 %r9, %rs4;": lambda a, b, c: a.half().float(),
    "cvt.rn.bf16x2.f32 %r4, %r1, %r2; shl.b32 %r9, %r4, 16;": lambda a, b, c: b.bfloat16().float(),
    "cvt.rn.f16x2.f32 %r4, %r1, %r2; mov.b32 {_, %rs4}, %r4; cvt.f32.f16 %r9, %rs4;": lambda a, b, c: a.half().float(),
    "cvt.rn.f16.f32 %rs4, %r1; sub.rn.f32.f16 %r9, %rs4, %r2;": lambda a, b, c: a.half().float() - b,
    "mov.b64 %rd4, {%r1, %r2}; mov.b64 %rd5, {%r3, %r3}; add.f32x2 %rd6, %rd4, %rd5; mov.b64 {_, %r9}, %rd6;": (
        lambda a, b, c: b + c
    ),
    "cvt.f64.f32 %rd4, %r1; add.f64 %rd4, %rd4, 0d3FF0000000000000; cvt.rn.f32.f64 %r9, %rd4;": (
        lambda a, b, c: (a.double() + 1).float()
    ),
}
"""Instructions, and %r9 after them as a float32, by those whose bits are in %r1 to %r3."""


@pytest.mark.parametrize("instructions", FLOATS)
def test_floats(instructions):
    for seed in range(4):
        numbers = float_bits(seed)
        results = torch.from_numpy(floats(run(instructions, numbers)))
        a, b, c = torch.from_numpy(floats(numbers)).T
        right = FLOATS[instructions](a, b, c)
        torch.testing.assert_close(results, right, rtol=0, atol=0, equal_nan=True)
        assert (results.signbit() == right.signbit())[~right.isnan()].all()


WHOLE = {2.5: 2, -2.5: -2, 3e9: 2**31 - 1, 2.0**31: 2**31 - 1, -3e9: -(2**31), -inf: -(2**31), nan: 0}


def test_integers_from_floats():
    numbers = [(int(np.float32(x).view(np.uint32)), 0, 0) for x in WHOLE]
    results = run("cvt.rzi.s32.f32 %r9, %r1;", numbers)
    assert [s32(each) for each in results[: len(WHOLE)]] == list(WHOLE.values())


def test_powers_of_two():
    results = floats(
        run("ex2.approx.f32 %r9, %r1;", [(int(np.float32(x / 4).view(np.uint32)), 0, 0) for x in range(-16, 16)])
    )
    np.testing.assert_allclose(results, [2 ** (x / 4) for x in range(-16, 16)], rtol=2e-7)


SHUFFLES = {
    "bfly.b32 %r9, %r900, 5": lambda lane: lane ^ 5,
    "idx.b32 %r9, %r900, %r1": lambda lane: 31 - lane,
    "down.b32 %r9, %r900, 3": lambda lane: lane + 3 if lane + 3 < 32 else lane,
}


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_shuffles(shuffle):
    results = run(f"shfl.sync.{shuffle}, 31, -1;", [(31 - lane, 0, 0) for lane in range(LANES)])
    assert results == [SHUFFLES[shuffle](lane) for lane in range(LANES)]


def test_pragmas_change_no_value():
    assert run('\n\t.pragma "used_bytes_mask 0x3";\n\tmov.b32 %r9, 5;') == [5] * LANES


def test_sums_of_warps():
    assert run("redux.sync.add.s32 %r9, %r900, -1;", threads=64) == [sum(range(32))] * 32 + [sum(range(32, 64))] * 32


def test_lanes_that_part_wait_for_each_other_where_they_exchange_values():
    """Whatever the order in which the compiler has laid out what they do apart."""
    apart = "setp.lt.s32 %p2, %r900, 3; @%p2 bra $late;"
    joined = "$join: shfl.sync.bfly.b32 %r9, %r900, 1, 31, -1; bra $end;"
    late = "$late: add.s32 %r1, %r1, 1; bra $join; $end: mov.b32 %r8, 0;"
    assert run(apart + joined + late) == [lane ^ 1 for lane in range(LANES)]


def test_a_loop_whose_lanes_leave_it_one_by_one():
    loop = "$again: add.s32 %r9, %r9, 3; sub.s32 %r1, %r1, 1; setp.gt.s32 %p2, %r1, 0; @%p2 bra $again;"
    assert run(loop, [(lane % 7, 0, 0) for lane in range(LANES)]) == [3 * max(1, lane % 7) for lane in range(LANES)]


SHARED = "shl.b32 %r5, %r900, 2; st.shared.b32 [%r5], %r900; BARRIER xor.b32 %r6, %r5, 128; ld.shared.b32 %r9, [%r6];"
"""Each warp reads what another has written."""


def test_shared_memory():
    results = run(SHARED.replace("BARRIER", "bar.sync 0;"), threads=64)
    assert results == [lane ^ 32 for lane in range(64)]


FILL = """
    mul.lo.s32 %r10, %r900, 524296; add.s32 %r10, %r10, 65536; add.s32 %r11, %r10, 131074; add.s32 %r12, %r11, 131074;
    add.s32 %r13, %r12, 131074; shl.b32 %r14, %r900, 4;
    st.shared.v4.b32 [%r14], {%r10, %r11, %r12, %r13}; bar.sync 0;
"""
"""Shared memory is 0, 1, 2, ... of 16 bits; each lane has the address of eight of them."""

HOLDERS = [
    [0, 0, 1, 1, 2, 2, 3, 3],
    [4, 4, 5, 5, 6, 6, 7, 7],
    [8, 8, 9, 9, 10, 10, 11, 11],
    [12, 12, 13, 13, 14, 14, 15, 15],
    [16, 16, 17, 17, 18, 18, 19, 19],
    [20, 20, 21, 21, 22, 22, 23, 23],
    [24, 24, 25, 25, 26, 26, 27, 27],
    [28, 28, 29, 29, 30, 30, 31, 31],
]
"""Lanes that hold the elements of a matrix (PTX ISA, ldmatrix): those of even columns in the low bits."""


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrices(count, transposed):
    """Their rows lie elsewhere than in order: every fifth of memory, from the first on."""
    registers = ", ".join(f"%r{20 + number}" for number in range(count))
    name = f"ldmatrix.sync.aligned.m8n8.x{count}{'.trans' * transposed}.shared.b16"
    address = "mul.lo.s32 %r15, %r14, 5; and.b32 %r15, %r15, 511;"
    for number in range(count):
        result = run(f"{FILL} {address} {name} {{{registers}}}, [%r15]; mov.b32 %r9, %r{20 + number};")
        rows = [[5 * (8 * number + row) % 32 * 8 + column for column in range(8)] for row in range(8)]
        right = [0] * LANES
        for row, holders in enumerate(HOLDERS):
            for column, lane in enumerate(holders):
                element = rows[column][row] if transposed else rows[row][column]
                right[lane] |= element << 16 * (column % 2)
        assert result == right


@pytest.mark.parametrize(("loads", "stores"), [("", ""), (".trans", ""), ("", ".trans")])
def test_matrices_that_are_stored_again(loads, stores):
    """As they were, or transposed where one of both does that."""
    result = run(f"""
        {FILL} ldmatrix.sync.aligned.m8n8.x2{loads}.shared.b16 {{%r20, %r21}}, [%r14]; bar.sync 0;
        stmatrix.sync.aligned.m8n8.x2{stores}.shared.b16 [%r14], {{%r20, %r21}}; bar.sync 0;
        shl.b32 %r15, %r900, 3; ld.shared.b64 %rd9, [%r15];
    """)
    before = np.arange(128, dtype=np.uint16).reshape(2, 8, 8)
    after = before.transpose(0, 2, 1) if loads or stores else before
    assert result == after.copy().view(np.uint64).reshape(-1).tolist()


COPIES = """
    shl.b32 %r4, %r900, 4; cp.async.cg.shared.global [%r4], [%rd902], 0x10, %r2; cp.async.commit_group;
    WAIT
    ld.shared.b32 %r9, [%r4];
"""

WAIT = "cp.async.wait_group 0;"


def test_copies():
    """They are there when they have been waited for, zeros where a predicate says so, and not before."""
    numbers = [(lane + 1, 16 * (lane % 2), 0) for lane in range(LANES)]
    right = [lane + 1 if lane % 2 else 0 for lane in range(LANES)]
    assert run(COPIES.replace("WAIT", WAIT), numbers) == right
    assert run(COPIES.replace("WAIT", "cp.async.wait_group 1;"), numbers) == [2**32 - 1] * LANES
    early = [run(COPIES.replace("WAIT", ""), numbers, random=Random(seed)) for seed in range(8)]
    assert right in early
    assert [2**32 - 1] * LANES in early


PLACE = """
    mov.u32 %r910, %ctaid.x; mov.u32 %r911, %ctaid.y; mov.u32 %r912, %ctaid.z;
    mov.u32 %r913, %nctaid.x; mov.u32 %r914, %nctaid.y; mad.lo.s32 %r915, %r912, %r914, %r911;
    mad.lo.s32 %r915, %r915, %r913, %r910; mad.lo.s32 %r916, %r915, 32, %r900; mad.wide.u32 %rd903, %r916, 8, %rd901;
"""
"""Each program has a place for its results."""


def test_copies_of_another_program_that_ends():
    """Only those of a program that is at its end are forgotten."""
    ends = "setp.eq.s32 %p2, %r910, PROGRAM; @%p2 ret;"
    for program in range(2):
        copies = COPIES.replace("WAIT", ends.replace("PROGRAM", str(program)) + WAIT)
        results = run(PLACE + copies, [(7, 16, 0)] * LANES, grid=(2, 1, 1), slots=2)
        assert results == [2**64 - 1 if each == program else 7 for each in range(2) for _ in range(LANES)]


def test_copies_of_what_another_program_stores():
    copies = "add.s64 %rd4, %rd901, 256; cp.async.ca.shared.global [0], [%rd4], 4; mov.b32 %r9, 1;"
    with pytest.raises(DataRace, match="load by .* program 0 and store by .* program 1 in no order"):
        run(PLACE + copies, grid=(2, 1, 1), slots=2)


def test_programs_of_a_grid():
    """More of them than slots, by three numbers."""
    results = run(
        PLACE + "shl.b32 %r4, %r912, 8; shl.b32 %r5, %r911, 4; or.b32 %r6, %r4, %r5; or.b32 %r9, %r6, %r910;",
        grid=(3, 2, 4),
        slots=5,
    )
    assert results[::LANES] == [z << 8 | y << 4 | x for z in range(4) for y in range(2) for x in range(3)]


@pytest.mark.parametrize(
    ("instructions", "garbage"),
    [
        ("mov.b32 %r9, %r50; mov.b32 %r50, 42;", machine.GARBAGE % 2**32),
        ("shl.b32 %r4, %r900, 2; ld.shared.b32 %r9, [%r4]; st.shared.b32 [%r4], 42;", 2**32 - 1),
    ],
)
def test_slots_are_garbage_to_the_next_program(instructions, garbage):
    assert run(PLACE + instructions, grid=(4, 1, 1), slots=2) == [garbage] * 4 * LANES


def test_a_load_from_two_tensors():
    results = run(
        "and.b32 %r4, %r900, 1; setp.eq.s32 %p2, %r4, 0; selp.b64 %rd4, %rd902, %rd903, %p2;ld.global.b32 %r9, [%rd4];",
        [(5, 0, 0)] * LANES,
    )
    assert results == [5, 2**32 - 1] * (LANES // 2)


PATIENT = {
    "of a warp for another one": """
        and.b32 %r4, %r900, 31; setp.ne.s32 %p2, %r4, 0; @%p2 bra $end; setp.ge.s32 %p3, %r900, 32; @%p3 bra $other;
        $again: atom.global.acquire.gpu.cas.b32 %r5, [%rd900], 0, 0; setp.eq.s32 %p4, %r5, 0; @%p4 bra $again; bra $end;
        $other: red.global.gpu.release.add.u32 [%rd900], 1; $end: mov.b32 %r9, 3;
    """,
    "for a while": """
        mov.b32 %r4, 0; $again: atom.global.acquire.gpu.cas.b32 %r5, [%rd900], 0, 0;
        add.s32 %r4, %r4, 1; setp.lt.s32 %p2, %r4, 3; @%p2 bra $again; mov.b32 %r9, 3;
    """,
    "for nothing, by operations that change nothing": """
        mov.b32 %r4, 0; $again: red.global.gpu.relaxed.or.b32 [%rd900], 0;
        add.s32 %r4, %r4, 1; setp.lt.s32 %p2, %r4, 9; @%p2 bra $again; mov.b32 %r9, 3;
    """,
}
"""Who waits."""


@pytest.mark.parametrize("instructions", PATIENT.values(), ids=PATIENT)
def test_who_waits_without_deadlock(instructions):
    assert run(instructions, threads=64) == [3] * 64


def test_what_never_ends(monkeypatch):
    monkeypatch.setattr(machine, "STEPS", 100)
    with pytest.raises(Deadlock, match=r"programs \[0\] do not end"):
        run("$again: bra $again; mov.b32 %r9, 1;")


NEVER = "$again: atom.global.acquire.gpu.cas.b32 %r9, [%rd900], 0, 0; setp.eq.s32 %p2, %r9, 0; @%p2 bra $again;"

FAULTS = {
    "behind the end": ("ld.global.b32 %r9, [%rd902+1024];", Fault, "outside of every tensor"),
    "across the end": ("ld.global.b64 %rd9, [%rd900+1024];", Fault, "8 bytes at .* outside of every tensor"),
    "before the beginning": ("st.global.b32 [%rd900+-4], %r1;", Fault, "outside of every tensor"),
    "at no multiple of its width": ("ld.global.v2.b64 {%rd9, %rd4}, [%rd902+8];", Fault, "16 bytes at"),
    "behind the end of shared memory": ("st.shared.b32 [1000], %r1;", Fault, "shared bytes of 1000 at 1000"),
    "before shared memory": ("mov.b32 %r4, 0; st.shared.b32 [%r4+-16], %r1;", Fault, "shared bytes"),
    "of rows of no multiple of 16 bytes": (
        "shl.b32 %r4, %r900, 3; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r9}, [%r4];",
        Fault,
        "row of a matrix at 8",
    ),
    "of copies from nowhere": ("cp.async.cg.shared.global [0], [%rd902+1024], 16;", Fault, "outside of every tensor"),
    "of copies to nowhere": ("cp.async.cg.shared.global [%r900+1024], [%rd902], 16;", Fault, "shared bytes"),
    "of lanes that have parted": (
        "setp.lt.s32 %p2, %r900, 3; @%p2 bra $end; shfl.sync.bfly.b32 %r9, %r1, 1, 31, -1; $end: mov.b32 %r9, 1;",
        Fault,
        "parted",
    ),
    "of what comes never": (NEVER, Deadlock, r"programs \[0\] wait"),
}


@pytest.mark.parametrize(("instructions", "error", "message"), FAULTS.values(), ids=FAULTS)
def test_what_is_found(instructions, error, message):
    with pytest.raises(error, match=message):
        run(instructions)


UNKNOWN = [
    "mma.sync %r9, %r1, %r2;",
    "add.sat.s32 %r9, %r1, %r2;",
    "max.NaN.f32 %r9, %r1, %r2;",
    "mul.rz.f32 %r9, %r1, %r2;",
    "cvt.rz.f32.s32 %r9, %r1;",
    "cvt.s32.f32 %r9, %r1;",
    "setp.lt.and.s32 %p2, %r1, %r2, %p1;",
    "min.relu.s16x2 %r9, %r1, %r2;",
    "ld.acquire.gpu.global.b32 %r9, [%rd902];",
    "shfl.sync.up.b32 %r9, %r1, 1, 0, -1;",
    "cp.async.wait_all;",
    "bar.sync 1;",
    "@%p1 bar.sync 0;",
    "mov.u32 %r9, %laneid;",
    "mov.u32 %r9, %clock.x;",
    "add.s32 %r9, %r1;",
    "bra $nowhere;",
]
"""What the machine has not learned."""


@pytest.mark.parametrize("instruction", UNKNOWN)
def test_what_is_unknown(instruction):
    with pytest.raises(Unknown, match=instruction.removeprefix("@%p1 ").split()[0].strip(";")):
        run(instruction)


def test_a_kernel_that_cannot_be_read():
    with pytest.raises(Unknown, match="cannot be read"):
        Machine("", (1, 1, 1), LANES, 0, [], [], 1, None, False)


UNORDERED = {
    "read after write": SHARED,
    "write after write": SHARED.replace("ld.shared.b32 %r9, [%r6]", "st.shared.b32 [%r6], %r5; mov.b32 %r9, 1"),
    "write after read": (
        "st.shared.b32 [SHARED], 1; bar.sync 0; ld.shared.b32 %r9, [SHARED]; BARRIER st.shared.b32 [SHARED], 2;"
    ).replace("SHARED", "0"),
    "copy after write": SHARED.replace(
        "ld.shared.b32 %r9, [%r6]", "cp.async.ca.shared.global [%r6], [%rd902], 4; mov.b32 %r9, 1"
    ),
    "read after copy": SHARED.replace("st.shared.b32 [%r5], %r900", "cp.async.ca.shared.global [%r5], [%rd902], 4"),
}
"""Accesses of two warps to shared memory."""


@pytest.mark.parametrize("instructions", UNORDERED.values(), ids=UNORDERED)
def test_a_missing_barrier_is_found(instructions):
    with pytest.raises(DataRace, match="without a barrier"):
        run(instructions.replace("BARRIER", ""), threads=64)
