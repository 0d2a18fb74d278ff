"""What a caller says of a normalization, beside the array and its target."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

Mode = Literal["eval", "batch", "train"]


class NormalizeOptions(NamedTuple):
    """What a caller says of a normalization beside the array and its target; see Client.normalize."""

    mode: Mode | None
    inverse: bool
    lengths: Any
    mask: Any
    style: Any
    snapshot: str | None
    out: Any = None
