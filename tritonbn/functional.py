"""batch_norm and sample_norm: check the arguments, choose the backend."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from numbers import Number, Real
from os import register_at_fork
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from . import aten, autograd, devices, distributed
from .backends import in_force, traces_kernels, uses_kernels
from .choice import selection
from .launching.launch import dense, dense_strides, statistics_dtype, walkable
from .planning.case import Case
from .planning.forms import form, forms, note, recognized
from .planning.sample_case import SampleCase

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Activation = Literal["relu", "leaky_relu", "silu"]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)
AnyCase = TypeVar("AnyCase", Case, SampleCase)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor | None = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: Activation | None = None,
    negative_slope: float = 0.01,
    num_batches_tracked: Tensor | None = None,
    axis: int = 1,
    correction: int = 1,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Batch normalization (Ioffe and Szegedy, 2015) as torch.nn.functional.batch_norm computes it, and what follows it.

    y = activation(batch_norm(input) + residual): by the kernels in one launch, or two ("split"), and so its gradients.

    Args:
        input: (N, C) or (N, C, ...), float16, bfloat16, float32 or float64, of any strides.
        running_mean, running_var: (C,), both or neither. In training they are updated in place with the batch's mean
            and variance; otherwise they are the statistics, and needed.
        weight, bias: (C,), each optional.
        training: normalize by the batch's own mean and biased variance.
        momentum: weight of the batch's statistics in the update of the running ones, a number or a tensor of one
            element on the input's device (which the kernels read there, while for ATen the host waits); None for the
            cumulative average, 1 / (num_batches_tracked + 1).
        eps: added to the variance; positive in training, otherwise not negative. A number; outside of torch.compile
            also, as in torch, a tensor of no axes that needs no gradient, for which the host waits.
        residual: of the input's shape, dtype and device, of any strides; gets a gradient.
        activation: None, "relu", "leaky_relu" or "silu". For backward, relu and leaky_relu with a residual keep one
            bit per element beside the input; silu, or any in graphs of torch.compile, keeps the residual.
        negative_slope: of leaky_relu.
        num_batches_tracked: a real tensor of one element, counted up in training; needed where momentum is None.
        axis: where the channels are, if not where torch has them; all other axes are reduced, without a copy.
        correction: 1 for the unbiased variance in running_var, as in torch; 0 for the biased one, as in Keras, which
            exists for one value per channel too.
        process_group: in training, the processes whose inputs are one batch, of which each has a part of any size, none
            included; all of them have to call. See SyncBatchNorm. None for this process alone.

    Vectors are of the input's dtype or float32. Statistics are computed in float32, for float64 input in float64.

    Returns:
        A tensor of the input's shape and dtype, contiguous or channels_last where the input is. What lies otherwise
        keeps its order of axes in the kernels, unless more than four reduced axes cannot be merged; ATen may make it
        contiguous, as torch does. An empty input gives an empty output, and leaves running_mean and running_var alone.

    Raises:
        TypeError: an argument that is not a tensor, a number, a bool or a process group where one is needed.
        NotImplementedError: an input dtype or layout other than those named.
        ValueError: eps out of its range; a correction that is neither 0 nor 1; one value per channel in training with
            correction 1; one running buffer without the other; an unknown activation; momentum None without
            num_batches_tracked.
        IndexError: a weight or bias for an input without channels.
        RuntimeError: no such axis; a vector, residual, momentum or counter of the wrong size, dtype, layout or device;
            running buffers that need a gradient, are expanded in training, or are missing in evaluation; a tensor of
            inference mode that the backward pass would need.

    Every error is raised before a buffer is touched.
    """
    if training is not True and training is not False:
        raise TypeError(f"batch_norm: expected training to be a bool, got {torch.typename(training)}")
    if process_group is not None and training and (group := distributed.sharing(process_group)) is not None:
        return synchronized(
            Arguments(
                input, running_mean, running_var, weight, bias, True, momentum, eps, axis, correction,
                residual, activation, negative_slope, num_batches_tracked,
            ),
            group,
        )  # fmt: skip
    if is_compiling():
        return traced(
            Arguments(
                input, running_mean, running_var, weight, bias, training, momentum, eps, axis, correction,
                residual, activation, negative_slope, num_batches_tracked,
            )
        )  # fmt: skip
    missing = running_mean is None, weight is None, bias is None, num_batches_tracked is None
    tensors = running_mean, running_var, weight, bias, num_batches_tracked, input
    if True in missing:
        tensors = tuple(each for each in tensors if each is not None)
    case, problem, learns = None, None, False
    try:
        number = recognized(*tensors)
        if number is None and uses_kernels(input):
            number = forms(*tensors)
            learns = running_mean is not None and (running_mean.requires_grad or running_var.requires_grad)
            if not learns:
                note(number, *tensors)
        if number is not None:
            key = (
                devices.planned_for(), selection.setting(), in_force(), training, momentum.__class__, eps, axis,
                correction, activation, negative_slope, input.shape, input.stride(), missing, number,
                None if residual is None else form(residual),
                None if momentum.__class__ is float or not isinstance(momentum, Tensor) else form(momentum),
            )  # fmt: skip
            case = _cases.get(key)
    except (AttributeError, RuntimeError, TypeError) as error:
        problem = error  # something is no tensor, or has no strides: which one, the checks below should say
    if case is None or learns:  # running buffers that need a gradient are for the checks
        given = Arguments(
            input, running_mean, running_var, weight, bias, training, momentum, eps, axis, correction,
            residual, activation, negative_slope, num_batches_tracked,
        ).plain()  # fmt: skip
        check(given)
        if problem is not None:
            raise problem
        if input.numel() == 0 or not uses_kernels(*given):
            return by_aten(given)
        x = walkable(input, given.axis % input.dim())
        if x is not input or isinstance(eps, Tensor):  # whose value the key has not
            return batch_norm(x, **{name: value for name, value in given._asdict().items() if name != "input"})
        if case is None:
            case = remember(key, case_of(given))
    if not case.counts_elsewhere:
        state = running_mean, running_var, num_batches_tracked, momentum
        return autograd.batch_norm(case, input, weight, bias, residual, state)
    if momentum is None:
        momentum = average_factor(num_batches_tracked, input)
    state = running_mean, running_var, None, momentum
    return counted(num_batches_tracked, autograd.batch_norm, case, input, weight, bias, residual, state)


class Arguments(NamedTuple):
    """What batch_norm was given."""

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    training: bool
    momentum: float | Tensor | None
    eps: float
    axis: int
    correction: int
    residual: Tensor | None
    activation: str | None
    negative_slope: float
    num_batches_tracked: Tensor | None

    def plain(self) -> Arguments:
        """The same with Python's own numbers."""
        eps = self.eps
        if isinstance(eps, Tensor) and eps.dim() == 0 and not eps.requires_grad:  # which torch takes too
            eps = eps.item()
        return self._replace(
            eps=plain(float, eps),
            axis=plain(int, self.axis),
            correction=plain(int, self.correction),
            negative_slope=plain(float, self.negative_slope),
        )


def plain(kind: type, value: Any) -> Any:
    """The int or float that the value equals, if it does: `_cases` cannot tell the two apart."""
    if isinstance(value, Number):
        with suppress(OverflowError, ValueError):  # no int is infinite or NaN
            number = kind(value.real)
            return number if number == value else value
    return value


_cases: dict[tuple[Any, ...], Case | SampleCase] = {}
"""By all that the checks and the plans depend on: what is found here was checked."""

MOST_CASES = 4096

_remembering = Lock()
register_at_fork(after_in_child=_remembering._at_fork_reinit)
"""Held by the thread that changes `_cases`."""


def remember(key: tuple[Any, ...], case: AnyCase) -> AnyCase:
    """The case, to be found by its key from now on; the oldest make room."""
    if isinstance(case, Case) and case.statistics.__class__ is not Tensor:
        return case  # made of a fake tensor, as tracing has them: nothing for real ones
    with _remembering:
        while len(_cases) >= MOST_CASES:
            del _cases[next(iter(_cases))]
        _cases[key] = case
    return case


def case_of(given: Arguments, kernels: bool = True) -> Case:
    """What all calls like this one have in common."""
    x, counter = given.input, given.num_batches_tracked
    counts_elsewhere = given.training and counter is not None and counter.device != x.device
    vectors = given.running_mean, given.running_var, given.weight, given.bias
    return Case(
        device=devices.current(x.device.index) if kernels else None,
        place=x.device,
        shape=x.shape,
        dtype=x.dtype,
        x=x.stride(),
        like=dense_strides(x),
        axis=given.axis % x.dim(),
        training=given.training,
        correction=given.correction,
        cumulative=given.momentum is None and counter is not None and not counts_elsewhere,
        counts_elsewhere=counts_elsewhere,
        eps=float(given.eps),
        activation=given.activation,
        slope=float(given.negative_slope),
        vectors=tuple(None if v is None else v.dtype for v in (*vectors, None if counts_elsewhere else counter)),
        dense=all(dense(v) is v and v.stride() == (1,) for v in vectors if v is not None),
        savable=not any(isinstance(each, Tensor) and each.is_inference() for each in given),
    )


def known_case(given: Arguments, kernels: bool = True) -> Case:
    """case_of(given), made once; the caller has checked the arguments. Without `kernels` the case has no device."""
    momentum = given.momentum
    forms = (form(each) if isinstance(each, Tensor) else each for each in given._replace(momentum=momentum.__class__))
    key = (
        devices.planned_for() if kernels else None, selection.setting(), *forms,
        form(momentum) if isinstance(momentum, Tensor) else None,
    )  # fmt: skip
    return _cases.get(key) or remember(key, case_of(given, kernels))


def traced(given: Arguments) -> Tensor:
    """What torch.compile and torch.export record: an operator of ours, or torch's, whose neighbours can be fused.

    In evaluation it is torch's, unless the kernels are asked for by name.
    """
    check(given)
    x, counter, momentum = given.input, given.num_batches_tracked, given.momentum
    if x.numel() == 0 or not traces_kernels(x, given.training):
        return by_aten(given)
    counts_elsewhere = given.training and counter is not None and counter.device != x.device
    if momentum is None and counts_elsewhere:
        momentum = average_factor(counter, x)
    given = given._replace(momentum=momentum, num_batches_tracked=None if counts_elsewhere else counter)
    tensors, state, how = for_operators(given)
    if not given.training:
        return torch.ops.tritonbn.inference(*tensors, *state[:2], *how)[0]
    if given.running_mean is counter is None:
        return torch.ops.tritonbn.normalization(*tensors, *how)[0]
    if counts_elsewhere:
        return counted(counter, torch.ops.tritonbn.training, *tensors, *state, *how)[0]
    return torch.ops.tritonbn.training(*tensors, *state, *how)[0]


def for_operators(given: Arguments) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    """What our operators take: tensors, state, and what is neither."""
    momentum = given.momentum
    factor = momentum if isinstance(momentum, Tensor) else None
    how = (
        0.0 if momentum is None or factor is not None else float(momentum), float(given.eps),
        given.axis % given.input.dim(), given.correction, given.activation, float(given.negative_slope),
    )  # fmt: skip
    tensors = given.input, given.weight, given.bias, given.residual
    return tensors, (*given[1:3], given.num_batches_tracked, factor, momentum is None), how


def synchronized(given: Arguments, group: ProcessGroup) -> Tensor:
    """The same of a batch that several processes share."""
    if not is_compiling():  # where numbers may stand for others
        given = given.plain()
    check(given, is_shared=True)
    x, counter, momentum = given.input, given.num_batches_tracked, given.momentum
    compute = traced_together if is_compiling() else computed_together
    if counter is None or counter.device == x.device:
        return compute(given, group)
    momentum = average_factor(counter, x) if momentum is None else momentum
    return counted(counter, compute, given._replace(momentum=momentum, num_batches_tracked=None), group)


def traced_together(given: Arguments, group: ProcessGroup) -> Tensor:
    """As operators, with torch's collectives between them."""
    tensors, state, how = for_operators(given)
    kernels = traces_kernels(given.input, True)
    ranks = distributed.size_of(group)
    return torch.ops.tritonbn.synced_training(*tensors, *state, *how, group.group_name, ranks, kernels)[0]


def computed_together(given: Arguments, group: ProcessGroup) -> Tensor:
    """By the kernels, or torch's operations, which take an empty part too; tangents raise here, before the exchange."""
    if forward_ad._current_level >= 0 and any(
        isinstance(each, Tensor) and forward_ad.unpack_dual(each).tangent is not None for each in given
    ):
        raise RuntimeError("batch_norm: expected no tangents with a process group, where there is no forward mode")
    kernels = given.input.numel() > 0 and uses_kernels(given.input)
    if not kernels and given.num_batches_tracked is not None:
        check_counts(given.num_batches_tracked)
    x = walkable(given.input, given.axis % given.input.dim()) if kernels else given.input
    given = given._replace(input=x)
    state = given.running_mean, given.running_var, given.num_batches_tracked, given.momentum
    case = known_case(given, kernels)
    return distributed.batch_norm(case, x, given.weight, given.bias, given.residual, state, group)


def average_factor(counter: Tensor, input: Tensor) -> Tensor:
    """The weight of the next batch in the average of all, on the input's device."""
    return 1.0 / (counter + 1).to(input.device, statistics_dtype(input.dtype))


def by_aten(given: Arguments) -> Tensor:
    """The same by torch's own operations."""
    x, counter, momentum = given.input, given.num_batches_tracked, given.momentum
    if momentum is None:
        momentum = average_factor(counter, x) if given.training else 0.0
    arguments = (
        x, given.running_mean, given.running_var, given.weight, given.bias, given.training, momentum, float(given.eps),
        given.axis % max(1, x.dim()), given.correction, given.residual, given.activation, given.negative_slope,
    )  # fmt: skip
    if given.training and counter is not None:
        return counted(counter, aten.fused, *arguments)
    return aten.fused(*arguments)


def counted(counter: Tensor, compute: Callable[..., Any], *given: Any) -> Any:
    """compute(*given), counted beforehand, as torch does: a checkpoint may end its second forward in there.

    Where it fails it was not counted.
    """
    check_counts(counter)
    before = counter.clone()
    counter.add_(1)
    try:
        return compute(*given)
    except aten.STOPPED:
        raise
    except Exception:
        counter.copy_(before)
        raise


def sample_norm(input: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-3) -> Tensor:
    """Each sample normalized by its own statistics over the last axis: mode 1 of Keras' BatchNormalization.

    y = weight (x - mean) / (sqrt(variance + eps) + eps) + bias, with the biased variance, and eps in both places: layer
    normalization (Ba, Kiros and Hinton, 2016) but for the second eps.

    Args:
        input: (..., N), float16, bfloat16, float32 or float64, of any strides.
        weight, bias: (N,), each optional, of the input's dtype or float32.
        eps: positive.

    Returns:
        A tensor of the input's shape, dtype and memory format (from the kernels a contiguous one where more than four
        leading axes cannot be merged). An empty input gives an empty output. Statistics are computed in float32, for
        float64 input in float64.

    Raises:
        TypeError: an argument that is not a tensor where one is needed.
        NotImplementedError: an input dtype or layout other than those named.
        ValueError: eps that is not positive.
        RuntimeError: an input without axes; a vector of the wrong size, dtype or device.

    In graphs of torch.compile and torch.export it is torch's own operations, for the compiler to fuse.
    """
    if is_compiling():
        check_sample(input, weight, bias, eps)
        return aten.sample_norm(input, weight, bias, float(eps))
    case, problem = None, None
    try:
        if uses_kernels(input):
            key = devices.planned_for(), selection.setting(), form(input), form(weight), form(bias)
            case = _cases.get(key)
    except (AttributeError, RuntimeError, TypeError) as error:
        problem = error  # as in batch_norm
    if case is None or not eps > 0:
        check_sample(input, weight, bias, eps)
        if problem is not None:
            raise problem
        if input.numel() == 0 or not uses_kernels(input, weight, bias):
            return aten.sample_norm(input, weight, bias, float(eps))
        x = walkable(input, input.dim() - 1)
        if x is not input:
            return sample_norm(x, weight, bias, eps)
        case = remember(key, sample_case_of(input, weight, bias))
    return autograd.sample_norm(case, input, weight, bias, float(eps))


def sample_case_of(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> SampleCase:
    """What all calls like this one have in common."""
    return SampleCase(
        device=devices.current(x.device.index),
        place=x.device,
        shape=x.shape,
        dtype=x.dtype,
        x=x.stride(),
        like=dense_strides(x),
        weight=None if weight is None else weight.dtype,
        bias=None if bias is None else bias.dtype,
        dense=dense(weight) is weight and dense(bias) is bias,
    )


def check_input(function: str, input: Tensor) -> None:
    """Raise unless this is a tensor that the kernels can read."""
    if not isinstance(input, Tensor):
        raise TypeError(f"{function}: expected input to be a Tensor, got {type(input).__name__}")
    if input.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise NotImplementedError(f"{function}: expected input of dtype {names}, got {input.dtype}")
    if input.layout is not torch.strided:
        raise NotImplementedError(f"{function}: expected a strided input, got {input.layout}")


def check(given: Arguments, is_shared: bool = False) -> None:
    """Raise unless batch_norm can be computed, before anything is computed or changed."""
    check_batch(*given[:10], is_shared)
    check_epilogue(
        given.input, given.residual, given.activation, given.negative_slope, given.momentum, given.num_batches_tracked
    )


def check_batch(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float | Tensor | None,
    eps: float,
    axis: int,
    correction: int,
    is_shared: bool = False,
) -> None:
    """Raise what torch.nn.functional.batch_norm raises, before anything is computed or changed."""
    check_input("batch_norm", input)
    if not isinstance(axis, int):
        raise TypeError(f"batch_norm: expected axis to be an integer, got {type(axis).__name__}")
    if not -input.dim() <= axis < input.dim() and not (input.dim() == axis == 1 and input.numel() == 0):
        raise RuntimeError(f"batch_norm: expected input to have an axis {axis} of channels, got {tuple(input.shape)}")
    if not isinstance(eps, Real):
        raise TypeError(f"batch_norm: expected eps to be a number, got {type(eps).__name__}")
    if correction not in (0, 1):
        raise ValueError(f"batch_norm: expected correction to be 0 or 1, got {correction}")
    if eps < 0 or (training and eps == 0):
        raise ValueError(f"batch_norm: expected eps to be {'positive' if training else 'non-negative'}, got {eps}")
    if not training and (running_mean is None or running_var is None):
        missing = "running_mean" if running_mean is None else "running_var"
        raise RuntimeError(f"batch_norm: expected {missing} to be defined in evaluation mode, got None")
    if (running_mean is None) != (running_var is None):
        raise ValueError("batch_norm: expected both of running_mean and running_var or neither, got one of them")
    channels = input.shape[axis] if axis < input.dim() else 0
    if training and correction == 1 and input.numel() == channels > 0 and not is_shared:
        raise ValueError(
            f"batch_norm: expected more than 1 value per channel when training, got input of shape {tuple(input.shape)}"
        )
    for name, vector in (
        ("running_mean", running_mean),
        ("running_var", running_var),
        ("weight", weight),
        ("bias", bias),
    ):
        if vector is not None:
            check_vector("batch_norm", name, vector, input, channels)
            if name.startswith("running") and vector.requires_grad and torch.is_grad_enabled():
                raise RuntimeError(f"batch_norm: expected {name} not to require a gradient, since it gets none")
            if channels == 0 and name in ("weight", "bias"):
                raise IndexError(f"batch_norm: expected a channel for {name}, got input of shape {tuple(input.shape)}")
            if name.startswith("running") and training and vector.stride(0) == 0 and channels > 1:
                raise RuntimeError(f"batch_norm: expected {name} to have an element a channel, got an expanded tensor")
    if isinstance(momentum, Tensor):
        if not is_number(momentum, DTYPES + INTEGERS) or momentum.device != input.device:
            raise RuntimeError(
                f"batch_norm: expected momentum to be a number or a tensor of one element on {input.device}, "
                f"got {described(momentum)} on {momentum.device}"
            )
    elif momentum is not None and not isinstance(momentum, Real):
        raise TypeError(f"batch_norm: expected momentum to be a number or a tensor, got {type(momentum).__name__}")


def check_epilogue(
    input: Tensor,
    residual: Tensor | None,
    activation: str | None,
    negative_slope: float,
    momentum: float | Tensor | None,
    num_batches_tracked: Tensor | None,
) -> None:
    """Raise unless what follows the normalization can be done, and batches can be counted."""
    if not isinstance(negative_slope, Real):
        raise TypeError(f"batch_norm: expected negative_slope to be a number, got {type(negative_slope).__name__}")
    check_activation("batch_norm", activation)
    if residual is not None:
        if not isinstance(residual, Tensor):
            raise TypeError(f"batch_norm: expected residual to be a Tensor or None, got {type(residual).__name__}")
        given, expected = ((tuple(t.shape), t.dtype, t.device, t.layout) for t in (residual, input))
        if given != expected:
            raise RuntimeError(f"batch_norm: expected residual like input, {expected}, got {given}")
    if num_batches_tracked is not None:
        if not isinstance(num_batches_tracked, Tensor):
            found = type(num_batches_tracked).__name__
            raise TypeError(f"batch_norm: expected num_batches_tracked to be a Tensor or None, got {found}")
        if not is_number(num_batches_tracked, DTYPES + INTEGERS):
            raise RuntimeError(
                "batch_norm: expected num_batches_tracked to be a tensor of one real number, "
                f"got {described(num_batches_tracked)}"
            )
    elif momentum is None:
        raise ValueError("batch_norm: expected num_batches_tracked where momentum is None, got None")


def check_activation(name: str, activation: str | None) -> None:
    """Raise unless this is an activation, or None."""
    if activation is not None and activation not in ACTIVATIONS:
        names = ", ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"{name}: expected activation to be None, {names}, got {activation!r}")


def check_counts(counter: Tensor) -> None:
    """Raise unless torch lets this be counted up; the kernels need no leave."""
    if counter.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("batch_norm: expected num_batches_tracked not to require a gradient, since it gets none")
    if not is_compiling() and counter.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError("batch_norm: expected num_batches_tracked to be no tensor of inference mode outside of it")


def check_sample(input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
    """Raise what sample_norm raises, before anything is computed."""
    check_input("sample_norm", input)
    if input.dim() == 0:
        raise RuntimeError("sample_norm: expected input of shape (..., N), got ()")
    if not eps > 0:
        raise ValueError(f"sample_norm: expected eps to be positive, got {eps}")
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None:
            check_vector("sample_norm", name, vector, input, input.shape[-1])


def is_number(tensor: Tensor, dtypes: tuple[torch.dtype, ...]) -> bool:
    """Whether this is a single number of one of the dtypes."""
    return tensor.numel() == 1 and tensor.dtype in dtypes and tensor.layout is torch.strided


def described(tensor: Tensor) -> str:
    """What messages say of a tensor that is no such number."""
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}, {tensor.layout}"


def check_vector(function: str, name: str, vector: Tensor, input: Tensor, channels: int) -> None:
    """Raise unless this is a vector that the input's channels can use."""
    if not isinstance(vector, Tensor):
        raise TypeError(f"{function}: expected {name} to be a Tensor or None, got {type(vector).__name__}")
    if vector.shape != (channels,):
        raise RuntimeError(
            f"{function}: expected {name} to contain {channels} elements, one a channel of input "
            f"{tuple(input.shape)}, got {vector.numel()} in shape {tuple(vector.shape)}"
        )
    if vector.layout is not torch.strided:
        raise RuntimeError(f"{function}: expected {name} to be strided, got {vector.layout}")
    if vector.device != input.device:
        raise RuntimeError(f"{function}: expected {name} on the input's device {input.device}, got {vector.device}")
    if vector.dtype != input.dtype and vector.dtype != torch.float32:
        dtypes = " or ".join(map(str, dict.fromkeys((input.dtype, torch.float32))))
        raise RuntimeError(f"{function}: expected {name} of dtype {dtypes}, got {vector.dtype}")
