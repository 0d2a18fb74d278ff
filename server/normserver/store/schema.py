"""The tables, the same in every database, as the newest of `migrations` leaves them."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
)

from normserver.names import MAX_NAME, MAX_TAG
from normserver.producers import MAX_IDENTITY

metadata = MetaData()

# `spec` is a normstats.v1.Spec without arrays; `parameters` is the whole Spec where it has some, else NULL. Times are
# seconds since 1970. `num_rows` and `num_batches` repeat what statistics say, so that lists need not read those.
# `spec_checksum` is the CRC-32 of `spec` and `parameters`, `checksum` that of the other columns.
# `parameters` is the last column: SQLite reads a row up to the last column that is asked for.
normalizers = Table(
    "normalizers",
    metadata,
    Column("name", String(MAX_NAME), primary_key=True),
    Column("spec", LargeBinary, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("frozen", Boolean, nullable=False),
    Column("num_rows", Double, nullable=False),
    Column("num_batches", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("creator", String(MAX_IDENTITY), nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),
    Column("checksum", BigInteger, nullable=False),
    Column("spec_checksum", BigInteger, nullable=False),
    Column("parameters", LargeBinary, nullable=True),
    Index("ix_normalizers_creator", "creator", "stored_bytes"),
)

# Statistics, in pieces of PIECE_FEATURES features: `running` is a normstats.v1.RunningState of those that begin at
# `start`, `checksum` its CRC-32. `tag` is a snapshot's, or empty for the present. Where there is no row, the statistics
# are those that the spec gives at the start.
statistics = Table(
    "statistics",
    metadata,
    Column("normalizer", ForeignKey(normalizers.c.name, ondelete="CASCADE"), primary_key=True),
    Column("tag", String(MAX_TAG), primary_key=True),
    Column("start", BigInteger, primary_key=True, autoincrement=False),
    Column("running", LargeBinary, nullable=False),
    Column("checksum", BigInteger, nullable=False),
)

# The replay windows of each identity's producers. `seen` has the window's bits: bit i stands for highest - i;
# `checksum` is the CRC-32 of all that a row says.
# In SQLite the rows are kept in the primary key's own tree: a second one would hold identity and id once more.
producers = Table(
    "producers",
    metadata,
    Column("identity", String(MAX_IDENTITY), primary_key=True),
    Column("producer_id", LargeBinary(16), primary_key=True),
    Column("highest", BigInteger, nullable=False),
    Column("seen", LargeBinary(128), nullable=False),
    Column("used_at", Double, nullable=False, index=True),
    Column("checksum", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# One row: which store this is, and the newest reading of the retention clock, by which `used_at` above is measured.
store = Table(
    "store",
    metadata,
    Column("uid", String(32), primary_key=True),
    Column("served_seconds", Double, nullable=False),
)

# `checksum` is the CRC-32 of all that a row says.
snapshots = Table(
    "snapshots",
    metadata,
    Column("normalizer", ForeignKey(normalizers.c.name, ondelete="CASCADE"), primary_key=True),
    Column("tag", String(MAX_TAG), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("num_rows", Double, nullable=False),
    Column("num_batches", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("creator", String(MAX_IDENTITY), nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),
    Column("checksum", BigInteger, nullable=False),
    Index("ix_snapshots_creator", "creator", "stored_bytes"),
)

# Which server runs a group's rounds; every grant to another owner has the next token. Times are the database's.
leases = Table(
    "leases",
    metadata,
    Column("group_name", String(MAX_NAME), primary_key=True),
    Column("owner", String(300), nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("expires_at", Double, nullable=False),
)
