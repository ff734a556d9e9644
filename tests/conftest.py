"""What every test shares: a store of its own, type checks at run time, little memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["NEARLY_CACHE"] = tempfile.mkdtemp(prefix="nearly-tests-")  # workers inherit it

import jaxtyping

jaxtyping.install_import_hook("nearly", "typecheck.check")

import jax  # noqa: E402
import pytest  # noqa: E402

# Compiled programs outlive a run of the suite: most of its time is compilation.
jax.config.update("jax_compilation_cache_dir", str(Path(tempfile.gettempdir()) / "nearly-xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


# What scripts/slow_tests.py found to take longer than a quick suite allows.
SLOW = frozenset((Path(__file__).parent / "slow.txt").read_text().splitlines())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid in SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="module")
def clear_caches() -> Iterator[None]:
    yield
    jax.clear_caches()


@pytest.fixture
def fresh_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store, for this process and those it starts."""
    monkeypatch.setenv("NEARLY_CACHE", str(tmp_path / "store"))
    return tmp_path / "store"
