"""`TimeAverageBound`: bound the largest long-time average of an observable from above."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, ClassVar

import equinox as eqx

from nearly.core.errors import InputError, NotProven
from nearly.core.problem import Host, Problem
from nearly.core.run import Certificate
from nearly.dynamics.sum_of_squares import PolynomialSystem

UNKNOWNS = "unknowns"


class Prepared(eqx.Module):
    """A bound to be computed: `solve()` gives a `Bound` (or a number), `size` is its price."""

    solve: Host
    size: int
    degree: int


class TimeAverageBound(Problem):
    """Show that no solution has an average above some U; the dial is the degree.

    A method (protocol `time-average-bounds`) is a function `(system, degree)` that prepares a
    program: something with `solve()`, which gives the bound (a number, or something with a
    `value`), and `size`, its number of unknowns. Preparing is set-up, solving the use.

    The error is the `gap`, `U / best - 1`, to the largest average that is known of an orbit; a
    bound below that is no bound, its gap infinite. With `nearly within` the bound is proven, by a
    sum of squares in rational arithmetic, where the system has rational coefficients.

    **Arguments:**

    - `system`: a `PolynomialSystem`. `best`: the largest known average, positive, and its relative
      `uncertainty`. `degrees`: the dials.
    """

    system: PolynomialSystem
    best: float
    uncertainty: float = 1e-12
    degrees: tuple[int, ...] = (4, 6, 8)
    name: str = "time-average"
    dtype: str = "float64"
    error_name: ClassVar[str] = "gap"
    work_name: ClassVar[str] = UNKNOWNS
    protocol: ClassVar[str] = "time-average-bounds"

    def __check_init__(self) -> None:
        if self.dtype != "float64":
            raise InputError(f"dtype {self.dtype!r} must be float64: no bound survives float32")
        if not 0 < self.best < math.inf:
            raise InputError(f"the best average {self.best} must be positive: add a constant to it")

    def dials(self, method: Any) -> Sequence[int]:
        return self.degrees

    def random(self, method: Any) -> bool:
        return False

    def floor(self) -> float:
        return self.uncertainty

    def build(self, method: Any, dial: Any, *, key: Any) -> Prepared:
        if not callable(method):
            raise InputError(
                f"a {type(method).__name__} bounds nothing: give a function (system, degree)"
            )
        program: Any = method(self.system, int(dial))
        return Prepared(Host(program.solve), program.size, int(dial))

    def apply(self, standin: Any, *, key: Any) -> Any:
        return standin.solve()

    def errors(self, value: Any) -> Mapping[str, float]:
        found = float(getattr(value, "value", value))
        gap = found / self.best - 1
        return {"gap": gap if gap >= -self.uncertainty else math.inf}

    def work(self, standin: Any) -> Mapping[str, float]:
        return {UNKNOWNS: standin.size}

    def certify(self, standin: Any, tolerance: float, progress: Any = None) -> Certificate:
        """A proof of a bound within the tolerance, if there is one at this degree."""
        from nearly.dynamics.rational_proof import prove_bound

        value = Fraction(self.best) * (1 + Fraction(tolerance))
        measured = self.errors(standin.solve())["gap"]
        try:
            proven = prove_bound(self.system, standin.degree, value=value)
        except NotProven as reason:
            return Certificate("MEASURED", measured, f"not proven: {reason}")
        gap = float(proven.value / Fraction(self.best) - 1)
        text = f"no average exceeds {float(proven.value):.8g}: a sum of squares in rationals"
        return Certificate("PROVEN", gap, text)


# ---- instances


def lorenz_field(y: Any, parameters: Any) -> Sequence[Any]:
    """Lorenz's equations; the parameters are the Prandtl and Rayleigh numbers and the aspect."""
    prandtl, rayleigh, aspect = parameters
    return (
        prandtl * (y[1] - y[0]),
        rayleigh * y[0] - y[1] - y[0] * y[2],
        y[0] * y[1] - aspect * y[2],
    )


def fourth_power_of_height(y: Any) -> Any:
    """z^4, of Lorenz's variables."""
    return y[2] ** 4


LORENZ = PolynomialSystem(
    lorenz_field,
    fourth_power_of_height,
    (10, 28, Fraction(8, 3)),
    centre=(0, 0, 25),
    scale=(10, 12, 12),  # a tight box: the last digits depend on it
    name="lorenz-z4",
)

ALONG, ACROSS = 1 / 2, 1.0  # wave numbers of a domain 4 pi long and 2 pi wide
WALL = math.pi / 2  # and of the forcing


def shear_flow_field(a: Any, parameters: Any) -> Sequence[Any]:
    """Nine modes of a sinusoidally forced shear flow (Moehlis, Faisst, Eckhardt 2004), in a domain
    of 4 pi by 2 pi; the parameter is the Reynolds number. a1 is the mean flow, 1 if laminar."""
    al, be, ga = ALONG, WALL, ACROSS
    kag, kbg = math.hypot(al, ga), math.hypot(be, ga)
    kabg = math.hypot(al, be, ga)
    s6, s32 = math.sqrt(6), math.sqrt(1.5)
    mixed = al * be * ga
    slow = 1 / parameters[0]
    a1, a2, a3, a4, a5, a6, a7, a8, a9 = (a[i] for i in range(9))
    return (
        be**2 * slow * (1 - a1)
        - s32 * be * ga / kabg * (a6 * a8)
        + s32 * be * ga / kbg * (a2 * a3),
        -(4 * be**2 / 3 + ga**2) * slow * a2
        + 10 / (3 * s6) * ga**2 / kag * (a4 * a6)
        - ga**2 / (s6 * kag) * (a5 * a7)
        - mixed / (s6 * kag * kabg) * (a5 * a8)
        - s32 * be * ga / kbg * (a1 * a3 + a3 * a9),
        -(be**2 + ga**2) * slow * a3
        + 2 / s6 * mixed / (kag * kbg) * (a4 * a7 + a5 * a6)
        + (be**2 * (3 * al**2 + ga**2) - 3 * ga**2 * (al**2 + ga**2))
        / (s6 * kag * kbg * kabg)
        * (a4 * a8),
        -(3 * al**2 + 4 * be**2) / 3 * slow * a4
        - al / s6 * (a1 * a5 + a5 * a9)
        - 10 / (3 * s6) * al**2 / kag * (a2 * a6)
        - s32 * mixed / (kag * kbg) * (a3 * a7)
        - s32 * al**2 * be**2 / (kag * kbg * kabg) * (a3 * a8),
        -(al**2 + be**2) * slow * a5
        + al / s6 * (a1 * a4 + a4 * a9)
        + al**2 / (s6 * kag) * (a2 * a7)
        - mixed / (s6 * kag * kabg) * (a2 * a8)
        + 2 / s6 * mixed / (kag * kbg) * (a3 * a6),
        -(3 * al**2 + 4 * be**2 + 3 * ga**2) / 3 * slow * a6
        + al / s6 * (a1 * a7 + a7 * a9)
        + s32 * be * ga / kabg * (a1 * a8 + a8 * a9)
        + 10 / (3 * s6) * (al**2 - ga**2) / kag * (a2 * a4)
        - 4 / s6 * mixed / (kag * kbg) * (a3 * a5),
        -(al**2 + be**2 + ga**2) * slow * a7
        - al / s6 * (a1 * a6 + a6 * a9)
        + (ga**2 - al**2) / (s6 * kag) * (a2 * a5)
        + mixed / (s6 * kag * kbg) * (a3 * a4),
        -(al**2 + be**2 + ga**2) * slow * a8
        + 2 / s6 * mixed / (kag * kabg) * (a2 * a5)
        + ga**2 * (3 * al**2 - be**2 + 3 * ga**2) / (s6 * kag * kbg * kabg) * (a3 * a4),
        -9 * be**2 * slow * a9 + s32 * be * ga / kbg * (a2 * a3) - s32 * be * ga / kabg * (a6 * a8),
    )


def perturbation_energy(a: Any) -> Any:
    """The squared distance from the laminar state."""
    total = (1 - a[0]) ** 2
    for i in range(1, 9):
        total = total + a[i] ** 2
    return total


def shear_flow_system(reynolds: float = 100.0) -> PolynomialSystem:
    """The nine-mode shear flow and its perturbation energy, at a Reynolds number."""
    if not reynolds > 0:
        raise InputError(f"the Reynolds number {reynolds} must be positive")
    return PolynomialSystem(
        shear_flow_field,
        perturbation_energy,
        (reynolds,),
        centre=(0.5, *[0.0] * 8),
        scale=(0.5,) * 9,
        name="moehlis-faisst-eckhardt",
    )


def lorenz_z4() -> TimeAverageBound:
    """The mean of z^4 over solutions of Lorenz's equations; largest on the shortest orbit."""
    return TimeAverageBound(system=LORENZ, best=592827.338, uncertainty=1e-9, name=LORENZ.name)


# A point on the orbit of the largest perturbation energy known at a Reynolds number of 100, and its
# period: found by `extremal_orbits` from the bound of degree 4; `shoot` closes it again.
SHEAR_FLOW_ORBIT = (
    (
        *(0.3247751627852698, 0.04822019529754003, 0.01244098909331237),
        *(0.06618184840356996, -0.10192509384713778, -0.2730217640464021),
        *(-0.06702204400465615, -0.08566464207627457, -0.08229908725136856),
    ),
    75.15267464228832,
)


def shear_flow() -> TimeAverageBound:
    """The mean perturbation energy of the nine-mode shear flow at a Reynolds number of 100."""
    system = shear_flow_system()
    return TimeAverageBound(
        system=system,
        best=0.5882907445727309,
        uncertainty=1e-9,
        degrees=(2, 4),
        name=system.name,
    )
