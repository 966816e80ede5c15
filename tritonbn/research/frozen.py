"""Batch norms that learn nothing more, for fine-tuning."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase

from ..conversion.convert import NAMES_OF_AN_EMPTY_CLASS
from ..conversion.fusion import TAKERS
from ..functional import Activation, batch_norm, check_activation
from ..modules import _KernelBatchNorm

Model = TypeVar("Model", bound=nn.Module)


class FrozenBatchNorm(nn.Module):
    """Batch norm by constants, in train() and eval() alike: torchvision.ops.FrozenBatchNorm2d on the kernels.

    He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition" (2016, supplementary material) so fine-tune
    for detection, as do the implementations of "Mask R-CNN" (He, Gkioxari, Dollar and Girshick, 2017).

    weight, bias, running_mean and running_var are buffers (num_features,), with state_dict's keys as torchvision has
    them; a batch norm's state is loaded without its num_batches_tracked. An activation follows, "relu", "leaky_relu" or
    "silu", by negative_slope; ValueError for another one. One launch forward, and one backward.
    """

    activation: Activation | None = None
    negative_slope: float = 0.01

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        *,
        activation: Activation | None = None,
        negative_slope: float = 0.01,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_activation(type(self).__name__, activation)
        self.num_features, self.eps = num_features, eps
        self.activation, self.negative_slope = activation, negative_slope
        zeros, ones = (partial(make, num_features, device=device, dtype=dtype) for make in (torch.zeros, torch.ones))
        register(self, ones(), zeros(), zeros(), ones())

    def forward(
        self, input: Tensor, residual: Tensor | None = None, epilogue: tuple[Activation | None, float] | None = None
    ) -> Tensor:
        """activation((input - running_mean) / sqrt(running_var + eps) weight + bias + residual).

        Of input, (N, num_features) or (N, num_features, ...), and of residual, which is like it; both get gradients.
        `epilogue` is an activation and its negative slope in place of the module's own, for this call. Raises what
        batch_norm raises.
        """
        activation, negative_slope = epilogue or (self.activation, self.negative_slope)
        return batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            eps=self.eps,
            residual=residual,
            activation=activation,
            negative_slope=negative_slope,
        )

    def extra_repr(self) -> str:
        """Channels, eps, and the activation if there is one."""
        slope = f", negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else ""
        activation = "" if self.activation is None else f", activation={self.activation}{slope}"
        return f"{self.num_features}, eps={self.eps}{activation}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *others)


TAKERS.append(FrozenBatchNorm.forward)


def register(module: nn.Module, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor) -> None:
    """Give a module its buffers, in torchvision's order."""
    module.register_buffer("weight", weight)
    module.register_buffer("bias", bias)
    module.register_buffer("running_mean", running_mean)
    module.register_buffer("running_var", running_var)


def freeze(model: Model) -> Model:
    """Turn every batch norm in a model into a FrozenBatchNorm, in place, and return the model.

    That is torch.nn's BatchNorm1d, 2d, 3d and SyncBatchNorm, and tritonbn's, with their activations. As with `convert`
    the modules stay the objects that they are, with running buffers, hooks, phase and place in the model; only their
    class changes, and weight and bias become copies that no optimizer holds (ones and zeros where there were none). A
    subclass that adds nothing but a constructor is turned too; one with more of its own is left alone, with a
    UserWarning. `convert(model, fuse=True)` fuses what follows them, before or after.

    ValueError, before anything is changed, for a batch norm without running statistics, or not yet initialized.
    """
    norms = [
        (name or "the module", part, own_names(part))
        for name, part in model.named_modules()
        if isinstance(part, _BatchNorm)
    ]
    for name, part, own in norms:
        if not own and (isinstance(part, _LazyNormBase) or part.running_mean is None or part.running_var is None):
            raise ValueError(f"freeze: expected running statistics in every batch norm, got none in {name}")
    for name, part, own in norms:
        if own:
            warnings.warn(
                f"tritonbn.research.freeze: left {name} as it is, since {type(part).__name__} "
                f"has its own {', '.join(own)}",
                stacklevel=2,
            )
        else:
            turn(part)
    return model


OF_TRAINING = (
    *("num_batches_tracked", "momentum", "affine", "track_running_stats"),
    *("process_group", "virtual_batch_size", "r_max", "d_max"),
)
"""What a batch norm may have and a frozen one has not."""


def turn(norm: _BatchNorm) -> None:
    """Make a batch norm a FrozenBatchNorm."""
    mean, var = norm.running_mean, norm.running_var
    weight = torch.ones_like(mean) if norm.weight is None else norm.weight.detach().clone()
    bias = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach().clone()
    for name in ("weight", "bias", "running_mean", "running_var", *OF_TRAINING):
        if hasattr(norm, name):
            delattr(norm, name)
    norm.__class__ = FrozenBatchNorm
    register(norm, weight, bias, mean, var)


def own_names(norm: _BatchNorm) -> list[str]:
    """What keeps a batch norm from being turned: what its class or it has beyond torch's and ours."""
    base = next(kind for kind in type(norm).__mro__ if kind.__module__.startswith((_BatchNorm.__module__, "tritonbn.")))
    names = {name for kind in type(norm).__mro__ if kind not in base.__mro__ for name in vars(kind)}
    names |= ({"forward"} & vars(norm).keys()) | (norm._parameters.keys() - {"weight", "bias"})
    if type(norm).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward, _KernelBatchNorm.forward):
        names.add("forward")
    return sorted(names.difference(NAMES_OF_AN_EMPTY_CLASS))
