"""Problems whose truth is the gradient of an expectation over discrete choices, by enumeration.

Cheap enough to enumerate, and of the kinds that matter: quadratic (where second-order estimators
are exact), a polynomial program, the reconstruction loss of a tiny VAE, a two-bit network.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError, UnknownName
from nearly.core.problem import Problem
from nearly.core.tally import counted
from nearly.derivatives import expectations
from nearly.derivatives.fogzo import Rounding

SAMPLES = (1, 8, 64, 512, 4096)


# ---- the objectives: one-hot choices [latents, classes] -> scalar


class Quadratic(eqx.Module):
    """y' A y + b' y, over all one-hots together."""

    matrix: Float[Array, "size size"]
    linear: Float[Array, " size"]

    def __call__(self, y: Float[Array, "latents classes"]) -> Float[Array, ""]:
        flat = y.reshape(-1)
        return flat @ self.matrix @ flat + self.linear @ flat


class PolynomialProgram(eqx.Module):
    """Mean |x - c|^p over Bernoulli variables x, the second class of each latent."""

    centre: Float[Array, ""]
    power: Float[Array, ""]

    def __call__(self, y: Float[Array, "latents 2"]) -> Float[Array, ""]:
        return jnp.mean(jnp.abs(y[:, 1] - self.centre) ** self.power)


class Decoder(eqx.Module):
    """-log p(image | y) of a Bernoulli decoder with one hidden layer of tanh."""

    first: Float[Array, "hidden size"]
    second: Float[Array, "pixels hidden"]
    image: Float[Array, " pixels"]

    def __call__(self, y: Float[Array, "latents classes"]) -> Float[Array, ""]:
        scores = self.second @ jnp.tanh(self.first @ y.reshape(-1))
        return jnp.sum(jax.nn.softplus(scores) - self.image * scores)


def _quadratic(draw: np.random.Generator, power: float) -> tuple[Any, int, int]:
    del power
    return Quadratic(*map(jnp.asarray, (draw.normal(size=(12, 12)), draw.normal(size=12)))), 3, 4


def _polynomial(draw: np.random.Generator, power: float) -> tuple[Any, int, int]:
    del draw
    return PolynomialProgram(jnp.asarray(0.45), jnp.asarray(power)), 8, 2


def _tiny_vae(draw: np.random.Generator, power: float) -> tuple[Any, int, int]:
    del power
    first, second = draw.normal(size=(16, 12)), draw.normal(size=(8, 16)) / 2
    image = draw.integers(0, 2, 8).astype(np.float64)
    return Decoder(*map(jnp.asarray, (first, second, image))), 3, 4


CASES: dict[str, Callable[[np.random.Generator, float], tuple[Any, int, int]]] = {
    "quadratic": _quadratic,
    "polynomial_programming": _polynomial,
    "tiny_vae": _tiny_vae,
}


# ---- the problems


class _Averaged(Problem):
    """Estimate a gradient by the mean of so many samples: that number is the dial.

    An unbiased estimator's error falls as its root; a biased one's levels off at the bias.
    """

    error_name: ClassVar[str] = "relative error"
    work_name: ClassVar[str] = "objectives"

    def dials(self, method: Any) -> Sequence[int]:
        return SAMPLES if self.random(method) else SAMPLES[:1]

    def random(self, method: Any) -> bool:
        return method is not expectations.exact

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        count = int(dial)
        if count < 1:
            raise InputError(f"dial {dial} must be a number of samples, at least 1")
        return method, jnp.asarray(count, jnp.int32)

    @abc.abstractmethod
    def gradient(self, method: Any, key: Any) -> Float[Array, " size"]:
        """One sample of a method's estimate."""

    @abc.abstractmethod
    def truth(self) -> Float[np.ndarray, " size"]:
        """The gradient itself, in float64."""

    def apply(self, standin: Any, *, key: Any) -> Any:
        method, count = standin
        shape = eqx.filter_eval_shape(self.gradient, method, key)

        def one(index: Any, sums: Any) -> Any:
            sample = self.gradient(method, jax.random.fold_in(key, index))
            return sums[0] + sample, sums[1] + sample @ sample

        zero = jnp.zeros(shape.shape, shape.dtype), jnp.zeros((), shape.dtype)
        total, squares = jax.lax.fori_loop(0, count, one, zero)
        return total / count, squares / count

    def errors(self, value: Any) -> Mapping[str, float]:
        """The mean's relative error, its cosine with the truth, and one sample's error."""
        mean, square = (np.asarray(v, np.float64) for v in value)
        truth = self.truth()
        size = float(np.linalg.norm(truth))
        lone = float(square) - 2 * float(mean @ truth) + size**2
        length = float(np.linalg.norm(mean))
        return {
            "relative error": float(np.linalg.norm(mean - truth)) / size,
            "cosine": float(mean @ truth) / (size * length) if length else 0.0,
            "error of one sample": max(lone, 0.0) ** 0.5 / size,
        }

    def floor(self) -> float:
        return 16 * float(np.finfo(self.dtype).eps)


class GradientEstimator(_Averaged):
    """The gradient of E f(y) with respect to logits, y one-hot categorical choices.

    A method of the protocol "gradient-estimators" is `(objective, logits, key) -> scalar`, an
    estimate of the expectation whose *gradient* is the estimate: see `expectations`. A sampler
    `(logits, key) -> (one_hot, probabilities)` becomes one by `expectations.Pathwise(sampler)`.

    **Arguments:**

    - `case`: `quadratic`, `polynomial_programming` or `tiny_vae`.
    - `power`: of the polynomial program. `seed`: of the instance and its logits.
    """

    case: str = "quadratic"
    power: float = 1.5
    seed: int = 0
    dtype: str = "float64"
    protocol: ClassVar[str] = "gradient-estimators"

    def __check_init__(self) -> None:
        if self.case not in CASES:
            raise UnknownName("case", self.case, CASES)
        if self.power < 1:
            raise InputError(f"power={self.power} must be at least 1, or the slope is infinite")

    @property
    def name(self) -> str:
        return self.case

    def instance(self) -> tuple[Callable[[Any], Any], Float[Array, "latents classes"]]:
        """The objective and the logits, in whichever precision JAX has now."""
        draw = np.random.default_rng(self.seed)
        objective, latents, classes = CASES[self.case](draw, self.power)
        logits = jnp.asarray(draw.normal(size=(latents, classes)))
        wanted = jnp.float64 if jax.config.read("jax_enable_x64") else jnp.float32
        return jax.tree.map(lambda x: x.astype(wanted), (objective, logits))

    def gradient(self, method: Any, key: Any) -> Float[Array, " size"]:
        objective, logits = self.instance()
        oracle = counted(objective, "objectives")
        return jax.grad(lambda x: method(oracle, x, key))(logits).reshape(-1)

    def truth(self) -> Float[np.ndarray, " size"]:
        with jax.enable_x64(True):
            objective, logits = self.instance()
            slope = jax.grad(lambda x: expectations.exact(objective, x))(logits)
            return np.asarray(slope).reshape(-1)


class QuantisedGradient(_Averaged):
    """The gradient of a two-bit network's loss, smoothed by stochastic rounding.

    The hard loss is piecewise constant; its mean over stochastic rounding of every weight has a
    gradient, found by enumeration, which is what the identity's backward pass stands for.

    A method of the protocol "quantised-gradients" is `(objective, weights, *, key, step) ->
    (value, gradient)`, the `gradient` of `nearly.training.fit`; the objective is hard forwards and
    straight-through backwards. Its scale is arbitrary (a learning rate follows), so the error is
    taken after the best rescaling: the sine of the angle to the truth.

    **Arguments:** `seed` of data and weights.
    """

    seed: int = 0
    dtype: str = "float64"
    name: ClassVar[str] = "two_bit_mlp"
    error_name: ClassVar[str] = "sine of the angle"
    protocol: ClassVar[str] = "quantised-gradients"

    def random(self, method: Any) -> bool:
        from nearly.derivatives import fogzo

        return method is not fogzo.straight_through

    def instance(self) -> tuple[Callable[[Any], Any], Float[Array, " 8"]]:
        """The loss as a function of the rounded weights, and the weights."""
        draw = np.random.default_rng(self.seed)
        inputs, targets = jnp.asarray(draw.normal(size=(16, 3))), jnp.asarray(draw.normal(size=16))

        def loss(w: Float[Array, " 8"]) -> Float[Array, ""]:
            hidden = jnp.tanh(inputs @ w[:6].reshape(3, 2))
            return jnp.mean((hidden @ w[6:] - targets) ** 2)

        # Inside the levels, where stochastic rounding takes one of two neighbours.
        return loss, jnp.asarray(draw.uniform(-1.9, 0.9, 8))

    def gradient(self, method: Any, key: Any) -> Float[Array, " 8"]:
        loss, weights = self.instance()
        oracle, rounding = counted(loss, "objectives"), Rounding(bits=2)
        step = jnp.zeros((), jnp.int32)
        return method(lambda w: oracle(rounding(w)), weights, key=key, step=step)[1]

    def truth(self) -> Float[np.ndarray, " 8"]:
        with jax.enable_x64(True):
            loss, weights = self.instance()
            below = jnp.floor(weights)

            def expected(w: Any) -> Any:
                # Two choices for each weight, with the probabilities of stochastic rounding.
                up = w - below
                chances = jnp.log(jnp.stack([1 - up, up], -1))
                return expectations.exact(lambda y: loss(below + y[:, 1]), chances)

            return np.asarray(jax.grad(expected)(weights))

    def errors(self, value: Any) -> Mapping[str, float]:
        found = super().errors(value)
        sine = max(0.0, 1 - found["cosine"] ** 2) ** 0.5 if found["cosine"] > 0 else 1.0
        return {self.error_name: sine, "cosine": found["cosine"]}

    def floor(self) -> float:
        return float(np.finfo(self.dtype).eps) ** 0.5  # what 1 - cosine^2 resolves
