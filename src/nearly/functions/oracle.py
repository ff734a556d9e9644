"""Truth about scalar functions, by ball arithmetic: values and Taylor series with guaranteed error.

An `Oracle` is a composition of named elementary functions; python-flint's Arb encloses it at any
precision, so every digit that nearly states about a function is a digit of the function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from flint import arb, arb_series, ctx

from nearly.core.errors import NotProven
from nearly.functions.balls import compose, exact, is_narrow, meet
from nearly.functions.elementary.rule import Coefficients, Points

_HIGHEST_PRECISION = 1 << 14
_TINY = arb(2) ** -4096  # below every number of every format
_EXTRA = 6  # terms of the expansion about the midpoint of a wide ball


@dataclass(frozen=True, eq=False)
class Oracle:
    """A real function that can be enclosed.

    **Arguments:**

    - `text`: the function as the user wrote it.
    - `value`: ball -> ball that contains the image, at the working precision `flint.ctx.prec`;
      not finite where the function may be undefined.
    - `coefficients`: (ball, n) -> the first n Taylor coefficients, each a ball that contains the
      true one at every point of the argument.
    - `parity`: `"odd"`, `"even"`, or `None` where neither is known.
    - `zeros`: where it is known to be exactly zero.
    - `special`: IEEE results at infinities and poles, where they are known.
    - `unproven`: why the values are no guaranteed enclosures; empty where they are. Only a Python
      callable that cannot be traced has such a reason: float64 values are all that is known of it.
    """

    text: str
    value: Callable[[arb], arb]
    coefficients: Coefficients
    parity: str | None = None
    zeros: tuple[Points, ...] = ()
    special: Mapping[float, float] = field(default_factory=dict)
    unproven: str = ""

    @property
    def provable(self) -> bool:
        """Whether the enclosures are guaranteed."""
        return not self.unproven

    def taylor(self, x: arb, n: int) -> list[arb]:
        """The first n Taylor coefficients at every point of the ball `x`.

        Over a wide ball they are expanded about its midpoint, which takes out the blow-up of
        interval arithmetic: about three times the cost, and a radius near the true variation.
        """
        if is_narrow(x):
            return self.coefficients(x, n)
        middle = x.mid()
        offset = x - middle
        near = self.coefficients(middle, n + _EXTRA)
        far = self.coefficients(x, n + _EXTRA)
        result = []
        for k in range(n):
            # The k-th coefficient is itself a function, with coefficients binomial(k+j, j) a_{k+j}.
            total, binomial = near[k], 1
            power = offset
            for j in range(1, _EXTRA + 1):
                binomial = binomial * (k + j) // j
                source = far if j == _EXTRA else near
                total = total + source[k + j] * binomial * power
                power = power * offset
            result.append(meet(far[k], total))
        return result

    def series(self, s: arb_series) -> arb_series:
        """The composition with a power series, to the length `s.prec`.

        Over a wide constant term every coefficient is enclosed over all of it: the last one is a
        Taylor remainder. `flint.ctx.cap` is lifted and restored.
        """
        return compose(self.taylor(s[0], s.prec), s)

    def at(self, x: arb | Fraction | int, bits: int = 64) -> arb:
        """The value at an exact point, the precision raised until `bits` of it are certain.

        A value below 2^-4096 is returned as a ball about 0 no wider than that. Raises `NotProven`
        where no precision up to 2^14 bits is enough: a pole, a zero that is not exactly zero, a
        point outside the domain.
        """
        precision = bits + 32
        while precision <= _HIGHEST_PRECISION:
            with ctx.workprec(precision):
                ball = self.value(exact(x))
                if _is_decided(ball, bits):
                    return ball
            precision *= 2
        point = float(x) if isinstance(x, Fraction | int) else float(x.mid())
        raise NotProven(f"{self.text} has no finite value that can be decided at x = {point!r}")

    def table(self, points: np.ndarray, bits: int = 106) -> tuple[np.ndarray, np.ndarray]:
        """True values at many float64 points as unevaluated sums `high + low` of two float64.

        `high` is the truth rounded to float64 (infinite where it overflows, the IEEE result at
        infinities and poles where it is known, NaN where the function is undefined), `low` the
        rest. Costs 4 (tanh) to 40 (erfinv) microseconds a point.
        """
        points = np.asarray(points, np.float64)
        high, low = [], []
        with ctx.workprec(bits + 32):
            for x in points.ravel().tolist():
                ball = self.value(arb(x)) if x - x == 0 else arb.nan()
                if ball.rel_accuracy_bits() < bits and not ball.is_zero():
                    ball = self._settled(x, bits)
                first = float(ball)
                high.append(first)
                low.append(float(ball - first))
        head, tail = np.array(high), np.array(low)
        tail[~np.isfinite(head)] = 0.0
        total = head + tail  # Arb rounds towards zero
        with np.errstate(invalid="ignore"):  # where the truth is infinite
            tail = np.where(np.isfinite(total), tail - (total - head), 0.0)
        return total.reshape(points.shape), tail.reshape(points.shape)

    def _settled(self, x: float, bits: int) -> arb:
        if x in self.special:
            return arb(self.special[x])
        try:
            return self.at(arb(x), bits)
        except NotProven:
            return arb.nan()


def _is_decided(ball: arb, bits: int) -> bool:
    if not ball.is_finite():
        return False
    return ball.rel_accuracy_bits() >= bits or ball.is_zero() or bool(abs(ball) < _TINY)
