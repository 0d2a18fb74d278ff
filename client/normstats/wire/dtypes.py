"""The element types that travel, by their one name in numpy, torch and the contract."""

from __future__ import annotations

from typing import NamedTuple

from normstats.v1 import tensor_pb2 as pb


class ElementType(NamedTuple):
    """One element type: its number in the contract, its name in numpy and torch, its size."""

    number: pb.DType.ValueType
    name: str
    size_bytes: int


ELEMENT_TYPES = (
    ElementType(pb.D_TYPE_FLOAT16, "float16", 2),
    ElementType(pb.D_TYPE_BFLOAT16, "bfloat16", 2),
    ElementType(pb.D_TYPE_FLOAT32, "float32", 4),
    ElementType(pb.D_TYPE_FLOAT64, "float64", 8),
    ElementType(pb.D_TYPE_INT8, "int8", 1),
    ElementType(pb.D_TYPE_INT16, "int16", 2),
    ElementType(pb.D_TYPE_INT32, "int32", 4),
    ElementType(pb.D_TYPE_INT64, "int64", 8),
    ElementType(pb.D_TYPE_UINT8, "uint8", 1),
    ElementType(pb.D_TYPE_UINT16, "uint16", 2),
    ElementType(pb.D_TYPE_UINT32, "uint32", 4),
    ElementType(pb.D_TYPE_UINT64, "uint64", 8),
    ElementType(pb.D_TYPE_BOOL, "bool", 1),
)
BY_NUMBER = {element.number: element for element in ELEMENT_TYPES}
BY_NAME = {element.name: element for element in ELEMENT_TYPES}
# Those that a normalization keeps; others become float32.
FLOATING = ("float16", "bfloat16", "float32", "float64")
