"""The forward of a module as torch.fx records it, or a TraceError where the record would say something else."""

from __future__ import annotations

import contextlib
import dis
import functools
import gc
import itertools
import operator
import pickle
import random
import re
import sys
import types
import warnings
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.graph import inplace_methods
from torch.fx.proxy import TraceError

from .premises import CONTAINERS, PLAIN, Children, Missing, Premises, Present, altered, same, snapshot

HELD = {name for name, value in vars(nn.Module()).items() if isinstance(value, dict)}
"""Where a module has its parameters, buffers, children and hooks."""

TRUSTED = {"torch", "tritonbn", "numpy", *sys.stdlib_module_names}
"""Packages whose code need not be looked at before it runs."""

EFFECTS = {"STORE_GLOBAL", "DELETE_GLOBAL", "STORE_ATTR", "DELETE_ATTR", "IMPORT_NAME", "POP_EXCEPT"}
"""Instructions that change what is there after a call; the last one is of `except`, which hides errors, and `with`."""

OUTSIDE = {
    *("sys", "os", "posix", "nt", "time", "datetime", "warnings", "_warnings", "logging"),
    *("torch.distributed", "torch.backends", "torch.accelerator", "torch.cuda", "torch.xpu", "torch.mps"),
}
"""Modules that act on or ask what is outside of the program."""

UNFIT = print, input, open, setattr, delattr, type, globals, eval, exec
"""What acts on the outside, or tells that a stand-in is one."""

QUERIES = re.compile(
    "autocast|inference_mode|is_tracing|is_scripting|is_compiling|is_dynamo_compiling|is_exporting|onnx_export|"
    "default_dtype|default_device|deterministic|float32_matmul|num_threads|num_interop|initial_seed|worker_info|"
    "(?<!grad)_enabled$|^(distributed|backends|accelerator|cuda|xpu|mps)$"
)
"""Names of functions whose answers are other ones when a program runs, and of torch's modules of such functions."""


class Unknown:
    """Stands for what was read, and is no attribute of Python's: a child, a parameter or buffer, or missing."""


def record(
    module: nn.Module,
    training: bool,
    defaults: dict[str, Any],
    is_entered: Callable[[nn.Module], bool],
    written_class: Callable[[nn.Module], type[nn.Module]],
) -> tuple[fx.Graph, Premises]:
    """What the written forward of a module calls, in one phase, without changing the module or what is in it."""
    twins = {part: object.__new__(observed_class(written_class(part))) for part in module.modules()}
    for part, twin in twins.items():
        vars(twin).update(vars(part), **held_by(part, twins), training=training, _reads={})
    recorder = Recorder(module, is_entered)
    with without_randomness(), without_effects():
        graph = recorder.trace(twins[module], defaults)
    read = {name: twins[part] for name, part in module.named_modules() if vars(twins[part])["_reads"]}
    called = [node.target.rpartition(".")[0] for node in graph.nodes if node.op == "call_module"]
    opened = {above for name in (*read, *called) for above in prefixes(name)}
    found = {name: settled(twin) for name, twin in read.items()}
    reads = {name: each for name, each in found.items() if each}
    return graph, Premises(reads, Children.of(module, opened), recorder.entered)


def held_by(module: nn.Module, twins: dict[nn.Module, Observed]) -> dict[str, types.MappingProxyType[str, Any]]:
    """What a module holds, with stand-ins for children and tensors, and nothing that can be changed."""

    def stand_in(value: Any) -> Any:
        return Untouched(torch.empty(0), requires_grad=False) if isinstance(value, Tensor) else twins.get(value, value)

    held = {name: vars(module)[name].items() for name in HELD & vars(module).keys()}
    return {name: types.MappingProxyType({key: stand_in(each) for key, each in items}) for name, items in held.items()}


def settled(twin: Observed) -> dict[str, Any]:
    """What the forward has read of a module, children apart; TraceError if it has changed any of it."""
    reads = {name: each for name, each in twin._reads.items() if name not in (*twin._modules, "_modules")}
    for name, before in reads.items():
        value = getattr(twin, name, Missing)
        if before is Unknown:
            reads[name] = Present if isinstance(value, Tensor) else snapshot(value)
        elif not same(value, before):
            raise TraceError(f"the forward changes {name} of a module")
    return reads


def prefixes(name: str) -> Iterator[str]:
    """The names of the modules above one, and its own."""
    return itertools.accumulate(name.split("."), "{}.{}".format)


class Untouched(nn.Parameter):
    """A parameter or buffer while a forward is recorded, which gets a StandIn of it when it reads it by its name."""

    @classmethod
    def __torch_function__(cls, function: Any, *_: Any) -> Any:
        """For whoever reaches it in another way."""
        raise TraceError("the forward uses tensors of a module but by their names")


class Observed(nn.Module):
    """A module that notes what its forward reads of it, and refuses to be changed."""

    def __init_subclass__(cls) -> None:
        """The class that is observed does not hear of it."""

    def __getattribute__(self, name: str) -> Any:
        asking = sys._getframe(1).f_globals.get("__name__", "")
        if asking.startswith(("torch.fx.", "torch.nn.modules.module", __name__)):
            return super().__getattribute__(name)
        if name == "__class__":
            if name in sys._getframe(1).f_code.co_names:  # unlike isinstance
                raise TraceError(f"the forward asks its module for {name}")
            return type(self).__bases__[1]
        own = super().__getattribute__("__dict__")
        if hasattr(nn.Module, name) and name not in (*own, "children", "named_children"):
            raise TraceError(f"the forward asks its module for {name}")
        reads = own["_reads"]
        if name not in reads and not isinstance(getattr(type(self), name, None), property):
            reads[name] = Unknown
            value = super().__getattribute__(name)
            if type(value) is types.MethodType and name not in own:
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

    def __init__(self, model: nn.Module, is_entered: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.model = model
        self.is_entered = is_entered
        self.entered: list[str] = []
        self.modes = modes()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a child is one node, instead of what its own forward calls."""
        *above, child = map(self.model.get_submodule, prefixes(module_qualified_name))
        within = all(isinstance(each, CONTAINERS) for each in above)
        enters = within and not altered(child) and self.is_entered(child)
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


@contextlib.contextmanager
def without_effects() -> Iterator[None]:
    """Raise TraceError before a function runs that would do, or ask, what a record leaves out."""
    before, seen, inner = sys.gettrace(), set(), set()

    def look_at(frame: types.FrameType, *_: Any) -> None:
        code = frame.f_code
        if code.co_name == "decorate_autocast":
            raise TraceError("the forward is decorated by autocast")
        if frame.f_globals.get("__name__", "").partition(".")[0] in TRUSTED or code in seen:
            return
        seen.add(code)
        inner.update(each for each in code.co_consts if isinstance(each, types.CodeType))
        closed_over = () if code in inner else code.co_freevars  # those of an inner function are the outer one's
        values = [frame.f_locals.get(name) for name in closed_over]
        check_code(code, ChainMap(frame.f_globals, frame.f_builtins), values)

    collects = gc.isenabled()
    gc.disable()  # what is called at a collection is not of the forward
    sys.settrace(look_at)
    try:
        yield
    finally:
        sys.settrace(before)
        if collects:
            gc.enable()


def check_code(code: types.CodeType, names: Mapping[str, Any], values: list[Any]) -> None:
    """Raise TraceError for code that does or asks what a record leaves out, by these global names or other values."""
    for instruction in dis.get_instructions(code):
        kind, name = instruction.opname, instruction.argval
        if kind in EFFECTS or (kind == "STORE_DEREF" and name in code.co_freevars):
            raise TraceError(f"{code.co_name} has effects, or hides them")
        if kind in ("LOAD_GLOBAL", "LOAD_ATTR", "LOAD_METHOD") and QUERIES.search(name):
            raise TraceError(f"{code.co_name} asks for {name}")
        if kind == "LOAD_GLOBAL":
            values.append(names.get(name))
    for value in values:
        if not is_fixed(value):
            raise TraceError(f"{code.co_name} uses a {type(value).__name__} of the outside")


def is_fixed(value: Any) -> bool:
    """Whether a global variable's value cannot change unseen, and neither acts on what is outside nor asks for it."""
    if type(value) is tuple:
        return all(map(is_fixed, value))
    if not isinstance(value, (*PLAIN, types.ModuleType)) or value in UNFIT:
        return False
    origin = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    return OUTSIDE.isdisjoint(prefixes(origin or ""))
