"""Other packages' solvers, on the host, in the form that `InitialValueProblem` documents."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from nearly.core.errors import InputError
from nearly.core.problem import Host

Function = Callable[[float, np.ndarray], np.ndarray]

# Those that solve linear systems; they get the exact Jacobian, which is their best setting.
IMPLICIT = ("Radau", "BDF", "LSODA")


def integrate(
    method: str,
    function: Function,
    jacobian: Function,
    start: np.ndarray,
    times: np.ndarray,
    rtol: float,
    atol: float,
) -> tuple[np.ndarray, Mapping[str, int]]:
    """`scipy.integrate.solve_ivp`: values at `times[1:]`, and what it counted itself.

    Rows that it did not reach are infinite.
    """
    from scipy.integrate import solve_ivp

    extra: dict[str, Any] = {"jac": jacobian} if method in IMPLICIT else {}
    if method == "LSODA":
        extra = {"jac": lambda t, y: np.asarray(jacobian(t, y), order="C")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it fails is told by the rows it leaves out
        found = solve_ivp(
            function,
            (times[0], times[-1]),
            start,
            method=method,
            t_eval=times[1:],
            rtol=rtol,
            atol=atol,
            **extra,
        )
    values = np.full((len(times) - 1, len(start)), np.inf)
    values[: found.y.shape[1]] = found.y.T
    return values, {"Jacobians*": int(found.njev), "factorisations*": int(found.nlu)}


def _scipy(method: str) -> Host:
    def solve(*problem: Any) -> tuple[np.ndarray, Mapping[str, int]]:
        return integrate(method, *problem)

    return Host(solve)


scipy_bdf = _scipy("BDF")
scipy_dop853 = _scipy("DOP853")
scipy_lsoda = _scipy("LSODA")
scipy_radau = _scipy("Radau")


class MethodOfLines:
    """SciPy's LSODA along the logarithmic grid of `crank_nicolson`, in the form that `FeynmanKac`
    documents; the dial is the number of intervals.

    Its tolerance is a tenth of the squared width of an interval over that of the grid, below the
    error in space; its Jacobian is given, with one band on each side.
    """

    dials: ClassVar[tuple[int, ...]] = (32, 64, 128, 256, 512)
    random: ClassVar[bool] = False

    def __call__(self, equation: Any, dial: int, *, key: Any) -> Host:
        """The solver: points -> values."""
        del key
        return Host(lambda points, key: _along_lines(equation, dial, points))


def _along_lines(equation: Any, intervals: int, points: np.ndarray) -> np.ndarray:
    import jax
    import jax.numpy as jnp
    from scipy.integrate import solve_ivp
    from scipy.interpolate import CubicSpline

    from nearly.core.tally import counted
    from nearly.dynamics.feynman_kac import UPDATES, generator, logarithmic_grid

    grid = logarithmic_grid(equation, jnp.log(jnp.asarray(points)), intervals, reach=8.0)
    below, diagonal, above = (np.asarray(band) for band in generator(equation, grid))
    # LSODA wants each column's entries one below the other.
    packed = np.stack([np.roll(above, 1), diagonal, np.roll(below, -1)])

    def slope(t: float, u: np.ndarray) -> np.ndarray:
        return diagonal * u + below * np.roll(u, 1) + above * np.roll(u, -1)

    found = solve_ivp(
        slope,
        (0.0, equation.horizon),
        np.asarray(jax.vmap(equation.initial)(jnp.exp(grid))),
        method="LSODA",
        jac=lambda t, u: packed,
        lband=1,
        uband=1,
        rtol=0.1 / intervals**2,
        atol=0.1 / intervals**2,
    )
    nodes = found.nfev * len(diagonal)
    jax.vmap(counted(lambda u: u, UPDATES))(jnp.zeros(nodes))
    return CubicSpline(np.asarray(grid), found.y[:, -1])(np.log(points))


scipy_lines = MethodOfLines()


def _cvode(
    function: Function,
    jacobian: Function,
    start: np.ndarray,
    times: np.ndarray,
    rtol: float,
    atol: float,
) -> tuple[np.ndarray, Mapping[str, int]]:
    """SUNDIALS' CVODE (BDF of orders 1 to 5) by scikit-sundae, with the exact Jacobian."""
    from sksundae.cvode import CVODE  # pyright: ignore[reportMissingImports]

    def slope(t: float, y: np.ndarray, out: np.ndarray) -> None:
        out[:] = function(t, y)

    def matrix(t: float, y: np.ndarray, slope: np.ndarray, out: np.ndarray) -> None:
        del slope
        out[:] = jacobian(t, y)

    solver = CVODE(slope, jacfn=matrix, rtol=rtol, atol=atol, max_num_steps=100_000)
    # Two times alone would be answered with every step in between.
    grid = times if len(times) > 2 else np.array([times[0], times.mean(), times[-1]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it fails is told by the rows it leaves out
        found = solver.solve(grid, start)
    kept = np.isin(found.t, times[1:])
    values = np.full((len(times) - 1, len(start)), np.inf)
    values[: kept.sum()] = found.y[kept]
    return values, {"Jacobians*": int(found.njev)}


def _riccati(
    function: Function,
    jacobian: Function,
    start: np.ndarray,
    times: np.ndarray,
    rtol: float,
    atol: float,
) -> tuple[np.ndarray, Mapping[str, int]]:
    """Riccati defect correction where the solution oscillates, Chebyshev collocation elsewhere.

    For the field of an `Oscillator` alone, whose coefficient must go on a little after the last
    time: the last step may go past it, and is interpolated.
    """
    del jacobian, atol
    from riccati import solve, solversetup  # pyright: ignore[reportMissingImports]

    coefficient, epsilon = getattr(function, "coefficient", None), getattr(function, "epsilon", 0.0)
    if coefficient is None:
        raise InputError(
            "riccati solves epsilon^2 u'' + a(x) u = 0 only: give an Oscillator's field"
        )

    def frequency(x: np.ndarray) -> np.ndarray:
        return np.sqrt(coefficient(x)) / epsilon

    with warnings.catch_warnings():  # riccati itself silences all warnings for good
        info = solversetup(frequency, np.zeros_like)
        *_, values, slopes = solve(
            info,
            *(times[0], times[-1]),
            *(start[0] + 1j * start[2], (start[1] + 1j * start[3]) / epsilon),
            eps=rtol,
            epsh=rtol,
            xeval=times[1:],
        )
    u, slope = np.asarray(values, complex), epsilon * np.asarray(slopes, complex)
    parts = np.stack([np.real(u), np.real(slope), np.imag(u), np.imag(slope)], axis=-1)
    return parts, {"solves*": info.n_LS, "steps*": info.n_riccstep + info.n_chebstep}


cvode = Host(_cvode)
riccati = Host(_riccati)


def probdiffeq_ek1(field: Any, start: Any, times: Any, tolerance: Any) -> Any:
    """probdiffeq's extended Kalman filter of order 4, its output scale fitted step by step.

    A plain function in the form that `InitialValueProblem` documents; the absolute tolerance is a
    hundredth of the relative one. The mean alone is returned, not how uncertain it is.
    """
    import jax
    import jax.numpy as jnp
    from probdiffeq import ivpsolve, probdiffeq  # pyright: ignore[reportMissingImports]

    def slope(y: Any, /, *, t: Any) -> Any:
        return field(t, y, None)

    def slope_with_time(y: Any, /, *, t: Any) -> Any:
        del t
        return jnp.append(field(y[-1], y[:-1], None), jnp.ones((), y.dtype))

    expand = probdiffeq.jetexpand_ode_via_jvp(num=4)
    series, _ = expand(probdiffeq.ode(slope_with_time), (jnp.append(start, times[0]),), t=times[0])
    ode = probdiffeq.ode(slope, jacobian=probdiffeq.jacobian_materialize(jacfun=jax.jacfwd))
    model = probdiffeq.state_space_model_dense()
    constraint = model.constraint_ode_ts1(ode)
    filtered: Any = probdiffeq.solver_dynamic(
        strategy=probdiffeq.strategy_filter(), constraint=constraint
    )
    solve = ivpsolve.solve_adaptive_save_at(
        solver=filtered, error=probdiffeq.error_residual_std(constraint=constraint)
    )
    solution = solve(
        model.prior_wiener_integrated([row[:-1] for row in series]),
        save_at=times,
        atol=1e-2 * tolerance,
        rtol=tolerance,
        dt0=ivpsolve.dt0(slope, (start,), t=times[0]),
    )
    return solution.u.mean[0][1:]
