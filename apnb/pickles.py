"""Numbers in a pickle, read as data.

Python's own unpickler imports what a file names and calls it. The machine here knows only the instructions that numbers, texts,
lists, tuples, dicts, tensors and numpy arrays are made of. A name outside of a short list is refused when it is read; the names on
the list stand for functions of this file that make arrays from bytes. Nothing here imports, or calls anything else.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Mapping
from typing import Any

import numpy as np

from apnb.errors import Invalid

MAX_NUMBERS = 1_000_000
"""In one list: a short file can name one array very often."""
MAX_WORK = 1 << 26
"""What reading a pickle may cost, 16 for an instruction and 1 for a byte that is copied: seconds, whatever the file."""


class Pairs(list):
    """A dict of a pickle, as a list of pairs: nothing is hashed, so nothing can be made slow by colliding keys."""

    __slots__ = ()


def read(content: bytes) -> Any:
    """What a pickle holds: numbers, texts, arrays, lists and tuples of these, and dicts as `Pairs`.

    Raises:
        Invalid: it names code or needs an instruction that no numbers need. Any other exception: it is damaged.
    """
    stream = io.BytesIO(content)
    value = _Machine().load(stream, _CALLS)
    if stream.read(1):
        raise Invalid("it goes on after its end; it is damaged or holds something else than numbers")
    return value


def short(text: object) -> str:
    """What a file says, fit for a sentence."""
    text = str(text)[:80]
    return text if text.isprintable() else ascii(text)


def is_number(value: Any) -> bool:
    return type(value) in (int, float) or (isinstance(value, np.ndarray) and not value.ndim)


def numbers(value: Any) -> np.ndarray:
    """Numbers, arrays of them and lists of both, one after the other: float64 (N,)."""
    parts = [_finished(v) for v in (value if type(value) in (list, tuple) else [value])]
    for part in parts:
        if not is_number(part) and not isinstance(part, np.ndarray):
            raise Invalid(f"it holds a {type(part).__name__} where a distance was expected; it is no file of distances")
    if sum(np.size(part) for part in parts) > MAX_NUMBERS:
        raise Invalid(f"it holds more than {MAX_NUMBERS} points, which no file of distances does")
    return np.concatenate([np.atleast_1d(np.asarray(part, np.float64)) for part in parts] or [np.zeros(0)])


class _Late:
    """A numpy object that gets its content by a later instruction: a type or an array."""

    __slots__ = ("code", "state")

    def __init__(self, code: str = ""):
        self.code, self.state = code, None


def _finished(value: Any) -> Any:
    if isinstance(value, _Late):
        _, shape, dtype, _, content = value.state
        return _numpy(content, dtype, shape)
    return value


def _numpy(content: bytes, dtype: _Late, shape: tuple[int, ...]) -> np.ndarray:
    """An array of at most one dimension from its bytes; nothing is allocated."""
    order = dtype.state[1] if dtype.state else "="
    if dtype.code not in ("f2", "f4", "f8") or order not in ("<", ">", "="):
        raise Invalid("it holds an array of another type than float16, float32 and float64; it is no file of distances")
    if len(shape) > 1:
        raise Invalid(f"it holds an array of {len(shape)} dimensions, expected (N,)")
    return np.frombuffer(content, np.dtype(order + dtype.code)).reshape(shape)


def _tensor(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Any:
    """``torch._utils._rebuild_tensor_v2`` on a storage that is an array."""
    if len(size) > 1:
        raise Invalid(f"it holds a tensor of {len(size)} dimensions, expected single numbers or (N,)")
    if offset < 0 or (size and stride[0] < 1):
        raise ValueError("a tensor outside of its storage")
    view, n = storage[offset :: stride[0] if size else 1], size[0] if size else 1
    if not 0 <= n <= len(view):
        raise ValueError("a tensor larger than its storage")
    return view[:n].reshape(size)


_STORAGES = {f"torch {name}Storage": np.dtype(code) for name, code in (("Half", "<f2"), ("Float", "<f4"), ("Double", "<f8"))}
_CALLS = {
    "torch._utils _rebuild_tensor_v2": "tensor",
    "torch.storage _load_from_bytes": "storage",
    "collections OrderedDict": "pairs",
    "_codecs encode": "encode",
    "numpy dtype": "dtype",
    "numpy ndarray": "ndarray",
    **{f"numpy.{core}.multiarray {name}": name.strip("_") for core in ("core", "_core") for name in ("scalar", "_reconstruct")},
    **{f"numpy.{core}.numeric _frombuffer": "frombuffer" for core in ("core", "_core")},
}
"""What a pickle of numbers names, and our own word for it. The thing named is never looked up."""
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE",
    "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_MAGIC = (0x1950A86A20F9469CFC6C, 1001)
"""What a storage written by torch.save in its old format begins with: a number and the version of the protocol."""


class _Name(str):
    """One of our own words for something that a pickle names; no text of a pickle is one."""


class _Machine:
    """The stack and the instructions."""

    def __init__(self):
        self.left = MAX_WORK

    def spend(self, cost: int) -> None:
        self.left -= cost
        if self.left < 0:
            raise Invalid("it takes more work to read than any file of distances does; reading was given up")

    def load(self, stream: io.BytesIO, known: Mapping[str, Any]) -> Any:
        """The value of the next pickle in ``stream``; ``known``: the names it may use."""
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}

        def since_mark() -> list[Any]:
            at = marks.pop()
            items = stack[at:]
            del stack[at:]
            return items

        def into(kind: type) -> Any:
            if type(stack[-1]) is not kind:
                raise ValueError("something is put into what cannot hold it")
            return stack[-1]

        for instruction, argument, _ in pickletools.genops(stream):
            self.spend(16)
            name = instruction.name
            if name in _LITERALS:
                stack.append(argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in ("PROTO", "FRAME"):
                continue
            elif name == "STOP":
                (value,) = stack
                return value
            elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
                memo[len(memo) if argument is None else argument] = stack[-1]
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name == "MARK":
                marks.append(len(stack))
            elif name in ("EMPTY_LIST", "LIST"):
                stack.append(since_mark() if name == "LIST" else [])
            elif name in ("EMPTY_DICT", "DICT"):
                stack.append(_pairs(since_mark()) if name == "DICT" else Pairs())
            elif name in ("EMPTY_TUPLE", "TUPLE"):
                stack.append(tuple(since_mark()) if name == "TUPLE" else ())
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                stack[-int(name[-1]) :] = [tuple(stack[-int(name[-1]) :])]
            elif name in ("APPEND", "APPENDS"):
                items = [stack.pop()] if name == "APPEND" else since_mark()
                into(list).extend(items)
            elif name in ("SETITEM", "SETITEMS"):
                items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else since_mark()
                into(Pairs).extend(_pairs(items))
            elif name in ("GLOBAL", "STACK_GLOBAL", "INST"):
                if name == "STACK_GLOBAL":
                    what, module = stack.pop(), stack.pop()
                    if type(module) is not str or type(what) is not str:
                        raise ValueError("a name that is no text")
                    argument = f"{module} {what}"
                if argument not in known or name == "INST":
                    raise Invalid(f"it holds code ({short(argument.replace(' ', '.'))}), refused; nothing was executed")
                stack.append(known[argument] if known is _STORAGES else _Name(known[argument]))
            elif name == "REDUCE":
                arguments = stack.pop()
                stack.append(self.call(stack.pop(), arguments))
            elif name == "BUILD":
                state = stack.pop()
                into(_Late).state = state
            elif name == "BINPERSID" and known is _STORAGES:
                continue  # the description of a storage stays as it is
            else:
                raise Invalid(f"it holds an instruction that no file of distances needs ({name}), refused; nothing was executed")
        raise ValueError("no end")

    def call(self, name: Any, arguments: tuple) -> Any:
        if not isinstance(name, _Name) or type(arguments) is not tuple:
            raise ValueError("a call of something that is no function")
        match str(name):
            case "tensor":
                return _tensor(*arguments)
            case "storage":
                return self.storage(*arguments)
            case "pairs" if not arguments:
                return Pairs()
            case "encode" if arguments[1] == "latin1":
                self.spend(len(arguments[0]))
                return arguments[0].encode("latin1")
            case "dtype":
                return _Late(arguments[0])
            case "reconstruct":
                return _Late()
            case "scalar":
                return _numpy(arguments[1], arguments[0], ())
            case "frombuffer":
                return _numpy(*arguments[:3])
        raise ValueError(f"{name} called in an unknown way")

    def storage(self, content: bytes) -> np.ndarray:
        """Numbers that torch.save wrote in its old format: five small pickles, a count, and the bytes; nothing is copied."""
        if type(content) is not bytes:  # of anything else a stream would be a copy, as often as it is named
            raise ValueError("a storage that is not made of bytes")
        stream = io.BytesIO(content)
        *magic, _, about, _ = (self.load(stream, _STORAGES) for _ in range(5))
        if tuple(magic) != _MAGIC:
            raise ValueError("not written by torch.save")
        _, dtype, _, _, n, _ = about
        at = stream.tell() + 8
        if not isinstance(dtype, np.dtype):
            raise ValueError("a storage of an unknown type")
        if int.from_bytes(content[at - 8 : at], "little") != n:
            raise ValueError("a storage of another length than it says")
        return np.frombuffer(content, dtype, n, at)


def _pairs(items: list) -> Pairs:
    return Pairs(zip(items[::2], items[1::2], strict=True))
