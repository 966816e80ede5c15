"""The configs worth considering for some work on a device: data for each mode, and what may run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..configs import UNMERGED, Config, Mode, Reading, Strategy, Work
from ..devices import Device
from ..geometry import FULL_ACCESS, LARGEST_TILE, MAY_BE_NARROW, SECTOR, Geometry, power_of_two
from ..launching.counters import FRACTION
from .cost import modelled_time, pipelines, places
from .registers import MOST_REGISTERS, fewest_rereads, most_registers, registers_needed


@dataclass(frozen=True)
class Space:
    """What is worth trying; a config is a choice from each of these and from the tiles that suit the geometry."""

    strategies: tuple[Strategy, ...]
    held: int = 0
    """Most elements of a tensor that a thread of a resident program holds."""
    tiles_per_chunk: tuple[int, ...] = (1,)
    """Of what is not resident."""
    stages: tuple[int, ...] = (1,)
    """Of what is not resident."""


ALL: tuple[Strategy, ...] = ("resident", "dataflow", "split")
CHUNKS = (1, 2, 4, 8, 16, 64, 256, 1024, 4096, 16384, 65536, 1 << 20)
STAGES = (1, 3)
WARPS = (1, 2, 4, 8)
"""Of a program."""

STREAMED = (8, 16, 32)
"""Elements of a tensor that a thread holds where a program takes one tile after the other."""

MERGING, PASSING = (
    Space(("split",), tiles_per_chunk=CHUNKS, stages=STAGES),
    Space(("split",), tiles_per_chunk=CHUNKS[:4]),
)

SPACES: dict[Mode, Space] = {
    "forward": Space(ALL, held=320, tiles_per_chunk=CHUNKS, stages=STAGES),
    "inference": Space(("split",)),
    "backward": Space(ALL, held=176, tiles_per_chunk=CHUNKS, stages=STAGES),
    "elementwise": PASSING,
    "sums": MERGING,
    "moments": MERGING,
    "normalize": PASSING,
    "gradients": PASSING,
}

MOST_MERGED = 262144
"""Most results of chunks, of all channels of a block together, that are merged, span by span if they are many."""

MOST_CONVERTED = 32
"""16-bit elements per thread that may be kept in 32 bits, where they can be kept as they are."""

MOST_THREADS = 256
"""Of a program: with more, no thread could have as many registers as there are."""

LEAST_WARPS = 2
"""Of a resident program, unless its tile is too small: cycle-level simulation has 2 to 4 at the front."""

MOST_SHUFFLED = 8
"""Elements per thread of a folded tile that one warp adds up alone, each of which all threads ask all others for."""

UNDER_WAY = (1, 2, 3, 4, 6, 8)
"""Blocks of channels that the GPU may have under way at once where their chunks are read again."""

REREAD_STAGES = 3
"""Stages of the loops that do so, where copies from memory go on beside the computation."""

EVERY_LENGTH, LONGER = 16, 2
"""Tiles up to which chunks of any number of them are considered, and the steps in which longer ones are."""

SECTORS = (1, 2, 4)
"""Widths of channels-last tiles."""

SMALL_TILE = 1024
"""Elements that even channels of a few values are put together for."""

SAFE_WARPS, SAFE_ELEMENTS = 4, 8
"""Of a program and of a thread that any GPU and compiler can be asked for."""


def choose(work: Work, device: Device, share: int) -> Config:
    """The config of least modelled time; ties go to the first. For `share` see waits_safely."""
    candidates = space(work, device, share)
    best = min(candidates, key=lambda config: modelled_time(work, config, device), default=None)
    return best or conservative(work, device)


def space(work: Work, device: Device, share: int) -> Iterator[Config]:
    """Every config worth considering that may run."""
    found = SPACES[work.mode]
    for reading in worth_reading(work):
        cuts = list(tiles(work, reading))
        if "resident" in found.strategies:
            for config in resident(work, device, found, cuts):
                is_short = config.held <= MOST_CONVERTED * config.num_warps * device.warp_size
                may_pack = packs(work, device)
                for packed in (True, False) if may_pack and is_short and not config.rereads else (may_pack,):
                    yield from valid(work, config.but(packed=packed), device, share)
        for config in with_warps(cuts, device, STREAMED):
            for cut in streamed(work, config, found):
                yield from valid(work, cut, device, share)


def worth_reading(work: Work) -> tuple[Reading, ...]:
    """The ways to read the tensors, of large ones whose planes have edges without the one that is narrow throughout."""
    geometry = work.geometry
    is_small = geometry.values * geometry.channels <= MAY_BE_NARROW
    if is_small or geometry.is_one_plane or not work.readings[-1].edges:
        return work.readings
    return tuple(reading for reading in work.readings if reading.edges or reading.fold)


def with_warps(cuts: list[Config], device: Device, per_thread: tuple[int, ...]) -> Iterator[Config]:
    """Every tile with as many warps as give a thread so many elements, or fewer where a tile is too small for that."""
    for tile in cuts:
        for warps in (n for n in WARPS if n * device.warp_size <= MOST_THREADS):
            elements = tile.elements // (warps * device.warp_size)
            if tile.lanes and warps == 1 and elements > MOST_SHUFFLED:
                continue
            if elements in per_thread or (warps == 1 and elements < per_thread[0]):
                yield tile.but(num_warps=warps)


def resident(work: Work, device: Device, found: Space, cuts: list[Config]) -> Iterator[Config]:
    """Chunks that are kept in registers: tiles of an access a thread, as many as leave the chunks equal."""
    access = FULL_ACCESS // work.itemsize
    for config in with_warps(cuts, device, (access,)):
        a_thread = config.elements / config.num_warps / device.warp_size
        if config.num_warps >= LEAST_WARPS or config.elements < LEAST_WARPS * device.warp_size * access:
            tiles, part = config.tiles(work.geometry), min(1, 2 / work.itemsize) / access
            most = int(found.held * part) if a_thread == access else 1
            most = most if config.num_warps >= LEAST_WARPS else min(most, EVERY_LENGTH)
            for tiles_per_chunk in lengths(tiles, most):
                yield config.but(strategy="resident", tiles_per_chunk=tiles_per_chunk)
            if a_thread == access:
                yield from rereading(work, config.but(strategy="resident", packed=packs(work, device)), most, device)


def rereading(work: Work, config: Config, longest: int, device: Device) -> Iterator[Config]:
    """Chunks of a block of channels, or of a few, in all places of the GPU: too long for them, so only in part kept.

    Nothing forward if chunks of up to `longest` tiles, the most that are kept whole, find room there.
    """
    tiles, blocks = config.tiles(work.geometry), config.channel_blocks(work.geometry)
    streamed = config.but(stages=REREAD_STAGES if pipelines(device) else 1, tiles_per_chunk=2, rereads=1)
    most = places(work, streamed, registers_needed(work, streamed, device), device)
    limits = {most_registers(config, n, device): n for n in range(1, most + 1)}
    found = set()
    for registers, per_sm in limits.items():
        slots = per_sm * device.sm_count
        for under_way in (n for n in UNDER_WAY if n <= min(blocks, slots)):
            length = math.ceil(tiles / (slots // under_way))
            whole = config.but(tiles_per_chunk=length, at_once=slots)
            if registers_needed(work, whole, device) > registers:
                cut = streamed.but(tiles_per_chunk=length)
                found.add((length, fewest_rereads(work, cut.but(at_once=slots), registers, device)))
            elif work.mode == "forward" and length <= longest:
                return  # it gains nothing from places that cost it a second reading
    for length, rereads in sorted(found):
        if rereads:
            yield streamed.but(tiles_per_chunk=length, rereads=rereads)


def packs(work: Work, device: Device) -> bool:
    """Whether resident programs may keep tiles as they came."""
    return work.itemsize == 2 and device.backend == "cuda"


def lengths(tiles: int, most: int) -> list[int]:
    """How many of so many tiles a chunk may have: at most so many, and the last chunk not much less than the others."""
    tried = (length for length in range(1, min(tiles, most) + 1) if length <= EVERY_LENGTH or length % LONGER == 0)
    return sorted({math.ceil(tiles / math.ceil(tiles / length)) for length in tried})


def streamed(work: Work, config: Config, found: Space) -> Iterator[Config]:
    """The config with one tile after the other, in one sweep or two, in chunks of every length."""
    for tiles_per_chunk in found.tiles_per_chunk:
        if tiles_per_chunk >= 2 * config.tiles(work.geometry):
            return
        for stages in found.stages if tiles_per_chunk > 1 else found.stages[:1]:
            for strategy in found.strategies:
                if strategy != "resident":
                    yield config.but(tiles_per_chunk=tiles_per_chunk, stages=stages, strategy=strategy)


def valid(work: Work, config: Config, device: Device, share: int) -> Iterator[Config]:
    """The config with what follows from the device and the sizes, or nothing if it must not run there."""
    geometry = work.geometry
    if config.stages > 1 and not pipelines(device):
        return
    registers = registers_needed(work, config, device)
    per_sm, chunks = places(work, config, registers, device), config.chunks(geometry)
    if registers > MOST_REGISTERS or per_sm == 0:
        return
    merges = work.mode not in UNMERGED and chunks > 1
    if merges and power_of_two(chunks) * config.block_c > MOST_MERGED:
        return
    if config.strategy == "dataflow":
        window = math.ceil(device.sm_count * per_sm / chunks)
        yield config.but(window=max(1, min(config.channel_blocks(geometry), window)))
    elif config.strategy == "split":
        yield config
    else:
        programs, slots = chunks * config.channel_blocks(geometry), device.sm_count * per_sm
        for held in (min(per_sm, math.ceil(programs / device.sm_count)), per_sm):  # as many registers as there are
            if chunks == 1 or waits_safely(chunks, programs, held, device, share):
                yield config.but(registers=most_registers(config, held, device))
                return
        at_once = config.but(at_once=min(slots, programs))
        registers = registers_needed(work, at_once, device)  # more where a program takes chunk after chunk
        per_sm = places(work, config, registers, device) if registers <= MOST_REGISTERS else 0
        if device.cooperative and chunks <= (slots := device.sm_count * per_sm):
            registers = most_registers(config, per_sm, device)
            yield config.but(registers=registers, at_once=min(slots, programs))


def waits_safely(chunks: int, programs: int, per_sm: int, device: Device, share: int) -> bool:
    """Whether the chunks of a channel may wait for each other, although they start in any order.

    Such a launch holds at most chunks - 1 places without being able to go on (kernels/exchange.py). They may be one in
    `share` of the places that the GPU has, none where it is 0: see launching/counters.py. Where programs are dealt out
    to several dies, all that wait may be on the one whose programs the others wait for, so the share is one of the
    die's places, unless it gets no more programs than that. More chunks, up to one in every place, go into a
    cooperative launch, which CUDA does not start before the GPU can run all of its programs.
    """
    if not device.concurrent or share == 0 or per_sm < FRACTION:
        return False
    return min(chunks, math.ceil(programs / device.dies)) <= device.sm_count * per_sm // device.dies // share


def conservative(work: Work, device: Device) -> Config:
    """What runs where nothing else does: nobody waits, and no thread needs more than a few registers."""
    elements = SAFE_WARPS * device.warp_size * SAFE_ELEMENTS
    config = min(tiles(work, work.readings[0]), key=lambda tile: abs(tile.elements - elements))
    config = config.but(num_warps=min(SAFE_WARPS, MOST_THREADS // device.warp_size))
    most = math.inf if work.mode in UNMERGED else max(MOST_MERGED, config.block_c)
    while power_of_two(config.chunks(work.geometry)) * config.block_c > most:
        config = config.but(tiles_per_chunk=2 * config.tiles_per_chunk)
    return config


def tiles(work: Work, reading: Reading) -> Iterator[Config]:
    """Tiles worth considering, as configs of one tile a chunk; a row of one is never shorter than a sector."""
    geometry, sector = work.geometry, SECTOR // work.itemsize
    if fold := reading.fold:
        run = power_of_two(fold.run)
        for block_o in powers(math.ceil(geometry.values / fold.lanes), LARGEST_TILE // run):
            yield Config(power_of_two(fold.channels), block_o, run, lanes=fold.lanes)
    elif geometry.channels_last:
        widest = power_of_two(geometry.channels)
        filling = max(SECTORS[-1] * sector, SMALL_TILE // power_of_two(geometry.values))
        widths = (*(n * sector for n in SECTORS), filling // 2, filling)
        for block_c in sorted({min(width, widest) for width in widths}):
            yield from rows(geometry, geometry.inner, block_c, 1)
    else:
        edges = reading.edges.each if reading.edges else 0
        inner = geometry.inner - edges
        for block_c in powers(geometry.channels, LARGEST_TILE):
            for tile in rows(geometry, inner, block_c, min(4 * sector, power_of_two(inner))):
                yield tile.but(edges=edges)


def rows(geometry: Geometry, inner: int, block_c: int, least: int) -> Iterator[Config]:
    """Tiles of block_c channels, `least` or more along inner; of several channels only channels-last, or whole ones."""
    for block_i in powers(inner, LARGEST_TILE // block_c):
        if block_i < least:
            continue
        for block_o in powers(geometry.outer_size, LARGEST_TILE // block_c // block_i):
            is_strip = block_o == 1 or block_i >= inner or block_o >= geometry.outer_size
            is_whole = block_o * block_i >= geometry.outer_size * inner
            if is_strip and (block_c == 1 or geometry.channels_last or is_whole):
                yield Config(block_c, block_o, block_i)


def powers(size: int, most: int) -> Iterator[int]:
    """Powers of two up to the first that is not below size, none above `most`."""
    return (1 << bit for bit in range(power_of_two(size).bit_length()) if 1 << bit <= most)
