"""``python -I -S floor.py SECONDS``: what the lightest isolated call could cost in Python.

A bare interpreter forks, the child writes one byte to a pipe and exits, the parent reads
the byte and reaps the child; nothing else. Prints rate a second, median seconds of one,
CPU microseconds and page faults of one child. Imports next to nothing, on purpose: each
page this process holds makes its forks slower.
"""

import os
import sys
import time


def main() -> None:
    seconds = float(sys.argv[1])
    near, far = os.pipe()
    usage = [0.0, 0]
    took = []
    for _ in range(20):
        once(near, far)
    began = now = time.perf_counter()
    while now - began < seconds:
        child = once(near, far)
        usage[0] += child.ru_utime + child.ru_stime
        usage[1] += child.ru_minflt
        before, now = now, time.perf_counter()
        took.append(now - before)
    count = len(took)
    print(count / (now - began), sorted(took)[count // 2], usage[0] / count * 1e6, usage[1] / count)


def once(near, far):
    pid = os.fork()
    if pid == 0:
        os.write(far, b"x")
        os._exit(0)
    os.read(near, 1)
    return os.wait4(pid, 0)[2]


main()
