"""Logs: one line an event on stderr, for people or as JSON. What callers send is quoted, so it cannot forge lines."""

from __future__ import annotations

import logging
import sys
import threading

import structlog


def configure(form: str, level: str) -> None:
    """Send all logging to stderr, in one form."""
    if form == "auto":
        form = "human" if sys.stderr.isatty() else "json"
    before: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    after: list[structlog.types.Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if form == "json":
        after += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        after += [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=before, processors=after))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    threading.excepthook = _thread_ended
    for library in ("alembic", "numba"):  # numba logs each step of its compiler at level debug
        logging.getLogger(library).setLevel("WARNING")
    # "serving" and "stopped" say it already; and it warns of each wrong request, of which anybody can send any number.
    logging.getLogger("uvicorn").setLevel("ERROR")


def set_level(level: str) -> None:
    """Change the least level that is logged."""
    logging.getLogger().setLevel(level.upper())


def _thread_ended(ended: threading.ExceptHookArgs) -> None:
    """Log the exception that ended a thread, which Python would print on lines of its own."""
    if ended.exc_type is SystemExit or ended.exc_value is None:
        return
    name = "" if ended.thread is None else ended.thread.name
    logging.getLogger(__name__).critical("thread ended", exc_info=ended.exc_value, extra={"ended": name})
