"""What says that the machine is short of something, and that nobody's request is to blame.

Descriptors, processes and the memory for them come back: whoever meets such a shortage waits
and asks again, and remembers nothing. A zygote that meets one while it comes up says SHORT
and exits with `EXIT_STATUS`, its guard with no more than that.
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
#: What `threading` says, which has no error number.
_NO_THREAD = "can't start new thread"
#: The same in the words of other programs: of Python, Rust, and shells that cannot fork.
_FORMS = ("[Errno {}]", "(os error {})")
_NO_FORK = (_NO_THREAD, "annot fork", "an't fork", "fork: retry", "fork: Resource")


def of(error: BaseException) -> str:
    """What is short by this error; empty when it means something else."""
    if isinstance(error, OSError):
        return _WHAT.get(error.errno or 0, "")
    if isinstance(error, RuntimeError) and _NO_THREAD in str(error):
        return _WHAT[errno.EAGAIN]
    return ""


def in_words(text: str) -> str:
    """What is short by these words of a program that failed; empty when they tell of none."""
    for number, what in _WHAT.items():
        if any(form.format(number) in text for form in _FORMS):
            return what
    return _WHAT[errno.EAGAIN] if any(words in text for words in _NO_FORK) else ""
