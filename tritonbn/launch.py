"""What every launch needs: operands that a kernel can walk, constexprs from a geometry, the device that Triton uses."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import triton.language as tl
from torch import Tensor

from . import counters
from .devices import INTERPRETED as INTERPRETED
from .geometry import MOST_AXES, Geometry, describable


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of mean, invstd and every accumulation: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def walkable(x: Tensor, axis: int) -> Tensor:
    """x itself, unless it is a lazy negation or has more axes that cannot be merged than a geometry holds."""
    x = x.resolve_neg()
    if x.dim() > MOST_AXES and not describable(x.shape, axis, x.stride(), dense_strides(x)):
        return x.contiguous()
    return x


def walkable_beside(x: Tensor, axis: int, dy: Tensor) -> Tensor:
    """dy itself, unless it is a lazy negation or its axes and x's cannot be merged together; then dy as y lies."""
    dy = dy.resolve_neg()
    if x.dim() > MOST_AXES and not describable(x.shape, axis, x.stride(), dy.stride(), dense_strides(x)):
        return torch.empty_like(x).copy_(dy)
    return dy


def dense_strides(x: Tensor) -> tuple[int, ...]:
    """The strides of a result like x."""
    return torch.empty_like(x, device="meta").stride()


def dense(vector: Tensor | None) -> Tensor | None:
    """The kernels read vectors of channels with stride 1."""
    return None if vector is None else vector.contiguous().resolve_neg()


class Tile(Protocol):
    """What every config has."""

    block_c: int
    block_o: int
    block_i: int
    num_warps: int


def tile_keywords(geometry: Geometry, config: Tile, dtype: torch.dtype) -> dict[str, Any]:
    """The constexprs and launch options that follow from a tile."""
    return {
        "ACCUMULATOR": tl.float64 if dtype == torch.float64 else tl.float32,
        "INDEX": tl.int64 if geometry.index_bits == 64 else tl.int32,
        "OUTER_RANK": geometry.outer_rank,
        "CHANNELS_LAST": geometry.channels_last,
        "ALIGN": geometry.alignment,
        "BLOCK_C": config.block_c,
        "BLOCK_O": config.block_o,
        "BLOCK_I": config.block_i,
        "MASK_C": geometry.channels % config.block_c != 0,
        "MASK_O": geometry.outer_size % config.block_o != 0,
        "MASK_I": geometry.inner % config.block_i != 0,
        "num_warps": config.num_warps,
        "enable_fp_fusion": True,
    }


def steps(geometry: Geometry, residual_last: bool = False) -> tuple[int, ...]:
    """The strides of every tensor, in the order that the kernels take them."""
    strides = geometry.strides[1:] + geometry.strides[:1] if residual_last else geometry.strides
    return tuple(step for tensor in strides for step in tensor)


@dataclass(frozen=True)
class Plan:
    """The launches of one kernel for one geometry: everything but the tensors and the scalars."""

    kernel: Any
    sizes: tuple[int, ...]
    """The integers in the order that the kernel takes them: sizes, then the strides of each tensor."""
    launches: tuple[tuple[tuple[int], dict[str, Any]], ...]
    """Grid and keywords (constexprs and launch options) of each launch."""
    partials: tuple[int, ...] = ()
    """The shape of a workspace for partial results; () if there are none."""
    counted: int = 0
    """How many counters the programs need."""
    sign_bytes: int = 0
    """Room for one bit an element."""

    def workspace(self, x: Tensor) -> Tensor | None:
        """Room for the partial results, on x's device."""
        return x.new_empty(self.partials, dtype=statistics_dtype(x.dtype)) if self.partials else None

    def counters(self, x: Tensor) -> Tensor | None:
        """Zeros by which programs count each other, on x's device."""
        return counters.take(x.device, self.counted) if self.counted else None

    def signs(self, x: Tensor) -> Tensor:
        """Room for one bit for every element of x."""
        return x.new_empty(self.sign_bytes, dtype=torch.uint8)

    def run(self, device: torch.device, *arguments: Tensor | float | None) -> None:
        """Launch the kernel, once or several times, on the tensors' device."""
        with on_device(device):
            try:
                for grid, keywords in self.launches:
                    self.kernel[grid](*arguments, *self.sizes, **keywords)
            except BaseException:
                counters.forget()
                raise


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which `device` is the one that Triton launches on."""
    if device.type not in ("cuda", "xpu"):
        return nullcontext()
    module = torch.get_device_module(device)
    return nullcontext() if module.current_device() == device.index else module.device(device.index)
