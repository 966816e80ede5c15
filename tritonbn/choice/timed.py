"""Time a pass with the configs that the model finds best, by Triton's autotuner."""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import triton

from ..devices import DRIVERS
from ..kernels import forward_kernel
from ..launching.failures import DeviceLostError, is_out_of_memory
from ..launching.launch import UnfitError
from ..measured.timings import Timing, timing

MOST_TIMED = 8
"""Configs that a call times before it goes on."""

MOST_OF_A_STRATEGY = 3
"""Of them: a model that is wrong about one strategy should not keep the others from being tried."""

Benchmark = Callable[..., Sequence[float]]
"""do_bench(call, quantiles=(0.5, 0.2, 0.8)) as Triton's: these quantiles of the call's time, in milliseconds."""

Trial = Callable[[Any], None]
"""Runs the work once, cut by a config, on tensors that nobody else holds."""

one_at_a_time = threading.RLock()
"""What is timed side by side measures the other."""

os.register_at_fork(after_in_child=one_at_a_time._at_fork_reinit)


def time_best(
    what: str,
    candidates: Sequence[Any],
    estimate: Callable[[Any], float],
    trial: Trial,
    do_bench: Benchmark | None,
    require_device: Callable[[Timing], None],
) -> tuple[list[Timing], bool]:
    """What came of the configs that an estimate of their seconds finds best, and whether all were tried; else it warns.

    The autotuner has no buffers to restore or to zero: a trial's tensors are its own. Raises DeviceLostError where
    `require_device`, which is given each failure, does.
    """
    contender = Contender(trial, do_bench, require_device)
    configs = [triton.Config({"config": config}, num_warps=config.num_warps) for config in candidates]
    tuner = triton.autotune(
        configs=configs,
        key=[],
        prune_configs_by={
            "early_config_prune": lambda configs, *_, **__: leaders(configs, estimate),
            "perf_model": lambda *, config, **_: estimate(config),
            "top_k": MOST_TIMED,
        },
        do_bench=contender.time,
    )(contender)
    error = None
    try:
        tuner.run()
    except DeviceLostError:
        raise
    except Exception as raised:
        error = raised
    is_complete = len(contender.timings) == min(MOST_TIMED, len(leaders(configs, estimate)))
    if not is_complete:
        number = f"{len(contender.timings)} configs were" if contender.timings else "nothing was"
        warnings.warn(f"tritonbn: {number} timed for {what}: {type(error).__name__}: {error}", RuntimeWarning, 2)
    return contender.timings, is_complete


def leaders(configs: list[triton.Config], estimate: Callable[[Any], float]) -> list[triton.Config]:
    """The best of each strategy."""
    found: dict[str, list[triton.Config]] = {}
    for config in sorted(configs, key=lambda c: estimate(c.kwargs["config"])):
        found.setdefault(config.kwargs["config"].strategy, []).append(config)
    most = MOST_TIMED if len(found) == 1 else MOST_OF_A_STRATEGY
    return [config for strategy in found.values() for config in strategy[:most]]


class Contender:
    """What Triton's autotuner takes for a kernel: all launches of a pass."""

    arg_names: tuple[str, ...] = ()
    fn = forward_kernel
    """The autotuner looks for the name of a function."""

    def __init__(self, trial: Trial, do_bench: Benchmark | None, require_device: Callable[[Timing], None]) -> None:
        self.trial, self.do_bench, self.require_device = trial, do_bench, require_device
        self.timings: list[Timing] = []
        self.config: Any = None

    def run(self, *, config: Any, **options: Any) -> None:
        """Run the pass once."""
        self.config = config
        self.trial(config)

    def time(self, call: Callable[[], None], quantiles: tuple[float, ...]) -> list[float]:
        """The median, for all quantiles; infinity where the config fails, whatever the reason."""
        do_bench, self.config = self.do_bench or benchmark(), None
        try:
            taken = do_bench(call, quantiles=quantiles)
        except Exception as error:
            if self.config is None or is_out_of_memory(error):
                raise  # of the benchmark itself, or of the machine
            found = timing(self.config, None, describe_failure(error))
            self.require_device(found)
        else:
            found = timing(self.config, first(taken) / 1e3)
        self.timings.append(found)
        return [found.seconds or math.inf] * len(quantiles)


def first(taken: Any) -> float:
    """Of several numbers, or the only one."""
    return float(taken[0] if hasattr(taken, "__getitem__") else taken)


def benchmark() -> Benchmark:
    """The active driver's; RuntimeError where there is no GPU to time on."""
    find = getattr(DRIVERS.active, "get_benchmarker", None)
    if find is None:
        raise RuntimeError("expected a GPU to time on, got none")
    return find()


def describe_failure(error: BaseException) -> str:
    """In a line."""
    cause = error.__cause__ if isinstance(error, UnfitError) else error
    return f"{type(cause).__name__}: {cause}".strip().splitlines()[0][:200]
