"""The command line of an evaluation: tables, JSON, files, and one sentence for every mishap."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import MakePreset, Trained
from training import evaluate_cli
from training.evaluate_cli import main

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _beside_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records keep but the names of local texts, which are then looked for where one is."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command: exit status, stdout and stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        device = [] if "--device" in words else ["--device", "cpu"]
        cache = ["--cache", str(tmp_path / "cache")]
        capsys.readouterr()
        status = main([*cache, *map(str, words), *device], prog="evaluate")
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def _refused(result: tuple[int, str, str]) -> str:
    """The one sentence, after checking that there is nothing else."""
    status, out, err = result
    assert status == 1
    assert out == ""
    assert err.startswith("evaluate: ")
    assert err.count("\n") == 1
    return err


@pytest.fixture
def own(tmp_path: Path) -> list[str]:
    """Options that name a test set of two sentences."""
    (tmp_path / "source").write_text("i see a cat\nno dog here\n")
    (tmp_path / "reference").write_text("je vois un chat\nnon chien ici\n")
    return ["--source", str(tmp_path / "source"), "--reference", str(tmp_path / "reference")]


def test_the_table_sets_the_card_beside_each_precision(
    run: Run, trained: Trained, pairs_preset: MakePreset
) -> None:
    info = trained(pairs_preset())
    status, out, err = run(info.path, "--precisions", "float32", "auto", "int8")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("parallel, 10 held-out sentences of Tiny pairs, on cpu")
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        "figure",
        "card",
        "float32",
        "int8",
    ]
    (row,) = [line for line in lines if line.startswith("| beam4 chrF first reference")]
    card, exact, _ = [cell.strip() for cell in row.split("|")[2:-1]]
    assert card == exact == f"{info.training.metrics['beam4_chrf_first_reference']:.2f}"
    assert len({len(line) for line in lines if line.startswith("|")}) == 1, "aligned"
    assert any(line.startswith("TER first reference: nrefs:1|case:lc|") for line in lines)


def test_the_home_of_nobody_is_one_sentence(
    run: Run, trained: Trained, text_preset: MakePreset
) -> None:
    refusal = _refused(run(trained(text_preset()).path, "--cache", "~nosuch/cache"))
    assert "~nosuch/cache: " in refusal


def test_json_is_one_object(run: Run, trained: Trained, text_preset: MakePreset) -> None:
    info = trained(text_preset())
    status, out, _ = run(info.path, "--json", "--precisions", "float32", "--threads", "1")
    document = json.loads(out)
    assert status == 0
    assert out.count("\n") == 1
    assert document["fingerprint"] == info.fingerprint
    (result,) = document["results"]
    assert result["precision"] == "float32"
    card = info.training.metrics["held_out_perplexity"]
    assert result["figures"]["held_out_perplexity"] == pytest.approx(card, abs=1e-4)
    assert document["card"] == info.training.metrics
    assert document["data"][0]["sha256"] == info.training.data[0].sha256


def test_check_is_about_the_cards_figures(
    run: Run, trained: Trained, pairs_preset: MakePreset, text_preset: MakePreset
) -> None:
    for preset in (pairs_preset(), text_preset()):
        info = trained(preset)
        assert run(info.path, "--check")[0] == 0
        record = info.path / "training.json"
        content: Any = json.loads(record.read_text())
        name = next(name for name in content["metrics"] if "first" in name or "held" in name)
        content["metrics"][name] = 77.5
        record.write_text(json.dumps(content))
        status, out, err = run(info.path, "--check")
        assert status == 1
        assert "float32" in out
        assert err.startswith(f"evaluate: {name} is ")
        assert err.endswith("and 77.5 on the card\n")
        assert run(info.path)[0] == 0, "nobody asked"


def test_check_needs_the_cards_data(
    run: Run, trained: Trained, text_preset: MakePreset, text_file: Path
) -> None:
    info = trained(text_preset())
    text_file.write_text(text_file.read_text() + "More.\n")
    sentence = _refused(run(info.path, "--check"))
    assert "is not what the card's figures were measured on" in sentence
    status, out, err = run(info.path, "--precisions", "float32")
    assert status == 0
    assert "card" not in out
    assert "is not the text that text was trained on" in err


def test_own_sentences_and_their_translations(
    run: Run, trained: Trained, pairs_preset: MakePreset, own: list[str], tmp_path: Path
) -> None:
    info = trained(pairs_preset())
    out_file = tmp_path / "texts"
    status, out, _ = run(info.path, *own, "--beam-size", "1", "--out", out_file)
    assert status == 0
    assert "2 sentences of source" in out
    assert "all references" not in out
    assert out_file.read_bytes().count(b"\n") == 2
    run(info.path, *own, "--precisions", "int8", "float32", "--out", out_file)
    names = {file.name for file in tmp_path.glob("texts.*")}
    assert names == {
        f"texts.{precision}.{beam}"
        for precision in ("int8", "float32")
        for beam in ("greedy", "beam4")
    }
    assert (tmp_path / "texts.int8.greedy").read_bytes() == out_file.read_bytes()


def test_own_text(run: Run, trained: Trained, text_preset: MakePreset, tmp_path: Path) -> None:
    info = trained(text_preset())
    (tmp_path / "own").write_text("The time machine, €.")
    status, out, err = run(info.path, "--text", tmp_path / "own")
    assert status == 0
    assert "20 characters of own" in out
    assert "| perplexity" in out
    assert "unknown to text, which reads each as <unk>" in err
    assert "'€'" in err


def test_a_comparison_has_p_values_and_signatures(
    run: Run, trained: Trained, pairs_preset: MakePreset, own: list[str]
) -> None:
    one = trained(pairs_preset(), "one")
    two = trained(pairs_preset("training.seed=2", "data.test_share=0.2"), "two")
    status, out, err = run(one.path, "--compare", two.path, "--beam-size", "1")
    assert status == 0
    assert "Paired bootstrap test, int8" in out
    assert "seed:12345" in out
    assert "may have seen" in err
    assert "+" in out or "-" in out
    document = json.loads(run(one.path, "--compare", one.path, "--json", *own)[1])
    assert document["comparison"]["checkpoint"] == "one"
    (result,) = document["comparison"]["results"]
    for difference in result["figures"].values():
        assert difference["p_value"] is None
        assert difference["baseline"] == difference["other"]
    status, out, err = run(one.path, "--compare", one.path, *own)
    assert "same texts" in out
    assert "may have seen" not in err
    reverse = trained(pairs_preset("data.source_language=fr", "data.target_language=en"), "fr-en")
    sentence = _refused(run(one.path, "--compare", reverse.path))
    assert f"{one.path} translates en-fr, and {reverse.path} fr-en" in sentence


def test_what_does_not_fit_the_model_is_one_sentence(
    run: Run,
    trained: Trained,
    pairs_preset: MakePreset,
    text_preset: MakePreset,
    own: list[str],
    tmp_path: Path,
) -> None:
    translator, writer = trained(pairs_preset()).path, trained(text_preset()).path
    for words, sentence in (
        ((writer, *own), "text is a language model, and --source is for translation models"),
        ((writer, "--compare", writer), "--compare is for translation models"),
        ((writer, "--beam-size", 2), "--beam-size is for translation models"),
        ((translator, "--text", own[1]), "parallel is a translation model, and --text for"),
        ((translator, *own[:3], "/nowhere/file"), "/nowhere/file: no such file"),
        ((translator, *own, "--out", tmp_path / "no" / "out"), "there is no folder"),
        ((translator, *own, "--out", tmp_path), "is a folder, not a file"),
        ((translator, "--data", "ftp://example.org/x"), "only http, https and file URLs"),
        ((translator, "--device", "tpu"), "unknown device 'tpu'"),
        ((translator, "--precisions", "float16"), "precision float16 was asked for on cpu"),
        ((tmp_path / "nowhere",), "config.json: missing from the checkpoint folder"),
    ):
        assert sentence in _refused(run(*words))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--source", "a"], "--source and --reference go together"),
        (["--source", "a", "--reference", "b", "--text", "c"], "give either"),
        (["--data", "a", "--text", "c"], "leave it out with files of your own"),
        (["--check", "--text", "c"], "--check measures as the card was measured"),
        (["--check", "--beam-size", "2"], "--check measures as the card was measured"),
        (["--check", "--precisions", "int8"], "--check needs --precisions float32"),
        (["--beam-size", "0"], "must be 1 or more"),
        (["--length-penalty", "-1"], "must be 0 or more"),
        (["--precisions", "int4"], "invalid choice"),
        ([], "the following arguments are required: CHECKPOINT"),
    ],
)
def test_a_command_line_that_makes_no_sense(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["folder", *words] if words else [])
    assert left.value.code == 2
    assert sentence in capsys.readouterr().err


def test_accidents_are_no_tracebacks(
    run: Run, trained: Trained, text_preset: MakePreset, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = trained(text_preset())
    for accident, status in (
        (KeyboardInterrupt(), 130),
        (torch.OutOfMemoryError("CUDA out of memory. " * 40), 1),
        (ArithmeticError("the probabilities are not numbers"), 1),
    ):

        def fail(*arguments: object, error: BaseException = accident) -> None:
            raise error

        monkeypatch.setattr(evaluate_cli, "measure", fail)
        found, out, err = run(info.path)
        assert (found, out) == (status, "")
        assert err.count("\n") <= 1
        assert "Traceback" not in err


def test_the_command_needs_no_service() -> None:
    program = (
        "import sys\n"
        "from training.evaluate_cli import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "finally:\n"
        "    loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "    assert not loaded & {'app', 'fastapi', 'uvicorn'}, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--length-penalty" in done.stdout
