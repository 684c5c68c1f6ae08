"""An exercise whose answer is checked at once, with a kernel or without one."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import traitlets as t

from apnb.errors import Invalid
from apnb.widgets.static import StaticWidget


class Question(StaticWidget):
    """A question to the reader: one of several choices, or a number.

    The answer is given by the notebook that asks, computed from what it shows, so it cannot disagree with it.

    Args:
        text: the question, plain text.
        answer: one of ``choices``, or a number.
        choices: what can be chosen, in the order shown; None: a number is typed.
        tolerance: how far from ``answer`` a number may be.
        unit: of the number, shown behind it.
        because: shown with the answer, plain text.

    Attributes:
        told: the answer with its reason. given: what the reader chose or typed, None before. right: whether it is the answer,
            None before.

    Raises:
        Invalid: an answer that is not among the choices, or that is no finite number; a negative tolerance.
    """

    _esm = Path(__file__).parent / "question.js"
    text = t.Unicode().tag(sync=True)
    answer = t.Any().tag(sync=True)
    choices = t.List(t.Unicode()).tag(sync=True)
    tolerance = t.Float().tag(sync=True)
    unit = t.Unicode().tag(sync=True)
    told = t.Unicode().tag(sync=True)
    given = t.Any(allow_none=True).tag(sync=True)

    def __init__(
        self, text: str, answer: Any, *, choices: Sequence[Any] = (), tolerance: float = 0.0, unit: str = "", because: str = ""
    ):
        shown = [str(c) for c in choices or ()]
        if shown and (str(answer) not in shown or len(set(shown)) < max(2, len(shown))):
            raise Invalid(f"the answer {answer!r} must be one of at least two different choices, got {', '.join(shown)}")
        if not shown and (isinstance(answer, bool) or not isinstance(answer, Real) or not math.isfinite(answer)):
            raise Invalid(f"without choices the answer must be a number, got {answer!r}; give choices=[...] for words")
        if isinstance(tolerance, bool) or not isinstance(tolerance, Real) or not 0 <= tolerance < math.inf:
            raise Invalid(f"the tolerance must be a number of at least 0, got {tolerance!r}")
        if not shown:
            answer = int(answer) if float(answer).is_integer() else float(answer)
        number = str(answer) if shown or isinstance(answer, int) else _spelled(answer, tolerance)
        super().__init__(
            text=text, answer=str(answer) if shown else answer, choices=shown, tolerance=float(tolerance), unit=unit,
            told=f"{number}{' ' + unit if unit else ''}. {because}".strip(),
        )  # fmt: skip

    @property
    def right(self) -> bool | None:
        if self.given is None:
            return None
        return self.given == self.answer if self.choices else abs(self.given - self.answer) <= self.tolerance + 1e-12

    def fallback(self) -> str:
        """For places that run no scripts: the question with its answer folded."""
        choices = "".join(f"<li>{html.escape(c)}</li>" for c in self.choices)
        return (
            f"<p><b>Question.</b> {html.escape(self.text)}</p>{f'<ul>{choices}</ul>' if choices else ''}"
            f"<details><summary>Answer</summary><p>{html.escape(self.told)}</p></details>"
        )

    def __repr__(self) -> str:
        return f"Question: {self.text}" + (f" ({' / '.join(self.choices)})" if self.choices else "")


def _spelled(number: float, tolerance: float) -> str:
    """With as few digits (four at least) as are right within the tolerance."""
    return next(
        said for digits in range(4, 18) if abs(float(said := f"{number:.{digits}g}") - number) <= tolerance or digits == 17
    )
