"""Where the files that come with the package are: data and notebooks."""

from __future__ import annotations

from pathlib import Path

from apnb.errors import Invalid

PACKAGE = Path(__file__).resolve().parent


def shipped(folder: str, name: str = "") -> Path:
    """The path of a file (or, without a name, of the folder) that comes with the package.

    An installed wheel has the folder inside the package (``apnb/data``); a checkout has it beside the package.

    Raises:
        Invalid: neither place has it.
    """
    for base in (PACKAGE, PACKAGE.parent):
        path = base / folder / name
        if path.exists():
            return path
    wanted = f"{folder}/{name}" if name else folder
    raise Invalid(f"{wanted!r} is neither in {PACKAGE} nor beside it: install the package again, or run it from a full checkout")


def data_path(name: str = "") -> Path:
    """The path of a file in ``data/``, or of that folder."""
    return shipped("data", name)
