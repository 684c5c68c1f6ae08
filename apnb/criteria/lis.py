r"""LIS, least importance score: how much the adversarial loss depends on a weight.

Variants: ``learned`` descends the loss over scores, straight through a top-k selection (Sehwag et al. 2020, HYDRA);
``saliency`` is the first-order estimate of the loss change when the weight goes, :math:`s = |w\,\partial L/\partial w|`, in the
mean over attacked batches (Mozer and Smolensky 1988; Molchanov et al. 2017, eq. 8).
"""

from apnb.criteria.base import Criterion
from apnb.mechanisms import LearnedScores


class LeastImportance(Criterion):
    """s = |score|, learned."""

    starts_anew = True

    def search(self, setting):
        return LearnedScores(setting.params, setting.target, setting.norms, setting.within)

    def scores(self, weights, search, mean, generator):
        return {n: s.detach().abs() for n, s in search.scores.items()}


class FirstOrderSaliency(Criterion):
    """s = mean over batches of |w * dL/dw|."""

    @staticmethod
    def statistic(weight, gradient):
        return (weight * gradient).abs()

    def scores(self, weights, search, mean, generator):
        return dict(mean)
