"""Trained models as files: saved and loaded without pickles, exported for other programs.

`save` writes one npz file: a JSON header that spells out the model's modules and settings, and its
arrays. `load` builds it again, in the same version of the library. `export_model` writes the
function itself (StableHLO), for any size of batch. What `jax.export` serialises by itself needs the
package flatbuffers; the npz file holds the same program.
"""

from __future__ import annotations

import importlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from nearly.core.errors import InputError, StoreError

FORMAT = 1
HEADER, PROGRAM = "header", "program"
# Only classes and functions of these packages are looked up when a file names them.
TRUSTED = ("nearly", "equinox", "jax", "optax")
PUBLIC = ("jax.nn", "jax.numpy", "jax.lax")  # where functions are known by a lasting name


def save(path: Path | str, model: Any, about: Mapping[str, Any] | None = None) -> Path:
    """Write a model: any pytree of equinox modules, arrays, plain numbers and named functions.

    **Arguments:** `about`: what else should be known of it (plain data: the method's settings, the
    problem, its error); `read_about` gives it back.

    Raises `InputError` for a part that has no lasting name (a lambda, a closure), and `StoreError`
    if the file cannot be written. The file is replaced in one step.
    """
    path = _npz(path)
    arrays: list[np.ndarray] = []
    header = {"format": FORMAT, "about": dict(about or {}), "model": _described(model, arrays)}
    return _write(path, header, {f"array{i}": array for i, array in enumerate(arrays)})


def load(path: Path | str, trusted: Sequence[str] = ()) -> Any:
    """The model that `save` wrote.

    **Arguments:** `trusted`: further packages whose classes and functions the file may name, your
    own say. Nothing else is imported, and no code of the file's is run.

    Raises `InputError` for a file that is no saved model, or names something unknown.
    """
    header, held = _read(Path(path))
    if "model" not in header:
        raise InputError(f"{path} holds an exported function: load_exported() reads it")
    return _rebuilt(header["model"], held, (*TRUSTED, *trusted))


def read_about(path: Path | str) -> dict[str, Any]:
    """What `save` was told about the model."""
    return _read(Path(path))[0].get("about", {})


def export_model(model: Callable[..., Any], path: Path | str, *examples: Any) -> Path:
    """Write a model as a function of batches, by `jax.export`, into an npz file.

    **Arguments:**

    - `model`: a function of one sample. A stepper is given its key first:
      `functools.partial(stepper, key=jax.random.key(0))`.
    - `examples`: one sample's arrays, for their shapes and dtypes: the resolution is fixed, the
      size of the batch is not.

    `load_exported` gives the function back, without the model's code; `program` in the file is
    portable StableHLO. Raises `StoreError` if the file cannot be written.
    """
    arguments = _batches([(x.shape, x.dtype) for x in examples])
    exported = export.export(jax.jit(lambda *samples: jax.vmap(model)(*samples)))(*arguments)
    (out,) = exported.out_avals
    header = {
        "format": FORMAT,
        "inputs": [[list(x.shape), str(x.dtype)] for x in examples],
        "output": [list(out.shape[1:]), str(out.dtype)],
        "kept": list(exported.module_kept_var_idx),
        "version": exported.calling_convention_version,
        "platforms": list(exported.platforms),
    }
    program = np.frombuffer(exported.mlir_module_serialized, np.uint8)
    return _write(_npz(path), header, {PROGRAM: program})


def load_exported(path: Path | str) -> Callable[..., Any]:
    """The function of batches that `export_model` wrote.

    Raises `InputError` for another file, or one that this version of JAX cannot run.
    """
    header, held = _read(Path(path))
    if PROGRAM not in held:
        raise InputError(f"{path} holds no exported function; load() reads a saved model")
    arguments = _batches(header["inputs"])
    shape, dtype = header["output"]

    def stand_in(*samples: Any) -> Any:
        return jnp.zeros((samples[0].shape[0], *shape), dtype)

    # An exported function of the same signature, whose program is replaced by the one in the file.
    like = export.export(jax.jit(stand_in), platforms=header["platforms"])(*arguments)
    if like.calling_convention_version < header["version"]:
        raise InputError(f"{path} was exported by a newer JAX: export it again, or update")
    return replace(
        like,
        mlir_module_serialized=held[PROGRAM].tobytes(),
        module_kept_var_idx=tuple(header["kept"]),
        calling_convention_version=header["version"],
    ).call


def _batches(samples: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    """Batches of one size, which is left open, of samples of these shapes and dtypes."""
    (batch,) = export.symbolic_shape("batch")
    return [jax.ShapeDtypeStruct((batch, *shape), dtype) for shape, dtype in samples]


def _write(path: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Path:
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    partial = path.with_name(f"{path.stem}.{os.getpid()}.npz")
    try:
        np.savez(partial, **{HEADER: text}, **arrays)  # pyright: ignore[reportArgumentType]
        os.replace(partial, path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
    return path


# ---- a model in words


def _described(part: Any, arrays: list[np.ndarray]) -> Any:
    if part is None or isinstance(part, (bool, int, str)):
        return part
    if isinstance(part, float):
        return {"float": part.hex()}
    if eqx.is_array(part):
        arrays.append(_plain(part))
        kind = "numpy" if isinstance(part, np.ndarray) else "jax"
        return {kind: len(arrays) - 1, "dtype": str(part.dtype)}
    if isinstance(part, eqx.Module):
        values = {f.name: _described(getattr(part, f.name), arrays) for f in fields(part)}
        return {"module": _name(type(part)), "fields": values}
    if isinstance(part, (tuple, list)):
        items = [_described(item, arrays) for item in cast("Sequence[Any]", part)]
        return {"tuple" if isinstance(part, tuple) else "list": items}
    if isinstance(part, dict):
        entries = cast("dict[str, Any]", part)
        return {"dict": {name: _described(entry, arrays) for name, entry in entries.items()}}
    if isinstance(part, np.dtype):
        return {"dtype": str(part)}
    if callable(part):
        return {"function": _name(part)}
    raise InputError(f"a {type(part).__name__} cannot be saved: keep to arrays, numbers, modules")


def _plain(array: Any) -> np.ndarray:
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        raise InputError("a random key cannot be saved: hand it over at the call")
    held = np.asarray(array)
    # NumPy has no name for brain floats: their bits are kept.
    return held if held.dtype.kind in "biufc" else held.view(f"u{held.dtype.itemsize}")


def _name(part: Any) -> str:
    name = getattr(part, "__name__", "")
    for public in PUBLIC:
        if getattr(importlib.import_module(public), name, None) is part:
            return f"{public}:{name}"
    where, inside = getattr(part, "__module__", ""), getattr(part, "__qualname__", "")
    if not where or "<" in inside or where == "__main__":
        raise InputError(
            f"{inside or part!r} has no place from which it can be loaded again: "
            "define it at the top of a module"
        )
    return f"{where}:{inside}"


# ---- and back


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
        header = json.loads(held.pop(HEADER).tobytes())
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no saved model: {error}") from error
    if header.get("format") != FORMAT:
        raise InputError(f"{path} is of format {header.get('format')}, not {FORMAT}")
    return header, held


def _rebuilt(part: Any, held: Mapping[str, np.ndarray], trusted: Sequence[str]) -> Any:
    if not isinstance(part, dict):
        return part
    words = cast("dict[str, Any]", part)
    if "float" in words:
        return float.fromhex(words["float"])
    if "numpy" in words or "jax" in words:
        return _array(words, held)
    if "module" in words:
        return _module(words, held, trusted)
    if "tuple" in words:
        return tuple(_rebuilt(item, held, trusted) for item in words["tuple"])
    if "list" in words:
        return [_rebuilt(item, held, trusted) for item in words["list"]]
    if "dict" in words:
        return {name: _rebuilt(entry, held, trusted) for name, entry in words["dict"].items()}
    if "dtype" in words:
        return np.dtype(words["dtype"])
    return _found(words["function"], trusted)


def _array(words: Mapping[str, Any], held: Mapping[str, np.ndarray]) -> Any:
    index, dtype = words.get("numpy", words.get("jax")), jnp.dtype(words["dtype"])
    array = held[f"array{index}"]
    array = array if array.dtype == dtype else array.view(dtype)
    if "numpy" in words:
        return array
    made = jnp.asarray(array)
    if made.dtype != dtype:
        raise InputError(
            f"the model has {dtype} arrays: load it inside jax.enable_x64(True), as it was made"
        )
    return made


def _module(words: Mapping[str, Any], held: Mapping[str, np.ndarray], trusted: Any) -> Any:
    kind = _found(words["module"], trusted)
    values = {name: _rebuilt(value, held, trusted) for name, value in words["fields"].items()}
    if not (isinstance(kind, type) and issubclass(kind, eqx.Module)):
        raise InputError(f"{words['module']} is no equinox module")
    if {f.name for f in fields(kind)} != set(values):
        raise InputError(
            f"{words['module']} has other fields than when the model was saved: "
            "load it with the version that saved it"
        )
    # As JAX itself rebuilds one: its fields are what it was, whatever its __init__ takes.
    made = object.__new__(kind)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


def _found(name: str, trusted: Sequence[str]) -> Any:
    where, _, inside = name.partition(":")
    if where.partition(".")[0] not in trusted:
        raise InputError(
            f"the file names {name}, of a package that is not trusted: "
            f"load(..., trusted=({where.partition('.')[0]!r},)) if you know the file"
        )
    try:
        part: Any = importlib.import_module(where)
        for step in inside.split("."):
            part = getattr(part, step)
    except (ImportError, AttributeError):
        raise InputError(
            f"{name} is not there: load the model with the version that saved it"
        ) from None
    return part


def _npz(path: Path | str) -> Path:
    path = Path(path)
    if path.suffix != ".npz":
        raise InputError(f"path {str(path)!r} must end in .npz")
    return path
