"""The lab's page, run from Python as clicks would; its logic is tested in test_choices, test_queue, test_estimate and test_takeaway."""

from __future__ import annotations

import subprocess
import sys
import time
import zipfile
from io import BytesIO

import pytest
import torch

import apnb
from apnb.curves import Distances
from apnb.errors import Invalid
from apnb.presets import PRESETS
from apnb.widgets.lab import TABS

QUICK = {"attacks": "pgd", "n": 16, "budget": "tiny"}
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


@pytest.fixture
def lab(store):
    lab = apnb.Lab(store=store, **QUICK)
    yield lab
    lab.queue.cancel()
    lab.wait(MINUTE)


def click(lab, name, value):
    """What the page does when a word is clicked."""
    lab.chooser._handle_custom_msg({"name": name, "value": value}, [])


def row(lab, name):
    return next((r for r in lab.chooser.rows if r["name"] == name), None)


def reason(lab, name, value):
    return next(o["reason"] for o in row(lab, name)["options"] if o["value"] == value)


def finished(lab):
    lab.run()
    assert lab.wait(MINUTE) and not lab.errors.value, lab.errors.value
    return lab


def test_a_run_fills_curve_and_table(lab):
    lab._clear()
    lab.choose(sparsities=[0.5, 0.9])
    lab.run()
    assert not lab.cancel.disabled and not lab.start.disabled  # more can be queued meanwhile
    assert lab.wait(MINUTE)
    assert [r["sparsity"] for r in lab.runs] == [0.0, 0.5, 0.9] and lab.frame()["label"].iloc[0] == "dense"
    robust = next(t for t in lab.figure.data if t.name == "after/weights/global/LWM")
    assert list(robust.x) == [50, 90] and list(robust.y) == [100 * r["robust"] for r in lab.runs[1:]]
    assert lab.table.value.count("<tr>") == 4 and lab.bar.value == 1 and "done: 3 of 3" in lab.now.value
    assert lab.cancel.disabled
    lab.choose(pipeline="before", sparsities=[0.5])
    finished(lab)
    assert {t.name for t in lab.figure.data if t.meta == "robust"} == {
        "after/weights/global/LWM", "before/weights/global/LWM", "dense",
    }  # fmt: skip


def test_runs_queue_up_behind_one_another(lab):
    lab._clear()
    lab.choose(sparsities=[0.5], pipeline="during")
    lab.run()
    lab.choose(sparsities=[0.5], pipeline="after")
    lab.run()
    assert lab.wait(MINUTE)
    assert {r["pipeline"] for r in lab.runs if r["sparsity"]} == {"during", "after"}


def test_a_choice_that_contradicts_is_greyed_out_with_its_reason_and_cannot_be_made(lab):
    assert "keeps a fixed number" in reason(lab, "criterion", "bcs") and "takes images of 32x32" in reason(
        lab, "network", "resnet18"
    )
    before = dict(lab.chooser.choice)
    click(lab, "criterion", "bcs")
    assert lab.chooser.choice == before and "keeps a fixed number" in lab.problem.value
    click(lab, "pipeline", "during")
    assert not reason(lab, "criterion", "bcs")
    click(lab, "criterion", "bcs")
    assert "Connections that die" in lab.plan.value and "fixed number" in reason(lab, "pipeline", "after")
    lab.choose(sparsities=0.5)
    assert [r.sparsity for r in lab.recipes()] == [0.5]
    click(lab, "sparsities", "0.5")
    assert lab.start.disabled and "choose at least one" in lab.problem.value and not lab.code.value
    click(lab, "sparsities", "0.5")
    click(lab, "seeds", "one")
    assert "whole numbers such as" in lab.problem.value
    click(lab, "seeds", "0-2")
    assert not lab.start.disabled and [r.seed for r in lab.recipes()] == [0, 1, 2] and "for seed in (0, 1, 2)" in lab.code.value


def test_a_method_brings_its_cell_and_another_word_leaves_it(lab):
    click(lab, "method", "hydra")
    assert (
        lab.chooser.choice["criterion"] == "lis"
        and lab.recipes()[0].method == "hydra"
        and "apnb.recipe('hydra'" in lab.code.value
    )
    assert "HYDRA lives in this cell" in lab.note.value and row(lab, "as_released")
    click(lab, "criterion", "hgm")
    assert lab.chooser.choice["method"] == "" and "An empty cell" in lab.note.value and not row(lab, "as_released")
    click(lab, "method", "dnr")  # no preset: runs as its cell
    assert lab.chooser.choice["pipeline"] == "during" and lab.recipes()[0].method is None
    for option in row(lab, "method")["options"]:
        lab.choose_method(option["value"])
        assert not lab.problem.value


@pytest.mark.parametrize("method", [None, *PRESETS])
def test_the_plan_of_several_sparsities_names_each_of_them(lab, method):
    lab.choose(sparsities=(0.5, 0.75, 0.95), **({"method": method} if method else {}))
    assert all(f"{share}%" in lab.plan.value for share in (75, 95)), lab.plan.value


def test_choices_that_do_not_exist_are_refused(lab):
    for wrong in (
        {"pipeline": "later"}, {"criteria": "lwm"}, {"sparsities": [1.6]}, {"network": "vgg16"},
        {"network": "nope"}, {"method": "hidra"}, {"budget": "large"},
        {"attacks": "strong"}, {"data": ([], [])},
    ):  # fmt: skip
        with pytest.raises(Invalid):
            lab.choose(**wrong)
    with pytest.raises(Invalid, match="no tab of the lab"):
        lab.show("curves")


def test_a_lab_opened_later_finds_the_runs(store, lab):
    lab.choose(sparsities=[0.5])
    finished(lab)
    again = apnb.Lab(store=store, **QUICK)
    assert {r["key"] for r in lab.queue.rows} <= {r["key"] for r in again.runs} and "of earlier days" in again.now.value
    assert any(t.name == "after/weights/global/LWM" for t in again.figure.data)
    assert apnb.Lab(store=store).runs  # whatever is chosen for new runs
    assert not apnb.Lab(store=store, n=32).runs
    again.choose(data="svhn")
    assert not again.runs and "Run fetches them" in again.time.value


def test_every_tab_shows_the_chosen_run(lab):
    lab._clear()
    lab.choose(sparsities=[0.5, 0.9], distances="yes")
    finished(lab)
    titles = set()
    for tab in TABS:
        lab.show(tab)
        assert not lab.said.value, (tab, lab.said.value)
        titles.add(lab.figure.layout.title.text)
    assert len(titles) == 6
    lab.show("Layers")
    lab.selected.value = lab.selected.options[1][1]
    assert "sparsity 50%" in lab.figure.layout.title.text
    lab.show("Security")
    assert lab.eps.value == 0.15
    assert sum(t.meta == "curve" for t in lab.figure.data) == 3
    lab.eps.value = 0.05
    assert "eps = 0.05" in str(lab.figure.layout.annotations[0].text)
    lab.add_curves(Distances(torch.tensor([0.0, 0.1]), "another", "somebody", data="digits", eps=0.15))
    assert sum(t.meta == "curve" for t in lab.figure.data) == 4


def test_a_click_on_a_point_selects_its_run(lab):
    lab._clear()
    lab.choose(sparsities=[0.5, 0.9])
    finished(lab)
    trace = next(t for t in lab.figure.data if t.meta == "robust" and len(t.x) == 2)
    lab._point_clicked(trace, type("Points", (), {"point_inds": [0]}), None)
    assert lab.row() == lab.runs[1]


def test_published_points_are_shown_where_there_are_any(lab):
    lab.choose(sparsities=[0.5])
    finished(lab)
    drawn = len(lab.figure.data)
    lab.published.value = True
    assert "no results for cnn on digits" in lab.said.value and len(lab.figure.data) == drawn
    lab._found = [{**r, "network": "vgg16", "data": "cifar10", "eps": 8 / 255} for r in lab.runs]  # as if it had run there
    lab.queue.clear()
    lab._update()
    published = [t for t in lab.figure.data if t.meta == "published"]
    assert len(published) == 10 and all(t.mode == "markers" for t in published) and lab.figure.layout.xaxis.range[1] > 99


def test_runs_that_were_judged_otherwise_stay_out_of_the_picture_and_it_says_so(lab):
    lab._clear()
    lab.choose(sparsities=[0.5], attacks="pgd")
    finished(lab)
    lab.choose(attacks="lite")
    finished(lab)
    assert len(lab.runs) == 4 and "2 of 4 runs were judged otherwise" in lab.said.value
    assert len({value for _, value in lab.selected.options}) == 4
    lab.selected.value = lab.selected.options[0][1]
    assert "PGD-50" in lab.figure.layout.title.subtitle.text
    assert lab.take("Everything (ZIP)")[0] == "apnb-lab.zip"


def test_what_waits_can_be_dropped_while_the_run_at_work_goes_on(lab):
    lab._clear()
    lab.choose(sparsities=[0.5, 0.9], seeds="7", pipeline="before")
    lab.run()
    lab.drop.click()
    assert lab.wait(MINUTE) and 1 <= len(lab.runs) < 3


def test_a_process_that_ends_in_mid_run_ends_in_order(tmp_path):
    script = f"import apnb; lab = apnb.Lab(store={str(tmp_path)!r}, budget='tiny', n=16); lab.run()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-500:]


def test_everything_can_be_taken_away(lab):
    lab._clear()
    lab.choose(sparsities=[0.5])
    finished(lab)
    name, content = lab.take("Everything (ZIP)")
    assert name == "apnb-lab.zip"
    with zipfile.ZipFile(BytesIO(content)) as z:
        names = z.namelist()
    assert {"runs.zip", "table.csv", "recipes.json", "code.py", "figures/curve.html"} <= set(names)
    assert lab.take("Table (CSV)")[1].startswith(b"key,label") and b"plotly" in lab.take("Figure (HTML)")[1]
    lab._take("Recipes (JSON)")
    assert lab.download.name == "apnb-recipes.json" and lab.download.count == 1


def test_the_code_box_runs_and_gives_the_same_numbers(lab, store, monkeypatch):
    lab._clear()
    monkeypatch.setenv("APNB_HOME", store)
    lab.choose(sparsities=[0.5, 0.9], seeds="0, 1")
    finished(lab)
    space: dict = {}
    exec(lab.code.value, space)
    again = space["runs"].frame()
    for column in ("key", "robust", "clean"):
        assert sorted(again[column]) == sorted(lab.frame()[column])


def test_the_time_is_told_from_a_measurement(lab):
    lab.choose(sparsities=[0.95])
    for _ in range(600):
        if "measured" in lab.time.value:
            break
        time.sleep(0.1)
    assert "a training step" in lab.time.value


def test_two_labs_do_not_share_anything(tmp_path):
    one, two = (apnb.Lab(store=tmp_path, **QUICK) for _ in range(2))
    one.choose(sparsities=[0.5])
    finished(one)
    assert len(one.runs) == 2 and not two.runs and not two.table.value and "ready<" in two.now.value


def test_the_lab_shows_itself_and_says_what_it_needs_without_a_kernel(lab):
    bundle = lab._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == lab.view.model_id
    assert "needs a running kernel" in data["text/plain"]


def test_the_logic_needs_no_widgets():
    probe = "import sys, apnb.widgets.queue, apnb.choices; assert not {'ipywidgets', 'anywidget', 'plotly'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", probe], check=True, timeout=120)
