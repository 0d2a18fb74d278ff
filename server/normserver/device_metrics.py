"""What the server computes on, for Prometheus: its name, and of a GPU its memory and how busy it is."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from importlib.util import find_spec

import torch

from normserver.metrics import Metrics

Readings = Mapping[str, Callable[[], float]]


def name_of(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def watch(metrics: Metrics, device: torch.device) -> None:
    """Tell of a device. How busy a GPU is tells NVML, if nvidia-ml-py is installed."""
    metrics.watch_device(name_of(device), str(device), _readings(device) if device.type == "cuda" else {})


def _readings(device: torch.device) -> Readings:
    def memory_bytes() -> float:
        free, total = torch.cuda.mem_get_info(device)
        return total - free

    readings: dict[str, Callable[[], float]] = {
        "memory_bytes": memory_bytes,
        "memory_limit_bytes": lambda: torch.cuda.mem_get_info(device)[1],
    }
    if find_spec("pynvml") is not None:
        readings["busy_ratio"] = lambda: torch.cuda.utilization(device) / 100
    return readings
