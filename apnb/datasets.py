"""Data sets: the embedded digits, CIFAR-10 and SVHN, and any image folder, zip, .npz or pair of arrays.

Images are (N, C, H, W), uint8 or float32 in [0, 1]; labels are int64 (N,). Whoever computes with them gets float32 in [0, 1]:
normalisation lives inside the network. No split is ever chosen by looking at test images, and every split has a fixed seed:
the same files give the same images in the same order everywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import socket
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from pathlib import Path, PurePosixPath

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .chance import generator
from .errors import Invalid, choose, nearest
from .paths import data_path

NAMES = ("digits", "cifar10", "svhn")
AUGMENT = ("none", "crop", "crop_flip")
SUBSETS = ("stratified", "random", "first")
COLOUR_EPS = 8 / 255  # the benchmark's budget for colour images, L-infinity
LIMIT = 20 * 1000**3  # bytes: a data set must fit into memory, so a larger one is refused before it is read


# -------------------------------------------------------------------------------------------------------- splits and data sets


def _unit(x: Tensor) -> Tensor:
    """Images as float32 in [0, 1]. The 255 is a tensor because a GPU divides by a plain number less exactly than a CPU."""
    return x.float() / torch.full((), 255.0, device=x.device) if x.dtype == torch.uint8 else x


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels: ``x`` uint8, or float32 in [0, 1], (N, C, H, W); ``y`` int64 (N,)."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def images(self, index: Tensor | slice | None = None) -> Tensor:
        """The images (at ``index``) as float32 in [0, 1], (n, C, H, W); uint8 is divided by 255."""
        return _unit(self.x if index is None else self.x[index])

    def at(self, index: Tensor) -> Split:
        """The split of the images at ``index``."""
        return Split(self.x[index], self.y[index])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of one image classification problem.

    ``eps`` is the L-infinity budget of an attack in the scale of [0, 1]; ``augment`` is what training does to its images: "none",
    "crop" (shifted by up to 4 pixels, 2 below 32x32, filled with zeros) or "crop_flip" (also mirrored). Raises `Invalid` for
    splits that are empty, differ in shape, or hold labels or pixels out of range.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    eps: float
    labels: tuple[str, ...] | None = None
    augment: str = "none"
    source: str = ""

    def __post_init__(self):
        if isinstance(self.classes, bool) or not isinstance(self.classes, int) or self.classes < 2:
            raise Invalid(f"{self.name}: {self.classes!r} classes; a classification problem has at least 2")
        if isinstance(self.eps, bool) or not isinstance(self.eps, Real) or not 0 < self.eps <= 1:
            raise Invalid(f"eps is {self.eps!r}, expected a share of the pixel range above 0 and up to 1, such as 8/255")
        object.__setattr__(self, "eps", float(self.eps))
        object.__setattr__(self, "augment", choose(self.augment, AUGMENT, "augmentation"))
        if self.labels is not None and len(self.labels) != self.classes:
            raise Invalid(f"{self.name}: {len(self.labels)} class names for {self.classes} classes; give one each, or none")
        for part, split in self.splits.items():
            _check(f"{self.name}, {part}", split, self.classes)
            if split.x.shape[1:] != self.train.x.shape[1:] or split.x.dtype != self.train.x.dtype:
                raise Invalid(
                    f"{self.name}: images of {part} are {split.x.dtype} {tuple(split.x.shape[1:])}, those of train "
                    f"{self.train.x.dtype} {tuple(self.train.x.shape[1:])}; all splits must have one shape and type"
                )

    @property
    def splits(self) -> dict[str, Split]:
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def channels(self) -> int:
        return self.train.x.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return tuple(self.train.x.shape[2:])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over the names, types, shapes and bytes of all splits: what a stored run was computed on."""
        digest = hashlib.sha256()
        for part, split in self.splits.items():
            for letter, tensor in (("x", split.x), ("y", split.y)):
                digest.update(f"{part}.{letter} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.detach().cpu().contiguous().numpy())
        return digest.hexdigest()

    def sample(self) -> Tensor:
        """The first two training images (one if there is no other), float32 in [0, 1]."""
        return self.train.images(slice(0, 2))


def _check(what: str, split: Split, classes: int) -> None:
    x, y = split.x, split.y
    if x.ndim != 4 or x.dtype not in (torch.uint8, torch.float32):
        raise Invalid(f"{what}: images are {x.dtype} {tuple(x.shape)}, expected uint8 or float32 of shape (N, C, H, W)")
    if y.dtype != torch.int64 or y.ndim != 1 or len(y) != len(x):
        raise Invalid(f"{what}: labels are {y.dtype} {tuple(y.shape)}, expected int64 of shape ({len(x)},), one an image")
    if x.numel() == 0:
        raise Invalid(f"{what} holds no pixel (shape {tuple(x.shape)}); every split needs at least one image")
    if y.min() < 0 or y.max() >= classes:
        raise Invalid(f"{what}: labels run from {int(y.min())} to {int(y.max())}, expected 0 to {classes - 1}")
    if x.dtype == torch.float32:
        low, high = float(x.min()), float(x.max())  # NaN in, NaN out
        if not (low >= 0 and high <= 1):
            raise Invalid(
                f"{what}: pixels run from {low:.4g} to {high:.4g}, expected finite floats in [0, 1]; divide by 255 if they are "
                "bytes, and leave normalisation to the network"
            )


def subset(split: Split, n: int, *, how: str = "stratified", seed: int = 0) -> Tensor:
    """Indices of exactly ``n`` images of a split, sorted, int64 (n,); a function of labels, ``n``, ``how`` and ``seed`` alone.

    ``how``: "stratified" (classes in proportion, largest remainder), "random", or "first" (as others quote "the first 1000").
    Raises `Invalid` if ``n`` is no number from 1 to the size of the split.
    """
    how = choose(how, SUBSETS, "way to draw points")
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= len(split):
        raise Invalid(f"a subset of {n!r} images was asked from {len(split)}; give a whole number from 1 to {len(split)}")
    if how == "first":
        return torch.arange(n)
    draw = generator("subset", how, seed)
    if how == "random":
        return torch.randperm(len(split), generator=draw)[:n].sort().values
    y = split.y.cpu()
    counts = torch.bincount(y)
    take = counts * n // len(y)
    left = (counts * n % len(y)).sort(descending=True, stable=True).indices[: n - int(take.sum())]
    take[left] += 1
    return _draw(y, take.tolist(), draw)


def _draw(y: Tensor, take: list[int], draw: torch.Generator) -> Tensor:
    """Sorted indices of take[c] random members of each class c."""
    parts = []
    for label, count in enumerate(take):
        members = (y == label).nonzero().flatten()
        parts.append(members[torch.randperm(len(members), generator=draw)[:count]])
    return torch.cat(parts).sort().values


def _divide(what: str, split: Split, classes: int, test: bool, validation: bool) -> list[Split]:
    """The rest, and as asked 20 % (test) and 10 % (validation) of each class, rounded, at least one; the seed is fixed."""
    counts = torch.bincount(split.y, minlength=classes)
    if counts.min() < 3:
        label = int(counts.argmin())
        raise Invalid(
            f"{what}: class {label} has {int(counts[label])} image(s) to divide into splits, expected at least 3 of each class "
            "(labels run from 0 without a gap)"
        )
    draw, parts, left = generator("split"), [], torch.arange(len(split))
    for share, wanted in ((0.2, test), (0.1, validation)):
        if wanted:
            chosen = left[_draw(split.y[left], [max(1, round(share * count)) for count in counts.tolist()], draw)]
            parts.append(split.at(chosen))
            left = left[~torch.isin(left, chosen)]
    return [split.at(left), *parts]


def _dataset(name: str, train: Split, validation: Split | None, test: Split | None, *, classes: int, **more) -> Dataset:
    """A data set whose missing splits are taken out of its training images."""
    for part, split in (("train", train), ("validation", validation), ("test", test)):
        if split is not None:
            _check(f"{name}, {part}", split, classes)
    if test is None and validation is None:
        train, test, validation = _divide(name, train, classes, True, True)
    elif test is None:
        train, test = _divide(name, train, classes, True, False)
    elif validation is None:
        train, validation = _divide(name, train, classes, False, True)
    return Dataset(name=name, train=train, validation=validation, test=test, classes=classes, **more)


# --------------------------------------------------------------------------------------------------------------------- loading


def load(data: object, *, eps: float | None = None, augment: str | None = None, root: str | Path | None = None) -> Dataset:
    """The data set that ``data`` names.

    ``data``: "digits" (embedded, nothing to download), "cifar10" or "svhn" (through torchvision, with its checksums),
    "folder:PATH" (a directory or .zip with CLASS/image or train/CLASS/image, test/CLASS/image), "npz:PATH" (``x``, ``y``, or
    ``x_train``, ``y_train``, ``x_test``, ``y_test``), a pair ``(x, y)`` of arrays or tensors, or a `Dataset`.
    ``eps`` and ``augment`` replace the data set's own. ``root`` is where downloaded data lie: default APNB_DATA, else the user's
    data folder.

    Raises `Invalid` with a sentence that names the file or array at fault and what was expected.
    """
    if isinstance(data, Dataset):
        dataset = data
    elif isinstance(data, (tuple, list)):
        if len(data) != 2:
            raise Invalid(f"{len(data)} arrays were given as data, expected a pair (x, y) of images and labels")
        dataset = _from_arrays("arrays", {"x": data[0], "y": data[1]}, "arrays given in Python")
    elif not isinstance(data, (str, Path)):
        raise Invalid(
            f"data cannot be a {type(data).__name__}; give a name ({', '.join(NAMES)}), a path, a pair (x, y) or a Dataset"
        )
    else:
        dataset = _named(str(data), root)
    changes = {key: value for key, value in (("eps", eps), ("augment", augment)) if value is not None}
    return replace(dataset, **changes) if changes else dataset


def pixels(data: object) -> int:
    """Values in one image (C * H * W), which decides what a budget's name means; known data sets are not loaded for it."""
    known = {"digits": 64, "cifar10": 3072, "svhn": 3072}
    if isinstance(data, str) and data in known:
        return known[data]
    return load(data).train.x[0].numel()


def points(data: object, *, eps: float | None = None) -> Dataset:
    """What an evaluation attacks: the test images of the data set that ``data`` names, or a pair (x, y) whole."""
    if not (isinstance(data, (tuple, list)) and len(data) == 2):
        return load(data, eps=eps)
    split = Split(_images(data[0], "x"), _labels(data[1], "y"))
    classes = max(2, int(split.y.max()) + 1) if len(split.y) else 2
    return Dataset("arrays", split, split, split, classes, COLOUR_EPS if eps is None else eps, source="arrays given in Python")


def _named(name: str, root: str | Path | None) -> Dataset:
    kind, colon, path = name.partition(":")
    if colon and kind == "folder":
        return _from_folder(Path(path).expanduser())
    if colon and kind == "npz":
        return _from_npz(Path(path).expanduser())
    if name == "digits":
        return _digits()
    if name in ("cifar10", "svhn"):
        return _from_torchvision(name, data_root(root))
    if Path(name).expanduser().exists():
        raise Invalid(f"{name!r} is a path; write {('npz:' if name.endswith('.npz') else 'folder:') + name!r}")
    raise Invalid(f"no data set {name!r}; did you mean {nearest(name, (*NAMES, 'folder:PATH', 'npz:PATH'))}?")


def data_root(root: str | Path | None = None) -> Path:
    """Where downloaded data lie: ``root``, else the environment's APNB_DATA, else "data" in the user's data folder."""
    if root or os.environ.get("APNB_DATA"):
        return Path(root or os.environ["APNB_DATA"]).expanduser()
    try:
        import platformdirs
    except ImportError:
        return Path("~/.apnb/data").expanduser()
    return Path(platformdirs.user_data_dir("apnb")) / "data"


def there(name: str, root: str | Path | None = None) -> bool:
    """Whether nothing has to be downloaded: the files of cifar10 or svhn lie where `load` looks for them, or it is another data set."""
    files = {"cifar10": ["cifar-10-batches-py"], "svhn": ["train_32x32.mat", "test_32x32.mat"]}.get(name, [])
    return all((data_root(root) / file).exists() for file in files)


def _digits() -> Dataset:
    """scikit-learn's 1797 hand-written digits of 8x8 pixels in 17 grey levels: 1097 train, 200 validation, 500 test."""
    x, y = _digits_images()
    splits = json.loads(data_path("digits_splits.json").read_text(encoding="utf-8"))
    test, validation = (torch.tensor(splits[part]) for part in ("test", "validation"))
    train = torch.ones(len(y), dtype=torch.bool).index_fill(0, torch.cat([test, validation]), False).nonzero().squeeze(1)
    whole = Split(torch.from_numpy(x / 16).float().unsqueeze(1), torch.from_numpy(y).long())
    return Dataset(
        name="digits",
        train=whole.at(train),
        validation=whole.at(validation),
        test=whole.at(test),
        classes=10,
        eps=0.15,
        labels=tuple("0123456789"),
        source="scikit-learn, load_digits (Alpaydin and Kaynak, 1998), pixels divided by 16",
    )


def _digits_images() -> tuple[np.ndarray, np.ndarray]:
    """Images (1797, 8, 8) from 0 to 16 and labels. scikit-learn's file is read where it lies: importing the package takes a second."""
    found = importlib.util.find_spec("sklearn")
    file = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz" if found and found.origin else None
    if file is None or not file.is_file():
        from sklearn.datasets import load_digits

        bunch = load_digits()
        return bunch.images, bunch.target
    table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1]


def _from_torchvision(name: str, root: Path) -> Dataset:
    """CIFAR-10 or SVHN with 5000 stratified training images held out for validation. torchvision checks the MD5 of every file."""
    try:
        import torchvision.datasets as tv
    except ImportError as error:
        raise Invalid(
            f"{name} needs torchvision, which is not installed; `pip install torchvision`, or use --data digits"
        ) from error

    if name == "cifar10":
        files = (tv.CIFAR10.url,)
        train, test = (_fetch(name, tv.CIFAR10, root, files, {"train": train}) for train in (True, False))
        arrays = [(d.data.transpose(0, 3, 1, 2), d.targets) for d in (train, test)]
        labels = tuple(train.classes)
    else:
        files = tuple(tv.SVHN.split_list[part][0] for part in ("train", "test"))
        train, test = (_fetch(name, tv.SVHN, root, files, {"split": part}) for part in ("train", "test"))
        arrays = [(d.data, d.labels) for d in (train, test)]
        labels = tuple("0123456789")
    whole, test = (Split(torch.from_numpy(np.ascontiguousarray(x)), torch.as_tensor(np.asarray(y)).long()) for x, y in arrays)
    held = subset(whole, min(5000, len(whole) // 10))
    rest = torch.ones(len(whole), dtype=torch.bool)
    rest[held] = False
    return Dataset(
        name=name,
        train=whole.at(rest),
        validation=whole.at(held),
        test=test,
        classes=10,
        eps=COLOUR_EPS,
        labels=labels,
        augment="crop_flip" if name == "cifar10" else "crop",
        source=f"torchvision, {', '.join(files)}",
    )


def _fetch(name: str, kind: type, root: Path, urls: tuple[str, ...], variant: dict):
    """torchvision's data set, read from ``root`` or downloaded into it; a file counts only if torchvision finds its MD5 right."""
    with contextlib.suppress(RuntimeError):  # absent or damaged: torchvision's word for both
        return kind(root, download=False, **variant)
    from filelock import FileLock

    timeout = socket.getdefaulttimeout()
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f".{name}.lock")  # two processes that need the same download wait for each other
        with lock, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            socket.setdefaulttimeout(30)  # seconds of silence, where torchvision would wait for ever
            return kind(root, download=True, **variant)
    except Exception as error:
        raise Invalid(
            f"{name} is not in {root} and cannot be downloaded ({type(error).__name__}: {error}); download {' and '.join(urls)} "
            f"elsewhere and put it there, name another folder with APNB_DATA, or use --data digits, which needs no download"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


# ------------------------------------------------------------------------------------------------------------- arrays and .npz


def _tensor(value: object, what: str) -> Tensor:
    """A copy of an array or tensor of numbers as a tensor on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise Invalid(f"{what} is no array ({error}); its rows may differ in length") from error
    if array.dtype.kind not in "uif":
        raise Invalid(f"{what} is an array of {array.dtype}, expected numbers")
    kind = np.float32 if array.dtype.kind == "f" else np.uint8 if array.dtype == np.uint8 else np.int64
    return torch.from_numpy(np.array(array, dtype=kind, order="C"))


def _images(value: object, what: str) -> Tensor:
    """(N, C, H, W) uint8 or float32 from (N, C, H, W), (N, H, W, C) or (N, H, W)."""
    x = _tensor(value, what)
    shape = tuple(x.shape)
    if x.ndim == 3:
        x = x.unsqueeze(1)
    elif x.ndim == 4:
        front, back = shape[1] in (1, 3), shape[3] in (1, 3)
        if front == back:
            why = "its axis of channels cannot be told" if front else "it has neither 1 nor 3 channels"
            raise Invalid(f"{what} has shape {shape} and {why}; give (N, C, H, W), or a Dataset made in Python")
        x = x if front else x.permute(0, 3, 1, 2)
    else:
        raise Invalid(f"{what} has shape {shape}, expected images (N, C, H, W), (N, H, W, C) or (N, H, W)")
    if x.dtype != torch.uint8:
        if not x.is_floating_point():
            raise Invalid(f"{what} is {x.dtype}, expected uint8, or floats in [0, 1]")
        x = x.float()
    return x.contiguous()


def _labels(value: object, what: str) -> Tensor:
    y = _tensor(value, what)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise Invalid(f"{what} is {y.dtype} of shape {tuple(y.shape)}, expected whole numbers of shape (N,), one label an image")
    return y.long()


def _from_arrays(name: str, arrays: dict[str, object], source: str) -> Dataset:
    """Arrays under the names x and y, or x_train and y_train; and perhaps x_val and y_val, x_test and y_test."""
    splits: dict[str, Split | None] = {}
    for part, suffix in (("train", "" if "x" in arrays else "_train"), ("validation", "_val"), ("test", "_test")):
        x, y = f"x{suffix}", f"y{suffix}"
        splits[part] = Split(_images(arrays[x], f"{name}, {x}"), _labels(arrays[y], f"{name}, {y}")) if x in arrays else None
    given = [split for split in splits.values() if split is not None]
    classes = max((int(split.y.max()) + 1 for split in given if len(split)), default=2)
    if classes > max(2, sum(map(len, given))):
        raise Invalid(f"{name}: a label is {classes - 1} though there are {sum(map(len, given))} images; labels count from 0")
    return _dataset(name, **splits, classes=max(2, classes), eps=COLOUR_EPS, source=source)


def _from_npz(path: Path) -> Dataset:
    if not path.is_file():
        raise Invalid(f"{path} is no file; expected the path of an .npz after 'npz:'")
    try:
        with zipfile.ZipFile(path) as file:
            _refuse_huge(path, file)
        with np.load(path, allow_pickle=False) as file:
            found = file.files
            suffixes = ["" if "x" in found else "_train"] + [s for s in ("_val", "_test") if f"x{s}" in found or f"y{s}" in found]
            wanted = [letter + suffix for suffix in suffixes for letter in "xy"]
            if missing := [key for key in wanted if key not in found]:
                raise Invalid(
                    f"{path} lacks {', '.join(missing)}: it holds {', '.join(found) or 'nothing'}; expected x and y, or x_train, "
                    "y_train, x_test, y_test and perhaps x_val, y_val"
                )
            arrays = {key: file[key] for key in wanted}
    except Invalid:
        raise
    except Exception as error:  # no zip, a bare .npy, damaged, or objects, which would have to be unpickled
        raise Invalid(f"{path} is no .npz of plain arrays ({type(error).__name__}: {error}); write it with np.savez") from error
    return _from_arrays(f"npz:{path.stem}", arrays, str(path))


def _refuse_huge(path: Path, file: zipfile.ZipFile) -> None:
    size = sum(info.file_size for info in file.infolist())
    if size > LIMIT:
        raise Invalid(f"{path} would unpack to {size / 1e9:.0f} GB; a data set must fit into memory, {LIMIT // 10**9} GB at most")


# -------------------------------------------------------------------------------------------------------------- image folders

_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_NO_IMAGE = {".txt", ".md", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".html", ".ini", ".db"}
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # Pillow reads more, some by starting other programs


def _from_folder(path: Path) -> Dataset:
    """Images in CLASS/ or train/CLASS/, test/CLASS/ (val/CLASS/), in a directory or a .zip, which is never unpacked to disk."""
    if path.is_dir():
        return _from_images(path, _walk(path), lambda name: (path / name).read_bytes())
    if not path.is_file():
        raise Invalid(f"{path} does not exist; expected the path of a directory or .zip of images after 'folder:'")
    try:
        file = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise Invalid(f"{path} is neither a directory nor a readable .zip ({error})") from error
    with file:
        _refuse_huge(path, file)
        return _from_images(path, {info.filename for info in file.infolist() if not info.is_dir()}, file.read)


def _walk(path: Path) -> set[str]:
    names = set()
    for folder, folders, files in os.walk(path, followlinks=True):
        inside = PurePosixPath(Path(folder).relative_to(path).as_posix())
        names.update(str(inside / file) for file in files)
        if len(inside.parts) >= 4:  # deeper than any layout that is understood; links may form circles
            folders.clear()
    return names


def _from_images(path: Path, names: set[str], read: Callable[[str], bytes]) -> Dataset:
    files = {}  # parts of the path -> name as `read` takes it
    for name in sorted(names):
        parts = PurePosixPath(name).parts
        hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
        if not hidden and PurePosixPath(name).suffix.lower() not in _NO_IMAGE:
            files[parts] = name
    if not files:
        raise Invalid(f"{path} holds no image; expected CLASS/image files, or train/CLASS and test/CLASS")
    tops = {parts[0] for parts in files}
    if len(tops) == 1 and not tops & set(_SPLITS) and min(map(len, files)) > 2:  # one folder around everything
        files = {parts[1:]: name for parts, name in files.items()}
    flat = all(len(parts) == 2 for parts in files)
    for parts, name in files.items():
        if not flat and not (len(parts) == 3 and parts[0] in _SPLITS):
            raise Invalid(f"{path}: {name} lies in no class; expected all images in CLASS/, or in train/CLASS/ and test/CLASS/")

    where: dict[str, list[tuple[str, str]]] = {}  # split -> (class, file)
    for parts, name in files.items():
        where.setdefault("train" if flat else _SPLITS[parts[0]], []).append((parts[-2], name))
    labels = sorted({label for label, _ in where.get("train", [])})
    if len(labels) < 2:
        raise Invalid(f"{path} holds {len(labels)} class(es) to train on ({', '.join(labels)}); expected at least 2 folders")
    for part, items in where.items():
        for label, name in items:
            if label not in labels:
                raise Invalid(f"{path}: {name} is of class {label!r} ({part}), which train does not have")

    order = [(part, labels.index(label), name) for part, items in where.items() for label, name in sorted(items)]
    pixels = _read(path, [name for _, _, name in order], read)
    splits = {}
    for part in ("train", "validation", "test"):
        index = torch.tensor([i for i, item in enumerate(order) if item[0] == part], dtype=torch.int64)
        y = torch.tensor([order[i][1] for i in index.tolist()], dtype=torch.int64)
        splits[part] = Split(pixels[index], y) if len(index) else None
    return _dataset(
        f"folder:{path.resolve().stem}", **splits, classes=len(labels), eps=COLOUR_EPS, labels=tuple(labels), source=str(path)
    )


def _read(path: Path, names: list[str], read: Callable[[str], bytes]) -> Tensor:
    """All images as one uint8 tensor (N, C, H, W): grey if all are grey, else RGB."""
    from PIL import Image

    arrays: list[np.ndarray] = []
    for name in names:
        try:
            with Image.open(io.BytesIO(read(name)), formats=_FORMATS) as image:
                if image.mode.startswith(("I", "F")):
                    raise Invalid(f"{path}: {name} has more than 8 bits a channel ({image.mode}); convert it to 8 bits")
                size = (image.height, image.width)
                if arrays and size != arrays[0].shape[:2]:
                    first = "x".join(map(str, arrays[0].shape[:2]))
                    raise Invalid(
                        f"{path}: {names[0]} is {first} pixels (height x width), {name} is {size[0]}x{size[1]}; all images must "
                        "have one size"
                    )
                arrays.append(np.array(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")))
        except Invalid:
            raise
        except Exception as error:  # Pillow raises many kinds for what is damaged or no image
            raise Invalid(
                f"{path}: {name} cannot be read as an image ({type(error).__name__}: {error}); remove or repair it"
            ) from error
        if arrays[0].nbytes * len(names) > LIMIT:
            raise Invalid(f"{path}: {len(names)} images of this size do not fit into {LIMIT // 10**9} GB; make them smaller")
    if all(array.ndim == 2 for array in arrays):
        return torch.from_numpy(np.stack(arrays)).unsqueeze(1)
    rgb = (array if array.ndim == 3 else np.repeat(array[:, :, None], 3, axis=2) for array in arrays)
    return torch.from_numpy(np.stack([array.transpose(2, 0, 1) for array in rgb]))


# --------------------------------------------------------------------------------------------------------------------- batches


class Batches:
    """The training batches of a stage: ``batches(epoch)`` iterates over (x, y) of one epoch, ``len(batches)`` is their number.

    x is float32 (n, C, H, W) in [0, 1], in channels_last memory where C > 1; y is int64 (n,); both on ``device``, where the whole
    split lies from the start. Order and augmentation are a function of (seed, stage, epoch) alone: all random numbers are drawn
    on the CPU, so that a GPU sees the same images, bit for bit, and a resumed run the same epochs.

    The images left over behind the last full batch are a batch if they are at least two and half a batch, or all there is:
    batch normalisation needs company.
    """

    def __init__(
        self, split: Split, batch: int, *, seed: int, stage: str, augment: str = "none", device: str | torch.device = "cpu"
    ):
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise Invalid(f"the batch is {batch!r} images, expected a whole number of at least 1")
        self.augment = choose(augment, AUGMENT, "augmentation")
        self.batch, self.seed, self.stage, self.device = batch, seed, stage, torch.device(device)
        self.height, self.width = split.x.shape[2:]
        self.pad = 0 if self.augment == "none" else 4 if min(self.height, self.width) >= 32 else 2
        # Pixels lie (N, H, W, C), already padded: a crop is one look-up of pixels, and comes out in channels_last.
        x = F.pad(split.x.to(self.device), (self.pad,) * 4)
        self._pixels = x.permute(0, 2, 3, 1).contiguous()
        self._y = split.y.to(self.device)
        full, rest = divmod(len(split), batch)
        self._steps = full + (1 if rest and (full == 0 or rest >= max(2, batch / 2)) else 0)

    def __len__(self) -> int:
        return self._steps

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        n = len(self._y)
        draw = generator(self.seed, self.stage, epoch)
        order = torch.randperm(n, generator=draw).to(self.device)
        if self.augment == "none":
            for at in self._slices():
                x = self._pixels[order[at]]
                yield self._float(x), self._y[order[at]]
            return
        shifts = torch.randint(2 * self.pad + 1, (2, n), generator=draw).to(self.device)
        mirrored = (torch.rand(n, generator=draw) < 0.5).to(self.device)
        rows = torch.arange(self.height, device=self.device)
        columns = torch.arange(self.width, device=self.device)
        for at in self._slices():
            index = order[at]
            row, column = shifts[0, at, None] + rows, shifts[1, at, None] + columns
            if self.augment == "crop_flip":
                column = torch.where(mirrored[at, None], column.flip(1), column)
            yield self._float(self._pixels[index[:, None, None], row[:, :, None], column[:, None, :]]), self._y[index]

    def _slices(self) -> Iterator[slice]:
        return (slice(i * self.batch, (i + 1) * self.batch) for i in range(self._steps))

    def _float(self, x: Tensor) -> Tensor:
        layout = torch.channels_last if x.shape[3] > 1 else torch.contiguous_format
        return _unit(x).permute(0, 3, 1, 2).contiguous(memory_format=layout)
