"""Keras' BatchNormalization (1.2, modes 0, 1 and 2), with its initializers and regularizers."""

from . import initializers, regularizers
from .layer import BatchNormalization, regularization_loss
from .regularizers import L1L2Regularizer, WeightRegularizer, l1, l1l2, l2
from .weights import load_keras_weights

__all__ = [
    "BatchNormalization",
    "L1L2Regularizer",
    "WeightRegularizer",
    "initializers",
    "l1",
    "l1l2",
    "l2",
    "load_keras_weights",
    "regularization_loss",
    "regularizers",
]
