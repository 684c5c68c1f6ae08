"""Notebooks: text and executed copy agree, outputs are whole and clean; and each runs from a clean kernel.

``python tests/test_notebooks.py notebooks/NN_topic.py`` executes one and writes the .ipynb beside it, as it is committed.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9]*.py"))
LIMIT = 1_000_000
LIVE = "application/vnd.jupyter.widget-view+json"

jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")


def executed(source: Path, timeout: int = 600):
    """A notebook run from a clean kernel with an empty store, as a notebook without widget state."""
    from nbclient import NotebookClient

    notebook = jupytext.read(source)
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"  # the same at every execution
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "APNB_HOME": home}
        NotebookClient(
            notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(source.parent)}}
        ).execute(env=environment)
    return without_widgets(notebook)


def without_widgets(notebook):
    """Drop the state of widgets (5 MB for one figure) and the views that would ask for it; their text stays."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(LIVE, None)
    return notebook


def drifted(source: Path) -> list[int]:
    """Positions of cells that differ between a text and its executed copy."""
    pairs = itertools.zip_longest(jupytext.read(source).cells, nbformat.read(source.with_suffix(".ipynb"), 4).cells)
    return [i for i, (a, b) in enumerate(pairs) if not (a and b and (a.cell_type, a.source) == (b.cell_type, b.source))]


def problems(notebook) -> list[str]:
    """What a committed notebook must not have."""
    found = [
        f"cell {i} was not executed" for i, c in enumerate(notebook.cells) if c.cell_type == "code" and c.execution_count is None
    ]
    if "widgets" in notebook.metadata:
        found.append("widget state is stored; it weighs megabytes")
    for i, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                found.append(f"cell {i} ends in {output.ename}")
            if output.get("name") == "stderr":
                found.append(f"cell {i} writes to stderr: {output.text[:80]}")
            if LIVE in output.get("data", {}):
                found.append(f"cell {i} holds a live widget without its state")
            if any(place in str(output) for place in (str(Path.home()) + "/", tempfile.gettempdir() + "/", str(FOLDER.parent))):
                found.append(f"cell {i} shows a path of the machine that made it")
    return found


def test_there_are_notebooks():
    assert SOURCES


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_text_and_executed_copy_agree(source):
    assert not drifted(source), "run: python tests/test_notebooks.py " + str(source.relative_to(FOLDER.parent))


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_the_executed_copy_is_whole_and_clean(source):
    path = source.with_suffix(".ipynb")
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert not problems(notebook)
    assert path.stat().st_size < LIMIT


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_a_notebook_runs_from_a_clean_kernel(source):
    pytest.importorskip("nbclient")
    assert not problems(executed(source))


def test_the_checks_notice_what_they_are_for(tmp_path):
    new = nbformat.v4
    bad = new.new_notebook(metadata={"widgets": {}}, cells=[new.new_code_cell("1 +"), new.new_code_cell("x", execution_count=1)])
    bad.cells[1].outputs = [new.new_output("error", ename="NameError", evalue="x", traceback=[]),
                            new.new_output("stream", name="stderr", text="warned"),
                            new.new_output("display_data", data={LIVE: {}, "text/plain": "words"})]  # fmt: skip
    assert len(problems(bad)) == 5
    assert [p.split(" ", 2)[2][:4] for p in problems(without_widgets(bad))] == ["was ", "ends", "writ"]
    assert bad.cells[1].outputs[2].data == {"text/plain": "words"}
    (tmp_path / "a.py").write_text("# %%\n1\n\n# %%\n2\n")
    nbformat.write(new.new_notebook(cells=[new.new_code_cell("1"), new.new_code_cell("3")]), tmp_path / "a.ipynb")
    assert drifted(tmp_path / "a.py") == [1]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        nbformat.write(executed(Path(name)), Path(name).with_suffix(".ipynb"))
