"""Batches, loss and measurements of language models."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.preparation import PREPARATIONS
from models.tokenizers import BOS_ID, UNK_ID
from training import language_modelling
from training.language_modelling import LanguageModelling, text_loss, text_perplexity
from training.preset import Preset, TextData
from training.sources import DataError

MakePreset = Callable[..., Preset]
CPU = torch.device("cpu")


@pytest.fixture
def make_task(text_preset: MakePreset, tmp_path: Path) -> Callable[..., LanguageModelling]:
    def make(*overrides: str, data: Path | None = None) -> LanguageModelling:
        torch.manual_seed(3)
        preset = text_preset(*overrides)
        assert isinstance(preset.data, TextData)
        location = str(data) if data else None
        return LanguageModelling(preset, preset.data, location, tmp_path, CPU)

    return make


MakeTask = Callable[..., LanguageModelling]


def _rows(task: LanguageModelling, epoch: int) -> torch.Tensor:
    """The whole stream of each row: ``[N, L + 1]``."""
    batches = list(task.batches(epoch))
    return torch.cat([batches[0][0][:, :1], *(targets for _, targets, _ in batches)], dim=1)


@pytest.mark.parametrize("kind", ["character", "word", "sentencepiece"])
def test_batches_are_shifted_by_one_and_go_on_where_the_last_ended(
    make_task: MakeTask, kind: str
) -> None:
    task = make_task(f"tokenizer.kind={kind}", "tokenizer.vocabulary_size=300")
    batches = list(task.batches(0))
    assert len(batches) > 2
    assert [begins for _, _, begins in batches] == [True] + [False] * (len(batches) - 1)
    stream = _rows(task, 0)
    assert (stream[:, 0] == BOS_ID).all()
    assert (stream[:, 1:] != BOS_ID).all()
    position = 0
    for inputs, targets, _ in batches:
        assert inputs.shape == targets.shape
        assert inputs.shape[1] <= 40
        assert torch.equal(inputs, stream[:, position : position + inputs.shape[1]])
        assert torch.equal(targets, stream[:, position + 1 : position + 1 + inputs.shape[1]])
        position += inputs.shape[1]
    assert position == stream.shape[1] - 1


def test_rows_read_the_text_as_it_stands(make_task: MakeTask, text: str) -> None:
    task = make_task()
    ring = (text[: len(task._text.text)]) * 2
    for row in _rows(task, 0):
        assert task._tokenizer.decode(row.tolist()) in ring


def test_every_row_begins_a_paragraph_of_its_own(make_task: MakeTask) -> None:
    task = make_task()
    tokenizer = task._tokenizer
    beginnings = {part[:25] for part in task._text.text.split("\n\n")}
    for epoch in range(5):
        firsts = [tokenizer.decode(row[:26].tolist()) for row in _rows(task, epoch)]
        assert set(firsts) <= beginnings
        assert len(set(firsts)) == len(firsts)


def test_rows_without_a_paragraph_near_do_not_all_read_the_same(
    make_task: MakeTask, tmp_path: Path
) -> None:
    """One blank line at the end of a long text is no place for all rows to begin at."""
    words = "".join(f"{number} " for number in range(1000))
    other = tmp_path / "long.txt"
    other.write_text(words + "\n\nThe end.")
    task = make_task("data.held_out_share=0", data=other)
    for epoch in range(3):
        rows = _rows(task, epoch)
        assert len({tuple(row.tolist()) for row in rows}) == len(rows)


def test_epochs_are_repeatable_and_differ(make_task: MakeTask) -> None:
    task = make_task()
    again = make_task()
    epochs = [_rows(task, epoch) for epoch in range(6)]
    assert torch.equal(epochs[2], _rows(task, 2))
    assert torch.equal(epochs[2], _rows(again, 2))
    # A row has six paragraphs to begin with, so now and then two epochs agree.
    same = sum(int((one == other).all(1).sum()) for one in epochs for other in epochs) - 6 * 5
    assert same < 0.4 * 6 * 5 * 5
    assert not torch.equal(epochs[0], _rows(make_task("training.seed=2"), 0))


def test_a_prepared_text_begins_within_the_first_steps_as_in_the_book(make_task: MakeTask) -> None:
    task = make_task("data.preparation=book_characters", "data.held_out_share=0")
    length = len(task._text.text) // 5
    for epoch in range(4):
        row = task._tokenizer.decode(_rows(task, epoch)[1].tolist())
        assert length <= task._text.text.index(row) < length + 40


def test_the_loss_carries_the_state_but_not_the_gradient(make_task: MakeTask) -> None:
    task = make_task("model.dropout=0")
    batches = list(task.batches(0))
    first = task.loss(batches[0])
    assert all(part.grad_fn is None and not part.requires_grad for part in task.carried())
    second = task.loss(batches[1])
    both = torch.cat([batches[0][0], batches[1][0]], dim=1)
    targets = torch.cat([batches[0][1], batches[1][1]], dim=1)
    logits, _ = task.model(both)
    whole = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    mean = (first.objective + second.objective) / 2
    torch.testing.assert_close(mean, whole)
    assert second.tokens == batches[1][1].numel()
    torch.testing.assert_close(
        second.negative_log_likelihood, second.objective.detach() * second.tokens
    )
    second.objective.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped


def test_a_new_epoch_begins_with_a_new_state(make_task: MakeTask) -> None:
    task = make_task("model.dropout=0")
    batches = list(task.batches(0))
    fresh = task.loss(batches[0]).objective
    task.loss(batches[1])
    assert torch.equal(task.loss(batches[0]).objective, fresh)


def test_what_is_carried_can_be_put_back(make_task: MakeTask) -> None:
    one, other = make_task("model.cell=lstm"), make_task("model.cell=lstm")
    batches = list(one.batches(0))
    one.loss(batches[0])
    other.restore([part.clone() for part in one.carried()])
    assert len(other.carried()) == 4
    torch.manual_seed(1)
    expected = one.loss(batches[1]).objective
    torch.manual_seed(1)
    assert torch.equal(other.loss(batches[1]).objective, expected)
    other.restore([])


@pytest.mark.parametrize("cell", ["gru", "lstm", "gru_textbook"])
def test_a_text_measured_in_chunks_equals_it_measured_in_one_go(
    make_task: MakeTask, monkeypatch: pytest.MonkeyPatch, cell: str
) -> None:
    task = make_task(f"model.cell={cell}", "model.implementation=equations")
    tokens = task._tokenizer.encode(task._held_out)
    whole = text_loss(task.model, tokens)
    monkeypatch.setattr(language_modelling, "EVALUATION_CHUNK", 7)
    assert text_loss(task.model, tokens) == pytest.approx(whole, rel=1e-6)
    assert text_loss(task.model, []) == 0.0
    task.model.eval()
    logits, _ = task.model(torch.tensor([[BOS_ID, *tokens[:-1]]]))
    expected = torch.nn.functional.cross_entropy(logits[0], torch.tensor(tokens))
    assert whole == pytest.approx(expected.item(), rel=1e-5)


def test_a_model_that_knows_no_bos_is_asked_about_all_but_the_first_token(
    make_task: MakeTask,
) -> None:
    task = make_task("model.reads_bos=false")
    text = task._held_out
    tokens = task._tokenizer.encode(text)
    task.model.eval()
    logits, _ = task.model(torch.tensor([tokens[:-1]]))
    expected = torch.nn.functional.cross_entropy(logits[0], torch.tensor(tokens[1:]))
    assert text_loss(task.model, tokens) == pytest.approx(expected.item(), rel=1e-5)
    found = text_perplexity(task.model, task._tokenizer, text)
    assert found == pytest.approx(expected.exp().item(), rel=1e-5)
    with pytest.raises(ValueError, match="is one token"):
        text_perplexity(task.model, task._tokenizer, text[0])


@pytest.mark.parametrize(("kind", "asked"), [("character", "éabc"), ("word", "éa the time")])
def test_an_unknown_first_token_counts_as_long_as_it_is(
    make_task: MakeTask, kind: str, asked: str
) -> None:
    task = make_task("model.reads_bos=false", f"tokenizer.kind={kind}")
    tokens = task._tokenizer.encode(asked)
    assert tokens[0] == UNK_ID
    nats = text_loss(task.model, tokens) * (len(tokens) - 1)
    length = len(asked) - (1 if kind == "character" else len("éa"))
    found = text_perplexity(task.model, task._tokenizer, asked)
    assert found == pytest.approx(math.exp(nats / length))


def test_rows_of_a_model_that_knows_no_bos_begin_with_the_text(
    make_task: MakeTask,
) -> None:
    task = make_task("model.reads_bos=false")
    stream = _rows(task, 0)
    assert BOS_ID not in stream
    text = task._text.text
    begins = [text.index(part) for part in text.split("\n\n")]
    read = [task._tokenizer.decode(row.tolist()) for row in stream]
    ring = text * 2
    assert all(any(ring.startswith(row, begin) for begin in begins) for row in read)
    assert stream.shape == _rows(make_task(), 0).shape


@pytest.mark.parametrize("kind", ["character", "word"])
def test_what_the_tokenizer_prepares_is_measured_as_it_is_read(
    make_task: MakeTask, text_preset: MakePreset, tmp_path: Path, kind: str
) -> None:
    raw = "The Time!!  Machine?? ---  by H. G. (1895)\n\n" * 30
    file = tmp_path / "raw.txt"
    file.write_text(raw)
    prepared = PREPARATIONS["book_characters"](raw)
    assert len(prepared) < len(raw)
    first = make_task("data.preparation=book_characters", f"tokenizer.kind={kind}", data=file)
    preset = text_preset()  # of a text that is prepared no further
    assert isinstance(preset.data, TextData)
    task = LanguageModelling(preset, preset.data, str(file), tmp_path, CPU, first.tokenizers)
    found = text_perplexity(task.model, task._tokenizer, raw)
    assert found == text_perplexity(task.model, task._tokenizer, prepared)
    assert task._text.text == PREPARATIONS["book_characters"](task._text.text)
    assert f"last {len(task._held_out)} characters" in task.metrics_note()
    held_out = text_perplexity(task.model, task._tokenizer, task._held_out)
    assert task.final_metrics()["held_out_perplexity"] == pytest.approx(held_out, abs=1e-4)


def test_measuring_and_sampling_leave_mode_and_random_numbers_alone(make_task: MakeTask) -> None:
    task = make_task()
    for training in (True, False):
        task.model.train(training)
        before = torch.get_rng_state()
        task.validate()
        first = task.samples()
        assert task.samples() == first
        task.final_metrics()
        assert task.model.training == training
        assert torch.equal(torch.get_rng_state(), before)


def test_the_mode_comes_back_after_an_error(make_task: MakeTask) -> None:
    task = make_task()
    task.model.train()
    with pytest.raises(IndexError):
        text_loss(task.model, [10_000])
    assert task.model.training


def test_a_sample_goes_on_from_the_texts_first_words(make_task: MakeTask, text: str) -> None:
    task = make_task()
    (sample,) = task.samples()
    assert sample.source == text[:20]
    assert len(sample.output) == 80
    (words,) = make_task("tokenizer.kind=word").samples()
    assert words.source == " ".join(text.split()[:20])
    assert words.output.startswith(" ")
    (both_ways,) = make_task("model.bidirectional=true").samples()
    assert "cannot generate" in both_ways.output


def test_figures_are_per_character_whatever_the_tokens(make_task: MakeTask) -> None:
    task = make_task("tokenizer.kind=word")
    metrics = task.final_metrics()
    tokens = task._tokenizer.encode(task._held_out)
    nats = text_loss(task.model, tokens) * len(tokens)
    expected = math.exp(nats / len(task._held_out))
    assert metrics["held_out_perplexity"] == pytest.approx(expected, abs=1e-4)
    assert metrics.keys() == {"held_out_perplexity", "training_perplexity"}
    assert f"last {len(task._held_out)} characters" in task.metrics_note()
    loss = task.validate()
    assert loss["perplexity"] == pytest.approx(math.exp(loss["loss"]))


def test_without_a_held_out_part_the_training_text_is_measured(make_task: MakeTask) -> None:
    task = make_task("data.held_out_share=0")
    assert task.validate() == {}
    assert task.final_metrics().keys() == {"training_perplexity"}
    assert "the training text itself" in task.metrics_note()


def test_the_held_out_end_is_not_trained_on(make_task: MakeTask, text: str) -> None:
    task = make_task()
    assert task._text.text + task._held_out == text
    assert len(task._held_out) == pytest.approx(0.2 * len(text), rel=0.2)
    short = make_task("data.first_characters=500", "data.held_out_share=0")
    assert short._text.text == text[:500]


@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        ("", (), "0 characters are too few"),
        ("a", (), "1 characters are too few"),
        ("short text", (), "8 tokens are too few for 5 rows; lower training.batch_rows"),
        ("a b c " * 50 + " " * 90, ("tokenizer.kind=word",), "held-out end .* has no tokens"),
    ],
)
def test_a_text_that_is_too_short_is_refused(
    make_task: MakeTask, tmp_path: Path, content: str, overrides: tuple[str, ...], message: str
) -> None:
    other = tmp_path / "other.txt"
    other.write_text(content)
    with pytest.raises(DataError, match=rf"other\.txt: .*{message}"):
        make_task(*overrides, data=other)


def test_the_shortest_text_that_fills_the_rows_can_be_trained_on(
    make_task: MakeTask, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("abcdefghij")
    task = make_task("data.held_out_share=0", data=other)
    assert [tuple(inputs.shape) for inputs, _, _ in task.batches(0)] == [(5, 1)]
