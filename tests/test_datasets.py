"""Data sets: what is loaded, how it is split, what batches hold, and what is refused."""

from __future__ import annotations

import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from apnb import datasets
from apnb.chance import generator
from apnb.datasets import Batches, Dataset, Split, data_root, load, subset
from apnb.errors import Invalid


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def coloured(n=60, classes=3, size=8, channels=3, dtype=np.uint8, seed=0):
    """Images that differ from one another, and labels 0, 1, 2, 0, 1, 2, ..."""
    x = np.random.default_rng(seed).integers(0, 256, (n, channels, size, size)).astype(np.uint8)
    return (x if dtype == np.uint8 else (x / 255).astype(dtype)), np.arange(n) % classes


# --------------------------------------------------------------------------------------------------------------------- digits


def test_digits(digits):
    assert [len(s) for s in digits.splits.values()] == [1097, 200, 500]
    assert (digits.classes, digits.eps, digits.channels, digits.size, digits.augment) == (10, 0.15, 1, (8, 8), "none")
    whole = torch.bincount(torch.cat([s.y for s in digits.splits.values()]))
    for split in digits.splits.values():
        assert split.x.dtype == torch.float32 and split.y.dtype == torch.int64
        assert (torch.bincount(split.y) - whole * len(split) / 1797).abs().max() < 1.5
    assert digits.train.x.min() == 0 and digits.train.x.max() == 1
    assert digits.sample().shape == (2, 1, 8, 8)


def test_digits_do_not_overlap(digits):
    from sklearn.datasets import load_digits

    images = torch.cat([s.x for s in digits.splits.values()]).flatten(1)
    whole = torch.from_numpy(load_digits().data / 16).float()
    assert len(images) == len(whole) == 1797
    assert sorted(map(tuple, images.tolist())) == sorted(map(tuple, whole.tolist()))  # every image once


def test_the_fingerprint_is_of_the_content(digits):
    again = load("digits")
    assert again.fingerprint == digits.fingerprint and len(digits.fingerprint) == 64
    assert load(digits, eps=0.3).fingerprint == digits.fingerprint
    y = digits.test.y.clone()
    y[0] = (y[0] + 1) % 10
    assert replace(digits, test=Split(digits.test.x, y)).fingerprint != digits.fingerprint


def test_eps_and_augmentation_can_be_replaced(digits):
    changed = load(digits, eps=0.3, augment="crop-flip")
    assert (changed.eps, changed.augment) == (0.3, "crop_flip") and digits.eps == 0.15
    assert load(digits) is digits
    for bad in (0, -0.1, 8, float("nan"), "8/255"):
        with pytest.raises(Invalid, match="eps is"):
            load(digits, eps=bad)
    with pytest.raises(Invalid, match="no augmentation 'mixup'"):
        load(digits, augment="mixup")


def test_images_are_floats_in_the_unit_range():
    x, y = (torch.from_numpy(a) for a in coloured())
    split = Split(x, y)
    assert split.images().dtype == torch.float32 and torch.equal(split.images(), x / 255)
    assert torch.equal(split.images(torch.tensor([3, 1])), x[[3, 1]] / 255)


# ----------------------------------------------------------------------------------------------------------- what is no data set


def dataset(x=None, y=None, **changes):
    x = torch.rand(6, 1, 8, 8) if x is None else x
    split = Split(x, torch.arange(len(x)) % 2 if y is None else y)
    values = {"name": "own", "train": split, "validation": split, "test": split, "classes": 2, "eps": 0.1}
    return Dataset(**(values | changes))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: dataset(classes=1), "has at least 2"),
        (lambda: dataset(y=torch.arange(6)), "labels run from 0 to 5, expected 0 to 1"),
        (lambda: dataset(y=torch.arange(6) - 1), "labels run from -1"),
        (lambda: dataset(y=torch.zeros(6)), "labels are torch.float32"),
        (lambda: dataset(y=torch.zeros(5, dtype=torch.int64)), r"expected int64 of shape \(6,\)"),
        (lambda: dataset(torch.rand(6, 1, 8, 8) * 255), "divide by 255"),
        (lambda: dataset(torch.full((6, 1, 8, 8), float("nan"))), "pixels run from nan"),
        (lambda: dataset(torch.rand(6, 8, 8)), r"of shape \(N, C, H, W\)"),
        (lambda: dataset(torch.rand(6, 1, 8, 8).double()), "expected uint8 or float32"),
        (lambda: dataset(torch.rand(0, 1, 8, 8)), "holds no pixel"),
        (lambda: dataset(labels=("a",)), "1 class names for 2 classes"),
        (lambda: dataset(test=Split(torch.rand(2, 1, 9, 9), torch.tensor([0, 1]))), "all splits must have one shape"),
        (lambda: load("digit"), "did you mean 'digits'"),
        (lambda: load("cifar"), "did you mean 'cifar10'"),
        (lambda: load(3), "data cannot be a int"),
        (lambda: load((1, 2, 3)), "3 arrays were given"),
    ],
)
def test_what_is_no_data_set(make, sentence):
    with pytest.raises(Invalid, match=sentence):
        make()


# ---------------------------------------------------------------------------------------------------------------------- subsets


def split_of(labels):
    return Split(torch.zeros(len(labels), 1, 1, 1), torch.tensor(labels))


def test_the_embedded_digits_are_scikit_learn_s_in_the_split_that_it_draws():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch, digits = load_digits(), datasets.load("digits")
    rest, test = train_test_split(np.arange(1797), test_size=500, stratify=bunch.target, random_state=0)
    train, validation = train_test_split(rest, test_size=200, stratify=bunch.target[rest], random_state=0)
    for split, index in ((digits.train, train), (digits.validation, validation), (digits.test, test)):
        index = np.sort(index)
        assert np.array_equal(split.x.squeeze(1).numpy(), (bunch.images[index] / 16).astype(np.float32))
        assert np.array_equal(split.y.numpy(), bunch.target[index])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data(), st.sampled_from(["stratified", "random", "first"]))
def test_subsets_are_exact_and_in_proportion(labels, data, how):
    split, n = split_of(labels), data.draw(st.integers(1, len(labels)))
    index = subset(split, n, how=how, seed=3)
    assert len(index) == n and index.tolist() == sorted(set(index.tolist())) and index.dtype == torch.int64
    assert torch.equal(index, subset(split, n, how=how, seed=3))
    if how == "stratified":
        for label in set(labels):
            assert abs((split.y[index] == label).sum() - n * labels.count(label) / len(labels)) < 1
    if how == "first":
        assert index.tolist() == list(range(n))


def test_subsets_depend_on_the_seed(digits):
    assert not torch.equal(subset(digits.test, 100), subset(digits.test, 100, seed=1))
    for bad in (501, 0, -1, 2.5, True):
        with pytest.raises(Invalid, match="whole number from 1 to 500"):
            subset(digits.test, bad)
    with pytest.raises(Invalid, match="no way to draw points"):
        subset(digits.test, 10, how="best")


# ---------------------------------------------------------------------------------------------------------------------- batches


def numbered(n, channels=1, size=1):
    """Images whose pixels all hold the image's own number."""
    x = torch.arange(n, dtype=torch.uint8).view(-1, 1, 1, 1).expand(n, channels, size, size).contiguous()
    return Split(x, torch.arange(n) % 2)


def epoch(batches, number=0):
    return [x.mul(255).round().flatten(1)[:, 0].long() for x, _ in batches(number)]


@pytest.mark.parametrize(
    ("n", "batch", "sizes"),
    [
        (100, 20, [20] * 5),
        (100, 30, [30] * 3),  # 10 left: less than half a batch
        (105, 30, [30] * 3 + [15]),
        (100, 3, [3] * 33),  # 1 left
        (5, 2, [2, 2]),
        (7, 200, [7]),  # the only one
        (1, 200, [1]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_batches_cover_an_epoch(n, batch, sizes):
    batches = Batches(numbered(n), batch, seed=0, stage="train")
    parts = epoch(batches)
    assert [len(p) for p in parts] == sizes and len(batches) == len(sizes)
    seen = torch.cat(parts).tolist()
    assert len(set(seen)) == len(seen) == sum(sizes)


def test_batches_are_a_function_of_seed_stage_and_epoch():
    split = numbered(64)
    first = torch.cat(epoch(Batches(split, 16, seed=0, stage="train")))
    batches = Batches(split, 16, seed=0, stage="train")
    epoch(batches, 5)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(torch.cat(epoch(batches)), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(torch.cat(epoch(batches, 1)), first)
    assert not torch.equal(torch.cat(epoch(Batches(split, 16, seed=1, stage="train"))), first)
    assert not torch.equal(torch.cat(epoch(Batches(split, 16, seed=0, stage="tune"))), first)
    for x, y in batches(2):
        assert torch.equal(x.mul(255).round().flatten().long() % 2, y)  # images keep their labels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_batches_without_augmentation_hold_the_images(channels, dtype):
    x, y = coloured(channels=channels, dtype=dtype)
    split = Split(torch.from_numpy(x), torch.from_numpy(y))
    order = torch.randperm(len(y), generator=generator(7, "s", 3))
    batches = list(Batches(split, 20, seed=7, stage="s")(3))
    assert torch.equal(torch.cat([b for b, _ in batches]), split.images(order))
    assert torch.equal(torch.cat([b for _, b in batches]), split.y[order])
    layout = torch.channels_last if channels > 1 else torch.contiguous_format
    assert all(b.dtype == torch.float32 and b.is_contiguous(memory_format=layout) for b, _ in batches)


@pytest.mark.parametrize(("size", "pad"), [(8, 2), (32, 4)])
@pytest.mark.parametrize("augment", ["crop", "crop_flip"])
def test_augmented_images_are_shifted_and_mirrored_images(size, pad, augment):
    x, y = coloured(n=40, size=size)
    split = Split(torch.from_numpy(x), torch.from_numpy(y))
    order = torch.randperm(40, generator=generator(0, "s", 0))
    padded = torch.nn.functional.pad(split.images(), (pad,) * 4)
    found = set()
    got = torch.cat([b for b, _ in Batches(split, 40, seed=0, stage="s", augment=augment)(0)])
    for image, i in zip(got, order, strict=True):
        options = {
            (dy, dx, flip): padded[i, :, dy : dy + size, dx : dx + size].flip((2,) if flip else ())
            for dy in range(2 * pad + 1)
            for dx in range(2 * pad + 1)
            for flip in ((False, True) if augment == "crop_flip" else (False,))
        }
        hits = [key for key, option in options.items() if torch.equal(option, image)]
        assert len(hits) == 1
        found.add(hits[0])
    assert len(found) > 15 and {key[2] for key in found} == ({False, True} if augment == "crop_flip" else {False})
    assert got.min() >= 0 and got.max() <= 1
    again = torch.cat([b for b, _ in Batches(split, 40, seed=0, stage="s", augment=augment)(0)])
    assert torch.equal(got, again)


def test_batches_refuse_what_is_no_batch():
    for bad in (0, -1, 2.0, True):
        with pytest.raises(Invalid, match="the batch is"):
            Batches(numbered(4), bad, seed=0, stage="s")
    with pytest.raises(Invalid, match="no augmentation"):
        Batches(numbered(4), 2, seed=0, stage="s", augment="cutout")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_sees_the_same_images():
    x, y = coloured(size=32)
    split = Split(torch.from_numpy(x), torch.from_numpy(y))
    for augment in datasets.AUGMENT:
        here, there = (Batches(split, 16, seed=0, stage="s", augment=augment, device=d)(1) for d in ("cpu", "cuda"))
        for (x0, y0), (x1, y1) in zip(here, there, strict=True):
            assert x1.is_cuda and torch.equal(x0, x1.cpu()) and torch.equal(y0, y1.cpu())


def test_generators_differ_by_their_parts():
    draws = [torch.rand(1, generator=generator(*parts)).item() for parts in ((0, "a", 1), (0, "a1"), ("0a1",), (0, "a", 2))]
    assert len(set(draws)) == 4 and draws[0] == torch.rand(1, generator=generator(0, "a", 1)).item()


# --------------------------------------------------------------------------------------------------------------- arrays and npz


def save(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


def test_a_pair_of_arrays_is_split_by_class():
    x, y = coloured(n=60)
    for pair in ((x, y), (torch.from_numpy(x), torch.from_numpy(y)), [x.transpose(0, 2, 3, 1), y.astype(np.uint8)[:, None]]):
        data = load(pair)
        assert [torch.bincount(s.y).tolist() for s in data.splits.values()] == [[14] * 3, [2] * 3, [4] * 3]
        assert sorted(torch.cat([s.x for s in data.splits.values()]).flatten(1).tolist()) == sorted(x.reshape(60, -1).tolist())
        assert data.eps == 8 / 255 and data.classes == 3
    assert load((x, y)).fingerprint == load((x, y)).fingerprint
    few = load((x[:9], y[:9]))
    assert [torch.bincount(s.y).tolist() for s in few.splits.values()] == [[1] * 3] * 3


def test_a_change_of_the_callers_array_does_not_reach_the_data():
    x, y = (torch.from_numpy(a) for a in coloured())
    data = load((x, y))
    before = data.train.x.clone()
    x.zero_()
    assert torch.equal(data.train.x, before)


def test_npz_layouts(tmp_path):
    x, y = coloured(n=60)
    first = load(save(tmp_path / "a.npz", x=x, y=y))
    last = load(save(tmp_path / "b.npz", x=x.transpose(0, 2, 3, 1), y=y))
    assert first.fingerprint == last.fingerprint and first.name == "npz:a" and first.channels == 3
    grey = load(save(tmp_path / "c.npz", x=x[:, 0] / 255, y=y))
    assert grey.channels == 1 and grey.train.x.dtype == torch.float32
    given = load(save(tmp_path / "d.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:]))
    assert [len(s) for s in given.splits.values()] == [37, 3, 20] and torch.equal(given.test.x, torch.from_numpy(x[40:]))
    full = {
        f"{k}_{part}": a[i : i + 20] for i, part in ((0, "train"), (20, "val"), (40, "test")) for k, a in (("x", x), ("y", y))
    }
    assert [len(s) for s in load(save(tmp_path / "e.npz", **full)).splits.values()] == [20, 20, 20]
    assert torch.equal(load(save(tmp_path / "e.npz", **full)).validation.x, torch.from_numpy(x[20:40]))


X, Y = coloured(n=30)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"images": X, "labels": Y}, "lacks x_train, y_train: it holds images, labels"),
        ({"x": X}, "lacks y: it holds x"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "lacks y_test"),
        ({"x": X, "y": Y[:-1]}, r"labels are torch.int64 \(29,\)"),
        ({"x": X / 1.0, "y": Y}, "pixels run from 0 to 255"),
        ({"x": X.astype(np.int64), "y": Y}, "expected uint8, or floats in"),
        ({"x": X.reshape(30, -1), "y": Y}, r"has shape \(30, 192\)"),
        ({"x": np.zeros((30, 4, 8, 8), np.uint8), "y": Y}, "neither 1 nor 3 channels"),
        ({"x": np.zeros((30, 3, 8, 3), np.uint8), "y": Y}, "cannot be told"),
        ({"x": X, "y": Y / 1.0}, "expected whole numbers"),
        ({"x": X, "y": np.eye(3, dtype=int)[Y]}, "expected whole numbers"),
        ({"x": X, "y": Y + 1}, "class 0 has 0 image"),
        ({"x": X, "y": Y - 1}, "labels run from -1"),
        ({"x": X, "y": Y * 10**12}, "labels count from 0"),
        ({"x": X, "y": Y * 0}, "class 1 has 0 image"),
        ({"x": X[:8], "y": Y[:8]}, r"class 2 has 2 image\(s\) to divide into splits, expected at least 3"),
        ({"x": X[:0], "y": Y[:0]}, "holds no pixel"),
        ({"x": X.astype(object), "y": Y}, "is no .npz of plain arrays"),
        ({"x": X.astype("U3"), "y": Y}, "expected numbers"),
        ({"x": X, "y": Y, "x_test": X[:, :, :7], "y_test": Y}, "all splits must have one shape"),
    ],
)
def test_what_is_no_npz_data_set(tmp_path, arrays, sentence):
    with pytest.raises(Invalid, match=sentence):
        load(save(tmp_path / "bad.npz", **arrays))


def test_what_is_no_npz(tmp_path, monkeypatch):
    np.save(tmp_path / "array.npy", X)
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and then nothing")
    for name in ("array.npy", "text.npz", "cut.npz"):
        with pytest.raises(Invalid, match=r"is no \.npz of plain arrays"):
            load(f"npz:{tmp_path / name}")
    with pytest.raises(Invalid, match="is no file"):
        load(f"npz:{tmp_path / 'absent.npz'}")
    name = save(tmp_path / "good.npz", x=X, y=Y)
    with pytest.raises(Invalid, match="is a path; write 'npz:"):
        load(str(tmp_path / "good.npz"))
    monkeypatch.setattr(datasets, "LIMIT", 1000)
    with pytest.raises(Invalid, match="would unpack to"):
        load(name)
    with pytest.raises(Invalid, match="is no array"):
        load(([[1, 2], [3]], [0, 1]))


# --------------------------------------------------------------------------------------------------------------------- folders


def write(folder, count=10, classes=("ant", "bee"), mode="RGB", size=(8, 8), seed=0):
    draw = np.random.default_rng(seed)
    for label in classes:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            shape = size if mode == "L" else (*size, 3)
            Image.fromarray(draw.integers(0, 256, shape).astype(np.uint8)).save(folder / label / f"{i:03}.png")


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as file:
        for item in sorted(folder.rglob("*"), reverse=True):
            file.write(item, item.relative_to(folder.parent))
    return path


def test_folder_and_zip_hold_the_same_data(tmp_path):
    root = tmp_path / "insects"
    write(root)
    (root / ".DS_Store").write_text("hidden")
    (root / "ant" / "._000.png").write_text("hidden")
    (root / "README.txt").write_text("no image")
    (root / "__MACOSX" / "ant").mkdir(parents=True)
    (root / "__MACOSX" / "ant" / "000.png").write_text("hidden")
    data = load(f"folder:{root}")
    assert data.labels == ("ant", "bee") and data.name == "folder:insects" and data.eps == 8 / 255
    assert [torch.bincount(s.y).tolist() for s in data.splits.values()] == [[7, 7], [1, 1], [2, 2]]
    pixels = {tuple(x.flatten().tolist()): int(y) for s in data.splits.values() for x, y in zip(s.x, s.y, strict=True)}
    for label, name in enumerate(data.labels):
        for file in (root / name).glob("0*.png"):
            assert pixels.pop(tuple(np.array(Image.open(file)).transpose(2, 0, 1).flatten().tolist())) == label
    assert not pixels
    before = sorted(tmp_path.rglob("*"))
    archive = zipped(root, tmp_path / "insects.zip")
    again = load(f"folder:{archive}")
    assert again.fingerprint == data.fingerprint and again.name == data.name
    assert sorted(tmp_path.rglob("*")) == sorted([*before, archive])  # nothing was unpacked
    with pytest.raises(Invalid, match="is a path; write 'folder:"):
        load(str(archive))


def test_folders_with_splits(tmp_path):
    write(tmp_path / "train", count=20)
    write(tmp_path / "test", count=4, seed=1)
    assert [len(s) for s in load(f"folder:{tmp_path}").splits.values()] == [36, 4, 8]
    write(tmp_path / "val", count=3, seed=2)
    assert [len(s) for s in load(f"folder:{tmp_path}").splits.values()] == [40, 6, 8]
    (tmp_path / "val").rename(tmp_path / "validation")
    assert [len(s) for s in load(f"folder:{tmp_path}").splits.values()] == [40, 6, 8]


def test_a_class_may_be_called_train(tmp_path):
    write(tmp_path, classes=("train", "tram"))
    assert load(f"folder:{tmp_path}").labels == ("train", "tram")


def test_grey_only_if_all_are_grey(tmp_path):
    write(tmp_path, mode="L")
    grey = load(f"folder:{tmp_path}")
    assert grey.channels == 1
    write(tmp_path, classes=("cat",))
    mixed = load(f"folder:{tmp_path}")
    assert mixed.channels == 3 and mixed.classes == 3
    ant = mixed.train.x[mixed.train.y == 0]
    assert torch.equal(ant[:, 0], ant[:, 2])


def broken(folder):
    (folder / "ant" / "bad.png").write_bytes(b"\x89PNG nonsense")


def cut(folder):
    path = folder / "ant" / "000.png"
    path.write_bytes(path.read_bytes()[:60])


def postscript(folder):
    (folder / "ant" / "bad.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")


def deep(folder):
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "ant" / "deep.png")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (broken, r"ant/bad.png cannot be read as an image"),
        (cut, r"ant/000.png cannot be read as an image"),
        (postscript, r"ant/bad.eps cannot be read as an image"),
        (deep, "ant/deep.png has more than 8 bits"),
        (lambda f: write(f, 1, ("cow",), size=(9, 8)), "ant/000.png is 8x8 pixels .* cow/000.png is 9x8"),
        (lambda f: write(f, 2, ("cow",)), r"class 2 has 2 image\(s\)"),
        (lambda f: write(f / "more", 1), "lies in no class"),
        (lambda f: (f / "bee").rename(f / ".bee"), r"holds 1 class\(es\) to train on \(ant\)"),
        (lambda f: [(f / c).rename(f / f".{c}") for c in ("ant", "bee")], "holds no image"),
    ],
)
def test_folders_that_cannot_be_read(tmp_path, damage, sentence):
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(Invalid, match=sentence):
        load(f"folder:{tmp_path}")


def test_more_folders_that_cannot_be_read(tmp_path, monkeypatch):
    write(tmp_path / "a" / "train")
    write(tmp_path / "a" / "test", classes=("ant", "wasp"))
    with pytest.raises(Invalid, match=r"wasp/000.png is of class 'wasp' \(test\), which train does not have"):
        load(f"folder:{tmp_path / 'a'}")
    write(tmp_path / "b" / "test")
    with pytest.raises(Invalid, match=r"holds 0 class\(es\) to train on"):
        load(f"folder:{tmp_path / 'b'}")
    with pytest.raises(Invalid, match="does not exist"):
        load(f"folder:{tmp_path / 'absent'}")
    (tmp_path / "no.zip").write_text("no archive")
    with pytest.raises(Invalid, match=r"neither a directory nor a readable \.zip"):
        load(f"folder:{tmp_path / 'no.zip'}")
    archive = zipped(tmp_path / "b", tmp_path / "b.zip")
    monkeypatch.setattr(datasets, "LIMIT", 1000)
    with pytest.raises(Invalid, match="would unpack to"):
        load(f"folder:{archive}")
    write(tmp_path / "c")
    with pytest.raises(Invalid, match="do not fit into"):
        load(f"folder:{tmp_path / 'c'}")


# ----------------------------------------------------------------------------------------------------------- CIFAR-10 and SVHN


class Fake:
    """Stands for torchvision's class: absent until downloaded, then a few random images."""

    url = "https://somewhere/archive.tar.gz"
    split_list = {"train": [url], "test": [url + "2"]}  # noqa: RUF012
    reachable = True

    def __init__(self, root, download, train=None, split=None):
        marker = root / "archive"
        if download:
            print("torchvision says much")
            if not self.reachable:
                raise OSError("no route to host")
            marker.write_text("data")
        if not marker.exists():
            raise RuntimeError("Dataset not found or corrupted")
        first = train if split is None else split == "train"
        x, y = coloured(n=200 if first else 50, classes=10, size=32, seed=int(first))
        self.data, self.targets, self.labels = (x.transpose(0, 2, 3, 1) if split is None else x), y.tolist(), y
        self.classes = [f"class {i}" for i in range(10)]


@pytest.mark.parametrize(("name", "augment"), [("cifar10", "crop_flip"), ("svhn", "crop")])
def test_torchvision_sets(tmp_path, monkeypatch, capsys, name, augment):
    import torchvision.datasets as tv

    monkeypatch.setattr(tv, {"cifar10": "CIFAR10", "svhn": "SVHN"}[name], Fake)
    monkeypatch.setattr(Fake, "reachable", False)
    with pytest.raises(
        Invalid, match=r"is not in .* cannot be downloaded \(OSError: no route to host\); download https://.* digits"
    ):
        load(name, root=tmp_path / "data")
    monkeypatch.setattr(Fake, "reachable", True)
    data = load(name, root=tmp_path / "data")
    assert [len(s) for s in data.splits.values()] == [180, 20, 50]
    assert torch.bincount(data.validation.y).tolist() == [2] * 10
    assert (data.eps, data.augment, data.channels, data.size) == (8 / 255, augment, 3, (32, 32))
    assert torch.equal(data.test.x, torch.from_numpy(coloured(n=50, classes=10, size=32, seed=0)[0]))
    monkeypatch.setattr(Fake, "reachable", False)
    assert load(name, root=tmp_path / "data").fingerprint == data.fingerprint  # from the disk
    assert capsys.readouterr() == ("", "")


def test_torchvision_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(Invalid, match="cifar10 needs torchvision"):
        load("cifar10")


def test_where_downloaded_data_lie(tmp_path, monkeypatch):
    monkeypatch.setenv("APNB_DATA", str(tmp_path))
    assert data_root() == tmp_path and data_root("elsewhere").name == "elsewhere"
    monkeypatch.delenv("APNB_DATA")
    assert "apnb" in str(data_root()) and data_root().name == "data"
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    assert data_root().parent.name == ".apnb"


def test_what_has_to_be_downloaded_is_told_by_the_names_that_torchvision_gives_its_files(tmp_path):
    tv = pytest.importorskip("torchvision.datasets")
    assert not datasets.there("cifar10", tmp_path) and not datasets.there("svhn", tmp_path)
    (tmp_path / tv.CIFAR10.base_folder).mkdir()
    (tmp_path / tv.SVHN.split_list["train"][1]).touch()
    assert datasets.there("cifar10", tmp_path) and not datasets.there("svhn", tmp_path)
    (tmp_path / tv.SVHN.split_list["test"][1]).touch()
    assert datasets.there("svhn", tmp_path)
