"""HYDRA, RST and HARP: methods that learn scores. Each listed property (tests/checks.py) from first principles."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

import apnb
from apnb import methods
from apnb.events import Finished
from apnb.masks import Target, truncated_counts
from apnb.mechanisms import FixedMasks, LearnedScores, Model, Progress, scaled
from apnb.methods import harp, hydra, rst
from apnb.networks import build, layers
from apnb.runner import Runner
from apnb.training import bake_, fit, late_cosine, sgd
from tests.helpers import goes_on_as_if_never_stopped, record, same
from tests.test_mechanisms import LAYERS, NORMS, Net, batch, made

SMALL = apnb.Budget(epochs=2, search_epochs=2, finetune_epochs=2, batch=64, images=128, attack_steps=1, points=16, check=32)
SIZES = {layer.name: math.prod(layer.shape) for layer in LAYERS}


def runner(method, tmp_path, network="cnn", data="digits", budget=SMALL, **options):
    return Runner(apnb.recipe(method, budget=budget, **options), network=network, data=data, store=tmp_path, device="cpu")


def carried_out(run):
    """The masks, and the network's state after each stage."""
    stream, states = methods.stages(run), {}
    while True:
        try:
            event = next(stream)
        except StopIteration as end:
            return end.value, states
        if isinstance(event, Finished):
            states[event.stage] = run.state()


def images_of_the_small_network(n=96):
    g = torch.Generator().manual_seed(0)
    x = torch.rand(n, 1, 4, 4, generator=g)
    return x.numpy(), (torch.arange(n) % 3).numpy()


def scored(net, params, kept, norms=NORMS, **options):
    target = Target(LAYERS, "weights", "local", 1 - kept, counts=truncated_counts(SIZES, 1 - kept))
    return LearnedScores(params, target, norms, **options)


def gradients_at_effective_weights(net, params, mechanism, x):
    """dL/dw_eff for L = mean of squared logits, by an independent route: plain leaves in place of the effective weights."""
    leaves = {n: w.detach().clone().requires_grad_() for n, w in mechanism.effective(params).items()}
    functional_call(net, leaves, (x,)).square().mean().backward()
    return {n: leaf.grad for n, leaf in leaves.items()}


# ------------------------------------------------------------------------------------------------------------ counts and nesting


@pytest.mark.check("hydra", 1)
@pytest.mark.check("rst", 1)
@pytest.mark.parametrize("kept", [0.5, 0.1, 0.05, 0.01])
@pytest.mark.parametrize("method", ["hydra", "rst"])
@pytest.mark.parametrize("network", ["cnn", "resnet8", "odd"])
def test_every_layer_keeps_n_minus_the_whole_part_of_its_share(method, network, kept, tmp_path):
    given = {"network": Net(), "data": images_of_the_small_network()} if network == "odd" else {"network": network}
    run = runner(method, tmp_path, **given, sparsity=round(1 - kept, 2))
    masks, _ = carried_out(run)
    assert set(masks) == {layer.name for layer in run.layers}  # first, shortcut and classifier included
    assert all(int(m.sum()) == m.numel() - int((1 - kept) * m.numel()) for m in masks.values())


@pytest.mark.check("hydra", 1)
@pytest.mark.check("rst", 1)
@pytest.mark.parametrize(("kept", "resnet", "vgg"), [(0.1, 1116445, 1471564), (0.05, 558228, 735785), (0.01, 111653, 147162)])
def test_the_totals_of_the_full_networks_are_the_published_ones(kept, resnet, vgg):
    def sizes(network):
        return {x.name: math.prod(x.shape) for x in layers(build(network, channels=3, classes=10), torch.rand(2, 3, 32, 32))}

    of_resnet = sizes("resnet18")
    of_vgg = {n: k for n, k in sizes("vgg16").items() if n.startswith("features")} | {
        "classifier": 5120
    }  # RST's VGG has one layer
    for found, wanted, total in ((of_resnet, resnet, 11164352), (of_vgg, vgg, 14715584)):
        assert sum(found.values()) == total
        assert total - sum(truncated_counts(found, 1 - kept).values()) == wanted


def test_a_count_is_truncated_in_double_precision_as_written():
    assert truncated_counts({"w": 10}, 0.1) == {"w": 0}  # (1 - 0.9) * 10 = 0.99999...


@pytest.mark.check("hydra", 2)
@pytest.mark.check("rst", 4)
@given(st.integers(0, 99), st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)))
def test_masks_are_nested_in_the_share_kept(seed, shares):
    few, many = sorted(shares)
    g = torch.Generator().manual_seed(seed)
    scores = {n: torch.rand(layer.shape, generator=g) for n, layer in ((x.name, x) for x in LAYERS)}
    masks = [Target(LAYERS, "weights", "local", 0.5, counts=truncated_counts(SIZES, 1 - k)).select(scores) for k in (few, many)]
    assert all((masks[0][n] <= masks[1][n]).all() for n in scores)


# -------------------------------------------------------------------------------------------------------------------- scores


@pytest.mark.check("hydra", 3)
@given(st.integers(0, 20), st.floats(0.01, 100))
def test_the_first_mask_is_that_of_magnitude_and_its_scores_do_not_know_the_scale(seed, c):
    net, params = made(seed)
    mechanism = scored(net, params, 0.3)
    weights = {n: w.detach() for n, w in mechanism.effective(params).items()}
    for n in SIZES:
        s, w = mechanism.scores[n].detach(), params[n].detach()
        assert math.isclose(s.abs().max().item(), math.sqrt(6 / w[0].numel()), rel_tol=1e-6)
        assert torch.equal(s.sign(), w.sign())
        drop = int(0.7 * w.numel())
        lowest = w.abs().flatten().argsort(stable=True)[:drop]
        assert set((weights[n].flatten() == 0).nonzero().flatten().tolist()) == set(lowest.tolist())
        torch.testing.assert_close(scaled(c * w), s)


@pytest.mark.check("hydra", 5)
@pytest.mark.check("rst", 3)
@pytest.mark.parametrize("method", ["hydra", "rst"])
def test_a_score_s_gradient_is_that_of_the_effective_weight_times_weight_and_sign_also_where_it_is_dropped(method):
    net, params = made()
    names, start = tuple(SIZES), None
    if method == "rst":
        rst.sign_constants_(params, names, NORMS)
        start = rst.first_scores(params, names, torch.Generator().manual_seed(3))
    mechanism = scored(net, params, 0.2, norms=NORMS if method == "hydra" else (), start=start)
    x, _ = batch()
    wanted = gradients_at_effective_weights(net, params, mechanism, x)
    Model(net, params, mechanism)(x).square().mean().backward()
    masks = mechanism.target.select({n: s.detach().abs() for n, s in mechanism.scores.items()})
    for n, s in mechanism.scores.items():
        torch.testing.assert_close(s.grad, wanted[n] * params[n].detach() * s.detach().sign())
        assert (s.grad[~masks[n]] != 0).any()
        assert params[n].grad is None
    before = {n: s.grad.clone() for n, s in mechanism.scores.items()}
    with torch.no_grad():
        params["hidden.weight"][~masks["hidden.weight"]] += 0.5
    for s in mechanism.scores.values():
        s.grad = None
    Model(net, params, mechanism)(x).square().mean().backward()
    moved = mechanism.scores["hidden.weight"].grad - before["hidden.weight"]
    assert (moved[~masks["hidden.weight"]] != 0).any()  # a dropped weight's value decides its score's gradient
    assert (moved[masks["hidden.weight"]] == 0).all()


class Line(nn.Module):
    """y = w x with several inputs and no more."""

    def __init__(self, *weights):
        super().__init__()
        self.linear = nn.Linear(len(weights), 1, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([weights]))

    def forward(self, x):
        return self.linear(x.flatten(1))


LINE = layers(build("cnn", channels=1, classes=10), torch.rand(2, 1, 8, 8))[-1]


def of_line(*weights, kept):
    net = Line(*weights)
    params = dict(net.named_parameters())
    layer = replace(LINE, name="linear.weight", shape=(1, len(weights)), maps=1)
    target = Target((layer,), "weights", "local", 1 - kept, counts={"linear.weight": int((1 - kept) * len(weights))})
    return net, params, target


@pytest.mark.check("hydra", 6)
def test_a_dropped_connection_returns_when_the_loss_wants_it():
    net, params, target = of_line(1.0, 0.5, kept=0.5)
    mechanism = LearnedScores(params, target, norms=())
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 1, 1, 2, generator=g)
    y = 0.5 * x[:, 0, 0, 1:]  # only the second input matters, with the very weight that magnitude drops

    def squares(model, x, _, at):
        out = model(x)
        return (out - y).square().mean(), out.expand(-1, 2)

    class Once:
        def __len__(self):
            return 1

        def __call__(self, epoch):
            yield x, torch.zeros(64, dtype=torch.int64)

    def kept():
        return (mechanism.effective(params)["linear.weight"] != 0).flatten().tolist()

    assert kept() == [True, False]
    for _ in fit(net, Once(), squares, epochs=30, lr=lambda at: 0.1, mechanism=mechanism):
        pass
    assert kept() == [False, True]
    assert params["linear.weight"].tolist() == [[1.0, 0.5]]


@pytest.mark.check("rst", 5)
@given(st.integers(0, 9), st.floats(0.01, 100))
def test_signs_and_scales_of_scores_change_no_mask_and_no_output(seed, c):
    net, params = made(seed)
    start = rst.first_scores(params, tuple(SIZES), torch.Generator().manual_seed(seed))
    flips = {
        n: torch.where(torch.rand(s.shape, generator=torch.Generator().manual_seed(1)) < 0.5, -1.0, 1.0) for n, s in start.items()
    }
    x, _ = batch()
    net.eval()
    one, other = (
        Model(net, params, scored(net, params, 0.3, (), start=s))(x)
        for s in (start, {n: c * s * flips[n] for n, s in start.items()})
    )
    assert torch.equal(one, other)


@pytest.mark.check("rst", 6)
def test_a_step_is_plain_sgd_on_the_scores_and_decay_alone_shrinks_them():
    net, params, target = of_line(1.0, -1.0, 1.0, kept=0.67)
    start = {"linear.weight": torch.tensor([[0.5, -0.4, 0.3]])}
    mechanism = LearnedScores(params, target, norms=(), start={n: s.clone() for n, s in start.items()})
    x = torch.tensor([[[[1.0, 2.0, 0.0]]], [[[-1.0, 0.5, 0.0]]]])  # the third input is always 0
    opt = sgd(mechanism.groups(params), weight_decay=0.1)
    opt.param_groups[0]["lr"] = 0.2
    Model(net, params, mechanism)(x).square().mean().backward()
    w, s = torch.tensor([[1.0, -1.0, 1.0]]), start["linear.weight"]
    effective = w * torch.tensor([[1.0, 1.0, 1.0]] if int(0.33 * 3) == 0 else [[1.0, 1.0, 0.0]])
    z = x.flatten(1) @ effective.T
    g = (2 * z * x.flatten(1)).mean(0, keepdim=True) * w * s.sign()
    opt.step()
    torch.testing.assert_close(mechanism.scores["linear.weight"].detach(), s - 0.2 * (g + 0.1 * s))
    assert math.isclose(mechanism.scores["linear.weight"][0, 2].item(), 0.3 * (1 - 0.02), rel_tol=1e-6)


# ------------------------------------------------------------------------------------------------------ what changes in which stage


@pytest.mark.check("hydra", 4)
@pytest.mark.check("harp", 6)
@pytest.mark.parametrize(("method", "structure"), [("hydra", "weights"), ("harp", "weights"), ("harp", "channels")])
def test_weights_and_biases_stay_to_the_bit_while_scores_are_learnt_and_norms_move(method, structure, tmp_path):
    run = runner(method, tmp_path, structure=structure, sparsity=0.5, **({"gamma": 50.0} if method == "harp" else {}))
    masks, states = carried_out(run)
    before, after = states["pretraining"], states["pruning"]
    for n, t in before.items():
        moves = n in run.norms or "running" in n or "num_batches" in n
        assert torch.equal(t, after[n]) != moves, n
    magnitude = replace(run.target(0.5), locality="local", counts={n: int((~m).sum()) for n, m in masks.items()})
    if structure == "weights":  # scores have moved: the masks are no longer those of magnitude
        assert not same(masks, magnitude.select({n: before[n].abs() for n in masks}))


@pytest.mark.check("rst", 2)
@pytest.mark.check("rst", 7)
def test_a_scratch_ticket_s_weights_are_signed_constants_that_never_change(tmp_path):
    run = runner("rst", tmp_path, sparsity=0.5)
    drawn = run.state()
    masks, states = carried_out(run)
    after = states["pruning"]
    for n, m in masks.items():
        sigma = math.sqrt(2 / drawn[n][0].numel())
        assert torch.equal(after[n], torch.where(drawn[n] < 0, -1.0, 1.0) * sigma * m)
    for n in run.norms:
        assert torch.equal(after[n], torch.full_like(after[n], 1.0 if n.endswith("weight") else 0.0))
    assert not after["linear.bias"].any()
    assert all((after[n] != drawn[n]).any() for n in after if "running" in n)


def test_only_scores_learn_in_a_scratch_ticket():
    net, params = made()
    mechanism = scored(net, params, 0.5, norms=())
    learning = [p for g in mechanism.groups(params) for p in g["params"]]
    assert {id(p) for p in learning} == {id(s) for s in mechanism.scores.values()}


@pytest.mark.check("hydra", 7)
@pytest.mark.check("harp", 6)
@pytest.mark.parametrize("method", ["hydra", "harp"])
def test_while_fine_tuning_the_mask_is_constant_and_masked_weights_influence_nothing(method, tmp_path):
    run = runner(method, tmp_path, sparsity=0.5, **({"gamma": 50.0} if method == "harp" else {}))
    masks, states = carried_out(run)
    final = states["finetuning"]
    for n, m in masks.items():
        assert torch.equal(final[n] != 0, m)
        assert (final[n][m] != states["pruning"][n][m]).any()
    run.load(states["pruning"])
    x, y = run.dataset.test.images()[:20], run.dataset.test.y[:20]
    run.net.eval()
    told = []
    for noise in (0.0, 10.0):
        with torch.no_grad():
            for n, m in masks.items():
                run.params()[n].add_(noise * (~m))
        logits = Model(run.net, run.params(), FixedMasks(masks))(x)
        told.append((logits, nn.functional.cross_entropy(logits, y)))
    assert torch.equal(told[0][0], told[1][0])
    assert torch.equal(told[0][1], told[1][1])


@pytest.mark.check("hydra", 8)
def test_the_exported_network_gives_the_masked_networks_logits_and_holds_the_zeros(tmp_path):
    run = runner("hydra", tmp_path)
    masks, states = carried_out(run)
    x = run.dataset.test.images()[:50]
    run.load(states["pruning"])
    run.net.eval()
    masked = Model(run.net, run.params(), FixedMasks(masks))(x)
    bake_(run.net, FixedMasks(masks))
    plain = build("cnn", channels=1, classes=10, seed=5).eval()
    plain.load_state_dict(run.state(), strict=True)
    assert torch.equal(plain(x), masked)
    for n, m in masks.items():
        assert int((plain.state_dict()[n] == 0).sum()) == int(0.9 * m.numel())


@pytest.mark.check("rst", 8)
def test_the_search_beats_the_first_random_mask(tmp_path):
    accuracy = {}
    for lr in (0.0, 0.1):  # without a rate, the scores and so the mask stay as drawn; statistics settle all the same
        budget = apnb.Budget(search_epochs=6, batch=64, attack_steps=2, lr=lr, weight_decay=0.0)
        run = runner("rst", tmp_path, sparsity=0.7, budget=budget)
        carried_out(run)
        run.net.eval()
        x, y = run.check
        accuracy[lr] = float((run.net(x).argmax(1) == y).float().mean())
    assert accuracy[0.1] > accuracy[0.0] + 0.3


# ------------------------------------------------------------------------------------------------------------------- shares


def shared(
    net, params, *, network_layers=LAYERS, structure="weights", sparsity=0.9, gamma=0.1, alpha=0.1, start=0.3, norms=NORMS, **more
):
    target = Target(network_layers, structure, "global", sparsity)
    return harp.LearnedShares(params, target, norms, gamma=gamma, alpha=alpha, start=start, **more)


def sigmoid_slope(q):
    s = 1 / (1 + math.exp(-q))
    return s * (1 - s)


@pytest.mark.check("harp", 1)
@given(st.floats(0.01, 0.99), st.floats(0.01, 0.5), st.floats(0, 1), st.floats(-8, 8))
def test_a_share_lies_between_alpha_times_the_target_and_one_and_starts_where_it_should(kept, alpha, place, q):
    start = kept + (1 - kept) * place
    mechanism = shared(*made(), sparsity=1 - kept, alpha=alpha, start=start)
    lowest = alpha * kept
    u = (start - lowest) / (1 - lowest)
    first = lowest + (1 - lowest) * min(u, 0.99)
    for k in mechanism.shares().values():
        assert abs(k.item() - first) < 1e-5
    with torch.no_grad():
        for p in mechanism.q.values():
            p.fill_(q)
    for k in mechanism.shares().values():
        assert lowest < k.item() < 1
        assert abs(k.item() - (lowest + (1 - lowest) / (1 + math.exp(-q)))) < 1e-5


def test_a_start_below_the_target_is_half_way_to_one():
    for k in shared(*made(), sparsity=0.5, start=0.1).shares().values():
        assert abs(k.item() - 0.75) < 1e-6
    for k in shared(*made(), sparsity=0.9, start=0.1).shares().values():
        assert abs(k.item() - 0.1) < 1e-6  # the released start, exactly at the target


@pytest.mark.check("harp", 2)
@given(st.lists(st.floats(-4, 4), min_size=4, max_size=4), st.sampled_from([0.5, 0.9, 0.99]))
def test_each_layer_keeps_what_its_share_says_and_all_together_what_r_says(q, sparsity):
    mechanism = shared(*made(), sparsity=sparsity)
    with torch.no_grad():
        for p, value in zip(mechanism.q.values(), q, strict=True):
            p.fill_(value)
    masks, shares = mechanism.masks(), mechanism.shares()
    for n, m in masks.items():
        k = np.float32(shares[n].item())
        assert int(m.sum()) == m.numel() - min(int((np.float32(1) - k) * np.float32(m.numel())), m.numel() - 1)
    total = sum(SIZES.values())
    kept = sum(int(m.sum()) for m in masks.values()) / total
    assert abs(kept - mechanism.size().item()) <= 1e-3 + len(masks) / total


@pytest.mark.check("harp", 3)
def test_a_share_s_gradient_is_the_sum_over_its_layer_times_the_slope_and_the_budgets_part():
    net, params = made()
    gamma, kept, alpha = 0.7, 0.1, 0.1
    mechanism = shared(net, params, gamma=gamma)
    x, _ = batch()
    wanted = gradients_at_effective_weights(net, params, mechanism, x)
    at = Progress(epoch=1)
    (Model(net, params, mechanism)(x).square().mean() + mechanism.penalty(params, at)).backward()
    total = sum(SIZES.values())
    for n, q in mechanism.q.items():
        slope = (1 - alpha * kept) * sigmoid_slope(q.item())
        d = (wanted[n] * params[n].detach()).sum()
        budget = 2 * gamma * SIZES[n] / (kept * total) * slope  # gamma_1 = 2 gamma
        torch.testing.assert_close(q.grad, d * slope + budget, rtol=1e-4, atol=1e-6)
        s = mechanism.scores[n]
        torch.testing.assert_close(s.grad, wanted[n] * params[n].detach() * s.detach().sign())


@pytest.mark.check("harp", 4)
@pytest.mark.parametrize("structure", ["weights", "channels"])
def test_the_size_costs_nothing_below_the_budget_and_its_excess_above(structure):
    mechanism = shared(*made(), sparsity=0.5, structure=structure, start=0.7)
    above = mechanism.excess()
    above.backward()
    assert math.isclose(above.item(), mechanism.size().item() / 0.5 - 1, rel_tol=1e-5)
    assert above.item() > 0
    if structure == "weights":
        rates = {n: q.grad.item() / (SIZES[n] * sigmoid_slope(q.item())) for n, q in mechanism.q.items()}
        assert np.allclose(list(rates.values()), next(iter(rates.values())), rtol=1e-4)
    with torch.no_grad():
        for q in mechanism.q.values():
            q.fill_(-3.0)
            q.grad = None
    below = mechanism.excess()
    assert below.item() == 0
    below.backward()
    assert all(q.grad.item() == 0 for q in mechanism.q.values())


@pytest.mark.check("harp", 5)
def test_gamma_grows_by_itself_each_epoch_until_one_ends_within_the_budget_and_stays():
    mechanism = shared(*made(), gamma=0.25, start=0.5)
    sizes = [0.5, 0.5, 0.05, 0.5, 0.05, 0.05]  # share of every layer at the end of each epoch
    weights, ready = [], []
    for epoch, size in enumerate(sizes):
        mechanism.between_epochs(Progress(epoch=epoch, epochs=len(sizes)))
        weights.append(mechanism.weight(epoch))
        with torch.no_grad():
            for q in mechanism.q.values():
                q.fill_(math.log((size - 0.01) / (1 - size)))
        mechanism.between_epochs(Progress(epoch=epoch + 1, epochs=len(sizes)))
        ready.append(mechanism.ready)
    assert weights == [0.25, 0.5, 0.75, 0.75, 0.75, 0.75]
    assert ready == [False, False, True, False, True, True]


def test_as_released_meeting_the_budget_once_is_enough():
    mechanism = shared(*made(), gamma=0.25, start=0.05, sparsity=0.9, released=True)
    with torch.no_grad():
        for q in mechanism.q.values():
            q.fill_(-5.0)
    mechanism.between_epochs(Progress(epoch=1, epochs=3))
    with torch.no_grad():
        for q in mechanism.q.values():
            q.fill_(3.0)
    mechanism.between_epochs(Progress(epoch=2, epochs=3))
    assert mechanism.excess() > 1
    assert mechanism.ready


@pytest.mark.check("harp", 7)
@pytest.mark.parametrize(("structure", "kept"), [("weights", 0.3), ("channels", 0.5)])
def test_the_size_penalty_alone_brings_the_network_to_its_budget_and_large_layers_lose_most(structure, kept):
    net, params = made()
    mechanism = shared(net, params, structure=structure, sparsity=1 - kept, gamma=1.0, start=0.9)

    class Nothing:
        def __len__(self):
            return 10

        def __call__(self, epoch):
            for i in range(10):
                yield batch(i)

    def no_loss(model, x, y, at):
        return 0 * model(x).sum(), model(x)

    def plain(groups):
        return torch.optim.SGD(groups, lr=0.0)  # momentum would carry it on below the budget, where nothing brings it back

    lr = lambda at: 0.05 * (1 - at.step / at.steps)  # noqa: E731
    for _ in fit(net, Nothing(), no_loss, epochs=20, lr=lr, mechanism=mechanism, optimizer=plain):
        pass
    assert abs(mechanism.size().item() / kept - 1) < 0.05
    shares = {n: k.item() for n, k in mechanism.shares().items()}
    if structure == "weights":
        assert [n for n, _ in sorted(shares.items(), key=lambda x: x[1])] == sorted(SIZES, key=SIZES.get, reverse=True)
    assert np.var(list(shares.values())) > 1e-4


@pytest.mark.check("harp", 7)
@pytest.mark.parametrize(("structure", "sparsity"), [("weights", 0.9), ("channels", 0.5)])
def test_what_a_run_selects_is_within_the_budget_and_its_layers_differ(structure, sparsity, tmp_path):
    budget = apnb.Budget(epochs=3, search_epochs=8, finetune_epochs=1, batch=64, images=512, attack_steps=1, check=64)
    run = runner("harp", tmp_path, structure=structure, sparsity=sparsity, budget=budget, gamma=0.3)
    masks, _ = carried_out(run)
    shares = [m.float().mean().item() for m in masks.values()]
    assert max(shares) - min(shares) > 0.02
    if structure == "weights":
        kept = sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
        assert kept <= (1 - sparsity) * 1.03


def test_a_budget_that_is_never_met_ends_in_a_sentence(tmp_path):
    with pytest.raises(apnb.Invalid, match="give more search_epochs"):
        carried_out(runner("harp", tmp_path, sparsity=0.5, gamma=0.0))


@pytest.mark.check("harp", 8)
def test_channels_go_as_whole_input_slices_and_a_shortcut_has_its_blocks_share():
    net = build("resnet8", channels=1, classes=10)
    params, found = dict(net.named_parameters()), layers(net, torch.rand(2, 1, 8, 8))
    mechanism = shared(net, params, network_layers=found, structure="channels", sparsity=0.5, norms=())
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for q in mechanism.q.values():
            q.copy_(torch.randn((), generator=g))
        for s in mechanism.scores.values():
            s.copy_(torch.randn(s.shape, generator=g))
    shares, weights, sizes = mechanism.shares(), mechanism.effective(params), mechanism.target.sizes()
    assert found[0].name not in sizes  # the image's channels stay
    for n, channels in sizes.items():
        w = weights[n].detach()
        alive = w.transpose(0, 1).flatten(1).abs().sum(1) > 0
        kept = max(1, round(shares[n].item() * channels))
        assert int(alive.sum()) == kept
        assert torch.equal(alive, mechanism.scores[n].detach().abs() >= mechanism.scores[n].detach().abs().sort().values[-kept])
        assert torch.equal(w[:, alive], params[n].detach()[:, alive])
    pairs = {n: n.replace("shortcut.0", "conv1") for n in sizes if "shortcut" in n}
    assert len(pairs) == 2
    for shortcut, conv in pairs.items():
        assert shares[shortcut].item() == shares[conv].item()
    learning = {id(p) for group in mechanism.groups(params) for p in group["params"]}
    assert not any(id(mechanism.q[n]) in learning for n in pairs)


def test_the_operations_of_a_layer_are_counted_as_written():
    found = layers(build("resnet18", channels=3, classes=10), torch.rand(2, 3, 32, 32))
    ins, outs = [x.shape[1] for x in found], [x.shape[0] for x in found]
    by_hand = sum(x.macs // math.prod(x.shape) * x.shape[0] * (2 * math.prod(x.shape[1:]) + 1) for x in found)
    assert harp.operations(found, ins, outs) == by_hand
    assert abs(by_hand / (2 * sum(x.macs for x in found)) - 1) < 0.01  # about two operations a multiply-accumulate
    for kept, share in ((0.5, 0.2504), (0.25, 0.0627), (0.1, 0.0098)):
        few = harp.operations(found, [round(kept * i) for i in ins], [round(kept * o) for o in outs[:-1]] + outs[-1:])
        assert abs(few / by_hand - share) < 2e-3 * share + 3e-4


def test_first_scores_of_channels_are_their_norms_and_the_released_ones_mix_them_up():
    params = {n: p.detach() for n, p in made()[1].items()}
    target = Target(LAYERS, "channels", "global", 0.5)
    right, mixed = harp.first_scores(params, target), harp.first_scores(params, target, mixed=True)
    w = params["conv2.weight"]
    norms = torch.stack([w[:, i].abs().sum() for i in range(6)])
    torch.testing.assert_close(right["conv2.weight"], math.sqrt(6) * norms / norms.max())
    assert not torch.allclose(mixed["conv2.weight"], right["conv2.weight"])
    hidden = params["hidden.weight"]
    maps = torch.stack([hidden[:, 4 * i : 4 * i + 4].abs().sum() for i in range(4)])  # columns of one feature map together
    torch.testing.assert_close(right["hidden.weight"], math.sqrt(6) * maps / maps.max())


# --------------------------------------------------------------------------------------------------------------- as released


def test_the_released_cosine_is_one_epoch_late():
    rates = [late_cosine(0.1)(Progress(epoch=e, epochs=20)) for e in range(20)]
    assert rates[0] == rates[2]
    assert max(rates) == rates[1] == 0.1
    assert abs(rates[-1] - 0.0024) < 1e-4


@pytest.mark.parametrize(("released", "passes", "rates"), [(False, 2, [0.1, 0.05]), (True, 4, [0.05, 0.1])])
@pytest.mark.parametrize("method", ["hydra", "harp"])
def test_as_released_two_further_passes_move_the_statistics_in_each_step_at_the_released_rates(
    method, released, passes, rates, tmp_path
):
    own = {"gamma": 50.0} if method == "harp" else {}
    run = runner(method, tmp_path, as_released=released, sparsity=0.5, **own)
    told = [
        e.metrics["lr"] for e in methods.stages(run) if e.kind == "batch" and e.stage in ("pretraining", "pruning") and e.step % 2
    ]
    assert told == pytest.approx(rates * 2)
    state = {stage: int(s["bn1.num_batches_tracked"]) for stage, s in carried_out(runner(method, tmp_path / "anew", as_released=released,
                                                                                      sparsity=0.5, **own))[1].items()}  # fmt: skip
    steps = 2 * 2  # epochs times batches
    assert state["pretraining"] == passes * steps
    if method == "hydra":
        assert state == {"pretraining": passes * steps, "pruning": 2 * passes * steps, "finetuning": 3 * passes * steps}


def test_as_released_harp_mixes_channels_and_takes_any_epoch_after_the_first_within_the_budget(tmp_path):
    found = []
    for released in (False, True):
        run = runner("harp", tmp_path / str(released), structure="channels", sparsity=0.5, gamma=50.0, as_released=released)
        for event in methods.stages(run):
            if event.kind == "epoch" and event.stage == "pruning":
                found.append(event.snapshot()["mechanism"]["scores"]["conv3.weight"])
                break
    assert not torch.equal(*found)


def test_a_network_without_channels_to_remove_is_refused_before_any_training(tmp_path):
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            return self.linear(x.flatten(1))

    with pytest.raises(apnb.Invalid, match="no layer with channels"):
        next(methods.stages(runner("harp", tmp_path, network=Single(), structure="channels", sparsity=0.5)))


def test_parameters_that_are_no_weights_and_no_norms_stay_as_drawn_in_a_scratch_ticket(tmp_path):
    class Scaled(Net):
        def __init__(self):
            super().__init__()
            self.prelu = nn.PReLU()
            self.scale = nn.Parameter(torch.full((3,), 0.7))

        def forward(self, x):
            return self.scale * self.prelu(super().forward(x))

    run = runner("rst", tmp_path, network=Scaled(), data=images_of_the_small_network(), sparsity=0.5)
    carried_out(run)
    assert torch.equal(run.net.scale, torch.full((3,), 0.7))
    assert torch.equal(run.net.prelu.weight, torch.tensor([0.25]))
    assert run.net(torch.rand(4, 1, 4, 4)).abs().sum() > 0


# ------------------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize(
    "make",
    [
        lambda net, params: scored(net, params, 0.3),
        lambda net, params: shared(net, params, gamma=2.0, start=0.2),
        lambda net, params: shared(net, params, structure="channels", sparsity=0.5, gamma=2.0),
    ],
    ids=["scores", "shares", "shares of channels"],
)
def test_a_stage_resumed_after_any_epoch_equals_an_uninterrupted_one_bit_for_bit(make, tmp_path):
    class Data:
        def __len__(self):
            return 3

        def __call__(self, epoch):
            for i in range(3):
                yield batch(10 * epoch + i)

    def loss(model, x, y, at):
        logits = model(x)
        return nn.functional.cross_entropy(logits, y), logits

    def trained(resume):
        net, params = made()
        mechanism = make(net, params)
        mechanism.ready = True  # whatever the budget: here it is the way there that counts
        options = {"epochs": 4, "lr": lambda at: 0.05, "mechanism": mechanism, "resume": resume, "select": "loss"}
        return net, mechanism, *record(fit(net, Data(), loss, **options))

    goes_on_as_if_never_stopped(trained, tmp_path)


def test_hydra_targets_every_layer_locally(tmp_path):
    target = hydra.target(runner("hydra", tmp_path, sparsity=0.95))
    assert (target.structure, target.locality) == ("weights", "local")
    assert target.drop() == {n: int(0.95 * k) for n, k in target.sizes().items()}
