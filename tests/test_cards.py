"""Cards of the methods: each names its equation, and code that exists in the method's own file."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from apnb import cards, plots, sweeps
from apnb.errors import Invalid
from apnb.presets import PRESETS


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def module(key: str):
    return import_module(f"apnb.methods.{PRESETS[key].survey}")


def test_every_implemented_method_has_a_card_and_nothing_else_has():
    assert list(cards.CARDS) == list(PRESETS)


@pytest.mark.parametrize("key", cards.CARDS)
def test_the_first_formula_stands_in_the_docstring_of_the_methods_file(key):
    formula = plain(cards.CARDS[key].formulas[0]).split(r" \ \text")[0]
    assert formula in plain(module(key).__doc__), formula


@pytest.mark.parametrize("key", cards.CARDS)
def test_the_steps_that_a_card_names_are_steps_of_that_docstring(key):
    for number in re.findall(r"\bsteps? (\d)(?: and (\d))?", cards.CARDS[key].where):
        for n in filter(None, number):
            assert re.search(rf"^{n}\. ", module(key).__doc__, re.MULTILINE)


@pytest.mark.parametrize("key", cards.CARDS)
def test_the_code_exists_the_first_of_it_in_the_methods_own_file_the_rest_there_or_shared(key):
    first, *rest = (cards.found(name).__module__ for name in cards.CARDS[key].code)
    assert first == module(key).__name__
    assert set(rest) <= {first, "apnb.mechanisms"}


@pytest.mark.parametrize("key", cards.CARDS)
def test_the_lines_are_few_and_are_lines_of_the_files(key):
    source = cards.lines(*cards.CARDS[key].code)
    own = re.sub(r"[ ]+", " ", Path(module(key).__file__).read_text(encoding="utf-8"))
    assert 8 <= sum(bool(line.strip()) and not line.startswith("# apnb/") for line in source.splitlines()) <= 26
    own_piece = source.split("\n\n\n")[0].splitlines()[1:]
    assert all(re.sub(r"[ ]+", " ", line).strip() in own for line in own_piece)


@pytest.mark.parametrize("key", cards.CARDS)
def test_a_card_says_who_where_how_and_what_is_disputed(key):
    text, preset = cards.card(key), PRESETS[key]
    assert text.startswith(f"**{preset.name}**: [") and "](https://" in text
    assert cards.lines(*cards.CARDS[key].code) in text and all(f"$$ {f} $$" in text for f in cards.CARDS[key].formulas)
    assert all(line in text for line in preset.differs) and (preset.released in text)
    assert "Attack 128" not in text and "{" not in text.split("**What it does**")[1]


def test_dollars_and_code_fences_are_closed_in_every_card():
    for key in cards.CARDS:
        text = cards.card(key)
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        assert prose.count("$") % 2 == 0 and text.count("```") == 2, key


@pytest.mark.parametrize("key", cards.CARDS)
def test_the_latex_of_a_card_can_be_turned_into_mathml(key):
    pytest.importorskip("latex2mathml")
    from apnb.reading.maths import mathml

    symbols = re.findall(r"\$([^$]+)\$", cards.CARDS[key].symbols)
    assert symbols
    for formula in (*cards.CARDS[key].formulas, *symbols):
        assert mathml(formula).startswith("<math")


def test_what_does_not_exist_is_told_in_one_sentence():
    for wrong in (cards.card, cards.cell):
        with pytest.raises(Invalid, match="hydra"):
            wrong("hydraa")
    with pytest.raises(Invalid, match="nothing_here"):
        cards.found("apnb.methods.hydra.nothing_here")


def rows(**changes):
    base = {
        "pipeline": "after", "schedule": "one_shot", "structure": "weights", "locality": "local", "criterion": "lis", "seed": 0,
        "budget": "quick", "network": "cnn", "data": "digits", "train_eps": 0.15, "weights": 0.9, "clean": 0.97, "n": 500,
        "attacks": "lite", "eps": 0.15,
    }  # fmt: skip
    return {**base, **changes}


@pytest.fixture
def frame():
    pd = pytest.importorskip("pandas")
    found = [
        rows(key=f"{label}{s}", label=label, pipeline=pipeline, sparsity=s, robust=r, low=r - 0.04, high=r + 0.03)
        for label, pipeline, top in (("HYDRA", "after", 0.8), ("RST", "before", 0.6), ("TwinRep", "during", 0.7))
        for s, r in ((0.5, top), (0.98, top - 0.3))
    ]
    return pd.DataFrame(found)


def test_a_highlighted_method_has_its_pipelines_colour_and_all_others_are_one_grey_trace(frame):
    figure = plots.highlight(frame, "RST")
    others, ours = figure.data
    assert ours.name == "RST" and ours.line.color == plots.PIPELINES["before"] and list(ours.y) == [60.0, 30.0]
    assert [y for y in others.y if y is not None] == [80.0, 50.0, 70.0, 40.0] and set(others.text) == {"HYDRA", "TwinRep", None}
    assert list(ours.error_y.array) == [3.0, 3.0] and list(ours.error_y.arrayminus) == [4.0, 4.0]
    with pytest.raises(Invalid, match="HYDRA, RST, TwinRep"):
        plots.highlight(frame, "RADMM")


def test_several_seeds_are_highlighted_as_their_median_with_bars_to_the_lowest_and_the_highest(frame):
    import pandas as pd

    seeds = [frame.assign(seed=i, key=frame["key"] + str(i), robust=frame["robust"] + 0.05 * i) for i in (0, 1, 3)]
    ours = plots.highlight(pd.concat(seeds), "RST").data[1]
    assert list(ours.y) == [65, 35] and list(ours.error_y.array) == [10, 10] and list(ours.error_y.arrayminus) == [5, 5]


def test_intervals_put_the_best_on_top_and_refuse_two_runs_of_one_label(frame):
    figure = plots.intervals(frame, 0.98)
    assert list(figure.layout.yaxis.categoryarray) == ["RST", "TwinRep", "HYDRA"]
    assert {t.name: list(t.x) for t in figure.data}["during training"] == [40.0]
    twice = sweeps.frame_of([*frame.to_dict("records"), rows(key="b", label="RST", sparsity=0.98, robust=0.5, low=0.4, high=0.6)])
    with pytest.raises(Invalid, match="4 runs of 3 labels"):
        plots.intervals(twice, 0.98)
    with pytest.raises(Invalid, match="0 runs"):
        plots.intervals(frame, 0.7)


def test_a_column_of_seeds_has_every_run_and_its_median_the_best_first(frame):
    pd = pytest.importorskip("pandas")
    more = frame.assign(seed=1, key=frame["key"] + "b", robust=frame["robust"] - 0.1)
    figure = plots.seeds(pd.concat([frame, more], ignore_index=True), 0.5)
    lines, medians = figure.data[::2], figure.data[1::2]
    assert [tuple(round(y) for y in t.y) for t in lines] == [(70, 80), (60, 70), (50, 60)]
    assert [round(t.y[0]) for t in medians] == [75, 65, 55]
    with pytest.raises(Invalid, match=r"0\.7"):
        plots.seeds(frame, 0.7)
