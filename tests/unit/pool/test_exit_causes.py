"""Explanations of why a process died."""

from __future__ import annotations

import signal

import pytest

from flashpool.pool import exit_causes
from flashpool.pool.exit_causes import OomKill, Stop


def of(status, **given):
    known = {"stop": None, "oom": None, "output_tail": "", "peak_mb": None, **given}
    return exit_causes.of_death(status, **known)


def test_a_signal_is_named_and_explained():
    cause = of(int(signal.SIGSEGV), output_tail="Fatal Python error")
    assert cause.error_type == "WorkerCrashed"
    assert "SIGSEGV" in cause.message
    assert "native code" in cause.message
    assert cause.message.endswith("Fatal Python error")
    assert cause.details["signal"] == "SIGSEGV"


@pytest.mark.parametrize("code", [0, 3, 7])
def test_an_exit_is_a_crash_whatever_its_code(code):
    cause = of(code << 8)
    assert cause.error_type == "WorkerCrashed"
    assert f"exit code {code}" in cause.message
    assert cause.details["exit_code"] == code


def test_a_lost_channel_is_distinguished_from_an_exit():
    assert "closed or replaced the file descriptor" in of(exit_causes.CHANNEL_LOST << 8).message


def test_a_kill_counted_by_the_kernel_is_out_of_memory():
    cause = of(int(signal.SIGKILL), oom=OomKill(source="memory.events", kills=1), peak_mb=900.0)
    assert cause.error_type == "OutOfMemory"
    assert cause.details["confidence"] == "high"
    assert "memory.events" in cause.details["evidence"]


def test_a_kill_not_counted_by_the_kernel_is_a_crash():
    assert of(int(signal.SIGKILL)).error_type == "WorkerCrashed"


def test_flashpools_reason_takes_precedence_over_the_signal():
    stop = Stop(error_type="Timeout", message="too long", details={"phase": "run"})
    cause = of(int(signal.SIGKILL), stop=stop, oom=OomKill(source="x", kills=1))
    assert cause.error_type == "Timeout"
    assert cause.details["phase"] == "run"


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "clean"), (3 << 8, "exit 3"), (9, "signal SIGKILL"), (63, "signal 63")],
)
def test_exit_statuses_are_described(status, words):
    assert exit_causes.exit_words(status).startswith(words.split()[0])
    if status != 63:
        assert exit_causes.exit_words(status) == words
