r"""LWM, lowest weight magnitude: :math:`s = |w|`.

Source: Han et al. 2015, "Learning both weights and connections", section 3; survey, "Criterion".
"""

from apnb.criteria.base import Criterion


class LowestMagnitude(Criterion):
    """s = |w|, with no search."""

    def scores(self, weights, search, mean, generator):
        return {n: w.abs() for n, w in weights.items()}
