"""Factorisations of batches that cannot hang.

On CPUs jaxlib (0.10) hands a batched factorisation (`eigh`, `cholesky`, ...) out to the pool of
threads in which it is itself running, and waits for it. Where as many of them as there are threads
run at once, all wait for each other and the program stands still for ever: two batches of different
sizes in one compiled function suffice on a machine with two cores, and `vmap` makes batches out of
single matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, of which `vmap` makes a loop on CPUs and a batch elsewhere.

    **Arguments:** `function` of arrays, a factorisation or what is built on one.

    On CPUs a batch is not spread over cores, other work is. Derivatives are those of the function
    as it is, so a program that takes them of several batches at once can still hang.
    """
    looped: Any = jax.custom_batching.sequential_vmap(function)

    @jax.custom_jvp  # since what has a rule for batches cannot be transposed
    def call(*arrays: Any) -> Any:
        return jax.lax.platform_dependent(*arrays, cpu=looped, default=function)

    @call.defjvp
    def push(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
        return jax.jvp(function, primals, tangents)

    return call
