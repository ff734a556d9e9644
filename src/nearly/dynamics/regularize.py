"""Penalties that make learned dynamics cheap to solve: a solver's own estimates, along the whole
solution or at one random time.

    measure = ErrorEstimate(rtol=1e-5, atol=1e-5)
    solution = diffeqsolve(terms, Heuristics(Tsit5(), measure), ..., saveat=SaveAt(t1=True,
                           solver_state=True))
    loss + weight * accumulated(solution).total            # solver-heuristic-regularization
    loss + weight * local_penalty(terms, Tsit5(), ...)      # locally-regularized-nde
"""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import lru_cache
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from nearly.core.errors import InputError

TINY = 1e-20  # under a root, whose derivative at 0 is infinite


class Step(NamedTuple):
    """A step as a solver made it: from `y0` at `t0` to `y1` at `t1`, `error` and `dense` beside."""

    t0: Any
    t1: Any
    y0: Any
    y1: Any
    error: Any
    dense: Any


class Measure(eqx.Module):
    """How hard a step was, as its solver saw it."""

    @abstractmethod
    def check(self, solver: Any, terms: Any) -> None:
        """Raise `InputError` for a solver, or terms, that do not give this measure."""

    @abstractmethod
    def of(self, solver: Any, step: Step) -> Array:
        """The measure of a step, a number; finite, with a finite gradient, whatever the step."""


class ErrorEstimate(Measure):
    """The embedded error estimate of a step times the step: E h.

    E is the root mean square of error / (atol + rtol max(|y0|, |y1|)), what the step-size
    controller compares with 1.

    **Arguments:**

    - `rtol`, `atol`: those of the step-size controller; one of them positive.

    Any solver with an error estimate has it, of ordinary and of stochastic equations.
    """

    rtol: Any
    atol: Any

    def __check_init__(self) -> None:
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and value < 0:
                raise InputError(f"{name}={value} must not be negative: give the controller's")

    def check(self, solver: Any, terms: Any) -> None:
        """Raise `InputError` for a solver without an error estimate."""
        del terms
        if not isinstance(solver, dfx.AbstractAdaptiveSolver):
            raise InputError(
                f"{type(solver).__name__} estimates no error: take an adaptive solver such as "
                "Tsit5, or diffrax.HalfSolver around this one"
            )

    def of(self, solver: Any, step: Step) -> Array:
        """E h, one number."""
        del solver

        def scaled(error: Any, y0: Any, y1: Any) -> Any:
            size = jnp.maximum(jnp.abs(y0), jnp.abs(_finite(y1)))
            return _finite(error) / (self.atol + self.rtol * size)

        parts = jax.tree.map(scaled, step.error, step.y0, step.y1)
        size = _root_mean_square(parts)
        return size * jnp.asarray(step.t1 - step.t0, size.dtype)


class StiffnessEstimate(Measure):
    """How fast the vector field changes between two stages of a step at the same time.

    S = |f(g_j) - f(g_i)| / |g_j - g_i| / b: an estimate of the dominant eigenvalue of the
    Jacobian, from the last two stages g_i, g_j that have the same time (for Tsit5, DOPRI5 and
    DOPRI8 the last two of all), over the length b of the solver's stability interval on the
    negative real axis (3.5068 for Tsit5; computed from the tableau; 1 where it is infinite).

    Only for ordinary equations, and Runge-Kutta solvers with one tableau that has two stages at
    the same time: explicit or diagonally implicit ones.
    """

    def check(self, solver: Any, terms: Any) -> None:
        """Raise `InputError` where there are no two such stages."""
        tableau = _tableau(solver)
        if tableau is None:
            raise InputError(
                f"{type(solver).__name__} shows no Runge-Kutta stages to estimate stiffness from: "
                "take a solver such as Tsit5, Dopri5 or Kvaerno5, or the ErrorEstimate"
            )
        if _twins(tableau) is None:
            raise InputError(
                f"{type(solver).__name__} has no two stages at the same time, which the stiffness "
                "estimate compares: take Tsit5, Dopri5, Dopri8 or Kvaerno5, or the ErrorEstimate"
            )
        if not _ordinary(terms):
            raise InputError(
                "the stiffness estimate is for ordinary differential equations (ODETerm): "
                "take the ErrorEstimate"
            )

    def of(self, solver: Any, step: Step) -> Array:
        """S, one number."""
        tableau = _tableau(solver)
        assert tableau is not None
        twins = _twins(tableau)
        assert twins is not None
        # A stage's value is y0 plus its row of the tableau, its own slope included if implicit.
        weights = _rows(tableau)[twins[1]] - _rows(tableau)[twins[0]]
        slopes = jax.tree.map(_finite, step.dense["k"])  # times the step

        def apart(k: Any) -> Any:
            return jnp.tensordot(jnp.asarray(weights, k.dtype), k, axes=1)

        between = jax.tree.map(apart, slopes)
        change = jax.tree.map(lambda k: k[twins[1]] - k[twins[0]], slopes)
        size = _root_mean_square(between)
        h = jnp.asarray(step.t1 - step.t0, size.dtype)
        rate = _root_mean_square(change) / (size * h)
        # Two stages that agree, as at rest, say nothing, and must not divide rounding by rounding.
        return jnp.where(size > 2 * math.sqrt(TINY), rate, 0) / stability(type(solver))


class Accumulated(NamedTuple):
    """A measure over the accepted steps of a solution: `total`, `maximum`, and their number."""

    total: Array
    maximum: Array
    steps: Array

    @property
    def mean(self) -> Array:
        """The measure of a step on average; 0 for no step."""
        return self.total / jnp.maximum(self.steps, 1)


class Heuristics(dfx.AbstractAdaptiveSolver[Any], dfx.AbstractWrappedSolver[Any]):
    """Any diffrax solver, its state carrying a measure of the steps it has taken.

    **Arguments:**

    - `solver`: the solver; its steps are left as they are.
    - `measure`: an `ErrorEstimate` or a `StiffnessEstimate`.

    Solve with `SaveAt(..., solver_state=True)` and read `accumulated(solution)`. The penalties of
    `solver-heuristic-regularization` are the `total` of the error estimate (the authors' code
    takes the `mean`) and the `total` or the `maximum` of the stiffness estimate. The gradient
    goes through the whole solution, so it needs diffrax's default adjoint or `DirectAdjoint`:
    with `BacksolveAdjoint` it is silently zero. With other adjoints take `local_penalty`. diffrax
    holds the lengths of the steps constant, so the gradient is not that of the number a finite
    difference sees, whose steps move.

    **Raises:** `InputError`, when a solve begins, for a solver or terms without that measure.

    **Cost:** a few operations on the state for each step: no call of the vector field.
    """

    solver: Any
    measure: Measure

    @property
    def term_structure(self) -> Any:
        return self.solver.term_structure

    @property
    def interpolation_cls(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.solver.interpolation_cls

    @property
    def term_compatible_contr_kwargs(self) -> Any:
        return self.solver.term_compatible_contr_kwargs

    # diffrax sets these two through any solver that passes for a Runge-Kutta or implicit one.

    @property
    def scan_kind(self) -> Any:
        inner = self.solver
        while not hasattr(inner, "scan_kind"):
            inner = inner.solver
        return inner.scan_kind

    @property
    def root_finder(self) -> Any:
        return self.solver.root_finder

    @property
    def root_find_max_steps(self) -> Any:
        return self.solver.root_find_max_steps

    def order(self, terms: Any) -> Any:
        return self.solver.order(terms)

    def strong_order(self, terms: Any) -> Any:
        return self.solver.strong_order(terms)

    def error_order(self, terms: Any) -> Any:
        return self.solver.error_order(terms)

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> Any:
        """The solver's own state, and sums of nothing."""
        self.measure.check(self.solver, terms)
        dtype = jnp.zeros((), jnp.result_type(*jax.tree.leaves(y0))).real.dtype
        zero = jnp.zeros((), dtype)
        state = self.solver.init(terms, t0, t1, y0, args)
        return state, Accumulated(zero, zero, jnp.zeros((), jnp.int32))

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> Any:
        """The solver's own step, measured. What a rejected step adds diffrax throws away."""
        inner, before = solver_state
        y1, error, dense, inner, result = self.solver.step(
            terms, t0, t1, y0, args, inner, made_jump
        )
        value = self.measure.of(self.solver, Step(t0, t1, y0, y1, error, dense))
        value = value.astype(before.total.dtype)
        after = Accumulated(
            before.total + value, jnp.maximum(before.maximum, value), before.steps + 1
        )
        return y1, error, dense, (inner, after), result

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:
        return self.solver.func(terms, t0, y0, args)


def accumulated(solution: Any) -> Accumulated:
    """What `Heuristics` measured along a solution.

    **Returns:** `total`, `maximum`, `mean` and the number of accepted `steps`, one number each.

    Raises `InputError` if the solution does not hold it.
    """
    state = solution.solver_state
    if not (isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], Accumulated)):
        raise InputError(
            "the solution holds no measure: solve with Heuristics(solver, measure) and "
            "SaveAt(..., solver_state=True)"
        )
    return state[1]


# ---- at one time


def local_penalty(
    terms: Any,
    solver: Any,
    measure: Measure,
    t: Any,
    t1: Any,
    y: Any,
    args: Any = None,
    *,
    dt0: Any = None,
    controller: dfx.PIDController | None = None,
) -> Float[Array, ""]:
    """The measure of one step from a point of the solution: a penalty that needs no adjoint.

    **Arguments:**

    - `terms`, `solver`, `args`: as for `diffrax.diffeqsolve`. An implicit solver needs a root
      finder with its own tolerances.
    - `measure`: an `ErrorEstimate` or a `StiffnessEstimate`.
    - `t`, `y`: a time and the solution there, from `uniform_time` or `uniform_step`; `t1`: the
      end, not before `t`.
    - `dt0`: the length of the step, cut at `t1`. None: what the `controller` starts with (for
      stochastic equations diffrax's is 0.01).

    **Returns:** one number, whose gradient goes through the calls of the vector field in this step
    and nothing else: the point and the length of the step are held constant. So the solution may
    be found with any adjoint.

    Raises `InputError` for a solver or terms without that measure, and where neither `dt0` nor
    `controller` is given.

    **Cost:** the calls of one step, two more to choose its length; no memory but theirs.

    From `locally-regularized-nde`. Its authors' code takes the step at the solution's time 0, with
    the state of the random time; this one takes it at that time.
    """
    measure.check(solver, terms)
    _check_root_finder(solver)
    t, t1, y = jax.lax.stop_gradient((jnp.asarray(t), jnp.asarray(t1), y))
    if dt0 is None:
        if controller is None:
            raise InputError("dt0=None: give the length of the step, or the solve's PIDController")
        order = solver.error_order(terms)
        end, _ = controller.init(terms, t, t1, y, None, args, solver.func, order)
    else:
        end = t + dt0
    end = jax.lax.stop_gradient(jnp.minimum(end, t1)).astype(t.dtype)
    state = solver.init(terms, t, end, y, args)
    y1, error, dense, _, _ = solver.step(terms, t, end, y, args, state, made_jump=False)
    return measure.of(solver, Step(t, end, y, y1, error, dense))


def uniform_time(key: Key[Array, ""], t0: Any, t1: Any) -> Float[Array, ""]:
    """A time drawn uniformly between two others: the unbiased choice of a point.

    Hand it to the solve, `SaveAt(ts=[t, t1])`, for the solution there (interpolated).
    """
    dtype = jnp.result_type(t0, t1, float)
    return jax.random.uniform(key, (), dtype, t0, t1)


def uniform_step(key: Key[Array, ""], solution: Any) -> tuple[Any, Any]:
    """The start of a step drawn uniformly from those the solver took: the biased choice.

    **Arguments:**

    - `solution`: saved with `SaveAt(t0=True, steps=True)`.

    **Returns:** the time, and the solution at it. More steps are taken where the solution is hard,
    so hard times are drawn more often; no value is interpolated.

    Raises `InputError` for a solution that was saved otherwise.
    """
    times = solution.ts
    if times is None or times.ndim != 1 or times.size < 2:
        raise InputError("uniform_step needs every step: solve with SaveAt(t0=True, steps=True)")
    last = jnp.sum(jnp.isfinite(times)) - 1
    index = jax.random.randint(key, (), 0, jnp.maximum(last, 1))
    return times[index], jax.tree.map(lambda y: y[index], solution.ys)


def uniform_end(key: Key[Array, ""], t1: Any, width: Any) -> Float[Array, ""]:
    """A random end of training's solves, uniform within `width` of `t1`: STEER."""
    dtype = jnp.result_type(t1, float)
    return t1 + width * jax.random.uniform(key, (), dtype, -1, 1)


# ---- tableaus


def _tableau(solver: Any) -> dfx.ButcherTableau | None:
    """A Runge-Kutta solver's only tableau."""
    found = getattr(solver, "tableau", None)
    return found if isinstance(found, dfx.ButcherTableau) else None


def _rows(tableau: dfx.ButcherTableau) -> np.ndarray:
    """The whole matrix, the diagonal of an implicit method included."""
    stages = tableau.num_stages
    rows = np.zeros((stages, stages))
    for index, row in enumerate(tableau.a_lower, start=1):
        rows[index, :index] = row
    if tableau.a_diagonal is not None:
        rows += np.diag(tableau.a_diagonal)
    return rows


def _twins(tableau: dfx.ButcherTableau) -> tuple[int, int] | None:
    """The last two stages that have the same time."""
    times = [tableau.c1, *tableau.c]
    for last in range(len(times) - 1, 0, -1):
        for first in range(last - 1, -1, -1):
            if math.isclose(times[first], times[last]):
                return first, last
    return None


@lru_cache
def stability(solver: type) -> float:
    """The length of a Runge-Kutta method's stability interval on the negative real axis.

    1 where there is no end to it: nothing to scale by.

    **Arguments:**

    - `solver`: a diffrax solver class with one `ButcherTableau`.
    """
    tableau: Any = solver.tableau  # pyright: ignore[reportAttributeAccessIssue]
    rows, weights = _rows(tableau), tableau.b_sol
    identity, ones = np.eye(len(weights)), np.ones(len(weights))

    def growth(x: float) -> float:
        return abs(1 - x * weights @ np.linalg.solve(identity + x * rows, ones))

    inside, outside = 0.0, 0.0
    while growth(outside) <= 1 + 1e-12:
        inside, outside = outside, outside + 0.01
        if outside > 200:
            return 1.0
    for _ in range(50):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if growth(middle) <= 1 else (inside, middle)
    return inside


def _ordinary(terms: Any) -> bool:
    """Whether all terms are ordinary, dt times a vector field, also within diffrax's wrappers."""
    if isinstance(terms, dfx.MultiTerm):
        return all(_ordinary(term) for term in terms.terms)
    inner = getattr(terms, "term", None)
    return isinstance(terms, dfx.ODETerm) if inner is None else _ordinary(inner)


def _check_root_finder(solver: Any) -> None:
    """Outside of a solve nobody fills in an implicit solver's tolerances."""
    finder: Any = getattr(solver, "root_finder", None)
    tolerances = [getattr(finder, name, 0.0) for name in ("rtol", "atol")]
    if not all(eqx.is_array_like(value) for value in tolerances):
        raise InputError(
            f"{type(solver).__name__} needs tolerances of its own in a local penalty: give it "
            "root_finder=diffrax.VeryChord(rtol=..., atol=..., norm=optimistix.max_norm)"
        )


def _finite(x: Any) -> Any:
    """Zero for what is not finite: such a step is rejected, and its gradient must not be NaN."""
    return jnp.where(jnp.isfinite(x), x, 0)


def _root_mean_square(tree: Any) -> Array:
    leaves = jax.tree.leaves(tree)
    total = sum(jnp.sum(jnp.abs(leaf) ** 2) for leaf in leaves)
    return jnp.sqrt(total / sum(leaf.size for leaf in leaves) + TINY)
