"""Recipes carried out one after the other in a thread, watched and stopped from outside. The lab's logic, without any widget."""

from __future__ import annotations

import atexit
import dataclasses
import math
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apnb.errors import Invalid, choose
from apnb.events import Attacked, Batch, Done, Epoch, Event, Finished, Pruned, Restored, Resumed, Waiting
from apnb.recipes import Recipe

if TYPE_CHECKING:
    import pandas as pd

    from apnb.estimate import Plan
    from apnb.store import Store

POINTS = 300
"""Points that a live line keeps: more than a screen can show, few enough to send eight times a second."""
MEMORY = 20.0
"""Seconds of work after which what was measured before counts a third (1/e)."""

Line = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Job:
    """One recipe in a queue.

    Attributes:
        number: from 0, in the order in which jobs were added. recipe, network, data, options: as for `apnb.stream`.
        state: waiting, running, done, failed or cancelled. error: the sentence, if it failed.
        seconds: from its start to its end, once it has ended.
    """

    number: int
    recipe: Recipe
    network: Any = field(default="cnn", compare=False)
    data: Any = field(default="digits", compare=False)
    options: Mapping[str, Any] = field(default_factory=dict, compare=False)
    state: str = "waiting"
    error: str = ""
    seconds: float | None = None

    def same(self, recipe: Recipe, network: Any, data: Any, options: Mapping[str, Any]) -> bool:
        """Whether it is a job for this."""
        return self.recipe == recipe and _same(self.network, network) and _same(self.data, data) and dict(self.options) == options


def _same(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, str) and one == other)


@dataclass(frozen=True)
class Series:
    """What the run at work has done so far, as lines over its training steps (counted through all of its stages), at most 300 points each.

    Attributes:
        loss: in nats, batch by batch, averaged where there are too many. sparsity: share of units removed, after each cut.
        accuracy: share of validation images classified correctly, after each epoch and cut. robust: the same under PGD, where measured.
        stages: (step at which it began, name) of each stage.
    """

    loss: Line = ()
    sparsity: Line = ()
    accuracy: Line = ()
    robust: Line = ()
    stages: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class State:
    """What a queue is doing, as a picture that does not change.

    Attributes:
        running: whether its thread is at work. cancelled: whether anything was cancelled since the queue was last idle.
        done, total: jobs finished (or failed) and jobs added since then. share: of all their work, in [0, 1], an estimate.
        remaining: seconds to come, from the pace of this queue so far; None while that is not known.
        recipe: the one at work, or None. stage, stage_share: where it stands. what: one line for people.
        errors: recipe -> the sentence that says why it failed. jobs: all there ever were. series: live lines of the run at work.
    """

    running: bool = False
    cancelled: bool = False
    done: int = 0
    total: int = 0
    share: float = 0.0
    remaining: float | None = None
    recipe: Recipe | None = None
    stage: str = ""
    stage_share: float = 0.0
    what: str = "ready"
    errors: dict[Recipe, str] = field(default_factory=dict)
    jobs: tuple[Job, ...] = ()
    series: Series = field(default_factory=Series)


def identity(row: Mapping[str, Any]) -> tuple:
    """What tells one row of `apnb.store.ROW` from another: the run, and how it was judged."""
    return tuple(row[k] for k in ("key", "attacks", "n", "eps"))


_LIVE: weakref.WeakSet[Queue] = weakref.WeakSet()


def at_work() -> list[Queue]:
    """The queues of this process that are carrying something out."""
    return [queue for queue in list(_LIVE) if queue.running]


@atexit.register
def _end_all() -> None:
    """A thread in the middle of torch's work must not be cut off by the end of the process."""
    for queue in at_work():
        queue.cancel()
    for queue in list(_LIVE):
        queue.wait(30)


class Queue:
    """Runs recipes in one thread and keeps what they gave.

    Args:
        store: folder of runs, as for `apnb.run`.
        on_change: called with a `State`, from the thread: at once when a job begins or ends, at most ``hz`` times a second in between.
        options: as for `apnb.stream` (attacks, n, device, ...), for every run.

    Attributes:
        rows: one flat row (`apnb.store.ROW`) for each finished run, in the order in which they ended.
        runs: the finished `apnb.Run` objects, in the same order.
        state: the newest `State`.
    """

    def __init__(
        self,
        *,
        store: str | Path | Store | None = None,
        on_change: Callable[[State], None] | None = None,
        hz: float = 8,
        **options: Any,
    ):
        self.store, self.options = store, _checked(options)
        self.rows: list[dict] = []
        self.runs: list[Any] = []
        self.state = State()
        self._on_change, self._gap, self._told = on_change, 1 / hz, 0.0
        # Of the state, jobs included, and of beginning and ending; never held while anything is computed.
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._first = 0  # number of the first job since the queue was last idle
        self._plans: dict[int, Plan | None] = {}
        self._work: dict[int, dict[str, float]] = {}  # job -> stage -> units of work
        self._pace = Pace()
        _LIVE.add(self)

    def clear(self) -> None:
        """Forget the finished runs; they stay in the store."""
        with self._lock:
            self.rows, self.runs = [], []

    @property
    def running(self) -> bool:
        """Whether the thread is at work."""
        return self.state.running

    def add(self, recipes: Sequence[Recipe], *, network: Any = "cnn", data: Any = "digits", **options: Any) -> tuple[Job, ...]:
        """Put recipes behind what is there already, and begin if nothing is at work; returns at once.

        Args:
            recipes: to be carried out in this order; one that already waits with the same arguments is not put there twice.
            options: as for `apnb.stream`, besides those of the queue or instead of them (eps, device, ...).

        Returns:
            The new jobs.

        Raises:
            Invalid: no recipes, or something else than recipes.
        """
        recipes, options = list(recipes), self.options | _checked(options)
        if not recipes:
            raise Invalid("there is nothing to run: choose at least one sparsity")
        for r in recipes:
            if not isinstance(r, Recipe):
                raise Invalid(f"a queue takes apnb.Recipe objects, got {type(r).__name__}")
        with self._lock:
            jobs = list(self.state.jobs)
            before = len(jobs)
            for r in recipes:
                if not any(j.state == "waiting" and j.same(r, network, data, options) for j in jobs):
                    jobs.append(Job(len(jobs), r, network, data, options))
            idle = not self.state.running
            if idle:
                self._first = before
                self.state = State(running=True, what="starting")
            self._change(jobs=tuple(jobs))
            if idle:
                self._thread = threading.Thread(target=self._loop, args=(self._thread,), daemon=True, name="apnb-queue")
                self._thread.start()
        return tuple(jobs[before:])

    def cancel(self, *, waiting_only: bool = False) -> None:
        """Drop what waits and, unless ``waiting_only``, stop at the next event: a step of training, a batch under attack.

        What is finished stays, here and in the store; the same recipes added again go on where they stopped.
        """
        with self._lock:
            dropped = (dataclasses.replace(j, state="cancelled") if j.state == "waiting" else j for j in self.state.jobs)
            self._change(jobs=tuple(dropped))
            if not waiting_only:
                self._stop.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until everything that was added has ended; False if it has not within ``timeout`` seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        while (thread := self._thread) is not None:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))
            if thread.is_alive():
                return False
            if thread is self._thread:
                break
        return True

    def frame(self) -> pd.DataFrame:
        """`rows` as a table."""
        from apnb.sweeps import frame_of

        return frame_of(list(self.rows))

    # --- in the thread --------------------------------------------------------------------------------------------------------

    def _loop(self, last: threading.Thread | None) -> None:
        if last is not None:
            last.join()  # it may still be saying that it has ended
        while (job := self._next()) is not None:
            began, state, error = time.monotonic(), "cancelled", ""
            try:
                self._plan()
                state = "done" if self._carry_out(job) else "cancelled"
            except Invalid as problem:
                state, error = "failed", str(problem)
            except BaseException as problem:  # a thread's traceback is invisible: say it on the page, and go on
                state, error = "failed", f"failed unexpectedly with {type(problem).__name__}: {problem}"
            self._end(dataclasses.replace(job, state=state, error=error, seconds=time.monotonic() - began))

    def _next(self) -> Job | None:
        """The next job, now running. If there is none the queue is idle from here on, and whoever adds starts another thread."""
        with self._lock:
            job = next((j for j in self.state.jobs if j.state == "waiting"), None)
            self._stop.clear()
            if job is not None:
                job = dataclasses.replace(job, state="running")
                what = f"{_named(job.recipe)}: starting"
                self._change(job, recipe=job.recipe, stage="", stage_share=0.0, series=Series(), what=what)
            else:
                s = self.state
                failed = sum(j.state == "failed" for j in s.jobs[self._first :])
                what = f"{'cancelled after' if s.cancelled else 'done:'} {s.done} of {s.total} runs"
                what += f", {failed} of them failed" if failed else ""
                self._change(running=False, recipe=None, stage="", stage_share=0.0, remaining=None, what=what)
        self._tell()
        return job

    def _end(self, job: Job) -> None:
        with self._lock:
            self._change(job)
            if job.state != "cancelled":
                self._change(share=self._share())
        self._tell()

    def _plan(self) -> None:
        """Find out what new jobs consist of. One that cannot be planned says why when its turn comes."""
        from apnb import datasets, estimate

        jobs = self.state.jobs[self._first :]
        new = [j for j in jobs if j.number not in self._plans]
        loaded: dict[str, Any] = {}
        for job in new:
            try:
                data, options = job.data, {k: v for k, v in job.options.items() if k in _PLANNED}
                if isinstance(data, str):
                    data = loaded[data] = loaded.get(data) or datasets.load(data)
                self._plans[job.number] = estimate.plan(job.recipe, job.network, data, store=self.store, **options)
            except Exception:
                self._plans[job.number] = None
        if new:
            seen: set[str] = set()
            for job in jobs:
                stages = plan.stages if (plan := self._plans.get(job.number)) else ()
                self._work[job.number] = {s.name: s.units for s in stages if s.key not in seen}
                seen |= {s.key for s in stages}

    def _carry_out(self, job: Job) -> bool:
        """Whether the job came to its end."""
        from apnb.runs import stream

        reader = Reader(self._plans[job.number], self._work[job.number])
        clock, units = time.monotonic(), 0.0
        events = stream(job.recipe, job.network, job.data, store=self.store, **job.options)
        try:
            for event in events:
                if isinstance(event, Done):
                    self._keep(event.run)
                    return True
                if self._stop.is_set():
                    return False
                what = reader.read(event)
                now, before = time.monotonic(), units
                units = sum(reader.done.values())
                if not isinstance(event, Restored | Resumed | Waiting):  # what comes from elsewhere says nothing about the pace
                    self._pace.note(_kind(job, event.stage), units - before, now - clock)
                clock = now
                if isinstance(event, Batch) and now - self._told < self._gap:
                    continue
                self._plan()
                self._change(
                    what=f"{_named(job.recipe)}: {what}", stage=event.stage, stage_share=reader.inside, series=reader.series(),
                    share=self._share(units), remaining=self._remaining(job, reader),
                )  # fmt: skip
                self._tell()
            return False
        finally:
            events.close()

    def _share(self, units: float = 0.0) -> float:
        """Of all the work since the queue was last idle: what ended, and ``units`` of the job at work."""
        work = [(j.state, 1.0 + sum(self._work.get(j.number, {}).values())) for j in self.state.jobs[self._first :]]
        ended = sum(w for state, w in work if state in ("done", "failed"))
        return min(1.0, (ended + units) / sum(w for _, w in work))

    def _remaining(self, job: Job, reader: Reader) -> float | None:
        """Seconds to come: the work that is left at the pace of this queue; None if a part of it has no known pace."""
        left = [(_kind(job, stage), units - reader.done.get(stage, 0.0)) for stage, units in self._work[job.number].items()]
        for other in self.state.jobs[job.number + 1 :]:
            if other.state == "waiting":
                left += [(_kind(other, stage), units) for stage, units in self._work.get(other.number, {}).items()]
        seconds = [self._pace.seconds(kind, units) for kind, units in left if units > 0]
        return None if None in seconds else sum(seconds)

    def _keep(self, run: Any) -> None:
        row = run.row()
        with self._lock:
            for i, old in enumerate(self.rows):
                if identity(old) == identity(row):
                    self.rows[i], self.runs[i] = row, run
                    return
            self.rows.append(row)
            self.runs.append(run)

    def _change(self, job: Job | None = None, **changes: Any) -> None:
        """Put a new state, with what follows from its jobs; ``job`` takes the place of the one with its number."""
        with self._lock:
            jobs = changes.get("jobs", self.state.jobs)
            if job is not None:
                jobs = (*jobs[: job.number], job, *jobs[job.number + 1 :])
            if jobs is not self.state.jobs:
                new = jobs[self._first :]
                changes |= {
                    "jobs": jobs,
                    "total": len(new),
                    "done": sum(j.state in ("done", "failed") for j in new),
                    "cancelled": any(j.state == "cancelled" for j in new),
                    "errors": {j.recipe: j.error for j in new if j.state == "failed"},
                }
            self.state = dataclasses.replace(self.state, **changes)

    def _tell(self) -> None:
        """Only ever called by the thread, so that nobody is told two things at once."""
        self._told = time.monotonic()
        if self._on_change:
            try:
                self._on_change(self.state)
            except Exception as error:  # a page that cannot be drawn must not stop the run
                self._change(what=f"{self.state.what} (display: {type(error).__name__}: {error})")


_PLANNED = ("attacks", "n", "distances", "eps", "device", "precision")
"""Options that `apnb.estimate.plan` takes."""


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    if "attacks" not in options:
        return options
    from apnb.evaluation import MODES

    return options | {"attacks": choose(options["attacks"], MODES, "attack mode")}


def _named(recipe: Recipe) -> str:
    return recipe.label if recipe.sparsity == 0 else f"{recipe.label} at {recipe.sparsity:.3g}"


def _kind(job: Job, stage: str) -> tuple[str, ...]:
    """Work of one kind goes at one pace."""
    what = (job.network, job.data, job.options.get("device"))
    return (*(str(w) if isinstance(w, str) else f"{id(w)}" for w in what), "attacks" if stage == "evaluate" else "training")


class Pace:
    """Seconds for a unit of work, for each kind of work; what lies back counts less and less."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, ...], tuple[float, float]] = {}

    def note(self, kind: tuple[str, ...], units: float, seconds: float) -> None:
        """So much was done in so much time."""
        fade = math.exp(-seconds / MEMORY)
        u, s = self._seen.get(kind, (0.0, 0.0))
        self._seen[kind] = (fade * u + units, fade * s + seconds)

    def seconds(self, kind: tuple[str, ...], units: float) -> float | None:
        """What so much work will take; training and attacks stand in for each other. None unless half a second was measured."""
        for known in (kind, *((*kind[:-1], other) for other in ("training", "attacks"))):
            u, s = self._seen.get(known, (0.0, 0.0))
            if s >= 0.5 and u > 0:
                return units * s / u
        return None


class _Line:
    """Points of a line: neighbours are averaged in blocks, all of one size, which doubles when there are too many."""

    def __init__(self) -> None:
        self._points: list[tuple[float, float]] = []
        self._open: list[tuple[float, float]] = []
        self._block = 1

    def add(self, x: float, y: float) -> None:
        self._open.append((x, y))
        if len(self._open) == self._block:
            self._points.append(_middle(self._open))
            self._open = []
        if len(self._points) == POINTS:
            self._points = [_middle(pair) for pair in zip(self._points[::2], self._points[1::2], strict=True)]
            self._block *= 2

    def told(self) -> Line:
        return (*self._points, *([_middle(self._open)] if self._open else []))


def _middle(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    xs, ys = zip(*points, strict=True)
    return sum(xs) / len(xs), sum(ys) / len(ys)


class Reader:
    """Events of one run as a line for people, as work done, and as live lines.

    Args:
        plan: of the run, or None if nothing is known of it. work: stage -> its units of work that no other run does.

    Attributes:
        done: stage -> units of work done. inside: share of the present stage, in [0, 1].
    """

    def __init__(self, plan: Plan | None = None, work: Mapping[str, float] | None = None):
        self._plan, self._work = plan, work or {}
        self.done: dict[str, float] = {}
        self.inside = 0.0
        self._stage, self._heard, self._attacks = "", "", set()
        self._steps, self._stages = 0, []
        self._lines = {name: _Line() for name in ("loss", "sparsity", "accuracy", "robust")}

    def series(self) -> Series:
        """The lines so far."""
        return Series(**{name: line.told() for name, line in self._lines.items()}, stages=tuple(self._stages))

    def read(self, event: Event) -> str:
        """What happens now."""
        if event.stage != self._stage:
            self.done[self._stage] = self._work.get(self._stage, 0.0)
            self._stage, self._heard, self.inside = event.stage, "", 0.0
            self._stages.append((self._steps, event.stage))
        self._draw(event)
        text = self._text(event)
        self.done[event.stage] = self.inside * self._work.get(event.stage, 0.0)
        return text

    def _draw(self, event: Event) -> None:
        m, at = event.metrics, self._steps + isinstance(event, Batch)
        self._steps = at
        known = {
            Batch: {"loss": "loss"},
            Epoch: {"accuracy": "val_clean", "robust": "val_pgd"},
            Pruned: {"sparsity": "units", "accuracy": "clean", "robust": "pgd"},
        }.get(type(event), {})
        for line, metric in known.items():
            if metric in m:
                self._lines[line].add(at, float(m[metric]))

    def _text(self, event: Event) -> str:
        m = event.metrics
        if isinstance(event, Attacked):
            return self._attacked(event)
        if isinstance(event, Batch | Epoch | Resumed):
            self.inside = event.step / max(event.of, 1)
        if isinstance(event, Finished | Restored):
            self.inside = 1.0
        if isinstance(event, Batch):
            return f"{event.stage}, step {event.step} of {event.of}{self._heard}"
        if isinstance(event, Epoch):
            seen = f", {m['val_clean']:.0%} of validation images right" if "val_clean" in m else ""
            self._heard = f"; epoch {event.step} of {event.of} done, loss {m['loss']:.2f}{seen}"
            return f"{event.stage}{self._heard}"
        if isinstance(event, Pruned):
            under = f", {m['clean']:.0%} clean and {m['pgd']:.0%} under PGD right after the cut" if "pgd" in m else ""
            return f"{event.stage}: {m['units']:.1%} of the units removed{under}"
        return {
            Waiting: f"{event.stage}: another run computes this stage, its result will be used",
            Restored: f"{event.stage}: taken from the store",
            Resumed: f"{event.stage}: goes on after epoch {event.step}",
            Finished: f"{event.stage}: finished",
        }.get(type(event), event.stage)

    def _attacked(self, event: Attacked) -> str:
        m = event.metrics
        told = f"robust at most about {m['estimate']:.0%} [{m['low']:.0%}, {m['high']:.0%}], judged from {m['seen']} test images"
        if m["attack"] == "glance":
            return f"a first look: {told}"
        if m["attack"] == "clean":
            return f"{m['robust']:.0%} of {m['n']} test images right before any attack"
        steps = self._plan.attacks if self._plan else {}
        self._attacks.add(m["attack"])
        made = sum(steps.get(a, 0.0) for a in self._attacks - {m["attack"]}) + steps.get(m["attack"], 0.0) * event.step / event.of
        self.inside = made / max(sum(steps.values()), 1.0)
        return f"attack {m['attack']}: {event.step} of {event.of} points tried, {told}"


def stored(store: str | Path | Store | None = None, data: Any = "digits", eps: float | None = None) -> list[dict]:
    """What a store holds for a data set: rows as in `Queue.rows`, one for each evaluation, oldest run first.

    Args:
        store: as for `apnb.run`. data: as for `apnb.run`; known names are not loaded for it.
        eps: only runs trained and attacked with this radius; None for all.

    Runs that are damaged, or not evaluated, are left out.
    """
    from apnb import datasets
    from apnb.store import Store, row_of

    store = store if isinstance(store, Store) else Store(store)
    if isinstance(data, str) and data in datasets.NAMES:
        field_, wanted = "data", data
    else:
        field_, wanted = "fingerprint", datasets.load(data).fingerprint
    rows = []
    for key in store.keys():  # noqa: SIM118 - a store is no mapping
        try:
            summary = store.summary(key)
        except Invalid:
            continue
        if summary.get(field_) == wanted:
            rows += [row_of(summary, evaluation) for evaluation in store.evaluations(key)]
    return [row for row in rows if eps is None or row["train_eps"] == row["eps"] == eps]
