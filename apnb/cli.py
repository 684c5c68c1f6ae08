"""The command line: plain functions, shown by typer; without typer (a bare GPU machine) the same functions run through argparse."""

from __future__ import annotations

import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from apnb.errors import Invalid
from apnb.paths import PACKAGE, shipped

STORE = Annotated[Path | None, "Folder of runs (default: APNB_HOME, else the user's data folder)."]
JSON = Annotated[bool, "Print JSON for a script instead of a table."]
NETWORK = Annotated[str, "cnn, resnet8, resnet18, vgg16, or package:factory."]
DATA = Annotated[str, "digits, cifar10, svhn, folder:PATH or npz:PATH."]
ATTACKS = Annotated[str, "standard (AutoAttack), lite (APGD-CE and APGD-T, an upper bound of it) or pgd (a quick look)."]
DEVICE = Annotated[str, "auto, cpu or cuda."]
THREADS = Annotated[int, "Cores torch may use; 0: one for small networks, all for large ones."]
LIKE = Annotated[str | None, "As which published network a file is read: its key (see 'apnb checkpoints list')."]
POINTS = Annotated[int | None, "Test images to attack (default: the budget's)."]
BUDGET = Annotated[str, "quick, standard, paper or tiny."]


# --- commands ------------------------------------------------------------------------------------------------------------------


def demo(
    out: Annotated[Path, "The HTML file with the curve."] = Path("demo.html"),
    workers: Annotated[int, "Worker processes, one core each."] = 2,
    n: Annotated[int, "Test images to attack."] = 128,
    budget: BUDGET = "quick",
    store: STORE = None,
) -> int:
    """Prune, attack, plot: three recipes at four sparsities on the embedded data set, from nothing to a curve."""
    from apnb import datasets, plots, sweeps
    from apnb.evaluation import check_points
    from apnb.recipes import Recipe

    plots.writable(out)
    check_points(n, datasets.load("digits"))
    cells = [
        {"pipeline": "after", "structure": "weights", "locality": "global", "criterion": "lwm"},
        {"pipeline": "before", "structure": "weights", "locality": "local", "criterion": "lis"},
        {"pipeline": "during", "structure": "filters", "locality": "global", "criterion": "lwm"},
    ]
    recipes = sweeps.with_dense(Recipe(**c, sparsity=s, budget=budget) for c in cells for s in (0.5, 0.75, 0.9, 0.95))
    note(
        f"{len(recipes)} networks: trained, pruned and attacked on {workers} cores; what is finished is kept and comes back at once"
    )
    with sweeps.workers(workers) as pool:
        runs = sweeps.sweep(recipes, pool, store=store, n=n, device="cpu", progress=told)
    frame = runs.frame()
    if frame.empty:
        return failures(runs.failed)
    show(
        result_rows(frame),
        title=f"digits, eps 0.15: robust accuracy is an upper bound, found by AutoAttack on n = {n} test images",
    )
    plots.save(plots.robustness_sparsity(frame), out)
    note(f"the curve: {out}")
    return failures(runs.failed)


def run(
    method: Annotated[str | None, "A surveyed method that runs (see 'apnb methods'), instead of a cell of your own."] = None,
    pipeline: Annotated[str | None, "When to prune: after (the default), before or during training."] = None,
    schedule: Annotated[str | None, "one_shot (the default) or iterative."] = None,
    structure: Annotated[str | None, "weights (the default), filters, channels or kernels."] = None,
    locality: Annotated[str | None, "local or global (the default)."] = None,
    criterion: Annotated[str | None, "lwm (the default), relwm, solwm, lis, hgm, bcs (or the control random)."] = None,
    sparsity: Annotated[float, "Share of units to remove, in [0, 1)."] = 0.9,
    variant: Annotated[str | None, "Of the criterion: l1 or group_lasso (relwm), learned or saliency (lis)."] = None,
    ramp: Annotated[str | None, "cubic or linear, of an iterative schedule."] = None,
    rewind: Annotated[bool | None, "Weights go back to where they started."] = None,
    objective: Annotated[
        str | None, "Of every stage not given below: natural, fgsm, fast_at, pgd_at (the default), trades, mart."
    ] = None,
    pretraining: Annotated[str | None, "Objective of the stage (after)."] = None,
    pruning_step: Annotated[str | None, "Objective of the stage (after, before); none where allowed."] = None,
    finetuning: Annotated[str | None, "Objective of the stage (after); kd or none are allowed."] = None,
    training_step: Annotated[str | None, "Objective of the stage (before, during)."] = None,
    as_released: Annotated[bool, "Do as the method's code does where it differs from its paper."] = False,
    constants: Annotated[str | None, "The method's own numbers, as NAME=VALUE,NAME=VALUE."] = None,
    budget: BUDGET = "quick",
    seed: Annotated[int, "Of everything that involves chance."] = 0,
    network: NETWORK = "cnn",
    data: DATA = "digits",
    eps: Annotated[float | None, "Radius of training attack and evaluation (default: the data set's)."] = None,
    attacks: ATTACKS = "standard",
    n: POINTS = None,
    device: DEVICE = "auto",
    precision: Annotated[str, "auto, fp32 or bf16."] = "auto",
    threads: THREADS = 0,
    store: STORE = None,
    plan: Annotated[bool, "Say what would happen, and stop."] = False,
    json_: JSON = False,
) -> int:
    """Carry out one recipe: train, prune, attack. Goes on where an interrupted run ended."""
    from apnb.recipes import Recipe, read_constants
    from apnb.recipes import recipe as surveyed

    chosen = {
        "pipeline": pipeline, "schedule": schedule, "structure": structure, "locality": locality, "criterion": criterion,
        "variant": variant, "ramp": ramp, "rewind": rewind, "objective": objective, "pretraining": pretraining,
        "pruning_step": pruning_step, "finetuning": finetuning, "training_step": training_step, "as_released": as_released or None,
        "constants": read_constants(constants) or None,
    }  # fmt: skip
    chosen = {"sparsity": sparsity, "budget": budget, "seed": seed, **{k: v for k, v in chosen.items() if v is not None}}
    recipe = Recipe(**{"pipeline": "after", **chosen}) if method is None else surveyed(method, **chosen)
    if plan:
        from apnb import datasets
        from apnb.evaluation import check_points

        if datasets.there(data):  # a plan downloads nothing
            check_points(n, datasets.load(data, eps=eps))
        print(recipe.plan(datasets.pixels(data), points=n))
        return 0
    from apnb.runs import run as carry_out

    use_threads(threads, network)
    with Watch() as watch:
        result = carry_out(
            recipe, network, data, eps=eps, device=device, precision=precision, store=store, attacks=attacks, n=n, progress=watch
        )
    row = result.row()
    if json_:
        print(json.dumps({**row, "recipe": result.recipe.to_dict(), "warnings": list(result.evaluation.warnings)}, indent=1))
        return 0
    show(result_rows([row]), title=str(result.evaluation))
    for sentence in result.evaluation.warnings:
        note(sentence)
    return 0


def sweep(
    file: Annotated[Path, "TOML or JSON: recipes, and optionally network, data, eps, attacks, n."],
    workers: Annotated[int, "Worker processes; 1 runs them here, one after the other."] = 1,
    out: Annotated[Path | None, "Also write the curve: .html, .png or .svg."] = None,
    device: DEVICE = "auto",
    threads: THREADS = 0,
    store: STORE = None,
    json_: JSON = False,
) -> int:
    """Carry out the recipes of a file and print the table."""
    from contextlib import nullcontext

    from apnb import sweeps

    if out is not None:
        from apnb import plots

        plots.writable(out)
    options = sweeps.read_sweep(file)
    recipes = options.pop("recipes")
    each = use_threads(threads, options.get("network", "cnn"), workers)
    with sweeps.workers(workers, each) if workers > 1 else nullcontext() as pool:
        runs = sweeps.sweep(recipes, pool, store=store, device=device, progress=told, **options)
    frame = runs.frame()
    if json_:
        failed = [{"recipe": r.to_dict(), "error": e} for r, e in runs.failed.items()]
        print(json.dumps({"runs": plain(frame), "failed": failed}, indent=1))
    else:
        show(result_rows(frame))
    if out is not None and len(frame):
        plots.save(plots.robustness_sparsity(frame), out)
        note(f"the curve: {out}")
    return failures(runs.failed)


def evaluate(
    what: Annotated[
        str,
        "A run's key (see 'apnb runs list'), a published network's (see 'apnb checkpoints list'), a file of weights, package:factory.",
    ],
    data: Annotated[
        str | None, "digits, cifar10, svhn, folder:PATH or npz:PATH (default: the network's own, else digits)."
    ] = None,
    network: Annotated[
        str | None, "What the plain weights of a file belong to: resnet18, vgg16, cnn, resnet8 or package:factory."
    ] = None,
    like: LIKE = None,
    eps: Annotated[float | None, "Radius of the ball (default: the run's, else the data set's)."] = None,
    attacks: ATTACKS = "standard",
    distances: Annotated[str, "none; fmn: also look for the smallest perturbations; hofmn: the same, tuned."] = "none",
    n: Annotated[int | None, "Test images to attack (default: all)."] = None,
    subset: Annotated[str, "How n images are drawn: stratified, random or first."] = "stratified",
    seed: Annotated[int, "Of the draw and of the attacks."] = 0,
    batch: Annotated[int | None, "Images attacked together (default: 128, on a GPU 512)."] = None,
    precision: Annotated[
        str, "Of the attacks: fp32, or bf16 (needs the hardware); verdicts are always taken in float32."
    ] = "fp32",
    engine: Annotated[str, "Who attacks: apnb, or pyautoattack, the authors' package; verdicts are the same."] = "apnb",
    parent: Annotated[
        str | None, "The dense network of a pruned one, given like WHAT: do its adversarial images transfer?"
    ] = None,
    device: DEVICE = "auto",
    threads: THREADS = 0,
    store: STORE = None,
    save: Annotated[
        Path | None, "Keep progress in this file and go on from it (a run's evaluation is kept in the store)."
    ] = None,
    report: Annotated[Path | None, "Also write a page (.html): verdict, curve, images, diagnostics."] = None,
    curve: Annotated[Path | None, "Also write the distances (.npz), for 'apnb curves'."] = None,
    survey: Annotated[bool, "Instead: HO-FMN on 128 points as the survey ran it, and what that leaves out."] = False,
    json_: JSON = False,
) -> int:
    """Attack a network and count what stands, with an interval, and say whether to believe it."""
    from apnb.devices import pick_device
    from apnb.evaluation import check_points, evaluate_stream, survey_protocol
    from apnb.runs import stored_evaluation
    from apnb.store import Store

    if report is not None or curve is not None:
        from apnb import curves, plots

        for path, kind in ((report, ".html"), (curve, ".npz")):
            if path is not None:
                plots.writable(path, (kind,))
    given = Network(what, data, network, eps, store, like)
    use_threads(threads, given.name)
    if survey:
        found, notes = survey_protocol(given.model, given.dataset, seed=seed, device=device)
        (low, high), standing = found.interval(8 / 255), found.accuracy(8 / 255)
        print(f"robust at 8/255 by the survey's protocol {standing:.1%} [{low:.1%}, {high:.1%}], n = {found.n}")
        for sentence in notes:
            note(sentence)
        if curve is not None:
            note(f"the distances: {curves.write(curve, found)}")
        return 0
    check_points(n, given.dataset)
    options = {
        "n": n, "attacks": attacks, "distances": distances, "subset": subset, "seed": seed, "batch": batch, "precision": precision,
        "engine": engine, "device": pick_device(device),
    }  # fmt: skip
    if parent is not None:
        of_file = (network, like) if Path(parent).is_file() else (None, None)
        options["parent"] = Network(parent, data or given.data, of_file[0], eps, store, of_file[1]).model
    if given.run is None or save is not None:
        events = evaluate_stream(given.model, given.dataset, save=save, **options)
    else:
        events = stored_evaluation(Store(store), given.run.key, given.model, given.dataset, **options)
    with Watch() as watch:
        result = watch.follow(events)
    if json_:
        print(json.dumps({**result.summary(), **({"published": given.published} if given.published else {})}, indent=1))
    else:
        print(result)
        if given.published:
            print("the survey's table says for {key}: clean {clean:g} %, robust {robust:g} % (AutoAttack, eps 0.031, all 10 000 "
                  "test images)".format(**given.published))  # fmt: skip
        for sentence in result.warnings:
            note(sentence)
        doubts = [f for f in result.diagnostics if f.verdict in ("doubtful", "failed") or f.indicator == "points"]
        for f in doubts:
            note(f"{f.indicator}: {f.verdict}: {f.meaning}; {f.advice}")
        looked = sum(f.verdict == "fine" for f in result.diagnostics)
        if looked and not doubts:
            note(f"believable: of the {looked} signs of a failed attack that were looked for none was seen")
    if report is not None:
        from apnb.report import write

        note(f"the report: {write(result, report, title=f'{given.title} on {given.dataset.name}')}")
    if curve is not None:
        note(f"the distances: {curves.write(curve, result.curve(given.title))}")
    return 0


class Network:
    """What a person names as a network: a run's key, a published network's key, a file of weights, or package:factory; with the data
    it is judged on."""

    def __init__(
        self, what: str, data: str | None, network: str | None, eps: float | None, store: Path | None, like: str | None = None
    ):
        from apnb import checkpoints, datasets, networks
        from apnb.runs import open_run

        self.run, self.published, self.title = None, None, Path(what).stem if Path(what).is_file() else what
        self.data = data or "digits"
        for option, given in (("--network", network), ("--like", like)):
            if given is not None and not Path(what).is_file():
                raise Invalid(f"{option} says what the weights in a file belong to, and {what} is no file; leave it out")
        if checkpoints.is_key(what) or (Path(what).is_file() and network is None):
            sizes = {}
            if data is not None:
                self.dataset = datasets.load(data, eps=eps)
                sizes = {"channels": self.dataset.channels, "classes": self.dataset.classes}
            with Fetching() as fetching:
                found = checkpoints.open_checkpoint(what, like=like, progress=fetching, **sizes)
            self.name, self.model = found.layout.network or "resnet18", found.network
            if data is None:
                self.data = found.key.data if found.key else "cifar10"
                self.dataset = datasets.load(self.data, eps=eps)
            if isinstance(found.key, checkpoints.Entry) and like is None and self.data == found.key.data:
                self.published = {"key": found.key.text, "clean": found.key.clean, "robust": found.key.robust}
            note(f"{found.path.name}: {found.layout}")
            if found.sparsity:
                units = found.key.units if found.key else "weights"
                note(f"measured: {found.sparsity.units:.2%} of the {units} removed, {found.sparsity.weights:.2%} of all weights")
            for sentence in (*found.notes, *found.doubts):
                note(sentence)
        elif Path(what).is_file():
            self.dataset, self.name = datasets.load(self.data, eps=eps), network
            self.model = checkpoints.load(what, network, like=like, channels=self.dataset.channels, classes=self.dataset.classes)
        elif ":" in what:
            self.dataset, self.name = datasets.load(self.data, eps=eps), what
            self.model = networks.build(what, channels=self.dataset.channels, classes=self.dataset.classes)
        elif Path(what).suffix in (".pt", ".pth", ".tar", ".t7", ".safetensors"):
            raise Invalid(f"there is no file {what}; give a file of weights, a run's key or package:factory")
        else:
            self.run = open_run(what, store=store)
            known = data or self.run.summary["given"]["data"]
            if known is None:
                raise Invalid(f"run {self.run.key[:12]} was made with data given as an object; name them with --data")
            self.data = known
            self.dataset = datasets.load(known, eps=self.run.summary["eps"] if eps is None else eps)
            self.name, self.model = self.run.summary["network"], self.run.model
            self.title = f"{self.run.recipe.label} {self.run.recipe.sparsity:.0%}, {self.name}"


def curves(
    files: Annotated[
        list[str], "Distances: files of 'apnb evaluate --curve' (.npz), the survey's own (.pickle), or keys of its networks."
    ],
    out: Annotated[Path, "The figure: .html, .png or .svg."] = Path("curves.html"),
    eps: Annotated[float | None, "The radius to mark and compare at (default: the files' own)."] = None,
    json_: JSON = False,
) -> int:
    """Security curves: robust accuracy at every radius, of several networks in one figure."""
    from apnb import checkpoints, plots
    from apnb.curves import load_all

    plots.writable(out)
    with Fetching() as fetching:
        published = {f for f in files if checkpoints.is_key(f) and not Path(f).exists()}
        paths = [checkpoints.fetch_distances(f, progress=fetching) if f in published else Path(f) for f in files]
    loaded = load_all(paths)
    figure = plots.security_curve(loaded, eps=eps)
    at = plots.common_eps(loaded) if eps is None else eps
    if json_:
        finite = lambda value: value if math.isfinite(value) else None  # noqa: E731 - JSON has no infinity
        rows = [
            {"name": d.name, "n": d.n, "clean": d.accuracy(0.0), "eps": at, "robust": d.accuracy(at), "median": finite(d.median),
             "area to 0.15": d.area(0.15), "found by": d.method} for d in loaded
        ]  # fmt: skip
        print(json.dumps(rows, indent=1))
    else:
        told = [
            {"name": d.name, "n": str(d.n), "clean %": f"{100 * d.accuracy(0.0):.1f}", f"at {at:.4g} %": f"{100 * d.accuracy(at):.1f}",
             "median": f"{d.median:.4g}", "area to 0.15": f"{d.area(0.15):.4g}", "found by": d.method} for d in loaded
        ]  # fmt: skip
        show(told, title="robust accuracy is an upper bound, found by these attacks")
    plots.save(figure, out)
    note(f"the curves: {out}")
    return 0


def methods(
    pipeline: Annotated[str | None, "after, before or during."] = None,
    objective: Annotated[str | None, "Of any stage."] = None,
    schedule: Annotated[str | None, "one_shot, iterative or unspecified."] = None,
    structure: Annotated[str | None, "weights, filters, channels or kernels."] = None,
    locality: Annotated[str | None, "local or global."] = None,
    criterion: Annotated[str | None, "lwm, relwm, solwm, lis, hgm or bcs."] = None,
    check: Annotated[Path | None, "Check a taxonomy entry or an evaluation record that you wrote (JSON) instead."] = None,
    json_: JSON = False,
) -> int:
    """The surveyed methods, where they stand in the taxonomy, and which of them run as methods ('apnb run --method')."""
    from apnb import taxonomy
    from apnb.presets import PRESETS

    if check is not None:
        from apnb import contribution

        checked = contribution.check(check)
        for sentence in checked.problems or checked.warnings:
            note(f"{check}: {sentence}")
        if not checked.problems:
            print(f"{check}: a valid {checked.kind} {checked.about}")
        return 2 if checked.problems else 0
    found = taxonomy.methods(pipeline, objective, schedule, structure, locality, criterion)
    if json_:
        print(json.dumps(plain(taxonomy.frame(found)), indent=1, default=str))
        return 0
    rows = [
        {
            "key": m.key,
            "method": f"{m.name} ({m.first_author} {m.year})",
            "pipeline": str(m.pipeline),
            "objectives": "; ".join("+".join(map(str, o)) for o in m.objectives.values()),
            "schedule": str(m.schedule),
            "structures": "+".join(map(str, m.structures)),
            "locality": "+".join(map(str, m.locality)),
            "criterion": str(m.criterion).upper(),
            "runs as": " or ".join(k for k, p in PRESETS.items() if p.survey == m.key) or "its cell",
        }
        for m in found
    ]
    show(rows, title=f"{len(rows)} of 26 surveyed methods")
    return 0


def lab(
    folder: Annotated[Path | None, "Where the notebooks go (default: the checkout's own, else ./apnb-notebooks)."] = None,
    port: Annotated[int, "Of the local server; the next free one if it is taken."] = 8888,
    browser: Annotated[bool, "Open a browser."] = True,
) -> int:
    """JupyterLab on the notebooks, opened at the first."""
    import importlib.util
    import subprocess

    if importlib.util.find_spec("jupyterlab") is None:
        raise Invalid("the lab needs JupyterLab, which is not installed; install it with: pip install 'apnb[lab]'")
    place = notebooks(folder)
    command = [
        sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={place}", f"--port={port}",
        "--LabApp.default_url=/lab/tree/00_start_here.ipynb",
    ]  # fmt: skip
    if not browser:
        command.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # in a container one is root, and the server listens on this machine only
    config = os.pathsep.join(p for p in (str(PACKAGE / "jupyter"), os.environ.get("JUPYTER_CONFIG_PATH")) if p)
    environment = {**os.environ, "JUPYTER_CONFIG_PATH": config}  # no news and no update checks from elsewhere
    if os.name == "posix":
        os.execve(command[0], command, environment)  # so that a signal reaches the server itself
    return subprocess.call(command, env=environment)


def doctor(store: STORE = None, json_: JSON = False) -> int:
    """What this machine has, and what is missing."""
    import importlib.metadata as metadata
    import platform

    import torch

    from apnb import taxonomy
    from apnb.devices import bf16_units
    from apnb.store import Store

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "not installed"

    place = Store(store)
    try:
        rows, damaged = place.ready().table()
        runs = f"{len({r['key'] for r in rows})} runs, {len(damaged)} damaged"
    except Invalid as error:
        damaged, runs = [], f"not usable: {error}"
    cuda = torch.cuda.is_available()
    facts = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **{p: version(p) for p in ("apnb", "torch", "torchvision", "numpy", "pandas", "scikit-learn", "pyautoattack", "plotly",
                                   "typer", "pydantic", "safetensors", "gdown", "ipywidgets", "anywidget", "jupyterlab", "kaleido")},
        "device": torch.cuda.get_device_name(0) if cuda else "cpu",
        "cores": cores(),
        "bfloat16 units": "yes" if bf16_units("cuda" if cuda else "cpu") else "no: training runs in float32",
        "store": str(place.root),
        "runs": runs,
        "survey data": f"{len(taxonomy.methods())} methods",
    }  # fmt: skip
    if json_:
        print(json.dumps({**facts, "damaged": damaged}, indent=1))
    else:
        for name, value in facts.items():
            print(f"{name:16} {value}")
        for sentence in damaged:
            print(sentence)
    return 0


def runs_list(store: STORE = None, json_: JSON = False) -> int:
    """All stored runs, one line for each evaluation."""
    from apnb.store import Store

    rows, damaged = Store(store).table()
    if json_:
        print(json.dumps({"runs": rows, "damaged": damaged}, indent=1))
        return 0
    print(f"{len(rows)} in {Store(store).root}")
    alike: dict[tuple, list[dict]] = {}
    for row in rows:
        alike.setdefault((row["data"], row["eps"]), []).append(row)
    for (data, eps), some in alike.items():  # accuracies under different eps stay apart
        show(result_rows(some), title=f"\n{data}" + ("" if eps is None else f", eps {eps:.4g}"))
    for sentence in damaged:
        note(sentence)
    return 0


def runs_show(key: Annotated[str, "A run's key or the beginning of it."], store: STORE = None, json_: JSON = False) -> int:
    """One run: recipe, sparsity, evaluations, and the Python that makes it."""
    from apnb.recipes import Recipe
    from apnb.store import Store

    place = Store(store)
    summary = place.summary(key)
    evaluations = place.evaluations(summary["key"])
    if json_:
        print(json.dumps({**summary, "evaluations": evaluations}, indent=1))
        return 0
    s = summary["sparsity"]
    print(
        f"{summary['key']}  {summary['label']}  on {summary['data']} with {summary['network']}, seed {summary['recipe']['seed']}"
    )
    print(f"removed {s['total'] - s['kept']} of {s['total']} units ({s['units']:.2%}; asked {s['asked']:.2%}), "
          f"{s['weights']:.2%} of the weights, {s['parameters']:.2%} of all parameters")  # fmt: skip
    for name, share in s["per_layer"].items():
        print(f"  {name:32} {share:7.2%} kept" + ("  collapsed to one unit" if name in s["collapsed"] else ""))
    for e in evaluations:
        print(f"{e['attacks']}, eps {e['eps']:.4g}: clean {e['clean']:.1%}, robust at most {e['robust']:.1%} "
              f"[{e['low']:.1%}, {e['high']:.1%}], n = {e['n']}")  # fmt: skip
    print(f"{summary['seconds']:.0f} s on {summary['device']}, torch {summary['versions']['torch']}\n")
    given = summary["given"]
    print(Recipe.from_dict(summary["recipe"]).code(summary["network"], given["data"] or summary["data"], given["eps"]))
    return 0


def runs_rm(keys: Annotated[list[str], "Keys, or beginnings of keys."], store: STORE = None) -> int:
    """Remove runs with their evaluations. Stages that other runs may share stay."""
    from apnb.store import Store

    place = Store(store)
    chosen = [place.locate(key) for key in keys]
    for key in dict.fromkeys(chosen):
        place.remove(key)
        print(f"removed {key}")
    return 0


def runs_clean(store: STORE = None) -> int:
    """Remove what can be computed again: shared stages, snapshots, remains of killed runs. Finished runs stay."""
    from apnb.store import Store

    print(f"{Store(store).clean() / 1e6:.1f} MB freed; the finished runs are still there")
    return 0


def runs_export(
    zip: Annotated[Path, "The file to write."],
    keys: Annotated[list[str] | None, "Keys (default: all)."] = None,
    store: STORE = None,
) -> int:
    """Write runs as one ZIP."""
    from apnb.store import Store

    print(f"{Store(store).export(zip, keys or None)} runs written to {zip}")
    return 0


def runs_import(zip: Annotated[Path, "A file that 'apnb runs export' wrote."], store: STORE = None) -> int:
    """Take runs from a ZIP; those that are here already stay as they are."""
    from apnb.store import Store

    new = Store(store).import_(zip)
    print(f"{len(new)} new runs" + "".join(f"\n{key}" for key in new))
    return 0


def checkpoints_list(
    method: Annotated[str | None, "Of one method, such as harp."] = None,
    network: Annotated[str | None, "resnet18 or vgg16."] = None,
    structure: Annotated[str | None, "unstructured or structured."] = None,
    sparsity: Annotated[float | None, "Share removed, such as 0.9."] = None,
    json_: JSON = False,
) -> int:
    """The 83 networks that the survey published, with what its tables say about them."""
    from apnb import checkpoints

    found = checkpoints.entries(method, network, structure, sparsity)
    here = checkpoints.cache_folder()
    rows = [
        {"key": e.text, "network": e.network, "removed %": f"{100 * e.sparsity:.0f}", "of the": e.units, "clean %": f"{e.clean:.2f}",
         "robust %": f"{e.robust:.2f}", "distances": "yes" if e.distances_id else "", "here": "yes" if (here / e.file).exists() else ""}
        for e in found
    ]  # fmt: skip
    if json_:
        told = [{"key": e.text, "page": e.page, **{k: getattr(e, k) for k in ("method", "network", "data", "structure", "sparsity",
                 "clean", "robust", "id", "file", "distances_id", "note")}} for e in found]  # fmt: skip
        print(json.dumps(told, indent=1))
        return 0
    show(rows, title=f"{len(rows)} of {len(checkpoints.entries())} published networks, all for CIFAR-10", whole=True)
    for e in found:
        if "twice" in e.note:
            note(f"{e.text}: {e.note}")
    return 0


def checkpoints_fetch(
    keys: Annotated[list[str], "Keys (see 'apnb checkpoints list'), or: all."],
    distances: Annotated[bool, "The adversarial distances instead of the weights."] = False,
    folder: Annotated[
        Path | None,
        "Where to keep them (default: checkpoints/ in APNB_HOME or the user's data folder, where the other commands look).",
    ] = None,
    mirror: Annotated[str | None, "Address of a folder with the files, instead of Google Drive."] = None,
) -> int:
    """Download published networks (45 MB each or more) or their distances, once; an interrupted download goes on."""
    from apnb import checkpoints

    get, find = (checkpoints.fetch_distances, checkpoints.find_distances) if distances else (checkpoints.fetch, checkpoints.find)
    if "all" in keys and len(keys) > 1:
        raise Invalid("'all' stands alone; leave the keys beside it out, or name the keys")
    chosen = [e.text for e in checkpoints.everything() if e.distances_id or not distances] if keys == ["all"] else keys
    for key in chosen:
        find(key)  # a wrong key before anything is fetched
    for key in chosen:
        with Fetching() as fetching:
            print(get(key, folder, mirror=mirror, progress=fetching))
    return 0


def checkpoints_layout(file: Annotated[Path, "A file of weights."], json_: JSON = False) -> int:
    """Say how a file stores a network: names, masks or scores, architecture, and whose files look so."""
    from dataclasses import asdict

    from apnb import checkpoints

    found = checkpoints.layout(file)
    print(json.dumps(asdict(found), indent=1) if json_ else f"{file}: {found}")
    return 0


COMMANDS: dict[str, Callable[..., int]] = {
    "demo": demo, "lab": lab, "run": run, "sweep": sweep, "evaluate": evaluate, "curves": curves, "methods": methods,
    "doctor": doctor,
}  # fmt: skip
RUNS: dict[str, Callable[..., int]] = {
    "list": runs_list, "show": runs_show, "rm": runs_rm, "clean": runs_clean, "export": runs_export, "import": runs_import,
}  # fmt: skip
CHECKPOINTS: dict[str, Callable[..., int]] = {
    "list": checkpoints_list, "fetch": checkpoints_fetch, "evaluate": evaluate, "layout": checkpoints_layout,
}  # fmt: skip
GROUPS = {
    "runs": ("Stored runs: list, show, remove, take elsewhere.", RUNS),
    "checkpoints": ("The survey's published networks: list, fetch, evaluate; and what a file of weights holds.", CHECKPOINTS),
}


# --- what commands share -------------------------------------------------------------------------------------------------------


def note(text: str) -> None:
    """A remark for people: on standard error, so that standard output stays data."""
    print(text, file=sys.stderr, flush=True)


def told(done: int, total: int, recipe: Any, error: str) -> None:
    """Progress of a sweep: a line for each run."""
    note(f"[{done:2}/{total}] {recipe.label} {recipe.sparsity:.0%}" + (f": {error}" if error else ""))


def failures(failed: dict) -> int:
    """Say what failed; the exit status."""
    for recipe, error in failed.items():
        note(f"failed: {recipe.label} at {recipe.sparsity:g}: {error}")
    return 2 if failed else 0


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(asked: int, network: str, processes: int = 1) -> int:
    """Set torch's threads: small networks run best on one core, large ones on all, shared by the processes."""
    from apnb.sweeps import set_threads

    if asked < 0:
        raise Invalid(f"threads must be 0 (choose for me) or more, got {asked}")
    n = asked if asked > 0 else 1 if network in ("cnn", "resnet8") else max(1, cores() // max(1, processes))
    set_threads(n)
    return n


def notebooks(folder: Path | None) -> Path:
    """The folder of notebooks to work in: a checkout's own, or a copy of those in the package (files there are kept)."""
    import shutil

    source = shipped("notebooks")
    if folder is None and source.parent != PACKAGE:
        return source
    place = (folder or Path("apnb-notebooks")).resolve()
    try:
        place.mkdir(parents=True, exist_ok=True)
        for file in source.iterdir():
            if file.suffix in (".ipynb", ".py", ".png") and not (place / file.name).exists():
                shutil.copy(file, place / file.name)
    except OSError as error:
        raise Invalid(f"cannot write the notebooks to {place}: {error.strerror}; give another folder with --folder") from None
    return place


def result_rows(rows: Any) -> list[dict[str, str]]:
    """The table people see: recipe, sparsity asked and measured, clean, robust with n and interval, seconds."""
    rows = rows if isinstance(rows, list) else plain(rows)
    shown = []
    for r in rows:
        standing = r["robust"] is not None
        shown.append(
            {
                "key": r["key"],
                "recipe": r["label"],
                "asked %": f"{100 * r['sparsity']:.1f}",
                "measured %": f"{100 * r['units']:.1f}",
                "weights %": f"{100 * r['weights']:.1f}",
                "clean %": f"{100 * r['clean']:.1f}" if standing else "",
                "robust %": f"{100 * r['robust']:.1f}" if standing else "",
                "interval": f"[{100 * r['low']:.1f}, {100 * r['high']:.1f}]" if standing else "",
                "n": f"{r['n']:.0f}" if standing else "",
                "eps": f"{r['eps']:.4g}" if standing else "",
                "attacks": {"standard": "AutoAttack"}.get(r["attacks"], r["attacks"]) if standing else "",
                "seconds": f"{r['seconds'] + (r['attack_seconds'] or 0):.0f}",
            }
        )
    return shown


def plain(frame: Any) -> list[dict]:
    """A DataFrame's rows with None for missing values."""
    return json.loads(frame.to_json(orient="records"))


def show(rows: list[dict[str, str]], title: str = "", *, whole: bool = False) -> None:
    """A table on standard output; keys of runs are cut to what identifies them, unless they are to be shown whole."""
    rows = [{k: v[:12] if k == "key" and not whole else v for k, v in r.items()} for r in rows]
    if title:
        print(title)
    if not rows:
        print("(nothing)")
        return
    widths = {k: max(len(k), *(len(r[k]) for r in rows)) for k in rows[0]}
    right = {"asked %", "measured %", "weights %", "removed %", "clean %", "robust %", "n", "seconds"}
    align = lambda k, v: v.rjust(widths[k]) if k in right else v.ljust(widths[k])  # noqa: E731
    print("  ".join(align(k, k) for k in widths).rstrip())
    print("  ".join("-" * w for w in widths.values()))
    for r in rows:
        print("  ".join(align(k, r[k]) for k in widths).rstrip())


class Watch:
    """Shows a run's events: a bar for the stage under way where there is a terminal (and rich), and a line for each stage and each
    batch of an attack."""

    def __init__(self) -> None:
        self.bar = None
        self.task: Any = None
        self.stage = ""

    def __enter__(self) -> Watch:
        if sys.stderr.isatty():
            try:
                from rich.console import Console
                from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            except ImportError:
                return self
            columns = (TextColumn("{task.description:40}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=Console(stderr=True), transient=False)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, event: Any) -> None:
        name = f"attack: {event.metrics['attack']}" if event.kind == "attacked" else event.stage
        if event.kind == "attacked" and event.metrics["attack"] == "glance":
            return self.say(f"a first look: {_judged(event.metrics)}")
        if event.kind in ("batch", "attacked"):
            if name != self.stage:
                self.stage = name
                if self.bar is not None:
                    self.task = self.bar.add_task(name, total=event.of)
            if self.bar is not None:
                self.bar.update(self.task, completed=event.step)
        text = {
            "restored": f"{name}: taken from the store",
            "resumed": f"{name}: goes on after {event.step} epochs",
            "finished": f"{name}: {event.metrics.get('seconds', 0):.0f} s",
        }.get(event.kind)
        if event.kind == "pruned" and event.step == event.of and "clean" in event.metrics:
            m = event.metrics
            text = (
                f"{name}: {m['units']:.1%} removed; right after the cut clean {m['clean']:.1%}, PGD {m['pgd']:.1%} (validation)"
            )
            if m["collapsed"]:
                text += f"; collapsed to one unit: {', '.join(m['collapsed'])}"
        if event.kind == "attacked" and event.step == event.of:
            text = f"{name}: {event.metrics['robust']:.1%} of {event.metrics['n']} stand"
        elif event.kind == "attacked":
            text = f"{name}: {event.step} of {event.of} points, {_judged(event.metrics)}"
        if text:
            self.say(text)

    def say(self, text: str) -> None:
        """A line above the bar."""
        (self.bar.console.print if self.bar is not None else note)(text)

    def follow(self, stream: Any) -> Any:
        """Consume a generator of events and return what it returns."""
        while True:
            try:
                self(next(stream))
            except StopIteration as end:
                return end.value


class Fetching:
    """Shows a download on a terminal: how much of how much, on one line."""

    def __init__(self) -> None:
        self.shown = ""

    def __enter__(self) -> Fetching:
        return self

    def __call__(self, done: int, total: int | None) -> None:
        text = f"fetched {done / 1e6:.0f}" + (f" of {total / 1e6:.0f} MB" if total else " MB")
        if text != self.shown and sys.stderr.isatty():
            print(f"\r{text}", end="", file=sys.stderr, flush=True)
            self.shown = text

    def __exit__(self, *_: object) -> None:
        if self.shown:
            note("")


def _judged(m: Any) -> str:
    return f"robust at most about {m['estimate']:.1%} [{m['low']:.1%}, {m['high']:.1%}], judged from {m['seen']} points"


# --- from functions to a command line -------------------------------------------------------------------------------------------


def parameters(function: Callable) -> Iterable[tuple[inspect.Parameter, Any, str]]:
    """(parameter, type, help) of a command: its types are written as Annotated[type, "help"]."""
    hints = get_type_hints(function, include_extras=True)
    for p in inspect.signature(function).parameters.values():
        kind, text = get_args(hints[p.name]) if get_origin(hints[p.name]) is Annotated else (hints[p.name], "")
        yield p, kind, text


def call(argv: list[str]) -> int:
    """Parse and run; returns the exit status. Raises Invalid for what the command itself refuses."""
    sys.path.append(os.getcwd())  # so that package:factory finds a module beside the caller
    try:
        import typer
    except ImportError:
        return _with_argparse(argv)
    app = typer.Typer(
        name="apnb", help=inspect.cleandoc(_HELP), no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
    )
    for name, function in COMMANDS.items():
        app.command(name)(_for_typer(function, typer))
    for group, (text, commands) in GROUPS.items():
        inner = typer.Typer(help=text, no_args_is_help=True)
        for name, function in commands.items():
            inner.command(name)(_for_typer(function, typer))
        app.add_typer(inner, name=group)
    return _run(app, argv)


_HELP = """Adversarial pruning, from a recipe to a robustness-sparsity curve.

The interactive companion to the survey of Piras et al. (arXiv 2409.01249)."""


def _run(app: Any, argv: list[str]) -> int:
    """Run a typer app so that its own usage errors become sentences too, and ours reach the caller."""
    import typer.main

    command = typer.main.get_command(app)
    try:
        result = command.main(args=argv, prog_name="apnb", standalone_mode=False)
    except Exception as error:
        if hasattr(error, "format_message"):
            path = getattr(getattr(error, "ctx", None), "command_path", "apnb")
            raise Invalid(f"{error.format_message().rstrip('.')}; see '{path} --help'") from None
        if isinstance(error, OSError):
            raise
        if type(error).__name__ == "Abort" or getattr(error, "exit_code", None) == 130:
            raise KeyboardInterrupt from None
        if hasattr(error, "exit_code"):
            return int(error.exit_code)
        raise
    if result == 130:
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def _for_typer(function: Callable, typer: Any) -> Callable:
    """The same function with a signature that typer reads: required parameters are arguments, others options."""
    changed = []
    for p, kind, text in parameters(function):
        positional = p.default is p.empty or kind == (list[str] | None)
        names = [] if positional or not p.name.endswith("_") else [f"--{p.name[:-1]}"]
        info = typer.Argument(help=text, show_default=False) if positional else typer.Option(*names, help=text)
        changed.append(p.replace(annotation=Annotated[kind, info], kind=p.KEYWORD_ONLY))

    def command(**options: Any) -> int:
        return function(**options)

    command.__signature__ = inspect.Signature(changed, return_annotation=int)
    command.__doc__ = function.__doc__
    command.__annotations__ = {p.name: p.annotation for p in changed} | {"return": int}
    return command


def _with_argparse(argv: list[str]) -> int:
    """The command line without typer: the same functions and options."""
    import argparse

    parser = argparse.ArgumentParser(prog="apnb", description=inspect.cleandoc(_HELP))
    sub = parser.add_subparsers(dest="command", required=True)
    flat = {**COMMANDS, **{f"{group}-{name}": f for group, (_, commands) in GROUPS.items() for name, f in commands.items()}}
    for name, function in flat.items():
        command = sub.add_parser(name, help=inspect.cleandoc(function.__doc__ or ""))
        command.set_defaults(function=function)
        for p, kind, text in parameters(function):
            base = next((t for t in (bool, int, float, Path, str) if t in (kind, *get_args(kind))), str)
            flag = "--" + p.name.strip("_").replace("_", "-")
            text = text.replace("%", "%%")
            if kind in (list[str], list[str] | None):
                command.add_argument(p.name, nargs="+" if p.default is p.empty else "*", help=text)
            elif p.default is p.empty:
                command.add_argument(p.name, type=base, help=text)
            elif base is bool:
                command.add_argument(flag, dest=p.name, action=argparse.BooleanOptionalAction, default=p.default, help=text)
            else:
                command.add_argument(flag, dest=p.name, type=base, default=p.default, help=text)
    if len(argv) > 1 and argv[0] in GROUPS:
        argv = [f"{argv[0]}-{argv[1]}", *argv[2:]]
    options = vars(parser.parse_args(argv))
    options.pop("command")
    return options.pop("function")(**options)
