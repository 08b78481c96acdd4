"""Reading texts from files, archives and a real HTTP server."""

import bz2
import gzip
import hashlib
import http.server
import lzma
import socket
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pydantic
import pytest

from training import sources
from training.sources import (
    DataError,
    TextSource,
    public_origin,
    read_data,
    read_source,
    read_text,
)

TEXT = "Go.\tVa\u202f!\nDéjà vu.\n"
CONTENT = TEXT.encode()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class _Server(http.server.ThreadingHTTPServer):
    """Serves the bytes of ``files`` and counts the requests."""

    files: dict[str, bytes]
    requests: int


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.requests += 1
        if self.path == "/moved.txt":
            self.send_response(302)
            self.send_header("Location", "/book.txt")
            self.end_headers()
            return
        content = self.server.files.get(self.path.removesuffix("?broken"))
        if content is None:
            self.send_error(404, "Not Found")
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:7] if self.path.endswith("?broken") else content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Handler) as running:
        running.files, running.requests = {"/book.txt": CONTENT}, 0
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def _url(server: _Server, path: str) -> str:
    return f"http://127.0.0.1:{server.server_port}{path}"


def _source(location: Path | str, **options: str) -> TextSource:
    return TextSource(name="a text", location=str(location), **options)


def _archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


# Files


def test_a_plain_file_is_read_and_its_checksum_reported(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(CONTENT)
    found = read_source(_source(path, sha256=SHA256), tmp_path / "cache")
    assert (found.text, found.sha256) == (TEXT, SHA256)
    assert not (tmp_path / "cache").exists()


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "a text.txt"
    path.write_bytes(CONTENT)
    assert read_text(_source(path.as_uri()), tmp_path) == TEXT
    with pytest.raises(DataError, match="cannot name another machine"):
        read_text(_source("file://elsewhere/text.txt"), tmp_path)


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "text.txt").write_bytes(CONTENT)
    assert read_text(_source("~/text.txt"), tmp_path) == TEXT


def test_the_home_of_nobody_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^~nosuch/file: .*home"):
        read_text(_source("~nosuch/file"), tmp_path)


def test_byte_order_mark_and_line_ends_are_made_plain(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert read_text(_source(path), tmp_path) == "one\ntwo\nthree\n"


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.txt: no such file"):
        read_text(_source(tmp_path / "nowhere.txt"), tmp_path)
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_text(_source(tmp_path), tmp_path)


def test_another_text_is_refused_with_both_checksums(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"something else")
    actual = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(DataError, match=f"text.txt: .*should be {SHA256} and is {actual}"):
        read_text(_source(path, sha256=SHA256), tmp_path)


def test_bytes_that_are_not_utf8_are_located(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"one\ntwo\nd\xe9j\xe0\n")
    with pytest.raises(DataError, match=r"latin.txt: line 3 is not UTF-8 \(byte 0xe9 at offset 9"):
        read_text(_source(path), tmp_path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"one\ntw\0o\n", r"binary file, not text: line 2 has a zero byte at offset 6"),
        ("one\n".encode("utf-16"), "is UTF-16 text: save it as UTF-8"),
        (b"%PDF-1.7 ...", "is a PDF document"),
        (b"{\\rtf1 ...", "is an RTF document"),
        (bz2.compress(CONTENT), "is packed by bzip2"),
        (lzma.compress(CONTENT), "is packed by xz"),
    ],
)
def test_what_is_no_plain_text_is_called_by_its_name(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"file\.txt: {complaint}|file\.txt: is a {complaint}"):
        read_text(_source(path), tmp_path)


@pytest.mark.parametrize("member", ["[Content_Types].xml", "mimetype"])
def test_a_word_processors_document_is_called_one(tmp_path: Path, member: str) -> None:
    path = _archive(tmp_path / "novel.docx", {member: b"", "word/document.xml": b""})
    with pytest.raises(DataError, match=r"novel\.docx: is an office or e-book document"):
        read_text(_source(path), tmp_path)


def test_other_protocols_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only http, https and file"):
        read_text(_source("ftp://example.org/text.txt"), tmp_path)


# Archives


def test_gzip_is_known_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "text.data"
    path.write_bytes(gzip.compress(CONTENT))
    assert read_text(_source(path, sha256=SHA256), tmp_path) == TEXT


def test_a_member_of_a_zip_is_read(tmp_path: Path) -> None:
    path = _archive(tmp_path / "a.zip", {"_about.txt": b"about", "fra/fra.txt": CONTENT})
    assert read_text(_source(path, member="fra/fra.txt", sha256=SHA256), tmp_path) == TEXT


def test_the_only_member_needs_no_name(tmp_path: Path) -> None:
    path = _archive(tmp_path / "a.zip", {"folder/": b"", "folder/fra.txt": CONTENT})
    assert read_text(_source(path), tmp_path) == TEXT


def test_an_unpacked_member_may_stand_in_for_the_zip(tmp_path: Path) -> None:
    path = tmp_path / "fra.txt"
    path.write_bytes(CONTENT)
    assert read_text(_source(path, member="fra/fra.txt", sha256=SHA256), tmp_path) == TEXT


def test_a_missing_member_is_named_beside_those_there_are(tmp_path: Path) -> None:
    path = _archive(tmp_path / "a.zip", {"one.txt": b"1", "two.txt": b"2"})
    with pytest.raises(DataError, match=r"a.zip: has no member 'x.txt', only: one.txt, two.txt"):
        read_text(_source(path, member="x.txt"), tmp_path)
    with pytest.raises(DataError, match=r"say which member .*: one.txt, two.txt"):
        read_text(_source(path), tmp_path)
    with pytest.raises(DataError, match="it is empty"):
        read_text(_source(_archive(tmp_path / "b.zip", {})), tmp_path)


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    zipped = _archive(tmp_path / "whole.zip", {"text.txt": CONTENT * 50}).read_bytes()
    flipped = bytearray(zipped)
    flipped[45] ^= 0xFF
    packed = gzip.compress(CONTENT * 50)
    for content in (zipped[:-30], zipped[:10], bytes(flipped), packed[:-12], packed[:12]):
        path = tmp_path / "damaged"
        path.write_bytes(content)
        with pytest.raises(DataError, match="damaged: damaged archive"):
            read_text(_source(path), tmp_path)


# Downloads


def test_a_download_is_kept(server: _Server, tmp_path: Path) -> None:
    source = _source(_url(server, "/book.txt"), sha256=SHA256)
    assert read_text(source, tmp_path / "new" / "cache") == TEXT
    assert read_text(source, tmp_path / "new" / "cache") == TEXT
    assert server.requests == 1
    assert len(list((tmp_path / "new" / "cache").iterdir())) == 1


def test_two_urls_with_one_file_name_are_two_downloads(server: _Server, tmp_path: Path) -> None:
    server.files["/other/book.txt"] = b"other"
    assert read_text(_source(_url(server, "/book.txt")), tmp_path) == TEXT
    assert read_text(_source(_url(server, "/other/book.txt")), tmp_path) == "other"


def test_a_zip_is_downloaded_and_unpacked(server: _Server, tmp_path: Path) -> None:
    server.files["/a.zip"] = _archive(tmp_path / "a.zip", {"x": b"", "y": CONTENT}).read_bytes()
    source = _source(_url(server, "/a.zip"), member="y", sha256=SHA256)
    assert read_text(source, tmp_path / "cache") == TEXT
    assert read_text(source, tmp_path / "cache") == TEXT
    assert server.requests == 1


def test_redirects_are_followed(server: _Server, tmp_path: Path) -> None:
    assert read_text(_source(_url(server, "/moved.txt")), tmp_path) == TEXT


def test_a_broken_download_leaves_nothing_behind(server: _Server, tmp_path: Path) -> None:
    known: list[dict[str, str]] = [{}, {"sha256": SHA256}]
    for options in known:
        message = f"broke off after 7 of {len(CONTENT)} bytes"
        with pytest.raises(DataError, match=message):
            read_text(_source(_url(server, "/book.txt?broken"), **options), tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_a_wrong_download_leaves_nothing_behind(server: _Server, tmp_path: Path) -> None:
    server.files["/book.txt"] = b"an error page"
    with pytest.raises(DataError, match="its SHA-256 should be"):
        read_text(_source(_url(server, "/book.txt"), sha256=SHA256), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_cache_is_downloaded_anew(server: _Server, tmp_path: Path) -> None:
    source = _source(_url(server, "/book.txt"), sha256=SHA256)
    read_text(source, tmp_path)
    (cached,) = tmp_path.iterdir()
    cached.write_bytes(b"damaged")
    assert read_text(source, tmp_path) == TEXT
    assert cached.read_bytes() == CONTENT
    assert server.requests == 2


def test_an_error_answer_is_reported(server: _Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/none.txt: the server answered 404 Not Found"):
        read_text(_source(_url(server, "/none.txt")), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there_is_reported(server: _Server, tmp_path: Path) -> None:
    url = _url(server, "/book.txt")
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match=r"cannot be downloaded: .*refused"):
        read_text(_source(url), tmp_path)


def test_a_silent_server_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "TIMEOUT_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/book.txt"
        with pytest.raises(DataError, match="cannot be downloaded: timed out"):
            read_text(_source(url), tmp_path)


def test_a_cache_folder_that_cannot_be_made_is_named(server: _Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="file: cannot keep downloads there"):
        read_text(_source(_url(server, "/book.txt")), tmp_path / "file")


@pytest.mark.parametrize(
    "options", [{"sha256": "abc"}, {"sha256": SHA256.upper()}, {"checksum": SHA256}]
)
def test_malformed_sources_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(pydantic.ValidationError):
        _source("text.txt", **options)


def test_own_data_are_recorded_without_the_path_they_lie_at(tmp_path: Path) -> None:
    own = tmp_path / "novel.txt"
    own.write_text("Once upon a time.")
    preset = TextSource(name="A book", location="https://example.org/book.txt", sha256="0" * 64)
    text, source = read_data(preset, str(own), tmp_path)
    assert text == "Once upon a time."
    assert (source.name, source.origin) == ("novel.txt", "novel.txt")


def test_a_folder_stands_for_the_presets_file_in_it(tmp_path: Path) -> None:
    preset = TextSource(name="A book", location="https://example.org/a/book.txt.gz", sha256=SHA256)
    with pytest.raises(DataError, match=r"holds no book\.txt\.gz"):
        read_data(preset, str(tmp_path), tmp_path)
    (tmp_path / "book.txt").write_bytes(CONTENT)
    text, source = read_data(preset, str(tmp_path), tmp_path)
    assert text == TEXT
    assert (source.name, source.origin) == ("A book", preset.location)
    (tmp_path / "book.txt.gz").write_bytes(gzip.compress(b"other"))
    text, source = read_data(preset, str(tmp_path), tmp_path)
    assert (text, source.name) == ("other", "book.txt.gz"), "the packed one comes first"


def test_a_presets_own_local_file_is_recorded_by_its_name(tmp_path: Path) -> None:
    own = tmp_path / "novel.txt"
    own.write_text("Once upon a time.")
    preset = TextSource(name="My novel", location=str(own))
    assert read_data(preset, None, tmp_path)[1].origin == "novel.txt"
    assert public_origin(own.as_uri()) == "novel.txt"
    assert public_origin("https://example.org/a/novel.txt") == "https://example.org/a/novel.txt"
