"""The page of an evaluation: what it says, that it stands alone, and that nothing in it can break out of its text."""

from __future__ import annotations

import re

import pytest

import apnb
from apnb import report
from apnb.errors import Invalid
from apnb.networks import build


@pytest.fixture(scope="module")
def evaluation():
    net = build("cnn", channels=1, classes=10, seed=1)
    return apnb.evaluate(net, "digits", n=20, attacks="pgd", distances=True)


def test_the_page_says_what_the_evaluation_says(evaluation, tmp_path):
    path = report.write(evaluation, tmp_path / "a.html", title="mine <b>on</b> digits")
    text = path.read_text(encoding="utf-8")
    assert "<h1>mine &lt;b&gt;on&lt;/b&gt; digits</h1>" in text
    assert "Robust accuracy is an upper bound, found by these attacks" in text
    counts = {by: evaluation.broken_by.count(by) for by in set(evaluation.broken_by) if by}
    for by, k in counts.items():
        said = "wrong before any attack" if by == "clean" else f"broken by {by}"
        assert f"<td>{said}</td><td>{k}</td>" in text
    for finding in evaluation.diagnostics:
        assert f"<td>{finding.indicator}</td><td>{finding.verdict}</td>" in text
    assert len(re.findall("Plotly.newPlot", text)) >= 1
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=[\"']https?:", text), "nothing is fetched"


def test_without_distances_no_curve_is_drawn_that_would_end_at_eps(tmp_path):
    net = build("cnn", channels=1, classes=10, seed=1)
    plain = apnb.evaluate(net, "digits", n=8, attacks="pgd", diagnostics=False)
    text = report.page(plain)
    assert "The smallest perturbations were not asked for" in text
    assert "Diagnostics were not asked for" in text
    assert "Accuracy against the size of the perturbation" not in text


def test_only_a_page_can_be_written(evaluation, tmp_path):
    with pytest.raises(Invalid, match=r"ends in \.html"):
        report.write(evaluation, tmp_path / "a.png")
    with pytest.raises(Invalid, match="there is no folder"):
        report.write(evaluation, tmp_path / "none" / "a.html")


@pytest.mark.browser
def test_the_page_draws_its_figures_without_a_network(evaluation, tmp_path):
    from shutil import which

    playwright = pytest.importorskip("playwright.sync_api")
    browser = which("chromium") or which("chromium-browser") or which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium or Chrome on this machine")
    path = report.write(evaluation, tmp_path / "a.html")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page()
        page.context.set_offline(True)
        errors = []
        page.on("pageerror", lambda error: errors.append(error))
        page.goto(f"file://{path}")
        page.wait_for_selector(".main-svg")
        drawn = page.locator(".js-plotly-plot").count()
        chromium.close()
    assert errors == []
    assert drawn == 2, "the examples and the curve"
