"""Ranges of valid limits, as numbers and as words, for requests, options and settings."""

from __future__ import annotations

from typing import Final, TypeGuard

#: Range of memory limits in MiB: an empty worker needs the minimum, and no machine has more than
#: the maximum.
MEMORY_MB_MIN: Final = 16
MEMORY_MB_MAX: Final = 1 << 30
MEMORY_ACCEPTS: Final = f"a whole number of MiB, {MEMORY_MB_MIN} to {MEMORY_MB_MAX}"
#: Most calls of an instance's async methods that may run at once.
CONCURRENCY_MAX: Final = 1000
CONCURRENCY_ACCEPTS: Final = f"a whole number, 1 to {CONCURRENCY_MAX}"
#: The largest seed.
SEED_MAX: Final = (1 << 63) - 1
SEED_ACCEPTS: Final = f"a whole number, 0 to {SEED_MAX}"
#: A year: a larger limit is a mistake, and would overflow timers.
SECONDS_MAX: Final = 366 * 24 * 3600
#: Most calls at once, and most instances: a larger number is a mistake, and would be forked.
WORKERS_MAX: Final = 4096
#: Most loaded zygotes of one environment.
PRELOAD_ZYGOTES_MAX: Final = 1000


def fits_memory(megabytes: int) -> bool:
    """Return whether a value is a valid memory limit."""
    return MEMORY_MB_MIN <= megabytes <= MEMORY_MB_MAX


def fits_seed(seed: int) -> bool:
    """Return whether a value is a valid seed."""
    return 0 <= seed <= SEED_MAX


def fits_concurrency(calls: int) -> bool:
    """Return whether a value is a valid number of concurrent calls in an instance."""
    return 1 <= calls <= CONCURRENCY_MAX


def fits_seconds(seconds: float) -> bool:
    """Return whether a value is a valid time limit."""
    return 0 < seconds <= SECONDS_MAX


def is_variable(name: str, value: str) -> bool:
    """Return whether a process can have this environment variable."""
    return bool(name) and "=" not in name and "\0" not in name and "\0" not in value


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value is a number; True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether a value is a whole number; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)
