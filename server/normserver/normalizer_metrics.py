"""/metrics/normalizers: what Prometheus is told of single normalizers, of those alone that the scrape names.

Names of callers' are labels here and nowhere else: who asks decides how many series there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from google.rpc import code_pb2
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from normserver.api import Api
from normserver.errors import InvalidArgument
from normserver.gateway import Refused
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.resources_pb2 import Normalizer

MAX_NAMES = 100


class _Gathered(Collector):
    """What was found, for one scrape."""

    def __init__(self) -> None:
        name = ("name",)
        self.rows = GaugeMetricFamily("normstats_normalizer_rows", "Rows ever merged into it.", labels=name)
        self.batches = GaugeMetricFamily("normstats_normalizer_batches", "Batches ever merged into it.", labels=name)
        self.version = GaugeMetricFamily("normstats_normalizer_version", "Its version.", labels=name)
        self.frozen = GaugeMetricFamily("normstats_normalizer_frozen", "1 if it takes no contributions.", labels=name)
        self.updated = GaugeMetricFamily(
            "normstats_normalizer_updated_timestamp_seconds", "When it was changed.", labels=name
        )
        self.drift = GaugeMetricFamily(
            "normstats_normalizer_drift_nats",
            "How far the feature that moved most is from the snapshot: symmetric Kullback-Leibler divergence.",
            labels=("name", "snapshot"),
        )

    def add(self, found: Normalizer) -> None:
        """What a normalizer is like."""
        labels = (found.name,)
        self.rows.add_metric(labels, found.count)
        self.batches.add_metric(labels, found.num_batches)
        self.version.add_metric(labels, found.version)
        self.frozen.add_metric(labels, found.frozen)
        self.updated.add_metric(labels, found.update_time.ToMicroseconds() / 1e6)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All of it."""
        yield from (self.rows, self.batches, self.version, self.frozen, self.updated, self.drift)


class NormalizerMetrics:
    """The page."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.routes = [Route("/metrics/normalizers", self._answer)]

    async def _answer(self, request: Request) -> Response:
        names, snapshot = request.query_params.getlist("name"), request.query_params.get("snapshot", "")
        _check(names)
        gathered = _Gathered()
        for name in dict.fromkeys(names):
            await self._add(gathered, name, snapshot, request)
        registry = CollectorRegistry()
        registry.register(gathered)
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def _add(self, gathered: _Gathered, name: str, snapshot: str, request: Request) -> None:
        """Tell of one, if it is there; and how far it is from the snapshot, if both have seen rows."""
        try:
            reply = await self._api.call("GetNormalizer", pb.GetNormalizerRequest(name=name), request)
            assert isinstance(reply, pb.GetNormalizerResponse), "each method has its response"
            gathered.add(reply.normalizer)
            if snapshot:
                compare = pb.CompareSnapshotsRequest(normalizer=name, base_tag=snapshot, limit=1)
                compared = await self._api.call("CompareSnapshots", compare, request)
                assert isinstance(compared, pb.CompareSnapshotsResponse), "each method has its response"
                gathered.drift.add_metric((name, snapshot), compared.features[0].symmetric_kl)
        except Refused as error:
            if error.told.code not in (code_pb2.NOT_FOUND, code_pb2.FAILED_PRECONDITION):
                raise


def _check(names: Sequence[str]) -> None:
    if not 1 <= len(names) <= MAX_NAMES:
        raise InvalidArgument(
            "name", f"is given {len(names)} times; expected 1 to {MAX_NAMES}: /metrics/normalizers?name=robot/obs"
        )
