"""A handler of a function that takes positional arguments alone."""

import work

rest = work.rest


def handler(job):
    return rest(**job["input"])
