"""Rank correlation and regret: as scipy has the one, and as the other is defined."""

import math
import random
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tritonbn import devices, gpus
from tritonbn.analysis import ranking
from tritonbn.choice import space
from tritonbn.choice.cost import modelled_time
from tritonbn.configs import Work
from tritonbn.geometry import describe
from tritonbn.launching import counters
from tritonbn.measured.timings import Key, Run, key_of, timing

DEVICE = devices.named("H100")


def work_on(*shape, dtype=torch.bfloat16, mode="forward"):
    return Work(mode, describe(shape, 1, *[torch.empty(shape, device="meta").stride()] * 3), dtype)


WORK = work_on(32, 64, 14, 14)
CONFIGS = list(space.space(WORK, DEVICE, counters.SHARE))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=30))
def test_spearman_is_scipys_with_ties_too(pairs):
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    if len(set(first)) < 2 or len(set(second)) < 2:
        assert math.isnan(ranking.spearman(first, second))
    else:
        assert ranking.spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)


def test_infinite_times_rank_last():
    assert ranking.spearman([1, 2, math.inf], [10, 20, 30]) == pytest.approx(1)


def test_regret():
    modelled, measured = [3, 1, 2, 4], [1.0, 1.5, 1.2, 9.0]
    assert ranking.regret(modelled, measured, first=1) == pytest.approx(0.5)
    assert ranking.regret(modelled, measured, first=2) == pytest.approx(0.2)
    assert ranking.regret(modelled, measured) == 0


def run_of(times):
    return Run(WORK.geometry, [timing(config, seconds) for config, seconds in times])


def test_a_model_that_is_right_and_one_that_is_wrong():
    modelled = [modelled_time(WORK, config, DEVICE) for config in CONFIGS]
    right = ranking.rank(WORK, DEVICE, run_of(zip(CONFIGS, modelled, strict=True)))
    assert right.timed == len(CONFIGS)
    assert right.spearman == pytest.approx(1)
    assert right.regret == 0
    wrong = ranking.rank(WORK, DEVICE, run_of([(c, 1e-9 / t) for c, t in zip(CONFIGS, modelled, strict=True)]))
    assert wrong.spearman == pytest.approx(-1)
    assert wrong.regret > 1


def test_the_order_of_the_timings_says_nothing():
    times = [(config, random.Random(number).random() + 1) for number, config in enumerate(CONFIGS)]
    found = ranking.rank(WORK, DEVICE, run_of(times))
    assert ranking.rank(WORK, DEVICE, run_of(reversed(times))) == found
    assert abs(found.spearman) < 0.3


def test_failures_and_configs_of_another_space_are_left_out():
    foreign = replace(CONFIGS[0], num_warps=64)
    found = ranking.rank(WORK, DEVICE, run_of([(CONFIGS[0], 1.0), (CONFIGS[1], None), (foreign, 1e-9)]))
    assert found.timed == 1
    assert math.isnan(found.spearman)
    assert found.regret == 0


def test_a_run_without_times():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ranking.rank(WORK, DEVICE, run_of([(CONFIGS[0], None)]))
    assert found.timed == 0
    assert math.isnan(found.regret)


@pytest.mark.parametrize("mode", ["forward", "backward", "inference"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_work_is_found_again_from_its_key(mode, dtype):
    work = work_on(8, 16, 5, 5, dtype=dtype, mode=mode)
    assert ranking.work_of(key_of(work, DEVICE), Run(work.geometry)) == work


@pytest.mark.parametrize("device", gpus.TABLE, ids=lambda device: device.name)
def test_a_gpu_of_the_table_is_found_again_from_its_key(device):
    found = ranking.device_of(key_of(WORK, device))
    assert (found.name, found.arch, found.sm_count) == (device.name, device.arch, device.sm_count)
    assert found.bandwidth == device.bandwidth


def test_a_gpu_that_is_not_in_the_table_is_completed():
    found = ranking.device_of(key_of(WORK, replace(DEVICE, name="NVIDIA H100 MIG 1g", sm_count=33)))
    assert found.bandwidth == DEVICE.bandwidth / 4


def test_keys_that_name_nothing():
    key = key_of(WORK, DEVICE)
    for gpu in ("H100", "H100, sm_90", "H100, 90, 132 SMs"):
        with pytest.raises(ValueError, match="expected a name, an architecture and a number of SMs"):
            ranking.device_of(Key(**vars(key) | {"gpu": gpu}))
    with pytest.raises(ValueError, match="got int8"):
        ranking.work_of(Key(**vars(key) | {"dtype": "int8"}), Run(WORK.geometry))
