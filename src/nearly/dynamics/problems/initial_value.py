"""`InitialValueProblem`: solve y' = f(t, y) from a start, to any tolerance."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, ClassVar, cast

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.catalogue import Method
from nearly.core.errors import InputError, UnknownName
from nearly.core.problem import Host, Problem
from nearly.core.store import Store, digest_of
from nearly.core.tally import counted
from nearly.dynamics.problems.equations import CASES
from nearly.dynamics.problems.known import airy_values, prothero_robinson_value
from nearly.dynamics.problems.oscillator import Oscillator
from nearly.dynamics.solvers import kvaerno5_patient, tsit5

ORACLE = "f"
STEPS = "steps*"
REJECTED = "rejected steps*"
TOLERANCES = tuple(10.0**-k for k in range(3, 11))
STEP_COUNTS = tuple(2**k for k in range(5, 13))
# What runs by default where nothing is stiff: implicit steps buy nothing there.
NOT_STIFF = ("diffrax-tsit5", "diffrax-dopri8", "scipy-dop853", "scipy-lsoda")
Vector = Float[Array, " d"]


class Stacked(eqx.Module):
    """A right-hand side `(t, y) -> sequence of numbers` as a vector field of diffrax's form."""

    function: Callable[[Any, Any], Sequence[Any]]

    def __call__(self, t: Any, y: Vector, args: Any) -> Vector:
        del args
        return jnp.stack([jnp.asarray(x, y.dtype) for x in self.function(t, y)])


class ProtheroRobinson(eqx.Module):
    """`y' = rate (y - cos t) - sin t`: the solution is smooth, what surrounds it is stiff."""

    rate: float

    def __call__(self, t: Any, y: Vector, args: Any) -> Vector:
        del args
        return self.rate * (y - jnp.cos(t)) - jnp.sin(t)


class InitialValueProblem(Problem):
    """Follow a vector field from a start; the dial is the tolerance, or the number of steps.

    A method (protocol `ode-solvers`) is one of

    - a diffrax solver, step-size controller or adjoint (the others then are diffrax's implicit
      Kvaerno5 with a `PatientChord`, or Tsit5 where `stiff` is false, a `PIDController` and the
      default adjoint);
    - a mapping of keyword arguments of `diffrax.diffeqsolve`. With a `ConstantStepSize` the dial is
      the number of steps, with any other controller the relative tolerance;
    - a function `(field, start, times, tolerance) -> values [times, d]` that JAX can trace; it may
      say its own `dials`, where tolerances are no good to it;
    - a `nearly.Host` of `(function, jacobian, start, times, rtol, atol) -> (values, counts)` on
      NumPy arrays, the counts by unit, such as `{"factorisations*": 12}`. The function of an
      `Oscillator` has its `coefficient` (of arrays) and `epsilon` too.

    The errors are root mean squares over the components, each relative to its largest size along
    the solution (plus `absolute`): `final` at the last time, `l2` over all times, where adaptive
    solvers interpolate. Work is counted in calls of the field (`f`); a dense Jacobian by forward
    mode is `d` of the `f jvps`. Steps, rejected steps, and the Jacobians, factorisations and solves
    that a method reports, stand beside it.

    **Arguments:**

    - `field`: `(t, y, args) -> dy/dt` on vectors; `args` is None.
    - `start`: [d], at time `initial`. `times`: where the solution is wanted, increasing.
    - `absolute`: the absolute tolerance at a relative one of 1, so that `atol = absolute * rtol`.
    - `stiff`: chooses the default solver, and how the truth is found if it is not given.
    - `truth`: [times, d], and its `uncertainty`, relative. Without one it is SciPy's Radau (stiff)
      or DOP853 at its tightest tolerance, its uncertainty the difference from one ten times looser;
      computed once and kept in the store.
    - `max_steps`: after which a solver has failed.
    """

    field: Callable[[Any, Any, Any], Any]
    start: np.ndarray
    times: np.ndarray
    initial: float = 0.0
    absolute: float = 1.0
    stiff: bool = True
    truth: np.ndarray | None = None
    uncertainty: float = 0.0
    name: str = "initial-value"
    dtype: str = "float64"
    max_steps: int = 100_000
    error_name: ClassVar[str] = "final"
    work_name: ClassVar[str] = ORACLE
    protocol: ClassVar[str] = "ode-solvers"

    def __check_init__(self) -> None:
        if self.dtype not in ("float32", "float64"):
            raise InputError(f"dtype {self.dtype!r} must be float32 or float64")
        if self.start.ndim != 1 or not np.all(np.isfinite(self.start)):
            raise InputError(f"the start {self.start} must be a finite vector: ravel it first")
        grid = np.append(self.initial, self.times)
        if self.times.ndim != 1 or not self.times.size or not np.all(np.diff(grid) > 0):
            raise InputError(f"times {self.times} must increase from after {self.initial}")
        if not self.absolute > 0:
            raise InputError(f"absolute {self.absolute} must be positive, such as 1e-3")
        if self.truth is not None and self.truth.shape != (self.times.size, self.start.size):
            raise InputError(
                f"the truth has shape {self.truth.shape}, but there are {self.times.size} times "
                f"and {self.start.size} components"
            )
        if self.max_steps < 1:
            raise InputError(f"max_steps {self.max_steps} must be at least 1")

    def methods(self) -> Mapping[str, Method]:
        """The catalogue; by default those that are at home on equations of this kind."""
        known = super().methods()
        if self.stiff:
            return known
        wave = ("truncated-wkb",) if isinstance(self.field, Oscillator) else ()
        home = {*NOT_STIFF, *wave}
        return {name: replace(line, default=name in home) for name, line in known.items()}

    def dials(self, method: Any) -> Sequence[float]:
        if hasattr(method, "dials"):
            return method.dials
        if _is_fixed(method):
            return STEP_COUNTS
        return TOLERANCES[:3] if self.dtype == "float32" else TOLERANCES[: 6 if self.stiff else 8]

    def random(self, method: Any) -> bool:
        return False

    def floor(self) -> float:
        return max(self.solution()[1], 1e-15)

    @property
    def oracle(self) -> Callable[[Any, Any, Any], Any]:
        """The vector field, its arrays of the problem's precision and its calls counted."""
        field = _cast(self.field, self.dtype)
        if isinstance(field, Oscillator):  # whose solvers call what makes it, not the field
            return Oscillator(counted(field.coefficient, ORACLE), field.epsilon)
        return counted(field, ORACLE)

    def solution(self) -> tuple[np.ndarray, float]:
        """The truth [times, d] and its relative uncertainty."""
        if self.truth is not None:
            return self.truth, self.uncertainty
        return _reference(self)

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        if isinstance(method, Host):
            return self._on_host(method, float(dial))
        arguments = _arguments(method, self.stiff)
        if arguments is None:
            return Traced(method, jnp.asarray(dial, self.dtype))
        return self._dialled(arguments, dial)

    def _dialled(self, arguments: dict[str, Any], dial: Any) -> dict[str, Any]:
        controller = arguments["stepsize_controller"]
        if isinstance(controller, dfx.ConstantStepSize):
            span = self.times[-1] - self.initial
            return {**arguments, "dt0": jnp.asarray(span / float(dial), self.dtype)}
        if not hasattr(controller, "rtol"):
            return {"dt0": None, **arguments}
        rtol = jnp.asarray(dial, self.dtype)
        tolerances = (rtol, jnp.asarray(self.absolute * float(dial), self.dtype))
        controller = eqx.tree_at(lambda c: (c.rtol, c.atol), controller, tolerances)
        return {"dt0": None, **arguments, "stepsize_controller": controller}

    def _on_host(self, method: Host, tolerance: float) -> Host:
        field, dtype = self.oracle, self.dtype
        call = jax.jit(lambda t, y: field(t, y, None))
        slope = jax.jit(jax.jacfwd(lambda y, t: field(t, y, None)))

        def function(t: float, y: np.ndarray) -> np.ndarray:
            return np.asarray(call(np.asarray(t, dtype), np.asarray(y, dtype)), np.float64)

        def jacobian(t: float, y: np.ndarray) -> np.ndarray:
            return np.asarray(slope(np.asarray(y, dtype), np.asarray(t, dtype)), np.float64)

        on_host = function
        if isinstance(field, Oscillator):
            on_host = OscillatorOnHost(
                function, jax.jit(jax.vmap(field.coefficient)), field.epsilon
            )

        def solve() -> np.ndarray:
            times = np.append(self.initial, self.times)
            absolute = self.absolute * tolerance
            values, counts = method(on_host, jacobian, self.start, times, tolerance, absolute)
            for unit, count in counts.items():
                _report_on_host(unit, count)
            return values

        return Host(solve)

    def apply(self, standin: Any, *, key: Any) -> Any:
        if isinstance(standin, Host):
            return standin()
        start, times = jnp.asarray(self.start, self.dtype), jnp.asarray(self.times, self.dtype)
        initial = jnp.asarray(self.initial, self.dtype)
        if isinstance(standin, Traced):
            grid = jnp.concatenate([initial[None], times])
            return standin.function(self.oracle, start, grid, standin.tolerance)
        solution = dfx.diffeqsolve(
            self._terms(standin["solver"]),
            t0=initial,
            t1=times[-1],
            y0=start,
            saveat=dfx.SaveAt(ts=times),
            max_steps=self.max_steps,
            throw=False,
            **standin,
        )
        values = cast("Array", solution.ys)
        values = _report(STEPS, solution.stats["num_steps"], values)
        return _report(REJECTED, solution.stats["num_rejected_steps"], values)

    def _terms(self, solver: Any) -> Any:
        """The whole field to the implicit half of a solver that takes two (KenCarp)."""
        field: Any = dfx.ODETerm(self.oracle)
        tableau = getattr(solver, "tableau", None)
        if not isinstance(tableau, dfx.MultiButcherTableau):
            return field
        nothing: Any = lambda t, y, args: jnp.zeros_like(y)  # noqa: E731
        return dfx.MultiTerm(dfx.ODETerm(nothing), field)

    def errors(self, value: Any) -> Mapping[str, float]:
        truth, _ = self.solution()
        scale = np.max(np.abs(truth), axis=0) + self.absolute
        with np.errstate(over="ignore", invalid="ignore"):
            relative = (np.asarray(value, np.float64) - truth) / scale
            final, l2 = (float(np.sqrt(np.mean(e**2))) for e in (relative[-1], relative))
        # What a solver did not reach it leaves at infinity.
        return {
            "final": final if np.isfinite(final) else np.inf,
            "l2": l2 if np.isfinite(l2) else np.inf,
        }

    def trouble(self, value: Any) -> str:
        if np.any(np.isnan(value)):
            return "the solution becomes nan"
        if np.all(np.isfinite(value)):
            return ""
        return f"it does not reach the end; max_steps is {self.max_steps}"


class Traced(eqx.Module):
    """A solver that is a plain function, and its tolerance."""

    function: Callable[..., Any]
    tolerance: Float[Array, ""]


@dataclass(frozen=True)
class OscillatorOnHost:
    """The field of an `Oscillator` on NumPy arrays, and what the oscillator is."""

    function: Callable[[float, np.ndarray], np.ndarray]
    batched: Callable[[Any], Any]
    epsilon: float

    def __call__(self, t: float, y: np.ndarray) -> np.ndarray:
        return self.function(t, y)

    def coefficient(self, x: Any) -> np.ndarray:
        """a, of an array of any shape."""
        points = np.asarray(x, np.float64)
        return np.asarray(self.batched(points.ravel()), np.float64).reshape(points.shape)


def _is_fixed(method: Any) -> bool:
    controller = method.get("stepsize_controller") if isinstance(method, Mapping) else method
    return isinstance(controller, dfx.ConstantStepSize)


def _arguments(method: Any, stiff: bool) -> dict[str, Any] | None:
    """Keyword arguments of `diffeqsolve`; None for a plain function."""
    slots = {
        "solver": dfx.AbstractSolver,
        "stepsize_controller": dfx.AbstractStepSizeController,
        "adjoint": dfx.AbstractAdjoint,
    }
    given = dict(method) if isinstance(method, Mapping) else {}
    for slot, kind in slots.items():
        if isinstance(method, kind):
            given = {slot: method}
    if not given and not callable(method):
        raise InputError(
            f"a {type(method).__name__} is no solver: give a diffrax solver, controller or "
            "adjoint, a mapping of diffeqsolve's arguments, a function or a nearly.Host"
        )
    if not given:
        return None
    solver = given.get("solver") or (kvaerno5_patient if stiff else tsit5)
    adaptive = isinstance(solver, dfx.AbstractAdaptiveSolver)
    controller = dfx.PIDController(rtol=1e-3, atol=1e-3) if adaptive else dfx.ConstantStepSize()
    return {"stepsize_controller": controller, **given, "solver": solver}


def _cast(field: Any, dtype: str) -> Any:
    """A field whose own arrays are of a dtype."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, dtype) if isinstance(leaf, np.ndarray) else leaf, field
    )


# ---- what a solver reports of itself


def _report(unit: str, count: Any, value: Array) -> Array:
    """Adds a count that a solver has returned to the tally; without one it vanishes."""
    mark = counted(lambda x: x, unit)
    return jax.lax.fori_loop(0, count, lambda _, x: mark(x), value)


def _report_on_host(unit: str, count: int) -> None:
    if count:
        jax.vmap(counted(lambda x: x, unit))(np.zeros(count))


# ---- truths


def _reference(problem: InitialValueProblem) -> tuple[np.ndarray, float]:
    digest = digest_of(
        "solution of an initial-value problem",
        problem.field,
        problem.start,
        problem.times,
        problem.initial,
        problem.absolute,
        problem.stiff,
    )
    if digest is None:
        kept = _solved_unkept(_Same(problem))
    else:
        kept = Store().truth(digest, lambda: _solved(problem))
    return kept["values"], float(kept["uncertainty"])


class _Same:
    """A problem as a key: the object itself, for what has no digest."""

    def __init__(self, problem: InitialValueProblem) -> None:
        self.problem = problem

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.problem is self.problem

    def __hash__(self) -> int:
        return id(self.problem)


@lru_cache(maxsize=8)
def _solved_unkept(same: _Same) -> dict[str, np.ndarray]:
    return _solved(same.problem)


def _solved(problem: InitialValueProblem) -> dict[str, np.ndarray]:
    """By SciPy at its tightest tolerance, and at one ten times looser."""
    from nearly.dynamics.peers import integrate

    with jax.enable_x64(True):
        field = _cast(problem.field, "float64")
        call = jax.jit(lambda t, y: field(t, y, None))
        slope = jax.jit(jax.jacfwd(lambda y, t: field(t, y, None)))
        times = np.append(problem.initial, problem.times)

        def at(tolerance: float) -> np.ndarray:
            return integrate(
                "Radau" if problem.stiff else "DOP853",
                lambda t, y: np.asarray(call(t, y)),
                lambda t, y: np.asarray(slope(y, t)),
                problem.start,
                times,
                tolerance,
                problem.absolute * tolerance,
            )[0]

        values, looser = at(1e-13), at(1e-12)
    if not np.all(np.isfinite(values)):
        raise InputError(
            f"the reference solver does not reach the end of {problem.name}: shorten its times if "
            "the solution goes to infinity, or give a truth and its uncertainty"
        )
    scale = np.max(np.abs(values), axis=0) + problem.absolute
    uncertainty = np.max(np.abs(values - looser) / scale)
    return {"values": values, "uncertainty": uncertainty}


@cache
def _shipped() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "truths.json").read_text())


# ---- the catalogue's instances


def standard(case: str = "rober", dtype: str = "float64") -> InitialValueProblem:
    """One of the field's standard problems, by its name in `problems.equations`."""
    if case not in CASES:
        raise UnknownName("initial-value problem", case, CASES)
    found, truth = CASES[case], _shipped()[case]
    return InitialValueProblem(
        field=Stacked(found.function),
        start=np.asarray(found.start),
        times=found.times,
        absolute=found.absolute,
        stiff=found.stiff,
        truth=np.asarray(truth["values"]),
        uncertainty=truth["uncertainty"],
        name=case,
        dtype=dtype,
    )


def prothero_robinson(
    rate: float = -1e6, end: float = 10.0, dtype: str = "float64"
) -> InitialValueProblem:
    """Prothero and Robinson's problem about y = cos t; stiff where `rate` is very negative."""
    if not (rate < 0 and end > 0):
        raise InputError(f"rate {rate} must be negative and the end {end} positive")
    times = np.linspace(0, end, 17)[1:]
    return InitialValueProblem(
        field=ProtheroRobinson(rate),
        start=np.ones(1),
        times=times,
        truth=prothero_robinson_value(times)[:, None],
        uncertainty=1e-16,
        name="prothero-robinson",
        dtype=dtype,
    )


def airy(epsilon: float = 0.01, dtype: str = "float64") -> InitialValueProblem:
    """`epsilon^2 u'' + x u = 0` on [1, 2]: some `0.2 / epsilon` oscillations.

    Real parts, then imaginary ones, of u and epsilon u' for u = Ai(-x s) + i Bi(-x s) with
    s = epsilon^(-2/3).
    """
    if not 0 < epsilon <= 1:
        raise InputError(f"epsilon {epsilon} must lie in (0, 1]")
    grid = np.linspace(1, 2, 17)
    values = airy_values(grid, epsilon)
    return InitialValueProblem(
        field=Oscillator(lambda x: x, epsilon),
        start=values[0],
        times=grid[1:],
        initial=1.0,
        stiff=False,
        truth=values[1:],
        uncertainty=1e-16,
        name="airy",
        dtype=dtype,
        max_steps=1_000_000,
    )
