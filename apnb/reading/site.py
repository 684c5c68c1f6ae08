"""The reading edition: executed notebooks as static pages, with everything that works without a kernel, and no request elsewhere.

A page is its notebook in order: prose (`apnb.reading.prose`), code coloured here, outputs as they were stored. Figures stay figures, drawn
by the one ``plotly.min.js`` of the site, with their still picture for those without scripts and for paper; widgets bring their own script.
Templates, style and script are in ``pages/``.
"""

from __future__ import annotations

import base64
import json
import re
import struct
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from apnb import __version__
from apnb.errors import Invalid
from apnb.paths import PACKAGE
from apnb.reading.prose import Heading, Renderer, html_of, scrollable, without_tags
from apnb.reading.series import COLAB, FIGURE, LIVE, read

PAGES = Path(__file__).parent / "pages"
MARKER = ".apnb-site"
"""File by which a folder is known as one of ours, which may be replaced."""
NEEDS_KERNEL = "needs a running kernel"
"""Words by which an output says that it is nothing without one."""
RUN = """<p>In a checkout of the project, with Python 3.11 or newer and no GPU, <code>make lab</code> installs what is needed and opens the
notebooks; where the package is installed with its extra <code>lab</code>, <code>apnb lab</code> does the same.</p>"""
CITE = {
    "authors": "Piras, Pintor, Demontis, Biggio, Giacinto and Roli",
    "year": 2024,
    "title": "Adversarial Pruning: A Survey and Benchmark of Pruning Methods for Adversarial Robustness",
    "number": "arXiv:2409.01249",
    "address": "https://arxiv.org/abs/2409.01249",
}
POLICY = (
    "default-src 'none'; script-src 'self' file: data: 'unsafe-inline'; style-src 'self' file: 'unsafe-inline'; "
    "img-src 'self' file: data: blob:; font-src data:; base-uri 'none'; form-action 'none'"
)
"""What a page may load: its own files and what is written in it. The browser refuses everything else."""
FETCHED = {"src", "srcset", "poster", "data", "background"}
"""Attributes whose address is fetched when the page is shown; ``href`` is one of them on ``link``, ``use`` and ``image``."""


@dataclass
class Page:
    """A notebook as a page. ``question`` is its first paragraph, ``made`` says what executed it, ``files`` are its pictures."""

    source: Path
    title: str = ""
    question: str = ""
    body: str = ""
    made: str = ""
    minutes: int = 1
    figures: int = 0
    widgets: int = 0
    headings: list[Heading] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def file(self) -> str:
        return f"{self.source.stem}.html"

    @property
    def number(self) -> str:
        return self.source.stem.partition("_")[0]

    @property
    def sections(self) -> list[Heading]:
        return [h for h in self.headings if h.level in (2, 3)]


def build(sources: Sequence[Path], out: Path) -> Path:
    """Write the site: a page for each notebook, a first page, and what they need, in a folder that works from disk or from any server.

    The folder is replaced as a whole at the end, or not at all.

    Args:
        sources: executed notebooks in the order of reading. out: folder to write.

    Returns:
        The first page, ``out/index.html``.

    Raises:
        Invalid: no notebooks; one that is not executed or ended in an error; a formula that cannot be converted; a link that leads
            nowhere; something that would be fetched from elsewhere; a folder that was not made here.
    """
    sources, out = [Path(s) for s in sources], Path(out)
    if not sources:
        raise Invalid("there are no executed notebooks (NN_topic.ipynb) to make a site of; run: python -m apnb.reading execute")
    _ours(out)
    pages = [page(source) for source in sources]
    files = _files(pages)
    _check(files, {p.file: p.source.name for p in pages})
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as place:
        new, old = Path(place) / "new", Path(place) / "old"
        for name, content in files.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_bytes(content.encode() if isinstance(content, str) else content)
        (new / MARKER).write_text(f"made by apnb {__version__}; replaced as a whole when it is made again\n")
        if out.exists():
            out.rename(old)
        try:
            new.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    return out / "index.html"


def _ours(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise Invalid(f"{out} is not a folder; name one that does not exist yet, or a site made here")
    if out.exists() and any(out.iterdir()) and not (out / MARKER).exists():
        raise Invalid(f"{out} holds files that are no site made here, and would be replaced as a whole; name another folder")


def page(source: Path) -> Page:
    """One notebook as a page.

    Raises:
        Invalid: as `build`, but for links, which only the whole site can check.
    """
    notebook = read(source)
    cells = [c for c in notebook.cells if COLAB not in c.metadata.get("tags", []) and c.source.strip()]
    made, renderer, body, words = Page(source, made=_made(notebook.metadata)), Renderer(source.parent), [], 0.0
    for i, cell in enumerate(cells):
        try:
            if cell.cell_type == "markdown":
                body.append(f'<div class="prose">{html_of(cell.source, renderer)}</div>')
                words += len(without_tags(body[-1]).split())
            elif cell.cell_type == "code":
                body.append(_code(cell, i, made, renderer))
                words += 8 * len(cell.source.splitlines())
        except Invalid as error:
            raise Invalid(f"{source.name}: {error}") from None
    made.headings = renderer.headings
    made.files |= renderer.files
    made.title = next((h.text for h in made.headings if h.level == 1), "")
    if not made.title:
        raise Invalid(f"{source.name} has no title; its first cell must begin with '# ' and the title")
    made.body = "\n".join(body)
    first = (re.findall(r"<p>.*?</p>", made.body, re.S) or [""])[0]
    made.question = first.replace('href="#', f'href="{made.file}#')
    made.minutes = max(1, round(words / 200 + 0.5 * (made.figures + made.widgets)))
    return made


def _made(known: Mapping[str, Any]) -> str:
    """What a notebook was executed with, as far as it says."""
    versions = dict(known.get("apnb", {}))
    versions.setdefault("python", known.get("language_info", {}).get("version"))
    names = {"package": "apnb", "python": "Python", "torch": "torch"}
    found = [f"{name} {str(versions[key]).partition('+')[0]}" for key, name in names.items() if versions.get(key)]
    return ", ".join(found)


def _code(cell: Any, i: int, made: Page, renderer: Renderer) -> str:
    """A cell of code and what it gave."""
    if cell.execution_count is None:
        raise Invalid(
            f"the cell {cell.source[:60]!r} was not executed; run: python -m apnb.reading execute {made.source.stem[:2]}"
        )
    shown = [coloured(cell.source)]
    printed = ""
    for output in [*cell.outputs, None]:
        if output is not None and output.output_type == "stream":
            printed += output.text
            continue
        if printed:
            shown.append(f'<pre class="printed">{escape(_plain(printed).rstrip())}</pre>')
            printed = ""
        if output is None:
            break
        if output.output_type == "error":
            raise Invalid(f"the cell {cell.source[:60]!r} ended in {output.ename}; correct it and execute the notebook again")
        shown.append(_output(output.data, made, renderer))
    return f'<div class="cell">{"".join(shown)}</div>'


def coloured(code: str) -> str:
    """Python with classes for its colours."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    return highlight(code, PythonLexer(), HtmlFormatter(wrapcode=True))


def _plain(text: str) -> str:
    """What a terminal would show in the end: without colours, and of each line what was written over the rest."""
    from nbconvert.filters.ansi import strip_ansi

    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in strip_ansi(text).split("\n"))


def _output(data: Mapping[str, Any], made: Page, renderer: Renderer) -> str:
    """The richest form of an output that a page can show."""
    if FIGURE in data:
        return _figure(data, made)
    if "text/html" in data or LIVE in data:
        return _html(data, made)
    for kind, ending in (("image/svg+xml", "svg"), ("image/png", "png"), ("image/jpeg", "jpg")):
        if kind in data:
            said = data.get("text/plain", "")
            section = renderer.headings[-1].text if renderer.headings else made.source.stem
            alt = said if said and not said.startswith("<") else f"figure in the section {without_tags(section)!r}"
            return f'<figure class="picture">{_picture(data[kind], ending, alt, made)}</figure>'
    if "text/markdown" in data:
        return f'<div class="prose">{html_of(data["text/markdown"], renderer)}</div>'
    if "text/latex" in data:
        return f'<div class="prose">{html_of(data["text/latex"], renderer)}</div>'
    return f'<pre class="printed">{escape(_plain(data.get("text/plain", "")))}</pre>'


def _figure(data: Mapping[str, Any], made: Page) -> str:
    """A figure of plotly: its data, a place to draw it, and the still picture that is seen before, without scripts, and on paper."""
    figure = data[FIGURE]
    layout = figure.get("layout", {})
    made.figures += 1
    alt = _told(layout) or f"figure {made.figures}"
    still = _picture(data["image/png"], "png", alt, made, 'class="still"') if "image/png" in data else ""
    without = "" if still else "<noscript><p>This figure is drawn by a script, and scripts are off.</p></noscript>"
    plain = json.dumps(
        {k: figure[k] for k in ("data", "layout", "frames") if k in figure}, separators=(",", ":"), allow_nan=False
    )
    return (
        f'<figure class="plot">{still}{without}<div class="live" aria-label="{escape(alt)}" style="min-height:'
        f'{int(layout.get("height") or 450)}px"></div><script type="application/json">{plain.replace("<", chr(92) + "u003c")}</script>'
        "</figure>"
    )


def _told(layout: Mapping[str, Any]) -> str:
    """A figure's title and subtitle as plain words."""
    title = layout.get("title") or {}
    title = {"text": title} if isinstance(title, str) else title
    parts = [title.get("text"), (title.get("subtitle") or {}).get("text")]
    return ". ".join(" ".join(without_tags(re.sub(r"<br\s*/?>", " ", p)).split()) for p in parts if p)


def _picture(content: str, ending: str, alt: str, made: Page, more: str = "") -> str:
    """A picture as a file of the site, and the element that shows it."""
    raw = content.encode() if ending == "svg" else base64.b64decode(content)
    name = f"assets/{made.source.stem}-{len(made.files) + 1}.{ending}"
    made.files[name] = raw
    size = _size(raw, ending)
    return f'<img src="{name}" alt="{escape(alt)}" loading="lazy"{size} {more}>'


def _size(raw: bytes, ending: str) -> str:
    """Width and height as attributes, so that the text does not move when the picture comes; empty if they are not known."""
    if ending == "png":
        if raw[:8] != b"\x89PNG\r\n\x1a\n" or len(raw) < 24:
            raise Invalid("an output that should be a picture is no PNG; execute the notebook again")
        return ' width="{}" height="{}"'.format(*struct.unpack(">II", raw[16:24]))
    found = re.search(rb'<svg[^>]*\swidth="([\d.]+)"[^>]*\sheight="([\d.]+)"', raw) if ending == "svg" else None
    return f' width="{float(found[1]):.0f}" height="{float(found[2]):.0f}"' if found else ""


def _html(data: Mapping[str, Any], made: Page) -> str:
    """HTML of an output: a widget with its script, a table, or what a widget says that needs a kernel."""
    html = data.get("text/html", "")
    if NEEDS_KERNEL in html or not html:
        said = html or f"<p><em>This widget {NEEDS_KERNEL}.</em></p>"
        return f'<aside class="kernel" aria-label="needs a kernel">{said}{RUN}</aside>'
    if "data-apnb=" in html:
        made.widgets += 1
        return f'<div class="widget">{html}</div>'
    html = re.sub(r"<style scoped>.*?</style>", "", html, flags=re.S)
    html = html.replace('border="1" ', "").replace(' style="text-align: right;"', "")
    return f'<div class="output">{scrollable(html) if "<table" in html else html}</div>'


# --- the site ---------------------------------------------------------------------------------------------------------------------


def _files(pages: Sequence[Page]) -> dict[str, str | bytes]:
    """Every file of the site: name -> content."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    templates = Environment(
        loader=FileSystemLoader(PAGES), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    about = _about()
    shared = {"about": about, "pages": pages, "policy": POLICY}
    files: dict[str, str | bytes] = {
        "index.html": templates.get_template("index.html").render(shared, page=None, description=about["description"], run=RUN),
        "assets/site.css": (PAGES / "site.css").read_text("utf-8") + _colours(),
        "assets/site.js": (PAGES / "site.js").read_text("utf-8"),
    }
    for before, p, after in zip([None, *pages], pages, [*pages[1:], None], strict=False):
        description = " ".join(without_tags(p.question).split())[:300]
        files[p.file] = templates.get_template("page.html").render(
            shared, page=p, before=before, after=after, description=description
        )
        files |= p.files
    if any(p.figures for p in pages):
        files["assets/plotly.min.js"] = get_plotlyjs()
    return files


def _colours() -> str:
    """Rules for the colours of code, light and dark."""
    from pygments.formatters import HtmlFormatter

    def rules(style: str) -> str:
        lines = HtmlFormatter(style=style).get_style_defs(".highlight").splitlines()
        return "\n".join(line for line in lines if re.match(r"\.highlight \.(?!err|hll)", line))

    return f"\n{rules('xcode')}\n@media screen and (prefers-color-scheme: dark) {{\n{rules('github-dark')}\n}}\n"


@cache
def _about() -> dict[str, Any]:
    """Name, version, licence and address, from pyproject.toml in a checkout and from the installed package elsewhere."""
    about = {"name": "apnb", "version": __version__, "title": "Adversarial pruning as a program", "cite": CITE}
    project = PACKAGE.parent / "pyproject.toml"
    known = tomllib.loads(project.read_text("utf-8")).get("project", {}) if project.exists() else {}
    if known.get("name") == "apnb":
        return about | {
            "description": known.get("description", ""),
            "license": known.get("license", "MIT"),
            "source": known.get("urls", {}).get("Repository", ""),
        }
    installed = metadata.metadata("apnb")
    addresses = dict(line.split(", ", 1) for line in installed.get_all("Project-URL") or ())
    return about | {
        "description": installed["Summary"] or "",
        "license": installed["License-Expression"] or "MIT",
        "source": addresses.get("Repository", ""),
    }


class _Read(HTMLParser):
    """What a page refers to: anchors it has, links it shows, addresses it fetches."""

    def __init__(self, html: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self._style = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._style = tag == "style"
        for name, value in attrs:
            value = (value or "").strip()
            if name in ("id", "name"):
                self.anchors.add(value)
            elif tag == "a" and name == "href":
                self.links.append(value)
            elif name == "srcset":
                self.fetched += [part.split()[0] for part in value.split(",") if part.split()]
            elif name in FETCHED or name in ("href", "xlink:href"):
                if (tag, dict(attrs).get("rel")) not in (("link", "prev"), ("link", "next")):
                    self.fetched.append(value)
            elif name == "srcdoc":
                self.fetched += _Read(value).fetched
            elif name == "style":
                self.handle_style(value)

    def handle_data(self, data: str) -> None:
        if self._style:
            self.handle_style(data)

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_style(self, rules: str) -> None:
        self.fetched += [
            found[1] or found[2] for found in re.finditer(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", rules)
        ]


def _check(files: Mapping[str, str | bytes], sources: Mapping[str, str]) -> None:
    """Every link must lead somewhere, and nothing may be fetched that is not in the site."""
    read = {name: _Read(content) for name, content in files.items() if name.endswith(".html")}
    for name, found in sorted(read.items(), key=lambda item: item[0] not in sources):  # the first page repeats what pages say
        whose = sources.get(name, name)
        for address in found.fetched:
            if not address.startswith(("data:", "#")) and address not in files:
                raise Invalid(
                    f"{whose} would fetch {address[:120]!r} when it is read; a page may only use what is in the notebook"
                )
        for address in found.links:
            if why := _dead(address, name, read):
                given = re.sub(r"^(\d\d_\w+)\.html", r"\1.ipynb", address)
                raise Invalid(f"{whose} links to {given!r}, {why}")


def _dead(address: str, name: str, read: Mapping[str, _Read]) -> str:
    """Why a link leads nowhere, or nothing."""
    parts = urlsplit(address)
    if parts.scheme in ("http", "https", "mailto"):
        return ""
    if parts.scheme or parts.netloc or parts.query:
        return "which is no address that a page of the site can have"
    target = unquote(parts.path) or name
    if target not in read:
        return f"which is none of these: {', '.join(f'{Path(n).stem}.ipynb' for n in sorted(read) if n != 'index.html')}"
    if parts.fragment and unquote(parts.fragment) not in read[target].anchors:
        return f"but {target} has no such heading"
    return ""
