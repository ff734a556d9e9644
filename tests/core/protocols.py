"""Small problems of four protocols, as a user would write them: what keeps the core honest.

Referred to as `protocols.py:name`, so that worker processes can rebuild them too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax

from nearly.core.problem import Host, Problem
from nearly.core.tally import counted


def spread(size: int) -> np.ndarray:
    """An SPD matrix whose eigenvalues spread over two decades: CG gains digits step by step."""
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]
    return (rotation * np.geomspace(1, 100, size)) @ rotation.T


class Spd(Problem):
    """Solve A x = b with an SPD operator; the dial is the solver's relative tolerance."""

    size: int = 60
    dtype: str = "float64"
    name: ClassVar[str] = "spd"
    error_name: ClassVar[str] = "relative error"
    work_name: ClassVar[str] = "matvecs"
    protocol: ClassVar[str] = "test-linear"

    @property
    def matrix(self) -> np.ndarray:
        return spread(self.size).astype(self.dtype)

    def dials(self, method: Any) -> Sequence[float]:
        return (1e-2, 1e-4, 1e-6)

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        if callable(getattr(method, "compute", None)):
            return eqx.tree_at(lambda s: s.rtol, method, jnp.asarray(dial, self.dtype))
        return Host(lambda matvec, rhs: method(matvec, rhs, dial))

    def apply(self, standin: Any, *, key: Any) -> Any:
        matvec = counted(lambda x: jnp.asarray(self.matrix) @ x, "matvecs")
        rhs = jax.random.normal(key, (self.size,), self.dtype)
        if isinstance(standin, Host):
            return rhs, standin(lambda x: np.asarray(matvec(jnp.asarray(x))), np.asarray(rhs))
        shape = jax.ShapeDtypeStruct(rhs.shape, rhs.dtype)
        operator = lx.FunctionLinearOperator(matvec, shape, lx.positive_semidefinite_tag)
        return rhs, lx.linear_solve(operator, rhs, standin, throw=False).value

    def errors(self, value: Any) -> Mapping[str, float]:
        rhs, x = (np.asarray(v, np.float64) for v in value)
        truth = np.linalg.solve(spread(self.size), rhs)
        return {"relative error": float(np.linalg.norm(x - truth) / np.linalg.norm(truth))}


cg = lx.CG(rtol=1e-3, atol=1e-30, max_steps=500)


def scipy_cg(matvec: Any, rhs: np.ndarray, rtol: float) -> np.ndarray:
    from scipy.sparse.linalg import LinearOperator
    from scipy.sparse.linalg import cg as solve

    operator = LinearOperator((rhs.size, rhs.size), matvec=matvec, dtype=rhs.dtype)
    return solve(operator, rhs, rtol=rtol, atol=0.0)[0]


def broken(matvec: Any, rhs: np.ndarray, rtol: float) -> np.ndarray:
    raise RuntimeError("this solver always fails")


def nan(matvec: Any, rhs: np.ndarray, rtol: float) -> np.ndarray:
    return np.full_like(rhs, np.nan)


class Quadratic(Problem):
    """Minimise a quadratic from a random start; the dial is the number of steps."""

    dtype: str = "float32"
    name: ClassVar[str] = "quadratic"
    error_name: ClassVar[str] = "loss"
    work_name: ClassVar[str] = "losses vjps"
    protocol: ClassVar[str] = "test-optax"

    def dials(self, method: Any) -> Sequence[int]:
        return (4, 16)

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        return method, jnp.asarray(dial, jnp.int32)

    def apply(self, standin: Any, *, key: Any) -> Any:
        optimizer, steps = standin
        scale = jnp.arange(1, 4, dtype=self.dtype)
        loss = counted(lambda p: jnp.sum(scale * p**2), "losses")
        start = jax.random.normal(key, (3,), self.dtype)

        def step(_: Any, state: Any) -> Any:
            p, inner = state
            updates, inner = optimizer.update(jax.grad(loss)(p), inner, p)
            return optax.apply_updates(p, updates), inner

        return jax.lax.fori_loop(0, steps, step, (start, optimizer.init(start)))[0]

    def errors(self, value: Any) -> Mapping[str, float]:
        p = np.asarray(value, np.float64)
        return {"loss": float(np.sum(np.arange(1, 4) * p**2))}


adam = optax.adam(0.1)
sgd = optax.sgd(0.05)


class Decay(Problem):
    """y' = -y from 1 to t = 1; the dial is the relative tolerance or the step."""

    stepping: str = "tolerance"
    dtype: str = "float64"
    name: ClassVar[str] = "decay"
    error_name: ClassVar[str] = "absolute error"
    work_name: ClassVar[str] = "fields"
    protocol: ClassVar[str] = "test-diffrax"

    def dials(self, method: Any) -> Sequence[float]:
        return (1e-3, 1e-6, 1e-9) if self.stepping == "tolerance" else (0.25, 0.125, 0.0625)

    def random(self, method: Any) -> bool:
        return False

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        return method, jnp.asarray(dial, self.dtype)

    def apply(self, standin: Any, *, key: Any) -> Any:
        solver, dial = standin
        field = counted(lambda t, y, args: -y, "fields")
        adaptive = self.stepping == "tolerance"
        controller = (
            diffrax.PIDController(rtol=dial, atol=dial) if adaptive else diffrax.ConstantStepSize()
        )
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            solver,
            0.0,
            1.0,
            jnp.asarray(0.1, self.dtype) if adaptive else dial,
            jnp.asarray(1.0, self.dtype),
            stepsize_controller=controller,
            saveat=diffrax.SaveAt(t1=True),
            max_steps=None,
        ).ys[0]

    def errors(self, value: Any) -> Mapping[str, float]:
        return {"absolute error": abs(float(value) - float(np.exp(-1.0)))}


tsit5 = diffrax.Tsit5()
heun = diffrax.Heun()


class Slow(Problem):
    """Sleeps; the error is one over the dial. What it runs is logged where the test asks."""

    dtype: str = "float32"
    name: ClassVar[str] = "slow"
    error_name: ClassVar[str] = "error"
    work_name: ClassVar[str] = "naps"
    protocol: ClassVar[str] = "test-slow"

    def dials(self, method: Any) -> Sequence[int]:
        return (1, 2, 3)

    def random(self, method: Any) -> bool:
        return False

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        die = os.environ.get("NEARLY_TEST_DIE")
        if die and dial == 3 and not Path(die).exists():
            Path(die).touch()
            os._exit(9)
        method(float(os.environ.get("NEARLY_TEST_SLEEP", "0.2")))
        if log := os.environ.get("NEARLY_TEST_LOG"):
            with open(log, "a") as file:
                file.write(f"{dial}\n")
        return Host(lambda: 1 / dial)

    def apply(self, standin: Any, *, key: Any) -> Any:
        return standin()

    def errors(self, value: Any) -> Mapping[str, float]:
        return {"error": value}

    def seconds(self, use: Any, standin: Any) -> Sequence[float]:
        return ()


def sleeper(seconds: float) -> None:
    time.sleep(seconds)
