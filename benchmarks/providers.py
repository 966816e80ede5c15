"""Who is compared: each a small function that makes a call of a case's inputs, or says why there is none."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor

import tritonbn
from tritonbn import kernels

from .cases import Case
from .inputs import EPS, KERAS_EPS, KERAS_MOMENTUM, MOMENTUM, Inputs

Call = Callable[[], Tensor]
"""Computes y, in training with what a gradient needs, and updates the running buffers of its own inputs."""

VENDORS = re.compile("cudnn|miopen", re.IGNORECASE)
NATIVE = re.compile("at::native.*batch_?norm")
BATCH_NORM = re.compile("batch_?norm")
OURS = re.compile(f"^(?:{'|'.join(kernels.__all__)})")
INDUCTOR = re.compile("^triton_")
ANY = re.compile("")
NONE = re.compile("(?!)")
TORCH = re.compile(f"{NATIVE.pattern}|cudnn|miopen", re.IGNORECASE)


class UnfitError(Exception):
    """A provider cannot run a case; the message says why."""


@dataclass(frozen=True)
class Provider:
    """One of those who are compared."""

    name: str
    build: Callable[[Case, Inputs], Call]
    """Raises UnfitError."""
    runs: re.Pattern[str]
    """One of the GPU's kernels at least has such a name."""
    never: re.Pattern[str]
    """None has such a name: it would be somebody else's."""

    def strangers(self, names: Iterable[str]) -> str:
        """What speaks against these being the kernels of this provider; empty if nothing does, or none was seen."""
        names = list(dict.fromkeys(names))
        foreign = [name for name in names if self.never.search(name)]
        if foreign or (names and not any(map(self.runs.search, names))):
            return f"other kernels ran: {', '.join(short(name) for name in foreign or names)}"
        return ""


def short(name: str) -> str:
    """A kernel's name without its types and arguments."""
    return re.sub(r"^void ", "", name).partition("<")[0].partition("(")[0]


PROVIDERS: dict[str, Provider] = {}
"""By name, in the order of columns."""


def provider(name: str, runs: re.Pattern[str], never: re.Pattern[str] = NONE) -> Callable[[Any], Any]:
    """Register a function as Provider.build."""

    def register(build: Callable[[Case, Inputs], Call]) -> Callable[[Case, Inputs], Call]:
        PROVIDERS[name] = Provider(name, build, runs, never)
        return build

    return register


@provider("tritonbn", OURS, TORCH)
def ours(case: Case, inputs: Inputs) -> Call:
    """With the config that TRITONBN_TUNE says, which the report sets to "off": what the model chooses."""
    if case.keras is not None:
        return keras_layer(case, inputs)
    i, training = inputs, case.direction != "inference"

    def call() -> Tensor:
        return tritonbn.batch_norm(
            i.x,
            i.running_mean,
            i.running_var,
            i.weight,
            i.bias,
            training,
            MOMENTUM,
            EPS,
            residual=i.residual,
            activation=case.problem.activation,
        )

    return call


@provider("tritonbn, tuned", OURS, TORCH)
def tuned(case: Case, inputs: Inputs) -> Call:
    """With the fastest of eight configs, timed at the first call."""
    if inputs.x.device.type == "cpu":
        raise UnfitError("times configs on a GPU only")
    return tritonbn.tuning("timed")(ours(case, inputs))


def forced(strategy: str) -> None:
    """Register what runs with one strategy only."""

    @provider(f"tritonbn, {strategy}", OURS, TORCH)
    def build(case: Case, inputs: Inputs) -> Call:
        if case.direction == "inference":
            raise UnfitError("inference has one strategy")
        if case.keras == 1:
            raise UnfitError("sample norm has other strategies")
        return tritonbn.tuning("off", strategies=(strategy,))(ours(case, inputs))


for each in ("resident", "dataflow", "split"):
    forced(each)


def keras_layer(case: Case, inputs: Inputs) -> Call:
    """Through tritonbn.BatchNormalization, which sees the channels last."""
    layer = tritonbn.BatchNormalization(
        epsilon=KERAS_EPS,
        mode=case.keras,
        momentum=KERAS_MOMENTUM,
        batch_input_shape=channels_last(case, inputs.x).shape,
        device=inputs.x.device,
    ).train(case.direction != "inference")
    layer.gamma, layer.beta = inputs.weight, inputs.bias
    layer.running_mean, layer.running_std = inputs.running_mean, inputs.running_var
    return lambda: channels_second(case, layer(channels_last(case, inputs.x)))


def channels_last(case: Case, x: Tensor) -> Tensor:
    """As a Keras layer takes it."""
    return x if case.keras == 1 else x.movedim(1, -1)


def channels_second(case: Case, y: Tensor) -> Tensor:
    """As a case has it."""
    return y if case.keras == 1 else y.movedim(-1, 1)


def of_torch(case: Case, inputs: Inputs, function: Callable[..., Tensor] = F.batch_norm) -> Call:
    """Batch norm with torch.nn.functional's arguments, and what torchvision's residual blocks do after it.

    UnfitError where torch has no such thing.
    """
    i, training = inputs, case.direction != "inference"
    if case.keras == 0:
        raise UnfitError("keeps the unbiased running variance, Keras the biased one")
    if case.keras == 1:
        raise UnfitError("has no sample-wise mode")
    if case.keras == 2:
        return lambda: function(i.x, None, None, i.weight, i.bias, True, MOMENTUM, KERAS_EPS)

    def call() -> Tensor:
        y = function(i.x, i.running_mean, i.running_var, i.weight, i.bias, training, MOMENTUM, EPS)
        return F.relu_(y.add_(i.residual)) if case.fused else y

    return call


@provider("torch, cuDNN", VENDORS)
def vendor(case: Case, inputs: Inputs) -> Call:
    """By the vendor's library, MIOpen with ROCm, where torch leaves it to it."""
    if not torch.backends.cudnn.is_available():
        raise UnfitError("cuDNN is not there")
    return of_torch(case, inputs)


@provider("torch, native", NATIVE, VENDORS)
def native(case: Case, inputs: Inputs) -> Call:
    """By torch's own kernels."""

    def function(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, *options: Any) -> Tensor:
        return torch.native_batch_norm(x, weight, bias, mean, var, *options)[0]

    return of_torch(case, inputs, function)


@provider("torch.compile", INDUCTOR, TORCH)
def compiled(case: Case, inputs: Inputs) -> Call:
    """What Inductor makes of torch's function, or of Keras' formula where they differ."""
    torch.compiler.reset()  # no limit of recompilations ends in eager mode
    torch._functorch.config.donated_buffer = False  # a backward pass that is repeated needs what it was given
    call = of_torch(case, inputs) if case.keras in (None, 2) else formula(case, inputs)
    return torch.compile(call, fullgraph=True, dynamic=False)


@provider("torch operations", ANY, TORCH)
def operations(case: Case, inputs: Inputs) -> Call:
    """The formula in single operations, as a layer is written where no library has it."""
    if case.keras is None:
        raise UnfitError("for the Keras modes only")
    return formula(case, inputs)


def formula(case: Case, inputs: Inputs) -> Call:
    """Keras' modes by torch's operations."""
    i = inputs
    shape = [-1 if axis == (i.x.dim() - 1 if case.keras == 1 else 1) else 1 for axis in range(i.x.dim())]
    axes = [axis for axis, size in enumerate(shape) if size == 1]

    def by_samples() -> Tensor:
        x = i.x.float()
        variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        xhat = (x - mean) / (torch.sqrt(variance + KERAS_EPS) + KERAS_EPS)
        return (xhat * i.weight + i.bias).to(i.x.dtype)

    def by_channels() -> Tensor:
        x = i.x.float()
        variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        if case.keras == 0:
            with torch.no_grad():
                i.running_mean.lerp_(mean.flatten(), 1 - KERAS_MOMENTUM)
                i.running_var.lerp_(variance.flatten(), 1 - KERAS_MOMENTUM)
        xhat = (x - mean) * torch.rsqrt(variance + KERAS_EPS)
        return (xhat * i.weight.view(shape) + i.bias.view(shape)).to(i.x.dtype)

    return by_samples if case.keras == 1 else by_channels


def optional(module: str) -> Any:
    """A library that may be installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UnfitError(f"not installed: {error}") from error


def plain(case: Case) -> None:
    """UnfitError for what the optional libraries have no function for."""
    if case.keras is not None:
        raise UnfitError("has no Keras layer")


def with_vectors(module: torch.nn.BatchNorm2d, case: Case, inputs: Inputs) -> torch.nn.BatchNorm2d:
    """A module like torch's, with the case's settings and these parameters and buffers."""
    module.eps, module.momentum = EPS, MOMENTUM
    module.weight, module.bias = inputs.weight, inputs.bias
    module.running_mean, module.running_var = inputs.running_mean, inputs.running_var
    return module.to(inputs.x.device).train(case.direction != "inference")


@provider("apex", re.compile("nhwc_batch_norm"), VENDORS)
def apex(case: Case, inputs: Inputs) -> Call:
    """apex.contrib.groupbn, with its fused sum and relu."""
    plain(case)
    groupbn = optional("apex.contrib.groupbn.batch_norm")
    i = inputs
    if i.x.dim() != 4 or case.problem.layout != "channels_last" or i.x.dtype != torch.float16:
        raise UnfitError("takes float16 images only, channels last")
    module = with_vectors(groupbn.BatchNorm2d_NHWC(i.x.shape[1], fuse_relu=case.fused), case, i)

    def call() -> Tensor:
        x, z = (tensor if tensor is None else tensor.movedim(1, -1) for tensor in (i.x, i.residual))
        return module(x, z).movedim(-1, 1)

    return call


@provider("flag_gems", BATCH_NORM, TORCH)
def flag_gems(case: Case, inputs: Inputs) -> Call:
    """FlagGems' function, with torch's sum and relu after it; newer versions have no gradient outside of use_gems."""
    plain(case)
    library = optional("flag_gems.ops")

    def function(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, *options: Any) -> Tensor:
        found = library.batch_norm(x, weight, bias, mean, var, *options)
        return found[0] if isinstance(found, tuple) else found

    return of_torch(case, inputs, function)


@provider("attorch", BATCH_NORM, TORCH)
def attorch(case: Case, inputs: Inputs) -> Call:
    """attorch's module, with its fused sum and relu."""
    plain(case)
    library = optional("attorch")
    i = inputs
    if i.x.dim() != 4:
        raise UnfitError("takes images only")
    activation = {"act_func": "relu"} if case.fused else {}
    module = with_vectors(library.BatchNorm2d(i.x.shape[1], **activation), case, i)
    return lambda: module(i.x, i.residual) if case.fused else module(i.x)
