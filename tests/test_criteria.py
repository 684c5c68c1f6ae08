"""Criteria: each score by its formula, and which end of the ranking goes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from apnb.criteria import CRITERIA, Criterion, Setting, criterion, variants
from apnb.errors import Invalid
from apnb.masks import Target
from apnb.mechanisms import Admm, Connectivity, LearnedScores, Mechanism, Progress, Regularised
from apnb.networks import layers
from apnb.objectives import objective
from apnb.recipes import Budget, Recipe
from apnb.training import mean_statistic

NORMS = ("bn1.weight", "bn1.bias")


class Net(nn.Module):
    """A convolution, a norm, a flattening, a linear layer; for images of 1x4x4."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.relu1 = nn.ReLU()
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(96, 3)

    def forward(self, x):
        return self.linear(self.flatten(self.relu1(self.bn1(self.conv1(x)))))


LAYERS = layers(Net(), torch.rand(2, 1, 4, 4))


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def made(seed=0):
    net = Net()
    g = draw(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.3)
    return net


def weights_of(net):
    return {n: p.detach() for n, p in net.named_parameters()}


def batches(n=3, size=32):
    g = draw(7)
    return [(torch.rand(size, 1, 4, 4, generator=g), torch.randint(3, (size,), generator=g)) for _ in range(n)]


def setting(net, structure="weights", **budget):
    target = Target(LAYERS, structure, "global", 0.5)
    return Setting(dict(net.named_parameters()), target, Budget(**budget), NORMS, draw())


def statistic_of(net, key, attack, data, scale=1.0):
    """The mean statistic of a criterion on some batches, with the loss multiplied by ``scale``."""
    inner = objective(attack, eps=0.1, steps=3, generator=draw())

    def scaled(model, x, y, at):
        loss, logits = inner(model, x, y, at)
        return scale * loss, logits

    c = criterion(*key)
    return c, mean_statistic(net, iter(data), scaled, c.statistic)


def test_magnitude_is_the_absolute_weight():
    weights = weights_of(made())
    c = criterion("lwm")
    assert c.search(setting(made())) is None
    scores = c.scores(weights, None, None, draw())
    assert all(torch.equal(scores[n], weights[n].abs()) for n in ("conv1.weight", "linear.weight"))


@pytest.mark.parametrize("variant", ["l1", "group_lasso"])
def test_regularised_magnitude_trains_with_the_penalty_of_the_budget_and_reads_magnitudes(variant):
    net = made()
    c = criterion("relwm", variant)
    search = c.search(setting(net, "filters", strength=0.25))
    assert isinstance(search, Regularised)
    w = weights_of(net)["conv1.weight"].double()
    expected = 0.25 * float(w.abs().sum() if variant == "l1" else 3 * w.flatten(1).norm(dim=1).sum())
    assert float(search.penalty(dict(net.named_parameters()), Progress()).detach()) == pytest.approx(expected, rel=1e-5)
    weights = weights_of(net)
    assert torch.equal(c.scores(weights, search, None, draw())["conv1.weight"], weights["conv1.weight"].abs())


def test_solver_magnitude_is_the_absolute_sum_of_weight_and_dual():
    net = made()
    c = criterion("solwm")
    search = c.search(setting(net, rho=0.02, rho_growth=1.5, dual_period=3))
    assert isinstance(search, Admm)
    assert (search.rho, search.growth, search.period) == (0.02, 1.5, 3)
    for u in search.U.values():
        u.copy_(torch.randn(u.shape, generator=draw(3)))
    weights = weights_of(net)
    scores = c.scores(weights, search, None, draw())
    assert all(torch.equal(scores[n], (weights[n] + search.U[n]).abs()) for n in ("conv1.weight", "linear.weight"))


def test_learned_importance_is_the_absolute_learned_score():
    net = made()
    c = criterion("lis")
    search = c.search(setting(net))
    assert isinstance(search, LearnedScores)
    with torch.no_grad():
        for s in search.scores.values():
            s.copy_(torch.randn(s.shape, generator=draw(3)))
    scores = c.scores(weights_of(net), search, None, draw())
    assert all(torch.equal(scores[n], s.detach().abs()) for n, s in search.scores.items())
    assert not any(s.requires_grad for s in scores.values())


def test_connectivity_is_read_off_its_search():
    net = made()
    c = criterion("bcs")
    search = c.search(setting(net, weight_decay=0.01))
    assert isinstance(search, Connectivity)
    assert search.decay == 0.01
    assert c.keeps_masks
    with pytest.raises(TypeError, match="defines no scores"):
        c.scores(weights_of(net), search, None, draw())


def test_random_scores_are_a_function_of_the_generator_and_new_at_each_selection():
    weights = weights_of(made())
    c = criterion("random")
    g, h = draw(5), draw(5)
    first, second = c.scores(weights, None, None, g), c.scores(weights, None, None, g)
    again = c.scores(weights, None, None, h)
    for n in ("conv1.weight", "linear.weight"):
        assert first[n].shape == weights[n].shape
        assert torch.equal(first[n], again[n])
        assert not torch.equal(first[n], second[n])
        assert float(first[n].min()) >= 0
        assert float(first[n].max()) < 1


# ------------------------------------------------------------------------------------------------- statistics of a gradient


def test_saliency_is_the_loss_change_of_a_weight_that_goes_to_first_order():
    """|L(w - t w) - L(w + t w)| / 2t for a small t: finite differences in double precision."""
    net = made().double().eval()
    x, y = (batches(1)[0][0].double(), batches(1)[0][1])
    c = criterion("lis", "saliency")
    mean = mean_statistic(net, iter([(x, y)]), objective("natural", eps=0.1, steps=1, generator=draw()), c.statistic)
    scores = c.scores(weights_of(net), None, mean, draw())
    t = 1e-5
    for name in ("conv1.weight", "linear.weight"):
        w = dict(net.named_parameters())[name].data.view(-1)
        for i in range(0, w.numel(), 7):
            value = float(w[i])
            losses = []
            for sign in (-1, 1):
                w[i] = value * (1 + sign * t)
                with torch.no_grad():
                    losses.append(float(F.cross_entropy(net(x), y)))
            w[i] = value
            change = abs(losses[0] - losses[1]) / (2 * t)
            assert float(scores[name].view(-1)[i]) == pytest.approx(change, rel=1e-3, abs=1e-9)


def test_a_gradient_criterion_averages_absolute_values_over_batches():
    net, data = made(), batches(3)
    for key, read in ((("hgm",), lambda w, g: -g.abs()), (("lis", "saliency"), lambda w, g: (w * g).abs())):
        c, mean = statistic_of(net, key, "natural", data)
        scores = c.scores(weights_of(net), None, mean, draw())
        by_hand = {}
        net.eval()
        for x, y in data:
            grads = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
            for (n, p), g in zip(net.named_parameters(), grads, strict=True):
                by_hand.setdefault(n, []).append(read(p.detach(), g))
        for n in ("conv1.weight", "linear.weight"):
            torch.testing.assert_close(scores[n], torch.stack(by_hand[n]).mean(0))


def test_highest_gradient_statistics_are_never_negative_and_scale_with_the_loss():
    net, data = made(), batches(2)
    _, once = statistic_of(net, ("hgm",), "pgd_at", data)
    _, thrice = statistic_of(net, ("hgm",), "pgd_at", data, scale=3.0)
    for n in ("conv1.weight", "linear.weight"):
        assert (once[n] >= 0).all()
        assert (once[n] > 0).any()
        torch.testing.assert_close(thrice[n], 3 * once[n], rtol=1e-4, atol=1e-8)


def test_a_filter_that_does_not_reach_the_logits_has_no_gradient_and_is_the_last_to_go():
    net, data = made(), batches(2)
    with torch.no_grad():
        net.bn1.bias.fill_(2.0)  # no filter is silent of its own
        net.linear.weight[:, 32:48] = 0  # the columns of the third map
    c, mean = statistic_of(net, ("hgm",), "pgd_at", data)
    assert (mean["conv1.weight"][2] == 0).all()
    assert all((mean["conv1.weight"][o] > 0).any() for o in (0, 1, 3, 4, 5))
    scores = c.scores(weights_of(net), None, mean, draw())
    kept = Target(LAYERS, "filters", "local", 5 / 6).units(scores)["conv1.weight"]
    assert kept.tolist() == [False, False, True, False, False, False]


def test_what_goes_has_the_highest_mean_gradient_and_kept_sets_are_nested():
    net, data = made(), batches(2)
    c, mean = statistic_of(net, ("hgm",), "pgd_at", data)
    scores = c.scores(weights_of(net), None, mean, draw())
    filters = mean["conv1.weight"].flatten(1).mean(1)
    before = torch.ones(6, dtype=torch.bool)
    for gone in range(1, 6):
        kept = Target(LAYERS, "filters", "local", gone / 6).units(scores)["conv1.weight"]
        assert int((~kept).sum()) == gone
        assert filters[~kept].min() >= filters[kept].max()
        assert not (kept & ~before).any()
        before = kept


def test_a_planted_filter_that_carries_a_fragile_trigger_to_the_logits_is_the_first_to_go():
    """A checkerboard of amplitude below eps decides the class through one filter; the attack turns it round."""
    net = made().eval()
    high = torch.tensor([[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]])
    with torch.no_grad():
        net.conv1.weight.mul_(0.1)
        net.conv1.weight[4, 0] = high
        net.bn1.weight.fill_(1.0)
        net.bn1.bias.zero_()
        net.linear.weight.mul_(0.1)
        signs = (-1.0) ** (torch.arange(4)[:, None] + torch.arange(4))
        net.linear.weight[:, 64:80] = torch.stack([signs.flatten(), -signs.flatten(), torch.zeros(16)])
        net.linear.bias.zero_()
    g = draw(9)
    y = torch.randint(2, (64,), generator=g)
    x = 0.5 + 0.05 * (1 - 2.0 * y)[:, None, None, None] * signs + 0.05 * (torch.rand(64, 1, 4, 4, generator=g) - 0.5)
    assert float((net(x).argmax(1) == y).double().mean()) == 1.0
    c, mean = statistic_of(net, ("hgm",), "pgd_at", [(x, y)])
    scores = c.scores(weights_of(net), None, mean, draw())
    kept = Target(LAYERS, "filters", "local", 1 / 6).units(scores)["conv1.weight"]
    assert kept.tolist() == [True, True, True, True, False, True]


# ----------------------------------------------------------------------------------------------------------------- look-up


def test_every_criterion_and_variant_can_be_made_and_the_words_are_those_of_recipes():
    from apnb import recipes

    assert set(CRITERIA) == {*recipes.CRITERIA, recipes.CONTROL}
    assert {k: variants(k) for k in CRITERIA if variants(k)} == recipes.VARIANTS
    for key, forms in CRITERIA.items():
        for variant in forms:
            assert isinstance(criterion(key, variant), forms[variant])
    net = made()
    searching = {k for k in CRITERIA if isinstance(criterion(k).search(setting(net)), Mechanism)}
    assert searching == {"relwm", "solwm", "lis", "bcs"}
    assert {k for k in CRITERIA if criterion(k).statistic} == {"hgm"}
    assert criterion("lis", "saliency").statistic is not None


def test_unknown_criteria_and_variants_are_refused():
    with pytest.raises(Invalid, match="no criterion 'lvm'; did you mean 'lwm'"):
        criterion("lvm")
    with pytest.raises(Invalid, match="its variants are: l1, group_lasso"):
        criterion("relwm", "l3")
    with pytest.raises(Invalid, match="its variants are: none"):
        criterion("lwm", "l1")


@pytest.mark.parametrize("key", CRITERIA)
def test_recipes_and_criteria_agree_on_who_searches_and_who_reads_gradients(key):
    for variant in CRITERIA[key]:
        made = criterion(key, variant)
        recipe = Recipe(
            pipeline="during", criterion=key, variant=variant or None, structure="filters" if key == "relwm" else "weights"
        )
        assert recipe.reads_gradients == (made.statistic is not None)
        assert recipe.trains_search == (type(made).search is not Criterion.search and not made.keeps_masks)
