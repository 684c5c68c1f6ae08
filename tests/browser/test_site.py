"""The reading edition as its readers see it: from disk, with the network off, wide and narrow, light and dark, with and without scripts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import apnb
from apnb.paths import shipped

pytest.importorskip("playwright")
pytest.importorskip("latex2mathml")
pytest.importorskip("anywidget")
import nbformat
from playwright.sync_api import TimeoutError as Late

from apnb.reading import site
from tests.browser.pages import expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
SERIES = sorted(shipped("notebooks").glob("[0-9][0-9]_*.ipynb"))
PAGES = ["index", *(source.stem for source in SERIES)]
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 800}
SLIDERS = ".plot [role=slider]"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture(scope="module")
def series(tmp_path_factory) -> Path:
    """The real notebooks as a site."""
    return site.build(SERIES, tmp_path_factory.mktemp("series") / "site").parent


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    """A page with one of everything that moves."""
    import plotly.graph_objects as go

    def straight(k: int) -> go.Figure:
        layout = {"title": {"text": f"A line that rises {k} times as fast as the one before it, said at length"}}
        return go.Figure(go.Scatter(x=[0, 1], y=[0, k]), layout={**layout, "height": 400})

    movable = json.loads(apnb.plots.movable({k: straight(k) for k in (1, 2, 3)}, label="slope").to_json())
    shown = {
        "figure": {site.FIGURE: movable, "image/png": PIXEL},
        "explorer": {"text/html": apnb.TaxonomyExplorer().to_html()},
        "board": {"text/html": apnb.Leaderboard().to_html()},
        "number": {"text/html": apnb.Question("How many?", 26, tolerance=1, because="They were counted.").to_html()},
        "choice": {"text/html": apnb.Question("Which?", "clean", choices=["clean", "robust"]).to_html()},
    }
    new = nbformat.v4
    cells = [
        new.new_markdown_cell("# Everything\n\nDoes it $\\mathrm{move}$?"),
        new.new_markdown_cell("## Far down\n\n" + "Words. " * 400),
    ]
    cells += [new.new_code_cell(n, execution_count=1, outputs=[new.new_output("display_data", data=d)]) for n, d in shown.items()]
    folder = tmp_path_factory.mktemp("sample")
    nbformat.write(new.new_notebook(cells=cells), folder / "00_sample.ipynb")
    return site.build([folder / "00_sample.ipynb"], folder / "site").parent


@pytest.fixture
def opened(chrome) -> Iterator[Callable]:
    """Open a page from disk with the network off: ``opened(folder, "name", ...)``. Nothing may fail, complain or ask for anything."""
    told, contexts = [], []

    def open_(folder: Path, name: str, **options):
        context = chrome.new_context(**{"offline": True, "viewport": WIDE, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: told.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: told.append(str(e)))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else told.append(r.url))
        page.goto((folder / f"{name}.html").as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not told


def drawn(page) -> None:
    """Wait until every figure and every widget of a page is there, then go back to its top."""
    for figure in page.locator(".plot").all():
        figure.scroll_into_view_if_needed()
        expect(figure.locator(".main-svg").first).to_be_visible()
    for widget in page.locator(".widget > [data-apnb]").all():
        expect(widget).to_have_attribute("data-drawn", "")
        page.wait_for_function("w => (w.firstElementChild?.shadowRoot ?? w).textContent.trim()", arg=widget.element_handle())
    for picture in page.locator(".picture img").all():
        picture.scroll_into_view_if_needed()
        page.wait_for_function("i => i.complete && i.naturalWidth", arg=picture.element_handle())
    page.evaluate("scrollTo(0, 0)")


MIXED = """() => [...document.querySelectorAll(".plot .js-plotly-plot")].flatMap((figure, number) => {
  const svg = figure.querySelector(".main-svg").getBoundingClientRect(), active = figure.layout.sliders?.[0].active ?? 0;
  const width = figure.layout.width ?? figure.clientWidth;
  if (Math.abs(svg.width - width) > 2 || +(figure.ariaValueNow ?? active) !== active) return [[number, "has not moved"]];
  const parts = { legend: ".legendtext", title: ".g-xtitle text, .g-x2title text", slider: ".slider-group" };
  const boxes = Object.entries(parts).flatMap(([part, css]) => [...figure.querySelectorAll(css)].map((e) =>
    ({ part, text: e.textContent, box: e.getBoundingClientRect() })));
  const common = (a, b, from, to) => Math.min(a[to], b[to]) - Math.max(a[from], b[from]) > 1;
  const over = (a, b) => a.part !== b.part && common(a.box, b.box, "left", "right") && common(a.box, b.box, "top", "bottom");
  const cut = boxes.filter((a) => a.part === "legend" && a.box.right > svg.right + 1).map((a) => [number, a.text, "is cut"]);
  return [...cut, ...boxes.flatMap((a, i) => boxes.slice(i + 1).filter((b) => over(a, b)).map((b) => [number, a.text, "over", b.text]))];
})"""


def apart(page) -> None:
    """In no figure do legend, x title and slider lie over each other, and no legend is cut; figures take a moment to get there."""
    try:
        page.wait_for_function(f"() => !({MIXED})().length", timeout=60_000)
    except Late:
        assert page.evaluate(MIXED) == []


def too_wide(page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def whole_picture(page, picture) -> None:
    """A picture of a page from top to bottom, as far as pictures go."""
    size, height = page.viewport_size, page.evaluate("document.documentElement.scrollHeight")
    page.set_viewport_size({**size, "height": min(height, 14000)})
    picture(page)
    page.set_viewport_size(size)


def shown_lines(page) -> list[list[float]]:
    """y values of the visible lines of the first figure."""
    read = "d => d.data.filter(t => t.visible !== false).map(t => Array.from(t.y._inputArray ?? t.y))"
    return page.locator(".plot .live").first.evaluate(read)


# --- the series -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_a_page_of_the_series_is_whole_with_the_network_off_and_its_sliders_move(opened, series, picture, name):
    page = opened(series, name)
    drawn(page)
    whole_picture(page, picture)
    for slider in page.locator(SLIDERS).all():
        state = (
            "d => JSON.stringify([d.data.map(t => t.visible ?? true), d.layout.title?.text, d.data.map(t => t.y ?? t.z ?? 0)])"
        )
        before, said = slider.evaluate(state), slider.get_attribute("aria-valuetext")
        slider.focus()
        page.keyboard.press("End" if slider.get_attribute("aria-valuenow") == "0" else "Home")
        expect(slider).not_to_have_attribute("aria-valuetext", said)
        page.wait_for_function(f"([d, before]) => ({state})(d) !== before", arg=[slider.element_handle(), before])
    page.locator("details").evaluate_all("all => all.forEach(d => { d.open = true; })")
    sizes = page.locator("article math").evaluate_all(
        "all => all.map(m => m.getBoundingClientRect()).map(b => [b.width, b.height])"
    )
    assert all(min(size) > 1 for size in sizes) and too_wide(page) <= 0


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("look", ["dark", "phone"])
def test_a_page_of_the_series_suits(opened, series, picture, name, look):
    phone = {"viewport": PHONE, "has_touch": True, "is_mobile": True}
    page = opened(series, name, **(phone if look == "phone" else {"color_scheme": look}))
    drawn(page)
    if look == "phone":
        apart(page)
    whole_picture(page, picture)
    assert too_wide(page) <= 0
    if look == "phone":
        for slider in page.locator(SLIDERS).all():
            slider.press("End" if slider.get_attribute("aria-valuenow") == "0" else "Home")
        apart(page)
        page.set_viewport_size({"width": 640, "height": 390})
        apart(page)
        page.set_viewport_size(PHONE)
        apart(page)
        assert too_wide(page) <= 0


def test_the_contents_lead_from_notebook_to_notebook_and_to_headings(opened, series):
    page = opened(series, "index")
    page.locator("#contents > ol > li > a").first.click()
    page.wait_for_url(f"**/{PAGES[1]}.html")
    last = page.locator("#contents .sections a").last
    last.click()
    expect(last).to_have_attribute("aria-current", "location")
    if len(PAGES) > 2:
        page.locator(".turn a[rel=next]").click()
        page.wait_for_url(f"**/{PAGES[2]}.html")


# --- one of everything ------------------------------------------------------------------------------------------------------------


def test_a_figure_waits_until_the_reader_comes_near_and_fits_its_place(opened, sample):
    page = opened(sample, "00_sample", viewport={"width": 1000, "height": 400})
    assert page.locator("script[src*=plotly]").count() == 0
    drawn(page)
    place = page.locator(".plot").first.bounding_box()
    svg = page.locator(".plot .main-svg").first.bounding_box()
    assert abs(place["width"] - svg["width"]) < 20 and not page.locator(".still").is_visible()


def test_a_slider_moves_a_figure_with_mouse_and_keys(opened, sample, picture):
    page = opened(sample, "00_sample")
    drawn(page)
    assert shown_lines(page) == [[0, 1]]
    rail = page.locator(".slider-rail-touch-rect").first
    rail.scroll_into_view_if_needed()
    box = rail.bounding_box()
    page.mouse.click(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2)
    slider = page.locator(SLIDERS)
    expect(slider).to_have_attribute("aria-valuetext", "slope: 3")
    assert shown_lines(page) == [[0, 3]]
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(slider).to_have_attribute("aria-valuetext", "slope: 2")
    page.wait_for_function("d => d.layout.sliders[0].active === 1", arg=slider.element_handle())
    assert shown_lines(page) == [[0, 2]]
    picture(page)


def test_on_a_phone_figures_fit_titles_break_and_the_contents_are_behind_a_button(opened, sample, picture):
    page = opened(sample, "00_sample", viewport=PHONE, has_touch=True, is_mobile=True)
    drawn(page)
    assert too_wide(page) <= 0
    place = page.locator(".plot").first.evaluate("p => [p.scrollWidth, p.clientWidth]")
    assert place[0] <= place[1] and "<br>" in page.locator(".live").first.evaluate("d => d.layout.title.text")
    contents = page.locator("#contents")
    expect(contents).to_be_hidden()
    page.get_by_role("button", name="Contents").tap()
    expect(contents).to_be_visible()
    picture(page, "contents")
    page.keyboard.press("Escape")
    expect(contents).to_be_hidden()
    page.get_by_role("button", name="Contents").tap()
    contents.get_by_text("Far down").tap()
    expect(contents).to_be_hidden()
    page.locator(".slider-rail-touch-rect").scroll_into_view_if_needed()
    box = page.locator(".slider-rail-touch-rect").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2)
    expect(page.locator(SLIDERS)).to_have_attribute("aria-valuetext", "slope: 3")


def test_explorers_filter_and_questions_answer(opened, sample):
    page = opened(sample, "00_sample")
    drawn(page)
    during = len(apnb.taxonomy.methods(pipeline="during"))
    page.locator('.apnb-explorer [data-dimension="pipeline"][data-word="during"]').first.click()
    expect(page.locator(".count").first).to_have_text(f"{during} of 26 methods")
    svhn = int((apnb.taxonomy.leaderboard()["data"] == "svhn").sum())
    page.locator('[data-dimension="data"][data-word="svhn"]').click()
    expect(page.locator("tr[data-row]")).to_have_count(svhn)
    number, choice = page.locator(".widget").nth(2), page.locator(".widget").nth(3)
    number.locator("input").fill("3")
    number.get_by_role("button", name="Check").click()
    expect(number.get_by_role("status")).not_to_contain_text("They were counted.")
    number.locator("input").fill("26")
    number.get_by_role("button", name="Check").click()
    expect(number.get_by_role("status")).to_contain_text("They were counted.")
    choice.get_by_role("button", name="clean").click()
    expect(choice.get_by_role("status")).to_contain_text("clean")


def test_without_scripts_there_are_pictures_tables_and_folded_answers(opened, sample, picture):
    page = opened(sample, "00_sample", java_script_enabled=False)
    assert page.locator(".still").is_visible() and page.locator(".still").get_attribute("alt").startswith("A line that rises")
    assert page.locator(".widget").first.locator("tbody tr").count() == 26
    assert page.locator(".widget").nth(2).get_by_text("How many?").is_visible()
    picture(page)


def test_the_colours_follow_the_reader_and_figures_stay_on_white(opened, sample):
    colour = "e => getComputedStyle(e).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    for look, dark in (("light", False), ("dark", True)):
        page = opened(sample, "00_sample", color_scheme=look)
        assert (sum(page.locator("body").evaluate(colour)) < 3 * 80) == dark
        assert page.locator(".plot").evaluate(colour) == [255, 255, 255]


def test_paper_gets_the_text_without_the_contents_and_with_still_pictures(opened, sample):
    page = opened(sample, "00_sample")
    drawn(page)
    page.emulate_media(media="print")
    for hidden in ("#contents", "body > .bar", ".plot .live"):
        expect(page.locator(hidden)).to_be_hidden()
    expect(page.locator(".still")).to_be_visible()
    assert page.pdf().startswith(b"%PDF")


def test_the_keyboard_reaches_the_text_first(opened, sample):
    page = opened(sample, "00_sample")
    page.keyboard.press("Tab")
    skip = page.get_by_text("Skip to the text")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
