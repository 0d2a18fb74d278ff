"""A message beyond the server's limit is refused in a sentence that says its size, the limit, and the flag."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import normstats
from tests.server_process import ServerProcess

LIMIT, FEATURES = 1 << 16, 4096


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder: Path = tmp_path_factory.mktemp("small messages")
    process = ServerProcess(folder, "--max-message-bytes", str(LIMIT)).start()
    yield process
    process.stop()


def by_update(obs: normstats.Normalizer) -> None:
    obs.update(np.ones((3, FEATURES)))


def by_stream(obs: normstats.Normalizer) -> None:
    with obs.stream() as stream:
        stream.update(np.ones((3, FEATURES)))


def by_round(obs: normstats.Normalizer) -> None:
    with obs.join("step", 1) as member:
        member.sync(np.ones((3, FEATURES)))


@pytest.mark.parametrize("contribute", [by_update, by_stream, by_round])
def test_the_error_says_the_size_the_limit_and_the_flag(
    server: ServerProcess, contribute: Callable[[normstats.Normalizer], None]
) -> None:
    with normstats.connect(server.target) as client:
        obs = client.create("wide", normstats.Standardize(FEATURES), exist_ok=True)
        began = time.monotonic()
        with pytest.raises(normstats.ResourceExhausted) as caught:
            contribute(obs)
        assert time.monotonic() - began < 10, "it is not tried again"
        error = caught.value
        assert (error.reason, error.metadata["max_message_bytes"]) == ("MESSAGE_TOO_LARGE", str(LIMIT))
        size = int(error.metadata["size_bytes"])
        assert size > 4 * 8 * FEATURES
        assert str(error) == (
            f"the request takes {size} bytes, and the server accepts {LIMIT} in a message; send fewer features or rows "
            f"at a time, or start the server with --max-message-bytes {size}"
        )
        assert obs.stats().num_batches == 0
