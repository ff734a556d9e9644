"""Solutions in closed form, in arithmetic that is precise enough to be the truth."""

from __future__ import annotations

import mpmath
import numpy as np


def prothero_robinson_value(times: np.ndarray) -> np.ndarray:
    """cos t."""
    return np.cos(times)


def airy_values(x: np.ndarray, epsilon: float) -> np.ndarray:
    """u and epsilon u' for u = Ai(-x s) + i Bi(-x s), s = epsilon^(-2/3), to the last digit.

    [x, 4]: real parts of both, then imaginary ones.
    """
    with mpmath.workdps(40):
        scale = mpmath.mpf(epsilon) ** (-mpmath.mpf(2) / 3)
        slope = -scale * mpmath.mpf(epsilon)
        rows = [
            [
                mpmath.airyai(-scale * point),
                slope * mpmath.airyai(-scale * point, derivative=1),
                mpmath.airybi(-scale * point),
                slope * mpmath.airybi(-scale * point, derivative=1),
            ]
            for point in map(mpmath.mpf, map(float, x))
        ]
        return np.array([[float(value) for value in row] for row in rows])
