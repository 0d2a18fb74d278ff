# Generated from normstats/aio/__init__.py by tools/generate_sync.py: do not edit.
"""The sync client: the same names as the asyncio one.

client = normstats.connect("localhost:50051")
obs = client.create("robot/obs", normstats.Standardize(17), exist_ok=True)
obs.update(batch)
"""

from normstats.sync.client import Client, connect
from normstats.sync.group import Member
from normstats.sync.normalizer import Normalizer
from normstats.sync.stream import UpdateStream

__all__ = ["Client", "Member", "Normalizer", "UpdateStream", "connect"]
