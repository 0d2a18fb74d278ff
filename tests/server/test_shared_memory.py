"""Shared memory as the contract offers it: by a unix socket alone, and nothing beyond what was lent."""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from normstats import specs
from normstats.regions import Region, opened
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from normstats.wire import spec as spec_wire
from tests.contract import Refused, described, refused, told_by
from tests.server.test_access import stanza
from tests.server_process import ServerProcess

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
LIMIT = 1 << 25
SHARE = LIMIT // 4  # more than 1,024 pages
X = np.arange(32, dtype=np.float32).reshape(4, 8)
LAYER = spec_wire.to_proto(specs.LayerNorm(8))


@pytest.fixture(scope="module")
def sharing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    flags = ("--shared-memory", "--shared-memory-bytes", str(LIMIT))
    process = ServerProcess(tmp_path_factory.mktemp("sharing"), *flags, by_socket=True).start()
    yield process
    process.stop()


@pytest.fixture
def local(sharing: ServerProcess) -> Iterator[NormalizationServiceStub]:
    with grpc.insecure_channel(sharing.target) as channel:
        yield NormalizationServiceStub(channel)


@pytest.fixture
def region(local: NormalizationServiceStub) -> Iterator[Region]:
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    replies = local.ShareMemory(iter(requests.get, None))
    requests.put(pb.ShareMemoryRequest(allocate_bytes=1000))
    yield opened(next(replies))
    requests.put(None)
    replies.cancel()


def request(input_place: pb.Place, output_place: pb.Place | None = None, **fields: Any) -> pb.NormalizeRequest:
    base = {"spec": LAYER, "input": described(X), "input_place": input_place, "output_place": output_place}
    return pb.NormalizeRequest(**base | fields)


def place(region: Region, offset: int = 0) -> pb.Place:
    return pb.Place(region=region.name, offset_bytes=offset)


def test_a_region_is_whole_pages_and_cannot_be_taken_away(region: Region) -> None:
    assert region.size_bytes == 4096
    link = next(path for path in os.listdir("/proc/self/map_files") if _is_of(path, region))
    with pytest.raises(PermissionError):
        os.truncate(f"/proc/self/map_files/{link}", 0)


def _is_of(path: str, region: Region) -> bool:
    return path.startswith(f"{region.address:x}-")


def test_only_the_place_of_a_tensor_travels(local: NormalizationServiceStub, region: Region) -> None:
    np.frombuffer(region.memory, np.float32, X.size)[:] = X.reshape(-1)
    reply = local.Normalize(request(place(region), place(region, 1024)))
    assert (list(reply.output.shape), reply.data) == ([4, 8], b"")
    by_message = local.Normalize(pb.NormalizeRequest(spec=LAYER, input=described(X), data=X.tobytes()))
    assert region.memory[1024 : 1024 + X.nbytes] == by_message.data
    assert local.Normalize(request(place(region))).data == by_message.data
    local.Normalize(request(place(region), place(region)))
    assert region.memory[: X.nbytes] == by_message.data


CASES = {
    "before the region": ({"offset": -64}, "input_place.offset_bytes"),
    "between cache lines": ({"offset": 4}, "input_place.offset_bytes"),
    "beyond its end": ({"offset": 4096 - 64}, "input_place.offset_bytes"),
    "far beyond": ({"offset": 2**62}, "input_place.offset_bytes"),
    "bytes as well": ({"data": X.tobytes()}, "data"),
    "an output that overlaps": ({"output": 64}, "output_place"),
    "an output beyond the end": ({"output": 4096}, "output_place.offset_bytes"),
    "a huge shape": ({"shape": [2**40, 2**15]}, "input_place.offset_bytes"),
    "a negative shape": ({"shape": [-1]}, "input.shape"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_refused(local: NormalizationServiceStub, region: Region, case: str) -> None:
    wrong, field = CASES[case]
    asked = request(
        place(region, wrong.get("offset", 0)),
        place(region, wrong["output"]) if "output" in wrong else None,
        data=wrong.get("data", b""),
    )
    if "shape" in wrong:
        asked.input.shape[:] = wrong["shape"]
    told = refused(local.Normalize, asked)
    assert (told.code, told.field.partition("[")[0]) == (INVALID, field)


def test_what_is_asked_again_and_again_is_the_same_and_what_is_wrong_stays_wrong(
    local: NormalizationServiceStub, region: Region
) -> None:
    by_message = local.Normalize(pb.NormalizeRequest(spec=LAYER, input=described(X), data=X.tobytes()))
    seven = spec_wire.to_proto(specs.LayerNorm(7))
    for turn in range(6):  # by a thread, here and now, and by a kernel that is ready
        np.frombuffer(region.memory, np.float32, X.size)[:] = X.reshape(-1)
        region.memory[1024 : 1024 + X.nbytes] = bytes(X.nbytes)
        local.Normalize(request(place(region), place(region, 1024)))
        assert region.memory[1024 : 1024 + X.nbytes] == by_message.data, turn
        told = refused(local.Normalize, request(place(region), place(region, 1024), spec=seven))
        assert (told.code, told.field) == (INVALID, "input.shape"), turn
        told = refused(local.Normalize, request(place(region), place(region, 64)))
        assert (told.code, told.field) == (INVALID, "output_place"), turn


def test_a_region_that_was_taken_back_is_not_found_however_well_it_was_known(local: NormalizationServiceStub) -> None:
    asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
    replies = local.ShareMemory(iter(asked.get, None))
    asked.put(pb.ShareMemoryRequest(allocate_bytes=1000))
    lent = opened(next(replies))
    for _ in range(5):
        local.Normalize(request(place(lent), place(lent, 1024)))
    asked.put(None)
    assert list(replies) == []
    told = refused(local.Normalize, request(place(lent), place(lent, 1024)))
    assert (told.code, told.reason) == (NOT_FOUND, "NO_SUCH_REGION")


def test_an_output_place_needs_an_input_place(local: NormalizationServiceStub, region: Region) -> None:
    asked = pb.NormalizeRequest(spec=LAYER, input=described(X), data=X.tobytes(), output_place=place(region))
    assert refused(local.Normalize, asked).field == "output_place"


@pytest.mark.parametrize("name", [b"", b"x", bytes(range(16)), b"/dev/shm/psm_1234567"])
def test_a_region_that_was_not_lent_is_not_found(local: NormalizationServiceStub, name: bytes) -> None:
    told = refused(local.Normalize, request(pb.Place(region=name)))
    assert (told.code, told.reason) == (NOT_FOUND, "NO_SUCH_REGION")


@pytest.mark.parametrize("size", [0, -1, -(2**62)])
def test_a_size_must_be_one(local: NormalizationServiceStub, size: int) -> None:
    told = refused(local.ShareMemory, iter([pb.ShareMemoryRequest(allocate_bytes=size)]))
    assert (told.code, told.field) == (INVALID, "allocate_bytes")


@pytest.mark.parametrize("size", [SHARE + 1, LIMIT + 1, 2**40, 2**63 - 1])
def test_more_than_is_offered_is_refused_before_it_is_made(local: NormalizationServiceStub, size: int) -> None:
    told: Refused = refused(local.ShareMemory, iter([pb.ShareMemoryRequest(allocate_bytes=size)]))
    assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SHARED_MEMORY_LIMIT")


def test_one_caller_holds_no_more_than_so_many_regions(local: NormalizationServiceStub) -> None:
    told = refused(local.ShareMemory, (pb.ShareMemoryRequest(allocate_bytes=1) for _ in range(1025)))
    assert told.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def lending(stub: NormalizationServiceStub, token: str = "") -> tuple[queue.SimpleQueue[Any], Any]:
    """A call that asks for what is put into its queue."""
    asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
    metadata = (("authorization", f"Bearer {token}"),) if token else None
    return asked, stub.ShareMemory(iter(asked.get, None), metadata=metadata, timeout=30)


def test_one_call_holds_a_quarter_and_others_get_theirs(local: NormalizationServiceStub) -> None:
    calls = [lending(local) for _ in range(4)]
    for asked, replies in calls:
        for _ in range(4):
            asked.put(pb.ShareMemoryRequest(allocate_bytes=SHARE // 4))
            assert next(replies).size_bytes == SHARE // 4
    asked, replies = calls[0]
    asked.put(pb.ShareMemoryRequest(allocate_bytes=1))
    with pytest.raises(grpc.RpcError) as caught:
        next(replies)
    assert told_by(caught.value).reason == "SHARED_MEMORY_LIMIT"
    assert f"{SHARE} bytes that one caller may hold" in told_by(caught.value).sentence
    asked, replies = lending(local)
    asked.put(pb.ShareMemoryRequest(allocate_bytes=SHARE))
    assert next(replies).size_bytes == SHARE, "what the first held is free"
    for asked, _ in calls:
        asked.put(None)
    replies.cancel()


def test_an_identity_holds_its_share_over_all_its_calls(tmp_path: Path) -> None:
    file = tmp_path / "credentials.toml"
    stanzas = [stanza(name, "read", "", name) for name in ("greedy", "other")]
    file.write_text(
        "\n".join([*stanzas, stanza("large", "read", "", "large", f"max_shared_memory_bytes = {2 * SHARE}")])
    )
    flags = ("--shared-memory", "--shared-memory-bytes", str(LIMIT), "--credentials", str(file))
    server = ServerProcess(tmp_path, *flags, by_socket=True).start()
    try:
        with grpc.insecure_channel(server.target) as channel:
            stub = NormalizationServiceStub(channel)
            first, second, other, large = (lending(stub, token) for token in ("greedy", "greedy", "other", "large"))
            first[0].put(pb.ShareMemoryRequest(allocate_bytes=SHARE))
            assert next(first[1]).size_bytes == SHARE
            second[0].put(pb.ShareMemoryRequest(allocate_bytes=1))
            with pytest.raises(grpc.RpcError) as caught:
                next(second[1])
            told = told_by(caught.value)
            assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SHARED_MEMORY_LIMIT")
            other[0].put(pb.ShareMemoryRequest(allocate_bytes=SHARE))
            assert next(other[1]).size_bytes == SHARE
            large[0].put(pb.ShareMemoryRequest(allocate_bytes=2 * SHARE))
            assert next(large[1]).size_bytes == 2 * SHARE
            for _, replies in (first, other, large):
                replies.cancel()
    finally:
        server.stop()


def test_callers_by_the_network_are_refused(stub: NormalizationServiceStub) -> None:
    told = refused(stub.ShareMemory, iter([pb.ShareMemoryRequest(allocate_bytes=1)]))
    assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_OFFERED")
