"""Batch normalization for PyTorch on Triton kernels."""

from . import operators as operators
from . import synced_operators as synced_operators
from .backends import backend
from .choice.selection import tuning
from .conversion.convert import convert, convert_sync
from .functional import batch_norm
from .keras import BatchNormalization, regularization_loss
from .modules import BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm

__version__ = "0.1.0"
__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormalization",
    "SyncBatchNorm",
    "backend",
    "batch_norm",
    "convert",
    "convert_sync",
    "regularization_loss",
    "tuning",
]
