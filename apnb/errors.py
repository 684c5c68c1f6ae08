"""The one exception that speaks to a person."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


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


def listed(words: Iterable[object], last: str = "and") -> str:
    """ "a", "a and b", "a, b and c"."""
    *others, end = map(str, words)
    return f"{', '.join(others)} {last} {end}" if others else end


def field_problem(error: Mapping[str, Any], known: Iterable[str] = ()) -> str:
    """One of pydantic's errors about a file that a person wrote, as half a sentence; ``known`` are the fields it may have."""
    name = ".".join(str(part) for part in error["loc"]) or "the file"
    if error["type"] == "extra_forbidden":
        known = list(known)
        return f"no field {name!r}; " + (f"did you mean {nearest(name, known)}?" if known else "leave it out")
    if error["type"] == "missing":
        return f"the field {name!r} is missing"
    return f"{name}: {error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r:.60}"
