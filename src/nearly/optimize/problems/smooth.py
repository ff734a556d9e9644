"""`Smooth`: minimise a smooth function of some tens of unknowns, to any precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, Float

from nearly.core.errors import InputError, UnknownName
from nearly.core.problem import Host, Problem
from nearly.core.tally import counted
from nearly.datasets import breast_cancer
from nearly.optimize.problems.classic import CLASSIC

ORACLE = "f"
TOLERANCES = tuple(10.0**-k for k in (1, 2, 3, 4, 6, 8, 10, 12))
Vector = Float[Array, " d"]


class SumOfSquares(eqx.Module):
    """`f(x) = |r(x)|^2`. Methods that want the residuals' Jacobian find it in `residuals`."""

    residuals: Callable[[Any], Any]

    def __call__(self, x: Any) -> Any:
        return jnp.sum(self.residuals(x) ** 2)


class LogisticRegression(eqx.Module):
    """Mean logistic loss of labels -1 and 1, and `weight |x|^2 / 2`."""

    features: Any  # [samples, d]
    labels: Any  # [samples]
    weight: float = 1e-6

    def __call__(self, x: Vector) -> Float[Array, ""]:
        margins = self.labels * (self.features @ x)
        return jnp.mean(jnp.logaddexp(0, -margins)) + self.weight * x @ x / 2


class LogSumExp(eqx.Module):
    """`mu log sum exp((A x - b) / mu)`: a maximum smoothed over a width of mu, convex."""

    matrix: Any  # [rows, d]
    shift: Any  # [rows]
    width: float = 0.05

    def __call__(self, x: Vector) -> Float[Array, ""]:
        inner = (self.matrix @ x - self.shift) / self.width
        return self.width * jax.nn.logsumexp(inner)


def cubic_chain_value(x: Vector) -> Float[Array, ""]:
    """`sum |x_i - x_i+1|^3 / 3 - x_1`, with x_n+1 = 0: hard for second-order methods (Nesterov)."""
    return jnp.sum(jnp.abs(jnp.diff(jnp.append(x, 0))) ** 3) / 3 - x[0]


class Smooth(Problem):
    """Minimise a smooth function from one start; the dial is the tolerance.

    A method (protocol `minimisers`) is one of

    - an optimistix minimiser with fields `rtol` and `atol`, which are both set to the dial;
    - a function `function -> minimiser`, for those that need the residuals of a `SumOfSquares`;
    - a `nearly.Host` of `(value_and_gradient, hessian, start, tolerance) -> x`, on NumPy arrays.

    The error is how far the value is above the minimum, relative to 1 or the minimum if that is
    larger, judged in float64; beside it stands the gradient's norm. Work is counted in gradients
    (`f vjps`; a Hessian by forward-over-reverse is one for each unknown); values, and the
    factorisations that ours report, stand beside it.

    **Arguments:** `function` of an array; `start`; `minimum`, the least value, to the rounding of
    float64; `max_steps`.
    """

    function: Callable[[Any], Any]
    start: np.ndarray
    minimum: float
    name: str = "smooth"
    dtype: str = "float64"
    max_steps: int = 2000
    error_name: ClassVar[str] = "excess"
    work_name: ClassVar[str] = f"{ORACLE} vjps"
    protocol: ClassVar[str] = "minimisers"

    def __check_init__(self) -> None:
        if self.dtype not in ("float32", "float64"):
            raise InputError(f"dtype {self.dtype!r} must be float32 or float64")
        if self.max_steps < 1:
            raise InputError(f"max_steps {self.max_steps} must be at least 1")
        if not np.all(np.isfinite(self.start)):
            raise InputError(f"the start {self.start} must be finite")

    def dials(self, method: Any) -> Sequence[float]:
        return TOLERANCES[: 4 if self.dtype == "float32" else None]

    def floor(self) -> float:
        return 1e-15

    def random(self, method: Any) -> bool:
        return False

    @property
    def oracle(self) -> Callable[[Any], Any]:
        """The function, its calls counted; so are those of a sum of squares' residuals."""
        function = _cast(self.function, self.dtype)
        if isinstance(function, SumOfSquares):
            return SumOfSquares(counted(function.residuals, ORACLE))
        return counted(function, ORACLE)

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        if isinstance(method, Host):
            return self._on_host(method, float(dial))
        made = method if isinstance(method, optx.AbstractMinimiser) else method(self.oracle)
        if not isinstance(made, optx.AbstractMinimiser):
            raise InputError(
                f"a {type(made).__name__} is no minimiser: give an optimistix minimiser, a "
                "function that makes one from the function to minimise, or a nearly.Host"
            )
        tolerance = jnp.asarray(dial, self.dtype)
        return eqx.tree_at(lambda m: (m.rtol, m.atol), made, (tolerance, tolerance))

    def _on_host(self, method: Host, tolerance: float) -> Host:
        oracle = self.oracle
        start = np.asarray(self.start, self.dtype)
        slope, curvature = jax.jit(jax.value_and_grad(oracle)), jax.jit(jax.hessian(oracle))

        def both(x: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = slope(x.astype(start.dtype))
            return float(value), np.asarray(gradient, np.float64)

        def second(x: np.ndarray) -> np.ndarray:
            return np.asarray(curvature(x.astype(start.dtype)), np.float64)

        return Host(lambda: method(both, second, start, tolerance))

    def apply(self, standin: Any, *, key: Any) -> Any:
        if isinstance(standin, Host):
            return standin()
        oracle = self.oracle
        solution = optx.minimise(
            lambda x, _: oracle(x),
            standin,
            jnp.asarray(self.start, self.dtype),
            max_steps=self.max_steps,
            throw=False,
        )
        return solution.value

    def errors(self, value: Any) -> Mapping[str, float]:
        with jax.enable_x64(True):
            function = _cast(self.function, "float64")
            f, gradient = jax.value_and_grad(function)(jnp.asarray(value, "float64"))
        excess = (float(f) - self.minimum) / max(1.0, abs(self.minimum))
        # Another minimum may lie lower than the one that is known: that is no error.
        return {
            "excess": max(excess, 0.0) if np.isfinite(excess) else float("inf"),
            "gradient norm": float(np.linalg.norm(np.asarray(gradient))),
        }


def _cast(function: Any, dtype: str) -> Any:
    """A function whose own arrays are of a dtype."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, dtype) if isinstance(leaf, np.ndarray) else leaf, function
    )


def _smooth(function: Any, start: np.ndarray, minimum: float, name: str, dtype: str) -> Smooth:
    return Smooth(function=function, start=start, minimum=minimum, name=name, dtype=dtype)


def classic(function: str = "rosenbrock", dtype: str = "float64") -> Smooth:
    """One of the classic test functions, by its name in `nearly.optimize.problems.classic`."""
    if function not in CLASSIC:
        raise UnknownName("test function", function, CLASSIC)
    found = CLASSIC[function]
    return _smooth(SumOfSquares(found.residuals), found.start, found.minimum, function, dtype)


def cubic_chain(size: int = 20, dtype: str = "float64") -> Smooth:
    """Nesterov's hard function for second-order methods; its minimum is -2 n / 3."""
    if size < 2:
        raise InputError(f"size {size} must be at least 2 unknowns")
    return _smooth(cubic_chain_value, np.zeros(size), -2 * size / 3, "cubic-chain", dtype)


def logistic_regression(weight: float = 1e-6, far: float = 0.0, dtype: str = "float64") -> Smooth:
    """Logistic regression on the breast-cancer data, 30 features and a constant.

    `far` is the value of all unknowns at the start: 8 is far from the minimum.
    """
    if not weight > 0:
        raise InputError(f"weight {weight} must be positive, or there is no minimum")
    features, labels = _cancer()
    function = LogisticRegression(features, labels, weight)
    start = np.full(features.shape[1], far)
    return _smooth(function, start, _least_logistic_loss(weight), "logreg-breast-cancer", dtype)


@lru_cache(1)
def _cancer() -> tuple[np.ndarray, np.ndarray]:
    """Features with a constant one, labels -1 and 1."""
    data = breast_cancer()
    inputs = np.asarray(data.train_inputs, np.float64)
    labels = 2.0 * np.asarray(data.train_targets, np.float64) - 1
    return np.pad(inputs, ((0, 0), (0, 1)), constant_values=1), labels


@lru_cache
def _least_logistic_loss(weight: float) -> float:
    """By damped Newton on NumPy arrays, until the decrement is at rounding; none of ours."""
    features, labels = _cancer()
    rows = labels[:, None] * features

    def value(x: np.ndarray) -> float:
        return float(np.mean(np.logaddexp(0, -rows @ x)) + weight * x @ x / 2)

    x = np.zeros(features.shape[1])
    for _ in range(500):
        share = 1 / (1 + np.exp(rows @ x))
        gradient = -rows.T @ share / len(rows) + weight * x
        bend = rows.T @ (rows * (share * (1 - share))[:, None]) / len(rows)
        step = np.linalg.solve(bend + weight * np.eye(len(x)), gradient)
        if gradient @ step < 1e-30:
            break
        size = 1.0
        while value(x - size * step) > value(x) and size > 1e-12:
            size /= 2
        x -= size * step
    return value(x)


def log_sum_exp(
    width: float = 0.05, rows: int = 500, size: int = 200, instance: int = 0, dtype: str = "float64"
) -> Smooth:
    """A smoothed maximum of random affine functions whose minimum is at 0 (made so by a shift).

    As in `gradient-normalized-smoothness`: entries of A and b uniform in [-1, 1], A then shifted so
    that the gradient at 0 vanishes.
    """
    if not width > 0:
        raise InputError(f"width {width} must be positive")
    random = np.random.default_rng(instance)
    matrix, shift = random.uniform(-1, 1, (rows, size)), random.uniform(-1, 1, rows)
    weights = np.exp((-shift - np.max(-shift)) / width)
    matrix = matrix - (weights / weights.sum()) @ matrix
    function = LogSumExp(matrix, shift, width)
    start = np.ones(size)
    peak = np.max(-shift)
    minimum = peak + width * np.log(np.sum(np.exp((-shift - peak) / width)))
    return _smooth(function, start, float(minimum), "logsumexp", dtype)
