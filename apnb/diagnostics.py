"""Is the number believable? What to look at before a robust accuracy is taken at its word, each indicator a function of its own.

An attack that fails leaves a high number, not an error. The indicators ask for signs of it on a few points that the network
classifies correctly: the flags of AutoAttack (Croce and Hein 2020, and the checks of the authors' package), the Indicators of
Attack Failure (Pintor et al. 2022, arXiv 2106.09947: I1, I2, I3, I6), and what any attack that works obeys (Carlini et al. 2019,
arXiv 1902.06705): everything breaks in a large ball, nothing gets better in a larger one, and whoever sees no gradient
does not beat who sees it.

"doubtful": attacks are known to fail on networks like this, or the number says nothing about robustness. "failed": they did,
the robust accuracy is too high. Where one count is held against another, a difference is said to be more than chance beyond two
standard deviations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from apnb.attacks.autoattack import STANDARD
from apnb.attacks.pgd import ascend, cross_entropy, pgd, uniform_start
from apnb.attacks.square import margins
from apnb.chance import generator
from apnb.copies import full_precision
from apnb.errors import Invalid

if TYPE_CHECKING:
    import pandas as pd

Logits = Callable[[Tensor], Tensor]
Verdict = Literal["fine", "doubtful", "failed", "unknown"]

STEPS = 10
"""Gradient steps of each PGD run."""
DRAWS = 10
"""Random images around each point, where some are looked at. The indicators' authors take 100; means of 10 differ by a few per cent."""
RADIUS = 4 / 255
"""How far the random images of I2 lie from the point."""


@dataclass(frozen=True)
class Finding:
    """What one indicator saw.

    Attributes:
        indicator: its name. value: a share or a ratio, in [0, 1]; None where it could not be had.
        verdict: fine, doubtful (attacks are known to fail on such networks, or there is nothing to attack), failed (they did here),
            unknown (not looked at, or open to another reading).
        meaning: what was seen, in a sentence. advice: what to do about it; empty if fine.
    """

    indicator: str
    value: float | None
    verdict: Verdict
    meaning: str
    advice: str = ""


@dataclass(frozen=True)
class _Case:
    """What the indicators look at: a network, and n points that it classifies correctly."""

    net: Logits
    x: Tensor  # (n, C, H, W)
    y: Tensor  # (n,)
    logits: Tensor  # (n, classes)
    looked_at: Tensor  # (m, 2): label and answer of each image that was looked at on the way to these
    eps: float
    seed: int

    def start(self, eps: float) -> Tensor:
        return uniform_start(self.x, eps, self.draw("start", eps))

    def draw(self, *what: object) -> torch.Generator:
        return generator(self.seed, "diagnose", *what)


def diagnose(
    net: Logits,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    seed: int = 0,
    broken_by: Sequence[str] | None = None,
    attacks: Sequence[str] = STANDARD,
    parent: Logits | None = None,
    points: int = 64,
) -> tuple[Finding, ...]:
    """Look for signs that an evaluation overrates a network.

    It takes at most 131 forward passes of ``points`` images and 100 backward ones, far fewer where PGD breaks them, and looks at as
    many images of ``x`` as it needs to find that many that are classified correctly. Nothing is changed: neither network nor random state.

    Args:
        net: images -> logits (N, classes), deterministic, frozen and in evaluation mode, where ``x`` is; it runs in float32.
        x, y: the points that were evaluated, float32 (N, C, H, W) in [0, 1] and int64 (N,).
        eps: radius of the evaluation, in the units of ``x``. seed: of the points drawn and of the attacks.
        broken_by: for each of the N points the attack that broke it, "clean" or "", as in an `Evaluation`.
        attacks: the attacks behind ``broken_by``; Square is judged only if it is among them.
        parent: the dense network that ``net`` was pruned from, frozen and in evaluation mode.
        points: at most so many are drawn among those classified correctly.

    Returns:
        One `Finding` an indicator, always in the same order; a single one, "points", if no point is classified correctly.

    Raises:
        Invalid: ``eps`` outside (0, 1], ``points`` below 1, or ``broken_by`` of another length than ``y``.
    """
    if not 0 < eps <= 1:
        raise Invalid(f"eps is {eps!r}, expected a share of the pixel range above 0 and up to 1, such as 8/255")
    if points < 1:
        raise Invalid(f"{points} points asked for, expected at least 1 to diagnose the network on")
    if broken_by is not None and len(broken_by) != len(y):
        raise Invalid(
            f"broken_by names {len(broken_by)} points and there are {len(y)}; give one name a point, as in an Evaluation"
        )
    with torch.no_grad(), full_precision():
        case, at = _drawn(net, x, y, eps, seed, points)
        if not len(at):
            return (
                Finding(
                    "points",
                    0.0,
                    "unknown",
                    f"none of {len(y)} points is classified correctly, so there is nothing to attack",
                    "evaluate a trained network; check the order of the classes and the normalisation",
                ),
            )
        useless = _useless_gradients(case)
        blind = isinstance(useless, str)
        nothing = torch.zeros_like(case.y, dtype=torch.bool)
        half, twice = eps / 2, min(2 * eps, 1.0)
        met = {r: nothing if blind else _met(case, r) for r in (half, eps, twice, 0.5, 1.0)}
        broken = {r: nothing if blind else met[r] | _ended(case, r, _negative_margin, ~met[r]) for r in (eps, 0.5, 1.0)}
        ended = nothing if blind else _ended(case, eps, cross_entropy, ~nothing)
        left = ~broken[eps]
        if broken_by is not None:
            names = [broken_by[i] for i in at.tolist()]
            left &= torch.tensor([name in ("", "square") for name in names], device=left.device)
        by_gradients = (
            logit_scale(*((nothing, nothing) if blind else useless)),
            silent_success(met[eps], ended),
            unconstrained_failure(broken[0.5] | broken[1.0]),
            large_ball(broken[0.5]),
            monotone(met[half], met[eps], met[twice]),
        )
        if blind:
            by_gradients = tuple(
                Finding(
                    f.indicator, None, "unknown", f"there is no gradient to attack with: {useless}", "see zero gradients (I1)"
                )
                for f in by_gradients
            )
        alike = one_answer(case)
        findings = (
            softmax_output(case),
            dynamic(case),
            unstable_predictions(case),
            zero_gradients(useless),
            *by_gradients,
            square_against_white_box(broken_by, attacks),
            noise_against_white_box(case, left),
            transfer_from_parent(case, left, parent),
        )
    if alike.verdict == "doubtful" and not blind:  # no attack can break it, and that no gradient leads anywhere hides nothing
        findings = (replace(f, verdict="unknown", advice="see one answer") if f.verdict == "failed" else f for f in findings)
    return alike, *findings


def table(findings: Sequence[Finding]) -> pd.DataFrame:
    """One row a finding: indicator, value, verdict, meaning, advice."""
    import pandas as pd

    return pd.DataFrame([asdict(f) for f in findings], columns=[f.name for f in fields(Finding)])


# ------------------------------------------------------------------------------------------------------- the network as it is


def one_answer(case: _Case) -> Finding:
    """The same class whatever is shown, as of a network with a layer that lost all its weights: nothing can be broken, nothing is robust.

    Looked at: the images on the way to the points, of two classes at least, and as many random ones from the whole box as there are points.
    """
    labels, answers = case.looked_at.unbind(1)
    classes, counts = answers.unique(return_counts=True)
    alike = len(classes) == 1 and len(labels.unique()) > 1
    alike = alike and bool((case.net(case.start(1.0)).argmax(1) == classes[0]).all())
    return _judge(
        "one answer",
        int(counts.max()) / len(answers),
        "doubtful" if alike else "fine",
        f"the network gives {len(classes)} different answer{'s' * (len(classes) > 1)} to {len(answers)} images"
        + (
            f" and the same to {len(case.x)} random ones: its accuracies are the share of class {int(classes[0])}"
            if alike
            else ""
        ),
        "there is nothing to attack: look for a layer without weights (Sparsity.collapsed), and check the normalisation of the images",
    )


def softmax_output(case: _Case) -> Finding:
    """Probabilities where logits are expected: their gradient vanishes where the network is sure. AutoAttack's flag, its tolerance.

    Softmax in float32 sums to 1 within some 1e-7, for a thousand classes too if the sum itself is exact; 1e-5 is ample, and logits
    do not meet it on every point by chance.
    """
    z = case.logits.double()
    is_softmax = bool((z >= -1e-5).all() and (z <= 1 + 1e-5).all() and ((z.sum(1) - 1).abs() <= 1e-5).all())
    return _judge(
        "softmax output",
        float(is_softmax),
        "doubtful" if is_softmax else "fine",
        f"the outputs {'are' if is_softmax else 'are not'} probabilities that sum to 1 on each of {len(z)} points",
        "feed the attacks logits: evaluate the network without its last softmax",
    )


class _GradientsAsked(TorchFunctionMode):
    """Sees whether a gradient is computed while it is active in this thread: `torch.autograd.grad` and `Tensor.backward` come by
    here, and so do `torch.func.grad`, `vjp` and the Jacobians, which call the former. `torch.autograd.backward` called by its own
    name comes by in torch 2.14; forward-mode derivatives do not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen |= func in (torch.autograd.grad, torch.autograd.backward, Tensor.backward)
        return func(*args, **(kwargs or {}))


def dynamic(case: _Case) -> Finding:
    """A network that computes gradients while it answers, as a defence that optimises its input does. AutoAttack's flag."""
    with torch.enable_grad(), _GradientsAsked() as asked:
        case.net(case.x[:2])
    return _judge(
        "dynamic",
        float(asked.seen),
        "doubtful" if asked.seen else "fine",
        f"the network {'computes' if asked.seen else 'computes no'} gradients in its forward pass",
        "standard attacks differentiate such a defence wrongly or not at all: write an adaptive attack against it",
    )


def unstable_predictions(case: _Case) -> Finding:
    r"""I2: how much a loss changes nearby, :math:`\mathrm{mean}_r\,|L(x) - L(x + r)| / |L(x)|`, r uniform in :math:`\pm 4/255`.

    L is the margin: the cross entropy of a sound network that is sure (0.12 on digits) changes more than the authors' threshold, 0.1.
    Median over the points, since a point on the boundary has almost no margin to divide by. Sound networks gave 0.006 to 0.02 on
    digits and 0.06 on CIFAR-10 without adversarial training.
    """
    draw, margin = case.draw("unstable"), margins(case.logits, case.y)
    change = torch.stack([margins(case.net(uniform_start(case.x, RADIUS, draw)), case.y) - margin for _ in range(DRAWS)])
    value = float((change.abs().mean(0) / torch.where(margin == 0, 1.0, margin)).clamp(max=1).median())
    return _judge(
        "unstable predictions (I2)",
        value,
        "fine" if value <= 0.1 else "doubtful",  # NaN is not fine
        f"the margin changes by {value:.1%} (median) from an image to random ones within 4/255 ({DRAWS} draws)",
        "average gradients over random images near each iterate (EoT), or evaluate the deterministic form of the network",
    )


# --------------------------------------------------------------------------------------------------------- what gradients do


def zero_gradients(useless: tuple[Tensor, Tensor] | str) -> Finding:
    """I1, unavailable gradients: the backward pass raises, or a point's gradient has no non-zero entry.

    Looked at where attacks start, a random image in the ball. The value is the margin's share: that the cross entropy alone has no
    gradient is another matter, see `logit_scale`.
    """
    advice = (
        "replace what has no gradient by a smooth stand-in in the backward pass (BPDA); until then trust black-box attacks only"
    )
    if isinstance(useless, str):
        return Finding("zero gradients (I1)", 1.0, "failed", f"the backward pass raises: {useless}", advice)
    (ce, margin), n = (int(u.sum()) for u in useless), len(useless[0])
    return _judge(
        "zero gradients (I1)",
        margin / n,
        "failed" if margin > 0.1 * n else "doubtful" if margin else "fine",
        f"the gradient is zero or not finite on {margin} of {n} points for the margin, on {ce} for the cross entropy",
        advice,
    )


def logit_scale(ce: Tensor, margin: Tensor) -> Finding:
    """Logits so far apart that the largest probability is 1 in float32 and the cross entropy's gradient exactly 0 (they lie some 100
    apart), though the margin has one. It is for this that AutoAttack's second loss is DLR.
    """
    k, n = int((ce & ~margin).sum()), len(ce)
    return _judge(
        "logit scale",
        k / n,
        "doubtful" if k else "fine",
        f"the cross entropy has no gradient on {k} of {n} points though the margin has one",
        "count attacks on the margin or on DLR, which do not feel the scale (APGD-T, FAB-T, FMN), or divide the logits",
    )


def silent_success(met: Tensor, ended: Tensor) -> Finding:
    """I3: PGD ends on an image that is not adversarial though it met one on its way. Sound networks gave 0 or 1 point of 64."""
    k, n = int((met & ~ended).sum()), len(met)
    return _judge(
        "silent success (I3)",
        k / n,
        "doubtful" if k > 0.05 * n else "fine",
        f"PGD meets an adversarial image and walks past it on {k} of {n} points",
        "count any adversarial iterate, not the last one, and take smaller steps",
    )


def unconstrained_failure(broken: Tensor) -> Finding:
    """I6: points that PGD cannot break with the whole box to move in. Any image of another class would do: there must be none."""
    k, n = int((~broken).sum()), len(broken)
    return _judge(
        "unconstrained failure (I6)",
        k / n,
        "failed" if k else "fine",
        f"PGD leaves {k} of {n} points standing when it may change every pixel as it likes",
        "the attack does not see the way: change its loss, replace what masks gradients (BPDA); check the normalisation too",
    )


def large_ball(broken: Tensor) -> Finding:
    """At eps 0.5 an even grey lies in every ball, so all points but those of its class can be broken: about none may stand.

    Up to 5 % are forgiven, that is none below 20 points.
    """
    k, n = int((~broken).sum()), len(broken)
    return _judge(
        "accuracy at eps 0.5",
        k / n,
        "failed" if k > 0.05 * n else "fine",
        f"PGD leaves {k} of {n} points standing at eps 0.5, where almost none can be robust",
        "the attack does not see the way: change its loss, replace what masks gradients (BPDA); check the normalisation too",
    )


def monotone(*broken: Tensor) -> Finding:
    """PGD at eps / 2, eps, 2 eps: what breaks in a ball breaks in a larger one, so accuracy cannot rise.

    The points are the same, so their number is no source of chance, only the attack's random start is: it decides single points
    either way. With b points broken in the smaller ball alone and c in the larger alone, chance leaves b - c within
    2 sqrt(b + c) (McNemar 1947); a rise of 5 points without a fall is the least that is more.
    """
    pairs = [(int((a & ~b).sum()), int((b & ~a).sum())) for a, b in pairwise(broken)]
    n = len(broken[0])
    rises = any(b - c > 2 * (b + c) ** 0.5 for b, c in pairs)
    stand = " %, ".join(f"{100 * float((~b).double().mean()):.0f}" for b in broken)
    return _judge(
        "monotone in eps",
        max(0, *(b - c for b, c in pairs)) / n,
        "failed" if rises else "fine",
        f"PGD leaves {stand} % of {n} points standing at eps / 2, eps and 2 eps",
        "adversarial images of the smaller ball lie in the larger one and were missed there: more steps, smaller steps, restarts",
    )


# ------------------------------------------------------------------------------------------------------- what others do better


def square_against_white_box(broken_by: Sequence[str] | None, attacks: Sequence[str]) -> Finding:
    """Square, which sees no gradient, on the points that the attacks before it left; AutoAttack's flag, with room for chance."""
    name = "Square against the white box"
    if broken_by is None or "square" not in attacks:
        return Finding(name, None, "unknown", "Square was not among the attacks", "evaluate with the whole of AutoAttack")
    k, m = sum(b == "square" for b in broken_by), sum(b in ("", "square") for b in broken_by)
    return _judge(
        name,
        k / m if m else 0.0,
        "failed" if _more_than_chance(k, len(broken_by)) else "fine",
        f"Square breaks {k} of the {m} points that attacks with gradients left",
        "gradients mislead the attacks: give Square more queries and write an adaptive attack (BPDA, EoT)",
    )


def noise_against_white_box(case: _Case, left: Tensor) -> Finding:
    """Uniform noise in the ball on the points that attacks with gradients left. Sound networks gave none."""
    draw, at = case.draw("noise"), left.nonzero().squeeze(1)
    x, y = case.x[at], case.y[at]
    broken = torch.zeros_like(y, dtype=torch.bool)
    for _ in range(DRAWS if len(at) else 0):
        broken |= _wrong(case.net, uniform_start(x, case.eps, draw), y)
    k = int(broken.sum())
    return _judge(
        "noise against the white box",
        k / len(at) if len(at) else 0.0,
        "failed" if _more_than_chance(k, len(left)) else "fine",
        f"one of {DRAWS} draws of uniform noise breaks {k} of the {len(at)} points that attacks with gradients left",
        "gradients mislead the attacks: replace what masks them (BPDA), average over randomness (EoT)",
    )


def transfer_from_parent(case: _Case, left: Tensor, parent: Logits | None) -> Finding:
    """Images made against the dense parent, on the points that attacks on the network itself left. Sound networks gave none."""
    name = "transfer from the parent"
    if parent is None:
        return Finding(name, None, "unknown", "the dense parent was not given", "give parent= to see whether its images transfer")
    try:
        made = ascend(parent, case.x, case.y, case.start(case.eps), eps=case.eps, steps=STEPS, step=2.5 * case.eps / STEPS)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return Finding(
            name, None, "unknown", f"the parent's backward pass raises: {_first_line(error)}", "give a parent with gradients"
        )
    k, m = int((_wrong(case.net, made, case.y) & left).sum()), int(left.sum())
    return _judge(
        name,
        k / m if m else 0.0,
        "failed" if _more_than_chance(k, len(left)) else "fine",
        f"images made against the parent break {k} of the {m} points that attacks with gradients left",
        "the network hides its gradients from attacks: attack it through its parent, or write an adaptive attack",
    )


# ------------------------------------------------------------------------------------------------------------------ what they use


def _more_than_chance(k: int, n: int) -> bool:
    """Whether k of n points broken too late are more than an attack of equal strength breaks by luck.

    By luck about 0.2 % of the points fall, the share at which AutoAttack raises its flag: then k has mean 0.002 n and standard
    deviation sqrt(0.002 n), and two of these are allowed for. Two points are forgiven however few there are: another seed alone
    flips 0 to 3 verdicts of 256, in both directions. So it takes 3 points up to n = 250, 5 of 1000, 29 of 10 000.
    """
    return k > max(2.0, 0.002 * n + 2 * (0.002 * n) ** 0.5)


def _judge(indicator: str, value: float, verdict: Verdict, meaning: str, advice: str) -> Finding:
    return Finding(indicator, value, verdict, meaning, "" if verdict == "fine" else advice)


def _drawn(net: Logits, x: Tensor, y: Tensor, eps: float, seed: int, points: int) -> tuple[_Case, Tensor]:
    """Up to ``points`` points that are classified correctly, and where they stand in ``x``."""
    kept: list[Tensor] = []
    logits: list[Tensor] = []
    seen: list[Tensor] = []
    for part in torch.randperm(len(y), generator=generator(seed, "diagnose", "points")).to(x.device).split(points):
        z = net(x[part])
        seen.append(torch.stack([y[part], z.argmax(1)], 1))
        right = z.argmax(1) == y[part]
        kept.append(part[right])
        logits.append(z[right])
        if sum(map(len, kept)) >= points:
            break
    at = torch.cat(kept)[:points]
    return _Case(net, x[at], y[at], torch.cat(logits)[:points], torch.cat(seen), eps, seed), at


def _useless_gradients(case: _Case) -> tuple[Tensor, Tensor] | str:
    """Where the cross entropy's and the margin's gradients are zero or not finite, bool (n,) each; or why there are none."""
    start = case.start(case.eps).requires_grad_(True)
    try:
        with torch.enable_grad():
            logits = case.net(start)
            (ce,) = torch.autograd.grad(cross_entropy(logits, case.y), start, retain_graph=True)
            (margin,) = torch.autograd.grad(_negative_margin(logits, case.y), start)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return _first_line(error)
    return tuple(~((g != 0) & g.isfinite()).flatten(1).any(1) for g in (ce, margin))


def _met(case: _Case, eps: float) -> Tensor:
    """Which points PGD on the cross entropy breaks, bool (n,): any iterate counts."""
    found = pgd(case.net, case.x, case.y, eps=eps, steps=STEPS, generator=case.draw("start", eps))
    return _wrong(case.net, found, case.y)


def _ended(case: _Case, eps: float, loss: Callable[[Tensor, Tensor], Tensor], which: Tensor) -> Tensor:
    """For which points PGD on ``loss`` ends on an adversarial image, bool (n,); only ``which`` are attacked, others are False."""
    at, wrong = which.nonzero().squeeze(1), torch.zeros_like(which)
    if len(at):
        x, y, start = case.x[at], case.y[at], case.start(eps)[at]
        wrong[at] = _wrong(case.net, ascend(case.net, x, y, start, eps=eps, steps=STEPS, step=2.5 * eps / STEPS, loss=loss), y)
    return wrong


def _wrong(net: Logits, x: Tensor, y: Tensor) -> Tensor:
    """Which images are images, all pixels finite, and misclassified, bool (n,)."""
    return x.flatten(1).isfinite().all(1) & (net(x).argmax(1) != y)


def _negative_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Summed: what an attack ascends whom huge logits do not blind."""
    return -margins(logits, y).sum()


def _first_line(error: RuntimeError) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
