"""A case under pytest-benchmark: timed if it is right, skipped with its reason; failed if it is ours and wrong."""

import pytest
import torch

from benchmarks import measure, providers, rounds, timing
from benchmarks.cases import Case
from tritonbn.problems import Problem

CASE = Case("suite", Problem((4, 3, 5, 2), "backward", torch.float32))
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch, registry):
    monkeypatch.setattr(rounds, "PROVIDERS", registry)
    monkeypatch.setattr(timing, "CACHE_BYTES", 16)
    monkeypatch.setattr(timing, "ROUNDS", 3)
    providers.provider("right", providers.ANY)(providers.of_torch)


def test_a_right_one_is_timed(benchmark, monkeypatch):
    calls = []
    original = measure.Contender.timed
    monkeypatch.setattr(measure.Contender, "timed", lambda self: (calls.append(1), original(self))[1])
    rounds.run(benchmark, CASE, "right", CPU)
    assert calls == [1, 1], "once to be checked, once to be timed"
    assert benchmark.group.startswith(CASE.name)
    assert benchmark.extra_info["least_bytes"] == CASE.least_bytes


def test_the_others_are_not(benchmark):
    def unfit(case, inputs):
        raise providers.UnfitError("takes no such thing")

    providers.provider("unfit", providers.ANY)(unfit)
    with pytest.raises(pytest.skip.Exception, match="takes no such thing"):
        rounds.run(benchmark, CASE, "unfit", CPU)
    for name, ended in (("wrong", pytest.skip.Exception), ("tritonbn, wrong", pytest.fail.Exception)):
        providers.provider(name, providers.ANY)(lambda *of: lambda: providers.of_torch(*of)() * 1.01)
        with pytest.raises(ended, match="wrong: y is off"):
            rounds.run(benchmark, CASE, name, CPU)
    benchmark(lambda: None)
