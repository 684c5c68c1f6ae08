"""RADMM and PwoA: methods that pull weights towards a sparse copy. Each listed property (tests/checks.py) from first principles."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import apnb
from apnb import methods
from apnb.datasets import Batches
from apnb.errors import Invalid
from apnb.events import Batch, Epoch, Finished, Pruned
from apnb.mechanisms import Admm, FixedMasks, Model, Progress
from apnb.methods import pwoa, radmm
from apnb.networks import build, layers
from apnb.objectives import objective
from apnb.runner import Runner
from apnb.training import cosine, fit, saw_tooth, sgd
from tests.helpers import goes_on_as_if_never_stopped, record, same

FILES = {"radmm": radmm, "pwoa": pwoa}
BOTH = tuple(FILES)
SMALL = apnb.Budget(
    epochs=2, search_epochs=10, finetune_epochs=4, batch=64, images=128, attack_steps=2, dual_period=3, rho=0.5, rho_growth=1.3,
    weight_decay=1e-4, points=16, check=0,
)  # fmt: skip
"""Two batches an epoch; the dual is updated after 3, 6 and 9 epochs."""


def runner(method, store, network="cnn", data="digits", budget=SMALL, **options):
    recipe = apnb.recipe(method, budget=budget, **({"sparsity": 0.75} | options))
    return Runner(recipe, network=network, data=data, store=store, device="cpu", snapshot_every=0)


@dataclass
class Told:
    """What a run showed: masks, and by stage its snapshots (one an epoch), its network at the end and the rates of its batches."""

    run: Runner
    masks: dict[str, Tensor] = field(default_factory=dict)
    snapshots: dict[str, list[dict]] = field(default_factory=lambda: defaultdict(list))
    ends: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    rates: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cut: dict = field(default_factory=dict)


def follow(run, after=lambda stage: None):
    """Carry out a run and note what it shows; ``after`` is called with the name of each stage when it is over."""
    told, stream = Told(run), methods.stages(run)
    while True:
        try:
            event = next(stream)
        except StopIteration as end:
            told.masks = end.value
            return told
        if isinstance(event, Batch):
            told.rates[event.stage].append(event.metrics["lr"])
        elif isinstance(event, Epoch):
            told.snapshots[event.stage].append(event.snapshot())
        elif isinstance(event, Pruned):
            told.cut = event.metrics
        elif isinstance(event, Finished):
            told.ends[event.stage] = run.state()
            after(event.stage)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Runs of this file, each carried out once."""
    done: dict[tuple, Told] = {}

    def of(method, **options):
        key = (method, *sorted(options.items()))
        if key not in done:
            done[key] = follow(runner(method, tmp_path_factory.mktemp(method), **options))
        return done[key]

    return of


class Plain(nn.Module):
    """One convolution with ``filters`` filters of ``kernel`` x ``kernel`` weights, and a classifier called fc."""

    def __init__(self, filters=11, kernel=1, classes=10):
        super().__init__()
        self.conv = nn.Conv2d(1, filters, kernel)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(filters, classes)

    def forward(self, x):
        return self.fc(self.flatten(self.pool(self.relu(self.conv(x)))))


def prunable(method, run):
    """What each method prunes, spelled out: convolutions; in PwoA also what has fc.weight in its name."""
    params = run.params()
    return {n for n, p in params.items() if p.ndim == 4 or (method == "pwoa" and "fc.weight" in n)}


def units(w, structure):
    """Magnitudes of single weights, or L2 norms of filters."""
    return w.detach().double().abs().flatten() if structure == "weights" else w.detach().double().flatten(1).norm(dim=1)


def below_percentile(size, p):
    """Which of these magnitudes lie below their 100 p-th percentile, by numpy's interpolation."""
    return torch.from_numpy(size.numpy() < np.percentile(size.numpy(), 100 * p))


def projected(v, p):
    """The released projection of single weights: what lies below the percentile is zeroed."""
    return torch.where(below_percentile(v.abs().flatten().double(), p).view_as(v), 0.0, v)


# ------------------------------------------------------------------------------------------------------------------------ counts


@pytest.mark.check("radmm", 1)
@pytest.mark.check("pwoa", 6)
@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("structure", ["weights", "filters"])
@pytest.mark.parametrize("network", ["cnn", "resnet8", "plain"])
@pytest.mark.parametrize("method", BOTH)
def test_a_layer_keeps_what_is_not_below_its_exact_percentile_and_a_classifier_everything(
    method, network, structure, sparsity, tmp_path
):
    run = runner(method, tmp_path, Plain(11, 3) if network == "plain" else network, structure=structure, sparsity=sparsity)
    rank, p = {}, Fraction(str(sparsity))
    names = prunable(method, run) - ({"fc.weight"} if structure == "filters" else set())
    for n in names:  # magnitudes are 1, 2, 3, ... in random order, so that the percentile is exactly 1 + (n - 1) p
        w = run.params()[n]
        size = w.numel() if structure == "weights" else len(w)
        rank[n] = torch.randperm(size, generator=torch.Generator().manual_seed(size)) + 1
        with torch.no_grad():
            w.copy_(-(rank[n].view_as(w) if structure == "weights" else rank[n].view(-1, 1, 1, 1).expand_as(w)))
    masks = Admm(run.params(), FILES[method].target(run), rho=1.0, growth=1.0).masks(run.params())
    assert set(masks) == names
    assert all(n in names for n, p in run.params().items() if p.ndim == 4), "the first one and shortcuts too"
    for n, m in masks.items():
        size = len(rank[n])
        percentile = 1 + (size - 1) * p
        if method == "pwoa" and structure == "filters":
            kept = torch.tensor([i > percentile for i in rank[n].tolist()])
        else:
            kept = torch.tensor([i >= percentile for i in rank[n].tolist()])
            assert int(kept.sum()) == size - math.ceil((size - 1) * p)
        assert torch.equal(units(m, structure) > 0, kept)


@pytest.mark.check("radmm", 1)
def test_of_eleven_values_at_one_half_six_stay_and_the_released_mask_would_have_five_ones(tmp_path):
    run = runner("radmm", tmp_path, Plain(11), sparsity=0.5)
    (mask,) = Admm(run.params(), radmm.target(run), rho=1.0, growth=1.0).masks(run.params()).values()
    w = run.params()["conv.weight"].detach().abs().flatten().numpy()
    assert int(mask.sum()) == int((w >= np.percentile(w, 50)).sum()) == 6
    assert int((w > np.percentile(w, 50)).sum()) == 5


FULL = {
    "resnet18": {0.9: (1115933, 0.8996), 0.95: (557972, 0.9496), 0.99: (111601, 0.9895)},
    "vgg16": {0.9: (1471052, 0.8652), 0.95: (735529, 0.9132), 0.99: (147110, 0.9517)},
}


@pytest.mark.check("radmm", 1)
@pytest.mark.check("pwoa", 6)
@pytest.mark.parametrize("network", list(FULL))
@pytest.mark.parametrize("method", BOTH)
def test_the_totals_of_the_full_networks_are_the_known_ones(method, network, tmp_path):
    images = np.random.default_rng(0).random((60, 3, 32, 32), dtype=np.float32), np.arange(60) % 10
    run = runner(method, tmp_path, network, images)
    everything = sum(math.prod(layer.shape) for layer in run.layers)
    for sparsity, (kept, share) in FULL[network].items():
        run.recipe = apnb.recipe(method, sparsity=sparsity)
        target = FILES[method].target(run)
        dropped = sum(target.drop().values())
        assert sum(target.sizes().values()) - dropped == kept
        assert dropped / everything == pytest.approx(share, abs=5e-5)
    for sparsity, of_widths in {0.5: (32, 64, 128, 256), 0.75: (48, 96, 192, 384), 0.9: (57, 115, 230, 460)}.items():
        run.recipe = apnb.recipe(method, sparsity=sparsity, structure="filters")
        target = FILES[method].target(run)
        assert {(target.sizes()[n], k) for n, k in target.drop().items()} == set(zip((64, 128, 256, 512), of_widths, strict=True))


def test_a_layer_of_one_filter_keeps_it(tmp_path):
    for method in BOTH:
        run = runner(method, tmp_path, Plain(1, 3), structure="filters", sparsity=0.9)
        assert FILES[method].target(run).drop() == {"conv.weight": 0}


# -------------------------------------------------------------------------------------------------------------------- projection


def projection(w, structure, p, method="radmm"):
    """Pi of the weights (O, 1, k, k) of a network's only convolution."""
    net = Plain(len(w), w.shape[-1])
    with torch.no_grad():
        net.conv.weight.copy_(w)
    target = target_of(net, structure, p, method)
    return Admm({"conv.weight": net.conv.weight}, target, rho=1.0, growth=1.0).Z["conv.weight"]


def target_of(net, structure, p, method):
    """The target of a method for a network, without data or store."""
    found = layers(net, torch.rand(2, 1, 4, 4))[:1]
    counts = apnb.masks.percentile_counts(
        apnb.masks.unit_counts(found, structure), p, at=method == "pwoa" and structure == "filters"
    )
    return apnb.masks.Target(found, structure, "local", p, counts=counts)


SHARES = st.integers(1, 19).map(lambda i: i / 20)


@pytest.mark.check("radmm", 2)
@pytest.mark.parametrize(("structure", "kernel"), [("weights", 1), ("filters", 2)])
@given(seed=st.integers(0, 999), p=SHARES, q=SHARES, power=st.integers(-4, 4))
def test_the_projection_is_idempotent_scales_is_the_nearest_and_its_supports_are_nested(structure, kernel, seed, p, q, power):
    w = torch.randn(9, 1, kernel, kernel, generator=torch.Generator().manual_seed(seed))
    z = projection(w, structure, p)
    size = units(w, structure)
    kept = int((units(z, structure) > 0).sum())
    assert kept == 9 - math.ceil(8 * Fraction(str(p)))
    assert torch.equal(z[units(z, structure).view(9) > 0], w[units(z, structure).view(9) > 0]), "what is kept is kept as it is"
    assert torch.equal(projection(z, structure, p), z)
    assert torch.equal(projection(2.0**power * w, structure, p), 2.0**power * z)
    nearest = min(float(sum(size[list(out)] ** 2)) for out in itertools.combinations(range(9), 9 - kept))
    assert float((w - z).double().square().sum()) == pytest.approx(nearest)
    low, high = sorted((p, q))
    assert not ((projection(w, structure, high) != 0) & (projection(w, structure, low) == 0)).any()


# ------------------------------------------------------------------------------------------------------------------ Z, U and rho


@pytest.mark.check("radmm", 3)
@pytest.mark.check("pwoa", 5)
@pytest.mark.parametrize("as_released", [False, True])
@pytest.mark.parametrize("method", BOTH)
def test_weights_stay_dense_the_copy_has_the_target_count_and_the_dual_adds_up_residuals_at_updates_only(
    method, as_released, told
):
    t = told(method, as_released=as_released)
    names, seen = prunable(method, t.run), t.snapshots["pruning"]
    assert len(seen) == 10
    for n in names:
        size = t.run.params()[n].numel()
        previous = None
        for epoch, s in enumerate(seen, 1):  # during this epoch; the snapshot is from its end
            w, z, u = s["net"][n], s["mechanism"]["Z"][n], s["mechanism"]["U"][n]
            assert (w != 0).all()
            assert int((z != 0).sum()) == size - math.ceil((size - 1) * Fraction("0.75"))
            if previous is None:
                assert not u.any()
            elif epoch in (4, 7, 10):
                w_then, u_then = previous["net"][n], previous["mechanism"]["U"][n]
                assert torch.equal(z, projected(w_then + u_then, 0.75))
                torch.testing.assert_close(u - u_then, w_then - z)
                assert not torch.equal(u, u_then)
            else:
                assert torch.equal(u, previous["mechanism"]["U"][n])
                if method == "pwoa" and as_released:
                    assert torch.equal(z, projected(previous["net"][n], 0.75))
                else:
                    assert torch.equal(z, previous["mechanism"]["Z"][n])
            previous = s
    assert all(torch.equal(t.masks[n], projected(seen[-1]["net"][n], 0.75) != 0) for n in names), "the cut is of W, without U"


@pytest.mark.check("radmm", 4)
@pytest.mark.check("pwoa", 5)
@pytest.mark.parametrize("method", BOTH)
def test_rho_grows_at_every_update_of_the_dual_up_to_its_cap(method, told):
    cap = 1.0 if method == "pwoa" else math.inf
    k = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    for as_released in (False, True):
        rho = [s["mechanism"]["rho"] for s in told(method, as_released=as_released).snapshots["pruning"]]
        assert rho == pytest.approx([min(cap, 0.5 * 1.3**i) for i in k])
    b = apnb.recipe(method, budget="paper").numbers(3072)
    updates, growth, end = (9, 1.3, 0.0106) if method == "radmm" else (16, 1.35, 1.0)
    net = Plain()
    mechanism = Admm(
        dict(net.named_parameters()), target_of(net, "weights", 0.9, method), rho=b.rho, growth=b.rho_growth,
        period=b.dual_period, rescale=False, cap=cap,
    )  # fmt: skip
    trail = []
    for epoch in range(b.search_epochs + 1):
        mechanism.between_epochs(Progress(epoch=epoch, epochs=b.search_epochs, params=dict(net.named_parameters())))
        trail += [mechanism.rho] if mechanism.rho not in trail else []
    assert trail == pytest.approx([min(cap, b.rho * growth**i) for i in range(len(trail))])
    assert len(trail) == updates + 1
    assert trail[-1] == pytest.approx(end, abs=5e-5)


@pytest.mark.check("radmm", 4)
def test_the_rate_falls_seven_seven_and_six_epochs_in_a_period_of_twenty(tmp_path):
    b = replace(SMALL, epochs=1, search_epochs=22, finetune_epochs=10, dual_period=20, images=32, batch=32, attack_steps=1)
    t = follow(runner("radmm", tmp_path, budget=b, search_lr=0.01))
    assert t.rates["pruning"] == pytest.approx([1e-2] * 7 + [1e-3] * 7 + [1e-4] * 6 + [1e-2] * 2)
    peak = b.finetune_lr
    assert t.rates["finetuning"] == pytest.approx([peak] * 4 + [peak / 10] * 4 + [peak / 100] * 2)  # from 4 and 7.5 on


def test_as_released_pwoa_s_rate_is_one_batch_late(told):
    usual = [0.05 * 0.1 ** (e % 3) for e in range(10) for _ in range(2)]
    assert told("pwoa").run.constants["search_lr"] == 0.05
    assert told("pwoa").rates["pruning"] == pytest.approx(usual)
    assert told("pwoa", as_released=True).rates["pruning"] == pytest.approx([0.05, *usual[:-1]])


# --------------------------------------------------------------------------------------------------------------------- penalties


@pytest.mark.check("radmm", 7)
@pytest.mark.parametrize("k", [0, 1, 2, 4])
def test_the_penalty_s_gradient_is_that_of_textbook_admm_and_as_released_that_of_a_dual_with_its_graph(k):
    """The released arithmetic written out: U is made from W by additions that autograd sees, k times."""
    net = Plain(11)
    params = dict(net.named_parameters())
    made = [
        kind(params, target_of(net, "weights", 0.5, "radmm"), rho=0.3, growth=1.3, period=2, rescale=False)
        for kind in (Admm, radmm.GraphAdmm)
    ]
    w = net.conv.weight
    dual = torch.zeros_like(w)
    epochs = 2 * k + 2
    for epoch in range(2 * k + 1):
        for mechanism in made:
            mechanism.between_epochs(Progress(epoch=epoch, epochs=epochs, params=params))
        if epoch and epoch % 2 == 0:
            z = projected((w + dual).detach(), 0.5)
            dual = w + dual - z
            if epoch < 2 * k:  # the weights move on between two updates, in place as an optimizer moves them
                with torch.no_grad():
                    w.data.add_(torch.randn(w.shape, generator=torch.Generator().manual_seed(epoch)))
    at = Progress(epoch=2 * k + 1, epochs=epochs, params=params)
    z, u, rho = made[0].Z["conv.weight"], made[0].U["conv.weight"], 0.3 * 1.3**k
    torch.testing.assert_close(dual.detach(), u)
    (released,) = torch.autograd.grad(rho / 2 * (w - z + dual).square().sum(), w)
    closed = rho * (w.detach() - z + u)
    torch.testing.assert_close(released, (1 + k) * closed)
    for mechanism, wanted in zip(made, (closed, released), strict=True):
        value = mechanism.penalty(params, at)
        assert float(value.detach()) == pytest.approx(rho / 2 * float((w.detach() - z + u).square().sum()), rel=1e-5)
        value.backward()
        torch.testing.assert_close(w.grad, wanted)
        assert net.fc.weight.grad is None and net.conv.bias.grad is None
        w.grad = None


@pytest.mark.check("radmm", 7)
def test_as_released_a_run_differs_from_the_first_update_of_the_dual_on(told):
    default, released = (told("radmm", as_released=x).snapshots["pruning"] for x in (False, True))
    assert [same(a["net"], b["net"]) for a, b in zip(default, released, strict=True)] == [True] * 3 + [False] * 7


def test_as_released_pwoa_differs_from_the_second_batch_on(told):
    default, released = (told("pwoa", as_released=x).ends for x in (False, True))
    assert same(default["pretraining"], released["pretraining"])
    assert not same(default["pruning"], released["pruning"])


# ---------------------------------------------------------------------------------------------------------- cut and fine-tuning


@pytest.mark.check("radmm", 6)
@pytest.mark.check("pwoa", 6)
@pytest.mark.parametrize("structure", ["weights", "filters"])
@pytest.mark.parametrize("method", BOTH)
def test_while_fine_tuning_zeros_stay_zero_without_momentum_and_everything_else_moves(method, structure, told):
    t = told(method, structure=structure)
    names = list(t.run.params())
    assert set(t.masks) == {n for n in names if n.startswith("conv")}
    start = t.ends["pruning"]
    for s in t.snapshots["finetuning"]:
        for n in names:
            w, momentum = s["net"][n], s["optimizer"]["state"][names.index(n)]["momentum_buffer"]
            if n in t.masks:
                assert torch.equal(w == 0, ~t.masks[n])
                assert not momentum[~t.masks[n]].any() and momentum[t.masks[n]].any()
            assert not torch.equal(w, start[n]), f"{n} learns"
    for n, w in t.ends["finetuning"].items():
        if n in t.masks:
            assert torch.equal(w == 0, ~t.masks[n])
    assert (t.ends["finetuning"]["linear.weight"] != 0).all()


def test_a_stage_of_radmm_ends_with_its_best_epoch_but_admm_and_all_of_pwoa_with_the_last(tmp_path):
    b = replace(SMALL, epochs=6, search_epochs=4, finetune_epochs=5, lr=0.3, finetune_lr=0.3, check=100)
    for method in BOTH:
        t = follow(runner(method, tmp_path, budget=b))
        early = 0
        for stage, seen in t.snapshots.items():
            nets = [s["net"] for s in seen]
            end = len(seen) - 1
            if method == "radmm" and stage != "pruning":
                found = [s["metrics"]["val_clean"] + s["metrics"]["val_pgd"] for s in seen]
                end = max(range(len(found)), key=lambda i: (found[i], i))
                early += end < len(seen) - 1
            masks = t.masks if stage == "pruning" else {}  # the cut comes after the last epoch of ADMM
            assert all(torch.equal(w * masks.get(n, torch.tensor(1)), t.ends[stage][n]) for n, w in nets[end].items())
        assert early or method == "pwoa"


def kept_of(net, names, p):
    """Masks of the largest magnitudes of each layer."""
    return {n: projected(w.detach(), p) != 0 for n, w in net.named_parameters() if n in names}


@pytest.mark.check("radmm", 5)
def test_admm_brings_weights_close_to_their_copy_so_that_the_cut_costs_less_than_one_without(tmp_path):
    b = replace(apnb.recipe("radmm").numbers(64), epochs=10, finetune_epochs=1, attack_steps=2, check=200)
    run = runner("radmm", tmp_path, budget=b, sparsity=0.9)
    t = follow(run)
    names = set(t.masks)

    def distance(s):
        gap = sum(float((s["net"][n] - s["mechanism"]["Z"][n]).square().sum()) for n in names)
        return math.sqrt(gap / sum(float(s["net"][n].square().sum()) for n in names))

    pretrained, seen = t.ends["pretraining"], t.snapshots["pruning"]
    start = math.sqrt(
        sum(float((pretrained[n] - projected(pretrained[n], 0.9)).square().sum()) for n in names)
        / sum(float(pretrained[n].square().sum()) for n in names)
    )
    assert start > 0.5
    assert distance(seen[-1]) < 0.6 * start

    def cost(state):
        run.load(state)
        model = Model(run.net, run.params())
        cut = Model(run.net, run.params(), FixedMasks(kept_of(run.net, names, 0.9)))
        dense, after = run.measure(model.frozen()), run.measure(cut.frozen())
        return dense["clean"] - after["clean"], dense["pgd"] - after["pgd"]

    direct, prepared = cost(pretrained), cost(seen[-1]["net"])
    assert prepared[0] < 0.5 * direct[0]
    assert prepared[1] < 0.5 * direct[1]


# ------------------------------------------------------------------------------------------------------- what is trained on


@pytest.mark.check("radmm", 8)
def test_a_batch_of_radmm_passes_the_attack_s_steps_the_clean_images_and_the_attacked_ones_in_training_mode(tmp_path):
    b = replace(SMALL, epochs=1, search_epochs=2, finetune_epochs=1, dual_period=1, attack_steps=3)
    run = runner("radmm", tmp_path, budget=b)
    passes = defaultdict(list)
    stage = ["pretraining", "pruning", "finetuning"]
    run.net.register_forward_pre_hook(lambda m, args: passes[stage[0]].append((m.training, args[0].detach().clone())))
    t = follow(run, after=lambda name: stage.pop(0))
    tracked, counted = {n for n in run.state() if n.endswith("num_batches_tracked")}, 0
    for name, epochs in (("pretraining", 1), ("pruning", 2), ("finetuning", 1)):
        counted += epochs * 2 * (3 + 2)
        assert {int(t.ends[name][n]) for n in tracked} == {counted}
        trained = [x for training, x in passes[name] if training]
        data = Batches(run.train, 64, seed=0, stage=name)
        clean = [x for epoch in range(epochs) for x, _ in data(epoch)]
        assert len(trained) == 5 * len(clean)
        for i, x in enumerate(clean):
            seen = trained[5 * i : 5 * i + 5]
            start, adversarial = seen[0], seen[4]
            assert torch.equal(seen[3], x)
            assert all(float((a - x).abs().max()) <= run.eps + 1e-6 for a in seen)
            assert all(float(a.min()) >= 0 and float(a.max()) <= 1 for a in (seen[1], seen[2], adversarial))
            assert float(start.min()) < 0, "the start is not clipped"
            assert not torch.equal(start, x) and not torch.equal(adversarial, x)


def digest(state):
    return hashlib.sha256(b"".join(t.numpy().tobytes() for _, t in sorted(state.items()))).hexdigest()


@pytest.mark.check("pwoa", 1)
def test_after_pretraining_pwoa_passes_each_clean_batch_once_through_student_and_teacher_and_attacks_nothing(tmp_path):
    b = replace(SMALL, search_epochs=3, dual_period=1, finetune_epochs=2, check=0)
    run = runner("pwoa", tmp_path / "a", budget=b)
    passes, stage = defaultdict(list), ["pretraining", "pruning", "finetuning"]

    def look(module, args):  # a copy of the network, such as the teacher, is looked at too
        passes[stage[0]].append((module is run.net, module.training, args[0], digest(module.state_dict())))

    handle = run.net.register_forward_pre_hook(look)
    t = follow(run, after=lambda name: stage.pop(0))
    handle.remove()
    dense = digest(t.ends["pretraining"])
    for name, epochs in (("pruning", 3), ("finetuning", 2)):
        data = Batches(run.train, 64, seed=0, stage=name)
        clean = [x for epoch in range(epochs) for x, _ in data(epoch)]
        assert len(passes[name]) == 2 * len(clean)
        for i, x in enumerate(clean):
            pair = {student: rest for student, *rest in passes[name][2 * i : 2 * i + 2]}
            assert pair.keys() == {True, False}
            assert all(torch.equal(seen, x) and not seen.requires_grad for _, seen, _ in pair.values())
            assert pair[True][0] and not pair[False][0], "the student trains, the teacher does not"
            assert pair[False][2] == dense, "weights and running statistics of the teacher are those of the pretrained network"
    measured = follow(runner("pwoa", tmp_path / "b", budget=replace(b, check=32)))
    assert "pgd" in measured.cut and "pgd" not in t.cut
    assert same(measured.ends, t.ends) and same(measured.masks, t.masks), "what is measured and reported decides nothing"


@pytest.mark.check("pwoa", 7)
def test_labels_decide_nothing_while_admm_runs_and_something_once_hsic_has_a_weight(tmp_path):
    b = replace(SMALL, search_epochs=4, finetune_epochs=2)
    order = torch.randperm(128, generator=torch.Generator().manual_seed(1))
    ends = {}
    for permuted, weight in itertools.product((False, True), (0.0, 0.1)):
        run = runner("pwoa", tmp_path / f"{permuted}{weight}", budget=b, hsic_x=weight, hsic_y=weight)

        def permute(stage, run=run, permuted=permuted):
            if stage == "pretraining" and permuted:
                run.train = replace(run.train, y=run.train.y[order])

        ends[permuted, weight] = follow(run, after=permute).ends
    assert same(ends[True, 0.0]["pruning"], ends[False, 0.0]["pruning"])
    assert same(ends[True, 0.1]["pruning"], ends[False, 0.1]["pruning"])
    assert same(ends[True, 0.0]["finetuning"], ends[False, 0.0]["finetuning"])
    assert not same(ends[True, 0.1]["finetuning"], ends[False, 0.1]["finetuning"])


# ------------------------------------------------------------------------------------------------------------------ distillation


@pytest.mark.check("pwoa", 2)
def test_distillation_is_zero_for_equal_logits_a_mean_over_elements_and_pulls_with_the_difference_of_the_softmaxes():
    g = torch.Generator().manual_seed(0)
    s, t = (4 * torch.randn(6, 10, generator=g).double() for _ in range(2))
    s.requires_grad_(True)
    temperature = 30.0
    assert float(pwoa.distillation(t, t, temperature)) == 0
    value = pwoa.distillation(s, t, temperature)
    p, q = ((logits.detach() / temperature).exp() for logits in (s, t))
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    by_image = [sum(float(q[n, c] * (q[n, c] / p[n, c]).log()) for c in range(10)) for n in range(6)]
    assert float(value.detach()) == pytest.approx(temperature**2 * sum(by_image) / 60)
    batch_mean = temperature**2 * F.kl_div((s / temperature).log_softmax(1), q, reduction="batchmean")
    assert float(batch_mean.detach()) == pytest.approx(10 * float(value.detach()))
    (gradient,) = torch.autograd.grad(value, s)
    torch.testing.assert_close(gradient, temperature * (p - q) / 60)


# -------------------------------------------------------------------------------------------------------------------------- HSIC


def literal(a, b, sigma=5.0):
    """tr(R_a R_b) of the formula as it is written, centred on one side, float64. Labels: one-hot rows of int64."""
    m = len(a)
    r = []
    for v in (a, b):
        if v.dtype == torch.int64:
            one_hot = F.one_hot(v).double()
            kernel = one_hot @ one_hot.T
        else:
            v = v.double().flatten(1)
            kernel = torch.exp(-((v[:, None] - v[None]) ** 2).sum(2) / (2 * sigma**2 * v.shape[1]))
        centred = kernel @ (torch.eye(m).double() - torch.ones(m, m).double() / m)
        r.append(centred @ torch.linalg.inv(centred + 1e-5 * m * torch.eye(m).double()))
    return (r[0] * r[1].T).sum()


def ours(a, b, sigma=5.0):
    r = [pwoa.normalised(pwoa.agreement(v) if v.dtype == torch.int64 else pwoa.gaussian(v, sigma)) for v in (a, b)]
    return pwoa.hsic(*r)


def vectors(seed, m=24):
    """Images, a hidden output that depends on them, one that does not, labels of four classes."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(m, 1, 8, 8, generator=g)
    h = (x.flatten(1) @ torch.randn(64, 30, generator=g)).relu().view(m, 30, 1, 1)
    return x, h, torch.rand(m, 12, generator=g), torch.arange(m) % 4


@pytest.mark.check("pwoa", 3)
@given(seed=st.integers(0, 999))
def test_hsic_equals_the_formula_is_symmetric_blind_to_order_bounded_and_obeys_cauchy_and_schwarz(seed):
    *features, y = vectors(seed)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed + 1))
    for a, b in itertools.combinations([*features, y], 2):
        value = float(ours(a, b))
        assert value == pytest.approx(float(literal(a, b)), rel=1e-3)
        assert value == pytest.approx(float(ours(b, a)))
        assert value == pytest.approx(float(ours(a[order], b[order])), rel=1e-4)
        assert value**2 <= float(ours(a, a) * ours(b, b)) * (1 + 1e-6)
        if b is y:
            assert 0 <= value <= 4 - 1
    own = pwoa.normalised(pwoa.agreement(y))
    assert float(own.diagonal().sum()) == pytest.approx(3, rel=1e-2), "four balanced classes have three directions"


@pytest.mark.check("pwoa", 3)
def test_what_the_bottleneck_pulls_with_is_the_gradient_of_the_formula_and_the_images_get_none():
    x, h, other, y = vectors(0)
    x.requires_grad_(False)
    hidden = [h.clone().requires_grad_(True), other.clone().requires_grad_(True)]
    value = pwoa.bottleneck(hidden, x, y, 5.0, 0.3, 0.7)
    wanted = sum(0.3 * literal(a, x) - 0.7 * literal(a, y) for a in hidden)
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(float(wanted.detach()), rel=1e-3)
    for got, expected in zip(torch.autograd.grad(value, hidden), torch.autograd.grad(wanted, hidden), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))


def test_autocast_does_not_round_what_the_bottleneck_computes():
    x, h, other, y = vectors(0)
    plain = pwoa.bottleneck([h, other], x, y, 5.0, 0.3, 0.7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(pwoa.bottleneck([h, other], x, y, 5.0, 0.3, 0.7), plain)
    assert torch.isfinite(pwoa.bottleneck([h.bfloat16()], x, y, 5.0, 0.3, 0.7))


@pytest.mark.check("pwoa", 4)
@pytest.mark.parametrize(("weight_x", "weight_y"), [(1.0, 0.0), (0.0, 1.0), (1.0, 5.0)])
def test_minimising_hsic_alone_makes_hidden_outputs_say_less_of_the_image_or_more_of_the_label(weight_x, weight_y):
    digits = apnb.datasets.load("digits")
    x, y = digits.train.images(slice(0, 64)), digits.train.y[:64]
    net = build("cnn", channels=1, classes=10, seed=0).train()
    params = dict(net.named_parameters())
    hidden = pwoa.hidden_modules(net, x[:2])
    numbers = {"distill": 0.0, "temperature": 30.0, "sigma": 5.0, "hsic_x": weight_x, "hsic_y": weight_y}
    loss = pwoa.imitation(build("cnn", channels=1, classes=10, seed=1).eval(), numbers, hidden)

    def measured():
        with torch.no_grad():
            _, outputs = Model(net, params).features(x, hidden)
        return tuple(float(sum(literal(h, of) for h in outputs)) for of in (x, y))

    before = measured()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(20):
        value, _ = loss(Model(net, params), x, y, Progress())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    after = measured()
    assert weight_x * after[0] - weight_y * after[1] < weight_x * before[0] - weight_y * before[1] - 0.1
    assert after[0] < before[0] or after[1] > before[1]


@pytest.mark.parametrize(
    ("network", "size", "dimensions"),
    [
        ("cnn", (1, 8), [16 * 64, 32 * 16, 64 * 4, 64 * 4]),
        ("resnet8", (1, 8), [16 * 64, 16 * 64, 32 * 16, 64 * 4, 64]),
        ("resnet18", (3, 32), [65536] * 3 + [32768] * 2 + [16384] * 2 + [8192] * 2 + [512]),
        ("vgg16", (3, 32), [64 * 256, 128 * 64, 256 * 16, 512 * 4, 256, 256]),
    ],
)
def test_the_hidden_outputs_are_those_of_the_code_in_order(network, size, dimensions):
    channels, side = size
    net = build(network, channels=channels, classes=10).eval()
    x = torch.rand(2, channels, side, side)
    _, outputs = Model(net, dict(net.named_parameters())).features(x, pwoa.hidden_modules(net, x))
    assert [h[0].numel() for h in outputs] == dimensions


class Shared(nn.Module):
    """A user's network: one ReLU used twice, another never, a pooling that is not the last module."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8 * 16, 20)
        self.out, self.relu, self.unused, self.pool = nn.Linear(20, 10), nn.ReLU(), nn.ReLU(), nn.MaxPool2d(2)

    def forward(self, x):
        return self.out(self.relu(self.linear(self.pool(self.relu(self.conv(x))).flatten(1))))


class Functional(Shared):
    """Another: what would be a ReLU module is a function."""

    def __init__(self):
        super().__init__()
        del self.relu, self.unused
        self.relu = torch.relu


class Linear(nn.Module):
    """No convolution at all."""

    def __init__(self):
        super().__init__()
        self.flatten, self.out = nn.Flatten(), nn.Linear(64, 10)

    def forward(self, x):
        return self.out(self.flatten(x))


def test_a_user_s_network_with_shared_unused_and_absent_relus_runs_or_is_refused_with_a_sentence(tmp_path):
    b = replace(SMALL, epochs=1, search_epochs=1, finetune_epochs=1)
    net = Shared()
    assert pwoa.hidden_modules(net, torch.rand(2, 1, 8, 8)) == [net.relu, net.pool]
    follow(runner("pwoa", tmp_path, Shared(), budget=b))
    with pytest.raises(Invalid, match=r"looks at what nn\.ReLU modules put out, and Functional has none.*hsic_x=0 and hsic_y=0"):
        follow(runner("pwoa", tmp_path, Functional(), budget=b))
    t = follow(runner("pwoa", tmp_path, Functional(), budget=b, hsic_x=0, hsic_y=0))
    assert set(t.masks) == {"conv.weight"}
    for method in BOTH:
        with pytest.raises(Invalid, match="prunes convolutions, and Linear has none"):
            follow(runner(method, tmp_path, Linear(), budget=b))


def test_pwoa_prunes_a_classifier_called_fc_and_radmm_none(tmp_path):
    b = replace(SMALL, epochs=1, search_epochs=1, finetune_epochs=1)
    masks = {method: follow(runner(method, tmp_path, Plain(), budget=b)).masks for method in BOTH}
    assert set(masks["radmm"]) == {"conv.weight"}
    assert set(masks["pwoa"]) == {"conv.weight", "fc.weight"}
    assert set(follow(runner("pwoa", tmp_path, Plain(), budget=b, structure="filters")).masks) == {"conv.weight"}


@pytest.mark.check("pwoa", 8)
def test_pwoa_is_more_robust_than_a_magnitude_cut_with_fine_tuning_on_clean_images(tmp_path):
    b = replace(apnb.recipe("pwoa").numbers(64), epochs=15, search_epochs=8, finetune_epochs=8, attack_steps=3, check=200)
    run = runner("pwoa", tmp_path, budget=b, sparsity=0.9)
    t = follow(run)
    pruned = run.measure(Model(run.net, run.params()).frozen())
    run.load(t.ends["pretraining"])
    masks = kept_of(run.net, t.masks, 0.9)
    assert {n: int(m.sum()) for n, m in masks.items()} == {n: int(m.sum()) for n, m in t.masks.items()}

    def clean(s):
        yield from run.fit_masked(s, masks, "natural", epochs=16, lr=cosine(b.finetune_lr))

    list(run.stage("the plain way", clean, plain=True))
    plain = run.measure(Model(run.net, run.params()).frozen())
    assert pruned["pgd"] > plain["pgd"] + 0.05
    assert pruned["clean"] > 0.9


# -------------------------------------------------------------------------------------------------------------------------- resuming


MECHANISMS = {"as released, RADMM": radmm.GraphAdmm, "as released, PwoA": pwoa.RestartedAdmm}


def carried_out(which, resume=None):
    """An ADMM stage of four epochs from the start or from a snapshot: the network, the mechanism and the events."""
    digits = apnb.datasets.load("digits")
    net, teacher = (build("cnn", channels=1, classes=10, seed=seed) for seed in (0, 1))
    found = layers(net, digits.sample())
    counts = apnb.masks.percentile_counts(apnb.masks.unit_counts(found, "weights"), 0.7)
    target = apnb.masks.Target(found, "weights", "local", 0.7, counts=counts)
    mechanism = MECHANISMS[which](dict(net.named_parameters()), target, rho=0.3, growth=1.5, period=2, rescale=False, cap=0.4)
    g = torch.Generator().manual_seed(11)
    lr = saw_tooth(0.05, 2)
    if "RADMM" in which:
        loss = objective("pgd_at", eps=0.15, steps=2, generator=g, attack_bn="train", start="unclipped", passes=("between",))
    else:
        numbers = {"distill": 10.0, "temperature": 30.0, "sigma": 5.0, "hsic_x": 0.01, "hsic_y": 0.01}
        loss, lr = pwoa.imitation(teacher.eval(), numbers, pwoa.hidden_modules(net, digits.sample())), pwoa.late(lr)
    data = Batches(digits.train.at(slice(0, 96)), 32, seed=0, stage="test")
    options = {"epochs": 4, "lr": lr, "mechanism": mechanism, "resume": resume, "generator": g, "optimizer": sgd}
    return net, mechanism, *record(fit(net, data, loss, **options))


@pytest.mark.parametrize("which", list(MECHANISMS))
def test_a_stage_resumed_after_any_epoch_equals_an_uninterrupted_one_bit_for_bit(which, tmp_path):
    goes_on_as_if_never_stopped(partial(carried_out, which), tmp_path)


@pytest.mark.parametrize("as_released", [False, True])
@pytest.mark.parametrize("method", BOTH)
def test_a_run_stopped_anywhere_and_called_again_ends_as_one_left_alone(method, as_released, tmp_path):
    b = replace(SMALL, epochs=2, search_epochs=3, finetune_epochs=3, dual_period=1, check=16)
    alone = follow(runner(method, tmp_path / "alone", budget=b, as_released=as_released))
    for events in (5, 14, 24):
        stream = methods.stages(runner(method, tmp_path / f"{events}", budget=b, as_released=as_released))
        for _ in range(events):
            next(stream)
        stream.close()
        again = follow(runner(method, tmp_path / f"{events}", budget=b, as_released=as_released))
        assert same(again.masks, alone.masks)
        assert same(again.run.state(), alone.run.state())
