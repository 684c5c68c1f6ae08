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
# # The taxonomy: where does nobody live?
#
# The question of this notebook: **26 methods have been published, and their words allow 242 combinations. Which ones did nobody
# try?** To answer it one has to know what the words mean. The survey of
# [Piras et al. (2024)](https://arxiv.org/abs/2409.01249) describes every method that prunes a network *and* keeps it robust by the
# same few words. We walk through them, count who uses which, draw the map, and end in a cell where nobody lives. Nothing is
# trained here: this notebook only reads, and is done in seconds.

# %%
import apnb

apnb.sweeps.set_threads(1)  # the networks are so small that more threads only get in each other's way
apnb.plots.renderer()

# %% [markdown]
# ## One formula, and two questions to it
#
# All methods look for a mask $m$ of zeros and ones, one for each of the weights $\theta$, that keeps at most $k$ of them and loses
# least under attack ([Piras et al. 2024](https://arxiv.org/abs/2409.01249)):
#
# $$ m^\star \in \arg\min_{\|m\|_0 \le k} \; \mathcal{L}(\theta \odot m,\, x,\, y) . $$
#
# The formula leaves open **when** the mask is chosen, before or after $\theta$ is trained, and **how** one finds it without trying
# all $\binom{|\theta|}{k}$. The survey calls the first the *pipeline* and the second the *specifics*. In this package every word is a
# member of an enum that can explain itself, and `apnb.taxonomy.methods(...)` finds the methods that it fits.

# %%
taxonomy = apnb.taxonomy


def explain(words, dimension):
    for word in words:
        print(f"{len(taxonomy.methods(**{dimension: word})):2d} of 26  {word:<12}{word.text}")


# %% [markdown]
# ## When: the pipeline
#
# Write $\theta_0$ for the untrained weights, $\theta$ for trained ones, and $\mathrm{train}(\theta, m)$ for training what the mask leaves.
# The three pipelines differ in the order of two steps:
#
# | pipeline | order |
# |---|---|
# | after | $\theta = \mathrm{train}(\theta_0, 1)$, then $m = m(\theta)$, then $\mathrm{train}(\theta, m)$, which is called fine-tuning |
# | before | $m = m(\theta_0)$, or from a short search that is thrown away; then $\mathrm{train}(\theta_0, m)$ |
# | during | $m$ and $\theta$ change together in one training |

# %% tags=["answer-pipeline"]
explain(taxonomy.Pipeline, "pipeline")

# %% [markdown]
# Most of the field prunes networks that somebody has trained already. That is natural, since robust training is expensive and
# trained networks exist, but it is a habit and not a result. Each pipeline has stages, and each stage minimises something:
# natural loss, a loss on attacked images ([Madry et al. 2018](https://arxiv.org/abs/1706.06083)), TRADES
# ([Zhang et al. 2019](https://arxiv.org/abs/1901.08573)), distillation. These objectives belong to the description of a method too, and
# the explorer below can filter by them.
#
# ## How: structure, locality, criterion
#
# **The structure is what goes together.** A convolution has weights $W_{o,i,a,b}$: output $o$, input $i$, place $(a, b)$ in the
# kernel. One can remove a single number, a filter $W_o$, a channel $W_{\cdot,i}$, or a kernel $W_{o,i}$.

# %% tags=["answer-structure"]
explain(taxonomy.Structure, "structure")

# %% [markdown]
# These numbers add up to more than 26, because some methods come in two structures and count in both.
#
# **The locality is who competes with whom.** Let every unit $j$ of layer $l$ have a score $s_j^{(l)}$, where high means keep. A *local*
# method removes the same share in each layer, with a threshold $t_l$ for each of them. A *global* one has one budget for the whole
# network, most often a single threshold $t$:
#
# $$ \text{local: } m_j^{(l)} = [\, s_j^{(l)} > t_l \,], \qquad \text{global: } m_j^{(l)} = [\, s_j^{(l)} > t \,] . $$

# %% tags=["answer-locality"]
explain(taxonomy.Locality, "locality")

# %% [markdown]
# (One method can do both and counts twice.)
#
# **The criterion is the score itself**, $s$. Three of the six end with a magnitude $|w|$ and differ in what is done to the weights
# before they are compared. Of the others, one scores by importance (in several of its methods the scores are learned), one by gradients
# under attack, one by sampling.

# %% tags=["answer-criterion"]
explain(taxonomy.Criterion, "criterion")

# %% [markdown]
# Finally the **schedule**: everything in one cut, or a little at a time. It is a small word with a gap in it. The survey gives no
# schedule to pruning during training, where cutting and training cannot be told apart.

# %% tags=["answer-schedule"]
explain([w for w in taxonomy.Schedule if w != "both"], "schedule")
print("both schedules:", ", ".join(m.name for m in taxonomy.methods() if m.schedule == "both"))

# %% [markdown]
# ## The explorer
#
# All of this in one place. Click on words to filter, choose two dimensions for the grid, and click on a method to read its card: its
# idea, its stages, where sources disagree about it, its published results. It works in a page without a kernel, too. With a kernel,
# `explorer.methods` is what you have left on the page, as Python objects.

# %%
explorer = apnb.TaxonomyExplorer()
explorer

# %% [markdown]
# Try it: leave only the pipeline *before* and the criterion *LIS* (two clicks), and count.

# %%
found = taxonomy.methods(pipeline="before", criterion="lis")
apnb.Question(
    "How many surveyed methods prune before training by an importance score (LIS)?",
    len(found),
    because=f"{', '.join(m.name for m in found)}. After training there are {len(taxonomy.methods(pipeline='after', criterion='lis'))}.",
)

# %% [markdown]
# ## The grid, two dimensions at a time
#
# The figure below counts methods for every pair of words. Move the slider to change the pair of dimensions. A white square with a
# dash is empty; hovering over a full one names its methods. Each title counts the empty squares.

# %%
from itertools import combinations

dimensions = ("pipeline", "criterion", "structure", "locality", "schedule")
pairs = {f"{a} × {b}": apnb.plots.crossing(a, b) for a, b in combinations(dimensions, 2)}
apnb.plots.movable(pairs, label="dimensions")

# %% [markdown]
# Read it as a map of habits. Importance scores are looked for in trained networks; before training most methods train for a while, rank
# the magnitudes that they find, and go back to the start: lottery tickets. And whole classes of structure have hardly been
# visited. One caution: not every empty square is an opportunity. BCS draws its connections *while* the network trains, so there is
# nothing that *after* × *BCS* could mean.

# %%
structures, criteria = taxonomy.Structure, taxonomy.Criterion
empty = [(s, c) for s in structures for c in criteria if not taxonomy.methods(structure=s, criterion=c)]
apnb.Question(
    "Move the slider to criterion × structure. Which structure has most of the empty squares?",
    max(structures, key=lambda u: sum(s == u for s, _ in empty)),
    choices=list(structures),
    because=f"{sum(s == 'kernels' for s, _ in empty)} of the {len(empty)} empty squares are kernels, which one method removes.",
)

# %%
alone = {c.upper(): taxonomy.methods(criterion=c)[0].name for c in criteria if len(taxonomy.methods(criterion=c)) == 1}
apnb.Question(
    "How many of the six criteria have been used by one method only?",
    len(alone),
    because="; ".join(f"{criterion}: {name}" for criterion, name in alone.items()) + ".",
)

# %% [markdown]
# ## A method is a cell
#
# One word from each of the five dimensions makes a **cell**. HYDRA
# ([Sehwag et al. 2020](https://arxiv.org/abs/2002.10509)) is the plain case: the survey gives it one word each.

# %%
for dimension, words in taxonomy.cell_of("hydra").items():
    print(f"{dimension:<10} {' or '.join(words)}")

# %% [markdown]
# In words: take a robustly trained network, learn a score for each weight, cut once, the same share in each layer. A *recipe*
# turns a cell and a sparsity into a plan. HYDRA is among the methods that this package implements with all their details.

# %%
print(apnb.recipe("hydra", sparsity=0.9).plan())

# %% [markdown]
# DNR ([Kundu et al. 2021](https://arxiv.org/abs/2011.03083)) is less plain. It removes small weights while the network trains and lets
# others grow back.

# %%
for dimension, words in taxonomy.cell_of("dnr").items():
    print(f"{dimension:<10} {' or '.join(words)}")

# %% [markdown]
# Two structures are two cells; and *unspecified* is a place where the survey is silent. This package has no implementation of DNR's
# details, and says so, but it knows which cell to run instead:

# %%
try:
    apnb.recipe("dnr", sparsity=0.9)
except apnb.Invalid as sentence:
    print(sentence)

# %%
dnr = apnb.Recipe(pipeline="during", structure="weights", locality="global", criterion="solwm", sparsity=0.9)
print(f"schedule: {dnr.schedule}")
print(dnr.plan())

# %% [markdown]
# Note what was lost on the way. The growing back of connections, half of the method, has no word in the
# taxonomy; and the schedule was filled in with this package's default. A cell is the family name, not the person.
#
# ## The whole map
#
# Five criteria go with everything: $5 \times 3 \times 2 \times 4 \times 2 = 240$ cells. The sixth, BCS, needs a training in which to sample and
# samples single weights, locally or globally, which leaves 2. For each of the 242 we ask who lives there, twice: first only the
# methods that the survey puts there by name, then also those for which it leaves a word open that could be this cell's.

# %% tags=["answer-cells"]
def lives(method, cell, open_words):
    """Whether the survey's words fit a cell; where it is silent, any word fits if ``open_words``."""
    words = taxonomy.cell_of(method)
    return all(getattr(cell, d) in words[d] or (open_words and "unspecified" in words[d]) for d in words)


cells, methods = apnb.grid(), taxonomy.methods()
named = {cell: [m.name for m in methods if lives(m, cell, open_words=False)] for cell in cells}
possible = {cell: [m.name for m in methods if lives(m, cell, open_words=True)] for cell in cells}
placed = {name for names in named.values() for name in names}
print(f"cells: {len(cells)}")
print(f"cells with a method by name: {sum(map(bool, named.values()))}")
print(f"cells with a method, if open words are read generously: {sum(map(bool, possible.values()))}")
print(f"methods without a full address: {', '.join(m.name for m in methods if m.name not in placed)}")

# %%
apnb.plots.atlas(named, possible)

# %% [markdown]
# The map is mostly white. People live at the top left, where single weights go after training. The crowded square is worth a look:

# %%
cell, names = max(named.items(), key=lambda item: len(item[1]))
print(f"{' / '.join(cell)}: {', '.join(names)}")
board = taxonomy.leaderboard().query("data == 'cifar10' and network == 'resnet18' and sparsity == 0.9 and structure_group == 'unstructured'")
for row in board[board["method"].isin([m.key for m in methods if m.name in names])].itertuples():
    print(f"{taxonomy.method(row.method).name}: published robust accuracy {row.robust:.2f} % (CIFAR-10, ResNet18, 90 % unstructured)")

# %% [markdown]
# The same cell, and yet not the same result. The address does not decide what happens there; keep this in mind when
# [the benchmark](07_benchmark.ipynb) is asked which *words* win.

# %%
kernels = [cell for cell in cells if cell.structure == "kernels"]
inhabited = [names for cell, names in named.items() if cell.structure == "kernels" and names]
apnb.Question(
    "Look at the map: in how many of the cells that remove whole kernels does somebody live?",
    len(inhabited),
    because=f"There are {len(kernels)} cells of kernels. Living there: {'; '.join(', '.join(names) for names in inhabited)}.",
)

# %% [markdown]
# ## What the survey leaves open
#
# A recipe can only be run if every word is said. Here are the methods for which the survey names none for some dimension, or
# both schedules, and what this package takes where it implements the method.

# %% tags=["answer-open"]
from apnb.presets import PRESETS

for m in methods:
    gaps = [d for d, words in taxonomy.cell_of(m).items() if "unspecified" in words]
    if m.schedule == "both":
        gaps.append("schedule (both)")
    if gaps:
        how = f"this package: {apnb.recipe(m.key).schedule}" if m.key in PRESETS else "no preset: the default, or your choice"
        print(f"{m.name:<12}{', '.join(gaps):<22}{how}")

# %% [markdown]
# ## Where the sources disagree
#
# The survey exists as a paper, as the tables of its repository, and as the forms that were filled in for each method; then there is
# each method's own paper and code. They do not always agree. Nothing was smoothed over: each disagreement is kept as a *reading*
# with what each source says, what was chosen, and why. Of these, counted by who disagrees:

# %% tags=["answer-readings"]
readings = [(m, r) for m in methods for r in m.readings]
for scope in taxonomy.Scope:
    some = [m.name for m, r in readings if r.scope == scope]
    print(f"{len(some):2d} {scope.label}, in {len(set(some))} methods")

# %% [markdown]
# Many are harmless, such as two links to one paper. Those about the five words of a cell are not, because they could move a method
# to another place on the map. (The map keeps the survey's word where a method's own code or paper reads differently; behind the arrow stands the
# reading that has more for it.)

# %%
for m, r in readings:
    if r.field in ("pipeline", "schedule", "structures", "locality", "criterion"):
        chosen = r.chosen if isinstance(r.chosen, str) else ", ".join(r.chosen)
        print(f"{m.name}, {r.field}: {' | '.join(f'{who}: {what}' for who, what in r.readings.items())} -> {chosen}")

# %% [markdown]
# <details><summary><b>Try:</b> choose a method from this list and read its card in the explorer. If the other reading is right, does it move into
# an empty cell?</summary>
#
# Sehwag19 would: with *global* instead of *local* it would live in *after / iterative / weights / global / LWM* (and the same with filters),
# which is white on the map.
# FlyingBird's released code ranks inside each layer: by that reading a method that does very well in the benchmark would be *local*, and not
# *global*. A trait that depends on the reading is a weak one to draw conclusions from.
#
# </details>
#
# ## What is not in the taxonomy
#
# Five words are few, and what they do not say can matter more than what they do:
#
# - what each stage minimises, and against which attack. The survey records it beside the cell; in a recipe it is an option;
# - whether removed weights may come back (DNR, FlyingBird), and whether weights are rewound to where they started, as in lottery tickets
#   ([Frankle and Carbin 2019](https://arxiv.org/abs/1803.03635));
# - how a global budget is shared out: by one threshold, or by learned rates for each layer as in HARP
#   ([Zhao and Wressnegger 2023](https://arxiv.org/abs/2412.14714), see [Methods](06_methods.ipynb));
# - the shape of the way to the target sparsity, the length of each stage, the learning rates;
# - what becomes of batch normalisation, biases and the last layer.
#
# Two methods of the same cell may differ in all of these.
#
# ## Moving into an empty cell
#
# Empty means that none of the 26 surveyed methods lives there: untried, or tried and not published, or published elsewhere. It does not mean good. But nothing keeps us from looking. Take whole filters,
# found before training, over the whole network, in several rounds, by the gradients of an attack:

# %%
cell = apnb.recipes.Cell("before", "iterative", "filters", "global", "hgm")
print(apnb.choices.neighbours(cell._asdict()))
recipe = apnb.Recipe(**cell._asdict(), sparsity=0.5)
print(recipe.plan())

# %% [markdown]
# This is a complete plan, and [the lab](08_lab.ipynb) will run it: choose these words there, or give this recipe to `apnb.run`.
#
# <details><summary><b>Before you do:</b> what do you expect, and with what would you compare it?</summary>
#
# A number alone says little. Compare with the same recipe and <code>criterion="random"</code>, the control that this package keeps for
# such questions: if the score is worth anything it beats chance at the same sparsity. Compare with <code>criterion="lwm"</code>, the simplest
# score. Take more than one seed. And ask whether the gap is larger than the intervals that the evaluation prints.
#
# </details>

# %% [markdown]
# ## What to read next
#
# - [Pipelines](04_pipelines.ipynb) runs *after*, *before* and *during* side by side; [Specifics](05_specifics.ipynb) does the same for
#   structure, locality and criterion; [Methods](06_methods.ipynb) tells how real methods fill a cell.
# - [The benchmark](07_benchmark.ipynb): what the published numbers say about these words, and what they do not.
# - [Piras et al. (2024)](https://arxiv.org/abs/2409.01249): the survey and its tables.
# - [Sehwag et al. (2020), *HYDRA*](https://arxiv.org/abs/2002.10509) and [Kundu et al. (2021), *DNR*](https://arxiv.org/abs/2011.03083):
#   the two methods read as cells here.
# - [Blalock et al. (2020), *What is the state of neural network pruning?*](https://arxiv.org/abs/2003.03033): why comparing pruning papers is
#   hard, robust or not.
