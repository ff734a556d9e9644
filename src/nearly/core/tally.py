"""Counts how often an expensive function is really called, by whatever program ends up running it.

    matvec = counted(lambda x: A @ x, "matvecs")
    with tally() as counts:
        jax.block_until_ready(solve(matvec, b))
    counts.read()  # {"matvecs": 21, "matvecs jvps": 0, "matvecs vjps": 0}

How it works. `counted` passes everything the oracle depends on (its arguments, and its own arrays
if it is a pytree) through one equation of the identity primitive `oracle_p`, called a mark below.
Whatever a transformation does to the oracle it must also do to the mark, so the rules of the
primitive see it: differentiation puts a mark on the tangents, transposition turns that into a mark
on the cotangents, batching multiplies. The mark lowers to nothing, or, under `tally`, to a callback
without operands that adds to a sum on the host.

Design decisions, and what they cost:

- The mark has no JAX effect. An effect would keep it alive after the oracle itself was removed as
  dead code, would be recomputed by every `jax.checkpoint` whether the oracle is or not, and is
  refused by some custom rules. Without one, the mark lives exactly as long as the oracle's input
  is needed by the program that JAX lowers. So what JAX removes or hoists out of a loop is not
  counted or is counted once, because it is not run or is run once. (What XLA removes later, behind
  JAX's back, is still counted.) The price is that `jax.effects_barrier` alone does not wait for
  the callbacks, so `Tally.read` also waits for all live arrays.
- Switching is a `jax.make_user_context`, a part of every jit key, so the counted and the clean
  program are compiled once each. There are three positions. Outside everything, marks are traced
  but silent: a stand-in that holds a jaxpr (`lineax.FunctionLinearOperator` traces its function
  once and for all) can be built here and is still counted when it is applied under `tally`. Under
  `clean` marks are not even traced: the jaxpr is that of the bare oracle. Time it there.
- A compiled program outlives the tally it adds to, so it cannot hold it. It adds to the innermost
  open one, of which there is one stack in the process. A thread that opens a tally while another
  thread has one open waits until that is closed, so their sums cannot mix; the programs of threads
  without a tally are silent ones.
"""

# JAX has no types for what is used here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, Literal, ParamSpec, TypeVar, cast

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.interpreters import partial_eval as pe

__all__ = ["Tally", "clean", "counted", "oracle_p", "tally"]

P = ParamSpec("P")
R = TypeVar("R")
Kind = Literal["calls", "jvps", "vjps"]

_NAMES: Final[dict[Kind, str]] = {"calls": "{}", "jvps": "{} jvps", "vjps": "{} vjps"}

# What a mark becomes on the tangents, and what it becomes when it is transposed. The derivative of
# a pullback through the oracle is again a pullback, its transpose is a pushforward.
_PUSHED: Final[dict[Kind, Kind]] = {"calls": "jvps", "jvps": "jvps", "vjps": "vjps"}
_PULLED: Final[dict[Kind, Kind]] = {"calls": "vjps", "jvps": "vjps", "vjps": "jvps"}

# The default position is the silent one.
_switch: Final[Any] = jax.make_user_context("silent")

_turn = threading.RLock()  # held while a thread has a tally open
_lock = threading.Lock()  # held for the moment in which sums are read or written
_open: list[Tally] = []


# ---- the tally


@dataclasses.dataclass(frozen=True, eq=False)
class Tally:
    """The sums of one `with tally()` block, by unit and kind; see `counts`."""

    sums: Counter[tuple[str, Kind]] = dataclasses.field(default_factory=Counter)

    @property
    def counts(self) -> dict[str, int]:
        """The sums as they stand, without waiting for programs that still run.

        **Returns:** for every unit met, three entries: `unit` (calls), `f"{unit} jvps"` and
        `f"{unit} vjps"`, zero included. A unit that was never met has no entry at all.
        """
        with _lock:
            sums = dict(self.sums)
        units = sorted({unit for unit, _ in sums})
        return {_NAMES[k].format(u): sums.get((u, k), 0) for u in units for k in _NAMES}

    def read(self) -> dict[str, int]:
        """The sums, after everything dispatched so far has finished.

        A program whose results were all dropped unread cannot be waited for: keep one of its
        results until the tally is read.

        **Returns:** as `counts`.

        **Cost:** the time left to the programs still running, plus microseconds per live array.
        """
        _settle()
        return self.counts


@contextlib.contextmanager
def tally() -> Generator[Tally]:
    """Counts what `counted` oracles do, in this thread, until the block ends.

    A nested tally counts apart, and what it counted is added to the enclosing one when it ends.
    If another thread has a tally open, this waits for it. What runs in *another* thread than the
    one that opened the tally (a thread pool, the body of a `jax.pure_callback`) is not counted; the
    threads in which XLA runs the programs of this one are no such threads.

    **Returns:** a context that yields a `Tally`; it may be read inside the block or after it.

    **Cost:** some microseconds per counted call, and one more compilation per jitted function. So
    never take seconds inside a tally.
    """
    with _turn:
        # What still runs belongs to the enclosing tally, or to none.
        _settle()
        with _opened(Tally()) as book, _switch("counting"):
            try:
                yield book
            finally:
                _settle()


@contextlib.contextmanager
def _opened(book: Tally) -> Generator[Tally]:
    with _lock:
        _open.append(book)
    try:
        yield book
    finally:
        with _lock:
            _open.pop()
            if _open:
                _open[-1].sums.update(book.sums)


@contextlib.contextmanager
def clean() -> Generator[None]:
    """Makes `counted` oracles vanish, for taking seconds: what is traced is the bare oracle.

    Outside any tally (and inside none of these) the compiled program is the same too, except that
    a differentiated loop may save a second copy of what it scans over; and an oracle called without
    jit takes some 20 microseconds more. A jaxpr traced before keeps its silent marks.

    **Returns:** a context; may be nested with `tally`, the innermost one binds.

    **Cost:** one more compilation per jitted function.
    """
    with _switch("clean"):
        yield


def _settle() -> None:
    for array in jax.live_arrays():
        # A program that failed has also finished; its error belongs to whoever uses the result.
        with contextlib.suppress(Exception):
            array.block_until_ready()
    jax.effects_barrier()


def _add(unit: str, kind: Kind, times: int) -> tuple[()]:
    with _lock:
        if _open:
            _open[-1].sums[unit, kind] += times
    return ()


# ---- the oracle


def counted(oracle: Callable[P, R], unit: str) -> Callable[P, R]:
    """Wraps an oracle such that a `tally` counts its calls, jvps and vjps.

    Counted is one evaluation for each element of a batch, whether the batch comes from one `vmap`
    or several; in a batched loop this is the lockstep count, since lanes that have finished are
    still computed. A derivative counts as what runs: forward as jvps, backward as vjps (this is
    what "gradients" means), recomputed calls as calls.

    Only what passes through the arguments is seen, or through the arrays of the oracle itself if it
    is a pytree (an `equinox.Module`, a `jax.tree_util.Partial`). So make it one if derivatives with
    respect to those arrays, or batches of them, matter: what a plain function closes over is
    invisible. The count errs upwards in two cases: the gradient of a linear oracle that is a pytree
    is charged a call with its vjp, since it needs the oracle's arrays; and so is a `jax.checkpoint`
    whose policy saves what the oracle returns but not what it is given.

    **Arguments:**

    - `oracle`: any function between pytrees of arrays; other leaves are passed on untouched.
    - `unit`: what a call is called, in the plural, e.g. `"matvecs"`.

    **Returns:** a function with the signature and the values of `oracle`, which is a pytree if
    `oracle` is one.

    **Raises:** `ValueError` if `unit` is empty; when called, `TypeError` if there is nothing to put
    the mark on, neither an array nor a number.

    **Cost:** none under `clean`, an equation of the jaxpr outside any tally.
    """
    return cast("Callable[P, R]", _Counted(oracle, unit))


class _Counted(eqx.Module):
    oracle: Callable[..., Any]
    unit: str = eqx.field(static=True)

    def __check_init__(self) -> None:
        if not self.unit:
            raise ValueError('unit is "", which would name nothing; say what a call is: "matvecs"')

    @property
    def __name__(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        # JAX names a compiled program after its function.
        return getattr(self.oracle, "__name__", type(self.oracle).__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _switch.value == "clean":
            return self.oracle(*args, **kwargs)
        leaves, structure = jax.tree.flatten((self.oracle, args, kwargs))
        operands = _operands(leaves)
        if not operands:
            raise TypeError(
                f"a counted oracle ({self.unit}) got no array; pass what it depends on as arguments"
            )
        values = (leaves[i] for i in operands)
        marked = oracle_p.bind(*values, unit=self.unit, kind="calls", times=1)
        for i, leaf in zip(operands, marked, strict=True):
            # Not traced, it has been counted already, and JAX may have changed its dtype.
            if isinstance(leaf, Tracer):
                leaves[i] = leaf
        oracle, args, kwargs = jax.tree.unflatten(structure, leaves)
        return oracle(*args, **kwargs)


def _operands(leaves: Sequence[Any]) -> list[int]:
    # A NumPy array or a Python number beside JAX arrays may be meant as static, and a mark would
    # turn it into a tracer. It is marked only if there is nothing better.
    for kinds in (jax.Array, (np.ndarray, np.generic), (int, float, complex)):
        found = [i for i, leaf in enumerate(leaves) if isinstance(leaf, kinds) and _carries(leaf)]
        if found:
            return found
    return []


def _carries(leaf: Any) -> bool:
    # float0, the tangent type of integers, carries no data and is no operand of a primitive.
    return getattr(leaf, "dtype", None) != jax.dtypes.float0


# ---- the primitive
#
# Its parameters: the unit, the kind, and how often the oracle runs when the mark runs once.
# The types of jax.interpreters are not public, hence the Any.

oracle_p: Final[Any] = Primitive("nearly_oracle")
"""The identity on all its operands. An interpreter of jaxprs adds its own rule for it."""
oracle_p.multiple_results = True


def _run(*operands: Any, unit: str, kind: Kind, times: int) -> Sequence[Any]:
    if _switch.value == "counting":
        _add(unit, kind, times)
    return operands


def _same(*operands: Any, **params: Any) -> Sequence[Any]:
    del params
    return operands


def _lower(
    ctx: mlir.LoweringRuleContext, *operands: Any, unit: str, kind: Kind, times: int
) -> Sequence[Any]:
    if _switch.value == "counting":
        add = functools.partial(_add, unit, kind, times)
        alone = dataclasses.replace(ctx, avals_in=[], avals_out=[])
        if getattr(ctx.module_context.axis_context, "num_devices", None) == 1:
            mlir.emit_python_callback(
                alone, add, None, [], [], [], has_side_effect=True, returns_token=False
            )
        else:
            # Ten times slower to call, but it knows which devices must make the call: one of them
            # in a sharded program, all in a `shard_map`, in which each has an oracle of its own.
            count = mlir.lower_fun(lambda: jax.debug.callback(add) or ())  # pyright: ignore[reportArgumentType]
            count(alone)
    return operands


def _batch(
    operands: Sequence[Any], axes: Sequence[Any], *, times: int, **params: Any
) -> tuple[Sequence[Any], Sequence[Any]]:
    size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    return oracle_p.bind(*operands, times=times * size, **params), axes


def _push(
    primals: Sequence[Any], tangents: Sequence[Any], *, kind: Kind, **params: Any
) -> tuple[Sequence[Any], Sequence[Any]]:
    marked = oracle_p.bind(*primals, kind=kind, **params)
    return marked, _mark_nonzero(tangents, kind=_PUSHED[kind], **params)


def _pull(cotangents: Sequence[Any], *operands: Any, kind: Kind, **params: Any) -> Sequence[Any]:
    del operands
    return _mark_nonzero(cotangents, kind=_PULLED[kind], **params)


def _mark_nonzero(values: Sequence[Any], **params: Any) -> Sequence[Any]:
    nonzero = [value for value in values if not isinstance(value, ad.Zero)]
    marked = iter(oracle_p.bind(*nonzero, **params) if nonzero else ())
    return [value if isinstance(value, ad.Zero) else next(marked) for value in values]


def _partially(trace: Any, *tracers: Any, **params: Any) -> Sequence[Any]:
    # Splits the mark: what is known already goes around it, so that it stays known. Otherwise an
    # array A would turn into an unknown in `linear_transpose` of x -> A x, and a loop would save a
    # copy of its constants for each step of its backward pass.
    later = [tracer for tracer in tracers if not tracer.is_known()]
    if not later:
        return trace.default_process_primitive(oracle_p, tracers, params)
    marked = iter(trace.default_process_primitive(oracle_p, later, params))
    return [tracer if tracer.is_known() else next(marked) for tracer in tracers]


def _prune(used: Sequence[bool], eqn: Any) -> tuple[list[bool], Any]:
    # Lets go of the operands that the oracle does not use, so that the mark keeps nothing alive.
    if not any(used):
        return [False] * len(used), None
    invars = [v for v, keep in zip(eqn.invars, used, strict=True) if keep]
    outvars = [v for v, keep in zip(eqn.outvars, used, strict=True) if keep]
    return list(used), eqn.replace(invars=invars, outvars=outvars)


oracle_p.def_impl(_run)
oracle_p.def_abstract_eval(_same)
ad.primitive_jvps[oracle_p] = _push
ad.primitive_transposes[oracle_p] = _pull
batching.primitive_batchers[oracle_p] = _batch
pe.custom_partial_eval_rules[oracle_p] = _partially
pe.dce_rules[oracle_p] = _prune
# Each mark needs a callback with its own parameters.
mlir.register_lowering(oracle_p, _lower, cacheable=False)
