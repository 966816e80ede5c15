"""The forward of a module as torch.fx records it, or a TraceError where the record would say something else."""

from __future__ import annotations

import contextlib
import functools
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

from .premises import CONTAINERS, Children, Missing, Premises, Present, altered, same, snapshot


class Unknown:
    """Stands for what was read, and is no attribute of Python's: a child, a parameter or buffer, or missing."""


def record(
    module: nn.Module,
    written: type[nn.Module],
    training: bool,
    defaults: dict[str, Any],
    is_entered: Callable[[nn.Module], bool],
) -> tuple[fx.Graph, Premises]:
    """What the forward of a class calls for a module of it, in one phase, without changing the module."""
    twin = object.__new__(observed_class(written))
    reads: dict[str, Any] = {}
    vars(twin).update(vars(module), training=training, _reads=reads)
    recorder = Recorder(is_entered)
    with without_randomness():
        graph = recorder.trace(twin, defaults)
    for name, before in list(reads.items()):
        value = getattr(twin, name, Missing)
        if name in (*module._modules, "_modules"):
            del reads[name]
        elif before is Unknown:
            reads[name] = Present if isinstance(value, Tensor) else snapshot(value)
        elif not same(value, before):
            raise TraceError(f"the forward changes {name} of its module")
    return graph, Premises(reads, Children.of(module), recorder.entered)


class Observed(nn.Module):
    """A module that notes what its forward reads of it, and refuses to be changed."""

    def __init_subclass__(cls) -> None:
        """The class that is observed does not hear of it."""

    def __getattribute__(self, name: str) -> Any:
        asking = sys._getframe(1).f_globals.get("__name__", "")
        if asking.startswith(("torch.fx.", "torch.nn.modules.module", __name__)):
            return super().__getattribute__(name)
        own = super().__getattribute__("__dict__")
        if hasattr(nn.Module, name) and name not in own:
            raise TraceError(f"the forward asks its module for {name}")
        reads = own["_reads"]
        if name not in reads and not isinstance(getattr(type(self), name, None), property):
            reads[name] = Unknown
            value = super().__getattribute__(name)
            if type(value) is types.MethodType:
                reads[name] = value.__func__
            elif name != "_modules":
                reads[name], own[name] = snapshot(value), snapshot(value)
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise TraceError(f"the forward sets {name} of its module")

    def __delattr__(self, name: str) -> None:
        raise TraceError(f"the forward deletes {name} of its module")


@functools.cache
def observed_class(written: type[nn.Module]) -> type[Observed]:
    """A class of the same methods, whose objects are observed."""
    return type(written)(written.__name__, (Observed, written), {})


class Recorder(fx.Tracer):
    """Records what one forward calls; TraceError where the record would leave something out."""

    proxy_buffer_attributes = True

    def __init__(self, is_entered: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.is_entered = is_entered
        self.entered: list[str] = []
        self.modes = modes()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a child is one node, instead of what its own forward calls."""
        above = itertools.accumulate(module_qualified_name.split(".")[:-1], "{}.{}".format)
        within = all(isinstance(self.root.get_submodule(name), CONTAINERS) for name in above)
        enters = within and not altered(m) and self.is_entered(m)
        if enters:
            self.entered.append(module_qualified_name)
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
