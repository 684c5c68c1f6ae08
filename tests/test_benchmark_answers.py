"""What the notebook on the benchmark says about the published table, computed a second time from the files with plain Python.

Nothing of `apnb.benchmark` or pandas is used for the second computation: rows come from the csv module, words from the JSON file,
ranks, correlations and permutations are written out here.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter, defaultdict
from itertools import combinations, permutations
from pathlib import Path
from statistics import fmean

import pytest

from apnb import benchmark, taxonomy
from apnb.errors import Invalid

nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).resolve().parent.parent
with (ROOT / "data" / "leaderboard.csv").open(encoding="utf-8") as file:
    ROWS = [
        dict(r, clean=float(r["clean"]), robust=float(r["robust"]), sparsity=float(r["sparsity"])) for r in csv.DictReader(file)
    ]
METHODS = {m["key"]: m for m in json.loads((ROOT / "data" / "taxonomy.json").read_text("utf-8"))["methods"]}
NAMES = {key: m["name"] for key, m in METHODS.items()}
TABLE = ("data", "structure_group", "network")
TRAITS = ("pipeline", "locality", "criterion")
ENDS = {"unstructured": (0.9, 0.99), "structured": (0.5, 0.9)}
MARKED = {"unstructured": 3, "structured": 1}


def column_of(row: dict) -> tuple:
    return (*(row[c] for c in TABLE), row["sparsity"])


def grouped(rows, key) -> dict:
    found = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return dict(found)


def half(group: str) -> list[dict]:
    return [r for r in ROWS if r["structure_group"] == group]


US, S = half("unstructured"), half("structured")
BOARD = {(column_of(r), r["method"]): r for r in ROWS}
COLUMNS = grouped(ROWS, column_of)


def rank(row: dict, rows: list[dict]) -> int:
    return 1 + sum(o["robust"] > row["robust"] for o in rows if column_of(o) == column_of(row))


def word(method: str, trait: str) -> str:
    given = METHODS[method][trait]
    (one,) = [given] if isinstance(given, str) else given
    return one


def spearman(xs: list[float], ys: list[float]) -> float:
    """Pearson's correlation of mid-ranks."""

    def mid(values):
        return [sum(o < v for o in values) + (sum(o == v for o in values) + 1) / 2 for v in values]

    return pearson(mid(xs), mid(ys))


def pearson(xs: list[float], ys: list[float]) -> float:
    a, b = fmean(xs), fmean(ys)
    up = sum((x - a) * (y - b) for x, y in zip(xs, ys, strict=True))
    return up / math.sqrt(sum((x - a) ** 2 for x in xs) * sum((y - b) ** 2 for y in ys))


def frame(rows: list[dict]):
    """The same rows as the package has them."""
    keys = {(column_of(r), r["method"]) for r in rows}
    board = taxonomy.leaderboard()
    return board[[(column_of(r), r["method"]) in keys for r in board.to_dict("records")]]


# --- the second computation ------------------------------------------------------------------------------------------------------


def podium(rows) -> dict[str, tuple[int, int, int]]:
    places = {m: [rank(r, rows) for r in some] for m, some in grouped(rows, lambda r: r["method"]).items()}
    return {m: (sum(p == 1 for p in ps), sum(p <= 3 for p in ps), len(ps)) for m, ps in places.items()}


def mean_ranks(rows) -> dict[str, float]:
    columns = {column_of(r) for r in rows}
    by = grouped(rows, lambda r: r["method"])
    full = [r for m in by if len(by[m]) == len(columns) for r in by[m]]
    return {m: fmean(rank(r, full) for r in some) for m, some in grouped(full, lambda r: r["method"]).items()}


def traits(rows, trait) -> dict[str, tuple]:
    top = [r for r in rows if rank(r, rows) <= 3]
    found = {}
    for w, some in grouped(rows, lambda r: word(r["method"], trait)).items():
        share = sum(word(r["method"], trait) == w for r in top) / len(top)
        clean, robust = fmean(r["clean"] for r in some), fmean(r["robust"] for r in some)
        found[w] = len({r["method"] for r in some}), len(some), clean, robust, len(some) / len(rows), share
    return found


def levels(rows) -> dict[str, float]:
    middle = {c: fmean(r["robust"] for r in some) for c, some in grouped(rows, column_of).items()}
    return {
        m: fmean(r["robust"] - middle[column_of(r)] for r in some) for m, some in grouped(rows, lambda r: r["method"]).items()
    }


def deals(counts: dict[str, int], n: int):
    """All different ways to write n words of which each is used as often as counted: one word after the other."""
    if n == 0:
        yield ()
    for w in [w for w in counts if counts[w]]:
        for rest in deals({**counts, w: counts[w] - 1}, n - 1):
            yield (w, *rest)


def gap(values, words) -> float:
    means = [fmean(v for v, w in zip(values, words, strict=True) if w == one) for one in set(words)]
    return max(means) - min(means)


def by_chance(rows, trait) -> tuple[float, float, int]:
    found = levels(rows)
    values, words = list(found.values()), [word(m, trait) for m in found]
    real = gap(values, words)
    dealt = [gap(values, w) for w in deals(dict(Counter(words)), len(words))]
    return real, sum(g >= real - 1e-9 for g in dealt) / len(dealt), len(dealt)


def steps() -> list[tuple]:
    """(row before, row after) for neighbours in sparsity."""
    after = {0.5: 0.75, 0.75: 0.9, 0.9: 0.95, 0.95: 0.99}
    found = []
    for (column, method), row in BOARD.items():
        if (row["structure_group"] == "unstructured") == (row["sparsity"] >= 0.9):
            found.append((row, BOARD.get(((*column[:3], after.get(row["sparsity"])), method))))
    return [(a, b) for a, b in found if b]


def falls(group: str) -> list[tuple]:
    low, high = ENDS[group]
    found = [(r, BOARD.get(((*column_of(r)[:3], high), r["method"]))) for r in half(group) if r["sparsity"] == low]
    return [(a, b) for a, b in found if b]


def swapped(name: str, first: str, second: str) -> list[tuple]:
    """(row, its counterpart) where one word of the column is exchanged."""
    at = TABLE.index(name)
    found = []
    for (column, method), row in BOARD.items():
        if column[at] == first and (other := BOARD.get(((*column[:at], second, *column[at + 1 :]), method))):
            found.append((row, other))
    return found


def leads() -> dict[tuple, tuple]:
    """Column -> first, second, gap and two standard errors in points, number of methods within the bound of the first."""

    def bound(p, q):
        return 2 * 100 * math.sqrt((p / 100 * (1 - p / 100) + q / 100 * (1 - q / 100)) / 10_000)

    found = {}
    for column, some in COLUMNS.items():
        a, b, *_ = ordered = sorted(some, key=lambda r: -r["robust"])
        close = sum(a["robust"] - r["robust"] <= bound(a["robust"], r["robust"]) for r in ordered)
        found[column] = a["method"], b["method"], a["robust"] - b["robust"], bound(a["robust"], b["robust"]), close
    return found


def fronts() -> dict[tuple, set[str]]:
    def better(o, r):
        return o["clean"] >= r["clean"] and o["robust"] >= r["robust"] and (o["clean"], o["robust"]) != (r["clean"], r["robust"])

    return {c: {r["method"] for r in some if not any(better(o, r) for o in some)} for c, some in COLUMNS.items()}


def misprinted() -> set[tuple]:
    return {k for k, r in BOARD.items() if (r["bold"] == "true") != (rank(r, ROWS) <= MARKED[r["structure_group"]])}


# --- the package ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [US, S, ROWS], ids=["unstructured", "structured", "all"])
def test_first_and_top_places_are_counted_with_the_columns_they_were_sought_in(rows):
    found = benchmark.podium(frame(rows))
    assert {m: tuple(map(int, counts)) for m, *counts in found.itertuples()} == podium(rows)
    assert list(found["first"]) == sorted(found["first"], reverse=True)


@pytest.mark.parametrize("rows", [US, S], ids=["unstructured", "structured"])
def test_only_methods_with_every_column_have_a_mean_rank_and_are_ranked_among_themselves(rows):
    found = benchmark.mean_ranks(frame(rows))
    assert dict(found) == pytest.approx(mean_ranks(rows)) and list(found) == sorted(found)
    assert benchmark.complete(frame(rows)) == sorted(found.index)


@pytest.mark.parametrize("trait", TRAITS)
def test_traits_are_means_over_rows_with_the_number_of_methods_behind_them(trait):
    found = benchmark.traits(trait)
    assert {w: tuple(v) for w, *v in found.itertuples()} == {w: pytest.approx(v) for w, v in traits(US, trait).items()}
    assert found["share_of_rows"].sum() == pytest.approx(1) and found["share_of_top"].sum() == pytest.approx(1)


@pytest.mark.parametrize("trait", TRAITS)
def test_the_chance_of_a_gap_is_that_of_writing_out_every_deal_of_the_words(trait):
    for rows in (US, [r for r in US if r["data"] == "cifar10"]):
        found = benchmark.gap_by_chance(trait, frame(rows))
        assert (found["gap"], found["share"], found["ways"]) == pytest.approx(by_chance(rows, trait)) and found["methods"] == 10
    assert dict(benchmark.levels(frame(US))) == pytest.approx(levels(US))


def test_a_word_that_explains_everything_is_rare_and_one_that_explains_nothing_is_common():
    rows = frame([r for r in US if column_of(r) == ("cifar10", "unstructured", "resnet18", 0.9)]).copy()
    rows["robust"] = [50.0 if word(m, "locality") == "global" else 10.0 for m in rows["method"]]
    assert benchmark.gap_by_chance("locality", rows) == {"gap": 40, "share": 1 / 210, "ways": 210, "methods": 10}
    rows["robust"] = 30.0
    assert benchmark.gap_by_chance("locality", rows)["share"] == 1


def test_the_deals_are_all_different_arrangements():
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    expected = sorted({(fmean(p[:2]), fmean(p[2:4]), p[4]) for p in permutations(values)})
    assert sorted(tuple(m) for m in benchmark._deals(tuple(range(5)), [2, 2, 1], values)) == expected


def test_steps_and_falls_are_the_pairs_of_one_method_in_one_table():
    found = benchmark.steps()
    assert len(found) == len(steps())
    expected = {
        (column_of(a), a["method"]): (b["sparsity"], b["clean"] - a["clean"], b["robust"] - a["robust"]) for a, b in steps()
    }
    assert {
        ((*(getattr(r, c) for c in TABLE), r.sparsity), r.method): (r.second, r.clean, r.robust) for r in found.itertuples()
    } == {k: pytest.approx(v) for k, v in expected.items()}
    for group, ends in ENDS.items():
        some = benchmark.falls(frame(half(group)))
        assert set(zip(some["first"], some["second"], strict=True)) == {ends}
        assert sorted(some["robust"]) == pytest.approx(sorted(b["robust"] - a["robust"] for a, b in falls(group)))
        assert sorted(some["from_robust"]) == sorted(a["robust"] for a, _ in falls(group))


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [("network", "resnet18", "vgg16"), ("data", "cifar10", "svhn"), ("structure_group", "structured", "unstructured")],
)
def test_changes_compare_a_method_with_itself_where_one_word_differs(name, first, second):
    found = benchmark.changes(name)
    expected = {(column_of(a), a["method"]): b["robust"] - a["robust"] for a, b in swapped(name, first, second)}
    assert {((*(getattr(r, c) for c in TABLE), r.sparsity), r.method): r.robust for r in found.itertuples()} == pytest.approx(
        expected
    )
    assert set(found["first"]) == {first} and set(found["second"]) == {second}


def test_first_and_second_are_apart_only_beyond_two_standard_errors_of_independent_proportions():
    found = {(*(getattr(r, c) for c in TABLE), r.sparsity): r for r in benchmark.separable().itertuples()}
    assert found.keys() == leads().keys()
    for column, (first, second, gap, bound, close) in leads().items():
        r = found[column]
        assert (r.first, r.second, r.close) == (first, second, close)
        assert (r.gap, r.bound) == pytest.approx((gap, bound)) and r.apart == (gap > bound)


def test_misprinted_are_the_rows_whose_bold_mark_breaks_the_rule():
    found = benchmark.misprinted().to_dict("records")
    assert {(column_of(r), r["method"]) for r in found} == misprinted() and len(found) == 4


def test_what_cannot_be_compared_is_refused_in_a_sentence():
    with pytest.raises(Invalid, match="no trait 'structure' to compare by; choose pipeline"):
        benchmark.traits("structure")
    with pytest.raises(Invalid, match="no column 'method' to change; choose data"):
        benchmark.changes("method")
    one = frame([r for r in US if r["method"] in ("harp", "mad")])
    with pytest.raises(Invalid, match="all methods have the same word for pipeline"):
        benchmark.gap_by_chance("pipeline", one)
    several = one.assign(method="bcsp")
    with pytest.raises(Invalid, match="bcsp has 2 words for locality"):
        benchmark.traits("locality", several)
    for ask in (benchmark.podium, benchmark.mean_ranks, benchmark.levels, benchmark.steps, benchmark.separable):
        with pytest.raises(Invalid, match="lack the column 'robust'"):
            ask(taxonomy.leaderboard().drop(columns="robust"))


# --- the notebook -----------------------------------------------------------------------------------------------------------------


def printed(tag: str) -> str:
    """What the cell with this tag wrote in the executed notebook."""
    notebook = nbformat.read(ROOT / "notebooks" / "07_benchmark.ipynb", 4)
    (cell,) = [c for c in notebook.cells if tag in c.metadata.get("tags", ())]
    return "".join(o.text for o in cell.outputs if o.output_type == "stream")


def table(text: str) -> dict[str, list[float]]:
    """First word of a line -> the numbers after it, for lines that are a word and numbers."""
    found = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"(\S+)((?:\s+[-+]?[\d.]+)+)\s*", line):
            found[match[1]] = [float(n) for n in match[2].split()]
    return found


def parts(text: str, *heads: str) -> list[str]:
    """The text between these beginnings of lines."""
    cuts = [re.search(rf"^{re.escape(h)}", text, re.MULTILINE).start() for h in heads]
    return [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def said(found: dict[str, list[float]], expected: dict, digits: int = 2) -> None:
    """Assert that a table printed with so many digits is this one, in both directions."""
    assert found.keys() == expected.keys()
    for key, numbers in expected.items():
        numbers = numbers if isinstance(numbers, list | tuple) else [numbers]
        assert found[key] == pytest.approx(list(numbers), abs=0.5001 * 10**-digits), key


def named(found: dict) -> dict:
    return {NAMES[m]: v for m, v in found.items()}


def test_answer_0_counts_the_table():
    text = printed("answer-0")
    assert (
        f"{len(ROWS)} rows in {len(COLUMNS)} columns, of {len({r['method'] for r in ROWS})} methods among the {len(METHODS)}"
        in text
    )
    counts = [int(n) for n in re.findall(r"structured +(\d+)$", text, re.MULTILINE)]
    assert sorted(counts) == sorted(Counter((r["data"], r["structure_group"]) for r in ROWS).values())
    assert f"more robust than clean accuracy: {sum(r['robust'] > r['clean'] for r in ROWS)}\n" in text
    assert f"{8 / 255:.5f}" in text and "10000" in text


def test_answer_1_names_the_winners():
    for text, rows in zip(parts(printed("answer-1"), "unstructured", "structured"), (US, S), strict=True):
        said(table(text), named(podium(rows)), 0)
    for text, rows in zip(parts(printed("answer-1-ranks"), "unstructured", "structured"), (US, S), strict=True):
        said(table(text), named(mean_ranks(rows)))


def test_answer_2_tells_traits_and_what_chance_would_do():
    for text, trait in zip(parts(printed("answer-2"), *TRAITS), TRAITS, strict=True):
        said(table(text), traits(US, trait), 3)
    found = re.findall(
        r"^(.+), (\w+): gap ([\d.]+) points, .* in ([\d.]+)% of (\d+) deals$", printed("answer-2-chance"), re.MULTILINE
    )
    assert len(found) == 6
    for where, trait, gap_, share, ways in found:
        rows = US if where.startswith("all") else [r for r in US if r["data"] == "cifar10"]
        real, chance, n = by_chance(rows, trait)
        assert (float(gap_), float(share), int(ways)) == (
            pytest.approx(real, abs=0.0051),
            pytest.approx(100 * chance, abs=0.051),
            n,
        )


def test_answer_3_tells_what_sparsity_costs():
    for text, group in zip(parts(printed("answer-3"), "unstructured", "structured"), ENDS, strict=True):
        by = grouped(falls(group), lambda pair: pair[0]["method"])
        said(
            {k: v for k, v in table(text).items() if len(v) == 2},
            named({m: (fmean(b["robust"] - a["robust"] for a, b in some), fmean(100 * (b["robust"] / a["robust"] - 1) for a, b in some))
                   for m, some in by.items()}),
        )  # fmt: skip
        n, robust, clean = re.search(r"all (\d+) pairs: robust (-[\d.]+), clean (-[\d.]+)", text).groups()
        pairs = falls(group)
        assert int(n) == len(pairs)
        for told, what in ((robust, "robust"), (clean, "clean")):
            assert float(told) == pytest.approx(fmean(b[what] - a[what] for a, b in pairs), abs=0.0051)
    found = re.findall(r"^(\w+), (\d+)% to (\d+)%: (-?[\d.]+) points over (\d+) pairs", printed("answer-3-steps"), re.MULTILINE)
    by = grouped(steps(), lambda p: (p[0]["structure_group"], f"{p[0]['sparsity']:.0%}", f"{p[1]['sparsity']:.0%}"))
    assert len(found) == len(by) == 4
    for group, a, b, mean, n in found:
        some = by[group, f"{a}%", f"{b}%"]
        assert (float(mean), int(n)) == (pytest.approx(fmean(y["robust"] - x["robust"] for x, y in some), abs=0.0051), len(some))


def test_answer_3_tells_the_spread_of_each_column():
    text = printed("answer-3-spread")
    spread = {c: max(r["robust"] for r in some) - min(r["robust"] for r in some) for c, some in COLUMNS.items()}
    found = re.findall(r"^(\w+) (\w+) (\w+) (\d+)%: ([\d.]+)$", text, re.MULTILINE)
    assert len(found) == len(spread)
    for *place, share, value in found:
        assert float(value) == pytest.approx(spread[(*place, int(share) / 100)], abs=0.0051)
    wider = [spread[(*t, ENDS[t[1]][1])] > spread[(*t, ENDS[t[1]][0])] for t in {c[:3] for c in spread}]
    assert f"lowest in {sum(wider)} of {len(wider)} tables" in text


def test_answer_4_counts_the_steps_up():
    text = printed("answer-4")
    rises = {(a["method"], *column_of(a)): b["robust"] - a["robust"] for a, b in steps() if b["robust"] > a["robust"]}
    large = {k: v for k, v in rises.items() if v > 2}
    assert f"rises in {len(rises)} of {len(steps())} steps, by more than 2 points in {len(large)}:" in text
    found = re.findall(r"^(\S+), (\w+) (\w+) (\w+), (\d+)% to \d+%: \+([\d.]+)$", text, re.MULTILINE)
    assert {(m, d, g, n, int(s) / 100): float(v) for m, d, g, n, s, v in found} == pytest.approx(
        {(NAMES[k[0]], *k[1:]): v for k, v in large.items()}, abs=0.0051
    )


def test_answer_5_tells_what_another_network_does():
    text = printed("answer-5")
    by = grouped(swapped("network", "resnet18", "vgg16"), lambda p: (p[0]["data"], p[0]["structure_group"]))
    for part, place in zip(parts(text, *(f"{d} {g}" for d, g in sorted(by))), sorted(by), strict=True):
        diffs = {
            m: [b["robust"] - a["robust"] for a, b in some] for m, some in grouped(by[place], lambda p: p[0]["method"]).items()
        }
        assert float(re.search(r"mean ([-+][\d.]+)", part)[1]) == pytest.approx(
            fmean(v for d in diffs.values() for v in d), abs=0.0051
        )
        said(table(part), named({m: fmean(v) for m, v in diffs.items()}))


def test_answer_5_tells_rank_correlations():
    found = re.findall(
        r"^(\w+), (\w+) at (\d+)%, (\w+) to (\w+): (-?[\d.]+) \((\d+) methods\)$", printed("answer-5-ranks"), re.MULTILINE
    )
    assert len(found) == 24
    for group, same, share, first, second, rho, n in found:
        one, two = ((d, group, w, int(share) / 100) for d, w in
                    ([(first, same), (second, same)] if first == "cifar10" else [(same, first), (same, second)]))  # fmt: skip
        shared = sorted({r["method"] for r in COLUMNS[one]} & {r["method"] for r in COLUMNS[two]})
        expected = spearman(*([BOARD[c, m]["robust"] for m in shared] for c in (one, two)))
        assert (float(rho), int(n)) == (pytest.approx(expected, abs=0.0051), len(shared))


def test_answer_6_tells_fronts_and_correlations():
    text = printed("answer-6")
    found = re.findall(r"^(\w+) (\w+): correlation .* over (\d+) rows (-?[\d.]+)$", text, re.MULTILINE)
    assert len(found) == 4
    for data, group, n, value in found:
        some = [r for r in ROWS if (r["data"], r["structure_group"]) == (data, group)]
        assert (int(n), float(value)) == (
            len(some),
            pytest.approx(pearson(*zip(*((r["clean"], r["robust"]) for r in some), strict=True)), abs=0.0051),
        )
    said(table(text), named(Counter(m for some in fronts().values() for m in some)), 0)
    assert f"one method on the front: {sum(len(f) == 1 for f in fronts().values())} of {len(COLUMNS)}" in text


def test_answer_7_counts_the_leads_within_their_error():
    text = printed("answer-7")
    found = leads().values()
    assert f"standard errors in {sum(gap <= bound for _, _, gap, bound, _ in found)} of {len(COLUMNS)} columns" in text
    assert f"{min(f[3] for f in found):.2f} to {max(f[3] for f in found):.2f} points" in text
    assert f"within the bound of the first: {sum(f[4] >= 3 for f in found)}\n" in text


def test_answer_8_compares_single_weights_with_structures():
    text = printed("answer-8")
    gains = {
        (a["method"], a["data"], a["network"]): b["robust"] - a["robust"]
        for a, b in swapped("structure_group", "structured", "unstructured")
    }
    mean, n = re.search(r"mean ([-+][\d.]+) points over (\d+) pairs", text).groups()
    assert (float(mean), int(n)) == (pytest.approx(fmean(gains.values()), abs=0.0051), len(gains))
    found = re.findall(r"^(\S+), (\w+) (\w+): ([-+][\d.]+)$", text, re.MULTILINE)
    assert {(m, d, w): float(v) for m, d, w, v in found} == pytest.approx(
        {(NAMES[k[0]], *k[1:]): v for k, v in gains.items()}, abs=0.0051
    )


def test_answer_9_tells_the_places_of_the_two_special_cases():
    found = re.findall(r"^(\w+), cifar10 (\w+) (\d+)%: robust ([\d.]+), place (\d+) of (\d+)$", printed("answer-9"), re.MULTILINE)
    assert len(found) == 12
    for name, network, share, robust, place, of in found:
        row = BOARD[("cifar10", "unstructured", network, int(share) / 100), name.lower()]
        assert (float(robust), int(place), int(of)) == (row["robust"], rank(row, US), len(COLUMNS[column_of(row)]))


def test_answer_10_finds_the_odd_values():
    text = printed("answer-10")
    same = {(column_of(a), a["method"]) for a, b in combinations(ROWS, 2)
            if column_of(a)[:3] == column_of(b)[:3] and (a["method"], a["clean"]) == (b["method"], b["clean"])}  # fmt: skip
    twice = re.findall(r"accuracy twice: (\S+), (\w+) (\w+) (\w+) (\d+)%: ([\d.]+)", text)
    assert len(twice) == 2 * len(same) and {t[0] for t in twice} == {NAMES[m] for _, m in same}
    bold = re.findall(r"own rule: (\S+), (\w+) (\w+) (\w+) (\d+)%: ([\d.]+), bold (\w+)", text)
    assert {((d, g, n, int(s) / 100), m.lower()) for m, d, g, n, s, *_ in bold} == misprinted()
    with (ROOT / "data" / "leaderboard_history.csv").open(encoding="utf-8") as file:
        history = list(csv.DictReader(file))
    for what, n in Counter(r["change"] for r in history).items():
        assert f"{n} {what}" in text
    changed = {(r["robust_before"], r["robust_after"]) for r in history if r["change"] == "value"}
    found = re.findall(r"robust ([\d.]+) became ([\d.]+)", text)
    assert {(float(a), float(b)) for a, b in changed} == {(float(a), float(b)) for a, b in found} and len(found) == len(changed)
    gone = [float(r["robust_before"]) for r in history if r["change"] == "removed"]
    assert f"removed: {len(gone)} rows of RADMM, robust {min(gone):.2f} to {max(gone):.2f}" in text
