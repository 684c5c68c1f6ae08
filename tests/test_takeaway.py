"""What is taken home can be used there; and the picture of a recipe shows what it does."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
import zipfile

import plotly.graph_objects as go
import pytest

import apnb
from apnb import plots, sweeps
from apnb.errors import Invalid
from apnb.estimate import stage_lengths
from apnb.presets import PRESETS
from apnb.recipes import Recipe, recipe
from apnb.store import ROW, Store
from apnb.widgets import takeaway
from apnb.widgets.queue import stored
from apnb.widgets.timeline import ATTACK, svg

QUICK = {"attacks": "pgd", "n": 16}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Three runs: two of a plain cell, one of a method."""
    place = tmp_path_factory.mktemp("store")
    recipes = [Recipe(pipeline="during", budget="tiny", sparsity=s) for s in (0.5, 0.9)]
    for r in [*recipes, recipe("twinrep", budget="tiny", sparsity=0.5)]:
        apnb.run(r, store=place, **QUICK)
    return Store(place)


@pytest.fixture
def bundle(store, tmp_path):
    """Everything, unpacked: the folder."""
    rows = stored(store)
    figures = {"curve": go.Figure(go.Scatter(y=[1, 2])), "history": go.Figure(go.Bar(y=[3]))}
    packed = takeaway.bundle(rows, store, figures=figures)
    with zipfile.ZipFile(io.BytesIO(packed)) as z:
        assert z.testzip() is None
        z.extractall(tmp_path / "home")
    return tmp_path / "home"


def test_a_file_of_recipes_asks_for_the_distances_that_were_looked_for(tmp_path):
    recipe = apnb.Recipe(pipeline="after", sparsity=0.5, budget="tiny")
    run = apnb.run(recipe, store=tmp_path / "s", attacks="pgd", n=16, distances="fmn")
    (tmp_path / "r.json").write_bytes(takeaway.recipes([run.row()], tmp_path / "s"))
    assert sweeps.read_sweep(tmp_path / "r.json")["distances"] == "fmn"
    (again,) = apnb.sweep(**sweeps.read_sweep(tmp_path / "r.json"), store=tmp_path / "s")
    assert again.key == run.key and again.evaluation.searched == "fmn"


def test_a_bundle_holds_what_its_readme_lists(bundle):
    files = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert files == {"README.txt", "runs.zip", "table.csv", "recipes.json", "code.py", "figures/curve.html", "figures/history.html",
                     "figures/plotly.min.js"}  # fmt: skip
    listed = re.findall(r"^(\S+)  ", (bundle / "README.txt").read_text(), flags=re.M)
    assert listed == ["runs.zip", "table.csv", "recipes*.json", "code.py", "figures/"]


def test_the_runs_of_a_bundle_come_back_as_they_were(bundle, store, tmp_path, cli):
    status, *_ = cli("runs", "import", bundle / "runs.zip", "--store", tmp_path / "elsewhere")
    assert status == 0
    there = Store(tmp_path / "elsewhere")
    assert sorted(there.keys()) == sorted(store.keys())
    key = there.keys()[0]
    again, before = apnb.runs.open_run(key, store=there), apnb.runs.open_run(key, store=store)
    assert again.row() == before.row() and again.evaluation.broken_by == before.evaluation.broken_by


def test_the_recipes_of_a_bundle_are_a_sweep_that_finds_the_same_runs(bundle, store):
    sweep = sweeps.read_sweep(bundle / "recipes.json")
    assert sweep["network"] == "cnn" and sweep["data"] == "digits" and (sweep["attacks"], sweep["n"]) == ("pgd", 16)
    runs = apnb.sweep(**sweep, store=store)
    assert [r.key for r in runs] == [row["key"] for row in stored(store)] and len(store.keys()) == 3


def test_the_code_of_a_bundle_without_any_runs_the_recipes(store, tmp_path):
    with zipfile.ZipFile(io.BytesIO(takeaway.bundle(stored(store), store))) as z:
        z.extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "code.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, env=_environment(store)
    )
    table = done.stdout.splitlines()
    assert len(table) == 1 + 3 and all(row["label"] in done.stdout for row in stored(store)), done.stderr
    assert "Plotly.newPlot" in (tmp_path / "recipes.html").read_text(encoding="utf-8")


def test_what_was_taken_away_is_read_back_as_one_file(store, tmp_path):
    (tmp_path / "lab.zip").write_bytes(takeaway.bundle(stored(store), store))
    home = Store(tmp_path / "home")
    assert sorted(home.import_(tmp_path / "lab.zip")) == sorted({row["key"] for row in stored(store)})
    assert [row["robust"] for row in stored(home)] == [row["robust"] for row in stored(store)]


def _environment(store: Store) -> dict[str, str]:
    import os
    from pathlib import Path

    return {**os.environ, "APNB_HOME": str(store.root), "PYTHONPATH": str(Path(__file__).parents[1])}


def test_the_table_has_all_columns_and_all_rows(bundle, store):
    table = list(csv.DictReader(io.StringIO((bundle / "table.csv").read_text(encoding="utf-8"))))
    rows = stored(store)
    assert tuple(table[0]) == ROW and [r["label"] for r in table] == [r["label"] for r in rows]
    assert [float(r["robust"]) for r in table] == [r["robust"] for r in rows]


def test_figures_of_a_bundle_share_one_plotly_and_ask_no_other_host(bundle):
    for page in (bundle / "figures").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert 'src="plotly.min.js"' in text and len(text) < 100_000 and not re.search(r'(src|href)="https?:', text)
    assert (bundle / "figures" / "plotly.min.js").stat().st_size > 1e6


def test_runs_judged_in_two_ways_take_two_sweep_files_and_a_single_one_says_so(store, tmp_path):
    apnb.run(Recipe(pipeline="during", budget="tiny", sparsity=0.5), store=store, attacks="pgd", n=8)
    rows = stored(store)
    assert len(takeaway.sweep_files(rows, store)) == 2
    with pytest.raises(Invalid, match="2 sweep files"):
        takeaway.recipes(rows, store)
    (one,) = {json.loads(takeaway.recipes([r], store))["n"] for r in rows if r["n"] == 8}
    assert one == 8
    names = zipfile.ZipFile(io.BytesIO(takeaway.bundle(rows, store))).namelist()
    assert {"recipes.json", "recipes-2.json"} <= set(names) and not any(n.startswith("figures/") for n in names)


def test_runs_that_were_removed_are_left_out_and_nothing_at_all_is_a_sentence(store, tmp_path):
    rows = stored(store)
    gone = {**rows[0], "key": "0" * 24}
    assert takeaway.sweep_files([gone, rows[1]], store) == takeaway.sweep_files([rows[1]], store)
    assert takeaway.bundle([gone, rows[1]], store)
    for nothing in ([gone], []):
        with pytest.raises(Invalid, match="none of these runs is in the store"):
            takeaway.bundle(nothing, store)
        with pytest.raises(Invalid, match="none of these runs is in the store"):
            takeaway.recipes(nothing, store)


def test_a_figure_is_one_page_that_needs_no_network():
    page = takeaway.figure(go.Figure(go.Scatter(y=[1, 2])))
    assert page.startswith(b"<!doctype html>") and len(page) > 1e6 and not re.search(rb'<script[^>]* src="https?:', page)
    with pytest.raises(Invalid, match="kind of figure"):
        takeaway.figure(go.Figure(), "pdf")


def test_a_picture_needs_a_browser_and_says_so(monkeypatch):
    monkeypatch.setattr(plots.show, "_browser", lambda: False)
    with pytest.raises(Invalid, match="needs the package kaleido"):
        takeaway.figure(go.Figure(go.Scatter(y=[1, 2])), "png")


@pytest.mark.browser
def test_a_figure_is_drawn_as_png_and_svg():
    fig = go.Figure(go.Scatter(y=[1, 2]))
    assert takeaway.figure(fig, "png").startswith(b"\x89PNG") and b"<svg" in takeaway.figure(fig, "svg")[:200]


# --- the picture of a recipe ------------------------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"
DRAWN = [*(Recipe(**c._asdict(), sparsity=0.5, budget=b) for c in apnb.grid() for b in ("quick", "paper")),
         *(recipe(name, sparsity=0.5) for name in PRESETS)]  # fmt: skip


def boxes(picture: ET.Element) -> list[tuple[float, float]]:
    """(start, width) of each box in percent."""
    return [tuple(float(r.get(k).rstrip("%")) for k in ("x", "width")) for r in picture.iter(f"{SVG}rect")]


def test_every_cell_and_every_method_has_a_picture_that_names_its_stages():
    for r in DRAWN:
        picture = ET.fromstring(svg(r))
        said, title = picture.find(f"{SVG}desc").text, picture.find(f"{SVG}title").text
        stages = {name: epochs for name, (_, epochs) in stage_lengths(r).items() if name != "initial"}
        assert [part.split(",")[0] for part in said.split("; ")] == [*stages, "attack"] and r.label in title
        drawn = boxes(picture)
        assert len(drawn) == sum(e > 0 for e in stages.values()) + 1
        ends = [start + width for start, width in drawn]
        assert (
            all(width > 0 for _, width in drawn)
            and all(a < b[0] for a, b in zip(ends, drawn[1:], strict=False))
            and ends[-1] <= 100
        )
        assert picture.get("width") == "100%" and picture.get("role") == "img" and float(picture.get("height")) < 160


def test_boxes_are_as_wide_as_their_epochs_are_many():
    (_, first), (_, second), (attack, _) = boxes(ET.fromstring(svg(Recipe(pipeline="after"))))  # 40 epochs, 15 epochs
    assert attack == pytest.approx(100 - ATTACK, abs=0.5)
    assert (first - 3.6) / (second - 3.6) == pytest.approx(40 / 15, rel=0.01)  # 3.6 is what any box has


def test_a_cut_stands_where_it_happens():
    def cuts(r: Recipe) -> list[float]:
        return [float(m.get("x").rstrip("%")) for m in ET.fromstring(svg(r)).iter(f"{SVG}svg") if m.get("x")]

    assert not cuts(Recipe(pipeline="after", sparsity=0, finetuning="none"))
    (at,), drawn = cuts(Recipe(pipeline="after")), boxes(ET.fromstring(svg(Recipe(pipeline="after"))))
    assert sum(drawn[0]) < at < drawn[1][0]
    assert len(cuts(Recipe(pipeline="after", schedule="iterative"))) == 3
    room = 100 - ATTACK
    many = cuts(Recipe(pipeline="during"))
    assert many[0] == pytest.approx(0.1 * room) and many[-1] == pytest.approx(0.75 * room) and many == sorted(many)
    assert cuts(recipe("twinrep")) == [pytest.approx(room * 4 / 40)]  # before the fifth epoch of forty


def test_a_picture_takes_the_pages_colour_for_its_text_and_the_pipelines_for_its_boxes():
    for pipeline, colour in plots.PIPELINES.items():
        picture = ET.fromstring(svg(Recipe(pipeline=pipeline, criterion="lis"), seconds=100))
        assert {r.get("fill") for r in picture.iter(f"{SVG}rect")} == {colour, "none"}
        texts = list(picture.iter(f"{SVG}text"))
        assert {t.get("fill") for t in texts} <= {"currentColor", "white", "black"} and texts[
            -1
        ].text == "about 1.5 minutes in all"


def test_nothing_of_this_loads_plotly_before_it_is_used():
    probe = "import sys, apnb.widgets.takeaway, apnb.widgets.timeline; assert not {'plotly', 'ipywidgets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", probe], check=True, timeout=60)


def test_a_picture_of_several_runs_names_their_sparsities():
    def cut(*sparsities: float) -> str:
        lines = [t.text or "" for t in ET.fromstring(svg(Recipe(pipeline="after", sparsity=0.9), sparsities=sparsities)).iter()]
        return next(line.split("\u25bc ")[1] for line in lines if "\u25bc" in line)

    assert cut() == "90 % of weights" and cut(0.5) == "50 % of weights" and cut(0.9, 0.5) == "50 and 90 % of weights"
    assert cut(0.99, 0.5, 0.955) == "50 to 99 % of weights"
