"""What checks and plans depend on of tensors: of each, and of those of a call, which are as they were as a rule."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from ..backends import number_of_modes

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

_seen: dict[tuple[int, int, bool, bool], tuple[Callable[..., bool], int, int]] = {}
"""By `place` of some tensors: what says whether others are like them, their number, and how often it was found here.

The first is no more than where to look: what is found there is asked about all tensors that are given.
"""


def form(tensor: Tensor | None) -> tuple[Any, ...] | None:
    """Of a tensor all that checks and plans depend on."""
    return None if tensor is None else (tensor.shape, tensor.stride(), *kind(tensor))


def kind(tensor: Tensor) -> tuple[Any, ...]:
    """The same but for shape and strides."""
    own = None if tensor.__class__ in PLAIN else tensor.__class__
    return tensor.dtype, tensor.device, tensor.is_neg(), tensor.is_inference(), own


def recognized(*tensors: Tensor) -> int | None:
    """The number that `forms` gave to such tensors, if noted: torch's guards find it in a fifth of the time.

    They also fail under a transform or a trace that was not active when the number was noted.
    """
    if forward_ad._current_level >= 0 or number_of_modes():
        return None
    are_alike, number, _ = _seen.get(place(*tensors)) or UNKNOWN
    return number if are_alike(*tensors) else None


def place(*tensors: Tensor) -> tuple[int, int, bool, bool]:
    """Where to look for tensors like these: by the first one, by how many they are, and by two facts about the input.

    Whether it needs a gradient may change from call to call; inference mode the comparison does not always see.
    """
    x = tensors[-1]
    return id(tensors[0]), len(tensors), x.requires_grad, x.is_inference()


def forms(*tensors: Tensor) -> int:
    """A number for the forms of vectors and the kind of an input, which is the last: the same for the same ones."""
    *vectors, x = tensors
    found = (*map(form, vectors), kind(x))
    number = _numbers.get(found)
    if number is None:
        number = next(_unused)
        insert(_numbers, found, number)
    return number


def note(number: int, *tensors: Tensor) -> None:
    """Keep a number for `recognized`, if it is found here for the second time.

    A comparison takes five calls' time to make: where tensors change to and fro it is made anew ever more rarely.
    """
    if len(tensors) == 1:
        return  # an input alone, which is another one at each call
    here = place(*tensors)
    are_alike, before, times = _seen.get(here) or UNKNOWN
    if number != before:
        insert(_seen, here, (never, number, 0))
    else:
        times += 1
        is_due = times & (times - 1) == 0  # at 1, 2, 4, 8, ...
        insert(_seen, here, (comparison(*tensors) if is_due else are_alike, number, times))


def comparison(*tensors: Tensor) -> Callable[..., bool]:
    """What says whether tensors are as these, the last of any shape and strides: plain ones, none given twice."""
    plain = PLAIN.issuperset(map(type, tensors)) and len({*map(id, tensors)}) == len(tensors)
    if TensorGuards is None or not plain:
        return never
    *vectors, x = tensors
    free = [None] * x.dim()
    sizes, strides = ([*(list(fact(each)) for each in vectors), free] for fact in (Tensor.size, Tensor.stride))
    return TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check


def never(*_: Tensor) -> bool:
    """For tensors that have been seen but once, or cannot be compared."""
    return False


UNKNOWN = never, None, 0


def insert(known: dict[Any, Any], key: Any, value: Any) -> None:
    """Keep it, in place of all others where they are too many."""
    if len(known) >= MOST:
        known.clear()
    known[key] = value
