"""python -m normserver: what `normstats serve` runs."""

from __future__ import annotations

import signal
import sys
from functools import partial

from pydantic import ValidationError

from normserver import addresses, config, logs, polling, processes


def main(arguments: list[str] | None = None) -> int:
    """Serve; returns the exit code: 0 stopped as told, 1 could not serve, 2 a setting is wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the server can reload
    try:
        settings = config.load(arguments)
    except ValidationError as error:
        for problem in error.errors():
            setting = ".".join(str(part) for part in problem["loc"]) or "settings"
            received = "" if problem["type"] == "value_error" else f"; received {problem['input']!r}"
            print(
                f"normstats serve: {setting}: {problem['msg'].removeprefix('Value error, ')}{received}", file=sys.stderr
            )
        return 2
    except (OSError, ValueError) as error:
        print(f"normstats serve: {error}", file=sys.stderr)
        return 2
    try:
        addresses.check(settings)
    except OSError as error:
        print(f"normstats serve: {error}", file=sys.stderr)
        return 1
    logs.configure(settings.log_format, settings.log_level)
    if settings.processes > 1:
        return processes.supervise(settings, arguments)
    polling.choose()
    # Only now: torch takes a second to import, and --help should not wait for it.
    from normserver.app import serve
    from normserver.store.base import StoreError, StoreUnavailable
    from normserver.supervisor import CoreTaskEnded

    try:
        serve(settings, partial(config.load, arguments))
    except (
        CoreTaskEnded,
        StoreError,
        StoreUnavailable,
        OSError,
        RuntimeError,
        ValueError,
        ModuleNotFoundError,
    ) as error:
        print(f"normstats serve: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
