"""Physics-informed Gaussians beside networks and classical collocation of as many parameters.

Networks are given the seconds that the Gaussians took, compilation included.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import jax

from nearly.core.claim import Expected, Inconclusive, claim
from nearly.core.measure import run_trial
from nearly.pde.collocation import Collocation, FourierNetwork, TanhNetwork
from nearly.pde.gaussian_features import FixedMesh, GaussianMesh, physics_informed_gaussians
from nearly.pde.peers import GaussianCollocation
from nearly.pde.problems.equation import Equation
from nearly.pde.problems.stationary import helmholtz

SEEDS = (0, 1, 2)
STEPS = 600
MANY = 100_000  # steps that a deadline ends
MESH = GaussianMesh(gaussians=100)  # 2,097 parameters
POINTS: Mapping[str, Any] = MappingProxyType({"interior": 1024, "face": 128})


def _error(problem: Equation, method: Any, dial: int, seed: int) -> float:
    trial, _ = run_trial(problem, method, dial, seed)
    if trial.status != "ok":
        raise Inconclusive(f"seed {seed}: {trial.reason}")
    return trial.errors["relative L2 error"]


@lru_cache
def _errors(seed: int) -> dict[str, float]:
    """Relative L2 errors on the Helmholtz equation (4, 1), of about 2,000 parameters each."""
    problem = helmholtz()
    begun = time.perf_counter()
    ours = _error(problem, physics_informed_gaussians(MESH, **POINTS), STEPS, seed)
    seconds = time.perf_counter() - begun
    limit: dict[str, Any] = {**POINTS, "weight": 1e-4, "adam": 0.0, "seconds": seconds}
    tanh = Collocation(network=TanhNetwork(30, 3), **limit)  # 1,981 parameters
    fourier = Collocation(network=FourierNetwork(30, 2, 16), **limit)  # 1,951
    frozen = physics_informed_gaussians(FixedMesh(gaussians=100), **POINTS)
    return {
        "gaussians": ours,
        "tanh": _error(problem, tanh, MANY, seed),
        "fourier": _error(problem, fourier, MANY, seed),
        "frozen": _error(problem, frozen, STEPS, seed),
        "radial": _error(problem, GaussianCollocation(), 45, seed),  # 2,025
    }


TABLE = "Table 1: relative L2 error on Helmholtz (4, 1): "
SCALED = (
    "4 x 100 Gaussians instead of 4 x 800, 1,024 + 512 points instead of 10,000 + 40,000, 600 "
    "iterations of L-BFGS instead of 40,000"
)


@claim(
    "physics-informed-gaussians",
    "more-accurate-than-a-network",
    cost="slow",
    expected=Expected(
        "relative L2 error of Gaussians over that of a tanh network of as many parameters trained "
        "as long, Helmholtz (4, 1)",
        "<=",
        0.1,
        TABLE + "Gaussians 4.13e-5, the next best 8.63e-4, plain PINN 4.02e-1",
        scaled=SCALED,
    ),
    limits="after 600 iterations instead of 40,000 the Gaussians are at 0.14, and 100 of the "
    "paper's width 0.1 cover an eighth of what its 800 do; the network, for which the paper "
    "quotes 0.4, reaches 0.007 with the same L-BFGS in the same seconds",
)
def over_tanh() -> list[float]:
    return [_errors(s)["gaussians"] / _errors(s)["tanh"] for s in SEEDS]


@claim(
    "physics-informed-gaussians",
    "more-accurate-than-fourier-features",
    cost="slow",
    expected=Expected(
        "relative L2 error of Gaussians over that of a tanh network on random Fourier features of "
        "as many parameters trained as long, Helmholtz (4, 1)",
        "<=",
        1.0,
        'abstract: "competitive"; and ' + TABLE + "Gaussians have the smallest error of all",
        scaled=SCALED,
    ),
)
def over_fourier() -> list[float]:
    return [_errors(s)["gaussians"] / _errors(s)["fourier"] for s in SEEDS]


@claim(
    "physics-informed-gaussians",
    "more-accurate-than-gaussians-on-a-grid",
    cost="slow",
    expected=Expected(
        "relative L2 error of trained Gaussians over that of plain collocation by as many "
        "Gaussians on a grid, Helmholtz (4, 1)",
        "<=",
        1.0,
        'abstract: "This adaptability enables our model to optimally approximate PDE solutions, '
        'unlike models with fixed parameter positions"',
        scaled=SCALED,
    ),
    limits="after 600 iterations the Gaussians are at 0.14; for a linear equation collocation "
    "needs none, and is at 0.0025 after one dense system, in a second",
)
def over_radial() -> list[float]:
    return [_errors(s)["gaussians"] / _errors(s)["radial"] for s in SEEDS]


@claim(
    "physics-informed-gaussians",
    "training-the-mesh-pays",
    cost="slow",
    expected=Expected(
        "relative L2 error of trained Gaussians over that with centres and widths left as drawn, "
        "in as many iterations, Helmholtz (4, 1)",
        "<=",
        0.5,
        'abstract: fixed positions "restrict their flexibility, making it challenging to '
        'accurately approximate"; half at the least',
        scaled=SCALED,
    ),
)
def over_frozen() -> list[float]:
    return [_errors(s)["gaussians"] / _errors(s)["frozen"] for s in SEEDS]


FULL: Mapping[str, Any] = MappingProxyType({"interior": 10_000, "face": 10_000})


def _full_error(problem: Equation) -> float:
    if jax.default_backend() == "cpu":
        raise Inconclusive("needs a GPU: 3,200 Gaussians at 50,000 points, 40,000 times")
    mesh = GaussianMesh(gaussians=800)
    return _error(problem, physics_informed_gaussians(mesh, **FULL), 40_000, 0)


@claim(
    "physics-informed-gaussians",
    "accurate-at-the-papers-size",
    cost="gpu",
    expected=Expected(
        "relative L2 error on Helmholtz (4, 1), 4 x 800 Gaussians",
        "<=",
        6.72e-5,
        TABLE + "4.13e-5, standard deviation 2.59e-5",
    ),
)
def full_size() -> float:
    return _full_error(helmholtz())


@claim(
    "physics-informed-gaussians",
    "more-accurate-than-a-network-at-high-frequency",
    cost="gpu",
    expected=Expected(
        "relative L2 error of 4 x 800 Gaussians over that of a tanh network 3 x 128 in as many "
        "iterations, Helmholtz (10, 10)",
        "<=",
        0.1,
        'abstract: networks "struggle to effectively learn high-frequency" components',
    ),
)
def high_frequency() -> float:
    problem = helmholtz((10, 10))
    ours = _full_error(problem)
    network = Collocation(network=TanhNetwork(128, 3), weight=1e-4, adam=0.0, **FULL)
    return ours / _error(problem, network, 40_000, 0)
