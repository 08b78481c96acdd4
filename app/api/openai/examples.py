"""Requests of the OpenAI dialect that answer as they stand, whichever models are loaded."""

from typing import Any

COMPLETION_EXAMPLES: Any = {
    "sampled": {
        "summary": "A sample that anyone can reproduce",
        "value": {"prompt": "the time traveller", "max_tokens": 60, "temperature": 0.7, "seed": 1},
    },
    "best": {
        "summary": "The better two of four samples, with log-probabilities",
        "value": {"prompt": ["the time"], "n": 2, "best_of": 4, "logprobs": 0, "seed": 1},
    },
    "stream": {
        "summary": "A sample as it comes, in server-sent events",
        "value": {
            "prompt": "the time",
            "stream": True,
            "stream_options": {"include_usage": True},
            "seed": 1,
        },
    },
}

_HEAD = '"created":1700000000,"model":"letters","object":"text_completion"'
_FINGERPRINT = '"system_fingerprint":"int8-cpu-0123456789abcdef"'

COMPLETION_STREAM = f"""\
data: {{"id":"cmpl-1","choices":[{{"finish_reason":null,"index":0,"logprobs":null,"text":" t"}}],\
{_HEAD},{_FINGERPRINT}}}

data: {{"id":"cmpl-1","choices":[{{"finish_reason":"length","index":0,"logprobs":null,"text":""}}],\
{_HEAD},{_FINGERPRINT}}}

data: [DONE]

"""
"""A whole streamed answer of /v1/completions."""
