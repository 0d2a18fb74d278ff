"""The composition root: makes the parts, starts them, and stops them in the order that loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from sqlalchemy.engine import make_url
from starlette.applications import Starlette

from normcore.kernels import launch
from normserver import device_metrics, placement, process
from normserver.access.credentials import Credentials, token_of
from normserver.access.grants import Need, Scope
from normserver.activity.activity import About, Activity
from normserver.activity.changes import Changes
from normserver.activity.contributors import Contributors
from normserver.api import HANDLERS, Api, EventLoop
from normserver.backups import Backups
from normserver.batcher import Batcher
from normserver.certificates import Certificates
from normserver.chunks import Chunks
from normserver.committer import Committer
from normserver.compute import Compute
from normserver.config import Settings, is_local, split_address
from normserver.contributing import Contributing
from normserver.door import Door, Room
from normserver.errors import Unauthenticated, Unavailable
from normserver.gateway import Gateway
from normserver.health import HealthServer
from normserver.http import HttpServer, application
from normserver.interceptors import Edge
from normserver.lifetime import Lifetime
from normserver.metrics import Metrics
from normserver.normalizer_metrics import NormalizerMetrics
from normserver.normalizers import Normalizers
from normserver.normalizing import Normalizing
from normserver.observing import Observer
from normserver.planner import Planner
from normserver.published import Published
from normserver.rounds.groups import Groups
from normserver.rounds.ownership import Leases
from normserver.service import NormalizationService
from normserver.sessions import Sessions
from normserver.shared_memory import SharedMemory
from normserver.store import urls
from normserver.store.base import Store, Transaction
from normserver.store.sqlite import SqliteStore
from normserver.store_thread import StoreThread
from normserver.stream_memory import StreamMemory
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1 import normalization_service_pb2_grpc as pb_grpc
from normstats.wire import carried

if TYPE_CHECKING:
    from normserver.tracing import Tracing

log = logging.getLogger(__name__)

RELEASE = importlib.metadata.version("normstats")
_SERVICE = pb.DESCRIPTOR.services_by_name["NormalizationService"]
SERVICE, _METHODS = _SERVICE.full_name, tuple(_SERVICE.methods)
_FORGET_EVERY_SECONDS = 600.0
_LOOK_AT_FILES_SECONDS = 1.0
# An event loop that has not turned for so long will not turn again.
_STUCK_SECONDS = 60.0
# gRPC's word for it.
_FOREVER_MILLISECONDS = 2**31 - 1


def open_store(url: str) -> Store:
    """The store that a URL names, not opened yet.

    Raises:
        StoreError: there is no such kind of store.
    """
    parsed = urls.parse(url)
    if parsed.drivername == "sqlite":
        return SqliteStore(parsed)
    from normserver.store.postgresql import PostgresStore

    return PostgresStore(parsed)


def trace_calls() -> Tracing:
    """Traces calls.

    Raises:
        ModuleNotFoundError: OpenTelemetry is not installed.
    """
    try:
        from normserver.tracing import Tracing
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"--traces needs {error.name}: pip install 'normstats[traces]'") from error
    return Tracing(RELEASE)


class App:
    """One server."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lifetime = Lifetime()
        self.metrics = Metrics()
        self.metrics.build.info({"version": RELEASE})
        self._store = StoreThread(open_store(settings.store))
        self.metrics.store_up.set_function(lambda: self._store.up)
        self._changes, self._contributors = Changes(), Contributors()
        self._published = Published(self._store, self._changes)
        self._placement = placement.pick(settings.device)
        device_metrics.watch(self.metrics, self._placement.device)
        self.metrics.tell_limits(
            calls_limit=settings.max_calls,
            streams_limit=settings.max_streams,
            held_limit_bytes=settings.max_memory_bytes,
            stream_held_limit_bytes=settings.max_stream_bytes,
            compute_queue_limit=settings.max_queued_normalizations,
            pending_contributions_limit=settings.max_pending_contributions,
        )
        self._compute = Compute(
            self.metrics,
            threads=settings.threads,
            max_queued=settings.max_queued_normalizations,
        )
        self._committer = Committer(
            self._store,
            self._published,
            self.metrics,
            self._contributors,
            max_pending=settings.max_pending_contributions,
        )
        self._certificates: Certificates | None = None
        if settings.tls_cert is not None and settings.tls_key is not None:
            self._certificates = Certificates(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        self._credentials = None if settings.credentials is None else Credentials(settings.credentials)
        self._tracing = trace_calls() if settings.traces else None
        self._turned_at = time.monotonic()
        self._health = health.aio.HealthServicer()
        self._grpc = self._grpc_server()
        self._http: HttpServer | None = None
        self._probes: HealthServer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._leases: Leases | None = None

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain.

        Raises:
            StoreError, StoreUnavailable: the store cannot be used.
            OSError, RuntimeError: an address cannot be bound.
        """
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await self.start()
        await stop.wait()
        await self.drain()

    async def start(self) -> None:
        """Open the store, bind the addresses, serve."""
        launch.prepare()
        await self._store.open()
        try:
            if self._settings.http:
                tls = None if self._certificates is None else self._certificates.context
                self._http = HttpServer(self._pages(), self._settings.http, tls)
            if self._settings.health:
                self._probes = HealthServer(self._settings.health)
            port = self._listen(self._settings.listen)
            own_port = port
            if self._settings.share_port:
                own_port = self._listen(f"{self._settings.listen.rpartition(':')[0]}:0")
        except BaseException:
            await self._store.close()
            raise
        self._tasks = [
            asyncio.create_task(self._committer.run(), name="committer"),
            asyncio.create_task(self._store.watch_over(), name="store"),
            asyncio.create_task(self._keep_health(), name="health"),
            asyncio.create_task(self._look_at_files(), name="files"),
            asyncio.create_task(self._forget_producers(), name="producers"),
            asyncio.create_task(self._activity.run(), name="activity"),
        ]
        if self._store.shared:
            self._share(own_port)
        await self._grpc.start()
        if self._http is not None:
            self._http.start()
        if self._probes is not None:
            self._probes.start()
        process.settle()
        log.info("serving", extra=self._addresses(port) | {"device": str(self._placement.device)})

    async def drain(self) -> None:
        """Readiness off, streams told, calls finished, all committed, store closed."""
        log.info("stopping", extra={"drain_seconds": self._settings.drain_seconds})
        self._lifetime.stop()
        await self._tell_health(serving=False)
        await self._health.enter_graceful_shutdown()
        self._published.stop()
        self._groups.stop()
        self._activity.stop()
        await self._grpc.stop(self._settings.drain_seconds)
        await self._groups.finish()
        if self._leases is not None:
            await self._leases.give_up()
        self._committer.stop()
        committer, *others = self._tasks
        await committer
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self._http is not None:
            await self._http.stop()
        if self._probes is not None:
            self._probes.stop()
        self._compute.close()
        await self._store.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        log.info("stopped")

    def why_not_alive(self) -> str:
        """Why this process should be started again; empty if it is well. Asked on another thread."""
        seconds = time.monotonic() - self._turned_at
        return f"the event loop has not turned for {seconds:.0f} s" if seconds > _STUCK_SECONDS else ""

    def why_not_ready(self) -> str:
        """Why no calls should come; empty if they may."""
        if self._lifetime.stopping:
            return "stopping"
        return "" if self._store.up else "the store is not available"

    def _share(self, port: int) -> None:
        """Other servers work on the same store: hear of their commits, and own groups by leases."""
        self._store.listen(self._published.outdated)
        address = self._settings.advertise or self._address(port)
        self._leases = Leases(self._store, address, self._groups.lost)
        self._groups.ownership = self._leases
        self._tasks.append(asyncio.create_task(self._leases.keep(), name="leases"))

    def _grpc_server(self) -> grpc.aio.Server:
        normalizers = Normalizers(self._store, self._published)
        batcher = Batcher(self._compute, self._placement)
        contributing = Contributing(self._store, self._published, batcher, self._committer, self._lifetime)
        planner = Planner(self._published, normalizers, self._compute)
        lent_bytes = self._settings.shared_memory_bytes if self._settings.shared_memory else 0
        memory = SharedMemory(lent_bytes, self._lifetime, self.metrics)
        normalizing = Normalizing(planner, batcher, contributing, memory, self.metrics)
        self._groups = Groups(self._committer, self._published, self._compute, self._lifetime, self.metrics)
        self._activity = self._gather()
        sessions = Sessions(normalizing, self._lifetime, self.metrics)
        backups = Backups(self._store, self._lifetime)
        service = NormalizationService(
            self._published,
            normalizers,
            normalizing,
            contributing,
            self._groups,
            memory,
            sessions,
            Chunks(planner, batcher, self.metrics),
            self._placement,
            backups,
            self._activity,
        )
        begin_trace = None if self._tracing is None else self._tracing.begin
        observer, door = Observer(self.metrics, self._settings.log_calls_per_second, begin_trace), self._door()
        self._gateway = Gateway(service, door, observer, self._lifetime)
        edge = Edge(
            observer,
            door,
            StreamMemory(self._settings.max_stream_bytes, self.metrics),
            default_deadline_seconds=self._settings.default_deadline_seconds,
        )
        server = grpc.aio.server(interceptors=(edge,), options=_options(self._settings))
        pb_grpc.add_NormalizationServiceServicer_to_server(service, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._settings.reflection:
            reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        return server

    def _pages(self) -> Starlette:
        here = EventLoop(asyncio.get_running_loop())
        api = Api(self._gateway, here, only_here=is_local(self._settings.http))
        more = [*api.routes, *NormalizerMetrics(api).routes]
        told = self.why_not_alive, self.why_not_ready, self._may_read
        return application(self.metrics.registry, *told, more, HANDLERS)

    def _gather(self) -> Activity:
        about = About(
            release=RELEASE,
            started_at=time.time(),
            store=make_url(self._settings.store).get_backend_name(),
            device=str(self._placement.device),
        )
        streams = frozenset(method.name for method in _METHODS if method.client_streaming or method.server_streaming)
        return Activity(
            about,
            self.metrics,
            self._contributors,
            self._changes,
            streams=streams,
            open_rounds=self._groups.open_rounds,
            why_not_ready=self.why_not_ready,
        )

    def _door(self) -> Door:
        settings = self._settings
        return Door(
            Room(settings.max_calls, settings.max_streams, settings.max_memory_bytes),
            self.metrics,
            credentials=self._credentials,
            certificates=settings.tls_client_ca is not None,
            full=self._full(),
            forget_producers_seconds=settings.forget_producers_after_hours * 3600,
        )

    def _full(self) -> dict[str, Callable[[], str]]:
        """Why there is no room for what a method does, of those that have a queue."""
        compute, commits = self._compute.why_full, self._committer.why_full
        queues = {
            "Normalize": compute,
            "NormalizeMany": compute,
            "UpdateRunningStats": commits,
        }
        return {f"/{SERVICE}/{method}": why for method, why in queues.items()}

    def _listen(self, address: str) -> int:
        if self._certificates is None or address.startswith("unix:"):
            return self._grpc.add_insecure_port(address)
        return self._grpc.add_secure_port(address, self._certificates.credentials())

    def _may_read(self, authorization: str) -> bool:
        """Whether the metrics are for whoever brings this header. Asked on another thread."""
        if self._credentials is None:
            return True
        try:
            token = token_of((("authorization", authorization),)) if authorization else None
            identity = self._credentials.known(token)
        except Unauthenticated:
            return False
        return identity is not None and identity.may(Need(Scope.READ, None))

    async def _keep_health(self) -> None:
        """Tell gRPC health what readiness says, whenever it changes."""
        told = None
        while True:
            self._turned_at = time.monotonic()
            serving = not self.why_not_ready()
            if serving != told:
                await self._tell_health(serving=serving)
                told = serving
            await asyncio.sleep(0.2)

    async def _tell_health(self, *, serving: bool) -> None:
        now = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", SERVICE):
            await self._health.set(service, now)
            if self._probes is not None:
                self._probes.tell(service, serving=serving)

    async def _look_at_files(self) -> None:
        """Certificates and credentials may change at any time."""
        files = {"certificates": self._certificates, "credentials": self._credentials}
        watched = {name: one for name, one in files.items() if one is not None}
        while watched:
            for name, one in watched.items():
                one.look()
                self.metrics.files_current.labels(name).set(not one.failed)
            await asyncio.sleep(_LOOK_AT_FILES_SECONDS)

    async def _forget_producers(self) -> None:
        idle_seconds = self._settings.forget_producers_after_hours * 3600

        def forget(transaction: Transaction) -> int:
            return transaction.forget_producers(time.time() - idle_seconds)

        while True:
            await asyncio.sleep(_FORGET_EVERY_SECONDS)
            with contextlib.suppress(Unavailable):  # the store says so itself when it is down
                await self._store.run(forget)

    def _address(self, port: int) -> str:
        listen = self._settings.listen
        return listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}"

    def _addresses(self, port: int) -> dict[str, str]:
        addresses = {"grpc": self._address(port), "store": make_url(self._settings.store).render_as_string()}
        if self._http is not None:
            addresses["http"] = f"{split_address(self._settings.http)[0]}:{self._http.port}"
        if self._probes is not None:
            addresses["health"] = self._probes.address
        return addresses


def _options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        # Otherwise windows and buffers grow with what comes: 100 streams whose answers nobody reads took 650 MiB, and
        # take 70. Tensors of 16 MiB travel 4 to 10 % slower.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.experimental.tcp_max_read_buffer_size", 1 << 18),
        ("grpc.http2.max_frame_size", carried.MAX_FRAME_BYTES),
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes),
        ("grpc.max_concurrent_streams", settings.max_streams_per_connection),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_connection_age_ms", _milliseconds(settings.max_connection_age_seconds) or _FOREVER_MILLISECONDS),
        ("grpc.max_connection_age_grace_ms", _milliseconds(settings.drain_seconds)),
        # Kilobytes that inflate to the limit cost 0.3 s of a thread that all calls wait for; and tensors hardly shrink.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.max_send_message_length", -1),  # an integer tensor grows when it becomes float32
        # The defaults, 1,000 and 3,000, shed a fleet that connects at once, as CANCELLED. One that waits takes 10 KiB.
        ("grpc.server.max_pending_requests", 10_000),
        ("grpc.server.max_pending_requests_hard_limit", 20_000),
        # Unless it is wanted, a second server on the same port is an error, not a silent twin.
        ("grpc.so_reuseport", int(settings.share_port)),
        # Clients ping every 30 s to find dead connections; anything below 10 s is a flood.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_time_ms", 60_000),
    ]


def _milliseconds(seconds: float) -> int:
    return min(round(seconds * 1000), _FOREVER_MILLISECONDS)


def serve(settings: Settings) -> None:
    """Run a server in this process until it is told to stop."""
    process.keep_memory()
    process.take_descriptors()
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    await App(settings).run()
