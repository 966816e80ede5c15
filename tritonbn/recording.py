"""The forward of a module as torch.fx records it, or a TraceError where the record would say something else."""

from __future__ import annotations

import contextlib
import enum
import itertools
import operator
import pickle
import random
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.graph import inplace_methods
from torch.fx.proxy import TraceError
from torch.nn.modules.module import _has_any_global_hook

PLAIN = (
    *(bool, int, float, complex, str, bytes, types.NoneType, type, types.FunctionType, types.BuiltinFunctionType),
    *(enum.Enum, torch.dtype, torch.device, torch.memory_format),
)
"""Types whose values never change."""
INTERNAL = vars(nn.Module()).keys() - {"training"} | {"_programs"}


class Recorder(fx.Tracer):
    """Records what one forward calls; TraceError where the record would leave something out."""

    proxy_buffer_attributes = True

    def __init__(self, is_entered: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.is_entered = is_entered
        self.entered: list[nn.Module] = []
        self.modes = modes()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a child is one node, instead of what its own forward calls."""
        enters = not altered(m) and self.is_entered(m)
        if enters:
            self.entered.append(m)
        return not enters

    def proxy(self, node: fx.Node) -> StandIn:
        """What the forward holds in place of a tensor."""
        return StandIn(node, self)

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """As torch.fx does, but in no context that the record would not have."""
        if modes() != self.modes:
            raise TraceError("the forward has a context, such as no_grad or autocast, or calls an autograd.Function")
        if kind == "get_attr" and "." in target:
            raise TraceError("the forward reads the tensors of another module, and so perhaps its settings")
        return super().create_node(kind, target, *args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        """As torch.fx does, but for collections whose type the record would not have."""
        kind = type(a)
        if issubclass(kind, (tuple, list, dict)) and kind not in (tuple, list, dict) and not hasattr(a, "_fields"):
            raise TraceError(f"{kind.__name__} would become a plain collection")
        return super().create_arg(a)


def modes() -> tuple[Any, ...]:
    """What a context around an operation would change."""
    asked = itertools.product((torch.is_autocast_enabled, torch.get_autocast_dtype), ("cpu", "cuda", "xpu"))
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *(ask(kind) for ask, kind in asked)


class StandIn(fx.Proxy):
    """A tensor while a forward is recorded: raises where that of torch.fx would answer what a tensor would not."""

    @property
    def __class__(self) -> type:
        asking = sys._getframe(1).f_globals.get("__name__", "")
        if not asking.startswith(("torch.fx.", "torch.nn.parameter")):
            raise TraceError("the forward asks for a type")
        return StandIn

    def __getattr__(self, k: str) -> Any:
        if callable(getattr(Tensor, k)):
            return super().__getattr__(k)
        return self.tracer.create_proxy("call_function", getattr, (self, k), {})

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("node", "tracer"):
            raise TraceError(f"the forward sets {name} of a tensor")
        super().__setattr__(name, value)

    def __iadd__(self, other: Any) -> StandIn:
        return self.tracer.create_proxy("call_function", add_in_place, (self, other), {})


def add_in_place(first: Any, second: Any) -> Any:
    """first += second."""
    return operator.iadd(first, second)


def refuse(self: StandIn, other: Any) -> StandIn:
    """An operator in place, which torch.fx would record as one that leaves its operand as it is."""
    raise TraceError("the forward has an operator in place")


for _name in inplace_methods.keys() - {"iadd", "setitem"}:
    setattr(StandIn, f"__{_name}__", refuse)


def settings(module: nn.Module) -> dict[str, Any]:
    """Copies of the attributes by which a forward may branch; TraceError where one can change unseen."""
    own = {name: snapshot(value) for name, value in vars(module).items() if name not in INTERNAL}
    return own | {"_modules": dict(module._modules)}


def snapshot(value: Any) -> Any:
    """A copy of an attribute that is equal to it for as long as it does not change."""
    if type(value) in (tuple, list, set):
        return type(value)(map(snapshot, value))
    if type(value) is dict:
        return {key: snapshot(each) for key, each in value.items()}
    if isinstance(value, PLAIN):
        return value
    raise TraceError(f"an attribute of type {type(value).__name__} can change unseen")


@contextlib.contextmanager
def without_randomness() -> Iterator[None]:
    """Raise TraceError where a random number is drawn, and put it back; show no warnings."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        after = torch.get_rng_state(), random.getstate(), np.random.get_state()
        torch.set_rng_state(before[0]), random.setstate(before[1]), np.random.set_state(before[2])
    if not torch.equal(after[0], before[0]) or pickle.dumps(after[1:]) != pickle.dumps(before[1:]):
        raise TraceError("the forward draws random numbers")


def altered(module: nn.Module) -> bool:
    """Whether calling this module does more than its class's forward."""
    own = vars(module)
    hooks = own["_forward_pre_hooks"] or own["_forward_hooks"] or own["_backward_pre_hooks"] or own["_backward_hooks"]
    return bool(hooks or "forward" in own or _has_any_global_hook())
