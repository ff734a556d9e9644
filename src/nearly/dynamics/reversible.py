"""Exact gradients through algebraically reversible solvers, in memory that steps do not fill."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp

from nearly.core.errors import InputError


class ReversibleAdjoint(dfx.AbstractAdjoint):
    """Backpropagate through a reversible solver by running it backwards, step by step.

    Pass it as `adjoint` to `diffrax.diffeqsolve`, with `diffrax.ReversibleHeun` (ODEs and
    Stratonovich SDEs, fixed or adaptive steps), `diffrax.LeapfrogMidpoint` or
    `diffrax.SemiImplicitEuler`. The gradient with respect to `y0`, `args` and the arrays within
    `terms` is that of the discrete solution (discretise-then-optimise), but for rounding.

    **Raises:** `InputError` for a solver that cannot be run backwards, for `max_steps=None`, an
    `event`, and what is saved other than by `t0`, `t1`, `ts` or every step, and for a controller
    that stops at jumps: the solver forgets its state there.

    **Cost:** one solve forwards; backwards a step back, a step and its pullback for every step.
    Memory for two states, their cotangents and those of the parameters, and one *number* (its time)
    for each of the `max_steps`, where checkpoints take of the order of sqrt(max_steps) states.

    Parameters must come in through `args`, or as arrays of a module that is the vector field: what
    a vector field closes over has no gradient here (JAX says so), as with `BacksolveAdjoint`.

    From `neural-differential-equations` (section 5.3.2 there). Each step back solves the step's own
    equations for what came before, so it takes rounding errors back with it: in float32, and where
    the flow contracts strongly over many steps, those grow; compare with the default adjoint once.
    Noise is queried again at the stored times, so the path must be one that can be
    (`GridBrownianPath`, `VirtualBrownianTree`). Saved values between steps are linear
    interpolations, as these solvers make them, and are pulled back as such. Not differentiable
    forwards (`jax.jvp`), nor twice. A solve of no length (`t0 == t1`) must save at `t1`.
    """

    def loop(
        self,
        *,
        args: Any,
        terms: Any,
        solver: Any,
        saveat: Any,
        event: Any,
        max_steps: int | None,
        init_state: Any,
        passed_solver_state: bool,
        passed_controller_state: bool,
        throw: bool,
        **kwargs: Any,
    ) -> Any:
        """Solve, for `diffrax.diffeqsolve`."""
        del passed_solver_state, passed_controller_state
        _check(solver, saveat, event, max_steps)
        assert max_steps is not None
        saveat = _closed(saveat, kwargs["t0"], init_state.y, args)
        primal = (init_state.y, init_state.solver_state, args, terms)
        state = _with(init_state, y=None, solver_state=None)
        arrays, rest = eqx.partition(_recording(state, max_steps), eqx.is_array)
        state = eqx.combine(jax.lax.stop_gradient(arrays), rest)
        final, statistics = _solve(
            primal,
            solver=solver,
            saveat=saveat,
            max_steps=max_steps,
            init_state=state,
            throw=throw,
            **kwargs,
        )
        saved = final.save_state[0]
        rest, statistics = jax.tree.map(_constant, (final, statistics))
        saved = _with(rest.save_state[0], ys=saved.ys)
        rest = _with(rest, y=final.y, solver_state=final.solver_state, save_state=saved)
        return rest, statistics


def _closed(saveat: Any, t0: Any, y0: Any, args: Any) -> Any:
    """What is saved, its function an argument rather than a closure.

    diffrax wraps the user's in one that holds a traced number, which the pullback, traced later,
    must not meet.
    """
    function = eqx.filter_closure_convert(saveat.subs.fn, t0, y0, args)
    return eqx.tree_at(lambda s: s.subs.fn, saveat, function)


def _with(state: Any, **fields: Any) -> Any:
    return dataclasses.replace(state, **fields)


def _constant(leaf: Any) -> Any:
    """A leaf without its tangent.

    An integer that comes out of a custom rule has one too, an empty one, which diffrax's checks of
    the result cannot take; operations on bits drop it.
    """
    if not eqx.is_array(leaf):
        return leaf
    if jnp.issubdtype(leaf.dtype, jnp.integer) or leaf.dtype == bool:
        return jax.lax.bitwise_or(leaf, jnp.zeros_like(leaf))
    return jax.lax.stop_gradient(leaf)


def _check(solver: Any, saveat: Any, event: Any, max_steps: int | None) -> None:
    if type(solver) not in _REVERSALS:
        names = ", ".join(kind.__name__ for kind in _REVERSALS)
        raise InputError(
            f"{type(solver).__name__} cannot be run backwards: ReversibleAdjoint takes {names}"
        )
    if max_steps is None:
        raise InputError("max_steps=None: ReversibleAdjoint keeps each step's time; give a number")
    if event is not None:
        raise InputError("ReversibleAdjoint does not follow an event: pass event=None")
    if saveat.dense or not isinstance(saveat.subs, dfx.SubSaveAt) or saveat.subs.steps > 1:
        raise InputError(
            "ReversibleAdjoint pulls back what SaveAt saves by t0, t1, ts or steps=True, not "
            "dense=True, several subs, or every n-th step"
        )


# ---- forwards: an ordinary solve that also keeps the times of its steps


def _nothing(t: Any, y: Any, args: Any) -> Any:
    return jnp.zeros(0, jnp.float32)


_EVERY_STEP = dfx.SubSaveAt(steps=True, fn=_nothing)


def _recording(state: Any, max_steps: int) -> Any:
    """The start of a solve with room for the time of each step beside what is saved."""
    saved = state.save_state
    times = jnp.full(max_steps, jnp.inf, saved.ts.dtype)
    nothing = jnp.zeros((max_steps, 0), jnp.float32)
    record = type(saved)(saveat_ts_index=0, ts=times, ys=nothing, save_index=0)
    return _with(state, save_state=(saved, record))


@eqx.filter_custom_vjp
def _solve(primal: Any, *, saveat: Any, init_state: Any, **kwargs: Any) -> Any:
    y, solver_state, args, terms = primal
    state = _with(init_state, y=y, solver_state=solver_state)
    final, statistics = dfx.ForwardMode().loop(
        args=args,
        terms=terms,
        saveat=dfx.SaveAt(subs=(saveat.subs, _EVERY_STEP)),
        init_state=state,
        event=None,
        passed_solver_state=False,
        passed_controller_state=False,
        **kwargs,
    )
    if final.made_jump is not False:
        raise InputError(
            "ReversibleAdjoint cannot step back over jumps: pass a controller without jump times"
        )
    return final, statistics


@_solve.def_fwd
def _solve_and_keep(perturbed: Any, primal: Any, **kwargs: Any) -> Any:
    del perturbed
    final, statistics = _solve(primal, **kwargs)
    saved, record = final.save_state
    kept = (final.y, final.solver_state, saved.ys, saved.save_index, record.ts, record.save_index)
    return (final, statistics), kept


# ---- backwards: rebuild what came before a step, pull the cotangents back through it


class _Sweep(NamedTuple):
    """Where the sweep is: the step it comes to is the `steps`-th, its end is `y`, `state`.

    `saves` values were saved up to there, `asked` of them at times that were asked for. The
    cotangents are those of `y`, `state`, and the perturbed leaves of the arguments and the terms.
    """

    steps: Any
    saves: Any
    asked: Any
    y: Any
    state: Any
    cotangents: Any


@_solve.def_bwd
def _sweep_back(
    kept: Any,
    cotangents: Any,
    perturbed: Any,
    primal: Any,
    *,
    solver: Any,
    saveat: Any,
    t0: Any,
    **kwargs: Any,
) -> Any:
    del kwargs
    y, state, ys, saves, times, steps = kept
    out = cotangents[0]
    a_ys = jax.tree.map(_or_zeros, ys, out.save_state[0].ys)
    _, _, args, terms = primal
    sub = saveat.subs
    moving, still = eqx.partition((args, terms), (perturbed[2], perturbed[3]))
    pulled = _Pullbacks(solver, sub, t0, times, a_ys, moving, still)
    zeros = jax.tree.map(jnp.zeros_like, moving)
    a_y = jax.tree.map(_or_zeros, y, out.y)
    carried, _ = pulled.split(state)
    a_state, _ = pulled.split(jax.tree.map(_or_none, state, out.solver_state))
    a_state = jax.tree.map(_or_zeros, carried, a_state)
    asked = 0 if sub.ts is None else len(sub.ts)
    sweep = _Sweep(steps, saves, jnp.asarray(asked), y, state, (a_y, a_state, zeros))
    if sub.t1 and not sub.steps:
        sweep = pulled.saved(sweep, jnp.where(steps > 0, times[steps - 1], t0))
    # Not `pulled.step` itself: JAX hashes what it loops, and that method holds tracers.
    sweep = jax.lax.while_loop(lambda s: s.steps > 0, lambda s: pulled.step(s), sweep)
    if sub.t0:
        sweep = pulled.saved(sweep, t0)
    a_y, a_state, (a_args, a_terms) = sweep.cotangents
    return a_y, a_state, a_args, a_terms


class _Pullbacks(eqx.Module):
    """What the sweep does at each step and each saved value."""

    solver: Any
    sub: Any
    t0: Any
    times: Any
    a_ys: Any
    moving: Any
    still: Any

    def split(self, state: Any) -> Any:
        """A solver's state as what carries cotangents, and the rest."""
        return eqx.partition(state, _REVERSALS[type(self.solver)].carries(state))

    def saved(self, sweep: _Sweep, time: Any) -> _Sweep:
        """Take the cotangent of the last saved value, which was the state itself, to the state."""

        def value(y: Any, moving: Any) -> Any:
            args, _ = eqx.combine(moving, self.still)
            return self.sub.fn(time, y, args)

        _, pull = jax.vjp(value, sweep.y, self.moving)
        a_y, a_moving = pull(_at(self.a_ys, sweep.saves - 1))
        add_y, add_state, add_moving = sweep.cotangents
        cotangents = (_add(add_y, a_y), add_state, _add(add_moving, a_moving))
        return sweep._replace(saves=sweep.saves - 1, cotangents=cotangents)

    def step(self, sweep: _Sweep) -> _Sweep:
        steps = sweep.steps - 1
        end = self.times[steps]
        start = jnp.where(steps > 0, self.times[steps - 1], self.t0)
        before = jnp.where(steps > 1, self.times[steps - 2], self.t0)
        if self.sub.steps:
            sweep = self.saved(sweep, end)
        args, terms = eqx.combine(self.moving, self.still)
        reversal = _REVERSALS[type(self.solver)]
        y, state = reversal.back(terms, args, (before, start, end), sweep.y, sweep.state)
        carried, rest = self.split(state)

        def forward(y: Any, carried: Any, moving: Any) -> Any:
            args, terms = eqx.combine(moving, self.still)
            whole = eqx.combine(carried, rest)
            y1, _, _, state1, _ = self.solver.step(terms, start, end, y, args, whole, False)
            return y1, self.split(state1)[0]

        sweep, a_start = self._asked(sweep, y, start, end, steps)
        _, pull = jax.vjp(forward, y, carried, self.moving)
        a_y, a_state, a_moving = pull(sweep.cotangents[:2])
        cotangents = (_add(a_y, a_start), a_state, _add(sweep.cotangents[2], a_moving))
        return sweep._replace(steps=steps, y=y, state=state, cotangents=cotangents)

    def _asked(self, sweep: _Sweep, y: Any, start: Any, end: Any, steps: Any) -> Any:
        """Take the cotangents of values saved at times within the step to both its ends."""
        zeros = jax.tree.map(jnp.zeros_like, y)
        if self.sub.ts is None:
            return sweep, zeros

        def within(carry: Any) -> Any:
            sweep, _ = carry
            inside = self.sub.ts[sweep.asked - 1] > start
            return (sweep.asked > 0) & (inside | (steps == 0))

        def value(time: Any, ends: Any, moving: Any) -> Any:
            args, _ = eqx.combine(moving, self.still)
            make: Callable[..., Any] = self.solver.interpolation_cls
            between = make(t0=start, t1=end, y0=ends[0], y1=ends[1])
            return self.sub.fn(time, between.evaluate(time), args)

        def pull_one(carry: Any) -> Any:
            sweep, a_start = carry
            time = self.sub.ts[sweep.asked - 1]
            _, pull = jax.vjp(partial(value, time), (y, sweep.y), self.moving)
            (first, last), a_moving = pull(_at(self.a_ys, sweep.saves - 1))
            a_y, a_state, so_far = sweep.cotangents
            sweep = sweep._replace(
                saves=sweep.saves - 1,
                asked=sweep.asked - 1,
                cotangents=(_add(a_y, last), a_state, _add(so_far, a_moving)),
            )
            return sweep, _add(a_start, first)

        return jax.lax.while_loop(within, pull_one, (sweep, zeros))


def _at(trees: Any, index: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], trees)


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def _or_zeros(value: Any, cotangent: Any) -> Any:
    return jnp.zeros_like(value) if cotangent is None else cotangent


def _or_none(value: Any, cotangent: Any) -> Any:
    return cotangent


# ---- the solvers' steps, solved for what came before


class _Reversal(NamedTuple):
    """`back(terms, args, (time before, start, end), y1, state1) -> y0, state0`, and `carries`.

    The latter says which leaves of the solver's state carry cotangents: times do not.
    """

    back: Callable[..., Any]
    carries: Callable[[Any], Any]


def _heun_back(terms: Any, args: Any, times: Any, y1: Any, state1: Any) -> Any:
    """y1 = y0 + (f0 + f1) c / 2 and z1 = 2 y0 - z0 + f0 c, f = f(z): their sum holds no f0."""
    _, start, end = times
    z1, f1 = state1
    control = terms.contr(start, end)
    pushed = terms.prod(f1, control)
    z0 = jax.tree.map(lambda y, z, p: 2 * y - z - p, y1, z1, pushed)
    f0 = terms.vf(start, z0, args)
    both = terms.prod(_add(f0, f1), control)
    y0 = jax.tree.map(lambda y, p: y - 0.5 * p, y1, both)
    return y0, (z0, f0)


def _leapfrog_back(terms: Any, args: Any, times: Any, y1: Any, state1: Any) -> Any:
    """y1 = y(before) + f(start, y0) (end - before), and y0 is kept in the state."""
    before, start, end = times
    _, y0 = state1
    pushed = terms.vf_prod(start, y0, args, terms.contr(before, end))
    earlier = jax.tree.map(lambda y, p: y - p, y1, pushed)
    return y0, (before, earlier)


def _symplectic_back(terms: Any, args: Any, times: Any, y1: Any, state1: Any) -> Any:
    """The two halves of the step, undone in the opposite order."""
    _, start, end = times
    first, second = terms
    pushed = second.vf_prod(start, y1[0], args, second.contr(start, end))
    b = jax.tree.map(lambda y, p: y - p, y1[1], pushed)
    pushed = first.vf_prod(start, b, args, first.contr(start, end))
    a = jax.tree.map(lambda y, p: y - p, y1[0], pushed)
    return (a, b), state1


def _all(state: Any) -> Any:
    return jax.tree.map(eqx.is_inexact_array, state)


_REVERSALS: dict[type, _Reversal] = {
    dfx.ReversibleHeun: _Reversal(_heun_back, _all),
    dfx.LeapfrogMidpoint: _Reversal(_leapfrog_back, lambda state: (False, _all(state[1]))),
    dfx.SemiImplicitEuler: _Reversal(_symplectic_back, _all),
}
