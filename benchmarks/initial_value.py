"""Solvers of initial-value problems against their peers: milliseconds at equal error.

    python benchmarks/initial_value.py [NAME...]     such as stiff-rober, oscillations

For each target the loosest tolerance is taken whose error at the end is at most the target; ratios
are medians of pairs that alternate between the two in one process, after compilation.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from alternating import Row, main, milliseconds, pairs

from nearly.core.problem import Host
from nearly.core.tally import tally
from nearly.dynamics import peers, solvers
from nearly.dynamics.claims.stiff import kaps, kaps_solution, random_mesh
from nearly.dynamics.deferred import deferred_bdf
from nearly.dynamics.jacobians import Banded, Dense, Sparse
from nearly.dynamics.problems.initial_value import airy, standard
from nearly.dynamics.wkb import oscillator_solver
from nearly.dynamics.wmethods import msrktase2, msrktase3

STIFF = ("rober", "hires", "orego", "pollu", "van-der-pol")
DIALS = tuple(10 ** (-k / 2) for k in range(4, 23))


LONGEST = 1500.0  # milliseconds of a run, after which tighter tolerances are not tried


def fitting(problem: Any, solver: Any, targets: Any) -> dict[float, tuple[float, Any]]:
    """For each target the loosest dial whose error is at most that, and what runs it."""
    apply = eqx.filter_jit(lambda standin: problem.apply(standin, key=None))
    found: dict[float, tuple[float, Any]] = {}
    for dial in DIALS:
        standin = problem.build(solver, dial, key=None)
        use = standin if isinstance(standin, Host) else partial(apply, standin)
        error = problem.errors(np.asarray(use()))["final"]
        for target in targets:
            if error <= target and target not in found:
                found[target] = (error, use)
        if len(found) == len(targets) or milliseconds(use) > LONGEST:
            break
    return found


def installed(peers: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    """The peers whose package is there; what is not run is said."""
    for name, (package, _) in peers.items():
        if importlib.util.find_spec(package) is None:
            print(f"\n{name} is not run: {package} is not installed")
    return {
        name: peer for name, (package, peer) in peers.items() if importlib.util.find_spec(package)
    }


def against_peers(
    problem: Any, ours: Mapping[str, Any], rivals: Mapping[str, Any], targets: Any, count: int = 9
) -> list[Row]:
    """The fastest of ours at each target, and its milliseconds over those of each rival."""
    rows: list[Row] = []
    mine = {name: fitting(problem, solver, targets) for name, solver in ours.items()}
    theirs = {name: fitting(problem, solver, targets) for name, solver in rivals.items()}
    for target in targets:
        uses = {name: found[target][1] for name, found in mine.items() if target in found}
        if not uses:
            rows.append({"problem": problem.name, "error": target, "ours": "none gets there"})
            continue
        best = min(uses, key=lambda name: min(milliseconds(uses[name]) for _ in range(5)))
        for rival, found in theirs.items():
            row: dict[str, Any] = {"problem": problem.name, "error": target, "ours": best}
            if target not in found:
                rows.append(row | {"peer": rival, "95%": "does not get there"})
                continue
            rivals_use = found[target][1]
            few = max(3, min(count, int(LONGEST / milliseconds(rivals_use))))
            measured = pairs(uses[best], rivals_use, few)
            rows.append(row | {"peer": rival} | dict(measured.row))
    return rows


def stiff(name: str) -> Callable[[], list[Row]]:
    """MSRKTASE and its peers on one of the standard stiff problems."""

    def run() -> list[Row]:
        """MSRKTASE beside implicit solvers, errors 1e-3 to 1e-6 at the end, float64."""
        ours = {"msrktase2": msrktase2(), "msrktase3": msrktase3()}
        rivals = {
            "Kvaerno3": solvers.kvaerno3,
            "Kvaerno5": solvers.kvaerno5,
            "Kvaerno5, patient": solvers.kvaerno5_patient,
            "KenCarp4": solvers.kencarp4,
            "KenCarp4, patient": solvers.kencarp4_patient,
            "SciPy Radau": peers.scipy_radau,
            "SciPy BDF": peers.scipy_bdf,
            "SciPy LSODA": peers.scipy_lsoda,
            **installed({"CVODE": ("sksundae", peers.cvode)}),
        }
        with jax.enable_x64(True):
            return against_peers(standard(name), ours, rivals, (1e-3, 1e-4, 1e-5, 1e-6))

    return run


def given_meshes() -> list[Row]:
    """On the same random mesh of steps that differ by thousands: error, milliseconds."""
    solvers = {
        "deferred BDF3": deferred_bdf(3),
        "deferred BDF4": deferred_bdf(4),
        "BDF2": deferred_bdf(2),
        # Its own VeryChord takes the rounding errors of very short steps for divergence.
        "Kvaerno3": dfx.Kvaerno3(root_finder=optx.Chord(1e-10, 1e-10)),
        "Kvaerno5": dfx.Kvaerno5(root_finder=optx.Chord(1e-10, 1e-10)),
    }
    rows: list[Row] = []
    with jax.enable_x64(True):
        mesh = jnp.asarray(random_mesh(400, 0))

        def run(solver: Any) -> Any:
            return dfx.diffeqsolve(
                dfx.ODETerm(kaps),
                solver,
                mesh[0],
                mesh[-1],
                None,
                jnp.ones(2),
                stepsize_controller=dfx.StepTo(mesh),
                max_steps=None,
                throw=False,  # a step that fails leaves an infinite error
            ).ys

        truth = kaps_solution(1.0)
        uses = {name: partial(eqx.filter_jit(run), solver) for name, solver in solvers.items()}
        for name, use in uses.items():
            error = float(np.linalg.norm(np.asarray(use())[-1] - truth))
            timed = pairs(uses["deferred BDF4"], use, 9)
            row: dict[str, Any] = {"solver": name, "error": error, "ms": timed.theirs}
            rows.append(row | {"BDF4 / it": timed.ratio})
    return rows


def banded() -> list[Row]:
    """20 steps of MSRKTASE3 on nonlinear diffusion: forms of the Jacobian by unknowns."""
    rows: list[Row] = []
    with jax.enable_x64(True):
        for size in (50, 200, 800):
            pattern = np.abs(np.subtract.outer(np.arange(size), np.arange(size))) <= 1
            forms = {"dense": Dense(), "banded": Banded(1, 1), "sparse": Sparse.of(pattern)}
            uses = {name: _diffusion(size, form) for name, form in forms.items()}
            for name, use in uses.items():
                timed = pairs(use, uses["dense"], 5)
                rows.append({"unknowns": size, "Jacobian": name} | dict(timed.row))
    return rows


def _diffusion(size: int, jacobian: Any) -> Callable[[], Any]:
    def field(t: Any, y: Any, args: Any) -> Any:
        padded = jnp.concatenate([jnp.zeros(1), y, jnp.zeros(1)])
        return size**2 * (padded[2:] - 2 * y + padded[:-2]) - y**3

    @jax.jit
    def run(start: Any) -> Any:
        return dfx.diffeqsolve(
            dfx.ODETerm(field), msrktase3(jacobian), 0.0, 0.1, 0.005, start, max_steps=None
        ).ys

    return partial(run, jnp.sin(np.pi * np.linspace(0, 1, size)))


def oscillations() -> list[Row]:
    """Truncated WKB and its peers for Airy's equation to 1e-8: calls of a, milliseconds."""
    rows: list[Row] = []
    solvers = {"truncated WKB": oscillator_solver, "Dopri8": dfx.Dopri8()}
    solvers |= installed({"riccati": ("riccati", peers.riccati)})
    for epsilon in (1e-1, 3e-2, 1e-2, 1e-3, 1e-4):
        problem = airy(epsilon)
        with jax.enable_x64(True):
            target = (1e-8,)
            found = {name: fitting(problem, solver, target) for name, solver in solvers.items()}
            for name, fits in found.items():
                if 1e-8 not in fits:
                    rows.append({"epsilon": epsilon, "solver": name, "error": "above 1e-8"})
                    continue
                error, use = fits[1e-8]
                with tally() as counts:
                    jax.block_until_ready(use())
                calls = sum(n for unit, n in counts.read().items() if unit.startswith("f"))
                row: dict[str, Any] = {"epsilon": epsilon, "solver": name, "error": error}
                rows.append(row | {"calls": calls, "ms": milliseconds(use)})
    return rows


BENCHMARKS: dict[str, Callable[[], list[Row]]] = {
    **{f"stiff-{name}": stiff(name) for name in STIFF},
    "given_meshes": given_meshes,
    "banded": banded,
    "oscillations": oscillations,
}


if __name__ == "__main__":
    main(BENCHMARKS, __doc__)
