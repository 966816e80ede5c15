"""Memory that a kernel may touch: that of the tensors of its launch, and what the programs of an SM share.

An access outside of it, or one that is not aligned to its width, is an error, as it may be on a GPU. Where two lanes
store different numbers to one address, one of them is there in the end: an error if they are of two warps of a program
and the memory is shared, not found if they are of one, nor between accesses of a program's warps to global memory.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable

import numpy as np
import torch
from races import DataRace
from torch import Tensor

POISON = 0xFF
"""Bytes that nobody wrote: NaN in every floating dtype."""


class Fault(BaseException):
    """An access that a GPU would end the launch for; no Exception, since Triton and the library answer those."""


class Global:
    """The storages of tensors, at their own addresses."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        bytes_of = {t.untyped_storage().data_ptr(): as_bytes(t) for t in tensors if t.untyped_storage().nbytes()}
        self.starts = sorted(bytes_of)
        self.storages = [bytes_of[start] for start in self.starts]

    def load(self, addresses: np.ndarray, size: int, count: int) -> list[np.ndarray]:
        """`count` elements of so many bytes from each address on."""
        values = [np.zeros(len(addresses), f"u{size}") for _ in range(count)]
        for lanes, cells, first in self.parts(addresses, size, count):
            for number, value in enumerate(values):
                value[lanes] = cells[first + number]
        return values

    def store(self, addresses: np.ndarray, values: list[np.ndarray]) -> None:
        """The elements of each address, the last lane's where several write to the same."""
        for lanes, cells, first in self.parts(addresses, values[0].dtype.itemsize, len(values)):
            for number, value in enumerate(values):
                cells[first + number] = value[lanes]

    def places(self, addresses: np.ndarray) -> np.ndarray:
        """The numbers of the storages that addresses lie in, if in any."""
        return np.searchsorted(self.starts, addresses, "right") - 1

    def parts(self, addresses: np.ndarray, size: int, count: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each storage: lanes that access it, its elements, and the first of them that each lane wants."""
        if (addresses % (size * count)).any():
            raise Fault(f"an access of {size * count} bytes at {addresses[addresses % (size * count) != 0][0]:#x}")
        found = []
        left = np.arange(len(addresses))
        while len(left):
            address = int(addresses[left[0]])
            place = bisect.bisect(self.starts, address) - 1
            start, storage = (self.starts[place], self.storages[place]) if place >= 0 else (0, ())
            inside = (addresses[left] >= start) & (addresses[left] + (size * count) <= start + len(storage))
            if not inside[0]:
                raise Fault(f"an access of {size * count} bytes at {address:#x}, outside of every tensor")
            lanes = left[inside]
            cells = storage[: len(storage) // size * size].view(f"u{size}")
            found.append((lanes, cells, (addresses[lanes] - start).astype(np.int64) // size))
            left = left[~inside]
        return found


class Shared:
    """Shared memory of every program that has a slot, and which warps have accessed it since their last barrier."""

    def __init__(self, slots: int, size: int, watched: bool) -> None:
        self.size = size
        self.stride = -(-size // 16) * 16
        self.bytes = np.full((slots, self.stride), POISON, np.uint8)
        self.readers, self.writers = np.zeros((2, slots, self.stride if watched else 0), np.uint32)

    def clear(self, slot: int) -> None:
        """Another program's."""
        self.bytes[slot] = POISON
        self.meet(slot)

    def meet(self, slot: int) -> None:
        """A barrier of all warps."""
        self.readers[slot] = self.writers[slot] = 0

    def load(self, slots: np.ndarray, warps: np.ndarray, at: np.ndarray, size: int, count: int) -> list[np.ndarray]:
        """`count` elements of so many bytes from each address on; DataRace if another warp wrote them just now."""
        first = self.first(slots, at, size, count)
        self.note(self.readers, warps, first * size, size * count)
        self.check(self.writers, warps, first * size, size * count, "written")
        cells = self.bytes.reshape(-1).view(f"u{size}")
        return [cells[first + number] for number in range(count)]

    def store(
        self, slots: np.ndarray, warps: np.ndarray, at: np.ndarray, values: list[np.ndarray], lands: bool = True
    ) -> None:
        """The elements of each address, unless they land at another time.

        DataRace if another warp just read them, or wrote something else.
        """
        size, count = values[0].dtype.itemsize, len(values)
        first = self.first(slots, at, size, count)
        self.check(self.readers, warps, first * size, size * count, "read")
        cells = self.bytes.reshape(-1).view(f"u{size}")
        for number, value in enumerate(values):
            differs = cells[first + number] != value
            self.check(self.writers, warps[differs], (first + number)[differs] * size, size, "written")
        self.note(self.writers, warps, first * size, size * count)
        for number, value in enumerate(values if lands else ()):
            cells[first + number] = value
            differs = cells[first + number] != value
            self.check(self.writers, warps[differs], (first + number)[differs] * size, size, "written")

    def first(self, slots: np.ndarray, at: np.ndarray, size: int, count: int) -> np.ndarray:
        """Which elements of all programs' the lanes want."""
        at = at.astype(np.int64) % 2**32
        wrong = (at % (size * count) != 0) | (at + size * count > self.size)
        if wrong.any():
            raise Fault(f"an access of {size * count} shared bytes of {self.size} at {at[wrong][0]}")
        return (slots * self.stride + at) // size

    def note(self, who: np.ndarray, warps: np.ndarray, begins: np.ndarray, size: int) -> None:
        """So many bytes are accessed by these warps, a bit of each."""
        if who.size:
            bits = np.uint32(1) << warps.astype(np.uint32)
            np.bitwise_or.at(who.reshape(-1), begins[:, None] + np.arange(size), bits[:, None])

    def check(self, who: np.ndarray, warps: np.ndarray, begins: np.ndarray, size: int, done: str) -> None:
        """DataRace if so many bytes have been accessed by other warps than these."""
        if who.size:
            others = (
                who.reshape(-1)[begins[:, None] + np.arange(size)] & ~(np.uint32(1) << warps.astype(np.uint32))[:, None]
            )
            if others.any():
                lane, byte = np.argwhere(others)[0]
                place = (begins[lane] + byte) % self.stride
                raise DataRace(f"shared byte {place} of warp {warps[lane]} is {done} by another without a barrier")


def as_bytes(tensor: Tensor) -> np.ndarray:
    """All that a tensor's storage holds."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy()
