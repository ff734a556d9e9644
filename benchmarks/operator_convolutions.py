"""Training steps of convolutional networks: products, XLA's convolutions, torch, side by side.

    python benchmarks/operator_convolutions.py

Ratios are medians of pairs that alternate between the two in one process, after compilation, with
the 95% interval of that median. Every side uses the processor's cores that this process may use.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from alternating import Row, main, pairs

from nearly.training import fit
from nearly.training.architectures import residual_cnn
from nearly.training.convolution import as_products

SAMPLES = 128
BLOCKS = 3

# (grid, width, batch, steps a measurement)
SETTINGS = (((64,), 16, 32, 20), ((256,), 32, 32, 4), ((32, 32), 16, 16, 4))


def residual_network() -> list[Row]:
    """Steps of Adam on a circular residual network, float32, equal numbers of weights.

    Our products beside the same network of `eqx.nn.Conv` in the same loop of `fit`, and in torch.
    """
    from_torch = None
    rows: list[Row] = []
    try:
        from_torch = _torch()
    except ImportError as error:
        rows.append({"peer": "torch", "not run": f"{error}; pip install 'nearly[torch]'"})
    for setting in SETTINGS:
        *_, steps = setting
        products, weights = _ours(*setting, as_products)
        rivals = {"eqx.nn.Conv": _ours(*setting, lambda model: model)}
        if from_torch:
            rivals["torch"] = from_torch(*setting)
        for name, (rival, theirs) in rivals.items():
            if theirs != weights:
                raise AssertionError(f"{weights} weights against {theirs}: no equal terms")
            measured = pairs(products, rival, 7)
            rows.append(
                {
                    "grid": "x".join(map(str, setting[0])),
                    "width": setting[1],
                    "batch": setting[2],
                    "peer": name,
                    "ours ms": measured.ours / steps,
                    "peer ms": measured.theirs / steps,
                    "steps/s, ours over theirs": 1 / measured.ratio,
                    "95%": f"{1 / measured.high:.2f} to {1 / measured.low:.2f}",
                }
            )
    return rows


def _loss(model: Any, batch: Any, key: Any) -> Any:
    inputs, outputs = batch
    return jnp.mean((jax.vmap(model)(inputs) - outputs) ** 2)


def _ours(
    grid: tuple[int, ...], width: int, batch: int, steps: int, form: Callable[[Any], Any]
) -> tuple[Callable[[], Any], int]:
    key = jax.random.key(0)
    model = form(
        residual_cnn(1, 1, key, width=width, blocks=BLOCKS, dims=len(grid), padding="CIRCULAR")
    )
    inputs = jax.random.normal(key, (SAMPLES, 1, *grid))
    descent = optax.adam(1e-3)

    def train() -> Any:
        trained = fit(
            _loss,
            model,
            (inputs, jnp.tanh(inputs)),
            optimizer=descent,
            steps=steps,
            batch=batch,
            key=key,
            chunk=steps,
        )
        return eqx.filter(trained.model, eqx.is_array)

    return train, sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_array)))


def _torch() -> Callable[..., tuple[Callable[[], Any], int]]:
    import torch
    from torch import nn

    torch.set_num_threads(len(os.sched_getaffinity(0)))

    class Block(nn.Module):
        def __init__(self, width: int, conv: Any) -> None:
            super().__init__()
            groups = max(width // 4, 1)
            self.inside = nn.Sequential(
                nn.GroupNorm(groups, width),
                nn.GELU("tanh"),
                conv(width, width),
                nn.GroupNorm(groups, width),
                nn.GELU("tanh"),
                conv(width, width),
            )

        def forward(self, x: Any) -> Any:
            return x + self.inside(x)

    def peer(
        grid: tuple[int, ...], width: int, batch: int, steps: int
    ) -> tuple[Callable[[], Any], int]:
        kind = {1: nn.Conv1d, 2: nn.Conv2d}[len(grid)]

        def conv(before: int, after: int) -> Any:
            return kind(before, after, 3, padding=1, padding_mode="circular")

        blocks = [Block(width, conv) for _ in range(BLOCKS)]
        model = nn.Sequential(conv(1, width), *blocks, nn.GELU("tanh"), conv(width, 1))
        inputs = torch.randn(SAMPLES, 1, *grid)
        descent = torch.optim.Adam(model.parameters(), lr=1e-3)

        def train() -> None:
            for _ in range(steps):
                rows = torch.randint(0, SAMPLES, (batch,))
                descent.zero_grad()
                torch.mean((model(inputs[rows]) - torch.tanh(inputs[rows])) ** 2).backward()
                descent.step()

        return train, sum(p.numel() for p in model.parameters())

    return peer


BENCHMARKS: dict[str, Callable[[], list[Row]]] = {"residual_network": residual_network}


if __name__ == "__main__":
    main(BENCHMARKS, __doc__)
