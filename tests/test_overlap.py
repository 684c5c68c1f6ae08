"""Which weights different criteria keep: overlaps, their chance level, the figures, and the scores that a recipe cuts by."""

import pytest
import torch

from apnb import masks, plots, scores
from apnb.errors import Invalid
from apnb.recipes import Budget, Recipe
from apnb.recipes import recipe as apnb_recipe
from apnb.runs import run

A = {"one": torch.tensor([True, True, False, False]), "two": torch.tensor([True] * 2 + [False] * 8)}
B = {"one": torch.tensor([True, False, True, False]), "two": torch.tensor([False] * 6 + [True] * 4)}


def random_masks(density, generator, sizes=(4000, 20000)):
    return {f"layer {i}": torch.rand(n, generator=generator) < density for i, n in enumerate(sizes)}


def test_the_overlap_is_the_share_of_the_firsts_weights_that_the_second_keeps_too():
    assert masks.overlap(A, B) == 1 / 4
    assert masks.overlap(B, A) == 1 / 6
    assert masks.overlap(A, A) == 1


def test_the_chance_level_keeps_each_layers_count():
    assert masks.chance_overlap(A, B) == pytest.approx((2 * 0.5 + 2 * 0.4) / 4)
    assert masks.chance_overlap(B, A) == pytest.approx((2 * 0.5 + 4 * 0.2) / 6)


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_two_random_masks_of_density_d_share_d_of_their_weights_and_chance_says_so(density):
    draw = torch.Generator().manual_seed(0)
    a, b = random_masks(density, draw), random_masks(density, draw)
    assert masks.overlap(a, b) == pytest.approx(density, abs=0.02)
    assert masks.chance_overlap(a, b) == pytest.approx(density, abs=0.02)


def test_agreement_about_layers_alone_is_seen_in_the_chance_level():
    draw = torch.Generator().manual_seed(0)
    a, b = (
        {"small": torch.rand(5000, generator=draw) < 0.8, "large": torch.rand(45000, generator=draw) < 0.02} for _ in range(2)
    )
    density = sum(int(m.sum()) for m in a.values()) / 50000
    assert masks.overlap(a, b) == pytest.approx(masks.chance_overlap(a, b), abs=0.02)
    assert masks.overlap(a, b) > 5 * density


def test_masks_of_different_networks_and_empty_ones_are_refused():
    for f in (masks.overlap, masks.chance_overlap):
        with pytest.raises(Invalid, match="one network"):
            f(A, {"three": A["one"]})
        with pytest.raises(Invalid, match="one network"):
            f(A, {"one": torch.ones(5, dtype=torch.bool)})
        with pytest.raises(Invalid, match="keeps nothing"):
            f({"one": torch.zeros(4, dtype=torch.bool)}, A)


def test_the_heatmap_tells_the_overlap_of_each_pair_and_chance_when_hovering():
    heat = plots.overlap({"a": A, "b": B}).data[0]
    assert [list(row) for row in heat.z] == [[100, 25], [pytest.approx(100 / 6, abs=0.01), 100]]
    assert heat.customdata[0][1] == pytest.approx(45)
    with pytest.raises(Invalid, match="at least two"):
        plots.overlap({"a": A})


def test_layer_shares_are_in_percent_of_each_layer_and_the_grey_line_is_the_density():
    figure = plots.layer_shares({"a": A, "b": B})
    assert [list(t.y) for t in figure.data] == [[50, 20], [50, 40]]
    assert figure.layout.shapes[0].y0 == pytest.approx(100 * 4 / 14)
    with pytest.raises(Invalid, match="got 8"):
        plots.layer_shares({str(i): A for i in range(8)})


def test_a_layer_of_high_scores_stands_on_the_right_and_a_layer_like_the_whole_is_flat():
    spread = torch.arange(1000.0)
    figure = plots.ranks({"low.weight": spread[:500], "high.weight": spread[500:]}, bins=10)
    low, high = (list(t.y) for t in figure.data)
    assert low == [20] * 5 + [0] * 5 and high == low[::-1]
    flat = plots.ranks({"even": spread[::2], "odd": spread[1::2]}, bins=10)
    assert all(y == pytest.approx(10, abs=0.5) for t in flat.data for y in t.y)
    negative = plots.ranks({"low.weight": -spread[500:], "high.weight": -spread[:500]}, bins=10)
    assert list(negative.data[0].y) == low


TINY = Budget(
    name="own", epochs=1, search_epochs=1, finetune_epochs=1, attack_steps=1, images=128, points=20, check=0, dual_period=1
)


@pytest.mark.parametrize("criterion", ["lwm", "solwm", "lis", "hgm", "random"])
def test_the_scores_of_a_recipe_are_those_by_which_its_run_cuts(criterion, tmp_path):
    recipe = Recipe(pipeline="after", sparsity=0.9, budget=TINY, criterion=criterion)
    found = scores.of(recipe, store=tmp_path)
    done = run(recipe, evaluate=False, store=tmp_path)
    kept = masks.select(found, masks.drop_counts({n: s.numel() for n, s in found.items()}, 0.9, "global"))
    assert kept.keys() == done.masks.keys() and all(torch.equal(kept[n], done.masks[n]) for n in kept)
    again = scores.of(recipe, store=tmp_path)
    assert all(torch.equal(found[n], again[n]) for n in found)


def test_scores_are_refused_where_there_is_no_single_cut_after_training(tmp_path):
    several = Recipe(pipeline="after", schedule="iterative", sparsity=0.9)
    for recipe in (Recipe(pipeline="before", sparsity=0.9), several, apnb_recipe("hydra", sparsity=0.9)):
        with pytest.raises(Invalid, match="one cut after training"):
            scores.of(recipe, store=tmp_path)
