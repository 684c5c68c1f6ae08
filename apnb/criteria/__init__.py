"""The survey's six criteria: what the score of a weight is, and what finds it.

A criterion is an optional *search* (a mechanism that is active while the network trains) and a score read at its end. A high
score is kept, everywhere. One file each; `criterion` gives the object for a recipe's words.
"""

from __future__ import annotations

from apnb.criteria.base import Criterion, Setting
from apnb.criteria.bcs import BayesianConnectivity
from apnb.criteria.hgm import HighestGradientMagnitude
from apnb.criteria.lis import FirstOrderSaliency, LeastImportance
from apnb.criteria.lwm import LowestMagnitude
from apnb.criteria.random import Random
from apnb.criteria.relwm import RegularisedMagnitude
from apnb.criteria.solwm import SolverMagnitude
from apnb.errors import Invalid, choose

CRITERIA: dict[str, dict[str, type[Criterion]]] = {
    "lwm": {"": LowestMagnitude},
    "relwm": {"l1": RegularisedMagnitude, "group_lasso": RegularisedMagnitude},
    "solwm": {"": SolverMagnitude},
    "lis": {"learned": LeastImportance, "saliency": FirstOrderSaliency},
    "hgm": {"": HighestGradientMagnitude},
    "bcs": {"": BayesianConnectivity},
    "random": {"": Random},
}
"""Key -> variant -> class. ``random`` is a control for figures, no criterion of the survey, and not in the grid."""


def variants(key: str) -> tuple[str, ...]:
    """The names of a criterion's variants; empty if it has only one form."""
    return tuple(v for v in CRITERIA[choose(key, CRITERIA, "criterion")] if v)


def criterion(key: str, variant: str = "") -> Criterion:
    """The criterion named ``key`` (lwm, relwm, solwm, lis, hgm, bcs, or the control random) in a variant of it."""
    forms = CRITERIA[choose(key, CRITERIA, "criterion")]
    variant = variant or next(iter(forms))
    if variant not in forms:
        known = ", ".join(v for v in forms if v) or "none"
        raise Invalid(f"criterion {key!r} has no variant {variant!r}; its variants are: {known}")
    return forms[variant](variant)


__all__ = ["CRITERIA", "Criterion", "Setting", "criterion", "variants"]
