"""Who computes: the Triton kernels or ATen, chosen by a context manager, a decorator or the environment."""

from __future__ import annotations

import os
from contextvars import ContextVar
from types import NoneType
from typing import Any, Literal, get_args

import torch
from torch.autograd import forward_ad

from .choice.blocks import Block, known
from .launching.launch import INTERPRETED

Name = Literal["auto", "triton", "aten"]
NAMES: tuple[str, ...] = get_args(Name)
VARIABLE = "TRITONBN_BACKEND"
KERNEL_DEVICES = ("cuda", "xpu")

innermost_transform = torch._C._functorch.peek_interpreter_stack
"""Of torch.func, None outside of all."""

number_of_modes = torch._C._len_torch_dispatch_stack
number_of_function_modes = torch._C._len_torch_function_stack
"""One of which make_fx has where it records before autograd."""

traced_state = torch._C._get_tracing_state
"""Of torch.jit.trace, None outside of it."""

_variables, _key = os.environ._data, os.environ.encodekey(VARIABLE)
"""Where os.environ itself looks, which takes half a microsecond to say that a variable is not set."""

_chosen: ContextVar[tuple[str, ...]] = ContextVar("tritonbn_backend", default=())
"""The names of the blocks that this thread or task is in, innermost last."""


class backend(Block):
    """Choose who computes, inside a `with` block or a decorated function; it may be nested, and is local to a thread.

    - "auto": a CUDA, HIP or XPU tensor goes to the Triton kernels; a CPU tensor does so under TRITON_INTERPRET=1; any
      other goes to ATen.
    - "triton": every tensor goes to the kernels, through whatever driver Triton has active.
    - "aten": every tensor goes to torch's own operations.

    Outside of it the environment variable TRITONBN_BACKEND decides, "auto" if unset. A backward pass runs where its
    forward pass ran. Whatever the name, ATen computes inside torch.func's transforms, under forward-mode
    differentiation, while torch.jit traces, and for fake tensors and classes with operations of their own (DTensor). In
    graphs of torch.compile and torch.export ATen computes evaluation, unless the name is "triton"; a block has to be
    around the compiled call, not in it. On a GPU torch recomputes a checkpoint in a thread of its own, where only the
    variable and blocks inside the checkpointed function hold. Raises ValueError for any other name, TypeError where a
    coroutine or a generator is decorated.
    """

    chosen = _chosen

    def __init__(self, name: Name) -> None:
        self.name = self.value = known(name, NAMES, "backend")


def uses_kernels(x: torch.Tensor, *others: Any) -> bool:
    """Whether the backend in force sends this tensor to the Triton kernels, along with any others of a call."""
    if forward_ad._current_level >= 0 or innermost_transform() is not None:
        return False
    if ((number_of_modes() or number_of_function_modes()) and is_recorded()) or traced_state() is not None:
        return False
    if x.__class__ is not torch.Tensor and dispatches(x):
        return False
    if others and any(isinstance(other, torch.Tensor) and dispatches(other) for other in others):
        return False
    name = in_force()
    if name == "auto":
        return x.is_cuda or x.is_xpu or (INTERPRETED and x.is_cpu)
    return name == "triton"


def in_force() -> Name:
    """The innermost block's name, or the environment's."""
    chosen = _chosen.get()
    if chosen:
        return chosen[-1]
    return known(os.environ.get(VARIABLE) or "auto", NAMES, VARIABLE) if _key in _variables else "auto"


def dispatches(x: torch.Tensor) -> bool:
    """Whether its class computes torch's operations itself, and may have no memory that a kernel could read."""
    return type(x).__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl


def is_recorded() -> bool:
    """Whether tensors are fake, or every operation is written down: nothing that a kernel could take part in."""
    mode, kind = torch._C._get_dispatch_mode, torch._C._TorchDispatchModeKey
    before_autograd = torch._ops.mode_stack_state_for_pre_dispatch().count() > 0
    return mode(kind.FAKE) is not None or mode(kind.PROXY) is not None or before_autograd


def traces_kernels(x: torch.Tensor, training: bool) -> bool:
    """The same while torch.compile or torch.export traces: in evaluation only if the kernels are asked for by name.

    A graph is traced anew where a block changes the choice; the environment is read once.
    """
    if forward_ad._current_level >= 0 or type(innermost_transform()) is not NoneType:
        return False
    chosen = _traced.names
    name = chosen[-1] if chosen else known(os.environ.get(VARIABLE) or "auto", NAMES, VARIABLE)
    if name == "auto":
        kind = x.device.type
        return training and (kind in KERNEL_DEVICES or (INTERPRETED and kind == "cpu"))
    return name == "triton"


class Traced(tuple[str, ...]):
    """What torch.compile reads, and guards, in place of a ContextVar: a property that C computes."""

    names = property(_chosen.get)  # which gets this empty tuple as its default


_traced = Traced()
