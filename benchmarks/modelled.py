"""What forward and backward of real layers should take on GPUs that are not here: a model, not a measurement."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from tritonbn import counters
from tritonbn.configs import Config, Mode, Work
from tritonbn.cost import LAUNCH, floor, modelled_time
from tritonbn.devices import Device, named
from tritonbn.geometry import describe
from tritonbn.space import choose
from tritonbn.suites import RESNET50

GPUS = ("H100", "A100", "MI300X")
DTYPE = torch.bfloat16
MODES: tuple[Mode, ...] = ("forward", "backward", "inference")


@dataclass(frozen=True)
class Shape:
    """An input, channels second, and how it lies."""

    name: str
    sizes: tuple[int, ...]
    memory_format: torch.memory_format = torch.contiguous_format

    def work(self, mode: Mode) -> Work:
        """As the kernels see it with other tensors that lie alike."""
        x = torch.empty(self.sizes, dtype=DTYPE, device="meta").to(memory_format=self.memory_format)
        return Work(mode, describe(x.shape, 1, *[x.stride()] * 3), DTYPE)


SHAPES = (
    *(Shape(f"ResNet-50, {layer.name}", layer.shape(32)) for layer in RESNET50),
    *(Shape(f"ResNet-50, {layer.name}, last", layer.shape(32), torch.channels_last) for layer in RESNET50[::4]),
    Shape("UNet", (8, 64, 256, 256)),
    Shape("ConvNeXt, last", (32, 96, 56, 56), torch.channels_last),
    Shape("MLP", (4096, 512)),
    Shape("4 channels, last", (8, 4, 128, 128), torch.channels_last),
)


def modelled(shape: Shape, mode: Mode, device: Device) -> tuple[Config, float]:
    """The config that is chosen for a GPU, and the seconds from the launch to its end."""
    work = shape.work(mode)
    config = choose(work, device, counters.SHARE)
    return config, LAUNCH + modelled_time(work, config, device)


def show(host: float, console: Console) -> None:
    """Print for every shape the model beside the floor; `host` is what a forward call takes on this CPU, in seconds."""
    table = Table(title=f"Modelled time of one launch, {DTYPE}, batch 32 unless said, microseconds: floor / modelled")
    table.add_column("layer")
    table.add_column("x")
    for gpu in GPUS:
        for mode in MODES:
            table.add_column(f"{gpu} {mode}", justify="right")
    for shape in SHAPES:
        cells = []
        for gpu in GPUS:
            for mode in MODES:
                config, time = modelled(shape, mode, named(gpu))
                mark = "*" if config.strategy == "dataflow" else ""
                cells.append(f"{floor(shape.work(mode), named(gpu)) * 1e6:.1f} / {time * 1e6:.1f}{mark}")
        table.add_row(shape.name, "x".join(map(str, shape.sizes)), *cells)
    console.print(table)
    console.print("modelled: bytes over the data sheet's bandwidth, waves of programs, waits, and the launch")
    console.print("floor: the bytes alone. *: x is read twice, the second time from the L2")
    console.print(
        f"an eager call takes no less than its host time, {host * 1e6:.0f} us forward as measured on this CPU\n"
    )
