"""Explains why a call ended without a result: turns facts about a death into an error."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import Any, Final

#: From `flashpool.pool._child.fork_server.worker_start`, repeated here so that it need not be
#: imported.
CHANNEL_LOST: Final = 81
DAMAGED: Final = 82
NOT_BEGUN: Final = 83
#: Most characters of the last output in a message.
TAIL: Final = 2000
#: Precedes the last output in a message.
TAIL_HEADING: Final = "\n\nLast output of the call:\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Why the supervisor stopped a worker."""

    error_type: str
    message: str
    details: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class OomKill:
    """Evidence that the kernel killed the process: its counter of OOM kills rose."""

    source: str
    kills: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Why a call or an app's requests ended without a result."""

    error_type: str
    message: str
    details: dict[str, Any]


def of_death(
    status: int | None,
    *,
    stop: Stop | None,
    oom: OomKill | None,
    output_tail: str,
    peak_mb: float | None,
) -> Cause:
    """Explain why a worker with this wait status (None: unknown) left no result."""
    facts: dict[str, Any] = {"last_output": output_tail, **exit_facts(status)}
    if peak_mb is not None:
        facts["peak_rss_mb"] = peak_mb
    if stop is not None:
        return Cause(
            error_type=stop.error_type,
            message=_with_tail(stop.message, output_tail),
            details={**facts, **stop.details},
        )
    if facts.get("signal") == "SIGKILL" and oom is not None:
        return _killed_by_kernel(oom, facts, output_tail)
    return Cause(
        error_type="WorkerCrashed", message=_with_tail(_crash(facts), output_tail), details=facts
    )


def of_lost_zygote(reason: str, output_tail: str) -> Cause:
    """Explain that the worker was lost together with its zygote."""
    message = (
        f"the worker was lost together with the zygote it was forked from: {reason}. "
        "The call did not cause this; the zygote is restarted for the next call."
    )
    return Cause(
        error_type="WorkerCrashed",
        message=message,
        details={"last_output": output_tail, "zygote": reason},
    )


def of_stuck(stop: Stop | None, pid: int, output_tail: str) -> Cause:
    """Explain the end of a call whose worker cannot be killed.

    ``stop``: why the worker was being stopped; None: the call never began there.
    """
    stop = stop or NEVER_BEGAN
    message = (
        f"{stop.message}\nIts process {pid} cannot be killed now, because it is blocked inside the kernel, for example by a volume or a driver "
        "that does not respond; its slot and GPUs stay in use until it exits."
    )
    return Cause(
        error_type=stop.error_type,
        message=_with_tail(message, output_tail),
        details={"last_output": output_tail, **stop.details, "stuck_pid": pid},
    )


def of_mistake(error: Exception) -> Cause:
    """Explain that a bug in the pool ended the call."""
    what = f"{type(error).__name__}: {error}"
    message = (
        f"a bug in flashpool ended the call ({what}). The log has the traceback: please "
        "report it. Other calls are not affected."
    )
    return Cause(error_type="WorkerCrashed", message=message, details={"internal": what})


def of_bad_frame(problem: str, output_tail: str) -> Cause:
    """Explain that user code wrote to the control channel, or that a result is malformed."""
    message = (
        f"something other than flashpool's runtime wrote to the worker's channel ({problem}). "
        "Does the call write to file descriptors that it did not open?"
    )
    return Cause(
        error_type="WorkerCrashed",
        message=_with_tail(message, output_tail),
        details={"last_output": output_tail},
    )


CHANNEL_CLOSED: Final = Stop(
    error_type="WorkerCrashed",
    message="the call closed or replaced the file descriptor that carries its result, so the result is lost",
    details={},
)


NEVER_BEGAN: Final = Stop(
    error_type="WorkerCrashed",
    message="no worker started the call: each one stopped or hung, and was killed. Does "
    "something outside stop the pool's processes, or does a preloaded module run "
    "code after a fork?",
    details={},
)


def not_handed_over(error: OSError) -> Stop:
    """Return the reason for stopping a worker whose channel the call could not be sent over."""
    return Stop(
        error_type="WorkerCrashed",
        message=f"the call could not be sent to its worker: {error.strerror}. Does the pool's "
        "process have enough file descriptors (ulimit -n) and memory?",
        details={},
    )


def of_app(status: int | None, stop: Stop | None, oom: OomKill | None) -> Cause:
    """Explain the death of an app's worker, for all requests in that worker."""
    facts = exit_facts(status)
    if stop is not None:
        return Cause(error_type=stop.error_type, message=stop.message, details=facts)
    name, code = facts.get("signal"), facts.get("exit_code")
    if name == "SIGKILL" and oom is not None:
        evidence = f"{oom.source} counted {oom.kills} more kill(s) while it ran"
        message = f"the kernel killed the app's worker for lack of memory: {evidence}"
        details = {**facts, "evidence": evidence, "confidence": "high"}
        return Cause(error_type="OutOfMemory", message=message, details=details)
    if name is not None:
        usually = f" ({_USUALLY[name]})" if name in _USUALLY else ""
        message = f"the app's worker was killed by {name}{usually}"
    elif code == CHANNEL_LOST:
        message = "the app closed or replaced the file descriptor that carries its answers"
    elif code == DAMAGED:
        message = "the app damaged its interpreter: it changed something that Python or the event loop needs"
    elif code is not None:
        message = (
            f"the app's worker exited with exit code {code}: the app, or a library it uses, "
            "called os._exit() or exit()"
        )
    else:
        message = "the app's worker exited"
    return Cause(error_type="WorkerCrashed", message=message, details=facts)


def exit_facts(status: int | None) -> dict[str, Any]:
    """Return a wait status as ``signal`` or ``exit_code``."""
    if status is None:
        return {}
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return {"signal": signal_name(number), "signal_number": number}
    return {"exit_code": os.WEXITSTATUS(status)}


def exit_words(status: int) -> str:
    """Return a wait status for a receipt: ``clean``, ``exit N`` or ``signal NAME``."""
    facts = exit_facts(status)
    if "signal" in facts:
        return f"signal {facts['signal']}"
    return f"exit {facts['exit_code']}" if facts["exit_code"] else "clean"


def signal_name(number: int) -> str:
    """Return ``SIGSEGV`` for 11; ``signal 40`` for a signal without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


#: What signals usually mean.
_USUALLY: Final = {
    "SIGSEGV": "native code accessed memory that it does not own",
    "SIGBUS": "native code accessed memory that does not exist (a truncated file, a full /dev/shm)",
    "SIGABRT": "native code called abort(), often after a failed assertion",
    "SIGFPE": "native code divided by zero",
    "SIGILL": "native code uses instructions that this CPU does not have",
    "SIGKILL": "something outside killed it, such as an operator, or the kernel for lack of memory",
    "SIGTERM": "an operator, or the call itself, asked it to exit",
}


def _crash(facts: dict[str, Any]) -> str:
    if "signal" in facts:
        name = facts["signal"]
        usually = f" ({_USUALLY[name]})" if name in _USUALLY else ""
        return f"the worker was killed by {name}{usually} before the call had a result"
    if facts.get("exit_code") == CHANNEL_LOST:
        return CHANNEL_CLOSED.message
    if facts.get("exit_code") == DAMAGED:
        return (
            "the worker could not report how the call ended, because the call damaged its "
            "interpreter: it changed builtins, modules or hooks that Python itself needs"
        )
    if facts.get("exit_code") == NOT_BEGUN:
        return "the worker failed before user code began; its last output says why"
    if "exit_code" in facts:
        return (
            f"the worker exited with exit code {facts['exit_code']} before the call had a "
            "result: the call's code, or a library, called os._exit() or exit()"
        )
    return "the worker closed its channel before the call had a result"


def _killed_by_kernel(oom: OomKill, facts: dict[str, Any], tail: str) -> Cause:
    evidence = f"{oom.source} counted {oom.kills} more kill(s) while the call ran"
    message = f"the kernel killed the worker for lack of memory: {evidence}. Use less memory, or a larger pod."
    return Cause(
        error_type="OutOfMemory",
        message=_with_tail(message, tail),
        details={**facts, "evidence": evidence, "confidence": "high"},
    )


def _with_tail(message: str, tail: str) -> str:
    return f"{message}{TAIL_HEADING}{tail.rstrip()}" if tail.strip() else message
