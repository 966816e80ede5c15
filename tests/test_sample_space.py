"""The choice of a sample-wise config: it covers every element, suits the GPU, and costs no less than the bytes do."""

import math
from dataclasses import replace

import pytest
import torch

from tritonbn import devices
from tritonbn.choice import cost, sample_cost, sample_space, selection
from tritonbn.configs import Work
from tritonbn.geometry import describe
from tritonbn.measured.timings import choice

GPUS = [*(devices.named(name) for name in ("H100", "A100", "MI300X", "T4")), devices.INTERPRETER]
MODES = ["sample_forward", "sample_backward"]
DTYPES = [torch.float16, torch.float32, torch.float64]
SHAPES = [
    *[(1, 1), (3, 5), (65536, 33), (4096, 768), (8192, 8192), (2, 16385), (4, 10**6), (1, 10**8)],
    *[(10**7, 4), (300, 40000), (2**31, 1), (1, 2**31)],
]


def work_of(mode, shape, dtype, transposed=False):
    strides = (1, shape[0]) if transposed else (shape[1], 1)
    tensors = 2 if mode == "sample_forward" else 3
    return Work(mode, describe(shape, 1, *[strides] * tensors), dtype)


def chosen(work, device, unfit=()):
    return selection.choose(selection.in_force(), work, device, 0, set(unfit), torch.device("cpu"), None)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
def test_the_choice_of_a_config_is_sane(shape, transposed, dtype, mode):
    work = work_of(mode, shape, dtype, transposed)
    geometry = work.geometry
    for device in GPUS:
        for config in (sample_space.conservative(work, device), chosen(work, device)):
            blocks = config.block_c, config.block_o, config.block_i
            assert all(block & (block - 1) == 0 for block in blocks)
            assert config.num_warps * device.warp_size <= 1024
            assert (config.strategy == "short") == (config.block_c >= shape[1])
            assert config.column_tiles(geometry) * config.block_c >= shape[1]
            assert config.runs(geometry) * config.run_tiles * config.rows >= shape[0]
            assert config.chunks(geometry) * config.chunk_tiles >= config.column_tiles(geometry)
            assert config.chunks(geometry) <= sample_space.CHUNKS[-1]
            assert config.strategy == "long" or config.chunks(geometry) == 1
            assert cost.floor(work, device) <= sample_cost.modelled_time(work, config, device) < math.inf
        assert config.elements < 4 * max(8192, math.prod(shape)), "mostly masked"


@pytest.mark.parametrize("mode", MODES)
def test_large_tensors_fill_the_gpu(mode):
    for shape in ((65536, 33), (65536, 768), (8192, 8192), (4, 10**7), (300, 400000)):
        for device in GPUS:
            work = work_of(mode, shape, torch.float16)
            config = chosen(work, device)
            beside = config.column_tiles if mode == "sample_backward" else config.chunks
            assert config.runs(work.geometry) * beside(work.geometry) * config.num_warps >= 2 * device.sm_count


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("device", GPUS, ids=lambda device: device.name)
def test_more_is_never_cheaper(device, mode):
    for transposed in (False, True):
        for columns in (33, 768, 4096, 40000):
            times = []
            for bit in range(0, 17, 2):
                work = work_of(mode, (1 << bit, columns), torch.float16, transposed and bit > 0)
                times.append(sample_cost.modelled_time(work, chosen(work, device), device))
            assert times[transposed:] == sorted(times[transposed:])


@pytest.mark.parametrize("mode", MODES)
def test_the_model_knows_what_costs_time(mode):
    device = devices.named("H100")
    work = work_of(mode, (65536, 768), torch.float16)
    config = chosen(work, device)
    time = sample_cost.modelled_time(work, config, device)
    assert sample_cost.modelled_time(work, config, device, spills=64) > time
    assert sample_cost.modelled_time(work, config, device, registers=256) == math.inf
    config = replace(config, run_tiles=1)
    few, many = (sample_cost.modelled_time(work, config, device, registers) for registers in (32, 224))
    assert few < many
    wide = work_of(mode, (65536, 768), torch.float32)
    assert sample_cost.modelled_time(wide, chosen(wide, device), device) > 1.5 * time
    odd = work_of(mode, (65536, 767), torch.float16)
    assert sample_cost.modelled_time(odd, chosen(odd, device), device) > time


@pytest.mark.parametrize("mode", MODES)
def test_few_configs_are_compared(mode):
    """A choice takes no longer than that of a batch norm's config."""
    for transposed in (False, True):
        for shape in SHAPES:
            work = work_of(mode, shape, torch.float16, transposed)
            configs = list(sample_space.space(work, devices.named("H100"), 0))
            assert len(set(map(choice, configs))) == len(configs)
            assert 1 <= len(configs) <= 1000


@pytest.mark.parametrize("mode", MODES)
def test_after_too_many_failures_what_runs_anywhere_is_chosen(mode):
    work, device, unfit = work_of(mode, (4096, 768), torch.float16), devices.named("H100"), set()
    for _ in range(selection.MOST_FAILURES):
        config = chosen(work, device, unfit)
        assert choice(config) not in unfit
        unfit.add(choice(config))
    with pytest.warns(RuntimeWarning, match=f"8 configs of {mode} failed on H100"):
        assert chosen(work, device, unfit) == sample_space.conservative(work, device)
