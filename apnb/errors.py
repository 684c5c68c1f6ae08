"""The one exception that speaks to a person."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Invalid(ValueError):
    """Something was given that cannot work. The message is one sentence: what was given, what was expected, what to do."""


def nearest(given: str, known: Iterable[str], n: int = 3) -> str:
    """The known names closest to ``given``, quoted and joined for a sentence; all of them if none is close and they are few."""
    known = [str(k) for k in known]
    lower = {k.lower(): k for k in known}
    close = [lower[k] for k in difflib.get_close_matches(str(given).lower(), lower, n=n, cutoff=0.5)]
    names = close or (known if len(known) <= 12 else known[:12])
    text = " or ".join(repr(k) for k in names) if close else ", ".join(repr(k) for k in names)
    return text if close or len(known) <= 12 else f"{text}, ..."


def choose(given: object, known: Iterable[str], what: str) -> str:
    """``given`` if it is one of ``known`` (case and dashes do not matter), else `Invalid` with the nearest names."""
    known = [str(k) for k in known]
    folded = str(given).strip().lower().replace("-", "_")
    for name in known:
        if name.lower().replace("-", "_") == folded:
            return name
    raise Invalid(f"no {what} {str(given)!r}; did you mean {nearest(str(given), known)}?")
