"""Requests that answer when they are tried as they stand, whichever models are loaded.

None of them names a model or a language, so that the defaults answer them, and the prompts
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
}

TRANSLATE_EXAMPLES: Any = {
    "sentence": {"summary": "One sentence", "value": {"text": "I am cold."}},
    "list": {
        "summary": "Two sentences, the three best of each",
        "value": {"text": ["I am cold.", "He is happy."], "num_hypotheses": 3},
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
