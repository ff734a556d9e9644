"""Linear stochastic approximation with a fixed step (`linear-stochastic-approximation`).

theta <- theta - alpha (A_n theta - b_n), from samples of a system A theta = b. `simulate` runs it;
the rest says beforehand how wrong it will be: the stationary covariance (`lyapunov_covariance` for
small steps, `stationary_covariance` for any), that of the average, and the order of its tails. No
Gaussian bound on the last iterate can exist: where a sample can stretch, the tails are a power.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.special
from jaxtyping import Array, Float

from nearly.core.errors import InputError

Draw = Callable[[Any], tuple[Array, Array]]  # key -> (A_n, b_n)


class Iterates(eqx.Module):
    """Where a run of linear stochastic approximation ended."""

    last: Float[Array, " d"]
    average: Float[Array, " d"]


def simulate(
    draw: Draw,
    start: Float[Array, " d"],
    step: float | Array,
    *,
    steps: int,
    burn_in: int = 0,
    key: Any,
) -> Iterates:
    """Run theta <- theta - step (A_n theta - b_n) on fresh samples.

    **Arguments:**

    - `draw`: key -> (A_n, b_n) of shapes (d, d) and (d,). `vmap` over keys for many chains.
    - `step`: alpha; may be traced, so one compilation serves all steps.
    - `steps`, of which the first `burn_in` are left out of the average.

    **Returns:** the last iterate and the Polyak-Ruppert average of the others.

    Raises `InputError` unless 0 <= burn_in < steps. O(d^2) a step in time, O(d) in memory.
    """
    if not 0 <= burn_in < steps:
        raise InputError(f"burn_in {burn_in} must be from 0 to below the {steps} steps")

    def advance(carry: tuple[Array, Array], inputs: tuple[Array, Array]) -> tuple[Any, None]:
        (theta, total), (index, each) = carry, inputs
        matrix, vector = draw(each)
        theta = theta - step * (matrix @ theta - vector)
        return (theta, total + jnp.where(index >= burn_in, theta, 0)), None

    inputs = jnp.arange(steps), jax.random.split(key, steps)
    (last, total), _ = jax.lax.scan(advance, (start, jnp.zeros_like(start)), inputs)
    return Iterates(last, total / (steps - burn_in))


class Discrete(eqx.Module):
    """Samples A_n that take finitely many values, with independent noise on b_n of a covariance.

    The model for which everything below is known in closed form.
    """

    matrices: Float[np.ndarray, "k d d"]
    probabilities: Float[np.ndarray, " k"]
    target: Float[np.ndarray, " d"]
    noise: Float[np.ndarray, "d d"]

    def __check_init__(self) -> None:
        if np.any(self.probabilities < 0) or not np.isclose(np.sum(self.probabilities), 1):
            raise InputError(f"probabilities {self.probabilities} must be positive and sum to 1")
        if np.min(np.real(np.linalg.eigvals(self.mean))) <= 0:
            raise InputError(
                "the mean of A has an eigenvalue without positive real part, so that no step size "
                "makes the iteration converge: negate the samples, or add a multiple of I"
            )

    @property
    def mean(self) -> Float[np.ndarray, "d d"]:
        """E A_n."""
        return np.tensordot(self.probabilities, self.matrices, 1)

    @property
    def noise_covariance(self) -> Float[np.ndarray, "d d"]:
        """Of eps_n = (A_n - A) theta* - (b_n - b), at the solution theta*."""
        shifts = (self.matrices - self.mean) @ self.target
        spread = np.einsum("k,ki,kj->ij", self.probabilities, shifts, shifts)
        return spread + self.noise

    def draw(self, key: Any) -> tuple[Array, Array]:
        """One sample (A_n, b_n), in the precision that JAX computes in."""
        first, second = jax.random.split(key)
        index = jax.random.choice(first, len(self.matrices), p=jnp.asarray(self.probabilities))
        factor = jnp.asarray(_square_root(self.noise))
        vector = jnp.asarray(self.mean @ self.target)
        noise = factor @ jax.random.normal(second, vector.shape, vector.dtype)
        return jnp.asarray(self.matrices)[index], vector + noise


def _square_root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0))


# ------------------------------------------------------------------ covariances


def lyapunov_covariance(
    mean: Float[np.ndarray, "d d"], noise: Float[np.ndarray, "d d"]
) -> Float[np.ndarray, "d d"]:
    """S with A S + S A^T = noise: the last iterate's covariance is step * S, for small steps."""
    return scipy.linalg.solve_continuous_lyapunov(mean, noise)


def stationary_covariance(model: Discrete, step: float) -> Float[np.ndarray, "d d"]:
    """The last iterate's exact stationary second moment about theta*, for any step.

    S = E[(I - alpha A) S (I - alpha A)^T] + alpha^2 Sigma: the error has mean zero, so the terms
    that couple A_n to its own noise vanish. Raises `InputError` where the step has no stationary
    variance. O(d^6) time: a solve with d^2 unknowns.
    """
    size = model.target.size
    transition = _moment_matrix(model, step, 2)
    radius = np.max(np.abs(np.linalg.eigvals(transition)))
    if radius >= 1:
        raise InputError(
            f"at step {step} the second moment grows by {radius:.4g} a step, so that there is no "
            "stationary variance: take a smaller step"
        )
    source = step**2 * model.noise_covariance
    flat = np.linalg.solve(np.eye(size**2) - transition, source.reshape(-1))
    return flat.reshape(size, size)


def averaged_covariance(model: Discrete, step: float = 0.0) -> Float[np.ndarray, "d d"]:
    """n times the covariance of the average of n iterates, for large n: A^-1 Sigma A^-T.

    At a step that is not small, Sigma holds also the noise that A_n's spread makes of the
    stationary variance.
    """
    sigma = model.noise_covariance
    if step:
        spread, around = model.matrices - model.mean, stationary_covariance(model, step)
        swapped = np.swapaxes(spread, -2, -1)
        sigma = sigma + np.tensordot(model.probabilities, spread @ around @ swapped, 1)
    inverse = np.linalg.inv(model.mean)
    return inverse @ sigma @ inverse.T


# ------------------------------------------------------------------ tails


def moment_growth(model: Discrete, step: float, order: int) -> float:
    """By what the moment of `order` grows in a step: below 1 it is finite, above 1 infinite.

    The spectral radius of E[(I - alpha A)^(⊗ order)], for even orders. O(k d^(2 order)) time.
    """
    if order < 2 or order % 2:
        raise InputError(f"order {order} must be even and at least 2")
    return float(np.max(np.abs(np.linalg.eigvals(_moment_matrix(model, step, order)))))


def _moment_matrix(model: Discrete, step: float, order: int) -> np.ndarray:
    size = model.target.size
    total = np.zeros((size**order, size**order))
    for probability, matrix in zip(model.probabilities, model.matrices, strict=True):
        factor = power = np.eye(size) - step * matrix
        for _ in range(order - 1):
            power = np.kron(power, factor)
        total += probability * power
    return total


def tail_index(factors: Float[np.ndarray, " k"], probabilities: Float[np.ndarray, " k"]) -> float:
    """Kesten's index: the k > 0 with E|factor|^k = 1; P(|theta| > t) falls as t^-k.

    **Arguments:**

    - `factors`: the values of 1 - alpha A_n in one dimension (or along a common eigenvector), with
      their `probabilities`.

    **Returns:** the index; infinite if no factor exceeds 1 in size: then the tails are those of b.
    Raises `InputError` if E log|factor| >= 0, where the iteration has no stationary law.
    """
    sizes, weights = np.abs(factors), np.asarray(probabilities)
    logs = np.log(np.maximum(sizes, np.finfo(float).tiny))
    if weights @ logs >= 0:
        raise InputError(
            f"E log|1 - alpha A| = {weights @ logs:.3g} is not negative: the iteration diverges; "
            "take a smaller step"
        )
    if np.max(sizes[weights > 0]) <= 1:
        return float("inf")

    def excess(order: float) -> float:
        return float(scipy.special.logsumexp(order * logs, b=weights))

    high = 1.0
    while excess(high) <= 0:
        high *= 2
    low = 1e-9 if high == 1.0 else high / 2
    return float(scipy.optimize.root_scalar(excess, bracket=(low, high), xtol=1e-12).root)


def hill_estimator(samples: Float[np.ndarray, " n"], largest: int) -> float:
    """The tail index of a sample from its `largest` largest sizes, with error index/sqrt(largest).

    Biased where these are not yet far in the tail: low for indices above five. Raises `InputError`
    unless 1 <= largest < n.
    """
    sizes = np.sort(np.abs(np.asarray(samples, np.float64)))
    if not 1 <= largest < sizes.size:
        raise InputError(f"largest {largest} must be from 1 to below the {sizes.size} samples")
    top = np.log(sizes[-largest - 1 :])
    return float(1 / np.mean(top[1:] - top[0]))
