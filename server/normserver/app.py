"""The composition root: makes the parts, starts them, and stops them in the order that loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from sqlalchemy.engine import make_url
from starlette.applications import Starlette

from normcore.kernels import launch
from normserver import addresses, connections, device_metrics, kernels, logs, placement, process
from normserver.access.credentials import Credentials, token_of
from normserver.access.grants import Need, Scope
from normserver.access.quotas import Allowances, NewProducers
from normserver.activity.activity import About, Activity
from normserver.activity.changes import Changes
from normserver.activity.contributors import Contributors
from normserver.api import HANDLERS, Api, EventLoop
from normserver.backups import Backups
from normserver.batcher import Batcher
from normserver.certificates import Certificates
from normserver.chunks import Chunks
from normserver.committer import Committer
from normserver.comparing import Comparing
from normserver.compute import Compute
from normserver.config import Settings, split_address
from normserver.contributing import Contributing
from normserver.door import Door, Room
from normserver.errors import Unauthenticated, Unavailable
from normserver.gateway import Gateway
from normserver.guard import MAX_SILENT, SILENT_SECONDS, ConnectionGuard
from normserver.health import HealthServer
from normserver.http import HttpServer, application
from normserver.http_connections import Limits
from normserver.interceptors import Edge
from normserver.kernels import KernelCompiler
from normserver.lifetime import Lifetime
from normserver.metrics import Metrics
from normserver.normalizer_metrics import NormalizerMetrics
from normserver.normalizers import Normalizers
from normserver.normalizing import Normalizing
from normserver.observing import Observer
from normserver.planner import Planner
from normserver.published import Published
from normserver.retention import EXCHANGE_SECONDS, RetentionClock
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
from normserver.supervisor import CoreTaskEnded, Supervisor
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1 import normalization_service_pb2_grpc as pb_grpc
from normstats.wire import carried

if TYPE_CHECKING:
    from normserver.tracing import Tracing

log = logging.getLogger(__name__)

RELEASE = importlib.metadata.version("normstats")
_SERVICE = pb.DESCRIPTOR.services_by_name["NormalizationService"]
SERVICE, _METHODS = _SERVICE.full_name, tuple(_SERVICE.methods)
# After a core task's end: how long calls may still run, and when the process ends at the latest.
_FAILED_DRAIN_SECONDS, _FAILED_EXIT_SECONDS = 1.0, 4.0
# Producers that one transaction forgets: 3 ms, between which commits go.
_FORGOTTEN_AT_ONCE = 200
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

    def __init__(self, settings: Settings, reread: Callable[[], Settings] | None = None) -> None:
        """`reread` reads the settings again, on SIGHUP."""
        self._settings = settings
        self._reread = reread or (lambda: settings)
        self._lifetime = Lifetime()
        self._stop = asyncio.Event()
        self._supervisor = Supervisor(self._stop.set)
        self._retention = RetentionClock()
        self.metrics = Metrics()
        self.metrics.build.info({"version": RELEASE})
        self._store = StoreThread(open_store(settings.store))
        self.metrics.store_up.set_function(lambda: self._store.up)
        self._changes, self._contributors = Changes(), Contributors()
        self._published = Published(self._store, self._changes)
        self._kernels = KernelCompiler(self.metrics, once_compiled=lambda: self._placement.try_again())
        self._placement = placement.pick(settings.device)
        device_metrics.watch(self.metrics, self._placement.device)
        self.metrics.tell_limits(
            calls_limit=settings.max_calls,
            streams_limit=settings.max_streams,
            held_limit_bytes=settings.max_memory_bytes,
            stream_held_limit_bytes=settings.max_stream_bytes,
            http_connections_limit=settings.http_max_connections,
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
            NewProducers(settings.max_new_producers_per_hour),
            max_pending=settings.max_pending_contributions,
            retention=self._retention,
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
        self._leases: Leases | None = None

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain. SIGHUP reloads certificates, credentials and the log level.

        Raises:
            StoreError, StoreUnavailable: the store cannot be used.
            OSError, RuntimeError: an address cannot be bound.
            CoreTaskEnded: a task that the server cannot do without ended.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        await self.start()
        await self._stop.wait()
        if not self._supervisor.failure:
            await self.drain(self._settings.drain_seconds)
            return
        self._end_within(_FAILED_EXIT_SECONDS)
        await self.drain(min(self._settings.drain_seconds, _FAILED_DRAIN_SECONDS))
        raise CoreTaskEnded(self._supervisor.failure)

    async def start(self) -> None:
        """Open the store, bind the addresses, serve."""
        launch.prepare()
        is_new = await self._store.open(must_exist=self._settings.store_must_exist)
        if is_new:
            log.warning("the store is new and empty", extra={"store": self._store_url()})
        try:
            await self._exchange_retention()
            if self._settings.http:
                tls = None if self._certificates is None else self._certificates.context
                self._http = HttpServer(
                    self._pages(), self._settings.http, _http_limits(self._settings), self.metrics, tls
                )
            if self._settings.health:
                self._probes = HealthServer(self._settings.health)
            port = self._listen(self._settings.listen)
            own_port = port
            if self._settings.share_port:
                own_port = self._listen(f"{self._settings.listen.rpartition(':')[0]}:0")
        except BaseException:
            await self._store.close()
            raise
        if self._http is not None:
            self._http.start()
        if self._probes is not None:
            self._probes.start()
        self._commits = self._supervisor.core("committer", self._committer.run)
        self._supervisor.core("store", self._store.watch_over)
        self._supervisor.core("health", self._keep_health)
        self._supervisor.core("files", self._look_at_files)
        self._supervisor.auxiliary("producers", self._forget_producers)
        self._supervisor.auxiliary("activity", self._activity.run)
        if self._store.shared:
            self._share(own_port)
        self._watch_connections({port, own_port})
        await self._grpc.start()
        self._kernels.start()
        process.settle()
        log.info("serving", extra=self._addresses(port) | {"device": str(self._placement.device)})

    async def drain(self, drain_seconds: float) -> None:
        """Readiness off, streams told, calls finished, all committed, store closed."""
        log.info("stopping", extra={"drain_seconds": drain_seconds})
        self._supervisor.stop()
        self._lifetime.stop()
        await self._tell_health(serving=False)
        await self._health.enter_graceful_shutdown()
        self._published.stop()
        self._groups.stop()
        self._activity.stop()
        await self._grpc.stop(drain_seconds)
        await self._groups.finish()
        if self._leases is not None:
            await self._leases.give_up()
        self._committer.stop()
        await asyncio.wait([self._commits])
        await self._supervisor.cancel()
        with contextlib.suppress(Unavailable):
            await self._exchange_retention()
        if self._http is not None:
            await self._http.stop()
        if self._probes is not None:
            self._probes.stop()
        self._compute.close()
        await asyncio.to_thread(self._kernels.stop)
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
        if self._supervisor.failure:
            return self._supervisor.failure
        if self._lifetime.stopping:
            return "stopping"
        return "" if self._store.up else "the store is not available"

    def _watch_connections(self, ports: set[int]) -> None:
        """Close connections that make no call, and the oldest of too many at the port of health."""
        judges = [(ports, self._guard.judge)]
        if self._probes is not None:
            judges.append(({split_address(self._probes.address)[1]}, ConnectionGuard(0, silent_seconds=inf).judge))
        watcher = connections.Watcher(judges, self.metrics.silent_closed.inc)
        self._supervisor.auxiliary("connections", watcher.run)

    def _share(self, port: int) -> None:
        """Other servers work on the same store: hear of their commits, and own groups by leases."""
        self._store.listen(self._published.outdated)
        address = self._settings.advertise or self._address(port)
        self._leases = Leases(self._store, address, self._groups.lost)
        self._groups.ownership = self._leases
        self._supervisor.core("leases", self._leases.keep)

    def _grpc_server(self) -> grpc.aio.Server:
        allowances = Allowances(
            normalizers=self._settings.max_normalizers_per_identity,
            stored_bytes=self._settings.max_stored_bytes_per_identity,
        )
        normalizers = Normalizers(self._store, self._published, allowances)
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
            Comparing(self._store, self._published),
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
        observer = Observer(self.metrics, self._settings.log_calls_per_second, begin_trace)
        door = self._door = self._new_door()
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
        api = Api(self._gateway, here, body_seconds=self._settings.http_request_timeout)
        more = [*api.routes, *NormalizerMetrics(api).routes]
        return application(
            self.metrics.registry,
            self.why_not_alive,
            self.why_not_ready,
            self._may_read,
            self._kernels.progress,
            needs_token=self._credentials is not None,
            more=more,
            handlers=HANDLERS,
        )

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

    def _new_door(self) -> Door:
        settings = self._settings
        self._guard = ConnectionGuard(settings.max_connections)
        return Door(
            Room(settings.max_calls, settings.max_streams, settings.max_memory_bytes, settings.max_connections),
            self.metrics,
            self._guard,
            credentials=self._credentials,
            certificates=settings.tls_client_ca is not None,
            full=self._full(),
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
        with addresses.binding("listen", address):
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
        """Look after the threads, and tell gRPC health what readiness says whenever it changes."""
        told = None
        while True:
            self._turned_at = time.monotonic()
            if not self._compute.is_alive:
                self._supervisor.thread_ended("compute")
            if self._http is not None and not self._http.is_alive:
                self._supervisor.thread_ended("http")
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
        while True:
            self._reload_files()
            await asyncio.sleep(_LOOK_AT_FILES_SECONDS)

    def _reload(self) -> None:
        """Reload certificates, credentials and the log level; name the settings that need a restart."""
        self._reload_files()
        try:
            fresh = self._reread()
        except (OSError, ValueError) as error:
            log.error("settings cannot be read again; those from before stay", extra={"error": str(error)})
            return
        logs.set_level(fresh.log_level)
        before, after = self._settings.model_dump(), fresh.model_dump()
        changed = sorted(name for name in after if after[name] != before[name] and name != "log_level")
        log.info("reloaded", extra={"log_level": fresh.log_level, "need_a_restart": changed})

    def _reload_files(self) -> None:
        files = {"certificates": self._certificates, "credentials": self._credentials}
        for name, one in files.items():
            if one is not None:
                one.look()
                self.metrics.files_current.labels(name).set(not one.failed)
        self._door.check_streams()

    async def _forget_producers(self) -> None:
        idle_seconds = self._settings.forget_producers_after_hours * 3600
        beat_seconds = min(EXCHANGE_SECONDS, max(1.0, idle_seconds / 24))

        def forget(transaction: Transaction) -> int:
            return transaction.forget_producers(self._retention.now() - idle_seconds, _FORGOTTEN_AT_ONCE)

        while True:
            with contextlib.suppress(Unavailable):  # the store says so itself when it is down
                await self._exchange_retention()
                while await self._store.run(forget) == _FORGOTTEN_AT_ONCE:
                    pass
            await asyncio.sleep(beat_seconds)

    async def _exchange_retention(self) -> None:
        """Keep the retention clock's reading in the store, and catch up with other servers'."""
        reading = self._retention.now()
        self._retention.catch_up(await self._store.run(lambda transaction: transaction.exchange_retention(reading)))

    def _end_within(self, seconds: float) -> None:
        """End the process soon, whatever still hangs: a core task is gone, and whoever supervises waits for the end."""
        timer = threading.Timer(seconds, os._exit, (1,))
        timer.daemon = True
        timer.start()

    def _address(self, port: int) -> str:
        listen = self._settings.listen
        return listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}"

    def _store_url(self) -> str:
        return make_url(self._settings.store).render_as_string()

    def _addresses(self, port: int) -> dict[str, str]:
        addresses = {"grpc": self._address(port), "store": self._store_url()}
        if self._http is not None:
            addresses["http"] = f"{split_address(self._settings.http)[0]}:{self._http.port}"
        if self._probes is not None:
            addresses["health"] = self._probes.address
        return addresses


def _options(settings: Settings) -> list[tuple[str, int]]:
    # What age is for, sharing out connections among servers, a socket has no use for; and lent memory ends with it.
    by_socket = settings.listen.startswith("unix:")
    age = 0.0 if by_socket else settings.max_connection_age_seconds
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
        # The guard keeps callers' connections and silent ones within their limits, a moment after they are there.
        ("grpc.max_allowed_incoming_connections", process.most_connections(settings.max_connections + 4 * MAX_SILENT)),
        ("grpc.server_handshake_timeout_ms", _milliseconds(SILENT_SECONDS)),
        # Callers by a socket have no address, by which the guard knows connections: gRPC closes those without calls.
        ("grpc.max_connection_idle_ms", _milliseconds(SILENT_SECONDS) if by_socket else _FOREVER_MILLISECONDS),
        ("grpc.max_connection_age_ms", _milliseconds(age) or _FOREVER_MILLISECONDS),
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


def _http_limits(settings: Settings) -> Limits:
    return Limits(
        settings.http_max_connections,
        settings.http_max_connections_per_address,
        settings.http_request_timeout,
        settings.http_idle_timeout,
    )


def _milliseconds(seconds: float) -> int:
    return min(round(seconds * 1000), _FOREVER_MILLISECONDS)


def serve(settings: Settings, reread: Callable[[], Settings]) -> None:
    """Run a server in this process until it is told to stop; `reread` reads the settings again, on SIGHUP.

    Raises:
        StoreError, StoreUnavailable, OSError, RuntimeError, CoreTaskEnded: see App.run.
    """
    process.keep_memory()
    process.take_descriptors()
    try:
        asyncio.run(_serve(settings, reread))
    finally:
        kernels.compile_here()


async def _serve(settings: Settings, reread: Callable[[], Settings]) -> None:
    await App(settings, reread).run()
