"""The lab: choose a cell of the taxonomy, run it, watch the curve grow. Widgets only: what can be chosen is `apnb.choices`, the work
is `apnb.widgets.queue`, the pictures are `apnb.plots`."""

from __future__ import annotations

import html
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apnb import choices, datasets, plots, sweeps, taxonomy
from apnb.errors import Invalid, choose
from apnb.recipes import Budget, Recipe
from apnb.runs import Run, open_run
from apnb.store import Store
from apnb.widgets import takeaway, timeline
from apnb.widgets.queue import Queue, State, stored

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from apnb.curves import Distances

TITLES = {
    "method": "method", "pipeline": "when", "schedule": "how often", "ramp": "ramp", "structure": "what goes", "locality": "compared",
    "criterion": "ranked by", "variant": "namely", "as_released": "details", "pretraining": "pretraining", "pruning_step": "search",
    "finetuning": "fine-tuning", "training_step": "training", "rewind": "afterwards", "sparsities": "sparsity", "network": "network",
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
        self.n, self._given_store = n, store if isinstance(store, str | Path) else None
        self.store = store if isinstance(store, Store) else Store(store)
        self.queue = Queue(store=self.store, on_change=self._show)
        self.tab, self.extra = TABS[0], []
        self._choice, self._found = choices.complete({}), []
        self._drawn: tuple = ()
        self._quiet = False
        self._asked = 0
        self._lock = threading.RLock()  # clicks come from one thread, the queue's news from another
        self._make(W)
        self.choose(**({} if self._budget else {"budget": budget}), **chosen)
        self.chooser.observe(self._clicked, names="clicked")
        self._find_stored()

    # --- the page ---------------------------------------------------------------------------------------------------------------

    def _make(self, W: Any) -> None:
        import plotly.graph_objects as go

        from apnb.widgets.chooser import Chooser, Download

        full = W.Layout(width="100%")
        self.chooser, self.download = Chooser(), Download()
        self.plan, self.note, self.problem, self.now = (W.HTML(layout=full) for _ in range(4))
        self.picture, self.time, self.live, self.errors, self.said = (W.HTML(layout=full) for _ in range(5))
        self.live.layout = W.Layout(width="100%", height="36px")  # nothing jumps when it is filled
        self.bar = W.FloatProgress(min=0, max=1, layout=W.Layout(width="180px"), style={"bar_color": plots.BLUE})
        self.start = W.Button(description="Run", button_style="primary", icon="play", tooltip="train, prune and attack, here")
        self.cancel = W.Button(description="Cancel", icon="stop", disabled=True, tooltip="stop; what is finished stays")
        self.clear = W.Button(description="Clear view", tooltip="show only what is run from now on; the store keeps everything")
        self.selected = W.Dropdown(description="run", options=[("none yet", "")], layout=W.Layout(width="430px"))
        self.eps = W.FloatSlider(description="eps", min=0.001, max=0.5, step=0.001, value=0.15, readout_format=".3f")
        self.published = W.Checkbox(value=False, description="published points", indent=False, layout=W.Layout(width="160px"))
        self.tabs = {name: W.Button(description=name, layout=W.Layout(width="auto")) for name in TABS}
        self.figure = go.FigureWidget(_nothing(TABS[0]))
        self.figure._config = {**self.figure._config, "responsive": True}
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
        self.framed = W.VBox([self.figure], layout=full)
        right = W.VBox(
            [
                W.HTML("<b>What will happen</b>"), self.note, self.plan, self.picture, self.time,
                W.HBox([self.start, self.cancel, self.clear]), self.problem,
            ],
            layout=W.Layout(flex="1 1 320px", min_width="280px"),
        )  # fmt: skip
        left = W.VBox([self.chooser], layout=W.Layout(flex="1 1 430px", min_width="300px"))
        self.view = W.VBox(
            [
                W.HBox([left, right], layout=W.Layout(flex_flow="row wrap", grid_gap="12px")),
                W.HBox([self.bar, self.now], layout=W.Layout(height="36px", overflow="hidden")),
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
        self.cancel.on_click(lambda _: self.queue.cancel())
        self.clear.on_click(lambda _: self._clear())
        for widget in (self.selected, self.eps, self.published):
            widget.observe(lambda _: self._draw(), names="value")
        self.show(TABS[0])

    # --- what is chosen ---------------------------------------------------------------------------------------------------------

    def choose(self, *, sparsities: Any = None, seed: int | None = None, **words: Any) -> None:
        """Choose from Python, as clicks would; one word after the other, so that the last one counts.

        Raises:
            Invalid: a choice or a word that does not exist, or one that contradicts the others.
        """
        chosen = dict(self._choice)
        if seed is not None:
            words["seeds"] = str(seed)
        if isinstance(words.get("data", ""), str) is False:
            raise Invalid("the lab takes data by name, as for apnb.run: digits, cifar10, svhn, folder:PATH or npz:PATH")
        for name in sorted(words, key=[*choices.START, *choices.WORDS, *choices.STAGE_NAMES, *words].index):
            value = words[name]
            if name in choices.CELL and value not in choices.WORDS[name]:
                raise Invalid(f"no {name} {value!r} in the lab; choose {', '.join(choices.WORDS[name])}")
            if name in ("budget", "attacks", "distances", "device"):
                value = choose(value, choices.WORDS[name], f"{name} in the lab")
            if name == "method" and value:
                value = value if value in choices.PRESETS else taxonomy.method(value).key
            words[name] = value
        if set(words) & {"method", *choices.CELL}:
            chosen = {k: v for k, v in chosen.items() if k not in choices.FOLLOWING} | {"method": words.get("method", "")}
        chosen = choices.complete({**chosen, **words})
        if sparsities is not None:
            chosen["sparsities"] = tuple(choices.check_sparsity(s) for s in sparsities)
        self._put(chosen)

    def choose_method(self, key: str) -> None:
        """Choose a surveyed method with its cell, as the taxonomy explorer's button does."""
        self.choose(method=key)

    def _clicked(self, change: Mapping) -> None:
        """A click on the form."""
        name, value = change["new"]["name"], change["new"]["value"]
        if name == "sparsities":
            value = tuple(float(s) for s in value)
        try:
            self._put(choices.chosen_with(self._choice, name, value))
        except Invalid as error:
            self.chooser.refuse()
            self.problem.value = _warn(str(error))

    def _put(self, chosen: dict[str, Any]) -> None:
        """Show a choice, and what follows from it: the words that go with it, plan, picture, code, time."""
        self._choice = chosen
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
            plan = recipes[0].plan(pixels)
        except Invalid as error:
            self.problem.value = _warn(str(error))
            self.plan.value = self.code.value = self.picture.value = self.time.value = ""
            self.start.disabled = True
            return
        *others, last = dict.fromkeys(f"{100 * r.sparsity:g}%" for r in recipes)
        shares = f"{', '.join(others)} and {last}" if others else last
        one = f"{recipes[0].sparsity:.1%}"
        if self.n is not None:
            plan = re.sub(r"Attack \d+ test images", f"Attack {self.n} test images", plan)
        lines = [html.escape(line.replace(one, shares)) for line in plan.splitlines() if line]
        steps = "".join(f"<li>{line.split('. ', 1)[1]}</li>" for line in lines if line[0].isdigit())
        more = "".join(f'<div style="opacity:.75;font-size:12px">{line}</div>' for line in lines if not line[0].isdigit())
        self.plan.value = (
            f'<ol style="margin:0;padding-left:1.4em;line-height:1.4">{steps}</ol>{more}The dense network runs first.'
        )
        self.note.value = f"<i>{html.escape(choices.neighbours(chosen))}</i>"
        self.picture.value = timeline.svg(recipes[0], pixels)
        self.problem.value = ""
        options = self._options() | {"n": self.n, "store": str(self._given_store) if self._given_store else None}
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
        from apnb.estimate import estimate

        self._asked += 1
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
                told = str(error)
            except Exception as error:  # the network may be the user's: it may raise anything
                told = f"no estimate ({type(error).__name__})"
            if mine == self._asked:
                self.time.value = f'<div style="line-height:1.4">{html.escape(told)}</div>' if told else ""

        threading.Thread(target=work, name="apnb-estimate").start()  # no daemon: torch must not be cut off at exit

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
            self._show(self.queue.state)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the runs have ended (for scripts and headless notebooks); False if ``timeout`` seconds did not suffice."""
        return self.queue.wait(timeout)

    @property
    def runs(self) -> list[dict]:
        """One flat row for each run that is shown, columns as in `apnb.store.ROW`: those found in the store first."""
        mine = list(self.queue.rows)
        names = {(r["key"], r["attacks"], r["n"]) for r in mine}
        return [r for r in self._found if (r["key"], r["attacks"], r["n"]) not in names] + mine

    def frame(self) -> pd.DataFrame:
        """`runs` as a DataFrame, ready for `apnb.plots.robustness_sparsity`."""
        return sweeps.frame_of(self.runs)

    def run_of(self, key: str) -> Run:
        """A shown run, opened."""
        return next((r for r in self.queue.runs if r.key == key), None) or open_run(key, store=self.store)

    def add_curves(self, *distances: Distances) -> None:
        """Draw other security curves beside those of the runs: of a published network, or of an evaluation of one's own."""
        self.extra += distances
        self._draw()

    def _find_stored(self) -> None:
        """Runs of earlier days that fit what is chosen: the same data, radius and attacks."""
        try:
            rows = stored(self.store, self._choice["data"], choices.eps_of(self._choice["eps"]))
        except Invalid as error:
            self.said.value = _warn(str(error))
            rows = []
        self._found = [r for r in rows if r["attacks"] == self._choice["attacks"] and self.n in (None, r["n"])][-SHOWN:]
        self.now.value = _line(f"ready; {len(self._found)} runs of earlier days are shown" if self._found else "ready")
        self._update()

    def _clear(self) -> None:
        self._found, self.queue.rows[:], self.queue.runs[:] = [], [], []
        self._update()

    def _show(self, state: State) -> None:
        """Called from the queue's thread; sets traits only, since what a thread prints is lost."""
        with self._lock:
            self.bar.value = state.share
            left = f", about {_spell(state.remaining)} left" if state.running and state.remaining else ""
            self.now.value = _line(state.what + left)
            self.live.value = _live(state)
            self.errors.value = "".join(_warn(f"{r.label} at {r.sparsity:g}: {s}") for r, s in state.errors.items())
            self.cancel.disabled = not state.running
            self._update()

    def _update(self) -> None:
        """Draw anew if the runs that are shown changed."""
        rows = self.runs
        if (shown := tuple((r["key"], r["n"]) for r in rows)) == self._drawn:
            return
        self._drawn = shown
        self.table.value = _table(rows)
        names = [(f"{r['label']} {r['sparsity']:.0%}, {r['network']}, {r['budget']}, seed {r['seed']}", r["key"]) for r in rows]
        before, newest = self.selected.value, self.selected.options[-1][1]
        chosen = before in dict(names).values() and before != newest  # else the newest run is followed
        self._quiet = True  # two changes, one drawing
        self.selected.options = names or [("none yet", "")]
        self.selected.value = before if chosen else names[-1][1] if names else ""
        self._quiet = False
        self._draw()

    # --- showing ----------------------------------------------------------------------------------------------------------------

    def show(self, tab: str) -> None:
        """Open a tab.

        Raises:
            Invalid: there is no such tab.
        """
        self.tab = choose(tab.replace("_", " "), TABS, "tab of the lab")
        for name, button in self.tabs.items():
            button.button_style = "info" if name == self.tab else ""
        places = {"Table": self.table, "Take away": self.away, "Code": self.code}
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
            try:
                new = makers[self.tab]()
                self.said.value = ""
            except Invalid as error:
                self.said.value, new = _warn(str(error)) if self.runs else "", _nothing(self.tab)
            _replace(self.figure, new)
            self.chooser.drawn += 1
            if self.tab == "Curve":
                for trace in self.figure.data:
                    trace.on_click(self._point_clicked)

    def _curve(self) -> go.Figure:
        found = None
        if self.published.value:
            table = taxonomy.leaderboard()
            network, data = self._choice["network"], self._choice["data"]
            group = "unstructured" if self._choice["structure"] == "weights" else "structured"
            found = table[(table.network == network) & (table.data == data) & (table.structure_group == group)]
            if found.empty:
                raise Invalid(f"the survey has no results for {network} on {data}; choose resnet18 or vgg16 and cifar10 or svhn")
        return plots.robustness_sparsity(self.frame(), published=found)

    def _security(self) -> go.Figure:
        rows = {r["key"]: r for r in self.runs}
        curves = []
        for key, row in rows.items():
            evaluation = self.run_of(key).evaluation
            if evaluation is not None and evaluation.searched != "none":
                curves.append(evaluation.curve(f"{row['label']} {row['sparsity']:.0%}, seed {row['seed']}"))
        curves = [*curves, *self.extra][-len(plots.LOOKS) :]
        if not curves:
            raise Invalid("no run that is shown has a security curve; choose 'and security curves' beside 'evaluate' and run it")
        return plots.security_curve(curves, eps=self.eps.value)

    def _of_run(self, draw: Callable[[Run], go.Figure]) -> go.Figure:
        if not self.selected.value:
            raise Invalid("there is no run yet; run something, or choose a run")
        return draw(self.run_of(self.selected.value))

    def _images(self) -> go.Figure:
        def draw(run: Run) -> go.Figure:
            if run.evaluation is None:
                raise Invalid("this run was not evaluated, so there are no attacked images of it")
            return plots.examples(run.evaluation)

        return self._of_run(draw)

    def _point_clicked(self, trace: Any, points: Any, _: Any) -> None:
        """A click on a point of the curve selects its run, in every tab."""
        texts = trace.text if isinstance(trace.text, tuple | list) else ()
        for i in points.point_inds:
            named = re.search(r"runs? ([0-9a-f]{8,})", str(texts[i])) if i < len(texts) else None
            key = next((r["key"] for r in self.runs if named and r["key"].startswith(named[1])), None)
            if key:
                self.selected.value = key

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
            return f"apnb-{self.tab.lower()}.{kind}", takeaway.figure(figure, kind)
        if piece.startswith("Table"):
            return "apnb-runs.csv", takeaway.csv(rows)
        if piece.startswith("Recipes"):
            return "apnb-recipes.json", takeaway.recipes(rows, self.store)
        return "apnb-lab.zip", takeaway.bundle(rows, self.store, figures={"curve": self._curve()}, code=self.code.value)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = self.view._repr_mimebundle_(**options)
        data, meta = bundle if isinstance(bundle, tuple) else (bundle, {})
        said = "The lab needs a running kernel: run this cell in JupyterLab, and its controls appear here."
        return {**data, "text/plain": said, "text/html": f"<p><em>{said}</em></p>"}, meta


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
    alike = [t.type for t in figure.data] == [t.type for t in new.data]
    with figure.batch_update():
        figure.layout.update({**gone, **layout, "autosize": True}, overwrite=True)
        if alike:
            for old, trace in zip(figure.data, new.data, strict=True):
                old.update(trace.to_plotly_json(), overwrite=True)
    if not alike:
        figure.data = ()
        figure.add_traces(new.data)


def _line(text: str) -> str:
    return f'<div style="line-height:1.25;padding-top:2px">{html.escape(text)}</div>'


def _spell(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


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
    return f'<div role="alert" style="color:#b34a00;line-height:1.35;max-width:60em">⚠ {html.escape(sentence)}</div>'


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
