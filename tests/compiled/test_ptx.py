"""The machine that runs compiled kernels: instructions against Python's own numbers, and what it has to find."""

from random import Random

import numpy as np
import pytest
import torch
from interleaving import Deadlock
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


def run(instructions, numbers=NOTHING, threads=LANES):
    """%rd9 of every lane, or, if not that, %r9 or %rs9, after some instructions."""
    widened = "".join(
        f"cvt.u64.u{bits} %rd9, {register}9;"
        for register, bits in (("%r", 32), ("%rs", 16))
        if f"{register}9" in instructions
    )
    given, result = torch.zeros(threads, 4, dtype=torch.int64), torch.full((threads,), -1)
    for lane, values in enumerate(numbers):
        for place, value in enumerate(values):
            given[lane, place] = value - 2**64 if value >= 2**63 else value
    ptx = KERNEL.replace("INSTRUCTIONS", instructions + widened)
    tensors = {"given": given, "result": result}
    arguments = [tensor.data_ptr() for tensor in tensors.values()]
    Machine(ptx, (1, 1, 1), threads, 1024, arguments, list(tensors.items()), 1, None, True).run()
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
    "prmt.b32 %r9, %r1, %r2, 0x3340U;": lambda a, b, c: bytes_of(a, b, 0x3340),
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


FLOATS = {
    "add.f32 %r9, %r1, %r2;": lambda a, b, c: a + b,
    "fma.rn.f32 %r9, %r1, %r2, %r3;": lambda a, b, c: (a.double() * b.double() + c.double()).float(),
    "mul.f32 %r9, %r1, 0f40400000;": lambda a, b, c: a * 3,
    "div.rn.f32 %r9, %r1, %r2;": lambda a, b, c: a / b,
    "sqrt.rn.f32 %r9, %r1;": lambda a, b, c: a.double().sqrt().float(),
    "max.f32 %r9, %r1, %r2;": lambda a, b, c: torch.fmax(a, b),
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
        torch.testing.assert_close(results, FLOATS[instructions](a, b, c), rtol=0, atol=0, equal_nan=True)


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


def test_sums_of_warps():
    assert run("redux.sync.add.s32 %r9, %r900, -1;", threads=64) == [sum(range(32))] * 32 + [sum(range(32, 64))] * 32


def test_a_loop_whose_lanes_leave_it_one_by_one():
    loop = "$again: add.s32 %r9, %r9, 3; sub.s32 %r1, %r1, 1; setp.gt.s32 %p2, %r1, 0; @%p2 bra $again;"
    assert run(loop, [(lane % 7, 0, 0) for lane in range(LANES)]) == [3 * max(1, lane % 7) for lane in range(LANES)]


SHARED = "shl.b32 %r5, %r900, 2; st.shared.b32 [%r5], %r900; BARRIER xor.b32 %r6, %r5, 128; ld.shared.b32 %r9, [%r6];"
"""Each warp reads what another has written."""


def test_shared_memory():
    results = run(SHARED.replace("BARRIER", "bar.sync 0;"), threads=64)
    assert results == [lane ^ 32 for lane in range(64)]


MATRICES = """
    shl.b32 %r4, %r900, 4; add.s32 %r5, %r900, 1000; mov.b32 %r6, {%rs900, %rs900};
    shl.b32 %r7, %r900, 2; st.shared.b32 [%r7], %r5; bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r8}, [%r4]; bar.sync 0;
    stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r4], {%r8}; bar.sync 0;
    ld.shared.b32 %r9, [%r7];
"""


def test_matrices():
    """Rows of 16 bytes, one after the other: lane for lane what was stored; transposed, columns of 16 bits."""
    assert run(MATRICES.replace("mov.b32 %r6, {%rs900, %rs900};", "")) == [1000 + lane for lane in range(LANES)]
    transposed = MATRICES.replace("mov.b32 %r6, {%rs900, %rs900};", "").replace(
        "x1.shared.b16 {", "x1.trans.shared.b16 {"
    )
    before = np.arange(1000, 1032, dtype=np.uint32).view(np.uint16).reshape(8, 8)
    assert run(transposed) == before.T.copy().view(np.uint32).reshape(-1).tolist()


COPIES = """
    shl.b32 %r4, %r900, 4; cp.async.cg.shared.global [%r4], [%rd902], 0x10, %r1; cp.async.commit_group;
    WAIT
    ld.shared.b32 %r9, [%r4];
"""


def test_copies():
    """They are there when they have been waited for, zeros where a predicate says so, and not before."""
    numbers = [(16 * (lane % 2), 0, 0) for lane in range(LANES)]
    assert run(COPIES.replace("WAIT", "cp.async.wait_group 0;"), numbers) == [16 * (lane % 2) for lane in range(LANES)]
    assert run(COPIES.replace("WAIT", "cp.async.wait_group 1;"), numbers) == [2**32 - 1] * LANES


FAULTS = {
    "behind the end": ("ld.global.b32 %r9, [%rd902+1024];", Fault, "outside of every tensor"),
    "across the end": ("add.s64 %rd4, %rd901, 252; ld.global.b64 %rd9, [%rd4+4];", Fault, "outside of every tensor"),
    "before the beginning": ("st.global.b32 [%rd900+-4], %r1;", Fault, "outside of every tensor"),
    "at no multiple of its width": ("ld.global.v2.b64 {%rd9, %rd4}, [%rd902+8];", Fault, "16 bytes at"),
    "of shared memory that is not there": ("st.shared.b32 [%r900+1024], %r1;", Fault, "shared bytes"),
    "of lanes that have parted": (
        "setp.lt.s32 %p2, %r900, 3; @%p2 bra $end; shfl.sync.bfly.b32 %r9, %r1, 1, 31, -1; $end: mov.b32 %r9, 1;",
        Fault,
        "parted",
    ),
    "of what comes never": (
        "$again: atom.global.acquire.gpu.cas.b32 %r9, [%rd900], 0, 0; setp.eq.s32 %p2, %r9, 0; @%p2 bra $again;",
        Deadlock,
        r"programs \[0\] wait",
    ),
    "unknown": ("mma.sync %r9, %r1, %r2;", Unknown, "mma"),
}


@pytest.mark.parametrize(("instructions", "error", "message"), FAULTS.values(), ids=FAULTS)
def test_what_is_found(instructions, error, message):
    with pytest.raises(error, match=message):
        run(instructions)


def test_a_missing_barrier_is_found():
    for loads in (
        SHARED,
        SHARED.replace("ld.shared.b32 %r9,", "st.shared.b32").replace("[%r6]", "[%r6], %r5; mov.b32 %r9, 1"),
    ):
        with pytest.raises(DataRace, match="without a barrier"):
            run(loads.replace("BARRIER", ""), threads=64)
