"""What a request says but for its data: callers say the same again and again, and it is checked once."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from normserver import codec, validate
from normserver.errors import ServiceError
from normserver.validate import Wanted
from normstats.v1 import normalization_service_pb2 as pb
from normstats.wire import tensor
from normstats.wire.carried import Carried

# The path of a chunk's fields.
CHUNK = "chunk."
# Forms that are remembered, and how long what they are known by may be.
_MOST_FORMS, _LONGEST_BYTES = 1024, 1 << 14


@dataclass(frozen=True, eq=False, slots=True)
class Form:
    """A request that was checked: what is wanted, of a tensor of which dtype and shape, padded how.

    Of a chunk the opening frame says what is wanted.
    """

    wanted: Wanted | None
    dtype: torch.dtype
    shape: tuple[int, ...]
    size_bytes: int
    lengths: Tensor | None = None
    mask: Tensor | None = None
    places: tuple[pb.Place, pb.Place] | None = None
    """Where it and its output lie in shared memory, if they do."""

    @property
    def prefix(self) -> str:
        """The path of its fields."""
        return "" if self.wanted else CHUNK


class Forms:
    """The forms of late."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Form] = {}

    def of(self, request: Carried[pb.NormalizeRequest]) -> Form | None:
        """The form of a request; None if it is wrong, or more than values to be normalized and sent back."""
        message = request.message
        message.ClearField("data")
        key = message.SerializeToString()
        form = self._known.get(key)
        if form is None and len(key) <= _LONGEST_BYTES and (form := _form(message)) is not None:
            self._remember(key, form)
        return form

    def of_chunk(self, target: Hashable, chunk: pb.NormalizeStreamRequest.Chunk) -> Form | None:
        """The form of a chunk that was checked, one for each target; None if it is padded, or empty, or says much."""
        said = chunk.SerializeToString()
        if len(said) > _LONGEST_BYTES or chunk.HasField("padding"):
            return None
        key = target, said
        form = self._known.get(key)
        if form is None and (size_bytes := (description := tensor.check(chunk.input)).size_bytes):
            form = Form(None, codec.dtype_of(description.element), description.shape, size_bytes)
            self._remember(key, form)
        return form

    def _remember(self, key: Hashable, form: Form) -> None:
        if len(self._known) >= _MOST_FORMS:
            self._known.clear()
        self._known[key] = form


def _form(message: pb.NormalizeRequest) -> Form | None:
    if message.mode == pb.MODE_TRAIN or message.WhichOneof("style") or message.style_data:
        return None
    places = None
    if message.HasField("input_place") or message.HasField("output_place"):
        if not (message.HasField("input_place") and message.HasField("output_place")):
            return None
        places = message.input_place, message.output_place
    try:
        wanted = validate.wanted(message)
        description, lengths, mask = validate.described(message)
    except ServiceError:
        return None
    if not description.size_bytes:
        return None
    dtype = codec.dtype_of(description.element)
    return Form(wanted, dtype, description.shape, description.size_bytes, lengths, mask, places)
