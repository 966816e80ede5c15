"""One way to cut the work: strategy, tile, chunks, warps. Data and arithmetic only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import torch

from .geometry import BITS, FULL_ACCESS, SECTOR, Edges, Fold, Geometry, power_of_two
from .gpus import Device

Mode = Literal[
    "forward",
    "inference",
    "backward",
    "elementwise",
    "sums",
    "moments",
    "normalize",
    "gradients",
    "sample_forward",
    "sample_backward",
]
"""forward, backward: training; inference: evaluation; elementwise, sums: backward in one sweep, without or with sums.

Where several processes share a batch, "moments" and "normalize" are the halves of a training forward, "sums" and
"gradients" those of a backward.
"""

UNMERGED: tuple[Mode, ...] = ("inference", "elementwise", "normalize", "gradients")
"""One sweep, whose programs have nothing to merge."""

ONE_SWEEP: tuple[Mode, ...] = (*UNMERGED, "sums", "moments")
"""What reads its tensors but once, whatever the config."""

READ = {
    "forward": 1,
    "inference": 1,
    "backward": 2,
    "elementwise": 1,
    "sums": 2,
    "moments": 1,
    "normalize": 1,
    "gradients": 2,
    "sample_forward": 1,
    "sample_backward": 2,
}
"""How many tensors of the input's size a mode has to read (x, dy); residual and signs are in Work.read_beside."""

WRITTEN = {mode: 0 if mode in ("sums", "moments") else 1 for mode in READ}
"""The same for what it writes (y or dx)."""

Strategy = Literal["resident", "dataflow", "split"]
"""One launch that keeps its tiles in registers; one that reads them twice; two launches, or one sweep."""

Layout = Literal["planes", "runs", "rows"]
"""Channels-first, folded (kernels/fold.py) and channels-last."""

LAYOUTS: tuple[Layout, ...] = get_args(Layout)

Epilogue = Literal["none", "sign", "value"]
"""What a gradient takes beside dy and x - mean: nothing; z's sign; z. Forward: silu "value", else a residual "sign"."""


class Reading(NamedTuple):
    """A way to read the tensors of some work."""

    fold: Fold | None
    """In whole runs, or in plain tiles."""
    layout: Layout
    """How they lie then."""
    accesses: int
    """Elements that one access moves."""
    edges: Edges | None = None
    """What is read apart from the tiles."""


@dataclass(frozen=True)
class Work:
    """What a config is chosen for."""

    mode: Mode
    geometry: Geometry
    """Of all tensors that are walked, the one with the result's strides last."""
    dtype: torch.dtype
    """Of the input."""
    epilogue: Epilogue = "none"
    read_beside: float = 0.0
    """Elements of a residual, of its gradient or of signs that are read for each of the input."""
    written_beside: float = 0.0
    """The same for what is written."""

    @cached_property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    @property
    def results(self) -> int:
        """Numbers of each chunk and channel that are merged: kernels/moments.py, kernels/sums.py."""
        if self.mode in UNMERGED:
            return 0
        return 3 if self.mode in ("forward", "moments") and self.itemsize > 2 else 2

    @property
    def has_signs(self) -> bool:
        """Whether one bit per element is among what lies beside."""
        return self.read_beside % 1 + self.written_beside % 1 > 0

    @cached_property
    def readings(self) -> tuple[Reading, ...]:
        """The ways to read the tensors: plain tiles, if any, first, edges last; for sample norm plain tiles alone."""
        geometry, widest = self.geometry, FULL_ACCESS // self.itemsize
        plain: Layout = "rows" if geometry.channels_last else "planes"
        if any(strides[3 if geometry.channels_last else 4] != 1 for strides in geometry.strides):
            widest = 1
        alone = self.mode.startswith("sample")
        folds = (None,) if alone else geometry.folds(self.itemsize, self.has_signs)
        whole = tuple(
            Reading(fold, "runs" if fold else plain, min(widest, (fold or geometry).alignment)) for fold in folds
        )
        edges = None if alone else geometry.edges(self.itemsize)
        if not edges or (self.has_signs and folds[0]):
            return whole
        apart = Reading(None, plain, edges.alignment, edges)
        return (apart,) if self.has_signs else (*whole, apart)

    @cached_property
    def fold(self) -> Fold | None:
        """The first fold among the readings, in whose order signs lie; None if there is none."""
        return next((reading.fold for reading in self.readings if reading.fold), None)

    def read_by(self, config: Config) -> Reading:
        """The way in which a config reads them."""
        if config.edges:
            return self.readings[-1]
        return self.folded.get((config.lanes, config.block_c), self.readings[0])

    @cached_property
    def folded(self) -> dict[tuple[int, int], Reading]:
        """The readings of runs, by the lanes and the channels of a config's tile."""
        runs = (reading for reading in self.readings if reading.fold)
        return {(reading.fold.lanes, power_of_two(reading.fold.channels)): reading for reading in runs}


@dataclass(frozen=True)
class Config:
    """One way to run the kernels of a mode."""

    block_c: int
    block_o: int
    block_i: int
    """The tile: channels x outer x inner, powers of two; a folded one: runs of block_i lanes, block_o at a time."""
    tiles_per_chunk: int = 1
    """Tiles that one program takes: a resident one all at once, another one after the other."""
    num_warps: int = 4
    strategy: Strategy = "split"
    stages: int = 1
    """Tiles under way at once, where one follows the other: with more than one they pass through shared memory."""
    window: int = 1
    """Blocks of channels whose second halves follow each other in a dataflow."""
    registers: int | None = None
    """Most registers per thread, None to leave it to the compiler."""
    packed: bool = False
    """Whether a resident program keeps 16-bit tiles as they are, instead of the converted values (CUDA alone)."""
    rereads: int = 0
    """Tiles that a resident program does not keep but reads again, one after the other: the last of its chunk."""
    lanes: int = 0
    """Elements of a channel in a folded run, 0 for plain tiles."""
    edges: int = 0
    """Elements of each plane that are read apart from its tiles, which begin where wide accesses can."""
    at_once: int = 0
    """Programs that the GPU has to run all at once, each taking chunk after chunk; 0 for one a chunk, in any order."""

    def but(self, **changes: int | str | bool | None) -> Config:
        """The config with these changes, as dataclasses.replace makes it, but in a fifth of the time."""
        changed = object.__new__(Config)
        vars(changed).update(vars(self), **changes)
        return changed

    def tiles(self, geometry: Geometry) -> int:
        """Tiles of one block of channels."""
        if self.lanes:
            return math.ceil(math.ceil(geometry.values / self.lanes) / self.block_o)
        return math.ceil(geometry.outer_size / self.block_o) * math.ceil(self.inner(geometry) / self.block_i)

    def inner(self, geometry: Geometry) -> int:
        """The inner size of what is cut into tiles."""
        return geometry.inner - self.edges

    def chunks(self, geometry: Geometry) -> int:
        """Chunks of one block of channels."""
        return math.ceil(self.tiles(geometry) / self.tiles_per_chunk)

    def channel_blocks(self, geometry: Geometry) -> int:
        """How many blocks of channels there are."""
        return math.ceil(geometry.channels / self.block_c)

    def items(self, geometry: Geometry) -> int:
        """Most chunks that a program takes where all run at once; otherwise 0."""
        return math.ceil(self.chunks(geometry) * self.channel_blocks(geometry) / self.at_once) if self.at_once else 0

    @property
    def elements(self) -> int:
        """Elements of a tile."""
        return self.block_o * self.block_i * (1 if self.lanes else self.block_c)

    @property
    def held(self) -> int:
        """Elements of a tensor that a program holds at once: a tile, or if it is resident what it keeps of a chunk."""
        return self.elements * (self.tiles_per_chunk - self.rereads if self.strategy == "resident" else 1)


TOGETHER = 4
"""Most tiles, of all tensors that are read, which are loaded at once where they are read again."""


def most_together(mode: Mode) -> int:
    """The same of each tensor."""
    return TOGETHER // READ[mode]


def together(rereads: int, mode: Mode) -> int:
    """How many of so many tiles that are read again are loaded at once, of each tensor: one where there are few."""
    most = most_together(mode)
    return most if rereads >= 2 * most and rereads % most == 0 else 1


MERGED_A_THREAD = 16
"""Results of chunks that a thread loads at once."""

MOST_ROUNDS = 1
"""Pieces in which one program may merge all chunks, one piece after the other; with more, spans of them come first."""


class Merging(NamedTuple):
    """How the results of chunks are merged (kernels/partials.py): powers of two."""

    chunks: int
    """At least as many as there are."""
    span: int
    """How many neighbouring chunks are merged first: all, where one program merges all."""
    at_once: int
    """How many chunks' results, for all channels of a block, a program loads and merges in one piece."""

    CONSTEXPRS = "BLOCK_K", "SPAN", "BLOCK_M"
    """What kernels call them."""

    @property
    def spans(self) -> int:
        """How many spans there are; none where one program merges all chunks."""
        return self.chunks // self.span if self.span < self.chunks else 0

    @property
    def rounds(self) -> int:
        """Pieces that are merged one after the other, from a chunk's results to the channel's."""
        return self.span // self.at_once + math.ceil(self.spans / self.at_once)


def merging(config: Config, geometry: Geometry, device: Device) -> Merging:
    """How the results of a block's chunks are merged."""
    chunks = power_of_two(config.chunks(geometry))
    at_once = max(1, MERGED_A_THREAD * config.num_warps * device.warp_size // config.block_c)
    span = chunks if chunks <= MOST_ROUNDS * at_once else 1 << (chunks.bit_length() // 2)
    return Merging(chunks, span, min(span, at_once))


def edge_room(work: Work, config: Config) -> int:
    """Lanes that the edges of a plane take where signs are kept, which are those of whole bytes; otherwise 0."""
    bits = sign_group(work.geometry, work.itemsize)
    return math.ceil(config.edges / bits) * bits if work.has_signs else 0


def chunk_edges(work: Work, config: Config) -> int:
    """Lanes that a chunk's edges take of each channel (kernels/edges.py)."""
    planes, chunks = work.geometry.outer_size, config.chunks(work.geometry)
    if room := edge_room(work, config):
        return math.ceil(planes / chunks) * room
    return math.ceil(planes * config.edges / chunks)


def edge_lanes(work: Work, config: Config) -> int:
    """Lanes of a channel in a tile of edges: as many as a tile of interiors has accesses, or fewer if it need not.

    A pass that sums adds them to those of its tiles, thread by thread.
    """
    lanes = config.block_o * config.block_i // work.read_by(config).accesses
    return min(lanes, power_of_two(chunk_edges(work, config))) if work.mode in UNMERGED else lanes


def edge_tiles(work: Work, config: Config) -> int:
    """Tiles of edges that a chunk has."""
    return math.ceil(chunk_edges(work, config) / edge_lanes(work, config))


def sign_group(geometry: Geometry, itemsize: int) -> int:
    """How many signs of neighbours along the fast axis share a byte."""
    if fold := geometry.fold(itemsize):
        return min(BITS, power_of_two(fold.run))
    fast = geometry.channels if geometry.channels_last else geometry.inner
    return min(BITS, SECTOR // itemsize, power_of_two(fast))
