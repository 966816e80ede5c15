"""Which cases there are, the bytes that they have to move, and how they are reduced."""

import pytest
import torch

from benchmarks.cases import DEFAULT, FULL, KERAS_MODES, LAYOUTS, Selection, distinct, reduced, thinned
from tritonbn.suites import SUITES


def one(**options):
    """The cases of ResNet-50's stem."""
    return list(Selection(("resnet50",), most=1, **options).cases())


def test_the_usual_cases_have_every_suite_kind_dtype_and_layout():
    cases = distinct(DEFAULT)
    assert {case.suite for case in cases} == set(SUITES)
    assert {case.keras for case in cases} == {None, *KERAS_MODES}
    assert {case.problem.dtype for case in cases} == {torch.float16, torch.bfloat16, torch.float32}
    assert {case.direction for case in cases} == {"forward", "backward", "inference"}
    for fused in (False, True):
        assert {case.problem.layout for case in cases if case.fused == fused} == set(LAYOUTS)
    assert {case.problem.shape[0] for case in cases if case.suite == "resnet50"} == {1, 8, 32, 128}
    of_cudnn = [case for case in cases if case.suite == "resnet50" and case.problem.dtype == torch.float16]
    assert len(of_cudnn) == 2 * (12 * 3 + 3 * 2)


def test_cases_are_distinct_and_have_a_variance():
    for cases in (distinct(DEFAULT), distinct(FULL)):
        assert len({case.name for case in cases}) == len(set(cases)) == len(cases)
        assert all(case.keras == 1 or case.elements > case.problem.shape[1] for case in cases)
    assert len(cases) > 5000


@pytest.mark.parametrize(
    ("direction", "fused", "keras", "moved"),
    [
        ("forward", False, None, 2),
        ("inference", False, None, 2),
        ("backward", False, None, 3),
        ("forward", True, None, 3 + 1 / 16),
        ("backward", True, None, 4 + 1 / 16),
        ("forward", False, 1, 2),
        ("backward", False, 0, 3),
    ],
)
def test_least_bytes(direction, fused, keras, moved):
    """Every tensor once, in 16 bits: x and y; x, dy and dx; a residual or its gradient and one bit per element more."""
    (case,) = one(directions=(direction,), fused=(fused,), keras=(keras,))
    assert case.least_bytes == pytest.approx(moved * 2 * case.elements)


def test_samples_of_keras_lie_along_the_last_axis():
    (case,) = one(directions=("forward",), keras=(1,))
    assert case.problem.shape == (32, 112, 112, 64)
    assert case.problem.input().is_contiguous()
    (case,) = one(directions=("forward",), keras=(2,))
    assert case.problem.input().movedim(1, -1).is_contiguous()


def test_layers_are_thinned_evenly():
    assert thinned(tuple("abcdefg"), 3) == tuple("adg")
    assert thinned(tuple("ab"), 3) == thinned(tuple("ab"), None) == tuple("ab")
    assert thinned(tuple("abc"), 1) == ("a",)


def test_reduced_cases_fit_and_stay_what_they_are():
    for case in distinct(DEFAULT):
        small = reduced(case, 4096)
        shape, problem = case.problem.shape, small.problem
        assert small.elements <= 4096, case.name
        assert len(problem.shape) == len(shape)
        assert all(0 < size <= full for size, full in zip(problem.shape, shape, strict=True))
        assert (small.kind, problem.dtype, problem.layout) == (case.kind, case.problem.dtype, case.problem.layout)
        assert small.elements > problem.shape[1] or case.keras == 1
