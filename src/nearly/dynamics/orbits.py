"""Periodic orbits, stable or not: found where a bound's slack is small, closed by Newton's method
(extremal-periodic-orbits).

    bound = bound_average(system, degree=6)
    orbits = extremal_orbits(bound, key, length=10.0, shortest=0.5)
    orbits[0].average, bound.value            # they enclose the largest average there is

The search as the paper has it: the slack `S = U - phi - f . grad V` of a good bound is small where
solutions of the largest average are, so it is minimised from many starts; from each minimum the
equation is followed, the nearest returns taken, and closed by Newton's method on
`y(T; y0) - y0 = 0`, the derivative by the variational equation (forward mode through diffrax).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, Float

from nearly.core.errors import InputError, PrecisionError
from nearly.dynamics.sum_of_squares import Bound, PolynomialSystem

Point = Float[Array, " size"]
FAR = 4.0


class Orbit(eqx.Module):
    """A closed curve, if `residual` says so.

    **Arguments:**

    - `start`: a point on it. `period`: its time. `parameters`: those of the equation.
    - `residual`: the largest distance between the start and where it leads, in half widths of the
      system's box.
    - `average`: of the observable along it.
    """

    start: Point
    period: Float[Array, ""]
    parameters: tuple[Any, ...]
    residual: Float[Array, ""]
    average: Float[Array, ""]


def follow(
    system: PolynomialSystem,
    start: Point,
    duration: Any,
    *,
    parameters: tuple[Any, ...] | None = None,
    saveat: dfx.SaveAt | None = None,
) -> dfx.Solution:
    """Solve the system from a start, by Dopri8 at a tolerance of some hundred rounding errors.

    The state is a pair: y, and the observable's integral over time in parts of the duration, which
    runs from 0 to 1.
    `duration` and `parameters` may be traced, derivatives go forward.
    """
    values = _numbers(system.parameters if parameters is None else parameters)
    dtype = start.dtype

    def speed(t: Any, state: Any, args: Any) -> Any:
        y, _ = state
        rates = jnp.stack([jnp.asarray(v, dtype) for v in system.field(y, args)])
        return duration * rates, jnp.asarray(system.observable(y), dtype)

    tolerance = 200 * float(jnp.finfo(dtype).eps)
    # The integral has no say in the steps: y has.
    norm: Any = lambda error: optx.rms_norm(error[0])  # noqa: E731
    return dfx.diffeqsolve(
        dfx.ODETerm(cast("Any", speed)),
        dfx.Dopri8(),
        *(0.0, 1.0, None, (start, jnp.zeros((), dtype)), values),
        saveat=saveat or dfx.SaveAt(t1=True),
        stepsize_controller=dfx.PIDController(
            rtol=tolerance, atol=tolerance * min(map(float, system.scale)), norm=norm
        ),
        adjoint=dfx.ForwardMode(),
        max_steps=4096,
        throw=False,
    )


def _numbers(parameters: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(p if eqx.is_array(p) else float(p) for p in parameters)


def _end(system: PolynomialSystem, start: Point, duration: Any, parameters: Any) -> tuple[Any, Any]:
    """Where a start leads, and the average on the way."""
    solution = follow(system, start, duration, parameters=parameters)
    (y, integral) = cast("Any", solution.ys)
    return y[-1], integral[-1]


def _speed(system: PolynomialSystem, y: Point, parameters: Any) -> Point:
    return jnp.stack([jnp.asarray(v, y.dtype) for v in system.field(y, _numbers(parameters))])


# ---- Newton's method


def shoot(
    system: PolynomialSystem,
    start: Point,
    period: Any,
    *,
    root_finder: Any = None,
    most: int = 20,
) -> Orbit:
    """The periodic orbit near a guess, by single shooting; can be jitted and vmapped.

    **Arguments:**

    - `start`, `period`: the guess. The start moves across the flow only (the phase condition).
    - `root_finder`: any optimistix root finder or least-squares solver; by default its Newton.
    - `most`: iterations.

    **Returns:** an `Orbit`; look at its `residual`, since not every guess leads to one, and at its
    period and speed: a point where the field vanishes is closed too.

    **Cost:** for each iteration, one solution with as many tangents as components, and one more.
    """
    dtype = start.dtype
    close = 1e-11 if dtype == jnp.float64 else 1e-5
    finder = optx.Newton(rtol=close, atol=close) if root_finder is None else root_finder
    parameters = tuple(jnp.asarray(p, dtype) for p in _numbers(system.parameters))
    period = jnp.asarray(period, dtype)
    closing = Closing(system, start, period, parameters)
    guess = closing.unknowns(start, period)
    found = optx.root_find(closing, finder, guess, parameters, max_steps=most, throw=False)
    return closing.orbit(found.value, parameters)


class Closing(eqx.Module):
    """What has to vanish: the distance that a period leaves, and the shift along the flow.

    Not a number where Newton's method has lost its way: at a period `FAR` times longer or shorter
    than the guess, or as many boxes away from it. To solve there would take for ever.
    """

    system: PolynomialSystem = eqx.field(static=True)
    reference: Point
    period: Float[Array, ""]
    around: tuple[Any, ...]  # the parameters at the reference

    def unknowns(self, start: Point, period: Any) -> Float[Array, " unknowns"]:
        """In half widths of the box; the period by its logarithm, which keeps it positive."""
        return jnp.append(start / self._scale(start.dtype), jnp.log(period))

    def _scale(self, dtype: Any) -> Array:
        return jnp.asarray([float(s) for s in self.system.scale], dtype)

    def split(self, unknowns: Float[Array, " unknowns"]) -> tuple[Point, Any]:
        return unknowns[:-1] * self._scale(unknowns.dtype), jnp.exp(unknowns[-1])

    def __call__(self, unknowns: Float[Array, " unknowns"], parameters: Any) -> Array:
        guess = self.unknowns(self.reference, self.period)
        away = jnp.abs(unknowns - guess) / jnp.full_like(guess, FAR).at[-1].set(math.log(FAR))
        near = jnp.all(away <= 1)  # false for NaNs
        start, period = self.split(jnp.where(near, unknowns, guess))
        end, _ = _end(self.system, start, period, parameters)
        scale = self._scale(start.dtype)
        along = _speed(self.system, self.reference, self.around) / scale
        shift = jnp.dot(along, (start - self.reference) / scale) / jnp.linalg.norm(along)
        return jnp.where(near, jnp.append((end - start) / scale, shift), jnp.nan)

    def orbit(self, unknowns: Float[Array, " unknowns"], parameters: Any) -> Orbit:
        found = jnp.all(jnp.isfinite(unknowns))
        guess = self.unknowns(self.reference, self.period)
        start, period = self.split(jnp.where(found, unknowns, guess))
        end, average = _end(self.system, start, period, parameters)
        residual = jnp.max(jnp.abs(end - start) / self._scale(start.dtype))
        residual = jnp.where(found, residual, jnp.inf)
        return Orbit(start, period, tuple(parameters), residual, average)


def multipliers(system: PolynomialSystem, orbit: Orbit) -> np.ndarray:
    """The Floquet multipliers of an orbit, largest first; one of them is 1.

    An orbit is unstable if one lies outside of the unit circle.
    """

    def end(start: Any) -> Any:
        return _end(system, start, orbit.period, orbit.parameters)[0]

    monodromy = np.asarray(jax.jit(jax.jacfwd(end))(orbit.start), np.float64)
    found = np.linalg.eigvals(monodromy)
    return found[np.argsort(-np.abs(found))]


# ---- the search


def near_optimal(
    bound: Bound, key: Any, *, count: int, levels: tuple[float, float] = (1e-4, 0.1)
) -> tuple[Float[Array, "count size"], Float[Array, " count"]]:
    """Points where the slack of a bound is small, and the slack there, over the bound.

    By BFGS from uniform draws in the box, each until the slack is below a level of its own, drawn
    between `levels` (parts of the bound, logarithmically): the least slack itself is one point and
    its mirror images, while what is wanted are points along the orbit. By Markov's inequality an
    orbit whose average misses the bound by a part d spends a part of at most d / l of its time
    where the slack exceeds l.
    """
    system = bound.program.system
    centre, scale = (jnp.asarray(_numbers(x), jnp.float64) for x in (system.centre, system.scale))
    start_key, level_key = jax.random.split(key)
    starts = jax.random.uniform(
        start_key, (count, system.size), jnp.float64, centre - scale, centre + scale
    )
    low, high = levels
    drawn = jnp.exp(
        jax.random.uniform(level_key, (count,), jnp.float64, math.log(low), math.log(high))
    )
    size = abs(bound.value) or bound.magnitude
    slack = eqx.tree_at(lambda s: s.coefficients, bound.slack, bound.slack.coefficients / size)
    return _descended(slack, starts, drawn)


@eqx.filter_jit
def _descended(slack: Any, starts: Any, levels: Any) -> tuple[Any, Any]:
    minimiser: Any = optx.BFGS(rtol=1e-6, atol=1e-6)

    def descend(start: Any, level: Any) -> Any:
        found = optx.minimise(
            lambda y, _: jnp.maximum(slack(y) / level - 1, 0) ** 2,
            minimiser,
            start,
            max_steps=200,
            throw=False,
        )
        return found.value, slack(found.value)

    return jax.vmap(descend)(starts, levels)


def nearest_returns(
    system: PolynomialSystem, start: Point, length: float, shortest: float, samples: int = 512
) -> tuple[Float[Array, "3 size"], Float[Array, " 3"], Float[Array, " 3"], Float[Array, " 3"]]:
    """Where a solution comes nearest to where it was at least `shortest` before.

    What is least is the distance over the length of the way between: 1 on a straight way, such as
    one that ends in a fixed point, 0 on a closed one. Looked for in the whole of a length, in its
    first half and in its first quarter: a solution soon leaves an unstable orbit.

    **Returns:** the earlier points, the times between, the ratios (infinite where `shortest` is
    longer than what is looked at), and the observable's averages on the way.
    """
    dtype = start.dtype
    times = jnp.linspace(0, 1, samples, dtype=dtype)
    solution = follow(system, start, length, saveat=dfx.SaveAt(ts=times))
    points, integrals = cast("Any", solution.ys)
    scaled = points / jnp.asarray([float(s) for s in system.scale], dtype)
    chords = jnp.linalg.norm(scaled[:, None] - scaled[None, :], axis=-1)
    arcs = jnp.cumsum(jnp.append(jnp.zeros(1, dtype), jnp.diagonal(chords, 1)))
    lag = length * (times[None, :] - times[:, None])
    late = lag >= shortest
    ratios = jnp.where(late, chords / jnp.where(late, arcs[None, :] - arcs[:, None], 1), jnp.inf)

    def within(part: Any) -> Any:
        here = jnp.where(times[None, :] <= part, ratios, jnp.inf)
        first, second = jnp.unravel_index(jnp.argmin(here), here.shape)
        period = jnp.maximum(lag[first, second], shortest)
        average = length * (integrals[second] - integrals[first]) / period
        return points[first], period, here[first, second], average

    return jax.vmap(within)(jnp.asarray([1.0, 0.5, 0.25], dtype))


def extremal_orbits(
    bound: Bound,
    key: Any,
    *,
    length: float,
    shortest: float,
    count: int = 16,
    levels: tuple[float, float] = (1e-4, 0.1),
    closed: float = 1e-8,
    root_finder: Any = None,
) -> list[Orbit]:
    """Orbits near where the slack of a bound is least: those of the largest average first.

    **Arguments:**

    - `bound`: of the system. `key`: draws the starts.
    - `length`: of the solutions in which a return is looked for, a few periods; `shortest`: the
      least period.
    - `count`: of starts, `levels`: of slack at which they are taken, as in `near_optimal`.
      `closed`: the residual at which an orbit counts as one.
    - `root_finder`: as in `shoot`, but by default Levenberg and Marquardt's method, which finds its
      way from guesses that the paper's Newton method does not.

    **Returns:** the orbits found, each once; none if no start led to one.

    Raises `InputError` unless 0 < shortest < length, and `PrecisionError` in float32.

    **Cost:** that of `count` shootings, side by side: from the returns that are nearest and of the
    largest average.
    """
    if not 0 < shortest < length:
        raise InputError(f"the shortest period {shortest} must lie between 0 and length {length}")
    if not jax.config.read("jax_enable_x64"):
        raise PrecisionError("orbits are searched in float64: call within jax.enable_x64(True)")
    system = bound.program.system
    points, _ = near_optimal(bound, key, count=count, levels=levels)
    finder = optx.LevenbergMarquardt(rtol=1e-11, atol=1e-11) if root_finder is None else root_finder
    found = _shot(system, points, length, shortest, finder)
    orbits = [jax.tree.map(lambda leaf, i=i: leaf[i], found) for i in range(count)]
    good = [o for o in orbits if _is_orbit(system, o, closed, shortest / 2)]
    good.sort(key=lambda o: -float(o.average))
    return _different(good)


@eqx.filter_jit
def _shot(
    system: PolynomialSystem, points: Any, length: float, shortest: float, root_finder: Any
) -> Orbit:
    returns = jax.vmap(lambda point: nearest_returns(system, point, length, shortest))(points)
    starts, periods, ratios, averages = (leaf.reshape(-1, *leaf.shape[2:]) for leaf in returns)
    # Those both near and of a large average: the nearest alone are the longest ways.
    best = jnp.argsort(_rank(ratios) + _rank(-averages))[: len(points)]
    return jax.vmap(lambda y, t: shoot(system, y, t, root_finder=root_finder))(
        starts[best], periods[best]
    )


def _rank(values: Float[Array, " n"]) -> Array:
    return jnp.argsort(jnp.argsort(values))


def _is_orbit(system: PolynomialSystem, orbit: Orbit, closed: float, shortest: float) -> bool:
    scale = jnp.asarray([float(s) for s in system.scale], orbit.start.dtype)
    moved = jnp.linalg.norm(_speed(system, orbit.start, orbit.parameters) / scale) * orbit.period
    return bool((orbit.residual <= closed) & (orbit.period >= shortest) & (moved >= 1e-3))


def _different(orbits: Sequence[Orbit]) -> list[Orbit]:
    """Of those with one average the shortest: the others are its mirror images, or more rounds."""
    kept: list[Orbit] = []
    for orbit in orbits:
        average = float(orbit.average)
        if not kept or not math.isclose(float(kept[-1].average), average, rel_tol=1e-6):
            kept.append(orbit)
        elif float(orbit.period) < (1 - 1e-6) * float(kept[-1].period):
            kept[-1] = orbit
    return kept
