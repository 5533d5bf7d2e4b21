"""Shared memory made when it is imported."""

import mmap
import multiprocessing

VALUE = multiprocessing.Value("i", 0)
LOCK = multiprocessing.Lock()
MEMORY = mmap.mmap(-1, 4096)


def count() -> list[int]:
    with VALUE.get_lock():
        VALUE.value += 1
    MEMORY[0] += 1
    return [VALUE.value, MEMORY[0]]
