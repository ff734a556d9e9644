"""Gradients through a categorical choice: samplers that are one-hot forwards and smooth backwards.

All of them draw `y`, one-hot, and pretend on the way back that y depends on the logits by

    dy = sum_r  w_r J(q_r) dlogits,        J(q) v = q * (v - <q, v>),

a weighted sum of Jacobians of softmaxes with outputs q_r, which is all they differ in:

| sampler | terms (w, q) | error |
|---|---|---|
| straight-through | (1/tau, softmax(logits / tau)) | first order: exact for linear objectives |
| Gumbel straight-through | (1/tau, softmax((logits + g) / tau)), y the largest of logits + g | |
| Gumbel-Rao | the mean of K such terms, g drawn again given y: less variance, same bias | |
| ReinMax | (2, (softmax(logits / tau) + y) / 2), (-1/2, softmax(logits)) | second order |

ReinMax (`reinmax`) by hand. With p = softmax(logits) the gradient of E f(y) is
sum_ij p_j (f(e_i) - f(e_j)) dp_i. Euler's step f(e_i) - f(e_j) ~ f'(e_j)(e_i - e_j) gives the
straight-through estimator, Heun's trapezoid (f'(e_i) + f'(e_j))(e_i - e_j) / 2 gives, for one
sample y and g = f'(y),

    J(p) g / 2 + (y - p) <y - p, g> / 2  =  2 J((p + y) / 2) g - J(p) g / 2,

exact where f' is linear between the corners: for f quadratic in each one-hot separately.

How this differs from the authors' program: the rule is a Jacobian-vector product (J is symmetric),
so forward mode works too; any leading axes; classes masked by logits of -inf get no gradient.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nearly.core.errors import InputError

Logits = Float[Array, "*batch classes"]
Terms = tuple[tuple[float | Array, Float[Array, "draws *batch classes"]], ...]


@jax.custom_jvp
def _choice(one_hot: Logits, logits: Logits, terms: Terms) -> Logits:
    """`one_hot`, moving with the logits by the terms (w, q); q's first axis is averaged over."""
    return one_hot


@_choice.defjvp
def _choice_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    one_hot, _, terms = primals
    d = tangents[1]
    moved = [w * jnp.mean(q * (d - jnp.sum(q * d, -1, keepdims=True)), 0) for w, q in terms]
    return one_hot, sum(moved[1:], moved[0])


def sample(logits: Logits, key: Any) -> Logits:
    """One-hot draws from softmax(logits) along the last axis; no gradient."""
    logits = jax.lax.stop_gradient(logits)
    return _largest(logits + jax.random.gumbel(key, logits.shape, logits.dtype))


def _largest(noisy: Logits) -> Logits:
    """One-hot of the first largest entry.

    Not by `argmax`: XLA on the CPU fuses whatever made its argument into the reduction, number by
    number, which takes the drawing of Gumbels twice as long.
    """
    classes = noisy.shape[-1]
    places = jax.lax.broadcasted_iota(jnp.int32, noisy.shape, noisy.ndim - 1)
    is_largest = noisy == jnp.max(noisy, -1, keepdims=True)
    first = jnp.min(jnp.where(is_largest, places, classes), -1, keepdims=True)
    return (places == first).astype(noisy.dtype)


def straight_through_choice(one_hot: Logits, logits: Logits, tau: float = 1.0) -> Logits:
    """A given draw with the straight-through gradient; see `straight_through`."""
    _check(tau, 0.0)
    return _choice(one_hot, logits, ((1 / tau, _softmax(logits, tau)[None]),))


def reinmax_choice(one_hot: Logits, logits: Logits, tau: float = 1.0) -> Logits:
    """A given draw with ReinMax's gradient; see `reinmax`."""
    _check(tau, 1.0)
    heun = (_softmax(logits, tau) + one_hot) / 2
    return _choice(one_hot, logits, ((2.0, heun[None]), (-0.5, _softmax(logits)[None])))


def straight_through(logits: Logits, key: Any, tau: float = 1.0) -> tuple[Logits, Logits]:
    """A categorical draw whose gradient is that of softmax(logits / tau).

    **Arguments:**

    - `logits`: `[..., classes]`, unnormalised log-probabilities; -inf rules a class out.
    - `tau`: temperature of the pretended softmax; the draw does not depend on it.

    **Returns:** the draw, one-hot, and the probabilities, both `[..., classes]`.

    Raises `InputError` for a tau that is not positive. **Cost:** one softmax.
    """
    return straight_through_choice(sample(logits, key), logits, tau), jax.nn.softmax(logits)


def reinmax(logits: Logits, key: Any, tau: float = 1.0) -> tuple[Logits, Logits]:
    """A drop-in for `straight_through` with second-order accuracy: no bias on quadratics.

    Prefer it where the objective bends between the choices. Its variance is larger, and from
    quartic objectives on its bias need not be smaller. tau > 1 trades bias for variance; below 1
    it is refused, as by the authors (Gumbel estimators want tau < 1, this one does not).

    Arguments, returns, raises and cost as `straight_through`. Paper: `reinmax`.
    """
    return reinmax_choice(sample(logits, key), logits, tau), jax.nn.softmax(logits)


def gumbel_straight_through(logits: Logits, key: Any, tau: float = 0.5) -> tuple[Logits, Logits]:
    """The Gumbel-max draw whose gradient is that of the Gumbel-softmax at temperature tau.

    Arguments, returns, raises and cost as `straight_through`.
    """
    _check(tau, 0.0)
    noise = jax.random.gumbel(key, logits.shape, logits.dtype)
    noisy = jax.lax.stop_gradient(logits) + noise
    choice = _choice(_largest(noisy), logits, ((1 / tau, _softmax(noisy, tau)[None]),))
    return choice, jax.nn.softmax(logits)


def gumbel_rao(
    logits: Logits, key: Any, tau: float = 0.5, samples: int = 10
) -> tuple[Logits, Logits]:
    """`gumbel_straight_through` with its noise averaged out given the draw (Rao-Blackwell).

    **Arguments:** as `straight_through`; `samples`: draws of the noise given the choice. The
    objective is still evaluated once.

    Raises `InputError` for a bad tau or no samples. **Cost:** `samples` softmaxes.
    """
    _check(tau, 0.0)
    if samples < 1:
        raise InputError(f"samples={samples} must be at least 1")
    choice_key, noise_key = jax.random.split(key)
    one_hot = sample(logits, choice_key)
    noisy = _gumbels_given(one_hot, logits, noise_key, samples)
    choice = _choice(one_hot, logits, ((1 / tau, _softmax(noisy, tau)),))
    return choice, jax.nn.softmax(logits)


def _gumbels_given(
    one_hot: Logits, logits: Logits, key: Any, samples: int
) -> Float[Array, "draws *batch classes"]:
    """Logits plus noise less log Z, the noise drawn given where the largest sum is.

    The largest, -log E, is independent of where it is; the others are Gumbels cut off there:
    -log(E_j / p_j + E), all E standard exponentials.
    """
    draws = jax.random.exponential(key, (samples, *logits.shape), logits.dtype)
    draws = jnp.maximum(draws, jnp.finfo(draws.dtype).tiny)  # a zero has no logarithm
    p = jax.lax.stop_gradient(jax.nn.softmax(logits))
    top = jnp.sum(one_hot * draws, -1, keepdims=True)
    others = jnp.where(p > 0, draws / p, jnp.inf) + top
    return -jnp.log(jnp.where(one_hot > 0, top, others))


def _softmax(logits: Any, tau: float = 1.0) -> Any:
    return jax.lax.stop_gradient(jax.nn.softmax(logits / tau))


def _check(tau: Any, least: float) -> None:
    # A traced temperature has no value to check.
    if isinstance(tau, (int, float)) and not (tau > 0 and tau >= least):
        wanted = "at least 1: ReinMax is not annealed below" if least else "positive"
        raise InputError(f"tau={tau} must be {wanted}")
