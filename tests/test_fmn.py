"""FMN finds the closest adversarial: the closed form where there is one, no floor, nothing lost, nothing touched."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
import math

import numpy as np
import pytest
import torch
from torch import nn

from apnb.attacks.fmn import LOSSES, OPTIMIZERS, Configuration, _dlr, floor, fmn
from apnb.attacks.hofmn import UNTUNED_LR, search, survey
from apnb.errors import Invalid
from tests.benchmarks.fmn import plain_fmn

COMBINATIONS = list(itertools.product(LOSSES, OPTIMIZERS))


class Linear(nn.Module):
    """z = W x + b: its smallest adversarial perturbation is known."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T + self.bias


def linear(classes=4, scale=30.0, seed=0, n=60, dtype=torch.float32):
    """A linear network that is sure of itself, images of which some pixels are black or white, and the labels it gives them."""
    draw = torch.Generator().manual_seed(seed)
    weight = scale * torch.randn(classes, 27, generator=draw, dtype=dtype)
    x = (1.4 * torch.rand(n, 3, 3, 3, generator=draw, dtype=dtype) - 0.2).clamp(0, 1)
    net = Linear(weight, -weight.sum(1) / 2).eval().requires_grad_(False)
    return net, x, net(x).argmax(1)


def exact(net, x, y):
    """The smallest radius at which some competitor ties with the label inside the box, by bisection, float64; inf if none does.

    Under a radius r, z_j - z_y grows by at most the sum over pixels of |w_j - w_y| min(r, room), room being the way to the edge
    of the box in the direction of w_j - w_y.
    """
    weight, bias, x = net.weight.double(), net.bias.double(), x.double().flatten(1)
    z = x @ weight.T + bias
    towards = weight[None] - weight[y][:, None]  # (N, classes, pixels)
    gap = z.gather(1, y[:, None]) - z
    room = torch.where(towards > 0, 1 - x[:, None], x[:, None])
    low, high = torch.zeros_like(gap), torch.ones_like(gap)
    for _ in range(60):
        middle = (low + high) / 2
        reached = (towards.abs() * torch.minimum(middle[..., None], room)).sum(2) >= gap
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    others = torch.arange(z.shape[1]) != y[:, None]
    return torch.where(others & (high < 1), high, math.inf).amin(1)


@pytest.fixture(scope="module")
def conv():
    """A small network with random weights, in float32 and evaluation mode, images, and labels of which the first three are wrong."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(72, 10),
        )  # fmt: skip
        x = torch.rand(24, 1, 8, 8)
    net.eval().requires_grad_(False)
    y = net(x).argmax(1)
    y[:3] = (y[:3] + 1) % 10
    return net, x, y


# ------------------------------------------------------------------------------------------------------------- the closed form


def test_the_closed_form_agrees_with_hand_worked_cases():
    net = Linear(torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([0.0, -1.0]))
    x = torch.tensor([[0.0, 0.1], [0.95, 0.0], [0.0, 0.0]]).view(3, 1, 1, 2)
    # 0.8 short, both pixels free: 0.8 / 3; 0.05 short: 0.05 / 3; 1 short: 1 / 3
    torch.testing.assert_close(exact(net, x, torch.zeros(3, dtype=torch.long)).tolist(), [0.8 / 3, 0.05 / 3, 1 / 3])
    blocked = torch.tensor([[0.95, -0.0]]).view(1, 1, 1, 2)
    net.bias.data[1] = -1.5  # 0.55 short, the first pixel gives 0.05 at most: 0.5 / 2
    torch.testing.assert_close(exact(net, blocked, torch.tensor([0])).item(), 0.25)
    net.bias.data[1] = -3.5  # out of reach
    assert exact(net, blocked, torch.tensor([0])).item() == math.inf


@pytest.mark.parametrize(("loss", "optimizer"), COMBINATIONS)
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_distances_on_a_linear_network_are_those_of_the_closed_form(classes, loss, optimizer):
    net, x, y = linear(classes, n=400)
    distance, best = fmn(net, x, y, Configuration(loss=loss, optimizer=optimizer))[1].double(), exact(net, x, y)
    assert float(best.median()) > 0.01
    assert float(distance.median() / best.median()) == pytest.approx(1, abs=0.02)
    assert float((distance / best < 1.02).double().mean()) > 0.85  # the others are caught by a competitor that is not the nearest
    assert (distance >= best - 1e-6).all()


@pytest.mark.parametrize("schedule", ["cosine", "none"])
@pytest.mark.parametrize("seed", range(3))
def test_no_distance_is_below_the_closed_form_whatever_the_settings(seed, schedule):
    net, x, y = linear(5, seed=seed)
    best = exact(net, x, y)
    for lr, as_released in ((0.1, False), (10.0, False), (1.0, True)):
        c = Configuration(
            loss=LOSSES[seed], lr=lr, momentum=0.5, weight_decay=0.3, schedule=schedule, steps=60, as_released=as_released
        )
        assert (fmn(net, x, y, c)[1] >= best - 1e-6).all()


def test_two_classes_have_no_dlr_and_ll_takes_its_place():
    net, x, y = linear(2)
    for a, b in zip(fmn(net, x, y, Configuration(loss="dlr")), fmn(net, x, y, Configuration(loss="ll")), strict=True):
        assert torch.equal(a, b)


def test_dlr_has_a_gradient_where_the_label_ranks_third_which_the_released_one_has_not():
    y = torch.tensor([0, 0, 0, 0])
    z = torch.tensor([[5.0, 3.0, 1.0, 0.0], [3.0, 5.0, 1.0, 0.0], [1.0, 3.0, 5.0, 0.0], [0.0, 3.0, 5.0, 1.0]], requires_grad=True)
    (ours,) = torch.autograd.grad(_dlr(z, y, False).sum(), z)
    (released,) = torch.autograd.grad(_dlr(z, y, True).sum(), z)
    assert _dlr(z, y, True)[:3].tolist() == [0.5, -0.5, -1]
    assert torch.equal(ours[:2], released[:2])
    assert released[2].tolist() == [0, 0, 0, 0]
    assert ours[2].tolist() == ours[3].tolist() == [1, 0, -1, 0]  # LL: away from the label, towards the highest


@pytest.mark.parametrize("loss", LOSSES)
def test_a_point_on_the_boundary_is_found_next_to_itself(loss):
    net = Linear(torch.tensor([[0.0] * 4, [1.0] * 4]), torch.tensor([0.0, -2.0])).requires_grad_(False)
    (distance,) = fmn(net, torch.full((1, 1, 2, 2), 0.5), torch.tensor([0]), Configuration(loss=loss, steps=20))[1].tolist()
    assert 0 < distance < 1e-5


# --------------------------------------------------------------------------------------------------------------- there is no floor


class Softmax(nn.Module):
    """Probabilities instead of logits: gradients nearly vanish, linear extrapolations are far too long."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x).softmax(1)


def close():
    """A linear network whose classes all tie in the middle of the box, and points within 1e-4 of it, float64."""
    net, x, _ = linear(3, scale=1e5, n=40, dtype=torch.float64)
    x = 0.5 + 1e-4 * (x - 0.5)
    return net, x, net(x).argmax(1)


@pytest.mark.parametrize("steps", [50, 100])
@pytest.mark.parametrize("outputs", ["logits", "probabilities"])
@pytest.mark.parametrize("loss", LOSSES)
def test_distances_far_below_the_floor_of_the_released_code_are_found(loss, outputs, steps):
    net, x, y = close()
    judged, best = net if outputs == "logits" else Softmax(net), exact(net, x, y)
    distance = fmn(judged, x, y, Configuration(loss=loss, steps=steps))[1]
    assert float(distance.max()) < 1e-4 < floor(steps) / 100
    assert float((distance / best).median()) < 1.02
    released = fmn(judged, x, y, Configuration(loss=loss, steps=steps, as_released=True))[1]
    assert float(released.min()) >= floor(steps) * 0.5


@pytest.mark.parametrize(("steps", "factor"), [(50, 0.280), (100, 0.0764), (200, 0.0057), (300, 0.00042)])
def test_the_floor_is_the_product_of_the_shrinkings(steps, factor):
    assert floor(steps) == pytest.approx(factor, rel=0.01)


# ------------------------------------------------------------------------------------------------------------------ what comes back


@pytest.mark.parametrize("as_released", [False, True])
@pytest.mark.parametrize(("loss", "optimizer"), COMBINATIONS)
def test_adversarials_lie_in_the_box_are_misclassified_and_have_their_distance_to_the_bit(conv, loss, optimizer, as_released):
    net, x, y = conv
    adversarial, distance = fmn(net, x, y, Configuration(loss=loss, optimizer=optimizer, steps=40, as_released=as_released))
    assert (adversarial.dtype, distance.dtype, distance.shape) == (torch.float32, torch.float32, (24,))
    assert float(adversarial.min()) >= 0
    assert float(adversarial.max()) <= 1
    assert torch.equal((adversarial - x).flatten(1).abs().amax(1), distance)
    assert (net(adversarial).argmax(1) != y).all()
    assert torch.equal(adversarial[:3], x[:3])  # wrong without any attack
    assert distance[:3].tolist() == [0, 0, 0]
    assert (distance[3:] > 0).all()


@pytest.mark.parametrize(
    "logits",
    [
        lambda x: torch.tensor([[1.0, 0.0, 0.0]]).repeat(len(x), 1),
        lambda x: torch.zeros(len(x), 3),
        lambda x: torch.tensor([[2.0, 1.0, 0.0]]) + 0 * x.flatten(1)[:, :1],
        lambda x: (x.flatten(1)[:, :3] > -1).float() * torch.tensor([2.0, 1.0, 0.0]),
    ],
    ids=["constant", "all equal", "gradient zero", "a step"],
)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("as_released", [False, True])
def test_where_no_adversarial_is_found_the_distance_is_infinite(logits, loss, as_released):
    class Net(nn.Module):
        def forward(self, x):
            return logits(x)

    x, y = torch.rand(3, 1, 2, 2), torch.tensor([0, 0, 1])
    adversarial, distance = fmn(Net(), x, y, Configuration(loss=loss, steps=10, as_released=as_released))
    assert distance.tolist() == [math.inf, math.inf, 0]
    assert torch.equal(adversarial, x)


class Rowwise(nn.Module):
    """A network with a hidden layer that sums each row by itself, so that company changes no bit."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.one, self.two = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((16, 27), (5, 16)))

    def forward(self, x):
        hidden = (x.flatten(1)[:, None] * self.one).sum(2).relu()
        return (hidden[:, None] * self.two).sum(2)


@pytest.mark.parametrize("as_released", [False, True])
@pytest.mark.parametrize(("loss", "optimizer"), COMBINATIONS)
def test_a_point_fares_alone_as_in_company(loss, optimizer, as_released):
    net, x = Rowwise(), torch.rand(12, 3, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = net(x).argmax(1)
    c = Configuration(loss=loss, optimizer=optimizer, steps=60, momentum=0.5, weight_decay=0.1, as_released=as_released)
    together = fmn(net, x, y, c)
    for part in (slice(0, 1), slice(1, 5), slice(5, 12)):
        for a, b in zip(fmn(net, x[part], y[part], c), together, strict=True):
            assert torch.equal(a, b[part])


def test_parameters_get_no_gradient_and_freezing_them_changes_no_bit(conv):
    net, x, y = conv
    free = copy.deepcopy(net).requires_grad_(True)
    state, modes = copy.deepcopy(free.state_dict()), [m.training for m in free.modules()]
    given = x.clone()
    random = torch.get_rng_state()
    with torch.no_grad():
        a, b = fmn(net, x, y, Configuration(steps=30)), fmn(free, given, y, Configuration(steps=30))
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    assert not b[0].requires_grad
    assert all(p.grad is None and p.requires_grad for p in free.parameters())
    assert all(torch.equal(t, state[k]) for k, t in free.state_dict().items())
    assert [m.training for m in free.modules()] == modes
    assert torch.equal(given, x)
    assert not given.requires_grad
    assert torch.equal(torch.get_rng_state(), random)


def test_each_step_is_one_pass_forward_and_all_but_the_last_one_back(conv):
    net, x, y = conv
    forward, backward = [], []

    class Counted(nn.Module):
        def forward(self, images):
            forward.append(1)
            if images.requires_grad:
                images.register_hook(lambda g: backward.append(1))
            return net(images)

    fmn(Counted(), x, y, Configuration(steps=7))
    assert (len(forward), len(backward)) == (7, 6)


@pytest.mark.parametrize(("loss", "optimizer"), COMBINATIONS)
def test_the_device_is_never_waited_for(loss, optimizer):
    """Tensors without data have no values to read: whatever asks for one fails."""
    net = Linear(torch.randn(4, 27), torch.randn(4)).to("meta")
    x, y = torch.rand(5, 3, 3, 3, device="meta"), torch.zeros(5, dtype=torch.long, device="meta")
    for as_released in (False, True):
        adversarial, distance = fmn(net, x, y, Configuration(loss=loss, optimizer=optimizer, steps=3, as_released=as_released))
        assert (adversarial.shape, distance.shape) == (x.shape, y.shape)


# ------------------------------------------------------------------------------------------------------------------ as released


@pytest.mark.parametrize("schedule", ["cosine", "none"])
@pytest.mark.parametrize(("loss", "optimizer"), COMBINATIONS)
def test_as_released_is_the_algorithm_of_the_released_code(loss, optimizer, schedule):
    """Against an independent loop around torch.optim and its scheduler."""
    net, x, y = linear(4, scale=3.0, dtype=torch.float64)
    y[:2] = (y[:2] + 1) % 4
    settings = {"momentum": 0.6, "dampening": 0.1} if optimizer == "sgd" else {"betas": (0.7, 0.95)}
    for lr in (1.0, 0.02):
        c = Configuration(
            loss=loss, optimizer=optimizer, schedule=schedule, lr=lr, steps=60, weight_decay=0.2, as_released=True, **settings
        )
        torch.testing.assert_close(fmn(net, x, y, c)[1], plain_fmn(net.requires_grad_(True), x, y, c), rtol=1e-9, atol=1e-12)
        net.zero_grad()


# --------------------------------------------------------------------------------------------------------------------- the search


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_search_repeats_itself_and_is_never_worse_than_the_untuned_settings(conv, optimizer):
    net, x, y = conv
    options = {"loss": "ce", "optimizer": optimizer, "steps": 12, "trials": 8, "seed": 3}
    steps = []
    (best, table), (again, same) = (
        search(net, x, y, **options, progress=lambda *told: steps.append(told)),
        search(net, x, y, **options),
    )
    assert best == again
    assert table.equals(same)
    assert len(table) == 8
    assert [(done, of) for done, of, _ in steps] == [(i, 8) for i in range(1, 9)]
    assert [value for *_, value in steps] == table["median"].cummin().tolist()
    assert table["lr"][:2].tolist() == list(UNTUNED_LR)
    assert table["weight_decay"][:2].tolist() == [0, 0]
    right = y == net(x).argmax(1)

    def median(c):
        return float(fmn(net, x[right], y[right], c)[1].median())

    assert median(best) == table["median"].min()
    for row, lr in enumerate(UNTUNED_LR, start=1):
        untuned = median(Configuration(loss="ce", optimizer=optimizer, steps=12, lr=lr))
        assert table["median"][row] == untuned
        assert median(best) <= untuned
    other = search(net, x, y, **{**options, "seed": 4})[1]
    assert not other.equals(table)


def test_the_search_prints_nothing_and_leaves_logging_and_random_states_alone(conv, capfd):
    net, x, y = conv
    logger = logging.getLogger("optuna")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.INFO)
    before, level = (torch.get_rng_state(), np.random.get_state()[1].copy()), logger.level
    search(net, x, y, steps=3, trials=4)
    assert logger.level == level == logging.INFO
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert capfd.readouterr() == ("", "")


def test_the_search_does_not_depend_on_the_batch_and_ignores_points_that_are_wrong_anyway():
    net, x, y = linear(3, dtype=torch.float64)
    wrong = y.clone()
    wrong[::2] = (y[::2] + 1) % 3
    best, table = search(net, x[1::2], y[1::2], steps=5, trials=3)
    other, same = search(net, x, wrong, steps=5, trials=3, batch=7)
    assert best == other
    np.testing.assert_allclose(table, same, rtol=1e-9)


# ------------------------------------------------------------------------------------------------------------- the survey's protocol


def test_the_surveys_protocol_takes_its_points_has_its_floor_and_says_so():
    net, x, y = linear(4, n=80)
    small = {"trials": 3, "tuning": 16, "first": 40, "points": 30}
    distance, index, c, notes = survey(net, x, y, **small)
    assert index.tolist() == list(range(40, 70))
    assert (c.as_released, c.steps, c.final, c.loss, c.optimizer, c.schedule) == (True, 200, 0.0, "dlr", "sgd", "cosine")
    assert 8 / 255 <= c.lr <= 10
    assert 0.01 <= c.weight_decay <= 1
    assert torch.equal(distance, fmn(net, x[40:70], y[40:70], c)[1])
    again = survey(net, x, y, **small)
    assert torch.equal(again[0], distance)
    assert again[2:] == (c, notes)
    told = " ".join(notes)
    assert "30 test points, 40 to 69" in told
    assert "first 16 test points" in told
    assert "no distance below 0.0057 of it can be found" in told
    assert "distance 0, as if misclassified: 0 of 30" in told


def test_by_the_surveys_protocol_points_without_an_adversarial_count_as_broken():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.tensor([[1.0, 0.0, 0.0]]).repeat(len(x), 1) + 0 * x.flatten(1)[:, :1]

    x, y = torch.rand(30, 1, 2, 2), torch.zeros(30, dtype=torch.long)
    distance, _, _, notes = survey(Constant(), x, y, trials=2, tuning=4, first=10, points=20)
    assert distance.tolist() == [0] * 20
    assert any("20 of 20 here" in note for note in notes)


# ------------------------------------------------------------------------------------------------------------------------ refusals


def test_a_configuration_has_the_name_of_the_tables():
    assert Configuration().name == "DLR-SGD-cosine"
    assert Configuration(loss="CE", optimizer="Adamax", schedule="none").name == "CE-Adamax"
    assert dataclasses.replace(Configuration(), betas=[0.5, 0.6]).betas == (0.5, 0.6)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"loss": "dl"}, "no loss of FMN 'dl'; did you mean 'dlr'"),
        ({"optimizer": "adm"}, "no optimizer of FMN 'adm'"),
        ({"schedule": "rlrop"}, "no schedule of FMN 'rlrop'"),
        ({"steps": 1}, "given 1 steps, expected a whole number of at least 2"),
        ({"steps": 10.0}, "given 10.0 steps"),
        ({"steps": True}, "given True steps"),
        ({"lr": 0}, "lr of FMN is 0, expected a number above 0"),
        ({"lr": math.inf}, "lr of FMN is inf"),
        ({"lr": math.nan}, "lr of FMN is nan"),
        ({"lr": "1"}, "lr of FMN is '1'"),
        ({"final": 1.1}, "final of FMN is 1.1, expected a number from 0 to 1"),
        ({"momentum": 1}, "momentum of FMN is 1, expected a number from 0 up to, not including, 1"),
        ({"dampening": -0.1}, "dampening of FMN is -0.1, expected a number from 0 to 1"),
        ({"weight_decay": -1}, "weight_decay of FMN is -1, expected a number above or equal to 0"),
        ({"betas": (0.9, 1.0)}, "betas of FMN is 1.0"),
        ({"betas": 0.9}, "betas of FMN are 0.9, expected two numbers"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(given, sentence):
    with pytest.raises(Invalid, match=sentence):
        Configuration(**given)


def test_searches_that_cannot_work_are_refused(conv):
    net, x, y = conv
    with pytest.raises(Invalid, match="1 trials asked for, expected a whole number of at least 2"):
        search(net, x, y, trials=1)
    with pytest.raises(Invalid, match="none of the 3 tuning points is classified correctly"):
        search(net, x[:3], y[:3], steps=3, trials=2)
    with pytest.raises(Invalid, match="points 2048 to 2175, and 24 were given; give the whole test split, at least 2176 images"):
        survey(net, x, y)


def test_without_optuna_the_search_says_what_to_install(conv, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    net, x, y = conv
    with pytest.raises(Invalid, match="pip install optuna"):
        search(net, x, y, steps=3, trials=2)
