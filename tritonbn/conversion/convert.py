"""convert and convert_sync: whole models of torch's batch norms turned into ours."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase

from ..functional import Activation
from ..modules import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
    SyncBatchNorm,
    _KernelBatchNorm,
    check_activation,
    future_class,
)
from .fusion import fuse_forwards

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Model = TypeVar("Model", bound=nn.Module)

COUNTERPARTS = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
    nn.SyncBatchNorm: SyncBatchNorm,
}

LAZY = {
    nn.LazyBatchNorm1d: LazyBatchNorm1d,
    nn.LazyBatchNorm2d: LazyBatchNorm2d,
    nn.LazyBatchNorm3d: LazyBatchNorm3d,
}
"""What becomes one of them at its first call."""

NAMES_OF_AN_EMPTY_CLASS = {
    *("__init__", "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__firstlineno__"),
    *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__static_attributes__"),
}
"""What a subclass that adds nothing but a constructor may have in its body, in any version of Python."""


def convert(
    module: Model, *, fuse: bool = False, activation: Activation | None = None, negative_slope: float = 0.01
) -> Model:
    """Turn every torch.nn.BatchNorm1d, 2d, 3d and SyncBatchNorm in a model into tritonbn's, in place; return the model.

    The modules stay the objects that they are, with their parameters, buffers, hooks and settings; only their class,
    and so who computes, changes. Lazy ones follow when they are initialized, by their first call. A subclass that adds
    nothing but a constructor is turned too; one with a forward or anything else of its own is left alone, with a
    UserWarning.

    Args:
        fuse: find with torch.fx where a batch norm of ours, turned now or before, is followed by a sum, by relu,
            leaky_relu or silu, or by both, and compute these in the batch norm's launches. The model computes what it
            did, and its repr says `fused=[...]` in each module whose forward makes such calls.
        activation: None, "relu", "leaky_relu" or "silu": the activation of every batch norm that this call turns. It
            changes what the model computes; it is for models that leave the activation to their batch norms.
        negative_slope: of leaky_relu.

    With `fuse`, modules whose forward makes fused calls get a subclass of their class, under the same name; they stay
    the objects that they are, with all in them, and their copies and pickles are fused too. Wherever a fused call could
    differ from the code, the code runs: with hooks on the batch norm or the activation; with a residual of another
    shape, dtype or device than the batch norm's input; with arguments that are no tensors, or given by name; after a
    change of the attributes that its forward reads, its children's included, or of its children; and for good where
    torch.fx cannot record all that a forward does: control flow by data, types or random numbers; `with` and `except`;
    writing to attributes, calling eval(), requires_grad_() and the like on a child, and reading a child's tensors;
    global variables, unless they are functions, classes, modules or constants, and writing to any; print, and what the
    modules logging, warnings, os, sys and time do; asking torch for autocast, tracing, default dtype or device,
    determinism and other settings, or for what torch.distributed, torch.backends and torch.cuda know. Nothing of that
    is done by convert.

    What a forward does or reads by way of Python modules other than these, of functions that are not written in Python,
    or of an argument's mutable default, is not seen: it is done while convert runs, and then left as it was. Call it
    again after changing that, or the value of a global constant; graphs of torch.compile, in which each fused call is
    one operator, keep it as it was too. A fused activation keeps the batch norm's bias for its derivative, silu the
    residual too, where the code keeps a sum: who changes those in place before the backward pass gets torch's error.

    ValueError for an unknown activation, before anything is changed.
    """
    check_activation("convert", activation)
    for part, known in turnable(module, "convert", lambda part: not issubclass(future_class(part), _KernelBatchNorm)):
        become(part, COUNTERPARTS[known])
        if activation is not None:
            part.activation, part.negative_slope = activation, negative_slope
    if fuse:
        fuse_forwards(module)
    return module


def convert_sync(module: Model, process_group: ProcessGroup | None = None) -> Model:
    """Turn every batch norm in a model, torch's or tritonbn's, into a SyncBatchNorm, in place, and return the model.

    As torch.nn.SyncBatchNorm.convert_sync_batchnorm, which would leave an activation of ours out, but the modules stay
    the objects that they are, as with `convert`; those that are synchronized already get the process group too. To fuse
    what follows them, call `convert(module, fuse=True)` before or after.

    Args:
        process_group: the processes that share a batch; None for all.
    """
    for part, _ in turnable(module, "convert_sync", lambda part: True):
        become(part, SyncBatchNorm)
        part.process_group = process_group
    return module


def turnable(
    module: nn.Module, function: str, is_wanted: Callable[[nn.Module], bool]
) -> Iterator[tuple[_BatchNorm, type[nn.Module]]]:
    """The batch norms to be turned, and as what each is known; a warning for those that are not."""
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm) and is_wanted(part):
            known = known_class(part)
            own = own_names(part, known)
            if not own:
                yield part, known
                continue
            warnings.warn(
                f"tritonbn.{function}: left {name or 'the module'} as it is, since {type(part).__name__} "
                f"has its own {', '.join(own)}",
                stacklevel=3,
            )


def become(module: _BatchNorm, kind: type[nn.Module]) -> None:
    """Let a module be of another class, now or when it is initialized."""
    if isinstance(module, _LazyNormBase):
        module.__class__ = next(LAZY[each] for each in type(module).__mro__ if each in LAZY)
        module.cls_to_become = kind
    else:
        module.__class__ = kind


def known_class(module: _BatchNorm) -> type[nn.Module] | None:
    """The class of torch.nn or of ours that this module is or will be, if only by inheriting; None for another."""
    kinds = future_class(module).__mro__
    return next((kind for kind in kinds if kind in COUNTERPARTS or kind in COUNTERPARTS.values()), None)


def own_names(module: _BatchNorm, known: type[nn.Module] | None) -> list[str]:
    """What keeps a module from being turned: what its class has and the known one has not, or a forward of its own."""
    if known is None:
        return ["forward"]
    base = next(kind for kind in type(module).__mro__ if kind in (known, *LAZY, *LAZY.values()))
    derived = [kind for kind in type(module).__mro__ if kind not in base.__mro__]
    names = {name for kind in derived for name in vars(kind)} | ({"forward"} & vars(module).keys())
    return sorted(name for name in names if name not in NAMES_OF_AN_EMPTY_CLASS)
