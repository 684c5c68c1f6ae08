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
# # Your own network
#
# **I have a network: how do I know how robust it is, and how do I put it beside the survey?** Nothing here asks you to build the
# network with this package. Any PyTorch module that takes images in $[0, 1]$ and returns logits can be judged, pruned, compared with
# another one and, if it comes from a new method, contributed to the benchmark of
# [Piras et al. (2024)](https://arxiv.org/abs/2409.01249). The example is small enough to run here in about a minute; every call is the
# same for a large network on a GPU.

# %%
import apnb

apnb.sweeps.set_threads(1)  # the networks are so small that more threads only get in each other's way
apnb.plots.renderer()

# %% [markdown]
# ## A network from nowhere
#
# Two networks with the same layers, in plain PyTorch. `plain` learns from the images as they are. `hardened` learns from attacked
# ones, a few lines of [Madry et al. (2018)](https://arxiv.org/abs/1706.06083): before every step each image moves, within
# $\|\delta\|_\infty \le \varepsilon$, up the gradient of the loss. The images are handwritten digits of 8 × 8 pixels,
# $\varepsilon = 0.15$.

# %%
import torch
from torch import nn
from torch.nn.functional import cross_entropy

data = apnb.datasets.load("digits")
x, y = data.train.images(), data.train.y  # float32 in [0, 1] of shape (N, 1, 8, 8), and labels


def network():
    body = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))


def attacked(net, x, y, eps=0.15, steps=5):
    x_adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
    for _ in range(steps):
        x_adv.requires_grad_(True)
        (g,) = torch.autograd.grad(cross_entropy(net(x_adv), y), x_adv)
        x_adv = torch.min(torch.max(x_adv.detach() + eps / 3 * g.sign(), x - eps), x + eps).clamp(0, 1)
    return x_adv


def trained(net, epochs, change=lambda net, x, y: x):
    opt = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(epochs):
        for i in torch.randperm(len(x)).split(64):
            opt.zero_grad()
            cross_entropy(net(change(net, x[i], y[i])), y[i]).backward()
            opt.step()
    return net.eval()


torch.manual_seed(0)
plain = trained(network(), 15)
hardened = trained(network(), 20, attacked)

# %% [markdown]
# ## One call
#
# `apnb.evaluate` takes the module and the data. By default it runs AutoAttack
# ([Croce and Hein 2020](https://arxiv.org/abs/2003.01690)) at the data set's own $\varepsilon$; `n` is how many test images are
# attacked, drawn alike from every class. `distances=True` also looks for the *smallest* change that breaks each image, with the
# fast minimum-norm attack ([Pintor et al. 2021](https://arxiv.org/abs/2102.12827)).

# %%
reports = {
    name: apnb.evaluate(net, "digits", n=100, distances=True) for name, net in {"plain": plain, "hardened": hardened}.items()
}
for name, report in reports.items():
    print(f"{name}: {report}")

# %% [markdown]
# Read the sentence from left to right. *Clean* is the share that is right without an attack. *Robust* is the share that nothing
# broke, and it says **at most**: an attack that has not been tried could break more. The bracket is Wilson's 95 % interval
# ([Wilson 1927](https://doi.org/10.1080/01621459.1927.10502953)) for the choice of the images. It says nothing of another training
# seed. Then come the attacks, the radius, and the number of images; a figure without these three is no result.
#
# Which attack broke what? An image counts for the first attack that succeeded; AutoAttack's later members only see what still stands.

# %%
import pandas as pd

order = ["clean", *reports["plain"].ran, ""]
counts = pd.DataFrame({name: pd.Series(list(r.broken_by)).value_counts() for name, r in reports.items()})
counts.reindex(order).fillna(0).astype(int).rename(index={"clean": "wrong without attack", "": "stands"})

# %%
low, high = reports["hardened"].interval
share = reports["hardened"].robust_accuracy
needed = share * (1 - share) * (1.96 / 0.01) ** 2
apnb.Question(
    f"The interval of the hardened network on {reports['hardened'].n} images reaches from {low:.1%} to {high:.1%}. About how many images are needed for one "
    "that reaches one percentage point to either side?",
    answer=f"about {round(needed, -3):.0f}",
    choices=["about 500", f"about {round(needed, -3):.0f}", "about 100000"],
    because=f"The half width is about 1.96 sqrt(p (1 - p) / n). With p = {share:.2f} and 0.01 for the half width, n is about {needed:.0f}. "
    "The survey attacks 10000 images.",
)

# %% [markdown]
# ## Is it believable?
#
# Attacks can fail for reasons that have nothing to do with robustness: a gradient that is zero or points nowhere
# ([Athalye et al. 2018](https://arxiv.org/abs/1802.00420); the signs looked for here follow
# [Pintor et al. 2022](https://arxiv.org/abs/2106.09947)). So every evaluation ends with a list of findings. To see one speak up, put a
# mistake into the network: it returns *probabilities* where logits are expected. The decision is the same for every image, so it is
# exactly as robust as before; but the gradient of the loss almost vanishes where the network is sure.

# %%
vague = nn.Sequential(plain, nn.Softmax(dim=1))
report = apnb.evaluate(vague, "digits", n=100, attacks="lite")
print(report)
findings = apnb.diagnostics.table(report.diagnostics)
for row in findings[findings["verdict"].isin(["doubtful", "failed"])].itertuples():
    print(f"\n{row.indicator} ({row.verdict}): {row.meaning}; {row.advice}.")
print("\nand of the network itself:", sum(f.verdict == "fine" for f in reports["plain"].diagnostics), "signs looked for and fine")

# %% [markdown]
# A finding does not say that the number is wrong. It says what was seen and what to do before anybody is told the number. Here the
# remedy is easy: leave the softmax to the loss.
#
# ## Normalisation belongs inside
#
# Many networks are trained on $(x - \mu) / \sigma$. If that happens in the data loader, the attack moves in other units than the
# data set: a radius $\varepsilon$ around the normalised image is $\sigma\varepsilon$ in pixels, and the box $[0, 1]$ is lost. The
# evaluation therefore takes images in $[0, 1]$ only, and refuses others.

# %%
mu, sigma = float(x.mean()), float(x.std())
try:
    apnb.evaluate(hardened, ((data.test.images() - mu) / sigma, data.test.y), eps=0.15)
except apnb.Invalid as mistake:
    print(mistake)

# %% [markdown]
# The remedy is one line: the normalisation is the first layer of the network. `apnb.networks.Normalize` does it; so does any
# layer of your own. Then everybody, attacker and evaluator, speaks of the same pixels. A network that expects normalised images and gets
# plain ones is *not* refused: it only looks like a poorer network. Compare its clean accuracy with the one that you know; its robust accuracy
# is no warning at all.

# %%
torch.manual_seed(1)
inside = trained(nn.Sequential(apnb.networks.Normalize([mu], [sigma]), network()), 15)
forgotten = inside[1]  # the same weights, without the first layer
for name, net in {"normalisation inside": inside, "forgotten": forgotten}.items():
    print(f"{name}: {apnb.evaluate(net, 'digits', n=128, attacks='pgd', diagnostics=False)}")

# %%
apnb.Question(
    f"The digits have a standard deviation of {sigma:.2f}. Somebody attacks in the normalised space with a radius of 0.15. How far does a "
    "pixel move at most, on the scale from 0 to 1?",
    sigma * 0.15,
    tolerance=0.003,
    because="The radius shrinks by the factor sigma. The attack is much weaker than the one that was meant, and the network looks more "
    "robust than it is.",
)

# %% [markdown]
# ## Your own images
#
# Data are a pair of arrays, an `.npz` with `x` and `y` (or `x_train`, `x_test`, ...), or a folder of images with one subfolder for
# each class, zipped or not. Pixels of any such data have 0 to 255 or $[0, 1]$; the radius is 8/255 unless you say otherwise.
# Here the test images are shifted by one pixel to the right. (What is written in this notebook goes into a folder of its own, for
# temporary files.)

# %%
import os
import tempfile

import numpy as np

os.chdir(tempfile.mkdtemp())
shifted = np.roll(data.test.images().numpy(), 1, axis=-1)
np.savez("shifted.npz", x_train=x.numpy(), y_train=y.numpy(), x_test=shifted, y_test=data.test.y.numpy())
print(apnb.evaluate(hardened, "npz:shifted.npz", eps=0.15, n=100, attacks="lite"))

# %% [markdown]
# Robustness to small changes of every pixel is no robustness to a shift: the clean accuracy alone has fallen a long way. What a number
# promises is bounded by the threat it was measured against.
#
# ## Two networks, every radius
#
# One radius is a choice. The smallest perturbations give the accuracy at *every* radius, the **security curve**
# ([Biggio and Roli 2018](https://arxiv.org/abs/1712.03141)): the share of images whose distance is larger than $\varepsilon$.
#
# Move the slider: the marked radius moves, and the lines below the figure read the two curves there. At radius 0 a curve
# shows clean accuracy.

# %%
curves = [report.curve(name) for name, report in reports.items()]
figures = {}
for eps in (0.08, 0.1, 0.125, 0.15, 0.2, 0.25):
    figures[f"{eps:g}"] = apnb.plots.security_curve(curves, eps=eps, title="Where does each network give way?")
    figures[f"{eps:g}"].update_xaxes(range=[0, 0.32])
    figures[f"{eps:g}"].update_layout(title_subtitle_text="upper bound: the smallest of AutoAttack, FAB and FMN<br>shade: 95 % interval")
apnb.plots.movable(figures, label="radius", start="0.15")

# %%
radius = next(r for r in torch.arange(0, 0.5, 0.005).tolist() if curves[0].accuracy(r) < 0.5)
apnb.Question(
    "At which radius has the plain network lost half of the images that it classified correctly? Move the slider, or read the curve.",
    curves[0].median,
    tolerance=0.02,
    because=f"The median distance of the images that were right at first is {curves[0].median:.3f}; of all images fewer than half stand from "
    f"about {radius:.3f} on.",
)

# %% [markdown]
# ### Is one more robust than the other?
#
# Two intervals that overlap prove nothing, in either direction. Both networks were attacked on the *same* images, so the images on
# which they differ decide: how many stand only in the first, how many only in the second? McNemar's test
# ([1947](https://doi.org/10.1007/BF02295996)) asks whether such an imbalance could be chance.

# %%
comparison = apnb.compare(reports["hardened"], reports["plain"])
print(comparison)

# %% [markdown]
# ## Prune it
#
# A recipe takes a module in the place of a network's name; it is copied, never changed. Training goes on from the weights that it brings,
# so that the first stage can be short. Three sparsities, those of the survey's unstructured tables:

# %%
budget = apnb.Budget(name="short", epochs=4, finetune_epochs=5, attack_steps=4, lr=0.03, finetune_lr=0.03, points=100)
recipes = [apnb.Recipe(pipeline="after", criterion="lwm", sparsity=s, budget=budget) for s in (0.9, 0.95, 0.99)]
runs = apnb.sweep(recipes, network=hardened, attacks="lite")
for run in runs:
    print(f"{run.sparsity.weights:6.1%} of the weights are gone: {run.evaluation}")
dense = apnb.evaluate(hardened, "digits", n=100, attacks="lite", diagnostics=False)
print(f"\nthe sparsest against what it came from: {apnb.compare(dense, runs[-1].evaluation)}")

# %% [markdown]
# `run.model` is again a plain module with zeros in it. `torch.save(run.model.state_dict(), FILE)` is all that is needed to take it
# elsewhere, and `apnb.evaluate` judges the file's network like any other.
#
# ## A published network
#
# The survey lists 83 networks with their results. Each has a key: method, architecture, data, structure (US for single weights, S for
# filters or channels) and sparsity in per cent.

# %%
published = apnb.checkpoints.frame()
print(f"{len(published)} networks of {published['method'].nunique()} methods, all for {', '.join(published['data'].unique())}")
published[published["sparsity"] == 0.9].groupby("method")[["clean", "robust"]].agg(["min", "max"]).round(1)

# %% [markdown]
# With an internet connection and CIFAR-10 (downloaded by torchvision) one line fetches a network and one judges it:
#
# ```python
# net = apnb.checkpoints.load("HARP_Zhao2023Holistic_R18_CIFAR10_US_90")   # 45 MB or more, once
# print(apnb.evaluate(net, "cifar10", n=1000, subset="first"))             # a GPU is advised
# ```
#
# and `apnb checkpoints evaluate KEY` does both from the shell, beside the survey's own row. Neither runs here, so that this notebook needs no
# network. What can be shown is how a file is *read*. Every method's own code stores its networks in its own way, and a published copy may
# be plain. [HYDRA](https://arxiv.org/abs/2002.10509)'s code keeps dense weights with a score beside each: the weight counts where the size of its
# score is among the highest of its layer. The next cell writes such a file for a ResNet-18 with random weights, as a stand-in.

# %%
big = apnb.networks.build("resnet18", channels=3, classes=10, seed=0)
state = {f"module.{name}": t for name, t in big.state_dict().items()}  # as DataParallel names them
state |= {f"{n.removesuffix('weight')}popup_scores": torch.rand_like(t) for n, t in state.items() if n.endswith("weight") and t.ndim > 1}
torch.save({"epoch": 100, "state_dict": state}, "stand_in.pth.tar")
del big, state
print(apnb.checkpoints.layout("stand_in.pth.tar"))

# %% [markdown]
# The file does not say how many weights count. The key does: `like=KEY` says as which network of the survey a file is to be read. What comes
# out is a plain ResNet-18 whose zeros can be counted.

# %%
key = "HYDRA_Sehwag2020Hydra_R18_CIFAR10_US_95"
found = apnb.checkpoints.open_checkpoint("stand_in.pth.tar", like=key)
entry = apnb.checkpoints.find(key)
print(f"{entry}: the survey's table has clean {entry.clean:g} %, robust {entry.robust:g} %")
print(f"as read: {found.sparsity.weights:.2%} of {found.sparsity.total} weights are zero")
print(*found.notes, *found.doubts, sep="\n")

# %% [markdown]
# A file is data. Many checkpoints are pickles, and a pickle may hold instructions. Here nothing in it is ever executed: what is not a
# tensor or known to be harmless is refused. An object of a class of its own, such as a whole network, is such a case:

# %%
torch.save(plain, "whole_network.pt")
try:
    apnb.checkpoints.load("whole_network.pt", "cnn")
except apnb.Invalid as mistake:
    print(mistake)

# %% [markdown]
# ## Contribute a method
#
# A method of yours can be *run* by everybody if it is one file in `apnb/methods` (or a criterion in `apnb/criteria`), which
# `CONTRIBUTING.md` describes. It is *listed* by everybody if the survey's repository takes it. For that it asks for three things: an entry
# in the taxonomy, the evaluation of at least three networks (one architecture, data set and structure at its three sparsities), and
# an issue that holds both. Each can be checked before anybody is bothered with it.
#
# ### The entry
#
# An entry says when and how the method prunes, in the survey's words. This one has two mistakes.

# %%
from apnb import contribution

entry = {
    "key": "mine",
    "name": "Mine",
    "survey_key": "Mine_Reader2026Small",
    "title": "A method invented for this notebook",
    "first_author": "Reader",
    "year": 2026,
    "pipeline": "after",
    "objectives": {"training_step": ["pgd_at"]},
    "schedule": "one_shot",
    "structures": ["weights"],
    "locality": ["global"],
    "criterion": "lvm",
}
contribution.write("entry.json", entry)
print(contribution.check("entry.json"))

# %% [markdown]
# The sentences say what to write. `apnb methods --check entry.json` says the same in a shell, with exit status 2 while there are problems.

# %%
entry |= {"criterion": "lwm", "objectives": {"pretraining": ["pgd_at"], "finetuning": ["pgd_at"]}}
print(contribution.check(contribution.write("entry.json", entry)))

# %% [markdown]
# ### The evaluation record
#
# `record` collects the evaluations under the keys of the survey's grammar, in per cent with two decimals, and keeps beside each number
# what makes it believable: attacks, radius, number of images, warnings. Take the three pruned networks from above and pretend that they are
# ResNet-18s for CIFAR-10. Does anybody notice?

# %%
keys = [contribution.model_key("Mine_Reader2026Small", "resnet18", "cifar10", "weights", r.sparsity) for r in recipes]
record = contribution.record({k: run.evaluation for k, run in zip(keys, runs)}, entry="entry.json")
checked = contribution.check(record)
print(f"{len(checked.problems)} problems; those of the first network:")
print(*(problem for problem in checked.problems if keys[0] in problem), sep="\n")

# %%
first = [problem for problem in checked.problems if keys[0] in problem]
apnb.Question(
    "How many of these problems of the first network would be gone if it had been evaluated with attacks='standard', everything else unchanged?",
    sum("attacks=" in problem for problem in first),
    because=f"Only the sentence about the attacks would go; {len(first) - 1} remain, because radius, data and HO-FMN are what they are.",
)

# %% [markdown]
# ### The issue
#
# For a record that passes, suppose that three such networks had been evaluated as the survey asks: AutoAttack on the first 10 000 test images
# at 0.031, and HO-FMN ([Mura et al. 2024](https://arxiv.org/abs/2407.08806)) by `apnb.evaluation.survey_protocol`. The numbers are those of the
# digits, so **only the form means anything**. The text below is what would be pasted into the issue; the entry stands there in
# the words of the survey's own file.

# %%
import dataclasses

as_asked = {"n": 10_000, "eps": 0.031, "attacks": "standard", "subset": "first", "data": "cifar10"}
pretended = {k: run.row() | as_asked for k, run in zip(keys, runs)}
curves = {k: run.evaluation.curve() for k, run in zip(keys, runs)}
shrunk = {"method": "HO-FMN (pretended)", "eps": 8 / 255}
distances = {k: dataclasses.replace(c, value=c.value * (8 / 255) / c.eps, **shrunk) for k, c in curves.items()}
record = contribution.record(
    pretended, entry="entry.json", hofmn=distances, architecture="All three load into the base ResNet18.", normalization="None is needed."
)
contribution.write("record.json", record)
print(contribution.issue_text("entry.json", "record.json"))

# %% [markdown]
# What is not forbidden but worth knowing is listed at its end: files that are not uploaded yet, fewer images than the survey's;
# of another record it might be a radius of 8/255 where the survey has 0.031. Whoever reads the numbers decides.
#
# *Try it with your own network: which of the findings does it get, and does the security curve fall where you expected?*
#
# <details><summary>What to look at first</summary>
#
# Clean accuracy (is it what you know it to be? If not: normalisation, order of classes), then the findings, then `n` and the
# interval, and only then the robust accuracy.
#
# </details>

# %% [markdown]
# ## What to read next
#
# - [GPU and beyond](10_gpu_and_beyond.ipynb): the same with CIFAR-10 and ResNet-18, and many runs at once.
# - [Croce and Hein (2020)](https://arxiv.org/abs/2003.01690) on AutoAttack, and
#   [Pintor et al. (2022)](https://arxiv.org/abs/2106.09947), *Indicators of Attack Failure*: when to doubt an attack.
# - [Carlini et al. (2019), *On Evaluating Adversarial Robustness*](https://arxiv.org/abs/1902.06705): the checklist behind much of this
#   notebook.
# - [Piras et al. (2024)](https://arxiv.org/abs/2409.01249): the benchmark, and the
#   [repository](https://github.com/pralab/AdversarialPruningBenchmark) that takes contributions.
