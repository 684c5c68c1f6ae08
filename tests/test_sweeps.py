"""Sweeps: serial and on an executor, failures kept apart, files that people write."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

import apnb
from apnb import sweeps
from apnb.store import ROW


def tiny(**changes) -> apnb.Recipe:
    return apnb.Recipe(**{"pipeline": "after", "sparsity": 0.5, "budget": "tiny", **changes})


def test_a_sweep_keeps_the_order_of_its_recipes_and_makes_one_table(tmp_path):
    recipes = [tiny(sparsity=s) for s in (0.9, 0.5, 0.7)]
    told = []
    runs = apnb.sweep(recipes, store=tmp_path, attacks="pgd", progress=lambda *a: told.append(a[:2]))
    frame = runs.frame()
    assert list(frame["sparsity"]) == [0.9, 0.5, 0.7] and list(frame.columns) == list(ROW)
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert ((frame["low"] <= frame["robust"]) & (frame["robust"] <= frame["high"])).all()
    stored = sweeps.table(tmp_path)
    assert set(stored["key"]) == set(frame["key"])
    pd.testing.assert_series_equal(stored.set_index("key")["robust"].sort_index(), frame.set_index("key")["robust"].sort_index())


def test_an_executor_gives_what_serial_gives(tmp_path):
    recipes = [tiny(sparsity=s) for s in (0.5, 0.8)] + [tiny(pipeline="during")]
    serial = apnb.sweep(recipes, store=tmp_path / "serial", attacks="lite").frame()
    with ThreadPoolExecutor(2) as pool:  # AutoAttack draws from torch's global random state: two threads must take turns
        threads = apnb.sweep(recipes, pool, store=tmp_path / "threads", attacks="lite").frame()
    same = ["key", "sparsity", "units", "clean", "robust"]
    pd.testing.assert_frame_equal(serial[same], threads[same])


@pytest.mark.slow
def test_spawned_workers_give_what_serial_gives(tmp_path):
    recipes = sweeps.with_dense([tiny(sparsity=s) for s in (0.5, 0.8)])
    serial = apnb.sweep(recipes, store=tmp_path / "serial", attacks="lite").frame()
    with sweeps.workers(2, threads=1) as pool:
        spawned = apnb.sweep(recipes, pool, store=tmp_path / "spawned", attacks="lite").frame()
    same = ["key", "label", "sparsity", "units", "clean", "robust"]
    pd.testing.assert_frame_equal(serial[same], spawned[same])


def test_what_fails_does_not_stop_the_rest(tmp_path):
    bad = tiny(structure="filters", sparsity=0.99)
    runs = apnb.sweep([bad, tiny()], store=tmp_path, evaluate=False)
    assert len(runs) == 1 and list(runs.failed) == [bad]
    assert "leaves 1 of 112 units" in runs.failed[bad]


def test_the_dense_reference_is_added_once_for_each_seed():
    recipes = [tiny(sparsity=s, seed=i) for s in (0.5, 0.9) for i in (0, 1)]
    dense = [r for r in sweeps.with_dense(recipes) if r.sparsity == 0]
    assert [r.seed for r in dense] == [0, 1]


def test_a_sweep_file_means_all_combinations(tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text(
        'attacks = "lite"\nn = 64\n[[recipes]]\npipeline = "after"\nsparsity = [0.5, 0.9]\nseed = [0, 1, 2]\n'
        '[[recipes]]\npipeline = "during"\nstructure = "filters"\nsparsity = 0.5\n'
    )
    read = sweeps.read_sweep(file)
    assert len(read["recipes"]) == 7 and read["attacks"] == "lite" and read["n"] == 64
    other = tmp_path / "sweep.json"
    other.write_text(json.dumps({"recipes": [r.to_dict() for r in read["recipes"]]}))
    assert sweeps.read_sweep(other)["recipes"] == read["recipes"]


def test_a_file_may_name_surveyed_methods(tmp_path):
    file = tmp_path / "methods.toml"
    file.write_text(
        '[[recipes]]\nmethod = "harp"\nsparsity = [0.5, 0.9]\nconstants = {gamma = 0.1}\n[[recipes]]\nmethod = "flyingbird+"\n'
    )
    recipes = sweeps.read_sweep(file)["recipes"]
    assert recipes == [*(apnb.recipe("harp", sparsity=s, gamma=0.1) for s in (0.5, 0.9)), apnb.recipe("flyingbird+")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("recipes = 3", "valid list"),
        ("recipes = []", "lists no recipes"),
        ("[[recipes]]\nsparsity = 0.5", "recipe 1: a recipe needs a pipeline"),
        ("[[recipes]]\npipeline = 'after'\nsparsity = 90", "did you mean 0.9"),
        ("[[recipes]]\nmethod = 'harp'\nconstants = 'gamma=1'", "recipe 1: constants are numbers by name"),
        ("[[recipes]]\nmethod = 'dnr'", "its cell of the taxonomy runs as"),
        ("[[recipes]]\npipeline = 'after'\nlocalitty = 'local'", "did you mean 'locality'"),
        ("attack = 'lite'\n[[recipes]]\npipeline = 'after'", "did you mean 'attacks'"),
        ("n = 'many'\n[[recipes]]\npipeline = 'after'", "n: "),
        ("recipes = [", "no TOML file"),
    ],
)
def test_a_wrong_sweep_file_is_one_sentence(text, words, tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text(text)
    with pytest.raises(apnb.Invalid, match=words) as refusal:
        sweeps.read_sweep(file)
    assert "\n" not in str(refusal.value)


def test_a_missing_sweep_file_is_one_sentence(tmp_path):
    with pytest.raises(apnb.Invalid, match="cannot read"):
        sweeps.read_sweep(tmp_path / "none.toml")


@pytest.mark.skipif(sys.platform == "win32", reason="interruptions are signals")
def test_an_interruption_while_workers_start_ends_them_without_a_traceback():
    probe = """
import os, signal, sys, time
from concurrent.futures.process import BrokenProcessPool
from apnb import sweeps
if __name__ == "__main__":
    with sweeps.workers(2) as pool:
        waits = [pool.submit(time.sleep, 300) for _ in range(2)]
        started = list(pool._processes.values())
        while any(p.is_alive() for p in started):  # at every moment of their start
            for p in started:
                if p.is_alive():
                    os.kill(p.pid, signal.SIGINT)
            time.sleep(0.02)
        try:
            waits[0].result()
        except BrokenProcessPool:
            print("ended", signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=120)
    assert done.stdout == "ended set()\n" and done.stderr == "", done.stderr
