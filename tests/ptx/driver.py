"""A Triton driver whose GPU is a machine for PTX: what is launched is compiled, and runs."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from torch import Tensor

from tritonbn import targets

from .machine import Machine

PACKED = {"fp32": "f", "fp64": "d"}
"""How floats are told by their bits."""


class Executing(targets.CompilingDriver):
    """Runs launches instead of listing them alone."""

    def __init__(self, name: str, slots: int, random: Random | None) -> None:
        super().__init__(name)
        self.number = f"executing for {name}, {id(self)}"
        self.slots, self.random = slots, random

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """What runs in place of a launch on a GPU."""
        note = super().launcher_cls(source, metadata)
        kinds = [source.signature.get(p.name, "constexpr") for p in source.fn.params]

        def launch(x: int, y: int, z: int, stream: int, function: Any, *values: Any) -> None:
            note(x, y, z, stream, function, *values)
            given = [pair for pair in zip(kinds, values[4:], strict=True) if pair[0] != "constexpr"]
            tensors = [value for _, value in given if isinstance(value, Tensor)]
            arguments = [bits(kind, value) for kind, value in given] + [0, 0]
            ptx, threads = self.launches[-1].code("ptx"), 32 * metadata.num_warps
            Machine(ptx, (x, y, z), threads, metadata.shared, arguments, tensors, self.slots, self.random).run()

        return launch


def bits(kind: str, value: Any) -> int:
    """An argument as the GPU is given it."""
    if isinstance(value, Tensor):
        return value.data_ptr()
    return int.from_bytes(struct.pack(PACKED[kind], value), "little") if kind in PACKED else int(value)


@contextmanager
def executing(name: str, slots: int = 10**6, seed: int | None = None) -> Iterator[list[targets.Launch]]:
    """Inside, kernels are compiled for a GPU or architecture and run on CPU tensors, and launches listed.

    So many programs run side by side; in an order that follows from the seed, or abreast without one.
    """
    with targets.driven_by(Executing(name, slots, None if seed is None else Random(seed))) as launches:
        yield launches
