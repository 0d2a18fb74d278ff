"""One Ray actor that merges what producers in other processes send it. In memory: what it acknowledges is not durable.

python ray_actor.py PRODUCERS FEATURES SECONDS
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import ray

sys.path.insert(0, str(Path(__file__).parent))
import merging

PROCESSES = 8


@ray.remote(num_cpus=0)
class Aggregator:
    def __init__(self, first):
        self.state = first

    def merge(self, moments):
        self.state = merging.merged(self.state, moments)
        return float(self.state[0, 0])


@ray.remote(num_cpus=0)
class Producers:
    def run(self, aggregator, count, features, seconds):
        moments = merging.moments(features)
        found = []

        def produce():
            found.extend(merging.loop(lambda: ray.get(aggregator.merge.remote(moments)), 1.0, seconds))

        threads = [threading.Thread(target=produce) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


if __name__ == "__main__":
    producers, features, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    here = str(Path(__file__).parent)
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _node_ip_address="127.0.0.1",
        runtime_env={"env_vars": {"PYTHONPATH": here}},
    )
    aggregator = Aggregator.remote(merging.moments(features))
    processes = min(PROCESSES, producers)
    shares = [producers // processes + (index < producers % processes) for index in range(processes)]
    workers = [Producers.remote() for _ in shares]
    ray.get([worker.run.remote(aggregator, 1, features, 0.1) for worker in workers])
    found = ray.get(
        [worker.run.remote(aggregator, n, features, seconds) for worker, n in zip(workers, shares, strict=True)]
    )
    print(json.dumps(merging.report([one for some in found for one in some], seconds)))
    ray.shutdown()
