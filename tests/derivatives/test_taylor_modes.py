"""The problem of derivatives along a line, and whatever the catalogue has for it."""

from __future__ import annotations

import math

import pytest

from nearly.core import catalogue
from nearly.core.compare import compare
from nearly.core.errors import InputError

METHODS = catalogue.methods("taylor-modes")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_expands_a_smooth_function(method: str) -> None:
    (run,) = compare("taylor_modes", [method], dials=[3], function="tanh", timed=False).runs
    assert run.status == "ok"
    assert run.error < 1e-13
    assert run.work["flops"] > 0


def test_what_a_peer_cannot_expand_is_a_result() -> None:
    frontier = compare("taylor_modes", dials=[2], function="sort", timed=False)
    status = {run.method: run.status for run in frontier}
    assert status == {"taylor-mode": "ok", "nested-jvp": "ok", "jax-jet": "failed"}


def test_single_precision_has_a_single_precision_error() -> None:
    problem = catalogue.problem("taylor_modes", function="exp", dtype="float32")
    (run,) = compare(problem, ["taylor-mode"], dials=[4], timed=False).runs
    assert 1e-8 < run.error < 1e-5
    assert math.isclose(problem.floor(), 1e-7)


def test_an_unknown_function_is_named_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown function 'tahn'.*'tanh'"):
        catalogue.problem("taylor_modes", function="tahn")
