"""Who is timed: providers that are right, wrong, not able, not themselves."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks import measure, memory, providers, timing, values
from benchmarks.cases import Case
from benchmarks.inputs import EPS, make
from benchmarks.rows import COPY
from benchmarks.witness import names_of
from benchmarks.worker import Last, LostError
from tritonbn.launching.launch import INTERPRETED
from tritonbn.problems import Problem

CPU = torch.device("cpu")


def case_of(mode="forward", shape=(4, 3, 5, 2), **options):
    return Case("", Problem(shape, mode, torch.float32, **options))


def right(case, inputs):
    """A provider that computes by torch."""
    return providers.of_torch(case, inputs)


def first_results(provider, case, inputs):
    """Of one call, with buffers of its own."""
    contender = measure.Contender(provider, case, inputs.with_own_buffers())
    return contender.results(contender.timed()(), buffers=True)


def register(name, build, runs=providers.ANY, never=providers.NONE):
    providers.provider(name, runs, never)(build)


@pytest.fixture
def few_rounds(monkeypatch):
    monkeypatch.setattr(timing, "ROUNDS", 2)
    monkeypatch.setattr(timing, "WARM_UP", 1)


def test_only_those_who_are_right_are_timed(gpu, registry, few_rounds):
    def wrong(case, inputs):
        call = right(case, inputs)
        return lambda: call() * 1.01

    def nothing(case, inputs):
        return lambda: right(case, inputs)() * torch.nan

    def raises(case, inputs):
        raise ZeroDivisionError("what a bug\nsays\nand says")

    def unfit(case, inputs):
        raise providers.UnfitError("takes no such thing")

    def forgets(case, inputs):
        return right(case, inputs.with_own_buffers())

    for build in (right, wrong, nothing, raises, unfit, forgets):
        register(build.__name__, build)
    register("stranger", right, re.compile("cudnn"))
    register("undercover", right, never=re.compile("glass"))
    told = []
    rows = {row.provider: row for row in measure.measure(gpu, case_of(), list(registry), told.append)}
    assert told[: len(registry)] == list(registry)
    assert set(told[len(registry) :]) == {"right", COPY}, "nobody else runs again"
    assert rows.pop(COPY).cold.p50 == 0
    assert rows["right"].why == ""
    assert rows["right"].cold.p50 == rows["right"].warm.p50 == 0, "on a clock that stands still"
    assert rows["right"].host.p50 > 0
    assert rows["right"].kernels == ("batch_norm_of_glass",)
    assert rows["right"].peak_bytes == 12
    assert re.fullmatch(r"wrong: y is off by 1\.\de-02", rows["wrong"].why)
    assert rows["nothing"].why == "wrong: y is off by nan"
    assert "y" not in rows["nothing"].errors
    assert rows["raises"].why == "ZeroDivisionError: what a bug says"
    assert rows["unfit"].why == "takes no such thing"
    assert [name for name, row in rows.items() if row.unfit] == ["unfit"]
    assert re.fullmatch(r"wrong: running_mean is off by .*, running_var is off by .*", rows["forgets"].why)
    assert rows["stranger"].why == rows["undercover"].why == "other kernels ran: batch_norm_of_glass"
    assert all(row.cold is None for name, row in rows.items() if name != "right")


def test_who_breaks_while_timed_has_no_time_and_the_others_do(gpu, registry, few_rounds):
    """One raises after some calls, one becomes wrong: counters that are not put back, say."""

    def ages(case, inputs, change):
        call, calls = right(case, inputs), []

        def aging():
            calls.append(1)
            return change(call()) if len(calls) > 6 else call()

        return aging

    def breaks(y):
        raise ZeroDivisionError("too old")

    register("right", right)
    register("breaks", lambda *of: ages(*of, breaks))
    register("decays", lambda *of: ages(*of, lambda y: y * 1.01))
    rows = {row.provider: row for row in measure.measure(gpu, case_of(), list(registry), lambda name: None)}
    assert rows["right"].cold is not None
    assert rows["breaks"].why == "ZeroDivisionError: too old"
    assert rows["decays"].why.startswith("wrong: y is off by 1.")
    assert rows[COPY].why == ""
    assert rows["breaks"].cold is rows["decays"].cold is rows["decays"].host is None


def test_who_loses_the_gpu_is_told_of_at_once(gpu, registry, monkeypatch):
    def illegal(case, inputs):
        monkeypatch.setattr(measure, "wait_for", lost)
        raise RuntimeError("an illegal memory access was encountered")

    def lost(device):
        raise RuntimeError("an illegal memory access was encountered")

    register("illegal", illegal)
    register("right", right)
    with pytest.raises(LostError) as raised:
        measure.measure(gpu, case_of(), list(registry), lambda name: None)
    assert raised.value.name == "illegal"
    assert raised.value.what == "has lost the GPU: RuntimeError: an illegal memory access was encountered"


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("mode", ["forward", "backward", "inference"])
def test_every_result_is_looked_at(registry, mode, fused):
    """A provider that is wrong in one place of one result is found out, in every result."""
    options = {"activation": "relu", "residual": True} if fused else {}
    case = case_of(mode, **options)
    inputs = make(case, CPU)
    contender = measure.Contender(providers.Provider("", right, providers.ANY, providers.NONE), case, inputs)
    results = first_results(contender.provider, case, inputs)
    found = values.errors(case, inputs, results)
    expected = {"y"}
    expected |= {"dx", "dweight", "dbias"} | ({"dresidual"} if fused else set()) if mode == "backward" else set()
    expected |= {"running_mean", "running_var"} if mode == "forward" else set()
    assert found.keys() == expected
    assert all(error <= values.allowed(case, name) for name, error in found.items())
    for name in expected:
        for bad in (float("nan"), float("inf"), 1e3):
            broken = first_results(contender.provider, case, inputs)
            broken.all()[name].detach().view(-1)[-1] = bad
            assert not values.errors(case, inputs, broken)[name] <= values.allowed(case, name), (name, bad)


@pytest.mark.parametrize("mode", ["forward", "backward"])
def test_torch_is_right_about_two_values_a_channel(mode):
    """Which may lie so close together that rounding their mean shows."""
    case = case_of(mode, (2, 1025))
    inputs = make(case, CPU)
    found = values.errors(case, inputs, first_results(provider_of(right), case, inputs))
    assert all(error <= values.allowed(case, name) for name, error in found.items())


def test_parts_give_the_same_errors(monkeypatch):
    for case in (case_of("backward"), Case("", Problem((6, 5, 4), "sample_backward", torch.float32), 1)):
        inputs = make(case, CPU)
        build = providers.formula if case.keras else right
        contender = measure.Contender(providers.Provider("", build, providers.ANY, providers.NONE), case, inputs)
        results = contender.results(contender.timed()())
        whole = values.errors(case, inputs, results)
        monkeypatch.setattr(values, "MOST_AT_ONCE", 1)
        assert values.errors(case, inputs, results) == pytest.approx(whole, rel=1e-6)
        monkeypatch.undo()


@pytest.fixture
def small(registry, clock, few_rounds, monkeypatch):
    """A function that times some providers as on CUDA, where a graph is a replay that a test makes of a call."""
    monkeypatch.setattr(measure, "Stopwatch", lambda device: made)
    monkeypatch.setattr(measure, "wait_for", lambda device: None)
    made = timing.Stopwatch(CPU)

    def run(replays, least_bytes=measure.SMALL_BYTES):
        rows, fit, calls, order = {}, {}, {}, []
        inputs = make(case_of("backward"), CPU)
        for name in replays:
            rows[name] = measure.Row(measure.Key.of(case_of("backward")), name, least_bytes, 60)
            fit[name] = measure.Contender(provider_of(right), case_of("backward"), inputs.with_own_buffers())
            calls[name] = fit[name].timed()
        names = {id(call): name for name, call in calls.items()}

        def captured(call):
            result = call()
            order.append(names[id(call)])
            return (lambda: replays[names[id(call)]](clock, call, result)), result

        monkeypatch.setattr(measure, "captured", captured)
        spoilt = measure.time_all(rows, fit, calls, inputs, torch.device("cuda"), lambda name: None)
        return rows, spoilt, order

    return run


def computes_again(clock, call, result):
    """What a replay does."""
    clock.now += 3
    with torch.no_grad():
        for old, new in zip(result, call(), strict=True):
            old.copy_(new)


def test_replays_of_small_calls_are_timed_if_they_compute_again(small):
    def does_nothing(clock, call, result):
        clock.now += 1

    rows, spoilt, order = small({"tritonbn": computes_again, "idle": does_nothing, "other": computes_again})
    assert not spoilt
    assert rows["tritonbn"].graph.p50 == rows["other"].graph.p50 == pytest.approx(3000 / timing.REPLAYED)
    assert rows["idle"].graph is None
    assert rows["idle"].not_captured.startswith("WrongError: wrong: dx is off by nan")
    assert rows["idle"].cold is not None
    assert order == ["idle", "other", "tritonbn"], "ours last, lest it spoil the others'"


def test_large_calls_are_not_captured(small):
    rows, spoilt, _ = small({"other": None}, measure.SMALL_BYTES + 1)
    assert not spoilt
    assert rows["other"].cold is not None
    assert rows["other"].graph is None


def test_a_capture_that_fails_is_the_last_one_of_its_process(small, gpu, registry, monkeypatch):
    def forbidden(clock, call, result):
        raise RuntimeError("operation not permitted when stream is capturing")

    rows, spoilt, _ = small({"tritonbn": computes_again, "stubborn": forbidden})
    assert spoilt
    assert "not permitted" in rows["stubborn"].not_captured
    assert rows["stubborn"].cold is not None
    assert rows["tritonbn"].graph is None, "it was not tried any more"
    register("right", right)
    monkeypatch.setattr(measure, "time_all", lambda *_: True)
    with pytest.raises(Last) as last:
        measure.measure(gpu, case_of(), ["right"], lambda name: None)
    assert [row.provider for row in last.value.result] == ["right", COPY]


def test_a_replay_that_raises_costs_itself_alone(small):
    def breaks(clock, call, result):
        computes_again(clock, call, result)
        if clock.now > 10:
            raise RuntimeError("a replay is lost")

    rows, spoilt, _ = small({"fragile": breaks, "other": computes_again})
    assert not spoilt
    assert rows["fragile"].why == "RuntimeError: a replay is lost"
    assert rows["fragile"].graph is None
    assert rows["other"].graph is not None


def test_a_hang_of_later_launches_is_not_the_next_ones(gpu, registry, monkeypatch):
    """Everybody's work is waited for in its own turn."""
    waited, told = [], []
    register("a", right)
    register("b", right)
    monkeypatch.setattr(measure, "wait_for", lambda device: waited.append(told[-1]))
    monkeypatch.setattr(measure, "time_all", lambda *_: False)
    measure.measure(gpu, case_of(), ["a", "b"], told.append)
    assert waited == told == ["a", "b"] * 2 + [COPY] + ["a", "b"]


def test_saved_bytes():
    x = torch.randn(10, requires_grad=True)
    other = torch.randn(10, requires_grad=True)
    assert memory.saved_bytes(lambda: x * other, [x, other]) == 0
    assert memory.saved_bytes(lambda: x * other, [x]) == 40
    assert memory.saved_bytes(lambda: x.exp() * x, [x]) == 40, "a storage counts once"
    with torch.no_grad():
        assert memory.saved_bytes(lambda: x * other, []) == 0


@pytest.mark.parametrize(
    ("name", "mine", "others"),
    [
        (
            "tritonbn",
            ["resident_forward_kernel"],
            ["batch_norm_backward_kernel", "void at::native::batch_norm_backward_kernel<float>(int)", "copy"],
        ),
        ("torch, cuDNN", ["void cudnn::bn_fw_tr_1C11_singleread<float>(int)"], ["void at::native::batch_norm_x"]),
        ("torch, native", ["void at::native::batch_norm_x<c10::Half>"], ["cudnn::batchnorm_fwtr_nhwc_semiPersist"]),
        ("torch.compile", ["triton_red_fused__native_batch_norm_legit_functional_0"], ["cudnn::bn", "void at::add"]),
    ],
)
def test_kernels_tell_who_ran(name, mine, others):
    provider = providers.PROVIDERS[name]
    assert provider.strangers(mine) == ""
    assert provider.strangers([]) == "", "nothing was seen"
    for other in others:
        assert provider.strangers([other]).startswith("other kernels ran: ")
    assert providers.short("void at::native::batch_norm_x<c10::Half>(int)") == "at::native::batch_norm_x"


@pytest.mark.skipif(not INTERPRETED, reason="runs kernels on the CPU's tensors; on a GPU the report itself looks")
@pytest.mark.parametrize("keras", [None, 0, 1, 2])
@pytest.mark.parametrize("mode", ["forward", "backward", "inference"])
def test_everybody_is_right_or_says_why_not(mode, keras):
    """Those that can run on a CPU are, all others have a reason that is none of values."""
    if keras is not None and mode == "inference":
        return
    sizes = (3, 4, 5, 2) if keras == 1 else (3, 2, 4, 5)
    case = Case("", Problem(sizes, f"sample_{mode}" if keras == 1 else mode, torch.bfloat16, "channels_first"), keras)
    names = [name for name in providers.PROVIDERS if name != "torch.compile"]  # compiles for long
    rows = {row.provider: row.why for row in measure.measure(CPU, case, names, lambda name: None)}
    assert rows["tritonbn"] == ""
    assert rows["torch, native"] == "" or keras in (0, 1)
    assert rows["torch operations"] == "" or keras is None
    assert not any(why.startswith(("wrong", "Error")) for why in rows.values())


@pytest.mark.filterwarnings("default")  # Inductor's own
def test_torch_compile_is_right_and_goes_backward_again_and_again():
    """Its backward pass is that of the training that repeats, which donated buffers would not outlive."""
    case = Case("", Problem((3, 2, 4, 5), "backward", torch.float32, activation="relu", residual=True))
    (row,) = measure.measure(CPU, case, ["torch.compile"], lambda name: None)
    assert row.why == ""
    contender = measure.Contender(providers.PROVIDERS["torch.compile"], case, make(case, CPU))
    call = contender.timed()
    first, second = call(), call()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_kernels_among_the_events_of_a_profiler():
    def event(name, start, kind=DeviceType.CUDA, note=False):
        return SimpleNamespace(
            name=name, device_type=kind, time_range=SimpleNamespace(start=start), is_user_annotation=note
        )

    events = [
        event("second", 2),
        event("cudaLaunchKernel", 0, DeviceType.CPU),
        event("first", 1),
        event("Memset (Device)", 0),
        event("Activity Buffer Request", 0),
        event("## Call CompiledFxGraph", 0),
        event("autograd::engine", 0, note=True),
    ]
    assert names_of(events) == ["first", "second"]
    assert names_of([]) == []


MUTANTS = {
    "half of the batch": lambda x, dims: x[: len(x) // 2],
    "another channel": lambda x, dims: x.roll(1, 1),
    "all but the last": lambda x, dims: x[:-1],
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("mutant", MUTANTS)
def test_statistics_of_anything_else_are_found_out_in_large_layers(mutant, dtype):
    """Where a channel has so many values that a wrong part of them has nearly the same mean."""
    case = Case("", Problem((16, 4, 56, 56), "forward", dtype))

    def build(case, inputs):
        i, dims = inputs, (0, 2, 3)

        def call():
            wrong = MUTANTS[mutant](i.x.float(), dims)
            variance, mean = torch.var_mean(wrong, dims, correction=0, keepdim=True)
            right(case, inputs)()  # for the buffers
            xhat = (i.x.float() - mean) * torch.rsqrt(variance + EPS)
            return (xhat * i.weight.view(-1, 1, 1) + i.bias.view(-1, 1, 1)).to(dtype)

        return call

    inputs = make(case, CPU)
    for kind, bad in ((build, {"y"}), (right, set())):
        found = values.errors(case, inputs, first_results(provider_of(kind), case, inputs))
        assert {name for name, error in found.items() if not error <= values.allowed(case, name)} == bad


@pytest.mark.parametrize("forgotten", ["mean", "projection"])
def test_gradients_without_the_sums_are_found_out_in_large_layers(forgotten):
    case = Case("", Problem((16, 4, 56, 56), "backward", torch.bfloat16))

    class Forgetful(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y):
            return y

        @staticmethod
        def backward(ctx, dy):
            inputs, dims = made, (0, 2, 3)
            variance, mean = torch.var_mean(inputs.x.float(), dims, correction=0, keepdim=True)
            invstd = torch.rsqrt(variance + EPS)
            xhat = (inputs.x.detach().float() - mean) * invstd
            centred = dy.float() - (0 if forgotten == "mean" else dy.float().mean(dims, keepdim=True))
            if forgotten != "projection":
                centred = centred - xhat * (dy.float() * xhat).mean(dims, keepdim=True)
            return (centred * invstd * inputs.weight.view(-1, 1, 1)).to(dy.dtype), None

    made = make(case, CPU)

    def build(case, inputs):
        i = inputs

        def call():
            y = right(case, replace(inputs, x=i.x.detach().requires_grad_()))()
            return Forgetful.apply(i.x, y.detach()) + 0 * (i.weight + i.bias).sum().to(y.dtype)

        return call

    found = values.errors(case, made, first_results(provider_of(build), case, made))
    assert found["dx"] > 10 * values.allowed(case, "dx")


def provider_of(build):
    """Without a look at its kernels."""
    return providers.Provider("", build, providers.ANY, providers.NONE)
