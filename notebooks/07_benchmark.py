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
# # The benchmark: what do the published numbers really show?
#
# The survey of [Piras et al. (2024)](https://arxiv.org/abs/2409.01249) attacked pruned networks of ten methods, all in the same way,
# and printed 154 results. The question of this notebook: **what follows from these
# numbers, and what does not?** Who wins is quickly said. Whether *global* beats *local*, whether robustness collapses at 99 %, whether
# the first is really better than the second: for each we compute the answer, and then how much of it could be chance. Every
# number below is computed here from the published table; nothing is trained, and no result of this project is mixed in.

# %%
import apnb

apnb.sweeps.set_threads(1)  # the networks are so small that more threads only get in each other's way
apnb.plots.renderer()

# %% [markdown]
# ## What was measured
#
# A row is a pruned network. *Clean* is its accuracy on test images as they are. *Robust* is its accuracy after AutoAttack
# ([Croce and Hein 2020](https://arxiv.org/abs/2003.01690)), four attacks one after another, in the standard version. A *column* is what can be
# compared: one data set, one network, one sparsity, and either single weights (unstructured) or whole filters and channels (structured).

# %% tags=["answer-0"]
benchmark, taxonomy = apnb.benchmark, apnb.taxonomy
board = taxonomy.leaderboard()
board["method"] = [taxonomy.method(key).name for key in board["method"]]
column = list(benchmark.COLUMN)

print(f"{len(board)} rows in {len(board.groupby(column))} columns, of {board['method'].nunique()} methods among the {len(taxonomy.methods())} surveyed")
print(board.groupby(["data", "structure_group"]).size().to_string())
print(f"rows with more robust than clean accuracy: {(board['robust'] > board['clean']).sum()}")
print(f"radius: {benchmark.EPS} as published, 8/255 = {8 / 255:.5f} as usually meant; images: the first {benchmark.IMAGES}")

# %% [markdown]
# Three remarks before any ranking.
#
# - The repository writes its radius as 0.031, which is a little less than 8/255. A smaller radius can only help the network, so the
#   numbers lie on the kind side, by little, and much alike for all methods.
# - An attack can only show that an image falls. What survives AutoAttack is an *upper bound* of robustness.
# - The survey also searches for smallest perturbations with HO-FMN. These results are files for some of the networks and are not in
#   these tables, so they are not in this notebook ([Your own network](09_your_own_network.ipynb) shows how such distances are read).
#
# Here is the whole table, to sort, to filter and to look at. It works without a kernel.

# %%
apnb.Leaderboard()

# %% [markdown]
# ## 1. Who wins?
#
# For each method: in how many columns it is first, in how many among the top three, and in how many columns it stands at all. The last number
# matters, because nobody can win where nobody looked.

# %%
structured = board[board["structure_group"] == "structured"]
first = benchmark.podium(structured)["first"]
apnb.Question(
    "Which method is first most often when whole filters or channels go? Let the explorer above tell you.",
    first.idxmax(),
    choices=sorted(structured["method"].unique()),
    because=f"It is first in {first.max()} of {first.sum()} columns. But only {len(first)} methods were entered there at all.",
)

# %% tags=["answer-1"]
unstructured, structured = (board[board["structure_group"] == g] for g in ("unstructured", "structured"))
for name, half in (("unstructured", unstructured), ("structured", structured)):
    print(f"{name}, {len(half.groupby(column))} columns")
    print(benchmark.podium(half).to_string(), "\n")

# %% [markdown]
# To average places one needs methods that stand in every column. These are ranked among themselves, 1 is best:

# %% tags=["answer-1-ranks"]
print("unstructured, methods with all columns:")
print(benchmark.mean_ranks(unstructured).round(2).to_string(header=False))
print("structured, methods with all columns:")
print(benchmark.mean_ranks(structured).round(2).to_string(header=False))

# %% [markdown]
# ## 2. Which traits do winners share?
#
# Tempting: the winners prune *during* training, or rank *globally*. Below, for each word of the survey, how many methods have it, their mean
# accuracies in the unstructured columns, their share of all rows, and their share of the places one to three.

# %% tags=["answer-2"]
for trait in ("pipeline", "locality", "criterion"):
    print(trait)
    print(benchmark.traits(trait, unstructured).round(3).to_string(header=True, index_names=False), "\n")

# %% [markdown]
# Now look at the column *methods* before you look at any other. Behind each word stand one to six methods, and the words are
# not independent of each other: who prunes during training is, in this table, also global.

# %%
words = {m: taxonomy.cell_of(m) for m in unstructured["method"].unique()}
for pipeline in ("after", "before", "during"):
    of = [m for m in words if pipeline in words[m]["pipeline"]]
    print(f"{pipeline:<7}", ", ".join(f"{m} ({words[m]['locality'][0]}, {words[m]['criterion'][0].upper()})" for m in of))

# %% [markdown]
# How much would chance do? Give each method one number: its robust accuracy minus the mean of its column, averaged over its columns. Then
# deal the words out anew among the ten methods, in all possible ways, and count how often the best and the worst word end up at
# least as far apart as with the survey's words. This is an exact permutation test. It is generous, because it asks about one word
# at a time and was asked after the table had been seen; and it treats the ten methods as if they might have had any word.

# %% tags=["answer-2-chance"]
for name, rows in (("all unstructured columns", unstructured), ("CIFAR-10 only", unstructured[unstructured["data"] == "cifar10"])):
    for trait in ("pipeline", "locality", "criterion"):
        test = benchmark.gap_by_chance(trait, rows)
        print(f"{name}, {trait}: gap {test['gap']:.2f} points, as large or larger in {test['share']:.1%} of {test['ways']} deals")

# %% [markdown]
# Move the slider. Each dot is a method. In which picture would you still draw the bars?

# %%
apnb.plots.movable({t: apnb.plots.by_trait(t, unstructured) for t in ("pipeline", "locality", "criterion")}, label="word of the survey")

# %%
shares = {t: benchmark.gap_by_chance(t, unstructured)["share"] for t in ("pipeline", "locality", "criterion")}
apnb.Question(
    "For which word of the survey would chance reproduce the observed gap most often?",
    max(shares, key=shares.get),
    choices=list(shares),
    because="; ".join(f"{t}: {share:.0%} of all deals" for t, share in shares.items())
    + ". At the usual 5 % " + ("none of the three would count as shown." if min(shares.values()) > 0.05 else "not all would count as shown."),
)

# %% [markdown]
# So the claim that winners share traits is a description of ten methods, and the test with two data sets and the test with one do not even
# agree about the order of the first two words. It may be true. It cannot be read off this table.
#
# ## 3. Does robustness collapse at high sparsity?
#
# The loss from 90 % to 99 % of the weights, and from 50 % to 90 % of the filters or channels, in points of accuracy (negative is a loss), averaged
# over the columns that a method has at both ends. `share` is the change of robust accuracy relative to where it started.

# %% tags=["answer-3"]
falls = benchmark.falls(board)
falls["share"] = 100 * falls["robust"] / falls["from_robust"]
for name in ("unstructured", "structured"):
    some = falls[falls["structure_group"] == name]
    print(f"{name}, from {some['first'].iloc[0]:.0%} to {some['second'].iloc[0]:.0%}")
    print(some.groupby("method")[["robust", "share"]].mean().sort_values("robust").round(2).to_string(index_names=False))
    print(f"all {len(some)} pairs: robust {some['robust'].mean():.2f}, clean {some['clean'].mean():.2f}\n")

# %% [markdown]
# The average hides two things. First, the loss is not spread evenly along the way:

# %% tags=["answer-3-steps"]
steps = benchmark.steps(board)
for (group, a, b), some in steps.groupby(["structure_group", "first", "second"]):
    print(f"{group}, {a:.0%} to {b:.0%}: {some['robust'].mean():.2f} points over {len(some)} pairs")

# %% [markdown]
# Second, an average is nobody's loss. Some methods hardly notice 99 %; others lose two fifths of what they had.
# Move the slider through all eight tables.

# %%
tables = board.groupby(["structure_group", "data", "network"], sort=False)
said = {**benchmark.SAID, "unstructured": "US", "structured": "S"}
figures = {" ".join(said[w] for w in (d, n, g)): apnb.plots.published_sparsity(rows) for (g, d, n), rows in tables}
apnb.plots.movable(figures, label="table")

# %%
worst = falls[(falls["data"] == "svhn") & (falls["network"] == "vgg16") & (falls["structure_group"] == "unstructured")]
worst = worst.sort_values("robust").iloc[0]
ends = unstructured[(unstructured["data"] == "svhn") & (unstructured["network"] == "vgg16")]
missing = sorted(set(ends["method"]) - set(ends.loc[ends["sparsity"] == 0.99, "method"]))
apnb.Question(
    "On SVHN with VGG16, unstructured: which method loses most from 90 % to 99 %?",
    worst["method"],
    choices=sorted(unstructured["method"].unique()),
    because=f"It loses {-worst['robust']:.2f} points of {worst['from_robust']:.2f}. Without a number at 99 % in this table: {', '.join(missing)}.",
)

# %% [markdown]
# As networks get sparser the field spreads out, in most tables. The distance between the best and the worst method of a column:

# %% tags=["answer-3-spread"]
spread = board.groupby(column)["robust"].agg(lambda r: r.max() - r.min()).rename("spread")
for place, value in spread.items():
    print(f"{place[0]} {place[1]} {place[2]} {place[3]:.0%}: {value:.2f}")
ends = spread.groupby(column[:3]).agg(["first", "last"])
print(f"wider at the highest sparsity than at the lowest in {(ends['last'] > ends['first']).sum()} of {len(ends)} tables")

# %% [markdown]
# ## 4. Is more sparsity always worse?
#
# If it were, every step to the next published sparsity would go down.

# %%
rises = steps[steps["robust"] > 0].sort_values("robust", ascending=False)
apnb.Question(
    "What is your guess: in how many per cent of all steps to the next sparsity does robust accuracy rise?",
    100 * len(rises) / len(steps),
    tolerance=3,
    unit="%",
    because=f"{len(rises)} of {len(steps)} steps.",
)

# %% tags=["answer-4"]
print(f"robust accuracy rises in {len(rises)} of {len(steps)} steps, by more than 2 points in {(rises['robust'] > 2).sum()}:")
for r in rises[rises["robust"] > 2].itertuples():
    print(f"{r.method}, {r.data} {r.structure_group} {r.network}, {r.first:.0%} to {r.second:.0%}: +{r.robust:.2f}")

# %% [markdown]
# Small rises are what chance would do between two networks of nearly the same quality (see section 7). Large ones are another matter:
# if a sparser network of the same method is several points *better*, then probably something went wrong with the denser one, or something
# differs between the two that the table does not tell. In either case they show how much a single run can be off, and the table has single runs only.

# %% [markdown]
# ## 5. Does a ranking carry over?
#
# To another network first. What a method gains when VGG16 takes the place of ResNet18, all else equal, in points:

# %% tags=["answer-5"]
swap = benchmark.changes("network", board)
for (data, group), some in swap.groupby(["data", "structure_group"]):
    print(f"{data} {group}, mean {some['robust'].mean():+.2f}")
    print(some.groupby("method")["robust"].mean().sort_values().round(2).to_string(header=False), "\n")

# %% [markdown]
# The means hide the methods: on SVHN opposite signs cancel. PwoA needs ResNet18, RST does much better on VGG16. Spearman's rank correlation
#
# $$ \rho = \mathrm{corr}\big(\mathrm{rank}(r),\, \mathrm{rank}(r')\big) $$
#
# says how far two columns agree about the order of the methods that both have: 1 the same order, 0 nothing in common, −1 reversed. With three or
# four methods it can take a handful of values only, so the number of methods stands beside it.

# %% tags=["answer-5-ranks"]
agreement = benchmark.agreement(board)
for r in agreement.sort_values(["between", "structure_group", *column]).itertuples():
    same = f"{r.network} at {r.sparsity:.0%}" if r.between == "data" else f"{r.data} at {r.sparsity:.0%}"
    print(f"{r.structure_group}, {same}, {r.first} to {r.second}: {r.spearman:.2f} ({r.methods} methods)")

# %% [markdown]
# Between the two networks the order holds better at 99 % than at 90 %, for single weights on both data sets; between the data sets there is no such
# pattern. One reason may be that many methods are close together at 90 %, so that little is needed to shuffle them. Who chooses a
# method there by its place on one network and one data set chooses partly by lot.

# %%
many = agreement[(agreement["structure_group"] == "unstructured") & (agreement["between"] == "network")].sort_values("spearman")
low = many.iloc[0]
apnb.Question(
    "Unstructured, ResNet18 against VGG16: on which data set and at which sparsity do the two networks agree least?",
    f"{said[low['data']]}, {low['sparsity']:.0%}",
    choices=[f"{said[r.data]}, {r.sparsity:.0%}" for r in many.sort_values(["data", "sparsity"]).itertuples()],
    because=f"The rank correlation over {low['methods']} methods is {low['spearman']:.2f}: one order says almost nothing about the other.",
)

# %% [markdown]
# ## 6. Clean against robust
#
# Within a column nobody has to choose between the two if one method has both. A row is on the **Pareto front** if no other row of its
# column is at least as good in both and better in one.

# %% tags=["answer-6"]
for place, some in board.groupby(["data", "structure_group"]):
    print(f"{' '.join(place)}: correlation of clean and robust over {len(some)} rows {some['clean'].corr(some['robust']):.2f}")
front = benchmark.pareto(board)
print(front["method"].value_counts(sort=True).to_string(header=False))
print(f"columns with one method on the front: {(front.groupby(column).size() == 1).sum()} of {len(board.groupby(column))}")

# %%
columns = board[board["sparsity"] == 0.9].groupby(["structure_group", "data", "network"], sort=False)
figures = {" ".join(said[w] for w in (d, n, g)): apnb.plots.clean_robust(rows) for (g, d, n), rows in columns}
apnb.plots.movable(figures, label="column at 90 %")

# %% [markdown]
# Three of the four correlations are strong: what ruins a network ruins both accuracies. In the smallest of the four tables there is next to none.
# The trade between clean and robust, where there is one, is the short dotted line at the top right, among the few methods that are good at
# either. A correlation over all rows cannot show it, because the weakest networks dominate it.
#
# ## 7. First and second: is the difference real?
#
# Take robust accuracies $p$ and $q$, each from $n$ images. If the two samples were independent, the standard error of the difference would be
#
# $$ \mathrm{se} = \sqrt{\frac{p(1-p) + q(1-q)}{n}}, \qquad n = 10\,000, $$
#
# and a lead of less than $2\,\mathrm{se}$, about 1.4 points, could come from the choice of images alone.

# %%
leads = benchmark.separable(board)
apnb.Question(
    "Guess first: in how many of the columns could the choice of test images alone explain who is first?",
    int((~leads["apart"]).sum()),
    tolerance=2,
    because=f"Of {len(leads)}. The smallest lead is {leads['gap'].min():.2f} points, the largest {leads['gap'].max():.2f}.",
)

# %% tags=["answer-7"]
print(f"the lead is within two standard errors in {(~leads['apart']).sum()} of {len(leads)} columns")
print(f"two standard errors: {leads['bound'].min():.2f} to {leads['bound'].max():.2f} points")
print(f"columns in which three or more methods are within the bound of the first: {(leads['close'] >= 3).sum()}")

# %%
apnb.plots.first_and_second(leads)

# %% [markdown]
# How strict is this? In one way too strict: all networks saw the *same* images. Images that are hard for one network tend to be hard for
# the next, the errors go together, and the true error of the difference is smaller. Who has the two lists of images
# can pair them, which is what `apnb.compare` does; the published table has only sums.
#
# In another way it is far too kind. It covers the choice of images and nothing else. Nobody can say from this table what another
# seed of the training would have done, since each row is one network. Section 4 has steps of several points that no choice of images explains.

# %% [markdown]
# ## 8. Single weights or whole filters, at the same 90 %
#
# Only 90 % is published for both. What a method gains when single weights go and not whole structures:

# %% tags=["answer-8"]
gain = benchmark.changes("structure_group", board)
print(f"unstructured minus structured at 90 %: mean {gain['robust'].mean():+.2f} points over {len(gain)} pairs")
for r in gain.sort_values(["method", "data", "network"]).itertuples():
    print(f"{r.method}, {r.data} {r.network}: {r.robust:+.2f}")

# %% [markdown]
# Freedom helps most methods and hardly touches TwinRep. Be careful with *the same 90 %*, though: it is 90 % of the weights in one
# case and of filters or channels in the other, and where a filter goes, the weights that read it go with it in the next layer. The source does not say which of
# the two structures was used in a row.
#
# ## 9. Two special cases
#
# PwoA fine-tunes by distillation and not by adversarial training ([Jian et al. 2022](https://arxiv.org/abs/2210.04311)). RST trains no weights at all: it
# looks for a subnetwork that is robust with its random weights ([Fu et al. 2021](https://arxiv.org/abs/2110.14068)). How far do they come?

# %% tags=["answer-9"]
places = benchmark.ranks(unstructured)
for name in ("PwoA", "RST"):
    for r in places[(places["method"] == name) & (places["data"] == "cifar10")].itertuples():
        print(f"{name}, cifar10 {r.network} {r.sparsity:.0%}: robust {r.robust:.2f}, place {r.rank} of {r.of}")

# %% [markdown]
# PwoA comes close to the first at 90 % on ResNet18 and nowhere near it on VGG16; RST is last wherever one looks on CIFAR-10. A method that is
# best when training is expensive need not be best in a table that does not count cost.
#
# ## 10. Odd values
#
# The table is used here as published. Some of its numbers deserve a second look, and all of them can be found by asking the data.

# %% tags=["answer-10"]
twice = board[board.duplicated(["data", "structure_group", "network", "method", "clean"], keep=False)]
for r in twice.itertuples():
    print(f"the same clean accuracy twice: {r.method}, {r.data} {r.structure_group} {r.network} {r.sparsity:.0%}: {r.clean:.2f}")
for r in benchmark.misprinted(board).itertuples():
    print(f"bold against the source's own rule: {r.method}, {r.data} {r.structure_group} {r.network} {r.sparsity:.0%}: {r.robust:.2f}, bold {r.bold}")
history = taxonomy.leaderboard_history()
print("changes from one version of the source to the next:", ", ".join(f"{n} {what}" for what, n in history["change"].value_counts().items()))
for r in history[history["change"] == "value"].itertuples():
    print(f"changed: {taxonomy.method(r.method).name}, {r.data} {r.network} {r.sparsity_after:.0%}: robust {r.robust_before:.2f} became {r.robust_after:.2f}")
gone = history[history["change"] == "removed"]
print(f"removed: {len(gone)} rows of {', '.join(sorted({taxonomy.method(m).name for m in gone['method']}))}, robust {gone['robust_before'].min():.2f} to {gone['robust_before'].max():.2f}")

# %% [markdown]
# That a source corrects its tables is to its credit; tables that are never corrected are not better tables. But a lead of one
# point should be read with a table in mind where single entries moved by five and by ten.
#
# <details><summary><b>Try:</b> set <i>sort</i> in the leaderboard to clean accuracy and look at the lower end of SVHN. What do you notice about Li20?</summary>
#
# Its clean accuracy falls by more than a third from one published sparsity to the next on ResNet18, and is low already at 90 % on VGG16. A number
# of this kind may tell more about a training that did not take off than about a way to prune. The table cannot decide it.
#
# </details>
#
# ## What these numbers cannot show
#
# - **Seeds.** One network for each row. No spread, no error bar for training.
# - **Cost.** Pretraining, search and fine-tuning differ by large factors between methods; the table has no column for them.
# - **Objectives.** Methods come with the training loss of their authors (TRADES, PGD training, distillation). Part of a lead may belong to the loss.
# - **Adaptive attacks.** AutoAttack is strong and the same for all. An attack made for one method could find more.
# - **Other networks and data.** Two networks, two data sets of 32 × 32 images.
#
# What does stand: going from 90 % to 95 % costs several methods little, going from 95 % to 99 % costs most (what 90 % itself costs cannot be
# said: the table has no dense networks); architectures and data sets change the
# order; and three methods (FlyingBird, HARP, TwinRep) share all the first places, whatever the reason.

# %% [markdown]
# ## What to read next
#
# - [The lab](08_lab.ipynb): test one word at a time, with all else equal and with several seeds, which no published table can do for you.
# - [Methods](06_methods.ipynb): what HARP, TwinRep and FlyingBird do.
# - [Piras et al. (2024)](https://arxiv.org/abs/2409.01249) and [its repository](https://github.com/pralab/AdversarialPruningBenchmark): the source of the table.
# - [Croce and Hein (2020), *AutoAttack*](https://arxiv.org/abs/2003.01690) and [Croce et al. (2021), *RobustBench*](https://arxiv.org/abs/2010.09670):
#   how to measure robustness so that numbers can be compared.
# - [Blalock et al. (2020), *What is the state of neural network pruning?*](https://arxiv.org/abs/2003.03033): the same questions asked of pruning without
#   attacks.
