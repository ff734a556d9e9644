"""`compare` and `within`: run methods over their dials, and pick the cheapest good enough."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from nearly.core import catalogue
from nearly.core.catalogue import Method, Reference
from nearly.core.errors import InputError, Interrupted, UnknownName
from nearly.core.executors import Submitter, Task, connect, scatter
from nearly.core.frontier import Frontier
from nearly.core.measure import (
    clear_compiled,
    precision,
    reason_of,
    rebuild,
    run_trial,
    time_standin,
)
from nearly.core.problem import Problem
from nearly.core.progress import Progress, silent
from nearly.core.run import Certificate, Dial, Run, Trial, plain, summarise
from nearly.core.store import Store, digest_of, environment, file_digest, source_digest

Pending = list[tuple[Dial, int]]
Methods = str | Sequence[str] | Mapping[str, Any] | None


@dataclass(frozen=True)
class Contender:
    """A method in a sweep: the object, its catalogue line, its dials and seeds."""

    name: str
    method: Any
    line: Method
    dials: tuple[Dial, ...]
    seeds: tuple[int, ...]
    named: bool  # whether a worker can rebuild it from its name
    reason: str = ""  # why it cannot run at all


@dataclass
class Sweep:
    """A comparison under way: what is asked, what is done, and where it is kept."""

    problem: Problem
    reference: Reference | None
    contenders: tuple[Contender, ...]
    store: Store
    reuse: bool
    budget: float | None
    progress: Progress
    timed: bool
    started: float = field(default_factory=time.monotonic)
    trials: dict[tuple[str, Dial], list[Trial]] = field(default_factory=dict)
    samples: dict[tuple[str, Dial], Sequence[float]] = field(default_factory=dict)
    standins: dict[tuple[str, Dial], Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    digests: dict[tuple[str, Dial, int], str | None] = field(default_factory=dict)


def compare(
    problem: Problem | str,
    methods: Methods = None,
    *,
    dials: Sequence[Dial] | None = None,
    within: str | float | None = None,
    work: str | None = None,
    uses: float | None = None,
    budget: float | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    workers: int = 0,
    executor: Any = None,
    reuse: bool = False,
    timed: bool = True,
    store: Store | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Frontier:
    """Run methods over their dials on one problem, on equal terms.

    **Arguments:**

    - `problem`: a `Problem`, or a text that names one (then `settings` are its fields).
    - `methods`: names or `file.py:attribute` (a list, or joined by commas), `"all"`, or a mapping
      name -> object; None runs the catalogue's defaults of the problem's protocol.
    - `dials`: overrides the problem's own, for every method.
    - `within`: a tolerance as the problem reads it; the frontier then knows its pick.
    - `work`: the unit in which "cheapest" is meant. `uses`: shares set-up over that many uses.
    - `budget`: seconds for the whole sweep. A run that is forecast not to fit is not started and
      says so; what is left is shared equally by the methods still to come, and within a method
      spent on one seed after another.
    - `seeds`: of random methods; the others run once.
    - `workers`, `executor`: spawn that many processes, or use a Dask address or any `.submit`.
    - `reuse`: take finished runs from the store. A sweep that was killed does so by itself.
    - `timed`: whether to measure seconds (always here, never in a worker).

    **Returns:** a `Frontier`. A method that fails, diverges or times out is a run that says so.

    Raises `UnknownName` or `InputError` for what the caller can mend, before anything runs, and
    `Interrupted` with the frontier so far on Ctrl-C.
    """
    problem, reference = _resolve(problem, settings)
    tolerance = None if within is None else problem.tolerance(within)
    _check(seeds, budget, uses, work)
    with precision(problem):
        contenders = tuple(_contenders(problem, methods, dials, tuple(seeds)))
    sweep = Sweep(
        problem,
        reference,
        contenders,
        store or Store(),
        reuse,
        budget,
        progress,
        timed,
    )
    # A truth that cannot be found is the problem's fault, not that of each run, which would look
    # for it again, as would the frontier of an interrupted sweep.
    progress(0, len(contenders), "the truth")
    with precision(problem):
        problem.floor()
    digest = _sweep_digest(sweep)
    with connect(workers, executor) as submitter:
        if digest and sweep.store.open_sweep(digest):
            sweep.reuse = True
        try:
            _run(sweep, submitter, workers or 8)
            _time(sweep)
        except KeyboardInterrupt:
            raise Interrupted(
                "interrupted; the same command takes up the finished runs",
                _frontier(sweep, tolerance, work, uses),
            ) from None
    if digest:
        sweep.store.close_sweep(digest)
    return _frontier(sweep, tolerance, work, uses)


def within(
    tolerance: str | float,
    problem: Problem | str,
    methods: Methods = None,
    *,
    work: str | None = None,
    **options: Any,
) -> Run:
    """The cheapest stand-in within a tolerance, certified as far as the problem can.

    Takes the arguments of `compare`. Candidates are certified cheapest first; one whose proof or
    exhaustive check exceeds the tolerance is passed over. Raises `NotWithin`, which names the
    best available.
    """
    problem, settings = _resolve_with(problem, options)
    frontier = compare(problem, methods, within=tolerance, work=work, **options, **settings)
    built = problem if isinstance(problem, Problem) else _resolve(problem, settings)[0]
    return certified(frontier, built).within(built.tolerance(tolerance))


def certified(frontier: Frontier, problem: Problem) -> Frontier:
    """The frontier with its candidates certified, cheapest first, until one of them stands.

    One whose certificate exceeds the frontier's tolerance is no candidate any more.
    """
    while frontier.tolerance is not None and (index := frontier.pick) is not None:
        run = frontier.runs[index]
        certificate = None if run.certificate else certificate_of(problem, run, frontier.tolerance)
        if certificate is None:
            break
        frontier = frontier.with_run(index, replace(run, certificate=certificate))
    return frontier


def certificate_of(problem: Problem, run: Run, tolerance: float) -> Certificate | None:
    """What the problem can prove of a run's stand-in, in the problem's own precision."""
    with precision(problem):
        return problem.certify(run.standin, tolerance)


_OPTIONS = frozenset(
    [
        "dials",
        "uses",
        "budget",
        "seeds",
        "workers",
        "executor",
        "reuse",
        "timed",
        "store",
        "progress",
    ]
)


def _resolve_with(problem: Problem | str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    settings = {n: options.pop(n) for n in list(options) if n not in _OPTIONS}
    return problem, settings


def _resolve(
    problem: Problem | str, settings: Mapping[str, Any]
) -> tuple[Problem, Reference | None]:
    if isinstance(problem, str):
        reference = Reference(problem, tuple(sorted(settings.items())))
        return reference.build(), reference
    if settings:
        raise InputError(f"unknown argument {next(iter(settings))!r} of compare")
    return problem, None


def _check(
    seeds: Sequence[int], budget: float | None, uses: float | None, work: str | None
) -> None:
    if not seeds or any(s < 0 for s in seeds) or len(set(seeds)) != len(seeds):
        raise InputError(f"seeds {list(seeds)} must be different whole numbers from 0 on")
    if budget is not None and not budget > 0:
        raise InputError(f"budget {budget} must be a positive number of seconds")
    if uses is not None and not 0 < uses < math.inf:
        raise InputError(f"uses {uses} must be a positive, finite number")
    if work is not None and not work:
        raise InputError("work must name a unit, such as seconds")


def _contenders(
    problem: Problem, methods: Methods, dials: Sequence[Dial] | None, seeds: tuple[int, ...]
) -> Iterator[Contender]:
    for name, line, given in _chosen(problem, methods):
        try:
            method = given if given is not None else catalogue.method(name, problem.protocol)[0]
        except ImportError as error:  # a peer that cannot run is listed, with the reason
            yield Contender(name, None, line, ("-",), (0,), False, reason_of(error))
            continue
        mine = tuple(dials if dials is not None else problem.dials(method))
        used = seeds if problem.random(method) else seeds[:1]
        yield Contender(name, method, line, mine, used, given is None)


def _chosen(problem: Problem, methods: Methods) -> list[tuple[str, Method, Any]]:
    known = problem.methods()
    if isinstance(methods, Mapping):
        own = Method("", problem.protocol, source="user")
        return [(name, known.get(name, own), method) for name, method in methods.items()]
    if methods is None or methods == "all":
        lines = [(n, m, None) for n, m in known.items() if m.default or methods == "all"]
        if not lines:
            raise InputError(f"no method is catalogued for {problem.protocol} problems")
        return lines
    names = methods.split(",") if isinstance(methods, str) else list(methods)
    names = list(dict.fromkeys(n.strip() for n in names if n.strip()))
    if not names:
        raise InputError("no method is named; leave methods out for the defaults")
    return [(n, catalogue.method_line(n, problem.protocol, known), None) for n in names]


def _sweep_digest(sweep: Sweep) -> str | None:
    parts = []
    for contender in sweep.contenders:
        for dial in contender.dials:
            for seed in contender.seeds:
                digest = _trial_digest(sweep, contender, dial, seed)
                sweep.digests[contender.name, dial, seed] = digest
                parts.append(digest)
    return digest_of(*parts) if any(parts) else None


def _trial_digest(sweep: Sweep, contender: Contender, dial: Dial, seed: int) -> str | None:
    """What a trial depends on; None, and so never stored, if part of it has no digest."""
    reference = sweep.reference
    method = contender.name if contender.named else contender.method
    return digest_of(
        sweep.problem,
        type(sweep.problem),
        method,
        file_digest(contender.name) if contender.named else "",
        file_digest(reference.text) if reference else "",
        dial,
        seed,
        source_digest(),
        environment(),
    )


def _run(sweep: Sweep, submitter: Submitter | None, window: int) -> None:
    """Run every trial that is not known yet: the named ones elsewhere if asked, the rest here."""
    total = sum(len(c.dials) * len(c.seeds) for c in sweep.contenders)
    pending = {c.name: list(_pending(sweep, c)) for c in sweep.contenders}
    done = total - sum(map(len, pending.values()))
    for contender, dial, seed, trial in _trials(sweep, pending, submitter, window):
        _keep(sweep, contender, dial, seed, trial)
        done += 1
        sweep.progress(done, total, f"{contender.name} {dial}")


def _trials(
    sweep: Sweep,
    pending: Mapping[str, Pending],
    submitter: Submitter | None,
    window: int,
) -> Iterator[tuple[Contender, Dial, int, Trial]]:
    here = list(sweep.contenders)
    if submitter is not None:
        away = [c for c in here if c.named and sweep.reference is not None]
        here = [c for c in here if c not in away]
        sweep.notes |= {c.name: "ran in the parent: it has no name to rebuild" for c in here}
        yield from _away(sweep, away, pending, submitter, window)
    for position, contender in enumerate(here):
        share = _share(sweep, len(here) - position)
        yield from _here(sweep, contender, pending[contender.name], share)
        clear_compiled()


def _share(sweep: Sweep, methods_left: int) -> float:
    """The moment by which the next method should be done: an equal share of what is left."""
    if sweep.budget is None:
        return math.inf
    now = time.monotonic()
    return now + max(0.0, sweep.started + sweep.budget - now) / methods_left


def _pending(sweep: Sweep, contender: Contender) -> Iterator[tuple[Dial, int]]:
    """The trials still to run; finished ones of a killed (or reused) sweep are taken up.

    Every dial for one seed before the next seed: what is cut short then still spans the dials.
    """
    for seed in contender.seeds:
        for dial in contender.dials:
            digest = sweep.digests[contender.name, dial, seed]
            known = sweep.store.trial(digest) if digest and sweep.reuse else None
            if contender.reason:
                known = Trial(seed, "failed", f"not run: {contender.reason}")
            if known:
                sweep.trials.setdefault((contender.name, dial), []).append(known)
            else:
                yield dial, seed


def _keep(sweep: Sweep, contender: Contender, dial: Dial, seed: int, trial: Trial) -> None:
    sweep.trials.setdefault((contender.name, dial), []).append(trial)
    digest = sweep.digests[contender.name, dial, seed]
    if digest and trial.status != "timeout":
        sweep.store.keep_trial(digest, trial)


def _here(
    sweep: Sweep, contender: Contender, pending: Pending, deadline: float
) -> Iterator[tuple[Contender, Dial, int, Trial]]:
    """Run in this process, in order; a run that is forecast to miss the deadline is not begun."""
    spent: dict[Dial, float] = {}
    for dial, seed in pending:
        forecast = spent.get(dial, _forecast(list(spent.values())))
        left = deadline - time.monotonic()
        if forecast > left:
            reason = (
                f"not started: forecast {forecast:.2g} s, {max(left, 0):.2g} s of the budget left"
            )
            yield contender, dial, seed, Trial(seed, "timeout", reason)
            continue
        begun = time.monotonic()
        trial, standin = run_trial(sweep.problem, contender.method, dial, seed)
        if seed == contender.seeds[0]:
            sweep.standins[contender.name, dial] = standin
            _time_one(sweep, contender, dial, trial)
        spent[dial] = time.monotonic() - begun
        yield contender, dial, seed, trial


def _forecast(spent: Sequence[float]) -> float:
    """A new dial's seconds: the last one's, grown as much as it grew from the one before."""
    if not spent:
        return 0.0
    if len(spent) == 1:
        return spent[0]
    return spent[-1] * min(max(spent[-1] / max(spent[-2], 1e-9), 1.0), 10.0)


def _away(
    sweep: Sweep,
    contenders: Sequence[Contender],
    pending: Mapping[str, Pending],
    submitter: Submitter,
    window: int,
) -> Iterator[tuple[Contender, Dial, int, Trial]]:
    assert sweep.reference is not None
    tasks = [
        Task(sweep.reference, contender.name, sweep.problem.protocol, dial, seed)
        for contender in contenders
        for dial, seed in pending[contender.name]
    ]
    by_name = {contender.name: contender for contender in contenders}
    deadline = math.inf if sweep.budget is None else sweep.started + sweep.budget
    for task, trial in scatter(submitter, tasks, window, deadline):
        yield by_name[task.method], task.dial, task.seed, trial


def _time(sweep: Sweep) -> None:
    """Time what ran elsewhere or was taken up from the store, now that nothing else runs."""
    if not sweep.timed:
        return
    for contender in sweep.contenders:
        for dial in contender.dials:
            trials = sweep.trials.get((contender.name, dial), [])
            if trials and (contender.name, dial) not in sweep.samples:
                _time_one(sweep, contender, dial, trials[0])


def _time_one(sweep: Sweep, contender: Contender, dial: Dial, trial: Trial) -> None:
    """The seconds of one use: from the store if the sweep reuses, else measured and kept."""
    if trial.status != "ok" or not sweep.timed:
        return
    seed = contender.seeds[0]
    digest = sweep.digests[contender.name, dial, seed]
    samples = sweep.store.timing(digest) if digest and sweep.reuse else None
    if samples is None:
        samples = list(time_standin(sweep.problem, _standin(sweep, contender, dial), seed))
        if digest:
            sweep.store.keep_timing(digest, samples)
    sweep.samples[contender.name, dial] = samples


def _standin(sweep: Sweep, contender: Contender, dial: Dial) -> Any:
    """The stand-in of a run, built again if another process or an earlier sweep built it."""
    key = (contender.name, dial)
    if key not in sweep.standins:
        seed = contender.seeds[0]
        sweep.standins[key] = rebuild(sweep.problem, contender.method, dial, seed)
    return sweep.standins[key]


def _frontier(
    sweep: Sweep, tolerance: float | None, work: str | None, uses: float | None
) -> Frontier:
    problem = sweep.problem
    runs: list[Run] = []
    for contender in sweep.contenders:
        for dial in contender.dials:
            trials = sweep.trials.get((contender.name, dial))
            if not trials:
                continue
            run = summarise(contender.name, dial, contender.line.source, trials, problem.floor())
            run = run.timed(sweep.samples.get((contender.name, dial), ()))
            notes = [n for n in (run.note, sweep.notes.get(contender.name)) if n]
            make = partial(_standin, sweep, contender, dial)
            runs.append(replace(run, note="; ".join(notes), make=make))
    frontier = Frontier(
        problem.name,
        problem.error_name,
        problem.work_name,
        tuple(runs),
        unit=work or problem.unit(),
        asked=work is not None,
        uses=uses,
        tolerance=tolerance,
        floor=problem.floor(),
        rival=problem.rival(),
        settings=_settings(problem),
        environment=environment(),
    )
    return _checked_unit(frontier, work)


def _checked_unit(frontier: Frontier, work: str | None) -> Frontier:
    """Refuse a unit of work that no run has, naming those that some run has."""
    units = {unit for run in frontier for unit in run.work} | {"seconds"}
    ok = [run for run in frontier if run.status == "ok"]
    if work is not None and ok and work not in units:
        raise UnknownName("unit of work", work, units)
    return frontier


def _settings(problem: Problem) -> dict[str, Any]:
    """A problem's plain fields: what a frontier's file says it was measured on."""
    values = {f.name: getattr(problem, f.name, None) for f in fields(problem)}
    return plain({n: v for n, v in values.items() if _small(v) and v not in (None, "")})


def _small(value: Any) -> bool:
    """Whether a field says something in a line: no arrays, nor tuples of them."""
    if isinstance(value, tuple):
        return all(map(_small, value))  # pyright: ignore[reportUnknownArgumentType]
    return isinstance(value, (str, int, float, bool, type(None)))
