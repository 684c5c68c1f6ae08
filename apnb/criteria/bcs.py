"""BCS, Bayesian connectivity sampling: connections live and die during training under a constant budget.

Nothing is scored: a connection is pruned when its strength reaches zero. Source: Özdenizci and Legenstein 2021 (BCS-P).
"""

from apnb.criteria.base import Criterion
from apnb.mechanisms import Connectivity


class BayesianConnectivity(Criterion):
    """The masks are the connections that exist at the end of `apnb.mechanisms.Connectivity`."""

    keeps_masks = True

    def search(self, setting):
        return Connectivity(setting.params, setting.target, decay=setting.budget.weight_decay, generator=setting.generator)
