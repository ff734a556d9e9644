"""Roots of symmetric positive definite matrices, and their gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nearly.core.errors import InputError, UnknownName
from nearly.core.problem import Host, Problem

SPECTRA = ("geometric", "clustered", "wishart")


class MatrixFunction(Problem):
    """A^(1/root) for a batch of symmetric positive definite matrices.

    A method is a function `(matrices, root) -> matrices`. If it has `dials` and `at(dial)`, these
    are its settings, otherwise it runs once. A function that JAX cannot trace is a `core.Host`.

    **Arguments:**

    - `matrices`: NumPy array (batch, n, n) of the problem's dtype.
    - `root`: 2 is the square root, -2 its inverse, -4 the inverse fourth root, …
    - `differentiate`: whether the gradient of <W, A^(1/root)> in A is asked for too, W a fixed
      random matrix; then the first error is the gradient's.

    Errors are relative, in the Frobenius norm, the largest of the batch. Truth: eigh in float64,
    and the divided differences of the eigenvalues for the gradient. Work: `matmuls` and `solves`,
    factorisations apart, of one forward evaluation, read off its jaxpr; a loop without a known
    number of passes gives none.
    """

    name: str
    dtype: str
    matrices: Float[np.ndarray, "batch n n"]
    root: int = 2
    differentiate: bool = False

    work_name: ClassVar[str] = "matmuls"
    protocol: ClassVar[str] = "matrix-functions"

    def __check_init__(self) -> None:
        if self.root == 0:
            raise InputError("root 0 is no power: use 2 for A^(1/2), -2 for its inverse")
        if self.dtype not in ("float32", "float64"):
            raise UnknownName("dtype", self.dtype, ("float32", "float64"))
        if self.matrices.shape[1] != self.matrices.shape[2] or self.matrices.dtype != self.dtype:
            raise InputError(
                f"matrices must be square and {self.dtype}, not {self.matrices.shape} and "
                f"{self.matrices.dtype}"
            )

    @property
    def error_name(self) -> str:
        return "gradient error" if self.differentiate else "relative error"

    def dials(self, method: Any) -> Sequence[Any]:
        return getattr(method, "dials", None) or ("as given",)

    def random(self, method: Any) -> bool:
        return False

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        return method.at(dial) if getattr(method, "dials", None) else method

    def apply(self, standin: Any, *, key: Any) -> Any:
        if isinstance(standin, Host):
            return standin(np.asarray(self.matrices), self.root), None
        matrices = jnp.asarray(self.matrices)
        if not self.differentiate:
            return standin(matrices, self.root), None
        value, pull = jax.vjp(lambda a: standin(a, self.root), matrices)
        return value, pull(jnp.asarray(self.weights, self.dtype))[0]

    def errors(self, value: Any) -> Mapping[str, float]:
        root, gradient = value
        truth, true_gradient = self._truth
        errors = {"relative error": _largest_relative(root, truth)}
        if not self.differentiate:
            return errors
        if gradient is None:
            raise InputError("this method runs on the host and has no gradient")
        symmetric = 0.5 * (gradient + np.swapaxes(gradient, -2, -1))
        return {"gradient error": _largest_relative(symmetric, true_gradient), **errors}

    def work(self, standin: Any) -> Mapping[str, float]:
        if isinstance(standin, Host):
            return {}
        shape = jax.ShapeDtypeStruct(self.matrices.shape[1:], jnp.dtype(self.dtype))
        return products(lambda a: standin(a, self.root), shape)

    def floor(self) -> float:
        return float(np.linalg.cond(self.matrices.astype(np.float64)).max() * np.finfo(float).eps)

    @property
    def weights(self) -> np.ndarray:
        weights = np.random.default_rng(0).normal(size=self.matrices.shape)
        return 0.5 * (weights + np.swapaxes(weights, -2, -1))

    @property
    def _truth(self) -> tuple[np.ndarray, np.ndarray]:
        return root_and_gradient(self.matrices.astype(np.float64), self.weights, self.root)


def root_and_gradient(
    matrices: Float[np.ndarray, "*batch n n"], weights: Float[np.ndarray, "*batch n n"], root: int
) -> tuple[Float[np.ndarray, "*batch n n"], Float[np.ndarray, "*batch n n"]]:
    """A^(1/root), and the gradient of <W, A^(1/root)>, by Daleckii and Krein's formula.

    The divided difference (s^p - t^p over s - t, inverted) of p-th roots is a sum of positive
    terms, so it loses no digits where eigenvalues coincide.
    """
    values, vectors = np.linalg.eigh(matrices)
    order = abs(root)
    small = values ** (1 / order)
    left, right = small[..., :, None], small[..., None, :]
    divided = 1 / sum(left**k * right ** (order - 1 - k) for k in range(order))
    powers = small
    if root < 0:  # 1/s - 1/t over s^p - t^p
        divided, powers = -divided / (left * right), 1 / small
    back = np.swapaxes(vectors, -2, -1)
    gradient = vectors @ (divided * (back @ weights @ vectors)) @ back
    return (vectors * powers[..., None, :]) @ back, gradient


def matrix_function(
    root: int = 2,
    condition: float = 10.0,
    size: int = 64,
    batch: int = 8,
    spectrum: str = "geometric",
    dtype: str = "float32",
    differentiate: bool = False,
    seed: int = 0,
) -> MatrixFunction:
    """An instance of `MatrixFunction` with random eigenvectors.

    `spectrum`: `geometric` from 1 to 1/condition; `clustered`, half the eigenvalues at each of
    these two ends; `wishart`, covariances of samples whose number is chosen such that their
    condition number is about `condition` (as in covariance pooling).
    """
    if spectrum not in SPECTRA:
        raise UnknownName("spectrum", spectrum, SPECTRA)
    if not 1 <= condition < np.inf or size < 2 or batch < 1:
        raise InputError(
            f"condition {condition}, size {size}, batch {batch} must be at least 1, 2, 1"
        )
    random = np.random.default_rng(seed)
    if spectrum == "wishart":
        matrices = _wishart(random, condition, size, batch)
    else:
        values = np.geomspace(1, 1 / condition, size)
        if spectrum == "clustered":
            values = np.where(values > condition**-0.5, 1.0, 1 / condition)
        vectors = np.linalg.qr(random.normal(size=(batch, size, size)))[0]
        matrices = (vectors * values) @ np.swapaxes(vectors, -2, -1)
    name = f"matrix-root-{root}" + ("-gradient" if differentiate else "")
    fields: Any = (name, dtype, matrices.astype(dtype), root, differentiate)
    return MatrixFunction(*fields)


def _wishart(random: Any, condition: float, size: int, batch: int) -> np.ndarray:
    """Marchenko-Pastur: samples n with ((1 + sqrt(size/n)) / (1 - sqrt(size/n)))^2 = condition."""
    ratio = (condition**0.5 - 1) / (condition**0.5 + 1)
    samples = max(int(size / max(ratio, 1e-2) ** 2), size + 1)
    data = random.normal(size=(batch, samples, size))
    return np.swapaxes(data, -2, -1) @ data / samples


# ------------------------------------------------------------------ work, read off the jaxpr

_UNITS = {"dot_general": "matmuls", "triangular_solve": "solves", "lu": "factorisations"} | {
    "cholesky": "factorisations",
    "eigh": "eigendecompositions",
    "svd": "eigendecompositions",
    "schur": "eigendecompositions",
    "householder_product": "factorisations",
}


def products(function: Any, matrix: jax.ShapeDtypeStruct) -> dict[str, float]:
    """How many matrix products, triangular solves and factorisations a function of one matrix does.

    Empty if one of them stands in a loop whose number of passes is not known beforehand.
    """
    counts: dict[str, float] = {}
    for name, times in _equations(jax.make_jaxpr(function)(matrix).jaxpr, matrix.shape, 1.0):
        counts[name] = counts.get(name, 0) + times
    return {} if any(map(np.isnan, counts.values())) else counts


def _equations(jaxpr: Any, shape: tuple[int, ...], times: float) -> Iterator[tuple[str, float]]:
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in _UNITS and any(v.aval.shape == shape for v in equation.outvars):
            yield _UNITS[name], times
        passes = {"scan": equation.params.get("length", 1), "while": np.nan}.get(name, 1)
        for inner in _inner(equation):
            yield from _equations(inner, shape, times * passes)


def _inner(equation: Any) -> Iterator[Any]:
    """The programs that an equation runs. Of an implicit solve that is the solve, not its rules."""
    parameters = equation.params
    if equation.primitive.name == "custom_linear_solve":
        parameters = {"solve": parameters["jaxprs"].solve}
    for value in jax.tree.leaves(list(parameters.values()), is_leaf=_is_jaxpr):
        if _is_jaxpr(value):
            yield getattr(value, "jaxpr", value)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


def _largest_relative(value: Any, truth: np.ndarray) -> float:
    difference = np.linalg.norm(np.asarray(value, np.float64) - truth, axis=(-2, -1))
    return float(np.max(difference / np.linalg.norm(truth, axis=(-2, -1))))
