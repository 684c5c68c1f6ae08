"""What a correct implementation of each surveyed method has to show, and a pytest plugin that says which tests show it.

A test proves property n of a method if it carries ``@pytest.mark.check(method, n)``. With ``-p tests.checks`` and a path in
APNB_CHECKS, the outcome of every such test is written there as JSON: method -> n -> {test: passed}.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path

CHECKS: dict[str, tuple[str, ...]] = {
    "radmm": (
        "kept = n - ceil((n - 1) p) in each layer; the strict mask of 11 values at p = 0.5 has 5 ones where 6 values stay",
        "the projection is idempotent, scales with its argument, is the nearest such tensor, and its supports shrink in p",
        "before the cut W is dense, Z has the target count, and U changes by W - Z at dual updates and nowhere else",
        "rho after k updates is rho0 * 1.3^k; the rate falls 7, 7, 6 epochs in a period of 20",
        "||W - Z|| / ||W|| ends far below its start, and the cut costs less than the same cut of the pretrained network",
        "while fine-tuning zeros stay, norms, biases and the classifier move, momentum of pruned entries is 0",
        "the penalty's gradient is rho (W - Z + U), or (1 + k) times that as released; none for the classifier",
        "a batch raises num_batches_tracked by steps + 2; x' stays in the ball and in [0, 1]",
    ),
    "hydra": (
        "kept = n - int((1 - k) n) in every layer, first, shortcut and classifier included",
        "masks are nested in k",
        "the first mask is that of magnitude, max |s| = sqrt(6 / fan_in), scaling a layer changes nothing",
        "in the prune stage weights and biases stay to the bit; scores and norms change",
        "dL/ds = dL/dw_eff * w * sign(s) at every position, dropped ones too",
        "a pruned connection can return",
        "while fine-tuning the mask is constant and masked weights influence nothing",
        "the exported network gives the masked network's logits, with 1 - k of zeros",
    ),
    "harp": (
        "k stays in (k_min, 1), and the start is met",
        "kept = n - int((1 - k_l) n) in each layer, and in all close to r",
        "dL/dq is the sum of dL/dw_eff * w times the rate's slope, plus the budget's; scores as in HYDRA",
        "L_size is 0 with zero gradient below the budget and r / K - 1 above; gradients share by n_l * slope",
        "gamma, 2 gamma, 3 gamma, ... and constant from the first epoch that ends within the budget",
        "weights stay in the prune stage, scores and shares while fine-tuning",
        "with a large gamma alone r goes to K, large layers lose most, and what is selected is near K",
        "channels: whole input slices, round(k C_in) of them, a shortcut has its block's share",
    ),
    "pwoa": (
        "after pretraining no attack is trained on and the teacher never changes",
        "distillation is 0 for equal logits, classes times smaller than the batch mean, with gradient T (p - q) / (m C)",
        "HSIC is symmetric, blind to a joint permutation, within [0, C - 1] for labels, obeys Cauchy-Schwarz, and equals the formula",
        "minimising H alone lowers what depends on the image or raises what depends on the label",
        "rho_k = min(1, rho0 * 1.35^k); U changes at dual updates only; Z has the target count at every epoch",
        "kept counts as in RADMM, the classifier dense, zeros constant while fine-tuning",
        "permuted labels change nothing while ADMM runs; with a label term they do",
        "at equal sparsity it is more robust than a magnitude cut and clean fine-tuning",
    ),
    "mad": (
        "row sums are half G delta A delta >= 0; scaling delta by c scales by c^2; no mask, no saliency",
        "one image, linear layer: the exact rank-one Fisher value",
        "the mask stage leaves weights and statistics to the bit, M <= 1, the loss falls, gradients reach q only",
        "int(p N) zeros over all convolutions, int(p (in + 1)) in each classifier row, densities differ",
        "pruned sets are nested in p, and the reversed ranking prunes the other end",
        "pruned entries are exactly 0 after every step",
        "the fine-tuning loss: boosted cross entropy alone at weight 0; the runner-up; gradient through natural logits",
        "permuting output channels permutes rows and nothing else",
    ),
    "li20": (
        "kept = N - floor((N - 1) P / 100) - 1, nested in P",
        "scaling one layer's weights changes no mask",
        "after rewinding kept weights are theta_0's to the bit, pruned ones 0, statistics theta_0's",
        "after every step zeros lie within the masks' complement; a dead filter's channel is exactly 0",
        "FGSM moves every pixel by exactly eps or 0 within the box, the same each time",
        "rates: 0.01, 0.02, ..., 0.1, a tenth from half and a hundredth from three quarters on",
        "a linear bias after a step is the updated one times its row's density",
        "one input gradient a batch in the search, as many as steps for the ticket",
    ),
    "rst": (
        "kept = n - int((1 - k) n) in every layer, with the known totals for both networks",
        "weights stay to the bit, only scores learn, norms have nothing trainable",
        "dL/dS = sign(S) W dL/dW_eff, dropped entries too",
        "masks are nested in k",
        "signs and scales of scores change no mask and no output",
        "a step is S - lr (g + wd S); entries without gradient shrink",
        "|W| has one value, sqrt(2 / fan_in), in each layer",
        "a search beats the first random mask at the same k",
    ),
    "robustbird": (
        "round(p N) go over all layers; the largest pruned is no larger than the smallest kept; densities differ",
        "the detector's mask has N_c - int(N_c p) - 1 ones and ignores the classifier",
        "it fires at the fifth equal mask, not before, and not while one distance is above the threshold",
        "any sequence fires at the fifth epoch for p = 0.99",
        "after the cut kept weights are those of the first stage to the bit",
        "masks stay, zeros stay, masked gradients are zero",
        "the second stage starts at the full rate with empty momentum",
        "folding weight and mask gives the same logits",
    ),
    "twinrep": (
        "kept = N - round(N r) over all layers together, densities differ",
        "the threshold sees W A: rescaling W by c and A by 1/c changes nothing",
        "gradients are the closed forms; masked twin entries get none, the channel form's W does",
        "the exported network gives the training network's logits",
        "masks never change after the cut and are nested in r",
        "filters: max(1, number above the threshold) stay in each convolution, whole; the classifier is untouched",
        "decay alone pulls w^2 and a^2 together and V down; with data it makes a heavier spike at 0 than the plain layer",
        "at the start std(V) * 3 fan_in = 1",
    ),
}
CHECKS["flyingbird"] = CHECKS["flyingbird+"] = (
    "1/d - 1 is proportional to n; the kept total is within its bounds, with the known totals for both networks",
    "growth by gradient keeps every layer's count, random growth only on average",
    "the ceil(rho a) smallest active weights of each layer die, none across layers",
    "newborns are 0 with zero momentum; inactive weights and momentum are 0 after every step",
    "rho(0) = 0.5, rho(T/2) = 0.2525, rho(T) = 0.005",
    "the union of masks over time is larger than the last one",
    "with +, a growing gap lowers the density, a growing loss raises it slightly, and before its epoch nothing differs",
    "growing by clean gradients gives another mask: the objective is the attacked one",
)

_found: dict[str, dict[int, dict[str, bool | None]]] = defaultdict(lambda: defaultdict(dict))


def pytest_itemcollected(item) -> None:
    for mark in item.iter_markers("check"):
        method, number = mark.args
        _found[method][number].setdefault(item.nodeid, None)


def pytest_runtest_logreport(report) -> None:
    for numbers in _found.values():
        for tests in numbers.values():
            if report.nodeid in tests and (report.when == "call" or not report.passed):
                tests[report.nodeid] = report.passed and tests[report.nodeid] is not False


def pytest_sessionfinish() -> None:
    if place := os.environ.get("APNB_CHECKS"):
        Path(place).write_text(json.dumps(_found), encoding="utf-8")
