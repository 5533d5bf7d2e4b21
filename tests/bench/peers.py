"""``python peers.py PEER COUNT WORKERS``: isolated no-ops a second through one library's map.

Each library runs in a process of its own, started alike, that has imported nothing but
it. Every call gets a fresh process: that is what is compared.
"""

import os
import sys
import time
import warnings


def noop(_):
    return None


def flashpool(workers):
    from flashpool.pool import Pool

    pool = Pool(workers)
    return lambda count: list(pool.map(noop, range(count))), pool.shutdown


def executor(workers):
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1)
    return lambda count: list(pool.map(noop, range(count))), pool.shutdown


def multiprocessing_pool(workers):
    import multiprocessing

    pool = multiprocessing.get_context("fork").Pool(workers, maxtasksperchild=1)
    return lambda count: pool.map(noop, range(count), chunksize=1), pool.terminate


def pebble(workers):
    from pebble import ProcessPool

    pool = ProcessPool(max_workers=workers, max_tasks=1)

    def close():
        pool.close()
        pool.join()

    return lambda count: list(pool.map(noop, range(count)).result()), close


#: By name: how to make it, calls to warm it up with.
PEERS = {
    "flashpool": (flashpool, 200),
    "executor": (executor, 4),
    "multiprocessing": (multiprocessing_pool, 20),
    "pebble": (pebble, 2),
}


def main() -> None:
    warnings.simplefilter("ignore")  # newer Pythons warn of forks, which is not our matter
    name, count, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    make, warm_up = PEERS[name]
    run, close = make(workers)
    run(warm_up)
    began = time.perf_counter()
    results = run(count)
    took = time.perf_counter() - began
    close()
    assert results == [None] * count
    print(count / took, flush=True)
    if name == "multiprocessing":
        os._exit(0)


if __name__ == "__main__":
    main()
