"""Keras 1.2's BatchNormalization as a torch module, on the kernels."""

from __future__ import annotations

import itertools
import operator
import warnings
from collections.abc import Mapping, Sequence
from math import inf, nan
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy
from torch.nn.utils.parametrize import is_parametrized

from ..backends import uses_kernels
from ..functional import batch_norm, check_batch, check_input, check_sample, sample_norm
from ..modules import Unscriptable
from . import initializers, regularizers
from .initializers import Initializer
from .regularizers import L1L2Regularizer, Regularizer

MODES = (0, 1, 2)
VECTORS = ("gamma", "beta", "running_mean", "running_std")
"""The layer's state, in the order of get_weights and set_weights."""

Shape = Sequence[int | None]

_numbers = itertools.count(1)


class _UnbuiltBuffer(UninitializedBuffer):
    """An UninitializedBuffer that copy.deepcopy takes, as it takes an UninitializedParameter."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _UnbuiltBuffer:
        return memo.setdefault(id(self), type(self)(device=self.device, dtype=self.dtype))


class BatchNormalization(Unscriptable, LazyModuleMixin, nn.Module):
    """Batch normalization as Keras 1.2 defines it (Ioffe and Szegedy, 2015), for input of any rank, float16 to float64.

    With C the size of the input along `axis`, R all other axes, and p the momentum:

    - mode 0, feature-wise: y = gamma (x - mean) / sqrt(variance + epsilon) + beta, the mean and biased variance being
      the batch's over R in train(), and the running ones in eval(). A training call updates running <- p running +
      (1 - p) batch: p is the weight of the OLD value. `running_std` holds the biased VARIANCE, despite its name.
    - mode 1, sample-wise, in both phases: y = gamma (x - mean) / (sqrt(variance + epsilon) + epsilon) + beta, by the
      statistics of each row of the last axis; epsilon enters twice.
    - mode 2, feature-wise by the batch's statistics in both phases; the running vectors are left alone.

    The layer is built, which is when its parameters get their shape (C,), by its first call, by `input_shape` or
    `batch_input_shape`, or by `build`; a state_dict loads into an unbuilt layer. It may be applied to several inputs of
    one rank and one size along `axis`.

    Args:
        epsilon: added to the variance; positive and finite.
        mode: 0, 1 or 2.
        axis: the axis of the channels, the batch axis included in the count, negative ones from the end. In mode 1 it
            only sizes gamma and beta, and so has to be as long as the last axis.
        momentum: in [0, 1].
        weights: initial [gamma, beta] or [gamma, beta, running_mean, running_std], arrays of shape (C,).
        beta_init, gamma_init: a name of tritonbn.keras.initializers, or a callable f(shape) that returns an array.
        gamma_regularizer, beta_regularizer: None, a name of tritonbn.keras.regularizers, a dict {'name', 'l1', 'l2'},
            or a callable of the vector; their terms are in `losses`.
        input_shape: without the batch axis; None where a size is unknown.
        batch_input_shape: with it.
        input_dtype: a name such as "float32", which Keras has beside the shape: for get_config, and nothing else.
        name: for get_config; numbered by default.
        trainable: whether gamma and beta get gradients. The running vectors are updated in any case.
        device, dtype: of the vectors. If a call builds them they follow its input to its device, and to float64. What
            is loaded into an unbuilt layer stays in float64, if it comes so, until the first call's input decides.

    Raises:
        ValueError: an argument outside of the values named here, in the constructor; a shape that does not fit, when it
            is known; a regularizer's term that is no scalar, in `losses`.
        TypeError: an unknown keyword; an axis or a size that is no integer; a call with anything but one input.

    What else a call raises is told by tritonbn.batch_norm. After any exception the layer is as it was.
    """

    def __init__(
        self,
        epsilon: float = 0.001,
        mode: int = 0,
        axis: int = -1,
        momentum: float = 0.99,
        weights: Sequence[Any] | None = None,
        beta_init: str | Initializer = "zero",
        gamma_init: str | Initializer = "one",
        gamma_regularizer: str | Mapping[str, Any] | Regularizer | None = None,
        beta_regularizer: str | Mapping[str, Any] | Regularizer | None = None,
        *,
        input_shape: Shape | None = None,
        batch_input_shape: Shape | None = None,
        input_dtype: str | None = None,
        name: str | None = None,
        trainable: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if as_number(mode) not in MODES:
            raise ValueError(f"BatchNormalization: expected mode to be 0, 1 or 2, got {mode!r}")
        if not 0 < as_number(epsilon) < inf:
            raise ValueError(f"BatchNormalization: expected epsilon to be positive and finite, got {epsilon!r}")
        if not 0 <= as_number(momentum) <= 1:
            raise ValueError(f"BatchNormalization: expected momentum to lie in [0, 1], got {momentum!r}")
        if weights is not None and operator.length_hint(weights, -1) not in (2, 4):
            raise ValueError(
                "BatchNormalization: expected weights to be [gamma, beta] or [gamma, beta, running_mean, running_std], "
                f"got {counted(weights)}"
            )
        initializers.get(beta_init), initializers.get(gamma_init)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Lazy modules are a new feature")  # of older versions of torch
            super().__init__()
        self.epsilon = float(epsilon)
        self.mode = int(mode)
        self.axis = as_integer(axis, "axis")
        self.momentum = float(momentum)
        self.beta_init = beta_init
        self.gamma_init = gamma_init
        self.gamma_regularizer = regularizers.get(gamma_regularizer)
        self.beta_regularizer = regularizers.get(beta_regularizer)
        self.name = f"batchnormalization_{next(_numbers)}" if name is None else name
        if batch_input_shape is None and input_shape is not None:
            batch_input_shape = (None, *as_shape(input_shape, "input_shape"))
        self.batch_input_shape = None if batch_input_shape is None else as_shape(batch_input_shape, "batch_input_shape")
        self.input_dtype = input_dtype
        self.rank: int | None = None
        self._initial_weights: dict[str, Tensor] = {}
        for vector, array in zip(VECTORS, () if weights is None else weights, strict=False):
            channels = len(self._initial_weights["gamma"]) if self._initial_weights else None
            self._initial_weights[vector] = as_vector(array, channels, vector)
        self._follows_device = device is None
        self._follows_dtype = dtype is None
        self._kept_wide: frozenset[str] = frozenset()  # vectors that are of float64, as loaded, until a call decides
        for vector in ("gamma", "beta"):
            setattr(self, vector, UninitializedParameter(requires_grad=trainable, device=device, dtype=dtype))
        for vector in ("running_mean", "running_std"):
            self.register_buffer(vector, _UnbuiltBuffer(device=device, dtype=dtype))
        if self.batch_input_shape is not None:
            self.build(self.batch_input_shape)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The call of every module; if the one that builds the layer fails, even in a launch, it is unbuilt again.

        TypeError for anything but one input.
        """
        if torch.compiler.is_compiling():  # by then it is built: torch runs the hook that does so beforehand
            return super().__call__(*args, **kwargs)
        if len(args) + len(kwargs) != 1 or kwargs.keys() - {"input"}:
            raise TypeError(
                "BatchNormalization: expected one input (train() and eval() choose the phase), "
                f"got {', '.join([f'{len(args)} by position', *kwargs])}"
            )
        undecided = {n: (type(v), v.data) for n in VECTORS if is_lazy(v := getattr(self, n)) or n in self._kept_wide}
        weights, kept_wide, rank = self._initial_weights, self._kept_wide, self.rank
        try:
            return super().__call__(*args, **kwargs)
        except BaseException:
            for name, (kind, data) in undecided.items():
                vector = getattr(self, name)
                vector.data, vector.__class__ = data, kind
            if undecided and not hasattr(self, "_initialize_hook"):
                self._initialize_hook = self.register_forward_pre_hook(self._infer_parameters, with_kwargs=True)
                self._load_hook = self._register_load_state_dict_pre_hook(self._lazy_load_hook)
            self._initial_weights, self._kept_wide, self.rank = weights, kept_wide, rank
            raise

    def forward(self, input: Tensor) -> Tensor:
        """Normalize; the result has the input's shape, dtype and memory format."""
        check_input("BatchNormalization", input)
        self.channels_of(input.shape)
        if self.mode == 1:
            y = sample_norm(input, self.gamma, self.beta, self.epsilon)
        else:
            y = batch_norm(
                input,
                self.running_mean if self.mode == 0 else None,
                self.running_std if self.mode == 0 else None,
                self.gamma,
                self.beta,
                training=True if self.training else self.mode == 2,
                momentum=1.0 - self.momentum,
                eps=self.epsilon,
                axis=self.axis,
                correction=0,
            )
        self.rank = input.dim()
        return y

    def build(self, input_shape: Shape) -> None:
        """Give the vectors their shape and values, unless they have them.

        Args:
            input_shape: with the batch axis; None where a size is unknown. ValueError if it does not fit the layer.
        """
        input_shape = as_shape(input_shape, "input_shape")
        channels = self.channels_of(input_shape)
        if self.has_uninitialized_params():
            self._materialize(channels)
        self.rank = len(input_shape)

    def initialize_parameters(self, input: Tensor) -> None:
        """Build the layer for its first input, if all is well with that."""
        if not self.has_uninitialized_params() and not self._kept_wide:
            return
        check_input("BatchNormalization", input)
        uses_kernels(input)  # raises if the environment names no backend
        channels = self.channels_of(input.shape)
        vectors = {}
        for name in VECTORS:
            vector = getattr(self, name)
            device, dtype = self._placement(name, input)
            if is_lazy(vector):
                vector = torch.empty(channels, device=device, dtype=dtype)
            vectors[name] = vector.to(dtype) if name in self._kept_wide else vector
        gamma, beta, mean, variance = vectors.values()
        if self.mode == 1:
            check_sample(input, gamma, beta, self.epsilon)
        else:
            check_batch(input, mean, variance, gamma, beta, True, self.momentum, self.epsilon, self.axis, 0)
        with torch._C._DisableFuncTorch():  # the vectors outlive a transform in which the first input comes
            if self.has_uninitialized_params():
                self._materialize(channels, input)
            for name in self._kept_wide:
                vector = getattr(self, name)
                vector.data = vector.data.to(self._placement(name, input)[1])
        self._kept_wide = frozenset()

    def channels_of(self, shape: Shape) -> int:
        """The size along `axis` of an input of this shape; ValueError if the layer cannot take one."""
        shape = tuple(shape)
        if self.rank is not None and len(shape) != self.rank:
            raise ValueError(f"BatchNormalization: expected an input of {self.rank} axes as before, got shape {shape}")
        if not -len(shape) <= self.axis < len(shape):
            raise ValueError(
                f"BatchNormalization: expected axis in [-{len(shape)}, {len(shape)}) for an input of shape {shape}, "
                f"got {self.axis}"
            )
        channels = shape[self.axis]
        if channels is None:
            raise ValueError(f"BatchNormalization: expected a known size along axis {self.axis}, got shape {shape}")
        if not isinstance(self.gamma, UninitializedParameter) and channels != self.gamma.numel():
            raise ValueError(
                f"BatchNormalization: expected {self.gamma.numel()} channels along axis {self.axis}, got shape {shape}"
            )
        if self.mode == 1 and shape[-1] != channels:
            raise ValueError(
                "BatchNormalization: expected the last axis, which mode 1 normalizes, to be as long as axis "
                f"{self.axis}, which sizes gamma and beta, got shape {shape}"
            )
        return channels

    def _placement(self, name: str, input: Tensor | None) -> tuple[torch.device, torch.dtype]:
        """Where an undecided vector goes: to the input's device and float64, unless something else was asked for."""
        vector = getattr(self, name)
        device, dtype = vector.device, vector.dtype
        if input is not None and self._follows_device and device.type == "cpu":
            device = input.device
        is_open = dtype == torch.float32 or (dtype == torch.float64 and name in self._kept_wide)
        if input is not None and self._follows_dtype and is_open:
            dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        return device, dtype

    def _keep_wide(self, loaded: Mapping[str, Tensor]) -> None:
        """Let unbuilt vectors that follow the first call wait for it in float64 if what is loaded into them is that."""
        for name, value in loaded.items():
            vector = getattr(self, name)
            is_open = self._follows_dtype and is_lazy(vector) and vector.dtype == torch.float32
            if is_open and not is_lazy(value) and value.dtype == torch.float64:
                vector.data = vector.data.double()
                self._kept_wide |= {name}

    def _lazy_load_hook(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Torch's, which gives unbuilt vectors the shapes of what is loaded."""
        self._keep_wide({name: state_dict[prefix + name] for name in VECTORS if prefix + name in state_dict})
        super()._lazy_load_hook(state_dict, prefix, *rest)

    def _materialize(self, channels: int, input: Tensor | None = None) -> None:
        """Turn unbuilt vectors into built ones, all values being there before the first is turned."""
        values = self._initial_values(channels)
        for name in VECTORS:
            vector = getattr(self, name)
            if is_lazy(vector):
                vector.materialize((channels,), *self._placement(name, input))
                vector.data.copy_(values[name])
        self._initial_weights = {}

    def _initial_values(self, channels: int) -> dict[str, Tensor]:
        """Every vector's first value, from `weights` or the initializers."""
        names: dict[str, Initializer] = {
            "gamma": initializers.get(self.gamma_init),
            "beta": initializers.get(self.beta_init),
            "running_mean": initializers.zero,
            "running_std": initializers.one,
        }
        given = self._initial_weights
        return {
            name: as_vector(given[name] if name in given else initializer((channels,)), channels, name)
            for name, initializer in names.items()
        }

    def reset_parameters(self) -> None:
        """Set a built layer's vectors to what the initializers give."""
        if not self.has_uninitialized_params():
            set_vectors(self, self._initial_values(self.gamma.numel()))

    def get_weights(self) -> list[np.ndarray]:
        """Copies of gamma, beta, running_mean and running_std, each (C,); of an unbuilt layer an empty list."""
        if self.has_uninitialized_params():
            return []
        vectors = (getattr(self, name).detach() for name in VECTORS)
        return [v.to("cpu", torch.promote_types(v.dtype, torch.float32), copy=True).numpy() for v in vectors]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Copy four arrays (C,) into gamma, beta, running_mean and running_std; an unbuilt layer is built for them.

        Vectors with torch's parametrizations are set by way of these. ValueError for another number of arrays or
        another shape, or for a vector that is computed, without a right_inverse; then nothing has changed.
        """
        if operator.length_hint(weights, -1) != len(VECTORS):
            raise ValueError(
                f"BatchNormalization: expected {len(VECTORS)} arrays ({', '.join(VECTORS)}), got {counted(weights)}"
            )
        known = next((vector for name in VECTORS if not is_lazy(vector := getattr(self, name))), None)
        channels = len(as_vector(weights[0], None, "gamma")) if known is None else known.numel()
        values = {name: as_vector(array, channels, name) for name, array in zip(VECTORS, weights, strict=True)}
        if self.has_uninitialized_params():
            self._keep_wide(values)
            self._materialize(channels)
        set_vectors(self, values)

    @property
    def trainable(self) -> bool:
        """Whether gamma or beta gets gradients."""
        return self.gamma.requires_grad or self.beta.requires_grad

    @trainable.setter
    def trainable(self, trainable: bool) -> None:
        self.gamma.requires_grad = self.beta.requires_grad = bool(trainable)

    @property
    def losses(self) -> list[Tensor]:
        """The regularizers' terms for the loss, gamma's first, tensors of no axes; of an unbuilt layer none."""
        if self.has_uninitialized_params():
            return []
        pairs = ((self.gamma_regularizer, self.gamma), (self.beta_regularizer, self.beta))
        return [regularizers.term_of(regularizer, vector) for regularizer, vector in pairs if regularizer is not None]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments but weights, device and dtype, ready for JSON.

        An initializer or regularizer that is a callable of the user's own stays one: `from_config` takes it, JSON does
        not.
        """
        config: dict[str, Any] = {"name": self.name, "trainable": self.trainable}
        if self.batch_input_shape is not None:
            config["batch_input_shape"] = list(self.batch_input_shape)
            if self.input_dtype is not None:
                config["input_dtype"] = self.input_dtype
        config |= {"epsilon": self.epsilon, "mode": self.mode, "axis": self.axis, "momentum": self.momentum}
        config |= {f"{name}_init": initializers.name_of(getattr(self, f"{name}_init")) for name in ("gamma", "beta")}
        for name in ("gamma_regularizer", "beta_regularizer"):
            regularizer = getattr(self, name)
            config[name] = regularizer.get_config() if type(regularizer) is L1L2Regularizer else regularizer
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BatchNormalization:
        """A new layer from what get_config gave, which is left as it is."""
        return cls(**config)

    def extra_repr(self) -> str:
        """What tells one layer from another."""
        channels = "unbuilt" if is_lazy(self.gamma) else self.gamma.numel()
        return f"{channels}, mode={self.mode}, axis={self.axis}, epsilon={self.epsilon}, momentum={self.momentum}"

    def _replicate_for_data_parallel(self) -> BatchNormalization:
        """LazyModuleMixin refuses; a built layer has no reason to."""
        if self.has_uninitialized_params():
            return super()._replicate_for_data_parallel()
        return nn.Module._replicate_for_data_parallel(self)


def as_number(value: Any) -> float:
    """The value as a float; nan, which no limits hold, if it is no number."""
    try:
        return float(value) if hasattr(value, "__float__") else nan
    except (TypeError, ValueError, RuntimeError, OverflowError):  # of arrays, tensors, and integers beyond all floats
        return nan


def as_integer(value: Any, name: str) -> int:
    """The value as Python's own integer; TypeError if it is none."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"BatchNormalization: expected {name} to be an integer, got {value!r}") from None


def as_shape(sizes: Shape, name: str) -> tuple[int | None, ...]:
    """A shape of Python's own numbers; TypeError if it is none."""
    try:
        sizes = tuple(sizes)
    except TypeError:
        raise TypeError(f"BatchNormalization: expected {name} to be a tuple of sizes, got {sizes!r}") from None
    return tuple(None if size is None else as_integer(size, f"a size in {name}") for size in sizes)


def counted(weights: Any) -> str:
    """What messages say of weights that are not as many as they should be."""
    count = operator.length_hint(weights, -1)
    return repr(weights) if count < 0 else f"{count} arrays"


def as_vector(values: Any, channels: int | None, name: str) -> Tensor:
    """A copy of an array or tensor as a vector (C,), any C if None; ValueError for another shape."""
    try:
        if isinstance(values, Tensor):
            vector = values.detach().clone()
        else:
            array = np.array(values)
            is_kept = array.dtype == np.float32 or array.dtype.kind == "c"
            vector = torch.from_numpy(array if is_kept else array.astype(np.float64))
        if vector.is_complex():
            raise TypeError("the imaginary parts would be lost")
    except (TypeError, ValueError) as error:
        expected = f"expected {name} to be an array of real numbers"
        raise ValueError(f"BatchNormalization: {expected}, got {values!r}") from error
    if vector.dim() != 1 or channels not in (None, len(vector)):
        shape = "(C,)" if channels is None else f"({channels},)"
        raise ValueError(f"BatchNormalization: expected {name} of shape {shape}, got {tuple(vector.shape)}")
    return vector


def set_vectors(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy values into a module's vectors, by way of their parametrizations if they have some.

    ValueError for one that is computed in another way, or without a right_inverse, before any has changed.
    """
    computed = {name: value for name, value in values.items() if name not in {**module._parameters, **module._buffers}}
    for name, value in computed.items():
        steps = module.parametrizations[name] if is_parametrized(module, name) else [None]
        if not all(hasattr(step, "right_inverse") for step in steps):
            raise ValueError(
                f"{type(module).__name__}: expected {name} to be no computed tensor, "
                "unless by parametrizations that have a right_inverse"
            )
        computed[name] = value = value.to(getattr(module, name))
        with torch.no_grad():  # raises, if it does, before any is set
            for step in reversed(steps):
                value = step.right_inverse(value)
    for name, value in values.items():
        if name in computed:
            setattr(module, name, computed[name])
            continue
        vector = getattr(module, name)
        with torch.no_grad():  # a backward pass that still needs the old values is to hear of it
            (vector.data if vector.is_inference() else vector).copy_(value)


def regularization_loss(model: nn.Module) -> Tensor:
    """The sum of the `losses` of every BatchNormalization in a model, to be added to its loss, as Keras adds it.

    A tensor of no axes, differentiable; zero if there are none.
    """
    terms = [term for part in model.modules() if isinstance(part, BatchNormalization) for term in part.losses]
    return sum((term.to(terms[0].device) for term in terms[1:]), terms[0]) if terms else torch.zeros(())
