"""The scores by which a recipe would cut: what a criterion says of every weight of one trained network."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from apnb import pipelines
from apnb.errors import Invalid
from apnb.masks import Masks, Scores, Target
from apnb.runner import Runner
from apnb.training import one_cycle

if TYPE_CHECKING:
    from apnb.recipes import Recipe
    from apnb.store import Store


@dataclass(frozen=True)
class Noting(Target):
    """A target that remembers the scores it was last asked to select by."""

    last: dict[str, Tensor] = field(default_factory=dict, compare=False)

    def select(self, scores: Scores, within: Masks | None = None, *, check: bool = True) -> Masks:
        self.last.update(scores)
        return super().select(scores, within, check=check)


class NotingRunner(Runner):
    """A runner whose targets remember."""

    def target(self, sparsity: float) -> Noting:
        return Noting(self.layers, self.recipe.units, self.recipe.locality, sparsity)


def of(
    recipe: Recipe, network: str | nn.Module = "cnn", data: Any = "digits", *, store: str | Path | Store | None = None
) -> dict[str, Tensor]:
    """The scores at the cut of a recipe, by the same search from the same dense network with the same random numbers as in its run.

    Recipes that differ in the criterion alone share the dense network, so their scores are about the same weights.

    Args:
        recipe: one cut after training, by a criterion that scores. network, data, store: as for `apnb.run`.

    Returns:
        Parameter name -> score of every weight, in the weight's shape; a high score is kept.

    Raises:
        Invalid: a method, another pipeline, or several cuts.
    """
    if recipe.method or (recipe.pipeline, recipe.schedule) != ("after", "one_shot"):
        raise Invalid(f"scores are those of one cut after training, but the recipe is {recipe.label}; take pipeline='after'")
    steps = _stages(NotingRunner(recipe, network=network, data=data, store=store))
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def _stages(run: NotingRunner) -> Generator[Any, None, dict[str, Tensor]]:
    """The dense network, shared with its runs in the store, and the search, under a key of its own."""
    r, b = run.recipe, run.budget

    def noted(s):
        target = run.target(r.sparsity)
        run.target = lambda sparsity: target
        yield from pipelines.prune(run, r.sparsity, b.search_epochs if r.trains_search else 0, None, None)(s)
        return {name: score.detach().clone() for name, score in target.last.items() if name in target.sizes()}

    dense = {"objective": r.pretraining}
    yield from run.stage("pretraining", lambda s: run.fit(s, r.pretraining, epochs=b.epochs, lr=one_cycle(b.lr)), **dense)
    words = {k: v for k, v in r.to_dict().items() if k != "budget"}
    return (yield from run.stage("round 1: prune", noted, scores=words))
