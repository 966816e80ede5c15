"""Any shape, any strides, any axis, seen without a copy as (channel, outer, inner)."""

from __future__ import annotations

import math
from dataclasses import dataclass

WIDEST_ALIGNMENT = 16
OUTER_AXES = 3
MOST_AXES = OUTER_AXES + 2
"""Tensors of this rank or less can always be described: inner, channel and the outer axes."""


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

    @property
    def outer_size(self) -> int:
        """How many runs of `inner` a channel has."""
        return math.prod(self.outer)

    @property
    def values(self) -> int:
        """How many elements a channel has."""
        return self.outer_size * self.inner


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
        index_bits=64 if max(last, math.prod(shape)) >= 2**31 else 32,
    )
