"""`FiniteSum` tells an optimizer what passes through the layers, and puts it on the bill."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nearly.core.tally import tally
from nearly.errors import InputError
from nearly.optimize.problems.finite_sum import FiniteSum
from nearly.optimize.problems.modular import LOSSES, ModularAddition
from nearly.optimize.problems.tasks import Classifier, LinearRegression, Reconstruction, Task

INPUTS = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
LABELS = np.arange(20, dtype=np.int32) % 4


class Plain(Task):
    """A loss that is no likelihood, of a model that is no layer."""

    def start(self, key):
        return jnp.zeros(3)

    def losses(self, params, inputs, targets):
        return jnp.cosh(inputs @ params - targets)


def problem(task, targets=LABELS):
    return FiniteSum(task, INPUTS, targets, INPUTS, targets, batch=5, steps=(4,))


def looking(every, key=None):
    """Gradient descent that compares the gradient with what was captured every few steps."""

    def init(params):
        return jnp.zeros((), jnp.int32), jnp.zeros(())

    def update(grads, state, params=None, *, capture_fn, **extra):
        count, worst = state

        def look():
            captured = capture_fn(params, key)
            found = captured["layers[1]"]
            gradient = jnp.einsum("bto,bti->oi", found.deltas, found.rows) / 5
            return jnp.max(jnp.abs(gradient[:, :-1] - grads.layers[1].weight))

        worst = jnp.maximum(worst, jax.lax.cond(count % every == 0, look, lambda: 0.0))
        return jax.tree.map(lambda g: -0.1 * g, grads), (count + 1, worst)

    return optax.GradientTransformationExtraArgs(init, update)


def worst_of(problem, optimizer):
    with tally() as counts:
        state = jax.jit(lambda k: problem.train(problem.build(optimizer, 4, key=None), k)[1])(
            jax.random.key(0)
        )
        jax.block_until_ready(state)
    return float(state[1]), counts.read()


def test_what_is_captured_is_the_batchs_gradient_and_a_gradient_on_the_bill():
    network = problem(Classifier((3, 6, 4)))
    worst, work = worst_of(network, looking(2))
    assert worst < 1e-6
    assert work["losses vjps"] == 4 + 2 and work["model vjps"] == 4 + 2
    drawn, work = worst_of(network, looking(2, jax.random.key(1)))
    assert drawn > 1e-3  # other labels, another gradient
    assert work["losses vjps"] == 4 + 2 and work["model"] == 4 + 2 + 2


@pytest.mark.parametrize(
    ("task", "outputs", "targets"),
    [
        (Reconstruction((3, 4, 3)), jnp.zeros((4000, 3)), INPUTS),
        (LinearRegression(3), jnp.zeros(4000), INPUTS[:, 0]),
    ],
)
def test_the_square_of_drawn_gradients_is_the_losss_curvature(task, outputs, targets):
    drawn = task.draw_of(outputs, jax.random.key(0))
    slopes = jax.grad(lambda o: jnp.sum(task.losses_of(o, drawn)))(outputs)
    curvature = jax.grad(lambda o: jnp.sum(jax.grad(lambda p: task.losses_of(p, o * 0).sum())(o)))
    np.testing.assert_allclose(jnp.mean(slopes**2, 0), curvature(outputs)[0], rtol=0.1)


def test_a_loss_that_is_no_likelihood_says_so():
    with pytest.raises(InputError, match="Plain is no likelihood"):
        Plain().draw(jnp.zeros(3), jnp.asarray(INPUTS), jax.random.key(0))


def test_modular_addition_draws_from_softmax_alone():
    outputs = jnp.zeros((2000, 3)).at[:, 0].set(jnp.log(2.0))
    drawn = ModularAddition(3).draw_of(outputs, jax.random.key(0))
    np.testing.assert_allclose(np.bincount(np.asarray(drawn)) / 2000, [0.5, 0.25, 0.25], atol=0.04)
    with pytest.raises(InputError, match="no likelihood"):
        ModularAddition(3, LOSSES["stablemax"]).draw_of(outputs, jax.random.key(0))
