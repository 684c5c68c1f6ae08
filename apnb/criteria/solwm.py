r"""SOLWM, solver-based lowest weight magnitude: ADMM moves the weights towards a sparse copy, then :math:`s = |w + u|`.

Source: survey, "Criterion"; the solver as in Zhang et al. 2018 (ECCV) and, for robust networks, Ye et al. 2019 (RADMM), eq. 3-7.
"""

from apnb.criteria.base import Criterion
from apnb.mechanisms import Admm


class SolverMagnitude(Criterion):
    """s = |w + u|, u the scaled dual of the constraint "w has at most k units"."""

    def search(self, setting):
        b = setting.budget
        return Admm(setting.params, setting.target, rho=b.rho, growth=b.rho_growth, period=b.dual_period, within=setting.within)

    def scores(self, weights, search, mean, generator):
        return {n: (weights[n] + u).abs() if (u := search.U.get(n)) is not None else w.abs() for n, w in weights.items()}
