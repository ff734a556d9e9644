"""Checkpoints: every array of a training run in one npz file, replaced in one step, no pickles."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nearly.core.errors import InputError, StoreError


def save(path: Path, tree: Any, extra: Mapping[str, np.ndarray]) -> None:
    """Write the arrays of a pytree, and named arrays beside it.

    The file is replaced in one step: a process killed at any moment leaves the old file or the
    new one. Raises `StoreError` if it cannot be written.
    """
    buffer = io.BytesIO()
    leaves = {f"leaf{i}": _plain(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
    np.savez(buffer, **leaves, **extra)  # pyright: ignore[reportArgumentType]
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(buffer.getvalue())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise StoreError(f"cannot write the checkpoint {path}: {error.strerror}") from error


def load(path: Path, like: Any, names: Sequence[str]) -> tuple[Any, dict[str, np.ndarray]]:
    """The pytree of a checkpoint, of the same structure as `like`, and the named arrays.

    Raises `InputError` if the file holds something else than `like` does, or is no checkpoint.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no checkpoint ({error}); delete it or name another") from error
    leaves, structure = jax.tree.flatten(like)
    found = [held.get(f"leaf{i}") for i in range(len(leaves))]
    if len(held) != len(leaves) + len(names) or any(name not in held for name in names):
        raise _foreign(path, f"{len(held)} arrays instead of {len(leaves) + len(names)}")
    return (
        jax.tree.unflatten(structure, [_like(path, f, x) for f, x in zip(found, leaves)]),
        {name: held[name] for name in names},
    )


def _plain(leaf: Any) -> np.ndarray:
    """A leaf as NumPy holds it: a random key as its words, a 16-bit brain float as its bits."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(leaf))
    array = np.asarray(leaf)
    return array if array.dtype.kind in "biufc" else array.view(f"u{array.dtype.itemsize}")


def _like(path: Path, found: np.ndarray | None, leaf: Any) -> Any:
    wanted = _plain(leaf)
    if found is None or found.shape != wanted.shape or found.dtype != wanted.dtype:
        got = "nothing" if found is None else f"{found.dtype}{list(found.shape)}"
        raise _foreign(path, f"{got} instead of {wanted.dtype}{list(wanted.shape)}")
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(found), impl=jax.random.key_impl(leaf))
    return jnp.asarray(found.view(leaf.dtype) if found.dtype != leaf.dtype else found)


def _foreign(path: Path, what: str) -> InputError:
    return InputError(
        f"the checkpoint {path} is of another run: it holds {what}; "
        "delete it, or name another file in checkpoint="
    )
