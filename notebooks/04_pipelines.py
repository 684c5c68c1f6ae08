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
# # Pipelines: does it matter when the weights go?
#
# A network can be pruned **after** it was trained, **before** it is trained, or **during** its training. The survey of
# [Piras et al. (2024)](https://arxiv.org/abs/2409.01249) calls this the *pipeline*, and makes it the first question about a
# method. Published comparisons of pipelines are rarely about the pipeline alone: the methods also differ in criterion, budget,
# architecture and tricks. Here everything but the pipeline is held fixed: the same network and images, single weights ranked by
# magnitude across the whole network, the same number of epochs of adversarial training. Then: who stands more attacks?

# %%
import apnb

apnb.sweeps.set_threads(1)  # the networks are so small that more threads only get in each other's way
apnb.plots.renderer()

# %% [markdown]
# ## Three ways to spend a training
#
# Let $\theta_0$ be the weights of an untrained network, $\mathcal{L}$ the adversarial loss (the worst image within
# $\varepsilon$), and $\mathrm{top}_k(|\theta|)$ the mask of the $k$ weights of largest magnitude.
#
# **After training** is the oldest way ([Han et al. 2015](https://arxiv.org/abs/1506.02626)). Train everything, cut, and
# *fine-tune* what is left, from where it stands:
#
# $$ \theta_0 \xrightarrow{\;\min \mathcal{L}(\theta)\;} \theta_T, \qquad m = \mathrm{top}_k(|\theta_T|), \qquad
# \theta_T \odot m \xrightarrow{\;\min \mathcal{L}(\theta \odot m)\;} \theta^\star \odot m . $$

# %% [markdown]
# **Before training** looks for a mask first, then trains only what the mask keeps. The *lottery ticket hypothesis* says that a
# trained network contains a small part that could have been trained alone, from its own first weights
# ([Frankle and Carbin 2019](https://arxiv.org/abs/1803.03635)). So the search may train, but its weights are thrown away. Only
# the mask survives, and the weights go back to $\theta_0$: they are *rewound*.
#
# $$ \theta_0 \xrightarrow{\;\text{short search}\;} \theta_S, \qquad m = \mathrm{top}_k(|\theta_S|), \qquad
# \theta_0 \odot m \xrightarrow{\;\min \mathcal{L}(\theta \odot m)\;} \theta^\star \odot m . $$
#
# [Li et al. (2020)](https://arxiv.org/abs/2003.05733) search with a cheap one-step attack and train the ticket with a strong
# one; that is *Li20* in the survey.

# %% [markdown]
# **During training** there is one training, and the mask changes in it. Every few steps it is chosen anew:
#
# $$ m_t = \mathrm{top}_k(|\theta_t|), \qquad \theta_{t+1} = \theta_t - \eta\, \nabla \mathcal{L}(\theta)\big|_{\theta = \theta_t \odot m_t}. $$
#
# The loss sees only what $m_t$ keeps, but the gradient moves *all* weights. One that was removed can grow and return
# ([Lin et al. 2020](https://arxiv.org/abs/2006.07253) do this for natural training). SET
# ([Mocanu et al. 2018](https://arxiv.org/abs/1707.04780)) and RigL ([Evci et al. 2020](https://arxiv.org/abs/1911.11134)) go
# further and keep removed weights at zero: they drop small weights and grow others, at random or where the gradient is large.
# *Flying Bird* ([Chen et al. 2022](https://arxiv.org/abs/2202.09844)) is that with an adversarial loss.
#
# In this package `pipeline="during"` chooses the mask between 10 % and 75 % of the steps and then leaves it alone, so that the
# weights that stay can settle.

# %% [markdown]
# ## The same budget
#
# A comparison is fair only if everybody may spend the same. Twelve epochs for each pipeline: all in one for *during*, eight and
# four for the other two, who need two stages. The boxes below are as wide as their epochs are many. Full colour trains the
# network, pale colour searches for a mask; a triangle is a cut.

# %%
from dataclasses import replace

from IPython.display import HTML

from apnb.widgets import timeline

whole = apnb.Budget(name="12 epochs", epochs=12, attack_steps=5, points=128)
parts = replace(whole, name="8 + 4 epochs", epochs=8, search_epochs=4, finetune_epochs=4)
budgets = {"after": parts, "before": parts, "during": whole}
cell = {"structure": "weights", "locality": "global", "criterion": "lwm"}


def recipes_at(sparsity, seed=0):
    return [apnb.Recipe(pipeline=p, sparsity=sparsity, seed=seed, budget=b, **cell) for p, b in budgets.items()]


HTML("".join(f"<p><b>{r.pipeline} training</b></p>{timeline.svg(r)}" for r in recipes_at(0.9)))

# %% [markdown]
# The same as numbers, read off the recipes themselves. `stage_lengths` gives the objective and the epochs of every stage.

# %%
import pandas as pd

book = pd.DataFrame(
    {r.pipeline: {name: epochs for name, (_, epochs) in apnb.estimate.stage_lengths(r).items()} for r in recipes_at(0.9)}
).fillna(0)
book.loc["in all"] = book.sum()
book.astype(int).rename_axis("epochs")

# %% [markdown]
# ### What "the same budget" leaves open
#
# The last row is equal. That does not settle everything, and it is worth knowing what was decided with it:
#
# - **How long is the search?** Four epochs are a choice. Longer searches find better masks and leave less time to use them.
# - **How strong are the attacks?** Every epoch here has five gradient steps for each image. A search with one step (as in Li20)
#   costs about two fifths of that (an update is as dear as one and a half attack steps), and could be some two and a half times as
#   long for the same work.
# - **Who shares?** The dense training of *after* does not know the sparsity to come. At several sparsities it is done once.
# - **What is an epoch worth?** Hardware that uses sparsity makes an epoch of a sparse network cheaper, and *before* has more
#   sparse epochs than *after*. On ordinary hardware a zero costs as much as any number.
#
# The third point can be counted. A stage is stored under a key of everything that decides it (network, images, seed, numbers of
# the budget, all stages before it), and recipes that agree so far share it. `plan` lists the stages of a recipe and trains nothing.

# %%
def epochs_of(pipeline, sparsities):
    """Epochs that the recipes name, and those that have to be trained when shared stages are trained once."""
    recipes = [r for s in sparsities for r in recipes_at(s) if r.pipeline == pipeline]
    stages = [stage for r in recipes for stage in apnb.estimate.plan(r).stages]
    return {"in the recipes": sum(s.epochs for s in stages), "to train": sum({s.key: s.epochs for s in stages}.values())}


sparsities = (0.9, 0.98)
pd.DataFrame({p: epochs_of(p, sparsities) for p in budgets}).T.rename_axis("epochs")

# %%
five = (0.5, 0.75, 0.9, 0.95, 0.98)
apnb.Question(
    "The table counts two sparsities. How many epochs does pipeline 'after' train for five of them, with the same budget?",
    epochs_of("after", five)["to train"],
    unit="epochs",
    because=f"{parts.epochs} epochs for the one dense network, and {parts.finetune_epochs} of fine-tuning for each sparsity. "
    f"Each of the other two pipelines would train {epochs_of('during', five)['to train']}.",
)

# %% [markdown]
# ## The run
#
# Three pipelines at two sparsities, and the dense network with all twelve epochs for comparison. The data set is the embedded
# digits, $\varepsilon = 0.15$. The attacks are the first two of AutoAttack's four, on 128 test images: a quick upper bound.

# %%
dense = apnb.Recipe(pipeline="after", sparsity=0.0, finetuning="none", budget=whole)
runs = apnb.sweep([dense, *(r for s in sparsities for r in recipes_at(s))], attacks="lite")
by = {(run.recipe.pipeline, run.recipe.sparsity): run for run in runs if run.recipe.sparsity}
for run in runs:
    print(f"{run.recipe.label:26s} {run.recipe.sparsity:4.0%}  {run.evaluation}")

# %% [markdown]
# Blue is *after*, vermilion *before*, green *during*, wherever pipelines are compared. Look at the right end, where
# little is left. How far apart are the three lines there, compared with their bars?

# %%
apnb.plots.robustness_sparsity(runs.frame(), title="The same specifics and the same epochs, three pipelines")

# %% [markdown]
# ## What happened inside
#
# Move the slider from one pipeline to the next. All three end at 98 % after twelve epochs.
#
# *After*: the dense network is good, the cut destroys it, and a short fine-tuning repairs what it can. *Before*: the search ends,
# the weights are rewound, and the loss starts again where an untrained network starts; but from there on it is the sparse
# network that learns, for eight epochs. *During*: one large cut early in the training; then the same number of weights is chosen anew many times (the open markers
# are some of them). The network is never dense for long, and it learns while it changes.

# %%
apnb.plots.movable({p: apnb.plots.history(by[p, 0.98]) for p in budgets}, label="pipeline")

# %% [markdown]
# The count of weights is the same in all three. Their places are not: the ranking was made at different moments, of different
# weights. The share of each layer that is kept, in per cent:

# %%
kept = pd.DataFrame({p: by[p, 0.98].sparsity.per_layer for p in budgets}) * 100
kept.round(1).rename_axis("layer")

# %% [markdown]
# ## Do they really differ?
#
# The bars of two points overlap, or they do not: that is a rough way to judge. A better one uses that all networks were attacked
# on the *same* images. Images that both withstand, or that break both, say nothing about the difference. What counts are the
# images that only one of the two withstands. If the networks were equally robust, each such image would be a toss of a coin:
# this is McNemar's test ([McNemar 1947](https://doi.org/10.1007/BF02295996)), and `apnb.compare` makes it.

# %%
from itertools import combinations

ranked = sorted(budgets, key=lambda p: -by[p, 0.98].evaluation.robust_accuracy)
pairs = {(a, b): apnb.compare(by[a, 0.98].evaluation, by[b, 0.98].evaluation) for a, b in combinations(ranked, 2)}
for (a, b), verdict in pairs.items():
    print(f"{a} against {b}: {verdict}\n")

# %%
first, second = ranked[:2]
apnb.Question(
    f"At 98 %, '{first}' is in front of '{second}'. Is that difference larger than the choice of test images explains (p below 0.05)?",
    "yes" if pairs[first, second].p < 0.05 else "no",
    choices=["yes", "no"],
    because=f"{pairs[first, second].first_only} images stand only in the first, {pairs[first, second].second_only} only in the "
    f"second: p = {pairs[first, second].p:.2g}. The test knows nothing of seeds, though: both networks were trained once.",
)

# %% [markdown]
# ### Another seed
#
# The test asks whether these *two networks* differ. Whether the two *pipelines* differ is another question: a new seed gives
# other first weights and another order of the images. So, once more at 98 %, with seed 1.

# %%
again = apnb.sweep(recipes_at(0.98, seed=1), attacks="lite")
robust = pd.DataFrame(
    {
        "seed 0": {p: by[p, 0.98].evaluation.robust_accuracy for p in budgets},
        "seed 1": {run.recipe.pipeline: run.evaluation.robust_accuracy for run in again},
    }
)
orders = [" > ".join(robust[seed].sort_values(ascending=False).index) for seed in robust]
moved = (robust["seed 0"] - robust["seed 1"]).abs().max()
print(f"order with seed 0: {orders[0]}\norder with seed 1: {orders[1]}")
print(f"the same pipeline moves by up to {100 * moved:.1f} points from one seed to the other")
(100 * robust).round(1).rename_axis("robust accuracy, at most, in %")

# %% [markdown]
# Two seeds are a first check, not a statistic. A difference between pipelines deserves belief when it is larger than what seeds do
# to one and the same pipeline, and when its sign stays the same. The survey's tables give one number and no spread over seeds; notebook
# [07](07_benchmark.ipynb) asks which of its differences survive.
#
# ### The pipeline, or the epochs behind the cut?
#
# Suppose a difference is real. What made it? Look at the boxes at the top once more. All pipelines have twelve epochs, but the
# *sparse* network has four of them in *after*, eight in *before*, and nearly all in *during*. "The same budget" fixed the sum
# and left this open. With a hundred epochs of fine-tuning, as in HYDRA, it should matter less; with four it may be everything.
#
# *Try, below the line that makes `budgets`: `budgets["after"] = replace(parts, name="4 + 8 epochs", epochs=4, finetune_epochs=8)`, and run the
# notebook again.*
#
# <details><summary>How to judge</summary>
#
# Now *after* and *before* both give the sparse network eight epochs, from a mask that was found in four. What is left between them
# is the pipeline in the narrow sense: whether those eight epochs start from trained or from rewound weights. If *after* moves
# up to *before*, it was the epochs behind the cut. If it moves past, the trained weights were worth keeping. Compare with the
# spread between the seeds before you decide.
#
# </details>

# %% [markdown]
# ### Where to look
#
# *Try it in the lab below: three seeds, and 90 % instead of 98 %. Where is it easier to tell the pipelines apart?*
#
# <details><summary>Answer</summary>
#
# Look at the distance between the lines relative to the bars, which go from the lowest to the highest seed. At moderate
# sparsity there are weights to spare, every pipeline finds enough of them, and the differences often sink into the noise. They
# show most clearly where the budget of weights hurts. The other side of the coin: results at very high sparsity, where methods look
# very different, also depend most on seeds, epochs and learning rates.
#
# </details>

# %% [markdown]
# ## One cut or several?
#
# A pipeline has a second clock, the **schedule**. *One-shot* removes everything at once; *iterative* goes in rounds, each with
# training in between, on a ramp. With $T$ rounds to sparsity $s$ the two usual ramps, linear and cubic
# ([Zhu and Gupta 2017](https://arxiv.org/abs/1710.01878)), are
#
# $$ s_t = s\,\frac{t}{T} \qquad\text{and}\qquad s_t = s\left(1 - \Big(1 - \frac{t}{T}\Big)^3\right), \qquad t = 1, \dots, T. $$
#
# At a high sparsity the linear ramp hides a trap. Its steps are equal in weights, but the last one is taken from a network
# that has hardly any left. Move the slider, and watch the lower bars.

# %%
target = 0.98
apnb.plots.movable({rounds: apnb.plots.ramps(target, rounds) for rounds in (2, 3, 5, 10)}, label="rounds", start=3)

# %%
ramp = apnb.masks.ramp(target, 5, "linear")
apnb.Question(
    f"A linear ramp goes to {target:.0%} in five rounds. Which share of the weights that are still there does the fifth cut remove?",
    100 * (ramp[-1] - ramp[-2]) / (1 - ramp[-2]),
    tolerance=1,
    unit="%",
    because=f"Before the last cut {1 - ramp[-2]:.1%} of the weights are left, after it {1 - ramp[-1]:.1%}. The figure has it too: the "
    "last hatched bar with the slider at 5.",
)

# %% [markdown]
# ### What fine-tuning gives back
#
# The same four epochs of fine-tuning, spent behind one cut or spread over three on a cubic ramp. The dense network is the one
# from above and comes from the store. In the picture a column is a run: the dense network, an open diamond right after each
# cut, a filled one when the fine-tuning behind it has ended.

# %%
gently = apnb.Recipe(pipeline="after", schedule="iterative", sparsity=target, budget=parts, **cell)
stepwise = apnb.run(gently, attacks="lite")
at_once = by["after", target]
apnb.plots.recovery([by["after", 0.9], at_once, stepwise])

# %% [markdown]
# How deep the fall is depends on how much a cut takes of what is left, and on how little was left already; what comes back depends on the
# epochs behind it. That is
# the price of going in rounds when the epochs are counted: each cut is gentler, and each recovery is shorter.

# %%
behind = [epochs for name, (_, epochs) in apnb.estimate.stage_lengths(gently).items() if "finetuning" in name]
print(f"epochs behind the cuts: {behind} instead of [{parts.finetune_epochs}]")
difference = apnb.compare(at_once.evaluation, stepwise.evaluation)
print(f"one cut, clean {at_once.evaluation.clean_accuracy:.1%}, against three, clean {stepwise.evaluation.clean_accuracy:.1%}:")
print(difference)

# %%
apnb.Question(
    "With four epochs of fine-tuning in all, which of the two networks at 98 % stands more attacks?",
    "too close to call" if difference.p >= 0.05 else "one cut" if difference.difference > 0 else "three cuts",
    choices=["one cut", "three cuts", "too close to call"],
    because=f"{difference.first_only} images stand only after one cut, {difference.second_only} only after three (p = {difference.p:.2g}). "
    "Judged at p below 0.05, and for this budget only.",
)

# %% [markdown]
# *Try `replace(parts, name="8 + 12 epochs", finetune_epochs=12)` for both. Is the order the same?*
#
# <details><summary>Answer</summary>
#
# Compare the two differences, and their p, rather than the two orders. With few epochs the schedule is mostly a question of
# how long the network learns behind the last cut; with many, every round ends recovered and the gentler cuts can pay. Iterative
# pruning is often given more epochs in all ([Renda et al. 2020](https://arxiv.org/abs/2003.02389) weigh accuracy against the cost
# of the search), so ask of each claim: at the same *sparsity* only, or at the same *epochs* too?
#
# </details>

# %% [markdown]
# ## Now you
#
# The lab below has this notebook's budget for *before* and *after*. The row *pipeline* says *after training*, *before training*,
# *during training*; the row *schedule* says *one cut* or *several cuts*; the row *rewind* chooses whether the weights go back.
#
# > **Is it the mask or the rewinding?** Choose *before training* at 90 % and 98 %, press Run. Then choose *go on from there*
# > instead of *rewind the weights*, and Run again. If rewinding matters, the two lines differ. Do they, by more than their bars?

# %%
apnb.Lab(budget=parts, n=128, attacks="lite", pipeline="before", sparsities=(0.9, 0.98))

# %% [markdown]
# ## What to read next
#
# - [Specifics](05_specifics.ipynb): when is settled, now *what* goes, and by which score. [Methods](06_methods.ipynb) has the
#   surveyed methods one by one, and [The lab](08_lab.ipynb) takes you to cells where no surveyed method lives.
# - [Frankle and Carbin (2019)](https://arxiv.org/abs/1803.03635), *The Lottery Ticket Hypothesis*, and for robust tickets
#   [Li et al. (2020)](https://arxiv.org/abs/2003.05733).
# - [Chen et al. (2022)](https://arxiv.org/abs/2202.09844), *Sparsity Winning Twice*: one paper with a method of *before* (Robust
#   Bird) and one of *during* (Flying Bird).
# - [Renda et al. (2020)](https://arxiv.org/abs/2003.02389), *Comparing Rewinding and Fine-tuning in Neural Network Pruning*.
# - [Ye et al. (2019)](https://openaccess.thecvf.com/content_ICCV_2019/papers/Ye_Adversarial_Robustness_vs._Model_Compression_or_Both_ICCV_2019_paper.pdf):
#   why a large robust network, pruned, is better than a small one trained, and an early doubt about robust lottery tickets.
