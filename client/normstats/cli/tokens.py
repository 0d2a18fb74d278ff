"""Commands on tokens: token new, token ls. They work on the file that `serve --credentials` reads, without a server."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from normstats.cli.session import Command, Session, pass_session

# What a token begins with, so that one that was left in a file or a log is found by those who look for such.
_BEGINNING = "normstats_"
_NAME = re.compile(r"[A-Za-z0-9._@/-]{1,100}")
_PREFIX = re.compile(r"[A-Za-z0-9._/-]{0,200}")


@click.group(short_help="Make tokens, and tell who has them.")
def token() -> None:
    """Make tokens for `serve --credentials FILE`, and tell who has them. The file holds their hashes alone.

    \b
    normstats token new --scope write --prefix robot/ --file credentials.toml
    normstats token ls credentials.toml
    """


@token.command(cls=Command)
@click.option("--scope", type=click.Choice(["read", "write", "admin"]), required=True, help="What may be done.")
@click.option(
    "--prefix",
    "prefixes",
    multiple=True,
    help="To names that begin so: robot/. May be given again. Default: all names.",
)
@click.option("--name", help="Who will use it: in logs and errors. Default: token- and some letters.")
@click.option("--days", type=click.FloatRange(min=0, min_open=True), help="For how long. Default: until it is deleted.")
@click.option("--calls-per-second", type=click.FloatRange(min=0), help="How many calls it may make.")
@click.option("--bytes-per-second", type=click.FloatRange(min=0), help="How much it may send.")
@click.option("--normalizers", type=click.IntRange(min=0), help="How many normalizers it may have made.")
@click.option(
    "--stored-bytes", type=click.IntRange(min=0), help="What they and its snapshots may take: 64 bytes a feature."
)
@click.option(
    "--producers-per-hour", type=click.IntRange(min=0), help="How many new producer ids it may bring in an hour."
)
@click.option(
    "--file", type=click.Path(dir_okay=False, path_type=Path), help="Add it to this file of credentials, and make that."
)
@pass_session
def new(
    session: Session,
    scope: str,
    prefixes: tuple[str, ...],
    name: str | None,
    days: float | None,
    file: Path | None,
    **limits: float | None,
) -> None:
    """Make a token: it is printed once, and kept nowhere but with whom you give it to.

    read: normalize, and see statistics. write: contribute too, make normalizers and snapshots. admin: change, freeze,
    reset, restore and delete them too.

    \b
    normstats token new --scope write --prefix robot/ --name robots --file credentials.toml
    normstats token new --scope read                  prints what to add to the file, too
    NORMSTATS_TOKEN=normstats_... normstats show robot/obs
    """
    name = name or f"token-{secrets.token_hex(3)}"
    _check("--name", name, _NAME)
    for prefix in prefixes:
        _check("--prefix", prefix, _PREFIX)
    if file is not None and any(one.get("name") == name for one in _identities(file)):
        raise click.UsageError(f"--name {name}: {file} has one of that name already")
    value = _BEGINNING + secrets.token_urlsafe(32)
    stanza = _stanza(name, scope, prefixes or ("",), value, days, limits)
    if file is not None:
        _append(file, stanza)
    told = f"{value}\n\n{name} may {scope} {', '.join(prefixes) or 'everything'}; this token is not shown again."
    told += f" {file} has its hash." if file is not None else f" Add to the file of credentials:\n\n{stanza}"
    session.emit({"token": value, "name": name, "toml": stanza}, told.rstrip())


@token.command(cls=Command)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@pass_session
def ls(session: Session, file: Path) -> None:
    """Tell who is in a FILE of credentials, and what each may do.

    \b
    normstats token ls credentials.toml
    """
    table = Table("name", "may", "tokens", "certificates", "expires")
    for one in _identities(file):
        grants = [f"{grant.get('scope')} {grant.get('prefix') or 'everything'}" for grant in one.get("grants", ())]
        tokens, certificates = len(one.get("tokens", ())), list(one.get("certificates", ()))
        expires = str(one.get("expires", ""))
        table.add_row(str(one.get("name")), "\n".join(grants), str(tokens), "\n".join(certificates), expires)
        if session.json:
            session.emit(
                {
                    "name": one.get("name"),
                    "grants": one.get("grants", []),
                    "tokens": tokens,
                    "certificates": certificates,
                    "expires": expires or None,
                },
                "",
            )
    if not session.json:
        session.emit(None, table)


def _identities(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    try:
        found: list[dict[str, Any]] = tomllib.loads(file.read_text(encoding="utf-8")).get("identity", [])
    except tomllib.TOMLDecodeError as error:
        raise click.UsageError(f"{file}: {error}") from None
    return found


def _stanza(
    name: str, scope: str, prefixes: tuple[str, ...], value: str, days: float | None, limits: dict[str, float | None]
) -> str:
    """What the file says of an identity. Names and prefixes were checked: nothing is to be escaped."""
    grants = ", ".join(f'{{ scope = "{scope}", prefix = "{prefix}" }}' for prefix in prefixes)
    lines = [
        "[[identity]]",
        f'name = "{name}"',
        f"grants = [{grants}]",
        f'tokens = ["sha256:{hashlib.sha256(value.encode()).hexdigest()}"]',
    ]
    if days is not None:
        lines.append(f"expires = {datetime.now(UTC) + timedelta(days=days):%Y-%m-%dT%H:%M:%SZ}")
    lines += [f"{limit} = {amount:g}" for limit, amount in limits.items() if amount]
    return "\n".join(lines) + "\n"


def _append(file: Path, stanza: str) -> None:
    """Add to the file: it is there as before, or whole."""
    before = file.read_text(encoding="utf-8").rstrip("\n") if file.exists() else ""
    mode = file.stat().st_mode & 0o777 if file.exists() else 0o600
    fresh = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "w", encoding="utf-8") as out:
        out.write(f"{before}\n\n{stanza}" if before else stanza)
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(file)


def _check(option: str, value: str, form: re.Pattern[str]) -> None:
    if not form.fullmatch(value):
        raise click.UsageError(f"{option} {value!r}: expected letters, digits, '.', '_', '-' and '/' only")


COMMANDS = (token,)
