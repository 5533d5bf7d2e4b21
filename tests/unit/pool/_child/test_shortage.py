"""Which errors count as a shortage of resources on the machine."""

import errno

import pytest

from flashpool.pool._child import shortage


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM])
def test_temporary_errors_are_shortages(number: int) -> None:
    assert shortage.of(OSError(number, "said the kernel"))
    assert shortage.in_words(f"Traceback ...\nOSError: [Errno {number}] said the kernel\n")
    assert shortage.in_words(f"error: Failed to spawn\n  Caused by: no (os error {number})")


def test_a_thread_that_cannot_be_started_is_a_shortage() -> None:
    assert shortage.of(RuntimeError("can't start new thread"))
    assert shortage.in_words("RuntimeError: can't start new thread")


def test_shells_that_cannot_fork_are_a_shortage() -> None:
    assert shortage.in_words("flashpool-guard: 3: Cannot fork")
    assert shortage.in_words("/bin/sh: fork: retry: Resource temporarily unavailable")


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOENT, "none"), RuntimeError("no"), ValueError(), OSError("plain")]
)
def test_other_errors_are_not_shortages(error: Exception) -> None:
    assert not shortage.of(error)
    assert not shortage.in_words(f"{error!r} {error} [Errno 2] (os error 113)")
