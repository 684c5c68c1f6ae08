"""The lab in JupyterLab: run by clicks and by keys, stopped, loaded again, found again; nothing is asked of another host."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("playwright")
from tests.browser.pages import LabPage, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
CELL = {"pipeline": "during", "structure": "filters", "locality": "global", "criterion": "lwm"}
LABEL = "during/filters/global/LWM"
OTHER = "print('six times seven is', 6 * 7)"
ALL = (0.5, 0.75, 0.9, 0.95, 0.99)


@pytest.fixture
def lab(notebook, tmp_path):
    """A lab with a small budget and a store of its own, in a notebook with one more cell."""
    store = tmp_path / "store"
    made = notebook("mine.ipynb", f"import apnb\n\nlab = apnb.Lab(budget='tiny', n=64, store={str(store)!r})\nlab", OTHER)
    return shown(made)


def shown(made) -> LabPage:
    made.run("apnb.Lab(")
    page = LabPage(made)
    page.ready()
    return page


def test_the_first_notebook_opens_with_its_kernel_and_shows_the_lab(notebook):
    made = notebook("00_start_here.ipynb")
    expect(made.page.locator(".jp-KernelName")).to_have_text("Python 3 (ipykernel)")
    expect(made.page.locator(".jp-Dialog")).to_have_count(0)
    expect(made.run("import apnb").locator(".jp-OutputArea-output")).to_contain_text("pgd_at")
    lab = shown(made)
    lab.root.scroll_into_view_if_needed()
    expect(lab.root).to_be_visible()


def test_clicks_run_two_sparsities_while_another_cell_answers(lab, picture):
    lab.choose(**CELL, sparsities=(0.5, 0.9))
    picture(lab.page, "chosen")
    before = lab.share()
    lab.start.click()
    expect(lab.cancel).to_be_enabled()
    expect(lab.notebook.run(OTHER).locator(".jp-OutputArea-output")).to_have_text("six times seven is 42\n")
    expect(lab.cancel).to_be_enabled()  # the run is not over
    lab.until(lambda: before < lab.share() < 1, "progress between none and all")
    picture(lab.page, "running")
    lab.until(lambda: lab.traces().get(LABEL) == [50, 90], "both points on the curve")
    lab.over()
    assert lab.share() == 1
    lab.tab("Table")
    expect(lab.rows().first).to_be_visible()
    expect(lab.now).to_be_visible()  # a tab hides the figure and nothing else
    assert "dense" in lab.rows().first.inner_text() and lab.rows().count() == 3


def test_cancel_in_mid_run_keeps_what_is_finished(lab):
    lab.choose(sparsities=ALL)
    lab.start.click()
    lab.until(lambda: lab.traces(), "a first point")
    lab.cancel.click()
    lab.over()
    expect(lab.now).to_have_text(re.compile(r"^cancelled after [1-5] of 6 runs"))
    lab.tab("Table")
    expect(lab.rows().first).to_be_visible()
    assert 1 <= lab.rows().count() < 1 + len(ALL)


def test_a_reload_in_mid_run_shows_the_same_view_and_goes_on(lab):
    lab.choose(**CELL, sparsities=ALL)
    lab.start.click()
    expect(lab.cancel).to_be_enabled()
    lab.notebook.save()
    lab.notebook.reload()
    expect(lab.cancel).to_be_enabled()
    for dimension, value in CELL.items():
        expect(lab.value(dimension, value)).to_have_attribute("aria-pressed", "true")
    for sparsity in ALL:
        expect(lab.value("sparsities", sparsity)).to_have_attribute("aria-pressed", "true")
    reached = lab.share()
    lab.until(lambda: lab.share() > reached and lab.traces(), "a point after the reload")
    lab.cancel.click()
    lab.over()


def test_a_fresh_kernel_finds_the_runs_in_the_store(lab, tmp_path):
    def trained() -> dict:
        return {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*.stage")}

    lab.choose(sparsities=(0.5,))
    lab.start.click()
    lab.until(lambda: lab.traces().get("after/weights/global/LWM") == [50], "the point")
    lab.over()
    kept, points = trained(), lab.traces("y")
    lab.notebook.server.end_sessions()
    lab.notebook.open()
    shown(lab.notebook)
    expect(lab.now).to_contain_text("2 runs of earlier days")
    lab.until(lambda: lab.traces("y") == points, "the same points")
    lab.choose(sparsities=(0.5,))
    lab.start.click()
    expect(lab.now).to_contain_text("done: 2 of 2")
    assert kept and trained() == kept and lab.traces("y") == points


def test_a_contradictory_choice_cannot_be_made_and_says_why(lab):
    lab.choose(pipeline="before")
    refused = lab.value("criterion", "bcs")
    expect(refused).to_have_attribute("title", re.compile("'bcs' .* got before"))
    expect(refused).to_have_attribute("aria-disabled", "true")
    reason = refused.get_attribute("title")
    refused.click(force=True)
    expect(lab.root.get_by_role("status").filter(has_text=reason)).to_be_visible()
    expect(refused).to_have_attribute("aria-pressed", "false")
    expect(lab.value("criterion", "lwm")).to_have_attribute("aria-pressed", "true")
    lab.choose(pipeline="during", criterion="bcs")


def test_the_keyboard_alone_chooses_runs_and_cancels(lab):
    lab.value("pipeline", "after").focus()
    lab.press_on(lab.value("pipeline", "during"), "Space")
    expect(lab.value("pipeline", "during")).to_have_attribute("aria-pressed", "true")
    lab.press_on(lab.start, "Enter")
    expect(lab.cancel).to_be_enabled()
    lab.press_on(lab.cancel, "Enter")
    lab.over()
    expect(lab.now).to_contain_text("cancelled after")


def test_keys_pressed_in_the_form_do_not_reach_the_notebook(lab):
    cells = lab.page.locator(".jp-Notebook .jp-Cell")
    before = cells.count()
    box = lab.root.locator('[data-dimension="network"] select')
    for key in ("x", "d", "d", "a"):
        box.press(key)
    expect(cells).to_have_count(before)
    expect(lab.root).to_be_visible()
    seeds = lab.root.locator('[data-dimension="seeds"] input')
    seeds.fill("x")
    seeds.press("Enter")
    expect(lab.start).to_be_disabled()  # an answer to Enter, with the cursor still in the field
    seeds.fill("0, 1")
    seeds.press("Enter")
    expect(lab.start).to_be_enabled()


def test_clicks_made_while_the_kernel_is_busy_all_count(lab):
    made = lab.notebook
    made.page.locator(".jp-Notebook .jp-CodeCell").last.locator(".cm-content").click()
    made.page.keyboard.press("Control+a")
    made.page.keyboard.type("import time; time.sleep(4)")
    made.run("time.sleep")
    for dimension, value in CELL.items():
        lab.value(dimension, value).click()
    lab.value("sparsities", 0.75).click()
    expect(lab.root.locator(".apnb-plan")).to_contain_text("filters")
    for dimension, value in (*CELL.items(), ("sparsities", 0.75)):
        expect(lab.value(dimension, value)).to_have_attribute("aria-pressed", "true")
    expect(lab.root.locator(".apnb-plan")).to_contain_text("50%, 75% and 90%")


def test_each_tab_draws_its_picture(lab, picture):
    lab.choose(**CELL, sparsities=(0.5,))
    lab.start.click()
    lab.until(lambda: lab.traces().get(LABEL) == [50], "the point")
    lab.over()
    for tab, drawn in (("History", ".scatterlayer .trace"), ("Layers", ".barlayer .point"), ("Masks", ".heatmaplayer image"),
                       ("Layers", ".barlayer .point"), ("Curve", ".scatterlayer .trace")):  # fmt: skip
        lab.tab(tab)
        expect(lab.root.locator(f".apnb-figure {drawn}").first).to_be_attached()
        if tab == "Layers":
            expect(lab.root.locator(".apnb-figure .ytick", has_text="conv1")).to_be_attached()
        picture(lab.page, tab)
    assert "Curve:" in lab.root.locator(".js-plotly-plot").get_attribute("aria-label")


def test_the_figure_takes_the_width_there_is_and_no_word_of_a_button_is_cut(lab):
    figure, room = lab.root.locator(".apnb-figure .main-svg").first, lab.root.locator(".apnb-figure")

    def fits() -> bool:
        return abs(figure.bounding_box()["width"] - room.bounding_box()["width"]) < 2

    lab.until(fits, "a figure as wide as its place")
    narrow = room.bounding_box()["width"]
    lab.page.keyboard.press("Escape")
    lab.page.keyboard.press("Control+b")  # the list of files goes, and no event tells the page of it
    lab.until(lambda: room.bounding_box()["width"] > narrow + 100, "room")
    lab.until(fits, "a wider figure")
    lab.page.keyboard.press("Control+b")
    lab.until(lambda: room.bounding_box()["width"] < narrow + 2 and fits(), "the figure as it was")
    for button in lab.root.locator("button.jupyter-button:visible").all():
        assert button.evaluate("b => b.scrollWidth <= b.clientWidth"), button.inner_text()
