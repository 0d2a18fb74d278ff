"""Producers that merge into one Redis key with WATCH, GET, MULTI, SET, EXEC, and begin again when another was first.

python redis_watch.py PORT PRODUCERS FEATURES SECONDS
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import threading
from pathlib import Path

import numpy as np
import redis

sys.path.insert(0, str(Path(__file__).parent))
import merging

PROCESSES = 8


def produce(port, count, features, seconds, results):
    moments = merging.moments(features)
    found, retries = [], [0]

    def one():
        connection = redis.Redis("127.0.0.1", port)

        def contribute():
            while True:
                with connection.pipeline() as pipe:
                    try:
                        pipe.watch("state")
                        state = np.frombuffer(pipe.get("state")).reshape(5, features)
                        pipe.multi()
                        pipe.set("state", merging.merged(state, moments).tobytes())
                        pipe.execute()
                        return
                    except redis.WatchError:
                        retries[0] += 1

        found.extend(merging.loop(contribute, 1.0, seconds))

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put((found, retries[0]))


if __name__ == "__main__":
    port, producers, features, seconds = *map(int, sys.argv[1:4]), float(sys.argv[4])
    redis.Redis("127.0.0.1", port).set("state", merging.moments(features).tobytes())
    count = min(PROCESSES, producers)
    shares = [producers // count + (index < producers % count) for index in range(count)]
    results = multiprocessing.Queue()
    processes = [multiprocessing.Process(target=produce, args=(port, n, features, seconds, results)) for n in shares]
    for process in processes:
        process.start()
    both = [results.get() for _ in processes]
    for process in processes:
        process.join()
    latencies = [one for some, _ in both for one in some]
    print(json.dumps(merging.report(latencies, seconds) | {"retries": sum(retries for _, retries in both)}))
