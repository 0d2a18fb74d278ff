"""/metrics, /healthz, /readyz; gRPC health and reflection."""

from __future__ import annotations

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from normstats import specs
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from tests.contract import create, refused, update
from tests.server_process import ServerProcess

SERVICE = "normstats.v1.NormalizationService"


def samples(server: ServerProcess) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = httpx.get(f"{server.http}/metrics").raise_for_status().text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_calls_and_contributions_are_counted(server: ServerProcess, stub: NormalizationServiceStub, name: str) -> None:
    before = samples(server)
    create(stub, name, specs.Standardize(1))
    request = update(name, np.ones((2, 1)))
    stub.UpdateRunningStats(request)
    stub.UpdateRunningStats(request)
    refused(stub.UpdateRunningStats, update(name, np.ones((2, 1)), sequence=0))
    after = samples(server)

    def grown(sample: str, **labels: str) -> float:
        key = (sample, tuple(sorted(labels.items())))
        return after.get(key, 0) - before.get(key, 0)

    assert grown("normstats_calls_total", method="UpdateRunningStats", code="OK") == 2
    assert grown("normstats_calls_total", method="UpdateRunningStats", code="INVALID_ARGUMENT") == 1
    assert grown("normstats_call_seconds_count", method="UpdateRunningStats") == 3
    assert grown("normstats_contributions_total", outcome="merged") == 1
    assert grown("normstats_contributions_total", outcome="duplicate") == 1
    assert grown("normstats_commit_seconds_count") == 2
    assert after["normstats_store_up", ()] == 1


def test_names_are_no_labels(server: ServerProcess, stub: NormalizationServiceStub, name: str) -> None:
    create(stub, f"{name}/0", specs.Standardize(1))
    series = set(samples(server))
    for i in range(50):
        create(stub, f"{name}/{i + 1}", specs.Standardize(1))
    assert set(samples(server)) == series


def test_it_is_alive_and_ready(server: ServerProcess) -> None:
    assert httpx.get(f"{server.http}/healthz").status_code == 200
    ready = httpx.get(f"{server.http}/readyz")
    assert (ready.status_code, ready.text[:2]) == (200, "ok")
    assert httpx.get(f"{server.http}/nothing").status_code == 404


def test_grpc_health_answers_for_the_server_and_the_service(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", SERVICE):
            reply = health.Check(health_pb2.HealthCheckRequest(service=service))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING


def listed(server: ServerProcess) -> set[str]:
    with grpc.insecure_channel(server.target) as channel:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (reply,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
        return {service.name for service in reply.list_services_response.service}


def test_reflection_lists_the_service_where_it_is_switched_on(server: ServerProcess) -> None:
    assert SERVICE in listed(server)


def test_reflection_is_off_by_default(own_server: ServerProcess) -> None:
    own_server.start()
    with pytest.raises(grpc.RpcError) as caught:
        listed(own_server)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
