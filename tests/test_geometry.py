"""Every element is visited exactly once, at the address where torch has it."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import LAYOUTS, fitted, thorough

from tritonbn import configs, devices
from tritonbn.choice import cost, registers, space
from tritonbn.geometry import describe
from tritonbn.launching import counters
from tritonbn.planning import cutting


def addresses(geometry, tensor):
    """Offsets of all elements of one tensor, a set for each channel."""
    *outer_steps, channel_step, inner_step = geometry.strides[tensor]
    channels = []
    for c in range(geometry.channels):
        offsets = []
        for index in itertools.product(*map(range, geometry.outer), range(geometry.inner)):
            steps = (*outer_steps, inner_step)
            offsets.append(c * channel_step + sum(i * step for i, step in zip(index, steps, strict=True)))
        channels.append(offsets)
    return channels


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_addresses(layout, axis):
    x = LAYOUTS[layout]((2, 3, 4, 5), torch.float32)
    y = torch.empty_like(x)
    geometry = describe(x.shape, axis, x.stride(), y.stride())
    assert geometry.values * geometry.channels == x.numel()
    pairs = [set(), set()]
    for index in itertools.product(*map(range, x.shape)):
        offset = [sum(i * s for i, s in zip(index, t.stride(), strict=True)) for t in (x, y)]
        pairs[0].add((index[axis], *offset))
    for c, (of_x, of_y) in enumerate(zip(addresses(geometry, 0), addresses(geometry, 1), strict=True)):
        pairs[1] |= {(c, *both) for both in zip(of_x, of_y, strict=True)}
    assert pairs[0] == pairs[1]


@pytest.mark.parametrize(
    ("shape", "strides", "outer", "inner", "channels_last", "alignment"),
    [
        ((32, 64, 56, 56), (200704, 3136, 56, 1), (32, 1, 1), 3136, False, 16),
        ((32, 64, 56, 56), (200704, 1, 3584, 64), (1, 1, 1), 100352, True, 16),
        ((32, 80, 14, 14), (15680, 196, 14, 1), (32, 1, 1), 196, False, 4),
        ((32, 320, 7, 7), (15680, 49, 7, 1), (32, 1, 1), 49, False, 1),
        ((32, 33, 8, 8), (2112, 1, 264, 33), (1, 1, 1), 2048, True, 1),
        ((4096, 512), (512, 1), (1, 1, 1), 4096, True, 16),
        ((1, 8, 100, 100), (80000, 10000, 100, 1), (1, 1, 1), 10000, False, 16),
        ((2, 8, 6, 7), (999, 100, 16, 1), (2, 6, 1), 7, False, 1),
        ((5, 1, 4), (4, 4, 1), (1, 1, 1), 20, False, 4),
    ],
)
def test_merging(shape, strides, outer, inner, channels_last, alignment):
    geometry = describe(shape, 1, strides, strides)
    assert geometry.outer == outer
    assert geometry.inner == inner
    assert geometry.channels_last == channels_last
    assert geometry.alignment == alignment
    assert geometry.index_bits == 32


@pytest.mark.parametrize(
    ("shape", "strides", "bits"),
    [
        ((2, 4, 2**28), (2**30, 2**28, 1), 64),
        ((2, 4, 2**28 - 1), (2**30, 2**28, 1), 64),  # what the last tile lacks
        ((2, 4, 2**28 - 2**17), (2**30, 2**28, 1), 32),
        ((3, 1, 2), (2**30, 1, 1), 64),
        ((2**31, 1), (0, 0), 64),
    ],
)
def test_index_width(shape, strides, bits):
    assert describe(shape, 1, strides, strides).index_bits == bits


def test_too_many_axes():
    strides = (1000000, 1, 100000, 10000, 1000, 100)
    with pytest.raises(ValueError, match="at most 4 axes that cannot be merged, got 5"):
        describe((2, 3, 4, 5, 6, 7), 1, strides, strides)


@pytest.mark.parametrize("mode", ["forward", "inference", "backward", "sums"])
@pytest.mark.parametrize(
    "shape",
    [(2, 10**6), (1, 10**6, 1), (2, 2**31), (2**31 - 1, 1), (1, 1, 10**9), (2, 1), (128, 256, 56, 56), (2, 10**5, 3)],
)
def test_the_choice_of_a_config_is_sane(shape, mode):
    strides = torch.empty(shape, device="meta").stride()
    geometry = describe(shape, 1, strides, strides)
    for dtype in (torch.float16, torch.float32, torch.float64):
        work = configs.Work(mode, geometry, dtype)
        for device in (devices.named("H100"), devices.named("T4"), devices.named("MI300X"), devices.INTERPRETER):
            config = space.choose(work, device, counters.SHARE)
            chunks = config.chunks(geometry)
            assert math.isfinite(cost.modelled_time(work, config, device))
            if config.lanes or not geometry.fold(dtype.itemsize):
                assert config == fitted(config, geometry, dtype.itemsize)
            assert config.elements <= space.LARGEST_TILE
            assert config.block_c * configs.power_of_two(chunks) <= space.MOST_MERGED or mode == "inference"
            programs = chunks * config.channel_blocks(geometry)
            most = 4 * max(math.prod(shape), 1024 * config.elements)
            assert programs * config.elements * config.tiles_per_chunk <= most, "mostly masked"
            assert programs <= max(1024, 2 * math.prod(shape) // 256), "programs of next to no elements"


FIRST, LAST = torch.contiguous_format, torch.channels_last

NEIGHBOURS = {
    "7 x 7": ((32, 512, 7, 7), (32, 512, 8, 8), FIRST, 1.3),
    "14 x 14": ((32, 1024, 14, 14), (32, 1024, 16, 16), FIRST, 1.3),
    "7 x 7, channels last": ((32, 512, 7, 7), (32, 512, 8, 8), LAST, 1.3),
    "14 x 14, channels last": ((32, 1024, 14, 14), (32, 1024, 16, 16), LAST, 1.3),
    "3 channels": ((32, 3, 224, 224), (32, 4, 224, 224), FIRST, 1.3),
    "3 channels, channels last": ((32, 3, 224, 224), (32, 4, 224, 224), LAST, 1.3),
    "4 channels, channels last": ((64, 4, 112, 112), (64, 8, 112, 112), LAST, 1.3),
    "8 channels, channels last": ((64, 8, 112, 112), (64, 16, 112, 112), LAST, 1.3),
    "33 channels": ((32, 33, 56, 56), (32, 32, 56, 56), FIRST, 1.3),
    "33 channels, channels last": ((32, 33, 56, 56), (32, 32, 56, 56), LAST, 1.3),
    "33 channels of 17 x 17, channels last": ((256, 33, 17, 17), (256, 32, 16, 16), LAST, 1.3),
    "33 channels of 35 x 35, channels last": ((32, 33, 35, 35), (32, 32, 36, 36), LAST, 1.3),
    "33 channels of 75 x 75, channels last": ((8, 33, 75, 75), (8, 32, 76, 76), LAST, 1.3),
    "96 channels, channels last": ((32, 96, 56, 56), (32, 128, 56, 56), LAST, 1.3),
    "1000 channels": ((32, 1000, 16, 16), (32, 1024, 16, 16), FIRST, 1.3),
    "1000 channels, channels last": ((32, 1000, 16, 16), (32, 1024, 16, 16), LAST, 1.3),
    "rows of 1000": ((4096, 1000), (4096, 1024), FIRST, 1.3),
    "rows of 33": ((4096, 33), (4096, 32), FIRST, 1.3),
    "rows of 3": ((65536, 3), (65536, 4), FIRST, 1.3),
    "one huge channel": ((1, 1, 2**24 + 1), (1, 1, 2**24), FIRST, 1.3),
    "many tiny channels": ((4, 100003, 3), (4, 100000, 4), FIRST, 1.3),
    "9 x 9": ((32, 1024, 9, 9), (32, 1024, 10, 8), FIRST, 1.3),
    "13 x 13": ((32, 256, 13, 13), (32, 256, 14, 12), FIRST, 1.3),
    "17 x 17": ((32, 768, 17, 17), (32, 768, 18, 16), FIRST, 1.3),
    "35 x 35": ((32, 192, 35, 35), (32, 192, 34, 36), FIRST, 1.3),
    "2 channels of 17 x 17": ((643, 2, 17, 17), (643, 2, 18, 16), FIRST, 1.3),
    "3 channels of 299 x 299": ((32, 3, 299, 299), (32, 4, 300, 298), FIRST, 1.3),
    "33 channels of 35 x 35": ((32, 33, 35, 35), (32, 32, 36, 34), FIRST, 1.3),
    "33 channels of 7 x 7": ((256, 33, 7, 7), (256, 32, 8, 8), FIRST, 1.3),
    "a few of 7 x 7": ((32, 96, 7, 7), (32, 96, 8, 8), FIRST, 1.3),
    "149 x 149": ((32, 32, 149, 149), (32, 32, 150, 148), FIRST, 1.3),
    "a batch of 1": ((1, 64, 111, 111), (1, 64, 112, 112), FIRST, 1.3),
    "a batch of 1, channels last": ((1, 64, 111, 111), (1, 64, 112, 112), LAST, 1.3),
}
"""An odd shape, a round one, how both lie, and how many times its neighbour's modelled time the odd one may take."""


@pytest.mark.parametrize("mode", ["forward", "backward", "inference"])
@pytest.mark.parametrize("device", thorough(["H100", "A100", "MI300X"], "H100", "MI300X"))
@pytest.mark.parametrize(("odd", "rounded", "memory_format", "most"), NEIGHBOURS.values(), ids=NEIGHBOURS)
def test_odd_shapes_are_not_much_slower(odd, rounded, memory_format, most, device, mode):
    """An element of the odd one takes no longer than so many times one of its neighbour, or the whole no longer."""
    gpu, times = devices.named(device), []
    for shape in (odd, rounded):
        strides = torch.empty(shape, device="meta", dtype=torch.bfloat16)
        strides = (strides.to(memory_format=memory_format) if len(shape) == 4 else strides).stride()
        work = configs.Work(mode, describe(shape, 1, strides, strides, strides), torch.bfloat16)
        config = space.choose(work, gpu, counters.SHARE)
        times.append(cost.LAUNCH + cost.modelled_time(work, config, gpu))
    elements = math.prod(odd) / math.prod(rounded)
    assert times[0] <= most * times[1] * max(1.0, elements)


SHAPES = [(32, 64, 56, 56), (6272, 96), (4096, 512), (50176, 8), (1, 1, 2**20), (32, 320, 7, 7), (2, 2, 544, 544)]


@pytest.mark.parametrize(
    ("shape", "itemsize", "expected"),
    [
        ((32, 512, 7, 7), 2, [8, 4, 2]),
        ((32, 96, 7, 7), 2, [0, 8, 4, 2]),
        ((32, 512, 7, 7), 4, [8, 4, 2]),
        ((32, 512, 7, 7), 8, [0]),
        ((32, 512, 3, 3), 2, [0, 16, 8, 4, 2]),
        ((32, 100, 7, 7), 2, [0, 8, 4, 2]),
        ((32, 1024, 9, 10), 2, [8, 4, 2]),
        ((32, 33, 7, 7), 2, [0]),
        ((32, 1024, 14, 14), 2, [0]),
    ],
)
def test_planes_are_read_as_runs_of_fewer_channels_too(shape, itemsize, expected):
    """Channels of a run, 0 for plain tiles; where there are signs, they lie as in the first of these runs."""
    strides = torch.empty(shape, device="meta").stride()
    geometry = describe(shape, 1, strides, strides)
    assert [fold.channels if fold else 0 for fold in geometry.folds(itemsize, signs=False)] == expected
    assert geometry.folds(itemsize, signs=True) == (geometry.fold(itemsize),)


@pytest.mark.parametrize(
    ("channels", "itemsize", "with_signs", "without"),
    [
        (3, 2, [80], [0, 80]),
        (12, 2, [20], [0, 20]),
        (16, 2, [0], [0]),
        (24, 2, [0, 10], [0, 10]),
        (33, 2, [56], [0, 56, 24]),
        (64, 2, [0], [0]),
        (72, 2, [0, 7, 3], [0, 7, 3]),
        (72, 4, [0], [0]),
        (100, 2, [0], [0, 10, 4]),
        (200, 2, [0, 5, 2], [0, 5, 2]),
        (264, 2, [0], [0]),
    ],
)
def test_pixels_are_read_as_runs_where_they_must_or_may(channels, itemsize, with_signs, without):
    """Pixels of a run, 0 for plain tiles: a choice where there are no signs, or rows of them begin alike."""
    strides = (channels, 1)
    geometry = describe((6000, channels), 1, strides, strides, strides)
    for signs, expected in ((True, with_signs), (False, without)):
        assert [fold.lanes if fold else 0 for fold in geometry.folds(itemsize, signs)] == expected


def every_config(shape, mode, device, share):
    """The space of configs for contiguous float16 tensors, with the places that the GPU has for programs of each."""
    geometry = describe(shape, 1, *[torch.empty(shape, device="meta").stride()] * 3)
    work = configs.Work(mode, geometry, torch.float16)
    for config in space.space(work, device, share):
        needed = config.registers or registers.registers_needed(work, config, device)
        yield config, config.chunks(geometry), cost.places(work, config, needed, device)


SHARES = {counters.SHARE: counters.SEATS, counters.CAPTURED_SHARE: counters.REPLAYS}
"""Of each share, how many launches can be under way at once."""


@pytest.mark.parametrize("mode", ["forward", "backward"])
@pytest.mark.parametrize("device", [*devices.TABLE, replace(devices.TABLE[0], sm_count=10)], ids=lambda d: d.name)
def test_programs_that_wait_leave_a_place_free(device, mode):
    """As many launches as can be under way, each short of its last chunk, leave room for a program of any of them."""
    held, waiting = 0.0, 0
    for share, launches in SHARES.items():
        largest = 0.0
        for shape in SHAPES:
            for config, chunks, per_sm in every_config(shape, mode, device, share):
                if config.at_once:
                    check_that_all_fit(config, chunks, per_sm, device)
                elif config.strategy == "resident" and chunks > 1:
                    waiting += 1
                    assert per_sm >= counters.FRACTION
                    assert config.tiles_per_chunk - config.rereads <= 48, "more than a compiler should unroll"
                    programs = chunks * -(-shape[1] // config.block_c)
                    on_a_die = min(chunks - 1, -(-programs // device.dies))
                    largest = max(largest, on_a_die / (per_sm * device.sm_count // device.dies))
        held += launches * largest
    assert waiting
    assert held <= 1 - 1 / counters.FRACTION


def check_that_all_fit(config, chunks, per_sm, device):
    """A cooperative launch is no larger than the GPU, and a block's chunks are not more than its programs."""
    assert config.strategy == "resident"
    assert 1 < chunks <= config.at_once <= per_sm * device.sm_count


def test_where_nobody_may_wait_all_run_at_once():
    for device in (*filter(lambda each: each.cooperative, devices.TABLE[::5]), replace(devices.TABLE[0], sm_count=10)):
        found = [each for shape in SHAPES for each in every_config(shape, "forward", device, share=0)]
        together = [each for each in found if each[0].strategy == "resident" and each[1] > 1]
        assert together
        for config, chunks, per_sm in together:
            check_that_all_fit(config, chunks, per_sm, device)


@pytest.mark.parametrize("share", [0, counters.SHARE, counters.CAPTURED_SHARE])
def test_amd_starts_no_launch_as_a_whole(share):
    """Nobody waits but in the places that no other launch needs."""
    for device in (each for each in devices.TABLE if each.backend == "hip"):
        found = [each for shape in SHAPES for each in every_config(shape, "backward", device, share=share)]
        assert {config.strategy for config, _, _ in found} == {"resident", "dataflow", "split"}
        assert not any(config.at_once for config, _, _ in found)


@pytest.mark.parametrize("mode", ["forward", "backward"])
@pytest.mark.parametrize("gpu", ["V100", "A100", "H100", "MI300X"])
@pytest.mark.parametrize("channels", [8, 12, 40, 96, 150])
def test_no_more_is_read_again_than_registers_demand(gpu, channels, mode):
    """Of a tensor that takes more registers than there are."""
    device = devices.named(gpu)
    shape = device.sm_count * 150000 // channels, channels
    strides = torch.empty(shape, device="meta").stride()
    work = configs.Work(mode, describe(shape, 1, *[strides] * (1 + configs.READ[mode])), torch.float16)
    again = [config for config in space.space(work, device, counters.SHARE) if config.rereads]
    assert again or not device.cooperative
    for config in again:
        at_a_time = configs.together(config.rereads, mode)
        fewer = config.but(rereads=config.rereads - at_a_time)
        assert 1 <= config.rereads < config.tiles_per_chunk
        assert registers.registers_needed(work, config, device) <= config.registers
        if config.at_once and configs.together(fewer.rereads, mode) == at_a_time:
            assert registers.registers_needed(work, fewer, device) > config.registers


@pytest.mark.parametrize("mode", ["forward", "backward"])
@pytest.mark.parametrize("gpu", ["V100", "A100", "H100", "MI300X"])
@pytest.mark.parametrize("tile", [(8, 1, 256), (1, 1, 2048)], ids=["rows", "planes"])
def test_the_fewest_tiles_to_be_read_again_are_found_at_once(gpu, tile, mode):
    """As by trying every number of them that is loaded as it should be, in chunks of any length."""
    device = devices.named(gpu)
    shape = (600000, 8) if tile[0] == 8 else (1, 2, 2400000)
    strides = torch.empty(shape, device="meta").stride()
    work = configs.Work(mode, describe(shape, 1, *[strides] * (1 + configs.READ[mode])), torch.float16)
    found, at_a_time = set(), configs.most_together(mode)
    for tiles in range(1, 33):
        config = configs.Config(*tile, tiles, num_warps=4, strategy="resident", packed=space.packs(work, device))
        worth = [n for n in range(1, tiles) if n < 2 * at_a_time or n % at_a_time == 0]
        needed = {n: registers.exactly_needed(work, config.but(rereads=n), device) for n in worth}
        for most in range(64, 256, 8):
            fewest = next((n for n in worth if needed[n] <= most), 0)
            assert registers.fewest_rereads(work, config, most, device) == fewest
            found.add(fewest)
    assert len(found) > 5


def test_chunks_that_are_read_again_take_all_places_of_the_gpu():
    """Half of the channels-last pixels of a large image would fill the registers."""
    device = devices.named("H100")
    strides = torch.empty((8, 64, 256, 256), device="meta").to(memory_format=torch.channels_last).stride()
    work = configs.Work("backward", describe((8, 64, 256, 256), 1, *[strides] * 3), torch.float16)
    chosen = space.choose(work, device, counters.SHARE)
    assert 0 < chosen.rereads < chosen.tiles_per_chunk
    assert device.sm_count * 0.9 < chosen.chunks(work.geometry) <= chosen.at_once


def test_programs_wait_only_where_they_run_side_by_side():
    alone = replace(devices.named("H100"), concurrent=False)
    for shape in SHAPES:
        for config, chunks, _ in every_config(shape, "forward", alone, counters.SHARE):
            assert config.strategy != "resident" or chunks == 1
        for config, chunks, _ in every_config(shape, "forward", devices.named("H100"), 0):
            assert config.strategy != "resident" or chunks == 1 or config.at_once


def test_only_so_many_streams_may_wait(monkeypatch):
    streams = iter([*range(5), *range(5)])
    monkeypatch.setattr(counters, "_seated", {})
    monkeypatch.setattr(counters, "current_stream", lambda device: next(streams))
    device, share = torch.device("cuda", 0), counters.SHARE
    monkeypatch.setattr(counters, "capturing", lambda device: False)
    assert [counters.share(device) for _ in range(10)] == [share, share, 0, 0, 0] * 2
    monkeypatch.setattr(counters, "capturing", lambda device: True)
    assert counters.share(device) == counters.CAPTURED_SHARE


@settings(max_examples=300)
@given(
    channels=st.sampled_from([3, 8, 33, 96]),
    outer=st.integers(1, 40),
    inner=st.integers(1, 70),
    layout=st.sampled_from(["planes", "rows"]),
    tile=st.sampled_from([(1, 1, 16), (1, 4, 16), (1, 8, 64), (8, 1, 16), (1, 64, 8)]),
    held=st.integers(1, 9),
)
def test_tiles_without_a_mask_are_whole(channels, outer, inner, layout, tile, held):
    """Every element of a tile that is read without a mask exists, in all chunks; whole tiles alone need no mask."""
    shape = (outer, channels, inner) if layout == "planes" else (outer * inner, channels)
    strides = torch.empty(shape, device="meta").stride()
    geometry = describe(shape, 1, strides, strides, strides)
    config = configs.Config(*tile, tiles_per_chunk=held)
    along_outer, along_inner = cutting.masked_tiles(geometry, config, None, held, 0)
    columns = math.ceil(geometry.inner / config.block_i)
    for t in range(held):
        for chunk in range(config.chunks(geometry)):
            row, column = divmod(chunk * held + t, columns)
            whole_outer = (row + 1) * config.block_o <= geometry.outer_size
            whole_inner = (column + 1) * config.block_i <= geometry.inner
            if config.block_o >= geometry.outer_size:  # tiles follow each other along inner alone
                whole_outer = config.block_o == geometry.outer_size
                whole_inner = (chunk * held + t + 1) * config.block_i <= geometry.inner
            lies_wholly_behind = chunk * held + t >= config.tiles(geometry)
            masks = along_outer >> 2 * t & 3, along_inner >> 2 * t & 3
            if lies_wholly_behind:
                assert any(masks)
            else:
                assert whole_outer or masks[0] == 1
                assert whole_inner or masks[1] == 1
    if geometry.outer_size % config.block_o == geometry.inner % config.block_i == config.tiles(geometry) % held == 0:
        assert along_outer == along_inner == 0


@settings(max_examples=300)
@given(
    mode=st.sampled_from(["forward", "backward"]),
    outer=st.integers(1, 60),
    inner=st.integers(1, 90),
    layout=st.sampled_from(["planes", "rows"]),
    tile=st.sampled_from([(1, 1, 16), (1, 4, 16), (1, 8, 64), (8, 1, 16), (1, 64, 8)]),
    length=st.integers(2, 12),
    rereads=st.integers(1, 11),
)
def test_chunks_that_are_read_again_are_the_whole_tensor(mode, outer, inner, layout, tile, length, rereads):
    """Dealt out as kernels/chunk.py does; every tile once, with a mask where it lacks elements or does not exist."""
    shape = (outer, 3, inner) if layout == "planes" else (outer * inner, 96)
    strides = torch.empty(shape, device="meta").stride()
    geometry = describe(shape, 1, strides, strides, strides)
    config = configs.Config(*tile, length, rereads=rereads, strategy="resident")
    tiles, chunks = config.tiles(geometry), config.chunks(geometry)
    held, at_a_time = cutting.kept_and_again(configs.Work(mode, geometry, torch.float16), config)
    assume(at_a_time)
    along_outer, along_inner = cutting.masked_tiles(geometry, config, None, held, at_a_time)
    parts, left = divmod(-(-(tiles - chunks * held) // at_a_time), chunks)
    columns, expected = math.ceil(geometry.inner / config.block_i), 0
    for chunk in range(chunks):
        more = chunk >= chunks - left
        for t in range(held + (parts + more) * at_a_time):
            number, expected = expected, expected + 1
            place = min(t, held)  # tiles that are read again share the masks behind those that are kept
            masks = along_outer >> 2 * place & 3, along_inner >> 2 * place & 3
            if config.block_o >= geometry.outer_size:  # tiles follow each other along inner alone
                whole_outer = config.block_o == geometry.outer_size
                whole_inner = (number + 1) * config.block_i <= geometry.inner
            else:
                row, column = divmod(number, columns)
                whole_outer = (row + 1) * config.block_o <= geometry.outer_size
                whole_inner = (column + 1) * config.block_i <= geometry.inner
            assert whole_outer or masks[0] == 1
            assert whole_inner or masks[1] == 1
    assert tiles <= expected < tiles + at_a_time
