"""A run killed at any moment and started again ends as one left alone, bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

KILLER = '''
import json, os, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import apnb
from apnb import datasets, evaluation, runs
import pyautoattack  # imported before the forks, so that a child spends its time on the run itself
import pandas, sklearn.datasets, safetensors.torch, filelock
datasets.load("digits").fingerprint

root, moments = Path(sys.argv[1]), int(sys.argv[2])
recipe = apnb.Recipe.from_dict(json.loads(sys.argv[3]))

def work(store, told):
    """Run, and write one byte for every event."""
    return apnb.run(recipe, store=store, attacks="lite", snapshot_every=0, progress=lambda event: os.write(told, b"."))

def summary(run):
    state = {n: t.numpy().tobytes().hex() for n, t in run.model.state_dict().items()}
    masks = {n: m.numpy().tobytes().hex() for n, m in run.masks.items()}
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in run.rows]
    e = run.evaluation
    return json.dumps([state, masks, history, e.robust.tolist(), e.broken_by, e.prediction.tolist()], default=str)

def child(action):
    pid = os.fork()
    if pid == 0:
        try:
            action()
        finally:
            os._exit(0)
    return pid

def finish(store, name):
    """Run to the end in a child; returns how many events there were."""
    out, told = os.pipe()
    pid = child(lambda: (root / name).write_text(summary(work(store, told))))
    os.close(told)
    events = 0
    while chunk := os.read(out, 4096):
        events += len(chunk)
    os.waitpid(pid, 0)
    os.close(out)
    return events

events = finish(root / "alone", "alone.json")
report = []
for i in range(moments):
    store = root / f"killed{i}"
    out, told = os.pipe()
    pid = child(lambda: work(store, told))
    os.close(told)
    seen = 0
    while seen < events * (i + 0.5) / moments and (chunk := os.read(out, 1)):
        seen += len(chunk)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(out)
    left = sorted(p.suffix for p in (store / "stages").glob("*")) if store.exists() else []
    finish(store, f"killed{i}.json")
    report.append([os.WIFSIGNALED(status), left, (root / f"killed{i}.json").read_text() == (root / "alone.json").read_text()])
print(json.dumps(report))
'''

SMALL = {
    "name": "kill", "epochs": 5, "search_epochs": 3, "finetune_epochs": 4, "images": 384, "attack_steps": 2, "rounds": 2,
    "updates": 12, "dual_period": 1, "points": 16, "check": 32,
}  # fmt: skip
RECIPES = {
    "after": {"pipeline": "after", "schedule": "iterative", "criterion": "solwm", "structure": "kernels"},
    "before": {"pipeline": "before", "criterion": "lis", "locality": "local"},
    "during": {"pipeline": "during", "schedule": "iterative", "criterion": "hgm"},
    "bcs": {"pipeline": "during", "criterion": "bcs"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_ten_kills_spread_over_a_run_change_nothing(name, tmp_path):
    recipe = {**RECIPES[name], "sparsity": 0.8, "budget": SMALL}
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path), "10", json.dumps(recipe)],
        capture_output=True, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert all(killed for killed, _, _ in report), "every kill hit the run while it was working"
    assert any(".part" in left for _, left, _ in report), "some kills hit the middle of a stage after a snapshot"
    assert [same for _, _, same in report] == [True] * 10
