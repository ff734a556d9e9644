"""Scalar functions: polynomials, rationals, tables and evolved programs, all as `Program`s.

This module is the room's catalogue, readable without importing the room.
"""

from nearly.core.catalogue import Method, Problem
from nearly.core.lazy import attach

PROTOCOL = "functions"

# Where a function is studied over the reals unless --domain says otherwise.
DOMAINS = {
    "exp2": ("0", "1"),
    "exp": ("0", "log(2)"),
    "expm1": ("0", "log(2)"),
    "log2": ("1", "2"),
    "log": ("1", "2"),
    "log10": ("1", "2"),
    "log1p": ("0", "1"),
    "sin": ("0", "pi/2"),
    "cos": ("0", "pi/4"),
    "tan": ("0", "pi/4"),
    "asin": ("0", "1/2"),
    "acos": ("0", "1/2"),
    "atan": ("0", "1"),
    "sinh": ("0", "1"),
    "cosh": ("0", "1"),
    "tanh": ("0", "1"),
    "asinh": ("0", "1"),
    "erf": ("0", "1"),
    "erfc": ("0", "1"),
    "cbrt": ("1", "8"),
    "sqrt": ("1", "4"),
    "rsqrt": ("1", "4"),
    "lgamma": ("3", "4"),
    "gamma": ("1", "2"),
    "digamma": ("2", "3"),
    "gelu": ("0", "4"),
    "sigmoid": ("0", "4"),
    "softplus": ("0", "4"),
    "bessel_j0": ("0", "2"),
    "lambertw": ("0", "1"),
}

PROBLEMS = {
    name: Problem("nearly.functions.problems:Approximation", {"function": name}) for name in DOMAINS
}


def _line(target: str, paper: str | None = None, *, default: bool = True) -> Method:
    return Method(f"nearly.functions.{target}", PROTOCOL, paper, default=default)


METHODS = {
    "taylor": _line("builders:taylor"),
    "taylor-origin": _line("builders:taylor_origin", default=False),
    "chebyshev-truncation": _line("builders:chebyshev_truncation"),
    "chebyshev-interpolation": _line("builders:chebyshev_interpolation"),
    "chebyshev-clenshaw": _line("builders:chebyshev_clenshaw", default=False),
    "remez": _line("builders:minimax", "remez"),
    "remez-estrin": _line("builders:minimax_estrin", "remez"),
    "remez-even-odd": _line("builders:minimax_even_odd", "remez", default=False),
    "remez-knuth-eve": _line("builders:minimax_knuth_eve", "knuth-eve"),
    "remez-paterson-stockmeyer": _line(
        "builders:minimax_paterson_stockmeyer", "paterson-stockmeyer", default=False
    ),
    "pade": _line("builders:pade"),
    "pade-origin": _line("builders:pade_origin", default=False),
    "rational": _line("builders:rational_two_horner", "cody-fraser-hart"),
    "rational-continued-fraction": _line(
        "builders:rational_continued_fraction", "cody-fraser-hart"
    ),
    "rational-even": _line("builders:rational_even", "cody-fraser-hart"),
    "table": _line("piecewise:table"),
    "exponential-table": _line("piecewise:exponential_table"),
    "scaling": _line("scaling:scaling"),
    "doubling": _line("composition:doubling", "autonumerics-zero"),
    "record": _line("record:record", "autonumerics-zero"),
}

RESOLVERS = {"functions": "nearly.functions.problems:resolve"}

EXPORTS = dict.fromkeys(("c", "numpy", "jax", "stablehlo"), "nearly.functions.export:export")

COMMANDS = {"discover": "nearly.functions.discovery.command:app"}

__getattr__, __all__ = attach(
    __name__,
    {
        "Approximation": "nearly.functions.problems:Approximation",
        "Builder": "nearly.functions.program:Builder",
        "Function": "nearly.functions.function:Function",
        "Program": "nearly.functions.program:Program",
        "float32": "nearly.functions.float32",
    },
)
