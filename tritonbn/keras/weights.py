"""Weights of today's Keras, carried over."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from .layer import VECTORS, BatchNormalization, as_vector, set_vectors

TORCH_VECTORS = ("weight", "bias", "running_mean", "running_var")


def load_keras_weights(module: nn.Module, gamma: Any, beta: Any, moving_mean: Any, moving_variance: Any) -> None:
    """Copy the weights of a keras.layers.BatchNormalization into a module, in the order of its get_weights().

    Args:
        module: a tritonbn.BatchNormalization, which is built if it is not, or any batch norm of tritonbn or torch.nn.
        gamma, beta: arrays (C,), or None where the Keras layer has `scale=False` or `center=False`: ones and zeros.
        moving_mean, moving_variance: arrays (C,).

    Evaluation then agrees with Keras if the epsilon is the same (Keras: 0.001, torch: 1e-5). Training agrees in what
    follows from the batch; torch's momentum is 1 - Keras', and its running_var will be unbiased.

    Raises:
        TypeError: another module.
        ValueError: an array of another shape; a gamma, beta or moving statistics for which the module has no vector,
            or one that is computed, without a right_inverse; a lazy module of torch.nn before its first input. The
            module is then as it was.
    """
    if isinstance(module, LazyModuleMixin) and not isinstance(module, BatchNormalization):
        raise ValueError(f"load_keras_weights: expected a module that has had its first input, got {module}")
    if isinstance(module, BatchNormalization):
        names, lazy = VECTORS, module.has_uninitialized_params()
        channels = len(as_vector(moving_mean, None, "moving_mean")) if lazy else module.gamma.numel()
    elif isinstance(module, _BatchNorm):
        names, lazy, channels = TORCH_VECTORS, False, module.num_features
    else:
        raise TypeError(f"load_keras_weights: expected a batch norm, got {type(module).__name__}")
    ones, zeros = torch.ones(channels), torch.zeros(channels)
    arrays = (ones if gamma is None else gamma, zeros if beta is None else beta, moving_mean, moving_variance)
    values = {name: as_vector(array, channels, name) for name, array in zip(names, arrays, strict=True)}
    given = dict(zip(names, (gamma, beta, moving_mean, moving_variance), strict=True))
    missing = [name for name in names if getattr(module, name) is None and given[name] is not None]
    if missing:
        raise ValueError(f"load_keras_weights: expected a module with {', '.join(missing)}, got {module}")
    if lazy:
        module.set_weights(list(values.values()))
        return
    set_vectors(module, {name: value for name, value in values.items() if getattr(module, name) is not None})
