"""The store: finished runs and expensive truths, in one SQLite file under the user's cache folder.

Numbers and npz only, never pickles. Any number of processes may use it at once.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from nearly.core.errors import StoreError
from nearly.core.run import Trial, plain

SCHEMA = """
CREATE TABLE IF NOT EXISTS trials (digest TEXT PRIMARY KEY, data TEXT NOT NULL, made REAL NOT NULL);
CREATE TABLE IF NOT EXISTS timings
    (digest TEXT PRIMARY KEY, data TEXT NOT NULL, made REAL NOT NULL);
CREATE TABLE IF NOT EXISTS sweeps (digest TEXT PRIMARY KEY, started REAL NOT NULL);
CREATE TABLE IF NOT EXISTS truths (digest TEXT PRIMARY KEY, data BLOB NOT NULL, made REAL NOT NULL);
"""


def cache_folder() -> Path:
    """Where the store lives: `$NEARLY_CACHE`, or `nearly` in the user's cache folder."""
    chosen = os.environ.get("NEARLY_CACHE")
    if chosen:
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "nearly"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nearly"


class Store:
    """The runs and truths computed so far.

    A *sweep* is open from its first run to its last. One that was killed is still open, and the
    next sweep of the same digest takes up its finished trials; a sweep that was completed starts
    anew unless the caller asks for reuse. Every write is its own transaction in WAL mode, so
    killing a process at any moment loses at most the trial it was computing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.path = (folder or cache_folder()) / "store.sqlite"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as connection:
                connection.executescript(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"cannot use the store {self.path}: {error}; set NEARLY_CACHE to a writable folder"
            ) from error

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            yield connection
        finally:
            connection.close()

    def _get(self, table: str, digest: str) -> Any:
        with self._open() as connection:
            row = connection.execute(
                f"SELECT data FROM {table} WHERE digest = ?", (digest,)
            ).fetchone()
        return row[0] if row else None

    def _put(self, table: str, digest: str, data: str | bytes) -> None:
        with self._open() as connection:
            connection.execute(
                f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)", (digest, data, time.time())
            )

    def trial(self, digest: str) -> Trial | None:
        """The finished trial of this digest, if there is one."""
        data = self._get("trials", digest)
        return Trial.from_json(json.loads(data)) if data else None

    def keep_trial(self, digest: str, trial: Trial) -> None:
        self._put("trials", digest, json.dumps(trial.to_json()))

    def timing(self, digest: str) -> list[float] | None:
        """The samples of seconds of this digest, if it was timed."""
        data = self._get("timings", digest)
        return json.loads(data) if data else None

    def keep_timing(self, digest: str, samples: list[float]) -> None:
        self._put("timings", digest, json.dumps(samples))

    def open_sweep(self, digest: str) -> bool:
        """Mark a sweep as begun; True if one of this digest was begun and never ended."""
        with self._open() as connection:
            begun = connection.execute(
                "INSERT OR IGNORE INTO sweeps VALUES (?, ?)", (digest, time.time())
            )
            return begun.rowcount == 0

    def close_sweep(self, digest: str) -> None:
        with self._open() as connection:
            connection.execute("DELETE FROM sweeps WHERE digest = ?", (digest,))

    def truth(
        self, digest: str, compute: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Arrays that are computed once: an expensive truth and its own uncertainty."""
        data = self._get("truths", digest)
        if data is None:
            buffer = io.BytesIO()
            np.savez(buffer, **dict(compute()))  # pyright: ignore[reportArgumentType]
            data = buffer.getvalue()
            self._put("truths", digest, data)
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def digest_of(*parts: Any) -> str | None:
    """A digest of plain data, arrays, modules and functions; None if something has no digest."""
    state = hashlib.sha256()
    try:
        for part in parts:
            _absorb(state, part)
    except _Undigestible:
        return None
    return state.hexdigest()


class _Undigestible(Exception):
    pass


def _absorb(state: Any, value: Any) -> None:
    """Feed one value to a hash, its type first, so that equal bytes of two types differ."""
    state.update(f"<{type(value).__module__}.{type(value).__qualname__}>".encode())
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        state.update(repr(value).encode())
    elif isinstance(value, (tuple, list)):
        state.update(str(len(value)).encode())
        for item in value:
            _absorb(state, item)
    elif isinstance(value, Mapping):
        for name in sorted(value, key=repr):
            _absorb(state, name)
            _absorb(state, value[name])
    elif hasattr(value, "__array__") and hasattr(value, "dtype"):
        array = np.asarray(value)
        state.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    elif hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        for name in value.__dataclass_fields__:
            _absorb(state, name)
            _absorb(state, getattr(value, name, None))
    elif isinstance(value, type) or hasattr(value, "__qualname__"):
        _absorb_definition(state, value)
    elif hasattr(value, "as_integer_ratio"):
        state.update(repr(value).encode())
    else:
        raise _Undigestible(type(value))


def _absorb_definition(state: Any, value: Any) -> None:
    """A function or class by where it is defined; one made at run time has no such place."""
    name = f"{value.__module__}:{value.__qualname__}"
    if "<" in name or value.__module__ == "__main__":
        raise _Undigestible(name)
    state.update(name.encode())


@lru_cache(1)
def source_digest() -> str:
    """A digest of nearly's own source: any change of the library makes old runs void."""
    state = hashlib.sha256()
    root = Path(__file__).resolve().parents[1]
    for path in sorted(root.rglob("*.py")):
        state.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return state.hexdigest()


def file_digest(text: str) -> str:
    """The content of the file that `path:attribute` names, "" for a plain name."""
    from nearly.core.catalogue import is_file_reference

    if not is_file_reference(text):
        return ""
    path = Path(text.rpartition(":")[0] or text)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


@lru_cache(1)
def environment() -> dict[str, Any]:
    """Versions and machine: what a figure depends on beside the code that made it."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import jax

    def found(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    packages = ("nearly", "jax", "jaxlib", "numpy", "scipy", "python-flint", "equinox", "lineax")
    ecosystem = ("optimistix", "diffrax", "optax")
    return plain(
        {
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "device": str(jax.devices()[0].device_kind),
            "versions": {p: found(p) for p in packages + ecosystem},
        }
    )
