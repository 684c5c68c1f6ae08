"""Notebooks: text and executed copy agree, outputs are fresh, whole and clean; and each runs from a clean kernel."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from apnb.errors import Invalid
from apnb.reading import series
from apnb.reading.__main__ import main

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("jupytext")

SOURCES = series.sources()
EXACT = {"03_taxonomy", "07_benchmark"}
"""Notebooks that compute from the packaged facts alone: every number of theirs is the same on every machine."""
MEMORY = 2_000_000_000
"""Bytes a kernel may take: what Binder gives."""


def every(test):
    return pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)(test)


@every
def test_a_notebook_is_in_sync_fresh_whole_and_clean(source):
    assert not series.check(source)
    nbformat.validate(nbformat.read(source.with_suffix(".ipynb"), 4))


def test_the_series_is_complete_and_numbered_without_gaps():
    assert [s.stem[:2] for s in SOURCES] == [f"{i:02}" for i in range(11)]


@every
def test_a_notebook_asks_at_the_top_lets_move_something_has_exercises_and_says_what_to_read_next(source):
    notebook = nbformat.read(source.with_suffix(".ipynb"), 4)
    first = next(c.source for c in notebook.cells if c.cell_type == "markdown")
    assert first.startswith("# ") and "?" in first, "the question stands at the top"
    code = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
    assert code.count("apnb.Question(") >= 2
    shown = [o for c in notebook.cells for o in c.get("outputs", [])]
    sliders = any(o.get("data", {}).get("application/vnd.plotly.v1+json", {}).get("layout", {}).get("sliders") for o in shown)
    assert sliders or "TaxonomyExplorer(" in code or "Leaderboard(" in code
    assert notebook.cells[-1].source.startswith("## What to read next") and "](" in notebook.cells[-1].source


@pytest.fixture(scope="module")
def runs(request):
    """The notebooks that are asked for, executed two at a time: source -> what came of it, later."""
    wanted = {item.callspec.params["source"] for item in request.session.items if item.originalname == RUNS}
    with ThreadPoolExecutor(2) as pool:
        yield {source: pool.submit(series.executed, source) for source in SOURCES if source in wanted}


def texts(notebook) -> list[list[str]]:
    """What each cell prints: streams, and results as text or Markdown, but not the names of objects."""
    told = []
    for cell in notebook.cells:
        told.append([])
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            text = output.get("text") or data.get("text/markdown") or ("" if "text/html" in data else data.get("text/plain", ""))
            if output.output_type == "stream" and told[-1]:
                told[-1][-1] += text  # how a stream is cut is chance
            elif " object at 0x" not in text and not text.startswith(("Figure(", "FigureWidget(")):
                told[-1].append(text)
    return told


@pytest.mark.slow
@pytest.mark.timeout(2400)
@every
def test_a_notebook_runs_from_a_clean_kernel_and_within_the_memory_of_a_small_machine(source, runs: dict[Path, Future]):
    run = runs[source].result()
    assert not series.problems(run.notebook)
    assert run.peak < MEMORY
    if source.stem in EXACT:
        assert texts(run.notebook) == texts(nbformat.read(source.with_suffix(".ipynb"), 4))


RUNS = test_a_notebook_runs_from_a_clean_kernel_and_within_the_memory_of_a_small_machine.__name__


# --- the tools themselves ---------------------------------------------------------------------------------------------------------


def written(folder: Path, *cells: str) -> Path:
    source = folder / "00_small.py"
    source.write_text("".join(f"# %%{cell}\n\n" for cell in cells))
    return source


def test_a_notebook_that_was_executed_passes_and_one_whose_text_or_outputs_changed_does_not(tmp_path):
    source = written(tmp_path, " [markdown]\n# # Title", "\nprint(6 * 7)")
    run = series.executed(source)
    run.write()
    assert not series.check(source) and run.seconds > 0 and (run.peak > 1e7 or sys.platform != "linux")
    assert run.notebook.cells[1].outputs[0].text == "42\n"
    written(tmp_path, " [markdown]\n# # Title", "\nprint(6 * 9)")
    assert "differ in cells 1" in series.check(source)[0]
    changed = nbformat.read(source.with_suffix(".ipynb"), 4)
    changed.cells[1].source = "print(6 * 9)"  # the input by hand, the output as it was
    nbformat.write(changed, source.with_suffix(".ipynb"))
    assert "of another text" in series.check(source)[0]
    source.with_suffix(".ipynb").unlink()
    assert "is missing" in series.check(source)[0]


def test_the_cell_for_colab_may_change_without_executing_again_and_no_other(tmp_path):
    def after(colab, other):
        return series.digest(written(tmp_path, f' tags=["colab"]\n{colab}', f"\n{other}"))

    assert after("1", "2") == after("9", "2") != after("1", "3")


def test_a_figure_without_a_still_picture_is_not_written_and_not_passed(tmp_path):
    new, source = nbformat.v4, written(tmp_path, "\n1")
    figure = new.new_output("display_data", data={series.FIGURE: {"data": []}})
    notebook = new.new_notebook(cells=[new.new_code_cell("1", execution_count=1, outputs=[figure])])
    with pytest.raises(Invalid, match="cells 0 have no still picture, so nothing was written"):
        series.Executed(source, notebook, 0.0, 0).write()
    nbformat.write(notebook, source.with_suffix(".ipynb"))
    assert any("figure of cell 0 has no still picture" in problem for problem in series.check(source))


def test_several_notebooks_are_executed_at_a_time_and_all_come_back(tmp_path):
    texts = [tmp_path / f"0{i}_small.py" for i in range(3)]
    for i, text in enumerate(texts):
        text.write_text(f"# %%\nprint({i})\n")
    found = {run.source: run.notebook.cells[0].outputs[0].text for run in series.executed_all(texts)}
    assert found == {text: f"{i}\n" for i, text in enumerate(texts)}


def test_a_kernel_that_dies_or_does_not_end_is_a_sentence(tmp_path):
    for code in ("import os; os._exit(1)", "import time; time.sleep(60)"):
        with pytest.raises(Invalid, match=r"00_small\.py did not end"):
            series.executed(written(tmp_path, f"\n{code}"), timeout=5)


def test_a_notebook_that_fails_is_told_with_its_error_and_not_written(tmp_path):
    source = written(tmp_path, "\n1 / 0")
    with pytest.raises(Invalid, match=r"(?s)00_small.py fails: .*1 / 0.*ZeroDivisionError"):
        series.executed(source)
    assert not source.with_suffix(".ipynb").exists()


def test_the_checks_notice_what_they_are_for():
    new = nbformat.v4
    bad = new.new_notebook(metadata={"widgets": {}}, cells=[new.new_code_cell("1 +"), new.new_code_cell("x", execution_count=1)])
    bad.cells[1].outputs = [new.new_output("error", ename="NameError", evalue="x", traceback=[]),
                            new.new_output("stream", name="stderr", text="warned"),
                            new.new_output("stream", name="stdout", text=f"{Path.home()}/secret"),
                            new.new_output("display_data", data={series.LIVE: {}, "text/plain": "words"})]  # fmt: skip
    assert len(series.problems(bad)) == 6
    assert [p.split(" ", 2)[2][:4] for p in series.problems(series.without_widgets(bad))] == ["was ", "ends", "writ", "show"]
    assert bad.cells[1].outputs[3].data == {"text/plain": "words"}


def test_a_file_that_is_no_notebook_is_told_in_a_sentence(tmp_path):
    source = written(tmp_path, "\n1")
    for content in ("[]", "{", '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "x"}]}'):
        source.with_suffix(".ipynb").write_text(content)
        with pytest.raises(Invalid, match=r"00_small.ipynb is no notebook \(.*\); run: python -m apnb.reading execute 00"):
            series.check(source)


def test_a_notebook_without_a_text_is_noticed(tmp_path):
    written(tmp_path, "\n1").with_suffix(".ipynb").write_text("{}")
    (tmp_path / "01_left_over.ipynb").write_text("{}")
    assert series.orphans(tmp_path) == ["01_left_over.ipynb"] and series.orphans(SOURCES[0].parent) == []


def test_a_write_that_fails_leaves_the_old_notebook(tmp_path):
    source = written(tmp_path, "\nprint(1)")
    run = series.executed(source)
    before = run.write().read_bytes()
    run.notebook.cells[0].outputs[0].text = "2" * 100_000
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        with pytest.raises((OSError, Invalid)):
            run.write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert source.with_suffix(".ipynb").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00_small.ipynb", "00_small.py"]


@pytest.mark.skipif(sys.platform == "win32", reason="interruptions are signals")
def test_an_interruption_ends_the_kernels_and_writes_nothing(tmp_path):
    source = written(tmp_path, "\nfrom pathlib import Path\nPath('begun').touch()\nimport time\ntime.sleep(600)")
    probe = (
        "import sys\nfrom pathlib import Path\nfrom apnb.reading import __main__ as m\nm.chosen = lambda names: [Path(sys.argv[1])]\n"
        "sys.exit(m.main(['execute']))"
    )
    with subprocess.Popen([sys.executable, "-c", probe, str(source)], stderr=subprocess.PIPE, text=True) as work:
        for _ in range(600):
            if (tmp_path / "begun").exists():
                break
            time.sleep(0.1)
        work.send_signal(signal.SIGINT)
        _, told = work.communicate(timeout=300)  # the cell sleeps for longer
    assert work.returncode == 130 and told.strip().splitlines()[-1].startswith("apnb: stopped")
    assert "Traceback" not in told and not source.with_suffix(".ipynb").exists()


def test_the_command_names_what_there_is_and_takes_numbers_and_names(capsys):
    assert main(["check", "nothing"]) == 2 and "there are 00_start_here" in capsys.readouterr().err


if __name__ == "__main__":
    sys.exit(main(["execute", *sys.argv[1:]]))
