"""`InitialValueProblem`: the shipped solutions, how methods are handed over, what it counts."""

import sys

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from nearly.core import catalogue
from nearly.core.compare import compare
from nearly.core.lazy import load
from nearly.core.measure import run_trial
from nearly.core.problem import Host
from nearly.core.tally import tally
from nearly.dynamics import peers
from nearly.dynamics.chord import PatientChord
from nearly.dynamics.problems.equations import CASES
from nearly.dynamics.problems.initial_value import (
    InitialValueProblem,
    airy,
    prothero_robinson,
    standard,
)
from nearly.dynamics.problems.oscillator import Oscillator
from nearly.errors import InputError, UnknownName

# The last lines of the reference solutions of the Test Set for IVP Solvers (Mazzia, Magherini).
PUBLISHED = {
    "hires": {
        0: 0.7371312573325668e-3,
        1: 0.1442485726316185e-3,
        2: 0.5888729740967575e-4,
        3: 0.1175651343283149e-2,
        4: 0.2386356198831331e-2,
        5: 0.6238968252742796e-2,
        6: 0.2849998395185769e-2,
        7: 0.2850001604814231e-2,
    },
    "orego": {0: 0.1000814870318523e1, 1: 0.1228178521549917e4, 2: 0.1320554942846706e3},
    "van-der-pol": {0: 0.1706167732170483e1, 1: -0.8928097010247975e-3},
    "pollu": {0: 0.5646255480022769e-1, 1: 0.1342484130422339, 2: 0.4139734331099427e-8},
    "pleiades": {0: 0.3706139143970502, 1: 0.3237284092057233e1, 7: -0.3943437585517392e1},
}


def decay(t, y, args):
    return -y


def small(**changes):
    settings = {
        "field": decay,
        "start": np.ones(2),
        "times": np.array([0.5, 1.0]),
        "truth": np.exp(-np.array([[0.5, 0.5], [1.0, 1.0]])),
    }
    return InitialValueProblem(**(settings | changes))


@pytest.mark.parametrize("name", PUBLISHED)
def test_shipped_solutions_end_where_the_test_set_says(name):
    problem = standard(name)
    for component, value in PUBLISHED[name].items():
        np.testing.assert_allclose(problem.truth[-1, component], value, rtol=1e-10)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"pleiades"}))  # its Jacobian compiles long
def test_shipped_solutions_satisfy_their_equations(name):
    """A short piece, from one shipped time to the next, by a solver of SciPy's."""
    problem = standard(name)
    case = CASES[name]
    with jax.enable_x64(True):
        field = jax.jit(lambda t, y: problem.field(t, y, None))
        slope = jax.jit(jax.jacfwd(lambda y: problem.field(0.0, y, None)))
        start, end = len(case.times) // 2 - 1, len(case.times) // 2
        values, _ = peers.integrate(
            "Radau",
            lambda t, y: np.asarray(field(t, y)),
            lambda t, y: np.asarray(slope(y)),
            problem.truth[start],
            case.times[[start, end]],
            1e-9,
            1e-9 * case.absolute,
        )
    scale = np.max(np.abs(problem.truth), axis=0) + case.absolute
    np.testing.assert_allclose(values[0] / scale, problem.truth[end] / scale, atol=1e-6)
    assert 0 <= problem.uncertainty < 1e-13


def test_henon_heiles_keeps_its_energy():
    truth = standard("henon-heiles").truth
    q1, q2, p1, p2 = truth.T
    energy = (p1**2 + p2**2 + q1**2 + q2**2) / 2 + q1**2 * q2 - q2**3 / 3
    np.testing.assert_allclose(energy, 0.125 + 0.005 - 0.001 / 3, rtol=1e-14)


def test_the_airy_functions_solve_their_equation():
    problem = airy(0.05)
    with jax.enable_x64(True):
        found = problem.apply(problem.build(dfx.Tsit5(), 1e-10, key=None), key=None)
    assert problem.errors(np.asarray(found))["l2"] < 1e-8


@pytest.mark.parametrize(
    "method",
    [
        dfx.Heun(),
        dfx.PIDController(rtol=1.0, atol=1.0, pcoeff=0.3, icoeff=0.4),
        {"solver": dfx.Heun(), "stepsize_controller": dfx.ConstantStepSize()},
        lambda field, start, times, tolerance: start * jnp.exp(-times[1:, None]),
        peers.scipy_bdf,
    ],
    ids=["solver", "controller", "mapping", "function", "host"],
)
def test_a_method_of_any_form_runs(method):
    problem = small(stiff=False)
    with jax.enable_x64(True):
        dial = 256 if isinstance(method, dict) else 1e-5
        standin = problem.build(method, dial, key=None)
        errors = problem.errors(np.asarray(problem.apply(standin, key=None)))
    assert errors["final"] < 1e-4 and errors["l2"] < 1e-4


PEERS = {n: m for n, m in catalogue.methods("ode-solvers").items() if m.source == "peer"}
# Those that compile for long beside one that is built alike.
LONG = ("diffrax-kvaerno3", "diffrax-dopri8", "probdiffeq-ek1")
PACKAGES = {"sundials-cvode": "sksundae", "riccati": "riccati", "probdiffeq-ek1": "probdiffeq"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in PEERS]
)
def test_every_catalogued_peer_runs_and_is_counted(name):
    """On u'' + 100 u = 0, as some can do nothing else."""
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    method = load(PEERS[name].target)
    epsilon, times = 0.1, np.array([0.5, 1.0])
    cos, sin = np.cos(times / epsilon), np.sin(times / epsilon)
    problem = small(
        field=Oscillator(lambda x: 1 + 0 * x, epsilon),
        start=np.array([1.0, 0.0, 0.0, 1.0]),
        truth=np.stack([cos, -sin, sin, cos], axis=1),
    )
    with jax.enable_x64(True), tally() as counts:
        standin = problem.build(method, 1e-5, key=None)
        errors = problem.errors(np.asarray(problem.apply(standin, key=None)))
    assert errors["final"] < 3e-3 and errors["l2"] < 3e-3
    assert counts.read()["f"] > 5


def test_peers_that_are_not_installed_say_so(monkeypatch):
    for module, method in (("sksundae", peers.cvode), ("riccati", peers.riccati)):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.setitem(sys.modules, f"{module}.cvode", None)
        with jax.enable_x64(True), pytest.raises(ImportError):
            small(field=Oscillator(lambda x: x, 0.1), start=np.ones(4), truth=None).build(
                method, 1e-3, key=None
            )()


def test_riccati_refuses_what_is_no_oscillator():
    pytest.importorskip("riccati")
    with pytest.raises(InputError, match="give an Oscillator's field"):
        small().build(peers.riccati, 1e-3, key=None)()


def test_calls_steps_and_rejections_are_counted():
    problem = small(stiff=False)
    with jax.enable_x64(True), tally() as counts:
        standin = problem.build(
            {"solver": dfx.Heun(), "stepsize_controller": dfx.ConstantStepSize()}, 16, key=None
        )
        jax.block_until_ready(jax.jit(lambda: problem.apply(standin, key=None))())
    assert counts.read()["f"] == 32
    assert counts.read()["steps*"] == 16
    assert "rejected steps*" not in counts.read() or counts.read()["rejected steps*"] == 0


def test_what_scipy_reports_is_counted():
    problem = small()
    with jax.enable_x64(True), tally() as counts:
        problem.apply(problem.build(peers.scipy_radau, 1e-6, key=None), key=None)
    assert counts.read()["f"] > 10
    assert counts.read()["factorisations*"] >= 2


def test_a_problem_without_a_truth_finds_it(fresh_store):
    problem = small(truth=None)
    truth, uncertainty = problem.solution()
    np.testing.assert_allclose(truth[:, 0], np.exp([-0.5, -1.0]), rtol=1e-10)
    assert 0 < uncertainty < 1e-9
    assert problem.floor() == uncertainty


def test_an_equation_of_the_users_own_is_compared(tmp_path, fresh_store):
    path = tmp_path / "pendulum.py"
    path.write_text(
        "import jax.numpy as jnp\nimport numpy as np\n"
        "from nearly.dynamics import InitialValueProblem\n"
        "def field(t, y, args):\n    return jnp.stack([y[1], -jnp.sin(y[0])])\n"
        "problem = InitialValueProblem(field=field, start=np.array([1.0, 0.0]),\n"
        "    times=np.array([1.0, 2.0]), stiff=False)\n"
    )
    frontier = compare(f"{path}:problem", "diffrax-tsit5", dials=(1e-3, 1e-6), timed=False)
    first, second = list(frontier)
    assert first.error > 10 * second.error > 0


def test_a_solver_that_does_not_arrive_has_an_infinite_error_and_says_why():
    problem = small(max_steps=3, truth=None)
    trial, _ = run_trial(problem, dfx.Tsit5(), 1e-10, 0)
    assert trial.status == "diverged"
    assert trial.reason == "it does not reach the end; max_steps is 3"
    assert problem.trouble(np.array([1.0, np.nan])) == "the solution becomes nan"
    assert problem.trouble(np.array([1e300])) == ""
    # It has the error of one that does not arrive, not an exception.
    assert trial.errors["final"] == np.inf


@pytest.mark.slow
@pytest.mark.parametrize("solver", [dfx.Kvaerno5, dfx.KenCarp4])
def test_a_patient_iteration_loses_no_steps(solver):
    """Beside Newton's, which takes the Jacobian anew at each iteration."""

    def steps(finder):
        method = solver(root_finder=dfx.with_stepsize_controller_tols(finder)())
        with tally() as counts:
            standin = problem.build(method, 1e-5, key=None)
            errors = problem.errors(np.asarray(problem.apply(standin, key=None)))
        assert errors["final"] < 1e-6
        return counts.read()["steps*"]

    problem = standard("rober")
    with jax.enable_x64(True):
        assert steps(PatientChord) <= 1.1 * steps(optx.Newton)


def test_the_solution_of_prothero_and_robinson_is_one():
    problem = prothero_robinson(rate=-3.0)
    with jax.enable_x64(True):
        slope = problem.field(problem.times[3], jnp.asarray(problem.truth[3]), None)
        tangent = -jnp.sin(problem.times[3])
    np.testing.assert_allclose(slope, tangent, atol=1e-15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float16"}, "float16"),
        ({"start": np.ones((2, 2))}, "ravel it"),
        ({"times": np.array([1.0, 0.5])}, "must increase"),
        ({"absolute": 0.0}, "absolute 0.0"),
        ({"max_steps": 0}, "max_steps 0"),
        ({"truth": np.zeros((3, 2))}, "2 times"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        small(**change)


def test_names_and_methods_that_are_none_are_refused():
    with pytest.raises(UnknownName, match="hires"):
        standard("hirez")
    with pytest.raises(InputError, match="is no solver"):
        small().build(3.0, 1e-3, key=None)
    with pytest.raises(InputError, match="epsilon 0"):
        airy(0.0)
    with pytest.raises(InputError, match="rate 1"):
        prothero_robinson(1.0)
    assert isinstance(peers.scipy_lsoda, Host)
