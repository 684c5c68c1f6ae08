r"""RELWM, regularised lowest weight magnitude: a penalty drives weights to zero while the network trains, then :math:`s = |w|`.

The survey's repository also calls it SPALWM (sparsity-based). Variants: ``l1`` (lasso on every weight) and ``group_lasso`` (on
the units of the structure). Source: survey, "Criterion"; penalties: Tibshirani 1996, Yuan and Lin 2006.
"""

from apnb.criteria.base import Criterion
from apnb.mechanisms import Regularised


class RegularisedMagnitude(Criterion):
    """s = |w| after training with an l1 or a group-lasso penalty of strength ``budget.strength``."""

    def search(self, setting):
        return Regularised(setting.target, self.variant, setting.budget.strength)

    def scores(self, weights, search, mean, generator):
        return {n: w.abs() for n, w in weights.items()}
