"""Requests of the LibreTranslate dialect that answer as they stand, whichever models are loaded."""

from typing import Any

LIBRETRANSLATE_EXAMPLES: Any = {
    "libretranslate": {
        "summary": "As LibreTranslate: a text of several sentences, its language detected",
        "value": {"q": "I am cold. He is happy.", "source": "auto", "alternatives": 1},
    },
    "html": {
        "summary": "As LibreTranslate: HTML",
        "value": {"q": "<p>I am <b>cold</b>.</p>", "format": "html"},
    },
}

DETECT_EXAMPLES: Any = {
    "english": {"summary": "A sentence", "value": {"q": "I am cold, and he is happy."}},
}
