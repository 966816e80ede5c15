"""Options that commands share: which problems, and how results are printed."""

from __future__ import annotations

import argparse
import itertools
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, get_args

import torch

from .. import devices
from ..devices import Device
from ..functional import ACTIVATIONS, DTYPES
from ..problems import MODES, USUAL, Problem, Task
from ..suites import SUITES, Layout, Suite
from . import exits
from .exits import USAGE, ExitError
from .output import Column

LAYOUTS: tuple[str, ...] = get_args(Layout)
DTYPE_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}


def command(
    commands: Any, name: str, run: Any, summary: str, text: str, examples: str, *more: str
) -> argparse.ArgumentParser:
    """A parser for one command, whose help ends with examples, and more."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=text,
        epilog="\n".join(["examples:", examples, *more, "", exits.MEANING]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_problems(parser: argparse.ArgumentParser, default: str) -> None:
    """What is tuned or looked at; `default` says what if neither suite nor shapes are given."""
    group = parser.add_argument_group("what")
    which = group.add_mutually_exclusive_group()
    which.add_argument("--suite", choices=SUITES, metavar="NAME", help=f"layers, see below (default: {default})")
    which.add_argument("--shape", nargs="+", type=sizes, metavar="N,C,...", help="inputs, such as 32,256,56,56")
    group.add_argument("--batch", type=positive, metavar="N", help="batch of the suite, instead of its own")
    for name, choices, usual in (
        ("mode", MODES, ", ".join(USUAL)),
        ("dtype", DTYPE_NAMES, "bfloat16"),
        ("layout", LAYOUTS, "the suite's, or channels_first"),
    ):
        text = f"one or more of {', '.join(choices)} (default: {usual})"
        group.add_argument(f"--{name}", nargs="+", choices=choices, metavar=name.upper(), help=text)
    group.add_argument("--activation", choices=ACTIVATIONS, help="computed in the same launch")
    group.add_argument("--residual", action="store_true", help="with a tensor that is added before the activation")


def suites() -> str:
    """All suites, for a help text."""
    found = ["suites:"]
    for name, suite in SUITES.items():
        text = f"{name} ({len(suite.layers)} inputs, batch {suite.batch}, {suite.layout}): {suite.source}"
        found.append(textwrap.fill(text, 110, initial_indent="  ", subsequent_indent="    "))
    return "\n".join(found)


def add_output(parser: argparse.ArgumentParser, csv: bool = True) -> None:
    """How results are printed."""
    how = parser.add_argument_group("output").add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="one JSON document on stdout, and nothing else there")
    if csv:
        how.add_argument("--csv", action="store_true", help="the table as CSV on stdout, and nothing else there")
    else:
        parser.set_defaults(csv=False)


def sizes(text: str) -> tuple[int, ...]:
    """32,256,56,56 as numbers."""
    found = tuple(map(positive, text.replace("x", ",").split(",")))
    if len(found) < 2:
        raise argparse.ArgumentTypeError(f"expected a batch, channels, and perhaps more, got {text!r}")
    return found


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.strip().isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def some(text: str) -> int:
    """A whole number from 1 on, or "all"."""
    return sys.maxsize if text == "all" else positive(text)


def problems(arguments: argparse.Namespace, default: Suite) -> list[Problem]:
    """What the options say; the layers of `default` without a suite and shapes."""
    suite = SUITES.get(arguments.suite, default)
    inputs, usual = suite.shapes(arguments.batch), suite.layout
    if arguments.shape:
        if arguments.batch:
            raise ExitError(USAGE, "--batch is for a suite: the batch of a --shape is its first number")
        inputs, usual = [("", shape) for shape in arguments.shape], LAYOUTS[0]
    layouts, dtypes, modes = arguments.layout or [usual], arguments.dtype or ["bfloat16"], arguments.mode or USUAL
    return [
        Problem(shape, mode, DTYPE_NAMES[dtype], layout, arguments.activation, arguments.residual, name)
        for (name, shape), layout, dtype, mode in itertools.product(inputs, layouts, dtypes, modes)
        if len(shape) > 2 or layout == layouts[0]  # without pixels both are the same
    ]


def tasks(found: Sequence[Problem], place: torch.device, device: Device) -> list[Task]:
    """The problems on a device; ends the command where one is no input of batch norm."""
    try:
        with devices.assume(device):
            return [Task(problem, place) for problem in found]
    except (RuntimeError, ValueError) as error:
        raise ExitError(USAGE, str(error)) from error


def fields(problem: Problem) -> dict[str, Any]:
    """A problem as a row has it."""
    return {
        "layer": problem.name or None,
        "shape": "x".join(map(str, problem.shape)),
        "layout": problem.layout,
        "dtype": str(problem.dtype).removeprefix("torch."),
        "mode": problem.mode,
        "activation": problem.activation,
        "residual": problem.residual,
    }


COLUMNS = (
    Column("layer", left=True),
    Column("shape", left=True),
    Column("layout", left=True, common=True),
    Column("dtype", left=True, common=True),
    Column("mode", left=True, common=True),
    Column("activation", left=True, common=True),
    Column("residual", left=True, common=True),
)
"""Of what `fields` makes."""


def label(problem: Problem) -> str:
    """A problem in a few words."""
    words = [problem.name, "x".join(map(str, problem.shape)), problem.layout, problem.mode, problem.activation]
    return " ".join([*filter(None, words), *["residual"] * problem.residual])
