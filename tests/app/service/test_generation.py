"""What holds of every continuation, over a tiny random model."""

import itertools
from typing import Any

import pytest
from fastapi.testclient import TestClient


def generate(client: TestClient, **body: Any) -> dict[str, Any]:
    response = client.post("/generate", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def without_place(output: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in output.items() if k not in ("prompt_index", "index")}


def test_prompt_of_a_list_is_answered_as_alone(client: TestClient) -> None:
    together = generate(client, prompt=["the", "time"], n=2, seed=9, max_new_tokens=12)
    places = [(o["prompt_index"], o["index"]) for o in together["outputs"]]
    assert places == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for index, prompt in enumerate(["the", "time"]):
        alone = generate(client, prompt=prompt, n=2, seed=9, max_new_tokens=12)
        expected = [without_place(o) for o in alone["outputs"]]
        assert [without_place(o) for o in together["outputs"][2 * index :][:2]] == expected


def test_reported_seed_reproduces_an_output_alone(client: TestClient) -> None:
    answer = generate(client, prompt="the", n=3, max_new_tokens=12)
    seeds = [output["seed"] for output in answer["outputs"]]
    assert seeds == list(range(seeds[0], seeds[0] + 3))
    assert seeds[0] < 2**32
    for output, seed in zip(answer["outputs"], seeds, strict=True):
        alone = generate(client, prompt="the", seed=seed, max_new_tokens=12)["outputs"][0]
        assert without_place(alone) == without_place(output)


def test_without_a_seed_answers_differ(client: TestClient) -> None:
    outputs = [generate(client, prompt="the", max_new_tokens=30)["outputs"][0] for _ in range(3)]
    assert len({output["seed"] for output in outputs}) == 3
    # Each may end at once, with one chance in fifty.
    assert len({output["text"] for output in outputs}) > 1


def test_largest_seed(client: TestClient) -> None:
    outputs = generate(client, prompt="a", n=2, seed=2**53 - 1, max_new_tokens=2)["outputs"]
    assert [output["seed"] for output in outputs] == [2**53 - 1, 0]


def test_nothing_is_drawn_by_greedy_and_beam(client: TestClient) -> None:
    for options in ({"temperature": 0}, {"beam_size": 3, "n": 3}):
        outputs = generate(client, prompt="a", max_new_tokens=5, **options)["outputs"]
        assert {output["seed"] for output in outputs} == {None}


def test_logprob_is_the_sum_of_its_tokens(client: TestClient) -> None:
    answer = generate(client, prompt="a", max_new_tokens=9, temperature=0.5, logprobs=True)
    output = answer["outputs"][0]
    tokens = output["token_logprobs"]
    assert len(tokens) == output["tokens"] == answer["usage"]["output_tokens"]
    assert output["logprob"] == sum(token["logprob"] for token in tokens)
    text = "".join(token["token"] for token in tokens if token["token"] != "<eos>")
    assert text == output["text"]


def test_logprobs_are_left_out_unless_asked_for(client: TestClient) -> None:
    assert "token_logprobs" not in generate(client, prompt="a", max_new_tokens=2)["outputs"][0]


def test_logprobs_are_before_temperature_and_filters(client: TestClient) -> None:
    plain = generate(client, prompt="a", max_new_tokens=4, temperature=0)["outputs"][0]
    filtered = generate(client, prompt="a", max_new_tokens=4, temperature=3, top_k=1, seed=1)
    assert filtered["outputs"][0]["logprob"] == plain["logprob"]
    assert filtered["outputs"][0]["text"] == plain["text"]


def test_stop_strings_end_each_output_on_its_own(client: TestClient) -> None:
    whole = generate(client, prompt="the", n=4, seed=3, max_new_tokens=40)["outputs"]
    stop = whole[0]["text"][5:7]
    cut = generate(client, prompt="the", n=4, seed=3, max_new_tokens=40, stop=[stop, "\n"])
    for full, output in zip(whole, cut["outputs"], strict=True):
        places = [full["text"].find(s) for s in (stop, "\n") if s in full["text"]]
        if places:
            assert output["finish_reason"] == "stop"
            assert output["text"] == full["text"][: min(places)]
            assert output["tokens"] <= full["tokens"]
        else:
            assert without_place(output) == without_place(full)
    assert cut["outputs"][0]["finish_reason"] == "stop"
    assert cut["usage"]["input_tokens"] == 4


def test_echo_puts_the_prompt_in_front(client: TestClient) -> None:
    plain = generate(client, prompt="the ", temperature=0, max_new_tokens=5)["outputs"][0]
    echoed = generate(client, prompt="the ", temperature=0, max_new_tokens=5, echo=True)
    assert echoed["outputs"][0]["text"] == "the " + plain["text"]


def test_words_go_on_behind_a_space(odd_client: TestClient) -> None:
    body = {"model": "words", "prompt": "the time", "max_new_tokens": 3, "seed": 1}
    plain = generate(odd_client, **body, logprobs=True)["outputs"][0]
    words = [token["token"] for token in plain["token_logprobs"] if token["token"] != "<eos>"]
    assert words
    assert plain["text"] == "".join(f" {word}" for word in words)
    echoed = generate(odd_client, **body, echo=True)["outputs"][0]
    assert echoed["text"].split() == ["the", "time", *words]
    # A stop string is sought in the text as it is returned.
    stopped = generate(odd_client, **body, stop=f" {words[0]}")["outputs"][0]
    assert (stopped["text"], stopped["finish_reason"]) == ("", "stop")
    from_nothing = generate(odd_client, **{**body, "prompt": ""})["outputs"][0]
    assert not from_nothing["text"].startswith(" ")


def test_a_beam_returns_what_exists_where_that_is_less(odd_client: TestClient) -> None:
    answer = generate(
        odd_client, model="four-letters", prompt=["a", "b"], beam_size=16, n=16, max_new_tokens=1
    )
    # Four letters and <eos> are all there is.
    places = [(output["prompt_index"], output["index"]) for output in answer["outputs"]]
    assert places == [(prompt, index) for prompt in (0, 1) for index in range(5)]
    assert answer["usage"]["output_tokens"] == 10


@pytest.mark.parametrize("penalty", [0.01, 10])
@pytest.mark.parametrize("temperature", [0, 0.01, 10])
def test_extreme_repetition_penalties(
    client: TestClient, penalty: float, temperature: float
) -> None:
    body = {"prompt": "the time", "max_new_tokens": 30, "seed": 1, "logprobs": True}
    answer = generate(client, **body, temperature=temperature, repetition_penalty=penalty)
    for token in answer["outputs"][0]["token_logprobs"]:
        assert token["logprob"] <= 0


def test_empty_and_blank_prompts_start_at_bos(client: TestClient) -> None:
    answer = generate(client, prompt="", max_new_tokens=3, temperature=0)
    assert answer["usage"]["input_tokens"] == 1
    assert answer["outputs"][0]["tokens"] >= 1
    assert generate(client, prompt="  ", max_new_tokens=3)["usage"]["input_tokens"] == 3


def test_beam_returns_its_best_first(client: TestClient) -> None:
    answer = generate(client, prompt="a", beam_size=5, n=4, max_new_tokens=6)
    outputs = answer["outputs"]
    assert [output["index"] for output in outputs] == [0, 1, 2, 3]
    scores = [output["logprob"] / output["tokens"] ** 0.75 for output in outputs]
    assert all(a >= b for a, b in itertools.pairwise(scores))
    assert generate(client, prompt="a", beam_size=1, temperature=0, max_new_tokens=6)


def test_timings_are_in_order(client: TestClient) -> None:
    timings = generate(client, prompt=["a", "b"], max_new_tokens=5)["timings"]
    assert 0 <= timings["queue_ms"] <= timings["first_token_ms"] <= timings["total_ms"]
