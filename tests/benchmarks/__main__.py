"""``make bench``: every figure is a ratio against a peer in the same run. ``python -m tests.benchmarks training|imports|curve``."""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import tempfile
import time

import torch


def training() -> None:
    """PGD-10 training step of resnet18, batch 128."""
    from tests.benchmarks.training import step_ratio

    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = step_ratio(device=device)
    print(f"PGD-10 training step, {result['network']}, batch 128, {device}, {result['threads']} threads, medians of 5")
    print(f"  plain torch, float32   {result['plain images/s']:8.2f} images/s")
    print(f"  apnb, masks, {'bf16 body' if result['bf16'] else 'float32  '} {result['apnb images/s']:8.2f} images/s")
    print(f"  ratio {result['ratio']:.2f} (step by step {result['spread']})")
    if not result["bf16"]:
        print("  this hardware has no bfloat16 units: both loops ran in float32, so no speed-up is to be expected")


def imports() -> None:
    """``import apnb`` in a fresh interpreter, against an interpreter that imports nothing."""

    def seconds(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - start

    pairs = [(seconds("pass"), seconds("import apnb")) for _ in range(7)]
    extra = statistics.median(b - a for a, b in pairs)
    print(f"import apnb: {extra:.3f} s on top of the interpreter's {statistics.median(a for a, _ in pairs):.3f} s (medians of 7)")


def curve() -> None:
    """Three seeds, AutoAttack on the same 500 points of digits."""
    from tests.benchmarks.curve import measure, paired

    with tempfile.TemporaryDirectory() as store:
        start = time.perf_counter()
        frame = measure(store)
    print(f"AutoAttack standard on the same 500 digits, eps 0.15, three seeds, {time.perf_counter() - start:.0f} s on 2 workers")
    table = frame.drop(columns="verdicts").pivot_table(index=["sparsity", "who"], columns="seed", values=["clean", "robust"])
    print((100 * table).round(1).to_string())
    for a, b in (("global", "random"), ("local", "random"), ("global", "local")):
        for sparsity in (0.9, 0.99):
            found = paired(frame, a, b, sparsity)
            print(
                f"at {sparsity:.0%}, points kept only by {a} / only by {b}, seed by seed: {found['seeds']}, sign test p = {found['p']:.2g}"
            )


ALL = {"imports": imports, "training": training, "curve": curve}

if __name__ == "__main__":
    print(f"{platform.platform()}, {platform.processor() or platform.machine()}, torch {torch.__version__}")
    for name in sys.argv[1:] or ALL:
        ALL[name]()
