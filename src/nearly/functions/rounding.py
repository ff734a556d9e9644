"""Constants rounded into a machine format so that the function they make stays as accurate.

Rounding each constant to its nearest neighbour moves them independently and loses up to some bits;
the errors of well chosen neighbours cancel. The search is for a lattice point: with one spacing per
constant, the errors that rounded constants can make are `start + B z` with integer `z`, and we want
the one of least sup norm.

How it differs from the textbook (Brisebarre and Chevillard, "Efficient polynomial
L-infinity-approximations", 2007; Sollya's `fpminimax`):

- after LLL, not one nearest plane but beams of them: the closest few thousand lattice points in
  the mean square, and in the shape that the sup norm has about a minimax error; the best by the sup
  norm then descend along the *reduced* vectors, whose steps change the error little where a step
  of one constant alone changes it a lot;
- everything is in the error, linearised in the constants about a start whose error is exact, so
  double precision compares candidates whose errors are far below one unit of double precision;
- so any program will do, not polynomials only: its columns are derivatives by the constants;
- the naively rounded constants are always among the candidates.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from flint import arb, ctx

from nearly.core.errors import InputError
from nearly.functions.balls import exact
from nearly.functions.formats import Format
from nearly.functions.function import Function
from nearly.functions.lattice.family import Family, Values, holds
from nearly.functions.lattice.grid import BITS, chebyshev_grid, powers_on
from nearly.functions.lattice.search import best_rounding
from nearly.functions.program import Program


def doubled(register: Format) -> Format:
    """The format of a coefficient held as the unevaluated sum of two registers (double-double)."""
    return replace(
        register,
        name=f"double-{register.name}",
        precision=2 * register.precision,
        emin=register.emin + register.precision,
    )


def parts(value: Fraction, register: Format) -> tuple[Fraction, Fraction]:
    """A number of `doubled(register)` as its head and its tail, both numbers of `register`."""
    head = register.round(value)
    return head, register.round(value - head)


def round_coefficients(
    function: Function,
    exponents: Sequence[int],
    coefficients: Sequence[Fraction],
    *,
    pinned: Mapping[int, Fraction] = {},
    formats: Mapping[int, Format] = {},
    centre: Fraction = Fraction(0),
) -> Values:
    """Coefficients of a polynomial in the registers of a format, of nearly the least error there.

    **Arguments:**

    - `function`: what the polynomial sum of `c (x - centre)^e` stands for; its format, its error
      and its norm are those that count. Its domain must be finite.
    - `exponents`: the powers, each once, in any order.
    - `coefficients`: the best real ones (a minimax fit's), in that order. What is 0 stays 0.
    - `pinned`: power -> the value its coefficient must have, a number of its format.
    - `formats`: power -> the format of its coefficient where that is not the registers':
      `doubled(register)` for a head held as two numbers.
    - `centre`: what is subtracted from x.

    **Returns:** the coefficients in the order given. Never worse than rounding each one. Over
    the reals the coefficients as they are. A 16-bit format computes in float32, whose rounding is
    far below its own: there each one is rounded by itself.

    **Raises:** `InputError` for a pinned value its format does not hold, a power given twice, a
    coefficient that overflows.

    Costs a lattice reduction in as many dimensions as there are free coefficients, a few times:
    tens of milliseconds for four of them, a second for fifteen.
    """
    exponents = tuple(exponents)
    if len(set(exponents)) != len(exponents) or len(exponents) != len(coefficients):
        raise InputError(f"powers {exponents}: each once, with one coefficient each")
    register = function.format.computing
    chosen = [formats.get(e, register) for e in exponents]
    unknown = (set(pinned) | set(formats)) - set(exponents)
    if unknown:
        raise InputError(f"the polynomial has no power {min(unknown)}: its powers are {exponents}")
    for e, form in zip(exponents, chosen, strict=True):
        if e in pinned and not holds(form, pinned[e]):
            raise InputError(
                f"the coefficient of power {e} is pinned to {float(pinned[e])!r}, which is no "
                f"number of {form.name}; pin {float(form.round(pinned[e]))!r}"
            )
    wanted = tuple(Fraction(pinned.get(e, c)) for e, c in zip(exponents, coefficients, strict=True))
    free = [j for j, e in enumerate(exponents) if e not in pinned and wanted[j]]
    if register.is_real or not free:
        return wanted
    naive = tuple(form.round(c) for form, c in zip(chosen, wanted, strict=True))
    if function.format != register:
        return naive
    grid = chebyshev_grid(function, len(exponents))
    powers = powers_on(grid, exponents, centre)

    def errors(values: Values) -> list[arb]:
        balls = [exact(v) for v in values]
        return [
            _dot(row, balls) * weight - weighted
            for row, weight, weighted in zip(powers, grid.weights, grid.truth, strict=True)
        ]

    def slopes(_: Values, steps: Values) -> list[list[arb]]:
        scaled = [(j, exact(step)) for j, step in zip(free, steps, strict=True)]
        return [
            [row[j] * w * step for row, w in zip(powers, grid.weights, strict=True)]
            for j, step in scaled
        ]

    family = Family(errors, slopes, tuple(chosen), tuple(free), grid, function.norm)
    return best_rounding(family, wanted, naive, (math.inf,))


def round_program(function: Function, program: Program) -> Program:
    """A real program in the function's format, its constants rounded together.

    **Arguments:**

    - `function`: what the program stands for; its format, error and norm are those that count.
    - `program`: a program over the reals. Constants that are numbers of the registers' format as
      they are (1, 2, a scale) stay.

    **Returns:** the program in `function.dtype`. Its error in real arithmetic is never more than
    that of `program.in_format(function.dtype)`.

    **Raises:** `InputError` for a program that is not over the reals, or a constant that
    overflows.

    The constants' effect is linearised about the best point found, twice, and every point that
    wins is measured without the linearisation. Costs one run of the program in ball arithmetic
    per constant and point of the grid: a second for ten constants.
    """
    if program.dtype != "real":
        raise InputError(
            f"constants are rounded from a program over the reals, not {program.dtype}"
        )
    rounded = program.in_format(function.dtype)
    register = function.format.computing
    names = [
        n
        for n, v in program.constants.items()
        if isinstance(v, Fraction) and not holds(register, v)
    ]
    if register.is_real or function.format != register or not names:
        return rounded
    grid = chebyshev_grid(function, len(names) + 4)
    wanted = tuple(Fraction(program.constants[n]) for n in names)
    fixed = {n: v for n, v in program.constants.items() if n not in names}

    def outputs(values: Values) -> list[arb]:
        trial = replace(program, constants=fixed | dict(zip(names, values, strict=True)))
        with ctx.workprec(BITS):
            return trial.run(grid.points, _COLUMNS, lambda c: [exact(c)] * len(grid.points))

    grid = grid.where([y.is_finite() for y in outputs(wanted)])

    def errors(values: Values) -> list[arb]:
        return [
            y * w - t for y, w, t in zip(outputs(values), grid.weights, grid.truth, strict=True)
        ]

    def slopes(values: Values, steps: Values) -> list[list[arb]]:
        # A difference quotient in 320 bits: 60 good bits are left on either side.
        here, columns = outputs(values), []
        for j, step in enumerate(steps):
            there = outputs(tuple(v + step / 2**60 * (i == j) for i, v in enumerate(values)))
            pairs = zip(here, there, grid.weights, strict=True)
            columns.append([(b - a) * w * 2**60 for a, b, w in pairs])
        return columns

    family = Family(
        errors, slopes, (register,) * len(names), tuple(range(len(names))), grid, function.norm
    )
    naive = tuple(register.round(v) for v in wanted)
    # Near, where the linearisation holds for any program, then about the best of that farther out.
    reaches = (2.0 ** (register.precision // 2), 2.0 ** (register.precision - 4))
    best = best_rounding(family, wanted, naive, reaches)
    return replace(rounded, constants={**rounded.constants, **dict(zip(names, best, strict=True))})


def _elementwise(operation: Callable[..., arb]) -> Callable[..., list[arb]]:
    return lambda *columns: list(map(operation, *columns))


# The reals' operations on columns of balls, so that the program is interpreted once for all points.
_COLUMNS: Mapping[str, Callable[..., list[arb]]] = {
    "add": _elementwise(operator.add),
    "sub": _elementwise(operator.sub),
    "mul": _elementwise(operator.mul),
    "div": _elementwise(operator.truediv),
    "fma": _elementwise(lambda a, b, c: a * b + c),
    "sqrt": _elementwise(arb.sqrt),
    "neg": _elementwise(lambda a: -a),
    "abs": _elementwise(lambda a: abs(a)),
}


def _dot(row: Sequence[arb], values: Sequence[arb]) -> arb:
    total = arb(0)
    for a, b in zip(row, values, strict=True):
        total += a * b
    return total
