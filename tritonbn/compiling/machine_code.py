"""What the compiler made of a kernel: registers, spills and shared memory it needs, and how wide its accesses are."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import NamedTemporaryFile

import triton
from triton.runtime.cache import get_cache_manager

from ..devices import Device

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
"""NVIDIA's programs that come with Triton."""

AMD_BYTES = {"dwordx4": 16, "b128": 16, "dwordx3": 12, "b96": 12, "dwordx2": 8, "b64": 8, "dword": 4, "b32": 4}
"""Access width by the last word of an AMD instruction; 1 where it speaks of bytes, else 2."""


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel needs."""

    registers: int
    """Vector registers per thread."""
    spills: int
    """Bytes per thread that do not fit into registers."""
    shared: int
    """Bytes of shared memory a program."""
    loads: dict[int, int]
    """Load instructions from global memory, by bytes per thread and access."""
    stores: dict[int, int]
    """Store instructions to global memory, by bytes per thread and access."""


def occupancy(resources: Resources, num_warps: int, device: Device) -> int:
    """How many programs of a compiled kernel an SM holds at once."""
    return device.places(num_warps * device.warp_size, resources.registers, resources.shared)


def code(key: str, kernel: str, kind: str) -> str | bytes:
    """One stage of a compilation, from Triton's cache on disk."""
    files = get_cache_manager(key).get_group(f"{kernel}.json") or {}
    path = files.get(f"{kernel}.{kind}")
    if path is None:
        raise KeyError(f"expected one of {sorted(files)}, got {kind!r}")
    return Path(path).read_bytes() if kind in ("cubin", "hsaco") else Path(path).read_text()


@lru_cache(maxsize=1024)
def read_resources(key: str, kernel: str) -> Resources:
    """Registers, spills, shared memory and access widths of a compiled kernel."""
    files = get_cache_manager(key).get_group(f"{kernel}.json")
    shared = json.loads(Path(files[f"{kernel}.json"]).read_text())["shared"]
    if f"{kernel}.cubin" in files:
        return read_cubin(files[f"{kernel}.cubin"], Path(files[f"{kernel}.ptx"]).read_text(), shared)
    return read_amdgcn(Path(files[f"{kernel}.amdgcn"]).read_text(), shared)


def read_cubin(cubin: str, ptx: str, shared: int) -> Resources:
    """NVIDIA: registers and spills from the binary; accesses from the PTX, as ptxas neither splits nor joins them."""
    return Resources(*cubin_usage(cubin), shared, *ptx_widths(ptx))


def cubin_registers(binary: bytes) -> tuple[int, int]:
    """Registers and spilled bytes per thread of a binary that lies in no file."""
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        return cubin_usage(file.name)


def cubin_usage(cubin: str) -> tuple[int, int]:
    """Registers and spilled bytes per thread."""
    usage = nvidia_tool("cuobjdump", "-res-usage", cubin)
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL"))
    return registers, stack + local


def ptx_widths(ptx: str) -> tuple[dict[int, int], dict[int, int]]:
    """How often PTX loads from global memory, and stores, by the bytes that a thread moves."""
    found = re.findall(r"\b(ld|st)\b[\w.:]*\.global[\w.:]*?(?:\.v(\d))?\.[bsuf](\d+)\b", ptx)
    moved = [(direction, int(count or 1) * int(bits) // 8) for direction, count, bits in found]
    moved += [("ld", int(width, 0)) for width in re.findall(r"\bcp\.async\.c[ag]\.[^;]*?\], (\w+)", ptx)]
    return tuple(count_widths(width for kind, width in moved if kind == wanted) for wanted in ("ld", "st"))


def nvidia_tool(name: str, *arguments: str) -> str:
    """What a program of Triton's own wheel prints; RuntimeError with what it says if it fails."""
    done = subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}: {' '.join(done.stderr.split())}")
    return done.stdout


@lru_cache
def is_assembled(arch: str) -> bool:
    """Whether an assembler of Triton's wheel, which has one or two for NVIDIA, knows this; True if there is none."""
    told = [nvidia_tool(program.name, "--help") for program in TOOLS.glob("ptxas*")]
    return not told or any(f"'{arch}'" in each for each in told)


def read_amdgcn(assembly: str, shared: int) -> Resources:
    """AMD: from the assembly that Triton keeps beside the binary."""
    fields = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)", assembly)}
    return Resources(
        registers=fields["vgpr_count"],
        spills=fields["private_segment_fixed_size"],
        shared=shared,
        loads=amdgcn_widths(assembly, "load"),
        stores=amdgcn_widths(assembly, "store"),
    )


def amdgcn_widths(assembly: str, direction: str) -> dict[int, int]:
    """How often global memory is accessed, by the bytes that an access moves."""
    words = re.findall(rf"\b(?:global|buffer|flat)_{direction}_(?:\w+_)?(\w+)", assembly)
    return count_widths(AMD_BYTES.get(word, 1 if "byte" in word or word in ("u8", "i8", "b8") else 2) for word in words)


def count_widths(widths: Iterator[int]) -> dict[int, int]:
    """Widest first."""
    return dict(sorted(Counter(widths).items(), reverse=True))
