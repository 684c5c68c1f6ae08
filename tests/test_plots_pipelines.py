"""Figures of schedules and of what fine-tuning gives back: against numbers worked out by hand and the history's own."""

from __future__ import annotations

import dataclasses

import pytest

import apnb
from apnb.errors import Invalid
from apnb.plots import ramps, recovery

CELL = {"structure": "weights", "locality": "global", "criterion": "lwm"}


def lines(figure):
    return {t.name: [round(float(y), 6) for y in t.y] for t in figure.data if t.type == "scatter"}


def bars(figure):
    return {t.name: [round(float(y), 6) for y in t.y] for t in figure.data if t.type == "bar"}


def test_a_linear_ramp_to_three_quarters_takes_a_quarter_then_a_third_then_a_half_of_what_is_left():
    figure = ramps(0.75, 3)
    assert lines(figure)["linear ramp"] == [0, 25, 50, 75]
    assert bars(figure)["linear ramp"] == [25, 33.333333, 50]
    assert lines(figure)["one cut"] == [0, 75, 75, 75]
    assert bars(figure)["one cut"] == [75]


def test_the_cubic_ramp_starts_with_more_and_ends_with_less():
    figure = ramps(0.8, 2)
    assert lines(figure)["cubic ramp"] == [0, 70, 80]  # 0.8 (1 - 1/8)
    linear, cubic = bars(figure)["linear ramp"], bars(figure)["cubic ramp"]
    assert cubic[0] > linear[0] and cubic[-1] < linear[-1]


def test_the_title_of_the_ramps_tells_the_last_cuts_that_are_drawn():
    figure = ramps(0.98, 3)
    for kind in ("linear", "cubic"):
        assert f"{bars(figure)[f'{kind} ramp'][-1]:.0f}% ({kind})" in figure.layout.title.text


@pytest.mark.parametrize("given", [(0.9, 1), (0.0, 3), (90, 3)])
def test_ramps_refuse_what_is_no_ramp(given):
    with pytest.raises(Invalid):
        ramps(*given)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def runs(store):
    recipes = [
        apnb.Recipe(pipeline="after", sparsity=0.9, budget="tiny", **CELL),
        apnb.Recipe(pipeline="after", schedule="iterative", ramp="linear", sparsity=0.9, budget="tiny", **CELL),
    ]
    return [apnb.run(r, evaluate=False, store=store) for r in recipes]


def test_recovery_has_a_point_for_the_dense_network_and_two_for_each_cut_as_the_history_tells(runs):
    figure = recovery(runs)
    marks = {t.meta: t for t in figure.data if t.meta}
    assert {what: len(t.x) for what, t in marks.items()} == {"dense": 2, "cut": 1 + 2, "end": 1 + 2}
    history = runs[1].history
    assert list(marks["cut"].y[1:]) == pytest.approx(list(100 * history[history["kind"] == "pruned"]["pgd"]))
    assert marks["end"].y[-1] == pytest.approx(100 * history["val_pgd"].dropna().iloc[-1])
    assert marks["dense"].y[0] == marks["dense"].y[1] == pytest.approx(100 * history["val_pgd"].dropna().iloc[0])
    assert list(figure.layout.xaxis.ticktext) == ["0.9<br>one cut", "0.9<br>2 cuts, linear"]
    assert "32 validation images" in figure.layout.title.subtitle.text


def test_recovery_refuses_runs_that_have_nothing_to_recover_from(runs, tmp_path):
    with pytest.raises(Invalid, match="pipeline 'after'"):
        recovery([])
    during = dataclasses.replace(runs[0], recipe=apnb.Recipe(pipeline="during", budget="tiny", **CELL))
    with pytest.raises(Invalid, match="fine-tuned"):
        recovery([during])
    unseen = apnb.Recipe(pipeline="after", budget=dataclasses.replace(apnb.recipes.budget("tiny"), check=0), **CELL)
    with pytest.raises(Invalid, match="check above 0"):
        recovery([apnb.run(unseen, evaluate=False, store=tmp_path)])
