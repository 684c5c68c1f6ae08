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
# # The methods: what does each paper really do?
#
# **Eleven methods, nine papers. What does each of them really do, and does it show?**
#
# The survey compares published networks of ten methods ([Piras et al. 2024](https://arxiv.org/abs/2409.01249)). All of them run in this
# package, one of them in two forms, each in a file of its own. This notebook has a card for each: where it stands in the taxonomy, its core
# equation, the few lines of code that *are* the equation, what it does in plain words, how it did on the digits, and where the survey,
# the paper and the authors' code say different things. The cards are made from the package itself, so they show what runs.

# %%
import apnb

apnb.sweeps.set_threads(1)  # the networks are so small that more threads only get in each other's way
apnb.plots.renderer()

# %% [markdown]
# ## How to read a card
#
# The small figure below each card comes from stored runs: every method on the digits with the budget *quick*, which does in small what its
# authors do. **One training each.** Robust accuracy is what the first two attacks of AutoAttack leave (`lite`), so it is an upper
# bound. The bars are 95 % intervals for the choice of test images; they say nothing about another seed, which can move a point, too
# ([Specifics](05_specifics.ipynb) shows by how much). And the digits are a small problem: an order of methods here is no order on CIFAR-10.
# The figures are there to see what a method is like, not to crown one.

# %%
from IPython.display import Markdown, display

from apnb import cards

stored = apnb.results.frame("digits/methods")
stored = stored[stored["structure"] == "weights"]


def show(key):
    display(Markdown(cards.card(key)))
    return apnb.plots.highlight(stored, cards.PRESETS[key].name)


overview = {preset.name: cards.cell(key).split("; ")[0] for key, preset in cards.PRESETS.items()}
print("\n".join(f"{name:13s} {line.replace('*', '')}" for name, line in overview.items()))

# %% [markdown]
# ## After training
#
# Five methods begin with a dense network that is robust already. They differ in how they find the weights that it can spare.

# %% [markdown]
# ### RADMM
#
# RADMM brought a solver for constrained problems into adversarial training. It never asks which weight matters; it asks the network to
# *become* sparse, and lets it resist for as long as the loss can pay. Why it could help: the weights that stay have time to take over what
# the others did, before these are cut.

# %%
show("radmm")

# %% [markdown]
# ### HYDRA
#
# HYDRA turns the question round: let the robust loss itself say which weights it needs. No weight moves, only the scores (and the batch norms), so what is
# learned is a choice and not another solution. Why it could help: a small weight that matters under attack can win against a large one
# that does not, which no magnitude can see.

# %%
show("hydra")

# %% [markdown]
# ### HARP
#
# HARP keeps HYDRA's scores and asks the question that HYDRA leaves to the user: how much should *each layer* keep? That, too, is
# learned, under a price for being too large which rises until the budget is met. Why it could help: layers differ in what they can spare,
# most of all at high sparsity and when whole channels go.

# %%
show("harp")

# %% [markdown]
# ### PwoA
#
# PwoA asks for the opposite of all others: robustness without a single adversarial example after pretraining. A robust teacher passes on
# what it says of clean images, and a penalty keeps the hidden layers from holding on to the pixels. Why it could help: attacks are what makes
# adversarial training expensive. What it risks is plain as well: nothing in the last stage looks at an attack.

# %%
show("pwoa")

# %% [markdown]
# ### MAD
#
# MAD estimates what each weight does to the *attacked* loss up to second order, with curvature from Kronecker factors, and does so around
# a mask that was fitted against the attack. Why it could help: a gradient says where to go, curvature says how far it is safe to go,
# and after training gradients are near zero while curvature is not.

# %%
show("mad")

# %%
solvers = [preset.name for key, preset in cards.PRESETS.items() if apnb.taxonomy.method(preset.survey).criterion == "solwm"]
apnb.Question(
    "How many of the five methods above move their weights towards a sparse copy of themselves with ADMM (criterion SOLWM)?",
    len(solvers),
    tolerance=0,
    because=f"{' and '.join(solvers)}: one with attacked images, one with clean images and a teacher.",
)

# %% [markdown]
# ## Before training
#
# Three methods fix the mask first. Li20 and Robust Bird find it by something cheap and put the expensive adversarial training on the sparse
# network; RST spends all its adversarial training on the mask and trains nothing after.

# %% [markdown]
# ### Li20
#
# Li20 carries the lottery ticket over to adversarial training: a cheap search finds the mask, the weights go back to where they were
# drawn, and only the ticket is trained at full cost. Why it could help: time, above all. The search is done with attacks of a
# single step, and a good ticket may need fewer epochs of the expensive training.

# %%
show("li20")

# %% [markdown]
# ### RST
#
# RST is the most radical of all: **no weight is ever trained**. The network stays at random signs, and learning is choosing. That
# anything robust comes out says something about random networks rather than about training. Why it could help: one random network can hold
# many masks, and they cost one bit a weight.

# %%
show("rst")

# %%
same = [cards.PRESETS[key].name for key, card in cards.CARDS.items() if "apnb.mechanisms.LearnedScores.effective" in card.code]
apnb.Question(
    "The last four lines of code on RST's card stand on another card, too. On whose?",
    next(name for name in same if name != "RST"),
    choices=[cards.PRESETS[key].name for key in ("radmm", "hydra", "harp", "pwoa", "mad", "li20")],
    because="Both learn scores for weights that stand still; one for weights that are trained already, one for random signs.",
)

# %% [markdown]
# ### Robust Bird
#
# Robust Bird watches the mask instead of the loss. Long before the weights settle, the *order* of their magnitudes does; when the masks of five
# epochs agree, the rest of the dense training is not worth its price. Why it could help: the expensive stage begins early, and it begins
# from weights that already know something.

# %%
show("robustbird")

# %% [markdown]
# ## During training
#
# Three methods never have a dense robust network at all, or only for a moment. Mask and weights grow up together.

# %% [markdown]
# ### TwinRep
#
# TwinRep writes every weight as a product and changes nothing else. Ordinary weight decay on the two factors is then a lasso on the product:
# sparsity as a side effect of a change of variables. Why it could help: the cut, when it comes, removes what has nearly gone already, and the
# training goes on without a new stage.

# %%
show("twinrep")

# %% [markdown]
# ### Flying Bird
#
# Flying Bird is sparse from the first step on. At regular intervals the smallest weights die and others are born where the adversarial
# loss pulls hardest. Why it could help: the gradient on missing weights is the network saying what it lacks, under attack, now.

# %%
show("flyingbird")

# %% [markdown]
# ### Flying Bird+
#
# Flying Bird+ lets the size breathe. When robust accuracy in training runs away from that in validation, the network is too large for its
# data and more weights die; when the attacked validation loss stops falling, a few more are born. Why it could help: overfitting is what
# limits adversarial training, and a smaller network overfits less. There is no target size, so look at the sparsity it *ends* with.

# %%
show("flyingbird+")

# %% [markdown]
# ## Side by side
#
# The same lines once more, in one figure: move the slider from method to method and watch where its line lies among the others.

# %%
apnb.plots.movable(
    {p.name: apnb.plots.highlight(stored, p.name).update_layout(width=None, height=330) for p in cards.PRESETS.values()},
    label="method",
    start="HYDRA",
)

# %% [markdown]
# And across: all of them at one sparsity, the best on top. The filled markers are robust accuracy with its interval, the open ones clean
# accuracy. Move the slider from the left to the right and see which markers change places, and whether their bars have ever been apart.
# A caution: RADMM and PwoA count a share of the *convolutions* and leave the linear layer alone, so at the same number they keep more weights
# than the others. The table further down says how many zeros each has.

# %%
at = [s for s in sorted(stored["sparsity"].unique()) if s > 0]
apnb.plots.movable(
    {f"{s:.0%}": apnb.plots.intervals(stored, s, title=f"Eleven methods at {s:.0%}, one training each") for s in at},
    label="sparsity",
    start="90%",
)

# %% [markdown]
# Which differences are larger than the intervals? Of all pairs of methods, count those whose intervals do not touch. That is a strict
# test for two networks, and at the same time too kind: it knows of the test images only. Two trainings of *one* method may
# lie as far apart.

# %%
from itertools import combinations

import pandas as pd

count = {}
for s in at:
    rows = stored[stored["sparsity"] == s].set_index("label")
    apart = [max(rows.loc[[a, b], "low"]) > min(rows.loc[[a, b], "high"]) for a, b in combinations(rows.index, 2)]
    count[f"{s:.0%}"] = {
        "best": rows["robust"].idxmax(), "robust": f"{rows['robust'].max():.1%}", "worst": rows["robust"].idxmin(),
        "robust of it": f"{rows['robust'].min():.1%}", "pairs": len(apart), "intervals apart": sum(apart),
    }  # fmt: skip
pd.DataFrame(count).T

# %%
top = stored[stored["sparsity"] == at[-1]].sort_values("robust", ascending=False)
best = top.iloc[0]
touching = [row["label"] for _, row in top.iloc[1:].iterrows() if round(row["high"], 3) >= round(best["low"], 3)]
apnb.Question(
    f"At {at[-1]:.0%}: how many methods have an interval that touches that of the best one, with one decimal as in the table below?",
    len(touching),
    tolerance=0,
    because=f"{best['label']} is best with {best['robust']:.1%} [{best['low']:.1%}, {best['high']:.1%}]; touched by {', '.join(touching) or 'nobody'} "
    f"(paired, point by point, even these might differ). But {best['label']} has {best['weights']:.0%} zeros and {top.iloc[1]['label']} "
    f"{top.iloc[1]['weights']:.0%}: that is no race between equals.",
)

# %% [markdown]
# All numbers, with the sparsity that came out. Methods that count in a way of their own (the convolutions only, a learned budget, a size that
# breathes) do not end on the sparsity asked for, some of them far from it; compare *zeros* before you compare accuracies.

# %%
table = stored[stored["sparsity"].isin([0.9, 0.98])].sort_values(["sparsity", "robust"], ascending=[True, False])
table = table[["label", "pipeline", "sparsity", "weights", "clean", "robust", "low", "high"]].rename(columns={"weights": "zeros"})
table.set_index(["sparsity", "label"]).map(lambda v: v if isinstance(v, str) else f"{v:.1%}")

# %% [markdown]
# ## One of them, here and now
#
# TwinRep is a single training, so it is one of the cheapest. Here it runs with a budget shorter than that of the stored runs and on
# 128 test images. **The two must not be mixed**: what differs below is first of all the budget. Read the plan, then the two rows.

# %%
budget = apnb.Budget(name="short", epochs=15, search_epochs=4, finetune_epochs=6, attack_steps=5, points=128)
recipe = apnb.recipe("twinrep", sparsity=0.9, budget=budget)
print(recipe.plan())

# %%
live = apnb.run(recipe, attacks="lite")
beside = stored[(stored["label"] == recipe.label) & (stored["sparsity"] == recipe.sparsity)]
both = pd.concat([beside.assign(where="stored"), pd.DataFrame([live.row()]).assign(where="live")], ignore_index=True)
both[["where", "budget", "n", "weights", "clean", "robust", "low", "high"]].round(3)

# %% [markdown]
# ### The one that you pick
#
# The lab is open at RST with the same short budget. Its first row, *method*, is the choice: pick another, and its cell, its plan and the time
# that it will take here follow. Then press Run.
#
# *Try RST at 50 % and at 90 %. Its weights never learn; what, then, changes between the two?*
#
# <details><summary>Answer</summary>
#
# The number of masks there are to choose from. Of $n$ weights there are $\binom{n}{k}$ masks that keep $k$; that number is largest at
# half of the weights and falls towards both ends. A method that can only choose has most to choose from at 50 %. That is not everything:
# the weights that are kept are not rescaled, so the signal changes with the sparsity as well. Do your two runs differ by more than their
# intervals, and in which direction?
#
# </details>

# %%
apnb.Lab(budget=budget, method="rst", sparsities=(0.5, 0.9))

# %% [markdown]
# ## What to read next
#
# - [The benchmark](07_benchmark.ipynb): the same methods by the survey's own numbers, on CIFAR-10 and SVHN, under full AutoAttack.
# - [The lab](08_lab.ipynb): any cell of the taxonomy, also those that no paper has tried.
# - [Specifics](05_specifics.ipynb), if you came here first: what the criteria are, and how far seeds move a point.
# - Two papers to begin with: [Sehwag et al. (2020), *HYDRA*](https://arxiv.org/abs/2002.10509) for the idea that most others build on, and
#   [Fu et al. (2021), *Robust scratch tickets*](https://arxiv.org/abs/2110.14068) for the one that gives up most of what seems necessary.
# - From Python: `print(apnb.recipe("harp", sparsity=0.9).plan())` says what a method will do, `as_released=True` follows the authors' code
#   where it differs from their paper, and `apnb.taxonomy.method("harp").readings` has what the sources disagree about, word for word.
