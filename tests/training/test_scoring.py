"""Scores are sacreBLEU's, and so are the tests of their differences."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from training.parallel import TestSentence
from training.scoring import (
    CARD_FIGURES,
    Score,
    figures_for,
    mean_textbook_bleu,
    paired_bootstrap,
    score_sentences,
)

SENTENCES = [
    TestSentence("a", ("one two three four five", "un deux trois")),
    TestSentence("b", ("six seven eight nine",)),
    TestSentence("c", ("The cat sat on the mat.", "A cat was sitting on the mat.")),
]
HYPOTHESES = ["one two four five", "six seven eight nine ten", "The cat sat on a mat."]
OTHERS = ["one two three four five", "six seven nine", "The cat is on a mat."]

Command = Callable[..., str]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """What the sacrebleu command prints of files of lines."""

    def run(references: list[list[str]], *systems: list[str], options: list[str]) -> str:
        files = []
        for index, lines in enumerate([*references, *systems]):
            files.append(tmp_path / str(index))
            files[-1].write_text("".join(f"{line}\n" for line in lines))
        words = [*map(str, files[: len(references)]), "-i", *map(str, files[len(references) :])]
        words += ["-m", "bleu", "chrf", "ter", "--width", "6", *options]
        command = [sys.executable, "-m", "sacrebleu", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return run


def test_scores_and_signatures_are_those_of_the_sacrebleu_command(command: Command) -> None:
    single = [TestSentence(s.source, s.references[:1]) for s in SENTENCES]
    double = [TestSentence(s.source, (s.references[0], s.references[-1] + " x")) for s in SENTENCES]
    for sentences, kind in ((single, "first_reference"), (double, "all_references")):
        streams = [list(stream) for stream in zip(*(s.references for s in sentences), strict=True)]
        found = score_sentences(HYPOTHESES, sentences, figures_for(sentences))
        for expected in json.loads(command(streams, HYPOTHESES, options=["--format", "json"])):
            score = found[f"{expected['name'].rstrip('2').lower()}_{kind}"]
            assert score.value == pytest.approx(expected["score"], abs=1e-6)
            assert score.signature == expected["signature"]


def test_a_sentence_may_have_more_references_than_another() -> None:
    others = ["un deux trois", "six seven eight nine", "A cat was sitting on the mat."]
    scores = score_sentences(others, SENTENCES, figures_for(SENTENCES))
    assert scores["bleu_all_references"].value == pytest.approx(100)
    assert scores["chrf_all_references"].value == pytest.approx(100)
    assert scores["ter_all_references"].value == 0
    assert scores["bleu_first_reference"].value < 100
    assert "nrefs:var" in str(scores["bleu_all_references"].signature)
    assert "nrefs:1|" in str(scores["bleu_first_reference"].signature)


def test_all_references_are_a_figure_only_where_there_are_several() -> None:
    assert set(CARD_FIGURES) < set(figures_for(SENTENCES))
    assert figures_for(SENTENCES[1:2]) == (
        "bleu_first_reference",
        "chrf_first_reference",
        "ter_first_reference",
    )


def test_the_paired_bootstrap_is_that_of_the_sacrebleu_command(command: Command) -> None:
    sentences = [TestSentence(s.source, s.references[:1]) for s in SENTENCES]
    found = paired_bootstrap(HYPOTHESES, OTHERS, sentences, figures_for(sentences))
    streams = [[s.references[0] for s in sentences]]
    # Its JSON of a paired test fails, for numpy's numbers.
    table = command(streams, HYPOTHESES, OTHERS, options=["--paired-bs", "--format", "text"])
    expected = re.findall(r"([\d.]+) \(([\d.]+) ± ([\d.]+)\)", table)
    p_values = re.findall(r"p = ([\d.]+)", table)
    assert len(expected) == 2 * len(p_values) == 2 * len(found) == 6
    systems = [d.baseline for d in found.values()] + [d.other for d in found.values()]
    for system, numbers in zip(systems, expected, strict=True):
        shown = [float(number) for number in numbers]
        assert [system.value, system.mean, system.interval] == pytest.approx(shown, abs=1e-5)
    for difference, p_value in zip(found.values(), p_values, strict=True):
        assert difference.p_value == pytest.approx(float(p_value), abs=1e-4)
        assert "bs:1000|seed:12345" in difference.signature


def test_equal_translations_have_no_p_value() -> None:
    for difference in paired_bootstrap(
        HYPOTHESES, list(HYPOTHESES), SENTENCES, figures_for(SENTENCES)
    ).values():
        assert difference.p_value is None
        assert difference.baseline == difference.other


def test_the_textbooks_bleu_takes_the_best_reference() -> None:
    assert mean_textbook_bleu(["un deux trois"], SENTENCES[:1], 2) == 1
    halves = mean_textbook_bleu(["un deux trois", "nothing here"], SENTENCES[:2], 2)
    assert halves == 0.5


def test_what_is_published_is_rounded() -> None:
    assert Score(43.7563).rounded == 43.76
    assert Score(4.35971, decimals=4).rounded == 4.3597
