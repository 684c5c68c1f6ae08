"""The command line: what people type, what scripts read, and one sentence with exit status 2 for every mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import apnb
from apnb import networks
from apnb.store import Store

ROOT = Path(__file__).parents[1]


TINY = ("--budget", "tiny", "--attacks", "pgd")


def test_run_prints_a_table_and_json(cli, tmp_path):
    status, out, err = cli("run", "--sparsity", "0.8", *TINY, "--store", tmp_path)
    assert status == 0 and "after/weights/global/LWM" in out and "80.0" in out
    assert "right after the cut" in err and "pretraining" in err
    status, out, _ = cli("run", "--sparsity", "0.8", *TINY, "--store", tmp_path, "--json")
    row = json.loads(out)
    assert (
        row["sparsity"] == 0.8 and 0 <= row["low"] <= row["robust"] <= row["high"] <= 1 and row["recipe"]["pipeline"] == "after"
    )


def test_a_surveyed_method_runs_by_its_name(cli, tmp_path):
    given = ("--method", "twinrep", "--structure", "channels", "--sparsity", "0.5", "--constants", "cut=1", "--store", tmp_path)
    status, out, _ = cli("run", *given, *TINY, "--json")
    row = json.loads(out)
    assert status == 0 and row["label"] == "TwinRep/channels/cut=1" and row["recipe"]["constants"] == {"cut": 1}
    assert 0.4 < row["units"] <= 0.5
    shown = cli("runs", "show", row["key"], "--store", tmp_path)[1]
    assert "apnb.recipe('twinrep'" in shown and "cut=1" in shown
    assert "1. Train a network whose weights are products" in cli("run", "--plan", *given)[1]
    assert "flyingbird or flyingbird+" in cli("methods")[1]


def test_runs_can_be_listed_shown_taken_away_and_removed(cli, tmp_path):
    cli("run", "--sparsity", "0.8", *TINY, "--store", tmp_path / "a")
    (key,) = Store(tmp_path / "a").keys()
    assert key[:12] in cli("runs", "list", "--store", tmp_path / "a")[1]
    assert json.loads(cli("runs", "list", "--store", tmp_path / "a", "--json")[1])["runs"][0]["key"] == key
    shown = cli("runs", "show", key[:6], "--store", tmp_path / "a")[1]
    assert "conv1.weight" in shown and "apnb.Recipe(" in shown and "robust at most" in shown
    freed = cli("runs", "clean", "--store", tmp_path / "a")[1]
    assert "MB freed" in freed and not list((tmp_path / "a" / "stages").iterdir()) and Store(tmp_path / "a").keys() == [key]
    assert json.loads(cli("runs", "show", key, "--store", tmp_path / "a", "--json")[1])["evaluations"][0]["n"] == 16
    assert cli("runs", "export", tmp_path / "out.zip", "--store", tmp_path / "a")[0] == 0
    assert key in cli("runs", "import", tmp_path / "out.zip", "--store", tmp_path / "b")[1]
    assert cli("runs", "rm", key[:8], "--store", tmp_path / "b")[0] == 0
    assert Store(tmp_path / "b").keys() == []


def test_evaluate_takes_a_run_or_a_function_that_returns_a_network(cli, tmp_path, monkeypatch):
    cli("run", "--sparsity", "0.8", *TINY, "--store", tmp_path)
    (key,) = Store(tmp_path).keys()
    status, out, _ = cli("evaluate", key[:8], "--n", "20", "--attacks", "pgd", "--json", "--store", tmp_path)
    assert status == 0 and json.loads(out)["n"] == 20
    assert {e["n"] for e in Store(tmp_path).evaluations(key)} == {16, 20}, "kept with the run"
    assert cli("evaluate", key[:8], "--eps", "0", "--store", tmp_path)[0] == 2
    (tmp_path / "mine.py").write_text(
        "import torch\ndef net():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    status, out, err = cli("evaluate", "mine:net", "--n", "20", "--attacks", "pgd")
    assert status == 0 and "n = 20" in out, err


def test_evaluate_writes_a_report_and_a_curve_and_says_whether_to_believe_it(cli, tmp_path):
    run = ("run", "--sparsity", "0.8", *TINY, "--store", tmp_path)
    cli(*run)
    (key,) = Store(tmp_path).keys()
    page, curve, figure = tmp_path / "report.html", tmp_path / "own.npz", tmp_path / "curves.html"
    options = ("--n", "16", "--attacks", "lite", "--distances", "fmn", "--parent", key, "--store", tmp_path)
    status, out, err = cli("evaluate", key, *options, "--report", page, "--curve", curve)
    assert status == 0, err
    assert "an upper bound, found by APGD-CE + APGD-T (eps 0.15, n = 16)" in out
    assert "signs of a failed attack that were looked for none was seen" in err or ": failed:" in err or ": doubtful:" in err
    assert "a first look: robust at most about" in err
    text = page.read_text(encoding="utf-8")
    assert "Is it believable?" in text and "transfer from the parent" in text and "Plotly.newPlot" in text
    assert "the dense parent was not given" not in text
    status, out, err = cli("curves", curve, curve, "--out", figure, "--json")
    assert status == 0, err
    first, second = json.loads(out)
    assert (first["n"], second["name"]) == (16, f"{first['name']} (2)")
    assert first["robust"] <= first["clean"]
    assert figure.exists()
    before = {e["key"] for e in Store(tmp_path).evaluations(key)}
    assert cli("evaluate", key, *options)[0] == 0
    assert {e["key"] for e in Store(tmp_path).evaluations(key)} == before, "taken from the store"


def test_evaluate_takes_a_file_of_weights_for_a_network_that_is_named(cli, tmp_path):
    net = networks.build("cnn", channels=1, classes=10)
    weights = tmp_path / "weights.pt"
    torch.save({"net": {f"module.{k}": v for k, v in net.state_dict().items()}, "epoch": 3}, weights)
    status, out, err = cli("evaluate", weights, "--network", "cnn", "--n", "16", "--attacks", "pgd", "--json")
    assert status == 0, err
    expected = apnb.evaluate(net, "digits", n=16, attacks="pgd").summary()
    assert {**json.loads(out), "seconds": 0} == json.loads(json.dumps({**expected, "seconds": 0}))
    for argv, sentence in (
        ((weights,), "name the network that they belong to (network=, --network)"),
        ((weights, "--network", "resnet8"), "does not fit the network 'resnet8'"),
        ((tmp_path / "none.pt",), "there is no file"),
        ((weights, "--network", "cnn", "--report", tmp_path / "a.pdf"), "give a name that ends in .html"),
        ((weights, "--network", "cnn", "--attacks", "fgsm"), "no attack mode 'fgsm'"),
    ):
        status, out, err = cli("evaluate", *argv, "--n", "16")
        assert (status, out) == (2, "") and sentence in err and "Traceback" not in err


def test_sweep_carries_out_a_file(cli, tmp_path):
    file = tmp_path / "s.toml"
    file.write_text('attacks = "pgd"\n[[recipes]]\npipeline = "after"\nbudget = "tiny"\nsparsity = [0.5, 0.8]\n')
    status, out, _ = cli("sweep", file, "--store", tmp_path, "--json", "--out", tmp_path / "curve.html")
    assert status == 0 and [r["sparsity"] for r in json.loads(out)["runs"]] == [0.5, 0.8]
    assert "plotly" in (tmp_path / "curve.html").read_text(encoding="utf-8")[:200_000].lower()


def test_methods_can_be_asked_by_every_dimension(cli):
    assert "26 of 26" in cli("methods")[1]
    assert len(json.loads(cli("methods", "--pipeline", "during", "--criterion", "lwm", "--json")[1])) == 1
    for option, word in {"objective": "trades", "schedule": "iterative", "structure": "kernels", "locality": "local"}.items():
        status, out, _ = cli("methods", f"--{option}", word, "--json")
        assert status == 0 and 0 < len(json.loads(out)) < 26


def test_doctor_says_what_there_is(cli):
    facts = json.loads(cli("doctor", "--json")[1])
    assert facts["survey data"] == "26 methods" and facts["runs"] == "0 runs, 0 damaged" and "torch" in facts


def test_a_plan_promises_nothing_that_a_run_would_refuse(cli):
    assert cli("run", "--plan", "--n", "501")[0] == cli("run", "--plan", "--eps", "5")[0] == 2
    assert "expected 1 to 500" in cli("run", "--plan", "--n", "501")[2]


def test_plan_says_what_would_happen_and_does_nothing(cli, tmp_path):
    status, out, _ = cli("run", "--plan", "--pipeline", "before", "--criterion", "lis", "--store", tmp_path / "s")
    assert status == 0 and "90.0%" in out and not (tmp_path / "s").exists()


BAD = {
    "a percentage": (("run", "--sparsity", "90"), "did you mean 0.9"),
    "all of it": (("run", "--sparsity", "1.0"), "leaves no network"),
    "negative": (("run", "--sparsity", "-0.1"), "must lie in"),
    "not a number": (("run", "--sparsity", "nan"), "NaN"),
    "a word for a number": (("run", "--sparsity", "lots"), "--sparsity"),
    "an unknown option": (("run", "--sparsty", "0.5"), "--sparsity"),
    "a constant without a number": (("run", "--method", "harp", "--constants", "gamma"), "NAME=NUMBER"),
    "an unknown constant": (("run", "--method", "harp", "--constants", "gama=1"), "its constants are: gamma, alpha, start"),
    "a cell for a method": (("run", "--method", "harp", "--criterion", "lwm"), "leave criterion out"),
    "a method without a preset": (("run", "--method", "dnr"), "its cell of the taxonomy runs as"),
    "an unknown criterion": (("run", "--criterion", "lwn"), "'lwm'"),
    "a contradiction": (("run", "--criterion", "bcs", "--pipeline", "before"), "'during'"),
    "an unknown network": (("run", "--network", "resnet19"), "'resnet18'"),
    "an unknown data set": (("run", "--data", "digit"), "'digits'"),
    "a missing folder": (("run", "--data", "folder:/nowhere/at/all"), "/nowhere/at/all"),
    "an unknown budget": (("run", "--budget", "quik"), "'quick'"),
    "an unknown attack mode": (("run", "--attacks", "aa"), "standard"),
    "an unknown device": (("run", "--device", "warp"), "warp"),
    "an unknown method filter": (("methods", "--criterion", "lvm"), "'lwm'"),
    "an unknown run": (("runs", "show", "feed"), "no run 'feed'"),
    "a missing zip": (("runs", "import", "gone.zip"), "no file"),
    "nothing to export": (("runs", "export", "out.zip"), "no runs"),
    "a missing sweep file": (("sweep", "gone.toml"), "gone.toml"),
    "a missing module": (("evaluate", "nowhere:net"), "nowhere"),
    "no room in the ball": (("run", "--eps", "0"), "eps"),
    "no points": (("run", "--n", "0"), "0"),
    "too many points": (("demo", "--n", "9999"), "9999"),
    "no workers": (("demo", "--workers", "0"), "workers"),
    "negative threads": (("run", "--threads", "-3"), "threads"),
    "a seed without end": (("run", "--seed", "99999999999999999999999"), "2**63"),
    "a figure of another kind": (("demo", "--out", "x.pdf"), ".html"),
    "a figure in no folder": (("demo", "--out", "nodir/x.html"), "nodir"),
    "a small network for large images": (("run", "--network", "resnet18"), "8, 8"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_sentence_and_exit_status_2(case, cli, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    argv, words = BAD[case]
    status, out, err = cli(*argv)
    assert status == 2 and out == ""
    assert words in err and "Traceback" not in err
    if err.startswith("apnb: "):
        assert err.count("\n") == 1, "one sentence"
    assert not list(tmp_path.rglob("*.stage")), "nothing was done"


def test_a_cifar10_that_is_absent_and_cannot_be_downloaded_is_one_sentence(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("APNB_DATA", str(tmp_path))
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    status, _, err = cli("run", "--data", "cifar10", *TINY)
    assert status == 2 and err.count("\n") == 1 and str(tmp_path) in err and "digits" in err


def test_an_unreadable_image_folder_and_a_wrong_npz_are_one_sentence(cli, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "1.png").write_bytes(b"no image")
    np.savez(tmp_path / "wrong.npz", x=np.zeros((4, 2)), y=np.zeros(4, dtype=int))
    for data, words in {f"folder:{tmp_path / 'images'}": "1.png", f"npz:{tmp_path / 'wrong.npz'}": "(4, 2)"}.items():
        status, _, err = cli("run", "--data", data, *TINY)
        assert status == 2 and err.count("\n") == 1 and words in err, err


@pytest.mark.slow
def test_a_bare_machine_without_typer_and_others_runs_and_evaluates(tmp_path):
    """As on a GPU machine that has torch, numpy, pandas and scikit-learn only."""
    missing = ("typer", "rich", "click", "pydantic", "plotly", "safetensors", "platformdirs", "torchvision", "ipywidgets")
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nfor name in {missing}: sys.modules[name] = None\n")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "APNB_HOME": str(tmp_path / "home")}

    def bare(*argv: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "apnb", *argv], capture_output=True, text=True, env=env, cwd=tmp_path)

    done = bare("run", "--sparsity", "0.8", "--budget", "tiny", "--attacks", "lite", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    key = json.loads(done.stdout)["key"]
    again = bare("evaluate", key, "--n", "16", "--attacks", "pgd", "--json")
    assert again.returncode == 0 and json.loads(again.stdout)["n"] == 16, again.stderr[-2000:]
    assert bare("run", "--sparsity", "90").returncode == 2
    assert apnb.open_run(key, store=tmp_path / "home").key == key, "what the bare machine wrote is read here"


def test_an_interrupt_says_how_to_go_on(cli, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("apnb.taxonomy.methods", stop)
    status, _, err = cli("methods")
    assert status == 130 and "goes on from there" in err
