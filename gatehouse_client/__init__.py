"""A client of Gatehouse: typed answers, streams, and retries that wait as the server asks.

    from gatehouse_client import Client

    with Client("http://127.0.0.1:8000") as client:
        print(client.translate("I am cold.").translations[0].text)

:class:`AsyncClient` has the same methods to await. It needs neither the service nor torch.
"""

from gatehouse_client.answers import (
    Alignment,
    BleuAnswer,
    FinishEvent,
    GenerateAnswer,
    Hypothesis,
    Languages,
    Model,
    Output,
    Score,
    TextEvent,
    Timings,
    TokenLogprob,
    TranslateAnswer,
    Translation,
    Usage,
)
from gatehouse_client.asynchronous import AsyncClient
from gatehouse_client.errors import (
    AnswerError,
    AnswerTimeoutError,
    ClientError,
    ServerUnreachableError,
    StreamBrokenError,
)
from gatehouse_client.retries import Retries
from gatehouse_client.synchronous import Client

__all__ = [
    "Alignment",
    "AnswerError",
    "AnswerTimeoutError",
    "AsyncClient",
    "BleuAnswer",
    "Client",
    "ClientError",
    "FinishEvent",
    "GenerateAnswer",
    "Hypothesis",
    "Languages",
    "Model",
    "Output",
    "Retries",
    "Score",
    "ServerUnreachableError",
    "StreamBrokenError",
    "TextEvent",
    "Timings",
    "TokenLogprob",
    "TranslateAnswer",
    "Translation",
    "Usage",
]
