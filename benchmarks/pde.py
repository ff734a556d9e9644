"""The room of one equation against its peers: seconds and errors, side by side.

    python benchmarks/pde.py [NAME...]

Ratios are medians of pairs that alternate between the two in one process, after compilation, with
the 95% interval of that median: a busy machine harms both alike. exponax is an optional peer.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from alternating import Row, main, pairs

from nearly.datasets.random_fields import gaussian_random_field
from nearly.pde.darcy import solve_darcy, solve_darcy_direct
from nearly.pde.exponential import etdrk4
from nearly.pde.metrics import relative_l2
from nearly.pde.semilinear import (
    Burgers,
    KortewegDeVries,
    KuramotoSivashinsky,
    Semilinear,
    integrate,
)
from nearly.pde.vorticity import NavierStokes2D

PAIRS = 21
BATCH = 16


@dataclass(frozen=True)
class Case:
    """An equation on a grid, the end of time and the steps to it, and the peer's stepper."""

    equation: Semilinear
    shape: tuple[int, ...]
    duration: float
    steps: int
    peer: Callable[[int, float], Any]


def cases() -> dict[str, Case]:
    import exponax

    def burgers(n: int, dt: float) -> Any:
        return exponax.stepper.Burgers(1, 1.0, n, dt, diffusivity=0.02, conservative=True, order=4)

    def kuramoto_sivashinsky(n: int, dt: float) -> Any:
        return exponax.stepper.KuramotoSivashinskyConservative(1, 64.0, n, dt, order=4)

    def korteweg_de_vries(n: int, dt: float) -> Any:
        return exponax.stepper.KortewegDeVries(
            1, 40.0, n, dt, convection_scale=6.0, hyper_diffusivity=0.0, conservative=True, order=4
        )

    def navier_stokes(n: int, dt: float) -> Any:
        return exponax.stepper.NavierStokesVorticity(
            2,
            1.0,
            n,
            dt,
            diffusivity=1e-3,
            vorticity_convection_scale=-1.0,  # its axes are y, x: the flow turns the other way
            order=4,
        )

    navier = NavierStokes2D(1e-3, forcing=None)
    return {
        "Burgers": Case(Burgers(0.02), (256,), 0.25, 200, burgers),
        "Kuramoto-Sivashinsky": Case(
            KuramotoSivashinsky(64.0), (128,), 10.0, 200, kuramoto_sivashinsky
        ),
        "Korteweg-de Vries": Case(KortewegDeVries(40.0), (256,), 1.0, 200, korteweg_de_vries),
        "Navier-Stokes": Case(navier, (64, 64), 1.0, 50, navier_stokes),
    }


def start(shape: tuple[int, ...], dtype: Any, refine: int = 1) -> jax.Array:
    """Smooth fields of about unit size, one draw for each of the batch; the same on finer grids."""
    keys = jax.random.split(jax.random.key(0), BATCH)
    fine = tuple(refine * n for n in shape)

    def draw(key: jax.Array) -> jax.Array:
        field = gaussian_random_field(key, fine, alpha=8.0, tau=6.0, dtype=jnp.float64)
        return field / jnp.sqrt(jnp.mean(field**2))

    return jax.vmap(draw)(keys).astype(dtype)


def exponential_steps() -> list[Row]:
    """ETDRK4 against exponax, at equal scheme, grid, steps and dtype: 16 fields to the end of time.

    exponax runs as its `RepeatedStepper`, which like ours stays in Fourier space between steps.
    Errors are against a float64 run with twice the points along each axis and four times the steps.
    For Korteweg-de Vries, whose linear part is imaginary, exponax 0.2 keeps the real parts of its
    coefficients only: its order drops to 1 (0.025, 0.014, 0.007 over two halvings of the step).
    """
    if importlib.util.find_spec("exponax") is None:
        return [{"not run": "exponax is not installed: pip install 'nearly[peers]'"}]
    rows: list[Row] = []
    with jax.enable_x64(True):
        for name, case in cases().items():
            truth = reference(case)
            rows += [against_exponax(name, case, dtype, truth) for dtype in ("float32", "float64")]
    return rows


def reference(case: Case) -> jax.Array:
    """The end of time at the points of the case's grid, from a finer run."""
    fine = ours(case, refine=4)(start(case.shape, jnp.float64, refine=2))
    return fine[(slice(None), *[slice(None, None, 2)] * len(case.shape))]


def ours(case: Case, refine: int = 1) -> Callable[[jax.Array], jax.Array]:
    n = case.steps * refine

    def solve(field: jax.Array) -> jax.Array:
        dt = case.duration / n
        return integrate(case.equation, field, dt=dt, steps=n, every=n, scheme=etdrk4)[-1]

    return jax.jit(jax.vmap(solve))


def theirs(case: Case, dtype: str) -> Callable[[jax.Array], jax.Array]:
    import exponax

    # Its arrays take the precision that is the default when it is made.
    with jax.enable_x64(dtype == "float64"):
        stepper = case.peer(case.shape[0], case.duration / case.steps)
        repeated = exponax.RepeatedStepper(stepper, case.steps)
        solve = jax.jit(jax.vmap(lambda field: repeated(field[None])[0]))

    def run(fields: jax.Array) -> jax.Array:
        with jax.enable_x64(dtype == "float64"):
            return solve(fields)

    return run


def against_exponax(name: str, case: Case, dtype: str, truth: jax.Array) -> Row:
    fields = start(case.shape, dtype)
    mine, peer = ours(case), theirs(case, dtype)

    def error(found: jax.Array) -> float:
        return float(jnp.max(jax.vmap(relative_l2)(found.astype(jnp.float64), truth)))

    errors = {"our error": error(mine(fields)), "peer's error": error(peer(fields))}
    timed = pairs(lambda: mine(fields), lambda: peer(fields), PAIRS)
    grid = " x ".join(map(str, case.shape))
    return {"equation": name, "grid": grid, "dtype": dtype, **errors, **timed.row}


def darcy() -> list[Row]:
    """Darcy flow, a batch of 16: our preconditioned iteration against SciPy's sparse direct solver.

    Coefficients 12 and 3 by the sign of a Gaussian field. The error is the difference from the
    direct solution, which solves the same equations; both are timed for the whole batch.
    """
    rows: list[Row] = []
    with jax.enable_x64(True):
        for n in (32, 64, 128):
            fields = jax.vmap(lambda key, n=n: coefficient(key, n))(
                jax.random.split(jax.random.key(0), BATCH)
            )
            host = np.asarray(fields)
            for dtype in ("float32", "float64"):
                given = fields.astype(dtype)
                batched = jax.jit(jax.vmap(solve_darcy))
                found = batched(given).astype(jnp.float64)
                truth = jnp.asarray(direct(host))
                error = float(jnp.max(jax.vmap(relative_l2)(found, truth)))
                timed = pairs(lambda b=batched, g=given: b(g), lambda h=host: direct(h), 5)
                rows.append({"cells": f"{n} x {n}", "dtype": dtype, "error": error, **timed.row})
    return rows


def coefficient(key: jax.Array, n: int) -> jax.Array:
    field = gaussian_random_field(
        key, (n, n), alpha=2.0, tau=3.0, boundary="neumann", dtype=jnp.float64
    )
    return jnp.where(field > 0, 12.0, 3.0)


def direct(coefficients: np.ndarray) -> np.ndarray:
    return np.stack([solve_darcy_direct(each) for each in coefficients])


BENCHMARKS = {"exponential-steps": exponential_steps, "darcy": darcy}

if __name__ == "__main__":
    main(BENCHMARKS, __doc__)
