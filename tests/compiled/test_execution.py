"""Compiled kernels run, in the machine of ptx/: right values, in any order of programs, without races.

`make thorough` runs the other tests of values like this, too (conftest.py, TRITONBN_TEST_MACHINE).
"""

import re
from itertools import product

import pytest
import test_interleavings as orders
import torch
from interleaving import Deadlock
from ptx.driver import executing
from races import DataRace
from support import DEVICE, DTYPES, compare, compare_samples, random, thorough, vector
from test_epilogue import check
from test_interleavings import ALL, Step
from test_strategies import WAYS, vectors

import tritonbn
from tritonbn import configs
from tritonbn.launching import counters

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="tensors are a GPU's here, which runs the kernels itself")

FIRST, LAST = torch.contiguous_format, torch.channels_last

SHAPES = {
    "planes": ((8, 16, 28, 28), FIRST, torch.bfloat16),
    "planes of 7 x 7": ((32, 24, 7, 7), FIRST, torch.float16),
    "planes of odd sizes": ((3, 5, 9, 15), FIRST, torch.float32),
    "rows": ((300, 96, 1, 1), LAST, torch.float64),
    "few channels": ((5, 3, 20, 21), LAST, torch.bfloat16),
    "pixels that end within an access": ((7, 3, 21, 21), LAST, torch.float16),
    "large rows": ((2, 64, 31, 31), LAST, torch.float16),
}
"""Shape and memory format of x, and its dtype where time is short."""

TARGETS = ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"]


CASES = thorough(
    list(product(SHAPES, DTYPES, TARGETS)),
    *((name, dtype, target) for name, (_, _, dtype) in SHAPES.items() for target in ("sm_80", "sm_90")),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_the_model_chooses(case):
    name, dtype, target = case
    shape, memory_format, _ = SHAPES[name]
    x, dy = (random(shape, dtype, seed).contiguous(memory_format=memory_format) for seed in (0, 1))
    with executing(target) as launches:
        compare(x, dy=dy, **vectors(shape[1]))
    assert len(launches) == 2
    assert all(launch.target.arch == int(target[3:]) for launch in launches)


@pytest.mark.parametrize("target", thorough(TARGETS, "sm_80"))
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "silu"])
@pytest.mark.parametrize("dtype", thorough(DTYPES, torch.bfloat16))
@pytest.mark.parametrize("memory_format", [FIRST, LAST], ids=["first", "last"])
def test_epilogues(memory_format, dtype, activation, target):
    x, residual, dy = (random((4, 16, 9, 12), dtype, s).contiguous(memory_format=memory_format) for s in range(3))
    with executing(target):
        check(x, residual, activation, True, dy)


@pytest.mark.parametrize("target", thorough(TARGETS, "sm_80"))
@pytest.mark.parametrize("dtype", thorough(DTYPES, torch.bfloat16))
@pytest.mark.parametrize("shape", [(7, 16, 11, 13), (5, 3, 300)], ids=str)
def test_evaluation_and_samples(shape, dtype, target):
    with executing(target):
        compare(random(shape, dtype), training=False, **vectors(shape[1]))
        compare_samples(random((24, shape[-1]), dtype), weight=vector(shape[-1], torch.float32, 2))


WAITING = [
    *product(orders.CASES, ("resident", "at once", "dataflow")),
    *product(orders.REREAD, ("rereads",)),
]
"""Cases of test_interleavings.py, and strategies."""

ORDERED = thorough(
    [
        (case, way, merged, target)
        for merged, target in product((configs.MERGED_A_THREAD, 0), TARGETS)
        for case, way in WAITING
    ],
    *(
        (case, way, configs.MERGED_A_THREAD, ("sm_80", "sm_90")[number % 2])
        for number, (case, way) in enumerate(WAITING)
    ),
)


@pytest.mark.parametrize("case", ORDERED, ids=str)
def test_orders(cut, monkeypatch, case):
    """Of programs on the fewest slots, on one more, and on as many as there are: the same bits."""
    counters.forget()  # other tests' own, which may have no memory
    name, way, merged, target = case
    monkeypatch.setattr(configs, "MERGED_A_THREAD", merged)
    shape, memory_format, sizes, chunks = (orders.CASES | orders.REREAD)[name]
    at_once = {"strategy": "resident", "at_once": chunks}
    tiles = 3 if way == "rereads" else 1
    cut(*sizes, tiles, **{**WAYS, "at once": at_once, "rereads": {"strategy": "resident", "rereads": 2}}[way])
    least = 1 if way == "dataflow" else chunks
    step, first = Step(shape, memory_format), None
    for seed, slots in enumerate((least, least + 1, ALL, ALL)):
        with executing(target, slots, seed, watched=True):
            results = step.run()
        first = first or results
        assert all(map(torch.equal, results, first))
    for result, true in zip(first, step.truth(), strict=True):
        torch.testing.assert_close(result.double(), true.double(), rtol=1e-4, atol=1e-4)
    assert not any(kept.any() for kept in counters._kept.values())


@pytest.mark.parametrize("target", thorough(TARGETS, "sm_80"))
def test_tiles_of_fewer_elements_than_threads(cut, target):
    """No pairs to widen at once, where 16 bits are read one by one."""
    cut(1, 1, 8, 1, strategy="resident", edges=1)
    with executing(target):
        compare(random((1, 2, 1, 71), torch.bfloat16), **vectors(2))


@pytest.mark.parametrize("target", thorough(TARGETS, "sm_80"))
@pytest.mark.parametrize(
    "way", [{"rereads": 4}, {"rereads": 4, "stages": 2}, {"strategy": "dataflow"}, {"strategy": "split", "stages": 2}]
)
def test_pixels_that_end_within_an_access(cut, way, target):
    """Only the tensor's last tile is read by narrow accesses, in whatever loop it comes."""
    cut(4, 2, 256, 6, **{"strategy": "resident", "num_warps": 2, "lanes": True} | way)
    x, dy = (random((7, 3, 37, 37), torch.float16, seed).contiguous(memory_format=LAST) for seed in (0, 1))
    with executing(target) as launches:
        compare(x, dy=dy, **vectors(3))
    assert all(launch.arguments["ALIGN"] == 1 for launch in launches)


@pytest.mark.parametrize("seed", [10, 34, 44])  # of 0 to 59 those that came out wrong where a product was fused
def test_what_is_equal_stays_equal(cut, seed):
    """Every lane has the same statistics, whichever of the partials that it adds up is its own."""
    cut(1, 1, 32, 1, strategy="resident", num_warps=1)
    generator = torch.Generator().manual_seed(seed)
    first, further = torch.randn((), generator=generator), 1 + torch.rand((), generator=generator)
    part = torch.rand(13, 1, 32, generator=generator) < torch.rand(13, 1, 1, generator=generator)
    with executing("sm_90"):
        y = tritonbn.batch_norm(torch.where(part, first, -first * further), None, None, training=True)
    assert y[part].unique().numel() == y[~part].unique().numel() == 1


RELEASE = re.compile(r"(\bred\.\S*\.release\.)")

BARRIER = re.compile(r"bar\.sync\s+0;")


def without_barriers_before_a_release(ptx):
    """The two before the first one are gone whose old value no lane shares with others, which needs a barrier, too."""
    if not RELEASE.search(ptx):
        pytest.skip("before Triton 3.9 every old value is shared")
    before, release, after = RELEASE.split(ptx, maxsplit=1)
    *others, between, last = BARRIER.split(before)
    return "bar.sync 0;".join(others) + between + last + release + after


BROKEN = {
    "releases": lambda ptx: ptx.replace(".release.", ".relaxed."),
    "acquires": lambda ptx: ptx.replace(".acquire.", ".relaxed."),
    "both": lambda ptx: ptx.replace(".acq_rel.", ".relaxed."),
    "barriers before a release": without_barriers_before_a_release,
}
"""What a change in the compiled text leaves out."""


@pytest.fixture
def two_blocks(cut):
    """A step of two blocks of three chunks, by a strategy."""

    def make(strategy, channels=8):
        cut(channels, 1, 4, 1, strategy=strategy)
        return Step((2, 2 * channels, 1, 5), LAST)

    yield make
    counters.forget()


def in_orders(step, slots=ALL, **options):
    """The step in several orders."""
    for seed in range(5):
        with executing("sm_80", slots, seed, **options):
            step.run()


@pytest.mark.parametrize("strategy", ["resident", "dataflow"])
@pytest.mark.parametrize("left_out", BROKEN)
def test_what_is_left_out_is_caught(two_blocks, left_out, strategy):
    step = two_blocks(strategy, channels=64)  # so many that several warps store what is released
    changed = []

    def edit(ptx):
        text = re.sub(r"//.*", "", ptx)
        edited = BROKEN[left_out](text)
        changed.append(edited != text)
        return edited

    with pytest.raises(DataRace, match=r"(load|store|atomic) by .* in no order"):
        in_orders(step, watched=True, edit=edit)
    assert any(changed)


def test_fewer_slots_than_chunks_are_caught(two_blocks):
    with pytest.raises(Deadlock, match="have no slot"):
        in_orders(two_blocks("resident"), 2)


def test_what_is_not_written_is_seen():
    """Nothing is stored: y is as torch.empty leaves it."""
    x = random((4, 8, 6))
    with torch.no_grad(), executing("sm_80", edit=lambda ptx: re.sub(r"(@%p\d+ )?st\.global[^;]*;", "", ptx)):
        assert tritonbn.batch_norm(x, None, None, training=True).isnan().all()
