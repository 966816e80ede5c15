"""What was timed, as data: which work on which GPU, and every config's seconds or why it failed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from functools import lru_cache
from operator import attrgetter
from typing import Annotated, Any

import msgspec
import torch
import triton

from ..configs import Epilogue, Mode, Work
from ..devices import Device
from ..geometry import Geometry
from ..kernels.source import SOURCE

SHORTEST, LONGEST = 1e-9, 3600.0
"""Seconds."""

FORMAT = 1
"""Of the files: to be raised with every change of what is in them."""


@dataclass(frozen=True)
class Key:
    """Timings of equal keys may stand for each other."""

    gpu: str
    """Its name, architecture and number of SMs."""
    triton: str
    source: str
    """A hash of the kernels' source."""
    mode: Mode
    dtype: str
    epilogue: Epilogue
    beside: tuple[float, float]
    """What is read and written beside x, dy, y and dx, in elements."""
    layout: str
    accesses: int
    """Elements that one access moves."""
    sizes: tuple[int, ...]
    """Channels, outer and inner size, rounded up to three bits; if runs or edges may be read, what they are of."""


@dataclass(frozen=True)
class Timing:
    """A config and what came of it: the median time, or why there is none."""

    config: dict[str, int | bool | str | None]
    """Its choice, by name."""
    seconds: Annotated[float, msgspec.Meta(gt=0, lt=LONGEST)] | None
    failure: str = ""


@dataclass
class Run:
    """All timings of one geometry."""

    geometry: Geometry
    timings: list[Timing] = field(default_factory=list)

    def add(self, timings: Iterable[Timing]) -> None:
        """Keep these timings instead of older ones of the same configs."""
        newest = {choice_in(timing): timing for timing in (*self.timings, *timings)}
        self.timings = list(newest.values())


@dataclass
class Entry:
    """All runs of one key."""

    key: Key
    runs: list[Run] = field(default_factory=list)
    format: int = FORMAT

    def seconds(self, geometry: Geometry) -> dict[Choice, float]:
        """Of all choices that were timed for this geometry, or else for the last one that counts as alike."""
        exact = next((run for run in self.runs if run.geometry == geometry), None)
        return next((found for run in (exact, *reversed(self.runs)) if (found := seconds_of(run))), {})

    def exactly(self, geometry: Geometry) -> Run:
        """The timings of this geometry, from now on among the runs."""
        for run in self.runs:
            if run.geometry == geometry:
                return run
        self.runs.append(Run(geometry))
        return self.runs[-1]

    def merge(self, other: Entry) -> None:
        """Take over all timings of another entry."""
        for run in other.runs:
            self.exactly(run.geometry).add(run.timings)


def key_of(work: Work, device: Device) -> Key:
    """Under which key work on a device is kept."""
    geometry = work.geometry
    reading, fold = work.readings[0], work.fold
    run, edges = (fold.channels, fold.lanes) if fold else (), work.readings[-1].edges or ()
    sizes = (geometry.channels, geometry.outer_size, geometry.inner)
    return Key(
        gpu=f"{device.name}, {device.arch}, {device.sm_count} SMs",
        triton=triton.__version__,
        source=SOURCE.value,
        mode=work.mode,
        dtype=str(work.dtype).removeprefix("torch."),
        epilogue=work.epilogue,
        beside=(work.read_beside, work.written_beside),
        layout=reading.layout,
        accesses=reading.accesses,
        sizes=(*map(rounded_up, sizes), *run, *edges),
    )


def rounded_up(size: int) -> int:
    """To three significant bits: at most a fifth more than the size."""
    step = 1 << max(0, (size - 1).bit_length() - 3)
    return -(-size // step) * step


Choice = tuple[tuple[str, int | bool | str | None], ...]
"""What tells configs of the same work apart: their fields, but for what follows from the device and the sizes."""


def choice(config: Any) -> Choice:
    """The choice that a config of any kind is made from."""
    names, values = chosen_fields(type(config))
    return tuple(zip(names, values(config), strict=True))


@lru_cache
def chosen_fields(kind: type) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]:
    """Their names in order, and what gets their values."""
    names = tuple(sorted({f.name for f in fields(kind)} - {"registers", "at_once", "window"}))
    return names, attrgetter(*names)


def choice_in(timing: Timing) -> Choice:
    """The same of a timing, in whatever order its file has it."""
    return tuple(sorted(timing.config.items()))


def timing(config: Any, seconds: float | None, failure: str = "") -> Timing:
    """Of a config of any kind; a clock that says nothing sensible counts as a failure, no time as next to none."""
    if seconds is not None and not 0 <= seconds < LONGEST:
        seconds, failure = None, f"expected a time in seconds, got {seconds}"
    return Timing(dict(choice(config)), seconds if seconds is None else max(seconds, SHORTEST), failure)


def seconds_of(run: Run | None) -> dict[Choice, float]:
    """Of all choices that were timed."""
    return {choice_in(t): t.seconds for t in run.timings if t.seconds is not None} if run else {}


def failed(run: Run) -> set[Choice]:
    """The choices that did not run."""
    return {choice_in(t) for t in run.timings if t.seconds is None}


def encode(entries: Entry | list[Entry]) -> bytes:
    """As JSON, the same bytes for the same timings."""
    return msgspec.json.format(msgspec.json.encode(entries), indent=1) + b"\n"


def decode(data: bytes, key: Key | None = None) -> Entry:
    """An entry of this key, from bytes that anybody may have written; ValueError if they are anything else."""
    entry = msgspec.json.decode(data, type=Entry)
    return checked(entry, entry.key if key is None else key)


def decode_all(data: bytes) -> list[Entry]:
    """Several of them; ValueError if any is anything else."""
    return [checked(entry, entry.key) for entry in msgspec.json.decode(data, type=list[Entry])]


def checked(entry: Entry, key: Key) -> Entry:
    """The entry, if it is of this format and key."""
    if entry.format != FORMAT:
        raise ValueError(f"expected format {FORMAT}, got {entry.format}")
    if not hasattr(torch, entry.key.dtype) or not entry.key.dtype.isidentifier():
        raise ValueError(f"expected the name of a dtype, got {entry.key.dtype!r}")
    if entry.key != key:
        raise ValueError(f"expected timings of {key}, got {entry.key}")
    return entry
