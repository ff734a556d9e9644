"""Following a periodic orbit in a parameter, around folds too (`continue_orbit`, `fold`).

Pseudo-arclength: the parameter is one more unknown, and one more equation asks for a step of a
given length along the tangent of the branch, so that nothing is singular where it turns back
(extremal-periodic-orbits finds where its orbits are born this way).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.dynamics.orbits import Closing, Orbit
from nearly.dynamics.sum_of_squares import PolynomialSystem


def continue_orbit(
    system: PolynomialSystem,
    orbit: Orbit,
    *,
    step: float,
    count: int,
    index: int = 0,
    closed: float = 1e-8,
    smallest: float = 1e-6,
) -> list[Orbit]:
    """Orbits along the branch of a given one, as a parameter changes.

    **Arguments:**

    - `step`: of the arc, in half widths of the box, powers of e of the period, and parts of the
      parameter's present value; its sign is that in which the parameter sets out. It is halved
      where Newton's method fails, and grows again where it does not.
    - `count`: of steps. `index`: of the parameter.
    - `closed`: the residual at which a point is taken. `smallest`: the step at which the branch is
      given up.

    **Returns:** `count + 1` orbits, the given one first; fewer if the branch was given up.

    Raises `InputError` for a parameter that is not there, is 0, or a step of 0.

    **Cost:** for each, some five solutions with as many tangents as there are components.
    """
    if not 0 <= index < len(system.parameters):
        raise InputError(
            f"index {index} must be that of one of the {len(system.parameters)} parameters"
        )
    unit = float(orbit.parameters[index])
    if unit == 0 or step == 0:
        raise InputError(f"the parameter {unit} and the step {step} must differ from 0")
    branch, length = [orbit], abs(step)
    point = _unknowns(system, orbit, index, unit)
    tangent = np.zeros(point.size)
    tangent[-1] = np.sign(step) * np.sign(unit)
    while len(branch) <= count and length >= smallest:
        last = branch[-1]
        tangent = np.asarray(_tangent(system, last, point, tangent, index, unit))
        guess = point + length * tangent
        found, reached = _corrected(system, last, guess, tangent, index, unit)
        new = np.asarray(found)
        moved = np.linalg.norm(new - point)
        # A jump to another branch is a failure too.
        if bool(reached.residual <= closed) and moved < 2 * length:
            branch.append(reached)
            point, length = new, min(1.5 * length, abs(step))
        else:
            length /= 2
    return branch


def fold(branch: Sequence[Orbit], index: int = 0) -> float:
    """The parameter at which a branch turns back: the extreme of a parabola through the three
    orbits about it, over the arc.

    Raises `InputError` if the parameter only grows, or only falls, along the branch.
    """
    values = np.array([float(orbit.parameters[index]) for orbit in branch])
    turns = np.flatnonzero(np.diff(np.sign(np.diff(values)))) + 1
    if not turns.size:
        raise InputError("the branch does not turn back: continue it further")
    middle = int(turns[0])
    here = slice(middle - 1, middle + 2)
    starts = np.array([np.append(o.start, np.log(o.period)) for o in branch[here]])
    arcs = np.cumsum([0.0, *np.linalg.norm(np.diff(starts, axis=0), axis=1)])
    a, b, c = np.polyfit(arcs - arcs[1], values[here], 2)
    return float(c - b**2 / (4 * a))


def _unknowns(system: PolynomialSystem, orbit: Orbit, index: int, unit: float) -> np.ndarray:
    closing = Closing(system, orbit.start, orbit.period, orbit.parameters)
    inner = closing.unknowns(orbit.start, orbit.period)
    return np.append(np.asarray(inner), float(orbit.parameters[index]) / unit)


def _residual(
    system: PolynomialSystem, last: Orbit, unknowns: Any, index: int, unit: Any
) -> Float[Array, " equations"]:
    parameters = _parameters(last, unknowns, index, unit)
    return Closing(system, last.start, last.period, last.parameters)(unknowns[:-1], parameters)


def _parameters(last: Orbit, unknowns: Any, index: int, unit: Any) -> tuple[Any, ...]:
    return tuple(unknowns[-1] * unit if i == index else p for i, p in enumerate(last.parameters))


@eqx.filter_jit
def _tangent(
    system: PolynomialSystem, last: Orbit, point: Any, before: Any, index: int, unit: Any
) -> Float[Array, " unknowns"]:
    """The direction in which the equations stay solved, the way it was gone before."""
    jacobian = jax.jacfwd(lambda x: _residual(system, last, x, index, unit))(jnp.asarray(point))
    direction = jnp.linalg.svd(jacobian, full_matrices=True)[2][-1]
    return direction * jnp.where(jnp.dot(direction, before) < 0, -1, 1)


@eqx.filter_jit
def _corrected(
    system: PolynomialSystem, last: Orbit, guess: Any, tangent: Any, index: int, unit: Any
) -> tuple[Float[Array, " unknowns"], Orbit]:
    """Newton's method from the predicted point, across the tangent."""

    def equations(x: Any) -> Any:
        across = jnp.dot(jnp.asarray(tangent), x - jnp.asarray(guess))
        return jnp.append(_residual(system, last, x, index, unit), across)

    def improve(_: Any, x: Any) -> Any:
        return x - jnp.linalg.solve(jax.jacfwd(equations)(x), equations(x))

    x = jax.lax.fori_loop(0, 6, improve, jnp.asarray(guess))
    closing = Closing(system, last.start, last.period, last.parameters)
    return x, closing.orbit(x[:-1], _parameters(last, x, index, unit))
