"""torch.nn's batch norm modules on the kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase
from torch.nn.modules.lazy import LazyModuleMixin

from .functional import Activation, batch_norm, check_activation


class Unscriptable:
    """A mixin of modules that are nothing for torch.jit.script, which says so before it looks at them."""

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script asks for first."""
        raise NotImplementedError(
            f"torch.jit.script: expected no {type(self).__module__.partition('.')[0]}.{type(self).__name__}, "
            "which runs Triton kernels; torch.jit.trace, torch.compile and torch.export take it"
        )


class _KernelBatchNorm(Unscriptable, _BatchNorm):
    """The forward pass of torch.nn.modules.batchnorm._BatchNorm, by way of tritonbn.batch_norm."""

    activation: Activation | None = None
    negative_slope: float = 0.01
    ranks: tuple[int, ...] = ()
    """The numbers of axes with which an input needs no closer look."""
    function: Callable[..., Tensor] = staticmethod(batch_norm)
    """What computes; methods of subclasses do more."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: Activation | None = None,
        negative_slope: float = 0.01,
    ) -> None:
        newer = {} if bias else {"bias": bias}  # which older versions of torch do not know
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **newer)
        check_activation(type(self).__name__, activation)
        self.activation = activation
        self.negative_slope = negative_slope

    def forward(
        self, input: Tensor, residual: Tensor | None = None, epilogue: tuple[Activation | None, float] | None = None
    ) -> Tensor:
        """activation(batch_norm(input) + residual), where these are given.

        `epilogue` is an activation and its negative slope in place of the module's own, for this call.
        """
        if input.dim() not in self.ranks:
            self._check_input_dim(input)
        training, momentum, tracks = self.training, self.momentum, self.track_running_stats
        parameters, buffers = self._parameters, self._buffers
        try:  # where nn.Module's own look-up, which takes longer than a kernel's launch, ends as a rule
            weight, bias = parameters["weight"], parameters["bias"]
            mean, var, counter = buffers["running_mean"], buffers["running_var"], buffers["num_batches_tracked"]
        except KeyError:
            weight, bias = self.weight, self.bias
            mean, var, counter = self.running_mean, self.running_var, self.num_batches_tracked
        activation, negative_slope = epilogue or (self.activation, self.negative_slope)
        by_batch = True if training else mean is None and var is None  # whose `training` may be any truth value
        if training and not tracks:
            mean = var = None
        if not (training and tracks):
            counter = None
        return self.function(
            input,
            mean,
            var,
            weight,
            bias,
            by_batch,
            0.0 if momentum is None and counter is None else momentum,
            self.eps,
            residual=residual,
            activation=activation,
            negative_slope=negative_slope,
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

    Arguments, attributes, state_dict and errors are torch's. Added: activation and negative_slope, by keyword, and
    forward(input, residual=None), as in tritonbn.batch_norm, where dtypes and formulas are.
    """

    ranks = (2, 3)


class BatchNorm2d(_KernelBatchNorm, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d on the kernels: (N, C, H, W), contiguous or channels_last.

    Arguments, attributes, state_dict and errors are torch's. Added: activation and negative_slope, by keyword, and
    forward(input, residual=None), as in tritonbn.batch_norm, where dtypes and formulas are.
    """

    ranks = (4,)


class BatchNorm3d(_KernelBatchNorm, nn.BatchNorm3d):
    """torch.nn.BatchNorm3d on the kernels: (N, C, D, H, W), contiguous or channels_last_3d.

    Arguments, attributes, state_dict and errors are torch's. Added: activation and negative_slope, by keyword, and
    forward(input, residual=None), as in tritonbn.batch_norm, where dtypes and formulas are.
    """

    ranks = (5,)


class _LazyKernelBatchNorm(Unscriptable, _LazyNormBase):
    """A lazy batch norm of torch's whose first call is already that of the class that it becomes."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        # torch fetches this method, then initializes the module, which changes its class, then calls it
        if isinstance(self, _LazyKernelBatchNorm):  # initialized by way of a copy
            self.__class__ = self.cls_to_become
        return self.cls_to_become.forward(self, *args, **kwargs)


class LazyBatchNorm1d(_LazyKernelBatchNorm, nn.LazyBatchNorm1d):
    """torch.nn.LazyBatchNorm1d that becomes a batch norm on the kernels."""


class LazyBatchNorm2d(_LazyKernelBatchNorm, nn.LazyBatchNorm2d):
    """torch.nn.LazyBatchNorm2d that becomes a batch norm on the kernels."""


class LazyBatchNorm3d(_LazyKernelBatchNorm, nn.LazyBatchNorm3d):
    """torch.nn.LazyBatchNorm3d that becomes a batch norm on the kernels."""


class SyncBatchNorm(_KernelBatchNorm):
    """torch.nn.SyncBatchNorm on the kernels, for any input (N, C, ...): statistics over the batches of all processes.

    Arguments, attributes and state_dict are torch's. It is no subclass of torch's, which DistributedDataParallel
    refuses on a CPU: any device and backend of torch.distributed will do. In training every process sends the mean,
    variance and count of its own batch in one all_gather, merged by Chan's rule, and the sums of its backward pass in
    one all_reduce; each pass is two launches, `activation` and `residual` included. Batches may differ in size and may
    be empty. All processes of the group have to call forward, and backward where the input needs a gradient. Gradients
    of weight and bias are each process's own, for DistributedDataParallel to average. Without torch.distributed, with
    one process, and in evaluation it is the BatchNorm of its input.

    A process that fails, or is late by more than the group's timeout, gives the others torch.distributed's error; where
    the host waits for it, as with gloo, no buffer is changed by that call. There are no second derivatives. A graph of
    torch.compile is synchronized if torch.distributed was initialized when it was made.
    """

    ranks = (2, 3, 4, 5)

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: Activation | None = None,
        negative_slope: float = 0.01,
    ) -> None:
        ours = {"activation": activation, "negative_slope": negative_slope}
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias, **ours)
        self.process_group = process_group

    def function(self, *given: Any, **epilogue: Any) -> Tensor:
        """batch_norm, in training over all processes of the group."""
        return batch_norm(*given, process_group=group_of(self) if self.training else None, **epilogue)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: dist.ProcessGroup | None = None) -> nn.Module:
        """As torch.nn.SyncBatchNorm's, by `convert_sync`."""
        from .conversion.convert import convert_sync

        return convert_sync(module, process_group)


def group_of(module: SyncBatchNorm) -> dist.ProcessGroup | None:
    """The processes that share the module's batches, None for this one alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    return dist.group.WORLD if module.process_group is None else module.process_group


def future_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module has, or will have once it is initialized."""
    return (isinstance(module, LazyModuleMixin) and module.cls_to_become) or type(module)
