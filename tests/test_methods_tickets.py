"""Li20 and Robust Bird: a mask from a short training, then the sparse network trained. Each listed property (tests/checks.py) anew."""

from __future__ import annotations

import copy
import math
from fractions import Fraction
from operator import attrgetter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

import apnb
from apnb import datasets, methods
from apnb.datasets import Batches
from apnb.events import Batch, Epoch, Finished, Pruned
from apnb.masks import percentile_counts
from apnb.mechanisms import FixedMasks, Model, Progress
from apnb.methods import li20, robustbird
from apnb.networks import build
from apnb.objectives import objective
from apnb.runner import Runner
from apnb.training import bake_, fit, milestones
from tests.helpers import goes_on_as_if_never_stopped, record, same

SMALL = {"epochs": 2, "search_epochs": 2, "batch": 32, "images": 96, "attack_steps": 2, "points": 16, "check": 32}
NORM_BEHIND = {"conv1.weight": "bn1", "conv2.weight": "bn2", "conv3.weight": "bn3"}  # of the network "cnn"


class Plain(nn.Module):
    """Two convolutions with biases, a norm behind the second only, and two linear layers; for images of 1x8x8."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():  # the same weights whatever was drawn before this file was read
            torch.manual_seed(0)
            self.conv1 = nn.Conv2d(1, 6, 3, stride=2, padding=1)
            self.conv2 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
            self.bn2 = nn.BatchNorm2d(8)
            self.hidden = nn.Linear(32, 12)
            self.linear = nn.Linear(12, 10)

    def forward(self, x):
        x = self.bn2(self.conv2(self.conv1(x).relu())).relu()
        return self.linear(self.hidden(x.flatten(1)).relu())


def runner(method, tmp_path, network="cnn", budget=(), **options):
    options = {"sparsity": 0.8} | options
    return Runner(
        apnb.recipe(method, budget=apnb.Budget(**SMALL | dict(budget)), **options), network=network, store=tmp_path, device="cpu"
    )


class Spy:
    """What goes through a network: for every forward pass its images, the mode, the weights it is made with, the statistics."""

    def __init__(self, net):
        self.net, self.calls, self.gradients = net, [], 0
        self.names = [n for n, _ in net.named_parameters()]
        net.register_forward_pre_hook(self.see)

    def see(self, net, args):
        x = args[0]
        if x.requires_grad:
            x.register_hook(self.count)
        self.calls.append(
            {
                "x": x.detach().clone(),
                "training": net.training,
                "attack": x.requires_grad,
                "weights": {n: attrgetter(n)(net).detach().clone() for n in self.names},
                "buffers": {n: b.clone() for n, b in net.named_buffers()},
            }
        )

    def count(self, gradient):
        self.gradients += 1

    def taken(self):
        """The passes since this was last asked for, and how many gradients with respect to images."""
        calls, gradients = self.calls, self.gradients
        self.calls, self.gradients = [], 0
        return calls, gradients


def events_of(run, stage):
    """The events of one stage; the stages before are carried out on the way."""
    for event in methods.stages(run):
        if event.stage == stage:
            yield event


def carried_out(run):
    """The masks, the network's state after each stage, and all events."""
    stream, states, events = methods.stages(run), {}, []
    while True:
        try:
            event = next(stream)
        except StopIteration as end:
            return end.value, states, events
        events.append(event)
        if isinstance(event, Finished):
            states[event.stage] = run.state()


def sizes(run):
    return {layer.name: math.prod(layer.shape) for layer in run.layers}


# ------------------------------------------------------------------------------------------------------------------ Li20: masks


def dropped(total, sparsity):
    return percentile_counts({"": total}, sparsity, at=True)[""]


@pytest.mark.check("li20", 1)
@given(st.integers(2, 3000), st.integers(1, 999))
@example(376, 184)  # 375 * 18.4 / 100 is 69, which floating point falls short of
def test_as_many_numbers_go_as_lie_at_or_below_the_exact_percentile(total, tenths):
    """Of 0, 1, ..., N - 1 the P-th percentile with linear interpolation is (N - 1) P / 100, here an exact fraction."""
    tau = Fraction(total - 1) * Fraction(tenths, 1000)
    assert dropped(total, tenths / 1000) == min(sum(i <= tau for i in range(total)), total - 1)


@pytest.mark.check("li20", 1)
@pytest.mark.parametrize(
    ("total", "kept"), [(11164352, (1116436, 558218, 111644)), (14977728, (1497773, 748887, 149778))], ids=["resnet18", "vgg16"]
)
def test_the_counts_of_the_full_networks_are_the_known_ones(total, kept):
    assert tuple(total - dropped(total, p) for p in (0.9, 0.95, 0.99)) == kept


@pytest.mark.check("li20", 1)
@pytest.mark.parametrize("network", ["cnn", "resnet8", Plain()], ids=["cnn", "resnet8", "plain"])
def test_a_ticket_is_what_lies_above_the_percentile_of_relative_magnitudes_and_tickets_are_nested(network, tmp_path):
    before = None
    for sparsity in (0.3, 0.8, 0.97):
        run = runner("li20", tmp_path, network, sparsity=sparsity)
        masks, states, _ = carried_out(run)
        searched = states["pruning"]
        relative = {n: (w := searched[n].double().abs().numpy()) / w.mean() for n in sizes(run)}
        tau = np.percentile(np.concatenate([v.ravel() for v in relative.values()]), 100 * sparsity)
        assert all(np.array_equal(masks[n].numpy(), v > tau) for n, v in relative.items())
        total = sum(sizes(run).values())
        assert sum(int(masks[n].sum()) for n in relative) == total - int((total - 1) * sparsity + 1e-9) - 1
        if before is not None:  # the search does not know the sparsity: its end is the same
            assert same(searched, before[0])
            assert all((masks[n] <= before[1][n]).all() for n in relative)
        before = searched, masks


@pytest.mark.check("li20", 2)
@pytest.mark.parametrize("c", [1e-3, 0.37, 2.0, 50.0])
def test_scaling_a_layer_changes_no_mask_where_ranking_plain_magnitudes_would(c, tmp_path):
    run = runner("li20", tmp_path, "resnet8", sparsity=0.7)
    chosen = li20.target(run)
    first = chosen.select(li20.relative(run.params(), chosen))
    plain = chosen.select({n: p.detach().abs() for n, p in run.params().items()})
    for layer in run.layers:
        scaled = {n: p.detach() * (c if n == layer.name else 1) for n, p in run.params().items()}
        assert same(chosen.select(li20.relative(scaled, chosen)), first)
        assert not same(chosen.select({n: p.abs() for n, p in scaled.items()}), plain)


def test_a_norm_is_masked_where_the_layer_before_it_keeps_nothing_of_a_filter_and_nowhere_else(tmp_path):
    masks, _, _ = carried_out(runner("li20", tmp_path, sparsity=0.97))
    for weight, norm in NORM_BEHIND.items():
        alive = torch.tensor([bool(f.any()) for f in masks[weight]])
        assert torch.equal(masks[f"{norm}.weight"], alive)
        assert torch.equal(masks[f"{norm}.bias"], alive)
    assert not all(masks[f"{norm}.weight"].all() for norm in NORM_BEHIND.values())
    assert len(masks) == 4 + 6


# ------------------------------------------------------------------------------------------------------- Li20: the first weights


@pytest.mark.check("li20", 3)
@pytest.mark.parametrize("network", ["cnn", "resnet8", Plain()], ids=["cnn", "resnet8", "plain"])
def test_the_ticket_starts_from_the_first_weights_where_it_keeps_them_and_from_exact_zeros_elsewhere(network, tmp_path):
    run = runner("li20", tmp_path, network, sparsity=0.9)
    stream, spy = methods.stages(run), Spy(run.net)
    for event in stream:
        if isinstance(event, Finished) and event.stage == "initial":
            theta_0 = run.state()
        if isinstance(event, Finished) and event.stage == "pruning":
            theta_t = run.state()
            spy.taken()
        if event.stage == "training":
            break
    first = spy.taken()[0][0]
    stream.close()
    masks, _, _ = carried_out(run)
    for n, w in first["weights"].items():
        kept = masks.get(n, torch.ones_like(w, dtype=torch.bool))
        assert torch.equal(w[kept], theta_0[n][kept])
        assert (w[~kept] == 0).all()
    assert same(first["buffers"], {n: theta_0[n] for n in first["buffers"]})
    assert not any(torch.equal(theta_t[n], theta_0[n]) for n in theta_0)  # the search had moved all of it


@pytest.mark.parametrize("network", ["cnn", "resnet8", "vgg16"])
def test_first_weights_are_drawn_anew_with_the_spread_of_their_kind_of_layer(network, tmp_path):
    data = (torch.rand(60, 3, 16, 16), torch.arange(60) % 10)
    run = Runner(apnb.recipe("li20", budget="tiny"), network=network, data=data, store=tmp_path, device="cpu")
    built = run.state()
    stream = methods.stages(run)
    assert next(stream).stage == "initial"
    stream.close()
    vgg, drawn = network == "vgg16", run.state()
    for layer in run.layers:
        w = drawn[layer.name].double()
        assert not torch.equal(drawn[layer.name], built[layer.name])
        if layer.kind == "conv":
            wanted = (2 / (layer.shape[0] * layer.shape[2] * layer.shape[3])) ** 0.5
        else:
            wanted = 0.01 if vgg else (layer.shape[1] * 3) ** -0.5  # uniform between -1 and 1 over the root of fan_in
            assert vgg or w.abs().max() <= layer.shape[1] ** -0.5
        n = w.numel()
        assert abs(float(w.square().mean().sqrt()) / wanted - 1) < 5 / (2 * n) ** 0.5
        assert abs(float(w.mean())) < 5 * wanted / n**0.5
    rest = {n: t for n, t in drawn.items() if n not in {layer.name for layer in run.layers}}
    ones = {"running_var": 1.0, "weight": 0.5 if vgg else 1.0}
    assert all((t == ones.get(n.rsplit(".", 1)[1], 0.0)).all() for n, t in rest.items())


def test_first_weights_depend_on_the_seed_alone_and_a_trained_network_starts_anew(tmp_path):
    def first(seed, network="cnn"):
        run = Runner(apnb.recipe("li20", seed=seed, budget="tiny"), network=network, store=tmp_path / str(seed), device="cpu")
        stream = methods.stages(run)
        next(stream)
        stream.close()
        return run.state()

    used = build("cnn", channels=1, classes=10, seed=9)
    used(torch.rand(8, 1, 8, 8))  # its statistics have moved
    assert same(first(1), first(1, used))
    assert not torch.equal(first(1)["conv1.weight"], first(2)["conv1.weight"])


# -------------------------------------------------------------------------------------------------------- Li20: ticket training


@pytest.mark.check("li20", 4)
def test_after_every_step_what_is_masked_is_zero_and_a_dead_filter_s_channel_is_exactly_zero(tmp_path):
    run = runner("li20", tmp_path, sparsity=0.97)
    masks, _, _ = carried_out(runner("li20", tmp_path, sparsity=0.97))
    outputs, steps = {}, 0
    again = Runner(run.recipe, store=tmp_path / "again", device="cpu")
    for norm in NORM_BEHIND.values():
        again.net.get_submodule(norm).register_forward_hook(lambda m, args, out, norm=norm: outputs.update({norm: out.detach()}))
    for event in events_of(again, "training"):
        if not isinstance(event, Batch):
            continue
        steps += 1
        for n, p in again.params().items():
            if n in masks:
                assert (p[~masks[n]] == 0).all()
            if n in sizes(run):
                assert torch.equal(p != 0, masks[n])
        for norm in NORM_BEHIND.values():
            alive = masks[f"{norm}.weight"]
            assert (outputs[norm][:, ~alive] == 0).all()
        assert all(outputs["bn1"][:, c].any() for c in masks["bn1.weight"].nonzero().flatten())
    assert steps == 6
    assert sum(int((~masks[f"{norm}.weight"]).sum()) for norm in NORM_BEHIND.values()) > 3


@pytest.mark.check("li20", 7)
@pytest.mark.parametrize("network", ["cnn", Plain()], ids=["cnn", "plain"])
def test_a_bias_after_a_step_is_the_one_of_sgd_times_the_share_of_its_row_that_is_kept(network, tmp_path):
    run = runner("li20", tmp_path, network, sparsity=0.8, budget={"lr": 0.5, "weight_decay": 0.01})
    masks, _, _ = carried_out(run)
    run = Runner(run.recipe, network=network, store=tmp_path / "again", device="cpu")
    mirror, spy, momentum = copy.deepcopy(run.net), Spy(run.net), {}
    shared = {
        n.replace("weight", "bias"): m.flatten(1).sum(1) / m[0].numel()
        for n, m in masks.items()
        if m.ndim > 1 and n.replace("weight", "bias") in run.params()
    }
    labels = [y for e in range(2) for _, y in Batches(run.train, 32, seed=0, stage="training")(e)]
    steps = 0
    for event in events_of(run, "training"):
        if not isinstance(event, Batch):
            continue
        call = [c for c in spy.taken()[0] if c["training"]][-1]  # the pass of the loss, with the weights before the step
        mirror.load_state_dict(call["weights"] | call["buffers"])
        loss = F.cross_entropy(mirror.train()(call["x"]), labels[steps])
        params = dict(mirror.named_parameters())
        for n, g in zip(shared, torch.autograd.grad(loss, [params[n] for n in shared]), strict=True):
            b = call["weights"][n]
            momentum[n] = 0.9 * momentum.get(n, 0.0) + g + 0.01 * b
            torch.testing.assert_close(
                run.params()[n].detach(), shared[n] * (b - event.metrics["lr"] * momentum[n]), rtol=1e-4, atol=1e-6
            )
        steps += 1
    assert steps == 6
    assert len(shared) == (1 if network == "cnn" else 4)
    assert any((d < 0.5).any() and d.any() for d in shared.values())


def test_a_full_mask_leaves_every_bias_to_the_optimizer():
    net = Plain()
    masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in net.named_parameters() if p.ndim > 1}
    for d in li20.Ticket(masks, dict(net.named_parameters())).density.values():
        assert (d == 1).all()


# -------------------------------------------------------------------------------------------------------------- Li20: attacks


@pytest.mark.check("li20", 5)
def test_a_searched_image_is_moved_by_eps_in_every_pixel_or_not_at_all_within_the_box_and_each_time_alike(tmp_path):
    def seen(folder, seed):
        torch.manual_seed(seed)  # the global random state must not matter
        run = runner("li20", tmp_path / folder)
        spy = Spy(run.net)
        for event in events_of(run, "pruning"):
            if isinstance(event, Batch):
                return run, spy.taken()[0]

    run, (attack, loss) = seen("a", 1)
    x, y = next(Batches(run.train, 32, seed=0, stage="pruning")(0))
    assert torch.equal(attack["x"], x)  # no random start
    assert (attack["training"], loss["training"]) == (False, True)
    images = [(x + s * run.eps).clamp(0, 1) for s in (-1, 0, 1)]
    down, still, up = (loss["x"] == image for image in images)
    assert (down | still | up).all()
    mirror = copy.deepcopy(run.net)
    mirror.load_state_dict(attack["weights"] | attack["buffers"])
    pixels = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(mirror.eval()(pixels), y, reduction="sum"), pixels)
    clear = g.abs() > 1e-5 * g.abs().max()
    for moved, sign in ((down, -1), (still, 0), (up, 1)):
        assert moved[clear & (g.sign() == sign)].all()
    assert (loss["x"] - x).abs().amax() <= run.eps + 1e-7
    assert torch.equal(seen("b", 2)[1][1]["x"], loss["x"])


@pytest.mark.check("li20", 8)
@pytest.mark.parametrize(("stage", "gradients"), [("pruning", 1), ("training", 10)])
def test_a_batch_of_the_search_takes_one_gradient_of_the_images_and_one_of_the_ticket_as_many_as_there_are_steps(
    stage, gradients, tmp_path
):
    assert apnb.recipe("li20", budget="paper").numbers(3072).attack_steps == 10
    run = runner("li20", tmp_path, budget={"attack_steps": 10, "check": 0})
    spy = Spy(run.net)
    images = [x for e in range(2) for x, _ in Batches(run.train, 32, seed=0, stage=stage)(e)]
    for event in methods.stages(run):
        if not isinstance(event, Batch):
            spy.taken()
            continue
        calls, counted = spy.taken()
        if event.stage != stage:
            continue
        assert counted == gradients
        *attack, loss = calls
        assert len(attack) == gradients
        assert all(c["attack"] and not c["training"] for c in attack)
        assert loss["training"] and not loss["attack"]
        x = images[event.step - 1]
        assert torch.equal(attack[0]["x"], x)  # from the image itself
        step = run.eps if gradients == 1 else run.eps / 4
        for a, b in zip(attack, calls[1:], strict=True):
            assert (b["x"] - a["x"]).abs().amax() == pytest.approx(step, rel=1e-4)
        assert (loss["x"] - x).abs().amax() <= run.eps + 1e-7


def test_trades_starts_beside_the_image_where_its_gradient_is_zero(tmp_path):
    run = runner("li20", tmp_path, training_step="trades", budget={"check": 0})
    spy = Spy(run.net)
    for event in events_of(run, "training"):
        if isinstance(event, Batch):
            calls = spy.taken()[0]
            clean, start = calls[-2]["x"], [c["x"] for c in calls if c["attack"]][-run.budget.attack_steps]
            assert (start != clean).float().mean() > 0.9
            assert (start - clean).abs().max() < 0.01


# -------------------------------------------------------------------------------------------------------------------- rates

RATES = {
    "li20, search": ("li20", "pruning", 100, {"search_lr": 0.01, "warmup": 10}, [0.01] * 50 + [1e-3] * 25 + [1e-4] * 25),
    "li20, ticket": (
        "li20",
        "training",
        100,
        {"search_lr": 0.01, "warmup": 10},
        [0.01 * (t + 1) for t in range(10)] + [0.1] * 40 + [0.01] * 25 + [1e-3] * 25,
    ),
    "robustbird": ("robustbird", "training", 200, {}, [0.1] * 100 + [0.01] * 50 + [1e-3] * 50),
    "robustbird, as released": ("robustbird", "training", 200, {"as_released": True}, [0.1] * 50 + [0.01] * 100 + [1e-3] * 50),
}


@pytest.mark.check("li20", 6)
@pytest.mark.check("robustbird", 7)
@pytest.mark.parametrize("which", list(RATES))
def test_the_learning_rate_of_every_epoch_is_that_of_the_scripts(which, tmp_path):
    method, stage, epochs, options, rates = RATES[which]
    lengths = {"search_epochs": epochs if stage == "pruning" else 1, "epochs": epochs if stage == "training" else 1}
    run = runner(method, tmp_path, budget={"images": 10, "batch": 10, "attack_steps": 1, "check": 0, **lengths}, **options)
    told = [event.metrics["lr"] for event in events_of(run, stage) if isinstance(event, Batch)]
    assert told == pytest.approx(rates)


PAPER = {
    "li20": {"epochs": 100, "search_epochs": 100, "lr": 0.1, "weight_decay": 1e-4, "batch": 64, "search_lr": 0.01, "warmup": 10},
    "robustbird": {
        "epochs": 200,
        "search_epochs": 200,
        "lr": 0.1,
        "weight_decay": 5e-4,
        "batch": 128,
        "window": 5,
        "threshold": 0.08,
    },
}


@pytest.mark.parametrize(("method", "numbers"), PAPER.items())
def test_a_run_at_the_paper_s_size_has_the_paper_s_numbers(method, numbers):
    r = apnb.recipe(method, budget="paper")
    found = r.numbers(3072).training() | r.settings(3072)
    assert {n: found[n] for n in numbers} == numbers
    assert found["attack_steps"] == 10


# ------------------------------------------------------------------------------------------------------ Robust Bird: the cut


@pytest.mark.check("robustbird", 1)
@pytest.mark.parametrize("sparsity", [0.5, 0.83, 0.99])
@pytest.mark.parametrize("network", ["cnn", "resnet8", Plain()], ids=["cnn", "resnet8", "plain"])
def test_the_smallest_magnitudes_of_the_whole_network_go_and_exactly_their_share(network, sparsity, tmp_path):
    run = runner("robustbird", tmp_path, network, sparsity=sparsity)
    masks, states, _ = carried_out(run)
    assert set(masks) == {n for n, p in run.params().items() if p.ndim > 1}  # first layer, shortcuts and classifier included
    w = torch.cat([states["pruning"][n].abs().flatten() for n in masks])
    m = torch.cat([masks[n].flatten() for n in masks])
    assert int((~m).sum()) == round(sparsity * len(m))
    assert w[~m].max() <= w[m].min()
    shares = {n: float(mask.float().mean()) for n, mask in masks.items()}
    assert max(shares.values()) > 1.5 * min(shares.values())
    assert len({round(s, 3) for s in shares.values()}) > 1


@pytest.mark.check("robustbird", 1)
@pytest.mark.check("robustbird", 8)
@pytest.mark.parametrize("network", ["cnn", Plain()], ids=["cnn", "plain"])
def test_the_cut_is_torch_s_own_global_one_and_folding_weight_and_mask_gives_the_same_logits(network, tmp_path):
    """The authors' code prunes with torch: weight_orig and weight_mask in every layer; ours is a plain network."""
    run = runner("robustbird", tmp_path, network, sparsity=0.85)
    masks, states, _ = carried_out(run)
    theirs, folded = copy.deepcopy(run.net), copy.deepcopy(run.net)
    theirs.load_state_dict(states["pruning"])
    pairs = [(theirs.get_submodule(layer.module), "weight") for layer in run.layers]
    prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=0.85)
    given = theirs.state_dict()
    for layer in run.layers:
        assert torch.equal(given[f"{layer.module}.weight_mask"].bool(), masks[layer.name])
    state = {n: t for n, t in given.items() if not n.endswith(("_orig", "_mask"))}
    state |= {n: given[f"{n}_orig"] * given[f"{n}_mask"] for n in masks}
    folded.load_state_dict(state, strict=True)
    ours = copy.deepcopy(run.net)
    ours.load_state_dict(states["pruning"])
    model = Model(ours, dict(ours.named_parameters()), FixedMasks(masks))
    x = run.dataset.validation.images(slice(0, 50))
    for net in (theirs, folded, ours):
        net.eval()
    logits = theirs(x)
    assert torch.equal(folded(x), logits)
    assert torch.equal(model(x), logits)
    bake_(ours, model.mechanism)
    assert torch.equal(ours(x), logits)
    assert logits.std() > 0


@pytest.mark.parametrize("method", ["li20", "robustbird"])
def test_a_layer_may_be_emptied_and_the_event_of_the_cut_says_so(method, tmp_path):
    run = runner(method, tmp_path, "resnet8", sparsity=0.998)
    masks, states, events = carried_out(run)
    (cut,) = (e for e in events if isinstance(e, Pruned))
    empty = tuple(n for n in sizes(run) if not masks[n].any())
    assert empty
    assert cut.metrics["empty"] == empty
    assert all(t.isfinite().all() for t in states["training"].values())


def test_a_sparsity_that_leaves_no_weight_is_refused_before_any_training(tmp_path):
    with pytest.raises(apnb.Invalid, match="leaves none of 25744 weights; choose a lower one"):
        next(methods.stages(runner("robustbird", tmp_path, sparsity=0.99999)))


# ------------------------------------------------------------------------------------------------- Robust Bird: the early bird


def bird(sparsity=0.5, window=5, threshold=0.08):
    return robustbird.EarlyBird(("w",), sparsity, window=window, threshold=threshold)


def fires(mechanism, weights):
    """The epoch after which the stage ends, or None."""
    for epoch, w in enumerate(weights, 1):
        mechanism.between_epochs(Progress(epoch=epoch, epochs=len(weights), params={"w": w}))
        if mechanism.done:
            return epoch
    return None


@pytest.mark.check("robustbird", 2)
@pytest.mark.parametrize("sparsity", [0.5, 0.83, 0.99])
@pytest.mark.parametrize("network", ["cnn", "resnet8"])
def test_the_mask_that_is_watched_is_that_of_the_convolutions_alone_above_the_entry_at_int_n_p(network, sparsity, tmp_path):
    run = runner("robustbird", tmp_path, network, sparsity=sparsity, budget={"search_epochs": 3})
    snapshots = [e.snapshot() for e in events_of(run, "pruning") if isinstance(e, Epoch)]
    convolutions = [n for n, p in run.params().items() if p.ndim == 4]
    assert snapshots[0]["mechanism"]["queue"] == []  # nothing is said of the untrained network
    assert len(snapshots[2]["mechanism"]["queue"]) == 2
    for snapshot, mask in zip(snapshots, snapshots[2]["mechanism"]["queue"], strict=False):
        w = torch.cat([snapshot["net"][n].abs().flatten() for n in convolutions])
        t = w.tolist()
        t.sort()
        assert len(mask) == len(w)
        assert int(mask.sum()) == len(w) - int(len(w) * sparsity) - 1
        assert torch.equal(mask, w > t[int(len(w) * sparsity)])


@pytest.mark.check("robustbird", 2)
@given(st.integers(2, 400), st.floats(0, 0.999), st.integers(0, 9))
def test_the_watched_mask_has_its_count_for_distinct_weights(total, sparsity, seed):
    w = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).float() + 1
    mask = bird(sparsity).mask({"w": -w.view(1, -1)})
    assert int(mask.sum()) == total - int(total * sparsity) - 1
    assert not mask.any() or w[mask].min() > w[~mask].max()


@pytest.mark.check("robustbird", 3)
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99])
def test_the_bird_is_early_at_the_fifth_epoch_of_constant_weights_and_never_before(sparsity):
    w = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert fires(bird(sparsity), [w] * 4) is None
    assert fires(bird(sparsity), [w] * 9) == 5


@pytest.mark.check("robustbird", 3)
@pytest.mark.parametrize(("epochs", "length"), [(4, 4), (9, 5)])
def test_a_run_whose_weights_stand_still_searches_for_five_epochs(epochs, length, tmp_path):
    run = runner("robustbird", tmp_path, sparsity=0.5, budget={"lr": 0.0, "search_epochs": epochs})
    assert sum(isinstance(e, Epoch) for e in events_of(run, "pruning")) == length


@pytest.mark.check("robustbird", 3)
@pytest.mark.parametrize("odd", [0, 1, 2, 3])
@pytest.mark.parametrize(("swapped", "found"), [(4, True), (5, False)])
def test_one_distance_above_eight_percent_among_four_is_enough_to_go_on(odd, swapped, found):
    """Swapping the largest and smallest k of 100 weights changes 2 k entries of the mask: 8 % still agree, 10 % do not."""
    w = torch.arange(1.0, 101)
    other = w.clone()
    other[:swapped], other[-swapped:] = w[-swapped:], w[:swapped]
    weights = [other if i == odd else w for i in range(10)]
    mechanism = bird()
    assert fires(mechanism, weights) == (5 if found else odd + 6)  # as soon as the odd one has left the queue
    assert fires(bird(), weights[:5]) == (5 if found else None)


@pytest.mark.check("robustbird", 4)
@given(st.integers(0, 999), st.sampled_from([0.96, 0.97, 0.99]))
def test_any_sequence_is_an_early_bird_at_the_fifth_epoch_where_hardly_anything_is_kept(seed, sparsity):
    g = torch.Generator().manual_seed(seed)
    assert fires(bird(sparsity), [torch.randn(500, generator=g) for _ in range(9)]) == 5
    assert fires(bird(0.5), [torch.randn(500, generator=g) for _ in range(9)]) is None


# ------------------------------------------------------------------------------------------------- Robust Bird: the second stage


def second_stage(run):
    """The last state of the first stage, then (event, passes since the last one) of the second."""
    spy = Spy(run.net)
    for event in methods.stages(run):
        if isinstance(event, Finished) and event.stage == "pruning":
            yield run.state()
            spy.taken()
        if event.stage == "training" and not isinstance(event, Finished):
            yield event, spy.taken()[0]


@pytest.mark.check("robustbird", 5)
@pytest.mark.check("robustbird", 6)
@pytest.mark.check("robustbird", 7)
def test_the_sparse_network_goes_on_from_the_weights_reached_with_a_full_rate_and_no_momentum(tmp_path):
    """Its first step is plain gradient descent from the cut weights; a momentum of before or another start would show."""
    run = runner("robustbird", tmp_path, sparsity=0.9, budget={"weight_decay": 0.02})
    masks, _, events = carried_out(runner("robustbird", tmp_path / "first", sparsity=0.9, budget={"weight_decay": 0.02}))
    reached = [e for e in events if isinstance(e, Epoch) and e.stage == "pruning"]
    stream = second_stage(run)
    state = next(stream)
    event, calls = next(stream)
    assert event.metrics["lr"] == run.budget.lr
    attack, loss = calls[0], calls[-1]
    assert all(torch.equal(attack["buffers"][n], state[n]) for n in attack["buffers"])
    for n, w in attack["weights"].items():
        kept = masks.get(n, torch.ones_like(w, dtype=torch.bool))
        assert torch.equal(w[kept], state[n][kept])
        assert (w[~kept] == 0).all()
    mirror = copy.deepcopy(run.net)
    mirror.load_state_dict(loss["weights"] | loss["buffers"])
    _, y = next(Batches(run.train, 32, seed=0, stage="training")(0))
    params = dict(mirror.named_parameters())
    grads = torch.autograd.grad(F.cross_entropy(mirror.train()(loss["x"]), y), list(params.values()))
    for (n, _), g in zip(params.items(), grads, strict=True):
        kept = masks.get(n, torch.ones_like(g, dtype=torch.bool))
        expected = state[n] - run.budget.lr * (g * kept + 0.02 * state[n])
        torch.testing.assert_close(run.params()[n].detach(), expected, rtol=1e-4, atol=1e-6)
        if n in masks:
            assert (g[~kept] != 0).any()  # there was a gradient to be masked
            decayed = state[n][~kept] * (1 - 0.1 * 0.02)
            torch.testing.assert_close(run.params()[n].detach()[~kept], decayed, rtol=1e-6, atol=0)
    assert len(reached) == 2


@pytest.mark.check("robustbird", 6)
def test_masked_weights_are_zero_in_every_pass_of_the_second_stage_and_in_what_it_leaves(tmp_path):
    run = runner("robustbird", tmp_path, sparsity=0.9)
    stream = second_stage(run)
    state = next(stream)
    seen = [calls for _, calls in stream]
    passes = [c for calls in seen for c in calls]
    masks, _, _ = carried_out(runner("robustbird", tmp_path / "again", sparsity=0.9))
    smallest = {n: state[n].abs() for n in masks}
    threshold = torch.cat([w.flatten() for w in smallest.values()]).sort().values[round(0.9 * sum(sizes(run).values()))]
    for n, m in masks.items():
        assert torch.equal(m, smallest[n] >= threshold)  # the masks at the end are those of the cut
        assert all(torch.equal(c["weights"][n] != 0, m) for c in passes)
        assert torch.equal(run.params()[n] != 0, m)
    assert len(passes) > 2 * 3 * 3


def test_the_epoch_that_withstands_the_validation_attack_best_is_the_result(tmp_path):
    run = runner("robustbird", tmp_path, sparsity=0.9, budget={"epochs": 8, "lr": 0.3, "check": 200}, val_steps=3)
    masks, states, events = carried_out(run)
    epochs = [e for e in events if isinstance(e, Epoch) and e.stage == "training"]
    measured = [e.metrics["val_pgd"] for e in epochs]
    assert max(measured) > measured[-1], "choose another rate: the last epoch is the best here, and nothing is shown"
    best = max(i for i, value in enumerate(measured) if value == max(measured))
    other = runner("robustbird", tmp_path / "again", sparsity=0.9, budget={"epochs": 8, "lr": 0.3, "check": 200}, val_steps=3)
    for event in events_of(other, "training"):
        if isinstance(event, Epoch) and event.step == best + 1:
            chosen = {n: w * masks[n] if n in masks else w for n, w in event.snapshot()["net"].items()}
            break
    assert same(states["training"], chosen)
    other.load(chosen)
    net = other.net.eval()
    assert other.measure(net, steps=3)["pgd"] == measured[best]


@pytest.mark.parametrize(
    ("method", "stage", "passes"),
    [("robustbird", "pruning", 1), ("robustbird", "training", 1 + 2), ("li20", "pruning", 1), ("li20", "training", 1)],
)
def test_statistics_move_with_the_batch_and_with_every_attack_step_where_the_attack_is_in_training_mode(
    method, stage, passes, tmp_path
):
    run = runner(method, tmp_path)
    moved, before = [], 0
    for event in methods.stages(run):
        seen = int(run.net.bn1.num_batches_tracked)
        if event.stage == stage and isinstance(event, Batch):
            moved.append(seen - before)
        elif event.stage == stage and isinstance(event, Epoch | Pruned):
            assert seen == before  # measuring moves nothing
        before = seen
    assert moved[1:] == [passes] * 5


@pytest.mark.parametrize("key", ["fgsm", "pgd_at", "trades"])
def test_a_first_stage_on_attacked_images_attacks_in_training_mode(key, tmp_path):
    run = runner("robustbird", tmp_path, pruning_step=key)
    spy = Spy(run.net)
    for event in events_of(run, "pruning"):
        if isinstance(event, Batch):
            assert all(c["training"] for c in spy.taken()[0])
            break


# ------------------------------------------------------------------------------------------------------------------- resuming


DIGITS = datasets.load("digits")


def mechanism_of(method, net):
    params = dict(net.named_parameters())
    if method == "robustbird":
        return robustbird.EarlyBird(("conv1.weight", "conv2.weight"), 0.9, window=2, threshold=0.01)
    g = torch.Generator().manual_seed(5)
    masks = {n: torch.rand(p.shape, generator=g) < 0.3 for n, p in params.items() if p.ndim > 1}
    return li20.Ticket(li20.with_norms(net, masks), params)


@pytest.mark.parametrize("method", ["li20", "robustbird"])
def test_a_stage_resumed_after_any_epoch_equals_an_uninterrupted_one_bit_for_bit(method, tmp_path):
    def stage(resume):
        net, g = build("cnn", channels=1, classes=10, seed=0), torch.Generator().manual_seed(11)
        mechanism = mechanism_of(method, net)
        data = Batches(DIGITS.train.at(slice(0, 96)), 32, seed=0, stage="test")
        loss = objective("pgd_at", eps=0.15, steps=2, generator=g)
        options = {"epochs": 5, "lr": milestones(0.1, 0.5), "mechanism": mechanism, "resume": resume, "generator": g}
        return net, mechanism, *record(fit(net, data, loss, **options))

    goes_on_as_if_never_stopped(stage, tmp_path)


@pytest.mark.parametrize("method", ["li20", "robustbird"])
def test_a_run_stopped_at_the_end_of_any_epoch_and_called_again_equals_one_left_alone(method, tmp_path):
    recipe = apnb.recipe(method, sparsity=0.9, budget=apnb.Budget(**SMALL | {"search_epochs": 6, "epochs": 3}))
    options = {"evaluate": False, "device": "cpu", "snapshot_every": 0}
    alone = apnb.run(recipe, store=tmp_path / "alone", **options)
    ends = 0
    for event in apnb.stream(recipe, store=tmp_path / "count", **options):
        ends += isinstance(event, Epoch | Finished)
    for stop in range(1, ends):
        store, seen = tmp_path / f"{stop}", 0
        stream = apnb.stream(recipe, store=store, **options)
        while seen < stop:
            seen += isinstance(next(stream), Epoch | Finished)
        next(stream)
        stream.close()
        torch.manual_seed(stop)
        again = apnb.run(recipe, store=store, **options)
        assert same(again.model.state_dict(), alone.model.state_dict())
        assert same(again.masks, alone.masks)


# ------------------------------------------------------------------------------------------------------------- carried out whole


MLP = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


@pytest.mark.parametrize("method", ["li20", "robustbird"])
@pytest.mark.parametrize("network", ["cnn", "resnet8", Plain(), MLP], ids=["cnn", "resnet8", "plain", "mlp"])
def test_what_a_run_leaves_is_a_plain_network_whose_zeros_are_the_masks_complement(method, network, tmp_path):
    run = apnb.run(
        apnb.recipe(method, sparsity=0.9, budget="tiny"), network=network, store=tmp_path, evaluate=False, device="cpu"
    )
    for n, p in run.model.named_parameters():
        if n.endswith("bias"):  # of a norm; a kept one may still be 0
            assert (p[~run.masks.get(n, torch.ones_like(p, dtype=torch.bool))] == 0).all()
        else:
            assert torch.equal(p != 0, run.masks.get(n, torch.ones_like(p, dtype=torch.bool)))
    total = sum(m.numel() for m in run.masks.values() if m.ndim > 1)
    kept = sum(int(m.sum()) for m in run.masks.values() if m.ndim > 1)
    assert run.sparsity.kept == kept == (total - dropped(total, 0.9) if method == "li20" else total - round(0.9 * total))
