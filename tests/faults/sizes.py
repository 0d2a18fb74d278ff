"""Each promise is tested twice: in a few seconds by `make test`, and at its full size by `make faults`."""

from __future__ import annotations

from typing import Any

import pytest


def sized(argument: str, small: Any, full: Any) -> pytest.MarkDecorator:
    """Run a test with the small value, and with the full one where `faults` is asked for."""
    return pytest.mark.parametrize(
        argument, [pytest.param(small, id="small"), pytest.param(full, id="full", marks=pytest.mark.faults)]
    )
