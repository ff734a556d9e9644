"""Width scalings under which hyper-parameters carry over: maximal-update parameterisation (muP).

    base, wide = make(64), make(512)
    wide = mup_init(wide, base, key)
    optimizer = mup_scale(shampoo(1e-2), wide, base, rule="shampoo")

What is scaled with width is read off the shapes of the model and of a narrow `base` of the same
structure; the settings that suit the base then suit the model. Second-order optimizers have rules
of their own, and so does their damping (`trace_damping`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from nearly.core.errors import InputError, UnknownName
from nearly.curvature.capture import Capture
from nearly.curvature.objective import Objective, SampledLabels

Role = Literal["input", "hidden", "output", "fixed"]

RATE_EXPONENTS: dict[str, dict[Role, float]] = {
    "sgd": {"input": -1.0, "hidden": 0.0, "output": 1.0, "fixed": 0.0},
    "adam": {"input": 0.0, "hidden": 1.0, "output": 1.0, "fixed": 0.0},
    "kfac": {"input": 0.0, "hidden": 0.0, "output": 0.0, "fixed": 0.0},
    "shampoo": {"input": -0.5, "hidden": 0.0, "output": 0.5, "fixed": 0.0},
    "foof": {"input": -1.0, "hidden": -1.0, "output": 0.0, "fixed": 0.0},
}
"""c in `rate = base rate (width / base width)^-c`, by optimizer and by role of the weights."""

STD_EXPONENTS: dict[Role, float] = {"input": 0.5, "hidden": 0.5, "output": 1.0, "fixed": 0.5}
"""b in `std proportional to fan-in^-b`; the fan-in of input weights does not grow."""


class Scaling(NamedTuple):
    """Which part of a network an array is, and how much wider than in the base."""

    role: Role
    width: float  # width / base width
    fan_in: int


def roles(model: PyTree, base: PyTree) -> PyTree:
    """Every array's role: "input" if only its outputs grow with width, "output" if only its inputs
    do, "hidden" if both, "fixed" if none. Biases, whose fan-in is one, are input weights.

    **Arguments:** a model and a narrower one of the same structure; arrays are (outputs, inputs, …)
    or (outputs,). **Returns:** the model's structure with a `Scaling` for every array of floats.

    Raises `InputError` where structures differ or an array grows by two different factors.
    """
    wide, narrow = (
        dict(jax.tree_util.tree_leaves_with_path(eqx.filter(tree, eqx.is_inexact_array)))
        for tree in (model, base)
    )
    if wide.keys() != narrow.keys():  # (static fields of layers hold their widths, so may differ)
        raise InputError("model and base differ in more than their widths: build both alike")
    scalings = [_scaling(leaf, narrow[path]) for path, leaf in wide.items()]
    return jax.tree.unflatten(jax.tree.structure(eqx.filter(model, eqx.is_inexact_array)), scalings)


def _scaling(wide: Array, narrow: Array) -> Scaling:
    if wide.ndim != narrow.ndim:
        raise InputError(f"arrays of shapes {wide.shape} and {narrow.shape} cannot be compared")
    ratios = [a / b for a, b in zip(wide.shape, narrow.shape)]
    outward = ratios[0] if ratios else 1.0
    inward = ratios[1] if len(ratios) > 1 else 1.0
    if outward != 1 and inward != 1 and outward != inward:
        raise InputError(
            f"shapes {wide.shape} and {narrow.shape} grow by {outward:g} and {inward:g}: widen all "
            "hidden layers by one factor"
        )
    fan_in = math.prod(wide.shape[1:]) if wide.ndim > 1 else 1
    role: Role = "fixed"
    if outward != 1:
        role = "hidden" if inward != 1 else "input"
    elif inward != 1:
        role = "output"
    return Scaling(role, max(outward, inward) if role != "fixed" else 1.0, fan_in)


def mup_init(model: PyTree, base: PyTree, key: PRNGKeyArray, *, gain: float = 1.0) -> Any:
    """The model with weights drawn at muP's scale, and zero biases.

    **Arguments:**

    - `model`, `base`: as of `roles`; of different widths, which is how the output is told from the
      rest. `gain`: of every matrix that a nonlinearity follows, so not of the output's; sqrt(2)
      suits ReLU.

    **Raises:** `InputError` if the widths are the same.

    Weights have the standard deviation `gain / sqrt(fan-in)`, those of the output `1 / fan-in`. So
    the output starts at one over the root of the width, small but not zero: where it starts at
    the size of the targets, at the base's width, undoing it is most of what a first step does, and
    widths learn differently; from zero, the first step of K-FAC solves a least-squares problem of
    the initial features, and learns no others. Paper: `second-order-infinite-width`.
    """
    scalings = jax.tree.leaves(roles(model, base), is_leaf=_is_scaling)
    if all(scaling.role == "fixed" for scaling in scalings):
        raise InputError(
            "model and base have the same widths, so nothing tells the output from the rest: give "
            "a base of another width"
        )
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(arrays)
    keys = jax.random.split(key, len(leaves))
    drawn = [_drawn(leaf, s, k, gain) for leaf, s, k in zip(leaves, scalings, keys)]
    return eqx.combine(jax.tree.unflatten(structure, drawn), rest)


def _drawn(leaf: Array, scaling: Scaling, key: PRNGKeyArray, gain: float) -> Array:
    if leaf.ndim < 2:
        return jnp.zeros_like(leaf)
    gain = 1.0 if scaling.role == "output" else gain
    std = gain * scaling.fan_in ** -STD_EXPONENTS[scaling.role]
    return std * jax.random.normal(key, leaf.shape, leaf.dtype)


def _is_scaling(x: Any) -> bool:
    return isinstance(x, Scaling)


def mup_scale(
    optimizer: optax.GradientTransformation,
    model: PyTree,
    base: PyTree,
    *,
    rule: str,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer whose learning rates are scaled, array by array, by muP's rule.

    **Arguments:**

    - `optimizer`: any optax transformation; its learning rate is the base's.
    - `model`, `base`: as of `roles`. `rule`: a key of `RATE_EXPONENTS`.

    The scale follows the optimizer, so whatever it adds (weight decay) is scaled along. Each kind
    of array is a label of `optax.multi_transform`. Raises `UnknownName` for another rule. Paper:
    `second-order-infinite-width`.
    """
    if rule not in RATE_EXPONENTS:
        raise UnknownName("rule", rule, RATE_EXPONENTS)
    factors = jax.tree.map(
        lambda s: s.width ** -RATE_EXPONENTS[rule][s.role], roles(model, base), is_leaf=_is_scaling
    )
    labels = jax.tree.map(repr, factors)
    kinds: dict[Any, Any] = {repr(f): optax.scale(f) for f in jax.tree.leaves(factors)}
    # A function, since labels in the shape of a callable model would be called.
    scales = optax.multi_transform(kinds, lambda _: labels)
    return optax.with_extra_args_support(optax.chain(optimizer, scales))


# ------------------------------------------------------------------ second-order optimizers


class ShampooState(NamedTuple):
    """Of `shampoo`: for every array, the statistics and the roots of each of its axes."""

    step: Array
    statistics: PyTree
    roots: PyTree


def shampoo(
    learning_rate: float,
    *,
    decay: float = 0.95,
    ridge: float = 1e-6,
    every: int = 1,
    largest_axis: int = 1024,
) -> optax.GradientTransformation:
    """Shampoo: each axis of a gradient is multiplied by a root of its own second moment.

    **Arguments:**

    - `learning_rate`: of plain descent along the preconditioned gradient.
    - `decay`: of the moving averages of the moments (1: sums, as first published).
    - `ridge`: added to a moment, relative to its largest eigenvalue, which keeps it right at any
      width. `every`: steps between two computations of the roots.
    - `largest_axis`: longer axes are left alone.

    A matrix becomes `L^-1/4 G R^-1/4`, a vector `L^-1/2 g`: exponent -1/(2 axes). Costs an
    eigendecomposition of each axis, O(n^3), and n^2 memory. Raises `InputError` for bad settings.
    Gupta, Koren, Singer: Shampoo (2018); here without grafting or blocks.
    """
    if not 0 < decay <= 1 or not 0 < ridge < 1 or every < 1 or largest_axis < 1:
        raise InputError(
            f"decay {decay} must be in (0, 1], ridge {ridge} in (0, 1), every {every} and "
            f"largest_axis {largest_axis} at least 1"
        )

    def axes(leaf: Array) -> list[int]:
        return [axis for axis, n in enumerate(leaf.shape) if n <= largest_axis]

    def init(params: PyTree) -> ShampooState:
        zeros = [[jnp.zeros((p.shape[a],) * 2, p.dtype) for a in axes(p)] for p in _leaves(params)]
        eyes = [[jnp.eye(p.shape[a], dtype=p.dtype) for a in axes(p)] for p in _leaves(params)]
        return ShampooState(jnp.zeros((), jnp.int32), zeros, eyes)

    def root(statistic: Array, order: int) -> Array:
        values, vectors = jnp.linalg.eigh(statistic)
        largest = jnp.maximum(values[-1], jnp.finfo(values.dtype).tiny)
        return (vectors * (jnp.maximum(values, 0) + ridge * largest) ** (-1 / order)) @ vectors.T

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, ShampooState]:
        gradients, structure = jax.tree.flatten(updates)
        share = 1.0 if decay == 1 else 1 - decay
        statistics = [
            [decay * old + share * _gram(g, a) for old, a in zip(olds, axes(g))]
            for g, olds in zip(gradients, state.statistics)
        ]
        orders = [2 * max(len(axes(g)), 1) for g in gradients]
        # Averages start from zero; the roots are of what they would have been without that.
        age = state.step + 1
        unbiased = 1.0 if decay == 1 else 1 - decay**age
        roots = jax.lax.cond(
            state.step % every == 0,
            lambda: [[root(s / unbiased, o) for s in ss] for ss, o in zip(statistics, orders)],
            lambda: state.roots,
        )
        steps = [-learning_rate * _along_axes(g, axes(g), rs) for g, rs in zip(gradients, roots)]
        return jax.tree.unflatten(structure, steps), ShampooState(age, statistics, roots)

    return optax.GradientTransformation(init, update)


def _leaves(tree: PyTree) -> list[Array]:
    return jax.tree.leaves(tree)


def _gram(gradient: Array, axis: int) -> Array:
    rows = jnp.moveaxis(gradient, axis, 0).reshape(gradient.shape[axis], -1)
    return rows @ rows.T


def _along_axes(gradient: Array, axes: Sequence[int], matrices: Sequence[Array]) -> Array:
    for axis, matrix in zip(axes, matrices):
        gradient = jnp.moveaxis(jnp.tensordot(matrix, gradient, (1, axis)), 0, axis)
    return gradient


class Moments(NamedTuple):
    """A layer's Kronecker factors: E[a a^T] of its inputs, 1 appended, E[d d^T] of cotangents."""

    inputs: Float[Array, "n n"]
    outputs: Float[Array, "m m"]


Damping = Callable[[str, Moments], tuple[Array, Array]]
"""(layer's name, its moments) -> what is added to the diagonals of the two factors."""


def trace_damping(rho: float) -> Damping:
    """Damping that leaves muP intact: each factor's trace times rho.

    The traces grow like the fan-in of a layer and fall like its fan-out, and so must the damping,
    for directions of all sizes to be damped alike at every width. The usual split of one damping
    by the ratio of mean eigenvalues (`heuristic_damping`) does not.
    """
    if not rho > 0:
        raise InputError(f"rho {rho} must be positive")
    return lambda name, m: (rho * jnp.trace(m.inputs), rho * jnp.trace(m.outputs))


def heuristic_damping(damping: float) -> Damping:
    """The usual split: `pi sqrt(damping)` and `sqrt(damping) / pi`, pi^2 the ratio of the factors'
    mean eigenvalues (Martens and Grosse). Here as the baseline."""
    if not damping > 0:
        raise InputError(f"damping {damping} must be positive")

    def split(name: str, m: Moments) -> tuple[Array, Array]:
        means = (jnp.trace(f) / f.shape[0] for f in m)
        first, second = (jnp.maximum(mean, jnp.finfo(m.inputs.dtype).tiny) for mean in means)
        pi = jnp.sqrt(first / second)
        return pi * math.sqrt(damping), math.sqrt(damping) / pi

    return split


def layer_moments(capture: Capture, objective: Objective, key: PRNGKeyArray) -> dict[str, Moments]:
    """Every layer's Kronecker factors, with labels drawn from the model; pure, for use in a step.

    Costs a forward and a backward pass per sample, all samples of the objective in memory.
    """
    model, loss, draw = objective.model, objective.loss, SampledLabels()

    def one(x: Any, target: Any, key: PRNGKeyArray) -> dict[str, Moments]:
        outputs, pull = capture.linearise(model, x)
        captured = pull(draw(loss, outputs, target, key)[0])
        return {n: Moments(c.rows.T @ c.rows, c.deltas.T @ c.deltas) for n, c in captured.items()}

    keys = jax.random.split(key, objective.samples)
    each = jax.vmap(one)(*objective.data, keys)
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), each)


class KroneckerState(NamedTuple):
    """Of `kfac_descent`: the moving averages of all layers' moments, and the step."""

    step: Array
    moments: dict[str, Moments]


def kfac_descent(
    learning_rate: float, capture: Capture, damping: Damping, *, decay: float = 0.95
) -> optax.GradientTransformationExtraArgs:
    """Descent along the gradient preconditioned by K-FAC's factors, as an optax transformation.

    **Arguments:**

    - `learning_rate`: of the step. `capture`: of the model's layers (`Capture.of`).
    - `damping`: `trace_damping(rho)` or `heuristic_damping(damping)`.
    - `decay`: of the factors' moving averages, 0 for those of the current batch alone.

    `update` needs `moments=layer_moments(capture, objective, key)` of the current batch; gradients
    are of the model's structure. Raises `InputError` without them. Costs two Cholesky
    factorisations per layer. Paper: `second-order-infinite-width`, whose K-FAC is this.
    """
    if not 0 <= decay < 1:
        raise InputError(f"decay {decay} must be in [0, 1)")

    def init(params: PyTree) -> KroneckerState:
        matrices = capture.matrices(params)
        zeros = {
            n: Moments(jnp.zeros((m.shape[1],) * 2, m.dtype), jnp.zeros((m.shape[0],) * 2, m.dtype))
            for n, m in matrices.items()
        }
        return KroneckerState(jnp.zeros((), jnp.int32), zeros)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, KroneckerState]:
        if "moments" not in extra:
            raise InputError(
                "kfac_descent needs update(..., moments=layer_moments(capture, objective, key))"
            )
        age = state.step + 1
        averages = jax.tree.map(
            lambda old, new: decay * old + (1 - decay) * new, state.moments, extra["moments"]
        )
        unbiased = jax.tree.map(lambda m: m / (1 - decay**age), averages)
        steps = {
            name: -learning_rate * _natural(matrix, unbiased[name], damping(name, unbiased[name]))
            for name, matrix in capture.matrices(updates).items()
        }
        return capture.parameters(updates, steps), KroneckerState(age, averages)

    return optax.GradientTransformationExtraArgs(init, update)


def _natural(gradient: Array, moments: Moments, damping: tuple[Array, Array]) -> Array:
    """`(S + damping)^-1 G (A + damping)^-1`."""
    right, left = (
        jax.scipy.linalg.cho_factor(f + d * jnp.eye(f.shape[0], dtype=f.dtype), lower=True)
        for f, d in zip(moments, damping)
    )
    half = jax.scipy.linalg.cho_solve(left, gradient)
    return jax.scipy.linalg.cho_solve(right, half.T).T


# ------------------------------------------------------------------ does it work?


def coordinate_check(
    changes: Callable[[int, int], Mapping[str, Any]],
    widths: Sequence[int],
    *,
    seeds: Sequence[int] = (0,),
) -> dict[str, float]:
    """How what a step changes scales with width: the test that any parameterisation must pass.

    **Arguments:**

    - `changes`: `(width, seed) -> {name: the change of some activations}`, arrays of any shape.
    - `widths`: at least two.

    **Returns:** for each name the slope of the logarithm of the root mean square, averaged over
    seeds, against that of the width. Zero is muP: each layer learns as fast at any width.
    """
    if len(set(widths)) < 2:
        raise InputError(f"widths {list(widths)} must hold two different ones at least")
    rows = [[_sizes(changes(width, seed)) for seed in seeds] for width in widths]
    logs = np.log(np.asarray(widths, float))
    return {
        name: float(
            np.polyfit(logs, [np.log(np.mean([s[name] for s in row])) for row in rows], 1)[0]
        )
        for name in rows[0][0]
    }


def _sizes(changes: Mapping[str, Any]) -> dict[str, float]:
    return {n: float(np.sqrt(np.mean(np.square(np.asarray(c))))) for n, c in changes.items()}
