"""tuning(strategies=...): only these run, forward and backward, or the call says that none of them can."""

import pytest
import torch

import tritonbn
from tritonbn import targets
from tritonbn.choice import selection
from tritonbn.choice.selection import StrategyError

PHASES = {"resident": None, "dataflow": "dataflow"}


@pytest.fixture
def launches():
    with targets.compiling_for("sm_90") as found:
        yield found


def train(shape, **setting):
    x = torch.empty(shape, dtype=torch.bfloat16, device="meta", requires_grad=True)
    with tritonbn.tuning("off", **setting):
        y = tritonbn.batch_norm(x, None, None, training=True)
    torch.autograd.grad(y, [x], torch.empty_like(y))  # outside: as the forward pass


@pytest.mark.parametrize("strategy", ["resident", "dataflow", "split"])
def test_one_strategy(launches, strategy):
    train((32, 64, 56, 56), strategies=(strategy,))
    found = [launch.arguments.get("PHASE") for launch in launches]
    one = [PHASES.get(strategy)] * 2
    assert found == (["statistics", "normalize", "sums", "gradients"] if strategy == "split" else one)


def test_several_strategies_leave_the_choice_to_the_model(launches):
    train((32, 64, 56, 56), strategies=("split", "dataflow"))
    assert [launch.arguments["PHASE"] for launch in launches] == ["dataflow"] * 2


def test_none_that_can_run(launches):
    with (
        pytest.raises(StrategyError, match="expected a strategy that can run forward of such an input, got 'resident'"),
        tritonbn.targets.assume("H100", concurrent=False),
    ):
        train((2, 1, 4096, 4096), strategies=("resident",))
    x, vector = torch.empty((2, 8), device="meta"), torch.empty(8, device="meta")
    inference = tritonbn.tuning("off", strategies=("resident",))(tritonbn.batch_norm)
    with pytest.raises(ValueError, match="inference"):
        inference(x, vector, vector)
    assert launches == []


@pytest.mark.parametrize("strategies", [(), "split", ("split", "splat")])
def test_strategies_that_are_none(strategies):
    with pytest.raises(ValueError, match="expected strategies from resident, dataflow, split, short, long, got"):
        tritonbn.tuning("off", strategies=strategies)


def test_what_only_some_were_timed_for_is_not_kept(launches, monkeypatch, tmp_path):
    """Otherwise the fastest of a few would be taken for the fastest of all."""
    monkeypatch.setenv("TRITONBN_CACHE", str(tmp_path))
    tried = []

    def bench(call, quantiles):
        call()
        tried.append(launches[-1].arguments["PHASE"])
        return [1.0] * len(quantiles)

    shape = (16, 24, 28, 28)
    with tritonbn.tuning("timed", bench, strategies=("split",)):
        tritonbn.batch_norm(torch.empty(shape, device="meta"), None, None, training=True)
    assert 1 < len(tried) <= 8
    assert set(tried) == {"normalize"}
    assert not list(tmp_path.glob("*.timings.json"))
    assert selection.store.current().directories[0] == tmp_path
