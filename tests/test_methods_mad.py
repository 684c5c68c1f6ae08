"""MAD: every quantity against its definition, written out with loops, outer products and plain autograd."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import apnb
from apnb import methods
from apnb.chance import generator
from apnb.copies import bf16_body
from apnb.datasets import Batches
from apnb.errors import Invalid
from apnb.events import Batch, Epoch, Finished, Pruned
from apnb.mechanisms import Model, Progress, load_state, state_of
from apnb.methods.mad import Repeated, SoftMasks, cut, damage, names_of, saliency
from apnb.networks import build, layers
from apnb.objectives import objective
from apnb.runner import Runner, Stage
from apnb.training import cosine, fit
from tests.helpers import goes_on_as_if_never_stopped, record, same

SMALL = apnb.Budget(
    name="small", epochs=2, finetune_epochs=2, batch=64, images=128, attack_steps=3, finetune_lr=0.1, weight_decay=2e-4, check=32,
    points=16,
)  # fmt: skip


class Odd(nn.Module):
    """Convolutions of every kind (bias, stride, groups, dilation, wrapped and named padding), ReLUs in place, linear layers with
    and without a bias; for images of 1x8x8."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 4, 3, stride=2, padding=1, groups=2, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.conv3 = nn.Conv2d(4, 4, (3, 1), padding="same", dilation=(2, 1), groups=4)
        self.conv4 = nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.hidden = nn.Linear(96, 12, bias=False)
        self.linear = nn.Linear(12, 10)

    def forward(self, x):
        x = self.relu(self.bn2(self.conv2(self.relu(self.conv1(x)))))
        x = self.relu(self.conv4(input=self.relu(self.conv3(x))))
        return self.linear(self.relu(self.hidden(x.flatten(1))))


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def made(net="cnn", seed=0):
    """A network in double precision with weights, norms and statistics that are nothing special, and its layers."""
    net = Odd() if net == "odd" else build(net, channels=1, classes=10)
    g = draw(seed)
    with torch.no_grad():
        for p in net.parameters():
            noise = torch.randn(p.shape, generator=g)
            p.copy_(noise * (2 / p[0].numel()) ** 0.5 if p.ndim > 1 else noise.abs() * 0.5 + 0.1)
        for b in net.buffers():
            if b.is_floating_point():
                b.copy_(torch.rand(b.shape, generator=g) + 0.5)
    return net.double(), layers(copy.deepcopy(net).float(), torch.rand(2, 1, 8, 8))


def images(n=5, seed=0):
    g = draw(seed + 50)
    return torch.rand(n, 1, 8, 8, generator=g).double(), torch.randint(10, (n,), generator=g)


def masked(net, found, seed=3, low=0.2):
    """Random soft masks: the masked weights, and what they took away."""
    params, g = {n: p.detach() for n, p in net.named_parameters()}, draw(seed)
    factor = {
        n: low + (1 - low) * torch.rand(params[n].shape, generator=g).double() for layer in found for n in names_of(layer, params)
    }
    return params | {n: params[n] * m for n, m in factor.items()}, {n: params[n] * (1 - m) for n, m in factor.items()}


def rows(tensors, layer):
    """A layer's weight and bias as O x D, the bias last."""
    parts = [tensors[n].flatten(1) if i == 0 else tensors[n][:, None] for i, n in enumerate(names_of(layer, tensors))]
    return torch.cat(parts, 1)


def factors(net, weights, layer, x, y):
    """A (groups, D, D) and G (O, O) by their definition."""
    net = copy.deepcopy(net).eval()
    net.load_state_dict(net.state_dict() | weights)
    module, seen = net.get_submodule(layer.module), {}

    def keep(module, args, kwargs, out):
        seen["in"], seen["out"] = (args or tuple(kwargs.values()))[0].detach().clone(), out
        return out.clone()  # what follows may work in place

    module.register_forward_hook(keep, with_kwargs=True)
    loss = F.cross_entropy(net(x), y)  # the mean over the batch, at the true labels
    (g,) = torch.autograd.grad(loss, seen["out"])
    u = seen["in"]
    if layer.kind == "linear":
        u, g = u[None, :, None, :], g[:, None, :]
    else:
        u, g = patches(u, module, g.shape[2:]), g.flatten(2).transpose(1, 2)
    if module.bias is not None:
        u = torch.cat([u, torch.ones_like(u[..., :1])], -1)
    n, s = g.shape[:2]
    A = sum(torch.einsum("gd,ge->gde", u[:, i, j], u[:, i, j]) for i in range(n) for j in range(s)) / (n * s**2)
    G = sum(torch.outer(g[i, j], g[i, j]) for i in range(n) for j in range(s)) * (n * s)
    return A, G


def patches(x, conv, size):
    """(groups, N, S, D): what the convolution sees at each output position, by indexing alone."""
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel_size, conv.stride, conv.dilation
    ph, pw = (dh * (kh - 1) // 2, dw * (kw - 1) // 2) if conv.padding == "same" else conv.padding
    n, c, h, w = x.shape
    out = torch.zeros(conv.groups, n, size[0] * size[1], c // conv.groups * kh * kw, dtype=x.dtype)
    for i, j, ch, a, b in itertools.product(range(size[0]), range(size[1]), range(c), range(kh), range(kw)):
        row, column = i * sh - ph + a * dh, j * sw - pw + b * dw
        if conv.padding_mode == "circular":
            row, column = row % h, column % w
        if 0 <= row < h and 0 <= column < w:
            group, inside = divmod(ch, c // conv.groups)
            out[group, :, i * size[1] + j, (inside * kh + a) * kw + b] = x[:, ch, row, column]
    return out


# ------------------------------------------------------------------------------------------------------------------- the damage


@pytest.mark.check("mad", 1)
@pytest.mark.parametrize("which", ["odd", "cnn"])
def test_the_damage_is_half_diagonal_g_times_delta_times_a_delta_with_the_factors_as_defined(which):
    net, found = made(which)
    x, y = images(4)
    weights, delta = masked(net, found)
    got = damage(Model(net, weights), delta, found, x, y)
    assert got.keys() == delta.keys()
    for layer in found:
        A, G = factors(net, weights, layer, x, y)
        d, dL = rows(delta, layer), rows(got, layer)
        for o in range(len(d)):
            a = A[o * len(A) // len(d)]  # the group of this output
            torch.testing.assert_close(dL[o], 0.5 * G[o, o] * d[o] * (a @ d[o]), rtol=1e-8, atol=1e-18)
            assert dL[o].sum() >= 0
            torch.testing.assert_close(dL[o].sum(), 0.5 * G[o, o] * (d[o] @ a @ d[o]), rtol=1e-6, atol=1e-18)
    assert any((t < 0).any() for t in got.values()), "the score is signed"


@pytest.mark.check("mad", 1)
def test_scaling_what_is_taken_away_scales_the_damage_by_its_square_and_taking_nothing_does_none():
    net, found = made("odd")
    x, y = images()
    weights, delta = masked(net, found)
    once = damage(Model(net, weights), delta, found, x, y)
    thrice = damage(Model(net, weights), {n: 3 * d for n, d in delta.items()}, found, x, y)
    assert all(t.any() for t in once.values())
    for n, t in once.items():
        torch.testing.assert_close(thrice[n], 9 * t, rtol=1e-9, atol=0)
    params = {n: p.detach() for n, p in net.named_parameters()}
    for dtype in (torch.float64, torch.float32):
        start = {n: p.to(dtype) for n, p in params.items()}
        names = tuple(delta)
        at_one = {n: w.detach() for n, w in SoftMasks(start, names).effective(start).items()}
        nothing = {n: start[n] - at_one[n] for n in names}
        unharmed = damage(Model(net.to(dtype), at_one), nothing, found, x.to(dtype), y)
        assert not any(t.any() for t in unharmed.values()), "at M = 1 exactly nothing"


@pytest.mark.check("mad", 2)
def test_for_one_image_and_a_linear_layer_it_is_the_exact_value_of_the_rank_one_fisher_matrix():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    found = layers(copy.deepcopy(net).float(), torch.rand(2, 1, 8, 8))
    weights, delta = masked(net, found)
    x, y = images(1)
    got = rows(damage(Model(net, weights), delta, found, x, y), found[0])
    u = torch.cat([x.flatten(), torch.ones(1).double()])
    p = (rows(weights, found[0]) @ u).softmax(0)
    g = p - F.one_hot(y[0], 10)  # gradient of cross entropy at the logits
    d = rows(delta, found[0])
    for o in range(10):
        fisher = g[o] ** 2 * torch.outer(u, u)  # block of the row: (d log p / d w_o)(d log p / d w_o)^T
        torch.testing.assert_close(got[o], 0.5 * d[o] * (fisher @ d[o]))


@pytest.mark.check("mad", 8)
@pytest.mark.parametrize("optimised", [False, True], ids=["given masks", "masks found for the batch"])
def test_permuting_the_outputs_of_a_layer_permutes_its_rows_of_the_damage_and_nothing_else(optimised):
    net, found = made("cnn")
    x, y = images(16)
    order = torch.randperm(16, generator=draw(5))
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.conv1.weight.copy_(net.conv1.weight[order])
        other.conv2.weight.copy_(net.conv2.weight[:, order])
        for n in ("weight", "bias", "running_mean", "running_var"):
            getattr(other.bn1, n).copy_(getattr(net.bn1, n)[order])
    if optimised:
        pair = [found_masks(which, found, x, y) for which in (net, other)]
    else:
        weights, delta = masked(net, found)
        moved = [
            dict(of) | {"conv1.weight": of["conv1.weight"][order], "conv2.weight": of["conv2.weight"][:, order]}
            for of in (weights, delta)
        ]
        moved[0] |= {n: weights[n][order] for n in ("bn1.weight", "bn1.bias")}
        pair = [(weights, delta), tuple(moved)]
    one, two = (damage(Model(n, w), d, found, x, y) for n, (w, d) in zip((net, other), pair, strict=True))
    one["conv1.weight"], one["conv2.weight"] = one["conv1.weight"][order], one["conv2.weight"][:, order]
    for n in one:
        torch.testing.assert_close(two[n], one[n], rtol=1e-5, atol=1e-9 * float(one[n].abs().max()))


def found_masks(net, found, x, y, steps=6):
    """Masks found by the mechanism on one batch: masked weights, and what they took away."""
    params = dict(net.named_parameters())
    names = tuple(n for layer in found for n in names_of(layer, params))
    mechanism = SoftMasks(params, names)
    adam = {"lr": lambda at: 0.1, "optimizer": torch.optim.Adam, "bn": "eval"}
    drain(fit(net, Repeated(x, y, steps), natural(), epochs=1, mechanism=mechanism, **adam))
    weights = {n: w.detach() for n, w in mechanism.effective(params).items()}
    return weights, {n: params[n].detach() - weights[n] for n in names}


def natural():
    return objective("natural", eps=0.0, steps=1, generator=draw())


def drain(events):
    return list(events)


# ------------------------------------------------------------------------------------------------------------------- soft masks


def test_soft_masks_start_at_one_where_the_network_is_itself_and_only_they_get_a_gradient():
    net = build("cnn", channels=1, classes=10).eval()
    params = dict(net.named_parameters())
    names = tuple(n for n, p in params.items() if not n.startswith("bn"))
    mechanism = SoftMasks(params, names)
    assert all(torch.equal(w, params[n]) for n, w in mechanism.effective(params).items())
    with torch.no_grad():
        for i, q in enumerate(mechanism.q.values()):
            q.copy_(torch.rand(q.shape, generator=draw(i)) * 9.7 - 9.2)
    assert all(float(m.detach().min()) >= 0.99e-4 and float(m.detach().max()) <= 1 for m in mechanism.factors().values())
    x, y = (t.float() if t.is_floating_point() else t for t in images(16))
    F.cross_entropy(Model(net, params, mechanism)(x), y).backward()
    assert all(params[n].grad is None for n in names)
    leaves = {n: w.detach().requires_grad_() for n, w in mechanism.effective(params).items()}
    F.cross_entropy(Model(net, leaves)(x), y).backward()
    for n, q in mechanism.q.items():
        expected = leaves[n].grad * params[n] * q.detach().sigmoid()  # the derivative of softplus
        torch.testing.assert_close(q.grad, expected, rtol=1e-5, atol=1e-9)
    assert [id(q) for g in mechanism.groups(params) for q in g["params"]] == [id(q) for q in mechanism.q.values()]


def test_the_clamp_keeps_masks_between_a_ten_thousandth_and_one_and_weights_at_the_top_can_still_shrink():
    params = {"w": torch.randn(4, 5, generator=draw())}
    mechanism = SoftMasks(params, ("w",))
    opt = torch.optim.SGD(mechanism.groups(params), lr=1.0)
    for pull, expected in ((-50.0, 1.0), (50.0, 1e-4), (-50.0, 1.0)):
        mechanism.q["w"].grad = torch.full((4, 5), pull)
        mechanism.update(opt, Progress(params=params))
        torch.testing.assert_close(mechanism.factors()["w"].detach(), torch.full((4, 5), expected), rtol=1e-3, atol=0)
    mechanism.q["w"].grad = None
    mechanism.factors()["w"].sum().backward()
    assert (mechanism.q["w"].grad > 0).all()


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_soft_masks_resumed_after_any_epoch_equal_uninterrupted_ones_bit_for_bit(optimizer, tmp_path):
    data = Batches(apnb.datasets.load("digits").train.at(slice(0, 96)), 32, seed=0, stage="test")

    def carried_out(resume):
        net, g = build("cnn", channels=1, classes=10), draw(11)
        params = dict(net.named_parameters())
        mechanism = SoftMasks(params, tuple(n for n in params if not n.startswith("bn")))
        loss = objective("pgd_at", eps=0.15, steps=2, generator=g)
        options = {"mechanism": mechanism, "optimizer": optimizer, "bn": "eval", "resume": resume, "generator": g}
        return net, mechanism, *record(fit(net, data, loss, epochs=3, lr=cosine(0.1), **options))

    masks = state_of(goes_on_as_if_never_stopped(carried_out, tmp_path)[1])
    other = SoftMasks(dict(build("cnn", channels=1, classes=10).named_parameters()), tuple(masks["q"]))
    tensors = dict(other.q)
    load_state(other, masks)
    assert same(state_of(other), masks)
    assert all(other.q[n] is t for n, t in tensors.items())


# ---------------------------------------------------------------------------------------------------------------- the saliency


def runner(store, network="cnn", budget=SMALL, **options):
    options = {"sparsity": 0.8, "natural_epochs": 2, "mask_steps": 5, **options}
    return Runner(apnb.recipe("mad", budget=budget, **options), network=network, store=store, device="cpu", snapshot_every=0)


def stage(run, name="pruning"):
    """A stage as the runner makes it."""
    data = Batches(run.train, run.budget.batch, seed=0, stage=name, augment=run.dataset.augment)
    return Stage(name, data, generator(0, name), None)


def result(stream):
    """Events and what the generator returns."""
    events = []
    while True:
        try:
            events.append(next(stream))
        except StopIteration as end:
            return events, end.value


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """The state of a small trained network."""
    run = runner(tmp_path_factory.mktemp("dense"))
    for event in methods.stages(run):
        if isinstance(event, Finished) and event.stage == "pretraining":
            return run.state()


@pytest.mark.check("mad", 3)
def test_the_saliency_pass_leaves_the_network_as_it_was_to_the_bit(tmp_path, dense):
    run = runner(tmp_path, mask_steps=20)
    run.load(dense)
    modes, flags = [m.training for m in run.net.modules()], [p.requires_grad for p in run.net.parameters()]
    _, scores = result(saliency(run, stage(run)))
    assert same(run.state(), dense)
    assert [m.training for m in run.net.modules()] == modes
    assert [p.requires_grad for p in run.net.parameters()] == flags
    assert all(p.grad is None for p in run.net.parameters())
    assert not any(m._forward_hooks for m in run.net.modules())
    assert all(t.any() for t in scores.values())


@pytest.mark.check("mad", 3)
def test_twenty_steps_lower_the_attacked_loss_of_their_batch_with_masks_that_never_exceed_one(tmp_path, dense):
    """Every batch of the pass, watched from outside: the loss on the last forward pass of a batch against that on the first."""
    run = runner(tmp_path, mask_steps=20)
    run.load(dense)
    s, seen = stage(run), []
    params = {n: p.detach().clone() for n, p in run.net.named_parameters()}
    weights = []

    def watch(module, args, out):
        seen.append((args[0].detach().clone(), out.detach().clone()))
        weights.append({n: p.detach().clone() for n, p in module.named_parameters()})

    run.net.register_forward_hook(watch)
    drain(saliency(run, s))
    passes = SMALL.attack_steps + 20 + 1
    assert len(seen) == 2 * passes
    smallest = 1.0
    for i, (_, y) in enumerate(s.data(0)):
        mine = seen[i * passes : (i + 1) * passes][SMALL.attack_steps :]
        assert all(torch.equal(x, mine[0][0]) for x, _ in mine), "the attack is not made anew"
        losses = [float(F.cross_entropy(out, y)) for _, out in mine]
        assert losses[-1] < losses[0]
        for w in weights[i * passes + SMALL.attack_steps : (i + 1) * passes]:
            for n, p in params.items():
                if n.startswith("bn"):
                    assert torch.equal(w[n], p)
                else:
                    ratio = (w[n] / p)[p.abs() > 1e-6]
                    assert ratio.max() <= 1
                    smallest = min(smallest, float(ratio.min()))
        assert all(torch.equal(w[n], p) for w in weights[i * passes : i * passes + 4] for n, p in params.items()), (
            "dense at first"
        )
    assert 0.05 < smallest < 0.9


@pytest.mark.check("mad", 3)
def test_the_saliency_is_the_mean_over_the_batches_of_attack_masks_and_damage_done_by_hand(tmp_path, dense):
    run = runner(tmp_path, mask_steps=4)
    run.load(dense)
    s = stage(run)
    events, got = result(saliency(run, s))
    assert [(type(e), e.step, e.of) for e in events] == [(Batch, 1, 2), (Batch, 2, 2)]
    net, noise = copy.deepcopy(run.net).eval(), generator(0, "pruning")
    names = [n for n, _ in net.named_parameters() if not n.startswith("bn")]
    params = {n: p.detach() for n, p in net.named_parameters()}
    total = {n: torch.zeros_like(params[n]) for n in names}
    for x, y in s.data(0):
        x_adv = (x + (2 * torch.rand(x.shape, generator=noise) - 1) * run.eps).clamp(0, 1)
        for _ in range(SMALL.attack_steps):
            x_adv.requires_grad_()
            (g,) = torch.autograd.grad(F.cross_entropy(net(x_adv), y), x_adv)
            x_adv = x_adv.detach() + 2.3 * run.eps / SMALL.attack_steps * g.sign()
            x_adv = torch.min(torch.max(x_adv, x - run.eps), x + run.eps).clamp(0, 1)
        q = {n: torch.full_like(params[n], 0.541324854612918).requires_grad_() for n in names}
        opt = torch.optim.Adam(q.values(), lr=0.1)
        for _ in range(4):
            opt.zero_grad()
            weights = params | {n: params[n] * torch.log1p(q[n].exp()) for n in names}
            F.cross_entropy(torch.func.functional_call(net, weights, (x_adv,)), y).backward()
            opt.step()
            with torch.no_grad():
                for t in q.values():
                    t.clamp_(-9.210290, 0.541324854612918)
        weights = params | {n: params[n] * torch.log1p(q[n].exp()).detach() for n in names}
        for layer in run.layers:
            A, G = factors(net, weights, layer, x_adv, y)
            d = rows({n: params[n] - weights[n] for n in names}, layer)
            dL = 0.5 * G.diagonal()[:, None] * d * (d @ A[0])
            own = names_of(layer, params)
            for n, part in zip(own, dL.split([params[n][0].numel() for n in own], 1), strict=True):
                total[n] += part.reshape(params[n].shape) / 2
    for n in names:
        gap = (got[n] - total[n]).abs() / total[n].abs().max()
        assert gap.median() < 1e-5, n
        assert (gap < 1e-3).float().mean() > 0.98, n  # a gradient of almost zero may send Adam either way


def test_the_number_of_batches_can_be_limited_and_never_exceeds_one_pass(tmp_path, dense):
    steps = {}
    for batches in (0, 1, 2, 99):
        run = runner(tmp_path, batches=batches)
        run.load(dense)
        events, scores = result(saliency(run, stage(run)))
        steps[batches] = len(events), scores
    assert {k: n for k, (n, _) in steps.items()} == {0: 2, 1: 1, 2: 2, 99: 2}
    assert same(steps[0][1], steps[2][1])
    assert same(steps[0][1], steps[99][1])
    assert not same(steps[0][1], steps[1][1])


# --------------------------------------------------------------------------------------------------------------------- the cut


def random_scores(net, found, seed=0):
    params, g = dict(net.named_parameters()), draw(seed)
    return {n: torch.randn(params[n].shape, generator=g) for layer in found for n in names_of(layer, params)}


@pytest.mark.check("mad", 4)
@pytest.mark.parametrize("which", ["odd", "cnn", "resnet8"])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.7, 0.99])
def test_the_lowest_go_signed_over_all_convolutions_together_and_in_each_row_of_a_linear_layer(which, sparsity):
    net, found = made(which)
    scores = random_scores(net, found)
    masks = cut(scores, found, sparsity)
    assert {n: (m.dtype, m.shape) for n, m in masks.items()} == {n: (torch.bool, t.shape) for n, t in scores.items()}
    conv = [n for layer in found if layer.kind == "conv" for n in names_of(layer, scores)]
    values = sorted(v for n in conv for v in scores[n].flatten().tolist())
    drop = int(sparsity * len(values))
    for n in conv:
        assert torch.equal(masks[n], scores[n] >= values[drop])
    assert sum(int((~masks[n]).sum()) for n in conv) == drop
    linear = [layer for layer in found if layer.kind == "linear"]
    assert len(linear) == (2 if which == "odd" else 1)
    for layer in linear:
        for row, kept in zip(rows(scores, layer), rows(masks, layer), strict=True):
            ranked = sorted(row.tolist())
            gone = int(sparsity * len(ranked))
            assert torch.equal(kept, torch.tensor([v >= ranked[gone] for v in row.tolist()]))
            assert int((~kept).sum()) == gone


@pytest.mark.check("mad", 4)
@pytest.mark.parametrize(
    "network, kept", [("resnet18", {0.9: 1_115_924, 0.95: 557_962, 0.99: 111_593}), ("vgg16", {0.9: 1_471_047, 0.95: 735_524})]
)
def test_large_networks_keep_as_many_weights_as_the_published_checkpoints(network, kept):
    net = build(network, channels=3, classes=10)
    found = layers(net, torch.rand(2, 3, 32, 32))
    scores = random_scores(net, found)
    for sparsity, wanted in kept.items():
        masks = cut(scores, found, sparsity)
        assert sum(int(masks[layer.name].sum()) for layer in found if layer.kind == "conv") == wanted
        if network == "resnet18":
            each = {0.9: 52, 0.95: 26, 0.99: 6}[sparsity]  # of 513
            assert (masks["linear.weight"].sum(1) + masks["linear.bias"] == each).all()


@pytest.mark.check("mad", 5)
def test_removed_sets_are_nested_in_the_sparsity_and_the_opposite_order_removes_the_other_end():
    net, found = made("resnet8")
    scores = random_scores(net, found)
    levels = [0.0, 0.05, 0.3, 0.5, 0.62, 0.9, 0.99]
    found_masks = [cut(scores, found, p) for p in levels]
    assert all(m.all() for m in found_masks[0].values())
    for less, more in itertools.pairwise(found_masks):
        assert all((~less[n] <= ~more[n]).all() for n in scores)
        assert any((~less[n] < ~more[n]).any() for n in scores)
    conv = [layer.name for layer in found if layer.kind == "conv"]
    total = sum(scores[n].numel() for n in conv)
    low, high = cut(scores, found, 0.25), cut({n: -t for n, t in scores.items()}, found, 0.75)
    assert int(0.25 * total) + int(0.75 * total) == total
    assert all(torch.equal(low[n], ~high[n]) for n in conv)


def test_a_network_without_convolutions_is_cut_by_rows_alone():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
    found = layers(net, torch.rand(2, 1, 8, 8))
    masks = cut(random_scores(net, found), found, 0.6)
    assert [int((~rows(masks, layer)).sum()) for layer in found] == [20 * int(0.6 * 65), 10 * int(0.6 * 21)]


# -------------------------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.check("mad", 4)
@pytest.mark.parametrize("network, sparsity", [("cnn", 0.9), ("resnet8", 0.7), ("odd", 0.6)])
def test_a_run_removes_exactly_the_counts_of_the_code_and_more_in_some_convolutions_than_in_others(network, sparsity, tmp_path):
    recipe = apnb.recipe("mad", sparsity=sparsity, budget=SMALL, natural_epochs=1, mask_steps=5)
    run = apnb.run(recipe, Odd() if network == "odd" else network, store=tmp_path, device="cpu", evaluate=False)
    net = run.model
    modules = {n: m for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    zeros = {n: int((p == 0).sum()) for n, p in net.named_parameters()}
    conv = [f"{n}.{kind}" for n, m in modules.items() if isinstance(m, nn.Conv2d) for kind, _ in m.named_parameters()]
    sizes = {n: p.numel() for n, p in net.named_parameters()}
    assert sum(zeros[n] for n in conv) == int(sparsity * sum(sizes[n] for n in conv))
    for name, m in modules.items():
        if isinstance(m, nn.Linear):
            row = m.weight if m.bias is None else torch.cat([m.weight, m.bias[:, None]], 1)
            assert ((row == 0).sum(1) == int(sparsity * row.shape[1])).all(), name
    density = [1 - zeros[n] / sizes[n] for n in conv if n.endswith("weight")]
    assert max(density) - min(density) > 0.1
    for n, p in net.named_parameters():
        assert (n in run.masks) == (n.rsplit(".", 1)[0] in modules)
        if n in run.masks:
            assert torch.equal(p != 0, run.masks[n])
    kept = sum(int(m.sum()) for n, m in run.masks.items() if n.endswith("weight"))
    assert run.sparsity.kept == kept


@pytest.mark.check("mad", 6)
def test_removed_weights_are_exactly_zero_after_every_step_of_fine_tuning_and_the_others_move(tmp_path):
    run, zero, before, seen = runner(tmp_path), None, None, 0
    for event in methods.stages(run):
        if isinstance(event, Finished) and event.stage == "pruning":
            before = run.state()
            zero = {n: p.detach() == 0 for n, p in run.net.named_parameters() if not n.startswith("bn")}
            assert all(z.any() for n, z in zero.items() if n.endswith("weight"))
        if isinstance(event, Batch) and event.stage == "finetuning":
            seen += 1
            for n, p in run.net.named_parameters():
                gone = zero.get(n, torch.zeros_like(p, dtype=torch.bool))
                assert (p.detach()[gone] == 0).all()
                assert (p.detach() != before[n])[~gone].float().mean() > 0.95
    assert seen == 4
    assert run.budget.weight_decay > 0


def runner_up(p, y):
    """The probability of the class that is most probable after the true one is struck out, one image at a time."""
    out, right = [], 0
    for row, label in zip(p, y.tolist(), strict=True):
        first, second = row.topk(2).indices.tolist()
        right += first == label
        out.append(row[second] if first == label else row[first])
    return torch.stack(out), right


@pytest.mark.check("mad", 7)
@pytest.mark.check("mad", 6)
@pytest.mark.parametrize("weight", [0.5, 0.0])
def test_a_step_of_fine_tuning_is_the_one_of_its_loss_at_its_attack_worked_out_by_hand(weight, tmp_path):
    run = runner(tmp_path, **({} if weight == 0.5 else {"margin": weight}))
    calls = []
    stream = methods.stages(run)
    for event in stream:
        if isinstance(event, Finished) and event.stage == "pruning":
            break
    mirror = copy.deepcopy(run.net)
    run.net.register_forward_pre_hook(lambda m, args: calls.append((m.training, args[0].detach().clone())))
    assert isinstance(next(e for e in stream if isinstance(e, Batch)), Batch)
    assert [training for training, _ in calls] == [False] * SMALL.attack_steps + [True] * 2
    *iterates, x, x_adv = (images for _, images in calls)
    data = stage(run, "finetuning").data
    y = next(data(0))[1]
    assert torch.equal(x, next(data(0))[0])

    mirror.eval()
    noise = torch.randn(x.shape, generator=generator(0, "finetuning"))
    assert torch.equal(iterates[0], x + 0.001 * noise)
    for at, then in itertools.pairwise([*iterates, x_adv]):
        at = at.clone().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(mirror(at), y), at)
        moved = at.detach() + 2.3 * run.eps / SMALL.attack_steps * g.sign()
        moved = torch.min(torch.max(moved, x - run.eps), x + run.eps).clamp(0, 1)
        assert ((moved - then).abs() < 1e-6).float().mean() > 0.999

    mirror.train()
    clean, attacked = mirror(x), mirror(x_adv)  # two passes move the statistics, in this order
    clean.retain_grad()
    p_n, p_a = clean.softmax(1), attacked.softmax(1)
    wrong, right = runner_up(p_a, y)
    assert 0 < right < len(y), "both kinds of images: argmax is the label, and is not"
    loss = F.cross_entropy(attacked, y) - torch.log(1.0001 - wrong + 1e-12).mean()
    if weight:
        kl = (p_n * (p_n.log() - (p_a + 1e-12).log())).sum(1)
        loss = loss + weight * (kl * (1.0000001 - p_n[range(len(y)), y])).mean()
    loss.backward()
    assert (clean.grad is not None and bool(clean.grad.any())) == (weight > 0)
    state = dict(mirror.state_dict())
    rate, decay = 0.1, 2e-4
    with torch.no_grad():
        for n, p in mirror.named_parameters():
            free = torch.ones_like(p) if n.startswith("bn") else (p != 0).float()
            p -= rate * (p.grad + decay * p) * free
    for n, t in run.net.state_dict().items():
        torch.testing.assert_close(t, state[n], rtol=1e-4, atol=1e-5)


def test_stages_are_as_long_and_rates_as_high_as_the_code_has_them_and_attacks_are_where_they_belong(tmp_path):
    budget = dataclasses.replace(SMALL, epochs=8, finetune_epochs=4, images=64, check=0)
    run = runner(tmp_path, budget=budget, natural_epochs=4, mask_steps=5)
    rates, passes, seen = {}, {}, []
    run.net.register_forward_pre_hook(lambda m, args: seen.append((m.training, args[0].detach().clone())))
    for event in methods.stages(run):
        if isinstance(event, Batch):
            rates.setdefault(event.stage, []).append(event.metrics.get("lr"))
            passes.setdefault(event.stage, seen[:])
            seen.clear()
    assert list(rates) == ["natural", "pretraining", "pruning", "finetuning"]
    assert rates["natural"] == rates["finetuning"] == pytest.approx([0.1, 0.1, 0.01, 0.001])
    assert rates["pretraining"] == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.001] * 2)
    attacked = [False] * budget.attack_steps  # in evaluation mode
    assert {stage: [training for training, _ in of] for stage, of in passes.items()} == {
        "natural": [True],
        "pretraining": [*attacked, True],
        "pruning": [*attacked, *[False] * (5 + 1)],
        "finetuning": [*attacked, True, True],
    }
    for stage_, clean in (("pretraining", None), ("finetuning", -2)):
        x = [image for _, image in passes[stage_]]
        if clean:
            del x[clean]
        length = max(float((b - a).abs().max()) for a, b in itertools.pairwise(x))
        assert length == pytest.approx(2.3 * run.eps / budget.attack_steps, abs=2e-3)


@pytest.mark.parametrize("name", ["pretraining", "finetuning"])
def test_a_stage_under_attack_ends_with_its_best_epoch_on_attacked_validation_images(name, tmp_path):
    run = runner(tmp_path, budget=dataclasses.replace(SMALL, epochs=6, finetune_epochs=6, lr=0.3, finetune_lr=0.3))
    ends = []
    for event in methods.stages(run):
        if event.stage == name and isinstance(event, Epoch):
            ends.append((event.metrics["val_pgd"], run.state()))
        if event.stage == name and isinstance(event, Finished):
            break
    values = [value for value, _ in ends]
    last = max(i for i, value in enumerate(values) if value == max(values))
    assert len(set(values)) > 1
    state = run.state()
    assert torch.equal(state["bn1.running_mean"], ends[last][1]["bn1.running_mean"])
    zero = state["conv1.weight"] == 0
    assert same(state["conv1.weight"][~zero], ends[last][1]["conv1.weight"][~zero])


def test_a_run_stopped_in_the_middle_of_any_stage_and_called_again_gives_the_identical_network(tmp_path):
    whole = runner(tmp_path / "whole")
    _, masks = result(methods.stages(whole))
    places = [("natural", 3), ("pretraining", 4), ("pruning", 1), ("finetuning", 4)]
    for name, events in places:
        run = runner(tmp_path / "parts")
        stream = methods.stages(run)
        mine = (event for event in stream if event.stage == name and isinstance(event, Batch | Epoch))
        drain(itertools.islice(mine, events))
        stream.close()
    run = runner(tmp_path / "parts")
    torch.manual_seed(123)
    _, again = result(methods.stages(run))
    assert same(again, masks)
    assert same(run.state(), whole.state())
    strip = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]  # noqa: E731
    assert same(strip(run.rows), strip(whole.rows))


def test_sparsities_share_the_dense_network(tmp_path):
    drain(methods.stages(runner(tmp_path, sparsity=0.5)))
    told = {e.stage: e.kind for e in methods.stages(runner(tmp_path, sparsity=0.6)) if e.kind in ("restored", "finished")}
    assert told == {"natural": "restored", "pretraining": "restored", "pruning": "finished", "finetuning": "finished"}


def test_fine_tuning_can_have_another_loss_and_what_the_cut_left_is_told(tmp_path):
    run = runner(tmp_path, finetuning="trades", pretraining="fgsm")
    events = drain(methods.stages(run))
    (told,) = [e for e in events if isinstance(e, Pruned)]
    assert told.metrics["asked"] == 0.8
    assert told.metrics["weights"] == pytest.approx(0.8, abs=1e-3)
    assert {"clean", "pgd"} <= told.metrics.keys()


@pytest.mark.parametrize("name", ["mask_steps", "mask_lr"])
def test_masks_that_would_take_nothing_away_are_refused_before_any_training(name, tmp_path):
    with pytest.raises(Invalid, match=f"MAD: {name} must be more than 0"):
        runner(tmp_path, **{name: 0})


def test_the_damage_is_in_full_precision_while_the_body_of_the_network_computes_in_bfloat16():
    net, found = made("cnn")
    net = net.float()
    x, y = images(16)
    weights, delta = ({n: t.float() for n, t in of.items()} for of in masked(net, found))
    exact = damage(Model(net, weights), delta, found, x.float(), y)
    with bf16_body(net, ("conv1", "linear"), "cpu"):
        rounded = damage(Model(net, weights), delta, found, x.float(), y)
    for n, t in rounded.items():
        assert t.dtype == torch.float32
        assert not torch.equal(t, exact[n])
        assert float((t - exact[n]).norm() / exact[n].norm()) < 0.1
