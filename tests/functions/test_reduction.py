"""Range reduction: exact steps in rational arithmetic, accuracy against mpmath, special values."""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.functions.builders import minimax
from nearly.functions.formats import FORMATS, Format
from nearly.functions.function import Function
from nearly.functions.program import Builder, Program
from nearly.functions.reduction import FAMILIES, Reduction, reduction
from nearly.functions.reduction.layout import layout, real
from nearly.functions.reduction.payne_hanek import payne_hanek, turns
from nearly.functions.reduction.trigonometric import cody_waite, in_parts

WHOLE = ("-inf", "inf")
INF, NAN = math.inf, math.nan

# The degrees of each function's cores at which they are good enough for float32.
DEGREES = {
    "exp": (5,),
    "exp2": (5,),
    "exp10": (5,),
    "expm1": (5,),
    "log": (9,),
    "log2": (9,),
    "log10": (9,),
    "log1p": (9,),
    "sin": (6, 6),
    "cos": (6, 6),
    "tan": (6,),
    "atan": (10,),
    "asin": (10,),
    "acos": (10,),
    "tanh": (10, 5),
    "sinh": (8, 5),
    "cosh": (5,),
    "sigmoid": (5,),
    "erf": (6, 12),
    "erfc": (11, 12, 4),
    "erfinv": (8, 11, 9),
    "gelu": (11, 12, 5),
    "sqrt": (),
    "rsqrt": (4,),
    "cbrt": (5,),
}
DOUBLE = {"exp2": (11,), "log": (20,), "sin": (12, 12), "tanh": (26, 11), "cbrt": (15,)}
DOUBLE |= {"rsqrt": (12,), "log1p": (22,), "sigmoid": (11,)}

TRUTH = {
    "exp2": lambda x: mpmath.mpf(2) ** x,
    "exp10": lambda x: mpmath.mpf(10) ** x,
    "log2": lambda x: mpmath.log(x, 2),
    "rsqrt": lambda x: 1 / mpmath.sqrt(x),
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "gelu": lambda x: x * mpmath.erfc(-x / mpmath.sqrt(2)) / 2,
    "cbrt": lambda x: mpmath.sign(x) * mpmath.cbrt(abs(x)),
}


def reduced(name: str, dtype: str, domain: tuple[str, str] = WHOLE) -> Reduction:
    found = reduction(Function(name, domain, dtype, "ulp"))
    assert found is not None
    return found


def whole(name: str, dtype: str, degrees: tuple[int, ...], domain=WHOLE) -> Program:
    found = reduced(name, dtype, domain)
    cores = zip(found.cores, degrees, strict=True)
    return found.wrap(*(built(core, degree) for core, degree in cores))


built = functools.cache(minimax)


def stratified(form: Format, count: int) -> np.ndarray:
    """Bit patterns at random, numbers of middling size, and the neighbours of powers of two."""
    random = np.random.default_rng(7)
    integer = np.dtype(f"uint{form.bits}")
    some = random.integers(0, 1 << form.bits, count, dtype=np.uint64).astype(integer)
    powers = np.arange(form.emax - form.emin + 2, dtype=np.uint64) << np.uint64(form.precision - 1)
    edges = np.concatenate([powers[1:] - np.uint64(1), powers, powers + np.uint64(1)])
    edges = random.permutation(edges)[: count // 4].astype(integer)
    sizes = np.concatenate([random.uniform(0, 2, count), random.uniform(0, 110, count)])
    sizes = sizes.astype(form.dtype)
    positive = np.concatenate([edges.view(form.dtype), sizes])
    points = np.concatenate([some.view(form.dtype), positive, -positive])
    return points[np.isfinite(points)]


def ulps(name: str, form: Format, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """|y - truth| over the spacing at the truth; infinity stands for 2^(emax + 1)."""
    truth = TRUTH.get(name) or getattr(mpmath, name)
    beyond = mpmath.mpf(2) ** (form.emax + 1)
    errors = []
    with mpmath.workprec(4 * form.precision):
        for point, value in zip(x.astype(float).tolist(), y.astype(float).tolist(), strict=True):
            t = _true(truth, name, point)
            if t is None:
                errors.append(0.0 if math.isnan(value) else INF)
                continue
            if math.isnan(value):
                errors.append(INF)
                continue
            t = max(-beyond, min(beyond, t))
            found = mpmath.mpf(value) if math.isfinite(value) else math.copysign(1, value) * beyond
            power = max(mpmath.frexp(t)[1] - 1, form.emin) if t else form.emin
            step = mpmath.mpf(2) ** (min(power, form.emax) - form.precision + 1)
            errors.append(float(abs(found - t) / step))
    return np.array(errors)


def _true(truth, name: str, point: float):
    """The true value, infinite at a pole, None where there is none."""
    if name in ("log", "log2", "log10", "sqrt", "rsqrt") and point < 0:
        return None
    if name in ("asin", "acos", "erfinv") and abs(point) > 1:
        return None
    if name == "log1p" and point <= -1:
        return -mpmath.inf if point == -1 else None
    if point == 0 and name in ("log", "log2", "log10", "rsqrt"):
        return mpmath.inf if name == "rsqrt" else -mpmath.inf
    if abs(point) > 1e5 and name in ("exp", "exp2", "exp10", "expm1", "sinh", "cosh", "sigmoid"):
        point = math.copysign(1e5, point)  # as good as infinity, and mpmath answers
    if abs(point) > 40 and name in ("erf", "erfc", "tanh"):
        point = math.copysign(40, point)
    return truth(mpmath.mpf(point))


# ---------------------------------------------------------------------------------- accuracy


# Their truths or their pieces take tens of seconds; erfc stands for them.
LONG = ("gelu", "erf", "erfinv")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in DEGREES]
)
@pytest.mark.parametrize("fused", [True, False])
def test_float32_over_the_whole_format(name, fused):
    program = whole(name, "float32", DEGREES[name])
    program = program if fused else program.unfused()
    x = stratified(FORMATS["float32"], 700)
    errors = ulps(name, FORMATS["float32"], x, program(x))
    worst = int(np.argmax(errors))
    assert errors[worst] <= reduced(name, "float32").bound, f"at {x[worst]!r}: {errors[worst]}"


@pytest.mark.parametrize("name", ["exp2", "exp", "log2", "sin", "tanh", "sigmoid", "rsqrt", "asin"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_formats_are_nearly_correctly_rounded(name, dtype):
    program = whole(name, dtype, DEGREES[name])
    x = stratified(FORMATS[dtype], 300)
    errors = ulps(name, FORMATS[dtype], x, program(x))
    worst = int(np.argmax(errors))
    assert errors[worst] <= 0.501, f"at {x[worst]!r}: {errors[worst]}"


@pytest.mark.slow
@pytest.mark.parametrize("name", DOUBLE)
def test_float64_over_the_whole_format(name):
    program = whole(name, "float64", DOUBLE[name])
    x = stratified(FORMATS["float64"], 300)
    for each in (program, program.unfused()):
        errors = ulps(name, FORMATS["float64"], x, each(x))
        worst = int(np.argmax(errors))
        assert errors[worst] <= 1, f"at {x[worst]!r}: {errors[worst]}"


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_bounded_domain_reduces_by_parts_of_pi(name):
    domain = ("-10000", "10000")
    program = whole(name, "float32", DEGREES[name], domain)
    assert program.cost.instructions < whole(name, "float32", DEGREES[name]).cost.instructions / 2
    assert not program.tables
    x = np.random.default_rng(1).uniform(-1e4, 1e4, 2000).astype(np.float32)
    # the nearest numbers to multiples of pi/2
    turns = np.arange(1, 6000, 7) * (math.pi / 2)
    x = np.concatenate([x, turns.astype(np.float32)])
    for each in (program, program.unfused()):
        errors = ulps(name, FORMATS["float32"], x, each(x))
        assert errors.max() <= reduced(name, "float32").bound


@pytest.mark.parametrize(
    "name", ["exp2", "log2", "log1p", "erfc", "tanh", "sigmoid", "sin", "sqrt", "cbrt", "rsqrt"]
)
def test_under_xla(name):
    """Products contracted, subnormal numbers flushed, integers compared as LLVM sees fit."""
    jax = pytest.importorskip("jax")
    from nearly.functions.emit_jax import to_jax

    program = to_jax(whole(name, "float32", DEGREES[name]))
    x = stratified(FORMATS["float32"], 400)
    tiny = np.arange(1, 60, dtype=np.uint32).view(np.float32)
    x = np.concatenate([x, tiny, -tiny])
    errors = ulps(name, FORMATS["float32"], x, np.asarray(jax.jit(program)(x)))
    worst = int(np.argmax(errors))
    assert errors[worst] <= reduced(name, "float32").bound, f"at {x[worst]!r}: {errors[worst]}"


# ---------------------------------------------------------------------------------- special values

# (input, result) after IEEE 754 and C's Annex F.
SPECIAL = {
    "exp": [(0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, 0.0), (89.0, INF), (-104.0, 0.0)],
    "exp2": [(0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, 0.0), (128.0, INF), (-149.0, 2.0**-149)],
    "exp10": [(0.0, 1.0), (INF, INF), (-INF, 0.0), (39.0, INF), (-46.0, 0.0)],
    "expm1": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -1.0), (89.0, INF), (-1e9, -1.0)],
    "log": [(0.0, -INF), (-0.0, -INF), (INF, INF), (-1.0, NAN), (-INF, NAN), (1.0, 0.0)],
    "log2": [(0.0, -INF), (-0.0, -INF), (INF, INF), (-1e-45, NAN), (1.0, 0.0), (2.0**-149, -149)],
    "log10": [(0.0, -INF), (-0.0, -INF), (INF, INF), (-INF, NAN), (1.0, 0.0)],
    "log1p": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, NAN), (-1.0, -INF), (-1.5, NAN)],
    "sin": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN), (-1e-45, -1e-45)],
    "cos": [(0.0, 1.0), (-0.0, 1.0), (INF, NAN), (-INF, NAN)],
    "tan": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN)],
    "atan": [(0.0, 0.0), (-0.0, -0.0), (INF, math.pi / 2), (-INF, -math.pi / 2)],
    "asin": [
        (0.0, 0.0),
        (-0.0, -0.0),
        (INF, NAN),
        (1.5, NAN),
        (1.0, math.pi / 2),
        (-1e-45, -1e-45),
    ],
    "acos": [
        (1.0, 0.0),
        (-1.0, math.pi),
        (0.0, math.pi / 2),
        (-0.0, math.pi / 2),
        (INF, NAN),
        (-1.5, NAN),
    ],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (1e-45, 1e-45), (9.5, 1.0)],
    "sinh": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -INF), (90.0, INF), (-90.0, -INF)],
    "cosh": [(0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, INF), (90.0, INF)],
    "sigmoid": [(0.0, 0.5), (-0.0, 0.5), (INF, 1.0), (-INF, 0.0), (-110.0, 0.0)],
    "erf": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (1e-45, 1e-45), (4.5, 1.0)],
    "erfc": [(0.0, 1.0), (-0.0, 1.0), (INF, 0.0), (-INF, 2.0), (10.06, 0.0), (-4.0, 2.0)],
    "erfinv": [(0.0, 0.0), (-0.0, -0.0), (1.0, INF), (-1.0, -INF), (1.5, NAN), (INF, NAN)],
    "gelu": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -0.0), (-15.0, -0.0), (1e38, 1e38)],
    "sqrt": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, NAN), (-1e-45, NAN), (9.0, 3.0)],
    "rsqrt": [(0.0, INF), (-0.0, INF), (INF, 0.0), (-INF, NAN), (-1e-45, NAN), (4.0, 0.5)],
    "cbrt": [
        (0.0, 0.0),
        (-0.0, -0.0),
        (INF, INF),
        (-INF, -INF),
        (2.0**-147, 2.0**-49),
        (-27.0, -3.0),
    ],
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in SPECIAL]
)
def test_special_values(name):
    assert set(FAMILIES) - set(SPECIAL) <= {"digamma", "lgamma"}  # in test_reduction_gamma
    program = whole(name, "float32", DEGREES[name])
    given, wanted = (np.array(column, np.float32) for column in zip(*SPECIAL[name], strict=True))
    for each in (program, program.unfused()):
        found = each(given)
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(
            np.signbit(found[found == 0]), np.signbit(wanted[wanted == 0])
        )
        assert np.isnan(each(np.float32([NAN, -NAN]))).all()


# ---------------------------------------------------------------------------------- exact steps


def fractions(values: np.ndarray) -> list[Fraction]:
    return [Fraction(v) for v in values.astype(float).tolist()]


def angle_error(dtype: str, reduce, x: np.ndarray) -> float:
    """How far x - (k pi/2 + high + low) is from 0, relative to x modulo pi/2."""
    form = FORMATS[dtype]
    b = Builder(dtype)
    angle = reduce(b, layout(Function("sin", WHOLE, dtype, "ulp")))
    high, low = (fractions(b.program(part)(x)) for part in (angle.high, angle.low))
    quarter = real("pi/2")
    worst = Fraction(0)
    for point, head, tail in zip(fractions(x), high, low, strict=True):
        turns = (point - head - tail) / quarter
        left = point - round(point / quarter) * quarter
        assert abs(head + tail) < Fraction(792, 1000)
        worst = max(worst, abs(turns - round(turns)) * quarter / abs(left))
    return float(worst) * 2**form.precision


def hard(dtype: str) -> np.ndarray:
    """Numbers next to multiples of pi/2, by continued fractions, and random ones of every size."""
    form = FORMATS[dtype]
    quarter = real("pi/2")
    random = np.random.default_rng(3)
    exponents = random.uniform(0, form.emax, 300)
    points = [float(v) for v in (2.0**exponents).astype(form.dtype)]
    for power in range(-form.precision + 2, form.emax - form.precision, 5):
        # a convergent a/b of (pi/2)/2^power with a of the format's precision: x = a 2^power
        rest, (a, c) = quarter / Fraction(2) ** power, (1, 0)
        a0, c0 = 0, 1
        while True:
            whole_part = rest.numerator // rest.denominator
            a0, c0, a, c = a, c, whole_part * a + a0, whole_part * c + c0
            if a >= 1 << form.precision or rest == whole_part:
                break
            rest = 1 / (rest - whole_part)
        if a0 > 0:
            points.append(float(Fraction(a0) * Fraction(2) ** power))
    x = np.array(points, form.dtype)
    return x[np.isfinite(x) & (x > 1)]


@pytest.mark.parametrize(
    ("dtype", "closest", "ulp"), [("float32", -27, 0.25), ("float64", -58, 0.1)]
)
def test_payne_hanek_keeps_all_bits_at_any_size(dtype, closest, ulp):
    x = hard(dtype)
    quarter = real("pi/2")
    left = [abs(p / quarter - round(p / quarter)) for p in fractions(x)]
    assert min(left) < Fraction(2) ** closest  # the points are as hard as they are meant to be
    assert angle_error(dtype, payne_hanek, x) < ulp


def test_payne_hanek_on_the_hardest_float64():
    # 6381956970095103 * 2^797 is the float64 nearest to a multiple of pi/2 (Muller, Elementary
    # Functions, ch. 11): its cosine is about 4.69e-19.
    x = np.array([6381956970095103.0 * 2.0**797])
    assert angle_error("float64", payne_hanek, x) < 0.1


def test_payne_hanek_table_holds_all_of_two_over_pi():
    for dtype in ("float32", "float64"):
        form = FORMATS[dtype]
        c = form.precision // 2
        table = turns(dtype, "pi/2")
        for biased in (0, form.emax, 2 * form.emax):
            scale = Fraction(2) ** (biased - form.emax - form.precision + 1)
            rest = scale * real("2/pi") - table[biased]
            following = table[biased + 2 * c] / 2 ** (2 * c)
            difference = rest - following
            modulus = 4 * Fraction(1, 2 ** (2 * c))
            off = difference - modulus * round(difference / modulus)
            assert abs(rest - 4 * round(rest / 4)) <= modulus / 2
            assert abs(off) <= modulus / 2 ** (2 * c)
            assert all(abs(entry) <= 2 for entry in table)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cody_waite_products_are_exact_without_fma(dtype):
    form = FORMATS[dtype]
    place = layout(Function("sin", ("-10000", "10000"), dtype, "ulp"))
    parts, count = in_parts(place, Fraction(10000))
    assert 1 <= count < len(parts)
    for k in (1, 3, 6365, 6366):
        assert all(form.round(k * part) == k * part for part in parts[:-1])
    assert abs(sum(parts) - real("pi/2")) * 6366 < Fraction(2) ** (-2 * form.precision)
    x = np.random.default_rng(5).uniform(-1e4, 1e4, 500).astype(form.dtype)
    near = (np.arange(1, 6366, 13) * (math.pi / 2)).astype(form.dtype)

    def reduce(b, _):
        return cody_waite(b, place, Fraction(10000))

    assert angle_error(dtype, reduce, np.concatenate([x, near])) < 0.1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("largest", [3, 100, 1600, 6400, 16000])
def test_parts_of_a_turn_leave_nothing_that_counts(dtype, largest):
    form = FORMATS[dtype]
    place = layout(Function("sin", ("-10000", "10000"), dtype, "ulp"))
    parts, _ = in_parts(place, Fraction(largest))
    assert abs(sum(parts) - real("pi/2")) * largest < Fraction(2) ** (-2 * form.precision)


@pytest.mark.parametrize("name", ["log", "log2", "log10"])
def test_logarithm_is_exact_at_one_and_at_powers_of_two(name):
    program = whole(name, "float32", DEGREES[name])
    powers = np.arange(-149, 128)
    x = np.ldexp(1.0, powers).astype(np.float32)
    logarithm = {"log": math.log(2), "log2": 1.0, "log10": math.log10(2)}[name]
    np.testing.assert_array_equal(program(x), (powers * logarithm).astype(np.float32))


@pytest.mark.parametrize("fused", [True, False])
def test_rsqrt_is_exact_at_powers_of_four(fused):
    program = whole("rsqrt", "float32", DEGREES["rsqrt"])
    x = np.ldexp(1.0, np.arange(-148, 128, 2)).astype(np.float32)
    found = (program if fused else program.unfused())(x)
    np.testing.assert_array_equal(found, np.ldexp(1.0, np.arange(74, -64, -1)).astype(np.float32))


def neighbours(points: list[float], count: int) -> np.ndarray:
    """The float32 nearest to each point, and `count` more on both sides of each."""
    bits = np.array(points, np.float32).view(np.int32)
    return (bits[:, None] + np.arange(-count, count + 1, dtype=np.int32)).ravel().view(np.float32)


# Where each reduction changes its exponent, its form, or its result becomes subnormal or 1.
SEAMS = {
    "log1p": [0.75 * 2.0**e - 1 for e in (*range(-20, 0), *range(1, 30))] + [2.0**-25],
    "expm1": [(k - 0.5 + 87 / 1024) * math.log(2) for k in range(-20, 30)] + [17.25, 2.0**-25],
    "sigmoid": [(k - 0.5) * math.log(2) for k in range(-149, 26, 3)] + [-87.33, -103.97, 18.0],
    "rsqrt": [m * 4.0**h for h in range(-62, 63, 5) for m in (1, 2)] + [2.0**-126, 3.4028e38],
}


@pytest.mark.parametrize("name", SEAMS)
def test_seams_do_not_show(name):
    program = whole(name, "float32", DEGREES[name])
    x = neighbours(SEAMS[name], 2)
    x = x[np.isfinite(x)]
    for each in (program, program.unfused()):
        errors = ulps(name, FORMATS["float32"], x, each(x))
        worst = int(np.argmax(errors))
        assert errors[worst] <= 1, f"at {x[worst]!r}: {errors[worst]}"


@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
def test_a_cheaper_program_near_zero(name):
    found = reduced(name, "float32")
    cores = [built(core, degree) for core, degree in zip(found.cores, DEGREES[name], strict=True)]
    program = found.wrap_near(*cores)
    assert found.near is not None
    reach = found.near[0]
    assert program.cost.instructions < found.wrap(*cores).cost.instructions / 2
    some = np.random.default_rng(1).uniform(-reach, reach, 1000)
    turns = np.arange(-6365, 6366, 7) * (math.pi / 2)
    x = np.concatenate([some, turns, [reach, -reach, 0.0]]).astype(np.float32)
    for each in (program, program.unfused()):
        assert ulps(name, FORMATS["float32"], x, each(x)).max() <= found.bound
        assert np.isnan(each(np.float32([NAN])))


def test_the_program_near_zero_is_the_whole_one_where_there_is_no_other():
    found = reduced("exp2", "float32")
    core = built(found.cores[0], DEGREES["exp2"][0])
    assert found.wrap_near(core) == found.wrap(core)


# ---------------------------------------------------------------------------------- the interface


def test_domain_decides_which_parts_are_built():
    whole_format = whole("exp2", "float32", (5,))
    bounded = whole("exp2", "float32", (5,), ("-20", "20"))
    names = {i[0] for i in bounded.instructions}
    assert not names & {"select", "lt"}
    assert bounded.cost.instructions <= whole_format.cost.instructions - 10
    x = np.random.default_rng(2).uniform(-20, 20, 500).astype(np.float32)
    np.testing.assert_array_equal(bounded(x), whole_format(x))


def test_nothing_to_reduce():
    assert reduction(Function("exp2", ("0", "1"), "float32", "ulp")) is None
    assert reduction(Function("sin", ("-pi/4", "pi/4"), "float32", "ulp")) is None
    assert reduction(Function("exp2", ("0", "9"))) is None  # real numbers
    assert reduction(Function("bessel_j0", ("0", "9"), "float32", "ulp")) is None
    assert reduction(Function("exp2", ("0", "9"), "float32", "ulp")) is not None


def test_wrong_cores_are_refused():
    found = reduced("tanh", "float32")
    one = Builder("float32")
    program = one.program(one.add(one.x, 1))
    with pytest.raises(InputError, match="2 cores, got 1"):
        found.wrap(program)
    with pytest.raises(InputError, match="float64"):
        found.wrap(program, program.in_format("float64"))
