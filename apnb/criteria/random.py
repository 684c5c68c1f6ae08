"""Random scores: the control that any criterion has to beat. Not one of the survey's criteria."""

import torch

from apnb.criteria.base import Criterion


class Random(Criterion):
    """s uniform in [0, 1), anew at each selection."""

    def scores(self, weights, search, mean, generator):
        return {n: torch.rand(w.shape, generator=generator, device=generator.device).to(w.device) for n, w in weights.items()}
