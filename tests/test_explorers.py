"""The two explorers: their state in Python, and what a reader sees of an exported notebook that has neither kernel nor network."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

import apnb
from apnb import benchmark, taxonomy
from apnb.errors import Invalid

pytest.importorskip("anywidget")
from apnb.widgets.explorer import DIMENSIONS, NOT_BENCHMARKED, TaxonomyExplorer
from apnb.widgets.leaderboard import VIEWS, Leaderboard
from tests.helpers import own_row

ARTEFACTS = Path(__file__).parent / "artefacts"


@pytest.fixture(scope="module")
def explorer_data():
    return TaxonomyExplorer().data


def every_word() -> list[tuple[str, str]]:
    return [(name, str(w)) for name, (_, words) in DIMENSIONS.items() for w in words]


def keys(methods) -> list[str]:
    return [m.key for m in methods]


# --- the taxonomy, in Python -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "word"), every_word(), ids="=".join)
def test_a_filter_of_the_explorer_finds_what_the_taxonomy_finds(name, word):
    assert TaxonomyExplorer(filters={name: [word]}).methods == taxonomy.methods(**{name: word})


def test_filters_add_up_and_text_searches_in_names_authors_and_ideas():
    explorer = TaxonomyExplorer(filters={"pipeline": ["during", "before"], "structure": ["weights"]})
    assert explorer.methods == taxonomy.methods(pipeline=("during", "before"), structure="weights")
    explorer.text = "Momentum share"
    assert keys(explorer.methods) == ["dnr"]
    explorer.filters, explorer.text = {"benchmarked": [NOT_BENCHMARKED]}, ""
    assert explorer.methods == taxonomy.methods(benchmarked=False)


def test_unknown_words_axes_and_methods_are_refused():
    explorer = TaxonomyExplorer()
    for trait, wrong in (
        ("filters", {"pipeline": ["later"]}), ("filters", {"colour": ["red"]}), ("axes", ["pipeline", "pipeline"]),
        ("selected", "hydro"), ("opened", "hydro"),
    ):  # fmt: skip
        with pytest.raises(Invalid):
            setattr(explorer, trait, wrong)
    explorer.filters, explorer.selected = {"Pipeline": "AFTER"}, "HYDRA"
    assert explorer.filters == {"pipeline": ["after"]} and explorer.selected == "hydra"


def test_every_method_has_an_idea_of_one_or_two_sentences_and_none_is_left_over(explorer_data):
    ideas = json.loads((Path(apnb.__file__).parent / "widgets" / "ideas.json").read_text("utf-8"))
    assert ideas.keys() == set(keys(taxonomy.methods()))
    for idea in ideas.values():
        assert idea.endswith(".") and len(re.findall(r"[.!?](?: |$)", idea)) == 2 and len(idea) < 330
    assert len(set(ideas.values())) == 26


def test_a_card_has_the_published_results_the_disagreements_and_the_presets_of_its_method(explorer_data):
    cards = {m["key"]: m for m in explorer_data["methods"]}
    board = taxonomy.leaderboard()
    for m in taxonomy.methods():
        card = cards[m.key]
        assert sorted(r["robust"] for r in card["results"]) == sorted(board[board["method"] == m.key]["robust"])
        assert [r["reason"] for r in card["readings"]] == [r.reason for r in m.readings]
    assert cards["flyingbird"]["here"]["presets"] == ["flyingbird", "flyingbird+"] and not cards["fre"]["here"]["presets"]


def test_opening_a_method_calls_the_lab_and_shows_its_refusal():
    class Somewhere:
        seen = ()

        def choose_method(self, key):
            if key == "fre":
                raise Invalid("not here")
            self.seen += (key,)

    explorer = TaxonomyExplorer(Somewhere())
    for key in ("hydra", "fre", "harp"):
        explorer.opened = key
        assert explorer.problem == ("not here" if key == "fre" else "")
    assert explorer.lab.seen == ("hydra", "harp")


# --- the leaderboard, in Python ---------------------------------------------------------------------------------------------------


def test_the_leaderboard_holds_the_published_rows_and_says_how_they_were_made():
    board = Leaderboard()
    rows = board.data["rows"]
    assert len(rows) == 154 and {r["how"] for r in rows} == {benchmark.PROTOCOL} and not any(r["mine"] for r in rows)
    assert sum(r["front"] for r in rows) == len(benchmark.pareto())
    board.filters = {"data": ["svhn"], "sparsity": [0.99]}
    expected = taxonomy.leaderboard().query("data == 'svhn' and sparsity == 0.99")
    assert sorted(r["robust"] for r in board.rows) == sorted(expected["robust"])


def test_own_rows_are_laid_over_marked_and_on_no_front():
    runs = [own_row(), own_row(key="k2", data="digits", robust=0.99), own_row(key="k3", clean=1.0, robust=0.99)]
    rows = [r for r in Leaderboard(runs).data["rows"] if r["mine"]]
    assert [r["comparable"] for r in rows] == [True, False, True] and not any(r["front"] for r in rows)
    assert rows[0]["how"] == "AutoAttack, eps 0.03137, 400 images" and rows[1]["why"] == "data digits, published cifar10 and svhn"
    assert sum(r["front"] for r in Leaderboard(runs).data["rows"]) == len(benchmark.pareto())


def test_unknown_views_columns_and_words_are_refused():
    board = Leaderboard()
    for trait, wrong in (
        ("view", "pie"), ("sort", ["size", "asc"]), ("sort", ["robust", "up"]), ("filters", {"data": ["mnist"]}),
        ("filters", {"colour": ["red"]}), ("filters", {"data": "svhn"}),
    ):  # fmt: skip
        with pytest.raises(Invalid):
            setattr(board, trait, wrong)


@pytest.mark.parametrize("kind", [TaxonomyExplorer, Leaderboard])
def test_a_notebook_gets_the_live_widget_and_a_page_that_needs_none(kind):
    data, _ = kind()._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    state = re.search(r"const state = (.*), subs", data["text/html"]).group(1)
    assert json.loads(state)["static"] is True and "</script" not in state


# --- in a browser -----------------------------------------------------------------------------------------------------------------

CELLS = ("from apnb.widgets.explorer import TaxonomyExplorer\nTaxonomyExplorer()",
         "from apnb.widgets.leaderboard import Leaderboard\nLeaderboard(OWN)")  # fmt: skip


@pytest.fixture(scope="module")
def chrome():
    try:
        from playwright.sync_api import sync_playwright

        from tests.browser.pages import chromium

        said = "" if chromium() else "no Chromium or Chrome is installed, and BROWSER_PATH names none"
    except ImportError:
        said = "playwright is not installed"
    if said:
        (pytest.fail if os.environ.get("APNB_REQUIRE_BROWSER") == "1" else pytest.skip)(f"NOT TESTED IN A BROWSER: {said}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An executed notebook as nbconvert writes it, without the state of widgets and without nbconvert's own scripts of elsewhere."""
    import nbformat
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter

    runs = [own_row(), own_row(key="k2", label="toy", data="digits", network="cnn", eps=0.1)]
    cells = [nbformat.v4.new_code_cell(cell.replace("OWN", repr(runs))) for cell in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, store_widget_state=False, kernel_name="python3", timeout=120).execute()
    folder = tmp_path_factory.mktemp("export")
    for theme in ("light", "dark"):
        exporter = HTMLExporter(theme=theme, mathjax_url="", require_js_url="", jquery_url="")
        (folder / f"{theme}.html").write_text(exporter.from_notebook_node(notebook)[0], encoding="utf-8")
    return folder


@pytest.fixture
def page(chrome, exported, request):
    """The exported page with the network off; afterwards nothing may have been asked for or have failed."""
    told = []
    scheme, width = getattr(request, "param", ("light", 1200))
    context = chrome.new_context(offline=True, color_scheme=scheme, viewport={"width": width, "height": 900})
    page = context.new_page()
    page.on("request", lambda r: told.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
    page.on("pageerror", lambda e: told.append(str(e)))
    page.goto((exported / f"{scheme}.html").as_uri())
    page.wait_for_selector("tr[data-row]")
    yield page
    context.close()
    assert not told


def part(page, i):
    return page.locator(".apnb-explorer").nth(i)


def shown(explorer) -> list[str]:
    """Keys of the methods in the grid that the filters leave, in the survey's order."""
    here = set(explorer.locator("[data-method]:enabled").evaluate_all("all => all.map(e => e.dataset.method)"))
    return [key for key in keys(taxonomy.methods()) if key in here]


@pytest.mark.browser
def test_each_word_of_an_exported_page_filters_as_python_does_and_announces_its_count(page):
    explorer = part(page, 0)
    for chip in explorer.locator(".chip").all():
        name, word = chip.get_attribute("data-dimension"), chip.get_attribute("data-word")
        expected = keys(taxonomy.methods(**{name: False if (name, word) == ("benchmarked", "none") else word}))
        assert int(chip.locator("i").inner_text()) == len(expected), (name, word)
        chip.click()
        assert chip.get_attribute("aria-pressed") == "true" and shown(explorer) == expected, (name, word)
        assert explorer.locator(".count").inner_text() == f"{len(expected)} of 26 methods"
        chip.click()
    explorer.locator('[data-word="during"]').click()
    assert explorer.locator('[data-dimension="criterion"][data-word="lwm"] i').inner_text() == "1"
    explorer.get_by_label("free text").fill("bayesian")
    assert shown(explorer) == ["bcsp"]
    explorer.get_by_text("clear filters").click()
    assert len(shown(explorer)) == 26


@pytest.mark.browser
def test_a_card_a_tooltip_and_other_axes_work_without_a_kernel(page):
    explorer = part(page, 0)
    explorer.locator('[data-method="hydra"]').first.hover()
    assert "importance score" in explorer.locator(".tip").inner_text()
    explorer.locator('[data-method="hydra"]').first.click()
    card = explorer.locator(".card").inner_text()
    assert "Sehwag" in card and 'lab.choose_method("hydra")' in card and "44.2 (79.4)" not in card.split("Published")[0]
    assert f"({len(taxonomy.method('hydra').readings)})" in card and explorer.locator(".card .open").count() == 0
    empty = explorer.locator(".nobody").count()
    cells = {(m.pipeline, m.criterion) for m in taxonomy.methods()}
    assert empty == 3 * 6 - len(cells)
    explorer.get_by_label("rows of the grid").select_option("structure")
    cells = {(s, m.criterion) for m in taxonomy.methods() for s in m.structures}
    assert explorer.locator(".nobody").count() == 4 * 6 - len(cells)


@pytest.mark.browser
def test_the_leaderboard_sorts_filters_and_switches_its_views_without_a_kernel(page):
    board, published = part(page, 1), taxonomy.leaderboard()
    assert board.locator("tr[data-row]").count() == 156
    first = board.locator("tr[data-row]").first
    assert f"{published['robust'].max():.2f}" in first.inner_text()
    assert "†" in board.locator("tr[data-row]").last.inner_text()  # what is not comparable is never among the others
    board.locator('[data-sort="clean"]').click()
    assert f"{published['clean'].max():.2f}" in first.inner_text()
    board.locator('[data-sort="clean"]').click()
    assert f"{published['clean'].min():.2f}" in first.inner_text()
    board.locator('[data-dimension="data"][data-word="svhn"]').click()
    for view, figures, marks in (("sparsity", 4, 70), ("front", 12, 70), ("ranks", 6, 70)):
        board.locator(f'[data-view="{view}"]').click()
        assert board.locator("figure").count() == figures and board.locator("g.mark").count() == marks, view
    board.locator('[data-view="front"]').click()
    drawn = board.locator("path.front").evaluate_all("all => all.map(p => p.getAttribute('d').split(/[ML]/).length - 1)")
    front = benchmark.pareto()
    assert sum(drawn) == (front["data"] == "svhn").sum()


@pytest.mark.browser
def test_everything_can_be_reached_and_used_with_the_keyboard(page):
    focus = (
        "() => { let e = document.activeElement; while (e.shadowRoot?.activeElement) e = e.shadowRoot.activeElement; return e; }"
    )
    part(page, 0).locator('[data-dimension="pipeline"][data-word="after"]').focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert shown(part(page, 0)) == keys(taxonomy.methods(pipeline="before"))
    outline = page.evaluate(f"() => getComputedStyle(({focus})()).outlineStyle")
    assert outline == "solid"
    part(page, 0).get_by_label("columns of the grid").focus()
    page.keyboard.press("Tab")
    seen = []
    for key in ("ArrowDown", "ArrowLeft", "ArrowLeft", "ArrowUp"):
        seen.append(page.evaluate(f"() => ({focus})().dataset.item"))
        page.keyboard.press(key)
    assert seen == ["after/bcs", "before/bcs", "before/hgm", "before/lis/rst"]
    part(page, 0).locator('[data-method="rst"]').focus()
    page.keyboard.press("Enter")
    assert part(page, 0).locator(".card h3").inner_text() == "RST"
    assert page.evaluate(f"() => ({focus})().dataset.method") == "rst"  # still there after the redraw
    part(page, 1).locator('[data-view="table"]').focus()
    page.keyboard.press("ArrowRight")
    mark = part(page, 1).locator("g.mark").first
    mark.focus()
    assert part(page, 1).locator(".tip").is_visible()
    page.keyboard.press("Enter")
    assert part(page, 1).locator("path.off, g.off").count() > 0


@pytest.mark.browser
def test_nothing_moves_when_a_filter_is_clicked(page):
    def places():
        box = "e => { const b = e.getBoundingClientRect(); return [b.left, b.top + scrollY, b.width, b.height]; }"
        return [
            e.evaluate(box)
            for i in range(2)
            for e in part(page, i).locator(".facets, .root > .scroll, .two > .scroll, .card").all()
        ]

    before = places()
    part(page, 0).locator('[data-word="hgm"]').click()
    part(page, 1).locator('[data-word="svhn"]').click()
    for view in VIEWS[1:]:
        part(page, 1).locator(f'[data-view="{view}"]').click()
        assert places() == before, view


@pytest.mark.browser
@pytest.mark.parametrize("page", [("light", 600)], indirect=True, ids=["600"])
def test_six_hundred_pixels_are_enough(page):
    for view in VIEWS:
        part(page, 1).locator(f'[data-view="{view}"]').click()
        wide = page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, view


@pytest.mark.browser
def test_every_control_and_figure_has_a_name(page):
    for view in VIEWS:
        part(page, 1).locator(f'[data-view="{view}"]').click()
        for i in range(2):
            assert part(page, i).locator("svg:not([aria-hidden]):not([aria-label])").count() == 0
            named = (
                part(page, i)
                .locator("button, select, input, [tabindex]")
                .evaluate_all(
                    "all => all.filter(e => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML)"
                )
            )
            assert named == []


@pytest.mark.browser
@pytest.mark.parametrize(
    "page", [(s, w) for s in ("light", "dark") for w in (700, 1200)], indirect=True, ids=lambda p: f"{p[0]}-{p[1]}"
)
def test_pictures_for_people_to_look_at(chrome, page, request):
    ARTEFACTS.mkdir(exist_ok=True)
    name = request.node.callspec.id
    part(page, 0).locator('[data-method="twinrep"]').first.click()
    part(page, 0).screenshot(path=ARTEFACTS / f"explorer-{name}.png")
    for view in VIEWS:
        part(page, 1).locator(f'[data-view="{view}"]').click()
        assert part(page, 1).screenshot(path=ARTEFACTS / f"leaderboard-{view}-{name}.png")
