"""Ways to solve a learned differential equation in training that keep it cheap to solve later.

Each is a function `(solve, strength, *, key) -> (values, penalty)` of a `Solve`; the loss is that
of the values plus the penalty. `strength` is the weight of the penalty (for `RandomEnd`, the width
of the interval of ends), a number or an array, so that one compiled program serves all.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp

from nearly.core.errors import InputError, UnknownName
from nearly.derivatives.taylor import jet
from nearly.dynamics.regularize import (
    Accumulated,
    ErrorEstimate,
    Heuristics,
    Measure,
    StiffnessEstimate,
    accumulated,
    local_penalty,
    uniform_end,
    uniform_step,
    uniform_time,
)

KINDS = ("error", "stiffness")
SUMMARIES = ("total", "mean", "maximum")
THROUGH_STATES = (dfx.RecursiveCheckpointAdjoint, dfx.DirectAdjoint, dfx.ForwardMode)


class Solve(eqx.Module):
    """What `diffrax.diffeqsolve` is asked: a learned equation, solved with adaptive steps.

    **Arguments:**

    - `terms`, `solver`, `t0`, `t1`, `y0`, `args`, `adjoint`, `max_steps`: as there.
    - `rtol`, `atol`: of the `PIDController`.
    - `ts`: times at which the solution is wanted; None: at `t1` alone.
    - `dtmin`: the smallest step: what a Brownian path can answer. None: any.

    Calling it solves: the values `[times, ...]`, or those at `t1`, NaN where the solve failed
    (more than `max_steps`), so that a training run stops there.
    """

    terms: Any
    solver: Any
    t0: Any
    t1: Any
    y0: Any
    args: Any = None
    rtol: Any = 1e-5
    atol: Any = 1e-5
    ts: Any = None
    dtmin: Any = None
    adjoint: Any = dfx.RecursiveCheckpointAdjoint()
    max_steps: int = eqx.field(default=256, static=True)

    @property
    def controller(self) -> dfx.PIDController:
        return dfx.PIDController(rtol=self.rtol, atol=self.atol, dtmin=self.dtmin)

    def solution(self, saveat: dfx.SaveAt, **changes: Any) -> dfx.Solution:
        """The solution, saved as asked."""
        asked: dict[str, Any] = {
            "terms": self.terms,
            "solver": self.solver,
            "t0": self.t0,
            "t1": self.t1,
            "y0": self.y0,
            "args": self.args,
            "adjoint": self.adjoint,
        }
        return dfx.diffeqsolve(
            **(asked | changes),
            dt0=None,
            saveat=saveat,
            stepsize_controller=self.controller,
            max_steps=self.max_steps,
            throw=False,
        )

    def saved(self, **also: Any) -> dfx.SaveAt:
        """What is saved for the values, and what else."""
        if self.ts is None:
            return dfx.SaveAt(t1=True, **also)
        return dfx.SaveAt(ts=self.ts, **also)

    def values(self, solution: dfx.Solution) -> Any:
        """The wanted values of a solution that was `saved`."""
        succeeded = solution.result == dfx.RESULTS.successful
        ys = jax.tree.map(lambda y: jnp.where(succeeded, y, jnp.nan), solution.ys)
        return jax.tree.map(lambda y: y[-1], ys) if self.ts is None else ys

    def __call__(self) -> Any:
        return self.values(self.solution(self.saved()))


class Regularizer(eqx.Module):
    """How an equation is solved in training."""

    @abstractmethod
    def __call__(self, solve: Solve, strength: Any, *, key: Any) -> tuple[Any, Any]:
        """The values, and the penalty to add to their loss, times its weight."""


class Unregularized(Regularizer):
    """The plain solve; no penalty."""

    def __call__(self, solve: Solve, strength: Any, *, key: Any) -> tuple[Any, Any]:
        del strength, key
        return solve(), 0.0


class GlobalEstimate(Regularizer):
    """The solver's estimates over the whole solution (`solver-heuristic-regularization`).

    **Arguments:**

    - `kind`: `error` (the embedded error estimate times the step) or `stiffness`.
    - `summary`: `total`, `mean` or `maximum` over the steps. The paper writes the total; its
      code takes the mean for the error, the maximum for the stiffness.

    Needs diffrax's default adjoint or `DirectAdjoint`. **Cost:** no calls of the vector field.
    """

    kind: str = eqx.field(default="error", static=True)
    summary: str = eqx.field(default="total", static=True)

    def __check_init__(self) -> None:
        _check_kind(self.kind)
        if self.summary not in SUMMARIES:
            raise UnknownName("summary", self.summary, SUMMARIES)

    def __call__(self, solve: Solve, strength: Any, *, key: Any) -> tuple[Any, Any]:
        del key
        if not isinstance(solve.adjoint, THROUGH_STATES):
            raise InputError(
                f"{type(solve.adjoint).__name__} has no gradient of what the solver carries along: "
                "take diffrax's RecursiveCheckpointAdjoint or DirectAdjoint, or LocalEstimate"
            )
        solver = Heuristics(solve.solver, _measure(self.kind, solve))
        solution = solve.solution(solve.saved(solver_state=True), solver=solver)
        return solve.values(solution), strength * self._summarised(accumulated(solution))

    def _summarised(self, found: Accumulated) -> Any:
        return getattr(found, self.summary)


class LocalEstimate(Regularizer):
    """The solver's estimate in one step from a random time (`locally-regularized-nde`).

    **Arguments:**

    - `kind`: `error` or `stiffness`. `dt0`: the length of the step; None: the controller's own
      choice of a first step, as the authors'. That is shorter than those it takes later, more so
      the looser the tolerances, and the error estimate goes with a high power: its weights are
      larger, and a step like those of the solve (`dt0=0.1` over a unit of time) penalises better.

    The time is uniform (the unbiased choice), the solution there interpolated. Works with any
    adjoint. **Cost:** the calls of one step and two more, forwards and backwards.
    """

    kind: str = eqx.field(default="error", static=True)
    dt0: float | None = None

    def __check_init__(self) -> None:
        _check_kind(self.kind)

    def __call__(self, solve: Solve, strength: Any, *, key: Any) -> tuple[Any, Any]:
        time = uniform_time(key, solve.t0, solve.t1)
        wanted = jnp.atleast_1d(jnp.asarray(solve.t1 if solve.ts is None else solve.ts))
        place = jnp.searchsorted(wanted, time)
        times = jnp.insert(wanted, place, time)
        solution = solve.solution(dfx.SaveAt(ts=times))
        penalty = self.penalty(solve, time, jax.tree.map(lambda y: y[place], solution.ys))
        kept = jnp.arange(wanted.size) + (jnp.arange(wanted.size) >= place)
        ys = jax.tree.map(lambda y: y[kept], solution.ys)
        return solve.values(dataclasses.replace(solution, ys=ys)), strength * penalty

    def penalty(self, solve: Solve, time: Any, y: Any) -> Any:
        """The estimate in one step from a time and the solution there."""
        return local_penalty(
            solve.terms,
            solve.solver,
            _measure(self.kind, solve),
            time,
            solve.t1,
            y,
            solve.args,
            dt0=self.dt0,
            controller=solve.controller,
        )


class LocalEstimateAtSteps(LocalEstimate):
    """As `LocalEstimate`, the time drawn from the starts of the solver's own steps.

    The biased choice: hard parts of the solution are drawn more often, and nothing is interpolated
    there. The adjoint must be able to save every step: `BacksolveAdjoint` cannot.
    """

    def __call__(self, solve: Solve, strength: Any, *, key: Any) -> tuple[Any, Any]:
        steps = dfx.SubSaveAt(t0=True, steps=True)
        wanted = dfx.SubSaveAt(t1=True) if solve.ts is None else dfx.SubSaveAt(ts=solve.ts)
        solution = solve.solution(dfx.SaveAt(subs=[steps, wanted]))
        assert solution.ts is not None and solution.ys is not None
        every = dataclasses.replace(solution, ts=solution.ts[0], ys=solution.ys[0])
        time, y = uniform_step(key, every)
        values = solve.values(dataclasses.replace(solution, ts=solution.ts[1], ys=solution.ys[1]))
        return values, strength * self.penalty(solve, time, y)


class RandomEnd(Regularizer):
    """STEER: solve to a random end within `strength` of `t1` in training; no penalty.

    Only where the value at `t1` alone is wanted; `strength` must be below `t1 - t0`.
    """

    def __call__(self, solve: Solve, strength: Any, *, key: Any) -> tuple[Any, Any]:
        if solve.ts is not None:
            raise InputError("RandomEnd moves the end: it cannot serve fixed times ts")
        end = uniform_end(key, solve.t1, strength)
        return solve.values(solve.solution(solve.saved(), t1=end)), 0.0


class Integrated(Regularizer):
    """A penalty that is integrated beside the solution: what estimates of the solver replace.

    Ordinary equations with one `ODETerm` only, whose state is one array. **Subclasses** define the
    `rate`, a number. **Cost:** that of the rate at every call of the vector field.
    """

    @abstractmethod
    def rate(self, field: Any, t: Any, y: Any, args: Any, noise: Any) -> tuple[Any, Any]:
        """The vector field and the rate of the penalty at a point; `noise` is like `y`."""

    def __call__(self, solve: Solve, strength: Any, *, key: Any) -> tuple[Any, Any]:
        if not isinstance(solve.terms, dfx.ODETerm):
            raise InputError(
                f"{type(self).__name__} integrates its penalty beside one ODETerm, not a "
                f"{type(solve.terms).__name__}: take GlobalEstimate or LocalEstimate"
            )
        noise = jax.random.normal(key, solve.y0.shape, solve.y0.dtype)
        field = solve.terms.vector_field

        def both(t: Any, state: Any, args: Any) -> Any:
            return self.rate(field, t, state[0], args, noise)

        start = (solve.y0, jnp.zeros((), solve.y0.dtype))
        solution = solve.solution(solve.saved(), terms=dfx.ODETerm(both), y0=start)
        assert solution.ys is not None
        ys, integral = solution.ys
        return solve.values(dataclasses.replace(solution, ys=ys)), strength * integral[-1]


class TaylorRate(Integrated):
    """TayNODE: the mean square of the solution's derivative of order `order` in time.

    By Taylor arithmetic (`nearly.derivatives.jet`): O(order^2) calls of the vector field.
    """

    order: int = eqx.field(default=2, static=True)

    def __check_init__(self) -> None:
        if self.order < 2:
            raise InputError(f"order={self.order} must be at least 2: KineticRate is order 1")

    def rate(self, field: Any, t: Any, y: Any, args: Any, noise: Any) -> tuple[Any, Any]:
        del noise
        derivatives = [field(t, y, args)]
        time = jnp.asarray(t, y.dtype)
        for known in range(1, self.order):
            clock = [jnp.ones_like(time), *[None] * (known - 1)]
            _, higher = jet(lambda t, y: field(t, y, args), (time, y), (clock, derivatives))
            derivatives.append(higher[-1])
        return derivatives[0], jnp.mean(derivatives[-1] ** 2)


class KineticRate(Integrated):
    """RNODE: the mean square of the vector field, and of its Jacobian along a random direction.

    **Arguments:**

    - `jacobian`: the weight of the Jacobian's part: of |e^T df/dy|^2, whose mean over normal e is
      the square of its Frobenius norm.
    """

    jacobian: float = 1.0

    def rate(self, field: Any, t: Any, y: Any, args: Any, noise: Any) -> tuple[Any, Any]:
        slope, pull = jax.vjp(lambda y: field(t, y, args), y)
        (row,) = pull(noise)
        return slope, jnp.mean(slope**2) + self.jacobian * jnp.mean(row**2)


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise UnknownName("kind of estimate", kind, KINDS)


def _measure(kind: str, solve: Solve) -> Measure:
    return ErrorEstimate(solve.rtol, solve.atol) if kind == "error" else StiffnessEstimate()
