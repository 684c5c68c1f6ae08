"""What Binder builds and starts: the files agree with the package, and the scripts end in the first notebook with the lab ready."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import tomllib
import urllib.error
import urllib.request
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
BINDER = ROOT / "binder"
URL = "/lab/tree/notebooks/00_start_here.ipynb"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))


def bash(script: str, **environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if k not in ("TORCH_INDEX", "CONSTRAINTS", "JUPYTER_CONFIG_PATH")}
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, cwd=ROOT, env=kept | environment
    ).stdout.strip()


def test_scripts_are_bash_and_can_be_executed():
    for name in ("postBuild", "start", "torch-index"):
        assert subprocess.run(["bash", "-n", BINDER / name]).returncode == 0
        assert name == "torch-index" or (
            os.access(BINDER / name, os.X_OK) and (BINDER / name).read_text().startswith("#!/bin/bash\n")
        )


def test_binder_has_the_python_that_the_versions_were_tested_with():
    (version,) = re.findall(r"^python-(3\.\d+)$", (BINDER / "runtime.txt").read_text(), re.M)
    assert f"Python {version}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").split("\n")[0]
    assert Requirement("python" + PROJECT["requires-python"]).specifier.contains(version)


def test_the_versions_that_binder_takes_are_within_the_bounds_of_the_package():
    lab = [r for r in PROJECT["optional-dependencies"]["widgets"] + PROJECT["optional-dependencies"]["lab"] if "apnb" not in r]
    wanted = [Requirement(r) for r in PROJECT["dependencies"] + lab]
    assert not [str(r) for r in wanted if PINS[r.name] not in r.specifier]
    assert {"torch", "torchvision"} <= {r.name for r in wanted}


def test_torch_comes_from_its_own_cpu_index_unless_another_is_named_or_none():
    say = '. binder/torch-index; echo "[$TORCH_INDEX]" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}'
    own, _, option = bash(say).rpartition("] ")
    assert own.startswith("[https://") and own.endswith("/cpu") and option == f"--index-url {own[1:]}"
    assert (
        bash(say, TORCH_INDEX="https://mirror.example/cpu")
        == "[https://mirror.example/cpu] --index-url https://mirror.example/cpu"
    )
    assert bash(say, TORCH_INDEX="") == "[]"


def test_start_becomes_the_command_it_is_given(tmp_path):
    code = "import json, os; print(json.dumps([os.getpid(), os.environ['OMP_NUM_THREADS'], os.environ['JUPYTER_CONFIG_PATH']]))"
    started = subprocess.Popen(
        [BINDER / "start", sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tmp_path,
        env=os.environ | {"JUPYTER_CONFIG_PATH": "/somewhere"},
    )  # fmt: skip
    pid, threads, path = json.loads(started.communicate(timeout=60)[0])
    assert (pid, threads) == (started.pid, "1")  # exec: a signal reaches the server
    ours, news, theirs = path.split(":")
    assert (Path(ours) / "jupyter_config.json").exists() and theirs == "/somewhere"
    (settings,) = Path(news).glob("labconfig/*.json")
    assert json.loads(settings.read_text())["@jupyterlab/apputils-extension:notification"]["fetchNews"] == "false"


@pytest.mark.parametrize("program", ["jupyterlab", "jupyter_server"])
def test_whatever_starts_the_server_opens_the_first_notebook(program):
    shown = bash(f"binder/start '{sys.executable}' -m {program} --show-config-json")
    config = json.loads(shown)
    assert {config[name]["default_url"] for name in ("LabApp", "ServerApp", "JupyterNotebookApp")} == {URL}
    assert (ROOT / URL.removeprefix("/lab/tree/")).exists()


# --- the whole way ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path):
    """A checkout, and the environment of a Python that sees what the tests' Python sees: pip finds nothing heavy to download."""
    repository = tmp_path / "repository"
    for name in ("apnb", "binder", "data", "notebooks"):
        shutil.copytree(ROOT / name, repository / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, repository)
    venv.create(tmp_path / "venv", with_pip=True)
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    (site / "tests.pth").write_text("".join(f"{sysconfig.get_path(kind)}\n" for kind in ("purelib", "platlib")))
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    (tmp_path / "versions.txt").write_text(
        "".join(f"{line}\n" for line in installed.stdout.split() if not line.startswith("apnb"))
    )
    share = Path(sys.prefix) / "share" / "jupyter"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "APNB", "PYTHON"))}
    environment = kept | {
        "HOME": str(tmp_path), "PATH": f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}", "TORCH_INDEX": "",
        "CONSTRAINTS": str(tmp_path / "versions.txt"), "JUPYTERLAB_DIR": str(share / "lab"), "JUPYTER_PATH": str(share),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
    }  # fmt: skip
    return repository, environment


def answer(url, body=None):
    """(address reached, text) of a page of the local server."""
    request = urllib.request.Request(
        url, data=None if body is None else json.dumps(body).encode(), headers={"Authorization": "token t"}
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as reply:
        return reply.url, reply.read().decode()


def ready(client, until: float) -> None:
    """Wait for the kernel; on a busy machine its heartbeat may be missed at first, which looks like a death."""
    while True:
        try:
            return client.wait_for_ready(timeout=30)
        except RuntimeError:
            if time.monotonic() > until:
                raise


@pytest.mark.slow
def test_the_scripts_end_in_a_server_at_the_first_notebook_with_the_lab_ready(image):
    from jupyter_client.blocking import BlockingKernelClient

    repository, environment = image
    build = subprocess.run(["./binder/postBuild"], cwd=repository, env=environment, capture_output=True, text=True)
    assert build.returncode == 0, build.stdout[-2000:] + build.stderr[-2000:]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        ["./binder/start", "python", "-m", "jupyterlab", "--ip=127.0.0.1", f"--port={port}", "--no-browser", "--IdentityProvider.token=t",
         "--allow-root"],
        cwd=repository, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        base = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 120
        while True:
            try:
                answer(f"{base}/api")
                break
            except urllib.error.URLError:
                assert server.poll() is None and time.monotonic() < until, "the server does not answer"
                time.sleep(0.3)
        reached, page = answer(f"{base}/?token=t")
        assert reached.split("?")[0] == base + URL and "jupyter-config-data" in page
        settings = json.loads(answer(f"{base}/lab/api/settings/@jupyterlab/apputils-extension:notification")[1])
        assert settings["schema"]["properties"]["fetchNews"]["default"] == "false"
        model = json.loads(answer(f"{base}/api/contents/notebooks/00_start_here.ipynb?content=1")[1])
        executed = [cell for cell in model["content"]["cells"] if cell.get("outputs")]
        assert executed and all(cell["metadata"].get("trusted") for cell in executed)
        session = {"path": "notebooks/00_start_here.ipynb", "type": "notebook", "name": "", "kernel": {"name": "python3"}}
        kernel = json.loads(answer(f"{base}/api/sessions", session)[1])["kernel"]["id"]
        client = BlockingKernelClient(connection_file=str(Path(environment["JUPYTER_RUNTIME_DIR"]) / f"kernel-{kernel}.json"))
        client.load_connection_file()
        client.start_channels()
        try:
            ready(client, until=time.monotonic() + 120)
            told = []
            code = (
                "import os, apnb, plotly.io as pio; apnb.plots.renderer(); "
                "print(apnb.__file__, os.environ['OMP_NUM_THREADS'], pio.renderers.default); apnb.Lab()"
            )
            client.execute_interactive(code, timeout=120, output_hook=told.append)
        finally:
            client.stop_channels()
        said = "".join(m["content"].get("text", "") for m in told)
        where, threads, renderer = said.split()
        assert Path(where).is_relative_to(repository) and threads == "1" and renderer.startswith("plotly_mimetype")
        (shown,) = (m["content"]["data"] for m in told if m["msg_type"] == "execute_result")
        assert "application/vnd.jupyter.widget-view+json" in shown
    finally:
        server.terminate()
        server.wait(60)
