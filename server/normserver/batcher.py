"""Runs normalizations on the device: alone, or, where several of one kind wait, in one launch."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf, prod
from time import perf_counter

import torch
from torch import Tensor

from normcore.errors import NormcoreError
from normcore.kernels.base import Launch, NotCompiled, output_dtype, output_type
from normcore.stack import MomentsStack
from normserver import codec, engine, futures, replies
from normserver.bounded import Bounded
from normserver.codec import Encoded, Reply
from normserver.compute import Compute, Task
from normserver.engine import CPU, Batch, Plan, Resolved
from normserver.errors import ServiceError, from_engine
from normserver.forms import Form
from normserver.kept import Kept
from normserver.placement import Placement
from normserver.staging import Staging
from normserver.turns import MOST_TASKS
from normstats import specs
from normstats.wire import carried
from normstats.wire.carried import Data

# What takes less, as far as is known, is done on the event loop, for each batch: handing one to a thread and hearing of
# its end takes 170 us, of which a chunk's normalization takes 100.
_BRIEF_SECONDS, _BRIEF_BYTES = 200e-6, 1 << 20
# Nothing longer is.
_LONGEST_SECONDS = 1e-3
# What part of a delay is believed.
_LATE = 0.125
# Larger batches gain nothing from company: arithmetic is most of what they cost, and they would be copied once more.
_TOGETHER_BYTES = 1 << 16
# Kinds of calls whose times are remembered; forms of which it is remembered what they are like.
_REMEMBERED, _MOST_ALIKE = 4096, 256
# What the plans of those that are alike may take.
_MOST_ALIKE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Job:
    """A batch to be normalized by a plan, for a reply that lacks nothing else.

    `prefix` is its path in the request. The output goes into `out`, if that is given, and not into the reply.
    """

    plan: Plan
    batch: Batch
    reply: Reply
    caller: str = ""
    prefix: str = ""
    out: Tensor | None = None


class Alike:
    """So many batches of one form by one plan, for the same reply."""

    __slots__ = (
        "_comes_again",
        "_headers",
        "_is_settled",
        "_launch",
        "_size",
        "form",
        "number",
        "plan",
        "shape",
        "sort",
        "together",
    )

    def __init__(self, form: Form, plan: Plan, reply: Reply, number: int = 1) -> None:
        self.form = form
        self.plan = plan
        self.number = number
        output = output_type(form.dtype)
        self._size = prod(form.shape) * output.itemsize
        header = codec.before(reply, output, form.shape, 0 if form.places else self._size)
        # Of a reply alone, and of one that is all that a numbered message says.
        self._headers = header, replies.only_one(header, self._size)
        self._launch: Launch | None = None
        self._is_settled = self._comes_again = False
        shape, padded = form.shape, form.lengths is not None or form.mask is not None
        rows = None if number == 1 or padded else engine.row_shape(plan, shape)
        self.together = rows is not None
        self.shape = shape if rows is None else (number * prod(shape) // prod(rows), *rows)
        self.sort = _sort_of(plan, form.dtype, number * (shape[0] if shape else 1), shape[1:], padded, number)

    def normalize(self, data: Sequence[Data], number: int | None = None) -> list[Encoded | Exception]:
        """Normalize their data in one launch; what became of each: a reply, or a message of that number with only it.

        Raises:
            NormcoreError: they do not fit the spec.
        """
        if len(data) == 1:
            header = self._headers[number is not None]
            sent = codec.unwritten(self._size, header, b"" if number is None else carried.numbered(number))
            self._run(data[0], sent, len(header))
            return [Encoded(sent, self._size)]
        values = codec.unwritten(self._size * len(data))
        self._run(b"".join(data), values, 0)
        starts = range(0, len(values), self._size)
        view = memoryview(values)
        return [Encoded(self._headers[0] + view[start : start + self._size], self._size) for start in starts]

    @property
    def is_ready(self) -> bool:
        """Whether there is a kernel that is run at addresses."""
        return self._launch is not None

    def make_ready(self, x: Tensor) -> None:
        """Have one, if there is one for such as x, which was normalized."""
        if not self._is_settled:
            with suppress(NotCompiled):  # until it is compiled, it is asked for again
                self._launch = engine.like(self.plan, x) if self.form.lengths is self.form.mask is None else None
                self._is_settled = True

    def normalize_at(self, source: int, target: int) -> Encoded:
        """Normalize what lies in shared memory, by the kernel that is ready; the reply says that alone."""
        assert self._launch is not None, "it is ready"
        self._launch(source, target)
        return Encoded(self._headers[0], self._size)

    def _run(self, data: Data, into: bytes, offset: int) -> None:
        """Normalize data into what has not been written yet. A kernel is made ready for what comes a second time."""
        if self._launch is not None:
            self._launch(codec.address_of(data), codec.address_of(into) + offset)
            return
        form = self.form
        x = torch.frombuffer(data, dtype=form.dtype).reshape(self.shape)
        out = torch.frombuffer(into, dtype=output_dtype(x), count=x.numel(), offset=offset).reshape(self.shape)
        engine.normalize(self.plan, Batch(x, form.lengths, form.mask), CPU, out)
        if self._comes_again:
            self.make_ready(x)
        self._comes_again = True


class Batcher:
    """What normalizes."""

    def __init__(self, compute: Compute, placement: Placement) -> None:
        self._compute = compute
        self._placement = placement
        self._kept = Kept()
        self._staging = Staging()
        self._seconds: dict[Hashable, float] = {}
        self._alikes: Bounded[tuple[Form, int], tuple[Resolved, Alike]] = Bounded(_MOST_ALIKE, _MOST_ALIKE_BYTES)

    async def run(self, job: Job) -> Encoded:
        """Normalize a batch: here and now if that is brief, else in turn.

        Raises:
            ResourceExhausted: too much is waiting already.
            ServiceError: what the engine found wrong with the values.
        """
        result = self.if_brief(job)
        if result is None:
            return await self.ended(self.begin(job), job.prefix)
        if isinstance(result, Exception):
            raise result
        return result

    def if_brief(self, job: Job) -> Encoded | Exception | None:
        """Normalize a batch here and now; None if that would take long."""
        return _told(self._now((job,))[0], job) if self._is_brief((job,)) else None

    def of_form(self, form: Form, resolved: Resolved, number: int) -> Alike:
        """So many batches of a form."""
        known = self._alikes.get((form, number))
        if known is None or known[0] is not resolved:
            plan = resolved.plan
            told = replies.normalized if form.wanted else replies.normalized_chunk
            reply = told(plan.mode, resolved.version)
            known = resolved, Alike(form, plan, reply, number)
            self._alikes.put((form, number), known, plan.size_bytes)
        return known[1]

    def are_brief(self, several: Sequence[Alike]) -> bool:
        """Whether batches that are alike are to be normalized here and now, one launch after another."""
        for alike in several:
            size = alike.form.size_bytes * alike.number
            most = _BRIEF_BYTES if alike.form.places is None else inf
            if size > most or self._placement.of_size(alike.plan, size) != CPU:
                return False
            longest = _brief_seconds(alike.number) if alike.form.places is None else _LONGEST_SECONDS
            if self._seconds.get(alike.sort, inf) >= longest:
                return False
        # Compute threads note times too, and may have begun anew since: what is gone costs nothing here.
        return sum(self._seconds.get(alike.sort, 0.0) for alike in several) < _LONGEST_SECONDS

    def alike(self, alike: Alike, data: Sequence[Data], number: int | None = None) -> list[Encoded | Exception]:
        """Normalize the data of batches that are alike, here and now; what became of each: see Alike.normalize."""
        begun = perf_counter()
        try:
            return self._compute.at_once(lambda: alike.normalize(data, number))
        except NormcoreError as error:
            return [from_engine(error, alike.form.prefix)] * len(data)
        finally:
            self._note(alike.sort, perf_counter() - begun)

    def at(self, alike: Alike, source: int, target: int) -> Encoded:
        """Normalize a tensor in shared memory, here and now, by the kernel that is ready for it."""
        begun = perf_counter()
        try:
            return self._compute.at_once(lambda: alike.normalize_at(source, target))
        finally:
            self._note(alike.sort, perf_counter() - begun)

    def begin(self, job: Job) -> asyncio.Future[Encoded]:
        """Queue a batch; `ended` waits for it.

        Raises:
            ResourceExhausted: too much is waiting already.
        """
        return self._compute.submit(Task(self._work, job, job.caller, _kind(job), job.batch.x.nbytes))

    async def room(self, number: int = 1) -> None:
        """Wait until so many more batches of a stream may be queued."""
        await self._compute.room(number)

    async def ended(self, begun: asyncio.Future[Encoded], prefix: str) -> Encoded:
        """What became of a batch, whose path in the request is `prefix`.

        Raises:
            ServiceError: what the engine found wrong with the values.
        """
        try:
            return await begun
        except NormcoreError as error:
            raise from_engine(error, prefix) from error

    async def run_all(self, jobs: Sequence[Job]) -> list[Encoded | Exception]:
        """Normalize batches; what became of each, in their order."""
        results: dict[int, Encoded | Exception] = {}
        waiting: dict[int, asyncio.Future[Encoded]] = {}
        spent = 0.0
        for group in _groups(jobs):
            some = [jobs[index] for index in group]
            if spent < _LONGEST_SECONDS and self._is_brief(some):
                spent += self._seconds.get(_sort(some), 0.0)
                results.update(zip(group, self._now(some), strict=True))
                continue
            for index in group:
                try:
                    waiting[index] = self.begin(jobs[index])
                except ServiceError as error:
                    results[index] = error
        if waiting:
            results.update(zip(waiting, await futures.ended(waiting.values()), strict=True))
        return [_told(results[index], job) for index, job in enumerate(jobs)]

    async def moments(self, spec: specs.RunningSpec, batch: Batch, *, prefix: str, caller: str = "") -> MomentsStack:
        """The moments of a raw batch.

        Raises:
            ResourceExhausted: too much is waiting already.
            ServiceError: what the engine found wrong with the values.
        """
        device = self._placement.of_moments(batch.x)
        taken = await self._compute.run(lambda: engine.moments(spec, batch, device), prefix=prefix, caller=caller)
        stack = MomentsStack.of(taken) if taken else MomentsStack.empty(spec.num_features)
        codec.check_mergeable(stack, [f"{prefix}input"] * len(stack))
        return stack

    def _now(self, jobs: Sequence[Job]) -> Sequence[Encoded | Exception]:
        return self._compute.at_once(lambda: self._work(jobs))

    def _is_brief(self, jobs: Sequence[Job]) -> bool:
        """Whether a launch is to be done on the event loop; the first of a sort may have to be compiled.

        Tensors in shared memory leave the loop little else to do: they are, up to what it can be held for.
        """
        size = sum(job.batch.x.nbytes for job in jobs)
        if self._placement.of_size(jobs[0].plan, size) != CPU:
            return False
        seconds = self._seconds.get(_sort(jobs), inf)
        if jobs[0].out is not None:
            return seconds < _LONGEST_SECONDS
        return size <= _BRIEF_BYTES and seconds < _brief_seconds(len(jobs))

    def _work(self, jobs: Sequence[Job]) -> Sequence[Encoded | Exception]:
        """One launch, of jobs of one kind; on whatever thread this is."""
        begun = perf_counter()
        try:
            results: Sequence[Encoded | Exception] = self._together(jobs) if len(jobs) > 1 else [self._alone(jobs[0])]
        except NormcoreError as error:
            # One of several is wrong: each finds out for itself.
            results = [error] if len(jobs) == 1 else [self._work([job])[0] for job in jobs]
        self._note(_sort(jobs), perf_counter() - begun)
        return results

    def _note(self, sort: Hashable, seconds: float) -> None:
        """How long a launch took. What took longer than is known may have been interrupted, and counts for a part."""
        if len(self._seconds) >= _REMEMBERED:
            self._seconds.clear()
        known = self._seconds.get(sort, inf)
        self._seconds[sort] = seconds if seconds < known else known + _LATE * (seconds - known)

    def _alone(self, job: Job) -> Encoded:
        """Into the very bytes that are sent, or, if `out` is given, there."""
        x = job.batch.x
        if job.out is not None:
            sent, out = codec.describe(job.reply, job.out), job.out
        else:
            sent, out = codec.room(job.reply, output_dtype(x), tuple(x.shape))
        device = self._placement.of(job.plan, x)
        if device == CPU:
            found = engine.normalize(job.plan, job.batch, device, out)
        else:
            found = self._staging.normalize(job.plan, job.batch, device)
            out.copy_(found.y)
        return Encoded(sent, out.nbytes, found.batches)

    def _together(self, jobs: Sequence[Job]) -> list[Encoded]:
        batches, plan = [job.batch for job in jobs], jobs[0].plan
        device = self._placement.of(plan, batches[0].x)
        found = engine.normalize_together(plan, batches, device, self._kept.memory)
        return [Encoded(codec.encode_tensor(job.reply, y), y.nbytes) for job, y in zip(jobs, found, strict=True)]


def _groups(jobs: Sequence[Job]) -> list[list[int]]:
    """Which jobs of one request go together; they are few enough for the event loop, or wait for company anyway."""
    if len(jobs) <= 1:
        return [[0]] if jobs else []
    groups: list[list[int]] = []
    open_groups: dict[Hashable, tuple[list[int], int]] = {}
    for index, job in enumerate(jobs):
        kind, size = _kind(job), job.batch.x.nbytes
        group, taken = open_groups.get(kind, ([], 0))
        if kind is None or not group or taken + size > _BRIEF_BYTES or len(group) == MOST_TASKS:
            group, taken = [], 0
            groups.append(group)
        group.append(index)
        open_groups[kind] = group, taken + size
    return groups


def _brief_seconds(batches: int) -> float:
    return min(_BRIEF_SECONDS * batches, _LONGEST_SECONDS)


def _kind(job: Job) -> Hashable | None:
    if job.out is not None or job.batch.x.nbytes > _TOGETHER_BYTES:
        return None
    return engine.kind_of(job.plan, job.batch)


def _sort(jobs: Sequence[Job]) -> Hashable:
    """What takes about as long."""
    plan, batch = jobs[0].plan, jobs[0].batch
    rows = sum(job.batch.x.shape[0] if job.batch.x.dim() else 1 for job in jobs)
    padded = batch.lengths is not None or batch.mask is not None
    return _sort_of(plan, batch.x.dtype, rows, tuple(batch.x.shape[1:]), padded, len(jobs))


def _sort_of(
    plan: Plan, dtype: torch.dtype, rows: int, row_shape: tuple[int, ...], padded: bool, number: int
) -> Hashable:
    return plan.costs, dtype, row_shape, padded, rows.bit_length(), number.bit_length()


def _told(result: Encoded | Exception, job: Job) -> Encoded | Exception:
    """With the engine's errors in the contract's words."""
    return from_engine(result, job.prefix) if isinstance(result, NormcoreError) else result
