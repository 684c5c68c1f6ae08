"""Adversarial pruning as a program: the interactive companion to the survey of Piras et al. (arXiv 2409.01249).

A recipe is one cell of the survey's taxonomy; running it prunes a network, attacks it and counts what stands::

    import apnb

    recipe = apnb.Recipe(pipeline="after", structure="weights", locality="global", criterion="lwm", sparsity=0.9)
    run = apnb.run(recipe, network="cnn", data="digits")
    print(run.evaluation)

Importing the package is quick: torch, pandas and plotly load when something needs them.
"""

from importlib import import_module

__version__ = "0.1.0"

_WHERE = {
    "Invalid": "errors",
    "Recipe": "recipes",
    "Budget": "recipes",
    "Cell": "recipes",
    "recipe": "recipes",
    "grid": "recipes",
    "run": "runs",
    "stream": "runs",
    "open_run": "runs",
    "Run": "runs",
    "evaluate": "evaluation",
    "compare": "evaluation",
    "Evaluation": "evaluation",
    "sweep": "sweeps",
    "table": "sweeps",
    "Store": "store",
    "Dataset": "datasets",
    "Lab": "widgets.lab",
    "TaxonomyExplorer": "widgets.explorer",
    "Leaderboard": "widgets.leaderboard",
    "Question": "widgets.question",
}
_MODULES = (
    "benchmark", "cards", "checkpoints", "choices", "contribution", "costs", "curves", "datasets", "diagnostics", "estimate",
    "evaluation", "events", "masks", "networks", "plots", "recipes", "report", "results", "scores", "store", "sweeps",
    "taxonomy",
)  # fmt: skip

__all__ = [*_WHERE, *_MODULES]


def __getattr__(name: str):
    if name in _MODULES:
        return import_module(f"apnb.{name}")
    if name in _WHERE:
        return getattr(import_module(f"apnb.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'apnb' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
