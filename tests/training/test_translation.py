"""Loss and measurements of translation models."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.encoder_decoder import read_at_once
from models.seq2seq import Seq2Seq
from models.tokenizers import BOS_ID, EOS_ID, SentencePieceTokenizer
from training import translation
from training.batches import POSITIONS_TOGETHER, TokenPair
from training.preset import ParallelData, Preset
from training.smoothing import pad_rows
from training.sources import DataError
from training.translation import Translation

MakePreset = Callable[..., Preset]
MakeTask = Callable[..., Translation]
CPU = torch.device("cpu")


@pytest.fixture
def make_task(pairs_preset: MakePreset, tmp_path: Path) -> MakeTask:
    def make(*overrides: str, data: Path | None = None) -> Translation:
        torch.manual_seed(3)
        preset = pairs_preset(*overrides)
        assert isinstance(preset.data, ParallelData)
        location = str(data) if data else None
        return Translation(preset, preset.data, location, tmp_path, CPU)

    return make


@pytest.mark.parametrize(
    "decoder",
    [
        ("model.decoder=context",),
        ("model.decoder=attention",),
        ("model.decoder=parallel_attention", "model.decoder_layers=2"),
    ],
)
def test_padding_changes_no_loss(make_task: MakeTask, decoder: tuple[str, ...]) -> None:
    task = make_task("model.dropout=0", *decoder)
    pairs = [max(task._pairs, key=lambda p: len(p.target)), *task._pairs[:4]]
    assert len({len(pair.target) for pair in pairs}) > 1
    batch = task.loss(task._batch(pairs))
    single = [task.loss(task._batch([pair])) for pair in pairs]
    assert batch.tokens == sum(loss.tokens for loss in single)
    assert [loss.tokens for loss in single] == [len(pair.target) for pair in pairs]
    weighted = torch.stack([loss.objective * loss.tokens for loss in single]).sum() / batch.tokens
    torch.testing.assert_close(batch.objective, weighted)
    likelihood = sum(float(loss.negative_log_likelihood) for loss in single)
    assert float(batch.negative_log_likelihood) == pytest.approx(likelihood, rel=1e-5)
    assert not batch.negative_log_likelihood.requires_grad


def test_sources_are_read_in_training_as_they_are_in_serving(make_task: MakeTask) -> None:
    task = make_task("model.reads_source_eos=false", "model.dropout=0")
    task.model.eval()
    pairs = task._pairs[:3]
    batch = task._batch(pairs)
    assert batch.source_lengths.tolist() == [len(pair.source) - 1 for pair in pairs]
    with torch.inference_mode():
        tokens, state = read_at_once(task.model, [pair.source for pair in pairs])
        served = torch.log_softmax(task.model.step(tokens, state).logits, -1)
    first = [float(-served[row, pair.target[0]]) for row, pair in enumerate(pairs)]
    alone = [TokenPair(pair.source, pair.target[:1]) for pair in pairs]
    likelihood = task.loss(task._batch(alone)).negative_log_likelihood.detach()
    assert float(likelihood) == pytest.approx(sum(first), rel=1e-5)


def test_rows_that_only_fill_a_shape_change_no_gradient(
    make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task("model.dropout=0")
    gradients = []
    for pad in (pad_rows, lambda features: features):
        monkeypatch.setattr(translation, "pad_rows", pad)
        task.model.zero_grad()
        objective = task.loss(task._batch(task._pairs[:7])).objective
        objective.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        gradients.append([p.grad for p in task.model.parameters()])
    torch.testing.assert_close(*gradients)
    monkeypatch.undo()
    sizes = {len(pad_rows(torch.ones(rows, 2))) for rows in range(1, 100)}
    assert len(sizes) == 1


def test_the_decoder_reads_the_target_shifted_right(
    make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task("model.dropout=0", "training.label_smoothing=0")
    seen: list[torch.Tensor] = []
    features = type(task.model.decoder).features

    def spy(self: object, inputs: torch.Tensor, state: object) -> torch.Tensor:
        seen.append(inputs)
        result: torch.Tensor = features(self, inputs, state)  # type: ignore[arg-type]  # a spy
        return result

    monkeypatch.setattr(type(task.model.decoder), "features", spy)
    pair = task._pairs[0]
    loss = task.loss(task._batch([pair]))
    assert seen[0].tolist() == [[BOS_ID, *pair.target[:-1]]]
    assert pair.target[-1] == EOS_ID
    # The model's own logits at each position say the same.
    batch = task._batch([pair])
    logits = task.model(batch.sources, batch.source_lengths, seen[0])
    expected = torch.nn.functional.cross_entropy(logits[0], batch.targets[0])
    torch.testing.assert_close(loss.objective, expected)


def test_batches_are_padded_pairs_with_their_lengths(make_task: MakeTask) -> None:
    task = make_task()
    seen: Counter[tuple[int, ...]] = Counter()
    for batch in task.batches(0):
        assert batch is not None
        for row, length in zip(batch.targets.tolist(), batch.target_lengths.tolist(), strict=True):
            assert row[length - 1] == EOS_ID
            assert not any(row[length:])
            seen[tuple(row[:length])] += 1
        assert batch.targets.shape[1] == batch.target_lengths.max()
        longest = int(batch.source_lengths.max())
        assert batch.sources.shape[1] == longest + -longest % POSITIONS_TOGETHER
    assert seen == Counter(pair.target for pair in task._pairs)


def test_long_pairs_are_left_out_or_cut(make_task: MakeTask) -> None:
    every = make_task("data.test_share=0", "data.validation_share=0")
    left_out = make_task("data.test_share=0", "data.validation_share=0", "data.max_tokens=5")
    cut = make_task("data.test_share=0", "data.validation_share=0", "data.truncate_to=5")
    fits = [pair for pair in every._pairs if max(len(pair.source), len(pair.target)) <= 5]
    assert len(left_out._pairs) == len(fits) < len(every._pairs) == len(cut._pairs) == 100
    assert max(len(pair.target) for pair in cut._pairs) == 5


def test_fewer_targets_are_trained_on_while_all_are_references(
    make_task: MakeTask, tmp_path: Path
) -> None:
    data = tmp_path / "pairs.txt"
    lines = (f"{n} is it\t{n} {end}" for n in range(300) for end in ("y est", "est là", "oui"))
    data.write_text("\n".join(lines), encoding="utf-8")
    every, first = make_task(data=data), make_task("data.targets_per_source=1", data=data)
    assert first._cut == every._cut
    assert all(len(sentence.references) == 3 for sentence in first._cut.test)
    assert 3 * len(first._pairs) == len(every._pairs) > 0
    assert all(pair.target.endswith("y est") for pair in first._training_pairs)
    assert first.tokenizers["target"].encode("oui") == every.tokenizers["target"].encode("oui")


def test_measuring_and_sampling_leave_mode_and_random_numbers_alone(make_task: MakeTask) -> None:
    task = make_task()
    for training in (True, False):
        task.model.train(training)
        before = torch.get_rng_state()
        assert task.validate().keys() == {"loss", "perplexity", "bleu"}
        assert str(task.samples()) == str(task.samples())
        task.final_metrics()
        task.translate(["i see"], beam_size=2)
        assert task.model.training == training
        assert torch.equal(torch.get_rng_state(), before)


def test_the_validation_loss_is_the_plain_one_of_every_pair(make_task: MakeTask) -> None:
    task = make_task()
    figures = task.validate()
    task.model.eval()
    losses = [task.loss(task._batch([pair])) for pair in task._validation_pairs]
    total = sum(float(loss.negative_log_likelihood) for loss in losses)
    assert figures["loss"] == pytest.approx(total / sum(loss.tokens for loss in losses), rel=1e-5)
    assert make_task("data.validation_share=0").validate() == {}


def test_weights_that_have_diverged_are_measured_without_decoding(make_task: MakeTask) -> None:
    task = make_task()
    bias = dict(task.model.named_parameters())["decoder.output_layer.bias"]
    with torch.no_grad():
        bias[EOS_ID] = -1e30
    figures = task.validate()
    assert figures["perplexity"] == float("inf")
    assert "bleu" not in figures


def test_one_matrix_needs_one_tokenizer(make_task: MakeTask) -> None:
    task = make_task("model.tie_embeddings=true")
    assert task.tokenizers["source"] is task.tokenizers["target"]
    assert isinstance(task.model, Seq2Seq)
    assert make_task().tokenizers["source"] is not make_task().tokenizers["target"]


def test_the_cards_figures_are_those_of_the_test_sentences(make_task: MakeTask) -> None:
    task = make_task()
    metrics = task.final_metrics()
    assert metrics["test_sentences"] == len(task._cut.test) > 0
    assert {"greedy_bleu_first_reference", "beam4_bleu_all_references"} <= metrics.keys()
    note = task.metrics_note()
    assert "tok:13a" in note
    assert f"{len(task._cut.test)} test sentences" in note


def test_without_test_sentences_the_textbooks_bleu_is_measured(
    make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translation, "TEXTBOOK_BLEU_SENTENCES", 3)
    task = make_task("data.test_share=0", "data.validation_share=0")
    asked: list[str] = []

    def translate(texts: list[str], *, beam_size: int) -> list[str]:
        asked.extend(texts)
        return texts

    monkeypatch.setattr(task, "translate", translate)
    assert task.final_metrics().keys() == {"training_textbook_bleu_k2"}
    assert len(asked) == 3, "not hundreds of thousands"
    assert "no test sentences" in task.metrics_note()


@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        ("", (), "holds no sentence pair"),
        ("Go.\tVa.\nno tab here\n", (), "line 2 has no tab"),
        ("i see\tje vois\n" * 3, ("data.max_tokens=2",), "no pair is short enough"),
    ],
)
def test_pairs_that_cannot_be_trained_on_are_refused(
    make_task: MakeTask, tmp_path: Path, content: str, overrides: tuple[str, ...], message: str
) -> None:
    other = tmp_path / "other.txt"
    other.write_text(content)
    with pytest.raises(DataError, match=rf"other\.txt: .*{message}"):
        make_task("data.test_share=0", "data.validation_share=0", *overrides, data=other)


def test_reverse_trains_from_the_second_column_to_the_first(make_task: MakeTask) -> None:
    forward, backward = make_task(), make_task("data.reverse=true")
    read, written = forward.tokenizers["source"], forward.tokenizers["target"]
    pairs = {(read.decode(pair.source), written.decode(pair.target)) for pair in forward._pairs}
    read, written = backward.tokenizers["source"], backward.tokenizers["target"]
    assert pairs == {
        (written.decode(pair.target), read.decode(pair.source)) for pair in backward._pairs
    }
    assert forward.final_metrics().keys() == backward.final_metrics().keys()


def test_subword_smoothing_splits_anew_in_each_epoch_and_alike_when_asked_again(
    make_task: MakeTask, tmp_path: Path, pairs_preset: MakePreset
) -> None:
    texts = [f"{pair.source} {pair.target}" for pair in make_task()._cut.train]
    pieces = SentencePieceTokenizer.train(texts, 295)
    preset = pairs_preset("training.subword_smoothing=0.2")
    assert isinstance(preset.data, ParallelData)
    task = Translation(
        preset, preset.data, None, tmp_path, CPU, tokenizers={"source": pieces, "target": pieces}
    )

    def targets(epoch: int) -> list[list[list[int]]]:
        return [batch.targets.tolist() for batch in task.batches(epoch) if batch]

    def written(epoch: int) -> Counter[str]:
        return Counter(pieces.decode(row) for batch in targets(epoch) for row in batch)

    assert targets(0) == targets(0)
    assert targets(0) != targets(1)
    assert written(0) == written(1) == Counter(pair.target for pair in task._cut.train)


def test_samples_show_held_out_sentences_with_their_attention(make_task: MakeTask) -> None:
    for decoder, looks in (("context", False), ("attention", True)):
        task = make_task(f"model.decoder={decoder}")
        samples = task.samples()
        held_out = {(pair.source, pair.target) for pair in task._cut.validation}
        assert {(sample.source, sample.reference) for sample in samples} <= held_out
        expected = task.translate([sample.source for sample in samples], beam_size=1)
        assert [sample.output for sample in samples] == expected
        for sample in samples:
            assert (sample.attention is not None) == looks
            if sample.attention:
                size = (len(sample.attention.target), len(sample.attention.source))
                assert sample.attention.weights.shape == size
                assert sample.attention.source[-1] == "<eos>"


def test_validation_pairs_that_are_too_long_are_told_of(
    make_task: MakeTask, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "training")
    task = make_task("data.max_tokens=6")
    left_out = len(task._cut.validation) - len(task._validation_pairs)
    assert 0 < left_out < len(task._cut.validation)
    assert f"left out {left_out} validation pairs of more than 6 tokens" in caplog.text


def test_validation_pairs_that_are_all_too_long_are_refused(
    make_task: MakeTask, tmp_path: Path
) -> None:
    file = tmp_path / "valid.txt"
    file.write_text("i see a cat and no dog\tje vois un chat et non chien\n")
    with pytest.raises(DataError, match=r"no validation pair is short enough: raise data\.max_tok"):
        make_task(
            "data.max_tokens=6",
            "data.validation_share=0",
            "data.validation_source.name=Valid",
            f"data.validation_source.location={file}",
        )
