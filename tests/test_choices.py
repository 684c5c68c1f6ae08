"""The grammar as a form: what can be chosen, why something cannot, and what a click brings along."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

import apnb
from apnb import choices, taxonomy
from apnb.errors import Invalid
from apnb.presets import PRESETS
from apnb.recipes import CRITERIA, LOCALITIES, PIPELINES, SCHEDULES, STRUCTURES

METHODS = [o.value for o in choices.options({})["method"]]


def test_the_form_offers_the_words_of_the_grammar_and_every_surveyed_method():
    assert [tuple(choices.WORDS[name]) for name in choices.CELL] == [PIPELINES, SCHEDULES, STRUCTURES, LOCALITIES, CRITERIA]
    assert {m.key for m in taxonomy.methods()} <= {PRESETS[m].survey if m in PRESETS else m for m in METHODS}
    assert len(METHODS) == 1 + 26 + 1  # a cell of one's own, and Flying Bird+ beside Flying Bird


def test_exactly_the_cells_of_the_grid_can_be_reached():
    reached = set()
    for cell in itertools.product(PIPELINES, SCHEDULES, STRUCTURES, LOCALITIES, CRITERIA):
        try:
            reached.add(tuple(choices.complete(dict(zip(choices.CELL, cell, strict=True)))[name] for name in choices.CELL))
        except Invalid:
            continue
    assert reached == {tuple(cell) for cell in apnb.grid()}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_brings_a_cell_that_runs(method):
    chosen = choices.chosen_with(choices.complete({}), "method", method)
    made = choices.recipes(chosen)
    assert [r.sparsity for r in made] == [0.5, 0.9] and {r.method for r in made} == {method if method in PRESETS else None}
    if method and method not in PRESETS:
        words = taxonomy.cell_of(method)
        assert all(chosen[name] in map(str, words[name]) or "unspecified" in map(str, words[name]) for name in choices.CELL)
        assert taxonomy.method(method).name in choices.neighbours(chosen)


clicks = st.lists(
    st.one_of(
        [
            st.tuples(st.just(name), st.sampled_from(list(choices.WORDS[name])))
            for name in (*choices.CELL, "rewind", "as_released", "ramp")
        ]
        + [st.tuples(st.just("method"), st.sampled_from(METHODS))]
        + [st.tuples(st.just(s), st.sampled_from(("natural", "pgd_at", "trades", "kd", "none"))) for s in choices.STAGE_NAMES]
    ),
    max_size=8,
)


@given(clicks)
def test_a_word_without_a_reason_can_be_clicked_and_one_with_a_reason_cannot(made):
    """Any row of clicks: what is shown as open leads to a choice that runs, what is greyed out is refused with that sentence."""
    chosen = choices.complete({})
    for name, value in made:
        option = next((o for o in choices.options(chosen)[name] if o.value == value), None)
        if option is None:
            continue  # there is no such row on the page now
        try:
            after = choices.chosen_with(chosen, name, value)
        except Invalid as error:
            assert option.reason == str(error)
            continue
        assert not option.reason and after[name] == value
        assert choices.recipes(after)
        chosen = after


def test_an_empty_cell_is_called_one():
    assert choices.neighbours({"pipeline": "before", "criterion": "hgm"}) == "An empty cell: no surveyed method lives here."
    assert "HYDRA" in choices.neighbours({"criterion": "lis", "locality": "local"})


def test_networks_and_data_that_do_not_go_together_exclude_each_other():
    of = lambda choice, name: {o.value: o.reason for o in choices.options(choice)[name]}  # noqa: E731
    assert "digits has 8x8" in of({}, "network")["vgg16"] and not of({"data": "cifar10"}, "network")["vgg16"]
    assert "resnet18 takes images of 32x32" in of({"network": "resnet18", "data": "svhn"}, "data")["digits"]


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("0", (0,)),
        ("0, 1,2", (0, 1, 2)),
        ("3-5", (3, 4, 5)),
        ("1,1", (1,)),
        ("x", None),
        ("", None),
        ("0-999", None),
        ("0-200, 5", None),
        ("0,5-3", None),
        ("0-60,100-160", None),
    ],
)
def test_seeds_are_numbers_or_a_range(text, seeds):
    if seeds is None:
        with pytest.raises(Invalid, match=r"up to 100 whole numbers such as 0 or 0, 1, 2 or 0-4"):
            choices.seeds_of(text)
    else:
        assert choices.seeds_of(text) == seeds


@pytest.mark.parametrize(
    ("text", "eps"), [("", None), ("8/255", 8 / 255), ("0.15", 0.15), ("0", "no"), ("8", "no"), ("1/0", "no"), ("big", "no")]
)
def test_eps_is_a_number_or_a_fraction(text, eps):
    if eps == "no":
        with pytest.raises(Invalid, match="eps is a share of the pixel range"):
            choices.eps_of(text)
    else:
        assert choices.eps_of(text) == eps


def test_unknown_names_and_words_are_refused():
    for wrong in (
        {"pipeline": "later"},
        {"speed": "high"},
        {"method": "hidra"},
        {"network": "vgg16"},
        {"device": "tpu"},
        {"network": "nope"},
    ):
        with pytest.raises(Invalid):
            choices.complete(wrong)


def test_the_code_names_every_choice_and_only_those():
    made = choices.recipes({"pipeline": "during", "structure": "filters", "budget": "tiny", "seeds": "0,1"})
    text = choices.code(made, "resnet8", "digits", 0.1, attacks="lite", n=None)
    assert "apnb.Recipe(pipeline='during', structure='filters', sparsity=s, budget='tiny', seed=seed)" in text
    assert "for s in (0.5, 0.9) for seed in (0, 1)]" in text and "network='resnet8'" in text and "eps=0.1, attacks='lite'" in text
    assert "n=" not in text
    assert "apnb.recipe('harp', structure='channels', sparsity=s)" in choices.code(
        choices.recipes({"method": "harp", "structure": "channels"})
    )
