"""Where and with what a report was made."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch

from tritonbn.cli import info
from tritonbn.compiling import processes

AMD_DRIVER = Path("/sys/module/amdgpu/version")

SETTINGS = {
    "driver": "driver_version",
    "power limit": "power.limit",
    "most of the SMs' clock": "clocks.max.sm",
    "persistence mode": "persistence_mode",
    "ECC": "ecc.mode.current",
    "MIG": "mig.mode.current",
}
"""What nvidia-smi calls what a time depends on, by our names."""

STATE = "clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "pstate"
"""What it depends on and changes."""


def describe(device: torch.device) -> dict[str, str]:
    """Name and value, for people and for comparison; what is not known is left out."""
    on_gpu = device.type != "cpu"
    found = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "GPU": torch.get_device_module(device).get_device_name(device) if on_gpu else "none",
        **(settings(device) if on_gpu else {}),
        "cuDNN or MIOpen": torch.backends.cudnn.version() if on_gpu else None,
        "CPU": processor(),
        "cores": processes.cores(),
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


def settings(device: torch.device) -> dict[str, str | None]:
    """The GPU's driver and, where nvidia-smi knows them, how it is set."""
    told = queried(device, *SETTINGS.values())
    if told:
        return {name: said for name, said in zip(SETTINGS, told, strict=True) if not said.startswith("[")}  # [N/A]
    return {"driver": AMD_DRIVER.read_text().strip() if AMD_DRIVER.exists() else None}


def state(device: torch.device) -> str | None:
    """The GPU's clocks, power, temperature and performance state now; None where nvidia-smi does not know them."""
    return ", ".join(queried(device, *STATE)) or None


def queried(device: torch.device, *names: str) -> list[str]:
    """What nvidia-smi says of a GPU, which it numbers otherwise than CUDA; nothing if it is not there."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None) if device.type == "cuda" else None
    which = ("-i", f"GPU-{uuid}") if uuid else ()
    told = output(("nvidia-smi", *which, f"--query-gpu={','.join(names)}", "--format=csv,noheader"))
    fields = [field.strip() for field in told.splitlines()[0].split(",")] if told else []
    return fields if len(fields) == len(names) else []


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
