"""The handlers: parse, call, reply. What their errors become on the wire is decided at the edge (interceptors)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

from grpc.aio import ServicerContext

from normserver import calls, names, pages, replies, validate
from normserver.access.grants import Scope
from normserver.activity.activity import MAX_SECONDS, Activity
from normserver.backups import Backups
from normserver.chunks import Chunks
from normserver.comparing import Comparing
from normserver.contributing import Contributing
from normserver.errors import InvalidArgument
from normserver.normalizers import Normalizers
from normserver.normalizing import Normalizing
from normserver.placement import Placement
from normserver.published import Published
from normserver.records import PIECE_FEATURES, width_of
from normserver.rounds.groups import Groups
from normserver.sessions import Sessions
from normserver.shared_memory import SharedMemory
from normserver.streams import acknowledgements
from normstats.v1 import activity_pb2
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceServicer
from normstats.wire.carried import Carried, ManyCarried

Context: TypeAlias = "ServicerContext[Any, Any]"

# How many normalizers, producers and rounds are told of unless more are asked for.
_SHOWN = 100


class NormalizationService(NormalizationServiceServicer):
    """normstats.v1.NormalizationService; the contract's comments say what each call does."""

    def __init__(
        self,
        published: Published,
        normalizers: Normalizers,
        comparing: Comparing,
        normalizing: Normalizing,
        contributing: Contributing,
        groups: Groups,
        memory: SharedMemory,
        sessions: Sessions,
        chunks: Chunks,
        placement: Placement,
        backups: Backups,
        activity: Activity,
    ) -> None:
        self._published = published
        self._normalizers = normalizers
        self._comparing = comparing
        self._normalizing = normalizing
        self._contributing = contributing
        self._groups = groups
        self._memory = memory
        self._sessions = sessions
        self._chunks = chunks
        self._placement = placement
        self._backups = backups
        self._activity = activity

    async def Normalize(self, request: Carried[pb.NormalizeRequest], context: Context) -> Any:  # type: ignore[override]
        """One tensor."""
        return await self._normalizing.one(request, calls.caller())

    async def NormalizeMany(  # type: ignore[override]
        self, request: ManyCarried, context: Context
    ) -> Any:
        """Several tensors."""
        return replies.normalized_many(await self._normalizing.several(request.items, calls.caller()), "NormalizeMany")

    async def NormalizeManyStream(  # type: ignore[override]
        self, request_iterator: AsyncIterator[ManyCarried], context: Context
    ) -> None:
        """Several tensors, again and again."""
        await self._sessions.serve(request_iterator, calls.caller(), context.write, calls.share())

    async def NormalizeStream(  # type: ignore[override]
        self, request_iterator: AsyncIterator[Carried[pb.NormalizeStreamRequest]], context: Context
    ) -> None:
        """One tensor in chunks."""
        await self._chunks.serve(request_iterator, calls.caller(), context.write, calls.share())

    def ShareMemory(
        self, request_iterator: AsyncIterator[pb.ShareMemoryRequest], context: Context
    ) -> AsyncIterator[pb.ShareMemoryResponse]:
        """Memory that the caller sees too."""
        return self._memory.lend(
            request_iterator, calls.caller(), calls.holder(), calls.identity().limits.shared_memory_bytes
        )

    async def UpdateRunningStats(
        self, request: pb.UpdateRunningStatsRequest, context: Context
    ) -> pb.UpdateRunningStatsResponse:
        """One contribution."""
        producer = names.check_producer(request.producer_id, "producer_id")
        queued = await self._contributing.submit(producer, request.sequence, request.contributions, request.data)
        outcome = await queued
        return pb.UpdateRunningStatsResponse(
            duplicate=outcome.duplicate, contributed=[replies.contributed(item) for item in outcome.contributed]
        )

    def UpdateRunningStatsStream(
        self, request_iterator: AsyncIterator[pb.UpdateRunningStatsStreamRequest], context: Context
    ) -> AsyncIterator[pb.UpdateRunningStatsStreamResponse]:
        """Contributions as they come."""
        return acknowledgements(request_iterator, self._contributing, calls.share())

    def SynchronizeStats(
        self, request_iterator: AsyncIterator[pb.SynchronizeStatsRequest], context: Context
    ) -> AsyncIterator[Any]:
        """Rounds."""
        return self._groups.synchronize(request_iterator)

    async def GetRunningStats(self, request: pb.GetRunningStatsRequest, context: Context) -> Any:
        """Statistics now, or a snapshot's."""
        name = names.check_name(request.normalizer, "normalizer")
        if request.snapshot:
            record = await self._normalizers.snapshot(name, names.check_tag(request.snapshot, "snapshot"))
        else:
            record = await self._published.get(name)
        if width_of(record.spec) <= PIECE_FEATURES:
            return replies.got_stats(record, include_state=request.include_state)
        return await asyncio.to_thread(replies.got_stats, record, include_state=request.include_state)

    async def WatchRunningStats(self, request: pb.WatchRunningStatsRequest, context: Context) -> AsyncIterator[Any]:
        """Statistics now, and whenever they change."""
        record = await self._published.get(names.check_name(request.normalizer, "normalizer"))
        while True:
            yield await self._published.serialized(record, replies.watched)
            record = await self._published.changed(record)

    async def GetDevice(self, request: pb.GetDeviceRequest, context: Context) -> pb.GetDeviceResponse:
        """Where the server computes."""
        return replies.device(self._placement)

    async def GetActivity(self, request: pb.GetActivityRequest, context: Context) -> pb.GetActivityResponse:
        """What the server is doing."""
        return pb.GetActivityResponse(activity=self._doing(request, request.seconds))

    async def WatchActivity(
        self, request: pb.WatchActivityRequest, context: Context
    ) -> AsyncIterator[pb.WatchActivityResponse]:
        """The same, every second."""
        seconds = request.seconds
        while True:
            yield pb.WatchActivityResponse(activity=self._doing(request, seconds))
            await self._activity.next()
            seconds = 1

    async def GetHistory(self, request: pb.GetHistoryRequest, context: Context) -> pb.GetHistoryResponse:
        """How a normalizer came to be what it is."""
        record = await self._published.get(names.check_name(request.normalizer, "normalizer"))
        record.statistics()
        limit = pages.limit(request.limit, "limit", usual=_SHOWN, most=pages.MAX_PAGE)
        return replies.history(*await self._activity.history(record, limit))

    async def CreateNormalizer(
        self, request: pb.CreateNormalizerRequest, context: Context
    ) -> pb.CreateNormalizerResponse:
        """Make a normalizer."""
        name = names.check_name(request.name, "name")
        spec = validate.spec(request.spec, "spec")
        running = validate.state(request.state, spec, "state") if request.HasField("state") else None
        head, created = await self._normalizers.create(
            name, spec, exist_ok=request.exist_ok, running=running, caller=calls.identity()
        )
        return pb.CreateNormalizerResponse(normalizer=replies.normalizer(head), created=created)

    async def GetNormalizer(self, request: pb.GetNormalizerRequest, context: Context) -> pb.GetNormalizerResponse:
        """One normalizer."""
        head = await self._normalizers.get(names.check_name(request.name, "name"))
        return pb.GetNormalizerResponse(normalizer=replies.normalizer(head))

    async def ListNormalizers(self, request: pb.ListNormalizersRequest, context: Context) -> pb.ListNormalizersResponse:
        """A page of normalizers."""
        size, after = pages.asked(request.page_size, request.page_token)
        prefix = names.check_prefix(request.prefix, "prefix")
        contains = names.check_prefix(request.contains, "contains", expected="a part of a name")
        found = []
        async for some in self._normalizers.page(prefix, contains, after, size + 1):
            found += [replies.normalizer(head) for head in some]
        return pb.ListNormalizersResponse(
            normalizers=found[:size],
            next_page_token=pages.next_token([one.name for one in found], size),
            total_count=await self._normalizers.count(prefix, contains),
        )

    async def UpdateNormalizer(
        self, request: pb.UpdateNormalizerRequest, context: Context
    ) -> pb.UpdateNormalizerResponse:
        """Set affine parameters, freeze, thaw, reset."""
        name = names.check_name(request.name, "name")
        head = await self._normalizers.change(
            name,
            spec=lambda spec: validate.affine(spec, request),
            frozen=request.frozen if request.HasField("frozen") else None,
            reset=request.reset,
            caller=calls.identity(),
        )
        return pb.UpdateNormalizerResponse(normalizer=replies.normalizer(head))

    async def DeleteNormalizer(
        self, request: pb.DeleteNormalizerRequest, context: Context
    ) -> pb.DeleteNormalizerResponse:
        """Delete a normalizer."""
        await self._normalizers.delete(names.check_name(request.name, "name"))
        return pb.DeleteNormalizerResponse()

    async def CreateSnapshot(self, request: pb.CreateSnapshotRequest, context: Context) -> pb.CreateSnapshotResponse:
        """Keep the present statistics under a tag."""
        if request.keep_last < 0:
            raise InvalidArgument("keep_last", f"is {request.keep_last}; expected at least 0")
        kept = await self._normalizers.keep(
            *_snapshot_of(request), keep_last=request.keep_last, caller=calls.identity()
        )
        return pb.CreateSnapshotResponse(snapshot=replies.snapshot(kept))

    async def ListSnapshots(self, request: pb.ListSnapshotsRequest, context: Context) -> pb.ListSnapshotsResponse:
        """A page of snapshots."""
        name = names.check_name(request.normalizer, "normalizer")
        size, after = pages.asked(request.page_size, request.page_token)
        found = await self._normalizers.snapshots(name, after, size + 1)
        return pb.ListSnapshotsResponse(
            snapshots=[replies.snapshot(kept) for kept in found[:size]],
            next_page_token=pages.next_token([kept.tag for kept in found], size),
        )

    async def RestoreSnapshot(self, request: pb.RestoreSnapshotRequest, context: Context) -> pb.RestoreSnapshotResponse:
        """Make a snapshot's statistics the present ones."""
        head = await self._normalizers.restore(*_snapshot_of(request))
        return pb.RestoreSnapshotResponse(normalizer=replies.normalizer(head))

    async def DeleteSnapshot(self, request: pb.DeleteSnapshotRequest, context: Context) -> pb.DeleteSnapshotResponse:
        """Delete a snapshot."""
        await self._normalizers.drop(*_snapshot_of(request))
        return pb.DeleteSnapshotResponse()

    async def CompareSnapshots(self, request: pb.CompareSnapshotsRequest, context: Context) -> Any:
        """Drift per feature."""
        name = names.check_name(request.normalizer, "normalizer")
        base = names.check_tag(request.base_tag, "base_tag")
        tag = names.check_tag(request.tag, "tag") if request.tag else ""
        if request.limit < 0:
            raise InvalidArgument("limit", f"is {request.limit}; expected at least 0")
        return await self._comparing.compare(name, base, tag, request.limit)

    def BackUp(self, request: pb.BackUpRequest, context: Context) -> AsyncIterator[pb.BackUpResponse]:
        """The whole store."""
        return self._backups.send()

    def _doing(self, request: pb.GetActivityRequest | pb.WatchActivityRequest, seconds: int) -> activity_pb2.Activity:
        prefix = names.check_prefix(request.prefix, "prefix")
        limit = pages.limit(request.limit, "limit", usual=_SHOWN, most=pages.MAX_PAGE)
        seconds = pages.limit(seconds, "seconds", usual=1, most=MAX_SECONDS)
        caller = calls.identity()
        doing = self._activity.doing(lambda name: name.startswith(prefix) and caller.may_read(name), limit, seconds)
        return replies.activity(doing, caller.prefixes(Scope.READ))


def _snapshot_of(
    request: pb.CreateSnapshotRequest | pb.RestoreSnapshotRequest | pb.DeleteSnapshotRequest,
) -> tuple[str, str]:
    return names.check_name(request.normalizer, "normalizer"), names.check_tag(request.tag, "tag")
