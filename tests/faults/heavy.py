"""Requests of few bytes whose arithmetic takes long: some 15 us of one core for each position."""

from __future__ import annotations

import numpy as np

from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.wire import spec as spec_wire
from tests.contract import described

_SPEC = spec_wire.to_proto(specs.LocalResponseNorm(256))


def request(positions: int) -> pb.NormalizeRequest:
    """256 channels of bytes, each divided by what all of them are."""
    x = np.random.default_rng(0).integers(0, 255, (1, 256, positions), dtype=np.uint8)
    return pb.NormalizeRequest(spec=_SPEC, input=described(x), data=x.tobytes())


REQUEST = request(512)
MANY = pb.NormalizeManyStreamRequest(requests=[REQUEST])
OPENING = pb.NormalizeStreamRequest(open=pb.NormalizeStreamRequest.Open(spec=_SPEC))
CHUNK = pb.NormalizeStreamRequest(chunk=pb.NormalizeStreamRequest.Chunk(input=REQUEST.input), data=REQUEST.data)
