"""Recipes: every valid cell can be made, written and read back; every contradiction is refused with a sentence."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import apnb
from apnb import taxonomy
from apnb.errors import Invalid
from apnb.recipes import (
    ADVERSARIAL,
    BUDGETS,
    CRITERIA,
    LOCALITIES,
    PIPELINES,
    SCHEDULES,
    STRUCTURES,
    TRAINABLE,
    Budget,
    Cell,
    Recipe,
    budget,
    check_sparsity,
    grid,
)

CELLS = grid()


def from_cell(cell, **options):
    return Recipe(**cell._asdict(), **options)


# --------------------------------------------------------------------------------------------------------------------- the grid


def test_the_grid_has_the_240_cells_of_five_criteria_and_two_of_bcs_and_all_can_be_made():
    assert len(CELLS) == len(set(CELLS)) == 242
    assert sum(c.criterion == "bcs" for c in CELLS) == 2
    for cell in CELLS:
        assert from_cell(cell).cell == cell


def test_a_combination_outside_the_grid_is_refused():
    product = [
        Cell(p, s, u, l, c) for p in PIPELINES for s in SCHEDULES for u in STRUCTURES for l in LOCALITIES for c in CRITERIA
    ]
    assert len(product) == 288
    for cell in set(product) - set(CELLS):
        with pytest.raises(Invalid, match="keeps a fixed number of single connections"):
            from_cell(cell)


def test_random_scores_are_a_control_and_no_cell():
    assert Recipe(pipeline="after", criterion="random").criterion == "random"
    assert "random" not in {c.criterion for c in CELLS}


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_recipe_of_a_pipeline_names_an_objective_for_each_of_its_stages_and_no_other(pipeline):
    stages = {
        "after": {"pretraining", "pruning_step", "finetuning"},
        "before": {"pruning_step", "training_step"},
        "during": {"training_step"},
    }[pipeline]
    for cell in CELLS:
        if cell.pipeline == pipeline:
            r = from_cell(cell, objective="trades")
            named = {s: getattr(r, s) for s in ("pretraining", "pruning_step", "finetuning", "training_step")}
            assert {s for s, o in named.items() if o is not None} == stages
            assert {o for o in named.values() if o is not None} <= {"trades", "none"}


# ---------------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("options", [{}, {"objective": "trades", "sparsity": 0.5, "seed": 3, "budget": Budget(epochs=7, lr=0.3)}])
def test_every_cell_comes_back_from_json_from_its_code_and_from_a_pickle(options):
    for cell in CELLS:
        r = from_cell(cell, **options)
        assert Recipe.from_json(r.to_json()) == r
        assert pickle.loads(pickle.dumps(r)) == r
        line = next(line for line in r.code().splitlines() if line.startswith("recipe = "))
        names = {"apnb": apnb}
        exec(line, names)
        assert names["recipe"] == r
        assert hash(names["recipe"]) == hash(r)


def test_options_come_back_too():
    for r in (
        Recipe(pipeline="after", schedule="iterative", ramp="linear", rewind=True, pretraining="natural", finetuning="kd"),
        Recipe(pipeline="after", criterion="relwm", structure="filters", variant="l1", pruning_step="mart", finetuning="none"),
        Recipe(pipeline="before", training_step="none"),
        Recipe(pipeline="before", rewind=False, pruning_step="none"),
        Recipe(pipeline="during", criterion="lis", variant="saliency", training_step="fast_at", budget="tiny"),
    ):
        assert Recipe.from_json(r.to_json()) == r
        names = {"apnb": apnb}
        exec(r.code(network="resnet8").splitlines()[2], names)
        assert names["recipe"] == r


def test_code_says_only_what_differs_from_the_defaults_and_how_to_run_it():
    text = Recipe(pipeline="after", structure="filters").code(network="resnet8", data="digits")
    assert text == (
        "import apnb\n\nrecipe = apnb.Recipe(pipeline='after', structure='filters')\n"
        "run = apnb.run(recipe, network='resnet8', data='digits')\n"
    )
    compile(text, "recipe", "exec")


def test_a_recipe_can_be_made_from_another():
    for cell in CELLS:
        assert dataclasses.replace(from_cell(cell, objective="mart"), sparsity=0.25) == from_cell(
            cell, objective="mart", sparsity=0.25
        )


def test_recipes_are_values():
    a, b = Recipe(pipeline="after", sparsity=0.5), Recipe(pipeline="after", sparsity=0.5, criterion="LWM")
    assert a == b
    assert len({a, b, Recipe(pipeline="after", sparsity=0.6)}) == 2
    with pytest.raises(AttributeError):
        a.sparsity = 0.1


def test_words_may_be_enums_or_spelled_with_dashes_and_capitals():
    r = Recipe(
        pipeline=taxonomy.Pipeline.after, schedule="One-Shot", structure=taxonomy.Structure.filters, criterion="LWM",
        pretraining="PGD-AT",
    )  # fmt: skip
    assert r.cell == Cell("after", "one_shot", "filters", "global", "lwm")
    assert r.pretraining == "pgd_at"
    assert all(type(word) is str for word in (*r.cell, r.pretraining))


# ------------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (90, "not a percentage: got 90, did you mean 0.9?"),
        (99.5, "did you mean 0.995?"),
        (1.0, "a sparsity of 1 leaves no network"),
        (1, "a sparsity of 1 leaves no network"),
        (-0.1, "must lie in [0, 1), the share of units to remove; got -0.1"),
        (100, "must lie in [0, 1)"),
        (math.inf, "must lie in [0, 1)"),
        (math.nan, "got NaN"),
        (True, "must be a number in [0, 1), the share of units to remove; got True"),
        ("0.9", "got '0.9'"),
        (None, "got None"),
    ],
)
def test_a_sparsity_that_is_no_share_is_refused(value, sentence):
    with pytest.raises(Invalid, match=re.escape(sentence)):
        Recipe(pipeline="after", sparsity=value)


@given(st.floats(0, 1, exclude_max=True))
def test_any_share_below_one_is_a_sparsity(s):
    assert Recipe(pipeline="after", sparsity=s).sparsity == s


@pytest.mark.parametrize("value", [0, np.float32(0.5), np.float64(0.5)])
def test_numbers_of_numpy_are_numbers(value):
    s = check_sparsity(value)
    assert type(s) is float
    assert s == float(value)


CONTRADICTIONS = [
    ({"pipeline": "after", "criterion": "bcs"}, "needs pipeline 'during', schedule 'one_shot' and structure 'weights'"),
    ({"pipeline": "during", "criterion": "bcs", "structure": "filters"}, "got during, one_shot, filters"),
    ({"pipeline": "during", "criterion": "bcs", "schedule": "iterative"}, "got during, iterative, weights"),
    ({"pipeline": "after", "ramp": "linear"}, "ramp 'linear' belongs to schedule 'iterative'"),
    ({"pipeline": "after", "schedule": "iterative", "ramp": "square"}, "no ramp 'square'"),
    ({"pipeline": "after", "variant": "l1"}, "criterion 'lwm' has no variants, got variant 'l1'"),
    ({"pipeline": "after", "criterion": "lis", "variant": "l1"}, "no variant of lis 'l1'; did you mean 'learned', 'saliency'"),
    (
        {"pipeline": "after", "criterion": "relwm", "variant": "group_lasso"},
        "a group lasso over single weights is the l1 penalty",
    ),
    ({"pipeline": "after", "pretraining": "kd"}, "after's pretraining cannot use 'kd'"),
    ({"pipeline": "before", "training_step": "kd"}, "before's training_step cannot use 'kd'"),
    ({"pipeline": "during", "training_step": "kd"}, "during's training_step cannot use 'kd'"),
    ({"pipeline": "after", "criterion": "hgm", "pruning_step": "natural"}, "gradient of an adversarial loss"),
    ({"pipeline": "before", "criterion": "hgm", "pruning_step": "natural"}, "gradient of an adversarial loss"),
    ({"pipeline": "during", "criterion": "hgm", "training_step": "natural"}, "gradient of an adversarial loss"),
    ({"pipeline": "after", "criterion": "hgm", "pruning_step": "kd"}, "gradient of an adversarial loss"),
    ({"pipeline": "after", "criterion": "solwm", "pruning_step": "none"}, "finds its mask by training"),
    ({"pipeline": "before", "criterion": "lis", "pruning_step": "none"}, "finds its mask by training"),
    ({"pipeline": "before", "criterion": "relwm", "pruning_step": "none"}, "finds its mask by training"),
    ({"pipeline": "after", "criterion": "lwm", "pruning_step": "trades"}, "searches nothing after training"),
    ({"pipeline": "during", "rewind": True}, "nothing to rewind to"),
    ({"pipeline": "before", "rewind": True, "training_step": "none"}, "would leave an untrained network"),
    ({"pipeline": "before", "rewind": 1}, "rewind must be True or False, got 1"),
    (
        {"pipeline": "after", "training_step": "natural"},
        "pipeline 'after' has no stage 'training_step'; its stages are pretraining",
    ),
    ({"pipeline": "before", "finetuning": "natural"}, "pipeline 'before' has no stage 'finetuning'"),
    ({"pipeline": "during", "pruning_step": "natural"}, "pipeline 'during' has no stage 'pruning_step'"),
    ({"pipeline": "after", "pretraining": "none"}, "would leave nothing trained"),
    ({"pipeline": "during", "training_step": "none"}, "would leave nothing trained"),
    ({"pipeline": "after", "pretraining": "robust_dataset"}, "a word of the survey for one method"),
    ({"pipeline": "after", "schedule": "both"}, "a recipe takes one schedule, got 'both'"),
    ({"pipeline": "after", "locality": "unspecified"}, "a recipe takes one locality, got 'unspecified'"),
    ({"pipeline": "after", "seed": -1}, "the seed must be a whole number"),
    ({"pipeline": "after", "seed": 0.5}, "the seed must be a whole number"),
    ({"pipeline": "after", "seed": True}, "the seed must be a whole number"),
    ({"pipeline": "aftre"}, "no pipeline 'aftre'; did you mean 'after'"),
    ({"pipeline": "after", "schedule": "oneshot"}, "did you mean 'one_shot'"),
    ({"pipeline": "after", "structure": "filter"}, "no structure 'filter'; did you mean 'filters'"),
    ({"pipeline": "after", "locality": "globl"}, "did you mean 'global'"),
    ({"pipeline": "after", "criterion": "lmw"}, "no criterion 'lmw'; did you mean"),
    ({"pipeline": "after", "pretraining": "pgd"}, "no objective 'pgd'; did you mean 'pgd_at'"),
    ({"pipeline": "after", "objective": "tradess"}, "did you mean 'trades'"),
    ({"pipeline": "after", "budget": "quik"}, "no budget 'quik'; did you mean 'quick'"),
]


@pytest.mark.parametrize(
    ("options", "sentence"), CONTRADICTIONS, ids=[", ".join(f"{k} {v}" for k, v in o.items()) for o, _ in CONTRADICTIONS]
)
def test_a_contradiction_is_refused_with_a_sentence_that_says_why(options, sentence):
    with pytest.raises(Invalid, match=re.escape(sentence)):
        Recipe(**options)


def test_distillation_and_adversarial_gradients_are_taken_where_they_make_sense():
    assert Recipe(pipeline="after", finetuning="kd").finetuning == "kd"
    assert Recipe(pipeline="after", criterion="lis", pruning_step="kd").pruning_step == "kd"
    for key in ADVERSARIAL:
        assert Recipe(pipeline="during", criterion="hgm", training_step=key).training_step == key
    assert Recipe(pipeline="before", criterion="hgm", pruning_step="none").pruning_step == "none"
    assert {o.value for o in taxonomy.Objective} >= {*TRAINABLE, "none"}


def test_what_is_not_given_is_filled_in():
    assert Recipe(pipeline="after").pruning_step == "none"
    assert Recipe(pipeline="after", criterion="hgm").pruning_step == "pgd_at"
    assert Recipe(pipeline="after", criterion="relwm").variant == "l1"
    assert Recipe(pipeline="after", criterion="relwm", structure="kernels").variant == "group_lasso"
    assert Recipe(pipeline="after", criterion="lis").variant == "learned"
    assert Recipe(pipeline="after", schedule="iterative").ramp == "cubic"
    assert Recipe(pipeline="after").ramp is None
    assert [Recipe(pipeline=p).rewind for p in PIPELINES] == [False, True, False]
    assert Recipe(pipeline="before", training_step="none").rewind is False


def test_fields_and_files_that_are_no_recipe_are_refused():
    with pytest.raises(Invalid, match="no field 'sparcity'; did you mean 'sparsity'"):
        Recipe.from_dict({"pipeline": "after", "sparcity": 0.5})
    with pytest.raises(Invalid, match="a recipe needs a pipeline: after, before, during"):
        Recipe.from_dict({"sparsity": 0.5})
    with pytest.raises(Invalid, match="a budget has no field 'epoch'; did you mean 'epochs'"):
        Recipe.from_dict({"pipeline": "after", "budget": {"epoch": 3}})
    with pytest.raises(Invalid, match="the text is no JSON"):
        Recipe.from_json("{")
    with pytest.raises(Invalid, match="expected a JSON object, got list"):
        Recipe.from_json("[]")
    assert Recipe.from_dict({"pipeline": "after", "objective": "trades"}).pretraining == "trades"


# --------------------------------------------------------------------------------------------------------- surveyed methods


@pytest.mark.parametrize("method", [m.key for m in taxonomy.methods()])
def test_a_surveyed_method_is_a_recipe_or_names_a_cell_of_its_own_that_can_be_made(method):
    try:
        r = apnb.recipe(method, sparsity=0.75)
    except Invalid as told:
        r = eval(re.search(r"apnb\.Recipe\(.*\)", str(told)).group(), {"apnb": apnb})
    assert r.sparsity == 0.75
    for word, words in taxonomy.cell_of(method).items():
        known = {str(w) for w in words} - {"unspecified", "both"}
        assert not known or getattr(r, word) in known, word


def test_an_unknown_method_is_refused_with_the_nearest_names():
    with pytest.raises(Invalid, match="no method 'hydro'; did you mean 'HYDRA'"):
        apnb.recipe("hydro")


def test_a_wrong_sparsity_is_refused_for_a_surveyed_method_too():
    with pytest.raises(Invalid, match=r"did you mean 0\.9\?"):
        apnb.recipe("dnr", sparsity=90)


# -------------------------------------------------------------------------------------------------------------------- plans


def test_a_plan_names_the_numbers_and_the_objectives():
    numbers = Budget(epochs=41, search_epochs=13, finetune_epochs=17, rounds=6, updates=23, points=77)
    for cell in CELLS:
        r = from_cell(cell, sparsity=0.85, budget=numbers, objective="trades")
        text = r.plan()
        assert "85.0%" in text
        assert "77 test images" in text
        assert "41 epochs" in text
        assert "trades" in text
        if r.pipeline == "after":
            assert "17 epochs" in text
            assert ("13 epochs" in text) == r.trains_search
        if r.pipeline == "before":
            assert "13 epochs" in text
        if r.schedule == "iterative":
            assert f"{23 if r.pipeline == 'during' else 6} " in text
            assert "cubic ramp" in text
        if r.criterion == "hgm":
            assert "highest gradient" in text
        assert [line.split(".")[0] for line in text.splitlines()] == [str(i + 1) for i in range(len(text.splitlines()))]


def test_a_plan_never_says_that_everything_or_nothing_is_removed():
    assert "100" not in Recipe(pipeline="after", sparsity=0.9999, budget=Budget()).plan().splitlines()[1]
    for pipeline in PIPELINES:
        assert "0.0%" not in Recipe(pipeline=pipeline, sparsity=0).plan()


def test_a_plan_says_when_nothing_is_trained_and_when_weights_go_back():
    assert "Do not train any further" in Recipe(pipeline="after", finetuning="none").plan()
    assert "Score the untrained network" in Recipe(pipeline="before", pruning_step="none").plan()
    assert "Go back to the first weights" in Recipe(pipeline="before").plan()
    assert "Keep the weights reached" in Recipe(pipeline="before", rewind=False).plan()
    assert "from the pretrained weights each time" in Recipe(pipeline="after", rewind=True).plan()
    assert "all test images" in Recipe(pipeline="after", budget=Budget(points=None)).plan()
    assert "Attack 7 test images" in Recipe(pipeline="after").plan(points=7)
    assert "Attack 7 test images" in apnb.recipe("hydra").plan(points=7)


def test_labels_tell_recipes_of_different_cells_apart():
    labels = {from_cell(cell).label for cell in CELLS}
    assert len(labels) == 242


# ------------------------------------------------------------------------------------------------------------------- budgets


@pytest.mark.parametrize("name", ["epochs", "search_epochs", "batch", "attack_steps", "rounds", "updates", "dual_period"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3", None])
def test_a_count_that_is_no_whole_number_above_zero_is_refused(name, value):
    with pytest.raises(Invalid, match=f"budget: {name} must be a whole number of at least 1, got {value!r}"):
        Budget(**{name: value})


@pytest.mark.parametrize("name", ["images", "points"])
def test_a_number_of_images_is_a_whole_number_or_none_for_all(name):
    assert getattr(Budget(**{name: None}), name) is None
    for value in (0, 1.5, True, "all"):
        with pytest.raises(Invalid, match=f"budget: {name} must be a whole number of at least 1, or None for all"):
            Budget(**{name: value})


@pytest.mark.parametrize("name", ["lr", "finetune_lr", "weight_decay", "strength", "rho", "rho_growth"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, True, "0.1"])
def test_a_rate_that_is_no_finite_number_above_zero_is_refused(name, value):
    with pytest.raises(Invalid, match=f"budget: {name} must be a number of at least 0"):
        Budget(**{name: value})


def test_no_images_may_be_checked_after_a_cut_but_not_fewer():
    assert Budget(check=0).check == 0
    with pytest.raises(Invalid, match="budget: check must be a whole number of at least 0, got -1"):
        Budget(check=-1)


def test_budget_names_mean_less_work_for_large_images_and_a_budget_of_ones_own_is_taken_as_it_is():
    for name in BUDGETS:
        assert budget(name, 64).name == budget(name, 3072).name == name
        assert budget(name, 3072).epochs <= budget(name, 64).epochs
    own = Budget(epochs=3)
    assert budget(own) is own
    assert own.name == "custom"
    assert json.loads(Recipe(pipeline="after", budget=own).to_json())["budget"]["epochs"] == 3


def test_what_is_only_measured_does_not_decide_what_is_computed():
    assert Budget(points=3, check=5, name="a").training() == Budget(points=9, check=0, name="b").training()
    assert Budget(epochs=3).training() != Budget(epochs=4).training()
