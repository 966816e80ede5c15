"""What a call needs of memory beside its results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

Call = Callable[[], Any]


def saved_bytes(call: Call, known: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of a call, but its result and the tensors that it was given.

    The next layer keeps the result anyway.
    """
    given = {tensor.untyped_storage().data_ptr() for tensor in known}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = call()
    return sum(size for pointer, size in kept.items() if pointer not in pointers_of(result))


def pointers_of(result: Any) -> set[int]:
    """Where the tensors of a result begin."""
    return {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}


def peak_bytes(call: Call, device: torch.device) -> int | None:
    """Bytes that a call takes at most, its result included; None where nobody counts, as on a CPU."""
    if device.type == "cpu":
        return None
    module = torch.get_device_module(device)
    before = module.memory_allocated(device)
    module.reset_peak_memory_stats(device)
    call()
    return module.max_memory_allocated(device) - before
