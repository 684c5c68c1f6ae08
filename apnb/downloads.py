"""Published files, each downloaded once, by its Google Drive id or from a mirror, into a folder that knows what it holds.

::

    NAME                   a file as it was when first seen
    seen.json              {NAME: {"size", "sha256", "source"}}, written at first sight; what differs from it is refused
    NAME.new????????.part  what an interrupted download brought; the next one goes on from it, also in another process
    NAME.lock              held while NAME is downloaded: a second process waits, then finds it there

The transport is gdown, which knows Google Drive's confirmation and quota pages.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from apnb.errors import Invalid
from apnb.store import Damaged, atomic, read_json, write_json

SEEN = "seen.json"
TIMEOUT = 30.0  # seconds without a byte
RETRIES = 4  # of a broken connection, after up to 1, 2, 4, 8 seconds
OVERLAP = 1 << 20  # bytes of an interrupted download that travel again, to be compared; no less than this is kept

Progress = Callable[[int, int | None], None]


def fetch(name: str, source: str, folder: str | Path, *, page: str, progress: Progress | None = None) -> Path:
    """The file ``name`` in ``folder``, downloaded at the first call; later calls make no request.

    Args:
        source: a Google Drive id, or the http(s) address of a mirror.
        page: the address for a browser, named in refusals together with the place where the file is to be put by hand.
        progress: told after each block the bytes so far and of all (None: not announced); what it raises ends the call.

    Raises:
        Invalid: nothing came, or a page instead of the file, or not what was first seen; no space; a folder that cannot be written.
            Nothing unfinished or refused ever lies under the file's own name, except what was put there by hand.
    """
    if name in ("", ".", "..", SEEN) or any(c in name for c in "/\\:\0"):
        raise Invalid(f"a downloaded file is named without a folder, and not {SEEN}; got {name!r}")
    mirror = re.fullmatch(r"https?://\S+", source)
    if not mirror and not re.fullmatch(r"[-\w]{10,}", source):
        raise Invalid(f"{name} comes from a Google Drive id or an address beginning with http:// or https://; got {source!r}")
    target = Path(folder).expanduser().absolute() / name
    by_hand = f"get it with a browser from {page} and put it at {target}"
    try:
        if _unchanged(target):  # asked before the lock: a folder that only others can write serves what it has
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target):
            if _unchanged(target):
                return target
            if os.path.lexists(target):
                if wrong := _wrong(target):
                    raise Invalid(f"{target} {wrong}: remove it and download it again, or {by_hand}")
                _record(target, _measured(target) | {"source": "put there by hand"})
                return target
            new = target.with_name(f"{name}.new")
            if not new.exists():
                _download(new, {"url" if mirror else "id": source}, by_hand, progress)
            _place(new, target, source, by_hand)
            return target
    except OSError as error:
        refusal = f"{target} cannot be read or written ({error.strerror or error}): check what {target.parent} is"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            refusal = f"no space left in {target.parent} for {name}: free some and repeat the call, which goes on from what came"
        raise Invalid(f"{refusal}, or choose another folder") from None


def _place(new: Path, target: Path, source: str, by_hand: str) -> None:
    """Give a complete download its name, if it is such a file and, where one was seen before, the same; else remove it."""
    known, found, refusal = remembered(target.parent).get(target.name), _measured(new), None
    if wrong := _wrong(new):
        refusal = f"{wrong}: {by_hand}, or try again later"
    elif known and known != known | found:
        refusal = (
            f"has {found['size']} bytes and SHA-256 {found['sha256'][:16]}..., first seen were {known['size']} and"
            f" {known['sha256'][:16]}...: if you believe the new one, take {target.name} out of {target.with_name(SEEN)} and"
            f" download again, else {by_hand}"
        )
    if refusal:
        new.unlink()
        raise Invalid(f"what {source} gives for {target.name} {refusal}")
    atomic(target, lambda tmp: os.replace(new, tmp))
    if not known:
        _record(target, found | {"source": source})


# --- what a folder holds --------------------------------------------------------------------------------------------------------


def remembered(folder: Path) -> dict[str, dict[str, Any]]:
    """``seen.json`` of a folder: {name: {"size", "sha256", "source"}}; empty if there is none.

    Raises:
        Invalid: it is damaged or cannot be read.
    """
    path = folder / SEEN
    if not path.exists():
        return {}
    with contextlib.suppress(Damaged, AttributeError, KeyError, TypeError):
        seen = read_json(path)
        if all(isinstance(e["size"], int) and isinstance(e["sha256"], str) for e in seen.values()):
            return seen
    raise Invalid(f"{path} is damaged: remove it, and the files beside it are recorded again as they are now")


def _record(target: Path, entry: dict[str, Any]) -> None:
    seen = target.with_name(SEEN)
    with _lock(seen):
        write_json(seen, remembered(seen.parent) | {target.name: entry})


def _lock(path: Path) -> Any:
    from filelock import FileLock

    return FileLock(path.with_name(f"{path.name}.lock"))


def _measured(path: Path) -> dict[str, Any]:
    with open(path, "rb") as f:
        return {"size": os.fstat(f.fileno()).st_size, "sha256": hashlib.file_digest(f, "sha256").hexdigest()}


def _unchanged(target: Path) -> bool:
    """Whether a file is there and recorded; Invalid if it is not as recorded."""
    known = remembered(target.parent).get(target.name)
    if known is None or not target.exists():
        return False
    found = _measured(target)
    if known != known | found:
        what = f"{known['size']} bytes then, {found['size']} now" if known["size"] != found["size"] else "another SHA-256"
        raise Invalid(
            f"{target} changed since it was first seen ({what}): remove it to download it again, or, if the change is yours,"
            f" take {target.name} out of {target.with_name(SEEN)}"
        )
    return True


def _wrong(path: Path) -> str | None:
    """What shows at a glance that a file is none of those published; None if nothing does. These are binary, with zero bytes."""
    with open(path, "rb") as f:
        head = f.read(4096)
    if not head:
        return "is empty"
    text = b"\0" not in head and head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"<", b"{", b"[")
    return "is a web page or an error message instead of the file" if text else None


# --- one download ---------------------------------------------------------------------------------------------------------------


def _download(new: Path, source: dict[str, str], by_hand: str, progress: Progress | None) -> None:
    """Complete ``new``, going on from what an earlier call left if the source is still the same, else from the beginning."""
    try:
        import gdown
    except ImportError:
        raise Invalid(f"downloading needs gdown: pip install gdown, or {by_hand}") from None

    def watch(done: int, total: int | None) -> None:
        free = shutil.disk_usage(new.parent).free
        if total is not None and total - done > free:
            raise Invalid(f"no space left in {new.parent} for {new.stem}: {total - done} bytes to come, {free} free; free some")
        if progress is not None:
            progress(done, total)

    options = {"quiet": True, "use_cookies": False, "resume": True, "timeout": TIMEOUT, "retries": RETRIES}
    reason = None
    for _ in range(2):
        with _compared(new):
            try:
                gdown.download(**source, output=str(new), progress=watch, **options)
            except (gdown.DownloadError, OSError) as error:
                reason = _reason(error)
        if new.exists():
            return
        if reason:
            break
        for part in _parts(new):  # the source changed, or the server cannot go on from there: once more from the beginning
            part.unlink()
    kept = sum(part.stat().st_size for part in _parts(new))
    again = f"try again (the {kept} bytes that came are kept)" if kept else "try again later"
    reason = reason or "the source changes while it is read, or breaks off and cannot go on"
    raise Invalid(f"{new.stem} could not be downloaded, {reason}: {again}, or {by_hand}")


def _reason(error: Exception) -> str | None:
    """Why a transfer failed, in words; None if what the server sent does not fit the bytes that are already there."""
    import gdown
    import requests

    cause = error.__cause__ or error
    if isinstance(error, gdown.FileURLRetrievalError):  # paragraphs: a heading, the page's own words, advice
        heading, _, rest = str(error).partition("\n\n")
        return "Google Drive says: " + " ".join((rest.partition("\n\n")[0] or heading).split()).rstrip(".")
    if isinstance(cause, requests.HTTPError):
        return f"the server answers {cause.response.status_code} {cause.response.reason}"
    if isinstance(cause, requests.RequestException):
        return f"the connection failed ({type(cause).__name__})"
    if isinstance(cause, OSError):
        raise cause
    return None


def _parts(new: Path) -> list[Path]:
    """What an interrupted transfer to ``new`` left, under the name that gdown gives it."""
    return list(new.parent.glob(f"{glob.escape(new.name)}????????.part"))


@contextlib.contextmanager
def _compared(new: Path) -> Iterator[None]:
    """A transfer to ``new`` that goes on from an earlier call only if the source is still the same; else nothing is left.

    gdown makes sure of that within one call, but knows nothing of an earlier one. So the last OVERLAP bytes are taken off, to
    travel again. If they come back different, the source changed. If not, the file is the old or the new one whole, unless it
    changed before and after this megabyte and not in it, which no newly trained weights do.
    """
    start, tail = 0, b""
    for part in _parts(new):
        with open(part, "r+b") as f:
            start = max(0, f.seek(0, os.SEEK_END) - OVERLAP)
            f.seek(start)
            tail = f.read() if start else b""
            f.truncate(start)
    try:
        yield
    finally:
        for path in [new] if new.exists() else _parts(new):
            with open(path, "r+b") as f:
                f.seek(start)
                came = f.read(len(tail))
                same = came == tail if path == new else tail.startswith(came)
                if same:
                    f.write(tail[len(came) :])  # what did not come again
                size = f.seek(0, os.SEEK_END)
            if not same or (path != new and size <= OVERLAP):
                path.unlink()
