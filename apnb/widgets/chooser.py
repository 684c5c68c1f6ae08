"""The form of the lab and its downloads: what the page and Python tell each other. The grammar behind it is `apnb.choices`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets as t

HERE = Path(__file__).parent


class Chooser(anywidget.AnyWidget):
    """Rows of words.

    Attributes:
        rows: what can be chosen, one dict a row: name, title, kind (chips, multi, select or text), hint, options (value, text, and the
            reason for which a word cannot be chosen, empty if it can).
        choice: name -> what is chosen.
        drawn: how often the figure beside the form was drawn; the page then measures anew, since plotly draws before it knows its width.
        told: what that figure shows, for those who do not see it.
    """

    _esm = HERE / "chooser.js"
    _css = HERE / "chooser.css"
    rows = t.List(t.Dict()).tag(sync=True)
    choice = t.Dict().tag(sync=True)
    drawn = t.Int().tag(sync=True)
    told = t.Unicode().tag(sync=True)

    def on_click(self, function: Callable[[str, Any], None]) -> None:
        """Call ``function(name, value)`` for each click, in order; of a row of several words the value is the word that was clicked."""
        self.on_msg(lambda _, content, __: function(content["name"], content["value"]))

    def refuse(self) -> None:
        """Undo on the page what was clicked there."""
        self.send({"refused": True})


class Download(anywidget.AnyWidget):
    """Hands a file to the browser when it is given one: `give`."""

    _esm = """
    export default { render({ model, el }) {
      model.on("change:count", () => {
        const link = document.createElement("a");
        link.href = URL.createObjectURL(new Blob([model.get("content")], { type: "application/octet-stream" }));
        link.download = model.get("name");
        el.append(link);
        link.click();
        link.remove();
        setTimeout(() => URL.revokeObjectURL(link.href), 60000);
      });
    } };
    """
    name = t.Unicode().tag(sync=True)
    content = t.Bytes().tag(sync=True)
    count = t.Int().tag(sync=True)

    def give(self, name: str, content: bytes | str) -> None:
        """Let the page save ``content`` under ``name``."""
        with self.hold_sync():
            self.name, self.content = name, content.encode() if isinstance(content, str) else content
            self.count += 1
        self.content = b""  # nobody needs it a second time


def row(name: str, title: str, kind: str, options: Any = (), hint: str = "") -> dict:
    """One row for `Chooser.rows`; options are `apnb.choices.Option`."""
    words = [{"value": o.value, "text": o.text, "reason": o.reason} for o in options]
    return {"name": name, "title": title, "kind": kind, "options": words, "hint": hint}
