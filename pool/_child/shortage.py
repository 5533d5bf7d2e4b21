"""Recognises that the machine lacks a resource, which is not the fault of a request.

Descriptors, processes and memory for them become available again: code that meets a shortage waits
and tries again, and does not record a failure. A zygote that meets a shortage during its start
sends SHORT and exits with `EXIT_STATUS`; a guard only exits with that status.
"""

from __future__ import annotations

import errno

#: sysexits.h: EX_TEMPFAIL.
EXIT_STATUS = 75
_WHAT = {
    errno.EMFILE: "open files (the limit of the process)",
    errno.ENFILE: "open files (the limit of the machine)",
    errno.EAGAIN: "processes or threads",
    errno.ENOMEM: "memory",
}
#: The message of `threading`, which has no error number.
_NO_THREAD = "can't start new thread"
#: How programs report such errors: Python and Rust with the number, shells that cannot fork in
#: words.
_FORMS = ("[Errno {}]", "(os error {})")
_NO_FORK = (_NO_THREAD, "annot fork", "an't fork", "fork: retry", "fork: Resource")


def of(error: BaseException) -> str:
    """Return the missing resource that an error reports, else an empty string."""
    if isinstance(error, OSError):
        return _WHAT.get(error.errno or 0, "")
    if isinstance(error, RuntimeError) and _NO_THREAD in str(error):
        return _WHAT[errno.EAGAIN]
    return ""


def in_words(text: str) -> str:
    """Return the missing resource that a program's message reports, else an empty string."""
    for number, what in _WHAT.items():
        if any(form.format(number) in text for form in _FORMS):
            return what
    return _WHAT[errno.EAGAIN] if any(words in text for words in _NO_FORK) else ""
