"""Does the curve mean something? Magnitude against random scores, global against local, before and after fine-tuning; three seeds."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from apnb import Recipe, sweeps


def recipes(seeds: Iterable[int]) -> dict[tuple, Recipe]:
    """(who, sparsity, seed) -> recipe: the dense network, magnitude global and local, random; 90 % also without fine-tuning."""
    found = {}
    for seed in seeds:
        base = {"pipeline": "after", "seed": seed}
        found["dense", 0.0, seed] = Recipe(**base, sparsity=0.0, finetuning="none")
        for sparsity in (0.9, 0.99):
            for locality in ("global", "local"):
                found[locality, sparsity, seed] = Recipe(**base, sparsity=sparsity, locality=locality)
            found["random", sparsity, seed] = Recipe(**base, sparsity=sparsity, locality="local", criterion="random")
        for locality in ("global", "local"):
            found[f"{locality} cut", 0.9, seed] = Recipe(**base, sparsity=0.9, locality=locality, finetuning="none")
    return found


def measure(
    store: str, seeds: Iterable[int] = (0, 1, 2), n: int = 500, attacks: str = "standard", workers: int = 2
) -> pd.DataFrame:
    """One row for each network: who, sparsity, seed, clean, robust, and the verdict on each point (the same points throughout)."""
    wanted = recipes(seeds)
    with sweeps.workers(workers) as pool:
        runs = sweeps.sweep(wanted.values(), pool, store=store, n=n, attacks=attacks)
    if runs.failed:
        raise RuntimeError(str(runs.failed))
    rows = []
    for (who, sparsity, seed), run in zip(wanted, runs, strict=True):
        e = run.evaluation
        rows.append(
            {"who": who, "sparsity": sparsity, "seed": seed, "clean": e.clean_accuracy, "robust": e.robust_accuracy,
             "verdicts": e.robust.numpy(), "index": tuple(e.index.tolist())}
        )  # fmt: skip
    frame = pd.DataFrame(rows)
    if frame["index"].nunique() != 1:
        raise RuntimeError("the points differ between runs: the comparison would not be paired")
    return frame.drop(columns="index")


def paired(frame: pd.DataFrame, a: str, b: str, sparsity: float) -> dict:
    """Compare two ways point by point: {"seeds": [(points only a keeps, only b), ...], "p": ...}.

    p is the sign test over the points, each of which counts once: for whom does it stand in more seeds? (Verdicts of different
    seeds on the same point are not independent, so they are not pooled.)
    """
    from scipy.stats import binomtest

    of = {
        who: np.stack(frame[(frame["who"] == who) & (frame["sparsity"] == sparsity)].sort_values("seed")["verdicts"].tolist())
        for who in (a, b)
    }
    seeds = [(int((x & ~y).sum()), int((y & ~x).sum())) for x, y in zip(of[a], of[b], strict=True)]
    difference = of[a].sum(0).astype(int) - of[b].sum(0).astype(int)
    more, less = int((difference > 0).sum()), int((difference < 0).sum())
    return {"seeds": seeds, "p": binomtest(more, more + less).pvalue if more + less else 1.0}
