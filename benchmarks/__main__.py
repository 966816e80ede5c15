"""python -m benchmarks: the speed report on a GPU; without one, what can be known without one, labelled as such."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from tritonbn import devices
from tritonbn.cli import options
from tritonbn.compiling import processes
from tritonbn.launching.launch import INTERPRETED
from tritonbn.problems import USUAL
from tritonbn.suites import SUITES

from . import environment, terminal
from . import report as reports
from .cases import DEFAULT, DTYPES, FULL, KERAS_MODES, LAYOUTS, Case, Selection, distinct
from .compare import changes
from .frame import frame
from .gather import Asked, find_device, gather
from .page import write as write_page
from .providers import PROVIDERS
from .report import Report

TEXT = """\
Time tritonbn beside cuDNN (MIOpen), torch's own kernels and torch.compile on the batch norms of real networks, and
train two networks with it. Every value is checked against float64 before it is timed. Without a GPU: values by Triton's
interpreter, machine code by the compiler, times by a model, and the host's time, each labelled so."""

EXAMPLES = """\
examples:
  python -m benchmarks                                                  about 200 cases, see benchmarks/cases.py
  python -m benchmarks --suite resnet50 --dtype float16 --layout channels_last --pass forward backward
  python -m benchmarks --suite odd --batch 1 8 --fused --steps 0        no training; batch norm + add + relu
  python -m benchmarks --compare report/report.json --out report-new    what changed since another report

Writes report.html (one file, plots inside), report.json and report.csv. Exit codes: 0 all values are right, 1 one of
tritonbn's is not or something did not compile, 2 usage, 130 interrupted."""

DTYPE_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}


def parser() -> argparse.ArgumentParser:
    """All options."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=TEXT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = made.add_argument_group("what")
    what.add_argument("--full", action="store_true", help="all suites, batches, dtypes and layouts: days")
    what.add_argument("--suite", nargs="+", choices=SUITES, metavar="NAME", help=f"of {', '.join(SUITES)}")
    what.add_argument("--batch", nargs="+", type=options.positive, metavar="N", help="default: the suite's own")
    what.add_argument("--dtype", nargs="+", choices=DTYPE_NAMES, metavar="DTYPE", help=f"of {', '.join(DTYPE_NAMES)}")
    what.add_argument("--layout", nargs="+", choices=LAYOUTS, metavar="LAYOUT", help=f"of {', '.join(LAYOUTS)}")
    what.add_argument("--pass", nargs="+", choices=USUAL, metavar="PASS", dest="passes", help=f"of {', '.join(USUAL)}")
    what.add_argument("--fused", action="store_true", help="batch norm + add + relu instead of batch norm alone")
    what.add_argument("--keras", nargs="+", type=int, choices=KERAS_MODES, metavar="MODE", help="Keras' layer instead")
    what.add_argument(
        "--provider", nargs="+", choices=PROVIDERS, metavar="WHO", help=f"of {', '.join(map(repr, PROVIDERS))}"
    )
    how = made.add_argument_group("how")
    how.add_argument("--steps", type=steps, metavar="N", help="of each training; 0 for none (default: what suits)")
    how.add_argument("--limit", type=seconds, default=180, metavar="S", help="seconds a provider may be silent (180)")
    how.add_argument("--target", metavar="GPU", help="to compile for (default: the one here, or H100)")
    out = made.add_argument_group("output")
    out.add_argument("--out", type=Path, default=Path("report"), metavar="DIR", help="where files go (report)")
    out.add_argument("--compare", type=Path, metavar="OLD.json", help="show what changed since another report")
    return made


def steps(text: str) -> int:
    """A whole number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 on, got {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """A positive number."""
    found = float(text)
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number of seconds, got {text!r}")
    return found


def chosen(arguments: argparse.Namespace) -> list[Case]:
    """The cases that the options ask for; without any, the usual ones."""
    given = {
        "suites": arguments.suite,
        "batches": arguments.batch,
        "dtypes": arguments.dtype and [DTYPE_NAMES[name] for name in arguments.dtype],
        "layouts": arguments.layout,
        "directions": arguments.passes,
        "fused": [True] if arguments.fused else None,
        "keras": arguments.keras,
    }
    narrowed = {name: tuple(values) for name, values in given.items() if values}
    if arguments.full:
        selections: Iterable[Selection] = (replace(each, **narrowed) for each in FULL)
    elif narrowed:
        selections = [replace(Selection(tuple(SUITES), directions=USUAL), **narrowed)]
    else:
        selections = DEFAULT
    return distinct(selections)


def main() -> int:
    """The exit code."""
    made = parser()
    arguments = made.parse_args()
    if INTERPRETED:
        made.error("expected no TRITON_INTERPRET=1: the report starts the interpreter by itself")
    processes.share_imports("benchmarks.modelled", "benchmarks.compiled")
    cases, names = chosen(arguments), arguments.provider or list(PROVIDERS)
    if not cases:
        made.error("expected options that leave a case: channels need two values, --keras has training passes only")
    try:
        target = arguments.target and devices.named(arguments.target)
        old = arguments.compare and reports.read(arguments.compare)
        arguments.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        made.error(str(error))
    console, device, part = Console(), find_device(), arguments.out / "report.part.json"
    asked = Asked(
        cases,
        names,
        console,
        partial(reports.write, path=part),
        arguments.steps,
        arguments.limit,
        target,
        arguments.full,
    )
    report, interrupted = Report(environment.describe(device)), False
    try:
        gather(asked, report, device)
    except KeyboardInterrupt:
        interrupted = True
        console.print("\ninterrupted: this is what is known so far\n", style="bold")
    save(report, arguments.out)
    part.unlink(missing_ok=True)
    terminal.show(report, console)
    if old:
        terminal.show_changes(changes(old, report), console)
    console.print(f"written: {arguments.out / 'report.html'}, report.json and report.csv beside it", soft_wrap=True)
    return 130 if interrupted else 0 if report.is_right else 1


def save(report: Report, directory: Path) -> None:
    """Write all files."""
    reports.write(report, directory / "report.json")
    frame(report).to_csv(directory / "report.csv", index=False)
    write_page(report, directory / "report.html")


if __name__ == "__main__":
    sys.exit(main())
