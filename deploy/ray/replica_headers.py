"""What every answer of a replica says in its head."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.request_id import HEADER as REQUEST_ID_HEADER

REPLICA_HEADER = "X-Gatehouse-Replica"


class ReplicaHeadersMiddleware:
    """Names the replica, and leaves the request's id to Ray's proxy.

    The proxy gives every request an id where it has none, which Gatehouse takes up, and writes it
    on every answer: two headers with the same id would reach the client.

    Args:
        app: the application behind.
        replica: its name.
    """

    def __init__(self, app: ASGIApp, replica: str) -> None:
        self._app = app
        self._replica = replica

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[REPLICA_HEADER] = self._replica
                del headers[REQUEST_ID_HEADER]
            await send(message)

        await self._app(scope, receive, send_named if scope["type"] == "http" else send)
