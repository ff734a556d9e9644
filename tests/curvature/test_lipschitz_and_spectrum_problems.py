"""Conformance: every catalogued method of the room's two protocols, on a small problem each."""

import jax
import numpy as np
import pytest

from nearly.core import catalogue
from nearly.core.compare import compare
from nearly.core.errors import InputError
from nearly.curvature.problems import lipschitz
from nearly.curvature.problems.lipschitz import random_network
from nearly.curvature.problems.spectrum import softmax_regression

SMALL = {"inputs": 3, "width": 6, "depth": 1, "outputs": 2, "radius": 0.3}


@pytest.fixture(scope="module")
def bounds():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lipschitz, "DIALS", {"branches": (1, 64), "slope_steps": (0, 2)})
        yield compare(random_network(**SMALL), "all", timed=False)


@pytest.mark.parametrize("name", sorted(catalogue.methods("lipschitz-bounds")))
def test_every_bound_is_one(bounds, name):
    runs = [run for run in bounds.runs if run.method == name]
    assert runs
    for run in runs:
        assert run.status == "ok", run.reason
        assert run.errors["excess over a sample"] >= 0
    assert runs[-1].worst <= runs[0].worst  # more branches, or steps, never make it worse


def test_a_bound_below_a_sample_is_a_fault():
    found = compare(random_network(**SMALL), {"wrong": lambda chain, box, norm: 0.1}, timed=False)
    assert found.runs[0].status == "failed" and "is below" in found.runs[0].reason


def test_the_users_own_settings_are_checked():
    for settings, message in (({"activation": "sine"}, "'sine'"), ({"width": 0}, "width 0")):
        with pytest.raises(InputError, match=message):
            random_network(**{**SMALL, **settings})


@pytest.fixture(scope="module")
def spectra():
    return compare(softmax_regression(64), "all", dials=[20], seeds=[0], timed=False)


@pytest.mark.parametrize("name", sorted(catalogue.methods("spectra")))
def test_every_spectrum_is_near_the_dense_one(spectra, name):
    (run,) = (run for run in spectra.runs if run.method == name)
    assert run.status == "ok", run.reason
    assert run.errors["largest eigenvalue"] < 1e-3
    assert run.worst < 0.02
    assert run.work["products"] % 20 == 0


def test_the_dense_spectrum_is_that_of_softmax_regression():
    problem = softmax_regression(64)
    eigenvalues = np.asarray(problem.eigenvalues)
    assert len(eigenvalues) == problem.objective.dimension == 650
    # Shifting all logits alike changes nothing: 65 directions of no curvature.
    assert np.sum(np.abs(eigenvalues) < 1e-5 * eigenvalues[-1]) >= 65
    logits = jax.vmap(problem.objective.model)(problem.objective.inputs)
    assert logits.shape == (64, 10)
