"""Commands on snapshots: snapshot, snapshots, delete-snapshot, compare."""

from __future__ import annotations

import click
from rich.table import Table

from normstats.cli import output
from normstats.cli.session import Command, Session, pass_session


@click.command(cls=Command)
@click.argument("name")
@click.argument("tag")
@click.option(
    "--keep-last", type=click.IntRange(min=1), help="Delete the oldest snapshots beyond so many, this included."
)
@pass_session
def snapshot(session: Session, name: str, tag: str, keep_last: int | None) -> None:
    """Keep the present statistics under a TAG.

    \b
    normstats snapshot robot/obs 2026-11-20
    normstats snapshot robot/obs $(date +%F) --keep-last 7
    """
    with session.client() as client:
        kept = client.get(name).snapshot(tag, keep_last=keep_last)
    session.emit(output.snapshot_json(kept), f"{name} at version {kept.version} is kept as {tag}")


@click.command(cls=Command)
@click.argument("name")
@pass_session
def snapshots(session: Session, name: str) -> None:
    """List a normalizer's snapshots.

    \b
    normstats snapshots robot/obs
    """
    with session.client() as client:
        found = list(client.get(name).snapshots())
    table = Table("tag", "version", "rows", "batches", "taken (UTC)")
    for kept in found:
        if session.json:
            session.emit(output.snapshot_json(kept), "")
        taken = f"{kept.create_time:%Y-%m-%d %H:%M:%S}"
        table.add_row(kept.tag, str(kept.version), f"{kept.count:,.0f}", f"{kept.num_batches:,}", taken)
    if not session.json:
        session.emit(None, table)


@click.command("delete-snapshot", cls=Command)
@click.argument("name")
@click.argument("tag")
@pass_session
def delete_snapshot(session: Session, name: str, tag: str) -> None:
    """Delete a snapshot.

    \b
    normstats delete-snapshot robot/obs 2026-11-20
    """
    with session.client() as client:
        client.get(name).delete_snapshot(tag)
    session.emit({"deleted": tag, "normalizer": name}, f"snapshot {tag} of {name} is deleted")


@click.command(cls=Command)
@click.argument("name")
@click.argument("base")
@click.argument("tag", required=False)
@click.option("--limit", default=20, show_default=True, help="How many features, the most drifted first; 0 for all.")
@pass_session
def compare(session: Session, name: str, base: str, tag: str | None, limit: int) -> None:
    """Tell how far each feature moved from snapshot BASE to snapshot TAG, or to the present.

    \b
    normstats compare robot/obs 2026-11-01
    normstats compare robot/obs 2026-11-01 2026-11-20 --limit 5 --json
    """
    with session.client() as client:
        drift = client.get(name).compare(base, tag, limit=limit)
    table = Table("feature", "mean shift (std)", "variance ratio", "symmetric KL (nats)")
    rows = zip(drift.feature, drift.mean_shift, drift.var_ratio, drift.symmetric_kl, strict=True)
    features = [
        {"feature": int(feature), "mean_shift": float(shift), "var_ratio": float(ratio), "symmetric_kl": float(kl)}
        for feature, shift, ratio, kl in rows
    ]
    for one in features:
        table.add_row(str(one["feature"]), *(f"{one[key]:+.4g}" for key in ("mean_shift", "var_ratio", "symmetric_kl")))
    session.emit({"base_version": drift.base_version, "version": drift.version, "features": features}, table)


COMMANDS = (snapshot, snapshots, delete_snapshot, compare)
