"""What every call brings beside its message: who makes it, and the trace that it is part of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from normstats import tracing
from normstats.security import Security


class Bringing:
    """A channel whose calls bring it; asked for at each of them."""

    def __init__(self, channel: Any, security: Security) -> None:
        self._channel = channel
        self._security = security

    def unary_unary(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """As the channel's."""
        return self._with(self._channel.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """As the channel's."""
        return self._with(self._channel.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """As the channel's."""
        return self._with(self._channel.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """As the channel's."""
        return self._with(self._channel.stream_stream(*args, **kwargs))

    def close(self) -> Any:
        """As the channel's."""
        return self._channel.close()

    def _with(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            metadata = self._security.metadata() + tracing.metadata()
            return method(*args, metadata=metadata or None, **kwargs)

        return call
