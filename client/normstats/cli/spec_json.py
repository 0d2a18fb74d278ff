"""Specs as JSON and as options: {"kind": "standardize", "num_features": 17}."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from typing import Any

import click
import numpy as np

from normstats import specs

KINDS: dict[str, type] = {
    re.sub(r"(?<=[a-z])(?=[A-Z])", "-", kind.__name__).lower(): kind
    for kind in (*specs.RunningSpec.__args__, *specs.SampleSpec.__args__)
} | {"rms-norm": specs.RMSNorm}
KINDS.pop("rmsnorm", None)
_NAMES = {kind: name for name, kind in KINDS.items()}

# What `--features` means for each kind that has such a number.
SIZES = ("num_features", "normalized_shape", "num_channels", "size")


def to_json(spec: specs.Spec, *, arrays: bool = True) -> dict[str, Any]:
    """A spec as JSON's own types; without its arrays if they go elsewhere."""
    described: dict[str, Any] = {"kind": _NAMES[type(spec)]}
    for field in fields(spec):
        value = getattr(spec, field.name)
        if isinstance(value, np.ndarray):
            if arrays:
                described[field.name] = value.tolist()
        elif value is not None:
            described[field.name] = list(value) if isinstance(value, tuple) else value
    return described


def from_json(described: dict[str, Any]) -> specs.Spec:
    """The spec of such a description.

    Raises:
        InvalidSpec: there is no such kind or argument, or one is wrong.
    """
    arguments = dict(described)
    name = str(arguments.pop("kind", None)).replace("_", "-")
    if name not in KINDS:
        raise specs.InvalidSpec("kind", f"is {name!r}; expected one of {', '.join(KINDS)}")
    kind = KINDS[name]
    known = [field.name for field in fields(kind)]
    for argument in arguments:
        if argument not in known:
            raise specs.InvalidSpec(argument, f"is none of {kind.__name__}'s arguments: {', '.join(known)}")
    for argument, value in arguments.items():
        if isinstance(value, list) and argument in ("renorm", "feature_range"):
            arguments[argument] = tuple(value)
    try:
        spec: specs.Spec = kind(**arguments)
    except TypeError as error:
        missing = re.findall(r"'(\w+)'", str(error))
        raise specs.InvalidSpec(
            ", ".join(missing) or "arguments", f"are wrong or missing for {kind.__name__}"
        ) from None
    return spec


def of_options(kind: str, features: int | None, settings: tuple[str, ...]) -> specs.Spec:
    """The spec of a kind, its size, and settings such as `eps=1e-3`.

    Raises:
        click.UsageError: a setting is no key=value, or the kind has no size.
        InvalidSpec: an argument is wrong.
    """
    described: dict[str, Any] = {"kind": kind}
    if features is not None:
        names = [field.name for field in fields(KINDS[kind]) if field.name in SIZES]
        if not names:
            raise click.UsageError(f"{kind} takes no --features")
        described[names[0]] = features
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise click.UsageError(f"--set {setting}: expected key=value, such as --set eps=1e-3")
        try:
            described[key.replace("-", "_")] = json.loads(value)
        except json.JSONDecodeError:
            described[key.replace("-", "_")] = value
    return from_json(described)
