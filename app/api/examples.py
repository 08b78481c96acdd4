"""Requests that answer when they are tried as they stand, whichever models are loaded, and errors.

No request names a model or a language, so that the defaults answer them, and the prompts
hold nothing but letters that any English character model has seen.
"""

from typing import Any

GENERATE_EXAMPLES: Any = {
    "sampled": {
        "summary": "A sample that anyone can reproduce",
        "value": {
            "prompt": "the time traveller",
            "max_new_tokens": 60,
            "temperature": 0.7,
            "seed": 1,
        },
    },
    "greedy": {
        "summary": "The most probable continuation of two prompts, with log-probabilities",
        "value": {
            "prompt": ["the time", "the machine"],
            "max_new_tokens": 20,
            "temperature": 0,
            "logprobs": True,
        },
    },
    "beam": {
        "summary": "The two best of a beam search",
        "value": {"prompt": "in the", "max_new_tokens": 20, "beam_size": 4, "n": 2},
    },
    "stream": {
        "summary": "A sample as it comes, in server-sent events",
        "value": {"prompt": "the time", "max_new_tokens": 20, "seed": 1, "stream": True},
    },
}

TRANSLATE_EXAMPLES: Any = {
    "sentence": {"summary": "One sentence", "value": {"text": "I am cold."}},
    "list": {
        "summary": "Two sentences, the three best of each",
        "value": {"text": ["I am cold.", "He is happy."], "num_hypotheses": 3},
    },
    "stream": {
        "summary": "The greedy translation as it comes, in server-sent events",
        "value": {"text": "I am cold.", "stream": True},
    },
}

BLEU_EXAMPLES: Any = {
    "hypotheses": {
        "summary": "Score given translations, one with two references",
        "value": {
            "hypotheses": ["J'ai froid.", "Il est content."],
            "references": ["J'ai froid.", ["Il est heureux.", "Il est content !"]],
            "metrics": ["bleu", "chrf", "ter", "textbook_bleu"],
            "sentence_level": True,
        },
    },
    "sources": {
        "summary": "Translate first, then score",
        "value": {
            "sources": ["I am cold.", "He is happy."],
            "references": ["J'ai froid.", "Il est heureux."],
        },
    },
}

GENERATE_STREAM = """\
event: token
data: {"prompt_index":0,"index":0,"text":" t"}

event: token
data: {"prompt_index":0,"index":0,"text":"o"}

event: finish
data: {"prompt_index":0,"index":0,"finish_reason":"length","tokens":2,"logprob":-2.25,"seed":1}

event: done
data: {"model":"letters","usage":{"input_tokens":9,"output_tokens":2},\
"timings":{"queue_ms":0.2,"first_token_ms":1.5,"total_ms":2.5}}

"""
"""A whole streamed answer of /generate."""

TRANSLATE_STREAM = """\
event: token
data: {"text_index":0,"text":"J'ai"}

event: token
data: {"text_index":0,"text":" froid"}

event: finish
data: {"text_index":0,"score":-0.25,"tokens":3,"finish_reason":"end"}

event: done
data: {"model":"en-fr","source":"en","target":"fr",\
"usage":{"input_tokens":5,"output_tokens":3},\
"timings":{"queue_ms":0.2,"first_token_ms":1.5,"total_ms":3.5}}

"""
"""A whole streamed answer of /translate."""

PROBLEM_DETAILS = {
    "invalid_json": "the body cannot be read as JSON in UTF-8",
    "missing_api_key": "send an API key in the header Authorization: Bearer KEY",
    "invalid_api_key": "the API key is none of this service's",
    "admin_key_required": "the API key is a user's; this needs an admin's",
    "admin_disabled": "no admin key is configured, so that nobody may do this",
    "unknown_model": "no such model is loaded; loaded models: en-fr, letters",
    "request_timeout": "the request did not arrive within 30 seconds",
    "reload_failed": "damaged checkpoint: checkpoints/en-fr/model.safetensors: missing from the "
    "checkpoint folder",
    "body_too_large": "the body has more than 2097152 bytes",
    "unsupported_media_type": "send JSON with the header Content-Type: application/json",
    "invalid_request": "beam_size: Input should be less than or equal to 16",
    "unknown_language_pair": "this language pair is not translated; there is: en to fr",
    "unsupported_model": "the model cannot do this; GET /models lists what each can",
    "state_cut": "state: 1200 of the state's 2363 bytes are there",
    "state_forged": "state: the state was altered",
    "state_outdated": "state: the state is of version 0; this service takes 1",
    "state_foreign": "state: the state is of float32; here it is int8",
    "queue_full": "the queue has no room for 2 more: 255 of 256 places are taken",
    "rate_limit_exceeded": "this key has had its 60 requests for this minute; "
    "try again in 20 seconds",
    "internal_error": "an unexpected error happened; the log has the details",
    "too_many_connections": "the service has 2000 connections and takes no more",
    "not_ready": "the models are being loaded",
    "draining": "the service is shutting down and takes no more requests",
    "engine_failed": "the engine failed while it worked on the request",
    "deadline_exceeded": "the request took longer than its deadline of 60 seconds",
}
"""What an error of each code that endpoints describe may say."""

PROBLEM_FIELD_ERRORS = {
    "invalid_request": {
        "field": "beam_size",
        "message": "Input should be less than or equal to 16",
    },
}
"""The field at fault, for those codes that have one."""
