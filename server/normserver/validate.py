"""The door: what comes in is checked here, once, before anything is allocated, and goes on as the domain's values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from normcore.kernels.base import output_dtype, output_type
from normcore.running import Running
from normcore.stack import MomentsStack
from normserver import codec, names
from normserver.contributions import Contribution
from normserver.engine import MAX_GHOST_BATCHES, Batch, Mode, Plan, spans_rows
from normserver.errors import InvalidArgument, from_spec, from_tensor
from normserver.shared_memory import SharedMemory
from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1 import resources_pb2, tensor_pb2
from normstats.wire import spec as spec_wire
from normstats.wire import tensor
from normstats.wire.carried import Data

# One request contributes to at most so many normalizers: all layers of a large model, and no more.
MAX_CONTRIBUTIONS = 4096
# Batches that one contribution may hold moments of.
MAX_BATCHES = MAX_GHOST_BATCHES
# Tensors that one request may hold.
MAX_TENSORS = 256

# Specs up to this size are remembered: with 1,024 weights and biases one has 16 KiB, and takes 30 us to read.
_REMEMBERED_SPEC_BYTES = 1 << 16

_MODES = {
    pb.MODE_UNSPECIFIED: None,
    pb.MODE_EVAL: Mode.EVAL,
    pb.MODE_BATCH: Mode.BATCH,
    pb.MODE_TRAIN: Mode.TRAIN,
}

Options = pb.NormalizeRequest | pb.NormalizeStreamRequest.Open


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a caller wants of a normalization: by a spec or a normalizer's name, and how."""

    target: str | specs.Spec
    mode: Mode | None
    inverse: bool
    snapshot: str
    style_normalizer: str


@dataclass(frozen=True, slots=True)
class RawBatch:
    """A batch whose moments are still to be taken. `field` is its path in the request."""

    name: str
    batch: Batch
    observed_at: float | None
    field: str


def wanted(message: Options, prefix: str = "") -> Wanted:
    """How a tensor is to be normalized.

    Raises:
        InvalidArgument: a field is wrong.
    """
    target: str | specs.Spec
    match message.WhichOneof("target"):
        case "normalizer":
            target = names.check_name(message.normalizer, f"{prefix}normalizer")
        case "spec":
            target = spec(message.spec, f"{prefix}spec")
        case _:
            raise InvalidArgument(f"{prefix}target", "is not given; expected a normalizer's name or a spec")
    if message.mode not in _MODES:
        raise InvalidArgument(f"{prefix}mode", f"is {message.mode}; expected one of Mode")
    mode = _MODES[message.mode]
    if message.snapshot:
        names.check_tag(message.snapshot, f"{prefix}snapshot")
        if not isinstance(target, str) or mode not in (None, Mode.EVAL):
            raise InvalidArgument(f"{prefix}snapshot", "is given; expected only with a normalizer's name, in EVAL mode")
    if mode is Mode.TRAIN and not isinstance(target, str):
        raise InvalidArgument(f"{prefix}mode", "is TRAIN; expected a normalizer's name with it, to contribute to")
    if message.style_normalizer:
        names.check_name(message.style_normalizer, f"{prefix}style_normalizer")
    return Wanted(target, mode, message.inverse, message.snapshot, message.style_normalizer)


def spec(message: resources_pb2.Spec, field: str) -> specs.Spec:
    """A spec. What came lately is the same object when it comes again, so that what is made of it is made once.

    Raises:
        InvalidArgument: one of its arguments is wrong.
    """
    try:
        if message.ByteSize() > _REMEMBERED_SPEC_BYTES:
            return spec_wire.from_proto(message)
        return _remembered_spec(message.SerializeToString(deterministic=True))
    except specs.InvalidSpec as error:
        raise from_spec(error, field) from error


def is_remembered(spec: specs.Spec) -> bool:
    """Whether a spec is small enough to be the same object when it comes again."""
    arrays = (getattr(spec, name, None) for name in spec.PARAMETERS)
    size: int = sum(array.nbytes for array in arrays if array is not None)
    return size <= _REMEMBERED_SPEC_BYTES


@lru_cache(maxsize=256)
def _remembered_spec(serialized: bytes) -> specs.Spec:
    return spec_wire.from_proto(resources_pb2.Spec.FromString(serialized))


def batch(
    description: tensor_pb2.Tensor,
    data: Data,
    padding: tensor_pb2.Padding | None,
    *,
    field: str = "input",
    data_field: str = "data",
    sample_weights: bytes = b"",
) -> Batch:
    """A tensor with its padding and weights; it shares the bytes.

    Raises:
        InvalidArgument: dtype, shape, number of bytes, padding or weights are wrong.
    """
    values = array(description, data, field, data_field)
    prefix = field.rpartition(".")[0]
    path = f"{prefix}.padding" if prefix else "padding"
    lengths, mask = _padded(padding, path)
    weights = None
    if sample_weights:
        rows = values.shape[0] if values.dim() else 1
        weights = codec.decode_array(sample_weights, (rows,), f"{prefix}.sample_weights")
    return Batch(values, lengths, mask, weights)


def array(description: tensor_pb2.Tensor, data: Data, field: str, data_field: str) -> Tensor:
    """A tensor; it shares the bytes.

    Raises:
        InvalidArgument: dtype, shape or number of bytes are wrong.
    """
    return _tensor(_description(description, field), data, data_field)


def _tensor(description: tensor.Description, data: Data, data_field: str) -> Tensor:
    try:
        tensor.check_bytes(description, len(data))
    except tensor.InvalidTensor as error:
        raise from_tensor(error, "", data_field) from error
    return codec.decode_tensor(description, data)


def _description(message: tensor_pb2.Tensor, field: str) -> tensor.Description:
    try:
        return tensor.check(message)
    except tensor.InvalidTensor as error:
        raise from_tensor(error, field, "data") from error


def _padded(message: tensor_pb2.Padding | None, field: str) -> tuple[Tensor | None, Tensor | None]:
    """Lengths and mask, of which one at most is given."""
    if message is None:
        return None, None
    match message.WhichOneof("kind"):
        case "lengths":
            return torch.tensor(list(message.lengths.values), dtype=torch.int64), None
        case "mask":
            shape = tensor_pb2.Tensor(dtype=tensor_pb2.D_TYPE_BOOL, shape=message.mask.shape)
            mask = array(shape, message.mask.bits, f"{field}.mask", f"{field}.mask.bits")
            if mask.numel() and int(mask.view(torch.uint8).max()) > 1:
                raise InvalidArgument(f"{field}.mask.bits", "has bytes other than 0 and 1")
            return None, mask
    raise InvalidArgument(f"{field}.kind", "is not given; expected lengths or a mask")


def contributions(messages: Sequence[pb.Contribution], data: bytes, prefix: str = "") -> list[Contribution | RawBatch]:
    """The contributions of one update. Whether their normalizers are there, and as wide, is for the commit to see.

    Raises:
        InvalidArgument: a field is wrong, or the bytes are not those of the raw batches.
    """
    taken: list[Contribution | RawBatch] = []
    offset = 0
    for index, message in enumerate(messages):
        field = f"{prefix}contributions[{index}]"
        name, observed_at = message.normalizer, None
        if message.HasField("observe_time"):
            observed_at = codec.decode_time(message.observe_time, f"{field}.observe_time")
        match message.WhichOneof("payload"):
            case "moments":
                batches = _moments(message.moments, f"{field}.moments")
                taken.append(Contribution(name, batches, observed_at, field))
            case "raw":
                size = _raw_bytes(message.raw, f"{field}.raw.input")
                raw = _raw(message.raw, data[offset : offset + size], f"{field}.raw")
                offset += size
                taken.append(RawBatch(name, raw, observed_at, f"{field}.raw"))
            case _:
                raise InvalidArgument(f"{field}.payload", "is not given; expected moments or a raw batch")
    if offset != len(data):
        raise InvalidArgument("data", f"has {len(data)} bytes; the raw batches of this request have {offset}")
    return taken


def check_names(messages: Sequence[pb.Contribution], prefix: str = "") -> None:
    """Check which normalizers an update contributes to.

    Raises:
        InvalidArgument: there is none, there are too many, or one is named twice.
    """
    field = f"{prefix}contributions"
    if not 1 <= len(messages) <= MAX_CONTRIBUTIONS:
        raise InvalidArgument(field, f"has {len(messages)} items; expected 1 to {MAX_CONTRIBUTIONS}")
    found: dict[str, int] = {}
    for index, message in enumerate(messages):
        name = names.check_name(message.normalizer, f"{field}[{index}].normalizer")
        if name in found:
            raise InvalidArgument(
                f"{field}[{index}].normalizer",
                f"is {name!r}, as that of [{found[name]}]; expected each normalizer once",
            )
        found[name] = index


def _moments(message: pb.Contribution.MomentsOfBatches, field: str) -> MomentsStack:
    if len(message.batches) > MAX_BATCHES:
        raise InvalidArgument(f"{field}.batches", f"has {len(message.batches)} items; expected at most {MAX_BATCHES}")
    return codec.decode_batches(message.batches, f"{field}.batches")


def _raw_bytes(message: pb.Contribution.RawBatch, field: str) -> int:
    return _description(message.input, field).size_bytes


def _raw(message: pb.Contribution.RawBatch, data: bytes, field: str) -> Batch:
    padding = message.padding if message.HasField("padding") else None
    return batch(message.input, data, padding, field=f"{field}.input", sample_weights=message.sample_weights)


def input_of(request: pb.NormalizeRequest, data: Data, memory: SharedMemory) -> Batch:
    """The tensor of a unary normalization, which came with it or lies in shared memory.

    Raises:
        InvalidArgument: it is missing or wrong.
        NotFound: there is no such region.
    """
    description, lengths, mask = described(request)
    dtype = codec.dtype_of(description.element)
    if not request.HasField("input_place"):
        return Batch(_tensor(description, data, "data"), lengths, mask)
    if data:
        raise InvalidArgument("data", f"has {len(data)} bytes; expected none beside input_place")
    return Batch(memory.tensor(request.input_place, dtype, description.shape, "input_place"), lengths, mask)


def described(
    request: pb.NormalizeRequest,
) -> tuple[tensor.Description, Tensor | None, Tensor | None]:
    """The description of a unary normalization's tensor, its lengths and its mask.

    Raises:
        InvalidArgument: it is missing or wrong.
    """
    if not request.HasField("input"):
        raise InvalidArgument("input", "is not given; expected a tensor's dtype and shape")
    padding = request.padding if request.HasField("padding") else None
    return _description(request.input, "input"), *_padded(padding, "padding")


def output_of(request: pb.NormalizeRequest, x: Tensor, memory: SharedMemory) -> Tensor | None:
    """Where the output goes in shared memory, if it does.

    Raises:
        InvalidArgument: the input does not lie there too, or they overlap without being the same.
        NotFound: there is no such region.
    """
    if not request.HasField("output_place"):
        return None
    if not request.HasField("input_place"):
        raise InvalidArgument("output_place", "is given; expected only with input_place")
    out = memory.tensor(request.output_place, output_dtype(x), tuple(x.shape), "output_place")
    _check_apart(x.data_ptr(), x.nbytes, out.data_ptr(), out.nbytes, same_dtype=out.dtype == x.dtype)
    return out


def addresses(
    places: tuple[pb.Place, pb.Place], dtype: torch.dtype, size_bytes: int, memory: SharedMemory
) -> tuple[int, int]:
    """Where a tensor in shared memory and its output are.

    Raises:
        InvalidArgument, NotFound: as `input_of` and `output_of`.
    """
    output = output_type(dtype)
    output_bytes = size_bytes // dtype.itemsize * output.itemsize
    source = memory.address(places[0], size_bytes, "input_place")
    target = memory.address(places[1], output_bytes, "output_place")
    _check_apart(source, size_bytes, target, output_bytes, same_dtype=output == dtype)
    return source, target


def _check_apart(source: int, size_bytes: int, target: int, output_bytes: int, *, same_dtype: bool) -> None:
    in_place = target == source and same_dtype
    if not in_place and target < source + size_bytes and source < target + output_bytes:
        raise InvalidArgument("output_place", "overlaps the input; expected its very place and dtype, or another")


def producer_of(request: pb.NormalizeRequest) -> tuple[bytes, int]:
    """The producer and the sequence that a TRAIN contributes under."""
    producer = names.check_producer(request.producer_id, "producer_id")
    return producer, names.check_sequence(request.sequence, "sequence")


def style_of(request: pb.NormalizeRequest) -> Tensor | None:
    """The style's tensor, where there is one."""
    if request.WhichOneof("style") == "style_tensor":
        return array(request.style_tensor, request.style_data, "style_tensor", "style_data")
    if request.style_data:
        raise InvalidArgument("style_data", f"has {len(request.style_data)} bytes; expected none without style_tensor")
    return None


def chunk(message: pb.NormalizeStreamRequest.Chunk, data: Data, row_shape: tuple[int, ...] | None) -> Batch:
    """A chunk of whole rows, of the shape that the rows before had."""
    padding = message.padding if message.HasField("padding") else None
    taken = batch(message.input, data, padding, field="chunk.input")
    if not taken.x.dim():
        raise InvalidArgument("chunk.input.shape", "is empty; expected whole rows")
    if row_shape is not None and tuple(taken.x.shape[1:]) != row_shape:
        raise InvalidArgument(
            "chunk.input.shape", f"has rows of {tuple(taken.x.shape[1:])}; the chunks before have rows of {row_shape}"
        )
    return taken


def chunked(plan: Plan, message: pb.NormalizeStreamRequest.Open) -> Plan:
    """The plan of a tensor that comes in chunks: statistics that span rows must have come with the opening frame.

    Raises:
        InvalidArgument: they are missing, given in vain, or of no use.
    """
    if plan.mode is Mode.TRAIN:
        raise InvalidArgument("open.mode", "is TRAIN; contribute the moments by UpdateRunningStats, then use BATCH")
    spans = spans_rows(plan)
    if spans and not isinstance(plan.spec, specs.RunningSpec):
        raise InvalidArgument("open.spec", "has statistics over axis 0; send the tensor whole, by Normalize")
    if spans != message.HasField("moments"):
        raise InvalidArgument(
            "open.moments",
            "is not given; expected those of all rows" if spans else "is given; rows are independent here",
        )
    if not spans or not isinstance(plan.spec, specs.RunningSpec):
        return plan
    if isinstance(plan.spec, specs.BatchNorm) and plan.spec.virtual_batch_size:
        raise InvalidArgument("open.spec", "has ghost batches; send the tensor whole, by Normalize")
    return replace(plan, moments=codec.decode_moments(message.moments, plan.spec.num_features, "open.moments"))


def state(message: resources_pb2.RunningState, spec: specs.Spec, field: str) -> Running:
    """A running state for a new normalizer of a spec: no more than can be contributed at once, so that others can be.

    Raises:
        InvalidArgument: the spec keeps none, or it does not hold.
    """
    if not isinstance(spec, specs.RunningSpec):
        raise InvalidArgument(field, f"is given; {type(spec).__name__} keeps no running statistics")
    running = codec.decode_running(message, spec.num_features, field)
    codec.check_mergeable(MomentsStack.of([running.moments]), [f"{field}.moments"])
    if running.num_batches > codec.MAX_COUNT:
        raise InvalidArgument(f"{field}.num_batches", f"is {running.num_batches}; expected at most 2^53")
    return running


def affine(before: specs.Spec, request: pb.UpdateNormalizerRequest) -> specs.Spec:
    """A spec with the affine parameters of a request; what is not given stays, what is given empty goes.

    Raises:
        InvalidArgument: the spec takes no such parameter, or another number of values.
    """
    changed = {}
    for name in ("weight", "bias"):
        if not request.HasField(name):
            continue
        data = getattr(request, name)
        if not hasattr(before, name):
            raise InvalidArgument(name, f"is given; {type(before).__name__} takes none")
        if len(data) % 8:
            raise InvalidArgument(name, f"has {len(data)} bytes; expected a multiple of 8 (float64)")
        changed[name] = codec.float64_tensor(data) if data else None
    try:
        return before.with_parameters(**changed)
    except specs.InvalidSpec as error:
        raise InvalidArgument(error.argument, str(error).partition(" ")[2]) from error
