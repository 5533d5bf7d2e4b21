"""Pools over every backend; the supervisor with every start method of workers."""

from functools import partial

from flashpool.pool import Pool
from support.thread_backend import ThreadPool

MAKERS = {
    "fork": partial(Pool, start_method="fork"),
    "spawn": partial(Pool, start_method="spawn"),
    "threads": ThreadPool,
}
