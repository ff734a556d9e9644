"""Damped curvature solves and influence: truth is the dense damped Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from nearly.core.problem import Problem
from nearly.curvature import influence
from nearly.curvature.problems.trained import Case, case


class _Trained(Problem):
    """A small trained network; the dial is how often a method may go over the data.

    **Arguments:**

    - `model`: "tanh" (11-12-1, 300 points), "diabetes" (10-16-1) or "digits" (64-16-10).
    - `damping`: a number, or None for a tenth of each layer's mean eigenvalue.
    - `instance`: seeds the data (or its split), the training and its start.
    """

    model: str = "diabetes"
    damping: float | None = None
    instance: int = 0
    dtype: ClassVar[str] = "float64"

    @property
    def case(self) -> Case:
        return case(self.model, self.damping, self.instance)

    def dials(self, method: Any) -> Sequence[int]:
        return (1, 2, 4, 8, 16, 32, 64)

    def floor(self) -> float:
        return 1e-12

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        found = self.case
        standin = method(found.objective, found.damping, int(dial), key=key)
        return standin, found.objective, found.queries


class CurvatureSolve(_Trained):
    """(G + lam)^-1 g for the loss gradients g of 20 test samples.

    Protocol `curvature`: `(objective, damping, passes, *, key) -> lineax operator`, an approximate
    inverse of the damped Gauss-Newton matrix G of `objective` (`nearly.curvature.Objective`).
    `damping` is a pytree of arrays like the parameters, constant in each layer.
    """

    error_name: ClassVar[str] = "relative error"
    work_name: ClassVar[str] = "samples vjps"
    protocol: ClassVar[str] = "curvature"

    @property
    def name(self) -> str:
        return f"curvature-{self.model}"

    def apply(self, standin: Any, *, key: Any) -> Any:
        inverse, _, queries = standin
        return influence.precondition(inverse, queries)

    def errors(self, value: Any) -> Mapping[str, float]:
        found = self.case
        truth = np.linalg.solve(found.matrix, np.asarray(found.queries).T).T
        norms = np.linalg.norm(truth, axis=1)
        relative = np.linalg.norm(value - truth, axis=1) / norms
        cosine = np.sum(value * truth, axis=1) / (np.linalg.norm(value, axis=1) * norms)
        return {
            "relative error": float(np.median(relative)),
            "1 - cosine": float(1 - np.median(cosine)),
        }


class Influence(_Trained):
    """The influence of every training sample on the losses of 20 test samples.

    Protocol `influence`: `(objective, damping, passes, *, key) -> scorer`, a pytree to be called
    as `scorer(objective, queries) -> scores [queries, samples]`, of the sign of
    `nearly.curvature.influence`. The error is one minus the Pearson correlation with the exact
    damped Gauss-Newton influence, the mean over queries.
    """

    error_name: ClassVar[str] = "1 - Pearson"
    work_name: ClassVar[str] = "samples vjps"
    protocol: ClassVar[str] = "influence"

    @property
    def name(self) -> str:
        return f"influence-{self.model}"

    def apply(self, standin: Any, *, key: Any) -> Any:
        scorer, objective, queries = standin
        return scorer(objective, queries)

    def errors(self, value: Any) -> Mapping[str, float]:
        return {"1 - Pearson": 1 - pearson(value, exact_influence(self.case))}


def exact_influence(found: Case) -> np.ndarray:
    """The influence of the training samples by a dense solve; queries by samples."""
    with jax.enable_x64(True):
        gradients = np.asarray(found.objective.gradients(*found.objective.data))
    return -np.asarray(found.queries) @ np.linalg.solve(found.matrix, gradients.T)


def pearson(found: np.ndarray, truth: np.ndarray) -> float:
    """The mean over rows of the correlation of two matrices' rows; 0 for a constant row."""
    a = found - found.mean(axis=1, keepdims=True)
    b = truth - truth.mean(axis=1, keepdims=True)
    scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean(np.sum(a * b, axis=1) / np.where(scale > 0, scale, 1)))
