"""The oracles of all named functions, and powers of terms by them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nearly.functions.elementary.rule import Rule
from nearly.functions.elementary.rules import RULES
from nearly.functions.oracle import Oracle
from nearly.functions.terms import VARIABLE, Term, call, constant, oracle, power

_LARGEST_POWER = 1000  # an integer power beyond it goes through exp and log
_LARGEST_CONSTANT = 4096  # bits of a power of constants that is kept as a rational


def real_power(base: Term, exponent: Term) -> Term:
    """A term to the power of a term: exactly by its number where that is rational."""
    number = exponent.number
    if number is None or (number.denominator == 1 and abs(number) > _LARGEST_POWER):
        return call(ELEMENTARY["exp"], exponent * call(ELEMENTARY["log"], base))
    if number == 0:
        return constant(1)
    if base.number is not None and number.denominator == 1:
        bits = max(base.number.numerator.bit_length(), base.number.denominator.bit_length())
        if bits * abs(number) < _LARGEST_CONSTANT and (base.number or number > 0):
            return constant(base.number ** int(number))
    return power(base, number)


def _named(name: str, rule: Rule) -> Oracle:
    return Oracle(name, rule.value, rule.coefficients, rule.parity, rule.zeros, rule.special or {})


def _compositions(known: Mapping[str, Oracle]) -> Iterator[tuple[str, Term]]:
    """Named functions that are quotients or sums of others."""
    x, one = VARIABLE, constant(1)
    sin, cos, tanh = (call(known[n], x) for n in ("sin", "cos", "tanh"))
    yield "sinc", sin / x
    yield "sec", one / cos
    yield "csc", one / sin
    yield "cot", cos / sin
    yield "coth", one / tanh
    yield "logit", call(known["log"], x / (one - x))
    yield "log_sigmoid", -call(known["softplus"], -x)
    yield "mish", x * call(known["tanh"], call(known["softplus"], x))


def _elementary() -> dict[str, Oracle]:
    known = {name: _named(name, rule) for name, rule in RULES.items()}
    return known | {name: oracle(term, name) for name, term in _compositions(known)}


ELEMENTARY: Mapping[str, Oracle] = _elementary()
ALIASES: Mapping[str, str] = {
    "ln": "log", "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arcsinh": "asinh",
    "arccosh": "acosh", "arctanh": "atanh", "expit": "sigmoid", "swish": "silu",
    "tgamma": "gamma", "gammaln": "lgamma", "loggamma": "lgamma", "j0": "bessel_j0",
    "j1": "bessel_j1", "y0": "bessel_y0", "i0": "bessel_i0", "i1": "bessel_i1",
    "k0": "bessel_k0", "psi": "digamma", "fabs": "abs", "norm_cdf": "ndtr",
    "erf_inv": "erfinv",
}  # fmt: skip
