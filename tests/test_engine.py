"""Our own APGD, FAB and Square: the numbers of the official package, found with less work, and the truth where it is known."""

from __future__ import annotations

import copy
import itertools
import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from apnb import datasets
from apnb.attacks.apgd import apgd
from apnb.attacks.fab import fab, project
from apnb.attacks.square import square
from apnb.chance import borrowed, generator
from apnb.datasets import Batches, Dataset
from apnb.errors import Invalid
from apnb.networks import build
from apnb.objectives import objective
from apnb.training import fit, one_cycle

DIGITS = datasets.load("digits")


class Rowwise(nn.Module):
    """Two layers of random weights whose sums are taken image by image: logits do not depend on who else is in the batch."""

    def __init__(self, shape: tuple[int, ...], classes: int, seed: int = 0, hidden: int = 32):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        d = shape[0] * shape[1] * shape[2]
        self.a = nn.Parameter(torch.randn(hidden, d, generator=g) / d**0.5, requires_grad=False)
        self.b = nn.Parameter(torch.randn(classes, hidden, generator=g), requires_grad=False)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        h = ((x.flatten(1) - 0.5)[:, None] * self.a).sum(-1).relu()
        return (h[:, None] * self.b).sum(-1)


class Steps(nn.Module):
    """A network behind inputs of few levels, through which no gradient comes."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net((12 * x).round() / 12)


class Halfspace(nn.Module):
    """Two classes split by a hyperplane: inside the box, a move of eps in every pixel changes the margin by eps * ||w||_1."""

    def __init__(self, d: int):
        super().__init__()
        self.w = nn.Parameter(torch.randn(d, generator=torch.Generator().manual_seed(1)), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        z = (x.flatten(1) - 0.5) @ self.w
        return torch.stack([-z / 2, z / 2], 1)

    def distance(self, x: Tensor) -> Tensor:
        return ((x.flatten(1) - 0.5) @ self.w).abs() / self.w.abs().sum()


def points(net: nn.Module, n: int, shape: tuple[int, ...], of: int = 1) -> tuple[Tensor, Tensor]:
    """Images and the labels that the network gives them: the ``n`` that it is surest of among ``of`` times as many."""
    x = torch.rand(n * of, *shape, generator=torch.Generator().manual_seed(100))
    first, second = net(x).topk(2, 1).values.unbind(1)
    x = x[(second - first).argsort()[:n]]
    return x, net(x).argmax(1)


def trained(data: Dataset, network: str, key: str, *, epochs: int) -> nn.Module:
    """A network for the data set, parameters frozen."""
    channels = data.train.x.shape[1]
    net = build(network, channels=channels, classes=data.classes)
    minimise = objective(key, eps=data.eps, steps=3, generator=generator("engine", key))
    list(fit(net, Batches(data.train, 64, seed=0, stage="engine"), minimise, epochs=epochs, lr=one_cycle(0.1)))
    return net.eval().requires_grad_(False)


def official(net: nn.Module, *, eps: float, seed: int, classes: int, steps: int = 100, targets: int = 9, queries: int = 5000):
    """The package's four attacks, one by one, with budgets of our own."""
    from pyautoattack import AutoAttack

    aa = AutoAttack(net, norm="Linf", eps=eps, seed=seed, version="standard", device="cpu")
    logger = logging.Logger("quiet", logging.CRITICAL)
    for attack in (aa.apgd, aa.apgd_targeted):
        attack.logger, attack.n_iter = logger, steps
        attack.n_iter_2, attack.n_iter_min, attack.size_decr = (max(int(s * steps), 1) for s in (0.22, 0.06, 0.03))
    aa.apgd.loss = "ce"
    aa.fab.targeted, aa.fab.n_iter, aa.square.n_queries = True, steps, queries
    aa.apgd_targeted.n_target_classes = aa.fab.n_target_classes = min(targets, classes - 1)
    attacks = {"apgd-ce": aa.apgd, "apgd-t": aa.apgd_targeted, "fab-t": aa.fab, "square": aa.square}

    def call(attack):
        def run(x, y):
            with borrowed(), torch.no_grad():
                return attack.perturb(x.clone(), y.clone()).detach()

        return run

    return {name: call(attack) for name, attack in attacks.items() if classes >= 4 or name != "apgd-t"}


def own(net: nn.Module, *, eps: float, seed: int, classes: int, steps: int = 100, targets: int = 9, queries: int = 5000):
    """Ours, the same way."""
    k = min(targets, classes - 1)
    attacks = {
        "apgd-ce": lambda x, y: apgd(net, x, y, eps=eps, seed=seed, steps=steps),
        "apgd-t": lambda x, y: apgd(net, x, y, eps=eps, seed=seed, steps=steps, targets=k),
        "fab-t": lambda x, y: fab(net, x, y, eps=eps, steps=steps, targets=k)[0],
        "square": lambda x, y: square(net, x, y, eps=eps, seed=seed, queries=queries),
    }
    return {name: attack for name, attack in attacks.items() if classes >= 4 or name != "apgd-t"}


@torch.no_grad()
def cascade(net: nn.Module, attacks: dict, x: Tensor, y: Tensor, batch: int) -> list[str]:
    """What broke each point: survivors of one attack go to the next in batches, as in the package."""
    by = ["" if right else "clean" for right in net(x).argmax(1) == y]
    for name, attack in attacks.items():
        standing = torch.tensor([i for i, b in enumerate(by) if not b], dtype=torch.long)
        for part in standing.split(batch):
            if len(part):
                for i in part[net(attack(x[part], y[part])).argmax(1) != y[part]].tolist():
                    by[i] = name
    return by


# ---------------------------------------------------------------------------------------------------- the same as the package

SHAPES = [(1, 8, 8), (3, 6, 9), (2, 9, 5)]


@pytest.mark.parametrize("steps", [1, 7, 100])
@pytest.mark.parametrize("targets", [None, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_apgd_visits_the_iterates_of_the_package_to_the_bit(shape, targets, steps):
    net = Rowwise(shape, 6)
    x, y = points(net, 5, shape, of=200)
    name = "apgd-ce" if targets is None else "apgd-t"
    eps = 0.03
    net.seen.clear()
    clean = official(net, eps=eps, seed=4, classes=6, steps=steps, targets=3)[name](x, y)
    assert torch.equal(clean, x)  # nobody is broken, so that nobody leaves
    theirs = [seen for seen in net.seen if not torch.equal(seen, x)]
    net.seen.clear()
    apgd(net, x, y, eps=eps, seed=4, targets=targets, steps=steps)
    ours = [seen for seen in net.seen if not torch.equal(seen, x)]
    assert len(ours) == len(theirs) == (steps + 1) * (targets or 1)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [0.01, 0.02])
def test_fab_and_square_return_the_images_of_the_package_to_the_bit(shape, eps):
    net = Rowwise(shape, 5, seed=2)
    x, y = points(net, 100, shape)  # several rounds of targets
    y[:3] = (y[:3] + 1) % 5  # wrong from the start
    budget = dict(eps=eps, seed=1, classes=5, steps=25, targets=4, queries=700)
    for name in ("fab-t", "square"):
        theirs, ours = official(net, **budget)[name](x, y), own(net, **budget)[name](x, y)
        assert torch.equal(theirs, ours)
        broken = (theirs != x).flatten(1).any(1)
        assert not broken[:3].any()
        assert 5 < int(broken.sum()) < 95


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("shape", "classes"), [((1, 8, 8), 10), ((3, 8, 5), 4), ((2, 4, 7), 3), ((1, 5, 5), 2)])
def test_the_cascade_breaks_the_same_points_by_the_same_attacks_whatever_the_seed_the_batch_and_the_classes(shape, classes, seed):
    net = Rowwise(shape, classes, seed=seed)
    x, y = points(net, 23, shape)
    budget = dict(eps=(0.01, 0.015, 0.02, 0.03)[seed], seed=seed, classes=classes, steps=20, queries=200)
    theirs = cascade(net, official(net, **budget), x, y, (23, 10, 7, 1)[seed])
    assert theirs == cascade(net, own(net, **budget), x, y, (23, 10, 7, 1)[seed])
    assert theirs.count("") < 23


def colour(classes: int = 4) -> Dataset:
    """Smooth random images of 3x10x12: a pattern for each class and one for each image."""
    g = torch.Generator().manual_seed(0)

    def smooth(n: int) -> Tensor:
        return nn.functional.interpolate(torch.rand(n, 3, 4, 4, generator=g), size=(10, 12), mode="bilinear")

    patterns, y = smooth(classes), torch.randint(classes, (900,), generator=g)
    x = (0.5 * patterns[y] + 0.5 * smooth(900)).clamp(0, 1)
    parts = {
        name: datasets.Split(x[at], y[at])
        for name, at in (("train", slice(0, 700)), ("validation", slice(700, 800)), ("test", slice(800, 900)))
    }
    return Dataset(name="smooth", classes=classes, eps=0.05, **parts)


@pytest.mark.parametrize(
    ("data", "network", "key", "eps"),
    [(DIGITS, "cnn", "natural", 0.08), (DIGITS, "resnet8", "fgsm", 0.12), (colour(), "cnn", "natural", 0.025)],
    ids=["digits cnn", "digits resnet8", "colour cnn"],
)
def test_trained_networks_get_the_verdicts_of_the_package(data, network, key, eps):
    net = trained(data, network, key, epochs=3)
    x, y = data.test.images(slice(0, 20)), data.test.y[:20]
    budget = dict(eps=eps, seed=3, classes=data.classes, steps=20, targets=3, queries=150)
    theirs = cascade(net, official(net, **budget), x, y, 12)
    assert theirs == cascade(net, own(net, **budget), x, y, 12)
    assert 2 < theirs.count("") < 18


def test_points_that_only_square_breaks_are_broken_by_square():
    net = Steps(trained(DIGITS, "cnn", "natural", epochs=3))
    x, y = DIGITS.test.images(slice(0, 24)), DIGITS.test.y[:24]
    budget = dict(eps=0.1, seed=0, classes=10, steps=8, targets=2, queries=300)
    theirs = cascade(net, official(net, **budget), x, y, 24)
    assert theirs == cascade(net, own(net, **budget), x, y, 24)
    assert "square" in theirs


@pytest.mark.slow
@pytest.mark.parametrize("eps", [0.15, 0.2])
def test_a_robust_network_gets_the_verdicts_of_the_package_at_the_standard_budget(eps):
    net = trained(DIGITS, "cnn", "pgd_at", epochs=20)
    x, y = DIGITS.test.images(slice(0, 100)), DIGITS.test.y[:100]
    theirs = cascade(net, official(net, eps=eps, seed=0, classes=10), x, y, 100)
    assert theirs == cascade(net, own(net, eps=eps, seed=0, classes=10), x, y, 100)
    assert 20 < theirs.count("") < 98


# -------------------------------------------------------------------------------------------------------- with less work


def test_square_asks_the_network_for_few_of_the_proposals():
    net = Rowwise((1, 8, 8), 10)
    x, y = points(net, 20, (1, 8, 8))
    net.seen.clear()
    square(net, x, y, eps=0.002, seed=0, queries=5000)
    assert sum(map(len, net.seen)) < 20 * 5000 / 5


def test_broken_points_leave_apgd():
    net = Rowwise((1, 8, 8), 10)
    x, y = points(net, 20, (1, 8, 8))
    net.seen.clear()
    found = apgd(net, x, y, eps=0.5, seed=0)
    assert (net(found).argmax(1) != y).all()
    assert sum(map(len, net.seen)) < 20 * 15


def test_broken_points_leave_fab_unless_all_targets_are_asked_for():
    net = Rowwise((1, 8, 8), 8)
    x, y = points(net, 70, (1, 8, 8))
    asked = []
    for everything in (False, True):
        net.seen.clear()
        fab(net, x, y, eps=1.0, targets=7, steps=5, all_targets=everything)
        asked.append(sum(map(len, net.seen)))
    assert asked[1] == 70 + 70 * 7 * 5 * 2
    assert asked[0] < asked[1] / 2


# ------------------------------------------------------------------------------------------------------ what is known exactly


def half(n: int = 40) -> tuple[Halfspace, Tensor, Tensor, Tensor]:
    """Points around mid-grey, so that the box is far, and their exact distances."""
    net = Halfspace(48)
    x = 0.5 + 0.3 * (torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(2)) - 0.5)
    return net, x, net(x).argmax(1), net.distance(x)


def test_apgd_breaks_exactly_the_points_that_are_nearer_to_the_hyperplane_than_eps():
    net, x, y, distance = half()
    eps = float(distance.median())
    found = apgd(net, x, y, eps=eps * 1.0001, seed=0, steps=20)
    assert torch.equal(net(found).argmax(1) != y, distance < eps * 1.0001)
    assert torch.equal((found != x).flatten(1).any(1), distance < eps * 1.0001)


def test_fab_finds_the_distance_to_the_hyperplane():
    net, x, y, distance = half()
    x_adv, closest = fab(net, x, y, eps=float(distance.median()), targets=1, steps=60)
    assert (net(closest).argmax(1) != y).all()
    reached = (closest - x).flatten(1).abs().amax(1)
    assert (reached > distance * (1 - 1e-4)).all()
    assert (reached < distance * 1.02 + 1e-5).all()
    inside = reached <= float(distance.median())
    assert torch.equal(x_adv, torch.where(inside[:, None, None, None], closest, x))


@given(st.integers(0, 10**6), st.integers(1, 40))
def test_the_projection_is_the_smallest_move_onto_the_plane_inside_the_box(seed, d):
    g = torch.Generator().manual_seed(seed)
    t, w = torch.rand(6, d, generator=g), torch.randn(6, d, generator=g)
    t[0], w[1, : d // 2] = t[0].round(), 0.0  # on the walls; a plane along some axes
    b = torch.randn(6, generator=g) * d**0.5
    move = project(t, w, b).double()
    t, w, b = t.double(), w.double(), b.double()
    side = torch.where((w * t).sum(1) >= b, -1.0, 1.0)[:, None]
    up = w * side > 0  # where a pixel grows when the point goes to its plane
    wall = torch.where(up, 1 - t, t)

    def towards(way: Tensor) -> Tensor:
        return torch.where(up, 1.0, -1.0) * torch.minimum(way[:, None], wall) * (w != 0)

    low, high = torch.zeros(6).double(), torch.ones(6).double()
    for _ in range(60):  # how far along is monotone in the way: halve the interval
        middle = (low + high) / 2
        over = (side.squeeze(1) * ((w * (t + towards(middle))).sum(1) - b)) >= 0
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    torch.testing.assert_close(move.abs().amax(1), towards(high).abs().amax(1), atol=2e-5, rtol=2e-5)
    assert (t + move >= -1e-6).all()
    assert (t + move <= 1 + 1e-6).all()
    reachable = (side.squeeze(1) * ((w * (t + towards(torch.ones(6).double()))).sum(1) - b)) >= 1e-4
    torch.testing.assert_close((w * (t + move)).sum(1)[reachable], b[reachable], atol=2e-4, rtol=1e-4)


def test_what_is_returned_lies_in_the_ball_and_the_box_and_fools_the_network_or_is_the_image_itself():
    net = Rowwise((3, 6, 9), 6)
    x, y = points(net, 20, (3, 6, 9))
    for name, attack in own(net, eps=0.08, seed=0, classes=6, steps=15, queries=200).items():
        found = attack(x, y)
        moved = (found != x).flatten(1).any(1)
        assert int(moved.sum()) > 0, name
        assert torch.equal(moved, net(found).argmax(1) != y), name
        assert float((found - x).abs().max()) <= 0.08 + 1e-6
        assert 0 <= float(found.min()) <= float(found.max()) <= 1


# ---------------------------------------------------------------------------------------------------- FAB beyond the radius


def test_the_closest_image_does_not_depend_on_the_radius_once_all_targets_are_run():
    net = Rowwise((1, 8, 8), 8)
    x, y = points(net, 70, (1, 8, 8))  # several rounds of targets
    runs = {eps: fab(net, x, y, eps=eps, targets=7, steps=20, all_targets=True) for eps in (1e-6, 0.05, 1.0)}
    assert all(torch.equal(a, b) for (_, a), (_, b) in itertools.combinations(runs.values(), 2))
    assert torch.equal(runs[1e-6][0], x)
    for eps, (x_adv, closest) in runs.items():
        reached = (closest - x).flatten(1).abs().amax(1)
        assert (net(closest).argmax(1) != y).all()
        assert torch.equal((x_adv != x).flatten(1).any(1), reached <= eps)  # one target within eps, and the closest is within
        few_adv, few = fab(net, x, y, eps=eps, targets=7, steps=20)
        assert torch.equal(few_adv, x_adv)
        assert ((few - x).flatten(1).abs().amax(1) >= reached).all()


def test_each_point_of_fab_is_on_its_own():
    net = Rowwise((1, 8, 8), 8)
    x, y = points(net, 12, (1, 8, 8))
    together = fab(net, x, y, eps=0.03, targets=5, steps=20)
    alone = [fab(net, x[i : i + 1], y[i : i + 1], eps=0.03, targets=5, steps=20) for i in range(12)]
    for a, b in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(a, torch.cat(b))


# ------------------------------------------------------------------------------------------------------------- leaves no trace


def test_attacks_leave_images_network_and_random_states_alone_and_repeat_themselves():
    net = trained(DIGITS, "cnn", "natural", epochs=1).requires_grad_(True)
    x, y = DIGITS.test.images(slice(0, 10)), DIGITS.test.y[:10]
    before, state, random = (x.clone(), y.clone()), copy.deepcopy(net.state_dict()), torch.get_rng_state()
    budget = dict(eps=0.05, seed=7, classes=10, steps=6, targets=3, queries=60)
    for name, attack in own(net, **budget).items():
        first = attack(x, y)
        assert not first.requires_grad
        torch.manual_seed(5)
        assert torch.equal(attack(x, y), first), name
        torch.set_rng_state(random)
        attack(x, y)
        assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    assert not x.requires_grad
    assert all(torch.equal(t, state[n]) for n, t in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_points_that_are_wrong_already_are_not_attacked():
    net = Rowwise((1, 8, 8), 10)
    x, y = points(net, 5, (1, 8, 8))
    for attack in own(net, eps=0.3, seed=0, classes=10, steps=5, queries=20).values():
        net.seen.clear()
        assert torch.equal(attack(x, (y + 1) % 10), x)
        assert len(net.seen) == 1


def test_a_gradient_of_zero_is_told_for_dlr_and_only_then():
    told = []
    net = Steps(Rowwise((1, 8, 8), 10))
    x, y = points(net, 6, (1, 8, 8))
    apgd(net, x, y, eps=0.001, seed=0, targets=2, steps=3, warn=told.append)
    assert told == ["APGD-T starts with a gradient of exactly zero on 6 of 6 points: masked, or nothing depends on the input"] * 2
    told.clear()
    apgd(net, x, y, eps=0.001, seed=0, steps=3, warn=told.append)
    apgd(
        Rowwise((1, 8, 8), 10),
        *points(Rowwise((1, 8, 8), 10), 6, (1, 8, 8)),
        eps=0.001,
        seed=0,
        targets=2,
        steps=3,
        warn=told.append,
    )
    assert told == []


@pytest.mark.parametrize(("classes", "targets"), [(3, 2), (2, 1), (10, 10), (10, 0)])
def test_targets_that_the_classes_do_not_give_are_refused(classes, targets):
    net = Rowwise((1, 4, 4), classes)
    x, y = points(net, 2, (1, 4, 4))
    with pytest.raises(Invalid, match=f"APGD-T got {targets} targets and {classes} classes"):
        apgd(net, x, y, eps=0.1, seed=0, targets=targets)
    if targets in (0, 10):
        with pytest.raises(Invalid, match=f"FAB-T got {targets} targets and 10 classes"):
            fab(net, x, y, eps=0.1, targets=targets)
