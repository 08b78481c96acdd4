"""Reading sentence pairs from a tab file or aligned files; every fault is told with its line."""

import gzip
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.corpora import MAX_SENTENCE_CHARACTERS, read_cut, read_synthetic
from training.parallel import Pair
from training.preset import ParallelData
from training.sources import DataError

MakeData = Callable[..., ParallelData]


@pytest.fixture
def make_data(tmp_path: Path) -> MakeData:
    """Write files ``role=content`` and describe them; nothing is cut unless asked for."""

    def make(shares: float = 0.0, **files: str | bytes) -> ParallelData:
        described: dict[str, Any] = {"source_language": "en", "target_language": "fr"}
        for role, content in files.items():
            path = tmp_path / f"{role}.txt"
            path.write_bytes(content.encode() if isinstance(content, str) else content)
            described[role] = {"name": path.name, "location": str(path)}
        shares_of = {"test_share": shares, "validation_share": shares}
        return ParallelData.model_validate({**described, **shares_of})

    return make


def _many(count: int) -> str:
    return "".join(f"sentence {number}\tphrase {number}\n" for number in range(count))


def test_aligned_files_give_the_same_as_a_tab_file(make_data: MakeData, tmp_path: Path) -> None:
    tab, _ = read_cut(make_data(source="a\tx\nb\ty\n"), None, tmp_path)
    aligned, sources = read_cut(make_data(source="a\nb\n", target="x\ny\n"), None, tmp_path)
    assert tab == aligned
    assert tab.train == (Pair("a", "x"), Pair("b", "y"))
    assert [source.name for source in sources] == ["source.txt", "target.txt"]


def test_validation_files_take_the_place_of_a_cut(make_data: MakeData, tmp_path: Path) -> None:
    data = make_data(source="a\tx\n", validation_source="c\nc\n", validation_target="z\nz\n")
    cut, sources = read_cut(data, None, tmp_path)
    assert cut.train == (Pair("a", "x"),)
    assert cut.validation == (Pair("c", "z"), Pair("c", "z")), "line by line, as benchmarks are"
    assert len(sources) == 3
    tab = make_data(source="a\tx\n", validation_source="c\tz\n")
    assert read_cut(tab, None, tmp_path)[0].validation == (Pair("c", "z"),)


def test_validation_pairs_that_were_trained_on_are_counted(
    make_data: MakeData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "training")
    data = make_data(source="a\tx\nb\ty\n", validation_source="B!\tz\nc\tx\nc\tz\n")
    read_cut(data, None, tmp_path)
    counted = "validation_source.txt: of 3 validation pairs, 2 have a side that is in the training"
    assert counted in caplog.text


def test_a_folder_holds_the_files_of_a_preset_packed_or_not(tmp_path: Path) -> None:
    roles = {"source": "train.en.gz", "target": "train.fr.gz"}
    data = ParallelData.model_validate(
        {
            **{r: {"name": r, "location": f"https://x.org/{n}"} for r, n in roles.items()},
            **{"source_language": "en", "target_language": "fr"},
            **{"test_share": 0.0, "validation_share": 0.0},
        }
    )
    (tmp_path / "train.en.gz").write_bytes(gzip.compress(b"a\n"))
    with pytest.raises(DataError, match=r"holds no train\.fr\.gz"):
        read_cut(data, str(tmp_path), tmp_path)
    (tmp_path / "train.fr").write_bytes(b"x\n")
    assert read_cut(data, str(tmp_path), tmp_path)[0].train == (Pair("a", "x"),)
    with pytest.raises(DataError, match=r"give a folder with the files train\.en\.gz, train\.fr"):
        read_cut(data, str(tmp_path / "train.fr"), tmp_path)


def test_pairs_with_an_empty_side_are_dropped_and_counted(
    make_data: MakeData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cut, _ = read_cut(make_data(source="a\n\n\nb\nc\n", target="x\n\ny\n \nz\n"), None, tmp_path)
    assert cut.train == (Pair("a", "x"), Pair("c", "z"))
    expected = "source.txt and target.txt: dropped 2 pairs with an empty side, the first at line 3"
    assert expected in caplog.text
    caplog.clear()
    read_cut(make_data(source="a\tx\n\nb\t\n"), None, tmp_path)
    assert "source.txt: dropped 1 pair with an empty side, the first at line 3" in caplog.text


LONG = "x" * (MAX_SENTENCE_CHARACTERS + 1)


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"source": "a\nb\n", "target": "x\n"},
         r"source.txt and target.txt: .*the source has 2 lines and the target 1"),
        ({"source": "a\tb\nc\n"}, r"source.txt: line 2 has no tab between two sentences: 'c'"),
        ({"source": f"a\tb\nc\t{LONG}\n"},
         r"source.txt: line 2 has a side of 10,001 characters, .* 10,000: split it"),
        ({"source": f"a\n{LONG}\n", "target": "x\ny\n"}, r"source.txt: line 2 has a side"),
        ({"source": "a\nb\n", "target": f"x\n{LONG}\n"}, r"target.txt: line 2 has a side"),
        ({"source": b"a\tb\nc\xe9\td\n"}, r"source.txt: line 2 is not UTF-8 \(byte 0xe9"),
        ({"source": "a\n", "target": b"x\xff\n"}, r"target.txt: line 1 is not UTF-8"),
        ({"source": "a\n", "target": b"x\0\n"}, r"target.txt: is a binary file"),
        ({"source": ""}, r"source.txt: holds no sentence pair"),
        ({"source": "\n\n", "target": "\n\n"}, r"source.txt and target.txt: holds no sentence"),
        ({"source": "a\nb\n", "target": "\n\n"}, r"source.txt and target.txt: holds no sentence"),
        ({"source": "a\nb\n", "target": "a\nb\n"},
         r"source.txt and target.txt hold the same text: one must be the other's translation"),
        ({"source": "a\tx\n", "validation_source": "a\nb\n", "validation_target": "x\n"},
         r"validation_source.txt and validation_target.txt: .*has 2 lines"),
    ],
)  # fmt: skip
def test_bad_data_are_told_with_file_and_line(
    make_data: MakeData, tmp_path: Path, files: dict[str, str | bytes], complaint: str
) -> None:
    with pytest.raises(DataError, match=complaint) as raised:
        read_cut(make_data(**files), None, tmp_path)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(make_data: MakeData, tmp_path: Path) -> None:
    data = make_data(source="a\n", target="x\n")
    (tmp_path / "target.txt").unlink()
    with pytest.raises(DataError, match=r"target\.txt: no such file"):
        read_cut(data, None, tmp_path)


def test_a_cut_that_leaves_a_part_empty_is_refused(make_data: MakeData, tmp_path: Path) -> None:
    cut, _ = read_cut(make_data(0.1, source=_many(100)), None, tmp_path)
    assert cut.train
    assert cut.validation
    with pytest.raises(DataError, match=r"source.txt: 3 sentence pairs are too few: .*leaves none"):
        read_cut(make_data(0.01, source=_many(3)), None, tmp_path)


def test_synthetic_pairs_are_read_apart_and_none_with_a_held_out_side(
    make_data: MakeData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "training")
    data = make_data(0.2, source=_many(100))
    cut, sources = read_cut(data, None, tmp_path)
    assert read_synthetic(data, cut, tmp_path) == ([], [])
    held_out, trained = cut.test[0].source, cut.train[0].source
    content = f"{held_out}!\tnew phrase\n{trained}\tnew phrase\nnew\t{cut.validation[0].target}\n"
    data = make_data(0.2, source=_many(100), synthetic=content)
    assert read_cut(data, None, tmp_path) == (cut, sources)
    pairs, (source,) = read_synthetic(data, cut, tmp_path)
    assert pairs == [Pair(trained, "new phrase")]
    assert source.name == "synthetic.txt"
    assert "synthetic.txt: 1 synthetic pairs; left out 2 of which a side is held out" in caplog.text


def test_synthetic_pairs_that_are_all_held_out_are_refused(
    make_data: MakeData, tmp_path: Path
) -> None:
    cut, _ = read_cut(make_data(0.2, source=_many(100)), None, tmp_path)
    data = make_data(0.2, source=_many(100), synthetic=f"{cut.test[0].source}\tx\n")
    with pytest.raises(DataError, match=r"synthetic\.txt: every pair has a side that is held out"):
        read_synthetic(data, cut, tmp_path)
    data = make_data(0.2, source=_many(100), synthetic="no tab\n")
    with pytest.raises(DataError, match=r"synthetic\.txt: line 1 has no tab"):
        read_synthetic(data, cut, tmp_path)


def test_synthetic_pairs_are_in_the_direction_of_the_model(
    make_data: MakeData, tmp_path: Path
) -> None:
    data = make_data(0.2, source=_many(100), synthetic="phrase 1000\tsentence 1000\n")
    data = data.model_copy(update={"reverse": True})
    cut, _ = read_cut(data, None, tmp_path)
    assert cut.train[0].source.startswith("phrase")
    assert read_synthetic(data, cut, tmp_path)[0] == [Pair("phrase 1000", "sentence 1000")]
