"""How long a person waits for the lab, and how much memory it takes: measured in a real page of a real JupyterLab."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import nbformat  # noqa: F401 (loaded before the clock runs)
import psutil
from playwright.sync_api import sync_playwright

from tests.browser.pages import LabPage, Notebook, browser
from tests.browser.server import jupyterlab

CLICKS = 20
MODULES = "import sys; 'torchvision' in sys.modules"
ANSWERED = """([button, plan]) => new Promise(done => {
  const began = performance.now();
  new MutationObserver((_, o) => (o.disconnect(), done(performance.now() - began)))
    .observe(plan, { childList: true, subtree: true, characterData: true });
  button.click();
})"""
PAINTED = """button => new Promise(done => {
  const began = performance.now();
  button.click();
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
})"""
"""Milliseconds from a click until Python's answer is in the page, and until the next picture of the page is drawn."""


def memory(pid: int) -> tuple[float, float]:
    """(RSS, PSS) of a process and its children, in GB; PSS counts shared pages once, and is 0 where the system does not tell."""
    parent = psutil.Process(pid)
    told = [p.memory_full_info() for p in (parent, *parent.children(recursive=True))]
    return sum(m.rss for m in told) / 1e9, sum(getattr(m, "pss", 0) for m in told) / 1e9


def measure() -> dict[str, float | bool]:
    """Start, first point, clicks during a run and memory, of digits with the quick budget; keys are what was measured."""
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright, browser(playwright) as chrome:
        page, began = chrome.new_page(viewport={"width": 1400, "height": 1000}), time.monotonic()
        with jupyterlab(Path(place)) as server:
            notebook = Notebook(page, server, server.write("lab.ipynb", ["import apnb\n\napnb.Lab()", MODULES]))
            notebook.open()
            notebook.run("apnb.Lab(")
            lab = LabPage(notebook)
            lab.ready()
            found: dict[str, float | bool] = {"server answers, s": server.seconds, "lab shown, s": time.monotonic() - began}
            most, looked = (0.0, 0.0), 0.0

            def look() -> bool:
                nonlocal most, looked
                if time.monotonic() - looked > 0.5:
                    most, looked = max(most, memory(server.process.pid)), time.monotonic()
                return True

            lab.choose(sparsities=(0.5, 0.9))
            began = time.monotonic()
            lab.start.click()
            lab.until(lambda: look() and lab.traces(), "a first point")
            found["first point after Run, s"] = time.monotonic() - began
            found |= clicks(lab)
            lab.until(lambda: look() and not lab.cancel.is_enabled(), "the end of the run")
            found["whole run of 3 networks, s"] = time.monotonic() - began
            found["most memory, RSS, GB"], found["most memory, PSS, GB"] = most
            told = notebook.run(MODULES).locator(".jp-OutputArea-output")
            found["torchvision imported"] = told.inner_text().strip() == "True"
    return found


def clicks(lab: LabPage) -> dict[str, float]:
    """Medians over clicks between two words of a row, during a run."""
    words = [lab.value("structure", w).element_handle() for w in ("filters", "weights")]
    plan = lab.root.locator(".apnb-plan").element_handle()
    answered = [lab.page.evaluate(ANSWERED, [words[i % 2], plan]) for i in range(CLICKS)]
    painted = [lab.page.evaluate(PAINTED, words[i % 2]) for i in range(CLICKS)]
    if not lab.cancel.is_enabled():
        raise RuntimeError("the run ended before the clicks did")
    return {
        "click answered by the kernel, ms": statistics.median(answered),
        "click drawn by the page, ms": statistics.median(painted),
    }
