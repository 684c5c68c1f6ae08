"""The store: atomic, shared, damaged files noticed, runs taken elsewhere and back, refusals in one sentence."""

import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import apnb
from apnb.events import Done, Finished, Restored, Resumed, Waiting
from apnb.store import Store, digest, load_tree, save_tree
from tests.helpers import same

RECIPE = {"pipeline": "after", "sparsity": 0.8, "budget": "tiny"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with one finished run."""
    place = tmp_path_factory.mktemp("store")
    return place, apnb.run(apnb.Recipe(**RECIPE), store=place, attacks="pgd").key


def a_copy(made, tmp_path: Path) -> tuple[Store, str]:
    store = Store(tmp_path / "copy")
    Store(made[0]).export(tmp_path / "copy.zip")
    store.import_(tmp_path / "copy.zip")
    return store, made[1]


leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False), st.text(max_size=8),
    st.sampled_from([torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]).map(lambda d: torch.ones(2, 3).to(d)),
)  # fmt: skip
trees = st.recursive(
    leaves, lambda t: st.lists(t, max_size=3) | st.dictionaries(st.one_of(st.text(max_size=5), st.integers(0, 9)), t, max_size=3)
)


@given(tree=trees)
def test_a_tree_comes_back_as_it_was(tree, tmp_path_factory):
    path = tmp_path_factory.mktemp("tree") / "t"
    save_tree(path, tree)
    assert same(tree, load_tree(path))


def test_a_tree_without_safetensors_comes_back_too(tmp_path, monkeypatch):
    tree = {"a": torch.arange(3), "b": [1.5, None, {"c": torch.zeros(2, dtype=torch.bool)}], 3: "x"}
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    save_tree(tmp_path / "t", tree)
    assert same(tree, load_tree(tmp_path / "t"))


def test_a_pickle_that_runs_code_is_never_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'executed'}",))

    torch.save({"tree": "{}", "tensors": Bomb()}, tmp_path / "bomb")
    with pytest.raises(apnb.Invalid, match="cannot be read"):
        load_tree(tmp_path / "bomb")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"PK", b"<html>404</html>", b"\x00" * 64, b"\xff" * 1000])
def test_a_file_that_is_no_tree_is_refused(content, tmp_path):
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(apnb.Invalid, match="cannot be read"):
        load_tree(tmp_path / "t")


def test_keys_depend_on_content_and_not_on_order():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    with pytest.raises(ValueError):
        digest({"a": float("nan")})


def test_a_truncated_stage_is_computed_again_with_the_same_result(tmp_path):
    first = apnb.run(apnb.Recipe(**RECIPE), store=tmp_path, evaluate=False)
    for path in (tmp_path / "stages").glob("*.stage"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    Store(tmp_path).remove(first.key)
    again = apnb.run(apnb.Recipe(**RECIPE), store=tmp_path, evaluate=False)
    assert all(torch.equal(first.masks[n], m) for n, m in again.masks.items())
    assert all(
        torch.equal(a, b) for a, b in zip(first.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("file", ["summary.json", "network.tensors", "history.jsonl"])
@pytest.mark.parametrize("damage", ["truncate", "garbage", "delete"])
def test_a_damaged_run_is_named_and_can_be_removed(file, damage, made, tmp_path):
    store, key = a_copy(made, tmp_path)
    path = store.run_folder(key) / file
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "garbage":
        path.write_bytes(b'{"key": "\xff')
    else:
        path.unlink()
    with pytest.raises(apnb.Invalid) as refusal:
        apnb.open_run(key, store=store)
    assert "\n" not in str(refusal.value)
    store.remove(key)
    assert store.keys() == []


def test_a_summary_that_lacks_fields_hurts_only_its_own_run(made, tmp_path):
    store, key = a_copy(made, tmp_path)
    path = store.run_folder(key) / "summary.json"
    whole = json.loads(path.read_text())
    for field in ("sparsity", "recipe", "label", "format"):
        path.write_text(json.dumps({k: v for k, v in whole.items() if k != field}))
        rows, damaged = store.table()
        assert rows == [] and len(damaged) == 1, field
    path.write_text(json.dumps({**whole, "format": 99}))
    with pytest.raises(apnb.Invalid, match="use the one that wrote it"):
        store.summary(key)


def test_a_damaged_evaluation_is_made_again_and_the_run_stays(made, tmp_path):
    store, key = a_copy(made, tmp_path)
    (tensors,) = (store.run_folder(key) / "evaluations").glob("*.tensors")
    tensors.write_bytes(b"x")
    assert apnb.open_run(key, store=store).evaluation is None
    again = apnb.run(apnb.Recipe(**RECIPE), store=store, attacks="pgd")
    assert again.evaluation.summary()["robust"] == apnb.open_run(key, store=made[0]).evaluation.robust_accuracy


def test_trouble_with_reading_deletes_nothing(made, tmp_path, monkeypatch):
    store, key = a_copy(made, tmp_path)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "safetensors", None)
        with pytest.raises(apnb.Invalid, match="install the package safetensors"):
            apnb.run(apnb.Recipe(**RECIPE), store=store, evaluate=False)
    assert apnb.open_run(key, store=store).key == key


def test_the_table_skips_damaged_runs_and_says_so(made, tmp_path):
    store, key = a_copy(made, tmp_path)
    (store.run_folder(key) / "summary.json").write_text("{}")
    rows, damaged = store.table()
    assert rows == [] and len(damaged) == 1 and key in damaged[0]
    with pytest.warns(UserWarning, match="damaged"):
        assert len(apnb.sweeps.table(store)) == 0


def test_a_run_over_a_damaged_one_says_so_and_the_next_one_works(made, tmp_path):
    store, key = a_copy(made, tmp_path)
    (store.run_folder(key) / "network.tensors").write_bytes(b"x")
    with pytest.raises(apnb.Invalid, match="removed, run it again"):
        apnb.run(apnb.Recipe(**RECIPE), store=store, evaluate=False)
    assert apnb.run(apnb.Recipe(**RECIPE), store=store, evaluate=False).key == key


def test_export_and_import_carry_a_run_with_its_verdicts(made, tmp_path):
    store, key = a_copy(made, tmp_path)
    there, here = apnb.open_run(key, store=made[0]), apnb.open_run(key[:8], store=store)
    assert here.evaluation.summary() == there.evaluation.summary()
    assert all(torch.equal(there.masks[n], m) for n, m in here.masks.items())
    assert store.import_(tmp_path / "copy.zip") == [], "what is here already stays"
    cached = list(apnb.stream(apnb.Recipe(**RECIPE), store=store, attacks="pgd"))
    assert [type(e) for e in cached] == [Done], "an imported run is a finished run"


@pytest.mark.parametrize(
    "name",
    [
        "../evil.json",
        "/etc/evil",
        "runs/../../evil",
        "runs/k/evaluations/../../../evil.json",
        "other/k/summary.json",
        "runs/k/x.py",
    ],
)
def test_a_zip_with_other_entries_is_refused_and_nothing_is_written(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as z:
        z.writestr(name, "{}")
    store = Store(tmp_path / "s")
    with pytest.raises(apnb.Invalid, match="nothing was imported"):
        store.import_(tmp_path / "z.zip")
    assert store.keys() == [] and not list(tmp_path.rglob("evil*"))


def test_a_zip_bomb_no_zip_and_a_missing_zip_are_refused(tmp_path, monkeypatch):
    store = Store(tmp_path / "s")
    monkeypatch.setattr("apnb.store.MAX_IMPORT", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("runs/k/summary.json", "0" * 100_000)
    (tmp_path / "no.zip").write_bytes(b"hello")
    for name, words in {"bomb.zip": "nothing was imported", "no.zip": "no readable ZIP", "gone.zip": "no file"}.items():
        with pytest.raises(apnb.Invalid, match=words):
            store.import_(tmp_path / name)
    assert store.keys() == []
    with pytest.raises(apnb.Invalid, match=r"s cannot be read \(Is a directory\); give the ZIP"):
        store.import_(tmp_path / "s")
    with zipfile.ZipFile(tmp_path / "around.zip", "w") as z:
        z.write(tmp_path / "bomb.zip", "runs.zip")
        z.writestr("../evil", "")  # what is not in runs.zip is never unpacked
    with pytest.raises(apnb.Invalid, match=r"around.zip unpacks to more than .*; no export is that large"):
        store.import_(tmp_path / "around.zip")


def test_an_unknown_key_and_an_ambiguous_one_are_told_apart(made, tmp_path):
    store, key = a_copy(made, tmp_path)
    with pytest.raises(apnb.Invalid, match="no run 'zzz'"):
        store.summary("zzz")
    (store.runs / (key[:4] + "0" * 20)).mkdir()
    (store.runs / (key[:4] + "0" * 20) / "summary.json").write_text("{}")
    with pytest.raises(apnb.Invalid, match="give more of the key"):
        store.summary(key[:4])


def test_a_store_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "store", Path("/proc/apnb-store")):
        with pytest.raises(apnb.Invalid, match=r"cannot write .*--store") as refusal:
            next(apnb.stream(apnb.Recipe(**RECIPE), store=place))
        assert "\n" not in str(refusal.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_store_is_refused(tmp_path):
    place = tmp_path / "store"
    place.mkdir(mode=0o555)
    with pytest.raises(apnb.Invalid, match="Permission denied"):
        next(apnb.stream(apnb.Recipe(**RECIPE), store=place))


FULL = """
import json, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import apnb, torch
torch.set_num_threads(1)
recipe = apnb.Recipe(**json.loads(sys.argv[2]))
runner = apnb.stream(recipe, store=sys.argv[1], evaluate=False)
next(runner)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    list(runner)
except apnb.Invalid as error:
    print(error)
"""


def test_no_space_left_is_one_sentence_and_leaves_nothing_half_written(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path), json.dumps(RECIPE)], capture_output=True, text=True)
    assert done.stdout.startswith("cannot write") and "no space left" in done.stdout, done.stderr[-2000:]
    assert done.stdout.count("\n") == 1
    assert not list(tmp_path.rglob("writing-*")) and not list(tmp_path.rglob("*.stage"))
    finished = apnb.run(apnb.Recipe(**RECIPE), store=tmp_path, evaluate=False)
    assert finished.sparsity.asked == 0.8, "with space again the same command goes on"


def test_two_runs_that_need_the_same_stage_train_it_once(tmp_path):
    budget = apnb.Budget(epochs=6, finetune_epochs=1, images=512, points=16, check=16)
    kinds: list[list[type]] = [[], []]

    def work(i: int) -> None:
        recipe = apnb.Recipe(pipeline="after", sparsity=(0.5, 0.8)[i], budget=budget)
        kinds[i] = [type(e) for e in apnb.stream(recipe, store=tmp_path, evaluate=False) if e.stage == "pretraining"]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted((k.count(Finished), k.count(Restored)) for k in kinds) == [(0, 1), (1, 0)]
    assert any(Waiting in k for k in kinds)


def test_closing_the_stream_stops_and_the_next_one_goes_on(tmp_path):
    recipe = apnb.Recipe(
        pipeline="during", sparsity=0.8, budget=apnb.Budget(epochs=4, images=256, updates=6, points=16, check=16)
    )
    whole = apnb.run(recipe, store=tmp_path / "whole", evaluate=False)
    events = apnb.stream(recipe, store=tmp_path / "cut", evaluate=False, snapshot_every=0)
    for event in events:
        if event.kind == "epoch" and event.step == 2:
            break
    events.close()
    resumed = list(apnb.stream(recipe, store=tmp_path / "cut", evaluate=False))
    assert any(isinstance(e, Resumed) and e.step == 2 for e in resumed)
    ended = resumed[-1].run
    assert all(torch.equal(whole.masks[n], m) for n, m in ended.masks.items())
    assert [r.get("loss") for r in whole.rows] == [r.get("loss") for r in ended.rows]
