"""The commands, put together."""

from __future__ import annotations

import click

from normstats.channel import DEFAULT_TARGET, DEFAULT_TIMEOUT
from normstats.cli import data, resources, serve, snapshots, tokens, top, transfer, upkeep
from normstats.cli.session import Session


@click.group(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "NORMSTATS"})
@click.option("--target", default=DEFAULT_TARGET, show_default=True, help="HOST:PORT of the server.")
@click.option("--timeout", default=DEFAULT_TIMEOUT, show_default=True, type=float, help="Seconds that a call may take.")
@click.option("--ca", type=click.Path(exists=True), help="Talk TLS; PEM file of who issues the server's certificate.")
@click.option("--cert", type=click.Path(exists=True), help="PEM file of your own certificate, where the server asks.")
@click.option("--key", type=click.Path(exists=True), help="PEM file of its key.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
@click.version_option(package_name="normstats")
@click.pass_context
def cli(
    ctx: click.Context,
    target: str,
    timeout: float,
    ca: str | None,
    cert: str | None,
    key: str | None,
    as_json: bool,
) -> None:
    """Merge a fleet's batch statistics exactly, keep them durably, and normalize by them.

    \b
    normstats serve                                     a server on this machine
    normstats create robot/obs standardize --features 17
    normstats update robot/obs observations.parquet     contribute a file, in chunks
    normstats show robot/obs
    normstats normalize robot/obs new.npy -o out.npy
    normstats top                                       what the server is doing, live

    Each option is a variable too: NORMSTATS_TARGET, NORMSTATS_TIMEOUT. Your token is NORMSTATS_TOKEN alone: what
    stands in a command line is seen by everybody on the machine.
    """
    ctx.obj = Session(target, timeout, ca, cert, key, as_json)


for command in (
    serve.serve,
    *resources.COMMANDS,
    *data.COMMANDS,
    *snapshots.COMMANDS,
    *transfer.COMMANDS,
    *tokens.COMMANDS,
    *upkeep.COMMANDS,
    *top.COMMANDS,
):
    cli.add_command(command)
