"""Compile the kernels for any GPU without having one, and read what the compiler made of them."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.cache import get_cache_manager

from .backends import backend
from .devices import assume as assume
from .launch import INTERPRETED

NAMES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx90a", "gfx942", "gfx950", "gfx1100")
"""Architectures that are tried in tests; target() takes others of these families too."""

SHARED_BYTES = {"cuda": {75: 65536, 80: 166912, 90: 232448, 100: 232448}, "hip": {"gfx950": 163840}}
"""Shared memory that one program can have, where it is not LEAST_SHARED_BYTES."""

LEAST_SHARED_BYTES = {"cuda": 101376, "hip": 65536}

SASS_BYTES = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
"""Access width by the suffix of an NVIDIA instruction; 4 without one."""

AMD_BYTES = {"dwordx4": 16, "b128": 16, "dwordx3": 12, "b96": 12, "dwordx2": 8, "b64": 8, "dword": 4, "b32": 4}
"""Access width by the last word of an AMD instruction; 1 where it speaks of bytes, else 2."""

VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel needs, read from its machine code."""

    registers: int
    """Vector registers a thread."""
    spills: int
    """Bytes a thread that do not fit into registers."""
    shared: int
    """Bytes of shared memory a program."""
    loads: dict[int, int]
    """Load instructions from global memory, by bytes a thread and access."""
    stores: dict[int, int]
    """Store instructions to global memory, by bytes a thread and access."""


@dataclass(slots=True)
class Launch:
    """One launch that reached the driver, which had no time to look at it: everything is worked out when asked for."""

    metadata: Any
    """What Triton knows of the compiled kernel."""
    grid: tuple[int, int, int]
    values: tuple[Any, ...]
    """What was passed, ahead of it four things that Triton passes to every launcher."""
    names: tuple[str, ...]

    @property
    def kernel(self) -> str:
        """The kernel's name."""
        return self.metadata.name

    @property
    def num_warps(self) -> int:
        """Warps a program."""
        return self.metadata.num_warps

    @property
    def target(self) -> GPUTarget:
        """For which GPU it is compiled."""
        return self.metadata.target

    @property
    def key(self) -> str:
        """The compiled kernel's name in Triton's cache."""
        return self.metadata.hash

    @property
    def arguments(self) -> dict[str, Any]:
        """By name; before Triton 3.3 without the constexprs."""
        return dict(zip(self.names, self.values[4:], strict=False))

    @property
    def resources(self) -> Resources:
        """Read from the machine code at the first use."""
        return read_resources(self.key, self.kernel)

    def code(self, kind: str) -> str | bytes:
        """A stage of the compilation: "ttgir", "ptx", "cubin", "amdgcn", "hsaco" or another that Triton keeps."""
        return code(self.key, self.kernel, kind)


def target(name: str) -> GPUTarget:
    """The compiler's description of an architecture such as "sm_90" or "gfx942"; ValueError for any other name."""
    if match := re.fullmatch(r"sm_(\d+)", name):
        return GPUTarget("cuda", int(match[1]), 32)
    if match := re.fullmatch(r"gfx(9|1)[0-9a-f]+", name):
        return GPUTarget("hip", name, 64 if match[1] == "9" else 32)
    raise ValueError(f"expected a GPU architecture like sm_90 or gfx942, got {name!r}")


@contextmanager
def compiling_for(name: str) -> Iterator[list[Launch]]:
    """Inside, everything that is launched through Triton is compiled for `name` and listed, and nothing runs.

    The backend is "triton" there, and tensors may be on the meta device, since nobody reads them. Changes the process's
    active Triton driver, so it is not for several threads at once. RuntimeError under TRITON_INTERPRET=1, where nothing
    can be compiled.
    """
    if INTERPRETED:
        raise RuntimeError("expected a process without TRITON_INTERPRET=1, under which Triton compiles nothing")
    driver = compiling_driver(name)
    config = triton.runtime.driver
    fields = vars(config)
    active, launches = fields.get("_active", fields.get("active")), driver.launches
    config.set_active(driver)
    driver.launches = []
    try:
        with backend("triton"):
            yield driver.launches
    finally:
        config.set_active(active)
        driver.launches = launches


@lru_cache
def compiling_driver(name: str) -> CompilingDriver:
    """One for each architecture: a compiled kernel keeps the launcher that it got first."""
    return CompilingDriver(name)


class CompilingDriver:
    """A Triton driver that has no device: it takes part in compilation and lists the launches."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.target = target(name)
        self.launches: list[Launch] = []
        self.utils = SimpleNamespace(
            load_binary=self.load_binary,
            unload_module=lambda module: None,
            get_device_properties=self.get_device_properties,
        )

    def get_current_target(self) -> GPUTarget:
        """For which GPU to compile."""
        return self.target

    def get_current_device(self) -> str:
        """Triton keeps compiled kernels by device: each architecture is one."""
        return f"compiling for {self.name}"

    def get_current_stream(self, device: str) -> int:
        """There is but one."""
        return 0

    def get_device_properties(self, device: str) -> dict[str, int]:
        """What Triton asks of a device before it launches."""
        backend = self.target.backend
        most = SHARED_BYTES[backend].get(self.target.arch, LEAST_SHARED_BYTES[backend])
        return {"max_shared_mem": most}

    def load_binary(self, name: str, binary: bytes, shared: int, device: str) -> tuple[Any, ...]:
        """Module, function, registers, spills, and most threads a program: as much as Triton's version unpacks."""
        handles = (name, name, 0, 0)
        return handles if VERSION < (3, 4) else (*handles, 1024)

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """What is called in place of a launch."""
        names = tuple(p.name for p in source.fn.params if VERSION >= (3, 3) or not p.is_constexpr)

        def launch(x: int, y: int, z: int, stream: int, function: Any, *values: Any) -> None:
            self.launches.append(Launch(metadata, (x, y, z), values, names))

        return launch


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
        return read_sass(files[f"{kernel}.cubin"], shared)
    return read_amdgcn(Path(files[f"{kernel}.amdgcn"]).read_text(), shared)


def read_sass(cubin: str, shared: int) -> Resources:
    """NVIDIA: by the disassembler that comes with Triton."""
    usage = nvidia_tool("cuobjdump", "-res-usage", cubin)
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL"))
    assembly = nvidia_tool("nvdisasm", "-c", "-ndf", cubin)
    return Resources(
        registers=registers,
        spills=stack + local,
        shared=shared,
        loads=sass_widths(assembly, "LDG"),
        stores=sass_widths(assembly, "STG"),
    )


def sass_widths(assembly: str, instruction: str) -> dict[int, int]:
    """How often an instruction occurs, by the bytes that it moves."""
    suffixes = (found.split(".") for found in re.findall(rf"\b{instruction}\.([\w.]+)", assembly))
    return count_widths(next((SASS_BYTES[part] for part in parts if part in SASS_BYTES), 4) for parts in suffixes)


def nvidia_tool(name: str, *arguments: str) -> str:
    """What a program of Triton's own wheel prints."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout


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
