"""Where training text comes from: a file or a URL, plain, gzipped or inside a zip.

A download goes to a cache folder, and only after it has come whole, could be unpacked and
has the right checksum: a broken one leaves nothing behind.
"""

import gzip
import hashlib
import http.client
import io
import os
import re
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from models.checkpoint_schema import DataSource

TIMEOUT_SECONDS = 60.0
"""Longest silence of a server before a download is given up."""

_GZIP_MAGIC = b"\x1f\x8b"
_ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
_DOCUMENT_MEMBERS = {"[Content_Types].xml", "mimetype"}
"""Found in the zips that word processors and e-book makers write."""
_FOREIGN_MAGICS = {
    b"%PDF-": "is a PDF document, not plain text",
    b"{\\rtf": "is an RTF document, not plain text: save it as plain text in UTF-8",
    b"BZh91AY&SY": "is packed by bzip2, which is not read here: unpack it, or pack it by gzip",
    b"\xfd7zXZ": "is packed by xz, which is not read here: unpack it, or pack it by gzip",
    b"\x28\xb5\x2f\xfd": "is packed by zstd, which is not read here: unpack it, or pack it by gzip",
    b"\xff\xfe": "is UTF-16 text: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "is UTF-16 text: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)",
}
"""What people take for text, by its first bytes, and what to do about it."""
_CHUNK_BYTES = 1 << 20


class DataError(Exception):
    """A text cannot be read, or is not what it should be; the message names the place."""


class TextSource(BaseModel):
    """A text and where to find it.

    Raises:
        pydantic.ValidationError: a value is malformed or a field is unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """What people call the text."""
    location: str = Field(min_length=1)
    """A path (``~`` is the home folder) or a URL: http, https or file."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Checksum of the text itself, unpacked, as 64 hexadecimal digits; None skips the check."""
    member: str | None = None
    """The file to take from a zip; may be left out if there is only one. If the location
    turns out to be no zip, it is taken for the unpacked member."""


@dataclass(frozen=True)
class SourceText:
    """A text that was read, and the SHA-256 (hexadecimal) of its bytes, unpacked."""

    text: str
    sha256: str


def read_text(source: TextSource, cache_dir: Path) -> str:
    """Read a text as :func:`read_source` does, without its checksum."""
    return read_source(source, cache_dir).text


def read_source(source: TextSource, cache_dir: Path) -> SourceText:
    """Read a text, downloading it first if it is neither here nor in the cache.

    The text is UTF-8; a byte order mark at its start is dropped, and every line ends in a
    single newline character, whatever it ended in.

    Args:
        source: what to read.
        cache_dir: where downloads are kept; made when needed.

    Raises:
        DataError: the file, the member or the server is missing, the checksum differs, the
            file is binary, or the text is not UTF-8.
    """
    scheme = _url_scheme(source.location)
    if scheme in ("http", "https"):
        return _read_download(source, cache_dir)
    path = _local_path(source.location, scheme)
    return _decode(source, _checked(source, _unpack(_read_file(path), source, str(path))))


def read_data(source: TextSource, location: str | None, cache_dir: Path) -> tuple[str, DataSource]:
    """Read the text that a preset names, or another that its user gives instead.

    Args:
        source: the preset's text.
        location: the user's path or URL; a copy of the preset's own text is recognised by its
            checksum, and recorded under its own name and origin. A folder stands for the file
            in it that is called as the preset's, packed by gzip or not. None takes the preset's.
        cache_dir: as for :func:`read_source`.

    Returns:
        The text, and how to record it.

    Raises:
        DataError: as :func:`read_source`.
    """
    if location is not None:
        location = _inside_folder(location, source)
        given = source.model_copy(update={"location": location, "sha256": None})
        read = read_source(given, cache_dir)
        if read.sha256 != source.sha256:
            origin = public_origin(location)
            return read.text, DataSource(
                name=file_name(location), origin=origin, sha256=read.sha256
            )
    else:
        read = read_source(source, cache_dir)
    origin = public_origin(source.location)
    return read.text, DataSource(name=source.name, origin=origin, sha256=read.sha256)


def file_name(location: str) -> str:
    """The file's name in a path or URL."""
    path = urllib.parse.urlsplit(location).path if _url_scheme(location) else location
    return Path(path).name


def public_origin(location: str) -> str:
    """How a place is recorded: a URL of the web as it is, a local file by its name.

    Where a person keeps a file is nobody else's business; where a URL leads is.
    """
    return location if is_public(location) else file_name(location)


def is_public(location: str) -> bool:
    """Whether a location is a URL of the web, which others can read too."""
    return _url_scheme(location) in ("http", "https")


def is_folder(location: str) -> bool:
    """Whether a location is a local folder."""
    return not is_public(location) and _local_path(location, _url_scheme(location)).is_dir()


def _inside_folder(location: str, source: TextSource) -> str:
    """The preset's file inside a folder; anything but a folder stays as it is."""
    if not is_folder(location):
        return location
    folder, name = _local_path(location, _url_scheme(location)), file_name(source.location)
    for candidate in (folder / name, folder / name.removesuffix(".gz")):
        if candidate.is_file():
            return str(candidate)
    raise DataError(f"{location}: holds no {name}")


def _url_scheme(location: str) -> str | None:
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", location)
    scheme = match[1].lower() if match else None
    if scheme in ("http", "https", "file"):
        return scheme
    if "://" in location:
        raise DataError(f"{location}: only http, https and file URLs can be read")
    return None


def expand_home(path: str | Path) -> Path:
    """A path with its ``~`` or ``~name`` replaced by that person's home folder.

    Raises:
        DataError: nobody has that name, or the home folder is not known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{path}: the home folder at its beginning is not known") from error


def _local_path(location: str, scheme: str | None) -> Path:
    if scheme != "file":
        return expand_home(location)
    url = urllib.parse.urlsplit(location)
    if url.netloc not in ("", "localhost"):
        raise DataError(f"{location}: a file URL cannot name another machine ({url.netloc})")
    return Path(urllib.request.url2pathname(url.path))


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _read_download(source: TextSource, cache_dir: Path) -> SourceText:
    """Read from the cache, or download; cached bytes that fail their check are replaced."""
    cached = cache_dir / _cache_name(source.location)
    if cached.is_file():
        try:
            place = str(cached)
            return _decode(source, _checked(source, _unpack(_read_file(cached), source, place)))
        except DataError:
            if source.sha256 is None:
                raise
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        handle, temporary_name = tempfile.mkstemp(dir=cache_dir, prefix=".download-")
    except OSError as error:
        raise DataError(f"{cache_dir}: cannot keep downloads there: {error.strerror}") from error
    temporary = Path(temporary_name)
    try:
        with os.fdopen(handle, "wb") as file:
            _download(source.location, file)
        content = _unpack(_read_file(temporary), source, source.location)
        text = _decode(source, _checked(source, content))
        temporary.replace(cached)
        return text
    finally:
        temporary.unlink(missing_ok=True)


def _cache_name(url: str) -> str:
    """Make a file name that is legible, and different for every URL."""
    last = urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1]
    legible = re.sub(r"[^A-Za-z0-9._-]+", "_", last)[-64:]
    return f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{legible}"


def _download(url: str, file: io.BufferedWriter) -> None:
    # Some servers refuse the default name of Python's client.
    request = urllib.request.Request(url, headers={"User-Agent": "gatehouse"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            received = 0
            while chunk := response.read(_CHUNK_BYTES):
                received += file.write(chunk)
            # http.client reports a connection that closed early only to a read of everything.
            expected = response.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        raise DataError(f"{url}: the server answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise DataError(f"{url}: cannot be downloaded: {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{url}: cannot be downloaded: {reason}") from error
    if expected is not None and expected.isdigit() and received != int(expected):
        raise DataError(f"{url}: the download broke off after {received} of {expected} bytes")


def _unpack(content: bytes, source: TextSource, place: str) -> bytes:
    """Unpack by what the bytes are, not by what the file is called."""
    try:
        if content.startswith(_GZIP_MAGIC):
            return gzip.decompress(content)
        if content.startswith(_ZIP_MAGICS):
            return _read_member(content, source.member, place)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{place}: damaged archive: {error}") from error
    except (RuntimeError, NotImplementedError) as error:
        # An encrypted member, or a compression that Python does not know.
        raise DataError(f"{place}: cannot be unpacked: {error}") from error
    return content


def _read_member(content: bytes, member: str | None, place: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
        if member is None and len(names) == 1:
            return archive.read(names[0])
        if member in names:
            return archive.read(member)
    if not _DOCUMENT_MEMBERS.isdisjoint(names):
        raise DataError(
            f"{place}: is an office or e-book document, not plain text: save it as plain text in "
            "UTF-8"
        )
    listed = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    if member is None:
        raise DataError(f"{place}: say which member of the zip to read: {listed or 'it is empty'}")
    raise DataError(f"{place}: has no member {member!r}, only: {listed or 'nothing'}")


def _checked(source: TextSource, content: bytes) -> bytes:
    if source.sha256 is not None:
        actual = hashlib.sha256(content).hexdigest()
        if actual != source.sha256:
            raise DataError(
                f"{source.location}: is not the expected {source.name}: its SHA-256 should be "
                f"{source.sha256} and is {actual}"
            )
    return content


def _decode(source: TextSource, content: bytes) -> SourceText:
    for magic, complaint in _FOREIGN_MAGICS.items():
        if content.startswith(magic):
            raise DataError(f"{source.location}: {complaint}")
    if (zero := content.find(0)) >= 0:
        line = content.count(b"\n", 0, zero) + 1
        raise DataError(
            f"{source.location}: is a binary file, not text: line {line} has a zero byte at "
            f"offset {zero}"
        )
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{source.location}: line {line} is not UTF-8 (byte 0x{content[error.start]:02x} at "
            f"offset {error.start})"
        ) from error
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    return SourceText(text, hashlib.sha256(content).hexdigest())
