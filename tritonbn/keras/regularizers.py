"""Keras 1.2's weight regularizers: sum(l1 |w|) + sum(l2 w^2), without a factor of 1/2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

Regularizer = Callable[[Tensor], Tensor | float]
"""f(vector) returns a term of the loss, a tensor of no axes or a number."""


class L1L2Regularizer:
    """l1 times the sum of magnitudes plus l2 times the sum of squares; Keras calls it WeightRegularizer too."""

    def __init__(self, l1: float = 0.0, l2: float = 0.0) -> None:
        self.l1 = float(l1)
        self.l2 = float(l2)

    def __call__(self, vector: Tensor) -> Tensor:
        """The term of this vector, in float32 or more."""
        vector = vector.to(torch.promote_types(vector.dtype, torch.float32))
        return self.l1 * vector.abs().sum() + self.l2 * vector.square().sum()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(l1={self.l1}, l2={self.l2})"

    def get_config(self) -> dict[str, Any]:
        """What `get` makes the same regularizer of."""
        return {"name": type(self).__name__, "l1": self.l1, "l2": self.l2}


WeightRegularizer = L1L2Regularizer


def l1(l: float = 0.01) -> L1L2Regularizer:  # noqa: E741, Keras' name
    """l times the sum of magnitudes."""
    return L1L2Regularizer(l1=l)


def l2(l: float = 0.01) -> L1L2Regularizer:  # noqa: E741, Keras' name
    """l times the sum of squares."""
    return L1L2Regularizer(l2=l)


def l1l2(l1: float = 0.01, l2: float = 0.01) -> L1L2Regularizer:
    """Both."""
    return L1L2Regularizer(l1=l1, l2=l2)


BY_NAME: dict[str, Callable[..., L1L2Regularizer]] = {
    "l1": l1,
    "l2": l2,
    "l1l2": l1l2,
    "L1L2Regularizer": L1L2Regularizer,
    "WeightRegularizer": WeightRegularizer,
}


def get(identifier: str | Mapping[str, Any] | Regularizer | None) -> Regularizer | None:
    """A regularizer from a name, a dict {'name', 'l1', 'l2'}, or a callable of the vector; None is none.

    In a dict the name gives what is left out: {'name': 'l1'} is l1(0.01). ValueError for anything else, also for what
    has to be called to make a regularizer, such as l1 itself; TypeError for an unknown key of a dict.
    """
    if isinstance(identifier, type) or any(identifier is each for each in BY_NAME.values()):
        name = identifier.__name__
        raise ValueError(f"Invalid regularizer: {name} (expected what a call of it gives, such as {name}(0.01))")
    if identifier is None or callable(identifier):
        return identifier
    given = {"name": identifier} if isinstance(identifier, str) else identifier
    name = given.get("name") if isinstance(given, Mapping) else None
    if not isinstance(name, str) or name not in BY_NAME:
        raise ValueError(
            f"Invalid regularizer: {name or identifier} (expected None, a callable, a name of {', '.join(BY_NAME)}, "
            "or a dict of name, l1 and l2)"
        )
    spelt = {"l": name} if name in ("l1", "l2") else {}
    factors = {spelt.get(key, key): value for key, value in given.items() if key != "name"}
    if unknown := factors.keys() - {"l1", "l2"}:
        raise TypeError(f"regularizer {name}: expected l1 and l2, got {', '.join(sorted(map(str, unknown)))}")
    return L1L2Regularizer(**(vars(BY_NAME[name]()) | factors))


def term_of(regularizer: Regularizer, vector: Tensor) -> Tensor:
    """The regularizer's term of this vector as a tensor of no axes; ValueError if it is none."""
    term = regularizer(vector)
    if not isinstance(term, (Tensor, Real)) or getattr(term, "ndim", 0):
        raise ValueError(
            f"regularizer {regularizer}: expected it to give a number or a tensor of no axes, got {term!r}"
        )
    return torch.as_tensor(term, device=vector.device)
