"""The address of this project, written where a reader needs it: Colab cells, links, the README (``python -m apnb.reading stamp``).

The address stands once, in pyproject.toml: ``[project.urls] Repository = "https://host/owner/name"`` (and, if the reading edition
is published, ``Documentation``). From it each notebook gets its first cell, which installs the package in Google Colab and does
nothing elsewhere, and a line of links; the README gets badges and the install line. Without an address the cell asks for it and
the README says what to paste. Stamping again replaces what was stamped, and touches nothing else: texts and executed notebooks
stay as they are, byte for byte, so none has to run again.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import quote

from apnb.errors import Invalid
from apnb.reading.series import COLAB
from apnb.store import atomic

BRANCH = "main"
FIRST = "00_start_here"
BEGIN, END = "<!-- links -->", "<!-- /links -->"
CODE = """\
# @title Only for Google Colab: run this cell first. Anywhere else it does nothing.
ADDRESS = "{address}"  # @param {{type: "string"}}
if "google.colab" in str(globals().get("get_ipython")):
    from importlib.util import find_spec

    class NotInstalled(Exception):
        def _render_traceback_(self):
            return [str(self)]  # one sentence instead of a traceback

    if find_spec("apnb") is None and ADDRESS:
        get_ipython().run_line_magic("pip", f'install --quiet "apnb[widgets] @ git+{{ADDRESS}}"')
    if find_spec("apnb") is None:
        raise NotInstalled("apnb is missing: put the address of its code (https://...) into the field ADDRESS, then run this cell again.")
    import torch
    from google.colab import output

    output.enable_custom_widget_manager()
    gpu = torch.cuda.is_available() and torch.cuda.get_device_name()
    print(f"Runs on the GPU: {{gpu}}." if gpu else "Runs on the CPU, which is enough here; for a GPU: Runtime > Change runtime type.")
"""
UNKNOWN = """\
**In a browser, with nothing installed.** Colab: upload a file of `notebooks/` there, put the address of this repository into the
field ADDRESS of its first cell and run that cell. Binder: paste the address at [mybinder.org](https://mybinder.org), and
`lab/tree/notebooks/{name}.ipynb` as the URL to open. On a machine of your own, without a clone: `pip install 'apnb[lab] @ git+URL'`
with the address in the place of URL, then `apnb lab`. (Once `[project.urls]` in `pyproject.toml` names the address as `Repository`,
`python -m apnb.reading stamp` writes ready links and install lines here and into the notebooks.)"""
BADGES = {
    "Open in Colab": "https://colab.research.google.com/assets/colab-badge.svg",
    "Open in Binder": "https://mybinder.org/badge_logo.svg",
}
"""Pictures for the README only: a notebook or a page must not ask another host for anything."""


def stamp(root: Path) -> list[Path]:
    """Write the address into every notebook and the README of a checkout; the files that changed.

    Raises:
        Invalid: pyproject.toml names an address that is none, or the README has no place for the links.
    """
    changed = _stamped(root)
    for path, text in changed.items():
        atomic(path, lambda beside, text=text: beside.write_bytes(text.encode()))
    return list(changed)


def stale(root: Path) -> list[str]:
    """What is not stamped as pyproject.toml says, one sentence a file; raises as `stamp`."""
    return [f"{path.relative_to(root)} is not stamped; run: python -m apnb.reading stamp" for path in _stamped(root)]


def addresses(root: Path) -> tuple[str, str]:
    """The project's address and that of its reading edition, from pyproject.toml; empty where none is known."""
    with (root / "pyproject.toml").open("rb") as file:
        urls = tomllib.load(file)["project"].get("urls", {})
    found = []
    for name, form, parts in (("Repository", "https://host/owner/name", "{2,}"), ("Documentation", "https://host/path", "*")):
        address = urls.get(name, "").rstrip("/").removesuffix(".git")
        known = re.fullmatch(rf"https://([\w.-]+(?::\d+)?)((?:/[\w.~-]+){parts})", address)
        host, path = (known[1].lower(), known[2]) if known else ("", "")
        if address and (not known or (name == "Repository" and host == "github.com" and path.count("/") > 2)):
            raise Invalid(f"pyproject.toml, [project.urls]: {address!r} is no address of the form {form}")
        found.append(f"https://{host}{path}" if known else "")
    return found[0], found[1]


def cell(address: str) -> str:
    """The code that stands first in every notebook; ``address`` may be empty."""
    return CODE.format(address=address).rstrip("\n")


def links(address: str, edition: str, name: str) -> dict[str, str]:
    """Where the notebook ``name`` opens: words -> address. Colab opens notebooks of GitHub only; Binder any public repository."""
    if not address:
        return {}
    host, _, path = address.removeprefix("https://").partition("/")
    place = {"github.com": f"gh/{path}", "gitlab.com": f"gl/{quote(path, safe='')}"}.get(host, f"git/{quote(address, safe='')}")
    found = {}
    if host == "github.com":
        found["Open in Colab"] = f"https://colab.research.google.com/github/{path}/blob/{BRANCH}/notebooks/{name}.ipynb"
    found["Open in Binder"] = f"https://mybinder.org/v2/{place}/{BRANCH}?urlpath=lab/tree/notebooks/{name}.ipynb"
    return found | ({"Read without running": edition} if edition else {})


def _stamped(root: Path) -> dict[Path, str]:
    address, edition = addresses(root)
    changed = {}
    for path in [root / "README.md", *sorted((root / "notebooks").glob("[0-9][0-9]_*.*"))]:
        if path.suffix not in (".md", ".py", ".ipynb"):
            continue
        text = path.read_bytes().decode()
        if path.suffix == ".md":
            new = _in_readme(text, address, edition)
        else:
            front = [("code", cell(address))]
            if found := links(address, edition, path.stem):
                front.append(("markdown", " · ".join(f"[{words}]({where})" for words, where in found.items())))
            new = (_in_text if path.suffix == ".py" else _in_notebook)(text, front)
        if new != text:
            changed[path] = new
    return changed


def _in_readme(text: str, address: str, edition: str) -> str:
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise Invalid(f"README.md has no place for the links: put a line {BEGIN} and a line {END} where they belong")
    said = UNKNOWN.format(name=FIRST)
    if address:
        shown = [
            f"[![{words}]({BADGES[words]})]({where})" if words in BADGES else f"[{words}]({where})"
            for words, where in links(address, edition, FIRST).items()
        ]
        said = f"{' '.join(shown)}\n\nWithout a clone: `pip install 'apnb[lab] @ git+{address}'`, then `apnb lab`."
    return f"{before}{BEGIN}\n{said}\n{END}{after}"


def _metadata(kind: str) -> dict[str, Any]:
    return {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": [COLAB]} if kind == "code" else {"tags": [COLAB]}


def _in_text(text: str, front: list[tuple[str, str]]) -> str:
    """The percent script with ``front`` (kind, source) as its first cells, in the place of those that were stamped before."""
    starts = [match.start() for match in re.finditer(r"^# %%", text, re.M)]
    kept = next(at for at in starts if f'tags=["{COLAB}"]' not in text[at:].split("\n", 1)[0])
    blocks = []
    for kind, source in front:
        options = " ".join(f"{key}={json.dumps(value)}" for key, value in _metadata(kind).items())
        body = source if kind == "code" else "\n".join(f"# {line}".rstrip() for line in source.split("\n"))
        blocks.append(f"# %%{' [markdown]' if kind == 'markdown' else ''} {options}\n{body}\n\n")
    return text[: starts[0]] + "".join(blocks) + text[kept:]


def _in_notebook(text: str, front: list[tuple[str, str]]) -> str:
    """The same for an executed notebook's JSON. What was stamped before keeps its number, its output and its name."""
    opening = '"cells": ['
    start = text.index(opening) + len(opening)
    old: dict[str, dict[str, Any]] = {}
    kept = text.index("{", start)
    while COLAB in (found := json.JSONDecoder().raw_decode(text, kept))[0]["metadata"].get("tags", []):
        old[found[0]["cell_type"]] = found[0]
        kept = text.index("{", found[1])
    blocks = []
    for kind, source in front:
        new = {
            "cell_type": kind,
            "id": f"{COLAB}-{kind}",
            "metadata": _metadata(kind),
            "source": source.splitlines(keepends=True),
        }
        if kind == "code":
            new |= {"execution_count": None, "outputs": []}
        new |= {key: old[kind][key] for key in ("id", "execution_count", "outputs") if key in old.get(kind, {})}
        blocks.append("\n" + json.dumps(new, indent=1, ensure_ascii=False, sort_keys=True) + ",")
    return text[:start] + "".join(blocks).replace("\n", "\n  ") + "\n  " + text[kept:]
