"""tritonbn info: what is installed, what it runs on, and where it keeps what it knows."""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import torch
import triton

from .. import __version__, backends
from ..choice import selection
from ..choice.blocks import known
from ..devices import INTERPRETED
from ..measured import store
from . import gpu, options
from .exits import FAILED, OK, ExitError
from .output import Column, Report, show_json, show_table, size

TEXT = """\
Show versions, the GPU as tritonbn plans for it, what is in force, and the caches.

Works without a GPU, and under TRITON_INTERPRET=1. Ends with 1 where there is a GPU that cannot be used."""

EXAMPLES = """\
  tritonbn info
  tritonbn info --json > environment.json    to go with a report
"""

PAIR = Column("name", left=True), Column("value", left=True)

CACHE = (
    Column("what", left=True),
    Column("files"),
    Column("bytes", "size", size),
    Column("writable", form=lambda value: "yes" if value else "NO"),
    Column("path", left=True),
)

FAILURE = "failure"
"""In place of what is known of a GPU."""

UNITS: dict[str, Callable[[Any], str]] = {
    "l2_bytes": size,
    "shared_bytes": size,
    "reserved_shared": size,
    "bandwidth": lambda value: f"{value / 1e9:.0f} GB/s",
    "clock": lambda value: f"{value / 1e9:.2f} GHz",
}


def add(commands: Any) -> None:
    """The command's options."""
    parser = options.command(commands, "info", run, "show versions, GPU, settings and caches", TEXT, EXAMPLES)
    options.add_output(parser, csv=False)


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    found = {
        "versions": versions(),
        "in_force": in_force(),
        "gpu": described(),
        "caches": caches(),
    }
    code = FAILED if FAILURE in (found["gpu"] or {}) else OK
    if arguments.json:
        show_json(found)
        return code
    for title in ("versions", "in_force", "gpu"):
        pairs = found[title] or {title: "none here"}
        rows = [{"name": name, "value": UNITS.get(name, str)(value)} for name, value in pairs.items()]
        show_table(Report(title.replace("_", " "), PAIR, rows))
    show_table(Report("caches", CACHE, found["caches"]))
    return code


def described() -> dict[str, Any] | None:
    """The GPU here, or why it cannot be used; None if there is none."""
    try:
        return dataclasses.asdict(gpu.here()) if gpu.place() else None
    except ExitError as error:
        return {FAILURE: str(error)}


def versions() -> dict[str, str | None]:
    """Of what a result depends on."""
    return {
        "tritonbn": __version__,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "triton is of": triton_packages(),
        "python": platform.python_version(),
        "CUDA or ROCm of torch": torch.version.cuda or torch.version.hip,
    }


def triton_packages() -> str:
    """The package that brought Triton; if they are several, what to do about it, since each wrote over the others."""
    found = sorted(set(packages_distributions().get("triton", ["no package"])))
    return (
        found[0] if len(found) == 1 else f"{' and '.join(found)}: remove all, and install the one that torch requires"
    )


def in_force() -> dict[str, str]:
    """Who computes and how configs are chosen, as the environment has it."""
    name = os.environ.get(backends.VARIABLE) or "auto"
    return {
        "backend": said(lambda: known(name, backends.NAMES, backends.VARIABLE)),
        "tuning": said(lambda: selection.in_force().name),
        "kernels": "run in Triton's interpreter, on the CPU" if INTERPRETED else "are compiled",
    }


def said(ask: Callable[[], str]) -> str:
    """The answer, or what is wrong with the question."""
    try:
        return ask()
    except ValueError as error:
        return str(error)


def caches() -> list[dict[str, Any]]:
    """Of timings, the one that is written first; and Triton's of compiled kernels."""
    found = [("timings", directory, f"*{store.SUFFIX}") for directory in store.current().directories]
    return [contents(*each) for each in (*found, ("compiled kernels", triton_cache(), "*/*"))]


def triton_cache() -> Path:
    """Where Triton keeps what it compiles."""
    home = os.environ.get("TRITON_HOME") or Path.home()
    return Path(os.environ.get("TRITON_CACHE_DIR") or Path(home) / ".triton" / "cache")


def contents(what: str, directory: Path, pattern: str) -> dict[str, Any]:
    """How much is in a directory."""
    files = [path for path in directory.glob(pattern) if path.is_file()]
    there = next(path for path in (directory, *directory.parents) if path.exists())
    return {
        "what": what,
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "writable": there.is_dir() and os.access(there, os.W_OK | os.X_OK),
        "path": str(directory),
    }
