"""Who computes: the Triton kernels or ATen, chosen by a context manager, a decorator or the environment."""

from __future__ import annotations

import os
from contextlib import ContextDecorator
from contextvars import ContextVar, Token
from typing import Any, Literal, get_args

import torch

from .plan import INTERPRETED

Name = Literal["auto", "triton", "aten"]
NAMES: tuple[str, ...] = get_args(Name)
VARIABLE = "TRITONBN_BACKEND"
KERNEL_DEVICES = ("cuda", "xpu")

_chosen: ContextVar[str | None] = ContextVar("tritonbn_backend", default=None)


class backend(ContextDecorator):
    """Choose who computes, inside a `with` block or a decorated function; it may be nested, and is local to a thread.

    - "auto": a CUDA, HIP or XPU tensor goes to the Triton kernels; a CPU tensor does so under TRITON_INTERPRET=1; any
      other goes to ATen.
    - "triton": every tensor goes to the kernels, through whatever driver Triton has active.
    - "aten": every tensor goes to torch.nn.functional.batch_norm.

    Outside of it the environment variable TRITONBN_BACKEND decides, "auto" if unset. A backward pass runs where its
    forward pass ran. ValueError for any other name.
    """

    def __init__(self, name: Name) -> None:
        self.name = known(name, "backend")
        self._tokens: list[Token[str | None]] = []

    def __enter__(self) -> backend:
        self._tokens.append(_chosen.set(self.name))
        return self

    def __exit__(self, *exception: Any) -> None:
        _chosen.reset(self._tokens.pop())

    def _recreate_cm(self) -> backend:
        return backend(self.name)


def known(name: str, what: str) -> str:
    """The name itself, if it is a backend's."""
    if name not in NAMES:
        raise ValueError(f"{what}: expected one of {', '.join(map(repr, NAMES))}, got {name!r}")
    return name


def uses_kernels(x: torch.Tensor) -> bool:
    """Whether the backend in force sends this tensor to the Triton kernels."""
    name = _chosen.get() or known(os.environ.get(VARIABLE) or "auto", VARIABLE)
    if name == "auto":
        kind = x.device.type
        return kind in KERNEL_DEVICES or (INTERPRETED and kind == "cpu")
    return name == "triton"
