"""Spectra of curvature operators by stochastic Lanczos quadrature, and what they say of step sizes.

The Hessian of a batch is the full Hessian plus noise, and noise pushes the largest eigenvalue out.
`batch_law` is what random matrix theory says of how far; `batch_largest_eigenvalue` measures it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from nearly.core.errors import InputError
from nearly.curvature.objective import Objective
from nearly.curvature.operators import Hessian
from nearly.linear.krylov import lanczos, ritz_pairs


class Spectrum(eqx.Module):
    """A spectral distribution as nodes and weights: a Gauss quadrature for each random probe.

    **Arguments:**

    - `nodes`: (probes, steps), Ritz values, ascending. `weights`: alike, each row adds up to 1.
    - `size`: of the operator, the number of its eigenvalues.
    """

    nodes: Float[Array, "probes steps"]
    weights: Float[Array, "probes steps"]
    size: int = eqx.field(static=True)

    def trace(self, function: Callable[[Array], Array] = lambda x: x) -> Float[Array, ""]:
        """The trace of a function of the operator, exact on average up to degree 2 steps - 1."""
        return self.size * jnp.mean(jnp.sum(self.weights * function(self.nodes), axis=1))

    def trace_error(self, function: Callable[[Array], Array] = lambda x: x) -> Float[Array, ""]:
        """The standard error of `trace` over the probes (nan for one probe)."""
        values = self.size * jnp.sum(self.weights * function(self.nodes), axis=1)
        return jnp.std(values, ddof=1) / jnp.sqrt(len(values))

    def density(self, points: Float[Array, " points"], width: float) -> Float[Array, " points"]:
        """The density of eigenvalues at some points, each node smeared by a Gaussian of a width."""
        if not width > 0:
            raise InputError(f"width {width} must be positive: the standard deviation of a node")
        z = (points[:, None, None] - self.nodes) / width
        bumps = jnp.exp(-(z**2) / 2) / (width * jnp.sqrt(2 * jnp.pi))
        return jnp.mean(jnp.sum(bumps * self.weights, axis=-1), axis=-1)

    def cumulative(self, points: Float[Array, " points"]) -> Float[Array, " points"]:
        """The share of eigenvalues that are at most each point."""
        below = self.nodes <= points[:, None, None]
        return jnp.mean(jnp.sum(jnp.where(below, self.weights, 0), axis=-1), axis=-1)

    @property
    def largest(self) -> Float[Array, ""]:
        """The largest Ritz value met: never above the largest eigenvalue, but for rounding."""
        return jnp.max(self.nodes)

    @property
    def smallest(self) -> Float[Array, ""]:
        """The smallest Ritz value met: never below the smallest eigenvalue, but for rounding."""
        return jnp.min(self.nodes)


def lanczos_quadrature(
    operator: lx.AbstractLinearOperator, key: PRNGKeyArray, *, steps: int = 30, probes: int = 8
) -> Spectrum:
    """The spectrum of a symmetric operator by stochastic Lanczos quadrature.

    **Arguments:**

    - `operator`: symmetric, on a pytree. `key`: draws the probes, vectors of random signs.
    - `steps`: of Lanczos, at most the operator's size; nodes per probe. `probes`: averaged over.

    Raises `InputError` for no steps, more steps than unknowns, or no probes. Costs `steps * probes`
    products and `O(steps^2 size)` for reorthogonalisation, one probe in memory at a time. Paper:
    `batch-hessian-learning-rates`; unlike its code, with full reorthogonalisation.
    """
    if probes < 1:
        raise InputError(f"{probes} probes: give at least 1")
    structure = operator.in_structure()
    like = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), structure)
    flat, unravel = ravel_pytree(like)

    def quadrature(key: PRNGKeyArray) -> tuple[Array, Array]:
        probe = jax.random.rademacher(key, flat.shape, flat.dtype)
        decomposition = lanczos(operator, unravel(probe), steps)
        nodes, inner = jnp.linalg.eigh(decomposition.matrix)
        return nodes, inner[0] ** 2

    nodes, weights = jax.lax.map(quadrature, jax.random.split(key, probes))
    return Spectrum(nodes, weights, flat.size)


def largest_eigenvalue(
    operator: lx.AbstractLinearOperator, key: PRNGKeyArray, *, steps: int = 20
) -> Float[Array, ""]:
    """The largest eigenvalue (algebraically) by Lanczos from a random vector: a lower bound.

    Costs `steps` products; converges the faster the larger the gap below it.
    """
    return lanczos_quadrature(operator, key, steps=steps, probes=1).largest


def batch_largest_eigenvalue(
    objective: Objective, batch: int, key: PRNGKeyArray, *, draws: int = 10, steps: int = 20
) -> Float[Array, " draws"]:
    """The largest eigenvalue of the Hessian of random batches.

    **Arguments:**

    - `objective`: model, loss and all data. `batch`: samples drawn, without replacement.
    - `draws`: batches. Each is kept fixed for the `steps` products of its Lanczos run.

    Raises `InputError` for a batch of no sample or of more than there are. Costs `draws * steps`
    Hessian products of a batch.
    """
    if not 1 <= batch <= objective.samples:
        raise InputError(f"a batch of {batch} out of {objective.samples} samples")

    def one(key: PRNGKeyArray) -> Array:
        which, start = jax.random.split(key)
        rows = jax.random.choice(which, objective.samples, (batch,), replace=False)
        part = objective.on(*jax.tree.map(lambda leaf: leaf[rows], objective.data))
        return largest_eigenvalue(Hessian(part), start, steps=steps)

    return jax.lax.map(one, jax.random.split(key, draws))


def hessian_noise(
    objective: Objective, key: PRNGKeyArray, *, samples: int = 256, probes: int = 4
) -> Float[Array, ""]:
    """`P s^2`: the mean squared Frobenius distance of one sample's Hessian from the full one, over
    P, the number of parameters.

    s^2 is then the variance of one of the P^2 entries, as the law's noise is modelled. Estimated by
    random probes; costs `samples * probes` Hessian products of one sample.
    """
    choose, draw = jax.random.split(key)
    rows = jax.random.choice(choose, objective.samples, (samples,), replace=False)
    inputs, targets = jax.tree.map(lambda leaf: leaf[rows], objective.data)
    flat, unravel = ravel_pytree(objective.parameters)

    def product(loss: Callable[[PyTree], Array], probe: Array) -> Array:
        tangent = unravel(probe)
        return ravel_pytree(jax.jvp(jax.grad(loss), (objective.parameters,), (tangent,))[1])[0]

    def distance(probe: Array) -> Array:
        whole = product(objective.value, probe)

        def one(x: Any, t: Any) -> Array:
            apart = product(lambda p: objective.sample_loss(p, x, t), probe) - whole
            return jnp.vdot(apart, apart)

        return jnp.mean(jax.lax.map(lambda xt: one(*xt), (inputs, targets), batch_size=32))

    vectors = jax.random.rademacher(draw, (probes, flat.size), flat.dtype)
    return jnp.mean(jax.lax.map(distance, vectors)) / flat.size


def batch_law(
    largest: Float[Array, ""] | float,
    noise: Float[Array, ""] | float,
    batch: Float[Array, " *b"] | float,
    samples: float = jnp.inf,
) -> Float[Array, " *b"]:
    """What random matrix theory predicts of a batch Hessian's largest eigenvalue.

    **Arguments:**

    - `largest`: eigenvalue of the full Hessian. `noise`: `P s^2`, of `hessian_noise`.
    - `batch`: its size B; `samples`: of the full data, N. Batches drawn without replacement have
      the noise of `B / (1 - B/N)` independent samples.

    **Returns:** `largest + noise / (B largest)` where `largest > sqrt(noise / B)` (it sticks out of
    the noise), otherwise `2 sqrt(noise / B)`, the edge of the noise. Paper:
    `batch-hessian-learning-rates`: the noise's entries are modelled as independent.
    """
    spread = noise * (1 / jnp.asarray(batch) - 1 / samples)
    edge = jnp.sqrt(spread)
    return jnp.where(largest > edge, largest + spread / largest, 2 * edge)


def largest_stable_rate(
    objective: Objective,
    batch: int,
    key: PRNGKeyArray,
    *,
    low: float = 1e-3,
    high: float = 1e3,
    steps: int = 100,
    rounds: int = 10,
) -> Float[Array, ""]:
    """The largest step size at which SGD does not blow up, by bisection on a logarithmic scale.

    **Arguments:**

    - `objective`: its parameters are where SGD starts. `batch`: samples per step.
    - `low`, `high`: between which it is sought; a result at either end says to widen them.
    - `steps`: of SGD each time, the batches the same; `rounds`: of bisection.

    Unstable means that the full loss ends above twice its start plus one, or not finite. Costs
    `steps * rounds` batch gradients.
    """
    if not 0 < low < high:
        raise InputError(f"low {low} must be positive and below high {high}")

    def stable(rate: Array) -> Array:
        def step(parameters: PyTree, key: PRNGKeyArray) -> tuple[PyTree, None]:
            rows = jax.random.choice(key, objective.samples, (batch,), replace=False)
            part = objective.on(*jax.tree.map(lambda leaf: leaf[rows], objective.data))
            slope = jax.grad(part.value)(parameters)
            return jax.tree.map(lambda p, g: p - rate * g, parameters, slope), None

        end, _ = jax.lax.scan(step, objective.parameters, jax.random.split(key, steps))
        return objective.value(end) <= 2 * objective.value(objective.parameters) + 1

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        left, right = ends
        middle = (left + right) / 2
        fine = stable(jnp.exp(middle))
        return jnp.where(fine, middle, left), jnp.where(fine, right, middle)

    dtype = jax.tree.leaves(objective.parameters)[0].dtype
    ends = jnp.log(jnp.asarray(low, dtype)), jnp.log(jnp.asarray(high, dtype))
    return jnp.exp(jax.lax.fori_loop(0, rounds, halve, ends)[0])


def heavy_ball_settings(
    smallest: Float[Array, ""] | float, largest: Float[Array, ""] | float
) -> tuple[Array, Array]:
    """The learning rate and momentum that are optimal for a spectrum's two edges (Polyak).

    `(2 / (sqrt(largest) + sqrt(smallest)))^2` and
    `((sqrt(largest) - sqrt(smallest)) / (sqrt(largest) + sqrt(smallest)))^2`.
    """
    high, low = jnp.sqrt(largest), jnp.sqrt(smallest)
    return (2 / (high + low)) ** 2, ((high - low) / (high + low)) ** 2


class LanczosMomentumState(NamedTuple):
    """Of `lanczos_momentum`: rate and momentum in use, the velocity, the step, the probes' key."""

    rate: Float[Array, ""]
    momentum: Float[Array, ""]
    velocity: PyTree
    step: Array
    key: PRNGKeyArray


def lanczos_momentum(
    key: PRNGKeyArray,
    *,
    every: int = 100,
    steps: int = 20,
    floor: float = 1e-3,
    safety: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Heavy-ball SGD that sets its own rate and momentum from the Hessian's spectrum as it goes.

    **Arguments:**

    - `key`: of the Lanczos probes. `every`: steps between two looks at the spectrum.
    - `steps`: of Lanczos each time (at most as many as there are parameters).
    - `floor`: the smallest eigenvalue is taken to be at least this share of the largest. Networks'
      smallest are zero or negative, for which the formula has no meaning.
    - `safety`: multiplies the rate.

    `update` needs `params` and `value_fn=`, the loss as a function of parameters on the current
    batch (optax's convention of line searches). Raises `InputError` without them. Costs `steps`
    Hessian products every `every` steps, and one velocity. Paper: `batch-hessian-learning-rates`;
    the floor is ours.
    """
    if every < 1 or steps < 1 or not 0 < floor < 1 or not safety > 0:
        raise InputError(
            f"every {every} and steps {steps} must be at least 1, floor {floor} between 0 and 1, "
            f"safety {safety} positive"
        )

    def init(params: PyTree) -> LanczosMomentumState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        zero = jnp.zeros((), ravel_pytree(params)[0].dtype)
        return LanczosMomentumState(zero, zero, zeros, jnp.zeros((), jnp.int32), key)

    def look(value_fn: Callable[[PyTree], Array], params: PyTree, key: PRNGKeyArray) -> Any:
        operator = lx.JacobianLinearOperator(
            lambda p, _: jax.grad(value_fn)(p), params, tags=lx.symmetric_tag
        )
        flat, unravel = ravel_pytree(params)
        probe = unravel(jax.random.rademacher(key, flat.shape, flat.dtype))
        values, _ = ritz_pairs(lanczos(operator, probe, min(steps, flat.size)))
        largest = jnp.max(jnp.abs(values))
        largest = jnp.where(largest > 0, largest, 1)
        return heavy_ball_settings(jnp.maximum(values[0], floor * largest), largest)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, LanczosMomentumState]:
        if params is None or "value_fn" not in extra:
            raise InputError(
                "lanczos_momentum needs update(..., params, value_fn=loss): the loss of the "
                "current batch as a function of parameters"
            )
        draw, key = jax.random.split(state.key)
        rate, momentum = jax.lax.cond(
            state.step % every == 0,
            lambda: look(extra["value_fn"], params, draw),
            lambda: (state.rate, state.momentum),
        )
        velocity = jax.tree.map(
            lambda v, g: momentum * v - safety * rate * g, state.velocity, updates
        )
        return velocity, LanczosMomentumState(rate, momentum, velocity, state.step + 1, key)

    return optax.GradientTransformationExtraArgs(init, update)
