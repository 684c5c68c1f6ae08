"""How robust is it? Attacks, with every success checked again in full precision, and an interval beside every figure."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from apnb import networks
from apnb.attacks import autoattack as aa
from apnb.attacks.fmn import Configuration, fmn
from apnb.attacks.hofmn import search, survey
from apnb.attacks.pgd import ascend, pgd
from apnb.chance import generator
from apnb.copies import PRECISIONS, exact, fast, full_precision
from apnb.curves import Distances
from apnb.datasets import SUBSETS, Dataset, points
from apnb.datasets import subset as draw_subset
from apnb.devices import pick_device
from apnb.diagnostics import Finding, diagnose
from apnb.errors import Invalid, choose
from apnb.events import Event
from apnb.store import Damaged, digest, load_tree, save_tree
from apnb.verdicts import GLANCE, Counted, Work, check_network, verify, wilson

if TYPE_CHECKING:
    import pandas as pd

MODES = {"standard": aa.STANDARD, "lite": aa.LITE, "pgd": ("pgd",)}
"""standard: AutoAttack. lite: its first two attacks, an upper bound of AutoAttack. pgd: PGD-50, a quick look, a looser bound."""
NAMES = {"standard": "AutoAttack", "lite": "APGD-CE + APGD-T", "pgd": "PGD-50"}
"""What the modes are called where people read."""
DISTANCES = ("none", "fmn", "hofmn")
"""Whether smallest perturbations are looked for: no, by FMN with several losses, or by HO-FMN besides."""
TIE = 1e-5
"""Two logits closer than this are a tie, which another machine may decide otherwise."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Verdicts on n test images. Robust accuracy is an upper bound, found by these attacks.

    Attributes:
        index: int64 (n,), positions in the test split, rising. label, prediction: int64 (n,), the latter on clean images.
        broken_by: for each point the attack's name, "clean" if it was wrong before any attack, "" if it stands.
        norm: float32 (n,), max |x' - x| of the image that counts; 0 where the clean image is wrong, inf where the point stands.
        margin: float32 (n,), logit of the label minus the best other one, on the image that counts, the clean one if none does.
        forwards: float32 (n,), images that attacks passed through the network for this point: those of its batches, shared out
            evenly. What checks their successes is not counted.
        spent: float32 (n,), seconds of the attacks on its batches, shared out evenly.
        distances: float32 (n,), smallest verified max |x' - x| over everything that was run; 0 and inf as in `norm`.
        distance_by: who found them, as in `broken_by`; "" where nobody did. searched: one of `DISTANCES`.
        attacks, eps, precision, engine, batch, subset, seed: what was asked for. ran: the attacks that it came to.
        data, fingerprint: name and SHA-256 of the data set.
        examples: of up to 32 broken points: x, x_adv (k, C, H, W), label, before, after (k,), index.
        adversarial: float32 (n, C, H, W), the images that count, the clean one elsewhere; None unless it was asked for.
        warnings: sentences. diagnostics: is it believable. seconds: wall-clock time.
    """

    index: Tensor
    label: Tensor
    prediction: Tensor
    broken_by: tuple[str, ...]
    norm: Tensor
    margin: Tensor
    forwards: Tensor
    spent: Tensor
    distances: Tensor
    attacks: str
    eps: float
    subset: str
    seed: int
    data: str = ""
    fingerprint: str = ""
    ran: tuple[str, ...] = ()
    searched: str = "none"
    distance_by: tuple[str, ...] = ()
    precision: str = "fp32"
    engine: str = "apnb"
    batch: int = 0
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    diagnostics: tuple[Finding, ...] = ()
    examples: dict[str, Tensor] = field(default_factory=dict, repr=False)
    adversarial: Tensor | None = field(default=None, repr=False)

    @property
    def n(self) -> int:
        """Points evaluated."""
        return len(self.label)

    @property
    def robust(self) -> Tensor:
        """bool (n,), classified correctly and not broken by any attack; a broken point was verified."""
        return torch.tensor([by == "" for by in self.broken_by], dtype=torch.bool)

    @property
    def clean_accuracy(self) -> float:
        """Share classified correctly, in [0, 1]."""
        return float((self.prediction == self.label).double().mean())

    @property
    def robust_accuracy(self) -> float:
        """Share that stands after all attacks, in [0, 1]; never above `clean_accuracy`."""
        return float(self.robust.double().mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of `robust_accuracy`."""
        return wilson(int(self.robust.sum()), self.n)

    @property
    def clean_interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of `clean_accuracy`."""
        return wilson(int((self.prediction == self.label).sum()), self.n)

    @property
    def borderline(self) -> Tensor:
        """int64 (k,), positions in the test split of points whose verdict hangs on a tie of two logits (`TIE`)."""
        return self.index[self.margin.abs() <= TIE]

    @property
    def distances_by(self) -> str:
        """How the distances were found, in words."""
        parts = [f"the images of {NAMES[self.attacks]}"]
        parts += ["FAB's nearest ones"] if "fab-t" in self.ran and self.engine == "apnb" else []
        parts += {"none": [], "fmn": ["FMN with several losses"], "hofmn": ["FMN with several losses", "HO-FMN"]}[self.searched]
        if self.searched == "none":
            return " and ".join(parts) + "; smaller perturbations were not looked for"
        return "point-wise minimum over " + ", ".join(parts[:-1]) + " and " + parts[-1]

    def curve(self, name: str = "") -> Distances:
        """The `distances` as a security curve, for `apnb.plots.security_curve` and for a file (`apnb.curves.write`)."""
        return Distances(
            value=self.distances, name=name or "evaluated here", method=self.distances_by, index=self.index, label=self.label,
            data=self.data, eps=self.eps,
        )  # fmt: skip

    def frame(self) -> pd.DataFrame:
        """One row a point: index, label, prediction, robust, broken_by, norm, margin, distance, distance_by, forwards, seconds."""
        import pandas as pd

        return pd.DataFrame(
            {
                "index": self.index.numpy(),
                "label": self.label.numpy(),
                "prediction": self.prediction.numpy(),
                "robust": self.robust.numpy(),
                "broken_by": list(self.broken_by),
                "norm": self.norm.numpy(),
                "margin": self.margin.numpy(),
                "distance": self.distances.numpy(),
                "distance_by": list(self.distance_by),
                "forwards": self.forwards.numpy(),
                "seconds": self.spent.numpy(),
            }
        )

    def summary(self) -> dict[str, Any]:
        """Plain numbers for a file or a table."""
        low, high = self.interval
        return {
            "clean": self.clean_accuracy,
            "robust": self.robust_accuracy,
            "low": low,
            "high": high,
            "n": self.n,
            "data": self.data,
            "attacks": self.attacks,
            "engine": self.engine,
            "eps": self.eps,
            "precision": self.precision,
            "subset": self.subset,
            "seed": self.seed,
            "seconds": self.seconds,
            "searched": self.searched,
            "distances": self.distances_by,
            "borderline": self.borderline.tolist(),
            "warnings": list(self.warnings),
            "diagnostics": [dataclasses.asdict(f) for f in self.diagnostics],
        }

    def __str__(self) -> str:
        low, high = self.interval
        how = NAMES[self.attacks] if self.ran == MODES[self.attacks] else " + ".join(self.ran)
        how += ", attacked in bf16" if self.precision == "bf16" else ""
        return (
            f"clean {self.clean_accuracy:.1%}, robust at most {self.robust_accuracy:.1%} [{low:.1%}, {high:.1%}]: an upper bound, "
            f"found by {how} (eps {self.eps:.4g}, n = {self.n})"
        )

    def to_tree(self) -> dict:
        """For a file: `from_tree` takes it back."""
        told = [dataclasses.asdict(f) for f in self.diagnostics]
        lists = {name: list(getattr(self, name)) for name in ("broken_by", "distance_by", "ran", "warnings")}
        return {**vars(self), **lists, "diagnostics": told}

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """What ``evaluate(..., save=path)`` left in a file.

        Raises:
            Invalid: no such file, one that is damaged or no evaluation, or an evaluation that is not finished.
        """
        tree = _read(Path(path))
        if tree["report"] is None:
            raise Invalid(f"the evaluation in {path} is not finished; call evaluate with the same arguments and save to go on")
        return cls.from_tree(tree["report"])

    @classmethod
    def from_tree(cls, tree: dict) -> Evaluation:
        """What `to_tree` gave."""
        try:
            tuples = {name: tuple(tree[name]) for name in ("broken_by", "distance_by", "ran", "warnings")}
            return cls(**{**tree, **tuples, "diagnostics": tuple(Finding(**f) for f in tree["diagnostics"])})
        except (KeyError, TypeError) as error:
            raise Damaged(f"this is no evaluation of this version of apnb ({error}); evaluate again") from None


def default_batch(device: torch.device) -> int:
    """Images attacked together when nobody says how many."""
    return 128 if device.type == "cpu" else 512


def check_points(n: int | None, dataset: Dataset) -> None:
    """Refuse a number of points that the test split cannot give."""
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= len(dataset.test)):
        raise Invalid(
            f"n = {n!r} points asked for, expected 1 to {len(dataset.test)}, the test images of {dataset.name}, or None for all"
        )


def evaluate_stream(
    model: nn.Module,
    data: Any,
    *,
    eps: float | None = None,
    norm: str = "linf",
    n: int | None = None,
    attacks: str = "standard",
    distances: bool | str = False,
    subset: str = "stratified",
    seed: int = 0,
    batch: int | None = None,
    device: str | torch.device | None = None,
    precision: str = "fp32",
    engine: str = "apnb",
    adversarial: bool = False,
    diagnostics: bool = True,
    parent: nn.Module | None = None,
    save: str | Path | None = None,
    key: str | None = None,
) -> Iterator[Event]:
    """`evaluate` as a stream: an `Attacked` event after every batch; the generator returns the `Evaluation`.

    Metrics of an event: ``attack``; ``robust``, the share of all ``n`` points that still stand; ``estimate``, ``low`` and ``high``,
    robust accuracy and Wilson's interval judged from the ``seen`` points that were attacked at least once. The first event, "glance",
    comes from one gradient step on a few images and is no verdict.
    """
    if not isinstance(model, nn.Module):
        raise Invalid(f"evaluate takes a torch.nn.Module, got {type(model).__name__}; of a run give run.model")
    if str(norm).lower() != "linf":
        raise Invalid(f"norm {norm!r} cannot be evaluated: attacks, distances and the benchmark here are all in 'linf'")
    attacks, subset = choose(attacks, MODES, "attack mode"), choose(subset, SUBSETS, "way to draw points")
    precision, engine = choose(precision, PRECISIONS, "precision"), choose(engine, aa.ENGINES, "attack engine")
    distances = choose({"False": "none", "True": "fmn"}.get(str(distances), distances), DISTANCES, "kind of distances")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise Invalid(f"the seed is {seed!r}, expected a whole number from 0 to 2**63 - 1")
    if save is not None and not isinstance(save, str | Path):
        raise Invalid(f"save is {save!r}, expected the path of a file")
    dataset = points(data, eps=eps)
    device = pick_device(device if device is not None else next((p.device for p in model.parameters()), "cpu"))
    check_points(n, dataset)
    batch = default_batch(device) if batch is None else batch
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise Invalid(f"the batch is {batch!r} images, expected a whole number of at least 1")
    index = torch.arange(len(dataset.test)) if n is None else draw_subset(dataset.test, n, how=subset, seed=seed)
    order = torch.arange(len(index)) if subset == "first" else torch.randperm(len(index), generator=generator("order", seed))
    x, y = dataset.test.images(index).to(device), dataset.test.y[index].to(device)
    net = exact(model, device)
    check_network(net, x, dataset.classes)
    dense = None if parent is None else _parent(parent, x, dataset.classes, device)
    tuning = _tuning_points(dataset, index, seed) if distances == "hofmn" else None
    work = Work(net, x, y, order, eps=dataset.eps, batch=batch, keep=adversarial, notes=_told(model))
    mode = {
        "attacks": attacks,
        "eps": dataset.eps,
        "precision": precision,
        "subset": "all" if n is None else subset,
        "seed": seed,
    }
    if save is not None:
        options = {**mode, "n": n, "order": subset, "batch": batch, "engine": engine, "distances": distances, "adversarial": adversarial,
                   "diagnostics": diagnostics, "parent": None if parent is None else networks.identity(parent)}  # fmt: skip
        key = key or _key(model, dataset, options)
        stored = _stored(Path(save), key)
        if stored and stored["report"] is not None:
            return Evaluation.from_tree(stored["report"])
        if stored:
            work.resume(stored["state"])
        work.save = lambda: save_tree(Path(save), {"key": key, "report": None, "state": work.state})
    work.fast = Counted(fast(net, x[order[:GLANCE]], precision))
    work.near = work.fast if precision == "fp32" else Counted(fast(net, x[order[:GLANCE]]))
    inside = Counted(net)
    work.counted = [*dict.fromkeys((work.fast, work.near, inside))]
    yield from _glance(work)

    state, classes = work.state, work.fast(x[:1]).shape[1]
    chosen, notes = aa.attacks_for(MODES[attacks], classes)
    state["notes"] += [note for note in notes if note not in state["notes"]]
    attackers = _attackers(work, inside, attacks, engine, classes, seed)
    configurations = partial(_configurations, work, distances, tuning, classes, seed)
    for i, step in enumerate(_steps(work, chosen, attackers, configurations)):
        if i >= state["step"]:
            yield from step
    state["notes"] += _noticed(work, attacks)
    found = ()
    if diagnostics:
        try:
            found = diagnose(net, x, y, eps=dataset.eps, seed=seed, broken_by=state["broken_by"], attacks=chosen, parent=dense)
        except torch.cuda.OutOfMemoryError:
            state["notes"].append("the GPU ran out of memory in the diagnostics, which were left out")
    report = Evaluation(
        index=index, label=y.cpu(), **{k: state[k] for k in ("prediction", "norm", "margin", "forwards", "spent", "distances")},
        broken_by=tuple(state["broken_by"]), **mode, data=dataset.name, fingerprint=dataset.fingerprint, ran=chosen, searched=distances,
        distance_by=tuple(state["distance_by"]), engine=engine, batch=state["batch"],
        seconds=work.before + time.perf_counter() - work.started, warnings=tuple(state["notes"]), diagnostics=found,
        examples=work.examples(index), adversarial=state["adversarial"],
    )  # fmt: skip
    if save is not None:
        save_tree(Path(save), {"key": key, "report": report.to_tree(), "state": None})
    return report


def _attackers(
    work: Work, inside: Counted, attacks: str, engine: str, classes: int, seed: int
) -> Callable[[nn.Module], Mapping[str, aa.Attack]]:
    """Gives the attacks on the fast copy, or, where it was mistaken, on the network itself (``inside`` counts its images)."""

    @cache
    def made(target: nn.Module, room: int | None) -> Mapping[str, aa.Attack]:
        if attacks == "pgd":
            return {"pgd": lambda x, y: (_pgd50(target, x, y, work.eps, seed, work.state["done"]), None)}
        return aa.ENGINES[engine](
            target, eps=work.eps, classes=classes, seed=seed, device=work.x.device, notes=work.state["notes"], room=room
        )

    def attackers(net: nn.Module) -> Mapping[str, aa.Attack]:
        return made(work.fast if net is work.fast else inside, work.state["batch"] if work.state["shrunk"] else None)

    return attackers


def _steps(
    work: Work, attacks: Sequence[str], attackers: Callable, configurations: Callable[[], Mapping[str, Configuration]]
) -> Iterator[Iterator[Event]]:
    """The clean images, each attack on what stands, and each way to look for the smallest perturbations."""
    yield work.each("clean", lambda: work.order, work.look, first=True)
    for i, name in enumerate(attacks):
        yield work.each(name, work.standing, partial(work.attack, name, attackers), first=i == 0)
    for name, c in configurations().items():
        yield work.each(name, work.right, partial(work.measure, name, partial(_nearest, configuration=c)))


def _told(model: nn.Module) -> list[str]:
    """What to say of a network before anything is measured."""
    if not any(isinstance(m, nn.modules.dropout._DropoutNd) and m.training for m in model.modules()):
        return []
    return ["the network was given in training mode, with dropout: a copy of it was evaluated in evaluation mode"]


def _parent(parent: Any, x: Tensor, classes: int, device: torch.device) -> nn.Module:
    """The dense network, ready to be attacked."""
    if not isinstance(parent, nn.Module):
        raise Invalid(f"the parent is a {type(parent).__name__}, expected the dense network, a torch.nn.Module")
    dense = exact(parent, device)
    try:
        check_network(dense, x, classes)
    except Invalid as error:
        raise Invalid(f"the parent cannot be used: {error}") from None
    return dense


def _key(model: nn.Module, dataset: Dataset, options: dict) -> str:
    """What an evaluation kept in a file is an evaluation of."""
    network = networks.identity(model, channels=dataset.channels, classes=dataset.classes)
    return digest({"network": network, "data": dataset.fingerprint, "attacked": list(MODES[options["attacks"]]), **options})


def _stored(path: Path, key: str) -> dict | None:
    """What a file holds of the evaluation that is asked for; None if there is no such file."""
    if not path.exists():
        return None
    tree = _read(path)
    if tree["key"] != key:
        raise Invalid(
            f"{path} holds an evaluation of another network, other images or other options; give another file, or remove this one"
        )
    return tree


def _read(path: Path) -> dict:
    tree = load_tree(path)
    if not isinstance(tree, dict) or tree.keys() != {"key", "report", "state"}:
        raise Invalid(f"{path} holds something else than an evaluation; give another file")
    return tree


def _glance(work: Work) -> Iterator[Event]:
    """A first figure: one signed gradient step of size eps on a few images (Goodfellow et al. 2015). It changes no verdict."""
    at = work.order[:GLANCE]
    x, y = work.x[at], work.y[at]
    try:
        with full_precision():
            x_adv = ascend(work.fast, x, y, x, eps=work.eps, steps=1, step=work.eps)
            with torch.no_grad():
                right = work.net(x).argmax(1) == y
        stands = right & ~verify(work.net, x, y, x_adv, work.eps)
    except torch.cuda.OutOfMemoryError:
        return
    except RuntimeError as error:
        raise Invalid(
            f"the network's backward pass fails ({str(error).splitlines()[0]}), and AutoAttack needs gradients with respect to the "
            "images; replace what cannot be differentiated"
        ) from None
    yield work.event("glance", len(at), len(at), robust=stands.cpu())


def _pgd50(net: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int, done: int) -> Tensor:
    """PGD-50 with random numbers of its own for each batch, so that a resumed evaluation draws the same."""
    return pgd(net, x, y, eps=eps, steps=50, generator=generator(seed, "pgd", done, device=x.device))


def _nearest(net: nn.Module, x: Tensor, y: Tensor, configuration: Configuration) -> Tensor:
    return fmn(net, x, y, configuration)[0]


def _configurations(
    work: Work, distances: str, tuning: tuple[Tensor, Tensor] | None, classes: int, seed: int
) -> dict[str, Configuration]:
    """FMN's configurations by name: none, one for each loss, or besides these the ones that a search finds on other points."""
    if distances == "none":
        return {}
    losses = ("dlr", "ce", "ll") if classes > 2 else ("ce", "ll")
    found = {f"FMN {c.name}": c for c in (Configuration(loss=loss) for loss in losses)}
    if tuning is not None:
        tuned = work.state["tuned"]
        x, y = (t.to(work.x.device) for t in tuning)
        for loss in losses[len(tuned) : 2]:
            with full_precision():
                best, _ = search(work.near, x, y, loss=loss, seed=seed)
            tuned.append(dataclasses.asdict(dataclasses.replace(best, steps=Configuration().steps)))
        found |= {f"HO-FMN {c.name}": c for c in (Configuration(**t) for t in tuned)}
    return found


def _tuning_points(dataset: Dataset, index: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Up to 256 points that are not evaluated: other test images, else validation images."""
    if importlib.util.find_spec("optuna") is None:
        raise Invalid("distances='hofmn' needs the package optuna; install it with: pip install optuna")
    left = torch.ones(len(dataset.test), dtype=torch.bool)
    left[index] = False
    split = dataset.test.at(left.nonzero().squeeze(1)) if int(left.sum()) >= 64 else dataset.validation
    if split is dataset.test:
        raise Invalid(
            "distances='hofmn' tunes on points that are not evaluated, and all were asked for; leave at least 64 with n="
        )
    some = torch.randperm(len(split), generator=generator("tuning", seed))[:256]
    return split.images(some), split.y[some]


def _noticed(work: Work, attacks: str) -> list[str]:
    """What the verdicts themselves have to say."""
    s, notes = work.state, []
    if s["doubted"]:
        notes.append(
            f"{s['doubted']} candidates of the fast copy did not stand in full precision; the network itself was attacked there again"
        )
    nearer = int((work.stands & (s["distances"] <= work.eps)).sum())
    if nearer:
        notes.append(
            f"{nearer} points that {NAMES[attacks]} left standing have a smaller distance than eps: other attacks found it, and the "
            "curve lies below robust accuracy there"
        )
    ties = int((s["margin"].abs() <= TIE).sum())
    if ties:
        notes.append(f"{ties} verdicts hang on a tie of two logits within {TIE:g}; see Evaluation.borderline")
    return notes


def evaluate(model: nn.Module, data: Any, *, progress: Callable[[Event], None] | None = None, **options: Any) -> Evaluation:
    """Attack a network and count what stands.

    Args:
        model: images (N, C, H, W) in [0, 1] -> logits (N, classes); evaluated as a frozen copy in evaluation mode, float32.
        data: "digits", "cifar10", "svhn", "folder:PATH", "npz:PATH", a `Dataset`, or a pair (x, y) of arrays,
            all of which is then attacked.
        eps: radius of the ball (default: the data set's own, 8/255 for colour images). norm: "linf", the only one.
        n: number of test images, None for all; subset: how they are drawn: stratified, random or first. seed: of the draw and
            of the attacks. "first" keeps the order of the data: verdicts are then those of the AutoAttack package, batch by batch.
        attacks: standard (AutoAttack), lite (APGD-CE and APGD-T, an upper bound of AutoAttack) or pgd (PGD-50, a quick look).
        distances: False; True: FMN with three losses looks for the smallest perturbation of each point; "hofmn": tuned on
            other points besides.
        precision: of the attacks: fp32, or bf16 (body in bfloat16, first and last layer in float32). Verdicts: always fp32.
        engine: who attacks: apnb or pyautoattack, the authors' own package; verdicts are the same.
        batch: images attacked together; verdicts depend on it a little, since attacks draw random numbers for a batch.
        device: where to compute (default: where the model is).
        adversarial: keep every adversarial image, not only 32 examples.
        diagnostics: look whether the result is believable, with the dense ``parent`` of a pruned network if one is given.
        save: a file that holds the evaluation after every batch; the same call goes on from it, or returns what it holds.
        progress: a function called with every event.

    Returns:
        The `Evaluation`: verdicts, accuracies with n and a Wilson interval, distances, diagnostics.

    Raises:
        Invalid: images outside [0, 1], no logits, a randomised network, too few points.

    Source: Croce and Hein 2020; Pintor et al. 2021 (FMN); checks as in the README, "What a verdict is".
    """
    stream = evaluate_stream(model, data, **options)
    while True:
        try:
            event = next(stream)
        except StopIteration as end:
            return end.value
        if progress is not None:
            progress(event)


# --- two models -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Two evaluations on the same points, paired.

    Attributes:
        both, first_only, second_only, neither: points that stand in both, in one, in none. p: exact two-sided McNemar test of
            "the two are equally robust", a probability.
    """

    both: int
    first_only: int
    second_only: int
    neither: int
    p: float

    @property
    def n(self) -> int:
        """Points that both were attacked on."""
        return self.both + self.first_only + self.second_only + self.neither

    @property
    def difference(self) -> float:
        """Robust accuracy of the first minus that of the second, in [-1, 1]."""
        return (self.first_only - self.second_only) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference (Agresti and Min 2005: Wald's with half a point added to each cell)."""
        n, d, off = self.n + 2, self.first_only - self.second_only, self.first_only + self.second_only + 1
        half = 1.959964 * math.sqrt(off - d * d / n) / n
        return max(-1.0, d / n - half), min(1.0, d / n + half)

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"robust accuracy differs by {self.difference:+.1%} [{low:+.1%}, {high:+.1%}] on the same {self.n} points: "
            f"{self.first_only} stand only in the first, {self.second_only} only in the second (McNemar p = {self.p:.2g})"
        )


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """Is one network more robust than the other? Judged from the points that both were attacked on.

    Raises:
        Invalid: other data, eps or attacks, or no point in common.

    Source: McNemar 1947, exact form.
    """
    from scipy.stats import binomtest

    for what in ("data", "eps", "attacks"):
        a, b = getattr(first, what), getattr(second, what)
        if a != b:
            raise Invalid(f"two evaluations with different {what} cannot be compared: {a!r} and {b!r}")
    if first.fingerprint != second.fingerprint:
        raise Invalid(f"the two evaluations are of different images, both named {first.data!r}, and cannot be compared")
    shared = sorted(set(first.index.tolist()) & set(second.index.tolist()))
    if not shared:
        raise Invalid("the two evaluations have no point in common; draw both with the same n, subset and seed")
    stands = [dict(zip(e.index.tolist(), e.robust.tolist(), strict=True)) for e in (first, second)]
    pairs = [(stands[0][i], stands[1][i]) for i in shared]
    only = pairs.count((True, False)), pairs.count((False, True))
    p = float(binomtest(only[0], sum(only)).pvalue) if sum(only) else 1.0
    return Comparison(pairs.count((True, True)), *only, pairs.count((False, False)), p)


# --- the survey's own way ---------------------------------------------------------------------------------------------------------


def survey_protocol(
    model: nn.Module, data: Any, *, seed: int = 0, device: str | torch.device | None = None
) -> tuple[Distances, list[str]]:
    """HO-FMN as the survey ran it, for numbers that can be laid beside the published ones.

    128 fixed points of the test split, tuned on its first 64, radius 8/255, points never broken counted as distance 0.

    Returns:
        The distances, and sentences that say how they differ from what `evaluate` finds.

    Raises:
        Invalid: fewer test images than the protocol takes its points from, or a network that cannot be evaluated.
    """
    if not isinstance(model, nn.Module):
        raise Invalid(f"survey_protocol takes a torch.nn.Module, got {type(model).__name__}; of a run give run.model")
    dataset = points(data)
    device = pick_device(device if device is not None else next((p.device for p in model.parameters()), "cpu"))
    net, x, y = exact(model, device), dataset.test.images().to(device), dataset.test.y.to(device)
    check_network(net, x, dataset.classes)
    with full_precision():
        distance, index, configuration, notes = survey(net, x, y, seed=seed)
    index = index.cpu()
    found = Distances(
        value=distance.cpu(), name="survey's protocol", method=f"HO-FMN by the survey's protocol, {configuration.name}", index=index,
        label=dataset.test.y[index], data=dataset.name, eps=8 / 255,
    )  # fmt: skip
    return found, notes
