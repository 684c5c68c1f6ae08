"""Verdicts: only what was re-checked counts, they are AutoAttack's own, and evaluating changes nothing."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import random
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from apnb import datasets
from apnb.attacks.autoattack import attacks_for
from apnb.datasets import Batches, Dataset, Split
from apnb.devices import bf16_units
from apnb.errors import Invalid
from apnb.evaluation import Evaluation, compare, evaluate, evaluate_stream, survey_protocol
from apnb.events import Attacked
from apnb.networks import build
from apnb.objectives import objective
from apnb.training import fit, one_cycle
from apnb.verdicts import Work, verify, wilson

DIGITS = datasets.load("digits")
EPS = 0.1  # small enough that some points of a naturally trained network stand


def of_classes(k):
    """The digits below k as a data set of their own."""
    parts = {}
    for name, split in DIGITS.splits.items():
        parts[name] = split.at((split.y < k).nonzero().squeeze(1))
    return Dataset(name=f"digits below {k}", classes=k, eps=EPS, **parts)


def trained(data, classes, epochs=4):
    """A network of eight and sixteen filters, naturally trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Flatten(), nn.Linear(64, classes),
        )  # fmt: skip
    batches = Batches(data.train, 32, seed=0, stage="test")
    natural = objective("natural", eps=0.1, steps=1, generator=torch.Generator())
    list(fit(net, batches, natural, epochs=epochs, lr=one_cycle(0.1)))
    return net


@pytest.fixture(scope="module")
def net():
    return trained(DIGITS, 10)


@pytest.fixture(scope="module")
def standard(net):
    """One evaluation with the whole of AutoAttack, shared by the tests that look at it."""
    return evaluate(net, "digits", eps=EPS, n=24, batch=10, seed=5, subset="first", adversarial=True)


class Linear(nn.Module):
    """Two classes split by the first pixel at one half."""

    def forward(self, x):
        margin = 10 * (x.flatten(1)[:, 0] - 0.5)
        return torch.stack([-margin, margin], 1)


# -------------------------------------------------------------------------------------------------------------------- interval


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (1, 10, 0.0179, 0.4042), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_gives_the_textbook_intervals(k, n, low, high):
    assert wilson(k, n) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_share_and_solves_the_score_equation(pair):
    k, n = pair
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    for p in (low, high):
        if 0 < p < 1 and 0 < k < n:  # |k/n - p| = z sqrt(p (1 - p) / n) at both ends
            assert abs(k / n - p) == pytest.approx(1.959964 * (p * (1 - p) / n) ** 0.5, rel=1e-6)


# --------------------------------------------------------------------------------------------------------------------- verdicts


def test_only_images_in_the_box_in_the_ball_and_misclassified_count():
    x = torch.full((8, 1, 2, 2), 0.55)
    x[6:] = 0.04
    y = torch.tensor([1, 1, 1, 1, 1, 1, 0, 0])
    x_adv = x.clone()
    x_adv[0, 0, 0, 0] = 0.46  # misclassified, inside everything: counts
    x_adv[1, 0, 0, 0] = 0.51  # classified correctly
    x_adv[2, 0, 0, 0] = 0.40  # outside the ball
    x_adv[3, 0, 0, 0], x_adv[3, 0, 1, 1] = 0.46, float("nan")
    x_adv[4, 0, 0, 0], x_adv[4, 0, 1, 1] = 0.46, float("inf")
    x_adv[5, 0, 0, 0], x_adv[5, 0, 1, 1] = 0.46, 0.55 + 0.1001  # one pixel too far
    y[6] = 1
    x_adv[6, 0, 1, 1] = -0.01  # misclassified and in the ball, but darker than black
    y[7] = 1
    assert verify(Linear(), x, y, x_adv, 0.1).tolist() == [True, False, False, False, False, False, False, True]


def test_rounding_beyond_the_ball_is_forgiven_and_more_is_not():
    x = torch.full((2, 1, 1, 1), 0.55)
    x_adv = x - torch.tensor([0.1 + 5e-7, 0.1 + 1e-5]).view(2, 1, 1, 1)
    assert verify(Linear(), x, torch.tensor([1, 1]), x_adv, 0.1).tolist() == [True, False]


def test_verdicts_are_taken_in_full_precision_even_under_autocast():
    seen = []

    class Watch(nn.Linear):
        def forward(self, x):
            out = super().forward(x.flatten(1))
            seen.append(out.dtype)
            return out

    with torch.autocast("cpu", dtype=torch.bfloat16):
        verify(Watch(4, 2), torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0]), torch.rand(3, 1, 2, 2), 1.0)
    assert set(seen) == {torch.float32}


# -------------------------------------------------------------------------------------------------------------- the evaluation


def test_the_standard_evaluation_gives_the_verdicts_of_autoattack_itself(net, standard):
    from pyautoattack import AutoAttack

    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    x, y = DIGITS.test.images(standard.index), DIGITS.test.y[standard.index]
    frozen = copy.deepcopy(net).eval().requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        own = AutoAttack(frozen, norm="Linf", eps=EPS, seed=5, version="standard", device="cpu")
        x_adv, _ = own.run_standard_evaluation(x, y, batch_size=10)
    stands = frozen(x_adv).argmax(1) == y
    assert torch.equal(standard.robust, stands)
    assert standard.robust_accuracy == pytest.approx(float(stands.double().mean()))
    assert 0 < int(stands.sum()) < 24  # some broke, some stand: the comparison says something


def test_an_evaluation_holds_together(net, standard):
    assert standard.n == 24
    assert standard.eps == EPS
    assert standard.robust_accuracy <= standard.clean_accuracy
    assert torch.equal(standard.label, DIGITS.test.y[standard.index])
    with torch.no_grad():
        assert torch.equal(standard.prediction, copy.deepcopy(net).eval()(DIGITS.test.images(standard.index)).argmax(1))
    right = standard.prediction == standard.label
    for ok, stands, by in zip(right.tolist(), standard.robust.tolist(), standard.broken_by, strict=True):
        assert by == ("" if stands else by)
        assert (by == "clean") == (not ok)
        assert stands == (by == "")
        assert by in ("", "clean", "apgd-ce", "apgd-t", "fab-t", "square")
    k = int(standard.robust.sum())
    assert standard.interval == wilson(k, 24)
    assert standard.clean_interval == wilson(int(right.sum()), 24)
    assert f"robust at most {k / 24:.1%}" in str(standard)
    assert "n = 24" in str(standard)
    told = standard.summary()
    assert (told["robust"], told["n"], told["attacks"], told["warnings"]) == (k / 24, 24, "standard", [])
    assert list(standard.frame().columns) == [
        "index", "label", "prediction", "robust", "broken_by", "norm", "margin", "distance", "distance_by", "forwards", "seconds"
    ]  # fmt: skip
    assert "an upper bound, found by AutoAttack" in str(standard)


def test_the_record_of_a_point_is_that_of_its_image(net, standard):
    frozen = copy.deepcopy(net).eval()
    x, x_adv = DIGITS.test.images(standard.index), standard.adversarial
    stands, clean = standard.robust, standard.prediction != standard.label
    broken = ~stands & ~clean
    assert torch.equal(x_adv[~broken], x[~broken])
    assert torch.equal(standard.norm[broken], (x_adv - x)[broken].flatten(1).abs().amax(1))
    assert float(standard.norm[broken].max()) <= EPS + 1e-6
    assert standard.norm[stands].isinf().all()
    assert (standard.norm[clean] == 0).all()
    assert torch.equal(standard.distances[~stands], standard.norm[~stands].clamp(max=EPS))
    assert (standard.distances[stands] > EPS).all(), "FAB's nearest images lie outside the ball"
    with torch.no_grad():
        logits = frozen(x_adv)
    others = torch.stack([torch.cat([z[:y], z[y + 1 :]]).max() for z, y in zip(logits, standard.label, strict=True)])
    own = logits[torch.arange(24), standard.label]
    torch.testing.assert_close(standard.margin, own - others)
    assert (standard.margin[stands] > 0).all()
    assert (standard.margin[broken] <= 0).all()
    assert (standard.forwards[clean] == 0).all()
    assert (standard.forwards[stands] > 1000).all(), "a point that stands has seen all four attacks"
    assert float(standard.spent.sum()) < standard.seconds


def test_examples_are_adversarial_images_of_the_points_they_name(net, standard):
    e = standard.examples
    frozen = copy.deepcopy(net).eval()
    assert len(e["x"]) == min(32, sum(by not in ("", "clean") for by in standard.broken_by))
    assert torch.equal(e["x"], DIGITS.test.images(e["index"]))
    assert torch.equal(e["label"], DIGITS.test.y[e["index"]])
    assert float((e["x_adv"] - e["x"]).abs().max()) <= EPS + 1e-6
    assert float(e["x_adv"].min()) >= 0
    assert float(e["x_adv"].max()) <= 1
    with torch.no_grad():
        assert torch.equal(frozen(e["x_adv"]).argmax(1), e["after"])
    assert (e["after"] != e["label"]).all()
    assert (e["before"] == e["label"]).all()


def same(a, b):
    """Equal to the bit in everything but the time it took."""
    tensors = ("index", "label", "prediction", "norm", "margin", "forwards", "distances")
    return (
        all(torch.equal(getattr(a, k), getattr(b, k)) for k in tensors)
        and (a.broken_by, a.warnings, a.diagnostics) == (b.broken_by, b.warnings, b.diagnostics)
        and a.examples.keys() == b.examples.keys()
        and all(torch.equal(a.examples[k], b.examples[k]) for k in a.examples)
    )


@pytest.mark.parametrize(("attacks", "n"), [("standard", 4), ("lite", 12), ("pgd", 16)])
def test_evaluating_twice_gives_the_same_verdicts_and_leaves_random_states_and_the_network_alone(net, attacks, n):
    model = copy.deepcopy(net).train()
    model[0].weight.requires_grad_(False)
    model[1].eval()
    state = {n: t.clone() for n, t in model.state_dict().items()}
    flags, modes = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    torch.manual_seed(123)
    np.random.seed(123)
    random.seed(123)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = evaluate(model, "digits", eps=EPS, n=n, attacks=attacks)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    torch.manual_seed(7)  # what the caller draws does not matter
    assert same(first, evaluate(model, "digits", eps=EPS, n=n, attacks=attacks))
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


def test_the_stronger_the_attack_the_fewer_points_stand(net, standard):
    lite = evaluate(net, "digits", eps=EPS, n=24, batch=10, seed=5, subset="first", attacks="lite")
    assert not (standard.robust & ~lite.robust).any()
    assert set(lite.broken_by) <= {"", "clean", "apgd-ce", "apgd-t"}
    tiny = evaluate(net, "digits", eps=1e-6, n=24, batch=10, seed=5, attacks="lite")
    assert torch.equal(tiny.robust, tiny.prediction == tiny.label)


def test_events_count_the_points_and_robustness_never_rises(net):
    events = list(evaluate_stream(net, "digits", eps=EPS, n=16, batch=5, attacks="lite"))
    assert all(isinstance(e, Attacked) and e.metrics["n"] == 16 for e in events)
    glance, *events = events
    assert (glance.metrics["attack"], glance.metrics["seen"]) == ("glance", 16)
    shares = [e.metrics["robust"] for e in events]
    assert shares == sorted(shares, reverse=True)
    assert [e.metrics["attack"] for e in events[:4]] == ["clean"] * 4
    assert all(e.step <= e.of for e in events)


@pytest.mark.parametrize("classes", [2, 3])
def test_networks_of_two_and_three_classes_are_attacked_and_told_what_was_left_out(classes):
    data = of_classes(classes)
    model = trained(data, classes, epochs=2)
    report = evaluate(model, dataclasses.replace(data, eps=0.2), n=6, attacks="standard")
    assert report.n == 6
    assert report.robust_accuracy < report.clean_accuracy
    assert report.warnings == (
        f"APGD-T needs at least 4 classes and there are {classes}: it was left out, the other attacks ran",
    )
    assert evaluate(model, data, n=6, attacks="lite").warnings == report.warnings
    assert evaluate(model, data, n=6, attacks="pgd").warnings == ()


def test_attacks_are_left_out_for_few_classes_only():
    assert attacks_for(("apgd-ce", "apgd-t", "fab-t", "square"), 4) == (("apgd-ce", "apgd-t", "fab-t", "square"), [])
    assert attacks_for(("apgd-ce", "apgd-t", "fab-t", "square"), 3)[0] == ("apgd-ce", "fab-t", "square")
    assert attacks_for(("pgd",), 2) == (("pgd",), [])


def test_points_that_are_wrong_before_any_attack_are_not_attacked():
    calls = []

    class Never(nn.Module):
        """Always the class that no point has."""

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            calls.append(len(x))
            return nn.functional.one_hot(torch.full((len(x),), 9), 10).float() + self.w

    data = Dataset(name="no nines", classes=10, eps=0.1, **{k: s.at((s.y < 9).nonzero()[:, 0]) for k, s in DIGITS.splits.items()})
    report = evaluate(Never(), data, n=12, diagnostics=False)
    assert report.robust_accuracy == report.clean_accuracy == 0
    assert set(report.broken_by) == {"clean"}
    assert report.examples == {}
    assert sum(calls) < 13 * 12, "a dozen looks at each image, and no attack"


def test_all_points_are_evaluated_unless_fewer_are_asked_for():
    data = Dataset(
        name="few", train=DIGITS.train, validation=DIGITS.validation, test=DIGITS.test.at(slice(0, 9)), classes=10, eps=0.05
    )
    model = build("cnn", channels=1, classes=10)
    assert evaluate(model, data, attacks="pgd").index.tolist() == list(range(9))
    assert evaluate(model, data, attacks="pgd").subset == "all"
    first = evaluate(model, data, attacks="pgd", n=4, subset="first")
    assert (first.index.tolist(), first.subset) == ([0, 1, 2, 3], "first")


# ------------------------------------------------------------------------------------------------------------- while it runs


def test_the_estimate_is_that_of_the_points_seen_and_tightens(net):
    events = [e for e in evaluate_stream(net, "digits", eps=EPS, n=60, batch=8, attacks="lite", diagnostics=False)]
    first = [e.metrics for e in events if e.metrics["attack"] == "apgd-ce"]
    assert len(first) > 4
    seen = [m["seen"] for m in first]
    assert seen == sorted(set(seen))
    assert seen[-1] == 60
    for m in first:
        k = round(m["estimate"] * m["seen"])
        assert m["estimate"] == pytest.approx(k / m["seen"])
        assert (m["low"], m["high"]) == wilson(k, m["seen"])
    widths = [m["high"] - m["low"] for m in first]
    assert widths[-1] < widths[0] / 1.5
    assert first[-1]["estimate"] == first[-1]["robust"]


def test_the_order_of_attack_is_drawn_unless_the_first_points_are_asked_for(net):
    def attacked(**options):
        return (
            evaluate(net, "digits", eps=0.5, n=20, batch=4, attacks="pgd", diagnostics=False, **options)
            .examples["index"]
            .tolist()
        )

    drawn = attacked(seed=0)
    assert len(drawn) > 15
    assert drawn != sorted(drawn), "folders come sorted by class: an early estimate must not see one class alone"
    assert drawn == attacked(seed=0)
    assert drawn != attacked(seed=1)
    first = attacked(subset="first")
    assert first == sorted(first)


KILLED = """
import sys, torch
torch.set_num_threads(1)
from apnb import networks
from apnb.evaluation import evaluate_stream
net = networks.build("cnn", channels=1, classes=10)
net.load_state_dict(torch.load(sys.argv[1], weights_only=True))
options = dict(eps=0.1, n=30, batch=8, attacks=sys.argv[3], distances=sys.argv[4], save=sys.argv[2], adversarial=True)
for event in evaluate_stream(net, "digits", **options):
    print(event.metrics["attack"], flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("attacks", "distances", "kills"), [("standard", "fmn", (6, 10, 14, 20)), ("pgd", "none", (5,))])
def test_an_evaluation_killed_between_any_two_batches_goes_on_and_ends_with_the_same_result(attacks, distances, kills, tmp_path):
    model = trained_cnn()
    torch.save(model.state_dict(), tmp_path / "net.pt")
    options = {"eps": 0.1, "n": 30, "batch": 8, "attacks": attacks, "distances": distances, "adversarial": True}
    whole = evaluate(model, "digits", **options)
    for kill in kills:
        place = tmp_path / f"{kill}.evaluation"
        command = [sys.executable, "-c", KILLED, tmp_path / "net.pt", place, attacks, distances]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for _ in range(kill):
            assert child.stdout.readline()
        child.kill()
        child.wait()
        child.stdout.close()
        with pytest.raises(Invalid, match="is not finished"):
            Evaluation.load(place)
        resumed = evaluate(model, "digits", **options, save=place)
        assert same(whole, resumed)
        assert torch.equal(whole.adversarial, resumed.adversarial)
        assert same(Evaluation.load(place), resumed)


def trained_cnn():
    model = build("cnn", channels=1, classes=10)
    batches = Batches(DIGITS.train, 32, seed=0, stage="test")
    list(fit(model, batches, objective("natural", eps=0.1, steps=1, generator=torch.Generator()), epochs=2, lr=one_cycle(0.1)))
    return model


def test_a_finished_evaluation_comes_back_from_its_file_and_other_questions_are_refused(net, tmp_path):
    place, options = tmp_path / "e", {"eps": EPS, "n": 12, "attacks": "pgd"}
    first = evaluate(net, "digits", **options, save=place)
    told = []
    again = evaluate(net, "digits", **options, save=place, progress=told.append)
    assert same(first, again)
    assert told == []
    assert again.summary() == first.summary()
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1e-3
    changes = ({"n": 13}, {"eps": 0.2}, {"seed": 1}, {"attacks": "lite"}, {"subset": "first"}, {"parent": net})
    for model, changed in (*((net, c) for c in changes), (other, {})):
        with pytest.raises(Invalid, match="holds an evaluation of another network, other images or other options"):
            evaluate(model, "digits", **{**options, **changed}, save=place)
    whole = tmp_path / "whole"
    few = (DIGITS.test.images(slice(0, 20)), DIGITS.test.y[:20])
    evaluate(net, few, attacks="pgd", save=whole)
    with pytest.raises(Invalid, match="other options"):
        evaluate(net, few, attacks="pgd", subset="first", save=whole)  # all of them either way, but in another order
    place.write_bytes(place.read_bytes()[:200])
    with pytest.raises(Invalid, match="damaged"):
        evaluate(net, "digits", **options, save=place)


# -------------------------------------------------------------------------------------------- what the fast copy gets wrong


class Shifted(nn.Module):
    """Two classes by the mean pixel, split at ``at``."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def forward(self, x):
        margin = x.flatten(1).mean(1) - self.at
        return torch.stack([-margin, margin], 1)


def darkest(eps):
    return lambda net: {"dark": lambda x, y: (torch.where((net(x - eps).argmax(1) != y)[:, None, None, None], x - eps, x), None)}


def work_with(fast, values):
    x = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    made = Work(
        Shifted(0.5), x, torch.ones(len(x), dtype=torch.long), torch.arange(len(x)), eps=0.1, batch=8, keep=False, notes=[]
    )
    made.fast = fast
    list(made.each("clean", lambda: made.order, made.look))
    list(made.each("dark", made.standing, partial(made.attack, "dark", darkest(0.1))))
    return made.state


def test_a_point_that_the_fast_copy_calls_broken_and_the_network_does_not_is_attacked_again_on_the_network():
    state = work_with(Shifted(0.55), [0.4, 0.55, 0.62, 0.9])
    assert state["broken_by"] == ["clean", "dark", "", ""]
    assert state["doubted"] == 1  # 0.62: broken for the copy, at 0.52 still right for the network
    assert state["distances"].tolist() == pytest.approx([0.0, 0.1, math.inf, math.inf])
    assert state["margin"].tolist() == pytest.approx([-0.2, -0.1, 0.24, 0.8], abs=1e-6)


def test_ties_are_listed():
    report = evaluate(Tied(), "digits", eps=0.05, n=6, attacks="pgd", diagnostics=False)
    assert torch.equal(report.borderline, report.index[report.margin.abs() <= 1e-5])
    assert len(report.borderline) == report.n
    assert "6 verdicts hang on a tie of two logits" in " ".join(report.warnings)


class Tied(nn.Module):
    """All logits nearly alike: the label's is ahead by a millionth."""

    def forward(self, x):
        return 1e-6 * torch.arange(10.0).expand(len(x), 10) + 0 * x.flatten(1).sum(1, keepdim=True)


class Narrow(nn.Module):
    """A network on a device with room for so many images."""

    def __init__(self, net, room):
        super().__init__()
        self.net, self.room = net, room

    def forward(self, x):
        if len(x) > self.room:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return self.net(x)


def test_where_memory_runs_out_the_batch_is_halved_and_the_evaluation_goes_on(net):
    report = evaluate(Narrow(net, 17), "digits", eps=EPS, n=40, batch=33, subset="first")
    assert report.batch == 16
    assert report.warnings == (
        "the GPU ran out of memory: attacked in batches of 16",
        "the GPU ran out of memory in the diagnostics, which were left out",
    )
    plain = evaluate(net, "digits", eps=EPS, n=40, batch=16, subset="first")
    assert report.broken_by == plain.broken_by
    with pytest.raises(Invalid, match="the GPU has no room for 16 images"):
        evaluate(Narrow(net, 1), "digits", eps=EPS, n=40)


@pytest.mark.skipif(not bf16_units(torch.device("cpu")), reason="this processor has no bfloat16 units")
def test_half_precision_of_attacks_makes_no_distance_larger_than_it_has_to_be(net):
    half, full = (evaluate(net, "digits", eps=EPS, n=48, attacks="lite", precision=p, distances=True) for p in ("bf16", "fp32"))
    assert half.precision == "bf16"
    assert "attacked in bf16" in str(half)
    assert (half.distances < math.inf).all()
    torch.testing.assert_close(half.distances, full.distances, rtol=0.02, atol=1e-4)


# ----------------------------------------------------------------------------------------------------- is it believable


class Stepped(nn.Module):
    """A sound network behind images rounded to nine levels, and perhaps cut off from them."""

    def __init__(self, net, cut=False):
        super().__init__()
        self.net, self.cut = net, cut

    def forward(self, x):
        x = (8 * x).round() / 8
        return self.net(x.detach() if self.cut else x)


@pytest.mark.parametrize("cut", [False, True])
def test_a_network_that_hides_its_gradients_is_evaluated_and_not_believed(net, cut):
    report = evaluate(Stepped(copy.deepcopy(net).eval(), cut), "digits", eps=EPS, n=24, attacks="lite")
    honest = evaluate(net, "digits", eps=EPS, n=24, attacks="lite")
    assert report.robust_accuracy > honest.robust_accuracy, "gradients that are hidden look like robustness"
    verdicts = {f.indicator: f.verdict for f in report.diagnostics}
    assert verdicts["zero gradients (I1)"] == "failed"
    assert all(f.verdict in ("fine", "unknown") for f in honest.diagnostics)
    told = {finding["indicator"]: finding["verdict"] for finding in report.summary()["diagnostics"]}
    assert told == verdicts


def test_the_parent_of_a_masked_network_breaks_what_the_white_box_left(net):
    masked = Stepped(copy.deepcopy(net).eval())
    findings = {f.indicator: f for f in evaluate(masked, "digits", eps=EPS, n=40, attacks="pgd", parent=net).diagnostics}
    assert findings["transfer from the parent"].verdict == "failed"


def test_a_network_whose_backward_pass_fails_is_refused_with_the_reason(net):
    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise RuntimeError("no derivative of this")

    judge = copy.deepcopy(net).eval()

    class OneWay(nn.Module):
        def forward(self, x):
            return judge(Forward.apply(x))

    with pytest.raises(Invalid, match="the network's backward pass fails \\(no derivative of this\\)"):
        evaluate(OneWay(), "digits", eps=EPS, n=8)


# ------------------------------------------------------------------------------------------------------------------- distances


@pytest.fixture(scope="module")
def measured(net):
    return evaluate(net, "digits", eps=EPS, n=24, batch=10, seed=5, subset="first", distances=True)


def test_distances_never_miss_a_point_that_was_broken_and_the_curve_at_eps_is_at_most_robust_accuracy(standard, measured):
    broken = ~standard.robust
    assert same(dataclasses.replace(measured, distances=standard.distances, forwards=standard.forwards), standard)
    assert (measured.distances[broken] <= torch.tensor(EPS)).all()
    assert (measured.distances <= standard.distances).all()
    assert measured.curve().accuracy(EPS) <= standard.robust_accuracy
    assert measured.curve().accuracy(0.0) == standard.clean_accuracy
    assert (measured.distances < math.inf).all(), "some image is always adversarial on this network"
    assert (measured.distances < standard.norm).float().mean() > 0.5, "most perturbations can be smaller than eps"


@pytest.mark.slow
def test_distances_tuned_on_other_points_are_at_most_those_of_the_untuned_attacks(net):
    some = DIGITS.test.at(slice(0, 200))
    data = Dataset(name="some", train=DIGITS.train, validation=DIGITS.validation, test=some, classes=10, eps=EPS)
    plain = evaluate(net, data, n=8, attacks="pgd", distances="fmn", diagnostics=False)
    tuned = evaluate(net, data, n=8, attacks="pgd", distances="hofmn", diagnostics=False)
    assert (tuned.distances <= plain.distances).all()
    assert "HO-FMN" in tuned.distances_by
    x, y = some.images(), some.y
    with pytest.raises(Invalid, match="tunes on points that are not evaluated"):
        evaluate(net, (x, y), attacks="pgd", distances="hofmn")


@pytest.mark.slow
def test_the_survey_s_protocol_judges_its_128_points_and_says_what_it_leaves_out():
    images = DIGITS.train.images().repeat(2, 1, 1, 1)[:2180]
    split = Split(images, DIGITS.train.y.repeat(2)[:2180])
    data = Dataset(name="many", train=split, validation=split, test=split, classes=10, eps=EPS)
    found, notes = survey_protocol(trained_cnn(), data)
    assert found.index.tolist() == list(range(2048, 2176))
    assert found.eps == 8 / 255
    assert len(notes) > 2
    assert "survey's protocol" in found.method
    clean = evaluate(trained_cnn(), (images[2048:2176], split.y[2048:2176]), attacks="pgd", diagnostics=False)
    assert ((found.value == 0) >= (clean.prediction != clean.label)).all()


def test_the_survey_s_protocol_needs_its_2176_images(net):
    with pytest.raises(Invalid, match="2176"):
        survey_protocol(net, "digits")


# -------------------------------------------------------------------------------------------------------------- two networks


def verdicts(stands, index=None, **changed):
    stands = torch.tensor(stands)
    index = torch.arange(len(stands)) if index is None else torch.tensor(index)
    zeros = torch.zeros(len(stands))
    made = Evaluation(
        index=index, label=index % 10, prediction=index % 10, broken_by=tuple("" if s else "apgd-ce" for s in stands.tolist()),
        norm=zeros, margin=zeros + 1, forwards=zeros, spent=zeros, distances=zeros, attacks="standard", eps=0.1, subset="first",
        seed=0, data="digits",
    )  # fmt: skip
    return dataclasses.replace(made, **changed)


def test_two_networks_are_compared_point_by_point():
    a, b = verdicts([1, 1, 1, 1, 1, 1, 1, 1, 0, 0]), verdicts([1, 1, 0, 0, 0, 0, 0, 0, 1, 0])
    found = compare(a, b)
    assert (found.both, found.first_only, found.second_only, found.neither, found.n) == (2, 6, 1, 1, 10)
    assert found.p == pytest.approx(2 * (1 + 7) / 2**7)  # seven discordant points, one or none on the rarer side, two-sided
    assert found.difference == pytest.approx(0.5)
    assert found.difference == pytest.approx(a.robust_accuracy - b.robust_accuracy)
    n, d, off = 12, 5, 8
    half = 1.959964 * math.sqrt(off - d * d / n) / n
    assert found.interval == pytest.approx((5 / 12 - half, 5 / 12 + half))
    assert "6 stand only in the first, 1 only in the second" in str(found)
    back = compare(b, a)
    assert (back.p, back.difference) == (found.p, -found.difference)
    assert compare(a, a).p == 1.0


def test_only_the_points_that_both_share_are_compared():
    found = compare(verdicts([1, 0, 1], [1, 2, 3]), verdicts([0, 1, 0], [3, 2, 9]))
    assert (found.n, found.first_only, found.second_only) == (2, 1, 1)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"eps": 8 / 255}, "different eps cannot be compared"),
        ({"attacks": "lite"}, "different attacks cannot be compared: 'standard' and 'lite'"),
        ({"data": "svhn"}, "different data"),
        ({"index": torch.arange(5, 8)}, "no point in common"),
        ({"fingerprint": "another"}, "different images, both named 'digits'"),
    ],
)
def test_what_is_not_alike_is_not_compared(changed, sentence):
    with pytest.raises(Invalid, match=sentence):
        compare(verdicts([1, 0, 1]), dataclasses.replace(verdicts([1, 1, 0]), **changed))


# ------------------------------------------------------------------------------------------------------------------- refusals


class Broken(nn.Module):
    """Logits that a function makes of the images."""

    def __init__(self, make):
        super().__init__()
        self.make, self.w = make, nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.make(x)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda x: torch.full((len(x), 10), float("nan")), "returns NaN or infinite logits"),
        (lambda x: torch.zeros(len(x), 10).index_fill(1, torch.tensor([3]), float("inf")), "returns NaN or infinite logits"),
        (lambda x: torch.zeros(len(x), 7), "the network has 7 outputs but the labels name 10 classes"),
        (lambda x: torch.zeros(len(x), 1), "with at least 2 classes, this one returned \\(16, 1\\)"),
        (lambda x: torch.zeros(len(x), 10, 1), "must return logits of shape \\(N, classes\\)"),
        (lambda x: [x], "this one returned list"),
        (lambda x: torch.randn(len(x), 10), "it draws random numbers"),
        (lambda x: (x - x.mean(0)).flatten(1)[:, :10], "depends on the other images of its batch"),
        (lambda x: x.flatten(1)[:, :10].half(), r"end its forward pass with logits\.float"),
        (lambda x: x.flatten(1)[:, :10].repeat(2, 1), "expected a row of float32 logits for each"),
        (lambda x: x.flatten(1)[:, :10].squeeze(), "do not squeeze"),
        (lambda x: {}["a"], "cannot take images of shape"),
    ],
    ids=[
        "NaN",
        "infinite",
        "too few outputs",
        "one output",
        "three dimensions",
        "a list",
        "random",
        "by batch",
        "half",
        "doubled",
        "squeezed",
        "an error",
    ],
)
def test_networks_that_cannot_be_judged_are_refused(make, sentence):
    with pytest.raises(Invalid, match=sentence):
        evaluate(Broken(make), "digits", n=24)


def test_a_network_that_fails_on_late_images_only_is_refused_too():
    first = DIGITS.test.images(slice(0, 1))

    def make(x):
        logits = torch.zeros(len(x), 10) + x.flatten(1).mean(1, keepdim=True)
        return logits if torch.equal(x[:1], first) else logits + float("nan")

    with pytest.raises(Invalid, match="NaN or infinite logits"):
        evaluate(Broken(make), "digits", n=64, subset="first", batch=40, attacks="pgd")


def test_dropout_is_no_randomness_once_the_network_is_in_evaluation_mode(net):
    model = nn.Sequential(nn.Dropout(0.5), copy.deepcopy(net)).train()
    report = evaluate(model, "digits", eps=EPS, n=8, attacks="pgd")
    assert report.warnings == (
        "the network was given in training mode, with dropout: a copy of it was evaluated in evaluation mode",
    )
    assert evaluate(model.eval(), "digits", eps=EPS, n=8, attacks="pgd").warnings == ()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n": 501}, "n = 501 points asked for, expected 1 to 500"),
        ({"n": 0}, "n = 0 points asked for, expected 1 to 500"),
        ({"attacks": "standrad"}, "no attack mode 'standrad'; did you mean 'standard'"),
        ({"attacks": "fgsm"}, "no attack mode 'fgsm'"),
        ({"subset": "hard"}, "'hard'; did you mean 'stratified', 'random', 'first'"),
        ({"norm": "l2"}, "norm 'l2' cannot be evaluated: attacks, distances and the benchmark here are all in 'linf'"),
        ({"precision": "fp16"}, "no precision 'fp16'; did you mean 'bf16' or 'fp32'"),
        ({"engine": "foolbox"}, "no attack engine 'foolbox'"),
        ({"distances": "l2"}, "no kind of distances 'l2'"),
        ({"device": "tpu"}, "no device 'tpu' here"),
        ({"seed": 1.5}, "the seed is 1.5, expected a whole number"),
        ({"save": 3}, "save is 3, expected the path of a file"),
        ({"distances": [1]}, "no kind of distances"),
        ({"parent": "resnet18"}, "the parent is a str, expected the dense network"),
        ({"parent": nn.Identity()}, "the parent cannot be used: a network must return logits"),
        ({"eps": True}, "eps is True"),
        ({"eps": 0}, "eps is 0, expected a share of the pixel range above 0"),
        ({"eps": -0.1}, "eps is -0.1"),
        ({"eps": 8}, "eps is 8"),
        ({"eps": float("nan")}, "eps is nan"),
    ],
)
def test_options_that_cannot_be_met_are_refused(net, options, sentence):
    with pytest.raises(Invalid, match=sentence):
        evaluate(net, "digits", **({"n": 8} | options))


@pytest.mark.parametrize("batch", [0, -1, 2.5])
def test_a_batch_that_is_no_number_of_images_is_refused(net, batch):
    with pytest.raises(Invalid, match="batch"):
        evaluate(net, "digits", n=8, batch=batch, attacks="pgd")


def test_images_outside_the_box_are_refused(net):
    x, y = DIGITS.test.images(slice(0, 100)), DIGITS.test.y[:100]
    with pytest.raises(Invalid, match=r"pixels run from -0.5 to 0.5, expected finite floats in \[0, 1\]"):
        evaluate(net, (x - 0.5, y))
    bad = Split(x.clone(), y)
    data = Dataset(name="moved", train=bad, validation=bad, test=bad, classes=10, eps=0.1)
    bad.x.mul_(2)  # behind the data set's back
    with pytest.raises(
        Invalid, match=r"images must lie in \[0, 1\], these run from 0 to 2; put normalisation inside the network"
    ):
        evaluate(net, data)
