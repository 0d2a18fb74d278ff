"""A caller disturbs no name that it may not write, whatever it has seen and whatever it calls, over TLS and mTLS."""

from __future__ import annotations

import base64
import hashlib
import queue
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import duration_pb2
from google.protobuf.message import Message

from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.wire import spec as spec_wire
from tests import identities
from tests.contract import contribution, described, moments_message, told_by, update
from tests.identities import Caller, Site, stanza
from tests.server_process import ServerProcess

METHODS = {method.name for method in pb.DESCRIPTOR.services_by_name["NormalizationService"].methods}
OBS, STEP, EVIL = "victim/obs", "victim/step", "evil/obs"
X = np.arange(6, dtype=np.float32).reshape(2, 3)
# The victim's own ids. The attacker knows all of them here, more than anything tells it.
UNARY, STREAM = b"the-victims-id-1", b"the-victims-id-2"
FIRST, SECOND = b"first-of-members", b"other-of-members"
DENIED = grpc.StatusCode.PERMISSION_DENIED
SEQUENCES = (1, 2, 3, 4, 1000, 2**40)


@pytest.fixture(scope="module", params=["TLS", "mTLS"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    both = '{ scope = "admin", prefix = "evil/" }, { scope = "read", prefix = "victim/" }'
    lines = {"victim": 'grants = [{ scope = "admin", prefix = "victim/" }]', "attacker": f"grants = [{both}]"}
    with identities.site(tmp_path_factory.mktemp(request.param), lines, mtls=request.param == "mTLS") as found:
        yield found


class Member:
    """A member of a group, frame by frame."""

    def __init__(self, caller: Caller, member: bytes, group: str = STEP, **more: Any) -> None:
        self._frames: queue.SimpleQueue[pb.SynchronizeStatsRequest | None] = queue.SimpleQueue()
        terms = {"size": 2, "normalizer": OBS, "round_timeout": duration_pb2.Duration(seconds=60)} | more
        join = pb.SynchronizeStatsRequest.Join(group=group, member_id=member, **terms)
        self._frames.put(pb.SynchronizeStatsRequest(join=join))
        self._answers = caller.stub.SynchronizeStats(iter(self._frames.get, None), metadata=caller.metadata, timeout=60)
        self.joined = next(self._answers).joined

    def give(self, number: int, x: np.ndarray) -> None:
        part = pb.SynchronizeStatsRequest.Part(round=number, moments=moments_message(x))
        self._frames.put(pb.SynchronizeStatsRequest(part=part))

    def merged(self) -> pb.SynchronizeStatsResponse.Merged:
        return next(self._answers).merged

    def leave(self) -> None:
        self._frames.put(None)
        assert list(self._answers) == []


def _open(producer: bytes) -> pb.UpdateRunningStatsStreamRequest:
    return pb.UpdateRunningStatsStreamRequest(open=pb.UpdateRunningStatsStreamRequest.Open(producer_id=producer))


def _next(name: str, sequence: int) -> pb.UpdateRunningStatsStreamRequest:
    kind = pb.UpdateRunningStatsStreamRequest
    return kind(update=kind.Update(sequence=sequence, contributions=[contribution(name, X)]))


def _train(name: str, producer: bytes, sequence: int) -> pb.NormalizeRequest:
    return pb.NormalizeRequest(
        normalizer=name,
        input=described(X),
        data=X.tobytes(),
        mode=pb.MODE_TRAIN,
        producer_id=producer,
        sequence=sequence,
    )


def _seen(victim: Caller) -> dict[str, bytes]:
    """All that the victim can look at."""
    asked: dict[str, Message] = {
        "GetNormalizer": pb.GetNormalizerRequest(name=OBS),
        "GetRunningStats": pb.GetRunningStatsRequest(normalizer=OBS, include_state=True),
        "ListNormalizers": pb.ListNormalizersRequest(prefix="victim/"),
        "ListSnapshots": pb.ListSnapshotsRequest(normalizer=OBS),
        "CompareSnapshots": pb.CompareSnapshotsRequest(normalizer=OBS, base_tag="kept"),
    }
    seen = {method: victim.ask(method, request).SerializeToString() for method, request in asked.items()}
    kept = pb.GetRunningStatsRequest(normalizer=OBS, snapshot="kept", include_state=True)
    return seen | {"snapshot": victim.ask("GetRunningStats", kept).SerializeToString()}


def _forbidden() -> dict[str, Sequence[Message]]:
    """What each method that changes something would do to the victim's names: all of it is refused."""
    kind = pb.SynchronizeStatsRequest
    joins = [
        kind.Join(group=STEP, member_id=FIRST, size=2, normalizer=OBS),
        kind.Join(group="evil/step", member_id=FIRST, size=1, normalizer=OBS),
        kind.Join(group=STEP, member_id=FIRST, size=1),
    ]
    chunk = pb.NormalizeStreamRequest.Open(normalizer=OBS, mode=pb.MODE_TRAIN)
    return {
        "Normalize": [_train(OBS, UNARY, 9)],
        "NormalizeMany": [pb.NormalizeManyRequest(requests=[_train(EVIL, UNARY, 9), _train(OBS, UNARY, 10)])],
        "NormalizeManyStream": [pb.NormalizeManyStreamRequest(requests=[_train(OBS, UNARY, 9)], id=1)],
        "NormalizeStream": [pb.NormalizeStreamRequest(open=chunk)],
        "UpdateRunningStats": [update(OBS, X, producer=UNARY, sequence=9)],
        "UpdateRunningStatsStream": [_next(OBS, 9)],
        "SynchronizeStats": [kind(join=join) for join in joins],
        "CreateNormalizer": [
            pb.CreateNormalizerRequest(name="victim/new", spec=spec_wire.to_proto(specs.Standardize(3)))
        ],
        "UpdateNormalizer": [
            pb.UpdateNormalizerRequest(name=OBS, reset=True),
            pb.UpdateNormalizerRequest(name=OBS, frozen=True),
        ],
        "DeleteNormalizer": [pb.DeleteNormalizerRequest(name=OBS)],
        "CreateSnapshot": [pb.CreateSnapshotRequest(normalizer=OBS, tag="more", keep_last=1)],
        "RestoreSnapshot": [pb.RestoreSnapshotRequest(normalizer=OBS, tag="kept")],
        "DeleteSnapshot": [pb.DeleteSnapshotRequest(normalizer=OBS, tag="kept")],
        "BackUp": [pb.BackUpRequest()],
    }


def _allowed() -> dict[str, Sequence[Sequence[Message]]]:
    """What each method may be asked for: to look at the victim's names, and to do to one's own what one likes."""
    changes: dict[str, Sequence[Message]] = {
        "Normalize": [_train(EVIL, id_, sequence) for id_ in (UNARY, STREAM) for sequence in SEQUENCES],
        "NormalizeMany": [
            pb.NormalizeManyRequest(requests=[_train(EVIL, id_, one) for id_ in (UNARY, STREAM) for one in SEQUENCES])
        ],
        "NormalizeManyStream": [pb.NormalizeManyStreamRequest(requests=[_train(EVIL, UNARY, 5)], id=1)],
        "UpdateRunningStats": [
            update(EVIL, X, producer=id_, sequence=one) for id_ in (UNARY, STREAM, FIRST) for one in SEQUENCES
        ],
        "CreateSnapshot": [pb.CreateSnapshotRequest(normalizer=EVIL, tag="kept", keep_last=1)],
        "RestoreSnapshot": [pb.RestoreSnapshotRequest(normalizer=EVIL, tag="kept")],
        "DeleteSnapshot": [pb.DeleteSnapshotRequest(normalizer=EVIL, tag="kept")],
        "UpdateNormalizer": [pb.UpdateNormalizerRequest(name=EVIL, reset=True)],
    }
    reads: dict[str, Sequence[Message]] = {
        "GetRunningStats": [pb.GetRunningStatsRequest(normalizer=OBS, include_state=True)],
        "WatchRunningStats": [pb.WatchRunningStatsRequest(normalizer=OBS)],
        "GetDevice": [pb.GetDeviceRequest()],
        "GetActivity": [pb.GetActivityRequest(seconds=300)],
        "WatchActivity": [pb.WatchActivityRequest(seconds=300)],
        "GetHistory": [pb.GetHistoryRequest(normalizer=OBS)],
        "GetNormalizer": [pb.GetNormalizerRequest(name=OBS)],
        "ListNormalizers": [pb.ListNormalizersRequest(prefix="victim/")],
        "ListSnapshots": [pb.ListSnapshotsRequest(normalizer=OBS)],
        "CompareSnapshots": [pb.CompareSnapshotsRequest(normalizer=OBS, base_tag="kept")],
    }
    calls: dict[str, list[Sequence[Message]]] = {
        method: [(one,) for one in requests] for method, requests in (changes | reads).items()
    }
    stream = [[_open(id_), *(_next(EVIL, one) for one in SEQUENCES)] for id_ in (UNARY, STREAM, SECOND)]
    chunk = pb.NormalizeStreamRequest.Open(normalizer=OBS)
    return calls | {
        "UpdateRunningStatsStream": stream,
        "NormalizeStream": [[pb.NormalizeStreamRequest(open=chunk)]],
    }


# What takes more than messages, or is done to the attacker's own name before and after the rest.
_ELSEWHERE = {"CreateNormalizer", "DeleteNormalizer", "SynchronizeStats", "ShareMemory", "BackUp"}


def test_every_rpc_is_tried() -> None:
    assert set(_allowed()) | _ELSEWHERE == METHODS
    changing = METHODS - {method for method in METHODS if method.startswith(("Get", "List", "Watch", "Compare"))}
    assert set(_forbidden()) | {"ShareMemory"} == changing


def test_a_reader_disturbs_nothing_of_what_it_may_only_read(site: Site) -> None:
    victim, attacker = site.callers.values()
    spec = spec_wire.to_proto(specs.Standardize(3))
    victim.ask("CreateNormalizer", pb.CreateNormalizerRequest(name=OBS, spec=spec))
    assert not victim.ask("UpdateRunningStats", update(OBS, X, producer=UNARY, sequence=1)).duplicate
    answers, _ = victim.send("UpdateRunningStatsStream", _open(STREAM), _next(OBS, 1), _next(OBS, 2))
    assert [answer.acknowledged_sequence for answer in answers][-1] == 2
    victim.ask("CreateSnapshot", pb.CreateSnapshotRequest(normalizer=OBS, tag="kept"))
    first, second = Member(victim, FIRST), Member(victim, SECOND)
    group = first.joined.group_id
    for member in (first, second):
        member.give(1, X)
    assert first.merged().version == second.merged().version
    first.give(2, X)  # the second round stays open while the attacker tries
    while not victim.ask("GetActivity", pb.GetActivityRequest()).activity.rounds:
        pass
    before = _seen(victim)

    told = b""
    for method, forbidden in _forbidden().items():
        for request in forbidden:
            opened = [_open(UNARY)] if method == "UpdateRunningStatsStream" else []
            assert attacker.send(method, *opened, request)[1] is DENIED, request
    attacker.ask("CreateNormalizer", pb.CreateNormalizerRequest(name=EVIL, spec=spec))
    for method, calls in _allowed().items():
        for requests in calls:
            answers, code = attacker.send(method, *requests)
            assert code not in (DENIED, grpc.StatusCode.INTERNAL), requests
            told += b"".join(answer.SerializeToString() for answer in answers)
    attacker.send("ShareMemory", pb.ShareMemoryRequest(allocate_bytes=1))
    for member in (FIRST, SECOND):
        # The victim's group and members under a name of the attacker's own.
        rounds = Member(attacker, member, "evil/step", size=1, normalizer=EVIL, group_id=group, next_round=2)
        for number in range(rounds.joined.round, rounds.joined.round + 3):
            rounds.give(number, X)
            rounds.merged()
        rounds.leave()
        told += rounds.joined.SerializeToString().replace(group, b"")  # it said that itself
    attacker.ask("DeleteNormalizer", pb.DeleteNormalizerRequest(name=EVIL))

    assert _seen(victim) == before
    second.give(2, X)
    assert first.merged().version == second.merged().version, "the round waited for the victim's member alone"
    for sequence in (2, 3, 4):
        assert not victim.ask("UpdateRunningStats", update(OBS, X, producer=UNARY, sequence=sequence)).duplicate
    answers, _ = victim.send("UpdateRunningStatsStream", _open(STREAM), _next(OBS, 3))
    assert [answer.acknowledged_sequence for answer in answers] == [2, 3]
    for member in (first, second):
        member.give(3, X)
    assert first.merged().version == second.merged().version
    counted = victim.ask("GetNormalizer", pb.GetNormalizerRequest(name=OBS)).normalizer
    assert counted.num_batches == 3 + 3 + 4, "three rounds, the first three updates, and the four that followed"
    for member in (first, second):
        member.leave()

    for page in (f"GetActivity?seconds=300&prefix={OBS}", f"GetHistory?normalizer={OBS}"):
        told += _page(site, f"/api/{page}")
    told += _page(site, "/metrics") + site.server.log().encode()
    for id_ in (UNARY, STREAM, FIRST, SECOND, group):
        for form in (id_, id_.hex().encode(), base64.b64encode(id_).rstrip(b"="), base64.urlsafe_b64encode(id_)):
            assert form not in told, "an id is told whole"
    assert UNARY.hex()[:8].encode() in told


def _page(site: Site, path: str) -> bytes:
    """What the attacker's browser is told."""
    context = ssl.create_default_context(cafile=str(site.authority.path))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    url = site.server.http.replace("http://", "https://") + path
    asked = urllib.request.Request(url, headers={"Authorization": "Bearer attacker"})
    with urllib.request.urlopen(asked, context=context, timeout=10) as answer:
        read: bytes = answer.read()
    return read


def test_members_of_two_identities_do_not_take_each_others_places(tmp_path: Path) -> None:
    file = tmp_path / "credentials.toml"
    grants = 'grants = [{ scope = "write", prefix = "shared/" }]'
    file.write_text(stanza("one", grants) + stanza("other", grants))
    server = ServerProcess(tmp_path, "--credentials", str(file)).start()
    try:
        with grpc.insecure_channel(server.target) as channel:
            one, other = (Caller(channel, (("authorization", f"Bearer {name}"),)) for name in ("one", "other"))
            spec = spec_wire.to_proto(specs.Standardize(3))
            one.ask("CreateNormalizer", pb.CreateNormalizerRequest(name="shared/obs", spec=spec))
            terms: dict[str, Any] = {"group": "shared/step", "normalizer": "shared/obs"}
            mine = Member(one, FIRST, **terms)
            claimed = {"group_id": mine.joined.group_id, "next_round": 2**52}
            told = _refused(lambda: Member(other, SECOND, **terms, **claimed))
            assert (told.field, told.code) == ("join.next_round", grpc.StatusCode.INVALID_ARGUMENT)
            theirs = Member(other, FIRST, **terms)
            theirs.give(1, X)
            mine.give(1, X + 1)
            merged = mine.merged()
            assert list(merged.member_ids) == [FIRST, FIRST]
            assert np.frombuffer(merged.moments.mean, "<f8").tolist() == (X.mean(0) + 0.5).tolist()
    finally:
        server.stop()


def _refused(call: Callable[[], Any]) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return told_by(caught.value)


def test_a_token_that_is_rotated_keeps_its_windows(tmp_path: Path) -> None:
    file = tmp_path / "credentials.toml"
    old, new = (hashlib.sha256(token).hexdigest() for token in (b"old", b"new"))
    text = '[[identity]]\nname = "one"\ngrants = [{{ scope = "write", prefix = "" }}]\ntokens = ["sha256:{}"]\n'
    file.write_text(text.format(old))
    server = ServerProcess(tmp_path, "--credentials", str(file)).start()
    try:
        with grpc.insecure_channel(server.target) as channel:
            before, after = (Caller(channel, (("authorization", f"Bearer {token}"),)) for token in ("old", "new"))
            spec = spec_wire.to_proto(specs.Standardize(3))
            before.ask("CreateNormalizer", pb.CreateNormalizerRequest(name="a", spec=spec))
            assert not before.ask("UpdateRunningStats", update("a", X, producer=UNARY)).duplicate
            file.write_text(text.format(new))
            while after.send("GetDevice", pb.GetDeviceRequest())[1] is grpc.StatusCode.UNAUTHENTICATED:
                time.sleep(0.05)
            assert after.ask("UpdateRunningStats", update("a", X, producer=UNARY)).duplicate
    finally:
        server.stop()
