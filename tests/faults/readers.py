"""python -m tests.faults.readers TARGET SECONDS: lists all normalizers, and compares "wide" with "a", all the time."""

from __future__ import annotations

import sys
import threading
import time

import grpc

from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub

_OPTIONS = [("grpc.max_receive_message_length", -1)]


def main(target: str, seconds: float) -> None:
    """Read until the time is over; prints how many lists and comparisons there were."""
    end, counts = time.monotonic() + seconds, [0, 0]
    with grpc.insecure_channel(target, options=_OPTIONS) as channel:
        stub = NormalizationServiceStub(channel)
        # As it came: to parse a million messages takes longer than to make them.
        compare = channel.unary_unary(
            "/normstats.v1.NormalizationService/CompareSnapshots", pb.CompareSnapshotsRequest.SerializeToString
        )

        def lists() -> None:
            while time.monotonic() < end:
                stub.ListNormalizers(pb.ListNormalizersRequest(page_size=1000))
                counts[0] += 1

        def comparisons() -> None:
            while time.monotonic() < end:
                compare(pb.CompareSnapshotsRequest(normalizer="wide", base_tag="a"))
                counts[1] += 1

        threads = [threading.Thread(target=work) for work in (lists, comparisons)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(*counts)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
