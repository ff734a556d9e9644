"""K-FAC and MKOR as every optimizer must be: batched, billed, interrupted and resumed."""

import io
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nearly.core.tally import tally
from nearly.optimize import kfac
from nearly.optimize.kronecker import scale_by_mkor, until_stalled
from nearly.optimize.problems.finite_sum import FiniteSum, WithRate
from nearly.optimize.problems.tasks import Classifier

INPUTS = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
LABELS = (INPUTS[:, 0] > 0).astype(np.int32) + (INPUTS[:, 1] > 0)
PROBLEM = FiniteSum(
    task=Classifier((3, 6, 3)),
    inputs=INPUTS,
    targets=LABELS,
    test_inputs=INPUTS,
    test_targets=LABELS,
    batch=10,
    steps=(12,),
)


def hybrid(rate):
    return optax.chain(until_stalled(scale_by_mkor(every=5), warmup=12), optax.sgd(rate))


MAKES = {
    "kfac": partial(kfac, capture_every=5, invert_every=5, key=jax.random.key(1)),
    "mkor-h": hybrid,
}


@pytest.mark.parametrize("name", MAKES)
def test_batched_trainings_are_those_one_by_one_and_looks_are_on_the_bill(name):
    methods = [WithRate(MAKES[name], rate) for rate in (0.03, 0.3)]
    key = jax.random.key(2)
    together = PROBLEM.trials(methods, 12, key=key)
    assert together is not None
    standin = PROBLEM.build(methods[1], 12, key=None)
    run = eqx.filter_jit(lambda s: PROBLEM.train(s, key))
    with tally() as counts:
        alone, state = jax.block_until_ready(run(standin))
    np.testing.assert_allclose(
        PROBLEM.errors(jax.device_get(alone))["training loss"], together[1], rtol=1e-3
    )
    assert counts.read()["losses vjps"] == 12 + 3
    assert together[1] < 0.95 * np.log(3)
    assert_written_is_read(state)


def assert_written_is_read(state):
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, state)
    file.seek(0)
    again = eqx.tree_deserialise_leaves(file, jax.tree.map(jnp.zeros_like, state))
    assert jax.tree.structure(again) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state)):
        np.testing.assert_array_equal(a, b)
