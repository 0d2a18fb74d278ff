"""Around every HTTP request: its connection's time, the host that it names, and a body that nobody read."""

from __future__ import annotations

import ipaddress
from contextlib import suppress

import h11
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from normserver.api import refused
from normserver.errors import PermissionDenied
from normserver.http_connections import Connections

# Whether the server runs is for everybody who reaches it, by whatever name.
_FOR_ALL_HOSTS = frozenset({"/healthz", "/readyz"})


class HttpGuard:
    """The pages, as connections see them."""

    def __init__(self, pages: ASGIApp, connections: Connections, *, only_here: bool) -> None:
        """`only_here`: nobody but this machine can reach them."""
        self._pages = pages
        self._connections = connections
        self._only_here = only_here

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        connection = self._connections.find(scope["client"])
        whole = not _has_body(scope)
        started = complete = False

        async def received() -> Message:
            nonlocal whole
            message = await receive()
            whole = whole or not message.get("more_body", False)
            return message

        async def sent(message: Message) -> None:
            nonlocal started, complete
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            if message["type"] == "http.response.start":
                started = True
                if not whole:  # the rest of the body is not read, so that nobody knows where the next request begins
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
                if connection is not None and scope["state"].get("recognized"):
                    connection.recognized = True
            await send(message)

        if connection is not None:
            connection.begin()
        try:
            self._check_host(scope)
            await self._pages(scope, received, sent)
        except (ClientDisconnect, h11.ProtocolError):  # the client is gone, or sent a malformed request after this one
            if connection is not None:
                connection.abort()
        except Exception as error:
            if not complete:  # else Starlette has answered, and raised it again
                response = refused(Request(scope), error)
                if not started:
                    await response(scope, received, sent)
                elif connection is not None:
                    connection.abort()
        finally:
            if connection is not None:
                connection.end()

    def _check_host(self, scope: Scope) -> None:
        """A name that a stranger's page has resolve to this machine does not make it that page's own."""
        if self._only_here and scope["path"] not in _FOR_ALL_HOSTS and not _is_address_or_localhost(_host(scope)):
            raise PermissionDenied(
                "this console is for this machine; ask for it as localhost or by its address", reason="OTHER_HOST"
            )


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0") != b"")
        for name, value in scope["headers"]
    )


def _host(scope: Scope) -> str:
    """The host that a request names, without its port."""
    for name, value in scope["headers"]:
        if name == b"host":
            host: str = value.decode("latin-1")
            return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return "localhost"  # HTTP/1.0, which no browser speaks


def _is_address_or_localhost(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    with suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return False
