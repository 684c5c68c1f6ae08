r"""HGM, highest gradient magnitude: what reacts most to an attack goes, :math:`s = -\overline{|\partial L_\mathrm{adv}/\partial w|}`.

The mean is over attacked batches of the absolute value of each batch's gradient. The direction is the point: weights whose
gradient under attack is *large* are taken for carriers of non-robust features and removed. Source: Lim et al. 2021 (RFP);
weights' gradients rather than feature maps', as the survey reads "gradient magnitude".
"""

from apnb.criteria.base import Criterion


class HighestGradientMagnitude(Criterion):
    """s = minus the mean of |dL/dw| on adversarial examples: the highest gradients are pruned."""

    @staticmethod
    def statistic(weight, gradient):
        return gradient.abs()

    def scores(self, weights, search, mean, generator):
        return {n: -g for n, g in mean.items()}
