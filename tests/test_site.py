"""The reading edition without a browser: what the pages hold, what is refused, and that a folder is replaced as a whole or not at all."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest

import apnb
from apnb.errors import Invalid
from apnb.paths import shipped
from apnb.taxonomy import leaderboard, methods

pytest.importorskip("nbformat")
pytest.importorskip("anywidget")
pytest.importorskip("latex2mathml")
import nbformat
from bs4 import BeautifulSoup

from apnb.reading import site
from apnb.reading.maths import mathml
from apnb.widgets.leaderboard import leaderboard_data

new = nbformat.v4
SERIES = sorted(shipped("notebooks").glob("[0-9][0-9]_*.ipynb"))
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
FIGURE = {
    "data": [{"x": [0, 1], "y": [1, 0], "type": "scatter"}],
    "layout": {"title": {"text": "It falls <b>fast</b></script>", "subtitle": {"text": "twice<br>measured"}}, "height": 400},
    "config": {"plotlyServerURL": "https://plot.ly"},
}


def text(source: str):
    return new.new_markdown_cell(source)


def code(source: str, *outputs: dict, tags=(), run: int | None = 1):
    """A cell with outputs given as data (mime type -> content), or as whole outputs."""
    whole = [o if "output_type" in o else new.new_output("display_data", data=o) for o in outputs]
    return new.new_code_cell(source, execution_count=run, outputs=whole, metadata={"tags": list(tags)})


def printed(words: str):
    return new.new_output("stream", name="stdout", text=words)


def write(folder: Path, **cells) -> list[Path]:
    """Notebooks by name (``n00_start``), written in order."""
    paths = []
    for name, given in cells.items():
        known = {"apnb": {"package": "0.1.0", "python": "3.11.7", "torch": "2.14.0+cu130"}}
        paths.append(folder / f"{name.removeprefix('n')}.ipynb")
        nbformat.write(new.new_notebook(cells=given, metadata=known), paths[-1])
    return paths


def refusal(tmp_path: Path, *cells) -> str:
    sources = write(tmp_path, n00_start=[text("# Start"), *cells], n01_next=[text("# Next\n\n## Here and now")])
    with pytest.raises(Invalid) as refused:
        site.build(sources, tmp_path / "site")
    assert not (tmp_path / "site").exists() and not list(tmp_path.glob(".site*"))
    return str(refused.value)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("series")
    sources = write(
        folder,
        n00_start=[
            code("%pip install apnb", tags=["colab"], run=None),
            text("# Start with $m$\n\nWhich of them **goes**?\n\nMore."),
            text("## A figure\n\nSee [the next](01_next.ipynb#What-is-$x$?) and [it](#A-figure), [elsewhere](https://example.org/)."),
            code("figure", {site.FIGURE: FIGURE, "image/png": PIXEL}),
            code("digit", {"image/png": PIXEL, "text/plain": "a picture of a digit"}),
            text("<details><summary>Answer</summary>\n\nIt is *large*: $\\lVert m\\rVert_0$, see [there](./01_next.ipynb).\n\n</details>"),
            text("| a | b |\n|---|---|\n| $\\alpha$ | `$HOME` |\n\n```python\nprint('$x$')\n```"),
        ],
        n01_next=[
            text("# Next\n\nAnd then?\n\n## What is $x$?"),
            code("f'${1}$'", {"text/plain": "'$1$'"}),
            code("table", {"text/html": leaderboard().head(3)._repr_html_(), "text/plain": "rows"}),
            code("say()", printed("one\n"), printed("\x1b[31mtwo <b>\x1b[0m\n"), printed("10 %\r100 %\n")),
            code("note", {"text/markdown": "**Bold** $x^2$", "text/plain": "note"}),
            code("drawn", {"image/svg+xml": '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"/>', "text/plain": "<x>"}),
            code("apnb.TaxonomyExplorer()", {"text/html": apnb.TaxonomyExplorer().to_html(), "text/plain": "explorer"}),
            code("apnb.Lab()", {"text/html": "<p>The lab needs a running kernel: run this cell.</p>", "text/plain": "lab"}),
        ],
    )  # fmt: skip
    site.build(sources, folder / "site")
    return folder / "site"


def soup(folder: Path, name: str) -> BeautifulSoup:
    return BeautifulSoup((folder / name).read_text("utf-8"), "html.parser")


# --- what is there ----------------------------------------------------------------------------------------------------------------


def test_each_notebook_is_a_page_and_the_first_page_lists_them_with_their_questions(built):
    first = soup(built, "index.html")
    entries = first.select("ol.list > li")
    assert [e.h3.a["href"] for e in entries] == ["00_start.html", "01_next.html"]
    assert [e.select_one(".question").get_text(strip=True) for e in entries] == ["Which of themgoes?", "And then?"]
    assert {p.name for p in built.glob("*.html")} == {"index.html", "00_start.html", "01_next.html"}


@pytest.mark.parametrize("name", ["index.html", "00_start.html", "01_next.html"])
def test_every_page_has_its_landmarks_one_title_and_all_notebooks_in_the_contents(built, name):
    found = soup(built, name)
    assert len(found.select("main#text")) == len(found.select("h1")) == len(found.select("footer")) == 1
    assert found.select_one("body > a.skip")["href"] == "#text" and found.html["lang"] == "en"
    assert [a["href"] for a in found.select("#contents > ol > li > a")] == ["00_start.html", "01_next.html"]
    assert [a["href"] for a in found.select("#contents [aria-current=page]")] == [name]
    assert "arXiv:2409.01249" in found.footer.get_text() and apnb.__version__ in found.footer.get_text()
    assert all(image.get("alt") for image in found.select("img"))


def test_pages_lead_to_the_one_before_and_the_one_after(built):
    assert [a["href"] for a in soup(built, "00_start.html").select(".turn a")] == ["01_next.html"]
    assert [a["href"] for a in soup(built, "01_next.html").select(".turn a")] == ["00_start.html"]
    assert "Python 3.11.7, torch 2.14.0" in soup(built, "00_start.html").footer.get_text()


def test_links_between_notebooks_lead_to_pages_also_from_folds(built):
    links = [a["href"] for a in soup(built, "00_start.html").select(".prose a:not(.anchor)")]
    assert [link.partition("#")[0] for link in links] == ["01_next.html", "", "https://example.org/", "01_next.html"]


def test_formulas_are_mathml_in_prose_tables_folds_and_headings_and_code_is_left_alone(built):
    found = soup(built, "00_start.html")
    formulas = ["m", "\\lVert m\\rVert_0", "\\alpha"]
    assert [m["alttext"] for m in found.select("article math")] == formulas
    assert found.select_one("h1 math") and found.select_one("details math") and found.select_one("td math")
    assert "$HOME" in found.select_one("td code").get_text() and "'$x$'" in found.select(".highlight")[-1].get_text()
    assert not re.search(r"\$|\\[a-z]", "".join(found.article.find_all(string=lambda s: s.parent.name in ("p", "li", "h2"))))


def test_cells_for_colab_are_left_out_and_pictures_have_words(built):
    page = (built / "00_start.html").read_text()
    assert "pip install" not in page
    assert soup(built, "00_start.html").select_one(".picture img")["alt"] == "a picture of a digit"


def test_a_figure_keeps_its_data_and_a_still_picture_told_by_its_title(built):
    figure = soup(built, "00_start.html").select_one(".plot")
    told = json.loads(figure.select_one("script").string)
    assert told == {"data": FIGURE["data"], "layout": FIGURE["layout"]}
    still = figure.select_one("img.still")
    assert still["alt"] == "It falls fast. twice measured" and (built / still["src"]).read_bytes() == base64.b64decode(PIXEL)
    assert (built / "assets" / "plotly.min.js").stat().st_size > 1e6
    assert "plotly" not in soup(built, "00_start.html").head.get_text() and len(list(built.rglob("plotly*"))) == 1


def test_other_outputs_are_shown_as_they_were(built):
    found = soup(built, "01_next.html")
    assert [p.get_text() for p in found.select(".printed")] == ["'$1$'", "one\ntwo <b>\n100 %"]
    assert len(found.select(".output .table tbody tr")) == 3 and not found.select("style[scoped]")
    assert found.select_one(".cell .prose strong").get_text() == "Bold" and found.select_one(".cell .prose math")
    picture = found.select_one(".picture img")
    assert (picture["width"], picture["height"]) == ("40", "30") and (built / picture["src"]).suffix == ".svg"


def test_a_widget_brings_its_script_and_one_that_needs_a_kernel_says_how_to_get_one(built):
    found = soup(built, "01_next.html")
    assert found.select_one(".widget [data-apnb]") and found.select_one(".widget script[type=module]")
    said = found.select_one(".kernel").get_text()
    assert site.NEEDS_KERNEL in said and "make lab" in said and "apnb lab" in said


def test_nothing_is_fetched_but_files_of_the_site(built):
    for name in ("index.html", "00_start.html", "01_next.html"):
        found = soup(built, name)
        for place in found.select("[src], link[href]"):
            address = place.get("src") or place["href"]
            assert address.startswith("data:") or (built / address).is_file(), address
        assert "default-src 'none'" in found.select_one("meta[http-equiv]")["content"]
    assert "http" not in (built / "assets" / "site.css").read_text() + (built / "assets" / "site.js").read_text()


def test_the_survey_is_cited_as_in_the_citation_file():
    cited = (Path(apnb.__file__).parents[1] / "CITATION.cff").read_text("utf-8")
    names = re.findall(r"family-names: (\w+)", cited)
    assert ", ".join(names[:-1]) + f" and {names[-1]}" == site.CITE["authors"]
    assert all(str(site.CITE[key]) in cited for key in ("title", "year", "number", "address"))


# --- formulas ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latex", "holds"),
    [
        (r"m^\star \in \arg\min_{\|m\|_0 \le k} \mathcal{L}(\theta \odot m)", ("<munder>", "arg\u2009min", "\u2112", "\u2299")),
        (r"\underset{\theta}{\operatorname*{arg\,max}}\ f", ("<munder>", "arg\u2009max")),
        (
            r"\max_{\lVert\delta\rVert_\infty \le \varepsilon} \ell\big(f_\theta(x+\delta), y\big)",
            ("<munder>", "\u2016", "\u2113"),
        ),
        (r"\begin{cases} 1 & \text{if } x > 0 \\ 0 & \text{otherwise} \end{cases}", ("<mtable>", "otherwise", 'stretchy="true"')),
        (r"\begin{aligned} a &= b \\ &= c \end{aligned}", ("<mtable", "<mtr>")),
        (r"\operatorname{sign}(\nabla_x \ell) \boldsymbol{\theta} \mathbb{1}[a]", ("sign", "\U0001d73d", "\U0001d7d9")),
        (r"\tfrac12 \sum_{i=1}^n s_i", ("<munderover>", "<mfrac>")),
        (r"p(x \mid y) \approx 90\,\% \;\text{of } 100 \text{ \%}", ("\u2223", "%", "of")),
        (r"\lfloor s n \rceil \sim \Delta", ("\u230a", "\u2309", "\u223c")),
        (r"\theta_0 \xrightarrow{\text{search}} \Big(1 - \frac tT\Big)^3", ("\u27f6", "search", "<msup><mrow><mo")),
        (r"\log p + \mathrm{KL}(p \,\|\, q)", (">log<", ">KL<")),
        (r"\overline{\left| w \frac{a}{b} \right|} + \bar{x}", ('<mrow class="overlined">', "<mfrac>", "<mover>")),
    ],
)
def test_formulas_of_the_series_become_mathml(latex, holds):
    made = mathml(latex, display=True)
    assert all(part in made for part in holds), made
    assert "\\" not in re.sub('alttext="[^"]*"', "", made)


@pytest.mark.parametrize(
    "latex", [r"\nosuch{x}", r"\frac{a}", r"x^", r"\left( x", "", "a}", r"\text{a $x$}", r"\begin{nosuch} a \end{nosuch}"]
)
def test_a_formula_that_cannot_be_converted_is_refused(latex):
    with pytest.raises(Invalid, match=re.escape(repr(latex))):
        mathml(latex)


# --- what is refused --------------------------------------------------------------------------------------------------------------


ERROR = new.new_output("error", ename="NameError", evalue="x", traceback=[])


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (text("Look: $$ \\nosuch{x} $$"), "'\\\\nosuch{x}' cannot be converted"),
        (text("An open one: $$ \\theta + 1"), "is not closed"),
        (code("1 + 1", run=None), "'1 + 1' was not executed; run: python -m apnb.reading execute 00"),
        (code("x", ERROR), "'x' ended in NameError"),
        (text("[gone](03_gone.ipynb)"), "links to '03_gone.ipynb', which is none of these: 00_start.ipynb, 01_next.ipynb"),
        (text("[gone](../README.md)"), "links to '../README.md'"),
        (text("<a href='nowhere.html'>gone</a>"), "links to 'nowhere.html'"),
        (text("[x](01_next.ipynb#Here)"), "links to '01_next.ipynb#Here', but 01_next.html has no such heading"),
        (text("[x](#There)"), "links to '#There'"),
        (text("[x](javascript:alert)"), "links to 'javascript:alert'"),
        (text("![a](https://example.org/a.png)"), "would fetch 'https://example.org/a.png'"),
        (text("![a](figure.png)"), "would fetch 'figure.png'"),
        (code("x", {"text/html": "<script src='https://cdn.example.org/x.js'></script>"}), "would fetch 'https://cdn"),
        (code("x", {"text/html": "<style>@import 'https://example.org/a.css'</style>"}), "would fetch 'https://example.org/a.css'"),
        (code("x", {"text/html": "<p style='background: url(//example.org/b)'>"}), "would fetch '//example.org/b'"),
        (code("x", {"text/html": "<iframe srcdoc='&lt;img src=\"https://example.org/c\"&gt;'></iframe>"}), "would fetch"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_page_is_refused_with_the_name_of_the_notebook(tmp_path, cell, said):
    told = refusal(tmp_path, cell)
    assert told.startswith("00_start.ipynb") and said in told


def test_an_anchor_that_is_there_is_no_dead_link(tmp_path):
    sources = write(
        tmp_path, n00_start=[text("# S\n\n[x](01_next.ipynb#Here-and-now)")], n01_next=[text("# N\n\n## Here and now")]
    )
    assert site.build(sources, tmp_path / "site").name == "index.html"


def test_a_picture_beside_the_notebook_comes_along_and_one_elsewhere_on_the_disk_does_not(tmp_path):
    (tmp_path / "lab.png").write_bytes(base64.b64decode(PIXEL))
    (tmp_path / "deep").mkdir()
    out = site.build(write(tmp_path, n00_start=[text("# S\n\n![the lab](lab.png)")]), tmp_path / "site").parent
    assert (out / soup(out, "00_start.html").select_one("article img")["src"]).read_bytes() == base64.b64decode(PIXEL)
    with pytest.raises(Invalid, match="would fetch"):
        site.build(write(tmp_path / "deep", n00_start=[text("# S\n\n![the lab](../lab.png)")]), tmp_path / "site")


def test_a_notebook_without_a_title_and_a_series_without_notebooks_are_refused(tmp_path):
    with pytest.raises(Invalid, match="has no title"):
        site.build(write(tmp_path, n00_start=[text("Words.")]), tmp_path / "site")
    with pytest.raises(Invalid, match="no executed notebooks"):
        site.build([], tmp_path / "site")


# --- the folder -------------------------------------------------------------------------------------------------------------------


def test_a_site_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    out = tmp_path / "deep" / "site"
    good = write(tmp_path, n00_start=[text("# One"), code("x", {"image/png": PIXEL})])
    site.build(good, out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(Invalid):
        site.build(write(tmp_path, n00_start=[text("# Two\n\n$\\nosuch$")]), out)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    site.build(write(tmp_path, n01_other=[text("# Three")]), out)
    assert not (out / "00_start.html").exists() and (out / "01_other.html").exists()
    assert not list(out.rglob("*.png")) and not (out / "assets" / "plotly.min.js").exists()
    assert [p.name for p in out.parent.iterdir()] == ["site"]


def test_a_folder_that_was_not_made_here_is_left_alone(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    sources = write(tmp_path, n00_start=[text("# One")])
    with pytest.raises(Invalid, match="no site made here"):
        site.build(sources, mine)
    with pytest.raises(Invalid, match="is not a folder"):
        site.build(sources, mine / "thesis.txt")
    assert [p.name for p in mine.iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    assert site.build(sources, tmp_path / "empty").exists()


def test_the_same_notebooks_make_the_same_site(tmp_path):
    sources = write(tmp_path, n00_start=[text("# One $x$"), code("x", {site.FIGURE: FIGURE})])
    one, two = (site.build(sources, tmp_path / name).parent for name in ("a", "b"))
    assert {p.relative_to(one): p.read_bytes() for p in one.rglob("*.html")} == {
        p.relative_to(two): p.read_bytes() for p in two.rglob("*.html")
    }


# --- widgets where scripts are stripped -------------------------------------------------------------------------------------------


def test_without_scripts_the_explorer_is_a_table_of_the_methods():
    rows = BeautifulSoup(apnb.TaxonomyExplorer().to_html(), "html.parser").select("[data-apnb] tbody tr")
    assert [row.td.get_text() for row in rows] == [m.name for m in methods()]
    after = [m.name for m in methods(pipeline="after")]
    assert [row.td.get_text() for row in rows if row.select("td")[1].get_text() == "after"] == after


def test_without_scripts_the_leaderboard_is_a_table_of_the_best():
    rows = BeautifulSoup(apnb.Leaderboard().to_html(), "html.parser").select("[data-apnb] tbody tr")
    columns = leaderboard().groupby(["data", "structure_group", "network", "sparsity"])["robust"].max()
    assert sorted(float(row.select("td")[-1].get_text()) for row in rows) == sorted(round(v, 2) for v in columns)
    assert leaderboard_data()["protocol"] in BeautifulSoup(apnb.Leaderboard().fallback(), "html.parser").caption.get_text()


# --- the series -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SERIES, ids=lambda p: p.stem)
def test_a_notebook_of_the_series_becomes_a_page_with_all_it_has(source):
    made, notebook = site.page(source), nbformat.read(source, 4)
    data = [o.data for c in notebook.cells if c.cell_type == "code" for o in c.outputs if "data" in o]
    assert made.figures == sum(site.FIGURE in d for d in data)
    assert made.widgets == sum("data-apnb=" in d.get("text/html", "") for d in data)
    assert made.question and made.title and made.made.startswith("apnb ")
    titles = [line for c in notebook.cells if c.cell_type == "markdown" for line in re.findall(r"^#+ .*", c.source, re.M)]
    assert len(made.headings) == len(titles)


def test_the_series_is_a_site(tmp_path):
    index = site.build(SERIES, tmp_path / "site")
    assert [a["href"] for a in soup(index.parent, "index.html").select(".list h3 a")] == [f"{s.stem}.html" for s in SERIES]
