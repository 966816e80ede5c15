"""Time the configs of a task one by one, and keep each timing at once: a sweep may end anywhere, and goes on there.

`for timing in run(task, pending(task)): ...` times all that was not timed before.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from .choice.selection import on_device
from .choice.timed import Benchmark, Trial, benchmark, describe_failure, first, one_at_a_time
from .launching.failures import is_out_of_memory, require_device
from .measured import store
from .measured.timings import Choice, Run, Timing, choice_in, key_of, timing
from .problems import Task

QUANTILES = (0.5, 0.2, 0.8)


def recorded(task: Task) -> Run:
    """What the store has on exactly this geometry."""
    return store.current().load(key_of(task.work, task.device)).exactly(task.work.geometry)


def pending(task: Task, top: int | None = None, again: bool = False) -> list[Any]:
    """The configs to time, the model's best first: the `top` foremost, but those that are recorded unless `again`."""
    known = set() if again else {choice_in(timing) for timing in recorded(task).timings}
    return [config for made_from, config in foremost(task.configs, top).items() if made_from not in known]


def foremost(configs: dict[Choice, Any], top: int | None) -> dict[Choice, Any]:
    """So many of the model's best: half of them, shared evenly, are the best of each strategy; None is all of them.

    The model may be wrong about a strategy as a whole.
    """
    strategies: dict[str, list[Choice]] = {}
    for made_from, config in configs.items():
        strategies.setdefault(config.strategy, []).append(made_from)
    top = len(configs) if top is None else top
    chosen = {made_from for each in strategies.values() for made_from in each[: top // (2 * len(strategies))]}
    others = (made_from for made_from in configs if made_from not in chosen)
    chosen.update(itertools.islice(others, top - len(chosen)))
    return {made_from: config for made_from, config in configs.items() if made_from in chosen}


def run(task: Task, configs: Iterable[Any], do_bench: Benchmark | None = None) -> Iterator[Timing]:
    """Time each config, record its Timing and yield it: the median in seconds, or None and why the config failed.

    Timed by Triton's benchmark for the active driver, or by `do_bench` as tritonbn.tuning takes it. Where there is no
    room in memory it raises what says so (failures.is_out_of_memory), and records nothing; failures.DeviceLostError
    where nothing can go on after a config.
    """
    trial, do_bench = task.trial(), do_bench or benchmark()
    key = key_of(task.work, task.device)
    for config in configs:
        with one_at_a_time, on_device(task.case.place):
            found = time_one(trial, config, do_bench)
        store.current().record(key, task.work.geometry, [found])
        if found.seconds is None:
            require_device(task.case.place, task.device.name, found)
        yield found


def time_one(trial: Trial, config: Any, do_bench: Benchmark) -> Timing:
    """The median, or why there is none."""
    try:
        milliseconds = first(do_bench(partial(trial, config), quantiles=QUANTILES))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return timing(config, None, describe_failure(error))
    return timing(config, milliseconds / 1e3)
