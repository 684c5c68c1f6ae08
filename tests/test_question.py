"""An exercise says at once whether an answer is right, with a kernel and without one."""

from __future__ import annotations

import plotly.graph_objects as go
import pytest

import apnb
from apnb import plots
from apnb.errors import Invalid

pytest.importorskip("anywidget")


def test_a_number_is_right_within_the_tolerance_and_a_choice_only_if_it_is_the_one():
    number = apnb.Question("How many?", 12.5, tolerance=0.5)
    assert number.right is None
    for given, right in ((12.5, True), (13, True), (12, True), (13.01, False)):
        number.given = given
        assert number.right is right
    choice = apnb.Question("Which?", "lwm", choices=["lwm", "lis"])
    choice.given = "lis"
    assert choice.right is False
    choice.given = "lwm"
    assert choice.right is True
    assert apnb.Question("How many?", 3.0).answer == 3 and apnb.Question("How many?", 3.0).told == "3."


@pytest.mark.parametrize(("answer", "tolerance"), [(12345.678, 1), (0.1234567, 0), (12.345678, 0.5), (1e-7, 0), (123456.5, 1000)])
def test_the_number_that_is_told_is_judged_right(answer, tolerance):
    asked = apnb.Question("How many?", answer, tolerance=tolerance, unit="%")
    asked.given = float(asked.told.removesuffix(" %."))
    assert asked.right


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"answer": "lwm", "choices": ["lis", "hgm"]}, "must be one of at least two different choices, got lis, hgm"),
        ({"answer": "lis", "choices": ["lis", "lis"]}, "two different"),
        ({"answer": "lis", "choices": ["lis"]}, "two different"),
        ({"answer": "lis"}, "without choices the answer must be a number"),
        ({"answer": float("nan")}, "must be a number"),
        ({"answer": True}, "must be a number"),
        ({"answer": 1, "tolerance": -1}, "tolerance"),
        ({"answer": 1, "tolerance": None}, "tolerance"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(given, said):
    with pytest.raises(Invalid, match=said):
        apnb.Question("Which?", **given)


def test_a_page_without_scripts_has_the_question_and_its_folded_answer():
    asked = apnb.Question("Is 1 < 2?", "yes & so", choices=["yes & so", "no"], because="Counting.")
    assert (
        "Is 1 &lt; 2?" in asked.fallback() and "<details>" in asked.fallback() and "yes &amp; so. Counting." in asked.fallback()
    )
    assert repr(asked) == "Question: Is 1 < 2? (yes & so / no)"


def figure(height: float, title: str) -> go.Figure:
    drawn = go.Figure([go.Bar(y=[height]), go.Scatter(y=[height])])
    return drawn.update_layout(title={"text": title}, yaxis={"range": [0, height]}, annotations=[{"text": title}])


def test_a_movable_figure_shows_one_of_its_figures_at_each_step_with_its_own_axes_and_title():
    moved = plots.movable({0.5: figure(2, "half"), 0.9: figure(1, "most")}, label="sparsity", start=0.9)
    (slider,) = moved.layout.sliders
    assert [step.label for step in slider.steps] == ["0.5", "0.9"] and slider.active == 1 and moved.layout.title.text == "most"
    assert [trace.visible for trace in moved.data] == [False, False, True, True]
    first, second = (step.args for step in slider.steps)
    assert first[0]["visible"] == [True, True, False, False] and second[0]["visible"] == [False, False, True, True]
    assert first[1]["yaxis"]["range"] in ([0, 2], (0, 2)) and first[1]["title"]["text"] == "half"
    assert first[1]["annotations"][0]["text"] == "half"
    assert (
        "title"
        not in plots.movable({1: figure(1, "a"), 2: figure(2, "b")}, label="x", title="both").layout.sliders[0].steps[0].args[1]
    )


def test_a_movable_figure_needs_two_figures_and_a_start_among_them():
    with pytest.raises(Invalid, match="at least two figures with different words, got 1"):
        plots.movable({1: figure(1, "a")}, label="x")
    with pytest.raises(Invalid, match="different words, got 1, 1"):
        plots.movable({1: figure(1, "a"), "1": figure(2, "b")}, label="x")
    with pytest.raises(Invalid, match="start is '3', but the slider has 1, 2"):
        plots.movable({1: figure(1, "a"), 2: figure(2, "b")}, label="x", start=3)
