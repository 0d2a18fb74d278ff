from __future__ import annotations

import pytest

from tests.install.index import Index


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """An index of stubs that the tests share; none changes it."""
    return Index(tmp_path_factory.mktemp("index"))
