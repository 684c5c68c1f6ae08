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


def test_a_question_judges_what_is_typed_and_python_reads_it_and_letters_are_no_commands(notebook):
    made = notebook(
        "question.ipynb",
        "import apnb\n\nasked = apnb.Question('How many?', 515, tolerance=1, because='Counted.')\nasked",
        "asked.given, asked.right",
    )
    root = made.run("apnb.Question(").locator("[role=group]")
    number = root.get_by_label("number")
    number.press_sequentially("ddaabb")  # commands of the notebook: delete, insert a cell
    number.press("Enter")
    expect(root.get_by_role("status")).to_have_text("Type a number, such as 12.5.")
    number.fill("12,5")
    number.press("Enter")
    expect(root.get_by_role("status")).to_contain_text("Not this one")
    number.fill("516")
    root.get_by_role("button", name="Check").click()
    expect(root.get_by_role("status")).to_have_text("✓ Yes: 515. Counted.")
    expect(made.run("asked.given").locator(".jp-OutputArea-output")).to_have_text("(516, True)")
    expect(made.page.locator(".jp-Notebook .jp-CodeCell")).to_have_count(2)
