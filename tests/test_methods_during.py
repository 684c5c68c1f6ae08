"""Flying Bird, Flying Bird+ and TwinRep: methods that prune while they train. Each listed property from first principles."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections import Counter
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import apnb
from apnb import datasets, methods
from apnb.chance import generator
from apnb.datasets import Batches
from apnb.errors import Invalid
from apnb.events import Batch, Epoch, Pruned
from apnb.masks import Target
from apnb.mechanisms import FixedMasks, Mechanism, Model, Progress
from apnb.methods.flyingbird import (
    FlyingBird,
    FlyingBirdPlus,
    attacked_loss,
    ideal_gas,
    random_masks,
    with_largest,
    without_smallest,
)
from apnb.methods.twinrep import Factors, one_based
from apnb.networks import build, layers
from apnb.objectives import objective
from apnb.runner import Runner
from apnb.training import bake_, fit, milestones, sgd
from tests.helpers import goes_on_as_if_never_stopped, record, same
from tests.test_mechanisms import LAYERS, SIZES, TOTAL, Net, batch, made

DIGITS = datasets.load("digits")
SMALL = apnb.Budget(epochs=4, batch=32, images=128, attack_steps=2, points=16, check=48)
NUMBERS = {"interval": 2, "interval_late": 3, "death": 0.5, "death_last": 0.005}
PLUS = {"begin": 0.5, "window": 4, "agreement": 0.5, "more_death": 0.4, "more_growth": 0.05}
CNN = layers(build("cnn", channels=1, classes=10), DIGITS.sample())
BIRDS = {"flyingbird": FlyingBird, "flyingbird+": FlyingBirdPlus}
both_birds = pytest.mark.parametrize("bird", list(BIRDS))
both_products = pytest.mark.parametrize("structure", ["weights", "filters"])


def of_birds(number):
    """Marks a test as proof of a listed property of Flying Bird and of Flying Bird+."""
    return lambda test: pytest.mark.check("flyingbird", number)(pytest.mark.check("flyingbird+", number)(test))


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def runner(method, store, network="cnn", data="digits", budget=SMALL, **options):
    return Runner(apnb.recipe(method, budget=budget, **options), network=network, data=data, store=store, device="cpu")


def carried_out(run, each=lambda event: None):
    """The masks and all events; ``each`` is called with every event while the network is as it then is."""
    stream, events = methods.stages(run), []
    while True:
        try:
            event = next(stream)
        except StopIteration as end:
            return end.value, events
        each(event)
        events.append(event)


def odd():
    """A network with two linear layers, a flattening and images of 1x4x4, as options of `runner`."""
    x = torch.rand(160, 1, 4, 4, generator=draw())
    return {"network": Net(), "data": (x.numpy(), (torch.arange(160) % 3).numpy())}


# ========================================================================================================= Flying Bird: tools


def hatched(bird, params, share=0.3, chance=None, **numbers):
    """A bird with ``share`` of every tensor's weights active, at places drawn once."""
    lacks = {n: k - round(share * k) for n, k in SIZES.items()}
    return BIRDS[bird](params, random_masks(params, lacks, draw(5)), NUMBERS | PLUS | numbers, chance)


def flown(net, mechanism, steps, lr=0.05, epoch=0, epochs=1, of=None, first=0):
    """Ordinary SGD steps with momentum on random batches; yields progress after each."""
    params = dict(net.named_parameters())
    opt = sgd(mechanism.groups(params))
    at = Progress(epoch=epoch, epochs=epochs, steps=of or steps, params=params, optimizer=opt, lr=lr)
    for group in opt.param_groups:
        group["lr"] = lr
    for at.step in range(first, first + steps):
        x, y = batch(at.step)
        opt.zero_grad(set_to_none=True)
        F.cross_entropy(Model(net, params, mechanism)(x), y).backward()
        mechanism.update(opt, at)
        yield at


def rewired(mechanism, params, gradients, rate=0.3, epoch=0, epochs=2):
    """One step at rate 0 that rewires, with given gradients: only the rewiring changes anything. Masks before and after."""
    before = {n: m.clone() for n, m in mechanism.masks.items()}
    opt = sgd([{"params": list(params.values())}])
    for n, p in params.items():
        p.grad = gradients[n].clone() if n in gradients else torch.zeros_like(p)
    mechanism.numbers |= {"interval": 1, "interval_late": 1, "death": rate, "death_last": rate}
    mechanism.update(opt, Progress(epoch=epoch, epochs=epochs, steps=10, params=params, optimizer=opt))
    return before, mechanism.masks


def positions(mask):
    return set(mask.flatten().nonzero().flatten().tolist())


def ranked(values, among):
    """Positions ``among`` a tensor's, by value, the earlier first among equals: plain Python."""
    flat = values.flatten().tolist()
    return sorted(among, key=lambda i: (flat[i], i))


def counts(masks):
    return {n: int(m.sum()) for n, m in masks.items()}


# ==================================================================================================== Flying Bird: first masks


VGG = [
    o * i * 9 for i, o in itertools.pairwise((3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512))
] + [5120]  # the authors' VGG-16 has one linear layer  # fmt: skip


@of_birds(1)
@pytest.mark.parametrize(
    ("network", "density", "total", "kept"),
    [
        ("resnet18", 0.1, 11164352, 1116448),
        ("resnet18", 0.05, 11164352, 558227),
        ("resnet18", 0.01, 11164352, 111650),
        ("vgg16", 0.1, 14715584, 1471563),
        ("vgg16", 0.05, 14715584, 735784),
        ("vgg16", 0.01, 14715584, 147163),
    ],
)
def test_the_first_masks_of_the_large_networks_keep_the_known_totals(network, density, total, kept):
    if network == "resnet18":
        found = layers(build(network, channels=3, classes=10), torch.zeros(2, 3, 32, 32), 10)
        sizes = {layer.name: math.prod(layer.shape) for layer in found}
    else:
        sizes = {str(i): n for i, n in enumerate(VGG)}
    assert sum(sizes.values()) == total
    assert total - sum(ideal_gas(sizes, 1 - density).values()) == kept


@of_birds(1)
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=20), st.floats(0.001, 0.999))
def test_one_number_for_the_network_decides_how_dense_each_layer_is_and_the_total_is_met(sizes, sparsity):
    """A layer lacks k = int(n - n / (1 + f n)) weights iff k / (n (n - k)) <= f < (k + 1) / (n (n - k - 1)): one f fits all."""
    lacks = ideal_gas({str(i): n for i, n in enumerate(sizes)}, sparsity)
    pairs = list(zip(sizes, lacks.values(), strict=True))
    least = max(k / (n * (n - k)) for n, k in pairs)
    most = min((k + 1) / (n * (n - k - 1)) if n > k + 1 else math.inf for n, k in pairs)
    assert least <= most * (1 + 1e-9)
    kept, wanted = sum(n - k for n, k in pairs), (1 - sparsity) * sum(sizes)
    assert wanted - 1 - 1e-6 <= kept <= wanted + len(sizes) + 1 + 1e-6
    assert all(k < n for n, k in pairs), "no layer starts empty"


@of_birds(1)
def test_every_position_of_a_layer_is_missing_equally_often_and_exactly_as_many_as_asked():
    params = {"w": torch.zeros(6, 5, 2)}
    chance, hits = draw(1), torch.zeros(6, 5, 2)
    for _ in range(2000):
        mask = random_masks(params, {"w": 18}, chance)["w"]
        assert mask.shape == (6, 5, 2) and int((~mask).sum()) == 18
        hits += ~mask
    deviation = (2000 * 0.3 * 0.7) ** 0.5
    assert ((hits - 600).abs() < 4.5 * deviation).all()
    assert (hits.std() - deviation).abs() < 0.35 * deviation, "drawn anew each time, and no place is preferred"


@of_birds(1)
@of_birds(2)
@both_birds
@pytest.mark.parametrize("network", ["cnn", "resnet8", "odd"])
def test_a_run_ends_with_the_number_of_weights_per_layer_that_it_started_with(bird, network, tmp_path):
    given = odd() if network == "odd" else {"network": network}
    run = runner(bird, tmp_path, **given, sparsity=0.8, interval=2, interval_late=2, **({"begin": 9} if "+" in bird else {}))
    masks, events = carried_out(run)
    sizes = {layer.name: math.prod(layer.shape) for layer in run.layers}
    lacks = ideal_gas(sizes, 0.8)
    assert counts(masks) == {n: sizes[n] - lacks[n] for n in sizes}
    told = [e for e in events if isinstance(e, Pruned)]
    assert all(e.metrics["kept"] == sum(counts(masks).values()) for e in told)
    assert (told[-1].step, told[-1].of) == (8, 8)
    assert [e.step for e in told] == list(range(1, 9))
    assert all("pgd" in e.metrics for e in told)


# ================================================================================================ Flying Bird: death and birth


@of_birds(2)
@both_birds
def test_growing_by_gradient_keeps_every_layer_s_count_at_every_step(bird):
    net, params = made()
    mechanism = hatched(bird, params)
    start = counts(mechanism.masks)
    changed = 0
    for at in flown(net, mechanism, 20):
        changed += at.step % 2
        assert counts(mechanism.masks) == start == {n: round(0.3 * k) for n, k in SIZES.items()}
    assert mechanism.rewirings == changed == 10


@of_birds(2)
@both_birds
def test_growing_at_random_keeps_a_count_on_average_only(bird):
    _, params = made()
    seen = []
    for seed in range(300):
        mechanism = hatched(bird, params, chance=draw(seed))
        gradients = {n: torch.zeros_like(params[n]) for n in SIZES}
        weights = {n: p.detach().clone() for n, p in params.items()}
        rewired(mechanism, params, gradients, rate=0.5)
        seen.append(counts(mechanism.masks))
        with torch.no_grad():
            for n, p in params.items():
                p.copy_(weights[n])
    for n, size in SIZES.items():
        active = round(0.3 * size)
        q = math.ceil(0.5 * active)
        found = torch.tensor([float(c[n]) for c in seen])
        free = size - active + q
        deviation = (free * (q / free) * (1 - q / free)) ** 0.5  # of one binomial draw
        assert abs(float(found.mean()) - active) < 4.5 * deviation / 300**0.5
        assert 0.8 < float(found.std()) / deviation < 1.2


@of_birds(3)
@both_birds
@pytest.mark.parametrize("rate", [0.5, 0.3, 0.005])
def test_the_smallest_active_weights_of_each_layer_die_and_no_layer_s_scale_matters(bird, rate):
    _, params = made()
    with torch.no_grad():
        params["conv2.weight"].mul_(1000)  # across layers all would be taken from elsewhere
        params["linear.weight"].mul_(1e-4)
    mechanism = hatched(bird, params)
    weights = {n: params[n].detach().clone() for n in SIZES}
    births = {n: torch.where(mechanism.masks[n], 0.0, 1 + torch.rand(weights[n].shape, generator=draw(2))) for n in SIZES}
    before, after = rewired(mechanism, params, births, rate)
    for n in SIZES:
        active = positions(before[n])
        r = math.ceil(rate * len(active))
        assert r < len(active) and r <= SIZES[n] - len(active)
        dead = active - positions(after[n])
        assert dead == set(ranked(weights[n].abs(), active)[:r])
        born = positions(after[n]) - active
        assert born == set(ranked(-births[n].abs(), set(range(SIZES[n])) - active)[:r])


def test_among_equals_the_earlier_position_dies_and_is_born_first():
    mask = torch.tensor([[True, True, True], [False, False, False]])
    assert without_smallest(mask, torch.ones(2, 3), 2).tolist() == [[False, False, True], [False, False, False]]
    assert with_largest(mask, torch.ones(2, 3), 2).tolist() == [[True, True, True], [True, True, False]]
    assert without_smallest(mask, torch.ones(2, 3), 9).sum() == 0 and with_largest(mask, torch.ones(2, 3), 9).all()
    assert mask.sum() == 3, "the mask given is left alone"


def test_a_layer_without_inactive_weights_is_left_alone():
    _, params = made()
    mechanism = hatched("flyingbird", params, share=1.0)
    weights = {n: params[n].detach().clone() for n in SIZES}
    _, after = rewired(mechanism, params, {}, rate=0.5)
    assert all(m.all() for m in after.values())
    assert all(torch.equal(params[n], weights[n]) for n in SIZES)


@of_birds(4)
@both_birds
def test_newborns_start_at_zero_without_momentum_and_what_is_inactive_is_zero_after_every_step(bird):
    net, params = made()
    mechanism = hatched(bird, params)
    assert all((params[n][~m] == 0).all() for n, m in mechanism.masks.items())
    before, born, dense = {n: m.clone() for n, m in mechanism.masks.items()}, 0, 0
    for at in flown(net, mechanism, 12):
        for n, m in mechanism.masks.items():
            momentum = at.optimizer.state[params[n]]["momentum_buffer"]
            assert (params[n][~m] == 0).all() and (momentum[~m] == 0).all()
            new = m & ~before[n]
            assert (params[n][new] == 0).all() and (momentum[new] == 0).all()
            assert (momentum[m & before[n]] != 0).any()
            born += int(new.sum())
            dense += int((params[n].grad[~m] != 0).sum())
            before[n] = m.clone()
    assert born > 50 and dense > 500, "there were births, and the gradient reaches inactive weights"


@of_birds(4)
@both_birds
def test_what_dies_and_is_born_in_one_rewiring_keeps_value_and_momentum(bird):
    net, params = made()
    mechanism = hatched(bird, params)
    list(flown(net, mechanism, 1))
    opt = sgd([{"params": list(params.values())}])
    weights, momenta, births, reborn = {}, {}, {}, {}
    for n, m in mechanism.masks.items():
        weights[n] = params[n].detach().clone()
        momenta[n] = torch.rand(m.shape, generator=draw(3)) * m
        smallest = ranked(weights[n].abs(), positions(m))[:2]
        births[n] = torch.zeros_like(weights[n])
        births[n].view(-1)[smallest] = 1.0
        reborn[n] = smallest
        opt.state[params[n]]["momentum_buffer"] = momenta[n].clone()
        params[n].grad = births[n].clone()
    mechanism.numbers |= {"interval": 1}
    mechanism.update(opt, Progress(epoch=0, epochs=2, step=1, steps=10, params=params, optimizer=opt))
    for n, m in mechanism.masks.items():
        assert set(reborn[n]) <= positions(m)
        momentum = opt.state[params[n]]["momentum_buffer"].flatten()
        expected = 0.9 * momenta[n] + births[n] + 5e-4 * weights[n]  # this step's, at rate 0
        for i in reborn[n]:
            assert params[n].flatten()[i] == weights[n].flatten()[i] != 0
            torch.testing.assert_close(momentum[i], expected.flatten()[i])


@of_birds(5)
@both_birds
def test_the_share_that_dies_falls_on_a_cosine_from_a_half_to_a_two_hundredth(bird):
    mechanism = hatched(bird, made()[1])
    for total in (10, 70400):
        assert mechanism.rate(0, total) == pytest.approx(0.5)
        assert mechanism.rate(total // 2, total) == pytest.approx(0.2525)
        assert mechanism.rate(total, total) == pytest.approx(0.005)
        rates = [mechanism.rate(t, total) for t in range(0, total + 1, total // 10)]
        assert all(a > b for a, b in itertools.pairwise(rates))
    net, params = made()
    deaths = []

    class Counted(BIRDS[bird]):
        def turnover(self, active, rate, at):
            deaths.append((at.step + 1, active, super().turnover(active, rate, at)[0]))
            return super().turnover(active, rate, at)

    mechanism = Counted(params, hatched(bird, params).masks, NUMBERS | PLUS)
    list(flown(net, mechanism, 20))
    assert len(deaths) == 10 * len(SIZES)
    for t, active, dying in deaths:  # the rate of the steps done, the one just made among them
        share = 0.005 + 0.495 * (1 + math.cos(math.pi * t / 20)) / 2
        assert dying == math.ceil(share * active)


@both_birds
def test_rewirings_fall_on_multiples_of_the_interval_and_the_authors_training_has_39_and_29(bird):
    mechanism = hatched(bird, made()[1], interval=900, interval_late=1200)
    due = [t for t in range(1, 352 * 200 + 1) if mechanism.due(t, (t - 1) // 352, 200)]
    late = [t for t in due if (t - 1) // 352 > 100]
    assert (len(due) - len(late), len(late)) == (39, 29)
    assert due[:2] == [900, 1800] and late[:2] == [36000, 37200] and late[-1] == 69600
    mechanism = hatched(bird, made()[1], interval=2, interval_late=3)
    assert [mechanism.due(t, 2, 4) for t in (2, 3)] == [True, False]  # half of the epochs is not more than half
    assert [mechanism.due(t, 3, 4) for t in (2, 3)] == [False, True]


@of_birds(6)
@both_birds
def test_connections_change_while_the_network_trains(bird, tmp_path):
    run, ever, sizes, last = runner(bird, tmp_path, sparsity=0.8, interval=2, interval_late=2), {}, [], {}

    def look(event):
        if isinstance(event, Batch):
            alive = {layer.name: run.params()[layer.name].detach() != 0 for layer in run.layers}
            sizes.append(sum(int((m & ~last.get(n, m)).sum()) for n, m in alive.items()))
            last.update(alive)
            ever.update({n: ever.get(n, torch.zeros_like(m)) | m for n, m in alive.items()})

    masks, _ = carried_out(run, look)
    for n, m in masks.items():
        assert not (run.params()[n][~m] != 0).any()
    union = {n: ever[n] | masks[n] for n in masks}
    assert sum(counts(union).values()) > 1.3 * sum(counts(masks).values())
    assert all((masks[n] <= union[n]).all() for n in masks)
    assert sum(x > 0 for x in sizes) >= 5, "again and again, not once"


# ======================================================================================================== Flying Bird+: its size


def told(mechanism, accuracies, attacked, losses, epochs=20):
    """Let it see the figures of these epochs."""
    for i, (a, v, x) in enumerate(zip(accuracies, attacked, losses, strict=True), 1):
        mechanism.between_epochs(Progress(epoch=i, epochs=epochs, metrics={"accuracy": a, "val_pgd": v, "val_loss": x}))


UP, DOWN, FLAT = (0.1, 0.2, 0.3, 0.4, 0.5), (0.5, 0.4, 0.3, 0.2, 0.1), (0.3,) * 5
HALF, QUARTER = (0.1, 0.2, 0.1, 0.2, 0.1), (0.5, 0.4, 0.5, 0.4, 0.3)  # two of four changes upwards, one of four


@pytest.mark.check("flyingbird", 7)
@pytest.mark.check("flyingbird+", 7)
@pytest.mark.parametrize(
    ("gaps", "losses", "fewer", "more"),
    [
        (UP, DOWN, True, False),
        (DOWN, UP, False, True),
        (UP, UP, True, True),
        (DOWN, DOWN, False, False),
        (HALF, DOWN, True, False),
        (QUARTER, QUARTER, False, False),
        (FLAT, FLAT, False, True),  # a gap that stands still has not grown; a loss that stands still has not fallen
        (DOWN, HALF, False, True),
        (UP[1:], UP[1:], False, False),  # three changes are not four
        ((*DOWN, *UP), (*UP, *DOWN), True, False),  # the last four count
    ],
)
def test_a_growing_gap_takes_more_and_a_growing_loss_gives_a_little_more(gaps, losses, fewer, more):
    for epoch in (9, 10):  # of 20, from 0: the size moves from the second half on
        _, params = made()
        mechanism = hatched("flyingbird+", params)
        told(mechanism, [g + 0.2 for g in gaps], [0.2] * len(gaps), losses)
        births = {n: torch.where(mechanism.masks[n], 0.0, 1.0) for n in SIZES}
        before, after = rewired(mechanism, params, births, rate=0.3, epoch=epoch, epochs=20)
        for n in SIZES:
            a = int(before[n].sum())
            q = math.ceil(0.3 * a)
            extra_deaths = math.ceil(0.3 * 0.4 * a) if fewer and epoch == 10 else 0
            births_in_all = int(q * 1.05) if more and epoch == 10 else q
            assert int(after[n].sum()) == a - q - extra_deaths + births_in_all
            assert len(positions(before[n]) - positions(after[n])) == q + extra_deaths
    total = sum(counts(after).values()) - sum(counts(before).values())
    assert (total < 0, total > 0) == (fewer, more and not fewer)


@pytest.mark.check("flyingbird", 7)
@pytest.mark.check("flyingbird+", 7)
def test_with_chance_a_growing_loss_raises_the_expected_number_by_a_twentieth():
    grown = []
    for seed in range(200):
        _, params = made()
        mechanism = hatched("flyingbird+", params, chance=draw(seed))
        told(mechanism, FLAT, FLAT, UP)
        before, after = rewired(mechanism, params, {}, rate=0.5, epoch=10, epochs=20)
        grown.append(sum(counts(after).values()) - sum(counts(before).values()))
    q = sum(math.ceil(0.5 * round(0.3 * k)) for k in SIZES.values())
    assert abs(sum(grown) / 200 - 0.05 * q) < 4.5 * q**0.5 / 200**0.5


@pytest.mark.check("flyingbird", 7)
@pytest.mark.check("flyingbird+", 7)
def test_the_two_are_one_until_the_size_may_move_and_differ_from_then_on(tmp_path):
    budget = dataclasses.replace(SMALL, epochs=6)
    nets, sizes, seen = {}, {}, {}
    for bird, own in (("flyingbird", {}), ("flyingbird+", {"window": 1, "agreement": 0.0})):  # agreement 0: always both
        run = runner(bird, tmp_path / bird, budget=budget, sparsity=0.8, interval=2, interval_late=2, **own)
        nets[bird], sizes[bird], seen[bird] = [], [], []

        def look(event, run=run, bird=bird):
            if isinstance(event, Batch):
                nets[bird].append(run.state())
            if isinstance(event, Pruned):
                sizes[bird].append(event.metrics["kept"])
            if isinstance(event, Epoch):
                seen[bird].append((dict(event.metrics), event.snapshot()["mechanism"]))

        carried_out(run, look)
    steps = 12  # three epochs of four
    equal = [same(a, b) for a, b in zip(*nets.values(), strict=True)]
    assert equal[: steps + 1] == [True] * (steps + 1)  # the first rewiring of the fourth epoch follows its second step
    assert not any(equal[steps + 1 :])
    assert len(set(sizes["flyingbird"])) == 1
    assert sizes["flyingbird+"][:6] == sizes["flyingbird"][:6]
    assert all(a > b for a, b in itertools.pairwise(sizes["flyingbird+"][5:-1]))
    for (a, _), (b, _) in zip(seen["flyingbird"][:3], seen["flyingbird+"][:3], strict=True):
        assert a == {k: v for k, v in b.items() if k != "val_loss"}
    figures = [m for m, _ in seen["flyingbird+"]]
    for (a, b), (_, state) in zip(itertools.pairwise(figures), seen["flyingbird+"][2:], strict=False):
        assert state["gaps"] == [m["accuracy"] - m["val_pgd"] for m in (a, b)]
        assert state["losses"] == [m["val_loss"] for m in (a, b)]


@pytest.mark.check("flyingbird", 7)
@pytest.mark.check("flyingbird+", 7)
def test_the_validation_loss_is_that_after_an_attack_by_every_step_and_moves_nothing(tmp_path):
    run = runner("flyingbird+", tmp_path)
    before = run.state()
    found = attacked_loss(run, Model(run.net, run.params()), 5)
    assert found == attacked_loss(run, Model(run.net, run.params()), 5)
    assert same(before, run.state()) and run.net.training
    x, y = run.check
    net = copy.deepcopy(run.net).eval()
    noise = torch.rand(x.shape, generator=generator(run.recipe.seed, "attacked loss", device="cpu"))
    x_adv = (x + (2 * noise - 1) * run.eps).clamp(0, 1)
    for _ in range(5):
        x_adv.requires_grad_(True)
        (g,) = torch.autograd.grad(F.cross_entropy(net(x_adv), y), x_adv)
        x_adv = (x_adv + run.eps / 2 * g.sign()).detach()
        x_adv = torch.max(torch.min(x_adv, x + run.eps), x - run.eps).clamp(0, 1)
    assert found == pytest.approx(float(F.cross_entropy(net(x_adv), y).detach()), rel=1e-4)
    assert found > float(F.cross_entropy(net(x), y).detach())


@pytest.mark.parametrize(
    ("method", "budget", "own", "sentence"),
    [
        (
            "flyingbird+",
            dataclasses.replace(SMALL, check=0),
            {},
            "validation images and there are none; take a budget with check",
        ),
        ("flyingbird", SMALL, {"interval": 0}, "Flying Bird: interval must be more than 0"),
        ("flyingbird+", SMALL, {"interval_late": 0}, r"Flying Bird\+: interval_late must be more than 0"),
        ("twinrep", SMALL, {"sparsity": 0.99999}, "a sparsity of 0.99999 leaves none of 25744 weights; choose a lower one"),
        ("twinrep", SMALL, {"structure": "channels", "sparsity": 0.999}, "leaves none of 112 filters"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_trained(method, budget, own, sentence, tmp_path):
    with pytest.raises(Invalid, match=sentence):
        next(methods.stages(runner(method, tmp_path, budget=budget, **own)))


def test_without_convolutions_there_are_no_filters_to_remove(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    with pytest.raises(Invalid, match="has none; choose structure='weights'"):
        next(methods.stages(runner("twinrep", tmp_path, network=net, structure="channels")))
    masks, _ = carried_out(runner("twinrep", tmp_path, network=net, sparsity=0.5))
    assert set(masks) == {"1.weight", "3.weight"}


# ===================================================================================================== Flying Bird: as a whole


def one_step(bird, key):
    """Masks before and after one step at rate 0 that rewires; the images and labels that the loss saw; the weights."""
    net = build("cnn", channels=1, classes=10, seed=0)
    params, chance = dict(net.named_parameters()), draw(4)
    sizes = {layer.name: math.prod(layer.shape) for layer in CNN}
    masks = random_masks(params, {n: k - round(0.3 * k) for n, k in sizes.items()}, draw(3))
    mechanism = BIRDS[bird](params, masks, NUMBERS | PLUS | {"interval": 1})
    before, mirror = {n: m.clone() for n, m in mechanism.masks.items()}, copy.deepcopy(net)
    images = []
    net.register_forward_pre_hook(lambda m, args: images.append(args[0].detach().clone()))
    data = Batches(DIGITS.train.at(slice(0, 64)), 64, seed=0, stage="test")
    loss = objective(key, eps=0.15, steps=3, generator=chance, attack_bn="train")

    def nothing(model, at):
        return {"val_pgd": 0.0, "val_loss": 0.0}

    list(fit(net, data, loss, epochs=1, lr=lambda at: 0.0, mechanism=mechanism, generator=chance, validate=nothing))
    ((x, y),) = data(0)
    return before, mechanism.masks, images[-1], x, y, mirror


@of_birds(8)
@both_birds
def test_connections_grow_where_the_attacked_loss_has_the_largest_gradient_not_the_clean_one(bird):
    before, attacked, x_adv, x, y, mirror = one_step(bird, "pgd_at")
    _, clean, x_seen, *_ = one_step(bird, "natural")
    assert torch.equal(x_seen, x) and 0 < float((x_adv - x).abs().max()) <= 0.15 + 1e-6
    differ = 0
    rate = 0.005  # the only step is the last one
    for images, masks in ((x_adv, attacked), (x, clean)):
        mirror.zero_grad()
        F.cross_entropy(mirror.train()(images), y).backward()
        for n, m in masks.items():
            w = mirror.get_parameter(n)
            active = positions(before[n])
            r = math.ceil(rate * len(active))
            left = active - set(ranked(w.detach().abs(), active)[:r])
            born = ranked(-w.grad.abs(), set(range(w.numel())) - left)[:r]
            assert positions(m) == left | set(born)
    for n in attacked:
        differ += int((attacked[n] != clean[n]).sum())
    assert differ > 0


@both_birds
def test_the_result_is_the_epoch_that_stands_best_against_an_attack_with_the_masks_of_that_moment(bird, tmp_path):
    budget = dataclasses.replace(SMALL, epochs=6, images=256, lr=0.5)
    for seed in range(10):  # until the best epoch is not the last
        run = runner(bird, tmp_path, budget=budget, sparsity=0.9, interval=2, interval_late=2, seed=seed)
        states, figures = [], []

        def look(event, run=run, states=states, figures=figures):
            if isinstance(event, Epoch):
                states.append(run.state())
                figures.append(event.metrics["val_pgd"])

        masks, _ = carried_out(run, look)
        best = max(range(6), key=lambda e: (figures[e], e))
        if best != 5:
            break
    assert best != 5
    assert same(run.state(), states[best])
    assert all((run.params()[n][~m] == 0).all() for n, m in masks.items())
    assert not same(states[best], states[-1])
    again = run.validate_attacked(Model(run.net, run.params(), FixedMasks(masks)), Progress(), 2 * budget.attack_steps)
    assert again["val_pgd"] == figures[best]


@both_birds
def test_the_attack_runs_on_the_statistics_of_the_batch_and_moves_the_running_ones(bird, tmp_path):
    run = runner(bird, tmp_path, budget=dataclasses.replace(SMALL, epochs=1))
    carried_out(run)
    assert int(run.net.bn1.num_batches_tracked) == 4 * (SMALL.attack_steps + 1)


@both_birds
def test_the_rate_falls_at_half_and_at_three_quarters(bird, tmp_path):
    _, events = carried_out(runner(bird, tmp_path, budget=dataclasses.replace(SMALL, epochs=8, lr=0.1)))
    rates = [e.metrics["lr"] for e in events if isinstance(e, Epoch)]
    assert rates == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.001] * 2)


# ============================================================================================================== TwinRep: tools


def target_of(found, structure, share):
    """What TwinRep cuts: of all weights, or of the filters of convolutions."""
    chosen = found if structure == "weights" else tuple(layer for layer in found if layer.kind == "conv")
    total = sum(Target(chosen, structure, "global", share).sizes().values())
    return Target(chosen, structure, "global", share, counts=round(total * share), spare=False)


def twins(params, structure="weights", share=0.6, cut=1, seed=7):
    return Factors(params, target_of(LAYERS, structure, share), tuple(SIZES), cut=cut, chance=draw(seed))


def spread(mechanism, params, seed=0):
    """Both factors anew, of one size: a product of random numbers."""
    g = draw(seed)
    with torch.no_grad():
        for n, a in mechanism.factors.items():
            params[n].copy_(torch.randn(params[n].shape, generator=g))
            a.copy_(torch.randn(a.shape, generator=g))


def cut_now(mechanism, params):
    mechanism.between_epochs(Progress(epoch=0, epochs=1, params=params))
    return mechanism.masks


def product_by_hand(w, a, structure):
    """V by plain loops over output filters."""
    w, a = w.detach(), a.detach()
    if structure == "weights":
        return w * a
    return torch.stack([sum(a[p, q] * w[q] for q in range(len(w))) for p in range(len(w))])


# ======================================================================================================== TwinRep: the products


@pytest.mark.check("twinrep", 8)
@pytest.mark.parametrize("network", ["cnn", "resnet18"])
@pytest.mark.parametrize("structure", ["weights", "filters"])
def test_at_the_start_a_product_is_as_small_as_its_two_uniform_factors_make_it(network, structure):
    channels, size = (1, 8) if network == "cnn" else (3, 32)
    net = build(network, channels=channels, classes=10)
    found = layers(net, torch.zeros(2, channels, size, size), 10)
    params = dict(net.named_parameters())
    mechanism = Factors(params, target_of(found, structure, 0.5), tuple(x.name for x in found), cut=1, chance=draw(7))
    for layer in found:
        w, a = params[layer.name].detach(), mechanism.factors[layer.name].detach()
        v = mechanism.effective(params)[layer.name].detach()
        fan_in = math.prod(layer.shape[1:])
        few = 8 / (2 * min(v.numel(), a.numel())) ** 0.5  # of the deviation itself
        if structure == "weights":
            assert a.shape == w.shape and float(a.abs().max()) <= fan_in**-0.5
            assert float(v.std()) * 3 * fan_in == pytest.approx(1, abs=few)
        else:
            outputs = layer.shape[0]
            assert a.shape == (outputs, outputs) and float(a.abs().max()) <= outputs**-0.5
            assert float(v.std() / w.std()) == pytest.approx(3**-0.5, abs=few)
    again = Factors(params, mechanism.target, tuple(mechanism.factors), cut=1, chance=draw(7))
    assert same({n: a.detach() for n, a in again.factors.items()}, {n: a.detach() for n, a in mechanism.factors.items()})


@pytest.mark.check("twinrep", 3)
@both_products
@pytest.mark.parametrize("masked", [False, True])
def test_the_gradients_of_both_factors_are_the_closed_forms(structure, masked):
    net, params = made()
    mechanism = twins(params, structure)
    spread(mechanism, params)
    masks = cut_now(mechanism, params) if masked else {}
    x, y = batch()
    leaves = {n: w.detach().clone().requires_grad_() for n, w in mechanism.effective(params).items()}
    F.cross_entropy(Model(net, leaves)(x), y).backward()
    F.cross_entropy(Model(net, params, mechanism)(x), y).backward()
    for n, a in mechanism.factors.items():
        w, g = params[n], leaves[n].grad * masks.get(n, torch.tensor(True))
        torch.testing.assert_close(
            leaves[n].detach(), product_by_hand(w, a, structure) * masks.get(n, torch.tensor(True)), rtol=1e-4, atol=1e-6
        )
        if structure == "weights":
            torch.testing.assert_close(w.grad, g * a.detach())
            torch.testing.assert_close(a.grad, g * w.detach())
            if masked:
                assert (w.grad[~masks[n]] == 0).all() and (a.grad[~masks[n]] == 0).all()
        else:
            d_a = torch.stack([torch.stack([(g[p] * w.detach()[q]).sum() for q in range(len(w))]) for p in range(len(w))])
            d_w = torch.stack([sum(a.detach()[p, q] * g[p] for p in range(len(w))) for q in range(len(w))])
            torch.testing.assert_close(a.grad, d_a, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(w.grad, d_w, rtol=1e-4, atol=1e-6)
            if masked and n in masks:
                gone = ~masks[n].flatten(1).any(1)
                assert gone.any() and (a.grad[gone] == 0).all()
                assert (w.grad[gone].flatten(1) != 0).any(1).all(), "other filters are mixed from a removed filter's own weights"


def test_everything_learns_and_decays_in_one_group():
    _, params = made()
    mechanism = twins(params)
    (only,) = mechanism.groups(params)
    assert {id(p) for p in only["params"]} == {id(p) for p in (*params.values(), *mechanism.factors.values())}
    assert set(only) == {"params"} and set(mechanism.factors) == set(SIZES)


# ============================================================================================================= TwinRep: the cut


@pytest.mark.check("twinrep", 1)
@pytest.mark.parametrize("network", ["cnn", "resnet8", "odd"])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.987654321])
def test_round_of_n_times_r_weights_go_over_all_layers_together(network, share, tmp_path):
    given = odd() if network == "odd" else {"network": network}
    run = runner("twinrep", tmp_path, **given, sparsity=share, budget="tiny", cut=2)
    masks, _ = carried_out(run)
    assert set(masks) == {layer.name for layer in run.layers}, "the first, shortcuts and the classifier too"
    total = sum(m.numel() for m in masks.values())
    assert sum(counts(masks).values()) == total - round(total * share)
    shares = [float(m.float().mean()) for m in masks.values()]
    assert max(shares) - min(shares) > 0.05


@pytest.mark.check("twinrep", 2)
@given(st.integers(0, 50), st.sampled_from([0.1, 0.5, 0.9]))
def test_the_cut_sees_the_product_and_not_how_it_is_shared_between_the_factors(seed, share):
    net, params = made()
    mechanism = twins(params, share=share)
    spread(mechanism, params, seed)
    x, _ = batch()
    net.eval()
    first = {n: m.clone() for n, m in cut_now(mechanism, params).items()}
    logits = Model(net, params, mechanism)(x)
    size = torch.cat([(params[n] * a).detach().abs().flatten() for n, a in mechanism.factors.items()])
    flat = torch.cat([first[n].flatten() for n in mechanism.factors])
    assert positions(~flat) == set(ranked(size, range(TOTAL))[: round(TOTAL * share)])
    only_w = torch.cat([params[n].detach().abs().flatten() for n in mechanism.factors])
    assert positions(~flat) != set(ranked(only_w, range(TOTAL))[: round(TOTAL * share)])
    with torch.no_grad():
        for n, c in zip(mechanism.factors, (8.0, 0.25, 32.0, 0.5), strict=True):  # powers of two: no rounding
            params[n].mul_(c)
            mechanism.factors[n].div_(c)
    assert same(cut_now(mechanism, params), first)
    assert torch.equal(Model(net, params, mechanism)(x), logits)


@pytest.mark.check("twinrep", 6)
@given(st.integers(0, 50), st.sampled_from([0.2, 0.5, 0.8, 0.9]))
def test_of_filters_those_above_the_threshold_stay_in_each_convolution_and_at_least_one(seed, share):
    _, params = made()
    mechanism = twins(params, "filters", share)
    spread(mechanism, params, seed)
    with torch.no_grad():
        params["conv2.weight"].mul_(0.01 if seed % 2 else 1.0)  # then its filters would all go
    masks = cut_now(mechanism, params)
    convs = ("conv1.weight", "conv2.weight")
    assert set(masks) == set(convs), "linear layers are untouched"
    v = {n: product_by_hand(params[n], mechanism.factors[n], "filters") for n in convs}
    norms = {n: [float(f.double().square().sum().sqrt()) for f in v[n]] for n in convs}
    threshold = sorted(norms[convs[0]] + norms[convs[1]])[round(10 * share)]
    for n in convs:
        kept = [x for x in range(len(norms[n])) if norms[n][x] >= threshold]
        kept = kept or [max(range(len(norms[n])), key=norms[n].__getitem__)]
        for p, slab in enumerate(masks[n]):
            assert slab.all() if p in kept else not slab.any()


@pytest.mark.check("twinrep", 6)
@pytest.mark.parametrize("network", ["cnn", "resnet8"])
def test_a_run_for_filters_leaves_whole_ones_in_convolutions_and_a_dense_classifier(network, tmp_path):
    run = runner("twinrep", tmp_path, network=network, structure="channels", sparsity=0.5, budget="tiny", cut=1)
    masks, events = carried_out(run)
    assert set(masks) == {layer.name for layer in run.layers if layer.kind == "conv"}
    slabs = {n: m.flatten(1) for n, m in masks.items()}
    assert all((s.all(1) | ~s.any(1)).all() and s.any() for s in slabs.values())
    kept, total = sum(int(s.any(1).sum()) for s in slabs.values()), sum(len(s) for s in slabs.values())
    asked = total - round(total * 0.5)
    spared = sum(int(s.any(1).sum()) == 1 for s in slabs.values())
    assert asked <= kept <= asked + spared
    assert (run.net.linear.weight != 0).all()
    told = next(e for e in events if isinstance(e, Pruned)).metrics
    assert (told["kept"], told["total"]) == (kept, total)


@pytest.mark.check("twinrep", 5)
@both_products
@given(st.integers(0, 30))
def test_masks_of_the_same_products_are_nested_in_the_share_removed(structure, seed):
    masks = []
    for share in (0.3, 0.6, 0.85):
        _, params = made()
        mechanism = twins(params, structure, share)
        spread(mechanism, params, seed)
        masks.append(cut_now(mechanism, params))
    for many, few in itertools.pairwise(masks):
        assert all((few[n] <= many[n]).all() for n in few)


def trained(structure, cut, epochs=4, each=lambda mechanism, event: None, share=0.8, resume=None, data=None):
    """A stage of TwinRep on the digits: the network, the mechanism, snapshots and the events."""
    net, chance = build("cnn", channels=1, classes=10, seed=0), draw(11)
    names = tuple(layer.name for layer in CNN)
    mechanism = Factors(dict(net.named_parameters()), target_of(CNN, structure, share), names, cut=cut, chance=chance)
    data = data or Batches(DIGITS.train.at(slice(0, 96)), 32, seed=0, stage="test")
    loss = objective("pgd_at", eps=0.15, steps=2, generator=chance, start="normal")
    options = {"epochs": epochs, "lr": one_based(0.1), "mechanism": mechanism, "resume": resume, "generator": chance}
    return net, mechanism, *record(fit(net, data, loss, **options), partial(each, mechanism))


@pytest.mark.check("twinrep", 5)
@both_products
@pytest.mark.parametrize(("cut", "first"), [(1, 1), (3, 7), (0, 1), (99, 10)])
def test_the_cut_falls_before_its_epoch_and_no_step_after_it_changes_a_mask(structure, cut, first):
    seen, factors = [], []

    def look(mechanism, event):
        if isinstance(event, Batch):
            seen.append({n: m.clone() for n, m in mechanism.masks.items()})
            factors.append({n: a.detach().clone() for n, a in mechanism.factors.items()})

    net, mechanism, *_ = trained(structure, cut, each=look)
    assert [bool(m) for m in seen] == [step >= first for step in range(1, 13)]
    assert all(same(a, b) for a, b in itertools.pairwise(seen[first - 1 :]))
    assert same(seen[-1], mechanism.masks)
    for a, b in itertools.pairwise(factors):
        assert all(not torch.equal(a[n], b[n]) for n in a), "both factors go on learning"
    weights = mechanism.effective(dict(net.named_parameters()))
    assert all((weights[n][~m] == 0).all() for n, m in mechanism.masks.items())


@pytest.mark.check("twinrep", 5)
def test_the_optimizer_goes_on_over_the_cut():
    """Momentum of the step before the cut is in the step after it: the buffer is 0.9 of the old one plus the new gradient."""
    net, params = made()
    mechanism = twins(params, cut=1)
    spread(mechanism, params)
    opt = sgd(mechanism.groups(params), weight_decay=0.1)
    buffers = []
    for i in range(2):
        if i:
            cut_now(mechanism, params)
        opt.zero_grad()
        x, y = batch(i)
        F.cross_entropy(Model(net, params, mechanism)(x), y).backward()
        before = {n: a.detach().clone() for n, a in mechanism.factors.items()}
        mechanism.update(opt, Progress(params=params))
        buffers.append({n: opt.state[a]["momentum_buffer"].clone() for n, a in mechanism.factors.items()})
    for n, a in mechanism.factors.items():
        torch.testing.assert_close(buffers[1][n], 0.9 * buffers[0][n] + a.grad + 0.1 * before[n])


@pytest.mark.check("twinrep", 4)
@both_products
def test_the_plain_network_gives_the_logits_of_the_factored_one_and_has_the_zeros(structure):
    net, mechanism, *_ = trained(structure, cut=2)
    x = DIGITS.test.images(slice(0, 64))
    net.eval()
    with torch.no_grad():
        expected = Model(net, dict(net.named_parameters()), mechanism)(x)
        factored = net(x)
        by_hand = {
            n: product_by_hand(net.get_parameter(n), a, structure) * mechanism.masks.get(n, torch.tensor(True))
            for n, a in mechanism.factors.items()
        }
        bake_(net, mechanism)
        plain = build("cnn", channels=1, classes=10, seed=5).eval()
        plain.load_state_dict(net.state_dict(), strict=True)
        torch.testing.assert_close(plain(x), expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(factored, expected, atol=1e-2)
    for n, v in by_hand.items():
        torch.testing.assert_close(plain.get_parameter(n).detach(), v, rtol=1e-4, atol=1e-6)
    for n, m in mechanism.masks.items():
        assert (plain.get_parameter(n)[~m] == 0).all() and (plain.get_parameter(n)[m] != 0).all()


# ============================================================================================================= TwinRep: sparsity


@pytest.mark.check("twinrep", 7)
@both_products
def test_decay_alone_shrinks_both_factors_alike_and_the_product_by_its_square(structure):
    _, params = made()
    mechanism = twins(params, structure)
    spread(mechanism, params)
    start = {n: (params[n].detach().clone(), a.detach().clone()) for n, a in mechanism.factors.items()}
    first = mechanism.effective(params)
    opt = torch.optim.SGD(mechanism.groups(params), lr=0.1, momentum=0.9, weight_decay=0.01)
    for step in range(1, 41):
        for p in (*params.values(), *mechanism.factors.values()):
            p.grad = torch.zeros_like(p)
        mechanism.update(opt, Progress(step=step, params=params))
    for n, a in mechanism.factors.items():
        w0, a0 = start[n]
        s = float(a.detach().norm() / a0.norm())
        assert 0.3 < s < 0.95
        torch.testing.assert_close(params[n].detach(), s * w0, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(a.detach(), s * a0, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(mechanism.effective(params)[n].detach(), s * s * first[n].detach(), rtol=1e-3, atol=1e-6)
        if structure == "weights":
            apart, was = (params[n] ** 2 - a**2).detach().abs(), (w0**2 - a0**2).abs()
            torch.testing.assert_close(apart, s * s * was, rtol=1e-3, atol=1e-6)


LINE = nn.Sequential(nn.Flatten(), nn.Linear(16, 6, bias=False))
LINE_LAYERS = layers(LINE, torch.zeros(2, 1, 4, 4))


def regressed(structure, decay, steps=3000):
    """Least squares on 16 inputs and 6 outputs, of which few matter, to the end: the products, the plain weights, the gradient at both."""
    g = draw(1)
    x = torch.randn(200, 16, generator=g)
    true = torch.zeros(6, 16)
    if structure == "weights":
        true[0, 1], true[2, 5], true[4, 9], true[5, 9] = 1.0, -1.5, 0.8, 1.2
    else:
        true = torch.outer(torch.randn(6, generator=g), torch.randn(16, generator=g)) / 3  # of rank 1
    y = x @ true.T + 0.5 * torch.randn(200, 6, generator=g)
    found = {}
    for kind in ("product", "plain"):
        net = copy.deepcopy(LINE)
        params = dict(net.named_parameters())
        with torch.no_grad():
            params["1.weight"].copy_(torch.randn(6, 16, generator=draw(2)) * 0.3)
        if kind == "product":
            target = Target(LINE_LAYERS, structure, "global", 0.5, counts=1, spare=False)
            mechanism = Factors(params, target, ("1.weight",), cut=1, chance=draw(3))
        else:
            mechanism = Mechanism()
        opt = torch.optim.SGD(mechanism.groups(params), lr=0.1, momentum=0.9, weight_decay=decay)
        for _ in range(steps):
            v = mechanism.effective(params)["1.weight"]
            opt.zero_grad()
            ((x @ v.T - y).square().sum() / 400).backward()
            mechanism.update(opt, Progress(params=params))
        v = mechanism.effective(params)["1.weight"].detach()
        found[kind] = v, -((y - x @ v.T).T @ x) / 200
    return found


@pytest.mark.check("twinrep", 7)
def test_with_data_the_decay_of_twins_is_a_lasso_and_so_makes_a_spike_at_zero_that_plain_weights_have_not():
    """Optimality of (1/2n)|y - xv|^2 + lambda |v|_1: gradient -lambda sign(v) where v is not 0, at most lambda where it is."""
    decay = 0.1
    found = regressed("weights", decay)
    v, gradient = found["product"]
    zero = v.abs() < 1e-3 * v.abs().max()
    torch.testing.assert_close(gradient[~zero], -decay * v[~zero].sign(), rtol=0.02, atol=0)
    assert (gradient[zero].abs() <= decay * 1.02).all()
    plain, _ = found["plain"]
    spike = float(zero.float().mean())
    assert spike > 0.5 > 0.1 > float((plain.abs() < 1e-3 * plain.abs().max()).float().mean())


@pytest.mark.check("twinrep", 7)
def test_with_data_the_decay_of_mixed_filters_is_a_nuclear_norm_and_so_lowers_the_rank():
    """Optimality with lambda times the nuclear norm: the gradient is -lambda U V' where v has rank, its norm at most lambda elsewhere."""
    decay = 0.1
    found = regressed("filters", decay)
    v, gradient = found["product"]
    u, s, vt = torch.linalg.svd(v, full_matrices=False)
    rank = int((s > 1e-3 * s[0]).sum())
    plain = torch.linalg.svdvals(found["plain"][0])
    assert rank < int((plain > 1e-3 * plain[0]).sum()) == 6
    torch.testing.assert_close(u[:, :rank].T @ gradient @ vt[:rank].T, -decay * torch.eye(rank), rtol=0, atol=0.03 * decay)
    assert float(torch.linalg.matrix_norm(gradient, 2)) <= decay * 1.02


# ============================================================================================================ TwinRep: as a whole


def test_the_rate_falls_with_epochs_counted_from_one():
    rates = [one_based(0.1)(Progress(epoch=e - 1, epochs=100)) for e in range(1, 101)]
    assert rates == pytest.approx([0.1] * 69 + [0.01] * 15 + [0.001] * 16)


@pytest.mark.parametrize(("key", "passes"), [("pgd_at", 1), ("trades", 3), ("natural", 1)])
def test_norms_see_one_batch_a_step_and_three_with_trades_of_which_two_clean(key, passes, tmp_path):
    run = runner("twinrep", tmp_path, budget=dataclasses.replace(SMALL, epochs=1), training_step=key)
    seen = []
    run.net.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()) if m.training else None)
    carried_out(run)
    assert int(run.net.bn1.num_batches_tracked) == 4 * passes == len(seen)
    if key == "trades":
        clean, attacked, again = seen[:3]
        assert torch.equal(clean, again) and not torch.equal(clean, attacked)


@pytest.mark.parametrize("key", ["pgd_at", "trades"])
def test_the_attack_starts_from_a_little_normal_noise(key, tmp_path):
    run = runner("twinrep", tmp_path, budget=dataclasses.replace(SMALL, epochs=1), training_step=key)
    seen = []
    run.net.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach().clone()) if not m.training else None)
    next(methods.stages(run))
    start = seen[0] if key == "pgd_at" else seen[1]  # TRADES looks at the clean batch first
    assert -0.01 < float(start.min()) < 0, "the digits' black is 0; uniform noise would be clipped there"


@both_products
def test_the_cut_is_told_with_the_accuracy_of_what_is_left(structure, tmp_path):
    """Cut before the last of its steps: what is measured then is what the run ends with."""
    budget = dataclasses.replace(SMALL, epochs=8, images=512, batch=512, attack_steps=1, check=200)
    words = "channels" if structure == "filters" else structure
    run = runner("twinrep", tmp_path, budget=budget, structure=words, sparsity=0.2, cut=8)
    factors = {}

    def look(event):
        if isinstance(event, Pruned):
            factors.update(run.measure(lambda x: run.net(x)))

    _, events = carried_out(run, look)
    told = next(e for e in events if isinstance(e, Pruned)).metrics
    assert {k: told[k] for k in ("clean", "pgd")} == run.measure(lambda x: run.net(x)) != factors


def test_right_after_the_cut_the_products_are_measured_and_not_a_factor(tmp_path):
    run = runner("twinrep", tmp_path, sparsity=0.5, budget="tiny")
    net, mechanism, *_ = trained("weights", cut=2, epochs=8, data=Batches(DIGITS.train, 128, seed=0, stage="t"))
    run.load(net.state_dict())
    target = run.target(0.8)
    factors = run.pruned(mechanism.masks, target).metrics
    products = run.pruned(mechanism.masks, target, mechanism=mechanism).metrics
    bake_(run.net, mechanism)
    plain = run.pruned(mechanism.masks, target).metrics
    assert products == plain
    assert products["clean"] > factors["clean"] + 0.1


# ============================================================================================================ going on where it stopped


BIRD_STAGES = {"by gradient": None, "at random": draw}


@both_birds
@pytest.mark.parametrize("growth", list(BIRD_STAGES))
def test_a_bird_resumed_after_any_epoch_equals_an_uninterrupted_one_bit_for_bit(bird, growth, tmp_path):
    def stage(resume):
        net, chance = build("cnn", channels=1, classes=10, seed=0), draw(11)
        params = dict(net.named_parameters())
        lacks = ideal_gas({layer.name: math.prod(layer.shape) for layer in CNN}, 0.8)
        numbers = NUMBERS | PLUS | {"begin": 0.3, "window": 2}
        source = chance if growth == "at random" else None
        mechanism = BIRDS[bird](params, random_masks(params, lacks, chance), numbers, source)
        data = Batches(DIGITS.train.at(slice(0, 96)), 32, seed=0, stage="test")
        loss = objective("pgd_at", eps=0.15, steps=2, generator=chance, attack_bn="train")

        def watch(model, at):  # best in the third of five epochs
            return {"val_pgd": 1 - abs(at.epoch - 2) / 10, "val_loss": float(at.epoch % 3)}

        options = {"mechanism": mechanism, "validate": watch, "select": "val_pgd", "resume": resume, "generator": chance}
        return net, mechanism, *record(fit(net, data, loss, epochs=5, lr=milestones(0.1, 0.5, 0.75), **options))

    _, mechanism, snapshots, _ = goes_on_as_if_never_stopped(stage, tmp_path)
    assert mechanism.rewirings == snapshots[2]["mechanism"]["rewirings"] > 0


@both_products
@pytest.mark.parametrize("cut", [1, 2, 4])
def test_twins_resumed_after_any_epoch_equal_uninterrupted_ones_bit_for_bit(structure, cut, tmp_path):
    goes_on_as_if_never_stopped(lambda resume: trained(structure, cut, resume=resume), tmp_path)


@pytest.mark.parametrize("method", ["flyingbird", "flyingbird+", "twinrep"])
def test_a_stopped_run_tells_in_the_end_what_one_that_was_not_tells(method, tmp_path):
    own = {"cut": 3} if method == "twinrep" else {"interval": 2, "interval_late": 3}
    options = {"evaluate": False, "device": "cpu", "snapshot_every": 0.0}
    recipe = apnb.recipe(method, budget=SMALL, sparsity=0.8, **own)
    whole = apnb.run(recipe, store=tmp_path / "whole", **options)
    for wanted in (1, 2, 3):  # each attempt is ended in the middle of the epoch after the one it has stored
        epochs = Counter()
        for event in apnb.stream(recipe, store=tmp_path / "broken", **options):
            epochs[event.kind] += 1
            if epochs["epoch"] == 1 and event.kind == "batch" and epochs["batch"] > 5:
                break
        assert event.kind == "batch", wanted
    broken = apnb.run(recipe, store=tmp_path / "broken", **options)
    assert same(broken.model.state_dict(), whole.model.state_dict()) and same(broken.masks, whole.masks)
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in broken.rows] == [
        {k: v for k, v in row.items() if k != "seconds"} for row in whole.rows
    ]
    assert sum(row["kind"] == "pruned" for row in whole.rows) >= (1 if method == "twinrep" else 5)


@pytest.mark.parametrize("other", [{"check": 16}, {"interval": 7}, {"as_released": True}, {"sparsity": 0.7}])
def test_runs_share_a_stage_only_if_they_agree_in_all_that_decides_it(other, tmp_path):
    """Also in the validation images, on which the best epoch is chosen."""
    budget = dataclasses.replace(SMALL, epochs=1)
    changed = {"budget": dataclasses.replace(budget, **other)} if "check" in other else {"budget": budget, **other}
    for options, restored in (({"budget": budget}, False), (changed, False), ({"budget": budget}, True)):
        run = runner("flyingbird", tmp_path, **{"sparsity": 0.8, **options})
        assert any(e.kind == "restored" for e in carried_out(run)[1]) == restored
