"""Work on the notebook series.

python -m apnb.reading execute [NN ...]   run notebooks from a clean kernel and write them (default: all)
python -m apnb.reading check              are pairs in sync, outputs fresh, whole and clean, and stamped?
python -m apnb.reading stamp              write the address of pyproject.toml into Colab cells, links and badges
python -m apnb.reading results [NAME ...] compute the stored runs that the notebooks read (data/results) again
python -m apnb.reading site [--out DIR]   the series as static pages
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from apnb.errors import Invalid
from apnb.paths import shipped
from apnb.reading import series


def chosen(names: list[str]) -> list[Path]:
    """Texts by number, name or path; all without names."""
    texts = series.sources(root() / "notebooks")
    found = [next((t for t in texts if Path(n).stem in (t.stem, t.stem[:2])), None) for n in names]
    if None in found:
        raise Invalid(f"there is no notebook {names[found.index(None)]!r}; there are {', '.join(t.stem for t in texts)}")
    return found or texts


def execute(given: argparse.Namespace) -> int:
    for done in series.executed_all(chosen(given.names), given.jobs):
        size = done.write().stat().st_size
        print(
            f"{done.source.stem:28} {done.seconds:6.1f} s  peak {done.peak / 1e6:5.0f} MB  file {size / 1e3:5.0f} kB", flush=True
        )
    return 0


def check(given: argparse.Namespace) -> int:
    from apnb.reading import stamp

    texts = chosen(given.names)
    found = [problem for source in texts for problem in series.check(source)] + stamp.stale(root())
    if not given.names:
        found += [
            f"{name} has no text; delete it, or write {Path(name).stem}.py" for name in series.orphans(root() / "notebooks")
        ]
    print("\n".join(found) or "all notebooks are in sync, fresh, whole, clean and stamped")
    return 1 if found else 0


def stamp(given: argparse.Namespace) -> int:
    from apnb.reading import stamp

    changed = stamp.stamp(root())
    print("\n".join(f"stamped {path.relative_to(root())}" for path in changed) or "everything was stamped already")
    return 0


def results(given: argparse.Namespace) -> int:
    from apnb import results

    place = root() / "out" / "results"  # what an interruption leaves; gone when all is done, so that the next time computes anew
    for name in given.names or results.NAMES:
        print(f"{name}: {results.make(name, workers=given.jobs, store=place, progress=_progress)} runs")
    shutil.rmtree(place)
    return 0


def _progress(done: int, total: int, recipe, problem: str) -> None:
    print(
        f"[{done:3}/{total}] {recipe.label}, {recipe.sparsity:.0%}{f': {problem}' if problem else ''}",
        file=sys.stderr,
        flush=True,
    )


def site(given: argparse.Namespace) -> int:
    from apnb.reading import site

    print(site.build([text.with_suffix(".ipynb") for text in series.sources()], given.out))
    return 0


def root() -> Path:
    """The checkout that holds the notebooks.

    Raises:
        Invalid: the package was installed without one.
    """
    place = shipped("notebooks").parent
    if not (place / "pyproject.toml").exists():
        raise Invalid(
            "this works on a checkout of the project, and the package was installed without one; clone it and run it there"
        )
    return place


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m apnb.reading", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    for action in (execute, check, stamp, results, site):
        command = commands.add_parser(action.__name__)
        command.set_defaults(action=action)
        if action in (execute, check, results):
            command.add_argument("names", nargs="*")
        if action in (execute, results):
            command.add_argument("--jobs", type=int, default=2, help="how many at a time, one core each (default 2)")
        if action is site:
            command.add_argument("--out", type=Path, default=Path("site"))
    given = parser.parse_args(argv)
    try:
        return given.action(given)
    except Invalid as error:
        told = str(error)
    except ImportError as error:
        told = f"{error.name} is not installed; install what this needs with: pip install -e '.[lab,image,site]'"
    except KeyboardInterrupt:
        print("apnb: stopped; what was finished is written, and nothing is half-written", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:  # a folder that cannot be written, a notebook that is no JSON
        told = f"{type(error).__name__}: {error}"
    print(f"apnb: {told}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
