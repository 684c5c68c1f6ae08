"""A recipe: one cell of the survey's taxonomy with its options, a sparsity and a budget. Everything needed to run it.

Invalid combinations are refused when the recipe is made, with a sentence that says why.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from numbers import Real
from typing import Any, NamedTuple

from apnb import taxonomy
from apnb.errors import Invalid, choose, nearest
from apnb.presets import LOSSES, PRESETS, Preset

PIPELINES = ("after", "before", "during")
SCHEDULES = ("one_shot", "iterative")
STRUCTURES = ("weights", "filters", "channels", "kernels")
LOCALITIES = ("local", "global")
CRITERIA = ("lwm", "relwm", "solwm", "lis", "hgm", "bcs")
CONTROL = "random"
RAMPS = ("linear", "cubic")
TRAINABLE = (*LOSSES, "kd")
ADVERSARIAL = LOSSES[1:]
VARIANTS = {"relwm": ("l1", "group_lasso"), "lis": ("learned", "saliency")}
STAGES = {
    "after": ("pretraining", "pruning_step", "finetuning"),
    "before": ("pruning_step", "training_step"),
    "during": ("training_step",),
}
"""Stages of a pipeline, each with an objective of its own. The survey's ``after`` names pretraining and finetuning only; several
of its methods search for the mask with an objective in between, which is ``pruning_step`` here too."""


class Cell(NamedTuple):
    """A cell of the taxonomy."""

    pipeline: str
    schedule: str
    structure: str
    locality: str
    criterion: str


def grid() -> list[Cell]:
    """Every valid cell: 240 combinations of five criteria, and the two of BCS (during, one_shot, weights, local or global)."""
    cells = [
        Cell(p, s, u, l, c)
        for p in PIPELINES
        for s in SCHEDULES
        for u in STRUCTURES
        for l in LOCALITIES
        for c in CRITERIA
        if c != "bcs" or (p, s, u) == ("during", "one_shot", "weights")
    ]
    return cells


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much work a recipe may cost, and the numbers that go with it.

    Attributes:
        name: for people; a surveyed method takes its own constants by it (those of quick for any other name).
        epochs: pretraining, or the one training of ``before`` and ``during``.
        search_epochs: training while a mask is searched; finetune_epochs: after the cut. Both in all, shared by the rounds.
        batch: images in a training batch. images: training images used, None for all.
        lr, finetune_lr: peak learning rates. weight_decay: of every training stage.
        attack_steps: PGD steps of the training attack.
        rounds: of an iterative schedule in ``after`` and ``before``; updates: of the masks in ``during``.
        strength: of RELWM's penalty. rho, rho_growth, dual_period: of SOLWM's ADMM, the period in epochs.
        points: test images evaluated, None for all. check: validation images on which accuracy is measured after each cut.
    """

    name: str = "custom"
    epochs: int = 40
    search_epochs: int = 10
    finetune_epochs: int = 15
    batch: int = 128
    images: int | None = None
    lr: float = 0.1
    finetune_lr: float = 0.05
    weight_decay: float = 5e-4
    attack_steps: int = 7
    rounds: int = 3
    updates: int = 100
    strength: float = 1e-4
    rho: float = 1e-3
    rho_growth: float = 1.3
    dual_period: int = 2
    points: int | None = 128
    check: int = 200

    def __post_init__(self) -> None:
        whole = (
            "epochs",
            "search_epochs",
            "finetune_epochs",
            "batch",
            "attack_steps",
            "rounds",
            "updates",
            "dual_period",
            "check",
        )
        for name in whole:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < (0 if name == "check" else 1):
                raise Invalid(f"budget: {name} must be a whole number of at least {0 if name == 'check' else 1}, got {value!r}")
        for name in ("images", "points"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise Invalid(f"budget: {name} must be a whole number of at least 1, or None for all, got {value!r}")
        for name in ("lr", "finetune_lr", "weight_decay", "strength", "rho", "rho_growth"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not (0 <= value < math.inf):
                raise Invalid(f"budget: {name} must be a number of at least 0, got {value!r}")

    def training(self) -> dict[str, Any]:
        """The numbers that decide what a stage computes: all but the name and what is only measured."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in ("name", "points", "check")}


_SMALL = {
    "tiny": Budget(name="tiny", epochs=2, search_epochs=1, finetune_epochs=1, batch=64, images=128, attack_steps=1,
                   rounds=2, updates=2, dual_period=1, points=16, check=32),
    "quick": Budget(name="quick"),
    "standard": Budget(name="standard", epochs=100, search_epochs=30, finetune_epochs=40, attack_steps=10, rounds=5,
                       updates=200, points=500),
    "paper": Budget(name="paper", epochs=200, search_epochs=50, finetune_epochs=100, attack_steps=10, rounds=10,
                    updates=500, points=None),
}  # fmt: skip
_LARGE = {
    "tiny": Budget(name="tiny", epochs=1, search_epochs=1, finetune_epochs=1, batch=32, images=64, attack_steps=1,
                   rounds=2, updates=2, dual_period=1, points=4, check=8),
    "quick": Budget(name="quick", epochs=2, search_epochs=1, finetune_epochs=1, images=1000, attack_steps=2, rounds=2,
                    updates=8, dual_period=1, points=16, check=64),
    "standard": Budget(name="standard", epochs=30, search_epochs=10, finetune_epochs=15, attack_steps=10, rounds=5,
                       updates=1000, finetune_lr=0.02, points=1000, check=500),
    "paper": Budget(name="paper", epochs=100, search_epochs=20, finetune_epochs=100, attack_steps=10, rounds=10,
                    updates=4000, finetune_lr=0.01, points=10000, check=1000),
}  # fmt: skip
BUDGETS = tuple(_SMALL)


def budget(which: str | Budget, pixels: int = 64) -> Budget:
    """The numbers behind a budget's name for images of ``pixels`` values (C * H * W); a `Budget` is returned as it is."""
    if isinstance(which, Budget):
        return which
    table = _SMALL if pixels <= 1024 else _LARGE
    return table[choose(which, BUDGETS, "budget")]


def _word(value: object, known: tuple[str, ...], what: str) -> str:
    """One of the survey's words; enums and spellings with dashes are taken too."""
    text = str(value)
    if text in ("both", "unspecified") and what in ("schedule", "locality"):
        raise Invalid(f"a recipe takes one {what}, got {text!r}; choose {' or '.join(known)}")
    return choose(text, known, what)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One point of the survey's space, with a budget.

    Args:
        pipeline: after, before or during training.
        schedule: one_shot or iterative. structure: weights, filters, channels or kernels. locality: local or global.
        criterion: lwm, relwm, solwm, lis, hgm or bcs (or the control random).
        sparsity: share of units to remove, in [0, 1). Zero gives the dense network.
        variant: of the criterion: relwm l1 or group_lasso, lis learned or saliency.
        ramp: cubic or linear, of an iterative schedule.
        rewind: weights go back to where they started (before: to initialisation, by default; after: to the pretrained weights).
        pretraining, pruning_step, finetuning, training_step: objectives of the pipeline's stages; ``objective``
            (default pgd_at) fills those not given.
        budget: quick, standard, paper, tiny or a `Budget`. seed: of everything that involves chance.
        method: a surveyed method that is carried out instead of the plain cell; `recipe` fills in what it prescribes.
        as_released: do as the authors' code does where it differs from their paper.
        constants: numbers of the method's own that are not its preset's, name -> value.

    Raises:
        Invalid: with one sentence, for anything that cannot run.

    Source: survey, the taxonomy of pipelines and specifics.
    """

    pipeline: str
    schedule: str = "one_shot"
    structure: str = "weights"
    locality: str = "global"
    criterion: str = "lwm"
    sparsity: float = 0.9
    variant: str | None = None
    ramp: str | None = None
    rewind: bool | None = None
    pretraining: str | None = None
    pruning_step: str | None = None
    finetuning: str | None = None
    training_step: str | None = None
    budget: str | Budget = "quick"
    seed: int = 0
    method: str | None = None
    as_released: bool = False
    constants: Mapping[str, float] | tuple[tuple[str, float], ...] = ()
    objective: InitVar[str | None] = None

    def __post_init__(self, objective: str | None) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        put("pipeline", _word(self.pipeline, PIPELINES, "pipeline"))
        put("schedule", _word(self.schedule, SCHEDULES, "schedule"))
        put("structure", _word(self.structure, STRUCTURES, "structure"))
        put("locality", _word(self.locality, LOCALITIES, "locality"))
        put("criterion", _word(self.criterion, (*CRITERIA, CONTROL), "criterion"))
        put("sparsity", check_sparsity(self.sparsity))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise Invalid(f"the seed must be a whole number from 0 to 2**63 - 1, got {self.seed!r}")
        if not isinstance(self.budget, Budget):
            put("budget", choose(self.budget, BUDGETS, "budget"))
        if self.method is not None:
            put("method", choose(self.method, PRESETS, "method that runs"))
            if objective is not None:
                raise Invalid(
                    f"{self.preset.name} has objectives of its own; give {' or '.join(self.preset.objectives)} instead of objective"
                )
            for name, value in self._of_method().items():
                put(name, value)
            return
        if self.as_released or self.constants:
            raise Invalid("as_released and constants belong to a surveyed method; make the recipe with apnb.recipe(NAME, ...)")
        self._check_bcs()
        put("variant", self._chosen_variant())
        put("ramp", self._chosen_ramp())
        for name, value in self._chosen_objectives(objective or "pgd_at").items():
            put(name, value)
        put("rewind", self._chosen_rewind())

    @property
    def preset(self) -> Preset | None:
        """The facts about the method, if the recipe is one's."""
        return PRESETS[self.method] if self.method else None

    def _of_method(self) -> dict[str, Any]:
        """The fields that a method decides, checked."""
        preset, name = self.preset, self.preset.name
        cell = _method_cell(preset)
        for word, value in cell.items():
            if getattr(self, word) != value:
                raise Invalid(
                    f"{name} has {word} {value!r}, got {getattr(self, word)!r}; apnb.recipe({self.method!r}) fills in what is its"
                )
        if self.structure not in preset.units:
            raise Invalid(f"{name} removes {' or '.join(preset.units)}, got structure {self.structure!r}")
        if self.sparsity == 0:
            raise Invalid(
                f"{name} has nothing to do at sparsity 0; the dense network is apnb.Recipe(pipeline='after', sparsity=0, finetuning='none')"
            )
        if self.variant or self.ramp or self.rewind:
            raise Invalid(f"variant, ramp and rewind are options of a plain cell; {name} has its own way, leave them out")
        if not isinstance(self.as_released, bool):
            raise Invalid(f"as_released must be True or False, got {self.as_released!r}")
        if self.as_released and not preset.released:
            raise Invalid(f"{name} has no released variant: its code does what is done here; leave as_released out")
        chosen: dict[str, Any] = {"variant": None, "ramp": None, "rewind": False}
        for stage in ("pretraining", "pruning_step", "finetuning", "training_step"):
            known, given = preset.objectives.get(stage, ()), getattr(self, stage)
            if given is not None and not known:
                raise Invalid(f"{name} has no stage {stage!r}; its stages are {', '.join(preset.objectives)}")
            if known:
                chosen[stage] = known[0] if given is None else choose(given, known, f"objective of {name}'s {stage}")
        chosen["constants"] = self._chosen_constants(preset)
        return chosen

    def _chosen_constants(self, preset: Preset) -> tuple[tuple[str, float], ...]:
        given = _mapping(self.constants)
        for name, value in given.items():
            if name not in preset.constants:
                known = ", ".join(preset.constants) or "none"
                raise Invalid(f"{preset.name} has no constant {name!r}; its constants are: {known}")
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value < math.inf:
                raise Invalid(f"{preset.name}: {name} must be a number of at least 0, got {value!r}")
            if name in preset.positive and value == 0:
                raise Invalid(f"{preset.name}: {name} must be more than 0")
            if name in preset.shares and value >= 1:
                raise Invalid(f"{preset.name}: {name} is a share and must be less than 1, got {value!r}")
            whole = isinstance(preset.every[name], int)
            if whole and value != int(value):
                raise Invalid(f"{preset.name}: {name} must be a whole number, got {value!r}")
            given[name] = int(value) if whole else float(value)
        return tuple(sorted(given.items()))

    def numbers(self, pixels: int = 64) -> Budget:
        """The budget for images of ``pixels`` values: the general one, or the method's own."""
        if self.preset is None or isinstance(self.budget, Budget):
            return budget(self.budget, pixels)
        own = self.preset.numbers(self.budget, pixels)
        return dataclasses.replace(budget(self.budget, pixels), **{k: v for k, v in own.items() if k in _BUDGET_FIELDS})

    def settings(self, pixels: int = 64) -> dict[str, float]:
        """The constants of the method at this budget, those given among them; empty for a plain cell."""
        if self.preset is None:
            return {}
        own = self.preset.numbers(self.budget.name if isinstance(self.budget, Budget) else self.budget, pixels)
        found = {k: v for k, v in own.items() if k in self.preset.constants}
        b = self.numbers(pixels)
        return {k: min(v, getattr(b, self.preset.limits[k])) if k in self.preset.limits else v for k, v in found.items()} | dict(
            self.constants
        )

    @property
    def units(self) -> str:
        """What is removed together; the structure itself, but for a method that means something else by the survey's word."""
        return self.preset.units[self.structure] if self.preset else self.structure

    def _check_bcs(self) -> None:
        if self.criterion == "bcs" and (self.pipeline, self.schedule, self.structure) != ("during", "one_shot", "weights"):
            raise Invalid(
                "criterion 'bcs' keeps a fixed number of single connections from the first training step on, so it needs pipeline "
                f"'during', schedule 'one_shot' and structure 'weights'; got {self.pipeline}, {self.schedule}, {self.structure}"
            )

    def _chosen_variant(self) -> str | None:
        known = VARIANTS.get(self.criterion, ())
        if self.variant is not None:
            if not known:
                raise Invalid(f"criterion {self.criterion!r} has no variants, got variant {self.variant!r}; leave it out")
            variant = choose(self.variant, known, f"variant of {self.criterion}")
            if variant == "group_lasso" and self.structure == "weights":
                raise Invalid("a group lasso over single weights is the l1 penalty; use variant 'l1' or another structure")
            return variant
        if self.criterion == "relwm":
            return "l1" if self.structure == "weights" else "group_lasso"
        return known[0] if known else None

    def _chosen_ramp(self) -> str | None:
        if self.schedule == "one_shot":
            if self.ramp is not None:
                raise Invalid(f"ramp {self.ramp!r} belongs to schedule 'iterative'; 'one_shot' has no ramp")
            return None
        return choose(self.ramp or "cubic", RAMPS, "ramp")

    @property
    def trains_search(self) -> bool:
        """Whether the criterion finds its scores by training (RELWM, SOLWM, learned LIS)."""
        return self.criterion in ("relwm", "solwm") or (self.criterion, self.variant) == ("lis", "learned")

    @property
    def reads_gradients(self) -> bool:
        """Whether the scores are statistics of a loss gradient (HGM, LIS saliency)."""
        return self.criterion == "hgm" or (self.criterion, self.variant) == ("lis", "saliency")

    def _chosen_objectives(self, default: str) -> dict[str, str | None]:
        stages = STAGES[self.pipeline]
        chosen: dict[str, str | None] = {}
        for stage in ("pretraining", "pruning_step", "finetuning", "training_step"):
            given = getattr(self, stage)
            if stage not in stages:
                if given is not None:
                    raise Invalid(f"pipeline {self.pipeline!r} has no stage {stage!r}; its stages are {', '.join(stages)}")
                continue
            chosen[stage] = self._objective(stage, given if given is not None else default)
        step = chosen.get("pruning_step")
        if self.pipeline == "after" and not (self.trains_search or self.reads_gradients):
            if self.pruning_step not in (None, "none"):
                raise Invalid(f"criterion {self.criterion!r} searches nothing after training; leave pruning_step out")
            chosen["pruning_step"] = "none"
        elif step == "none" and self.trains_search:
            raise Invalid(
                f"criterion {self.criterion!r} ({self.variant or 'its search'}) finds its mask by training, so pruning_step cannot "
                "be 'none'; give it an objective"
            )
        read = chosen["training_step"] if self.pipeline == "during" else chosen.get("pruning_step")
        if self.criterion == "hgm" and read not in (*ADVERSARIAL, "none"):
            raise Invalid(
                f"criterion 'hgm' ranks by the gradient of an adversarial loss, but the objective it would read is {read!r}; choose "
                f"one of {', '.join(ADVERSARIAL)}"
            )
        return chosen

    def _objective(self, stage: str, value: object) -> str:
        word = choose(value, [o.value for o in taxonomy.Objective], "objective")
        if word in ("cni", "robust_dataset", "unspecified"):
            raise Invalid(
                f"objective {word!r} is a word of the survey for one method, not a loss to run; choose one of {', '.join(TRAINABLE)}"
            )
        if word == "none" and (self.pipeline == "during" or stage == "pretraining"):
            raise Invalid(f"pipeline {self.pipeline!r} needs its stage {stage!r}: objective 'none' would leave nothing trained")
        if word == "kd" and not (self.pipeline == "after" and stage != "pretraining"):
            raise Invalid(
                "knowledge distillation needs a teacher, the trained dense network, which only pipeline 'after' has once it is "
                f"pretrained; {self.pipeline}'s {stage} cannot use 'kd'"
            )
        return word

    def _chosen_rewind(self) -> bool:
        if self.rewind is not None and not isinstance(self.rewind, bool):
            raise Invalid(f"rewind must be True or False, got {self.rewind!r}")
        if self.pipeline == "during":
            if self.rewind:
                raise Invalid("pipeline 'during' has one training stage, so there is nothing to rewind to; leave rewind out")
            return False
        if self.pipeline == "before":
            untrained = self.training_step == "none"
            if self.rewind and untrained:
                raise Invalid("rewind=True with training_step='none' would leave an untrained network; change one of them")
            return not untrained if self.rewind is None else self.rewind
        return bool(self.rewind)

    @property
    def cell(self) -> Cell:
        """Where it stands in the taxonomy."""
        return Cell(self.pipeline, self.schedule, self.structure, self.locality, self.criterion)

    @property
    def label(self) -> str:
        """A short name for tables and legends: ``after/weights/global/LWM`` or ``HARP``, with what differs from the default."""
        if self.preset:
            words = [self.structure] if self.structure != next(iter(self.preset.units)) else []
            words += ["as released"] if self.as_released else []
            words += [f"{v}" for s, known in self.preset.objectives.items() if (v := getattr(self, s)) != known[0]]
            return "/".join((self.preset.name, *words, *(f"{k}={v:g}" for k, v in self.constants)))
        extra = [self.schedule] if self.schedule == "iterative" else []
        if self.variant and self.variant != _default_variant(self.criterion, self.structure):
            extra.append(self.variant)
        if self.pipeline == "after" and self.rewind:
            extra.append("rewound")
        if self.pipeline == "before" and not self.rewind and self.training_step != "none":
            extra.append("not rewound")
        if self.ramp == "linear":
            extra.append("linear")
        trained = (self.pretraining, self.pruning_step, self.finetuning, self.training_step)
        other = dict.fromkeys(o for o in trained if o not in (None, "none", "pgd_at"))
        if self.sparsity == 0 and self.pipeline == "after" and self.finetuning == "none":
            return "/".join(("dense", *other))
        extra += other
        return "/".join((self.pipeline, self.structure, self.locality, self.criterion.upper(), *extra))

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` takes back; every choice spelled out."""
        d = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if self.method is None:  # a plain cell is written, and named in the store, without a method's fields
            for name in ("method", "as_released", "constants"):
                del d[name]
        else:
            d["constants"] = dict(self.constants)
        if isinstance(self.budget, Budget):
            d["budget"] = dataclasses.asdict(self.budget)
        return d

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """A recipe from plain data, as written by `to_dict` or by a person.

        Raises:
            Invalid: a field that does not exist (the nearest name is offered), or a value that cannot run.
        """
        known = {f.name for f in dataclasses.fields(cls)} | {"objective"}
        for name in data:
            if name not in known:
                raise Invalid(f"a recipe has no field {name!r}; did you mean {nearest(name, known)}?")
        values = dict(data)
        if isinstance(values.get("budget"), Mapping):
            fields = {f.name for f in dataclasses.fields(Budget)}
            for name in values["budget"]:
                if name not in fields:
                    raise Invalid(f"a budget has no field {name!r}; did you mean {nearest(name, fields)}?")
            values["budget"] = Budget(**values["budget"])
        if "pipeline" not in values and values.get("method"):
            return recipe(str(values.pop("method")), **values)
        if "pipeline" not in values:
            raise Invalid(f"a recipe needs a pipeline: {', '.join(PIPELINES)}; or a method")
        return cls(**values)

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """`from_dict` of JSON text."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise Invalid(f"not a recipe: the text is no JSON ({error})") from None
        if not isinstance(data, dict):
            raise Invalid(f"not a recipe: expected a JSON object, got {type(data).__name__}")
        return cls.from_dict(data)

    def code(self, network: object = "cnn", data: object = "digits", eps: float | None = None) -> str:
        """The Python that runs it, with only what differs from the defaults."""
        radius = "" if eps is None else f", eps={eps!r}"
        call = f"run = apnb.run(recipe, network={network!r}, data={data!r}{radius})\n"
        if self.preset:
            usual = recipe(self.method)
            parts = [f"{f.name}={_spelled(getattr(self, f.name))}" for f in dataclasses.fields(self)
                     if f.name != "constants" and (f.name == "sparsity" or getattr(self, f.name) != getattr(usual, f.name))]  # fmt: skip
            parts += [f"{k}={v!r}" for k, v in self.constants]
            return f"import apnb\n\nrecipe = apnb.recipe({', '.join((repr(self.method), *parts))})\n{call}"
        plain = Recipe(**self.cell._asdict())
        parts = [f"{k}={v!r}" for k, v in self.cell._asdict().items() if k == "pipeline" or v != _FIELD_DEFAULTS.get(k)]
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name not in Cell._fields and value != getattr(plain, f.name):
                parts.append(f"{f.name}={_spelled(value)}")
        return f"import apnb\n\nrecipe = apnb.Recipe({', '.join(parts)})\n{call}"

    def plan(self, pixels: int = 64, *, points: int | None = None) -> str:
        """What will happen, in words; numbers from the budget for images of ``pixels`` values, but ``points`` test images if given."""
        b = self.numbers(pixels)
        b = b if points is None else dataclasses.replace(b, points=points)
        if self.preset:
            return _numbered(self._plan_of_method(b, pixels), b)
        what = {
            "weights": "single weights", "filters": "filters (all weights of an output channel)",
            "channels": "channels (all weights that read one input map)", "kernels": "kernels (one input map of one filter)",
        }[self.structure]  # fmt: skip
        where = "in every layer the same share" if self.locality == "local" else "wherever in the network they rank lowest"
        how = {
            "lwm": "the smallest magnitudes |w|", "solwm": "the smallest |w + u| after ADMM has pulled the weights apart",
            "relwm": f"the smallest |w| after training under a {(self.variant or '').replace('_', ' ')} penalty",
            "lis": "the lowest learned scores" if self.variant == "learned" else "the lowest saliency |w dL/dw|",
            "hgm": "the highest gradient magnitudes under attack", "bcs": "connections whose strength reaches zero",
            "random": "units drawn at random (a control)",
        }[self.criterion]  # fmt: skip
        share = f"{self.sparsity:.1%}" if self.sparsity < 0.9995 else f"{self.sparsity * 100:.6g}%"
        cut = f"{share} of the {what}, {where}: {how}" if self.sparsity else "nothing"
        rounds = f" in {b.rounds} rounds on a {self.ramp} ramp" if self.schedule == "iterative" else ""
        if self.pipeline == "during":
            when = (
                "Connections that die are replaced at once by as many drawn at random"
                if self.criterion == "bcs"
                else f"Between 10 % and 75 % of the steps the masks are chosen anew {b.updates} times"
                + (f", on a {self.ramp} ramp" if self.schedule == "iterative" else "") + "; then they are fixed"
            )  # fmt: skip
            lines = [f"Train for {_epochs(b.epochs)} ({self.training_step}) and meanwhile remove {cut}.", when + "."]
        elif self.pipeline == "after":
            search = f" after a search of {_epochs(b.search_epochs)} ({self.pruning_step})" if self.trains_search else ""
            tune = (
                "Do not train any further."
                if self.finetuning == "none"
                else f"Fine-tune what is left for {_epochs(b.finetune_epochs)} in all ({self.finetuning})"
                + (", from the pretrained weights each time." if self.rewind else ".")
            )
            lines = [
                f"Train the dense network for {_epochs(b.epochs)} ({self.pretraining}).",
                f"Remove {cut}{search}{rounds}.",
                tune,
            ]
        else:
            search = (
                "Score the untrained network."
                if self.pruning_step == "none"
                else f"Search for the mask from a random start, {_epochs(b.search_epochs)} in all ({self.pruning_step})."
            )
            back = "Go back to the first weights" if self.rewind else "Keep the weights reached"
            train = (
                "Do not train any further."
                if self.training_step == "none"
                else f"{back} and train what is left for {_epochs(b.epochs)} ({self.training_step})."
            )
            lines = [search, f"Remove {cut}{rounds}.", train]
        return _numbered(lines, b)

    def _plan_of_method(self, b: Budget, pixels: int) -> list[str]:
        numbers = dataclasses.asdict(b) | self.settings(pixels)
        words = {k: _epochs(v) if k.endswith("epochs") else f"{v}" for k, v in numbers.items()}
        words |= {stage: getattr(self, stage) for stage in self.preset.objectives}
        share = f"{self.sparsity * 100:.6g}%"
        words |= {"share": share, "kept": f"{100 - self.sparsity * 100:.6g}%", "unit": self.units}
        lines = [line.format(**words) for line in self.preset.plan]
        notes = [*self.preset.differs, *([f"As released: {self.preset.released}."] if self.as_released else [])]
        return [*lines, *(f"Note: {note}" for note in notes)]


def _numbered(lines: list[str], b: Budget) -> str:
    """The steps of a plan with what holds for all of them; notes come last, without a number."""
    steps, notes = [x for x in lines if not x.startswith("Note: ")], [x for x in lines if x.startswith("Note: ")]
    if b.images is not None:
        steps[0] += f" Training sees {b.images} images."
    n = "all" if b.points is None else f"{b.points}"
    steps.append(f"Attack {n} test images and count those that stand.")
    return "\n".join([*(f"{i}. {line}" for i, line in enumerate(steps, 1)), *notes])


def _spelled(value: Any) -> str:
    return f"apnb.{value!r}" if isinstance(value, Budget) else repr(value)


def _epochs(n: int) -> str:
    return f"{n} epoch" if n == 1 else f"{n} epochs"


_BUDGET_FIELDS = {f.name for f in dataclasses.fields(Budget)}
_FIELD_DEFAULTS = {f.name: f.default for f in dataclasses.fields(Recipe)}


def _default_variant(criterion: str, structure: str) -> str | None:
    if criterion == "relwm":
        return "l1" if structure == "weights" else "group_lasso"
    return VARIANTS.get(criterion, (None,))[0]


def check_sparsity(value: object) -> float:
    """A share in [0, 1) as float; anything else is refused with what was probably meant."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise Invalid(f"sparsity must be a number in [0, 1), the share of units to remove; got {value!r}")
    if math.isnan(value):
        raise Invalid("sparsity must be a number in [0, 1), the share of units to remove; got NaN")
    if value == 1:
        raise Invalid("a sparsity of 1 leaves no network: sparsity is the share of units to remove, in [0, 1)")
    if 1 < value < 100:
        raise Invalid(f"sparsity is a share in [0, 1), not a percentage: got {value:g}, did you mean {value / 100:g}?")
    if not 0 <= value < 1:
        raise Invalid(f"sparsity must lie in [0, 1), the share of units to remove; got {value:g}")
    return float(value)


def recipe(name: str, **options: Any) -> Recipe:
    """A surveyed method by name, with the survey's stages; ``budget="paper"`` has the paper's numbers, the others smaller ones.

    Args:
        name: radmm, hydra, harp, pwoa, mad, li20, rst, robustbird, twinrep, flyingbird, flyingbird+; spelling as in the taxonomy.
        options: sparsity, structure, objectives of stages, budget, seed and as_released as for `Recipe`, and the method's own
            constants by name, such as ``gamma=0.1``. A budget by name has the method's own rates and lengths; a `Budget` is taken
            as it is, so start from ``dataclasses.replace(recipe.numbers(pixels), epochs=...)``.

    Raises:
        Invalid: an unknown method (the nearest names are offered), one that has no preset: the sentence then names the cell it
            belongs to, which can be run; or options that the method does not take.
    """
    key = re.sub(r"[^a-z0-9+]", "", str(name).lower())
    if key not in PRESETS:
        if "+" in key:  # the taxonomy does not see a plus, and takes one method for another
            raise Invalid(f"no method {str(name)!r}; did you mean {nearest(key, PRESETS)}?")
        key = taxonomy.method(name).key
    if key in PRESETS:
        preset = PRESETS[key]
        own = {k: options.pop(k) for k in [*options] if k in preset.constants}
        known = [
            "objective",
            *(f for f in _FIELD_DEFAULTS if f not in ("pipeline", "schedule", "locality", "criterion", "method", "constants")),
        ]
        for given in options:
            if given in Cell._fields and given not in known:
                raise Invalid(f"{preset.name} decides its {given} itself ({_method_cell(preset)[given]}); leave {given} out")
            if given not in known and given != "constants":
                raise Invalid(f"{preset.name} takes no {given!r}; did you mean {nearest(given, [*known, *preset.constants])}?")
        own |= _mapping(options.pop("constants", ()))
        options.setdefault("structure", next(iter(preset.units)))
        return Recipe(method=key, constants=own, **_method_cell(preset), **options)
    method = taxonomy.method(name)
    sparsity = check_sparsity(options.get("sparsity", 0.9))
    words = [f'pipeline="{method.pipeline}"', f'structure="{sorted(method.structures)[-1]}"']
    if method.schedule == "iterative":
        words.insert(1, 'schedule="iterative"')
    if locality := [x for x in sorted(method.locality) if x != "unspecified"]:
        words.append(f'locality="{locality[0]}"')
    words.append(f'criterion="{method.criterion}"')
    raise Invalid(
        f"{method.name} has no preset; its cell of the taxonomy runs as apnb.Recipe({', '.join(words)}, sparsity={sparsity})"
    )


def _mapping(given: Any) -> dict[str, float]:
    """The constants given, as name -> number, or pairs of these."""
    try:
        return dict(given)
    except (TypeError, ValueError):
        raise Invalid(f"constants are numbers by name, such as {{'gamma': 0.1}}; got {given!r}") from None


def read_constants(text: str | None) -> dict[str, float]:
    """``gamma=0.1,alpha=0.2`` as a dict.

    Raises:
        Invalid: a part that is not NAME=NUMBER.
    """
    found = {}
    for part in (text or "").split(","):
        name, _, value = part.partition("=")
        try:
            if part.strip():
                found[name.strip()] = float(value)
        except ValueError:
            raise Invalid(f"constants are given as NAME=NUMBER,NAME=NUMBER; got {part.strip()!r}") from None
    return found


def _method_cell(preset: Preset) -> dict[str, str]:
    """Where the survey puts a method, without the structure; what it leaves open is the preset's."""
    method = taxonomy.method(preset.survey)
    (locality,) = method.locality
    schedule = str(method.schedule) if str(method.schedule) in SCHEDULES else preset.schedule
    return {"pipeline": str(method.pipeline), "schedule": schedule, "locality": str(locality), "criterion": str(method.criterion)}
