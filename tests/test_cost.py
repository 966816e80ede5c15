"""What every model of time has to say: bytes cost, spills cost, and nothing is faster than the memory."""

import math
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tritonbn import devices
from tritonbn.choice import space
from tritonbn.choice.cost import LAUNCH, floor, modelled_time, places
from tritonbn.choice.registers import registers_needed
from tritonbn.configs import Work
from tritonbn.geometry import describe
from tritonbn.launching import counters
from tritonbn.measured.timings import choice

GPUS = [device for device in devices.TABLE if device.name in ("H100", "A100", "T4", "V100", "MI300X", "RX 7900 XTX")]
MODES = ("forward", "inference", "backward", "sums")


def work_on(shape, mode="forward", dtype=torch.float16, memory_format=torch.contiguous_format, epilogue="none"):
    x = torch.empty(shape, device="meta").to(memory_format=memory_format)
    return Work(mode, describe(x.shape, 1, *[x.stride()] * 3), dtype, epilogue)


@st.composite
def works(draw):
    """Work of any mode, dtype, layout and epilogue, on sizes from one value to many."""
    shape = tuple(
        draw(st.sampled_from(sizes)) for sizes in ((1, 2, 7, 32), (1, 3, 16, 72, 96, 1000), (1, 7, 14, 56), (1, 7, 56))
    )
    return work_on(
        shape,
        draw(st.sampled_from(MODES)),
        draw(st.sampled_from([torch.bfloat16, torch.float32, torch.float64])),
        draw(st.sampled_from([torch.contiguous_format, torch.channels_last])),
        draw(st.sampled_from(["none", "sign", "value"])),
    )


def some(draw, work, device):
    """A config that is worth considering."""
    found = list(space.space(work, device, counters.SHARE)) or [space.conservative(work, device)]
    return found[draw(st.integers(0, len(found) - 1))]


@settings(max_examples=150, deadline=None)
@given(works(), st.sampled_from(GPUS), st.data())
def test_nothing_is_faster_than_the_memory(work, device, data):
    assert modelled_time(work, some(data.draw, work, device), device) >= floor(work, device)


@settings(max_examples=150, deadline=None)
@given(works(), st.sampled_from(GPUS), st.data())
def test_more_bytes_are_never_cheaper(work, device, data):
    """The same config on a larger batch, and, where as many programs find a place, on wider elements."""
    config = some(data.draw, work, device)
    geometry = work.geometry
    slow = geometry.outer if geometry.outer_size > 1 or not geometry.channels_last else None
    if slow is not None:
        larger = replace(work, geometry=replace(geometry, outer=(slow[0] * 2, *slow[1:])))
    else:
        larger = replace(work, geometry=replace(geometry, inner=geometry.inner * 2))
    if larger.readings == work.readings:
        assert modelled_time(larger, config, device) >= modelled_time(work, config, device)
    if work.dtype == torch.float32 and geometry.folds(8, False) == geometry.folds(4, False):
        wider = replace(work, dtype=torch.float64)
        fit = [places(each, config, registers_needed(each, config, device), device) for each in (work, wider)]
        assert fit[0] != fit[1] or modelled_time(wider, config, device) >= modelled_time(work, config, device)


STEP = 0.02
"""Of the least time, by which one more image may be cheaper: registers, and with them places, go by whole steps."""

NEIGHBOURS = [
    # Registers for one more chunk leave an SM fewer places, which happen to divide the programs better.
    ((96, 16, 16), 64, "forward", torch.float32, "rows", "V100"),
    ((8, 28, 28), 256, "forward", torch.float16, "planes", "T4"),
    ((256, 7, 7), 128, "forward", torch.float32, "planes", "H100"),
    ((64, 8, 8), 128, "backward", torch.float32, "rows", "L4"),
    ((512, 4, 4), 64, "backward", torch.float32, "planes", "L4"),
    # What one more image is given a tile for has one without it, too.
    ((16, 1, 1), 16, "forward", torch.float16, "rows", "T4"),
    ((96, 1, 1), 32, "backward", torch.float32, "planes", "L4"),
    ((512, 1, 1), 64, "backward", torch.float32, "rows", "MI300X"),
    ((2048, 1, 1), 8, "sums", torch.float32, "rows", "L4"),
]
"""A shape but for its images, of which there is one more next, on a GPU."""


def neighbours(shape, images, mode, dtype, layout):
    memory_format = torch.channels_last if layout == "rows" else torch.contiguous_format
    return [work_on((images + more, *shape), mode, dtype, memory_format) for more in (0, 1)]


def least_time(work, device):
    return modelled_time(work, space.choose(work, device, counters.SHARE), device)


@pytest.mark.parametrize(("shape", "images", "mode", "dtype", "layout", "gpu"), NEIGHBOURS, ids=str)
def test_one_more_image_is_never_cheaper(shape, images, mode, dtype, layout, gpu):
    """Whatever config is chosen for either."""
    fewer, more = (least_time(work, devices.named(gpu)) for work in neighbours(shape, images, mode, dtype, layout))
    assert more >= (1 - STEP) * fewer


def test_one_more_image_is_never_cheaper_anywhere():
    """Where both are read alike: a count that is a power of two has wider accesses than the next one."""
    draw, checked = random.Random(0), 0
    while checked < 80:
        channels, side = draw.choice((8, 48, 64, 96, 256, 1024)), draw.choice((1, 4, 7, 8, 14, 20, 28, 56))
        images, mode = draw.choice((8, 16, 32, 64, 128, 256, draw.randrange(2, 300))), draw.choice(MODES)
        dtype, layout = draw.choice((torch.bfloat16, torch.float32)), draw.choice(("planes", "rows"))
        device, pair = draw.choice(GPUS), neighbours((channels, side, side), images, mode, dtype, layout)
        if pair[0].readings == pair[1].readings:
            fewer, more = (least_time(work, device) for work in pair)
            assert more >= (1 - STEP) * fewer, (device.name, *pair)
            checked += 1


@settings(max_examples=100, deadline=None)
@given(works(), st.sampled_from(GPUS), st.data())
def test_what_lies_beside_costs(work, device, data):
    config = some(data.draw, work, device)
    beside = replace(work, read_beside=1.0, written_beside=1 / 16)
    if beside.read_by(config) != work.read_by(config):  # what is kept of signs lies as runs do
        beside = replace(work, read_beside=1.0)
    assert floor(beside, device) > floor(work, device)
    assert modelled_time(beside, config, device) > modelled_time(work, config, device)
    assert modelled_time(beside, config, device) >= floor(beside, device)


@settings(max_examples=100, deadline=None)
@given(works(), st.sampled_from(GPUS), st.data())
def test_slower_memory_is_never_faster(work, device, data):
    config = some(data.draw, work, device)
    slower = replace(device, bandwidth=device.bandwidth / 2)
    assert modelled_time(work, config, slower) > modelled_time(work, config, device)


@settings(max_examples=100, deadline=None)
@given(works(), st.sampled_from(GPUS), st.data())
def test_spills_and_registers_cost(work, device, data):
    config = some(data.draw, work, device)
    registers = registers_needed(work, config, device)
    clean = modelled_time(work, config, device, registers=registers)
    assert clean == modelled_time(work, config, device)
    assert modelled_time(work, config, device, registers=registers, spills=64) > clean
    assert modelled_time(work, config, device, registers=256) == math.inf


def test_a_second_launch_costs():
    """Two launches against one, where neither finds anything in the L2."""
    work, device = work_on((32, 64, 512, 512)), devices.named("H100")
    config = next(c for c in space.space(work, device, counters.SHARE) if c.strategy == "split" and c.stages == 1)
    single = replace(config, strategy="dataflow", window=10**6)
    assert modelled_time(work, config, device) - modelled_time(work, single, device) > LAUNCH / 2


@settings(max_examples=60, deadline=None)
@given(works(), st.sampled_from(GPUS))
def test_a_space(work, device):
    """All configs differ in their choices, fit, and are few enough to be ranked at a first call."""
    found = list(space.space(work, device, counters.SHARE))
    assert len({choice(config) for config in found}) == len(found)
    assert len(found) < 2000
    for config in found:
        registers = registers_needed(work, config, device)
        assert registers <= 255
        assert places(work, config, registers, device) >= 1
        assert config.num_warps * device.warp_size <= space.MOST_THREADS
        if config.stages > 1:
            assert device.arch not in ("sm_70", "sm_75")
            assert device.backend == "cuda"
    best = space.choose(work, device, counters.SHARE)
    if found:
        assert modelled_time(work, best, device) == min(modelled_time(work, config, device) for config in found)


@pytest.mark.parametrize("mode", ["forward", "backward"])
def test_every_strategy_is_worth_considering_somewhere(mode):
    work, device = work_on((32, 64, 56, 56), mode), devices.named("H100")
    assert {config.strategy for config in space.space(work, device, counters.SHARE)} == {
        "resident",
        "dataflow",
        "split",
    }


def test_what_runs_anywhere():
    for mode in MODES:
        for shape in ((2, 3, 5, 7), (1, 1, 2**28), (2**20, 3), (2, 10**6), (4, 100003, 3), (1, 1)):
            for device in GPUS:
                strides = torch.empty(shape, device="meta").stride()
                work = Work(mode, describe(shape, 1, *[strides] * 3), torch.float64)
                config = space.conservative(work, device)
                assert config.strategy == "split"
                assert math.isfinite(modelled_time(work, config, device))
