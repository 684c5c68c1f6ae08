"""Figures: data in, plotly figure out. Nothing global is changed, except by `renderer`, which a notebook calls for itself."""

from apnb.plots.inside import after_cut, history, layers, masks, ramps, recovery, units
from apnb.plots.look import ATTACKS, BLUE, CLEAN, CRITERIA, GREEN, LOOKS, ORANGE, PIPELINES, RED, SKY, TEMPLATE
from apnb.plots.security import attacks, common_eps, examples, security_curve, under_attack
from apnb.plots.show import movable, renderer, save, writable
from apnb.plots.side import highlight, intervals, layer_shares, overlap, ranks, seeds
from apnb.plots.sparsity import robustness_sparsity
from apnb.plots.survey import atlas, by_trait, clean_robust, crossing, first_and_second, published_sparsity
