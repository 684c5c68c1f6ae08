"""What every criterion has in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from apnb.masks import Masks, Scores, Target
from apnb.mechanisms import Mechanism, Params

if TYPE_CHECKING:
    from apnb.recipes import Budget


@dataclass(frozen=True)
class Setting:
    """What a search is made from: the network's parameters, the selection it prepares, masks to stay within, numbers, chance."""

    params: Params
    target: Target
    budget: Budget
    norms: tuple[str, ...]
    generator: torch.Generator
    within: Masks | None = None


class Criterion:
    """The default searches nothing and scores nothing.

    Attributes:
        statistic: (weight, gradient) -> tensor of the weight's shape, whose mean over attacked batches the score needs; None
            where it needs no gradient.
        starts_anew: what the search learns starts from scratch, also in a trained network, and wants the large learning rate.
        keeps_masks: the search holds the exact number of connections itself; its masks are read off it, nothing is selected.
    """

    statistic: Callable[[Tensor, Tensor], Tensor] | None = None
    starts_anew = False
    keeps_masks = False

    def __init__(self, variant: str = ""):
        self.variant = variant

    def search(self, setting: Setting) -> Mechanism | None:
        """The mechanism active while the network trains before a selection; None: ordinary training, or none at all."""
        return None

    def scores(self, weights: Params, search: Mechanism | None, mean: Params | None, generator: torch.Generator) -> Scores:
        """Importance of every weight, name -> tensor of its shape; a high score is kept.

        Args:
            weights: detached parameters. search: the mechanism at its end, if there was one.
            mean: the statistic's mean, if the criterion has one. generator: for scores that involve chance.
        """
        raise TypeError(f"{type(self).__name__} defines no scores")
