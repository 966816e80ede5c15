"""torch.nn's batch norm modules on the kernels, and a converter for whole models."""

from __future__ import annotations

import warnings
from types import FunctionType
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase

from .functional import batch_norm

Model = TypeVar("Model", bound=nn.Module)


class _KernelBatchNorm(_BatchNorm):
    """The forward pass of torch.nn.modules.batchnorm._BatchNorm, by way of tritonbn.batch_norm."""

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        counts = self.training and self.track_running_stats and self.num_batches_tracked is not None
        momentum: float | Tensor = 0.0 if self.momentum is None else self.momentum
        if counts and self.momentum is None:
            momentum = 1.0 / (self.num_batches_tracked + 1).to(torch.promote_types(torch.float32, input.dtype))
        uses_running = not self.training or self.track_running_stats
        y = batch_norm(
            input,
            self.running_mean if uses_running else None,
            self.running_var if uses_running else None,
            self.weight,
            self.bias,
            self.training or (self.running_mean is None and self.running_var is None),
            momentum,
            self.eps,
        )
        if counts:
            self.num_batches_tracked.add_(1)
        return y


class BatchNorm1d(_KernelBatchNorm, nn.BatchNorm1d):
    """torch.nn.BatchNorm1d on the kernels: (N, C) or (N, C, L).

    Arguments, attributes, state_dict and errors are torch's; so is `momentum=None`, the cumulative average.
    """


class BatchNorm2d(_KernelBatchNorm, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d on the kernels: (N, C, H, W), contiguous or channels_last.

    Arguments, attributes, state_dict and errors are torch's; so is `momentum=None`, the cumulative average.
    """


class BatchNorm3d(_KernelBatchNorm, nn.BatchNorm3d):
    """torch.nn.BatchNorm3d on the kernels: (N, C, D, H, W), contiguous or channels_last_3d.

    Arguments, attributes, state_dict and errors are torch's; so is `momentum=None`, the cumulative average.
    """


COUNTERPARTS = {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d, nn.BatchNorm3d: BatchNorm3d}


def convert(module: Model) -> Model:
    """Replace every torch.nn.BatchNorm1d, 2d and 3d in a model, in place, and return the model.

    A replacement holds the very parameters, buffers and hooks of the module that it replaces, which goes on working.
    Lazy ones become tritonbn's when they are initialized. A subclass that only inherits is replaced; one with a forward
    or any other method of its own is left as it is, with a UserWarning. If `module` is itself a batch norm, its
    replacement is returned.
    """
    replacements: dict[nn.Module, nn.Module] = {}
    for name, old in module.named_modules():
        if isinstance(old, _BatchNorm) and not isinstance(old, _KernelBatchNorm):
            own = own_methods(old)
            if own:
                warnings.warn(
                    f"tritonbn.convert: left {name or 'the module'} as it is, since {type(old).__name__} "
                    f"has its own {', '.join(own)}",
                    stacklevel=2,
                )
            else:
                replacements[old] = replacement(old)
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            parent._modules[name] = replacements.get(child, child)
    return replacements.get(module, module)


def torch_base(module: _BatchNorm) -> type[nn.Module]:
    """The class of torch.nn from which this module inherits its forward pass, if only by inheriting."""
    return next(kind for kind in type(module).__mro__ if kind.__module__ == _BatchNorm.__module__)


def own_methods(module: _BatchNorm) -> list[str]:
    """What keeps a module from being replaced: methods that a replacement would lose."""
    base = torch_base(module)
    if issubclass(base, _LazyNormBase):
        return []
    if base not in COUNTERPARTS:
        return ["forward"]
    derived = type(module).__mro__[: type(module).__mro__.index(base)]
    methods = (FunctionType, property, staticmethod, classmethod)
    names = {name for kind in derived for name, value in vars(kind).items() if isinstance(value, methods)}
    names |= {"forward"} & vars(module).keys()
    return sorted(names - {"__init__"})


def replacement(old: _BatchNorm) -> nn.Module:
    """A tritonbn module around the same attributes; a lazy one stays, but is told what to become."""
    base = torch_base(old)
    if issubclass(base, _LazyNormBase):
        old.cls_to_become = COUNTERPARTS[base.cls_to_become]
        return old
    kind = COUNTERPARTS[base]
    new = kind.__new__(kind)
    vars(new).update(vars(old))
    return new
