"""Runs on disk: stages that runs share, runs with their evaluations, one table of all. Everything is written atomically.

::

    stages/KEY.stage  network, returned value and history of one finished stage; runs with the same beginning share it
    stages/KEY.part   snapshot of a stage under way, from which it goes on after an interruption
    runs/KEY/         summary.json, network and masks, history.jsonl, evaluations/KEY.json and .tensors

A file of tensors is data: safetensors where it is installed, else torch's own format read with ``weights_only=True``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apnb.errors import Invalid
from apnb.recipes import Recipe

FORMAT = 2
MAX_IMPORT = 8 << 30
INSIDE = "runs.zip"
"""The export inside of what the lab gives to take away."""


class Damaged(Invalid):
    """A file of ours that is cut short or is something else: what it held can only be computed again."""


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of plain data, 24 hex digits of it: a key."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


# --- trees of tensors and plain values as one file -----------------------------------------------------------------------------


def _encode(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors.append(value.detach().cpu().contiguous().clone())
        return {"t": len(tensors) - 1}
    if isinstance(value, Mapping):
        return {"d": [[k, _encode(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [_encode(v, tensors) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"cannot store a {type(value).__name__}")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        return tensors[str(value["t"])] if "t" in value else {k: _decode(v, tensors) for k, v in value["d"]}
    if isinstance(value, list):
        return [_decode(v, tensors) for v in value]
    return value


def save_tree(path: Path, tree: Any) -> None:
    """Write nested dicts and lists of tensors, numbers, strings and None as one file, atomically."""
    tensors: list[Tensor] = []
    text = json.dumps(_encode(tree, tensors))
    named = {str(i): t for i, t in enumerate(tensors)}

    def write(tmp: Path) -> None:
        try:
            from safetensors.torch import save_file
        except ImportError:
            torch.save({"tree": text, "tensors": named}, tmp)
        else:
            save_file(named, tmp, metadata={"tree": text})

    atomic(path, write)


def load_tree(path: Path, device: torch.device | str = "cpu") -> Any:
    """What `save_tree` wrote; never executes anything.

    Raises:
        Damaged: the file is missing, cut short or something else.
        Invalid: the file may be whole, but cannot be read here (no permission, a package is missing).
    """
    try:
        with open(path, "rb") as f:
            zipped = f.read(2) == b"PK"
        if zipped:
            stored = torch.load(path, map_location="cpu", weights_only=True)
            text, tensors = stored["tree"], stored["tensors"]
        else:
            from safetensors import safe_open

            with safe_open(path, framework="pt") as f:
                text, tensors = f.metadata()["tree"], {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        tree = json.loads(text)
    except ImportError:
        raise Invalid(f"{path} is a safetensors file; install the package safetensors to read it") from None
    except FileNotFoundError:
        raise Damaged(f"{path} cannot be read: it is missing") from None
    except (PermissionError, MemoryError) as error:
        raise Invalid(f"{path} cannot be read: {error}") from None
    except OSError as error:
        if error.errno is not None:
            raise Invalid(f"{path} cannot be read: {error.strerror}") from None
        raise Damaged(f"{path} cannot be read ({error}); it is damaged or was not written by apnb") from None
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise Damaged(
            f"{path} cannot be read ({type(error).__name__}: {reason}); it is damaged or was not written by apnb"
        ) from None
    return _decode(tree, {k: t.to(device) for k, t in tensors.items()})


def atomic(path: Path, write: Any) -> None:
    """Write beside ``path``, flush to disk, rename: a reader sees the old file or the new one, never half of one."""
    handle, name = -1, ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix="writing-")
        os.close(handle)
        write(Path(name))
        with open(name, "rb+") as f:
            os.fsync(f.fileno())
        os.chmod(name, 0o666 & ~_umask())  # a store may be shared; mkstemp makes files for one person only
        os.replace(name, path)
    except BaseException as error:
        if name:
            with contextlib.suppress(OSError):
                os.unlink(name)
        _explain(error, path)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _explain(error: BaseException, path: Path) -> None:
    """Turn an operating system's refusal to write into a sentence; safetensors wraps it in an error of its own."""
    text = str(error)
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    wrapped = type(error).__name__ == "SafetensorError" and "os error" in text.lower()
    if full or "No space left" in text or "File too large" in text:
        raise Invalid(
            f"cannot write {path}: no space left; free some, or choose another place (for the store: --store or APNB_HOME)"
        ) from None
    if isinstance(error, OSError) or wrapped:
        reason = getattr(error, "strerror", None) or text
        raise Invalid(f"cannot write {path}: {reason}; choose a writable place (for the store: --store or APNB_HOME)") from None


def write_json(path: Path, value: Any) -> None:
    """JSON, atomically."""
    atomic(path, lambda tmp: tmp.write_text(json.dumps(value, indent=1, default=str) + "\n", encoding="utf-8"))


def read_json(path: Path) -> Any:
    """JSON of a file that we wrote; Invalid if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise Damaged(f"{path} cannot be read ({type(error).__name__}); it is damaged") from None
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror or error}") from None


def default_home() -> Path:
    """``APNB_HOME`` if set, else the user's data folder."""
    if home := os.environ.get("APNB_HOME"):
        return Path(home).expanduser()
    try:
        from platformdirs import user_data_path
    except ImportError:
        return Path.home() / ".apnb"
    return user_data_path("apnb")


class Store:
    """A folder of stages and runs. Safe for several processes at once; a network file system works where it can lock files."""

    def __init__(self, root: str | Path | None = None):
        if root is not None and not isinstance(root, str | Path):
            raise Invalid(f"a store is a folder, given as a path; got {type(root).__name__}")
        self.root = Path(root).expanduser() if root is not None else default_home()
        self.stages, self.runs = self.root / "stages", self.root / "runs"

    def ready(self) -> Store:
        """Make sure that the store can be written to.

        Raises:
            Invalid: it cannot; one sentence with the reason.
        """
        probe = self.stages / ".probe"
        atomic(probe, lambda tmp: tmp.write_text("ok"))
        probe.unlink(missing_ok=True)
        self.runs.mkdir(parents=True, exist_ok=True)
        return self

    # --- stages ---------------------------------------------------------------------------------------------------------------

    def lock(self, key: str) -> Any:
        """A lock on a stage, freed by the system if its holder dies. ``acquire(timeout=0)`` raises TimeoutError if it is taken."""
        from filelock import FileLock

        return FileLock(self.stages / f"{key}.lock", thread_local=False)

    def stage(self, key: str, device: torch.device | str = "cpu") -> dict | None:
        """A finished stage: {"net", "value", "rows", "seconds"}; None if it is not there. A damaged one is removed."""
        return self._read(self.stages / f"{key}.stage", device)

    def write_stage(self, key: str, tree: dict) -> None:
        """Store a finished stage and drop its snapshot."""
        save_tree(self.stages / f"{key}.stage", tree)
        (self.stages / f"{key}.part").unlink(missing_ok=True)

    def partial(self, key: str, device: torch.device | str = "cpu") -> dict | None:
        """The last snapshot of an unfinished stage: {"snapshot", "rows", "seconds"}; None if there is none or it is damaged."""
        return self._read(self.stages / f"{key}.part", device)

    @staticmethod
    def _read(path: Path, device: torch.device | str) -> dict | None:
        if not path.exists():
            return None
        try:
            return load_tree(path, device)
        except Damaged:
            path.unlink(missing_ok=True)
            return None

    def write_partial(self, key: str, tree: dict) -> None:
        """Store a snapshot, replacing the one before."""
        save_tree(self.stages / f"{key}.part", tree)

    # --- runs -----------------------------------------------------------------------------------------------------------------

    def run_folder(self, key: str) -> Path:
        """Where a run lies."""
        return self.runs / key

    def write_run(self, key: str, summary: dict, network: dict, rows: list[dict]) -> None:
        """Store a finished run: network and history first, ``summary.json`` last, which makes it visible."""
        folder = self.run_folder(key)
        save_tree(folder / "network.tensors", network)
        atomic(folder / "history.jsonl", lambda t: t.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8"))
        write_json(folder / "summary.json", summary)

    def summary(self, key: str) -> dict:
        """What is known of a run without its tensors.

        Raises:
            Damaged: its folder is damaged. Invalid: no such run (the nearest keys are offered), or one of another version.
        """
        folder = self.find(key)
        remedy = f"remove it with 'apnb runs rm {folder.name}'"
        try:
            summary = read_json(folder / "summary.json")
            version = summary["format"]
            if version == FORMAT:
                row_of(summary, {})
                Recipe.from_dict(summary["recipe"])
        except Damaged as error:
            raise Damaged(f"run {folder.name} is damaged: {error}; {remedy}") from None
        except (KeyError, TypeError, AttributeError, Invalid) as error:
            raise Damaged(f"run {folder.name} is damaged: summary.json lacks or garbles {error}; {remedy}") from None
        if version != FORMAT:
            raise Invalid(
                f"run {folder.name} has format {version}, this version of apnb reads {FORMAT}; use the one that wrote it"
            )
        return summary

    def find(self, key: str) -> Path:
        """A run's folder by its key or an unambiguous beginning of it."""
        keys = self.keys()
        matches = [k for k in keys if k.startswith(key)] if key else []
        if len(matches) == 1 or key in matches:
            return self.runs / (key if key in matches else matches[0])
        if matches:
            raise Invalid(
                f"{key!r} begins {len(matches)} runs ({', '.join(m[:12] for m in matches[:4])}, ...); give more of the key"
            )
        raise Invalid(f"no run {key!r} in {self.root}; 'apnb runs list' shows the {len(keys)} there are")

    def keys(self) -> list[str]:
        """Keys of all finished runs, oldest first."""
        return [p.parent.name for p in _by_age(self.runs.glob("*/summary.json"))] if self.runs.is_dir() else []

    def evaluations(self, key: str) -> list[dict]:
        """Summaries of a run's evaluations, newest last; damaged ones are left out, they can be made again."""
        found = []
        for path in _by_age((self.run_folder(key) / "evaluations").glob("*.json")):
            with contextlib.suppress(Damaged):
                summary = read_json(path)
                if (
                    isinstance(summary, dict)
                    and {"key", "clean", "robust", "low", "high", "n", "attacks", "eps"} <= summary.keys()
                ):
                    found.append(summary)
        return found

    def table(self) -> tuple[list[dict], list[str]]:
        """One flat row for each evaluation of each run (a run without any has one row), and a sentence for each damaged run."""
        rows, damaged = [], []
        for key in self.keys():
            try:
                summary = self.summary(key)
                rows += [row_of(summary, e) for e in self.evaluations(key) or [{}]]
            except Invalid as error:
                damaged.append(str(error))
        return rows, damaged

    def history(self, key: str) -> list[dict]:
        """The rows of a run's epochs and cuts."""
        try:
            lines = (self.run_folder(key) / "history.jsonl").read_text(encoding="utf-8").splitlines()
            return [json.loads(line) for line in lines]
        except (FileNotFoundError, ValueError):
            raise Damaged(f"run {key} is damaged: history.jsonl cannot be read; remove it with 'apnb runs rm {key}'") from None

    def clean(self) -> int:
        """Remove what can be computed again: stages, snapshots, locks, remains of killed writers. Runs stay. Returns bytes freed.

        Not while something runs on this store: it would lose its snapshots.
        """
        freed = 0
        for path in [*self.stages.glob("*"), *self.root.rglob("writing-*")]:
            with contextlib.suppress(OSError):
                size = path.stat().st_size
                path.unlink()
                freed += size
        return freed

    def locate(self, key: str) -> str:
        """The whole key of a run, a damaged one (of any kind) included."""
        folders = [p.name for p in self.runs.iterdir() if p.is_dir()] if self.runs.is_dir() else []
        return key if key in folders else self.find(key).name

    def remove(self, key: str) -> None:
        """Remove a run with its evaluations. Stages stay: other runs may share them."""
        try:
            shutil.rmtree(self.runs / self.locate(key))
        except OSError as error:
            raise Invalid(f"cannot remove run {key} from {self.root}: {error.strerror or error}") from None

    # --- taking runs elsewhere ---------------------------------------------------------------------------------------------------

    def export(self, path: str | Path, keys: list[str] | None = None) -> int:
        """Write runs as one ZIP (all of them by default); returns how many."""
        chosen = list(dict.fromkeys(self.find(k).name for k in keys)) if keys else self.keys()
        if not chosen:
            raise Invalid(f"there are no runs in {self.root} to export; 'apnb demo' makes some")

        def write(tmp: Path) -> None:
            with zipfile.ZipFile(tmp, "w", zipfile.ZIP_DEFLATED) as z:
                for key in chosen:
                    for file in sorted((self.runs / key).rglob("*")):
                        if file.is_file() and not file.name.startswith("writing-"):
                            z.write(file, f"runs/{key}/{file.relative_to(self.runs / key).as_posix()}")

        atomic(Path(path), write)
        return len(chosen)

    def import_(self, path: str | Path) -> list[str]:
        """Take runs from a ZIP that `export` wrote, or from the one that the lab gives to take away, which holds such a ZIP.

        Runs that are here already stay as they are. Returns the new keys.

        Raises:
            Invalid: no such file, no ZIP, or entries that an export does not have (paths outside, absurd sizes, damaged runs).
        """
        path = Path(path)
        self.ready()
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise Invalid(f"no file {path}; give the ZIP that 'apnb runs export' wrote") from None
        except OSError as error:
            raise Invalid(f"{path} cannot be read ({error.strerror}); give the ZIP that 'apnb runs export' wrote") from None
        try:
            with file, zipfile.ZipFile(file) as z:
                if INSIDE not in z.namelist():
                    return self._unpack(z, path)
                _fits(z, path)
                with z.open(INSIDE) as within, zipfile.ZipFile(within) as runs:
                    return self._unpack(runs, path)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise Invalid(f"{path} is no readable ZIP ({error}); nothing was imported") from None
        except OSError as error:
            _explain(error, self.root)
            raise

    def _unpack(self, z: zipfile.ZipFile, path: Path) -> list[str]:
        _fits(z, path)
        entries = [i for i in z.infolist() if not i.is_dir()]
        allowed = {"summary.json", "network.tensors", "history.jsonl"}
        for i in entries:
            parts = i.filename.split("/")
            evaluation = len(parts) == 4 and parts[2] == "evaluations" and Path(parts[3]).suffix in (".json", ".tensors")
            plain = len(parts) == 3 and parts[2] in allowed
            safe = all(p not in ("", ".", "..") and "\\" not in p and ":" not in p for p in parts)
            if not (safe and parts[0] == "runs" and (plain or evaluation)):
                raise Invalid(f"{path} is no export of runs: it holds {i.filename!r}; nothing was imported")
        with tempfile.TemporaryDirectory(dir=self.root, prefix=".import-") as tmp:
            z.extractall(tmp, entries)
            return self._adopt(Path(tmp))

    def _adopt(self, unpacked: Path) -> list[str]:
        other = Store(unpacked)
        found = other.keys()
        for key in found:
            other.summary(key)
            other.history(key)
            load_tree(other.run_folder(key) / "network.tensors")
            for evaluation in other.evaluations(key):
                load_tree(other.run_folder(key) / "evaluations" / f"{evaluation['key']}.tensors")
        new = [k for k in found if not self.run_folder(k).exists()]
        for key in new:
            os.replace(other.run_folder(key), self.run_folder(key))
        return new


def _fits(z: zipfile.ZipFile, path: Path) -> None:
    if sum(i.file_size for i in z.infolist()) > MAX_IMPORT:
        raise Invalid(f"{path} unpacks to more than {MAX_IMPORT >> 30} GiB; no export is that large, nothing was imported")


ROW = (
    "key", "label", "pipeline", "schedule", "structure", "locality", "criterion", "variant", "seed", "budget", "network", "data",
    "train_eps", "sparsity", "units", "weights", "parameters", "collapsed", "seconds",
    "clean", "robust", "low", "high", "n", "attacks", "eps", "subset", "attack_seconds",
)  # fmt: skip
"""Columns of the table: what was run, what was obtained (shares in [0, 1]), how it was attacked and what stood, seconds."""


def _by_age(paths: Iterable[Path]) -> list[Path]:
    """Oldest first; files that are removed meanwhile are left out."""
    aged = []
    for path in paths:
        with contextlib.suppress(OSError):
            aged.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(aged)]


def row_of(summary: Mapping, evaluation: Mapping) -> dict:
    """A run's summary and one of its evaluations as one flat row; accuracies and shares in [0, 1], seconds."""
    recipe, sparsity = summary["recipe"], summary["sparsity"]
    row = {
        "key": summary["key"],
        "label": summary["label"],
        **{k: recipe[k] for k in ("pipeline", "schedule", "structure", "locality", "criterion", "variant", "seed")},
        "budget": summary["budget"],
        "network": summary["network"],
        "data": summary["data"],
        "train_eps": summary["eps"],
        "sparsity": sparsity["asked"],
        **{k: sparsity[k] for k in ("units", "weights", "parameters")},
        "collapsed": len(sparsity["collapsed"]) + len(sparsity["empty"]),
        "seconds": summary["seconds"],
    }
    fields = ("clean", "robust", "low", "high", "n", "attacks", "eps", "subset")
    row |= {k: evaluation.get(k) for k in fields}
    row["attack_seconds"] = evaluation.get("seconds")
    return row
