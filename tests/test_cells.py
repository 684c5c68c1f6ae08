"""Every valid cell of the taxonomy runs to the end on the embedded data, with the exact count and a verdict that makes sense."""

import dataclasses
import itertools
import math

import pytest
import torch

import apnb
from apnb.events import Done, Epoch, Finished
from apnb.masks import account

SPARSITY = 0.7
# The small plain network on 1x8x8 images with 10 classes, written down by hand.
SHAPES = {
    "conv1.weight": (16, 1, 3, 3),
    "conv2.weight": (32, 16, 3, 3),
    "conv3.weight": (64, 32, 3, 3),
    "linear.weight": (10, 256),
}
UNITS = {
    "weights": {n: math.prod(s) for n, s in SHAPES.items()},
    "filters": {"conv1.weight": 16, "conv2.weight": 32, "conv3.weight": 64},
    "channels": {"conv2.weight": 16, "conv3.weight": 32, "linear.weight": 64},
    "kernels": {"conv1.weight": 16, "conv2.weight": 32 * 16, "conv3.weight": 64 * 32},
}


def kept_units(mask: torch.Tensor, structure: str, name: str) -> int:
    """Units of which anything is kept, counted without the package; a unit kept in part is an error."""
    if structure == "weights":
        return int(mask.sum())
    if structure == "filters":
        parts = mask.flatten(1)
    elif structure == "kernels":
        parts = mask.flatten(0, 1).flatten(1)
    else:
        columns = mask.unflatten(1, (64, 4)) if name == "linear.weight" else mask
        parts = columns.transpose(0, 1).flatten(1)
    assert torch.equal(parts.any(1), parts.all(1)), "a unit is removed whole or not at all"
    return int(parts.all(1).sum())


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("cells")


def check(run: apnb.Run) -> None:
    recipe = run.recipe
    units = UNITS[recipe.structure]
    kept = {n: kept_units(m, recipe.structure, n) for n, m in run.masks.items()}
    assert kept.keys() == units.keys()
    if recipe.locality == "local":
        assert kept == {n: k - min(round(recipe.sparsity * k), k - 1) for n, k in units.items()}
    else:
        assert sum(kept.values()) == sum(units.values()) - round(recipe.sparsity * sum(units.values()))
        assert recipe.criterion == "bcs" or min(kept.values()) >= 1
    state = run.model.state_dict()
    for n, m in run.masks.items():
        assert state[n].shape == SHAPES[n]
        assert not state[n][~m].any(), "what is masked is zero in the plain network"
    for tensor in state.values():
        assert tensor.isfinite().all()
    assert run.evaluation.robust_accuracy <= run.evaluation.clean_accuracy
    assert run.evaluation.n == 16
    cut = [row for row in run.rows if row["kind"] == "pruned"]
    assert (cut[-1]["asked"], cut[-1]["kept"]) == (recipe.sparsity, sum(kept.values()))
    assert {"clean", "pgd", "collapsed", "per_layer", "weights", "parameters"} <= cut[-1].keys()
    assert [row["asked"] for row in cut] == sorted(row["asked"] for row in cut)


@pytest.mark.parametrize("cell", apnb.grid(), ids="-".join)
def test_every_cell_runs_to_the_end_with_the_exact_count(cell, store):
    recipe = apnb.Recipe(**cell._asdict(), sparsity=SPARSITY, budget="tiny")
    events = list(apnb.stream(recipe, store=store, attacks="pgd"))
    assert isinstance(events[-1], Done)
    check(events[-1].run)


OPTIONS = {
    "objective": ("natural", "fgsm", "fast_at", "pgd_at", "trades", "mart"),
    "schedule": ("one_shot", "iterative"),
    "ramp": ("linear", "cubic"),
    "rewind": (None, False, True),
    "criterion": (
        ("lwm", None), ("relwm", "l1"), ("relwm", "group_lasso"), ("solwm", None),
        ("lis", "learned"), ("lis", "saliency"), ("hgm", None),
    ),
    "last": ("same", "none", "kd"),
    "structure": ("weights", "filters", "channels", "kernels"),
}  # fmt: skip


def pairwise(options: dict) -> list[dict]:
    """A small set of combinations in which every two values of two options meet, found greedily."""
    names = list(options)
    pairs = {((a, x), (b, y)) for a, b in itertools.combinations(names, 2) for x in options[a] for y in options[b]}
    chosen = []
    while pairs:
        row = {}
        for name in names:
            fixed = list(row.items())
            best = max(
                options[name],
                key=lambda v: (
                    sum(((a, x), (name, v)) in pairs for a, x in fixed)
                    + 0.1 * sum(p[0] == (name, v) or p[1] == (name, v) for p in pairs)
                ),
            )
            row[name] = best
        covered = {((a, row[a]), (b, row[b])) for a, b in itertools.combinations(names, 2)}
        if not covered & pairs:
            (a, x), (b, y) = next(iter(pairs))
            row[a], row[b] = x, y
            covered = {((p, row[p]), (q, row[q])) for p, q in itertools.combinations(names, 2)}
        pairs -= covered
        chosen.append(row)
    return chosen


@pytest.mark.parametrize("pipeline", ["after", "before", "during"])
@pytest.mark.parametrize("options", pairwise(OPTIONS), ids=lambda o: "-".join(str(v) for v in o.values()))
def test_options_run_or_are_refused_with_a_sentence(pipeline, options, store):
    criterion, variant = options["criterion"]
    given = {
        "pipeline": pipeline, "criterion": criterion, "variant": variant, "structure": options["structure"],
        "schedule": options["schedule"], "objective": options["objective"], "rewind": options["rewind"],
        "ramp": options["ramp"] if options["schedule"] == "iterative" else None,
    }  # fmt: skip
    stage = {"after": "finetuning", "before": "training_step", "during": "training_step"}[pipeline]
    if options["last"] != "same":
        given[stage] = options["last"]
    forbidden = (
        (variant == "group_lasso" and options["structure"] == "weights")
        or (pipeline == "during" and (options["rewind"] is True or options["last"] != "same"))
        or (pipeline == "before" and (options["last"] == "kd" or (options["rewind"] is True and options["last"] == "none")))
        or (criterion == "hgm" and options["objective"] == "natural")
    )
    if forbidden:
        with pytest.raises(apnb.Invalid) as refusal:
            apnb.Recipe(**given, sparsity=SPARSITY, budget="tiny")
        assert len(str(refusal.value)) > 30
        return
    recipe = apnb.Recipe(**given, sparsity=SPARSITY, budget="tiny")
    check(apnb.run(recipe, store=store, attacks="pgd"))


def test_the_residual_network_runs_in_every_structure(store):
    for structure in UNITS:
        recipe = apnb.Recipe(pipeline="after", structure=structure, locality="local", sparsity=0.5, budget="tiny")
        run = apnb.run(recipe, network="resnet8", store=store, attacks="pgd")
        report = account(run.masks, apnb.networks.layers(run.model, torch.rand(2, 1, 8, 8)), structure, 0.5, 1)
        assert report.units == pytest.approx(0.5, abs=0.01)
        assert run.evaluation.robust_accuracy <= run.evaluation.clean_accuracy


def test_runs_that_differ_in_sparsity_share_the_dense_network(tmp_path):
    first, second = (
        list(apnb.stream(apnb.Recipe(pipeline="after", sparsity=s, budget="tiny"), store=tmp_path, evaluate=False))
        for s in (0.5, 0.9)
    )
    assert "pretraining" in [e.stage for e in first if isinstance(e, Finished)]
    assert [e.stage for e in second if e.kind == "restored"] == ["pretraining"]
    assert not any(isinstance(e, Epoch) and e.stage == "pretraining" for e in second)


def test_the_same_call_again_comes_from_the_store_and_is_the_same(tmp_path):
    recipe = apnb.Recipe(pipeline="during", criterion="lis", sparsity=0.8, budget="tiny")
    first = apnb.run(recipe, store=tmp_path, attacks="pgd")
    events = list(apnb.stream(recipe, store=tmp_path, attacks="pgd"))
    assert [e.kind for e in events] == ["done"]
    again = events[-1].run
    assert all(torch.equal(first.masks[n], m) for n, m in again.masks.items())
    assert torch.equal(first.evaluation.robust, again.evaluation.robust)


def test_other_seeds_give_other_masks_and_the_same_seed_the_same(tmp_path):
    recipe = apnb.Recipe(pipeline="before", sparsity=0.8, budget="tiny")
    one, two = (apnb.run(dataclasses.replace(recipe, seed=s), store=tmp_path, evaluate=False) for s in (1, 2))
    same = apnb.run(dataclasses.replace(recipe, seed=1), store=tmp_path / "elsewhere", evaluate=False)
    assert any(not torch.equal(one.masks[n], two.masks[n]) for n in one.masks)
    assert all(torch.equal(one.masks[n], same.masks[n]) for n in one.masks)
    assert all(torch.equal(a, b) for a, b in zip(one.model.state_dict().values(), same.model.state_dict().values(), strict=True))


def test_the_same_result_whatever_the_global_random_state(tmp_path):
    recipe = apnb.Recipe(pipeline="during", criterion="bcs", sparsity=0.8, budget="tiny")
    torch.manual_seed(1)
    one = apnb.run(recipe, store=tmp_path / "a", evaluate=False)
    before = torch.manual_seed(2).get_state()
    two = apnb.run(recipe, store=tmp_path / "b", attacks="lite")
    assert torch.equal(torch.get_rng_state(), before), "the caller's random state is left as it was"
    assert all(torch.equal(a, b) for a, b in zip(one.model.state_dict().values(), two.model.state_dict().values(), strict=True))


def test_zero_sparsity_is_the_dense_network(tmp_path):
    recipe = apnb.Recipe(pipeline="after", sparsity=0.0, finetuning="none", budget="tiny")
    run = apnb.run(recipe, store=tmp_path, attacks="pgd")
    assert recipe.label == "dense"
    assert all(m.all() for m in run.masks.values())
    assert run.sparsity.weights == 0


def test_a_global_sparsity_that_empties_layers_is_refused_before_any_work(tmp_path):
    recipe = apnb.Recipe(pipeline="after", structure="filters", sparsity=0.99, budget="tiny")
    with pytest.raises(apnb.Invalid, match=r"leaves 1 of 112 units for 3 layers"):
        next(apnb.stream(recipe, store=tmp_path))
    assert not list((tmp_path / "stages").glob("*.stage"))
