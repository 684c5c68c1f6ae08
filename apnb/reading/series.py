"""The notebooks: executed from a clean kernel, written as they are committed, and checked.

``NN_topic.py`` is the text that people review, ``NN_topic.ipynb`` beside it the same with outputs, which people read. Only the
second is made by a program, and only from the first.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import count, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from apnb.errors import Invalid
from apnb.paths import shipped
from apnb.store import atomic

if TYPE_CHECKING:
    from nbformat import NotebookNode

LIMIT = 1_000_000
"""Bytes of an executed notebook: a code host shows no larger one whole."""
FIGURE, LIVE = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"
COLAB = "colab"
"""Tag of the cell that works in Colab only; its text may be stamped without executing the notebook again."""


@dataclass(frozen=True)
class Executed:
    """A notebook that ran: with outputs, without widget state. ``seconds`` of wall clock, ``peak`` bytes of the kernel (0: unknown)."""

    source: Path
    notebook: NotebookNode
    seconds: float
    peak: int

    def write(self) -> Path:
        """The notebook beside its text.

        Raises:
            Invalid: a figure without its still picture would be written.
        """
        import nbformat

        if cells := without_still(self.notebook):
            raise Invalid(
                f"{self.source.stem}: the figures of cells {', '.join(map(str, cells))} have no still picture, so nothing was written; "
                "install a Chromium or Chrome and the extra 'image'"
            )
        path = self.source.with_suffix(".ipynb")
        atomic(path, lambda beside: nbformat.write(self.notebook, beside))
        return path


def sources(folder: Path | None = None) -> list[Path]:
    """The texts of the series, in its order.

    Raises:
        Invalid: the folder has none.
    """
    folder = folder or shipped("notebooks")
    found = sorted(folder.glob("[0-9][0-9]_*.py"))
    if not found:
        raise Invalid(f"{folder} has no texts of notebooks (NN_topic.py); run this in a checkout of the project")
    return found


def orphans(folder: Path) -> list[str]:
    """Names of executed notebooks that have no text."""
    return sorted(p.name for p in folder.glob("[0-9][0-9]_*.ipynb") if not p.with_suffix(".py").exists())


def read(path: Path) -> NotebookNode:
    """An executed notebook.

    Raises:
        Invalid: the file is not there, or is no notebook.
    """
    import nbformat

    try:
        notebook = nbformat.read(path, 4)
        nbformat.validate(notebook)
    except FileNotFoundError:
        raise Invalid(f"{path.name} is missing; run: python -m apnb.reading execute {path.stem[:2]}") from None
    except Exception as error:  # it may be anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Invalid(f"{path.name} is no notebook ({reason}); run: python -m apnb.reading execute {path.stem[:2]}") from None
    return notebook


def executed(source: Path, timeout: int = 600, clients: list | None = None) -> Executed:
    """Run a notebook's text from a clean kernel, in its folder, with an empty store and one thread.

    Args:
        timeout: seconds for a cell. clients: takes the notebook's client, whose kernel can then be ended from another thread.

    Raises:
        Invalid: a cell fails (which one, and with what) or does not end.
    """
    import jupytext
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from nbconvert.filters.ansi import strip_ansi

    notebook = jupytext.read(source)
    numbers = count()  # names of cells: the same at every execution, and with or without a stamp
    for cell in notebook.cells:
        stamped = COLAB in cell.metadata.get("tags", [])
        cell["id"] = f"{COLAB}-{cell.cell_type}" if stamped else f"cell-{next(numbers)}"
    peak = 0

    def measure(**_) -> None:
        nonlocal peak
        peak = max(peak, _peak_of(client.km.provisioner.pid))

    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "APNB_HOME": home, "TMPDIR": home, "OMP_NUM_THREADS": "1"}
        environment.pop("PLOTLY_RENDERER", None)
        client = NotebookClient(
            notebook, timeout=timeout, kernel_name="python3", store_widget_state=False, coalesce_streams=True, on_cell_executed=measure,
            resources={"metadata": {"path": str(source.parent)}},
        )  # fmt: skip
        if clients is not None:
            clients.append(client)
        began = time.monotonic()
        try:
            client.execute(env=environment)
        except CellExecutionError as error:
            raise Invalid(f"{source.name} fails: {strip_ansi(str(error)).strip()}") from None
        except (CellTimeoutError, DeadKernelError) as error:
            raise Invalid(
                f"{source.name} did not end: {strip_ansi(str(error)).strip()}; a kernel dies when memory is short"
            ) from None
        seconds = time.monotonic() - began
    notebook.metadata["apnb"] = {"text": digest(source), **_versions()}
    return Executed(source, with_small_pictures(without_widgets(notebook)), seconds, peak)


def executed_all(texts: Sequence[Path], jobs: int = 2, timeout: int = 600) -> Iterator[Executed]:
    """Several at a time, each in a kernel of its own; as they finish.

    Raises:
        Invalid: the first that fails, when those that run are done. An interruption ends their kernels instead.
    """
    clients: list = []
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        futures = [pool.submit(executed, source, timeout, clients) for source in texts]
        try:
            for future in as_completed(futures):
                yield future.result()
        except (KeyboardInterrupt, GeneratorExit):
            for client in clients:
                if client.km is not None and client.km.has_kernel:
                    os.kill(client.km.provisioner.pid, signal.SIGKILL)
            raise
        finally:
            for future in futures:
                future.cancel()


def _peak_of(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)


def _versions() -> dict[str, str]:
    import platform

    import torch

    from apnb import __version__

    return {"package": __version__, "python": platform.python_version(), "torch": torch.__version__}


def without_widgets(notebook: NotebookNode) -> NotebookNode:
    """Drop the state of widgets (5 MB for one figure) and the views that would ask for it; what they show without a kernel stays."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(LIVE, None)
    return notebook


def with_small_pictures(notebook: NotebookNode, colours: int = 96) -> NotebookNode:
    """Figures have few colours: with a palette of them the still pictures take a third of the space."""
    import base64
    import io

    from PIL import Image

    for output in (o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})):
        small = io.BytesIO()
        with Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))) as picture:
            flat = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA")).convert("RGB")
            flat.quantize(colours, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
        if small.tell() < len(output.data["image/png"]) * 3 // 4:
            output.data["image/png"] = base64.b64encode(small.getvalue()).decode()
    return notebook


def digest(source: Path) -> str:
    """What an execution depends on besides the package: the text, and the facts in ``data``. SHA-256, hex.

    The cell for Colab is left out, since it does nothing elsewhere.
    """
    import jupytext

    found = hashlib.sha256()
    for cell in jupytext.read(source).cells:
        if COLAB not in cell.metadata.get("tags", []):
            found.update(f"{cell.cell_type}\0{cell.source}\0".encode())
    data = shipped("data")
    for path in sorted(p for p in data.rglob("*") if p.is_file() and p.suffix != ".md"):
        name = path.relative_to(data).as_posix()
        if not any(part.startswith(".") for part in name.split("/")):
            found.update(f"{name}\0".encode() + path.read_bytes())
    return found.hexdigest()


def drifted(source: Path) -> list[int]:
    """Positions of cells that differ between a text and its executed copy."""
    import jupytext

    pairs = zip_longest(jupytext.read(source).cells, read(source.with_suffix(".ipynb")).cells)
    return [i for i, (a, b) in enumerate(pairs) if not (a and b and (a.cell_type, a.source) == (b.cell_type, b.source))]


def problems(notebook: NotebookNode) -> list[str]:
    """What a committed notebook must not have: cells not run, errors, warnings, live widgets, paths of the machine that ran it."""
    found = [
        f"cell {i} was not executed"
        for i, c in enumerate(notebook.cells)
        if c.cell_type == "code" and c.execution_count is None and COLAB not in c.metadata.get("tags", [])
    ]
    if "widgets" in notebook.metadata:
        found.append("widget state is stored; it weighs megabytes")
    places = {f"{place}/" for place in (Path.home(), tempfile.gettempdir(), shipped("notebooks").parent) if str(place) != "/"}
    for i, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                found.append(f"cell {i} ends in {output.ename}")
            if output.get("name") == "stderr":
                found.append(f"cell {i} writes to stderr: {output.text[:80]}")
            if LIVE in output.get("data", {}):
                found.append(f"cell {i} holds a live widget without its state")
            if any(place in str(output) for place in places) or re.search(r"(?<![\w.])/(home|Users)/\w+/", str(output)):
                found.append(f"cell {i} shows a path of the machine that made it")
    return found


def without_still(notebook: NotebookNode) -> list[int]:
    """Positions of cells with a figure that has no still picture, for places that run no scripts."""
    shown = [(i, output.get("data", {})) for i, cell in enumerate(notebook.cells) for output in cell.get("outputs", [])]
    return [i for i, data in shown if FIGURE in data and "image/png" not in data]


def check(source: Path) -> list[str]:
    """Every reason why a notebook cannot be committed as it is, one sentence each; none: it can.

    The pair must agree, the outputs must be of this text and these data, clean and whole, and the file not too large.
    """
    path = source.with_suffix(".ipynb")
    again = f"run: python -m apnb.reading execute {source.name}"
    if not path.exists():
        return [f"{path.name} is missing; {again}"]
    notebook = read(path)
    found = [f"{path.name}: {problem}" for problem in problems(notebook)]
    if cells := drifted(source):
        found.append(f"{path.name} and {source.name} differ in cells {', '.join(map(str, cells))}; {again}")
    elif notebook.metadata.get("apnb", {}).get("text") != digest(source):
        found.append(f"the outputs of {path.name} are of another text or of other data; {again}")
    found += [f"{path.name}: the figure of cell {i} has no still picture; {again}" for i in without_still(notebook)]
    if path.stat().st_size > LIMIT:
        found.append(
            f"{path.name} has {path.stat().st_size / 1e6:.2f} MB, more than {LIMIT / 1e6:g}: draw fewer or lighter figures"
        )
    return found
