"""Globals that calls change."""

import functools

calls = 0
seen: list[str] = []


def count() -> int:
    global calls
    calls += 1
    return calls


@functools.cache
def cached(value: int) -> int:
    return value * 2


class Settings:
    options: dict[str, int] = {}
