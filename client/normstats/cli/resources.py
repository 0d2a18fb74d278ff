"""Commands on normalizers themselves: ls, show, create, freeze, unfreeze, reset, delete."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from normstats.cli import output, spec_json
from normstats.cli.session import Command, Session, pass_session
from normstats.results import NormalizerInfo


@click.command(cls=Command)
@click.argument("prefix", default="")
@pass_session
def ls(session: Session, prefix: str) -> None:
    """List normalizers whose names begin with PREFIX.

    \b
    normstats ls
    normstats ls robot/ --json
    """
    with session.client() as client:
        infos = client.list(prefix)
        if session.json:
            for info in infos:
                session.emit(output.info_json(info), "")
        else:
            session.emit(None, output.infos_table(list(infos)))


@click.command(cls=Command)
@click.argument("name", required=False)
@click.option("--snapshot", help="The statistics under this tag, instead of the present ones.")
@click.option("--device", is_flag=True, help="Where the server computes, and from which size on for what.")
@pass_session
def show(session: Session, name: str | None, snapshot: str | None, device: bool) -> None:
    """Show a normalizer and its statistics, or the server's device.

    \b
    normstats show robot/obs
    normstats show robot/obs --snapshot 2026-11-20 --json
    normstats show --device
    """
    from normstats.specs import keeps_statistics

    if device == (name is not None):
        raise click.UsageError("show takes a normalizer's NAME, or --device")
    with session.client() as client:
        if name is None:
            found = client.device()
            session.emit(asdict(found), output.device_table(found))
            return
        normalizer = client.get(name)
        stats = normalizer.stats(snapshot=snapshot) if keeps_statistics(normalizer.spec) else None
    described = output.info_json(normalizer.info) | {"stats": None if stats is None else output.stats_json(stats)}
    session.emit(described, output.info_text(normalizer.info))
    if stats is not None and not session.json:
        session.emit(None, output.stats_table(stats))


@click.command(cls=Command)
@click.argument("name")
@click.argument("kind", required=False, type=click.Choice(list(spec_json.KINDS)))
@click.option("--features", type=int, help="How many features, channels, or elements of the last axis.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any argument of the spec; may be repeated."
)
@click.option("--spec", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The spec as JSON.")
@click.option("--exist-ok", is_flag=True, help="Take the one that is there, if its spec is the same.")
@pass_session
def create(
    session: Session,
    name: str,
    kind: str | None,
    features: int | None,
    settings: tuple[str, ...],
    file: Path | None,
    exist_ok: bool,
) -> None:
    """Make a normalizer of a KIND, or of a spec in a file.

    \b
    normstats create robot/obs standardize --features 17 --set clip=10
    normstats create bn1 batch-norm --features 64 --set momentum=0.01
    normstats create ln layer-norm --set normalized_shape=[4,64]
    normstats create robot/obs --spec obs.json          {"kind": "standardize", "num_features": 17}
    """
    if (kind is None) == (file is None):
        raise click.UsageError("give a KIND or --spec FILE")
    if file is not None:
        try:
            spec = spec_json.from_json(json.loads(file.read_text()))
        except json.JSONDecodeError as error:
            raise click.UsageError(f"{file} is no JSON: {error}") from None
    else:
        assert kind is not None, "checked above"
        spec = spec_json.of_options(kind, features, settings)
    with session.client() as client:
        info = client.create(name, spec, exist_ok=exist_ok).info
    session.emit(output.info_json(info), output.info_text(info))


def _told(session: Session, info: NormalizerInfo) -> None:
    session.emit(output.info_json(info), output.info_text(info))


@click.command(cls=Command)
@click.argument("name")
@pass_session
def freeze(session: Session, name: str) -> None:
    """Refuse contributions from now on.

    \b
    normstats freeze robot/obs
    """
    with session.client() as client:
        _told(session, client.get(name).freeze())


@click.command(cls=Command)
@click.argument("name")
@pass_session
def unfreeze(session: Session, name: str) -> None:
    """Take contributions again.

    \b
    normstats unfreeze robot/obs
    """
    with session.client() as client:
        _told(session, client.get(name).unfreeze())


@click.command(cls=Command)
@click.argument("name")
@click.confirmation_option("--yes", prompt="Forget all of its statistics?")
@pass_session
def reset(session: Session, name: str) -> None:
    """Forget all statistics; the version grows.

    \b
    normstats reset robot/obs --yes
    """
    with session.client() as client:
        _told(session, client.get(name).reset())


@click.command(cls=Command)
@click.argument("name")
@click.confirmation_option("--yes", prompt="Delete it and its snapshots?")
@pass_session
def delete(session: Session, name: str) -> None:
    """Delete a normalizer and its snapshots.

    \b
    normstats delete robot/obs --yes
    """
    with session.client() as client:
        client.delete(name)
    session.emit({"deleted": name}, f"{name} is deleted")


COMMANDS = (ls, show, create, freeze, unfreeze, reset, delete)
