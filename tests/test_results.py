"""Stored runs are what their sweep file says, by the code and data of today, and one command makes them."""

from __future__ import annotations

import csv
import io
import json

import pytest
import torch

import apnb
from apnb import plots, results
from apnb.errors import Invalid
from apnb.paths import data_path
from apnb.runner import Runner
from apnb.store import ROW
from apnb.sweeps import read_sweep


def named(test):
    return pytest.mark.parametrize("name", results.NAMES)(test)


@named
def test_the_table_has_exactly_the_runs_of_its_sweep_file_and_each_with_seed_and_versions(name):
    table, sweep = results.frame(name), read_sweep(data_path(f"results/{name}.toml"))
    assert list(table) == [*ROW, *results.MORE]
    assert [results.recipe_of(row) for row in table.to_dict("records")] == sweep["recipes"]
    assert set(table["n"]) == {sweep["n"]} and set(table["attacks"]) == {sweep["attacks"]} and table["robust"].notna().all()
    assert table["versions"].str.contains(r"apnb .*torch .*python ").all() and table["key"].is_unique


@named
def test_the_key_of_every_row_is_what_recipe_network_and_data_give_today(name, tmp_path):
    from apnb import datasets

    data = datasets.load("digits")
    for row in results.frame(name).to_dict("records"):
        assert Runner(results.recipe_of(row), network="cnn", data=data, store=tmp_path).key == row["key"], row["label"]


def test_masks_are_kept_of_one_seed_and_sparsity_and_have_its_zeros():
    table = results.frame("digits/criteria").set_index("key")
    masks = results.masks("digits/criteria")
    wanted = table[(table["sparsity"] == 0.9) & (table["seed"] == 0)]
    assert list(masks) == list(wanted.index) and len(masks) == 8
    for key, found in masks.items():
        whole = torch.cat([mask.flatten() for mask in found.values()])
        assert whole.dtype == torch.bool and 1 - whole.float().mean().item() == pytest.approx(table.loc[key, "weights"], abs=1e-4)
    with pytest.raises(Invalid, match="no masks are kept of 'digits/methods'"):
        results.masks("digits/methods")


@named
def test_a_figure_can_be_drawn_of_them(name):
    table = results.frame(name)
    names = {trace.name.split(",")[0] for trace in plots.robustness_sparsity(table).data}
    assert names >= set(table["label"])


@pytest.mark.slow
def test_writing_makes_table_and_masks_of_a_sweep_file_and_a_second_time_computes_nothing(tmp_path):
    (tmp_path / "small.toml").write_text(
        'attacks = "pgd"\nn = 16\n[[recipes]]\npipeline = "after"\nsparsity = [0.5, 0.9]\nbudget = "tiny"\nseed = [0, 1]\n'
    )
    options = {"workers": 1, "store": tmp_path / "store"}
    assert results.write(tmp_path / "small.toml", {"seed": 1}, **options) == 4
    first = (tmp_path / "small.csv").read_bytes()
    rows = list(csv.DictReader(io.StringIO(first.decode())))
    assert [json.loads(row["recipe"])["seed"] for row in rows] == [0, 1, 0, 1] and {row["n"] for row in rows} == {"16"}
    from safetensors.torch import load_file

    masks = load_file(tmp_path / "small-masks.safetensors")
    assert {path.split("/")[0] for path in masks} == {row["key"] for row in rows if row["seed"] == "1"}
    results.write(tmp_path / "small.toml", **options)
    assert (tmp_path / "small.csv").read_bytes() == first


@pytest.mark.slow
def test_a_failed_run_leaves_the_table_as_it_was(tmp_path):
    (tmp_path / "bad.toml").write_text(
        'n = 16\n[[recipes]]\npipeline = "after"\nstructure = "filters"\nsparsity = 0.999\nbudget = "tiny"\n'
    )
    (tmp_path / "bad.csv").write_text("as it was")
    with pytest.raises(Invalid, match=r"1 runs of bad\.toml failed"):
        results.write(tmp_path / "bad.toml", workers=1, store=tmp_path / "store")
    assert (tmp_path / "bad.csv").read_text() == "as it was"


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(Invalid, match="digits/criteria"):
        apnb.results.frame("digits/criterion")
