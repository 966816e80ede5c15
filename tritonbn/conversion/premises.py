"""What the record of a forward takes for granted of its module, and whether it is still so.

It is asked under torch.compile too, in words that it can follow and has guards for: a graph is traced anew where an
answer has changed. Hooks are guarded as those of any other module.
"""

from __future__ import annotations

import copy
import enum
import re
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.proxy import TraceError
from torch.nn.modules import module as of_modules

PLAIN = (
    *(bool, int, float, complex, str, bytes, types.NoneType, type, types.FunctionType, types.BuiltinFunctionType),
    *(enum.Enum, torch.dtype, torch.device, torch.memory_format),
)
"""Types whose values never change."""

GLOBAL_HOOKS = tuple(
    value for name, value in vars(of_modules).items() if re.fullmatch("_global_(back|for)ward_.*hooks", name)
)
"""By what they are for, the hooks of all modules; torch asks for them in one call only since its 2.7."""

CONTAINERS = nn.Sequential, nn.ModuleList, nn.ModuleDict


class Missing:
    """Stands for an attribute that a module does not have."""


class Present:
    """Stands for a parameter or a buffer, which a record reads anew at each call."""


@dataclass(frozen=True)
class Children:
    """The modules in a module."""

    names: tuple[str, ...]
    modules: tuple[nn.Module | None, ...]
    inside: dict[str, Children]
    """What is in the containers and the opened ones among them."""

    @staticmethod
    def of(module: nn.Module, opened: set[str], prefix: str = "") -> Children:
        """Those of a module, of which the forward has looked into the opened ones."""
        now = module._modules
        inside = {
            name: Children.of(child, opened, f"{prefix}{name}.")
            for name, child in now.items()
            if isinstance(child, CONTAINERS) or prefix + name in opened
        }
        return Children(tuple(now), tuple(now.values()), inside)

    def __deepcopy__(self, memo: dict[int, Any]) -> Children:
        """With the copies of those that are copied by now, as all are that a module has when its premises are."""
        modules = tuple(memo.get(id(each), each) for each in self.modules)
        return Children(self.names, modules, copy.deepcopy(self.inside, memo))

    def are_still(self, module: nn.Module) -> bool:
        """Whether the module has these and no others."""
        now = module._modules  # on the left of what was: torch.compile calls a module by the first name that it meets
        return (
            tuple(now) == self.names
            and tuple(now.values()) == self.modules
            and all(each.are_still(now[name]) for name, each in self.inside.items())
        )


@dataclass(frozen=True)
class Premises:
    """What a record takes for granted of its module and of what is in it."""

    reads: dict[str, dict[str, Any]]
    """By the name of a module, what the forward has found under the names that it has read there, children apart."""
    children: Children
    entered: list[str]
    """Names of modules whose calls are not nodes of the record."""

    def hold(self, module: nn.Module) -> bool:
        """Whether all of it is still so: asked by reading attributes, for which torch.compile has guards."""
        return (
            self.children.are_still(module)
            and all(are_found(module.get_submodule(name), reads) for name, reads in self.reads.items())
            and not any(altered(module.get_submodule(name)) for name in self.entered)
        )


def are_found(module: nn.Module, reads: dict[str, Any]) -> bool:
    """Whether a module has what was read of it."""
    return all(same(getattr(module, name, Missing), before) for name, before in reads.items())


def snapshot(value: Any) -> Any:
    """A copy of an attribute that is the same for as long as it does not change; TraceError if it can unseen."""
    if type(value) in (tuple, list, set):
        return type(value)(map(snapshot, value))
    if type(value) is dict:
        return {snapshot(key): snapshot(each) for key, each in value.items()}
    if isinstance(value, types.FunctionType) and (value.__closure__ or "<" in value.__qualname__):
        raise TraceError("torch.compile takes a local function for another one of the same code")
    if isinstance(value, PLAIN):
        return value
    raise TraceError(f"an attribute of type {type(value).__name__} can change unseen")


def same(value: Any, before: Any) -> bool:
    """Whether a value is what it was when a snapshot was taken."""
    kind = type(value)
    if isinstance(value, nn.Module):
        return value is before
    if isinstance(value, Tensor):
        return before is Present
    if kind is types.MethodType:
        return value.__func__ is before
    if kind is not type(before):
        return False
    if kind in (tuple, list):
        return len(value) == len(before) and all(map(same, value, before))
    if kind is dict:
        return value.keys() == before.keys() and all(same(value[key], before[key]) for key in before)
    return value == before


def altered(module: nn.Module) -> bool:
    """Whether calling this module does more than its class's forward."""
    hooks = module._forward_pre_hooks or module._forward_hooks or module._backward_pre_hooks or module._backward_hooks
    own_forward = module.forward is vars(module).get("forward")
    return bool(hooks or own_forward or any(GLOBAL_HOOKS))
