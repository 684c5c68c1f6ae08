"""Random scores: the control that any criterion has to beat. Not one of the survey's criteria."""

from apnb.chance import uniform
from apnb.criteria.base import Criterion


class Random(Criterion):
    """s uniform in [0, 1), anew at each selection."""

    def scores(self, weights, search, mean, generator):
        return {n: uniform(w, generator) for n, w in weights.items()}
