"""Factorisations of batches: right, and never waiting for each other."""

import jax
import jax.numpy as jnp
import numpy as np

from nearly.linear.lapack import one_by_one


def spd(seed, batch, size):
    factor = jax.random.normal(jax.random.key(seed), (batch, size, size))
    return factor @ jnp.swapaxes(factor, 1, 2) + jnp.eye(size)


def test_two_batches_at_once_come_to_an_end_and_are_right():
    # Without the loop this hangs on two cores, within some hundred rounds.
    batches = [spd(0, 12, 40), spd(1, 12, 56)]
    cholesky = jax.vmap(one_by_one(jnp.linalg.cholesky))

    @jax.jit
    def rounds(batches):
        def one(carry, _):
            return carry, [jnp.sum(cholesky(b + 1e-3 * jnp.eye(b.shape[-1]))) for b in carry]

        return jax.lax.scan(one, batches, None, length=50)[1]

    found = rounds(batches)
    for total, batch in zip(found, batches):
        shifted = np.asarray(batch, np.float64) + 1e-3 * np.eye(batch.shape[-1])
        np.testing.assert_allclose(total[-1], np.linalg.cholesky(shifted).sum(), rtol=1e-4)


def test_a_nested_batch_is_one():
    matrices = spd(2, 6, 5).reshape(2, 3, 5, 5)
    found = jax.vmap(jax.vmap(one_by_one(jnp.linalg.cholesky)))(matrices)
    np.testing.assert_allclose(found, jnp.linalg.cholesky(matrices), rtol=1e-5, atol=1e-6)


def test_derivatives_are_those_of_the_function():
    matrices = spd(3, 3, 4)

    def total(factorise):
        return lambda m: jnp.sum(jax.vmap(factorise)(m) ** 3)

    found = jax.grad(total(one_by_one(jnp.linalg.cholesky)))(matrices)
    np.testing.assert_allclose(found, jax.grad(total(jnp.linalg.cholesky))(matrices), rtol=1e-4)
