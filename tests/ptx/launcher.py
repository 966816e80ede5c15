"""Triton's own driver and launcher for NVIDIA's GPUs, on a libcuda that hands launches to the machine.

In a process of its own, whose environment `build` gives: the library is looked for where a process starts.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.nvidia import driver as nvidia
from triton.compiler.compiler import CompiledKernel

import tritonbn
from tritonbn.launching.launch import Plan

from .machine import Machine, code

LAUNCHED = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.c_uint,
    ctypes.c_uint,
    ctypes.c_int,
    ctypes.POINTER(ctypes.c_void_p),
)
"""As libcuda.c calls a function."""


Watch = Callable[..., None]


def nothing(*arguments: Any) -> None:
    """Watches nothing."""


def build(folder: Path) -> dict[str, str]:
    """Compile libcuda.c there; the environment of a process that takes it for CUDA's."""
    include = Path(nvidia.__file__).parent / "include"
    source, library = Path(__file__).with_name("libcuda.c"), folder / "libcuda.so.1"
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    subprocess.run([compiler, "-shared", "-fPIC", f"-I{include}", "-o", library, source], check=True)
    (folder / "libcuda.so").symlink_to(library)
    paths = [*sys.path, str(Path(tritonbn.__file__).parents[1])]
    return {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "TRITON_LIBCUDA_PATH": str(folder),
        "LD_LIBRARY_PATH": str(folder),
        "PYTHONPATH": os.pathsep.join(paths),
    }


class Launcher:
    """Runs what Triton launches, and notes it."""

    def __init__(self) -> None:
        self.kernels: dict[int, CompiledKernel] = {}
        self.tensors: list[tuple[str, torch.Tensor]] = []
        self.launches: list[tuple[str, bool]] = []
        """Names of kernels, and whether the launches were cooperative."""
        self.failure: BaseException | None = None
        """What went wrong in the latest one."""
        self.callback = LAUNCHED(self.launched)
        ctypes.CDLL("libcuda.so.1").hand_launches_to(self.callback)
        torch.cuda.current_device = lambda: 0
        driver = nvidia.CudaDriver()
        driver.get_current_stream = lambda device: 0
        driver.get_device_capability = lambda device: (9, 0)
        self.watch(CompiledKernel, "_init_handles", after=self.loaded)
        self.watch(Plan, "run", before=self.about_to_run)
        triton.runtime.driver.set_active(driver)

    def watch(self, owner: type, name: str, before: Watch = nothing, after: Watch = nothing) -> None:
        """Be told of calls of a method."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def watched(*arguments: Any) -> Any:
            before(*arguments)
            result = original(*arguments)
            after(*arguments)
            return result

        setattr(owner, name, watched)

    def loaded(self, kernel: CompiledKernel) -> None:
        """By what libcuda knows it."""
        self.kernels[kernel.function] = kernel

    def about_to_run(self, plan: Plan, place: torch.device, *arguments: Any) -> None:
        """The memory that the next launches may touch."""
        named = zip(plan.kernel.arg_names, arguments, strict=False)
        self.tensors = [(name, value) for name, value in named if isinstance(value, torch.Tensor)]

    def launched(self, function: int, grid: Any, threads: int, shared: int, cooperative: int, parameters: Any) -> int:
        """What libcuda is asked for; 0 if it succeeds."""
        try:
            kernel = self.kernels[function]
            metadata, ptx = kernel.metadata, kernel.asm["ptx"]
            assert (threads, shared) == (32 * metadata.num_warps, metadata.shared)
            arguments = [
                int.from_bytes(ctypes.string_at(parameters[number], int(kind[1:]) // 8), "little")
                for number, kind in enumerate(code(ptx).kernel.parameters.values())
            ]
            Machine(ptx, tuple(grid[:3]), threads, shared, arguments, self.tensors, 10**6, None, False).run()
        except BaseException as error:
            self.failure = error
            return 1
        self.launches.append((metadata.name, bool(cooperative)))
        return 0
