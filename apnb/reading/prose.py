"""Markdown of a notebook as HTML: nbconvert's reader of markdown with formulas, and what a page needs besides.

Formulas become MathML, links between notebooks become links between pages, headings get the anchors that Jupyter gives them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from apnb.errors import Invalid
from apnb.reading.maths import mathml


@dataclass(frozen=True)
class Heading:
    """A heading of a page: level (1 for the title), anchor, and what it says, as HTML without links."""

    level: int
    anchor: str
    text: str


def without_tags(html: str) -> str:
    """The words of a piece of HTML."""
    return unescape(re.sub(r"<[^>]*>", "", html)).strip()


def page_of(address: str) -> str:
    """The address of the page for that of a notebook of the series (``02_pruning.ipynb#x``); any other address as it is."""
    return re.sub(r"^(?:\./)?(\d\d_\w+)\.ipynb(?=#|$)", r"\1.html", address)


class Renderer(IPythonRenderer):
    """As in Jupyter, but for formulas, links and headings.

    Attributes:
        headings: those of the page, in order.
        files: pictures that lie beside the notebook and are shown in it: name in the site -> content.
    """

    def __init__(self, folder: Path | None = None):
        super().__init__(escape=False, exclude_anchor_links=True)
        self.headings: list[Heading] = []
        self.files: dict[str, bytes] = {}
        self._folder = folder

    def heading(self, text: str, level: int, **_) -> str:
        named = re.sub(r'<math\b[^>]*alttext="([^"]*)".*?</math>', r"$\1$", text)
        anchor = wanted = without_tags(named).replace(" ", "-")
        taken, n = {h.anchor for h in self.headings}, 1
        while anchor in taken:
            n += 1
            anchor = f"{wanted}-{n}"
        self.headings.append(Heading(level, anchor, re.sub(r"</?a\b[^>]*>", "", text)))
        link = f'<a class="anchor" href="#{quote(anchor)}" aria-label="link to this section">#</a>' if level > 1 else ""
        return f'<h{level} id="{escape(anchor)}">{text}{link}</h{level}>\n'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(text, page_of(url), title)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        path = (self._folder / unquote(url)).resolve() if self._folder and not urlsplit(url).scheme else None
        if path and path.is_file() and path.is_relative_to(self._folder.resolve()):
            url = f"assets/{path.relative_to(self._folder.resolve()).as_posix()}"
            self.files[url] = path.read_bytes()
        return super().image(text, url, title)

    def block_html(self, html: str) -> str:
        return _with_pages(super().block_html(html))

    def inline_html(self, html: str) -> str:
        return _with_pages(super().inline_html(html))

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def block_math(self, body: str) -> str:
        return f'<span class="formula">{mathml(body, display=True)}</span>'

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")


def _with_pages(html: str) -> str:
    return re.sub(r"""(<a\b[^>]*\bhref=)(["'])(.*?)\2""", lambda m: m[1] + m[2] + page_of(m[3]) + m[2], html)


def html_of(markdown: str, renderer: Renderer) -> str:
    """A cell of markdown as HTML.

    Raises:
        Invalid: a formula that cannot be converted, or that is not recognised as one and would be shown as its source.
    """
    html = MarkdownWithMath(renderer=renderer).render(markdown)
    html = re.sub(r"<p>\s*(<span class=\"formula\".*?</span>)\s*</p>", r"\1", html, flags=re.S)
    html = re.sub(r"<table>.*?</table>", lambda m: scrollable(m[0]), html, flags=re.S)
    shown = without_tags(re.sub(r"<(math|code|pre|script|style)\b.*?</\1>", "", html, flags=re.S))
    if left := re.search(r"\$\$|\\(?:begin|frac|text|math\w+|[a-z]{3,})\b[^\n]{0,40}", shown):
        raise Invalid(f"the formula at {left[0]!r} is not closed, or split by an empty line")
    return html


def scrollable(table: str) -> str:
    """A table that scrolls sideways within the page."""
    return f'<div class="table">{table}</div>'
