"""Downloads against a server on this machine: continued, verified, whole or not there; and ``distill teachers pull`` through them."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from distill.cli import main
from teachers.catalogue import published_file, store
from teachers.download import (
    CATALOGUE,
    FIRST_USE,
    RECORDED,
    DownloadRecord,
    digest_file,
    obtain,
    record_digest,
    sha256_of,
    verify,
)
from teachers.errors import WeightsError
from teachers.published import CATALOGUE as TEACHERS
from teachers.published import TeacherEntry
from tests.test_catalogue import TINY, published_decoder, run

DATA = bytes(range(256)) * 4000  # 1,024,000 bytes, no two neighbouring pieces alike


class Server(http.server.ThreadingHTTPServer):
    """Serves ``data`` as /file.pt. ``cuts`` are the bytes after which each answer is cut off (None: whole), in turn."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.etag, self.modified = DATA, '"one"', ""
        self.ranges, self.sized, self.odd_range = True, True, False
        self.cuts: list[int | None] = []
        self.hold: int | None = None  # the bytes after which an answer waits until ``released``
        self.released = threading.Event()
        self.asked: list[tuple[str | None, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/file.pt"

    def handle_error(self, *_: object) -> None:
        pass  # a client that was killed


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        server = self.server
        wanted, guard = self.headers.get("Range"), self.headers.get("If-Range")
        server.asked.append((wanted, guard))
        self.close_connection = True
        if self.path != "/file.pt":
            self.send_error(404)
            return
        start = 0
        if wanted and server.ranges and guard in (None, server.etag, server.modified):
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
            if start >= len(server.data):
                self.send_error(416)
                return
            self.send_response(206)
            first = 0 if server.odd_range else start
            self.send_header("Content-Range", f"bytes {first}-{len(server.data) - 1}/{len(server.data)}")
        else:
            self.send_response(200)
        body = server.data[start:]
        for name, value in (("ETag", server.etag), ("Last-Modified", server.modified)):
            if value:
                self.send_header(name, value)
        if server.sized:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else None
        piece = body if cut is None else body[:cut]
        if not server.sized:
            self.wfile.write(f"{len(body):x}\r\n".encode() + piece)
            self.wfile.write(b"" if cut is not None else b"\r\n0\r\n\r\n")
            return
        if server.hold is not None:
            self.wfile.write(piece[: server.hold])
            self.wfile.flush()
            server.released.wait(3600)
        self.wfile.write(piece)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    listener = Server()
    listener.daemon_threads = True
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield listener
    listener.released.set()
    listener.shutdown()
    thread.join()
    listener.socket.close()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def sha(data: bytes = DATA) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_download_is_whole_and_reports_its_bytes(server: Server, tmp_path: Path) -> None:
    path, records = tmp_path / "deep/er/file.pt", list[DownloadRecord]()
    landed = obtain(server.url, path, report=records.append)
    assert path.read_bytes() == DATA and names(path.parent) == {"file.pt"}
    assert (landed.sha256, landed.trust, landed.fetched) == (sha(), FIRST_USE, True)
    assert [records[0].done, records[-1].done] == [0, len(DATA)] and {r.total for r in records} == {len(DATA)}
    assert [r.done for r in records] == sorted(r.done for r in records) and len(records) > 3
    # A file that is there is not asked for again.
    assert obtain(server.url, path).fetched is False and len(server.asked) == 1


def test_a_cut_connection_is_taken_up_where_it_broke_off(server: Server, tmp_path: Path) -> None:
    server.cuts = [400_000, 300_000]
    landed = obtain(server.url, tmp_path / "file.pt", pause=0)
    assert landed.sha256 == sha() and names(tmp_path) == {"file.pt"}
    assert server.asked == [(None, None), ("bytes=400000-", '"one"'), ("bytes=700000-", '"one"')]


def test_what_stays_cut_is_kept_for_the_next_call(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    server.cuts = [400_000]
    with pytest.raises(WeightsError, match=r"ended after 400000 of 1024000 bytes .*run the command again: it goes on from there"):
        obtain(server.url, path, retries=0)
    assert names(tmp_path) == {".file.pt.part", ".file.pt.part.json"}
    records: list[DownloadRecord] = []
    obtain(server.url, path, report=records.append)
    assert path.read_bytes() == DATA and names(tmp_path) == {"file.pt"}
    assert server.asked[1] == ("bytes=400000-", '"one"')
    assert (records[0].done, records[0].resumed, records[0].total) == (400_000, 400_000, len(DATA))


@pytest.mark.parametrize("case", ["no ranges", "another file", "odd range", "no validator", "weak tag with a date", "shorter file"])
def test_a_part_that_does_not_fit_is_begun_again(server: Server, tmp_path: Path, case: str) -> None:
    path = tmp_path / "file.pt"
    server.cuts, wanted = [400_000], DATA
    if case == "no validator":
        server.etag = ""
    if case == "weak tag with a date":
        server.etag, server.modified = 'W/"one"', "Mon, 01 Jan 2024 00:00:00 GMT"
    with pytest.raises(WeightsError, match="ended after 400000"):
        obtain(server.url, path, retries=0)
    # Nothing could be told of the rest: the part is of no use.
    assert (names(tmp_path) == set()) == (case == "no validator")
    if case == "no ranges":
        server.ranges = False
    if case == "another file":
        server.data = wanted = DATA[::-1]
        server.etag = '"two"'
    if case == "odd range":
        server.odd_range = True
    if case == "shorter file":
        server.data = wanted = DATA[:1000]
    landed = obtain(server.url, path)
    assert path.read_bytes() == wanted and landed.sha256 == sha(wanted) and names(tmp_path) == {"file.pt"}
    guards = {"no validator": (None, None), "weak tag with a date": ("bytes=400000-", server.modified)}
    assert server.asked[1] == guards.get(case, ("bytes=400000-", '"one"'))


def test_without_a_validator_a_known_digest_allows_going_on(server: Server, tmp_path: Path) -> None:
    server.etag, server.cuts = "", [400_000]
    landed = obtain(server.url, tmp_path / "file.pt", sha256=sha(), pause=0)
    assert landed.trust == CATALOGUE and server.asked[1] == ("bytes=400000-", None)


def test_a_cut_answer_of_unknown_size_is_noticed(server: Server, tmp_path: Path) -> None:
    server.sized, server.cuts = False, [400_000]
    with pytest.raises(WeightsError, match="of an unknown number of bytes"):
        obtain(server.url, tmp_path / "file.pt", retries=0)
    assert not (tmp_path / "file.pt").exists()
    assert obtain(server.url, tmp_path / "file.pt").sha256 == sha()


@pytest.mark.parametrize("known", ["catalogue", "record"])
def test_another_digest_is_refused_and_nothing_kept(server: Server, tmp_path: Path, known: str) -> None:
    path = tmp_path / "file.pt"
    if known == "record":
        digest_file(path).write_text(f"{'0' * 64}  file.pt\n")
    with pytest.raises(WeightsError, match=rf"file\.pt has SHA-256 {sha()}, .* says {'0' * 64}: .*thrown away: run the command again"):
        obtain(server.url, path, sha256="0" * 64 if known == "catalogue" else None)
    assert names(tmp_path) == ({"file.pt.sha256"} if known == "record" else set())


def test_a_digest_is_recorded_once_and_verified_ever_after(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    record_digest(obtain(server.url, path))
    assert digest_file(path).read_text() == f"{sha()}  file.pt\n"
    assert verify(path).trust == RECORDED
    damaged = bytearray(DATA)
    damaged[5000] ^= 1
    path.write_bytes(damaged)
    for call in (lambda: verify(path), lambda: obtain(server.url, path)):
        with pytest.raises(WeightsError, match=r"file\.pt\.sha256 says .*delete .*file\.pt and pull again; if its publisher has replaced it"):
            call()
    path.unlink()
    assert obtain(server.url, path).trust == RECORDED
    digest_file(path).write_text("what is this\n")
    with pytest.raises(WeightsError, match="holds no SHA-256"):
        verify(path)


def test_a_server_that_is_not_there_is_named_with_the_remedy(server: Server, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"404.*download it elsewhere and put it at .*file\.pt"):
        obtain(server.url.replace("file", "gone"), tmp_path / "file.pt")
    for url in ("http://127.0.0.1:9/file.pt", (tmp_path / "gone.pt").as_uri()):
        with pytest.raises(WeightsError, match=r"could not be fetched .* put it at ") as caught:
            obtain(url, tmp_path / "file.pt")
        assert "\n" not in str(caught.value)
    assert names(tmp_path) == set()


def test_a_killed_download_goes_on_in_the_next_process(server: Server, tmp_path: Path) -> None:
    path, server.hold = tmp_path / "file.pt", 600_000
    code = f"import pathlib; from teachers.download import obtain; obtain({server.url!r}, pathlib.Path({str(path)!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1])
    part = tmp_path / ".file.pt.part"
    limit = time.monotonic() + 600
    while not (part.exists() and part.stat().st_size >= 500_000) and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there, server.hold = part.stat().st_size, None
    assert 500_000 <= there <= 600_000 and not path.exists()
    assert obtain(server.url, path).sha256 == sha()
    assert server.asked[1] == (f"bytes={there}-", '"one"') and names(tmp_path) == {"file.pt"}


def test_two_that_want_one_file_fetch_it_once(server: Server, tmp_path: Path) -> None:
    landed = []
    threads = [threading.Thread(target=lambda: landed.append(obtain(server.url, tmp_path / "file.pt"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1 and sorted(each.fetched for each in landed) == [False, False, True]


@pytest.fixture
def published(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A catalogue with ``gazelle_tiny``, whose file this server has; an empty store."""
    from teachers.model import GazeModel

    torch.save(published_decoder(TINY, GazeModel(TINY).backbone.channels, (2, 2)), tmp_path / "release.pt")
    server.data = (tmp_path / "release.pt").read_bytes()
    monkeypatch.setenv("GAZE_DISTILL_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(TEACHERS, "gazelle_tiny", TeacherEntry(TINY, server.url, "MIT", "GazeFollow .5 / .4 / .3", 0.4))
    return server


def pull(capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    return run(capsys, "teachers", "pull", "gazelle_tiny")


def test_pull_fetches_records_and_verifies(published: Server, capsys: pytest.CaptureFixture[str]) -> None:
    file = published_file(TEACHERS["gazelle_tiny"])
    status, out, err = pull(capsys)
    assert status == 0 and f"(fetched): SHA-256 {sha(published.data)}, first seen now" in " ".join(out.split())
    assert "Fetching file.pt: " in err and " left" in err and "/s" in err
    assert digest_file(file).read_text().split()[0] == sha256_of(file)
    assert json.loads((store() / "gazelle_tiny/model.json").read_text())["facts"]["sha256"] == sha256_of(file)
    status, out, _ = run(capsys, "teachers", "pull", "gazelle_tiny", "--json")
    facts = json.loads(out)
    assert status == 0 and facts["file"] == {"path": str(file), "sha256": sha256_of(file), "trust": RECORDED, "fetched": False}
    assert len(published.asked) == 1
    # The published file and the stored weights are both looked at.
    with file.open("r+b") as opened:
        opened.seek(3000)
        opened.write(b"\xff\x00\xff")
    status, _, err = pull(capsys)
    assert status == 2 and "has SHA-256" in err and err.count("\n") == 1
    file.unlink()
    assert pull(capsys)[0] == 0
    weights = store() / "gazelle_tiny/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x01\x02\x03")
    status, _, err = pull(capsys)
    assert status == 2 and "has digest" in err and f"delete {store() / 'gazelle_tiny'} first" in err


def test_pull_refuses_a_truncated_download_and_goes_on_from_it(
    published: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teachers.download.time.sleep", lambda _: None)
    half = len(published.data) // 2
    published.cuts = [half, 0]
    status, out, err = pull(capsys)
    assert status == 2 and out == "" and f"ended after {half} of {len(published.data)} bytes" in err
    assert not (store() / "gazelle_tiny").exists() and not published_file(TEACHERS["gazelle_tiny"]).exists()
    assert pull(capsys)[0] == 0
    assert published.asked[-1] == (f"bytes={half}-", '"one"')


def test_pull_takes_a_file_that_was_put_there_by_hand(
    published: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    TEACHERS["gazelle_tiny"] = TeacherEntry(TINY, "http://127.0.0.1:9/file.pt", "MIT", "", 0.4)
    status, _, err = pull(capsys)
    assert status == 2
    said = re.search(r"put it at (\S+)", err)
    assert said is not None
    place = Path(said[1])
    # A part of the file by hand is refused, and nothing is recorded of it.
    place.write_bytes(published.data[:5000])
    status, _, err = pull(capsys)
    assert status == 2 and f"its file is {place}: delete it to fetch it again" in err and not digest_file(place).exists()
    place.write_bytes(published.data)
    status, out, _ = pull(capsys)
    assert status == 0 and "(was there)" in out and digest_file(place).read_text().split()[0] == sha256_of(place)


def test_pull_refuses_a_digest_that_the_catalogue_does_not_know(
    published: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = TEACHERS["gazelle_tiny"]
    with_digest = type("Entry", (), {**vars(entry), "sha256": "1" * 64})
    monkeypatch.setitem(TEACHERS, "gazelle_tiny", with_digest)  # type: ignore[arg-type]
    status, _, err = pull(capsys)
    assert status == 2 and f"the catalogue says {'1' * 64}" in err
    assert not (store() / "gazelle_tiny").exists() and names(store() / "downloads") == set()


def test_pull_and_convert_refuse_a_pickle_with_code(
    published: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"linear.weight": torch.zeros(1), "evil": Code()}, tmp_path / "evil.pt")
    published.data = (tmp_path / "evil.pt").read_bytes()
    status, _, err = pull(capsys)
    assert status == 2 and "only tensors are ever loaded" in err.splitlines()[-1]
    words = ("teachers", "convert", str(tmp_path / "evil.pt"), "--arch", "gazelle_tiny", "--out", str(tmp_path / "new"))
    status, _, err = run(capsys, *words)
    assert status == 2 and "only tensors are ever loaded" in err
    assert not (tmp_path / "executed").exists() and not (tmp_path / "new").exists() and not (store() / "gazelle_tiny").exists()


def test_a_command_that_needs_a_teacher_fetches_it_with_progress(published: Server, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "teachers", "check", "gazelle_tiny", "--json")
    assert status == 0 and json.loads(out)["name"] == "gazelle_tiny" and "Fetching file.pt" in err


def test_an_interrupted_pull_keeps_its_part(published: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(record: DownloadRecord) -> None:
        if record.done:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def progress() -> Iterator[object]:
        yield interrupt

    monkeypatch.setattr("distill.fetching.download_progress", progress)
    assert main(["teachers", "pull", "gazelle_tiny"]) == 130
    assert names(store() / "downloads") == {".file.pt.part", ".file.pt.part.json"}
