"""The lab: its logic without any widget, then the widgets, run from Python as clicks would."""

from __future__ import annotations

import threading
import time

import pytest
import torch

import apnb
from apnb.errors import Invalid
from apnb.recipes import CRITERIA, LOCALITIES, PIPELINES, SCHEDULES, STRUCTURES, Recipe
from apnb.widgets.queue import Queue, Reader, State, code, stage_weights

QUICK = {"attacks": "pgd", "n": 16}
MINUTE = 120


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return str(tmp_path_factory.mktemp("store"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(**options) -> Recipe:
    return Recipe(**{"pipeline": "after", "budget": "tiny", **options})


def test_a_queue_runs_recipes_in_order_and_keeps_their_rows(store):
    seen: list[State] = []
    queue = Queue(store=store, on_change=seen.append, hz=1000, **QUICK)
    recipes = [tiny(sparsity=0.0, finetuning="none"), tiny(sparsity=0.5)]
    queue.start(recipes)
    assert queue.wait(MINUTE)
    assert [(r["label"], r["sparsity"], r["n"]) for r in queue.rows] == [
        ("dense", 0.0, 16),
        ("after/weights/global/LWM", 0.5, 16),
    ]
    assert [run.recipe for run in queue.runs] == recipes
    assert list(queue.frame()["sparsity"]) == [0.0, 0.5]
    shares = [s.share for s in seen]
    assert shares == sorted(shares) and shares[-1] == 1
    assert not seen[-1].running and seen[-1].what == "done: 2 of 2 runs"
    assert any("step" in s.what for s in seen) and any("attack pgd" in s.what for s in seen)


def test_a_second_start_comes_from_the_store_and_adds_no_row_twice(store):
    queue = Queue(store=store, **QUICK)
    recipes = [tiny(sparsity=0.5)]
    queue.start(recipes)
    assert queue.wait(MINUTE)
    started = time.monotonic()
    queue.start(recipes)
    assert queue.wait(MINUTE)
    assert time.monotonic() - started < 2
    assert len(queue.rows) == len(queue.runs) == 1


def test_the_curve_of_a_queue_equals_that_of_a_sweep(store, tmp_path):
    queue = Queue(store=store, **QUICK)
    queue.start([tiny(sparsity=0.5)])
    assert queue.wait(MINUTE)
    alone = apnb.run(tiny(sparsity=0.5), store=tmp_path, **QUICK).row()
    for column in ("key", "clean", "robust", "weights"):
        assert queue.rows[0][column] == alone[column]


def test_cancelling_keeps_what_is_finished_and_a_second_start_goes_on(tmp_path):
    reached = threading.Event()

    def stop_in_the_second_run(state: State) -> None:
        if state.done == 1 and "step" in state.what:
            reached.set()
            queue.cancel()

    queue = Queue(store=tmp_path, on_change=stop_in_the_second_run, hz=1e6, **QUICK)
    recipes = [tiny(sparsity=0.5), tiny(sparsity=0.9, pipeline="during")]
    queue.start(recipes)
    assert queue.wait(MINUTE) and reached.is_set()
    assert [r["sparsity"] for r in queue.rows] == [0.5]
    assert queue.state.cancelled and queue.state.what == "cancelled after 1 of 2 runs"
    queue._on_change = None
    queue.start(recipes)
    assert queue.wait(MINUTE)
    assert [r["sparsity"] for r in queue.rows] == [0.5, 0.9] and not queue.state.cancelled


def test_a_run_that_fails_is_a_sentence_and_the_others_go_on(store):
    impossible = tiny(structure="filters", sparsity=0.99)  # fewer filters left than there are layers
    queue = Queue(store=store, **QUICK)
    queue.start([impossible, tiny(sparsity=0.5)])
    assert queue.wait(MINUTE)
    assert "leaves" in queue.state.errors[impossible] and [r["sparsity"] for r in queue.rows] == [0.5]
    assert queue.state.what == "done: 2 of 2 runs, 1 of them failed"


def test_an_unexpected_failure_is_named_and_a_broken_page_does_not_stop_the_run(store, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of luck")
        yield

    def page(_):
        raise ValueError("closed")

    queue = Queue(store=store, on_change=page, **QUICK)
    queue.start([tiny(sparsity=0.5)])
    assert queue.wait(MINUTE) and len(queue.rows) == 1 and "closed" in queue.state.what
    monkeypatch.setattr("apnb.runs.stream", broken)
    queue = Queue(store=store, **QUICK)
    queue.start([tiny(sparsity=0.5)])
    assert queue.wait(MINUTE)
    assert list(queue.state.errors.values()) == ["failed unexpectedly with RuntimeError: out of luck"]


def test_a_queue_refuses_an_empty_list_and_a_second_start_while_it_runs(store):
    queue = Queue(store=store, **QUICK)
    with pytest.raises(Invalid, match="nothing to run"):
        queue.start([])
    queue.start([tiny(sparsity=0.75, seed=1)])
    with pytest.raises(Invalid, match="under way"):
        queue.start([tiny(sparsity=0.5)])
    assert queue.wait(MINUTE)


def test_two_queues_at_once_give_what_each_gives_alone(tmp_path):
    recipes = [tiny(sparsity=0.5, seed=1), tiny(sparsity=0.9, pipeline="before", seed=2)]
    options = {"attacks": "lite", "n": 16}
    alone = [apnb.run(r, store=tmp_path / "alone", **options).evaluation for r in recipes]
    queues = [Queue(store=tmp_path / str(i), **options) for i in range(2)]
    for queue, recipe in zip(queues, recipes, strict=True):
        queue.start([recipe])
    assert all(queue.wait(MINUTE) for queue in queues)
    for queue, expected in zip(queues, alone, strict=True):
        found = queue.runs[0].evaluation
        assert torch.equal(found.robust, expected.robust) and found.broken_by == expected.broken_by


@pytest.mark.parametrize("cell", apnb.grid()[::7], ids="/".join)
def test_the_shares_of_the_stages_add_up_to_one(cell):
    assert sum(stage_weights(Recipe(**cell._asdict(), budget="tiny")).values()) == pytest.approx(1)


def test_the_reader_names_the_stages_that_a_run_has(store):
    recipe = tiny(schedule="iterative", criterion="lis", sparsity=0.5)
    stages = {e.stage for e in apnb.stream(recipe, store=store, **QUICK)} - {"done"}
    assert stages == set(stage_weights(recipe))
    reader = Reader(recipe)
    assert reader.read(apnb.events.Restored(stage="pretraining")) == (
        "pretraining: taken from the store",
        stage_weights(recipe)["pretraining"],
    )


def test_the_code_names_every_choice_and_only_those():
    text = code([tiny(pipeline="during", structure="filters", sparsity=s) for s in (0.5, 0.9)], "resnet8", attacks="lite", n=None)
    assert "apnb.Recipe(pipeline='during', structure='filters', sparsity=s, budget='tiny')" in text
    assert "for s in (0.5, 0.9)" in text and "network='resnet8'" in text and "attacks='lite'" in text and "n=" not in text


# --- the widgets --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def lab(store):
    return apnb.Lab(store=store, budget="tiny", **QUICK)


def test_the_lab_offers_the_words_of_the_grammar():
    from apnb.widgets.lab import WORDS

    assert [tuple(words) for _, words in WORDS.values()] == [PIPELINES, SCHEDULES, STRUCTURES, LOCALITIES, CRITERIA]


def test_a_run_of_the_lab_fills_curve_and_table(lab):
    lab.choose(sparsities=[0.5, 0.9])
    lab.run()
    assert lab.start.disabled and not lab.cancel.disabled
    assert lab.wait(MINUTE)
    assert [r["sparsity"] for r in lab.runs] == [0.0, 0.5, 0.9] and lab.frame()["label"].iloc[0] == "dense"
    robust = next(t for t in lab.figure.data if t.name == "after/weights/global/LWM")
    assert list(robust.x) == [50, 90] and list(robust.y) == [100 * r["robust"] for r in lab.runs[1:]]
    assert lab.table.value.count("<tr>") == 4 and lab.bar.value == 1 and "done: 3 of 3" in lab.now.value
    assert not lab.start.disabled and lab.cancel.disabled
    lab.choose(pipeline="before", sparsities=[0.5])
    lab.run()
    assert lab.wait(MINUTE)
    assert {t.name for t in lab.figure.data if t.meta == "robust"} == {
        "after/weights/global/LWM",
        "before/weights/global/LWM",
        "dense",
    }


def test_a_contradiction_is_a_sentence_beside_a_disabled_button(lab):
    lab.choose(pipeline="before", criterion="bcs")
    assert lab.start.disabled and "&#x27;bcs&#x27; keeps a fixed number" in lab.problem.value and not lab.code.value
    lab.run()
    assert not lab.queue.running
    lab.choose(pipeline="during")
    assert not lab.start.disabled and not lab.problem.value and "Connections that die" in lab.plan.value
    lab.choose(sparsities=[])
    assert lab.start.disabled and "tick at least one" in lab.problem.value


def test_choices_that_do_not_exist_are_refused(lab):
    for wrong in ({"pipeline": "later"}, {"criteria": "lwm"}, {"network": "vgg16"}, {"sparsities": [0.6]}):
        with pytest.raises(Invalid, match=r"in the lab|the lab has no choice"):
            lab.choose(**wrong)


def test_the_code_box_runs_and_gives_the_same_numbers(lab, store, monkeypatch):
    monkeypatch.setenv("APNB_HOME", store)
    lab.choose(sparsities=[0.5, 0.9])
    lab.run()
    assert lab.wait(MINUTE)
    space: dict = {}
    exec(lab.code.value, space)
    again = space["runs"].frame()
    for column in ("key", "robust", "clean"):
        assert list(again[column]) == list(lab.frame()[column])
    assert len(space["figure"].data) == len(lab.figure.data)


def test_two_labs_do_not_share_anything(store):
    one, two = (apnb.Lab(store=store, budget="tiny", **QUICK) for _ in range(2))
    one.choose(sparsities=[0.5])
    one.run()
    assert one.wait(MINUTE)
    assert len(one.runs) == 2 and not two.runs and not two.table.value and two.now.value == "ready"


def test_the_lab_shows_itself_and_says_what_it_needs_without_a_kernel(lab):
    bundle = lab._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == lab.view.model_id
    assert "needs a running kernel" in data["text/plain"]


def test_the_queue_needs_no_widgets():
    import subprocess
    import sys

    probe = "import sys, apnb.widgets.queue; assert not {'ipywidgets', 'anywidget', 'plotly'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", probe], check=True, timeout=60)
