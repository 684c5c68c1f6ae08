"""Surveyed methods as recipes: validation, words, numbers; then every one of them carried out, stored, resumed and read back."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import apnb
from apnb import taxonomy
from apnb.errors import Invalid
from apnb.networks import build
from apnb.presets import PRESETS
from apnb.recipes import BUDGETS, Budget, Recipe
from apnb.runner import Runner
from tests.checks import CHECKS
from tests.helpers import same

METHODS = ("radmm", "hydra", "harp", "pwoa", "mad", "li20", "rst", "robustbird", "twinrep", "flyingbird", "flyingbird+")
VARIANTS = [(key, structure) for key in METHODS for structure in PRESETS[key].units]


# -------------------------------------------------------------------------------------------------------------------- words


def test_the_benchmarked_methods_run_and_each_has_a_file_and_checks():
    assert tuple(PRESETS) == METHODS
    assert set(CHECKS) == set(METHODS)
    assert {PRESETS[k].survey for k in METHODS} == {m.key for m in taxonomy.methods(benchmarked=True)}
    for key in METHODS:
        assert callable(import_module(f"apnb.methods.{key.removesuffix('+')}").stages)


@pytest.mark.parametrize("key", METHODS)
def test_a_file_cites_its_paper_and_says_where_the_method_stands(key):
    text = " ".join(import_module(f"apnb.methods.{key.removesuffix('+')}").__doc__.split())
    entry = taxonomy.method(PRESETS[key].survey)
    assert entry.first_author in text
    assert entry.title.lower() in text.lower()
    assert "Cell: " in text
    assert "Constants" in text
    assert ("as_released" in text) == bool(PRESETS[key].released)


@pytest.mark.parametrize(("key", "structure"), VARIANTS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_a_recipe_comes_back_from_json_and_from_its_code_and_its_plan_has_every_number(key, structure, budget):
    r = apnb.recipe(key, structure=structure, sparsity=0.75, budget=budget, seed=3)
    assert Recipe.from_json(r.to_json()) == r
    assert eval(r.code().split("recipe = ")[1].splitlines()[0], {"apnb": apnb}) == r
    for pixels in (64, 3072):
        plan = r.plan(pixels)
        assert "{" not in plan
        assert "75%" in plan or "25%" in plan
        assert r.units in plan or r.units == "weights"
        b = r.numbers(pixels)
        assert isinstance(b, Budget) and b.name == budget
        assert set(r.settings(pixels)) == set(PRESETS[key].constants)


def test_a_method_s_numbers_are_known_words():
    for preset in PRESETS.values():
        fields = set(Budget().training()) | {"points", "check"}
        for numbers in (preset.every, preset.paper, preset.standard, preset.quick, preset.digits, preset.tiny):
            assert set(numbers) <= fields | set(preset.constants)
        assert set(preset.constants) <= set(preset.every)
        assert set(preset.stages.values()) <= fields | set(preset.constants) | {""}


def test_the_papers_numbers_are_those_of_the_paper():
    b, c = apnb.recipe("harp", budget="paper").numbers(3072), apnb.recipe("harp", budget="paper").settings(3072)
    assert (b.epochs, b.search_epochs, b.finetune_epochs, b.lr, b.finetune_lr, b.weight_decay, b.batch) == (
        100,
        20,
        100,
        0.1,
        0.01,
        5e-4,
        128,
    )
    assert c == {"gamma": 0.01, "alpha": 0.1, "start": 0.1}
    b = apnb.recipe("rst", budget="paper").numbers(3072)
    assert (b.search_epochs, b.batch, b.attack_steps) == (160, 256, 7)
    b = apnb.recipe("radmm", budget="paper").numbers(3072)
    assert (b.search_epochs, b.dual_period, b.rho, b.rho_growth) == (200, 20, 1e-3, 1.3)


def test_constants_can_be_given_and_enter_the_label_the_code_and_the_key(tmp_path):
    a, b = apnb.recipe("harp"), apnb.recipe("harp", gamma=0.5)
    assert b.settings() == a.settings() | {"gamma": 0.5}
    assert b.label == "HARP/gamma=0.5"
    assert "gamma=0.5" in b.code()
    assert a != b and hash(a) != hash(b)
    keys = {Runner(r, store=tmp_path, device="cpu").key for r in (a, b)}
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": "harp", "structure": "kernels"}, "HARP removes weights or channels, got structure 'kernels'"),
        ({"name": "harp", "pipeline": "before"}, "HARP decides its pipeline itself"),
        ({"name": "harp", "gamme": 0.1}, "HARP takes no 'gamme'; did you mean 'gamma'"),
        ({"name": "harp", "gamma": -1}, "gamma must be a number of at least 0, got -1"),
        ({"name": "harp", "gamma": math.nan}, "gamma must be a number"),
        ({"name": "twinrep", "cut": 2.5}, "cut must be a whole number, got 2.5"),
        ({"name": "pwoa", "finetuning": "pgd_at"}, "objective of PwoA's finetuning"),
        ({"name": "rst", "pretraining": "pgd_at"}, "RST has no stage 'pretraining'"),
        ({"name": "mad", "as_released": True}, "MAD has no released variant"),
        ({"name": "hydra", "rewind": True}, "variant, ramp and rewind are options of a plain cell"),
        ({"name": "hydra", "sparsity": 0}, "HYDRA has nothing to do at sparsity 0"),
        ({"name": "hydra", "sparsity": 90}, r"did you mean 0\.9\?"),
        ({"name": "harp", "alpha": 1.0}, "alpha is a share and must be less than 1, got 1.0"),
        ({"name": "pwoa", "sigma": 0}, "PwoA: sigma must be more than 0"),
        ({"name": "robustbird", "val_steps": 0}, "Robust Bird: val_steps must be more than 0"),
        ({"name": "harp", "as_released": "yes"}, "as_released must be True or False, got 'yes'"),
        ({"name": "harp", "objective": "natural"}, "give pretraining or pruning_step or finetuning instead of objective"),
        ({"name": "harp", "constants": None}, "constants are numbers by name"),
        ({"name": "harp", "constants": "gamma=1"}, "constants are numbers by name"),
        ({"name": "harp", "constants": [1]}, "constants are numbers by name"),
        ({"name": "hydra+"}, "no method 'hydra\\+'"),
        ({"name": "hydro"}, "did you mean 'HYDRA'"),
    ],
    ids=lambda x: x if isinstance(x, str) else "-".join(f"{k}={v}" for k, v in x.items()),
)
def test_what_a_method_cannot_do_is_refused_with_a_sentence(options, sentence):
    options = dict(options)
    with pytest.raises(Invalid, match=sentence):
        apnb.recipe(options.pop("name"), **options)


def test_the_fields_of_a_method_belong_to_a_method():
    with pytest.raises(Invalid, match="belong to a surveyed method"):
        Recipe(pipeline="after", as_released=True)
    with pytest.raises(Invalid, match=r"HARP has pipeline 'after', got 'before'; apnb.recipe\('harp'\) fills in"):
        Recipe(method="harp", pipeline="before")
    with pytest.raises(Invalid, match="method that runs"):
        Recipe(method="dnr", pipeline="during")
    assert "method" not in Recipe(pipeline="after").to_dict()


def test_a_recipe_read_from_a_file_may_name_the_method_alone():
    assert Recipe.from_dict({"method": "harp", "sparsity": 0.99, "constants": {"gamma": 0.5}}) == apnb.recipe(
        "harp", sparsity=0.99, gamma=0.5
    )


def test_flying_bird_plus_is_a_method_of_its_own():
    assert apnb.recipe("flyingbird+").method == "flyingbird+"
    assert apnb.recipe("Flying Bird").method == "flyingbird"
    assert apnb.recipe("HYDRA_Sehwag2020Hydra").method == "hydra"


# ------------------------------------------------------------------------------------------------------------------- numbers


def test_every_listed_property_has_a_test(tmp_path):
    place = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "check", "-p", "tests.checks", "tests"],
        capture_output=True, text=True, cwd=Path(__file__).parents[1], env={**os.environ, "APNB_CHECKS": str(place)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    found = json.loads(place.read_text())
    missing = [
        (m, i) for m, sentences in CHECKS.items() for i in range(1, len(sentences) + 1) if not found.get(m, {}).get(str(i))
    ]
    assert not missing
    assert {(m, int(i)) for m, numbers in found.items() for i in numbers} <= {
        (m, i) for m, sentences in CHECKS.items() for i in range(1, len(sentences) + 1)
    }


# ---------------------------------------------------------------------------------------------------------------- carried out


@pytest.mark.parametrize(("key", "structure"), VARIANTS)
@pytest.mark.parametrize("network", ["cnn", "resnet8"])
def test_a_method_ends_with_a_plain_network_that_loads_strictly_and_gives_the_same_logits(key, structure, network, tmp_path):
    recipe = apnb.recipe(key, structure=structure, sparsity=0.9 if structure == "weights" else 0.5, budget="tiny")
    run = apnb.run(recipe, network=network, store=tmp_path, evaluate=False, device="cpu")
    stored = tmp_path / "weights.pt"
    torch.save(run.model.state_dict(), stored)
    plain = build(network, channels=1, classes=10, seed=99).eval()
    plain.load_state_dict(torch.load(stored, weights_only=True), strict=True)
    x = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain(x), run.model.eval()(x))
    for n, m in run.masks.items():
        assert m.dtype == torch.bool
        assert not plain.state_dict()[n][~m].any()
    assert run.summary["label"] == recipe.label
    assert run.sparsity.asked == recipe.sparsity
    kinds = [row["kind"] for row in run.rows]
    assert "pruned" in kinds
    stages = list(dict.fromkeys(row["stage"] for row in run.rows))
    assert set(stages) <= set(PRESETS[key].stages)


@pytest.mark.parametrize("key", METHODS)
def test_a_run_stopped_after_any_stage_or_epoch_ends_as_one_that_was_not(key, tmp_path):
    budget = Budget(
        name="tiny", epochs=2, search_epochs=2, finetune_epochs=2, batch=64, images=128, attack_steps=1, check=32, dual_period=1
    )
    constants = {
        "harp": {"gamma": 50.0}, "mad": {"natural_epochs": 2, "mask_steps": 2}, "li20": {"warmup": 1}, "twinrep": {"cut": 2},
        "robustbird": {"window": 1}, "flyingbird": {"interval": 1, "interval_late": 1},
        "flyingbird+": {"interval": 1, "interval_late": 1, "window": 1, "begin": 0},
    }  # fmt: skip
    recipe = apnb.recipe(key, sparsity=0.8, budget=budget, **constants.get(key, {}))
    options = {"evaluate": False, "device": "cpu", "snapshot_every": 0.0}
    whole = apnb.run(recipe, store=tmp_path / "whole", **options)

    def stored(event):
        return event.kind == "finished" or (event.kind == "epoch" and event.step < event.of)

    stops = sum(stored(e) for e in apnb.stream(recipe, store=tmp_path / "count", **options))
    assert stops >= 2
    for attempt in range(stops + 1):  # each attempt ends as soon as it has stored something more
        torch.manual_seed(attempt)  # whatever the global random state
        for event in apnb.stream(recipe, store=tmp_path / "broken", **options):
            if stored(event):
                break
    assert event.kind == "done"
    broken = apnb.run(recipe, store=tmp_path / "broken", **options)
    assert same(broken.model.state_dict(), whole.model.state_dict())
    assert same(broken.masks, whole.masks)


@pytest.mark.parametrize("key", [k for k in METHODS if PRESETS[k].released])
def test_as_released_runs_and_differs(key, tmp_path):
    options = {"store": tmp_path, "evaluate": False, "device": "cpu"}
    budget = Budget(
        name="tiny", epochs=4, search_epochs=5, finetune_epochs=2, batch=64, images=128, attack_steps=1, check=32, dual_period=2
    )
    extra = {"gamma": 50.0} if key == "harp" else {}
    told = [apnb.run(apnb.recipe(key, sparsity=0.8, budget=budget, as_released=r, **extra), **options) for r in (False, True)]
    assert not same(told[0].model.state_dict(), told[1].model.state_dict())


def stages_of(recipe, store):
    return {
        e.stage: e.kind
        for e in apnb.stream(recipe, store=store, evaluate=False, device="cpu")
        if e.kind in ("finished", "restored")
    }


@pytest.mark.parametrize(
    ("key", "constants", "shared"),
    [
        ("mad", {"natural_epochs": 2}, ()),
        ("mad", {"reach": 1.0}, ("natural",)),
        ("mad", {"mask_steps": 2}, ("natural", "pretraining")),
        ("harp", {"gamma": 60.0}, ("pretraining",)),
        ("pwoa", {"hsic_y": 2e-3}, ("pretraining",)),
    ],
)
def test_a_stage_is_computed_again_if_a_constant_it_depends_on_is_another(key, constants, shared, tmp_path):
    stages_of(apnb.recipe(key, sparsity=0.8, budget="tiny"), tmp_path)
    told = stages_of(apnb.recipe(key, sparsity=0.8, budget="tiny", **constants), tmp_path)
    assert {stage for stage, kind in told.items() if kind == "restored"} == set(shared)


def test_a_constant_given_at_its_own_value_computes_nothing_anew(tmp_path):
    runs = [
        apnb.run(apnb.recipe("rst", budget="tiny", **c), store=tmp_path, evaluate=False, device="cpu")
        for c in ({}, {"reach": 1.75})
    ]
    assert runs[0].key == runs[1].key


@pytest.mark.parametrize(("key", "structure"), VARIANTS)
def test_every_method_runs_on_colour_images_at_the_quick_numbers(key, structure, tmp_path):
    g = torch.Generator().manual_seed(0)
    data = (torch.rand(200, 3, 32, 32, generator=g).numpy(), (torch.arange(200) % 10).numpy())
    recipe = apnb.recipe(key, structure=structure, sparsity=0.9 if structure == "weights" else 0.5)
    small = dataclasses.replace(recipe.numbers(3072), batch=16, images=160, check=16, attack_steps=1)
    run = apnb.run(
        dataclasses.replace(recipe, budget=small), network="cnn", data=data, store=tmp_path, evaluate=False, device="cpu"
    )
    assert run.sparsity.units > 0.4


def test_a_method_s_own_numbers_can_be_changed_one_by_one():
    recipe = apnb.recipe("pwoa", budget="standard")
    changed = dataclasses.replace(recipe, budget=dataclasses.replace(recipe.numbers(3072), epochs=3))
    assert changed.numbers(3072) == dataclasses.replace(recipe.numbers(3072), epochs=3)
    assert changed.settings(3072) == recipe.settings(3072)


def test_runs_of_a_method_that_differ_in_sparsity_share_the_dense_network(tmp_path):
    apnb.run(apnb.recipe("hydra", sparsity=0.5, budget="tiny"), store=tmp_path, evaluate=False, device="cpu")
    kinds = [
        (e.kind, e.stage)
        for e in apnb.stream(apnb.recipe("hydra", sparsity=0.9, budget="tiny"), store=tmp_path, evaluate=False, device="cpu")
    ]
    assert ("restored", "pretraining") in kinds
    assert ("finished", "pruning") in kinds
