"""Nobody counts under another's name."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

import normstats
from normstats.producer import ID_BYTES, Producer
from tests.server_process import ServerProcess

CAN_FORK = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")


def test_sequences_count_from_1_and_are_given_once_whatever_the_threads() -> None:
    producer = Producer()
    with ThreadPoolExecutor(8) as threads:
        given = list(threads.map(lambda _: producer.next_sequence(), range(1000)))
    assert sorted(given) == list(range(1, 1001))


def test_an_id_is_drawn_for_each_unless_it_is_given() -> None:
    drawn = {Producer().id for _ in range(100)}
    assert len(drawn) == 100
    assert {len(one) for one in drawn} == {ID_BYTES}
    assert Producer(b"a" * ID_BYTES).id == b"a" * ID_BYTES


@CAN_FORK
def test_a_forked_process_is_a_producer_of_its_own() -> None:
    # In a process of its own: this one may have threads of gRPC's, which do not survive a fork.
    code = """
import os
from normstats.producer import Producer
producer = Producer()
producer.next_sequence()
read, write = os.pipe()
if not os.fork():
    os.write(write, producer.id + bytes([producer.next_sequence()]))
    os._exit(0)
other = os.read(read, 64)
print(other[:-1] != producer.id, other[-1], producer.next_sequence())
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert printed.stdout.split() == ["True", "1", "2"]


@CAN_FORK
def test_forked_workers_of_one_client_are_all_counted(server: ServerProcess, name: str) -> None:
    code = f"""
import multiprocessing, normstats
client = normstats.connect({server.target!r}, timeout=30)
def work(value):
    return client.update({{{name!r}: [[float(value)]]}})[{name!r}].duplicate
with multiprocessing.get_context("fork").Pool(4) as pool:
    print(pool.map_async(work, range(4), chunksize=1).get(60))
"""
    with normstats.connect(server.target) as client:
        ours = client.create(name, normstats.Standardize(1))
        printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=90)
        assert (printed.stdout.strip(), ours.stats().count) == ("[False, False, False, False]", 4)
