"""`StochasticProblem`: follow a stochastic equation along given Brownian paths."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from nearly.core import catalogue
from nearly.core.errors import InputError, UnknownName
from nearly.core.problem import Problem
from nearly.core.store import Store, digest_of, source_digest
from nearly.core.tally import counted
from nearly.dynamics.brownian import GridBrownianPath
from nearly.dynamics.cir import CIRStepSize
from nearly.dynamics.problems.stochastic_equations import (
    JUDGES,
    CoxIngersollRoss,
    Equation,
    FunnelLangevin,
    GeometricBrownian,
    NonCommutative,
    OrnsteinUhlenbeck,
    Reference,
)

QUERIES = "queries"
MAX_STEPS = 2**18


class StochasticProblem(Problem):
    """Solve a stochastic equation on the very paths its truth was found on.

    A method (protocol `sde-solvers`) is a diffrax solver, or a mapping of keyword arguments of
    `diffrax.diffeqsolve`. The dial is the number of steps; for a mapping with a `PIDController` or
    a `CIRStepSize`, the tolerance.

    The errors at the end: `strong`, the root mean square over the paths of the distance from the
    truth; `weak mean` and `weak square`, the differences of the means of the values and of their
    squares, largest over components, on the same paths, so that little of them is chance. Work
    is counted in queries of the path (one a step, and one for each step tried in vain), calls of
    the drift and of the diffusion, over all paths, which advance in lockstep under adaptive steps.
    Beside the values a solution says how many steps each path took.

    **Arguments:**

    - `equation`: what is solved. `paths`: how many, drawn from `seed`.
    - `cells`: of the paths' grid, four for the smallest step of a dial. `refinements`: halvings of
      a cell between whose ends adaptive steps may query; no step is smaller than such a part.
    """

    equation: Equation
    paths: int = 200
    cells: int = 1024
    refinements: int = 0
    seed: int = 0
    name: str = "stochastic"
    dtype: str = "float64"
    error_name: ClassVar[str] = "strong"
    work_name: ClassVar[str] = QUERIES
    protocol: ClassVar[str] = "sde-solvers"

    def __check_init__(self) -> None:
        if self.dtype not in ("float32", "float64"):
            raise InputError(f"dtype {self.dtype!r} must be float32 or float64")
        if self.paths < 2:
            raise InputError(f"paths={self.paths}: give at least 2, for a mean over them")
        if self.cells < 16 or self.cells & (self.cells - 1):
            raise InputError(f"cells={self.cells} must be a power of two from 16 up")

    def methods(self) -> Mapping[str, catalogue.Method]:
        """The general solvers, and those for equations of this kind."""
        special = self.equation.specialists
        return {
            name: dataclasses.replace(line, default=True)
            for name, line in super().methods().items()
            if line.default or name in special
        }

    def dials(self, method: Any) -> Sequence[float]:
        if is_adaptive(arguments(method)):
            return tuple(2.0**-k for k in range(3, 11))
        return tuple(2**k for k in range(2, self.cells.bit_length() - 2))

    def random(self, method: Any) -> bool:
        return False

    def floor(self) -> float:
        return max(float(self.truth()["uncertainty"]), 1e-12)

    @property
    def smallest(self) -> float:
        """The smallest adaptive step."""
        return self.equation.end / self.cells / 2**self.refinements

    def draw(self) -> Any:
        """The paths, stacked: with both areas, so that they are the same for every solver."""
        shape = jax.ShapeDtypeStruct(self.equation.noise, jnp.dtype(self.dtype))
        end = jnp.asarray(self.equation.end, self.dtype)
        keys = jax.random.split(jax.random.key(self.seed), self.paths)
        return _drawn(keys, end, shape=shape, cells=self.cells, refinements=self.refinements)

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        del key
        given = arguments(method)
        controller = given["stepsize_controller"]
        if isinstance(controller, dfx.ConstantStepSize):
            dt0 = jnp.asarray(self.equation.end / float(dial), self.dtype)
            return {**given, "dt0": dt0, "path": self.draw()}
        tolerance = jnp.asarray(dial, self.dtype)
        smallest = jnp.asarray(self.smallest, self.dtype)
        if hasattr(controller, "rtol"):
            tuned = {"rtol": tolerance, "atol": tolerance, "dtmin": smallest}
        elif not isinstance(controller, CIRStepSize):
            raise InputError(
                f"no dial for a {type(controller).__name__}: give a ConstantStepSize, a "
                "PIDController or a CIRStepSize"
            )
        else:
            least = jnp.maximum(jnp.asarray(controller.smallest, self.dtype), smallest)
            tuned = {"tolerance": tolerance, "smallest": least}
        controller = dataclasses.replace(controller, **tuned)
        return {**given, "stepsize_controller": controller, "dt0": None, "path": self.draw()}

    def apply(self, standin: Any, *, key: Any) -> Any:
        """The values at the end [paths, components], and the steps of each path [paths]."""
        del key
        settings = dict(standin)
        paths = settings.pop("path")
        start = jax.tree.map(lambda y: jnp.asarray(y, self.dtype), self.equation.start)

        def one(path: GridBrownianPath) -> Any:
            solution = dfx.diffeqsolve(
                self.equation.terms(settings["solver"], CountedPath(path)),
                t0=jnp.zeros((), self.dtype),
                t1=jnp.asarray(self.equation.end, self.dtype),
                y0=start,
                max_steps=MAX_STEPS,
                throw=False,
                adjoint=dfx.ForwardMode(),
                **settings,
            )
            return _flat(solution.ys), solution.stats["num_steps"]

        return eqx.filter_vmap(one)(paths)

    def solution(self, method: Any, dial: float) -> Any:
        """What `apply` returns, by one compiled program for all dials and seeds."""
        with jax.enable_x64(self.dtype == "float64"):
            standin = self.build(method, dial, key=None)
            found = _applied(dataclasses.replace(self, seed=0), standin)
            return jax.tree.map(np.asarray, found)

    def truth(self) -> Mapping[str, np.ndarray]:
        """`values` [paths, components] and their `uncertainty`, kept in the store."""
        digest = digest_of("stochastic truth", source_digest(), dataclasses.replace(self, name=""))
        compute = self._found
        return compute() if digest is None else Store().truth(digest, compute)

    def _found(self) -> Mapping[str, np.ndarray]:
        with jax.enable_x64(self.dtype == "float64"):
            reference = self.equation.truth
            if not isinstance(reference, Reference):
                exact = eqx.filter_jit(eqx.filter_vmap(reference))
                values = np.asarray(exact(self.draw())).reshape(self.paths, -1)
                return {"values": values, "uncertainty": np.zeros(())}
            adaptive = is_adaptive(arguments(reference.arguments))
            scale = 1 if adaptive else self.cells
            fine, coarse = (
                self.solution(reference.arguments, scale * dial)[0] for dial in reference.dials
            )
            return {"values": fine, "uncertainty": np.asarray(_distance(fine, coarse))}

    def errors(self, value: Any) -> Mapping[str, float]:
        values = np.asarray(value[0], np.float64)
        truth = np.asarray(self.truth()["values"], np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            found = {
                "strong": _distance(values, truth),
                "weak mean": float(np.max(np.abs(np.mean(values - truth, axis=0)))),
                "weak square": float(np.max(np.abs(np.mean(values**2 - truth**2, axis=0)))),
            }
        return {name: e if np.isfinite(e) else np.inf for name, e in found.items()}


@partial(jax.jit, static_argnames=("shape", "cells", "refinements"))
def _drawn(keys: Any, end: Any, *, shape: Any, cells: int, refinements: int) -> Any:
    def one(key: Any) -> GridBrownianPath:
        area = dfx.SpaceTimeTimeLevyArea
        start = jnp.zeros_like(end)
        return GridBrownianPath(key, start, end, cells, shape, area, refinements=refinements)

    return jax.vmap(one)(keys)


@eqx.filter_jit
def _applied(problem: StochasticProblem, standin: Any) -> Any:
    return problem.apply(standin, key=None)


class CountedPath(dfx.AbstractBrownianPath[Any]):
    """A path whose queries are counted."""

    path: GridBrownianPath
    t0: Any
    t1: Any
    levy_area: Any = eqx.field(static=True)

    def __init__(self, path: GridBrownianPath) -> None:
        self.path = path
        self.t0, self.t1, self.levy_area = path.t0, path.t1, path.levy_area

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True, use_levy: bool = False) -> Any:
        """As the path does."""
        return counted(_Query(self.path, use_levy), QUERIES)(t0, t1)


class _Query(eqx.Module):
    path: GridBrownianPath
    use_levy: bool = eqx.field(static=True)

    def __call__(self, t0: Any, t1: Any) -> Any:
        return self.path.evaluate(t0, t1, use_levy=self.use_levy)


def arguments(method: Any) -> dict[str, Any]:
    """A method as keyword arguments of `diffeqsolve`; constant steps unless it says otherwise."""
    given = dict(method) if isinstance(method, Mapping) else {"solver": method}
    solver = given.get("solver")
    if not isinstance(solver, dfx.AbstractSolver):
        raise InputError(
            f"a {type(solver).__name__} is no solver: give a diffrax solver, or a mapping of "
            "diffeqsolve's arguments with one"
        )
    return {"stepsize_controller": dfx.ConstantStepSize(), **given}


def is_adaptive(given: Mapping[str, Any]) -> bool:
    """Whether the dial of a method is a tolerance."""
    return not isinstance(given["stepsize_controller"], dfx.ConstantStepSize)


def _flat(solution: Any) -> Any:
    """The last saved value of each leaf, one after the other."""
    return jnp.concatenate([jnp.ravel(leaf[-1]) for leaf in jax.tree.leaves(solution)])


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.sum((a - b) ** 2, axis=-1))))


# ---- instances

EQUATIONS = {
    "gbm": GeometricBrownian,
    "ou": OrnsteinUhlenbeck,
    "noncommutative": NonCommutative,
    "funnel-langevin": FunnelLangevin,
}


def stochastic(case: str, paths: int = 200, cells: int = 1024, seed: int = 0) -> StochasticProblem:
    """A standard equation: `gbm`, `ou`, `noncommutative` or `funnel-langevin`.

    `paths`: how many; `cells`: of their grid; `seed`: they are drawn from.
    """
    if case not in EQUATIONS:
        raise UnknownName("stochastic equation", case, EQUATIONS)
    equation = EQUATIONS[case]()
    return StochasticProblem(equation=equation, paths=paths, cells=cells, seed=seed, name=case)


def cir(
    volatility: float = 2.2,
    paths: int = 200,
    cells: int = 4096,
    refinements: int = 5,
    seed: int = 0,
    judge: str = "die",
    tolerances: tuple[float, float] = (2.0**-10, 2.0**-9),
) -> StochasticProblem:
    """The Cox-Ingersoll-Ross equation of a volatility.

    `judge` (hosts, die, hosts-constant, die-constant) finds its truth, if adaptive at the first of
    `tolerances`; the second is for what the truth is uncertain by.
    """
    if judge not in JUDGES:
        raise UnknownName("judge of cir", judge, JUDGES)
    equation = CoxIngersollRoss(volatility=volatility, judge=judge, tolerances=tolerances)
    return StochasticProblem(
        equation=equation,
        paths=paths,
        cells=cells,
        refinements=refinements,
        seed=seed,
        name=f"cir-{volatility:g}",
    )
