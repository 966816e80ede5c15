"""Launches by Triton's own launcher, on a libcuda that runs them: what a GPU is given is what the kernel takes."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
import triton
from support import DEVICE, LAYOUTS, compare, compare_samples, fitted, random, vector
from test_epilogue import check
from test_strategies import vectors

import tritonbn
from tritonbn import configs, functional
from tritonbn.choice import selection

can_compile = shutil.which("cc") and Path(sysconfig.get_path("include"), "Python.h").exists()


@pytest.mark.skipif(DEVICE != "cpu", reason="a GPU's own libcuda would be hidden")
@pytest.mark.skipif(not can_compile, reason="Triton's launcher is compiled where it runs")
def test_launches(tmp_path):
    from ptx.launcher import build

    command = [sys.executable, "-W", "error", "-c", "import test_launcher; test_launcher.launch()"]
    done = subprocess.run(command, env=build(tmp_path), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["17", "launches,", "2", "cooperative"]


def launch():
    """What the other process does."""
    from ptx.launcher import Launcher

    launcher = Launcher()
    half = random((4, 8, 6, 5), torch.float16)
    with tritonbn.backend("triton"):
        try:
            compare(half, **vectors(8))
            compare(half)
            compare(half, training=False, **vectors(8))
            compare(LAYOUTS["channels_last"]((8, 64, 9, 9), torch.bfloat16), **vectors(64))
            compare(random((4, 8, 6, 5), torch.float64), **vectors(8, torch.float64))
            check(half, random((4, 8, 6, 5), torch.float16, 1), "relu", True)
            in_a_profiler(lambda: compare_samples(random((24, 30), torch.float16), weight=vector(30, torch.float32, 2)))
            selection.choose = at_once
            functional._cases.clear()
            compare(random((7, 2, 1, 8)), **vectors(2))
        except BaseException as error:
            raise (launcher.failure or error) from None
    print(len(launcher.launches), "launches,", sum(alone for _, alone in launcher.launches), "cooperative")


def at_once(level, work, *rest):
    """A config whose chunks all run at once."""
    return fitted(configs.Config(1, 1, 8, 1, strategy="resident", at_once=7), work.geometry, work.itemsize)


def in_a_profiler(call):
    """Kernels are launched as Triton would, which tells whoever asked for it."""
    told = []
    chain = triton.knobs.runtime.launch_enter_hook
    chain.add(told.append)
    call()
    chain.remove(told.append)
    assert told
