"""Proven upper bounds on the error of a straight-line real program, by Taylor expansion in balls.

Plain interval evaluation cannot bound a small difference of two large values, so on each piece of
the domain the error itself is expanded: exact coefficients at the centre, and the coefficient of
the next order evaluated on the whole piece as the remainder. The polynomial is bounded through its
Bernstein coefficients, whose first and last are values of it, so that the same computation gives a
lower bound, and branch and bound stops when the two agree.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from flint import arb, arb_mat, arb_poly, arb_series, ctx, fmpq

from nearly.core.errors import NotProven
from nearly.functions.balls import exact, to_fraction
from nearly.functions.formats import Format, exponent
from nearly.functions.function import Function
from nearly.functions.program import Constant, Program

ORDER = 14
DEEPEST, DEEPEST_INFINITE = 200, 48  # halvings of a piece, and of one without any bound
INFINITY = math.inf


class Piece(NamedTuple):
    """A closed interval on which `program` stands for the function."""

    lo: Fraction
    hi: Fraction
    program: Program


@dataclass(frozen=True)
class Bound:
    """The error is at least `lower` somewhere and at most `uppers[i]` on `pieces[i]`."""

    lower: float
    pieces: tuple[Piece, ...]
    uppers: tuple[float, ...]

    @property
    def upper(self) -> float:
        return max(self.uppers)


def bound_error(
    function: Function,
    pieces: Sequence[Piece],
    *,
    expected: float,
    slack: float = 5e-4,
    floor: float = 0.0,
    limit: int = 60_000,
) -> Bound:
    """Bound the error of real programs against a function, piece by piece.

    **Arguments:**

    - `pieces`: where each program stands; they need not touch.
    - `expected`: about how large the error is; sets the working precision.
    - `slack`: how far, relatively, the bound may lie above an error that is attained.
    - `floor`: errors below this need not be resolved.
    - `limit`: how many expansions to spend.

    Returns a `Bound` in the function's measure. Raises `NotProven` at a pole, at a zero of the
    function that the program does not share, and when `limit` is spent. An expansion costs about
    0.2 ms.
    """
    bits = 160 + 2 * max(0, -math.frexp(max(expected, 1e-290))[1])
    with ctx.workprec(bits), series_length(2 * ORDER + 4):
        return _branch_and_bound(function, pieces, slack, floor, limit)


@contextmanager
def series_length(length: int) -> Iterator[None]:
    """Let series keep `length` coefficients: flint drops those past `ctx.cap` without a word."""
    saved = ctx.cap
    ctx.cap = length
    try:
        yield
    finally:
        ctx.cap = saved


class _Leaf(NamedTuple):
    """A heap entry: what is known about the error on `piece`, or on a part of its polynomial."""

    key: float  # minus the upper bound: heapq pops the smallest
    serial: int  # breaks ties: the latest first, so that a hopeless piece is soon a tiny one
    piece: Piece
    bernstein: list[arb] | None  # None: nothing to subdivide, only the piece itself
    remainder: float
    scale: arb  # from the absolute error of the model to an upper bound in the measure
    lower_scale: arb  # ... and to a lower bound
    depth: int


def _branch_and_bound(
    function: Function, pieces: Sequence[Piece], slack: float, floor: float, limit: int
) -> Bound:
    lower, spent, serial = 0.0, 0, 0
    heap: list[_Leaf] = []

    def push(piece: Piece, depth: int) -> None:
        nonlocal lower, spent, serial
        leaf, attained = _expand(function, piece, serial, depth)
        lower, spent, serial = max(lower, attained), spent + 1, serial - 1
        heapq.heappush(heap, leaf)

    for piece in pieces:
        push(piece, 0)
    while -heap[0].key > max(lower * (1 + slack), floor):
        leaf = heapq.heappop(heap)
        settled = leaf.remainder <= 0.3 * slack * lower and bool(leaf.scale == leaf.lower_scale)
        if leaf.bernstein is not None and settled:
            for half in _de_casteljau(leaf.bernstein):
                serial -= 1
                lower = max(lower, _attained(half, leaf))
                heapq.heappush(heap, _leaf(half, leaf, serial))
            continue
        deepest = DEEPEST_INFINITE if math.isinf(leaf.key) else DEEPEST
        if spent >= limit or leaf.depth > deepest:
            raise NotProven(_why(leaf, function))
        middle = _middle(leaf.piece)
        if not leaf.piece.lo < middle < leaf.piece.hi:
            raise NotProven(_why(leaf, function))
        push(leaf.piece._replace(hi=middle), leaf.depth + 1)
        push(leaf.piece._replace(lo=middle), leaf.depth + 1)
    return Bound(lower, tuple(e.piece for e in heap), tuple(-e.key for e in heap))


def _why(leaf: _Leaf, function: Function) -> str:
    where = float(leaf.piece.lo)
    if math.isinf(leaf.key):
        return (
            f"the error against {function.name} cannot be bounded near x = {where!r}: a pole of "
            "the program, a zero of the function that it does not share, or a kink"
        )
    return f"the bound near x = {where!r} stays at {-leaf.key:.3g}: too many pieces would be needed"


def _middle(piece: Piece) -> Fraction:
    """Halfway, and halfway in the exponent for a piece of many binades on one side of zero."""
    lo, hi = piece.lo, piece.hi
    small, large = sorted((abs(lo), abs(hi)))
    if lo * hi > 0 and large > 8 * small:
        size = Fraction(2) ** ((exponent(small) + exponent(large) + 1) // 2)
        return size if lo > 0 else -size
    middle = (lo + hi) / 2
    # Short denominators keep the exact arithmetic of deep pieces cheap.
    grid = Fraction(2) ** (exponent(hi - lo) - 8)
    rounded = round(middle / grid) * grid
    return rounded if lo < rounded < hi else middle


def _leaf(bernstein: list[arb], parent: _Leaf, serial: int) -> _Leaf:
    upper = up(_largest(bernstein) * parent.scale) + parent.remainder
    return parent._replace(key=-_up(upper), serial=serial, bernstein=bernstein)


def _attained(bernstein: list[arb], leaf: _Leaf) -> float:
    ends = max(down(end * leaf.lower_scale) for end in (bernstein[0], bernstein[-1]))
    return max(0.0, ends - leaf.remainder) * (1 - 1e-15)


def _de_casteljau(b: list[arb]) -> tuple[list[arb], list[arb]]:
    left, right, row = [b[0]], [b[-1]], b
    while len(row) > 1:
        row = [(p + q) / 2 for p, q in pairwise(row)]
        left.append(row[0])
        right.append(row[-1])
    return left, right[::-1]


def _expand(function: Function, piece: Piece, serial: int, depth: int) -> tuple[_Leaf, float]:
    """Upper bound on a piece, and the error that is attained at one of its ends."""
    model = _error_model(function, piece)
    if model is None:
        return _Leaf(-INFINITY, serial, piece, None, INFINITY, arb(1), arb(1), depth), 0.0
    bernstein, remainder, scale, lower_scale, coarse = model
    leaf = _Leaf(0.0, serial, piece, bernstein, remainder, scale, lower_scale, depth)
    fine = _leaf(bernstein, leaf, serial)
    attained = _attained(bernstein, fine) if math.isfinite(remainder) else 0.0
    if not -fine.key <= coarse * (1 + 1e-6):  # also where the fine bound is not a number
        return leaf._replace(key=-coarse, bernstein=None), attained
    return fine, attained


class _Model(NamedTuple):
    bernstein: list[arb]
    remainder: float
    scale: arb
    lower_scale: arb
    coarse: float


def _error_model(function: Function, piece: Piece) -> _Model | None:
    middle = (piece.lo + piece.hi) / 2
    direct = _tried(function, piece, middle, _DIRECT)
    if direct is not None and math.isfinite(direct.remainder):
        return direct
    # A removable singularity (d/0, or a zero that function and program share) is divided out in
    # powers of x - s, for the one number s in the piece that is simple enough to be singular.
    return _tried(function, piece, simplest(piece.lo, piece.hi), _QUOTIENTS) or direct


def _tried(
    function: Function, piece: Piece, centre: Fraction, arithmetic: Mapping[str, Any]
) -> _Model | None:
    try:
        return _model_at(function, piece, centre, arithmetic)
    except (ValueError, ZeroDivisionError, NotProven):
        return None  # a pole or an undecided sign: smaller pieces may do


def _model_at(
    function: Function, piece: Piece, centre: Fraction, arithmetic: Mapping[str, Any]
) -> _Model | None:
    n = ORDER
    c = exact(centre)
    whole = exact(piece.lo).union(exact(piece.hi))
    numerator, denominator, truth = _parts(function, piece.program, c, arithmetic, n)
    wide_n, wide_d, wide_f = _parts(function, piece.program, whole, arithmetic, n + 1)
    scale, lower_scale = _scales(function, piece, wide_f)
    m, w = _fraction(function, numerator, denominator, truth)
    wide_m, wide_w = _fraction(function, wide_n, wide_d, wide_f)
    coarse = up(wide_m[0] / wide_w[0] * scale)
    valuation = _valuation(m, w, wide_w)
    if valuation is None:
        return (
            _Model([arb(0)], INFINITY, scale, lower_scale, coarse)
            if math.isfinite(coarse)
            else None
        )
    m_list, w_list = _coefficients(m, n)[valuation:], _coefficients(w, n)[valuation:]
    length = n - valuation
    h = exact(piece.lo - centre).union(exact(piece.hi - centre))
    r = h.abs_upper()
    w_low = w_list[0].abs_lower() - _magnitude([*w_list[1:], _checked(wide_w, n)], r) * r
    if not w_low > 0:
        return (
            _Model([arb(0)], INFINITY, scale, lower_scale, coarse)
            if math.isfinite(coarse)
            else None
        )
    q = arb_series(m_list, prec=length) / arb_series(w_list, prec=length)
    q_list = _coefficients(q, length)
    remainder = _quotient_remainder(q_list, w_list, _checked(wide_m, n), _checked(wide_w, n), r)
    middle, half = (piece.lo + piece.hi) / 2 - centre, (piece.hi - piece.lo) / 2
    shifted = arb_poly(q_list)(arb_poly([exact(middle), exact(half)]))
    bernstein = _bernstein([shifted[k] for k in range(length)])
    return _Model(bernstein, up(remainder / w_low * scale), scale, lower_scale, coarse)


def _quotient_remainder(q: list[arb], w: list[arb], m_rest: arb, w_rest: arb, r: arb) -> arb:
    """|M - q W| on |h| <= r: by construction of q only orders >= len(q) are left."""
    length = len(q)
    full = arb_series(q, prec=2 * length) * arb_series(w, prec=2 * length)
    tail = [-c for c in _coefficients(full, 2 * length)[length:]]
    tail[0] += m_rest
    for j, coefficient in enumerate(q):
        tail[j] -= coefficient * w_rest
    return _magnitude(tail, r) * r**length


def _parts(
    function: Function, program: Program, at: arb, arithmetic: Mapping[str, Any], length: int
) -> tuple[arb_series, arb_series, arb_series]:
    """Numerator and denominator of the program, and the function, as series at a ball."""
    result = program.run(arb_series([at, 1], prec=length), arithmetic, constant)
    numerator, denominator = result if isinstance(result, tuple) else (result, arb(1))
    truth = arb_series(function.oracle.coefficients(at, length), prec=length)
    return _as_series(numerator, length), _as_series(denominator, length), truth


def _as_series(value: arb | arb_series, length: int) -> arb_series:
    if isinstance(value, arb):
        return arb_series([value], prec=length)
    if value.prec < length:
        raise NotProven(f"a series of {length} coefficients came back with {value.prec}")
    return value


def _fraction(
    function: Function, numerator: arb_series, denominator: arb_series, truth: arb_series
) -> tuple[arb_series, arb_series]:
    """The error as M/W."""
    product = truth * denominator
    return numerator - product, product if function.error == "relative" else denominator


def _scales(function: Function, piece: Piece, truth: arb_series) -> tuple[arb, arb]:
    """What an absolute error is multiplied by for an upper and for a lower bound in the measure."""
    if function.error != "ulp":
        return arb(1), arb(1)
    if not truth[0].is_finite():
        return arb.pos_inf(), arb(0)
    below, above = truth[0].abs_lower(), truth[0].abs_upper()
    finest, coarsest = (spacing_at(function.format, end) for end in (below, above))
    if finest != coarsest and not truth[1].contains(0) and not truth[0].contains(0):
        # A ball cannot end at a power of two; the ends of a monotone piece can.
        ends = [function.oracle.value(exact(x)) for x in (piece.lo, piece.hi)]
        finest = min(spacing_at(function.format, e.abs_lower()) for e in ends)
        coarsest = max(spacing_at(function.format, e.abs_upper()) for e in ends)
    return 1 / arb(finest), 1 / arb(coarsest)  # for a subnormal number too large for a float


def spacing_at(format: Format, magnitude: arb) -> float:
    """The format's spacing at an exact non-negative number."""
    # Compared first: the fraction of a number like 2^-(2^60) would fill the memory.
    if magnitude < arb(2) ** format.emin:
        size = format.emin
    elif magnitude >= arb(2) ** format.emax:
        size = format.emax
    else:
        size = exponent(to_fraction(magnitude))
    return math.ldexp(1.0, size - format.precision + 1)


def _valuation(m: arb_series, w: arb_series, wide_w: arb_series) -> int | None:
    """How many powers of h cancel in M/W; None where that is undecided or M/W is infinite."""
    if not wide_w[0].contains(0):
        return 0
    v = 0
    while v < ORDER - 2 and w[v].is_zero():
        if not m[v].is_zero():
            return None
        v += 1
    return None if w[v].contains(0) else v


def _coefficients(series: arb_series, length: int) -> list[arb]:
    return [series[k] for k in range(length)]


def _checked(series: arb_series, order: int) -> arb:
    if series.prec <= order:
        raise NotProven(f"the remainder of order {order} was truncated away")
    return series[order]


def _magnitude(coefficients: Sequence[arb], r: arb) -> arb:
    total = arb(0)
    for c in reversed(coefficients):
        total = total * r + c.abs_upper()
    return total


def _bernstein(monomial: list[arb]) -> list[arb]:
    """Bernstein coefficients on [-1, 1] of sum a_k t^k."""
    n = len(monomial)
    column = arb_mat(n, 1, monomial)
    product = _conversion(n, ctx.prec) * column
    return [product[i, 0] for i in range(n)]


@lru_cache(maxsize=64)
def _conversion(n: int, bits: int) -> arb_mat:
    """Monomials of [-1, 1] to Bernstein: t = 2u - 1, then u^k = sum_i C(i,k)/C(n-1,k) B_i."""
    degree = n - 1
    in_u = [[math.comb(k, j) * 2**j * (-1) ** (k - j) for k in range(n)] for j in range(n)]
    rows = [
        [
            sum(
                Fraction(math.comb(i, j), math.comb(degree, j)) * in_u[j][k]
                for j in range(min(i, k) + 1)
            )
            for k in range(n)
        ]
        for i in range(n)
    ]
    flat = [arb(fmpq(Fraction(v).numerator, Fraction(v).denominator)) for row in rows for v in row]
    return arb_mat(n, n, flat)


def _largest(values: Sequence[arb]) -> arb:
    return max((v.abs_upper() for v in values), key=float)


def up(value: arb) -> float:
    """An upper bound of |value| as a float; infinite where the ball is not finite."""
    if not value.is_finite():
        return INFINITY
    return _up(float(value.abs_upper()))


def down(value: arb) -> float:
    """A lower bound of |value| as a float."""
    if not value.is_finite():
        return 0.0
    least = value.abs_lower()
    bound = float(least)  # truncated, so that a power of two stays one
    return bound if arb(bound) <= least else max(0.0, math.nextafter(bound, -INFINITY))


def _up(value: float) -> float:
    return math.nextafter(value, INFINITY)


def simplest(lo: Fraction, hi: Fraction) -> Fraction:
    """The fraction of smallest denominator in [lo, hi], zero before all others."""
    if lo <= 0 <= hi:
        return Fraction(0)
    if hi < 0:
        return -simplest(-hi, -lo)
    whole = -(-lo.numerator // lo.denominator)
    if whole <= hi:
        return Fraction(whole)
    return whole - 1 + 1 / simplest(1 / (hi - whole + 1), 1 / (lo - whole + 1))


def constant(value: Constant) -> arb:
    """A constant of a real program as a ball."""
    return exact(Fraction(value))


def _no_sign(value: arb) -> bool:
    return not value.is_finite() or value.contains(0)


def _head(value: arb | arb_series) -> arb:
    return value[0] if isinstance(value, arb_series) else value


def _abs(value: Any) -> Any:
    head = _head(value)
    if head.contains(0):
        raise NotProven("the sign of the operand of abs is not decided")
    return value if head > 0 else -value


def _div(a: Any, b: Any) -> Any:
    if _no_sign(_head(b)):
        raise NotProven("a denominator may vanish")
    return a / b


def _sqrt(a: Any) -> Any:
    if not _head(a) > 0:
        raise NotProven("the operand of sqrt may not be positive")
    return a.sqrt()


_DIRECT: Mapping[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": _div,
    "fma": lambda a, b, c: a * b + c,
    "sqrt": _sqrt,
    "neg": lambda a: -a,
    "abs": _abs,
}


def _pair(value: Any) -> tuple[Any, Any]:
    return value if isinstance(value, tuple) else (value, arb(1))


def _pair_add(a: Any, b: Any) -> Any:
    (p, q), (r, s) = _pair(a), _pair(b)
    if isinstance(q, arb) and isinstance(s, arb):
        return p + r  # both denominators are the literal 1
    return p * s + r * q, q * s


def _pair_mul(a: Any, b: Any) -> Any:
    (p, q), (r, s) = _pair(a), _pair(b)
    return p * r, q * s


def _pair_neg(a: Any) -> Any:
    p, q = _pair(a)
    return -p, q


def _pair_div(a: Any, b: Any) -> Any:
    (p, q), (r, s) = _pair(a), _pair(b)
    denominator = q * r
    # A constant is divided by at once: a denominator that is a ball is always the literal 1.
    return p * s / denominator if isinstance(denominator, arb) else (p * s, denominator)


def _collapsed(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """An operation that needs the quotient itself."""

    def apply(a: Any) -> Any:
        p, q = _pair(a)
        return function(p if isinstance(q, arb) else _div(p, q))

    return apply


_QUOTIENTS: Mapping[str, Callable[..., Any]] = {
    "add": _pair_add,
    "sub": lambda a, b: _pair_add(a, _pair_neg(b)),
    "mul": _pair_mul,
    "div": _pair_div,
    "fma": lambda a, b, c: _pair_add(_pair_mul(a, b), c),
    "sqrt": _collapsed(_sqrt),
    "neg": _pair_neg,
    "abs": _collapsed(_abs),
}
