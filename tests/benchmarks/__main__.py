"""``make bench``: every figure is a ratio against a peer in the same run. ``python -m tests.benchmarks NAME...`` runs some of them.

CIFAR-10 test images for `oracle` and `evaluation` are those on disk, or an .npz (x uint8, y) that APNB_BENCH_IMAGES names.
"""

from __future__ import annotations

import os
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


def oracle() -> None:
    """AutoAttack: verdicts and seconds of the package, of the package on a fast copy, and of our own engine."""
    from tests.benchmarks.oracle import cifar, table

    torch.set_num_threads(1)
    images = cifar(os.environ.get("APNB_BENCH_IMAGES"))
    print(
        "AutoAttack in full (100 steps, 9 targets, 5000 queries) or in small; oracle: the first column of each network and seed"
    )
    heads = "network              eps      n    budget    seed  column              robust  differ  missed  by another  doubted"
    print(f"{heads}  seconds  ratio  (APGD-CE, APGD-T, FAB-T, Square)")
    for r in table(images):
        row = (
            f"{r['network']:20} {r['eps']:.5f}  {r['n']:3}  {r['budget']:8}  {r['seed']:4}  {r['column']:18}  {r['robust']:6}  "
            f"{r['differ']:6}  {r['missed']:6}  {r['by another']:10}  {r['doubted']:7}  {r['seconds']:7.1f}  {r['ratio']:5.2f}"
        )
        print(f"{row}  {r['each']}", flush=True)
    if images is None:
        print("resnet18 was left out: no CIFAR-10 test images here; name an .npz in APNB_BENCH_IMAGES")


def fmn() -> None:
    """FMN with frozen parameters against the same with gradients for them."""
    from tests.benchmarks.fmn import measure

    for name, value in measure().items():
        print(f"{name}: {value}")


def evaluation() -> None:
    """How soon an evaluation says something, how long it takes on digits, and what it costs besides the network."""
    from tests.benchmarks.evaluation import first_figure, overhead, whole
    from tests.benchmarks.oracle import cifar

    print(f"first figure {first_figure():.2f} s after the call (median of 5 fresh interpreters with torch loaded)")
    found = whole()
    print(f"digits CNN, n = 500, AutoAttack, {torch.get_num_threads()} threads: {found['seconds']:.0f} s, first batch attacked after "
          f"{found['first batch']:.1f} s; {found['report']}")  # fmt: skip
    images = cifar(os.environ.get("APNB_BENCH_IMAGES"))
    if images is not None:
        for attacks in ("pgd", "lite"):
            told = overhead(images, attacks)
            print(f"resnet18, 16 images, {attacks}: {told['outside']:.1%} of {told['seconds']:.0f} s outside the network")


def methods() -> None:
    """Every surveyed method that runs, structured variants too, on digits; and its listed properties."""
    from tests.benchmarks.methods import checks, on_digits

    start = time.perf_counter()
    found, shown = on_digits(), checks()
    print(
        f"quick budget, digits, eps 0.15, AutoAttack on n = 500; {time.perf_counter() - start:.0f} s on 2 workers, the checks among them"
    )
    print("method                  asked  runs  training s  units gone  weights gone  clean   robust (95 %)           checks")
    for recipe, result in found.items():
        passed, listed = shown[recipe.method]
        name = f"{recipe.label:22}  {recipe.sparsity:5.0%}"
        if isinstance(result, str):
            print(f"{name}  no    {result}")
            continue
        sparsity, seconds, e = result
        low, high = e.interval
        told = f"{e.clean_accuracy:5.1%}  {e.robust_accuracy:5.1%} [{low:.1%}, {high:.1%}]  {passed} of {listed}"
        print(f"{name}  yes   {seconds:10.0f}  {sparsity.units:10.2%}  {sparsity.weights:12.2%}  {told}")


def methods_cifar() -> None:
    """Two surveyed methods, one structured, with resnet18 on the CIFAR-10 of the folder that APNB_BENCH_CIFAR names."""
    from tests.benchmarks.methods import cifar

    folder = os.environ.get("APNB_BENCH_CIFAR")
    if folder is None:
        print("left out: no CIFAR-10 here; name a folder with train_head.npz and test_head.npz (x uint8, y) in APNB_BENCH_CIFAR")
        return
    print(f"1000 training images, PGD-2, two epochs a stage, {torch.get_num_threads()} threads")
    for recipe, run in cifar(folder):
        s = run.sparsity
        print(f"resnet18, {recipe.label} {recipe.sparsity:.0%}: {run.summary['seconds']:.0f} s of training in {run.summary['precision']}, "
              f"units gone {s.units:.2%}, weights gone {s.weights:.2%}; {run.evaluation}", flush=True)  # fmt: skip


def lab() -> None:
    """The lab in a browser: what a person waits for, and memory."""
    from tests.browser.pages import chromium

    if chromium() is None:
        print("lab: left out, since no Chromium or Chrome is installed here")
        return
    from tests.benchmarks.lab import CLICKS, measure

    print(f"the lab in JupyterLab, digits, quick budget, {os.cpu_count()} cores; clicks are medians of {CLICKS} during a run")
    for what, value in measure().items():
        print(f"  {what:34} {value if isinstance(value, bool) else round(value, 2)}")


ALL = {
    "imports": imports, "training": training, "oracle": oracle, "fmn": fmn, "evaluation": evaluation, "curve": curve, "methods": methods,
    "methods_cifar": methods_cifar, "lab": lab,
}  # fmt: skip

if __name__ == "__main__":
    print(f"{platform.platform()}, {platform.processor() or platform.machine()}, torch {torch.__version__}")
    for name in sys.argv[1:] or ALL:
        ALL[name]()
