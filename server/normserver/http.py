"""Plain HTTP beside gRPC: the console for people, /metrics for Prometheus, /healthz and /readyz for whoever runs it.

On a thread of its own, so that it answers however busy the server is.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from normserver import addresses
from normserver.config import is_local, split_address
from normserver.http_connections import Connections, Limits
from normserver.http_guard import HttpGuard
from normserver.metrics import Metrics

_STOP_SECONDS = 5.0
_NEVER = 10**6

_CONSOLE = Path(__file__).parent / "console"
# The console loads what is here and nothing else, and no other site shows it. A new release is seen at once.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def application(
    registry: CollectorRegistry,
    why_not_alive: Callable[[], str],
    why_not_ready: Callable[[], str],
    may_read: Callable[[str], bool],
    progress: Callable[[], str],
    *,
    needs_token: bool,
    more: Sequence[Route] = (),
    handlers: Mapping[type[Exception], Callable[[Request, Exception], Response]] | None = None,
) -> Starlette:
    """The pages.

    Args:
        registry: what /metrics tells.
        why_not_alive, why_not_ready: return nothing where all is well.
        may_read: whether an Authorization header is of somebody who may see /metrics.
        progress: returns what a server that is ready still prepares, if anything.
        needs_token: whether nobody is answered without one, which the console is told.
        more: pages that ask the server.
        handlers: what becomes of their errors.
    """

    console = (_CONSOLE / "index.html").read_text(encoding="utf-8")
    if needs_token:
        console = console.replace(
            'name="normstats-token" content="optional"', 'name="normstats-token" content="required"'
        )

    async def metrics(request: Request) -> Response:
        if not may_read(request.headers.get("authorization", "")):
            return PlainTextResponse("bring a token\n", status_code=401, headers={"WWW-Authenticate": "Bearer"})
        request.state.recognized = True
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def healthz(_: Request) -> Response:
        return _well(why_not_alive())

    async def readyz(_: Request) -> Response:
        return _well(why_not_ready(), progress())

    async def index(_: Request) -> Response:
        return HTMLResponse(console, headers=_HEADERS)

    return Starlette(
        routes=[
            Route("/", index),
            Mount("/static", _Static(directory=_CONSOLE)),
            Route("/metrics", metrics),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            *more,
        ],
        exception_handlers=dict(handlers or {}),
    )


class _Static(StaticFiles):
    """The console's files."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """With headers that keep everything else out."""
        response = super().file_response(*args, **kwargs)
        response.headers.update(_HEADERS)
        return response


def _well(reason: str, progress: str = "") -> Response:
    well = f"ok: {progress}" if progress else "ok"
    return PlainTextResponse(f"{reason or well}\n", status_code=503 if reason else 200)


class _Server(uvicorn.Server):
    """uvicorn's server, on connections that are accepted here."""

    def __init__(self, config: uvicorn.Config, connections: Connections) -> None:
        super().__init__(config)
        self._connections = connections

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections."""
        await self.lifespan.startup()
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        parts = {"config": self.config, "server_state": self.server_state, "app_state": self.lifespan.state}
        self._connections.start(lambda: make(**parts))
        self.servers = [cast("asyncio.Server", self._connections)]  # which closes it when it stops
        self.started = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the application's."""
        yield


class HttpServer:
    """The pages, served on a thread."""

    def __init__(
        self,
        pages: Starlette,
        address: str,
        limits: Limits,
        metrics: Metrics,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Bind HOST:PORT; port 0 picks a free one.

        Raises:
            OSError: the address cannot be bound.
        """
        host, port = split_address(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with addresses.binding("http", address):
            self._socket = socket.create_server((host, port), family=family)
        self._connections = Connections(self._socket, limits, tls, metrics.http_connections_rejected)
        metrics.http_connections.set_function(lambda: len(self._connections))
        config = uvicorn.Config(
            HttpGuard(pages, self._connections, only_here=is_local(address)),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # anybody can say that he comes from elsewhere
            timeout_keep_alive=_NEVER,  # Connections closes those that are idle
            timeout_graceful_shutdown=int(_STOP_SECONDS),
        )
        self._server = _Server(config, self._connections)
        self._thread = threading.Thread(target=self._serve, name="http", daemon=True)

    @property
    def port(self) -> int:
        """The port it is bound to."""
        return int(self._socket.getsockname()[1])

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs; false before `start`."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Serve from now on."""
        self._thread.start()

    async def stop(self) -> None:
        """Finish what is under way, and stop."""
        self._server.should_exit = True
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, 2 * _STOP_SECONDS)
        self._socket.close()

    def _serve(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))
