"""A variational autoencoder with categorical latents: gradient estimators in use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nearly.training.architectures import MLP, mlp

Expectation = Callable[[Callable[[Any], Any], Any, Any], Any]


class CategoricalVAE(eqx.Module):
    """Pixels in [0, 1] to categorical latents and back, Bernoulli pixels, uniform prior."""

    encoder: MLP
    decoder: MLP
    latents: int = eqx.field(static=True)

    def logits(self, image: Float[Array, " pixels"]) -> Float[Array, "latents classes"]:
        return self.encoder(image).reshape(self.latents, -1)

    def reconstruction(
        self, y: Float[Array, "latents classes"], image: Float[Array, " pixels"]
    ) -> Float[Array, ""]:
        """-log p(image | y), in nats."""
        scores = self.decoder(y.reshape(-1))
        return jnp.sum(jax.nn.softplus(scores) - image * scores)

    def negative_elbo(
        self, image: Float[Array, " pixels"], key: Any, expectation: Expectation
    ) -> Float[Array, ""]:
        """The bound on -log p(image), in nats; its gradient is the expectation's.

        **Arguments:** `expectation`: `(objective, logits, key) -> scalar`, as in `expectations`.

        **Cost:** one encoding, and as many decodings as the expectation evaluates its objective.
        """
        logits = self.logits(image)
        log_q = jax.nn.log_softmax(logits)
        divergence = jnp.sum(jnp.exp(log_q) * (log_q + jnp.log(logits.shape[-1])))
        return expectation(lambda y: self.reconstruction(y, image), logits, key) + divergence


def categorical_vae(
    pixels: int, latents: int, classes: int, key: Any, hidden: Sequence[int] = (128,)
) -> CategoricalVAE:
    """A VAE whose encoder and decoder are MLPs with the hidden widths given (reversed behind)."""
    ahead, back = jax.random.split(key)
    code = latents * classes
    return CategoricalVAE(
        mlp([pixels, *hidden, code], ahead, activation=jax.nn.leaky_relu),
        mlp([code, *reversed(hidden), pixels], back, activation=jax.nn.leaky_relu),
        latents,
    )
