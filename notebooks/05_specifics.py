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
# # Specifics: which weight matters?
#
# **Six ways to say which weight matters. Do they even disagree?**
#
# A pruning method has to put the weights into an order: the first go, the last stay. The survey calls the score behind this order
# the **criterion** and finds six of them in the literature ([Piras et al. 2024](https://arxiv.org/abs/2409.01249)). This
# notebook writes down all six, reads five of them off the same network, looks at which weights they keep and which layers they empty, and
# asks at the end what difference that makes under attack. The other specifics stay as they are all the while: single weights
# (structure), one ranking for the whole network (locality), one cut (schedule).

# %%
import apnb

apnb.sweeps.set_threads(1)  # the networks are so small that more threads only get in each other's way
apnb.plots.renderer()

# %% [markdown]
# ## Six formulas
#
# Each criterion gives a score $s$ to every weight $w$, and **a high score is kept**. Under each formula stand the lines of the
# package that compute it. `weights` are the trained weights; `search` is what was active while the network trained, if the criterion
# needs that; `mean` is an average over attacked batches, and so is a bar over a formula. $\lambda$ and $\rho$ weigh the penalties, $\Pi$ keeps the
# largest entries and zeroes the rest, $m(s)$ keeps the weights with the largest $|s|$.
#
# ### LWM, lowest weight magnitude
#
# $$ s = |w| $$
#
# A small weight changes the output little, so it goes first ([Han et al. 2015](https://arxiv.org/abs/1506.02626)). Nothing is
# cheaper, and nothing about it knows of attacks.

# %%
from IPython.display import Markdown

from apnb import cards, scores

Markdown(cards.listing("apnb.criteria.LowestMagnitude"))

# %% [markdown]
# ### RELWM, regularised lowest weight magnitude
#
# $$ \min_w \; \mathcal{L}(w) + \lambda \sum |w|, \qquad \text{then } s = |w| $$
#
# First a penalty drives the weights that are not needed to zero, then magnitude decides
# ([Tibshirani 1996](https://doi.org/10.1111/j.2517-6161.1996.tb02080.x); for whole filters the group lasso of
# [Yuan and Lin 2006](https://doi.org/10.1111/j.1467-9868.2005.00532.x)).

# %%
Markdown(cards.listing("apnb.criteria.RegularisedMagnitude.scores", "apnb.mechanisms.Regularised.penalty"))

# %% [markdown]
# ### SOLWM, solver-based lowest weight magnitude
#
# $$ \min_w \; \mathcal{L}(w) + \tfrac{\rho}{2}\,\|w - z + u\|^2, \quad z = \Pi(w + u), \quad u \leftarrow u + w - z,
# \qquad \text{then } s = |w + u| $$
#
# ADMM, a solver for problems with hard constraints, pulls the weights towards a copy $z$ of themselves that is sparse already. The
# dual $u$ adds up how far $w$ has stayed from $z$ ([Boyd et al. 2011](https://doi.org/10.1561/2200000016); for robust networks
# [Ye et al. 2019](https://arxiv.org/abs/1903.12561)).

# %%
Markdown(cards.listing("apnb.criteria.SolverMagnitude.scores", "apnb.mechanisms.Admm.penalty"))

# %% [markdown]
# ### LIS, least importance score
#
# $$ \text{learned: } \min_s \; \mathcal{L}(w \odot m(s)), \text{ then } |s|; \qquad\qquad
# \text{saliency: } s = \overline{\left| w \, \frac{\partial \mathcal{L}}{\partial w} \right|} $$
#
# How much does the *attacked* loss depend on this weight? Either the scores are trained like weights, while the weights stand still
# ([Sehwag et al. 2020](https://arxiv.org/abs/2002.10509)), or the change of the loss is estimated by one derivative
# ([Molchanov et al. 2017](https://arxiv.org/abs/1611.06440)).

# %%
Markdown(
    cards.listing(
        "apnb.criteria.LeastImportance.scores", "apnb.mechanisms.LearnedScores.effective", "apnb.criteria.FirstOrderSaliency.statistic"
    )
)

# %% [markdown]
# ### HGM, highest gradient magnitude
#
# $$ s = - \overline{\left| \frac{\partial \mathcal{L}_\mathrm{adv}}{\partial w} \right|} $$
#
# The opposite thought: a weight whose gradient is large on attacked images is taken for a carrier of features that an attack can
# use, so it goes *first*. Mind the minus sign. That is the thought of
# [Lim et al. 2021](https://ieeexplore.ieee.org/document/9596121), who asked it of whole filters.

# %%
Markdown(cards.listing("apnb.criteria.HighestGradientMagnitude"))

# %% [markdown]
# ### BCS, Bayesian connectivity sampling
#
# $$ W = \sigma \, \theta \, 1[\theta > 0] $$
#
# Here nothing is ranked. Each possible connection has a fixed sign $\sigma$ and a strength $\theta$; when training pushes $\theta$ below
# zero the connection dies, and another one, drawn at random, is born in its place, so that there are never more connections than
# the budget, and here never fewer ([Özdenizci and Legenstein 2021](https://proceedings.mlr.press/v139/ozdenizci21a/ozdenizci21a.pdf)). That needs a whole training, so BCS
# lives *during* training only, and we meet it again further below.

# %%
Markdown(cards.listing("apnb.mechanisms.Connectivity.effective"))

# %% [markdown]
# ## Their scores, on one network
#
# Now all of them look at the same network. It is trained here, adversarially, with a short budget (half a minute or less on one core).
# The searches of RELWM, SOLWM and learned LIS start from it for a few epochs each, the others read it as it is. Random scores
# stand beside them: a criterion that keeps no other weights than chance, or is no better than chance in the end, has nothing to say.

# %%
budget = apnb.Budget(name="short", epochs=15, search_epochs=4, finetune_epochs=6, attack_steps=5, points=128)
words = {
    "LWM": {"criterion": "lwm"}, "RELWM": {"criterion": "relwm"}, "SOLWM": {"criterion": "solwm"},
    "LIS": {"criterion": "lis"}, "LIS, saliency": {"criterion": "lis", "variant": "saliency"},
    "HGM": {"criterion": "hgm"}, "random": {"criterion": "random"},
}  # fmt: skip
recipes = {name: apnb.Recipe(pipeline="after", sparsity=0.9, budget=budget, **chosen) for name, chosen in words.items()}
found = {name: scores.of(recipe) for name, recipe in recipes.items()}
print(f"{len(found)} criteria have scored {sum(s.numel() for s in found['LWM'].values())} weights in {len(found['LWM'])} layers.")

# %% [markdown]
# Scores of different criteria have different units, so compare *ranks*. The figure puts all weights of the network in order, lowest
# score on the left, and asks of each layer where its weights stand. A layer that is treated like the whole network is flat. A
# layer that rises towards the right is protected; one that rises towards the left is lost first. Move the slider from criterion
# to criterion and watch `conv1`, the small layer that reads the image.

# %%
apnb.plots.movable({name: apnb.plots.ranks(s, title=f"{name}: where each layer stands") for name, s in found.items()}, label="criterion")

# %% [markdown]
# ## Do they put the weights in the same order?
#
# Spearman's rank correlation is 1 if two criteria order all weights alike, 0 if the order of one says nothing about the other, and
# negative if one prefers what the other despises.

# %%
import pandas as pd
import torch

flat = pd.DataFrame({name: torch.cat([s.flatten() for s in found[name].values()]).numpy() for name in found})
correlation = flat.corr(method="spearman")
correlation.round(2)

# %% [markdown]
# Before you scroll on: would you say that two criteria with a rank correlation near 1 keep the same weights?
#
# ## Do they keep the same weights?
#
# A cut at sparsity $sr$ looks at the order only where it ends. For two masks $a$ and $b$ that keep equally many weights, the overlap is
#
# $$ \frac{|a \cap b|}{|a|} . $$
#
# Chance gives a yardstick. What would two unrelated masks share?

# %%
shares = (0.5, 0.8, 0.9, 0.95, 0.98)
apnb.Question(
    "Two masks are drawn at random, each with a sparsity of 90 %. What share of the weights that one keeps does the other keep too?",
    100 * (1 - 0.9),
    tolerance=0.5,
    unit="%",
    because="The second mask keeps every weight with probability 0.1, whatever the first one does: masks of density d share d by chance.",
)

# %% [markdown]
# Now the masks that the seven sets of scores above give. The slider moves the sparsity. (The scores are those of a search
# for 90 %; for the three criteria that search, another target would move them a little.)

# %%
layers = apnb.networks.layers(apnb.networks.build("cnn", channels=1, classes=10), torch.zeros(2, 1, 8, 8), 10)
cut = {
    s: {name: apnb.masks.Target(layers, "weights", "global", s).select(found[name]) for name in found} for s in shares
}
apnb.plots.movable(
    {f"{s:.0%}": apnb.plots.overlap(masks, title=f"Who keeps the same weights at {s:.0%}?") for s, masks in cut.items()},
    label="sparsity",
    start="90%",
)

# %%
names = [name for name in found if name != "random"]
overlaps = {(a, b): apnb.masks.overlap(cut[0.9][a], cut[0.9][b]) for i, a in enumerate(names) for b in names[i + 1 :]}
first, second = max(overlaps, key=lambda pair: correlation.loc[pair] - overlaps[pair])
print(
    f"At 90 % sparsity {first} and {second} are the pair in which the two measures differ most: their rank correlation is "
    f"{correlation.loc[first, second]:.2f}, and they share {overlaps[first, second]:.0%} of the kept weights."
)

# %% [markdown]
# *Look up that pair in both tables. How can both numbers be true?*
#
# <details><summary>Answer</summary>
#
# The correlation counts all weights, and most of them are small for every criterion: agreement about the many that go makes it high.
# The mask depends only on the order near the threshold, among the few that stay. SOLWM is the clearest example. Its score is
# $|w + u|$, and the dual $u$ grows for exactly those weights that the copy $z$ leaves out. With a search as short as this
# one ADMM is far from its end, so many a weight just below the threshold is lifted above it by its dual, while the order of
# the others hardly changes. A rank correlation is no evidence that two methods prune the same network.
#
# </details>

# %%
least = min((name for name in names if name != "LWM"), key=lambda name: apnb.masks.overlap(cut[0.9]["LWM"], cut[0.9][name]))
shared, chance = (f(cut[0.9]["LWM"], cut[0.9][least]) for f in (apnb.masks.overlap, apnb.masks.chance_overlap))
apnb.Question(
    "Whose mask at 90 % has least in common with that of LWM?",
    least,
    choices=[name for name in names if name != "LWM"],
    because=f"They share {shared:.1%}. Masks with as many weights in each layer, but drawn at random there, would share {chance:.1%}.",
)

# %% [markdown]
# ## Which layers do they empty?
#
# With one ranking for the whole network a criterion decides, without being asked, how much each *layer* keeps. That may matter more
# than which weights go within it: when a layer is empty, nothing passes. (The package keeps the best unit of each layer for
# that reason.) The grey line is what a local cut would do: the same share everywhere. Move the slider to the right, and look
# at the two ends of the network.

# %%
apnb.plots.movable(
    {f"{s:.0%}": apnb.plots.layer_shares(masks, title=f"What is left of each layer at {s:.0%}") for s, masks in cut.items()},
    label="sparsity",
    start="90%",
)

# %%
kept = pd.DataFrame({name: {n.removesuffix(".weight"): float(m.float().mean()) for n, m in cut[0.8][name].items()} for name in found})
apnb.Question(
    "HGM at 80 %: of which layer does it keep the smallest share?",
    kept["HGM"].idxmin(),
    choices=list(kept.index),
    because=f"It keeps {kept['HGM'].min():.1%} of it; LWM keeps {kept.loc[kept['HGM'].idxmin(), 'LWM']:.1%} of the same layer.",
)

# %% [markdown]
# The reason is in the formulas. A layer with few weights that are used at many positions of the image collects large gradients, so
# $|\partial \mathcal{L}/\partial w|$ is large there as a whole: saliency keeps such a layer, HGM removes it, and magnitude
# keeps much of it for another reason: its weights are large. Whether that is knowledge about robustness, or only about the sizes of layers, is a fair question to put to any
# criterion with a global ranking. (Local ranking, `locality="local"`, takes the question away.)

# %% [markdown]
# ## What difference does it make?
#
# The runs below come with the package; they were computed once, with the budget *quick* and three seeds, and their file says with which
# recipe and versions. Each point is the median of the seeds, its bar goes from the lowest to the highest.
# All were pruned after training and then fine-tuned, which repairs much of what a bad cut has broken. Move the slider: one
# criterion stands out, the others are grey.

# %%
stored = apnb.results.frame("digits/criteria")
after = stored[stored["pipeline"] == "after"]
names = ("LWM", "RELWM", "SOLWM", "LIS", "HGM", "RANDOM")
curves = {c: apnb.plots.highlight(after, f"after/weights/global/{c}", title=f"{c} after training; grey: the others") for c in names}
apnb.plots.movable({c: curve.update_layout(width=None, height=380) for c, curve in curves.items()}, label="criterion", start="LIS")

# %% [markdown]
# Can you tell them apart? The table takes the figure to pieces. *Between criteria* is the distance from the best to the worst median, once
# with all five criteria and once without the worst of them; *random* is left out of both. *Between seeds* is the
# distance from the best to the worst seed of one criterion: of the one that is least steady, the worst left out again. All in points of
# robust accuracy. Below it are the pairs in which every seed of one criterion stands above every seed of the other.

# %%
five = after[~after["criterion"].eq("random") & (after["sparsity"] > 0)]
by = five.groupby(["sparsity", "criterion"])["robust"]
medians, low, high = by.median().unstack(), by.min().unstack(), by.max().unstack()
others = medians.ne(medians.min(axis=1), axis=0)
spread = pd.DataFrame({
    "between criteria": medians.max(axis=1) - medians.min(axis=1),
    "without the worst": medians.max(axis=1) - medians.where(others).min(axis=1),
    "between seeds": (high - low).where(others).max(axis=1),
    "worst": medians.idxmin(axis=1).str.upper(),
})  # fmt: skip
spread.assign(**{c: (100 * spread[c]).round(1) for c in spread.columns[:3]})

# %%
clear = spread[spread["without the worst"] > spread["between seeds"]].index
print(
    f"Without the worst criterion, the others lie further apart than the seeds of the least steady of them at {len(clear)} of {len(spread)} "
    f"sparsities{': ' + ', '.join(f'{s:.0%}' for s in clear) if len(clear) else ''}."
)
for s in spread.index:
    left = list(others.columns[others.loc[s]])
    apart = [f"{a.upper()} above {b.upper()}" for a in left for b in left if low.loc[s, a] > high.loc[s, b]]
    print(f"{s:.0%}, every seed: {', '.join(apart) or 'no criterion above another'} (of {len(left) * (len(left) - 1) // 2} pairs)")
at = after[after["sparsity"] == after["sparsity"].max()]
median = at.groupby("criterion")["robust"].median()
below = [c.upper() for c in median.index if c != "random" and median[c] < median["random"]]
print(f"At {at['sparsity'].max():.0%}, random scores reach {median['random']:.1%}; {' and '.join(below) or 'no criterion'} stays below that.")

# %% [markdown]
# Read the columns from left to right. Where the second is no larger than the third, the whole spread of the remaining criteria is
# within what another seed does to one of them. Single pairs can be clearer than that, but three seeds above three others happen by
# chance in one of ten pairs that are alike (one order and its reverse, of $\binom63 = 20$), and there are several pairs: hints, no verdicts. This is worth
# remembering when a table ranks methods by a point or two and reports one training of each. And where HGM stands at guessing, look at its layers: with one ranking for the whole
# network it empties the first ones, so the first column measures layer collapse rather than knowledge about weights.

# %%
highest = float(spread.index.max())
apnb.Question(
    f"At {highest:.0%} sparsity: how far is the best median from the worst, in points of robust accuracy?",
    round(100 * float(spread.loc[highest, "between criteria"]), 1),
    tolerance=1.0,
    unit="points",
    because=f"The worst is {spread.loc[highest, 'worst']}; the seeds of one of the others differ by up to {100 * spread.loc[highest, 'between seeds']:.1f}.",
)

# %% [markdown]
# ## The one that lives during training
#
# BCS has no score to be read off a trained network, so its peer is a magnitude ranking that is repeated *during* training: both
# start from the same seed and see the same batches, and both end with the same number of weights.

# %%
chosen = stored[(stored["pipeline"] == "during") | stored["criterion"].isin(["lwm", "random"])]
at = [s for s in sorted(stored["sparsity"].unique()) if s > 0]
apnb.plots.movable(
    {f"{s:.0%}": apnb.plots.seeds(chosen, s, title=f"BCS and LWM during training, LWM and chance after it, at {s:.0%}") for s in at},
    label="sparsity",
    start="90%",
)

# %% [markdown]
# Do the two that prune during training at least find the same connections? Below are the stored masks of one seed at 90 %, for
# both pipelines. Look at the block that belongs to *after*, at the two rows of *during*, and at what lies between them. Hover over a
# cell: it says what masks with as many weights in each layer would share by chance.

# %%
masks = apnb.results.masks("digits/criteria")
rows = stored[stored["key"].isin(masks)]
selections = {f"{row['pipeline']}, {row['criterion'].upper()}": masks[row["key"]] for row in rows.to_dict("records")}
apnb.plots.overlap(selections, title="Stored runs at 90 %, one seed")

# %%
pair = "during, LWM", "during, BCS"
shared, chance = (f(*(selections[name] for name in pair)) for f in (apnb.masks.overlap, apnb.masks.chance_overlap))
print(
    f"LWM and BCS, both during training, share {shared:.1%} of their connections; {chance:.1%} would be chance with as many in each layer."
)

# %% [markdown]
# Each of the two trains its weights around the connections that it has, and as long as there are enough of them very different
# sets will do. So a mask is no fingerprint of a robust network (two networks can hold the same units in another order, too). When connections
# become scarce, the two ways of training part:

# %%
scarce = stored[(stored["pipeline"] == "during") & (stored["sparsity"] >= 0.9)]
scarce.groupby(["sparsity", "criterion"])["robust"].agg(["min", "median", "max"]).map(lambda v: f"{v:.1%}")

# %% [markdown]
# ## One run, here and now
#
# Learned LIS at 90 %, with the short budget of above and 128 test images: it takes up the dense network that was trained in this
# notebook. In the table it stands under the stored runs of the same recipe, in a row of its own, because **stored and live
# runs must not be mixed**: the budgets differ (15 epochs of pretraining here, 40 there), and so do the numbers of test images.
# A difference between them is a difference of budgets before it is anything else.

# %%
live = apnb.run(recipes["LIS"], attacks="lite")
same = after[(after["criterion"] == "lis") & (after["sparsity"] == 0.9)].assign(where="stored")
both = pd.concat([same, pd.DataFrame([live.row()]).assign(where="live")], ignore_index=True)
both[["where", "budget", "seed", "n", "clean", "robust", "low", "high"]].round(3)

# %%
inside = int(((same["robust"] >= both["low"].iloc[-1]) & (same["robust"] <= both["high"].iloc[-1])).sum())
print(f"{live.evaluation}\n{inside} of {len(same)} stored runs lie within the interval of the live one, which is wide with n = {live.evaluation.n}.")

# %% [markdown]
# *Try it yourself.* The lab below has the same short budget. Run another criterion at 90 % and compare it with the live point, not with
# the stored ones. Then change *locality* to *local* for HGM: does it recover when it may no longer empty the first layers?

# %%
apnb.Lab(budget=budget, criterion="hgm", sparsities=(0.9,))

# %% [markdown]
# ## What to read next
#
# - [The methods](06_methods.ipynb): ten methods, each a criterion with a pipeline around it.
# - [Pipelines](04_pipelines.ipynb): when to prune, with the criterion held fixed.
# - [Han et al. (2015)](https://arxiv.org/abs/1506.02626) on magnitude, [Sehwag et al. (2020)](https://arxiv.org/abs/2002.10509) on learned
#   scores, [Ye et al. (2019)](https://arxiv.org/abs/1903.12561) on ADMM for robust networks,
#   [Özdenizci and Legenstein (2021)](https://proceedings.mlr.press/v139/ozdenizci21a/ozdenizci21a.pdf) on connections that are sampled.
# - [Blalock et al. (2020), *What is the state of neural network pruning?*](https://arxiv.org/abs/2003.03033): how often differences
#   between pruning methods are smaller than those between set-ups.
