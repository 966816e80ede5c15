"""A call is recognized by what it is given: it ends the same whether or not one like it was there before."""

import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import DEVICE, random
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import tritonbn
from tritonbn import functional
from tritonbn.planning import forms

EQUAL = {
    "axis": (1, [1.0, True, Decimal(1), np.int32(1), 1 + 0j]),
    "correction": (1, [1.0, True, Decimal(1), np.int32(1), 1 + 0j]),
    "eps": (0.25, [Decimal("0.25"), Fraction(1, 4), np.float32(0.25), 0.25 + 0j, torch.tensor(0.25)]),
    "negative_slope": (0.5, [Decimal("0.5"), Fraction(1, 2), np.float32(0.5), 0.5 + 0j]),
}
"""Argument -> a value, and others that are equal to it, numbers being hashed as it is."""

OTHERS = [(name, value, other) for name, (value, others) in EQUAL.items() for other in others]


@pytest.fixture(autouse=True)
def no_known_calls():
    functional._cases.clear()
    yield
    functional._cases.clear()


def outcome(**arguments):
    mean, var = torch.zeros(3, device=DEVICE), torch.ones(3, device=DEVICE)
    x = random((4, 3, 2))
    return tritonbn.batch_norm(x, mean, var, training=True, activation="leaky_relu", **arguments), mean, var


@pytest.mark.parametrize("backend", ["triton", "aten"])
@pytest.mark.parametrize(("name", "value", "other"), OTHERS, ids=lambda value: repr(value).replace(" ", ""))
def test_equal_numbers_are_the_same_number(name, value, other, backend):
    with tritonbn.backend(backend):
        first = outcome(**{name: other})
        case = next(iter(functional._cases.values()), None)
        known = outcome(**{name: value})
    torch.testing.assert_close(first, known, rtol=0, atol=0)
    if case is not None:
        assert list(functional._cases.values()) == [case]
        assert {type(case.axis), type(case.correction)} == {int}
        assert {type(case.eps), type(case.slope)} == {float}


def test_eps_in_a_tensor_is_read_at_every_call():
    eps = torch.tensor(1e-5)
    before = outcome(eps=eps)[0]
    torch.testing.assert_close(outcome(eps=eps.fill_(4.0))[0], outcome(eps=4.0)[0], rtol=0, atol=0)
    assert not torch.equal(outcome(eps=4.0)[0], before)


def test_a_number_no_float_equals():
    for _ in range(2):
        with pytest.raises(TypeError, match="eps to be a number, got Decimal"):
            outcome(eps=Decimal("1e-5"))
        outcome(eps=1e-5)


def test_counters_are_told_apart():
    """A counter is known by less than other tensors are: that it has one element, it may have in any shape."""
    good = [
        torch.zeros((), dtype=torch.int64),
        torch.zeros(1, dtype=torch.int32),
        torch.zeros(4, dtype=torch.int64)[2:3],
        torch.zeros((), dtype=torch.float64),  # what module.type(torch.float64) makes of it
    ]
    several, sparse = torch.zeros(2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64).to_sparse()
    bad = [torch.zeros(1, dtype=torch.bool), several, sparse]
    for _ in range(2):
        for counter in good:
            before = counter.item()
            outcome(num_batches_tracked=counter.to(DEVICE) if DEVICE != "cpu" else counter)
            assert counter.item() == before + 1 or DEVICE != "cpu"
        for counter in bad:
            with pytest.raises(RuntimeError, match="a tensor of one real number"):
                outcome(num_batches_tracked=counter)


def test_the_oldest_make_room_and_come_back(monkeypatch):
    monkeypatch.setattr(functional, "MOST_CASES", 2)
    first = [outcome(eps=eps) for eps in (0.1, 0.2, 0.3)]
    assert [case.eps for case in functional._cases.values()] == [0.2, 0.3]
    again = [outcome(eps=eps) for eps in (0.1, 0.2, 0.3)]
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    assert len(functional._cases) == 2


def test_what_is_known_of_vectors_is_bounded(monkeypatch):
    monkeypatch.setattr(forms, "MOST", 2)
    for name in ("_seen", "_numbers"):
        monkeypatch.setattr(forms, name, {})
    x = torch.zeros(4, 3)
    vectors = [[torch.zeros(n), torch.ones(n)] for n in (3, 3, 3, 4, 5, 6)]
    assert len({number_of(*each, x) for each in vectors}) == 4
    assert len(forms._seen) == len(forms._numbers) == 2


VECTORS = {
    "strided": lambda: torch.arange(6.0)[::2],
    "reversed": lambda: torch._neg_view(-torch.arange(3.0)),
    "expanded": lambda: torch.full((1,), 2.0).expand(3),
    "double": lambda: torch.arange(3.0, dtype=torch.float64),
    "short": lambda: torch.arange(2.0),
    "matrix": lambda: torch.arange(3.0)[:, None],
    "sparse": lambda: torch.arange(3.0).to_sparse(),
    "elsewhere": lambda: torch.arange(3.0, device="meta"),
    "number": lambda: 3.0,
    "none": lambda: None,
}
"""What can take the place of a vector (3,)."""


def result(function, *arguments):
    try:
        return function(*arguments)
    except (AttributeError, RuntimeError) as error:
        return repr(error)


@pytest.fixture(params=["guards", "no guards"])
def guards(request, monkeypatch):
    """With torch's own comparison, and as where torch has none."""
    monkeypatch.setattr(forms, "_seen", {})
    if request.param == "no guards":
        monkeypatch.setattr(forms, "TensorGuards", None)


def number_of(*tensors):
    """As batch_norm asks."""
    number = forms.recognized(*tensors)
    if number is None:
        number = forms.forms(*tensors)
        forms.note(number, *tensors)
    return number


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("make", VECTORS.values(), ids=VECTORS)
def test_every_vector_is_compared_at_every_call(guards, make, place):
    """All but one are those of the calls before."""
    mine = [*(torch.zeros(3) for _ in range(4)), torch.tensor(0), torch.zeros(4, 3)]
    changed = [*mine[:place], make(), *mine[place + 1 :]]
    expected = result(number_of, *changed)
    forms._seen.clear()
    before = [number_of(*mine) for _ in range(3)]
    assert result(number_of, *changed) == expected != before[0]
    assert {*before, number_of(*mine)} == {before[0]}


@pytest.mark.skipif(forms.TensorGuards is None, reason="expected a torch that compares tensors in one go")
def test_an_input_is_recognized_by_its_kind():
    """Its shape and strides are no part of it; its number of axes only keeps it from being recognized."""
    vectors, x = [torch.zeros(3) for _ in range(4)], torch.zeros(4, 3, 2)
    (number,) = {number_of(*vectors, x) for _ in range(3)}
    for other in (torch.zeros(5, 3, 7), torch.zeros(2, 7, 3).mT, torch.zeros(0, 3, 1)):
        assert forms.recognized(*vectors, other) == number
    assert forms.forms(*vectors, torch.zeros(4, 3)) == number
    with torch.inference_mode():
        made_there = torch.zeros(4, 3, 2)
    for other in (x.half(), x.double(), torch.zeros(4, 3, 2, device="meta"), x._neg_view(), made_there):
        assert forms.recognized(*vectors, other) is None
        assert forms.forms(*vectors, other) != number
    assert forms.recognized(*vectors, x.to_sparse()) is None


def test_what_changes_to_and_fro_is_compared_anew_ever_more_rarely(monkeypatch):
    """To prepare a comparison takes longer than some calls; what changes for good is soon recognized again."""
    made, original = [], forms.comparison
    monkeypatch.setattr(forms, "comparison", lambda *tensors: (made.append(1), original(*tensors))[1])
    tensors = [*(torch.zeros(3) for _ in range(4)), torch.zeros(4, 3)]
    for number in range(64):
        tensors[2].requires_grad_(number % 2 == 0)
        number_of(*tensors)
    assert len(made) < 8
    made.clear()
    for _ in range(64):
        number_of(*tensors)
    assert len(made) <= 1
    if forms.TensorGuards is not None:
        assert forms.recognized(*tensors) is not None
    made.clear()
    for number in range(64):
        tensors[-1].requires_grad_(number % 2 == 0)
        number_of(*tensors)
    assert len(made) <= 2


class Watched(TorchDispatchMode):
    """Sees operations, and changes none."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **kwargs or {})


def within(mode):
    def call(function):
        with mode:
            return function()

    return call


def transformed(transform):
    found = []

    def call(function):
        transform(lambda x: found.append(function()) or x.sum())(torch.ones(2))
        return found.pop()

    return call


def under_trace(function):
    found = []
    torch.jit.trace(lambda x: found.append(function()) or x + 1, torch.ones(2), check_trace=False)
    return found[0]


STATES = {
    "fake tensors": within(FakeTensorMode(allow_non_fake_inputs=True)),
    "another mode": within(Watched()),
    "proxies": transformed(lambda f: lambda x: make_fx(f)(x)),
    "grad": transformed(torch.func.grad),
    "vmap": transformed(lambda f: lambda x: torch.vmap(f)(x[None])),
    "functionalize": transformed(torch.func.functionalize),
    "trace": under_trace,
    "inference mode": within(torch.inference_mode()),
    "forward mode": within(forward_ad.dual_level()),
}
"""What torch may be doing -> what calls a function meanwhile."""


@pytest.mark.skipif(forms.TensorGuards is None, reason="expected a torch that compares tensors in one go")
@pytest.mark.parametrize("call", STATES.values(), ids=STATES)
def test_what_torch_is_doing_is_compared_too(call):
    """As tensors are recognized, nobody asks whether kernels may run at all."""
    tensors = [*(torch.zeros(3) for _ in range(4)), torch.zeros(4, 3)]
    (number,) = {number_of(*tensors) for _ in range(3)}
    assert forms.recognized(*tensors) == number
    assert call(lambda: forms.recognized(*tensors)) is None


def test_tensors_of_inference_mode_are_none_of_those_seen_in_it():
    """torch's comparison sees no difference, but they cannot be saved for a backward pass."""
    module, x = tritonbn.BatchNorm1d(3, device=DEVICE), random((4, 3, 2))
    with torch.inference_mode():
        for _ in range(3):
            module(x)
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.clone()
        y = x.clone()
    before = module.running_mean.clone(), module.num_batches_tracked.clone()
    with pytest.raises(RuntimeError, match="expected tensors that can be saved"):
        module(y)
    assert torch.equal(before[0], module.running_mean)
    assert before[1] == module.num_batches_tracked


class Incomparable(torch.Tensor):
    """A subclass of a user's."""

    def __eq__(self, other):
        raise ValueError(f"expected nobody to compare with {other}")

    __hash__ = torch.Tensor.__hash__


def test_nobody_compares_elements():
    mean, var, x = torch.zeros(3, device=DEVICE), torch.ones(3, device=DEVICE), random((4, 3, 2))
    weight, bias = torch.ones(3, device=DEVICE).as_subclass(Incomparable), torch.zeros(3, device=DEVICE)
    for _ in range(3):
        tritonbn.batch_norm(x, mean, var, weight, bias, training=True)


def test_a_running_buffer_that_comes_to_need_a_gradient():
    mean, var, x = torch.zeros(3, device=DEVICE), torch.ones(3, device=DEVICE), random((4, 3, 2))
    weight, bias = torch.ones(3, device=DEVICE), torch.zeros(3, device=DEVICE)
    for _ in range(3):
        tritonbn.batch_norm(x, mean, var, weight, bias, training=True)
    var.requires_grad_()
    for _ in range(3):
        with torch.no_grad():
            tritonbn.batch_norm(x, mean, var, weight, bias, training=True)
    with pytest.raises(RuntimeError, match="running_var not to require a gradient"):
        tritonbn.batch_norm(x, mean, var, weight, bias, training=True)


def test_parameters_that_change_where_they_are(guards):
    module, x = tritonbn.BatchNorm1d(3, device=DEVICE), random((4, 3, 2))
    for _ in range(3):
        module(x)
    module.weight.data = torch.arange(6.0, device=DEVICE)[::2]
    module.bias.data = torch.zeros(1, device=DEVICE).expand(3)
    expected = torch.nn.functional.batch_norm(x, None, None, torch.tensor([0.0, 2, 4], device=DEVICE), training=True)
    torch.testing.assert_close(module(x), expected)
    module.running_var.data = module.running_var.data.double()
    with pytest.raises(RuntimeError, match="running_var of dtype"):
        module(x)
    module.running_var.data = module.running_var.data.float()[:2]
    with pytest.raises(RuntimeError, match="running_var to contain 3 elements"):
        module(x)


def test_training_and_evaluation_in_turns(guards):
    module, x = tritonbn.BatchNorm1d(3, device=DEVICE), random((4, 3, 2))
    for _ in range(3):
        y = module.train()(x)
        assert not torch.equal(module.eval()(x), y)
        with torch.no_grad():
            module.train()(x)
    assert module.num_batches_tracked == 6


@pytest.mark.skipif(forms.TensorGuards is None, reason="expected a torch that compares tensors in one go")
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}], ids=str)
def test_what_a_module_holds_is_not_looked_at_again_and_again(monkeypatch, options):
    module, x = tritonbn.BatchNorm1d(3, device=DEVICE, **options), random((4, 3, 2))
    for _ in range(2):
        module(x)
    seen = []
    original = forms.form
    monkeypatch.setattr(forms, "form", lambda tensor: (seen.append(tensor), original(tensor))[1])
    module(x)
    assert seen == []
    held = [each for each in (*module.parameters(), *module.buffers()) if each is not None]
    held[0].data = torch.ones(6, device=DEVICE)[::2]
    module(x)
    assert set(map(id, seen)) == set(map(id, held))


def test_what_is_missing_is_told_apart():
    """Though what is there is alike."""
    x, vector = random((4, 3, 2)), torch.arange(3.0, device=DEVICE)
    for _ in range(3):
        scaled = tritonbn.batch_norm(x, None, None, vector, None, training=True)
        shifted = tritonbn.batch_norm(x, None, None, None, vector, training=True)
    torch.testing.assert_close(scaled, F.batch_norm(x, None, None, vector, None, training=True))
    torch.testing.assert_close(shifted, F.batch_norm(x, None, None, None, vector, training=True))


def test_a_backward_pass_outlives_its_forward_pass_case():
    x = random((4, 3, 2)).requires_grad_()
    expected, actual = (tritonbn.batch_norm(x, None, None, training=True).square().sum() for _ in range(2))
    (dx,) = torch.autograd.grad(expected, x)
    functional._cases.clear()
    assert torch.equal(torch.autograd.grad(actual, x)[0], dx)


class SlowDict(dict):
    """Gives other threads time where it matters that they have to wait."""

    def __iter__(self):
        keys = super().__iter__()
        time.sleep(1e-3)
        return keys

    def __delitem__(self, key):
        super().__delitem__(key)
        time.sleep(1e-3)


def test_threads_make_room_at_once(monkeypatch):
    monkeypatch.setattr(functional, "MOST_CASES", 2)
    monkeypatch.setattr(functional, "_cases", SlowDict())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: functional.remember((number,), None), range(100)))
    assert len(functional._cases) == 2
