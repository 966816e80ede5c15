"""Compiling for GPUs by their names, and in other processes; what the machine code says."""

import os
import sys

import pytest
import torch
import triton
import triton.language as tl

import tritonbn
from tritonbn import devices, kernels, targets
from tritonbn.compiling import processes
from tritonbn.kernels import view
from tritonbn.launching import launch


def forward(channels):
    """What a job runs."""
    x = torch.empty((8, channels, 4, 4), dtype=torch.float16, device="meta")
    tritonbn.batch_norm(x, None, None, training=True)


def keys(monkeypatch, names):
    """What Triton knows kernels by that are compiled in this order, where nothing was compiled before."""
    for module in [module for name, module in sys.modules.items() if name.startswith(kernels.__name__)]:
        for function in vars(module).values():
            if isinstance(function, triton.JITFunction):
                monkeypatch.setattr(function, "hash", None)
                monkeypatch.setattr(function, "used_global_vals", {})
    launch.settle_keys.cache_clear()
    found = []
    for name in names:
        launch.settle_keys()
        found.append(getattr(kernels, name).cache_key)
    return found


def fail(how):
    """What a job should not run."""
    how(1)


@pytest.mark.parametrize("name", ["H200", "h100pcie", "L4", "MI300X", "gfx942", "sm_90", "sm_90a", "sm_103"])
def test_plans_are_for_the_gpu_that_is_named(name):
    row = {"sm_90a": "H100", "sm_103": "B200"}.get(name) or devices.named(name).name
    with targets.compiling_for(name):
        planned = devices.current()
    for field in ("name", "sm_count", "bandwidth", "l2_bytes", "clock", "shared_bytes", "registers"):
        assert getattr(planned, field) == getattr(devices.named(row), field), field
    assert planned.arch == devices.architecture(targets.target(name))


@pytest.mark.parametrize(("name", "most"), [("T4", 64), ("A100", 163), ("L4", 99), ("H100", 227), ("MI300X", 64)])
def test_shared_memory_that_a_program_can_have(name, most):
    assert targets.compiling_driver(name).get_device_properties("")["max_shared_mem"] == most << 10


def test_jobs_compile_in_other_processes(monkeypatch, tmp_path):
    """One that cannot be compiled, one that kills its process and one that cannot be sent harm no other."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    good = [targets.Job("A10", forward, (48,)), targets.Job("MI250", forward, (48,))]
    bad = {
        targets.Job("H100", fail, (os._exit,)): "BrokenProcessPool: ",
        targets.Job("H100", fail, (bytes.fromhex,)): "TypeError: ",
        targets.Job("H800", forward, (16,)): "ValueError: expected a GPU architecture",
        targets.Job("H100", forward, (lambda: 0,)): "pickle",
    }
    outcomes = {outcome.job: outcome for outcome in targets.compile_all([*bad, *good], processes=2)}
    assert outcomes.keys() == {*bad, *good}
    for job, error in bad.items():
        assert error in outcomes[job].error
        assert not outcomes[job].launches
    for job in good:
        (launch,) = outcomes[job].launches
        assert not outcomes[job].error
        assert launch.kernel == "resident_forward_kernel"
        assert launch.resources.registers > 8
        assert targets.occupancy(launch.resources, launch.num_warps, devices.named(job.target)) > 1
    assert os.environ["TRITON_INTERPRET"] == "1"


def test_what_a_job_compiled_is_not_compiled_again(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    (outcome,) = targets.compile_all([targets.Job("L40S", forward, (80,))])
    files = sorted(tmp_path.glob("*/*"))
    with targets.compiling_for("L40S") as launches:
        forward(80)
    assert outcome.launches == tuple(targets.Compiled.of(launch) for launch in launches)
    assert sorted(tmp_path.glob("*/*")) == files != []


def test_as_many_processes_as_this_one_may_use_cores(monkeypatch):
    """Which may be fewer than there are: in a container, or under taskset."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert processes.cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert processes.cores() == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert processes.cores() == 1


def test_no_jobs():
    assert list(targets.compile_all([])) == []


@triton.jit
def copy_kernel(x, y, n, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    for start in tl.range(0, n, BLOCK, num_stages=STAGES):
        at = start + tl.arange(0, BLOCK)
        tl.store(y + at, tl.load(x + at, mask=at < n) + 1, mask=at < n)


@pytest.mark.parametrize("stages", [1, 3])
def test_asynchronous_copies_are_loads(stages):
    x, y = torch.empty((2, 1 << 20), dtype=torch.float32, device="meta")
    with targets.compiling_for("sm_80") as launches:
        copy_kernel[(1,)](x, y, 1 << 20, 1024, stages, enable_fp_fusion=True)
    assert ("cp.async" in launches[0].code("ptx")) == (stages > 1)
    assert launches[0].resources.loads.keys() == launches[0].resources.stores.keys() == {16}


def test_functions_that_only_the_compiler_calls_are_in_the_key_of_a_kernel(monkeypatch):
    """Through the text of all kernels, which Triton takes for a constant of theirs; sample-wise ones have none such."""
    names = [name for name in kernels.__all__ if not name.startswith("sample_")]
    before = keys(monkeypatch, names)
    other = tl.constexpr("of another version")
    monkeypatch.setattr(view, "SOURCE", other)
    monkeypatch.setattr(launch, "SOURCE", other)
    assert not set(before) & set(keys(monkeypatch, names))


def test_a_kernels_key_is_the_same_whichever_was_asked_for_first(monkeypatch):
    names = list(kernels.__all__)
    assert keys(monkeypatch, names) == keys(monkeypatch, names[::-1])[::-1]
