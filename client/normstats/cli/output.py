"""Results for people (tables) and for programs (JSON's own types)."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
from rich.table import Table

from normstats.cli import spec_json
from normstats.results import Backup, Device, NormalizerInfo, SnapshotInfo, Stats
from normstats.specs import Spec

# How many features `show` shows; --json has all.
SHOWN = 10


def plain(value: Any) -> Any:
    """A value as JSON's own types."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.isoformat() if hasattr(value, "isoformat") else value


def info_json(info: NormalizerInfo) -> dict[str, Any]:
    """A normalizer."""
    described = {field.name: plain(getattr(info, field.name)) for field in fields(info)}
    return described | {"spec": spec_json.to_json(info.spec)}


def snapshot_json(info: SnapshotInfo) -> dict[str, Any]:
    """A snapshot."""
    return {field.name: plain(getattr(info, field.name)) for field in fields(info)}


def backup_json(backup: Backup) -> dict[str, Any]:
    """A backup."""
    return {"file": str(backup.path), "size_bytes": backup.size_bytes, "sha256": backup.sha256}


def stats_json(stats: Stats) -> dict[str, Any]:
    """Statistics."""
    names = ("normalizer", "version", "count", "num_batches", "mean", "var", "std", "min", "max", "ddof", "frozen")
    return {name: plain(getattr(stats, name)) for name in (*names, "update_time")}


def spec_text(spec: Spec) -> str:
    """A spec in a few words: its kind, and what differs from the defaults."""
    described = spec_json.to_json(spec, arrays=False)
    defaults = {field.name: field.default for field in fields(spec)}
    told = [f"{key}={value}" for key, value in described.items() if key != "kind" and defaults[key] != value]
    return f"{described['kind']}({', '.join(told)})"


def device_table(device: Device) -> Table:
    """Where a server computes: from which size on, and what a tensor took there and on the processor."""
    table = Table("normalizing", f"on {device.device} ({device.name})", "the largest tried: processor", "device")
    for placing in device.placings:
        largest = placing.trials[-1] if placing.trials else None
        where = "never" if placing.from_bytes is None else f"from {placing.from_bytes:,} bytes"
        table.add_row(
            placing.operation,
            "always" if placing.from_bytes == 0 else where,
            "" if largest is None else f"{largest.cpu_seconds * 1e3:.2f} ms",
            "" if largest is None else f"{largest.device_seconds * 1e3:.2f} ms",
        )
    return table


def infos_table(infos: list[NormalizerInfo]) -> Table:
    """Normalizers, a row each."""
    table = Table("name", "spec", "version", "rows", "batches", "state")
    for info in infos:
        state = "frozen" if info.frozen else ""
        table.add_row(
            info.name, spec_text(info.spec), str(info.version), f"{info.count:,.0f}", f"{info.num_batches:,}", state
        )
    return table


def info_text(info: NormalizerInfo) -> str:
    """A normalizer in two lines."""
    frozen = ", frozen" if info.frozen else ""
    return (
        f"{info.name}: {spec_text(info.spec)}\n"
        f"version {info.version}, {info.count:,.0f} rows in {info.num_batches:,} batches{frozen}, "
        f"changed {info.update_time:%Y-%m-%d %H:%M:%S} UTC"
    )


def stats_table(stats: Stats) -> Table | str:
    """The first features' statistics, a row each."""
    if stats.mean is None or stats.std is None or stats.min is None or stats.max is None:
        return "nothing seen yet"
    rest = len(stats.mean) - SHOWN
    table = Table(
        "feature", "mean", "std", "min", "max", caption=f"and {rest:,} more: --json has all" if rest > 0 else None
    )
    for feature in range(min(SHOWN, len(stats.mean))):
        values = (stats.mean[feature], stats.std[feature], stats.min[feature], stats.max[feature])
        table.add_row(str(feature), *(f"{value:.6g}" for value in values))
    return table
