"""One JupyterLab and one browser for all tests here; every test has a page and a kernel of its own, and leaves a picture."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.browser.server import Server, jupyterlab

ARTEFACTS = Path(__file__).parents[1] / "artefacts"


@pytest.fixture(scope="package")
def chrome() -> Iterator:
    from playwright.sync_api import sync_playwright

    from tests.browser.pages import browser, chromium

    if chromium() is None:
        said = "NOT TESTED IN A BROWSER: no Chromium or Chrome is installed, and BROWSER_PATH names none"
        (pytest.fail if os.environ.get("APNB_REQUIRE_BROWSER") == "1" else pytest.skip)(said)
    with sync_playwright() as playwright, browser(playwright) as opened:
        yield opened


@pytest.fixture(scope="package")
def server(chrome, tmp_path_factory) -> Iterator[Server]:
    with jupyterlab(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture
def picture(request) -> Callable:
    """Keep a picture of a page: ``picture(page)``, or with a word that tells it from others of this test."""
    ARTEFACTS.mkdir(exist_ok=True)
    name = re.sub(r"\W+", "_", request.node.name.removeprefix("test_")).strip("_")
    return lambda page, word="end": page.screenshot(path=ARTEFACTS / f"{name}-{word}.png")


@pytest.fixture
def notebook(chrome, server, request, picture) -> Iterator[Callable]:
    """Open a notebook of the server's folder, or write one with the given cells and open it: ``notebook("name.ipynb", *cells)``.

    At the end of the test there is a picture, the kernel is gone, and no page may have asked for anything elsewhere.
    """
    from tests.browser.pages import Notebook

    opened: list[Notebook] = []

    def open_(name: str, *cells: str) -> Notebook:
        if cells:
            server.write(name, cells)
        opened.append(Notebook(chrome.new_page(viewport={"width": 1400, "height": 1000}), server, name))
        opened[-1].open()
        return opened[-1]

    yield open_
    for made in opened:
        picture(made.page)
        made.page.close()
    server.end_sessions()
    assert not [address for made in opened for address in made.elsewhere]
