"""What each call needs: one table, over every RPC that there is. What is not in it is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from normserver.access.grants import Need, Scope
from normstats.v1 import normalization_service_pb2 as pb
from normstats.wire.carried import Carried, ManyCarried

Rule = Callable[[Any], Iterable[Need]]

_PREFIX = f"/{pb.DESCRIPTOR.services_by_name['NormalizationService'].full_name}/"
_HEALTH, _REFLECTION = "/grpc.health.v1.Health/", "/grpc.reflection.v1alpha.ServerReflection/"


def _of_name(scope: Scope, field: str) -> Rule:
    return lambda message: (Need(scope, getattr(message, field)),)


def _somewhere(_: Any) -> Iterable[Need]:
    return (Need(Scope.READ, None),)


def _everywhere(_: Any) -> Iterable[Need]:
    return (Need(Scope.ADMIN, ""),)


def _options(options: pb.NormalizeRequest | pb.NormalizeStreamRequest.Open) -> Iterator[Need]:
    named = options.WhichOneof("target") == "normalizer"
    train = options.mode == pb.MODE_TRAIN
    yield Need(Scope.WRITE if train else Scope.READ, options.normalizer if named else None)
    if options.style_normalizer:
        yield Need(Scope.READ, options.style_normalizer)


def _normalize(request: Carried[pb.NormalizeRequest]) -> Iterator[Need]:
    return _options(request.message)


def _normalize_many(request: ManyCarried) -> Iterator[Need]:
    yield Need(Scope.READ, None)
    for one in request.items:
        yield from _options(one.message)


def _chunks(frame: Carried[pb.NormalizeStreamRequest]) -> Iterable[Need]:
    return _options(frame.message.open) if frame.message.HasField("open") else ()


def _contributions(messages: Sequence[pb.Contribution]) -> Iterable[Need]:
    return (Need(Scope.WRITE, message.normalizer) for message in messages)


def _update(request: pb.UpdateRunningStatsRequest) -> Iterable[Need]:
    return _contributions(request.contributions)


def _updates(frame: pb.UpdateRunningStatsStreamRequest) -> Iterable[Need]:
    return _contributions(frame.update.contributions)


def _round(frame: pb.SynchronizeStatsRequest) -> Iterator[Need]:
    if frame.HasField("join"):
        yield Need(Scope.WRITE, frame.join.group)
        if frame.join.normalizer:
            yield Need(Scope.WRITE, frame.join.normalizer)


_RULES: dict[str, Rule] = {
    "Normalize": _normalize,
    "NormalizeMany": _normalize_many,
    "NormalizeManyStream": _normalize_many,
    "NormalizeStream": _chunks,
    "ShareMemory": _somewhere,
    "GetDevice": _somewhere,
    "GetActivity": _somewhere,
    "WatchActivity": _somewhere,
    "GetHistory": _of_name(Scope.READ, "normalizer"),
    "UpdateRunningStats": _update,
    "UpdateRunningStatsStream": _updates,
    "SynchronizeStats": _round,
    "GetRunningStats": _of_name(Scope.READ, "normalizer"),
    "WatchRunningStats": _of_name(Scope.READ, "normalizer"),
    "CreateNormalizer": _of_name(Scope.WRITE, "name"),
    "GetNormalizer": _of_name(Scope.READ, "name"),
    "ListNormalizers": _of_name(Scope.READ, "prefix"),
    "UpdateNormalizer": _of_name(Scope.ADMIN, "name"),
    "DeleteNormalizer": _of_name(Scope.ADMIN, "name"),
    "CreateSnapshot": _of_name(Scope.WRITE, "normalizer"),
    "ListSnapshots": _of_name(Scope.READ, "normalizer"),
    "RestoreSnapshot": _of_name(Scope.ADMIN, "normalizer"),
    "DeleteSnapshot": _of_name(Scope.ADMIN, "normalizer"),
    "CompareSnapshots": _of_name(Scope.READ, "normalizer"),
    "BackUp": _everywhere,
}

# Of whoever asks, nothing is asked: a probe has no credentials, and is told whether the server serves, nothing else.
_PUBLIC = frozenset({f"{_HEALTH}Check", f"{_HEALTH}Watch"})

RULES: dict[str, Rule] = {f"{_PREFIX}{name}": rule for name, rule in _RULES.items()} | {
    f"{_REFLECTION}ServerReflectionInfo": _somewhere
}


def is_public(path: str) -> bool:
    """Whether a method is for everybody."""
    return path in _PUBLIC
