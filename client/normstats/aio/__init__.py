"""The asyncio client: the same names as the sync one, awaited.

client = normstats.aio.connect("localhost:50051")
obs = await client.create("robot/obs", normstats.Standardize(17), exist_ok=True)
await obs.update(batch)
"""

from normstats.aio.client import AsyncClient, connect
from normstats.aio.group import AsyncMember
from normstats.aio.normalizer import AsyncNormalizer
from normstats.aio.stream import AsyncUpdateStream

__all__ = ["AsyncClient", "AsyncMember", "AsyncNormalizer", "AsyncUpdateStream", "connect"]
