"""normstats serve: becomes the server's own process."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import NoReturn

import click


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
    short_help="Run a server: serve --help tells its settings.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def serve(arguments: tuple[str, ...]) -> None:
    """Run a server."""
    become("normserver", *arguments)


def become(module: str, *arguments: str) -> NoReturn:
    """Go on as a module of the server's, in this very process: nothing here imports it."""
    if find_spec("torch") is None or find_spec("sqlalchemy") is None:
        click.echo("normstats: the server needs more: pip install 'normstats[server]'", err=True)
        sys.exit(1)
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
