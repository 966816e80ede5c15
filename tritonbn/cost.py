"""What a config should take on a GPU: a model of places for programs, bytes and waits, in seconds.

The constants follow cycle-level simulations and data sheets; what they are good for is to compare configs.
"""

from __future__ import annotations

import math
import re

from .configs import ONE_SWEEP, SECTOR, UNMERGED, Config, Work, power_of_two
from .devices import Device
from .geometry import FULL_ACCESS
from .kernels.welford import MERGED_AT_ONCE

READ = {
    "forward": 1,
    "inference": 1,
    "backward": 2,
    "sums": 2,
    "moments": 1,
    "normalize": 1,
    "gradients": 2,
    "sample_forward": 1,
    "sample_backward": 2,
}
"""Tensors read once."""

WRITTEN = {mode: 0 if mode in ("sums", "moments") else 1 for mode in READ}

SPARE_REGISTERS = 32
"""Registers a thread for everything but the tile, a few results of other chunks included; folded ones take more."""

FOLDING = 28

NARROW = 16
WIDE = 8
"""Channels-last tiles of more than so many channels take more."""

RESULTS = 3
"""Numbers of each chunk that are merged."""

FEW_RESULTS = 8
"""So many of them a thread take no more registers."""

PACKED_ELEMENT = {"forward": 1.5, "backward": 1.7}
"""Registers for each element of x of a resident tile in 16 bits, backward with one of dy."""

HELD_ELEMENT = {2: 2.2, 4: 2.2, 8: 5.2}
"""The same for each element of each tensor that is held as it is computed with, by its bytes in memory."""

STREAMED_ELEMENT = {
    "forward": 1.25,
    "inference": 1.0,
    "backward": 3.6,
    "sums": 2.7,
    "moments": 1.25,
    "normalize": 1.0,
    "gradients": 3.6,
}
"""Registers for each element of a tile that follows another, of all tensors together."""

EPILOGUE_ELEMENT = {
    "none": dict.fromkeys(READ, 0.0),
    "sign": {
        "forward": 0.8,
        "inference": 0.5,
        "backward": 1.4,
        "sums": 0.8,
        "moments": 0.0,
        "normalize": 0.5,
        "gradients": 1.4,
    },
    "value": {
        "forward": 1.3,
        "inference": 1.0,
        "backward": 3.0,
        "sums": 2.8,
        "moments": 0.0,
        "normalize": 1.0,
        "gradients": 3.0,
    },
}
"""What an epilogue adds to these, for each element."""

MOST_REGISTERS = 255

LATENCY = 0.7e-6
"""Seconds from a program's start until it moves bytes at full speed, and at its end."""

TILE_LATENCY = 0.5e-6
"""The same for each further tile of a chunk."""

WARP = 0.1e-6
"""What each of its warps adds, since a program's warps wait for each other."""

EXCHANGE = 0.4e-6
"""What waiting for the other chunks costs a program, if they start together."""

VECTOR_BYTES = 16
"""What a program reads for each of its channels: weight, bias, mean, invstd."""

EXCHANGED_BYTES = 32
"""What it writes and others read for each, where there are several chunks."""

SPILLED = 2 / 3
"""Of a spilled byte, which is written and read again, as much as memory would notice: it mostly stays in the L2."""

HIDDEN = 0.8
"""The part of these, and of computing, that other programs hide from the second wave on, if not all wait alike."""

LOCKSTEP = 4
"""A channel with more chunks than one in so many of the GPU's places makes all of them wait alike."""

COOPERATIVE = 1e-6
"""What it costs a launch to find room for all of its programs at once."""

PROGRAM = 1e-9
"""What starting a program costs the whole GPU."""

MERGED = 5e-9
"""What a chunk of up to 64 channels costs those who merge its numbers."""

LAUNCH = 4e-6
"""What a launch costs, the host's part included."""

L2_SPEED = 2
"""How much faster the L2 is than memory, about."""

L2_SHARE = 0.5
"""The part of the L2 that what was read is still found in; in simulation a dataflow of rows found nothing there."""

FASTEST_SM = 3
"""How many SMs' share of the memory one SM alone can use."""

INSTRUCTIONS = {
    "forward": 14,
    "inference": 6,
    "backward": 20,
    "sums": 12,
    "moments": 7,
    "normalize": 6,
    "gradients": 10,
}
"""For each element, in all of its sweeps."""

ACCESS_INSTRUCTIONS = 6
"""For each access to one tensor."""

COPYING = 2
"""How many times as many if it goes through shared memory."""

LANES = 128
"""Instructions that an SM begins at each tick of its clock, in four places, one warp at a time in each."""


def registers_needed(work: Work, config: Config, device: Device) -> int:
    """Registers a thread that leave the compiler room for all that the tile needs."""
    geometry, itemsize, mode, epilogue = work.geometry, work.itemsize, work.mode, work.epilogue
    per_thread = math.ceil(config.elements / (config.num_warps * device.warp_size))
    if config.strategy != "resident":
        element = STREAMED_ELEMENT[mode] * max(1, itemsize // 4)
    elif config.packed:
        element = PACKED_ELEMENT[mode]
    else:
        element = HELD_ELEMENT[itemsize] * READ[mode]
    element += EPILOGUE_ELEMENT[epilogue][mode] * max(1, itemsize // 4)
    narrow = FULL_ACCESS / itemsize / work.accesses - 1
    needed = SPARE_REGISTERS + per_thread * (element + narrow / 8)
    if config.block_c > NARROW and geometry.channels_last:
        needed += WIDE
    if config.lanes:
        needed += FOLDING if epilogue == "none" or mode != "backward" else 2 * FOLDING
    if mode not in UNMERGED and (chunks := config.chunks(geometry)) > 1:
        merged = RESULTS * min(power_of_two(chunks) * config.block_c, MERGED_AT_ONCE.value)
        merged /= config.num_warps * device.warp_size
        if config.strategy == "resident":
            needed += max(0, 1.2 * merged - FEW_RESULTS)
        needed = max(needed, SPARE_REGISTERS + 2 * merged)
    return 8 * math.ceil(needed / 8)


def places(work: Work, config: Config, registers: int, device: Device) -> int:
    """How many programs an SM holds at once."""
    return device.places(config.num_warps * device.warp_size, registers, shared_needed(work, config))


def pipelines(device: Device) -> bool:
    """Whether copies from memory go on beside the computation: asynchronous ones, from CUDA's 8.0 on."""
    return device.backend == "cuda" and int(re.match(r"\d+", device.arch[3:])[0]) >= 80


def most_registers(config: Config, per_sm: int, device: Device) -> int:
    """Registers a thread with which an SM still holds so many programs."""
    return min(MOST_REGISTERS, device.most_registers(config.num_warps * device.warp_size, per_sm))


def shared_needed(work: Work, config: Config) -> int:
    """Bytes of shared memory that suffice for a program."""
    results = 8 * max(config.block_i if config.lanes else config.block_c * config.num_warps, 64)
    tensors = READ[work.mode] + math.ceil(work.read_beside)
    return max(results, (config.stages - 1) * tensors * config.elements * work.itemsize)


def floor(work: Work, device: Device) -> float:
    """Seconds in which the memory moves every tensor once."""
    elements = work.geometry.channels * work.geometry.values
    moved = READ[work.mode] + work.read_beside + WRITTEN[work.mode] + work.written_beside
    return elements * work.itemsize * moved / device.bandwidth


def modelled_time(work: Work, config: Config, device: Device, registers: int | None = None, spills: int = 0) -> float:
    """Seconds from the first program's start to the last one's end; infinite where registers do not suffice.

    Registers a thread and the bytes of it that spill may be given as the compiler reports them (targets.Resources);
    otherwise registers are estimated, and none spills.
    """
    geometry, itemsize, mode = work.geometry, work.itemsize, work.mode
    registers = registers or registers_needed(work, config, device)
    per_sm = places(work, config, registers, device)
    if registers > MOST_REGISTERS or per_sm == 0:
        return math.inf
    chunks, blocks = config.chunks(geometry), config.channel_blocks(geometry)
    programs, slots = blocks * chunks, per_sm * device.sm_count
    tiles = min(config.tiles_per_chunk, config.tiles(geometry))
    chunk = tiles * tile_bytes(work, config)
    spilled = tiles * SPILLED * spills * config.num_warps * device.warp_size
    vectors = config.block_c * (VECTOR_BYTES + (EXCHANGED_BYTES if chunks > 1 and mode not in UNMERGED else 0))
    each = programs / device.sm_count
    most = math.ceil(each)
    turns = math.ceil(most / per_sm)
    # Half of what the last turn lacks is lost, if turns are even: more places on an SM alone must not cost bytes.
    filled = most if turns == 1 else (each + turns * math.ceil(most / turns)) / 2
    busy = min(per_sm, most)
    waves = programs / (busy * device.sm_count)
    waves = max(1.0, (waves + math.ceil(waves)) / 2)
    share = device.bandwidth / min(device.sm_count, max(programs, device.sm_count / FASTEST_SM))
    lanes = LANES * min(1.0, config.num_warps * (1 + busy) / 8) * device.clock

    waiting = config.strategy == "resident" and chunks > 1

    def sweep(moved: float, instructions: float, waits: float) -> float:
        """All programs once, each moving as many bytes as `moved` chunks, in so many instructions an element."""
        instructions += ACCESS_INSTRUCTIONS * moved / work.accesses * (1 if config.stages == 1 else COPYING)
        computing = config.elements * tiles * instructions * (1 + busy) / 2 / lanes
        waits += LATENCY + WARP * config.num_warps + TILE_LATENCY * (tiles - 1) / config.stages
        again = waves - 1 if waiting and chunks * LOCKSTEP > slots else (waves - 1) * (1 - HIDDEN)
        return filled * (moved * chunk + vectors + spilled) / share + (computing + waits) * (1 + again)

    reads, writes, instructions = READ[mode], WRITTEN[mode] + work.written_beside, INSTRUCTIONS[mode]
    time = PROGRAM * programs + (COOPERATIVE if config.at_once else 0)
    if mode not in UNMERGED and chunks > 1:
        time += MERGED * chunks * max(1.0, config.block_c / 64)
    if config.strategy == "resident" or mode in ONE_SWEEP:
        waits = EXCHANGE if config.strategy == "resident" and chunks > 1 else 0
        return time + sweep(reads + work.read_beside + writes, instructions, waits)
    later = work.read_beside
    if mode == "backward":
        reads, later = reads + later, 0
    kept = reads * geometry.channels * geometry.values * itemsize
    if config.strategy == "dataflow":
        kept = min(kept, reads * chunk * (slots + 2 * config.window * chunks))
    found = kept <= L2_SHARE * device.l2_bytes and not (config.strategy == "dataflow" and geometry.channels_last)
    again = reads / (L2_SPEED if found else 1)
    time += sweep(reads, instructions / 2, 0) + sweep(again + later + writes, instructions / 2, 0)
    return time + (EXCHANGE if config.strategy == "dataflow" else LAUNCH)


def tile_bytes(work: Work, config: Config) -> float:
    """Bytes of a full tile of one tensor, with the parts of sectors that it moves in vain."""
    geometry, itemsize = work.geometry, work.itemsize
    if config.lanes:
        run = config.lanes * min(config.block_c, geometry.channels)
        return min(config.block_o, math.ceil(geometry.values / config.lanes)) * run * itemsize
    sizes = (
        min(config.block_c, geometry.channels),
        min(config.block_o, geometry.outer_size),
        min(config.block_i, geometry.inner),
    )
    row = sizes[0] if geometry.channels_last else sizes[2]
    whole = geometry.channels if geometry.channels_last else geometry.inner
    row_bytes = row * itemsize if row == whole else SECTOR * math.ceil(row * itemsize / SECTOR)
    return math.prod(sizes) // row * row_bytes
