"""The lab: choose a cell of the taxonomy, run it, watch the curve grow. Widgets only; the work is in `apnb.widgets.queue`."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apnb import datasets, plots, sweeps
from apnb.errors import Invalid, choose
from apnb.recipes import PIPELINES, STRUCTURES, Budget, Recipe
from apnb.widgets.queue import Queue, State, code

if TYPE_CHECKING:
    import pandas as pd

    from apnb.store import Store

SPARSITIES = (0.5, 0.75, 0.9, 0.95, 0.99)
NETWORKS = ("cnn", "resnet8")
BUDGETS = ("tiny", "quick", "standard")
WORDS = {
    "pipeline": ("when", {p: f"{p} training" for p in PIPELINES}),
    "schedule": ("how often", {"one_shot": "one cut", "iterative": "several cuts"}),
    "structure": ("what goes", {s: s for s in STRUCTURES}),
    "locality": ("compared", {"local": "within each layer", "global": "across the network"}),
    "criterion": ("ranked by", {"lwm": "LWM: smallest |w|", "relwm": "RELWM: |w| after a penalty", "solwm": "SOLWM: ADMM",
                                "lis": "LIS: learned scores", "hgm": "HGM: gradients", "bcs": "BCS: connections"}),
}  # fmt: skip
"""Choice -> its name on the page, and the survey's words -> how they read there."""


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
        store: folder of runs (default ``APNB_HOME``, else the user's data folder); what is there already comes back at once.
        data: as for `apnb.run`. attacks, n: how to evaluate; n defaults to the budget's points.
        budget: another `Budget` to offer, chosen at first. threads: of torch, set for the whole process; None leaves them alone.
        choices: what is chosen at first: pipeline, schedule, structure, locality, criterion, network, seed, sparsities.

    Examples:
        ``lab = apnb.Lab()`` as the last line of a cell shows it. ``lab.run(); lab.wait()`` does without clicks.

    Raises:
        Invalid: ipywidgets or anywidget is missing, or a first choice that does not exist.
    """

    def __init__(
        self,
        *,
        store: str | Path | Store | None = None,
        data: Any = "digits",
        attacks: str = "standard",
        n: int | None = None,
        budget: str | Budget = "quick",
        threads: int | None = 1,
        **choices: Any,
    ):
        if not isinstance(budget, Budget):
            budget = choose(budget, BUDGETS, "budget in the lab")
        W = _widgets()
        import plotly.graph_objects as go

        if threads is not None:
            sweeps.set_threads(threads)
        self.data = data
        self._pixels = datasets.pixels(data)
        self._explicit = {"store": store if isinstance(store, str | Path) else None, "attacks": attacks, "n": n}
        self.queue = Queue(store=store, on_change=self._show, attacks=attacks, n=n)
        self._drawn: tuple = ()
        self._make_controls(W, budget)
        self._make_outputs(W, go)
        self.choose(**choices)
        for control in self._controls():
            control.observe(lambda _: self._refresh(), names="value")
        self.start.on_click(lambda _: self.run())
        self.cancel.on_click(lambda _: self.queue.cancel())
        self._refresh()

    # --- the page ---------------------------------------------------------------------------------------------------------------

    def _make_controls(self, W: Any, budget: str | Budget) -> None:
        style, wide = {"description_width": "80px"}, W.Layout(width="300px")
        self.choices = {
            name: W.Dropdown(description=title, options=[(text, word) for word, text in words.items()], style=style, layout=wide)
            for name, (title, words) in WORDS.items()
        }
        self.choices["locality"].value = "global"
        self.network = W.Dropdown(description="network", options=NETWORKS, style=style, layout=wide)
        own = [(f"{budget.name} (given)", budget)] if isinstance(budget, Budget) else []
        self.budget = W.Dropdown(
            description="budget", options=[*own, *((b, b) for b in BUDGETS)], value=budget, style=style, layout=wide
        )
        self.seed = W.BoundedIntText(description="seed", min=0, max=10_000, style=style, layout=wide)
        self.sparsities = {
            s: W.Checkbox(value=s in (0.5, 0.9), description=f"{s:.0%}", indent=False, layout=W.Layout(width="62px"))
            for s in SPARSITIES
        }
        self.start = W.Button(description="Run", button_style="primary", icon="play", tooltip="train, prune and attack, here")
        self.cancel = W.Button(description="Cancel", icon="stop", disabled=True, tooltip="stop; what is finished stays")

    def _make_outputs(self, W: Any, go: Any) -> None:
        full = W.Layout(width="100%")
        self.bar = W.FloatProgress(min=0, max=1, layout=W.Layout(width="200px"), style={"bar_color": plots.BLUE})
        self.now, self.problem, self.plan = W.HTML("ready"), W.HTML(), W.HTML(layout=full)
        self.table, self.errors = W.HTML(layout=full), W.HTML()
        self.code = W.Textarea(layout=W.Layout(width="calc(100% - 8px)", height="150px"))
        self.figure = go.FigureWidget(layout={"template": plots.TEMPLATE, "height": 420})
        self._empty_figure()
        shares = W.HBox([W.HTML("sparsity"), *self.sparsities.values()], layout=W.Layout(flex_flow="row wrap"))
        left = W.VBox([*self.choices.values(), self.network, self.budget, self.seed], layout=W.Layout(min_width="310px"))
        right = W.VBox(
            [W.HTML("<b>What will happen</b>"), self.plan, shares, W.HBox([self.start, self.cancel]), self.problem],
            layout=W.Layout(flex="1 1 auto", min_width="300px"),
        )
        self.view = W.VBox(
            [
                W.HBox([left, right]),
                W.HBox([self.bar, self.now]),
                self.errors,
                self.figure,
                self.table,
                W.HTML("<b>The same in Python</b>"),
                self.code,
            ]
        )

    def _controls(self) -> list[Any]:
        return [*self.choices.values(), self.network, self.budget, self.seed, *self.sparsities.values()]

    def _empty_figure(self) -> None:
        self.figure.update_layout(
            title={"text": "The curve appears here when the first run ends"},
            xaxis={"title": {"text": "sparsity asked for (% of units removed)"}, "range": [0, 100]},
            yaxis={"title": {"text": "accuracy (% of test images)"}, "range": [-1, 101]},
        )

    # --- what is chosen ---------------------------------------------------------------------------------------------------------

    def choose(self, *, sparsities: Any = None, network: str | None = None, seed: int | None = None, **cell: str) -> None:
        """Set the controls from Python, as clicks would.

        Raises:
            Invalid: a choice that is not on the page.
        """
        for name, value in cell.items():
            if name not in self.choices:
                raise Invalid(f"the lab has no choice {name!r}; it has {', '.join(self.choices)}, network, seed and sparsities")
            words = WORDS[name][1]
            if value not in words:
                raise Invalid(f"no {name} {value!r} in the lab; choose {', '.join(words)}")
            self.choices[name].value = value
        if network is not None:
            if network not in NETWORKS:
                raise Invalid(f"no network {network!r} in the lab; choose {', '.join(NETWORKS)}")
            self.network.value = network
        if seed is not None:
            if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= 10_000:
                raise Invalid(f"the lab's seed is a whole number from 0 to 10000, got {seed!r}")
            self.seed.value = seed
        if sparsities is not None:
            if unknown := [s for s in sparsities if s not in SPARSITIES]:
                raise Invalid(f"no sparsity {unknown[0]!r} in the lab; choose among {', '.join(map(str, SPARSITIES))}")
            for s, box in self.sparsities.items():
                box.value = s in sparsities

    def recipes(self) -> list[Recipe]:
        """The recipes that the controls ask for, one for each sparsity, without the dense network.

        Raises:
            Invalid: choices that contradict each other, or no sparsity.
        """
        cell = {name: box.value for name, box in self.choices.items()}
        chosen = [s for s, box in self.sparsities.items() if box.value]
        if not chosen:
            raise Invalid("no sparsity is chosen; tick at least one")
        return [Recipe(**cell, sparsity=s, budget=self.budget.value, seed=self.seed.value) for s in chosen]

    def _refresh(self) -> None:
        """Plan, code and the Run button follow the controls."""
        try:
            recipes = self.recipes()
        except Invalid as error:
            self.problem.value = _warn(str(error))
            self.plan.value, self.code.value = "", ""
            self.start.disabled = True
            return
        shares = " and ".join(f"{r.sparsity:.0%}" for r in recipes)
        lines = [line.split(". ", 1)[1] for line in recipes[0].plan(self._pixels).splitlines()]
        one = f"{recipes[0].sparsity:.1%}"
        steps = "".join(f"<li>{html.escape(line.replace(one, shares))}</li>" for line in lines)
        self.plan.value = f'<ol style="margin:0;line-height:1.4">{steps}</ol>The dense network runs first, for comparison.'
        self.problem.value = ""
        options = {k: v for k, v in self._explicit.items() if v is not None and (k, v) != ("attacks", "standard")}
        self.code.value = code(recipes, self.network.value, self.data, **{k: _plain(v) for k, v in options.items()})
        self.start.disabled = self.queue.state.running

    # --- running ----------------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Start what is chosen, as the button does; returns at once. Contradictions are shown, not raised."""
        before = self.start.disabled, self.cancel.disabled
        self.start.disabled, self.cancel.disabled = True, False  # before the start: a thread that ends at once sets them back
        try:
            self.queue.start(sweeps.with_dense(self.recipes()), network=self.network.value, data=self.data)
        except Invalid as error:
            self.start.disabled, self.cancel.disabled = before
            self.problem.value = _warn(str(error))

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the runs have ended (for scripts and headless notebooks); False if ``timeout`` seconds did not suffice."""
        return self.queue.wait(timeout)

    @property
    def runs(self) -> list[dict]:
        """One flat row for each finished run, columns as in `apnb.store.ROW`."""
        return list(self.queue.rows)

    def frame(self) -> pd.DataFrame:
        """`runs` as a DataFrame, ready for `apnb.plots.robustness_sparsity`."""
        return self.queue.frame()

    def _show(self, state: State) -> None:
        """Called from the queue's thread; sets traits only, since what a thread prints is lost."""
        self.bar.value = state.share
        self.now.value = html.escape(state.what)
        self.errors.value = "".join(_warn(f"{r.label} at {r.sparsity:g}: {s}") for r, s in state.errors.items())
        rows = self.runs
        if (shown := tuple((r["key"], r["n"]) for r in rows)) != self._drawn:
            self._drawn = shown
            self.table.value = _table(rows)
            self._draw()
        if state.running:
            self.start.disabled, self.cancel.disabled = True, False
        else:
            self.cancel.disabled = True
            self.start.disabled = bool(self.problem.value)

    def _draw(self) -> None:
        try:
            new = plots.robustness_sparsity(self.frame())
        except Invalid as error:
            self.errors.value += _warn(str(error))
            return
        with self.figure.batch_update():
            self.figure.update_layout(new.layout.to_plotly_json(), overwrite=True)
            for old, trace in zip(self.figure.data, new.data, strict=False):
                old.update(trace.to_plotly_json(), overwrite=True)
        if len(new.data) > len(self.figure.data):
            self.figure.add_traces(new.data[len(self.figure.data) :])

    # --- showing ----------------------------------------------------------------------------------------------------------------

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = self.view._repr_mimebundle_(**options)
        data, meta = bundle if isinstance(bundle, tuple) else (bundle, {})
        said = "The lab needs a running kernel: run this cell in JupyterLab, and its controls appear here."
        return {**data, "text/plain": said, "text/html": f"<p><em>{said}</em></p>"}, meta


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _warn(sentence: str) -> str:
    return f'<div role="alert" style="color:#8a3b00;line-height:1.35;max-width:60em">⚠ {html.escape(sentence)}</div>'


def _table(rows: list[Mapping]) -> str:
    """The finished runs as an HTML table, newest last."""
    heads = ("run", "sparsity", "zeros", "clean", "robust, at most", "n", "attacks", "network, budget, seed", "seconds")
    lines = [
        (
            r["label"], f"{r['sparsity']:.1%}", f"{r['weights']:.2%}", f"{r['clean']:.1%}",
            f"{r['robust']:.1%} [{r['low']:.0%}, {r['high']:.0%}]", str(r["n"]),
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
