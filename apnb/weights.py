"""Weights in a file, read as data: nothing in a file is ever executed.

A PyTorch file is looked at before torch sees it: the names its pickle mentions must all be on a short list, where what is no weight
(arguments, numbers of numpy) is replaced by an object that takes anything and does nothing, and its archive must be one that torch
wrote: nothing compressed, doubled, overlapping or leading elsewhere. Then torch reads it with ``weights_only=True``.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import stat
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import torch
from torch import Tensor

from apnb.errors import Invalid
from apnb.pickles import short

WRAPPERS = ("state_dict", "net", "model", "model_state_dict")
"""Keys under which training scripts put the weights beside other things."""
PREFIXES = ("module.", "basic_model.")
"""What data-parallel training and a wrapper around an attack put before every name."""
MAX_BYTES = 4 << 30
"""Larger files are refused; a ResNet-18 with scores and its optimizer's state has less than 200 MB."""
MAX_WORK = 1 << 22
"""How many objects a pickle may describe, where each mention counts and a call is taken to double what it is given: torch.save of a
network and its optimizer comes to some ten thousands."""
MAX_WIDE = 100
"""How many integers beyond 64 bits it may hold: a dict of many with one hash would take hours."""
MAX_HASHED = 4096
"""How many objects it may give to a set or dict at once; the keys of its dicts are single words and numbers, for the same reason."""
MAX_NAME = 200


class Inert:
    """Stands for an object of a file that is of no use here: made from anything, filled with anything, empty."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _empty(*_: Any) -> dict:
    """Stands for a defaultdict, whose entries then come as those of a dict."""
    return {}


_HARMLESS = (
    "argparse.Namespace", "pathlib.PosixPath", "pathlib.WindowsPath", "numpy.dtype", "numpy.ndarray",
    "builtins.list", "builtins.int", "builtins.dict",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
)  # fmt: skip
_KNOWN = {
    *_HARMLESS, "collections.defaultdict", "collections.OrderedDict", "collections.Counter", "builtins.set", "_codecs.encode",
    "torch.Size", "torch.device", "torch.serialization._get_layout", "torch.nn.parameter.Parameter", "torch.storage.UntypedStorage",
    *(f"torch._utils._rebuild_{name}" for name in ("tensor", "tensor_v2", "tensor_v3", "parameter")),
    *(f"torch.{kind}Storage" for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")),
    *(f"torch.{dtype}" for dtype in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")),
}  # fmt: skip
"""Names that a pickle may mention. Those in `_HARMLESS` become `Inert`; torch knows the others, all of them data."""
_TRAINING = re.compile(r"torch\.optim\.[\w.]+|[\w.]+\.(Cosine|Linear)Decay")
"""Likewise `Inert`: schedules and optimizers saved whole; Flying Bird keeps the schedule of its rate of change beside the weights."""
_TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "UNICODE", "BINUNICODE8")
_LOCK = threading.Lock()  # torch keeps its list of allowed names for the whole process


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU: safetensors, or a PyTorch file that holds nothing but data.

    They may lie bare or under one of `WRAPPERS`; `PREFIXES` that all names share are taken off.

    Raises:
        Invalid: no such file, one that is damaged or something else, or one that names code (which is not run).
    """
    return unpack(path)[0]


def unpack(path: str | Path) -> tuple[dict[str, Tensor], str, str]:
    """The tensors of `read`, and where they were: the key they lay under and the prefix taken off ("" for none)."""
    path = Path(path)
    found, under = _loaded(path), ""
    if isinstance(found, dict):
        found = dict(dict.items(found))  # a file can give an OrderedDict attributes, a number called "items" for one
        holding = [
            k for k in WRAPPERS if isinstance(p := found.get(k), dict) and any(isinstance(t, Tensor) for t in dict.values(p))
        ]
        if len(holding) > 1:
            raise Invalid(f"{path} holds weights under both {holding[0]!r} and {holding[1]!r}; save the ones that count, alone")
        if holding:
            under, found = holding[0], dict(dict.items(found[holding[0]]))
    if not isinstance(found, dict) or not found or not all(_is_name(k) and isinstance(v, Tensor) for k, v in found.items()):
        raise Invalid(
            f"{path} holds {_told(found)}, expected a state_dict, names and tensors, bare or under {', '.join(WRAPPERS)}; "
            "save one with torch.save(net.state_dict(), ...)"
        )
    if sum(t.numel() * t.element_size() for t in found.values()) > 3 * path.stat().st_size:
        raise Invalid(f"{path} holds tensors of more bytes than it has; it is damaged or made to fill the memory: fetch it again")
    state, prefix = found, ""
    while shared := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), ""):
        state, prefix = {name.removeprefix(shared): t for name, t in state.items()}, prefix + shared
    return {name: _own(path, name, t) for name, t in state.items()}, under, prefix


def _is_name(key: Any) -> bool:
    return type(key) is str and len(key) <= MAX_NAME and key.isprintable()


def _own(path: Path, name: str, t: Tensor) -> Tensor:
    """A copy that does not hang on the file. Refuses what no network's weights are."""
    if t.is_quantized or t.layout != torch.strided or t.is_complex() or t.device.type != "cpu":
        raise Invalid(f"{path} holds {name} in a form that is no plain tensor of numbers; save ordinary float tensors")
    if t.numel() * t.element_size() > t.untyped_storage().nbytes():
        raise Invalid(f"{path} holds {name} of shape {tuple(t.shape)} in too few bytes; it is damaged: fetch it again")
    return t.detach().clone(memory_format=torch.contiguous_format)


def _told(found: Any) -> str:
    if isinstance(found, dict):
        keys = ", ".join(short(repr(k[:40])) if isinstance(k, str) else f"a {type(k).__name__}" for k in list(found)[:6])
        return f"the keys {keys}" if keys else "nothing"
    return f"a {type(found).__name__}"


# ------------------------------------------------------------------------------------------------------------------- one file


def _loaded(path: Path) -> Any:
    try:
        about = path.stat()
    except FileNotFoundError:
        raise Invalid(f"there is no file {path}; give the path of a file of weights") from None
    except (OSError, ValueError) as error:
        raise Invalid(
            f"{_printable(path)} cannot be read ({getattr(error, 'strerror', error)}); give the name of a file of weights"
        ) from None
    if not stat.S_ISREG(about.st_mode):
        raise Invalid(f"{path} is a folder or a device, not a file; give a file of weights")
    if about.st_size > MAX_BYTES:
        raise Invalid(f"{path} has {about.st_size >> 30} GiB, more than any network here; give a file of weights")
    try:
        with path.open("rb") as file:
            head = file.read(512)
            _refuse_text(path, head)
            if _is_safetensors(head):
                return _safetensors(path)
            if head[:2] == b"PK":
                named = _check_archive(path, file, about.st_size)
            else:
                file.seek(0)
                # the old format: three pickles about the writer, the objects, the names of the storages
                named = set().union(*(_check_names(path, file) for _ in range(5)))
            rest = about.st_size - file.tell()
        inert = {*_HARMLESS, *(name for name in named if _TRAINING.fullmatch(name))}
        stand_ins = [*((Inert, name) for name in inert), (_empty, "collections.defaultdict")]
        with _LOCK, torch.serialization.safe_globals(stand_ins):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=head[:2] == b"PK")
        if head[:2] != b"PK" and _stored(found) > rest:  # a storage that the old format does not list would be memory as it was
            raise Invalid(f"{path} is damaged or cut short: it has fewer bytes than its tensors; fetch it again")
        return found
    except Invalid:
        raise
    except OSError as error:
        raise Invalid(f"{path} cannot be read ({error.strerror or error}); give a file of weights") from None
    except pickle.UnpicklingError:
        raise Invalid(
            f"{path} is damaged, or holds something else than weights; nothing of it was run: fetch it again, or save the weights alone"
        ) from None
    except Exception as error:  # torch, zipfile and pickletools fail in many ways on damaged files
        raise Invalid(
            f"{path} cannot be read as weights ({type(error).__name__}); it is damaged or something else: fetch it again"
        ) from None


def _stored(found: Any) -> int:
    """Bytes of the storages behind the tensors of a dict and of the dicts in it."""
    inside = [v for part in dict.values(found) for v in (dict.values(part) if isinstance(part, dict) else [part])] if isinstance(
        found, dict) else []  # fmt: skip
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in inside if isinstance(t, Tensor)}
    return sum(storages.values())


def _printable(path: Path) -> str:
    return str(path)[:300] if str(path).isprintable() else ascii(str(path))[:300]


def _refuse_text(path: Path, head: bytes) -> None:
    start = head.lstrip()[:1]
    if not head:
        raise Invalid(f"{path} is empty; fetch or save it again")
    if start == b"<":
        raise Invalid(f"{path} is a web page, not weights: the download went wrong; fetch it with a browser")
    if start == b"{":
        raise Invalid(f"{path} is a text (JSON), not weights: the download went wrong; fetch it with a browser")


def _is_safetensors(head: bytes) -> bool:
    """Eight bytes with the length of a header in JSON, and its first brace."""
    return head[8:9] == b"{" and head[:2] != b"PK"


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise Invalid(f"{path} is a safetensors file; install the package safetensors to read it") from None
    return load_file(path)


def _check_archive(path: Path, file: BinaryIO, size: int) -> set[str]:
    """An archive as torch writes it, whose objects mention nothing but tensors and what is harmless: the names they mention."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        for name in names:
            parts = PurePosixPath(name).parts
            if name.startswith("/") or ".." in parts or "\\" in name or ":" in name or len(parts) < 2:
                raise Invalid(f"{path} holds an entry named {name[:60]!r}, which torch.save does not write; nothing was unpacked")
        if len({*names}) < len(names):
            raise Invalid(f"{path} holds two entries of one name; it is damaged or made to deceive: fetch it again")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise Invalid(
                f"{path} is a compressed archive, which torch.save does not write; unpack it, or save the weights again"
            )
        if sum(entry.file_size for entry in entries) > size:
            raise Invalid(
                f"{path} says that it unpacks to more than its own size; it is damaged or made to deceive: fetch it again"
            )
        inner = [name for name in names if PurePosixPath(name).name == "data.pkl"]
        if any(PurePosixPath(name).name == "constants.pkl" for name in names):
            raise Invalid(f"{path} is a TorchScript archive, which is a program; save the weights alone, net.state_dict()")
        if len(inner) != 1:
            raise Invalid(f"{path} is an archive without weights in it ({len(names)} entries); give what torch.save wrote")
        if wrong := archive.testzip():
            raise Invalid(f"{path} is damaged: the checksum of {wrong} is wrong; fetch it again")
        return _check_names(path, io.BytesIO(archive.read(inner[0])))


def _check_names(path: Path, stream: BinaryIO) -> set[str]:
    """Walk over one pickle without building anything: the names it mentions, and how large and how slow it would grow."""
    found: set[str] = set()
    stack: list[tuple[int, str]] = []  # of every object the number of objects in it, and the name it is
    marks: list[int] = []
    memo: dict[int, tuple[int, str]] = {}
    wide = 0
    for instruction, argument, _ in _instructions(path, stream):
        op, called = instruction.name, ""
        if op == "MARK":
            marks.append(len(stack))
            continue
        if op in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
            continue
        if op in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
            continue
        before, taken = [item.name for item in instruction.stack_before], []
        if "mark" in before:
            at = marks.pop()
            taken, stack[at:] = stack[at:], []
            before = before[: before.index("mark")]
        keys = taken[::2] if op in ("SETITEMS", "DICT") else stack[-2:-1] if op == "SETITEM" else []
        for _ in before:
            taken.append(stack.pop())
        work = sum(size for size, _ in taken)
        if op in ("GLOBAL", "INST", "STACK_GLOBAL"):
            called = (
                str(argument).replace(" ", ".").replace("__builtin__.", "builtins.", 1) if argument else "what it puts together"
            )
            found.add(called)
            if called not in _KNOWN and not _TRAINING.fullmatch(called):
                raise Invalid(
                    f"{path} names {short(called)}, which is code or unknown here; nothing of it was run: save the weights alone, "
                    "torch.save(net.state_dict(), ...)"
                )
        if isinstance(argument, str | bytes):
            work += len(argument) // 64
            called = called or (f"{argument!r}" if op in _TEXTS and len(argument) < 16 else "")
        elif op == "TUPLE2":
            called = taken[0][1]  # of arguments the last one
        if op == "REDUCE":
            (given, last), (_, function) = taken
            hashed = function in ("collections.OrderedDict", "collections.Counter", "builtins.set") and given > MAX_HASHED
            hashed |= function == "_codecs.encode" and last != "'latin1'"  # other codecs make much of little
            work = 2 * work
        else:
            hashed = any(size > 1 for size, _ in keys)
        wide += isinstance(argument, int) and argument.bit_length() > 64
        if hashed or work > MAX_WORK or wide > MAX_WIDE:
            raise Invalid(f"{path} describes other or more objects than a network has and was not read; give the weights alone")
        stack += [(work + 1, called)] * len(instruction.stack_after)
    return found


def _instructions(path: Path, stream: BinaryIO) -> Iterator:
    try:
        yield from pickletools.genops(stream)
    except ValueError as error:
        raise Invalid(f"{path} is no file of weights, or cut short ({str(error)[:60]}); fetch it again") from None
