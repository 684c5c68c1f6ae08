"""The leaderboard asked again: fronts, ranks and their changes against computations of another kind, own results in its columns."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from functools import partial
from itertools import combinations

import pandas as pd
import pytest
from scipy.stats import spearmanr

import apnb
from apnb import benchmark, taxonomy
from apnb.errors import Invalid
from apnb.paths import data_path
from tests.helpers import own_row

# Column -> method -> (clean, robust), read without pandas and without apnb.taxonomy.
BOARD: dict[tuple, dict[str, tuple[float, float]]] = defaultdict(dict)
with data_path("leaderboard.csv").open(encoding="utf-8") as file:
    for line in csv.DictReader(file):
        column = (line["data"], line["structure_group"], line["network"], float(line["sparsity"]))
        BOARD[column][line["method"]] = float(line["clean"]), float(line["robust"])


def fronts(rows) -> dict[tuple, set[str]]:
    found = defaultdict(set)
    for row in benchmark.pareto(rows).to_dict("records"):
        found[tuple(row[c] for c in benchmark.COLUMN)].add(row["method"])
    return found


def test_a_front_holds_exactly_the_rows_that_no_other_row_of_the_column_dominates():
    def dominated(mine, methods):
        return any(a >= mine[0] and b >= mine[1] and (a, b) != mine for a, b in methods.values())

    expected = {column: {m for m, mine in methods.items() if not dominated(mine, methods)} for column, methods in BOARD.items()}
    assert fronts(None) == expected and len(expected) == 24


def test_the_fronts_are_those_of_the_first_analysis():
    found = fronts(None)
    seen = Counter(m for methods in found.values() for m in methods)
    assert seen == {"harp": 18, "twinrep": 11, "flyingbird": 9, "pwoa": 6, "hydra": 2, "robustbird": 2}
    assert sum(len(methods) == 1 for methods in found.values()) == 7
    assert found["svhn", "unstructured", "resnet18", 0.99] == {"harp", "robustbird", "twinrep", "flyingbird"}


def test_equal_rows_are_on_the_front_together_and_half_better_rows_are_not():
    column = dict(zip(benchmark.COLUMN, ("digits", "unstructured", "cnn", 0.9), strict=True))
    pairs = [(80, 40), (80, 40), (80, 39), (79, 40), (70, 41), (90, 10)]
    rows = benchmark._frame([{**column, "clean": c, "robust": r} for c, r in pairs])
    assert list(benchmark.pareto(rows).index) == [5, 0, 1, 4]


def test_a_rank_is_one_more_than_the_number_of_better_methods():
    table = benchmark.ranks()
    for row in table.to_dict("records"):
        methods = BOARD[tuple(row[c] for c in benchmark.COLUMN)]
        assert row["rank"] == 1 + sum(robust > row["robust"] for _, robust in methods.values())
        assert row["of"] == len(methods)
    assert len(table) == 154


def test_agreement_is_the_rank_correlation_that_scipy_finds_on_the_shared_methods():
    expected = {}
    for one, two in combinations(sorted(BOARD), 2):
        differ = [i for i in range(4) if one[i] != two[i]]
        if differ in ([0], [2]):
            shared = sorted(BOARD[one].keys() & BOARD[two].keys())
            rho = spearmanr([BOARD[one][m][1] for m in shared], [BOARD[two][m][1] for m in shared]).statistic
            expected[benchmark.COLUMN[differ[0]], one, two[differ[0]]] = len(shared), rho
    found = {
        (row["between"], tuple(row[c] for c in benchmark.COLUMN), row["second"]): (row["methods"], row["spearman"])
        for row in benchmark.agreement().to_dict("records")
    }
    assert found.keys() == expected.keys() and len(found) == 24
    for key, (methods, rho) in expected.items():
        assert found[key] == (methods, pytest.approx(rho)), key
    first = {k: (n, round(r, 2)) for k, (n, r) in found.items() if k[0] == "data" and k[1][1:3] == ("unstructured", "resnet18")}
    assert sorted(first.values()) == [(8, 0.05), (8, 0.52), (8, 0.86)]  # the first analysis


def test_places_are_lost_and_gained_in_equal_number_where_none_are_shared():
    moves = benchmark.moves()
    pair = ["between", *benchmark.COLUMN, "first", "second"]
    assert (moves.groupby(pair)["change"].sum() == 0).all()
    one = moves[(moves["between"] == "network") & (moves["data"] == "cifar10") & (moves["sparsity"] == 0.9)]
    pwoa = one[(one["structure_group"] == "unstructured") & (one["method"] == "pwoa")].iloc[0]
    assert (pwoa["rank_first"], pwoa["rank_second"], pwoa["change"]) == (3, 9, -6)


def test_changes_are_between_one_network_of_a_method_each():
    twice = pd.concat([taxonomy.leaderboard(), taxonomy.leaderboard().iloc[[3]]])
    for function in (
        benchmark.moves,
        benchmark.agreement,
        partial(benchmark.changes, "network"),
        benchmark.steps,
        benchmark.falls,
    ):
        with pytest.raises(Invalid, match=r"stands twice in one column \(.*, as two seeds do; leave one row"):
            function(twice)


def test_rows_without_the_needed_columns_are_refused():
    for ask in (benchmark.pareto, benchmark.ranks, benchmark.agreement):
        with pytest.raises(Invalid, match="lack the column 'robust'"):
            ask(taxonomy.leaderboard().drop(columns="robust"))


def test_published_rows_carry_how_they_were_made():
    rows = benchmark.published()
    assert list(rows) == list(benchmark.ROW) and len(rows) == 154
    assert set(rows["n"]) == {10_000} and set(rows["eps"]) == {0.031} and rows["comparable"].all()
    assert ((rows["low"] < rows["robust"]) & (rows["robust"] < rows["high"])).all() and (rows["high"] - rows["low"]).max() < 2


# --- own results -----------------------------------------------------------------------------------------------------------------


def test_own_rows_come_in_the_leaderboards_columns_and_in_per_cent():
    (mine,) = benchmark.overlay([own_row(structure="channels")]).to_dict("records")
    assert list(mine) == list(benchmark.ROW)
    assert (mine["clean"], mine["robust"], mine["low"], mine["high"], mine["n"]) == (80, 40, 35, 45, 400)
    assert mine["structure_group"] == "structured" and mine["comparable"] and not mine["why"]
    assert benchmark.overlay([own_row(eps=0.031)])["comparable"].all()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"eps": 0.1}, "eps 0.1, published 0.031"),
        ({"attacks": "pgd"}, "attacks 'pgd', published AutoAttack"),
        ({"data": "digits"}, "data digits, published cifar10 and svhn"),
        ({"network": "cnn"}, "network cnn, published resnet18 and vgg16"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_row_made_another_way_is_marked_and_says_why(other, said):
    (mine,) = benchmark.overlay([own_row(**other)]).to_dict("records")
    assert not mine["comparable"] and mine["why"] == said


def test_of_evaluations_that_differ_in_n_only_the_largest_counts():
    rows = benchmark.overlay(
        [own_row(n=100), own_row(n=400, robust=0.39), own_row(n=200), own_row(attacks="pgd"), own_row(robust=None)]
    )
    assert sorted(zip(rows["attacks"], rows["n"], strict=True)) == [("pgd", 400), ("standard", 400)]
    assert rows["robust"].min() == 39


def test_a_store_a_sweep_a_table_and_a_stored_evaluation_give_the_same_numbers(tmp_path):
    recipe = apnb.Recipe(pipeline="after", sparsity=0.5, budget="tiny")
    runs = apnb.sweep([recipe], store=tmp_path, attacks="pgd", n=16)
    tables = [benchmark.overlay(given) for given in (runs, runs.frame(), tmp_path, str(tmp_path), apnb.Store(tmp_path))]
    for table in tables:
        assert table.equals(tables[0]) and len(table) == 1
    told = {"network": "cnn", "sparsity": 0.5, "structure": "weights"}
    own = benchmark.overlay(evaluations={"alone": runs[0].evaluation, "told": {"evaluation": runs[0].evaluation, **told}})
    for column in ("clean", "robust", "low", "high", "n", "eps", "attacks", "data"):
        assert list(own[column]) == [tables[0][column].iloc[0]] * 2
    assert "network not told" in own["why"].iloc[0] and own["sparsity"].isna().tolist() == [True, False]


def test_anything_else_is_refused_with_a_sentence():
    with pytest.raises(Invalid, match="runs are given as"):
        benchmark.overlay(3)
    with pytest.raises(Invalid, match="lack the column 'attacks'"):
        benchmark.overlay([{k: v for k, v in own_row().items() if k != "attacks"}])
    with pytest.raises(Invalid, match="the evaluation 'x' is a float"):
        benchmark.overlay(evaluations={"x": 0.4})
    with pytest.raises(Invalid, match="as a mapping"):
        benchmark.overlay(evaluations=[0.4])


def test_own_rows_are_ranked_by_their_label_and_only_where_they_can_be_compared():
    rows = benchmark.overlay(
        [own_row(), own_row(key="k2", label="better", robust=0.5), own_row(key="k3", label="otherwise", robust=0.9, eps=0.1)]
    )
    ranks = benchmark.ranks(rows).set_index("method")["rank"]
    assert dict(ranks) == {"better": 1, "mine": 2}
    assert benchmark.moves(rows).empty  # one network and one data set: nothing to compare
