"""The surveyed methods, each carried out and attacked, and how many of their listed properties a test shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import apnb
from apnb import sweeps
from apnb.presets import PRESETS
from tests.checks import CHECKS

ROOT = Path(__file__).parents[2]


def rows() -> list[apnb.Recipe]:
    """Every method at 90 % of the weights, and its structured variant at half of its units."""
    return [
        apnb.recipe(key, structure=structure, sparsity=0.9 if structure == "weights" else 0.5)
        for key, preset in PRESETS.items()
        for structure in preset.units
    ]


def checks() -> dict[str, tuple[int, int]]:
    """Method -> (listed properties that all of their tests show, listed properties)."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "outcome.json"
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-m", "check", "-p", "tests.checks", "tests"],
            cwd=ROOT, env={**os.environ, "APNB_CHECKS": str(place)}, stdout=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        found = json.loads(place.read_text())
    passed = {m: sum(bool(t) and all(t.values()) for t in numbers.values()) for m, numbers in found.items()}
    return {m: (passed.get(m, 0), len(sentences)) for m, sentences in CHECKS.items()}


def on_digits(workers: int = 2, n: int = 500):
    """The runs on digits at the quick budget, AutoAttack on ``n`` test images; recipe -> a run or the sentence of its failure."""
    with tempfile.TemporaryDirectory() as store, sweeps.workers(workers) as pool:
        runs = sweeps.sweep(rows(), pool, store=store, n=n, device="cpu")
        return {r.recipe: (r.sparsity, r.summary["seconds"], r.evaluation) for r in runs} | runs.failed


def cifar(folder: str):
    """Two methods, one of them structured, with resnet18 on real CIFAR-10: 1000 training images, PGD-2, two epochs a stage."""
    with np.load(Path(folder) / "train_head.npz") as train, np.load(Path(folder) / "test_head.npz") as test:
        arrays = {"x_train": train["x"], "y_train": train["y"], "x_test": test["x"], "y_test": test["y"]}
    budget = apnb.Budget(name="quick", epochs=2, search_epochs=2, finetune_epochs=2, images=1000, attack_steps=2, check=64)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "cifar10.npz"
        np.savez(file, **arrays)
        for recipe in (
            apnb.recipe("hydra", sparsity=0.9, budget=budget),
            apnb.recipe("twinrep", structure="channels", sparsity=0.5, budget=budget),
        ):
            run = apnb.run(recipe, "resnet18", f"npz:{file}", eps=8 / 255, attacks="lite", n=16, store=place)
            yield recipe, run
