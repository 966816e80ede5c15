"""A step in another process: its result, its exceptions, one that hangs, one that ends the process."""

import os
import time

import pytest

from benchmarks.worker import Last, LostError, Worker


def step(what, names, told):
    """Do for each name what the test says."""
    done = []
    for name in names:
        told(name)
        if what.get(name) == "hang":
            time.sleep(600)
        if what.get(name) == "die":
            os._exit(3)
        if what.get(name) == "lose":
            raise LostError(name, "has lost the GPU")
        if what.get(name) == "last":
            raise Last([(name, os.getpid(), None)])
        if what.get(name) == "raise":
            raise ZeroDivisionError(name)
        done.append((name, os.getpid(), os.environ.get("OF_THE_WORKER")))
    return done


@pytest.fixture(scope="module")
def worker():
    with Worker(limit=4, environment={"OF_THE_WORKER": "yes"}) as made:
        yield made
    assert made.process is None


def test_the_process_stays_and_has_its_environment(worker):
    (first, blamed), (second, _) = (worker.run(step, ({},), ["a"]) for _ in range(2))
    assert blamed == {}
    assert first == second
    assert first[0][1] != os.getpid()
    assert first[0][2] == "yes"
    assert "OF_THE_WORKER" not in os.environ


def test_who_hangs_or_dies_is_left_out_and_the_others_go_on(worker):
    done, blamed = worker.run(step, ({"b": "hang", "d": "die"},), ["a", "b", "c", "d"])
    assert [name for name, *_ in done] == ["a", "c"]
    assert blamed == {"b": "had not finished after 4 s", "d": "ended its process, exit code 3"}


def test_what_is_raised_there_is_raised_here(worker):
    with pytest.raises(RuntimeError, match="^ZeroDivisionError: a$"):
        worker.run(step, ({"a": "raise"},), ["a"])
    assert worker.run(step, ({},), ["a"])[1] == {}, "and the process goes on"


def nobody(names, told):
    """Ends before anyone's turn."""
    os._exit(4)


def test_nobody_to_blame(worker):
    with pytest.raises(RuntimeError, match="ended its process, exit code 4"):
        worker.run(nobody, (), ["a"])


def test_a_process_that_is_lost_or_had_better_do_nothing_more_is_replaced(worker):
    (before,), _ = worker.run(step, ({},), ["a"])
    done, blamed = worker.run(step, ({"a": "lose"},), ["a", "b"])
    assert ([name for name, *_ in done], blamed) == (["b"], {"a": "has lost the GPU"})
    assert done[0][1] != before[1]
    (last,), _ = worker.run(step, ({"a": "last"},), ["a"])
    (after,), _ = worker.run(step, ({},), ["a"])
    assert last[1] == done[0][1] != after[1]


def test_a_process_that_was_killed_in_between_is_replaced(worker):
    (before,), _ = worker.run(step, ({},), ["a"])
    worker.process.kill()
    worker.process.join()
    (after,), blamed = worker.run(step, ({},), ["a"])
    assert before[1] != after[1]
    assert blamed == {}


def test_all_are_to_blame(worker):
    assert worker.run(step, ({"a": "die"},), ["a"]) == (None, {"a": "ended its process, exit code 3"})
