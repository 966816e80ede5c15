"""What every launch needs: operands that a kernel can walk, constexprs from a geometry, the device that Triton uses."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import kernels
from ..devices import DRIVERS
from ..devices import INTERPRETED as INTERPRETED
from ..geometry import MOST_AXES, Geometry, describable
from ..kernels.source import SOURCE
from . import counters
from .failures import is_of_capture, is_out_of_memory

NOT_OF_A_CONFIG = (OSError, TypeError, ValueError)
"""What is wrong with the arguments or the machine, and would be with any config; as a lack of memory, or a capture."""

POINTER_ALIGNMENT = 16
"""Bytes by which Triton tells kernels apart: accesses of full width need it of every pointer."""

LOWER_CAPS = 8, 16, 24, 32, 48
"""Registers fewer that a kernel is tried with while it spills: NVIDIA's assembler fills what it may take, by luck."""

LOWEST_CAP = 2 / 3
"""The part of its registers that a kernel keeps in any case."""

HOOKS = triton.knobs.runtime
"""Where Triton keeps what it calls at every launch, for a profiler."""

_loading = threading.Lock()
"""Triton says how a kernel is launched before it has loaded it, and lets other threads go on meanwhile."""

os.register_at_fork(after_in_child=_loading._at_fork_reinit)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of mean, invstd and every accumulation: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def walkable(x: Tensor, axis: int) -> Tensor:
    """x itself, unless it is a lazy negation or has more axes that cannot be merged than a geometry holds."""
    if x.is_neg():
        x = x.resolve_neg()
    if x.dim() > MOST_AXES and not describable(x.shape, axis, x.stride(), dense_strides(x)):
        return x.contiguous()
    return x


def walkable_beside(x: Tensor, axis: int, dy: Tensor) -> Tensor:
    """dy itself, unless it is a lazy negation or its axes and x's cannot be merged together; then dy as y lies."""
    if dy.is_neg():
        dy = dy.resolve_neg()
    if x.dim() > MOST_AXES and not describable(x.shape, axis, x.stride(), dy.stride(), dense_strides(x)):
        return torch.empty_like(x).copy_(dy)
    return dy


def dense_strides(x: Tensor) -> tuple[int, ...]:
    """The strides of a result like x."""
    return torch.empty_like(x, device="meta").stride()


def laid_out(x: Tensor, strides: tuple[int, ...]) -> Tensor:
    """x itself, or a copy that lies as these strides say: hooks of saved tensors may return it otherwise."""
    if x.stride() == strides:
        return x
    kept = x[tuple(slice(0, 1) if step == 0 else slice(None) for step in strides)]
    return torch.empty_strided(kept.shape, strides, dtype=x.dtype, device=x.device).copy_(kept).expand(x.shape)


def dense(vector: Tensor | None) -> Tensor | None:
    """The kernels read vectors of channels with stride 1."""
    if vector is None or (vector.is_contiguous() and not vector.is_neg()):
        return vector
    return vector.contiguous().resolve_neg()


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


@cache
def settle_keys() -> None:
    """Make the keys of all kernels: before Triton 3.8 they depend on the order, and before 3.5 not on constants."""
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8):
        for kernel in (getattr(kernels, name) for name in kernels.__all__):
            kernel.hash = f"{kernel.cache_key} {SOURCE.value}"


Strides = tuple[int, ...]


class UnfitError(Exception):
    """A plan's kernels cannot be compiled or launched, for the reason that is its cause; nothing was launched."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.config)
        self.plan = plan


@dataclass(frozen=True)
class Plan:
    """The launches of one kernel for one geometry: everything but the tensors and the scalars.

    All its life a plan is given tensors of the same dtypes, and None in the same places, so that Triton has to look at
    them but once.
    """

    kernel: Any
    sizes: tuple[int, ...]
    """The integers in the order that the kernel takes them: sizes, then the strides of each tensor."""
    launches: tuple[tuple[tuple[int], dict[str, Any]], ...]
    """Grid and keywords (constexprs and launch options) of each launch."""
    partials: tuple[int, ...] = ()
    """The shape of a workspace for partial results; () if there are none."""
    counted: int = 0
    """How many counters the programs need."""
    waits: bool = False
    """Whether programs wait for such as may not have started yet."""
    sign_bytes: int = 0
    """Room for one bit per element."""
    config: Any = None
    """How the work is cut."""
    captured: Plan | None = None
    """What runs instead while a graph is captured, when no kernel can be loaded: made ready with this one."""
    compiled: dict[Any, list[tuple[Any, ...]]] = field(default_factory=dict, compare=False)
    """What `prepare` returned, by driver, device and alignment."""

    @cached_property
    def specialized(self) -> tuple[int, ...]:
        """Which arguments may begin anywhere in memory and are read by wide accesses where they begin well."""
        return tuple(position for position, name in enumerate(self.kernel.arg_names) if name in ("x", "dy", "residual"))

    def workspace(self, x: Tensor) -> Tensor | None:
        """Room for the partial results, on x's device."""
        return x.new_empty(self.partials, dtype=statistics_dtype(x.dtype)) if self.partials else None

    def exchange(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """The same, and zeros by which programs count each other."""
        return self.workspace(x), counters.take(x.device, self.counted)

    def signs(self, x: Tensor) -> Tensor:
        """Room for one bit for every element of x."""
        return x.new_empty(self.sign_bytes, dtype=torch.uint8)

    def run(self, place: torch.device, *arguments: Tensor | float | None) -> None:
        """Launch the kernel, once or several times, on the tensors' device.

        Triton compiles at the first time; what it compiled is launched without it, which takes a tenth of the time.
        UnfitError where that, or the first launch of all, is not possible.
        """
        launched = True
        try:
            if INTERPRETED:
                for grid, keywords in self.launches:
                    self.kernel[grid](*arguments, *self.sizes, **keywords)
                return
            driver = DRIVERS.active
            device = driver.get_current_device()
            index = place.index
            if index is not None and index != device and isinstance(device, int) and place.type in ("cuda", "xpu"):
                with torch.get_device_module(place).device(index):
                    return self.run(place, *arguments)
            odd = 0
            for position in self.specialized:
                tensor = arguments[position]
                if tensor is not None:
                    odd |= tensor.data_ptr()
            key = driver, device, odd % POINTER_ALIGNMENT and self.misaligned(arguments)
            ready = self.compiled.get(key)
            first = ready is None
            if first:
                launched = False
                ready = [self.prepare(arguments, *launch) for launch in self.launches]
                if self.captured is not None and counters.may_capture(place):
                    self.captured.make_ready(key, arguments)
            stream = driver.get_current_stream(device)
            enter, leave = HOOKS.launch_enter_hook, HOOKS.launch_exit_hook
            watched = getattr(enter, "calls", enter) or getattr(leave, "calls", leave)
            for kernel, grid, run, handles, rest in ready:
                if watched:
                    kernel[grid](*arguments, *rest, stream=stream)
                else:
                    run(*grid, stream, *handles, None, None, None, *arguments, *rest)
                launched = True
            if first:
                self.compiled[key] = ready
        except BaseException as error:
            if launched:
                counters.forget()
            of_config = isinstance(error, Exception) and not isinstance(error, NOT_OF_A_CONFIG)
            if launched or not of_config or is_out_of_memory(error) or is_of_capture(error):
                raise
            raise UnfitError(self) from error

    def misaligned(self, arguments: tuple[Tensor | float | None, ...]) -> tuple[bool, ...]:
        """Which of the specialized tensors do not begin where the widest accesses can."""
        tensors = [arguments[position] for position in self.specialized]
        return tuple(t is not None and t.data_ptr() % POINTER_ALIGNMENT != 0 for t in tensors)

    def make_ready(self, key: Any, arguments: tuple[Any, ...]) -> None:
        """Compile and load for another plan's arguments, but its own exchange; where that fails, the first run says so.

        Empty tensors stand for what a run will be given.
        """
        given = dict(zip(self.kernel.arg_names, arguments, strict=False))
        x = given["x"]
        if "counters" in given:
            given["partials"] = x.new_empty(0, dtype=statistics_dtype(x.dtype)) if self.partials else None
            given["counters"] = x.new_empty(0, dtype=torch.int32) if self.counted else None
        with suppress(Exception):
            self.compiled[key] = [self.prepare(tuple(given.values()), *launch) for launch in self.launches]

    def prepare(self, arguments: tuple[Any, ...], grid: tuple[int], keywords: dict[str, Any]) -> tuple[Any, ...]:
        """What it takes to launch, compiled if need be; the last is what follows the arguments, constexprs and all."""
        compiled = self.load(arguments, grid, keywords)
        cap = keywords.get("maxnreg", 0)
        for lower in (cap - fewer for fewer in LOWER_CAPS):
            if compiled.n_spills and lower > cap * LOWEST_CAP:
                other = self.load(arguments, grid, {**keywords, "maxnreg": lower})
                compiled = min(compiled, other, key=lambda each: each.n_spills)
        names = [p.name for p in self.kernel.params if p.is_constexpr]
        rest = (*self.sizes, *(keywords[name] for name in names))
        return compiled, (*grid, 1, 1), compiled.run, (compiled.function, compiled.packed_metadata), rest

    def load(self, arguments: tuple[Any, ...], grid: tuple[int], keywords: dict[str, Any]) -> Any:
        """What Triton makes of the kernel, compiled if need be, and loaded: its registers and spills are known then."""
        with _loading:
            settle_keys()
        compiled = self.kernel.warmup(*arguments, *self.sizes, grid=grid, **keywords)
        with _loading:
            compiled.run  # noqa: B018  # Triton makes the launcher when it is asked for it
            if compiled.function is None:  # Triton itself does not try again where loading has failed once
                compiled._init_handles()
        return compiled
