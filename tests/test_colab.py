"""The first cell of every notebook, run as Google Colab runs it and everywhere else; and the stamp that writes it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import jupytext
import nbformat
import plotly.io as pio
import pytest
from packaging.requirements import Requirement

from apnb import plots
from apnb.errors import Invalid
from apnb.reading import series, stamp

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = "https://github.com/someone/apnb"
COLAB = {  # what its machines bring (spring 2026), which an installation must leave as it is
    "torch": "2.10.0", "torchvision": "0.25.0", "numpy": "2.0.2", "pandas": "2.2.2", "scikit-learn": "1.6.1", "scipy": "1.16.3",
    "pydantic": "2.12.3", "anywidget": "0.9.21", "filelock": "3.24.3", "platformdirs": "4.9.2", "safetensors": "0.7.0",
    "typer": "0.24.1", "rich": "13.9.4",
}  # fmt: skip
KERNEL = ("ipykernel", "jupyterlab", "jupyter_server", "jupyter_client", "notebook")


# --- elsewhere -----------------------------------------------------------------------------------------------------------------


PLAIN = "names = {'__builtins__': __builtins__}; old = set(names); before = set(sys.modules); exec(code, names)"
IPYTHON = """\
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell()
shell.run_cell("pass")
names, old, before = shell.user_ns, set(shell.user_ns), set(sys.modules)
shell.run_cell(code).raise_error()
"""


@pytest.mark.parametrize("run", [PLAIN, IPYTHON], ids=["plain Python", "IPython"])
def test_outside_colab_the_cell_prints_nothing_and_imports_nothing(run):
    code = (
        f"import sys\ncode = {stamp.cell(ADDRESS)!r}\n{run}\nprint(sorted(set(names) - old), sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("['ADDRESS'] []\n", "")


def test_figures_are_shown_in_the_way_of_the_place(monkeypatch):
    monkeypatch.setattr(pio.renderers, "default", pio.renderers.default)
    monkeypatch.setattr(plots.show, "_browser", lambda: False)
    monkeypatch.delenv("PLOTLY_RENDERER", raising=False)
    plots.renderer()
    assert pio.renderers.default == "plotly_mimetype"
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    plots.renderer()
    assert pio.renderers.default == "colab"  # Colab draws no figure by its type
    monkeypatch.setenv("PLOTLY_RENDERER", "notebook")
    plots.renderer()
    assert pio.renderers.default == "notebook"  # what somebody asked for counts


def test_what_colab_brings_may_stay():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {r.name: r for r in map(Requirement, project["dependencies"] + project["optional-dependencies"]["widgets"])}
    assert not {name: version for name, version in COLAB.items() if version not in needed[name].specifier}


# --- in Colab, as far as it can be had here ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """A Python that sees what the tests' Python sees, but not apnb; with Colab's shell; and this package as a git repository."""
    base = tmp_path_factory.mktemp("colab")
    seen = base / "seen"
    (seen / "google" / "colab").mkdir(parents=True)
    files = {
        "__init__": "",
        "output": "from types import SimpleNamespace\n_widgets = SimpleNamespace(_installed_url=None)\ncalls = []\n"
                  "def enable_custom_widget_manager():\n    calls.append('on')\n",
        "_shell": "from ipykernel.zmqshell import ZMQInteractiveShell\nclass Shell(ZMQInteractiveShell):\n    pass\n",
        "_kernel": "from google.colab._shell import Shell\nfrom ipykernel.ipkernel import IPythonKernel\n"
                   "from ipykernel.kernelapp import IPKernelApp\nfrom traitlets import Type\n"
                   "class Kernel(IPythonKernel):\n    shell_class = Type(Shell)\nIPKernelApp.launch_instance(kernel_class=Kernel)\n",
    }  # fmt: skip
    for name, text in files.items():
        (seen / "google" / "colab" / f"{name}.py").write_text(text)
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for path in Path(place).iterdir():
            if path.suffix != ".pth" and not path.name.lower().startswith(("apnb", "pip", "_apnb", "__editable__")):
                (seen / path.name).exists() or (seen / path.name).symlink_to(path)
    venv.create(base / "venv", with_pip=True)
    python = base / "venv" / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
    )
    (Path(site.stdout.strip()) / "seen.pth").write_text(f"{seen}\n")
    repository = base / "repository"
    skip = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("apnb", "data", "notebooks"):
        shutil.copytree(ROOT / name, repository / name, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, repository)
    git = ["git", "-C", repository, "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "all"]):
        subprocess.run([*git, *command], check=True)
    return python, f"file://localhost{repository}"  # with a host, without which older versions of pip take it for a path


def run_in_colab(python, *cells, folder):
    """Outputs of the cells, in a kernel with Colab's shell; the first that fails is the last."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import KernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    manager = KernelManager()
    manager._kernel_spec = KernelSpec(
        argv=[str(python), "-m", "google.colab._kernel", "-f", "{connection_file}"], display_name="Colab", language="python"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PLOTLY_RENDERER")}
    client = NotebookClient(notebook, km=manager, timeout=300, resources={"metadata": {"path": str(folder)}})
    try:
        with contextlib.suppress(CellExecutionError):
            client.execute(env=environment)
    finally:
        if client.kc is not None:
            client.kc.stop_channels()
        if manager.has_kernel:
            manager.shutdown_kernel(now=True)  # a manager of one's own is not ended by the client
    return [cell.outputs for cell in notebook.cells]


@pytest.mark.slow
def test_in_colab_without_an_address_the_cell_says_what_to_paste_and_stops(colab, tmp_path):
    python, _ = colab
    outputs, later = run_in_colab(python, stamp.cell(""), "print('went on')", folder=tmp_path)
    assert not later
    (error,) = outputs
    assert error.traceback == [error.evalue] and "into the field ADDRESS" in error.evalue and "\n" not in error.evalue


@pytest.mark.slow
def test_an_installation_in_colab_leaves_its_kernel_alone(colab):
    python, address = colab
    (farm,) = python.parent.parent.parent.glob("seen")
    hidden = {p: p.readlink() for p in farm.iterdir() if p.is_symlink() and p.name.lower().split("-")[0] in KERNEL}
    assert len(hidden) >= 8
    for path in hidden:
        path.unlink()
    try:  # they are missing now, and would come if anything asked for them
        done = subprocess.run(
            [python, "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-", f"apnb[widgets] @ git+{address}"],
            capture_output=True, text=True,
        )  # fmt: skip
    finally:
        for path, target in hidden.items():
            path.symlink_to(target)
    assert done.returncode == 0, done.stderr
    coming = {part["metadata"]["name"].lower().replace("-", "_") for part in json.loads(done.stdout)["install"]}
    assert "apnb" in coming and coming.isdisjoint({*KERNEL, *(name.replace("-", "_") for name in COLAB)}), coming


@pytest.mark.slow
def test_in_colab_the_cell_installs_the_package_once_and_turns_widgets_on(colab, tmp_path):
    python, address = colab
    probe = (
        "import sys, apnb, google.colab.output as o, plotly.io as pio\napnb.plots.renderer()\n"
        "print(apnb.__file__, pio.renderers.default, o.calls)\nwidget = apnb.TaxonomyExplorer()"
    )
    outputs = run_in_colab(python, stamp.cell(address), probe, stamp.cell("file://localhost/nowhere"), folder=tmp_path)
    said = ["".join(o.get("text", "") or str(o.get("evalue", "")) for o in cell) for cell in outputs]
    assert "Runs on the " in said[0] and not any(o.output_type == "error" for cell in outputs for o in cell), said
    where, renderer, calls = said[1].split(maxsplit=2)
    assert where.startswith(str(python.parent.parent)) and renderer == "colab" and calls.strip() == "['on']"
    assert said[2].startswith("Runs on the ") and len(said[2].splitlines()) == 1  # pip was not asked again


# --- the stamp -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path):
    """A copy of what is stamped, without an address."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*"))
    (tmp_path / "README.md").write_text(f"# apnb\n\n{stamp.BEGIN}\n{stamp.END}\n\nMore.\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "apnb"\n')
    stamp.stamp(tmp_path)
    return tmp_path


def give(checkout, repository, documentation=None):
    urls = f'\n[project.urls]\nRepository = "{repository}"\n' + (f'Documentation = "{documentation}"\n' if documentation else "")
    (checkout / "pyproject.toml").write_text('[project]\nname = "apnb"\n' + urls)


def contents(checkout):
    return {
        p.relative_to(checkout): p.read_bytes() for p in sorted(checkout.rglob("*.*")) if p.suffix in (".md", ".py", ".ipynb")
    }


def test_this_checkout_is_stamped():
    assert stamp.stale(ROOT) == []


def test_stamping_again_changes_nothing_and_another_address_replaces_the_first(checkout):
    unknown = contents(checkout)
    assert stamp.stamp(checkout) == [] and stamp.stale(checkout) == []
    give(checkout, ADDRESS + ".git", "https://someone.example/apnb/")
    assert len(stamp.stale(checkout)) == len(unknown) == len(stamp.stamp(checkout))
    known = contents(checkout)
    assert all(ADDRESS.encode() in text for path, text in known.items()) and stamp.stamp(checkout) == []
    give(checkout, "https://code.example/other/place")
    stamp.stamp(checkout)
    assert not any(b"someone" in text for text in contents(checkout).values())
    give(checkout, "")
    stamp.stamp(checkout)
    assert contents(checkout) == unknown


@pytest.mark.parametrize(
    "address",
    ["https://github.com", "https://github.com/someone", "https://github.com/someone/apnb/tree/main", "https://code.example/apnb",
     "http://github.com/someone/apnb", "https://github.com/someone/apnb?tab=readme", "git@github.com:someone/apnb"],
)  # fmt: skip
def test_what_is_no_address_of_a_repository_is_refused_and_nothing_is_written(checkout, address):
    before = contents(checkout)
    give(checkout, address)
    with pytest.raises(Invalid, match="is no address of the form https://host/owner/name"):
        stamp.stamp(checkout)
    assert contents(checkout) == before


def test_a_host_in_capitals_is_the_same_host(checkout):
    give(checkout, "https://GitHub.com/someone/apnb")
    assert stamp.addresses(checkout)[0] == "https://github.com/someone/apnb"


def test_stamping_keeps_every_other_byte_and_the_pairs_together(checkout):
    for known in (False, True):
        if known:
            give(checkout, ADDRESS)
            stamp.stamp(checkout)
        for text in sorted((checkout / "notebooks").glob("*.py")):
            before = jupytext.read(ROOT / "notebooks" / text.name)
            before.cells = [cell for cell in before.cells if series.COLAB not in cell.metadata.get("tags", [])]
            script, executed = jupytext.read(text), nbformat.read(text.with_suffix(".ipynb"), 4)
            nbformat.validate(executed)
            front = 1 + known
            assert script.cells[0].source == executed.cells[0].source == stamp.cell(ADDRESS if known else "")
            assert all(series.COLAB in cell.metadata["tags"] for cell in script.cells[:front] + executed.cells[:front])
            assert [c.source for c in script.cells[:front]] == [c.source for c in executed.cells[:front]]
            assert [(c.cell_type, c.source) for c in script.cells[front:]] == [(c.cell_type, c.source) for c in before.cells]
            bodies = (t[t.index("# %%") :] for t in (jupytext.writes(script, "py:percent"), text.read_text(encoding="utf-8")))
            assert len(set(bodies)) == 1  # as jupytext itself writes it
            for path, sign in ((text, "# %%"), (text.with_suffix(".ipynb"), '   "cell_type": "markdown"')):
                new, old = (folder.joinpath("notebooks", path.name).read_text("utf-8") for folder in (checkout, ROOT))
                title = before.cells[0].source.split("\n")[0]
                title = json.dumps(title)[1:-1] if path.suffix == ".ipynb" else title
                assert title in old and sign in old and new[new.index(title) :] == old[old.index(title) :]


def test_stamping_keeps_number_and_name_of_a_cell_that_ran(checkout):
    path = next((checkout / "notebooks").glob("*.ipynb"))
    notebook = nbformat.read(path, 4)
    notebook.cells[0].execution_count, notebook.cells[0]["id"] = 1, "cell-99"
    nbformat.write(notebook, path)
    assert stamp.stamp(checkout) == []
    give(checkout, ADDRESS)
    stamp.stamp(checkout)
    again = nbformat.read(path, 4)
    assert (again.cells[0].execution_count, again.cells[0].id) == (1, "cell-99") and ADDRESS in again.cells[0].source
    assert again.cells[2:] == notebook.cells[1:]


@pytest.mark.parametrize(
    "address, colab, binder",
    [
        (
            ADDRESS,
            "https://colab.research.google.com/github/someone/apnb/blob/main/notebooks/03_taxonomy.ipynb",
            "gh/someone/apnb",
        ),
        ("https://gitlab.com/a/b/apnb", None, "gl/a%2Fb%2Fapnb"),
        ("https://code.example/apnb", None, "git/https%3A%2F%2Fcode.example%2Fapnb"),
    ],
)
def test_links_lead_to_the_notebook(address, colab, binder):
    found = stamp.links(address, "https://someone.example/apnb", "03_taxonomy")
    assert found.get("Open in Colab") == colab
    assert found["Open in Binder"] == f"https://mybinder.org/v2/{binder}/main?urlpath=lab/tree/notebooks/03_taxonomy.ipynb"
    assert found["Read without running"] == "https://someone.example/apnb"


def test_without_an_address_the_readme_says_what_to_paste_and_with_one_it_has_the_install_line(checkout):
    readme = checkout / "README.md"
    assert "field ADDRESS" in readme.read_text() and "mybinder.org/v2" not in readme.read_text()
    give(checkout, ADDRESS)
    stamp.stamp(checkout)
    text = readme.read_text()
    assert (
        f"pip install 'apnb[lab] @ git+{ADDRESS}'" in text and text.count("mybinder.org/v2") == 1 and "field ADDRESS" not in text
    )
    assert text.startswith("# apnb\n\n") and text.endswith("\n\nMore.\n")


@pytest.mark.parametrize("address", ["github.com/a/b", "http://code.example/a", 'https://x.example/a"b', "https://x.example/a b"])
def test_an_address_that_is_none_is_refused(checkout, address):
    (checkout / "pyproject.toml").write_text(f"[project]\n[project.urls]\nRepository = {json.dumps(address)}\n")
    with pytest.raises(Invalid, match="is no address of the form https://host/owner/name"):
        stamp.stamp(checkout)


def test_a_readme_without_a_place_for_the_links_is_refused(checkout):
    (checkout / "README.md").write_text("# apnb\n")
    with pytest.raises(Invalid, match=r"README.md has no place for the links: put a line <!-- links -->"):
        stamp.stamp(checkout)
