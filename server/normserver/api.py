"""The contract's calls as JSON over HTTP: GET to read, POST to change, and watching by server-sent events.

GET /api/GetRunningStats?normalizer=robot/obs answers what GetRunningStats answers, as protobuf's JSON.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, NoReturn, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from normserver import gateway, status
from normserver.door import Received
from normserver.errors import DeadlineExceeded, InvalidArgument, NotFound, ServiceError, Unavailable
from normserver.gateway import Gateway, Refused

T = TypeVar("T")

# What a body may say is known before it is parsed: bytes, objects and arrays, and what these hold. The largest is the
# affine parameters of 49,000 features, which are two strings.
_MAX_BODY_BYTES, _MAX_NESTED, _MAX_VALUES = 1 << 20, 32, 1024
_MAX_QUOTED = 200
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
    """The pages below /api. What goes wrong on them is raised: `HANDLERS` tell it.

    Nothing of a body is read before its caller is known and has come through the door.
    """

    def __init__(self, gateway: Gateway, loop: EventLoop, *, body_seconds: float) -> None:
        """`body_seconds`: how long a body may take to arrive."""
        self._gateway = gateway
        self._loop = loop
        self._body_seconds = body_seconds
        self.routes = [Route("/api/{method}", self._answer, methods=["GET", "POST"])]

    async def call(self, method: str, message: Message, request: Request) -> Message:
        """Make a call for whoever sent an HTTP request.

        Raises:
            Refused: it ended with an error.
        """
        return await self._call(method, _at_once(Received(message, message.ByteSize())), request)

    async def _answer(self, request: Request) -> Response:
        method, reads = request.path_params["method"], request.method != "POST"
        if method in gateway.WATCHES and reads:
            return await self._watch(method, _queried(method, request), request)
        if method not in (gateway.READS if reads else gateway.WRITES):
            known = gateway.READS + gateway.WATCHES + gateway.WRITES
            raise NotFound(f"there is no such page; there are: {', '.join(known)}", reason="NO_SUCH_PAGE")
        receive = _at_once(_queried(method, request)) if reads else self._receiving(method, request)
        return Response(_json(await self._call(method, receive, request)), media_type="application/json")

    async def _call(self, method: str, receive: Callable[[], Awaitable[Received]], request: Request) -> Message:
        self._gateway.check_caller(method, *_who(request))
        try:
            async with asyncio.timeout(_DEADLINE_SECONDS):
                reply = await self._loop.start(self._gateway.call(method, receive, *_who(request)))
        except TimeoutError:
            raise DeadlineExceeded(f"not done within {_DEADLINE_SECONDS:g} s") from None
        request.state.recognized = True
        return reply

    def _receiving(self, method: str, request: Request) -> Callable[[], Awaitable[Received]]:
        """Receives the body, for the server's loop, on this one."""
        here = EventLoop(asyncio.get_running_loop())

        async def receive() -> Received:
            return await here.start(_sent(method, request, self._body_seconds))

        return receive

    async def _watch(self, method: str, received: Received, request: Request) -> Response:
        self._gateway.check_caller(method, *_who(request))
        queue: asyncio.Queue[Message] = asyncio.Queue(1)  # of the server's loop
        pumping = self._loop.start(self._gateway.watch(method, _at_once(received), *_who(request), queue.put))
        events = self._events(queue, pumping)
        first = await anext(events)  # an error before it has a status of its own
        request.state.recognized = True
        return StreamingResponse(
            self._told_as_events(first, events),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    async def _told_as_events(self, first: str, events: AsyncGenerator[str, None]) -> AsyncIterator[str]:
        async with aclosing(events):
            try:
                yield first
                async for event in events:
                    yield event
            except (Refused, ServiceError) as error:
                yield f"event: error\ndata: {json.dumps(_told(_status_of(error)))}\n\n"

    async def _events(self, queue: asyncio.Queue[Message], pumping: asyncio.Future[None]) -> AsyncGenerator[str, None]:
        """What is pumped, until pumping ends, with whatever error."""
        following: asyncio.Future[Message] | None = None
        try:
            while True:
                following = self._loop.start(queue.get())
                while not following.done():
                    either = (following, pumping)
                    await asyncio.wait(either, timeout=_KEEP_ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                    if pumping.done() and not following.done():
                        await pumping
                        raise Unavailable("the server ended the stream; watch again", reason="STOPPING")
                    if not following.done():
                        yield ": keep-alive\n\n"
                yield f"data: {_json(following.result())}\n\n"
        finally:
            for future in (pumping, following):
                if future is not None:
                    future.cancel()


def refused(_: Request, error: Exception) -> Response:
    """An error, as HTTP has it."""
    told = _status_of(error)
    headers = {"WWW-Authenticate": "Bearer"} if told.code == code_pb2.UNAUTHENTICATED else None
    return Response(json.dumps(_told(told)), _STATUS.get(told.code, 500), headers, "application/json")


HANDLERS: dict[type[Exception], Callable[[Request, Exception], Response]] = {
    Refused: refused,
    ServiceError: refused,
    Exception: refused,
}


def _status_of(error: Exception) -> status_pb2.Status:
    return error.told if isinstance(error, Refused) else status.told(error, "http")


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


def _at_once(received: Received) -> Callable[[], Awaitable[Received]]:
    async def receive() -> Received:
        return received

    return receive


def _queried(method: str, request: Request) -> Received:
    """The request that a query says."""
    kind, query = gateway.request_of(method), request.query_params
    repeats = gateway.repeats(kind)
    fields: dict[str, Any] = {}
    for key in query:
        value = [_typed(one) for one in query.getlist(key)]
        fields[key] = value if repeats.get(key) else value[-1]
    try:
        message = _parsed(kind, fields)
    except InvalidArgument as error:
        return Received(None, 0, error)
    return Received(message, message.ByteSize())


async def _sent(method: str, request: Request, seconds: float) -> Received:
    """The request that a body says, as JSON."""
    body = bytearray()
    try:
        _check_type(request)
        async with asyncio.timeout(seconds):
            async for some in request.stream():
                body += some
                if len(body) > _MAX_BODY_BYTES:
                    raise InvalidArgument("body", f"has more than {_MAX_BODY_BYTES} bytes")
        return Received(_parsed(gateway.request_of(method), _loaded(bytes(body))), len(body))
    except InvalidArgument as error:
        return Received(None, len(body), error)
    except ClientDisconnect:
        return Received(None, len(body), InvalidArgument("body", "ends early: the connection was closed"))
    except TimeoutError:
        sentence = f"did not arrive within {seconds:g} s; {len(body)} bytes did"
        return Received(None, len(body), InvalidArgument("body", sentence, reason="BODY_TIMEOUT"))


def _check_type(request: Request) -> None:
    sent = request.headers.get("content-type", "")
    if sent and sent.partition(";")[0].strip().lower() != "application/json":
        raise InvalidArgument("body", f"is {sent[:100]!a}; expected Content-Type: application/json")


def _loaded(body: bytes) -> Any:
    """What JSON says, which is bounded before it is parsed and means the same to all who read it."""
    if (nested := body.count(b"{") + body.count(b"[")) > _MAX_NESTED:
        raise InvalidArgument("body", f"has {nested} objects and arrays; expected {_MAX_NESTED} at most")
    if (values := body.count(b",")) > _MAX_VALUES:
        raise InvalidArgument("body", f"has more than {values} values; expected {_MAX_VALUES} at most")
    try:
        text = body.decode("utf-8") or "{}"
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_number, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise InvalidArgument("body", f"is no UTF-8 at byte {error.start}; expected JSON") from None
    except json.JSONDecodeError as error:
        raise InvalidArgument("body", f"is no JSON at byte {error.pos}: {error.msg}") from None
    except ValueError as error:  # an integer of thousands of digits
        raise InvalidArgument("body", f"has a number that cannot be read: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InvalidArgument("body", "has a field twice in one object; expected each once")
    if not all(map(str.isascii, found)):  # half a character of UTF-16, as JSON may have, protobuf cannot look up
        raise InvalidArgument("body", "has a field whose name is not ASCII; expected the request's fields")
    return found


def _no_number(value: str) -> NoReturn:
    raise InvalidArgument("body", f"has {value}, which JSON has not; expected a number")


def _finite(value: str) -> float:
    if not math.isfinite(number := float(value)):
        raise InvalidArgument("body", f"has the number {value[:40]}, which no float64 holds")
    return number


def _parsed(kind: type[Message], fields: Any) -> Message:
    message = kind()
    if not isinstance(fields, dict):
        raise InvalidArgument("request", "is no object; expected the request's fields by their names")
    try:
        json_format.ParseDict(fields, message)
    except (json_format.ParseError, ValueError, TypeError, OverflowError, AttributeError) as error:
        known = ", ".join(field.name for field in kind.DESCRIPTOR.fields)
        why = str(error).partition("\n")[0][:_MAX_QUOTED].encode(errors="backslashreplace").decode()
        raise InvalidArgument("request", f"cannot be read: {why} Fields: {known}") from None
    return message


def _typed(value: str) -> str | bool:
    return {"true": True, "false": False}.get(value, value)
