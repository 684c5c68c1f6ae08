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
# # The lab: what can you find out that no paper has?
#
# A survey can only tell what was published. Its taxonomy, though, describes far more ways to prune than its papers have tried, and
# here every one of them runs. This notebook is a set of guided experiments. The first ones repeat what is known, so that you
# learn to read the instrument; then they leave the map. Each has a question, what to click, what to look at, the same in Python,
# and an answer to unfold. Four of them were run while this page was made, with so small a budget that they take seconds; you can
# run the others, and everything again with more epochs, seeds and images.

# %%
import apnb

apnb.sweeps.set_threads(1)  # the networks are so small that more threads only get in each other's way
apnb.plots.renderer()

# %% [markdown]
# ## The instrument
#
# This is the lab after a small experiment. On the left the grammar of the survey as rows of words; a word that contradicts the
# others is greyed out and says why. On the right what will happen, in words and as a picture, and how long it will take here. Below
# the buttons the results: the tabs show curves, training, layers, masks, attacked images and the table.
#
# ![The lab in JupyterLab: on the left rows of words to choose, on the right the plan, below a curve of accuracy against sparsity](lab.png)

# %% [markdown]
# The next cell makes one. It has a short budget of its own, so that the experiments of this page take seconds; plain
# `apnb.Lab()` has a row *budget* with *quick*, *standard* and *paper* to choose from. Without a kernel the cell shows a
# sentence only; everything else on this page can be read all the same.

# %%
short = apnb.Budget(name="10 epochs", epochs=10, search_epochs=4, finetune_epochs=4, attack_steps=5, updates=20, points=128)
lab = apnb.Lab(budget=short, n=128, attacks="lite", sparsities=(0.9, 0.98))
lab

# %% [markdown]
# Before you run anything, read three lines. The sentence in italics under *What will happen* says who lives in the chosen cell.
# The line below the picture says how long it takes; it was measured on your machine. And the table says *robust, at most*: an
# attack can show that a network is weak, never that it is strong, and the lab's attacks are as good as the row *attacks* says.
#
# Results carry brackets. They are 95 % intervals for the choice of the test images. With 128 images they are wide, and that is the
# first lesson of the lab: **most small differences are none.** The function below says so. It compares two networks image by
# image (McNemar's test, see [Pipelines](04_pipelines.ipynb)).

# %%
def winner(first, second, names):
    """Which of two runs stands more attacks on the same images, if chance is an unlikely explanation (p < 0.05)."""
    verdict = apnb.compare(first.evaluation, second.evaluation)
    return "too close to call" if verdict.p >= 0.05 else names[0] if verdict.difference > 0 else names[1]


# %% [markdown]
# ## 1. Is a published method better than its plain relative?
#
# HYDRA ([Sehwag et al. 2020](https://arxiv.org/abs/2002.10509)) learns a score for every weight instead of reading off its
# magnitude. Everything else can be had without learning: the same pipeline, structure, locality and objective.
#
# - **Click** *method: HYDRA, Sehwag 2020*, tick 90 % and 95 %, press *Run*. Then *method: a cell of my own*, *criterion: LWM:
#   smallest |w|*, and *trades* in the rows *pretraining* and *fine-tuning*. *Run* again.
# - **Look at** the tab *Curve*, and then at *Masks*: which layers look different?
#
# ```python
# lab.choose(method="hydra", sparsities=(0.9, 0.95))
# lab.run(); lab.wait()
# lab.choose(method="", criterion="lwm", pretraining="trades", finetuning="trades")
# lab.run(); lab.wait()
# ```
#
# <details><summary>How to judge</summary>
#
# HYDRA also spends search epochs, which the plain cell does not have: if it is ahead, give the plain cell as many more epochs
# of fine-tuning and look again. At moderate sparsity expect the bars to overlap: there are weights to spare, and many masks
# will do. HYDRA's own tables begin at 90 %.
#
# </details>

# %% [markdown]
# ## 2. Within each layer, or across the network?
#
# With *local* pruning every layer loses the same share; with *global* pruning one threshold decides, and layers with small
# weights pay most. At 98 % that should matter: a small first layer can lose nearly everything.
#
# - **Click** *pipeline: after training*, *criterion: LWM: smallest |w|*, *locality: within each layer*, 98 %, *evaluate: and
#   security curves*; *Run*. Then *across the network*; *Run*.
# - **Look at** *Curve* for the difference, and at *Layers* for the reason.
#
# It runs here, as Python. `apnb.sweep` is what the lab does behind the button, without the button.

# %%
cell = {"pipeline": "after", "structure": "weights", "criterion": "lwm", "sparsity": 0.98, "budget": short}
places = apnb.sweep([apnb.Recipe(locality=w, **cell) for w in ("local", "global")], attacks="lite", distances="fmn")
local, everywhere = places
for run in places:
    print(f"{run.recipe.locality:6s}  {run.evaluation}")

# %%
import pandas as pd

kept = pd.DataFrame({r.recipe.locality: r.sparsity.per_layer for r in places}) * 100
kept.round(1).rename_axis("kept, in % of the layer")

# %%
verdict = apnb.compare(local.evaluation, everywhere.evaluation)
apnb.Question(
    "At 98 %, which of the two networks stands more attacks?",
    winner(local, everywhere, ("local", "global")),
    choices=["local", "global", "too close to call"],
    because=f"{verdict.first_only} images stand only after local pruning, {verdict.second_only} only after global pruning: "
    f"p = {verdict.p:.2g}. One seed and one network; in larger networks layers differ much more in size.",
)

# %% [markdown]
# ## 3. Robust at which radius?
#
# A robust accuracy belongs to one $\varepsilon$. Two networks can be equal there and differ on both sides. The **security curve**
# shows all radii at once: for every image the attacks look for the *smallest* change that breaks it, and the curve is the share of
# images whose distance is larger than the radius.
#
# - **Click** the tab *Security* after experiment 2, and move *eps*. Then write `0.3` into the row *eps* and *Run*: this trains
#   *and* attacks at twice the radius.
# - **Look at** the left end: what does training at a larger radius cost on clean images? And at the right end.
#
# The curves of the two networks above; the slider moves the radius of reference, and the legend tells the values there.

# %%
curves = [run.evaluation.curve(run.recipe.locality) for run in places]
radii = (0.05, 0.1, 0.15, 0.2, 0.3)
apnb.plots.movable({eps: apnb.plots.security_curve(curves, eps=eps) for eps in radii}, label="eps", start=0.15)

# %%
apnb.Question(
    "Read it off the figure: at 0.2, a third beyond the radius of training, what share of the images does the globally pruned network hold?",
    100 * curves[1].accuracy(0.2),
    tolerance=3,
    unit="%",
    because=f"At 0.15 the curve is at {curves[1].accuracy(0.15):.1%} (what the search for small changes finds counts, too), and at 0.3 it is {curves[1].accuracy(0.3):.1%}: nothing in the training "
    "prepared it for more.",
)

# %% [markdown]
# Two things in such a figure want a second look. A step at 0.15: only there do the attacks of AutoAttack help with the search, so
# the curve elsewhere is a looser bound. And a curve that never comes down to zero is no triumph. A network that gives one answer
# to nearly everything *withstands* any attack on the images for which that answer is right.
#
# <details><summary>How to judge the network trained at 0.3</summary>
#
# Compare whole curves, not their values at one radius. The lab keeps runs of different training radii apart in the tab *Curve*,
# since their numbers at their own eps are no comparison. Expect the two security curves to cross: robustness far out is
# usually paid for with accuracy near zero. If one lies above the other everywhere, look for a reason (too few epochs?).
#
# </details>

# %% [markdown]
# ## 4. What should go together?
#
# Single weights leave holes that ordinary hardware cannot use. Filters, channels and kernels leave smaller tensors. What does that
# regularity cost?
#
# - **Click** *structure: weights*, then *filters*, *channels*, *kernels*, each with 50 % and 75 %, and *Run* after each.
# - **Look at** *Curve*, then at the column *zeros* in *Table*: 75 % of the channels need not be 75 % of the weights.
#
# ```python
# recipes = [apnb.Recipe(pipeline="after", structure=u, sparsity=s, budget=short)
#            for u in ("weights", "filters", "channels", "kernels") for s in (0.5, 0.75)]
# runs = apnb.sweep(apnb.sweeps.with_dense(recipes), attacks="lite")
# ```
#
# <details><summary>How to judge</summary>
#
# The finer the unit, the more masks there are to choose from, so weights should be in front and kernels between weights and
# filters. A fair comparison has the share of *zeros* on its axis, not the share of units; the first layer is left alone by
# channels and the last one by filters, which costs them nothing. And no number here says anything about speed: see
# [GPU and beyond](10_gpu_and_beyond.ipynb).
#
# </details>

# %% [markdown]
# ## 5. Must the dense network be robust already?
#
# Several methods prune a robust network; others start from a plainly trained one and become robust afterwards. Adversarial
# pretraining costs several times as much. Is it needed?
#
# - **Click** *pipeline: after training*, *structure: weights*, 90 %; *pretraining: pgd_at*, *Run*; *pretraining: natural*, *Run*.
#   Then *pretraining: pgd_at* with *fine-tuning: natural*.
# - **Look at** *Curve*: which of the two stages makes the robustness? The tab *History* shows when it appears, and disappears.
#
# ```python
# recipes = [apnb.Recipe(pipeline="after", sparsity=0.9, pretraining=a, finetuning=b, budget=short)
#            for a, b in (("pgd_at", "pgd_at"), ("natural", "pgd_at"), ("pgd_at", "natural"))]
# ```
#
# <details><summary>How to judge</summary>
#
# The objective of the last stage decides most: a network forgets robustness in a few epochs of natural training, and clean
# accuracy rises while it does. Whether natural pretraining is *as good* as adversarial pretraining is the harder question. Give
# the first more epochs until the seconds in *Table* are equal, and take three seeds.
#
# </details>

# %% [markdown]
# ## 6. Leave the map
#
# The grammar has 242 valid cells: pipeline, schedule, structure, locality and criterion. In how many of them does a surveyed method live?
# The sentence in italics in the lab comes from `apnb.choices.neighbours`, and it can be asked about all of them.

# %%
cells = apnb.grid()
empty = [c for c in cells if apnb.choices.neighbours(c._asdict()).startswith("An empty cell")]
table = pd.DataFrame(empty)
print("empty cells, by structure and criterion:")
pd.crosstab(table["structure"], table["criterion"]).rename_axis(columns=None)

# %%
apnb.Question(
    f"In what share of the {len(cells)} cells does no surveyed method live? Add up the table, or guess.",
    100 * len(empty) / len(cells),
    tolerance=5,
    unit="%",
    because=f"{len(empty)} of {len(cells)} are empty. A method that the survey leaves open in one word (whose schedule is not specified, "
    "say) counts for every cell it may be in, so the true share is not smaller.",
)

# %% [markdown]
# The explorer shows where they are. Rows and columns of its grid are any two words of the taxonomy; here it
# shows the methods that prune during training; a striped cell that says *nobody* is one to try. (With a kernel,
# *open in the lab* on a method's card sets the lab above.)

# %%
apnb.TaxonomyExplorer(lab=lab, axes=["structure", "criterion"], filters={"pipeline": ["during"]})

# %% [markdown]
# Take **kernels, pruned during training, across the network**. A kernel is one 3 × 3 slice: coarser than a weight, finer than a
# filter. Nobody in the survey prunes them during training, by any criterion. So we try three of the five that kernels can have: the magnitude (LWM), the
# magnitude after a penalty has pushed whole kernels down (RELWM), and the gradient under attack (HGM), which removes the kernels
# on which the adversarial loss leans most.
#
# - **Click** *pipeline: during training*, *structure: kernels*, *locality: across the network*, 75 %; for each of *LWM*, *RELWM*
#   and *HGM* press *Run*. The sentence in italics says that the cell is empty.
# - **Look at** *Curve* first, and at *Layers* and *History* for whichever fails.
#
# This time the lab itself runs it, told from Python. `choose` does what a click does, and `run` returns at once, as the button does.

# %%
lab.choose(method="", pipeline="during", structure="kernels", locality="global", sparsities=(0.75,))
for criterion in ("lwm", "relwm", "hgm"):
    lab.choose(criterion=criterion)
    lab.run()
finished = lab.wait()

# %%
new = lab.frame().query("pipeline == 'during' and structure == 'kernels' and sparsity == 0.75 and budget == '10 epochs' and seed == 0")
dense = lab.frame().query("sparsity == 0 and budget == '10 epochs' and seed == 0")
shown = pd.concat([dense, new]).set_index("label")[["clean", "robust", "low", "high"]]
(100 * shown).round(1).rename_axis("accuracy in %; low and high: interval of robust")

# %% [markdown]
# Is one of them down at 10 %? That is what guessing gives with ten digits: the network then says nearly the same of every image. An
# empty cell may be empty because nobody thought of it, or because somebody tried. The layers tell what happened: here is what
# each criterion has kept of each of them, in per cent. A layer of which next to nothing is left lets next to nothing through,
# whatever the others keep.

# %%
kernels = {row["criterion"]: lab.run_of(row) for row in new.to_dict("records")}
(100 * pd.DataFrame({c: run.sparsity.per_layer for c, run in kernels.items()})).round(1).rename_axis("layer")

# %%
order = sorted(kernels, key=lambda c: -kernels[c].evaluation.robust_accuracy)
best, next_best = order[0], order[1]
apnb.Question(
    "Which criterion is in front in the empty cell, if any is?",
    winner(kernels[best], kernels[next_best], (best.upper(), next_best.upper())),
    choices=["LWM", "RELWM", "HGM", "too close to call"],
    because=f"{best.upper()} is ahead of {next_best.upper()}: {apnb.compare(kernels[best].evaluation, kernels[next_best].evaluation)}. "
    f"Last is {order[2].upper()} with a robust accuracy of at most {kernels[order[2]].evaluation.robust_accuracy:.1%}.",
)

# %% [markdown]
# ## 7. Is it real?
#
# One training is an anecdote. Before you tell anybody about a new cell, repeat the two best criteria with other seeds.
#
# - **Click** the row *seeds*, write `0, 1, 2`, press *Run* for each of the two criteria.
# - **Look at** *Curve*: with several seeds a point is the median, and its bar goes from the lowest to the highest.
#
# From here on clicking is slower than writing. What is in the store is not computed again: seed 0 comes back at once.

# %%
seeds = [
    apnb.Recipe(pipeline="during", structure="kernels", criterion=c, sparsity=0.75, seed=seed, budget=short)
    for c in (best, next_best)
    for seed in (0, 1, 2)
]
repeated = apnb.sweep(seeds, attacks="lite", n=128)
robust = repeated.frame().pivot(index="seed", columns="criterion", values="robust")[[best, next_best]]
(100 * robust).round(1)

# %%
ahead = int((robust[best] > robust[next_best]).sum())
print(f"{best.upper()} is ahead of {next_best.upper()} in {ahead} of {len(robust)} seeds;")
print(f"one criterion moves by up to {(robust.max() - robust.min()).max():.1%} between seeds, the medians differ by "
      f"{abs(robust[best].median() - robust[next_best].median()):.1%}.")

# %% [markdown]
# <details><summary>How to judge</summary>
#
# If the seeds move one criterion by more than the medians differ, there is nothing to report yet. Three seeds that agree have a
# chance of one in four to do so if nothing is behind it (two of the eight ways in which three coins fall). Five agree by chance
# in one of sixteen, six in one of thirty-two. And note that the two were *picked* as the best of three in seed 0: seed 0 is
# biased in favour of whoever was in front there, only the other seeds are fair.
#
# </details>

# %% [markdown]
# ## From an experiment to a result
#
# **Go on.** The tab *Code* holds the Python of what is chosen. It is a sweep, which takes any executor of
# `concurrent.futures`: `apnb.sweep(recipes, executor=apnb.sweeps.workers(4))` uses four processes, and a cluster is the same line.

# %%
print(lab.code.value)

# %% [markdown]
# **Take it away.** The tab *Take away* has everything as one ZIP: networks, masks, table, recipes, figures and code. On Binder, which
# forgets, do it before you leave; `apnb runs import` reads it back at home, and `lab.frame()` is the table in Python.
#
# **Put it beside the published.** The leaderboard takes runs of your own. Runs on the digits appear *hollow*, and are never ranked:
# other images, another $\varepsilon$, another network. The reasons are listed with each of them.

# %%
mine = repeated.frame().query("seed == 0")
for row in apnb.benchmark.overlay(mine).to_dict("records"):
    print(f"{row['label']}: comparable {row['comparable']}, because {row['why']}")

# %% [markdown]
# With a GPU, `network="resnet18", data="cifar10"`, a budget of *standard* or *paper* and `attacks="standard"`, the same call gives
# full points, and the result can be laid beside HARP's and HYDRA's.

# %%
apnb.Leaderboard(runs=mine, view="sparsity")

# %% [markdown]
# **Bring your own.** The lab takes a network by the name of what makes it, and images from a folder or a file of arrays:
#
# ```python
# lab.choose(network="mypackage:make_net")       # called with channels= and classes= if it takes them
# lab.choose(data="folder:photos")               # photos/train/cat/1.png ..., or photos/cat/1.png
# lab.choose(data="npz:arrays.npz")              # x_train, y_train, x_test, y_test
# ```
#
# The rules are in [Your own network](09_your_own_network.ipynb). A cell that you run there, on data that matter to you, is the
# answer to the question at the top of this page.

# %% [markdown]
# ## What to read next
#
# - [Your own network](09_your_own_network.ipynb) and [GPU and beyond](10_gpu_and_beyond.ipynb), to leave the digits; or back to
#   [Specifics](05_specifics.ipynb) for what the criteria compute.
# - [Sehwag et al. (2020), *HYDRA*](https://arxiv.org/abs/2002.10509), experiment 1.
# - [Carlini et al. (2019), *On Evaluating Adversarial Robustness*](https://arxiv.org/abs/1902.06705): what to doubt before you believe
#   a result of your own.
# - [Blalock et al. (2020), *What is the State of Neural Network Pruning?*](https://arxiv.org/abs/2003.03033): why pruning papers
#   are so hard to compare, and what to report.
