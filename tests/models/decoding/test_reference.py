"""The plain loop against first principles: exhaustive search, greedy by hand, rescoring."""

import itertools

import pytest
import torch
from torch import Tensor

from models.config import LanguageModelConfig
from models.decoding import reference
from models.decoding.params import (
    DecodingParams,
    FinishReason,
    Hypothesis,
    collect_hypotheses,
    normalised_score,
)
from models.decoding.reference import decode_reference, exhaustive_search
from models.encoder_decoder import StepModel, StepOutput, read_at_once
from models.language_model import LanguageModel, NotGenerativeError
from models.state import DecodeState
from models.tokenizers import BOS_ID, EOS_ID
from tests.models.decoding.toy_models import (
    random_language_model,
    random_table,
    random_translation_model,
    uniform_table,
)


def decode(model: StepModel, prompt: list[int], params: DecodingParams) -> list[Hypothesis]:
    emissions = itertools.chain.from_iterable(decode_reference(model, prompt, params))
    return collect_hypotheses(emissions, params.length_penalty)


@torch.inference_mode()
def rescore(model: StepModel, prompt: list[int], hypothesis: Hypothesis) -> float:
    """The model's own log-probability of a hypothesis, fed token by token."""
    tokens, state = read_at_once(model, [prompt])
    total = 0.0
    for token in hypothesis.token_ids:
        output = model.step(tokens, state)
        total += float(torch.log_softmax(output.logits, -1)[0, token])
        tokens, state = torch.tensor([token]), output.state
    return total


CASES: list[tuple[StepModel, list[int]]] = [
    *[(random_language_model(seed=seed), [BOS_ID, 5, 6]) for seed in range(6)],
    *[(random_translation_model(seed=seed), [5, 6, 7, EOS_ID]) for seed in range(6)],
    (uniform_table(9), [BOS_ID]),
]


@pytest.mark.parametrize(("model", "prompt"), CASES)
def test_beam_one_is_greedy(model: StepModel, prompt: list[int]) -> None:
    """The search itself at width 1, which requests never run: they take the greedy loop."""
    params = DecodingParams(12)
    emissions = itertools.chain.from_iterable(reference._beam_search(model, prompt, params))
    assert collect_hypotheses(emissions, 0.75) == decode(model, prompt, params)


@pytest.mark.parametrize(("model", "prompt"), CASES)
def test_greedy_by_hand(model: StepModel, prompt: list[int]) -> None:
    tokens, state = read_at_once(model, [prompt])
    by_hand: list[int] = []
    while len(by_hand) < 12 and EOS_ID not in by_hand:
        logits, state, _ = model.step(tokens, state)
        row = logits[0].tolist()
        best = max(row[2], *row[4:])
        by_hand.append(next(t for t in range(len(row)) if t not in (0, 1, 3) and row[t] == best))
        tokens = torch.tensor(by_hand[-1:])
    assert list(decode(model, prompt, DecodingParams(12))[0].token_ids) == by_hand


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("length_penalty", [0.0, 0.75, 2.0])
def test_a_beam_as_wide_as_everything_is_exhaustive(seed: int, length_penalty: float) -> None:
    # 3 ordinary tokens and <eos>: 1 + 3 + 9 + 4 * 27 outputs of up to 4 tokens.
    model = random_language_model(7, seed)
    params = DecodingParams(4, beam_size=200, num_outputs=121, length_penalty=length_penalty)
    best = decode(model, [BOS_ID], params)
    expected = exhaustive_search(model, [BOS_ID], params)
    assert len(expected) == 121
    assert [h.token_ids for h in best] == [h.token_ids for h in expected]
    assert [h.score for h in best] == [h.score for h in expected]


def test_exhaustive_search_visits_everything() -> None:
    params = DecodingParams(3, beam_size=1000, num_outputs=1000, length_penalty=0.0)
    found = exhaustive_search(uniform_table(6), [BOS_ID], params)
    # 2 ordinary tokens: <eos>, 2 of length 2 that end, and 4 * 3 of length 3.
    assert len(found) == 1 + 2 + 4 * 3
    assert len({h.token_ids for h in found}) == len(found)


@pytest.mark.parametrize("width", [2, 3, 5])
def test_a_wider_beam_never_beats_exhaustive_search(width: int) -> None:
    for seed in range(10):
        model = random_table(7, seed)
        params = DecodingParams(5, beam_size=width)
        best = exhaustive_search(model, [BOS_ID], params)[0]
        assert decode(model, [BOS_ID], params)[0].score <= best.score + 1e-12


@pytest.mark.parametrize("width", [1, 2, 5])
def test_a_score_is_the_models_own_log_probability(width: int) -> None:
    for model, prompt in (
        (random_language_model(), [BOS_ID, 5]),
        (random_translation_model(), [5, 6, EOS_ID]),
    ):
        params = DecodingParams(9, beam_size=width, num_outputs=width)
        hypotheses = decode(model, prompt, params)
        assert len(hypotheses) == width
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
        for hypothesis in hypotheses:
            own = rescore(model, prompt, hypothesis)
            assert hypothesis.logprob == pytest.approx(own, abs=1e-5)
            assert hypothesis.score == normalised_score(
                hypothesis.logprob, len(hypothesis.tokens), 0.75
            )


def test_stopping_early_changes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [
        (random_table(9, seed), DecodingParams(8, beam_size=k, num_outputs=n, length_penalty=a))
        for seed in range(10)
        for k, n, a in [(2, 1, 0.75), (4, 2, 0.0), (5, 5, 1.5)]
    ]
    early = [decode(model, [BOS_ID], params) for model, params in cases]
    monkeypatch.setattr("models.decoding.reference.can_improve", lambda *_: True)
    assert [decode(model, [BOS_ID], params) for model, params in cases] == early


def test_ties_go_to_the_earlier_parent_and_the_lower_token() -> None:
    best = decode(uniform_table(7), [BOS_ID], DecodingParams(3, beam_size=4, num_outputs=4))
    # Step 1 ends (2) and lets 4, 5 and 6 live; step 2 has room for three continuations of the
    # first parent: 2, 4, 5; step 3 for two: 2 and 4.
    assert [h.token_ids for h in best] == [(2,), (4, 2), (4, 4, 2), (4, 4, 4)]


def test_finish_reasons() -> None:
    never_ends = uniform_table(7)
    never_ends.table[:, EOS_ID] = -1e9
    for width in (1, 3):
        (output,) = decode(never_ends, [BOS_ID], DecodingParams(4, beam_size=width))
        assert output.finish_reason is FinishReason.LENGTH
        assert len(output.tokens) == 4
    always_ends = uniform_table(7)
    always_ends.table[:, EOS_ID] = 1e3
    for width in (1, 3):
        (output,) = decode(always_ends, [BOS_ID], DecodingParams(4, beam_size=width))
        assert output.finish_reason is FinishReason.END
        assert output.token_ids == (EOS_ID,)


def test_a_seed_reproduces_and_each_output_reports_its_own() -> None:
    model = random_language_model()
    params = DecodingParams(10, temperature=1.5, seed=41, num_outputs=3)
    outputs = decode(model, [BOS_ID], params)
    assert outputs == decode(model, [BOS_ID], params)
    assert len({output.token_ids for output in outputs}) == 3
    for index, output in enumerate(outputs):
        alone = DecodingParams(10, temperature=1.5, seed=params.output_seed(index))
        assert decode(model, [BOS_ID], alone) == [output]


def test_sampling_reports_the_models_own_log_probabilities() -> None:
    model = random_language_model()
    params = DecodingParams(6, temperature=2.0, top_k=5, top_p=0.9, repetition_penalty=1.3, seed=3)
    (output,) = decode(model, [BOS_ID, 7], params)
    assert output.logprob == pytest.approx(rescore(model, [BOS_ID, 7], output), abs=1e-5)


def test_the_penalty_sees_the_prompt_of_a_language_model_only() -> None:
    table = uniform_table(8)
    table.table[:, 5], table.table[:, 6] = 2.0, 1.9
    params = DecodingParams(1, repetition_penalty=5.0)
    assert decode(table, [BOS_ID, 5], params)[0].token_ids == (6,)
    table.continues_prompt = False
    assert decode(table, [BOS_ID, 5], params)[0].token_ids == (5,)


def test_attention_is_returned_where_asked() -> None:
    model = random_translation_model()
    for width in (1, 3):
        params = DecodingParams(5, beam_size=width, return_attention=True)
        for token in decode(model, [5, 6, EOS_ID], params)[0].tokens:
            assert token.attention is not None
            assert len(token.attention) == 3
            assert sum(token.attention) == pytest.approx(1.0, abs=1e-5)
    plain = decode(model, [5, 6, EOS_ID], DecodingParams(5))[0]
    assert all(token.attention is None for token in plain.tokens)


class CountedModel:
    """Counts the steps of a model."""

    continues_prompt = True

    def __init__(self, model: StepModel) -> None:
        self.vocabulary_size = model.vocabulary_size
        self.prompt_vocabulary_size = model.prompt_vocabulary_size
        self.read = model.read
        self._model = model
        self.calls = 0

    def step(self, tokens: Tensor, state: DecodeState) -> StepOutput:
        self.calls += 1
        return self._model.step(tokens, state)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_it_yields_after_every_step(width: int) -> None:
    model = CountedModel(random_language_model())
    for _ in decode_reference(model, [BOS_ID], DecodingParams(6, beam_size=width)):
        assert 1 <= model.calls <= width  # at most one call for each live hypothesis
        model.calls = 0


def test_a_bidirectional_model_is_refused() -> None:
    model = LanguageModel(LanguageModelConfig(vocabulary_size=9, hidden_size=4, bidirectional=True))
    with pytest.raises(NotGenerativeError):
        decode(model, [BOS_ID], DecodingParams(3))
