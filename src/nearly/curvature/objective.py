"""What is differentiated: the mean over samples of a loss of a model's output.

Curvature needs the split into a model and a loss of its output: the Gauss-Newton matrix is J^T H J
with the Jacobian J of the output and the Hessian H of the loss there, and the true Fisher matrix
draws targets from the distribution that the output stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from nearly.core.errors import InputError
from nearly.curvature.capture import Capture, Predict, call

Loss = Callable[[Any, Any], Array]


# ------------------------------------------------------------------ losses of an output


class SquaredError(eqx.Module):
    """Half the squared distance: minus the log-likelihood of a normal target of unit variance."""

    def __call__(self, outputs: Float[Array, " *o"], target: Float[Array, " *o"]) -> Array:
        return 0.5 * jnp.sum((outputs - target) ** 2)

    def sample(self, outputs: Float[Array, " *o"], key: PRNGKeyArray) -> Float[Array, " *o"]:
        """A target drawn from the model."""
        return outputs + jax.random.normal(key, outputs.shape, outputs.dtype)


class CrossEntropy(eqx.Module):
    """Minus the log-probability of a class; the outputs are logits, the target its number."""

    def __call__(self, outputs: Float[Array, " classes"], target: Int[Array, ""]) -> Array:
        return jax.nn.logsumexp(outputs) - outputs[target]

    def sample(self, outputs: Float[Array, " classes"], key: PRNGKeyArray) -> Int[Array, ""]:
        """A class drawn from the model."""
        return jax.random.categorical(key, outputs)


class BinaryCrossEntropy(eqx.Module):
    """Minus the log-probability of 0/1 labels; the outputs are logits."""

    def __call__(self, outputs: Float[Array, " *o"], target: Array) -> Array:
        return jnp.sum(jax.nn.softplus(outputs) - target * outputs)

    def sample(self, outputs: Float[Array, " *o"], key: PRNGKeyArray) -> Float[Array, " *o"]:
        """Labels drawn from the model."""
        drawn = jax.random.bernoulli(key, jax.nn.sigmoid(outputs))
        return drawn.astype(outputs.dtype)


def output_hessian(loss: Loss, outputs: PyTree, target: Any) -> Float[Array, "o o"]:
    """The Hessian of a loss with respect to the flattened output of one sample."""
    flat, unflatten = ravel_pytree(outputs)
    return jax.hessian(lambda o: loss(unflatten(o), target))(flat)


# ------------------------------------------------------------------ cotangents of an output


@runtime_checkable
class Cotangents(Protocol):
    """Vectors c_k at a sample's output with sum_k c_k c_k^T = H, exactly or in expectation."""

    def __call__(
        self, loss: Loss, outputs: PyTree, target: Any, key: PRNGKeyArray
    ) -> tuple[PyTree, ...]: ...


class SampledLabels(eqx.Module):
    """Gradients of the loss for targets drawn from the model: the true Fisher matrix.

    The loss must have a method `sample(outputs, key) -> target`, as those of this module have.
    """

    draws: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        if self.draws < 1:
            raise InputError(f"draws = {self.draws} must be at least 1 target per sample")

    def __call__(
        self, loss: Any, outputs: PyTree, target: Any, key: PRNGKeyArray
    ) -> tuple[PyTree, ...]:
        if not hasattr(loss, "sample"):
            raise InputError(
                f"the loss {loss!r} has no method sample(outputs, key), so no target can be drawn "
                "from the model; use Cotangents such as OutputHessian() instead"
            )

        def drawn(key: PRNGKeyArray) -> PyTree:
            gradient = jax.grad(loss)(outputs, loss.sample(outputs, key))
            return jax.tree.map(lambda g: g / self.draws**0.5, gradient)

        return tuple(drawn(k) for k in jax.random.split(key, self.draws))


class OutputHessian(eqx.Module):
    """The columns of a square root of H: the exact Gauss-Newton matrix, of any convex loss.

    Costs as many backward passes as the output has components; negative eigenvalues of a loss
    that is not convex are dropped.
    """

    def __call__(
        self, loss: Loss, outputs: PyTree, target: Any, key: PRNGKeyArray
    ) -> tuple[PyTree, ...]:
        _, unflatten = ravel_pytree(outputs)
        values, vectors = jnp.linalg.eigh(output_hessian(loss, outputs, target))
        root = vectors * jnp.sqrt(jnp.maximum(values, 0))
        return tuple(unflatten(column) for column in root.T)


class ObservedLabels(eqx.Module):
    """The gradient at the target itself: the empirical Fisher matrix, which is no Gauss-Newton."""

    def __call__(
        self, loss: Loss, outputs: PyTree, target: Any, key: PRNGKeyArray
    ) -> tuple[PyTree, ...]:
        return (jax.grad(loss)(outputs, target),)


# ------------------------------------------------------------------ the objective


class Objective(eqx.Module):
    """The mean of `loss(predict(model, input), target)` over samples, as a function of parameters.

    Made by `Objective.of`. `parameters` holds the arrays that curvature is about, None elsewhere;
    `rest` the rest of the model.
    """

    parameters: PyTree
    rest: PyTree
    loss: Loss
    inputs: PyTree
    targets: PyTree
    predict: Predict = eqx.field(static=True)
    layers: tuple[str, ...] | None = eqx.field(static=True)
    chunk: int = eqx.field(static=True)

    @staticmethod
    def of(
        model: Any,
        loss: Loss,
        inputs: PyTree,
        targets: PyTree,
        *,
        predict: Predict = call,
        layers: Sequence[str] | None = None,
        chunk: int = 256,
    ) -> Objective:
        """**Arguments:**

        - `model`: any equinox model; `predict`: `(model, input) -> output` of one sample.
        - `loss`: `(output, target) -> scalar` of one sample, twice differentiable in the output.
        - `inputs`, `targets`: pytrees of arrays whose first axis is the sample's.
        - `layers`: names of the layers whose parameters count; by default all parameters do.
        - `chunk`: samples that are in memory at once.

        Raises `InputError` for inputs and targets of different lengths, or none.
        """
        lengths = {len(leaf) for leaf in jax.tree.leaves((inputs, targets))}
        if len(lengths) != 1 or not min(lengths):
            raise InputError(
                f"inputs and targets have {sorted(lengths)} samples: they need as many, at least 1"
            )
        if chunk < 1:
            raise InputError(f"chunk = {chunk} must be at least 1 sample")
        kept = eqx.filter(model, eqx.is_inexact_array)
        if layers is not None:
            example = jax.tree.map(lambda x: x[0], inputs)
            kept = Capture.of(model, example, predict=predict, layers=layers).filter(model)
        rest = jax.tree.map(
            lambda x, k: x if k is None else None, model, kept, is_leaf=lambda x: x is None
        )
        names = None if layers is None else tuple(layers)
        return Objective(kept, rest, loss, inputs, targets, predict, names, chunk)

    @property
    def model(self) -> Any:
        return eqx.combine(self.parameters, self.rest)

    @property
    def samples(self) -> int:
        return len(jax.tree.leaves(self.targets)[0])

    @property
    def dimension(self) -> int:
        """The number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.parameters))

    @property
    def data(self) -> tuple[PyTree, PyTree]:
        return self.inputs, self.targets

    def capture(self) -> Capture:
        """The capture of the layers whose parameters count."""
        example = jax.tree.map(lambda x: x[0], self.inputs)
        return Capture.of(self.model, example, predict=self.predict, layers=self.layers)

    def on(self, inputs: PyTree, targets: PyTree) -> Objective:
        """The same model and loss on other samples."""
        return eqx.tree_at(lambda o: (o.inputs, o.targets), self, (inputs, targets))

    def at(self, parameters: PyTree) -> Objective:
        """The same objective at other parameters."""
        return eqx.tree_at(lambda o: o.parameters, self, parameters)

    def output(self, parameters: PyTree, inputs: Any) -> PyTree:
        """The model's output for one sample."""
        return self.predict(eqx.combine(parameters, self.rest), inputs)

    def sample_loss(self, parameters: PyTree, inputs: Any, target: Any) -> Array:
        """The loss of one sample."""
        return self.loss(self.output(parameters, inputs), target)

    def value(self, parameters: PyTree) -> Float[Array, ""]:
        """The mean loss."""
        total = chunked_sum(
            lambda inputs, targets: jnp.sum(
                jax.vmap(self.sample_loss, (None, 0, 0))(parameters, inputs, targets)
            ),
            self.data,
            self.chunk,
        )
        return total / self.samples

    def gradients(self, inputs: PyTree, targets: PyTree) -> Float[Array, "samples dimension"]:
        """The gradient of the loss of every sample given, flattened as `ravel_pytree` does."""

        def one(x: Any, t: Any) -> Array:
            return ravel_pytree(jax.grad(self.sample_loss)(self.parameters, x, t))[0]

        return jax.vmap(one)(inputs, targets)

    def with_sampled_targets(self, key: PRNGKeyArray) -> Objective:
        """The objective with every target drawn from the model."""
        loss: Any = self.loss
        if not hasattr(loss, "sample"):
            raise InputError(f"the loss {loss!r} has no method sample(outputs, key)")
        keys = jax.random.split(key, self.samples)
        outputs = jax.lax.map(
            lambda x: self.output(self.parameters, x), self.inputs, batch_size=self.chunk
        )
        return self.on(self.inputs, jax.vmap(loss.sample)(outputs, keys))

    def chunks(self) -> Iterator[tuple[PyTree, PyTree]]:
        """Inputs and targets, at most `chunk` samples at a time."""
        for start in range(0, self.samples, self.chunk):
            stop = start + self.chunk
            yield jax.tree.map(lambda x, a=start, b=stop: x[a:b], self.data)


def chunked_sum(function: Callable[..., PyTree], data: tuple[PyTree, ...], chunk: int) -> PyTree:
    """The sum of `function(*chunk of the data)` over chunks, in a compiled loop.

    **Arguments:**

    - `function`: takes arrays with a leading axis of samples, returns what is added up.
    - `data`: its arguments, whole. `chunk`: samples at a time.
    """
    samples = len(jax.tree.leaves(data)[0])
    whole = samples // chunk
    if whole <= 1 and samples <= chunk:
        return function(*data)
    head = jax.tree.map(
        lambda x: jnp.reshape(x[: whole * chunk], (whole, chunk, *x.shape[1:])), data
    )

    def step(total: PyTree, part: tuple[PyTree, ...]) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, function(*part)), None

    first = function(*jax.tree.map(lambda x: x[0], head))
    total, _ = jax.lax.scan(step, first, jax.tree.map(lambda x: x[1:], head))
    if samples > whole * chunk:
        tail = function(*jax.tree.map(lambda x: x[whole * chunk :], data))
        total = jax.tree.map(jnp.add, total, tail)
    return total
