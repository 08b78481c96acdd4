"""An output that goes on from a state is, bit for bit, the one that was never cut."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.config import LanguageModelConfig
from models.decoding.params import (
    REPETITION_WINDOW,
    DecodingParams,
    Emission,
    FinishReason,
    GeneratedToken,
    SavedState,
    StateReturn,
)
from models.decoding.step import BatchedDecoder
from models.decoding.task import DecodingTask
from models.encoder_decoder import StepModel
from models.language_model import LanguageModel
from models.precision import set_precision
from models.tokenizers import BOS_ID, EOS_ID
from tests.models.decoding.test_same_answer import (
    CELL_NAMES,
    Visit,
    make_prompt,
    random_visits,
    run,
    served_model,
)
from tests.models.decoding.toy_models import FORMS, make_model, random_table
from tests.models.teams import team_of

LANGUAGE_MODELS = [form for form in FORMS if "decoder" not in FORMS[form]]
KEY = 1_000


def decode(
    model: StepModel,
    prompt: Sequence[int],
    params: DecodingParams,
    *,
    resume: SavedState | None = None,
    stream: bool = False,
    company: Sequence[Visit] = (),
) -> dict[int, Emission]:
    """The outputs of a request by index, each with all of its tokens, alone or among others."""
    task = DecodingTask(KEY, prompt, params, stream, resume=resume)
    found: dict[int, Emission] = {}
    for emission in run(model, [Visit(task, joins=2 if company else 0), *company])[KEY]:
        before = found.get(emission.output_index)
        tokens = (*(before.tokens if before else ()), *emission.tokens)
        found[emission.output_index] = emission._replace(tokens=tokens)
    return found


def go_on(
    model: StepModel, state: SavedState, params: DecodingParams, **options: Any
) -> dict[int, Emission]:
    return decode(model, state.window[-1:], params, resume=state, **options)


def bits(tokens: Sequence[GeneratedToken]) -> list[str]:
    """Tokens with log-probabilities to the last bit: the text of a float is exact."""
    return [repr(token) for token in tokens]


def text_of(tokens: Sequence[GeneratedToken]) -> list[int]:
    return [each.token for each in tokens if each.token != EOS_ID]


kinds = st.one_of(
    st.builds(DecodingParams, max_new_tokens=st.integers(2, 14)),
    st.builds(
        DecodingParams,
        max_new_tokens=st.integers(2, 14),
        temperature=st.sampled_from([0.5, 1.0, 3.0]),
        top_k=st.sampled_from([0, 3]),
        top_p=st.sampled_from([0.6, 1.0]),
        repetition_penalty=st.sampled_from([1.0, 1.4]),
        seed=st.integers(0, 2**53 - 1),
        num_outputs=st.integers(1, 3),
    ),
    st.builds(DecodingParams, max_new_tokens=st.integers(2, 14), repetition_penalty=st.just(1.4)),
)


@st.composite
def cuts(draw: Callable[..., Any]) -> dict[str, Any]:
    form = draw(st.sampled_from(LANGUAGE_MODELS))
    # 64 takes the path of sizes that fill the processor's vectors.
    model = served_model(
        form,
        draw(st.sampled_from(CELL_NAMES)),
        draw(st.sampled_from([29, 29, 8003])),
        hidden_size=draw(st.sampled_from([30, 64])),
        sharpness=draw(st.sampled_from([1.5, 4])),
    )
    params = draw(kinds)
    company = random_visits(form, draw(st.integers(0, 99)), draw(st.sampled_from([0, 0, 3, 7])))
    return {
        "model": model,
        "prompt": make_prompt(form, draw(st.integers(1, 90)), draw(st.integers(0, 999))),
        "params": params,
        "cut": draw(st.integers(1, params.max_new_tokens - 1)),
        "company": company,
        "stream": draw(st.booleans()),
    }


def assert_cut_changes_nothing(
    model: StepModel,
    prompt: Sequence[int],
    params: DecodingParams,
    cut: int,
    company: Sequence[Visit],
    stream: bool,
) -> None:
    whole = decode(model, prompt, params)
    state_too = replace(params, max_new_tokens=cut, return_state=StateReturn.AT_END)
    parts = decode(model, prompt, state_too, company=company, stream=stream)
    assert parts.keys() == whole.keys()
    for index, part in parts.items():
        assert part.state is not None
        rest = replace(
            params,
            max_new_tokens=params.max_new_tokens - cut,
            seed=params.output_seed(index),
            num_outputs=1,
        )
        (last,) = go_on(model, part.state, rest, company=company, stream=stream).values()
        if part.finish_reason is FinishReason.END:
            # The state is that of the text: the model ends it once more.
            assert bits(part.tokens) == bits(whole[index].tokens)
            assert bits(last.tokens) == bits(whole[index].tokens[-1:])
            continue
        assert part.state.position == cut
        assert bits([*part.tokens, *last.tokens]) == bits(whole[index].tokens)
        assert last.finish_reason is whole[index].finish_reason


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(cut=cuts())
def test_a_cut_anywhere_changes_no_bit(cut: dict[str, Any]) -> None:
    assert_cut_changes_nothing(**cut)


@settings(max_examples=4, suppress_health_check=list(HealthCheck))
@given(cut=cuts())
def test_a_cut_anywhere_changes_no_bit_with_two_threads(cut: dict[str, Any]) -> None:
    with team_of(2):
        assert_cut_changes_nothing(**cut)


def test_a_text_may_be_cut_behind_every_token() -> None:
    model = served_model("embedded", "lstm", 29, sharpness=1.5)
    prompt = make_prompt("embedded", 5, 1)
    params = DecodingParams(12, temperature=1.0, seed=11, repetition_penalty=1.4)
    (whole,) = decode(model, prompt, params).values()
    assert whole.finish_reason is FinishReason.LENGTH
    one = replace(params, max_new_tokens=1, return_state=StateReturn.AT_END)
    (part,) = decode(model, prompt, one).values()
    tokens = [*part.tokens]
    while len(tokens) < 12:
        assert part.state is not None
        (part,) = go_on(model, part.state, one).values()
        tokens += part.tokens
    assert bits(tokens) == bits(whole.tokens)


def test_a_stream_brings_the_state_behind_each_token() -> None:
    model = served_model("embedded", "gru", 29, sharpness=1.5)
    prompt = make_prompt("embedded", 5, 1)
    params = DecodingParams(9, temperature=1.0, seed=11)
    task = DecodingTask(
        KEY, prompt, replace(params, return_state=StateReturn.EACH_TOKEN), stream=True
    )
    emissions = run(model, [Visit(task)])[KEY]
    assert len(emissions) == 9
    for length, emission in enumerate(emissions, start=1):
        shorter = replace(params, max_new_tokens=length, return_state=StateReturn.AT_END)
        assert emission.state == decode(model, prompt, shorter)[0].state


def test_a_state_forks_into_several_outputs() -> None:
    model = served_model("embedded", "gru", 29, sharpness=1.5)
    prompt = make_prompt("embedded", 7, 2)
    params = DecodingParams(4, temperature=1.0, seed=5, return_state=StateReturn.AT_END)
    state = decode(model, prompt, params)[0].state
    assert state is not None
    rest = replace(params, max_new_tokens=6)
    forks = go_on(model, state, replace(rest, num_outputs=3))
    for index, fork in forks.items():
        alone = go_on(model, state, replace(rest, seed=params.output_seed(index)))[0]
        assert bits(fork.tokens) == bits(alone.tokens)
    assert len({tuple(bits(fork.tokens)) for fork in forks.values()}) == 3
    assert bits(decode(model, prompt, replace(params, max_new_tokens=10))[0].tokens[4:]) == bits(
        forks[0].tokens
    )


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    form=st.sampled_from(LANGUAGE_MODELS),
    cell=st.sampled_from(CELL_NAMES),
    length=st.integers(1, 70),
    added=st.integers(0, 70),
    seed=st.integers(0, 99),
    width=st.integers(1, 4),
)
def test_what_follows_a_state_is_read_as_if_all_had_been_sent(
    form: str, cell: Any, length: int, added: int, seed: int, width: int
) -> None:
    """Of every hypothesis of a beam, too, whenever it ended."""
    model = served_model(form, cell, 29, sharpness=1.5)
    prompt = make_prompt(form, length, seed)
    more = make_prompt(form, added + 1, seed + 1)[1:]
    first = DecodingParams(5, beam_size=width, num_outputs=width, return_state=StateReturn.AT_END)
    rest = DecodingParams(6, temperature=1.0, seed=seed)
    for hypothesis in decode(model, prompt, first).values():
        text = (*prompt, *text_of(hypothesis.tokens))
        assert hypothesis.state is not None
        assert hypothesis.state.window == text[-REPETITION_WINDOW:]
        state = replace(hypothesis.state, position=0)
        behind = (text[-1], *more)
        assert bits(decode(model, behind, rest, resume=state)[0].tokens) == bits(
            decode(model, (*text, *more), rest)[0].tokens
        )


def test_the_repetition_penalty_looks_back_as_far_as_a_state_can_bring_along() -> None:
    """A token that only stands further back is not penalised."""
    model = random_table(29, seed=1)
    window = [4] * REPETITION_WINDOW
    params = DecodingParams(20, repetition_penalty=5.0)
    (far,) = decode(model, (*range(5, 29), *window), params).values()
    (near,) = decode(model, window, params).values()
    (seen,) = decode(model, (*range(5, 29), *window[24:]), params).values()
    assert bits(far.tokens) == bits(near.tokens) != bits(seen.tokens)


def test_a_cut_changes_nothing_where_the_text_is_longer_than_the_window() -> None:
    model = served_model("embedded", "gru", 29, sharpness=1.5)
    prompt = make_prompt("embedded", 250, 1)
    params = DecodingParams(24, temperature=1.0, seed=2, repetition_penalty=1.4)
    (whole,) = decode(model, prompt, params).values()
    assert len(whole.tokens) == 24
    state_too = replace(params, max_new_tokens=17, return_state=StateReturn.AT_END)
    (part,) = decode(model, prompt, state_too).values()
    assert part.state is not None
    assert len(part.state.window) == REPETITION_WINDOW
    (last,) = go_on(model, part.state, replace(params, max_new_tokens=7)).values()
    assert bits([*part.tokens, *last.tokens]) == bits(whole.tokens)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_in_float_a_state_comes_back_to_the_bit(precision: Any, cell: Any) -> None:
    """Alone, with the same steps, it is then the same output, too."""
    model = served_model("embedded", cell, 29, precision, sharpness=1.5)
    prompt = make_prompt("embedded", 9, 4)
    params = DecodingParams(10, temperature=1.0, seed=3)
    (whole,) = decode(model, prompt, params).values()
    cut = replace(params, max_new_tokens=4, return_state=StateReturn.AT_END)
    (part,) = decode(model, prompt, cut).values()
    assert part.state is not None
    (last,) = go_on(model, part.state, replace(params, max_new_tokens=6)).values()
    assert bits([*part.tokens, *last.tokens]) == bits(whole.tokens)


def test_a_model_that_does_not_read_bos_goes_on_from_nothing() -> None:
    """Its first input is zeros then, which are in its state like any other input."""
    model = model_without_bos()
    params = DecodingParams(9, temperature=1.0, seed=3)
    (whole,) = decode(model, (BOS_ID,), params).values()
    cut = replace(params, max_new_tokens=1, return_state=StateReturn.AT_END)
    (part,) = decode(model, (BOS_ID,), cut).values()
    assert part.state is not None
    (last,) = go_on(model, part.state, replace(params, max_new_tokens=8)).values()
    assert bits([*part.tokens, *last.tokens]) == bits(whole.tokens)


def model_without_bos() -> StepModel:
    torch.manual_seed(0)
    config = LanguageModelConfig(vocabulary_size=29, hidden_size=30, num_layers=2, reads_bos=False)
    return set_precision(LanguageModel(config).eval(), "int8")


@pytest.mark.parametrize("length", [2, 9])
@pytest.mark.parametrize("added", [0, 1, 5])
def test_a_model_that_does_not_read_bos_goes_on_too(length: int, added: int) -> None:
    model = model_without_bos()
    prompt, more = make_prompt("embedded", length, 1), (5, 6, 7, 8, 9)[:added]
    params = DecodingParams(7, temperature=1.0, seed=3)
    (part,) = decode(
        model, prompt, replace(params, max_new_tokens=3, return_state=StateReturn.AT_END)
    ).values()
    assert part.state is not None
    text = (*prompt, *text_of(part.tokens), *more)
    state = replace(part.state, position=0)
    behind = (part.state.window[-1], *more)
    (whole,) = decode(model, text, params).values()
    assert bits(decode(model, behind, params, resume=state)[0].tokens) == bits(whole.tokens)
    decoder = BatchedDecoder(model, prefix_bytes=10**6)
    for key, tokens in enumerate((prompt, text, text)):
        decoder.admit([DecodingTask(key, tokens, params)])
        found: list[GeneratedToken] = []
        while decoder.rows:
            for emission in decoder.step().emissions.get(key, []):
                found += emission.tokens
    assert bits(found) == bits(whole.tokens)


# ---------------------------------------------------------------- prompts that were read before


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    form=st.sampled_from(LANGUAGE_MODELS),
    cell=st.sampled_from(CELL_NAMES),
    # Prompts that share beginnings: cut from a few texts, some with another end.
    pieces=st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 60), st.booleans(), st.integers(0, 3)),
        min_size=2,
        max_size=12,
    ),
    capacity_bytes=st.sampled_from([3_000, 10**6]),
)
def test_a_known_prefix_changes_no_bit(
    form: str,
    cell: Any,
    pieces: list[tuple[int, int, bool, int]],
    capacity_bytes: int,
) -> None:
    model = served_model(form, cell, 29, sharpness=1.5)
    decoder = BatchedDecoder(model, prefix_bytes=capacity_bytes)
    params = DecodingParams(5, temperature=1.0, seed=7)
    tasks = []
    for key, (text, length, ends_otherwise, _) in enumerate(pieces):
        prompt = make_prompt(form, 60, text)[:length]
        tasks.append(DecodingTask(key, (*prompt, 5) if ends_otherwise else prompt, params))
    emitted: dict[int, Emission] = {}
    for task, (_, _, _, steps) in zip(tasks, pieces, strict=True):
        decoder.admit([task])
        for _ in range(steps):
            emitted |= {key: each[0] for key, each in decoder.step().emissions.items()}
    while decoder.rows:
        emitted |= {key: each[0] for key, each in decoder.step().emissions.items()}
    for task in tasks:
        alone = decode(model, task.prompt, params)[0]
        assert bits(emitted[task.key].tokens) == bits(alone.tokens)


def test_a_prompt_that_was_read_before_is_not_read_again() -> None:
    model = served_model("embedded", "gru", 29)
    decoder = BatchedDecoder(model, prefix_bytes=10**6)
    prompt = make_prompt("embedded", 50, 1)
    params = DecodingParams(2)

    def read(key: int, tokens: Sequence[int]) -> tuple[int, int, int, int]:
        decoder.admit([DecodingTask(key, tokens, params)])
        result = decoder.step()
        while decoder.rows:
            decoder.step()
        prefixes = result.prefixes
        return result.positions_read, prefixes.hits, prefixes.misses, prefixes.positions

    assert read(1, prompt) == (50, 0, 1, 0)
    assert read(2, prompt) == (1, 1, 0, 49)
    # All but the last token, which the state has not seen, is known of a longer one, too.
    assert read(3, (*prompt, 7, 8)) == (3, 1, 0, 49)
    assert read(4, (*prompt, 7)) == (2, 1, 0, 49)
    assert read(5, (*prompt, 7, 8, 9)) == (2, 1, 0, 51)
    assert read(6, make_prompt("embedded", 50, 2)) == (50, 0, 1, 0)
    # An empty text has nothing to be read.
    assert read(7, (BOS_ID,)) == (1, 0, 0, 0)


def test_what_goes_on_from_a_state_is_no_known_prefix() -> None:
    """Its tokens are not all of its text."""
    model = served_model("embedded", "gru", 29, sharpness=1.5)
    params = DecodingParams(4, return_state=StateReturn.AT_END)
    state = decode(model, make_prompt("embedded", 20, 1), params)[0].state
    assert state is not None
    behind = (state.window[-1], 5, 6, 7)
    decoder = BatchedDecoder(model, prefix_bytes=10**6)
    decoder.admit([DecodingTask(1, behind, params, resume=state)])
    while decoder.rows:
        decoder.step()
    decoder.admit([DecodingTask(2, behind, params)])
    result = decoder.step()
    assert (result.prefixes.hits, result.prefixes.misses) == (0, 1)


# ---------------------------------------------------------------- states that do not fit


def test_a_state_of_another_model_is_refused() -> None:
    model = served_model("embedded", "gru", 29)
    params = DecodingParams(2, return_state=StateReturn.AT_END)
    state = decode(model, (BOS_ID, 5), params)[0].state
    assert state is not None
    decoder = BatchedDecoder(model)
    for broken in (
        replace(state, vectors=state.vectors[:-4]),
        replace(state, vectors=b""),
        replace(state, window=(29,)),
    ):
        with pytest.raises(ValueError, match="the state is that of another model"):
            decoder.check(DecodingTask(1, broken.window[-1:], params, resume=broken))
    decoder.check(DecodingTask(1, state.window[-1:], params, resume=state))


def test_a_translation_model_has_no_state_that_travels() -> None:
    decoder = BatchedDecoder(served_model("additive", "gru", 29))
    params = DecodingParams(2, return_state=StateReturn.AT_END)
    state = SavedState(b"", (5,), 0)
    for task in (
        DecodingTask(1, (5, EOS_ID), params),
        DecodingTask(1, (5, EOS_ID), DecodingParams(2), resume=state),
    ):
        with pytest.raises(ValueError, match="only a language model's state"):
            decoder.admit([task])
    assert decoder.rows == 0


def test_the_seen_state_is_the_model_s_own() -> None:
    """The vectors are the layers' parts in order, as docs/state.md describes them."""
    model = make_model("embedded", "lstm", 29)
    params = DecodingParams(1, return_state=StateReturn.AT_END)
    state = decode(model, (BOS_ID, 5, 6), params)[0].state
    assert state is not None
    with torch.inference_mode():
        inputs = model.embed(torch.tensor([[BOS_ID, 5, 6]]))  # type: ignore[operator]
        _, layers = model.stack(inputs)  # type: ignore[operator]
    expected = torch.cat([part[0] for layer in layers for part in layer])
    found = torch.frombuffer(bytearray(state.vectors), dtype=torch.float32)
    torch.testing.assert_close(found, expected)
    assert state.window[:-1] == (BOS_ID, 5, 6)
