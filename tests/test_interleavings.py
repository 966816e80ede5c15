"""Programs that wait for each other, in hundreds of orders: right values, no deadlock, no race, counters put back.

And what has to be caught: too few slots, and kernels broken on purpose by a change in the text of kernels/exchange.py.
"""

import importlib.util
import random as lots
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from interleaving import Deadlock, interleaved, side_by_side
from races import DataRace
from support import DEVICE, random, vector
from triton.runtime import interpreter

import tritonbn
from tritonbn import configs, reference
from tritonbn.kernels import backward, exchange, finish, forward, moments, resident_backward, resident_forward, sums
from tritonbn.launching import counters
from tritonbn.launching.launch import INTERPRETED

interpreted = pytest.mark.skipif(not INTERPRETED, reason="about orders that only the interpreter can be given")

FIRST, LAST = torch.contiguous_format, torch.channels_last

ALL = 99
"""Slots for every program."""

CASES = {
    "two blocks of two chunks": ((4, 2, 1, 8), FIRST, (1, 2, 8), 2),
    "one block of three chunks, channels last": ((2, 8, 1, 5), LAST, (8, 1, 4), 3),
    "one block of four chunks": ((4, 3, 1, 4), FIRST, (4, 1, 4), 4),
    "planes folded": ((3, 12, 3, 3), FIRST, (1, 1, 1), 3),
    "pixels folded": ((2, 3, 11, 9), LAST, (1, 1, 1), 3),
}
"""Shape and memory format of x, the tile, and the chunks of a block of channels."""


REREAD = {
    "two blocks of three chunks of several tiles": ((7, 2, 1, 8), FIRST, (1, 1, 8), 3),
    "one block of five chunks of several tiles, channels last": ((7, 8, 1, 7), LAST, (8, 1, 4), 5),
}
"""The same, of chunks of three tiles of which two are read again."""

SPANS = "one block of three chunks, channels last", "one block of four chunks", "planes folded"
"""Cases of more than two chunks, which are merged in spans of two if no more than one fits into the registers."""


class Step:
    """A training step with all that kernels are ever asked for."""

    def __init__(self, shape, memory_format):
        x, residual, self.dy = (random(shape, seed=s).contiguous(memory_format=memory_format) for s in range(3))
        weight, bias = (vector(shape[1], torch.float32, s) for s in (2, 3))
        self.inputs = x, residual, weight, bias

    def forward(self, x, residual, weight, bias):
        mean, var, counter = torch.zeros_like(weight), torch.ones_like(weight), torch.full((), 3, device=DEVICE)
        y = tritonbn.batch_norm(
            x, mean, var, weight, bias, True, None, num_batches_tracked=counter, residual=residual, activation="relu"
        )
        return y, mean, var, counter

    def run(self):
        leaves = [t.detach().requires_grad_() for t in self.inputs]
        results = self.forward(*leaves)
        return [t.detach() for t in results] + [*torch.autograd.grad(results[0], leaves, self.dy)]

    def truth(self):
        leaves = [t.double().requires_grad_() for t in self.inputs]
        x, residual, weight, bias = leaves
        normal = reference.batch_norm(x, torch.zeros_like(bias), torch.ones_like(bias), weight, bias, True, 1 / 4)
        y = torch.relu(normal.y + residual)
        results = y, normal.running_mean, normal.running_var, torch.tensor(4, device=DEVICE)
        return [t.detach() for t in results] + [*torch.autograd.grad(y, leaves, self.dy.double())]


def orders(step, slots):
    """The step in several orders."""
    for seed in range(5):
        with side_by_side(seed, slots, shuffled=seed % 2 == 1):
            step.run()


@interpreted
@pytest.mark.parametrize(
    ("case", "strategy", "everyone_merges"),
    [(case, strategy, 4) for case in CASES for strategy in ("resident", "at once", "dataflow")]
    + [("two blocks of two chunks", "resident", 1), ("pixels folded", "resident", 64)]
    + [(case, "rereads", everyone_merges) for case in REREAD for everyone_merges in (1, 4, 0)]
    + [(case, strategy, 0) for case in SPANS for strategy in ("resident", "at once", "dataflow")],
)
@pytest.mark.parametrize("seeds", [range(9), pytest.param(range(9, 36), marks=pytest.mark.thorough)], ids=str)
def test_orders(cut, monkeypatch, case, strategy, everyone_merges, seeds):
    """On the fewest slots, on one more, and on more than there are programs; where nobody else merges, in spans."""
    monkeypatch.setattr(exchange, "EVERYONE_MERGES", tl.constexpr(everyone_merges))
    if everyone_merges == 0:
        monkeypatch.setattr(configs, "MERGED_A_THREAD", 0)
    shape, memory_format, sizes, chunks = (CASES | REREAD)[case]
    if strategy == "at once":
        cut(*sizes, 1, strategy="resident", at_once=chunks)
    elif strategy == "rereads":
        cut(*sizes, 3, strategy="resident", rereads=2)
    else:
        cut(*sizes, 1, strategy=strategy)
    least = 1 if strategy == "dataflow" else chunks
    step, first = Step(shape, memory_format), None
    for seed in seeds:
        with side_by_side(seed, (least, least + 1, ALL)[seed % 3], shuffled=seed % 2 == 1):
            results = step.run()
        first = first or results
        assert all(map(torch.equal, results, first))
    for result, true in zip(first, step.truth(), strict=True):
        torch.testing.assert_close(result.double(), true.double(), rtol=1e-4, atol=1e-4)


@pytest.fixture
def step(cut):
    """step(strategy) is one of two blocks of three chunks."""

    def make(strategy):
        cut(8, 1, 4, 1, strategy=strategy)
        return Step((2, 16, 1, 5), LAST)

    yield make
    counters.forget()


@interpreted
@pytest.mark.parametrize("slots", [1, 2])
def test_fewer_slots_than_chunks(step, slots):
    message = rf"{slots} programs wait, {6 - slots} have no slot: resident_forward_kernel .* at counters \+ \d+ bytes"
    with pytest.raises(Deadlock, match=message):
        orders(step("resident"), slots)


@interpreted
@pytest.mark.parametrize("slots", [2, 3])
def test_dies_with_slots_of_their_own(cut, slots):
    """Chunks that wait for one whose die they fill come to no end in some orders, even if another die is idle."""
    cut(1, 1, 4, 1, strategy="resident")
    x = random((3, 4, 4))
    with torch.no_grad(), pytest.raises(Deadlock) if slots < 3 else nullcontext():
        for seed in range(20):
            with side_by_side(seed, slots, shuffled=seed % 2 == 1, dies=2):
                tritonbn.batch_norm(x, None, None, training=True)
    counters.forget()


def on_two_streams(monkeypatch, slots, seed, *steps):
    """The forward passes of two steps at once, on slots that they share."""
    results = []
    with torch.no_grad(), side_by_side(seed, slots, together=2):
        for stream, each in enumerate(steps):
            monkeypatch.setattr(counters, "current_stream", lambda device, stream=stream: stream)
            results.append(each.forward(*each.inputs))
    return results


@interpreted
def test_two_streams(monkeypatch, step):
    """Each can hold two slots in vain: on five both come to an end in any order, on four in some they do not."""
    steps = step("resident"), step("resident")
    for seed in range(10):
        for each, results in zip(steps, on_two_streams(monkeypatch, 5, seed, *steps), strict=True):
            for result, true in zip(results, each.truth(), strict=False):
                torch.testing.assert_close(result.double(), true.double(), rtol=1e-4, atol=1e-4)
    starved = 0
    for seed in range(10):
        try:
            on_two_streams(monkeypatch, 4, seed, *steps)
        except Deadlock:
            starved += 1
    assert 0 < starved < 10


@interpreted
@pytest.mark.parametrize("strategy", ["resident", "dataflow"])
@pytest.mark.parametrize("passes", ["forward", "backward"])
def test_a_span_that_is_not_put_back_is_caught(step, broken, monkeypatch, strategy, passes):
    """As are spans whose merged row is not there yet when it is merged."""
    monkeypatch.setattr(configs, "MERGED_A_THREAD", 0)
    broken("return is_last(arrivals, ", "return is_last(arrivals, 1 + ", passes)
    with pytest.raises(Deadlock, match=f"{passes}_kernel"):
        orders(step(strategy), ALL)


@pytest.fixture
def broken(monkeypatch, tmp_path):
    """broken(old, new, passes) makes the kernels use exchange.py with another text in place of an old one."""
    users = {
        "forward": (forward, resident_forward, moments, finish),
        "backward": (backward, resident_backward, sums),
    }

    def change(old, new, passes):
        source = Path(exchange.__file__).read_text()
        assert old in source
        file = tmp_path / "broken_exchange.py"
        file.write_text(source.replace(old, new))
        spec = importlib.util.spec_from_file_location("broken_exchange", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        functions = {n: f for n, f in vars(module).items() if isinstance(f, interpreter.InterpretedFunction)}
        for user in users[passes]:
            for name in functions.keys() & vars(user).keys():
                monkeypatch.setattr(user, name, functions[name])

    return change


BOTH = ["resident", "dataflow"]

DEADLOCKS = {
    "no gate is opened": ("absent + 2 * exchange.BLOCK_K", "absent * 0", ALL, BOTH),
    "a chunk is forgotten": ("exchange.BLOCK_K - waiting", "exchange.BLOCK_K + 1 - waiting", ALL, BOTH),
    "nobody is the last": ("expected - 1", "expected", ALL, BOTH),
    "tickets across blocks": ("return ticket\n", "return ticket % 2 * 3 + ticket // 2\n", 3, ["resident"]),
    "no tickets": ('ticket = tl.atomic_add(exchange.counters, 1, sem="relaxed")', "ticket = tl.program_id(0)", 3, BOTH),
    "second halves first": ("second = second | final", "second = (second | final) == 0", 3, ["dataflow"]),
}

RACES = {
    "gates release nothing": ('sem="release"', 'sem="relaxed"', ALL, BOTH),
    "gates acquire nothing": ('sem="acquire"', 'sem="relaxed"', ALL, BOTH),
    "arrivals are relaxed": ('sem="acq_rel"', 'sem="relaxed"', ALL, BOTH),
    "arrivals acquire nothing": ('sem="acq_rel"', 'sem="release"', ALL, BOTH),
    "arrivals release nothing": ('sem="acq_rel"', 'sem="acquire"', ALL, BOTH),
    "the last but one is the last": ("expected - 1", "expected - 2", ALL, BOTH),
    "nobody waits": ("    seen = 0", "    return\n    seen = 0", ALL, BOTH),
}

LEFT_OVERS = {
    "tickets": ("tl.atomic_xchg(exchange.counters, 0", "tl.atomic_xchg(exchange.counters, 1", ALL, BOTH),
    "arrivals": ("tl.atomic_xchg(counter, 0", "tl.atomic_xchg(counter, expected", ALL, BOTH),
    "gates": ("exchange.BLOCK_K - waiting", "exchange.BLOCK_K - 1 - waiting", ALL, BOTH),
}

ARRIVING = "- exchange.chunks + 1, 1)\n    tl.atomic_add"

MEETINGS = {
    "one more is awaited": (ARRIVING, ARRIVING.replace("+ 1", "+ 0"), Deadlock, "_kernel"),
    "one is not awaited": (ARRIVING, ARRIVING.replace("+ 1", "+ 2"), DataRace, "partials"),
    "arrivals release nothing": ('arriving, sem="release"', 'arriving, sem="relaxed"', DataRace, "partials"),
    "gates acquire nothing": ('sem="acquire"', 'sem="relaxed"', DataRace, "partials"),
}
"""What is broken where every chunk merges -> an old text and a new one, and what says so."""


def with_each(changes):
    """The changes with each strategy that they break, on so many slots."""
    return pytest.mark.parametrize(
        ("old", "new", "slots", "strategy"),
        [
            pytest.param(old, new, slots, strategy, id=f"{name}, {strategy}")
            for name, (old, new, slots, strategies) in changes.items()
            for strategy in strategies
        ],
    )


@interpreted
@pytest.mark.parametrize("passes", ["forward", "backward"])
@with_each(DEADLOCKS)
def test_a_deadlock_is_caught(step, broken, old, new, slots, strategy, passes):
    broken(old, new, passes)
    with pytest.raises(Deadlock, match=f"{passes}_kernel"):
        orders(step(strategy), slots)


@interpreted
@pytest.mark.parametrize("passes", ["forward", "backward"])
@with_each(RACES)
def test_a_race_is_caught(step, broken, old, new, slots, strategy, passes):
    broken(old, new, passes)
    with pytest.raises(DataRace, match=rf"{passes}_kernel .* in no order: (partials|statistics) \+ \d+ bytes"):
        orders(step(strategy), slots)


@interpreted
@with_each(LEFT_OVERS)
def test_a_counter_that_is_not_put_back_is_caught(step, broken, old, new, slots, strategy):
    broken(old, new, "backward")
    with pytest.raises(AssertionError, match="counters are not zero"):
        orders(step(strategy), slots)


@interpreted
@pytest.mark.parametrize("passes", ["forward", "backward"])
@pytest.mark.parametrize(("old", "new", "error", "message"), MEETINGS.values(), ids=MEETINGS)
def test_a_meeting_that_fails_is_caught(step, broken, monkeypatch, old, new, error, message, passes):
    monkeypatch.setattr(exchange, "EVERYONE_MERGES", tl.constexpr(8 * 8 * 4))
    broken(old, new, passes)
    with pytest.raises(error, match=message):
        orders(step("resident"), ALL)


@interpreted
def test_a_chunk_that_stays_at_a_meeting_is_caught(step, broken, monkeypatch):
    monkeypatch.setattr(exchange, "EVERYONE_MERGES", tl.constexpr(8 * 8 * 4))
    broken("+ 1, 1), exchange)", "+ 0, 1), exchange)", "backward")
    with pytest.raises(AssertionError, match="counters are not zero"):
        orders(step("resident"), ALL)


@triton.jit
def note_order(counter, order):
    """Where each program came."""
    program = tl.program_id(0)
    tl.store(order + tl.atomic_add(counter, 1, sem="relaxed"), program)


@triton.jit
def pass_on(flag, data, SEM: tl.constexpr, SCOPE: tl.constexpr):
    """Program 0 stores data and raises the flag, 1 hands it on by a relaxed operation, 2 loads the data."""
    program = tl.program_id(0)
    if program == 0:
        tl.store(data, 7)
        tl.atomic_xchg(flag, 1, sem=SEM, scope=SCOPE)
    elif program == 1:
        while tl.atomic_cas(flag, 1, 2, sem="relaxed") != 1:
            pass
    else:
        while tl.atomic_cas(flag, 2, 3, sem="acquire") != 2:
            pass
        tl.store(data, tl.load(data) + 1)


@triton.jit
def fail_at(counter, LAST: tl.constexpr):
    """The last program fails, for which all others wait."""
    if tl.atomic_add(counter, 1) == LAST:
        tl.static_assert(False, "as it should")
    while tl.atomic_add(counter, 0) < 99:
        pass


def zeros(size=1):
    return torch.zeros(size, dtype=torch.int32)


@interpreted
def test_an_order_follows_from_its_seed():
    orders = {}
    for slots, shuffled, seed in [(8, False, s) for s in (0, 1, 2, 0)] + [(1, False, 0), (1, True, 1)]:
        order = zeros(8)
        with interleaved(seed, slots, shuffled=shuffled):
            note_order[(8,)](zeros(), order)
        assert sorted(order.tolist()) == list(range(8))
        assert orders.setdefault((slots, shuffled, seed), order.tolist()) == order.tolist()
    assert len(set(map(tuple, orders.values()))) == 5
    assert orders[1, False, 0] == list(range(8))


@interpreted
def test_memory_of_nobody():
    with pytest.raises(interpreter.InterpreterError, match="lie in no tensor"), interleaved(0, 2):
        note_order[(2,)](zeros(), zeros(1))


@interpreted
def test_what_happens_before_what():
    for sem, scope in (("release", "gpu"), ("acq_rel", "sys")):
        for seed in range(5):
            data = zeros()
            with interleaved(seed, 3):
                pass_on[(3,)](zeros(), data, sem, scope)
            assert data.item() == 8
    for sem, scope in (("relaxed", "gpu"), ("acquire", "gpu"), ("release", "cta")):
        with (
            pytest.raises(DataRace, match=r"store by pass_on \(0, 0, 0\) and load by pass_on \(2, 0, 0\).*data \+ 0"),
            interleaved(0, 3),
        ):
            pass_on[(3,)](zeros(), zeros(), sem, scope)


def state():
    """What the executor changes while it runs programs."""
    kept = {name: value for name, value in vars(interpreter.interpreter_builder).items() if "grid" not in name}
    return kept, interpreter.GridExecutor.__call__, interpreter._patch_lang, threading.active_count()


@interpreted
def test_nothing_is_left_of_a_failure():
    before = state()
    with pytest.raises(interpreter.InterpreterError, match="as it should"), interleaved(0, 4):
        fail_at[(4,)](zeros(), 3)
    with pytest.raises(Deadlock, match="3 programs wait, 1 have no slot"), interleaved(0, 3):
        fail_at[(4,)](zeros(), 3)
    assert state() == before


@pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="needs a GPU")
def test_ten_thousand_launches(cut):
    """On three streams at random, all with the bits of the first."""
    cut(1, 4, 256, 1, strategy="resident")
    step = Step((32, 64, 16, 16), FIRST)
    first = step.run()
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(3)]
    wrong = torch.zeros(len(streams), dtype=torch.bool, device=DEVICE)
    torch.cuda.synchronize()
    for _ in range(10_000):
        number = lots.randrange(len(streams))
        with torch.cuda.stream(streams[number]):
            for result, expected in zip(step.run(), first, strict=True):
                wrong[number] |= (result != expected).any()
    torch.cuda.synchronize()
    assert not wrong.any()
    assert not any(kept.any() for kept in counters._kept.values())
