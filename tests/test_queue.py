"""The queue: recipes in a thread, told about while they run, stopped, added to. No widget is involved."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch

import apnb
from apnb.errors import Invalid
from apnb.events import Batch, Epoch, Pruned, Restored
from apnb.recipes import Recipe
from apnb.widgets.queue import POINTS, Pace, Queue, Reader, State, stored

QUICK = {"attacks": "pgd", "n": 16}
MINUTE = 120


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return str(tmp_path_factory.mktemp("store"))


def tiny(**options) -> Recipe:
    return Recipe(**{"pipeline": "after", "budget": "tiny", **options})


def finished(queue: Queue) -> bool:
    return queue.wait(MINUTE)


def test_a_queue_runs_recipes_in_order_and_keeps_their_rows(store):
    seen: list[State] = []
    queue = Queue(store=store, on_change=seen.append, hz=1e6, **QUICK)
    recipes = [tiny(sparsity=0.0, finetuning="none"), tiny(sparsity=0.5)]
    jobs = queue.add(recipes)
    assert [j.recipe for j in jobs] == recipes and queue.running
    assert finished(queue)
    assert [(r["label"], r["sparsity"], r["n"]) for r in queue.rows] == [
        ("dense", 0.0, 16),
        ("after/weights/global/LWM", 0.5, 16),
    ]
    assert [run.recipe for run in queue.runs] == recipes and list(queue.frame()["sparsity"]) == [0.0, 0.5]
    assert [(j.state, j.seconds > 0) for j in queue.state.jobs] == [("done", True)] * 2
    shares = [s.share for s in seen]
    assert shares == sorted(shares) and shares[-1] == 1
    assert not seen[-1].running and seen[-1].what == "done: 2 of 2 runs"
    assert any("step" in s.what for s in seen) and any("attack pgd" in s.what for s in seen)
    assert {"pretraining", "round 1: prune", "evaluate"} <= {s.stage for s in seen}
    assert all(0 <= s.stage_share <= 1 for s in seen)


def test_a_run_that_is_stored_comes_back_without_a_step_of_training(store):
    seen: list[State] = []
    queue = Queue(store=store, on_change=seen.append, hz=1e6, **QUICK)
    queue.add([tiny(sparsity=0.5)])
    assert finished(queue)
    seen.clear()
    queue.add([tiny(sparsity=0.5)])
    assert finished(queue)
    assert not any(s.stage for s in seen) and seen[-1].share == 1
    assert len(queue.rows) == len(queue.runs) == 1 and [j.state for j in queue.state.jobs] == ["done"] * 2


def test_the_numbers_of_a_queue_are_those_of_a_run(store, tmp_path):
    queue = Queue(store=store, **QUICK)
    queue.add([tiny(sparsity=0.5)])
    assert finished(queue)
    alone = apnb.run(tiny(sparsity=0.5), store=tmp_path, **QUICK).row()
    for column in ("key", "clean", "robust", "weights"):
        assert queue.rows[0][column] == alone[column]


def test_recipes_added_meanwhile_follow_and_what_waits_already_is_not_added_twice(tmp_path):
    def add_once(state: State) -> None:
        if state.stage == "pretraining" and len(added) == 0:
            added.append(queue.add([tiny(sparsity=0.9), tiny(sparsity=0.75)]))

    added: list = []
    queue = Queue(store=tmp_path, on_change=add_once, hz=1e6, **QUICK)
    queue.add([tiny(sparsity=0.5), tiny(sparsity=0.75)])
    assert finished(queue)
    assert [j.recipe.sparsity for j in added[0]] == [0.9]
    assert [r["sparsity"] for r in queue.rows] == [0.5, 0.75, 0.9]
    assert queue.state.what == "done: 3 of 3 runs"


def test_the_same_recipe_under_another_radius_is_another_job(store):
    queue = Queue(store=store, **QUICK)
    queue.add([tiny(sparsity=0.5)] * 2)
    queue.add([tiny(sparsity=0.5)], eps=0.05)
    assert finished(queue)
    assert [(r["train_eps"], r["eps"]) for r in queue.rows] == [(0.15, 0.15), (0.05, 0.05)]
    assert [r["eps"] for r in stored(store, "digits", 0.05)] == [0.05]
    assert stored(store, "cifar10") == [] and {r["key"] for r in queue.rows} <= {r["key"] for r in stored(store)}


def test_cancelling_keeps_what_is_finished_and_adding_again_goes_on(tmp_path):
    def stop_in_the_second_run(state: State) -> None:
        if state.done == 1 and "step" in state.what:
            queue.cancel()

    queue = Queue(store=tmp_path, on_change=stop_in_the_second_run, hz=1e6, **QUICK)
    recipes = [tiny(sparsity=0.5), tiny(sparsity=0.9, pipeline="during"), tiny(sparsity=0.95)]
    queue.add(recipes)
    assert finished(queue)
    assert [r["sparsity"] for r in queue.rows] == [0.5]
    assert [j.state for j in queue.state.jobs] == ["done", "cancelled", "cancelled"]
    assert queue.state.cancelled and queue.state.what == "cancelled after 1 of 3 runs"
    queue._on_change = None
    queue.add(recipes[:2])
    assert finished(queue)
    assert [r["sparsity"] for r in queue.rows] == [0.5, 0.9] and not queue.state.cancelled


def test_dropping_what_waits_lets_the_run_at_work_end(tmp_path):
    def drop(state: State) -> None:
        if state.stage == "pretraining":
            queue.cancel(waiting_only=True)

    queue = Queue(store=tmp_path, on_change=drop, hz=1e6, **QUICK)
    queue.add([tiny(sparsity=0.5), tiny(sparsity=0.9)])
    assert finished(queue)
    assert [j.state for j in queue.state.jobs] == ["done", "cancelled"]


def test_what_is_added_right_behind_a_cancellation_runs(tmp_path):
    def change_of_mind(state: State) -> None:
        if state.stage == "pretraining" and not queue.state.cancelled:
            queue.cancel()
            queue.add([tiny(sparsity=0.75)])

    queue = Queue(store=tmp_path, on_change=change_of_mind, hz=1e6, **QUICK)
    queue.add([tiny(sparsity=0.5), tiny(sparsity=0.9)])
    assert finished(queue)
    assert [(j.recipe.sparsity, j.state) for j in queue.state.jobs] == [(0.5, "cancelled"), (0.9, "cancelled"), (0.75, "done")]


def test_nothing_is_lost_that_is_added_while_the_thread_ends(store):
    last = tiny(sparsity=0.5)
    apnb.run(last, store=store, **QUICK)  # from here on it comes back at once
    asked: list[State] = []

    def add_at_the_end(state: State) -> None:  # the thread has decided to end, and is not gone yet
        if not state.running and len(asked) < 20:
            asked.append(state)
            other = threading.Thread(target=queue.add, args=([last],))
            other.start()
            other.join(MINUTE)

    queue = Queue(store=store, on_change=add_at_the_end, **QUICK)
    queue.add([last])
    assert finished(queue)
    assert len(asked) == 20 and [j.state for j in queue.state.jobs] == ["done"] * 21 and not queue.running


def test_many_threads_may_add_at_once(store):
    apnb.run(tiny(sparsity=0.5), store=store, **QUICK)
    queue = Queue(store=store, **QUICK)
    options = [{"eps": None, "snapshot_every": float(i)} for i in range(12)]  # all different jobs, all stored
    threads = [threading.Thread(target=queue.add, args=([tiny(sparsity=0.5)],), kwargs=o) for o in options]
    for t in threads:
        t.start()
    for t in threads:
        t.join(MINUTE)
    assert finished(queue)
    assert [(j.number, j.state) for j in queue.state.jobs] == [(i, "done") for i in range(12)]


def test_a_run_that_fails_is_a_sentence_and_the_others_go_on(store):
    impossible = tiny(structure="filters", sparsity=0.99)  # fewer filters left than there are layers
    queue = Queue(store=store, **QUICK)
    queue.add([impossible, tiny(sparsity=0.5)])
    assert finished(queue)
    assert "leaves" in queue.state.errors[impossible] and [r["sparsity"] for r in queue.rows] == [0.5]
    assert [j.state for j in queue.state.jobs] == ["failed", "done"] and "leaves" in queue.state.jobs[0].error
    assert queue.state.what == "done: 2 of 2 runs, 1 of them failed"


def test_an_unexpected_failure_is_named_and_a_broken_page_does_not_stop_the_run(store, monkeypatch):
    def broken(*_, **__):
        raise SystemExit("out of luck")
        yield

    def page(_):
        raise ValueError("closed")

    queue = Queue(store=store, on_change=page, **QUICK)
    queue.add([tiny(sparsity=0.5)])
    assert finished(queue) and len(queue.rows) == 1 and "closed" in queue.state.what
    monkeypatch.setattr("apnb.runs.stream", broken)
    queue = Queue(store=store, **QUICK)
    queue.add([tiny(sparsity=0.5)])
    assert finished(queue) and not queue.running
    assert list(queue.state.errors.values()) == ["failed unexpectedly with SystemExit: out of luck"]


def test_a_queue_refuses_what_is_no_recipe(store):
    queue = Queue(store=store, **QUICK)
    with pytest.raises(Invalid, match="nothing to run"):
        queue.add([])
    with pytest.raises(Invalid, match=r"apnb\.Recipe"):
        queue.add(["after"])
    with pytest.raises(Invalid, match="attack mode"):
        queue.add([tiny()], attacks="autoatack")
    assert queue.wait(0) and not queue.state.jobs


def test_two_queues_at_once_give_what_each_gives_alone(tmp_path):
    recipes = [tiny(sparsity=0.5, seed=1), tiny(sparsity=0.9, pipeline="before", seed=2)]
    options = {"attacks": "lite", "n": 16}
    alone = [apnb.run(r, store=tmp_path / "alone", **options).evaluation for r in recipes]
    queues = [Queue(store=tmp_path / str(i), **options) for i in range(2)]
    for queue, recipe in zip(queues, recipes, strict=True):
        queue.add([recipe])
    assert all(finished(queue) for queue in queues)
    for queue, expected in zip(queues, alone, strict=True):
        found = queue.runs[0].evaluation
        assert torch.equal(found.robust, expected.robust) and found.broken_by == expected.broken_by


# --- what is told ---------------------------------------------------------------------------------------------------------------


def test_the_live_lines_say_what_the_history_of_the_run_says(tmp_path):
    seen: list[State] = []
    queue = Queue(store=tmp_path, on_change=seen.append, hz=1e6, **QUICK)
    queue.add([tiny(schedule="iterative", criterion="lis", sparsity=0.5)])
    assert finished(queue)
    line, history = seen[-2].series, queue.runs[0].rows
    assert [y for _, y in line.sparsity] == [r["units"] for r in history if r["kind"] == "pruned"]
    assert [y for _, y in line.accuracy] == [r.get("val_clean", r.get("clean")) for r in history]
    assert [name for _, name in line.stages] == [*dict.fromkeys(r["stage"] for r in history), "evaluate"]
    xs = [x for x, _ in line.loss]
    assert xs == list(range(1, len(xs) + 1)) and line.stages[1][0] == 4  # two epochs of two batches before the first cut


def test_live_lines_stay_short_and_keep_their_mean():
    reader = Reader()
    for i in range(10_000):
        reader.read(Batch(stage="training", step=i + 1, of=10_000, metrics={"loss": i / 10_000}))
    loss = reader.series().loss
    assert len(loss) <= POINTS + 1 and loss == tuple(sorted(loss)) and loss[0][0] > 1
    assert sum(y for _, y in loss) / len(loss) == pytest.approx(0.5, abs=0.02)


def test_the_pace_is_what_was_measured_and_old_measurements_fade():
    pace, kind, attacks = Pace(), ("cnn", "digits", "training"), ("cnn", "digits", "attacks")
    pace.note(kind, 10, 0.2)
    assert pace.seconds(kind, 1) is None
    for _ in range(10):
        pace.note(kind, 100, 2.0)
    assert pace.seconds(kind, 50) == pytest.approx(1.0) and pace.seconds(attacks, 50) == pytest.approx(1.0)
    assert pace.seconds(("cnn", "cifar10", "training"), 50) is None
    for _ in range(100):
        pace.note(kind, 100, 4.0)
    assert pace.seconds(kind, 50) == pytest.approx(2.0, rel=0.01)


def test_time_to_come_is_unknown_at_first_then_told_and_stored_stages_count_as_no_work(tmp_path):
    slow = apnb.Budget(name="slow", epochs=12, finetune_epochs=3, batch=64, images=512, attack_steps=4, points=16, check=32)
    seen: list[State] = []
    queue = Queue(store=tmp_path, on_change=seen.append, hz=1e6, **QUICK)
    queue.add([tiny(sparsity=0.5, budget=slow)])
    assert finished(queue)
    told = [s.remaining for s in seen if s.remaining is not None]
    assert seen[1].remaining is None and told and min(told) >= 0
    assert seen[-1].remaining is None  # nothing runs
    assert max(s.share for s in seen if s.stage == "pretraining") > 0.5
    seen.clear()
    queue.add([tiny(sparsity=0.5, budget=slow), tiny(sparsity=0.9, budget=slow)])
    assert finished(queue)
    pretraining = [s for s in seen if s.stage == "pretraining"]
    assert len(pretraining) == 1 and pretraining[0].remaining is not None
    assert all(s.share < 0.05 for s in pretraining)  # the first run is stored, and so is the pretraining of the second


def test_a_reader_counts_restored_work_as_done_and_names_it():
    reader = Reader(None, {"pretraining": 30.0, "training": 10.0})
    assert reader.read(Restored(stage="pretraining")) == "pretraining: taken from the store"
    assert sum(reader.done.values()) == 30
    assert "step 1 of 4" in reader.read(Batch(stage="training", step=1, of=4)) and sum(reader.done.values()) == 32.5
    reader.read(Epoch(stage="training", step=1, of=2, metrics={"loss": 1.0, "val_clean": 0.5}))
    cut = Pruned(stage="training", step=1, of=1, metrics={"units": 0.5, "clean": 0.4, "pgd": 0.2})
    assert reader.read(cut) == "training: 50.0% of the units removed, 40% clean and 20% under PGD right after the cut"
    assert sum(reader.done.values()) == 35


def test_the_queue_needs_no_widgets():
    probe = "import sys, apnb.widgets.queue; assert not {'ipywidgets', 'anywidget', 'plotly'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", probe], check=True, timeout=60)
