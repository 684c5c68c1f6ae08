"""A notebook in JupyterLab, and the lab in one of its cells, worked with mouse and keyboard."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Locator, Page, Playwright, expect

from tests.browser.server import TOKEN, Server

MINUTE = 60_000
"""In milliseconds, as Playwright counts. A time-out says when to give up, not how fast something has to be."""
expect.set_options(timeout=MINUTE)


def chromium() -> str | None:
    """The path of a Chromium or Chrome (``BROWSER_PATH`` first), or None."""
    names = (os.environ.get("BROWSER_PATH"), "chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if name and (path := shutil.which(name))), None)


@contextmanager
def browser(playwright: Playwright) -> Iterator[Browser]:
    """A browser without a window, which can look up no name but this machine's."""
    alone = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1"
    opened = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", alone])
    yield opened
    opened.close()


class Notebook:
    """A page with one notebook; ``elsewhere`` lists the addresses at other hosts that it has asked for."""

    def __init__(self, page: Page, server: Server, name: str):
        self.page, self.server, self.name = page, server, name
        self.elsewhere: list[str] = []
        page.set_default_timeout(MINUTE)
        page.on("request", lambda request: self._note(request.url))
        page.on("websocket", lambda socket: self._note(socket.url))

    def _note(self, url: str) -> None:
        asked = urlsplit(url)
        if asked.scheme in ("http", "https", "ws", "wss") and asked.netloc != urlsplit(self.server.url).netloc:
            self.elsewhere.append(url)

    def open(self) -> None:
        """Load the notebook alone, without the tabs of earlier pages, and wait until its kernel is idle."""
        self.page.goto(f"{self.server.url}/lab/tree/{self.name}?reset&token={TOKEN}")
        self.ready()

    def ready(self) -> None:
        """Wait until the page is laid out (its keys do nothing before) and the kernel has nothing to do."""
        expect(self.page.locator("#jupyterlab-splash")).to_have_count(0, timeout=2 * MINUTE)
        expect(self.page.locator("#jp-main-statusbar")).to_contain_text("| Idle", timeout=2 * MINUTE)

    def cell(self, source: str) -> Locator:
        """The first cell of code that contains ``source``."""
        return self.page.locator(".jp-Notebook .jp-CodeCell", has=self.page.locator(".jp-InputArea", has_text=source)).first

    def run(self, source: str) -> Locator:
        """Click beside that cell, press Control and Enter; returns the cell at once."""
        cell = self.cell(source)
        cell.locator(".jp-InputArea-prompt").click()
        self.page.keyboard.press("Control+Enter")
        return cell

    def save(self) -> None:
        """Save the notebook with the button above it."""
        self.page.get_by_role("button", name="Save and create checkpoint").click()
        expect(self.page.locator(".lm-TabBar-tab.jp-mod-dirty")).to_have_count(0)

    def reload(self) -> None:
        """Load the page again, as F5 does; the kernel stays."""
        self.page.reload()
        self.ready()


class LabPage:
    """The lab that the notebook shows."""

    def __init__(self, notebook: Notebook):
        self.notebook, self.page = notebook, notebook.page
        self.root = self.page.locator(".apnb-lab").first
        self.start, self.cancel = self.root.locator(".apnb-run"), self.root.locator(".apnb-cancel")
        self.progress, self.now = self.root.locator(".apnb-progress"), self.root.locator(".apnb-now")

    def ready(self) -> None:
        """Wait until the lab is there and could run."""
        expect(self.start).to_be_enabled(timeout=2 * MINUTE)

    def over(self) -> None:
        """Wait until nothing runs any more."""
        expect(self.cancel).to_be_disabled(timeout=3 * MINUTE)

    def value(self, dimension: str, value: object) -> Locator:
        """The button of one value of a dimension."""
        return self.root.locator(f'[data-dimension="{dimension}"] [data-value="{value}"]')

    def choose(self, **choices: object) -> None:
        """Click one value of each dimension; ``sparsities`` are a tuple: those are pressed, and no others."""
        for dimension, value in choices.items():
            if dimension != "sparsities":
                self.value(dimension, value).click()
                expect(self.value(dimension, value)).to_have_attribute("aria-pressed", "true")
                continue
            for button in self.root.locator('[data-dimension="sparsities"] [data-value]').all():
                wanted = str(float(button.get_attribute("data-value")) in value).lower()
                if button.get_attribute("aria-pressed") != wanted:
                    button.click()
                    expect(button).to_have_attribute("aria-pressed", wanted)

    def tab(self, text: str) -> None:
        """Bring a tab to the front."""
        self.root.locator(".apnb-tab", has_text=text).click()

    def rows(self) -> Locator:
        """The rows of the table (its tab must be in front)."""
        return self.root.locator(".apnb-table tr:has(td)")

    def share(self) -> float:
        """How far the progress bar is, in [0, 1]."""
        bar = self.progress.locator(".progress-bar")
        return bar.evaluate("bar => bar.offsetWidth / bar.parentElement.clientWidth")

    def traces(self, axis: str = "x") -> dict[str, list[float]]:
        """Name of each line of robust accuracy that is on the page -> its values along an axis, in %."""
        read = """(div, axis) => (div.data ?? []).filter(t => t.meta === "robust" && t[axis]?.length)
                  .map(t => [t.name, Array.from(t[axis])])"""
        return dict(self.root.locator(".apnb-figure .js-plotly-plot").first.evaluate(read, axis))

    def until(self, holds: Callable[[], object], what: str) -> None:
        """Wait until something holds.

        Raises:
            TimeoutError: it did not within three minutes.
        """
        end = time.monotonic() + 180
        while not holds():
            if time.monotonic() > end:
                raise TimeoutError(f"waited in vain for {what}; the lab says {self.now.inner_text()!r}")
            self.page.wait_for_timeout(50)

    def press_on(self, button: Locator, key: str) -> None:
        """Press Tab until the button has the focus, then the key.

        Raises:
            LookupError: a hundred times did not suffice.
        """
        for _ in range(100):
            if button.evaluate("b => b === document.activeElement"):
                return self.page.keyboard.press(key)
            self.page.keyboard.press("Tab")
        raise LookupError("Tab does not reach the button")
