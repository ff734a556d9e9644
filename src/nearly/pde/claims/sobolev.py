"""Descent in Sobolev's inner product: as many iterations on every mesh; plain descent beside it."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from nearly.core.claim import Expected, Inconclusive, claim
from nearly.pde.problems.stationary import Cubic
from nearly.pde.sobolev import (
    Energy,
    InnerProduct,
    Lebesgue,
    Sobolev,
    SobolevDescent,
    descend,
)

MESHES = (31, 63, 127, 255, 511)
STEP = 0.05


@lru_cache
def _iterations(count: int) -> int:
    """Of Sobolev descent for -u'' + u^3 = f, u = 10 sin(pi x), from zero to changes of 1e-10."""
    return _taken(count, lambda e: SobolevDescent(STEP, Sobolev(e.spacing), e.volume))


@lru_cache
def _plain_iterations(count: int) -> int:
    """Of plain descent, with a step of 90% of the largest that is stable at the solution."""
    largest = 4 * (count + 1) ** 2 + 3 * 10**2
    inner: InnerProduct = Lebesgue()
    return _taken(count, lambda e: SobolevDescent(1.8 / largest, inner, e.volume))


def _taken(count: int, solver: Any) -> int:
    def built(function: Energy) -> SobolevDescent:
        return solver(function)

    with jax.enable_x64(True):
        _, steps, ended = descend(Cubic(), count, built, most=100_000)
    if not ended:
        raise Inconclusive(f"descent on {count} nodes has not ended")
    return steps


@claim(
    "barron-nonlinear-pde",
    "iterations-do-not-grow-with-the-mesh",
    cost="medium",
    expected=Expected(
        "most over least iterations of descent in H^1 on 31, 63, 127, 255 and 511 nodes, "
        "-u'' + u^3 = f, step 0.05",
        "<=",
        1.05,
        "derived: the preconditioned Hessian's bounds, which decide the rate, are those of the "
        "equation; 5% is left for what coarse meshes add to them",
    ),
)
def spread_over_meshes() -> float:
    counts = [_iterations(n) for n in MESHES]
    return max(counts) / min(counts)


@claim(
    "barron-nonlinear-pde",
    "converges-exponentially",
    cost="medium",
    expected=Expected(
        "iterations of descent in H^1 to changes of 1e-10, 511 nodes, step 0.05",
        "<=",
        math.ceil(math.log(1e-10) / math.log(1 - STEP)),
        'derived: "converges exponentially fast": eigenvalues of the preconditioned Hessian are '
        "at least 1, so that a step leaves 1 - 0.05 of the error: log 1e-10 / log 0.95",
    ),
)
def iterations_on_the_finest() -> float:
    return float(_iterations(MESHES[-1]))


@claim(
    "barron-nonlinear-pde",
    "plain-descent-grows-with-the-square",
    cost="medium",
    expected=Expected(
        "exponent of the iterations of plain descent in the number of nodes, 31 to 127",
        "within",
        (1.8, 2.2),
        "derived: the L^2 Hessian's largest eigenvalue is 4 / h^2",
    ),
)
def plain_exponent() -> float:
    counts = [_plain_iterations(n) for n in MESHES[:3]]
    return float(np.polyfit(np.log(np.array(MESHES[:3]) + 1), np.log(counts), 1)[0])
