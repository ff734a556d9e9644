"""BDF2 raised to orders 3 and 4 by deferred correction (`bdf2-deferred-correction`).

With D the two-step difference formula of BDF2 on the mesh at hand, three solutions advance together

    D u_n = f(u_n)
    D w_n = f(w_n) - (P' - D P)(t_n),  P' through f(u) at t_n, t_n-1, t_n-2
    D z_n = f(z_n) - (P' - D P)(t_n),  P' through f(w) at t_n, ..., t_n-3

of orders 2, 3 and 4 on arbitrary meshes: only BDF2 itself must be stable, and it is whatever the
ratios of the steps. All three are solved for with the same matrix, factorised once a step.

Differences from the paper: the first step (or two) are made of eight steps of `msrktase3`, of local
order 4; the paper allows any scheme of lower order for u, but w and z need a good start. Its
estimate of the error, w - u or z - w, is of the global error, see `DeferredBDF2.global_error`;
steps are chosen by the local one, that of a step from the same history. The paper's levels never
meet. Where a controller holds the last one's error only, u drifts away, by whole transitions of
van der Pol's equation, until neither its corrections nor its matrix are of use to the others; so
here u and w go on from the last level every twenty steps. At infinite stiffness what that stirs
is gone after six; on given meshes it changes no order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Inexact, Int, Shaped

from nearly.core.errors import InputError
from nearly.dynamics.chord import GivenFactors, root
from nearly.dynamics.jacobians import Dense, Factors, Jacobian
from nearly.dynamics.wmethods import RungeKuttaTASE, msrktase3

Vector = Inexact[Array, " d"]
Levels = Inexact[Array, "levels d"]
Slope = Callable[[Vector], Vector]


# Steps in which a stiff component dies out of u (one), then w (three), then z.
FORGOTTEN = 6


class History(eqx.Module):
    """The steps behind: of each level (u, w, z) two values and three slopes, the latest first."""

    count: Int[Array, ""]  # steps taken since the start, or the last jump
    times: Shaped[Array, " 3"]
    values: Inexact[Array, "levels 2 d"]
    slopes: Inexact[Array, "levels 3 d"]


class Mesh(eqx.Module):
    """The numbers of a step of length tau after one of length tau / ratio.

    tau D v = lead (v_n - v_n-1) - lag (v_n-1 - v_n-2); `nodes` are the last three times, seen from
    the new one in units of tau.
    """

    tau: Shaped[Array, ""]
    nodes: Shaped[Array, " 3"]

    @property
    def ratio(self) -> Any:
        return 1 / (-1 - self.nodes[1])

    @property
    def lead(self) -> Any:
        return (1 + 2 * self.ratio) / (1 + self.ratio)

    @property
    def lag(self) -> Any:
        return self.ratio**2 / (1 + self.ratio)

    def extrapolated(self, values: Inexact[Array, "2 d"]) -> Vector:
        """To the new time, but not far: a step may be a thousand times the one before."""
        last, older = values
        return last + jnp.minimum(self.ratio, 1.5) * (last - older)

    def correction(self, new: Vector, slopes: Inexact[Array, "3 d"], points: int) -> Vector:
        """`(P' - D P)(t_n)` for the P' through the new slope and `points - 1` earlier ones.

        In Newton's form, whose terms are exact: D is for quadratic P.
        """
        one, two, three = self.nodes
        first = (slopes[0] - new) / one
        second = (slopes[1] - slopes[0]) / (two - one)
        bend = (second - first) / two
        if points == 3:
            return -two / 3 * bend
        third = (slopes[2] - slopes[1]) / (three - two)
        twist = ((third - second) / (three - one) - bend) / three
        return -two / 3 * bend + two * (two - 1) / 12 * twist


class DeferredBDF2(dfx.AbstractAdaptiveSolver[History]):
    """BDF2 with deferred corrections, on any mesh; for stiff problems and violently varying steps.

    **Arguments:**

    - `corrections`: 0 (plain variable-step BDF2), 1 or 2; the order is 2 more.
    - `jacobian`: how the Jacobian is found and factorised, once a step; `Banded`, `Sparse`.
    - `finder`: the iteration for the implicit equations, and how exactly it solves them; one more
      iteration follows.
    - `iterations`: after which a step has failed.
    - `start`, `parts`: what makes the first step (the first two, with two corrections), and in how
      many parts: its errors stay in w and z, and on a random mesh that step may be the longest.
    - `together`: after so many steps the levels go on from the last one's values; None, as in the
      paper: never, which `global_error` needs.

    A step costs one Jacobian, one factorisation and for each of `corrections + 1` equations some
    three calls of f and solves. On smooth problems with steps of free choice one-step methods such
    as Kvaerno5 need fewer; this is for meshes that are given.
    """

    corrections: int = 2
    jacobian: Jacobian = Dense()
    finder: GivenFactors = GivenFactors()
    iterations: int = 12
    start: RungeKuttaTASE = eqx.field(default_factory=msrktase3)
    parts: int = 8
    together: int | None = 20

    term_structure: ClassVar[Any] = dfx.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., Any]] = dfx.ThirdOrderHermitePolynomialInterpolation

    def __check_init__(self) -> None:
        if self.corrections not in (0, 1, 2):
            raise InputError(f"corrections {self.corrections} must be 0, 1 or 2")
        for name, least in (("iterations", 2), ("parts", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} {getattr(self, name)} must be at least {least}")
        if self.together is not None and self.together < FORGOTTEN:
            raise InputError(
                f"together {self.together} must be at least {FORGOTTEN}, after which the levels "
                "have forgotten that they met, or None"
            )

    def order(self, terms: Any) -> int:
        del terms
        return 2 + self.corrections

    def error_order(self, terms: Any) -> int:
        """The estimate is the last correction, so it is of the order below and local."""
        del terms
        return 3 if self.corrections == 0 else 2 + self.corrections

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> History:
        at = ravel_pytree(y0)[0]
        time = jnp.asarray(t0)
        levels = self.corrections + 1
        slope = self._slope(terms, t0, t1, t0, args, y0)(at)
        return History(
            count=jnp.asarray(0),
            times=jnp.stack([time, time - 1, time - 2]).astype(time.dtype),
            values=jnp.broadcast_to(at, (levels, 2, at.size)),
            slopes=jnp.broadcast_to(slope, (levels, 3, at.size)),
        )

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:
        return terms.vf(t0, y0, args)

    def global_error(self, state: History) -> Vector:
        """How wrong the solution is, about: the last level less the one before it.

        **Arguments:** `state`, from `SaveAt(t1=True, solver_state=True)`.

        It is the error of the level before, so an upper bound of the last one's where steps are
        small enough; zero, saying nothing, without corrections.

        **Raises:** `InputError` where the levels meet, as it would say what came since.
        """
        if self.together is not None:
            raise InputError(
                f"levels that meet every {self.together} steps estimate no global error: "
                "solve with DeferredBDF2(together=None)"
            )
        return state.values[-1, 0] - state.values[max(len(state.values) - 2, 0), 0]

    def _slope(self, terms: Any, t0: Any, t1: Any, at: Any, args: Any, y0: Any) -> Slope:
        """The vector field at a time, per unit of the solver's own, forward, time."""
        unravel = ravel_pytree(y0)[1]
        control, length = terms.contr(t0, t1), t1 - t0
        length = jnp.where(length == 0, 1, length)

        def slope(y: Vector) -> Vector:
            return ravel_pytree(terms.vf_prod(at, unravel(y), args, control))[0] / length

        return slope

    def step(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: Any,
        args: Any,
        solver_state: History,
        made_jump: Any,
    ) -> tuple[Any, Any, dict[str, Any], History, Any]:
        state = solver_state
        if made_jump is not False:
            fresh = self.init(terms, t0, t1, y0, args)
            state = jax.tree.map(lambda a, b: jnp.where(made_jump, a, b), fresh, state)
        unravel = ravel_pytree(y0)[1]
        needed = max(self.corrections, 1)

        def starting() -> tuple[Levels, Levels, Vector, Any]:
            y1, error = self._started(terms, t0, t1, y0, args)
            slope = self._slope(terms, t0, t1, t1, args, y0)(y1)
            levels = (self.corrections + 1, 1)
            return jnp.tile(y1, levels), jnp.tile(slope, levels), error, dfx.RESULTS.successful

        def going() -> tuple[Levels, Levels, Vector, Any]:
            return self._advance(terms, t0, t1, y0, args, state)

        values, slopes, error, result = jax.lax.cond(state.count < needed, starting, going)
        failed = result != dfx.RESULTS.successful
        after = History(
            count=state.count + 1,
            times=jnp.stack([jnp.asarray(t1), *state.times[:2]]),
            values=jnp.stack([values, state.values[:, 0]], axis=1),
            slopes=jnp.concatenate([slopes[:, None], state.slopes[:, :2]], axis=1),
        )
        if self.together is not None:
            meet = after.count % self.together == 0
            after = jax.tree.map(lambda a, b: jnp.where(meet, a, b), _together(after), after)
        length = t1 - t0
        dense = {
            "y0": y0,
            "y1": unravel(values[-1]),
            "k0": unravel(length * state.slopes[-1, 0]),
            "k1": unravel(length * slopes[-1]),
        }
        error = unravel(jnp.where(failed, jnp.inf, error))
        return dense["y1"], error, dense, after, result

    def _started(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> tuple[Vector, Vector]:
        """A first step, in parts: its value and the sum of its errors."""
        length = (t1 - t0) / self.parts

        def part(carry: tuple[Any, Any], index: Any) -> tuple[tuple[Any, Any], None]:
            y, error = carry
            begin = t0 + index * length
            y, more, _, _, _ = self.start.step(terms, begin, begin + length, y, args, None, False)
            return (y, jax.tree.map(jnp.add, error, more)), None

        indices = jnp.arange(self.parts, dtype=jnp.result_type(t0))
        (y1, error), _ = jax.lax.scan(part, (y0, jax.tree.map(jnp.zeros_like, y0)), indices)
        return ravel_pytree(y1)[0], ravel_pytree(error)[0]

    def _advance(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, state: History
    ) -> tuple[Levels, Levels, Vector, Any]:
        """All levels, from a full history: values, slopes, the last correction, the result."""
        tau = jnp.asarray(t1 - t0)
        mesh = Mesh(tau, (state.times - t1) / tau)
        slope = self._slope(terms, t0, t1, t1, args, y0)
        factors = self._factorised(terms, t0, t1, y0, args, state, mesh)
        guess = mesh.extrapolated(state.values[0])

        # As a pytree, so that derivatives see that it holds none.
        solve = jax.tree_util.Partial(_divided, factors, jax.lax.stop_gradient(mesh.lead))
        values: list[Vector] = []
        slopes: list[Vector] = []
        corrections: list[Vector] = [jnp.zeros_like(guess)]
        result = dfx.RESULTS.successful
        for level in range(self.corrections + 1):
            if level:
                earlier = state.slopes[level - 1]
                corrections.append(mesh.correction(slopes[-1], earlier, 2 + level))
            last, older = state.values[level]
            drift = mesh.lag * (last - older) - tau * corrections[-1]

            def residual(y: Vector, last: Vector = last, drift: Vector = drift) -> Vector:
                return mesh.lead * (y - last) - drift - tau * slope(y)

            start = values[-1] + (last - state.values[level - 1, 0]) if level else guess
            size = jnp.maximum(jnp.abs(last), jnp.abs(drift))
            found, outcome = root(residual, solve, start, self.finder, self.iterations, size)
            result = dfx.RESULTS.where(
                result == dfx.RESULTS.successful, dfx.RESULTS.promote(outcome), result
            )
            value, steepness = _polished(found, mesh, last, drift, slope, factors)
            values.append(value)
            slopes.append(steepness)
        change = self._estimate(mesh, slopes, corrections, state)
        error = factors.solve(tau * change) / mesh.lead
        return jnp.stack(values), jnp.stack(slopes), error, result

    def _estimate(
        self, mesh: Mesh, slopes: list[Vector], corrections: list[Vector], state: History
    ) -> Vector:
        """The last correction beyond the one before: the defect of the level below."""
        if self.corrections == 0:
            return mesh.correction(slopes[0], state.slopes[0], 3)
        return corrections[-1] - corrections[-2]

    def _factorised(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, state: History, mesh: Mesh
    ) -> Factors:
        """Factors of the matrix that all levels share, made where the last one is to be."""
        guess = jax.lax.stop_gradient(mesh.extrapolated(state.values[-1]))
        unravel = ravel_pytree(y0)[1]
        control = terms.contr(t0, t1)

        def slope(y: Vector) -> Vector:
            return ravel_pytree(terms.vf_prod(t1, unravel(y), args, control))[0]

        _, push = jax.linearize(slope, guess)
        matrix = self.jacobian.matrix(push, guess, t1, unravel(guess), args, control)
        factors = self.jacobian.factors(matrix, 1 / mesh.lead)
        return jax.tree.map(jax.lax.stop_gradient, factors)


def _together(state: History) -> History:
    """All levels at the last one's."""
    values = jnp.broadcast_to(state.values[-1], state.values.shape)
    slopes = jnp.broadcast_to(state.slopes[-1], state.slopes.shape)
    return History(state.count, state.times, values, slopes)


def _divided(factors: Factors, lead: Any, residual: Vector) -> Vector:
    return factors.solve(residual) / lead


def _polished(
    value: Vector, mesh: Mesh, last: Vector, drift: Vector, slope: Slope, factors: Factors
) -> tuple[Vector, Vector]:
    """One more iteration, for the value and for its slope.

    D v has the error of v over tau, f(v) that times the stiffness. What is taken here has neither:
    f(v) where tau is short, D v where f is stiff.
    """
    own = slope(value)
    defect = mesh.lead * (value - last) - drift - mesh.tau * own
    error = factors.solve(defect)
    return value - error / mesh.lead, own + (defect - error) / mesh.tau


def deferred_bdf(order: int, together: int | None = 20) -> DeferredBDF2:
    """BDF2 with as many corrections as an order of 2, 3 or 4 takes; see `DeferredBDF2`."""
    if order not in (2, 3, 4):
        raise InputError(f"order {order} must be 2, 3 or 4")
    return DeferredBDF2(corrections=order - 2, together=together)
