"""What an end says of itself."""

from __future__ import annotations

from flashpool.pool.workers import outcomes


def test_what_was_measured_is_never_told_as_within_the_limit():
    """It was found above the limit by less than a megabyte."""
    stop = outcomes.used_too_much(100, (100 << 20) + 4096)
    assert stop.details["measured_mb"] == 101
    assert "used 101 MB and may use 100 MB" in stop.message
