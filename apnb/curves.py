"""Security curves: how accuracy falls as the perturbation grows, exact from the smallest distance found for every point.

A distance d is the L-infinity norm of the smallest verified adversarial perturbation of one image: 0 if the image is wrong without
any attack, infinite if no perturbation was found. The curve is RA(e) = share of points with d > e, a step function; as every d is an
upper bound of the true distance, so is the curve of the true robust accuracy.

Files: our own are ``.npz``; the survey's (pickles of tensors) are read by a machine of our own that can execute nothing.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apnb import pickles
from apnb.errors import Invalid
from apnb.pickles import Pairs, is_number, numbers, short
from apnb.store import atomic
from apnb.verdicts import wilson

FORMAT = 1
_WHOLE = (torch.int64, torch.int32)
MAX_BYTES = 64 << 20
"""Larger files are refused: the survey's have some 100 KiB, ours 4 to 20 bytes a point."""
MAX_MODELS = 100
"""In one pickle."""


def dkw(n: int) -> float:
    """Half-width of a band that holds a whole curve of n points with 95 % probability: sqrt(ln(2 / 0.05) / (2n)).

    Source: Dvoretzky, Kiefer and Wolfowitz 1956, with the constant of Massart 1990.
    """
    return math.sqrt(math.log(2 / 0.05) / (2 * n))


@dataclass(frozen=True, eq=False)
class Distances:
    """The smallest adversarial distance found for each of N points, and the security curve RA(e) = share with distance > e.

    Radii are L-infinity norms in the scale of images in [0, 1]; they are compared in float32, the type of images and distances, so
    that a point broken exactly at ``8 / 255`` does not stand at ``8 / 255``.

    Attributes:
        value: float32 (N,), in [0, 1] or infinite; anything that torch takes as such is converted and copied. 0: wrong without any
            attack; infinite: no perturbation was found.
        name: what the curve is called in a legend.
        method: how the distances were found, in words that continue "found by".
        index, label: int64 (N,), positions in the test split and classes; or None.
        data: the data set's name, if known.
        eps: the radius of reference, if there is one (8/255 for the survey's data sets).

    Raises:
        Invalid: no points, a wrong shape or length, NaN, distances that are negative or finite and above 1, an index given twice,
            an empty or unprintable text, an eps outside (0, 1].
    """

    value: Tensor
    name: str
    method: str
    index: Tensor | None = None
    label: Tensor | None = None
    data: str | None = None
    eps: float | None = None

    def __post_init__(self):
        for field in ("name", "method", *(["data"] if self.data is not None else [])):
            text = getattr(self, field)
            if not isinstance(text, str) or not text.strip() or not text.isprintable():
                raise Invalid(f"the {field} of distances is {text!r:.80}, expected a printable text of one line")
        value = _vector(self.value, "distances")
        if not value.is_floating_point() and value.dtype not in _WHOLE:
            raise Invalid(
                f"distances of type {value.dtype} are no numbers; give float32, 0 for a point that is wrong without any attack"
            )
        object.__setattr__(self, "value", value := value.to("cpu", torch.float32, copy=True))
        nan, negative, far = (int(bad.sum()) for bad in (value.isnan(), value < 0, (value > 1 + 1e-6) & value.isfinite()))
        if nan or negative:
            raise Invalid(
                f"{nan} of {len(value)} distances are NaN and {negative} negative; expected 0 for a point that is wrong without any "
                "attack, infinity where none was found, a norm elsewhere"
            )
        if far:
            raise Invalid(
                f"{far} of {len(value)} distances lie above 1, which no L-infinity distance between images in [0, 1] does; divide by "
                "255 what is counted in grey levels, and give infinity where none was found"
            )
        for field in ("index", "label"):
            given = getattr(self, field)
            if given is None:
                continue
            given = _vector(given, field)
            if given.dtype not in _WHOLE or len(given) != len(value):
                raise Invalid(f"{field} is {given.dtype} ({len(given)},), expected int64 ({len(value)},), one for each distance")
            object.__setattr__(self, field, given := given.to("cpu", torch.int64, copy=True))
            if int(given.min()) < 0 or (field == "index" and len(given.unique()) != len(given)):
                raise Invalid(f"{field} holds negative numbers or names a point twice; give each point once, counted from 0")
        if self.eps is not None:
            if not isinstance(self.eps, Real) or not 0 < self.eps <= 1:
                raise Invalid(f"eps is {self.eps!r}, expected a share of the pixel range above 0 and up to 1, such as 8/255")
            object.__setattr__(self, "eps", float(self.eps))

    @property
    def n(self) -> int:
        """How many points."""
        return len(self.value)

    @cached_property
    def _sorted(self) -> Tensor:
        return self.value.sort().values

    def standing(self, eps: Any) -> Tensor:
        """How many points have a distance above ``eps`` (a radius >= 0, or an array of them): int64, of the same shape."""
        try:
            radius = torch.as_tensor(eps, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise Invalid(f"eps is {eps!r:.80}, expected a radius such as 8/255, or an array of them") from None
        if not ((radius >= 0) & radius.isfinite()).all():
            raise Invalid(f"eps is {eps!r:.80}, expected finite radii of at least 0, such as 8/255")
        return self.n - torch.searchsorted(self._sorted, radius.to("cpu", torch.float32).contiguous(), right=True)

    def accuracy(self, eps: Any) -> float | Tensor:
        """RA(eps): the share of points with a distance above ``eps``, in [0, 1]; ``accuracy(0)`` is clean accuracy.

        Returns:
            A float for a number, float64 of the same shape for an array.
        """
        share = self.standing(eps).double() / self.n
        return share if share.ndim else float(share)

    def interval(self, eps: float, *, simultaneous: bool = False) -> tuple[float, float]:
        """The 95 % interval of RA(eps) for the choice of the points: Wilson's, for one eps looked at.

        ``simultaneous`` gives the band that holds the whole curve instead (see `dkw`), clipped to [0, 1]. Neither covers what a
        stronger attack would find.
        """
        k = int(self.standing(float(eps)))
        if simultaneous:
            return max(0.0, k / self.n - dkw(self.n)), min(1.0, k / self.n + dkw(self.n))
        return wilson(k, self.n)

    def steps(self, limit: float = 0.15) -> tuple[Tensor, Tensor]:
        """The curve from 0 to ``limit``, exactly: on [eps[i], eps[i + 1]) it is accuracy[i].

        Returns:
            eps, accuracy: float64 (K,). eps rises from 0 over every distance up to ``limit`` (rounded to float32), where it ends.
        """
        end = _radius(limit)
        eps = torch.cat([torch.zeros(1), self._sorted[self._sorted <= end], torch.tensor([end])]).unique().double()
        return eps, self.accuracy(eps)

    @property
    def median(self) -> float:
        """The median distance of the points that are right without an attack (the middle of two if they are even in number).

        Infinite if half of them were never broken, NaN if there is none.
        """
        right = self._sorted[self._sorted > 0].double()
        return float(right[[(len(right) - 1) // 2, len(right) // 2]].mean()) if len(right) else math.nan

    def area(self, limit: float = 0.15) -> float:
        """The mean of the curve over [0, limit], in [0, 1]: the exact area under it divided by ``limit``, mean(min(d, limit)) / limit."""
        end = _radius(limit)
        return float((self.value.double().clamp(max=end) / end).mean())


def _vector(given: Any, what: str) -> Tensor:
    try:
        tensor = torch.as_tensor(given).detach()
    except (TypeError, ValueError, RuntimeError):
        raise Invalid(f"{what} is a {type(given).__name__} that is no array of numbers; expected shape (N,)") from None
    if tensor.ndim != 1 or not len(tensor):
        raise Invalid(f"{what} has shape {tuple(tensor.shape)}, expected (N,) with at least one point")
    return tensor


def _radius(limit: float) -> float:
    """The end of a curve, rounded to float32, in which radii are compared."""
    end = float(np.float32(limit)) if isinstance(limit, Real) and 0 < limit < math.inf else 0.0
    if not 0 < end < math.inf:
        raise Invalid(f"limit is {limit!r}, expected a radius above 0, such as 0.15")
    return end


# --- files ------------------------------------------------------------------------------------------------------------------


def write(path: str | Path, distances: Distances) -> Path:
    """Write distances as ``.npz``, atomically; `read` gives back the same values, bit for bit.

    Arrays: format (int), value float32 (N,), name, method; and index, label int64 (N,), data, eps float64 where they are known.

    Raises:
        Invalid: another ending, or a place that cannot be written to.
    """
    path = Path(path)
    if path.suffix.lower() != ".npz":
        raise Invalid(f"cannot write distances as {path.name!r}; give a name that ends in .npz")
    arrays = {name: np.asarray(value) for name, value in vars(distances).items() if name in _FIELDS and value is not None}

    def save(tmp: Path) -> None:
        with open(tmp, "wb") as f:
            np.savez(f, format=np.asarray(FORMAT), **arrays)

    atomic(path, save)
    return path


def read(path: str | Path) -> Distances:
    """Read distances: a file of `write`, or a pickle as the survey publishes them. Nothing in a file is ever executed.

    A pickle may hold a list of numbers, of tensors or of numpy scalars, a one-dimensional array or tensor, or a dict of these. It is
    named by its file; where that is the key of a network of the survey, ``data`` and ``eps`` are filled in. In the survey's files 0
    stands for "wrong without any attack" and for "none found" alike; both count as not robust, as in the survey.

    Raises:
        Invalid: no such file, one that is empty, too large, damaged, or something else, one that holds code or several models.
    """
    found = _read(Path(path))
    if len(found) > 1:
        names = ", ".join(short(d.name) for d in found[:4])
        raise Invalid(f"{path} holds the distances of {len(found)} models ({names}), expected one; read it with load_all([path])")
    return found[0]


def load_all(paths: Iterable[str | Path]) -> list[Distances]:
    """The distances of all files, each with a name of its own: a second "x" becomes "x (2)".

    Raises:
        Invalid: no path, or a file that `read` refuses; a dict of several models is taken apart.
    """
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    if not paths:
        raise Invalid("no files of distances were given; name at least one .npz or .pickle")
    named: dict[str, Distances] = {}
    for given in (d for path in paths for d in _read(Path(path))):
        name, k = given.name, 1
        while name in named:
            k += 1
            name = f"{given.name} ({k})"
        named[name] = replace(given, name=name)
    return list(named.values())


_FIELDS = tuple(field.name for field in fields(Distances))
_SURVEYED = re.compile(r"_(?:R18|V16)_(CIFAR10|SVHN)_(?:US|S)_\d\d")


def _read(path: Path) -> list[Distances]:
    try:
        if not path.is_file():
            raise Invalid(f"no file {path}; give a .npz that apnb wrote, or a .pickle of the survey")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise Invalid(
                f"{path} has {size >> 20} MiB, more than any file of distances ({MAX_BYTES >> 20} MiB); it was not read"
            )
        content = path.read_bytes()
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror or error}") from None
    if not content:
        raise Invalid(f"{path} is empty; fetch or compute it again")
    if content[:100].lstrip()[:1] == b"<":
        raise Invalid(f"{path} is a web page, not a file of distances; the download went wrong, fetch it with a browser")
    try:
        return [_from_npz(content)] if content[:2] == b"PK" else _from_pickle(content, path)
    except Invalid as error:
        raise Invalid(f"{path}: {error}") from None
    except Exception as error:  # a hostile or damaged file fails in many ways; none of them is the reader's concern
        raise Invalid(
            f"{path} is damaged or no file of distances ({type(error).__name__}: {short(error)}); nothing was executed"
        ) from None


def _from_npz(content: bytes) -> Distances:
    with zipfile.ZipFile(io.BytesIO(content)) as z:
        if sum(entry.file_size for entry in z.infolist()) > MAX_BYTES:
            raise Invalid(f"it unpacks to more than {MAX_BYTES >> 20} MiB, which no file of distances does")
    with np.load(io.BytesIO(content), allow_pickle=False) as z:
        if not {"format", "value", "name", "method"} <= set(z.files):
            raise Invalid("it lacks the arrays format, value, name and method of a file that apnb.curves.write wrote")
        if (version := z["format"].item()) != FORMAT:
            raise Invalid(f"it has format {short(version)}, this version of apnb reads {FORMAT}; use the one that wrote it")
        stored = {name: z[name] for name in _FIELDS if name in z.files}
    return Distances(**{name: array if array.ndim else array.item() for name, array in stored.items()})


def _from_pickle(content: bytes, path: Path) -> list[Distances]:
    value = pickles.read(content)
    surveyed = _SURVEYED.search(path.stem)
    about = {
        "method": f"{'HO-FMN as the survey ran it' if surveyed else 'an attack that the file does not name'} "
        "(0 in the file: wrong without attack, or none found)",
        "data": surveyed[1].lower() if surveyed else None,
        "eps": 8 / 255 if surveyed else None,
    }
    if not isinstance(value, Pairs):
        value = Pairs([(path.stem, value)])
    elif all(is_number(v) for _, v in value):
        value = Pairs([(path.stem, [v for _, v in value])])
    elif len(value) == 1:
        value = Pairs([(path.stem, value[0][1])])
    if len(value) > MAX_MODELS or not all(type(key) is str for key, _ in value):
        raise Invalid(
            f"it holds a dict of {len(value)} lists, expected one list, or up to {MAX_MODELS} with the name of a model for each"
        )
    return [Distances(numbers(v), name=key, **about) for key, v in value]
