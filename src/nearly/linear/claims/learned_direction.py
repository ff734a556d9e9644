"""Learned search directions on Poisson systems with obstacles that the network has not seen."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx

from nearly.core.claim import Expected, claim
from nearly.linear.conjugate_gradient import ConjugateGradient
from nearly.linear.flexible_cg import FlexibleConjugateGradient
from nearly.linear.grids import kept_inside, poisson_with_obstacles, random_side
from nearly.linear.learned_direction import RECIPES, DeepConjugateDirection

SEEDS = 3
RTOL = 1e-6


@lru_cache
def _iterations(size: int) -> dict[str, list[int]]:
    """Iterations of each solver on a grid of this size, for each seed."""
    with jax.enable_x64(True):
        learned = DeepConjugateDirection(RECIPES[2].cached())
        solvers = {
            "learned": FlexibleConjugateGradient(RTOL, preconditioner=learned, max_steps=2000),
            "plain": ConjugateGradient(RTOL),
        }
        return {name: _solved(solver, size) for name, solver in solvers.items()}


def _solved(solver: Any, size: int) -> list[int]:
    @jax.jit
    def steps(seed: Any) -> Any:
        for_obstacles, for_side = jax.random.split(jax.random.key(seed))
        operator = poisson_with_obstacles((size, size), for_obstacles, jnp.float64)
        side = kept_inside(operator, random_side((size, size), for_side, jnp.float64))
        return lx.linear_solve(operator, side, solver, throw=False).stats["num_steps"]

    return [int(steps(seed)) for seed in range(SEEDS)]


@claim(
    "deep-conjugate-direction",
    "iterations-do-not-grow-with-the-grid",
    cost="slow",
    expected=Expected(
        "iterations to a relative residual of 1e-6 on 128^2 points over those on 64^2, Poisson "
        "with four random obstacles and random right-hand sides, one network trained on the empty "
        "64^2 grid",
        "<=",
        1.5,
        'abstract: "a small number of iterations, independent of the problem size"; half as many '
        "again is allowed for a doubling",
        scaled="64^2 and 128^2 instead of up to 256^3; 8 channels and 400 Ritz vectors instead of "
        "16 and 10,000; minutes of training",
    ),
    limits="a network of two resolutions sees some thirty points far: what is smoother than that "
    "it does not see, and the more points along a side, the more of the error is",
)
def growth_with_the_grid() -> list[float]:
    small, large = _iterations(64)["learned"], _iterations(128)["learned"]
    return [b / a for a, b in zip(small, large, strict=True)]


@claim(
    "deep-conjugate-direction",
    "fewer-iterations-than-conjugate-gradients",
    cost="slow",
    expected=Expected(
        "iterations of conjugate gradients over those with learned directions to a relative "
        "residual of 1e-6, Poisson with four random obstacles on 128^2 points",
        ">=",
        2.0,
        "derived: its number of iterations grows with the points along a side (324 at 128), which "
        "learned directions are to be independent of; at least half must go",
        scaled="128^2 instead of up to 256^3; 8 channels and 400 Ritz vectors instead of 16 and "
        "10,000; minutes of training",
    ),
)
def fewer_than_conjugate_gradients() -> list[float]:
    both = _iterations(128)
    return [a / b for a, b in zip(both["plain"], both["learned"], strict=True)]
