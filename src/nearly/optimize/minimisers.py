"""The minimisers as the catalogue lists them: with tolerances that a problem replaces."""

from __future__ import annotations

from typing import Any

import optimistix as optx

from nearly.core.errors import InputError
from nearly.optimize.newton import (
    ArmijoNewton,
    GradientNormalizedNewton,
    LazyCubicNewton,
    LazyRegularizedNewton,
    SuperUniversalNewton,
    UniversalNewton,
)
from nearly.optimize.newton.factor import GaussNewton

_ANY = (1e-8, 1e-8)

gradient_normalized_newton = GradientNormalizedNewton(*_ANY)
super_universal_newton = SuperUniversalNewton(*_ANY)
universal_newton = UniversalNewton(*_ANY)
armijo_newton = ArmijoNewton(*_ANY)
cubic_newton = LazyCubicNewton(*_ANY, period=1)
lazy_cubic_newton = LazyCubicNewton(*_ANY)
lazy_regularized_newton = LazyRegularizedNewton(*_ANY)
bfgs = optx.BFGS(*_ANY)
lbfgs = optx.LBFGS(*_ANY)
nonlinear_cg = optx.NonlinearCG(*_ANY)


def gradient_normalized_gauss_newton(function: Any) -> GradientNormalizedNewton:
    """With 2 J^T J in place of the Hessian; raises `InputError` for what is no `SumOfSquares`."""
    residuals = getattr(function, "residuals", None)
    if residuals is None:
        raise InputError(
            "the function to minimise has no residuals: Gauss-Newton needs a sum of squares "
            "(nearly.optimize.problems.smooth.SumOfSquares); take gradient-normalized-newton"
        )
    return GradientNormalizedNewton(*_ANY, hessian=GaussNewton(lambda x, _: residuals(x)))
