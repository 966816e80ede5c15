"""What a config should take on a GPU: a model of places for programs, bytes and waits, in seconds.

The constants follow cycle-level simulations and data sheets; what they are good for is to compare configs.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..configs import ONE_SWEEP, READ, UNMERGED, WRITTEN, Config, Work, merging, together
from ..devices import Device
from ..geometry import FULL_ACCESS, SECTOR
from ..kernels.tile import MOST_DEALT
from .registers import MOST_REGISTERS, accesses, edges_dealt, registers_needed

LATENCY = 0.4e-6
"""Seconds from a program's start until it moves bytes at full speed, and at its end."""

TILE_LATENCY = 0.5e-6
"""The same for each further tile of a chunk."""

WARP = 0.04e-6
"""What each of its warps adds, since a program's warps wait for each other."""

EXCHANGE = 0.7e-6
"""What waiting for the other chunks costs a program, if they start together."""

VECTOR_BYTES = 16
"""What a program reads for each of its channels: weight, bias, mean, invstd."""

EXCHANGED_BYTES = 32
"""What it writes and others read for each, where there are several chunks."""

SPILLED = 2 / 3
"""Of a spilled byte, which is written and read again, as much as memory would notice: it mostly stays in the L2."""

HIDDEN = 0.3
"""The part of latency and computing that other programs hide from the second wave on, if not all wait alike."""

LOCKSTEP = 4
"""Channel blocks under way at once, below which all programs wait alike."""

ALONE = 1.3
"""Factor on exposed latency and computing where but one channel block is under way."""

COOPERATIVE = 1e-6
"""What it costs a launch to find room for all of its programs at once."""

PROGRAM = 0.7e-9
"""What starting a program costs the whole GPU."""

MERGED = 0.35e-6
"""What it takes to merge the numbers of as many chunks as are loaded at once, while all others wait."""

ARRIVAL = 0.35e-6
"""What it costs beside to learn which span is the last."""

LAUNCH = 4e-6
"""What a launch costs, the host's part included."""

L2_SPEED = 2
"""How much faster the L2 is than memory, about."""

L2_SHARE = 0.5
"""The part of the L2 that what was read is still found in: in simulation a dataflow of rows finds all or nothing."""

FOUND_AGAIN = 0.5
"""Of what was read last, and would find room in the L2, the part that is there when it is read again."""

LINE = 128
"""Bytes of a line of the L2, which holds nothing else where one reads a part of it."""

BESIDE_LOADS = {"forward": 1.0, "backward": 0.7}
"""The part of computing that is felt where a program loads and computes in turn, with others beside it."""

SHORT_ROW = 2
"""Bytes that memory would have moved while it turns to another row, where tiles have parts of rows."""

FASTEST_SM = 3
"""How many SMs' share of the memory one SM alone can use."""

HELD_INSTRUCTIONS = {
    ("forward", True): 5,
    ("forward", False): 6,
    ("backward", True): 8,
    ("backward", False): 8,
}
"""For each element that a resident program holds, packed or converted: those that loading does not hide."""

PROGRAM_INSTRUCTIONS = {"planes": 180, "edges": 235, "runs": 400, "rows": 600}
"""What each of its threads does beside: finding its tiles, and sums over the lanes of a warp."""

INSTRUCTIONS = {
    "forward": 14,
    "inference": 6,
    "backward": 20,
    "elementwise": 6,
    "sums": 12,
    "moments": 7,
    "normalize": 6,
    "gradients": 10,
}
"""For each element of other programs, in all of their sweeps."""

ACCESS_INSTRUCTIONS = 6
"""For each access to one tensor."""

EDGE_INSTRUCTIONS = 15
"""For each element at the edges of planes that is read apart, beside these: finding it."""

COPYING = 2
"""How many times as many if it goes through shared memory."""

BUSY_WARPS = 8
"""Warps of an SM that keep it busy."""

LANES = 128
"""Instructions that an SM begins at each tick of its clock, in four places, one warp at a time in each."""


def places(work: Work, config: Config, registers: int, device: Device) -> int:
    """How many programs an SM holds at once."""
    return device.places(config.num_warps * device.warp_size, registers, shared_needed(work, config))


def pipelines(device: Device) -> bool:
    """Whether copies from memory go on beside the computation: asynchronous ones, from CUDA's 8.0 on."""
    return device.backend == "cuda" and int(re.match(r"\d+", device.arch[3:])[0]) >= 80


def shared_needed(work: Work, config: Config) -> int:
    """Bytes of shared memory that suffice for a program."""
    double = max(1, work.itemsize // 4)
    results = 8 * max(config.block_i if config.lanes else config.block_c * config.num_warps, 64)
    if work.mode not in UNMERGED and work.read_by(config).layout != "planes":
        results = max(results, 4 * double * min(config.elements, MOST_DEALT.value))
    tensors = READ[work.mode] + math.ceil(work.read_beside)
    at_a_time = together(config.rereads, work.mode) if config.rereads else 1
    return max(results, (config.stages - 1) * at_a_time * tensors * config.elements * work.itemsize)


def floor(work: Work, device: Device) -> float:
    """Seconds in which the memory moves every tensor once."""
    elements = work.geometry.channels * work.geometry.values
    moved = READ[work.mode] + work.read_beside + WRITTEN[work.mode] + work.written_beside
    return elements * work.itemsize * moved / device.bandwidth


def modelled_time(work: Work, config: Config, device: Device, registers: int | None = None, spills: int = 0) -> float:
    """Seconds from the first program's start to the last one's end; infinite where registers do not suffice.

    Registers and spilled bytes per thread may be given as the compiler reports them (targets.Resources); otherwise
    registers are estimated, and none spills.
    """
    geometry, mode = work.geometry, work.mode
    registers = registers or registers_needed(work, config, device)
    per_sm = places(work, config, registers, device)
    if registers > MOST_REGISTERS or per_sm == 0:
        return math.inf
    crowd = Crowd.of(work, config, device, per_sm)
    chunk = chunk_bytes(work, config)
    spilled = tiles_in_turn(work, config) * SPILLED * spills * config.num_warps * device.warp_size

    def sweep(moved: float, instructions: float, waits: float = 0.0) -> float:
        """All programs once, each moving as many bytes as `moved` chunks, in so many instructions an element."""
        computing = instructions_of_program(work, config, device, moved, instructions)
        computing *= (BESIDE_LOADS[mode] if config.rereads else 1) * (1 + crowd.busy) / 2 / crowd.speed
        waits += LATENCY + WARP * config.num_warps + TILE_LATENCY * (tiles_in_turn(work, config) - 1) / config.stages
        moving = crowd.filled * (moved * chunk + vector_bytes(work, config) + spilled) / crowd.share
        return moving + (computing + waits) * crowd.felt

    time = PROGRAM * crowd.programs + (COOPERATIVE if config.at_once else 0)
    waits = merging_time(work, config, device)
    reads, writes = READ[mode] + again_of_chunk(work, config, device, crowd), WRITTEN[mode] + work.written_beside
    if config.strategy == "resident" or mode in ONE_SWEEP:
        waits += EXCHANGE if crowd.waits else 0
        return time + sweep(reads + work.read_beside + writes, instructions_an_element(work, config), waits)
    instructions, later = INSTRUCTIONS[mode] / 2, work.read_beside
    if mode == "backward":
        reads, later = reads + later, 0
    kept = reads * geometry.channels * geometry.values * work.itemsize
    if config.strategy == "dataflow" and not geometry.channels_last:
        kept = min(kept, reads * chunk * (crowd.slots + 2 * config.window * crowd.chunks))
    again = reads / (L2_SPEED if kept <= L2_SHARE * device.l2_bytes else 1)
    time += waits + sweep(reads, instructions) + sweep(again + later + writes, instructions)
    return time + (EXCHANGE if config.strategy == "dataflow" else LAUNCH)


@dataclass(frozen=True)
class Crowd:
    """The programs of a launch on their places."""

    programs: int
    chunks: int
    slots: int
    """Places of the whole GPU."""
    busy: int
    """Programs that an SM holds at once."""
    waits: bool
    """Whether they wait for each other, all in their places."""
    filled: float
    """Programs whose bytes an SM moves, with what is lost while it holds fewer than it might."""
    share: float
    """Bytes per second that an SM moves."""
    speed: float
    """Instructions a second that an SM begins."""
    felt: float
    """How often the computing and waiting of one program is felt, as others hide it in part."""

    @classmethod
    def of(cls, work: Work, config: Config, device: Device, per_sm: int) -> Crowd:
        """With so many places on an SM."""
        chunks, blocks = config.chunks(work.geometry), config.channel_blocks(work.geometry)
        programs, slots = blocks * chunks, per_sm * device.sm_count
        each = programs / device.sm_count
        most = math.ceil(each)
        # Half of what the last turn lacks is lost, if turns are even: more places on an SM alone must not cost bytes.
        filled = most if most <= per_sm else (each + most) / 2
        busy = min(per_sm, most)
        waits = config.strategy == "resident" and chunks > 1
        waves = programs / (busy * device.sm_count)
        if waits:  # what is left of the places holds chunks of a block that cannot be completed yet
            waves = blocks / max(1, busy * device.sm_count // chunks)
        waves = max(1.0, (waves + math.ceil(waves)) / 2)
        return cls(
            programs,
            chunks,
            slots,
            busy,
            waits,
            filled,
            share=device.bandwidth / min(device.sm_count, max(programs, device.sm_count / FASTEST_SM)),
            speed=LANES * min(1.0, config.num_warps * (1 + busy) / 2 / BUSY_WARPS) * device.clock,
            felt=1 + (waves - 1) * (exposed(slots // chunks) if waits else 1 - HIDDEN),
        )


def tiles_in_turn(work: Work, config: Config) -> int:
    """Tiles that a program takes one after the other: a resident one has all of its chunk at once."""
    return 1 if config.strategy == "resident" else min(config.tiles_per_chunk, config.tiles(work.geometry))


def chunk_bytes(work: Work, config: Config) -> float:
    """Bytes of one tensor that a program moves in one sweep."""
    chunks = config.chunks(work.geometry)
    if config.strategy == "resident":
        return block_bytes(work, config) / chunks
    return tiles_in_turn(work, config) * tile_bytes(work, config) + edge_bytes(work, config) / chunks


def vector_bytes(work: Work, config: Config) -> int:
    """Bytes of vectors, and of what programs hand each other."""
    exchanges = config.chunks(work.geometry) > 1 and work.mode not in UNMERGED
    return config.block_c * (VECTOR_BYTES + (EXCHANGED_BYTES if exchanges else 0))


def merging_time(work: Work, config: Config, device: Device) -> float:
    """Seconds in which one program merges what all chunks of a block have found."""
    if work.mode in UNMERGED or config.chunks(work.geometry) == 1:
        return 0.0
    merged = merging(config, work.geometry, device)
    return MERGED * merged.rounds + (ARRIVAL if merged.spans else 0)


def instructions_an_element(work: Work, config: Config) -> float:
    """For each element, in all sweeps, beside accesses."""
    if config.strategy != "resident":
        return INSTRUCTIONS[work.mode]
    instructions = HELD_INSTRUCTIONS[work.mode, config.packed]
    if config.rereads:  # the addresses of narrow accesses are computed anew
        instructions += ACCESS_INSTRUCTIONS * (1 / accesses(work, config) - work.itemsize / FULL_ACCESS)
    return instructions


def instructions_of_program(work: Work, config: Config, device: Device, moved: float, instructions: float) -> float:
    """In a sweep that accesses as many tensors as `moved`, with so many instructions for each element beside."""
    accessing = ACCESS_INSTRUCTIONS * moved * (1 if config.stages == 1 else COPYING)
    elements = config.elements * min(config.tiles_per_chunk, config.tiles(work.geometry))
    computing = elements * (instructions + accessing / accesses(work, config))
    if work.mode not in UNMERGED:
        beside = PROGRAM_INSTRUCTIONS["edges" if config.edges else work.read_by(config).layout]
        computing += config.num_warps * device.warp_size * beside * (1 if config.strategy == "resident" else 0.5)
    if config.edges:
        computing += edges_dealt(work, config) * (instructions + accessing + EDGE_INSTRUCTIONS)
    return computing


def again_of_chunk(work: Work, config: Config, device: Device, crowd: Crowd) -> float:
    """What it costs to read a part of the chunk again, of reading one tensor of it."""
    if not config.rereads:
        return 0.0
    again = READ[work.mode] * config.rereads / config.tiles_per_chunk
    blocks = max(1, min(crowd.programs, crowd.busy * device.sm_count) // crowd.chunks)
    in_flight = again * chunk_bytes(work, config) * crowd.chunks * blocks
    return again * read_again(work, config, blocks, in_flight, device)


def exposed(blocks: int) -> float:
    """The part of waiting and computing that is not hidden, with chunks of so many blocks under way at once."""
    if blocks >= LOCKSTEP:
        return 1 - HIDDEN
    return 1 if blocks > 1 else ALONE


def read_again(work: Work, config: Config, blocks: int, in_flight: float, device: Device) -> float:
    """What it costs to read so many bytes of so many blocks again, of reading them: the L2 has some.

    Its lines are used in part where rows are wider than these blocks.
    """
    rows = work.geometry.channels_last and not config.lanes
    row = config.block_c * blocks if rows else LINE
    used = min(1.0, row * work.itemsize / LINE) if row < work.geometry.channels else 1.0
    found = min(1.0, FOUND_AGAIN * used * device.l2_bytes / in_flight)
    return 1 - found + found / L2_SPEED


def block_bytes(work: Work, config: Config) -> float:
    """Bytes of one tensor that a block of channels moves, with the parts of sectors that it moves in vain."""
    geometry = work.geometry
    channels, values = min(config.block_c, geometry.channels), geometry.values
    if config.lanes:
        return channels * values * work.itemsize
    inner = config.inner(geometry)
    tiles = geometry.outer_size * inner / min(config.block_o, geometry.outer_size) / min(config.block_i, inner)
    return tile_bytes(work, config) * tiles + edge_bytes(work, config)


def tile_bytes(work: Work, config: Config) -> float:
    """Bytes of a full tile of one tensor, with the parts of sectors that it moves in vain."""
    geometry, itemsize = work.geometry, work.itemsize
    if config.lanes:
        run = config.lanes * min(config.block_c, geometry.channels)
        return min(config.block_o, math.ceil(geometry.values / config.lanes)) * run * itemsize
    sizes = (
        min(config.block_c, geometry.channels),
        min(config.block_o, geometry.outer_size),
        min(config.block_i, config.inner(geometry)),
    )
    row = sizes[0] if geometry.channels_last else sizes[2]
    whole = geometry.channels if geometry.channels_last else config.inner(geometry)
    row_bytes = row * itemsize
    if row < whole:  # it begins and ends within a sector if rows are no sectors: the L2 has what others moved of it
        edges = work.read_by(config).edges if config.edges else None
        begins = edges.alignment if edges else whole
        row_bytes += SHORT_ROW + (SECTOR - math.gcd(SECTOR, begins * itemsize, row_bytes)) / L2_SPEED
    return math.prod(sizes) // row * row_bytes


def edge_bytes(work: Work, config: Config) -> float:
    """Bytes of one tensor at the edges of a block's planes, if they are read apart."""
    if not config.edges:
        return 0.0
    planes = min(config.block_c, work.geometry.channels) * work.geometry.outer_size
    return planes * (config.edges * work.itemsize + SHORT_ROW)
