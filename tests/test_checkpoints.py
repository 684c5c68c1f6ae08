"""Weights from files: what fits is loaded, what does not is refused with a sentence, and nothing in a file is ever run."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from apnb import checkpoints
from apnb.errors import Invalid
from apnb.networks import build
from tests.helpers import same

NET = build("cnn", channels=1, classes=10, seed=3)
STATE = NET.state_dict()


@pytest.mark.parametrize(
    "wrapped",
    [
        STATE,
        {"state_dict": STATE},
        {"net": STATE, "acc": 91.2, "epoch": 7},
        {"model": {f"module.{k}": v for k, v in STATE.items()}},
    ],
    ids=["bare", "state_dict", "net", "data parallel"],
)
def test_weights_come_back_to_the_bit_however_they_are_wrapped(wrapped, tmp_path):
    torch.save(wrapped, tmp_path / "w.pt")
    net = checkpoints.load(tmp_path / "w.pt", "cnn", channels=1, classes=10)
    assert same(dict(net.state_dict()), dict(STATE))
    assert not net.training


def test_safetensors_are_read_too(tmp_path):
    save_file({k: v.contiguous() for k, v in STATE.items()}, tmp_path / "w.safetensors")
    assert same(checkpoints.read(tmp_path / "w.safetensors"), dict(STATE))


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_is_named_and_not_run(tmp_path):
    place = tmp_path / "was here"
    torch.save({"net": Runs(place)}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Runs(place), protocol=2))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(Invalid, match=r"nothing of it was run|cannot be read as weights"):
            checkpoints.read(tmp_path / name)
    assert not place.exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "cannot be read as weights"),
        (b"<html>quota exceeded</html>", "damaged"),
        ({"lr": 0.1}, "holds the keys 'lr', expected a state_dict"),
        ([1, 2], "holds a list"),
        ({}, "expected a state_dict"),
    ],
)
def test_what_holds_no_weights_is_refused(content, sentence, tmp_path):
    path = tmp_path / "w.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(Invalid, match=sentence):
        checkpoints.read(path)


def test_a_file_cut_short_is_refused(tmp_path):
    torch.save(STATE, tmp_path / "w.pt")
    content = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(Invalid, match="damaged"):
        checkpoints.read(tmp_path / "w.pt")


def test_weights_of_another_network_are_told_apart_key_by_key(tmp_path):
    changed = {k: v for k, v in STATE.items() if k != "bn1.weight"}
    changed["extra"] = torch.zeros(1)
    changed["linear.bias"] = torch.zeros(7)
    torch.save(changed, tmp_path / "w.pt")
    with pytest.raises(
        Invalid, match=r"1 missing \(bn1.weight\); 1 left over \(extra\); 1 of another shape \(linear.bias\); name the right one"
    ):
        checkpoints.load(tmp_path / "w.pt", "cnn", channels=1, classes=10)


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    torch.save({**STATE, "bn1.bias": torch.full((16,), float("nan"))}, tmp_path / "w.pt")
    with pytest.raises(Invalid, match=r"NaN or infinite weights in bn1\.bias"):
        checkpoints.load(tmp_path / "w.pt", "cnn", channels=1, classes=10)
