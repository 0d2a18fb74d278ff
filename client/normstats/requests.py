"""What calls send: requests in the contract's own messages, made of the caller's values. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from normstats import specs
from normstats.arrays import Payload, is_torch, payload_of
from normstats.errors import FailedPrecondition, InvalidArgument
from normstats.moments import Moments, batches_of
from normstats.options import Mode, NormalizeOptions
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1 import tensor_pb2
from normstats.wire import spec as spec_wire
from normstats.wire.carried import Carried

MODES: dict[str | None, pb.Mode.ValueType] = {
    None: pb.MODE_UNSPECIFIED,
    "eval": pb.MODE_EVAL,
    "batch": pb.MODE_BATCH,
    "train": pb.MODE_TRAIN,
}


def mode_of(mode: Mode | None) -> pb.Mode.ValueType:
    """The contract's mode.

    Raises:
        InvalidArgument: there is no such mode.
    """
    if mode not in MODES:
        raise InvalidArgument(f"mode is {mode!r}; expected 'eval', 'batch' or 'train'", field="mode")
    return MODES[mode]


def target_of(target: specs.Spec | str) -> dict[str, Any]:
    """The target's field: a normalizer's name or a spec."""
    return {"normalizer": target} if isinstance(target, str) else {"spec": spec_wire.to_proto(target)}


def padding_of(lengths: Any, mask: Any) -> tensor_pb2.Padding | None:
    """The padding, where some is given.

    Raises:
        InvalidArgument: both are given, or they are of another type.
    """
    if lengths is not None and mask is not None:
        raise InvalidArgument("lengths and mask are both given; expected one of them", field="lengths")
    if lengths is not None:
        values = _numpy(lengths)
        if values.dtype.kind not in "iu" or values.ndim != 1:
            raise InvalidArgument(
                f"lengths are {values.dtype} of shape {values.shape}; expected integers", field="lengths"
            )
        return tensor_pb2.Padding(lengths=tensor_pb2.Padding.Lengths(values=values.tolist()))
    if mask is None:
        return None
    bits = _numpy(mask)
    if bits.dtype != np.bool_:
        raise InvalidArgument(f"mask is {bits.dtype}; expected bool", field="mask")
    return tensor_pb2.Padding(mask=tensor_pb2.Padding.Mask(shape=bits.shape, bits=bits.tobytes()))


def check_padding(payload: Payload, options: NormalizeOptions) -> None:
    """Check padding before it is cut along: a part that fits some chunk by chance would be taken for that chunk's own.

    Raises:
        InvalidArgument: lengths or mask are of another type, or do not go with the rows.
    """
    padding_of(options.lengths, options.mask)
    rows, rank = payload.shape[0], len(payload.shape)
    for field, given in (("lengths", options.lengths), ("mask", options.mask)):
        shape: tuple[int, ...] = () if given is None else _numpy(given).shape
        same_for_all = field == "mask" and len(shape) == rank and shape[0] == 1
        if given is not None and shape[:1] != (rows,) and not same_for_all:
            raise InvalidArgument(f"{field} has shape {shape}; input has {rows} rows", field=field)


def rows_of(padding: Any, start: int, stop: int, rows: int) -> Any:
    """The part of lengths or a mask that belongs to some rows."""
    if padding is None:
        return None
    values = _numpy(padding)
    return values[start:stop] if values.ndim and values.shape[0] == rows else values


def normalize(payload: Payload, target: specs.Spec | str, options: NormalizeOptions) -> Carried[pb.NormalizeRequest]:
    """A unary normalization."""
    request = pb.NormalizeRequest(
        **target_of(target),
        mode=mode_of(options.mode),
        inverse=options.inverse,
        snapshot=options.snapshot or "",
        padding=padding_of(options.lengths, options.mask),
        input=payload.describe(),
    )
    if isinstance(options.style, str):
        request.style_normalizer = options.style
    elif options.style is not None:
        style = payload_of(options.style)
        request.style_tensor.CopyFrom(style.describe())
        request.style_data = bytes(style.data())
    return Carried(request, payload.data())


class Header:
    """What a request says but for its data, serialized: where it is said again and again."""

    __slots__ = ("_serialized",)
    style_data = b""

    def __init__(self, serialized: bytes) -> None:
        self._serialized = serialized

    def SerializeToString(self) -> bytes:
        """As a message has it."""
        return self._serialized

    def HasField(self, _name: str) -> bool:
        """It is plain: no padding, no style, no place in shared memory."""
        return False


_HEADERS: dict[tuple[Any, ...], Header] = {}
_MOST_HEADERS = 1024


def plain(payload: Payload, target: specs.Spec | str, options: NormalizeOptions) -> Carried[Any] | None:
    """A unary normalization by a name, of an array without padding, that contributes nothing; None for any other."""
    mode, inverse, lengths, mask, style, snapshot, _out = options
    if not isinstance(target, str) or mode == "train" or not lengths is mask is style is None:
        return None
    key = target, mode, inverse, snapshot, payload.name, payload.values.shape
    header = _HEADERS.get(key)
    if header is None:
        if len(_HEADERS) >= _MOST_HEADERS:
            _HEADERS.clear()
        header = _HEADERS[key] = Header(normalize(payload, target, options).message.SerializeToString())
    return Carried(header, payload.data())


def opening(
    target: specs.Spec | str, spec: specs.Spec, mode: Mode, options: NormalizeOptions, moments: Moments | None
) -> Carried[pb.NormalizeStreamRequest]:
    """The opening frame of a normalization in chunks; TRAIN has contributed its moments before, and goes by them."""
    message = pb.NormalizeStreamRequest.Open(
        **target_of(target if isinstance(target, str) else spec),
        mode=pb.MODE_EVAL if mode == "eval" else pb.MODE_BATCH,
        inverse=options.inverse,
        snapshot=options.snapshot or "",
        style_normalizer=options.style or "",
        moments=None if moments is None else moments.to_proto(),
    )
    return Carried(pb.NormalizeStreamRequest(open=message))


def chunk(payload: Payload, options: NormalizeOptions, start: int, stop: int) -> Carried[pb.NormalizeStreamRequest]:
    """Some rows of an array, with their part of the padding."""
    rows, part = payload.shape[0], payload.rows(start, stop)
    padding = padding_of(rows_of(options.lengths, start, stop, rows), rows_of(options.mask, start, stop, rows))
    message = pb.NormalizeStreamRequest.Chunk(input=part.describe(), padding=padding)
    return Carried(pb.NormalizeStreamRequest(chunk=message), part.data())


def contribution(
    name: str,
    spec: specs.Spec,
    batch: Any,
    *,
    weights: Any = None,
    lengths: Any = None,
    mask: Any = None,
    time: float | datetime | None = None,
) -> pb.Contribution:
    """The moments of a batch for one normalizer.

    Raises:
        InvalidArgument: the batch does not fit the normalizer.
        FailedPrecondition: the normalizer keeps no statistics.
    """
    running = running_spec(name, spec)
    return of_moments(name, batches_of(batch, running, lengths=lengths, mask=mask, weights=weights), time)


def running_spec(name: str, spec: specs.Spec) -> specs.RunningSpec:
    """The spec of a normalizer that is contributed to.

    Raises:
        FailedPrecondition: the normalizer keeps no statistics.
    """
    if not isinstance(spec, specs.RunningSpec):
        raise FailedPrecondition(
            f"normalizer {name!r} keeps no running statistics: its normalization uses each sample's own",
            reason="KEEPS_NO_STATISTICS",
        )
    return spec


def of_moments(name: str, batches: Sequence[Moments], time: float | datetime | None = None) -> pb.Contribution:
    """Moments for one normalizer."""
    message = pb.Contribution(
        normalizer=name,
        moments=pb.Contribution.MomentsOfBatches(batches=[moments.to_proto() for moments in batches]),
    )
    if time is not None:
        seconds = time.timestamp() if isinstance(time, datetime) else float(time)
        message.observe_time.FromMicroseconds(round(seconds * 1e6))
    return message


def of_each(value: Any, name: str) -> Any:
    """An argument that is one for all normalizers, or a mapping with one for each."""
    return value.get(name) if isinstance(value, Mapping) else value


def _numpy(values: Any) -> np.ndarray[Any, Any]:
    return np.asarray(values.detach().cpu().numpy() if is_torch(values) else values)
