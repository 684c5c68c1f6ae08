"""Verdicts: only what was re-checked counts, they are AutoAttack's own, and evaluating changes nothing."""

from __future__ import annotations

import copy
import dataclasses
import logging
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from apnb import datasets
from apnb.attacks.autoattack import attacks_for
from apnb.datasets import Batches, Dataset, Split
from apnb.errors import Invalid
from apnb.evaluation import Evaluation, evaluate, evaluate_stream, verify, wilson
from apnb.events import Attacked
from apnb.networks import build
from apnb.objectives import objective
from apnb.training import fit, one_cycle

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
    return evaluate(net, "digits", eps=EPS, n=24, batch=10, seed=5)


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
    assert list(standard.frame().columns) == ["index", "label", "prediction", "robust", "broken_by"]


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
    return all(torch.equal(getattr(a, k), getattr(b, k)) for k in ("index", "label", "prediction", "robust")) and (
        a.broken_by,
        a.warnings,
    ) == (b.broken_by, b.warnings)


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
    lite = evaluate(net, "digits", eps=EPS, n=24, batch=10, seed=5, attacks="lite")
    assert not (standard.robust & ~lite.robust).any()
    assert set(lite.broken_by) <= {"", "clean", "apgd-ce", "apgd-t"}
    tiny = evaluate(net, "digits", eps=1e-6, n=24, batch=10, seed=5, attacks="lite")
    assert torch.equal(tiny.robust, tiny.prediction == tiny.label)


def test_events_count_the_points_and_robustness_never_rises(net):
    events = list(evaluate_stream(net, "digits", eps=EPS, n=16, batch=5, attacks="lite"))
    assert all(isinstance(e, Attacked) and e.metrics["n"] == 16 for e in events)
    shares = [e.metrics["robust"] for e in events]
    assert shares == sorted(shares, reverse=True)
    assert events[0].metrics["attack"] == "clean"
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
    report = evaluate(Never(), data, n=12)
    assert report.robust_accuracy == report.clean_accuracy == 0
    assert set(report.broken_by) == {"clean"}
    assert report.examples == {}
    assert len(calls) == 3  # two passes to see whether it draws random numbers, one for the predictions


def test_all_points_are_evaluated_unless_fewer_are_asked_for():
    data = Dataset(
        name="few", train=DIGITS.train, validation=DIGITS.validation, test=DIGITS.test.at(slice(0, 9)), classes=10, eps=0.05
    )
    model = build("cnn", channels=1, classes=10)
    assert evaluate(model, data, attacks="pgd").index.tolist() == list(range(9))
    assert evaluate(model, data, attacks="pgd").subset == "all"
    first = evaluate(model, data, attacks="pgd", n=4, subset="first")
    assert (first.index.tolist(), first.subset) == ([0, 1, 2, 3], "first")


def test_an_evaluation_comes_back_from_a_file(standard, tmp_path):
    from apnb.store import load_tree, save_tree

    save_tree(tmp_path / "report", standard.to_tree())
    back = Evaluation.from_tree(load_tree(tmp_path / "report"))
    assert same(back, standard)
    assert back.summary() == standard.summary()
    assert all(torch.equal(back.examples[k], v) for k, v in standard.examples.items())


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
        (lambda x: torch.zeros(len(x), 1), "with at least 2 classes, this one returned \\(24, 1\\)"),
        (lambda x: torch.zeros(len(x), 10, 1), "must return logits of shape \\(N, classes\\)"),
        (lambda x: [x], "this one returned list"),
        (lambda x: torch.randn(len(x), 10), "it draws random numbers"),
    ],
    ids=["NaN", "infinite", "too few outputs", "one output", "three dimensions", "a list", "random"],
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
    assert evaluate(model, "digits", eps=EPS, n=8, attacks="pgd").n == 8


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n": 501}, "n = 501 points asked for, expected 1 to 500"),
        ({"n": 0}, "n = 0 points asked for, expected 1 to 500"),
        ({"attacks": "standrad"}, "no attack mode 'standrad'; did you mean 'standard'"),
        ({"attacks": "fgsm"}, "no attack mode 'fgsm'"),
        ({"subset": "hard"}, "'hard'; did you mean 'stratified', 'random', 'first'"),
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
