"""What is remembered of requests: as much as is worth it, and no more."""

from __future__ import annotations

import numpy as np

from normserver.forms import Forms
from normstats import requests
from normstats.arrays import payload_of
from normstats.options import NormalizeOptions
from normstats.v1 import normalization_service_pb2 as pb
from normstats.wire.carried import Carried

OPTIONS = NormalizeOptions(None, False, None, None, None, None)
# A field that the contract does not have, of so many bytes.
UNKNOWN = b"\x4a\x80\x80\x04" + bytes(1 << 16)


def chunk(rows: int = 2) -> pb.NormalizeStreamRequest.Chunk:
    payload = payload_of(np.ones((rows, 4), np.float32))
    return requests.chunk(payload, OPTIONS, 0, rows).message.chunk


def request() -> Carried[pb.NormalizeRequest]:
    return requests.normalize(payload_of(np.ones((2, 4), np.float32)), "name", OPTIONS)


def test_what_says_the_same_has_the_same_form() -> None:
    forms = Forms()
    assert forms.of(request()) is forms.of(request())
    form = forms.of_chunk("name", chunk())
    assert form is not None
    assert (form.shape, form.size_bytes, form.prefix) == ((2, 4), 32, "chunk.")
    assert forms.of_chunk("name", chunk()) is form
    assert forms.of_chunk("name", chunk(3)) is not form
    assert forms.of_chunk("other", chunk()) is not form


def test_what_says_much_is_not_remembered() -> None:
    forms = Forms()
    large = chunk()
    large.MergeFromString(UNKNOWN)
    assert forms.of_chunk("name", large) is None
    one = request()
    one.message.MergeFromString(UNKNOWN)
    assert forms.of(one) is None
    assert not forms._known


def test_padding_and_emptiness_have_none() -> None:
    forms = Forms()
    padded = chunk()
    padded.padding.lengths.values.extend([1, 2])
    assert forms.of_chunk("name", padded) is None
    assert forms.of_chunk("name", chunk(0)) is None
