"""A stream's state is part of the run: it moves with the steps, and checkpoints hold it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nearly.training import Stream, fit

OPTIMIZER = optax.sgd(0.5)


class Counting(Stream):
    """The batch of step n is n: what is drawn depends on the state alone."""

    def initial(self, key: Any) -> Any:
        return jnp.zeros((), jnp.float32)

    def draw(self, state: Any, key: Any) -> tuple[Any, Any]:
        return state + 1, state


class Walk(Stream):
    """A random walk: a resumed run repeats it only if both state and keys are kept."""

    def initial(self, key: Any) -> Any:
        return jax.random.normal(key, (), jnp.float32)

    def draw(self, state: Any, key: Any) -> tuple[Any, Any]:
        state = state + jax.random.normal(key, (), jnp.float32)
        return state, state


def distance(model: Any, batch: Any, key: Any) -> Any:
    return jnp.sum((model - batch) ** 2) / 2


def run(stream: Any, steps: int, **options: Any) -> Any:
    model = jnp.zeros((), jnp.float32)
    return fit(
        distance, model, stream, optimizer=OPTIMIZER, steps=steps, key=jax.random.key(3), **options
    )


def test_a_stream_remembers_what_it_has_handed_out() -> None:
    # x <- (x + n) / 2 for n = 0, 1, 2, 3, by hand; the loss is that of the step before.
    trained = run(Counting(), 4)
    assert float(trained.model) == 2.125
    np.testing.assert_allclose(trained.losses, [0, 0.5, 1.5**2 / 2, 1.75**2 / 2])


def test_a_resumed_run_goes_on_with_the_stream(tmp_path: Path) -> None:
    whole = run(Walk(), 9, chunk=2)
    run(Walk(), 5, checkpoint=tmp_path / "run.npz")
    resumed = run(Walk(), 9, checkpoint=tmp_path / "run.npz")
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    assert float(resumed.model) == float(whole.model)
