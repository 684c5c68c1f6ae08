"""AutoAttack (Croce and Hein 2020), as published by its authors: its four attacks one by one, so that each verdict has a name.

The package's own loop over attacks and batches is repeated here (same batches of surviving points, same seed for every call), so
verdicts equal those of its ``run_standard_evaluation``; what is added is which attack broke a point, progress, and a random
state that is left as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from apnb.chance import borrowed

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
LITE = ("apgd-ce", "apgd-t")


def attacks_for(names: tuple[str, ...], classes: int) -> tuple[tuple[str, ...], list[str]]:
    """Which of the attacks can run with so few classes, and a sentence for each that cannot."""
    if classes >= 4 or "apgd-t" not in names:
        return names, []
    rest = tuple(n for n in names if n != "apgd-t")
    return rest, [f"APGD-T needs at least 4 classes and there are {classes}: it was left out, the other attacks ran"]


def autoattack(
    net: nn.Module, *, eps: float, classes: int, seed: int, device: torch.device, notes: list[str]
) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The four attacks of the standard version against a network in evaluation mode with frozen parameters.

    Args:
        net: images -> logits (N, classes), on ``device``. eps: radius of the ball. seed: of every call.
        notes: gathers the sentences in which the package warns (zero gradients), each once.

    Returns:
        Name -> attack: images (N, C, H, W) in [0, 1] and labels (N,) to candidates of the same shape, not yet verified.
    """
    from pyautoattack import AutoAttack

    aa = AutoAttack(net, norm="Linf", eps=eps, seed=seed, version="standard", device=device)
    aa.verbose = False
    aa.apgd.logger = aa.apgd_targeted.logger = _gathering(notes)
    aa.apgd.loss = "ce"
    aa.fab.targeted = True
    aa.apgd_targeted.n_target_classes = aa.fab.n_target_classes = min(9, classes - 1)
    made = {"apgd-ce": aa.apgd, "apgd-t": aa.apgd_targeted, "fab-t": aa.fab, "square": aa.square}

    def call(attack: object) -> Callable[[Tensor, Tensor], Tensor]:
        def run(x: Tensor, y: Tensor) -> Tensor:
            with borrowed(device), torch.no_grad():
                attack.seed = seed
                return attack.perturb(x, y).detach()

        return run

    return {name: call(attack) for name, attack in made.items()}


def _gathering(notes: list[str]) -> logging.Logger:
    """A logger of our own whose warnings end in ``notes`` instead of on the terminal."""

    class Gather(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            sentence = f"AutoAttack warns: {' '.join(record.getMessage().split())}"
            if sentence not in notes:
                notes.append(sentence)

    logger = logging.Logger("apnb.autoattack", logging.WARNING)
    logger.addHandler(Gather())
    return logger
