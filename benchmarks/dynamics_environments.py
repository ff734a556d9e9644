"""Learned motion against its peers: seconds to adapt, seconds of a gradient.

    python benchmarks/dynamics_environments.py [NAME...]

Ratios are medians of pairs that alternate between the two in one process, after compilation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from alternating import Row, main, pairs

from nearly.dynamics.context_peers import coda, one_for_each
from nearly.dynamics.context_training import ADABELIEF, adapt, conditioned, ncf_t1
from nearly.dynamics.equivariant import egnn, segno
from nearly.dynamics.motion_training import Example, squared_error
from nearly.dynamics.problems.bodies import body_motion
from nearly.dynamics.problems.environments import lotka_volterra_environments

WIDTH, BATCH = 64, 100
KEY = jax.random.key(0)


def adaptation() -> list[Row]:
    """500 steps to four new Lotka-Volterra environments: ours moves 32 numbers of each."""
    problem = lotka_volterra_environments()
    flow = conditioned.train(problem, 10, key=KEY)

    def ours() -> Any:
        return adapt(flow, problem.adapt, steps=500, key=KEY, optimizer=ADABELIEF)

    known = coda.train(problem, 10, key=KEY)
    rivals: dict[str, Callable[[], Any]] = {
        "CoDA, weights affine in two numbers": lambda: coda.adapt(problem, known, key=KEY).contexts,
        "ours, one environment after the other": lambda: [
            adapt(flow, each, steps=500, key=KEY, optimizer=ADABELIEF) for each in _each(problem)
        ],
        "a network for each": lambda: jax.tree.leaves(
            one_for_each.train(problem, problem.adapt, 500, key=KEY)
        ),
    }
    return [{"peer": name, **pairs(ours, use, 3).row} for name, use in rivals.items()]


def _each(problem: Any) -> list[Any]:
    count = problem.adapt.trajectories.shape[0]
    rows = [problem.adapt.trajectories[k : k + 1] for k in range(count)]
    return [type(problem.adapt)(row, problem.adapt.times) for row in rows]


def modulation() -> list[Row]:
    """20 gradients of training with self-modulation (order 1, a pool of 1), and without it."""
    problem = lotka_volterra_environments()
    ours, plain = (
        (lambda m=m: jax.tree.leaves(m.train(problem, 20, key=KEY))) for m in (ncf_t1, conditioned)
    )
    return [{"peer": "no self-modulation", **pairs(ours, plain, 3).row}]


def motion_gradients() -> list[Row]:
    """Gradient of the mean square error of 100 five-body systems, width 64."""
    problem = body_motion(training=BATCH, testing=1)
    data = Example(
        jax.tree.map(jnp.asarray, problem.train.bodies), jnp.asarray(problem.train.frames[-1])
    )
    second, layers = (_gradient(model, data) for model in _models())
    rivals: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "SEGNO, 8 steps; EGNN, 4 layers": (second, layers),
    }
    rows = [{"ours; peer": name, **pairs(*both, 15).row} for name, both in rivals.items()]
    try:
        torch_layers = _torch_gradient(data)
    except ImportError as missing:
        return [*rows, {"ours; peer": f"EGNN in torch: not run, {missing}"}]
    return [*rows, {"ours; peer": "EGNN; EGNN in torch", **pairs(layers, torch_layers, 15).row}]


def _models() -> tuple[Any, Any]:
    return segno(KEY, width=WIDTH), egnn(KEY, width=WIDTH)


def _gradient(model: Any, data: Example) -> Callable[[], Any]:
    slope = jax.jit(jax.grad(lambda m, batch: squared_error(m, batch, None)))
    compiled = slope.lower(model, data).compile()
    return lambda: compiled(model, data)


# ---- the same layers in torch, on all pairs at once: no slower way of gathering edges


def _torch_gradient(data: Example) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(1)
    nn, silu = torch.nn, torch.nn.functional.silu

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            w = WIDTH
            self.edge = nn.Sequential(nn.Linear(2 * w + 3, w), nn.SiLU(), nn.Linear(w, w))
            self.pull = nn.Sequential(nn.Linear(w, w), nn.SiLU(), nn.Linear(w, 1, bias=False))
            self.node = nn.Sequential(nn.Linear(2 * w, w), nn.SiLU(), nn.Linear(w, w))
            self.scale = nn.Sequential(nn.Linear(w, w), nn.SiLU(), nn.Linear(w, 1))

        def forward(self, h: Any, x: Any, v: Any, edges: Any, others: Any) -> Any:
            apart = x[:, :, None] - x[:, None]
            n = x.shape[1]
            of_pair = torch.cat([(apart**2).sum(-1, keepdim=True), edges], -1)
            wide = (-1, -1, n, -1), (-1, n, -1, -1)
            both = [h[:, :, None].expand(*wide[0]), h[:, None].expand(*wide[1])]
            messages = silu(self.edge(torch.cat([*both, of_pair], -1)))
            pulls = (apart * self.pull(messages)).clamp(-100, 100).sum(2) / (n - 1)
            heard = (messages * others).sum(2)
            x = x + pulls + self.scale(h) * v
            return h + self.node(torch.cat([h, heard], -1)), x

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(1, WIDTH)
            self.layers = nn.ModuleList([Layer() for _ in range(4)])

        def forward(self, x: Any, v: Any, edges: Any) -> Any:
            h = self.embed(v.norm(dim=-1, keepdim=True))
            others = (1 - torch.eye(x.shape[1]))[..., None]
            for layer in self.layers:
                h, x = layer(h, x, v, edges, others)
            return x

    model = Model()
    places, velocities, edges, ends = (
        torch.tensor(np.asarray(array))
        for array in (
            data.bodies.positions,
            data.bodies.velocities,
            data.bodies.edges,
            data.ends,
        )
    )

    def use() -> None:
        model.zero_grad()
        ((model(places, velocities, edges) - ends) ** 2).mean().backward()

    return use


BENCHMARKS: Mapping[str, Callable[[], list[Row]]] = {
    "adaptation": adaptation,
    "modulation": modulation,
    "motion-gradients": motion_gradients,
}

if __name__ == "__main__":
    main(BENCHMARKS, __doc__)
