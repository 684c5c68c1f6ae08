"""One widget for three places: a running kernel, a notebook's exported page, a page of its own.

The front end of a widget asks its model for little: get, set, save_changes, on. A page without a kernel gives it a stand-in that
keeps the state in the page, so the same JavaScript file serves both. The stand-in's ``static`` is true: by it the file knows that
no Python listens.

The page is a fragment, not a frame: what the widget draws hangs in a shadow root, which inherits colours, fonts and the colour
scheme of the page around it, while the page's rules for tables and buttons do not reach inside; and it grows with its content,
where a frame would need its height in advance.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

import anywidget

_FRAGMENT = """<div data-apnb="{name}">{fallback}</div>
<script type="module">
const state = {state}, subs = {{}};
const model = {{
  get: (k) => state[k],
  set: (k, v) => {{ if (state[k] !== v) {{ state[k] = v; (subs["change:" + k] ?? []).forEach((f) => f()); }} }},
  on: (e, f) => (subs[e] ??= []).push(f), off() {{}}, save_changes() {{}}, send() {{}},
}};
const {{ default: widget }} = await import("data:text/javascript;base64,{code}");
for (const el of document.querySelectorAll('[data-apnb="{name}"]:not([data-drawn])')) {{
  el.dataset.drawn = "";
  el.replaceChildren();
  await widget.render({{ model, el }});
}}
</script>
"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>body {{ font: 15px/1.45 Helvetica, Arial, sans-serif; margin: 1.5rem; background: Canvas; color: CanvasText }}</style>
</head>
<body>
<h1>{title}</h1>
{fragment}</body>
</html>
"""


class StaticWidget(anywidget.AnyWidget):
    """A widget that also works in a page with no kernel and no network.

    A subclass names its JavaScript file in ``_esm`` and holds all of its state in traits that are plain JSON.
    """

    def state(self) -> dict[str, Any]:
        """What the page needs to start from: the traits of the widget itself."""
        own = {k: v for k, v in self.get_state().items() if not k.startswith("_")}
        return {k: own[k] for k in own if k not in ("layout", "tabbable", "tooltip")}

    def fallback(self) -> str:
        """Plain HTML for places that strip scripts, such as a code host's preview; the script removes it. Default: nothing."""
        return ""

    def to_html(self) -> str:
        """A fragment for any HTML page: no request leaves it."""
        state = json.dumps({**self.state(), "static": True}, allow_nan=False).replace("<", "\\u003c")
        code = base64.b64encode(str(self._esm).encode()).decode()
        name = f"w{hashlib.sha256((state + code).encode()).hexdigest()[:12]}"  # the same at every execution
        return _FRAGMENT.format(name=name, fallback=self.fallback(), state=state, code=code)

    @staticmethod
    def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
        """A small table for `fallback`; everything in it is text."""

        def line(tag: str, cells: Sequence[object]) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(line("td", row) for row in rows)
        return (
            f"<table><caption>{html.escape(caption)}</caption><thead>{line('th', columns)}</thead><tbody>{body}</tbody></table>"
        )

    def page(self, title: str) -> str:
        """A page of its own, in the reader's light or dark colours."""
        return _PAGE.format(title=html.escape(title), fragment=self.to_html())

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = super()._repr_mimebundle_(**options)
        data, meta = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**data, "text/html": self.to_html()}, meta
