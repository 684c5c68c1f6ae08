"""Hostile and damaged checkpoint files: each is refused with one sentence that says what to do, and nothing else happens."""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import functools
import gc
import gzip
import io
import itertools
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
from _codecs import encode as _encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save as as_safetensors
from torch import Tensor

from apnb import checkpoints
from apnb.errors import Invalid
from apnb.networks import build
from tests import layouts

resource = pytest.importorskip("resource", reason="memory is watched as Linux tells it")
pytestmark = pytest.mark.timeout(60)
State = dict[str, Tensor]
SMALL = {"network": "cnn", "channels": 1, "classes": 10}
STATE: State = dict(build("cnn", channels=1, classes=10, seed=3).state_dict())
GB = 1 << 30

# ------------------------------------------------------------------------------------------------------------- ways to write


class Calls:
    """Pickled as a call of ``function``."""

    def __init__(self, function: Callable, *arguments: object):
        self.pair = function, arguments

    def __reduce__(self):
        return self.pair


class Wakes:
    """Acts when it is given its state."""

    def __init__(self, place: str):
        self.place = place

    def __setstate__(self, state: dict):
        os.mkdir(state["place"])


class Record:
    """Pickled as a persistent id: how torch names a storage."""

    def __init__(self, *id: object):
        self.id = id


class _Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.id if isinstance(value, Record) else None


def place(path: Path) -> str:
    """What code in a file would make."""
    return str(path.parent.parent / "was here")


def saved(value, **how: bool):
    """torch.save of a value, or of what a function makes of the path."""
    return lambda path: torch.save(value(path) if callable(value) else value, path, **how)


def changed(**tensors):
    """The weights with some of them replaced (``__`` stands for a dot), or taken out where None is given."""
    new = {name.replace("__", "."): t for name, t in tensors.items()}
    return saved({k: v for k, v in {**STATE, **new}.items() if v is not None})


def raw(content: bytes):
    return lambda path: path.write_bytes(content)


def legacy(value) -> bytes:
    """The old format by hand, with an empty list of storages: they would be what the memory held before."""
    stream, sizes = io.BytesIO(), {"short": 2, "int": 4, "long": 4}
    about = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
    for part in (0x1950A86A20F9469CFC6C, 1001, about, value, []):
        _Pickler(stream, protocol=2).dump(part)
    return stream.getvalue()


def written(legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(STATE, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def zipped(path: Path, entries: list[tuple[str, bytes]], kind: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", kind, compresslevel=1) as z, warnings.catch_warnings(action="ignore"):
        for name, content in entries:
            z.writestr(name, content)


def rezipped(change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]], kind: int = zipfile.ZIP_STORED):
    """The weights in an archive whose entries were changed."""

    def make(path: Path) -> None:
        with zipfile.ZipFile(io.BytesIO(written())) as z:
            entries = [(name, z.read(name)) for name in z.namelist()]
        zipped(path, change(entries), kind)

    return make


def by_hand(value, *records: bytes):
    """An archive with any pickle in it (bytes are taken as they are) and the storages "0", "1", ..."""

    def make(path: Path) -> None:
        stream = io.BytesIO()
        _Pickler(stream, protocol=2).dump(value(path) if callable(value) else value)
        content = value if isinstance(value, bytes) else stream.getvalue()
        stored = [(f"w/data/{i}", record) for i, record in enumerate(records)]
        zipped(path, [("w/data.pkl", content), ("w/byteorder", b"little"), *stored, ("w/version", b"3\n")])

    return make


def tensor(record: Record, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Calls:
    return Calls(torch._utils._rebuild_tensor_v2, record, offset, size, stride, False, collections.OrderedDict())


def storage(n: int, kind=torch.FloatStorage, key: str = "0") -> Record:
    return Record("storage", kind, key, "cpu", n)


def safetensors(header: dict | bytes, data: bytes = bytes(64), length: int | None = None) -> Callable:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return raw(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(shape: list, offsets: list, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def flipped(content: bytes, at: int, n: int = 1) -> bytes:
    return content[:at] + bytes(b ^ 0xFF for b in content[at : at + n]) + content[at + n :]


def hole(size: int):
    def make(path: Path) -> None:
        path.touch()
        os.truncate(path, size)

    return make


def bomb(path: Path) -> None:
    """1.25 GB of zeros in a file of some megabytes."""
    value = {
        **{k: v.numpy().tolist() for k, v in STATE.items()},
        "conv1.weight": tensor(storage(5 * GB // 16), 0, (16, 1, 3, 3), (9, 9, 3, 1)),
    }
    by_hand(value)(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as z, z.open("w/data/0", "w", force_zip64=True) as f:
        for _ in range(20):
            f.write(bytes(GB // 16))


def overlapping(path: Path) -> None:
    """Two entries of the list that are one entry of the file."""
    with zipfile.ZipFile(io.BytesIO(written())) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        first, second, *_ = (i for i in new.infolist() if "/data/" in i.filename and i.file_size == 64)
        second.header_offset = first.header_offset


def old_tar(path: Path) -> None:
    """What torch wrote before version 0.1.10, with code for a pickle."""
    content = pickle.dumps(Calls(os.mkdir, place(path)), protocol=2)
    with tarfile.open(path, "w") as tar:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def doubled(value, times: int, by: Callable):
    for _ in range(times):
        value = by(value)
    return value


def endless() -> dict:
    value: dict = {}
    value["state_dict"] = value
    return value


def script(path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)


def quantized() -> Tensor:
    with warnings.catch_warnings(action="ignore"):
        return torch.quantize_per_tensor(STATE["conv1.weight"], 0.1, 0, torch.qint8)


# ------------------------------------------------------------------------------------------------------------ the survey's files

FILES = {
    case.key: case
    for case in (
        layouts.Case("RST", "R18", 90, "scores", prefix="module."),
        layouts.Case("HARP", "R18", 90, "k_score"),
        layouts.Case("HYDRA", "R18", 90, "popup_scores"),
        layouts.Case("MAD", "R18", 90, "mask_weight", wrapper="net"),
        layouts.Case("RobustBird", "R18", 90, "weight_orig"),
        layouts.Case("TwinRep", "R18", 90, "factors", wrapper="net"),
        layouts.Case("Li20", "V16", 90, wrapper="net"),
        layouts.Case("HARP", "V16", 90),
        layouts.Case("PwoA", "R18", 90),
    )
}
RST, HARP, HYDRA, MAD, BIRD, TWIN, LI20, VGG, RESNET = FILES
layout = functools.cache(layouts.state)


def survey(key: str, change: Callable[[State], object] = lambda state: None):
    """A file of the survey as its authors' code writes it, with random weights, after a change of its state."""

    def make(path: Path) -> None:
        case = FILES[key]
        state = {name: t.clone() for name, t in layout(case).items()}
        change(state)
        torch.save({case.wrapper: {case.prefix + name: t for name, t in state.items()}, "epoch": 99}, path)

    return make


# ---------------------------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Case:
    id: str
    make: Callable[[Path], object]
    says: str  # a pattern in the sentence, in any case of letters
    file: str = "w.pt"
    arguments: dict = field(default_factory=lambda: SMALL)


def like(key: str) -> dict:
    return {"arguments": {"like": key}}


ZIP, LEGACY, SAFE = written(), written(legacy=True), as_safetensors({k: v.contiguous() for k, v in STATE.items()})
BROKEN = r"damaged|incomplete|without|compressed|cut short|truncated|cannot be read|is no|not a|holds"
CODE = r"code|executed|not run|was run"
FIT = r"fit|missing|left over|shape|network"
NUMBERS = r"float|number|type|dtype|sparse|quantized|complex|integer|bool|meta|data"
SAFE_FILE = "w.safetensors"
LAUGHS = doubled((), 60, lambda v: (v, v))
TWINS = doubled({"a": 1}, 60, lambda v: {"a": v, "b": v})
DEEP = b"\x80\x02" + b"}X\x01\x00\x00\x00a" * 100_000 + b"}" + b"s" * 100_000 + b"."
SIGNS = itertools.product((b"h\x00", b"h\x01"), repeat=16)  # of -1 and -2, which have one hash
TUPLES = b"\x80\x02}(J\xff\xff\xff\xffq\x00J\xfe\xff\xff\xffq\x01" + b"".join(b"(%stN" % b"".join(s) for s in SIGNS) + b"u."
PAIR = ("conv1.weight", "conv1.popup_scores")
NAN, INF = float("nan"), float("inf")


LARGE = torch.zeros(2 << 20)
COLLIDING = (
    b"\x80\x02}(" + b"".join(b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little") + b"N" for k in range(200_000)) + b"u."
)


def unfilled() -> bytes:
    kinds = {True: torch.FloatStorage, False: torch.LongStorage}
    records = {k: Record("storage", kinds[t.is_floating_point()], k, "cpu", t.numel(), None) for k, t in STATE.items()}
    return legacy({k: tensor(records[k], 0, tuple(t.shape), t.contiguous().stride()) for k, t in STATE.items()})


def grown() -> bytes:
    """A tensor of 4 bytes that is told afterwards that it has 1.6 GB."""
    record = Record("storage", torch.FloatStorage, "0", "cpu", 1, None)
    call = tensor(record, 0, (1,), (1,))
    call.pair += ((record, 0, (400_000_000,), (1,)),)
    return legacy({"x": call})


def shadowed() -> Calls:
    """A dict whose methods are numbers."""
    call = Calls(collections.OrderedDict)
    call.pair += (dict.fromkeys(("items", "keys", "values", "get"), 1), None, iter(STATE.items()))
    return call


def poisoned(name: str) -> bytes:
    """A pickle that sets an attribute of something harmless that it may name."""
    return b"\x80\x02c" + name.encode() + b"\nN}X\x04\x00\x00\x00evilK\x01s\x86b."


# fmt: off
CASES = [
    # what a bad connection leaves behind
    *(Case(f"archive cut at {n}", raw(ZIP[: int(len(ZIP) * n)]), BROKEN) for n in (0.0001, 0.1, 0.5, 0.9, 0.999)),
    *(Case(f"old format cut at {n}", raw(LEGACY[: int(len(LEGACY) * n)]), BROKEN) for n in (0.0001, 0.1, 0.5, 0.999)),
    *(Case(f"safetensors cut at {n}", raw(SAFE[: int(len(SAFE) * n)]), BROKEN, SAFE_FILE) for n in (0.00005, 0.01, 0.5, 0.999)),
    Case("empty", raw(b""), r"empty|0 bytes|nothing|damaged|cannot be read"),
    Case("quota page", raw(b"<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>"), r"html|web ?page|damaged"),
    Case("error page of JSON", raw(b'{"error": {"code": 403, "message": "The download quota has been exceeded."}}'), r"json|text|damaged"),
    Case("pointer to a large file", raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 44797\n"), BROKEN),
    Case("picture", raw(b"\x89PNG\r\n\x1a\n" + bytes(200)), BROKEN),
    Case("compressed once more", raw(gzip.compress(ZIP)), BROKEN),
    Case("line ends translated", raw(ZIP.replace(b"\n", b"\r\n")), BROKEN),
    Case("end repeated", raw(ZIP[:-1000] + ZIP[-2000:]), BROKEN),
    Case("hole in the middle", raw(ZIP[:60_000] + bytes(4096) + ZIP[64_096:]), BROKEN),
    Case("bits flipped in a tensor", raw(flipped(ZIP, 60_000, 4)), BROKEN),
    Case("arrays", lambda path: np.savez(path.open("wb"), **{k: v.numpy() for k, v in STATE.items()}), BROKEN, "w.npz"),
    # what is no file
    Case("folder", lambda path: path.mkdir(), r"folder|directory|no file"),
    Case("nothing there", lambda path: None, r"no file|not there|does not exist"),
    Case("endless device", lambda path: path.symlink_to("/dev/zero"), r"file"),
    Case("pipe", lambda path: os.mkfifo(path), r"file"),
    Case("link to itself", lambda path: path.symlink_to(path), r"file"),
    Case("name of 5000 letters", lambda path: None, r"file|name", "w" * 5000),
    Case("zero in the name", lambda path: None, r"file|name", "w\0.pt"),
    Case("2 GB of nothing", hole(2 * GB), BROKEN),
    Case("2 GB of nothing, safetensors", hole(2 * GB), BROKEN, SAFE_FILE),
    # code
    Case("call", saved(lambda p: {"net": Calls(os.mkdir, place(p))}), CODE),
    Case("call beside good weights, in args", saved(lambda p: {"net": STATE, "args": Calls(os.mkdir, place(p))}), CODE),
    Case("call in the optimizer", saved(lambda p: {"state_dict": STATE, "optimizer": [{0: Calls(os.mkdir, place(p))}]}), CODE),
    Case("call as a name", saved(lambda p: {"net": {Calls(os.mkdir, place(p)): STATE["bn1.bias"]}}), CODE),
    Case("eval", saved(lambda p: {**STATE, "x": Calls(eval, f"__import__('os').mkdir({place(p)!r})")}), CODE),
    Case("exec", saved(lambda p: {**STATE, "x": Calls(exec, f"import os; os.mkdir({place(p)!r})")}), CODE),
    Case("getattr", saved({**STATE, "x": Calls(getattr, os.PathLike, "register")}), CODE),
    Case("another process", saved(lambda p: {**STATE, "x": Calls(subprocess.Popen, ["mkdir", place(p)])}), CODE),
    Case("state that acts", saved(lambda p: {"net": STATE, "args": Wakes(place(p))}), CODE),
    Case("call in the old format", saved(lambda p: {"net": Calls(os.mkdir, place(p))}, _use_new_zipfile_serialization=False), CODE),
    Case("bare pickle", lambda p: p.write_bytes(pickle.dumps(Calls(os.mkdir, place(p)))), f"{CODE}|{BROKEN}"),
    Case("bare pickle, protocol 0", lambda p: p.write_bytes(pickle.dumps(Calls(os.mkdir, place(p)), 0)), f"{CODE}|{BROKEN}"),
    Case(
        "pickle in a pickle",
        saved(lambda p: {**STATE, "x": Calls(torch.storage._load_from_bytes, pickle.dumps(Calls(os.mkdir, place(p)), 2))}),
        CODE,
    ),
    Case("torch.load in a pickle", saved(lambda p: {**STATE, "x": Calls(torch.load, place(p))}), CODE),
    Case("call in a persistent id", by_hand(lambda p: {"x": Record("storage", Calls(os.mkdir, place(p)), "0", "cpu", 1)}), CODE),
    Case("function as a storage", by_hand({"x": tensor(storage(1, os.system), 0, (1,), (1,))}, bytes(4)), CODE),
    Case("module as a persistent id", by_hand(lambda p: Record("module", Calls(os.mkdir, place(p)), "x", "y")), CODE),
    Case("array of objects", saved(lambda p: {"net": STATE, "acc": np.array([Calls(os.mkdir, place(p))], object)}), CODE),
    Case("program", script, f"{CODE}|script|program|archive"),
    Case("whole network", saved(lambda p: build("cnn", channels=1, classes=10)), f"{CODE}|whole|network"),
    Case("old tar", old_tar, f"{CODE}|{BROKEN}|tar", "w.tar"),
    Case("code under a name that clears the screen", by_hand(b"\x80\x02c\x1b[2Jos\nsystem\n)R."), f"{CODE}|{BROKEN}"),
    Case("class changed for everybody", by_hand(poisoned("argparse\nNamespace")), f"{CODE}|{BROKEN}"),
    Case("function changed for everybody", by_hand(poisoned("torch._utils\n_rebuild_tensor_v2")), f"{CODE}|{BROKEN}"),
    # bombs
    Case("archive that unpacks to 1.25 GB", bomb, r"compressed|large|bytes|memory|damaged|cannot be read"),
    Case("bytes out of nothing", saved({**STATE, "x": Calls(bytearray, 2 * GB)}), ""),
    Case("tensor out of nothing", saved({**STATE, "x": Calls(torch.Tensor, GB // 2)}), ""),
    Case("a megabyte doubled 12 times", saved({**STATE, "x": doubled("x" * 2**20, 12, lambda v: Calls(_encode, v, "hex"))}), ""),
    Case("a codec that takes minutes", saved({**STATE, "x": Calls(_encode, "".join(map(chr, range(0x4E00, 0x8C80))), "punycode")}), ""),
    Case("bytes doubled 27 times", saved({**STATE, "x": doubled(b"0123456789abcdef", 27, lambda v: Calls(_encode, v, "hex"))}), ""),
    Case("4 bytes as 10^12 numbers", changed(conv1__weight=torch.zeros(1).expand(10**6, 10**6)), r"shape|large|fit|stride|bytes"),
    Case("4 bytes as 1.6 GB", changed(conv1__weight=torch.zeros(1).expand(20_000, 20_000)), r"shape|large|fit|stride|bytes"),
    Case("4 bytes as 1.6 GB, left over", changed(x=torch.zeros(1).expand(20_000, 20_000)), r"left over|large|fit|stride|bytes"),
    Case("storage that promises 10^12 numbers", by_hand({"x": tensor(storage(10**12), 0, (1,), (1,))}, bytes(4)), ""),
    Case("tensor outside of its storage", by_hand({"x": tensor(storage(4), 10**9, (4,), (1,))}, bytes(16)), ""),
    Case("tensor before its storage", by_hand({"x": tensor(storage(4), -4, (4,), (1,))}, bytes(16)), ""),
    Case("negative size", by_hand({"x": tensor(storage(4), 0, (-4,), (1,))}, bytes(16)), ""),
    Case("negative stride", by_hand({"x": tensor(storage(4), 3, (4,), (-1,))}, bytes(16)), ""),
    Case("one storage under 400 names", saved({f"x{i}": LARGE for i in range(400)}), ""),
    Case("200 000 keys of one hash", by_hand(COLLIDING), ""),
    Case("2^16 tuples of one hash", by_hand(TUPLES), ""),
    Case("text of 2 GB that is not there", by_hand(b"\x80\x02X\xff\xff\xff\x7fabc."), BROKEN),
    Case("old format with a storage that is never filled", raw(unfilled()), r"damaged|cut short|incomplete|storage|filled"),
    Case("tensor that grows", raw(grown()), ""),
    Case("prefix 200 000 times", saved({"module." * 200_000 + k: v for k, v in STATE.items()}), ""),
    Case("2^60 classes without weights", changed(linear__weight=torch.zeros(1 << 60, 0)), r"linear\.weight"),
    Case("tuples, 2^60 of them", saved({"state_dict": LAUGHS}), f"{BROKEN}|objects"),
    Case("dicts, 2^60 of them", saved(TWINS), f"{BROKEN}|objects"),
    Case("dict in itself", saved(endless()), BROKEN),
    Case("100 000 dicts in each other", by_hand(DEEP), BROKEN),
    # the archive
    Case("entries that overlap", overlapping, f"{BROKEN}|overlap|entries"),
    Case("entry that climbs out", rezipped(lambda e: [*e, ("archive/../../../was here", b"x")]), BROKEN),
    Case("entry with an absolute path", lambda p: rezipped(lambda e: [*e, (place(p), b"x")])(p), BROKEN),
    Case("storage that climbs out", by_hand({"x": tensor(storage(1, key="../../../etc/hostname"), 0, (1,), (1,))}), BROKEN),
    Case("tensor twice", rezipped(lambda e: [*e, ("archive/data/0", bytes(576))]), f"{BROKEN}|twice|two"),
    Case("pickle twice", rezipped(lambda e: [*e, *(p for p in e if p[0].endswith("data.pkl"))]), f"{BROKEN}|twice|two"),
    Case("no pickle", rezipped(lambda e: [p for p in e if not p[0].endswith("data.pkl")]), BROKEN),
    Case("no tensors", rezipped(lambda e: [p for p in e if "/data/" not in p[0]]), BROKEN),
    Case("compressed entries", rezipped(lambda e: [(n, c[: len(c) // 2]) for n, c in e], zipfile.ZIP_DEFLATED), BROKEN),
    Case("pickle cut short", by_hand(pickle.dumps({"a": 1}, 2)[:-3]), BROKEN),
    # safetensors
    Case("header of 2^60 bytes", safetensors({}, length=1 << 60), BROKEN, SAFE_FILE),
    Case("header of 2^64 - 1 bytes", safetensors({}, length=(1 << 64) - 1), BROKEN, SAFE_FILE),
    Case("tensors that overlap", safetensors({"a": entry([16], [0, 64]), "b": entry([8], [32, 64])}), BROKEN, SAFE_FILE),
    Case("negative place", safetensors({"a": entry([16], [-64, 0])}), BROKEN, SAFE_FILE),
    Case("place behind the end", safetensors({"a": entry([16], [1 << 40, (1 << 40) + 64])}), BROKEN, SAFE_FILE),
    Case("shape of 2^62", safetensors({"a": entry([1 << 62, 1 << 62], [0, 64])}), BROKEN, SAFE_FILE),
    Case("shape without its bytes", safetensors({"a": entry([10**9], [0, 64])}), BROKEN, SAFE_FILE),
    Case("unknown type", safetensors({"a": entry([16], [0, 64], "PY")}), BROKEN, SAFE_FILE),
    Case("header that is no JSON", safetensors(b"import os"), BROKEN, SAFE_FILE),
    Case("header of 100 000 brackets", safetensors(b'{"a":' + b"[" * 100_000, b""), BROKEN, SAFE_FILE),
    Case("safetensors that is a pickle", lambda p: p.write_bytes(pickle.dumps(Calls(os.mkdir, place(p)))), f"{CODE}|{BROKEN}", SAFE_FILE),
    # what is in it is no state_dict
    Case("list of tensors", saved(list(STATE.values())), BROKEN),
    Case("one tensor", saved(torch.zeros(3)), BROKEN),
    Case("nothing in it", saved({}), BROKEN),
    Case("names that are numbers", saved(dict(enumerate(STATE.values()))), r"name|text|int|key|holds"),
    Case("name that is no text", saved({**STATE, None: torch.zeros(1)}), r"name|text|None|key|holds"),
    Case("two states that disagree", saved({"state_dict": STATE, "net": {k: v + 1 for k, v in STATE.items()}}), "both|two"),
    Case("one name twice after the prefix", saved({**STATE, **{f"module.{k}": v + 1 for k, v in STATE.items()}}), f"{FIT}|twice|both"),
    Case("number for a tensor", saved({**STATE, "bn1.bias": 3.0}), f"{FIT}|{BROKEN}|tensor"),
    # another network's weights
    Case("prefix of another program", saved({f"encoder.q.{k}": v for k, v in STATE.items()}), FIT),
    Case("missing", changed(bn2__running_mean=None), r"bn2\.running_mean"),
    Case("left over", changed(extra__weight=torch.zeros(1)), r"extra\.weight"),
    Case("1000 left over", saved({**STATE, **{f"x{i}": torch.zeros(1) for i in range(1000)}}), r"1000"),
    Case("of another shape", changed(linear__weight=torch.zeros(10, 255)), r"linear\.weight"),
    Case("of no size", changed(linear__bias=torch.zeros(0)), r"linear\.bias"),
    Case("swapped", changed(conv2__weight=STATE["conv3.weight"], conv3__weight=STATE["conv2.weight"]), r"conv[23]\.weight"),
    Case("name of a million letters", changed(**{"x" * 10**6: torch.zeros(1)}), f"{FIT}|{BROKEN}"),
    Case("name that clears the screen", changed(**{"\x1b[2J\nSaved.\u202e\ud800": torch.zeros(1)}), ""),
    Case("sparse under a name that clears the screen", changed(**{"\x1b[2J\nSaved.": torch.eye(3).to_sparse()}), ""),
    Case("other classes", saved(STATE), r"linear", arguments={**SMALL, "classes": 100}),
    Case("other channels", saved(STATE), r"conv1\.weight|channel", arguments={**SMALL, "channels": 3}),
    Case("ResNet read as VGG", survey(RESNET), FIT, **like(VGG)),
    Case("VGG read as ResNet", survey(VGG), FIT, f"{RESNET}.pt", {}),
    # numbers that are none
    *(
        Case(f"{value} in {name}", changed(**{name.replace(".", "__"): torch.full_like(STATE[name], value)}), re.escape(name))
        for name, value in (("bn1.bias", NAN), ("linear.weight", INF), ("bn2.running_mean", -INF), ("bn3.running_var", NAN))
    ),
    Case("too large for float32", changed(bn1__bias=torch.full((16,), 1e300, dtype=torch.float64)), r"bn1\.bias"),
    Case("negative variance", changed(bn1__running_mean=torch.ones(16), bn1__running_var=-torch.ones(16)), r"bn1\.running_var"),
    *(
        Case(f"{kind} weights", changed(conv1__weight=STATE["conv1.weight"].to(kind)), NUMBERS)
        for kind in (torch.int64, torch.uint8, torch.bool, torch.complex64)
    ),
    Case("quantized weights", changed(conv1__weight=quantized()), f"{NUMBERS}|{CODE}"),
    Case("sparse weights", changed(linear__weight=STATE["linear.weight"].to_sparse()), NUMBERS),
    Case("weights without data", changed(conv1__weight=STATE["conv1.weight"].to("meta")), NUMBERS),
    # masks and scores
    Case("scores for some layers", survey(RST, lambda s: s.pop("layer3.0.conv1.scores")), r"layer3\.0\.conv1", **like(RST)),
    Case("scores of another shape", survey(RST, lambda s: s.update({"fc.scores": torch.ones(512, 10, 1, 1)})), "fc", **like(RST)),
    Case("scores that are NaN", survey(RST, lambda s: s["fc.scores"].fill_(NAN)), r"fc\.(popup_)?scores", **like(RST)),
    Case("scores, share unknown", survey(RST), r"share|sparsity|like|kept", arguments={}),
    Case("popup_scores, share unknown", survey(HYDRA), r"share|sparsity|like|kept", arguments={}),
    Case("popup_scores for some layers", survey(HARP, lambda s: s.pop("conv1.popup_scores")), r"conv1", **like(HARP)),
    Case("popup_scores of a channel", survey(HARP, lambda s: s.update({"conv1.popup_scores": torch.ones(64, 3)})), r"conv1", **like(HARP)),
    Case("k_score missing", survey(HARP, lambda s: s.pop("layer1.0.conv1.k_score")), r"layer1\.0\.conv1", **like(HARP)),
    Case("k_score NaN", survey(HARP, lambda s: s.update({"conv1.k_score": torch.tensor(NAN)})), r"conv1\.k_score", **like(HARP)),
    Case("k_score of two", survey(HARP, lambda s: s.update({"conv1.k_score": torch.zeros(2)})), r"conv1", **like(HARP)),
    Case("mask of halves", survey(BIRD, lambda s: s["conv1.weight_mask"].fill_(0.5)), r"conv1.*weight_mask", **like(BIRD)),
    Case("weight_mask missing", survey(BIRD, lambda s: s.pop("conv1.weight_mask")), r"conv1", **like(BIRD)),
    Case("weight_orig missing", survey(BIRD, lambda s: s.pop("conv1.weight_orig")), r"conv1", **like(BIRD)),
    Case("weight_orig and weight", survey(BIRD, lambda s: s.update({"conv1.weight": s["conv1.weight_orig"]})), r"conv1", **like(BIRD)),
    Case("scores of bool", survey(RST, lambda s: s.update({"fc.scores": s["fc.scores"] > 0})), "fc", **like(RST)),
    Case("masks of integers", survey(MAD, lambda s: s.update({"linear.mask_bias": torch.ones(10).long()})), "linear", **like(MAD)),
    Case("layer that is one number", survey(HARP, lambda s: s.update(dict.fromkeys(PAIR, torch.tensor(1.0)))), "conv1", **like(HARP)),
    Case("layer of nothing", survey(HARP, lambda s: s.update(dict.fromkeys(PAIR, torch.zeros(0, 3, 3, 3)))), "conv1", **like(HARP)),
    Case("factors of integers", survey(TWIN, lambda s: s.update({"conv1.aux_weight": torch.eye(64).long()})), "conv1", **like(TWIN)),
    Case("factors that are NaN", survey(TWIN, lambda s: s["conv1.aux_weight"].fill_(NAN)), "conv1", **like(TWIN)),
    Case("division by zero", survey(BIRD, lambda s: s["normalize.std"].zero_()), "std", **like(BIRD)),
    Case("4 means", survey(BIRD, lambda s: s.update({"normalize.mean": torch.zeros(4)})), "mean", **like(BIRD)),
    Case(
        "50 million means",
        survey(BIRD, lambda s: s.update({"normalize.mean": torch.zeros(50_000_000, dtype=torch.uint8)})),
        "mean",
        **like(BIRD),
    ),
    Case("mask_weight missing", survey(MAD, lambda s: s.pop("layer2.1.conv2.mask_weight")), r"layer2\.1\.conv2", **like(MAD)),
    Case("mask_weight NaN", survey(MAD, lambda s: s["linear.mask_weight"].fill_(NAN)), r"linear\.mask_weight", **like(MAD)),
    Case(
        "two copies that disagree",
        survey(LI20, lambda s: s.update({"model.3.3.bias": torch.ones(10)})),
        r"model\.3\.3\.bias|classifier\.3\.bias",
        **like(LI20),
    ),
]
# fmt: on

# ---------------------------------------------------------------------------------------------------------------- the tests

ACTS = ("subprocess.", "socket.", "shutil.", "tempfile.", "pty.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn")
CHANGES = ("os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown")
_seen: list[str] | None = None


def _watch(event: str, arguments: tuple) -> None:
    if _seen is not None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or event.startswith(ACTS + CHANGES):
            _seen.append(f"{event} {arguments}")


sys.addaudithook(_watch)


def _status(what: str) -> int:
    """Bytes: VmSize (promised), VmRSS (in use), VmHWM (most ever in use) of this process."""
    return int(re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


@contextlib.contextmanager
def watched() -> Iterator[dict]:
    """What happens meanwhile: processes, changed files, memory. No more than 4 GB can be had, so that a fault hurts nobody."""
    global _seen
    told: dict = {}
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or memory that was freed before would be used again unseen
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before, limit = _status("VmRSS"), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + 4 * GB, limit[1]))
    _seen = told["acts"] = []
    try:
        yield told
    finally:
        _seen = None
        resource.setrlimit(resource.RLIMIT_AS, limit)
        told["memory"] = _status("VmHWM") - before


def snapshot(folder: Path) -> list:
    return sorted((str(p), p.lstat().st_mode, p.lstat().st_size, p.lstat().st_mtime_ns) for p in folder.rglob("*"))


def _param(case: Case):
    """The survey's networks have their full size: more than a second a file."""
    return pytest.param(case, id=case.id, marks=() if case.arguments.get("network") else pytest.mark.slow)


@pytest.fixture(scope="module", params=map(_param, CASES))
def outcome(request, tmp_path_factory):
    """What loading the file of a case led to: the case, what was raised, what was seen meanwhile and the folder before and after."""
    case, top = request.param, tmp_path_factory.mktemp("hostile")
    path = top / "in" / case.file
    path.parent.mkdir()
    case.make(path)
    before, raised = snapshot(top), None
    with watched() as told:
        try:
            checkpoints.load(path, **case.arguments)
        except BaseException as error:
            raised = error.with_traceback(None)
    after = snapshot(top)
    for file in path.parent.iterdir():
        if file.is_file() and not file.is_symlink():
            file.unlink()  # up to 120 MB each
    return argparse.Namespace(case=case, path=path, raised=raised, before=before, after=after, **told)


def test_it_is_refused_by_its_name_and_its_fault(outcome):
    assert type(outcome.raised) is Invalid, repr(outcome.raised)
    assert outcome.path.name[:200].replace("\0", "") in str(outcome.raised).replace("\\x00", "").replace("\0", "")
    assert re.search(outcome.case.says, str(outcome.raised), re.IGNORECASE), str(outcome.raised)


TO_DO = (
    r"\b(give|download|fetch|save|name|use|choose|pass|say|set|delete|convert|install|export|load|write|ask|check|make|remove|take|"
    r"expected)\b"
)


def test_the_refusal_is_one_sentence_that_says_what_to_do(outcome):
    sentence = str(outcome.raised).replace(str(outcome.path), "w.pt")
    assert sentence.isprintable(), ascii(sentence[:300])
    assert 20 < len(sentence) < 600, sentence[:300]
    assert not re.search(r"[.!?] +[A-Z]|\.$", sentence), sentence
    assert not re.search(r"Traceback|Error: |Exception|<class|object at|0x[0-9a-f]{6}|File \"", sentence), sentence
    assert re.search(TO_DO, sentence, re.IGNORECASE), sentence


def test_nothing_is_run_written_or_changed_and_no_memory_is_wasted(outcome):
    assert outcome.acts == []
    assert outcome.before == outcome.after
    assert outcome.memory < GB
    assert not hasattr(argparse.Namespace, "evil")
    assert not hasattr(torch._utils._rebuild_tensor_v2, "evil")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable for root")
def test_a_file_that_may_not_be_read_is_refused(tmp_path):
    torch.save(STATE, tmp_path / "w.pt")
    (tmp_path / "w.pt").chmod(0)
    with pytest.raises(Invalid, match="read"):
        checkpoints.load(tmp_path / "w.pt", **SMALL)


def test_the_watch_sees_what_the_refusals_must_not_do(tmp_path):
    with watched() as told:
        pickle.loads(pickle.dumps(Calls(os.mkdir, str(tmp_path / "a"))))
        subprocess.run(["true"], check=True)
        (tmp_path / "b").write_bytes(bytes(3))
        content = b"1" * (GB // 4)
    acts = [act.split()[0] for act in told["acts"] if str(tmp_path) in act or "true" in act]
    assert acts == ["os.mkdir", "subprocess.Popen", "open"]
    assert told["memory"] > len(content) // 2


@pytest.mark.slow
@pytest.mark.parametrize("key", FILES)
def test_without_the_fault_the_survey_layouts_used_here_load(key, tmp_path):
    survey(key)(tmp_path / "w.pt")
    with torch.no_grad():
        logits = checkpoints.load(tmp_path / "w.pt", like=key)(torch.rand(2, 3, 32, 32))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


def _lists() -> dict:
    return collections.defaultdict(list, {"acc": [1.0, 2.0]})


COMPANIONS = {
    "nothing": {},
    "arguments": {"args": argparse.Namespace(lr=0.1, widths=[1, 2], name="mad", none=None)},
    "numbers of numpy": {"acc": np.float64(91.5), "loss": np.float32(0.1), "epoch": np.int64(3), "good": np.bool_(True)},
    "array": {"history": np.arange(6.0).reshape(2, 3)},
    "optimizer": {"optimizer": torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], 0.1, momentum=0.9).state_dict()},
    "counters": {"steps": collections.Counter("aab"), "log": _lists(), "order": collections.OrderedDict(a=1)},
    "plain": {"epoch": 7, "best_acc1": 91.2, "arch": "resnet18", "result": {"test_ra": [1, 2.5]}, "rng": torch.get_rng_state()},
    "sets and bytes": {"seen": {1, 2}, "size": torch.Size([1, 2]), "device": torch.device("cpu"), "kind": torch.float32},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "old format"])
@pytest.mark.parametrize("beside", COMPANIONS.values(), ids=COMPANIONS)
def test_harmless_companions_of_good_weights_are_no_reason_to_refuse(beside, legacy, tmp_path):
    torch.save({"state_dict": STATE, **beside}, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    loaded = checkpoints.load(tmp_path / "w.pt", **SMALL).state_dict()
    assert loaded.keys() == STATE.keys()
    assert all(torch.equal(loaded[name], STATE[name]) for name in STATE)


def test_methods_that_a_file_gives_its_dict_are_not_believed(tmp_path):
    torch.save(shadowed(), tmp_path / "w.pt")
    loaded = checkpoints.load(tmp_path / "w.pt", **SMALL).state_dict()
    assert all(torch.equal(loaded[name], STATE[name]) for name in STATE)
