"""Batch norm, sum and activation made one call, in the forwards of a model: what convert(model, fuse=True) does.

torch.fx records the forward of each module by itself; the modules that it calls are one node each. Only calls change,
never a module's settings, so what is not called from a record computes what it always did. A record says less than the
code it is taken from: it is used where it must say the same, and elsewhere the code runs.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import itertools
import operator
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized

from ..functional import Activation
from ..modules import _KernelBatchNorm, future_class
from .premises import Premises, altered
from .recording import add_in_place, record

SUMS = {operator.add: operator.add, torch.add: operator.add, "add": operator.add}
SUMS_IN_PLACE = {add_in_place: operator.iadd, "add_": operator.iadd}
ACTIVATIONS: dict[type, Activation | None] = {
    types.NoneType: None,
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.SiLU: "silu",
}
FUNCTIONS: dict[Any, type[nn.Module]] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, "relu", "relu_"), nn.ReLU),
    F.leaky_relu: nn.LeakyReLU,
    F.silu: nn.SiLU,
}
"""Functions, and methods by name, that take the arguments of the module's constructor after their input."""
TAKERS: list[Callable[..., Tensor]] = [_KernelBatchNorm.forward]
"""Forwards of batch norms that take an epilogue; research.FrozenBatchNorm adds its own."""
FORWARDS = {kind: getattr(kind, "forward", None) for kind in ACTIVATIONS}
"""As torch wrote them: whoever gives a class another one wants that to run."""


def fuse_forwards(model: nn.Module) -> None:
    """Fuse what can be fused in the forward of every module of a model, in place, and leave the rest as it is."""
    for module in list(model.modules()):
        fuse_forward(module)


def fuse_forward(module: nn.Module) -> None:
    """Give a module those programs of its forward that have something fused in them, and the class that runs them."""
    programs = Programs()
    if any(map(takes_epilogue, module.modules())):
        for training, grad in itertools.product((True, False), repeat=2):
            with contextlib.suppress(Exception), torch.set_grad_enabled(grad):
                program = program_of(module, training)
                if program.calls:
                    programs[training, grad] = program
    if programs and not isinstance(module, Fused):
        with contextlib.suppress(Exception):  # a class with slots, or one that nobody may inherit from
            module.__class__ = fused_class(type(module))
    if isinstance(module, Fused):
        vars(module)["_programs"] = programs


class Programs(dict[tuple[bool, bool], "Program"]):
    """By module.training and torch.is_grad_enabled(). Pickled as empty: what is loaded makes its own."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Programs, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Programs:
        """Those of a copied module: their premises have the copies of its children."""
        return Programs(copy.deepcopy(dict(self), memo))


@dataclass(frozen=True)
class Program:
    """A forward as recorded, with something fused in it, and what makes it the same as the one that was written."""

    forward: Callable[..., Any]
    written: Callable[..., Any]
    """Its source: what the class's forward was."""
    premises: Premises
    inputs: int
    """How many arguments have no default."""
    calls: list[str]
    """What each fused call does, such as "bn2 + residual + relu"."""
    moved: list[str]
    """Batch norms that it calls later than the code does."""

    def serves(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether it says of this call what the code does."""
        return (
            not kwargs
            and len(args) == self.inputs
            and all(type(argument) in (Tensor, nn.Parameter) for argument in args)
            and self.stands(module)
            and not any(altered(module.get_submodule(name)) for name in self.moved)
        )

    def stands(self, module: nn.Module) -> bool:
        """Whether it still says of this module what the code does."""
        return module.written.forward is self.written and self.premises.hold(module)


_forwards: weakref.WeakValueDictionary[Any, Callable[..., Any]] = weakref.WeakValueDictionary()
"""By their code, so that torch.compile can tell that two modules have the same."""


class Fused(nn.Module):
    """What a module with programs has beside what it had before."""

    written: type[nn.Module]
    """The class it was of."""
    _programs = Programs()

    def __init_subclass__(cls, **options: Any) -> None:
        """The class that was written hears of those who inherit from it, but not of its fused self."""
        if "written" not in vars(cls):
            super().__init_subclass__(**options)

    def extra_repr(self) -> str:
        """As before, and the calls that are fused."""
        calls = dict.fromkeys(call for program in self._programs.values() for call in program.calls)
        return ", ".join(filter(None, (super().extra_repr(), f"fused=[{', '.join(calls)}]")))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return restored, (self.written,), *super().__reduce_ex__(max(2, protocol))[2:]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not (self._programs and all(program.stands(self) for program in self._programs.values())):
            fuse_forward(self)


@functools.cache
def fused_class(written: type[nn.Module]) -> type[Fused]:
    """A class whose forward runs the program that serves, or else the forward that was written."""

    @functools.wraps(written.forward)
    def forward(self: Fused, *args: Any, **kwargs: Any) -> Any:
        program = self._programs.get((self.training, torch.is_grad_enabled()))
        if program is not None and program.serves(self, args, kwargs):
            return program.forward(self, *args)
        return written.forward(self, *args, **kwargs)

    same = {name: getattr(written, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(written.__name__, (Fused, written), {**same, "forward": forward, "written": written})


def restored(written: type[nn.Module]) -> Fused:
    """An object of the fused class, before its state is set."""
    kind = fused_class(written)
    return kind.__new__(kind)


def written_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module without what is fused in it."""
    return module.written if isinstance(module, Fused) else type(module)


def program_of(module: nn.Module, training: bool) -> Program:
    """The program of a module's forward in one phase; an exception of any type where there can be none."""
    written = written_class(module)
    parameters = list(inspect.signature(written.forward).parameters.values())[1:]
    defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
    if (written.__reduce__, written.__reduce_ex__) != (object.__reduce__, object.__reduce_ex__):
        raise TraceError("a class with a way of its own to copy its objects")
    if is_parametrized(module):
        raise TraceError("a class that torch has made of the one that was written, and will want to unmake")
    graph, premises = record(module, training, defaults, is_entered, written_class)
    calls, moved = fuse_graph(graph, module)
    code = graph.python_code("self")
    forward = type(fx.GraphModule(module, graph)).forward
    forward = _forwards.setdefault((code.src, *code.globals.items()), forward)
    return Program(forward, written.forward, premises, len(parameters) - len(defaults), calls, moved)


def fuse_graph(graph: fx.Graph, root: nn.Module) -> tuple[list[str], list[str]]:
    """Put one call in place of each batch norm and what follows it: what these calls do, and what is called later."""
    calls, moved = [], []
    for norm in reversed(list(graph.nodes)):  # of two summands the later one takes the other
        if norm.op != "call_module" or not takes_epilogue(root.get_submodule(norm.target)):
            continue
        if norm.kwargs or not len(norm.args) == len(norm.all_input_nodes) == 1:
            continue
        last, residual, operation, activated = norm, *sum_after(norm, root), None
        if residual is not None:
            last = sole_user(norm)
            moved += [norm.target] if norm.next is not last else []
        kind, *given = activation_after(last, root)
        if residual is not None and ACTIVATIONS[kind] == "silu" and is_used_after(residual, last):
            kind, given = types.NoneType, []  # which saves no residual: what comes later may change it in place
        if kind is not types.NoneType:
            activated = sole_user(last)
        elif residual is None:
            continue
        with graph.inserting_before(last):
            arguments = [graph.create_node("get_attr", norm.target), norm.args[0], residual]
            if activated is not None and activated.op == "call_module":
                arguments.append(graph.create_node("get_attr", activated.target))
            call = graph.call_function(one_call(operation, kind, *given), tuple(arguments))
        (activated or last).replace_all_uses_with(call)
        for node in dict.fromkeys((activated, last, norm)):
            if node is not None:
                graph.erase_node(node)
        names = norm.target, residual and "residual", ACTIVATIONS[kind]
        calls.insert(0, " + ".join(filter(None, names)))
    return calls, moved


def is_used_after(value: fx.Node, node: fx.Node) -> bool:
    """Whether anything behind a node uses this value."""
    nodes = list(value.graph.nodes)
    return any(nodes.index(user) > nodes.index(node) for user in value.users)


def sole_user(node: fx.Node) -> fx.Node | None:
    """The node that alone uses this one's value."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def sum_after(norm: fx.Node, root: nn.Module) -> tuple[fx.Node | None, Callable[..., Any] | None]:
    """What is added to a batch norm, and by which operator; None if nothing is that the batch norm can take."""
    node = sole_user(norm)
    if node is None or node.op not in ("call_function", "call_method") or node.kwargs not in ({}, {"alpha": 1}):
        return None, None
    operation = SUMS.get(node.target) or (SUMS_IN_PLACE.get(node.target) if node.args[0] is norm else None)
    others = [other for other in node.args if other is not norm]
    if operation is None or len(node.args) != 2 or len(others) != 1 or not isinstance(others[0], fx.Node):
        return None, None
    return (others[0], operation) if can_wait(norm, node, root) else (None, None)


def can_wait(norm: fx.Node, node: fx.Node, root: nn.Module) -> bool:
    """Whether a batch norm can be called as late as a node: nothing in between can change its input or see itself."""
    if norm.next is node:
        return True
    x, nodes = norm.args[0], list(norm.graph.nodes)
    return (
        sum(touches(each, root.get_submodule(norm.target), root) for each in nodes) == 1
        and all(is_torchs(each, root) for each in nodes[nodes.index(norm) + 1 : nodes.index(node)])
        and sole_user(x) is norm
        and x.op == "call_module"
        and isinstance(root.get_submodule(x.target), (_ConvNd, nn.Linear))
    )


def touches(node: fx.Node, module: nn.Module, root: nn.Module) -> bool:
    """Whether a node is a call of a module, or reads it or its buffers."""
    if node.op not in ("call_module", "get_attr"):
        return False
    value = functools.reduce(getattr, node.target.split("."), root)
    return any(value is each for each in module.buffers()) or (
        isinstance(value, nn.Module) and module in value.modules()
    )


def is_torchs(node: fx.Node, root: nn.Module) -> bool:
    """Whether all code that a node calls is torch's or ours, which sees no other module's batch norm."""
    functions = [node.target] if node.op == "call_function" else []
    if node.op == "call_module":
        functions = [part.forward for part in root.get_submodule(node.target).modules()]
    packages = [(getattr(function, "__module__", None) or "").partition(".")[0] for function in functions]
    return {"torch", "tritonbn", "_operator", "builtins"}.issuperset(packages)


def activation_after(operand: fx.Node, root: nn.Module) -> tuple[type, tuple[Any, ...], tuple[tuple[str, Any], ...]]:
    """The activation that alone takes a value: its type and arguments; NoneType if it is none of a batch norm's."""
    node = sole_user(operand)
    if node is not None and node.args[:1] == (operand,) and node.all_input_nodes == [operand]:
        if node.op == "call_module" and type(root.get_submodule(node.target)) in ACTIVATIONS:
            return type(root.get_submodule(node.target)), (), ()
        if node.op in ("call_function", "call_method") and node.target in FUNCTIONS:
            return FUNCTIONS[node.target], node.args[1:], tuple(node.kwargs.items())
    return types.NoneType, (), ()


@functools.cache
def one_call(
    operation: Callable[..., Any] | None, kind: type, args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...]
) -> Callable[..., Any]:
    """activation(norm(x) + residual) as one call of the batch norm where that is the same, else as it was written."""
    default = None if kind is types.NoneType else kind(*args, **dict(kwargs))

    def fused(norm: nn.Module, x: Any, residual: Any, activation: nn.Module | None = default) -> Any:
        kind = type(activation)
        if (
            kind in ACTIVATIONS
            and not (altered(norm) or (activation is not None and altered(activation)))
            and (activation is default or kind.forward is FORWARDS[kind])
            and type(norm).forward in TAKERS
            and norm.activation is None
            and (operation is None or alike(x, residual))
        ):
            slope = activation.negative_slope if kind is nn.LeakyReLU else 0.01
            return norm.forward(x, residual, (ACTIVATIONS[kind], slope))
        y = norm(x)
        if operation is not None:
            y = operation(y, residual)
        if activation is None:
            return y
        if activation is default:  # a function in the code: no hook hears of it, and no other forward is in its place
            return FORWARDS[kind](activation, y)
        return activation(y)

    return fused


def alike(x: Any, residual: Any) -> bool:
    """Whether a batch norm of x can take this residual."""
    return (
        isinstance(x, Tensor)
        and isinstance(residual, Tensor)
        and residual.shape == x.shape
        and residual.dtype == x.dtype
        and residual.device == x.device
        and residual.layout == x.layout
    )


def takes_epilogue(module: nn.Module) -> bool:
    """Whether this is a batch norm of ours, if only when it is initialized, that has no activation of its own."""
    return getattr(future_class(module), "forward", None) in TAKERS and getattr(module, "activation", None) is None


def is_entered(module: nn.Module) -> bool:
    """Whether it is a Sequential that ends in a batch norm, or an Identity: what comes after it belongs to it."""
    return type(module) is nn.Identity or (isinstance(module, nn.Sequential) and ends_in_norm(module))


def ends_in_norm(module: nn.Module) -> bool:
    """Whether a batch norm of ours is the last that a module calls, through Sequentials only."""
    if isinstance(module, nn.Sequential):
        plain = written_class(module).forward is nn.Sequential.forward and not altered(module)
        return plain and len(module) > 0 and ends_in_norm(module[-1])
    return takes_epilogue(module)
