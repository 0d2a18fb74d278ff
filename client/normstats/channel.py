"""How channels behave: wait-for-ready, keepalive, reconnection. Who calls through them repeats what has failed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from normstats import sessions
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from normstats.wire import carried

DEFAULT_TARGET = "localhost:50051"
DEFAULT_TIMEOUT = 30.0
SERVICE = pb.DESCRIPTOR.services_by_name["NormalizationService"].full_name

Option = tuple[str, str | int]


class Stub(NormalizationServiceStub):
    """The contract's stub, whose tensors travel without protobuf's copies of them."""

    def __init__(self, channel: Any) -> None:
        super().__init__(channel)  # type: ignore[call-arg]
        self.Normalize: Any = channel.unary_unary(
            f"/{SERVICE}/Normalize",
            request_serializer=carried.serialize,
            response_deserializer=carried.deserializer(pb.NormalizeResponse),
        )
        self.NormalizeMany: Any = channel.unary_unary(
            f"/{SERVICE}/NormalizeMany",
            request_serializer=carried.serialize_requests,
            response_deserializer=sessions.deserialize_unary,
        )
        self.NormalizeManyStream: Any = channel.stream_stream(
            f"/{SERVICE}/NormalizeManyStream",
            request_serializer=sessions.serialize,
            response_deserializer=sessions.deserialize,
        )
        self.NormalizeStream: Any = channel.stream_stream(
            f"/{SERVICE}/NormalizeStream",
            request_serializer=carried.serialize,
            response_deserializer=carried.deserializer(pb.NormalizeStreamResponse),
        )


def options(more: Sequence[Option] = ()) -> list[Option]:
    """The channel's options; the caller's own come last and win."""
    return [
        ("grpc.service_config", files("normstats.v1").joinpath("service_config.json").read_text()),
        # gRPC's own retries lose messages of streams: what is sent while earlier ones are repeated overtakes them.
        ("grpc.enable_retries", 0),
        ("grpc.max_receive_message_length", -1),  # the server's own limits hold
        ("grpc.max_send_message_length", -1),
        ("grpc.http2.max_frame_size", carried.MAX_FRAME_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        *more,
    ]
