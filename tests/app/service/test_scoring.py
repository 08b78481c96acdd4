"""Scores, beside those of the ``sacrebleu`` command and those worked out by hand."""

import asyncio
import gc
import json
import math
import random
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sacrebleu.tokenizers.tokenizer_char import TokenizerChar
from sacrebleu.tokenizers.tokenizer_intl import TokenizerV14International
from sacrebleu.tokenizers.tokenizer_re import TokenizerRegexp
from sacrebleu.tokenizers.tokenizer_ter import TercomTokenizer
from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

from app.exceptions import DeadlineError, DrainingError, InvalidRequestError, QueueFullError
from app.service.deadline import Deadline
from app.service.limits import Limits
from app.service.scoring import (
    MetricName,
    MetricScore,
    ScoringRequest,
    ScoringService,
    compute_scores,
)

LIMITS = Limits(
    max_texts=8,
    max_segments=8,
    max_characters=5_000,
    max_new_tokens=5,
    default_max_new_tokens=5,
    max_alignment_cells=1_000,
    max_decodings=8,
    timeout_seconds=10,
)
HYPOTHESES = (
    "The cat sat on the mat, didn't it?",
    "He bought 3.5 kg of apples at the market today.",
    "Il fait très froid aujourd'hui !",
    "Completely wrong words here now.",
    "",
)
FIRST = (
    "The cat was sitting on the mat, wasn't it?",
    "Today he bought 3.5 kg of apples at the Market.",
    "Il fait très froid aujourd'hui.",
    "Nothing like that was ever said.",
    "Silence.",
)
SECOND = (
    "A cat sat on the mat.",
    "He bought three and a half kilos of apples today.",
    "Aujourd'hui, il fait très froid !",
    "That is not what anybody said.",
    "No word.",
)


def sacrebleu_command(tmp_path: Path, options: list[str]) -> Any:
    """Runs the command line tool on the sentences, with two references each."""
    files = []
    for name, lines in (("first", FIRST), ("second", SECOND), ("hypotheses", HYPOTHESES)):
        files.append(tmp_path / name)
        files[-1].write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    # With 17 digits, a double is written to its last bit.
    command = [sys.executable, "-m", "sacrebleu", str(files[0]), str(files[1])]
    command += ["-i", str(files[2]), "-w", "17", *options]
    return subprocess.run(command, capture_output=True, check=True, text=True, timeout=60).stdout


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, []),
        ({"lowercase": True, "tokenize": "intl"}, ["-lc", "-tok", "intl", "--chrf-lowercase"]),
        ({"smooth_method": "floor", "tokenize": "char"}, ["-s", "floor", "-tok", "char"]),
        ({"smooth_method": "add-k", "tokenize": "none"}, ["-s", "add-k", "-tok", "none"]),
        ({"smooth_method": "none", "tokenize": "zh"}, ["-s", "none", "-tok", "zh"]),
    ],
)
def test_scores_equal_the_sacrebleu_command(
    tmp_path: Path, fields: dict[str, Any], options: list[str]
) -> None:
    command = json.loads(
        sacrebleu_command(tmp_path, ["-m", "bleu", "chrf", "ter", "-f", "json", *options])
    )
    request = ScoringRequest(
        HYPOTHESES, tuple(zip(FIRST, SECOND, strict=True)), ("bleu", "chrf", "ter"), **fields
    )
    scores = compute_scores(request)
    by_name: dict[str, Any] = {entry["name"].lower(): entry for entry in command}
    by_name["chrf"] = by_name.pop("chrf2")
    for name, score in scores.items():
        assert score.score == by_name[name]["score"]
        assert score.signature == by_name[name]["signature"]


@pytest.mark.parametrize("metric", ["bleu", "chrf", "ter"])
def test_sentence_scores_equal_the_sacrebleu_command(tmp_path: Path, metric: MetricName) -> None:
    lines = sacrebleu_command(tmp_path, ["-m", metric, "-sl", "-b"]).splitlines()
    request = ScoringRequest(
        HYPOTHESES, tuple(zip(FIRST, SECOND, strict=True)), (metric,), sentence_level=True
    )
    score = compute_scores(request)[metric]
    assert score.sentences == tuple(float(line) for line in lines)
    assert score.sentence_signature is not None
    assert score.sentence_signature.startswith("nrefs:2|")


def test_bleu_gives_its_parts() -> None:
    score = compute_scores(ScoringRequest(("the cat sat",), (("the cat sat on the mat",),)))["bleu"]
    assert score.details["hypothesis_length"] == 3
    assert score.details["reference_length"] == 6
    assert score.details["brevity_penalty"] == pytest.approx(math.exp(1 - 6 / 3))
    assert score.details["precisions"] == [100.0, 100.0, 100.0, 0.0]


def test_numbers_of_references_may_differ() -> None:
    request = ScoringRequest(
        ("a b c d e", "f g h i j"),
        (("a b c d e",), ("x", "f g h i j")),
        ("bleu",),
        sentence_level=True,
    )
    score = compute_scores(request)["bleu"]
    assert score.score == pytest.approx(100)
    assert score.signature is not None
    assert score.signature.startswith("nrefs:var|")
    assert score.sentence_signature is not None
    assert score.sentence_signature.startswith("nrefs:var|")


def test_textbook_bleu_is_the_mean_of_the_best_by_hand() -> None:
    # "a b c" against "a b d": p1 = 2/3, p2 = 1/2. Against "a": p1 = 1/3, p2 = 0.
    request = ScoringRequest(
        ("a b c", "X"),
        (("a", "a b d"), ("x",)),
        ("textbook_bleu",),
        sentence_level=True,
        textbook_max_order=2,
    )
    score = compute_scores(request)["textbook_bleu"]
    first = math.sqrt(2 / 3) * 0.5**0.25
    assert score.sentences == pytest.approx((first, 0.0))
    assert score.score == pytest.approx(first / 2)
    assert score.signature is None
    lowered = ScoringRequest(("X",), (("x",),), ("textbook_bleu",), lowercase=True)
    assert compute_scores(lowered)["textbook_bleu"].score == 1.0


@pytest.mark.parametrize(
    ("fields", "tokenizer"),
    [
        ({}, Tokenizer13a),
        ({}, TokenizerRegexp),
        ({"tokenize": "char"}, TokenizerChar),
        ({"tokenize": "intl"}, TokenizerV14International),
        ({"tokenize": "zh"}, TokenizerZh),
        ({"metrics": ("ter",)}, TercomTokenizer),
    ],
)
def test_nothing_of_past_requests_is_kept(fields: dict[str, Any], tokenizer: Any) -> None:
    compute_scores(ScoringRequest(("remember me",), (("remember me",),), **fields))
    assert tokenizer.__call__.cache_info().currsize == 0


def test_every_metric_can_be_asked_for() -> None:
    metrics = get_args(MetricName)
    scores = compute_scores(ScoringRequest(("a",), (("a",),), metrics))
    assert list(scores) == list(metrics)
    assert all(isinstance(score, MetricScore) for score in scores.values())


def test_stopped_work_ends_soon() -> None:
    stopped = threading.Event()
    stopped.set()
    assert compute_scores(ScoringRequest(("a",), (("a",),)), stopped) == {}


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (ScoringRequest(("a", "b"), (("a",),)), "references"),
        (ScoringRequest(("a",) * 9, (("a",),) * 9), "hypotheses"),
        (ScoringRequest(("a",), (("a" * 5_001,),)), "references.0"),
        (ScoringRequest(("a",), (("a " * 201,),), ("ter",)), "metrics"),
        (ScoringRequest(("a " * 201,), (("a",),), ("ter",)), "metrics"),
        (ScoringRequest(("a " * 101,), (("a",) * 8,), ("ter",)), "metrics"),
        (ScoringRequest(("a",), (("a " * 101, *"abcdefg"),), ("ter",)), "metrics"),
    ],
)
def test_what_breaks_a_rule_is_named(request_: ScoringRequest, field: str) -> None:
    service = ScoringService(LIMITS, 8)
    with pytest.raises(InvalidRequestError) as caught:
        service.check(request_)
    assert caught.value.field == field
    service.close()


def test_what_just_keeps_the_rules_is_scored() -> None:
    service = ScoringService(LIMITS, 8)
    service.check(ScoringRequest(("a",) * 8, (("a" * 5_000,),) * 8))
    words = "a " * 200
    service.check(ScoringRequest((words,), ((words,) * 4,), ("ter",)))
    service.close()


def test_nothing_is_left_of_requests_that_are_over() -> None:
    def futures() -> int:
        gc.collect()
        return sum(issubclass(type(each), asyncio.Future) for each in gc.get_objects())

    async def scenario() -> None:
        service = ScoringService(LIMITS, 8)
        before = futures()
        for _ in range(20):
            await service.score(ScoringRequest(("a",), (("a",),)), Deadline.after(10))
        assert futures() < before + 10
        service.close()

    asyncio.run(scenario())


def shuffled(count: int, seed: int) -> str:
    """Numbers as words, in an order that takes TER long."""
    words = [str(i) for i in range(count)]
    random.Random(seed).shuffle(words)
    return " ".join(words)


def test_overload_and_deadline() -> None:
    references = tuple((shuffled(150, i),) for i in range(8))
    slow = ScoringRequest((shuffled(150, 99),) * 8, references, ("ter",))
    short = ScoringRequest(("a",), (("a",),))

    async def scenario() -> None:
        service = ScoringService(LIMITS, queue_capacity=1)
        first = asyncio.create_task(service.score(slow, Deadline.after(0.02)))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await service.score(short, Deadline.after(5))
        with pytest.raises(DeadlineError, match=r"0.02 seconds"):
            await first
        # The thread is still at its segment, and the request still holds its place.
        with pytest.raises(QueueFullError):
            await service.score(short, Deadline.after(5))
        async with asyncio.timeout(60):
            while True:
                try:
                    assert await service.score(short, Deadline.after(5))
                    break
                except QueueFullError:
                    await asyncio.sleep(0.01)
        service.close()

    asyncio.run(scenario())


def test_ter_can_be_stopped_between_references() -> None:
    begun: list[str] = []
    stopped = threading.Event()

    def stop_at_the_second(hypothesis: Sequence[str], reference: Sequence[str]) -> tuple[int, int]:
        begun.append(" ".join(reference))
        if len(begun) == 2:
            stopped.set()
        return 1, 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sacrebleu.metrics.ter.translation_edit_rate", stop_at_the_second)
        request = ScoringRequest(("x",), (("a", "b", "c", "d"),), ("ter",))
        assert compute_scores(request, stopped) == {}
    assert begun == ["a", "b"]


def test_closing_cuts_off_what_runs_and_what_waits() -> None:
    slow = ScoringRequest((shuffled(150, 1),), ((shuffled(150, 2),),), ("ter",))

    async def scenario() -> None:
        service = ScoringService(LIMITS, queue_capacity=2)
        tasks = [asyncio.create_task(service.score(slow, Deadline.after(60))) for _ in range(2)]
        await asyncio.sleep(0)
        service.close()
        for task in tasks:
            with pytest.raises(DrainingError):
                await task
        with pytest.raises(DrainingError):
            await service.score(slow, Deadline.after(60))

    asyncio.run(scenario())
