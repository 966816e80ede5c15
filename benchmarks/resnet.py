"""Every distinct batch norm of ResNet-50: timed beside torch on a GPU; without one, checked and compiled."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

import tritonbn
from tritonbn import reference, targets
from tritonbn.suites import RESNET50, Layer

from .timing import interleaved

BATCH = 32
DTYPE = torch.bfloat16
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
ROUNDING = {"y": 2**-7, "dx": 2**-7, "dweight": 2**-10, "dbias": 2**-10}
"""Largest error, relative to the largest value: bfloat16 rounding of tensors, float32 sums of their roundings."""


def inputs(
    shape: tuple[int, ...], device: torch.device | str, memory_format: torch.memory_format
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight and bias as leaves, and dy."""
    x = torch.randn(shape, device=device).to(DTYPE).contiguous(memory_format=memory_format)
    weight = torch.rand(shape[1], device=device) + 0.5
    dy = torch.randn(shape, device=device).to(DTYPE).contiguous(memory_format=memory_format)
    return x.requires_grad_(), weight.requires_grad_(), torch.zeros_like(weight).requires_grad_(), dy


def by_aten(*arguments: Any) -> Tensor:
    """torch's batch norm on its own kernels, without cuDNN or MIOpen."""
    with torch.backends.cudnn.flags(enabled=False):
        return F.batch_norm(*arguments)


def providers() -> dict[str, Callable[..., Tensor]]:
    """Who is timed: ours first."""
    return {
        "tritonbn": tritonbn.batch_norm,
        "torch, cuDNN": F.batch_norm,
        "torch, ATen": by_aten,
        "torch.compile": torch.compile(F.batch_norm, fullgraph=True),
    }


def training_forward(function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor) -> Callable[[], Tensor]:
    """A call of the function in training, with running buffers of its own."""
    buffers = torch.zeros_like(weight.detach()), torch.ones_like(weight.detach())
    return lambda: function(x, *buffers, weight, bias, True)


def training_backward(y: Tensor, leaves: list[Tensor], dy: Tensor) -> Callable[[], Any]:
    """A call of y's backward pass, which may be repeated."""
    return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)


def time_layers(device: torch.device, console: Console) -> None:
    """Measure forward and backward of every provider, every layer, both layouts."""
    functions = providers()
    gpu = torch.get_device_module(device).get_device_name(device)
    table = Table(title=f"ResNet-50, batch {BATCH}, {DTYPE}, measured on {gpu}: microseconds, and how many times ours")
    for column in ("layer", "layout", "pass", *functions):
        table.add_column(column, justify="left" if column in ("layer", "layout", "pass") else "right")
    cases = [(layer, name) for layer in RESNET50 for name in FORMATS]
    with Progress(console=console) as progress:
        for layer, name in progress.track(cases, description="timing layers"):
            x, weight, bias, dy = inputs(layer.shape(BATCH), device, FORMATS[name])
            forwards = [training_forward(function, x, weight, bias) for function in functions.values()]
            backwards = [training_backward(forward(), [x, weight, bias], dy) for forward in forwards]
            for which, calls in (("forward", forwards), ("backward", backwards)):
                ours, *theirs = (times.median * 1000 for times in interleaved(calls, device))
                cells = [f"{ours:.1f}", *(f"{their:.1f} {their / ours:.2f}x" for their in theirs)]
                table.add_row(times((layer.channels, *layer.spatial)), name, which, *cells)
    console.print(table)
    console.print("cold L2, medians of 30 interleaved rounds\n")


def check_layers(device: torch.device, batch: int, most_elements: int, console: Console) -> bool:
    """Hold y and the gradients of every layer to the float64 reference; whether all were right.

    Layers of more than `most_elements` have their channels halved until they fit; what is then the same is done once.
    """
    table = Table(title=f"ResNet-50's layers, {DTYPE}: greatest error / greatest value")
    for column in ("x", "layout", *ROUNDING, "right"):
        table.add_column(column, justify="left" if column in ("x", "layout") else "right")
    right = True
    shapes = dict.fromkeys(reduced(layer, batch, most_elements) for layer in RESNET50)
    cases = [(shape, name) for shape in shapes for name in FORMATS]
    with Progress(console=console) as progress:
        for shape, name in progress.track(cases, description="checking values"):
            errors = layer_errors(shape, device, FORMATS[name])
            fine = all(errors[key] <= ROUNDING[key] for key in ROUNDING)
            right &= fine
            table.add_row(times(shape), name, *(f"{e:.1e}" for e in errors.values()), "yes" if fine else "NO")
    console.print(table)
    return right


def reduced(layer: Layer, batch: int, most_elements: int) -> tuple[int, ...]:
    """The layer's shape, with fewer channels if it is too large."""
    batch, channels, *spatial = layer.shape(batch)
    while channels > 1 and batch * channels * math.prod(spatial) > most_elements:
        channels //= 2
    return (batch, channels, *spatial)


def times(sizes: tuple[int, ...]) -> str:
    """(64, 7, 7) as "64x7x7"."""
    return "x".join(map(str, sizes))


def layer_errors(shape: tuple[int, ...], device: torch.device, memory_format: torch.memory_format) -> dict[str, float]:
    """Greatest error of each result, relative to its greatest value."""
    x, weight, bias, dy = inputs(shape, device, memory_format)
    y = tritonbn.batch_norm(x, None, None, weight, bias, training=True)
    results = [y, *torch.autograd.grad(y, [x, weight, bias], dy)]
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight, bias)]
    truth = reference.batch_norm(exact[0], None, None, *exact[1:], training=True).y
    truths = [truth, *torch.autograd.grad(truth, exact, dy.double())]
    return {
        name: ((result.double() - expected).abs().max() / expected.abs().max()).item()
        for name, result, expected in zip(("y", "dx", "dweight", "dbias"), results, truths, strict=True)
    }


def compile_layers(architecture: str, console: Console) -> None:
    """Print what the compiler makes of every layer for a GPU that need not be there."""
    table = Table(title=f"ResNet-50, batch {BATCH}, {DTYPE}, compiled for {architecture}, not run")
    for column in ("layer", "layout", "launches", "registers", "spills", "access"):
        table.add_column(column, justify="left" if column in ("layer", "layout") else "right")
    cases = [(layer, name, architecture) for layer in RESNET50 for name in FORMATS]
    with Progress(console=console) as progress, ProcessPoolExecutor(mp_context=get_context("spawn")) as workers:
        rows = workers.map(compiled_row, cases)
        for row in progress.track(rows, total=len(cases), description=f"compiling for {architecture}"):
            table.add_row(*row)
    console.print(table)
    console.print("launches, registers a thread: forward + backward. spills: bytes a thread, all launches together.")
    console.print("access: bytes that a thread loads at once of x and dy; 16 is the most.")


def compiled_row(case: tuple[Layer, str, str]) -> list[str]:
    """One layer and layout as cells of the table."""
    layer, name, architecture = case
    x, weight, bias, dy = inputs(layer.shape(BATCH), "meta", FORMATS[name])
    with targets.compiling_for(architecture) as launches:
        y = tritonbn.batch_norm(x, weight.detach(), bias.detach(), weight, bias, training=True)
        forward = len(launches)
        torch.autograd.grad(y, [x, weight, bias], dy)
    found = [launch.resources for launch in launches]
    registers = [str(resources.registers) for resources in found]
    return [
        times((layer.channels, *layer.spatial)),
        name,
        f"{forward} + {len(launches) - forward}",
        f"{' '.join(registers[:forward])} + {' '.join(registers[forward:])}",
        str(sum(resources.spills for resources in found)),
        " ".join(map(str, sorted({tile_access(launch) for launch in launches}))),
    ]


def tile_access(launch: targets.Launch) -> int:
    """The widest access that the alignment allows and of which there are enough for the launch's tile."""
    elements = math.prod(launch.arguments[f"BLOCK_{axis}"] for axis in ("OI" if launch.arguments["RUN"] else "COI"))
    of_a_thread = elements * DTYPE.itemsize // (launch.num_warps * launch.target.warp_size)
    aligned = launch.arguments["ALIGN"] * DTYPE.itemsize
    loads = launch.resources.loads
    return max(width for width in loads if width <= aligned and width * loads[width] >= of_a_thread)
