"""Curves are exact step functions, files come back bit for bit, and no file makes the reader run anything."""

from __future__ import annotations

import collections
import contextlib
import io
import math
import os
import pickle
import struct
import subprocess
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apnb import curves, plots
from apnb.curves import Distances
from apnb.errors import Invalid
from apnb.verdicts import wilson

INF = math.inf
SURVEYED = "HARP_Zhao2023Holistic_R18_CIFAR10_US_90"
RADII = st.floats(0, 1, width=32)
VALUES = st.lists(st.one_of(RADII, st.sampled_from([0.0, 0.25, 0.5, INF])), min_size=1, max_size=30)


def make(*value: float, name="net", method="these attacks", **more) -> Distances:
    return Distances(torch.tensor(value), name=name, method=method, **more)


FIVE = make(0.0, 0.25, 0.25, 0.5, INF)

# --- the curve ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("eps", "share"), [(0, 0.8), (0.2499, 0.8), (0.25, 0.4), (0.4999, 0.4), (0.5, 0.2), (0.6, 0.2), (1, 0.2), (1000, 0.2)]
)
def test_a_point_stands_strictly_below_its_distance(eps, share):
    assert FIVE.accuracy(eps) == share


def test_an_array_of_radii_gives_an_array_of_its_shape():
    found = FIVE.accuracy(np.array([[0.0, 0.25], [0.5, 1.0]]))
    assert found.dtype == torch.float64 and found.tolist() == [[0.8, 0.4], [0.2, 0.2]]
    assert FIVE.standing([0.0, 0.5]).tolist() == [4, 1]


def test_a_point_broken_at_8_of_255_in_float32_does_not_stand_at_8_of_255():
    broken = make(8 / 255)
    assert float(broken.value[0]) > 8 / 255  # float32 rounds it up
    assert broken.accuracy(8 / 255) == 0 and broken.accuracy(7.999 / 255) == 1


def test_steps_start_at_zero_stand_at_every_distance_once_and_end_at_the_limit():
    eps, share = FIVE.steps(0.75)
    assert eps.tolist() == [0, 0.25, 0.5, 0.75] and share.tolist() == [0.8, 0.4, 0.2, 0.2]
    eps, share = FIVE.steps(0.25)
    assert eps.tolist() == [0, 0.25] and share.tolist() == [0.8, 0.4]
    assert FIVE.steps()[0].tolist() == pytest.approx([0, 0.15])


def test_the_area_is_the_mean_height():
    assert FIVE.area(0.5) == pytest.approx((0.8 * 0.25 + 0.4 * 0.25) / 0.5)
    assert FIVE.area(1) == pytest.approx(0.8 * 0.25 + 0.4 * 0.25 + 0.2 * 0.5)


def test_the_median_is_over_points_that_are_right_without_an_attack():
    assert FIVE.median == 0.375
    assert make(0, 0, 0.125, 0.25, 0.5).median == 0.25
    assert make(0.25, INF, INF, 0).median == INF
    assert make(0.25, INF).median == INF
    assert math.isnan(make(0, 0).median)


@given(VALUES, st.lists(RADII, min_size=2, max_size=8))
def test_a_curve_falls_from_clean_accuracy_within_zero_and_one(values, radii):
    d = make(*values)
    share = d.accuracy(sorted(radii)).tolist()
    assert share == sorted(share, reverse=True) and 0 <= share[-1] <= share[0] <= 1
    assert d.accuracy(0) == sum(v > 0 for v in values) / len(values)
    assert share == [sum(v > e for v in values) / len(values) for e in sorted(radii)]


@given(VALUES, st.floats(2**-10, 1, width=32))
def test_the_area_is_the_integral_of_the_steps_and_lies_between_both_ends(values, limit):
    d = make(*values)
    eps, share = d.steps(limit)
    assert d.area(limit) == pytest.approx(float((eps.diff() * share[:-1]).sum()) / limit, abs=1e-12)
    assert d.accuracy(limit) - 1e-12 <= d.area(limit) <= d.accuracy(0) + 1e-12
    middles = (eps[:-1] + eps[1:]) / 2
    inside = (middles.float().double() > eps[:-1]) & (middles.float().double() < eps[1:])  # neighbours in float32 have no middle
    assert torch.equal(d.accuracy(middles)[inside], share[:-1][inside])


def test_the_area_agrees_with_a_fine_grid():
    d = Distances(torch.rand(200, generator=torch.Generator().manual_seed(0)) / 4, name="a", method="m")
    grid = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000 * 0.15
    assert d.area() == pytest.approx(float(d.accuracy(grid).mean()), abs=1e-4)


def test_intervals_are_those_of_wilson_and_of_massart():
    d = make(*[0.0] * 64, *[0.5] * 64)
    low, high = d.interval(0.1)  # 64 of 128: 1/2 -+ z sqrt(1/(4n) + z^2/(4n^2)) / (1 + z^2/n)
    half = 1.959964 * math.sqrt(0.25 / 128 + 1.959964**2 / (4 * 128**2)) / (1 + 1.959964**2 / 128)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half)) and (low, high) == wilson(64, 128)
    assert half == pytest.approx(0.0854, abs=1e-4)
    assert curves.dkw(128) == pytest.approx(0.12004, abs=1e-5) and curves.dkw(1000) == pytest.approx(0.04295, abs=1e-5)
    assert d.interval(0.1, simultaneous=True) == (0.5 - curves.dkw(128), 0.5 + curves.dkw(128))
    assert make(0, 0, 0, 0).interval(0, simultaneous=True)[0] == 0 and make(1, 1, 1).interval(0, simultaneous=True)[1] == 1


# --- what is refused ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"value": []}, "shape"), ({"value": 0.5}, "shape"), ({"value": [[0.5]]}, "shape"), ({"value": "many"}, "no array"),
        ({"value": [0.1, math.nan]}, "1 of 2 distances are NaN"), ({"value": [-0.1, 0.1]}, "1 negative"),
        ({"value": [8.0, 0.1]}, "1 of 2 distances lie above 1.*divide by 255"), ({"value": [True, False]}, "bool"),
        ({"index": [0]}, r"index is torch.int64 \(1,\), expected int64 \(2,\)"), ({"index": [3, 3]}, "names a point twice"),
        ({"label": [0.0, 1.0]}, "label is torch.float32"), ({"label": [0, -1]}, "negative"),
        ({"name": ""}, "name"), ({"name": "two\nlines"}, "one line"), ({"method": None}, "method"), ({"data": 3}, "data"),
        ({"eps": 8}, "8/255"), ({"eps": "8/255"}, "8/255"),
    ],
)  # fmt: skip
def test_distances_check_themselves(changes, said):
    with pytest.raises(Invalid, match=said):
        Distances(**{"value": [0.1, 0.2], "name": "net", "method": "these attacks"} | changes)


@pytest.mark.parametrize("eps", [-0.1, math.nan, INF, "8/255", [0.1, -1]])
def test_radii_that_are_none_are_refused(eps):
    with pytest.raises(Invalid, match="such as 8/255"):
        FIVE.accuracy(eps)


@pytest.mark.parametrize("limit", [0, -1, math.nan, INF, "0.15"])
def test_limits_that_are_none_are_refused(limit):
    for ask in (FIVE.area, FIVE.steps):
        with pytest.raises(Invalid, match=r"such as 0\.15"):
            ask(limit)


def test_what_the_caller_changes_afterwards_does_not_change_the_distances():
    value = torch.tensor([0.1, 0.2])
    d = Distances(value, name="net", method="m")
    value[0] = 1
    assert d.value[0] < 0.2 and d.accuracy(0.5) == 0


# --- our files ------------------------------------------------------------------------------------------------------------------


def same(a: Distances, b: Distances) -> bool:
    texts = all(getattr(a, f) == getattr(b, f) for f in ("name", "method", "data", "eps"))
    arrays = [(a.value.view(torch.int32), b.value.view(torch.int32)), (a.index, b.index), (a.label, b.label)]
    return texts and all(x is y is None or (x.dtype == y.dtype and torch.equal(x, y)) for x, y in arrays)


TEXTS = st.text(min_size=1, max_size=20).filter(lambda t: t.strip() and t.isprintable())


@given(VALUES, TEXTS, TEXTS, st.none() | TEXTS, st.none() | st.floats(1e-9, 1), st.booleans())
def test_our_files_come_back_bit_for_bit(tmp_path_factory, values, name, method, data, eps, numbered):
    n = len(values)
    more = {"index": torch.randperm(n), "label": torch.arange(n)} if numbered else {}
    d = make(*values, name=name, method=method, data=data, eps=eps, **more)
    path = tmp_path_factory.mktemp("npz") / "curve.npz"
    assert curves.write(path, d) == path and [p.name for p in path.parent.iterdir()] == ["curve.npz"]
    assert same(curves.read(path), d)


def test_our_files_are_plain_arrays_for_everybody(tmp_path):
    curves.write(tmp_path / "a.npz", make(0.0, INF, name="net", eps=8 / 255))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as z:
        assert set(z.files) == {"format", "value", "name", "method", "eps"}
        assert z["value"].dtype == np.float32 and z["value"].tolist() == [0, INF] and str(z["name"]) == "net"


def test_writing_needs_a_name_and_a_place(tmp_path):
    for path, said in ((tmp_path / "a.pickle", r"ends in \.npz"), ("/proc/nowhere/a.npz", "cannot write")):
        with pytest.raises(Invalid, match=said):
            curves.write(path, FIVE)


def test_files_get_names_of_their_own(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        curves.write(tmp_path / folder / "x.npz", make(0.5, name="net"))
        (tmp_path / folder / "seen.pickle").write_bytes(pickle.dumps([0.5]))
    found = curves.load_all([*sorted(tmp_path.glob("*/*")), tmp_path / "a" / "x.npz"])
    assert [d.name for d in found] == ["seen", "net", "seen (2)", "net (2)", "net (3)"]
    assert [d.name for d in curves.load_all(tmp_path / "a" / "x.npz")] == ["net"]
    with pytest.raises(Invalid, match="no files"):
        curves.load_all([])


# --- the survey's pickles ---------------------------------------------------------------------------------------------------------


def numbers() -> torch.Tensor:
    values = torch.rand(128, generator=torch.Generator().manual_seed(0)) / 10
    values[::9] = 0
    return values


def as_survey(values: torch.Tensor) -> list[torch.Tensor]:
    distances: list[torch.Tensor] = []
    distances.extend(values)  # zero-dimensional views, each pickled with the whole storage
    return distances


FORMS = {
    "tensors": as_survey,
    "tensors of batches": lambda v: [*as_survey(v[:64].clone()), *as_survey(v[64:].clone())],
    "tensors with gradients": lambda v: as_survey(v.clone().requires_grad_()),
    "batches": lambda v: list(v.split(50)),
    "one tensor": lambda v: v,
    "a strided tensor": lambda v: torch.stack([v, v], 1)[:, 0],
    "doubles": lambda v: as_survey(v.double()),
    "floats": lambda v: v.tolist(),
    "a tuple": lambda v: tuple(v.tolist()),
    "numpy scalars": lambda v: list(v.numpy()),
    "an array": lambda v: v.numpy(),
    "an array of float64": lambda v: v.numpy().astype(np.float64),
    "a big-endian array": lambda v: v.numpy().astype(">f4"),
    "arrays": lambda v: [v[:60].numpy(), v[60:].numpy()],
    "a dict of a list": lambda v: {"distances": as_survey(v)},
    "an ordered dict": lambda v: collections.OrderedDict(distances=as_survey(v)),
    "a dict by point": lambda v: dict(enumerate(as_survey(v))),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("form", FORMS)
def test_pickles_of_every_protocol_and_form_are_read_exactly(tmp_path, form, protocol):
    path = tmp_path / f"{SURVEYED}.pickle"
    path.write_bytes(pickle.dumps(FORMS[form](numbers()), protocol=protocol))
    d = curves.read(path)
    assert torch.equal(d.value, numbers()) and d.name == SURVEYED and (d.data, d.eps) == ("cifar10", 8 / 255)


def test_zero_in_the_surveys_files_counts_as_not_robust_and_the_method_says_so(tmp_path):
    path = tmp_path / f"{SURVEYED}.pickle"
    path.write_bytes(pickle.dumps(as_survey(torch.tensor([0.0, 0.1, 0.0, 0.01]))))
    d = curves.read(path)
    assert d.accuracy(0) == 0.5 and d.accuracy(8 / 255) == 0.25
    assert d.method == "HO-FMN as the survey ran it (0 in the file: wrong without attack, or none found)"
    other = tmp_path / "mine.pkl"
    other.write_bytes(path.read_bytes())
    d = curves.read(other)
    assert (d.name, d.data, d.eps) == ("mine", None, None) and "does not name" in d.method


def test_a_dict_of_models_is_taken_apart_by_load_all_only(tmp_path):
    path = tmp_path / "models.pickle"
    path.write_bytes(pickle.dumps({"one": [0.5, 0.25], "two": as_survey(torch.tensor([0.125]))}))
    assert {d.name: d.value.tolist() for d in curves.load_all([path])} == {"one": [0.5, 0.25], "two": [0.125]}
    with pytest.raises(Invalid, match=r"2 models \(one, two\).*load_all"):
        curves.read(path)


class Reduced:
    """Pickled as a call of ``function`` with ``arguments``, and ``state`` to be set on what it returns."""

    def __init__(self, function, *arguments, state=None):
        self.all = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.all


def storage(
    location: str = "cpu", n: int = 2, content: bytes = struct.pack("<2f", 0.5, 0.25), count: int | None = None
) -> Reduced:
    """A storage of two numbers as torch.save writes it in its old format, made by hand."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "7", location, n, None) if value == "the storage" else None

    out = io.BytesIO()
    about = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    for part in (0x1950A86A20F9469CFC6C, 1001, about, "the storage", ["7"]):
        Pickler(out, 2).dump(part)
    out.write(struct.pack("<Q", n if count is None else count) + content)
    return Reduced(torch.storage._load_from_bytes, out.getvalue())


def tensor(held: object, offset: object = 1, size: object = (), stride: object = ()) -> Reduced:
    return Reduced(torch._utils._rebuild_tensor_v2, held, offset, size, stride, False, collections.OrderedDict())


def test_the_storage_made_by_hand_is_what_torch_reads():
    assert pickle.loads(pickle.dumps(tensor(storage()))) == torch.tensor(0.25)


def test_tensors_of_a_gpu_are_read_without_one(tmp_path):
    path = tmp_path / "gpu.pickle"
    path.write_bytes(pickle.dumps([tensor(storage("cuda:0"), 1), tensor(storage("cuda:3"), 0)]))
    assert curves.read(path).value.tolist() == [0.25, 0.5]


# --- hostile and damaged files --------------------------------------------------------------------------------------------------------


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


def text(word: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(word)) + word.encode()


def npz(**arrays: object) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("value.npy", bytes(curves.MAX_BYTES + 1))
    return out.getvalue()


def lying_header() -> bytes:
    """An array of a terabyte in its header and of four bytes in its content."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (1 << 38,)})
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(npz(format=1, name="a", method="m"))) as old, zipfile.ZipFile(out, "w") as z:
        for entry in old.namelist():
            z.writestr(entry, old.read(entry))
        z.writestr("value.npy", head.getvalue() + bytes(4))
    return out.getvalue()


def laughs(levels: int = 25) -> bytes:
    """Lists of two of the list before: 2^25 numbers if anybody follows them."""
    build = b"(]" + pickle.BININT1 + b"\x01a" + pickle.BINPUT + b"\x00"
    for i in range(levels):
        build += b"](" + 2 * (pickle.BINGET + bytes([i])) + b"e" + pickle.BINPUT + bytes([i + 1])
    return opcodes(build, b"l")


ON_STACK = b"cos\nsystem\n"
CODE = {  # each would make the sentinel if it were unpickled: (what makes it, what the refusal says)
    "os.system": lambda s: (pickle.dumps(Reduced(os.system, f"touch {s}"), 2), r"holds code \(posix\.system\)"),
    "in a list": lambda s: (pickle.dumps([0.1, Reduced(os.system, f"touch {s}")], 5), r"holds code \(posix\.system\)"),
    "subprocess": lambda s: (pickle.dumps(Reduced(subprocess.call, ["touch", s])), r"holds code \(subprocess\.call\)"),
    "eval": lambda s: (pickle.dumps(Reduced(eval, f"open({s!r}, 'w')")), r"holds code \(builtins\.eval\)"),
    "getattr": lambda s: (opcodes(b"cbuiltins\ngetattr\ncos\n", text("system"), b"\x86R"), r"holds code \(builtins\.getattr\)"),
    "protocol 0": lambda s: (b"cos\nsystem\n(S'touch " + s.encode() + b"'\ntR.", r"holds code \(os\.system\)"),
    "INST": lambda s: (b"(S'touch " + s.encode() + b"'\nios\nsystem\n.", r"refused; nothing was executed"),
    "OBJ": lambda s: (opcodes(b"(" + ON_STACK, text(f"touch {s}"), b"o"), r"holds code \(os\.system\)"),
    "NEWOBJ": lambda s: (opcodes(b"csubprocess\nPopen\n", text(f"touch {s}"), b"\x85\x81"), r"subprocess\.Popen"),
    "in a storage": lambda s: (
        pickle.dumps(tensor(Reduced(torch.storage._load_from_bytes, pickle.dumps(Reduced(os.system, f"touch {s}"), 2)))),
        r"holds code \(posix\.system\)",
    ),
    "a dotted name": lambda s: (opcodes(text("torch._utils"), text("sys.modules"), b"\x93"), r"torch\._utils\.sys\.modules"),
    "a method of an allowed name": lambda s: (opcodes(text("numpy"), text("ndarray.tofile"), b"\x93"), r"numpy\.ndarray\.tofile"),
    "torch.load": lambda s: (pickle.dumps(Reduced(torch.load, s)), r"holds code \(torch\.serialization\.load\)"),
    "the extension registry": lambda s: (opcodes(b"\x82\x01"), "EXT1"),
    "a persistent id": lambda s: (opcodes(text("x"), b"Q"), "BINPERSID"),
    "hooks of a tensor": lambda s: (
        pickle.dumps(Reduced(torch._utils._rebuild_tensor_v2, storage(), 0, (), (), False, {"a": Reduced(os.system, f"touch {s}")})),
        r"holds code \(posix\.system\)",
    ),
    "state for a function": lambda s: (opcodes(b"cnumpy\ndtype\n", b"}", text("__name__"), text("x"), b"sb"), "put into"),
    "a name in two lines": lambda s: (opcodes(text("os\n"), text("system"), b"\x93"), r"holds code \('os\\n\.system'\)"),
}  # fmt: skip


@pytest.mark.parametrize("attack", CODE)
def test_a_file_with_code_is_refused_with_its_name_and_nothing_runs(tmp_path, attack):
    sentinel, path = tmp_path / "sentinel", tmp_path / "file.pickle"
    content, said = CODE[attack](str(sentinel))
    path.write_bytes(content)
    with pytest.raises(Invalid, match=said) as refusal:
        curves.read(path)
    assert not sentinel.exists() and "\n" not in str(refusal.value) and str(path) in str(refusal.value)


@pytest.mark.parametrize("attack", ["os.system", "in a list", "subprocess", "eval", "protocol 0", "INST", "OBJ", "in a storage"])
def test_the_same_files_do_run_in_pythons_own_reader(tmp_path, attack):
    content, _ = CODE[attack](str(tmp_path / "sentinel"))
    with contextlib.suppress(Exception):  # the program runs, whatever becomes of its result
        pickle.loads(content)
    assert (tmp_path / "sentinel").exists()


HUGE = (1 << 40,)
WHOLE = pickle.dumps(as_survey(torch.tensor([0.5, 0.25, 0.0, 0.125])))
DAMAGED = {
    "nothing": (b"", "is empty"),
    "a web page": (b"<!DOCTYPE html><html>quota exceeded</html>", "is a web page"),
    "text": (b"0.1, 0.2, 0.3\n", "refused|no file of distances"),
    "cut short": (WHOLE[:-200], "damaged"),
    "without an end": (WHOLE[:-1], "damaged"),
    "two in one": (WHOLE + WHOLE, "goes on after its end"),
    "zeros": (bytes(100), "damaged"),
    "a text": (pickle.dumps("0.1"), "holds a str"),
    "None": (pickle.dumps([0.1, None]), "holds a NoneType"),
    "a truth value": (pickle.dumps([0.1, True]), "holds a bool"),
    "a list of lists": (pickle.dumps([[0.1], [0.2]]), "holds a list"),
    "an empty list": (pickle.dumps([]), "at least one"),
    "an empty dict": (pickle.dumps({}), "at least one"),
    "a dict of other things": (pickle.dumps({"distances": [0.1], "model": "net"}), "holds a str"),
    "a dict without names": (pickle.dumps({0: [0.1], 1: [0.2]}), "dict of 2 lists.*the name of a model"),
    "more models than there are": (pickle.dumps({str(i): [0.1] for i in range(101)}), "dict of 101 lists"),
    "a matrix": (pickle.dumps(torch.zeros(2, 2)), "2 dimensions"),
    "an array of two dimensions": (pickle.dumps(np.zeros((2, 2), np.float32)), "2 dimensions"),
    "an array of integers": (pickle.dumps(np.arange(3)), "another type"),
    "an array of objects": (pickle.dumps(np.array([{}, 1], dtype=object)), "another type"),
    "a tensor of integers": (pickle.dumps(torch.arange(3)), r"torch\.LongStorage"),
    "NaN": (pickle.dumps(as_survey(torch.tensor([0.1, math.nan]))), "1 of 2 distances are NaN"),
    "negative": (pickle.dumps([0.1, -0.1]), "1 negative"),
    "grey levels": (pickle.dumps([8.0, 16.0]), "divide by 255"),
    "a number beyond floats": (pickle.dumps([10**400]), "damaged"),
    "a list in itself": (opcodes(b"]", pickle.BINPUT, b"\x00", pickle.BINGET, b"\x00a"), "holds a list"),
    "many laughs": (laughs(), "holds a list"),
    "deep nesting": (opcodes(b")" + b"\x85" * 100_000), "holds a tuple"),
    "a name of nested lists": (laughs()[:-1] + 2 * (pickle.BINGET + b"\x19") + b"\x93.", "no text"),
    "more points than there are": (pickle.dumps([np.zeros(600_000, np.float32)] * 2), "more than 1000000 points"),
    "an instruction without use": (opcodes(b"NN0"), "no file of distances needs \\(POP\\)"),
    "too much work": (opcodes(b"N" * 5_000_000), "more work"),
    "a long promise": (opcodes(b"\x8e" + struct.pack("<Q", 1 << 40)), "damaged"),
    "a memo far out": (opcodes(b"Nr" + struct.pack("<I", 2**32 - 1)), "holds a NoneType"),
    "nothing to take": (opcodes(b"\x86"), "damaged|holds a tuple"),
    "a mark missing": (opcodes(b"t"), "damaged"),
    "a memo missing": (opcodes(b"h\x05"), "damaged"),
    "a call of data": (opcodes(text("os.system"), b")R"), "damaged"),
    "an allowed name alone": (opcodes(b"ctorch._utils\n_rebuild_tensor_v2\n"), "holds a _Name"),
    "a tensor larger than its storage": (pickle.dumps([tensor(storage(), 0, HUGE, (1,))]), "larger than its storage"),
    "a tensor that repeats one number": (pickle.dumps([tensor(storage(), 0, HUGE, (0,))]), "outside of its storage"),
    "a tensor before its storage": (pickle.dumps([tensor(storage(), -1)]), "outside of its storage"),
    "a tensor after its storage": (pickle.dumps([tensor(storage(), 2)]), "larger than its storage"),
    "a tensor of a text": (pickle.dumps([tensor("0123")]), "damaged"),
    "a storage that says more than it holds": (pickle.dumps([tensor(storage(n=1 << 40))]), "damaged"),
    "a storage of a bytearray": (pickle.dumps([tensor(Reduced(torch.storage._load_from_bytes, bytearray(9)))], 5), "not made of bytes"),
    "a storage of two lengths": (pickle.dumps([tensor(storage(count=3))]), "another length"),
    "a storage of negative length": (pickle.dumps([tensor(storage(n=-1, count=2**64 - 1))]), "another length"),
    "a huge array": (pickle.dumps(Reduced(np._core.numeric._frombuffer, bytearray(8), np.dtype("f4"), HUGE, "C")), "damaged"),
    "a scalar of objects": (pickle.dumps(Reduced(np._core.multiarray.scalar, np.dtype("O"), b"12345678")), "another type"),
    "an archive of another kind": (npz(arr_0=np.zeros(3)), "lacks the arrays"),
    "a broken archive": (npz(arr_0=np.zeros(30))[:150], "damaged"),
    "objects in an archive": (npz(format=1, name="a", method="m", value=np.array([{}], dtype=object)), "damaged.*allow_pickle"),
    "another format": (npz(format=2, name="a", method="m", value=np.zeros(3, np.float32)), "format 2"),
    "NaN in an archive": (npz(format=1, name="a", method="m", value=np.full(3, np.nan, np.float32)), "3 of 3 distances are NaN"),
    "one number in an archive": (npz(format=1, name="a", method="m", value=np.float32(0.5)), "shape"),
    "a nameless archive": (npz(format=1, name=np.zeros(2), method="m", value=np.zeros(3, np.float32)), "name"),
    "an archive that unpacks to much": (bomb(), "unpacks to more"),
    "an archive that promises much": (lying_header(), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused_with_a_sentence(tmp_path, damage):
    content, said = DAMAGED[damage]
    path = tmp_path / "file.pickle"
    path.write_bytes(content)
    with pytest.raises(Invalid, match=said) as refusal:
        curves.read(path)
    assert len(str(refusal.value)) < 600 and "\n" not in str(refusal.value)


def test_what_is_no_file_or_too_large_is_not_read(tmp_path):
    large = tmp_path / "large.pickle"
    with open(large, "wb") as f:
        f.truncate(curves.MAX_BYTES + 1)
    for path, said in (
        (large, "was not read"),
        (tmp_path, "no file"),
        (tmp_path / "none.npz", "no file"),
        ("/dev/zero", "no file"),
    ):
        with pytest.raises(Invalid, match=said):
            curves.read(path)


@given(st.data())
def test_a_changed_byte_gives_distances_or_a_sentence(tmp_path_factory, data):
    held = storage()
    whole = bytearray(pickle.dumps([tensor(held, 0), tensor(held, 1), 0.5], protocol=data.draw(st.sampled_from([2, 4]))))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("changed") / "a.pickle"
    path.write_bytes(whole)
    try:
        found = curves.load_all([path])
    except Invalid as refusal:
        assert "\n" not in str(refusal)
    else:
        assert all(d.n >= 1 for d in found)


@given(st.binary(max_size=200))
def test_noise_gives_a_sentence(tmp_path_factory, noise):
    path = tmp_path_factory.mktemp("noise") / "a.pickle"
    path.write_bytes(b"\x80\x04" + noise)
    try:
        curves.read(path)
    except Invalid as refusal:
        assert "\n" not in str(refusal)


# --- the figure -----------------------------------------------------------------------------------------------------------------------


def traces(figure, meta: str) -> list:
    return [t for t in figure.data if t.meta == meta]


def test_the_line_is_the_curve_with_its_steps_at_the_distances():
    d = make(0.0, 0.25, 0.25, 0.5, INF, eps=0.25)
    (line,) = traces(plots.security_curve(d), "curve")
    assert line.line.shape == "hv"  # right-continuous: at a distance the curve has dropped
    assert list(line.x)[:3] == [0, 0.25, 0.5] and list(line.y) == pytest.approx([80, 40, 20, 20])
    for part in ("radius 0.25000 = 63.75/255", "40.0%", "2 of 5 points stand"):
        assert part in line.text[1]


def test_the_shade_is_wilsons_interval_at_every_step():
    figure = plots.security_curve(make(0.0, 0.25, 0.25, 0.5, INF, eps=0.25))
    (high,), (low,) = traces(figure, "high"), traces(figure, "low")
    assert low.fill == "tonexty" and high.line.shape == low.line.shape == "hv" and list(figure.data)[:2] == [high, low]
    for at, k in enumerate((4, 2, 1)):
        assert (low.y[at], high.y[at]) == pytest.approx([100 * v for v in wilson(k, 5)])


def test_the_radius_of_reference_is_a_line_and_the_legend_tells_its_value():
    figure = plots.security_curve(make(0.0, 8 / 255, 0.05, 0.1, name="net", eps=8 / 255, data="cifar10"))
    (line,) = figure.layout.shapes
    assert line.x0 == line.x1 == 8 / 255
    (mark,) = traces(figure, "eps")
    low, high = wilson(2, 4)
    assert (
        list(mark.y) == [50]
        and mark.name == f"net: at most 50.0% [{low:.1%}, {high:.1%}] at 8/255, n = 4"
        and mark.showlegend is None
    )
    assert figure.layout.title.subtitle.text.startswith("upper bound, found by these attacks<br>")
    assert "cifar10" in figure.layout.title.text and figure.layout.annotations[0].text == " eps = 8/255"
    assert "8/255<br>0.031" in figure.layout.xaxis.ticktext


def test_a_radius_that_is_no_whole_number_of_255ths_has_a_plain_axis():
    figure = plots.security_curve(make(0.1, 0.2), eps=0.1)
    assert figure.layout.xaxis.ticktext is None and figure.layout.annotations[0].text == " eps = 0.1"


def test_several_networks_differ_in_colour_dash_and_marker_and_name_their_attacks():
    own = make(0.1, 0.2, name="own", method="everything", eps=0.1)
    figure = plots.security_curve([make(0.1, name=f"net {i}", eps=0.1) for i in range(6)] + [own])
    marks = traces(figure, "eps")
    for looks in ([t.line.color for t in marks], [t.line.dash for t in marks], [t.marker.symbol for t in marks]):
        assert len(set(looks)) == 7
    assert marks[0].name.endswith("<br>found by these attacks") and marks[6].name.endswith("<br>found by everything")
    assert "found by the attacks that the legend names" in figure.layout.title.subtitle.text
    assert [t.line.dash for t in marks] == [t.line.dash for t in traces(figure, "curve")]


def test_points_that_were_never_broken_make_a_flat_line():
    figure = plots.security_curve(make(INF, INF), eps=0.1)
    assert list(traces(figure, "curve")[0].y) == [100, 100] and tuple(figure.layout.xaxis.range) == pytest.approx((0, 0.15))


@pytest.mark.parametrize(
    ("given", "more", "said"),
    [
        ([make(0.1, data="digits", eps=0.1), make(0.1, data="cifar10", eps=0.1)], {}, "different data: got cifar10 and digits"),
        ([make(0.1)], {}, "name no radius; give"), ([make(0.1, eps=0.1), make(0.1, eps=8 / 255)], {}, "radii 8/255 and 0.1; give"),
        ([], {}, "got 0 curves"), ([FIVE] * 8, {"eps": 0.1}, "got 8 curves"), ([[0.1, 0.2]], {"eps": 0.1}, "Distances"),
        ([FIVE], {"eps": 8}, "8/255"), ([FIVE], {"eps": "8/255"}, "8/255"),
    ],
)  # fmt: skip
def test_what_one_figure_cannot_show_is_refused(given, more, said):
    with pytest.raises(Invalid, match=said):
        plots.security_curve(given, **more)


@pytest.mark.browser
def test_a_browser_draws_the_curve(tmp_path):
    if not plots.show._browser():
        pytest.skip("no browser that kaleido could draw with")
    figure = plots.security_curve([FIVE, make(0.1, 0.2)], eps=0.25)
    assert plots.save(figure, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_data_that_is_not_known_may_stand_beside_data_that_is():
    assert len(plots.security_curve([make(0.1, data="digits"), make(0.1)], eps=0.1).data) == 8
