"""Batch norms from papers on the kernels of the ordinary one."""

from .frozen import FrozenBatchNorm, freeze
from .ghost import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d
from .masked import MaskedBatchNorm1d, MaskedBatchNorm2d, MaskedBatchNorm3d, masked_batch_norm
from .renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d

__all__ = [
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "FrozenBatchNorm",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "MaskedBatchNorm1d",
    "MaskedBatchNorm2d",
    "MaskedBatchNorm3d",
    "freeze",
    "masked_batch_norm",
]
