"""A JupyterLab as ``apnb lab`` starts it, with folders of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKEN = "a-token-of-the-tests"


@dataclass
class Server:
    """A running JupyterLab: where it answers, the folder it shows, its process, and after how many seconds it answered."""

    url: str
    folder: Path
    process: subprocess.Popen
    seconds: float = 0.0

    def ask(self, path: str, method: str = "GET") -> Any:
        """The answer of ``/api/path``."""
        request = urllib.request.Request(f"{self.url}/api/{path}", method=method, headers={"Authorization": f"token {TOKEN}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or "null")

    def end_sessions(self) -> None:
        """End every kernel; the next page starts one of its own."""
        for session in self.ask("sessions"):
            self.ask(f"sessions/{session['id']}", "DELETE")

    def write(self, name: str, cells: Sequence[str]) -> str:
        """Put a notebook with these code cells into the folder; returns its name."""
        import nbformat

        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
        notebook.metadata["kernelspec"] = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
        nbformat.write(notebook, self.folder / name)
        return name


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def jupyterlab(place: Path) -> Iterator[Server]:
    """Start ``apnb lab --no-browser`` on a copy of the notebooks, everything it writes inside ``place``; stop it at the end.

    Raises:
        RuntimeError: it ended, or did not answer within two minutes; the end of its log is in the message.
    """
    port, folder, log = _free_port(), place / "notebooks", place / "server.log"
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("JUPYTER")},
        **{f"JUPYTER_{kind}_DIR": str(place / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")},
        "JUPYTER_TOKEN": TOKEN, "APNB_HOME": str(place / "home"), "IPYTHONDIR": str(place / "ipython"),
    }  # fmt: skip
    command = [sys.executable, "-m", "apnb", "lab", "--folder", str(folder), "--port", str(port), "--no-browser"]
    began = time.monotonic()
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    server = Server(f"http://127.0.0.1:{port}", folder, process)
    try:
        while not server.seconds:
            try:
                server.ask("status")
                server.seconds = time.monotonic() - began
            except OSError:
                if process.poll() is not None or time.monotonic() - began > 120:
                    raise RuntimeError(f"JupyterLab does not answer:\n{log.read_text()[-2000:]}") from None
                time.sleep(0.05)
        yield server
        server.end_sessions()
    finally:
        process.terminate()
        process.wait(60)
