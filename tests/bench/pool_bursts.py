"""``python pool_bursts.py WORKERS``: bursts of isolated no-ops through `Pool.map`, when told.

It runs in the interpreter whose flashpool is measured, and uses nothing else. A line on its
input says how many calls to make; the seconds they took are the answer. It leaves when its
input ends.
"""

import sys
import time

from flashpool.pool import Pool


def noop(_):
    return None


def main() -> None:
    with Pool(int(sys.argv[1])) as pool:
        print("ready", flush=True)
        for line in sys.stdin:
            count = int(line)
            began = time.perf_counter()
            results = list(pool.map(noop, range(count)))
            took = time.perf_counter() - began
            assert results == [None] * count
            print(took, flush=True)


if __name__ == "__main__":
    main()
