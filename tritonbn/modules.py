"""torch.nn's batch norm modules on the kernels, and a converter for whole models."""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase

from .functional import ACTIVATIONS, Activation, batch_norm

Model = TypeVar("Model", bound=nn.Module)


class _KernelBatchNorm(_BatchNorm):
    """The forward pass of torch.nn.modules.batchnorm._BatchNorm, by way of tritonbn.batch_norm."""

    activation: Activation | None = None
    negative_slope: float = 0.01

    def __init__(
        self, *args: Any, activation: Activation | None = None, negative_slope: float = 0.01, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if activation is not None and activation not in ACTIVATIONS:
            names = ", ".join(map(repr, ACTIVATIONS))
            raise ValueError(f"{type(self).__name__}: expected activation to be None, {names}, got {activation!r}")
        self.activation = activation
        self.negative_slope = negative_slope

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """activation(batch_norm(input) + residual), where these are given."""
        self._check_input_dim(input)
        uses_running = not self.training or self.track_running_stats
        counts = self.training and self.track_running_stats
        counter = self.num_batches_tracked if counts else None
        return batch_norm(
            input,
            self.running_mean if uses_running else None,
            self.running_var if uses_running else None,
            self.weight,
            self.bias,
            self.training or (self.running_mean is None and self.running_var is None),
            0.0 if self.momentum is None and counter is None else self.momentum,
            self.eps,
            residual=residual,
            activation=self.activation,
            negative_slope=self.negative_slope,
            num_batches_tracked=counter,
        )

    def extra_repr(self) -> str:
        """As torch's, and the activation if there is one."""
        if self.activation is None:
            return super().extra_repr()
        slope = f", negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else ""
        return f"{super().extra_repr()}, activation={self.activation}{slope}"


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


NAMES_OF_AN_EMPTY_CLASS = {
    *("__init__", "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__firstlineno__"),
    *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__static_attributes__"),
}
"""What a subclass that adds nothing but a constructor may have in its body, in any version of Python."""


def convert(module: Model) -> Model:
    """Turn every torch.nn.BatchNorm1d, 2d and 3d in a model into tritonbn's, in place, and return the model.

    The modules stay the objects that they are, with their parameters, buffers, hooks and settings; only their class,
    and so who computes, changes. Lazy ones follow when they are initialized. A subclass that adds nothing but a
    constructor is turned too; one with a forward or anything else of its own is left alone, with a UserWarning.
    """
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm) and not isinstance(part, _KernelBatchNorm):
            own = own_names(part)
            if own:
                warnings.warn(
                    f"tritonbn.convert: left {name or 'the module'} as it is, since {type(part).__name__} "
                    f"has its own {', '.join(own)}",
                    stacklevel=2,
                )
            elif isinstance(part, _LazyNormBase):
                part.cls_to_become = COUNTERPARTS[torch_base(part).cls_to_become]
            else:
                part.__class__ = COUNTERPARTS[torch_base(part)]
    return module


def torch_base(module: _BatchNorm) -> type[nn.Module]:
    """The class of torch.nn that this module is, if only by inheriting."""
    return next(kind for kind in type(module).__mro__ if kind.__module__ == _BatchNorm.__module__)


def own_names(module: _BatchNorm) -> list[str]:
    """What keeps a module from being turned: what its class has and torch's has not, or a forward of its own."""
    base = torch_base(module)
    if base not in COUNTERPARTS and getattr(base, "cls_to_become", None) not in COUNTERPARTS:
        return ["forward"]
    derived = [kind for kind in type(module).__mro__ if kind not in base.__mro__]
    names = {name for kind in derived for name in vars(kind)} | ({"forward"} & vars(module).keys())
    return sorted(name for name in names if name not in NAMES_OF_AN_EMPTY_CLASS)
