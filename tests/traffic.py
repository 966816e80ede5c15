"""What the programs of a launch ask of each tensor, counted in Triton's interpreter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
from interleaving import element_bytes
from torch import Tensor
from triton.runtime import interpreter

builder = interpreter.interpreter_builder


@dataclass
class Traffic:
    """Bytes by the name of the kernel's argument, over all launches."""

    loaded: Counter[str] = field(default_factory=Counter)
    stored: Counter[str] = field(default_factory=Counter)
    exchanged: Counter[str] = field(default_factory=Counter)
    """By atomic operations."""
    tensors: list[tuple[int, int, str]] = field(default_factory=list)
    """First address, the one after the last, and name of what the present launch was given."""

    def count(self, bytes_of: Counter[str], pointers: Any, mask: np.ndarray) -> None:
        """Note an access to the elements under a mask, which all lie in one tensor."""
        addresses = pointers.data[mask]
        if addresses.size:
            at = int(addresses.min())
            name = next(name for first, end, name in self.tensors if first <= at < end)
            bytes_of[name] += addresses.size * element_bytes(pointers)

    def besides(self, *names: str) -> int:
        """Bytes of all tensors but these."""
        everything = self.loaded + self.stored + self.exchanged
        return everything.total() - sum(everything[name] for name in names)


def span(tensor: Tensor) -> tuple[int, int]:
    """The addresses between which a tensor lies."""
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


@contextmanager
def counted() -> Iterator[Traffic]:
    """Inside, all accesses of kernels to memory are counted; inside of `side_by_side`, if programs wait."""
    traffic = Traffic()
    launch, load, store = interpreter.GridExecutor.__call__, builder.create_masked_load, builder.create_masked_store
    rmw, cas = builder.create_atomic_rmw, builder.create_atomic_cas

    def launches(executor: Any, *arguments: Any, **keywords: Any) -> None:
        given = [*zip(executor.arg_names, arguments, strict=False), *keywords.items()]
        traffic.tensors = [(*span(value), name) for name, value in given if isinstance(value, Tensor)]
        launch(executor, *arguments, **keywords)

    def loads(pointers: Any, mask: Any, *rest: Any) -> Any:
        traffic.count(traffic.loaded, pointers, mask.data)
        return load(pointers, mask, *rest)

    def stores(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        traffic.count(traffic.stored, pointers, mask.data)
        return store(pointers, value, mask, *rest)

    def exchanges(operation: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        traffic.count(traffic.exchanged, pointers, mask.data)
        return rmw(operation, pointers, value, mask, *rest)

    def compares(pointers: Any, *rest: Any) -> Any:
        traffic.count(traffic.exchanged, pointers, np.ones(pointers.data.shape, bool))
        return cas(pointers, *rest)

    with (
        mock.patch.object(interpreter.GridExecutor, "__call__", launches),
        mock.patch.multiple(
            builder,
            create_masked_load=loads,
            create_masked_store=stores,
            create_atomic_rmw=exchanges,
            create_atomic_cas=compares,
        ),
    ):
        yield traffic
