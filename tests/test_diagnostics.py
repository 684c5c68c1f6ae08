"""Signs of failed attacks: each indicator trips on a network built to trip it, and none does on a sound one."""

from __future__ import annotations

import copy
import dataclasses
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from apnb import datasets
from apnb.datasets import Batches, Dataset
from apnb.diagnostics import Finding, diagnose, large_ball, monotone, silent_success, square_against_white_box, table
from apnb.errors import Invalid
from apnb.evaluation import evaluate
from apnb.networks import build
from apnb.objectives import objective
from apnb.training import fit, one_cycle

DIGITS = datasets.load("digits")
EPS = 0.15
INDICATORS = (
    "one answer",
    "softmax output",
    "dynamic",
    "unstable predictions (I2)",
    "zero gradients (I1)",
    "logit scale",
    "silent success (I3)",
    "unconstrained failure (I6)",
    "accuracy at eps 0.5",
    "monotone in eps",
    "Square against the white box",
    "noise against the white box",
    "transfer from the parent",
)


def trained(how, classes=10, seed=0):
    """A network of eight and sixteen filters, frozen, trained on the digits below ``classes``."""
    parts = {name: split.at((split.y < classes).nonzero().squeeze(1)) for name, split in DIGITS.splits.items()}
    data = Dataset(name=f"digits below {classes}", classes=classes, eps=EPS, **parts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Flatten(), nn.Linear(64, classes),
        )  # fmt: skip
    loss = objective(how, eps=EPS, steps=5, generator=torch.Generator().manual_seed(seed))
    epochs = 4 if how == "natural" else 8
    list(fit(net, Batches(data.train, 32, seed=seed, stage="test"), loss, epochs=epochs, lr=one_cycle(0.1)))
    x = data.test.images(slice(0, len(data.test)))
    return net.eval().requires_grad_(False), x, data.test.y


@pytest.fixture(scope="module")
def sound():
    return {
        "natural": trained("natural"),
        "adversarially trained": trained("pgd_at"),
        "two classes": trained("natural", classes=2),
        "two classes, adversarially trained": trained("pgd_at", classes=2),
        "another seed": trained("pgd_at", seed=1),
    }


@pytest.fixture(scope="module")
def robust(sound):
    """A sound network, with images and labels."""
    return sound["adversarially trained"]


class Through(nn.Module):
    """A network seen through a function of network and images."""

    def __init__(self, net, function):
        super().__init__()
        self.net, self.function = net, function

    def forward(self, x):
        return self.function(self.net, x)


def spoiled(net, function):
    return Through(net, function).eval().requires_grad_(False)


def by_name(findings):
    return {f.indicator: f for f in findings}


# ------------------------------------------------------------------------------------------------------------- sound networks


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["natural", "adversarially trained", "two classes", "two classes, adversarially trained"])
@pytest.mark.parametrize("eps", [0.05, EPS])
def test_every_indicator_stays_quiet_on_a_sound_network(sound, name, seed, eps):
    net, x, y = sound[name]
    parent = None if "two" in name else sound["another seed"][0]
    stands_all = [""] * len(y)  # the hardest case for whoever looks for points that the evaluation missed
    findings = diagnose(net, x, y, eps=eps, seed=seed, parent=parent, broken_by=stands_all)
    assert tuple(f.indicator for f in findings) == INDICATORS
    loud = [f for f in findings if f.verdict != "fine" and not (parent is None and f.indicator == "transfer from the parent")]
    assert loud == []
    assert all(f.advice == "" for f in findings if f.verdict == "fine")


def test_huge_but_harmless_logits_do_not_make_a_network_look_unbreakable(robust):
    net, x, y = robust
    found = by_name(diagnose(spoiled(net, lambda f, x: 1e4 * f(x)), x, y, eps=EPS))
    assert [i for i, f in found.items() if f.verdict in ("doubtful", "failed")] == ["logit scale"]


def emptied(net: nn.Sequential) -> nn.Sequential:
    """A copy with a layer that lost all its weights, as pruning leaves it."""
    net = copy.deepcopy(net)
    net[3].weight.zero_()
    return net


def biased(net, x):
    """Sees its input, and still gives one answer to everything in the box."""
    return net(x) + 1e3 * nn.functional.one_hot(torch.tensor(3), 10)


@pytest.mark.parametrize(
    "how", [emptied, lambda net: spoiled(net, biased)], ids=["a layer without weights", "one class far above"]
)
def test_a_network_with_one_answer_is_called_that_and_not_masked(robust, how):
    net, x, y = robust
    found = by_name(diagnose(how(net), x, y, eps=EPS, broken_by=[""] * len(y)))
    assert found["one answer"].verdict == "doubtful" and found["one answer"].value == 1
    assert "Sparsity.collapsed" in found["one answer"].advice
    assert {f.verdict for f in found.values()} <= {"fine", "doubtful", "unknown"}
    assert found["unconstrained failure (I6)"].verdict == found["accuracy at eps 0.5"].verdict == "unknown"


def test_images_of_one_class_or_a_network_that_answers_noise_otherwise_are_not_taken_for_one_answer(robust):
    net, x, y = robust
    with torch.no_grad():
        right = net(x).argmax(1) == y
    one = right & (y == 3)
    assert by_name(diagnose(net, x[one], y[one], eps=EPS))["one answer"].verdict == "fine"
    stubborn = spoiled(net, lambda f, x: f(x) + 1e3 * nn.functional.one_hot(torch.where(x[:, 0, 0, 0] > 0, 5, 3), 10))
    found = by_name(diagnose(stubborn, x, y, eps=EPS))["one answer"]
    assert (found.value, found.verdict) == (1, "fine")


# ------------------------------------------------------------------------------------------------------------ broken networks


def dynamic_by(gradient):
    """A defence that moves its input along a gradient before it answers."""

    def forward(net, x):
        with torch.enable_grad():
            at = x.detach().requires_grad_(True)
            g = gradient(lambda a: net(a).logsumexp(1).sum(), at)
        return net(x - 0.01 * g.sign())

    return forward


def by_grad(f, at):
    return torch.autograd.grad(f(at), at)[0]


def by_backward(f, at):
    f(at).backward()
    return at.grad


def by_autograd_backward(f, at):
    torch.autograd.backward(f(at))
    return at.grad


def by_func(f, at):
    return torch.func.grad(f)(at.detach())


def by_jacobian(f, at):
    return torch.autograd.functional.jacobian(f, at)


def noisy_activations(net, x):
    hidden = net[:3](x)
    return net[3:](hidden + 0.5 * torch.randn_like(hidden))


BROKEN = {
    "softmax outputs": (lambda net, x: net(x).softmax(1), {"softmax output": "doubtful"}),
    "activations in steps of 1/4": (
        lambda net, x: net[3:]((net[:3](x) * 4).round() / 4),
        {"zero gradients (I1)": "failed", "accuracy at eps 0.5": "failed", "unconstrained failure (I6)": "failed"},
    ),
    "input in steps of 1/4": (
        lambda net, x: net((x * 4).round() / 4),
        {
            "zero gradients (I1)": "failed",
            "accuracy at eps 0.5": "failed",
            "unconstrained failure (I6)": "failed",
            "noise against the white box": "failed",
            "transfer from the parent": "failed",
        },
    ),
    "sign of the input": (
        lambda net, x: net(((x - 0.5).sign() + 1) / 2),
        {"zero gradients (I1)": "failed", "accuracy at eps 0.5": "failed"},
    ),
    "logits times ten thousand": (lambda net, x: 1e4 * net(x), {"logit scale": "doubtful"}),
    "logits times 1e30": (lambda net, x: 1e30 * net(x), {"logit scale": "doubtful"}),
    "noise on the input": (lambda net, x: net(x + 0.2 * torch.randn_like(x)), {"unstable predictions (I2)": "doubtful"}),
    "noise on activations": (noisy_activations, {"unstable predictions (I2)": "doubtful"}),
    "divided by 255 twice": (
        lambda net, x: net(x / 255),
        {"one answer": "doubtful", "unconstrained failure (I6)": "unknown", "accuracy at eps 0.5": "unknown"},
    ),
    "multiplied by 255 and saturated": (
        lambda net, x: net((x * 255).clamp(0, 1)),
        {"zero gradients (I1)": "failed", "noise against the white box": "failed", "accuracy at eps 0.5": "failed"},
    ),
    "gradient of the wrong sign": (
        lambda net, x: net(2 * x.detach() - x),
        {
            "unconstrained failure (I6)": "failed",
            "accuracy at eps 0.5": "failed",
            "noise against the white box": "failed",
            "transfer from the parent": "failed",
        },
    ),
    "steep sigmoid on the input": (
        lambda net, x: net(torch.sigmoid(100 * (x - 0.5))),
        {"transfer from the parent": "failed"},
    ),
    **{
        f"dynamic {how.__name__}": (dynamic_by(how), {"dynamic": "doubtful"})
        for how in (by_grad, by_backward, by_autograd_backward, by_func, by_jacobian)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_network_built_to_mislead_attacks_is_told_by_its_indicator(robust, name):
    net, x, y = robust
    function, expected = BROKEN[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the networks that draw random numbers
        found = by_name(diagnose(spoiled(net, function), x, y, eps=EPS, parent=net))
    for indicator, verdict in expected.items():
        assert found[indicator].verdict == verdict, found[indicator]
        assert found[indicator].advice
    only = {"softmax output", "dynamic", "logit scale"}  # what a network is, whatever attacks do to it
    assert {i for i in only if found[i].verdict == "doubtful"} == only & expected.keys()


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda net, x: net((x * 4).round().detach() / 4), "does not require grad"),
        (lambda net, x: net((x * 4).to(torch.int32).float() / 4), "does not require grad"),
        (lambda net, x: net(torch.from_numpy((x * 4).numpy().round() / 4)), "numpy"),
    ],
    ids=["detached", "integers", "numpy"],
)
def test_a_network_whose_backward_pass_raises_gets_a_verdict_and_what_needs_gradients_is_unknown(robust, function, reason):
    net, x, y = robust
    found = by_name(diagnose(spoiled(net, function), x, y, eps=EPS, parent=net))
    assert tuple(found) == INDICATORS
    assert found["zero gradients (I1)"].verdict == "failed"
    assert reason in found["zero gradients (I1)"].meaning
    blind = [i for i, f in found.items() if f.verdict == "unknown" and f.value is None]
    assert blind == [
        "logit scale", "silent success (I3)", "unconstrained failure (I6)", "accuracy at eps 0.5", "monotone in eps",
        "Square against the white box",
    ]  # fmt: skip
    assert found["transfer from the parent"].verdict == "failed"


def test_a_parent_without_gradients_is_said_to_have_none(robust):
    net, x, y = robust
    parent = spoiled(net, lambda f, x: f(x.detach()))
    found = by_name(diagnose(net, x, y, eps=EPS, parent=parent))["transfer from the parent"]
    assert (found.verdict, found.value) == ("unknown", None)
    assert "the parent's backward pass raises" in found.meaning


def test_a_full_gpu_is_no_finding(robust):
    net, x, y = robust

    def full(net, x):
        if x.requires_grad:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return net(x)

    with pytest.raises(torch.cuda.OutOfMemoryError):
        diagnose(spoiled(net, full), x, y, eps=EPS)


class Band(nn.Module):
    """Two classes by mean brightness, the second a thin band: large steps jump over it, and back."""

    def forward(self, x):
        beyond = (x.flatten(1).mean(1) - 0.57).abs() - 0.012
        return 50 * torch.stack([beyond, -beyond], 1)


@pytest.mark.parametrize("seed", range(3))
def test_a_band_that_large_steps_jump_over_makes_success_silent_and_accuracy_rise_with_eps(seed):
    x, y = torch.full((64, 1, 8, 8), 0.5), torch.zeros(64, dtype=torch.int64)
    found = by_name(diagnose(Band(), x, y, eps=0.16, seed=seed))
    assert found["silent success (I3)"].verdict == "doubtful"
    assert found["monotone in eps"].verdict == "failed"
    assert found["unconstrained failure (I6)"].verdict == "failed"
    assert found["unconstrained failure (I6)"].value < found["accuracy at eps 0.5"].value  # what broke there counts for the box
    assert found["zero gradients (I1)"].verdict == found["logit scale"].verdict == "fine"


@pytest.fixture(scope="module")
def steps(robust):
    """A network whose input comes in steps, and its evaluation by the whole of AutoAttack."""
    net = spoiled(robust[0], lambda f, x: f((x * 4).round() / 4))
    return net, evaluate(net, "digits", eps=EPS, n=16, attacks="standard")


def test_square_is_seen_to_break_what_attacks_with_gradients_left(steps):
    net, report = steps
    x, y = DIGITS.test.images(report.index), report.label
    found = by_name(diagnose(net, x, y, eps=EPS, broken_by=report.broken_by))["Square against the white box"]
    k, m = report.broken_by.count("square"), report.broken_by.count("square") + report.broken_by.count("")
    assert k > 2
    assert found.value == k / m
    assert found.verdict == "failed"
    assert f"Square breaks {k} of the {m} points" in found.meaning


def test_square_is_not_judged_where_it_did_not_run(steps, robust):
    net, report = steps
    x, y = DIGITS.test.images(report.index), report.label
    for options in ({}, {"broken_by": report.broken_by, "attacks": ("apgd-ce", "apgd-t")}):
        found = by_name(diagnose(net, x, y, eps=EPS, **options))["Square against the white box"]
        assert (found.verdict, found.value) == ("unknown", None)


def test_points_that_the_evaluation_broke_are_not_counted_against_it(robust):
    net, x, y = robust
    child = spoiled(net, lambda f, x: f((x * 4).round() / 4))
    found = by_name(diagnose(child, x, y, eps=EPS, parent=net, broken_by=["apgd-ce"] * len(y)))
    for name in ("noise against the white box", "transfer from the parent"):
        assert (found[name].verdict, found[name].value) == ("fine", 0.0)
    by_square = by_name(diagnose(child, x, y, eps=EPS, parent=net, broken_by=["square"] * len(y)))
    assert (
        by_square["transfer from the parent"].verdict == "failed"
    )  # Square sees no gradient: they did not fall to the white box


# ---------------------------------------------------------------------------------------------------- formulas and thresholds


class Linear(nn.Module):
    """Two classes split by the first pixel at one half: the margin of class 1 is 20 times the distance from it."""

    def forward(self, x):
        half = 10 * (x.flatten(1)[:, 0] - 0.5)
        return torch.stack([-half, half], 1)


def test_the_instability_of_a_linear_network_is_the_mean_step_over_its_distance_from_the_boundary():
    x, y = torch.full((64, 1, 2, 2), 0.75), torch.ones(64, dtype=torch.int64)
    value = by_name(diagnose(Linear(), x, y, eps=0.1))["unstable predictions (I2)"].value
    assert value == pytest.approx((2 / 255) / 0.25, rel=0.1)  # the mean of |r|, r uniform in +-4/255, over 1/4
    assert by_name(diagnose(Linear(), x, y, eps=0.1, seed=1))["unstable predictions (I2)"].value != value


@pytest.mark.parametrize(("eps", "stand"), [(0.1, "100 %, 100 %, 100 %"), (0.15, "100 %, 100 %, 0 %"), (0.3, "100 %, 0 %, 0 %")])
def test_a_linear_network_stands_at_half_once_and_twice_the_radius_as_its_distance_says(eps, stand):
    x, y = torch.full((8, 1, 2, 2), 0.75), torch.ones(8, dtype=torch.int64)
    assert f"PGD leaves {stand} of 8 points" in by_name(diagnose(Linear(), x, y, eps=eps))["monotone in eps"].meaning


def test_a_point_that_only_the_whole_box_breaks_stands_at_one_half_alone():
    x, y = torch.ones(30, 1, 2, 2), torch.ones(30, dtype=torch.int64)
    found = by_name(diagnose(spoiled(Linear(), lambda f, x: f(x + 0.1)), x, y, eps=0.1))  # the boundary is at 0.4
    assert (found["accuracy at eps 0.5"].value, found["accuracy at eps 0.5"].verdict) == (1.0, "failed")
    assert (found["unconstrained failure (I6)"].value, found["unconstrained failure (I6)"].verdict) == (0.0, "fine")


@pytest.mark.parametrize(
    ("outputs", "verdict"),
    [
        ([0.7, 0.3], "doubtful"),
        ([1.0, 0.0], "doubtful"),
        ([0.8, 0.3], "fine"),  # two sigmoids
        ([1.5, -0.5], "fine"),  # logits that sum to 1
        ([0.7, 0.3001], "fine"),
    ],
)
def test_only_shares_that_sum_to_one_are_taken_for_a_softmax(outputs, verdict):
    x, y = torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)
    found = diagnose(spoiled(None, lambda f, x: torch.tensor(outputs).expand(len(x), 2)), x, y, eps=0.1)
    assert by_name(found)["softmax output"].verdict == verdict
    mixed = spoiled(None, lambda f, x: torch.tensor([[0.7, 0.3], [3.0, 1.0]]).repeat(len(x), 1)[: len(x)])
    assert by_name(diagnose(mixed, x, y, eps=0.1))["softmax output"].verdict == "fine"  # some rows are no proof


def test_the_share_of_points_without_a_gradient_is_exact():
    class Half(nn.Module):
        """Flat for dark images."""

        def forward(self, x):
            half = torch.where(x.flatten(1)[:, 1] > 0.5, 10 * (x.flatten(1)[:, 0] - 0.5), torch.tensor(1.0))
            return torch.stack([-half, half], 1)

    x, y = torch.full((40, 1, 2, 2), 0.75), torch.ones(40, dtype=torch.int64)
    x[:6, 0, 0, 1] = 0.1
    found = by_name(diagnose(Half(), x, y, eps=0.1))["zero gradients (I1)"]
    assert (found.value, found.verdict) == (6 / 40, "failed")
    assert "on 6 of 40 points for the margin, on 6 for the cross entropy" in found.meaning
    few = by_name(diagnose(Half(), x[5:], y[5:], eps=0.1))["zero gradients (I1)"]
    assert (few.value, few.verdict) == (1 / 35, "doubtful")


def marked(k, n):
    """k of n points."""
    return torch.arange(n) < k


def test_accuracy_in_a_large_ball_may_be_a_twentieth_and_no_single_point_of_few():
    assert large_ball(~marked(5, 100)).verdict == "fine"
    assert large_ball(~marked(6, 100)).verdict == "failed"
    assert large_ball(~marked(1, 19)).verdict == "failed"
    assert large_ball(marked(1, 1)).verdict == "fine"
    assert large_ball(~marked(1, 1)).value == 1.0


def test_a_rise_of_accuracy_counts_beyond_two_deviations_of_the_points_that_differ():
    none = torch.zeros(64, dtype=torch.bool)
    assert monotone(marked(4, 64), none, none).verdict == "fine"  # 4 = 2 sqrt(4)
    assert monotone(marked(5, 64), none, none).verdict == "failed"
    assert monotone(none, marked(5, 64), none).value == 5 / 64
    more = marked(12, 64) & ~marked(5, 64)  # 7 points more in the larger ball, 5 fewer: a fall
    assert monotone(marked(5, 64), more, more).value == 0.0
    assert monotone(none, marked(30, 64), marked(60, 64)).verdict == "fine"


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
def test_accuracy_that_only_falls_point_by_point_never_alarms(pairs):
    a, extra = (torch.tensor(side) for side in zip(*pairs, strict=True))
    assert monotone(a, a | extra, a | extra).verdict == "fine"
    assert silent_success(a, a | extra).value == 0.0


@pytest.mark.parametrize(("n", "needed"), [(1, 3), (64, 3), (250, 3), (500, 4), (1000, 5), (10_000, 29)])
def test_square_must_break_more_points_than_luck_does(n, needed):
    def verdict(k):
        n_square = min(k, n)
        return square_against_white_box(["square"] * n_square + [""] * (n - n_square), ("square",)).verdict

    assert verdict(needed - 1) == "fine"
    assert verdict(needed) == ("failed" if n >= needed else "fine")


# ------------------------------------------------------------------------------------------------------------- what it leaves


def test_the_same_seed_gives_the_same_findings_and_nothing_is_changed(robust):
    net, x, y = robust
    net = copy.deepcopy(net)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    images, labels = x.clone(), y.clone()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = diagnose(net, x, y, eps=EPS, seed=3, parent=net)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]
    torch.manual_seed(2)
    assert diagnose(net, x, y, eps=EPS, seed=3, parent=net) == first
    assert diagnose(net, x, y, eps=EPS, seed=4, parent=net) != first
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in net.parameters())
    assert not net.training
    assert torch.equal(x, images)
    assert torch.equal(y, labels)
    assert not x.requires_grad
    assert torch.is_grad_enabled()


def test_a_static_network_is_not_flagged_after_a_dynamic_one(robust):
    net, x, y = robust
    verdicts = [
        by_name(diagnose(f, x, y, eps=EPS, points=4))["dynamic"].verdict for f in (spoiled(net, dynamic_by(by_backward)), net)
    ]
    assert verdicts == ["doubtful", "fine"]


def test_it_looks_in_full_precision_even_under_autocast(robust):
    net, x, y = robust
    plain = diagnose(net, x, y, eps=EPS, points=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert diagnose(net, x, y, eps=EPS, points=8) == plain


@pytest.mark.parametrize("name", ["divided by 255 twice", "input in steps of 1/4", "logits times ten thousand"])
def test_it_costs_at_most_a_hundred_and_thirty_forward_passes_and_a_hundred_backward_ones(robust, name):
    net, x, y = robust
    with torch.no_grad():
        right = BROKEN[name][0](net, x).argmax(1) == y
    x, y = x[right][:20], y[right][:20]  # all are drawn at the first look
    cost = {"forward": 0, "backward": 0}

    def count(key, k):
        cost[key] += k

    def watched(f, images):
        count("forward", len(images))
        if images.requires_grad:
            images.register_hook(lambda g: count("backward", len(g)))
        return BROKEN[name][0](f, images)

    diagnose(spoiled(net, watched), x, y, eps=EPS, parent=net, points=20)
    assert 0 < cost["forward"] <= 131 * len(y)
    assert 0 < cost["backward"] <= 100 * len(y)


# ------------------------------------------------------------------------------------------------------------------ any input


def test_only_points_that_are_classified_correctly_are_looked_at(robust):
    net, x, y = robust
    with torch.no_grad():
        right = net(x).argmax(1) == y
    x, y = x[right], y[right]
    relabelled = torch.where(torch.arange(len(y)) < 7, y, (y + 1) % 10)
    assert "on each of 7 points" in by_name(diagnose(net, x, relabelled, eps=EPS))["softmax output"].meaning
    (only,) = diagnose(net, x[7:], relabelled[7:], eps=EPS)
    assert (only.indicator, only.verdict) == ("points", "unknown")


@pytest.mark.parametrize("points", [1, 5, 64])
def test_no_more_points_are_drawn_than_asked_for(robust, points):
    net, x, y = robust
    assert f"on each of {points} points" in by_name(diagnose(net, x, y, eps=EPS, points=points))["softmax output"].meaning


@pytest.mark.parametrize(("channels", "classes"), [(1, 2), (3, 2), (3, 10)])
def test_colour_and_grey_few_classes_and_a_single_point_will_do(channels, classes):
    net = build("cnn", channels=channels, classes=classes).eval().requires_grad_(False)
    x = torch.rand(9, channels, 12, 10, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = net(x).argmax(1)
    for n in (9, 1):
        findings = diagnose(net, x[:n], y[:n], eps=8 / 255, broken_by=[""] * n)
        assert tuple(f.indicator for f in findings) == INDICATORS
        assert all(f.value is None or 0 <= f.value <= 1 for f in findings)


def test_the_table_has_a_row_a_finding_in_their_order(robust):
    net, x, y = robust
    findings = diagnose(net, x, y, eps=EPS, points=4)
    frame = table(findings)
    assert list(frame.columns) == ["indicator", "value", "verdict", "meaning", "advice"]
    assert tuple(frame["indicator"]) == INDICATORS
    assert set(frame["verdict"]) <= {"fine", "doubtful", "failed", "unknown"}
    assert table(()).empty
    assert list(table(()).columns) == list(frame.columns)
    with pytest.raises(dataclasses.FrozenInstanceError):
        findings[0].value = 1.0
    assert isinstance(findings[0], Finding)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"points": 0}, "0 points asked for, expected at least 1"),
        ({"broken_by": ["", ""]}, "broken_by names 2 points and there are 500"),
        ({"eps": 0}, "eps is 0, expected a share of the pixel range"),
        ({"eps": 8}, "eps is 8, expected a share of the pixel range"),
    ],
)
def test_what_cannot_be_diagnosed_is_refused(robust, options, sentence):
    net, x, y = robust
    with pytest.raises(Invalid, match=sentence):
        diagnose(net, x, y, **({"eps": EPS} | options))
