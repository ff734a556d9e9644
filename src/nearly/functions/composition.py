"""Programs composed by doubling identities (`autonumerics-zero`): far more accurate than rationals.

The programs that evolution finds for 2^x compose small steps, each of which doubles the argument.
Here they are derived. With C = K / tanh(z), or K / tan(z) for the lower signs,

    tanh(2z) = 2 K / (C ± K^2 / C)                          (two operations double the argument)

so that C_0 = x + d / x, which is 3 coth(x / h) h for d = 3 h^2 up to the next term of the continued
fraction, and C_{i+1} = C_i + κ_i / C_i give tanh(x) or tan(x) as K / C_j in 3 + 2j operations. Each
κ is *free*: its fit gains an order of approximation, where the identity only halves the argument.
From t = K / C about x / 2 the others follow:

| function | program | operations |
|---|---|---|
| tanh, tan | K / C_j | 3 + 2j |
| sinh, sin | K / (C_j + κ / C_j) | 5 + 2j |
| cosh, cos | K / (C_j^2 + κ) + c | 6 + 2j |
| sigmoid | K / C_j + c | 4 + 2j |
| expm1 | K / (C_j - B) | 4 + 2j |
| exponentials | F(j, k) = (K / (C_j - B) + c)^(2^k) | 5 + 2j + k |
| exponentials | F(-1, k) = (K / (a - x) + c)^(2^k) | 3 + k |

The start of each fit is exact but for the fit before it: C_j is that of the best K / C_{j-1} for
half the argument, doubled by the identity. Starting further away, all fits stall.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from flint import arb, ctx

from nearly.core.errors import InputError
from nearly.functions import rational
from nearly.functions.balls import exact, to_fraction
from nearly.functions.builders import finished
from nearly.functions.discovery.minimax import minimax
from nearly.functions.function import Function
from nearly.functions.program import Constant, Instruction, Program
from nearly.functions.target import symmetry

LEVELS = {"real": 5, "float64": 3, "float32": 2, "float16": 1, "bfloat16": 1}
DEEPEST = 8


@dataclass(frozen=True)
class _Draft:
    """Instructions with free constants: equal values stay apart, as a fit will move them apart."""

    instructions: tuple[Instruction, ...] = ()
    constants: tuple[Constant, ...] = ()

    @property
    def result(self) -> str:
        return f"t{len(self.instructions) - 1}"

    def then(self, operation: str, *operands: str | Fraction) -> _Draft:
        """The draft with one more instruction; a `Fraction` is a new constant."""
        constants = list(self.constants)
        names: list[str] = []
        for operand in operands:
            if isinstance(operand, Fraction):
                names.append(f"c{len(constants)}")
                constants.append(operand)
            else:
                names.append(operand)
        return _Draft((*self.instructions, (operation, *names)), tuple(constants))

    def program(self) -> Program:
        return Program(self.instructions, {f"c{i}": c for i, c in enumerate(self.constants)})

    @staticmethod
    def of(program: Program) -> _Draft:
        return _Draft(program.instructions, tuple(program.constants.values()))


@dataclass(frozen=True)
class _Quotient:
    """K / C, about to become a tangent: the draft of C, and the value of K."""

    draft: _Draft
    k: Fraction


Finish = Callable[[_Quotient], _Draft]


@dataclass(frozen=True)
class Family:
    """How a function follows from t = tan(scale x), or tanh for `sign` +1.

    **Arguments:**

    - `sign`: of κ in the doubling: +1 for tanh, -1 for tan.
    - `scale`: of the argument of t.
    - `finish`: t as `_Quotient` -> the draft of the whole function.
    """

    sign: int
    scale: Fraction
    finish: Finish


def _tangent(t: _Quotient) -> _Draft:
    return t.draft.then("div", t.k, t.draft.result)


def _sine(sign: int) -> Finish:
    """2t / (1 ± t^2)."""

    def finish(t: _Quotient) -> _Draft:
        c = t.draft.result
        draft = t.draft.then("div", sign * t.k**2, c)
        draft = draft.then("add", c, draft.result)
        return draft.then("div", 2 * t.k, draft.result)

    return finish


def _cosine(sign: int) -> Finish:
    """1 ∓ 2 / (1/t^2 ± 1)."""

    def finish(t: _Quotient) -> _Draft:
        c = t.draft.result
        draft = t.draft.then("mul", c, c)
        draft = draft.then("add", draft.result, sign * t.k**2)
        draft = draft.then("div", -sign * 2 * t.k**2, draft.result)
        return draft.then("add", draft.result, Fraction(1))

    return finish


def _logistic(t: _Quotient) -> _Draft:
    """(1 + t) / 2."""
    draft = t.draft.then("div", t.k / 2, t.draft.result)
    return draft.then("add", draft.result, Fraction(1, 2))


def _minus_one(t: _Quotient) -> _Draft:
    """2 / (1/t - 1)."""
    draft = t.draft.then("sub", t.draft.result, t.k)
    return draft.then("div", 2 * t.k, draft.result)


def _exponential(scale: Fraction, squarings: int) -> Finish:
    """(s (1 + 2 / (1/t - 1)))^(2^k), s^(2^k) the function's value at 0."""

    def finish(t: _Quotient) -> _Draft:
        draft = t.draft.then("sub", t.draft.result, t.k)
        draft = draft.then("div", 2 * t.k * scale, draft.result)
        draft = draft.then("add", draft.result, scale)
        return _squared(draft, squarings)

    return finish


def _squared(draft: _Draft, times: int) -> _Draft:
    for _ in range(times):
        draft = draft.then("mul", draft.result, draft.result)
    return draft


HALF = Fraction(1, 2)
FAMILIES: Mapping[str, Family] = {
    "tanh": Family(1, Fraction(1), _tangent),
    "tan": Family(-1, Fraction(1), _tangent),
    "sinh": Family(1, HALF, _sine(-1)),
    "sin": Family(-1, HALF, _sine(1)),
    "cosh": Family(1, HALF, _cosine(-1)),
    "cos": Family(-1, HALF, _cosine(1)),
    "sigmoid": Family(1, HALF, _logistic),
    "expm1": Family(1, HALF, _minus_one),
}


@dataclass(frozen=True)
class DoublingBuilder:
    """The doubling families; the dial is the number of doublings, `j`, or `"j,k"` for exponentials.

    See the module for the programs and what they cost. Any domain and, for exponentials, any base;
    best where 0 is near the middle of the domain. A function without an identity raises
    `InputError` and has no dials. Costs a fit per doubling, tenths of a second each; cached.

    Paper: `autonumerics-zero`, whose search found the member F(1, 3) for 2^x up to its constants.
    Differs: derived instead of evolved, so that the families have members at every count, for
    every base and for the relatives of the exponential.
    """

    def __call__(self, function: Function, dial: object) -> Program:
        doublings, squarings = parsed_dial(dial)
        fitted = _fitted(_over_the_reals(function), doublings, squarings)
        return finished(function, fitted)

    def dials(self, function: Function) -> Sequence[str]:
        levels = range(LEVELS[function.dtype])
        if rational.is_exponential(function):
            return ["-1,0", "-1,1", *(f"{j},{k}" for j in levels for k in (0, 1))]
        return [str(j) for j in levels] if function.name.strip() in FAMILIES else []


def parsed_dial(dial: object) -> tuple[int, int]:
    """(j, k) of the dial `j` or `"j,k"`; raises `InputError` for anything else."""
    parts = str(dial).split(",")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    doublings, squarings = (*numbers, 0)[:2] if 1 <= len(numbers) <= 2 else (-2, 0)
    if not -1 <= doublings <= DEEPEST or not 0 <= squarings <= DEEPEST:
        raise InputError(
            f"dial {dial!r}: a doubling family's dial is the number of doublings, as '2', and for "
            f"exponentials that of squarings after it, as '2,1'; each at most {DEEPEST}"
        )
    return doublings, squarings


def _over_the_reals(function: Function) -> Function:
    error = "relative" if function.error == "ulp" else function.error
    return replace(function, dtype="real", error=error, norm="sup")


@lru_cache(maxsize=256)
def _fitted(function: Function, doublings: int, squarings: int) -> Program:
    if rational.is_exponential(function):
        start = _exponential_start(function, doublings, squarings)
    elif function.name.strip() not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise InputError(
            f"{function.name} has no doubling identity here (known: exponentials, {known}): "
            "take another method"
        )
    elif doublings < 0 or squarings:
        raise InputError(f"dial '{doublings},{squarings}': squarings are for exponentials only")
    else:
        family = FAMILIES[function.name.strip()]
        start = family.finish(_doubled(_reach(function), family.sign, family.scale, doublings))
    return minimax(start.program(), _one_sided(function)).program


def _one_sided(function: Function) -> Function:
    """An even or odd function on (0, r]: on both sides it alternates at twice as many points."""
    return function if symmetry(function)[0] == 1 else _from_zero(function, _reach(function))


def _from_zero(function: Function, reach: Fraction) -> Function:
    return replace(function, domain=("0", str(reach)))


def _reach(function: Function) -> Fraction:
    return max(map(abs, function.interval))


def _exponential_start(function: Function, doublings: int, squarings: int) -> _Draft:
    """f = A e^(r x) from t = tanh(r x / 2^(k+1))."""
    with ctx.workprec(256):
        middle = exact(sum(function.interval, Fraction(0)) / 2)
        value, slope = function.oracle.taylor(middle, 2)
        rate = to_fraction((slope / value / arb(2) ** squarings).mid())
        scale = to_fraction(
            ((value / (slope / value * middle).exp()) ** (arb(2) ** -squarings)).mid()
        )
    rate, scale = _short(rate), _short(scale)
    if doublings < 0:
        # e^z = 1 + 2 / (2/z - 1) to third order: -1 + 4 / (2 - z).
        draft = _Draft().then("sub", 2 / rate, "x")
        draft = draft.then("div", 4 / rate * scale, draft.result)
        return _squared(draft.then("sub", draft.result, scale), squarings)
    t = _doubled(_reach(function), 1, rate / 2, doublings)
    return _exponential(scale, squarings)(t)


def _short(value: Fraction) -> Fraction:
    """A start needs no more digits than these."""
    return value.limit_denominator(10**18)


def _doubled(reach: Fraction, sign: int, scale: Fraction, doublings: int) -> _Quotient:
    """K / C_j for tanh(scale x) or tan(scale x), fitted to a half, then doubled, j times."""
    fitted = _tangent_fit(reach, sign, scale, doublings)
    *head, (_, k, c) = fitted.instructions
    names = list(fitted.constants)
    assert c == f"t{len(head) - 1}"
    assert k == names[-1]
    *others, last = (Fraction(v) for v in fitted.constants.values())
    return _Quotient(_Draft(tuple(head), tuple(others)), last)


@lru_cache(maxsize=256)
def _tangent_fit(reach: Fraction, sign: int, scale: Fraction, doublings: int) -> Program:
    """The best K / C_j for tanh(scale x) (sign 1) or tan(scale x) (sign -1) on (0, reach]."""
    name = "tanh" if sign > 0 else "tan"
    if doublings == 0:
        # t ≈ z / (1 ± z^2 / 3)
        start = _Draft().then("div", sign * 3 / scale**2, "x")
        start = start.then("add", "x", start.result)
        start = start.then("div", sign * 3 / scale, start.result)
    else:
        half = _doubled(reach, sign, scale / 2, doublings - 1)
        c = half.draft.result
        start = half.draft.then("div", sign * half.k**2, c)
        start = start.then("add", c, start.result)
        start = start.then("div", 2 * half.k, start.result)
    function = Function(f"{name}({scale}*x)", ("0", str(reach)))
    return minimax(start.program(), function).program


doubling = DoublingBuilder()
