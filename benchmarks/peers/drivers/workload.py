"""What every peer is given to do, and what it must answer: layer norm of float32 over 1,024 features."""

from __future__ import annotations

import numpy as np

FEATURES = 1024
EPS = 1e-5
WEIGHT = np.linspace(0.5, 1.5, FEATURES, dtype=np.float32)
BIAS = np.linspace(-1, 1, FEATURES, dtype=np.float32)
TOLERANCE = 1e-4


def payload(size):
    """An array of so many bytes."""
    return np.random.default_rng(0).standard_normal((size // 4 // FEATURES, FEATURES), dtype=np.float32)


def verify(size, y):
    """That this is the layer norm of the payload of so many bytes."""
    x = payload(size).astype(np.float64)
    centered = x - x.mean(1, keepdims=True)
    expected = centered / np.sqrt((centered**2).mean(1, keepdims=True) + EPS) * WEIGHT + BIAS
    np.testing.assert_allclose(y, expected, rtol=TOLERANCE, atol=TOLERANCE)


def verify_echo(size, y):
    """That these are the bytes of the payload."""
    if bytes(y) != payload(size).tobytes():
        raise AssertionError(f"the echo of {size} bytes is not what was sent")
