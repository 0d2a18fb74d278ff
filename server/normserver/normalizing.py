"""A normalize's way: messages become plans and batches, those go to the batcher, and results become replies."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import NamedTuple

from torch import Tensor

from normserver import futures, replies, validate
from normserver.batcher import Alike, Batcher, Job
from normserver.codec import Encoded
from normserver.contributing import Contributing
from normserver.engine import Batch, Mode, Resolved
from normserver.errors import InvalidArgument, ServiceError
from normserver.forms import Form, Forms
from normserver.metrics import Metrics
from normserver.planner import Planner
from normserver.shared_memory import SharedMemory
from normstats.v1 import normalization_service_pb2 as pb
from normstats.wire.carried import Carried, ManyCarried

# The method whose messages are numbered.
MANY_STREAM = "NormalizeManyStream"


class _Parts(NamedTuple):
    """What a request says, checked; `contributes` in TRAIN mode: to what, by which producer, as its how-manieth."""

    wanted: validate.Wanted
    batch: Batch
    out: Tensor | None
    style: Tensor | None
    contributes: tuple[str, bytes, int] | None


class _Asked(NamedTuple):
    """A job, and what its batch is contributed to."""

    job: Job
    contributes: tuple[str, bytes, int] | None


class Normalizing:
    """Answers what normalizes."""

    def __init__(
        self, planner: Planner, batcher: Batcher, contributing: Contributing, memory: SharedMemory, metrics: Metrics
    ) -> None:
        self._planner = planner
        self._batcher = batcher
        self._contributing = contributing
        self._memory = memory
        self._metrics = metrics
        self._forms = Forms()

    async def one(self, request: Carried[pb.NormalizeRequest], caller: str) -> bytes:
        """Normalize a tensor; in TRAIN mode, answer once its contribution is durable.

        Raises:
            ServiceError: something in the request is wrong, or cannot be done now.
        """
        if (now := self.at_once((request,), caller)) is not None:
            if isinstance(now[0], Exception):
                raise now[0]
            return now[0]
        parts = self._parts(request)
        asked = self._asked(parts, await self._planner.resolve(parts.wanted, style=parts.style), caller)
        result = await self._batcher.run(asked.job)
        sent = self._sent(result)
        return sent if asked.contributes is None else await self._contributed(asked.contributes, result)

    def at_once(
        self, requests: Sequence[Carried[pb.NormalizeRequest]], caller: str
    ) -> Sequence[bytes | Exception] | None:
        """As `several`, here and now; None if that would take long, or has to wait for something.

        Raises:
            InvalidArgument: they are too many.
        """
        _check_number(requests)
        if len(requests) == 1 and requests[0].message.HasField("output_place"):
            return self._placed_at_once(requests[0], caller)
        launches = self._launches(requests)
        if launches is None:
            return None
        ended: list[bytes | Exception] = [b""] * len(requests)
        for one, group in launches:
            self._metrics.received_bytes.inc(one.form.size_bytes * len(group))
            for index, result in zip(group, self._batcher.alike(one, [requests[i].data for i in group]), strict=True):
                ended[index] = self._told(result)
        return ended

    def answer_at_once(self, message: ManyCarried, caller: str) -> bytes | None:
        """The answer to a numbered message of several, made here and now; None as above.

        Raises:
            InvalidArgument: they are too many.
        """
        is_plain = len(message.items) == 1 and not message.items[0].message.HasField("output_place")
        if is_plain and (launches := self._launches(message.items)) is not None:
            ((one, _),) = launches
            self._metrics.received_bytes.inc(one.form.size_bytes)
            (result,) = self._batcher.alike(one, [message.items[0].data], message.number)
            if not isinstance(result, Exception):
                return self._sent(result)
            return replies.normalized_many([result], MANY_STREAM, message.number)
        results = self.at_once(message.items, caller)
        return None if results is None else replies.normalized_many(results, MANY_STREAM, message.number)

    def _launches(self, requests: Sequence[Carried[pb.NormalizeRequest]]) -> list[tuple[Alike, list[int]]] | None:
        """Which requests go together; None if some are more than values to be normalized briefly by what is at hand."""
        alike: dict[Form, list[int]] = {}
        for index, request in enumerate(requests):
            form = self._forms.of(request)
            if form is None or form.places is not None or len(request.data) != form.size_bytes:
                return None  # `several` says what is wrong, or does what is not plain
            alike.setdefault(form, []).append(index)
        launches = []
        for form, group in alike.items():
            resolved = None if form.wanted is None else self._planner.at_hand(form.wanted)
            if resolved is None:
                return None
            one = self._batcher.of_form(form, resolved, len(group))
            if one.together or len(group) == 1:
                launches.append((one, group))
            else:
                alone = self._batcher.of_form(form, resolved, 1)
                launches += [(alone, [index]) for index in group]
        return launches if self._batcher.are_brief([one for one, _ in launches]) else None

    async def room(self, number: int) -> None:
        """Wait until so many more of a stream's tensors may be normalized in turn."""
        await self._batcher.room(number)

    async def several(self, requests: Sequence[Carried[pb.NormalizeRequest]], caller: str) -> list[bytes | Exception]:
        """Normalize tensors, each for itself; what became of each, in their order.

        Raises:
            InvalidArgument: they are too many.
        """
        _check_number(requests)
        if len(requests) == 1:
            return [await futures.outcome(self.one(requests[0], caller))]
        taken: list[_Asked | Exception] = []
        for request in requests:
            try:
                parts = self._parts(request)
                resolved = await self._planner.resolve(parts.wanted, style=parts.style)
                taken.append(self._asked(parts, resolved, caller))
            except Exception as error:  # a bug too is that tensor's own
                taken.append(error)
        results = iter(await self._batcher.run_all([item.job for item in taken if isinstance(item, _Asked)]))
        ended: list[bytes | Exception] = []
        contributing: dict[int, Awaitable[bytes]] = {}
        for index, item in enumerate(taken):
            result = item if isinstance(item, Exception) else next(results)
            ended.append(self._told(result))
            if isinstance(item, _Asked) and item.contributes is not None and isinstance(result, Encoded):
                contributing[index] = self._contributed(item.contributes, result)
        trained = await futures.ended(contributing.values())
        for index, outcome in zip(contributing, trained, strict=True):
            ended[index] = outcome
        return ended

    def _placed_at_once(self, request: Carried[pb.NormalizeRequest], caller: str) -> Sequence[bytes | Exception] | None:
        """The same of a tensor in shared memory."""
        one = self._placed(request)
        try:
            if one is not None and one.form.places and one.is_ready and self._batcher.are_brief([one]):
                source, target = validate.addresses(one.form.places, one.form.dtype, one.form.size_bytes, self._memory)
                self._metrics.received_bytes.inc(one.form.size_bytes)
                return [self._sent(self._batcher.at(one, source, target))]
            parts = self._parts(request)
        except ServiceError as error:
            return [error]
        resolved = self._planner.at_hand(parts.wanted)
        if resolved is None or parts.contributes or parts.style is not None:
            return None
        result = self._batcher.if_brief(self._asked(parts, resolved, caller).job)
        if isinstance(result, Encoded) and one is not None:
            one.make_ready(parts.batch.x)
        return None if result is None else [self._told(result)]

    def _placed(self, request: Carried[pb.NormalizeRequest]) -> Alike | None:
        """What is known of a request that says the same of the same places, if it is nothing more than that."""
        form = self._forms.of(request)
        if form is None or form.places is None or form.wanted is None or request.data:
            return None
        resolved = self._planner.at_hand(form.wanted)
        return None if resolved is None else self._batcher.of_form(form, resolved, 1)

    def _parts(self, request: Carried[pb.NormalizeRequest]) -> _Parts:
        message = request.message
        wanted = validate.wanted(message)
        batch = validate.input_of(message, request.data, self._memory)
        out = validate.output_of(message, batch.x, self._memory)
        producer = validate.producer_of(message) if wanted.mode is Mode.TRAIN else None
        contributes = None if producer is None else (message.normalizer, *producer)
        return _Parts(wanted, batch, out, validate.style_of(message), contributes)

    def _asked(self, parts: _Parts, resolved: Resolved, caller: str) -> _Asked:
        self._metrics.received_bytes.inc(parts.batch.x.nbytes)
        reply = replies.normalized(resolved.plan.mode, 0 if parts.contributes else resolved.version)
        return _Asked(Job(resolved.plan, parts.batch, reply, caller, out=parts.out), parts.contributes)

    def _told(self, result: Encoded | Exception) -> bytes | Exception:
        return result if isinstance(result, Exception) else self._sent(result)

    def _sent(self, result: Encoded) -> bytes:
        self._metrics.sent_bytes.inc(result.size_bytes)
        return result.sent

    async def _contributed(self, contributes: tuple[str, bytes, int], result: Encoded) -> bytes:
        return replies.trained(result, await self._contributing.train(*contributes, result.batches))


def _check_number(requests: Sequence[Carried[pb.NormalizeRequest]]) -> None:
    if len(requests) > validate.MAX_TENSORS:
        raise InvalidArgument("requests", f"has {len(requests)} items; expected at most {validate.MAX_TENSORS}")
