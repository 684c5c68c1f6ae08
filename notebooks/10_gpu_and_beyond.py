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
# # GPU and beyond
#
# **What changes when it is CIFAR-10 and ResNet-18?** The words do not change: the same recipe, the same call, another `network=` and
# `data=`. What changes is the amount of work, by a factor that this notebook computes, and with it the questions: how long will it take, on
# what machine, how are many runs spread over many machines, and what happens when one of them is killed?
#
# **No GPU took part in making this page.** Whatever is timed here was timed on one CPU core; whatever is said of a GPU is counted, or assumed
# and called so. With a GPU at hand, the cells that ask for one will use it.

# %%
import apnb

apnb.sweeps.set_threads(1)  # the networks are so small that more threads only get in each other's way
apnb.plots.renderer()

# %% [markdown]
# ## The same words
#
# A recipe says *what*; the budget says *how much*. Budgets have names, and a name stands for other numbers on large images than on the
# digits: `plan` takes the number of values in one image (3 × 32 × 32 = 3072 for CIFAR-10).

# %%
recipe = apnb.Recipe(pipeline="after", structure="weights", locality="global", criterion="lwm", sparsity=0.9, budget="standard")
print("digits\n" + recipe.plan(64))
print("\nCIFAR-10\n" + recipe.plan(3072))

# %%
import dataclasses

import pandas as pd

budgets = {name: dataclasses.replace(recipe, budget=name) for name in ("quick", "standard", "paper")}
columns = ["epochs", "finetune_epochs", "images", "batch", "attack_steps", "points"]
table = {(size, name): r.numbers(pixels) for size, pixels in (("digits", 64), ("CIFAR-10", 3072)) for name, r in budgets.items()}
table = pd.DataFrame({key: {c: getattr(b, c) for c in columns} for key, b in table.items()}).T
table.astype(object).where(table.notna(), "all")

# %% [markdown]
# `quick` on CIFAR-10 only shows that everything runs: a thousand images, hardly any epochs. `standard` is a short but real training.
# `paper` has about the lengths that papers report, and attacks all 10 000 test images. From the shell, the whole thing is
#
# ```
# apnb run --network resnet18 --data cifar10 --budget standard --sparsity 0.9
# ```
#
# ## How much more work?
#
# Count multiply-accumulates (MACs), the unit in which networks are measured. A forward pass of one image costs $M$. A step of an attack
# goes forward and back to the image, about $2M$; a step that learns also needs the gradients of the weights, about $3M$. One epoch of
# adversarial training ([Madry et al. 2018](https://arxiv.org/abs/1706.06083)) over $N$ images with $K$ attack steps costs
#
# $$ C_{\text{epoch}} \approx N\,(2K + 3)\,M . $$

# %%
small = apnb.networks.build("cnn", channels=1, classes=10)
sample = apnb.datasets.load("digits").sample()
macs = {"cnn on digits": sum(layer.macs for layer in apnb.networks.layers(small, sample))}
macs |= {f"{name} on CIFAR-10": int(m) for name, m in apnb.taxonomy.networks().groupby("network")["macs"].sum().items()}
for name, m in macs.items():
    print(f"{name:20} {m / 1e6:8.2f} million MACs an image, {m / macs['cnn on digits']:6.0f} times the first")

# %%
images = {"digits": 1097, "CIFAR-10": 45_000}  # for training: CIFAR-10 keeps 5000 of its 50000 for validation
factor = macs["resnet18 on CIFAR-10"] / macs["cnn on digits"] * images["CIFAR-10"] / images["digits"]
apnb.Question(
    f"An image costs {macs['resnet18 on CIFAR-10'] / macs['cnn on digits']:.0f} times as much, and there are {images['CIFAR-10']} instead of "
    f"{images['digits']} of them. By what factor does one epoch with the same attack grow?",
    f"about {round(factor, -4):,.0f}".replace(",", " "),
    choices=["about 1 000", "about 3 500", f"about {round(factor, -4):,.0f}".replace(",", " ")],
    because=f"The factors multiply to {factor:.0f}. What takes a second on the digits takes {apnb.estimate.duration(factor)} there, on the same core.",
)

# %% [markdown]
# ### One step, measured here
#
# A gradient step of an attack on ResNet-18, for four random images. Real estimates do this with the recipe at hand,
# `apnb.estimate.estimate(recipes, "resnet18", "cifar10")`: it times a few real steps on the machine that it runs on, and subtracts what is
# stored already. That needs the data set and, on a CPU, some patience, so the cell asks for a GPU first.

# %%
import time

import torch

big = apnb.networks.build("resnet18", channels=3, classes=10).eval().requires_grad_(False)
x = torch.rand(4, 3, 32, 32)


def step():
    at, start = x.clone().requires_grad_(True), time.perf_counter()
    torch.autograd.grad(big(at).logsumexp(1).sum(), at)
    return (time.perf_counter() - start) / len(x)


seconds = sorted(step() for _ in range(5))[2]
rate = 2 * macs["resnet18 on CIFAR-10"] / seconds
print(f"one core here: {1000 * seconds:.0f} ms an image and attack step, {rate / 1e9:.0f} billion MACs a second")
if torch.cuda.is_available():
    print(apnb.estimate.estimate([recipe], "resnet18", "cifar10"))
else:
    print("no GPU here: with one, this cell would time real training steps on it and say how long the recipe takes")

# %% [markdown]
# ## What a recipe costs
#
# The whole recipe has three parts: the dense network is trained, the pruned one fine-tuned, and the result attacked. AutoAttack spends its
# steps on the images that still stand; say half of them do, which is about what the survey's best networks reach.
#
# Move the slider: the number of attack steps in training is the most expensive number of all.

# %%
M = macs["resnet18 on CIFAR-10"]
first, *later = apnb.estimate.attack_steps("standard", 10, (3, 32, 32)).values()  # gradient steps on an image that stands


def cost(name, steps=None):
    """MACs of a recipe's parts on CIFAR-10 with ResNet-18."""
    b = budgets[name].numbers(3072)
    epoch = (b.images or images["CIFAR-10"]) * (2 * (steps or b.attack_steps) + 3) * M
    return {
        "training": b.epochs * epoch,
        "fine-tuning": b.finetune_epochs * epoch,
        "AutoAttack": b.points * (first + 0.5 * sum(later)) * 2 * M,
    }


import plotly.graph_objects as go

figures = {}
for k in (1, 2, 5, 7, 10, 20):
    parts = pd.DataFrame({name: cost(name, k) for name in ("standard", "paper")}) / 1e15
    figures[k] = figure = go.Figure()
    for part, colour, pattern in zip(parts.index, ("#0072B2", "#56B4E9", "#D55E00"), ("", "/", "x")):
        look = {"color": colour, "pattern": {"shape": pattern}}
        figure.add_bar(y=parts.columns, x=parts.loc[part], name=part, orientation="h", marker=look, hovertemplate="%{x:.1f}<extra>" + part + "</extra>")
    share = parts.loc["AutoAttack", "paper"] / parts["paper"].sum()
    figure.update_layout(
        template=apnb.plots.TEMPLATE, barmode="stack", height=300, margin={"t": 70, "b": 60, "l": 90}, legend={"traceorder": "normal"},
        title=f"{k} attack step{'s' * (k > 1)} in training: the evaluation is {share:.0%} of the paper budget",
        xaxis={"title": "work (10¹⁵ MACs, ResNet-18 on CIFAR-10)", "range": [0, 1.05 * sum(cost("paper", 20).values()) / 1e15]},
        yaxis={"title": "budget"},
    )  # fmt: skip
apnb.plots.movable(figures, label="attack steps", start=10)

# %%
rates = {"this core, as measured above": rate, "assumed: 1 TMAC/s": 1e12, "assumed: 10 TMAC/s": 1e13, "assumed: 100 TMAC/s": 1e14}
hours = pd.DataFrame({name: {who: sum(cost(name).values()) / r / 3600 for who, r in rates.items()} for name in budgets})
hours.map(lambda h: apnb.estimate.duration(3600 * h))

# %% [markdown]
# The last three rows are arithmetic, not measurements: a device that keeps up so many MACs a second, whatever it is called. What a device keeps
# up is less than what its data sheet says, often by far, since small layers, batch norms and the loading of images take their time. That is
# why `estimate` measures. On one core the budgets `standard` and `paper` are out of reach, and that is the honest answer to "can I do
# this on my laptop?": on the digits, yes; on CIFAR-10, look at published networks instead.

# %%
full = cost("paper")
saved = 2 * full["training"] / (3 * sum(full.values()))
apnb.Question(
    "A curve has three sparsities. All three are pruned from the same dense network, so the store trains it once instead of three times. What "
    "share of the work does that save at the paper budget?",
    100 * saved,
    tolerance=3,
    unit="%",
    because="Two of three dense trainings are saved. Of one recipe the dense training is "
    f"{full['training'] / sum(full.values()):.0%}, so the saving is two thirds of that.",
)

# %% [markdown]
# ## What a GPU changes inside
#
# `apnb doctor` says what a machine has. Here (the place of the store is left out):

# %%
import json
import subprocess
import sys

facts = json.loads(subprocess.run([sys.executable, "-m", "apnb", "doctor", "--json"], capture_output=True, text=True).stdout)
for name in ("python", "torch", "torchvision", "device", "cores", "bfloat16 units"):
    print(f"{name:16} {facts[name]}")

# %% [markdown]
# On a GPU the device is chosen by itself, and four things deserve a word.
#
# **Precision.** Where the hardware multiplies bfloat16 (new GPUs, some CPUs), large networks *train* with a body in bfloat16; the first convolution and the classifier
# stay in float32. Coarse inputs or logits would hide small gradients, and an attack that is hindered makes a network look robust. Attacks take the
# short format on request, `precision="bf16"`. Verdicts never do: an image counts as broken only if the network itself misclassifies it in
# float32. The next cell attacks in both formats where the hardware can, and in float32 alone where it cannot.
#
# **Memory.** If the GPU runs out of it during an *attack*, the batch is halved and the evaluation goes on; the warnings say so. In *training* it
# stops with a sentence that names the batch to try, because batch norm depends on the batch and a silent change would be another experiment.
#
# **Snapshots.** A training is stored after every epoch on a GPU (on a CPU after the first one that ends five seconds or more after the last), so that a time limit costs little;
# `snapshot_every=` changes it.
#
# **Bits.** A run that was killed goes on bit for bit on a CPU. On a GPU sums may be taken in another order, and the last digits differ.

# %%
budget = apnb.Budget(name="short", epochs=8, finetune_epochs=3, attack_steps=3, points=64)
cell = {"pipeline": "after", "criterion": "lwm", "budget": budget}
run = apnb.run(apnb.Recipe(**cell, sparsity=0.9), attacks="lite")
formats = ("fp32", "bf16") if facts["bfloat16 units"] == "yes" else ("fp32",)
checks = {p: apnb.evaluate(run.model, "digits", n=64, attacks="pgd", precision=p, diagnostics=False) for p in formats}
for report in checks.values():
    print(report)
print(f"verdicts that differ: {int((checks['fp32'].robust != checks[formats[-1]].robust).sum())} of {run.evaluation.n}")

# %% [markdown]
# ## Killed, and resumed
#
# A run is a stream of events, and closing the stream stops it. The next cell stops a training in the middle, as a time limit would; then the same
# call is made again. The third run, in another store, was never interrupted.

# %%
import tempfile

recipe = apnb.Recipe(**cell, sparsity=0.95, seed=1)
here, elsewhere = tempfile.mkdtemp(), tempfile.mkdtemp()
events = apnb.stream(recipe, store=here, snapshot_every=0)
for event in events:
    if event.kind == "epoch" and event.step == 4:
        events.close()
        print(f"killed in {event.stage} after epoch {event.step} of {event.of}")

# %%
for event in apnb.stream(recipe, store=here, snapshot_every=0, evaluate=False):
    if event.kind == "resumed":
        print(f"{event.stage} goes on after epoch {event.step}")
    if event.kind == "done":
        resumed = event.run
whole = apnb.run(recipe, store=elsewhere, evaluate=False)
same = all(torch.equal(a, b) for a, b in zip(resumed.model.state_dict().values(), whole.model.state_dict().values()))
print(f"the two networks are {'equal, bit for bit' if same else 'not equal in every bit: this is no plain CPU, or torch changed under way'}")

# %% [markdown]
# The same holds for a process that is killed without warning: what is stored is stored by one atomic step, so there are no halves.
#
# ## Many runs, many workers
#
# `apnb.sweep` takes any executor with a `submit`. `apnb.sweeps.workers(2)` is a pool of two fresh processes here. Workers meet only in the store: a
# stage that one of them computes is locked, and the others wait for it instead of training the same dense network again. First three
# recipes, then six, of which three are those from before.

# %%
recipes = [apnb.Recipe(**cell, locality=l, sparsity=s) for l in ("global", "local") for s in (0.5, 0.9, 0.98)]


def timed(executor, some):
    start = time.perf_counter()
    runs = apnb.sweep(some, executor, attacks="lite")
    print(f"{len(runs)} runs, {len(runs.failed)} failed, {time.perf_counter() - start:.1f} s")
    return runs


pool = apnb.sweeps.workers(2)
timed(pool, recipes[:3])
runs = timed(pool, recipes)
timed(None, recipes);  # all of them again, here: everything is stored

# %% [markdown]
# ### A cluster
#
# Dask's `client.get_executor()` gives such futures (it was not tried here). A batch system such as Slurm, through
# [submitit](https://github.com/facebookincubator/submitit), has jobs with a `result()` but no futures of Python's own; an adapter is a few
# lines, with threads that only wait. It is tried here on two processes, and would be `Queue(slurm.submit)` there. The one condition: all
# workers see the same store, on a shared file system (`store="/shared/runs"`; locks are files).

# %%
from concurrent.futures import ThreadPoolExecutor


class Queue:
    def __init__(self, submit, width=64):
        self.start, self.waiting = submit, ThreadPoolExecutor(width)

    def submit(self, function, *given):
        return self.waiting.submit(lambda: self.start(function, *given).result())


timed(Queue(pool.submit), [apnb.Recipe(**cell, sparsity=0.95)])
pool.shutdown()

# %% [markdown]
# ```python
# import submitit                                                     # not run here, and not tried by this project
#
# slurm = submitit.AutoExecutor("logs")
# slurm.update_parameters(slurm_partition="gpu", gpus_per_node=1, timeout_min=600)
# apnb.sweep(recipes, Queue(slurm.submit), network="resnet18", data="cifar10", store="/shared/runs")
# ```
#
# When a time limit ends a job, send the same sweep again: what is finished comes back at once, what was under way goes on. Without Python the
# recipes stand in a file, and lists in it mean all combinations:

# %%
from pathlib import Path

text = """
network = "resnet18"
data = "cifar10"
n = 1000

[[recipes]]
pipeline = "after"
criterion = "lis"
budget = "standard"
sparsity = [0.9, 0.95, 0.99]
seed = [0, 1, 2]

[[recipes]]
pipeline = "during"
structure = "filters"
budget = "standard"
sparsity = [0.5, 0.75, 0.9]
"""
file = Path(tempfile.mkdtemp()) / "sweep.toml"
file.write_text(text)
planned = apnb.sweeps.read_sweep(file)
print(f"apnb sweep sweep.toml --workers 4 --out curve.html: {len(planned['recipes'])} runs of {planned['network']} on {planned['data']}")

# %%
apnb.Question(
    "How many dense networks have to be trained for the nine recipes of the first entry, three sparsities with three seeds each?",
    len({r.seed for r in planned["recipes"] if r.pipeline == "after"}),
    because="One for each seed. The sparsity is decided after the dense training, so the recipes of a seed share it.",
)

# %% [markdown]
# ## Beside the survey
#
# The published results can stand in the same figure. Below, the curves are the small networks of the digits that were just pruned; the
# unconnected points are ResNet-18s for CIFAR-10 from the survey (AutoAttack at 0.031 on 10,000 images). **They are not to be compared**: other images, another radius, another network. With runs of
# ResNet-18 on CIFAR-10 under AutoAttack (`standard`) at 8/255 they may be, and `apnb.Leaderboard(runs=apnb.table())` ranks them and says of each row whether it was measured as
# the published ones were.

# %%
board = apnb.taxonomy.leaderboard()
rows = board[(board.data == "cifar10") & (board.network == "resnet18") & (board.structure_group == "unstructured")]
rows = rows[rows.method.isin(["harp", "hydra", "flyingbird"])]
figure = apnb.plots.robustness_sparsity(runs.frame(), published=rows, title="Where your points would stand: lines on digits, unconnected points on CIFAR-10")
figure

# %% [markdown]
# *Try: choose a recipe in [the lab](08_lab.ipynb) on the digits first, where a change of mind costs seconds, and send only the best one to the
# GPU. What may go wrong with that advice?*
#
# <details><summary>Answer</summary>
#
# What wins on a small network need not win on a large one. A small network has few redundant weights, so high sparsities hurt it
# earlier; and the survey's own ranks change from ResNet-18 to VGG-16 and from CIFAR-10 to SVHN
# ([the benchmark](07_benchmark.ipynb)). Use the digits to understand and to find mistakes, not to choose the winner.
#
# </details>

# %% [markdown]
# ## What to read next
#
# - [Start here](00_start_here.ipynb) is the way back; [Your own network](09_your_own_network.ipynb) says how results become a contribution.
# - [Piras et al. (2024)](https://arxiv.org/abs/2409.01249): the protocol behind the published points.
# - [Wong et al. (2020), *Fast is better than free*](https://arxiv.org/abs/2001.03994): adversarial training with one attack step, the left
#   end of the slider above.
# - [Rice et al. (2020), *Overfitting in adversarially robust deep learning*](https://arxiv.org/abs/2002.11569): why more epochs are not
#   always better.
# - [Micikevicius et al. (2018), *Mixed Precision Training*](https://arxiv.org/abs/1710.03740): why some layers keep the long format.
