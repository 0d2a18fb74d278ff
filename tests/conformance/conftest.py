"""Every way that a tensor can take: the same tests run on each, as none of them may change a result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import normstats
from normstats import chunking
from normstats.sync import normalizing
from tests.server_process import ServerProcess

PATHS = ("one message", "chunks", "several in a message", "shared memory")


@pytest.fixture(scope="session")
def sharing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path_factory.mktemp("sharing"), "--shared-memory", by_socket=True).start()
    yield process
    process.stop()


@pytest.fixture(scope="module", params=PATHS)
def client(request: pytest.FixtureRequest) -> Iterator[normstats.Client]:
    """A client all of whose normalizations take one path, as far as it can be taken."""
    shares = request.param == "shared memory"
    server: ServerProcess = request.getfixturevalue("sharing" if shares else "server")
    with pytest.MonkeyPatch.context() as patch, normstats.connect(server.target, shared_memory=shares) as client:
        if shares:
            patch.setattr(normalizing, "_LARGE_BYTES", 0)
        if request.param == "chunks":
            patch.setattr(chunking, "CHUNK_BYTES", 256)
            patch.setattr(chunking, "MAX_TRAIN_BYTES", 256)
        if request.param == "several in a message":
            patch.setattr(client._connection, "normalize", lambda *call: several(client, *call))
        yield client


def several(client: normstats.Client, request: Any, timeout: float | None) -> Any:
    """The same tensor three times in a message; in TRAIN mode the second and third are retries."""
    replies = client._connection.normalize_many([request] * 3, timeout)
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
        assert reply.data == replies[0].data
    return replies[0]
