"""AutoAttack (Croce and Hein 2020): its four attacks one by one, so that each verdict has a name.

Two engines run them. ``official`` is the package that the attack's authors publish; it is the authority, and the tests hold ``apnb``,
the engine of this package, to its verdicts attack by attack. Both draw the same random numbers for the same batch and seed. The
package's loop over attacks and batches is `apnb.verdicts.Work`: each attack gets the points that stand, in the same batches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from apnb.attacks.apgd import apgd
from apnb.attacks.fab import fab
from apnb.attacks.square import square
from apnb.chance import borrowed

Attack = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""Images (N, C, H, W) in [0, 1] and labels (N,) -> candidates of the same shape, the image itself where nothing was found; and, of an
attack that looks for the smallest perturbation, the nearest misclassified images at whatever distance. Not yet verified."""

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
LITE = ("apgd-ce", "apgd-t")


def attacks_for(names: tuple[str, ...], classes: int) -> tuple[tuple[str, ...], list[str]]:
    """Which of the attacks can run with so few classes, and a sentence for each that cannot."""
    if classes >= 4 or "apgd-t" not in names:
        return names, []
    rest = tuple(n for n in names if n != "apgd-t")
    return rest, [f"APGD-T needs at least 4 classes and there are {classes}: it was left out, the other attacks ran"]


def official(
    net: nn.Module,
    *,
    eps: float,
    classes: int,
    seed: int,
    device: torch.device,
    notes: list[str],
    steps: int = 100,
    targets: int = 9,
    queries: int = 5000,
    room: int | None = None,
) -> dict[str, Attack]:
    """The four attacks of the authors' package against a network in evaluation mode with frozen parameters.

    Args:
        net: images -> logits (N, classes), on ``device``. eps: radius of the ball. seed: of every call.
        notes: gathers the sentences in which the package warns (zero gradients), each once.
        room: images in one forward pass where memory is short; only our own engine ever takes more than it is given.
        steps, targets, queries: of the gradient attacks, the targeted ones, and Square; AutoAttack's own unless a benchmark says less.

    Returns:
        Name -> `Attack`.
    """
    from pyautoattack import AutoAttack

    aa = AutoAttack(net, norm="Linf", eps=eps, seed=seed, version="standard", device=device)
    aa.verbose = False
    aa.apgd.logger = aa.apgd_targeted.logger = _gathering(notes)
    aa.apgd.loss = "ce"
    aa.fab.targeted = True
    aa.apgd_targeted.n_target_classes = aa.fab.n_target_classes = min(targets, classes - 1)
    aa.square.n_queries, aa.fab.n_iter = queries, steps
    for gradient in (aa.apgd, aa.apgd_targeted):
        gradient.n_iter = steps
        gradient.n_iter_2, gradient.n_iter_min, gradient.size_decr = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    made = {"apgd-ce": aa.apgd, "apgd-t": aa.apgd_targeted, "fab-t": aa.fab, "square": aa.square}

    def call(attack: object) -> Attack:
        def run(x: Tensor, y: Tensor) -> tuple[Tensor, None]:
            with borrowed(device), torch.no_grad():
                attack.seed = seed
                return attack.perturb(x, y).detach(), None

        return run

    return {name: call(attack) for name, attack in made.items()}


def apnb(
    net: nn.Module,
    *,
    eps: float,
    classes: int,
    seed: int,
    device: torch.device,
    notes: list[str],
    steps: int = 100,
    targets: int = 9,
    queries: int = 5000,
    room: int | None = None,
) -> dict[str, Attack]:
    """The same four attacks with the same random numbers, written to do nothing twice; FAB also gives its nearest images.

    Arguments and result as for `official`.
    """
    most = min(targets, classes - 1)

    def warn(sentence: str) -> None:
        if sentence not in notes:
            notes.append(sentence)

    return {
        "apgd-ce": lambda x, y: (apgd(net, x, y, eps=eps, seed=seed, steps=steps), None),
        "apgd-t": lambda x, y: (apgd(net, x, y, eps=eps, seed=seed, steps=steps, targets=most, warn=warn), None),
        "fab-t": lambda x, y: fab(net, x, y, eps=eps, targets=most, steps=steps, room=room),
        "square": lambda x, y: (square(net, x, y, eps=eps, seed=seed, queries=queries, room=room), None),
    }


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


ENGINES = {"apnb": apnb, "pyautoattack": official}
"""Who attacks. Both give the same verdicts."""
