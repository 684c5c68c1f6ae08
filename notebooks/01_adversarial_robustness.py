# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,jupyter,cellView
#     formats: ipynb,py:percent
#     notebook_metadata_filter: kernelspec,jupytext,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% cellView="form" jupyter={"source_hidden": true} tags=["colab"]
# @title Only for Google Colab: run this cell first. Anywhere else it does nothing.
ADDRESS = ""  # @param {type: "string"}
if "google.colab" in str(globals().get("get_ipython")):
    from importlib.util import find_spec

    class NotInstalled(Exception):
        def _render_traceback_(self):
            return [str(self)]  # one sentence instead of a traceback

    if find_spec("apnb") is None and ADDRESS:
        get_ipython().run_line_magic("pip", f'install --quiet "apnb[widgets] @ git+{ADDRESS}"')
    if find_spec("apnb") is None:
        raise NotInstalled("apnb is missing: put the address of its code (https://...) into the field ADDRESS, then run this cell again.")
    import torch
    from google.colab import output

    output.enable_custom_widget_manager()
    gpu = torch.cuda.is_available() and torch.cuda.get_device_name()
    print(f"Runs on the GPU: {gpu}." if gpu else "Runs on the CPU, which is enough here; for a GPU: Runtime > Change runtime type.")

# %% [markdown]
# # Adversarial robustness: what a number says
#
# A paper says that a network is *82 % robust*. **What does that mean, and when is it a lie?**
#
# It means: on 82 of 100 test images, *the attacks that were tried* found no small change that makes the network err. So it is an
# upper bound, and it is as good as its attacks. In this notebook a network that nobody defended gets a score far above 82 %, with
# a standard attack and no bug anywhere. Then the same network is broken. In between stands what one has to know to see it coming.

# %%
import apnb

apnb.sweeps.set_threads(1)  # the networks are so small that more threads only get in each other's way
apnb.plots.renderer()

# %% [markdown]
# ## A game of two players
#
# The attacker may change every pixel of an image $x$ by at most $\varepsilon$, as long as it stays an image. The network is
# trained for the worst that the attacker can do ([Madry et al. 2018](https://arxiv.org/abs/1706.06083)):
#
# $$ \min_\theta \; \mathbb{E}_{(x, y)} \Big[ \max_{\|\delta\|_\infty \le \varepsilon,\; x + \delta \in [0, 1]^d} \ell\big(f_\theta(x + \delta), y\big) \Big] . $$
#
# *Adversarial training* approximates the inner maximum by a few gradient steps in every batch. Robust accuracy is the same
# formula, read at the end: the share of test images $(x, y)$ on which even the maximum leaves the answer right,
#
# $$ \mathrm{RA}(\varepsilon) = \frac{1}{n} \sum_{i=1}^{n} \mathbf{1}\Big[ \arg\max_c f_\theta(x_i + \delta)_c = y_i \;\text{ for all such } \delta \Big] . $$
#
# *For all* is the difficulty. Nobody can try all $\delta$, so one looks for the worst with an attack. An attack that finds
# something has proved that the image is not robust. An attack that finds nothing has proved nothing.
#
# Two networks, the same architecture and the same images (handwritten digits, 8 × 8 pixels): one trained on the images as they
# are, one trained adversarially with five gradient steps a batch. The radius is the data set's own, $\varepsilon = 0.15$: large,
# because the images are so small that a person needs strong contrast, too.

# %%
data = apnb.datasets.points("digits")
budget = apnb.Budget(name="short", epochs=15, attack_steps=5)


def dense(objective):
    recipe = apnb.Recipe(pipeline="after", sparsity=0, pretraining=objective, finetuning="none", budget=budget)
    return apnb.run(recipe, evaluate=False).model


natural, trained = dense("natural"), dense("pgd_at")

# %% [markdown]
# ## From one step to AutoAttack
#
# **FGSM** ([Goodfellow et al. 2015](https://arxiv.org/abs/1412.6572)) is one step: if the loss were linear in the image, the
# worst $\delta$ would be a corner of the cube, given by the signs of the gradient,
#
# $$ x' = x + \varepsilon \, \mathrm{sign} \, \nabla_x \ell\big(f(x), y\big) . $$
#
# The loss is not linear, so **PGD** ([Madry et al. 2018](https://arxiv.org/abs/1706.06083)) makes many small steps and projects
# back onto the cube after each ($\Pi$); any image on the way that is misclassified counts:
#
# $$ x_{t+1} = \Pi_{\varepsilon} \big( x_t + \alpha \, \mathrm{sign} \, \nabla_x \ell(f(x_t), y) \big) . $$
#
# **AutoAttack** ([Croce and Hein 2020](https://arxiv.org/abs/2003.01690)) leaves nothing to choose, since choices are where
# evaluations go wrong. It is four attacks that fail for different reasons:
#
# - *APGD-CE*: PGD on the cross entropy that chooses its step sizes by itself;
# - *APGD-T*: the same on another loss, the *difference of logits ratio* (DLR), against nine target classes. With the logits
#   sorted, $z_{(1)}$ the largest, it is $-(z_y - z_t) \,/\, \big(z_{(1)} - \tfrac12 (z_{(3)} + z_{(4)})\big)$: a ratio, so that
#   multiplying all logits changes nothing;
# - *FAB-T* ([Croce and Hein 2020](https://arxiv.org/abs/1907.02044)): looks for the nearest misclassified image instead of the
#   worst one in the cube;
# - *Square* ([Andriushchenko et al. 2020](https://arxiv.org/abs/1912.00049)): random squares, kept if they help; it never asks
#   for a gradient.
#
# Each of the six now attacks the same 100 test images, from the start, whatever the others found. `verify` is the judge: an
# image counts as broken only if it is in the box, in the cube, and misclassified twice in full precision.

# %%
import torch

from apnb.attacks import autoattack
from apnb.attacks.pgd import ascend, pgd
from apnb.attacks.square import margins
from apnb.chance import generator
from apnb.copies import exact
from apnb.verdicts import verify

cpu, eps = torch.device("cpu"), data.eps
index = apnb.datasets.subset(data.test, 100)
x, y = data.test.images(index), data.test.y[index]


def alone(model):
    """Attack -> which of the 100 images stand against it alone."""
    net = exact(model, cpu)
    tried = {
        "FGSM": lambda x, y: (ascend(net, x, y, x, eps=eps, steps=1, step=eps), None),
        "PGD-50": lambda x, y: (pgd(net, x, y, eps=eps, steps=50, generator=generator("PGD")), None),
        **autoattack.apnb(net, eps=eps, classes=10, seed=0, device=cpu, notes=[]),
    }
    right = net(x).argmax(1) == y
    return {name: right & ~verify(net, x, y, attack(x, y)[0], eps) for name, attack in tried.items()}


stands = {"trained adversarially": alone(trained)}

# %%
together = torch.stack(list(stands["trained adversarially"].values())).all(0)
left = {name: int(s.sum()) for name, s in stands["trained adversarially"].items()}
strongest = min(left, key=left.get)
apnb.Question(
    f"The strongest single attack, {strongest}, leaves {left[strongest]} of 100 images. How many are left when each image may be broken by "
    "any of the six?",
    int(together.sum()),
    because=f"Only these stand against every attack; {left[strongest] - int(together.sum())} of those that {strongest} leaves are broken by another. "
    "The minimum is taken image by image, not over the points.",
)

# %%
apnb.plots.attacks(stands, title="One robust network under six attacks")

# %% [markdown]
# Read it from left to right. FGSM flatters. The others differ by a few images, and not always by the same ones: this is why the
# last point, the images that stand against *every* attack, can be lower than all before it. Each point is an upper bound of the true
# robust accuracy, so the lowest is the best one, and one more attack can only push it down.

# %% [markdown]
# ## What the attacker does
#
# One of the images, attacked with a growing radius: PGD with 100 steps on the *margin*, the true class's logit minus the best
# other one. *Move the slider.* Watch the answer change, and judge for yourself at which radius the digit stops being the digit
# that it was. A radius at which you would err, too, is too large to blame the network.


# %%
def attacked(model, i, radius):
    """One test image under an attack of that radius, and the network's answer."""
    net, one, label = exact(model, cpu), x[i : i + 1], y[i : i + 1]
    found = ascend(net, one, label, one, eps=radius, steps=100, step=radius / 20, loss=lambda z, y: -margins(z, y).sum())
    return apnb.plots.under_attack(one[0], found[0], net(found).softmax(1)[0], int(label), eps=0.3)


example = int((together & (y == 3)).nonzero()[0])  # the first 3 that stood against all six
radii = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
apnb.plots.movable({f"{r:g}": attacked(trained, example, r) for r in radii}, label="eps", start="0.15")

# %% [markdown]
# ## The lie
#
# Now the naturally trained network, which nobody defended, with one line around it. Two ways:
#
# - **loud**: its logits are multiplied by 1000. That changes no answer, since the largest logit stays the largest. But the
#   softmax of logits that lie some hundred apart is exactly 1 in float32, so the cross entropy is exactly 0, and so is its
#   gradient.
# - **rounded**: the image is rounded to eight levels of grey first. Rounding is flat almost everywhere, so *every* gradient is
#   exactly 0, whatever the loss.
#
# Neither is a defence. Both leave the network as it is and blindfold the attacker. This is called *gradient masking* or
# *obfuscated gradients* ([Athalye et al. 2018](https://arxiv.org/abs/1802.00420) found it in seven of nine published
# defences, mostly without intent, and broke six of the seven completely).


# %%
class Loud(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return 1000 * self.net(x)


class Rounded(Loud):
    def forward(self, x):
        return self.net((7 * x).round() / 7)


loud, rounded = Loud(natural), Rounded(natural)
stands |= {"loud": alone(loud), "rounded": alone(rounded)}


# %%
against_rounded = {k: int(stands["rounded"][k].sum()) for k in ("apgd-ce", "apgd-t", "fab-t", "square")}
apnb.Question(
    "Guess before you look: of AutoAttack's four attacks, which one breaks most of the rounded network?",
    min(against_rounded, key=against_rounded.get),
    choices=list(against_rounded),
    because="It leaves "
    + ", ".join(f"{v} with {k}" for k, v in against_rounded.items())
    + " of 100. The gradient of a rounded image is zero, and Square never asks for one.",
)

# %%
apnb.plots.attacks(stands, title="Two networks without any defence look like heroes, for a while")

# %%
table = {name: {attack: int(s.sum()) for attack, s in by.items()} for name, by in stands.items()}
worst = {name: int(torch.stack(list(by.values())).all(0).sum()) for name, by in stands.items()}
print(
    f"PGD with 50 steps leaves {table['loud']['PGD-50']} of 100 images standing on the loud network; all six leave {worst['loud']}."
)
print(f"On the rounded one it leaves {table['rounded']['PGD-50']}; all six leave {worst['rounded']}.")

# %% [markdown]
# This is the lie. With FGSM or PGD alone the loud network looks more robust than the adversarially trained one, and it is as
# weak as it always was. *Loud* falls as soon as the loss does not feel the scale: APGD-T's ratio does not, FAB-T compares
# logits, and Square only asks whether the margin between two logits fell, on whatever scale. *Rounded* blinds all attacks with
# gradients, APGD-T and FAB-T as well; what they still find, their random start found. Square alone gets through, and with its 5000 queries it is still no match for
# a gradient. So even the last point flatters this network.

# %% [markdown]
# ## What gives it away
#
# Nobody checks networks by trying to guess the trick. But attacks that fail leave traces, and traces can be looked for.
# `apnb.evaluate` runs AutoAttack attack by attack, each on what the ones before have left, and then a set of **diagnostics**:
# the flags of AutoAttack, the *indicators of attack failure* ([Pintor et al. 2022](https://arxiv.org/abs/2106.09947)), and what
# must hold for any attack that works ([Carlini et al. 2019](https://arxiv.org/abs/1902.06705)): in a very large ball everything
# breaks, accuracy never rises with the radius, and whoever sees no gradient (a *black box* attack) does not beat who sees it (*white
# box*). First of all comes a question that matters after pruning: does the network give one answer to everything, as it does when a layer
# has lost all its weights? Then nothing can be broken, and no attack is to blame. I1 to I6 are the numbers that the indicators have in
# their paper. *doubtful* means that attacks are known to fail on networks like this, or that there is nothing to attack; *failed* that
# they did fail here.

# %%
judged = {
    "trained adversarially": apnb.evaluate(trained, data, n=100, distances=True),
    "natural": apnb.evaluate(natural, data, n=100, distances=True),
    "loud": apnb.evaluate(loud, data, n=100, parent=natural),
    "rounded": apnb.evaluate(rounded, data, n=100, parent=natural, distances=True),
}
for name, evaluation in judged.items():
    print(f"{name}: {evaluation}")

# %%
import pandas as pd

found = {name: {f.indicator: f.verdict for f in evaluation.diagnostics} for name, evaluation in judged.items()}
pd.DataFrame(found)

# %% [markdown]
# (*Rounded* may stand at another number than above: Square draws its squares for a whole batch, so here it drew others. An attack that
# depends so much on its luck has not finished.)
#
# The two honest networks should be *fine* in every row that could be looked at. The natural one is weak, but honestly so:
# diagnostics ask whether a number can be believed, not whether it is high. The two masked ones give themselves away in
# different rows. In words, with the advice:

# %%
for name in ("loud", "rounded"):
    for finding in judged[name].diagnostics:
        if finding.verdict in ("doubtful", "failed"):
            print(f"{name}, {finding.indicator}: {finding.meaning}.\n    -> {finding.advice}.")
    for warning in judged[name].warnings:
        print(f"{name}, warning: {warning}.")

# %% [markdown]
# The last row of the table needs the network that the suspect was made from (`parent=`): adversarial images for the natural
# network are given to the masked one. For pruned networks this is a test for free, since each has a dense parent.
#
# <details><summary>What if an evaluation used PGD only? Would the diagnostics have noticed?</summary>
#
# Yes, most of them do not depend on the attack that was chosen. Try `apnb.evaluate(loud, data, n=100, attacks="pgd").diagnostics`: the
# row *logit scale* is the same. What is lost is the row that compares Square with the attacks before it, since Square did not
# run.
#
# </details>
#
# ## Taking the blindfold off
#
# The advice for *rounded* says BPDA, *backward pass differentiable approximation* ([Athalye et al.
# 2018](https://arxiv.org/abs/1802.00420)): compute forwards what the network computes, and backwards pretend that the rounding
# was not there. The answers are those of the rounded network to the last bit, so whatever breaks this one breaks that one; only
# the gradient is a useful one now. Such an attack, written for one defence, is called *adaptive*. Two lines are enough, and two
# of AutoAttack's four attacks (`attacks="lite"`):


# %%
class SeenThrough(Loud):
    def forward(self, x):
        grey = (7 * x).round() / 7
        return self.net(x + (grey - x).detach() if x.requires_grad else grey)  # forwards grey, backwards as if it were x


adaptive = apnb.evaluate(SeenThrough(natural), data, n=100, attacks="lite", distances=True)
print(f"rounded, AutoAttack:          {judged['rounded'].robust_accuracy:.0%} stand")
print(f"rounded, its gradient mended: {adaptive.robust_accuracy:.0%} stand")

# %% [markdown]
# Fewer attacks, with eyes open, beat all four with a blindfold: *rounded* is about as weak as the network inside it.
#
# ## Is one more robust than the other?
#
# Two evaluations on the same images are *paired*: what counts are the images that stand in one network and not in the other.
# `apnb.compare` tests whether these could be a coin's work (McNemar 1947), and gives an interval for the difference.

# %%
print(apnb.compare(judged["trained adversarially"], judged["natural"]))

# %% [markdown]
# ## All radii at once
#
# One radius is one question. The **security curve** asks it for all: find for each image $x_i$ the *smallest* perturbation
# $d_i$ that breaks it, then
#
# $$ \mathrm{RA}(\varepsilon) = \frac1n \sum_i \mathbf{1}[\, d_i > \varepsilon \,] . $$
#
# FMN ([Pintor et al. 2021](https://arxiv.org/abs/2102.12827)) walks along the boundary: while the image is classified correctly
# its radius grows, once it is not the radius shrinks. HO-FMN ([Mura et al. 2024](https://arxiv.org/abs/2407.08806), after
# [Floris et al. 2023](https://arxiv.org/abs/2310.08177)) leaves loss, optimiser and step size open and searches for the best;
# the survey's curves are made with it. Here FMN ran with three losses (`distances=True`), and the smallest distance that
# anything found counts, image by image.

# %%
curves = [judged[name].curve(name) for name in ("trained adversarially", "natural", "rounded")]
curves.append(adaptive.curve("rounded, its gradient mended"))
apnb.plots.security_curve(curves)

# %% [markdown]
# At radius 0 stands clean accuracy. The natural network loses almost everything before the marked radius; the adversarially
# trained one holds out far longer, and falls to zero as well: it must, for at some radius the image is not the digit any more.
# Look at *rounded*: hardly anything happens, then a cliff at the marked radius, then a plateau. That says nothing about the
# network. Whoever looked for the nearest image was blind, and the cliff is Square, which looks at one radius only. A high cliff at
# the radius of the attack says that the search for near images failed; so does a curve that never reaches zero, unless the network
# gives one answer to everything. With its gradient mended the same network falls about as early as the natural one, in steps, since
# it sees only eight levels of grey.

# %%
half = {c.name: float(c.value.median()) for c in curves}
apnb.Question(
    "How large must the perturbation be to break half of the images of the adversarially trained network? Read it off the curve.",
    round(half["trained adversarially"], 4),
    tolerance=0.02,
    because=f"The median distance is {half['trained adversarially']:.3f}; for the natural network it is {half['natural']:.3f}.",
)

# %% [markdown]
# ## How many images?
#
# The attacks were run on 100 images. Had we drawn another hundred, the number would be another one. **Wilson's interval** says
# how much of it is the draw (Wilson 1927): with $\hat p = k / n$ standing and $z = 1.96$ it is
#
# $$ \frac{\hat p + \frac{z^2}{2n} \pm z \sqrt{\frac{\hat p (1 - \hat p)}{n} + \frac{z^2}{4 n^2}}}{1 + \frac{z^2}{n}} . $$

# %%
from apnb.verdicts import wilson

p = judged["trained adversarially"].robust_accuracy
rows = []
for n in (64, 100, 500, 1000, 10_000):
    low, high = wilson(round(p * n), n)
    rows.append(
        {"n": n, "if so many stood": round(p * n), "from (%)": 100 * low, "to (%)": 100 * high, "width (points)": 100 * (high - low)}
    )
pd.DataFrame(rows).round(1)

# %%
low, high = wilson(round(p * 500), 500)
first, second = wilson(round(p * 500) + 10, 500)
apnb.Question(
    f"Two papers report {round(p * 500) / 500:.1%} and {(round(p * 500) + 10) / 500:.1%}, each on 500 images of its own. Do the intervals overlap?",
    "yes" if first <= high else "no",
    choices=["yes", "no"],
    because=f"[{low:.1%}, {high:.1%}] and [{first:.1%}, {second:.1%}]. Two points in a hundred cannot be told apart with 500 images each; "
    "on the same images, paired, they sometimes can. (Whether intervals overlap is a rough rule; a test of the difference is the exact one.)",
)

# %% [markdown]
# The width shrinks with $\sqrt n$: four times the images, half the width. And it covers **the choice of images and nothing
# else**. It does not know that a stronger attack would find more (the whole interval may lie above the truth, as it did for the
# loud network under PGD), nor that another seed of the training gives another network.
#
# So a robust accuracy worth printing comes with five things: the radius, the attacks, the number of images, the interval, and
# what the diagnostics say. Printing an evaluation gives the first four; the table above is the fifth.
#
# *Try it:* build a third mask. Let `forward` return `self.net(x).softmax(1)`, or add a little noise to `x` each time. Guess
# first which rows will complain.
#
# <details><summary>Answer</summary>
#
# Softmax: *softmax output* is doubtful, since probabilities saturate where logits do not. Noise: `apnb.evaluate` refuses a
# network that answers twice differently, because a verdict on it would be a matter of luck; it needs attacks that average over
# the randomness.
#
# </details>

# %% [markdown]
# ## What to read next
#
# - [Pruning](02_pruning.ipynb): which weights go, and what is really saved.
# - [Madry et al. (2018)](https://arxiv.org/abs/1706.06083): the min-max problem; [Croce and Hein
#   (2020)](https://arxiv.org/abs/2003.01690): AutoAttack.
# - [Athalye et al. (2018), *Obfuscated gradients give a false sense of security*](https://arxiv.org/abs/1802.00420): the lie,
#   seven times.
# - [Carlini et al. (2019), *On evaluating adversarial robustness*](https://arxiv.org/abs/1902.06705): a checklist to keep at
#   hand.
# - [Pintor et al. (2022), *Indicators of attack failure*](https://arxiv.org/abs/2106.09947): how failing attacks give
#   themselves away.
