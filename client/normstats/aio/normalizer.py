"""One normalizer: contribute to it, normalize by it, read and watch it, keep and restore snapshots."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from time import monotonic
from typing import TYPE_CHECKING, Any

import grpc

from normstats import requests, specs
from normstats.activity import History
from normstats.aio import concurrency
from normstats.aio.group import AsyncMember
from normstats.aio.normalizing import normalize
from normstats.aio.stream import AsyncUpdateStream
from normstats.backoff import Backoff
from normstats.errors import connection_broke, from_grpc
from normstats.membership import DEFAULT_ROUND_SECONDS, OnMissing, Terms
from normstats.options import Mode, NormalizeOptions
from normstats.results import Drift, NormalizerInfo, SnapshotInfo, Stats, UpdateResult
from normstats.v1 import normalization_service_pb2 as pb
from normstats.wire import floats

if TYPE_CHECKING:
    from normstats.aio.connection import AsyncConnection


class AsyncNormalizer:
    """A normalizer on the server. `info` is as of when it was last asked for (`refresh`)."""

    def __init__(self, connection: AsyncConnection, info: NormalizerInfo) -> None:
        self._connection = connection
        self._stub = connection.stub
        self.info = info
        connection.remember(info.name, info.spec)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {type(self.spec).__name__} version {self.info.version}>"

    @property
    def name(self) -> str:
        """Its name."""
        return self.info.name

    @property
    def spec(self) -> specs.Spec:
        """What it computes."""
        return self.info.spec

    async def update(
        self,
        batch: Any,
        *,
        weights: Any = None,
        lengths: Any = None,
        mask: Any = None,
        time: float | datetime | None = None,
        timeout: float | None = None,
    ) -> UpdateResult:
        """Contribute a batch: its moments are taken here, and are durable and counted once when this returns.

        Args:
            batch: numpy array, torch tensor or sequence; (N,) serves for one feature.
            weights: one per sample, finite, none negative.
            lengths: one per sample: how many positions along the first axis after the batch are real.
            mask: bool; True is real.
            time: when it was observed, in seconds since the epoch or as a datetime; now by default.
            timeout: seconds.

        Raises:
            InvalidArgument: the batch does not fit, or has values that are not finite.
            FailedPrecondition: the normalizer is frozen, or keeps no statistics.
        """
        one = requests.contribution(self.name, self.spec, batch, weights=weights, lengths=lengths, mask=mask, time=time)
        reply = await self._connection.contribute([one], timeout)
        return UpdateResult.of(reply.contributed[0], duplicate=reply.duplicate)

    async def normalize(
        self,
        x: Any,
        *,
        mode: Mode | None = None,
        inverse: bool = False,
        lengths: Any = None,
        mask: Any = None,
        style: Any = None,
        snapshot: str | None = None,
        out: Any = None,
        timeout: float | None = None,
    ) -> Any:
        """Normalize an array; see Client.normalize."""
        options = NormalizeOptions(mode, inverse, lengths, mask, style, snapshot, out)
        return await normalize(self._connection, x, self.name, options, timeout)

    def stream(self, *, window: int = 256) -> AsyncUpdateStream:
        """A pipelined way to contribute, as a context manager; at most `window` updates wait for the server."""
        return AsyncUpdateStream(self._connection, self.name, self.spec, window)

    def join(
        self,
        group: str,
        size: int,
        *,
        timeout: float = DEFAULT_ROUND_SECONDS,
        on_missing: OnMissing = "fail",
        quorum: int | None = None,
        update: bool = False,
    ) -> AsyncMember:
        """A member of a group that synchronizes: a round is complete when `size` members gave their parts.

        Args:
            group: its name; groups of different normalizers may have the same.
            size: how many members complete a round.
            timeout: how many seconds a round may wait for its members, from its first part.
            on_missing: what becomes of it then: "fail" tells everyone; "proceed" merges those present.
            quorum: the fewest to proceed with; 1 by default.
            update: contribute each round to the running statistics, as one batch.

        All members must say the same. Use it as a context manager.
        """
        terms = Terms(f"{self.name}/{group}", size, timeout, on_missing, quorum, self.name if update else "")
        return AsyncMember(self._connection, terms, requests.running_spec(self.name, self.spec))

    async def stats(
        self, *, snapshot: str | None = None, include_state: bool = False, timeout: float | None = None
    ) -> Stats:
        """The running statistics as of the last commit, or those under a snapshot's tag."""
        request = pb.GetRunningStatsRequest(normalizer=self.name, snapshot=snapshot or "", include_state=include_state)
        reply = await self._connection.call(self._stub.GetRunningStats, request, timeout)
        return Stats.of(reply.stats)

    async def history(self, *, limit: int = 0, timeout: float | None = None) -> History:
        """How it came to be what it is, as far as the server has seen; and who contributed, 100 unless `limit` says.

        Raises:
            FailedPrecondition: it keeps no statistics.
        """
        request = pb.GetHistoryRequest(normalizer=self.name, limit=limit)
        return History.of(await self._connection.call(self._stub.GetHistory, request, timeout))

    async def watch(self, *, timeout: float | None = None) -> AsyncIterator[Stats]:
        """The running statistics now, and again whenever they change; versions in between may be skipped.

        Reconnects by itself. Ends when it is closed, or after `timeout` seconds in all, if given.

        Raises:
            NotFound: there is no such normalizer any more.
        """
        end = None if timeout is None else monotonic() + timeout
        seen, backoff = 0, Backoff()
        while end is None or monotonic() < end:
            remaining = None if end is None else end - monotonic()
            call = self._stub.WatchRunningStats(
                pb.WatchRunningStatsRequest(normalizer=self.name), timeout=remaining, wait_for_ready=True
            )
            try:
                async for reply in call:
                    backoff.reset()
                    if reply.stats.version != seen:
                        seen = reply.stats.version
                        yield Stats.of(reply.stats)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and end is not None:
                    return
                if not connection_broke(error):
                    raise from_grpc(error) from error
            finally:
                call.cancel()
            await concurrency.sleep(backoff.next_seconds())

    async def snapshot(self, tag: str, *, keep_last: int | None = None, timeout: float | None = None) -> SnapshotInfo:
        """Keep the present statistics under a tag; with `keep_last`, only that many of the newest snapshots stay.

        Raises:
            AlreadyExists: the tag holds another version.
        """
        request = pb.CreateSnapshotRequest(normalizer=self.name, tag=tag, keep_last=keep_last or 0)
        reply = await self._connection.call(self._stub.CreateSnapshot, request, timeout)
        return SnapshotInfo.of(reply.snapshot)

    async def snapshots(self, *, timeout: float | None = None) -> AsyncIterator[SnapshotInfo]:
        """All snapshots, in the order of their tags."""
        token = ""
        while True:
            request = pb.ListSnapshotsRequest(normalizer=self.name, page_token=token)
            page = await self._connection.call(self._stub.ListSnapshots, request, timeout)
            for message in page.snapshots:
                yield SnapshotInfo.of(message)
            token = page.next_page_token
            if not token:
                return

    async def restore(self, tag: str, *, timeout: float | None = None) -> NormalizerInfo:
        """Make a snapshot's statistics the present ones; the version grows.

        Raises:
            NotFound: there is no such snapshot.
        """
        request = pb.RestoreSnapshotRequest(normalizer=self.name, tag=tag)
        reply = await self._connection.call(self._stub.RestoreSnapshot, request, timeout)
        return self._became(NormalizerInfo.of(reply.normalizer))

    async def delete_snapshot(self, tag: str, *, timeout: float | None = None) -> None:
        """Delete a snapshot.

        Raises:
            NotFound: there is none of that tag.
        """
        request = pb.DeleteSnapshotRequest(normalizer=self.name, tag=tag)
        await self._connection.call(self._stub.DeleteSnapshot, request, timeout)

    async def compare(
        self, base: str, tag: str | None = None, *, limit: int = 0, timeout: float | None = None
    ) -> Drift:
        """How far each feature has moved from one snapshot to another, or to the present; the worst first."""
        request = pb.CompareSnapshotsRequest(normalizer=self.name, base_tag=base, tag=tag or "", limit=limit)
        return Drift.of(await self._connection.call(self._stub.CompareSnapshots, request, timeout))

    async def freeze(self, *, timeout: float | None = None) -> NormalizerInfo:
        """Refuse contributions from now on."""
        return await self._change(pb.UpdateNormalizerRequest(name=self.name, frozen=True), timeout)

    async def unfreeze(self, *, timeout: float | None = None) -> NormalizerInfo:
        """Take contributions again."""
        return await self._change(pb.UpdateNormalizerRequest(name=self.name, frozen=False), timeout)

    async def reset(self, *, timeout: float | None = None) -> NormalizerInfo:
        """Forget all statistics; the version grows."""
        return await self._change(pb.UpdateNormalizerRequest(name=self.name, reset=True), timeout)

    async def set_parameters(
        self, *, weight: Any = None, bias: Any = None, timeout: float | None = None
    ) -> NormalizerInfo:
        """Set scale and shift; what is not given stays.

        Raises:
            InvalidArgument: the normalization takes no such parameter, or another number of values.
        """
        request = pb.UpdateNormalizerRequest(name=self.name)
        for name, value in (("weight", weight), ("bias", bias)):
            if value is not None:
                setattr(request, name, floats.to_bytes(specs.float64_array(value)))
        return await self._change(request, timeout)

    async def refresh(self, *, timeout: float | None = None) -> NormalizerInfo:
        """Ask the server for `info` again."""
        request = pb.GetNormalizerRequest(name=self.name)
        reply = await self._connection.call(self._stub.GetNormalizer, request, timeout)
        return self._became(NormalizerInfo.of(reply.normalizer))

    async def delete(self, *, timeout: float | None = None) -> None:
        """Delete it, and its snapshots."""
        request = pb.DeleteNormalizerRequest(name=self.name)
        await self._connection.call(self._stub.DeleteNormalizer, request, timeout)
        self._connection.forget(self.name)

    async def _change(self, request: pb.UpdateNormalizerRequest, timeout: float | None) -> NormalizerInfo:
        reply = await self._connection.call(self._stub.UpdateNormalizer, request, timeout)
        return self._became(NormalizerInfo.of(reply.normalizer))

    def _became(self, info: NormalizerInfo) -> NormalizerInfo:
        self.info = info
        self._connection.remember(info.name, info.spec)
        return info
