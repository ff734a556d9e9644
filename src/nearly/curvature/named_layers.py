"""The linear layers of a model by name, and their parameters as matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PyTree

from nearly.core.errors import InputError
from nearly.curvature.layers import LinearMap, is_layer, linear_map


class Layers(eqx.Module):
    """Which layers of a model are meant, and how their parameters make a matrix.

    Made by `Layers.named`; holds no array, so it can be closed over or passed to `jax.jit` freely.
    """

    maps: tuple[LinearMap, ...] = eqx.field(static=True)
    positions: tuple[int, ...] = eqx.field(static=True)

    @staticmethod
    def named(model: Any, layers: Sequence[str] | None = None) -> Layers:
        """The layers of a model, or of its parameters alone (None in the place of all else).

        **Arguments:** `layers`: their names; by default all that are one linear map, which leaves
        out tied, stacked and grouped ones.

        Raises `InputError` for a name that the model does not have or that is not one linear map.
        """
        named = named_layers(model)
        names = linear_layer_names(model) if layers is None else known_layers(named, layers)
        maps = tuple(linear_map(name, named[name][1]) for name in names)
        return Layers(maps, tuple(named[name][0] for name in names))

    @property
    def names(self) -> tuple[str, ...]:
        """The layers' names: their paths in the model."""
        return tuple(m.name for m in self.maps)

    def matrices(self, parameters: PyTree) -> dict[str, Float[Array, "outputs inputs"]]:
        """The layers' parameters, of a model or of a gradient of its structure, as matrices."""
        nodes = flatten_layers(parameters)[0]
        return {m.name: m.matrix(nodes[p]) for m, p in zip(self.maps, self.positions)}

    def parameters(self, like: PyTree, matrices: dict[str, Array]) -> PyTree:
        """The inverse of `matrices`: `like` with the layers' parameters replaced."""
        nodes, structure = flatten_layers(like)
        for m, p in zip(self.maps, self.positions):
            nodes[p] = m.layer(nodes[p], matrices[m.name])
        return jax.tree.unflatten(structure, nodes)

    def filter(self, model: Any) -> PyTree:
        """The parameters of the layers that are meant, None in the place of everything else."""
        nodes, structure = flatten_layers(model)
        kept = [
            eqx.filter(node, eqx.is_inexact_array if i in self.positions else False)
            for i, node in enumerate(nodes)
        ]
        return jax.tree.unflatten(structure, kept)


def layer_names(model: Any) -> tuple[str, ...]:
    """The names of the layers of a model that can be captured: their paths, as in "layers[0]"."""
    return tuple(named_layers(model))


def linear_layer_names(model: Any) -> tuple[str, ...]:
    """The names of those layers whose weights are one matrix: neither tied, stacked nor grouped."""
    return tuple(name for name, (_, layer) in named_layers(model).items() if _is_linear(layer))


def uncovered(model: Any) -> tuple[str, ...]:
    """The names of the parameters of a model that lie in none of its linear layers."""
    flat = jax.tree_util.tree_flatten_with_path(model, is_leaf=_is_node)[0]
    return tuple(
        _name(path) for path, node in flat if not is_layer(node) and eqx.is_inexact_array(node)
    )


def flatten_layers(tree: PyTree) -> tuple[list[Any], Any]:
    """The nodes of a model or of its parameters: None counts, so that both have the same."""
    return jax.tree.flatten(tree, is_leaf=_is_node)


def named_layers(model: Any) -> dict[str, tuple[int, Any]]:
    """Each layer's name -> its position among the nodes, and the layer."""
    flat = jax.tree_util.tree_flatten_with_path(model, is_leaf=_is_node)[0]
    return {_name(path): (i, node) for i, (path, node) in enumerate(flat) if is_layer(node)}


def known_layers(named: dict[str, tuple[int, Any]], layers: Sequence[str]) -> tuple[str, ...]:
    """The names asked for; raises `InputError` for one that the model does not have."""
    unknown = [name for name in layers if name not in named]
    if unknown:
        raise InputError(f"{unknown[0]!r} is no linear layer of the model: it has {list(named)}")
    return tuple(layers)


def _is_linear(layer: Any) -> bool:
    try:
        linear_map("", layer)
    except InputError:
        return False
    return True


def _is_node(node: Any) -> bool:
    return node is None or is_layer(node)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path).removeprefix(".") or "model"
