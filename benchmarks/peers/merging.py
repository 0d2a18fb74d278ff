"""What the peers merge: count, mean, m2, min and max of features, by Chan, Golub and LeVeque, in float64."""

from __future__ import annotations

import time

import numpy as np

ROWS = 8


def moments(features):
    """Of one batch: 5 x features."""
    x = np.random.default_rng(0).normal(size=(ROWS, features))
    mean = x.mean(0)
    return np.stack([np.full(features, float(ROWS)), mean, ((x - mean) ** 2).sum(0), x.min(0), x.max(0)])


def merged(a, b):
    """Both together."""
    count = a[0] + b[0]
    delta = b[1] - a[1]
    mean = a[1] + delta * b[0] / count
    m2 = a[2] + b[2] + delta * delta * a[0] * b[0] / count
    return np.stack([count, mean, m2, np.minimum(a[3], b[3]), np.maximum(a[4], b[4])])


def loop(contribute, warmup, seconds):
    """Contribute again and again; returns how long each took, in seconds, after the warm-up."""
    begin = time.perf_counter() + warmup
    latencies = []
    while (started := time.perf_counter()) < begin + seconds:
        contribute()
        if started >= begin:
            latencies.append(time.perf_counter() - started)
    return latencies


def report(latencies, seconds):
    """The figures of all producers together."""
    p50, p99 = np.percentile(latencies, (50, 99)) * 1e3 if len(latencies) else (None, None)
    return {"per_second": len(latencies) / seconds, "p50_ms": p50, "p99_ms": p99}
