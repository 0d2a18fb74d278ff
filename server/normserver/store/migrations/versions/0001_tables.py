"""Normalizers, their statistics, producers' windows and the clock that ages them, snapshots, leases."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "normalizers",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("spec", sa.LargeBinary, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("frozen", sa.Boolean, nullable=False),
        sa.Column("num_rows", sa.Double, nullable=False),
        sa.Column("num_batches", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.Column("creator", sa.String(206), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger, nullable=False),
        sa.Column("checksum", sa.BigInteger, nullable=False),
        sa.Column("spec_checksum", sa.BigInteger, nullable=False),
        sa.Column("parameters", sa.LargeBinary, nullable=True),
    )
    op.create_index("ix_normalizers_creator", "normalizers", ["creator", "stored_bytes"])
    op.create_table(
        "statistics",
        sa.Column(
            "normalizer", sa.String(200), sa.ForeignKey("normalizers.name", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("tag", sa.String(100), primary_key=True),
        sa.Column("start", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("running", sa.LargeBinary, nullable=False),
        sa.Column("checksum", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "producers",
        sa.Column("identity", sa.String(206), primary_key=True),
        sa.Column("producer_id", sa.LargeBinary(16), primary_key=True),
        sa.Column("highest", sa.BigInteger, nullable=False),
        sa.Column("seen", sa.LargeBinary(128), nullable=False),
        sa.Column("used_at", sa.Double, nullable=False),
        sa.Column("checksum", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_producers_used_at", "producers", ["used_at"])
    store = op.create_table(
        "store",
        sa.Column("uid", sa.String(32), primary_key=True),
        sa.Column("served_seconds", sa.Double, nullable=False),
    )
    op.bulk_insert(store, [{"uid": secrets.token_hex(16), "served_seconds": 0.0}])
    op.create_table(
        "snapshots",
        sa.Column(
            "normalizer", sa.String(200), sa.ForeignKey("normalizers.name", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("tag", sa.String(100), primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("num_rows", sa.Double, nullable=False),
        sa.Column("num_batches", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("creator", sa.String(206), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger, nullable=False),
        sa.Column("checksum", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_snapshots_creator", "snapshots", ["creator", "stored_bytes"])
    op.create_table(
        "leases",
        sa.Column("group_name", sa.String(200), primary_key=True),
        sa.Column("owner", sa.String(300), nullable=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
    )
    if op.get_context().dialect.name == "postgresql":
        # Statistics do not compress; PostgreSQL tries, for milliseconds, each time that they are written.
        op.execute("ALTER TABLE statistics ALTER COLUMN running SET STORAGE EXTERNAL")
        op.execute("ALTER TABLE normalizers ALTER COLUMN parameters SET STORAGE EXTERNAL")
