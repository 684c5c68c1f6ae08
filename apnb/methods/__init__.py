"""The surveyed methods, one file each: what a method adds to the grammar, with its equations and their source.

A file has a function `stages`, written against an `apnb.runner.Runner`: a generator of named stages that returns the masks. The
numbers are in `apnb.presets`. No file here imports another: what two of them share stands in the modules that all may use.
"""

from __future__ import annotations

from collections.abc import Generator
from importlib import import_module
from typing import TYPE_CHECKING

from apnb.events import Event
from apnb.masks import Masks

if TYPE_CHECKING:
    from apnb.runner import Runner


def stages(run: Runner) -> Generator[Event, None, Masks]:
    """The stages of the recipe's method; returns the masks."""
    return import_module(f"apnb.methods.{run.recipe.preset.survey}").stages(run)
