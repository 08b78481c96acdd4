"""Which files, how many lines, where shards begin: held against splitting them in plain Python."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.corpus import inputs
from app.corpus.inputs import CorpusFile, find_files, make_shards, read_span, scan
from app.exceptions import StartupError

TEXTS = [b"a\nb\nc\n", b"", b"one\r\n\ntwo", b"\n", b"\n\n\n", b"x" * 50 + b"\n" + b"\xff\n"]


def _lines(content: bytes) -> list[bytes]:
    return [line.rstrip(b"\r\n") for line in content.removesuffix(b"\n").split(b"\n")] * (
        content != b""
    )


def _write(folder: Path, contents: list[bytes]) -> list[CorpusFile]:
    files = []
    for number, content in enumerate(contents):
        path = folder / f"{number}.txt"
        path.write_bytes(content)
        files.append(CorpusFile(path, Path(path.name)))
    return files


def _check(files: list[CorpusFile], contents: list[bytes], shard_lines: int) -> None:
    scanned = list(scan(files, shard_lines))
    for (found, _), content in zip(scanned, contents, strict=True):
        assert found.lines == len(_lines(content))
        assert found.size_bytes == len(content)
        assert found.sha256 == hashlib.sha256(content).hexdigest()
    shards = make_shards([span for _, spans in scanned for span in spans], shard_lines)
    wanted = [(index, line) for index, one in enumerate(contents) for line in _lines(one)]
    assert [len(_read(files, shard)) for shard in shards[:-1]] == [shard_lines] * len(shards[:-1])
    assert [line for shard in shards for line in _read(files, shard)] == wanted


def _read(files: list[CorpusFile], shard: tuple[inputs.Span, ...]) -> list[tuple[int, bytes]]:
    found = []
    for span in shard:
        for line in read_span(files[span.file], span):
            assert line is not None
            found.append((span.file, line))
    return found


@pytest.mark.parametrize("shard_lines", [1, 2, 3, 5, 100])
def test_shards_are_all_lines_in_order(tmp_path: Path, shard_lines: int) -> None:
    _check(_write(tmp_path, TEXTS), TEXTS, shard_lines)


@given(
    contents=st.lists(
        st.lists(st.sampled_from([b"a", b"\n", b"\r\n", b"\xff", b"\xc3\xa9"])).map(b"".join),
        min_size=1,
        max_size=4,
    ),
    shard_lines=st.integers(1, 6),
    chunk_bytes=st.integers(1, 8),
)
def test_shards_of_any_text(
    tmp_path_factory: pytest.TempPathFactory,
    contents: list[bytes],
    shard_lines: int,
    chunk_bytes: int,
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "_CHUNK_BYTES", chunk_bytes)
        _check(_write(folder, contents), contents, shard_lines)


def test_a_file_that_has_changed_is_told(tmp_path: Path) -> None:
    (file,) = _write(tmp_path, [b"a\nb\n"])
    ((_, (span,)),) = scan([file], 10)
    file.path.write_bytes(b"ab\n")
    with pytest.raises(OSError, match="has changed while it was being translated"):
        read_span(file, span)


def test_files_and_folders(tmp_path: Path) -> None:
    for name in ("in/b.txt", "in/a.txt", "in/sub/c.parquet", "in/.hidden", "in/.git/x", "d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_files([tmp_path / "in", tmp_path / "d.txt"], tmp_path / "out", "text")
    assert [(file.output.as_posix(), file.column) for file in found] == [
        ("a.txt", None),
        ("b.txt", None),
        ("sub/c.parquet", "text"),
        ("d.txt", None),
    ]


def test_what_cannot_be_translated_is_told(tmp_path: Path) -> None:
    for name in ("a.txt", "b.gz", "in/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    for given_inputs, out, complaint in (
        (["nowhere"], "out", "there is no such file or folder"),
        (["empty"], "out", "there is no file to translate"),
        (["b.gz"], "out", "is packed"),
        (["a.txt", "in"], "out", "would both be written to"),
        (["a.txt"], ".", "would be overwritten"),
        (["in"], "in/out", "which is to be translated"),
    ):
        with pytest.raises(StartupError, match=complaint):
            find_files([tmp_path / name for name in given_inputs], tmp_path / out, "text")
