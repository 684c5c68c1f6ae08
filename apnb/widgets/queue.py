"""Recipes carried out one after the other in a thread, watched and stopped from outside. The lab's logic, without any widget."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apnb.errors import Invalid, choose
from apnb.events import Attacked, Batch, Done, Epoch, Event, Finished, Pruned, Restored, Resumed, Waiting
from apnb.recipes import Recipe

if TYPE_CHECKING:
    import pandas as pd

    from apnb.store import Store

EVALUATION = 0.3
"""Share of a run's progress bar that belongs to the attacks: a guess, good enough for a bar."""


@dataclass(frozen=True)
class State:
    """What a queue is doing, as a picture that does not change.

    Attributes:
        running: whether its thread is at work. cancelled: whether the last start was stopped before its end.
        done, total: recipes finished (or failed) and recipes asked for. share: of all the work, in [0, 1], an estimate.
        recipe: the one at work, or None. what: one line for people.
        errors: recipe -> the sentence that says why it failed.
    """

    running: bool = False
    cancelled: bool = False
    done: int = 0
    total: int = 0
    share: float = 0.0
    recipe: Recipe | None = None
    what: str = "ready"
    errors: dict[Recipe, str] = field(default_factory=dict)


class Queue:
    """Runs recipes in one thread and keeps what they gave.

    Args:
        store: folder of runs, as for `apnb.run`.
        on_change: called with a `State`, from the thread: at once when a run ends, at most ``hz`` times a second in between.
        options: as for `apnb.stream` (attacks, n, device, ...), for every run.

    Attributes:
        rows: one flat row (`apnb.store.ROW`) for each finished run, in the order in which they ended; later starts add to them.
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
        if "attacks" in options:
            from apnb.evaluation import MODES

            options["attacks"] = choose(options["attacks"], MODES, "attack mode")
        self.store, self.options = store, options
        self.rows: list[dict] = []
        self.runs: list[Any] = []
        self.state = State()
        self._on_change, self._gap, self._told = on_change, 1 / hz, 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether the thread is at work."""
        return self.state.running

    def start(self, recipes: Sequence[Recipe], *, network: Any = "cnn", data: Any = "digits") -> None:
        """Begin; returns at once.

        Raises:
            Invalid: no recipes, or a start while the last one is still at work.
        """
        recipes = list(recipes)
        if not recipes:
            raise Invalid("there is nothing to run: choose at least one sparsity")
        if self.running:
            raise Invalid("a run is under way; wait for it or cancel it first")
        self._stop.clear()
        self.state = State(running=True, total=len(recipes), what="starting")
        self._thread = threading.Thread(target=self._work, args=(recipes, network, data), daemon=True, name="apnb-queue")
        self._thread.start()

    def cancel(self) -> None:
        """Stop at the next event: a step of training, a batch under attack. What is finished stays; a second start goes on."""
        self._stop.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the thread has ended; False if it has not within ``timeout`` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)
        return not self.running

    def frame(self) -> pd.DataFrame:
        """`rows` as a table."""
        from apnb.sweeps import frame_of

        return frame_of(list(self.rows))

    # --- in the thread --------------------------------------------------------------------------------------------------------

    def _work(self, recipes: list[Recipe], network: Any, data: Any) -> None:
        try:
            for i, recipe in enumerate(recipes):
                if self._stop.is_set():
                    break
                self._tell(force=True, recipe=recipe, share=i / len(recipes), what=f"{_named(recipe)}: starting")
                try:
                    self._carry_out(recipe, network, data)
                except Invalid as error:
                    self._note(recipe, str(error))
                except Exception as error:  # a thread's traceback is invisible: say it on the page
                    self._note(recipe, f"failed unexpectedly with {type(error).__name__}: {error}")
                if not self._stop.is_set():
                    self._tell(force=True, done=i + 1, share=(i + 1) / len(recipes))
        finally:
            cancelled = self._stop.is_set() and self.state.done < self.state.total
            what = f"{'cancelled after' if cancelled else 'done:'} {self.state.done} of {self.state.total} runs"
            failed = len(self.state.errors)
            what += f", {failed} of them failed" if failed else ""
            self._tell(force=True, running=False, cancelled=cancelled, recipe=None, what=what)

    def _carry_out(self, recipe: Recipe, network: Any, data: Any) -> None:
        from apnb import datasets
        from apnb.runs import stream

        reader = Reader(recipe, self.options.get("attacks", "standard"), datasets.pixels(data))
        events = stream(recipe, network, data, store=self.store, **self.options)
        event: Event | None = None
        try:
            while True:
                event = next(events, None)
                if event is None:
                    return
                if isinstance(event, Done):
                    self._keep(event.run)
                    return
                if self._stop.is_set():
                    return
                what, share = reader.read(event)
                self._tell(what=f"{_named(recipe)}: {what}", share=(self.state.done + share) / self.state.total)
        finally:
            events.close()

    def _keep(self, run: Any) -> None:
        row = run.row()
        for i, old in enumerate(self.rows):
            if all(old[k] == row[k] for k in ("key", "attacks", "n")):
                self.rows[i], self.runs[i] = row, run
                return
        self.rows.append(row)
        self.runs.append(run)

    def _note(self, recipe: Recipe, sentence: str) -> None:
        self._tell(force=True, errors={**self.state.errors, recipe: sentence})

    def _tell(self, *, force: bool = False, **changes: Any) -> None:
        self.state = dataclasses.replace(self.state, **changes)
        now = time.monotonic()
        if self._on_change and (force or now - self._told >= self._gap):
            self._told = now
            try:
                self._on_change(self.state)
            except Exception as error:  # a page that cannot be drawn must not stop the run
                self.state = dataclasses.replace(self.state, what=f"{self.state.what} (display: {type(error).__name__}: {error})")


def _named(recipe: Recipe) -> str:
    return recipe.label if recipe.sparsity == 0 else f"{recipe.label} at {recipe.sparsity:.3g}"


class Reader:
    """Events of one run as a line for people and a share of its work."""

    def __init__(self, recipe: Recipe, attacks: str = "standard", pixels: int = 64):
        self._weights = stage_weights(recipe, pixels)
        self._past, self._stage, self._heard = 0.0, "", ""
        self._mode, self._attacks = attacks, set()

    def read(self, event: Event) -> tuple[str, float]:
        """(what happens now, share of the run in [0, 1])."""
        if event.stage != self._stage:
            self._past += self._weights.pop(self._stage, 0.0)
            self._stage, self._heard = event.stage, ""
        weight = self._weights.get(event.stage, 0.0)
        inside = 0.0
        m = event.metrics
        if isinstance(event, Attacked):
            text, inside = self._attacked(event)
        elif isinstance(event, Batch):
            inside = event.step / max(event.of, 1)
            text = f"{event.stage}, step {event.step} of {event.of}{self._heard}"
        elif isinstance(event, Epoch):
            inside = event.step / max(event.of, 1)
            seen = f", {m['val_clean']:.0%} of validation images right" if "val_clean" in m else ""
            self._heard = f"; epoch {event.step} of {event.of} done, loss {m['loss']:.2f}{seen}"
            text = f"{event.stage}{self._heard}"
        elif isinstance(event, Pruned):
            under = f", {m['clean']:.0%} clean and {m['pgd']:.0%} under PGD right after the cut" if "pgd" in m else ""
            text = f"{event.stage}: {m['units']:.1%} of the units removed{under}"
        else:
            inside = 1.0 if isinstance(event, Finished | Restored) else 0.0
            text = {
                Waiting: f"{event.stage}: another run computes this stage, its result will be used",
                Restored: f"{event.stage}: taken from the store",
                Resumed: f"{event.stage}: goes on after epoch {event.step}",
                Finished: f"{event.stage}: finished",
            }.get(type(event), event.stage)
        return text, min(1.0, self._past + weight * inside)

    def _attacked(self, event: Attacked) -> tuple[str, float]:
        from apnb.evaluation import MODES

        m = event.metrics
        told = f"robust at most about {m['estimate']:.0%} [{m['low']:.0%}, {m['high']:.0%}], judged from {m['seen']} test images"
        if m["attack"] == "glance":
            return f"a first look: {told}", 0.0
        if m["attack"] == "clean":
            return f"{m['robust']:.0%} of {m['n']} test images right before any attack", 0.0
        self._attacks.add(m["attack"])
        inside = (len(self._attacks) - 1 + event.step / max(event.of, 1)) / len(MODES[self._mode])
        return f"attack {m['attack']}: {event.step} of {event.of} points tried, {told}", inside


def stage_weights(recipe: Recipe, pixels: int = 64) -> dict[str, float]:
    """Stage -> its share of a run's work, by epochs for images of ``pixels`` values; together 1."""
    b = recipe.numbers(pixels)
    if recipe.preset:
        lengths = dataclasses.asdict(b) | recipe.settings(pixels)
        epochs = {stage: max(lengths.get(number, 0), 0.1) for stage, number in recipe.preset.stages.items()}
        total = sum(epochs.values())
        return {name: (1 - EVALUATION) * e / total for name, e in epochs.items()} | {"evaluate": EVALUATION}
    rounds = b.rounds if recipe.schedule == "iterative" else 1
    searches = recipe.trains_search or (recipe.pipeline == "before" and recipe.pruning_step != "none")
    search = b.search_epochs if searches else 0
    epochs = {}
    if recipe.pipeline == "after":
        epochs["pretraining"] = b.epochs
    if recipe.pipeline != "during":
        for i in range(1, rounds + 1):
            epochs[f"round {i}: prune"] = max(search / rounds, 0.1)
            if recipe.pipeline == "after" and recipe.finetuning != "none":
                epochs[f"round {i}: finetuning"] = b.finetune_epochs / rounds
    if recipe.pipeline != "after" and recipe.training_step != "none":
        epochs["training"] = b.epochs
    total = sum(epochs.values())
    return {name: (1 - EVALUATION) * e / total for name, e in epochs.items()} | {"evaluate": EVALUATION}


def code(recipes: Sequence[Recipe], network: str = "cnn", data: str = "digits", **options: Any) -> str:
    """The Python that runs recipes which differ in nothing but sparsity, the dense network with them, and draws the curve."""
    if not recipes:
        raise Invalid("there is nothing to write as code: choose at least one sparsity")
    shares = tuple(r.sparsity for r in recipes)
    marked = dataclasses.replace(recipes[0], sparsity=0.123456)
    call = marked.code(network, data).split("recipe = ", 1)[1].splitlines()[0].replace("sparsity=0.123456", "sparsity=s")
    given = "".join(f", {k}={v!r}" for k, v in options.items() if v is not None)
    return (
        f"import apnb\n\nrecipes = [{call}\n           for s in {shares}]\n"
        f"runs = apnb.sweep(apnb.sweeps.with_dense(recipes), network={network!r}, data={data!r}{given})\n"
        "figure = apnb.plots.robustness_sparsity(runs.frame())\nfigure\n"
    )
