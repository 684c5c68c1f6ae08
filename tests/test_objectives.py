"""Objectives and their attacks: closed-form worst cases of a half-space, and losses by independent formulas."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from apnb.attacks.pgd import ascend, pgd, uniform_start
from apnb.errors import Invalid
from apnb.networks import build
from apnb.objectives import objective
from apnb.recipes import ADVERSARIAL
from apnb.recipes import TRAINABLE as OBJECTIVES
from apnb.training import Model

EPS = 0.1


class Halfspace(nn.Module):
    """Two classes split by a hyperplane: under |delta|_inf <= eps the margin falls by exactly eps * ||w||_1."""

    def __init__(self, seed=0):
        super().__init__()
        self.w = nn.Parameter(torch.randn(12, generator=torch.Generator().manual_seed(seed)))
        self.b = nn.Parameter(-self.w.detach().sum() / 2)

    def forward(self, x):
        margin = x.flatten(1) @ self.w + self.b
        return torch.stack([torch.zeros_like(margin), margin], 1)

    @torch.no_grad()
    def worst_margin(self, x, y, eps):
        """The smallest margin in favour of the label that any image in the ball and in the box has."""
        away = (2 * y - 1)[:, None] * self.w.sign()
        worst = (x.flatten(1) - eps * away).clamp(0, 1)
        return (2 * y - 1) * (worst @ self.w + self.b)


def margin(logits, y):
    return (2 * y - 1) * (logits[:, 1] - logits[:, 0])


def images(n=16, low=0.0, high=1.0, seed=1):
    g = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(n, 1, 3, 4, generator=g), torch.randint(2, (n,), generator=g)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def made(key, eps=EPS, steps=5, **more):
    return objective(key, eps=eps, steps=steps, generator=draw(), **more)


def small(seed=0):
    """A convolutional network with batch normalisation, in training mode, for images of 1x8x8."""
    return build("cnn", channels=1, classes=10, seed=seed)


def digits(n=12, seed=2):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 8, 8, generator=g), torch.randint(10, (n,), generator=g)


def model_of(net):
    return Model(net, dict(net.named_parameters()))


def trained_on(net, loss, x, y):
    """Loss and logits, and the images that the loss's own forwards saw (those in training mode), in order."""
    seen = []
    handle = net.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach().clone()) if m.training else None)
    try:
        value, logits = loss(model_of(net), x, y, None)
    finally:
        handle.remove()
    return value, logits, seen


# --------------------------------------------------------------------------------------------------------------------- attacks


@pytest.mark.parametrize("box", [(0.3, 0.7), (0.0, 1.0)], ids=["inside the box", "at its edges"])
@pytest.mark.parametrize("key", ["fgsm", "pgd_at"])
def test_the_attack_reaches_the_worst_margin_of_a_half_space(key, box):
    net = Halfspace()
    x, y = images(low=box[0], high=box[1])
    value, logits = made(key)(model_of(net), x, y, None)
    worst = net.worst_margin(x, y, EPS)
    torch.testing.assert_close(margin(logits, y), worst, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(value, F.softplus(-worst).mean())
    if box[0] > EPS:
        torch.testing.assert_close(margin(net(x), y) - EPS * net.w.abs().sum(), worst, rtol=1e-4, atol=1e-5)


def test_the_evaluation_attack_breaks_a_point_exactly_if_the_worst_margin_is_negative():
    net = Halfspace()
    x, y = images(64)
    x_adv = pgd(net, x, y, eps=EPS, steps=10, generator=draw())
    worst = net.worst_margin(x, y, EPS)
    broken = net(x_adv).argmax(1) != y
    assert torch.equal(broken, worst < 0)
    assert 0 < int(broken.sum()) < 64
    assert torch.equal(x_adv[~broken], x[~broken])
    assert float((x_adv - x).abs().max()) <= EPS + 1e-6


@given(st.sampled_from(ADVERSARIAL), st.floats(0.001, 1.0), st.integers(1, 4), st.integers(0, 9))
def test_what_is_trained_on_lies_in_the_ball_and_in_the_box(key, eps, steps, seed):
    net = small(seed)
    x, y = digits(4, seed)
    x = (1.4 * x - 0.2).clamp(0, 1)  # a good many pixels at the edges of the box
    _, _, seen = trained_on(net, made(key, eps=eps, steps=steps), x, y)
    x_adv = seen[-1]
    assert float(x_adv.min()) >= 0
    assert float(x_adv.max()) <= 1
    assert float((x_adv - x).abs().max()) <= eps + 1e-6
    assert not torch.equal(x_adv, x)


def test_fast_adversarial_training_uses_a_random_start_and_stays_in_the_ball_although_its_step_is_longer():
    net = Halfspace()
    x, y = images(low=0.3, high=0.7)
    loss = made("fast_at", eps=EPS)
    _, first, seen = trained_on(net, loss, x, y)
    _, second, _ = trained_on(net, loss, x, y)
    assert not torch.equal(first, second)
    # From the far half of the ball a step of 1.25 eps does not reach the wall: start - 1.25 eps, at most eps away.
    start = uniform_start(x, EPS, draw())
    toward = -(2 * y - 1)[:, None] * net.w.detach().sign()
    expected = (x.flatten(1) + ((start - x).flatten(1) + 1.25 * EPS * toward).clamp(-EPS, EPS)).clamp(0, 1)
    torch.testing.assert_close(seen[0].flatten(1), expected)


@pytest.mark.parametrize("key", [*ADVERSARIAL])
def test_the_attack_leaves_no_gradient_and_no_mark_on_the_images(key):
    net = small()
    x, y = digits()
    before = x.clone()
    made(key)(model_of(net), x, y, None)
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(x, before)
    assert not x.requires_grad
    assert all(m.training for m in net.modules())


def test_signed_steps_can_ascend_without_gradients_being_enabled_around_them():
    net = Halfspace()
    x, y = images(low=0.3, high=0.7)
    with torch.no_grad():
        x_adv = ascend(net, x, y, x, eps=EPS, steps=1, step=EPS)
    torch.testing.assert_close(margin(net(x_adv), y).detach(), net.worst_margin(x, y, EPS), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------- losses


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("eps", [1e-4, 0.15])
def test_trades_is_cross_entropy_plus_six_times_the_divergence_with_the_gradient_through_both(eps):
    net = small().eval()  # the same network for both forwards, whatever the order
    x, y = digits()
    captured = []
    handle = net.register_forward_pre_hook(lambda m, args: captured.append(args[0].detach().clone()))
    value, _ = made("trades", eps=eps)(model_of(net), x, y, None)
    handle.remove()
    x_adv = captured[-1]
    assert torch.equal(captured[-2], x)
    p, q = (softmax(net(z).detach().double().numpy()) for z in (x, x_adv))
    ce = -np.log(p[np.arange(len(y)), y.numpy()]).mean()
    kl = (p * (np.log(p) - np.log(q))).sum(1).mean()
    assert float(value.detach()) == pytest.approx(ce + 6 * kl, rel=1e-4)

    names = [p for p in net.parameters() if p.requires_grad]
    got = torch.autograd.grad(value, names)
    a, b = net(x), net(x_adv)
    by_hand = (
        -a.log_softmax(1)[range(len(y)), y].mean() + 6 * (a.softmax(1) * (a.log_softmax(1) - b.log_softmax(1))).sum(1).mean()
    )
    for g, h in zip(got, torch.autograd.grad(by_hand, names), strict=True):
        torch.testing.assert_close(g, h, rtol=1e-3, atol=1e-6)
    if eps > 0.1:
        a, b = net(x), net(x_adv)
        one_sided = F.cross_entropy(a, y) + 6 * F.kl_div(b.log_softmax(1), a.detach().softmax(1), reduction="batchmean")
        stopped = torch.autograd.grad(one_sided, names)
        assert max(float((g - h).abs().max()) for g, h in zip(got, stopped, strict=True)) > 1e-3


def test_mart_is_the_boosted_cross_entropy_plus_the_weighted_divergence():
    net = small().eval()
    x, y = digits()
    captured = []
    handle = net.register_forward_pre_hook(lambda m, args: captured.append(args[0].detach().clone()))
    value, logits = made("mart", eps=0.15)(model_of(net), x, y, None)
    handle.remove()
    p, q = (softmax(net(z).detach().double().numpy()) for z in (x, captured[-1]))
    rows, labels = np.arange(len(y)), y.numpy()
    others = q.copy()
    others[rows, labels] = 0
    bce = (-np.log(q[rows, labels]) - np.log(1 - others.max(1) + 1e-4)).mean()
    kl = ((p * np.log(p / q)).sum(1) * (1 - p[rows, labels])).mean()
    assert float(value.detach()) == pytest.approx(bce + 5 * kl, rel=1e-4)
    torch.testing.assert_close(logits, net(captured[-1]))


def test_distillation_is_the_softened_divergence_from_the_teacher_plus_a_tenth_of_cross_entropy():
    net, teacher = small(0), small(1).eval()
    x, y = digits()
    net.eval()
    value, logits = made("kd", teacher=teacher)(model_of(net), x, y, None)
    z, t = logits.detach().double().numpy(), teacher(x).detach().double().numpy()
    q, p = softmax(t / 4), softmax(z / 4)
    kl = (q * np.log(q / p)).sum(1).mean()
    ce = -np.log(softmax(z)[np.arange(len(y)), y.numpy()]).mean()
    assert float(value.detach()) == pytest.approx(0.9 * 16 * kl + 0.1 * ce, rel=1e-4)


def test_a_student_equal_to_its_teacher_pays_cross_entropy_only_and_the_teacher_never_learns():
    net = small().eval()
    teacher = copy.deepcopy(net)
    x, y = digits()
    value, logits = made("kd", teacher=teacher)(model_of(net), x, y, None)
    torch.testing.assert_close(value, 0.1 * F.cross_entropy(logits, y), rtol=1e-4, atol=1e-6)
    value.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in net.parameters())


def test_natural_training_looks_at_the_images_as_they_are():
    net = small()
    x, y = digits()
    value, logits, seen = trained_on(net, made("natural"), x, y)
    assert len(seen) == 1
    assert torch.equal(seen[0], x)
    torch.testing.assert_close(value, -logits.log_softmax(1)[range(len(y)), y].mean())


def test_refused_are_unknown_objectives_with_the_nearest_name_and_distillation_without_a_teacher():
    with pytest.raises(Invalid, match="did you mean 'trades'"):
        made("trade")
    with pytest.raises(Invalid, match="needs a teacher"):
        made("kd")
    assert set(OBJECTIVES) == {"natural", "kd", *ADVERSARIAL}


# --------------------------------------------------------------------------------------------------------- running statistics


@pytest.mark.parametrize("key", [*OBJECTIVES])
def test_running_statistics_are_moved_by_the_forwards_of_the_loss_only(key):
    net = small()
    x, y = digits()
    more = {"teacher": small(1)} if key == "kd" else {}
    mirror = copy.deepcopy(net)
    _, _, seen = trained_on(net, made(key, **more), x, y)
    assert len(seen) == (2 if key in ("trades", "mart") else 1)
    with torch.no_grad():
        for z in seen:  # the same images, by hand, through an untouched copy
            mirror(z)
    for (n, b), c in zip(net.named_buffers(), mirror.buffers(), strict=True):
        torch.testing.assert_close(b, c, msg=n)
    assert all(int(b) == len(seen) for n, b in net.named_buffers() if n.endswith("num_batches_tracked"))


# ------------------------------------------------------------------------------------------------------- how methods attack


@pytest.mark.parametrize(
    ("key", "options", "moved"),
    [
        ("pgd_at", {}, 1),
        ("pgd_at", {"attack_bn": "train"}, 5 + 1),
        ("pgd_at", {"attack_bn": "train", "passes": ("between",)}, 5 + 2),
        ("trades", {}, 2),
        ("trades", {"passes": ("before", "after")}, 4),
        ("mart", {"passes": ("between",)}, 3),
        ("natural", {"passes": ("before", "after")}, 3),
    ],
)
def test_each_pass_in_training_mode_moves_the_running_statistics_once(key, options, moved):
    net = small()
    made(key, **options)(model_of(net), *digits(), None)
    assert int(net.bn1.num_batches_tracked) == moved
    assert net.training


def test_further_passes_see_the_clean_batch_in_their_place_and_leave_weights_their_gradient():
    net = small()
    x, y = digits()
    value, _, seen = trained_on(net, made("pgd_at", passes=("before", "between", "after")), x, y)
    assert [torch.equal(s, x) for s in seen] == [True, True, False, True]
    value.backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(("start", "within"), [("image", 0.0), ("uniform", EPS), ("unclipped", EPS), ("normal", 0.006)])
def test_an_attack_without_steps_is_its_start(start, within):
    x, y = digits(40)
    x = x.round()  # every pixel at an edge of the box
    _, _, seen = trained_on(small(), made("pgd_at", steps=0, start=start), x, y)
    gap = (seen[-1] - x).abs().max()
    assert gap <= within
    assert (gap > 0.3 * within) or start == "image"
    assert ((seen[-1] < 0) | (seen[-1] > 1)).any() == (start in ("unclipped", "normal"))


@pytest.mark.parametrize("reach", [1.75, 2.3])
def test_a_step_is_its_share_of_the_reach(reach):
    x, y = 0.4 + 0.2 * digits()[0], digits()[1]
    _, _, seen = trained_on(small(), made("pgd_at", steps=5, reach=reach / 2.5, start="image"), x, y)
    moved = (seen[-1] - x).abs()
    step = reach / 2.5 * EPS / 5
    multiples = moved / step
    torch.testing.assert_close(multiples, multiples.round(), atol=1e-3, rtol=0)  # whole steps, none cut off by the ball


@pytest.mark.parametrize(("key", "usual"), [("trades", 6.0), ("mart", 5.0)])
def test_the_second_term_has_the_weight_asked_for(key, usual):
    x, y = digits()
    values = {beta: made(key, beta=beta)(model_of(small()), x, y, None)[0] for beta in (None, 0.0, 1.0, usual)}
    assert values[None] == values[usual]
    torch.testing.assert_close(values[usual] - values[0.0], usual * (values[1.0] - values[0.0]), rtol=1e-4, atol=1e-5)
