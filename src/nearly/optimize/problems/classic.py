"""Classic test functions for minimisation: sums of squares, each with its start and its minimum.

They are those of Moré, Garbow and Hillstrom, *Testing unconstrained optimization software* (ACM
Transactions on Mathematical Software 7, 1981), by their names there, with its starting points. Each
is a function from the variables to the residuals; the function to minimise is the sum of their
squares, so Gauss-Newton methods can have their Jacobian. The minima are zero where the residuals
can all vanish and otherwise the published ones, found again to rounding by the tests' own solver.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Residuals = Callable[[Float[Array, " variables"]], Float[Array, " residuals"]]


class Classic(NamedTuple):
    """A test function: its residuals, where to start, the least sum of their squares."""

    residuals: Residuals
    start: np.ndarray
    minimum: float = 0.0


def _numbers(first: int, last: int, like: Array) -> Array:
    return jnp.arange(first, last + 1).astype(like.dtype)


def _constants(values: tuple[float, ...], like: Array) -> Array:
    return jnp.asarray(values, like.dtype)


# ---- few variables


def rosenbrock(x: Array) -> Array:
    return jnp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def freudenstein_roth(x: Array) -> Array:
    return jnp.stack(
        [
            -13 + x[0] + ((5 - x[1]) * x[1] - 2) * x[1],
            -29 + x[0] + ((x[1] + 1) * x[1] - 14) * x[1],
        ]
    )


def powell_badly_scaled(x: Array) -> Array:
    return jnp.stack([1e4 * x[0] * x[1] - 1, jnp.exp(-x[0]) + jnp.exp(-x[1]) - 1.0001])


def brown_badly_scaled(x: Array) -> Array:
    return jnp.stack([x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2])


def beale(x: Array) -> Array:
    powers = x[1] ** _numbers(1, 3, x)
    return _constants((1.5, 2.25, 2.625), x) - x[0] * (1 - powers)


def jennrich_sampson(x: Array) -> Array:
    i = _numbers(1, 10, x)
    return 2 + 2 * i - (jnp.exp(i * x[0]) + jnp.exp(i * x[1]))


def helical_valley(x: Array) -> Array:
    turn = jnp.arctan2(x[1], x[0]) / (2 * jnp.pi)
    turn = jnp.where(turn < -0.25, turn + 1, turn)  # the published branch: -1/4 to 3/4 of a turn
    radius = jnp.sqrt(x[0] ** 2 + x[1] ** 2)
    return jnp.stack([10 * (x[2] - 10 * turn), 10 * (radius - 1), x[2]])


_BARD = (0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39)


def bard(x: Array) -> Array:
    u = _numbers(1, 15, x)
    v = 16 - u
    return _constants(_BARD, x) - (x[0] + u / (v * x[1] + jnp.minimum(u, v) * x[2]))


_GAUSSIAN = (0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521)


def gaussian(x: Array) -> Array:
    t = (8 - _numbers(1, 15, x)) / 2
    y = _constants((*_GAUSSIAN, 0.3989, *_GAUSSIAN[::-1]), x)
    return x[0] * jnp.exp(-x[1] * (t - x[2]) ** 2 / 2) - y


_MEYER = (
    *(34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744),
    *(8261, 7030, 6005, 5147, 4427, 3820, 3307, 2872),
)


def meyer(x: Array) -> Array:
    t = 45 + 5 * _numbers(1, 16, x)
    return x[0] * jnp.exp(x[1] / (t + x[2])) - _constants(_MEYER, x)


def gulf(x: Array) -> Array:
    t = _numbers(1, 99, x) / 100
    y = 25 + (-50 * jnp.log(t)) ** (2 / 3)
    return jnp.exp(-(jnp.abs(y - x[1]) ** x[2]) / x[0]) - t


def box(x: Array) -> Array:
    t = _numbers(1, 10, x) / 10
    return jnp.exp(-t * x[0]) - jnp.exp(-t * x[1]) - x[2] * (jnp.exp(-t) - jnp.exp(-10 * t))


def powell_singular(x: Array) -> Array:
    return jnp.stack(
        [
            x[0] + 10 * x[1],
            5**0.5 * (x[2] - x[3]),
            (x[1] - 2 * x[2]) ** 2,
            10**0.5 * (x[0] - x[3]) ** 2,
        ]
    )


def wood(x: Array) -> Array:
    return jnp.stack(
        [
            10 * (x[1] - x[0] ** 2),
            1 - x[0],
            90**0.5 * (x[3] - x[2] ** 2),
            1 - x[2],
            10**0.5 * (x[1] + x[3] - 2),
            (x[1] - x[3]) / 10**0.5,
        ]
    )


_KOWALIK = (0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246)
_KOWALIK_AT = (4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625)


def kowalik_osborne(x: Array) -> Array:
    u = _constants(_KOWALIK_AT, x)
    return _constants(_KOWALIK, x) - x[0] * u * (u + x[1]) / (u * (u + x[2]) + x[3])


def brown_dennis(x: Array) -> Array:
    t = _numbers(1, 20, x) / 5
    first = x[0] + t * x[1] - jnp.exp(t)
    second = x[2] + x[3] * jnp.sin(t) - jnp.cos(t)
    return first**2 + second**2


def biggs(x: Array) -> Array:
    t = _numbers(1, 13, x) / 10
    y = jnp.exp(-t) - 5 * jnp.exp(-10 * t) + 3 * jnp.exp(-4 * t)
    model = x[2] * jnp.exp(-t * x[0]) - x[3] * jnp.exp(-t * x[1]) + x[5] * jnp.exp(-t * x[4])
    return model - y


# ---- any number of variables


def extended_rosenbrock(x: Array) -> Array:
    return jnp.concatenate([10 * (x[1::2] - x[::2] ** 2), 1 - x[::2]])


def penalty_one(x: Array) -> Array:
    return jnp.append(1e-5**0.5 * (x - 1), jnp.sum(x**2) - 0.25)


def variably_dimensioned(x: Array) -> Array:
    moment = jnp.sum(_numbers(1, len(x), x) * (x - 1))
    return jnp.concatenate([x - 1, moment[None], moment[None] ** 2])


def trigonometric(x: Array) -> Array:
    cosines = jnp.cos(x)
    return len(x) - jnp.sum(cosines) + _numbers(1, len(x), x) * (1 - cosines) - jnp.sin(x)


def brown_almost_linear(x: Array) -> Array:
    return jnp.append(x[:-1] + jnp.sum(x) - (len(x) + 1), jnp.prod(x) - 1)


def discrete_boundary_value(x: Array) -> Array:
    step = 1 / (len(x) + 1)
    t = _numbers(1, len(x), x) * step
    padded = jnp.pad(x, 1)
    return 2 * x - padded[:-2] - padded[2:] + step**2 * (x + t + 1) ** 3 / 2


def discrete_integral_equation(x: Array) -> Array:
    step = 1 / (len(x) + 1)
    t = _numbers(1, len(x), x) * step
    cubes = (x + t + 1) ** 3
    kernel = jnp.where(t[:, None] >= t, (1 - t[:, None]) * t, t[:, None] * (1 - t))
    return x + step / 2 * kernel @ cubes


def broyden_tridiagonal(x: Array) -> Array:
    padded = jnp.pad(x, 1)
    return (3 - 2 * x) * x - padded[:-2] - 2 * padded[2:] + 1


def broyden_banded(x: Array) -> Array:
    i = jnp.arange(len(x))
    near = (i >= i[:, None] - 5) & (i <= i[:, None] + 1) & (i != i[:, None])
    return x * (2 + 5 * x**2) + 1 - near.astype(x.dtype) @ (x * (1 + x))


def chebyshev_chain(x: Array) -> Array:
    """Nesterov's chain of Chebyshev polynomials: (x1 - 1)/2 and x_i+1 - 2 x_i^2 + 1."""
    return jnp.append((x[0] - 1) / 2, x[1:] - 2 * x[:-1] ** 2 + 1)


def _start(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


def _grid(size: int) -> np.ndarray:
    t = np.arange(1, size + 1) / (size + 1)
    return t * (t - 1)


CLASSIC: dict[str, Classic] = {
    "rosenbrock": Classic(rosenbrock, _start(-1.2, 1)),
    # The global minimum is 0; from this start methods end in the local one.
    "freudenstein-roth": Classic(freudenstein_roth, _start(0.5, -2), 48.984253679240005),
    "powell-badly-scaled": Classic(powell_badly_scaled, _start(0, 1)),
    "brown-badly-scaled": Classic(brown_badly_scaled, _start(1, 1)),
    "beale": Classic(beale, _start(1, 1)),
    "jennrich-sampson": Classic(jennrich_sampson, _start(0.3, 0.4), 124.3621823556148),
    "helical-valley": Classic(helical_valley, _start(-1, 0, 0)),
    "bard": Classic(bard, _start(1, 1, 1), 8.214877306578982e-3),
    "gaussian": Classic(gaussian, _start(0.4, 1, 0), 1.1279327696188196e-8),
    "meyer": Classic(meyer, _start(0.02, 4000, 250), 87.94585517068195),
    "gulf": Classic(gulf, _start(5, 2.5, 0.15)),
    "box": Classic(box, _start(0, 10, 20)),
    "powell-singular": Classic(powell_singular, _start(3, -1, 0, 1)),
    "wood": Classic(wood, _start(-3, -1, -3, -1)),
    "kowalik-osborne": Classic(
        kowalik_osborne, _start(0.25, 0.39, 0.415, 0.39), 3.075056038492376e-4
    ),
    "brown-dennis": Classic(brown_dennis, _start(25, 5, -5, -1), 85822.20162635627),
    "biggs": Classic(biggs, _start(1, 2, 1, 1, 1, 1)),
    "penalty-one": Classic(penalty_one, np.arange(1.0, 11), 7.087651467090368e-5),
    "variably-dimensioned": Classic(variably_dimensioned, 1 - np.arange(1.0, 11) / 10),
    # 0 is reached from other starts; from this one methods end here.
    "trigonometric": Classic(trigonometric, np.full(10, 0.1), 2.7950561218790494e-5),
    "brown-almost-linear": Classic(brown_almost_linear, np.full(10, 0.5)),
    "discrete-boundary-value": Classic(discrete_boundary_value, _grid(10)),
    "discrete-integral-equation": Classic(discrete_integral_equation, _grid(10)),
    "broyden-tridiagonal": Classic(broyden_tridiagonal, np.full(10, -1.0)),
    "broyden-banded": Classic(broyden_banded, np.full(10, -1.0)),
    "rosenbrock-100": Classic(extended_rosenbrock, np.tile([-1.2, 1.0], 50)),
    "chebyshev-chain": Classic(chebyshev_chain, np.append(-1.0, np.ones(4))),
}
