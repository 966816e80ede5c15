"""From a config to the launches of a kernel: constexprs, launch options, grid, workspace."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import triton.language as tl

from .. import devices
from ..configs import UNMERGED, Config, Merging, Work, edge_lanes, edge_room, edge_tiles, merging, sign_group, together
from ..devices import Device
from ..geometry import Fold, Geometry
from ..kernels import resident_backward_kernel, resident_forward_kernel
from ..kernels.exchange import SPACING
from ..kernels.tile import PARTLY, WHOLLY
from ..launching.launch import Plan, steps, tile_keywords
from .case import Case

KNOWN_TILES = 32
"""Tiles along inner that a kernel is compiled for; with more, one kernel serves all sizes."""


def cut_keywords(work: Work, config: Config, case: Case, whole: bool = False) -> dict[str, Any]:
    """The constexprs and launch options that follow from how the work is cut; a program may hold a whole chunk."""
    geometry, itemsize = work.geometry, work.itemsize
    keywords = tile_keywords(geometry, config, case.dtype)
    fold = work.read_by(config).fold
    held, at_a_time = kept_and_again(work, config) if whole else (1, 0)
    keywords["INNER_TILES"] = inner_tiles(geometry, config)
    keywords["MASK_O"], keywords["MASK_I"] = masked_tiles(geometry, config, fold, held, at_a_time)
    keywords |= {"FOLD": 0, "RUN": 0, "GROUP": sign_group(geometry, itemsize), "ACTIVATION": case.activation}
    if fold:
        keywords |= {"FOLD": fold.lanes, "RUN": fold.run, "ALIGN": fold.bound}
        if geometry.channels_last:
            keywords["MASK_C"] = False
    if edges := work.read_by(config).edges:
        keywords["ALIGN"] = edges.alignment
    keywords |= {"EDGES": config.edges, "LANES": 1, "ROOM": 0}
    if config.edges:
        keywords |= {"LANES": edge_lanes(work, config), "ROOM": edge_room(work, config)}
    if whole:
        keywords |= {"TILES": held, "EDGE_TILES": edge_tiles(work, config) if config.edges else 0}
    if config.registers and not devices.INTERPRETED:
        keywords |= register_cap(config.registers, case.device)
    if config.at_once and not devices.INTERPRETED:
        keywords["launch_cooperative_grid"] = True
    return keywords


def inner_tiles(geometry: Geometry, config: Config) -> int:
    """How many tiles follow each other along inner, as kernels/tile.py wants to know it."""
    if config.block_o >= geometry.outer_size:
        return 0
    tiles = -(-config.inner(geometry) // config.block_i)
    return tiles if tiles <= KNOWN_TILES else -1


def kept_and_again(work: Work, config: Config) -> tuple[int, int]:
    """Tiles of a chunk that are held, and those that are loaded at once where others are read again; 0 if none are."""
    tiles = config.tiles(work.geometry)
    length = min(config.tiles_per_chunk, tiles)
    again = min(config.rereads, length - 1)
    if not again:
        return length, 0
    return min(length - again, tiles // config.chunks(work.geometry)), together(again, work.mode)


def masked_tiles(geometry: Geometry, config: Config, fold: Fold | None, held: int, at_a_time: int) -> tuple[int, int]:
    """The masks of a chunk's tiles (kernels/tile.py) along outer and along inner: two bits each.

    First those of the `held` tiles, then of those read again, which are loaded so many at a time with one mask for all.
    """
    every_tile = range(held + at_a_time)
    tiles = config.tiles(geometry)
    in_last_chunk = (tiles - 1) % held + 1
    behind = tiles - config.chunks(geometry) * held

    def at_the_end(lack: bool, columns: int = 1) -> int:
        """The masks at the last chunk's end: its last `columns` tiles may lack elements, any behind do not exist."""
        if at_a_time:
            ends = every_tile if columns > 1 else every_tile[held if behind else held - 1 :]
            return marked(PARTLY, ends) if lack or behind % at_a_time else 0
        partly = range(in_last_chunk - columns * lack, in_last_chunk)
        if partly.start < 0:
            return marked(PARTLY, every_tile)
        return marked(PARTLY, partly) | marked(WHOLLY, range(in_last_chunk, held))

    if fold:
        last_lacks = geometry.values % (fold.lanes * config.block_o) != 0
        return at_the_end(last_lacks), marked(PARTLY, every_tile) if fold.run != config.block_i else 0
    outer_lacks, inner_lacks = geometry.outer_size % config.block_o != 0, config.inner(geometry) % config.block_i != 0
    if config.block_o >= geometry.outer_size:
        return marked(PARTLY, every_tile) if outer_lacks else 0, at_the_end(inner_lacks)
    columns = -(-config.inner(geometry) // config.block_i)
    in_last_column = range(columns - 1, held, columns) if held % columns == 0 and not at_a_time else every_tile
    return at_the_end(outer_lacks, columns), marked(PARTLY, in_last_column) if inner_lacks else 0


def marked(mask: tl.constexpr, tiles: Iterable[int]) -> int:
    """Such a mask for these tiles."""
    return sum(mask.value << 2 * tile for tile in tiles)


def register_cap(registers: int, device: Device) -> dict[str, int]:
    """The launch option that keeps a thread to so many registers; AMD's compilers are told how many waves must fit."""
    if device.backend == "cuda":
        return {"maxnreg": registers}
    return {"waves_per_eu": max(1, device.registers // 4 // device.warp_size // registers)}


def sign_bytes(work: Work, config: Config) -> int:
    """Bytes that the signs of all elements take: rows of the fast axis, each beginning with a byte of its own."""
    geometry = work.geometry
    bits = sign_group(geometry, work.itemsize)
    if fold := work.fold:  # a pass that reads plain tiles leaves room for one that does not
        blocks = 1 if geometry.channels_last else config.channel_blocks(geometry)
        return blocks * -(-geometry.values // fold.lanes) * -(-fold.run // bits)
    fast, edges = geometry.channels if geometry.channels_last else config.inner(geometry), config.edges
    return geometry.channels * geometry.values // (fast + edges) * (-(-fast // bits) + -(-edges // bits))


def hold(work: Work, config: Config, case: Case) -> str | None:
    """How tiles are held (kernels/holding.py), by assembly for CUDA; of 32 bits forward only: backward spills more."""
    if case.device.backend != "cuda" or devices.INTERPRETED:
        return None
    if work.itemsize > (4 if work.mode == "forward" else 2):
        return None
    return "packed" if config.packed else "loaded"


def resident_keywords(work: Work, config: Config, case: Case) -> dict[str, Any]:
    """The further constexprs of a resident program."""
    return {
        "HOLD": hold(work, config, case),
        "AT_ONCE": min(config.items(work.geometry), 2),
        "TOGETHER": kept_and_again(work, config)[1],
        "STAGES": config.stages,
    }


def deals(config: Config, case: Case) -> bool:
    """Whether one thread computes a channel's numbers for all others (kernels/channel.py): by assembly of CUDA's."""
    return (
        config.block_c > 1 and case.dtype != torch.float64 and case.device.backend == "cuda" and not devices.INTERPRETED
    )


def cut_plan(
    kernel: Any,
    case: Case,
    work: Work,
    config: Config,
    keywords: dict[str, Any],
    phases: list[dict[str, str]],
    always_counts: bool = False,
    sends: int = 0,
) -> Plan:
    """One launch for each phase, over all chunks of all blocks; it sends so many numbers to other processes."""
    geometry = work.geometry
    blocks, chunks = config.channel_blocks(geometry), config.chunks(geometry)
    programs = blocks * chunks
    if phases[0].get("PHASE") == "dataflow":
        programs = 2 * chunks * config.window * -(-blocks // config.window)
    if config.at_once:
        programs = min(programs, config.at_once)
    resident = kernel in (resident_forward_kernel, resident_backward_kernel)
    exchanges = work.mode not in UNMERGED and not (resident and chunks == 1)
    merged = merging(config, geometry, case.device)
    if "BLOCK_K" in kernel.arg_names:
        keywords = keywords | dict(zip(Merging.CONSTEXPRS, merged, strict=True))
    numbers = work.results * blocks * config.block_c * (max(merged.chunks, 2) + merged.spans)  # kernels/partials.py
    counted = SPACING.value * (2 + blocks + blocks * merged.spans)  # kernels/exchange.py
    return Plan(
        kernel=kernel,
        sizes=(
            geometry.channels,
            geometry.outer_size,
            *geometry.outer[1:],
            config.inner(geometry),
            blocks,
            chunks,
            *((config.tiles_per_chunk, config.window) if "window" in kernel.arg_names else ()),
            *steps(geometry, residual_last=True),
        ),
        launches=tuple(((programs,), keywords | phase) for phase in phases),
        partials=(numbers + sends,) if exchanges else (),
        counted=counted if exchanges or always_counts else 0,
        waits=resident and chunks > 1 and not config.at_once,
        config=config,
        sign_bytes=sign_bytes(work, config),
    )
