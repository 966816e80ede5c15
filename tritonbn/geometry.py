"""Any shape, any strides, any axis, seen without a copy as (channel, outer, inner)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

WIDEST_ALIGNMENT = 16
"""Elements: more than that alike from row to row, or from plane to plane, gain nothing."""

LARGEST_TILE = 65536
"""Elements. Masked lanes of the last tile have offsets too, beyond those of real elements by no more than this."""

FULL_ACCESS = 16
"""Bytes of the widest access."""

SECTOR = 32
"""Bytes that memory moves at least."""

MOST_SHARED, MAY_SHARE = 96, 512
"""Bytes of a pixel up to which it matters that blocks of channels share a sector, and up to which it may matter."""

BITS = 8
"""Signs are kept so many to a byte, fewer where the fast axis or a sector is shorter."""

WIDE_ACCESS = 8
"""Bytes of an access that is wide enough by itself."""

SHORTEST_RUN = 256
LONGEST_RUN = 2048
"""Elements of a run that is folded."""

FILLED, NEARLY_FILLED = 0.9, 0.75
"""Which share of its lanes a run of pixels uses, and one with fewer lanes."""

MAY_BE_NARROW = 2**19
"""Elements of a tensor up to which narrow accesses of many programs may take less time than wide ones of a few."""

SHORTEST_INTERIOR = 64
"""Elements of a plane that are worth a reading of their own, apart from those at its edges."""

OUTER_AXES = 3
MOST_AXES = OUTER_AXES + 2
"""Tensors of this rank or less can always be described: inner, channel and the outer axes."""


@dataclass(frozen=True)
class Fold:
    """Runs of memory that several channels share, read as one (kernels/fold.py)."""

    lanes: int
    """Elements of each channel in a run."""
    channels: int
    """Channels of a run."""
    alignment: int
    """A power of two that divides the run and the steps between runs."""
    bound: int
    """A power of two that also divides where the last run ends, which may lack elements."""

    @property
    def run(self) -> int:
        """Elements of a run."""
        return self.lanes * self.channels


class Edges(NamedTuple):
    """What planes of an odd size have beside their interiors, which wide accesses can reach (kernels/edges.py)."""

    each: int
    """Elements of a plane that belong to its edges."""
    alignment: int
    """A power of two that divides the interior, and the place where it begins."""


@dataclass(frozen=True)
class Geometry:
    """How one or more tensors of one shape are walked together.

    The reduced axes are sorted by stride and merged wherever every tensor allows it: the fastest is `inner`, the rest
    are `outer`, at most three, slowest first.
    """

    channels: int
    outer: tuple[int, int, int]
    outer_rank: int
    inner: int
    strides: tuple[tuple[int, int, int, int, int], ...]
    """For each tensor, in elements: of the three outer axes, of the channel, of inner."""
    channels_last: bool
    """Whether the channel is the fastest axis, instead of inner."""
    alignment: int
    """A power of two that divides the size of the fastest axis and every stride but its own."""
    index_bits: int
    """32, or 64 where an offset or a count can pass 2^31."""

    @cached_property
    def outer_size(self) -> int:
        """How many runs of `inner` a channel has."""
        return math.prod(self.outer)

    @property
    def is_one_plane(self) -> bool:
        """Whether all elements are one run of `inner`, which nothing precedes."""
        return self.channels * self.outer_size == 1

    def folds(self, itemsize: int, signs: bool) -> tuple[Fold | None, ...]:
        """The ways to read the tensors, among which a config chooses: None for plain tiles, which come first.

        Where `fold` gives runs, signs always lie as these do, so with signs there is no other way.
        """
        fold = self.fold(itemsize)
        if not fold:
            may = self.may_fold(itemsize, signs)
            return (None, *self.pixel_folds(FULL_ACCESS // itemsize)) if may else (None,)
        if signs:
            return (fold,)
        plain = (None,) if self.values * self.channels <= MAY_BE_NARROW else ()
        if self.channels_last:
            return (*plain, *self.pixel_folds(FULL_ACCESS // itemsize))
        narrower = (other for other in self.plane_folds() if other.channels < fold.channels)
        return (*plain, fold, *(other for other in narrower if other.alignment > self.alignment))

    def may_fold(self, itemsize: int, signs: bool = True) -> bool:
        """Whether pixels may be read as runs or not: signs lie alike if no two pixels share a byte of them."""
        return not (signs and self.channels % BITS) and self.shares_sectors(itemsize, MAY_SHARE)

    def fold(self, itemsize: int) -> Fold | None:
        """How to read whole runs, if by itself the fast axis cannot be read 8 bytes at a time and runs do better.

        Or if a pixel is less than an access, or blocks of channels would share sectors of memory. Follows from sizes
        and strides alone, so that every pass over the same tensors folds them alike.
        """
        is_tiny = self.channels_last and self.channels * itemsize < FULL_ACCESS
        shares = self.shares_sectors(itemsize, MOST_SHARED) and not self.may_fold(itemsize)
        is_wide = self.alignment * itemsize >= (FULL_ACCESS if is_tiny else WIDE_ACCESS)
        if is_wide and not shares:
            return None
        whole = next(self.pixel_folds(FULL_ACCESS // itemsize) if self.channels_last else self.plane_folds(), None)
        if whole is None or whole.alignment < self.alignment or (whole.alignment == self.alignment and not shares):
            return None
        return whole

    def edges(self, itemsize: int) -> Edges | None:
        """How to read the interiors of planes by wide accesses, where planes begin anywhere in memory.

        A plane has to begin equally far behind an aligned address in all tensors. None if not, or if it gains little.
        """
        first, *others = self.strides
        apart = (step - firsts for strides in others for step, firsts in zip(strides[:4], first[:4], strict=True))
        alignment = math.gcd(FULL_ACCESS // itemsize, *apart)
        if self.alignment * itemsize >= WIDE_ACCESS or alignment * itemsize < WIDE_ACCESS:
            return None
        dense = all(strides[4] == 1 for strides in self.strides)
        interior = (self.inner - alignment + 1) // alignment * alignment
        if self.channels_last or not dense or interior < SHORTEST_INTERIOR:
            return None
        return Edges(self.inner - interior, alignment)

    def shares_sectors(self, itemsize: int, most: int) -> bool:
        """Whether the pixels of a channels-last tensor, of several blocks of channels each, end within a sector."""
        several = self.channels & (self.channels - 1) != 0 and self.channels * itemsize <= most
        return self.channels_last and several and self.channels * itemsize % SECTOR != 0

    def pixel_folds(self, access: int) -> Iterator[Fold]:
        """Channels-last and dense: a run is as many whole pixels, in accesses of full width, as fill a power of two.

        Or fewer, for tiles of fewer elements, which may fill theirs a little worse.
        """
        dense = all(strides[3:] == (1, self.channels) for strides in self.strides)
        if not dense or self.outer_size > 1 or self.channels > LONGEST_RUN // 8:
            return
        pixels = access // math.gcd(access, self.channels)
        runs = [length // (self.channels * pixels) * pixels for length in (SHORTEST_RUN, 512, 1024, LONGEST_RUN)]
        used = {lanes: used_lanes(lanes * self.channels) for lanes in runs}
        first = next((lanes for lanes in runs if used[lanes] >= FILLED), max(runs, key=used.__getitem__))
        shorter = [lanes for lanes in runs if lanes < first and used[lanes] >= NEARLY_FILLED]
        for lanes in (first, *shorter[-1:]):
            alignment = math.gcd(WIDEST_ALIGNMENT, lanes * self.channels)
            yield Fold(lanes, self.channels, alignment, math.gcd(alignment, self.values * self.channels))

    def plane_folds(self) -> Iterator[Fold]:
        """Channels-first with dense planes: a run is the planes of 8 channels, or of more where they are tiny.

        Or of fewer, in narrower accesses, for programs of their own.
        """
        dense = all(strides[3:] == (self.inner, 1) for strides in self.strides)
        if not dense or self.channels == 1 or self.inner > LONGEST_RUN // 8:
            return
        channels = 8
        while 2 * channels * self.inner <= SHORTEST_RUN:
            channels *= 2
        channels = min(channels, power_of_two(self.channels))
        steps = [step for strides in self.strides for step in strides[: self.outer_rank]]
        while channels > 1:
            ends = self.channels % channels * self.inner
            alignment = math.gcd(WIDEST_ALIGNMENT, channels * self.inner, ends, *steps)
            yield Fold(self.inner, channels, alignment, alignment)
            channels //= 2

    @cached_property
    def values(self) -> int:
        """How many elements a channel has."""
        return self.outer_size * self.inner


def power_of_two(size: int) -> int:
    """The least power of two that is not below size."""
    return 1 << (size - 1).bit_length()


def used_lanes(length: int) -> float:
    """Which share of a power of two is used by so many lanes."""
    return length / power_of_two(length) if length else 0.0


def merged_axes(shape: tuple[int, ...], axis: int, *strides: tuple[int, ...]) -> list[tuple[int, tuple[int, ...]]]:
    """The axes but `axis`, slowest first in the last tensor, those merged that every tensor lets: sizes and strides."""
    reduced = [d for d in range(len(shape)) if d != axis and shape[d] != 1]
    reduced.sort(key=lambda d: strides[-1][d], reverse=True)
    runs: list[tuple[int, tuple[int, ...]]] = []
    for d in reduced:
        size, steps = shape[d], tuple(tensor[d] for tensor in strides)
        if runs and all(slow == size * fast for slow, fast in zip(runs[-1][1], steps, strict=True)):
            size *= runs.pop()[0]
        runs.append((size, steps))
    return runs


def describable(shape: tuple[int, ...], axis: int, *strides: tuple[int, ...]) -> bool:
    """Whether `describe` takes these tensors: always up to MOST_AXES axes."""
    return len(shape) <= MOST_AXES or len(merged_axes(shape, axis, *strides)) <= OUTER_AXES + 1


def describe(shape: tuple[int, ...], axis: int, *strides: tuple[int, ...]) -> Geometry:
    """The geometry of tensors of one shape with channels along `axis`, in the order in which the last tensor lies.

    ValueError if more than three axes remain outside `inner`, which takes a rank of 6 or more.
    """
    runs = merged_axes(shape, axis, *strides)
    inner, inner_steps = runs.pop() if runs else (1, (0,) * len(strides))
    if len(runs) > OUTER_AXES:
        raise ValueError(
            f"expected at most {OUTER_AXES + 1} axes that cannot be merged, got {len(runs) + 1} of {shape}"
        )

    channels = shape[axis]
    channel_steps = tuple(tensor[axis] if channels > 1 else 0 for tensor in strides)
    channels_last = channels > 1 and (inner == 1 or channel_steps[-1] < inner_steps[-1])
    padding = [(1, (0,) * len(strides))] * (OUTER_AXES - len(runs))
    axes = [*runs, *padding, (channels, channel_steps), (inner, inner_steps)]
    per_tensor = tuple(zip(*(steps for _, steps in axes), strict=True))
    fast, slow = (channels, inner_steps) if channels_last else (inner, channel_steps)
    sizes = [size for size, _ in axes]
    last = max(sum((size - 1) * step for size, step in zip(sizes, steps, strict=True)) for steps in per_tensor)
    return Geometry(
        channels=channels,
        outer=tuple(sizes[:OUTER_AXES]),
        outer_rank=max(1, len(runs)),
        inner=inner,
        strides=per_tensor,
        channels_last=channels_last,
        alignment=math.gcd(WIDEST_ALIGNMENT, fast, *slow, *(step for _, steps in runs for step in steps)),
        index_bits=64 if max(last, math.prod(shape)) > 2**31 - LARGEST_TILE else 32,
    )
