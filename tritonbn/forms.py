"""What checks and plans depend on of tensors: of each, and of several, which are as they were as a rule."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

from torch import Tensor
from torch.nn import Parameter

try:
    from torch._C._dynamo.guards import TensorGuards
except ImportError:  # it is torch.compile's own
    TensorGuards = None

MOST = 4096

PLAIN = frozenset({Tensor, Parameter})
"""Classes that leave torch's operations to torch."""

_numbers: dict[tuple[Any, ...], int] = {}
"""A number for the forms of several tensors, which is found faster than they are."""

_unused = count()

_seen: dict[tuple[int, int], tuple[Callable[..., bool], int]] = {}
"""By the first of some tensors and how many they are: what says whether others are of their forms, and their number.

The first is no more than where to look: what is found there is asked about all tensors that are given.
"""


def form(tensor: Tensor | None) -> tuple[Any, ...] | None:
    """Of a tensor all that checks and plans depend on."""
    if tensor is None:
        return None
    own = None if tensor.__class__ in PLAIN else tensor.__class__
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.is_neg(), own


def forms(*tensors: Tensor | None) -> int:
    """A number for the forms of all, the same for the same ones.

    Those that a module has hardly ever change: torch compares them in a fifth of the time that it takes to read them.
    """
    place = id(tensors[0]), len(tensors)
    are_alike, number = _seen.get(place) or UNKNOWN
    if are_alike(*tensors):
        return number
    found = tuple(map(form, tensors))
    before, number = number, _numbers.get(found)
    if number is None:
        number = next(_unused)
        insert(_numbers, found, number)
    if None not in found:
        insert(_seen, place, (comparison(tensors, found) if number == before else never, number))
    return number


def comparison(tensors: tuple[Tensor, ...], found: tuple[Any, ...]) -> Callable[..., bool]:
    """What says whether tensors are of these forms, at least: of plain tensors, none of them given twice."""
    plain = PLAIN.issuperset(map(type, tensors)) and len({*map(id, tensors)}) == len(tensors)
    if TensorGuards is None or not plain:
        return never
    sizes, strides = ([list(each[fact]) for each in found] for fact in (0, 1))
    return TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check


def never(*_: Tensor) -> bool:
    """For tensors that have been seen but once, or cannot be compared."""
    return False


UNKNOWN = never, None


def insert(known: dict[Any, Any], key: Any, value: Any) -> None:
    """Keep it, in place of all others where they are too many."""
    if len(known) >= MOST:
        known.clear()
    known[key] = value
