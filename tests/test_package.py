"""What an installed package promises: quick imports, data in the wheel, arrows that point one way."""

import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "pandas", "plotly", "ipywidgets", "sklearn", "optuna", "pydantic", "typer", "numpy")


def python(code: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)


@pytest.mark.parametrize(
    "statement", ["import apnb", "import apnb; apnb.taxonomy.methods(); apnb.grid(); apnb.Recipe(pipeline='after')"]
)
def test_importing_the_package_and_asking_the_survey_loads_nothing_heavy(statement):
    done = python(f"import sys\n{statement}\nprint([m for m in {HEAVY} if m in sys.modules])", cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_public_name_can_be_had():
    done = python("import apnb\nfor name in apnb.__all__: getattr(apnb, name)\nprint('ok')", cwd=ROOT)
    assert done.stdout.strip() == "ok", done.stderr


ALLOWED = {
    "errors": set(), "paths": {"errors"}, "events": set(), "taxonomy": {"errors", "paths"}, "masks": {"errors", "networks"},
    "chance": set(), "networks": {"chance", "errors"}, "datasets": {"chance", "errors", "paths"}, "mechanisms": {"chance", "masks"},
    "attacks": {"attacks", "chance", "errors"}, "copies": {"devices", "errors", "networks"},
    "verdicts": {"attacks", "copies", "errors", "events"}, "diagnostics": {"attacks", "chance", "copies", "errors"},
    "curves": {"errors", "pickles", "store", "verdicts"}, "pickles": {"errors"}, "weights": {"errors", "pickles"},
    "benchmark": {"errors", "store", "sweeps", "taxonomy", "verdicts"},
    "cards": {"errors", "presets", "recipes", "taxonomy"}, "contribution": {"benchmark", "errors", "store", "taxonomy", "__version__"},
    "costs": {"errors", "masks", "networks"},
    "scores": {"errors", "masks", "pipelines", "recipes", "runner", "store", "training"},
    "results": {"errors", "masks", "paths", "recipes", "store", "sweeps"},
    "choices": {"errors", "presets", "recipes", "taxonomy"},
    "estimate": {
        "attacks", "chance", "copies", "datasets", "errors", "evaluation", "mechanisms", "methods", "networks", "objectives", "pipelines",
        "recipes", "runner", "store", "training",
    },
    "layouts": {"chance", "errors", "masks", "networks"}, "downloads": {"errors", "store"},
    "checkpoints": {
        "curves", "downloads", "errors", "layouts", "masks", "networks", "presets", "store", "taxonomy", "weights",
    },
    "report": {"errors", "evaluation", "plots"},
    "objectives": {"attacks", "errors", "mechanisms"}, "training": {"errors", "events", "mechanisms", "objectives"},
    "criteria": {"chance", "criteria", "errors", "masks", "mechanisms", "recipes"},
    "recipes": {"errors", "presets", "taxonomy"}, "presets": set(),
    "evaluation": {
        "attacks", "chance", "copies", "curves", "datasets", "devices", "diagnostics", "errors", "events", "networks", "store", "verdicts",
    },
    "devices": {"errors"}, "store": {"errors", "recipes"},
    "methods": {
        "attacks", "chance", "copies", "errors", "events", "masks", "mechanisms", "networks", "objectives", "pipelines", "runner",
        "training",
    },
    "pipelines": {"criteria", "events", "masks", "mechanisms", "training", "runner"},
    "runner": {
        "attacks", "chance", "copies", "datasets", "devices", "errors", "events", "masks", "mechanisms", "networks", "objectives",
        "recipes", "store", "training", "__version__",
    },
}  # fmt: skip


@pytest.mark.parametrize("module", ALLOWED)
def test_arrows_point_one_way(module):
    files = (ROOT / "apnb" / module).glob("*.py") if (ROOT / "apnb" / module).is_dir() else [ROOT / "apnb" / f"{module}.py"]
    used = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "apnb":
                parts = node.module.split(".")
                used |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 1:
                used |= {node.module} if node.module else {a.name for a in node.names}
    assert used <= ALLOWED[module], f"{module} must not know {used - ALLOWED[module]}"


def test_no_method_is_named_in_the_loop_or_the_interface():
    names = {m["key"] for m in json.loads((ROOT / "data" / "taxonomy.json").read_text(encoding="utf-8"))["methods"]}
    tree = ast.parse((ROOT / "apnb" / "training.py").read_text(encoding="utf-8"))
    words = {n.id.lower() for n in ast.walk(tree) if isinstance(n, ast.Name)} | {
        n.value.lower() for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str) and " " not in n.value
    }
    assert not names & words


@pytest.mark.slow
def test_the_wheel_installed_elsewhere_has_data_and_notebooks(tmp_path):
    build = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "apnb/data/taxonomy.json",
        "apnb/data/leaderboard.csv",
        "apnb/data/networks.csv",
        "apnb/notebooks/00_start_here.ipynb",
        "apnb/notebooks/lab.png",
        "apnb/data/results/digits/methods.csv",
        "apnb/reading/pages/base.html",
    } <= names
    assert all(
        re.fullmatch(r"apnb/notebooks/(\d\d_\w+\.(py|ipynb)|lab\.png)", n) for n in names if n.startswith("apnb/notebooks/")
    )
    target = tmp_path / "site"
    install = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)],
        capture_output=True,
        text=True,
    )
    assert install.returncode == 0, install.stderr[-2000:]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\nimport apnb, apnb.paths\n"
        "assert apnb.__file__.startswith(sys.argv[1]), apnb.__file__\n"
        "assert str(apnb.paths.data_path('taxonomy.json')).startswith(sys.argv[1])\n"
        "from apnb.cli import notebooks\n"
        "print(len(apnb.taxonomy.methods()), len(apnb.taxonomy.leaderboard()), len(apnb.taxonomy.networks()), notebooks(None).name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(target)], capture_output=True, text=True, cwd=elsewhere, env={**os.environ}
    )
    assert done.stdout.split() == ["26", "154", "37", "apnb-notebooks"], done.stderr[-2000:]
    assert (elsewhere / "apnb-notebooks" / "00_start_here.ipynb").exists()
