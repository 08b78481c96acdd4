"""The project's own client against a real server."""

import asyncio

import pytest

from gatehouse_client import AnswerError, AsyncClient, Client, FinishEvent, TextEvent
from gatehouse_client.answers import DoneEvent
from tests.app.conftest import Server


def test_every_method_of_the_client(server: Server) -> None:
    with Client(server.address) as client:
        assert client.is_ready()
        names = [model.name for model in client.models()]
        assert {"en-fr", "letters"} <= set(names)
        translated = client.translate(
            ["go", "we lost"], num_hypotheses=2, alignments=True, beam_trace=True
        )
        assert len(translated.translations) == 2
        best = translated.translations[0]
        assert best.hypotheses is not None
        assert best.alignment is not None
        assert best.beam_trace is not None
        assert best.beam_trace[0][0].parent is None
        assert len(best.alignment.weights) == len(best.alignment.target_tokens) == best.tokens
        generated = client.generate("the", seed=1, max_new_tokens=5, logprobs=True)
        assert generated.outputs[0].seed == 1
        scored = client.bleu(["a b"], hypotheses=["a b"], metrics=["bleu", "ter"])
        assert scored.scores["ter"].score == 0.0
        with pytest.raises(AnswerError) as caught:
            client.translate("go", source="xx")
        assert (caught.value.status, caught.value.code) == (422, "unknown_language_pair")


def test_a_stream_equals_the_whole_answer(server: Server) -> None:
    with Client(server.address) as client:
        whole = client.generate("the", seed=3, max_new_tokens=12, temperature=1.0)
        events = list(client.stream_generate("the", seed=3, max_new_tokens=12, temperature=1.0))
    texts = [event.text for event in events if isinstance(event, TextEvent)]
    assert "".join(texts) == whole.outputs[0].text
    (finish,) = (event for event in events if isinstance(event, FinishEvent))
    assert (finish.tokens, finish.logprob) == (whole.outputs[0].tokens, whole.outputs[0].logprob)
    assert isinstance(events[-1], DoneEvent)


def test_an_output_goes_on_from_its_state(server: Server) -> None:
    with Client(server.address) as client:
        whole = client.generate("the", seed=3, max_new_tokens=12, temperature=1.0).outputs[0]
        first = client.generate(
            "the", seed=3, max_new_tokens=5, temperature=1.0, return_state=True
        ).outputs[0]
        rest = client.generate(state=first.state, max_new_tokens=7, temperature=1.0).outputs[0]
        assert first.text + rest.text == whole.text
        assert (first.pending_text, rest.state) == ("", None)
        events = list(
            client.stream_generate(
                state=first.state, max_new_tokens=7, temperature=1.0, return_state=True
            )
        )
        (finish,) = (event for event in events if isinstance(event, FinishEvent))
        assert finish.state
        with pytest.raises(AnswerError) as caught:
            client.generate(state=finish.state[:-1])
        assert (caught.value.code, caught.value.fields[0].field) == ("state_cut", "state")


def test_many_at_once_by_the_asynchronous_client(server: Server) -> None:
    async def ask() -> list[str]:
        async with AsyncClient(server.address) as client:
            answers = await asyncio.gather(*(client.translate("we lost") for _ in range(20)))
            streamed = [event async for event in client.stream_translate("we lost")]
        assert isinstance(streamed[-1], DoneEvent)
        return [answer.translations[0].text for answer in answers]

    assert len(set(asyncio.run(ask()))) == 1
