"""The surveyed methods that run, as data: where each stands, what it trains, its numbers and where they come from.

What a method does with them is in its own file in `apnb.methods`. Numbers that a `Budget` has a name for are the budget's; the
others are the method's own constants. `Preset.numbers` lays them over the general budget of the same name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LOSSES = ("natural", "fgsm", "fast_at", "pgd_at", "trades", "mart")
"""Objectives that need no teacher; the first is the only one without an attack."""


def _any(default: str) -> tuple[str, ...]:
    """Every loss that needs no teacher, the default first."""
    return (default, *(o for o in LOSSES if o != default))


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One method.

    Attributes:
        survey: key of its entry in the taxonomy. name: for people.
        units: the survey's word for a structure -> what is removed together (see `apnb.masks`); the first is the default.
        objectives: stage -> the objectives it can take, the default first.
        stages: stage of a run -> the number (of the budget or a constant) that says how long it is.
        constants: the method's own numbers -> what they are and where they are from.
        every: numbers of all budgets. paper, standard, quick, tiny: of one budget; digits: of quick on small images (up to 1024 values).
            quick and its kin depart from the paper's constants only where the method's sheet of miniature settings allows it.
        positive, shares: constants that must be more than 0, or less than 1. limits: constant -> the number of the budget it is cut to.
        schedule: the word of a recipe where the survey leaves it open.
        plan: what happens, one sentence a stage, with numbers in braces.
        differs: where the survey's words, the paper and the code disagree, and what is done here.
        released: what ``as_released=True`` changes; empty where code and paper do the same.
        watched: stages after whose epochs the validation images are attacked, because the best of these epochs is kept.
    """

    survey: str
    name: str
    units: Mapping[str, str]
    objectives: Mapping[str, tuple[str, ...]]
    stages: Mapping[str, str]
    every: Mapping[str, Any]
    paper: Mapping[str, Any]
    standard: Mapping[str, Any] = field(default_factory=dict)
    quick: Mapping[str, Any] = field(default_factory=dict)
    digits: Mapping[str, Any] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)
    positive: tuple[str, ...] = ()
    shares: tuple[str, ...] = ()
    limits: Mapping[str, str] = field(default_factory=dict)
    schedule: str = "one_shot"
    plan: tuple[str, ...]
    differs: tuple[str, ...] = ()
    released: str = ""
    watched: tuple[str, ...] = ()

    def numbers(self, name: str, pixels: int) -> dict[str, Any]:
        """What differs from the general budget ``name`` for images of ``pixels`` values, the method's constants among it.

        ``tiny`` and budgets with names of their own start from ``quick`` (and ``digits``), without epochs and batch of it.
        """
        found = {**self.every, **{"paper": self.paper, "standard": self.standard}.get(name, self.quick)}
        if pixels <= 1024 and name not in ("paper", "standard"):
            found |= self.digits
        if name not in ("paper", "standard", "quick"):
            found = {k: v for k, v in found.items() if k not in ("epochs", "search_epochs", "finetune_epochs", "batch")}
        return found | (self.tiny if name == "tiny" else {})


_AFTER = {"pretraining": "epochs", "pruning": "search_epochs", "finetuning": "finetune_epochs"}
_DENSE = "Train the dense network for {epochs} ({pretraining})."
_TUNE = "Fine-tune what is left for {finetune_epochs} ({finetuning})."

PRESETS: dict[str, Preset] = {
    "radmm": Preset(
        survey="radmm",
        name="RADMM",
        units={"weights": "weights", "filters": "filters"},
        watched=("pretraining", "finetuning"),
        objectives={"pretraining": _any("pgd_at"), "pruning_step": _any("pgd_at"), "finetuning": _any("pgd_at")},
        stages=_AFTER,
        every={
            "lr": 0.1,
            "search_lr": 0.01,
            "finetune_lr": 0.01,
            "weight_decay": 1e-4,
            "rho": 1e-3,
            "rho_growth": 1.3,
            "dual_period": 20,
        },
        paper={"epochs": 200, "search_epochs": 200, "finetune_epochs": 200, "attack_steps": 10},
        standard={"dual_period": 2, "rho": 0.05, "search_lr": 0.02},
        quick={"search_epochs": 3, "dual_period": 1, "rho": 0.3, "search_lr": 0.05, "finetune_lr": 0.05},
        digits={"search_epochs": 12, "dual_period": 2},
        tiny={"dual_period": 1},
        constants={"search_lr": "learning rate while ADMM runs, a tenth and a hundredth of it in the thirds of a period (code)"},
        plan=(
            _DENSE,
            "Train on for {search_epochs} ({pruning_step}) while ADMM pulls each convolution towards a copy of itself without its "
            "smallest {unit}; then remove {share} of the {unit} of every convolution.",
            _TUNE,
        ),
        differs=(
            "The classifier stays dense, as in the authors' settings, so the sparsity is that of the convolutions.",
            "The attack sees batch statistics and moves the running ones, as in the authors' code.",
            "The code keeps the epoch with the lowest loss on test images; here it is the best on validation images, clean and attacked.",
        ),
        released="after k dual updates the penalty's gradient on W is (1 + k) times the textbook's: the code's dual carries its graph",
    ),
    "hydra": Preset(
        survey="hydra",
        name="HYDRA",
        units={"weights": "weights"},
        objectives={"pretraining": _any("trades"), "pruning_step": _any("trades"), "finetuning": _any("trades")},
        stages=_AFTER,
        every={"lr": 0.1, "finetune_lr": 0.01, "weight_decay": 1e-4},
        paper={"epochs": 100, "search_epochs": 20, "finetune_epochs": 100, "attack_steps": 10},
        quick={"finetune_lr": 0.05},
        plan=(
            _DENSE,
            "Learn a score for every weight in {search_epochs} ({pruning_step}); the network runs on the {kept} of each layer with the "
            "largest |score|, and no weight changes. Keep those.",
            "Fine-tune what is left from its pretrained values for {finetune_epochs} ({finetuning}).",
        ),
        differs=("The paper says that only scores learn; in the code batch norms learn along, and so they do here.",),
        released="further clean passes move the running statistics, and the learning rate is the code's cosine, one epoch late",
    ),
    "harp": Preset(
        survey="harp",
        name="HARP",
        units={"weights": "weights", "channels": "channels"},
        watched=("pruning",),
        objectives={"pretraining": _any("trades"), "pruning_step": _any("trades"), "finetuning": _any("trades")},
        stages=_AFTER,
        every={"lr": 0.1, "finetune_lr": 0.01, "weight_decay": 5e-4, "gamma": 0.01, "alpha": 0.1, "start": 0.1},
        paper={"epochs": 100, "search_epochs": 20, "finetune_epochs": 100, "attack_steps": 10},
        standard={"gamma": 0.02},
        quick={"search_epochs": 3, "gamma": 2.0, "finetune_lr": 0.05},
        digits={"search_epochs": 10, "gamma": 0.15},
        tiny={"gamma": 50.0},
        constants={
            "gamma": "growth, each epoch, of the weight of the size penalty until the budget is met (README)",
            "alpha": "a layer keeps at least alpha times the target share (code)",
            "start": "share that every layer keeps at first (code: uniform 0.1)",
        },
        shares=("alpha",),
        plan=(
            _DENSE,
            "Learn for {search_epochs} ({pruning_step}) a score for every one of the {unit} and the share that each layer keeps, under a "
            "penalty that grows until the whole is no larger than with {kept} of the {unit}; no weight changes. Keep what the best epoch "
            "within the budget keeps.",
            _TUNE,
        ),
        differs=(
            "'Global' is the budget: within a layer the largest |scores| stay, and scores of different layers are never compared.",
            "The size is measured on learned real shares, so the sparsity obtained is near the one asked for, and often higher.",
            "The paper says that only scores and shares learn; in the code batch norms learn along, and so they do here.",
        ),
        released="every epoch counts once one has met the budget; further clean passes move the running statistics and the cosine is one "
        "epoch late; with channels, the first scores are the code's, which mix channels up",
    ),
    "pwoa": Preset(
        survey="pwoa",
        name="PwoA",
        units={"weights": "weights", "filters": "filters"},
        objectives={"pretraining": _any("trades"), "pruning_step": ("kd",), "finetuning": ("kd",)},
        stages=_AFTER,
        every={
            "lr": 0.1,
            "search_lr": 0.01,
            "finetune_lr": 0.005,
            "weight_decay": 1e-4,
            "rho": 0.01,
            "rho_growth": 1.35,
            "dual_period": 3,
            "rho_cap": 1.0,
            "distill": 10.0,
            "temperature": 30.0,
            "sigma": 5.0,
            "hsic_x": 2e-5,
            "hsic_y": 1e-4,
        },
        paper={"epochs": 200, "search_epochs": 50, "finetune_epochs": 100, "attack_steps": 10},
        standard={"dual_period": 2, "rho": 0.05, "search_lr": 0.02},
        quick={
            "search_epochs": 3,
            "dual_period": 1,
            "rho": 0.3,
            "search_lr": 0.05,
            "finetune_lr": 0.05,
            "hsic_x": 2e-4,
            "hsic_y": 1e-3,
        },
        digits={"search_epochs": 12, "dual_period": 2},
        tiny={"dual_period": 1},
        constants={
            "search_lr": "learning rate while ADMM runs, a tenth and a hundredth of it in the thirds of a period (script)",
            "rho_cap": "rho does not grow beyond it (code)",
            "distill": "weight of the distillation (script, CIFAR-10)",
            "temperature": "of the distillation (script)",
            "sigma": "width of the Gaussian kernels, which are scaled by the dimension (script)",
            "hsic_x": "weight of HSIC between hidden outputs and input while fine-tuning (script, CIFAR-10)",
            "hsic_y": "weight of HSIC between hidden outputs and label while fine-tuning (script, CIFAR-10)",
        },
        positive=("temperature", "sigma"),
        plan=(
            _DENSE + " It is the teacher from now on, and no adversarial example is made any more.",
            "Train a copy for {search_epochs} to say what the teacher says of the images as they are, while ADMM pulls each convolution "
            "towards a copy of itself without its smallest {unit}; then remove {share} of the {unit} of every convolution.",
            "Fine-tune what is left for {finetune_epochs} with distillation and, on every hidden output, less dependence on the image and "
            "more on the label (HSIC).",
        ),
        differs=(
            "The survey lists PwoA as unstructured but publishes structured results; the code has filters, so both run.",
            "'KD' leaves out the HSIC term and the distillation while ADMM runs; both are here.",
            "The classifier stays dense, except where a network calls it 'fc', as in the code.",
            "The code keeps the epoch that is best under attack on test images; here it is the last.",
        ),
        released="ADMM's copy is made anew from the weights, without the dual, at the start of every epoch; the rate lags one batch",
    ),
    "mad": Preset(
        survey="mad",
        name="MAD",
        units={"weights": "weights"},
        watched=("pretraining", "finetuning"),
        objectives={"pretraining": _any("pgd_at"), "pruning_step": ("pgd_at",), "finetuning": _any("mart")},
        stages={"natural": "natural_epochs", "pretraining": "epochs", "pruning": "mask_steps", "finetuning": "finetune_epochs"},
        every={
            "lr": 0.1,
            "finetune_lr": 0.1,
            "weight_decay": 2e-4,
            "natural_epochs": 200,
            "mask_steps": 20,
            "mask_lr": 0.1,
            "reach": 2.3,
            "margin": 0.5,
            "batches": 0,
        },
        paper={"epochs": 60, "finetune_epochs": 60, "attack_steps": 10},
        standard={"natural_epochs": 20},
        quick={"natural_epochs": 1, "mask_steps": 5},
        digits={"natural_epochs": 5, "mask_steps": 10, "finetune_epochs": 40},
        tiny={"natural_epochs": 1, "mask_steps": 3},
        positive=("natural_epochs", "mask_steps", "mask_lr", "reach"),
        constants={
            "natural_epochs": "training on the images as they are before adversarial training (code)",
            "mask_steps": "Adam steps for the mask of a batch (code)",
            "mask_lr": "their learning rate (code)",
            "reach": "the steps of an attack together, in units of eps (code)",
            "margin": "weight of the second term of the fine-tuning loss, MART's beta (code)",
            "batches": "batches that the saliency is averaged over; 0 for one pass over the training images (code)",
        },
        plan=(
            "Train the dense network for {natural_epochs} (natural) and {epochs} ({pretraining}).",
            "For every batch attack the network, let {mask_steps} steps find the weights whose shrinking helps against this attack, and "
            "estimate by a second-order expansion (K-FAC) what it does to the loss. Remove the {share} of the convolutions' weights with "
            "the lowest estimate, and as many in each row of the classifier.",
            _TUNE,
        ),
        differs=(
            "The survey says PGD-AT for fine-tuning; the code has MART's loss with a small weight, which is the default here.",
            "'Global' means over all convolutions; each row of the classifier is pruned by itself, as in the code.",
            "'Least importance' is signed: the most negative estimates go first.",
            "Adversarial training and fine-tuning keep the epoch that withstands an attack on validation images best; the code asks test "
            "images, in fine-tuning clean ones.",
        ),
    ),
    "li20": Preset(
        survey="li20",
        name="Li20",
        units={"weights": "weights"},
        objectives={"pruning_step": ("fgsm", "natural", "pgd_at"), "training_step": _any("pgd_at")},
        stages={"initial": "", "pruning": "search_epochs", "training": "epochs"},
        every={"lr": 0.1, "search_lr": 0.01, "weight_decay": 1e-4, "batch": 64, "warmup": 10},
        paper={"epochs": 100, "search_epochs": 100, "attack_steps": 10},
        standard={"warmup": 3},
        quick={"warmup": 1, "search_lr": 0.05},
        digits={"warmup": 4},
        limits={"warmup": "epochs"},
        constants={
            "search_lr": "learning rate of the search, small on purpose (scripts)",
            "warmup": "epochs in which the ticket's learning rate rises (scripts)",
        },
        plan=(
            "Draw the first weights.",
            "Train all of them for {search_epochs} ({pruning_step}); divide magnitudes by their layer's mean and remove the smallest "
            "{share} over the whole network.",
            "Go back to the first weights and train what is left for {epochs} ({training_step}).",
        ),
        differs=(
            "The survey calls the criterion lowest weight magnitude; the code divides by the layer's mean magnitude first.",
            "The README of the survey says AT for the search; its data and the code say FGSM.",
        ),
    ),
    "rst": Preset(
        survey="rst",
        name="RST",
        units={"weights": "weights"},
        watched=("pruning",),
        objectives={"pruning_step": _any("pgd_at"), "training_step": ("none",)},
        stages={"pruning": "search_epochs"},
        every={"lr": 0.1, "weight_decay": 5e-4, "reach": 1.75},
        paper={"search_epochs": 160, "batch": 256, "attack_steps": 7},
        quick={"search_epochs": 4},
        digits={"search_epochs": 40},
        positive=("reach",),
        constants={"reach": "the steps of the training attack together, in units of eps (code: 7 of 2/255 at 8/255)"},
        plan=(
            "Give every weight one of two values, by the sign it was drawn with. They never change.",
            "Learn for {search_epochs} ({pruning_step}) a score for every weight; the network runs on the {kept} of each layer with the "
            "largest |score|. Keep those.",
        ),
        differs=(
            "'One-shot' is a mask found anew at every step at the final sparsity.",
            "Norms have no scale and shift and the classifier no bias, as in the code: they are 1 and 0 and stay so.",
        ),
    ),
    "robustbird": Preset(
        survey="robustbird",
        name="Robust Bird",
        units={"weights": "weights"},
        watched=("training",),
        objectives={"pruning_step": _any("natural"), "training_step": _any("pgd_at")},
        stages={"pruning": "search_epochs", "training": "epochs"},
        every={"lr": 0.1, "weight_decay": 5e-4, "window": 5, "threshold": 0.08, "val_steps": 20},
        paper={"search_epochs": 200, "epochs": 200, "attack_steps": 10},
        quick={"search_epochs": 6},
        digits={"search_epochs": 10},
        positive=("window", "val_steps"),
        constants={
            "window": "masks that have to agree (code)",
            "threshold": "largest share of entries in which they may differ (code)",
            "val_steps": "steps of the attack on validation images that chooses the epoch (code)",
        },
        schedule="iterative",
        plan=(
            "Train the dense network ({pruning_step}) until the masks of its {window} last epochs agree, for {search_epochs} at most; "
            "remove the smallest {share} of the weights, over the whole network.",
            "Train what is left on from there for {epochs} ({training_step}) and keep the epoch that withstands an attack on validation "
            "images best.",
        ),
        differs=(
            "The survey says AT for the first stage; the authors' command trains it on the images as they are.",
            "'Iterative' are the masks that are compared: weights are removed once.",
            "'Before training' is a short training: weights do not go back to where they started.",
        ),
        released="the learning rate falls at a quarter and three quarters of the epochs instead of at half and three quarters",
    ),
    "twinrep": Preset(
        survey="twinrep",
        name="TwinRep",
        units={"weights": "weights", "channels": "filters"},
        objectives={"training_step": ("pgd_at", "trades", "natural")},
        stages={"training": "epochs"},
        every={"lr": 0.1, "weight_decay": 2e-4, "cut": 10},
        paper={"epochs": 100, "attack_steps": 10},
        standard={"cut": 4},
        quick={"cut": 2},
        digits={"cut": 5, "weight_decay": 1e-3},
        tiny={"cut": 2},
        limits={"cut": "epochs"},
        constants={"cut": "the epoch, counted from 1, before which the network is pruned (code)"},
        plan=(
            "Train a network whose weights are products of two factors for {epochs} ({training_step}), with weight decay on both. Before "
            "epoch {cut} remove the smallest {share} of the {unit}, over the whole network; then go on.",
        ),
        differs=(
            "The survey's 'channels' are output filters, and only those of convolutions.",
            "The survey's data say PGD-AT; the code also offers TRADES, with which the paper's experiments are said "
            "to be made: training_step='trades'.",
            "The code keeps the epoch that is best on test images; here it is the last.",
        ),
    ),
    "flyingbird": Preset(
        survey="flyingbird",
        name="Flying Bird",
        units={"weights": "weights"},
        watched=("training",),
        objectives={"training_step": _any("pgd_at")},
        stages={"training": "epochs"},
        every={"lr": 0.1, "weight_decay": 5e-4, "interval": 900, "interval_late": 1200, "death": 0.5, "death_last": 0.005},
        paper={"epochs": 200, "attack_steps": 10},
        standard={"interval": 60, "interval_late": 80},
        quick={"interval": 3, "interval_late": 4},
        digits={"interval": 5, "interval_late": 7},
        tiny={"interval": 1, "interval_late": 1},
        positive=("interval", "interval_late"),
        constants={
            "interval": "steps from one rewiring to the next (code)",
            "interval_late": "the same in the second half of the epochs (code, README's command)",
            "death": "share of a layer's weights that is removed and grown at first (code)",
            "death_last": "the same at the end of a cosine (code)",
        },
        schedule="iterative",
        plan=(
            "Train a random sparse network for {epochs} ({training_step}). Every {interval} steps remove the smallest weights of each "
            "layer, a share of {death} at first and {death_last} at last, and grow as many where the loss has the largest gradient. "
            "{share} are missing. Keep the epoch that withstands an attack on validation images best.",
        ),
        differs=(
            "'Global' is how many weights each layer gets; which go and which grow is decided within a layer.",
            "Growth by gradient is the paper's; the authors' command grows at random.",
        ),
        released="weights grow at random, so that counts hold only on average",
    ),
}
PRESETS["flyingbird+"] = Preset(
    **{
        **{
            f: getattr(PRESETS["flyingbird"], f)
            for f in (
                "survey",
                "units",
                "objectives",
                "stages",
                "paper",
                "standard",
                "quick",
                "digits",
                "schedule",
                "released",
                "watched",
            )
        },
        "name": "Flying Bird+",
        "every": PRESETS["flyingbird"].every
        | {"begin": 0.5, "window": 4, "agreement": 0.5, "more_death": 0.4, "more_growth": 0.05},
        "tiny": PRESETS["flyingbird"].tiny | {"window": 1, "begin": 0.0},
        "positive": (*PRESETS["flyingbird"].positive, "window"),
        "constants": PRESETS["flyingbird"].constants
        | {
            "begin": "share of the epochs after which the size may change (code: 100 of 200)",
            "window": "epochs whose changes are counted (code)",
            "agreement": "share of them that has to point the same way (code)",
            "more_death": "further removal while the robust generalisation gap grows (code)",
            "more_growth": "further growth while the validation loss grows (code)",
        },
        "plan": (
            *PRESETS["flyingbird"].plan,
            "From half-way on remove more while the gap between robust accuracy in training and in validation grows, and grow a little "
            "more while the validation loss does.",
        ),
        "differs": (
            *PRESETS["flyingbird"].differs,
            "The sparsity drifts away from the one asked for; that is the method, and what it ends with is reported.",
        ),
    }
)
