"""How a driver is told what to do: a command in JSON on each line of stdin, its figures in JSON on a line of stdout.

{"bytes": 4096, "callers": 16, "seconds": 1.0, "shared_memory": false} gives {"calls": 9481, "seconds": 1.0004}, or
{"error": "..."}. With 0 seconds each caller calls once. The first answer of each kind of workload is verified.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import threading
import time


async def drive(prepare, verify):
    """Obey until stdin ends.

    prepare(bytes, callers, shared_memory) gives a function for each caller: callers are tasks if those are coroutine
    functions, and threads otherwise. verify(bytes, answer) raises if the answer is wrong.
    """
    answers, prepared = _answers(), {}
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            answer = await _obey(json.loads(line), prepared, prepare, verify)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".replace("\n", " ")[:300]}
        print(json.dumps(answer), file=answers, flush=True)


def _answers():
    """Where answers are written: stdout, while what libraries print there goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


async def _obey(command, prepared, prepare, verify):
    workload = command["bytes"], command["callers"], command["shared_memory"]
    if workload not in prepared:
        prepared[workload] = prepare(*workload)
        first = prepared[workload][0]
        verify(command["bytes"], await first() if inspect.iscoroutinefunction(first) else first())
    calls = prepared[workload]
    if inspect.iscoroutinefunction(calls[0]):
        return await _tasks(calls, command["seconds"])
    return await asyncio.to_thread(_threads, calls, command["seconds"])


async def _tasks(calls, seconds):
    counts = [0] * len(calls)
    begun = time.perf_counter()

    async def caller(index):
        while counts[index] == 0 or time.perf_counter() < begun + seconds:
            await calls[index]()
            counts[index] += 1

    await asyncio.gather(*(caller(index) for index in range(len(calls))))
    return {"calls": sum(counts), "seconds": time.perf_counter() - begun}


def _threads(calls, seconds):
    counts, errors = [0] * len(calls), []
    begun = time.perf_counter()

    def caller(index):
        try:
            while counts[index] == 0 or time.perf_counter() < begun + seconds:
                calls[index]()
                counts[index] += 1
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=caller, args=(index,)) for index in range(1, len(calls))]
    for thread in threads:
        thread.start()
    caller(0)
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return {"calls": sum(counts), "seconds": time.perf_counter() - begun}
