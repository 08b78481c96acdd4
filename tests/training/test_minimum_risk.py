"""Minimum risk training: the hypotheses, their costs, and a gradient that lowers the risk."""

import copy
import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.decoding.params import DecodingParams
from models.decoding.step import decode_corpus
from models.precision import set_precision
from models.tokenizers import BOS_ID, EOS_ID
from training import minimum_risk, translation
from training.batches import TokenPair, unpadded
from training.minimum_risk import (
    LENGTH_PENALTY,
    Hypotheses,
    expected_costs,
    find_hypotheses,
    sentence_bleu,
    summed_risk,
)
from training.preset import ParallelData, Preset, PresetError
from training.translation import TOKENS_BEYOND_REFERENCE, Translation

MakePreset = Callable[..., Preset]
CPU = torch.device("cpu")


def make_task(pairs_preset: MakePreset, folder: Path, *overrides: str) -> Translation:
    torch.manual_seed(3)
    preset = pairs_preset(*overrides)
    assert isinstance(preset.data, ParallelData)
    return Translation(preset, preset.data, None, folder, CPU)


@pytest.fixture
def task(pairs_preset: MakePreset, tmp_path: Path) -> Translation:
    return make_task(pairs_preset, tmp_path, "model.dropout=0", "training.minimum_risk={}")


def hypotheses_of(
    task: Translation, pairs: list[TokenPair], others: tuple[str, ...] = (), beam_size: int = 3
) -> Hypotheses:
    """Those of some pairs, each with its own reference and perhaps others."""
    decode = task.tokenizers["target"].decode
    return find_hypotheses(
        task.model,
        decode,
        [pair.source for pair in pairs],
        [[decode(pair.target[:-1]), *others] for pair in pairs],
        [len(pair.target) + TOKENS_BEYOND_REFERENCE for pair in pairs],
        beam_size,
    )


def test_hypotheses_are_those_of_the_services_beam_search(task: Translation) -> None:
    task.model.train()
    pairs = task._pairs[:5]
    found = hypotheses_of(task, pairs)
    assert task.model.training
    served = set_precision(copy.deepcopy(task.model).eval(), "int8")
    for place, pair in enumerate(pairs):
        params = DecodingParams(
            max_new_tokens=len(pair.target) + TOKENS_BEYOND_REFERENCE, beam_size=3, num_outputs=3
        )
        ((_, outputs),) = decode_corpus(served, [pair.source], params)
        own = [tokens for p, tokens in zip(found.pairs, found.tokens, strict=True) if p == place]
        assert own == [output.token_ids for output in outputs]
    assert found.pairs == sorted(found.pairs)


@pytest.mark.parametrize("others", [(), ("va !", "un deux trois quatre")])
def test_costs_tell_how_far_a_hypothesis_is_from_its_references(
    task: Translation, others: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # An untrained model's hypotheses would all be worth nothing.
    monkeypatch.setattr(minimum_risk, "sentence_bleu", lambda *both: len("".join(both)) % 8 / 8)
    pairs = task._pairs[:5]
    found = hypotheses_of(task, pairs, others)
    decode = task.tokenizers["target"].decode
    for place, tokens, cost in zip(found.pairs, found.tokens, found.costs, strict=True):
        assert pairs[place].target[-1] == EOS_ID
        references = [decode(pairs[place].target[:-1]), *others]
        scores = [len(decode(tokens) + reference) % 8 / 8 for reference in references]
        assert cost == 1 - sum(scores) / len(scores)
    assert len(set(found.costs)) > 1


def test_a_source_has_the_references_of_all_its_pairs(
    task: Translation, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, other = task._pairs[:3]
    twin = TokenPair(first.source, second.target)
    task._pairs = [first, twin, other]
    given: list[Sequence[Sequence[str]]] = []

    def spy(model: object, decode: object, sources: object, references: Any, *rest: Any) -> Any:
        given.append(references)
        return find_hypotheses(task.model, *(decode, sources, references, *rest))

    monkeypatch.setattr(translation, "find_hypotheses", spy)
    task.model.train()
    task.loss(task._batch([twin, other, TokenPair(second.source, other.target)]))
    text = {pair: task.tokenizers["target"].decode(pair.target[:-1]) for pair in task._pairs}
    # What is not among the pairs as they are usually split has its own.
    assert given == [[[text[first], text[twin]], [text[other]], [text[other]]]]


def test_searching_draws_no_random_numbers_and_changes_no_weight(task: Translation) -> None:
    state = torch.get_rng_state()
    weights = copy.deepcopy(task.model.state_dict())
    hypotheses_of(task, task._pairs[:3])
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in task.model.state_dict().items():
        assert torch.equal(value, weights[name])
    assert all(p.requires_grad for p in task.model.parameters())


def test_sentence_bleu() -> None:
    assert sentence_bleu("a b c d e", "a b c d e") == pytest.approx(1)
    assert sentence_bleu("Oui !", "Oui !") == pytest.approx(1)
    assert sentence_bleu("", "a b") == 0
    assert sentence_bleu("x y", "a b") == 0
    # 3 of 4 words, and with one added 2 of 4 pairs, 1 of 3 threes, 1 of 2 fours.
    expected = (3 / 4 * (1 + 1) / (3 + 1) * 1 / 3 * 1 / 2) ** 0.25
    assert sentence_bleu("a b x d", "a b c d") == pytest.approx(expected)
    short = sentence_bleu("a b c", "a b c d e f")
    assert short == pytest.approx(math.exp(1 - 6 / 3))


@given(seed=st.integers(0, 2**32 - 1))
def test_expected_costs_by_the_definition(seed: int) -> None:
    chooser = random.Random(seed)
    groups = [chooser.randint(1, 4) for _ in range(chooser.randint(1, 5))]
    pairs = [place for place, count in enumerate(groups) for _ in range(count)]
    lengths = [chooser.randint(1, 6) for _ in pairs]
    logprobs = [[-chooser.expovariate(0.2) for _ in range(length)] for length in lengths]
    costs = [chooser.random() for _ in pairs]
    sharpness = chooser.choice([0.0, 0.5, 1.0, 7.0])
    found = expected_costs(
        torch.tensor([value for own in logprobs for value in own], dtype=torch.float64),
        torch.tensor(lengths),
        torch.tensor(pairs),
        torch.tensor(costs, dtype=torch.float64),
        sharpness,
    )
    for place in range(len(groups)):
        own = [row for row, pair in enumerate(pairs) if pair == place]
        scores = [sharpness * sum(logprobs[r]) / lengths[r] ** LENGTH_PENALTY for r in own]
        shares = [math.exp(score - max(scores)) for score in scores]
        expected = sum(q * costs[r] for q, r in zip(shares, own, strict=True)) / sum(shares)
        assert float(found[place]) == pytest.approx(expected, rel=1e-9)
        if not sharpness:
            assert float(found[place]) == pytest.approx(sum(costs[r] for r in own) / len(own))


def test_improbable_hypotheses_do_not_divide_by_nothing() -> None:
    logprobs = torch.tensor([-1e4, -2e4, -3.0], requires_grad=True)
    lengths, pairs = torch.tensor([1, 1, 1]), torch.tensor([0, 0, 1])
    risks = expected_costs(logprobs, lengths, pairs, torch.tensor([0.25, 0.5, 0.75]), 1.0)
    assert risks.tolist() == [0.25, 0.75]
    (gradient,) = torch.autograd.grad(risks.sum(), logprobs)
    assert gradient.isfinite().all()


def test_pairs_with_one_hypothesis_teach_nothing_by_their_risk(task: Translation) -> None:
    batch = task._batch(task._pairs[:2])
    encoded = task.model.encoder(batch.sources, batch.source_lengths)
    single = Hypotheses([0, 1], [(5, 6, EOS_ID), (7, EOS_ID)], [0.25, 0.5])
    risk = summed_risk(task.model, encoded, batch, single, 1.0)
    lengths = batch.target_lengths.tolist()
    assert float(risk.detach()) == pytest.approx(0.25 * lengths[0] + 0.5 * lengths[1])
    risk.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    for parameter in task.model.parameters():
        assert parameter.grad is None or float(parameter.grad.abs().max()) < 1e-6


def test_the_risk_is_that_of_the_models_own_probabilities(task: Translation) -> None:
    pairs = task._pairs[:3]
    batch = task._batch(pairs)
    found = hypotheses_of(task, pairs)
    encoded = task.model.encoder(batch.sources, batch.source_lengths)
    risk = summed_risk(task.model, encoded, batch, found, 2.0)
    served = copy.deepcopy(task.model).eval()
    expected = 0.0
    for place, pair in enumerate(pairs):
        scores, costs = [], []
        for tokens, cost in [
            (t, c)
            for p, t, c in zip(found.pairs, found.tokens, found.costs, strict=True)
            if p == place
        ]:
            sources, lengths = torch.tensor([pair.source]), torch.tensor([len(pair.source)])
            logits = served(sources, lengths, torch.tensor([[BOS_ID, *tokens[:-1]]])).detach()
            logprobs = torch.log_softmax(logits[0], -1)
            total = sum(float(logprobs[at, token]) for at, token in enumerate(tokens))
            scores.append(2.0 * total / len(tokens) ** LENGTH_PENALTY)
            costs.append(cost)
        shares = [math.exp(score) for score in scores]
        mean = sum(q * c for q, c in zip(shares, costs, strict=True)) / sum(shares)
        expected += len(pair.target) * mean
    assert float(risk.detach()) == pytest.approx(expected, rel=1e-4)


def test_steps_against_the_gradient_lower_the_risk(task: Translation) -> None:
    pairs = task._pairs[:4]
    batch = task._batch(pairs)
    found = hypotheses_of(task, pairs)
    # An untrained model writes nothing but mistakes: say that the last of each pair is best.
    costs = [float(pair == after) for pair, after in pairwise([*found.pairs, None])]
    found = Hypotheses(found.pairs, found.tokens, costs)
    optimizer = torch.optim.Adam(task.model.parameters(), lr=0.02)
    risks = []
    for _ in range(40):
        encoded = task.model.encoder(batch.sources, batch.source_lengths)
        risk = summed_risk(task.model, encoded, batch, found, 1.0)
        risks.append(float(risk.detach()))
        optimizer.zero_grad()
        risk.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
    assert risks[-1] < 0.9 * risks[0]


def test_the_loss_has_the_risk_in_training_alone(
    pairs_preset: MakePreset, tmp_path: Path, task: Translation
) -> None:
    plain = make_task(pairs_preset, tmp_path, "model.dropout=0")
    batch = task._batch(task._pairs[:4])
    objectives = {}
    for name, one in (("risk", task), ("plain", plain)):
        for mode in (True, False):
            one.model.train(mode)
            objectives[name, mode] = float(one.loss(batch).objective.detach())
    assert objectives["risk", False] == objectives["plain", False] == objectives["plain", True]
    assert unpadded(batch.targets, batch.target_lengths) == [
        list(p.target) for p in task._pairs[:4]
    ]
    settings = task._settings.minimum_risk
    assert settings is not None
    found = hypotheses_of(task, task._pairs[:4], beam_size=settings.beam_size)
    encoded = task.model.encoder(batch.sources, batch.source_lengths)
    risk = float(summed_risk(task.model, encoded, batch, found, settings.sharpness).detach())
    added = settings.weight * risk / int(batch.target_lengths.sum())
    assert objectives["risk", True] == pytest.approx(objectives["plain", True] + added, rel=1e-5)


def test_the_shares_of_several_processes_make_the_whole(
    task: Translation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop weighs each process' gradient by its share of the batch's target tokens."""
    monkeypatch.setattr(minimum_risk, "sentence_bleu", lambda text, _: len(text) % 7 / 7)
    task.model.train()
    pairs = sorted(task._pairs[:7], key=lambda pair: len(pair.source))
    whole = task.loss(task._batch(pairs))
    shares = [task.loss(task._batch(pairs[rank::3])) for rank in range(3)]
    summed = sum(float(share.objective.detach()) * share.tokens for share in shares)
    assert whole.tokens == sum(share.tokens for share in shares)
    assert float(whole.objective.detach()) == pytest.approx(summed / whole.tokens, rel=1e-5)


def test_the_best_checkpoint_is_that_of_the_highest_bleu(task: Translation) -> None:
    figures = task.validate()
    assert 0 <= figures["risk"] <= 1
    assert "risk" not in figures_without_risk(task)


def figures_without_risk(task: Translation) -> dict[str, float]:
    task._settings = task._settings.model_copy(update={"minimum_risk": None})
    return task.validate()


def test_what_it_does_not_go_with_is_refused(
    pairs_preset: MakePreset, text_preset: MakePreset
) -> None:
    with pytest.raises(PresetError, match="minimum_risk is for sentence pairs only"):
        text_preset("training.minimum_risk={}")
    with pytest.raises(PresetError, match="either consistency or minimum_risk"):
        pairs_preset("training.minimum_risk={}", "training.consistency=1.0")
