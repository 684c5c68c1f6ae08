"""What all tests share: one thread, a store of their own, and properties whose examples are the same at every run."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile(
    "apnb", deadline=None, derandomize=True, database=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("apnb")


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    """Runs of a test are stored in a folder of its own."""
    monkeypatch.setenv("APNB_HOME", str(tmp_path / "home"))


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run the command line in this process: (exit status, standard output, standard error)."""
    from apnb.__main__ import main

    path = list(sys.path)

    def run(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["apnb", *map(str, argv)])
        status = main()
        out, err = capsys.readouterr()
        return status, out, err

    yield run
    sys.path[:] = path
