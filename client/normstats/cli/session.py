"""What all commands share: the connection, the form of the output, and how errors are told."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from normstats.sync import Client


@dataclass(slots=True)
class Session:
    """The global options."""

    target: str
    timeout: float
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    json: bool = False

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client of the server."""
        import normstats

        tls = normstats.TLS(self.ca, self.cert, self.key) if self.ca or self.cert else None
        with normstats.connect(self.target, timeout=self.timeout, tls=tls) as client:
            yield client

    def emit(self, value: Any, human: Table | str) -> None:
        """One result: JSON, or for people."""
        if self.json:
            click.echo(json.dumps(value, default=str))
        elif isinstance(human, str):
            click.echo(human)
        else:
            Console().print(human)


class Command(click.Command):
    """A command that takes --json, and tells errors in a sentence."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.add_help_option:
            self.params.append(
                click.Option(
                    ["--json"],
                    is_flag=True,
                    expose_value=False,
                    callback=_use_json,
                    help="Print JSON, one object a line.",
                )
            )

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; what the server or a file said no to is one sentence and exit code 1."""
        from normstats.errors import NormstatsError
        from normstats.files import FileError
        from normstats.specs import InvalidSpec

        try:
            return super().invoke(ctx)
        except NormstatsError as error:
            told = {"code": error.code, "message": error.message, "field": error.field, "reason": error.reason}
        except (FileError, InvalidSpec, OSError) as error:
            told = {"code": "INVALID_ARGUMENT", "message": str(error), "field": "", "reason": ""}
        _say(ctx, told)
        sys.exit(1)


def _use_json(ctx: click.Context, _parameter: click.Parameter, given: bool) -> None:
    if given:
        ctx.find_object(Session).json = True  # type: ignore[union-attr]


def _say(ctx: click.Context, told: dict[str, str]) -> None:
    session = ctx.find_object(Session)
    if session is not None and session.json:
        click.echo(json.dumps({"error": told}), err=True)
    else:
        click.echo(f"normstats: {told['message']}", err=True)


pass_session: Callable[[Callable[..., Any]], Callable[..., Any]] = click.make_pass_decorator(Session)
