"""The survey's leaderboard, asked again: fronts, ranks, traits, losses, error bars, and a reader's own results beside it.

A *column* is one column of the published tables: a data set, a structure group, a network and a sparsity. Accuracies are in per
cent. Nothing is compared across columns except ranks, among the methods that both columns have.

Published: robust accuracy against AutoAttack, l_inf, with an eps written as 0.031, on the first 10,000 test images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apnb import taxonomy
from apnb.errors import Invalid
from apnb.taxonomy import Group

if TYPE_CHECKING:
    import pandas as pd

COLUMN = ("data", "structure_group", "network", "sparsity")
"""What makes a column of the published tables."""
EPS, ATTACKS, IMAGES = 0.031, "standard", 10_000
"""How the published numbers were made; ATTACKS is a mode of `apnb.evaluate`."""
TRAITS = ("pipeline", "schedule", "locality", "criterion")
"""By what methods can be compared inside a column: all but the structure, which is what a column is about."""
EPS_TOLERANCE = 0.0005
"""8/255 = 0.0314 and the published 0.031 are taken for the same eps."""
SAID = {"cifar10": "CIFAR-10", "svhn": "SVHN", "resnet18": "ResNet18", "vgg16": "VGG16"}
"""Data sets and networks as they are printed."""
PROTOCOL = "AutoAttack, eps 0.031, 10 000 images"
ROW = (
    "source", "label", "method", *COLUMN, "pipeline", "criterion", "clean", "robust", "low", "high", "n", "eps", "attacks",
    "comparable", "why",
)  # fmt: skip
"""Columns of `published` and `overlay`."""


def published() -> pd.DataFrame:
    """The 154 published results with the columns `ROW`.

    ``low`` and ``high`` are Wilson's 95 % interval for the choice of 10,000 images, computed here from the published number; the
    survey prints none.
    """
    from apnb.verdicts import wilson

    rows = []
    for given in taxonomy.leaderboard().to_dict("records"):
        m = taxonomy.method(given["method"])
        low, high = wilson(round(given["robust"] / 100 * IMAGES), IMAGES)
        rows.append(
            {k: given[k] for k in (*COLUMN, "method", "clean", "robust")}
            | {"source": "published", "label": m.name, "pipeline": str(m.pipeline), "criterion": str(m.criterion)}
            | {"low": 100 * low, "high": 100 * high, "n": IMAGES, "eps": EPS, "attacks": ATTACKS, "comparable": True, "why": ""}
        )
    return _frame(rows)


def _frame(rows: list[dict]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows, columns=list(ROW))


def _given(rows: pd.DataFrame | None, *needed: str) -> pd.DataFrame:
    if rows is None:
        return taxonomy.leaderboard()
    if missing := [c for c in (*COLUMN, *needed) if c not in rows]:
        raise Invalid(
            f"the rows lack the column {missing[0]!r}; give rows of apnb.taxonomy.leaderboard() or of benchmark.overlay()"
        )
    if "comparable" in rows:  # of one's own: what was measured otherwise is in no rank, and its label stands for the method
        rows = rows[rows["comparable"].astype(bool)]
        rows = rows.assign(method=rows["method"].where(rows["method"] != "", rows["label"]))
    return rows


def _single(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, if every method stands in a column once: changes are between numbers of one network each."""
    twice = rows[rows.duplicated([*COLUMN, "method"])]
    if len(twice):
        row = twice.iloc[0]
        raise Invalid(
            f"{row['method']!r} stands twice in one column ({', '.join(str(row[c]) for c in COLUMN)}), as two seeds do; "
            "leave one row of each, or give their mean"
        )
    return rows


def pareto(rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """The rows on the clean-robust front of their column: no other row of it is at least as good in both and better in one.

    Args:
        rows: rows with `COLUMN`, ``clean`` and ``robust``; default: the leaderboard. Equal rows are on the front together.

    Returns:
        Those of ``rows``, with their index; in each column from the highest clean accuracy to the lowest.

    Raises:
        Invalid: a column is missing.
    """
    rows = _given(rows, "clean", "robust")
    front = []
    for _, column in rows.groupby(list(COLUMN), sort=False):
        best, at = float("-inf"), None
        for index, row in column.sort_values(["clean", "robust"], ascending=False).iterrows():
            if row["robust"] > best or (row["clean"], row["robust"]) == at:
                best, at = row["robust"], (row["clean"], row["robust"])
                front.append(index)
    return rows.loc[front]


def ranks(rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """The place of each method in each column by robust accuracy, 1 the best; equal numbers share the better place.

    Returns:
        Columns: `COLUMN`, method, robust, rank, of (how many methods the column has).

    Raises:
        Invalid: a column is missing.
    """
    found = _given(rows, "method", "robust")[[*COLUMN, "method", "robust"]].copy()
    columns = found.groupby(list(COLUMN))["robust"]
    found["rank"] = columns.rank(ascending=False, method="min").astype(int)
    found["of"] = columns.transform("size")
    return found


def moves(rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """How places change when only the network, or only the data set, is another.

    Both columns are ranked among the methods that they share, so that a method which is absent from one moves nobody.

    Returns:
        One row a pair of columns and method. Columns: between (``network`` or ``data``), data, structure_group, network, sparsity
        (the first column's), first, second (the two words that differ, in alphabetical order), method, rank_first, rank_second,
        change (places gained from the first to the second; positive is better).

    Raises:
        Invalid: a column is missing, or a method stands twice in one.
    """
    import pandas as pd

    rows = _single(_given(rows, "method", "robust"))
    found = []
    for between in ("network", "data"):
        fixed = [c for c in COLUMN if c != between]
        for place, group in rows.groupby(fixed):
            table = group.pivot(index="method", columns=between, values="robust")
            for first, second in combinations(sorted(table), 2):
                both = table[[first, second]].dropna().rank(ascending=False, method="min").astype(int)
                found += [
                    {"between": between, **dict(zip(fixed, place, strict=True)), between: first, "first": first, "second": second}
                    | {"method": m, "rank_first": a, "rank_second": b, "change": a - b}
                    for m, a, b in both.itertuples()
                ]
    columns = ["between", *COLUMN, "first", "second", "method", "rank_first", "rank_second", "change"]
    return pd.DataFrame(found, columns=columns)


def agreement(rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """Spearman's correlation of the places in two columns that differ in the network only, or in the data set only.

    Returns:
        One row a pair of columns: between, `COLUMN` (the first column's), first, second, methods (how many both have), spearman
        (NaN for fewer than three methods or where all are equal).

    Raises:
        Invalid: a column is missing, or a method stands twice in one.
    """
    import pandas as pd

    pair = ["between", *COLUMN, "first", "second"]
    found = []
    for place, group in moves(rows).groupby(pair):
        spearman = group["rank_first"].rank().corr(group["rank_second"].rank()) if len(group) > 2 else float("nan")
        found.append({**dict(zip(pair, place, strict=True)), "methods": len(group), "spearman": spearman})
    return pd.DataFrame(found, columns=[*pair, "methods", "spearman"])


def complete(rows: pd.DataFrame | None = None) -> list[str]:
    """The methods that have a row in every column of ``rows``, in alphabetical order: only their averages can be compared.

    Raises:
        Invalid: a column is missing.
    """
    rows = _given(rows, "method")
    columns = len(rows[list(COLUMN)].drop_duplicates())
    return sorted(m for m, some in rows.groupby("method") if len(some[list(COLUMN)].drop_duplicates()) == columns)


def mean_ranks(rows: pd.DataFrame | None = None) -> pd.Series:
    """The mean place over all columns, of the methods that have a row in each of them and ranked among themselves; best first.

    Raises:
        Invalid: a column is missing.
    """
    rows = _given(rows, "method", "robust")
    places = ranks(rows[rows["method"].isin(complete(rows))])
    return places.groupby("method")["rank"].mean().sort_values(kind="stable")


def podium(rows: pd.DataFrame | None = None, places: int = 3) -> pd.DataFrame:
    """How often a method is first in its column, and how often among the first few.

    Returns:
        Indexed by method, from the most often first: first, top (at one of the first ``places``), columns (in how many it stands).

    Raises:
        Invalid: a column is missing.
    """
    found = ranks(rows)
    counted = found.assign(first=found["rank"] == 1, top=found["rank"] <= places, columns=True)
    counted = counted.groupby("method")[["first", "top", "columns"]].sum()
    return counted.sort_values(["first", "top"], ascending=False, kind="stable")


def _words(trait: str, rows: pd.DataFrame) -> pd.Series:
    """The survey's one word for each row's method; `Invalid` where a method has several, or for an unknown trait."""
    if trait not in TRAITS:
        raise Invalid(f"no trait {trait!r} to compare by; choose {', '.join(TRAITS)}")
    found = {m: taxonomy.cell_of(m)[trait] for m in rows["method"].unique()}
    if several := [m for m, words in found.items() if len(words) != 1]:
        raise Invalid(f"{several[0]} has {len(found[several[0]])} words for {trait}; leave its rows out")
    return rows["method"].map({m: str(words[0]) for m, words in found.items()})


def traits(trait: str, rows: pd.DataFrame | None = None, places: int = 3) -> pd.DataFrame:
    """What the methods that share a word reach, and how many they are.

    Args:
        trait: one of `TRAITS`. rows: default: the unstructured half of the leaderboard. places: what counts as the top of a column.

    Returns:
        Indexed by word: methods, rows, clean, robust (means over rows, in per cent), share_of_rows, share_of_top (of all places
        at the top, in [0, 1]).

    Raises:
        Invalid: an unknown trait, a method with several words for it, or a column is missing.
    """
    rows = _given(rows, "method", "clean", "robust")
    rows = rows[rows["structure_group"] == Group.unstructured]
    rows = rows.assign(word=_words(trait, rows), top=ranks(rows)["rank"] <= places)
    words = rows.groupby("word")
    return words.agg(
        methods=("method", "nunique"), rows=("method", "size"), clean=("clean", "mean"), robust=("robust", "mean")
    ).assign(share_of_rows=words.size() / len(rows), share_of_top=words["top"].sum() / rows["top"].sum())


def levels(rows: pd.DataFrame | None = None) -> pd.Series:
    """How far a method is above the others: robust accuracy minus the mean of its column, averaged over its columns, in points.

    Raises:
        Invalid: a column is missing.
    """
    rows = _given(rows, "method", "robust")
    above = rows["robust"] - rows.groupby(list(COLUMN))["robust"].transform("mean")
    return above.groupby(rows["method"]).mean().sort_values(ascending=False, kind="stable")


def gap_by_chance(trait: str, rows: pd.DataFrame | None = None) -> dict[str, float]:
    """How often words dealt out at random among the methods would be as far apart as the survey's words are: an exact test.

    Every method is one number, that of `levels`; the gap is the highest minus the lowest mean of a word.
    All ways to give each word to as many methods as it has are counted, the real one among them.

    Args:
        trait: one of `TRAITS`. rows: default: the unstructured half of the leaderboard.

    Returns:
        gap (in points), share (of the ways with at least that gap, in (0, 1]), ways, methods.

    Raises:
        Invalid: an unknown trait, a method with several words for it, fewer than two words, or a column is missing.
    """
    rows = _given(rows, "method", "robust")
    rows = rows[rows["structure_group"] == Group.unstructured]
    score = levels(rows).sort_index()
    words = _words(trait, rows).groupby(rows["method"]).first().sort_index()
    if words.nunique() < 2:
        raise Invalid(f"all methods have the same word for {trait}: there is nothing to compare")
    values, sizes = score.tolist(), words.value_counts().tolist()
    gap = _range(score.groupby(words).mean())
    gaps = [_range(means) for means in _deals(tuple(range(len(values))), sizes, values)]
    return {"gap": gap, "share": sum(g >= gap - 1e-9 for g in gaps) / len(gaps), "ways": len(gaps), "methods": len(values)}


def _range(values: Iterable[float]) -> float:
    values = list(values)
    return max(values) - min(values)


def _deals(left: tuple[int, ...], sizes: list[int], values: list[float]) -> Iterator[list[float]]:
    """The groups' means, for every way to deal the positions ``left`` into groups of these sizes."""
    if len(sizes) == 1:
        yield [sum(values[i] for i in left) / len(left)]
        return
    for chosen in combinations(left, sizes[0]):
        rest = tuple(i for i in left if i not in chosen)
        for means in _deals(rest, sizes[1:], values):
            yield [sum(values[i] for i in chosen) / sizes[0], *means]


def changes(between: str, rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """The same method in two columns that differ in one thing only: what it gains from the first to the second.

    Args:
        between: one of `COLUMN`: ``data``, ``structure_group``, ``network`` or ``sparsity``. rows: default: the leaderboard.

    Returns:
        One row a method and pair. Columns: `COLUMN` (of the first), first, second (the two words, in alphabetical or rising order),
        method, from_clean, from_robust (of the first, in per cent), clean, robust (second minus first, in points).

    Raises:
        Invalid: something else between, or a column is missing, or a method stands twice in one.
    """
    import pandas as pd

    if between not in COLUMN:
        raise Invalid(f"no column {between!r} to change; choose {', '.join(COLUMN)}")
    rows = _single(_given(rows, "method", "clean", "robust"))
    found = []
    for _, group in rows.groupby([*(c for c in COLUMN if c != between), "method"]):
        for a, b in combinations(group.sort_values(between).to_dict("records"), 2):
            found.append(
                {**{c: a[c] for c in COLUMN}, "first": a[between], "second": b[between], "method": a["method"]}
                | {"from_clean": a["clean"], "from_robust": a["robust"]}
                | {"clean": b["clean"] - a["clean"], "robust": b["robust"] - a["robust"]}
            )
    return pd.DataFrame(found, columns=[*COLUMN, "first", "second", "method", "from_clean", "from_robust", "clean", "robust"])


def steps(rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """`changes` in sparsity between neighbours: no other sparsity of the same tables lies between the two.

    Raises:
        Invalid: a column is missing, or a method stands twice in one.
    """
    rows = _given(rows, "method", "clean", "robust")
    known = {group: sorted(some["sparsity"].unique()) for group, some in rows.groupby("structure_group")}
    found = changes("sparsity", rows)
    pairs = {(group, *pair) for group, some in known.items() for pair in pairwise(some)}
    return found[[p in pairs for p in zip(found["structure_group"], found["first"], found["second"], strict=True)]]


def falls(rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """`changes` from the lowest to the highest sparsity of the tables: 90 to 99 % (unstructured) and 50 to 90 % (structured).

    Returns:
        As `changes`; a loss is negative. Only methods that have both ends.

    Raises:
        Invalid: a column is missing, or a method stands twice in one.
    """
    rows = _given(rows, "method", "clean", "robust")
    ends = {(group, some.min(), some.max()) for group, some in rows.groupby("structure_group")["sparsity"]}
    found = changes("sparsity", rows)
    return found[[p in ends for p in zip(found["structure_group"], found["first"], found["second"], strict=True)]]


def separable(rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """First and second of each column, and whether the choice of test images alone could have swapped them.

    With robust accuracies p and q on n images each, the standard error of a difference of two independent proportions is
    sqrt((p (1 - p) + q (1 - q)) / n). The published networks saw the same images, which makes the true error smaller if they
    fail on the same ones; the seeds of training are not in it at all.

    Returns:
        One row a column: `COLUMN`, first, second (methods), gap, bound (two standard errors; both in points), apart (gap above
        bound), close (how many methods, the first among them, are within the bound of the first). Columns of one method are left out.

    Raises:
        Invalid: a column is missing.
    """
    import pandas as pd

    rows = _given(rows, "method", "robust")
    found = []
    for place, column in rows.groupby(list(COLUMN), sort=False):
        ordered = column.sort_values("robust", ascending=False, kind="stable")
        if len(ordered) > 1:
            (p, q), names = ordered["robust"].iloc[:2] / 100, ordered["method"].iloc[:2]
            close = sum(100 * (p - r) <= 200 * _error(p, r) for r in ordered["robust"] / 100)
            found.append(
                {**dict(zip(COLUMN, place, strict=True)), "first": names.iloc[0], "second": names.iloc[1], "gap": 100 * (p - q)}
                | {"bound": 200 * _error(p, q), "apart": bool(p - q > 2 * _error(p, q)), "close": close}
            )
    return pd.DataFrame(found, columns=[*COLUMN, "first", "second", "gap", "bound", "apart", "close"])


def _error(p: float, q: float) -> float:
    return math.sqrt((p * (1 - p) + q * (1 - q)) / IMAGES)


def misprinted(rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """Rows whose bold mark breaks the source's own rule: the first three of an unstructured column, the first of a structured one.

    Args:
        rows: with the column ``bold``; default: the leaderboard.

    Raises:
        Invalid: a column is missing.
    """
    rows = _given(rows, "method", "robust", "bold")
    marked = rows["structure_group"].map({Group.unstructured: 3, Group.structured: 1})
    return rows[rows["bold"] != (ranks(rows)["rank"] <= marked)]


def overlay(runs: Any = None, evaluations: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Own results in the leaderboard's columns, in per cent, with interval, n, eps and attacks.

    Args:
        runs: a DataFrame or dicts with the columns of `apnb.store.ROW`, what `apnb.sweep` returns, a store, or a store's path.
            Rows without an evaluation are left out; of several evaluations of a run that differ only in n the largest counts.
        evaluations: label -> an `apnb.Evaluation` of a network of one's own, or a mapping with ``evaluation`` and any of
            ``network``, ``sparsity`` (share removed), ``structure``, ``pipeline``, ``criterion``: what an evaluation does not know.

    Returns:
        Columns `ROW`. ``comparable`` is False where another attack, eps, data set or network than the published was used, or where
        it is not known; ``why`` says which. Such a row is to be shown apart, never ranked with the others.

    Raises:
        Invalid: something else was given.
    """
    best: dict[tuple, Mapping] = {}
    for i, row in enumerate(_rows(runs)):
        key = (row.get("key", i), row["attacks"], row["eps"])
        if key not in best or row["n"] > best[key]["n"]:
            best[key] = row
    found = [_own("run", row) for row in best.values()]
    for label, given in _evaluations(evaluations).items():
        known = dict(given) if isinstance(given, Mapping) else {"evaluation": given}
        evaluation = known.pop("evaluation", None)
        if not hasattr(evaluation, "summary"):
            raise Invalid(f"the evaluation {label!r} is a {type(evaluation).__name__}; give what apnb.evaluate returned")
        if unknown := known.keys() - {"network", "sparsity", "structure", "pipeline", "criterion"}:
            raise Invalid(
                f"the evaluation {label!r} has {min(unknown)!r}; give network, sparsity, structure, pipeline or criterion"
            )
        found.append(
            _own("evaluation", {"label": label, "network": "", "sparsity": float("nan"), **evaluation.summary(), **known})
        )
    return _frame(found)


def _evaluations(given: Any) -> Mapping[str, Any]:
    if given is None or isinstance(given, Mapping):
        return given or {}
    raise Invalid(f"evaluations are given as a mapping from a label to an evaluation, got {type(given).__name__}")


def _rows(runs: Any) -> list[dict]:
    """Rows with an evaluation, of anything that holds runs."""
    import pandas as pd

    from apnb import sweeps
    from apnb.store import Store

    if runs is None:
        return []
    if isinstance(runs, str | Path | Store):
        runs = sweeps.table(runs)
    elif isinstance(runs, sweeps.Runs):
        runs = runs.frame()
    elif isinstance(runs, list | tuple) and all(isinstance(r, Mapping) for r in runs):
        runs = pd.DataFrame(list(runs)) if runs else sweeps.frame_of([])
    if not isinstance(runs, pd.DataFrame):
        raise Invalid(f"runs are given as a table, as rows, as a store or as its path, got {type(runs).__name__}")
    needed = ("label", "data", "network", "sparsity", "structure", "clean", "robust", "low", "high", "n", "attacks", "eps")
    if missing := [c for c in needed if c not in runs]:
        raise Invalid(f"the runs lack the column {missing[0]!r}; give the table of apnb.table() or of a sweep's frame()")
    return runs[runs["robust"].notna()].to_dict("records")


def _own(source: str, row: Mapping[str, Any]) -> dict[str, Any]:
    structure = row.get("structure", "")
    group = Group.unstructured if structure == "weights" else Group.structured if structure else ""
    why = _why(row)
    return {
        "source": source,
        "label": str(row["label"]),
        "method": "",
        **{k: row[k] for k in ("data", "network", "sparsity")},
        "structure_group": str(group),
        "pipeline": row.get("pipeline", ""),
        "criterion": row.get("criterion", ""),
        **{k: 100 * row[k] for k in ("clean", "robust", "low", "high")},
        "n": int(row["n"]),
        "eps": row["eps"],
        "attacks": row["attacks"],
        "comparable": not why,
        "why": "; ".join(why),
    }


def _why(row: Mapping[str, Any]) -> list[str]:
    """What keeps a row from being compared with the published ones."""
    board = taxonomy.leaderboard()
    why = []
    if abs(row["eps"] - EPS) > EPS_TOLERANCE:
        why.append(f"eps {row['eps']:.4g}, published {EPS}")
    if row["attacks"] != ATTACKS:
        why.append(f"attacks {row['attacks']!r}, published AutoAttack")
    for name in ("data", "network"):
        if row[name] not in set(board[name]):
            why.append(f"{name} {row[name] or 'not told'}, published {' and '.join(sorted(set(board[name])))}")
    return why
