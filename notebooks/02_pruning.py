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
# # Pruning: which weights go, and what is saved
#
# A network has far more weights than it needs. That it classifies as before without some of them is an old observation
# ([LeCun et al. 1990](https://proceedings.neurips.cc/paper/1989/hash/6c9882bbac1c7093bd25041881277658-Abstract.html)); with some more
# training after the cut it can be nine of ten ([Han et al. 2015](https://arxiv.org/abs/1506.02626)). **Which weights are they, and what does one really save?**
#
# The first half of the question is about masks. The second has an answer that surprises most people who prune for the first
# time: as it stands, the pruned network is exactly as large and as slow as before. This notebook computes what could be saved,
# and what it takes to save it.

# %%
import apnb

apnb.sweeps.set_threads(1)  # the networks are so small that more threads only get in each other's way
apnb.plots.renderer()

# %% [markdown]
# ## A mask
#
# A mask $m$ has a zero or a one for each weight; the pruned network computes with $\theta \odot m$. If $k$ weights are kept,
# its **sparsity** is
#
# $$ sr = 1 - \frac{k}{|\theta|} , $$
#
# the share that is gone. To choose $m$ one needs a **score** for each weight. The oldest that is still in use, and hard to
# beat, is its magnitude, $s_i = |w_i|$ ([Han et al. 2015](https://arxiv.org/abs/1506.02626)): a weight near zero changes little
# when it becomes zero. (LeCun's *optimal brain damage* asks the loss instead: $s_i = \tfrac12 h_{ii} w_i^2$, with the curvature
# $h_{ii}$. Where the curvature is the same everywhere, this is magnitude again.)
#
# The patient of this notebook: a small convolutional network, trained adversarially on handwritten digits with $\varepsilon =
# 0.15$. Here is what can be pruned in it.

# %%
import pandas as pd

data = apnb.datasets.points("digits")
budget = apnb.Budget(name="short", epochs=15, finetune_epochs=6, attack_steps=5, points=100)
dense = apnb.run(apnb.Recipe(pipeline="after", sparsity=0, finetuning="none", budget=budget), evaluate=False)
net, layers = dense.model, apnb.networks.layers(dense.model, data.sample())
scores = {layer.name: net.get_parameter(layer.name).detach().abs() for layer in layers}
pd.DataFrame(
    [
        {
            "layer": x.module,
            "kind": x.kind,
            "shape": x.shape,
            "weights": scores[x.name].numel(),
            "median |w|": float(scores[x.name].median()),
        }
        for x in layers
    ]
).round(3)

# %% [markdown]
# The shape of a convolution reads (filters, inputs, height, width). Note the last column: the large layers have the small
# weights.
#
# ## Structure: what goes together
#
# The weight of a convolution is a block of numbers. A single **weight** can go; a **kernel** $W_{oi}$, all that filter $o$ does
# with input $i$; a **filter** $W_o$, which makes one output map; or a **channel** $W_{\cdot i}$, all that the layer reads from
# one input. The score of such a unit is the mean of its weights' scores ([Li et al. 2017](https://arxiv.org/abs/1608.08710)
# rank filters so), and its weights stay or go together. Half of the second convolution is gone in each of these pictures:

# %%
from apnb.masks import Target


def masks_at(sparsity, structure="weights", locality="local"):
    """Masks by magnitude: name of the weight -> True where it is kept."""
    return Target(layers, structure, locality, sparsity).select(scores)


structures = ("weights", "kernels", "filters", "channels")
apnb.plots.units(
    {s: masks_at(0.5, s)["conv2.weight"] for s in structures}, inputs=8, title="The same layer, half of it gone, four ways"
)

# %% [markdown]
# Rows are filters and columns are inputs (eight of the sixteen); each small box is a 3 × 3 kernel. Filters are whole rows,
# channels whole columns. The coarser the unit, the less freedom there is: the mask of single weights can leave out the smallest
# half, the others must take some large weights along and keep some small ones.

# %%
kept = {
    s: float(
        sum((scores[n] ** 2 * m).sum() for n, m in masks_at(0.5, s).items() if n == "conv2.weight")
        / (scores["conv2.weight"] ** 2).sum()
    )
    for s in structures
}
apnb.Question(
    "Each mask keeps half of the weights of this layer. Which one keeps the largest share of their energy, the sum of w²?",
    max(kept, key=kept.get),
    choices=list(structures),
    because="It keeps "
    + ", ".join(f"{v:.0%} with {s}" for s, v in kept.items())
    + ". The smaller the unit, the freer the choice.",
)

# %% [markdown]
# ## Locality: where they compete
#
# A sparsity of 90 % can be met in two ways. **Local**: each layer loses its own lowest 90 %. **Global**: one threshold for all,
# and each layer loses what lies below it. With $N$ units in all and $N_l$ in layer $l$, and the numbers rounded,
#
# $$ \text{local: drop the lowest } s N_l \text{ of each layer}, \qquad \text{global: drop the lowest } s N \text{ of all}. $$
#
# *Move the slider* and watch the layers part: with one threshold the layer with the smallest weights pays for all others.


# %%
def shares(sparsity):
    both = {locality: masks_at(sparsity, locality=locality) for locality in ("local", "global")}
    return apnb.plots.layer_shares(both, title=f"What a sparsity of {sparsity:.0%} leaves of each layer")


steps = (0.2, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
apnb.plots.movable({f"{s:.0%}": shares(s) for s in steps}, label="sparsity", start="90%")

# %%
left = {n: float(m.float().mean()) for n, m in masks_at(0.9, locality="global").items()}
least = min(left, key=left.get).removesuffix(".weight")
apnb.Question(
    "At 90 %, global: what share of the layer that loses most is kept?",
    100 * min(left.values()),
    tolerance=0.5,
    unit="%",
    because=f"It is {least}, with {scores[least + '.weight'].numel()} of {sum(s.numel() for s in scores.values())} weights; "
    f"{max(left, key=left.get).removesuffix('.weight')} keeps {max(left.values()):.0%}.",
)

# %% [markdown]
# ### Exact counts
#
# "One threshold" is a manner of speaking. If many scores are equal, a threshold drops all of them or none, and the sparsity is
# not the one asked for. (Think of a layer that was pruned before: half of its scores are zero.) `apnb.masks.select` counts
# instead of comparing: among equals the earlier ones go, so the number is exact and the same scores always give the same mask.

# %%
import torch

tied = {"layer": torch.tensor([0.7, 0.2, 0.2, 0.2, 0.2, 0.9])}
print("keep what is above the threshold 0.2:", (tied["layer"] > 0.2).int().tolist(), "(four gone)")
print("drop exactly three:                  ", apnb.masks.select(tied, 3)["layer"].int().tolist())

# %% [markdown]
# ## Right after the cut
#
# What is the network worth now, before anything is trained again? Each point below is a cut of the same dense network, on the
# same 100 test images: clean, and under PGD with 50 steps (a quick attack, so read the right side as an upper bound; why that
# matters is the subject of [the notebook before](01_adversarial_robustness.ipynb)).

# %%
import copy


def cut(masks):
    """A copy of the network with zeros where the masks say so."""
    pruned = copy.deepcopy(net)
    for name, mask in masks.items():
        pruned.get_parameter(name).data.mul_(mask)
    return pruned


rows = []
for structure in ("weights", "filters"):
    for locality in ("global", "local"):
        for sparsity in (0.1, 0.3, 0.5, 0.7, 0.9, 0.95):
            seen = apnb.evaluate(cut(masks_at(sparsity, structure, locality)), data, n=100, attacks="pgd", diagnostics=False)
            rows.append(
                {
                    "structure": structure,
                    "locality": locality,
                    "sparsity": sparsity,
                    "clean": seen.clean_accuracy,
                    "robust": seen.robust_accuracy,
                    "n": seen.n,
                }
            )
apnb.plots.after_cut(pd.DataFrame(rows))

# %% [markdown]
# Three things to see; with 100 images, a few points up or down say nothing. Many single weights can go at little cost, whole filters cannot:
# they leave together with what they knew. Here robust accuracy falls earlier than clean accuracy. And where the lines of one colour part,
# the choice of locality alone decides.
#
# ## Layer collapse
#
# One threshold has no respect for layers. If a layer's units all lie below it, the layer is emptied, nothing passes any more,
# and the network answers the same for every image. This is **layer collapse** ([Tanaka et al.
# 2020](https://arxiv.org/abs/2006.05467)). It happens to filters first, since a layer has few of them. Below, filters are
# removed globally, once as the threshold says, and once as this package does it: each layer's best unit is kept, and the next
# lowest elsewhere goes instead, so that the total stays exact.

# %%
x, y = data.test.images(), data.test.y
parameters = sum(p.numel() for p in net.parameters())


def told(sparsity, guarded):
    target = Target(layers, "filters", "global", sparsity)
    masks = (target if guarded else target.unguarded()).select(scores)
    kept = [int(masks[f"conv{i}.weight"].flatten(1).any(1).sum()) for i in (1, 2, 3)]
    accuracy = float((cut(masks)(x).argmax(1) == y).double().mean())
    sparsity_ = apnb.masks.account(masks, layers, "filters", sparsity, parameters)
    return {
        "filters left": " + ".join(map(str, kept)),
        "clean (%)": round(100 * accuracy, 1),
        "collapsed": ", ".join(sparsity_.collapsed or sparsity_.empty),
    }


levels = (0.5, 0.6, 0.7, 0.8, 0.9)
collapse = {f"{s:.0%}, {'guarded' if g else 'threshold only'}": told(s, g) for s in levels for g in (False, True)}
pd.DataFrame.from_dict(collapse, orient="index")

# %% [markdown]
# An emptied layer gives exactly what guessing gives, about 10 % with ten classes. A layer held open by a single filter is
# hardly better *now*, but gradients pass through it, so that it can be trained: a bottleneck, not a wall. The package names
# such layers in `Sparsity.collapsed`. When a global result at high sparsity looks strangely bad, look there first.
#
# <details><summary>Would local pruning not avoid all this?</summary>
#
# Yes: each layer keeps its share, at least one unit. But it also takes 90 % from layers that have nothing to spare (the first
# one reads the image with 144 weights), and for single weights that was the worse of the two here, right after the cut. Methods that learn the share
# of each layer, such as [HARP](https://arxiv.org/abs/2412.14714), start from this dilemma.
#
# </details>
#
# ## Growing back: fine-tuning
#
# A cut is rarely the end. Six epochs of adversarial training on what is left, with the masks held, for three of the networks
# above: single weights at 90 %, filters at 50 % in each layer, and filters at 70 % with one threshold, which leaves a
# bottleneck.

# %%
cells = {
    "weights, global, 90 %": ("weights", "global", 0.9),
    "filters, local, 50 %": ("filters", "local", 0.5),
    "filters, global, 70 %": ("filters", "global", 0.7),
}
recipes = [apnb.Recipe(pipeline="after", structure=s, locality=l, sparsity=p, budget=budget) for s, l, p in cells.values()]
runs = dict(zip(cells, apnb.sweep(recipes, attacks="pgd"), strict=True))
first = {name: apnb.evaluate(cut(run.masks), data, n=100, attacks="pgd", diagnostics=False) for name, run in runs.items()}
pd.DataFrame(
    {name: {"clean, right after the cut": first[name].clean_accuracy, "clean, fine-tuned": run.evaluation.clean_accuracy,
            "robust, right after": first[name].robust_accuracy, "robust, fine-tuned": run.evaluation.robust_accuracy,
            "collapsed": ", ".join(run.sparsity.collapsed)} for name, run in runs.items()}
)  # fmt: skip

# %% [markdown]
# Fine-tuning brings back most of what the cut took, but through a bottleneck only so much (that network also lost more filters). That a sparse network trained *from
# the start* can do as well, if one knows the right mask and the right initial weights, is the lottery ticket hypothesis
# ([Frankle and Carbin 2019](https://arxiv.org/abs/1803.03635)); it is behind the pipeline *before training*, see
# [Pipelines](04_pipelines.ipynb).
#
# ## What is saved?
#
# Now the second half of the question. Take the network with 90 % zeros and ask for its size, and for the time of a forward pass.

# %%
import io
import time

models = {"dense": net, "90 % zeros": runs["weights, global, 90 %"].model}
size, spent = {}, {name: [] for name in models}
for name, model in models.items():
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    size[name] = file.getbuffer().nbytes
for _ in range(40):  # in turn, so that both meet the same noise
    for name, model in models.items():
        start = time.perf_counter()
        with torch.no_grad():
            model(x)
        spent[name].append(1000 * (time.perf_counter() - start))
for name in models:
    print(f"{name:10s} {size[name]} bytes, fastest of 40 passes of {len(x)} images: {min(spent[name]):.1f} ms")

# %% [markdown]
# **Nothing.** A zero is stored in four bytes like any other number and multiplied like any other number. (If the two times
# differ, run the cell again: it is the machine's noise.) A mask says what *could* be saved. To save it one needs either kernels
# that skip zeros, and these only pay at high sparsity or with hardware made for it; or a smaller dense network, and for this
# whole units must go.
#
# `apnb.costs` counts both. Write $P_l$ for the number of positions at which layer $l$ is applied, for one image. Its
# multiply-accumulates (MACs) are
#
# $$ \text{dense: } P_l\, |W_l|, \qquad \text{non-zero: } P_l\, \|m_l\|_0, \qquad \text{slimmed: } P_l\; o_l \; i_l \; h\, w, $$
#
# where the slimmed network has only the $o_l$ filters that are still of use, and only the $i_l$ inputs that still come. A
# filter that goes takes its entry in the batch norm with it and, in the next layer, the slices that read its map. What reads
# what is found by filling a map with NaN and looking where NaN arrives.

# %%
from apnb.costs import count

costs = {name: count(net, data.sample(), run.masks) for name, run in runs.items()}
pd.concat({name: cost.table() for name, cost in costs.items()})

# %% [markdown]
# Read the two lower rows of each network against each other. For single weights the count of non-zero weights is a small part
# of the dense one, and the slimmed network is about as large as before: zeros are scattered, so that almost no filter is empty.
# For half of the filters it is the other way round: the slimmed network is *smaller* than the count of non-zero weights says,
# since half of the filters and half of the inputs leave a quarter of the weights. And where a bottleneck was left, the
# parameters shrink to about a tenth, while the early layers, which work on the large maps, still cost their multiplications.

# %%
half = count(net, data.sample(), masks_at(0.5, "filters"))
conv3 = next(c for c in half.layers if c.layer == "conv3")
apnb.Question(
    "Half of the filters of every convolution are removed. What share of the multiplications of conv3 is left once the network is slimmed?",
    100 * conv3.macs_slim / conv3.macs,
    tolerance=1,
    unit="%",
    because=f"{conv3.maps_slim} of {conv3.maps} filters, and each reads only the {half.layers[1].maps_slim} maps of conv2 that are left: a half of a half. "
    f"The first layer saves {1 - half.layers[0].macs_slim / half.layers[0].macs:.0%}, since its input is the image.",
)

# %% [markdown]
# ### The networks of the benchmark
#
# The same for ResNet-18 and VGG-16 at 32 × 32 pixels, untrained: the count of non-zero weights does not depend on their values, the slimmed
# one does where layers have to agree, as we shall see. Single weights at 90 % stand beside filters at 50 % and 75 %.


# %%
def priced(network, structure, sparsity):
    big, sample = apnb.networks.build(network, channels=3, classes=10), torch.zeros(1, 3, 32, 32)
    parts = apnb.networks.layers(big, sample)
    masks = Target(parts, structure, "local", sparsity).select({p.name: big.get_parameter(p.name).detach().abs() for p in parts})
    cost = count(big, sample, masks)
    millions = {
        "parameters": cost.parameters,
        "non-zero": cost.parameters_nonzero,
        "slimmed": cost.parameters_slim,
        "MACs": cost.macs,
        "MACs non-zero": cost.macs_nonzero,
        "MACs slimmed": cost.macs_slim,
    }
    return {"network": network, "removed": f"{sparsity:.0%} of {structure}"} | {k: round(v / 1e6, 2) for k, v in millions.items()}


pd.DataFrame([priced(n, s, p) for n in ("resnet18", "vgg16") for s, p in (("weights", 0.9), ("filters", 0.5), ("filters", 0.75))])

# %% [markdown]
# All numbers are in millions. VGG-16 is a chain: with half of its filters it needs a quarter of everything. ResNet-18 saves
# less from the same masks. Its blocks *add* their output to their input, and a map of a sum can only go if all layers that
# write into it agree to drop the same one. Each layer ranked its filters by itself, so they seldom agree; inside a block,
# between its two convolutions, nothing is added and filters go freely. Methods that slim residual networks therefore tie the
# layers of a sum together ([Fang et al. 2023](https://arxiv.org/abs/2301.12900) find such groups in any network).
#
# Two honest footnotes. A filter that is gone still leaves a constant behind, the shift of its batch norm after the ReLU; the
# slimmed network equals the masked one only where this is zero or is added elsewhere. And MACs are not seconds: memory, batch
# size and the kernels decide what a saved multiplication is worth.

# %%
for name, cost in costs.items():
    print(f"{name}: {cost.constants} maps leave a constant behind")

# %% [markdown]
# *Try it:* in the section "What is saved?", count with `count(net, data.sample(), masks_at(0.5, "kernels"))`. Why does the slimmed
# network save anything at all, when single kernels are cut?
#
# <details><summary>Answer</summary>
#
# The first layer has one input, the grey image. There a kernel *is* a filter, so half of its filters go, and the second layer
# reads half as many maps. The `.frame()` of the result shows it layer by layer.
#
# </details>

# %% [markdown]
# ## What to read next
#
# - [The taxonomy](03_taxonomy.ipynb): when and how to prune, as the survey orders it; then [Pipelines](04_pipelines.ipynb) and
#   [Specifics](05_specifics.ipynb).
# - [LeCun et al. (1990), *Optimal brain
#   damage*](https://proceedings.neurips.cc/paper/1989/hash/6c9882bbac1c7093bd25041881277658-Abstract.html) and [Han et al.
#   (2015)](https://arxiv.org/abs/1506.02626): where it began, and where it began again.
# - [Li et al. (2017), *Pruning filters for efficient ConvNets*](https://arxiv.org/abs/1608.08710): whole filters by magnitude,
#   and what they save.
# - [Frankle and Carbin (2019), *The lottery ticket hypothesis*](https://arxiv.org/abs/1803.03635): the sparse network was there
#   from the start.
# - [Tanaka et al. (2020)](https://arxiv.org/abs/2006.05467): layer collapse, and how to prune without it.
