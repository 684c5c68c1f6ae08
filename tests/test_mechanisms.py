"""Mechanisms: values, gradients and counts worked out by hand or by an independent route."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from apnb.masks import Target
from apnb.mechanisms import (
    Admm,
    Connectivity,
    Dynamic,
    FixedMasks,
    LearnedScores,
    Mechanism,
    Progress,
    Regularised,
    Within,
    load_state,
    state_of,
    through,
)
from apnb.networks import layers
from apnb.store import load_tree, save_tree
from apnb.training import Model, bake_, sgd
from tests.helpers import same

LOCALITIES = ("local", "global")


class Net(nn.Module):
    """Two convolutions with norms, a flattening of 4 maps of 2x2, two linear layers; for images of 1x4x4."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(6, 4, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.relu2 = nn.ReLU()
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(16, 8)
        self.linear = nn.Linear(8, 3)

    def forward(self, x):
        x = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))
        return self.linear(self.hidden(self.flatten(x)))


NORMS = ("bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias")
LAYERS = layers(Net(), torch.rand(2, 1, 4, 4))
SIZES = {"conv1.weight": 54, "conv2.weight": 216, "hidden.weight": 128, "linear.weight": 24}
TOTAL = sum(SIZES.values())


def random_generator(seed=0):
    return torch.Generator().manual_seed(seed)


def made(seed=0):
    """A network with reproducible weights, and its parameters."""
    net = Net()
    g = random_generator(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.3)
    return net, dict(net.named_parameters())


def batch(seed=0, n=16):
    g = random_generator(seed + 100)
    return torch.rand(n, 1, 4, 4, generator=g), torch.randint(3, (n,), generator=g)


def target(sparsity=0.5, structure="weights", locality="global"):
    return Target(LAYERS, structure, locality, sparsity)


def train(net, mechanism, steps, lr=0.05, weight_decay=5e-4, first=0):
    """Ordinary steps on random batches, one a turn; yields after each."""
    params = dict(net.named_parameters())
    opt = sgd(mechanism.groups(params), weight_decay=weight_decay)
    for g in opt.param_groups:
        g["lr"] = lr
    at = Progress(epochs=1, steps=steps, params=params, optimizer=opt, lr=lr)
    for i in range(first, first + steps):
        x, y = batch(i)
        model = Model(net, params, mechanism)
        loss = F.cross_entropy(model(x), y) + mechanism.penalty(params, at)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        at.step = i
        mechanism.update(opt, at)
        yield at


# ------------------------------------------------------------------------------------------------------------ straight-through


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20))
def test_through_has_the_value_of_the_hard_and_the_gradient_of_the_sum_of_the_soft(values):
    hard = torch.tensor(values, requires_grad=True)
    a = torch.linspace(-3, 3, len(values), requires_grad=True)
    k = torch.tensor(0.7, requires_grad=True)  # broadcast: its gradient is the sum
    out = through(hard, 2 * a, k)
    assert torch.equal(out, hard)
    weight = torch.arange(1.0, len(values) + 1)
    (out * weight).sum().backward()
    assert hard.grad is None
    torch.testing.assert_close(a.grad, 2 * weight)
    torch.testing.assert_close(k.grad, weight.sum())


# -------------------------------------------------------------------------------------------------------------------- masks


def test_masked_weights_stay_exactly_zero_through_momentum_and_decay_and_after_baking():
    net, params = made()
    masks = target(0.6).select({n: p.detach().abs() for n, p in params.items()})
    masks["bn1.bias"] = torch.tensor([False, True] * 3)
    mechanism = FixedMasks(masks)
    list(train(net, mechanism, 5))  # momentum has built up before anything is looked at
    for at in train(net, mechanism, 10, first=5):
        weights = mechanism.effective(at.params)
        assert all((weights[n][~m] == 0).all() for n, m in masks.items())
    weights = {n: w.detach() for n, w in mechanism.effective(params).items()}
    bake_(net, mechanism)
    for n, p in net.named_parameters():
        assert torch.equal(p, weights[n])
        if n in masks:
            assert (p[~masks[n]] == 0).all()
            assert (p[masks[n]] != 0).all()
    fresh = Net()
    fresh.load_state_dict(net.state_dict(), strict=True)


def test_masks_pass_the_gradient_of_what_is_kept_and_none_of_what_is_masked():
    net, params = made()
    masks = target(0.6).select({n: p.detach().abs() for n, p in params.items()})
    x, y = batch()
    F.cross_entropy(Model(net, params, FixedMasks(masks))(x), y).backward()
    leaves = {n: (p.detach() * masks[n] if n in masks else p.detach()).requires_grad_() for n, p in params.items()}
    F.cross_entropy(Model(net, leaves)(x), y).backward()
    for n, m in masks.items():
        assert torch.equal(params[n].grad, leaves[n].grad * m)


def test_within_multiplies_the_inner_weights_by_the_masks_and_leaves_the_rest_to_the_inner():
    _, params = made()
    masks = target(0.5).select({n: p.detach().abs() for n, p in params.items()})
    inner = Regularised(target(0.5), "l1", 0.1)
    outer = Within(masks, inner)
    for n, w in outer.effective(params).items():
        assert torch.equal(w, params[n] * masks[n] if n in masks else params[n])
    assert torch.equal(outer.penalty(params, Progress()), inner.penalty(params, Progress()))
    assert [id(p) for g in outer.groups(params) for p in g["params"]] == [id(p) for p in params.values()]
    nested = Within(masks, LearnedScores(params, target(0.8), NORMS, masks))
    kept = {n: nested.effective(params)[n] != 0 for n in masks}
    assert sum(int(m.sum()) for m in kept.values()) == TOTAL - round(0.8 * TOTAL)
    assert not any((m & ~masks[n]).any() for n, m in kept.items())


# ------------------------------------------------------------------------------------------------------------ learned scores


def test_learned_scores_run_the_network_with_the_weights_of_the_highest_scores():
    _, params = made()
    mechanism = LearnedScores(params, target(0.7), NORMS)
    with torch.no_grad():
        for i, s in enumerate(mechanism.scores.values()):
            s.copy_(torch.randn(s.shape, generator=random_generator(i)))
    masks = target(0.7).select({n: s.detach().abs() for n, s in mechanism.scores.items()})
    weights = mechanism.effective(params)
    assert all(torch.equal(weights[n], params[n] * m) for n, m in masks.items())
    assert all(weights[n] is p for n, p in params.items() if n not in masks)


@pytest.mark.parametrize("locality", LOCALITIES)
@pytest.mark.parametrize("structure", ["weights", "filters"])
def test_scores_get_the_gradient_of_the_weight_times_the_weight_and_the_sign_kept_or_not_and_weights_get_none(
    structure, locality
):
    net, params = made()
    mechanism = LearnedScores(params, target(0.5, structure, locality), NORMS)
    with torch.no_grad():
        for i, s in enumerate(mechanism.scores.values()):
            s.copy_(torch.randn(s.shape, generator=random_generator(i)))
    x, y = batch()
    F.cross_entropy(Model(net, params, mechanism)(x), y).backward()
    leaves = {n: w.detach().requires_grad_() for n, w in mechanism.effective(params).items()}
    F.cross_entropy(Model(net, leaves)(x), y).backward()
    for n, s in mechanism.scores.items():
        dropped = mechanism.effective(params)[n] == 0
        expected = leaves[n].grad * params[n].detach() * s.detach().sign()
        torch.testing.assert_close(s.grad, expected, rtol=1e-5, atol=1e-7)
        assert (s.grad[dropped] != 0).any()
        assert (s.grad[~dropped] != 0).any()
        assert params[n].grad is None
    learning = {id(p) for g in mechanism.groups(params) for p in g["params"]}
    assert learning == {id(s) for s in mechanism.scores.values()} | {id(params[n]) for n in NORMS}


@pytest.mark.parametrize("locality", LOCALITIES)
def test_learned_scores_start_as_magnitudes_within_each_layer_and_keep_the_exact_number(locality):
    net, params = made()
    mechanism = LearnedScores(params, target(0.7, locality=locality), NORMS)
    for n, s in mechanism.scores.items():
        w = params[n].detach()
        assert torch.equal(s.detach().abs().flatten().argsort(stable=True), w.abs().flatten().argsort(stable=True))
        torch.testing.assert_close(s.detach(), (6 / w[0].numel()) ** 0.5 * w / w.abs().max())
    for _ in train(net, mechanism, 5, lr=1.0):
        kept = {n: int((mechanism.effective(params)[n] != 0).sum()) for n in SIZES}
        if locality == "global":
            assert sum(kept.values()) == TOTAL - round(0.7 * TOTAL)
        else:
            assert kept == {n: k - round(0.7 * k) for n, k in SIZES.items()}


def test_a_first_local_mask_is_the_one_of_magnitude():
    _, params = made()
    t = target(0.7, locality="local")
    weights = LearnedScores(params, t, NORMS).effective(params)
    masks = t.select({n: p.detach().abs() for n, p in params.items()})
    assert all(torch.equal(weights[n] != 0, m) for n, m in masks.items())


# ---------------------------------------------------------------------------------------------------------------------- ADMM


@pytest.mark.parametrize("locality", LOCALITIES)
def test_admm_projects_onto_the_allowed_units_and_adds_up_the_residuals(locality):
    _, params = made()
    t = target(0.75, locality=locality)
    mechanism = Admm(params, t, rho=0.01, growth=2.0)
    trail = {n: torch.zeros_like(params[n]) for n in SIZES}
    assert mechanism.rho == 0.01
    for turn in (1, 2):
        with torch.no_grad():
            for i, n in enumerate(SIZES):
                params[n].add_(torch.randn(params[n].shape, generator=random_generator(turn * 10 + i)) * 0.1)
        mechanism.between_epochs(Progress(epoch=turn, epochs=3, params=params))
        v = {n: params[n].detach() + trail[n] for n in SIZES}
        masks = t.select({n: x.abs() for n, x in v.items()})
        for n in SIZES:
            assert torch.equal(mechanism.Z[n], v[n] * masks[n])
            trail[n] = (trail[n] + params[n].detach() - v[n] * masks[n]) / 2.0  # U: W - Z summed, rescaled as rho doubles
            torch.testing.assert_close(mechanism.U[n], trail[n], rtol=1e-6, atol=1e-7)
        kept = {n: int((mechanism.Z[n] != 0).sum()) for n in SIZES}
        if locality == "global":
            assert sum(kept.values()) == TOTAL - round(0.75 * TOTAL)
        else:
            assert kept == {n: k - round(0.75 * k) for n, k in SIZES.items()}
    assert mechanism.rho == pytest.approx(0.04)


def test_admm_is_still_before_the_first_epoch_after_the_last_and_off_its_period():
    _, params = made()
    mechanism = Admm(params, target(0.75), rho=0.01, growth=2.0, period=2)
    with torch.no_grad():
        params["conv1.weight"].add_(1.0)
    for epoch in (0, 1, 3, 6):
        mechanism.between_epochs(Progress(epoch=epoch, epochs=6, params=params))
        assert mechanism.rho == 0.01
        assert not any(u.any() for u in mechanism.U.values())
    mechanism.between_epochs(Progress(epoch=4, epochs=6, params=params))
    assert mechanism.rho == 0.02
    assert any(u.any() for u in mechanism.U.values())


def test_the_penalty_of_admm_pulls_with_rho_times_w_minus_z_plus_u():
    _, params = made()
    mechanism = Admm(params, target(0.75), rho=0.3, growth=2.0)
    for i, u in enumerate(mechanism.U.values()):
        u.copy_(torch.randn(u.shape, generator=random_generator(i)))
    value = mechanism.penalty(params, Progress())
    value.backward()
    gap = {n: params[n].detach() - mechanism.Z[n] + mechanism.U[n] for n in SIZES}
    for n, d in gap.items():
        torch.testing.assert_close(params[n].grad, 0.3 * d)
    assert float(value.detach()) == pytest.approx(0.15 * sum(float(d.double().square().sum()) for d in gap.values()), rel=1e-5)


# -------------------------------------------------------------------------------------------------------------- regularised


def test_the_l1_penalty_is_the_sum_of_the_magnitudes_in_scope():
    _, params = made()
    for structure, names in (("weights", SIZES), ("kernels", ["conv1.weight", "conv2.weight"])):
        value = Regularised(target(0.5, structure), "l1", 0.02).penalty(params, Progress())
        expected = 0.02 * sum(float(params[n].detach().double().abs().sum()) for n in names)
        assert float(value.detach()) == pytest.approx(expected, rel=1e-5)


def units_of(structure, params):
    """The units of the whole network as vectors, by plain indexing."""
    w1, w2, w3, w4 = (params[n].detach().double() for n in SIZES)
    return {
        "filters": [w[o].flatten() for w in (w1, w2, w3) for o in range(len(w))],
        "kernels": [w[o, i].flatten() for w in (w1, w2) for o in range(w.shape[0]) for i in range(w.shape[1])],
        "channels": [w2[:, i].flatten() for i in range(6)]
        + [w3[:, 4 * i : 4 * i + 4].flatten() for i in range(4)]
        + [w4[:, i] for i in range(8)],
    }[structure]


@pytest.mark.parametrize("structure", ["filters", "kernels", "channels"])
def test_the_group_lasso_is_the_sum_of_root_size_times_norm_over_the_units(structure):
    _, params = made()
    value = Regularised(target(0.5, structure), "group_lasso", 0.02).penalty(params, Progress())
    expected = 0.02 * sum(len(u) ** 0.5 * float(u.norm()) for u in units_of(structure, params))
    assert float(value.detach()) == pytest.approx(expected, rel=1e-5)


def test_the_group_lasso_has_a_gradient_at_a_unit_of_zeros():
    _, params = made()
    with torch.no_grad():
        params["conv1.weight"][0] = 0
    Regularised(target(0.5, "filters"), "group_lasso", 0.02).penalty(params, Progress()).backward()
    assert params["conv1.weight"].grad.isfinite().all()


# ------------------------------------------------------------------------------------------------------------------ dynamic


def by_magnitude(sparsity):
    t = target(sparsity)
    return lambda weights, search, mean: t.select({n: w.abs() for n, w in weights.items()})


def test_dormant_weights_have_a_dense_gradient_before_the_masks_are_fixed_and_none_after():
    net, params = made()
    mechanism = Dynamic({2: by_magnitude(0.8), 4: by_magnitude(0.8)}, Mechanism(), None, tuple(SIZES))
    for i, at in enumerate(train(net, mechanism, 6), 1):
        assert mechanism.fixed == (i >= 4)
        if not mechanism.masks:
            assert all(mechanism.effective(params)[n].equal(p) for n, p in params.items())
            continue
        weights = mechanism.effective(at.params)
        assert all(torch.equal(weights[n], params[n] * m) for n, m in mechanism.masks.items())
        x, y = batch(50 + i)
        grads = torch.autograd.grad(F.cross_entropy(Model(net, params, mechanism)(x), y), [params[n] for n in SIZES])
        leaves = {n: w.detach().requires_grad_() for n, w in weights.items()}
        dense = torch.autograd.grad(F.cross_entropy(Model(net, leaves)(x), y), [leaves[n] for n in SIZES])
        for n, g, d in zip(SIZES, grads, dense, strict=True):
            torch.testing.assert_close(g, d * mechanism.masks[n] if mechanism.fixed else d)
            assert (d[~mechanism.masks[n]] != 0).any()


def test_masks_are_selected_at_the_planned_steps_only_and_dormant_weights_can_return():
    net, params = made()
    plan = {2: by_magnitude(0.8), 5: by_magnitude(0.8), 7: by_magnitude(0.8)}
    mechanism = Dynamic(plan, Mechanism(), None, tuple(SIZES))
    seen, before = [], mechanism.masks
    for i, at in enumerate(train(net, mechanism, 9, lr=0.3), 1):
        if mechanism.masks is not before:
            seen.append(i)
            masks = by_magnitude(0.8)({n: at.params[n].detach() for n in SIZES}, None, None)
            assert all(torch.equal(mechanism.masks[n], m) for n, m in masks.items())
            if before:
                assert any((m & ~before[n]).any() for n, m in masks.items())  # something came back
            before = mechanism.masks
    assert seen == [2, 5, 7]
    assert mechanism.selections == 3
    assert params["conv1.weight"].grad is not None


def test_the_statistic_a_selection_gets_is_the_mean_of_the_values_at_the_steps_since_the_last_one():
    net, _ = made()
    got, values = [], []

    def statistic(w, g):
        values.append(w * g)
        return values[-1]

    def selector(weights, search, mean):
        got.append(mean)
        return by_magnitude(0.5)(weights, search, mean)

    list(train(net, Dynamic({2: selector, 5: selector}, Mechanism(), statistic, tuple(SIZES)), 7))
    assert len(values) == 5 * len(SIZES)  # none is read once the masks are fixed
    for mean, steps in zip(got, ([0, 1], [2, 3, 4]), strict=True):
        for i, n in enumerate(SIZES):
            torch.testing.assert_close(mean[n], sum(values[step * len(SIZES) + i] for step in steps) / len(steps))


def test_before_the_first_selection_the_statistic_is_taken_at_the_gradient_of_the_loss():
    net, params = made()
    x, y = batch(0)
    grads = torch.autograd.grad(F.cross_entropy(net(x), y), [params[n] for n in SIZES])
    products = {n: params[n].detach() * g for n, g in zip(SIZES, grads, strict=True)}
    got = []
    plan = {1: lambda w, search, mean: got.append(mean) or by_magnitude(0.5)(w, search, mean)}
    list(train(net, Dynamic(plan, Mechanism(), lambda w, g: w * g, tuple(SIZES)), 1))
    for n in SIZES:
        torch.testing.assert_close(got[0][n], products[n])


def test_gradients_of_dormant_weights_are_scaled_down_to_those_of_the_kept_and_never_turned():
    net, params = made()

    class Watched(Dynamic):
        def update(self, optimizer, at):
            self.raw = {n: at.params[n].grad.clone() for n in SIZES}
            super().update(optimizer, at)

    mechanism = Watched({1: by_magnitude(0.7), 9: by_magnitude(0.7)}, Mechanism(), None, tuple(SIZES))
    scaled = 0
    for at in train(net, mechanism, 6):
        if at.step == 0:
            continue
        for n, m in mechanism.masks.items():
            used, raw = params[n].grad, mechanism.raw[n]
            assert torch.equal(used[m], raw[m])
            kept, dormant = raw[m].double().square().mean().sqrt(), raw[~m].double().square().mean().sqrt()
            torch.testing.assert_close(used[~m], raw[~m] * float((kept / dormant).clamp(max=1)), rtol=1e-4, atol=1e-8)
            scaled += int(kept < dormant)
    assert scaled > 0


def test_learned_scores_train_inside_dynamic_masks():
    net, params = made()
    search = LearnedScores(params, target(0.8), NORMS)
    plan = {3: lambda w, search, mean: target(0.8).select({n: s.detach().abs() for n, s in search.scores.items()})}
    mechanism = Dynamic(plan, search, None, tuple(SIZES))
    learning = [p for g in mechanism.groups(params) for p in g["params"]]
    assert len({id(p) for p in learning}) == len(learning) == len(params) + len(SIZES)
    x, y = batch()
    F.cross_entropy(Model(net, params, mechanism)(x), y).backward()
    for n, s in search.scores.items():
        torch.testing.assert_close(s.grad, params[n].grad * params[n].detach() * s.detach().sign(), rtol=1e-5, atol=1e-7)
    start = {n: s.detach().clone() for n, s in search.scores.items()}
    steps = list(train(net, mechanism, 5))
    assert len(steps) == 5
    assert mechanism.fixed
    assert all(not torch.equal(s, start[n]) for n, s in search.scores.items())


# -------------------------------------------------------------------------------------------------------------- connectivity


class Watched(Connectivity):
    """Remembers the strengths before and after the rewiring of the last step, and the strengths before the step."""

    def update(self, optimizer, at):
        self.was = {n: at.params[n].detach().clone() for n in self.signs}
        super().update(optimizer, at)

    def _rewire(self, params):
        self.unwired = {n: params[n].detach().clone() for n in self.signs}
        super()._rewire(params)


Watched.constant = (*Connectivity.constant, "was", "unwired")


def connected(locality, sparsity=0.6, seed=0, kind=Watched):
    net, params = made()
    t = target(sparsity, locality=locality)
    return net, params, kind(params, t, decay=5e-4, generator=random_generator(seed))


@pytest.mark.parametrize("locality", LOCALITIES)
def test_the_number_of_connections_is_the_budget_at_every_step_and_every_death_is_a_birth(locality):
    net, params, mechanism = connected(locality)
    wanted = {n: k - min(round(0.6 * k), k - 1) for n, k in SIZES.items()}
    budget = TOTAL - round(0.6 * TOTAL) if locality == "global" else sum(wanted.values())
    counts = {n: int(m.sum()) for n, m in mechanism.masks(params).items()}
    first, deaths = dict(counts), 0
    assert sum(counts.values()) == budget
    newborn = torch.tensor(1e-12)
    for at in train(net, mechanism, 40, lr=0.1):
        masks = mechanism.masks(at.params)
        counts = {n: int(m.sum()) for n, m in masks.items()}
        assert sum(counts.values()) == budget
        if locality == "local":
            assert counts == wanted
        died = sum(int(((w > 0) & (mechanism.unwired[n] <= 0)).sum()) for n, w in mechanism.was.items())
        rose = sum(int(((w <= 0) & (mechanism.unwired[n] > 0)).sum()) for n, w in mechanism.was.items())
        born = {n: masks[n] & (mechanism.unwired[n] <= 0) for n in SIZES}
        assert sum(int(b.sum()) for b in born.values()) == died - rose
        assert all((at.params[n].detach()[b] == newborn).all() for n, b in born.items())
        assert all(torch.equal(at.params[n].detach()[~b], mechanism.unwired[n][~b]) for n, b in born.items())
        deaths += died
    assert deaths > 50
    if locality == "global":
        assert counts != first  # the total is constant, the layers drift


def test_dormant_strengths_have_exactly_no_gradient_and_the_others_the_sign_times_the_weights():
    net, params, mechanism = connected("global")
    list(train(net, mechanism, 3))
    for p in params.values():
        p.grad = None
    x, y = batch()
    F.cross_entropy(Model(net, params, mechanism)(x), y).backward()
    leaves = {n: w.detach().requires_grad_() for n, w in mechanism.effective(params).items()}
    F.cross_entropy(Model(net, leaves)(x), y).backward()
    for n, s in mechanism.signs.items():
        dormant = params[n].detach() <= 0
        assert dormant.any()
        assert (params[n].grad[dormant] == 0).all()
        assert torch.equal(params[n].grad, leaves[n].grad * s * ~dormant)


def test_signs_never_change_and_a_weight_has_its_sign_or_is_zero():
    net, _, mechanism = connected("global")
    signs = {n: s.clone() for n, s in mechanism.signs.items()}
    assert all(set(s.unique().tolist()) == {-1.0, 1.0} for s in signs.values())
    for at in train(net, mechanism, 10, lr=0.1):
        for n, w in mechanism.effective(at.params).items():
            if n in signs:
                assert ((w == 0) | (w.sign() == signs[n])).all()
                assert torch.equal(w != 0, mechanism.masks(at.params)[n])
    assert all(torch.equal(s, signs[n]) for n, s in mechanism.signs.items())


def test_a_step_decays_first_and_folds_the_rate_into_the_momentum():
    """v <- (1 - wd) v; m <- 0.9 m - lr g; v <- v + m, with the rate changed on the way; noise of 1e-6 lr is within tolerance."""
    _, params, mechanism = connected("global", sparsity=0.0)
    with torch.no_grad():
        for p in params.values():
            p.abs_().add_(10.0)  # far from zero: nothing dies, nothing is rewired
    opt = sgd(mechanism.groups(params), weight_decay=5e-4)  # the optimizer's own decay must not act on top
    v = {n: p.detach().double().clone() for n, p in params.items()}
    m = {n: torch.zeros_like(x) for n, x in v.items()}
    for i, lr in enumerate([0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.05]):
        for j, (n, p) in enumerate(params.items()):
            p.grad = torch.randn(p.shape, generator=random_generator(100 * i + j))
            v[n] = (1 - 5e-4) * v[n]
            m[n] = 0.9 * m[n] - lr * p.grad.double()
            v[n] = v[n] + m[n]
        for g in opt.param_groups:
            g["lr"] = lr
        mechanism.update(opt, Progress(step=i, lr=lr, params=params, optimizer=opt))
        for n, p in params.items():
            torch.testing.assert_close(p.detach().double(), v[n], rtol=1e-6, atol=1e-5)


def test_only_connections_that_existed_are_shaken_and_by_a_millionth_of_the_rate():
    _, params, mechanism = connected("local")
    opt = sgd(mechanism.groups(params))
    mechanism.decay = 0.0
    for p in params.values():
        p.grad = torch.zeros_like(p)
    alive = mechanism.masks(params)
    with torch.no_grad():
        for n, a in alive.items():
            params[n][a] = 1e-3
            params[n][~a] = -1e-3
    mechanism.update(opt, Progress(lr=0.1, params=params, optimizer=opt))
    moved = torch.cat([(params[n].detach() - 1e-3)[a] for n, a in alive.items()])
    assert all((params[n].detach()[~a] == -1e-3).all() for n, a in alive.items())
    assert float(moved.std()) == pytest.approx(1e-7, rel=0.3)


def test_a_connection_with_a_lasting_negative_pull_dies_and_one_with_a_positive_pull_grows():
    _, params, mechanism = connected("local")
    alive = mechanism.masks(params)["conv2.weight"].flatten().nonzero().squeeze(1)
    down, up = alive[:2].tolist()
    opt = sgd(mechanism.groups(params))
    for g in opt.param_groups:
        g["lr"] = 0.1
    with torch.no_grad():
        params["conv2.weight"].view(-1)[[down, up]] = 1e-12
    died = False
    for step in range(5):
        for p in params.values():
            p.grad = torch.zeros_like(p)
        params["conv2.weight"].grad.view(-1)[down] = 0.05
        params["conv2.weight"].grad.view(-1)[up] = -0.05
        mechanism.update(opt, Progress(step=step, lr=0.1, params=params, optimizer=opt))
        died |= float(mechanism.unwired["conv2.weight"].view(-1)[down]) <= 0
    assert died
    assert float(params["conv2.weight"].detach().view(-1)[up]) > 1e-3


@pytest.mark.parametrize("locality", LOCALITIES)
def test_momentum_left_over_from_before_a_death_revives_nothing_beyond_the_budget(locality):
    """Newborns that noise kills although a gradient far below the noise had them grow: the momentum goes on pushing."""
    _, params, mechanism = connected(locality)
    opt = sgd(mechanism.groups(params))
    for g in opt.param_groups:
        g["lr"] = 0.1
    budget = sum(int(m.sum()) for m in mechanism.masks(params).values())
    with torch.no_grad():
        for n, m in mechanism.masks(params).items():
            params[n][m] = 1e-12
    for step in range(30):
        for n, p in params.items():
            p.grad = -1e-7 * (p.detach() > 0) if n in SIZES else torch.zeros_like(p)
        mechanism.update(opt, Progress(step=step, lr=0.1, params=params, optimizer=opt))
        assert sum(int(m.sum()) for m in mechanism.masks(params).values()) == budget


def kill_all(params, mechanism, opt):
    """One step in which every connection dies, so that all of the budget is drawn anew; the layers' numbers after it."""
    with torch.no_grad():
        for n in SIZES:
            params[n].fill_(-1.0)
            params[n].grad = torch.zeros_like(params[n])
    mechanism.update(opt, Progress(lr=0.1, params=params, optimizer=opt))
    return {n: int(m.sum()) for n, m in mechanism.masks(params).items()}


def test_births_fall_on_layers_in_proportion_to_their_size():
    _, params, mechanism = connected("global", sparsity=0.98)
    opt = sgd(mechanism.groups(params))
    rounds, budget = 400, TOTAL - round(0.98 * TOTAL)
    drawn = dict.fromkeys(SIZES, 0)
    for _ in range(rounds):
        for n, k in kill_all(params, mechanism, opt).items():
            drawn[n] += k
    expected = {n: rounds * budget * k / TOTAL for n, k in SIZES.items()}
    assert sum(drawn.values()) == rounds * budget
    chi_square = sum((drawn[n] - e) ** 2 / e for n, e in expected.items())
    assert chi_square < 16.3  # the 99.9 % quantile for three degrees of freedom


def test_births_that_find_no_room_in_a_layer_are_drawn_again_elsewhere():
    _, params, mechanism = connected("global", sparsity=0.02)
    opt = sgd(mechanism.groups(params))
    full = 0
    for _ in range(10):
        counts = kill_all(params, mechanism, opt)
        assert sum(counts.values()) == TOTAL - round(0.02 * TOTAL)
        assert all(k <= SIZES[n] for n, k in counts.items())
        full += sum(k == SIZES[n] for n, k in counts.items())
    assert full > 0


@pytest.mark.parametrize("locality", LOCALITIES)
@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.9, 0.99])
def test_connectivity_starts_with_the_budget_spread_evenly_over_the_layers(locality, sparsity):
    _, params, mechanism = connected(locality, sparsity)
    counts = {n: int(m.sum()) for n, m in mechanism.masks(params).items()}
    if locality == "local":
        assert counts == {n: k - min(round(sparsity * k), k - 1) for n, k in SIZES.items()}
    else:
        assert sum(counts.values()) == TOTAL - round(sparsity * TOTAL)
        assert min(counts.values()) >= 1
        assert all(abs(k - (1 - sparsity) * SIZES[n]) <= 2 for n, k in counts.items())


def test_connectivity_works_on_weights_in_channels_last_memory():
    net, _ = made()
    net.to(memory_format=torch.channels_last)
    params = dict(net.named_parameters())
    mechanism = Connectivity(params, target(0.6), decay=5e-4, generator=random_generator())
    for at in train(net, mechanism, 10, lr=0.1):
        assert sum(int(m.sum()) for m in mechanism.masks(at.params).values()) == TOTAL - round(0.6 * TOTAL)


# --------------------------------------------------------------------------------------------------------------------- state


def mechanisms(params):
    masks = target(0.3).select({n: p.detach().abs() for n, p in params.items()})
    plan = {2: by_magnitude(0.5), 3: by_magnitude(0.5), 9: by_magnitude(0.5)}
    return {
        "fixed": FixedMasks(masks),
        "within": Within(masks, LearnedScores(params, target(0.8), NORMS, masks)),
        "regularised": Regularised(target(0.5), "l1", 0.1),
        "scores": LearnedScores(params, target(0.5), NORMS),
        "admm": Admm(params, target(0.5), rho=0.01, growth=2.0),
        "dynamic": Dynamic(plan, LearnedScores(params, target(0.5), NORMS), lambda w, g: (w * g).abs(), tuple(SIZES)),
        "connectivity": Connectivity(params, target(0.5), decay=5e-4, generator=random_generator()),
    }


def learnable(mechanism):
    search = getattr(mechanism, "search", None) or getattr(mechanism, "inner", None) or mechanism
    return getattr(search, "scores", {})


@pytest.mark.parametrize("which", list(mechanisms(made()[1])))
def test_a_state_comes_back_from_a_file_into_the_same_learnable_tensors(which, tmp_path):
    net, params = made()
    mechanism = mechanisms(params)[which]
    for at in train(net, mechanism, 4):
        mechanism.between_epochs(Progress(epoch=1, epochs=3, params=at.params))
    before = state_of(mechanism)
    save_tree(tmp_path / "state", before)
    frozen = load_tree(tmp_path / "state")
    assert same(before, frozen)
    list(train(net, mechanism, 3, first=4))
    assert same(before, frozen)  # a state is a copy: it does not move with the mechanism
    if which in ("within", "scores", "dynamic", "admm"):
        mechanism.between_epochs(Progress(epoch=1, epochs=3, params=params))
        moved = learnable(mechanism) or mechanism.U
        assert not same(before, state_of(mechanism)) or not moved
    other_net, other_params = made(seed=1)
    other = mechanisms(other_params)[which]
    tensors = dict(learnable(other))
    load_state(other, frozen)
    assert same(state_of(other), before)
    assert learnable(other).keys() == tensors.keys()
    assert all(learnable(other)[n] is t for n, t in tensors.items())
    assert all(isinstance(t, nn.Parameter) for t in tensors.values())
    assert next(train(other_net, other, 1)) is not None  # and it goes on


def test_training_on_does_not_change_the_state_it_started_from():
    net, params = made()
    mechanism = mechanisms(params)["dynamic"]
    list(train(net, mechanism, 1))
    stored, copy = state_of(mechanism), state_of(mechanism)
    other_net, other_params = made(seed=1)
    other = mechanisms(other_params)["dynamic"]
    load_state(other, stored)
    list(train(other_net, other, 1))
    assert same(stored, copy)
