"""The field's standard initial-value problems, written once for JAX and for NumPy in any precision.

A right-hand side here takes `t` and an indexable `y` and returns a sequence of numbers, by
arithmetic alone: JAX stacks them, the script that made the truths runs them in extended precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RightHandSide = Callable[[Any, Any], Sequence[Any]]


@dataclass(frozen=True)
class Case:
    """A problem whose solution is shipped.

    **Arguments:**

    - `function`: `(t, y) -> dy/dt`, a sequence of numbers. `start`: the value at time 0.
    - `times`: where the solution is known; the last is the end.
    - `absolute`: the absolute tolerance at a relative one of 1: the size below which a
      component's relative error does not matter.
    - `stiff`: whether explicit solvers are out of their depth.
    """

    function: RightHandSide
    start: tuple[float, ...]
    times: np.ndarray
    absolute: float
    stiff: bool


def lotka_volterra(t: Any, y: Any) -> Sequence[Any]:
    del t
    return 1.5 * y[0] - y[0] * y[1], -3 * y[1] + y[0] * y[1]


def henon_heiles(t: Any, y: Any) -> Sequence[Any]:
    """Positions, then velocities."""
    del t
    return y[2], y[3], -y[0] - 2 * y[0] * y[1], -y[1] - y[0] * y[0] + y[1] * y[1]


def pleiades(t: Any, y: Any) -> Sequence[Any]:
    """Seven stars in the plane: x, y, then their velocities (Hairer, Nørsett, Wanner)."""
    del t
    pulls: list[tuple[Any, Any]] = []
    for i in range(7):
        across, up = 0.0, 0.0
        for j in range(7):
            if i == j:
                continue
            dx, dy = y[j] - y[i], y[7 + j] - y[7 + i]
            square = dx * dx + dy * dy
            cube = square * square**0.5
            across, up = across + (j + 1) * dx / cube, up + (j + 1) * dy / cube
        pulls.append((across, up))
    moves = [y[14 + i] for i in range(14)]
    return [*moves, *(p[0] for p in pulls), *(p[1] for p in pulls)]


def rober(t: Any, y: Any) -> Sequence[Any]:
    """Robertson's autocatalytic reaction."""
    del t
    slow, back, fast = 0.04 * y[0], 1e4 * y[1] * y[2], 3e7 * y[1] * y[1]
    return -slow + back, slow - back - fast, fast


def hires(t: Any, y: Any) -> Sequence[Any]:
    """High irradiance response of a plant (Schäfer)."""
    del t
    bound = 280 * y[5] * y[7]
    return (
        -1.71 * y[0] + 0.43 * y[1] + 8.32 * y[2] + 0.0007,
        1.71 * y[0] - 8.75 * y[1],
        -10.03 * y[2] + 0.43 * y[3] + 0.035 * y[4],
        8.32 * y[1] + 1.71 * y[2] - 1.12 * y[3],
        -1.745 * y[4] + 0.43 * y[5] + 0.43 * y[6],
        -bound + 0.69 * y[3] + 1.71 * y[4] - 0.43 * y[5] + 0.69 * y[6],
        bound - 1.81 * y[6],
        -bound + 1.81 * y[6],
    )


def orego(t: Any, y: Any) -> Sequence[Any]:
    """The Oregonator: a chemical oscillator."""
    del t
    return (
        77.27 * (y[1] + y[0] * (1 - 8.375e-6 * y[0] - y[1])),
        (y[2] - (1 + y[0]) * y[1]) / 77.27,
        0.161 * (y[0] - y[2]),
    )


_POLLU_RATES = (
    *(0.35, 26.6, 12300.0, 8.6e-4, 8.2e-4, 15000.0, 1.3e-4, 24000.0, 16500.0, 9000.0),
    *(0.022, 12000.0, 1.88, 16300.0, 4.8e6, 3.5e-4, 0.0175, 1e8, 4.44e11, 1240.0),
    *(2.1, 5.78, 0.0474, 1780.0, 3.12),
)
# The species, counted from 1, that react in each of the 25 reactions.
_POLLU_PARTNERS = (
    *((1,), (2, 4), (5, 2), (7,), (7,), (7, 6), (9,), (9, 6), (11, 2), (11, 1)),
    *((13,), (10, 2), (14,), (1, 6), (3,), (4,), (4,), (16,), (16,), (17, 6)),
    *((19,), (19,), (1, 4), (19, 1), (20,)),
)
# For each species the reactions, counted from 1, that make it, and negative those that use it up.
_POLLU_TERMS = (
    (-1, -10, -14, -23, -24, 2, 3, 9, 11, 12, 22, 25),
    (-2, -3, -9, -12, 1, 21),
    (-15, 1, 17, 19, 22),
    (-2, -16, -17, -23, 15),
    (-3, 4, 4, 6, 7, 13, 20),
    (-6, -8, -14, -20, 3, 18, 18),
    (-4, -5, -6, 13),
    (4, 5, 6, 7),
    (-7, -8),
    (-12, 7, 9),
    (-9, -10, 8, 11),
    (9,),
    (-11, 10),
    (-13, 12),
    (14,),
    (-18, -19, 16),
    (-20,),
    (20,),
    (-21, -22, -24, 23, 25),
    (-25, 24),
)


def pollu(t: Any, y: Any) -> Sequence[Any]:
    """Air pollution: 25 reactions of 20 species (Verwer)."""
    del t
    speeds = [
        rate * math.prod(y[i - 1] for i in partners)
        for rate, partners in zip(_POLLU_RATES, _POLLU_PARTNERS, strict=True)
    ]
    return [
        sum(speeds[abs(r) - 1] if r > 0 else -speeds[abs(r) - 1] for r in terms)
        for terms in _POLLU_TERMS
    ]


def van_der_pol(t: Any, y: Any) -> Sequence[Any]:
    """With a damping of 1000: long slow arcs, and jumps within a thousandth of a period."""
    del t
    return y[1], 1000.0 * (1 - y[0] * y[0]) * y[1] - y[0]


def _even(end: float, count: int = 16) -> np.ndarray:
    return np.linspace(0, end, count + 1)[1:]


def _logarithmic(first: float, end: float, count: int = 16) -> np.ndarray:
    return np.append(np.geomspace(first, end, count)[:-1], end)


_POLLU_START = tuple(
    {2: 0.2, 4: 0.04, 7: 0.1, 8: 0.3, 9: 0.01, 17: 0.007}.get(i, 0.0) for i in range(1, 21)
)
_STARS = (
    *(3.0, 3.0, -1.0, -3.0, 2.0, -2.0, 2.0, 3.0, -3.0, 2.0, 0.0, 0.0, -4.0, 4.0),
    *(0.0, 0.0, 0.0, 0.0, 0.0, 1.75, -1.5, 0.0, 0.0, 0.0, -1.25, 1.0, 0.0, 0.0),
)

CASES: dict[str, Case] = {
    "lotka-volterra": Case(lotka_volterra, (1.0, 1.0), _even(10.0), 1.0, stiff=False),
    "henon-heiles": Case(henon_heiles, (0.0, 0.1, 0.5, 0.0), _even(50.0), 1.0, stiff=False),
    "pleiades": Case(pleiades, _STARS, _even(3.0), 1.0, stiff=False),
    "rober": Case(rober, (1.0, 0.0, 0.0), _logarithmic(1e-3, 1e5), 1e-6, stiff=True),
    "hires": Case(hires, (1.0, *[0.0] * 6, 0.0057), _logarithmic(0.1, 321.8122), 1e-4, stiff=True),
    "orego": Case(orego, (1.0, 2.0, 3.0), _even(360.0), 1e-2, stiff=True),
    "pollu": Case(pollu, _POLLU_START, _logarithmic(1e-2, 60.0), 1e-4, stiff=True),
    "van-der-pol": Case(van_der_pol, (2.0, 0.0), _even(2000.0), 1e-2, stiff=True),
}
