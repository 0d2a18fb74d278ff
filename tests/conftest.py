from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import grpc
import pytest

from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from tests.server_process import ServerProcess


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that the whole session shares; tests take names of their own (`name`)."""
    process = ServerProcess(tmp_path_factory.mktemp("server"), "--reflection").start()
    yield process
    process.stop()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that this test may kill. Not started yet."""
    process = ServerProcess(tmp_path)
    yield process
    process.stop()


@pytest.fixture
def name() -> str:
    """A normalizer's name that no other test has."""
    return f"test/{uuid4().hex}"


@pytest.fixture
def stub(server: ServerProcess) -> Iterator[NormalizationServiceStub]:
    """The contract itself, without the client."""
    with grpc.insecure_channel(server.target) as channel:
        yield NormalizationServiceStub(channel)


@pytest.fixture(scope="session", autouse=True)
def _no_postgres_left() -> Iterator[None]:
    """The cluster that tests share ends with them."""
    yield
    if "tests.postgres" in sys.modules:
        sys.modules["tests.postgres"].stop_shared()
