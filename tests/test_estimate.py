"""Estimates: what a recipe consists of, what is shared or stored, and what was measured."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import apnb
from apnb import estimate as est
from apnb.errors import Invalid
from apnb.estimate import STANDING, Pace, attack_steps, duration, plan, stage_lengths
from apnb.presets import PRESETS
from apnb.recipes import Budget, Recipe, recipe

QUICK = {"attacks": "pgd", "n": 16}


def estimate(recipes: list, **options) -> est.Estimate | None:
    return est.estimate(recipes, measured=STEADY, **options)


def tiny(**options) -> Recipe:
    return Recipe(**{"pipeline": "after", "budget": "tiny", "sparsity": 0.5, **options})


STEADY = Pace(attack=1e-4, learn=2e-4, look=1e-4, walk=2e-4, batch=128, threads=1, device="cpu")
"""A pace that does not depend on the machine: sums are then exact."""


@pytest.mark.parametrize("cell", apnb.grid()[::6], ids="/".join)
def test_the_stages_of_a_plan_are_those_whose_lengths_are_known(cell):
    r = Recipe(**cell._asdict(), sparsity=0.5, budget="tiny")
    stages = plan(r, **QUICK).stages
    assert [s.name for s in stages] == [*stage_lengths(r), "evaluate"] and all(s.units > 0 for s in stages[-1:])
    assert sum(s.epochs for s in stages) == sum(epochs for _, epochs in stage_lengths(r).values()) > 0


@pytest.mark.parametrize("name", PRESETS)
def test_every_method_has_a_plan_whose_stages_have_lengths(name):
    r = recipe(name, sparsity=0.5)
    assert {s.name for s in plan(r).stages} == {*stage_lengths(r), "evaluate"}
    assert estimate([r]).parts[0].training > 0


@pytest.mark.parametrize(
    "r", [tiny(), tiny(schedule="iterative", criterion="lis"), recipe("hydra", budget="tiny"), recipe("twinrep", budget="tiny")],
    ids=lambda r: r.label,
)  # fmt: skip
def test_a_plan_names_the_stages_and_keys_that_a_run_leaves_in_the_store(r, tmp_path):
    planned = plan(r, store=tmp_path, **QUICK)
    assert not (tmp_path / "runs").exists() and not any(s.stored for s in planned.stages)
    run = apnb.run(r, store=tmp_path, **QUICK)
    assert run.key == planned.key
    assert {p.stem for p in (tmp_path / "stages").glob("*.stage")} == {s.key for s in planned.stages[:-1]}
    epochs = [row["stage"] for row in run.rows if row["kind"] == "epoch"]
    assert {s.name: s.epochs for s in planned.stages if s.epochs} == {name: epochs.count(name) for name in dict.fromkeys(epochs)}
    assert all(s.stored for s in plan(r, store=tmp_path, **QUICK).stages)


def test_what_recipes_share_counts_once_and_what_is_stored_not_at_all(tmp_path):
    recipes = [tiny(sparsity=s) for s in (0.5, 0.9)]
    both = estimate(recipes, store=tmp_path, **QUICK)
    alone = [estimate([r], store=tmp_path, **QUICK).seconds for r in recipes]
    pretraining = plan(recipes[0]).stages[0]
    shared = pretraining.attacks * 1e-4 + pretraining.learns * 2e-4
    assert both.seconds == pytest.approx(sum(alone) - shared) and both.parts[1].training < both.parts[0].training
    assert estimate([recipes[0]] * 2, store=tmp_path, **QUICK).seconds == pytest.approx(alone[0])

    apnb.run(recipes[0], store=tmp_path, **QUICK)
    left = estimate(recipes, store=tmp_path, **QUICK)
    assert left.parts[0].seconds == 0 and left.seconds == pytest.approx(alone[1] - shared)
    assert str(estimate(recipes[:1], store=tmp_path, **QUICK)) == "at once: all of it is stored"
    more = estimate(recipes[:1], store=tmp_path, attacks="pgd", n=32)  # another evaluation of a stored run
    assert more.parts[0].training == 0 and more.parts[0].attacks > 0
    assert estimate(recipes[:1], store=tmp_path, distances="fmn", **QUICK).seconds > 0
    assert estimate(recipes[:1], store=tmp_path, eps=0.05, **QUICK).parts[0].training > 0


def test_work_grows_with_epochs_steps_points_and_attacks():
    def seconds(attacks: str = "pgd", n: int = 16, **changes) -> est.Part:
        base = {"name": "b", "epochs": 2, "finetune_epochs": 1, "images": 128, "attack_steps": 1, "batch": 64, "check": 0}
        return estimate([tiny(budget=Budget(**(base | changes)))], attacks=attacks, n=n).parts[0]

    base = seconds()
    assert base.training == pytest.approx(3 * 128 * (1e-4 + 2e-4))  # three epochs, one attack step and one that learns an image
    assert seconds(epochs=5).training == pytest.approx(2 * base.training)
    assert seconds(attack_steps=4).training == pytest.approx(3 * 128 * (4e-4 + 2e-4))
    assert seconds(n=32).attacks == pytest.approx(2 * base.attacks)
    assert base.attacks < seconds("lite").attacks < seconds("standard").attacks
    assert base.low < base.seconds < base.high


def test_the_range_goes_with_the_points_that_stand():
    few, expected, many = STANDING
    assert few < expected < many
    steps = attack_steps("standard", 10, (1, 8, 8))
    assert list(steps) == ["apgd-ce", "apgd-t", "fab-t", "square"] and "apgd-t" not in attack_steps("standard", 3, (1, 8, 8))
    assert attack_steps("standard", 10, (3, 32, 32))["square"] > steps["square"]
    assert sum(attack_steps("pgd", 10, (1, 8, 8), "fmn").values()) == 51 + 3 * 200


def test_an_estimate_refuses_what_a_run_would_refuse():
    with pytest.raises(Invalid, match="leaves"):
        estimate([tiny(structure="filters", sparsity=0.99)])
    with pytest.raises(Invalid, match="attack mode"):
        estimate([tiny()], attacks="autoatack")
    with pytest.raises(Invalid, match=r"apnb\.Recipe"):
        estimate(["after"])


def test_somebody_who_no_longer_wants_to_know_gets_nothing():
    assert est.estimate([tiny()], stop=lambda: True, **QUICK) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 second"), (7.4, "7 seconds"), (43, "45 seconds"), (100, "1.5 minutes"), (119, "2 minutes"), (1500, "25 minutes"),
     (9000, "2.5 hours"), (400_000, "4.5 days")],
)  # fmt: skip
def test_times_are_told_with_two_figures(seconds, words):
    assert duration(seconds) == words


# --- the measurement itself -----------------------------------------------------------------------------------------------------


def measured(network="cnn", r: Recipe | None = None, **options) -> est.Pace:
    from apnb import datasets

    return est.pace(est._runner(r or tiny(), network, datasets.load("digits"), None, None), limit=0.2, **options)


def test_a_measurement_leaves_random_state_network_and_store_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("APNB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(est, "_PACES", {})
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 10))
    before = {n: t.clone() for n, t in net.state_dict().items()}
    state = torch.get_rng_state()
    p = measured(net)
    assert min(p.learn, p.look, p.walk) > 0 and p.attack >= 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items()) and net[3].p == 0.5
    assert not (tmp_path / "home").exists()


def test_a_measurement_is_made_once_for_a_network_a_batch_and_a_number_of_threads(monkeypatch):
    monkeypatch.setattr(est, "_PACES", {})
    first = measured()
    assert measured() is first and measured(r=tiny(pipeline="during", criterion="bcs")) is first
    other = dataclasses.replace(apnb.recipes.budget("tiny"), batch=32)
    assert measured(r=tiny(budget=other)).batch == 32 and len(est._PACES) == 2
    measured("resnet8")
    assert len(est._PACES) == 3


def test_a_measurement_can_be_stopped_between_steps(monkeypatch):
    monkeypatch.setattr(est, "_PACES", {})
    asked = []
    with pytest.raises(est.Stopped):
        measured(stop=lambda: asked.append(1) or len(asked) > 5)
    assert len(asked) == 6 and not est._PACES


def test_a_large_network_is_measured_on_few_images():
    class Slow(nn.Module):
        images = 0

        def forward(self, x):
            Slow.images += len(x)
            for _ in range(200_000 * len(x)):
                pass
            return x.flatten(1)[:, :10] * 1.0

    x = torch.rand(64, 1, 8, 8)
    assert est._few(Slow(), x, 64, 0.01, lambda: False) < 64
    assert est._few(nn.Flatten(), x, 64, 1.0, lambda: False) == 64


def test_the_sentence_says_how_long_between_what_and_from_which_measurement():
    told = str(estimate([tiny(budget="quick")]))
    assert told.startswith("about ") and ", between " in told
    assert told.endswith("(measured: 26 ms a training step and 13 ms for each of its attack steps, on 1 thread)")
