"""A card for each implemented method: where it stands, its core equation, and the lines of this package that are the equation.

Written here are only the equations, in LaTeX, and which code they are; the first formula of a card stands in the docstring of the
method's file as well, word for word. Everything else comes from where it lives: the survey's entry from `apnb.taxonomy`, the plan
from `apnb.recipes`, the differences from `apnb.presets`, the code from the files themselves.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from apnb.errors import Invalid, choose
from apnb.presets import PRESETS


@dataclass(frozen=True)
class Card:
    """What a method's equation is and where it is computed.

    Attributes:
        formulas: LaTeX without dollars, in reading order; the first stands in the docstring of the method's file.
        symbols: what they mean, Markdown.
        where: the part of the file's docstring that gives them with their source.
        code: dotted names of the functions, methods or classes that are the formulas; the first is in the method's own file.
    """

    formulas: tuple[str, ...]
    symbols: str
    where: str
    code: tuple[str, ...]


_TOP_K = r"\frac{\partial L}{\partial s} = \frac{\partial L}{\partial w_\mathrm{eff}} \cdot w \cdot \mathrm{sign}(s)"

CARDS: dict[str, Card] = {
    "radmm": Card(
        (
            r"A(W) + \sum_i \frac{\rho}{2}\|W_i - Z_i + U_i\|_2^2",
            r"Z \leftarrow \Pi(W + U), \qquad U \leftarrow W + U - Z, \qquad \rho \leftarrow 1.3\,\rho "
            r"\quad \text{every } T \text{ epochs}",
        ),
        "$A$ is the adversarial loss, $W_i$ the weights of a convolution, $Z_i$ a copy of them that is already sparse, $U_i$ "
        r"the memory of how far the two are apart, $\Pi$ the projection that zeroes a layer's smallest magnitudes, "
        r"$\rho$ the strength of the pull, and $T$ a few epochs.",
        "step 2",
        ("apnb.methods.radmm.target", "apnb.mechanisms.Admm.penalty", "apnb.mechanisms.Admm.between_epochs"),
    ),
    "hydra": Card(
        (r"\min_s L_\mathrm{robust}(w \odot m(s))", _TOP_K),
        "$s$ is a score for each weight, $m(s)$ keeps the largest $|s|$ of each layer, and $w$ stays as pretraining left it. "
        "The selection has no derivative; backward takes it for the identity, so that weights that are out can come back.",
        "step 2, and section 4.2 of the paper for the first scores",
        ("apnb.methods.hydra.stages", "apnb.mechanisms.LearnedScores.effective", "apnb.mechanisms.scaled"),
    ),
    "harp": Card(
        (
            r"k_l = k_{\min} + (1 - k_{\min})\,\mathrm{sigmoid}(q_l)",
            r"\min_{s, q} L_\mathrm{robust}(w \odot m(s, k)) + \gamma_e \max\!\left(\frac{r}{K} - 1,\, 0\right), "
            r"\qquad r = \frac{\sum_l n_l k_l}{\sum_l n_l}",
        ),
        "$q_l$ is one number for each layer and $k_l$ the share of it that stays; $s$ are scores as in HYDRA. $K$ is the "
        r"share kept of the whole network, $r$ the share kept now, with $n_l$ weights in layer $l$; "
        r"no layer keeps less than $k_{\min} = \alpha K$. "
        r"The price $\gamma_e$ of exceeding $K$ rises from epoch to epoch.",
        "the paragraph on HYDRA's scores and the number q, and the display below it",
        tuple(f"apnb.methods.harp.LearnedShares.{name}" for name in ("shares", "excess", "weight", "penalty")),
    ),
    "pwoa": Card(
        (
            r"\lambda D + \sum_l \lambda_x \mathrm{HSIC}(h_l, x) - \lambda_y \mathrm{HSIC}(h_l, y)",
            r"D = T^2 \frac{1}{mC}\sum_{n,c} q_{nc}\log\frac{q_{nc}}{p_{nc}}, "
            r"\qquad \mathrm{HSIC}(a, b) = \mathrm{tr}(R_a R_b)",
        ),
        "$D$ compares the softened answers of student ($p$) and robust teacher ($q$) on $m$ clean images, HSIC measures how "
        "much two things depend on each other: hidden outputs $h_l$ should say less about the image $x$ and more about the "
        r"label $y$. $T$ is the temperature, $C$ the number of classes, the $\lambda$ are weights, and "
        r"$R = \tilde K (\tilde K + 10^{-5} m I)^{-1}$ with the centred kernel matrix $\tilde K$ of the batch.",
        "steps 2 and 3",
        ("apnb.methods.pwoa.distillation", "apnb.methods.pwoa.hsic", "apnb.methods.pwoa.bottleneck"),
    ),
    "mad": Card(
        (
            r"dL_{oj} = \tfrac12\, G_{oo}\, \delta_{oj}\, (A\,\delta_o)_j",
            r"A = \frac{1}{N S^2}\sum_{ns} u_{ns} u_{ns}^\top, \qquad G = N S \sum_{ns} g_{ns} g_{ns}^\top",
        ),
        r"$\delta = W - W \odot M$ is what a soft mask $M$, optimised against the attack, takes away. $A$ and $G$ are the "
        "Kronecker factors of the Fisher information, from a layer's inputs $u$ and the gradients $g$ at its outputs, over "
        "$N$ images and $S$ positions; $o$ counts the outputs and $j$ the inputs of the layer.",
        "step 2",
        ("apnb.methods.mad.of_layer",),
    ),
    "li20": Card(
        (r"n = |w| / \mathrm{mean}_l |w|", r"\theta_0 \odot m, \qquad m = 1[\,n > t_P\,]"),
        "A weight counts by its size relative to its layer's mean after a short training on single-step attacks; $t_P$ is "
        "the percentile of the whole network that gives the sparsity. Training begins again from the first weights "
        r"$\theta_0$, under $m$.",
        "steps 2 and 3",
        ("apnb.methods.li20.relative", "apnb.methods.li20.target"),
    ),
    "rst": Card(
        (
            r"W = \sigma\,\mathrm{sign}(W_0)",
            r"\min_S \mathbb{E} \max_{\|\delta\|_\infty \le \epsilon} \mathrm{CE}(f(x + \delta; W \odot m(S)), y)",
        ),
        r"$W_0$ is the random start and $\sigma = \sqrt{2/\mathrm{fan\_in}}$. $m(S)$ keeps the largest $|S|$ of each layer. "
        r"The scores $S$ are all that ever learns; $\delta$ is the attack, within the radius $\epsilon$.",
        "steps 1 and 2",
        ("apnb.methods.rst.sign_constants_", "apnb.methods.rst.first_scores", "apnb.mechanisms.LearnedScores.effective"),
    ),
    "robustbird": Card(
        (
            r"m = 1[|w| > t]",
            r"\max_{i = 1 \dots 4} \frac{1}{N}\,\bigl|\, m^{(e)} \oplus m^{(e - i)} \,\bigr| \le 0.08",
        ),
        "$t$ is the magnitude at which the sparsity is reached. "
        "After every epoch $e$ the mask $m^{(e)}$ that a cut would give now is compared with those of the four epochs "
        r"before: $\oplus$ marks the entries, out of $N$, in which two masks differ. When all differences are small, the cut "
        "is made.",
        "step 1",
        tuple(f"apnb.methods.robustbird.EarlyBird.{name}" for name in ("mask", "distances", "between_epochs")),
    ),
    "twinrep": Card(
        (r"\min_{wa=v} \frac{\lambda}{2}(w^2+a^2) = \lambda|v|", r"V = W \odot A"),
        "Each weight $v$ is a product of two factors that both learn. Plain weight decay on the factors costs as much as a "
        r"lasso on their product, so small products go to zero by themselves. $\lambda$ is the weight decay.",
        "step 1",
        tuple(f"apnb.methods.twinrep.Factors.{name}" for name in ("product", "effective", "between_epochs")),
    ),
    "flyingbird": Card(
        (
            r"\rho_t = \rho_T + (\rho_0-\rho_T)(1+\cos(\pi t/T))/2",
            r"m \leftarrow m \setminus \mathrm{smallest}_q\, |w| \;\cup\; \mathrm{largest}_q \left|\frac{\partial L}{\partial w}\right|, "
            r"\qquad q = \lceil \rho_t\, a \rceil",
        ),
        "Of a layer's $a$ connections the $q$ smallest die and as many missing ones are born where the adversarial loss $L$ "
        r"has its largest gradient, at step $t$ of $T$ and every few steps. The share $\rho_t$ that dies falls from $\rho_0$ to $\rho_T$.",
        "steps 2 and 3",
        ("apnb.methods.flyingbird.FlyingBird.rate", "apnb.methods.flyingbird.FlyingBird._rewire"),
    ),
    "flyingbird+": Card(
        (
            r"\lceil 0.4\rho a\rceil \ \text{more die if } P \ge \tfrac12",
            r"\mathrm{int}(1.05\, q) \ \text{instead of } q \text{ are born if } G \ge \tfrac12",
        ),
        "Over the last epochs, $P$ is the share of changes in which the gap between robust training and validation accuracy "
        r"grew, $G$ the share in which the attacked validation loss did not fall; $\rho$, $a$ and $q$ are those of Flying "
        "Bird.",
        "the paragraph on Flying Bird+",
        ("apnb.methods.flyingbird.FlyingBirdPlus.turnover", "apnb.methods.flyingbird.FlyingBirdPlus._agree"),
    ),
}
"""Method key (`apnb.presets.PRESETS`) -> its card."""


def found(name: str) -> Callable[..., Any] | type:
    """The function, method or class of a dotted name such as ``apnb.methods.harp.LearnedShares.shares``.

    Raises:
        Invalid: there is no such thing.
    """
    thing: Any = import_module(name.split(".")[0])
    for at, word in enumerate(name.split(".")[1:], 2):
        with contextlib.suppress(ModuleNotFoundError):
            import_module(".".join(name.split(".")[:at]))  # where it is a module, it is an attribute from now on
        if not hasattr(thing, word):
            raise Invalid(
                f"there is no {name!r}: {getattr(thing, '__name__', thing)} has no {word!r}; give a dotted name of the package"
            )
        thing = getattr(thing, word)
    return thing


def lines(*names: str) -> str:
    """The source of functions, methods or classes by their dotted names, each under the name of its file, as Python."""
    pieces = []
    for name in names:
        thing = found(name)
        file, inside = thing.__module__.replace(".", "/") + ".py", thing.__qualname__.rpartition(".")[0]
        pieces.append(f"# {file}{f', in class {inside}' if inside else ''}\n{textwrap.dedent(inspect.getsource(thing)).strip()}")
    return "\n\n\n".join(pieces)


def listing(*names: str) -> str:
    """`lines` as Markdown."""
    return f"```python\n{lines(*names)}\n```"


def card(key: str) -> str:
    """A method on one card, as Markdown: citation, cell, equation with its code, plan, and where survey, paper and code disagree.

    Args:
        key: an implemented method (`apnb.presets.PRESETS`): radmm, hydra, harp, ... or ``flyingbird+``.

    Raises:
        Invalid: no implemented method of that name.
    """
    from apnb import taxonomy
    from apnb.recipes import recipe

    told, preset = CARDS[choose(key, CARDS, "method")], PRESETS[key]
    method, example = taxonomy.method(preset.survey), recipe(key, sparsity=0.9)
    paper = f"[{method.first_author} et al. ({method.year})]({method.paper}), *{method.title}*" + (
        f", {method.venue}" if method.venue else ""
    )
    code = f"; [their code]({method.code})" if method.code else ""
    *plan, _ = (
        " ".join(step.split()) for step in re.split(r"^\d+\. ", example.plan(), flags=re.MULTILINE)[1:]
    )  # all but the attack
    differs = [*preset.differs, *([f"With `as_released=True`: {preset.released}."] if preset.released else [])]
    parts = [
        f"**{preset.name}**: {paper}{code}",
        f"**Its cell.** {cell(key)}",
        "**Its equation.**",
        *(f"$$ {formula} $$" for formula in told.formulas),
        f"{told.symbols} (Source: `apnb/methods/{preset.survey}.py`, {told.where}.)",
        f"**The equation as code.**\n\n{listing(*told.code)}",
        f"**What it does**, with the quick budget, at 90 % sparsity. {' '.join(plan)}",
        "**Where survey, paper and code disagree.**\n\n" + "\n".join(f"- {line}" for line in differs),
    ]
    return "\n\n".join(parts)


def cell(key: str) -> str:
    """The survey's words for a method in one sentence.

    Raises:
        Invalid: no implemented method of that name.
    """
    from apnb import taxonomy

    method = taxonomy.method(PRESETS[choose(key, PRESETS, "method")].survey)
    said = {"one_shot": "in one cut", "iterative": "in several cuts", "unspecified": "how often it cuts is not said"}
    stages = ", ".join(
        f"{stage.replace('_', ' ')}: {' or '.join(str(w) for w in words)}" for stage, words in method.objectives.items()
    )
    return (
        f"Prunes *{method.pipeline}* training, {said.get(str(method.schedule), str(method.schedule))}; removes "
        f"*{' or '.join(map(str, method.structures))}*, locality *{' or '.join(map(str, method.locality))}*, criterion "
        f"*{str(method.criterion).upper()}* ({stages})."
    )
