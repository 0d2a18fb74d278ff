"""The client: normalizers by name, normalization by name or by spec, contributions to many at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np

from normstats import requests, specs
from normstats.activity import Activity
from normstats.aio import concurrency
from normstats.aio.backup import Progress, back_up
from normstats.aio.connection import AsyncConnection
from normstats.aio.normalizer import AsyncNormalizer
from normstats.aio.normalizing import normalize, normalize_many
from normstats.backoff import Backoff
from normstats.channel import DEFAULT_TARGET, DEFAULT_TIMEOUT, Option
from normstats.errors import InvalidArgument, connection_broke, from_grpc
from normstats.options import Mode, NormalizeOptions
from normstats.results import Backup, Device, NormalizerInfo, RunningState, UpdateResult
from normstats.security import TLS, Token, security_of
from normstats.v1 import normalization_service_pb2 as pb
from normstats.wire import spec as spec_wire


def connect(
    target: str = DEFAULT_TARGET,
    *,
    timeout: float = DEFAULT_TIMEOUT,
    tls: TLS | bool | str | PathLike[str] | None = None,
    token: Token | None = None,
    shared_memory: bool = False,
    options: Sequence[Option] = (),
) -> AsyncClient:
    """A client of the server at `target`; connects at its first call, and again whenever the connection breaks.

    Args:
        target: HOST:PORT, unix:PATH, or any other gRPC target.
        timeout: seconds that a call may take, its retries included, unless it says otherwise.
        tls: True, or a PEM file of the authorities that the server's certificate comes from, or a TLS; False for
            plaintext whatever the environment says. By default NORMSTATS_CA, NORMSTATS_CERT and NORMSTATS_KEY.
        token: who calls, or a function that is asked at each call. By default NORMSTATS_TOKEN.
        shared_memory: normalize arrays above 64 KiB in memory that the server on this machine sees too. The target must
            be unix:PATH, and the server run with --shared-memory, as the same user.
        options: gRPC channel options, beside those that are set anyway.

    Raises:
        InvalidArgument: memory is to be shared with what is not reached by a unix socket, a token would travel
            unencrypted to another machine, or a file of TLS cannot be read.
    """
    return AsyncClient(target, timeout=timeout, tls=tls, token=token, shared_memory=shared_memory, options=options)


class AsyncClient:
    """A client. Use it as a context manager, or close it."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        tls: TLS | bool | str | PathLike[str] | None = None,
        token: Token | None = None,
        shared_memory: bool = False,
        options: Sequence[Option] = (),
    ) -> None:
        if shared_memory and not target.startswith("unix:"):
            raise InvalidArgument(f"shared_memory is set; {target!r} is no unix:PATH", field="target")
        security = security_of(target, tls, token)
        self._connection = AsyncConnection(target, timeout, options, security=security, shared_memory=shared_memory)

    def __await__(self) -> Generator[Any, None, Self]:
        return self._itself().__await__()

    async def _itself(self) -> Self:
        return self

    async def create(
        self,
        name: str,
        spec: specs.Spec,
        *,
        exist_ok: bool = False,
        state: RunningState | None = None,
        timeout: float | None = None,
    ) -> AsyncNormalizer:
        """Make a normalizer.

        Args:
            name: 1 to 200 letters, digits, '.', '_', '-', in segments joined by '/'.
            spec: what it computes.
            exist_ok: take the one that is there, if its spec is the same but for affine parameters.
            state: statistics to start from: `stats(include_state=True).state` of another normalizer.
            timeout: seconds.

        Raises:
            AlreadyExists: the name is taken.
        """
        request = pb.CreateNormalizerRequest(
            name=name,
            spec=spec_wire.to_proto(spec),
            exist_ok=exist_ok,
            state=None if state is None else state.message,
        )
        reply = await self._connection.call(self._connection.stub.CreateNormalizer, request, timeout)
        return AsyncNormalizer(self._connection, NormalizerInfo.of(reply.normalizer))

    async def get(self, name: str, *, timeout: float | None = None) -> AsyncNormalizer:
        """The normalizer of that name.

        Raises:
            NotFound: there is none.
        """
        request = pb.GetNormalizerRequest(name=name)
        reply = await self._connection.call(self._connection.stub.GetNormalizer, request, timeout)
        return AsyncNormalizer(self._connection, NormalizerInfo.of(reply.normalizer))

    async def list(self, prefix: str = "", *, timeout: float | None = None) -> AsyncIterator[NormalizerInfo]:
        """All normalizers whose names begin with `prefix`, in order; their specs come without affine parameters."""
        token = ""
        while True:
            request = pb.ListNormalizersRequest(prefix=prefix, page_token=token)
            page = await self._connection.call(self._connection.stub.ListNormalizers, request, timeout)
            for message in page.normalizers:
                yield NormalizerInfo.of(message)
            token = page.next_page_token
            if not token:
                return

    async def delete(self, name: str, *, timeout: float | None = None) -> None:
        """Delete a normalizer and its snapshots.

        Raises:
            NotFound: there is none of that name.
        """
        request = pb.DeleteNormalizerRequest(name=name)
        await self._connection.call(self._connection.stub.DeleteNormalizer, request, timeout)
        self._connection.forget(name)

    async def device(self, *, timeout: float | None = None) -> Device:
        """Where the server computes, and from which size on for what."""
        return Device.of(await self._connection.call(self._connection.stub.GetDevice, pb.GetDeviceRequest(), timeout))

    async def activity(
        self, prefix: str = "", *, limit: int = 0, seconds: int = 1, timeout: float | None = None
    ) -> Activity:
        """What the server is doing: its load in the last `seconds`, what changes, who contributes, which rounds wait.

        Of names that begin with `prefix` and that you may read; at most `limit` of each kind, 100 by default.
        """
        request = pb.GetActivityRequest(prefix=prefix, limit=limit, seconds=seconds)
        reply = await self._connection.call(self._connection.stub.GetActivity, request, timeout)
        return Activity.of(reply.activity)

    async def watch_activity(self, prefix: str = "", *, limit: int = 0, seconds: int = 1) -> AsyncIterator[Activity]:
        """The same now, and again every second: of the last second, after the first time.

        Reconnects by itself. Ends when it is closed.
        """
        request, backoff = pb.WatchActivityRequest(prefix=prefix, limit=limit, seconds=seconds), Backoff()
        while True:
            call = self._connection.stub.WatchActivity(request, wait_for_ready=True)
            try:
                async for reply in call:
                    backoff.reset()
                    yield Activity.of(reply.activity)
            except grpc.RpcError as error:
                if not connection_broke(error):
                    raise from_grpc(error) from error
            finally:
                call.cancel()
            await concurrency.sleep(backoff.next_seconds())

    async def normalize(
        self,
        x: Any,
        target: specs.Spec | str,
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
        """Normalize an array by a spec or by a normalizer's name; larger ones travel in chunks of rows.

        Args:
            x: numpy array, torch tensor or sequence; at most 8 dimensions.
            target: a spec, or a normalizer's name.
            mode: "eval" by running statistics, "batch" by this batch's own, "train" by its own, which are contributed;
                "eval" by default where there are running statistics, else "batch".
            inverse: undo a normalization by running statistics.
            lengths: one per sample: how many positions along the first axis after the batch are real.
            mask: bool; True is real. Padding is in no statistic and comes back as it was.
            style: of an AdaptiveInstanceNorm: an array (N or 1, C, ...) or a normalizer's name.
            snapshot: use the statistics under this tag.
            out: a dense array or tensor of the result's kind, shape and dtype, which is filled and returned; also x.
                In shared memory it may still be written to after a call that was given up.
            timeout: seconds.

        Returns:
            The same kind, shape and dtype as x; integers become float32.

        Raises:
            InvalidArgument: x or an argument does not fit; `field` says which.
            FailedPrecondition: "eval" where nothing was seen yet.
            NotFound: there is no such normalizer or snapshot.
        """
        options = NormalizeOptions(mode, inverse, lengths, mask, style, snapshot, out)
        return await normalize(self._connection, x, target, options, timeout)

    async def normalize_many(
        self,
        arrays: Iterable[Any],
        target: specs.Spec | str,
        *,
        mode: Mode | None = None,
        inverse: bool = False,
        snapshot: str | None = None,
        timeout: float | None = None,
    ) -> Sequence[Any]:
        """Normalize arrays, each as `normalize` does, dozens at a time: small ones several to a message, of any shapes.

        Args:
            arrays: numpy arrays, torch tensors or sequences.
            target: a spec, or a normalizer's name.
            mode: as for `normalize`; what "train" contributes is counted in any order.
            inverse: undo a normalization by running statistics.
            snapshot: use the statistics under this tag.
            timeout: seconds, for each of them.

        Returns:
            The outputs, in the order of the arrays.

        Raises:
            NormstatsError: one of them failed, as `normalize` says; those that were on their way with it may be done.
        """
        options = NormalizeOptions(mode, inverse, None, None, None, snapshot)
        return await normalize_many(self._connection, list(arrays), target, options, timeout)

    async def empty(self, shape: int | Sequence[int], dtype: Any = np.float32, *, timeout: float | None = None) -> Any:
        """A numpy array that is not cleared, in memory that the server sees too: what is written there is normalized
        without being copied. Without shared memory an array like any other.

        Args:
            shape: as of numpy.empty.
            dtype: a numpy dtype.
            timeout: seconds.

        Raises:
            FailedPrecondition: the server shares no memory, or none that this process can open.
            ResourceExhausted: it shares no more.
        """
        if self._connection.memory is None:
            return np.empty(shape, dtype)
        like = np.broadcast_to(np.empty((), dtype), shape)
        seconds = self._connection.timeout if timeout is None else timeout
        memory = await self._connection.memory.array(max(1, like.nbytes), seconds)
        return memory[: like.nbytes].view(like.dtype).reshape(like.shape)

    async def update(
        self,
        batches: Mapping[str, Any],
        *,
        weights: Any = None,
        lengths: Any = None,
        mask: Any = None,
        time: Any = None,
        timeout: float | None = None,
    ) -> dict[str, UpdateResult]:
        """Contribute a batch to each of several normalizers, all or nothing; durable and counted once when it returns.

        weights, lengths, mask and time are one for all, or a mapping with one for each name.

        Raises:
            InvalidArgument: a batch does not fit its normalizer.
            NotFound: there is no normalizer of some name.
            FailedPrecondition: one is frozen, or keeps no statistics.
        """
        contributions = [
            requests.contribution(
                name,
                await self._connection.spec_of(name, timeout),
                batch,
                weights=requests.of_each(weights, name),
                lengths=requests.of_each(lengths, name),
                mask=requests.of_each(mask, name),
                time=requests.of_each(time, name),
            )
            for name, batch in batches.items()
        ]
        reply = await self._connection.contribute(contributions, timeout)
        return {item.normalizer: UpdateResult.of(item, duplicate=reply.duplicate) for item in reply.contributed}

    async def back_up(
        self,
        path: str | PathLike[str],
        *,
        force: bool = False,
        progress: Progress = lambda written_bytes, size_bytes: None,
        timeout: float | None = None,
    ) -> Backup:
        """Write all that the server has, as of one commit, to a file here. Contributions go on meanwhile.

        The file appears when it is whole and synced. `normstats verify` checks it, `normstats restore` brings it back.

        Args:
            path: the file.
            force: replace one that is there.
            progress: called with the bytes written so far and their number in all.
            timeout: seconds within which it begins, and begins anew where the connection breaks, three times at most;
                it then takes what it takes.

        Raises:
            FileExistsError: there is such a file.
            FailedPrecondition: the server's database has tools of its own, as PostgreSQL has pg_dump.
            ResourceExhausted: another backup is under way, or the server has no room for one.
        """
        seconds = self._connection.timeout if timeout is None else timeout
        return await back_up(self._connection, Path(path), force=force, progress=progress, timeout=seconds)

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
