"""The same answer at any load, byte for byte, from the shipped models over real sockets."""

import asyncio
import json
import random
from typing import Any

import httpx2 as httpx

from tests.app.conftest import TIMEOUT_SECONDS, Server

SENTENCES = (
    "Go.",
    "Where is the station?",
    "The little boy is afraid of dogs.",
    "She asked me whether I had ever been to Paris before the war.",
    "I would have told you the truth if you had asked me, but you never did, and now it is late.",
)
PROMPTS = ("", "The Time Traveller ", "In the dim light of the laboratory I saw that the ")
OTHERS = 64

Request = tuple[str, dict[str, Any]]


def random_request(generator: random.Random) -> Request:
    """Greedy, sampled or a beam; of either kind of model; streamed or not."""
    kind = generator.choice(("greedy", "beam", "generate", "generate beam", "stream"))
    text = " ".join(generator.sample(SENTENCES, generator.randint(1, 2)))
    if kind == "greedy":
        return "/translate", {"text": text, "beam_size": 1, "alignments": generator.random() < 0.5}
    if kind == "beam":
        width = generator.randint(2, 16)
        penalty = generator.choice((0.0, 0.75, 2.0))
        body = {"text": text, "beam_size": width, "num_hypotheses": generator.randint(1, width)}
        return "/translate", {**body, "length_penalty": penalty}
    body = {"prompt": generator.choice(PROMPTS), "max_new_tokens": generator.randint(1, 60)}
    if kind == "generate beam":
        return "/generate", {**body, "beam_size": generator.randint(2, 5), "logprobs": True}
    body |= {
        "temperature": generator.choice((0, 0.7, 1.3)),
        "top_k": generator.choice((0, 5)),
        "top_p": generator.choice((1.0, 0.8)),
        "repetition_penalty": generator.choice((1.0, 1.2)),
        "seed": generator.randrange(1_000),
        "logprobs": True,
    }
    if kind == "stream":
        body |= {"stream": True, "stop": generator.choice(([], ["the", "zz"]))}
    return "/generate", body


def without_timings(response: httpx.Response) -> str:
    """The bytes of an answer, but for what a clock says."""
    assert response.status_code == 200, response.text
    if "text/event-stream" in response.headers["content-type"]:
        events, _, done = response.text.rpartition("event: done\ndata: ")
        return events + json.dumps({**json.loads(done), "timings": None})
    return json.dumps({**response.json(), "timings": None})


async def ask(client: httpx.AsyncClient, request: Request, delay_seconds: float = 0.0) -> str:
    await asyncio.sleep(delay_seconds)
    path, body = request
    return without_timings(await client.post(path, json=body))


async def ask_and_leave(client: httpx.AsyncClient, request: Request, delay_seconds: float) -> None:
    await asyncio.sleep(delay_seconds)
    path, body = request
    try:
        await client.post(path, json=body, timeout=0.02)
    except httpx.TimeoutException:
        return  # the client went away


def test_an_answer_among_64_others_is_the_answer_alone(shipped: Server) -> None:
    """The others are of all kinds, join while the answers are made, and some go away."""
    generator = random.Random(5)
    requests = [random_request(generator) for _ in range(24)]
    others = [random_request(generator) for _ in range(OTHERS)]

    async def scenario() -> tuple[list[str], list[str]]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(
            base_url=shipped.address, timeout=TIMEOUT_SECONDS, limits=limits
        ) as client:
            alone = [await ask(client, request) for request in requests]
            crowd = [
                (ask_and_leave if index % 4 == 0 else ask)(client, other, generator.random() / 2)
                for index, other in enumerate(others)
            ]
            answers = [ask(client, request, generator.random() / 2) for request in requests]
            found = await asyncio.gather(*answers, *crowd)
            return alone, [str(answer) for answer in found[: len(requests)]]

    alone, among = asyncio.run(scenario())
    assert among == alone
    rows = shipped.metric("gatehouse_step_rows_sum") / shipped.metric("gatehouse_step_rows_count")
    assert rows > 2  # they did share steps
