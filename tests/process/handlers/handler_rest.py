"""A handler of a function that accepts positional arguments only."""

import work

rest = work.rest


def handler(job):
    return rest(**job["input"])
