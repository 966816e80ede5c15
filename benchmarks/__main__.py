"""python -m benchmarks: the speed report on a GPU; without one, what can be known without one, labelled as such."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import torch
from rich.console import Console

from tritonbn.launch import INTERPRETED

from . import host, modelled, resnet, training

FULL_STEPS = 600
SHORT_STEPS = 15
"""Training steps through the kernels on a GPU or ATen, and in the interpreter."""

GPU_ELEMENTS = 2**30
INTERPRETED_ELEMENTS = 2**14
"""Largest tensors whose values are checked."""


def main() -> int:
    """0 if every value that was checked was right, 1 if one was not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--target", default="sm_90", help="architecture to compile for where there is no GPU")
    parser.add_argument("--steps", type=int, help="training steps (default: as many as suit the machine)")
    arguments = parser.parse_args()
    console = Console()
    if torch.cuda.is_available() or torch.xpu.is_available():
        return on_gpu(arguments, console)
    return interpreted(arguments, console) if INTERPRETED else without_gpu(arguments, console)


def on_gpu(arguments: argparse.Namespace, console: Console) -> int:
    """Train, check and time on the GPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "xpu")
    runs = training.train(device, arguments.steps or FULL_STEPS, console)
    training.show(*runs, "the Triton kernels", console)
    right = resnet.check_layers(device, resnet.BATCH, GPU_ELEMENTS, console)
    resnet.time_layers(device, console)
    host.show(console)
    return 0 if right else 1


def without_gpu(arguments: argparse.Namespace, console: Console) -> int:
    """Train through ATen, compile the kernels, and start over in the interpreter to run them."""
    console.print("There is no GPU here: nothing below is a GPU time.\n", style="bold")
    runs = training.train(torch.device("cpu"), arguments.steps or FULL_STEPS, console)
    training.show(*runs, "ATen on the CPU (tritonbn sends CPU tensors there)", console)
    resnet.compile_layers(arguments.target, console)
    modelled.show(host.show(console), console)
    command = [sys.executable, "-m", "benchmarks", *sys.argv[1:]]
    return subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, check=False).returncode


def interpreted(arguments: argparse.Namespace, console: Console) -> int:
    """Train a few steps and check the layers' values through the kernels, run by Triton's interpreter."""
    console.print("\nThe Triton kernels themselves, run on the CPU by Triton's interpreter:\n", style="bold")
    device = torch.device("cpu")
    runs = training.train(device, arguments.steps or SHORT_STEPS, console)
    training.show(*runs, "the Triton kernels in the interpreter", console)
    return 0 if resnet.check_layers(device, 2, INTERPRETED_ELEMENTS, console) else 1


if __name__ == "__main__":
    sys.exit(main())
