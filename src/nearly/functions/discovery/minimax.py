"""`minimax`: the best constants of any program structure, in the largest error on the domain.

Damped Gauss-Newton from each start, then Remez's exchange: a reference, Newton steps until the
error is level there, a new reference. How it differs from the exchange for polynomials and
quotients (`nearly.functions.remez`): a composed program's derivatives need not form a Chebyshev
system, so neither the number of alternations nor their signs are known. A linear program finds the
reference and its signs among the extrema (in an orthonormal basis of the derivatives, so that
double precision suffices to choose), and Newton's method in extended precision solves on it.
Redundant constants stay where they are: a numerical rank finds them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from flint import arb, arb_mat, ctx
from scipy.optimize import linprog

from nearly.core.errors import InputError
from nearly.functions.balls import exact, to_fraction
from nearly.functions.discovery import kernels
from nearly.functions.discovery.extended import (
    LARGEST,
    Curve,
    Sample,
    damped_step,
    independent,
    largest,
    least_squares,
    moved,
    sizes,
)
from nearly.functions.discovery.tape import Tape
from nearly.functions.error_curve import peaks
from nearly.functions.formats import exponent
from nearly.functions.function import Function
from nearly.functions.levelled import Point
from nearly.functions.polynomial import significant
from nearly.functions.program import Program
from nearly.functions.target import Piece

PRECISIONS = (512, 1024, 2048)
LEVEL = 1e-7  # how nearly the extrema must agree, relatively
EXCHANGES = 40
TRIED = 4  # starts from which the exchange is tried until one levels
NEWTON_STEPS = 40
HALVINGS = 12
NEARLY = Fraction(1, 2**40)  # a constant so near to a simple number is meant to be this
DENSITY = 12  # points of the grid for each constant
SPARE = 1e-10  # what rounding the constants may add to the error, relatively

Start = Sequence[Fraction | int | float]


@dataclass(frozen=True)
class Fitted:
    """A program with its best constants.

    **Arguments:**

    - `program`: the structure that was given, with new constants (exact decimals or fractions).
    - `error`: the largest error found, on a search for every extremum: not a proof, see `prove`.
    - `levelled`: whether the error reaches that size, to `LEVEL`, on a whole reference, which is
      what the optimum needs; if not, the constants are the best that were met.
    - `reference`: the points of the domain where it does, ascending.
    - `rank`: how many of the constants count; the others can be had from these.
    """

    program: Program
    error: float
    levelled: bool
    reference: tuple[Fraction, ...]
    rank: int


def minimax(
    program: Program,
    function: Function,
    *,
    starts: Sequence[Start] = (),
    digits: int | None = None,
) -> Fitted:
    """Find the constants with which a program's largest error is smallest.

    **Arguments:**

    - `program`: over the reals, of any structure; all its constants are free, and those it has are
      the first start.
    - `function`: what it approximates; on a bounded domain, in the relative or absolute error. At
      an end where the program has a removable singularity (x + d/x at 0) the limit counts.
    - `starts`: further starts, each a value for each constant in the order of `program.constants`.
    - `digits`: significant decimal digits of the constants; by default as many as leave the error
      within `SPARE` of what it is.

    **Returns:** a `Fitted`. The optimum is a local one: another start may lead to a better.

    **Raises:** `InputError` for a start of the wrong length, for an error in ULP, for `abs` or a
    machine format, and where no start gives the program a finite error all over the domain.

    Cost: 10 to 300 ms for up to ten constants; grows with their cube.

    Paper: `autonumerics-zero`, whose CMA-ES it stands in for: it reaches the optimum, not its
    neighbourhood, and errors far below 2^-53.
    """
    candidates = [list(program.constants.values()), *(list(start) for start in starts)]
    _check(program, candidates)
    exact_starts = [[Fraction(value) for value in start] for start in candidates]
    screened = [*exact_starts, *_screened(program, function, exact_starts)]
    for bits in PRECISIONS[:-1]:
        with ctx.workprec(bits):
            found = _fitted(Curve(function, program), screened)
            if found.height > Fraction(1, 2 ** (bits // 6)):
                return _finished(program, found, digits)
    with ctx.workprec(PRECISIONS[-1]):
        return _finished(program, _fitted(Curve(function, program), screened), digits)


def _check(program: Program, candidates: Sequence[Start]) -> None:
    names = list(program.constants)
    for start in candidates:
        if len(start) != len(names):
            raise InputError(
                f"a start of {len(start)} values for the {len(names)} constants "
                f"{', '.join(names)}: give one for each, in this order"
            )
        for name, value in zip(names, start, strict=True):
            if not abs(value) < LARGEST:  # nor a NaN
                raise InputError(f"{name} starts at {value}: give a number below {LARGEST:.0e}")


def _screened(
    program: Program, function: Function, starts: Sequence[Sequence[Fraction]]
) -> list[list[Fraction]]:
    """What float64 makes of each start: cheap, and near enough for extended precision to end it."""
    tape = Tape.from_program(program)
    samples = kernels.target(function, points=max(16, 4 * tape.constants.size))
    found: list[list[Fraction]] = []
    for start in starts if tape.constants.size else ():
        error, constants = kernels.fit(
            tape.operations,
            tape.left,
            tape.right,
            np.array([float(value) for value in start]),
            samples,
            math.inf,
            100,
        )
        if error < math.inf:
            found.append([Fraction(value) for value in constants.tolist()])
    return found


class _Found(NamedTuple):
    """The best constants met, and how large the error and how level it is with them."""

    constants: list[arb]
    height: Fraction
    levelled: bool
    reference: list[arb]
    active: list[int]
    sensitivity: list[arb]  # by constant: the largest derivative of the error


def _fitted(curve: Curve, starts: Sequence[Sequence[Fraction]]) -> _Found:
    """The exchange from the best start that leads to no pole; if it fails, from the next ones."""
    samples = curve.grid(max(16, 4 * len(starts[0])))
    best: _Found | None = None
    for constants in _ranked(curve, samples, starts):
        constants, free = _pinned(curve, constants)
        rows = arb_mat([curve.gradient(constants, sample)[1] for sample in samples])
        found = _exchanged(curve, constants, independent(rows, free, ctx.prec // 5))
        if curve.has_pole(found.constants, samples):
            continue
        if best is None or found.height < best.height:
            best = found
        if best.levelled:
            break
    if best is None:
        raise InputError(
            f"the program has no finite error on {curve.function} from any start: give starts "
            "without a pole on the domain"
        )
    return best


def _ranked(
    curve: Curve, samples: Sequence[Sample], starts: Sequence[Sequence[Fraction]]
) -> list[list[arb]]:
    """The starts and what least squares makes of them, by their errors; at most `TRIED`."""
    everything = range(len(starts[0]))
    reached: list[tuple[float, list[arb]]] = []
    for start in starts:
        raw = [exact(value) for value in start]
        constants = least_squares(curve, samples, raw, everything)
        constants, free = _pinned(curve, constants)
        if len(free) < len(everything):
            constants = least_squares(curve, samples, constants, free)
        for candidate in (constants, raw):
            height = largest([curve.error(candidate, sample) for sample in samples])
            if height.is_finite() and not curve.has_pole(candidate, samples):
                reached.append((float(height), candidate))
    return [constants for _, constants in sorted(reached, key=lambda each: each[0])[:TRIED]]


def _pinned(curve: Curve, constants: list[arb]) -> tuple[list[arb], list[int]]:
    """Constants that are all but a simple number made so, and the indices of the others.

    A relative error is finite at a zero of the function only if the program is exactly zero there:
    in (x - c) K the constant c is no longer free, and only its exact value can be proven.
    """
    if curve.function.error != "relative" or not curve.function.zeros:
        return constants, list(range(len(constants)))
    result, free = list(constants), list[int]()
    for k, constant in enumerate(constants):
        value = to_fraction(constant)
        near = value.limit_denominator(16)
        if abs(value - near) < NEARLY:
            result[k] = exact(near)
        else:
            free.append(k)
    return result, free


# ---------------------------------------------------------------------------------- the exchange


class _Extremum(NamedTuple):
    sample: Sample
    error: arb


def _exchanged(curve: Curve, constants: list[arb], active: list[int]) -> _Found:
    """Level the error on a reference, look for its extrema, until those are no higher."""
    grid = curve.grid(2 * (DENSITY * (len(active) + 2) // 2))
    extrema = _extrema(curve, constants, grid)
    best, height = constants, largest([e.error for e in extrema])
    levelled, reference, idle = False, list[arb](), 0
    for _ in range(EXCHANGES):
        if idle > 4 or not active or _is_nothing(height):
            break
        samples = [e.sample for e in extrema]
        # A curve with too few extrema leaves the linear problem open: then all points count.
        samples += grid if len(samples) <= len(active) else []
        step = _linear_step(curve, constants, samples, active)
        if step is None:
            break
        solved = _newton(curve, constants, step, active)
        if solved is None:
            constants = _descent(curve, constants, step, active, grid)
            level = arb(0)
        else:
            constants, level = solved
        extrema = _extrema(curve, constants, grid)
        reached = largest([e.error for e in extrema])
        idle = 0 if bool(reached < height * arb("0.999999")) else idle + 1
        if bool(reached < height):
            best, height = constants, reached
        if bool(reached <= min(level, height, key=float) * (1 + exact(Fraction(LEVEL)))):
            best, height, levelled = constants, reached, True
            reference = [sample.x for sample in step.reference]
            break
    sensitivity = _sensitivity(curve, best, grid)
    if _is_nothing(height):
        height, levelled = arb(0), True
    return _Found(best, to_fraction(height), levelled, reference, active, sensitivity)


def _is_nothing(height: arb) -> bool:
    """Whether an error is one of the working precision only: the program is the function."""
    return bool(height < arb(2) ** (-ctx.prec // 2))


def _extrema(curve: Curve, constants: list[arb], grid: Sequence[Sample]) -> list[_Extremum]:
    """The local extrema of the error, refined between the points of the grid."""
    whole = Piece(*curve.function.interval)
    errors = [curve.error(constants, sample) for sample in grid]
    if not largest(errors).is_finite():
        return [_Extremum(grid[0], arb.pos_inf())]
    points = [Point(sample.x, whole) for sample in grid]
    found = peaks(points, errors, lambda p: curve.error(constants, curve.near(constants, p.x)))
    return [_Extremum(curve.near(constants, e.point.x), e.error) for e in found]


class _Step(NamedTuple):
    """The optimum of the linearised problem: its reference with signs, and the way there."""

    reference: list[Sample]
    signs: list[int]
    direction: list[arb]


def _linear_step(
    curve: Curve, constants: list[arb], samples: Sequence[Sample], active: list[int]
) -> _Step | None:
    """Minimise the largest linearised error over the samples."""
    pairs = [curve.gradient(constants, sample) for sample in samples]
    errors = [error for error, _ in pairs]
    scale = largest(errors)
    basis = _orthonormal(arb_mat([[row[k] for k in active] for _, row in pairs]))
    if basis is None or not scale.is_finite():
        return None
    q, upper = basis
    heights = np.array([float(error / scale) for error in errors])
    table = np.array([[float(value) for value in row] for row in q.tolist()])
    count, rank = table.shape
    one = np.ones((count, 1))
    above = np.vstack([np.hstack([table, -one]), np.hstack([-table, -one])])
    goal = np.append(np.zeros(rank), 1.0)
    limits = [(None, None)] * rank + [(0, None)]
    solved: Any = linprog(
        goal, above, np.concatenate([-heights, heights]), bounds=limits, method="highs-ds"
    )
    if solved.status != 0 or not solved.fun > 0:
        return None
    weights = -solved.ineqlin.marginals
    signed = weights[:count] - weights[count:]
    support = [i for i in range(count) if abs(signed[i]) > 1e-12]
    solution = arb_mat(rank, 1, [arb(float(value)) * scale for value in solved.x[:rank]])
    direction = upper.solve(solution).entries()
    signs = [1 if signed[i] > 0 else -1 for i in support]
    return _Step([samples[i] for i in support], signs, [d.mid() for d in direction])


def _orthonormal(matrix: arb_mat) -> tuple[arb_mat, arb_mat] | None:
    """Q and R of a matrix of full rank, by Gram and Schmidt at the working precision."""
    columns = matrix.transpose().tolist()
    rank = len(columns)
    upper = arb_mat(rank, rank)
    for k in range(rank):
        for j in range(k):
            share = sum((a * b for a, b in zip(columns[j], columns[k], strict=True)), arb(0)).mid()
            upper[j, k] = share
            columns[k] = [
                (b - share * a).mid() for a, b in zip(columns[j], columns[k], strict=True)
            ]
        length = sum((a * a for a in columns[k]), arb(0)).sqrt().mid()
        if not bool(length > 0):
            return None
        upper[k, k] = length
        columns[k] = [(a / length).mid() for a in columns[k]]
    return arb_mat(columns).transpose(), upper


def _newton(
    curve: Curve, constants: list[arb], step: _Step, active: list[int]
) -> tuple[list[arb], arb] | None:
    """The constants whose error is level, with the signs, on the reference; `None` if far away."""
    current, level = list(constants), arb(0)
    for _ in range(NEWTON_STEPS):
        pairs = [curve.gradient(current, sample) for sample in step.reference]
        misses = [e - s * level for (e, _), s in zip(pairs, step.signs, strict=True)]
        if bool(largest(misses) < abs(level) * arb(2) ** -34):
            return (current, level) if bool(level > 0) else None
        rows = [
            [*(row[k] for k in active), arb(-sign)]
            for (_, row), sign in zip(pairs, step.signs, strict=True)
        ]
        scales = [*sizes([current[k] for k in active]), arb.pos_inf()]
        change = damped_step(rows, misses, scales)
        if change is None:
            return None
        current = moved(current, active, change[:-1])
        level = (level - change[-1]).mid()
    return None


def _descent(
    curve: Curve, constants: list[arb], step: _Step, active: list[int], grid: Sequence[Sample]
) -> list[arb]:
    """The longest part of the linear step, halved and halved again, that lowers the error."""
    height = largest([curve.error(constants, sample) for sample in grid])
    for halving in range(HALVINGS):
        part = [-value * arb(2) ** -halving for value in step.direction]
        trial = moved(constants, active, part)
        if bool(largest([curve.error(trial, sample) for sample in grid]) < height):
            return trial
    return constants


# ------------------------------------------------------------------------------------ the result


def _sensitivity(curve: Curve, constants: list[arb], grid: Sequence[Sample]) -> list[arb]:
    rows = [curve.gradient(constants, sample)[1] for sample in grid]
    return [largest([row[k] for row in rows]) for k in range(len(constants))]


def _finished(program: Program, found: _Found, digits: int | None) -> Fitted:
    values = [
        _shortened(to_fraction(constant), slope, found, digits)
        for constant, slope in zip(found.constants, found.sensitivity, strict=True)
    ]
    named = dict(zip(program.constants, values, strict=True))
    return Fitted(
        replace(program, constants=named),
        float(found.height),
        found.levelled,
        tuple(sorted(to_fraction(x) for x in found.reference)),
        len(found.active),
    )


def _shortened(value: Fraction, slope: arb, found: _Found, digits: int | None) -> Fraction:
    """The constant in as many bits, or decimal digits, as its effect on the error deserves."""
    if digits is not None:
        return Fraction(format_decimal(value, digits))
    if value == 0:
        return value
    room = found.height * Fraction(SPARE) / max(1, len(found.constants))
    effect = to_fraction(slope.mid()) * abs(value)
    if room == 0 or effect == 0:
        return significant(value, ctx.prec // 3)
    return significant(value, max(24, exponent(effect / room) + 2))


def format_decimal(value: Fraction, digits: int) -> str:
    """A fraction rounded to significant decimal digits, as text."""
    if digits < 1:
        raise InputError(f"digits={digits}: a constant has at least one digit")
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value.numerator))) - math.floor(math.log10(value.denominator))
    places = digits - size
    scaled = round(abs(value) * Fraction(10) ** places)
    while scaled >= 10**digits:
        places -= 1
        scaled = round(abs(value) * Fraction(10) ** places)
    sign = "-" if value < 0 else ""
    return f"{sign}{scaled}e{-places}"
