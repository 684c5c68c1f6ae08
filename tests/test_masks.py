"""Masks: exact counts, ties by position, units removed whole, and an accounting that agrees with direct counting."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from apnb.errors import Invalid
from apnb.masks import Target, account, drop_counts, expand, group, in_scope, ramp, select, unit_counts
from apnb.networks import layers

STRUCTURES = ("weights", "filters", "channels", "kernels")
LOCALITIES = ("local", "global")


class Net(nn.Module):
    """Two convolutions, a flattening of 4 maps of 2x2, two linear layers; for images of 1x4x4."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 3, 3, padding=1)
        self.conv2 = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(16, 5)
        self.linear = nn.Linear(5, 3)

    def forward(self, x):
        return self.linear(self.hidden(self.flatten(self.conv2(self.conv1(x)))))


LAYERS = layers(Net(), torch.rand(2, 1, 4, 4))
UNITS = {  # counted by hand
    "weights": {"conv1.weight": 27, "conv2.weight": 108, "hidden.weight": 80, "linear.weight": 15},
    "filters": {"conv1.weight": 3, "conv2.weight": 4, "hidden.weight": 5},
    "channels": {"conv2.weight": 3, "hidden.weight": 4, "linear.weight": 5},
    "kernels": {"conv1.weight": 3, "conv2.weight": 12},
}


def entries(structure, name, unit, w):
    """A weight's entries that belong to a unit, by plain indexing; ``unit`` is a position in the unit scores."""
    if structure == "weights":
        return w[unit].reshape(1)
    if structure == "filters":
        return w[unit].flatten()
    if structure == "kernels":
        return w[unit].flatten()
    maps = 4 if name == "hidden.weight" else 1
    return w[:, unit[0] * maps : (unit[0] + 1) * maps].flatten()


def random_scores(seed):
    g = torch.Generator().manual_seed(seed)
    return {layer.name: torch.randn(layer.shape, generator=g) for layer in LAYERS}


# Few values, so that most are tied, with the extremes of float32 among them.
awkward = st.one_of(
    st.sampled_from([-math.inf, -3.4e38, -1.0, 0.0, 1e-45, 1.0, 3.4e38]), st.floats(-(2.0**99), 2.0**99, width=32)
)
vectors = st.one_of(
    st.lists(awkward, min_size=1, max_size=40), st.integers(1, 40).flatmap(lambda n: awkward.map(lambda v: [v] * n))
)


def stable_drop(values, drop, protected=()):
    """Positions that stay when the ``drop`` lowest go, the first among equals first: by Python's stable sort."""
    order = sorted((i for i in range(len(values)) if i not in protected), key=lambda i: values[i])
    return [i not in set(order[:drop]) for i in range(len(values))]


@given(st.lists(vectors, min_size=1, max_size=4), st.data())
def test_local_selection_drops_what_a_stable_sort_drops(values, data):
    scores = {str(i): torch.tensor(v) for i, v in enumerate(values)}
    drop = {n: data.draw(st.integers(0, s.numel() - 1)) for n, s in scores.items()}
    kept = select(scores, drop)
    for n, s in scores.items():
        assert kept[n].dtype == torch.bool
        assert int(kept[n].sum()) == s.numel() - drop[n]
        assert kept[n].tolist() == stable_drop(s.tolist(), drop[n])


@given(st.lists(vectors, min_size=1, max_size=4), st.data())
def test_global_selection_drops_what_a_stable_sort_drops_with_the_best_of_each_tensor_protected(values, data):
    scores = {str(i): torch.tensor(v) for i, v in enumerate(values)}
    total = sum(s.numel() for s in scores.values())
    drop = data.draw(st.integers(0, total - len(scores)))
    kept = select(scores, drop)
    protected, flat, start = set(), [], 0
    for s in scores.values():
        protected.add(start + s.tolist().index(max(s.tolist())))
        flat += s.tolist()
        start += s.numel()
    assert torch.cat(list(kept.values())).tolist() == stable_drop(flat, drop, protected)
    assert sum(int(m.sum()) for m in kept.values()) == total - drop
    assert all(m.any() for m in kept.values())


@given(st.lists(vectors, min_size=1, max_size=4), st.data())
def test_without_protection_the_lowest_of_all_go_even_if_a_tensor_is_emptied(values, data):
    scores = {str(i): torch.tensor(v) for i, v in enumerate(values)}
    flat = [x for v in values for x in v]
    drop = data.draw(st.integers(0, len(flat) - 1))
    kept = select(scores, drop, spare=False)
    assert torch.cat(list(kept.values())).tolist() == stable_drop(flat, drop)
    with pytest.raises(Invalid, match="a network keeps at least one"):
        select(scores, len(flat), spare=False)


def test_selection_keeps_the_shape_and_a_higher_score():
    kept = select({"w": torch.tensor([[3.0, 1.0], [2.0, 4.0]])}, {"w": 2})
    assert kept["w"].tolist() == [[True, False], [False, True]]


def test_an_infinite_score_does_not_empty_another_layer():
    inf = math.inf
    kept = select({"a": torch.tensor([inf]), "b": torch.tensor([inf, inf, 1.0])}, 2)
    assert [int(m.sum()) for m in kept.values()] == [1, 1]


@pytest.mark.parametrize("drop", [{"w": 1}, 1], ids=["local", "global"])
def test_scores_that_are_no_numbers_are_refused(drop):
    with pytest.raises(Invalid, match="NaN"):
        select({"w": torch.tensor([math.nan, 1.0, 2.0])}, drop)


@pytest.mark.parametrize("drop", [{"w": 4}, {"w": 5}, {"w": -1}, 4, 5, -1])
def test_dropping_a_whole_layer_or_a_negative_number_is_refused(drop):
    with pytest.raises(Invalid, match="cannot drop"):
        select({"w": torch.arange(4.0)}, drop)


def test_a_global_drop_that_leaves_fewer_units_than_layers_is_refused():
    scores = {"a": torch.arange(4.0), "b": torch.arange(4.0)}
    assert sum(int(m.sum()) for m in select(scores, 6).values()) == 2
    with pytest.raises(Invalid, match="cannot drop 7 of 8 units in 2 layers"):
        select(scores, 7)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=6), st.floats(0, 1, exclude_max=True))
def test_local_counts_are_rounded_and_leave_one_unit(sizes, s):
    named = {str(i): n for i, n in enumerate(sizes)}
    assert drop_counts(named, s, "local") == {k: min(round(s * n), n - 1) for k, n in named.items()}


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=6), st.floats(0, 1, exclude_max=True))
def test_the_global_count_is_rounded_and_one_that_cannot_be_met_is_refused_with_the_highest_possible(sizes, s):
    named, total = {str(i): n for i, n in enumerate(sizes)}, sum(sizes)
    if total - round(s * total) >= len(sizes):
        assert drop_counts(named, s, "global") == round(s * total)
    else:
        with pytest.raises(Invalid, match="needs one") as refused:
            drop_counts(named, s, "global")
        highest = float(str(refused.value).rsplit(" ", 1)[1])
        assert total - drop_counts(named, highest, "global") >= len(sizes)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_scope_of_a_structure_and_its_units_are_those_counted_by_hand(structure):
    assert [layer.name for layer in in_scope(LAYERS, structure)] == list(UNITS[structure])
    assert unit_counts(LAYERS, structure) == UNITS[structure]


def test_kernels_leave_linear_layers_alone_filters_the_last_one_and_channels_the_first():
    assert all("conv" in name for name in UNITS["kernels"])
    scope = {s: {layer.name for layer in in_scope(LAYERS, s)} for s in STRUCTURES}
    assert scope["weights"] - scope["filters"] == {"linear.weight"}
    assert scope["weights"] - scope["channels"] == {"conv1.weight"}


def test_unknown_structures_and_networks_without_the_structure_are_refused():
    with pytest.raises(Invalid, match="no structure 'rows'"):
        in_scope(LAYERS, "rows")
    only_linear = layers(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(2, 1, 4, 4))
    with pytest.raises(Invalid, match="no layer with kernels"):
        in_scope(only_linear, "kernels")
    grouped = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(Invalid, match="ungrouped"):
        in_scope(layers(grouped, torch.rand(2, 2, 1, 1)), "channels")


@pytest.mark.parametrize("structure", STRUCTURES)
@given(seed=st.integers(0, 99))
def test_the_score_of_a_unit_is_the_mean_over_its_entries(structure, seed):
    scores = random_scores(seed)
    units = group(scores, structure, LAYERS)
    assert {n: u.numel() for n, u in units.items()} == UNITS[structure]
    for name, u in units.items():
        for at in torch.cartesian_prod(*(torch.arange(n) for n in u.shape)).reshape(u.numel(), -1).tolist():
            expected = entries(structure, name, tuple(at), scores[name]).double().mean()
            assert float(u[tuple(at)]) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("structure", STRUCTURES)
@given(seed=st.integers(0, 99))
def test_a_unit_is_removed_whole_and_nothing_else_is(structure, seed):
    g = torch.Generator().manual_seed(seed)
    units = {n: torch.rand(u.shape, generator=g) < 0.5 for n, u in group(random_scores(0), structure, LAYERS).items()}
    masks = expand(units, structure, LAYERS)
    shapes = {layer.name: layer.shape for layer in LAYERS}
    assert {n: tuple(m.shape) for n, m in masks.items()} == {n: shapes[n] for n in UNITS[structure]}
    for name, u in units.items():
        for at in torch.cartesian_prod(*(torch.arange(n) for n in u.shape)).reshape(u.numel(), -1).tolist():
            assert (entries(structure, name, tuple(at), masks[name]) == u[tuple(at)]).all()
    back = group({n: m.float() for n, m in masks.items()}, structure, LAYERS)
    assert all(torch.equal(back[n], u.float()) for n, u in units.items())


@pytest.mark.parametrize("locality", LOCALITIES)
@pytest.mark.parametrize("structure", STRUCTURES)
@given(seed=st.integers(0, 99), shares=st.lists(st.floats(0, 0.7), min_size=2, max_size=4))
def test_a_selection_within_masks_is_exact_and_never_revives(structure, locality, seed, shares):
    within = None
    for i, s in enumerate(sorted(shares)):
        target = Target(LAYERS, structure, locality, s)
        masks = target.select(random_scores(seed + i), within)  # other scores in every round
        if within is not None:
            assert not any((m & ~within[n]).any() for n, m in masks.items())
        kept = {n: int((u > 0).sum()) for n, u in group({n: m.float() for n, m in masks.items()}, structure, LAYERS).items()}
        sizes, total = UNITS[structure], sum(UNITS[structure].values())
        if locality == "local":
            assert kept == {n: k - min(round(s * k), k - 1) for n, k in sizes.items()}
        else:
            assert sum(kept.values()) == total - round(s * total)
            assert min(kept.values()) >= 1
        within = masks


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_selection_keeps_the_units_of_the_highest_mean_score(structure):
    scores = random_scores(3)
    units = group(scores, structure, LAYERS)
    kept = Target(LAYERS, structure, "local", 0.5).units(scores)
    assert all(units[n][m].min() >= units[n][~m].max() for n, m in kept.items() if not m.all())


@pytest.mark.parametrize("kind", ["linear", "cubic"])
@given(s=st.floats(0, 1, exclude_max=True), rounds=st.integers(1, 30))
def test_a_ramp_never_falls_and_ends_exactly_in_the_target(kind, s, rounds):
    r = ramp(s, rounds, kind)
    assert len(r) == rounds
    assert r[-1] == s
    assert all(a <= b for a, b in itertools.pairwise(r))
    for t in range(1, rounds + 1):
        share = t / rounds if kind == "linear" else 1 - (1 - t / rounds) ** 3
        assert r[t - 1] == pytest.approx(s * share, abs=1e-12)


def test_half_way_a_cubic_ramp_has_removed_seven_eighths():
    assert ramp(0.8, 2, "cubic") == pytest.approx((0.7, 0.8))
    assert ramp(0.8, 2, "linear") == pytest.approx((0.4, 0.8))
    with pytest.raises(Invalid, match="no ramp 'square'"):
        ramp(0.8, 2, "square")


@pytest.mark.parametrize("locality", LOCALITIES)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_account_agrees_with_direct_counting(structure, locality):
    net = Net()
    parameters = sum(p.numel() for p in net.parameters())
    masks = Target(LAYERS, structure, locality, 0.6).select(random_scores(1))
    told = account(masks, LAYERS, structure, 0.6, parameters)
    zeros = {layer.name: int((~masks[layer.name]).sum()) if layer.name in masks else 0 for layer in LAYERS}
    sizes = {layer.name: math.prod(layer.shape) for layer in LAYERS}
    units = group({n: m.float() for n, m in masks.items()}, structure, LAYERS)
    kept = {n: int(u.bool().sum()) for n, u in units.items()}
    assert (told.asked, told.kept, told.total) == (0.6, sum(kept.values()), sum(UNITS[structure].values()))
    assert told.units == pytest.approx(1 - told.kept / told.total)
    assert told.weights == pytest.approx(sum(zeros.values()) / 230)
    assert told.parameters == pytest.approx(sum(zeros.values()) / parameters)
    assert told.per_layer == pytest.approx({n: 1 - zeros[n] / sizes[n] for n in sizes})
    assert told.collapsed == tuple(n for n, k in kept.items() if k == 1 and UNITS[structure][n] > 1)
    assert told.empty == ()


def test_the_account_names_collapsed_and_empty_layers():
    masks = {layer.name: torch.ones(layer.shape, dtype=torch.bool) for layer in in_scope(LAYERS, "filters")}
    masks["conv1.weight"][1:] = False
    masks["hidden.weight"][:] = False
    told = account(masks, LAYERS, "filters", 0.5, 1000)
    assert (told.collapsed, told.empty) == (("conv1.weight",), ("hidden.weight",))
    assert (told.kept, told.total) == (1 + 4 + 0, 12)
    assert told.per_layer == {"conv1.weight": pytest.approx(1 / 3), "conv2.weight": 1, "hidden.weight": 0, "linear.weight": 1}


def test_masked_norms_count_as_parameters_and_not_as_weights():
    masks = {layer.name: torch.ones(layer.shape, dtype=torch.bool) for layer in LAYERS}
    masks["conv1.weight"][0] = False
    masks["conv1.bias"] = torch.tensor([False, True, True])
    told = account(masks, LAYERS, "weights", 0.0, 242)
    assert told.weights == pytest.approx(9 / 230)
    assert told.parameters == pytest.approx(10 / 242)
