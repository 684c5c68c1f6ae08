"""The training loop: what it changes, what it puts back, and that going on equals never having stopped."""

from __future__ import annotations

import copy
import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from apnb import datasets
from apnb.copies import bf16_body
from apnb.datasets import Batches, Split
from apnb.errors import Invalid
from apnb.events import Batch, Epoch
from apnb.masks import Target
from apnb.mechanisms import Admm, Connectivity, Dynamic, FixedMasks, LearnedScores, Mechanism, Progress
from apnb.networks import build, layers
from apnb.objectives import objective
from apnb.training import Model, accuracy, cosine, fit, mean_statistic, milestones, one_cycle, saw_tooth
from tests.helpers import goes_on_as_if_never_stopped, record, same

EPS = 0.15
DIGITS = datasets.load("digits")
NORMS = tuple(f"bn{i}.{n}" for i in (1, 2, 3) for n in ("weight", "bias"))
LAYERS = layers(build("cnn", channels=1, classes=10), DIGITS.sample())


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def made(seed=0):
    return build("cnn", channels=1, classes=10, seed=seed)


def data(n=96, batch=32):
    return Batches(DIGITS.train.at(slice(0, n)), batch, seed=0, stage="test")


def loss(key="pgd_at", generator=None):
    return objective(key, eps=EPS, steps=2, generator=generator or draw())


def state(net):
    return {n: t.detach().clone() for n, t in net.state_dict().items()}


class Only(Mechanism):
    """Trains the parameters with these names."""

    constant = ("names",)

    def __init__(self, names):
        self.names = names

    def groups(self, params):
        return [{"params": [params[n] for n in self.names]}]


# ------------------------------------------------------------------------------------------------------ what moves, what stays


def test_only_parameters_in_a_group_change():
    net, names = made(), ("conv2.weight", "bn3.bias")
    before = state(net)
    events = list(fit(net, data(), loss(), epochs=2, lr=cosine(0.1), mechanism=Only(names)))
    after = state(net)
    moved = {n for n, _ in net.named_parameters() if not torch.equal(before[n], after[n])}
    assert moved == set(names)
    assert [type(e) for e in events] == ([Batch] * 3 + [Epoch]) * 2
    assert [e.step for e in events] == [1, 2, 3, 1, 4, 5, 6, 2]
    assert {e.of for e in events if isinstance(e, Batch)} == {6}


@pytest.mark.parametrize("end", ["runs out", "is closed at a batch", "is closed at an epoch", "meets an error", "diverges"])
def test_gradient_flags_and_modes_are_put_back_when_the_stream(end):
    net = made()
    net.conv1.weight.requires_grad_(False)
    net.bn2.eval()
    flags, modes = {n: p.requires_grad for n, p in net.named_parameters()}, [m.training for m in net.modules()]

    class Broken(Mechanism):
        def update(self, optimizer, at):
            raise RuntimeError("broken")

    mechanism = Broken() if end == "meets an error" else Only(("conv1.weight",))
    stream = fit(net, data(), loss(), epochs=2, lr=cosine(1e30 if end == "diverges" else 0.1), mechanism=mechanism)
    if end == "runs out":
        list(stream)
    elif end == "meets an error":
        with pytest.raises(RuntimeError, match="broken"):
            list(stream)
    elif end == "diverges":
        with pytest.raises(Invalid, match="diverged"):
            list(stream)
    else:
        while not isinstance(next(stream), Batch if end == "is closed at a batch" else Epoch):
            pass
        stream.close()
    assert {n: p.requires_grad for n, p in net.named_parameters()} == flags
    assert [m.training for m in net.modules()] == modes
    assert all(p.grad is None for p in net.parameters())


def test_statistics_stay_when_batch_norm_is_in_evaluation_mode():
    net = made()
    before = state(net)
    list(fit(net, data(), loss("natural"), epochs=1, lr=cosine(0.1), bn="eval"))
    after = state(net)
    assert all(torch.equal(before[n], after[n]) for n, _ in net.named_buffers())
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])


def test_the_attack_of_a_step_leaves_no_gradient_behind_and_moves_no_statistic():
    """The gradient of a step is that of the loss at given images: the attack's own passes add nothing to it."""
    net, seen = made(), []
    net.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach().clone()) if m.training else None)
    mirror = made()

    class Compare(Mechanism):
        def update(self, optimizer, at):
            logits = mirror.train()(seen[-1])
            grads = torch.autograd.grad(F.cross_entropy(logits, self.y), list(mirror.parameters()))
            for p, g in zip(at.params.values(), grads, strict=True):
                torch.testing.assert_close(p.grad, g, rtol=1e-5, atol=1e-7)
            for a, b in zip(net.buffers(), mirror.buffers(), strict=True):
                torch.testing.assert_close(a, b)
            assert len(seen) == at.step + 1
            optimizer.step()
            mirror.load_state_dict(net.state_dict())

    mechanism, inner = Compare(), loss()

    def remember(model, x, y, at):
        mechanism.y = y
        return inner(model, x, y, at)

    list(fit(net, data(), remember, epochs=1, lr=cosine(0.1), mechanism=mechanism))


def test_a_step_is_sgd_with_momentum_decay_the_scheduled_rate_and_the_penalty():
    net = made()

    class Pull(Only):
        def penalty(self, params, at):
            return 0.3 * params["linear.bias"].square().sum()

        def groups(self, params):
            return [{**super().groups(params)[0], "scale": 0.5}]

    mirror, m, step = made(), torch.zeros(10), 0
    batches = data()
    events = fit(net, batches, loss("natural"), epochs=2, lr=cosine(0.2), mechanism=Pull(("linear.bias",)))
    mirror.train()
    for epoch in range(2):
        for x, y in batches(epoch):
            value = F.cross_entropy(mirror(x), y) + 0.3 * mirror.linear.bias.square().sum()
            (g,) = torch.autograd.grad(value, mirror.linear.bias)
            m = 0.9 * m + g + 5e-4 * mirror.linear.bias.detach()
            rate = 0.2 * (1 + torch.cos(torch.tensor(torch.pi * step / 6))) / 2
            with torch.no_grad():
                mirror.linear.bias -= 0.5 * rate * m
            event = next(events)
            while not isinstance(event, Batch):
                event = next(events)
            torch.testing.assert_close(net.linear.bias, mirror.linear.bias, rtol=1e-5, atol=1e-6)
            assert event.metrics["lr"] == pytest.approx(float(rate))
            step += 1


def test_a_mechanism_is_called_between_epochs_from_none_done_to_all_done_and_may_end_the_stage():
    calls = []

    class Bird(Mechanism):
        def between_epochs(self, at):
            calls.append((at.epoch, at.metrics.get("probe")))
            self.done = len(calls) == 3

    def probe(model, at):
        return {"probe": at.epoch}

    events = list(fit(made(), data(32), loss("natural"), epochs=2, lr=cosine(0.1), mechanism=Bird(), validate=probe))
    assert calls == [(0, None), (1, 0), (2, 1)]
    calls.clear()
    events = list(fit(made(), data(32), loss("natural"), epochs=9, lr=cosine(0.1), mechanism=Bird(), validate=probe))
    assert sum(isinstance(e, Epoch) for e in events) == 2


class Sometimes(Mechanism):
    """Ready at the end of some epochs; remembers the last one."""

    constant = ("when",)
    unready = "it never was ready"

    def __init__(self, when):
        self.when, self.epoch, self.ready = when, 0, False

    def between_epochs(self, at):
        self.epoch, self.ready = at.epoch, at.epoch in self.when


@pytest.mark.parametrize(("when", "best"), [((1, 2, 3, 4), 2), ((3, 4), 4), ((1, 3), 1)])
def test_a_stage_ends_in_the_best_epoch_at_which_its_mechanism_was_ready(when, best):
    scores = {1: 0.5, 2: 0.9, 3: 0.1, 4: 0.2}
    net, mechanism, states = made(), Sometimes(when), {}

    def validate(model, at):
        return {"score": scores[at.epoch + 1]}

    options = {"epochs": 4, "lr": lambda at: 0.05, "mechanism": mechanism, "validate": validate, "select": "score"}
    for event in fit(net, data(32), loss(), **options):
        if isinstance(event, Epoch):
            states[event.step] = state(net)
    assert same(state(net), states[best])
    assert mechanism.epoch == best


def test_a_mechanism_that_never_was_ready_ends_in_its_sentence():
    with pytest.raises(Invalid, match="it never was ready"):
        list(fit(made(), data(32), loss(), epochs=2, lr=lambda at: 0.05, mechanism=Sometimes((0,))))


def test_a_loss_that_is_no_longer_finite_ends_in_a_sentence():
    with pytest.raises(Invalid, match=r"training diverged: the loss of epoch 1 is (nan|inf).*lower the learning rate"):
        list(fit(made(), data(), loss("natural"), epochs=1, lr=lambda at: 1e20))


# -------------------------------------------------------------------------------------------------------------------- resuming


def by_search(weights, search, mean):
    return Target(LAYERS, "weights", "global", 0.7).select({n: s.detach().abs() for n, s in search.scores.items()})


def by_gradient(weights, search, mean):
    return Target(LAYERS, "filters", "local", 0.5).select({n: -g for n, g in mean.items()})


def magnitude(net, sparsity=0.7):
    target = Target(LAYERS, "weights", "global", sparsity)
    return target, target.select({n: p.detach().abs() for n, p in net.named_parameters()})


NAMES = tuple(layer.name for layer in LAYERS)
MECHANISMS = {
    "none": lambda net, g: None,
    "FixedMasks": lambda net, g: FixedMasks(magnitude(net)[1]),
    "LearnedScores": lambda net, g: LearnedScores(dict(net.named_parameters()), magnitude(net)[0], NORMS),
    "Admm": lambda net, g: Admm(dict(net.named_parameters()), magnitude(net)[0], rho=0.05, growth=1.5),
    "Dynamic, learned": lambda net, g: Dynamic(
        dict.fromkeys((2, 5, 7), by_search), LearnedScores(dict(net.named_parameters()), magnitude(net)[0], NORMS), None, NAMES
    ),
    "Dynamic, gradients": lambda net, g: Dynamic(
        dict.fromkeys((2, 5, 7), by_gradient), Mechanism(), lambda w, g: g.abs(), NAMES[:-1]
    ),
    "Connectivity": lambda net, g: Connectivity(dict(net.named_parameters()), magnitude(net)[0], decay=5e-4, generator=g),
}


def carried_out(which, resume=None):
    """A stage of three epochs from the start or from a snapshot: the network, the mechanism and the events."""
    net, g = made(), draw(11)
    mechanism = MECHANISMS[which](net, g)
    options = {"epochs": 3, "lr": one_cycle(0.1), "mechanism": mechanism, "resume": resume, "generator": g}
    return net, mechanism, *record(fit(net, data(), loss(generator=g), **options))


@pytest.mark.parametrize("which", list(MECHANISMS))
def test_a_stage_resumed_after_any_epoch_equals_an_uninterrupted_one_bit_for_bit(which, tmp_path):
    goes_on_as_if_never_stopped(partial(carried_out, which), tmp_path)


def test_a_snapshot_in_memory_can_be_resumed_from_twice():
    net, _, snapshots, _ = carried_out("Dynamic, gradients")
    first, *_ = carried_out("Dynamic, gradients", snapshots[0])
    second, *_ = carried_out("Dynamic, gradients", snapshots[0])
    assert same(state(first), state(net))
    assert same(state(second), state(net))


# --------------------------------------------------------------------------------------------------------------------- the model


def test_weights_first_used_without_gradients_still_have_a_graph():
    net = made()
    mechanism = LearnedScores(dict(net.named_parameters()), magnitude(net)[0], NORMS)
    model = Model(net, dict(net.named_parameters()), mechanism)
    x, y = next(data()(0))
    with torch.no_grad():
        model(x)
    F.cross_entropy(model(x), y).backward()
    assert all(s.grad is not None and s.grad.any() for s in mechanism.scores.values())


def test_weights_are_computed_in_full_precision_and_once_unless_they_are_random():
    net, calls = made(), []

    class Square(Mechanism):
        def effective(self, params):
            calls.append(1)
            return params | {"linear.weight": params["linear.weight"] @ torch.eye(256)}

    model = Model(net, dict(net.named_parameters()), Square())
    x, _ = next(data()(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x)
        model.frozen()(x)
    assert len(calls) == 1
    assert torch.equal(model.weights["linear.weight"], net.linear.weight)  # bfloat16 would have rounded it
    model.mechanism.stochastic = True
    calls.clear()
    model(x)
    model.frozen()(x)
    assert len(calls) == 2


def test_features_are_the_outputs_of_the_modules_asked_for_in_their_order():
    net = made().eval()
    x, _ = next(data()(0))
    logits, (late, early) = Model(net, dict(net.named_parameters())).features(x, [net.pool, net.relu1])
    torch.testing.assert_close(early, net.relu1(net.bn1(net.conv1(x))))
    torch.testing.assert_close(logits, net.linear(late.flatten(1)))
    assert not any(m._forward_hooks for m in net.modules())


# ---------------------------------------------------------------------------------------------------------------- half precision


def hooks(net):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def test_the_stem_and_the_classifier_run_in_float32_and_the_middle_in_bfloat16():
    net = made().eval()
    x, y = next(data()(0))
    with torch.no_grad():
        plain = net.conv1(x)
    kinds, outputs = {}, {}
    with bf16_body(net, ("conv1", "linear"), "cpu"):
        for name in ("conv1", "conv2", "conv3", "linear"):
            net.get_submodule(name).register_forward_hook(
                lambda m, args, out, name=name: (
                    (kinds.update({name: out.dtype}), outputs.update({name: (args[0], out)}))[0] and None
                )
            )
        logits = Model(net, dict(net.named_parameters()))(x)
    assert kinds == {
        "conv1": torch.bfloat16, "conv2": torch.bfloat16, "conv3": torch.bfloat16, "linear": torch.float32
    }  # fmt: skip
    assert torch.equal(outputs["conv1"][1], plain.bfloat16()), "computed in float32, rounded as it leaves"
    assert outputs["conv1"][0].dtype == torch.float32
    assert not torch.equal(plain.bfloat16(), F.conv2d(x.bfloat16(), net.conv1.weight.bfloat16(), padding=1)), "rounding shows"
    into, out = outputs["linear"]
    assert torch.equal(out, F.linear(into.float(), net.linear.weight, net.linear.bias))
    F.cross_entropy(logits, y).backward()
    assert all(p.grad.dtype == torch.float32 for p in net.parameters())


@pytest.mark.parametrize("ends", [("conv1", "linear"), ("conv2", "conv3")])
def test_half_precision_ends_with_its_context_also_after_an_error_inside_the_network(ends):
    net = made()
    with pytest.raises(RuntimeError), bf16_body(net, ends, "cpu"):
        assert hooks(net) > 0
        net(torch.rand(2, 3, 8, 8))  # three channels where one is expected: the first convolution fails
    assert hooks(net) == 0
    assert not torch.is_autocast_enabled("cpu")
    with bf16_body(net, ends, "cpu"):
        net(torch.rand(2, 1, 8, 8))
        assert not torch.is_autocast_enabled("cpu")  # between forwards nothing is on
    assert hooks(net) == 0
    assert net.conv2(torch.rand(2, 16, 8, 8)).dtype == torch.float32
    with bf16_body(net, ends, "cpu", enabled=False):
        assert hooks(net) == 0


# --------------------------------------------------------------------------------------------------------- statistics, accuracy


def test_the_mean_statistic_is_the_mean_over_batches_at_the_weights_the_network_runs_with():
    net = made()
    masks = magnitude(net)[1]
    before = state(net)
    got = mean_statistic(net, data()(0), loss("natural"), lambda w, g: (w + 1) * g, FixedMasks(masks))
    assert same(before, state(net))
    assert net.training
    mirror = made().eval()
    with torch.no_grad():
        for n, p in mirror.named_parameters():
            p.mul_(masks.get(n, torch.tensor(True)))
    by_hand = {n: torch.zeros_like(p) for n, p in mirror.named_parameters()}
    for x, y in data()(0):
        grads = torch.autograd.grad(F.cross_entropy(mirror(x), y), list(mirror.parameters()))
        for (n, p), g in zip(mirror.named_parameters(), grads, strict=True):
            by_hand[n] += (p.detach() + 1) * g / 3
    for n, value in got.items():
        torch.testing.assert_close(value, by_hand[n], rtol=1e-4, atol=1e-7)
    assert all((got[n][~m] != 0).any() for n, m in masks.items())  # defined for masked weights too


def test_accuracy_is_the_share_of_right_answers_whatever_the_batch():
    net = made().eval()
    x, y = DIGITS.test.images(slice(0, 101)), DIGITS.test.y[:101]
    expected = float((net(x).argmax(1) == y).double().mean())
    assert accuracy(net, x, y) == pytest.approx(expected)
    assert accuracy(net, x, y, batch=7) == pytest.approx(expected)


def test_training_reports_the_mean_loss_over_images_although_the_last_batch_is_smaller():
    net = made()
    batches = Batches(Split(*(t[:80] for t in (DIGITS.train.x, DIGITS.train.y))), 32, seed=0, stage="test")
    still = fit(net, batches, loss("natural"), epochs=1, lr=lambda at: 0.0, bn="eval")
    told = next(e for e in still if isinstance(e, Epoch)).metrics
    mirror = made().eval()
    x, y = (torch.cat(parts) for parts in zip(*batches(0), strict=True))
    assert len(y) == 80
    assert told["loss"] == pytest.approx(float(F.cross_entropy(mirror(x), y).detach()), rel=1e-5)
    assert told["accuracy"] == pytest.approx(float((mirror(x).argmax(1) == y).double().mean()))


# -------------------------------------------------------------------------------------------------------------------- schedules


def test_half_a_cosine_falls_from_the_peak_to_almost_nothing():
    rates = [cosine(0.2)(Progress(step=i, steps=100)) for i in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[50] == pytest.approx(0.1)
    assert 0 < rates[-1] < 0.2 * 3e-4
    assert all(a > b for a, b in itertools.pairwise(rates))


@pytest.mark.parametrize("steps", [5, 100])
def test_one_cycle_rises_linearly_to_its_peak_after_a_fifth_of_the_steps_and_falls_to_almost_nothing(steps):
    rates = [one_cycle(0.2)(Progress(step=i, steps=steps)) for i in range(steps)]
    top = steps // 5
    assert rates[:top] == pytest.approx([0.2 * (i + 0.5) / (steps / 5) for i in range(top)])
    assert rates[top:] == pytest.approx([0.2 * (steps - i - 0.5) / (0.8 * steps) for i in range(top, steps)])
    assert 0 < rates[-1] < max(rates) < 0.2


def test_milestones_fall_at_the_first_epoch_of_a_share_after_a_warm_up():
    rates = [milestones(0.1, 0.5, 0.75, warm=2)(Progress(epoch=e, epochs=9)) for e in range(9)]
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_a_saw_tooth_has_three_heights_in_every_period():
    rates = [saw_tooth(0.01, 20)(Progress(epoch=e)) for e in range(40)]
    assert rates == pytest.approx(([0.01] * 7 + [0.001] * 7 + [0.0001] * 6) * 2)


def test_a_rate_is_defined_for_a_stage_of_a_single_step():
    assert cosine(0.2)(Progress(steps=1)) == pytest.approx(0.2)
    assert 0 <= one_cycle(0.2)(Progress(steps=1)) <= 0.2


def test_the_order_of_images_depends_on_seed_stage_and_epoch_alone():
    a, b = copy.copy(data()), data()
    torch.manual_seed(3)
    assert all(torch.equal(x, z) for (x, _), (z, _) in zip(a(1), b(1), strict=True))
    assert not all(torch.equal(x, z) for (x, _), (z, _) in zip(a(0), b(1), strict=True))


def test_a_module_that_is_not_finite_is_noticed_although_a_batch_was_fine_before():
    class Poison(Mechanism):
        def penalty(self, params, at):
            return torch.tensor(float("nan")) if at.step == 2 else 0.0

    net: nn.Module = made()
    with pytest.raises(Invalid, match="diverged"):
        list(fit(net, data(), loss("natural"), epochs=1, lr=cosine(0.01), mechanism=Poison()))
