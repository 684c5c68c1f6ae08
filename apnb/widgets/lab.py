"""The lab: choose a cell of the taxonomy, run it, watch the curve grow. Widgets only: what can be chosen is `apnb.choices`, the work
is `apnb.widgets.queue`, the pictures are `apnb.plots`."""

from __future__ import annotations

import contextlib
import html
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apnb import choices, datasets, plots, sweeps, taxonomy
from apnb.errors import Invalid, choose, listed
from apnb.estimate import duration, estimate
from apnb.recipes import Budget, Recipe
from apnb.runs import Run, open_run
from apnb.store import Store
from apnb.widgets import takeaway, timeline
from apnb.widgets.queue import Queue, State, at_work, identity, stored

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from apnb.curves import Distances

TITLES = {
    "method": "method", "pipeline": "pipeline", "schedule": "schedule", "ramp": "ramp", "structure": "structure", "locality": "locality",
    "criterion": "criterion", "variant": "variant", "as_released": "details", "pretraining": "pretraining", "pruning_step": "search",
    "finetuning": "fine-tuning", "training_step": "training", "rewind": "rewind", "sparsities": "sparsity", "network": "network",
    "data": "data", "eps": "eps", "budget": "budget", "attacks": "attacks", "seeds": "seeds", "device": "device", "distances": "evaluate",
}  # fmt: skip
"""Rows of the form, in order."""
KINDS = {name: "select" for name in ("method", "network", "data", "budget", "attacks", "device", *choices.STAGE_NAMES)}
KINDS |= {"sparsities": "multi", "eps": "text", "seeds": "text"}
HINTS = {"eps": "the data set's own", "seeds": "0 or 0, 1, 2"}
TABS = ("Curve", "Security", "History", "Layers", "Masks", "Images", "Table", "Take away", "Code")
SHOWN = 60
"""How many stored runs a new lab shows."""


def _widgets() -> Any:
    try:
        import anywidget  # noqa: F401
        import ipywidgets
    except ImportError:
        raise Invalid("the lab needs ipywidgets and anywidget; install them with: pip install 'apnb[widgets]'") from None
    return ipywidgets


class Lab:
    """Pick a way to prune, run it here, compare.

    Args:
        store: folder of runs (default ``APNB_HOME``, else the user's data folder); what is there already is shown and comes back at once.
        budget: a `Budget` of one's own takes the place of those on the page. n: test images to attack (default: the budget's).
        threads: of torch, set for the whole process; None leaves them alone.
        chosen: what is chosen at first, as for `choose`: method, pipeline, criterion, sparsities, network, data, eps, attacks, seeds, ...

    Examples:
        ``lab = apnb.Lab()`` as the last line of a cell shows it. ``lab.run(); lab.wait()`` does without clicks.

    Raises:
        Invalid: ipywidgets or anywidget is missing, or a first choice that does not exist.
    """

    def __init__(
        self,
        *,
        store: str | Path | Store | None = None,
        budget: str | Budget = "quick",
        n: int | None = None,
        threads: int | None = 1,
        **chosen: Any,
    ):
        W = _widgets()
        if threads is not None:
            sweeps.set_threads(threads)
        self._budget = budget if isinstance(budget, Budget) else None
        self.n = n
        self.store = store if isinstance(store, Store) else Store(store)
        self.queue = Queue(store=self.store, on_change=lambda _: self._show())
        self._others = at_work()  # of a lab whose cell was run again, perhaps
        self.tab, self._figure_tab, self.extra = TABS[0], TABS[0], []
        self._choice, self._found = choices.complete({}), []
        self._drawn: tuple = ()
        self._quiet = False
        self._curves: dict[str, Distances | None] = {}  # of the runs that are shown; None: not looked for
        self._asked = 0
        self._lock = threading.RLock()  # clicks come from one thread, the queue's news from another
        self._make(W)
        self.choose(**({} if self._budget else {"budget": budget}), **chosen)
        self.chooser.on_click(self._clicked)
        self._show()

    # --- the page ---------------------------------------------------------------------------------------------------------------

    def _make(self, W: Any) -> None:
        import plotly.graph_objects as go

        from apnb.widgets.chooser import Chooser, Download

        full = W.Layout(width="calc(100% - 4px)")  # and its margins
        self.chooser, self.download = Chooser(), Download()
        self.plan, self.note, self.problem, self.now = (W.HTML(layout=full) for _ in range(4))
        self.picture, self.time, self.live, self.errors, self.said = (W.HTML(layout=full) for _ in range(5))
        self.live.layout = W.Layout(width="100%", height="36px")  # nothing jumps when it is filled
        self.bar = W.FloatProgress(min=0, max=1, layout=W.Layout(width="180px"), style={"bar_color": plots.BLUE})
        self.stage = W.FloatProgress(min=0, max=1, layout=W.Layout(width="90px"), style={"bar_color": plots.SKY})
        self.drop = W.Button(
            description="Drop waiting",
            disabled=True,
            tooltip="drop what waits; the run at work goes on",
        )
        self.start = W.Button(description="Run", button_style="primary", icon="play", tooltip="train, prune and attack, here")
        self.cancel = W.Button(description="Cancel", icon="stop", disabled=True, tooltip="stop; what is finished stays")
        self.clear = W.Button(description="Clear view", tooltip="show only what is run from now on; the store keeps everything")
        buttons = (self.start, self.cancel, self.drop, self.clear)
        for button in buttons:
            button.layout = W.Layout(width="auto", flex="1 0 auto")  # as wide as its word at least
        self.selected = W.Dropdown(description="run", options=[("none yet", "")], layout=W.Layout(width="430px"))
        self.eps = W.FloatSlider(description="eps", min=0.001, max=0.5, step=0.001, value=0.15, readout_format=".3f")
        self.published = W.Checkbox(value=False, description="published points", indent=False, layout=W.Layout(width="160px"))
        self.tabs = {name: W.Button(description=name, layout=W.Layout(width="auto")) for name in TABS}
        self.figure = go.FigureWidget(_nothing(TABS[0]))
        modes = [["toImage", "zoom2d", "pan2d", "autoScale2d", "resetScale2d"]]  # and none that leads elsewhere
        self.figure._config = {**self.figure._config, "responsive": True, "displaylogo": False, "modeBarButtons": modes}
        self.table = W.HTML(layout=W.Layout(width="100%", display="none"))
        self.code = W.Textarea(layout=W.Layout(width="calc(100% - 8px)", height="170px", display="none"))
        self.pieces = {
            name: W.Button(description=name, layout=W.Layout(width="auto"), tooltip=tip)
            for name, tip in {
                "Everything (ZIP)": "runs, table, recipes, figures, code; 'apnb runs import' reads the runs back",
                "Table (CSV)": "the runs that are shown", "Recipes (JSON)": "a file for 'apnb sweep'",
                "Figure (HTML)": "the last figure, stand-alone", "Figure (PNG)": "the last figure", "Figure (SVG)": "the same",
            }.items()
        }  # fmt: skip
        self.away = W.HBox([*self.pieces.values()], layout=W.Layout(flex_flow="row wrap", display="none"))
        self.framed = W.VBox([self.figure], layout=W.Layout(width="100%"))  # its own: tabs hide and show it
        right = W.VBox(
            [
                W.HTML("<b>What will happen</b>"), self.note, self.plan, self.picture, self.time,
                W.HBox(buttons, layout=W.Layout(flex_flow="row wrap")), self.problem,
            ],
            layout=W.Layout(flex="1 1 320px", min_width="280px"),
        )  # fmt: skip
        left = W.VBox([self.chooser], layout=W.Layout(flex="1 1 430px", min_width="300px"))
        self.view = W.VBox(
            [
                W.HBox([left, right], layout=W.Layout(flex_flow="row wrap", grid_gap="12px")),
                W.HBox([self.bar, self.stage, self.now], layout=W.Layout(height="36px", overflow="hidden")),
                self.live,
                self.errors,
                W.HBox([*self.tabs.values()], layout=W.Layout(flex_flow="row wrap")),
                W.HBox([self.selected, self.published, self.eps], layout=W.Layout(flex_flow="row wrap", min_height="34px")),
                self.said,
                self.framed,
                self.table,
                self.away,
                self.code,
                self.download,
            ]
        )
        named = {
            "lab": self.view, "run": self.start, "cancel": self.cancel, "progress": self.bar, "now": self.now, "figure": self.framed,
            "table": self.table, "problem": self.problem, "code": self.code, "live": self.live, "said": self.said, "plan": self.plan,
        }  # fmt: skip
        for name, widget in named.items():
            widget.add_class(f"apnb-{name}")
        for name, button in self.tabs.items():
            button.add_class("apnb-tab")
            button.on_click(lambda _, name=name: self.show(name))
        for name, button in self.pieces.items():
            button.on_click(lambda _, name=name: self._take(name))
        self.start.on_click(lambda _: self.run())
        self.cancel.on_click(lambda _: [queue.cancel() for queue in (self.queue, *self._others)])
        self.drop.on_click(lambda _: self.queue.cancel(waiting_only=True))
        self.clear.on_click(lambda _: self._clear())
        for widget in (self.selected, self.eps, self.published):
            widget.observe(lambda _: self._draw(), names="value")
        self.show(TABS[0])

    # --- what is chosen ---------------------------------------------------------------------------------------------------------

    def choose(self, **words: Any) -> None:
        """Choose from Python, as clicks would, a method first: ``choose(method="harp", structure="channels")``.

        Args:
            words: name of a choice -> word, as in `apnb.choices.WORDS`; sparsities are numbers, seeds and eps texts or numbers.

        Raises:
            Invalid: a choice or a word that does not exist, or one that contradicts the others.
        """
        chosen = dict(self._choice)
        for name in sorted(words, key=lambda name: name != "method"):
            value = words[name]
            if name == "data" and not isinstance(value, str):
                raise Invalid("the lab takes data by name: digits, cifar10, svhn, folder:PATH or npz:PATH")
            if name == "method" and value and value not in choices.PRESETS:
                value = taxonomy.method(value).key
            chosen = choices.chosen_with(chosen, name, str(value) if name in ("seeds", "eps") else value)
        self._put(chosen)

    def choose_method(self, key: str) -> None:
        """Choose a surveyed method with its cell, as the taxonomy explorer's button does."""
        self.choose(method=key)

    def _clicked(self, name: str, value: Any) -> None:
        """A click on the form; of the sparsities, the one that was clicked."""
        with self._lock:
            if name == "sparsities":
                clicked, now = float(value), self._choice["sparsities"]
                value = tuple(s for s in now if s != clicked) if clicked in now else (*now, clicked)
            try:
                self._put(choices.chosen_with(self._choice, name, value))
            except Invalid as error:
                self.chooser.refuse()
                self.problem.value = _warn(str(error))

    def _put(self, chosen: dict[str, Any]) -> None:
        """Show a choice, and what follows from it: the words that go with it, plan, picture, code, time."""
        before, self._choice = self._choice, chosen
        open_to = choices.options(chosen)
        shares = sorted({*choices.SPARSITIES, *chosen["sparsities"]})
        open_to["sparsities"] = [choices.Option(f"{s:g}", f"{s * 100:g} %") for s in shares]
        for name in ("network", "data"):  # one of the user's own stays on the list
            if chosen[name] not in choices.WORDS[name]:
                open_to[name].append(choices.Option(chosen[name], chosen[name]))
        if self._budget:
            open_to["budget"] = []
        from apnb.widgets.chooser import row

        rows = [
            row(name, title, KINDS.get(name, "chips"), open_to.get(name, ()), HINTS.get(name, ""))
            for name, title in TITLES.items()
            if KINDS.get(name) == "text" or open_to.get(name)
        ]
        page = {**chosen, "sparsities": [f"{s:g}" for s in chosen["sparsities"]]}
        with self.chooser.hold_sync():
            self.chooser.rows, self.chooser.choice = rows, page
        self._refresh()
        if not self._drawn or any(before[name] != chosen[name] for name in ("data", "eps")):
            with contextlib.suppress(Invalid):
                self.eps.value = choices.eps_of(chosen["eps"]) or (0.15 if chosen["data"] == "digits" else datasets.COLOUR_EPS)
            self._find_stored()
        elif self.published.value:
            self._draw()

    def recipes(self) -> list[Recipe]:
        """The recipes that the form asks for, one for each sparsity and seed, without the dense network.

        Raises:
            Invalid: no sparsity, or a text that is no seed.
        """
        return choices.recipes(self._choice, self._budget)

    def _refresh(self) -> None:
        chosen = self._choice
        try:
            recipes, eps = self.recipes(), choices.eps_of(chosen["eps"])
            pixels = datasets.pixels(chosen["data"])
            plan = recipes[0].plan(pixels, points=self.n)
        except Invalid as error:
            self.problem.value = _warn(str(error))
            self.plan.value = self.code.value = self.picture.value = self.time.value = self.note.value = ""
            self.start.disabled = True
            return
        first, *more = dict.fromkeys(f"{100 * r.sparsity:g}%" for r in recipes)
        shares = listed([first, *more])
        one = f"{recipes[0].sparsity:.1%}"
        lines = [html.escape(line.replace(one, shares)) for line in plan.splitlines() if line]
        steps = "".join(f"<li>{line.split('. ', 1)[1]}</li>" for line in lines if line[0].isdigit())
        if recipes[0].preset and more:
            lines.append(f"(The plan names {first}; it is the same for {listed(more)}.)")
        beside = "".join(f'<div style="opacity:.75;font-size:12px">{line}</div>' for line in lines if not line[0].isdigit())
        self.plan.value = (
            f'<ol style="margin:0;padding-left:1.4em;line-height:1.4">{steps}</ol>{beside}The dense network runs first.'
        )
        self.note.value = f"<i>{html.escape(choices.neighbours(chosen))}</i>"
        self.picture.value = timeline.svg(recipes[0], pixels, sparsities=[r.sparsity for r in recipes])
        self.problem.value = ""
        own = self.store.root != Store().root
        options = self._options() | {"n": self.n, "store": str(self.store.root) if own else None}
        options |= {"attacks": None if options["attacks"] == "standard" else options["attacks"]}
        options |= {name: None for name in ("distances", "device") if options[name] in ("none", None)}
        self.code.value = choices.code(recipes, chosen["network"], chosen["data"], eps, **options)
        self.start.disabled = False
        self._estimate(recipes, eps)

    def _options(self) -> dict[str, Any]:
        """How the chosen runs are carried out and judged, as for `apnb.stream`."""
        chosen = self._choice
        return {
            "attacks": chosen["attacks"], "distances": "fmn" if chosen["distances"] == "yes" else "none",
            "device": None if chosen["device"] == "auto" else chosen["device"],
        }  # fmt: skip

    def _estimate(self, recipes: Sequence[Recipe], eps: float | None) -> None:
        """Measure in the background how long this takes, and say so; the newest question counts."""
        self._asked += 1
        if missing := self._missing():
            self.time.value = missing
            return
        mine, chosen, options = self._asked, self._choice, self._options()
        self.time.value = '<span style="opacity:.6">measuring how long this takes here ...</span>'

        def work() -> None:
            try:
                found = (
                    estimate(sweeps.with_dense(recipes), chosen["network"], chosen["data"], device=options["device"],
                             attacks=options["attacks"], n=self.n, store=self.store, eps=eps, distances=options["distances"],
                             stop=lambda: mine != self._asked)
                )  # fmt: skip
                told = "" if found is None else str(found)
            except Invalid as error:
                if mine == self._asked:
                    self.time.value = _warn(str(error))
                return
            except Exception as error:  # the network may be the user's: it may raise anything
                told = f"no estimate ({type(error).__name__})"
            if mine == self._asked:
                self.time.value = f'<div style="line-height:1.4">{html.escape(told)}</div>' if told else ""

        threading.Thread(target=work, name="apnb-estimate").start()  # no daemon: torch must not be cut off at exit

    def _missing(self) -> str:
        """What to say instead of a time if the images have to be fetched first: nothing is downloaded unasked."""
        data = self._choice["data"]
        if datasets.there(data):
            return ""
        return f"The images of {data} are not here yet; Run fetches them first."

    # --- running ----------------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Queue what is chosen, as the button does; returns at once. What cannot work is shown, not raised."""
        chosen = self._choice
        try:
            self.problem.value = ""
            self.queue.add(
                sweeps.with_dense(self.recipes()), network=chosen["network"], data=chosen["data"], eps=choices.eps_of(chosen["eps"]),
                n=self.n, **self._options(),
            )  # fmt: skip
        except Invalid as error:
            self.problem.value = _warn(str(error))
        else:
            self._show()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the runs have ended (for scripts and headless notebooks); False if ``timeout`` seconds did not suffice."""
        return self.queue.wait(timeout)

    @property
    def runs(self) -> list[dict]:
        """One flat row for each evaluation that is shown, columns as in `apnb.store.ROW`: those found in the store first."""
        mine = list(self.queue.rows)
        names = {_name(r) for r in mine}
        return [r for r in self._found if _name(r) not in names] + mine

    def frame(self) -> pd.DataFrame:
        """`runs` as a DataFrame, ready for `apnb.plots.robustness_sparsity`."""
        return sweeps.frame_of(self.runs)

    def run_of(self, row: Mapping[str, Any]) -> Run:
        """The run of a row of `runs`, opened, with that evaluation if it was made here, else with the newest.

        Raises:
            Invalid: it is no longer in the store, or damaged.
        """
        made = next((r for r in self.queue.runs if _name(r.row()) == _name(row)), None)
        return made or open_run(row["key"], store=self.store)

    def row(self) -> dict:
        """The row that is selected.

        Raises:
            Invalid: there is none yet.
        """
        found = next((r for r in self.runs if _name(r) == self.selected.value), None)
        if found is None:
            raise Invalid("there is no run yet; run something, or choose a run")
        return found

    def add_curves(self, *distances: Distances) -> None:
        """Draw other security curves beside those of the runs: of a published network, or of an evaluation of one's own."""
        self.extra += distances
        self._draw()

    def _find_stored(self) -> None:
        """Runs of earlier days that fit what is chosen: the same data and radius."""
        with self._lock:
            self.queue.clear()
            try:
                rows = stored(self.store, self._choice["data"], choices.eps_of(self._choice["eps"]))
            except Invalid as error:
                rows, self.said.value = [], _warn(str(error))
            self._found = [r for r in rows if self.n in (None, r["n"])][-SHOWN:]
            if not self.queue.running:
                self.now.value = _line(f"ready; {len(self._found)} runs of earlier days are shown" if self._found else "ready")
            self._update()

    def _clear(self) -> None:
        with self._lock:
            self._found = []
            self.queue.clear()
            self._update()

    def _show(self) -> None:
        """Show what the queue does. Called from its thread too: sets traits only, since what a thread prints is lost."""
        with self._lock:
            state = self.queue.state
            self.bar.value, self.stage.value = state.share, state.stage_share
            waiting = [j for j in state.jobs if j.state == "waiting"]
            if state.total:
                left = f", about {duration(state.remaining)} left" if state.running and state.remaining else ""
                more = f"; {len(waiting)} more waiting" if waiting else ""
                self.now.value = _line(state.what + left + more)
            elif any(queue.running for queue in self._others):
                self.now.value = _line("another lab of this kernel is at work; Cancel stops it")
            self.live.value = _live(state)
            failed = [j for j in state.jobs if j.state == "failed"][-5:]
            self.errors.value = "".join(
                _warn(f"{j.recipe.label} at {j.recipe.sparsity:g} on {j.network}: {j.error}") for j in failed
            )
            self.cancel.disabled = not (state.running or any(queue.running for queue in self._others))
            self.drop.disabled = not waiting
            self._update()

    def _update(self) -> None:
        """Draw anew if the runs that are shown changed."""
        rows, state = self.runs, self.queue.state
        if (shown := (tuple(map(_name, rows)), state.done, state.total)) == self._drawn:
            return
        over = bool(self._drawn) and state.done == state.total and self._drawn[1:] != shown[1:]
        self._drawn, self._curves = shown, {}
        self.table.value = _table(rows)
        names = [(_told(r), _name(r)) for r in rows]
        before, newest = self.selected.value, self.selected.options[-1][1]
        chosen = before in dict(names).values() and before != newest  # else the newest run is followed
        self._quiet = True  # two changes, one drawing
        self.selected.options = names or [("none yet", "")]
        self.selected.value = before if chosen else names[-1][1] if names else ""
        self._quiet = False
        self._draw()
        if over:
            self._refresh()  # what is stored takes no time

    # --- showing ----------------------------------------------------------------------------------------------------------------

    def show(self, tab: str) -> None:
        """Open a tab.

        Raises:
            Invalid: there is no such tab.
        """
        self.tab = choose(tab.replace("_", " "), TABS, "tab of the lab")
        places = {"Table": self.table, "Take away": self.away, "Code": self.code}
        if self.tab not in places:
            self._figure_tab = self.tab
        for name, button in self.tabs.items():
            button.button_style = "info" if name == self.tab else ""
        for name, place in {**places, "": self.framed}.items():
            place.layout.display = None if name == (self.tab if self.tab in places else "") else "none"
        self.selected.layout.display = None if self.tab in ("Curve", "History", "Layers", "Masks", "Images") else "none"
        self.published.layout.display = None if self.tab == "Curve" else "none"
        self.eps.layout.display = None if self.tab == "Security" else "none"
        self._draw()

    def _draw(self) -> None:
        """The figure of the open tab; what cannot be drawn yet is said."""
        makers: dict[str, Callable[[], go.Figure]] = {
            "Curve": self._curve, "Security": self._security, "History": partial(self._of_run, plots.history),
            "Layers": partial(self._of_run, plots.layers), "Masks": partial(self._of_run, plots.masks), "Images": self._images,
        }  # fmt: skip
        if self.tab not in makers or self._quiet:
            return
        with self._lock:
            self.said.value = ""
            try:
                new = makers[self.tab]()
            except Invalid as error:
                self.said.value, new = _warn(str(error)) if self.runs else "", _nothing(self.tab)
            _replace(self.figure, new)
            self.chooser.told = (
                f"{self.tab}: {new.layout.title.text or ''}; {len(new.data)} lines or pictures, numbers in the tab Table"
            )
            self.chooser.drawn += 1
            if self.tab == "Curve":
                for trace in self.figure.data:
                    trace.on_click(self._point_clicked)

    def _curve(self) -> go.Figure:
        """The runs that can stand in one picture with the one that is selected."""
        frame, row = self.frame(), self.row()
        alike = frame[(frame["eps"] == row["eps"]) & (frame["attacks"] == row["attacks"]) & (frame["data"] == row["data"])]
        if others := len(frame) - len(alike):
            self.said.value = _line(f"{others} of {len(frame)} runs were judged otherwise; choose one of them to see those")
        found = None
        if self.published.value:
            table = taxonomy.leaderboard()
            network, data = row["network"], row["data"]
            group = "unstructured" if row["structure"] == "weights" else "structured"
            found = table[(table.network == network) & (table.data == data) & (table.structure_group == group)]
            if found.empty:
                self.said.value = _line(f"the survey has no results for {network} on {data}; it has them for resnet18 and vgg16 "
                                        "on cifar10 and svhn")  # fmt: skip
                found = None
        return plots.robustness_sparsity(alike, published=found)

    def _security(self) -> go.Figure:
        for row in self.runs:
            if _name(row) not in self._curves:
                try:
                    evaluation = self.run_of(row).evaluation
                except Invalid as error:  # one damaged run must not hide the others
                    self.said.value = _warn(str(error))
                    continue
                found = evaluation is not None and evaluation.searched != "none"
                self._curves[_name(row)] = evaluation.curve(_told(row)) if found else None
        curves = [*(c for c in self._curves.values() if c is not None), *self.extra][-len(plots.LOOKS) :]
        if not curves:
            raise Invalid("no run that is shown has a security curve; choose 'and security curves' beside 'evaluate' and run it")
        return plots.security_curve(curves, eps=self.eps.value)

    def _of_run(self, draw: Callable[[Run], go.Figure]) -> go.Figure:
        return draw(self.run_of(self.row()))

    def _images(self) -> go.Figure:
        def draw(run: Run) -> go.Figure:
            if run.evaluation is None:
                raise Invalid("this run was not evaluated, so there are no attacked images of it")
            return plots.examples(run.evaluation)

        return self._of_run(draw)

    def _point_clicked(self, trace: Any, points: Any, _: Any) -> None:
        """A click on a point of the curve selects its run, in every tab."""
        keys, attacks = trace.customdata or (), self.row()["attacks"]
        clicked = {keys[i] for i in points.point_inds if i < len(keys)}
        found = next((r for r in self.runs if r["key"] in clicked and r["attacks"] == attacks), None)
        if found:
            self.selected.value = _name(found)

    # --- taking away ------------------------------------------------------------------------------------------------------------

    def _take(self, name: str) -> None:
        try:
            self.said.value = "preparing ..."
            self.download.give(*self.take(name))
            self.said.value = ""
        except Invalid as error:
            self.said.value = _warn(str(error))

    def take(self, piece: str) -> tuple[str, bytes]:
        """One piece of what is shown, as a button gives it: a name for the file, and its content.

        Args:
            piece: Everything (ZIP), Table (CSV), Recipes (JSON), Figure (HTML), Figure (PNG) or Figure (SVG).

        Raises:
            Invalid: nothing to take, or no browser to draw a picture.
        """
        piece, rows = choose(piece, self.pieces, "piece to take away"), self.runs
        if not rows:
            raise Invalid("there is nothing to take away yet; run something first")
        if piece.startswith("Figure"):
            kind = piece[piece.index("(") + 1 : -1].lower()
            figure = self.figure if self.figure.data else self._curve()
            return f"apnb-{self._figure_tab.lower()}.{kind}", takeaway.figure(figure, kind)
        if piece.startswith("Table"):
            return "apnb-runs.csv", takeaway.csv(rows)
        if piece.startswith("Recipes"):
            return "apnb-recipes.json", takeaway.recipes(rows, self.store)
        figures = {}
        for name, make in (("curve", self._curve), ("security", self._security)):
            with contextlib.suppress(Invalid):  # what cannot be drawn is left out
                figures[name] = make()
        return "apnb-lab.zip", takeaway.bundle(rows, self.store, figures=figures)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = self.view._repr_mimebundle_(**options)
        data, meta = bundle if isinstance(bundle, tuple) else (bundle, {})
        said = "The lab needs a running kernel: run this cell in JupyterLab, and its controls appear here."
        return {**data, "text/plain": said, "text/html": f"<p><em>{said}</em></p>"}, meta


def _name(row: Mapping[str, Any]) -> str:
    """`identity` as the value of a list on the page."""
    return " ".join(map(str, identity(row)))


def _told(row: Mapping[str, Any]) -> str:
    return (
        f"{row['label']} {100 * row['sparsity']:g}%, {row['network']}, {row['budget']}, seed {row['seed']}, {row['attacks']} "
        f"on {row['n']:.0f}"
    )


def _nothing(tab: str) -> go.Figure:
    import plotly.graph_objects as go

    figure = go.Figure(layout={"template": plots.TEMPLATE, "height": 440})
    if tab == "Curve":
        figure.update_layout(
            title={
                "text": "The curve appears here when the first run ends",
                "subtitle": {"text": "accuracy on test images"},
            },
            xaxis={"title": {"text": "sparsity asked for (% of units removed)"}, "range": [0, 100]},
            yaxis={"title": {"text": "accuracy (% of test images)"}, "range": [-1, 101]},
        )
    return figure


def _replace(figure: go.FigureWidget, new: go.Figure) -> None:
    """Let a figure widget show another figure: in place where the traces are alike, so that nothing flickers."""
    layout = new.layout.to_plotly_json()
    gone = {name: None for name in figure.layout.to_plotly_json() if name not in layout}
    for name in {"xaxis", "yaxis", *(name for name in layout if name[1:].startswith("axis"))}:
        layout[name] = {"type": "-", **layout.get(name, {})}  # found out anew: the page remembers what the last figure's were
    alike = [t.type for t in figure.data] == [t.type for t in new.data]
    if not alike:
        figure.data = ()
        figure.add_traces(new.data)
    with figure.batch_update():
        for old, trace in zip(figure.data, new.data, strict=True) if alike else ():
            old.update(trace.to_plotly_json(), overwrite=True)
        figure.layout.update({**gone, **layout, "autosize": True}, overwrite=True)


def _line(text: str) -> str:
    return f'<div style="line-height:1.25;padding-top:2px">{html.escape(text)}</div>'


def _live(state: State) -> str:
    """Loss of the run at work as a small line, and where it stands."""
    series = state.series
    loss = [y for _, y in series.loss]
    if not state.running or len(loss) < 2:
        return ""
    top, low = max(loss), min(loss)
    points = " ".join(
        f"{i * 220 / (len(loss) - 1):.1f},{28 - 26 * (y - low) / ((top - low) or 1):.1f}" for i, y in enumerate(loss)
    )
    told = f"loss {loss[-1]:.3g}"
    if series.sparsity:
        told += f", sparsity {series.sparsity[-1][1]:.1%}"
    if series.accuracy:
        told += f", {series.accuracy[-1][1]:.0%} of validation images right"
    if series.robust:
        told += f", {series.robust[-1][1]:.0%} under PGD"
    return (
        f'<svg width="220" height="30" role="img" aria-label="training loss, {told}" style="vertical-align:middle;overflow:visible">'
        f'<polyline points="{points}" fill="none" stroke="{plots.BLUE}" stroke-width="1.5"/></svg> {html.escape(told)}'
    )


def _warn(sentence: str) -> str:
    look = "border-left:4px solid #d55e00;padding-left:8px;line-height:1.35;max-width:60em"
    return f'<div role="alert" style="{look}">⚠ {html.escape(sentence)}</div>'


def _table(rows: Sequence[Mapping]) -> str:
    """The runs as an HTML table, newest last."""
    heads = ("run", "sparsity", "zeros", "clean", "robust, at most", "n", "attacks", "network, budget, seed", "seconds")
    lines = [
        (
            r["label"], f"{r['sparsity']:.1%}", f"{r['weights']:.2%}", f"{r['clean']:.1%}",
            f"{r['robust']:.1%} [{r['low']:.0%}, {r['high']:.0%}]", f"{r['n']:.0f}",
            plots.ATTACKS.get(r["attacks"], r["attacks"]).split(",")[0], f"{r['network']}, {r['budget']}, {r['seed']}",
            f"{r['seconds'] + (r['attack_seconds'] or 0):.0f}",
        )
        for r in rows
    ]  # fmt: skip

    def cell(tag: str, i: int, text: str) -> str:
        style = f"padding:2px 7px;white-space:nowrap;line-height:1.3;text-align:{'right' if i else 'left'}"
        return f'<{tag} style="{style}">{html.escape(text)}</{tag}>'

    body = "".join("<tr>" + "".join(cell("td", i, text) for i, text in enumerate(line)) + "</tr>" for line in lines)
    head = "".join(cell("th", i, text) for i, text in enumerate(heads))
    table = f'<table style="border-collapse:collapse;font-size:13px"><tr>{head}</tr>{body}</table>'
    return f'<div style="overflow-x:auto">{table}</div>' if rows else ""
