"""Runs: what makes two of them different, what is refused before any work, and what a run gives back."""

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import apnb
from apnb import datasets, networks
from apnb.runner import Runner

COUNT = itertools.count()
TINY = apnb.Recipe(pipeline="after", sparsity=0.8, budget="tiny")


def key(tmp_path, recipe=TINY, **options) -> str:
    return Runner(recipe, store=tmp_path, **options).key


def made(forward: str, bias: float = 0.0, classes: int = 10) -> str:
    """A module file with a factory; its text decides what the network does."""
    return textwrap.dedent(f"""
        import torch, apnb
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.one, self.two = nn.Linear(64, 16), nn.Linear(16, {classes})
                nn.init.constant_(self.two.bias, {bias})

            def forward(self, x):
                return self.two({forward}(self.one(x.flatten(1))))

        def net():
            return Net()

        def nested(channels, classes):
            return apnb.networks.build("cnn", channels=channels, classes=classes)
    """)


@pytest.fixture
def factory(tmp_path, monkeypatch):
    """Write a module and name its factory; each text gets a module name of its own."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text: str) -> str:
        name = f"made_{next(COUNT)}"
        (tmp_path / f"{name}.py").write_text(text)
        return f"{name}:net"

    return write


def test_another_forward_other_weights_and_other_classes_make_another_run(tmp_path, factory):
    def sha(text: str) -> str:
        return networks.identity(factory(text))["sha256"]

    same = sha(made("torch.relu")), sha(made("torch.relu"))
    assert same[0] == same[1]
    assert len({same[0], sha(made("torch.sin")), sha(made("torch.relu", bias=0.5))}) == 3
    digits = datasets.load("digits")
    assert key(tmp_path) != key(tmp_path, data=dataclasses.replace(digits, classes=12, labels=None))


def test_seed_budget_eps_data_and_every_choice_are_in_the_key_and_the_device_is_not(tmp_path):
    digits = datasets.load("digits")
    fewer = dataclasses.replace(digits, train=digits.train.at(slice(0, 500)))
    keys = [
        key(tmp_path),
        key(tmp_path, dataclasses.replace(TINY, seed=1)),
        key(tmp_path, dataclasses.replace(TINY, sparsity=0.81)),
        key(tmp_path, dataclasses.replace(TINY, finetuning="trades")),
        key(tmp_path, dataclasses.replace(TINY, budget=apnb.Budget(epochs=3, images=128))),
        key(tmp_path, eps=0.1),
        key(tmp_path, data=fewer),
        key(tmp_path, network="resnet8"),
    ]
    assert len(set(keys)) == len(keys)
    assert key(tmp_path) == key(tmp_path, device="cpu", precision="fp32") == key(tmp_path, data=digits)


def test_a_factory_may_use_the_package_itself(tmp_path, factory):
    name = factory(made("torch.relu")).replace(":net", ":nested")
    assert apnb.run(TINY, network=name, store=tmp_path, evaluate=False).sparsity.units == pytest.approx(0.8, abs=1e-3)


def test_a_module_of_ones_own_is_pruned_and_left_as_it_was(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    before = {n: t.clone() for n, t in net.state_dict().items()}
    run = apnb.run(TINY, network=net, store=tmp_path, attacks="pgd")
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())
    assert sum(int(m.sum()) for m in run.masks.values()) == 64 * 32 + 320 - round(0.8 * (64 * 32 + 320))
    assert type(run.model) is nn.Sequential


def test_a_network_with_too_few_outputs_is_refused_before_any_work(tmp_path, factory):
    with pytest.raises(apnb.Invalid, match=r"expected logits \(N, classes\) = \(2, 10 or more\)"):
        next(apnb.stream(TINY, network=factory(made("torch.relu", classes=5)), store=tmp_path))


def test_the_check_images_come_from_all_classes(tmp_path):
    y = torch.arange(4).repeat_interleave(100)
    data = datasets.load((torch.rand(400, 1, 8, 8), y))
    assert len(Runner(TINY, data=data, store=tmp_path).check[1].unique()) == 4


def test_the_run_names_the_recipe_that_was_asked_for(tmp_path):
    a = dataclasses.replace(TINY, budget=apnb.Budget(name="a", epochs=1, finetune_epochs=1, images=128, points=16, check=16))
    b = dataclasses.replace(TINY, budget=dataclasses.replace(a.budget, name="b", points=20, check=0))
    one, two = (apnb.run(r, store=tmp_path, attacks="pgd") for r in (a, b))
    assert (one.row()["budget"], two.row()["budget"]) == ("a", "b")
    assert (one.evaluation.n, two.evaluation.n) == (16, 20)
    assert all(torch.equal(one.masks[n], m) for n, m in two.masks.items()), "what is measured changes nothing"


def test_labels_name_what_differs():
    recipe = apnb.Recipe(pipeline="after", objective="trades")
    assert recipe.label == "after/weights/global/LWM/trades"
    assert apnb.Recipe(pipeline="after", sparsity=0.0, pretraining="natural", finetuning="none").label == "dense/natural"
    assert apnb.Recipe(pipeline="after", sparsity=0.0).label == "after/weights/global/LWM", "fine-tuned: no reference line"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": 501}, "expected 1 to 500"), ({"n": 0}, "expected 1 to 500"), ({"attacks": "aa"}, "standard"),
        ({"subset": "best"}, "stratified"),
        ({"device": "warp"}, "no device 'warp'"), ({"precision": "int8"}, "precision"), ({"store": 3}, "a store is a folder"),
        ({"network": "resnet18"}, "resnet18|ResNet"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_any_work(options, words, tmp_path):
    with pytest.raises(apnb.Invalid, match=words) as refusal:
        next(apnb.stream(TINY, **{"store": tmp_path, **options}))
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.rglob("*.stage"))


@pytest.mark.parametrize(("pipeline", "criterion"), sorted({(c.pipeline, c.criterion) for c in apnb.grid()}))
def test_every_pipeline_really_trains(pipeline, criterion, tmp_path):
    sparsity = 0.3 if criterion == "hgm" else 0.8  # it removes what reacts most: its paper cuts small shares only
    budget = apnb.Budget(epochs=10, search_epochs=4, finetune_epochs=4, updates=30, points=200, check=0)
    recipe = apnb.Recipe(pipeline=pipeline, criterion=criterion, objective="fgsm", sparsity=sparsity, budget=budget)
    assert apnb.run(recipe, store=tmp_path, attacks="pgd").evaluation.clean_accuracy > 0.8


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("cnn", {}, "got str"),
        (nn.Sequential(nn.Flatten(), nn.Linear(65, 10)), {}, "cannot take images"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), {"device": "gpu"}, "no device 'gpu'"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(model, options, words):
    with pytest.raises(apnb.Invalid, match=words) as refusal:
        apnb.evaluate(model, "digits", n=8, attacks="pgd", **options)
    assert "\n" not in str(refusal.value)


def test_a_pair_of_arrays_is_evaluated_whole():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    report = apnb.evaluate(net, (torch.rand(30, 1, 8, 8), torch.arange(30) % 3), attacks="pgd")
    assert report.n == 30


ORPHANS = """
import os, sys
from apnb import sweeps
if __name__ == "__main__":
    pool = sweeps.workers(2)
    print(*{pool.submit(os.getpid).result() for _ in range(20)}, flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_workers_do_not_outlive_a_parent_that_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(ORPHANS)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    pids = [int(p) for p in process.stdout.readline().split()]
    assert pids
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30

    def alive(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        state = Path(f"/proc/{pid}/stat")
        return not (state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z")

    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in pids)


@pytest.mark.slow
def test_ctrl_c_stops_a_sweep_with_its_workers_and_the_next_one_goes_on(tmp_path):
    command = [sys.executable, "-m", "apnb", "demo", "--budget", "tiny", "--n", "16", "--out", str(tmp_path / "d.html")]
    process = subprocess.Popen(
        [*command, "--store", str(tmp_path / "s")],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stderr:  # wait for the first finished run
        if line.startswith("[ 1/"):
            break
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "goes on from there" in err and "Traceback" not in err
    assert time.monotonic() - started < 60
    done = subprocess.run([*command, "--store", str(tmp_path / "s")], capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "d.html").exists(), done.stderr[-2000:]


def test_an_evaluation_that_another_process_has_not_finished_hides_no_other(tmp_path):
    from apnb.store import Store, load_tree, save_tree

    recipe = apnb.Recipe(pipeline="after", sparsity=0.5, budget="tiny")
    first = apnb.run(recipe, store=tmp_path, attacks="pgd", n=16)
    second = apnb.run(recipe, store=tmp_path, attacks="pgd", n=20)
    (newest,) = [e for e in Store(tmp_path).evaluations(first.key) if e["n"] == 20]
    place = Store(tmp_path).run_folder(first.key) / "evaluations" / f"{newest['key']}.tensors"
    save_tree(place, {**load_tree(place), "report": None, "state": {}})
    assert apnb.open_run(first.key, store=tmp_path).evaluation.n == 16
    assert second.evaluation.n == 20
