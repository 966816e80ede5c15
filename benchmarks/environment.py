"""Where and with what a report was made."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch

from tritonbn import targets
from tritonbn.cli import info

AMD_DRIVER = Path("/sys/module/amdgpu/version")


def describe(device: torch.device) -> dict[str, str]:
    """Name and value, for people and for comparison; what is not known is left out."""
    on_gpu = device.type != "cpu"
    found = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "GPU": torch.get_device_module(device).get_device_name(device) if on_gpu else "none",
        "driver": driver() if on_gpu else None,
        "cuDNN or MIOpen": torch.backends.cudnn.version() if on_gpu else None,
        "CPU": processor(),
        "cores": targets.cores(),
        "system": platform.platform(),
        **info.versions(),
        **{name: value for name, value in os.environ.items() if name.startswith("TRITONBN_")},
    }
    return {name: str(value) for name, value in found.items() if value}


def output(command: Sequence[str], directory: Path | None = None) -> str | None:
    """What a program prints, None if it cannot."""
    try:
        return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def commit() -> str | None:
    """Of this source, marked if it was changed since."""
    here = Path(__file__).parent
    return output(("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"), here)


def driver() -> str | None:
    """The version of the first GPU's driver."""
    told = output(("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"))
    if told:
        return told.splitlines()[0]
    return AMD_DRIVER.read_text().strip() if AMD_DRIVER.exists() else None


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
