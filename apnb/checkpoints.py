"""The survey's published networks: find them, fetch them, read them, and any other file of weights, into a plain network.

The survey lists 83 networks of ten methods under keys such as ``HARP_Zhao2023Holistic_R18_CIFAR10_US_90``: method, architecture,
data, structure (US weights, S whole filters or channels), sparsity in per cent. A file is data: nothing in it is ever executed
(`apnb.weights`), and what comes out has the logits of the published network (`apnb.layouts`).
"""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from apnb import downloads, layouts, networks, taxonomy
from apnb.errors import Invalid, choose, listed, nearest
from apnb.masks import Masks, Sparsity, account
from apnb.presets import PRESETS
from apnb.store import default_home
from apnb.weights import read, unpack

if TYPE_CHECKING:
    import pandas as pd

    from apnb.curves import Distances

__all__ = [
    "Checkpoint", "Entry", "Key", "Layout", "distances", "entries", "fetch", "fetch_distances", "find", "frame", "layout", "load",
    "open_checkpoint", "read",
]  # fmt: skip

NETWORKS = {"R18": "resnet18", "V16": "vgg16"}
GROUPS = {"US": "unstructured", "S": "structured"}
TOLERANCE = 0.1
"""How far, as a share of what should be kept, a measured sparsity can be from the one in the key before it is said aloud."""

# -------------------------------------------------------------------------------------------------------------- keys and entries


@dataclass(frozen=True)
class Key:
    """What a key of the survey says.

    Attributes:
        text: the key. method: our key of the method. network: ``resnet18`` or ``vgg16``. data: ``cifar10`` or ``svhn``.
        structure: ``unstructured`` or ``structured``. sparsity: share of the units removed.
    """

    text: str
    method: str
    network: str
    data: str
    structure: str
    sparsity: float

    @property
    def units(self) -> str:
        """What the method removes together, see `apnb.masks`."""
        units = list(PRESETS[self.method].units.values())
        return units[0] if self.structure == "unstructured" else units[-1]

    def __str__(self) -> str:
        return f"{PRESETS[self.method].name} on {self.network}, {self.data}, {self.sparsity:.0%} of the {self.units} removed"


@dataclass(frozen=True)
class Entry(Key):
    """A published network.

    Attributes:
        clean, robust: accuracy in per cent that the survey gives for it (robust: AutoAttack, L-infinity, eps 0.031, 10 000 images).
        id: of its file at Google Drive. extension: of that file.
        distances_key, distances_id: of the file with its adversarial distances; empty where none is listed.
        note: what a reader of the list should know about it; empty for most.
    """

    clean: float
    robust: float
    id: str
    extension: str
    distances_key: str = ""
    distances_id: str = ""
    note: str = ""

    @property
    def file(self) -> str:
        """The name of its file here."""
        return self.text + self.extension

    @property
    def page(self) -> str:
        """Its address for a browser."""
        return _page(self.id)


def _page(drive: str) -> str:
    return f"https://drive.google.com/file/d/{drive}/view"


_HIDDEN = "HYDRA_Sehwag2020Hydra_R18_CIFAR10_US_90"
_LOST = "HYDRA_Sehwag2020Hydra_V16_CIFAR10_US_99"


@cache
def _listed() -> dict[str, Entry]:
    """Key -> entry of the 83 networks, and of the one whose place in the list another took."""
    table = taxonomy.leaderboard()
    found, second = {}, ""
    for row in table.itertuples():
        if row.checkpoint_key == _HIDDEN:
            (second,) = re.findall(r"the other is (\S{33})", row.note)
        drive, extension, note = row.checkpoint_id, row.checkpoint_extension, row.note
        if row.checkpoint_key == _LOST:
            drive, extension = second, ".pth.tar"
            note = (
                f"not listed under this key; the list has {_HIDDEN} twice, and the first of these files is very likely this network: "
                "if it is not, reading it says so"
            )
        if drive:
            found[row.checkpoint_key] = Entry(
                row.checkpoint_key, row.method, row.network, row.data, row.structure_group, row.sparsity, row.clean, row.robust,
                drive, extension, row.distances_key, row.distances_id, note,
            )  # fmt: skip
    return found


def entries(
    method: str | None = None, network: str | None = None, structure: str | None = None, sparsity: float | None = None
) -> tuple[Entry, ...]:
    """The 83 published networks, in the order of the survey's tables; with filters, those that pass all of them.

    Args:
        method: a key or name of a method. network: ``resnet18`` or ``vgg16``. structure: ``unstructured`` or ``structured``.
        sparsity: share removed.

    Raises:
        Invalid: an unknown word, or one of which there are no networks.
    """
    wanted = {
        "method": None if method is None else taxonomy.method(method).key,
        "network": None if network is None else choose(network, NETWORKS.values(), "network of the survey"),
        "structure": None if structure is None else choose(structure, GROUPS.values(), "group of structures"),
    }
    listed = [entry for key, entry in _listed().items() if key != _LOST]
    for name, value in {**wanted, "sparsity": sparsity}.items():
        known = sorted({getattr(entry, name) for entry in listed})
        if value is not None and value not in known:
            raise Invalid(f"the survey published no networks with {name} {value!r}; there are {', '.join(map(str, known))}")
    wanted["sparsity"] = sparsity
    return tuple(e for e in listed if all(value is None or getattr(e, name) == value for name, value in wanted.items()))


def everything() -> tuple[Entry, ...]:
    """The 83, and the one that is not listed under its own key: all files that there are."""
    return tuple(_listed().values())


def frame() -> pd.DataFrame:
    """The 83 published networks as a table: key, method, network, data, structure, sparsity, clean, robust, id, file, distances, note."""
    import pandas as pd

    columns = ("method", "network", "data", "structure", "sparsity", "clean", "robust", "id", "file", "note")
    return pd.DataFrame(
        [{"key": e.text, **{c: getattr(e, c) for c in columns}, "distances": bool(e.distances_id)} for e in entries()]
    )


def parse(key: str) -> Key:
    """What a key says, whether or not a network was published under it.

    Raises:
        Invalid: not a key; a method without published networks; a sparsity that its group does not have.
    """
    text = str(key).strip()
    found = re.fullmatch(r"(.+)_(R18|V16)_(CIFAR10|SVHN)_(US|S)_(\d\d)", text)
    if not found:
        raise Invalid(
            f"{text[:80]!r} is no key of a published network; expected METHOD_ARCHITECTURE_DATA_STRUCTURE_SPARSITY such as "
            f"{_close(text) or _HIDDEN}; 'apnb checkpoints list' has them all"
        )
    name, architecture, data, group, share = found.groups()
    names = {re.split("_(?:R18|V16)_", k)[0]: e.method for e in _listed().values() for k in (e.text, e.distances_key) if k}
    if name not in names:
        raise Invalid(f"the survey published no networks of {name[:60]!r}; it has them of {nearest(name, names, 10)}")
    shares = ("90", "95", "99") if group == "US" else ("50", "75", "90")
    if share not in shares:
        raise Invalid(f"{text} has sparsity {share}; with {group} the survey has {', '.join(shares)} per cent")
    return Key(text, names[name], NETWORKS[architecture], data.lower(), GROUPS[group], int(share) / 100)


def find(key: str) -> Entry:
    """The published network with this key; the name under which the survey lists its distances is understood too.

    Raises:
        Invalid: not a key, or one under which nothing was published: the sentence says what there is instead.
    """
    listed = _listed()
    alias = {e.distances_key: e for e in listed.values() if e.distances_key} | listed
    if str(key).strip() in alias:
        return alias[str(key).strip()]
    asked = parse(key)
    if asked.data == "svhn":
        table = taxonomy.leaderboard()
        row = table[(table.checkpoint_key == asked.text)]
        told = f" (the table says clean {row.clean.item():g} %, robust {row.robust.item():g} %)" if len(row) else ""
        raise Invalid(
            f"the survey published no network for SVHN, so there is no {asked.text}{told}; the 83 that it published are for "
            f"CIFAR-10, such as {asked.text.replace('_SVHN_', '_CIFAR10_')}"
        )
    raise Invalid(f"the survey published no {asked.text}; near it are {_close(asked.text)}")


def _close(text: str) -> str:
    return " and ".join(difflib.get_close_matches(text, _listed(), n=2, cutoff=0.5))


def is_key(text: str) -> bool:
    """Whether a text reads like a key of the survey, right or wrong."""
    return bool(re.fullmatch(r"[A-Za-z0-9]+_[^\W_]+_[A-Z]+\d+_[A-Za-z0-9]+_[A-Z]+_\d+", str(text).strip()))


# ---------------------------------------------------------------------------------------------------------------------- fetching


def cache_folder() -> Path:
    """Where fetched files are kept: ``checkpoints`` in ``APNB_HOME``, else in the user's data folder."""
    return default_home() / "checkpoints"


def fetch(
    key: str,
    folder: str | Path | None = None,
    *,
    mirror: str | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """The file of a published network, downloaded once.

    Args:
        key: of the network, see `entries`.
        folder: where it is kept (default: `cache_folder`). A file put there by hand under its name is taken too.
        mirror: address of a folder with the files under their names here, instead of Google Drive.
        progress: called with the bytes that are here and all bytes, or None where their number is not known.

    Raises:
        Invalid: no such network, no connection, no space, or a file that is not what it was when first seen. The sentence names the
            address for a browser and the place where the file belongs.
    """
    entry = find(key)
    return _fetched(entry.file, entry.id, folder, mirror, progress)


def find_distances(key: str) -> Entry:
    """As `find`, of a network whose distances are listed.

    Raises:
        Invalid: as `find`; or they are not listed.
    """
    entry = find(key)
    if not entry.distances_id:
        have = sorted({e.method for e in entries() if e.distances_id})
        raise Invalid(f"the survey lists no distances of {entry.text}; it has them for the networks of {', '.join(have)}")
    return entry


def fetch_distances(
    key: str,
    folder: str | Path | None = None,
    *,
    mirror: str | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """The file with the adversarial distances of a published network (HO-FMN on the first points, as the survey ran it); see `fetch`.

    It is kept under the key of the network, whatever name the survey lists it under (RADMM's differ).

    Raises:
        Invalid: as `fetch`; or no distances are listed for this network.
    """
    entry = find_distances(key)
    return _fetched(f"{entry.text}.pickle", entry.distances_id, folder, mirror, progress)


def _fetched(name: str, drive: str, folder: str | Path | None, mirror: str | None, progress: Callable | None) -> Path:
    source = drive if mirror is None else f"{mirror.rstrip('/')}/{name}"
    return downloads.fetch(name, source, cache_folder() if folder is None else Path(folder), page=_page(drive), progress=progress)


def distances(key: str, folder: str | Path | None = None, **options) -> Distances:
    """The published adversarial distances of a network, fetched and read: a security curve (`apnb.curves`)."""
    from apnb.curves import read as read_distances

    return read_distances(fetch_distances(key, folder, **options))


# ------------------------------------------------------------------------------------------------------------------------ layouts


@dataclass(frozen=True)
class Layout:
    """How a file stores a network.

    Attributes:
        wrapper: the key under which the weights lie, empty if bare. prefix: what stands before every name.
        form: how effective weights are put together, a key of `apnb.layouts.FORMS`.
        network: ``resnet18`` or ``vgg16`` if it is one of the survey's, else empty.
        methods: the surveyed methods whose files look so.
        tensors: how many it holds. zeros: share of exact zeros among the stored weights of convolutions and linear layers.
        unknown: what the file does not say.
    """

    wrapper: str
    prefix: str
    form: str
    network: str
    methods: tuple[str, ...]
    tensors: int
    zeros: float
    unknown: tuple[str, ...]

    def __str__(self) -> str:
        where = f"under {self.wrapper!r}" if self.wrapper else "bare"
        told = f"{self.tensors} tensors {where}" + (f" with the prefix {self.prefix!r}" if self.prefix else "")
        told += f"; effective weight: {layouts.FORMS[self.form].meaning}; {self.zeros:.2%} of the stored weights are zero"
        told += f"; {_looks(self)}" if self.methods else "; none of the survey's networks"
        return told + (f"; the file does not say {' nor '.join(self.unknown)}" if self.unknown else "")


def _looks(seen: Layout) -> str:
    return f"the {seen.network} of {listed((PRESETS[m].name for m in seen.methods), 'or')}"


def layout(path: str | Path) -> Layout:
    """Which layout a file of unknown origin has.

    Raises:
        Invalid: no file of weights.
    """
    return _layout(*unpack(path))


def _layout(state: dict[str, Tensor], wrapper: str, prefix: str) -> Layout:
    form = layouts.form_of(state)
    fits = layouts.candidates(state, form)
    unknown = ["the share of weights kept"] if layouts.FORMS[form].share else []
    if any(layouts.PUBLISHED[m].normalize for m in fits) and "normalize.mean" not in layouts.skeleton(state, form):
        unknown.append("how the images are normalised")
    if len({str(layouts.options(m, n)) for m, n in fits.items()}) > 1:
        unknown.append("which pooling stands before the classifier")
    weights = [t for n, t in state.items() if t.ndim > 1 and n.rpartition(".")[2] in ("weight", "weight_orig")]
    total = sum(t.numel() for t in weights)
    zeros = sum(int((t == 0).sum()) for t in weights) / total if total else 0.0
    return Layout(wrapper, prefix, form, next(iter(fits.values()), ""), tuple(fits), len(state), zeros, tuple(unknown))


# ------------------------------------------------------------------------------------------------------------------------ loading


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A file read into a network.

    Attributes:
        path: of the file. key: as which network of the survey it was read, an `Entry` for a published one; None for another.
        layout: how the file stores it.
        network: the plain network, in evaluation mode, on the CPU.
        masks: weight -> bool, True where it is not zero, of the layers that the method prunes (all, for another network): what
            `apnb.mechanisms.FixedMasks` needs to train on without reviving what was pruned.
        sparsity: measured; ``asked`` is the key's. None for a network that cannot be measured.
        notes: what was assumed that the file does not say.
        doubts: what speaks against the file being what it should be: an odd place in the survey's list, another sparsity than the
            key's. `load` warns about them.
    """

    path: Path
    key: Key | None
    layout: Layout
    network: nn.Module
    masks: Masks
    sparsity: Sparsity | None
    notes: tuple[str, ...]
    doubts: tuple[str, ...]


def load(what: str | Path, network: str | nn.Module | None = None, **options: Any) -> nn.Module:
    """A plain network with the weights of a file, in evaluation mode, on the CPU; images are given in [0, 1].

    A sparsity that is not the one in the key, and what else speaks against the file, is warned about. Arguments and refusals are
    those of `open_checkpoint`; a network with random weights is never returned.
    """
    found = open_checkpoint(what, network, **options)
    for doubt in found.doubts:
        warnings.warn(f"{found.path.name}: {doubt}", stacklevel=2)
    return found.network


def open_checkpoint(
    what: str | Path,
    network: str | nn.Module | None = None,
    *,
    like: str | None = None,
    channels: int = 3,
    classes: int = 10,
    folder: str | Path | None = None,
    mirror: str | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Checkpoint:
    """A file's network with all that is known about it; nothing is warned about, `Checkpoint.doubts` says it.

    Args:
        what: a key of the survey (its file is fetched, see `fetch`), or the path of a file. A file that has a key for a name is read
            as that network.
        network: what plain weights of another network belong to, as for `apnb.networks.build`: resnet18, vgg16, cnn, resnet8,
            "package:factory" or a module.
        like: a key: as which network of the survey a file of another name is to be read (method, architecture, normalisation, share kept).
        channels, classes: of the network; not needed for the survey's own.
        folder, mirror, progress: as for `fetch`.

    Raises:
        Invalid: the file is none, holds code, is damaged, or does not fit: the sentence names what is missing, left over or of another
            shape.
    """
    path, key = _located(what, network, like, folder, mirror, progress)
    state, wrapper, prefix = unpack(path)
    seen = _layout(state, wrapper, prefix)
    notes, doubts = [], []
    try:
        if network is not None:
            net = _plain(state, prefix, network, channels, classes)
        else:
            net, notes = _surveyed(state, seen, key or _guessed(path, seen), channels, classes)
    except Invalid as error:
        raise Invalid(f"{path} {_misread(error, key, network, seen)}" if key or network else str(error)) from None
    if key is None and network is None:
        notes.append(f"read as {_looks(seen)}, which is what it looks like; if it is another network, name it (like=, --like)")
    masks, measured = _measured(net, key, channels)
    if key is None or measured is None:
        return Checkpoint(path, key, seen, net, masks, measured, tuple(notes), ())
    off = abs(measured.units - key.sparsity) > TOLERANCE * (1 - key.sparsity)
    if off and seen.form == "plain" and "plain" not in layouts.PUBLISHED[key.method].forms:
        raise Invalid(
            f"{path} holds plain weights of which {measured.units:.1%} are zero where {key} is expected, and no masks or scores: give "
            "the file that the authors' code wrote"
        )
    if off:
        doubts.append(
            f"the key says {key.sparsity:.0%} of the {key.units}, but {measured.units:.2%} are gone in the layers that "
            f"{PRESETS[key.method].name} prunes ({measured.weights:.2%} of all weights)"
        )
    if key.text in (_HIDDEN, _LOST) and isinstance(key, Entry):
        (doubts if off else notes).append(f"about this key: {key.note}")
    return Checkpoint(path, key, seen, net, masks, measured, tuple(notes), tuple(doubts))


def _plain(state: dict[str, Tensor], prefix: str, network: str | nn.Module, channels: int, classes: int) -> nn.Module:
    """Another network with plain weights; what `unpack` took for a prefix may be the name of a module of its own."""
    try:
        return layouts.build(state, network, channels, classes)
    except Invalid as error:
        try:
            return layouts.build({prefix + name: t for name, t in state.items()}, network, channels, classes)
        except Invalid:
            raise error from None


def _located(what, network, like, folder, mirror, progress) -> tuple[Path, Key | None]:
    """The file, and as which network of the survey it is to be read."""
    if network is not None and like is not None:
        raise Invalid(f"both a network ({network!r:.40}) and like={like!r} are given; one says what the weights belong to")
    asked = None if like is None else _known(like)
    text, path = str(what), Path(what)
    if not os.path.exists(path) and (is_key(text) or text.strip() in _listed()):
        if network is not None:
            raise Invalid(f"{text} is a key of the survey, which says its network; leave network={network!r:.40} out")
        entry = find(text)
        return fetch(entry.text, folder, mirror=mirror, progress=progress), asked or entry
    if asked is None and network is None:
        stem = re.split(r"\.| \(", path.name)[0]  # without what a browser adds to a second download
        with contextlib.suppress(Invalid):
            asked = _known(stem)
    return path, asked


def _known(key: str) -> Key:
    try:
        return find(key)
    except Invalid:
        return parse(key)  # a network of the grammar that was not published: a reader's own


def _guessed(path: Path, seen: Layout) -> Key:
    """The network that a file of unknown origin must be, if only one can be meant."""
    if not seen.methods:
        raise Invalid(
            f"{path} holds weights of no network of the survey; name the network that they belong to (network=, --network), such as cnn"
        )
    method = seen.methods[0]
    if seen.unknown:
        example = next(e.text for e in entries(method, seen.network))
        raise Invalid(
            f"{path} does not say {' nor '.join(seen.unknown)}; say as what it is to be read (like=, --like), such as {example}"
        )
    return Key("", method, seen.network, "cifar10", "unstructured", math.nan)


def _surveyed(state: dict[str, Tensor], seen: Layout, key: Key, channels: int, classes: int) -> tuple[nn.Module, list[str]]:
    """The network that a method's state stands for, and what the file does not say and is taken from elsewhere."""
    published = layouts.PUBLISHED[key.method]
    if seen.form not in ("plain", *published.forms):
        raise Invalid(f"weights stored as {layouts.FORMS[seen.form].meaning}, which {PRESETS[key.method].name} does not do")
    weights, norm = layouts.effective(state, seen.form, 1 - key.sparsity)
    notes = [f"the share of weights kept, {1 - key.sparsity:.0%}, is the key's"] if layouts.FORMS[seen.form].share else []
    variant = layouts.options(key.method, key.network)
    if norm is None and published.normalize:
        norm = published.normalize[key.data]
        notes.append(f"images are normalised with mean {norm[0]} and std {norm[1]}, constants of the authors' code")
    if norm is not None:
        variant |= {"mean": norm[0], "std": norm[1]}
    return layouts.build(weights, key.network, channels, classes, **variant), notes


def _misread(error: Invalid, key: Key | None, network: object, seen: Layout) -> str:
    """What a file is not, why, and what it looks like."""
    own = network if isinstance(network, str) else type(network).__name__
    meant = f"{key.network} of {PRESETS[key.method].name}" if key else f"the network {own!r}"
    hint = "give the file of that network, or name the right one"
    if seen.methods and (key is None or key.method not in seen.methods or key.network != seen.network):
        hint = f"it looks like {_looks(seen)}: say so (like=, --like), or fetch it again"
    if isinstance(key, Entry) and key.text in (_HIDDEN, _LOST):
        hint += f" (about this key: {key.note})"
    return f"does not fit {meant}: {error}; {hint}"


def _measured(net: nn.Module, key: Key | None, channels: int) -> tuple[Masks, Sparsity | None]:
    try:
        layers = networks.layers(net, torch.zeros(2, channels, 32, 32))
    except Invalid:
        return {}, None  # a network that takes other images
    chosen = [layer for layer in layers if key is None or layer.kind == "conv" or not layouts.PUBLISHED[key.method].convolutions]
    weights = dict(net.named_parameters())
    masks = {layer.name: weights[layer.name].detach() != 0 for layer in chosen}
    units = "weights" if key is None else key.units
    asked = math.nan if key is None else key.sparsity
    parameters = sum(p.numel() for p in net.parameters())
    return masks, account(masks, layers, units, asked, parameters)
