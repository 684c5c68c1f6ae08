"""The explorers in JupyterLab: a click filters at once, and Python reads what was clicked."""

from __future__ import annotations

import pytest

import apnb

pytest.importorskip("playwright")
from tests.browser.pages import expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


def test_a_click_in_the_taxonomy_filters_the_page_and_what_python_sees(notebook, picture):
    made = notebook(
        "taxonomy.ipynb", "import apnb\n\nexplorer = apnb.TaxonomyExplorer()\nexplorer", "[m.key for m in explorer.methods]"
    )
    root = made.run("TaxonomyExplorer(").locator(".apnb-explorer")
    expect(root.locator(".count")).to_have_text(f"{len(apnb.taxonomy.methods())} of 26 methods")
    picture(made.page, "all")
    during = [m.key for m in apnb.taxonomy.methods(pipeline="during")]
    root.locator('[data-dimension="pipeline"][data-word="during"]').click()
    expect(root.locator(".count")).to_have_text(f"{len(during)} of 26 methods")
    expect(made.run("explorer.methods").locator(".jp-OutputArea-output")).to_contain_text(during[0])
    assert 0 < len(during) < 26
    shown = made.cell("explorer.methods").locator(".jp-OutputArea-output").inner_text()
    assert [key.strip(" '\n") for key in shown.strip("[]").split(",")] == during
    root.get_by_label("free text").fill("no method says this")
    expect(root.locator(".count")).to_have_text("0 of 26 methods")


def test_a_click_in_the_leaderboard_filters_its_rows(notebook, picture):
    made = notebook("board.ipynb", "import apnb\n\nboard = apnb.Leaderboard()\nboard", "len(board.rows)")
    root = made.run("Leaderboard(").locator(".apnb-explorer")
    rows = root.locator("tr[data-row]")
    published = apnb.taxonomy.leaderboard()
    expect(rows).to_have_count(len(published))
    picture(made.page, "all")
    svhn = int((published["data"] == "svhn").sum())
    root.locator('[data-dimension="data"][data-word="svhn"]').click()
    expect(rows).to_have_count(svhn)
    expect(made.run("board.rows").locator(".jp-OutputArea-output")).to_have_text(str(svhn))
