"""The contract's calls as JSON over HTTP: GET to read, POST to change, and watching by server-sent events.

GET /api/GetRunningStats?normalizer=robot/obs answers what GetRunningStats answers, as protobuf's JSON.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from normserver import gateway, status
from normserver.errors import DeadlineExceeded, InvalidArgument, NotFound, PermissionDenied, ServiceError
from normserver.gateway import Gateway, Refused

T = TypeVar("T")

_MAX_BODY_BYTES = 1 << 20
_DEADLINE_SECONDS = 30.0
_KEEP_ALIVE_SECONDS = 15.0

# As google.rpc.Code maps them.
_STATUS = {
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.FAILED_PRECONDITION: 400,
    code_pb2.OUT_OF_RANGE: 400,
    code_pb2.UNAUTHENTICATED: 401,
    code_pb2.PERMISSION_DENIED: 403,
    code_pb2.NOT_FOUND: 404,
    code_pb2.ALREADY_EXISTS: 409,
    code_pb2.RESOURCE_EXHAUSTED: 429,
    code_pb2.UNAVAILABLE: 503,
    code_pb2.DEADLINE_EXCEEDED: 504,
}


class EventLoop:
    """The server's event loop, from another one's point of view."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Have it do something; cancelling the future cancels that."""
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))


class Api:
    """The pages below /api. What goes wrong on them is raised: `HANDLERS` tell it."""

    def __init__(self, gateway: Gateway, loop: EventLoop, *, only_here: bool) -> None:
        """`only_here`: nobody but this machine can reach them."""
        self._gateway = gateway
        self._loop = loop
        self._only_here = only_here
        self.routes = [Route("/api/{method}", self._answer, methods=["GET", "POST"])]

    async def call(self, method: str, message: Message, request: Request) -> Message:
        """Make a call for whoever sent an HTTP request.

        Raises:
            Refused: it ended with an error.
        """
        self._check_host(request)
        try:
            async with asyncio.timeout(_DEADLINE_SECONDS):
                return await self._loop.start(self._gateway.call(method, message, *_who(request)))
        except TimeoutError:
            raise DeadlineExceeded(f"not done within {_DEADLINE_SECONDS:g} s") from None

    async def _answer(self, request: Request) -> Response:
        method, reads = request.path_params["method"], request.method != "POST"
        if method in gateway.WATCHES and reads:
            return await self._watch(method, _queried(method, request), request)
        if method not in (gateway.READS if reads else gateway.WRITES):
            known = gateway.READS + gateway.WATCHES + gateway.WRITES
            raise NotFound(f"there is no such page; there are: {', '.join(known)}", reason="NO_SUCH_PAGE")
        message = _queried(method, request) if reads else await _sent(method, request)
        return Response(_json(await self.call(method, message, request)), media_type="application/json")

    async def _watch(self, method: str, message: Message, request: Request) -> Response:
        self._check_host(request)
        queue: asyncio.Queue[Message | Refused] = asyncio.Queue(1)  # of the server's loop

        async def pump() -> None:
            try:
                await self._gateway.watch(method, message, *_who(request), queue.put)
            except Refused as error:
                await queue.put(error)

        pumping = self._loop.start(pump())
        first = await self._loop.start(queue.get())
        if isinstance(first, Refused):
            raise first
        return StreamingResponse(
            self._events(first, queue, pumping),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    async def _events(
        self, first: Message, queue: asyncio.Queue[Message | Refused], pumping: asyncio.Future[None]
    ) -> AsyncIterator[str]:
        message: Message | Refused = first
        following: asyncio.Future[Message | Refused] | None = None
        try:
            while not isinstance(message, Refused):
                yield f"data: {_json(message)}\n\n"
                following = self._loop.start(queue.get())
                while not (await asyncio.wait((following,), timeout=_KEEP_ALIVE_SECONDS))[0]:
                    yield ": keep-alive\n\n"
                message = following.result()
            yield f"event: error\ndata: {json.dumps(_told(message.told))}\n\n"
        finally:
            for future in (pumping, following):
                if future is not None:
                    future.cancel()

    def _check_host(self, request: Request) -> None:
        """A name that a stranger's page has resolve to this machine does not make it that page's own."""
        if self._only_here and not _is_address_or_localhost(request.url.hostname or ""):
            raise PermissionDenied(
                "this console is for this machine; ask for it as localhost or by its address", reason="OTHER_HOST"
            )


def refused(_: Request, error: Exception) -> Response:
    """An error, as HTTP has it."""
    told = error.told if isinstance(error, Refused) else status.told(error, "http")
    headers = {"WWW-Authenticate": "Bearer"} if told.code == code_pb2.UNAUTHENTICATED else None
    return JSONResponse(_told(told), _STATUS.get(told.code, 500), headers)


HANDLERS: dict[type[Exception], Callable[[Request, Exception], Response]] = {Refused: refused, ServiceError: refused}


def _told(told: status_pb2.Status) -> dict[str, str]:
    info, wrong = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for packed in told.details:
        packed.Unpack(info)
        packed.Unpack(wrong)
    field = wrong.field_violations[0].field if wrong.field_violations else ""
    return {"code": status.name_of(told), "message": told.message, "field": field, "reason": info.reason}


def _who(request: Request) -> tuple[str, str]:
    caller = f"http:{request.client.host}:{request.client.port}" if request.client else ""
    return request.headers.get("authorization", ""), caller


def _json(message: Message) -> str:
    return json_format.MessageToJson(message, always_print_fields_with_no_presence=True, indent=None)


def _queried(method: str, request: Request) -> Message:
    """The request that a query says."""
    kind, query = gateway.request_of(method), request.query_params
    repeats = gateway.repeats(kind)
    fields: dict[str, Any] = {}
    for key in query:
        value = [_typed(one) for one in query.getlist(key)]
        fields[key] = value if repeats.get(key) else value[-1]
    return _parsed(kind, fields)


async def _sent(method: str, request: Request) -> Message:
    """The request that a body says."""
    body = b""
    async for some in request.stream():
        body += some
        if len(body) > _MAX_BODY_BYTES:
            raise InvalidArgument("body", f"has more than {_MAX_BODY_BYTES} bytes")
    try:
        fields = json.loads(body or b"{}")
    except ValueError as error:
        raise InvalidArgument("body", "is no JSON") from error
    return _parsed(gateway.request_of(method), fields)


def _parsed(kind: type[Message], fields: Any) -> Message:
    message = kind()
    if not isinstance(fields, dict):
        raise InvalidArgument("request", "is no object; expected the request's fields by their names")
    try:
        json_format.ParseDict(fields, message)
    except json_format.ParseError as error:
        known = ", ".join(field.name for field in kind.DESCRIPTOR.fields)
        raise InvalidArgument("request", f"cannot be read: {str(error).splitlines()[0]} Fields: {known}") from error
    return message


def _typed(value: str) -> str | bool:
    return {"true": True, "false": False}.get(value, value)


def _is_address_or_localhost(host: str) -> bool:
    if host == "localhost":
        return True
    with suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return False
