"""What is compared: inputs of real layers, and what is done with them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import get_args

import torch

from tritonbn import devices
from tritonbn.problems import USUAL, Problem, Task
from tritonbn.suites import SUITES, Layout

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
BATCHES = (1, 8, 32, 128)
KERAS_MODES = (0, 1, 2)
TRAINING = ("forward", "backward")


@dataclass(frozen=True)
class Case:
    """A layer's input, and what is done with it."""

    suite: str
    problem: Problem
    """For Keras' mode 1 with the samples' axis last, otherwise channels second."""
    keras: int | None = None
    """Through the Keras layer of this mode, channels last; None for batch_norm itself."""

    @property
    def direction(self) -> str:
        """One of USUAL."""
        return self.problem.mode.removeprefix("sample_")

    @property
    def fused(self) -> bool:
        """Whether a residual is added and relu follows."""
        return self.problem.residual

    @property
    def elements(self) -> int:
        """Of the input."""
        return math.prod(self.problem.shape)

    @property
    def kind(self) -> str:
        """All but the layer and its size, in words."""
        layer = "batch_norm" if self.keras is None else f"Keras mode {self.keras}"
        return f"{layer}{' + add + relu' if self.fused else ''} {self.direction}"

    @property
    def name(self) -> str:
        """In words, different for different cases."""
        problem = self.problem
        return f"{self.suite}: {problem.name}, {shape_of(self)}, {dtype_of(self)}, {problem.layout}, {self.kind}"

    @property
    def least_bytes(self) -> int:
        """What has to be moved at least: every tensor once, vectors not counted."""
        with devices.assume(devices.TABLE[0]) as device:  # any: what it takes per second is divided out again
            return round(Task(self.problem, torch.device("meta")).floor * device.bandwidth)


def shape_of(case: Case) -> str:
    """64x3x7x7."""
    return "x".join(map(str, case.problem.shape))


def dtype_of(case: Case) -> str:
    """Without torch's name."""
    return str(case.problem.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Selection:
    """Cases that are the product of these."""

    suites: tuple[str, ...]
    most: int | None = None
    """Layers of each suite, evenly from the first to the last; None for all."""
    batches: tuple[int, ...] = ()
    """Empty for the suite's own."""
    dtypes: tuple[torch.dtype, ...] = (torch.float16,)
    layouts: tuple[Layout, ...] = ()
    """Empty for the suite's own."""
    directions: tuple[str, ...] = TRAINING
    fused: tuple[bool, ...] = (False,)
    keras: tuple[int | None, ...] = (None,)

    def cases(self) -> Iterator[Case]:
        """In the order of the suites and their layers."""
        for name in self.suites:
            suite = SUITES[name]
            layers = thinned(suite.layers, self.most)
            batches, layouts = self.batches or (suite.batch,), self.layouts or (suite.layout,)
            inputs = itertools.product(layers, batches, layouts, self.dtypes, self.fused, self.keras, self.directions)
            for layer, batch, layout, dtype, fused, keras, direction in inputs:
                shape = layer.shape(batch)
                is_new = len(shape) > 2 or layout == layouts[0]  # without pixels both layouts are the same
                has_mode = keras is None or (direction in TRAINING and not fused)
                if has_statistics(shape, direction) and is_new and has_mode:
                    yield case(name, Problem(shape, direction, dtype, layout, name=layer.name), fused, keras)


def case(suite: str, problem: Problem, fused: bool, keras: int | None) -> Case:
    """With the epilogue, and as the Keras layer has it."""
    shape, mode, layout = problem.shape, problem.mode, problem.layout
    if keras is not None:
        layout = "channels_last"
    if keras == 1:
        batch, channels, *spatial = shape
        shape, mode, layout = (batch, *spatial, channels), f"sample_{mode}", "channels_first"
    activation = "relu" if fused else None
    return Case(suite, Problem(shape, mode, problem.dtype, layout, activation, fused, problem.name), keras)


def has_statistics(shape: tuple[int, ...], direction: str) -> bool:
    """Whether a channel has two values, as training needs, and three backward: of two all of dx is rounding."""
    return math.prod(shape) > shape[1] * (2 if direction == "backward" else 1)


def thinned(layers: tuple, most: int | None) -> tuple:
    """At most so many, evenly, the first and the last among them."""
    if most is None or len(layers) <= most:
        return layers
    return tuple(layers[round(number * (len(layers) - 1) / max(1, most - 1))] for number in range(most))


OTHERS = tuple(name for name in SUITES if name != "resnet50")

DEFAULT = (
    Selection(("resnet50",), layouts=LAYOUTS, directions=USUAL),
    Selection(("resnet50",), most=3, layouts=LAYOUTS, fused=(True,)),
    Selection(("resnet50",), most=2, batches=(1, 8, 128), dtypes=(torch.bfloat16,)),
    Selection(("resnet50",), most=2, dtypes=(torch.float32,), layouts=LAYOUTS),
    Selection(OTHERS, most=3),
    Selection(("convnext", "mlp"), most=2, keras=KERAS_MODES),
)
"""What the report has without options: mostly in float16, since cuDNN's batch norm takes no bfloat16 from torch."""

FULL = (
    Selection(tuple(SUITES), None, BATCHES, DTYPES, LAYOUTS, USUAL, (False, True)),
    Selection(("convnext", "mlp", "odd"), None, BATCHES, DTYPES, keras=KERAS_MODES),
)


def distinct(selections: Iterable[Selection]) -> list[Case]:
    """All cases of all selections, each once."""
    return list(dict.fromkeys(case for selection in selections for case in selection.cases()))


def reduced(case: Case, most_elements: int) -> Case:
    """A case small enough to be run in the interpreter: fewer samples first, then channels, then pixels."""
    sizes, channels = list(case.problem.shape), len(case.problem.shape) - 1 if case.keras == 1 else 1
    while math.prod(sizes) > most_elements:
        if sizes[0] > 4:
            sizes[0] = max(4, sizes[0] // 2)
        elif sizes[channels] > 4:
            sizes[channels] = -(-sizes[channels] // 2)
        else:
            largest = max(range(1, len(sizes)), key=sizes.__getitem__)
            sizes[largest] = -(-sizes[largest] // 2)
    return replace(case, problem=replace(case.problem, shape=tuple(sizes)))
