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
# # Start here: a survey in one picture
#
# **How many of its weights can a network lose before it loses its robustness?**
#
# A trained network can be made much smaller by **pruning**: most of its weights are set to zero, and it still classifies well.
# It can also be made **robust**: nobody can change its answer by altering the pixels of an image a little. *Adversarial pruning*
# wants both at once, and the two pull against each other. The survey of
# [Piras et al. (2024)](https://arxiv.org/abs/2409.01249) puts the published methods into one order and measures them by one
# protocol. This notebook answers the question for one small network, in a single picture. The picture is computed while you read: the network
# is trained, pruned and attacked here, on your machine, in about a minute on one core.

# %% [markdown]
# ## What is looked for
#
# Take a network with weights $\theta$ and a mask $m$ of zeros and ones, one for each weight. Pruning looks for the mask that
# keeps at most $k$ weights and loses least ([Piras et al. 2024](https://arxiv.org/abs/2409.01249)):
#
# $$ m^\star \in \arg\min_{\|m\|_0 \le k} \; \mathcal{L}(\theta \odot m,\, x,\, y), \qquad sr = 1 - \frac{k}{|\theta|} . $$
#
# $sr$ is the **sparsity**, the share of weights that are gone. What makes it *adversarial* pruning is the loss: it is taken
# at the worst image within a distance $\varepsilon$ of the given one, so that the minimum contains a maximum,
#
# $$ \mathcal{L}(\theta, x, y) = \max_{\|\delta\|_\infty \le \varepsilon} \ell\big(f_\theta(x + \delta),\, y\big) . $$

# %% [markdown]
# ## When and how
#
# Nobody can try every mask. The survey describes a method by two things:
#
# - its **pipeline** says *when* the weights go: *after* training (train, cut, fine-tune what is left), *before* training (find a
#   mask first, then train only what it keeps), or *during* training (masks and weights change together);
# - its **specifics** say *how*: the **structure** is what goes together (single weights, filters, channels, kernels), the
#   **locality** is where units compete (each layer for itself, or the whole network), the **criterion** is the score by which
#   they compete (the magnitude of the weight, for example), and the schedule is one cut or several.
#
# In this package one such choice, with a sparsity and a budget of work, is a **recipe**. A recipe can say what it will do.

# %%
import apnb

apnb.sweeps.set_threads(1)  # the network is so small that more threads only get in each other's way
apnb.plots.renderer()  # interactive figures, with a still picture where a browser can draw one

cell = {"pipeline": "after", "structure": "weights", "locality": "global", "criterion": "lwm"}
budget = apnb.Budget(name="short", epochs=15, finetune_epochs=6, attack_steps=5, points=128)
print(apnb.Recipe(**cell, sparsity=0.9, budget=budget).plan())

# %% [markdown]
# `pgd_at` is adversarial training: in every step the images are first attacked by projected gradient descent, then the network
# learns from the attacked ones ([Madry et al. 2018](https://arxiv.org/abs/1706.06083)). That is the formula above, maximum
# inside, minimum outside.
#
# ## The run
#
# The same recipe at three sparsities, and the dense network for comparison. The images are the handwritten digits that come
# with scikit-learn (8 × 8 pixels), the network is a small convolutional one, $\varepsilon$ is 0.15 on a scale from 0 to 1.
# Whatever has been computed before comes from the store at once.

# %%
recipes = [apnb.Recipe(**cell, sparsity=s, budget=budget) for s in (0.5, 0.9, 0.98)]


def say(done, total, recipe, problem):
    print(f"{done} of {total}: sparsity {recipe.sparsity:.0%} {problem or 'done'}")


runs = apnb.sweep(apnb.sweeps.with_dense(recipes), attacks="lite", progress=say)

# %%
for run in runs:
    print(f"{run.recipe.sparsity:4.0%}  {run.evaluation}")

# %% [markdown]
# *Clean* is the share of test images classified correctly as they are. *Robust* is the share still classified correctly after
# the attacks. It says **at most**, because a stronger attack can only find more: every such number is an upper bound. To save
# time only the first two of AutoAttack's four attacks ran here (`attacks="lite"`), on as many test images as `n` says;
# `attacks="standard"` runs all four. The brackets are a 95 % interval for the choice of those images and for nothing else:
# another seed of the training can move the numbers as well.
#
# ## The picture
#
# The horizontal lines are the dense network. Where does the curve leave them, and which of the two accuracies leaves first?

# %%
apnb.plots.robustness_sparsity(runs.frame())

# %% [markdown]
# Boxes like the next one are exercises. They judge your answer at once, and the notebook computes the answer from the runs above.

# %%
dense, *_, sparsest = runs
lost = {what: dense.row()[what] - sparsest.row()[what] for what in ("clean", "robust")}
apnb.Question(
    "Which accuracy loses more points between the dense network and the sparsest one?",
    max(lost, key=lost.get),
    choices=["clean", "robust"],
    because=f"Clean accuracy falls by {100 * lost['clean']:.1f} points, robust accuracy by {100 * lost['robust']:.1f}.",
)

# %% [markdown]
# This trade is what the survey is about: 26 methods, each of which claims to move the point where the curve falls. Everything
# else in these notebooks asks why it falls there, and what moves it.
#
# ## One run from inside
#
# Look at the sparsest one. First the dense network is trained, then the dashed line: the cut. The open markers are the
# accuracies right after it, before the network has had a chance to adapt. Fine-tuning then moves only the weights that are left.

# %%
apnb.plots.history(sparsest)

# %% [markdown]
# ### Who was cut?
#
# With one threshold for the whole network (`locality="global"`) layers need not lose the same share. Large layers have many
# small weights, and they pay most. Move the slider.

# %%
apnb.plots.movable({f"{run.recipe.sparsity:.0%}": apnb.plots.layers(run) for run in runs[1:]}, label="sparsity", start="98%")

# %%
left = sparsest.sparsity
apnb.Question(
    f"The network has {left.total} weights that can be pruned. How many of them are left at the sparsest point?",
    left.kept,
    tolerance=1,
    because=f"{left.total} - round(0.98 x {left.total}) = {left.kept}: the number kept is exact, whatever the scores are.",
)

# %% [markdown]
# ### What does an attack look like?
#
# Some of the images that this network classified correctly, and the changed image that broke each of them. Every such image was
# checked again: inside the box $[0, 1]$, no pixel changed by more than $\varepsilon$, and misclassified in full precision.

# %%
apnb.plots.examples(sparsest.evaluation)

# %% [markdown]
# ## Now you
#
# The lab below runs any cell of the survey's taxonomy, also those where no surveyed method lives; it has the short budget of the runs above.
# A question to begin with:
#
# > **The sparsest network above was cut in one go. Does it stand more attacks if the same weights go in several cuts?**
# > Choose *schedule: several cuts*, press Run; then the same with *one cut* (which comes from the store). How far apart are
# > the two points at 98 %, compared with their bars? Try another seed before you believe it.
#
# Choices that contradict what is chosen (criterion BCS before training, for example) are greyed out and say why. Choose a *method*, and
# its cell is chosen with it; change the cell, and the line above the plan says who lives there, or that nobody does. Give the lab
# a name, `lab = apnb.Lab(...)`, and `lab.frame()` is the table of what you ran; the tab *Take away* has everything as one file.

# %%
apnb.Lab(budget=budget, attacks="lite", n=128, sparsities=(0.9, 0.98))

# %% [markdown]
# ## What to read next
#
# The series goes on in this order; every notebook starts with a question and stands on its own.
#
# - [Adversarial robustness](01_adversarial_robustness.ipynb): what "robust" means, and when such a number is a lie.
# - [Pruning](02_pruning.ipynb): what a mask removes, and what is saved.
# - [The taxonomy](03_taxonomy.ipynb), [pipelines](04_pipelines.ipynb), [specifics](05_specifics.ipynb): when and how to prune.
# - [The methods](06_methods.ipynb): a card of each, with its equation and its code. [The benchmark](07_benchmark.ipynb): what the
#   published numbers show.
# - [The lab](08_lab.ipynb): experiments, up to cells where no surveyed method lives. [Your own network](09_your_own_network.ipynb), and
#   [a GPU](10_gpu_and_beyond.ipynb).
#
# Papers to begin with: [Piras et al. (2024)](https://arxiv.org/abs/2409.01249), the survey that this project accompanies;
# [Madry et al. (2018)](https://arxiv.org/abs/1706.06083) on adversarial training;
# [Croce and Hein (2020)](https://arxiv.org/abs/2003.01690) on AutoAttack; [Sehwag et al. (2020)](https://arxiv.org/abs/2002.10509),
# *HYDRA*: scores that are learned instead of read off the weights, which is `criterion="lis"` in the lab.
