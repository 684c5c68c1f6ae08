"""Downloads against a real server on this machine that cuts, lies, changes its mind, hangs, or plays Google Drive."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from apnb import downloads
from apnb.errors import Invalid

NAME, PAGE, ID = "HARP_90.pth.tar", "https://drive.google.com/file/d/THE-ID/view", "1zUPuoU3ZJPFhWGH43xMeWxWEMUZUbMOg"
MB = 1 << 20
OLD, NEW, LONGER = (b"PK\x03\x04\0" + random.Random(i).randbytes(n * MB) for i, n in ((0, 4), (1, 4), (2, 5)))
QUOTA = '<html><p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p></html>'
SCAN = (
    '<html><form id="download-form" action="https://drive.usercontent.google.com/download" method="get">'
    f'<input type="hidden" name="id" value="{ID}"><input type="hidden" name="confirm" value="t"></form></html>'
)


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.body`` with ranges and a validator; each request first takes its faults from ``server.faults``."""

    protocol_version = "HTTP/1.1"

    def do_CONNECT(self):  # as a proxy: it is itself whatever host is asked for
        self.server.hosts.append(self.path)
        if not self.server.tls:
            return self.send_error(502)
        self.send_response(200)
        self.end_headers()
        self.close_connection = False
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", buffering=0)

    def do_GET(self):
        server, fault = self.server, self.server.faults.pop(0) if self.server.faults else {}
        body, tag = fault.get("body", server.body), fault.get("tag", server.tag)
        html = body[:1] == b"<"
        log = {"host": self.headers["Host"], "path": self.path, "range": self.headers["Range"], "sent": 0}
        server.log.append(log)
        start, status = 0, fault.get("status", 200)
        if self.headers["Range"] and not fault.get("rangeless") and self.headers["If-Range"] in (None, tag):
            start, status = int(self.headers["Range"][6:-1]), 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if tag:
            self.send_header("ETag", tag)
        self.send_header("Content-Type", "text/html; charset=utf-8" if html else "application/octet-stream")
        if not html:
            self.send_header("Content-Disposition", f'attachment; filename="{NAME}"')
        self.send_header("Set-Cookie", "a=b; Max-Age=99999")
        if fault.get("chunked"):
            self.close_connection = True
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(fault.get("announced", len(body) - start)))
        self.end_headers()
        rest = body[start : fault.get("stop", len(body))]
        for i in range(0, len(rest), 1 << 16):
            self.wfile.write(rest[i : i + (1 << 16)])
            log["sent"] += len(rest[i : i + (1 << 16)])
        if fault.get("hang"):
            server.hanging.set()
            server.released.wait(60)
        if "stop" in fault or "announced" in fault:
            self.close_connection = True

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.tag, self.faults, self.log, self.hosts, self.tls = OLD, '"1"', [], [], [], None
        self.hanging, self.released = threading.Event(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/{NAME}"

    def handle_error(self, *_):  # a client that went away
        pass


@pytest.fixture
def server(monkeypatch):
    for variable in [v for v in os.environ if v.lower().endswith("_proxy")]:
        monkeypatch.delenv(variable)
    monkeypatch.setattr(downloads, "RETRIES", 1)
    monkeypatch.setattr(downloads, "TIMEOUT", 1.0)
    server = Server()
    threading.Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True).start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def fetch(server, folder, source=None, **more):
    return downloads.fetch(NAME, source or server.url, folder, page=PAGE, **more)


def held(folder):
    """All files of a folder but locks."""
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock") if folder.exists() else []


def entry(body, source):
    return {NAME: {"size": len(body), "sha256": hashlib.sha256(body).hexdigest(), "source": source}}


def interrupted(server, folder, **fault):
    """Leave what came of OLD before the connection broke for good; its length."""
    server.faults = [{"stop": 3 * MB, **fault}, {"stop": 0}]
    with pytest.raises(Invalid, match=r"could not be downloaded, the connection failed .*bytes that came are kept"):
        fetch(server, folder)
    server.log.clear()
    (part,) = held(folder)
    assert part.endswith(".part"), "nothing half-written has the file's own name"
    return (folder / part).stat().st_size


# --- what comes ----------------------------------------------------------------------------------------------------------------


def test_a_file_is_downloaded_once_and_then_taken_without_any_request(server, folder, capfd):
    seen = []
    path = fetch(server, folder, progress=lambda done, total: seen.append((done, total)))
    assert path == folder / NAME and path.read_bytes() == OLD
    assert json.loads((folder / "seen.json").read_text()) == entry(OLD, server.url) == downloads.remembered(folder)
    assert held(folder) == [NAME, "seen.json"]
    assert path.stat().st_mode == (folder / "seen.json").stat().st_mode, "others may read it as they may read the record"
    assert seen == sorted(seen) and seen[-1] == (len(OLD), len(OLD)) and len(seen) > 4, "progress goes forward to the end"
    assert fetch(server, folder) == path and len(server.log) == 1
    assert capfd.readouterr() == ("", ""), "nothing is printed"


def test_a_cut_connection_is_resumed_and_only_the_rest_travels(server, folder):
    server.faults = [{"stop": 3 * MB}]
    seen = []
    assert fetch(server, folder, progress=lambda done, total: seen.append(done)).read_bytes() == OLD
    first, second = server.log
    start = int(second["range"].removeprefix("bytes=")[:-1])
    assert first["range"] is None and start > 2 * MB and second["sent"] == len(OLD) - start
    assert seen == sorted(seen) and seen[-1] == len(OLD)


@pytest.mark.parametrize("tag", ['"1"', None])
def test_a_later_call_goes_on_from_what_an_earlier_one_left_and_asks_for_a_megabyte_of_it_again(server, folder, tag):
    server.tag = tag
    kept = interrupted(server, folder)
    seen = []
    assert fetch(server, folder, progress=lambda done, total: seen.append(done)).read_bytes() == OLD
    assert server.log[-1]["range"] == f"bytes={kept - MB}-" and server.log[-1]["sent"] == len(OLD) - kept + MB
    assert held(folder) == [NAME, "seen.json"] and seen == sorted(seen) and seen[0] > kept - MB


@pytest.mark.parametrize("now", [NEW, LONGER, NEW[: 3 * MB + 9], NEW[: 2 * MB], OLD[: 9 * MB // 4]])
@pytest.mark.parametrize("tag", ['"2"', None])
def test_a_source_that_changed_between_two_calls_is_taken_whole_and_never_spliced(server, folder, now, tag):
    interrupted(server, folder)
    server.body, server.tag = now, tag
    assert fetch(server, folder).read_bytes() == now
    assert downloads.remembered(folder) == entry(now, server.url)


def test_a_source_that_changes_between_cut_and_retry_is_taken_whole_and_never_spliced(server, folder):
    server.faults = [{"stop": 3 * MB, "body": NEW, "tag": '"0"'}]
    assert fetch(server, folder).read_bytes() == OLD


@pytest.mark.parametrize("left_by_an_earlier_call", [False, True])
def test_a_server_that_cannot_resume_is_asked_for_the_whole_again(server, folder, left_by_an_earlier_call):
    if left_by_an_earlier_call:
        interrupted(server, folder)
        server.faults = [{"rangeless": True}] * 2
    else:
        server.faults = [{"stop": 3 * MB}, {"rangeless": True}]
    assert fetch(server, folder).read_bytes() == OLD and held(folder) == [NAME, "seen.json"]


def test_failing_again_and_again_loses_nothing_of_what_came(server, folder):
    kept = interrupted(server, folder)
    for faults in [{"status": 503}], [{}, {"stop": 0}, {"stop": 0}], [{}, {"stop": 3 * MB - 2000}, {"stop": 0}]:
        server.faults = list(faults)
        with pytest.raises(Invalid, match=f"the {kept} bytes that came are kept"):
            fetch(server, folder)
    server.faults = []
    assert fetch(server, folder).read_bytes() == OLD


# --- what is refused -----------------------------------------------------------------------------------------------------------


REFUSED = {
    "not found": ({"status": 404}, "the server answers 404 Not Found"),
    "forbidden": ({"status": 403, "body": QUOTA.encode()}, "the server answers 403 Forbidden"),
    "broken": ({"status": 500}, "the server answers 500"),
    "quota page": ({"body": QUOTA.encode()}, "is a web page or an error message"),
    "page after a byte order mark": ({"body": b"\xef\xbb\xbf\r\n <!DOCTYPE html>"}, "is a web page or an error message"),
    "JSON": ({"body": b'{"error": "rate limit"}'}, "is a web page or an error message"),
    "empty": ({"body": b""}, "is empty"),
    "less than announced": ({"announced": len(OLD) + 1, "rangeless": True}, "the connection failed|breaks off"),
    "cut before anything came": ({"stop": 0}, "the connection failed"),
    "silent": ({"stop": 0, "hang": True}, r"the connection failed \(.*"),
    "more than the disk holds": ({"announced": 10**15}, r"no space left in .*: 9999\d{11} bytes to come, \d+ free"),
}


@pytest.mark.parametrize("fault, reason", REFUSED.values(), ids=REFUSED)
def test_what_is_no_such_file_is_refused_in_one_sentence_and_leaves_nothing(server, folder, fault, reason):
    server.faults = [fault] * 9
    with pytest.raises(Invalid, match=reason) as refusal:
        fetch(server, folder)
    text = str(refusal.value)
    assert "\n" not in text and str(folder) in text and ("no space" in text or (PAGE in text and str(folder / NAME) in text))
    assert held(folder) == []


def test_offline_the_page_and_the_place_for_the_file_are_named(server, folder):
    server.shutdown()
    server.server_close()
    with pytest.raises(Invalid, match="the connection failed") as refusal:
        fetch(server, folder)
    assert f"get it with a browser from {PAGE} and put it at {folder / NAME}" in str(refusal.value)
    assert "\n" not in str(refusal.value) and held(folder) == []


def test_without_gdown_the_command_that_installs_it_is_named(server, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(Invalid, match=f"pip install gdown, or get it .*{PAGE}"):
        fetch(server, folder)


@pytest.mark.parametrize("name", ["../x.pth", "/etc/x", "a/b", "..", ".", "", "c:x", "a\\b", "a\0b", "seen.json"])
def test_a_name_that_is_no_bare_name_is_refused(server, folder, name):
    with pytest.raises(Invalid, match="named without a folder"):
        downloads.fetch(name, server.url, folder, page=PAGE)
    assert not server.log and not folder.exists()


@pytest.mark.parametrize("source", ["", "file:///etc/passwd", "ftp://host/x", "THE ID", "http:// x"])
def test_a_source_that_is_neither_an_id_nor_an_address_is_refused(server, folder, source):
    with pytest.raises(Invalid, match="a Google Drive id or an address"):
        downloads.fetch(NAME, source, folder, page=PAGE)


# --- what a folder holds --------------------------------------------------------------------------------------------------------


def test_a_file_put_there_by_hand_is_recorded_and_taken(server, folder):
    folder.mkdir()
    (folder / NAME).write_bytes(NEW)
    assert fetch(server, folder).read_bytes() == NEW
    by_hand = entry(NEW, "put there by hand")
    assert downloads.remembered(folder) == by_hand and not server.log
    downloads.fetch("other", server.url, folder, page=PAGE)
    assert downloads.remembered(folder) == by_hand | {"other": entry(OLD, server.url)[NAME]}


@pytest.mark.parametrize("body, reason", [(QUOTA.encode(), "is a web page"), (b"", "is empty"), (b"{}", "is a web page")])
def test_a_page_put_there_by_hand_is_refused_and_left_alone(server, folder, body, reason):
    folder.mkdir()
    (folder / NAME).write_bytes(body)
    with pytest.raises(Invalid, match=f"{NAME} {reason}.*: remove it and .*{PAGE}"):
        fetch(server, folder)
    assert (folder / NAME).read_bytes() == body and not server.log and held(folder) == [NAME]


def test_a_safetensors_file_whose_first_bytes_look_like_a_page_is_none(server, folder):
    folder.mkdir()
    (folder / NAME).write_bytes((0x3C20).to_bytes(8, "little") + b'{"__metadata__":{}}')
    assert fetch(server, folder).exists()


@pytest.mark.parametrize("now", [OLD[:-1], NEW], ids=["size", "hash"])
def test_a_file_that_changed_since_it_was_seen_is_refused_and_left_alone(server, folder, now):
    fetch(server, folder).write_bytes(now)
    with pytest.raises(Invalid, match=r"changed since it was first seen \(.*remove it to download it again.*seen.json"):
        fetch(server, folder)
    assert (folder / NAME).read_bytes() == now and len(server.log) == 1


@pytest.mark.parametrize("now", [LONGER, NEW], ids=["size", "hash"])
def test_a_source_that_no_longer_gives_what_was_seen_is_refused(server, folder, now):
    fetch(server, folder).unlink()
    server.body = now
    with pytest.raises(Invalid, match=rf"has {len(now)} bytes and SHA-256 .*first seen were .*take {NAME} out of .*{PAGE}"):
        fetch(server, folder)
    assert held(folder) == ["seen.json"] and downloads.remembered(folder) == entry(OLD, server.url)
    server.body = OLD
    assert fetch(server, folder, source=server.url + "?mirror").read_bytes() == OLD, "from anywhere, if it is the same"
    assert downloads.remembered(folder) == entry(OLD, server.url)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"a": 1}', '{"a": {"size": 1}}', "\xff"])
def test_a_damaged_record_is_refused_with_what_to_do(server, folder, text):
    folder.mkdir()
    (folder / "seen.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(Invalid, match=r"seen\.json is damaged: remove it"):
        fetch(server, folder)
    assert not server.log


@pytest.mark.parametrize("place", ["file/cache", "/proc/cache", "file"])
def test_a_folder_that_cannot_be_written_is_refused_in_a_sentence(server, tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        Invalid, match=f"{NAME} cannot be read or written .*: check what .* is, or choose another folder"
    ) as refusal:
        fetch(server, tmp_path / place)
    assert "\n" not in str(refusal.value) and not server.log


def test_a_file_already_seen_is_served_where_nothing_can_be_written(server, folder):
    fetch(server, folder)
    lock = folder / f"{NAME}.lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()  # cannot be taken, by root neither
    assert fetch(server, folder).read_bytes() == OLD and len(server.log) == 1


# --- several processes, interruptions, full disks ------------------------------------------------------------------------------

CALL = f"""
import sys
from apnb import downloads
try:
    print(downloads.fetch({NAME!r}, sys.argv[1], sys.argv[2], page={PAGE!r}))
except downloads.Invalid as error:
    print(error)
"""


def process(server, folder, before="", wrap=()):
    command = [*wrap, sys.executable, "-c", before + CALL, server.url, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_at_once_download_once(server, folder):
    server.faults = [{"stop": 3 * MB, "hang": True}]
    first = process(server, folder)
    server.hanging.wait(60)
    second = process(server, folder, "import gdown, apnb.downloads; print('ready', flush=True)\n")
    assert second.stdout.readline() == "ready\n"
    time.sleep(1)  # in which it would ask the server if it did not wait for the first
    assert second.poll() is None and len(server.log) == 1
    server.released.set()
    assert [p.communicate(timeout=120) for p in (first, second)] == [(f"{folder / NAME}\n", "")] * 2
    assert [r["range"] is None for r in server.log] == [True, False] and (folder / NAME).read_bytes() == OLD
    assert downloads.remembered(folder) == entry(OLD, server.url)


def test_ctrl_c_keeps_what_came_and_another_process_goes_on(server, folder):
    server.faults = [{"stop": 3 * MB, "hang": True}]
    stopped = process(server, folder)
    while not any(p.stat().st_size > 2 * MB for p in folder.glob("*.part")):
        time.sleep(0.01)
    stopped.send_signal(signal.SIGINT)
    _, error = stopped.communicate(timeout=120)
    assert "KeyboardInterrupt" in error and [Path(n).suffix for n in held(folder)] == [".part"]
    assert process(server, folder).communicate(timeout=120) == (f"{folder / NAME}\n", "")
    assert server.log[-1]["range"] and (folder / NAME).read_bytes() == OLD


def test_an_exception_of_the_progress_report_ends_the_call_and_keeps_what_came(server, folder):
    def stop(done, total):
        if done > 2 * MB:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        fetch(server, folder, progress=stop)
    assert [Path(n).suffix for n in held(folder)] == [".part"]
    assert fetch(server, folder).read_bytes() == OLD and server.log[-1]["range"]


LIMIT = "import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))\n"


def test_a_disk_that_fills_up_while_downloading_is_one_sentence_and_what_came_is_gone_on_from(server, folder):
    out, error = process(server, folder, LIMIT).communicate(timeout=120)
    assert out.startswith(f"no space left in {folder} for {NAME}: free some") and out.count("\n") == 1, (out, error)
    assert [Path(n).suffix for n in held(folder)] == [".part"]
    assert fetch(server, folder).read_bytes() == OLD and server.log[-1]["range"]


@pytest.mark.parametrize(
    "chunked, reason", [(True, "free some and repeat the call"), (False, r"bytes to come, \d+ free; free some")]
)
def test_a_full_file_system_is_one_sentence(server, tmp_path, chunked, reason):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size=3m none {disk} && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("no file system of three megabytes can be had here: it needs unshare(1) and user namespaces")
    server.faults = [{"chunked": chunked}]
    out, error = process(server, disk / "cache", wrap=mount).communicate(timeout=120)
    assert re.match(rf"no space left in {disk}/cache for {NAME}: .*{reason}", out) and out.count("\n") == 1, (out, error)


# --- Google Drive ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def drive(server, tmp_path, monkeypatch):
    """The server in the place of Google's hosts: all https goes through it, and its certificate is believed."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl(1) for a certificate")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    hosts = "subjectAltName=DNS:drive.google.com,DNS:drive.usercontent.google.com"
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=drive", "-addext", hosts]
    subprocess.run([*new, "-keyout", key, "-out", cert], check=True, capture_output=True)
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.tls.load_cert_chain(cert, key)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(cert))
    return server


def test_a_drive_id_is_asked_for_at_google_and_its_page_about_viruses_is_passed(drive, folder, capfd, monkeypatch, tmp_path):
    import gdown

    monkeypatch.setattr(sys.modules[gdown.download.__module__], "DEFAULT_COOKIES_FILE", str(tmp_path / "cookies.txt"))
    drive.faults = [{"body": SCAN.encode()}, {"stop": 3 * MB}]
    assert fetch(drive, folder, source=ID).read_bytes() == OLD
    assert drive.hosts[0] == "drive.google.com:443" and drive.log[0]["path"] == f"/uc?id={ID}"
    assert drive.log[1]["host"] == "drive.usercontent.google.com" and f"id={ID}&confirm=t" in drive.log[1]["path"]
    assert drive.log[2]["range"] and downloads.remembered(folder) == entry(OLD, ID)
    assert capfd.readouterr() == ("", "") and not (tmp_path / "cookies.txt").exists(), "no word, no cookies kept"


@pytest.mark.parametrize(
    "body, words", [(QUOTA, "Too many users have viewed"), ("<html></html>", "Cannot retrieve the public link")]
)
def test_a_refusal_of_google_is_told_in_its_words_with_the_page_and_the_place(drive, folder, body, words):
    drive.faults = [{"body": body.encode()}]
    with pytest.raises(Invalid, match=f"Google Drive says: {words}") as refusal:
        fetch(drive, folder, source=ID)
    assert PAGE in str(refusal.value) and str(folder / NAME) in str(refusal.value) and "\n" not in str(refusal.value)
    assert held(folder) == []


def test_a_drive_id_behind_a_proxy_that_lets_nothing_through_is_a_sentence(server, folder, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.server_port}")
    with pytest.raises(Invalid, match=r"the connection failed \(ProxyError\)"):
        fetch(server, folder, source=ID)
    assert server.hosts == ["drive.google.com:443"]
